//! Identifiers: newtypes for tenants, their API keys, sessions, requests, accounts and sandboxes.
//!
//! Random ones carry 128 bits of the operating system's randomness and no order or time. An id is
//! public: it may stand in logs, audit records and answers. It is never a proof of anything.

use std::fmt;
use std::sync::Arc;

use data_encoding::HEXLOWER;

/// The number of random bytes in a random id.
const RANDOM_BYTES: usize = 16;

/// Names a tenant: the customer of the vault.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(Arc<str>);

impl TenantId {
    /// Wraps a tenant's name as the operator chose it.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// Parses a name that a new tenant may have: 1 to 63 of `a-z`, `0-9`, `.`, `_` and `-`, the
    /// first a letter or digit. Nothing for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let good = (1..=Self::LONGEST).contains(&text.len())
            && text.bytes().next().is_some_and(plain)
            && text
                .bytes()
                .all(|byte| plain(byte) || b"._-".contains(&byte));
        good.then(|| Self::new(text))
    }

    /// The longest name that [`TenantId::parse`] takes, in bytes.
    pub const LONGEST: usize = 63;

    /// Returns the text form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Makes the type of an id that is a fixed start and 32 random lower-case hex digits.
macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The fixed start of every such id.
            pub const PREFIX: &str = $prefix;

            /// Makes a fresh random id.
            pub fn generate() -> Self {
                Self(format!("{}{}", Self::PREFIX, random_hex()).into())
            }

            /// Parses the wire form; nothing for any other text.
            pub fn parse(text: &str) -> Option<Self> {
                let digits = text.strip_prefix(Self::PREFIX)?;
                is_random_hex(digits).then(|| Self(text.into()))
            }

            /// Returns the wire form.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

random_id!(
    /// Names an API key of a tenant: `key_` and 32 lower-case hex digits. It is no part of the key.
    ApiKeyId,
    "key_"
);
random_id!(
    /// Names a session: `sess_` and 32 lower-case hex digits.
    SessionId,
    "sess_"
);

/// Names one request to the management API: `req_` and 32 lower-case hex digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// Makes a fresh random id.
    pub fn generate() -> Self {
        Self(format!("req_{}", random_hex()).into())
    }

    /// Returns the wire form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The most characters of an account's id: as many as `WorkOS` takes for an external one.
const ACCOUNT_LIMIT: usize = 64;
/// The most characters of a sandbox's name.
const SANDBOX_NAME_LIMIT: usize = 128;

/// Names an account: a person as GitHub numbers them, or as whoever signs the workload JWTs does.
///
/// 1 to 64 characters of `[A-Za-z0-9._-]`, the first a letter or digit, so that it stands in a path
/// as it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountId(Arc<str>);

impl AccountId {
    /// Parses an id; nothing for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        is_plain_name(text, ACCOUNT_LIMIT).then(|| Self(text.into()))
    }

    /// Returns the id of an account that has a number, as GitHub's have.
    pub fn of_number(number: u64) -> Self {
        Self(number.to_string().into())
    }

    /// Returns the text form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names a sandbox as its owner calls it: 1 to 128 characters of `[A-Za-z0-9._-]`, the first a
/// letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SandboxName(Arc<str>);

impl SandboxName {
    /// Parses a name; nothing for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        is_plain_name(text, SANDBOX_NAME_LIMIT).then(|| Self(text.into()))
    }

    /// Returns the text form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SandboxName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_plain_name(text: &str, limit: usize) -> bool {
    let mut bytes = text.bytes();
    text.len() <= limit
        && bytes
            .next()
            .is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Fills a buffer with the operating system's randomness.
#[expect(
    clippy::expect_used,
    reason = "the generator seeds itself at start-up; a process without randomness cannot go on"
)]
pub fn fill_random(buffer: &mut [u8]) {
    aws_lc_rs::rand::fill(buffer).expect("the system's random generator works");
}

fn random_hex() -> String {
    let mut bytes = [0; RANDOM_BYTES];
    fill_random(&mut bytes);
    HEXLOWER.encode(&bytes)
}

fn is_random_hex(text: &str) -> bool {
    text.len() == 2 * RANDOM_BYTES
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_ids_are_distinct_and_parse_back() {
        let ids: std::collections::HashSet<_> = (0..1000).map(|_| SessionId::generate()).collect();
        assert_eq!(ids.len(), 1000);
        for id in ids {
            assert_eq!(SessionId::parse(id.as_str()), Some(id));
        }
    }

    #[test]
    fn tenants_have_plain_short_names() {
        let longest = "x".repeat(63);
        for text in ["a", "0", "acme", "team-1.prod_eu", &longest] {
            assert_eq!(TenantId::parse(text), Some(TenantId::new(text)));
        }
        let longer = "x".repeat(64);
        for text in [
            "", &longer, "Acme", ".a", "-a", "_a", "a/b", "a b", "a\n", "a\0", "\u{e4}", "%61",
            "a%2fb",
        ] {
            assert_eq!(TenantId::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn key_ids_parse_back_and_nothing_else_does() {
        let id = ApiKeyId::generate();
        assert_eq!(ApiKeyId::parse(id.as_str()), Some(id.clone()));
        assert_eq!(ApiKeyId::parse(&id.as_str().to_uppercase()), None);
        assert_eq!(ApiKeyId::parse(SessionId::generate().as_str()), None);
    }

    #[test]
    fn other_texts_are_no_session_ids() {
        let digits = "0123456789abcdef0123456789abcdef";
        assert!(SessionId::parse(&format!("sess_{digits}")).is_some());
        for text in [
            String::new(),
            digits.to_owned(),
            format!("sess_{digits}0"),
            format!("sess_{}", digits.to_uppercase()),
            format!("SESS_{digits}"),
            format!("sess_{}", digits.replace('f', "g")),
        ] {
            assert_eq!(SessionId::parse(&text), None, "{text}");
        }
    }

    #[test]
    fn accounts_and_sandboxes_have_plain_names() {
        let (longest, too_long) = ("a".repeat(64), "a".repeat(65));
        for text in ["1", "583231", "user_01H", "a.b-c", longest.as_str()] {
            assert_eq!(AccountId::parse(text).unwrap().as_str(), text);
        }
        for text in [
            "",
            ".",
            "..",
            "-a",
            "_a",
            "a/b",
            "a b",
            "a%2e",
            "ä",
            too_long.as_str(),
        ] {
            assert_eq!(AccountId::parse(text), None, "{text}");
        }
        assert_eq!(AccountId::of_number(7), AccountId::parse("7").unwrap());
        assert!(SandboxName::parse(&"a".repeat(128)).is_some());
        assert_eq!(SandboxName::parse(&"a".repeat(129)), None);
        assert_eq!(SandboxName::parse("a/b"), None);
    }
}
