//! Bodies as they stream: one framing read strictly, one written.
//!
//! [`Body`] takes what has arrived and appends what is to be sent. Chunks keep their sizes and
//! their order, but every size line is written anew and extensions are dropped, so that the next
//! reader sees one possible framing (RFC 9112 §7.1.1 allows both). It holds no data itself: the
//! bound on memory is the caller's buffers. Called by the relay.

use bytes::{Buf, BytesMut};

use super::h1::{
    EXTENSION_LIMIT_BYTES, Error, Framing, HeadScanner, TRAILER_LIMIT_BYTES, parse_trailers,
};
use super::head::Fields;
use super::hygiene::clean_trailers;

/// The longest line that opens a chunk, in bytes.
const SIZE_LINE_LIMIT_BYTES: usize = 4 * 1024;
/// The most hex digits of a chunk size: sizes stay far from overflowing 64 bits.
const SIZE_DIGITS: usize = 15;
/// How much is copied into the outgoing buffer before it must be written.
const OUT_TARGET_BYTES: usize = 16 * 1024;

/// Tells what a step achieved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// More input is needed.
    Hungry,
    /// The outgoing buffer is full enough to be written.
    Full,
    /// The body is complete; what is left in the input belongs to the next message.
    Done,
}

#[derive(Debug, Clone)]
enum State {
    Length(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailer(HeadScanner),
    UntilClose,
    Done,
}

/// A body on its way through.
#[derive(Debug, Clone)]
pub struct Body {
    state: State,
    /// Write the data of chunks without their framing (to an HTTP/1.0 or HTTP/2 client).
    unframed: bool,
    /// The trailers of a body that is written without framing.
    trailers: Option<Box<Fields>>,
    extension_bytes: usize,
    data_bytes: u64,
    limits: BodyLimits,
}

/// The bounds of the body of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyLimits {
    /// Its bytes; none for any number.
    pub bytes: Option<u64>,
    /// The bytes of all its chunk extensions.
    pub extension_bytes: usize,
}

impl Default for BodyLimits {
    fn default() -> Self {
        Self {
            bytes: None,
            extension_bytes: EXTENSION_LIMIT_BYTES,
        }
    }
}

impl BodyLimits {
    /// Checks a length, stated or come to.
    ///
    /// # Errors
    /// [`Error::BodyTooLong`].
    pub fn check(&self, bytes: u64) -> Result<(), Error> {
        match self.bytes {
            Some(limit) if bytes > limit => Err(Error::BodyTooLong),
            _ => Ok(()),
        }
    }
}

