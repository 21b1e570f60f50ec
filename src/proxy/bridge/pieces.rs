//! The body of a request, as it comes from a workload that speaks HTTP/2.
//!
//! It may have been read ahead, whole, and it may change on its way. Its bytes are counted, and
//! bounded, as they come. Called by both kinds of uploads.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::Frame;
use hyper::body::Incoming;

use super::changed::Changed;
use super::gather::Gather;
use crate::proxy::context::Meter;
use crate::upstream::BodyError;
use crate::wire::{BodyLimits, Transform};

/// A body on its way up.
pub(super) struct Pieces {
    body: Gather,
    limits: BodyLimits,
    /// The bytes that came.
    came: u64,
    meter: Arc<Meter>,
    /// Read ahead.
    ahead: Bytes,
    /// What the body goes through.
    change: Option<Changed>,
}

impl Pieces {
    pub(super) fn new(body: Incoming, limits: BodyLimits, meter: Arc<Meter>) -> Self {
        Self {
            body: Gather::new(body),
            limits,
            came: 0,
            meter,
            ahead: Bytes::new(),
            change: None,
        }
    }

    /// Lets the body go through a transform.
    pub(super) fn change(&mut self, transform: Box<dyn Transform>) {
        self.change = Some(Changed::with_values(transform));
    }

    /// Reads so many bytes ahead. Nothing if the body is cut before, or is not as long.
    pub(super) async fn read(&mut self, length: usize) -> Option<Bytes> {
        let mut all = BytesMut::with_capacity(length);
        while all.len() < length {
            let frame = std::future::poll_fn(|cx| self.poll_source(cx)).await;
            all.extend_from_slice(&frame?.ok()?.into_data().ok()?);
        }
        self.ahead = all.freeze();
        Some(self.ahead.clone())
    }

    /// Returns the next frame as it leaves; nothing at the end.
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            if let Some(change) = &mut self.change {
                if let Some(frame) = change.next() {
                    return Poll::Ready(Some(frame.map_err(Into::into)));
                }
                if !change.is_hungry() {
                    return Poll::Ready(None);
                }
            }
            let frame = ready!(self.poll_source(cx)).transpose();
            match (frame, &mut self.change) {
                (Ok(frame), Some(change)) => change.put(frame),
                (frame, _) => return Poll::Ready(frame.transpose()),
            }
        }
    }

    fn poll_source(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.ahead.is_empty() {
            let ahead = std::mem::take(&mut self.ahead);
            return Poll::Ready(Some(Ok(Frame::data(ahead))));
        }
        let frame = ready!(self.body.poll_frame(cx));
        let data = frame
            .as_ref()
            .and_then(|frame| frame.as_ref().ok()?.data_ref());
        let length = data.map_or(0, Bytes::len);
        self.came = self.came.saturating_add(length as u64);
        if let Err(rule) = self.limits.check(self.came) {
            return Poll::Ready(Some(Err(rule.into())));
        }
        self.meter.add_up(length);
        Poll::Ready(frame)
    }

    /// Tells whether nothing more comes, and the message ended in good order.
    pub(super) fn is_end_stream(&self) -> bool {
        match &self.change {
            Some(change) => change.is_over(),
            None => self.ahead.is_empty() && self.body.is_end_stream(),
        }
    }
}
