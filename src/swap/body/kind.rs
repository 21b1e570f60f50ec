//! What a body is, as far as it matters for the way in which a value is written in it.
//!
//! The media type decides, and nothing of the body itself: a body that says it is JSON is treated
//! as JSON. Bodies of gRPC are none of these; their messages have lengths of their own. Called by
//! the proxy, once for each request whose body may be swapped.

use crate::swap::Form;

/// How values are written in a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyKind {
    /// `application/x-www-form-urlencoded`: percent-encoded, but for unreserved characters.
    Form,
    /// JSON in any of its media types: escaped for the inside of a string (RFC 8259 §7).
    Json,
    /// Everything else, multipart and no media type at all included: as they are.
    Raw,
}

impl BodyKind {
    /// Reads the values of all `Content-Type` fields of a head. Nothing for gRPC, whose bodies
    /// cannot be swapped. Fields that are missing or repeated say nothing: [`BodyKind::Raw`].
    pub fn of<'a>(values: impl Iterator<Item = &'a [u8]>) -> Option<Self> {
        let mut types = values.map(media_type);
        let Some(first) = types.next() else {
            return Some(Self::Raw);
        };
        let mut repeated = false;
        let mut is_grpc = starts_with(&first, b"application/grpc");
        for other in types {
            repeated = true;
            is_grpc |= starts_with(&other, b"application/grpc");
        }
        if is_grpc {
            return None;
        }
        Some(match first.as_slice() {
            _ if repeated => Self::Raw,
            b"application/x-www-form-urlencoded" => Self::Form,
            json if is_json(json) => Self::Json,
            _ => Self::Raw,
        })
    }

    pub(super) fn form(self) -> Form {
        match self {
            Self::Form => Form::Percent,
            Self::Json => Form::Json,
            Self::Raw => Form::Raw,
        }
    }
}

/// Returns the media type without its parameters, in lower case (RFC 9110 §8.3.1).
fn media_type(value: &[u8]) -> Vec<u8> {
    let end = memchr::memchr2(b';', b',', value).unwrap_or(value.len());
    let name = value.get(..end).unwrap_or_default();
    name.trim_ascii().to_ascii_lowercase()
}

fn starts_with(name: &[u8], start: &[u8]) -> bool {
    name.get(..start.len()) == Some(start)
}

fn is_json(name: &[u8]) -> bool {
    const WHOLE: [&[u8]; 9] = [
        b"application/csp-report",
        b"application/json-seq",
        b"application/jsonl",
        b"application/jsonlines",
        b"application/ndjson",
        b"application/x-json",
        b"application/x-jsonlines",
        b"application/x-ndjson",
        b"application/x-json-stream",
    ];
    let subtype = name
        .iter()
        .position(|byte| *byte == b'/')
        .and_then(|slash| name.get(slash + 1..))
        .unwrap_or_default();
    subtype == b"json"
        || subtype.ends_with(b"+json")
        || subtype.starts_with(b"x-amz-json-")
        || WHOLE.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_media_type_decides_how_a_value_is_written() {
        for (value, expected) in [
            ("application/json", Some(BodyKind::Json)),
            ("Application/JSON; charset=utf-8", Some(BodyKind::Json)),
            (" text/json ;x", Some(BodyKind::Json)),
            ("application/problem+json", Some(BodyKind::Json)),
            ("application/x-ndjson", Some(BodyKind::Json)),
            ("application/x-amz-json-1.1", Some(BodyKind::Json)),
            ("application/jsonx", Some(BodyKind::Raw)),
            ("json", Some(BodyKind::Raw)),
            ("application/x-www-form-urlencoded", Some(BodyKind::Form)),
            (
                "APPLICATION/x-www-form-urlencoded;charset=UTF-8",
                Some(BodyKind::Form),
            ),
            ("multipart/form-data; boundary=x", Some(BodyKind::Raw)),
            ("text/plain", Some(BodyKind::Raw)),
            ("application/octet-stream", Some(BodyKind::Raw)),
            ("", Some(BodyKind::Raw)),
            ("application/grpc", None),
            ("application/grpc+proto", None),
            ("Application/gRPC-web-text", None),
        ] {
            let found = BodyKind::of(std::iter::once(value.as_bytes()));
            assert_eq!(found, expected, "{value}");
        }
        assert_eq!(BodyKind::of(std::iter::empty()), Some(BodyKind::Raw));
        let two = |one: &'static [u8], two: &'static [u8]| BodyKind::of([one, two].into_iter());
        assert_eq!(
            two(b"application/json", b"application/json"),
            Some(BodyKind::Raw)
        );
        assert_eq!(two(b"text/plain", b"application/grpc"), None);
    }
}
