//! `POST /api/claude/v1/oauth/token`: OAuth tokens for pages whose browser may not ask for them.
//!
//! The body goes on as it came and the answer comes back as it is; nothing of either is logged,
//! recorded or kept. Of the fields two travel each way. Any page may read the answer, since no cookie or other
//! credential of a browser's counts here. Called by the route table.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::header::{
    ACCEPT, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use tokio::sync::Semaphore;

use super::open::{OpenState, read, recorded};
use super::paces::Paces;
use crate::callout::{self, Answer, Callout, Limits};
use crate::upstream::Upstream;
use crate::web::TaggedFailure;

/// The longest body, in bytes.
const BODY_LIMIT_BYTES: usize = 64 * 1024;
/// How long the endpoint has.
const DEADLINE: Duration = Duration::from_secs(30);
/// How many calls are under way at once, of all addresses together.
const AT_ONCE: usize = 64;
/// After how many seconds a call that found no place may come again.
const AGAIN_SECONDS: u64 = 2;

/// The way to the endpoint.
pub struct Relay {
    callout: Callout,
    paces: Paces,
    places: Semaphore,
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay")
            .field("target", self.callout.target())
            .finish_non_exhaustive()
    }
}

impl Relay {
    /// Takes the URL of the endpoint, and how many requests of one address a minute it passes on.
    ///
    /// # Errors
    /// [`callout::Error`] where the URL cannot be used.
    pub fn new(
        upstream: Arc<Upstream>,
        url: &str,
        per_minute: u32,
    ) -> Result<Self, callout::Error> {
        let limits = Limits {
            deadline: DEADLINE,
            ..Limits::default()
        };
        Ok(Self {
            callout: Callout::new(upstream, url, limits)?,
            paces: Paces::per_minute(per_minute),
            places: Semaphore::new(AT_ONCE),
        })
    }

    async fn pass(&self, request: Request) -> Result<Response, TaggedFailure> {
        let (parts, body) = request.into_parts();
        self.paces.take(&parts.extensions)?;
        let kind = one(&parts.headers, &CONTENT_TYPE)?.unwrap_or("application/json");
        let accept = one(&parts.headers, &ACCEPT)?.unwrap_or("application/json");
        let place = self.places.try_acquire();
        let _place = place.map_err(|_full| TaggedFailure::TooFast(AGAIN_SECONDS))?;
        let body = read(body, BODY_LIMIT_BYTES).await?;
        let asked = callout::Request {
            method: "POST",
            path: "",
            fields: &[("accept", accept.as_bytes())],
            body: Some((kind, &body)),
        };
        let answer = self.callout.call(&asked).await;
        let answer = answer.map_err(|error| TaggedFailure::Upstream(error.into()))?;
        if (300..=399).contains(&answer.status) {
            return Err(TaggedFailure::Upstream("it redirects".into()));
        }
        Ok(passed(answer))
    }
}

/// Serves the route.
pub(super) async fn token(State(state): State<OpenState>, request: Request) -> Response {
    let Some(relay) = &state.relay else {
        return TaggedFailure::NotFound.into_response();
    };
    let (record, admitted) = state.record(&request, relay.callout.target());
    let private = admitted.and_then(|()| match *request.method() {
        Method::POST => state.expect_private(request.extensions()),
        _ => Ok(()),
    });
    let served = match (private, request.method()) {
        (Err(failure), _) => Err(failure),
        (Ok(()), &Method::OPTIONS) => Ok(preflight()),
        (Ok(()), &Method::POST) => relay.pass(request).await,
        (Ok(()), _) => Err(TaggedFailure::MethodNotAllowed("POST,OPTIONS")),
    };
    let mut response = recorded(record, served);
    let any = HeaderValue::from_static("*");
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, any);
    response
}

/// Answers a browser that asks whether a page may ask.
fn preflight() -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (ACCESS_CONTROL_ALLOW_METHODS, "POST, OPTIONS"),
        (ACCESS_CONTROL_ALLOW_HEADERS, "content-type, accept"),
        (ACCESS_CONTROL_MAX_AGE, "600"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Makes the answer: its status, its body, and what says how to read it.
fn passed(answer: Answer) -> Response {
    let mut headers = HeaderMap::new();
    for name in [CONTENT_TYPE, RETRY_AFTER] {
        let value = answer.fields.first(name.as_str());
        if let Some(Ok(value)) = value.map(HeaderValue::from_bytes) {
            headers.insert(name, value);
        }
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_GATEWAY);
    (status, headers, answer.body).into_response()
}

/// Returns the value of a field, which is to stand in a head of ours.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, TaggedFailure> {
    let mut values = headers.get_all(name).iter();
    let Some(first) = values.next() else {
        return Ok(None);
    };
    let is_plain = |text: &&str| text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    let first = first.to_str().ok().filter(is_plain);
    let one = first.filter(|_| values.next().is_none());
    one.map(Some).ok_or(TaggedFailure::BadRequest(
        "content-type and accept: expect to stand at most once, in visible ASCII characters",
    ))
}
