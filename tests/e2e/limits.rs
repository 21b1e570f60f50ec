//! Limits: every wait ends, and what waits for nothing is not ended.
//!
//! The limits are scaled down by configuration; a wait that ends in far less time than the default
//! shows which limit ended it.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use oshu_vault::config::Limits;
use oshu_vault_sdk::CreateSession;
use serde_json::json;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;

use crate::support::{Conn, GOOD, Origin, Scene, Vault, VaultBuilder, contains};

const TARGET: &str = "good.example.com:443";
/// The limit under test.
const SHORT: Duration = Duration::from_millis(400);
/// Far above the limit under test, and far below the defaults.
const SOON: Duration = Duration::from_secs(5);

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {GOOD}\r\n\r\n")
}

fn limited(change: fn(&mut Limits)) -> impl FnOnce(VaultBuilder) -> VaultBuilder {
    move |vault| vault.config(|config| change(&mut config.limits))
}

/// Waits for the end of a stream and checks that the short limit brought it about.
async fn ends_in_time(case: &str, began: Instant, conn: &mut Conn) {
    let rest = conn.rest().await;
    let took = began.elapsed();
    assert!(took >= SHORT * 9 / 10 && took < SOON, "{case}: {took:?}");
    assert!(rest.is_empty(), "{case}: {}", crate::support::show(&rest));
}

#[tokio::test]
async fn a_silent_connection_is_closed() {
    let scene = Scene::vault(limited(|limits| limits.first_byte_timeout = SHORT)).await;
    let began = Instant::now();
    let mut plain = scene.workload.plain().await;
    let mut tls = Conn::new(
        TcpStream::connect(scene.vault.tls_addr())
            .await
            .expect("connected"),
    );
    let mut handshaken = scene.workload.secure().await;
    let mut admin = Conn::new(
        TcpStream::connect(scene.vault.admin_addr())
            .await
            .expect("connected"),
    );
    let mut tunnel = scene.workload.tunnel(TARGET).await;
    let mut inner = scene.workload.connect(TARGET).await;
    for (case, conn) in [
        ("the plain listener", &mut plain),
        ("the TLS listener before its handshake", &mut tls),
        ("the TLS listener after its handshake", &mut handshaken),
        ("the admin listener", &mut admin),
        ("a tunnel before its handshake", &mut tunnel),
        ("a tunnel after its handshake", &mut inner),
    ] {
        ends_in_time(case, began, conn).await;
    }
    scene.nothing_arrived("silence").await;
}

#[tokio::test]
async fn peer_63_a_head_that_does_not_end_is_closed_however_it_trickles() {
    let scene = Scene::vault(limited(|limits| limits.head_timeout = SHORT)).await;
    let mut plain = scene.workload.plain().await;
    let mut tls = scene.workload.secure().await;
    let mut inner = scene.workload.connect(TARGET).await;
    let began = Instant::now();
    for (conn, line) in [
        (&mut plain, "CONNECT good.example.com:443"),
        (&mut tls, "GET /v1/sessions"),
        (&mut inner, "GET /"),
    ] {
        conn.send(format!("{line} HTTP/1.1\r\nHost: good.example.com\r\nX: "))
            .await;
    }
    for (case, conn) in [
        ("plain", &mut plain),
        ("TLS", &mut tls),
        ("a tunnel", &mut inner),
    ] {
        let trickle = async {
            // A byte whenever nothing has happened for a while; the peer's end ends it.
            while conn.try_send("x").await.is_ok() {
                let wait = tokio::time::timeout(SHORT / 10, conn.fill());
                if wait.await.is_ok_and(|more| !more) {
                    break;
                }
            }
        };
        trickle.await;
        let took = began.elapsed();
        assert!(took >= SHORT * 9 / 10 && took < SOON, "{case}: {took:?}");
    }
    scene.nothing_arrived("half a head").await;
}

#[tokio::test]
async fn peer_63_a_handshake_that_does_not_end_is_closed() {
    let scene = Scene::vault(limited(|limits| limits.handshake_timeout = SHORT)).await;
    let mut tls = Conn::new(
        TcpStream::connect(scene.vault.tls_addr())
            .await
            .expect("connected"),
    );
    let mut tunnel = scene.workload.tunnel(TARGET).await;
    let began = Instant::now();
    for conn in [&mut tls, &mut tunnel] {
        // The start of a record that says it has 512 bytes.
        conn.send(b"\x16\x03\x01\x02\x00\x01\x00").await;
    }
    ends_in_time("the TLS listener", began, &mut tls).await;
    ends_in_time("a tunnel", began, &mut tunnel).await;
    scene.nothing_arrived("half a handshake").await;
}

#[tokio::test]
async fn an_upstream_that_does_not_shake_hands_is_504() {
    let silent = Origin::builder()
        .plain()
        .raw(|conn| async move { conn.wait_end().await })
        .await;
    let change = limited(|limits| limits.handshake_timeout = SHORT);
    let scene = Scene::with_good(silent, change, |request| request).await;
    let mut conn = scene.workload.connect(TARGET).await;
    let began = Instant::now();
    conn.send(get("/")).await;
    let answer = conn.answer().await;
    assert!(began.elapsed() < SOON);
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (504, "tls_timeout")
    );
    scene.good.wait_ended(1).await;
    assert!(
        !contains(&scene.good.bytes(), "GET "),
        "no request before TLS"
    );
}

