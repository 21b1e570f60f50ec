//! A stand-in of the Anthropic API, for Claude Code and everything else that speaks to it.
//!
//! It stands on an [`Origin`], so certificates are made for every name that is asked for,
//! `api.anthropic.com` and `platform.claude.com` alike, and every byte is on record. Messages are
//! answered as the API does: a stream of events where one is asked for, else one JSON document.
//! Everything else is 404, which Claude Code takes for "nothing new".

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{Origin, OriginConn, Request};

/// The text of every answer.
pub(crate) const ANSWER: &str = "Hello from the stand-in of the API.";

/// Whose refresh tokens the stand-in knows, and what it gives for them.
#[derive(Clone, Copy)]
pub(crate) struct Login {
    pub(crate) refresh: &'static str,
    pub(crate) next_access: &'static str,
    pub(crate) next_refresh: &'static str,
}

/// The API's stand-in.
pub(crate) struct Anthropic {
    origin: Origin,
}

impl Anthropic {
    /// The name that clients know it by.
    pub(crate) const HOST: &'static str = "api.anthropic.com";

    /// Starts a stand-in that answers every message with [`ANSWER`].
    pub(crate) async fn start() -> Self {
        Self::scripted(None, None).await
    }

    /// Starts a stand-in that first asks for a run of Claude Code's Bash tool, and answers with
    /// [`ANSWER`] once it was told the result.
    pub(crate) async fn with_tool(command: &str) -> Self {
        Self::scripted(Some(command.to_owned()), None).await
    }

    /// Starts a stand-in whose token endpoint knows one login.
    pub(crate) async fn with_login(login: Login) -> Self {
        Self::scripted(None, Some(login)).await
    }

    async fn scripted(command: Option<String>, login: Option<Login>) -> Self {
        let script = move |request: Request, conn: OriginConn| {
            let parts = match login.filter(|_| request.line().contains(" /v1/oauth/token")) {
                Some(login) => vec![grant(&request, login)],
                None => answer(&request, command.as_deref()),
            };
            async move {
                for part in parts {
                    conn.send(part).await;
                }
            }
        };
        Self {
            origin: Origin::script(script).await,
        }
    }

    /// Returns the origin that it stands on, for tests that look at bytes only.
    pub(crate) fn into_origin(self) -> Origin {
        self.origin
    }

    /// Returns where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.origin.addr()
    }

    /// Returns the raw bytes of all connections, one behind the other.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.origin.bytes()
    }

    /// Fails the test unless so many messages came, and each with this field, once.
    pub(crate) fn expect_messages(&self, at_least: usize, name: &str, value: &str) {
        let messages = self.messages();
        assert!(
            messages.len() >= at_least,
            "{} messages came",
            messages.len()
        );
        for head in messages {
            let fields = head
                .lines()
                .skip(1)
                .filter_map(|line| line.split_once(": "));
            let found = fields.filter(|(other, _)| other.eq_ignore_ascii_case(name));
            let values: Vec<_> = found.map(|(_, value)| value).collect();
            assert_eq!(values, [value], "{head}");
        }
    }

    /// Returns the raw heads of the calls of `/v1/messages`, in the order of their connections.
    fn messages(&self) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.origin.bytes()).into_owned();
        let starts = text.match_indices("POST /v1/messages");
        let heads = starts.filter_map(|(at, _)| text[at..].split_once("\r\n\r\n"));
        heads.map(|(head, _)| head.to_owned()).collect()
    }
}

/// Returns the answer of the token endpoint.
fn grant(request: &Request, login: Login) -> Vec<u8> {
    let asked: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let known = [login.refresh, login.next_refresh].map(|known| asked["refresh_token"] == known);
    if asked["grant_type"] != "refresh_token" || known == [false, false] {
        let refusal = json!({ "error": "invalid_grant", "error_description": "unknown" });
        return document("400 Bad Request", &refusal, false);
    }
    let tokens = json!({
        "token_type": "Bearer",
        "access_token": login.next_access,
        "expires_in": 28_800,
        "refresh_token": login.next_refresh,
        "scope": "user:inference user:profile",
        "account": { "uuid": "a-1", "email_address": "someone@example.com" },
        "organization": { "uuid": "o-1", "name": "Someone" },
    });
    document("200 OK", &tokens, false)
}

