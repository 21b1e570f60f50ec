//! What the HTTP faces share: who calls, what a body holds, and how a failure is told.
//!
//! [`wrap`] goes around a whole router: it names each request, refuses credentials that came in the
//! clear, and writes every failure as a problem document. Nothing here knows a session's fields.
//! Called by the surfaces for their routes, and by `app`, which says how a request came in.

mod auth;
mod envelope;
mod extract;
mod failure;
mod room;
mod tagged;

use std::error::Error;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde::Serialize;

use crate::id::RequestId;

pub use auth::{Admin, ApiKeys, Asked, Caller};
pub use envelope::ModelFailure;
pub use extract::{BODY_LIMIT_BYTES, Json, JsonBody, MergePatch, query};
pub use failure::Failure;
pub use room::{BodyError, BodyLimits, BodyRoom, HeldRoom, RoomSize};
pub use tagged::TaggedFailure;

/// The field that may carry an API key beside `Authorization`.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// The field in which every answer names its request.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// How a request came in. `app` puts one into the extensions of every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The address of the TCP client.
    pub peer: SocketAddr,
    /// The connection is TLS.
    pub tls: bool,
    /// The address of the listener that took the connection.
    pub listener: SocketAddr,
}

impl Connection {
    /// Tells whether nobody on a network can read along: TLS, or a listener on loopback.
    ///
    /// The listener counts and not the peer: one on all addresses is for others too, and whoever
    /// tries it from the same machine should see what they will see.
    pub fn is_private(&self) -> bool {
        self.tls || self.listener.ip().to_canonical().is_loopback()
    }
}

/// Wraps a router: request ids, `Cache-Control`, credentials in the clear, and failures.
///
/// With `danger_plaintext_management` a credential may come in the clear from anywhere, which is
/// right only where something in front ends TLS.
pub fn wrap(router: Router, danger_plaintext_management: bool) -> Router {
    router.layer(from_fn(move |request: Request, next: Next| {
        handle(request, next, danger_plaintext_management)
    }))
}

/// Answers with JSON.
///
/// # Errors
/// [`Failure::Internal`] where the value has no JSON form.
pub fn json<T: Serialize>(status: StatusCode, value: &T) -> Result<Response, Failure> {
    let body = serde_json::to_vec(value).map_err(|error| Failure::Internal(error.into()))?;
    let kind = HeaderValue::from_static("application/json");
    Ok((status, [(CONTENT_TYPE, kind)], body).into_response())
}

async fn handle(mut request: Request, next: Next, danger_plaintext_management: bool) -> Response {
    let (id, began) = (RequestId::generate(), Instant::now());
    let method = request.method().clone();
    // The route and not the path: a path is the caller's text.
    let route = request.extensions().get::<MatchedPath>().cloned();
    let private = request
        .extensions()
        .get::<Connection>()
        .is_some_and(Connection::is_private);
    let mut response =
        if carries_credential(request.headers()) && !private && !danger_plaintext_management {
            Failure::TlsRequired.into_response()
        } else {
            request.extensions_mut().insert(id.clone());
            next.run(request).await
        };
    if let Some(failure) = response.extensions_mut().remove::<Arc<Failure>>() {
        failure.write(&id, method == Method::HEAD, &mut response);
    }
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        headers.insert(REQUEST_ID, value);
    }
    headers
        .entry(CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    tracing::debug!(
        request_id = %id,
        method = %method,
        route = route.as_ref().map_or("", MatchedPath::as_str),
        status = response.status().as_u16(),
        duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        "api call answered"
    );
    response
}

fn carries_credential(headers: &HeaderMap) -> bool {
    headers.contains_key(AUTHORIZATION) || headers.contains_key(API_KEY)
}

/// Joins what lies under a failure into one line, for the log.
fn causes(failure: &dyn Error) -> String {
    let (mut line, mut cause) = (String::new(), failure.source());
    while let Some(error) = cause {
        let gap = if line.is_empty() { "" } else { ": " };
        // Writing into a text cannot fail.
        if write!(line, "{gap}{error}").is_err() {
            break;
        }
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tls_and_loopback_listeners_are_private() {
        let cases = [
            (false, "127.0.0.1:8080", true),
            (false, "127.8.8.8:8080", true),
            (false, "[::1]:8080", true),
            (false, "[::ffff:127.0.0.1]:8080", true),
            (false, "0.0.0.0:8080", false),
            (false, "[::]:8080", false),
            (false, "10.0.0.1:8080", false),
            (true, "10.0.0.1:8443", true),
        ];
        for (tls, listener, private) in cases {
            let (peer, listener) = ("127.0.0.1:5000".parse().unwrap(), listener.parse().unwrap());
            assert_eq!(
                Connection {
                    peer,
                    tls,
                    listener
                }
                .is_private(),
                private,
                "{listener}"
            );
        }
    }
}
