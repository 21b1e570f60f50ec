//! What calls cost: reserved before and settled after, so that many at once get no more than one
//! by one.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::support::{Anthropic, Conn, Origin, within};

use super::{ACCOUNT, BODY, Stage, jwt, message, post};

/// The most that one message may use.
const MOST: u64 = BODY.len() as u64 + 8;
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 74\r\n\r\n\
    {\"model\":\"claude-x\",\"usage\":{\"input_tokens\":3,\"output_tokens\":4,\"x\":1234}}";

#[tokio::test]
async fn case_84_a_hundred_at_once_on_the_budget_of_one_let_one_through() {
    for (paid, refusal) in [(true, 429), (false, 402)] {
        let go = Arc::new(Semaphore::new(0));
        let held = Arc::clone(&go);
        let provider = Origin::script(move |_request, conn| {
            let go = Arc::clone(&held);
            async move {
                let _leave = go.acquire().await;
                conn.send(OK).await;
            }
        });
        let stage = Stage::around(provider.await, |config| {
            config.gateway.monthly_budget = Some(MOST);
            config.gateway.free_allowance = Some(MOST);
        });
        let stage = stage.await;
        stage.pay(ACCOUNT, paid).await;
        let raw = message(&format!("x-api-key: {}\r\n", jwt(ACCOUNT)));
        let mut callers = JoinSet::new();
        for _ in 0..100 {
            let (raw, address) = (raw.clone(), stage.address());
            callers.spawn(async move {
                let tcp = tokio::net::TcpStream::connect(address).await;
                let mut conn = Conn::new(tcp.expect("a connection"));
                conn.send(raw).await;
                conn.answer().await
            });
        }
        // The one that is let in waits until all others were answered.
        for _ in 0..99 {
            let answer = within("a refusal", callers.join_next()).await;
            let answer = answer.expect("a caller").expect("an answer");
            assert_eq!(answer.status, refusal, "{}", answer.text());
            assert_eq!(answer.header("x-should-retry"), Some("false"));
        }
        go.add_permits(1000);
        let answer = within("the one", callers.join_next()).await;
        assert_eq!(answer.expect("a caller").expect("an answer").status, 200);
        let text = String::from_utf8(stage.provider.bytes()).expect("text");
        assert_eq!(text.matches("POST /v1/messages").count(), 1);
        // What it used is less than what was reserved, and still leaves too little for another.
        let usage = stage.usage(ACCOUNT).await;
        assert_eq!(usage["counted_tokens"], 7, "{usage}");
        assert_eq!(stage.ask(&raw).await.status, refusal);
    }
}

#[tokio::test]
async fn what_was_used_is_told_by_sandbox_and_model() {
    let provider = Origin::answer(OK).await;
    let stage = Stage::around(provider, |config| {
        config.gateway.monthly_budget = Some(3 * MOST);
    });
    let stage = stage.await;
    stage.pay(ACCOUNT, true).await;
    for _ in 0..2 {
        assert_eq!(stage.message(&jwt(ACCOUNT)).await.status, 200);
    }
    let usage = stage.usage(ACCOUNT).await;
    assert_eq!(usage["account_id"], ACCOUNT);
    assert_eq!(usage["counted_tokens"], 14);
    let expected = json!([{
        "sandbox": "box-1", "model": "claude-x", "input_tokens": 6, "output_tokens": 8,
        "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0,
        "unsettled_tokens": 0, "reserved_tokens": 0,
    }]);
    assert_eq!(usage["usage"], expected);
    let page = crate::binary::get(stage.vault.admin_addr(), "/metrics").await;
    for line in [
        "\noshu_vault_model_tokens_total{kind=\"input\"} 6\n",
        "\noshu_vault_model_tokens_total{kind=\"output\"} 8\n",
        "\noshu_vault_model_tokens_total{kind=\"unsettled\"} 0\n",
    ] {
        assert!(page.text().contains(line), "{line}: {}", page.text());
    }
    let label = format!("\"{ACCOUNT}\"");
    assert!(!page.text().contains(&label), "{}", page.text());
    // Another month and another account have nothing.
    let path = format!("/v1/accounts/{ACCOUNT}/usage?month=2020-01");
    assert_eq!(stage.operate("GET", &path, "").await["usage"], json!([]));
    assert_eq!(stage.usage("42").await["usage"], json!([]));
    let raw = format!(
        "GET /v1/accounts/{ACCOUNT}/usage?month=2020-13 HTTP/1.1\r\nHost: v\r\nx-api-key: \
         {}\r\n\r\n",
        super::ADMIN
    );
    assert_eq!(stage.ask(raw).await.status, 400);
}

#[tokio::test]
async fn counting_tokens_and_listing_models_cost_nothing() {
    let provider = Origin::answer(OK).await;
    let stage = Stage::around(provider, |config| {
        config.gateway.monthly_budget = Some(MOST);
    });
    let stage = stage.await;
    stage.pay(ACCOUNT, true).await;
    let line = format!("x-api-key: {}\r\n", jwt(ACCOUNT));
    for _ in 0..3 {
        let raw = post("/v1/messages/count_tokens", &line, BODY);
        assert_eq!(stage.ask(raw).await.status, 200);
        let raw = format!("GET /api/claude-gateway/v1/models HTTP/1.1\r\nHost: g\r\n{line}\r\n");
        assert_eq!(stage.ask(raw).await.status, 200);
    }
    assert_eq!(stage.usage(ACCOUNT).await["counted_tokens"], 0);
    assert_eq!(stage.message(&jwt(ACCOUNT)).await.status, 200);
}

#[tokio::test]
async fn what_hides_how_much_it_may_use_is_refused() {
    let provider = Anthropic::start().await.into_origin();
    let stage = Stage::around(provider, |_| ()).await;
    stage.pay(ACCOUNT, true).await;
    let line = format!("x-api-key: {}\r\n", jwt(ACCOUNT));
    for body in [
        "",
        "[]",
        r#"{"max_tokens":1,"max_tokens":64000}"#,
        r#"{"max_tokens":1,"max\u005ftokens":64000}"#,
        r#"{"max_tokens":-1}"#,
    ] {
        let answer = stage.ask(post("/v1/messages", &line, body)).await;
        assert_eq!(answer.status, 400, "{body}");
        assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
    }
    let coded = message(&format!("{line}Content-Encoding: gzip\r\n"));
    assert_eq!(stage.ask(coded).await.status, 400);
    stage.provider.expect_nothing("what cannot be read");
    assert_eq!(stage.ask(message(&line)).await.status, 200);
}

const DOCUMENT: &str = r#"{"model":"m","max_tokens":8,"messages":[{"role":"user","content":[
    {"type":"document","source":{"type":"url","url":"https://a.example/thousand-pages.pdf"}}]}]}"#;
