//! The frames of a body as they come, small ones put together, and a cut told from an end.
//!
//! A frame costs its receiver the same whatever its length, so pieces that are there at once become
//! one; nothing is ever waited for. A reset that says "no error" before the end of a message is a
//! cut here, where the library takes it for an end. Called by the answer and by the upload.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use hyper::body::Incoming;

use super::reset_error;
use crate::upstream::BodyError;

/// How long a piece is that is worth a frame of its own, in bytes.
pub(super) const PIECE_BYTES: usize = 1024;
/// How much is put together at most, in bytes: what a frame may hold by default (RFC 9113 §4.2).
pub(super) const GATHER_BYTES: usize = 16 * 1024;

type Polled = Option<Result<Frame<Bytes>, BodyError>>;

/// A body that is read in pieces worth their frames.
pub(super) struct Gather<B = Incoming> {
    body: B,
    /// What came behind the pieces that were put together.
    next: Option<Polled>,
}

impl<B> Gather<B>
where
    B: Body<Data = Bytes, Error: Into<BodyError>> + Unpin,
{
    pub(super) fn new(body: B) -> Self {
        Self { body, next: None }
    }

    /// Tells whether nothing more comes, and the message ended in good order.
    pub(super) fn is_end_stream(&self) -> bool {
        match &self.next {
            None => self.body.is_end_stream(),
            Some(next) => next.is_none(),
        }
    }

    /// Returns the next frame; nothing at the end, and an error where the message was cut.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Polled> {
        let next = match self.next.take() {
            Some(next) => next,
            None => ready!(self.poll_next(cx)),
        };
        let Some(Ok(frame)) = next else {
            return Poll::Ready(next);
        };
        let first = match frame.into_data() {
            Ok(first) if first.len() < PIECE_BYTES => first,
            Ok(first) => return Poll::Ready(Some(Ok(Frame::data(first)))),
            Err(frame) => return Poll::Ready(Some(Ok(frame))),
        };
        let mut all = BytesMut::new();
        while first.len().max(all.len()) + PIECE_BYTES <= GATHER_BYTES
            && !self.body.is_end_stream()
            && let Poll::Ready(next) = self.poll_next(cx)
        {
            match next {
                Some(Ok(frame)) if is_small(&frame) => {
                    if all.is_empty() {
                        all.extend_from_slice(&first);
                    }
                    all.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
                }
                next => {
                    self.next = Some(next);
                    break;
                }
            }
        }
        let data = if all.is_empty() { first } else { all.freeze() };
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Polled> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        Poll::Ready(match frame {
            Some(frame) => Some(frame.map_err(Into::into)),
            None if self.body.is_end_stream() => None,
            None => Some(Err(reset_error(h2::Reason::CANCEL))),
        })
    }
}

fn is_small(frame: &Frame<Bytes>) -> bool {
    frame
        .data_ref()
        .is_some_and(|data| data.len() < PIECE_BYTES)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::task::Waker;

    use super::*;

    /// Frames that come, `None` where nothing is there yet; a body that is cut has no end.
    struct Script {
        frames: VecDeque<Option<Frame<Bytes>>>,
        cut: bool,
    }

    impl Body for Script {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Polled> {
            match self.frames.pop_front() {
                Some(Some(frame)) => Poll::Ready(Some(Ok(frame))),
                Some(None) => Poll::Pending,
                None => Poll::Ready(None),
            }
        }

        fn is_end_stream(&self) -> bool {
            self.frames.is_empty() && !self.cut
        }
    }

    fn data(length: usize) -> Frame<Bytes> {
        Frame::data(Bytes::from(vec![b'x'; length]))
    }

    /// Reads to the end and says what came: the lengths of pieces, and trailers as 1,000,000. Also
    /// whether the end was one.
    fn read(frames: Vec<Option<Frame<Bytes>>>, cut: bool) -> (Vec<usize>, bool) {
        let mut gather = Gather::new(Script {
            frames: frames.into(),
            cut,
        });
        let (mut seen, mut cx) = (Vec::new(), Context::from_waker(Waker::noop()));
        loop {
            match gather.poll_frame(&mut cx) {
                Poll::Pending => {}
                Poll::Ready(None) => return (seen, gather.is_end_stream()),
                Poll::Ready(Some(Err(_cut))) => return (seen, false),
                Poll::Ready(Some(Ok(frame))) => {
                    seen.push(frame.into_data().map_or(1_000_000, |data| data.len()));
                }
            }
        }
    }

    #[test]
    fn only_small_pieces_that_are_there_are_put_together() {
        let pieces = |lengths: &[usize]| lengths.iter().map(|n| Some(data(*n))).collect();
        let trailers = Some(Frame::trailers(http::HeaderMap::new()));
        let cases: [(Vec<_>, Vec<_>); 6] = [
            (pieces(&[1, 2, 3]), vec![6]),
            (vec![Some(data(1)), None, Some(data(2))], vec![1, 2]),
            (pieces(&[1, 1024, 1]), vec![1, 1024, 1]),
            (pieces(&[5000, 20_000]), vec![5000, 20_000]),
            (
                vec![Some(data(1)), Some(data(1)), trailers],
                vec![2, 1_000_000],
            ),
            (vec![], vec![]),
        ];
        for (frames, expected) in cases {
            assert_eq!(read(frames, false), (expected, true));
        }
        let (seen, ended) = read(pieces(&vec![1; 40_000]), false);
        assert!(ended && seen.len() == 3, "{seen:?}");
        assert!(seen.iter().all(|length| *length <= GATHER_BYTES));
        assert_eq!(seen.iter().sum::<usize>(), 40_000);
    }

    #[test]
    fn an_end_that_is_none_is_a_cut() {
        let pieces = vec![Some(data(1)), Some(data(2))];
        assert_eq!(read(pieces, true), (vec![3], false));
        assert_eq!(read(vec![], true), (vec![], false));
    }
}
