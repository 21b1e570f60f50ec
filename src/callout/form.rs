//! The configured URL of a service, and the head of a request to it.
//!
//! The URL is read once, strictly; a request adds a path to its own. Nothing a caller gave may end a
//! line of the head or change where it goes. Called by `call`.

use zeroize::Zeroizing;

use super::Error;
use super::call::Request;
use crate::host::{Host, HostPort};
use crate::policy::Scheme;

/// Where a service is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Base {
    pub(super) scheme: Scheme,
    pub(super) target: HostPort,
    /// As it stands in a `Host` field.
    authority: String,
    /// Without a slash at its end.
    path: String,
}

impl Base {
    /// Reads a URL. In the clear only this machine is spoken to: what is sent has keys in it.
    pub(super) fn parse(url: &str) -> Result<Self, Error> {
        let (scheme, rest, port) = match (url.strip_prefix("https://"), url.strip_prefix("http://"))
        {
            (Some(rest), _) => (Scheme::Https, rest, 443),
            (_, Some(rest)) => (Scheme::Http, rest, 80),
            _ => return Err(Error::BadUrl),
        };
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let target = HostPort::parse_or(authority, port).map_err(|_unread| Error::BadUrl)?;
        let path = path.strip_suffix('/').unwrap_or(path);
        let plain = path.is_empty() || is_path(path);
        if !plain || path.contains(['?', '#', '\\', '%']) {
            return Err(Error::BadUrl);
        }
        if scheme == Scheme::Http && !is_loopback(&target.host) {
            return Err(Error::BadUrl);
        }
        let authority = if target.port == port {
            target.host.to_string()
        } else {
            target.to_string()
        };
        Ok(Self {
            scheme,
            target,
            authority,
            path: path.to_owned(),
        })
    }

