//! The strict reader of HTTP/1.1 heads (RFC 9112), and what a head says about its body.
//!
//! Refused, never repaired: bare LF and CR, NUL and other control bytes, white space before a
//! colon, folded lines, blank lines before a head, a second framing field, a `Content-Length` that
//! is not plain digits, any `Transfer-Encoding` but one `chunked`. The errors name the rule that
//! was broken and never the bytes. Called by the relay and the listeners.

use bytes::Bytes;

use super::head::{AnswerHead, Fields, RequestHead, Span, Version};

/// The longest head, in bytes, start line and empty line included.
pub const HEAD_LIMIT_BYTES: usize = 64 * 1024;
/// The most fields of a head.
pub const FIELD_LIMIT: usize = 100;
/// The longest request target, in bytes.
pub const TARGET_LIMIT_BYTES: usize = 16 * 1024;
/// The longest trailer section, in bytes.
pub const TRAILER_LIMIT_BYTES: usize = 16 * 1024;
/// The most bytes of chunk extensions in one body.
pub const EXTENSION_LIMIT_BYTES: usize = 16 * 1024;

/// Says which rule a message broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A line that does not end in CR LF, or a CR elsewhere (RFC 9112 §2.2).
    #[error("a line does not end in CR LF")]
    LineEnd,
    /// The start line is not what RFC 9112 §3 or §4 says.
    #[error("the start line is malformed")]
    StartLine,
    /// The version is neither HTTP/1.1 nor HTTP/1.0.
    #[error("the protocol version is not HTTP/1.1 or HTTP/1.0")]
    Version,
    /// A field line is malformed, folded or has a byte that is not allowed (RFC 9112 §5).
    #[error("a header field is malformed")]
    Field,
    /// The target is over [`TARGET_LIMIT_BYTES`].
    #[error("the request target is too long")]
    TargetTooLong,
    /// The head is over [`HEAD_LIMIT_BYTES`] or has over [`FIELD_LIMIT`] fields.
    #[error("the head is too large")]
    HeadTooLarge,
    /// The framing fields are ambiguous or malformed (RFC 9112 §6).
    #[error("content-length or transfer-encoding is ambiguous or malformed")]
    Framing,
    /// A chunk is malformed (RFC 9112 §7.1), or its extensions are over the limit.
    #[error("a chunk is malformed")]
    Chunk,
    /// The trailer section is malformed, too large or has a field that frames or routes.
    #[error("the trailer section is malformed")]
    Trailer,
    /// The body is over the limit of whoever asked for one.
    #[error("the body is too long")]
    BodyTooLong,
    /// A content coding is malformed, or expands beyond reason.
    #[error("the content coding of the body is malformed or expands too far")]
    Coding,
    /// More is to be put into a body than may be.
    #[error("more is to be put into the body than may be")]
    TooMuch,
    /// A connection option names a field that must not be removed (RFC 9110 §7.6.1).
    #[error("the connection field names a field that cannot be dropped")]
    ConnectionOption,
}

/// How long a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// The body has this many bytes.
    Length(u64),
    /// The body comes in chunks.
    Chunked,
    /// The body ends with the connection (answers only).
    UntilClose,
}

/// The bounds of the head of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLimits {
    /// Its bytes, start line and empty line included.
    pub bytes: usize,
    /// Its fields.
    pub fields: usize,
    /// The bytes of its target.
    pub target_bytes: usize,
}

impl Default for HeadLimits {
    /// The bounds that answers have too.
    fn default() -> Self {
        Self {
            bytes: HEAD_LIMIT_BYTES,
            fields: FIELD_LIMIT,
            target_bytes: TARGET_LIMIT_BYTES,
        }
    }
}

/// Finds the end of a head in a buffer that grows, looking at each byte once.
#[derive(Debug, Clone)]
pub struct HeadScanner {
    /// The most bytes.
    limit: usize,
    /// Where the current line starts.
    line: usize,
    /// How far the buffer was looked at.
    seen: usize,
}

