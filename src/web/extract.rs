//! What a request says: JSON bodies with our limits, and query parameters.
//!
//! A body is read into one buffer that is overwritten afterwards, at most 1 MiB, within a deadline.
//! A key that stands twice is refused: two readers of one body could see two sessions. Texts of
//! the tree may be secrets, so that they are overwritten when dropped and never printed. Called by
//! the handlers.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Query, Request};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, Uri};
use http_body_util::BodyExt;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use zeroize::Zeroizing;

use super::failure::Failure;
use crate::session::FieldError;

/// The longest body, in bytes.
pub const BODY_LIMIT_BYTES: usize = 1024 * 1024;
/// How long a body may take to arrive.
const BODY_DEADLINE: Duration = Duration::from_secs(30);
/// The longest query, in bytes.
const QUERY_LIMIT_BYTES: usize = 4096;

/// A JSON value (RFC 8259) in which no key stands twice.
pub enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number from 0.
    Whole(u64),
    /// Any other number.
    Number(f64),
    /// A string; it may be a secret.
    Text(Zeroizing<String>),
    /// An array.
    List(Vec<Self>),
    /// An object, by key.
    Object(BTreeMap<String, Self>),
}

impl Json {
    /// Reads a text.
    ///
    /// # Errors
    /// [`Failure::BadJson`], also for invalid UTF-8 and more than 127 levels; and
    /// [`Failure::DuplicateKey`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Failure> {
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let lines = before.split(|byte| *byte == b'\n');
            let column = lines.clone().next_back().map_or(0, <[u8]>::len);
            Failure::BadJson(lines.count(), column + 1)
        })?;
        let trail = RefCell::new(None);
        let mut reader = serde_json::Deserializer::from_str(text);
        let read = Node { trail: &trail }.deserialize(&mut reader);
        match read.and_then(|value| reader.end().map(|()| value)) {
            Ok(value) => Ok(value),
            Err(error) => Err(match trail.into_inner() {
                Some(trail) => Failure::DuplicateKey(path(&trail)),
                None => Failure::BadJson(error.line(), error.column()),
            }),
        }
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Json(redacted)")
    }
}

/// A body of JSON: `application/json`, or no content type.
#[derive(Debug)]
pub struct JsonBody(pub Json);

/// A body that is a merge patch (RFC 7396): `application/merge-patch+json` or as [`JsonBody`].
#[derive(Debug)]
pub struct MergePatch(pub Json);

impl<S: Send + Sync> FromRequest<S> for JsonBody {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        receive(request, &["application/json"]).await.map(Self)
    }
}

impl<S: Send + Sync> FromRequest<S> for MergePatch {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        receive(
            request,
            &["application/json", "application/merge-patch+json"],
        )
        .await
        .map(Self)
    }
}

/// Reads the query parameters, each of which must be known and stand once.
///
/// # Errors
/// [`Failure::BadRequest`] that names each bad parameter.
pub fn query(uri: &Uri, known: &[&str]) -> Result<BTreeMap<String, String>, Failure> {
    let malformed =
        |message: &str| Failure::BadRequest(vec![FieldError::new("query", "bad_query", message)]);
    if uri
        .query()
        .is_some_and(|query| query.len() > QUERY_LIMIT_BYTES)
    {
        return Err(malformed("is too long"));
    }
    let Ok(Query(pairs)) = Query::<Vec<(String, String)>>::try_from_uri(uri) else {
        return Err(malformed("is malformed"));
    };
    let (mut found, mut errors) = (BTreeMap::new(), Vec::new());
    for (name, value) in pairs {
        if !known.contains(&name.as_str()) {
            let message = format!("is no parameter here; there are: {}", known.join(", "));
            errors.push(FieldError::new(name, "unknown_parameter", message));
        } else if found.insert(name.clone(), value).is_some() {
            errors.push(FieldError::new(name, "duplicate_parameter", "stands twice"));
        }
    }
    if errors.is_empty() {
        Ok(found)
    } else {
        Err(Failure::BadRequest(errors))
    }
}

