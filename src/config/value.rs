//! The values a setting can have: how each is read from text or TOML, and printed again.
//!
//! An expectation says what would be right and never what was given. Called by the table of
//! settings; it knows no key and no source.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::host::{Host, HostPort};
use crate::policy::Cidr;
use crate::secret::Secret;
use crate::telemetry::LogFormat;
use crate::upstream::UpstreamProxy;

use super::settings::Shape;
use super::{AuditSink, OnFull, PublicUrl, Resolve, Trust};

/// The fewest characters of an API key.
const API_KEY_LEAST_CHARACTERS: usize = 16;
/// The most characters of an API key: it has to fit a header field with room to spare.
const API_KEY_MOST_CHARACTERS: usize = 512;
/// The longest deadline that can be set, in milliseconds: one day.
const MOST_MILLISECONDS: i64 = 86_400_000;
/// The largest number of connections that can be set.
const MOST_CONNECTIONS: i64 = 1_000_000;
/// The largest number of bytes, or of anything else with 32 bits, that can be set: the largest
/// window of HTTP/2 (RFC 9113 §6.9.1).
const MOST_OF_32_BITS: i64 = 0x7fff_ffff;
/// The text that turns a limit off.
const NO_LIMIT: &str = "none";

/// A value as a source gave it, before anybody knows whether it is right.
pub(super) enum Raw {
    /// Text without a type: an environment variable.
    Untyped(Zeroizing<String>),
    /// The values of a flag, in order.
    Words(Vec<String>),
    /// A TOML string.
    Text(String),
    /// A TOML integer.
    Integer(i64),
    /// A TOML boolean, or a flag without value.
    Bool(bool),
    /// A TOML array.
    List(Vec<Self>),
    /// Any other TOML value; no setting takes one.
    Other,
}

/// A value that one text holds.
pub(super) trait Item: Sized {
    /// What would be right, for people.
    const EXPECTS: &'static str;
    /// The placeholder in the help text.
    const NAME: &'static str;
    /// The text that turns the setting off.
    const OFF: Option<&'static str> = None;

    /// Reads the text, or says nothing: [`Item::EXPECTS`] is the whole answer.
    fn parse(text: &str) -> Option<Self>;

    /// Prints what [`Item::parse`] would read.
    fn print(&self) -> String;
}

/// A value of a setting.
pub(super) trait Value: Sized {
    /// Whether it is one value, several, or a switch.
    const SHAPE: Shape;
    /// The placeholder in the help text.
    const NAME: &'static str;

    /// Reads what a source gave, or lists what would have been right.
    fn read(raw: &Raw) -> Result<Self, Vec<String>>;

    /// Prints the value in TOML; nothing where it is not set.
    fn to_toml(&self) -> Option<String>;
}

impl<T: Item> Value for Option<T> {
    const SHAPE: Shape = Shape::One;
    const NAME: &'static str = T::NAME;

    fn read(raw: &Raw) -> Result<Self, Vec<String>> {
        let text = one_text(raw).ok_or_else(expects::<T>)?;
        if T::OFF == Some(text) {
            return Ok(None);
        }
        T::parse(text).map(Some).ok_or_else(expects::<T>)
    }

    fn to_toml(&self) -> Option<String> {
        match self {
            Some(item) => Some(quote(&item.print())),
            None => T::OFF.map(quote),
        }
    }
}

impl<T: Item> Value for Vec<T> {
    const SHAPE: Shape = Shape::Many;
    const NAME: &'static str = T::NAME;

