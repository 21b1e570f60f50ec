//! The client against a server of a few lines that answers one canned answer per connection.
//!
//! What arrives is compared as bytes: these tests say what is on the wire, and what each kind of
//! answer becomes.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failing test may panic, in its helpers too"
)]

use std::sync::Arc;
use std::time::Duration;

use oshu_vault_sdk::{Client, CreateSession, Error, ListSessions, SecretSpec, UpdateSession};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

const API_KEY: &str = "ovk_CANARYapikeyCANARY";

/// One request as it came.
struct Received {
    line: String,
    head: String,
    body: String,
}

impl Received {
    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines();
        lines.find_map(|line| {
            line.split_once(": ")
                .filter(|(n, _)| n.eq_ignore_ascii_case(name))
                .map(|(_, v)| v)
        })
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// Reads one request and writes `answer`.
async fn exchange(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), answer: &str) -> Received {
    let mut bytes = Vec::new();
    let text = loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .map_or(0, |length| length.parse().unwrap());
            if body.len() >= length {
                break text;
            }
        }
        assert_ne!(
            stream.read_buf(&mut bytes).await.unwrap(),
            0,
            "the request broke off: {text}"
        );
    };
    stream.write_all(answer.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let (line, head) = head.split_once("\r\n").unwrap();
    Received {
        line: line.to_owned(),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

/// Serves one answer; the handle gives the request that it answered.
async fn serve(answer: String) -> (Client, JoinHandle<Received>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = format!("http://{}/", listener.local_addr().unwrap());
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        exchange(&mut stream, &answer).await
    });
    (Client::builder(base_url, API_KEY).build().unwrap(), served)
}

fn answer(status: u16, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n{headers}\r\n{body}")
}

fn created() -> String {
    let body = json!({
        "session_id": "sess_1",
        "token": "tok_1",
        "sealed_secrets": { "A": "SEALED_1" },
        "proxy_url": "https://sess_1:tok_1@vault.example",
        "created_at": "2030-01-01T00:00:00Z",
        "expires_at": "2030-01-02T00:00:00Z",
        "warnings": [],
    });
    answer(201, "", &body.to_string())
}

fn session() -> Value {
    json!({
        "session_id": "sess_1",
        "created_at": "2030-01-01T00:00:00Z",
        "expires_at": "2030-01-02T00:00:00Z",
        "ttl_seconds": 60,
        "max_lifetime_seconds": 120,
        "secrets": [{ "name": "A", "hosts": ["a.example"], "inject": ["header"] }],
        "secret_hosts": [],
        "allowed_egress": null,
        "inject": ["header"],
        "passthrough_hosts": [],
        "allow_plaintext": false,
        "scrub_responses": true,
        "metadata": {},
        "counters": { "requests": 3 },
        "warnings": [],
    })
}

#[tokio::test]
async fn a_creation_is_posted_with_the_key() {
    let (client, served) = serve(created()).await;
    let request = CreateSession::new().secret("A", SecretSpec::new("value-of-a").hosts(["h"]));
    let session = client.create_session(&request).await.unwrap();
    assert_eq!(session.session_id, "sess_1");
    assert_eq!(session.token, "tok_1");
    assert_eq!(session.sealed_secrets["A"], "SEALED_1");
    assert_eq!(session.proxy_url_plain, None);

    let received = served.await.unwrap();
    assert_eq!(received.line, "POST /v1/sessions HTTP/1.1");
    assert_eq!(
        received.header("authorization"),
        Some(&*format!("Bearer {API_KEY}"))
    );
    assert_eq!(received.header("content-type"), Some("application/json"));
    assert_eq!(received.header("idempotency-key"), None);
    assert!(
        received
            .header("user-agent")
            .unwrap()
            .starts_with("oshu-vault-sdk-rust/")
    );
    assert_eq!(
        received.json(),
        json!({ "secrets": { "A": { "value": "value-of-a", "hosts": ["h"] } } })
    );
}