impl Body {
    /// Starts a body with the framing its head states.
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkSize,
            Framing::UntilClose => State::UntilClose,
        };
        Self {
            state,
            unframed: false,
            trailers: None,
            extension_bytes: 0,
            data_bytes: 0,
            limits: BodyLimits::default(),
        }
    }

    /// Sets the bounds of a body that was not begun. A length that its head states is to be checked
    /// by the caller; each chunk is checked before any of its data is passed on.
    #[must_use]
    pub fn within(mut self, limits: BodyLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Makes a body that is through, for its accounting.
    pub fn counted(bytes: usize) -> Self {
        Self {
            data_bytes: bytes as u64,
            ..Self::new(Framing::None)
        }
    }

    /// Drops the framing of chunks on the way, for a reader that knows none.
    #[must_use]
    pub fn without_framing(mut self) -> Self {
        self.unframed = true;
        self
    }

    /// Takes the trailers of a complete body that was written without framing.
    pub fn take_trailers(&mut self) -> Option<Fields> {
        self.trailers.take().map(|trailers| *trailers)
    }

    /// Tells whether the body is complete.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Returns the bytes of data seen so far, framing not counted.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Ends a body whose sender closed the connection.
    ///
    /// # Errors
    /// [`Error::Framing`] where the framing promised more.
    pub fn close(&mut self) -> Result<(), Error> {
        match self.state {
            State::Done => Ok(()),
            State::UntilClose => {
                self.state = State::Done;
                Ok(())
            }
            _ => Err(Error::Framing),
        }
    }

    /// Returns how many of the arrived bytes can be sent as they are, without a copy.
    pub fn verbatim(&self, arrived: usize) -> usize {
        match self.state {
            State::Length(left) | State::ChunkData(left) => {
                usize::try_from(left).map_or(arrived, |left| left.min(arrived))
            }
            State::UntilClose => arrived,
            _ => 0,
        }
    }

    /// Returns how much of a chunk is still to come, arrived or not; nothing outside of one.
    pub(super) fn chunk_left(&self) -> Option<u64> {
        match self.state {
            State::ChunkData(left) => Some(left),
            _ => None,
        }
    }

    /// Takes note of bytes that were sent verbatim; at most what [`Self::verbatim`] allowed.
    pub fn sent_verbatim(&mut self, count: usize) {
        let count = count as u64;
        self.data_bytes = self.data_bytes.saturating_add(count);
        self.state = match std::mem::replace(&mut self.state, State::Done) {
            State::Length(left) if left > count => State::Length(left - count),
            State::ChunkData(left) if left > count => State::ChunkData(left - count),
            State::ChunkData(_) => State::ChunkEnd,
            State::UntilClose => State::UntilClose,
            State::Length(_) | State::Done => State::Done,
            other => other,
        };
    }

    /// Moves arrived bytes to the outgoing buffer, framing checked and written anew.
    ///
    /// # Errors
    /// [`Error::Chunk`] and [`Error::Trailer`]; the message cannot go on after either.
    pub fn step(&mut self, input: &mut BytesMut, out: &mut Vec<u8>) -> Result<Progress, Error> {
        loop {
            if out.len() >= OUT_TARGET_BYTES && !self.is_done() {
                return Ok(Progress::Full);
            }
            let go_on = match &mut self.state {
                State::Done => return Ok(Progress::Done),
                State::Length(_) | State::ChunkData(_) | State::UntilClose => {
                    self.copy_data(input, out)
                }
                State::ChunkSize => self.read_size(input, out)?,
                State::ChunkEnd => self.end_chunk(input, out)?,
                State::Trailer(_) => self.read_trailer(input, out)?,
            };
            if !go_on {
                return Ok(Progress::Hungry);
            }
        }
    }

    /// Reads framing up to the next data, for a body whose data is taken by
    /// [`Self::verbatim`]. [`Progress::Full`] says that data is there.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub(super) fn skip_framing(&mut self, input: &mut BytesMut) -> Result<Progress, Error> {
        self.unframed = true;
        let mut none = Vec::new();
        loop {
            let go_on = match &mut self.state {
                State::Done => return Ok(Progress::Done),
                State::Length(_) | State::ChunkData(_) | State::UntilClose => {
                    let there = !input.is_empty();
                    return Ok(if there {
                        Progress::Full
                    } else {
                        Progress::Hungry
                    });
                }
                State::ChunkSize => self.read_size(input, &mut none)?,
                State::ChunkEnd => self.end_chunk(input, &mut none)?,
                State::Trailer(_) => self.read_trailer(input, &mut none)?,
            };
            if !go_on {
                return Ok(Progress::Hungry);
            }
        }
    }

    fn copy_data(&mut self, input: &mut BytesMut, out: &mut Vec<u8>) -> bool {
        let count = self.verbatim(input.len()).min(OUT_TARGET_BYTES);
        if count == 0 {
            return false;
        }
        out.extend_from_slice(input.get(..count).unwrap_or_default());
        input.advance(count);
        self.sent_verbatim(count);
        true
    }

    fn read_size(&mut self, input: &mut BytesMut, out: &mut Vec<u8>) -> Result<bool, Error> {
        let Some(end) = memchr::memchr(b'\n', input) else {
            return if input.len() > SIZE_LINE_LIMIT_BYTES {
                Err(Error::Chunk)
            } else {
                Ok(false)
            };
        };
        if end > SIZE_LINE_LIMIT_BYTES {
            return Err(Error::Chunk);
        }
        let line = input
            .get(..end)
            .and_then(|l| l.strip_suffix(b"\r"))
            .ok_or(Error::Chunk)?;
        let digits = line
            .iter()
            .take_while(|byte| byte.is_ascii_hexdigit())
            .count();
        let extension = line.get(digits..).unwrap_or_default();
        if !(1..=SIZE_DIGITS).contains(&digits) || !is_extension(extension) {
            return Err(Error::Chunk);
        }
        self.extension_bytes += extension.len();
        if self.extension_bytes > self.limits.extension_bytes {
            return Err(Error::Chunk);
        }
        let size = line
            .iter()
            .take(digits)
            .fold(0, |sum, d| sum * 16 + u64::from(hex_value(*d)));
        self.limits.check(self.data_bytes.saturating_add(size))?;
        input.advance(end + 1);
        if !self.unframed {
            out.extend_from_slice(format!("{size:x}\r\n").as_bytes());
        }
        self.state = match size {
            0 => State::Trailer(HeadScanner::default()),
            size => State::ChunkData(size),
        };
        Ok(true)
    }

    fn end_chunk(&mut self, input: &mut BytesMut, out: &mut Vec<u8>) -> Result<bool, Error> {
        match input.get(..2) {
            Some(b"\r\n") => {
                input.advance(2);
                if !self.unframed {
                    out.extend_from_slice(b"\r\n");
                }
                self.state = State::ChunkSize;
                Ok(true)
            }
            None if matches!(input.first(), None | Some(b'\r')) => Ok(false),
            None | Some(_) => Err(Error::Chunk),
        }
    }

    fn read_trailer(&mut self, input: &mut BytesMut, out: &mut Vec<u8>) -> Result<bool, Error> {
        let State::Trailer(scanner) = &mut self.state else {
            return Ok(false);
        };
        let length = match input.get(..2) {
            Some(b"\r\n") => 2,
            None => return Ok(false),
            Some(_) => match scanner.scan(input).map_err(|_whatever| Error::Trailer)? {
                Some(length) => length,
                None if input.len() > TRAILER_LIMIT_BYTES => return Err(Error::Trailer),
                None => return Ok(false),
            },
        };
        if length > TRAILER_LIMIT_BYTES {
            return Err(Error::Trailer);
        }
        let mut fields = parse_trailers(input.split_to(length).freeze())?;
        clean_trailers(&mut fields);
        if self.unframed {
            self.trailers = (!fields.is_empty()).then(|| Box::new(fields));
        } else {
            fields.write(out);
            out.extend_from_slice(b"\r\n");
        }
        self.state = State::Done;
        Ok(true)
    }
}

