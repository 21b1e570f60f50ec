//! A body that changes on its way, in frames of HTTP/2.
//!
//! Frames go through a transform and come out as other frames; trailers wait until what was held
//! back has left. Called by the bodies of answers and of requests.

use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

use crate::secret::Secret;
use crate::wire::{Error, Patience, Progress, Transform, trailers_from_map, trailers_to_map};

/// A transform, and what it has not taken yet.
pub(super) struct Changed {
    transform: Box<dyn Transform>,
    input: Bytes,
    /// There is more to ask for.
    more: bool,
    end: End,
    finished: bool,
    patience: Patience,
    /// Real values may come out: their memory is overwritten.
    has_values: bool,
}

/// How far a body is.
#[derive(Debug, Default)]
enum End {
    /// More may come.
    #[default]
    Open,
    /// Nothing follows.
    Plain,
    /// These follow.
    Trailers(HeaderMap),
}

impl Changed {
    pub(super) fn new(transform: Box<dyn Transform>) -> Self {
        Self {
            transform,
            input: Bytes::new(),
            more: false,
            end: End::Open,
            finished: false,
            patience: Patience::default(),
            has_values: false,
        }
    }

    /// Prepares for the body of a request, into which real values are put.
    pub(super) fn with_values(transform: Box<dyn Transform>) -> Self {
        Self {
            has_values: true,
            ..Self::new(transform)
        }
    }

    /// Tells whether a frame of the body is needed.
    pub(super) fn is_hungry(&self) -> bool {
        !self.more && self.input.is_empty() && matches!(self.end, End::Open)
    }

    /// Tells whether nothing more comes out.
    pub(super) fn is_over(&self) -> bool {
        self.finished && matches!(self.end, End::Plain)
    }

    /// Takes a frame of the body; nothing at its end.
    pub(super) fn put(&mut self, frame: Option<Frame<Bytes>>) {
        self.patience.renew();
        match frame.map(Frame::into_data) {
            Some(Ok(data)) => self.input = data,
            Some(Err(other)) => {
                let trailers = other.into_trailers();
                self.end = trailers.map_or(End::Plain, End::Trailers);
            }
            None => self.end = End::Plain,
        }
    }

    /// Waits for the time when what is held back must leave, while the body is waited for.
    pub(super) fn poll_release(&mut self, cx: &mut Context<'_>) -> Poll<Frame<Bytes>> {
        if !self.transform.holds() || self.patience.poll(cx).is_pending() {
            return Poll::Pending;
        }
        let mut out = Vec::new();
        self.transform.release(&mut out);
        Poll::Ready(Frame::data(out.into()))
    }

    /// Returns the next frame, if there is one without more of the body.
    pub(super) fn next(&mut self) -> Option<Result<Frame<Bytes>, Error>> {
        loop {
            let mut out = Vec::new();
            if self.more || !self.input.is_empty() {
                let mut rest: &[u8] = &self.input;
                let pushed = self.transform.push(&mut rest, &mut out);
                let taken = self.input.len() - rest.len();
                drop(self.input.split_to(taken));
                match pushed {
                    Ok(progress) => self.more = progress == Progress::Full,
                    Err(error) => {
                        drop(self.share(out));
                        return Some(Err(error));
                    }
                }
            } else if matches!(self.end, End::Open) {
                return None;
            } else if !self.finished {
                self.finished = true;
                if let Err(error) = self.transform.finish(&mut out) {
                    drop(self.share(out));
                    return Some(Err(error));
                }
            } else {
                let End::Trailers(trailers) = std::mem::replace(&mut self.end, End::Plain) else {
                    return None;
                };
                return Some(self.trailers(&trailers));
            }
            if !out.is_empty() {
                return Some(Ok(Frame::data(self.share(out))));
            }
        }
    }

    /// Gives bytes an owner that overwrites them at the end, where they may be values.
    fn share(&self, out: Vec<u8>) -> Bytes {
        if self.has_values {
            Secret::new(out).expose_shared()
        } else {
            Bytes::from(out)
        }
    }

