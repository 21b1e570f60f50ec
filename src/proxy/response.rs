//! The answer: waited for while the request still goes up, cleaned, and streamed back.
//!
//! Both directions are polled here, in the task of the exchange, so that the end of one is seen by
//! the other. An answer with two framings, or a protocol switch nobody asked for, is refused and
//! its connection closed. Between the cleaning and the writing it is scrubbed, where the host may
//! have a secret.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::time::{Instant, Sleep, sleep_until};

use super::After;
use super::capture::may_have_tokens;
use super::context::{Lane, Meter};
use super::deadline::unless_silent;
use super::exchange::{Outgoing, allowed, canonical_framing};
use super::reject::{self, Refusal};
use super::scrub::Scrub;
use super::upgrade::{self, SWITCHING_PROTOCOLS, Upgrade};
use crate::audit::{Decision, Record};
use crate::upstream::Lease;
use crate::wire::{
    AnswerHead, Body, Connection, Flow, FlowError, Framing, HeadScanner, Outbox, ReadError,
    Transform, Version, answer_framing, clean_answer, closes, parse_answer,
};

/// How an exchange ends whose client went away.
const CLIENT_GONE: (Decision, &str) = (Decision::Aborted, "client_gone");
/// The most interim answers that are passed on for one request.
const INTERIM_LIMIT: usize = 10;

/// Why there is no answer to send on.
#[derive(Debug)]
pub(super) enum Lost {
    /// The client went away.
    Client,
    /// The client's body broke a rule.
    ClientBody(FlowError),
    /// The answer broke a rule.
    Upstream,
    /// The upstream closed before the first byte of an answer.
    UpstreamSilent,
}

impl Lost {
    pub(super) fn refusal(self) -> Refusal {
        match self {
            Self::Client => Refusal::gone(),
            Self::ClientBody(error) => {
                reject::bad_body(&error).unwrap_or_else(|| Self::Client.refusal())
            }
            Self::Upstream => reject::bad_answer(),
            Self::UpstreamSilent => reject::no_answer(),
        }
    }
}

/// Waits for the head of the final answer while the request goes up. Interim answers are passed on.
pub(super) async fn head(
    lane: &Lane<'_>,
    down: &mut Connection,
    up: &mut Connection,
    request: &mut Outgoing,
    meter: &Meter,
) -> Result<AnswerHead, Lost> {
    let mut stall = Stall::new(lane.proxy.config.stall_timeout);
    let mut wait = Wait {
        reader: AnswerReader::default(),
        interim: Vec::new(),
        interim_unflushed: false,
        upload_failed: false,
        pass_interim: request.version == Version::Http11,
        upgrade: request.upgrade,
    };
    poll_fn(|cx| {
        let polled = wait.poll(cx, down, up, (&mut request.flow, request.scrub.as_ref()));
        meter.set(request.flow.body().data_bytes(), 0);
        match polled {
            Poll::Pending if stall.poll(cx, &[request.flow.outbox()]) => {
                Poll::Ready(Err(Lost::Upstream))
            }
            polled => polled,
        }
    })
    .await
}

/// Ends an exchange in which a peer takes nothing of what is ready for it.
pub(super) struct Stall {
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    seen: Option<u64>,
}

impl Stall {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            timer: None,
            seen: None,
        }
    }

    /// Tells whether a peer takes nothing while none of the outboxes has moved for too long.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, outboxes: &[&Outbox]) -> bool {
        if !outboxes.iter().any(|outbox| outbox.is_blocked()) {
            (self.timer, self.seen) = (None, None);
            return false;
        }
        let now = Some(
            outboxes
                .iter()
                .map(|outbox| outbox.taken())
                .fold(0, u64::wrapping_add),
        );
        let deadline = Instant::now() + self.limit;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if now != self.seen {
            self.seen = now;
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(cx).is_ready()
    }
}

/// What was found in the input.
pub(super) enum Taken {
    Final(AnswerHead),
    /// Cleaned, and ready to be passed on.
    Interim(AnswerHead),
    Nothing,
}

/// Reads the heads of an answer: interim ones, within bounds, and the final one.
#[derive(Default)]
pub(super) struct AnswerReader {
    scanner: HeadScanner,
    interim_count: usize,
}

