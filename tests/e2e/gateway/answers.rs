//! What comes back: each event as it comes, the operator's troubles as the operator's, and an end
//! wherever one side goes away.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::net::TcpSocket;
use tokio::sync::Notify;

use crate::support::{Anthropic, Conn, Origin, contains, show, within};

use super::{ACCOUNT, BODY, Stage, jwt, message, post};

const STREAM: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
    Transfer-Encoding: chunked\r\nrequest-id: req_1\r\nanthropic-organization-id: CANARY\r\n\
    anthropic-ratelimit-tokens-remaining: 1\r\nSet-Cookie: CANARY=1\r\n\r\n";
const BEGIN: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\
    \"claude-x\",\"usage\":{\"input_tokens\":10,\"cache_read_input_tokens\":5,\
    \"output_tokens\":1}}}\n\n";
const DELTA: &str = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":\
    {\"text\":\"hello\"}}\n\n";
/// What the data of the delta counts as where nothing else is told: a token for four bytes.
const ESTIMATED: usize = (DELTA.len() - "event: content_block_delta\ndata:\n\n".len()).div_ceil(4);
/// The most that one message may use.
const MOST: u64 = BODY.len() as u64 + 8;

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

/// Sends a message of a paid account, and leaves the connection to the test.
async fn begin(stage: &Stage) -> Conn {
    stage.pay(ACCOUNT, true).await;
    let mut conn = stage.connect().await;
    let line = format!("x-api-key: {}\r\n", jwt(ACCOUNT));
    conn.send(message(&line)).await;
    conn
}

/// Waits until the end of a message is on record, and returns its reason.
async fn reason(stage: &Stage) -> String {
    let is_ours = |line: &serde_json::Value| {
        line["path"] == "/api/claude-gateway/v1/messages" && line["account"] == ACCOUNT
    };
    let lines = stage
        .vault
        .audit_log()
        .wait("the record", |lines| lines.iter().any(is_ours))
        .await;
    let line = lines.into_iter().find(is_ours).expect("a record");
    assert_eq!(line["sandbox"], "box-1");
    line["reason"].as_str().expect("a reason").to_owned()
}

/// Fails the test unless one message counts as used whole.
async fn expect_unsettled(stage: &Stage) {
    let usage = stage.usage(ACCOUNT).await;
    assert_eq!(usage["counted_tokens"], MOST, "{usage}");
    assert_eq!(usage["usage"][0]["unsettled_tokens"], MOST, "{usage}");
}

#[tokio::test]
async fn each_event_leaves_as_it_comes() {
    let next = Arc::new(Notify::new());
    let told = Arc::clone(&next);
    let provider = Origin::script(move |_request, conn| {
        let next = Arc::clone(&told);
        async move {
            conn.send(STREAM).await;
            for event in [BEGIN, DELTA] {
                conn.send(chunk(event)).await;
                next.notified().await;
            }
            conn.send("0\r\n\r\n").await;
        }
    });
    let stage = Stage::around(provider.await, |_| ()).await;
    let mut conn = begin(&stage).await;
    let head = conn.answer_head().await;
    assert_eq!(head.status, 200, "{}", head.head);
    assert_eq!(head.header("content-type"), Some("text/event-stream"));
    assert_eq!(head.header("request-id"), Some("req_1"));
    for hidden in ["CANARY", "ratelimit", "organization"] {
        assert!(!head.head.contains(hidden), "{}", head.head);
    }
    // The provider sends nothing more until this one was read.
    for event in [BEGIN, DELTA] {
        let expected = chunk(event);
        let read = conn.take(expected.len()).await;
        assert_eq!(show(&read), show(expected.as_bytes()));
        next.notify_one();
    }
    assert_eq!(conn.take(5).await, b"0\r\n\r\n");
    assert_eq!(reason(&stage).await, "ok");
}

#[tokio::test]
async fn case_86_a_caller_that_leaves_ends_the_stream_and_what_came_is_counted() {
    let provider = Origin::script(|_request, conn| async move {
        conn.send(STREAM).await;
        conn.send(chunk(BEGIN)).await;
        conn.send(chunk(DELTA)).await;
        conn.wait_end().await;
    });
    let stage = Stage::around(provider.await, |_| ()).await;
    let mut conn = begin(&stage).await;
    let _read = conn.take_until(b"hello").await;
    drop(conn);
    stage.provider.wait_ended(1).await;
    assert_eq!(reason(&stage).await, "incomplete");
    let usage = stage.usage(ACCOUNT).await;
    let line = &usage["usage"][0];
    assert_eq!(
        (&line["sandbox"], &line["model"]),
        (&json!("box-1"), &json!("claude-x"))
    );
    assert_eq!(line["input_tokens"], 10);
    assert_eq!(line["cache_read_input_tokens"], 5);
    assert_eq!(line["output_tokens"], ESTIMATED);
    assert_eq!(line["unsettled_tokens"], 0);
}

#[tokio::test]
async fn case_86_a_caller_that_leaves_before_the_first_byte_ends_the_request() {
    let provider = Origin::script(|_request, conn| async move { conn.wait_end().await });
    let stage = Stage::around(provider.await, |_| ()).await;
    let conn = begin(&stage).await;
    stage
        .provider
        .wait("the request", |all| contains(&all.concat(), "\"hi\""))
        .await;
    drop(conn);
    stage.provider.wait_ended(1).await;
    assert_eq!(reason(&stage).await, "incomplete");
    // Nobody knows what it cost by then.
    expect_unsettled(&stage).await;
}