    fn trailers(&mut self, trailers: &HeaderMap) -> Result<Frame<Bytes>, Error> {
        let mut fields = trailers_from_map(trailers)?;
        self.transform.trailers(&mut fields);
        Ok(Frame::trailers(trailers_to_map(&fields)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::TAKEN;
    use crate::wire::Fields;

    /// Makes text upper case, gives two bytes at a time, and holds one back.
    #[derive(Default)]
    struct Upper {
        held: Vec<u8>,
        fails: bool,
    }

    impl Transform for Upper {
        fn push(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<Progress, Error> {
            let (piece, rest) = input.split_at(input.len().min(2));
            if piece.contains(&b'!') {
                return Err(Error::Coding);
            }
            out.append(&mut self.held);
            self.held.extend(piece.to_ascii_uppercase());
            if let Some((_last, before)) = self.held.split_last() {
                out.extend_from_slice(before);
                self.held.drain(..self.held.len() - 1);
            }
            *input = rest;
            Ok(if rest.is_empty() {
                Progress::Hungry
            } else {
                Progress::Full
            })
        }

        fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
            out.append(&mut self.held);
            if self.fails {
                return Err(Error::Coding);
            }
            Ok(())
        }

        fn trailers(&mut self, fields: &mut Fields) {
            fields.retain(|name, _| name != b"x-gone");
        }

        fn holds(&self) -> bool {
            !self.held.is_empty()
        }

        fn release(&mut self, out: &mut Vec<u8>) {
            out.append(&mut self.held);
        }
    }

    /// Feeds frames and returns the data, the trailers, and whether an error came.
    fn run(transform: Upper, frames: Vec<Frame<Bytes>>) -> (Vec<u8>, Option<HeaderMap>, bool) {
        let mut changed = Changed::new(Box::new(transform));
        let (mut data, mut trailers) = (Vec::new(), None);
        let mut frames = frames.into_iter();
        loop {
            match changed.next().map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(piece))) => {
                    assert!(trailers.is_none(), "data behind trailers");
                    data.extend_from_slice(&piece);
                }
                Some(Ok(Err(frame))) => trailers = frame.into_trailers().ok(),
                Some(Err(_)) => return (data, trailers, true),
                None if changed.is_hungry() => changed.put(frames.next()),
                None => {
                    assert!(changed.next().is_none());
                    return (data, trailers, false);
                }
            }
        }
    }

    #[test]
    fn frames_change_and_trailers_wait_for_what_was_held_back() {
        let data = |text: &'static [u8]| Frame::data(Bytes::from_static(text));
        let mut fields = HeaderMap::new();
        fields.insert("x-sum", "1".parse().unwrap());
        fields.insert("x-gone", "2".parse().unwrap());
        let (body, trailers, failed) = run(
            Upper::default(),
            vec![
                data(b"hel"),
                data(b""),
                data(b"lo"),
                Frame::trailers(fields),
            ],
        );
        assert_eq!((body.as_slice(), failed), (&b"HELLO"[..], false));
        let trailers = trailers.unwrap();
        assert_eq!(trailers.len(), 1);
        assert_eq!(trailers["x-sum"], "1");
        let (body, trailers, failed) = run(Upper::default(), vec![data(b"hello")]);
        assert_eq!((body.as_slice(), failed), (&b"HELLO"[..], false));
        assert!(trailers.is_none());
        let (body, trailers, failed) = run(Upper::default(), Vec::new());
        assert!(body.is_empty() && trailers.is_none() && !failed);
    }

    #[test]
    fn an_error_is_an_error_at_the_end_as_well() {
        let data = |text: &'static [u8]| Frame::data(Bytes::from_static(text));
        let (_, _, failed) = run(Upper::default(), vec![data(b"a!"), data(b"b")]);
        assert!(failed);
        let fails = Upper {
            fails: true,
            ..Upper::default()
        };
        let (_, trailers, failed) = run(fails, vec![data(b"a"), Frame::trailers(HeaderMap::new())]);
        assert!(failed && trailers.is_none());
    }

    #[test]
    fn what_came_out_before_an_error_is_overwritten_where_it_may_be_a_value() {
        /// Gives some bytes, and fails.
        struct Fails;

        impl Transform for Fails {
            fn push(&mut self, _input: &mut &[u8], out: &mut Vec<u8>) -> Result<Progress, Error> {
                out.extend_from_slice(b"value");
                Err(Error::TooMuch)
            }

            fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
                out.extend_from_slice(b"rest");
                Err(Error::TooMuch)
            }

            fn trailers(&mut self, _fields: &mut Fields) {}

            fn holds(&self) -> bool {
                false
            }

            fn release(&mut self, _out: &mut Vec<u8>) {}
        }

        let piece = || Some(Frame::data(Bytes::from_static(b"a")));
        for (frame, has_values, expected) in [
            (piece(), true, 5),
            (None, true, 4),
            (piece(), false, 0),
            (None, false, 0),
        ] {
            let mut changed = Changed::new(Box::new(Fails));
            changed.has_values = has_values;
            changed.put(frame);
            let before = TAKEN.get();
            assert!(matches!(changed.next(), Some(Err(Error::TooMuch))));
            assert_eq!(TAKEN.get() - before, expected);
        }
    }
}
