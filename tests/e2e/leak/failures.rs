//! An upstream that fails after the swap: what the workload is told has no value.

use super::{Needles, VALUE};
use crate::support::{Origin, Scene, TestCa, Vault, within};

/// How an origin fails, and what the workload is told.
const FAILURES: [(&str, u16); 6] = [
    ("untrusted", 502),
    ("nonsense", 502),
    ("reset", 502),
    ("half-a-head", 502),
    ("two-framings", 502),
    ("silent", 504),
];

async fn origin(name: &str) -> Origin {
    let two = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n";
    match name {
        "untrusted" => Origin::builder().ca(&TestCa::generate()).echo_ok().await,
        "nonsense" => Origin::answer(format!("NONSENSE {VALUE}\r\n\r\n")).await,
        "reset" => Origin::script(|_request, conn| async move { conn.abort().await }).await,
        "half-a-head" => {
            Origin::script(|_request, conn| async move {
                conn.send(format!("HTTP/1.1 200 OK\r\nX-Echo: {VALUE}"))
                    .await;
                conn.close().await;
            })
            .await
        }
        "two-framings" => {
            Origin::answer(format!(
                "HTTP/1.1 200 {VALUE}\r\nX-Echo: {VALUE}\r\n{two}\r\n"
            ))
            .await
        }
        _ => {
            Origin::builder()
                .plain()
                .raw(|conn| async move { conn.wait_end().await })
                .await
        }
    }
}

#[tokio::test]
async fn case_22_an_upstream_that_fails_after_the_swap_shows_no_value() {
    let mut origins = Vec::new();
    let mut builder = Vault::builder();
    for (name, status) in FAILURES {
        let origin = origin(name).await;
        builder = builder.resolve(&format!("{name}.example.com"), origin.addr());
        origins.push((name, status, origin));
    }
    let limit = std::time::Duration::from_secs(5);
    let vault = builder
        .config(|config| config.limits.handshake_timeout = limit)
        .start()
        .await;
    let hosts = FAILURES.map(|(name, _)| format!("{name}.example.com"));
    let request = Scene::request()
        .secret("CANARY", VALUE)
        .secret_hosts(hosts.clone())
        .allowed_egress(hosts)
        .inject(["header", "query", "path"]);
    let session = vault.session(&request).await;
    let workload = vault.workload(&session);
    let token = session.sealed_secrets["CANARY"].clone();
    let needles = Needles::new([
        ("the value", VALUE),
        ("the credential", session.token.as_str()),
    ]);
    for (name, status, origin) in &origins {
        let host = format!("{name}.example.com");
        let path = format!("/{token}?key={token}");
        let bearer = format!("Bearer {token}");
        let fields = [
            ("x-api-key", token.as_str()),
            ("authorization", bearer.as_str()),
        ];
        let answer = workload
            .get(&format!("https://{host}{path}"), &fields)
            .await;
        assert_eq!(answer.status, *status, "{name}: {}", answer.head);
        assert!(
            answer.text().contains("\"code\""),
            "{name}: {}",
            answer.text()
        );
        needles.expect_none(name, &answer.raw);
        let client = workload.h2(&format!("{host}:443")).await;
        let answer = client.ask(("POST", &path), &fields, b"a body").await;
        assert_eq!(answer.status, *status, "{name}: {answer:?}");
        needles.expect_none(name, format!("{answer:?}"));
        needles.expect_none(name, &answer.body);
        client.vanish().await;
        // The value had left where there was somebody to trust.
        let left = needles.found(&origin.bytes()).is_some();
        assert_eq!(left, !matches!(*name, "untrusted" | "silent"), "{name}");
    }
    let met = |lines: &[serde_json::Value]| {
        let exchanges = lines.iter().filter(|line| line["event"] == "exchange");
        exchanges.count() >= 2 * FAILURES.len()
    };
    within(
        "the records",
        vault.audit_log().wait("one record each", met),
    )
    .await;
    needles.expect_none("the audit log", vault.audit_log().raw());
}