#[tokio::test]
async fn case_86_a_provider_that_falls_silent_is_told_of() {
    let provider = Origin::script(|_request, conn| async move {
        conn.send(STREAM).await;
        conn.send(chunk(BEGIN)).await;
        conn.wait_end().await;
    });
    let stage = Stage::around(provider.await, |config| {
        config.limits.exchange_idle_timeout = Some(Duration::from_millis(300));
    });
    let stage = stage.await;
    let answer = begin(&stage).await.answer().await;
    let text = answer.text();
    assert!(text.starts_with(BEGIN), "{text}");
    let (_, last) = text.rsplit_once("event: error\ndata: ").expect("an event");
    let told: serde_json::Value = serde_json::from_str(last.trim_end()).expect("JSON");
    assert_eq!(told["error"]["type"], "timeout_error");
    assert_eq!(reason(&stage).await, "provider_silent");
    stage.provider.wait_ended(1).await;
}

#[tokio::test]
async fn a_provider_that_never_answers_is_given_up() {
    let provider = Origin::script(|_request, conn| async move { conn.wait_end().await });
    let stage = Stage::around(provider.await, |config| {
        config.limits.answer_timeout = Some(Duration::from_millis(300));
    });
    let stage = stage.await;
    let answer = begin(&stage).await.answer().await;
    assert_eq!(answer.status, 504, "{}", answer.text());
    assert_eq!(answer.json()["error"]["type"], "timeout_error");
    assert_eq!(reason(&stage).await, "provider_late");
    expect_unsettled(&stage).await;
}

#[tokio::test]
async fn a_stream_that_is_cut_does_not_pass_for_the_whole() {
    let provider = Origin::script(|_request, conn| async move {
        conn.send(STREAM).await;
        conn.send(chunk(BEGIN)).await;
        conn.abort().await;
    });
    let stage = Stage::around(provider.await, |_| ()).await;
    let mut conn = begin(&stage).await;
    assert_eq!(conn.answer_head().await.status, 200);
    let rest = conn.rest().await;
    assert_eq!(show(&rest), show(chunk(BEGIN).as_bytes()));
    assert_eq!(reason(&stage).await, "provider_cut");
}

#[tokio::test]
async fn peer_88_the_provider_s_answer_to_the_operator_is_not_the_caller_s() {
    // What the provider says, what the caller gets, and the type where it is ours.
    let cases = [
        (400, 400, None),
        (401, 502, Some("api_error")),
        (402, 502, Some("api_error")),
        (403, 502, Some("api_error")),
        (404, 404, None),
        (413, 413, None),
        (429, 429, None),
        (500, 500, None),
        (529, 529, None),
        (302, 502, Some("api_error")),
    ];
    for (says, gets, kind) in cases {
        let body = "{\"type\":\"error\",\"error\":{\"type\":\"theirs\",\"message\":\"m\"}}";
        let length = body.len();
        let provider = Origin::answer(format!(
            "HTTP/1.1 {says} X\r\nContent-Type: application/json\r\nRetry-After: 7\r\n\
             Location: https://evil.example.net/\r\nx-should-retry: true\r\n\
             anthropic-organization-id: CANARY\r\nContent-Length: {length}\r\n\r\n{body}"
        ));
        let stage = Stage::around(provider.await, |_| ()).await;
        let answer = begin(&stage).await.answer().await;
        assert_eq!(answer.status, gets, "{says}");
        assert!(!answer.head.contains("CANARY"), "{}", answer.head);
        assert_eq!(answer.header("location"), None);
        match kind {
            None => {
                assert_eq!(answer.text(), body, "{says}");
                assert_eq!(answer.header("retry-after"), Some("7"));
                assert_eq!(answer.header("x-should-retry"), Some("true"));
                assert_eq!(reason(&stage).await, "ok");
            }
            Some(kind) => {
                assert_eq!(answer.json()["error"]["type"], kind, "{says}");
                assert_eq!(answer.header("retry-after"), None);
            }
        }
        // None of them cost anything.
        let usage = stage.usage(ACCOUNT).await;
        assert_eq!(usage["counted_tokens"], 0, "{says}: {usage}");
    }
}

#[tokio::test]
async fn a_provider_that_is_not_there_is_a_bad_gateway() {
    let provider = Anthropic::start().await.into_origin();
    // A port that is taken, and on which nobody listens.
    let taken = TcpSocket::new_v4().expect("a socket");
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    taken.bind(any).expect("a port");
    let nobody = taken.local_addr().expect("an address");
    let stage = Stage::around(provider, |config| {
        let url = format!("http://{nobody}");
        config.gateway.upstream = oshu_vault::config::ServiceUrl::parse(&url).expect("a URL");
    });
    let stage = stage.await;
    let answer = begin(&stage).await.answer().await;
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert_eq!(answer.json()["details"]["code"], "provider_unreachable");
    assert_eq!(stage.usage(ACCOUNT).await["counted_tokens"], 0);
}

#[tokio::test]
async fn connections_serve_one_call_after_the_other() {
    let stage = Stage::new().await;
    let mut conn = begin(&stage).await;
    assert_eq!(conn.answer().await.status, 200);
    let line = format!("x-api-key: {}\r\n", jwt(ACCOUNT));
    let stream = BODY.replace("{\"model\"", "{\"stream\":true,\"model\"");
    for _ in 0..3 {
        conn.send(post("/v1/messages", &line, &stream)).await;
        let answer = within("a stream", conn.answer()).await;
        assert!(
            answer.text().ends_with("\"type\":\"message_stop\"}\n\n"),
            "{}",
            answer.text()
        );
    }
    assert_eq!(
        stage.provider.connections(),
        1,
        "the provider's is used again"
    );
}
