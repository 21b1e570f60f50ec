//! Answers of token endpoints: the tokens in them stay here, sealed ones go on.
//!
//! Such an answer is read whole, within a bound, before a byte of it leaves; its tokens are durable
//! in the session before the workload sees their names. Whatever cannot be read strictly, or not be
//! kept, is refused whole: no part of it reaches the workload. Finding tokens is `swap`'s, keeping
//! them is `session`'s. Called by both doors, for answers that say success; any other passes.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use zeroize::Zeroizing;

use super::context::{Lane, Meter};
use super::exchange::{Outgoing, path_of};
use super::reject;
use super::reject::Refusal;
use super::response::{Stall, left};
use super::scrub::{ABOUT_CODED, Scrub};
use crate::audit::Record;
use crate::policy::TokenEndpoint;
use crate::session;
use crate::session::HostView;
use crate::swap::{CaptureError, ContentEncoding, Decoder, STEP_LIMIT_BYTES, TokenAnswer};
use crate::wire::{AnswerHead, Body, Connection, FlowError, Framing, Progress, RequestHead};

/// The longest body of an answer that is captured from, decoded, in bytes.
const BODY_LIMIT_BYTES: usize = 256 * 1024;
/// How much of a body is looked at in one step, in bytes.
const STEP_BYTES: usize = 32 * 1024;

/// Tells whether an answer may have tokens.
pub(super) fn may_have_tokens(answer: &AnswerHead) -> bool {
    (200..300).contains(&answer.status)
}

/// The capture of one exchange.
pub(super) struct Capture {
    endpoint: Arc<TokenEndpoint>,
}

impl Capture {
    /// Prepares for the answer to a request, if a token endpoint may give it.
    ///
    /// Towards a host with an endpoint a path with a step upwards or a fragment is refused: where it
    /// leads depends on who reads it.
    pub(super) fn of(view: &HostView, head: &RequestHead) -> Result<Option<Self>, Refusal> {
        let path = path_of(head.target_text()).as_bytes();
        if view.is_ambiguous(path) {
            let message =
                "a path to this host must have neither a segment that leads upwards nor a fragment";
            return Err(Refusal::client(400, "ambiguous_path", message));
        }
        let endpoint = view.endpoint(path).map(Arc::clone);
        Ok(endpoint.map(|endpoint| Self { endpoint }))
    }

    /// Reads the rest of an answer of HTTP/1.1, while what is left of the request goes up, and
    /// captures from it. Returns the body as it goes on.
    pub(super) async fn run(
        &self,
        lane: &mut Lane<'_>,
        (down, up): (&mut Connection, &mut Connection),
        request: &mut Outgoing,
        (answer, framing): (&mut AnswerHead, Framing),
        (record, meter): (&mut Record, &Meter),
    ) -> Result<Vec<u8>, Refusal> {
        let mut gather = Gather::new(answer)?;
        let mut body = Body::new(framing).without_framing();
        let mut stall = Stall::new(lane.proxy.config.stall_timeout);
        let mut upload_failed = false;
        let mut piece = Zeroizing::new(Vec::with_capacity(STEP_BYTES));
        let whole = poll_fn(|cx| {
            let flow = &mut request.flow;
            if !flow.is_done() && !upload_failed {
                match flow.poll(cx, down, up) {
                    Poll::Ready(Err(FlowError::SenderGone)) => {
                        return Poll::Ready(Err(Refusal::gone()));
                    }
                    Poll::Ready(Err(error @ FlowError::Malformed(_))) => {
                        let refusal = reject::bad_body(&error);
                        return Poll::Ready(Err(refusal.unwrap_or_else(Refusal::gone)));
                    }
                    Poll::Ready(Err(FlowError::ReceiverGone(_))) => upload_failed = true,
                    Poll::Ready(Ok(())) | Poll::Pending => {}
                }
            }
            loop {
                let step = body.step(&mut up.input, &mut piece);
                let progress = step.map_err(|_rule| reject::bad_answer())?;
                gather.push(&piece)?;
                piece.clear();
                meter.set(request.flow.body().data_bytes(), body.data_bytes());
                match progress {
                    Progress::Done => return Poll::Ready(Ok(())),
                    Progress::Full => continue,
                    Progress::Hungry => {}
                }
                match up.poll_fill(cx) {
                    Poll::Ready(Ok(1..)) => {}
                    Poll::Ready(Ok(_)) if body.close().is_ok() => {}
                    Poll::Ready(_) => return Poll::Ready(Err(reject::bad_answer())),
                    Poll::Pending => break,
                }
            }
            if left(cx, down, request.flow.is_done(), upload_failed) {
                return Poll::Ready(Err(Refusal::gone()));
            }
            if stall.poll(cx, &[request.flow.outbox()]) {
                return Poll::Ready(Err(reject::bad_answer()));
            }
            Poll::Pending
        });
        tokio::time::timeout(lane.proxy.config.stall_timeout, whole)
            .await
            .map_err(|_elapsed| reject::silent(true))??;
        let scrub = request.scrub.take();
        self.settle(lane, answer, gather.finish()?, (record, scrub))
            .await
    }

