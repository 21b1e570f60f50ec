//! Sealed tokens: the names that stand for secrets, and the places where one may stand.
//!
//! A sealed token is `SEALED_` and 32 lower-case hex digits, with an optional prefix that belongs
//! to its exact bytes. It carries nothing: it is looked up in one session and means nothing
//! elsewhere. This module makes, parses and prints tokens and decides about places; it never sees
//! a real value. Called by `swap` (which finds tokens) and `session` (which knows them).

use std::fmt;
use std::sync::Arc;

use data_encoding::HEXLOWER;

/// The fixed text that the scanner looks for. It never changes: tokens live in images and files.
pub const MARKER: &[u8] = b"SEALED_";
/// The number of hex digits behind the marker.
pub const DIGITS: usize = 32;
/// The length of a token without prefix, in bytes.
pub const BARE_LENGTH: usize = MARKER.len() + DIGITS;
/// The longest prefix, in bytes.
pub const PREFIX_LIMIT_BYTES: usize = 64;

/// The 128 random bits that tell one sealed token from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenId([u8; 16]);

impl TokenId {
    /// Makes a fresh random id.
    #[expect(
        clippy::expect_used,
        reason = "the generator seeds itself at start-up; a process without randomness cannot go on"
    )]
    pub fn generate() -> Self {
        let mut bytes = [0; 16];
        aws_lc_rs::rand::fill(&mut bytes).expect("the system's random generator works");
        Self(bytes)
    }

    /// Reads the 32 hex digits that must open `text`; nothing if they are not there in lower case.
    pub fn read(text: &[u8]) -> Option<Self> {
        let digits = text.get(..DIGITS)?;
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let (Some(high), Some(low)) = (pair.first(), pair.get(1)) else {
                return None;
            };
            *byte = (nibble(*high)? << 4) | nibble(*low)?;
        }
        Some(Self(bytes))
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// What stands before the marker in a prefixed token: 1 to 64 characters of `[A-Za-z0-9._~-]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix(Arc<str>);

impl Prefix {
    /// Parses a prefix; nothing if it is empty, too long or has another character.
    pub fn parse(text: &str) -> Option<Self> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._~-".contains(&byte);
        let ok = (1..=PREFIX_LIMIT_BYTES).contains(&text.len()) && text.bytes().all(plain);
        ok.then(|| Self(text.into()))
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A sealed token: its id and its prefix, if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedToken {
    id: TokenId,
    prefix: Option<Prefix>,
}

impl SealedToken {
    /// Makes a fresh token.
    pub fn generate(prefix: Option<Prefix>) -> Self {
        Self {
            id: TokenId::generate(),
            prefix,
        }
    }

    /// Parses what a token prints, prefix included; nothing for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let (prefix, bare) = text.split_at_checked(text.len().checked_sub(BARE_LENGTH)?)?;
        let digits = bare.as_bytes().strip_prefix(MARKER)?;
        let prefix = match prefix {
            "" => None,
            text => Some(Prefix::parse(text)?),
        };
        Some(Self {
            id: TokenId::read(digits)?,
            prefix,
        })
    }

    /// Returns the id.
    pub fn id(&self) -> TokenId {
        self.id
    }

    /// Returns the prefix's bytes; empty for a bare token.
    pub fn prefix(&self) -> &[u8] {
        self.prefix
            .as_ref()
            .map_or(b"", |prefix| prefix.as_str().as_bytes())
    }
}

impl fmt::Display for SealedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = self.prefix.as_ref().map_or("", Prefix::as_str);
        write!(f, "{prefix}SEALED_{}", HEXLOWER.encode(&self.id.0))
    }
}

/// Where in a request a token was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// In the body.
    Body,
    /// In the value of the field of this name, in any spelling.
    Header(&'a [u8]),
    /// In the path of the target.
    Path,
    /// In the query of the target.
    Query,
}

/// The places where one secret may be put. The default allows none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "four independent places, each allowed or not"
)]
pub struct Places {
    /// Any field but those of the fixed list of [`is_data_field`].
    pub any_header: bool,
    /// Fields of these names, lower case.
    pub headers: Vec<Box<str>>,
    /// The query of the target.
    pub query: bool,
    /// The path of the target.
    pub path: bool,
    /// The body.
    pub body: bool,
    /// The body of requests for exactly this path; see [`Self::allow_body_of`].
    pub body_of: Option<Box<str>>,
}

impl Places {
    /// Tells whether a token may be swapped in the body of a request for this path.
    pub fn allow_body_of(&self, path: &[u8]) -> bool {
        self.body
            || self
                .body_of
                .as_ref()
                .is_some_and(|own| own.as_bytes() == path)
    }