#[tokio::test]
async fn an_upstream_that_does_not_accept_is_504() {
    // A listener with a full queue: what comes on top is neither accepted nor refused.
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .bind((Ipv4Addr::LOCALHOST, 0).into())
        .expect("a port");
    let listener = socket.listen(1).expect("a listener");
    let address = listener.local_addr().expect("an address");
    let mut queue = Vec::new();
    while let Ok(tcp) = tokio::time::timeout(SHORT, TcpStream::connect(address)).await {
        queue.push(tcp.expect("queued"));
        assert!(queue.len() < 100, "the queue has an end");
    }
    let vault = Vault::builder()
        .resolve(GOOD, address)
        .config(|config| config.limits.connect_timeout = SHORT)
        .start()
        .await;
    let session = vault.session(&CreateSession::new()).await;
    let began = Instant::now();
    let answer = vault
        .workload(&session)
        .get(&format!("https://{GOOD}/"), &[])
        .await;
    assert!(began.elapsed() < SOON);
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (504, "connection_timeout")
    );
}

#[tokio::test]
async fn case_68_idle_connections_end_and_busy_ones_do_not() {
    let (release, gate) = watch::channel(false);
    let origin = Origin::script(move |request, conn| {
        let mut gate = gate.clone();
        async move {
            if request.line().contains("/wait") {
                gate.wait_for(|open| *open).await.expect("the test goes on");
            }
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .await;
        }
    })
    .await;
    let change = limited(|limits| limits.idle_timeout = SHORT);
    let scene = Scene::with_good(origin, change, |request| request).await;
    let mut busy = scene.workload.connect(TARGET).await;
    busy.send(get("/wait")).await;
    scene
        .good
        .wait("the request", |all| contains(&all.concat(), "/wait"))
        .await;
    for _ in 0..2 {
        let began = Instant::now();
        let mut idle = scene.workload.connect(TARGET).await;
        idle.send(get("/")).await;
        assert_eq!(idle.answer().await.text(), "ok");
        let mut local = scene.workload.plain().await;
        local.send("GET /healthz HTTP/1.1\r\nHost: v\r\n\r\n").await;
        assert_eq!(local.answer().await.status, 200);
        ends_in_time("a tunnel", began, &mut idle).await;
        local.expect_end().await;
    }
    // Two idle lifetimes have passed by now.
    release.send_replace(true);
    assert_eq!(busy.answer().await.text(), "ok");
    scene.alive("idleness").await;
}

#[tokio::test]
async fn connections_over_the_limit_wait_and_the_operator_s_do_not() {
    let scene = Scene::vault(limited(|limits| limits.connections = 3)).await;
    // Sessions are made over connections as well: wait until those of the SDK are gone.
    let health = "GET /healthz HTTP/1.1\r\nHost: v\r\nConnection: close\r\n\r\n";
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut conn = scene.workload.plain().await;
        conn.send("GET /healthz HTTP/1.1\r\nHost: v\r\n\r\n").await;
        assert_eq!(conn.answer().await.status, 200);
        held.push(conn);
    }
    let mut third = scene.workload.plain().await;
    third.send("GET /healthz HTTP/1.1\r\nHost: v\r\n\r\n").await;
    assert_eq!(third.answer().await.status, 200);
    let mut fourth = scene.workload.plain().await;
    fourth.send(health).await;
    let waits = tokio::time::timeout(SHORT, fourth.fill()).await;
    assert!(waits.is_err(), "the fourth is not served yet");
    let mut admin = Conn::new(
        TcpStream::connect(scene.vault.admin_addr())
            .await
            .expect("connected"),
    );
    admin.send(health).await;
    assert_eq!(admin.answer().await.status, 200);
    held.clear();
    assert_eq!(fourth.answer().await.status, 200);
}

#[tokio::test]
async fn a_peer_that_takes_nothing_is_not_waited_for() {
    // The origin has much to say, and the client reads none of it.
    let endless = Origin::raw(|conn| async move {
        conn.read_head().await;
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n")
            .await;
        let piece = vec![b'x'; 256 * 1024];
        // Far more than all buffers on the way can hold.
        for _ in 0..400 {
            conn.send(&piece).await;
        }
    })
    .await;
    let limit = limited(|limits| limits.stall_timeout = SHORT);
    let scene = Scene::with_good(endless, limit, |session| session).await;
    let mut conn = scene.workload.connect(TARGET).await;
    conn.send(get("/endless")).await;
    let lines = scene.vault.audit_log().wait("the stall", |lines| {
        lines.iter().any(|line| line["event"] == "exchange")
    });
    let lines = lines.await;
    let record = lines
        .iter()
        .find(|line| line["event"] == "exchange")
        .expect("a record");
    assert_eq!(
        (&record["decision"], &record["reason"]),
        (&json!("aborted"), &json!("stalled"))
    );
}