    /// Takes the tokens out of a body that is there whole, and keeps them; only then returns the
    /// body as it goes on, scrubbed like any other. Takes from the head what does not hold any more.
    pub(super) async fn settle(
        &self,
        lane: &mut Lane<'_>,
        answer: &mut AnswerHead,
        body: Zeroizing<Vec<u8>>,
        (record, mut scrub): (&mut Record, Option<Scrub>),
    ) -> Result<Vec<u8>, Refusal> {
        let read = TokenAnswer::read(answer.fields.first("content-type"), body);
        let read = read.map_err(reject::unreadable_tokens)?;
        answer.fields.retain(|name, _| {
            let framing: [&[u8]; 3] = [b"content-length", b"transfer-encoding", b"trailer"];
            let mut gone = framing.iter().chain(&ABOUT_CODED);
            !gone.any(|it| name.eq_ignore_ascii_case(it))
        });
        let mut body = if read.tokens().is_empty() {
            read.with(&[])
        } else {
            let names: Vec<Arc<str>> = read
                .tokens()
                .iter()
                .map(|it| it.name.clone().into())
                .collect();
            // Before they are kept: that goes on even if the workload goes away meanwhile.
            record.captured(&names);
            let kept = self.keep(lane, read).await;
            let body = kept.inspect_err(|_refusal| record.captured(&[]))?;
            // The new values may stand elsewhere in the same answer.
            let view = lane.view()?;
            scrub = Scrub::of(&view, record, lane.proxy.config.unknown_codings);
            body
        };
        if let Some(scrub) = scrub {
            scrub.head(answer);
            if let Some(change) = scrub.body(answer)? {
                body = change.whole(&body);
            }
        }
        Ok(body)
    }

    /// Keeps the tokens, to the end even if the workload goes away in between, and puts sealed ones
    /// in their place.
    async fn keep(&self, lane: &Lane<'_>, read: TokenAnswer) -> Result<Vec<u8>, Refusal> {
        let (sessions, handle) = (Arc::clone(&lane.proxy.sessions), Arc::clone(lane.handle));
        let endpoint = Arc::clone(&self.endpoint);
        let (sender, receiver) = tokio::sync::oneshot::channel();
        lane.proxy.drain.spawn(async move {
            let kept = sessions.capture(&handle, &endpoint, read.tokens()).await;
            if sender.send(kept.map(|tokens| read.with(&tokens))).is_err() {
                tracing::debug!("a workload left before the answer with its tokens");
            }
        });
        match receiver.await {
            Ok(Ok(body)) => Ok(body),
            Ok(Err(session::Error::NotFound)) => Err(Refusal::session_over()),
            Ok(Err(error)) => {
                if matches!(error, session::Error::Store(_)) {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "captured tokens cannot be kept");
                }
                Err(reject::not_captured(&error))
            }
            Err(_panicked) => Err(reject::not_kept()),
        }
    }
}

/// The body of an answer as it comes, decoded and bounded.
pub(super) struct Gather {
    decoder: Option<Decoder>,
    taken_bytes: usize,
    /// Has its whole room from the start: a buffer that grows would leave copies behind.
    body: Zeroizing<Vec<u8>>,
}

impl Gather {
    /// Prepares for the body of an answer.
    pub(super) fn new(answer: &AnswerHead) -> Result<Self, Refusal> {
        // A part of an answer may begin within a token.
        if answer.status == 206 || answer.fields.first("content-range").is_some() {
            return Err(reject::unreadable_tokens(CaptureError::Part));
        }
        let decoder = match ContentEncoding::parse(answer.fields.all("content-encoding")) {
            ContentEncoding::Identity => None,
            ContentEncoding::Coded(codings) => Some(Decoder::new(&codings)),
            ContentEncoding::Unknown => return Err(reject::unknown_coding()),
        };
        Ok(Self {
            decoder,
            taken_bytes: 0,
            body: Zeroizing::new(Vec::with_capacity(BODY_LIMIT_BYTES + STEP_LIMIT_BYTES)),
        })
    }

    /// Takes what has come.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), Refusal> {
        self.taken_bytes += bytes.len();
        if self.taken_bytes > BODY_LIMIT_BYTES {
            return Err(reject::too_long_for_tokens());
        }
        let Some(decoder) = &mut self.decoder else {
            self.body.extend_from_slice(bytes);
            return Ok(());
        };
        loop {
            let pushed = decoder.push(&mut bytes, &mut self.body);
            if self.body.len() > BODY_LIMIT_BYTES {
                return Err(reject::too_long_for_tokens());
            }
            match pushed {
                Ok(Progress::Full) => {}
                Ok(_) => return Ok(()),
                Err(_why) => return Err(reject::bad_answer()),
            }
        }
    }

    /// Returns the whole body.
    pub(super) fn finish(self) -> Result<Zeroizing<Vec<u8>>, Refusal> {
        let ended = self.decoder.as_ref().map_or(Ok(()), Decoder::finish);
        ended.map_err(|_why| reject::bad_answer())?;
        Ok(self.body)
    }
}
