//! What is kept of model calls: one record for each, counted among all exchanges, and no call where
//! nothing can be recorded.

use std::collections::BTreeMap;

use oshu_vault::config::OnFull;
use serde_json::Value;

use crate::binary::get;
use crate::support::{Anthropic, Origin, within};

use super::{ACCOUNT, BODY, Stage, jwt, message, post};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
const STREAM: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nevent: ping\ndata: {}\n\n";

/// Returns what the records say of calls of the gateway: path, decision, reason and status.
fn told(lines: &[Value]) -> Vec<String> {
    let ours = lines.iter().filter(|line| {
        let path = line["path"].as_str().unwrap_or_default();
        path.starts_with("/api/")
    });
    let told = ours.map(|line| {
        assert_eq!(line["event"], "exchange", "{line}");
        let word = |name: &str| line[name].as_str().unwrap_or("-").to_owned();
        let path = word("path").replace("/api/claude-gateway/v1", "");
        let status = &line["status"];
        format!("{path} {} {} {status}", word("decision"), word("reason"))
    });
    let mut told: Vec<_> = told.collect();
    told.sort();
    told
}

#[tokio::test]
async fn every_call_has_exactly_one_record_and_is_counted() {
    let provider = Origin::script(|request, conn| async move {
        let line = request.line().to_owned();
        if line.contains("count_tokens") {
            conn.send("HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")
                .await;
        } else if request.header("accept") == Some("text/event-stream") {
            conn.send(STREAM).await;
            conn.wait_end().await;
        } else {
            conn.send(OK).await;
        }
    });
    let stage = Stage::around(provider.await, |_| ()).await;
    stage.pay(ACCOUNT, true).await;
    let known = format!("x-api-key: {}\r\n", jwt(ACCOUNT));
    let unpaid = format!("x-api-key: {}\r\n", jwt("42"));
    let models = format!("GET /api/claude-gateway/v1/models HTTP/1.1\r\nHost: v\r\n{known}\r\n");
    for (raw, status) in [
        (message(&known), 200),
        (models, 200),
        (post("/v1/messages", &known, "[]"), 400),
        (message(""), 401),
        (message("x-api-key: a.b.c\r\n"), 401),
        (message(&unpaid), 402),
        (post("/v1/files", &known, BODY), 404),
        (post("/v1/messages/count_tokens", &known, BODY), 502),
    ] {
        let answer = stage.ask(raw).await;
        assert_eq!(answer.status, status, "{}", answer.text());
    }
    let mut conn = stage.connect().await;
    conn.send(message(&format!("{known}Accept: text/event-stream\r\n")))
        .await;
    let _read = conn.take_until(b"ping").await;
    drop(conn);
    let expected = [
        "/files denied not_found 404",
        "/messages aborted incomplete 200",
        "/messages allowed ok 200",
        "/messages denied bad_request 400",
        "/messages denied payment_required 402",
        "/messages denied unauthenticated 401",
        "/messages denied unauthenticated 401",
        "/messages/count_tokens failed provider_refused 502",
        "/models allowed ok 200",
    ];
    let log = stage.vault.audit_log();
    let lines = log.wait("a record of each", |lines| {
        told(lines).len() >= expected.len()
    });
    assert_eq!(told(&lines.await), expected);
    let page = get(stage.vault.admin_addr(), "/metrics").await;
    let counts: BTreeMap<_, _> = page
        .text()
        .lines()
        .filter_map(|line| line.rsplit_once(' '))
        .collect();
    for (name, count) in [
        ("exchanges_total{outcome=\"aborted\"}", "1"),
        ("exchanges_total{outcome=\"allowed\"}", "2"),
        ("exchanges_total{outcome=\"denied\"}", "5"),
        ("exchanges_total{outcome=\"failed\"}", "1"),
        ("refusals_total{code=\"payment_required\"}", "1"),
        ("refusals_total{code=\"provider_refused\"}", "1"),
        ("refusals_total{code=\"unauthenticated\"}", "2"),
    ] {
        let value = counts.get(format!("oshu_vault_{name}").as_str());
        assert_eq!(value, Some(&count), "{name}: {}", page.text());
    }
    // Nothing came late, and nobody else's calls are among them.
    assert_eq!(told(&log.lines()), expected);
}

#[tokio::test]
async fn nothing_is_called_while_nothing_can_be_recorded() {
    let provider = Anthropic::start().await.into_origin();
    let stage = Stage::around(provider, |config| config.audit.on_full = OnFull::Refuse).await;
    stage.pay(ACCOUNT, true).await;
    let log = stage.vault.audit_log();
    log.fill();
    let answer = stage.message(&jwt(ACCOUNT)).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(answer.json()["details"]["code"], "audit_full");
    assert_eq!(answer.json()["error"]["type"], "api_error");
    stage.provider.expect_nothing("no room for a record");
    // Who is not known hears of nothing but that.
    assert_eq!(stage.ask(message("")).await.status, 401);
    log.hold(false);
    let taken = async {
        while stage.message(&jwt(ACCOUNT)).await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    within("room again", taken).await;
}
