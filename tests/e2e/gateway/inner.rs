//! The gateway through the proxy: our own public address is served in process and never dialled.

use oshu_vault::config::PublicUrl;
use oshu_vault_sdk::{CreateSession, SecretSpec};
use serde_json::{Value, json};

use crate::support::clients::{claude, client, run};
use crate::support::{ANSWER, Anthropic, Origin, VaultBuilder, contains};

use super::{ACCOUNT, BODY, MODEL_KEY, Stage, jwt};

pub(super) const OWN: &str = "vault.example.com";

/// Sets the stage behind a public URL, whose name leads to somebody who must get nothing.
pub(super) async fn stage(url: &str) -> (Stage, Origin) {
    let other = Origin::echo_ok().await;
    let address = other.addr();
    let provider = Anthropic::start().await.into_origin();
    let stage = Stage::built(provider, |vault: VaultBuilder| {
        vault.resolve(OWN, address).config(|config| {
            config.proxy.public_url = PublicUrl::parse(url);
        })
    });
    let stage = stage.await;
    stage.pay(ACCOUNT, true).await;
    (stage, other)
}

pub(super) fn raw(target: &str, line: &str) -> String {
    format!(
        "POST {target} HTTP/1.1\r\nHost: {OWN}\r\n{line}Content-Length: {}\r\n\r\n{BODY}",
        BODY.len()
    )
}

#[tokio::test]
async fn a_tunnel_to_ourselves_reaches_the_gateway_alone() {
    let (stage, other) = stage("https://vault.example.com").await;
    // A policy without us is enough: the JWT is what lets in.
    let session = CreateSession::new().allowed_egress(["good.example.com"]);
    let session = stage.vault.session(&session).await;
    let workload = stage.vault.workload(&session);
    let line = format!("Authorization: Bearer {}\r\n", jwt(ACCOUNT));
    let mut conn = workload.connect("vault.example.com:443").await;
    for _ in 0..2 {
        conn.send(raw("/api/claude-gateway/v1/messages", &line))
            .await;
        let answer = conn.answer().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["content"][0]["text"], ANSWER);
    }
    let text = String::from_utf8(stage.provider.bytes()).expect("text");
    assert_eq!(text.matches(MODEL_KEY).count(), 2, "{text}");
    assert!(!text.contains("eyJ"), "{text}");
    // One record for each, the proxy's, which also says who paid.
    let lines = stage.vault.audit_log().wait("the records", |lines| {
        lines
            .iter()
            .filter(|line| line["account"] == ACCOUNT)
            .count()
            == 2
    });
    let lines = lines.await;
    let exchanges: Vec<_> = lines
        .iter()
        .filter(|line| line["event"] == "exchange")
        .collect();
    assert_eq!(exchanges.len(), 2, "{exchanges:?}");
    for line in exchanges {
        assert_eq!(line["session"], json!(session.session_id));
        assert_eq!(
            (&line["host"], &line["reason"]),
            (&json!(OWN), &json!("ok"))
        );
        assert_eq!(line["sandbox"], "box-1");
    }
    for path in [
        "/v1/sessions",
        "/v1/ca.pem",
        "/healthz",
        "/api/health",
        "/api/webhooks/stripe",
        "/api/claude-gateway",
        "/",
    ] {
        let mut conn = workload.connect("vault.example.com:443").await;
        conn.send(raw(path, &line)).await;
        let answer = conn.answer().await;
        let tag = &answer.json()["details"]["_tag"];
        assert_eq!((answer.status, tag), (403, &json!("Forbidden")), "{path}");
    }
    let mut conn = workload.connect("vault.example.com:443").await;
    let another = raw("/api/claude-gateway/v1/messages", &line).replace(OWN, "evil.example.net");
    conn.send(another).await;
    assert_eq!(conn.answer().await.status, 421);
    assert_eq!(workload.refused("vault.example.com:8443").await.status, 403);
    other.expect_nothing("our own name");
    let mut conn = workload.connect("vault.example.com:443").await;
    conn.send(raw("/api/claude-gateway/v1/messages", &line))
        .await;
    assert_eq!(conn.answer().await.status, 200);
}

