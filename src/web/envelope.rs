//! Why a model call failed, told as the clients of the model provider expect it: one envelope.
//!
//! Those clients print the message of the envelope, and repeat a call unless they are told not to.
//! A text here is fixed or the operator's own; what a caller or the provider said never stands in
//! it, and a cause goes to the log only. Called by every route of the gateway.

use std::sync::Arc;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::json;

use crate::callout;
use crate::id::RequestId;
use crate::payment;

/// Tells a client of the model provider whether to repeat a call.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// When to try again what failed for a reason that passes.
const WAIT: Duration = Duration::from_secs(5);
/// When to try again where another process serves already: zero is no number that clients take.
const AT_ONCE: Duration = Duration::from_secs(1);

/// A typed reason why a model call failed here.
#[derive(Debug, thiserror::Error)]
pub enum ModelFailure {
    /// Nothing new is recorded at present, so that nothing new is done.
    #[error("the audit sink takes no records at present: try again later")]
    AuditFull,
    /// The request is malformed, in this way.
    #[error("{0}")]
    BadRequest(&'static str),
    /// The account is paid and its monthly budget leaves too little for the request.
    #[error("the account's monthly budget is used up: ask the operator of the gateway for more")]
    BudgetUsed,
    /// Another process serves by now, and knows what holds: a new connection leads to it.
    #[error("the server was replaced: try again over a new connection")]
    HandedOver,
    /// The route has other methods: these.
    #[error("the method is not allowed here")]
    MethodNotAllowed(&'static str),
    /// The gateway forwards no such path.
    #[error("the gateway forwards no such path")]
    NotFound,
    /// Nobody knows whether the account is paid, or what it used.
    #[error("nobody can tell at present whether the account is paid: try again later")]
    PaymentUnknown(#[source] payment::Error),
    /// The model provider cannot be reached, or answered what is no answer.
    #[error("the model provider cannot be reached: try again later")]
    Provider(#[source] callout::Error),
    /// The model provider answered with a status that is none for a caller.
    #[error("the model provider gave no answer that can be passed on")]
    ProviderAnswer(u16),
    /// The model provider did not answer in time.
    #[error("the model provider did not answer in time")]
    ProviderLate,
    /// The model provider refused the operator's own credential, with this status.
    #[error(
        "the model provider refused the gateway's own credential: the operator of the gateway \
         has to look at it"
    )]
    ProviderRefused(u16),
    /// The body did not arrive whole and in time.
    #[error("the body did not arrive")]
    Slow,
    /// A credential came in the clear, over a network.
    #[error("credentials are taken over TLS or on a loopback listener only")]
    TlsRequired,
    /// Nobody knows what the request may use, and another such one of the account is under way.
    #[error(
        "one request at a time may have the model provider work by itself where tokens are counted: \
         try again when the other has ended"
    )]
    OneAtATime,
    /// The bodies of the account, or of all, take as much memory as they may.
    #[error("too much is being sent at once: try again")]
    NoRoom,
    /// The account has as many connections as it may.
    #[error("the account has too many connections: close some")]
    TooManyConnections,
    /// The account's requests come too fast; the next is taken after this time.
    #[error("the account's requests come too fast")]
    TooFast(Duration),
    /// What the call uses cannot be counted, and the account has so much and no more.
    #[error(
        "what this path uses cannot be counted: it is for paid accounts without a monthly budget"
    )]
    Uncounted,
    /// The body is longer than the limit.
    #[error("the body has more than 32 MiB")]
    TooLarge,
    /// Too many wrong credentials came from the address; it is to wait so long.
    #[error("too many wrong credentials came from this address: a right one is always taken")]
    TooManyAttempts(Duration),
    /// No workload JWT, a wrong one, or two different ones: one answer for all. Claude Code takes a
    /// text that names the field `x-api-key` for its own login, and hides it.
    #[error("a workload JWT that is right and has not expired is needed, as Bearer or as API key")]
    Unauthenticated,
    /// The account is not paid; where that is done, if the operator says so.
    #[error("{}", unpaid(.0.as_deref()))]
    Unpaid(Option<Arc<str>>),
}