    /// Writes a request whole. It is overwritten on drop: it has a key in it.
    pub(super) fn write(&self, request: &Request<'_>) -> Result<Zeroizing<Vec<u8>>, Error> {
        let path = match (self.path.as_str(), request.path) {
            ("", "") => "/",
            (_, path) => path,
        };
        let kind = request.body.map_or("", |(kind, _)| kind);
        let is_printable = |text: &[u8]| text.iter().all(|byte| (b' '..=b'~').contains(byte));
        if !(path.is_empty() || is_path(path)) || !is_printable(kind.as_bytes()) {
            return Err(Error::BadValue);
        }
        let body = request.body.map_or(0, |(_, body)| body.len());
        let fields = request.fields.iter();
        let values: usize = fields
            .map(|(name, value)| name.len() + value.len() + 4)
            .sum();
        // Room for everything, so that no growth leaves a copy of a key behind.
        let room = 1024 + self.path.len() + request.path.len() + values + body;
        let mut out = Zeroizing::new(Vec::with_capacity(room));
        let is_agent = |name: &str| name.eq_ignore_ascii_case("user-agent");
        let has_agent = request.fields.iter().any(|(name, _)| is_agent(name));
        let start = [
            request.method,
            " ",
            &self.path,
            path,
            " HTTP/1.1\r\nhost: ",
            &self.authority,
            if has_agent {
                ""
            } else {
                "\r\nuser-agent: oshu-vault"
            },
            "\r\naccept-encoding: identity\r\n",
        ];
        out.extend_from_slice(start.concat().as_bytes());
        for (name, value) in request.fields {
            if !is_printable(value) {
                return Err(Error::BadValue);
            }
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value);
            out.extend_from_slice(b"\r\n");
        }
        if let Some((kind, body)) = request.body {
            let framing = format!("content-type: {kind}\r\ncontent-length: {}\r\n", body.len());
            out.extend_from_slice(framing.as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(request.body.map_or(b"", |(_, body)| body));
        Ok(out)
    }
}

/// Tells a path whose characters can stand in a start line and that does not lead upwards.
fn is_path(path: &str) -> bool {
    let dotted = |segment: &str| matches!(segment, "." | "..");
    path.starts_with('/')
        && path.bytes().all(|byte| byte.is_ascii_graphic())
        && !path.split('/').any(dotted)
}

fn is_loopback(host: &Host) -> bool {
    match host.ip() {
        Some(address) => address.is_loopback(),
        None => host.name() == Some("localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request<'a>(path: &'a str, fields: &'a [(&'static str, &'a [u8])]) -> Request<'a> {
        Request {
            method: "GET",
            path,
            fields,
            body: None,
        }
    }

    #[test]
    fn urls_are_read_or_refused() {
        for (url, scheme, target, path) in [
            (
                "https://api.example.com",
                Scheme::Https,
                "api.example.com:443",
                "",
            ),
            (
                "https://api.example.com/",
                Scheme::Https,
                "api.example.com:443",
                "",
            ),
            (
                "https://API.example.com:8443/v1/x/",
                Scheme::Https,
                "api.example.com:8443",
                "/v1/x",
            ),
            ("http://127.0.0.1:81", Scheme::Http, "127.0.0.1:81", ""),
            ("http://[::1]", Scheme::Http, "[::1]:80", ""),
            ("http://localhost/a", Scheme::Http, "localhost:80", "/a"),
        ] {
            let base = Base::parse(url).unwrap();
            assert_eq!((base.scheme, base.path.as_str()), (scheme, path), "{url}");
            assert_eq!(base.target, HostPort::parse(target).unwrap(), "{url}");
        }
        for url in [
            "",
            "api.example.com",
            "ftp://api.example.com",
            "http://api.example.com",
            "http://10.0.0.1",
            "https://",
            "https://user@api.example.com",
            "https://api.example.com?x=1",
            "https://api.example.com/?x=1",
            "https://api.example.com/a#b",
            "https://api.example.com/../a",
            "https://api.example.com/%2e",
            "https://api.example.com/a b",
            "https://api.example.com:0",
            "https://api.example.com\\@other.example",
        ] {
            assert!(matches!(Base::parse(url), Err(Error::BadUrl)), "{url}");
        }
    }

    #[test]
    fn a_request_is_written_as_it_stands() {
        let base = Base::parse("https://api.example.com:8443/v1").unwrap();
        let fields: [(&str, &[u8]); 1] = [("authorization", b"Bearer k")];
        let mut given = request("/users/7", &fields);
        let written = base.write(&given).unwrap();
        assert_eq!(
            String::from_utf8_lossy(&written),
            "GET /v1/users/7 HTTP/1.1\r\nhost: api.example.com:8443\r\nuser-agent: oshu-vault\r\n\
             accept-encoding: identity\r\nauthorization: Bearer k\r\n\r\n"
        );
        given.body = Some(("application/json", b"{}"));
        let written = base.write(&given).unwrap();
        let end = "content-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
        assert!(String::from_utf8_lossy(&written).ends_with(end));
    }

    #[test]
    fn a_url_s_own_path_is_asked_for_where_none_is_named() {
        for (url, start) in [
            ("https://api.example.com", "GET / HTTP/1.1\r\n"),
            (
                "https://api.example.com/v1/token",
                "GET /v1/token HTTP/1.1\r\n",
            ),
        ] {
            let base = Base::parse(url).unwrap();
            let written = base.write(&request("", &[])).unwrap();
            assert!(written.starts_with(start.as_bytes()), "{url}");
        }
    }

    #[test]
    fn nothing_that_ends_a_line_is_written() {
        let base = Base::parse("https://api.example.com").unwrap();
        for path in ["users", "/a b", "/a\r\nx: y", "/../a", "/a/..", "/ä"] {
            let refused = base.write(&request(path, &[]));
            assert!(matches!(refused, Err(Error::BadValue)), "{path:?}");
        }
        for kind in ["a\r\nb: c", "ä"] {
            let mut given = request("/a", &[]);
            given.body = Some((kind, b"{}"));
            let refused = base.write(&given);
            assert!(matches!(refused, Err(Error::BadValue)), "{kind:?}");
        }
        for value in [b"a\r\nb".as_slice(), b"a\nb", b"a\0b", b"\xc3\xa4", b"a\tb"] {
            let refused = base.write(&request("/a", &[("authorization", value)]));
            assert!(matches!(refused, Err(Error::BadValue)), "{value:?}");
        }
    }
}
