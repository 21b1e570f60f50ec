//! One exchange between a workload that speaks HTTP/2 and an upstream that speaks HTTP/1.1.
//!
//! The request goes up while the answer is waited for and while it comes down: both are polled by
//! the task of the stream, or by one of their own where the request is not through when the answer
//! begins. The upstream's connection goes back to the pool only when both messages
//! ended where their framing says. Called by the bridge.

use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Frame;

use super::Outgoing;
use super::answer::Source;
use super::feed::Feed;
use super::gather::{GATHER_BYTES, PIECE_BYTES};
use super::ledger::Ledger;
use super::upload::Upload;
use super::{Failure, no_route, patience};
use crate::audit::Decision;
use crate::proxy::context::Lane;
use crate::proxy::deadline::{Silent, unless_silent};
use crate::proxy::exchange::written;
use crate::proxy::reject;
use crate::proxy::response::{AnswerReader, Lost, Stall, Taken};
use crate::session::HostView;
use crate::shutdown::Drain;
use crate::upstream::Lease;
use crate::wire::{
    AnswerHead, Body, FlowError, Framing, Progress, RequestHead, answer_framing, clean_answer,
    closes, trailers_to_map,
};

/// A piece of an answer's body, or how the exchange ended instead.
pub(super) type Piece = Result<Frame<Bytes>, (Decision, &'static str)>;

/// A request that goes over HTTP/1.1, and the answer to it.
pub(super) struct Crossing {
    head: RequestHead,
    upload: Upload,
    repeatable: bool,
    /// The upstream takes no more of the request, but may still say why.
    upload_failed: bool,
    stall: Option<Stall>,
    lease: Option<Lease>,
    /// Why the exchange ended early.
    failed: Option<(Decision, &'static str)>,
    download: Body,
    trailers: Option<http::HeaderMap>,
    /// The upstream will close after the answer.
    last: bool,
}

impl Crossing {
    /// Writes the head of a request as HTTP/1.1.
    pub(super) fn new(mut outgoing: Outgoing, framing: Framing) -> Self {
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
        let text = written(&outgoing.head, 0);
        let upload = Upload::new(text, outgoing.body, framing);
        Self {
            head: outgoing.head,
            upload,
            repeatable: outgoing.repeatable,
            upload_failed: false,
            stall: None,
            lease: None,
            failed: None,
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
        let meter = ledger.meter();
        let answer = loop {
            ledger.record().address(lease.address());
            let answer = unless_silent(patience(lane), &meter, self.ask(&mut lease, &mut stall));
            let answer = answer.await;
            match answer.map_err(|Silent| reject::silent(self.upload.is_done()))? {
                Ok(answer) => break answer,
                Err(Lost::UpstreamSilent) if lease.is_reused() => {
                    if !self.upload.outbox().is_unsent() {
                        if !self.repeatable {
                            return Err(reject::no_answer().into());
                        }
                        self.upload.rewind(written(&self.head, 0));
                    }
                    self.upload_failed = false;
                    if lane.handle.is_over() {
                        return Err(Failure::Gone);
                    }
                    let upstream = &lane.proxy.upstream;
                    let fresh = upstream.lease_fresh(lane.handle.pool(), view.grant());
                    lease = fresh.await.map_err(|error| no_route(&error))?;
                }
                Err(Lost::Client) => return Err(Failure::Gone),
                Err(lost) => return Err(lost.refusal().into()),
            }
        };
        self.stall = Some(stall);
        self.answered(answer, lease, &lane.proxy.drain)
    }

    /// Takes the head of the answer, and prepares for its body.
    fn answered(
        mut self,
        mut answer: AnswerHead,
        lease: Lease,
        drain: &Drain,
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
        let source = if self.is_over() || self.upload_failed || self.upload.is_done() {
            Source::Http1(Box::new(self))
        } else {
            Source::Fed(Feed::start(self, drain))
        };
        Ok((answer, source))
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
        self.lease.is_none() && self.trailers.is_none() && self.failed.is_none()
    }

    /// Gives the connection back if it can carry another exchange.
    fn end(&mut self) {
        let lease = self.lease.take();
        let reusable = self.upload.is_done() && !self.upload_failed && !self.last;
        if let Some(lease) = lease.filter(|_| reusable) {
            lease.give_back();
        }
    }

    /// Moves the request on. What ends the exchange here is told with the next piece.
    pub(super) fn poll_upload(&mut self, cx: &mut Context<'_>) {
        let Some(lease) = &mut self.lease else {
            return;
        };
        if self.upload_failed || self.upload.is_done() {
            return;
        }
        self.failed = match self.upload.poll(cx, &mut lease.connection) {
            Poll::Ready(Ok(())) | Poll::Pending => None,
            Poll::Ready(Err(FlowError::ReceiverGone(_))) => {
                self.upload_failed = true;
                return;
            }
            Poll::Ready(Err(FlowError::SenderGone)) => Some((Decision::Aborted, "client_gone")),
            Poll::Ready(Err(FlowError::Malformed(_))) => {
                Some((Decision::Denied, "bad_request_body"))
            }
        };
        let blocked = |stall: &mut Stall| stall.poll(cx, &[self.upload.outbox()]);
        if self.failed.is_none() && self.stall.as_mut().is_some_and(blocked) {
            self.failed = Some((Decision::Aborted, "stalled"));
        }
        if self.failed.is_some() {
            self.lease = None;
        }
    }

    /// Moves the request on, and returns the next piece of the answer.
    pub(super) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Piece>> {
        self.poll_upload(cx);
        let polled = match self.failed.take() {
            Some(failed) => Poll::Ready(Some(Err(failed))),
            None => self.poll_answer(cx),
        };
        if let Poll::Ready(Some(Err(_why))) = &polled {
            self.lease = None;
        }
        polled
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Option<Piece>> {
        let Some(lease) = &mut self.lease else {
            return Poll::Ready(self.trailers.take().map(|map| Ok(Frame::trailers(map))));
        };
        let up = &mut lease.connection;
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

/// Takes what has arrived of a body, without its framing; pieces that are not worth a frame of their
/// own are put together.
fn next_data(
    body: &mut Body,
    input: &mut bytes::BytesMut,
) -> Result<Option<Bytes>, crate::wire::Error> {
    let mut out = Vec::new();
    loop {
        let count = body.verbatim(input.len());
        if count >= PIECE_BYTES {
            if out.is_empty() {
                let data = input.split_to(count).freeze();
                body.sent_verbatim(count);
                return Ok(Some(data));
            }
            break;
        }
        if count > 0 {
            out.extend_from_slice(&input.split_to(count));
            body.sent_verbatim(count);
        } else if body.step(input, &mut out)? != Progress::Full {
            break;
        }
        if out.len() >= GATHER_BYTES {
            break;
        }
    }
    Ok(Some(Bytes::from(out)).filter(|data| !data.is_empty()))
}