impl Default for HeadScanner {
    fn default() -> Self {
        Self::within(HEAD_LIMIT_BYTES)
    }
}

impl HeadScanner {
    /// Scans a head of at most so many bytes.
    pub fn within(limit: usize) -> Self {
        Self {
            limit,
            line: 0,
            seen: 0,
        }
    }

    /// Returns the length of the head, empty line included, once the buffer holds it whole.
    ///
    /// # Errors
    /// [`Error::LineEnd`] at the first line that does not end in CR LF,
    /// [`Error::HeadTooLarge`] when the limit is reached without an end.
    pub fn scan(&mut self, buffer: &[u8]) -> Result<Option<usize>, Error> {
        while let Some(rest) = buffer.get(self.seen..) {
            let Some(offset) = memchr::memchr(b'\n', rest) else {
                break;
            };
            let line_feed = self.seen + offset;
            let line = buffer.get(self.line..line_feed).unwrap_or_default();
            if line.last() != Some(&b'\r') {
                return Err(Error::LineEnd);
            }
            let length = line_feed + 1;
            if length > self.limit {
                return Err(Error::HeadTooLarge);
            }
            if line.len() == 1 {
                return if self.line == 0 {
                    Err(Error::StartLine)
                } else {
                    Ok(Some(length))
                };
            }
            self.line = length;
            self.seen = length;
        }
        self.seen = buffer.len();
        if self.seen >= self.limit {
            // A start line that alone fills the head is the target's fault.
            return Err(if self.line == 0 {
                Error::TargetTooLong
            } else {
                Error::HeadTooLarge
            });
        }
        Ok(None)
    }
}

/// Parses the head of a request from exactly its bytes, empty line included.
///
/// # Errors
/// See [`Error`].
pub fn parse_request(block: Bytes) -> Result<RequestHead, Error> {
    parse_request_within(block, &HeadLimits::default())
}

/// Parses the head of a request as [`parse_request`] does, within bounds of the caller's.
///
/// # Errors
/// See [`Error`].
pub fn parse_request_within(block: Bytes, limits: &HeadLimits) -> Result<RequestHead, Error> {
    let line = first_line(&block)?;
    let method_end = memchr::memchr(b' ', line).ok_or(Error::StartLine)?;
    let target_end = memchr::memrchr(b' ', line).ok_or(Error::StartLine)?;
    let method = line.get(..method_end).ok_or(Error::StartLine)?;
    // One space on each side: with more, or with none, the target is empty or holds a space.
    let target = line
        .get(method_end + 1..target_end)
        .ok_or(Error::StartLine)?;
    let version = version(line.get(target_end + 1..).unwrap_or_default())?;
    if target.len() > limits.target_bytes {
        return Err(Error::TargetTooLong);
    }
    if !is_token(method) || target.is_empty() || !target.iter().all(u8::is_ascii_graphic) {
        return Err(Error::StartLine);
    }
    let spans = (
        Span::new(0..method_end),
        Span::new(method_end + 1..target_end),
    );
    let start = line.len() + 2;
    let fields = parse_fields(block, start, limits.fields)?;
    Ok(RequestHead::new(spans.0, spans.1, version, fields))
}

/// Parses the head of an answer from exactly its bytes, empty line included.
///
/// # Errors
/// See [`Error`].
pub fn parse_answer(block: Bytes) -> Result<AnswerHead, Error> {
    let line = first_line(&block)?;
    let version = version(line.get(..8).ok_or(Error::Version)?)?;
    let status = line.get(9..12).ok_or(Error::StartLine)?;
    if line.get(8) != Some(&b' ') || !status.iter().all(u8::is_ascii_digit) {
        return Err(Error::StartLine);
    }
    let status = status
        .iter()
        .fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    // The space before an empty reason is required, but many servers leave it out.
    let reason = match line.get(12..) {
        None | Some([]) => 12..12,
        Some([b' ', reason @ ..]) if all_text(reason) => 13..line.len(),
        Some(_) => return Err(Error::StartLine),
    };
    if !(100..600).contains(&status) {
        return Err(Error::StartLine);
    }
    let (reason, start) = (Span::new(reason), line.len() + 2);
    Ok(AnswerHead {
        status,
        reason,
        version,
        fields: parse_fields(block, start, FIELD_LIMIT)?,
    })
}

