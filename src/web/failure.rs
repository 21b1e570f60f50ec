//! Why a call of the API failed, and how that is told: the one place with its status codes.
//!
//! A failure travels to the edge as a value and is written there once, as a problem document
//! (RFC 9457) with the request's id. Its text is fixed or names a field; a value from a body never
//! stands in it, and an internal cause goes to the log only. Called by every handler.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use serde_json::{Value, json};

use crate::id::{RequestId, SessionId};
use crate::payment;
use crate::session::{Error, FieldError};
use crate::tenant;

/// The most bad fields that one answer lists.
const ERRORS_LIMIT: usize = 100;
/// The longest path of a field that is told, in characters: names are the caller's own text.
const FIELD_LIMIT: usize = 256;

/// When to look again whether a tenant has room for a session: nobody knows when one ends.
const SESSIONS_WAIT: Duration = Duration::from_secs(5);
/// When to ask again for records as they come: nobody knows when a reader leaves.
const READERS_WAIT: Duration = Duration::from_secs(5);

/// A typed reason why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The idempotency key was used before; without an id the other call is still at work.
    #[error("a session was already created with this idempotency key")]
    AlreadyCreated(Option<SessionId>),
    /// Nothing new is recorded at present, so that nothing new is done.
    #[error("the audit sink takes no records at present: try again later")]
    AuditFull,
    /// The body is not JSON, at this line and column.
    #[error("the body is not JSON: line {0}, column {1}")]
    BadJson(usize, usize),
    /// A header field or a query parameter is malformed.
    #[error("a header field or query parameter is invalid")]
    BadRequest(Vec<FieldError>),
    /// The process is stopping.
    #[error("draining: nothing new is taken")]
    Draining,
    /// An object of the body has a key twice; this is its path.
    #[error("a key stands twice in one object of the body")]
    DuplicateKey(String),
    /// A bounded table is full.
    #[error("too many idempotency keys are in use: try again later")]
    Full,
    /// The body ended early; hardly anybody reads this answer.
    #[error("the body ended early")]
    Incomplete,
    /// Our own fault; the cause is for the log.
    #[error("something failed here, see the log for this request id")]
    Internal(#[source] Box<dyn StdError + Send + Sync>),
    /// Fields of the body are bad; every one is listed.
    #[error("fields of the request are invalid")]
    Invalid(Vec<FieldError>),
    /// The route has no such method.
    #[error("the method is not allowed here")]
    MethodNotAllowed,
    /// There is no such route, or the caller has no such thing.
    #[error("there is nothing here by this name")]
    NotFound,
    /// The body did not arrive in time.
    #[error("the body did not arrive in time")]
    Slow,
    /// The store takes no changes at present, or what it says is too old; the cause was logged when
    /// that began.
    #[error("the store cannot be used at present")]
    StoreDown(#[source] Error),
    /// The store did not say that it took the change.
    #[error("the store did not confirm this: a change may be made all the same. Try again later")]
    Store(#[source] Error),
    /// A credential came in the clear, over a network.
    #[error("credentials are taken over TLS or on a loopback listener only")]
    TlsRequired,
    /// The body is longer than the limit.
    #[error("the body has more than 1 MiB")]
    TooLarge,
    /// As many read along with the session as may.
    #[error("as many read along with this session as may")]
    TooManyReaders,
    /// Too many wrong keys came from the address; it is to wait so long.
    #[error("too many wrong API keys came from this address: a right one is always taken")]
    TooManyAttempts(Duration),
    /// No API key, a wrong one, or two different ones.
    #[error("an API key is needed: Authorization: Bearer KEY, or x-api-key: KEY")]
    Unauthenticated,
    /// What is asked for stands against what there is: a stable code, and why.
    #[error("{1}")]
    Conflict(&'static str, &'static str),
    /// The tenant's requests come too fast; the next is taken after this time.
    #[error("the tenant's requests come too fast: ask the operator for another rate")]
    TenantRate(Duration),
    /// The tenant has as many live sessions as it may.
    #[error(
        "the tenant has as many live sessions as it may: end some, or ask the operator for more"
    )]
    TenantSessions,
    /// An account, or what it used, cannot be read or could not be stored.
    #[error("the accounts cannot be read or changed at present: try again later")]
    Accounts(#[source] payment::Error),
    /// The body's content type or coding is not taken here.
    #[error("the body must be JSON, without a content coding")]
    UnsupportedMedia,
}

/// Another node changed the same thing in the same moment.
const SAME_MOMENT: Failure = Failure::Conflict(
    "conflict",
    "another change came in the same moment: read again, and try again",
);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Invalid(errors) => Self::Invalid(errors),
            Error::NotFound => Self::NotFound,
            // Its key was refused a moment later.
            Error::NoTenant => Self::Unauthenticated,
            Error::TenantSessions => Self::TenantSessions,
            Error::Conflict => SAME_MOMENT,
            // Nothing is captured for a caller of the API.
            Error::Store(_) | Error::Tenant(tenant::Error::Store(_)) => Self::Store(error),
            Error::Tenant(error) => error.into(),
            Error::CaptureLimit | Error::Keys(_) | Error::Unproven | Error::Unrotated => {
                Self::Internal(error.into())
            }
        }
    }
}

