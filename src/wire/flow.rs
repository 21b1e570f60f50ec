//! One direction of an exchange: a body on its way from one connection to another.
//!
//! A flow is polled from the task of its exchange together with the other direction, so that
//! neither needs a lock or a task of its own. It reads only when all it has was written: the
//! slower side sets the pace, and memory stays at one buffer a direction.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use zeroize::optimization_barrier;

use super::body::{Body, Progress};
use super::h1::Error;
use super::io::Connection;

/// Says which side ended a flow before its time.
#[derive(Debug, thiserror::Error)]
pub enum FlowError {
    /// The sender closed, or its connection failed.
    #[error("the sender closed before the end of the message")]
    SenderGone,
    /// The receiver's connection failed.
    #[error("the receiver closed before the end of the message")]
    ReceiverGone(#[source] io::Error),
    /// The body breaks the rules of its framing.
    #[error("the body is malformed")]
    Malformed(#[source] Error),
}

/// A body on its way, and the bytes that must be written before more is read.
pub struct Flow {
    body: Body,
    out: Vec<u8>,
    written: usize,
    /// Written, but perhaps not yet flushed.
    dirty: bool,
    /// Whether any byte was handed to the receiver.
    started: bool,
    /// How many bytes the receiver has taken.
    taken: u64,
    /// The receiver did not take what was ready for it.
    blocked: bool,
}

impl std::fmt::Debug for Flow {
    /// Leaves out the bytes: the head among them has real values.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flow")
            .field("body", &self.body)
            .finish_non_exhaustive()
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.wipe();
    }
}

impl Flow {
    /// Starts a flow with the head that goes before the body.
    pub fn new(head: Vec<u8>, body: Body) -> Self {
        Self {
            body,
            out: head,
            written: 0,
            dirty: false,
            started: false,
            taken: 0,
            blocked: false,
        }
    }

    /// Adds what has already arrived of the body to what is written first.
    ///
    /// # Errors
    /// [`FlowError::Malformed`].
    pub fn prime(&mut self, from: &mut Connection) -> Result<(), FlowError> {
        if !self.body.is_done() && !from.input.is_empty() {
            self.body
                .step(&mut from.input, &mut self.out)
                .map_err(FlowError::Malformed)?;
        }
        Ok(())
    }

    /// Returns the body, for its accounting.
    pub fn body(&self) -> &Body {
        &self.body
    }

    /// Tells whether all of the body was read and written.
    pub fn is_done(&self) -> bool {
        self.body.is_done() && self.written == self.out.len() && !self.dirty
    }

    /// Tells whether the receiver does not take what is ready for it.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Returns how many bytes the receiver has taken.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Tells whether no byte was handed to the receiver: it can start again elsewhere as it is.
    pub fn is_unsent(&self) -> bool {
        !self.started
    }

    /// Overwrites the head, which may have real values, and all that stood there before. Whole at
    /// once: byte by byte, as `zeroize` does it, costs as much as all else that is done here.
    fn wipe(&mut self) {
        self.out.clear();
        self.out.resize(self.out.capacity(), 0);
        optimization_barrier(&self.out);
    }

    /// Starts again from the first byte, towards another receiver. Only for a flow without body.
    pub fn rewind(&mut self, head: Vec<u8>) {
        self.wipe();
        self.out = head;
        self.written = 0;
        self.dirty = false;
        self.started = false;
    }

    /// Moves bytes until one side is not ready. Ready when the body is through and flushed.
    ///
    /// # Errors
    /// See [`FlowError`].
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Connection,
        to: &mut Connection,
    ) -> Poll<Result<(), FlowError>> {
        loop {
            ready!(self.poll_drain(cx, to))?;
            let verbatim = self.body.verbatim(from.input.len());
            if verbatim > 0 {
                let bytes = from.input.get(..verbatim).unwrap_or_default();
                let count = ready!(self.poll_write(cx, to, bytes))?;
                from.input.advance(count);
                self.body.sent_verbatim(count);
                continue;
            }
            match self
                .body
                .step(&mut from.input, &mut self.out)
                .map_err(FlowError::Malformed)?
            {
                _ if !self.out.is_empty() => continue,
                Progress::Done => {
                    ready!(self.poll_flush(cx, to))?;
                    return Poll::Ready(Ok(()));
                }
                Progress::Full | Progress::Hungry => {}
            }
            ready!(self.poll_flush(cx, to))?;
            match ready!(from.poll_fill(cx)) {
                Ok(0) => self.body.close().map_err(|_rule| FlowError::SenderGone)?,
                Ok(_) => {}
                Err(_reset) => return Poll::Ready(Err(FlowError::SenderGone)),
            }
        }
    }

    fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut Connection,
    ) -> Poll<Result<(), FlowError>> {
        let out = std::mem::take(&mut self.out);
        let drained = loop {
            let Some(rest @ [_, ..]) = out.get(self.written..) else {
                break Poll::Ready(Ok(()));
            };
            match self.poll_write(cx, to, rest) {
                Poll::Ready(Ok(count)) => self.written += count,
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break Poll::Pending,
            }
        };
        self.out = out;
        ready!(drained)?;
        self.out.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut Connection,
        bytes: &[u8],
    ) -> Poll<Result<usize, FlowError>> {
        let written = to.poll_write(cx, bytes);
        self.blocked = written.is_pending();
        // A write that fails may have sent a part: only one that waits has sent nothing.
        self.started |= !self.blocked;
        let count = ready!(written).map_err(FlowError::ReceiverGone)?;
        self.dirty = true;
        self.taken += count as u64;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut Connection,
    ) -> Poll<Result<(), FlowError>> {
        if self.dirty {
            let flushed = to.poll_flush(cx);
            self.blocked = flushed.is_pending();
            ready!(flushed).map_err(FlowError::ReceiverGone)?;
            self.dirty = false;
        }
        Poll::Ready(Ok(()))
    }
}