/// Returns the pieces of an answer, each to be sent by itself.
fn answer(request: &Request, command: Option<&str>) -> Vec<Vec<u8>> {
    let line = request.line();
    let path = line.split(' ').nth(1).unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default();
    if !line.starts_with("POST ") || path != "/v1/messages" {
        let error = error("not_found_error", "not found");
        return vec![document("404 Not Found", &error, line.starts_with("HEAD "))];
    }
    let Ok(body) = serde_json::from_slice::<Value>(&request.body) else {
        let error = error("invalid_request_error", "the body is not JSON");
        return vec![document("400 Bad Request", &error, false)];
    };
    // Claude Code also has small errands of its own, which come without tools.
    let offered = body["tools"]
        .as_array()
        .is_some_and(|tools| !tools.is_empty());
    let done = body["messages"].to_string().contains(r#""tool_result""#);
    let block = match command.filter(|_| offered && !done) {
        None => json!({ "type": "text", "text": ANSWER }),
        Some(command) => json!({
            "type": "tool_use",
            "id": "toolu_1",
            "name": "Bash",
            "input": { "command": command, "description": "Runs a command" },
        }),
    };
    if body["stream"] == true {
        stream(&block)
    } else {
        vec![document("200 OK", &message(&block), false)]
    }
}

fn error(kind: &str, text: &str) -> Value {
    json!({ "type": "error", "error": { "type": kind, "message": text } })
}

fn message(block: &Value) -> Value {
    let stop_reason = if block["type"] == "text" {
        "end_turn"
    } else {
        "tool_use"
    };
    json!({
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "stand-in",
        "content": [block],
        "stop_reason": stop_reason,
        "stop_sequence": null,
        "usage": { "input_tokens": 1, "output_tokens": 1 },
    })
}

fn document(status: &str, document: &Value, head_only: bool) -> Vec<u8> {
    let body = document.to_string();
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    let body = if head_only { String::new() } else { body };
    format!("{head}{body}").into_bytes()
}

/// Returns a stream of events: its head, then a chunk for each of them.
fn stream(block: &Value) -> Vec<Vec<u8>> {
    let mut begin = message(block);
    let stop_reason = begin["stop_reason"].take();
    begin["content"] = json!([]);
    let mut empty = block.clone();
    let delta = if block["type"] == "text" {
        json!({ "type": "text_delta", "text": empty["text"].take() })
    } else {
        let input = empty["input"].take().to_string();
        json!({ "type": "input_json_delta", "partial_json": input })
    };
    match empty.get_mut("text") {
        Some(text) => *text = json!(""),
        None => empty["input"] = json!({}),
    }
    let end = json!({ "stop_reason": stop_reason, "stop_sequence": null });
    let events = [
        ("message_start", json!({ "message": begin })),
        (
            "content_block_start",
            json!({ "index": 0, "content_block": empty }),
        ),
        ("ping", json!({})),
        ("content_block_delta", json!({ "index": 0, "delta": delta })),
        ("content_block_stop", json!({ "index": 0 })),
        (
            "message_delta",
            json!({ "delta": end, "usage": { "output_tokens": 1 } }),
        ),
        ("message_stop", json!({})),
    ];
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\
                Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut parts = vec![head.as_bytes().to_vec()];
    for (name, mut data) in events {
        data["type"] = json!(name);
        let event = format!("event: {name}\ndata: {data}\n\n");
        parts.push(format!("{:x}\r\n{event}\r\n", event.len()).into_bytes());
    }
    parts.push(b"0\r\n\r\n".to_vec());
    parts
}
