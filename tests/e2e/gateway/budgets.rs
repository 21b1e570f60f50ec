//! What calls cost: reserved before and settled after, so that many at once get no more than one
//! by one.

use std::sync::Arc;

use serde_json::json;
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
    assert!(!page.text().contains(ACCOUNT), "{}", page.text());
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
    let line = format!("{line}Content-Encoding: gzip\r\n");
    assert_eq!(stage.ask(message(&line)).await.status, 400);
    stage.provider.expect_nothing("what cannot be read");
}
