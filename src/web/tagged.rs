//! Why a call of `/api` outside of the gateway failed: an error, and details with a tag.
//!
//! The texts are fixed; what a caller or another service said never stands in one, and a cause goes
//! to the log only. Called by the routes of `/api`.

use std::error::Error as StdError;

use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use serde_json::json;

use crate::id::RequestId;

use super::REQUEST_ID;

/// A typed reason why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum TaggedFailure {
    /// Nothing new is recorded at present, so that nothing new is done.
    #[error("the audit sink takes no records at present: try again later")]
    AuditFull,
    /// The request is malformed, in this way.
    #[error("{0}")]
    BadRequest(&'static str),
    /// The route has other methods: these.
    #[error("the method is not allowed here")]
    MethodNotAllowed(&'static str),
    /// There is no such route, or it is not set up.
    #[error("there is nothing here by this name")]
    NotFound,
    /// Through the proxy only the gateway is served at our own address.
    #[error("through the proxy only the gateway is served here")]
    OwnAddress,
    /// What is asked for or answered is a credential, and the connection is in the clear.
    #[error("credentials are taken and given over TLS only: use https")]
    TlsRequired,
    /// The body did not arrive whole and in time.
    #[error("the body did not arrive")]
    Slow,
    /// The body is longer than the limit.
    #[error("the body is too long")]
    TooLarge,
    /// The address asks too fast; the next is taken after so many seconds.
    #[error("too many calls came from this address: try again later")]
    TooFast(u64),
    /// What was asked for could not be kept: it may be sent again.
    #[error("the change could not be stored: try again later")]
    Unstored(#[source] Box<dyn StdError + Send + Sync>),
    /// The service behind the route cannot be reached, or answered what is no answer.
    #[error("the service behind this route cannot be reached: try again later")]
    Upstream(#[source] Box<dyn StdError + Send + Sync>),
}

impl TaggedFailure {
    /// Returns the stable code, for the audit record.
    pub fn code(&self) -> &'static str {
        match self {
            Self::AuditFull => "audit_full",
            Self::BadRequest(_) => "bad_request",
            Self::MethodNotAllowed(_) => "method_not_allowed",
            Self::NotFound => "not_found",
            Self::OwnAddress => "own_address",
            Self::TlsRequired => "tls_required",
            Self::Slow => "body_timeout",
            Self::TooLarge => "body_too_large",
            Self::TooFast(_) => "rate_limit",
            Self::Unstored(_) => "store_unavailable",
            Self::Upstream(_) => "service_unreachable",
        }
    }

    /// Returns the status, for the audit record.
    pub fn status(&self) -> u16 {
        self.kind().0.as_u16()
    }

    /// Tells whether it is no decision of ours: a service or we ourselves failed.
    pub fn is_fault(&self) -> bool {
        self.kind().0.is_server_error()
    }

    /// Returns the status, the error and the tag.
    fn kind(&self) -> (StatusCode, &'static str, &'static str) {
        use StatusCode as S;
        match self {
            Self::BadRequest(_) => (S::BAD_REQUEST, "bad request", "BadRequest"),
            Self::MethodNotAllowed(_) => (
                S::METHOD_NOT_ALLOWED,
                "method not allowed",
                "MethodNotAllowed",
            ),
            Self::NotFound => (S::NOT_FOUND, "not found", "NotFound"),
            Self::OwnAddress => (S::FORBIDDEN, "forbidden", "Forbidden"),
            Self::TlsRequired => (S::FORBIDDEN, "tls required", "TlsRequired"),
            Self::Slow => (S::REQUEST_TIMEOUT, "request timeout", "RequestTimeout"),
            Self::TooLarge => (S::PAYLOAD_TOO_LARGE, "payload too large", "PayloadTooLarge"),
            Self::TooFast(_) => (S::TOO_MANY_REQUESTS, "too many requests", "TooManyRequests"),
            Self::AuditFull | Self::Unstored(_) => {
                (S::SERVICE_UNAVAILABLE, "unavailable", "Unavailable")
            }
            Self::Upstream(_) => (S::BAD_GATEWAY, "bad gateway", "BadGateway"),
        }
    }
}

impl IntoResponse for TaggedFailure {
    fn into_response(self) -> Response {
        let (status, error, tag) = self.kind();
        let id = RequestId::generate();
        if status.is_server_error() {
            tracing::error!(request_id = %id, tag, error = super::causes(&self), "api call failed");
        } else {
            tracing::debug!(request_id = %id, tag, "api call refused");
        }
        let body = json!({
            "error": error,
            "details": { "_tag": tag, "message": self.to_string() },
        });
        let mut response = (status, body.to_string()).into_response();
        let headers = response.headers_mut();
        let json = HeaderValue::from_static("application/json");
        headers.insert(CONTENT_TYPE, json);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Ok(id) = HeaderValue::from_str(id.as_str()) {
            headers.insert(REQUEST_ID, id);
        }
        match self {
            Self::MethodNotAllowed(allow) => {
                headers.insert(ALLOW, HeaderValue::from_static(allow));
            }
            Self::TooFast(seconds) => {
                headers.insert(RETRY_AFTER, seconds.max(1).into());
            }
            Self::AuditFull | Self::Unstored(_) => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("5"));
            }
            _ => {}
        }
        response
    }
}
