//! Refusals: why the proxy itself answers, and with what.
//!
//! The one mapping from reasons to status codes of the data plane. A refusal is a JSON body that
//! an agent can read and act on, and a `Proxy-Status` field (RFC 9209). It never repeats a value
//! from the request, and never the text of an inner error.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use crate::audit::{Decision, Full};
use crate::policy::{Denial, Refused};
use crate::serve::Crowded;
use crate::session::{self, Limited};
use crate::swap::CaptureError;
use crate::upstream::{self, ProxyError};
use crate::wire::{Connection, Error as WireError, FlowError};

/// When it is worth to try again after the audit sink was full, in seconds.
const AUDIT_RETRY_SECONDS: u64 = 5;

/// Why the proxy answers by itself.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) code: &'static str,
    /// The error type of RFC 9209 §2.3.
    proxy_error: &'static str,
    message: &'static str,
    /// What to ask the operator for.
    ask: Option<String>,
    decision: Decision,
    /// Seconds after which it is worth to try again.
    retry_after: Option<u64>,
    /// It is the connection that is refused.
    pub(super) closes: bool,
}

impl Refusal {
    /// Refuses what the client sent.
    pub(super) fn client(status: u16, code: &'static str, message: &'static str) -> Self {
        let decision = Decision::Denied;
        Self {
            status,
            code,
            proxy_error: "http_request_error",
            message,
            ask: None,
            decision,
            retry_after: None,
            closes: false,
        }
    }

    /// Refuses by policy.
    pub(super) fn policy(code: &'static str, message: &'static str, ask: Option<String>) -> Self {
        let decision = Decision::Denied;
        Self {
            status: 403,
            code,
            proxy_error: "http_request_denied",
            message,
            ask,
            decision,
            retry_after: None,
            closes: false,
        }
    }

    /// Refuses a head that did not arrive in time.
    pub(super) fn late() -> Self {
        Self::client(408, "head_timeout", "the head did not arrive in time")
    }

    /// Refuses a session that ended while its tunnel was open.
    pub(super) fn session_over() -> Self {
        let ask = Some("a new session: this one has expired or was deleted".to_owned());
        Self::policy("session_over", "the session is over", ask)
    }

    /// Notes that the client went away. It is recorded and never sent.
    pub(super) fn gone() -> Self {
        let message = "the client closed before the end of the exchange";
        Self {
            decision: Decision::Aborted,
            ..Self::client(400, "client_gone", message)
        }
    }

    /// Reports what the upstream did.
    pub(super) fn upstream(
        status: u16,
        code: &'static str,
        proxy_error: &'static str,
        message: &'static str,
    ) -> Self {
        Self {
            status,
            code,
            proxy_error,
            message,
            ask: None,
            decision: Decision::Failed,
            retry_after: None,
            closes: false,
        }
    }

    /// Refuses what could not be recorded, where the operator wants no gap.
    pub(super) fn audit_full() -> Self {
        Self {
            ask: Some("whether the proxy's audit sink can be written to".to_owned()),
            retry_after: Some(AUDIT_RETRY_SECONDS),
            ..Self::upstream(
                503,
                "audit_full",
                "proxy_internal_error",
                "nothing is let through that cannot be recorded",
            )
        }
    }

    /// Asks for credentials. The same for missing, unknown, expired and wrong ones.
    pub(super) fn credentials() -> Self {
        let message = "a session's id and token are required as Basic proxy credentials";
        Self {
            status: 407,
            code: "proxy_authentication_required",
            proxy_error: "http_request_denied",
            message,
            ask: Some("a current proxy URL: the session is missing, expired or deleted".to_owned()),
            decision: Decision::Denied,
            retry_after: None,
            closes: false,
        }
    }

    /// Serves nobody of whom it cannot be known whether the session still lives.
    pub(super) fn no_store() -> Self {
        Self {
            retry_after: Some(5),
            ..Self::upstream(
                503,
                "store_unavailable",
                "proxy_internal_error",
                "whether the session still lives cannot be known at the moment",
            )
        }
    }

    /// Holds back an address that has shown too many wrong credentials. The same for every kind of
    /// wrong.
    pub(super) fn throttled(wait: Duration) -> Self {
        let message = "too many wrong credentials came from this address";
        Self {
            ask: Some("a current proxy URL: a right credential is always taken".to_owned()),
            proxy_error: "http_request_denied",
            ..Self::wait(wait, "too_many_auth_failures", message)
        }
    }

