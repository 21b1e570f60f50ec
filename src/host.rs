//! Host names and address literals: the one parser, canonical form and matcher.
//!
//! Everything that compares two hosts compares two values of this module, so that no spelling
//! (case, trailing dot, odd number forms of an address) can make two parts of the program disagree.
//! It never resolves a name. Called by every layer above.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

/// The longest host name accepted, in bytes (RFC 1035 §2.3.4, without the root label).
pub const NAME_LIMIT_BYTES: usize = 253;
/// The longest label accepted, in bytes (RFC 1035 §2.3.4).
pub const LABEL_LIMIT_BYTES: usize = 63;

/// Says why a host, an authority or a pattern was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text is empty.
    #[error("host is empty")]
    Empty,
    /// A byte that no host name or literal may have, or an empty label.
    #[error("host has a character or an empty label that no host name may have")]
    Malformed,
    /// The name or one of its labels is over the limit of RFC 1035.
    #[error("host name or label is too long")]
    TooLong,
    /// The last label is a number but the whole is not a dotted-quad address. Such forms
    /// (`127.1`, `0x7f000001`, `2130706433`) mean an address to some resolvers (WHATWG URL §3.5).
    #[error("host looks like a number but is not a plain IPv4 address")]
    OddAddress,
    /// A bracketed literal that is not an IPv6 address without a zone.
    #[error("bracketed host is not an IPv6 address")]
    BadIpv6,
    /// The port is missing where it must be given.
    #[error("port is missing")]
    PortMissing,
    /// The port is not a number from 1 to 65535.
    #[error("port is not a number from 1 to 65535")]
    BadPort,
    /// A wildcard that is not `*.` followed by at least two labels.
    #[error("wildcard must be `*.` followed by a name of at least two labels")]
    BadWildcard,
    /// A wildcard where only exact hosts are meant.
    #[error("only exact hosts are allowed here, no wildcard")]
    WildcardNotAllowed,
    /// A range of addresses (`10.0.0.0/8`) where a host is meant.
    #[error("address ranges are not hosts")]
    Range,
}

/// A host in canonical form: a lower-case name without trailing dot, or an address.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// A DNS name: ASCII, lower case, no trailing dot.
    Name(Arc<str>),
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// An IPv6 address.
    V6(Ipv6Addr),
}

impl Host {
    /// Parses a host as it stands in an authority: a name, `1.2.3.4` or `[::1]`.
    ///
    /// # Errors
    /// See [`Error`]; a port, user info, zone id or non-ASCII character is refused.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(Error::BadIpv6)?;
            return Ipv6Addr::from_str(inner)
                .map(Self::V6)
                .map_err(|_ignored| Error::BadIpv6);
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() {
            return Err(Error::Empty);
        }
        if name.len() > NAME_LIMIT_BYTES {
            return Err(Error::TooLong);
        }
        let mut last = "";
        for label in name.split('.') {
            check_label(label)?;
            last = label;
        }
        if is_numeric(last) {
            return Ipv4Addr::from_str(name)
                .map(Self::V4)
                .map_err(|_ignored| Error::OddAddress);
        }
        Ok(Self::Name(name.to_ascii_lowercase().into()))
    }

    /// Returns the address where the host is one, and nothing for a name.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Name(_) => None,
            Self::V4(address) => Some(IpAddr::V4(*address)),
            Self::V6(address) => Some(IpAddr::V6(*address)),
        }
    }

    /// Returns the name where the host is one, and nothing for an address.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Name(name) => Some(name),
            Self::V4(_) | Self::V6(_) => None,
        }
    }
}

impl From<IpAddr> for Host {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => Self::V6(address),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::V4(address) => write!(f, "{address}"),
            Self::V6(address) => write!(f, "[{address}]"),
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Host {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

/// A host and a port: what a tunnel, a request or a pool entry is about.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// The host, canonical.
    pub host: Host,
    /// The port, never 0.
    pub port: u16,
}

impl HostPort {
    /// Pairs a host with a port.
    pub fn new(host: Host, port: u16) -> Self {
        Self { host, port }
    }

    /// Parses `host:port` where both parts must be given (the target of CONNECT, RFC 9110 §9.3.6).
    ///
    /// # Errors
    /// See [`Error`].
    pub fn parse(text: &str) -> Result<Self, Error> {
        let (host, port) = split_port(text)?;
        Ok(Self::new(
            Host::parse(host)?,
            parse_port(port.ok_or(Error::PortMissing)?)?,
        ))
    }

