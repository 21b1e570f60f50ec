//! The deadlines of an exchange that an operator may set: for its answer, and for silence.
//!
//! Neither is there by default: a model may think for minutes, and an event stream may be silent.
//! Both start anew when a byte of a body has moved, either way; it may take up to twice the limit to
//! see that none has. Called by both doors.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use super::context::Meter;

/// Says that no byte of an exchange moved for as long as that may be.
#[derive(Debug)]
pub(super) struct Silent;

/// Watches an exchange for silence.
pub(super) struct Silence<M> {
    limit: Duration,
    meter: M,
    moved: u64,
    timer: Pin<Box<Sleep>>,
}

impl<M: AsRef<Meter>> Silence<M> {
    /// Starts to watch, where there is a limit.
    pub(super) fn new(limit: Option<Duration>, meter: M) -> Option<Self> {
        let limit = limit?;
        Some(Self {
            limit,
            moved: meter.as_ref().total(),
            meter,
            timer: Box::pin(sleep_until(Instant::now() + limit)),
        })
    }

    /// Tells whether nothing has moved for too long.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = self.meter.as_ref().total();
            if now == self.moved {
                return true;
            }
            self.moved = now;
            self.timer.as_mut().reset(Instant::now() + self.limit);
        }
        false
    }
}

/// Waits for something that an exchange is to come to, unless it is silent for too long.
pub(super) async fn unless_silent<T>(
    limit: Option<Duration>,
    meter: &Meter,
    end: impl Future<Output = T>,
) -> Result<T, Silent> {
    let Some(mut silence) = Silence::new(limit, meter) else {
        return Ok(end.await);
    };
    let mut end = Box::pin(end);
    poll_fn(|cx| match end.as_mut().poll(cx) {
        Poll::Ready(ended) => Poll::Ready(Ok(ended)),
        Poll::Pending if silence.poll(cx) => Poll::Ready(Err(Silent)),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// Returns the shorter of two limits.
pub(super) fn shorter(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    one.into_iter().chain(other).min()
}
