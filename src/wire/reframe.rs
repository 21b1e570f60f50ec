//! Bodies that change on their way: taken out of their framing, changed, and framed anew.
//!
//! What a body is changed to is the [`Transform`]'s business; here its bytes are found in what has
//! arrived, and what comes out is written with a framing that fits. Both are bounded: a piece that
//! grows is written before the next one is looked at. Called by the flow.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::time::{Sleep, sleep};

use super::body::{Body, Progress};
use super::h1::Error;
use super::head::Fields;
use super::outbox::{make_room, wipe};

/// How much is put in line before it must be written, in bytes.
const OUT_TARGET_BYTES: usize = 16 * 1024;
/// The largest chunk that is waited for, in bytes, so that it can leave as one.
const KEPT_CHUNK_BYTES: u64 = 64 * 1024;
/// The most that frames a chunk, in bytes: its size in hexadecimal digits, and two line ends.
const CHUNK_FRAMING_BYTES: usize = 16 + 2 + 2;

/// How long bytes are held back while the sender sends nothing: longer than any round trip, so that
/// a workload cannot cut what is looked for by its place in a stream, and short enough for two sides
/// that wait for each other's words.
const PATIENCE: Duration = Duration::from_secs(1);

/// Measures how long a sender has been silent behind bytes that are held back.
#[derive(Debug, Default)]
pub struct Patience(Option<Pin<Box<Sleep>>>);

impl Patience {
    /// Tells whether it is over. To be asked while the sender is waited for, and only then.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.0.get_or_insert_with(|| Box::pin(sleep(PATIENCE)));
        let polled = timer.as_mut().poll(cx);
        if polled.is_ready() {
            self.0 = None;
        }
        polled
    }

    /// Begins anew: the sender spoke, or nobody listened to it.
    pub fn renew(&mut self) {
        self.0 = None;
    }
}

/// Changes a body as it passes.
pub trait Transform: Send {
    /// Takes from the input and appends to the output, a bounded piece at a time.
    /// [`Progress::Hungry`] says that all was taken; [`Progress::Full`] that there is more to
    /// come, to be asked for with what is left, even if nothing is left.
    ///
    /// # Errors
    /// [`Error::Coding`] and [`Error::TooMuch`]; the message cannot go on.
    fn push(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<Progress, Error>;

    /// Appends what was held back, at the end of the body.
    ///
    /// # Errors
    /// [`Error::Coding`] where the body ends too early.
    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Error>;

    /// Changes the trailers.
    fn trailers(&mut self, fields: &mut Fields);

    /// Tells whether bytes are held back until it is seen what follows them.
    fn holds(&self) -> bool;

    /// Appends what is held back, since nothing follows it for too long.
    fn release(&mut self, out: &mut Vec<u8>);
}

impl Drop for Reframe {
    fn drop(&mut self) {
        wipe(&mut self.piece);
    }
}

/// The chunks that a body leaves in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunks {
    /// One for each piece that comes out.
    Fresh,
    /// Read whole, up to a bound, so that they leave as they came if nothing in them changes.
    Kept,
    /// None: the body is not framed.
    None,
}

/// A transform, and the framing that its output gets.
pub(super) struct Reframe {
    transform: Box<dyn Transform>,
    chunks: Chunks,
    /// The transform has more to give before it takes more.
    more: bool,
    finished: bool,
    piece: Vec<u8>,
    patience: Patience,
}

impl Reframe {
    /// Frames with chunks, or not at all: then the end of the connection, or a length that was
    /// counted before, ends the body.
    pub(super) fn new(transform: Box<dyn Transform>, chunked: bool) -> Self {
        Self {
            transform,
            chunks: if chunked { Chunks::Fresh } else { Chunks::None },
            more: false,
            finished: false,
            piece: Vec::new(),
            patience: Patience::default(),
        }
    }

    /// Lets chunks keep their sizes, where nothing in them changes and they are not large.
    pub(super) fn keep_chunks(&mut self) {
        if self.chunks == Chunks::Fresh {
            self.chunks = Chunks::Kept;
        }
    }

