//! A provider that sends back what it was sent: the operator's key stays here, whatever the status, the
//! form or the cut, and no event waits for that.

use std::io::Write as _;
use std::sync::Arc;

use data_encoding::BASE64;
use serde_json::json;
use tokio::sync::Notify;

use crate::support::{Anthropic, Origin, contains, percent, show};

use super::{ACCOUNT, MODEL_KEY, Stage, jwt, message};

const REDACTED: &str = "[redacted]";

/// Fails the test where the key is in these bytes, in a form that a server writes.
fn assert_clean(bytes: &[u8]) {
    let base64 = BASE64.encode(MODEL_KEY.as_bytes());
    for form in [MODEL_KEY, &percent(MODEL_KEY), &base64] {
        assert!(!contains(bytes, form), "{}", show(bytes));
    }
}

fn lines() -> String {
    format!("x-api-key: {}\r\n", jwt(ACCOUNT))
}

fn gzip(text: &str) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(text.as_bytes()).expect("memory");
    gzip.finish().expect("memory")
}

/// Answers with a status, fields and a body.
fn answer(status: &str, lines: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{lines}Content-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

#[tokio::test]
async fn a_provider_that_echoes_a_request_does_not_show_the_operator_s_key() {
    const KIND: &str = "Content-Type: application/json\r\n";
    let provider = Origin::script(|request, conn| async move {
        let head = request.head.clone();
        let json = json!({ "echo": head, "usage": { "input_tokens": 3, "output_tokens": 4 } });
        let json = json.to_string();
        let bytes = match request.header("x-app").expect("a case") {
            "refused" => answer("400 Bad Request", "", head.as_bytes()),
            "broken" => answer("500 X", "", BASE64.encode(head.as_bytes()).as_bytes()),
            "json" => answer("200 OK", KIND, json.as_bytes()),
            "percent" => answer("200 OK", KIND, percent(&json).as_bytes()),
            "coded" => {
                let lines = format!("{KIND}Content-Encoding: gzip\r\n");
                answer("200 OK", &lines, &gzip(&json))
            }
            "unread" => answer("200 OK", "Content-Encoding: exi\r\n", head.as_bytes()),
            _ => {
                let lines = format!("request-id: r-{MODEL_KEY}\r\nretry-after: {MODEL_KEY}\r\n");
                answer("429 X", &lines, b"")
            }
        };
        conn.send(bytes).await;
    });
    let stage = Stage::around(provider.await, |_| ()).await;
    stage.pay(ACCOUNT, true).await;
    let mut counted = 0;
    for (case, status, uses) in [
        ("refused", 400, 0),
        ("broken", 500, 0),
        ("json", 200, 7),
        // Nobody can read what these used, so that they count whole.
        ("percent", 200, super::BODY.len() as u64 + 8),
        ("coded", 200, 7),
        ("unread", 502, super::BODY.len() as u64 + 8),
        ("fields", 429, 0),
    ] {
        stage.provider.forget();
        let asked = message(&format!("{}x-app: {case}\r\n", lines()));
        let answer = stage.ask(asked).await;
        assert_eq!(answer.status, status, "{case}: {}", answer.text());
        assert!(
            contains(&stage.provider.bytes(), MODEL_KEY),
            "{case}: it went there"
        );
        assert_clean(&answer.raw);
        assert_eq!(answer.header("content-encoding"), None, "{case}");
        let is_masked = contains(&answer.raw, REDACTED)
            || contains(&answer.raw, percent(REDACTED))
            || case == "unread";
        assert!(is_masked, "{case}: {}", show(&answer.raw));
        if matches!(case, "json" | "coded") {
            let echo = answer.json()["echo"].as_str().expect("a text").to_owned();
            let line = format!("\r\nx-api-key: {REDACTED}\r\n");
            assert!(echo.contains(&line), "{echo}");
        }
        counted += uses;
        assert_eq!(
            stage.usage(ACCOUNT).await["counted_tokens"],
            counted,
            "{case}"
        );
    }
    let log = stage.vault.audit_log();
    let all = log.wait("the records", |lines| {
        lines
            .iter()
            .filter(|line| line["account"] == ACCOUNT)
            .count()
            == 7
    });
    let told = all.await;
    let told = told.iter().filter(|line| line["account"] == ACCOUNT);
    for line in told {
        let expected = match line["status"].as_u64() {
            Some(502) => json!(null),
            _ => json!(["gateway.api_key"]),
        };
        assert_eq!(line["scrubbed"], expected, "{line}");
    }
    assert_clean(&log.raw());
}

#[tokio::test]
async fn a_stream_loses_the_operator_s_key_at_any_cut_and_no_event_waits() {
    fn chunk(text: &str) -> String {
        format!("{:x}\r\n{text}\r\n", text.len())
    }
    let read = Arc::new(Notify::new());
    let next = Arc::clone(&read);
    let provider = Origin::script(move |_request, conn| {
        let next = Arc::clone(&next);
        async move {
            conn.send(
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                 Transfer-Encoding: chunked\r\n\r\n",
            )
            .await;
            let event = format!("event: ping\ndata: {{\"k\":\"{MODEL_KEY}\"}}\n\n");
            for cut in 0..event.len() {
                // In two writes and two chunks, and behind it one that has nothing to hide.
                let (one, two) = event.split_at(cut);
                for part in [one, two].into_iter().filter(|part| !part.is_empty()) {
                    conn.send(chunk(part)).await;
                }
                next.notified().await;
                conn.send(chunk("event: ping\ndata: {}\n\n")).await;
                next.notified().await;
            }
            conn.send("0\r\n\r\n").await;
        }
    });
    let stage = Stage::around(provider.await, |_| ()).await;
    stage.pay(ACCOUNT, true).await;
    let mut conn = stage.connect().await;
    conn.send(message(&lines())).await;
    let head = conn.answer_head().await;
    assert_eq!(head.status, 200, "{}", head.head);
    let event = format!("event: ping\ndata: {{\"k\":\"{MODEL_KEY}\"}}\n\n");
    let masked = event.replace(MODEL_KEY, REDACTED);
    for cut in 0..event.len() {
        // The provider goes on only after this one was read whole.
        let mut text = String::new();
        while text.len() < masked.len() {
            let size = conn.take_until(b"\r\n").await;
            let size = String::from_utf8(size).expect("text");
            let size = usize::from_str_radix(size.trim(), 16).expect("a size");
            let data = conn.take(size + 2).await;
            text.push_str(std::str::from_utf8(&data[..size]).expect("text"));
        }
        assert_eq!(text, masked, "{cut}");
        read.notify_one();
        let plain = chunk("event: ping\ndata: {}\n\n");
        assert_eq!(show(&conn.take(plain.len()).await), show(plain.as_bytes()));
        read.notify_one();
    }
    assert_eq!(conn.take(5).await, b"0\r\n\r\n");
}

#[tokio::test]
async fn an_oauth_token_is_masked_too() {
    const TOKEN: &str = "sk-ant-oat01-CANARY-operator-0123456789";
    let provider = Origin::script(|request, conn| async move {
        conn.send(answer("404 X", "", request.head.as_bytes()))
            .await;
    });
    let stage = Stage::around(provider.await, |config| {
        config.gateway.api_key = Some(super::secret(TOKEN));
    });
    let stage = stage.await;
    stage.pay(ACCOUNT, true).await;
    let echoed = stage.ask(message(&lines())).await;
    assert_eq!(echoed.status, 404);
    assert!(contains(&stage.provider.bytes(), TOKEN));
    assert!(!contains(&echoed.raw, TOKEN), "{}", echoed.text());
    let line = format!("\r\nauthorization: Bearer {REDACTED}\r\n");
    assert!(echoed.text().contains(&line), "{}", echoed.text());
    let stage = Stage::around(Anthropic::start().await.into_origin(), |_| ()).await;
    stage.pay(ACCOUNT, true).await;
    assert_eq!(stage.message(&jwt(ACCOUNT)).await.status, 200);
}
