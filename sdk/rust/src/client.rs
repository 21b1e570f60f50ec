//! The client itself: one method a call.
//!
//! It takes no proxy from the environment (it manages the proxy itself), follows no redirect (a
//! redirect would carry secrets to an address nobody configured) and sends each call once. It must
//! never print the API key.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Certificate, Method, RequestBuilder, Url, redirect};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Refusal};
use crate::redact::{MARK, Redactor};
use crate::request::{CreateSession, ListSessions, UpdateSession};
use crate::session::{CreatedSession, Session, SessionPage};

/// How long one call may take, answer included, unless the builder is told otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);
/// A page of 200 sessions with all their hosts is far below; a longer answer is not one of ours.
const ANSWER_LIMIT_BYTES: usize = 64 << 20;
/// How long a session id may be; the server's have 37 characters.
const ID_LIMIT: usize = 128;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const MERGE_PATCH: HeaderValue = HeaderValue::from_static("application/merge-patch+json");
const PEM_BEGIN: &str = "-----BEGIN CERTIFICATE-----";

/// Settings of a [`Client`].
#[must_use]
pub struct ClientBuilder {
    base_url: String,
    api_key: String,
    ca_pem: Option<Vec<u8>>,
    timeout: Duration,
}

impl ClientBuilder {
    /// Trusts these certificates (PEM, one or more) beside those of the system.
    pub fn ca_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca_pem = Some(pem.into());
        self
    }

    /// Sets how long one call may take, answer included; 30 seconds unless set.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Checks the settings and makes the client.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] names the setting that cannot be used, never its value;
    /// [`Error::Setup`] if there are no certificates to trust.
    pub fn build(self) -> Result<Client, Error> {
        let base = parse_base_url(&self.base_url)?;
        let authorization = authorization(&self.api_key)?;
        let mut builder = reqwest::Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .referer(false)
            .timeout(self.timeout)
            .user_agent(concat!("oshu-vault-sdk-rust/", env!("CARGO_PKG_VERSION")));
        if let Some(pem) = &self.ca_pem {
            builder = builder.tls_certs_merge(parse_certificates(pem)?);
        } else if base.starts_with("http:") {
            // Nothing is verified then, and a machine without any CA must not be an error.
            builder = builder.tls_certs_only([]);
        }
        let http = builder.build().map_err(Error::Setup)?;
        Ok(Client {
            http,
            base: base.into(),
            api_key: self.api_key.into(),
            authorization,
        })
    }
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The address is not checked yet: it may hold a password.
        f.debug_struct("ClientBuilder")
            .field("base_url", &MARK)
            .field("api_key", &MARK)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// Manages the sessions of one tenant. Clones share their connections.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    /// Without a slash at its end.
    base: Arc<str>,
    api_key: Arc<str>,
    authorization: HeaderValue,
}

impl Client {
    /// Starts a client for the API at `base_url` (`http:` or `https:`) with the tenant's API key.
    pub fn builder(base_url: impl Into<String>, api_key: impl Into<String>) -> ClientBuilder {
        ClientBuilder {
            base_url: base_url.into(),
            api_key: api_key.into(),
            ca_pem: None,
            timeout: TIMEOUT,
        }
    }

    /// Creates a session; the answer is the only place where its credential is ever shown.
    pub async fn create_session(&self, request: &CreateSession) -> Result<CreatedSession, Error> {
        self.create(request, None).await
    }

    /// Creates a session, but not twice with one key: a repeat within the server's window ends in
    /// [`Error::Conflict`], whose problem names the first session.
    pub async fn create_session_once(
        &self,
        request: &CreateSession,
        idempotency_key: &str,
    ) -> Result<CreatedSession, Error> {
        let key = printable(idempotency_key, "idempotency_key")?;
        self.create(request, Some(key)).await
    }

    /// Reads one session.
    pub async fn get_session(&self, id: &str) -> Result<Session, Error> {
        let call = self.authorized(Method::GET, self.session_url(id)?);
        parse(&self.accepted(call, []).await?)
    }

    /// Reads one page of the tenant's sessions.
    pub async fn list_sessions(&self, options: ListSessions) -> Result<SessionPage, Error> {
        let mut url = self.url("/v1/sessions")?;
        if let Some(limit) = options.limit {
            url.query_pairs_mut()
                .append_pair("limit", &limit.to_string());
        }
        if let Some(cursor) = options.cursor {
            url.query_pairs_mut().append_pair("cursor", &cursor);
        }
        parse(&self.accepted(self.authorized(Method::GET, url), []).await?)
    }

