//! The body of a request on its way to an upstream: frames as they come, or HTTP/1.1 chunks.
//!
//! Either ends with its exchange: what a workload still sends after the whole answer is not passed
//! on. Trailers are checked and cleaned. Called by the bridge and by the crossing.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame};

use super::ledger::Ledger;
use super::pace::{Pace, Way};
use super::pieces::Pieces;
use crate::upstream::BodyError;
use crate::wire::{Connection, FlowError, Framing, Outbox, trailers_from_map, trailers_to_map};

/// What was wrong with the body of a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// It broke a rule.
    Broken(crate::wire::Error),
    /// The workload gave its stream up.
    Gone,
}

/// The most that frames a chunk: its size in hexadecimal digits, and two line ends.
const CHUNK_FRAMING_BYTES: usize = 16 + 2 + 2;

/// A body from one HTTP/2 connection to another.
pub(super) struct UploadBody {
    body: Pieces,
    pace: Arc<Pace>,
    fault: Arc<OnceLock<Fault>>,
}

impl UploadBody {
    pub(super) fn new(body: Pieces, ledger: &Ledger) -> Self {
        Self {
            body,
            pace: ledger.pace(),
            fault: ledger.faults(),
        }
    }
}

impl Drop for UploadBody {
    /// Nobody asks for more after the last frame: from here on the upstream keeps nobody waiting.
    fn drop(&mut self) {
        self.pace.asked(Way::Up);
    }
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        this.pace.asked(Way::Up);
        let frame = match ready!(this.body.poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                let rule = error.downcast_ref().copied();
                let _known = this.fault.set(rule.map_or(Fault::Gone, Fault::Broken));
                return Poll::Ready(Some(Err(error)));
            }
            None => return Poll::Ready(None),
        };
        if frame.is_data() {
            this.pace.gave(Way::Up);
        }
        match frame.into_trailers() {
            Err(frame) => Poll::Ready(Some(Ok(frame))),
            Ok(trailers) => Poll::Ready(Some(cleaned(&trailers).map_err(|rule| {
                let _known = this.fault.set(Fault::Broken(rule));
                rule.into()
            }))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// Cleans trailers on their way from one HTTP/2 connection to another.
pub(super) fn cleaned(trailers: &http::HeaderMap) -> Result<Frame<Bytes>, crate::wire::Error> {
    let fields = trailers_from_map(trailers)?;
    Ok(Frame::trailers(trailers_to_map(&fields)?))
}

/// A body from an HTTP/2 connection to an HTTP/1.1 connection, behind the head of its request.
pub(super) struct Upload {
    body: Option<Pieces>,
    out: Outbox,
    chunked: bool,
    /// What the head promised and did not come yet.
    left: Option<u64>,
}

impl Upload {
    pub(super) fn new(head: Vec<u8>, body: Option<Pieces>, framing: Framing) -> Self {
        Self {
            body,
            out: Outbox::new(head),
            chunked: framing == Framing::Chunked,
            left: match framing {
                Framing::Length(length) => Some(length),
                Framing::None | Framing::Chunked | Framing::UntilClose => None,
            },
        }
    }

    pub(super) fn outbox(&self) -> &Outbox {
        &self.out
    }

    /// Starts again with the same head, towards another receiver. Only without a body.
    pub(super) fn rewind(&mut self, head: Vec<u8>) {
        self.out.rewind(head);
    }

    /// Tells whether all was written.
    pub(super) fn is_done(&self) -> bool {
        self.body.is_none() && self.out.is_clear()
    }

    /// Moves the body until one side is not ready. Ready when it is through and flushed.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut Connection,
    ) -> Poll<Result<(), FlowError>> {
        let gone = FlowError::ReceiverGone;
        loop {
            ready!(self.out.poll_drain(cx, to)).map_err(gone)?;
            let Some(body) = &mut self.body else {
                ready!(self.out.poll_flush(cx, to)).map_err(gone)?;
                return Poll::Ready(Ok(()));
            };
            let Poll::Ready(frame) = body.poll_frame(cx) else {
                ready!(self.out.poll_flush(cx, to)).map_err(gone)?;
                return Poll::Pending;
            };
            match frame {
                Some(Ok(frame)) => self.take(frame)?,
                Some(Err(error)) => {
                    let rule = error.downcast_ref().copied();
                    let gone = FlowError::SenderGone;
                    return Poll::Ready(Err(rule.map_or(gone, FlowError::Malformed)));
                }
                None => self.end(b"\r\n")?,
            }
        }
    }

    /// Puts a frame in line.
    fn take(&mut self, frame: Frame<Bytes>) -> Result<(), FlowError> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                let Ok(trailers) = frame.into_trailers() else {
                    return Ok(());
                };
                let fields = trailers_from_map(&trailers).map_err(FlowError::Malformed)?;
                let mut text = Vec::new();
                fields.write(&mut text);
                text.extend_from_slice(b"\r\n");
                return self.end(&text);
            }
        };
        if data.is_empty() {
            // An empty chunk would be the last one.
            return Ok(());
        }
        let length = data.len() as u64;
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(length).ok_or(FlowError::SenderGone)?;
        }
        // The head stood in the same memory, with real values.
        self.out.make_room(data.len() + CHUNK_FRAMING_BYTES);
        let out = self.out.bytes();
        if self.chunked {
            out.extend_from_slice(format!("{length:x}\r\n").as_bytes());
        }
        out.extend_from_slice(&data);
        if self.chunked {
            out.extend_from_slice(b"\r\n");
        }
        Ok(())
    }

    /// Ends the body. Trailers travel with chunks only.
    fn end(&mut self, trailers: &[u8]) -> Result<(), FlowError> {
        if self.left.is_some_and(|left| left > 0) {
            return Err(FlowError::SenderGone);
        }
        self.body = None;
        if self.chunked {
            self.out.make_room(trailers.len() + CHUNK_FRAMING_BYTES);
            let out = self.out.bytes();
            out.extend_from_slice(b"0\r\n");
            out.extend_from_slice(trailers);
        }
        Ok(())
    }
}