async fn receive(request: Request, types: &[&str]) -> Result<Json, Failure> {
    let (parts, body) = request.into_parts();
    if !is_taken(&parts.headers, types) {
        return Err(Failure::UnsupportedMedia);
    }
    let announced = parts
        .headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok());
    let announced = announced.and_then(|text| text.parse().ok()).unwrap_or(0);
    if announced > BODY_LIMIT_BYTES {
        return Err(Failure::TooLarge);
    }
    let read = tokio::time::timeout(BODY_DEADLINE, collect(body, announced)).await;
    let bytes = read.unwrap_or(Err(Failure::Slow))?;
    Json::parse(&bytes)
}

/// Tells whether the body has one of the types, or none, and no content coding.
fn is_taken(headers: &HeaderMap, types: &[&str]) -> bool {
    let mut given = headers.get_all(CONTENT_TYPE).iter();
    let known = match (given.next(), given.next()) {
        (None, _) => true,
        (Some(value), None) => value.to_str().is_ok_and(|text| {
            let essence = text.split(';').next().unwrap_or_default().trim();
            types.iter().any(|kind| kind.eq_ignore_ascii_case(essence))
        }),
        // Two types are none: which one counts is anybody's guess.
        _ => false,
    };
    known && !headers.contains_key(CONTENT_ENCODING)
}

async fn collect(mut body: Body, announced: usize) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut buffer = Zeroizing::new(Vec::with_capacity(announced));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            tracing::debug!(%error, "request body ended early");
            Failure::Incomplete
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        let needed = buffer.len() + data.len();
        if needed > BODY_LIMIT_BYTES {
            return Err(Failure::TooLarge);
        }
        if needed > buffer.capacity() {
            // A vector that grows by itself would leave its old memory as it is.
            let mut larger = Zeroizing::new(Vec::with_capacity(needed.max(2 * buffer.len())));
            larger.extend_from_slice(&buffer);
            buffer = larger;
        }
        buffer.extend_from_slice(&data);
    }
    Ok(buffer)
}

/// One step on the way to a duplicate key.
enum Step {
    Key(String),
    Index(usize),
}

/// Writes the way to a key, which was noted from the inside out.
fn path(trail: &[Step]) -> String {
    let mut path = String::new();
    for step in trail.iter().rev() {
        match step {
            Step::Key(key) if path.is_empty() => path.push_str(key),
            Step::Key(key) => path.extend([".", key]),
            Step::Index(index) => path.extend(["[", &index.to_string(), "]"]),
        }
    }
    path
}

/// Reads one value, and notes the way to a duplicate key on the way out.
#[derive(Clone, Copy)]
struct Node<'a> {
    trail: &'a RefCell<Option<Vec<Step>>>,
}

