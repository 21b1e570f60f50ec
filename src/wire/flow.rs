//! One direction of an exchange: a body on its way from one connection to another.
//!
//! A flow is polled from the task of its exchange together with the other direction, so that
//! neither needs a lock or a task of its own. It reads only when all it has was written: the
//! slower side sets the pace, and memory stays at one buffer a direction.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::Buf;

use super::body::{Body, Progress};
use super::h1::Error;
use super::io::Connection;
use super::outbox::Outbox;

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
#[derive(Debug)]
pub struct Flow {
    body: Body,
    out: Outbox,
}

impl Flow {
    /// Starts a flow with the head that goes before the body.
    pub fn new(head: Vec<u8>, body: Body) -> Self {
        Self {
            body,
            out: Outbox::new(head),
        }
    }

    /// Adds what has already arrived of the body to what is written first.
    ///
    /// # Errors
    /// [`FlowError::Malformed`].
    pub fn prime(&mut self, from: &mut Connection) -> Result<(), FlowError> {
        if !self.body.is_done() && !from.input.is_empty() {
            self.body
                .step(&mut from.input, self.out.bytes())
                .map_err(FlowError::Malformed)?;
        }
        Ok(())
    }

    /// Returns the body, for its accounting.
    pub fn body(&self) -> &Body {
        &self.body
    }

    /// Returns what waits to be written, for its accounting.
    pub fn outbox(&self) -> &Outbox {
        &self.out
    }

    /// Tells whether all of the body was read and written.
    pub fn is_done(&self) -> bool {
        self.body.is_done() && self.out.is_clear()
    }

    /// Tells whether no byte was handed to the receiver: it can start again elsewhere as it is.
    pub fn is_unsent(&self) -> bool {
        self.out.is_unsent()
    }

    /// Starts again from the first byte, towards another receiver. Only for a flow without body.
    pub fn rewind(&mut self, head: Vec<u8>) {
        self.out.rewind(head);
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
        let gone = FlowError::ReceiverGone;
        loop {
            ready!(self.out.poll_drain(cx, to)).map_err(gone)?;
            let verbatim = self.body.verbatim(from.input.len());
            if verbatim > 0 {
                let bytes = from.input.get(..verbatim).unwrap_or_default();
                let count = ready!(self.out.poll_write(cx, to, bytes)).map_err(gone)?;
                from.input.advance(count);
                self.body.sent_verbatim(count);
                continue;
            }
            match self
                .body
                .step(&mut from.input, self.out.bytes())
                .map_err(FlowError::Malformed)?
            {
                _ if !self.out.bytes().is_empty() => continue,
                Progress::Done => {
                    ready!(self.out.poll_flush(cx, to)).map_err(gone)?;
                    return Poll::Ready(Ok(()));
                }
                Progress::Full | Progress::Hungry => {}
            }
            ready!(self.out.poll_flush(cx, to)).map_err(gone)?;
            match ready!(from.poll_fill(cx)) {
                Ok(0) => self.body.close().map_err(|_rule| FlowError::SenderGone)?,
                Ok(_) => {}
                Err(_reset) => return Poll::Ready(Err(FlowError::SenderGone)),
            }
        }
    }
}
