//! What must not travel on: hop-by-hop fields and fields between a client and its proxy.
//!
//! Removal happens after the framing was read from the head, so that no `Connection` option can
//! change what a body is. Called by the relay for requests and answers.

use super::h1::Error;
use super::head::{AnswerHead, Fields, RequestHead, Version};

/// Fields that concern one connection only (RFC 9110 §7.6.1), lower case. The framing field is
/// kept: the relay writes the framing it has checked. `Trailer` is kept: trailers are passed on.
const HOP_BY_HOP: [&str; 5] = [
    "connection",
    "keep-alive",
    "te",
    "upgrade",
    "http2-settings",
];
/// Fields that a `Connection` option must not name, since their loss changes what is asked for.
const KEPT: [&str; 6] = [
    "host",
    "content-length",
    "transfer-encoding",
    "authorization",
    "cookie",
    "content-encoding",
];

/// Removes from a request what must not travel on, `Proxy-*` in any spelling included.
///
/// # Errors
/// [`Error::ConnectionOption`] when a connection option names a field that must stay.
pub fn clean_request(head: &mut RequestHead) -> Result<(), Error> {
    clean(&mut head.fields)
}

/// Removes from an answer what must not travel on, and `Alt-Svc`: a client that followed it would
/// leave the proxy for a protocol the proxy does not speak. Interim answers and 204 lose what
/// frames as well: they have no body (RFC 9110 §8.6, RFC 9112 §6.1), and a client that waited for
/// one would take the next answer for it.
///
/// # Errors
/// [`Error::ConnectionOption`] when a connection option names a field that must stay.
pub fn clean_answer(head: &mut AnswerHead) -> Result<(), Error> {
    clean(&mut head.fields)?;
    head.fields
        .retain(|name, _| !name.eq_ignore_ascii_case(b"alt-svc"));
    if head.status < 200 || head.status == 204 {
        head.fields.retain(|name, _| {
            !name.eq_ignore_ascii_case(b"content-length")
                && !name.eq_ignore_ascii_case(b"transfer-encoding")
        });
    }
    Ok(())
}

/// Removes from trailers what is between a client and its proxy, or about one connection.
pub(super) fn clean_trailers(fields: &mut Fields) {
    fields.retain(|name, _| !is_proxy_field(name) && !is_hop_by_hop(name));
}

fn is_hop_by_hop(name: &[u8]) -> bool {
    HOP_BY_HOP
        .iter()
        .any(|hop| name.eq_ignore_ascii_case(hop.as_bytes()))
}

fn is_proxy_field(name: &[u8]) -> bool {
    name.get(..6)
        .is_some_and(|start| start.eq_ignore_ascii_case(b"proxy-"))
}

fn clean(fields: &mut Fields) -> Result<(), Error> {
    let mut named: Vec<Vec<u8>> = Vec::new();
    for value in fields.all("connection") {
        for option in options(value) {
            if KEPT
                .iter()
                .any(|kept| option.eq_ignore_ascii_case(kept.as_bytes()))
            {
                return Err(Error::ConnectionOption);
            }
            let about_the_connection =
                option.eq_ignore_ascii_case(b"close") || option.eq_ignore_ascii_case(b"keep-alive");
            if !about_the_connection {
                named.push(option.to_vec());
            }
        }
    }
    fields.retain(|name, _| {
        let listed = named.iter().any(|option| name.eq_ignore_ascii_case(option));
        !is_proxy_field(name) && !is_hop_by_hop(name) && !listed
    });
    Ok(())
}

/// Tells whether the sender of a head will close the connection after the message.
pub fn closes(fields: &Fields, version: Version) -> bool {
    match version {
        Version::Http11 => token_list_has(fields, "connection", "close"),
        Version::Http10 => !token_list_has(fields, "connection", "keep-alive"),
    }
}

/// Tells whether a comma-separated list field has a token, in any spelling.
pub fn token_list_has(fields: &Fields, name: &str, token: &str) -> bool {
    fields
        .all(name)
        .flat_map(options)
        .any(|option| option.eq_ignore_ascii_case(token.as_bytes()))
}

fn options(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|option| !option.is_empty())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::wire::{parse_answer, parse_request};

    fn cleaned(fields: &str) -> Result<String, Error> {
        let text = format!("GET / HTTP/1.1\r\n{fields}\r\n");
        let mut head = parse_request(Bytes::from(text)).unwrap();
        clean_request(&mut head)?;
        let mut out = Vec::new();
        head.fields.write(&mut out);
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn hop_by_hop_fields_stay_behind() {
        let fields = "Host: x\r\nConnection: close, X-Hop\r\nx-hop: 1\r\nKeep-Alive: 5\r\n\
                      TE: trailers\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nProxy-Connection: a\r\n\
                      PROXY-Authorization: Basic x\r\nTrailer: X-Sum\r\nX-Keep: 1\r\n";
        assert_eq!(
            cleaned(fields).unwrap(),
            "Host: x\r\nTrailer: X-Sum\r\nX-Keep: 1\r\n"
        );
    }

    #[test]
    fn connection_options_cannot_remove_what_matters() {
        for name in [
            "Host",
            "content-length",
            "Transfer-Encoding",
            "authorization",
            "Cookie",
        ] {
            let fields = format!("Host: x\r\nConnection: keep-alive , {name}\r\n");
            assert_eq!(cleaned(&fields), Err(Error::ConnectionOption), "{name}");
        }
    }

    #[test]
    fn answers_lose_alt_svc() {
        let text = "HTTP/1.1 200 OK\r\nalt-svc: h3=\":443\"\r\nA: b\r\n\r\n";
        let mut head = parse_answer(Bytes::from(text)).unwrap();
        clean_answer(&mut head).unwrap();
        assert_eq!(head.fields.len(), 1);
    }

    #[test]
    fn answers_that_have_no_body_are_not_framed() {
        for (status, kept) in [(102, 1), (103, 1), (200, 3), (204, 1), (205, 3), (304, 3)] {
            let fields = "Content-Length: 5\r\nTRANSFER-encoding: chunked\r\nA: b\r\n";
            let text = format!("HTTP/1.1 {status} x\r\n{fields}\r\n");
            let mut head = parse_answer(Bytes::from(text)).unwrap();
            clean_answer(&mut head).unwrap();
            assert_eq!(head.fields.len(), kept, "{status}");
        }
    }

    #[test]
    fn closing_depends_on_the_version() {
        for (version, fields, expected) in [
            ("1.1", "", false),
            ("1.1", "Connection: x, Close\r\n", true),
            ("1.0", "", true),
            ("1.0", "Connection: Keep-Alive\r\n", false),
        ] {
            let text = format!("GET / HTTP/{version}\r\n{fields}\r\n");
            let head = parse_request(Bytes::from(text)).unwrap();
            assert_eq!(
                closes(&head.fields, head.version),
                expected,
                "{version} {fields}"
            );
        }
    }
}
