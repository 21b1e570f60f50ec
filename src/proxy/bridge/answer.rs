//! The body of an answer on its way to a workload that speaks HTTP/2.
//!
//! Frames leave as they come. When the body ends before its time the stream is reset, with the
//! upstream's own reason where it gave one, so that a part never passes for the whole. Called by
//! hyper, for the stream that the bridge answered.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};

use super::changed::Changed;
use super::crossing::{Crossing, Piece};
use super::feed::Feed;
use super::gather::Gather;
use super::ledger::Ledger;
use super::pace::{Pace, Way};
use super::reset_error;
use super::upload::cleaned;
use crate::audit::Decision;
use crate::proxy::context::Meter;
use crate::proxy::deadline::Silence;
use crate::upstream::{BodyError, Taken};

/// Where the body of an answer comes from.
pub(super) enum Source {
    /// From an HTTP/1.1 connection to which the request still goes.
    Fed(Feed),
    /// From an HTTP/1.1 connection.
    Http1(Box<Crossing>),
    /// From a shared connection, with the place taken there.
    Http2(Gather, Taken),
    /// From ourselves.
    Own(Bytes),
}

impl Source {
    /// Gets the next frame of the body as it comes. Why it ended early is told in the ledger.
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        ledger: &mut Ledger,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Own(text) if text.is_empty() => Poll::Ready(None),
            Self::Own(text) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(text))))),
            Self::Http1(crossing) => {
                let piece = ready!(crossing.poll_piece(cx));
                Poll::Ready(piece.map(|piece| told(piece, ledger)))
            }
            Self::Fed(feed) => {
                let piece = ready!(feed.poll_piece(cx));
                Poll::Ready(piece.map(|piece| told(piece, ledger)))
            }
            Self::Http2(body, _place) => {
                let frame = match ready!(body.poll_frame(cx)) {
                    Some(Ok(frame)) => frame,
                    None => return Poll::Ready(None),
                    Some(Err(error)) => {
                        return Poll::Ready(Some(Err(cut(error.as_ref(), ledger))));
                    }
                };
                match frame.into_trailers() {
                    Err(data) => Poll::Ready(Some(Ok(data))),
                    Ok(trailers) => Poll::Ready(Some(cleaned(&trailers).map_err(Into::into))),
                }
            }
        }
    }
}

/// Notes that the upstream ended the body early; returns the error that resets the stream.
fn cut(error: &(dyn std::error::Error + 'static), ledger: &mut Ledger) -> BodyError {
    ledger.settle(Decision::Failed, "upstream_cut");
    let mut source = Some(error);
    while let Some(cause) = source {
        if let Some(cause) = cause.downcast_ref::<h2::Error>() {
            let given = cause.reason().filter(|_| cause.is_reset());
            return reset_error(given.unwrap_or(h2::Reason::INTERNAL_ERROR));
        }
        source = cause.source();
    }
    reset_error(h2::Reason::INTERNAL_ERROR)
}

/// The body of an answer, with what must be told when it ends.
pub(super) struct AnswerBody {
    source: Source,
    /// What the body goes through.
    change: Option<Changed>,
    meter: Arc<Meter>,
    pace: Arc<Pace>,
    silence: Option<Silence<Arc<Meter>>>,
    ledger: Ledger,
}

impl AnswerBody {
    pub(super) fn new(
        source: Source,
        change: Option<Changed>,
        idle_timeout: Option<Duration>,
        mut ledger: Ledger,
    ) -> Self {
        let (meter, pace) = (ledger.meter(), ledger.pace());
        ledger.answer();
        let mut body = Self {
            source,
            change,
            silence: Silence::new(idle_timeout, Arc::clone(&meter)),
            meter,
            pace,
            ledger,
        };
        if body.is_over() {
            body.ledger.settle(Decision::Allowed, "ok");
        }
        body
    }

    /// Tells whether nothing more comes.
    fn is_over(&self) -> bool {
        match &self.change {
            None => is_over(&self.source),
            Some(change) => change.is_over(),
        }
    }

    /// Gets the next frame of the body as it leaves.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            match &mut self.change {
                None => return self.source.poll_frame(cx, &mut self.ledger),
                Some(change) => match change.next() {
                    Some(frame) => return Poll::Ready(Some(frame.map_err(Into::into))),
                    None if !change.is_hungry() => return Poll::Ready(None),
                    None => {}
                },
            }
            let frame = match (
                self.source.poll_frame(cx, &mut self.ledger),
                &mut self.change,
            ) {
                (Poll::Ready(frame), _) => frame.transpose(),
                (Poll::Pending, Some(change)) => {
                    return change.poll_release(cx).map(|frame| Some(Ok(frame)));
                }
                (Poll::Pending, None) => return Poll::Pending,
            };
            match (frame, &mut self.change) {
                (Ok(frame), Some(change)) => change.put(frame),
                (Ok(frame), None) => return Poll::Ready(frame.map(Ok)),
                (Err(error), _) => return Poll::Ready(Some(Err(error))),
            }
        }
    }
}

/// Notes how an exchange over HTTP/1.1 ended early; returns the error that resets the stream.
fn told(piece: Piece, ledger: &mut Ledger) -> Result<Frame<Bytes>, BodyError> {
    piece.map_err(|(decision, reason)| {
        ledger.settle(decision, reason);
        reset_error(h2::Reason::INTERNAL_ERROR)
    })
}

/// Tells whether nothing more comes from a source.
pub(super) fn is_over(source: &Source) -> bool {
    match source {
        Source::Fed(feed) => feed.is_over(),
        Source::Http1(crossing) => crossing.is_over(),
        Source::Http2(body, _place) => body.is_end_stream(),
        Source::Own(text) => text.is_empty(),
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        this.pace.asked(Way::Down);
        let Poll::Ready(frame) = this.poll_next(cx) else {
            if this
                .silence
                .as_mut()
                .is_some_and(|silence| silence.poll(cx))
            {
                this.ledger.settle(Decision::Aborted, "exchange_idle");
                return Poll::Ready(Some(Err(reset_error(h2::Reason::CANCEL))));
            }
            return Poll::Pending;
        };
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    this.meter.add_down(data.len());
                    this.pace.gave(Way::Down);
                }
                // Nobody asks for more after trailers, or after data that was the last.
                if frame.is_trailers() || this.is_over() {
                    this.ledger.settle(Decision::Allowed, "ok");
                }
            }
            Some(Err(_why)) => this.ledger.settle(Decision::Failed, "bad_answer_body"),
            None => this.ledger.settle(Decision::Allowed, "ok"),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.is_over()
    }
}