/// Parses a trailer section from exactly its bytes, empty line included.
///
/// # Errors
/// [`Error::Trailer`] also for fields that frame or route (RFC 9110 §6.5.1).
pub fn parse_trailers(block: Bytes) -> Result<Fields, Error> {
    const REFUSED: [&str; 6] = [
        "content-length",
        "transfer-encoding",
        "host",
        "connection",
        "trailer",
        "te",
    ];
    let fields = parse_fields(block, 0, FIELD_LIMIT).map_err(|_whatever| Error::Trailer)?;
    let disguised = fields.iter().any(|field| is_disguised(field.name));
    if disguised || REFUSED.iter().any(|name| fields.first(name).is_some()) {
        return Err(Error::Trailer);
    }
    Ok(fields)
}

/// Says how long the body of a request is (RFC 9112 §6.3).
///
/// # Errors
/// [`Error::Framing`] when more than one reading is possible, be it by a reader that takes `_` for
/// `-` in names, as gateways to programs do.
pub fn request_framing(head: &RequestHead) -> Result<Framing, Error> {
    if head.fields.iter().any(|field| is_disguised(field.name)) {
        return Err(Error::Framing);
    }
    let framing = stated_framing(&head.fields, head.version)?;
    Ok(framing.unwrap_or(Framing::None))
}

/// Says how long the body of an answer is, given whether the request was HEAD (RFC 9112 §6.3).
///
/// # Errors
/// [`Error::Framing`] when more than one reading is possible, whatever the status.
pub fn answer_framing(head: &AnswerHead, to_head_request: bool) -> Result<Framing, Error> {
    let framing = stated_framing(&head.fields, head.version)?;
    if to_head_request || head.status < 200 || matches!(head.status, 204 | 304) {
        return Ok(Framing::None);
    }
    Ok(framing.unwrap_or(Framing::UntilClose))
}

fn stated_framing(fields: &Fields, version: Version) -> Result<Option<Framing>, Error> {
    let mut framing = None;
    for field in fields.iter() {
        let stated = if field.name.eq_ignore_ascii_case(b"content-length") {
            Framing::Length(parse_length(field.value)?)
        } else if field.name.eq_ignore_ascii_case(b"transfer-encoding") {
            if !field.value.eq_ignore_ascii_case(b"chunked") || version == Version::Http10 {
                return Err(Error::Framing);
            }
            Framing::Chunked
        } else {
            continue;
        };
        if framing.replace(stated).is_some() {
            return Err(Error::Framing);
        }
    }
    Ok(framing)
}

/// Tells whether a name becomes one that frames when its `_` are read as `-`.
fn is_disguised(name: &[u8]) -> bool {
    let reads_as = |framing: &[u8]| {
        let pairs = name.iter().zip(framing);
        name.len() == framing.len()
            && pairs.into_iter().all(|(byte, meant)| {
                byte.eq_ignore_ascii_case(meant) || (*byte, *meant) == (b'_', b'-')
            })
    };
    name.contains(&b'_') && (reads_as(b"content-length") || reads_as(b"transfer-encoding"))
}