    /// Refuses what is over a session's quota.
    pub(super) fn limited(quota: Limited) -> Self {
        let (wait, code, message, key) = match quota {
            Limited::Exchanges => (
                Duration::ZERO,
                "session_exchange_limit",
                "the session has as many requests in flight as it may have",
                "limits.session_exchanges",
            ),
            Limited::Rate(wait) => (
                wait,
                "session_rate_limit",
                "the session sends requests faster than it may",
                "limits.session_requests_per_second",
            ),
            Limited::Tunnels => (
                Duration::ZERO,
                "session_tunnel_limit",
                "the session has as many tunnels open as it may have",
                "limits.session_tunnels",
            ),
        };
        Self {
            ask: Some(format!("wait, or raise {key} of the proxy")),
            ..Self::wait(wait, code, message)
        }
    }

    /// Refuses a connection beyond those that its session, or all sessions, may have.
    pub(super) fn crowded(crowded: Crowded) -> Self {
        let (status, code, message, key) = match crowded {
            Crowded::Owner => (
                429,
                "session_connection_limit",
                "the session has as many connections as it may have",
                "limits.session_connections",
            ),
            Crowded::Workloads => (
                503,
                "proxy_full",
                "the proxy has as many connections of workloads as it may have",
                "limits.connections",
            ),
        };
        Self {
            status,
            ask: Some(format!("close some, or raise {key} of the proxy")),
            closes: true,
            ..Self::wait(Duration::ZERO, code, message)
        }
    }

    fn wait(wait: Duration, code: &'static str, message: &'static str) -> Self {
        // Whole seconds, and not before the time has come (RFC 9110 §10.2.3).
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        Self {
            retry_after: Some(seconds.max(1)),
            ..Self::client(429, code, message)
        }
    }

    pub(super) fn decision(&self) -> Decision {
        self.decision
    }

    /// Returns the text that an agent can read.
    fn text(&self) -> String {
        let mut body = json!({ "code": self.code, "message": self.message });
        if let (Some(ask), Some(object)) = (&self.ask, body.as_object_mut()) {
            object.insert("ask".to_owned(), json!(ask));
        }
        format!("{body}\n")
    }

    /// Returns the value of `Proxy-Status`.
    fn proxy_status(&self) -> String {
        let (error, code) = (self.proxy_error, self.code);
        format!("oshu-vault; error={error}; details=\"{code}\"")
    }

    /// Makes the answer for a workload that speaks HTTP/2.
    pub(super) fn response(&self) -> http::Response<Bytes> {
        let text = self.text();
        let mut response = http::Response::new(Bytes::new());
        *response.status_mut() = http::StatusCode::from_u16(self.status).unwrap_or_default();
        let headers = response.headers_mut();
        let fixed = http::HeaderValue::from_static;
        headers.insert("content-type", fixed("application/json"));
        headers.insert("content-length", text.len().into());
        headers.insert("cache-control", fixed("no-store"));
        if let Some(seconds) = self.retry_after {
            headers.insert("retry-after", seconds.into());
        }
        if let Ok(status) = http::HeaderValue::try_from(self.proxy_status()) {
            headers.insert("proxy-status", status);
        }
        *response.body_mut() = Bytes::from(text);
        response
    }

    /// Writes the answer. Refusals to HEAD have no body.
    fn write(&self, keep_alive: bool, bodyless: bool) -> Vec<u8> {
        let body = self.text();
        let challenge = match self.status {
            407 => "Proxy-Authenticate: Basic realm=\"oshu-vault\"\r\n",
            _ => "",
        };
        let retry = self.retry_after;
        let retry = retry.map_or(String::new(), |seconds| {
            format!("Retry-After: {seconds}\r\n")
        });
        let connection = if keep_alive {
            ""
        } else {
            "Connection: close\r\n"
        };
        let text = format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\nCache-Control: no-store\r\n\
             Proxy-Status: {proxy_status}\r\n\
             {challenge}{retry}{connection}\r\n{body}",
            status = self.status,
            reason = reason(self.status),
            length = body.len(),
            proxy_status = self.proxy_status(),
            body = if bodyless { "" } else { &body },
        );
        text.into_bytes()
    }
}

/// Sends a refusal, closing unless the request was read to its end.
pub(super) async fn send(
    down: &mut Connection,
    refusal: &Refusal,
    keep_alive: bool,
) -> io::Result<()> {
    down.send(&refusal.write(keep_alive, false)).await
}

