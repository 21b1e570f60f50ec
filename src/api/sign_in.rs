//! `/api/github/…` and `/api/auth/callback`: people sign in with GitHub.
//!
//! GitHub is asked in the name of the operator's OAuth app; of its answers the stated members come
//! back and nothing else, and of its errors those that are about the person. Nothing of either is
//! logged or kept. The callback sends people to listed addresses alone. Called by the route table.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use data_encoding::BASE64_NOPAD;
use form_urlencoded::Serializer;
use http::header::{CACHE_CONTROL, LOCATION, REFERRER_POLICY};
use http::{HeaderValue, Method, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::open::{OpenState, answer, read, recorded};
use super::paces::Paces;
use crate::callout::{self, Callout, Limits};
use crate::secret::Secret;
use crate::upstream::Upstream;
use crate::web::TaggedFailure;

/// The longest body, in bytes.
const BODY_LIMIT_BYTES: usize = 4096;
/// How long GitHub has.
const DEADLINE: Duration = Duration::from_secs(10);
/// The longest answer of GitHub's, in bytes.
const ANSWER_LIMIT_BYTES: usize = 16 * 1024;
/// The longest code, device code or list of scopes, in bytes.
const TEXT_LIMIT_BYTES: usize = 512;
/// The longest state, in bytes.
const STATE_LIMIT_BYTES: usize = 2048;
/// What is asked for where a caller says nothing.
const DEFAULT_SCOPE: &str = "user repo read:org workflow";
/// The grant of RFC 8628 §3.4.
const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";
/// The errors of the device flow that are about the person and not about the app: RFC 8628 §3.5,
/// and GitHub's own word for a code that it does not know.
const ERRORS_OF_PEOPLE: [&str; 5] = [
    "access_denied",
    "authorization_pending",
    "expired_token",
    "incorrect_device_code",
    "slow_down",
];
const DEVICE_CODE_PATH: &str = "/login/device/code";
const TOKEN_PATH: &str = "/login/oauth/access_token";

/// How people sign in.
#[derive(Clone, Debug)]
pub struct SignInConfig {
    /// Where GitHub is.
    pub url: String,
    /// The id of the OAuth app.
    pub client_id: String,
    /// Its secret; codes are not exchanged without.
    pub client_secret: Option<Secret>,
    /// Where the callback may send people, letter for letter.
    pub return_to: Vec<String>,
    /// Codes are not exchanged without the verifier of RFC 7636.
    pub needs_verifier: bool,
    /// Requests of one address a minute.
    pub requests_per_minute: u32,
}

/// Signs people in with GitHub.
pub struct SignIn {
    callout: Callout,
    client_id: String,
    client_secret: Option<Secret>,
    return_to: Vec<String>,
    needs_verifier: bool,
    paces: Paces,
}

impl fmt::Debug for SignIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignIn")
            .field("target", self.callout.target())
            .finish_non_exhaustive()
    }
}

/// What a caller sends for a device code.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceCodeAsked {
    #[serde(default)]
    scope: Option<String>,
}

/// What GitHub answers to it, and all that a caller gets.
#[derive(Deserialize, Serialize)]
#[expect(clippy::struct_field_names, reason = "the names are those of OAuth")]
struct DeviceCode {
    device_code: String,
    user_code: String,
    verification_uri: String,
    expires_in: u64,
    interval: u64,
}

/// What a caller sends while the person has not typed the code yet.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceTokenAsked {
    device_code: String,
}

/// What a caller sends after the callback.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExchangeAsked {
    code: String,
    #[serde(default)]
    code_verifier: Option<String>,
}

/// A token of GitHub's, and all that a caller gets.
#[derive(Deserialize, Serialize, Zeroize, ZeroizeOnDrop)]
#[expect(clippy::struct_field_names, reason = "the names are those of OAuth")]
struct Token {
    access_token: String,
    token_type: String,
    scope: String,
}

/// An error of GitHub's, which comes with status 200.
#[derive(Deserialize, Serialize)]
struct Refusal {
    error: String,
    /// How many seconds lie between two questions from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    interval: Option<u64>,
}

/// What GitHub answers where it is asked for a token.
#[derive(Deserialize)]
#[serde(untagged)]
enum Given {
    Token(Token),
    Refusal(Refusal),
}