    /// Parses `host` or `host:port`, with the port to assume where none is given (a `Host` field).
    ///
    /// # Errors
    /// See [`Error`]; `host:` with an empty port is refused.
    pub fn parse_or(text: &str, default_port: u16) -> Result<Self, Error> {
        let (host, port) = split_port(text)?;
        let port = port.map_or(Ok(default_port), parse_port)?;
        Ok(Self::new(Host::parse(host)?, port))
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One line of a list of hosts: an exact host or `*.name`, with a port where one was written.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct HostPattern {
    form: Form,
    port: Option<u16>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Form {
    Exact(Host),
    /// Holds the name after `*.`; matches it and everything below it.
    Suffix(Arc<str>),
}

impl HostPattern {
    /// Parses an exact host or a wildcard: `api.example.com`, `*.example.com:8443`, `[::1]:443`.
    ///
    /// # Errors
    /// `*` alone, `*.tld`, a wildcard elsewhere than in front, and address ranges are refused.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.contains('/') {
            return Err(Error::Range);
        }
        let Some(rest) = text.strip_prefix('*') else {
            return Self::parse_exact(text);
        };
        let (name, port) = split_port(rest.strip_prefix('.').ok_or(Error::BadWildcard)?)?;
        let port = port.map(parse_port).transpose()?;
        match Host::parse(name)? {
            Host::Name(name) if name.contains('.') => Ok(Self {
                form: Form::Suffix(name),
                port,
            }),
            Host::Name(_) | Host::V4(_) | Host::V6(_) => Err(Error::BadWildcard),
        }
    }

    /// Parses an exact host with an optional port.
    ///
    /// # Errors
    /// A wildcard is [`Error::WildcardNotAllowed`], a range [`Error::Range`].
    pub fn parse_exact(text: &str) -> Result<Self, Error> {
        if text.contains('*') {
            return Err(Error::WildcardNotAllowed);
        }
        if text.contains('/') {
            return Err(Error::Range);
        }
        let (host, port) = split_port(text)?;
        let port = port.map(parse_port).transpose()?;
        Ok(Self {
            form: Form::Exact(Host::parse(host)?),
            port,
        })
    }

    /// Tells whether the host is the one named, or lies at or below the wildcard's name.
    pub fn matches_host(&self, host: &Host) -> bool {
        match (&self.form, host) {
            (Form::Exact(exact), host) => exact == host,
            (Form::Suffix(suffix), Host::Name(name)) => name
                .strip_suffix(suffix.as_ref())
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
            (Form::Suffix(_), Host::V4(_) | Host::V6(_)) => false,
        }
    }

    /// Tells whether every host that the other pattern matches is matched by this one, ports aside.
    pub fn contains(&self, other: &Self) -> bool {
        match (&self.form, &other.form) {
            (_, Form::Exact(host)) => self.matches_host(host),
            // A wildcard matches its own name, and all it matches lies below that.
            (Form::Suffix(_), Form::Suffix(name)) => {
                self.matches_host(&Host::Name(Arc::clone(name)))
            }
            (Form::Exact(_), Form::Suffix(_)) => false,
        }
    }

    /// Returns the port that was written, if any.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Returns the exact host, and nothing for a wildcard.
    pub fn exact(&self) -> Option<&Host> {
        match &self.form {
            Form::Exact(host) => Some(host),
            Form::Suffix(_) => None,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.form {
            Form::Exact(host) => write!(f, "{host}")?,
            Form::Suffix(name) => write!(f, "*.{name}")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl fmt::Debug for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Splits off what follows the colon of an authority; an IPv6 literal must stand in brackets.
fn split_port(text: &str) -> Result<(&str, Option<&str>), Error> {
    if text.starts_with('[') {
        let (inner, rest) = text.split_once(']').ok_or(Error::BadIpv6)?;
        let host_length = inner.len() + 1;
        let host = text.get(..host_length).ok_or(Error::BadIpv6)?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(Error::Malformed),
        };
    }
    match text.split_once(':') {
        Some((_, port)) if port.contains(':') => Err(Error::Malformed),
        Some((host, port)) => Ok((host, Some(port))),
        None => Ok((text, None)),
    }
}

fn parse_port(text: &str) -> Result<u16, Error> {
    if text.is_empty() || text.len() > 5 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Error::BadPort);
    }
    match text.parse::<u16>() {
        Ok(0) | Err(_) => Err(Error::BadPort),
        Ok(port) => Ok(port),
    }
}

fn check_label(label: &str) -> Result<(), Error> {
    if label.is_empty() {
        return Err(Error::Malformed);
    }
    if label.len() > LABEL_LIMIT_BYTES {
        return Err(Error::TooLong);
    }
    // Underscore is no letter of RFC 952, but real services have it in their names.
    let plain = label
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if plain { Ok(()) } else { Err(Error::Malformed) }
}

/// Tells whether a last label makes WHATWG's parser read the whole host as an IPv4 address.
fn is_numeric(label: &str) -> bool {
    let digits = label.bytes().all(|byte| byte.is_ascii_digit());
    let hex = label
        .strip_prefix("0x")
        .or_else(|| label.strip_prefix("0X"))
        .is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_hexdigit()));
    digits || hex
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_one_canonical_form() {
        for (text, canonical) in [
            ("Example.COM", "example.com"),
            ("example.com.", "example.com"),
            ("a_b.example", "a_b.example"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("127.0.0.1", "127.0.0.1"),
            ("127.0.0.1.", "127.0.0.1"),
            ("[::1]", "[::1]"),
            ("[0:0:0:0:0:FFFF:7f00:1]", "[::ffff:127.0.0.1]"),
        ] {
            let host = Host::parse(text).unwrap();
            assert_eq!(host.to_string(), canonical, "{text}");
            assert_eq!(Host::parse(canonical).unwrap(), host, "{text}");
        }
    }

    #[test]
    fn odd_hosts_are_refused() {
        for (text, error) in [
            ("", Error::Empty),
            (".", Error::Empty),
            ("..", Error::Malformed),
            (".good", Error::Malformed),
            ("a..b", Error::Malformed),
            ("good..", Error::Malformed),
            ("bücher.example", Error::Malformed),
            ("user@good", Error::Malformed),
            ("good/x", Error::Malformed),
            ("good%2e", Error::Malformed),
            ("good\\x", Error::Malformed),
            ("go\0od", Error::Malformed),
            ("*.wild", Error::Malformed),
            ("127.1", Error::OddAddress),
            ("2130706433", Error::OddAddress),
            ("0x7f000001", Error::OddAddress),
            ("0x7f.1", Error::OddAddress),
            ("0177.0.0.1", Error::OddAddress),
            ("0", Error::OddAddress),
            ("a.0x", Error::OddAddress),
            ("256.0.0.1", Error::OddAddress),
            ("[good]", Error::BadIpv6),
            ("[fe80::1%25lo]", Error::BadIpv6),
            ("[::1", Error::BadIpv6),
        ] {
            assert_eq!(Host::parse(text), Err(error), "{text:?}");
        }
        assert_eq!(Host::parse(&"a".repeat(64)), Err(Error::TooLong));
        assert_eq!(
            Host::parse(&"a.".repeat(127)).map(|h| h.to_string().len()),
            Ok(253)
        );
        assert_eq!(
            Host::parse(&format!("{}a", "a.".repeat(127))),
            Err(Error::TooLong)
        );
    }

    #[test]
    fn authorities_are_strict() {
        assert_eq!(HostPort::parse("Good:443").unwrap().to_string(), "good:443");
        assert_eq!(
            HostPort::parse("[::1]:443").unwrap().to_string(),
            "[::1]:443"
        );
        for (text, error) in [
            ("good", Error::PortMissing),
            ("good:", Error::BadPort),
            ("good:0", Error::BadPort),
            ("good:65536", Error::BadPort),
            ("good:443abc", Error::BadPort),
            ("good:+443", Error::BadPort),
            ("good:443:443", Error::Malformed),
            ("::1:443", Error::Malformed),
            ("[::1]443", Error::Malformed),
            (":443", Error::Empty),
        ] {
            assert_eq!(HostPort::parse(text), Err(error), "{text:?}");
        }
        assert_eq!(HostPort::parse_or("good", 80).unwrap().port, 80);
        assert_eq!(HostPort::parse_or("good:81", 80).unwrap().port, 81);
    }

    #[test]
    fn a_pattern_contains_what_it_matches_and_no_more() {
        for (outer, inner, expected) in [
            ("a.example", "a.example", true),
            ("a.example", "b.example", false),
            ("a.example", "*.a.example", false),
            ("*.a.example", "a.example", true),
            ("*.a.example", "b.a.example", true),
            ("*.a.example", "*.a.example", true),
            ("*.a.example", "*.b.a.example:8443", true),
            ("*.b.a.example", "*.a.example", false),
            ("*.a.example", "*.xa.example", false),
            ("*.a.example", "1.2.3.4", false),
            ("1.2.3.4", "1.2.3.4", true),
        ] {
            let [outer, inner] = [outer, inner].map(|text| HostPattern::parse(text).unwrap());
            assert_eq!(outer.contains(&inner), expected, "{outer} {inner}");
        }
    }

    #[test]
    fn patterns_match_what_is_documented() {
        let wild = HostPattern::parse("*.GitHub.com").unwrap();
        for (host, expected) in [
            ("github.com", true),
            ("api.github.com", true),
            ("raw.a.github.com", true),
            ("xgithub.com", false),
            ("github.com.evil.example", false),
            ("github.io", false),
            ("1.2.3.4", false),
        ] {
            assert_eq!(
                wild.matches_host(&Host::parse(host).unwrap()),
                expected,
                "{host}"
            );
        }
        let exact = HostPattern::parse("api.openai.com:8443").unwrap();
        assert_eq!(exact.port(), Some(8443));
        assert!(exact.matches_host(&Host::parse("API.openai.com.").unwrap()));
        assert!(!exact.matches_host(&Host::parse("beta.openai.com").unwrap()));
        for (text, error) in [
            ("*", Error::BadWildcard),
            ("*.com", Error::BadWildcard),
            ("*com.example", Error::BadWildcard),
            ("*.1.2.3.4", Error::BadWildcard),
            ("a.*.example", Error::WildcardNotAllowed),
            ("10.0.0.0/8", Error::Range),
            ("", Error::Empty),
        ] {
            assert_eq!(HostPattern::parse(text), Err(error), "{text:?}");
        }
        assert_eq!(
            HostPattern::parse_exact("*.a.b"),
            Err(Error::WildcardNotAllowed)
        );
    }
}