    /// Changes a session; the next request of the workload already meets the change.
    pub async fn update_session(&self, id: &str, patch: &UpdateSession) -> Result<Session, Error> {
        let call = self
            .authorized(Method::PATCH, self.session_url(id)?)
            .header(CONTENT_TYPE, MERGE_PATCH)
            .body(to_json(patch)?);
        parse(&self.accepted(call, patch.confidential()).await?)
    }

    /// Ends a session and cuts its connections. One that is gone already counts as ended.
    pub async fn delete_session(&self, id: &str) -> Result<(), Error> {
        let call = self.authorized(Method::DELETE, self.session_url(id)?);
        match self.accepted(call, []).await {
            Ok(_) | Err(Error::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Reads the CA certificate that a workload has to trust, as PEM. Sends no API key.
    pub async fn ca_pem(&self) -> Result<String, Error> {
        let answer = self
            .accepted(self.http.get(self.url("/v1/ca.pem")?), [])
            .await?;
        // It goes into a trust store: a login page or an error page must not.
        String::from_utf8(answer.body)
            .ok()
            .filter(|text| text.trim_start().starts_with(PEM_BEGIN))
            .ok_or(Error::InvalidAnswer {
                status: answer.status,
            })
    }

    async fn create(
        &self,
        request: &CreateSession,
        idempotency_key: Option<HeaderValue>,
    ) -> Result<CreatedSession, Error> {
        let mut call = self
            .authorized(Method::POST, self.url("/v1/sessions")?)
            .header(CONTENT_TYPE, JSON)
            .body(to_json(request)?);
        if let Some(key) = idempotency_key {
            call = call.header("idempotency-key", key);
        }
        parse(&self.accepted(call, request.confidential()).await?)
    }

    fn authorized(&self, method: Method, url: Url) -> RequestBuilder {
        self.http
            .request(method, url)
            .header(AUTHORIZATION, self.authorization.clone())
            .header(ACCEPT, JSON)
    }

    /// Sends a call once and answers what came, if it is a success.
    async fn accepted<'a>(
        &'a self,
        call: RequestBuilder,
        confidential: impl IntoIterator<Item = &'a str>,
    ) -> Result<Answer, Error> {
        let answer = Answer::receive(call).await?;
        if (200..300).contains(&answer.status) {
            return Ok(answer);
        }
        let redactor = Redactor::new(confidential.into_iter().chain([&*self.api_key]));
        let refusal = Refusal {
            status: answer.status,
            request_id: answer.header("x-request-id"),
            retry_after: answer.header(RETRY_AFTER.as_str()),
            body: &answer.body,
        };
        Err(Error::from_refusal(&refusal, &redactor))
    }

    fn url(&self, path: &str) -> Result<Url, Error> {
        Url::parse(&format!("{}{path}", self.base)).map_err(|_parser| NOT_A_BASE_URL)
    }

    fn session_url(&self, id: &str) -> Result<Url, Error> {
        // No dot and no slash: an id never changes which path is asked for.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if id.is_empty() || id.len() > ID_LIMIT || !id.bytes().all(plain) {
            return Err(Error::InvalidArgument {
                name: "id",
                expected: "the session_id of a session",
            });
        }
        self.url(&format!("/v1/sessions/{id}"))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("base_url", &self.base)
            .field("api_key", &MARK)
            .finish_non_exhaustive()
    }
}

/// A complete answer.
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    async fn receive(call: RequestBuilder) -> Result<Self, Error> {
        let mut response = call.send().await.map_err(Error::from_transport)?;
        let status = response.status().as_u16();
        let headers = std::mem::take(response.headers_mut());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(Error::from_transport)? {
            if body.len() + chunk.len() > ANSWER_LIMIT_BYTES {
                return Err(Error::InvalidAnswer { status });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Self {
            status,
            headers,
            body,
        })
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

const NOT_A_BASE_URL: Error = Error::InvalidArgument {
    name: "base_url",
    expected: "an absolute http or https URL without user, password, query or fragment",
};

fn parse_base_url(text: &str) -> Result<String, Error> {
    let url = Url::parse(text).map_err(|_parser| NOT_A_BASE_URL)?;
    let bare = url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    if matches!(url.scheme(), "http" | "https") && bare {
        Ok(url.as_str().trim_end_matches('/').to_owned())
    } else {
        Err(NOT_A_BASE_URL)
    }
}

fn authorization(api_key: &str) -> Result<HeaderValue, Error> {
    printable(api_key, "api_key")?;
    let mut value = printable_value(&format!("Bearer {api_key}"), "api_key")?;
    // Kept out of HTTP/2's compression tables and of every `Debug` of a header map.
    value.set_sensitive(true);
    Ok(value)
}

/// Takes a value that is to stand in a header by itself.
fn printable(text: &str, name: &'static str) -> Result<HeaderValue, Error> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(not_printable(name));
    }
    printable_value(text, name)
}

fn printable_value(text: &str, name: &'static str) -> Result<HeaderValue, Error> {
    HeaderValue::from_str(text).map_err(|_source| not_printable(name))
}

fn not_printable(name: &'static str) -> Error {
    Error::InvalidArgument {
        name,
        expected: "not empty, and printable ASCII without spaces",
    }
}

fn parse_certificates(pem: &[u8]) -> Result<Vec<Certificate>, Error> {
    match Certificate::from_pem_bundle(pem) {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(Error::InvalidArgument {
            name: "ca_pem",
            expected: "one certificate or more in PEM form",
        }),
    }
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>, Error> {
    // The source is left out: it could quote what was to be written.
    serde_json::to_vec(value).map_err(|_source| Error::InvalidArgument {
        name: "request",
        expected: "representable as JSON",
    })
}

fn parse<T: DeserializeOwned>(answer: &Answer) -> Result<T, Error> {
    // The source is left out: it quotes the answer, which may hold a credential.
    serde_json::from_slice(&answer.body).map_err(|_source| Error::InvalidAnswer {
        status: answer.status,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(error: Error) -> &'static str {
        match error {
            Error::InvalidArgument { name, .. } => name,
            other => panic!("another kind: {other:?}"),
        }
    }

    #[test]
    fn a_wrong_setting_is_named_and_not_shown() {
        let good = "https://vault.example";
        for (base_url, api_key, ca_pem, name) in [
            ("", "k", None, "base_url"),
            ("vault.example", "k", None, "base_url"),
            ("ftp://vault.example", "k", None, "base_url"),
            ("https://CANARY@vault.example", "k", None, "base_url"),
            ("https://:CANARY@vault.example", "k", None, "base_url"),
            ("https://vault.example/?CANARY", "k", None, "base_url"),
            ("https://vault.example/#CANARY", "k", None, "base_url"),
            (good, "", None, "api_key"),
            (good, "CANARY\n", None, "api_key"),
            (good, "CANARY key", None, "api_key"),
            (good, "CANARYé", None, "api_key"),
            (good, "k", Some(""), "ca_pem"),
            (good, "k", Some("CANARY"), "ca_pem"),
        ] {
            let mut builder = Client::builder(base_url, api_key);
            if let Some(pem) = ca_pem {
                builder = builder.ca_pem(pem);
            }
            let error = builder.build().expect_err(name);
            assert!(!format!("{error} {error:?}").contains("CANARY"), "{error}");
            assert_eq!(named(error), name);
        }
    }

    #[test]
    fn a_certificate_that_is_none_is_refused() {
        let pem = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
        let error = Client::builder("https://vault.example", "key")
            .ca_pem(pem)
            .build();
        assert!(matches!(error, Err(Error::Setup(_))), "{error:?}");
    }

    #[test]
    fn a_slash_at_the_end_makes_no_difference() {
        for (base_url, expected) in [
            (
                "http://vault.example",
                "http://vault.example/v1/sessions/sess_1",
            ),
            (
                "http://vault.example/",
                "http://vault.example/v1/sessions/sess_1",
            ),
            (
                "http://127.0.0.1:8080/a/b//",
                "http://127.0.0.1:8080/a/b/v1/sessions/sess_1",
            ),
        ] {
            let client = Client::builder(base_url, "key").build().unwrap();
            assert_eq!(client.session_url("sess_1").unwrap().as_str(), expected);
        }
    }

    #[test]
    fn an_id_never_changes_the_path() {
        let client = Client::builder("http://vault.example", "key")
            .build()
            .unwrap();
        for id in [
            "",
            ".",
            "..",
            "a/b",
            "../tenants",
            "a?b",
            "a#b",
            "a%2fb",
            "a b",
            "é",
        ] {
            assert_eq!(named(client.session_url(id).expect_err(id)), "id");
        }
        assert_eq!(
            named(client.session_url(&"a".repeat(129)).unwrap_err()),
            "id"
        );
    }

    #[test]
    fn debug_hides_the_key() {
        let builder = Client::builder("http://vault.example", "CANARY-key");
        assert!(!format!("{builder:?} {builder:#?}").contains("CANARY"));
        let client = builder.build().unwrap();
        let shown = format!("{client:?} {client:#?}");
        assert!(
            shown.contains("vault.example") && !shown.contains("CANARY"),
            "{shown}"
        );
        let call = client.authorized(Method::GET, client.url("/v1/sessions").unwrap());
        assert!(!format!("{call:?}").contains("CANARY"));
    }
}