#[tokio::test]
async fn a_jwt_may_be_a_sealed_token() {
    let (stage, other) = stage("https://vault.example.com").await;
    let jwt = jwt(ACCOUNT);
    let spec = SecretSpec::new(jwt.as_str()).hosts([OWN]);
    let session = CreateSession::new()
        .secret("GATEWAY_JWT", spec)
        .allowed_egress([OWN, "good.example.com"]);
    let session = stage.vault.session(&session).await;
    let sealed = &session.sealed_secrets["GATEWAY_JWT"];
    let line = format!("Authorization: Bearer {sealed}\r\n");
    let workload = stage.vault.workload(&session);
    let mut conn = workload.connect("vault.example.com:443").await;
    conn.send(raw("/api/claude-gateway/v1/messages", &line))
        .await;
    let answer = conn.answer().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let lines = stage.vault.audit_log().wait("the record", |lines| {
        lines.iter().any(|line| line["account"] == ACCOUNT)
    });
    let lines = lines.await;
    let line = lines.iter().find(|line| line["account"] == ACCOUNT);
    assert_eq!(line.expect("it")["swapped"], json!(["GATEWAY_JWT"]));
    assert!(!contains(format!("{lines:?}").as_bytes(), &jwt));
    let bytes = stage.provider.bytes();
    assert!(!contains(&bytes, &jwt) && !contains(&bytes, sealed));
    // Another session's policy gives it nothing: the token is text to it.
    let another = CreateSession::new().allowed_egress([OWN]);
    let another = stage.vault.session(&another).await;
    let line = format!("Authorization: Bearer {sealed}\r\n");
    let mut conn = stage
        .vault
        .workload(&another)
        .connect("vault.example.com:443")
        .await;
    conn.send(raw("/api/claude-gateway/v1/messages", &line))
        .await;
    assert_eq!(conn.answer().await.status, 401);
    other.expect_nothing("our own name");
}

#[tokio::test]
async fn a_sealed_token_opens_here_as_a_credential_and_in_no_other_place() {
    const VALUE: &str = "CANARY-value-of-another-account";
    let (stage, other) = stage("https://vault.example.com").await;
    let spec = SecretSpec::new(VALUE).hosts([OWN]);
    let session = CreateSession::new()
        .secret("ANOTHER", spec)
        .allowed_egress([OWN]);
    let session = stage.vault.session(&session).await;
    let sealed = &session.sealed_secrets["ANOTHER"];
    let workload = stage.vault.workload(&session);
    // What the model provider is told is what it may tell again.
    let line = format!(
        "x-api-key: {}\r\nanthropic-beta: {sealed}\r\nuser-agent: {sealed}\r\nx-app: \
         {sealed}\r\nx-stainless-a: {sealed}\r\nx-client-request-id: {sealed}\r\n",
        jwt(ACCOUNT)
    );
    let target = format!("/api/claude-gateway/v1/messages?beta=a{sealed}");
    let mut conn = workload.connect("vault.example.com:443").await;
    conn.send(raw(&target, &line)).await;
    let answer = conn.answer().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let bytes = stage.provider.bytes();
    assert!(!contains(&bytes, "CANARY-value"), "the value left");
    let text = String::from_utf8(bytes).expect("text");
    assert_eq!(text.matches(sealed.as_str()).count(), 6, "{text}");
    // As a credential it opens: it is a wrong one.
    conn.send(raw(&target, &format!("Authorization: Bearer {sealed}\r\n")))
        .await;
    assert_eq!(conn.answer().await.status, 401);
    let lines = stage.vault.audit_log().wait("the record", |lines| {
        lines
            .iter()
            .any(|line| line["swapped"] == json!(["ANOTHER"]))
    });
    assert!(!contains(format!("{:?}", lines.await).as_bytes(), "CANARY"));
    other.expect_nothing("our own name");
}

#[tokio::test]
async fn what_a_session_may_have_at_once_holds_here_too() {
    let provider = Origin::script(|_request, conn| async move {
        let _held = conn;
        std::future::pending::<()>().await;
    })
    .await;
    let stage = Stage::built(provider, |vault: VaultBuilder| {
        vault.config(|config| {
            config.proxy.public_url = PublicUrl::parse("https://vault.example.com");
            config.limits.session_exchanges = 1;
            config.limits.session_wait = std::time::Duration::from_millis(50);
        })
    });
    let stage = stage.await;
    stage.pay(ACCOUNT, true).await;
    let session = stage.vault.session(&CreateSession::new()).await;
    let workload = stage.vault.workload(&session);
    let line = format!("Authorization: Bearer {}\r\n", jwt(ACCOUNT));
    let request = raw("/api/claude-gateway/v1/messages", &line);
    let mut held = workload.connect("vault.example.com:443").await;
    held.send(&request).await;
    let came = |all: &[Vec<u8>]| all.iter().any(|one| contains(one, "hi"));
    stage.provider.wait("the first request", came).await;
    let mut conn = workload.connect("vault.example.com:443").await;
    conn.send(&request).await;
    let refused = conn.answer().await;
    assert_eq!(refused.status, 429, "{}", refused.text());
    drop(held);
    // Its turn comes back with it.
    let alive = async {
        loop {
            let mut conn = workload.connect("vault.example.com:443").await;
            conn.send(raw("/", &line)).await;
            if conn.answer().await.status == 403 {
                break;
            }
        }
    };
    crate::support::within("a turn", alive).await;
}