/// Sends a refusal to a HEAD request.
pub(super) async fn send_bodyless(
    down: &mut Connection,
    refusal: &Refusal,
    keep_alive: bool,
) -> io::Result<()> {
    down.send(&refusal.write(keep_alive, true)).await
}

impl From<Full> for Refusal {
    fn from(_full: Full) -> Self {
        Self::audit_full()
    }
}

impl From<WireError> for Refusal {
    fn from(error: WireError) -> Self {
        match error {
            WireError::TargetTooLong => {
                Self::client(414, "target_too_long", "the request target is too long")
            }
            WireError::HeadTooLarge => Self::client(
                431,
                "head_too_large",
                "the head is too long or has too many fields",
            ),
            WireError::Version => Self::client(
                400,
                "bad_version",
                "the request line does not end in HTTP/1.1 or HTTP/1.0",
            ),
            WireError::StartLine => {
                Self::client(400, "bad_request_line", "the request line is malformed")
            }
            WireError::LineEnd => {
                Self::client(400, "bad_line_end", "every line of a head ends in CR LF")
            }
            WireError::Field => Self::client(400, "bad_field", "a header field is malformed"),
            WireError::Framing => Self::client(
                400,
                "bad_framing",
                "Content-Length or Transfer-Encoding is ambiguous or malformed",
            ),
            WireError::Chunk | WireError::Trailer => Self::client(
                400,
                "bad_body",
                "the chunks or trailers of the body are malformed",
            ),
            WireError::BodyTooLong => Self::client(
                413,
                "body_too_long",
                "the body is longer than this proxy takes",
            ),
            // Those of answers do not come here.
            WireError::Coding => Self::client(
                400,
                "bad_content_coding",
                "the body is not in the content coding that its head names, or expands too far",
            ),
            WireError::TooMuch => Self::client(
                413,
                "too_many_tokens",
                "the body has too many sealed tokens",
            ),
            WireError::ConnectionOption => Self::client(
                400,
                "bad_connection_option",
                "Connection names a field that cannot be dropped",
            ),
        }
    }
}

impl Refusal {
    /// Refuses a target that policy denies.
    pub(super) fn denied(denial: Denial, host: &str) -> Self {
        let ask = format!("add {host} to the session's allowed_egress");
        Self::policy(
            denial.code(),
            "the session's policy does not allow this host",
            Some(ask),
        )
    }
}

impl From<&upstream::Error> for Refusal {
    fn from(error: &upstream::Error) -> Self {
        use upstream::Error as E;
        let (status, code, proxy_error, message) = match error {
            E::Connect(_) => (
                502,
                "connection_refused",
                "connection_refused",
                "the upstream cannot be reached",
            ),
            E::ConnectTimeout => (
                504,
                "connection_timeout",
                "connection_timeout",
                "the upstream did not accept a connection in time",
            ),
            E::Dns | E::Refused(Refused::NoAddress) => (
                502,
                "dns_error",
                "dns_error",
                "the host's name does not resolve",
            ),
            E::DnsTimeout => (
                504,
                "dns_timeout",
                "dns_timeout",
                "the host's name did not resolve in time",
            ),
            E::Proxy(error) => return Self::from(error),
            E::ProxyTimeout => (
                504,
                "upstream_proxy_timeout",
                "connection_timeout",
                "the proxy between this one and the host opened no connection in time",
            ),
            E::Refused(_) => {
                return Self {
                    status: 403,
                    code: "destination_ip_prohibited",
                    proxy_error: "destination_ip_prohibited",
                    message: "the host's address is private, local or reserved",
                    ask: Some("allow the address range in the proxy's upstream.allow_cidrs".into()),
                    decision: Decision::Denied,
                    retry_after: None,
                    closes: false,
                };
            }
            E::Http2(_) => (
                502,
                "http_protocol_error",
                "http_protocol_error",
                "the upstream does not speak the protocol it agreed to",
            ),
            E::Tls(_) => (
                502,
                "tls_protocol_error",
                "tls_protocol_error",
                "the TLS handshake with the upstream failed",
            ),
            E::TlsCertificate(_) => (
                502,
                "tls_certificate_error",
                "tls_certificate_error",
                "the upstream's certificate does not verify for its name",
            ),
            E::TlsTimeout => (
                504,
                "tls_timeout",
                "connection_timeout",
                "the TLS handshake with the upstream did not end in time",
            ),
            E::Resolver(_) => (
                502,
                "proxy_internal_error",
                "proxy_internal_error",
                "names cannot be resolved at the moment",
            ),
        };
        Self::upstream(status, code, proxy_error, message)
    }
}