impl AnswerReader {
    /// Tells whether no head has come yet.
    pub(super) fn is_untouched(&self) -> bool {
        self.interim_count == 0
    }

    /// Takes a head that has arrived whole. A switch of protocols counts only where it may.
    pub(super) fn take(&mut self, up: &mut Connection, may_switch: bool) -> Result<Taken, Lost> {
        let block = match up.take_head(&mut self.scanner) {
            Ok(Some(block)) => block,
            Ok(None) => return Ok(Taken::Nothing),
            Err(ReadError::Malformed(_) | _) => return Err(Lost::Upstream),
        };
        self.scanner = HeadScanner::default();
        let mut answer = parse_answer(block).map_err(|_rule| Lost::Upstream)?;
        match answer.status {
            SWITCHING_PROTOCOLS if may_switch && upgrade::granted(&answer) => {
                Ok(Taken::Final(answer))
            }
            // A switch that nobody asked for, or before the request was through, is none.
            SWITCHING_PROTOCOLS => Err(Lost::Upstream),
            100..200 => {
                self.interim_count += 1;
                if self.interim_count > INTERIM_LIMIT {
                    return Err(Lost::Upstream);
                }
                answer_framing(&answer, false).map_err(|_rule| Lost::Upstream)?;
                clean_answer(&mut answer).map_err(|_rule| Lost::Upstream)?;
                Ok(Taken::Interim(answer))
            }
            _ => Ok(Taken::Final(answer)),
        }
    }
}

struct Wait {
    reader: AnswerReader,
    interim: Vec<u8>,
    /// Written, but perhaps not yet flushed.
    interim_unflushed: bool,
    /// The upstream takes no more of the request, but may still say why.
    upload_failed: bool,
    pass_interim: bool,
    upgrade: Upgrade,
}

