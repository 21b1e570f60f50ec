//! What a session gains at our own address: nothing where the service refuses it, and the name of its
//! TLS is the tunnel's there too.

use std::time::{Duration, Instant};

use oshu_vault::config::PublicUrl;
use oshu_vault_sdk::{CreateSession, CreatedSession};
use rustls::pki_types::ServerName;
use serde_json::json;

use crate::support::{Conn, Origin, VaultBuilder};

use super::inner::{OWN, raw, stage};
use super::{ACCOUNT, Stage, jwt};

const TARGET: &str = "vault.example.com:443";
const MESSAGES: &str = "/api/claude-gateway/v1/messages";

async fn counters(stage: &Stage, session: &CreatedSession) -> (Option<u64>, Option<u64>) {
    let found = stage.vault.sdk().get_session(&session.session_id).await;
    let found = found.expect("a session");
    (found.counter("exchanges"), found.counter("denied"))
}

async fn status(conn: &mut Conn, target: &str, line: &str) -> u16 {
    conn.send(raw(target, line)).await;
    conn.answer().await.status
}

#[tokio::test]
async fn what_is_refused_at_our_own_address_renews_nothing() {
    let (stage, other) = stage("https://vault.example.com").await;
    let nowhere: [&str; 0] = [];
    let session = CreateSession::new().allowed_egress(nowhere);
    let session = stage.vault.session(&session).await;
    let workload = stage.vault.workload(&session);
    let paid = format!("Authorization: Bearer {}\r\n", jwt(ACCOUNT));
    let unpaid = format!("Authorization: Bearer {}\r\n", jwt("42"));
    let before = stage.vault.expires(&session);
    let (began, mut refused) = (Instant::now(), 0);
    // As long as it takes to tell a lifetime that was renewed from one that was not.
    while began.elapsed() < Duration::from_millis(500) {
        for (target, line, expected) in [
            ("/", paid.as_str(), 403),
            ("/v1/sessions", &paid, 403),
            (MESSAGES, "", 401),
            (MESSAGES, &unpaid, 402),
            ("/api/claude-gateway/v1/files", &paid, 404),
        ] {
            let mut conn = workload.connect(TARGET).await;
            assert_eq!(status(&mut conn, target, line).await, expected, "{target}");
            refused += 1;
        }
    }
    let after = stage.vault.expires(&session);
    // Two clocks are read for it.
    let drift = Duration::from_millis(100);
    assert!(after <= before + drift, "{before:?} {after:?}");
    let counted = counters(&stage, &session).await;
    assert_eq!(counted, (Some(0), Some(refused)));
    let mut conn = workload.connect(TARGET).await;
    assert_eq!(status(&mut conn, MESSAGES, &paid).await, 200);
    let used = stage.vault.expires(&session);
    assert!(used > before + 3 * drift, "{before:?} {used:?}");
    assert_eq!(counters(&stage, &session).await, (Some(1), Some(refused)));
    other.expect_nothing("our own name");
}

#[tokio::test]
async fn a_call_that_is_under_way_keeps_its_session() {
    let provider = Origin::script(|_request, conn| async move {
        let _held = conn;
        std::future::pending::<()>().await;
    })
    .await;
    let stage = Stage::built(provider, |vault: VaultBuilder| {
        vault.config(|config| {
            config.proxy.public_url = PublicUrl::parse("https://vault.example.com");
        })
    });
    let stage = stage.await;
    stage.pay(ACCOUNT, true).await;
    let session = stage.vault.session(&CreateSession::new()).await;
    let mut conn = stage.vault.workload(&session).connect(TARGET).await;
    let line = format!("Authorization: Bearer {}\r\n", jwt(ACCOUNT));
    conn.send(raw(MESSAGES, &line)).await;
    let here = |all: &[Vec<u8>]| !all.is_empty();
    stage.provider.wait("the call", here).await;
    // What is in use does not come nearer to its end, though nothing has been answered.
    let before = stage.vault.expires(&session) + Duration::from_millis(300);
    let later = async {
        while stage.vault.expires(&session) <= before {
            tokio::task::yield_now().await;
        }
    };
    crate::support::within("a later end", later).await;
}