impl From<payment::Error> for Failure {
    fn from(error: payment::Error) -> Self {
        match error {
            payment::Error::Refused => Self::Conflict(
                "record_refused",
                "the account's record in the store is refused: see the log",
            ),
            payment::Error::Time => Self::Internal(error.into()),
            _ => Self::Accounts(error),
        }
    }
}

impl From<tenant::Error> for Failure {
    fn from(error: tenant::Error) -> Self {
        use tenant::Error as E;
        match error {
            E::Configured => Self::Conflict(
                "tenant_is_configured",
                "the tenant of the configured API key can be neither disabled nor deleted",
            ),
            E::Conflict => SAME_MOMENT,
            E::Exists => Self::Conflict("tenant_exists", "there is a tenant of this name"),
            E::KeyInUse => Self::Conflict("key_in_use", "the API key is in use"),
            E::KeyLimit => Self::Conflict("too_many_keys", "the tenant has as many keys as it may"),
            E::NotFound => Self::NotFound,
            E::Refused(_) => Self::Conflict(
                "record_refused",
                "the tenant's record in the store is refused: see the log",
            ),
            E::Store(_) => Self::Store(Error::Tenant(error)),
            E::TenantLimit => Self::Conflict(
                "too_many_tenants",
                "there are as many tenants as there may be",
            ),
        }
    }
}

impl Failure {
    /// Returns the status and the stable code.
    fn kind(&self) -> (StatusCode, &'static str) {
        match self {
            Self::AlreadyCreated(_) => (StatusCode::CONFLICT, "already_created"),
            Self::AuditFull => (StatusCode::SERVICE_UNAVAILABLE, "audit_full"),
            Self::BadJson(..) => (StatusCode::BAD_REQUEST, "bad_json"),
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, "bad_request"),
            Self::Conflict(code, _) => (StatusCode::CONFLICT, code),
            Self::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
            Self::DuplicateKey(_) => (StatusCode::BAD_REQUEST, "duplicate_key"),
            Self::Full => (StatusCode::SERVICE_UNAVAILABLE, "too_many_idempotency_keys"),
            Self::Incomplete => (StatusCode::BAD_REQUEST, "body_incomplete"),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
            Self::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid_fields"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            Self::Slow => (StatusCode::REQUEST_TIMEOUT, "body_timeout"),
            Self::Accounts(_) | Self::Store(_) | Self::StoreDown(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable")
            }
            Self::TenantRate(_) => (StatusCode::TOO_MANY_REQUESTS, "tenant_rate_limit"),
            Self::TenantSessions => (StatusCode::TOO_MANY_REQUESTS, "tenant_session_limit"),
            Self::TlsRequired => (StatusCode::FORBIDDEN, "tls_required"),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::TooManyAttempts(_) => (StatusCode::TOO_MANY_REQUESTS, "too_many_auth_failures"),
            Self::TooManyReaders => (StatusCode::TOO_MANY_REQUESTS, "too_many_readers"),
            Self::Unauthenticated => (StatusCode::UNAUTHORIZED, "unauthenticated"),
            Self::UnsupportedMedia => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type")
            }
        }
    }

    /// Writes the problem document into the answer, and an internal cause into the log.
    pub(super) fn write(&self, id: &RequestId, head: bool, response: &mut Response) {
        let (status, code) = self.kind();
        match self {
            Self::Accounts(_) | Self::Internal(_) | Self::Store(_) => {
                tracing::error!(request_id = %id, code, error = super::causes(self), "api call failed");
            }
            _ => tracing::debug!(request_id = %id, code, "api call refused"),
        }
        let mut problem = json!({
            "type": "about:blank",
            "title": status.canonical_reason().unwrap_or_default(),
            "status": status.as_u16(),
            "code": code,
            "detail": self.to_string(),
            "request_id": id.as_str(),
            "errors": self.errors(),
        });
        if let (Self::AlreadyCreated(Some(session)), Some(problem)) =
            (self, problem.as_object_mut())
        {
            problem.insert("session_id".to_owned(), session.as_str().into());
        }
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        match status {
            StatusCode::UNAUTHORIZED => {
                let challenge = HeaderValue::from_static("Bearer realm=\"oshu-vault\"");
                headers.insert(WWW_AUTHENTICATE, challenge);
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("5"));
            }
            _ => {}
        }
        if let Some(wait) = self.wait() {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, seconds.max(1).into());
        }
        if !head {
            *response.body_mut() = Body::from(problem.to_string());
        }
    }

    /// Returns how long the caller is to wait.
    fn wait(&self) -> Option<Duration> {
        match self {
            Self::TenantRate(wait) | Self::TooManyAttempts(wait) => Some(*wait),
            Self::TenantSessions => Some(SESSIONS_WAIT),
            Self::TooManyReaders => Some(READERS_WAIT),
            _ => None,
        }
    }

    fn errors(&self) -> Vec<Value> {
        let shown = |error: &FieldError| {
            let field: String = error.field.chars().take(FIELD_LIMIT).collect();
            let message: String = error.message.chars().take(2 * FIELD_LIMIT).collect();
            json!({ "field": field, "code": error.code, "message": message })
        };
        match self {
            Self::BadRequest(errors) | Self::Invalid(errors) => {
                errors.iter().take(ERRORS_LIMIT).map(shown).collect()
            }
            Self::DuplicateKey(field) => {
                let message = "stands twice in one object";
                vec![shown(&FieldError::new(
                    field.as_str(),
                    "duplicate_key",
                    message,
                ))]
            }
            _ => Vec::new(),
        }
    }
}

