//! What a call can end in.
//!
//! Texts come from the server's problem document (RFC 9457) after every value that the call sent in
//! confidence has been taken out. An answer that is not such a document is never quoted, and no
//! parser's message is passed on: it would quote the answer. Made by `client`.

use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::redact::Redactor;

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The API key is missing, wrong or not allowed to do this (401, 403).
    #[error("not allowed: {0}")]
    Authentication(Box<Problem>),
    /// The call contradicts what is there (409).
    #[error("conflict: {0}")]
    Conflict(Box<Problem>),
    /// No complete answer came.
    #[error("the server could not be reached")]
    Connection(#[source] reqwest::Error),
    /// The answer is not one of this API, for example a login page.
    #[error("the answer with status {status} is not one of this API")]
    InvalidAnswer {
        /// Its status.
        status: u16,
    },
    /// The caller gave something that cannot be sent.
    #[error("{name} must be {expected}")]
    InvalidArgument {
        /// Which argument.
        name: &'static str,
        /// What it has to be.
        expected: &'static str,
    },
    /// The session does not exist, has ended or belongs to another tenant (404).
    #[error("not found: {0}")]
    NotFound(Box<Problem>),
    /// Too many calls (429).
    #[error("too many calls: {0}")]
    RateLimited(Box<Problem>),
    /// The server refused in a way that has no kind of its own, a redirect for example.
    #[error("refused: {0}")]
    Refused(Box<Problem>),
    /// The server failed (5xx).
    #[error("server failure: {0}")]
    Server(Box<Problem>),
    /// The client could not be set up: the system's certificates could not be loaded, or those
    /// given to the builder are none that can be trusted.
    #[error("the client could not be set up")]
    Setup(#[source] reqwest::Error),
    /// No complete answer came in time.
    #[error("no complete answer in time")]
    Timeout,
    /// The request is malformed (400) or has bad fields (422).
    #[error("not valid: {0}")]
    Validation(Box<Problem>),
}

impl Error {
    /// Answers what the server said, where it said something.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Authentication(problem)
            | Self::Conflict(problem)
            | Self::NotFound(problem)
            | Self::RateLimited(problem)
            | Self::Refused(problem)
            | Self::Server(problem)
            | Self::Validation(problem) => Some(problem),
            Self::Connection(_)
            | Self::InvalidAnswer { .. }
            | Self::InvalidArgument { .. }
            | Self::Setup(_)
            | Self::Timeout => None,
        }
    }

    /// Answers the status of the answer, where there was one.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::InvalidAnswer { status } => Some(*status),
            other => other.problem().map(|problem| problem.status),
        }
    }

    /// Answers the stable name of the server's reason, such as `secret_unscoped`.
    pub fn code(&self) -> Option<&str> {
        self.problem().map(|problem| problem.code.as_str())
    }

    /// Answers one entry for each refused field; none where no field is at fault.
    pub fn field_errors(&self) -> &[FieldError] {
        self.problem().map_or(&[], |problem| &problem.field_errors)
    }

    /// Makes the error of a refused call; every text of the server passes the redactor.
    pub(crate) fn from_refusal(refusal: &Refusal<'_>, redactor: &Redactor<'_>) -> Self {
        let problem = Box::new(Problem::new(refusal, redactor));
        match refusal.status {
            400 | 422 => Self::Validation(problem),
            401 | 403 => Self::Authentication(problem),
            404 => Self::NotFound(problem),
            409 => Self::Conflict(problem),
            429 => Self::RateLimited(problem),
            500..=599 => Self::Server(problem),
            _ => Self::Refused(problem),
        }
    }

    /// Makes the error of a call that got no complete answer.
    pub(crate) fn from_transport(source: reqwest::Error) -> Self {
        if source.is_timeout() {
            Self::Timeout
        } else {
            Self::Connection(source.without_url())
        }
    }
}

/// What a refusal is made from.
pub(crate) struct Refusal<'a> {
    /// Status of the answer.
    pub(crate) status: u16,
    /// Its `x-request-id`.
    pub(crate) request_id: Option<&'a str>,
    /// Its `retry-after`.
    pub(crate) retry_after: Option<&'a str>,
    /// Its body.
    pub(crate) body: &'a [u8],
}

/// What the server said about a refused call.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// Status of the answer.
    pub status: u16,
    /// Stable name of the reason; `http_` and the status where the server gave none.
    pub code: String,
    /// The reason in words.
    pub summary: String,
    /// One entry for each refused field.
    pub field_errors: Vec<FieldError>,
    /// The session that an earlier call with the same idempotency key made.
    pub session_id: Option<String>,
    /// How long to wait before the next attempt; read from the seconds form of the header only.
    pub retry_after: Option<Duration>,
    /// The server's name for the request, for its operator.
    pub request_id: Option<String>,
}

