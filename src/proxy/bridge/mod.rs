//! HTTP/2 from the workload, towards upstreams that speak HTTP/2 or HTTP/1.1.
//!
//! hyper speaks the protocol; every head becomes the same [`crate::wire::RequestHead`] that the
//! relay reads and goes through the same checks and the same swap. One stream is one exchange with
//! one record. Streams are tasks that end with their tunnel. Called by the tunnel after ALPN.

mod answer;
mod changed;
mod crossing;
mod feed;
mod gather;
mod ledger;
mod pace;
mod pieces;
mod upload;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, Response, response};
use http_body::Body as _;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::audit::Decision;
use crate::policy::Scheme;
use crate::proxy::body::BodySwapping;
use crate::proxy::capture;
use crate::proxy::capture::Capture;
use crate::proxy::context::{Lane, Lanes};
use crate::proxy::deadline::{Silent, shorter, unless_silent};
use crate::proxy::exchange::{Admitted, admit, check_length, check_unchanged, repeatable};
use crate::proxy::reject::{self, Refusal};
use crate::proxy::scrub::Scrub;
use crate::upstream::{BodyError, RequestBody, Route, SendError, StreamLease};
use crate::wire::{
    AnswerHead, Connection, Framing, RequestHead, answer_from_parts, answer_to_parts, clean_answer,
    is_trailers_wanted, request_framing, request_from_parts, request_to_parts,
};

use answer::{AnswerBody, Source};
use changed::Changed;
use crossing::Crossing;
use gather::Gather;
use ledger::Ledger;
use pace::{Activity, Streams};
use pieces::Pieces;
use upload::{Fault, UploadBody};

/// How much of one answer is held for a workload that does not take it, in bytes.
const SEND_BUFFER_BYTES: usize = 16 * 1024;

/// Serves a connection on which HTTP/2 was agreed on, to its end.
pub(super) async fn run(lanes: Lanes, down: Connection) {
    let config = lanes.proxy.config;
    let drain = lanes.proxy.drain.clone();
    let limits = config.h2;
    let activity = Arc::new(Activity::new(limits.given_up));
    let bridge = Arc::new(Bridge {
        lanes,
        activity: Arc::clone(&activity),
    });
    let cut = CancellationToken::new();
    let _ends_streams = cut.clone().drop_guard();
    let streams = Streams::new(cut, config.stall_timeout, drain.clone());
    let mut builder = Builder::new(streams);
    builder
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .max_concurrent_streams(limits.streams)
        .initial_stream_window_size(limits.stream_window_bytes)
        .initial_connection_window_size(limits.connection_window_bytes)
        .max_header_list_size(limits.header_list_bytes)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_pending_accept_reset_streams(limits.pending_resets)
        .max_local_error_reset_streams(limits.error_resets);
    // What is noted here is noted even if the stream is cut before its task runs.
    let service = service_fn(move |request| {
        let ledger = bridge.begin(&request);
        Arc::clone(&bridge).serve(request, ledger)
    });
    let io = TokioIo::new(down.into_replay());
    let mut connection = pin!(builder.serve_connection(io, service));
    tokio::select! {
        biased;
        ended = connection.as_mut() => return note(&activity, ended),
        () = activity.idle(config.first_byte_timeout, config.idle_timeout) => {}
        () = drain.leaving() => {}
        () = activity.wasted() => return tracing::debug!("too many streams were given up"),
    }
    // No new streams; those that are open go on, and more may be on their way.
    connection.as_mut().graceful_shutdown();
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => return note(&activity, ended),
            () = activity.all_ended() => {}
            () = activity.wasted() => return,
        }
        if drain.is_draining() {
            // The last answers may still be on their way; the drain's own deadline ends this.
            return note(&activity, connection.await);
        }
        // A client that does not close is not waited for.
        match timeout(config.linger_timeout, connection.as_mut()).await {
            Ok(ended) => return note(&activity, ended),
            Err(_elapsed) if activity.is_busy() => {}
            Err(_elapsed) => return,
        }
    }
}

fn note(activity: &Activity, ended: Result<(), hyper::Error>) {
    activity.leave();
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP/2 connection of a workload ended");
    }
}

