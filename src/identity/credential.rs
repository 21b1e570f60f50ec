//! Where callers put their JWT: the header fields and query parameters that clients use.
//!
//! The order is fixed: `x-api-key`, Bearer, Basic (password, then user), then the query's `token`,
//! `api_key` and `key`. The first value that has the form of a JWS counts, and two different ones
//! are no credential: a reader further in might take the other. Nothing is verified here. Called by
//! `gateway` before anything else is looked at.

use data_encoding::BASE64;
use zeroize::Zeroizing;

use super::jws;

/// The names under which the query may have a credential, in their order.
const PARAMETERS: [&str; 3] = ["token", "api_key", "key"];

/// What a request shows.
#[derive(Clone, PartialEq, Eq)]
pub enum Presented {
    /// Two JWTs that differ.
    Conflict,
    /// No JWT.
    None,
    /// One JWT, once or several times.
    One(Zeroizing<String>),
}

impl std::fmt::Debug for Presented {
    /// Shows the variant only.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Conflict => "Conflict",
            Self::None => "None",
            Self::One(_) => "One(redacted)",
        })
    }
}

/// Finds the JWT of a request among its fields (name and value) and its query, without the `?`.
pub fn presented<'a, F>(fields: &F, query: Option<&str>) -> Presented
where
    F: Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
{
    let all = |wanted: &'static [u8]| {
        let named = fields.clone();
        named.filter_map(move |(name, value)| name.eq_ignore_ascii_case(wanted).then_some(value))
    };
    let mut found = Found::default();
    for value in all(b"x-api-key") {
        found.add(value);
    }
    for value in all(b"authorization") {
        if let Some(token) = of_scheme(value, b"bearer") {
            found.add(token);
        }
    }
    for value in all(b"authorization") {
        let Some((user, password)) = of_scheme(value, b"basic").and_then(basic) else {
            continue;
        };
        found.add(&password);
        found.add(&user);
    }
    for wanted in PARAMETERS {
        for pair in query.unwrap_or_default().split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if decoded(name).as_slice() == wanted.as_bytes() {
                found.add(&decoded(value));
            }
        }
    }
    found.presented
}

/// Removes what is or may be a credential from a query. The other parameters stay byte for byte and
/// in their order; nothing is left where there is none.
pub fn without_credentials(query: &str) -> Option<String> {
    let kept: Vec<_> = query
        .split('&')
        .filter(|pair| !is_credential(pair))
        .collect();
    let kept = kept.join("&");
    (!kept.is_empty()).then_some(kept)
}

/// Tells a parameter that is read as a credential, here in any case of its letters, or whose value
/// is a JWS under whatever name.
fn is_credential(pair: &str) -> bool {
    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
    let name = decoded(name);
    let value = decoded(value);
    let named = PARAMETERS
        .iter()
        .any(|own| name.eq_ignore_ascii_case(own.as_bytes()));
    named || std::str::from_utf8(&value).is_ok_and(jws::is_shaped)
}

/// Bytes of a request that may be a credential: overwritten on drop.
type Shown = Zeroizing<Vec<u8>>;

struct Found {
    presented: Presented,
}

impl Default for Found {
    fn default() -> Self {
        Self {
            presented: Presented::None,
        }
    }
}

impl Found {
    fn add(&mut self, value: &[u8]) {
        let text = std::str::from_utf8(value)
            .unwrap_or_default()
            .trim_matches(' ');
        if !jws::is_shaped(text) {
            return;
        }
        match &self.presented {
            Presented::None => self.presented = Presented::One(Zeroizing::new(text.to_owned())),
            Presented::One(one) if one.as_str() == text => {}
            Presented::One(_) | Presented::Conflict => self.presented = Presented::Conflict,
        }
    }
}

/// Returns what follows the scheme, in any spelling of it (RFC 9110 §11.1).
fn of_scheme<'a>(value: &'a [u8], scheme: &[u8]) -> Option<&'a [u8]> {
    let (own, rest) = value.split_at_checked(scheme.len())?;
    let fits = own.eq_ignore_ascii_case(scheme) && rest.first() == Some(&b' ');
    fits.then(|| rest.trim_ascii())
}

/// Decodes user and password (RFC 7617 §2).
fn basic(encoded: &[u8]) -> Option<(Shown, Shown)> {
    let decoded = Zeroizing::new(BASE64.decode(encoded).ok()?);
    let colon = memchr::memchr(b':', &decoded)?;
    let (user, password) = decoded.split_at_checked(colon)?;
    let password = password.get(1..)?;
    Some((
        Zeroizing::new(user.to_vec()),
        Zeroizing::new(password.to_vec()),
    ))
}

