//! HTTP/2 from the workload, towards upstreams that speak HTTP/2 or HTTP/1.1.
//!
//! hyper speaks the protocol; every head becomes the same [`crate::wire::RequestHead`] that the
//! relay reads and goes through the same checks and the same swap. One stream is one exchange with
//! one record. Streams are tasks that end with their tunnel. Called by the tunnel after ALPN.

mod answer;
mod crossing;
mod ledger;
mod pace;
mod upload;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

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
use crate::proxy::context::{Lane, Lanes};
use crate::proxy::exchange::{Admitted, admit, repeatable};
use crate::proxy::reject::{self, Refusal};
use crate::upstream::{BodyError, RequestBody, Route, SendError, StreamLease};
use crate::wire::{
    AnswerHead, Connection, RequestHead, answer_from_parts, answer_to_parts, clean_answer,
    is_trailers_wanted, request_from_parts, request_to_parts,
};

use answer::{AnswerBody, Source};
use crossing::Crossing;
use ledger::Ledger;
use pace::{Activity, Streams};
use upload::{Fault, UploadBody};

/// How many streams a workload may have open at once on one connection.
const STREAM_LIMIT: u32 = 100;
/// How much of one request may be under way unread, in bytes.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// How much of all requests of one connection may be under way unread, in bytes.
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// How much of one answer is held for a workload that does not take it, in bytes.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// The largest list of fields, in bytes, as HTTP/2 counts them: as much as a
/// head of HTTP/1.1 may have.
const HEADER_LIST_BYTES: u32 = 64 * 1024;
/// How many streams a workload may reset before we have looked at them.
const PENDING_RESETS: usize = 20;
/// How many streams a workload may make us reset by its errors.
const ERROR_RESETS: usize = 64;

/// Serves a connection on which HTTP/2 was agreed on, to its end.
pub(super) async fn run(lanes: Lanes, down: Connection) {
    let config = lanes.proxy.config;
    let drain = lanes.proxy.drain.clone();
    let activity = Arc::new(Activity::default());
    let bridge = Arc::new(Bridge {
        lanes,
        activity: Arc::clone(&activity),
    });
    let cut = CancellationToken::new();
    let _ends_streams = cut.clone().drop_guard();
    let mut builder = Builder::new(Streams::new(cut, config.stall_timeout));
    builder
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .max_concurrent_streams(STREAM_LIMIT)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(HEADER_LIST_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(ERROR_RESETS);
    let service = service_fn(move |request| Arc::clone(&bridge).serve(request));
    let io = TokioIo::new(down.into_replay());
    let mut connection = pin!(builder.serve_connection(io, service));
    tokio::select! {
        biased;
        ended = connection.as_mut() => return note(ended),
        () = activity.idle(config.first_byte_timeout, config.idle_timeout) => {}
        () = drain.draining() => {}
    }
    // No new streams; those that are open go on, and those that were under way when it was said. A
    // client that does not close is not waited for.
    connection.as_mut().graceful_shutdown();
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => return note(ended),
            () = activity.all_ended() => {}
        }
        if let Ok(ended) = timeout(config.linger_timeout, connection.as_mut()).await {
            return note(ended);
        }
        if !activity.is_any_open() {
            return;
        }
    }
}

fn note(ended: Result<(), hyper::Error>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP/2 connection of a workload ended");
    }
}

/// Why a stream has no answer of the upstream's.
enum Failure {
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
    body: Option<Incoming>,
    trailers_wanted: bool,
    bodyless: bool,
    repeatable: bool,
}

/// What the streams of one connection have in common.
struct Bridge {
    lanes: Lanes,
    activity: Arc<Activity>,
}

