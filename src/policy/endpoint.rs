//! OAuth token endpoints: where tokens are handed out, and to which hosts they belong.
//!
//! Two comparisons of a path stand here, and they differ on purpose. What must not slip through, an
//! answer with tokens, is told by [`TokenEndpoint::answers_at`], which knows the other spellings
//! that a server may take for its path. What is given, a refresh token, goes to exactly one path:
//! [`TokenEndpoint::is_at`]. It knows no values. The well-known endpoints stand in `endpoints.toml`
//! and are compiled in. Called by `session`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;

use super::{BadLine, Error, SecretScope};
use crate::host;
use crate::host::{HostPattern, HostPort};
use crate::sealed_token::Prefix;

/// The longest path of an endpoint, in bytes.
pub const ENDPOINT_PATH_LIMIT_BYTES: usize = 1024;
/// How often a path is percent-decoded before two spellings are compared.
const DECODINGS: usize = 3;

/// Says why a URL does not name a token endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// The URL does not begin with `https://`: nothing is captured in the clear.
    #[error("a token endpoint is an https:// URL")]
    Scheme,
    /// The host, or its port, cannot be read.
    #[error("the host of the URL cannot be read")]
    Host(#[source] host::Error),
    /// The URL has user information, a query or a fragment.
    #[error("a token endpoint has no user information, query or fragment")]
    Extra,
    /// The path is missing, too long, not written plainly, or has dot or empty segments.
    #[error("the path must be plain, without dot or empty segments")]
    Path,
}

/// The kinds of token that an answer may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TokenKind {
    /// `access_token` (RFC 6749 §5.1).
    Access,
    /// `id_token` (`OpenID` Connect Core §3.1.3.3).
    Id,
    /// `refresh_token` (RFC 6749 §5.1).
    Refresh,
}

impl TokenKind {
    /// Returns the name that RFC 6749 and `OpenID` Connect give it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Access => "access_token",
            Self::Id => "id_token",
            Self::Refresh => "refresh_token",
        }
    }

    /// Reads the name of a member, in any case and with or without its separators: `accessToken` is
    /// one too.
    pub fn of(name: &str) -> Option<Self> {
        let plain = name.chars().filter(|it| !matches!(it, '_' | '-' | ' '));
        let plain: String = plain.take(13).map(|it| it.to_ascii_lowercase()).collect();
        match plain.as_str() {
            "accesstoken" => Some(Self::Access),
            "idtoken" => Some(Self::Id),
            "refreshtoken" => Some(Self::Refresh),
            _ => None,
        }
    }
}

/// An endpoint that hands out tokens, reached over TLS.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenEndpoint {
    target: HostPort,
    path: Box<str>,
    own: SecretScope,
    scope: SecretScope,
    hosts: Box<[String]>,
    prefixes: Box<[Prefix]>,
}

impl TokenEndpoint {
    /// Makes an endpoint whose tokens may go to these hosts; without any, to its own.
    ///
    /// # Errors
    /// What is wrong with the URL.
    pub fn parse(url: &str) -> Result<Self, EndpointError> {
        let rest = url.strip_prefix("https://").ok_or(EndpointError::Scheme)?;
        let end = rest.find('/').unwrap_or(rest.len());
        let (authority, path) = rest.split_at_checked(end).ok_or(EndpointError::Path)?;
        if url.contains(['?', '#']) || authority.contains('@') {
            return Err(EndpointError::Extra);
        }
        let target = HostPort::parse_or(authority, 443).map_err(EndpointError::Host)?;
        if !is_plain(path) {
            return Err(EndpointError::Path);
        }
        let own = match target.port {
            443 => target.host.to_string(),
            _ => target.to_string(),
        };
        let scope = |text: &str| {
            let pattern = HostPattern::parse_exact(text).map_err(EndpointError::Host)?;
            let wild = |_lines| EndpointError::Host(host::Error::WildcardNotAllowed);
            SecretScope::hosts(vec![pattern]).map_err(wild)
        };
        Ok(Self {
            own: scope(&target.to_string())?,
            scope: scope(&own)?,
            hosts: [own].into(),
            target,
            path: path.into(),
            prefixes: Box::default(),
        })
    }

