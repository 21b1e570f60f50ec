//! What the management API is asked for by somebody hostile, or by very many: lifetimes that refused
//! requests do not stretch, names that tell nothing, and bodies that mean harm.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use oshu_vault_sdk::{CreateSession, CreatedSession, ListSessions};

use crate::support::{API_KEY, Answer, EVIL, GOOD, REAL, Scene, Vault, basic};

const TARGET: &str = "good.example.com:443";

#[tokio::test]
async fn case_63_refused_requests_do_not_extend_a_session() {
    let scene = Scene::new().await;
    let before = scene.vault.expires(&scene.session);
    let id = &scene.session.session_id;
    let wrong = format!("Proxy-Authorization: {}\r\n", basic(id, "tok_wrong"));
    let began = Instant::now();
    // As long as it takes to tell a lifetime that was renewed from one that was not.
    while began.elapsed() < Duration::from_millis(500) {
        let mut conn = scene.workload.plain().await;
        conn.send(format!(
            "CONNECT {TARGET} HTTP/1.1\r\nHost: {TARGET}\r\n{wrong}\r\n"
        ))
        .await;
        assert!(matches!(conn.answer().await.status, 407 | 429));
        let refused = scene.workload.refused(&format!("{EVIL}:443")).await;
        assert_eq!(refused.status, 403);
        for request in [
            format!("TRACE / HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"),
            format!("GET / HTTP/1.1\r\nHost: {EVIL}\r\n\r\n"),
        ] {
            assert!(scene.ask(GOOD, request).await.status >= 400);
        }
    }
    let after = scene.vault.expires(&scene.session);
    // Two clocks are read for it.
    let drift = Duration::from_millis(100);
    assert!(after <= before + drift, "{before:?} {after:?}");
    scene.alive("refused requests").await;
    let used = scene.vault.expires(&scene.session);
    assert!(used > before + 3 * drift, "{before:?} {used:?}");
}

/// Checks that hexadecimal names say nothing: not when they were made, nor after which.
fn tell_nothing(names: &[String], prefix: &str, digits: usize) {
    let bare: Vec<&str> = names
        .iter()
        .map(|name| name.strip_prefix(prefix).expect("a prefix"))
        .collect();
    assert_eq!(bare.iter().collect::<HashSet<_>>().len(), names.len());
    for name in &bare {
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        assert!(name.len() == digits && name.bytes().all(hex), "{name}");
    }
    for place in 0..digits {
        let seen: HashSet<u8> = bare.iter().map(|name| name.as_bytes()[place]).collect();
        assert_eq!(seen.len(), 16, "every digit stands at place {place}");
    }
    let rising = bare.windows(2).filter(|pair| pair[0] < pair[1]).count();
    // Half of them within eleven standard deviations.
    let half = names.len() / 2;
    assert!(rising.abs_diff(half) < 100, "{rising} of {}", names.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_65_a_thousand_sessions_have_names_that_tell_nothing() {
    let vault = Vault::builder().start().await;
    let sdk = vault.sdk();
    let request = CreateSession::new().secret("MINE", REAL);
    let mut made: Vec<CreatedSession> = Vec::new();
    for _ in 0..1_000 {
        made.push(sdk.create_session(&request).await.expect("a session"));
    }
    let all = |name: fn(&CreatedSession) -> String| made.iter().map(name).collect::<Vec<_>>();
    tell_nothing(&all(|made| made.session_id.clone()), "sess_", 32);
    tell_nothing(&all(|made| made.token.clone()), "tok_", 64);
    let sealed = all(|made| made.sealed_secrets["MINE"].clone());
    tell_nothing(&sealed, "SEALED_", 32);
}

/// Asks for a session with a body as it is.
async fn create(vault: &Vault, body: &[u8]) -> Answer {
    let mut conn = crate::support::Conn::new(
        tokio::net::TcpStream::connect(vault.plain_addr())
            .await
            .expect("a connection"),
    );
    let head = format!(
        "POST /v1/sessions HTTP/1.1\r\nHost: v\r\nx-api-key: {API_KEY}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    conn.send(head).await;
    // One that is refused at its length is not read to its end.
    let _refused = conn.try_send(body).await;
    conn.answer().await
}

#[tokio::test]
async fn case_66_bodies_that_mean_harm_are_refused() {
    let scene = Scene::new().await;
    let secrets: Vec<String> = (0..10_000)
        .map(|index| format!(r#""S{index}":"a-long-enough-value""#))
        .collect();
    let deep = |open: &str, close: &str| {
        let (open, close) = (open.repeat(100_000), close.repeat(100_000));
        format!(r#"{{"secrets":{{}},"metadata":{open}1{close}}}"#)
    };
    let id = &scene.session.session_id;
    let cases = [
        (r#"{"secrets":{},"tenant_id":"other"}"#.to_owned(), 422),
        (format!(r#"{{"secrets":{{}},"session_id":"{id}"}}"#), 422),
        (r#"{"secrets":{},"token":"tok_mine"}"#.to_owned(), 422),
        (
            r#"{"secrets":{},"sealed_secrets":{"A":"SEALED_x"}}"#.to_owned(),
            422,
        ),
        (
            r#"{"secrets":{},"created_at":"1970-01-01T00:00:00Z"}"#.to_owned(),
            422,
        ),
        (deep("[", "]"), 400),
        (deep(r#"{"a":"#, "}"), 400),
        (
            r#"{"secrets":{},"ttl_seconds":60,"ttl_seconds":61}"#.to_owned(),
            400,
        ),
        (
            r#"{"secrets":{"A":"0123456789abcdef","A":"x"}}"#.to_owned(),
            400,
        ),
        (
            r#"{"secrets":{"A\u0000B":"0123456789abcdef"}}"#.to_owned(),
            422,
        ),
        (r#"{"secrets":{"":"0123456789abcdef"}}"#.to_owned(), 422),
        (r#"{"secrets":{"ANTHROPIC_API_KEY":""}}"#.to_owned(), 422),
        (format!(r#"{{"secrets":{{{}}}}}"#, secrets.join(",")), 422),
        (
            format!(
                r#"{{"secrets":{{}},"metadata":{{"a":"{}"}}}}"#,
                "x".repeat(20 << 20)
            ),
            413,
        ),
        ("null".to_owned(), 422),
        ("[]".to_owned(), 422),
        ("\u{feff}{\"secrets\":{}}".to_owned(), 400),
    ];
    for (body, status) in cases {
        let answer = create(&scene.vault, body.as_bytes()).await;
        let shown = &body[..body.len().min(80)];
        assert_eq!(answer.status, status, "{shown}: {}", answer.text());
        assert!(answer.body.len() < 64 * 1024, "{shown}");
    }
    let answer = create(
        &scene.vault,
        b"{\"secrets\":{},\"metadata\":{\"a\":\"\xff\"}}",
    )
    .await;
    assert_eq!(answer.status, 400, "no UTF-8");
    // None of them made a session, or touched the one that is there.
    let sdk = scene.vault.sdk();
    let listed = sdk.list_sessions(ListSessions::default()).await;
    assert_eq!(listed.expect("a list").sessions.len(), 1);
    scene.alive("bodies that mean harm").await;
}