fn unpaid(url: Option<&str>) -> String {
    match url {
        Some(url) => format!("the account is not paid: see {url}"),
        None => "the account is not paid: ask the operator of the gateway".to_owned(),
    }
}

impl ModelFailure {
    /// Returns the status, the type of the envelope, and our own stable code.
    fn kind(&self) -> (StatusCode, &'static str, &'static str) {
        const INVALID: &str = "invalid_request_error";
        const LIMIT: &str = "rate_limit_error";
        const API: &str = "api_error";
        use StatusCode as S;
        match self {
            Self::AuditFull => (S::SERVICE_UNAVAILABLE, API, "audit_full"),
            Self::BadRequest(_) => (S::BAD_REQUEST, INVALID, "bad_request"),
            Self::BudgetUsed => (S::TOO_MANY_REQUESTS, LIMIT, "budget_used"),
            Self::HandedOver => (S::SERVICE_UNAVAILABLE, API, "handed_over"),
            Self::MethodNotAllowed(_) => (S::METHOD_NOT_ALLOWED, INVALID, "method_not_allowed"),
            Self::NotFound => (S::NOT_FOUND, "not_found_error", "not_found"),
            Self::PaymentUnknown(_) => (S::SERVICE_UNAVAILABLE, API, "payment_unknown"),
            Self::Provider(_) => (S::BAD_GATEWAY, API, "provider_unreachable"),
            Self::ProviderAnswer(_) => (S::BAD_GATEWAY, API, "provider_answer"),
            Self::ProviderLate => (S::GATEWAY_TIMEOUT, "timeout_error", "provider_late"),
            Self::ProviderRefused(_) => (S::BAD_GATEWAY, API, "provider_refused"),
            Self::Slow => (S::REQUEST_TIMEOUT, INVALID, "body_timeout"),
            Self::TlsRequired => (S::FORBIDDEN, "permission_error", "tls_required"),
            Self::OneAtATime => (S::TOO_MANY_REQUESTS, LIMIT, "one_at_a_time"),
            Self::NoRoom => (S::TOO_MANY_REQUESTS, LIMIT, "too_much_at_once"),
            Self::TooManyConnections => (S::TOO_MANY_REQUESTS, LIMIT, "account_connections"),
            Self::TooFast(_) => (S::TOO_MANY_REQUESTS, LIMIT, "account_rate_limit"),
            Self::TooLarge => (S::PAYLOAD_TOO_LARGE, "request_too_large", "body_too_large"),
            Self::TooManyAttempts(_) => (S::TOO_MANY_REQUESTS, LIMIT, "too_many_auth_failures"),
            Self::Uncounted => (S::FORBIDDEN, "permission_error", "uncounted_path"),
            Self::Unauthenticated => (S::UNAUTHORIZED, "authentication_error", "unauthenticated"),
            Self::Unpaid(_) => (S::PAYMENT_REQUIRED, "payment_required", "payment_required"),
        }
    }