#[tokio::test]
async fn what_is_no_request_is_recorded_as_that() {
    let (stage, _other) = stage("https://vault.example.com").await;
    let session = stage.vault.session(&CreateSession::new()).await;
    let mut conn = stage.vault.workload(&session).connect(TARGET).await;
    conn.send(format!(
        "POST {MESSAGES} HTTP/1.1\r\nHost: {OWN}\r\nContent-Length: 2\r\nTransfer-Encoding: \
         chunked\r\n\r\n{{}}"
    ))
    .await;
    assert_eq!(conn.answer().await.status, 400);
    let lines = stage.vault.audit_log().wait("the record", |lines| {
        lines.iter().any(|line| line["status"] == 400)
    });
    let lines = lines.await;
    let line = lines.iter().find(|line| line["status"] == 400);
    let line = line.expect("it");
    assert_eq!(line["decision"], "denied");
    assert_ne!(line["reason"], "own_address", "{line}");
}

#[tokio::test]
async fn another_server_name_is_refused_at_our_own_address() {
    let (stage, other) = stage("https://vault.example.com").await;
    let session = stage.vault.session(&CreateSession::new()).await;
    let workload = stage.vault.workload(&session);
    for asked in ["evil.example.net", "xvault.example.com", "example.com"] {
        let tunnel = workload.tunnel(TARGET).await;
        let name = ServerName::try_from(asked).expect("a name");
        let failed = workload.handshake(tunnel.into_io(), name, &[]).await;
        let error = failed.err().expect("a refused handshake").to_string();
        assert!(error.contains("UnrecognisedName"), "{asked}: {error}");
    }
    let lines = stage.vault.audit_log().wait("the records", |lines| {
        let refused = lines
            .iter()
            .filter(|line| line["reason"] == "another_server_name");
        refused.count() == 3
    });
    let lines = lines.await;
    let line = lines
        .iter()
        .find(|line| line["reason"] == "another_server_name");
    let line = line.expect("it");
    assert_eq!(
        (&line["event"], &line["decision"], &line["host"]),
        (&json!("tunnel"), &json!("denied"), &json!(OWN))
    );
    // Its own name is served, in HTTP/1.1 whatever is offered, and so is none.
    let tunnel = workload.tunnel(TARGET).await;
    let name = ServerName::try_from(OWN).expect("a name");
    let stream = workload.handshake(tunnel.into_io(), name, &["h2", "http/1.1"]);
    let stream = stream.await.expect("TLS");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let line = format!("Authorization: Bearer {}\r\n", jwt(ACCOUNT));
    let mut conn = Conn::new(stream);
    assert_eq!(status(&mut conn, MESSAGES, &line).await, 200);
    other.expect_nothing("our own name");
}

#[tokio::test]
async fn what_is_not_there_below_api_says_so_in_its_own_form() {
    let (stage, _other) = stage("https://vault.example.com").await;
    for path in ["/api", "/api/", "/api/nothing", "/api/claude-gateway"] {
        for method in ["GET", "POST"] {
            let asked = format!("{method} {path} HTTP/1.1\r\nHost: v\r\nContent-Length: 0\r\n\r\n");
            let answer = stage.ask(asked).await;
            assert_eq!(answer.status, 404, "{method} {path}");
            assert_eq!(answer.header("content-type"), Some("application/json"));
            assert_eq!(answer.json()["details"]["_tag"], "NotFound");
            assert_eq!(answer.json()["error"], "not found");
        }
    }
    // Without its secrets the gateway is one of them.
    let bare = crate::support::Vault::builder().start().await;
    let tcp = tokio::net::TcpStream::connect(bare.plain_addr()).await;
    let mut conn = Conn::new(tcp.expect("a connection"));
    conn.send(raw(MESSAGES, "")).await;
    let answer = conn.answer().await;
    assert_eq!(answer.status, 404);
    assert_eq!(answer.json()["details"]["_tag"], "NotFound");
    // Beside it is the management API, in the form that it has.
    let answer = stage
        .ask("GET /v1/nothing HTTP/1.1\r\nHost: v\r\n\r\n")
        .await;
    assert_eq!(answer.json()["code"], "not_found", "{}", answer.text());
}