    /// Sets the exact hosts that its tokens may go to.
    ///
    /// # Errors
    /// Every host that cannot be read, in order.
    pub fn with_hosts(mut self, hosts: &[String]) -> Result<Self, Vec<BadLine>> {
        self.scope = SecretScope::parse(hosts)?;
        self.hosts = hosts.into();
        Ok(self)
    }

    /// Returns the host and port.
    pub fn target(&self) -> &HostPort {
        &self.target
    }

    /// Returns its own host with its own port: where its refresh tokens may go.
    pub fn own_scope(&self) -> &SecretScope {
        &self.own
    }

    /// Returns where its access and id tokens may go.
    pub fn scope(&self) -> &SecretScope {
        &self.scope
    }

    /// Returns the same as text, for answers.
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// Returns what its tokens may begin with, and their sealed tokens as well.
    pub fn prefixes(&self) -> &[Prefix] {
        &self.prefixes
    }

    /// Tells whether two stand for the same host, port and path.
    pub fn is_same(&self, other: &Self) -> bool {
        self.target == other.target && self.path == other.path
    }

    /// Tells whether the path of a request is exactly the endpoint's.
    pub fn is_at(&self, path: &[u8]) -> bool {
        self.path.as_bytes() == path
    }

    /// Tells whether a request for this path may be answered by the endpoint, in whatever spelling:
    /// escapes, case, dot and empty segments, parameters and an ending make no difference.
    pub fn answers_at(&self, path: &[u8]) -> bool {
        let asked = reduced(path);
        let rest = asked.strip_prefix(reduced(self.path.as_bytes()).as_slice());
        // Some servers take `token.json` for `token`, and the ending for a wish.
        // A query or a fragment that is escaped ends the path for others.
        rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'.' | b'#' | b'?' | 0)))
    }

    /// Returns the exact path.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for TokenEndpoint {
    /// Writes the URL without its scheme.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.target.port {
            443 => write!(f, "{}{}", self.target.host, self.path),
            _ => write!(f, "{}{}", self.target, self.path),
        }
    }
}

impl fmt::Debug for TokenEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Tells whether a path reads the same to everybody.
fn is_plain(path: &str) -> bool {
    let odd = |byte: u8| !byte.is_ascii_graphic() || b"\\;\"<>^`{|}".contains(&byte);
    let Some(segments) = path.strip_prefix('/') else {
        return false;
    };
    let dots = |it: &str| it.is_empty() || it.starts_with('.');
    path.len() <= ENDPOINT_PATH_LIMIT_BYTES
        && !path.bytes().any(odd)
        && !segments.split('/').any(dots)
}

/// Brings a path to the form that a lenient server may take it for.
fn reduced(path: &[u8]) -> Vec<u8> {
    let mut text = path.to_ascii_lowercase();
    for _ in 0..DECODINGS {
        text = decoded(&text);
    }
    text.make_ascii_lowercase();
    let mut kept: Vec<&[u8]> = Vec::new();
    for segment in text.split(|byte| matches!(byte, b'/' | b'\\')) {
        let segment = segment
            .split(|byte| *byte == b';')
            .next()
            .unwrap_or_default();
        match segment.trim_ascii() {
            b"" | b"." => {}
            b".." => drop(kept.pop()),
            other => kept.push(other),
        }
    }
    kept.join(&b'/')
}

/// Tells whether a path has a segment that leads upwards, for anybody who decodes it, however often
/// and wherever segments end. Where it leads depends on the segments that the reader sees before it.
pub fn leads_upwards(path: &[u8]) -> bool {
    let mut text = path.to_owned();
    for _ in 0..=DECODINGS {
        let mut segments = text.split(|byte| matches!(byte, b'/' | b'\\' | b';'));
        if segments.any(|segment| segment.trim_ascii() == b"..") {
            return true;
        }
        text = decoded(&text);
    }
    false
}

/// Percent-decodes once; what is no escape stays.
fn decoded(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, behind)) = rest.split_first() {
        let escape = behind.get(..2).filter(|_| *first == b'%');
        let byte = escape.and_then(|it| u8::from_str_radix(std::str::from_utf8(it).ok()?, 16).ok());
        out.push(byte.unwrap_or(*first));
        rest = behind
            .get(if byte.is_some() { 2 } else { 0 }..)
            .unwrap_or_default();
    }
    out
}

