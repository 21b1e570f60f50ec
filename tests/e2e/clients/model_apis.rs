//! A stand-in of the `OpenAI` API, and what the API of sessions says of keys that sign.

use oshu_vault_sdk::CreateSession;
use serde_json::json;

use super::stage::REAL;
use crate::support::{ANSWER, Origin, OriginConn, Request, Vault};

/// Starts a stand-in that answers chat completions, and responses as a stream of events.
pub(super) async fn openai() -> Origin {
    Origin::script(|request: Request, conn: OriginConn| async move {
        conn.send(answer(&request)).await;
    })
    .await
}

fn answer(request: &Request) -> String {
    let path = request.line().split(' ').nth(1).unwrap_or_default();
    let is_post = request.line().starts_with("POST ");
    let (status, kind, body) = if is_post && path.ends_with("/responses") {
        ("200 OK", "text/event-stream", responses())
    } else if is_post {
        ("200 OK", "application/json", completion())
    } else if request.header("upgrade").is_some() {
        // Codex takes this as "not over a WebSocket" and goes on at once.
        ("426 Upgrade Required", "application/json", "{}".to_owned())
    } else {
        ("404 Not Found", "application/json", "{}".to_owned())
    };
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}")
}

fn completion() -> String {
    let message = json!({ "role": "assistant", "content": ANSWER });
    json!({
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "stand-in",
        "choices": [{ "index": 0, "message": message, "finish_reason": "stop" }],
    })
    .to_string()
}

fn responses() -> String {
    let text = json!({ "type": "output_text", "text": ANSWER, "annotations": [] });
    let item = json!({ "type": "message", "id": "msg_1", "role": "assistant", "content": [text] });
    let usage = json!({
        "input_tokens": 1,
        "input_tokens_details": { "cached_tokens": 0 },
        "output_tokens": 1,
        "output_tokens_details": { "reasoning_tokens": 0 },
        "total_tokens": 2,
    });
    let response = json!({ "id": "resp_1", "output": [item], "usage": usage });
    let events = [
        json!({ "type": "response.created", "response": { "id": "resp_1" } }),
        json!({ "type": "response.output_item.done", "output_index": 0, "item": item }),
        json!({ "type": "response.completed", "response": response }),
    ];
    let event = |data: &serde_json::Value| {
        let name = data["type"].as_str().expect("a type");
        format!("event: {name}\ndata: {data}\n\n")
    };
    events.iter().map(event).collect()
}

/// Fails unless a session with a secret of this name is refused for this reason.
pub(super) async fn expect_refused(name: &str, code: &str) {
    let vault = Vault::builder().start().await;
    let made = vault
        .sdk()
        .create_session(&CreateSession::new().secret(name, REAL))
        .await;
    let error = made.expect_err("a refusal");
    let told = format!("{:?}", error.problem());
    assert!(told.contains(code), "{told}");
}