const SEARCH: &str = r#"{"model":"m","max_tokens":8,"messages":[{"role":"user","content":"hi"}],
    "tools":[{"type":"web_search_20250305","name":"web_search","max_uses":8}]}"#;

/// Sets the stage with a provider that answers when it is let.
async fn held(monthly: Option<u64>, free: Option<u64>) -> (Stage, Arc<Semaphore>) {
    let go = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&go);
    let provider = Origin::script(move |_request, conn| {
        let go = Arc::clone(&held);
        async move {
            go.acquire().await.expect("it is open").forget();
            conn.send(OK).await;
        }
    });
    let stage = Stage::around(provider.await, |config| {
        config.gateway.monthly_budget = monthly;
        config.gateway.free_allowance = free;
    });
    (stage.await, go)
}

/// Sends a message on a connection of its own.
async fn send(stage: &Stage, account: &str, body: &str) -> Conn {
    let mut conn = stage.connect().await;
    let line = format!("x-api-key: {}\r\n", jwt(account));
    conn.send(post("/v1/messages", &line, body)).await;
    conn
}

async fn wait_for_messages(stage: &Stage, count: usize) {
    let sent = |all: &[Vec<u8>]| {
        let text = String::from_utf8_lossy(&all.concat()).into_owned();
        text.matches("POST /v1/messages").count() == count
    };
    stage.provider.wait("messages", sent).await;
}

