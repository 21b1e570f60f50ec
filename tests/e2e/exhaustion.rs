//! Peers that take their time, and names without end: what they hold has a bound and an end, and
//! who behaves is served meanwhile.
//!
//! The limits are scaled down, and what counts is what happened, not how long it took.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use oshu_vault::config::Limits;
use oshu_vault_sdk::CreateSession;
use tokio::task::JoinSet;

use crate::support::{self, Conn, GOOD, Origin, Scene, Vault, VaultBuilder, contains, within};

const TARGET: &str = "good.example.com:443";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn limited(change: fn(&mut Limits)) -> impl FnOnce(VaultBuilder) -> VaultBuilder {
    move |vault| vault.config(|config| change(&mut config.limits))
}

async fn dial_from(host: u8, address: SocketAddr) -> Conn {
    support::dial_from(Ipv4Addr::new(127, 0, 1, host), address).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_67_slow_heads_end_and_a_good_client_is_served_meanwhile() {
    // Long enough that all are there at once, on a machine that is not much too slow.
    let scene = Scene::vault(limited(|limits| {
        limits.head_timeout = Duration::from_secs(3);
    }))
    .await;
    let address = scene.vault.plain_addr();
    let mut slow = Vec::new();
    for index in 0..500_u16 {
        let host = u8::try_from(2 + index % 4).expect("small");
        let mut conn = dial_from(host, address).await;
        conn.send("G").await;
        slow.push(conn);
    }
    scene.alive("500 slow heads").await;
    let mut ends = JoinSet::new();
    for (index, mut conn) in slow.into_iter().enumerate() {
        ends.spawn(async move {
            // One more byte whenever nothing came for a while, to the end. The answer says why, where
            // the byte that crossed it has not reset the connection.
            for byte in b"ET / HTTP/1.1\r\nX: "
                .iter()
                .chain(std::iter::repeat(&b'x'))
            {
                let wait = tokio::time::timeout(Duration::from_millis(700), conn.fill());
                if wait.await.is_ok() || conn.try_send([*byte]).await.is_err() {
                    break;
                }
            }
            let rest = conn.rest().await;
            let late = rest.is_empty() || contains(&rest, "HTTP/1.1 408 ");
            assert!(late, "{index}: {}", rest.escape_ascii());
        });
    }
    scene.alive("slow heads that go on").await;
    while let Some(end) = within("the ends of slow heads", ends.join_next()).await {
        end.expect("an end");
    }
    scene.nothing_arrived("slow heads").await;
}

#[tokio::test]
async fn case_67_slow_bodies_take_their_own_session_s_places_only() {
    let scene = Scene::vault(limited(|limits| {
        limits.session_exchanges = 4;
        limits.session_wait = Duration::from_millis(200);
        limits.exchange_idle_timeout = Some(Duration::from_secs(2));
    }))
    .await;
    let other = scene.vault.session(&Scene::request()).await;
    let other = scene.vault.workload(&other);
    let mut slow = Vec::new();
    for _ in 0..4 {
        let mut conn = scene.workload.connect(TARGET).await;
        conn.send(format!(
            "POST /slow HTTP/1.1\r\nHost: {GOOD}\r\nContent-Length: 1000\r\n\r\nb"
        ))
        .await;
        slow.push(conn);
    }
    scene
        .good
        .wait("the slow ones", |all| {
            let text = String::from_utf8_lossy(&all.concat()).into_owned();
            text.matches("/slow").count() == 4
        })
        .await;
    let answer = other.get(&format!("https://{GOOD}/"), &[]).await;
    assert_eq!(answer.text(), "ok", "another session");
    // No byte more comes: each ends, and its session's places are free again.
    for conn in &mut slow {
        assert_eq!(conn.answer().await.code(), "request_timeout");
    }
    scene.alive("slow bodies").await;
}

#[tokio::test]
async fn case_67_slow_readers_end_and_a_good_client_is_served_meanwhile() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let origin = Origin::script(move |request, conn| {
        let sent = Arc::clone(&counted);
        async move {
            if !request.line().contains("/endless") {
                return conn.send(OK).await;
            }
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n")
                .await;
            let piece = vec![b'x'; 64 * 1024];
            for _ in 0..1024 * 16 {
                conn.send(&piece).await;
                sent.fetch_add(piece.len(), Ordering::SeqCst);
            }
        }
    })
    .await;
    let limit = limited(|limits| limits.stall_timeout = Duration::from_millis(500));
    let scene = Scene::with_good(origin, limit, |session| session.scrub_responses(false)).await;
    let mut readers = Vec::new();
    for _ in 0..4 {
        let mut conn = scene.workload.connect(TARGET).await;
        conn.send(format!("GET /endless HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"))
            .await;
        readers.push(conn);
    }
    scene.alive("readers that take nothing").await;
    let lines = scene.vault.audit_log().wait("the stalls", |lines| {
        let stalled = |line: &&serde_json::Value| line["reason"] == "stalled";
        lines.iter().filter(stalled).count() == 4
    });
    lines.await;
    drop(readers);
    scene.alive("readers that took nothing").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_77_a_flood_of_names_is_minted_once_each_kept_within_a_bound_and_fair() {
    const NAMES: usize = 5_000;
    const KEPT: usize = 64;
    const AT_ONCE: usize = 16;
    let good = Origin::echo_ok().await;
    let vault = Vault::builder()
        .resolve(GOOD, good.addr())
        .config(|config| config.limits.leaves = KEPT)
        .start()
        .await;
    let wild = CreateSession::new().allowed_egress(["*.wild.example.com"]);
    let flood = vault.workload(&vault.session(&wild).await);
    let other = vault.workload(&vault.session(&Scene::request()).await);
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (flood, next) = (flood.clone(), Arc::clone(&next));
        tasks.spawn(async move {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= NAMES {
                    return;
                }
                let target = format!("n{index}.wild.example.com:443");
                // The handshake verifies that the leaf is for this very name.
                drop(flood.connect(&target).await);
            }
        });
    }
    // The other session is served while the names come.
    let mut served = 0_u64;
    while next.load(Ordering::Relaxed) < NAMES {
        let answer = other.get(&format!("https://{GOOD}/"), &[]).await;
        assert_eq!(answer.text(), "ok");
        served += 1;
    }
    while let Some(task) = tasks.join_next().await {
        task.expect("every name is served");
    }
    assert!(served > 0, "served meanwhile");
    let (minted, kept) = vault.leaves();
    let named = u64::try_from(NAMES).expect("small");
    // The good host's leaf may have gone in the flood and come again.
    let again = minted - named;
    assert!((1..=served).contains(&again), "{minted} for {served}");
    assert!(kept <= KEPT, "{kept}");
    let answer = other.get(&format!("https://{GOOD}/"), &[]).await;
    assert_eq!(answer.text(), "ok");
}