impl SignIn {
    /// Sets up the way to GitHub. Nothing is asked yet.
    ///
    /// # Errors
    /// [`callout::Error`] where the URL cannot be used.
    pub fn new(upstream: Arc<Upstream>, config: SignInConfig) -> Result<Self, callout::Error> {
        let limits = Limits {
            deadline: DEADLINE,
            answer_bytes: ANSWER_LIMIT_BYTES,
        };
        Ok(Self {
            callout: Callout::new(upstream, &config.url, limits)?,
            client_id: config.client_id,
            client_secret: config.client_secret,
            return_to: config.return_to,
            needs_verifier: config.needs_verifier,
            paces: Paces::per_minute(config.requests_per_minute),
        })
    }

    async fn device_code(&self, request: Request) -> Result<Response, TaggedFailure> {
        let expects = "the body: expects {\"scope\": TEXT}, or {}";
        let asked: DeviceCodeAsked = self.asked(request, expects).await?;
        let scope = asked.scope.as_deref().unwrap_or(DEFAULT_SCOPE);
        let is_plain = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
        if scope.len() > TEXT_LIMIT_BYTES || !scope.bytes().all(is_plain) {
            let expects = "scope: expects at most 512 visible ASCII characters and blanks";
            return Err(TaggedFailure::BadRequest(expects));
        }
        let form = [("client_id", self.client_id.as_str()), ("scope", scope)];
        let code: DeviceCode = self.ask(DEVICE_CODE_PATH, &form).await?;
        Ok(answer(StatusCode::OK, &code))
    }

    async fn device_token(&self, request: Request) -> Result<Response, TaggedFailure> {
        let expects = "the body: expects {\"device_code\": TEXT}";
        let asked: DeviceTokenAsked = self.asked(request, expects).await?;
        if !is_code(&asked.device_code) {
            let expects = "device_code: expects 1 to 512 letters, digits, '-' and '_'";
            return Err(TaggedFailure::BadRequest(expects));
        }
        let form = [
            ("client_id", self.client_id.as_str()),
            ("device_code", &asked.device_code),
            ("grant_type", DEVICE_GRANT),
        ];
        match self.ask(TOKEN_PATH, &form).await? {
            Given::Token(token) => Ok(answer(StatusCode::OK, &token)),
            Given::Refusal(refusal) if ERRORS_OF_PEOPLE.contains(&refusal.error.as_str()) => {
                Ok(answer(StatusCode::OK, &refusal))
            }
            Given::Refusal(_) => Err(refused()),
        }
    }

    async fn exchange(&self, request: Request) -> Result<Response, TaggedFailure> {
        let Some(secret) = &self.client_secret else {
            return Err(TaggedFailure::NotFound);
        };
        let expects = "the body: expects {\"code\": TEXT, \"code_verifier\": TEXT}";
        let asked: ExchangeAsked = self.asked(request, expects).await?;
        if !is_code(&asked.code) {
            let expects = "code: expects 1 to 512 letters, digits, '-' and '_'";
            return Err(TaggedFailure::BadRequest(expects));
        }
        let verifier = asked.code_verifier.as_deref();
        if !verifier.map_or(!self.needs_verifier, is_verifier) {
            let expects = "code_verifier: expects 43 to 128 letters, digits, '-', '.', '_' and '~'";
            return Err(TaggedFailure::BadRequest(expects));
        }
        let secret = std::str::from_utf8(secret.expose()).map_err(|_unread| refused())?;
        let mut form = vec![
            ("client_id", self.client_id.as_str()),
            ("client_secret", secret),
            ("code", &asked.code),
        ];
        form.extend(verifier.map(|verifier| ("code_verifier", verifier)));
        match self.ask(TOKEN_PATH, &form).await? {
            Given::Token(token) => Ok(answer(StatusCode::OK, &token)),
            Given::Refusal(refusal) if refusal.error == "bad_verification_code" => {
                let message = "code: GitHub does not know it, or it was used or has expired";
                Err(TaggedFailure::BadRequest(message))
            }
            Given::Refusal(_) => Err(refused()),
        }
    }