/// Decodes a name or value of a query once. What is no escape stays as it is.
fn decoded(text: &str) -> Shown {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let bytes = text.as_bytes();
    let mut out = Zeroizing::new(Vec::with_capacity(bytes.len()));
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let escaped = (*byte == b'%')
            .then(|| digit(bytes.get(at + 1)).zip(digit(bytes.get(at + 2))))
            .flatten()
            .and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
        out.push(match (escaped, byte) {
            (Some(byte), _) => byte,
            (None, b'+') => b' ',
            (None, byte) => *byte,
        });
        at += if escaped.is_some() { 3 } else { 1 };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "eyJhbGciOiJIUzI1NiJ9.e30.one";
    const TWO: &str = "eyJhbGciOiJIUzI1NiJ9.e30.two";

    fn find(fields: &[(&str, String)], query: Option<&str>) -> Presented {
        let fields = fields.iter();
        presented(
            &fields.map(|(name, value)| (name.as_bytes(), value.as_bytes())),
            query,
        )
    }

    fn one(text: &str) -> Presented {
        Presented::One(Zeroizing::new(text.to_owned()))
    }

    fn basic_of(user: &str, password: &str) -> String {
        format!(
            "Basic {}",
            BASE64.encode(format!("{user}:{password}").as_bytes())
        )
    }

    #[test]
    fn every_place_of_a_client_is_looked_at() {
        let cases = [
            ("x-api-key", ONE.to_owned()),
            ("X-API-Key", format!(" {ONE} ")),
            ("authorization", format!("Bearer {ONE}")),
            ("Authorization", format!("bearer   {ONE}")),
            ("authorization", format!("BEARER {ONE}")),
            ("authorization", basic_of("user", ONE)),
            ("authorization", basic_of(ONE, "")),
            ("authorization", basic_of(ONE, "x")),
            ("authorization", basic_of(ONE, ONE)),
            ("authorization", basic_of("", ONE).replace("Basic", "bAsIc")),
        ];
        for (name, value) in cases {
            let found = find(&[(name, value.clone())], None);
            assert!(found == one(ONE), "{name}: {value}");
        }
        for query in [
            format!("token={ONE}"),
            format!("api_key={ONE}&beta=true"),
            format!("beta=true&key={ONE}"),
            format!("t%6Fken={}", ONE.replace('.', "%2e")),
            format!("key=&key=x&key={ONE}"),
        ] {
            assert!(find(&[], Some(&query)) == one(ONE), "{query}");
        }
    }

    #[test]
    fn what_is_no_credential_counts_for_nothing() {
        let cases = [
            ("x-api-key", "sk-ant-api03-x".to_owned()),
            ("x-api-key", "1.2.3".to_owned()),
            ("x-goog-api-key", ONE.to_owned()),
            ("cookie", format!("token={ONE}")),
            ("proxy-authorization", format!("Bearer {ONE}")),
            ("authorization", ONE.to_owned()),
            ("authorization", format!("Bearer{ONE}")),
            ("authorization", format!("Token {ONE}")),
            ("authorization", format!("Basic {ONE}")),
            (
                "authorization",
                format!("Basic {}", BASE64.encode(ONE.as_bytes())),
            ),
            ("authorization", "Bearer".to_owned()),
            ("authorization", String::new()),
        ];
        for (name, value) in cases {
            let found = find(&[(name, value.clone())], None);
            assert!(found == Presented::None, "{name}: {value}");
        }
        for query in [
            "",
            "beta=true",
            "token",
            "Token=eyJ9.x.y",
            "a.token=eyJ9.x.y",
            "token=%zz",
        ] {
            assert!(find(&[], Some(query)) == Presented::None, "{query}");
        }
    }

    #[test]
    fn the_first_that_is_a_jws_counts_and_two_are_a_conflict() {
        let key = |value: &str| ("x-api-key", value.to_owned());
        let bearer = |value: &str| ("authorization", format!("Bearer {value}"));
        let query = format!("token={TWO}");
        assert!(find(&[key("sk-ant-x"), bearer(ONE)], None) == one(ONE));
        assert!(find(&[bearer(ONE), key(ONE)], Some("key=sk-1")) == one(ONE));
        let conflicts: [&[(&str, String)]; 4] = [
            &[key(ONE), bearer(TWO)],
            &[key(ONE), key(TWO)],
            &[bearer(TWO), bearer(ONE)],
            &[("authorization", basic_of(ONE, TWO))],
        ];
        for fields in conflicts {
            assert!(find(fields, None) == Presented::Conflict);
        }
        assert!(find(&[key(ONE)], Some(&query)) == Presented::Conflict);
        assert!(find(&[], Some(&format!("{query}&key={ONE}"))) == Presented::Conflict);
        assert!(find(&[bearer(TWO)], Some(&query)) == one(TWO));
        assert_eq!(format!("{:?}", one(ONE)), "One(redacted)");
    }

    #[test]
    fn the_query_goes_on_without_its_credentials() {
        for (query, expected) in [
            ("", None),
            ("beta=true", Some("beta=true")),
            ("token=eyJ9.x.y", None),
            ("token", None),
            ("beta=true&token=x&limit=5", Some("beta=true&limit=5")),
            ("API_KEY=x&a=%20b+c", Some("a=%20b+c")),
            ("k%65y=x&keys=1", Some("keys=1")),
            ("jwt=eyJ9.x.y&v=1.2.3", Some("v=1.2.3")),
            ("a=1&&b=2", Some("a=1&&b=2")),
        ] {
            assert_eq!(without_credentials(query).as_deref(), expected, "{query}");
        }
    }
}