    fn read(raw: &Raw) -> Result<Self, Vec<String>> {
        let texts: Vec<Option<&str>> = match raw {
            Raw::Untyped(text) if text.is_empty() => Vec::new(),
            Raw::Untyped(text) => text.split(',').map(|part| Some(part.trim())).collect(),
            Raw::Words(words) => words.iter().map(|word| Some(word.as_str())).collect(),
            Raw::List(list) => list.iter().map(one_text).collect(),
            Raw::Text(_) | Raw::Integer(_) | Raw::Bool(_) | Raw::Other => {
                return Err(vec![format!("expects a list, each entry {}", T::EXPECTS)]);
            }
        };
        let mut items = Self::with_capacity(texts.len());
        let mut wrong = Vec::new();
        for (index, text) in texts.into_iter().enumerate() {
            match text.and_then(T::parse) {
                Some(item) => items.push(item),
                None => wrong.push(format!("entry {} expects {}", index + 1, T::EXPECTS)),
            }
        }
        if wrong.is_empty() {
            Ok(items)
        } else {
            Err(wrong)
        }
    }

    fn to_toml(&self) -> Option<String> {
        let entries: Vec<String> = self.iter().map(|item| quote(&item.print())).collect();
        Some(format!("[{}]", entries.join(", ")))
    }
}

impl Value for Duration {
    const SHAPE: Shape = Shape::One;
    const NAME: &'static str = "MS";

    fn read(raw: &Raw) -> Result<Self, Vec<String>> {
        whole_number(raw, MOST_MILLISECONDS)
            .map(Self::from_millis)
            .ok_or_else(|| {
                vec![format!(
                    "expects a whole number of milliseconds from 1 to {MOST_MILLISECONDS}"
                )]
            })
    }

    fn to_toml(&self) -> Option<String> {
        Some(self.as_millis().to_string())
    }
}

impl Value for usize {
    const SHAPE: Shape = Shape::One;
    const NAME: &'static str = "N";

    fn read(raw: &Raw) -> Result<Self, Vec<String>> {
        whole_number(raw, MOST_CONNECTIONS)
            .and_then(|number| Self::try_from(number).ok())
            .ok_or_else(|| {
                vec![format!(
                    "expects a whole number from 1 to {MOST_CONNECTIONS}"
                )]
            })
    }

