//! A signed token as text: three parts, base64url, HMAC-SHA-256, JSON without a second reading.
//!
//! Whatever two readers could take differently is refused: padding, bits that are left over, a name
//! that occurs twice, a header that would choose key or algorithm. The signature is checked before
//! any JSON is read, so that what is read was written by a holder of a secret. Called by `workload`.

use std::fmt;

use aws_lc_rs::hmac;
use data_encoding::BASE64URL_NOPAD;
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::{Deserializer, de};
use serde_json::{Map, Number, Value};
use zeroize::Zeroizing;

/// The header of what is minted.
const HEADER: &[u8] = br#"{"alg":"HS256","typ":"JWT"}"#;
/// The longest key id that is passed over, in bytes.
const KEY_ID_LIMIT_BYTES: usize = 64;

/// Says why a JWT is none of ours. Whoever showed it is told none of this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is longer than any of ours.
    #[error("it is too long")]
    TooLong,
    /// It is not three parts in canonical base64url (RFC 7515 §7.1).
    #[error("it is not three parts in base64url")]
    Form,
    /// No secret of ours signed it.
    #[error("its signature is not ours")]
    Signature,
    /// Header or claims are no JSON objects, or a name occurs twice.
    #[error("its header or claims are not JSON objects with distinct names")]
    Json,
    /// The header names another algorithm, a key, or an extension (RFC 7515 §4.1).
    #[error("its header is not that of a workload JWT")]
    Header,
    /// The issuer is another, or it is for a certain audience.
    #[error("its issuer or audience is another")]
    Issuer,
    /// `iat`, `exp` or `nbf` is missing or no whole number, or the life is longer than a day.
    #[error("its times are missing, odd or too far apart")]
    Times,
    /// It has ended.
    #[error("it has expired")]
    Expired,
    /// It has not begun.
    #[error("it is not valid yet")]
    NotYet,
    /// `userId` or `sandboxName` is missing or cannot be one.
    #[error("its account or sandbox is missing or malformed")]
    Names,
}

/// Tells whether a text has the form of a signed token: three parts, of which the first begins a
/// JSON object.
pub(super) fn is_shaped(text: &str) -> bool {
    let Some((header, claims, signature)) = split(text) else {
        return false;
    };
    let is_part = |part: &str| {
        part.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_=".contains(&byte))
    };
    // Four characters are three whole bytes.
    let begins = header.get(..4).map(str::as_bytes);
    let begins = begins.and_then(|begin| BASE64URL_NOPAD.decode(begin).ok());
    let begins = begins.and_then(|begin| begin.iter().copied().find(|b| !b.is_ascii_whitespace()));
    begins == Some(b'{') && [header, claims, signature].into_iter().all(is_part)
}

/// Checks a token against every secret and returns its claims.
pub(super) fn verify(keys: &[hmac::Key], token: &str) -> Result<Map<String, Value>, Refused> {
    let (header, claims, signature) = split(token).ok_or(Refused::Form)?;
    let decode = |part: &str| BASE64URL_NOPAD.decode(part.as_bytes());
    let signature = decode(signature).map_err(|_odd| Refused::Form)?;
    let header = decode(header).map_err(|_odd| Refused::Form)?;
    let claims = decode(claims).map_err(|_odd| Refused::Form)?;
    let signed = token.rsplit_once('.').map_or("", |(signed, _)| signed);
    // Each secret is tried, whichever fits, so that the time does not tell which.
    let fits = keys.iter().fold(false, |fits, key| {
        hmac::verify(key, signed.as_bytes(), &signature).is_ok() | fits
    });
    if !fits {
        return Err(Refused::Signature);
    }
    check_header(&object(&header)?)?;
    object(&claims)
}