impl Bridge {
    /// Serves one stream.
    async fn serve(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<AnswerBody>, BodyError> {
        let mut lane = self.lanes.lane();
        let mut ledger = Ledger::begin(&lane, self.activity.enter());
        let is_head = request.method() == Method::HEAD;
        let (parts, body) = request.into_parts();
        let answered = Box::pin(attempt(&mut lane, &mut ledger, parts, body)).await;
        self.lanes.keep(&lane);
        match answered {
            Ok((parts, source)) => {
                let body = AnswerBody::new(source, ledger);
                Ok(Response::from_parts(parts, body))
            }
            Err(Failure::Refused(refusal)) => {
                if refusal.decision() == Decision::Denied {
                    let counters = self.lanes.handle.counters();
                    counters.denied.fetch_add(1, Ordering::Relaxed);
                }
                ledger.refused(&refusal);
                let (parts, text) = refusal.response().into_parts();
                let text = if is_head { Bytes::new() } else { text };
                let body = AnswerBody::new(Source::Own(text), ledger);
                Ok(Response::from_parts(parts, body))
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
) -> Result<(response::Parts, Source), Failure> {
    let record = ledger.record();
    record.request(parts.method.as_str(), parts.uri.path());
    check_scheme(lane, &parts)?;
    let trailers_wanted = is_trailers_wanted(&parts);
    let mut head = request_from_parts(&parts)?;
    drop(parts);
    let Admitted { framing, view, .. } = admit(lane, &mut head, None, record)?;
    let bodyless = body.is_end_stream();
    let outgoing = Outgoing {
        repeatable: bodyless && repeatable(head.method()),
        head,
        body: Some(body).filter(|_| !bodyless),
        trailers_wanted,
        bodyless,
    };
    ledger.leaves(lane);
    let upstream = &lane.proxy.upstream;
    let route = upstream.route(lane.handle.pool(), view.grant()).await;
    let (answer, source) = match route.map_err(|error| no_route(&error))? {
        Route::Http1(lease) => {
            let crossing = Crossing::new(outgoing, framing, ledger.meter());
            crossing.run(lane, &view, *lease, ledger).await?
        }
        Route::Http2(place) => over_http2(lane, &view, place, outgoing, ledger).await?,
    };
    let counters = lane.handle.counters();
    counters.exchanges.fetch_add(1, Ordering::Relaxed);
    ledger.record().status(answer.status);
    Ok((
        answer_to_parts(&answer).map_err(|_rule| reject::bad_answer())?,
        source,
    ))
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
    let mut tries = 0;
    loop {
        ledger.record().address(place.address());
        let reused = place.is_reused();
        tries += 1;
        match place.send(request).await {
            Ok((answer, taken)) => {
                let (parts, body) = answer.into_parts();
                let mut head = answer_from_parts(&parts).map_err(|_rule| reject::bad_answer())?;
                clean_answer(&mut head).map_err(|_rule| reject::bad_answer())?;
                return Ok((head, Source::Http2(body, taken)));
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
            Err(SendError::Reset(reason)) => return Err(Failure::Reset(reason)),
            Err(SendError::Unsent(_)) => return Err(reject::no_answer().into()),
            Err(SendError::Lost(error)) => {
                tracing::debug!(%error, reused, "no answer over HTTP/2");
                return Err(reject::no_answer().into());
            }
        }
        let upstream = &lane.proxy.upstream;
        let route = upstream.route_fresh(lane.handle.pool(), view.grant()).await;
        place = match route.map_err(|error| no_route(&error))? {
            Route::Http2(place) => place,
            // It changed its mind about the protocol in the middle of one request.
            Route::Http1(_) => return Err(reject::no_answer().into()),
        };
    }
}

/// Tells the workload that its body was at fault, or nobody where it gave its stream up.
fn at_fault(ledger: &mut Ledger) -> Failure {
    match ledger.fault() {
        Some(Fault::Broken(rule)) => rule.into(),
        Some(Fault::Gone) | None => gone(ledger),
    }
}

/// Notes that the workload gave its stream up.
fn gone(ledger: &mut Ledger) -> Failure {
    ledger.settle(Decision::Aborted, "client_gone");
    Failure::Reset(h2::Reason::CANCEL)
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