#[tokio::test]
async fn a_repeated_creation_names_the_first_session() {
    let body = r#"{"code":"already_created","title":"Made before","session_id":"sess_1"}"#;
    let (client, served) = serve(answer(409, "", body)).await;
    let error = client
        .create_session_once(&CreateSession::new(), "deploy-42")
        .await
        .expect_err("409");
    assert_eq!(
        served.await.unwrap().header("idempotency-key"),
        Some("deploy-42")
    );
    let Error::Conflict(problem) = error else {
        panic!("another kind: {error:?}")
    };
    assert_eq!(problem.code, "already_created");
    assert_eq!(problem.session_id.as_deref(), Some("sess_1"));

    let error = client
        .create_session_once(&CreateSession::new(), "a\r\nb")
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::InvalidArgument {
                name: "idempotency_key",
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_session_is_read_by_its_path() {
    let (client, served) = serve(answer(200, "", &session().to_string())).await;
    let session = client.get_session("sess_1").await.unwrap();
    assert_eq!(session.counter("requests"), Some(3));
    assert_eq!(session.secrets[0].name, "A");
    assert_eq!(
        served.await.unwrap().line,
        "GET /v1/sessions/sess_1 HTTP/1.1"
    );
}

#[tokio::test]
async fn a_list_is_asked_for_by_page() {
    let none = || ListSessions::default();
    let both = || ListSessions {
        limit: Some(2),
        cursor: Some("a&b=c".to_owned()),
    };
    for (options, next_cursor, line) in [
        (none(), Value::Null, "GET /v1/sessions HTTP/1.1"),
        (
            both(),
            json!("next"),
            "GET /v1/sessions?limit=2&cursor=a%26b%3Dc HTTP/1.1",
        ),
    ] {
        let body = json!({ "sessions": [session()], "next_cursor": next_cursor });
        let (client, served) = serve(answer(200, "", &body.to_string())).await;
        let page = client.list_sessions(options).await.unwrap();
        assert_eq!(page.sessions.len(), 1);
        assert_eq!(page.next_cursor.as_deref(), next_cursor.as_str());
        assert_eq!(served.await.unwrap().line, line);
    }
}

#[tokio::test]
async fn a_change_is_a_merge_patch() {
    let mut body = session();
    body["sealed_secrets"] = json!({ "NEW": "SEALED_2" });
    let (client, served) = serve(answer(200, "", &body.to_string())).await;
    let patch = UpdateSession::new()
        .secret("NEW", "new-value")
        .reset("allowed_egress");
    let session = client.update_session("sess_1", &patch).await.unwrap();
    assert_eq!(session.sealed_secrets["NEW"], "SEALED_2");
    let received = served.await.unwrap();
    assert_eq!(received.line, "PATCH /v1/sessions/sess_1 HTTP/1.1");
    assert_eq!(
        received.header("content-type"),
        Some("application/merge-patch+json")
    );
    assert_eq!(
        received.json(),
        json!({ "secrets": { "NEW": "new-value" }, "allowed_egress": null })
    );
}

#[tokio::test]
async fn a_deletion_succeeds_also_where_nothing_is_left() {
    for (status, deleted) in [(204, true), (404, true), (401, false), (503, false)] {
        let (client, served) = serve(answer(status, "", "")).await;
        assert_eq!(
            client.delete_session("sess_1").await.is_ok(),
            deleted,
            "{status}"
        );
        assert_eq!(
            served.await.unwrap().line,
            "DELETE /v1/sessions/sess_1 HTTP/1.1"
        );
    }
}

#[tokio::test]
async fn the_ca_is_asked_for_without_the_key() {
    let pem = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    let (client, served) = serve(answer(200, "", pem)).await;
    assert_eq!(client.ca_pem().await.unwrap(), pem);
    let received = served.await.unwrap();
    assert_eq!(received.line, "GET /v1/ca.pem HTTP/1.1");
    assert_eq!(received.header("authorization"), None);
}

#[tokio::test]
async fn an_answer_of_something_else_is_not_taken_nor_quoted() {
    for body in [
        "<html>CANARY</html>",
        r#"{"token":["CANARY"]}"#,
        r#""CANARY""#,
        "",
    ] {
        for call in ["create", "get", "list", "update", "ca"] {
            let (client, served) = serve(answer(200, "", body)).await;
            let error = match call {
                "create" => client
                    .create_session(&CreateSession::new())
                    .await
                    .unwrap_err(),
                "get" => client.get_session("sess_1").await.unwrap_err(),
                "list" => client
                    .list_sessions(ListSessions::default())
                    .await
                    .unwrap_err(),
                "update" => client
                    .update_session("sess_1", &UpdateSession::new())
                    .await
                    .unwrap_err(),
                _ => client.ca_pem().await.unwrap_err(),
            };
            served.await.unwrap();
            assert!(
                matches!(error, Error::InvalidAnswer { status: 200 }),
                "{call}: {error:?}"
            );
            assert!(!format!("{error} {error:?}").contains("CANARY"));
        }
    }
}

#[tokio::test]
async fn a_refusal_keeps_what_helps_and_repeats_nothing() {
    let body = json!({
        "code": "invalid_fields",
        "detail": format!("sent {API_KEY} and CANARY-secret and CANARY-second"),
        "errors": [{ "field": "secrets.A", "code": "c", "message": "CANARY-secret" }],
    });
    let headers = "retry-after: 7\r\nx-request-id: req_1\r\n";
    let (client, _) = serve(answer(429, headers, &body.to_string())).await;
    let request = CreateSession::new()
        .secret("A", "CANARY-secret")
        .secret("B", SecretSpec::new("CANARY-second"));
    let error = client.create_session(&request).await.expect_err("429");
    let shown = format!("{error} {error:?} {error:#?}");
    assert!(!shown.contains("CANARY"), "{shown}");
    let Error::RateLimited(problem) = error else {
        panic!("another kind: {error:?}")
    };
    assert_eq!(problem.retry_after, Some(Duration::from_secs(7)));
    assert_eq!(problem.request_id.as_deref(), Some("req_1"));
    assert_eq!(problem.field_errors[0].field, "secrets.A");
    assert_eq!(
        problem.summary,
        "sent [redacted] and [redacted] and [redacted]"
    );

    let (client, _) = serve(answer(500, "", &body.to_string())).await;
    let patch = UpdateSession::new()
        .secret("A", "CANARY-secret")
        .secret("B", "CANARY-second");
    let error = client
        .update_session("sess_1", &patch)
        .await
        .expect_err("500");
    assert!(!format!("{error} {error:?}").contains("CANARY"), "{error}");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let location = format!("location: http://{}/\r\n", elsewhere.local_addr().unwrap());
    for status in [301, 302, 303, 307, 308] {
        let (client, _) = serve(answer(status, &location, "")).await;
        let error = client
            .create_session(&CreateSession::new())
            .await
            .expect_err("redirect");
        assert!(matches!(error, Error::Refused(_)), "{error:?}");
        assert_eq!(error.status(), Some(status));
    }
    let reached = tokio::time::timeout(Duration::ZERO, elsewhere.accept()).await;
    assert!(reached.is_err(), "the other server was asked");
}

#[tokio::test]
async fn no_answer_is_told_by_its_kind() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = format!("http://{}", listener.local_addr().unwrap());
    let timeout = Duration::from_millis(50);
    let client = Client::builder(&base_url, API_KEY)
        .timeout(timeout)
        .build()
        .unwrap();
    let error = client.get_session("sess_1").await.expect_err("silence");
    assert!(matches!(error, Error::Timeout), "{error:?}");

    drop(listener);
    let error = client
        .get_session("sess_1")
        .await
        .expect_err("nobody listens");
    assert!(matches!(error, Error::Connection(_)), "{error:?}");
    assert!(!format!("{error:?}").contains("CANARY"));

    let cut = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{".to_owned();
    let (client, _) = serve(cut).await;
    let error = client
        .get_session("sess_1")
        .await
        .expect_err("half an answer");
    assert!(matches!(error, Error::Connection(_)), "{error:?}");
}

/// A TLS server for 127.0.0.1 and the PEM of the CA that vouches for it.
async fn serve_tls(answer: String) -> (String, String, JoinHandle<Option<Received>>) {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let ca = rcgen::CertifiedIssuer::self_signed(params, ca_key).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])
        .unwrap()
        .signed_by(&key, &ca)
        .unwrap();

    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = format!("https://{}", listener.local_addr().unwrap());
    let served = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await.ok()?;
        Some(exchange(&mut stream, &answer).await)
    });
    (base_url, ca.pem(), served)
}

#[tokio::test]
async fn a_private_ca_is_trusted_only_when_given() {
    let (base_url, ca_pem, served) = serve_tls(created()).await;
    let client = Client::builder(base_url, API_KEY)
        .ca_pem(ca_pem)
        .build()
        .unwrap();
    client.create_session(&CreateSession::new()).await.unwrap();
    assert_eq!(
        served.await.unwrap().unwrap().line,
        "POST /v1/sessions HTTP/1.1"
    );

    let (_, other_ca, _) = serve_tls(created()).await;
    let (base_url, _, served) = serve_tls(created()).await;
    let client = Client::builder(base_url, API_KEY)
        .ca_pem(other_ca)
        .build()
        .unwrap();
    let error = client
        .create_session(&CreateSession::new())
        .await
        .expect_err("an unknown CA");
    assert!(matches!(error, Error::Connection(_)), "{error:?}");
    assert!(
        served.await.unwrap().is_none(),
        "a request went to an unverified server"
    );
}
