//! Four upstream servers, as far as they read requests: each one has its own idea of where a
//! message ends, and two of them are wrong on purpose.
//!
//! They share nothing with the reader of the proxy. Used by the differential test.

/// One request as a server reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) method: Vec<u8>,
    pub(super) target: Vec<u8>,
    pub(super) body: Vec<u8>,
}

/// What a server makes of the bytes of one connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Read {
    /// The requests that are complete.
    pub(super) seen: Vec<Seen>,
    /// How many bytes they take.
    pub(super) length: usize,
    /// What broke a rule of this server's.
    pub(super) fault: Option<&'static str>,
    /// The first lines of all heads, complete requests or not.
    pub(super) lines: Vec<Vec<u8>>,
}

/// How a server reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// To the letter of RFC 9112; anything else is a fault.
    Strict,
    /// A length counts wherever there is one, the first of them.
    LengthFirst,
    /// Chunks count wherever the word stands, and otherwise the last length.
    ChunksFirst,
    /// Lines end at LF, with CR before it or not.
    LineFeeds,
}

pub(super) const ALL: [Reader; 4] = [
    Reader::Strict,
    Reader::LengthFirst,
    Reader::ChunksFirst,
    Reader::LineFeeds,
];

type Step<T> = Result<Option<T>, &'static str>;

/// A head, taken apart.
struct Head {
    method: Vec<u8>,
    target: Vec<u8>,
    fields: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Head {
    fn all(&self, name: &str) -> Vec<&[u8]> {
        let named = |field: &&(Vec<u8>, Vec<u8>)| field.0.eq_ignore_ascii_case(name.as_bytes());
        let found = self.fields.iter().filter(named);
        found.map(|(_, value)| value.as_slice()).collect()
    }
}

enum Framing {
    Length(usize),
    Chunks,
}

impl Reader {
    /// Reads the bytes of one connection.
    pub(super) fn read(self, bytes: &[u8]) -> Read {
        let mut read = Read::default();
        loop {
            match self.request(bytes, read.length, &mut read.lines) {
                Ok(Some((seen, end))) => {
                    read.seen.push(seen);
                    read.length = end;
                }
                Ok(None) => return read,
                Err(fault) => {
                    read.fault = Some(fault);
                    return read;
                }
            }
        }
    }

    fn request(self, bytes: &[u8], start: usize, lines: &mut Vec<Vec<u8>>) -> Step<(Seen, usize)> {
        let Some((head, mut at)) = self.head(bytes, start, lines)? else {
            return Ok(None);
        };
        let mut body = Vec::new();
        match self.framing(&head)? {
            Framing::Length(length) => {
                let Some(data) = bytes.get(at..at + length) else {
                    return Ok(None);
                };
                body.extend_from_slice(data);
                at += length;
            }
            Framing::Chunks => match self.chunks(bytes, at, &mut body)? {
                Some(end) => at = end,
                None => return Ok(None),
            },
        }
        let (method, target) = (head.method, head.target);
        Ok(Some((
            Seen {
                method,
                target,
                body,
            },
            at,
        )))
    }

    /// Takes one line, and where the next one starts.
    fn line(self, bytes: &[u8], start: usize) -> Step<(&[u8], usize)> {
        let rest = &bytes[start..];
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            return Ok(None);
        };
        let line = &rest[..end];
        let stripped = line.strip_suffix(b"\r");
        let line = match self {
            Self::Strict => match stripped {
                Some(line) if !line.contains(&b'\r') && !line.contains(&0) => line,
                _ => return Err("a line end"),
            },
            _ => stripped.unwrap_or(line),
        };
        Ok(Some((line, start + end + 1)))
    }

    fn head(self, bytes: &[u8], start: usize, lines: &mut Vec<Vec<u8>>) -> Step<(Head, usize)> {
        let Some((first, mut at)) = self.line(bytes, start)? else {
            return Ok(None);
        };
        lines.push(first.to_vec());
        let words: Vec<&[u8]> = first.split(|byte| *byte == b' ').collect();
        let [method, target, version] = words[..] else {
            return Err("a request line");
        };
        if self == Self::Strict && (version != b"HTTP/1.1" || !is_token(method)) {
            return Err("a request line");
        }
        let mut head = Head {
            method: method.to_vec(),
            target: target.to_vec(),
            fields: Vec::new(),
        };
        loop {
            let Some((line, next)) = self.line(bytes, at)? else {
                return Ok(None);
            };
            at = next;
            if line.is_empty() {
                return Ok(Some((head, at)));
            }
            self.field(line, &mut head.fields)?;
        }
    }