#[tokio::test]
async fn in_the_clear_it_is_served_as_well_where_that_is_our_address() {
    let (stage, other) = stage("http://vault.example.com").await;
    let session = stage.vault.session(&CreateSession::new()).await;
    let workload = stage.vault.workload(&session);
    let line = format!(
        "{}x-api-key: {}\r\n",
        workload.authorization(),
        jwt(ACCOUNT)
    );
    let mut conn = workload.plain().await;
    let target = format!("http://{OWN}/api/claude-gateway/v1/messages");
    conn.send(raw(&target, &line)).await;
    let answer = conn.answer().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    conn.send(raw(&format!("http://{OWN}/v1/sessions"), &line))
        .await;
    assert_eq!(conn.answer().await.status, 403);
    // And in a tunnel that carries no TLS.
    let mut conn = workload.tunnel("vault.example.com:80").await;
    let line = format!("x-api-key: {}\r\n", jwt(ACCOUNT));
    conn.send(raw("/api/claude-gateway/v1/messages", &line))
        .await;
    assert_eq!(conn.answer().await.status, 200);
    let bytes = stage.provider.bytes();
    assert!(!contains(&bytes, "proxy-authorization") && !contains(&bytes, &session.token));
    // One record for each.
    let reasons = |lines: &[Value]| {
        let exchanges = lines.iter().filter(|line| line["event"] == "exchange");
        let mut reasons: Vec<_> = exchanges.map(|line| line["reason"].to_string()).collect();
        reasons.sort();
        reasons
    };
    let log = stage.vault.audit_log();
    let lines = log.wait("the records", |lines| reasons(lines).len() >= 3);
    let expected = ["\"ok\"", "\"ok\"", "\"own_address\""];
    assert_eq!(reasons(&lines.await), expected);
    other.expect_nothing("our own name");
}

#[tokio::test]
async fn nobody_is_let_in_without_a_session_or_after_it() {
    let (stage, _other) = stage("https://vault.example.com").await;
    let session = stage.vault.session(&CreateSession::new()).await;
    let workload = stage.vault.workload(&session);
    let mut open = workload.connect("vault.example.com:443").await;
    // One that was used waits long for its next request.
    let line = format!("x-api-key: {}\r\n", jwt(ACCOUNT));
    open.send(raw("/api/claude-gateway/v1/messages", &line))
        .await;
    assert_eq!(open.answer().await.status, 200);
    let id = &session.session_id;
    stage.vault.sdk().delete_session(id).await.expect("deleted");
    // The tunnel was cut, and there is no other.
    open.expect_end().await;
    let mut conn = workload.plain().await;
    let answer = workload.ask(&mut conn, "vault.example.com:443").await;
    assert_eq!(answer.status, 407);
}

#[tokio::test]
async fn claude_code_with_a_proxy_and_a_base_url_works() {
    let Some(claude) = claude() else { return };
    let (stage, other) = stage("https://vault.example.com").await;
    let session = stage.vault.session(&CreateSession::new()).await;
    let home = tempfile::tempdir().expect("a home");
    let ca = home.path().join("ca.pem");
    std::fs::write(&ca, stage.vault.ca_pem()).expect("a file");
    let mut command = client(&claude, home.path());
    command
        .env("HTTPS_PROXY", stage.vault.proxy_url(&session))
        .env("NODE_EXTRA_CA_CERTS", &ca)
        .env(
            "ANTHROPIC_BASE_URL",
            format!("https://{OWN}/api/claude-gateway"),
        )
        .env("ANTHROPIC_AUTH_TOKEN", jwt(ACCOUNT))
        .env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1")
        .args(["-p", "say hello"]);
    let said = run("claude", &mut command).await;
    said.expect_success("claude");
    assert_eq!(said.stdout.trim(), ANSWER);
    let text = String::from_utf8_lossy(&stage.provider.bytes()).into_owned();
    assert!(text.contains(MODEL_KEY) && !text.contains("eyJ"));
    other.expect_nothing("our own name");
}

#[tokio::test]
async fn a_record_says_what_was_answered_where_the_gateway_was_not_reached() {
    let (stage, other) = stage("https://vault.example.com").await;
    let session = CreateSession::new().allowed_egress(["good.example.com"]);
    let session = stage.vault.session(&session).await;
    let workload = stage.vault.workload(&session);
    let path = "/api/claude-gateway/v1/messages";
    let framed = raw(path, "Transfer-Encoding: chunked\r\n");
    for (sent, status, reason) in [
        (framed, 400, None),
        (raw("/nothing", ""), 403, Some("own_address")),
        (raw(path, ""), 401, Some("unauthenticated")),
    ] {
        let before = exchanges(&stage.vault.audit()).len();
        let mut conn = workload.connect("vault.example.com:443").await;
        conn.send(sent).await;
        assert_eq!(conn.answer().await.status, status, "{reason:?}");
        let lines = stage
            .vault
            .audit_log()
            .wait("its record", |lines| exchanges(lines).len() > before);
        let line = exchanges(&lines.await).pop().expect("it");
        assert_eq!(line["status"], status, "{line}");
        assert_eq!(line["decision"], "denied", "{line}");
        match reason {
            Some(reason) => assert_eq!(line["reason"], reason),
            None => assert_ne!(line["reason"], "own_address", "{line}"),
        }
    }
    other.expect_nothing("our own name");
}

fn exchanges(lines: &[Value]) -> Vec<Value> {
    let exchanges = lines.iter().filter(|line| line["event"] == "exchange");
    exchanges.cloned().collect()
}