impl Wait {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        down: &mut Connection,
        up: &mut Connection,
        (flow, scrub): (&mut Flow, Option<&Scrub>),
    ) -> Poll<Result<AnswerHead, Lost>> {
        self.poll_upload(cx, down, up, flow)?;
        loop {
            ready!(self.poll_interim(cx, down))?;
            match self.reader.take(up, self.may_switch(flow))? {
                Taken::Final(answer) => return Poll::Ready(Ok(answer)),
                Taken::Interim(mut answer) => {
                    if let Some(scrub) = scrub {
                        scrub.head(&mut answer);
                    }
                    if self.pass_interim {
                        answer.write(&mut self.interim);
                    }
                    continue;
                }
                Taken::Nothing => {}
            }
            match up.poll_read_answer(cx) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(_) if up.input.is_empty() && self.reader.is_untouched() => {
                    return Poll::Ready(Err(Lost::UpstreamSilent));
                }
                Poll::Ready(_) => return Poll::Ready(Err(Lost::Upstream)),
                Poll::Pending => return self.poll_gone(cx, down, flow),
            }
        }
    }

    /// Watches for the client's leaving while it has nothing to send and nothing comes for it.
    fn poll_gone(
        &self,
        cx: &mut Context<'_>,
        down: &mut Connection,
        flow: &Flow,
    ) -> Poll<Result<AnswerHead, Lost>> {
        if left(cx, down, flow.is_done(), self.upload_failed) {
            return Poll::Ready(Err(Lost::Client));
        }
        Poll::Pending
    }

    /// Moves the request on.
    fn poll_upload(
        &mut self,
        cx: &mut Context<'_>,
        down: &mut Connection,
        up: &mut Connection,
        flow: &mut Flow,
    ) -> Result<(), Lost> {
        if self.upload_failed || flow.is_done() {
            return Ok(());
        }
        match flow.poll(cx, down, up) {
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
            Poll::Ready(Err(FlowError::SenderGone)) => Err(Lost::Client),
            Poll::Ready(Err(FlowError::ReceiverGone(_))) => {
                self.upload_failed = true;
                Ok(())
            }
            Poll::Ready(Err(error @ FlowError::Malformed(_))) => Err(Lost::ClientBody(error)),
        }
    }

    fn poll_interim(
        &mut self,
        cx: &mut Context<'_>,
        down: &mut Connection,
    ) -> Poll<Result<(), Lost>> {
        while !self.interim.is_empty() {
            let count = ready!(down.poll_write(cx, &self.interim)).map_err(|_gone| Lost::Client)?;
            self.interim.drain(..count);
            self.interim_unflushed = true;
        }
        if self.interim_unflushed {
            ready!(down.poll_flush(cx)).map_err(|_gone| Lost::Client)?;
            self.interim_unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Tells whether the upstream may switch protocols: it was asked to, and has the whole request.
    fn may_switch(&self, flow: &Flow) -> bool {
        self.upgrade == Upgrade::WebSocket && flow.is_done()
    }
}

/// Tells whether the client has left while its request is not read any more: because all of it went
/// up, or because the upstream takes no more of it. In the second case the client has every right
/// to go on sending, and still waits for the answer that says why.
pub(super) fn left(
    cx: &mut Context<'_>,
    down: &mut Connection,
    upload_done: bool,
    upload_failed: bool,
) -> bool {
    if upload_done {
        down.poll_gone(cx).is_ready()
    } else {
        upload_failed && down.poll_closed(cx) == Poll::Ready(true)
    }
}

/// Sends the answer on, to its end or to the end of either side.
pub(super) async fn run(
    lane: &mut Lane<'_>,
    down: &mut Connection,
    mut lease: Lease,
    mut request: Outgoing,
    mut answer: AnswerHead,
    (record, meter): (&mut Record, &Meter),
) -> Result<After, Refusal> {
    let framing = answer_framing(&answer, request.is_head).map_err(|_rule| reject::bad_answer())?;
    let last_of_upstream = closes(&answer.fields, answer.version) || framing == Framing::UntilClose;
    let status = answer.status;
    clean_answer(&mut answer).map_err(|_rule| reject::bad_answer())?;
    let capture = request.capture.take();
    let plan = match capture.filter(|_| framing != Framing::None && may_have_tokens(&answer)) {
        None => plan(&request, &mut answer, framing, &mut lease.connection.input)?,
        Some(capture) => {
            let ends = (&mut *down, &mut lease.connection);
            let parts = (&mut answer, framing);
            // Boxed, so that every other exchange does not hold its room.
            let run = Box::pin(capture.run(lane, ends, &mut request, parts, (record, meter)));
            let whole = run.await?;
            Plan::counted(&mut answer, whole)
        }
    };
    // An answer that comes before the request is through is the last one of both connections.
    let early = !request.flow.is_done();
    let keep_alive = request.keep_alive
        && !early
        && framing != Framing::UntilClose
        && !lane.proxy.drain.is_leaving();
    let ends_with_the_connection = plan.sent == Framing::UntilClose;
    let mut flow = begin(answer, plan, keep_alive);
    if let Err(error) = flow.prime(&mut lease.connection) {
        tracing::debug!(%error, "an answer's body is malformed");
        return Err(reject::bad_answer());
    }
    if ends_with_the_connection {
        // Whatever ends the exchange early, a cut of its session included, must not pass for the
        // end of the body.
        down.reset_when_dropped(true);
    }
    let mut stall = Stall::new(lane.proxy.config.stall_timeout);
    let streamed = stream(
        down,
        &mut lease.connection,
        (&mut request.flow, &mut flow),
        &mut stall,
        meter,
    );
    let limit = lane.proxy.config.exchange_idle_timeout;
    let streamed = unless_silent(limit, meter, streamed).await;
    let ended = streamed.unwrap_or(Err((Decision::Aborted, "exchange_idle")));
    record.status(status);
    let after = match ended {
        Ok(()) => {
            if ends_with_the_connection {
                down.reset_when_dropped(false);
            }
            allowed(record, status);
            if !early && !last_of_upstream && request.upgrade == Upgrade::None {
                lease.give_back();
            }
            if keep_alive {
                After::KeepAlive
            } else {
                After::Close
            }
        }
        Err((decision, reason)) => {
            record.decision(decision, reason);
            After::Gone
        }
    };
    Ok(after)
}

/// How an answer's body is read, changed and written.
struct Plan {
    body: Body,
    change: Option<Box<dyn Transform>>,
    /// The body, where it was there whole and was changed at once.
    whole: Vec<u8>,
    sent: Framing,
}

impl Plan {
    /// Sends a body that is there whole.
    fn counted(answer: &mut AnswerHead, whole: Vec<u8>) -> Self {
        let length = whole.len();
        answer.fields.append("Content-Length", length.to_string());
        Self {
            body: Body::counted(length),
            change: None,
            whole,
            sent: Framing::Length(length as u64),
        }
    }
}

/// Decides how the body is written for this client, and brings the head's framing in line.
fn plan(
    request: &Outgoing,
    answer: &mut AnswerHead,
    framing: Framing,
    input: &mut BytesMut,
) -> Result<Plan, Refusal> {
    canonical_framing(&mut answer.fields);
    let change = match &request.scrub {
        Some(scrub) => {
            scrub.head(answer);
            let has_body = framing != Framing::None;
            has_body.then(|| scrub.body(answer)).transpose()?.flatten()
        }
        None => None,
    };
    let length = match framing {
        Framing::Length(length) => usize::try_from(length).ok(),
        _ => None,
    };
    let mut plan = Plan {
        body: Body::new(framing),
        change: None,
        whole: Vec::new(),
        sent: framing,
    };
    match change {
        None => {}
        Some(change) => match length.and_then(|length| input.get(..length)) {
            Some(body) if change.is_plain() => {
                plan.body = Body::counted(body.len());
                plan.whole = change.whole(body);
                input.advance(length.unwrap_or_default());
                let length = plan.whole.len().to_string();
                answer.fields.append("Content-Length", length);
                return Ok(plan);
            }
            _ => {
                plan.change = Some(change);
                plan.sent = Framing::Chunked;
                if framing != Framing::Chunked {
                    answer.fields.append("Transfer-Encoding", &b"chunked"[..]);
                }
            }
        },
    }
    if plan.sent == Framing::Chunked && request.version == Version::Http10 {
        plan.sent = Framing::UntilClose;
        plan.body = plan.body.without_framing();
        answer.fields.retain(|name, _| {
            !name.eq_ignore_ascii_case(b"transfer-encoding")
                && !name.eq_ignore_ascii_case(b"trailer")
        });
    }
    Ok(plan)
}

/// Writes the head of the answer for this client.
fn begin(mut answer: AnswerHead, plan: Plan, keep_alive: bool) -> Flow {
    if !keep_alive {
        answer.fields.append("Connection", &b"close"[..]);
    }
    let room = answer.fields.put_bytes() + plan.whole.len() + 64;
    let mut text = Vec::with_capacity(answer.fields.block().len() + room);
    answer.write(&mut text);
    text.extend_from_slice(&plan.whole);
    match plan.change {
        None => Flow::new(text, plan.body),
        Some(change) => {
            let chunked = plan.sent == Framing::Chunked;
            Flow::transformed(text, plan.body, change, chunked)
        }
    }
}

/// Moves both bodies until the answer is through. What is left of the request then is not waited
/// for: the upstream has answered without it.
async fn stream(
    down: &mut Connection,
    up: &mut Connection,
    (upload, download): (&mut Flow, &mut Flow),
    stall: &mut Stall,
    meter: &Meter,
) -> Result<(), (Decision, &'static str)> {
    let mut upload_failed = false;
    poll_fn(|cx| {
        if !upload.is_done() && !upload_failed {
            match upload.poll(cx, down, up) {
                Poll::Ready(Err(FlowError::SenderGone)) => return Poll::Ready(Err(CLIENT_GONE)),
                Poll::Ready(Err(FlowError::Malformed(_))) => {
                    return Poll::Ready(Err((Decision::Denied, "bad_request_body")));
                }
                Poll::Ready(Err(FlowError::ReceiverGone(_))) => upload_failed = true,
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        let polled = download.poll(cx, up, down).map_err(|error| match error {
            FlowError::SenderGone => (Decision::Failed, "upstream_cut"),
            FlowError::ReceiverGone(_) => CLIENT_GONE,
            FlowError::Malformed(_) => (Decision::Failed, "bad_answer_body"),
        });
        meter.set(upload.body().data_bytes(), download.body().data_bytes());
        if polled.is_ready() {
            return polled;
        }
        if left(cx, down, upload.is_done(), upload_failed) {
            return Poll::Ready(Err(CLIENT_GONE));
        }
        if stall.poll(cx, &[upload.outbox(), download.outbox()]) {
            return Poll::Ready(Err((Decision::Aborted, "stalled")));
        }
        Poll::Pending
    })
    .await
}