    /// Sends a person back with what GitHub gave.
    fn callback(&self, query: &str) -> Result<Response, TaggedFailure> {
        let bad = TaggedFailure::BadRequest;
        let (mut code, mut error, mut state) = (None, None, None);
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let slot = match &*name {
                "code" => &mut code,
                "error" => &mut error,
                "state" => &mut state,
                _ => continue,
            };
            if slot.replace(value).is_some() {
                return Err(bad("the query: a parameter stands in it twice"));
            }
        }
        let state = state.ok_or(bad("state: is required"))?;
        let place = place(&state).ok_or(bad("state: expects an address in Base64"))?;
        if !self.return_to.contains(&place) {
            return Err(bad("state: the address is not one of github.return_to"));
        }
        let given = match (&code, &error) {
            (Some(code), None) if is_code(code) => ("code", code),
            (None, Some(error)) if is_error(error) => ("error", error),
            (Some(_), None) => return Err(bad("code: expects letters, digits, '-' and '_'")),
            (None, Some(_)) => return Err(bad("error: expects small letters and '_'")),
            (None, None) => return Err(bad("code: is required")),
            (Some(_), Some(_)) => return Err(bad("error: stands beside code")),
        };
        let mut query = Serializer::new(String::new());
        query.append_pair(given.0, given.1);
        query.append_pair("state", &state);
        let slash = if is_bare(&place) { "/" } else { "" };
        let location = Zeroizing::new(format!("{place}{slash}?{}", query.finish()));
        let location = HeaderValue::from_str(&location);
        let mut location = location.map_err(|_odd| bad("state: cannot be sent back"))?;
        location.set_sensitive(true);
        let mut response = StatusCode::FOUND.into_response();
        let headers = response.headers_mut();
        headers.insert(LOCATION, location);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        Ok(response)
    }

    /// Reads what a caller asks for.
    async fn asked<T: DeserializeOwned>(
        &self,
        request: Request,
        expects: &'static str,
    ) -> Result<T, TaggedFailure> {
        let (parts, body) = request.into_parts();
        self.paces.take(&parts.extensions)?;
        let body = read(body, BODY_LIMIT_BYTES).await?;
        let bad = || TaggedFailure::BadRequest(expects);
        let body = if body.is_empty() { b"{}" } else { &body[..] };
        // What reads objects would take an array of their members as well.
        if body.trim_ascii_start().first() != Some(&b'{') {
            return Err(bad());
        }
        serde_json::from_slice(body).map_err(|_unread| bad())
    }

    /// Sends GitHub a form and reads its answer.
    async fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        form: &[(&str, &str)],
    ) -> Result<T, TaggedFailure> {
        // In one piece: what writes it must not be kept while GitHub is waited for.
        let body = Serializer::new(String::new()).extend_pairs(form).finish();
        let body = Zeroizing::new(body);
        let asked = callout::Request {
            method: "POST",
            path,
            fields: &[("accept", b"application/json")],
            body: Some(("application/x-www-form-urlencoded", body.as_bytes())),
        };
        let answer = self.callout.call(&asked).await;
        let answer = answer.map_err(|error| TaggedFailure::Upstream(error.into()))?;
        if answer.status != 200 {
            let status = format!("GitHub answered {}", answer.status);
            return Err(TaggedFailure::Upstream(status.into()));
        }
        // The text of the error may hold a part of the answer.
        let read = serde_json::from_slice(&answer.body);
        read.map_err(|_unread| TaggedFailure::Upstream("GitHub's answer cannot be read".into()))
    }
}

/// Says that GitHub refuses the app and not the person: its words are the operator's business, and
/// they are not ours to print.
fn refused() -> TaggedFailure {
    TaggedFailure::Upstream("GitHub refuses the OAuth app: look at github.client_id".into())
}

/// Tells whether a text can be a code of GitHub's.
fn is_code(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    (1..=TEXT_LIMIT_BYTES).contains(&text.len()) && text.bytes().all(is_plain)
}

/// Tells whether a text can be a code verifier (RFC 7636 §4.1).
fn is_verifier(text: &str) -> bool {
    let is_unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    (43..=128).contains(&text.len()) && text.bytes().all(is_unreserved)
}

/// Tells whether a text can be the name of an error of OAuth's.
fn is_error(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
    (1..=TEXT_LIMIT_BYTES).contains(&text.len()) && text.bytes().all(is_plain)
}

/// Tells whether an address of the web has no path, so that a query needs a slash before it.
fn is_bare(place: &str) -> bool {
    let rest = place.split_once("://");
    rest.is_some_and(|(scheme, rest)| matches!(scheme, "http" | "https") && !rest.contains('/'))
}