/// One refused field of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FieldError {
    /// Path of the field, for example `secrets.GITHUB_TOKEN.hosts`.
    pub field: String,
    /// Stable name of the reason.
    pub code: String,
    /// The reason in words.
    pub message: String,
}

impl Problem {
    fn new(refusal: &Refusal<'_>, redactor: &Redactor<'_>) -> Self {
        // Each member may be missing or of any type: an answer that is odd in one member still tells
        // what the others say.
        let document: Map<String, Value> = serde_json::from_slice(refusal.body).unwrap_or_default();
        let text = |value: &Value| {
            value
                .as_str()
                .filter(|text| !text.is_empty())
                .map(|text| redactor.apply(text))
        };
        let field_error = |entry: &Value| {
            let member = |name: &str| entry.get(name).and_then(text);
            entry.is_object().then(|| FieldError {
                field: member("field").unwrap_or_default(),
                code: member("code").unwrap_or_else(|| "invalid".to_owned()),
                message: member("message").unwrap_or_else(|| "not valid".to_owned()),
            })
        };
        let member = |name: &str| document.get(name).and_then(text);
        let entries = document.get("errors").and_then(Value::as_array);
        Self {
            status: refusal.status,
            code: member("code").unwrap_or_else(|| format!("http_{}", refusal.status)),
            summary: member("detail")
                .or_else(|| member("title"))
                .unwrap_or_else(|| "the request was refused".to_owned()),
            field_errors: entries
                .into_iter()
                .flatten()
                .filter_map(field_error)
                .collect(),
            session_id: member("session_id"),
            retry_after: refusal
                .retry_after
                .and_then(|seconds| seconds.trim().parse::<u32>().ok())
                .map(|seconds| Duration::from_secs(seconds.into())),
            request_id: refusal
                .request_id
                .map(|id| redactor.apply(id))
                .or_else(|| member("request_id")),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (status {}, {})",
            self.summary, self.status, self.code
        )?;
        for FieldError { field, message, .. } in &self.field_errors {
            write!(f, "; {field}: {message}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, body: &str) -> Error {
        let refusal = Refusal {
            status,
            request_id: None,
            retry_after: None,
            body: body.as_bytes(),
        };
        Error::from_refusal(&refusal, &Redactor::new(["CANARY-value"]))
    }

    #[test]
    fn the_status_gives_the_kind() {
        for (status, kind) in [
            (307, "Refused"),
            (400, "Validation"),
            (401, "Authentication"),
            (402, "Refused"),
            (403, "Authentication"),
            (404, "NotFound"),
            (409, "Conflict"),
            (422, "Validation"),
            (429, "RateLimited"),
            (500, "Server"),
            (503, "Server"),
        ] {
            let error = refused(status, r#"{"code":"some_code","detail":"Some detail"}"#);
            assert!(
                format!("{error:?}").starts_with(kind),
                "{status}: {error:?}"
            );
            assert_eq!(error.status(), Some(status));
            assert_eq!(error.code(), Some("some_code"));
            let end = format!("Some detail (status {status}, some_code)");
            assert!(error.to_string().ends_with(&end), "{error}");
        }
    }

    #[test]
    fn every_bad_field_is_named() {
        let error = refused(
            422,
            r#"{"title":"Bad","code":"invalid_fields","errors":[
                {"field":"secrets.A","code":"secret_unscoped","message":"add hosts"}, 7,
                {"field":"ttl_seconds"}]}"#,
        );
        let named: Vec<_> = error
            .field_errors()
            .iter()
            .map(|each| (&*each.field, &*each.code))
            .collect();
        assert_eq!(
            named,
            [("secrets.A", "secret_unscoped"), ("ttl_seconds", "invalid")]
        );
        assert!(
            error
                .to_string()
                .contains("; secrets.A: add hosts; ttl_seconds: not valid")
        );
    }

    #[test]
    fn a_body_that_is_no_problem_document_is_not_quoted() {
        for body in [
            "<html>CANARY</html>",
            "",
            "[\"CANARY\"]",
            "null",
            "{\"code\":[\"CANARY\"]}",
        ] {
            let error = refused(502, body);
            assert_eq!(error.code(), Some("http_502"));
            assert!(
                !format!("{error} {error:?}").contains("CANARY"),
                "{error:?}"
            );
        }
    }

    #[test]
    fn every_text_of_the_server_is_redacted() {
        let echo = "<CANARY-value>";
        let body = format!(
            r#"{{"code":"{echo}","detail":"{echo}","session_id":"{echo}","request_id":"{echo}",
                "errors":[{{"field":"{echo}","code":"{echo}","message":"{echo}"}}]}}"#
        );
        let error = refused(422, &body);
        let shown = format!("{error} {error:?}");
        assert!(
            shown.contains("<[redacted]>") && !shown.contains("CANARY"),
            "{shown}"
        );
    }
}
