//! Which header fields travel: to the model provider, and back.
//!
//! Both ways have a list of what passes and no list of what does not, so that a credential, a cookie
//! or a forwarding field under any name stays here, and so does what an answer says of the
//! operator's own account. The operator's credential is set here and nowhere else. Called by the
//! forwarding.

use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::mask::Mask;
use crate::audit::Found;
use crate::secret::Secret;
use crate::wire;

/// The fields of a request that pass. One that makes a request the same as another does not: under
/// one key the provider would take a stranger's for it.
const ASKED: [&str; 4] = ["accept", "user-agent", "x-app", "x-client-request-id"];
/// The beginnings of those that pass as well: what the API and its clients say of themselves.
const ASKED_PREFIXES: [&str; 3] = ["anthropic-", "x-claude-code-", "x-stainless-"];
/// The fields of an answer that pass. Rates and organisations are the operator's and do not; codings
/// come off.
const TOLD: [HeaderName; 5] = [
    CACHE_CONTROL,
    CONTENT_TYPE,
    RETRY_AFTER,
    HeaderName::from_static("request-id"),
    HeaderName::from_static("x-should-retry"),
];
/// The field in which betas are asked for, and the one that goes with a credential of `OAuth`.
const BETA: &str = "anthropic-beta";
const OAUTH_BETA: &str = "oauth-2025-04-20";
/// How a credential of `OAuth` begins; any other is an API key.
const OAUTH_PREFIX: &[u8] = b"sk-ant-oat";

/// The operator's credential at the model provider.
#[derive(Debug)]
pub(super) struct Credential {
    name: &'static str,
    value: Secret,
    is_oauth: bool,
}

impl Credential {
    /// Takes an API key, or an access token of `OAuth`, which is told by its beginning.
    pub(super) fn new(key: &Secret) -> Self {
        let is_oauth = key.expose().starts_with(OAUTH_PREFIX);
        if is_oauth {
            Self {
                name: "authorization",
                value: Secret::new([b"Bearer ", key.expose()].concat()),
                is_oauth,
            }
        } else {
            Self {
                name: "x-api-key",
                value: key.clone(),
                is_oauth,
            }
        }
    }
}

/// Returns the fields of a request as they go to the model provider. None has the caller's JWT in it,
/// wherever it was put.
pub(super) fn to_provider<'a>(
    headers: &'a HeaderMap,
    shown: &[u8],
    credential: &'a Credential,
) -> Vec<(&'a str, &'a [u8])> {
    let mut fields: Vec<_> = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .filter(|(name, value)| passes(name) && is_printable(value) && !has(value, shown))
        .filter(|(name, _)| !is_named(headers, name))
        .collect();
    let asks = |(name, value): &(&str, &[u8])| *name == BETA && has(value, OAUTH_BETA.as_bytes());
    if credential.is_oauth && !fields.iter().any(asks) {
        fields.push((BETA, OAUTH_BETA.as_bytes()));
    }
    fields.push((credential.name, credential.value.expose()));
    fields
}

fn passes(name: &str) -> bool {
    ASKED.contains(&name) || ASKED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Tells whether `Connection` says that a field is for us alone (RFC 9110 §7.6.1).
fn is_named(headers: &HeaderMap, name: &str) -> bool {
    let values = headers.get_all(CONNECTION).iter();
    let mut options = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    options.any(|option| option.trim_ascii().eq_ignore_ascii_case(name.as_bytes()))
}

fn is_printable(value: &[u8]) -> bool {
    value.iter().all(|byte| (b' '..=b'~').contains(byte))
}

fn has(value: &[u8], part: &[u8]) -> bool {
    memchr::memmem::find(value, part).is_some()
}

/// Returns the fields of an answer as they go to the caller: without the operator's credential.
pub(super) fn to_caller(answer: &wire::Fields, mask: &Mask, found: &Found) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for name in TOLD {
        for value in answer.all(name.as_str()) {
            let masked = mask.field(value, found);
            if let Ok(value) = HeaderValue::from_bytes(masked.as_deref().unwrap_or(value)) {
                headers.append(name.clone(), value);
            }
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    const JWT: &str = "eyJhbGciOiJIUzI1NiJ9.e30.c2ln";
    const KEY: &str = "sk-ant-api03-0123456789";

    fn sent(fields: &[(&'static str, &str)], key: &str) -> Vec<(String, String)> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        let credential = Credential::new(&Secret::new(key.as_bytes().to_vec()));
        let sent = to_provider(&headers, JWT.as_bytes(), &credential);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let sent = sent.into_iter();
        sent.map(|(name, value)| (name.to_owned(), text(value)))
            .collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn the_operator_s_credential_is_the_only_one() {
        let hidden = format!("a {JWT} b");
        let fields = [
            ("authorization", "Bearer x"),
            ("x-api-key", "x"),
            ("api-key", "x"),
            ("x-goog-api-key", "x"),
            ("proxy-authorization", "Basic x"),
            ("cookie", "a=b"),
            ("referer", "https://a/?token=x"),
            ("host", "evil"),
            ("forwarded", "for=1"),
            ("x-forwarded-host", "evil"),
            ("x-base-url", "https://evil"),
            ("base_url", "https://evil"),
            ("connection", "close, X-Stainless-OS ,"),
            ("connection", "x-app"),
            ("x-stainless-os", "x"),
            ("x-app", "x"),
            ("idempotency-key", "x"),
            ("content-length", "5"),
            ("x-stainless-arch", hidden.as_str()),
            ("anthropic-version", "2023-06-01"),
            ("anthropic-beta", "a,b"),
            ("user-agent", "claude-cli/2"),
        ];
        let passing = [
            ("anthropic-version", "2023-06-01"),
            ("anthropic-beta", "a,b"),
            ("user-agent", "claude-cli/2"),
        ];
        let with = |more: &[(&str, &str)]| pairs(&[&passing, more].concat());
        assert_eq!(
            sent(&fields, "sk-ant-api03-k"),
            with(&[("x-api-key", "sk-ant-api03-k")])
        );
        assert_eq!(
            sent(&fields, "sk-ant-oat01-k"),
            with(&[
                ("anthropic-beta", "oauth-2025-04-20"),
                ("authorization", "Bearer sk-ant-oat01-k"),
            ])
        );
        let asks = [("anthropic-beta", "x,oauth-2025-04-20")];
        assert_eq!(sent(&asks, "sk-ant-oat01-k").len(), 2);
    }

    #[test]
    fn an_answer_says_nothing_of_the_operator() {
        let raw = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nrequest-id: req_{KEY}\r\n\
                   anthropic-organization-id: o\r\nanthropic-ratelimit-tokens-limit: 1\r\n\
                   set-cookie: a=b\r\nlocation: https://evil/\r\nserver: x\r\nretry-after: 7\r\n\r\n";
        let raw = raw.replace("{KEY}", KEY);
        let head = wire::parse_answer(raw.into_bytes().into()).unwrap();
        let (mask, found) = (Mask::new(&Secret::new(KEY.into())), Found::default());
        let headers = to_caller(&head.fields, &mask, &found);
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-type", "request-id", "retry-after"]);
        assert_eq!(headers["request-id"], "req_[redacted]");
        assert_eq!(found.names().len(), 1);
    }
}