/// Reads the address that a state holds: Base64, with either alphabet and with or without padding,
/// of the address itself or of a JSON object with it as `origin`.
fn place(state: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Holds {
        origin: String,
    }
    if state.len() > STATE_LIMIT_BYTES {
        return None;
    }
    // A plus that was not escaped was read as a blank.
    let plain = state.bytes().map(|byte| match byte {
        b'-' | b' ' => b'+',
        b'_' => b'/',
        byte => byte,
    });
    let plain: Vec<u8> = plain.collect();
    let end = plain.iter().rposition(|byte| *byte != b'=')? + 1;
    let decoded = BASE64_NOPAD.decode(plain.get(..end)?).ok()?;
    if decoded.first() == Some(&b'{') {
        let holds: Holds = serde_json::from_slice(&decoded).ok()?;
        return Some(holds.origin);
    }
    String::from_utf8(decoded).ok()
}

/// Serves `POST /api/github/device/code`.
pub(super) async fn device_code(State(state): State<OpenState>, request: Request) -> Response {
    let Some(sign_in) = state.sign_in.clone() else {
        return TaggedFailure::NotFound.into_response();
    };
    let (record, admitted) = state.record(&request, sign_in.callout.target());
    let served = match admitted.and_then(|()| expect_post(&state, &request)) {
        Ok(()) => sign_in.device_code(request).await,
        Err(failure) => Err(failure),
    };
    recorded(record, served)
}

/// Serves `POST /api/github/device/token`.
pub(super) async fn device_token(State(state): State<OpenState>, request: Request) -> Response {
    let Some(sign_in) = state.sign_in.clone() else {
        return TaggedFailure::NotFound.into_response();
    };
    let (record, admitted) = state.record(&request, sign_in.callout.target());
    let served = match admitted.and_then(|()| expect_post(&state, &request)) {
        Ok(()) => sign_in.device_token(request).await,
        Err(failure) => Err(failure),
    };
    recorded(record, served)
}

/// Serves `POST /api/github/oauth/token`.
pub(super) async fn exchange(State(state): State<OpenState>, request: Request) -> Response {
    let Some(sign_in) = state.sign_in.clone() else {
        return TaggedFailure::NotFound.into_response();
    };
    let (record, admitted) = state.record(&request, sign_in.callout.target());
    let served = match admitted.and_then(|()| expect_post(&state, &request)) {
        Ok(()) => sign_in.exchange(request).await,
        Err(failure) => Err(failure),
    };
    recorded(record, served)
}

/// Serves `GET /api/auth/callback`, and POST for clients that follow the reference.
pub(super) async fn callback(State(state): State<OpenState>, request: Request) -> Response {
    let Some(sign_in) = &state.sign_in else {
        return TaggedFailure::NotFound.into_response();
    };
    let (record, admitted) = state.record(&request, sign_in.callout.target());
    let served = admitted.and_then(|()| {
        if !matches!(*request.method(), Method::GET | Method::POST) {
            return Err(TaggedFailure::MethodNotAllowed("GET,POST"));
        }
        state.expect_private(request.extensions())?;
        sign_in.paces.take(request.extensions())?;
        sign_in.callback(request.uri().query().unwrap_or_default())
    });
    recorded(record, served)
}

fn expect_post(state: &OpenState, request: &Request) -> Result<(), TaggedFailure> {
    if *request.method() != Method::POST {
        return Err(TaggedFailure::MethodNotAllowed("POST"));
    }
    state.expect_private(request.extensions())
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::{BASE64, BASE64URL_NOPAD};

    #[test]
    fn a_state_holds_an_address_in_any_base64() {
        let at = "https://app.example.com/~a?>";
        let json = format!("{{\"nonce\":\"?>?\",\"origin\":\"{at}\"}}");
        for held in [at, &json] {
            for state in [
                BASE64.encode(held.as_bytes()),
                BASE64URL_NOPAD.encode(held.as_bytes()),
                BASE64.encode(held.as_bytes()).replace('+', " "),
            ] {
                assert_eq!(place(&state).as_deref(), Some(at), "{state}");
            }
        }
        let long = BASE64.encode(&[b'a'; STATE_LIMIT_BYTES]);
        for bad in ["", "=", "a", "!!!!", "eyJ9", "/w==", long.as_str()] {
            assert_eq!(place(bad), None, "{bad}");
        }
    }
}