/// Signs claims.
pub(super) fn sign(key: &hmac::Key, claims: &Value) -> Zeroizing<String> {
    let mut token = Zeroizing::new(String::with_capacity(1024));
    BASE64URL_NOPAD.encode_append(HEADER, &mut token);
    token.push('.');
    BASE64URL_NOPAD.encode_append(claims.to_string().as_bytes(), &mut token);
    let signature = hmac::sign(key, token.as_bytes());
    token.push('.');
    BASE64URL_NOPAD.encode_append(signature.as_ref(), &mut token);
    token
}

fn split(token: &str) -> Option<(&str, &str, &str)> {
    let mut parts = token.split('.');
    let three = (parts.next()?, parts.next()?, parts.next()?);
    parts.next().is_none().then_some(three)
}

/// Takes `alg`, `typ` and a plain `kid`, which chooses nothing. Everything else in a header names
/// keys or changes how the token is read.
fn check_header(header: &Map<String, Value>) -> Result<(), Refused> {
    let is_known = |(name, value): (&String, &Value)| match (name.as_str(), value.as_str()) {
        ("alg", Some(algorithm)) => algorithm == "HS256",
        ("typ", Some(kind)) => kind == "JWT",
        ("kid", Some(id)) => {
            id.len() <= KEY_ID_LIMIT_BYTES
                && id
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
        }
        _ => false,
    };
    if header.contains_key("alg") && header.iter().all(is_known) {
        Ok(())
    } else {
        Err(Refused::Header)
    }
}

fn object(text: &[u8]) -> Result<Map<String, Value>, Refused> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let value = Distinct.deserialize(&mut json);
    let value = value.map_err(|_error| Refused::Json)?;
    json.end().map_err(|_error| Refused::Json)?;
    match value {
        Value::Object(object) => Ok(object),
        _ => Err(Refused::Json),
    }
}

/// Reads any JSON in which no name occurs twice in one object, however it is written.
#[derive(Clone, Copy)]
struct Distinct;

impl<'de> DeserializeSeed<'de> for Distinct {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Distinct {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON with distinct names")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value_seed(self)?;
            if object.insert(name, value).is_some() {
                return Err(de::Error::custom("a name occurs twice"));
            }
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_told_apart() {
        let encode = |text: &str| BASE64URL_NOPAD.encode(text.as_bytes());
        let spaced = format!("{}.e30.sig", encode(" {\"alg\":\"HS256\"}"));
        for text in [
            "eyJhbGciOiJub25lIn0.e30.",
            "eyJ9.x.y",
            "eyJ9.x==.y",
            spaced.as_str(),
        ] {
            assert!(is_shaped(text), "{text}");
        }
        for text in [
            "",
            "sk-ant-api03-abc",
            "ghp_abc",
            "1.2.3",
            "10.0.0.1",
            "eyJ9.x",
            "eyJ9.x.y.z",
            "eyJ.x.y",
            "eyJ9.x y.z",
            "SEALED_0123456789abcdef0123456789abcdef",
        ] {
            assert!(!is_shaped(text), "{text}");
        }
    }

    #[test]
    fn a_name_occurs_once_in_whatever_spelling() {
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"b":2,"\u0061":3}"#,
            r#"{"a":{"x":1,"x":2}}"#,
            r#"{"a":[{"x":1,"x":2}]}"#,
            r#"{"a":1} {}"#,
            r#"{"a":1},"#,
            r#"["a"]"#,
            r#""a""#,
            "null",
            "",
            "{",
            r#"{"a":NaN}"#,
        ] {
            assert_eq!(object(text.as_bytes()), Err(Refused::Json), "{text}");
        }
        assert_eq!(object(b"{\"a\":\"\xff\"}"), Err(Refused::Json));
        let deep = format!("{}1{}", "[".repeat(4000), "]".repeat(4000));
        assert_eq!(object(deep.as_bytes()), Err(Refused::Json));
        let text = r#" {"a":1,"A":-2,"b":{"a":[1.5,null,true,"x"]}} "#;
        let read = Value::Object(object(text.as_bytes()).unwrap());
        assert_eq!(read, serde_json::from_str::<Value>(text).unwrap());
    }
}