/// Why a stream has no answer of the upstream's.
enum Failure {
    /// The workload gave the exchange up, or its session is over.
    Gone,
    /// We answer ourselves.
    Refused(Refusal),
    /// The upstream reset the exchange: the workload's stream ends the same way.
    Reset(h2::Reason),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<crate::wire::Error> for Failure {
    fn from(error: crate::wire::Error) -> Self {
        Self::Refused(error.into())
    }
}

/// A request that was checked and is ready to leave.
struct Outgoing {
    head: RequestHead,
    /// The body; none where the request has none, or where it was sent already.
    body: Option<Pieces>,
    trailers_wanted: bool,
    bodyless: bool,
    repeatable: bool,
}

/// An answer that is ready to be sent on.
struct Answered {
    parts: response::Parts,
    source: Source,
    change: Option<Changed>,
}

/// What the streams of one connection have in common.
struct Bridge {
    lanes: Lanes,
    activity: Arc<Activity>,
}

impl Bridge {
    /// Begins the record of a stream.
    fn begin(&self, request: &Request<Incoming>) -> Ledger {
        let mut ledger = Ledger::begin(&self.lanes.lane(), self.activity.enter());
        let record = ledger.record();
        record.request(request.method().as_str(), request.uri().path());
        ledger
    }

    /// Serves one stream.
    async fn serve(
        self: Arc<Self>,
        request: Request<Incoming>,
        mut ledger: Ledger,
    ) -> Result<Response<AnswerBody>, BodyError> {
        ledger.start();
        let mut lane = self.lanes.lane();
        let is_head = request.method() == Method::HEAD;
        let idle_timeout = lane.proxy.config.exchange_idle_timeout;
        let (parts, body) = request.into_parts();
        let answered = Box::pin(attempt(&mut lane, &mut ledger, parts, body)).await;
        self.lanes.keep(&lane);
        match answered {
            Ok(answered) => {
                let body = AnswerBody::new(answered.source, answered.change, idle_timeout, ledger);
                Ok(Response::from_parts(answered.parts, body))
            }
            Err(Failure::Refused(refusal)) => {
                if refusal.decision() == Decision::Denied {
                    let counters = self.lanes.handle.counters();
                    counters.denied.fetch_add(1, Ordering::Relaxed);
                }
                ledger.refused(&refusal);
                let (parts, text) = refusal.response().into_parts();
                let text = if is_head { Bytes::new() } else { text };
                let body = AnswerBody::new(Source::Own(text), None, None, ledger);
                Ok(Response::from_parts(parts, body))
            }
            Err(Failure::Gone) => {
                ledger.settle(Decision::Aborted, "client_gone");
                Err(reset_error(h2::Reason::CANCEL))
            }
            Err(Failure::Reset(reason)) => {
                ledger.settle(Decision::Failed, "upstream_reset");
                Err(reset_error(reason))
            }
        }
    }
}

/// Makes the error that resets a stream. A reset without an error would pass for an end.
fn reset_error(reason: h2::Reason) -> BodyError {
    let reason = match reason {
        h2::Reason::NO_ERROR => h2::Reason::INTERNAL_ERROR,
        reason => reason,
    };
    h2::Error::from(reason).into()
}

async fn attempt(
    lane: &mut Lane<'_>,
    ledger: &mut Ledger,
    parts: Parts,
    body: Incoming,
) -> Result<Answered, Failure> {
    // Before anything else: what waits for its turn is checked against the session as it then is.
    ledger.wait_turn(lane).await?;
    check_scheme(lane, &parts)?;
    let limits = lane.proxy.config;
    let trailers_wanted = is_trailers_wanted(&parts);
    let mut head = request_from_parts(&parts, &limits.head)?;
    drop(parts);
    let Admitted {
        framing,
        view,
        upgrade,
        scrub,
        capture,
    } = admit(lane, &mut head, None, ledger.record())?;
    check_length(framing, limits.body)?;
    // Interim answers are absorbed here: neither side may wait for one.
    head.fields
        .retain(|name, _| !name.eq_ignore_ascii_case(b"expect"));
    let bodyless = body.is_end_stream();
    let mut body = Some(Pieces::new(body, limits.body, ledger.meter())).filter(|_| !bodyless);
    let mut framing = framing;
    if let Some(body) = &mut body
        && let Some(swapping) = BodySwapping::of(lane, &head, (&view, upgrade), ledger.record())?
    {
        // All of it is ours to wait for: no model thinks meanwhile.
        let ahead = swapped(swapping, &mut head, framing, body);
        framing = timeout(limits.stall_timeout, ahead)
            .await
            .map_err(|_elapsed| reject::silent(false))??;
        check_unchanged(lane, &view)?;
    }
    let outgoing = Outgoing {
        repeatable: bodyless && repeatable(head.method()),
        head,
        body,
        trailers_wanted,
        bodyless,
    };
    ledger.leaves(lane);
    let upstream = &lane.proxy.upstream;
    let route = upstream.route(lane.handle.pool(), view.grant()).await;
    let (mut answer, mut source) = match route.map_err(|error| no_route(&error))? {
        Route::Http1(lease) => {
            let crossing = Crossing::new(outgoing, framing);
            crossing.run(lane, &view, *lease, ledger).await?
        }
        Route::Http2(place) => over_http2(lane, &view, place, outgoing, ledger).await?,
    };
    let has_body = !answer::is_over(&source);
    let change = match capture.filter(|_| has_body && capture::may_have_tokens(&answer)) {
        None => scrubbed(scrub, &mut answer, &source)?,
        Some(capture) => {
            let run = captured(lane, ledger, &capture, (&mut answer, source), scrub);
            source = Box::pin(run).await?;
            None
        }
    };
    let counters = lane.handle.counters();
    counters.exchanges.fetch_add(1, Ordering::Relaxed);
    ledger.record().status(answer.status);
    Ok(Answered {
        parts: answer_to_parts(&answer).map_err(|_rule| reject::bad_answer())?,
        source,
        change,
    })
}

/// Lets the body of a request go through what it is to go through, and brings its head in line.
/// Returns the framing that the head states then.
async fn swapped(
    swapping: BodySwapping,
    head: &mut RequestHead,
    framing: Framing,
    body: &mut Pieces,
) -> Result<Framing, Failure> {
    let Some(length) = BodySwapping::whole(framing) else {
        body.change(swapping.stream(head));
        return Ok(Framing::None);
    };
    let whole = body.read(length).await.ok_or(Failure::Gone)?;
    if let Some(transform) = swapping.weigh(head, &whole).await? {
        body.change(transform);
    }
    Ok(request_framing(head)?)
}

/// Scrubs the head of an answer, and prepares to scrub its body.
fn scrubbed(
    scrub: Option<Scrub>,
    answer: &mut AnswerHead,
    source: &Source,
) -> Result<Option<Changed>, Refusal> {
    let Some(scrub) = scrub else {
        return Ok(None);
    };
    scrub.head(answer);
    if answer::is_over(source) {
        return Ok(None);
    }
    Ok(scrub.body(answer)?.map(|change| Changed::new(change)))
}

/// Reads the answer of a token endpoint whole, and captures from it.
async fn captured(
    lane: &mut Lane<'_>,
    ledger: &mut Ledger,
    capture: &Capture,
    (answer, mut source): (&mut AnswerHead, Source),
    scrub: Option<Scrub>,
) -> Result<Source, Failure> {
    let mut gather = capture::Gather::new(answer)?;
    let limit = lane.proxy.config.stall_timeout;
    let whole = async {
        while let Some(frame) = poll_fn(|cx| source.poll_frame(cx, ledger)).await {
            let frame = frame.map_err(|_told| reject::bad_answer())?;
            if let Some(data) = frame.data_ref() {
                gather.push(data)?;
            }
        }
        Ok::<_, Refusal>(())
    };
    timeout(limit, whole)
        .await
        .map_err(|_elapsed| reject::silent(true))??;
    let told = (ledger.record(), scrub);
    let body = capture.settle(lane, answer, gather.finish()?, told).await?;
    let length = body.len().to_string();
    answer.fields.append("content-length", length);
    Ok(Source::Own(body.into()))
}

/// Returns how long an answer is waited for.
fn patience(lane: &Lane<'_>) -> Option<Duration> {
    let limits = &lane.proxy.config;
    shorter(limits.answer_timeout, limits.exchange_idle_timeout)
}

/// Refuses a scheme that is not the tunnel's.
fn check_scheme(lane: &Lane<'_>, parts: &Parts) -> Result<(), Refusal> {
    let expected = match lane.scheme {
        Scheme::Http => "http",
        Scheme::Https => "https",
    };
    // The library checks the scheme and drops it where there is no `:authority`.
    let unknown = parts.uri.authority().is_none();
    if unknown || parts.uri.scheme_str() == Some(expected) {
        return Ok(());
    }
    let message = ":scheme is not the tunnel's";
    Err(Refusal::client(400, "bad_scheme", message))
}

fn no_route(error: &crate::upstream::Error) -> Refusal {
    tracing::debug!(
        error = error as &dyn std::error::Error,
        "no connection upstream"
    );
    Refusal::from(error)
}

/// Sends a request over a shared connection. It is sent again only if no byte of it was sent, or it
/// is bodyless and either the upstream says that it was not processed, or it is idempotent and there
/// is no answer yet.
async fn over_http2(
    lane: &Lane<'_>,
    view: &crate::session::HostView,
    mut place: StreamLease,
    mut outgoing: Outgoing,
    ledger: &mut Ledger,
) -> Result<(AnswerHead, Source), Failure> {
    let mut request = to_http2(lane, &mut outgoing, ledger)?;
    let meter = ledger.meter();
    let mut tries = 0;
    loop {
        ledger.record().address(place.address());
        let reused = place.is_reused();
        tries += 1;
        let answer = place.send(request, ledger.over());
        let answer = unless_silent(patience(lane), &meter, answer).await;
        match answer.map_err(|Silent| reject::silent(true))? {
            Ok((answer, taken)) => {
                let (parts, body) = answer.into_parts();
                let mut head = answer_from_parts(&parts).map_err(|_rule| reject::bad_answer())?;
                clean_answer(&mut head).map_err(|_rule| reject::bad_answer())?;
                return Ok((head, Source::Http2(Gather::new(body), taken)));
            }
            Err(SendError::Unsent(again)) if tries < 3 => request = *again,
            Err(_) if ledger.fault().is_some() => return Err(at_fault(ledger)),
            // It says of itself that it was not processed (RFC 9113 §8.7).
            Err(SendError::Reset(h2::Reason::REFUSED_STREAM)) if tries < 2 && outgoing.bodyless => {
                request = to_http2(lane, &mut outgoing, ledger)?;
            }
            Err(SendError::Lost(_)) if tries < 2 && outgoing.repeatable => {
                request = to_http2(lane, &mut outgoing, ledger)?;
            }
            Err(SendError::Malformed) => return Err(reject::bad_answer().into()),
            Err(SendError::Reset(reason)) => return Err(Failure::Reset(reason)),
            Err(SendError::Unsent(_)) => return Err(reject::no_answer().into()),
            Err(SendError::Lost(error)) => {
                tracing::debug!(%error, reused, "no answer over HTTP/2");
                return Err(reject::no_answer().into());
            }
        }
        if lane.handle.is_over() {
            return Err(Failure::Gone);
        }
        let upstream = &lane.proxy.upstream;
        let route = upstream.route(lane.handle.pool(), view.grant()).await;
        place = match route.map_err(|error| no_route(&error))? {
            Route::Http2(place) => place,
            // It changed its mind about the protocol in the middle of one request.
            Route::Http1(_) => return Err(reject::no_answer().into()),
        };
    }
}

/// Tells the workload that its body was at fault, or nobody where it gave its stream up.
fn at_fault(ledger: &Ledger) -> Failure {
    match ledger.fault() {
        Some(Fault::Broken(rule)) => rule.into(),
        Some(Fault::Gone) | None => Failure::Gone,
    }
}

fn to_http2(
    lane: &Lane<'_>,
    outgoing: &mut Outgoing,
    ledger: &mut Ledger,
) -> Result<Request<RequestBody>, Refusal> {
    let wanted = outgoing.trailers_wanted;
    let parts = request_to_parts(&outgoing.head, &lane.host_field, wanted)?;
    let body: RequestBody = match outgoing.body.take() {
        Some(body) => UnsyncBoxBody::new(UploadBody::new(body, ledger)),
        None => UnsyncBoxBody::new(Empty::new().map_err(|never| match never {})),
    };
    Ok(Request::from_parts(parts, body))
}
