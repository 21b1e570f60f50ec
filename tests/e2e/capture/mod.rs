//! Token endpoints: what they give stays at the proxy, and the workload gets sealed tokens for it.
//!
//! The origin answers with the bytes that it was sent as a body, so that each test says what the
//! endpoint says. What counts is the raw bytes that the workload got, and those that an origin
//! received when the sealed tokens were used.

mod answers;
mod http2;
mod refusals;
mod tokens;

use oshu_vault_sdk::{CaptureEndpoint, CreateSession};
use serde_json::Value;

use crate::support::{
    Answer, Conn, GOOD, Origin, OriginConn, Request, SIDE, Scene, contains, show,
};

/// The path of the endpoint that the sessions here name.
const PATH: &str = "/v1/oauth/token";
const TARGET: &str = "good.example.com:443";
const ACCESS: &str = "access-value-0123456789-abcdef";
const REFRESH: &str = "refresh-value-0123456789-abcdef";
const ID: &str = "id-value-0123456789-abcdef";

/// Names the endpoint, whose tokens may go to two of the origins.
fn endpoint() -> CaptureEndpoint {
    CaptureEndpoint::new(format!("https://{GOOD}{PATH}")).hosts([GOOD, SIDE])
}

/// Lets a session watch the endpoint.
fn watching(session: CreateSession) -> CreateSession {
    session.capture([endpoint()])
}

/// Answers with the body of the request, byte for byte, and with 200 where there is none.
async fn say(request: Request, conn: OriginConn) {
    if request.body.is_empty() {
        return conn
            .send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .await;
    }
    conn.send(&request.body).await;
    if !contains(&request.body, "\r\nContent-Length: ")
        && !contains(&request.body, "\r\nTransfer-Encoding: ")
    {
        conn.close().await;
    }
}

/// Sets the scene: the good origin says what it is told, at every path.
async fn scene() -> Scene {
    Scene::with_good(Origin::script(say).await, |vault| vault, watching).await
}

/// Returns the answer that a token endpoint gives by the standard.
fn standard() -> String {
    format!(
        "{{\"token_type\":\"bearer\", \"access_token\":\"{ACCESS}\",\"expires_in\": 3600,\n\
         \"refresh_token\":\"{REFRESH}\",\"id_token\":\"{ID}\",\"scope\":\"a b\"}}"
    )
}

/// Returns the same answer with others in the place of its tokens.
fn with_tokens([access, refresh, id]: [&str; 3]) -> String {
    standard()
        .replace(ACCESS, access)
        .replace(REFRESH, refresh)
        .replace(ID, id)
}

/// Returns an answer of JSON.
fn json(body: &str) -> Vec<u8> {
    message(
        "200 OK",
        "Content-Type: application/json\r\n",
        body.as_bytes(),
    )
}

/// Returns an answer whose length is told.
fn message(status: &str, fields: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\n{fields}Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Returns an answer of chunks.
fn chunked(fields: &str, pieces: &[&[u8]], trailers: &str) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\n{fields}Transfer-Encoding: chunked\r\n\r\n");
    let mut out = head.into_bytes();
    for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
        out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        out.extend_from_slice(piece);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(format!("0\r\n{trailers}\r\n").as_bytes());
    out
}

/// Writes a POST.
fn post(host: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// Has a path of the good origin give an answer.
async fn told(conn: &mut Conn, path: &str, answer: impl AsRef<[u8]>) -> Answer {
    conn.send(post(GOOD, path, answer.as_ref())).await;
    conn.answer().await
}

/// Has the endpoint give its standard answer, and returns the three sealed tokens.
async fn captured(scene: &Scene) -> [String; 3] {
    let mut conn = scene.workload.connect(TARGET).await;
    let answer = told(&mut conn, PATH, json(&standard())).await;
    assert_eq!(answer.status, 200, "{}", show(&answer.raw));
    sealed(&answer.body)
}

/// Returns the three sealed tokens of an answer.
fn sealed(body: &[u8]) -> [String; 3] {
    let body: Value = serde_json::from_slice(body).expect("JSON");
    ["access_token", "refresh_token", "id_token"].map(|name| {
        let token = body[name].as_str().unwrap_or_default().to_owned();
        assert!(token.contains("SEALED_"), "{name} in {body}");
        token
    })
}

/// Fails if a real token stands in what the workload got.
fn assert_clean(case: &str, bytes: &[u8]) {
    for value in [ACCESS, REFRESH, ID] {
        assert!(!contains(bytes, value), "{case}: {}", show(bytes));
    }
}

/// Returns what the good origin received of a request with a token as a bearer's.
async fn bearer(scene: &Scene, token: &str) -> String {
    let lines = format!("Authorization: Bearer {token}\r\n");
    scene.received(GOOD, &lines).await
}
