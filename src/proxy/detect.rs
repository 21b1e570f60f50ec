//! What the first bytes of a tunnel are: TLS, HTTP in clear, or something we refuse.
//!
//! The bias is towards refusal: a protocol that is not recognised cannot be policed.

/// What a tunnel speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP/1 in clear: some clients tunnel `http://` URLs too.
    Http,
    /// A TLS handshake (RFC 8446 §5.1).
    Tls,
    /// Anything else.
    Unknown,
}

/// Looks at the first byte. A method starts with a letter; TLS records start with 0x16.
pub(super) fn detect(first: u8) -> Protocol {
    match first {
        0x16 => Protocol::Tls,
        b'A'..=b'Z' | b'a'..=b'z' => Protocol::Http,
        _ => Protocol::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_protocols_apart() {
        for (first, protocol) in [
            (0x16, Protocol::Tls),
            (b'G', Protocol::Http),
            (b'p', Protocol::Http),
            (0x80, Protocol::Unknown),
            (0, Protocol::Unknown),
            (b' ', Protocol::Unknown),
            (b'\r', Protocol::Unknown),
        ] {
            assert_eq!(detect(first), protocol, "{first}");
        }
    }
}
