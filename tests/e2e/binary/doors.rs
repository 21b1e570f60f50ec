//! Bad input at every door of a running server: a clear refusal, and the server goes on.

use oshu_vault_sdk::{Client, CreateSession};

use super::{CANARY, Home, Server, dial, get};
use crate::support::{basic, contains};

/// A name, a request, and what the answer has to be: its status and parts of its body, `|` between.
type Case<'a> = (&'a str, String, &'a str);

/// Sends every case over a connection of its own; the server has to answer it and the next one.
async fn check(server: &Server, cases: Vec<Case<'_>>) {
    for (name, bytes, expected) in cases {
        let mut conn = dial(server.plain()).await;
        conn.send(&bytes).await;
        let answer = conn.answer().await;
        let said = format!("{} {}", answer.status, answer.text());
        let mut parts = expected.split('|');
        let status = parts.next().expect("a status");
        assert!(said.starts_with(status), "{name}: not {status}: {said}");
        for part in parts {
            assert!(said.contains(part), "{name}: {part} in {said}");
        }
        assert!(!contains(&answer.raw, CANARY), "{name}: {said}");
        let next = get(server.plain(), "/healthz").await;
        assert_eq!(next.status, 200, "after {name}");
    }
}

/// Starts a server with a session; returns the session's credential as a line.
async fn server_with_session(home: &Home) -> (Server, String) {
    let server = home.serve_dev(&[]).await;
    let sdk = Client::builder(server.url(), server.api_key()).build();
    let session = sdk.unwrap().create_session(&CreateSession::new()).await;
    let session = session.unwrap();
    let credential = basic(&session.session_id, &session.token);
    (server, format!("Proxy-Authorization: {credential}\r\n"))
}

#[tokio::test]
async fn a_malformed_connect_is_refused_by_name() {
    let home = Home::new();
    let (server, credential) = server_with_session(&home).await;
    let connect = |target: &str, fields: &str| {
        format!("CONNECT {target} HTTP/1.1\r\n{fields}{credential}\r\n")
    };
    let bare = |fields: &str| format!("CONNECT a.example:443 HTTP/1.1\r\n{fields}\r\n");
    let wrong = format!("Proxy-Authorization: {}\r\n", basic("sess_1", CANARY));
    let twice = "Host: a.example:443\r\nHost: a.example:443\r\n";
    let other = "Host: canary-0123456789abcdef:443\r\n";
    let ours = server.plain().to_string();
    let targets = [
        "example.com",
        "example.com:",
        "example.com:0",
        "example.com:65536",
        "example.com:https",
        ":443",
        "user@example.com:443",
        "[::1:443",
        "exa_mple..com:443",
        "canary-0123456789abcdef",
        "http://example.com:443",
    ];
    let bad_target = "400|bad_connect_target|CONNECT target is not host:port";
    let mut cases: Vec<_> = targets.map(|t| (t, connect(t, ""), bad_target)).into();
    let a = "a.example:443";
    cases.extend([
        (
            "no credential",
            bare(""),
            "407|proxy_authentication_required|Basic proxy credentials",
        ),
        (
            "a wrong credential",
            bare(&wrong),
            "407|proxy_authentication_required",
        ),
        ("no base64", bare("Proxy-Authorization: Basic ?\r\n"), "407"),
        ("two credentials", bare(&wrong.repeat(2)), "407"),
        (
            "a body",
            connect(a, "Content-Length: 3\r\n"),
            "400|connect_with_body",
        ),
        (
            "another Host",
            connect(a, other),
            "421|another_authority|Host",
        ),
        ("two Hosts", connect(a, twice), "400|bad_host|Host"),
        (
            "a bad Host",
            connect(a, "Host: a b\r\n"),
            "400|bad_host|Host",
        ),
        (
            "ourselves",
            connect(&ours, ""),
            "403|destination_ip_prohibited",
        ),
        (
            "metadata",
            connect("169.254.169.254:80", ""),
            "403|destination_ip_prohibited",
        ),
    ]);
    check(&server, cases).await;
    server.stop().await;
}

#[tokio::test]
async fn a_malformed_absolute_form_is_refused_by_name() {
    let home = Home::new();
    let (server, credential) = server_with_session(&home).await;
    let plain =
        |target: &str, fields: &str| format!("GET {target} HTTP/1.1\r\n{fields}{credential}\r\n");
    let user = "http://canary-0123456789abcdef@a.example/";
    let cases = vec![
        (
            "https",
            plain("https://a.example/", ""),
            "400|absolute_https|CONNECT",
        ),
        (
            "ftp",
            plain("ftp://a.example/", ""),
            "400|bad_scheme|http://",
        ),
        ("no authority", plain("http:///x", ""), "400|bad_target"),
        ("a user", plain(user, ""), "400|bad_target"),
        (
            "a bad port",
            plain("http://a.example:99999/", ""),
            "400|bad_target",
        ),
        (
            "another Host",
            plain("http://a.example/", "Host: b.example\r\n"),
            "421|another",
        ),
        (
            "no form at all",
            plain("canary-0123456789abcdef", ""),
            "400|bad_target",
        ),
    ];
    check(&server, cases).await;
    server.stop().await;
}

