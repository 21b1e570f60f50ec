//! The routes, called as a service without sockets.
//!
//! What many tests need stands here: a service with two tenants, calls, and a secret that must
//! never come back. The tests stand beside it, by what they are about.

mod events;
mod fields;
mod patches;
mod sessions;
mod surroundings;
mod tenants;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower_service::Service;

use crate::api::{Addresses, ApiState, Certificates, router};
use crate::audit::Sink;
use crate::id::TenantId;
use crate::policy::{AddressRules, Catalogue, known_token_endpoints};
use crate::seal::Keyring;
use crate::secret::Fingerprint;
use crate::serve::Throttle;
use crate::session::{Options, Sessions};
use crate::shutdown::Drain;
use crate::store::Memory;
use crate::tenant::{Limits, Tenants};
use crate::web::{ApiKeys, Connection};

/// A secret that no answer may hold.
const CANARY: &str = "canary-secret-value-0123456789";
const ONE: &str = "key-of-one";
const TWO: &str = "key-of-two";
const ADMIN: &str = "key-of-the-operator";
/// How often an address may show a wrong key.
const FAILURES: usize = 50;

/// Header fields of a call.
type Fields<'a> = &'a [(&'a str, &'a str)];

/// A service with two tenants.
struct Api {
    router: Router,
    drain: Drain,
    sessions: Arc<Sessions>,
}

/// An answer, read to its end.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Returns the text of a header field.
    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// Returns the bad fields as `field code`.
    fn errors(&self) -> Vec<String> {
        let problem = self.json();
        let errors = problem["errors"].as_array().unwrap();
        let text = |error: &Value, name: &str| error[name].as_str().unwrap().to_owned();
        errors
            .iter()
            .map(|e| format!("{} {}", text(e, "field"), text(e, "code")))
            .collect()
    }

    /// Tells that this is a problem document with a status and a code.
    #[track_caller]
    fn is_problem(&self, status: u16, code: &str) {
        let problem = self.json();
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(problem["code"], code, "{self:?}");
        assert_eq!(problem["status"], status);
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(problem["request_id"], self.header("x-request-id"));
        assert_eq!(self.header("cache-control"), "no-store");
        assert!(!self.text.contains("canary"), "{self:?}");
    }
}

fn sessions() -> Arc<Sessions> {
    audited(Sink::discard())
}

fn audited(audit: Sink) -> Arc<Sessions> {
    let options = Options {
        catalogue: Arc::new(Catalogue::builtin()),
        token_endpoints: known_token_endpoints(),
        unscoped_secrets: false,
        any_port: false,
    };
    let sessions = Sessions::new(
        Arc::new(Memory::new()),
        Keyring::generate(),
        options,
        Arc::new(AddressRules::new(Vec::new(), false)),
        audit,
    );
    let key = |key: &str| Fingerprint::of(key.as_bytes());
    let tenants = Tenants::new(Arc::clone(sessions.records()), Limits::default(), 0)
        .with_key(&TenantId::new("one"), key(ONE))
        .with_key(&TenantId::new("two"), key(TWO));
    Arc::new(sessions.with_tenants(Arc::new(tenants)))
}

fn state(sessions: &Arc<Sessions>, admin: Option<&str>, drain: &Drain) -> ApiState {
    let keys = ApiKeys::new(Arc::clone(sessions.tenants()))
        .with_admin(admin.map(|key| Fingerprint::of(key.as_bytes())))
        .with_throttle(Arc::new(Throttle::new(FAILURES, Duration::from_mins(5))));
    let addresses = Addresses {
        tls: Some("vault.example:8443".to_owned()),
        plain: Some("vault.example:8080".to_owned()),
    };
    ApiState::new(
        Arc::clone(sessions),
        keys,
        Certificates::new(b"a root"),
        addresses,
        drain.clone(),
    )
}

/// How a request of these tests came in.
fn connection(tls: bool, listener: &str) -> Connection {
    let peer: SocketAddr = "127.0.0.1:50000".parse().unwrap();
    Connection {
        peer,
        tls,
        listener: listener.parse().unwrap(),
    }
}

impl Api {
    fn new() -> Self {
        Self::of(Some(ADMIN), router)
    }

    /// Makes a service with this key of the operator, and of these routes.
    fn of(admin: Option<&str>, routes: impl FnOnce(ApiState) -> Router) -> Self {
        Self::over(sessions(), admin, routes)
    }

    /// Makes a service over these sessions.
    fn over(
        sessions: Arc<Sessions>,
        admin: Option<&str>,
        routes: impl FnOnce(ApiState) -> Router,
    ) -> Self {
        let drain = Drain::new();
        Self {
            router: routes(state(&sessions, admin, &drain)),
            drain,
            sessions,
        }
    }

    async fn send(&self, mut request: Request) -> Answer {
        if request.extensions().get::<Connection>().is_none() {
            request
                .extensions_mut()
                .insert(connection(false, "127.0.0.1:8080"));
        }
        let response = self.router.clone().call(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Answer {
            status: parts.status,
            headers: parts.headers,
            text,
        }
    }

    /// Calls as a tenant, with a body of JSON unless it is null.
    async fn call(&self, key: &str, method: Method, path: &str, body: &Value) -> Answer {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.raw(key, method, path, &[], body).await
    }

    async fn raw(
        &self,
        key: &str,
        method: Method,
        path: &str,
        fields: Fields<'_>,
        body: impl Into<Body>,
    ) -> Answer {
        let mut request = http::Request::builder().method(method).uri(path);
        if !key.is_empty() {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        self.send(request.body(body.into()).unwrap()).await
    }

    async fn post(&self, body: &Value) -> Answer {
        self.call(ONE, Method::POST, "/v1/sessions", body).await
    }

    /// Creates a session and returns what was answered.
    async fn create(&self, body: &Value) -> Value {
        let answer = self.post(body).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.json()
    }

    /// Creates a session and returns its path.
    async fn session(&self, body: &Value) -> String {
        format!(
            "/v1/sessions/{}",
            self.create(body).await["session_id"].as_str().unwrap()
        )
    }

    async fn show(&self, path: &str) -> Value {
        let answer = self.call(ONE, Method::GET, path, &Value::Null).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    async fn patch(&self, path: &str, body: &Value) -> Answer {
        self.call(ONE, Method::PATCH, path, body).await
    }
}

/// A session with a well-known secret and one with hosts of its own.
fn two_secrets() -> Value {
    json!({
        "secrets": {
            "ANTHROPIC_API_KEY": CANARY,
            "OWN": {
                "value": CANARY,
                "hosts": ["api.example.com"],
                "inject": ["header:X-Key", "query"],
                "prefix": "own_",
            },
        },
        "allowed_egress": ["api.anthropic.com", "*.example.com"],
        "metadata": {"sandbox": "sb_1"},
    })
}
