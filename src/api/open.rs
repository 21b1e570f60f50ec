//! What the routes of `/api` beside the gateway share: their state, and bodies as they came.
//!
//! None of these routes takes a key of ours. What is not set up is not there. Called by the route
//! table.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{Extensions, HeaderValue, StatusCode};
use http_body_util::BodyExt as _;
use serde::Serialize;
use zeroize::Zeroizing;

use super::relay::Relay;
use super::sign_in::SignIn;
use super::vault::rfc3339;
use super::webhook::DELIVERIES;
use crate::audit::{Decision, Kind, Record, Sink};
use crate::host::HostPort;
use crate::payment::Webhook;
use crate::serve::Source;
use crate::shutdown::Drain;
use crate::web::{BodyRoom, Connection, RoomSize, TaggedFailure};

/// How long a body may take to arrive.
const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// What the routes of `/api` beside the gateway need.
#[derive(Clone)]
pub struct OpenState {
    audit: Sink,
    pub(super) webhook: Option<Arc<Webhook>>,
    /// For the bodies of deliveries, by the address that they come from.
    pub(super) deliveries: Arc<BodyRoom<Source>>,
    pub(super) relay: Option<Arc<Relay>>,
    pub(super) sign_in: Option<Arc<SignIn>>,
    pub(super) drain: Drain,
    danger_plaintext: bool,
}

impl OpenState {
    /// Starts with nothing set up.
    pub fn new(drain: Drain, audit: Sink) -> Self {
        Self {
            audit,
            webhook: None,
            deliveries: BodyRoom::new(DELIVERIES),
            relay: None,
            sign_in: None,
            drain,
            danger_plaintext: false,
        }
    }

    /// Passes credentials on in the clear from everywhere: right only behind something that ends TLS.
    #[must_use]
    pub fn with_danger_plaintext(mut self, allow: bool) -> Self {
        self.danger_plaintext = allow;
        if allow {
            // Everybody comes from one address there: no part for each.
            let all = RoomSize {
                part_bytes: DELIVERIES.all_bytes,
                ..DELIVERIES
            };
            self.deliveries = BodyRoom::new(all);
        }
        self
    }

    /// Lets a request through whose body or answer is a credential.
    ///
    /// # Errors
    /// [`TaggedFailure::TlsRequired`] where others can read along.
    pub(super) fn expect_private(&self, request: &Extensions) -> Result<(), TaggedFailure> {
        let connection = request.get::<Connection>();
        if self.danger_plaintext || connection.is_some_and(Connection::is_private) {
            return Ok(());
        }
        Err(TaggedFailure::TlsRequired)
    }

    /// Begins the record of a call that may be passed on to a service, and says whether there is room
    /// for it.
    pub(super) fn record(&self, request: &Request, service: &HostPort) -> (Record, Admitted) {
        let mut record = Record::begin(&self.audit, Kind::Exchange);
        record.request(request.method().as_str(), request.uri().path());
        record.target(service);
        if let Some(from) = request.extensions().get::<Connection>() {
            record.peer(from.peer);
        }
        let admitted = record.admit().map_err(|_full| TaggedFailure::AuditFull);
        (record, admitted)
    }

    /// Takes deliveries of Stripe's.
    #[must_use]
    pub fn with_webhook(mut self, webhook: Option<Arc<Webhook>>) -> Self {
        self.webhook = webhook;
        self
    }

    /// Relays OAuth tokens.
    #[must_use]
    pub fn with_relay(mut self, relay: Option<Arc<Relay>>) -> Self {
        self.relay = relay;
        self
    }

    /// Lets people sign in with GitHub.
    #[must_use]
    pub fn with_sign_in(mut self, sign_in: Option<Arc<SignIn>>) -> Self {
        self.sign_in = sign_in;
        self
    }
}

impl fmt::Debug for OpenState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenState")
            .field("webhook", &self.webhook.is_some())
            .finish_non_exhaustive()
    }
}

/// Whether there is room for the record of what a call does.
pub(super) type Admitted = Result<(), TaggedFailure>;

/// Ends the record of a call with what was answered, and makes that answer.
pub(super) fn recorded(mut record: Record, served: Result<Response, TaggedFailure>) -> Response {
    let decision = match &served {
        Ok(_) => Decision::Allowed,
        Err(failure) if failure.is_fault() => Decision::Failed,
        Err(_) => Decision::Denied,
    };
    let reason = served.as_ref().map_or_else(TaggedFailure::code, |_| "ok");
    record.decision(decision, reason);
    let response = served.unwrap_or_else(IntoResponse::into_response);
    record.status(response.status().as_u16());
    response
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
    timestamp: String,
}

/// `GET /api/health`.
pub(super) async fn health() -> Response {
    let timestamp = rfc3339(SystemTime::now()).unwrap_or_default();
    let status = "ok";
    answer(StatusCode::OK, &Health { status, timestamp })
}

/// Answers with JSON that nobody keeps.
pub(super) fn answer<T: Serialize>(status: StatusCode, value: &T) -> Response {
    let body = serde_json::to_vec(value).unwrap_or_default();
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    let json = HeaderValue::from_static("application/json");
    headers.insert(CONTENT_TYPE, json);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Reads a body as it came, up to a bound. It may have a secret in it: it is overwritten.
///
/// # Errors
/// [`TaggedFailure::Slow`] and [`TaggedFailure::TooLarge`].
pub(super) async fn read(
    body: Body,
    limit_bytes: usize,
) -> Result<Zeroizing<Vec<u8>>, TaggedFailure> {
    let read = tokio::time::timeout(BODY_DEADLINE, collect(body, limit_bytes)).await;
    read.map_err(|_elapsed| TaggedFailure::Slow)?
}

async fn collect(mut body: Body, limit_bytes: usize) -> Result<Zeroizing<Vec<u8>>, TaggedFailure> {
    let mut whole = Zeroizing::new(Vec::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_ended| TaggedFailure::Slow)?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if whole.len() + data.len() > limit_bytes {
            return Err(TaggedFailure::TooLarge);
        }
        if whole.len() + data.len() > whole.capacity() {
            // A vector that grows by itself would leave its old memory as it is.
            let room = (whole.len() + data.len()).max(2 * whole.len());
            let mut larger = Zeroizing::new(Vec::with_capacity(room));
            larger.extend_from_slice(&whole);
            whole = larger;
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole)
}