#[tokio::test]
async fn a_malformed_head_is_refused_by_name() {
    let home = Home::new();
    let server = home.serve_dev(&[]).await;
    let line = |text: &str| format!("{text}\r\nHost: a\r\n\r\n");
    let field = |text: &str| format!("GET /healthz HTTP/1.1\r\nHost: a\r\n{text}\r\n\r\n");
    let long = format!("GET /{} HTTP/1.1", "x".repeat(20_000));
    let many = vec!["A: b"; 200].join("\r\n");
    let both = "Content-Length: 1\r\nTransfer-Encoding: chunked";
    let hidden = "canary-0123456789abcdef";
    let cases = vec![
        (
            "no version",
            line("GET /healthz"),
            "400|bad_request_line|request line",
        ),
        (
            "another version",
            line("GET / HTTP/3.0"),
            "400|bad_version|HTTP/1.1",
        ),
        (
            "h2",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(),
            "400|bad_version",
        ),
        (
            "blanks",
            line("GET  /healthz HTTP/1.1"),
            "400|bad_request_line",
        ),
        (
            "bare LF",
            "GET / HTTP/1.1\nHost: a\n\n".into(),
            "400|bad_line_end|CR LF",
        ),
        ("no colon", field(hidden), "400|bad_field|header field"),
        (
            "a blank name",
            field(&format!("X : {hidden}")),
            "400|bad_field",
        ),
        (
            "folded",
            field(&format!("X: a\r\n {hidden}")),
            "400|bad_field",
        ),
        ("NUL", field("X: a\0"), "400|bad_"),
        ("a long target", line(&long), "414|target_too_long|too long"),
        (
            "many fields",
            field(&many),
            "431|head_too_large|too many fields",
        ),
        (
            "lengths",
            field("Content-Length: 1\r\nContent-Length: 1"),
            "400|Content-Length",
        ),
        (
            "a bad length",
            field("Content-Length: +1"),
            "400|bad_framing",
        ),
        ("length and chunks", field(both), "400|bad_framing"),
        (
            "a coding",
            field("Transfer-Encoding: gzip"),
            "400|bad_framing",
        ),
        ("two Hosts", field("Host: a"), "400|bad_host|Host"),
        ("TLS", "\u{16}\u{3}\u{1}\0\0\r\n\r\n".into(), "400|bad_"),
    ];
    check(&server, cases).await;
    server.stop().await;
}

#[tokio::test]
async fn a_malformed_request_body_is_refused_by_name() {
    let home = Home::new();
    let server = home.serve_dev(&[]).await;
    let post = |body: &str| call(&server, "POST", "/v1/sessions", JSON, body);
    let cut = "{\"secrets\":{\"A\":\"canary-0123456789abcdef\"}";
    let short = "{\"secrets\":{\"A\":\"x\"}}";
    let wrong_type = "{\"secrets\":{},\"ttl_seconds\":\"canary-0123456789abcdef\"}";
    let twice = "{\"metadata\":{},\"metadata\":{}}";
    let chunked = "Transfer-Encoding: chunked\r\n\r\nzz\r\n";
    let bad_chunks = post("").replace("Content-Length: 0\r\n\r\n", chunked);
    let coded = format!("{JSON}Content-Encoding: gzip\r\n");
    let coded = call(&server, "POST", "/v1/sessions", &coded, "{}");
    let text = call(
        &server,
        "POST",
        "/v1/sessions",
        "Content-Type: text/plain\r\n",
        "{}",
    );
    let cases = vec![
        ("no body", post(""), "400|bad_json|line 1"),
        ("cut JSON", post(cut), "400|bad_json|line 1"),
        ("two values", post("{}{}"), "400|bad_json"),
        (
            "a list",
            post("[\"canary-0123456789abcdef\"]"),
            "422|\"errors\":[{",
        ),
        (
            "an unknown field",
            post("{\"ttl\":1}"),
            "422|\"ttl\"|unknown_field",
        ),
        ("a wrong type", post(wrong_type), "422|\"ttl_seconds\""),
        ("a key twice", post(twice), "400|duplicate_key|\"metadata\""),
        (
            "a short secret",
            post(short),
            "422|\"secrets.A.value\"|secret_too_short",
        ),
        ("another type", text, "415|unsupported_media_type"),
        ("a coding", coded, "415|without a content coding"),
        ("bad chunks", bad_chunks, "400|bad_body"),
    ];
    check(&server, cases).await;
    server.stop().await;
}

#[tokio::test]
async fn a_bad_api_call_is_refused_by_name() {
    let home = Home::new();
    let server = home.serve_dev(&[]).await;
    let host = server.plain();
    let keyless = |field: &str| format!("GET /v1/sessions HTTP/1.1\r\nHost: {host}\r\n{field}\r\n");
    let call = |method: &str, path: &str| call(&server, method, path, JSON, "");
    let unknown = format!("/v1/sessions/sess_{}", "0".repeat(32));
    let wrong = format!("x-api-key: {CANARY}\r\n");
    let cases = vec![
        (
            "no key",
            keyless(""),
            "401|unauthenticated|Authorization: Bearer KEY",
        ),
        ("a wrong key", keyless(&wrong), "401|unauthenticated"),
        (
            "a bad limit",
            call("GET", "/v1/sessions?limit=x"),
            "400|\"limit\"",
        ),
        (
            "a bad cursor",
            call("GET", "/v1/sessions?cursor=x"),
            "400|\"cursor\"",
        ),
        ("a bad id", call("GET", "/v1/sessions/x"), "404|not_found"),
        ("an unknown id", call("DELETE", &unknown), "404|not_found"),
        (
            "a wrong method",
            call("PUT", "/v1/sessions"),
            "405|method_not_allowed",
        ),
        ("an unknown route", call("GET", "/v2"), "404|not_found"),
    ];
    check(&server, cases).await;
    server.stop().await;
}

const JSON: &str = "Content-Type: application/json\r\n";

fn call(server: &Server, method: &str, path: &str, fields: &str, body: &str) -> String {
    let (host, key, length) = (server.plain(), server.api_key(), body.len());
    format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n\
         {fields}Content-Length: {length}\r\n\r\n{body}"
    )
}