/// Carries the failure to the edge, which writes it.
impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = self.kind().0.into_response();
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn written(failure: Failure) -> (Response<()>, Value) {
        let mut response = failure.into_response();
        let failure = response.extensions_mut().remove::<Arc<Failure>>().unwrap();
        failure.write(&RequestId::generate(), false, &mut response);
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        (
            Response::from_parts(parts, ()),
            serde_json::from_slice(&bytes).unwrap(),
        )
    }

    #[tokio::test]
    async fn a_failure_has_its_status_and_code_and_headers() {
        let cases = [
            (Failure::AlreadyCreated(None), 409, "already_created", None),
            (Failure::BadJson(1, 2), 400, "bad_json", None),
            (SAME_MOMENT, 409, "conflict", None),
            (Failure::Draining, 503, "draining", Some(RETRY_AFTER)),
            (
                Failure::Full,
                503,
                "too_many_idempotency_keys",
                Some(RETRY_AFTER),
            ),
            (Failure::MethodNotAllowed, 405, "method_not_allowed", None),
            (Failure::NotFound, 404, "not_found", None),
            (Failure::TlsRequired, 403, "tls_required", None),
            (
                Failure::TenantSessions,
                429,
                "tenant_session_limit",
                Some(RETRY_AFTER),
            ),
            (
                Failure::TenantRate(Duration::from_millis(1)),
                429,
                "tenant_rate_limit",
                Some(RETRY_AFTER),
            ),
            (tenant::Error::Exists.into(), 409, "tenant_exists", None),
            (
                Failure::Unauthenticated,
                401,
                "unauthenticated",
                Some(WWW_AUTHENTICATE),
            ),
        ];
        for (failure, status, code, header) in cases {
            let (response, problem) = written(failure).await;
            assert_eq!(response.status(), status, "{code}");
            assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
            assert_eq!(problem["status"], status);
            assert_eq!(problem["code"], code);
            assert_eq!(problem["type"], "about:blank");
            assert!(problem["request_id"].as_str().unwrap().starts_with("req_"));
            assert_eq!(problem["errors"], json!([]), "{code}");
            if let Some(name) = header {
                assert!(response.headers().contains_key(name), "{code}");
            }
        }
    }

    #[tokio::test]
    async fn an_internal_cause_stays_inside() {
        let inner = std::io::Error::other("canary-cause");
        let (response, problem) = written(Failure::Internal(inner.into())).await;
        assert_eq!(response.status(), 500);
        assert!(!problem.to_string().contains("canary"), "{problem}");
        let failure = Failure::Internal(std::io::Error::other("canary-cause").into());
        assert_eq!(crate::web::causes(&failure), "canary-cause");
    }

    #[tokio::test]
    async fn lists_and_names_are_bounded() {
        let long = FieldError::new("x".repeat(10_000), "unknown_field", "y".repeat(10_000));
        let (_, problem) = written(Failure::Invalid(vec![long; 1000])).await;
        let errors = problem["errors"].as_array().unwrap();
        assert_eq!(errors.len(), ERRORS_LIMIT);
        assert_eq!(errors[0]["field"].as_str().unwrap().len(), FIELD_LIMIT);
        assert_eq!(
            errors[0]["message"].as_str().unwrap().len(),
            2 * FIELD_LIMIT
        );
    }
}
