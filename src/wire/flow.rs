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
use super::reframe::{Reframe, Transform};

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
    out: Outbox,
    reframe: Option<Box<Reframe>>,
}

impl std::fmt::Debug for Flow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flow")
            .field("body", &self.body)
            .field("changes", &self.reframe.is_some())
            .finish_non_exhaustive()
    }
}

impl Flow {
    /// Starts a flow with the head that goes before the body.
    pub fn new(head: Vec<u8>, body: Body) -> Self {
        Self {
            body,
            out: Outbox::new(head),
            reframe: None,
        }
    }

    /// Starts a flow whose body changes on its way. It leaves in chunks, or with no framing at all.
    pub fn transformed(
        head: Vec<u8>,
        body: Body,
        transform: Box<dyn Transform>,
        chunked: bool,
    ) -> Self {
        Self {
            body,
            out: Outbox::new(head),
            reframe: Some(Box::new(Reframe::new(transform, chunked))),
        }
    }

    /// Lets the chunks of a body that changes on its way keep their sizes where they can.
    #[must_use]
    pub fn keeping_chunks(mut self) -> Self {
        if let Some(reframe) = &mut self.reframe {
            reframe.keep_chunks();
        }
        self
    }

    /// Adds what has already arrived of the body to what is written first.
    ///
    /// # Errors
    /// [`FlowError::Malformed`].
    pub fn prime(&mut self, from: &mut Connection) -> Result<(), FlowError> {
        if !self.body.is_done() && !from.input.is_empty() {
            self.step(from)?;
        }
        Ok(())
    }

    fn step(&mut self, from: &mut Connection) -> Result<Progress, FlowError> {
        let (input, out) = (&mut from.input, self.out.bytes());
        match &mut self.reframe {
            None => self.body.step(input, out),
            Some(reframe) => reframe.step(&mut self.body, input, out),
        }
        .map_err(FlowError::Malformed)
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
        let ended = self
            .reframe
            .as_ref()
            .is_none_or(|reframe| reframe.is_ended());
        self.body.is_done() && ended && self.out.is_clear()
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
            let drained = self.out.poll_drain(cx, to);
            ready!(self.listened(drained))?;
            let verbatim = self.body.verbatim(from.input.len());
            if verbatim > 0 && self.reframe.is_none() {
                let bytes = from.input.get(..verbatim).unwrap_or_default();
                let count = ready!(self.out.poll_write(cx, to, bytes)).map_err(gone)?;
                from.input.advance(count);
                self.body.sent_verbatim(count);
                continue;
            }
            match self.step(from)? {
                _ if !self.out.bytes().is_empty() => continue,
                Progress::Done => {
                    ready!(self.out.poll_flush(cx, to)).map_err(gone)?;
                    return Poll::Ready(Ok(()));
                }
                Progress::Full | Progress::Hungry => {}
            }
            let flushed = self.out.poll_flush(cx, to);
            ready!(self.listened(flushed))?;
            let Poll::Ready(filled) = from.poll_fill(cx) else {
                ready!(self.poll_release(cx));
                continue;
            };
            self.renew();
            match filled {
                Ok(0) => self.body.close().map_err(|_rule| FlowError::SenderGone)?,
                Ok(_) => {}
                Err(_reset) => return Poll::Ready(Err(FlowError::SenderGone)),
            }
        }
    }

    /// Takes note of a receiver that takes nothing: meanwhile the sender is not listened to.
    fn listened(&mut self, polled: Poll<io::Result<()>>) -> Poll<Result<(), FlowError>> {
        if polled.is_pending() {
            self.renew();
        }
        polled.map_err(FlowError::ReceiverGone)
    }

    fn renew(&mut self) {
        if let Some(reframe) = &mut self.reframe {
            reframe.renew();
        }
    }

    /// Waits for the time when what a transform holds back must leave.
    fn poll_release(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.reframe {
            Some(reframe) => reframe.poll_release(cx, self.out.bytes()),
            None => Poll::Pending,
        }
    }
}