    /// Tells whether a token may be swapped at the place.
    pub fn allow(&self, place: Place<'_>) -> bool {
        match place {
            Place::Body => self.body,
            Place::Header(name) => {
                self.headers
                    .iter()
                    .any(|own| own.as_bytes().eq_ignore_ascii_case(name))
                    || (self.any_header && !is_data_field(name))
            }
            Place::Path => self.path,
            Place::Query => self.query,
        }
    }
}

/// Tells whether a field carries data or routing rather than a credential: such a field never
/// receives a secret that is allowed "in any header", since servers echo, log or act on it.
pub fn is_data_field(name: &[u8]) -> bool {
    const WHOLE: [&[u8]; 14] = [
        b"host",
        b"cookie",
        b"referer",
        b"origin",
        b"user-agent",
        b"via",
        b"forwarded",
        b"range",
        b"connection",
        b"keep-alive",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    ];
    const STARTS: [&[u8]; 8] = [
        b"x-forwarded-",
        b"if-",
        b"accept",
        b"content-",
        b"access-control-",
        b"sec-",
        b"proxy-",
        b"http2-",
    ];
    WHOLE.iter().any(|whole| whole.eq_ignore_ascii_case(name))
        || STARTS.iter().any(|start| {
            name.get(..start.len())
                .is_some_and(|head| head.eq_ignore_ascii_case(start))
        })
        || name
            .windows(6)
            .any(|part| part.eq_ignore_ascii_case(b"-meta-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_print_and_read_back() {
        let token = SealedToken::generate(None);
        let text = token.to_string();
        assert_eq!(text.len(), BARE_LENGTH);
        assert_eq!(
            TokenId::read(&text.as_bytes()[MARKER.len()..]),
            Some(token.id())
        );
        let prefixed = SealedToken::generate(Prefix::parse("ghp_"));
        assert!(prefixed.to_string().starts_with("ghp_SEALED_"));
    }

    #[test]
    fn whole_tokens_parse_and_nothing_else_does() {
        for prefix in [None, Prefix::parse("ghp_"), Prefix::parse("SEALED_")] {
            let token = SealedToken::generate(prefix);
            assert_eq!(SealedToken::parse(&token.to_string()), Some(token));
        }
        let bare = SealedToken::generate(None).to_string();
        let cut = bare.trim_start_matches('S');
        for text in [
            "",
            "SEALED_",
            cut,
            &format!("{bare}0"),
            &format!("a b{bare}"),
            &format!("\u{e9}{cut}"),
            &bare.to_uppercase(),
        ] {
            assert_eq!(SealedToken::parse(text), None, "{text}");
        }
    }

    #[test]
    fn near_misses_do_not_read() {
        let digits = b"0123456789abcdef0123456789abcdef";
        assert!(TokenId::read(digits).is_some());
        assert!(TokenId::read(&[digits.as_slice(), b"0"].concat()).is_some());
        assert!(TokenId::read(&digits[1..]).is_none());
        assert!(TokenId::read(&digits.to_ascii_uppercase()).is_none());
        assert!(TokenId::read(b"0123456789abcdef0123456789abcdeg").is_none());
    }

    #[test]
    fn prefixes_are_plain() {
        for (text, ok) in [
            ("ghp_", true),
            ("a.b~c-d_E1", true),
            ("", false),
            ("a b", false),
            ("a:b", false),
        ] {
            assert_eq!(Prefix::parse(text).is_some(), ok, "{text}");
        }
        assert!(Prefix::parse(&"a".repeat(65)).is_none());
    }

    #[test]
    fn nothing_is_allowed_by_default() {
        let none = Places::default();
        for place in [
            Place::Body,
            Place::Header(b"authorization"),
            Place::Path,
            Place::Query,
        ] {
            assert!(!none.allow(place), "{place:?}");
        }
    }

    #[test]
    fn any_header_leaves_data_fields_out() {
        let any = Places {
            any_header: true,
            ..Places::default()
        };
        for name in [
            "authorization",
            "X-Api-Key",
            "x-goog-api-key",
            "private-token",
            "metadata",
        ] {
            assert!(any.allow(Place::Header(name.as_bytes())), "{name}");
        }
        for name in [
            "Host",
            "cookie",
            "Referer",
            "ORIGIN",
            "User-Agent",
            "via",
            "Forwarded",
            "X-Forwarded-For",
            "Range",
            "If-Match",
            "Accept",
            "Accept-Language",
            "Content-Type",
            "Access-Control-Request-Headers",
            "Sec-Fetch-Mode",
            "x-amz-meta-a",
            "X-Object-Meta-B",
            "Connection",
            "TE",
            "Upgrade",
            "Proxy-Authorization",
            "Transfer-Encoding",
        ] {
            assert!(!any.allow(Place::Header(name.as_bytes())), "{name}");
        }
        let named = Places {
            headers: vec!["cookie".into()],
            ..Places::default()
        };
        assert!(
            named.allow(Place::Header(b"Cookie")),
            "a name that was asked for is allowed"
        );
        assert!(!named.allow(Place::Header(b"authorization")));
    }
}