    /// Returns the stable code, for the audit record.
    pub fn code(&self) -> &'static str {
        self.kind().2
    }

    /// Returns the status, for the audit record.
    pub fn status(&self) -> u16 {
        self.kind().0.as_u16()
    }

    /// Tells whether it is no decision of ours: the provider or we ourselves failed.
    pub fn is_fault(&self) -> bool {
        self.kind().0.is_server_error()
    }

    /// Tells whether callers can bring it about as often as they like, so that a line of the log for
    /// each would be theirs to write.
    pub fn is_on_demand(&self) -> bool {
        matches!(self, Self::ProviderRefused(_) | Self::ProviderAnswer(_))
    }

    /// Writes the answer, and a cause into the log; into that which operators look at only where it is
    /// `loud`.
    pub fn answer(&self, id: &RequestId, loud: bool) -> Response {
        let (status, kind, code) = self.kind();
        match self {
            Self::ProviderRefused(told) | Self::ProviderAnswer(told) if loud => {
                tracing::error!(request_id = %id, code, provider_status = told, "model call failed");
            }
            Self::ProviderRefused(told) | Self::ProviderAnswer(told) => {
                tracing::debug!(request_id = %id, code, provider_status = told, "model call failed");
            }
            Self::PaymentUnknown(_) | Self::Provider(_) => {
                tracing::error!(request_id = %id, code, error = super::causes(self), "model call failed");
            }
            _ => tracing::debug!(request_id = %id, code, "model call refused"),
        }
        let body = json!({
            "type": "error",
            "error": { "type": kind, "message": self.to_string() },
            "details": { "code": code },
        });
        let mut response = (status, body.to_string()).into_response();
        let headers = response.headers_mut();
        let json = HeaderValue::from_static("application/json");
        headers.insert(CONTENT_TYPE, json);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(wait) = self.wait() {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, seconds.max(1).into());
        }
        match self {
            Self::MethodNotAllowed(allow) => {
                headers.insert(ALLOW, HeaderValue::from_static(allow));
            }
            Self::Unauthenticated => {
                let challenge = HeaderValue::from_static("Bearer realm=\"oshu-vault\"");
                headers.insert(WWW_AUTHENTICATE, challenge);
            }
            _ => {}
        }
        let should_retry = match self {
            Self::BudgetUsed | Self::Unauthenticated | Self::Uncounted | Self::Unpaid(_) => {
                Some("false")
            }
            Self::HandedOver => Some("true"),
            _ => None,
        };
        if let Some(told) = should_retry {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static(told));
        }
        response
    }

    /// Returns how long the caller is to wait.
    fn wait(&self) -> Option<Duration> {
        match self {
            Self::TooFast(wait) | Self::TooManyAttempts(wait) => Some(*wait),
            Self::HandedOver => Some(AT_ONCE),
            Self::AuditFull
            | Self::NoRoom
            | Self::OneAtATime
            | Self::PaymentUnknown(_)
            | Self::TooManyConnections => Some(WAIT),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_is_told_not_to_repeat_it() {
        let id = RequestId::generate();
        let url = Some("https://pay.example.com/".into());
        for (failure, status, retry) in [
            (ModelFailure::Unauthenticated, 401, Some("false")),
            (ModelFailure::Unpaid(url), 402, Some("false")),
            (ModelFailure::Unpaid(None), 402, Some("false")),
            (ModelFailure::BudgetUsed, 429, Some("false")),
            (ModelFailure::Uncounted, 403, Some("false")),
            (ModelFailure::TooFast(Duration::from_millis(1)), 429, None),
            (ModelFailure::ProviderRefused(401), 502, None),
            (ModelFailure::HandedOver, 503, Some("true")),
        ] {
            let answer = failure.answer(&id, true);
            assert_eq!(answer.status(), status, "{failure}");
            let told = answer.headers().get(SHOULD_RETRY);
            let told = told.map(|value| value.to_str().unwrap());
            assert_eq!(told, retry, "{failure}");
        }
        let unpaid = ModelFailure::Unpaid(Some("https://pay.example.com/".into()));
        assert!(unpaid.to_string().ends_with("see https://pay.example.com/"));
    }

    #[test]
    fn whoever_is_to_wait_is_told_how_long() {
        let id = RequestId::generate();
        let failure = ModelFailure::TooFast(Duration::from_millis(2001));
        assert_eq!(failure.answer(&id, true).headers()[RETRY_AFTER], "3");
        let failure = ModelFailure::PaymentUnknown(payment::Error::ProviderStatus(500));
        assert_eq!(failure.answer(&id, true).headers()[RETRY_AFTER], "5");
    }
}
