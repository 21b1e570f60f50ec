//! Audit on HTTP/2: one record for each stream, and no value in it.

use h2::Reason;
use serde_json::{Value, json};

use super::OK;
use crate::support::{GOOD, H2Origin, H2Scene, Origin, REAL, TWO, contains};

/// Fails unless exactly one record has the path, and returns it.
fn record<'a>(lines: &'a [Value], path: &str) -> &'a Value {
    let found: Vec<_> = lines
        .iter()
        .filter(|line| line["event"] == "exchange" && line["path"] == path)
        .collect();
    assert_eq!(found.len(), 1, "{path} in {lines:#?}");
    found[0]
}

fn expect(lines: &[Value], path: &str, members: &Value) {
    let record = record(lines, path);
    for (name, value) in members.as_object().expect("an object") {
        let found = record.get(name).unwrap_or(&Value::Null);
        assert_eq!(found, value, "{path}: {name} in {record}");
    }
    assert!(
        record["duration_ms"]
            .as_f64()
            .is_some_and(|took| took > 0.0)
    );
}

async fn origin() -> H2Origin {
    H2Origin::script(|mut exchange| async move {
        if !exchange.path().starts_with("/cut") {
            exchange.read_all().await;
        }
        match exchange.path().split('?').next().unwrap_or_default() {
            "/cut" => {
                exchange.answer_head(200, &[], false);
                exchange.send("hello").await;
                exchange.read_all().await;
                exchange.reset(Reason::INTERNAL_ERROR);
            }
            "/left" => {
                exchange.answer_head(200, &[], false);
                exchange.send("hello").await;
                exchange.wait_reset().await;
            }
            "/no-answer" => exchange.reset(Reason::INTERNAL_ERROR),
            "/500" => exchange.answer(500, "oops").await,
            _ => exchange.answer(200, "ok").await,
        }
    })
    .await
}

/// Makes one exchange of every kind; each has a query, which no record may show.
async fn make(play: &H2Scene) {
    let token = play.scene.token();
    let query = "?q=query-value";
    let client = play.h2().await;
    let fields = [("x-key", token), ("x-b", token), ("cookie", token)];
    client
        .ask(("GET", &format!("/plain{query}")), &[], b"")
        .await;
    client
        .ask(("POST", &format!("/swapped{query}")), &fields, b"hello")
        .await;
    client.ask(("GET", &format!("/500{query}")), &[], b"").await;
    let no_answer = format!("/no-answer{query}");
    let reset = client.try_ask(("POST", &no_answer), &[], b"").await;
    assert!(reset.expect_err("a reset").is_reset());
    client
        .ask(("TRACE", &format!("/trace{query}")), &[], b"")
        .await;
    let mut cut = client.upload(&format!("/cut{query}"), &[]).await;
    cut.head().await.expect("a head");
    cut.expect_piece("hello").await;
    // The origin resets the stream when it has the end of the request.
    assert!(cut.end("").await);
    cut.answer().await.expect_err("a cut");
    let mut left = client.begin(&format!("/left{query}")).await;
    left.head().await.expect("a head");
    left.expect_piece("hello").await;
    left.reset(Reason::CANCEL);
    let h1 = play.h2_to_h1().await;
    h1.ask(("POST", &format!("/h1{query}")), &fields, b"hello")
        .await;
}

/// What the records of [`make`] must say, by the path.
fn expected(id: &str) -> Vec<(&'static str, Value)> {
    vec![
        (
            "/plain",
            json!({"method": "GET", "host": TWO, "port": 443, "status": 200, "session": id,
                "decision": "allowed", "reason": "ok", "bytes_up": 0, "bytes_down": 2}),
        ),
        (
            "/swapped",
            json!({"method": "POST", "status": 200, "decision": "allowed", "bytes_up": 5,
                "bytes_down": 2, "swapped": ["EXAMPLE_KEY"], "tokens_left": 1}),
        ),
        (
            "/500",
            json!({"status": 500, "decision": "allowed", "bytes_down": 4}),
        ),
        (
            "/no-answer",
            json!({"decision": "failed", "reason": "upstream_reset"}),
        ),
        (
            "/trace",
            json!({"status": 405, "decision": "denied", "reason": "method_not_allowed"}),
        ),
        (
            "/cut",
            json!({"status": 200, "decision": "failed", "reason": "upstream_cut", "bytes_down": 5}),
        ),
        (
            "/left",
            json!({"status": 200, "decision": "aborted", "reason": "client_gone", "bytes_down": 5}),
        ),
        (
            "/h1",
            json!({"method": "POST", "host": GOOD, "status": 200, "decision": "allowed",
                "bytes_up": 5, "bytes_down": 2, "swapped": ["EXAMPLE_KEY"], "tokens_left": 1}),
        ),
    ]
}

#[tokio::test]
async fn every_stream_has_exactly_one_record() {
    let h1 = Origin::answer(OK).await;
    let mut play = H2Scene::with_good(h1, origin().await, |vault| vault).await;
    let token = play.scene.token().to_owned();
    make(&play).await;
    let log = play.scene.vault.audit_log().clone();
    log.wait("all records", |lines| {
        lines
            .iter()
            .filter(|line| line["event"] == "exchange")
            .count()
            >= 8
    })
    .await;
    play.scene.vault.drain().await.expect("drained");
    let lines = log.lines();
    let id = &play.scene.session.session_id;
    for (path, members) in expected(id) {
        expect(&lines, path, &members);
    }
    let exchanges = lines.iter().filter(|line| line["event"] == "exchange");
    assert_eq!(exchanges.count(), 8, "one each: {lines:#?}");
    let tunnels = lines.iter().filter(|line| line["event"] == "tunnel");
    assert_eq!(tunnels.count(), 2, "one each: {lines:#?}");
    let raw = log.raw();
    for hidden in [
        REAL,
        &token,
        &play.scene.session.token,
        "query-value",
        "hello",
        "?",
    ] {
        assert!(!contains(&raw, hidden), "{hidden}");
    }
}