    fn field(self, line: &[u8], fields: &mut Vec<(Vec<u8>, Vec<u8>)>) -> Result<(), &'static str> {
        if self != Self::Strict && line.starts_with(b" ") || line.starts_with(b"\t") {
            // A folded line belongs to the one before.
            if let Some((_, value)) = fields.last_mut() {
                value.extend_from_slice(line.trim_ascii());
            }
            return Ok(());
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            return Err("a field without a colon");
        };
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if self == Self::Strict {
            let text = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
            if !is_token(name) || !value.iter().all(text) {
                return Err("a field");
            }
            fields.push((name.to_vec(), value.trim_ascii().to_vec()));
            return Ok(());
        }
        // These are what lenient servers make of a name and a value.
        let name = name.trim_ascii().iter().map(|byte| match byte {
            b'_' => b'-',
            byte => *byte,
        });
        let value = value.iter().copied();
        let value: Vec<u8> = value.filter(|byte| (b'!'..0x7f).contains(byte)).collect();
        fields.push((name.collect(), value));
        Ok(())
    }

    fn framing(self, head: &Head) -> Result<Framing, &'static str> {
        let lengths = head.all("content-length");
        let codings = head.all("transfer-encoding");
        let length = |value: &[u8]| {
            let digits = value.iter().take_while(|byte| byte.is_ascii_digit());
            let digits: String = digits.map(|byte| char::from(*byte)).collect();
            Framing::Length(digits.parse().unwrap_or(0))
        };
        let chunked = |value: &&[u8]| contains(&value.to_ascii_lowercase(), b"chunked");
        let chunks = codings.iter().any(chunked);
        match self {
            Self::Strict => match (&lengths[..], &codings[..]) {
                ([], []) => Ok(Framing::Length(0)),
                ([one], []) if is_digits(one) => Ok(length(one)),
                ([], [b"chunked"]) => Ok(Framing::Chunks),
                _ => Err("an ambiguous framing"),
            },
            Self::LengthFirst => Ok(match lengths.first() {
                Some(first) => length(first),
                None if chunks => Framing::Chunks,
                None => Framing::Length(0),
            }),
            Self::ChunksFirst | Self::LineFeeds if chunks => Ok(Framing::Chunks),
            Self::ChunksFirst | Self::LineFeeds => Ok(lengths
                .last()
                .map_or(Framing::Length(0), |last| length(last))),
        }
    }

    /// Takes a body in chunks, and returns where it ends.
    fn chunks(self, bytes: &[u8], mut at: usize, body: &mut Vec<u8>) -> Step<usize> {
        loop {
            let Some((line, next)) = self.line(bytes, at)? else {
                return Ok(None);
            };
            at = next;
            let size = self.size(line)?;
            if size == 0 {
                break;
            }
            let Some(data) = bytes.get(at..at.saturating_add(size)) else {
                return Ok(None);
            };
            body.extend_from_slice(data);
            at += size;
            let Some((rest, next)) = self.line(bytes, at)? else {
                return Ok(None);
            };
            if self == Self::Strict && !rest.is_empty() {
                return Err("the end of a chunk");
            }
            at = next;
        }
        let mut trailers = Vec::new();
        loop {
            let Some((line, next)) = self.line(bytes, at)? else {
                return Ok(None);
            };
            at = next;
            if line.is_empty() {
                return Ok(Some(at));
            }
            self.field(line, &mut trailers)?;
        }
    }

    fn size(self, line: &[u8]) -> Result<usize, &'static str> {
        let digits = |line: &[u8]| -> String {
            let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit());
            digits.map(|byte| char::from(*byte)).collect()
        };
        if self == Self::Strict {
            // What the proxy writes has no extension.
            let plain = !line.is_empty() && line.iter().all(u8::is_ascii_hexdigit);
            return match usize::from_str_radix(&digits(line), 16) {
                Ok(size) if plain => Ok(size),
                _ => Err("a chunk size"),
            };
        }
        let line = line.trim_ascii();
        let line = line.strip_prefix(b"+").unwrap_or(line);
        let line = line.strip_prefix(b"0x").unwrap_or(line);
        Ok(usize::from_str_radix(&digits(line), 16).unwrap_or(0))
    }
}

fn is_token(text: &[u8]) -> bool {
    let special = b"!#$%&'*+-.^_`|~";
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || special.contains(byte);
    !text.is_empty() && text.iter().all(allowed)
}

fn is_digits(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(u8::is_ascii_digit)
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}

/// Each reader is as wrong as it should be: they disagree about what must never leave the proxy.
#[test]
fn the_readers_disagree_about_what_is_ambiguous() {
    let smug = "GET /smug HTTP/1.1\r\nHost: x\r\n\r\n";
    let sees = |reader: Reader, text: &str| {
        let read = reader.read(text.as_bytes());
        let smuggled = read.lines.iter().any(|line| contains(line, b"/smug"));
        (read.fault.is_some(), smuggled)
    };
    let framed =
        |fields: &str, body: &str| format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n{body}");
    let both = "Content-Length: 36\r\nTransfer-Encoding: chunked\r\n";
    let chunks_end = framed(both, &format!("0\r\n\r\n{smug}"));
    assert_eq!(sees(Reader::Strict, &chunks_end), (true, false));
    assert!(!sees(Reader::LengthFirst, &chunks_end).1);
    assert!(sees(Reader::ChunksFirst, &chunks_end).1);
    let length_ends = framed(
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        &format!("1f\r\n{smug}\r\n0\r\n\r\n"),
    );
    assert!(sees(Reader::LengthFirst, &length_ends).1);
    assert!(!sees(Reader::ChunksFirst, &length_ends).1);
    let hidden = framed("X: y\nContent-Length: 31\r\n", smug);
    assert_eq!(sees(Reader::Strict, &hidden), (true, false));
    let bare = framed(
        "X: y\nTransfer-Encoding: chunked\r\nContent-Length: 36\r\n",
        &format!("0\r\n\r\n{smug}"),
    );
    assert!(sees(Reader::LineFeeds, &bare).1);
    let disguised = framed(
        "Content-Length: 36\r\nTransfer_Encoding: chunked\r\n",
        &format!("0\r\n\r\n{smug}"),
    );
    assert!(sees(Reader::ChunksFirst, &disguised).1);
    // And they agree about what is not.
    for text in [
        framed("Content-Length: 31\r\n", smug),
        framed(
            "Transfer-Encoding: chunked\r\n",
            &format!("1f\r\n{smug}\r\n0\r\nX: y\r\n\r\n"),
        ),
        format!("{0}{0}", framed("", "")),
        framed("Content-Length: 50\r\n", smug),
    ] {
        let strict = Reader::Strict.read(text.as_bytes());
        for reader in ALL {
            assert_eq!(reader.read(text.as_bytes()), strict, "{reader:?}: {text}");
            assert_eq!(sees(reader, &text), (false, false), "{reader:?}: {text}");
        }
    }
}
