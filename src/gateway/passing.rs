//! The body of an answer on its way from the model provider to the caller.
//!
//! Each piece leaves as it comes, without the operator's credential. What is counted beside it is settled once, however it ends: at its
//! end, where the provider or the caller goes away, or where it is silent for too long. Then a
//! stream of events ends with one that says so; anything else is cut, so that it cannot pass for
//! the whole. Called by the forwarding.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use super::alone::Alone;
use super::mask::Masked;
use super::usage::UsageReader;
use crate::audit::{Decision, Record, Traffic};
use crate::callout::{Error, Reading};
use crate::payment::Reservation;

/// What a stream of events ends with where the provider fell silent. The empty lines end an event
/// that was cut.
const SILENT: &[u8] = b"\n\nevent: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\
    \"timeout_error\",\"message\":\"the model provider fell silent\"}}\n\n";

/// What is settled when an answer has ended.
#[derive(Debug)]
pub(super) enum Account {
    /// It costs nothing, as far as it is reserved for.
    Free(Reservation),
    /// It costs what it says.
    Counted {
        /// What was reserved.
        reservation: Reservation,
        /// Who counts.
        reader: Box<UsageReader>,
        /// The model that was asked for.
        model: String,
        /// The place among calls of which the account has one at a time.
        _alone: Option<Alone>,
    },
}

impl Account {
    fn settle(self) {
        match self {
            Self::Free(reservation) => reservation.release(),
            Self::Counted {
                reservation,
                reader,
                model,
                _alone,
            } => {
                let counted = reader.finish();
                // Where nothing was told, dropping it counts the whole.
                if counted.told {
                    let model = counted.model.unwrap_or(model);
                    reservation.settle(&model, &counted.tokens);
                }
            }
        }
    }
}

/// The body.
#[derive(Debug)]
pub(super) struct Passing {
    reading: Reading,
    body: Masked,
    is_events: bool,
    /// How much has passed.
    passed: u64,
    /// How long a silence may last, and when the present one ends.
    silence: Option<(Duration, Pin<Box<Sleep>>)>,
    traffic: Arc<Traffic>,
    /// Nothing after the end.
    open: Option<(Account, Record)>,
}

impl Passing {
    pub(super) fn new(
        (reading, body): (Reading, Masked),
        is_events: bool,
        silence: Option<Duration>,
        traffic: Arc<Traffic>,
        (account, record): (Account, Record),
    ) -> Self {
        Self {
            reading,
            body,
            is_events,
            passed: 0,
            silence: silence.map(|limit| (limit, Box::pin(sleep(limit)))),
            traffic,
            open: Some((account, record)),
        }
    }

    /// Returns how many bytes leave, where that is known before they came.
    fn length(&self) -> Option<u64> {
        let came = self.reading.length();
        came.filter(|came| *came == 0 || self.body.keeps_length())
    }

    fn end(&mut self, decision: Decision, reason: &'static str) {
        if let Some((account, mut record)) = self.open.take() {
            record.decision(decision, reason);
            self.body.tell();
            account.settle();
        }
    }

    fn note(&mut self, piece: &[u8]) {
        let bytes = u64::try_from(piece.len()).unwrap_or(u64::MAX);
        self.passed = self.passed.saturating_add(bytes);
        self.traffic.down.fetch_add(bytes, Ordering::Relaxed);
        if let Some((Account::Counted { reader, .. }, _)) = &mut self.open {
            reader.read(piece);
        }
    }

    /// Notes what leaves, and makes a frame of it.
    fn frame(&mut self, piece: Bytes) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.note(&piece);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    /// Ends where the provider, or its coding, broke off.
    fn fail(&mut self, error: Error) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.end(Decision::Failed, "provider_cut");
        Poll::Ready(Some(Err(error)))
    }

    /// Moves on what has come: to a frame, to the end, or to where more has to come.
    fn poll_came(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        loop {
            match self.body.next() {
                Ok(Some(piece)) => return self.frame(piece),
                Ok(None) => {}
                Err(error) => return self.fail(error),
            }
            match ready!(self.reading.poll_piece(cx)) {
                Ok(Some(piece)) => {
                    self.body.take(piece);
                    if let Some((limit, alarm)) = &mut self.silence {
                        alarm.as_mut().reset(Instant::now() + *limit);
                    }
                }
                Ok(None) => match self.body.finish() {
                    Ok(last) if last.is_empty() => {
                        self.end(Decision::Allowed, "ok");
                        return Poll::Ready(None);
                    }
                    Ok(last) => return self.frame(last),
                    Err(error) => return self.fail(error),
                },
                Err(error) => return self.fail(error),
            }
        }
    }
}

impl http_body::Body for Passing {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.open.is_none() {
            return Poll::Ready(None);
        }
        if let Poll::Ready(moved) = self.poll_came(cx) {
            return Poll::Ready(moved);
        }
        if let Poll::Ready(held) = self.body.poll_release(cx) {
            return self.frame(held);
        }
        let Some((_, alarm)) = &mut self.silence else {
            return Poll::Pending;
        };
        if alarm.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        let held = self.body.release();
        self.note(&held);
        self.end(Decision::Failed, "provider_silent");
        let told = if self.is_events && self.length().is_none() {
            Ok(Frame::data([&held, SILENT].concat().into()))
        } else {
            Err(Error::Late)
        };
        Poll::Ready(Some(told))
    }

    fn size_hint(&self) -> SizeHint {
        let left = self.length().map(|all| all.saturating_sub(self.passed));
        left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        // The record says so by itself: nobody decided on its end.
        if let Some((account, _record)) = self.open.take() {
            self.body.tell();
            account.settle();
        }
    }
}