impl From<&ProxyError> for Refusal {
    /// Restates what an upstream proxy did as our own failure: a 407 of its is about the operator's
    /// credentials and must not make a workload doubt its own.
    fn from(error: &ProxyError) -> Self {
        let message = "the proxy between this one and the host opened no connection to it";
        let (code, proxy_error, ask) = match error {
            ProxyError::Refused(_) => (
                "upstream_proxy_refused",
                "connection_refused",
                "let the proxy that upstream.proxy names reach the host's addresses",
            ),
            ProxyError::Credentials => (
                "upstream_proxy_refused",
                "proxy_configuration_error",
                "check the credentials in upstream.proxy",
            ),
            ProxyError::Address(_)
            | ProxyError::Closed
            | ProxyError::Connect(_)
            | ProxyError::Dns
            | ProxyError::Malformed(_)
            | ProxyError::Tls(_) => (
                "upstream_proxy_failed",
                "destination_unavailable",
                "check the proxy that upstream.proxy names",
            ),
        };
        Self {
            ask: Some(ask.to_owned()),
            ..Self::upstream(502, code, proxy_error, message)
        }
    }
}

/// Reports an answer that broke off or broke a rule before any of it was sent on.
pub(super) fn bad_answer() -> Refusal {
    Refusal::upstream(
        502,
        "http_response_invalid",
        "http_protocol_error",
        "the upstream's answer is malformed or ambiguous",
    )
}

/// Reports an answer that must be looked into and cannot be.
pub(super) fn unknown_coding() -> Refusal {
    Refusal::upstream(
        502,
        "content_coding_unknown",
        "http_response_content_coding",
        "the answer is in a content coding that cannot be scrubbed",
    )
}

/// Reports an answer of a token endpoint that cannot be read without doubt.
pub(super) fn unreadable_tokens(error: CaptureError) -> Refusal {
    tracing::debug!(%error, "an answer of a token endpoint is refused");
    Refusal::upstream(
        502,
        "token_answer_unreadable",
        "http_protocol_error",
        "the answer of the token endpoint is no plain JSON object or form, so that it may hold \
         tokens that cannot be captured",
    )
}

/// Reports an answer of a token endpoint that is too long to be read whole.
pub(super) fn too_long_for_tokens() -> Refusal {
    Refusal::upstream(
        502,
        "token_answer_too_large",
        "http_response_body_size",
        "the answer of the token endpoint is over 256 KiB",
    )
}

/// Reports tokens that could not be made durable, so that the answer with them must not go on.
pub(super) fn not_kept() -> Refusal {
    Refusal::upstream(
        503,
        "tokens_not_kept",
        "proxy_internal_error",
        "the tokens of the answer cannot be kept at the moment",
    )
}

/// Reports tokens that a session cannot take.
pub(super) fn not_captured(error: &session::Error) -> Refusal {
    match error {
        session::Error::CaptureLimit => Refusal {
            ask: Some("a new session: this one has 20 captured tokens".to_owned()),
            ..Refusal::upstream(
                502,
                "too_many_captured_tokens",
                "proxy_internal_response",
                "the session has as many captured tokens as it may",
            )
        },
        _ => not_kept(),
    }
}

/// Reports that nothing moves while an answer is waited for: it is the client who is waited for until
/// its whole request has gone up, and then the upstream.
pub(super) fn silent(request_is_through: bool) -> Refusal {
    if !request_is_through {
        let message = "the rest of the request did not arrive in time";
        return Refusal::client(408, "request_timeout", message);
    }
    Refusal::upstream(
        504,
        "answer_timeout",
        "http_response_timeout",
        "the upstream did not answer in time",
    )
}

/// Reports an upstream that closed without an answer.
pub(super) fn no_answer() -> Refusal {
    Refusal::upstream(
        502,
        "http_response_incomplete",
        "http_response_incomplete",
        "the upstream closed the connection without an answer",
    )
}

/// Refuses a body that broke a rule on its way up.
pub(super) fn bad_body(error: &FlowError) -> Option<Refusal> {
    match error {
        FlowError::Malformed(rule) => Some(Refusal::from(*rule)),
        FlowError::ReceiverGone(_) | FlowError::SenderGone => None,
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        403 => "Forbidden",
        405 => "Method Not Allowed",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Error",
    }
}
