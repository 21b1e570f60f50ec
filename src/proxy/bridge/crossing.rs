//! One exchange between a workload that speaks HTTP/2 and an upstream that speaks HTTP/1.1.
//!
//! The request goes up while the answer is waited for and while it comes down: both are polled by
//! the task of the stream. The upstream's connection goes back to the pool only when both messages
//! ended where their framing says. Called by the bridge.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Frame;

use super::Outgoing;
use super::answer::Source;
use super::ledger::Ledger;
use super::upload::Upload;
use super::{Failure, gone, no_route, reset_error};
use crate::audit::Decision;
use crate::proxy::context::{Lane, Meter};
use crate::proxy::exchange::written;
use crate::proxy::reject;
use crate::proxy::response::{AnswerReader, Lost, Stall, Taken};
use crate::session::HostView;
use crate::upstream::{BodyError, Lease};
use crate::wire::{
    AnswerHead, Body, FlowError, Framing, RequestHead, answer_framing, clean_answer, closes,
    trailers_to_map,
};

/// A piece of an answer's body, or how the exchange ended instead.
type Piece = Result<Frame<Bytes>, (Decision, &'static str)>;

/// A request that goes over HTTP/1.1, and the answer to it.
pub(super) struct Crossing {
    head: RequestHead,
    upload: Upload,
    repeatable: bool,
    /// The upstream takes no more of the request, but may still say why.
    upload_failed: bool,
    stall: Option<Stall>,
    lease: Option<Lease>,
    download: Body,
    trailers: Option<http::HeaderMap>,
    /// The upstream will close after the answer.
    last: bool,
}

impl Crossing {
    /// Writes the head of a request as HTTP/1.1.
    pub(super) fn new(mut outgoing: Outgoing, framing: Framing, meter: Arc<Meter>) -> Self {
        let framing = match framing {
            Framing::None if !outgoing.bodyless => {
                outgoing
                    .head
                    .fields
                    .append("transfer-encoding", &b"chunked"[..]);
                Framing::Chunked
            }
            Framing::None if matches!(outgoing.head.method(), b"POST" | b"PUT" | b"PATCH") => {
                // Many servers ask for it (RFC 9110 §8.6).
                outgoing.head.fields.append("content-length", &b"0"[..]);
                Framing::None
            }
            stated => stated,
        };
        let upload = Upload::new(written(&outgoing.head, 0), outgoing.body, framing, meter);
        Self {
            head: outgoing.head,
            upload,
            repeatable: outgoing.repeatable,
            upload_failed: false,
            stall: None,
            lease: None,
            download: Body::new(Framing::None),
            trailers: None,
            last: false,
        }
    }

    /// Sends the request and waits for the head of its answer. It is sent again only if no byte of
    /// it was written, or it is bodyless and idempotent and no byte of an answer came.
    pub(super) async fn run(
        mut self,
        lane: &Lane<'_>,
        view: &HostView,
        mut lease: Lease,
        ledger: &mut Ledger,
    ) -> Result<(AnswerHead, Source), Failure> {
        let mut stall = Stall::new(lane.proxy.config.stall_timeout);
        let answer = loop {
            ledger.record().address(lease.address());
            match self.ask(&mut lease, &mut stall).await {
                Ok(answer) => break answer,
                Err(Lost::UpstreamSilent) if lease.is_reused() => {
                    if !self.upload.outbox().is_unsent() {
                        if !self.repeatable {
                            return Err(reject::no_answer().into());
                        }
                        self.upload.rewind(written(&self.head, 0));
                    }
                    self.upload_failed = false;
                    let upstream = &lane.proxy.upstream;
                    let fresh = upstream.lease_fresh(lane.handle.pool(), view.grant());
                    lease = fresh.await.map_err(|error| no_route(&error))?;
                }
                Err(Lost::Client) => return Err(gone(ledger)),
                Err(lost) => return Err(lost.refusal().into()),
            }
        };
        self.stall = Some(stall);
        self.answered(answer, lease)
    }

    /// Takes the head of the answer, and prepares for its body.
    fn answered(
        mut self,
        mut answer: AnswerHead,
        lease: Lease,
    ) -> Result<(AnswerHead, Source), Failure> {
        let is_head = self.head.method() == b"HEAD";
        let framing = answer_framing(&answer, is_head).map_err(|_rule| reject::bad_answer())?;
        self.last = closes(&answer.fields, answer.version) || framing == Framing::UntilClose;
        clean_answer(&mut answer).map_err(|_rule| reject::bad_answer())?;
        self.download = Body::new(framing).without_framing();
        self.lease = Some(lease);
        if self.download.is_done() {
            self.end();
        }
        Ok((answer, Source::Http1(Box::new(self))))
    }

    async fn ask(&mut self, lease: &mut Lease, stall: &mut Stall) -> Result<AnswerHead, Lost> {
        let mut reader = AnswerReader::default();
        poll_fn(|cx| {
            let up = &mut lease.connection;
            if !self.upload_failed {
                match self.upload.poll(cx, up) {
                    Poll::Ready(Ok(())) | Poll::Pending => {}
                    Poll::Ready(Err(FlowError::SenderGone)) => {
                        return Poll::Ready(Err(Lost::Client));
                    }
                    Poll::Ready(Err(FlowError::ReceiverGone(_))) => self.upload_failed = true,
                    Poll::Ready(Err(error @ FlowError::Malformed(_))) => {
                        return Poll::Ready(Err(Lost::ClientBody(error)));
                    }
                }
            }
            loop {
                match reader.take(up, false) {
                    Ok(Taken::Final(answer)) => return Poll::Ready(Ok(answer)),
                    // Interim answers are absorbed: most clients cannot take them over HTTP/2.
                    Ok(Taken::Interim(_)) => continue,
                    Ok(Taken::Nothing) => {}
                    Err(lost) => return Poll::Ready(Err(lost)),
                }
                match up.poll_read_answer(cx) {
                    Poll::Ready(Ok(1..)) => {}
                    Poll::Ready(_) if up.input.is_empty() && reader.is_untouched() => {
                        return Poll::Ready(Err(Lost::UpstreamSilent));
                    }
                    Poll::Ready(_) => return Poll::Ready(Err(Lost::Upstream)),
                    Poll::Pending if stall.poll(cx, &[self.upload.outbox()]) => {
                        return Poll::Ready(Err(Lost::Upstream));
                    }
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }

    /// Tells whether nothing more comes.
    pub(super) fn is_over(&self) -> bool {
        self.lease.is_none() && self.trailers.is_none()
    }

    /// Gives the connection back if it can carry another exchange.
    fn end(&mut self) {
        let lease = self.lease.take();
        let reusable = self.upload.is_done() && !self.upload_failed && !self.last;
        if let Some(lease) = lease.filter(|_| reusable) {
            lease.give_back();
        }
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        ledger: &mut Ledger,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = self.poll_answer(cx);
        if polled.is_pending() && !self.upload_failed {
            let blocked = |stall: &mut Stall| stall.poll(cx, &[self.upload.outbox()]);
            if self.stall.as_mut().is_some_and(blocked) {
                ledger.settle(Decision::Aborted, "stalled");
                return Poll::Ready(Some(Err(reset_error(h2::Reason::INTERNAL_ERROR))));
            }
        }
        polled.map(|frame| {
            frame.map(|frame| {
                frame.map_err(|(decision, reason)| {
                    self.lease = None;
                    ledger.settle(decision, reason);
                    reset_error(h2::Reason::INTERNAL_ERROR)
                })
            })
        })
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Option<Piece>> {
        let Some(lease) = &mut self.lease else {
            return Poll::Ready(self.trailers.take().map(|map| Ok(Frame::trailers(map))));
        };
        let up = &mut lease.connection;
        if !self.upload_failed && !self.upload.is_done() {
            match self.upload.poll(cx, up) {
                Poll::Ready(Ok(())) | Poll::Pending => {}
                Poll::Ready(Err(FlowError::ReceiverGone(_))) => self.upload_failed = true,
                Poll::Ready(Err(FlowError::SenderGone)) => {
                    return Poll::Ready(Some(Err((Decision::Aborted, "client_gone"))));
                }
                Poll::Ready(Err(FlowError::Malformed(_))) => {
                    return Poll::Ready(Some(Err((Decision::Denied, "bad_request_body"))));
                }
            }
        }
        loop {
            let data = match next_data(&mut self.download, &mut up.input) {
                Ok(data) => data,
                Err(_rule) => {
                    return Poll::Ready(Some(Err((Decision::Failed, "bad_answer_body"))));
                }
            };
            if self.download.is_done() {
                let trailers = self.download.take_trailers();
                self.trailers = trailers.and_then(|fields| trailers_to_map(&fields).ok());
                self.end();
                return Poll::Ready(match data {
                    Some(data) => Some(Ok(Frame::data(data))),
                    None => self.trailers.take().map(|map| Ok(Frame::trailers(map))),
                });
            }
            if let Some(data) = data {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            match up.poll_fill(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(1..)) => {}
                // An end without TLS's own is a cut, even where the end is all that frames.
                Poll::Ready(Ok(_)) if self.download.close().is_ok() => {}
                Poll::Ready(_) => {
                    return Poll::Ready(Some(Err((Decision::Failed, "upstream_cut"))));
                }
            }
        }
    }
}

/// Takes what has arrived of a body, without its framing.
fn next_data(
    body: &mut Body,
    input: &mut bytes::BytesMut,
) -> Result<Option<Bytes>, crate::wire::Error> {
    loop {
        let count = body.verbatim(input.len());
        if count > 0 {
            let data = input.split_to(count).freeze();
            body.sent_verbatim(count);
            return Ok(Some(data));
        }
        let mut out = Vec::new();
        let progress = body.step(input, &mut out)?;
        if !out.is_empty() {
            return Ok(Some(Bytes::from(out)));
        }
        if progress != crate::wire::Progress::Full {
            return Ok(None);
        }
    }
}