    fn to_toml(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl Value for u32 {
    const SHAPE: Shape = Shape::One;
    const NAME: &'static str = "N";

    fn read(raw: &Raw) -> Result<Self, Vec<String>> {
        whole_number(raw, MOST_OF_32_BITS)
            .and_then(|number| Self::try_from(number).ok())
            .ok_or_else(|| {
                vec![format!(
                    "expects a whole number from 1 to {MOST_OF_32_BITS}"
                )]
            })
    }

    fn to_toml(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl Value for u64 {
    const SHAPE: Shape = Shape::One;
    const NAME: &'static str = "N";

    fn read(raw: &Raw) -> Result<Self, Vec<String>> {
        whole_number(raw, i64::MAX)
            .ok_or_else(|| vec![format!("expects a whole number from 1 to {}", i64::MAX)])
    }

    fn to_toml(&self) -> Option<String> {
        Some(self.to_string())
    }
}

/// Makes a limit that `none` turns off.
macro_rules! with_none {
    ($($type:ty),+) => {$(
        impl Value for Option<$type> {
            const SHAPE: Shape = <$type>::SHAPE;
            const NAME: &'static str = <$type>::NAME;

            fn read(raw: &Raw) -> Result<Self, Vec<String>> {
                if one_text(raw) == Some(NO_LIMIT) {
                    return Ok(None);
                }
                let wrong = |text: String| format!("{text}, or none");
                let number = <$type>::read(raw);
                number.map(Some).map_err(|all| all.into_iter().map(wrong).collect())
            }

            fn to_toml(&self) -> Option<String> {
                self.map_or_else(|| Some(quote(NO_LIMIT)), |limit| limit.to_toml())
            }
        }
    )+};
}

with_none!(Duration, u32, u64);

impl Value for bool {
    const SHAPE: Shape = Shape::Switch;
    const NAME: &'static str = "BOOL";

    fn read(raw: &Raw) -> Result<Self, Vec<String>> {
        let value = match raw {
            Raw::Bool(value) => Some(*value),
            Raw::Untyped(text) => text.parse().ok(),
            Raw::Words(_) | Raw::Text(_) | Raw::Integer(_) | Raw::List(_) | Raw::Other => None,
        };
        value.ok_or_else(|| vec!["expects true or false".to_owned()])
    }

    fn to_toml(&self) -> Option<String> {
        Some(self.to_string())
    }
}

/// Makes a value out of an enum whose variants have one word each.
macro_rules! words {
    ($type:ty, $expects:literal, $name:literal, $($word:literal => $variant:path),+) => {
        impl Value for $type {
            const SHAPE: Shape = Shape::One;
            const NAME: &'static str = $name;

            fn read(raw: &Raw) -> Result<Self, Vec<String>> {
                match one_text(raw) {
                    $(Some($word) => Ok($variant),)+
                    _ => Err(vec![$expects.to_owned()]),
                }
            }

            fn to_toml(&self) -> Option<String> {
                Some(quote(match self { $($variant => $word),+ }))
            }
        }
    };
}

words!(LogFormat, "expects json or text", "json|text",
    "json" => LogFormat::Json, "text" => LogFormat::Text);
words!(Trust, "expects public or system", "public|system",
    "public" => Trust::Public, "system" => Trust::System);
words!(AuditSink, "expects file or stdout", "file|stdout",
    "file" => AuditSink::File, "stdout" => AuditSink::Stdout);
words!(OnFull, "expects gap or refuse", "gap|refuse",
    "gap" => OnFull::Gap, "refuse" => OnFull::Refuse);
words!(UnscopedSecrets, "expects refuse or any_host", "refuse|any_host",
    "refuse" => UnscopedSecrets::Refuse, "any_host" => UnscopedSecrets::AnyHost);

impl Item for String {
    const EXPECTS: &'static str = "a shell command";
    const NAME: &'static str = "CMD";

    fn parse(text: &str) -> Option<Self> {
        (!text.trim().is_empty() && !text.contains('\0')).then(|| text.to_owned())
    }

    fn print(&self) -> String {
        self.clone()
    }
}

/// What happens to a secret that neither its session nor the catalogue gives a scope.
#[derive(Clone, Copy, Default)]
pub(super) enum UnscopedSecrets {
    /// The session is refused.
    #[default]
    Refuse,
    /// The secret may go to every host.
    AnyHost,
}

impl Item for SocketAddr {
    const EXPECTS: &'static str = "an address and port such as 127.0.0.1:8080, or none";
    const NAME: &'static str = "ADDR";
    const OFF: Option<&'static str> = Some("none");

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn print(&self) -> String {
        self.to_string()
    }
}

impl Item for PathBuf {
    const EXPECTS: &'static str = "a path";
    const NAME: &'static str = "FILE";

    fn parse(text: &str) -> Option<Self> {
        (!text.is_empty() && !text.contains('\0')).then(|| Self::from(text))
    }

    fn print(&self) -> String {
        self.display().to_string()
    }
}

impl Item for PublicUrl {
    const EXPECTS: &'static str =
        "http://HOST[:PORT] or https://HOST[:PORT], without path, user or query";
    const NAME: &'static str = "URL";

    fn parse(text: &str) -> Option<Self> {
        Self::parse(text)
    }

    fn print(&self) -> String {
        self.to_string()
    }
}

impl Item for UpstreamProxy {
    const EXPECTS: &'static str = "http://[USER[:PASSWORD]@]HOST:PORT or the same with https, \
         with special characters of user and password percent-encoded";
    const NAME: &'static str = "URL";
    const OFF: Option<&'static str> = Some("none");

    fn parse(text: &str) -> Option<Self> {
        Self::parse(text)
    }

    fn print(&self) -> String {
        self.to_string()
    }
}

impl Item for Resolve {
    const EXPECTS: &'static str =
        "HOST=IP or HOST=IP:PORT with a name as HOST (IPv6 in brackets before a port)";
    const NAME: &'static str = "HOST=IP[:PORT]";

    fn parse(text: &str) -> Option<Self> {
        let (host, target) = text.split_once('=')?;
        let host = Host::parse(host).ok()?;
        // An address is never looked up: an entry for one would do nothing, in silence.
        host.name()?;
        let (ip, port) = if let Ok(ip) = target.parse::<IpAddr>() {
            (ip, None)
        } else if let Ok(Host::V6(ip)) = Host::parse(target) {
            (IpAddr::V6(ip), None)
        } else {
            let target = HostPort::parse(target).ok()?;
            (target.host.ip()?, Some(target.port))
        };
        Some(Self { host, ip, port })
    }

    fn print(&self) -> String {
        self.to_string()
    }
}

impl Item for Cidr {
    const EXPECTS: &'static str = "an address range such as 10.0.0.0/8, with no bit set after the \
         prefix (IPv4 in IPv4 form)";
    const NAME: &'static str = "CIDR";

    fn parse(text: &str) -> Option<Self> {
        // Addresses are compared in IPv4 form: a mapped range would open nothing, in silence.
        let mapped = |network: Ipv6Addr| network.to_ipv4_mapped().is_some();
        let network = text.split_once('/').map_or(text, |(network, _)| network);
        if network.parse().is_ok_and(mapped) {
            return None;
        }
        Self::parse(text).ok()
    }

    fn print(&self) -> String {
        self.to_string()
    }
}

impl Item for Secret {
    const EXPECTS: &'static str = "16 to 512 visible ASCII characters without blanks";
    const NAME: &'static str = "KEY";

    fn parse(text: &str) -> Option<Self> {
        let length = API_KEY_LEAST_CHARACTERS..=API_KEY_MOST_CHARACTERS;
        let fits = length.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        fits.then(|| Self::new(text.as_bytes().to_vec()))
    }

    fn print(&self) -> String {
        "redacted".to_owned()
    }
}

/// Puts text into a TOML basic string.
pub(super) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.extend(format!("\\u{:04X}", u32::from(c)).chars()),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn expects<T: Item>() -> Vec<String> {
    vec![format!("expects {}", T::EXPECTS)]
}

/// Returns the text of a value that is one text, from whichever source.
pub(super) fn one_text(raw: &Raw) -> Option<&str> {
    match raw {
        Raw::Untyped(text) => Some(text),
        Raw::Text(text) => Some(text),
        // clap refuses a second one where a single value is meant.
        Raw::Words(words) => words.last().map(String::as_str),
        Raw::Integer(_) | Raw::Bool(_) | Raw::List(_) | Raw::Other => None,
    }
}

/// Reads a number from 1 to `most`. A TOML string is none: a file has types.
fn whole_number(raw: &Raw, most: i64) -> Option<u64> {
    let digits = |text: &str| {
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| text.parse::<i64>().ok())?
    };
    let number = match raw {
        Raw::Integer(number) => *number,
        Raw::Untyped(text) => digits(text)?,
        Raw::Words(words) => digits(words.last()?)?,
        Raw::Text(_) | Raw::Bool(_) | Raw::List(_) | Raw::Other => return None,
    };
    (1..=most)
        .contains(&number)
        .then(|| u64::try_from(number).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text<T: Item>(text: &str) -> Option<String> {
        T::parse(text).map(|item| item.print())
    }

    #[test]
    fn items_are_read_strictly_and_print_back() {
        for (given, expected) in [
            ("127.0.0.1:0", Some("127.0.0.1:0")),
            ("[::1]:8080", Some("[::1]:8080")),
            ("8080", None),
            ("localhost:8080", None),
            ("127.0.0.1", None),
        ] {
            assert_eq!(text::<SocketAddr>(given).as_deref(), expected, "{given}");
        }
        for (given, expected) in [
            ("a.example=10.0.0.1", Some("a.example=10.0.0.1")),
            ("A.example.=10.0.0.1:8443", Some("a.example=10.0.0.1:8443")),
            ("a.example=::1", Some("a.example=::1")),
            ("a.example=[::1]", Some("a.example=::1")),
            ("a.example=[::1]:8443", Some("a.example=[::1]:8443")),
            ("a.example=::1:8443", Some("a.example=::1:8443")),
            ("a.example", None),
            ("a.example=", None),
            ("a.example=b.example", None),
            ("a.example=10.0.0.1:0", None),
            ("a.example:443=10.0.0.1", None),
            ("10.0.0.2=10.0.0.1", None),
            ("=10.0.0.1", None),
        ] {
            assert_eq!(text::<Resolve>(given).as_deref(), expected, "{given}");
        }
        for (given, expected) in [
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("192.168.1.7/32", Some("192.168.1.7/32")),
            ("fd00::/8", Some("fd00::/8")),
            ("::1/128", Some("::1/128")),
            ("::/0", Some("::/0")),
            ("10.0.0.1/8", None),
            ("fd00::1/8", None),
            ("10.0.0.0/33", None),
            ("::/129", None),
            ("10.0.0.0/+8", None),
            ("10.0.0.0/", None),
            ("10.0.0.7", Some("10.0.0.7/32")),
            ("::ffff:10.0.0.0/104", None),
        ] {
            assert_eq!(text::<Cidr>(given).as_deref(), expected, "{given}");
        }
        for (given, expected) in [
            ("https://Vault.example", Some("https://vault.example")),
            ("https://vault.example:443/", Some("https://vault.example")),
            ("HTTP://10.0.0.1:8080", Some("http://10.0.0.1:8080")),
            ("https://[::1]:8443", Some("https://[::1]:8443")),
            ("vault.example", None),
            ("ftp://vault.example", None),
            ("https://", None),
            ("https://vault.example/x", None),
            ("https://vault.example?x", None),
            ("https://user@vault.example", None),
        ] {
            assert_eq!(text::<PublicUrl>(given).as_deref(), expected, "{given}");
        }
    }

    #[test]
    fn api_keys_fit_a_header() {
        for (given, fits) in [
            ("0123456789abcdef", true),
            ("0123456789abcde", false),
            ("0123456789 abcdef", false),
            ("0123456789abcdef\n", false),
            ("0123456789abcdefé", false),
        ] {
            assert_eq!(<Secret as Item>::parse(given).is_some(), fits, "{given:?}");
        }
        assert!(<Secret as Item>::parse(&"k".repeat(512)).is_some());
        assert!(<Secret as Item>::parse(&"k".repeat(513)).is_none());
    }

    #[test]
    fn a_file_has_types_and_the_environment_has_none() {
        let untyped = |text: &str| Raw::Untyped(text.to_owned().into());
        for (raw, expected) in [
            (Raw::Integer(5000), Some(5000)),
            (untyped("5000"), Some(5000)),
            (Raw::Text("5000".to_owned()), None),
            (Raw::Integer(0), None),
            (Raw::Integer(-1), None),
            (Raw::Integer(86_400_001), None),
            (untyped("+5"), None),
            (untyped(""), None),
            (untyped("99999999999999999999"), None),
        ] {
            let read = Duration::read(&raw).ok().map(|value| value.as_millis());
            assert_eq!(read, expected);
        }
        assert!(matches!(bool::read(&untyped("true")), Ok(true)));
        assert!(bool::read(&untyped("yes")).is_err());
        assert!(bool::read(&Raw::Text("true".to_owned())).is_err());
    }

    #[test]
    fn every_bad_entry_of_a_list_is_named() {
        let raw = Raw::Untyped("10.0.0.0/8, x,fd00::/8,10.0.0.1/8".to_owned().into());
        let wrong = Vec::<Cidr>::read(&raw).unwrap_err();
        assert_eq!(wrong.len(), 2);
        assert!(wrong[0].starts_with("entry 2 expects an address range"));
        assert!(wrong[1].starts_with("entry 4 expects"));
        assert!(Vec::<Cidr>::read(&Raw::Untyped(String::new().into())).is_ok());
        assert!(Vec::<Cidr>::read(&Raw::Text("10.0.0.0/8".to_owned())).is_err());
    }

    #[test]
    fn quoted_text_is_toml() {
        let text = "a\"b\\c\u{1}\u{7f}\n";
        let parsed: toml::Table = toml::from_str(&format!("x = {}", quote(text))).unwrap();
        assert_eq!(parsed["x"].as_str(), Some(text));
    }
}