impl Node<'_> {
    fn note(self, step: impl FnOnce() -> Step) {
        if let Some(trail) = self.trail.borrow_mut().as_mut() {
            trail.push(step());
        }
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Whole(value))
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "no field takes a negative number"
    )]
    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(u64::try_from(value).map_or(Json::Number(value as f64), Json::Whole))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(Zeroizing::new(value.to_owned())))
    }

    fn visit_string<E>(self, value: String) -> Result<Json, E> {
        Ok(Json::Text(Zeroizing::new(value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
        let mut values = Vec::new();
        loop {
            match list.next_element_seed(self) {
                Ok(Some(value)) => values.push(value),
                Ok(None) => return Ok(Json::List(values)),
                Err(error) => {
                    self.note(|| Step::Index(values.len()));
                    return Err(error);
                }
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut fields = BTreeMap::new();
        while let Some(key) = map.next_key::<String>()? {
            if fields.contains_key(&key) {
                *self.trail.borrow_mut() = Some(vec![Step::Key(key)]);
                return Err(A::Error::custom("a key stands twice"));
            }
            match map.next_value_seed(self) {
                Ok(value) => drop(fields.insert(key, value)),
                Err(error) => {
                    self.note(|| Step::Key(key));
                    return Err(error);
                }
            }
        }
        Ok(Json::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_duplicate_key_is_named_by_its_path() {
        let cases = [
            (r#"{"a":1,"a":1}"#, "a"),
            (
                r#"{"secrets":{"X":"1","Y":{"hosts":[],"hosts":[]}}}"#,
                "secrets.Y.hosts",
            ),
            (r#"{"secrets":{"X":"1","\u0058":"2"}}"#, "secrets.X"),
            (r#"[0,[1,{"a":{"b":1,"b":2}}]]"#, "[1][1].a.b"),
        ];
        for (text, expected) in cases {
            match Json::parse(text.as_bytes()) {
                Err(Failure::DuplicateKey(path)) => assert_eq!(path, expected),
                other => panic!("{text}: {other:?}"),
            }
        }
        assert!(Json::parse(br#"[{"a":1},{"a":{"a":1}}]"#).is_ok());
    }

    #[test]
    fn what_is_not_json_is_refused_with_its_place() {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(Json::parse(deep(127).as_bytes()).is_ok());
        let deeper = deep(129);
        let cases: [&[u8]; 12] = [
            b"",
            b"{",
            b"{\"a\":1,}",
            b"{'a':1}",
            b"nul",
            b"1 2",
            b"{} x",
            b"\xef\xbb\xbf{}",
            b"\"\\ud800\"",
            b"1e999",
            b"\"\xff\"",
            deeper.as_bytes(),
        ];
        for text in cases {
            assert!(
                matches!(Json::parse(text), Err(Failure::BadJson(..))),
                "{text:?}"
            );
        }
        let bad = Json::parse(b"{\n  \"a\": canary-value }").unwrap_err();
        assert!(matches!(bad, Failure::BadJson(2, _)), "{bad}");
        let bad = Json::parse(b"[\n\"\xff\"]").unwrap_err();
        assert!(matches!(bad, Failure::BadJson(2, 2)), "{bad}");
    }

    #[test]
    fn nothing_of_a_value_is_printed() {
        let value = Json::parse(br#"{"canary":"canary"}"#).unwrap();
        assert!(!format!("{value:?} {:?}", JsonBody(Json::Null)).contains("canary"));
    }

    #[test]
    fn only_json_without_a_coding_is_taken() {
        let cases = [
            (&[][..], true),
            (&["application/json"], true),
            (&["Application/JSON; charset=utf-8"], true),
            (&["text/plain"], false),
            (&["application/jsonp"], false),
            (&["application/merge-patch+json"], false),
            (&[""], false),
            (&["application/json", "application/json"], false),
        ];
        for (types, taken) in cases {
            let mut headers = HeaderMap::new();
            for kind in types {
                headers.append(CONTENT_TYPE, HeaderValue::from_static(kind));
            }
            assert_eq!(
                is_taken(&headers, &["application/json"]),
                taken,
                "{types:?}"
            );
        }
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        assert!(!is_taken(&headers, &["application/json"]));
    }

    #[tokio::test]
    async fn a_body_is_bounded_announced_or_not() {
        let body = |length: usize| {
            let text = format!("\"{}\"", "x".repeat(length - 2));
            let chunks: Vec<_> = text.as_bytes().chunks(7000).map(<[u8]>::to_vec).collect();
            let chunks = chunks.into_iter().map(Ok::<_, std::io::Error>);
            Body::from_stream(futures_util::stream::iter(chunks))
        };
        for announce in [false, true] {
            for (length, fits) in [(BODY_LIMIT_BYTES, true), (BODY_LIMIT_BYTES + 1, false)] {
                let mut request = Request::new(body(length));
                if announce {
                    request.headers_mut().insert(CONTENT_LENGTH, length.into());
                }
                match receive(request, &[]).await {
                    Ok(Json::Text(text)) => assert!(fits && text.len() == length - 2),
                    Err(Failure::TooLarge) => assert!(!fits),
                    other => panic!("{length}: {other:?}"),
                }
            }
        }
    }

    #[test]
    fn parameters_are_known_and_stand_once() {
        let parse = |text: &str| query(&text.parse().unwrap(), &["limit", "cursor"]);
        assert_eq!(parse("/x?limit=1&cursor=a%20b").unwrap()["cursor"], "a b");
        assert!(parse("/x").unwrap().is_empty());
        let long = format!("/x?limit={}", "1".repeat(QUERY_LIMIT_BYTES));
        let cases = [
            ("/x?limt=1", "limt"),
            ("/x?limit=1&limit=1", "limit"),
            (long.as_str(), "query"),
        ];
        for (text, field) in cases {
            match parse(text) {
                Err(Failure::BadRequest(errors)) => assert_eq!(errors[0].field, field),
                other => panic!("{text}: {:?}", other.map_err(IntoResponse::into_response)),
            }
        }
    }
}