/// An issuer as it stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIssuer {
    endpoints: Vec<String>,
    hosts: Vec<String>,
    #[serde(default)]
    prefixes: Vec<String>,
}

/// Reads the well-known endpoints, which are compiled in. They are parsed here, so make them once
/// and share them.
#[expect(
    clippy::expect_used,
    reason = "the text is a constant of the program, and a test parses it"
)]
pub fn known_token_endpoints() -> Arc<[Arc<TokenEndpoint>]> {
    let known = parse_issuers(include_str!("endpoints.toml"));
    let known = known.expect("the compiled-in endpoints parse").into_iter();
    known.map(Arc::new).collect()
}

/// Parses a list of issuers.
fn parse_issuers(text: &str) -> Result<Vec<TokenEndpoint>, Error> {
    let raw: BTreeMap<Box<str>, RawIssuer> =
        toml::from_str(text).map_err(|error| Error::Catalogue(Box::new(error)))?;
    let mut endpoints = Vec::new();
    for (name, issuer) in raw {
        let faulty = || Error::CatalogueEntry {
            name: name.to_string(),
        };
        let prefixes: Option<Box<[Prefix]>> =
            issuer.prefixes.iter().map(|it| Prefix::parse(it)).collect();
        let prefixes = prefixes.ok_or_else(faulty)?;
        if issuer.endpoints.is_empty() || issuer.hosts.is_empty() {
            return Err(faulty());
        }
        for url in &issuer.endpoints {
            let endpoint = TokenEndpoint::parse(url).map_err(|_why| faulty())?;
            endpoints.push(TokenEndpoint {
                prefixes: prefixes.clone(),
                ..endpoint
                    .with_hosts(&issuer.hosts)
                    .map_err(|_lines| faulty())?
            });
        }
    }
    Ok(endpoints)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use EndpointError as E;

    use super::*;

    fn endpoint(url: &str) -> TokenEndpoint {
        TokenEndpoint::parse(url).unwrap()
    }

    #[test]
    fn urls_are_exact_or_refused() {
        for (url, shown, hosts) in [
            (
                "https://idp.example.com/token",
                "idp.example.com/token",
                "idp.example.com",
            ),
            (
                "https://IDP.example.com:443/a/B",
                "idp.example.com/a/B",
                "idp.example.com",
            ),
            (
                "https://idp.example.com:8443/t",
                "idp.example.com:8443/t",
                "idp.example.com:8443",
            ),
            (
                "https://[2606:4700::1]/t%20x",
                "[2606:4700::1]/t%20x",
                "[2606:4700::1]",
            ),
        ] {
            let endpoint = endpoint(url);
            assert_eq!(endpoint.to_string(), shown);
            assert_eq!(endpoint.hosts(), [hosts]);
        }
        for (url, expected) in [
            ("", E::Scheme),
            ("http://idp.example.com/token", E::Scheme),
            ("HTTPS://idp.example.com/token", E::Scheme),
            ("idp.example.com/token", E::Scheme),
            ("https:///token", E::Host(host::Error::Empty)),
            (
                "https://*.example.com/token",
                E::Host(host::Error::Malformed),
            ),
            (
                "https://idp.example.com:/token",
                E::Host(host::Error::BadPort),
            ),
            ("https://user@idp.example.com/token", E::Extra),
            ("https://idp.example.com/token?x=1", E::Extra),
            ("https://idp.example.com/token#x", E::Extra),
            ("https://idp.example.com", E::Path),
            ("https://idp.example.com/", E::Path),
            ("https://idp.example.com/a//token", E::Path),
            ("https://idp.example.com/a/../token", E::Path),
            ("https://idp.example.com/token/", E::Path),
            ("https://idp.example.com/to ken", E::Path),
            ("https://idp.example.com/token;v=1", E::Path),
            ("https://idp.example.com/t\u{f6}ken", E::Path),
        ] {
            assert_eq!(TokenEndpoint::parse(url).unwrap_err(), expected, "{url}");
        }
        let long = format!("https://idp.example.com/{}", "a".repeat(1024));
        assert_eq!(TokenEndpoint::parse(&long).unwrap_err(), E::Path);
        let hosts = ["a.example.com", "*.b.example.com"].map(str::to_owned);
        assert!(
            endpoint("https://a.example.com/t")
                .with_hosts(&hosts)
                .is_err()
        );
    }

    #[test]
    fn a_token_is_given_to_one_path_and_watched_for_at_many() {
        let endpoint = endpoint("https://idp.example.com/v1/oauth/token");
        for path in [
            "/v1/oauth/token/",
            "//v1/oauth//token",
            "/v1/./oauth/token",
            "/x/../v1/oauth/token",
            "/../v1/oauth/token",
            "/V1/OAuth/Token",
            "/v1/oauth/%74oken",
            "/v1%2foauth%2Ftoken",
            "/v1%252Foauth%252Ftoken",
            "/v1/oauth/token;x=1",
            "/v1;a/oauth;b/token",
            "/v1\\oauth\\token",
            "/v1/oauth/token.json",
            "/v1/oauth/token%00",
            "/v1/oauth/token%20",
            "/v1/x/%2e%2e/oauth/token",
        ] {
            assert!(endpoint.answers_at(path.as_bytes()), "{path}");
            assert!(!endpoint.is_at(path.as_bytes()), "{path}");
        }
        assert!(endpoint.is_at(b"/v1/oauth/token") && endpoint.answers_at(b"/v1/oauth/token"));
        for path in [
            "/",
            "",
            "/v1/oauth",
            "/v1/oauth/token/x",
            "/v1/oauth/tokens",
            "/v2/oauth/token",
            "/oauth/token",
            "/v1/oauth/token/../x",
            "/v1/oauth/%25",
            "/v1/oauth/%7",
        ] {
            assert!(!endpoint.answers_at(path.as_bytes()), "{path}");
        }
    }

    #[test]
    fn kinds_have_many_spellings_and_no_others() {
        for (name, expected) in [
            ("access_token", Some(TokenKind::Access)),
            ("accessToken", Some(TokenKind::Access)),
            ("Access-Token", Some(TokenKind::Access)),
            ("refresh_token", Some(TokenKind::Refresh)),
            ("REFRESHTOKEN", Some(TokenKind::Refresh)),
            ("id_token", Some(TokenKind::Id)),
            ("idToken", Some(TokenKind::Id)),
            ("token", None),
            ("token_type", None),
            ("access_token_expires_in", None),
            ("refresh_token_expires_in", None),
            ("device_code", None),
            ("", None),
        ] {
            assert_eq!(TokenKind::of(name), expected, "{name}");
        }
    }

    #[test]
    fn the_documented_table_is_the_data() {
        let mut expected = String::new();
        for endpoint in known_token_endpoints().iter() {
            let quoted = |it: &String| format!("`{it}`");
            let hosts: Vec<String> = endpoint.hosts().iter().map(quoted).collect();
            writeln!(expected, "| `{endpoint}` | {} |", hosts.join(", ")).unwrap();
        }
        let page = include_str!("../../docs/catalogue.md");
        let table = page
            .split_once("| token endpoint | hosts of its tokens |\n|---|---|\n")
            .map(|(_, rows)| rows.split("\n\n").next().unwrap_or_default().trim_end());
        assert_eq!(table, Some(expected.trim_end()));
    }

    #[test]
    fn faulty_lists_are_refused() {
        let good = "[a]\nendpoints = [\"https://a.example/t\"]\nhosts = [\"a.example\"]\n";
        assert_eq!(parse_issuers(good).unwrap().len(), 1);
        for text in [
            format!("{good}other = 1"),
            format!("{good}prefixes = [\"a b\"]"),
            good.replace("https", "http"),
            good.replace("[\"a.example\"]", "[]"),
            good.replace("[\"a.example\"]", "[\"*.a.example\"]"),
            "[a]\nendpoints = []\nhosts = [\"a.example\"]".to_owned(),
        ] {
            assert!(parse_issuers(&text).is_err(), "{text}");
        }
    }
}