    /// Puts in line what is held back, if the sender has been silent for long. To be asked while
    /// it is waited for.
    pub(super) fn poll_release(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<()> {
        if !self.transform.holds() || self.patience.poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.transform.release(&mut self.piece);
        self.put(out);
        Poll::Ready(())
    }

    /// Takes note that the sender spoke, or that it was not listened to.
    pub(super) fn renew(&mut self) {
        self.patience.renew();
    }

    /// Tells whether the end of the body was put in line.
    pub(super) fn is_ended(&self) -> bool {
        self.finished
    }

    /// Moves arrived bytes through the transform to the outgoing buffer.
    pub(super) fn step(
        &mut self,
        body: &mut Body,
        input: &mut BytesMut,
        out: &mut Vec<u8>,
    ) -> Result<Progress, Error> {
        loop {
            if out.len() >= OUT_TARGET_BYTES {
                return Ok(Progress::Full);
            }
            let mut count = body.verbatim(input.len()).min(OUT_TARGET_BYTES);
            if let Some(chunk) = self.kept_chunk(body) {
                let is_here = input.len() >= chunk;
                if !is_here && !self.more {
                    return Ok(Progress::Hungry);
                }
                count = if is_here { chunk } else { 0 };
            }
            if self.more || count > 0 {
                self.push(body, input, count)?;
                self.put(out);
                continue;
            }
            match body.skip_framing(input)? {
                Progress::Full => {}
                Progress::Hungry => return Ok(Progress::Hungry),
                Progress::Done => {
                    self.end(body, out)?;
                    return Ok(Progress::Done);
                }
            }
        }
    }

    /// Returns the size of a chunk that is to be taken whole.
    fn kept_chunk(&self, body: &Body) -> Option<usize> {
        let left = body.chunk_left().filter(|left| *left <= KEPT_CHUNK_BYTES)?;
        usize::try_from(left)
            .ok()
            .filter(|_| self.chunks == Chunks::Kept)
    }

    fn push(&mut self, body: &mut Body, input: &mut BytesMut, count: usize) -> Result<(), Error> {
        let arrived = input.get(..count).unwrap_or_default();
        let mut rest = arrived;
        let progress = self.transform.push(&mut rest, &mut self.piece)?;
        self.more = progress == Progress::Full;
        let taken = count - rest.len();
        if taken > 0 {
            input.advance(taken);
            body.sent_verbatim(taken);
        }
        Ok(())
    }

    /// Puts the piece in line.
    fn put(&mut self, out: &mut Vec<u8>) {
        if self.piece.is_empty() {
            // An empty chunk would be the last one.
            return;
        }
        // Real values stand in both.
        make_room(out, self.piece.len() + CHUNK_FRAMING_BYTES);
        if self.chunks != Chunks::None {
            out.extend_from_slice(format!("{:x}\r\n", self.piece.len()).as_bytes());
        }
        out.extend_from_slice(&self.piece);
        if self.chunks != Chunks::None {
            out.extend_from_slice(b"\r\n");
        }
        self.piece.clear();
    }

    fn end(&mut self, body: &mut Body, out: &mut Vec<u8>) -> Result<(), Error> {
        if std::mem::replace(&mut self.finished, true) {
            return Ok(());
        }
        self.transform.finish(&mut self.piece)?;
        self.put(out);
        if self.chunks != Chunks::None {
            out.extend_from_slice(b"0\r\n");
            if let Some(mut trailers) = body.take_trailers() {
                self.transform.trailers(&mut trailers);
                trailers.write(out);
            }
            out.extend_from_slice(b"\r\n");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use proptest::prelude::*;

    use super::*;
    use crate::wire::Framing;

    /// Doubles every byte, takes and gives little at a time, and holds the last byte back.
    #[derive(Default)]
    struct Doubles {
        held: Option<u8>,
        waiting: bool,
        short: bool,
    }

    impl Transform for Doubles {
        fn push(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<Progress, Error> {
            if std::mem::replace(&mut self.waiting, false) {
                // There was something to come, and it is nothing.
                return Ok(Progress::Full);
            }
            let (piece, rest) = input.split_at(input.len().min(3));
            for byte in piece {
                if *byte == b'!' {
                    return Err(Error::Coding);
                }
                if let Some(held) = self.held.replace(*byte) {
                    out.extend([held, held]);
                }
            }
            *input = rest;
            self.waiting = !piece.is_empty() && piece.len() % 2 == 0;
            Ok(if self.waiting || !rest.is_empty() {
                Progress::Full
            } else {
                Progress::Hungry
            })
        }

        fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
            out.extend(self.held.take().into_iter().flat_map(|held| [held, held]));
            if self.short {
                return Err(Error::Coding);
            }
            Ok(())
        }

        fn trailers(&mut self, fields: &mut Fields) {
            fields.retain(|name, _| name != b"X-Gone");
        }

        fn holds(&self) -> bool {
            self.held.is_some()
        }

        fn release(&mut self, out: &mut Vec<u8>) {
            out.extend(self.held.take().into_iter().flat_map(|held| [held, held]));
        }
    }

    fn run(
        (transform, framing, chunked): (Doubles, Framing, bool),
        pieces: &[&[u8]],
    ) -> Result<(Vec<u8>, Vec<u8>), Error> {
        let mut reframe = Reframe::new(Box::new(transform), chunked);
        let (mut body, mut input, mut sent) = (Body::new(framing), BytesMut::new(), Vec::new());
        let mut step = |body: &mut Body, input: &mut BytesMut| {
            loop {
                let mut out = Vec::new();
                let progress = reframe.step(body, input, &mut out)?;
                assert!(out.len() < 2 * OUT_TARGET_BYTES);
                sent.append(&mut out);
                if progress != Progress::Full {
                    return Ok(progress);
                }
            }
        };
        for piece in pieces {
            input.extend_from_slice(piece);
            step(&mut body, &mut input)?;
        }
        if framing == Framing::UntilClose {
            body.close()?;
        }
        assert_eq!(step(&mut body, &mut input)?, Progress::Done);
        // Whoever asks again gets no second end.
        assert_eq!(step(&mut body, &mut input)?, Progress::Done);
        assert!(reframe.is_ended());
        Ok((sent, input.to_vec()))
    }

    /// Takes chunks apart.
    fn data(mut text: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let mut data = Vec::new();
        loop {
            let at = text.windows(2).position(|two| two == b"\r\n").unwrap();
            let size = std::str::from_utf8(&text[..at]).unwrap();
            let size = usize::from_str_radix(size, 16).unwrap();
            text = &text[at + 2..];
            if size == 0 {
                return (data, text.to_vec());
            }
            data.extend_from_slice(&text[..size]);
            assert_eq!(&text[size..size + 2], b"\r\n");
            text = &text[size + 2..];
        }
    }

    const LENGTH: (Framing, &[u8]) = (Framing::Length(5), b"helloNEXT");
    const CHUNKS: (Framing, &[u8]) = (
        Framing::Chunked,
        b"4;a=b\r\nhell\r\n1\r\no\r\n0\r\nX-Sum: 1\r\nX-Gone: 2\r\n\r\nNEXT",
    );

    #[test]
    fn every_framing_becomes_chunks_or_none_at_every_cut() {
        for (framing, text) in [LENGTH, CHUNKS, (Framing::UntilClose, b"hello")] {
            for cut in 0..=text.len() {
                let (one, two) = text.split_at(cut);
                let (sent, rest) = run((Doubles::default(), framing, true), &[one, two]).unwrap();
                let (body, end) = data(&sent);
                assert_eq!(body, b"hheelllloo", "{framing:?} at {cut}");
                let trailers: &[u8] = match framing {
                    Framing::Chunked => b"X-Sum: 1\r\n\r\n",
                    _ => b"\r\n",
                };
                assert_eq!(end, trailers, "{framing:?} at {cut}");
                let behind: &[u8] = match framing {
                    Framing::UntilClose => b"",
                    _ => b"NEXT",
                };
                assert_eq!(rest, behind, "{framing:?} at {cut}");
                let (sent, _) = run((Doubles::default(), framing, false), &[one, two]).unwrap();
                assert_eq!(sent, b"hheelllloo", "{framing:?} at {cut}");
            }
        }
    }

    #[test]
    fn chunks_that_are_not_large_keep_their_sizes() {
        /// Changes nothing.
        struct Same;
        impl Transform for Same {
            fn push(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<Progress, Error> {
                out.extend_from_slice(std::mem::take(input));
                Ok(Progress::Hungry)
            }
            fn finish(&mut self, _out: &mut Vec<u8>) -> Result<(), Error> {
                Ok(())
            }
            fn trailers(&mut self, _fields: &mut Fields) {}
            fn holds(&self) -> bool {
                false
            }
            fn release(&mut self, _out: &mut Vec<u8>) {}
        }
        let (kept, large) = (KEPT_CHUNK_BYTES, KEPT_CHUNK_BYTES + 1);
        for (size, keeps) in [(1, true), (20_000, true), (kept, true), (large, false)] {
            let size = usize::try_from(size).unwrap();
            let text = format!("{size:x}\r\n{}\r\n1\r\ny\r\n0\r\n\r\n", "x".repeat(size));
            let mut reframe = Reframe::new(Box::new(Same), true);
            reframe.keep_chunks();
            let mut body = Body::new(Framing::Chunked);
            let (mut input, mut sent) = (BytesMut::new(), Vec::new());
            for piece in text.as_bytes().chunks(7777) {
                input.extend_from_slice(piece);
                loop {
                    let mut out = Vec::new();
                    let progress = reframe.step(&mut body, &mut input, &mut out).unwrap();
                    sent.append(&mut out);
                    if progress != Progress::Full {
                        break;
                    }
                }
            }
            assert!(reframe.is_ended());
            assert_eq!(sent == text.as_bytes(), keeps, "{size}");
            assert_eq!(data(&sent).0.len(), size + 1);
        }
    }

    #[test]
    fn what_comes_to_nothing_is_no_empty_chunk() {
        let (sent, _) = run(
            (Doubles::default(), Framing::Chunked, true),
            &[b"1\r\na", b"\r\n0\r\n\r\n"],
        )
        .unwrap();
        assert_eq!(sent, b"2\r\naa\r\n0\r\n\r\n");
        let (sent, _) = run(
            (Doubles::default(), Framing::Chunked, true),
            &[b"0\r\n\r\n"],
        )
        .unwrap();
        assert_eq!(sent, b"0\r\n\r\n");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_held_back_leaves_when_nothing_follows_it() {
        let mut reframe = Reframe::new(Box::new(Doubles::default()), true);
        let (mut body, mut out) = (Body::new(Framing::UntilClose), Vec::new());
        let mut say = |reframe: &mut Reframe, text: &[u8], out: &mut Vec<u8>| {
            reframe
                .step(&mut body, &mut BytesMut::from(text), out)
                .unwrap();
            reframe.renew();
        };
        say(&mut reframe, b"a", &mut out);
        assert!(out.is_empty());
        let second = Duration::from_secs(1);
        let start = tokio::time::Instant::now();
        poll_fn(|cx| reframe.poll_release(cx, &mut out)).await;
        assert_eq!(
            (start.elapsed().as_millis() + 5) / 10,
            second.as_millis() / 10
        );
        assert_eq!(out, b"2\r\naa\r\n");
        // Nothing is held: there is nothing to wait for.
        let wait = poll_fn(|cx| reframe.poll_release(cx, &mut out));
        assert!(tokio::time::timeout(3 * second, wait).await.is_err());
        // Whoever speaks again is listened to from the start.
        let mut out = Vec::new();
        say(&mut reframe, b"b", &mut out);
        let wait = poll_fn(|cx| reframe.poll_release(cx, &mut out));
        assert!(tokio::time::timeout(second / 2, wait).await.is_err());
        say(&mut reframe, b"c", &mut out);
        assert_eq!(out, b"2\r\nbb\r\n");
        let wait = poll_fn(|cx| reframe.poll_release(cx, &mut out));
        assert!(tokio::time::timeout(second * 3 / 4, wait).await.is_err());
    }

    #[test]
    fn an_error_and_a_bad_frame_end_the_body() {
        let short = Doubles {
            short: true,
            ..Doubles::default()
        };
        let cases = [
            (
                Doubles::default(),
                &b"3\r\nab!\r\n0\r\n\r\n"[..],
                Error::Coding,
            ),
            (short, b"1\r\na\r\n0\r\n\r\n", Error::Coding),
            (Doubles::default(), b"1\r\nab\r\n", Error::Chunk),
            (
                Doubles::default(),
                b"1\r\na\r\n0\r\nX\r\n\r\n",
                Error::Trailer,
            ),
        ];
        for (transform, text, expected) in cases {
            let ended = run((transform, Framing::Chunked, true), &[text]);
            assert_eq!(ended.map(|_| ()), Err(expected));
        }
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same(
            body in prop::collection::vec(b'a'..=b'z', 0..60_000),
            cuts in prop::collection::vec(1usize..9000, 1..20),
        ) {
            let (mut pieces, mut rest) = (Vec::new(), body.as_slice());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break }
                let (piece, left) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece);
                rest = left;
            }
            let framing = Framing::Length(body.len() as u64);
            let (sent, _) = run((Doubles::default(), framing, true), &pieces).unwrap();
            let doubled: Vec<u8> = body.iter().flat_map(|byte| [*byte, *byte]).collect();
            prop_assert_eq!(data(&sent).0, doubled);
        }
    }
}