/// Tells whether what follows a chunk size is nothing or an extension of plain bytes.
fn is_extension(text: &[u8]) -> bool {
    match text {
        [] => true,
        [b';', rest @ ..] => rest.iter().all(|b| (0x20..0x7f).contains(b) || *b == b'\t'),
        _ => false,
    }
}

fn hex_value(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        b'A'..=b'F' => digit - b'A' + 10,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds a body in the given pieces and returns what came out and what was left over.
    fn feed(body: &mut Body, pieces: &[&[u8]]) -> Result<(Vec<u8>, Vec<u8>), Error> {
        let (mut input, mut sent) = (BytesMut::new(), Vec::new());
        for piece in pieces {
            input.extend_from_slice(piece);
            loop {
                let mut out = Vec::new();
                let progress = body.step(&mut input, &mut out)?;
                sent.extend_from_slice(&out);
                if progress != Progress::Full {
                    break;
                }
            }
        }
        Ok((sent, input.to_vec()))
    }

    fn chunked(text: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Error> {
        let mut body = Body::new(Framing::Chunked);
        let fed = feed(&mut body, &[text])?;
        if body.is_done() {
            Ok(fed)
        } else {
            Err(Error::Framing)
        }
    }

    #[test]
    fn chunks_keep_sizes_and_trailers_and_lose_extensions() {
        let text = b"5;a=b\r\nhello\r\nA\r\n0123456789\r\n\
                     0\r\nX-Sum: 1\r\nProxy-X: 2\r\nUpgrade: h2c\r\nKeep-Alive: 5\r\n\r\nNEXT";
        let (out, rest) = chunked(text).unwrap();
        assert_eq!(
            out,
            b"5\r\nhello\r\na\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n"
        );
        assert_eq!(rest, b"NEXT");
    }

    #[test]
    fn malformed_chunks_are_refused() {
        for text in [
            b"0x5\r\nhello\r\n0\r\n\r\n".as_slice(),
            b"+5\r\nhello\r\n0\r\n\r\n",
            b"-0\r\n\r\n",
            b"5 \r\nhello\r\n0\r\n\r\n",
            b" 5\r\nhello\r\n0\r\n\r\n",
            b"5_0\r\n",
            b"\r\n",
            b"5\nhello\r\n0\r\n\r\n",
            b"5;\nxx\r\n0\r\n\r\n",
            b"5;a=\x01\r\nhello\r\n0\r\n\r\n",
            b"FFFFFFFFFFFFFFFF\r\n",
            b"00000000000000005\r\nhello\r\n0\r\n\r\n",
            b"5\r\nhelloXX",
            b"5\r\nhello\nX",
            b"0\r\nX",
            b"0\r\nX\r\n\r\n",
            b"0\r\nContent-Length: 5\r\n\r\n",
            b"0\r\nX: y\n\r\n",
        ] {
            assert!(
                chunked(text).is_err(),
                "{:?}",
                text.escape_ascii().to_string()
            );
        }
    }

    #[test]
    fn extensions_are_bounded_over_the_whole_body() {
        let line = format!("1;{}\r\nx\r\n", "e".repeat(1000));
        let many = |count: usize| format!("{}0\r\n\r\n", line.repeat(count)).into_bytes();
        assert!(chunked(&many(16)).is_ok());
        assert_eq!(chunked(&many(17)).map(|_| ()), Err(Error::Chunk));
        let long = format!("1;{}", "e".repeat(SIZE_LINE_LIMIT_BYTES));
        assert_eq!(chunked(long.as_bytes()).map(|_| ()), Err(Error::Chunk));
    }

    #[test]
    fn a_length_takes_its_bytes_and_no_more() {
        let mut body = Body::new(Framing::Length(5));
        let (out, rest) = feed(&mut body, &[b"he", b"lloGET /"]).unwrap();
        assert_eq!(
            (out.as_slice(), rest.as_slice()),
            (b"hello".as_slice(), b"GET /".as_slice())
        );
        assert!(body.is_done());
        assert_eq!(body.data_bytes(), 5);
        let mut cut = Body::new(Framing::Length(5));
        feed(&mut cut, &[b"he"]).unwrap();
        assert_eq!(cut.close(), Err(Error::Framing));
        let mut open = Body::new(Framing::UntilClose);
        feed(&mut open, &[b"he"]).unwrap();
        assert_eq!(open.close(), Ok(()));
    }

    #[test]
    fn framing_can_be_dropped() {
        let mut body = Body::new(Framing::Chunked).without_framing();
        let (out, _) = feed(&mut body, &[b"5\r\nhello\r\n0\r\nX: y\r\n\r\n"]).unwrap();
        assert_eq!(out, b"hello");
        assert!(body.is_done());
    }

    proptest! {
        #[test]
        fn any_cut_of_any_chunked_body_gives_the_same(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
            cuts in prop::collection::vec(1usize..30, 1..40),
        ) {
            let mut text = Vec::new();
            for chunk in &chunks {
                text.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                text.extend_from_slice(chunk);
                text.extend_from_slice(b"\r\n");
            }
            text.extend_from_slice(b"0\r\nX-T: 1\r\n\r\n");
            let (mut pieces, mut rest) = (Vec::new(), text.as_slice());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break }
                let (piece, left) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece);
                rest = left;
            }
            let mut body = Body::new(Framing::Chunked);
            let (out, left) = feed(&mut body, &pieces).unwrap();
            prop_assert!(body.is_done());
            prop_assert_eq!(out, text);
            prop_assert!(left.is_empty());
            prop_assert_eq!(body.data_bytes(), chunks.iter().map(|c| c.len() as u64).sum::<u64>());
        }
    }
}
