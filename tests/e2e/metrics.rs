//! Metrics and readiness: what is counted, that labels are bounded, and no value among them.

use std::collections::HashMap;

use oshu_vault_sdk::CreateSession;

use crate::binary::get;
use crate::support::{EVIL, GOOD, REAL, Scene, Vault, contains, within};

/// A page of metrics, by name and labels.
pub(crate) struct Page {
    text: String,
    samples: HashMap<String, f64>,
}

impl Page {
    async fn of(vault: &Vault) -> Self {
        let answer = get(vault.admin_addr(), "/metrics").await;
        assert_eq!(answer.status, 200);
        let kind = answer.header("content-type");
        assert_eq!(kind, Some("text/plain; version=0.0.4; charset=utf-8"));
        let text = answer.text().to_owned();
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let samples = samples.map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a value");
            (name.to_owned(), value.parse().expect("a number"))
        });
        let samples = samples.collect();
        Self { text, samples }
    }

    /// Returns a sample; one that was never counted is 0.
    pub(crate) fn value(&self, name: &str) -> f64 {
        self.samples.get(name).copied().unwrap_or_default()
    }

    #[track_caller]
    fn expect(&self, samples: &[(&str, f64)]) {
        for (name, expected) in samples {
            let value = self.value(name);
            assert!(
                (value - expected).abs() < 0.5,
                "{name} {value}: {}",
                self.text
            );
        }
    }
}

/// Reads the page until it meets a condition: counts come when their owners end.
pub(crate) async fn wait(vault: &Vault, what: &str, met: impl Fn(&Page) -> bool) -> Page {
    within(what, async {
        loop {
            let page = Page::of(vault).await;
            if met(&page) {
                return page;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

#[tokio::test]
async fn what_happens_is_counted_and_no_value_or_id_is_told() {
    let scene = Scene::new().await;
    let key = scene.fill("GET / HTTP/1.1\r\nHost: good.example.com\r\nX-Key: {T}\r\n\r\n");
    let mut conn = scene.workload.connect("good.example.com:443").await;
    for _ in 0..3 {
        conn.send(&key).await;
        assert_eq!(conn.answer().await.status, 200);
    }
    let page = wait(&scene.vault, "three exchanges", |page| {
        page.value("oshu_vault_exchanges_total{outcome=\"allowed\"}") >= 3.0
    })
    .await;
    page.expect(&[
        ("oshu_vault_tunnels_open", 1.0),
        ("oshu_vault_sessions", 1.0),
        ("oshu_vault_store_up", 1.0),
        ("oshu_vault_draining", 0.0),
        ("oshu_vault_audit_lost_total", 0.0),
        ("oshu_vault_leaves", 1.0),
        ("oshu_vault_leaves_minted_total", 1.0),
        ("oshu_vault_leaf_mint_seconds_count", 1.0),
        ("oshu_vault_workload_handshake_seconds_count", 1.0),
        ("oshu_vault_upstream_handshake_seconds_count", 1.0),
        ("oshu_vault_upstream_connections_total{from=\"dial\"}", 1.0),
        ("oshu_vault_upstream_connections_total{from=\"pool\"}", 2.0),
        ("oshu_vault_store_change_seconds_count", 1.0),
        (
            "oshu_vault_swaps_total{secret=\"EXAMPLE_KEY\",host_class=\"other\"}",
            3.0,
        ),
        (
            "oshu_vault_session_changes_total{action=\"created\",outcome=\"allowed\"}",
            1.0,
        ),
    ]);
    assert!(page.value("oshu_vault_connections") >= 1.0);
    drop(conn);
    assert_eq!(
        scene.workload.refused(&format!("{EVIL}:443")).await.status,
        403
    );
    let page = wait(&scene.vault, "two tunnels", |page| {
        page.value("oshu_vault_tunnels_open") < 0.5
            && page.value("oshu_vault_refusals_total{code=\"host_not_allowed\"}") > 0.5
            && page.value("oshu_vault_tunnels_total{outcome=\"allowed\"}") > 0.5
    })
    .await;
    page.expect(&[("oshu_vault_tunnels_total{outcome=\"denied\"}", 1.0)]);
    let session = &scene.session;
    for hidden in [
        REAL,
        scene.token(),
        &session.token,
        &session.session_id,
        GOOD,
        EVIL,
    ] {
        assert!(!contains(page.text.as_bytes(), hidden), "{hidden}");
    }
    for family in page.text.lines().filter(|line| line.starts_with("# TYPE ")) {
        let name = family.split(' ').nth(2).expect("a name");
        let doc = include_str!("../../docs/operations.md");
        assert!(doc.contains(&format!("`{name}`")), "{name} is documented");
    }
}

#[tokio::test]
async fn metrics_are_the_operators_alone() {
    let vault = Vault::builder().start().await;
    assert_eq!(get(vault.plain_addr(), "/metrics").await.status, 404);
    assert_eq!(get(vault.admin_addr(), "/metrics").await.status, 200);
    assert_eq!(get(vault.admin_addr(), "/v1/sessions").await.status, 404);
}

#[tokio::test]
async fn names_that_tenants_choose_cannot_fill_the_page() {
    let scene = Scene::new().await;
    let mut swapped = 0;
    for batch in 0..3 {
        let mut request = CreateSession::new()
            .secret_hosts([GOOD])
            .allowed_egress([GOOD]);
        for number in 0..80 {
            request = request.secret(format!("NAME_{batch}_{number}"), REAL);
        }
        let session = scene.vault.session(&request).await;
        let workload = scene.vault.workload(&session);
        let fields: String = session
            .sealed_secrets
            .values()
            .enumerate()
            .fold(String::new(), |all, (at, token)| {
                all + &format!("X-{at}: {token}\r\n")
            });
        let mut conn = workload.connect("good.example.com:443").await;
        conn.send(format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n{fields}\r\n"))
            .await;
        assert_eq!(conn.answer().await.status, 200);
        swapped += session.sealed_secrets.len();
    }
    assert_eq!(swapped, 240);
    let all = "oshu_vault_swaps_total{secret=\"all others\",host_class=\"other\"}";
    let page = wait(&scene.vault, "all others", |page| page.value(all) > 39.5).await;
    page.expect(&[(all, 40.0)]);
    let names = page.samples.keys().filter(|name| name.contains("NAME_"));
    assert_eq!(names.count(), 2 * 200);
}

#[tokio::test]
async fn a_stuck_sink_is_seen_and_stops_no_count() {
    let scene = Scene::new().await;
    let log = scene.vault.audit_log();
    log.fill();
    scene.alive("a full sink").await;
    let page = wait(&scene.vault, "an exchange", |page| {
        page.value("oshu_vault_exchanges_total{outcome=\"allowed\"}") >= 1.0
    })
    .await;
    let full = page.value("oshu_vault_audit_room");
    page.expect(&[("oshu_vault_audit_waiting", full)]);
    assert!(page.value("oshu_vault_audit_lost_total") >= 1.0);
    log.hold(false);
}