/// Parses `1*DIGIT` without leading zeros, which some programs read as octal.
fn parse_length(value: &[u8]) -> Result<u64, Error> {
    let plain = !value.is_empty() && value.len() <= 19 && value.iter().all(u8::is_ascii_digit);
    if !plain || (value.len() > 1 && value.first() == Some(&b'0')) {
        return Err(Error::Framing);
    }
    Ok(value
        .iter()
        .fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

fn first_line(block: &[u8]) -> Result<&[u8], Error> {
    let end = memchr::memchr(b'\r', block).ok_or(Error::LineEnd)?;
    if block.get(end + 1) != Some(&b'\n') {
        return Err(Error::LineEnd);
    }
    block.get(..end).ok_or(Error::LineEnd)
}

fn version(text: &[u8]) -> Result<Version, Error> {
    match text {
        b"HTTP/1.1" => Ok(Version::Http11),
        b"HTTP/1.0" => Ok(Version::Http10),
        _ => Err(Error::Version),
    }
}

fn parse_fields(block: Bytes, mut start: usize, limit: usize) -> Result<Fields, Error> {
    let text = block.clone();
    let mut fields = Fields::new(block);
    loop {
        let rest = text.get(start..).ok_or(Error::LineEnd)?;
        let line = first_line(rest)?;
        if line.is_empty() {
            // Bytes behind the empty line would belong to nobody.
            return if rest.len() == 2 {
                Ok(fields)
            } else {
                Err(Error::Field)
            };
        }
        if fields.len() >= limit {
            return Err(Error::HeadTooLarge);
        }
        let colon = memchr::memchr(b':', line).ok_or(Error::Field)?;
        let name = line.get(..colon).ok_or(Error::Field)?;
        let raw = line.get(colon + 1..).ok_or(Error::Field)?;
        if !is_token(name) || !all_text(raw) {
            return Err(Error::Field);
        }
        let lead = raw.iter().take_while(|byte| is_blank(**byte)).count();
        let value = raw.trim_ascii();
        let value_start = start + colon + 1 + if value.is_empty() { raw.len() } else { lead };
        fields.push_read(
            Span::new(start..start + line.len()),
            Span::new(start..start + colon),
            Span::new(value_start..value_start + value.len()),
        );
        start += line.len() + 2;
    }
}

fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// Tells whether a byte may stand in a field value: visible, blank or above ASCII (RFC 9110 §5.5).
fn is_text(byte: u8) -> bool {
    (byte >= 0x20 && byte != 0x7f) || byte == b'\t'
}

/// Tells whether all bytes are text. It looks at every byte, so that it can look at many at once.
fn all_text(bytes: &[u8]) -> bool {
    bytes.iter().fold(true, |text, byte| text & is_text(*byte))
}

/// Tells whether a text is a token (RFC 9110 §5.6.2).
fn is_token(text: &[u8]) -> bool {
    !text.is_empty()
        && text
            .iter()
            .all(|b| TOKEN.get(*b as usize).copied().unwrap_or(false))
}

/// The characters of a token.
const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "the loop ends at 255")]
        let c = byte as u8;
        let special = matches!(
            c,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        );
        #[expect(clippy::indexing_slicing, reason = "checked at compile time")]
        {
            table[byte] = special || c.is_ascii_alphanumeric();
        }
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Result<RequestHead, Error> {
        parse_request(Bytes::copy_from_slice(text.as_bytes()))
    }

    fn framing(fields: &str) -> Result<Framing, Error> {
        request_framing(&request(&format!("POST / HTTP/1.1\r\n{fields}\r\n"))?)
    }

    #[test]
    fn an_unchanged_head_is_written_as_it_was_read() {
        let text =
            "PoST /a?b#c HTTP/1.1\r\nHost:  x\t\r\nx-EMPTY:\r\nX-B: \t \r\nAccept:*/*\r\n\r\n";
        let head = request(text).unwrap();
        let mut out = Vec::new();
        head.write(&mut out);
        assert_eq!(std::str::from_utf8(&out).unwrap(), text);
        assert_eq!(head.fields.first("HOST"), Some(b"x".as_slice()));
        assert_eq!(head.fields.first("x-empty"), Some(b"".as_slice()));
        assert_eq!(head.fields.first("x-b"), Some(b"".as_slice()));
    }

    #[test]
    fn malformed_heads_are_refused() {
        for (text, error) in [
            ("GET / HTTP/1.1\nHost: x\r\n\r\n", Error::Version),
            ("GET / HTTP/1.1\r\nHost: x\n\r\n", Error::Field),
            ("GET / HTTP/1.1\r\nX: a\rSmug: b\r\n\r\n", Error::LineEnd),
            ("GET / HTTP/1.1\r\nX: a\0b\r\n\r\n", Error::Field),
            ("GET / HTTP/1.1\r\nX : a\r\n\r\n", Error::Field),
            ("GET / HTTP/1.1\r\n X: a\r\n\r\n", Error::Field),
            ("GET / HTTP/1.1\r\nX: a\r\n b\r\n\r\n", Error::Field),
            ("GET / HTTP/1.1\r\nX\r\n\r\n", Error::Field),
            ("GET / HTTP/1.1\r\n: v\r\n\r\n", Error::Field),
            ("GET / HTTP/1.1\r\nX\x0b: v\r\n\r\n", Error::Field),
            ("GET / HTTP/1.1\r\nX(: v\r\n\r\n", Error::Field),
            ("GET  / HTTP/1.1\r\n\r\n", Error::StartLine),
            ("GET\t/ HTTP/1.1\r\n\r\n", Error::StartLine),
            ("GET / x HTTP/1.1\r\n\r\n", Error::StartLine),
            ("GET /\u{e9} HTTP/1.1\r\n\r\n", Error::StartLine),
            ("G\"ET / HTTP/1.1\r\n\r\n", Error::StartLine),
            ("GET / HTTP/1.2\r\n\r\n", Error::Version),
            ("GET / HTTP/11.1\r\n\r\n", Error::Version),
            ("GET / http/1.1\r\n\r\n", Error::Version),
            ("GET /\r\n\r\n", Error::StartLine),
            ("GET / HTTP/1.1\r\n\r\nX", Error::Field),
        ] {
            assert_eq!(request(text).map(|_| ()), Err(error), "{text:?}");
        }
    }

    #[test]
    fn framing_has_one_reading_or_none() {
        assert_eq!(framing(""), Ok(Framing::None));
        assert_eq!(framing("Content-Length: 0\r\n"), Ok(Framing::Length(0)));
        assert_eq!(framing("content-length:\t5 \r\n"), Ok(Framing::Length(5)));
        assert_eq!(
            framing("Transfer-Encoding: Chunked\r\n"),
            Ok(Framing::Chunked)
        );
        for fields in [
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding: chunked, identity\r\n",
            "Transfer-Encoding: ,chunked\r\n",
            "Transfer-Encoding: \"chunked\"\r\n",
            "Transfer-Encoding: \u{a0}chunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding:\r\n",
            "Content-Length: 5, 5\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: 0x5\r\n",
            "Content-Length: 5 5\r\n",
            "Content-Length: 5_0\r\n",
            "Content-Length:\r\n",
            "Content-Length: 010\r\n",
            "Content-Length: 18446744073709551616\r\n",
            "Content_Length: 5\r\n",
            "TRANSFER_encoding: chunked\r\n",
        ] {
            assert_eq!(framing(fields), Err(Error::Framing), "{fields:?}");
        }
        assert_eq!(framing("Content_Lengths: 5\r\n"), Ok(Framing::None));
        assert_eq!(framing("ContentxLength: 5\r\n"), Ok(Framing::None));
        let old = request("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        assert_eq!(request_framing(&old), Err(Error::Framing));
    }

    #[test]
    fn the_scanner_finds_the_end_wherever_the_reads_were_cut() {
        let text = b"GET / HTTP/1.1\r\nHost: x\r\n\r\nrest\n";
        let end = text.len() - 5;
        for cut in 0..text.len() {
            let mut scanner = HeadScanner::default();
            let first = scanner.scan(&text[..cut]).unwrap();
            assert_eq!(first, (cut >= end).then_some(end), "cut at {cut}");
            assert_eq!(
                scanner.clone().scan(text).unwrap().or(first),
                Some(end),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn the_scanner_refuses_early() {
        let scan = |text: &[u8]| HeadScanner::default().scan(text);
        assert_eq!(scan(b"\r\nGET / HTTP/1.1\r\n"), Err(Error::StartLine));
        assert_eq!(scan(b"GET / HTTP/1.1\n"), Err(Error::LineEnd));
        assert_eq!(
            scan(&vec![b'a'; HEAD_LIMIT_BYTES]),
            Err(Error::TargetTooLong)
        );
        let fields = [
            b"GET / HTTP/1.1\r\nX: ".as_slice(),
            &vec![b'a'; HEAD_LIMIT_BYTES],
        ]
        .concat();
        assert_eq!(scan(&fields), Err(Error::HeadTooLarge));
    }

    #[test]
    fn limits_are_inclusive() {
        let fields = |count: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(count));
        assert_eq!(
            request(&fields(FIELD_LIMIT)).unwrap().fields.len(),
            FIELD_LIMIT
        );
        assert_eq!(
            request(&fields(FIELD_LIMIT + 1)).map(|_| ()),
            Err(Error::HeadTooLarge)
        );
        let target = |count: usize| format!("GET {} HTTP/1.1\r\n\r\n", "/".repeat(count));
        assert!(request(&target(TARGET_LIMIT_BYTES)).is_ok());
        let over = request(&target(TARGET_LIMIT_BYTES + 1)).map(|_| ());
        assert_eq!(over, Err(Error::TargetTooLong));
    }

    #[test]
    fn answers_are_read_as_strictly() {
        let answer = |text: &str| parse_answer(Bytes::copy_from_slice(text.as_bytes()));
        let head = answer("HTTP/1.1 200 Fine then\r\nA: b\r\n\r\n").unwrap();
        let mut out = Vec::new();
        head.write(&mut out);
        assert_eq!(out, b"HTTP/1.1 200 Fine then\r\nA: b\r\n\r\n");
        assert_eq!(answer("HTTP/1.1 204\r\n\r\n").unwrap().status, 204);
        for text in [
            "HTTP/1.1 20 x\r\n\r\n",
            "HTTP/1.1  200 x\r\n\r\n",
            "HTTP/1.1 2000 x\r\n\r\n",
            "HTTP/1.1 099 x\r\n\r\n",
            "HTTP/1.1 600 x\r\n\r\n",
            "HTTP/2 200 x\r\n\r\n",
            "HTTP/1.1 200 x\r\nno colon\r\n\r\n",
            "HTTP/1.1 200 a\0b\r\n\r\n",
        ] {
            assert!(answer(text).is_err(), "{text:?}");
        }
        let plain = |status: u16, fields: &str| {
            answer(&format!("HTTP/1.1 {status} x\r\n{fields}\r\n")).unwrap()
        };
        assert_eq!(
            answer_framing(&plain(200, ""), false),
            Ok(Framing::UntilClose)
        );
        let sized = "Content-Length: 5\r\n";
        assert_eq!(
            answer_framing(&plain(200, sized), false),
            Ok(Framing::Length(5))
        );
        assert_eq!(answer_framing(&plain(200, sized), true), Ok(Framing::None));
        assert_eq!(answer_framing(&plain(304, sized), false), Ok(Framing::None));
        assert_eq!(answer_framing(&plain(204, ""), false), Ok(Framing::None));
        let both = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n";
        assert_eq!(
            answer_framing(&plain(200, both), false),
            Err(Error::Framing)
        );
    }

    #[test]
    fn trailers_do_not_frame_or_route() {
        let trailers = |text: &str| parse_trailers(Bytes::copy_from_slice(text.as_bytes()));
        assert_eq!(trailers("\r\n").unwrap().len(), 0);
        assert_eq!(
            trailers("X-Sum: 1\r\n\r\n").unwrap().first("x-sum"),
            Some(b"1".as_slice())
        );
        for text in [
            "Host: x\r\n\r\n",
            "content-length: 1\r\n\r\n",
            "bad\r\n\r\n",
        ] {
            assert_eq!(trailers(text).map(|_| ()), Err(Error::Trailer), "{text:?}");
        }
    }
}
