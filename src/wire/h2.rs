//! Heads of HTTP/2 (RFC 9113 §8) as the heads that all the rest reads, and back.
//!
//! An HTTP/2 head is written out as the HTTP/1.1 head that says the same, and that text is read by
//! the one strict parser: whatever is refused there is refused here, and nothing behind it knows
//! which protocol a head came by. Connection fields are refused, cookie crumbs are joined, the
//! authority becomes `Host`. Called by the bridge.

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode, Uri, Version as HttpVersion, request, response};

use super::h1::{
    Error, HEAD_LIMIT_BYTES, HeadLimits, TRAILER_LIMIT_BYTES, parse_answer, parse_request_within,
    parse_trailers,
};
use super::head::{AnswerHead, Fields, RequestHead};
use super::hygiene::clean_trailers;

/// Fields that are about a connection, which HTTP/2 messages must not have (RFC 9113 §8.2.2).
const CONNECTION_FIELDS: [&str; 6] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// Reads the head of a request. `Host` is written from `:authority`; a `Host` field that differs
/// stands beside it, so that who checks `Host` sees two.
///
/// # Errors
/// See [`Error`]; [`Error::Field`] also for a field about the connection, and for blanks around a
/// value.
pub fn request_from_parts(
    parts: &request::Parts,
    limits: &HeadLimits,
) -> Result<RequestHead, Error> {
    let fields = &parts.headers;
    check_fields(fields)?;
    // RFC 9113 §8.2.1: the library lets them pass, and another reader may keep them.
    if fields.values().any(|value| is_padded(value.as_bytes())) {
        return Err(Error::Field);
    }
    let te = fields.get_all("te").iter();
    if te.into_iter().any(|value| value != "trailers") {
        return Err(Error::Field);
    }
    let target = parts
        .uri
        .path_and_query()
        .map_or("", |target| target.as_str());
    let mut text = Vec::with_capacity(size_of(fields) + target.len() + 64);
    text.extend_from_slice(parts.method.as_str().as_bytes());
    text.push(b' ');
    text.extend_from_slice(target.as_bytes());
    text.extend_from_slice(b" HTTP/1.1\r\n");
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    if let Some(authority) = authority {
        line(&mut text, b"Host", authority.as_bytes());
    }
    for (name, value) in fields {
        let repeats = authority.is_some_and(|authority| {
            name == "host" && value.as_bytes().eq_ignore_ascii_case(authority.as_bytes())
        });
        if name != "cookie" && !repeats {
            line(&mut text, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    // RFC 9113 §8.2.3.
    let crumbs: Vec<&[u8]> = fields
        .get_all("cookie")
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if !crumbs.is_empty() {
        line(&mut text, b"cookie", &crumbs.join(&b"; "[..]));
    }
    parse_request_within(ended(text, limits.bytes)?, limits)
}

/// Tells whether the sender of a request takes trailers (RFC 9110 §10.1.4).
pub fn is_trailers_wanted(parts: &request::Parts) -> bool {
    parts
        .headers
        .get("te")
        .is_some_and(|value| value == "trailers")
}

/// Makes a request head of HTTP/2 from a head with an origin-form target. Values that came from
/// secrets are marked, so that no compression table keeps them.
///
/// # Errors
/// [`Error::StartLine`] or [`Error::Field`] for what HTTP/2 cannot carry.
pub fn request_to_parts(
    head: &RequestHead,
    authority: &str,
    trailers_wanted: bool,
) -> Result<request::Parts, Error> {
    let uri = Uri::builder()
        .scheme("https")
        .authority(authority)
        .path_and_query(head.target())
        .build()
        .map_err(|_what| Error::StartLine)?;
    let request = Request::builder()
        .method(head.method())
        .uri(uri)
        .version(HttpVersion::HTTP_2)
        .body(())
        .map_err(|_what| Error::StartLine)?;
    let (mut parts, ()) = request.into_parts();
    parts.headers = map_of(&head.fields)?;
    parts.headers.remove("host");
    if trailers_wanted {
        parts
            .headers
            .insert("te", HeaderValue::from_static("trailers"));
    }
    Ok(parts)
}

/// Reads the head of an answer.
///
/// # Errors
/// See [`Error`]; [`Error::Field`] also for a field about the connection.
pub fn answer_from_parts(parts: &response::Parts) -> Result<AnswerHead, Error> {
    check_fields(&parts.headers)?;
    let mut text = Vec::with_capacity(size_of(&parts.headers) + 32);
    text.extend_from_slice(b"HTTP/1.1 ");
    text.extend_from_slice(parts.status.as_str().as_bytes());
    text.extend_from_slice(b" \r\n");
    for (name, value) in &parts.headers {
        line(&mut text, name.as_str().as_bytes(), value.as_bytes());
    }
    parse_answer(ended(text, HEAD_LIMIT_BYTES)?)
}

/// Makes an answer head of HTTP/2. The framing of HTTP/1.1 chunks is left out.
///
/// # Errors
/// [`Error::StartLine`] or [`Error::Field`] for what HTTP/2 cannot carry.
pub fn answer_to_parts(head: &AnswerHead) -> Result<response::Parts, Error> {
    let status = StatusCode::from_u16(head.status).map_err(|_what| Error::StartLine)?;
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.status = status;
    parts.version = HttpVersion::HTTP_2;
    parts.headers = map_of(&head.fields)?;
    Ok(parts)
}

/// Reads trailers. Those between a client and its proxy are left out.
///
/// # Errors
/// [`Error::Trailer`] also for fields that frame or route, and for more than
/// [`TRAILER_LIMIT_BYTES`].
pub fn trailers_from_map(map: &HeaderMap) -> Result<Fields, Error> {
    let mut text = Vec::with_capacity(size_of(map));
    for (name, value) in map {
        line(&mut text, name.as_str().as_bytes(), value.as_bytes());
    }
    if text.len() > TRAILER_LIMIT_BYTES {
        return Err(Error::Trailer);
    }
    text.extend_from_slice(b"\r\n");
    let mut fields = parse_trailers(Bytes::from(text))?;
    clean_trailers(&mut fields);
    Ok(fields)
}

/// Makes trailers of HTTP/2.
///
/// # Errors
/// [`Error::Trailer`] for what HTTP/2 cannot carry.
pub fn trailers_to_map(fields: &Fields) -> Result<HeaderMap, Error> {
    map_of(fields).map_err(|_what| Error::Trailer)
}

fn check_fields(fields: &HeaderMap) -> Result<(), Error> {
    let about_connection = |name: &&str| fields.contains_key(*name);
    if CONNECTION_FIELDS.iter().any(about_connection) {
        return Err(Error::Field);
    }
    Ok(())
}

/// Tells whether a value begins or ends with a blank.
fn is_padded(value: &[u8]) -> bool {
    let ends = [value.first(), value.last()];
    ends.into_iter()
        .flatten()
        .any(|byte| matches!(byte, b' ' | b'\t'))
}

fn map_of(fields: &Fields) -> Result<HeaderMap, Error> {
    let mut map = HeaderMap::with_capacity(fields.len() + 1);
    for field in fields.iter() {
        let name = HeaderName::from_bytes(field.name).map_err(|_what| Error::Field)?;
        if CONNECTION_FIELDS.contains(&name.as_str()) {
            continue;
        }
        let mut value = HeaderValue::from_bytes(field.value).map_err(|_what| Error::Field)?;
        value.set_sensitive(field.sensitive);
        map.append(name, value);
    }
    Ok(map)
}

fn line(text: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    text.extend_from_slice(name);
    text.extend_from_slice(b": ");
    text.extend_from_slice(value);
    text.extend_from_slice(b"\r\n");
}

fn ended(mut text: Vec<u8>, limit: usize) -> Result<Bytes, Error> {
    text.extend_from_slice(b"\r\n");
    if text.len() > limit {
        return Err(Error::HeadTooLarge);
    }
    Ok(Bytes::from(text))
}

fn size_of(fields: &HeaderMap) -> usize {
    let lines = fields
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 4);
    lines.sum::<usize>() + 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(target: &str, fields: &[(&str, &str)]) -> request::Parts {
        let mut request = Request::get(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn written(target: &str, fields: &[(&str, &str)]) -> Result<String, Error> {
        let head = request_from_parts(&parts(target, fields), &HeadLimits::default())?;
        let mut text = Vec::new();
        head.write(&mut text);
        Ok(String::from_utf8(text).unwrap())
    }

    #[test]
    fn a_request_reads_as_http1_says_it() {
        for (target, fields, expected) in [
            (
                "https://a.example/x?y=1",
                &[("accept", "*/*"), ("x-y", "z")][..],
                "GET /x?y=1 HTTP/1.1\r\nHost: a.example\r\naccept: */*\r\nx-y: z\r\n\r\n",
            ),
            (
                "https://a.example/",
                &[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2")],
                "GET / HTTP/1.1\r\nHost: a.example\r\nx: y\r\ncookie: a=1; b=2\r\n\r\n",
            ),
            (
                "https://a.example/",
                &[("host", "A.Example")],
                "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
            ),
            (
                "https://a.example/",
                &[("host", "b.example")],
                "GET / HTTP/1.1\r\nHost: a.example\r\nhost: b.example\r\n\r\n",
            ),
            (
                "/",
                &[("host", "a.example")],
                "GET / HTTP/1.1\r\nhost: a.example\r\n\r\n",
            ),
        ] {
            assert_eq!(written(target, fields).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn fields_about_the_connection_are_refused() {
        for (name, value) in [
            ("connection", "close"),
            ("keep-alive", "5"),
            ("proxy-connection", "keep-alive"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("te", "gzip"),
        ] {
            let read = written("https://a.example/", &[(name, value)]);
            assert_eq!(read, Err(Error::Field), "{name}");
        }
        assert!(written("https://a.example/", &[("te", "trailers")]).is_ok());
        for value in [" a", "a ", "\ta", "a\t", " "] {
            let read = written("https://a.example/", &[("x", value)]);
            assert_eq!(read, Err(Error::Field), "{value:?}");
        }
        assert!(written("https://a.example/", &[("x", "a b"), ("y", "")]).is_ok());
    }

    #[test]
    fn a_head_that_is_too_large_is_refused() {
        let long = "x".repeat(HEAD_LIMIT_BYTES);
        let read = written("https://a.example/", &[("x", &long)]);
        assert_eq!(read, Err(Error::HeadTooLarge));
    }

    #[test]
    fn a_swapped_value_is_marked_and_the_rest_is_not() {
        let from = parts("https://a.example/", &[("x-key", "token"), ("x-b", "c")]);
        let mut head = request_from_parts(&from, &HeadLimits::default()).unwrap();
        let index = head
            .fields
            .iter()
            .find(|f| f.name == b"x-key")
            .unwrap()
            .index;
        head.fields
            .replace(index, Bytes::from_static(b"real"), true);
        let to = request_to_parts(&head, "a.example:8443", true).unwrap();
        assert_eq!(to.uri, "https://a.example:8443/");
        assert!(to.headers["x-key"].is_sensitive());
        assert_eq!(to.headers["x-key"], "real");
        assert!(!to.headers["x-b"].is_sensitive());
        assert_eq!(to.headers["te"], "trailers");
        assert!(!to.headers.contains_key("host"));
    }

    #[test]
    fn answers_lose_the_framing_of_chunks_only() {
        let text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: b\r\nX-A: c\r\n\r\n";
        let head = parse_answer(Bytes::from(text)).unwrap();
        let parts = answer_to_parts(&head).unwrap();
        assert_eq!(parts.status, 200);
        let values: Vec<_> = parts.headers.get_all("x-a").iter().collect();
        assert_eq!(values, ["b", "c"]);
        assert_eq!(parts.headers.len(), 2);
        let again = answer_from_parts(&parts).unwrap();
        assert_eq!(again.fields.len(), 2);
    }

    #[test]
    fn trailers_that_frame_are_refused_and_proxy_ones_left_out() {
        let map = |name: &'static str| {
            let mut map = HeaderMap::new();
            map.insert(name, HeaderValue::from_static("1"));
            map
        };
        assert_eq!(trailers_from_map(&map("x-sum")).unwrap().len(), 1);
        assert_eq!(trailers_from_map(&map("proxy-x")).unwrap().len(), 0);
        assert!(trailers_from_map(&map("content-length")).is_err());
    }
}
