//! The settings of signing in with GitHub, and where people come back to.
//!
//! There is no route without the client's id, and none that needs its secret without that. Nobody is
//! sent back anywhere that is not listed letter for letter. Called by the checks.

use std::fmt;

use super::Origin;
use super::gateway::{ServiceUrl, Word};
use super::raw::Reading;
use super::settings::Shape;
use super::value::{Item, Raw, Value, one_text, quote};
use crate::secret::Secret;

const CLIENT_ID: &str = "github.client_id";
pub(super) const CLIENT_SECRET: &str = "github.client_secret";
const RETURN_TO: &str = "github.return_to";
/// The longest address that people are sent back to, in bytes.
const RETURN_LIMIT_BYTES: usize = 256;
/// Schemes that a browser itself does something with.
const SCHEMES_OF_BROWSERS: [&str; 10] = [
    "about",
    "blob",
    "chrome",
    "data",
    "file",
    "filesystem",
    "ftp",
    "javascript",
    "vbscript",
    "view-source",
];

/// Settings of signing in with GitHub (`[github]`).
#[derive(Debug, Clone)]
pub struct Github {
    /// Where people sign in.
    pub url: ServiceUrl,
    /// The id of the OAuth app; no route without.
    pub client_id: Option<Word>,
    /// Its secret; codes cannot be exchanged without.
    pub client_secret: Option<Secret>,
    /// Where the callback may send people.
    pub return_to: Vec<ReturnTo>,
    /// Whether codes are exchanged without the verifier of RFC 7636.
    pub pkce: Pkce,
    /// Requests of one address a minute.
    pub requests_per_minute: u32,
}

impl Default for Github {
    /// GitHub's own address, no client, and nowhere to return to.
    fn default() -> Self {
        Self {
            url: ServiceUrl::literal("https://github.com"),
            client_id: None,
            client_secret: None,
            return_to: Vec::new(),
            pkce: Pkce::Optional,
            requests_per_minute: 30,
        }
    }
}

/// Whether whoever exchanges a code has to show that it was asked for by them (RFC 7636).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pkce {
    /// What they show is passed on.
    Optional,
    /// Codes are not exchanged without.
    Required,
}

impl Value for Pkce {
    const SHAPE: Shape = Shape::One;
    const NAME: &'static str = "optional|required";

    fn read(raw: &Raw) -> Result<Self, Vec<String>> {
        match one_text(raw) {
            Some("optional") => Ok(Self::Optional),
            Some("required") => Ok(Self::Required),
            _ => Err(vec!["expects optional or required".to_owned()]),
        }
    }

    fn to_toml(&self) -> Option<String> {
        let word = match self {
            Self::Optional => "optional",
            Self::Required => "required",
        };
        Some(quote(word))
    }
}

/// An address that people are sent back to, as it stands: an origin, or the URL of an application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReturnTo(String);

impl ReturnTo {
    /// Parses `https://HOST[:PORT][/PATH]`, the same with http for loopback, or the URL of an
    /// application such as `myapp://`; without user, query and fragment.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let scheme_fits = scheme.starts_with(|first: char| first.is_ascii_lowercase())
            && scheme
                .bytes()
                .all(|byte| is_word(byte) || b"+-.".contains(&byte));
        let rest_fits = rest
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._~:/[]".contains(&byte));
        let place_fits = match scheme {
            "https" => !rest.is_empty() && !rest.starts_with('/'),
            "http" => is_loopback(rest),
            scheme => !SCHEMES_OF_BROWSERS.contains(&scheme),
        };
        let fits = scheme_fits && rest_fits && place_fits && text.len() <= RETURN_LIMIT_BYTES;
        fits.then(|| Self(text.to_owned()))
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Tells whether nobody but its owner gets what is sent there. An application of the same scheme
    /// may be anybody's, and so may a port of this machine's.
    pub fn is_one_s_own(&self) -> bool {
        self.0.starts_with("https://")
    }
}

/// Tells whether what stands after `http://` is on this machine.
fn is_loopback(rest: &str) -> bool {
    let authority = rest.split('/').next().unwrap_or_default();
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    matches!(host, "localhost" | "127.0.0.1" | "[::1]")
}

impl fmt::Display for ReturnTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Item for ReturnTo {
    const EXPECTS: &'static str = "https://HOST[:PORT][/PATH], the same with http for a loopback \
         address, or the URL of an application such as myapp://, without user, query or escapes";
    const NAME: &'static str = "URL";

    fn parse(text: &str) -> Option<Self> {
        Self::parse(text)
    }

    fn print(&self) -> String {
        self.to_string()
    }
}

/// Refuses a secret and addresses without the client that they belong to.
pub(super) fn check(reading: &mut Reading) {
    const CLIENT_SECRET_FILE: &str = "github.client_secret_file";
    if !reading.trusts(&[CLIENT_ID, CLIENT_SECRET, CLIENT_SECRET_FILE, RETURN_TO]) {
        return;
    }
    let github = &reading.draft.config.github;
    if github.client_id.is_some() {
        return;
    }
    let needs = [
        (github.client_secret.is_some(), CLIENT_SECRET),
        (!github.return_to.is_empty(), RETURN_TO),
    ];
    for (_, other) in needs.into_iter().filter(|(is_given, _)| *is_given) {
        let expectation = format!("is needed beside {other}");
        reading.report(CLIENT_ID, expectation, Origin::Missing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_sent_back_to_plain_places_only() {
        for good in [
            "https://app.example.com",
            "https://app.example.com:8443/signed-in",
            "http://localhost:3000",
            "http://127.0.0.1:3000/x",
            "http://[::1]:3000",
            "myapp://",
            "exp://192.168.1.5:8081",
            "com.example.app://callback",
        ] {
            let place = ReturnTo::parse(good).unwrap();
            assert_eq!(place.as_str(), good);
            assert_eq!(place.is_one_s_own(), good.starts_with("https:"), "{good}");
        }
        for bad in [
            "",
            "app.example.com",
            "https://",
            "https:///path",
            "https:app.example.com",
            "http://app.example.com",
            "http://localhost.example.com",
            "http://127.0.0.1.example.com:80",
            "https://user@app.example.com",
            "https://app.example.com?x=1",
            "https://app.example.com#x",
            "https://app.example.com/%2e",
            "https://app.example.com\\@evil.example",
            "https://app.example.com/ x",
            "https://app.example.com/\r\nx: y",
            "javascript://%0aalert(1)",
            "javascript://x",
            "data://x",
            "JavaScript://x",
            "1app://x",
            "*://x",
        ] {
            assert_eq!(ReturnTo::parse(bad), None, "{bad}");
        }
        let long = format!("https://{}", "a".repeat(RETURN_LIMIT_BYTES));
        assert_eq!(ReturnTo::parse(&long), None);
    }
}
