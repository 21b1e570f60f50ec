//! The upstream proxy as an operator writes it: a URL, with credentials or without.
//!
//! The credentials are kept as the one field value they are sent in and are overwritten at the end;
//! nothing that prints the proxy shows them. It never connects. Read by the configuration, used by
//! the chain.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::host::HostPort;
use crate::policy::Scheme;
use crate::secret::Secret;

/// The longest user and password together as they are written, in bytes.
const CREDENTIALS_LIMIT_BYTES: usize = 2048;

/// A proxy that every connection to an upstream goes through.
#[derive(Clone)]
pub struct UpstreamProxy {
    scheme: Scheme,
    authority: HostPort,
    /// The value of `Proxy-Authorization`.
    authorization: Option<Secret>,
}

impl UpstreamProxy {
    /// Parses `http://[USER[:PASSWORD]@]HOST:PORT` or the same with `https`; nothing for any other
    /// text. The port must be written, since programs do not agree on the one that goes without
    /// saying. In user and password all but letters, digits and `-._~!$&'()*+,;=` is
    /// percent-encoded (RFC 3986 §3.2.1); one slash at the end is allowed.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return None,
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (authorization, authority) = match rest.rsplit_once('@') {
            Some((credentials, authority)) => (Some(basic(credentials)?), authority),
            None => (None, rest),
        };
        Some(Self {
            scheme,
            authority: HostPort::parse(authority).ok()?,
            authorization,
        })
    }

    /// Returns how the proxy itself is spoken to.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Returns its host and port.
    pub fn authority(&self) -> &HostPort {
        &self.authority
    }

    /// Returns the value of `Proxy-Authorization` (RFC 7617).
    pub(super) fn authorization(&self) -> Option<&Secret> {
        self.authorization.as_ref()
    }
}

impl PartialEq for UpstreamProxy {
    fn eq(&self, other: &Self) -> bool {
        let value = |proxy: &Self| proxy.authorization.as_ref().map(Secret::expose_shared);
        (self.scheme, &self.authority) == (other.scheme, &other.authority)
            && value(self) == value(other)
    }
}

impl Eq for UpstreamProxy {}

impl fmt::Display for UpstreamProxy {
    /// Prints the URL. What stands there for credentials is refused when it is read again: a
    /// printed configuration must not send wrong ones, nor go around the proxy.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        let credentials = match self.authorization {
            Some(_) => "[redacted]@",
            None => "",
        };
        write!(f, "{scheme}://{credentials}{}", self.authority)
    }
}

impl fmt::Debug for UpstreamProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Makes the field value of `USER` or `USER:PASSWORD` as it stands in a URL.
fn basic(credentials: &str) -> Option<Secret> {
    if credentials.is_empty() || credentials.len() > CREDENTIALS_LIMIT_BYTES {
        return None;
    }
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    let mut pair = Zeroizing::new(Vec::with_capacity(credentials.len() + 1));
    decode(user, &mut pair)?;
    // A colon in the user would move the border to the password (RFC 7617 §2).
    if pair.contains(&b':') {
        return None;
    }
    pair.push(b':');
    decode(password, &mut pair)?;
    let encoded = Zeroizing::new(STANDARD.encode(&*pair));
    Some(Secret::new([b"Basic ", encoded.as_bytes()].concat()))
}