#[tokio::test]
async fn what_may_cost_more_than_it_shows_takes_what_is_left() {
    // A million each, and the last one what is left.
    for (paid, budget, through) in [(true, 50_000, 1), (true, 2_500_000, 3), (false, 50_000, 1)] {
        let (stage, go) = held(Some(budget), Some(budget)).await;
        stage.pay(ACCOUNT, paid).await;
        let mut callers = JoinSet::new();
        for _ in 0..20 {
            let mut conn = send(&stage, ACCOUNT, DOCUMENT).await;
            callers.spawn(async move { conn.answer().await.status });
        }
        let refusal = if paid { 429 } else { 402 };
        for _ in through..20 {
            let status = within("a refusal", callers.join_next()).await;
            assert_eq!(status.expect("a caller").expect("an answer"), refusal);
        }
        // Not even what costs next to nothing.
        assert_eq!(stage.message(&jwt(ACCOUNT)).await.status, refusal);
        wait_for_messages(&stage, through).await;
        go.add_permits(1000);
        for _ in 0..through {
            let status = within("one of them", callers.join_next()).await;
            assert_eq!(status.expect("a caller").expect("an answer"), 200);
        }
        let usage = stage.usage(ACCOUNT).await;
        assert_eq!(usage["counted_tokens"], 7 * through, "{usage}");
        assert_eq!(stage.message(&jwt(ACCOUNT)).await.status, 200);
    }
    // Whom nobody counts is not held.
    let (stage, go) = held(None, None).await;
    stage.pay(ACCOUNT, true).await;
    go.add_permits(1000);
    for body in [DOCUMENT, SEARCH, r#"{"model":"m"}"#] {
        let mut conn = send(&stage, ACCOUNT, body).await;
        assert_eq!(conn.answer().await.status, 200, "{body}");
    }
}

#[tokio::test]
async fn what_works_by_itself_runs_one_at_a_time() {
    let (stage, go) = held(Some(100_000_000), None).await;
    stage.pay(ACCOUNT, true).await;
    stage.pay("42", true).await;
    let mut first = send(&stage, ACCOUNT, SEARCH).await;
    wait_for_messages(&stage, 1).await;
    let refused = send(&stage, ACCOUNT, SEARCH).await.answer().await;
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert_eq!(refused.json()["details"]["code"], "one_at_a_time");
    assert_eq!(refused.header("retry-after"), Some("5"));
    assert_eq!(refused.header("x-should-retry"), None);
    // Others are not in its way, nor is what can be counted.
    let mut other = send(&stage, "42", SEARCH).await;
    let mut document = send(&stage, ACCOUNT, DOCUMENT).await;
    let mut plain = send(&stage, ACCOUNT, BODY).await;
    wait_for_messages(&stage, 4).await;
    go.add_permits(4);
    for conn in [&mut other, &mut document, &mut plain] {
        assert_eq!(conn.answer().await.status, 200);
    }
    // Its place is free when it has ended.
    assert_eq!(first.answer().await.status, 200);
    let second = send(&stage, ACCOUNT, SEARCH).await;
    wait_for_messages(&stage, 5).await;
    // And when its caller has left.
    drop(second);
    let left = |lines: &[Value]| lines.iter().any(|line| line["reason"] == "incomplete");
    stage.vault.audit_log().wait("its end", left).await;
    go.add_permits(1000);
    let third = async {
        while send(&stage, ACCOUNT, SEARCH).await.answer().await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    within("its place", third).await;
}

#[tokio::test]
async fn a_message_says_how_long_its_answer_may_be_where_that_counts() {
    let (stage, go) = held(Some(1_000_000), None).await;
    stage.pay(ACCOUNT, true).await;
    go.add_permits(1000);
    for body in [r#"{"model":"m"}"#, r#"{"model":"m","max_tokens":null}"#] {
        let answer = send(&stage, ACCOUNT, body).await.answer().await;
        assert_eq!(answer.status, 400, "{body}");
        let error = &answer.json()["error"];
        assert_eq!(error["type"], "invalid_request_error");
        let text = error["message"].as_str().expect("a text");
        assert!(text.starts_with("max_tokens"), "{text}");
        let line = format!("x-api-key: {}\r\n", jwt(ACCOUNT));
        let counted = post("/v1/messages/count_tokens", &line, body);
        assert_eq!(stage.ask(counted).await.status, 200, "{body}");
    }
    assert_eq!(stage.message(&jwt(ACCOUNT)).await.status, 200);
}