/// Appends what a part of the credentials means; nothing for a character that must be encoded, a
/// broken encoding, or an encoded control character.
fn decode(text: &str, into: &mut Vec<u8>) -> Option<()> {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let meant = match byte {
            b'%' => hex(bytes.next()?)? << 4 | hex(bytes.next()?)?,
            byte if byte.is_ascii_alphanumeric() => byte,
            byte if b"-._~!$&'()*+,;=:".contains(&byte) => byte,
            _ => return None,
        };
        if meant.is_ascii_control() {
            return None;
        }
        into.push(meant);
    }
    Some(())
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(text: &str) -> Option<String> {
        let proxy = UpstreamProxy::parse(text).unwrap_or_else(|| panic!("{text}"));
        let value = proxy.authorization()?.expose();
        let encoded = value.strip_prefix(b"Basic ").unwrap();
        Some(String::from_utf8(STANDARD.decode(encoded).unwrap()).unwrap())
    }

    #[test]
    fn urls_are_read_strictly() {
        for (given, expected) in [
            ("http://proxy.example:3128", "http://proxy.example:3128"),
            ("HTTPS://Proxy.Example.:443/", "https://proxy.example:443"),
            ("http://10.0.0.1:80", "http://10.0.0.1:80"),
            ("https://[fd00::1]:3128", "https://[fd00::1]:3128"),
            (
                "http://u:p@proxy.example:3128",
                "http://[redacted]@proxy.example:3128",
            ),
        ] {
            let proxy = UpstreamProxy::parse(given).unwrap_or_else(|| panic!("{given}"));
            assert_eq!(proxy.to_string(), expected);
            assert_eq!(format!("{proxy:?}"), expected);
        }
        for bad in [
            "",
            "proxy.example:3128",
            "http://proxy.example",
            "http://proxy.example:",
            "http://proxy.example:0",
            "http://:3128",
            "socks5://proxy.example:1080",
            "http://proxy.example:3128/x",
            "http://proxy.example:3128//",
            "http://proxy.example:3128?x",
            "http://proxy.example:3128#x",
            "http://@proxy.example:3128",
            "http://a@b@proxy.example:3128",
            "http://u:p/w@proxy.example:3128",
            "http://u:p w@proxy.example:3128",
            "http://u:p%@proxy.example:3128",
            "http://u:p%4@proxy.example:3128",
            "http://u:p%+4@proxy.example:3128",
            "http://u:p%0d%0aX@proxy.example:3128",
            "http://u%3a:p@proxy.example:3128",
            "http://u:\u{e9}@proxy.example:3128",
            "http://[redacted]@proxy.example:3128",
        ] {
            assert!(UpstreamProxy::parse(bad).is_none(), "{bad}");
        }
        let long = |length| format!("http://{}@proxy.example:1", "u".repeat(length));
        assert!(UpstreamProxy::parse(&long(CREDENTIALS_LIMIT_BYTES)).is_some());
        assert!(UpstreamProxy::parse(&long(CREDENTIALS_LIMIT_BYTES + 1)).is_none());
    }

    #[test]
    fn credentials_are_decoded_once_and_sent_as_basic() {
        for (given, expected) in [
            ("http://proxy.example:1", None),
            ("http://user:pass@proxy.example:1", Some("user:pass")),
            ("http://user@proxy.example:1", Some("user:")),
            ("http://user:@proxy.example:1", Some("user:")),
            ("http://:pass@proxy.example:1", Some(":pass")),
            ("http://u:a:b@proxy.example:1", Some("u:a:b")),
            (
                "http://DOM%5cu:p%40%2F%25%3A@proxy.example:1",
                Some("DOM\\u:p@/%:"),
            ),
            ("http://u:%2541@proxy.example:1", Some("u:%41")),
            ("http://u:%C3%A9@proxy.example:1", Some("u:\u{e9}")),
        ] {
            assert_eq!(sent(given).as_deref(), expected, "{given}");
        }
    }

    #[test]
    fn nothing_that_is_printed_has_the_credentials() {
        let proxy = UpstreamProxy::parse("http://canary:canary@proxy.example:1").unwrap();
        let printed = format!("{proxy} {proxy:?} {proxy:#?}");
        let encoded = STANDARD.encode("canary:canary");
        assert!(
            !printed.contains("canary") && !printed.contains(&encoded),
            "{printed}"
        );
        let other = UpstreamProxy::parse("http://canary:other@proxy.example:1").unwrap();
        assert_ne!(proxy, other);
        assert_eq!(proxy, proxy.clone());
    }
}
