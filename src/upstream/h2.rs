//! HTTP/2 connections of one session, shared by its exchanges with one host.
//!
//! One connection carries many exchanges at once; another is opened when the upstream's stream
//! limit is used up. The tasks that drive a connection end when the pool is closed, whatever runs
//! on them, and the one that sends a body ends with its exchange. Nothing here dials: `mod` does,
//! once for all who wait. Called by the pool.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Error;
use crate::wire::Io;

/// How much of one answer may be under way unread, in bytes: a stream of tokens needs little, a
/// download over 50 ms gets 40 Mbit/s.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// How much of all answers of one connection may be under way unread, in bytes. The library ends a
/// connection on which small frames wait unread whose overhead, 256 bytes less their length each, is
/// over half of this: sixteen windows of a stream, so that one stream of frames of 29 bytes or
/// more cannot end the others by not being read.
const CONNECTION_WINDOW_BYTES: u32 = 16 * STREAM_WINDOW_BYTES;
/// How much of one request is held for an upstream that does not take it, in bytes.
const SEND_BUFFER_BYTES: usize = 16 * 1024;
/// The largest list of fields, in bytes, as HTTP/2 counts them: as much as a
/// head of HTTP/1.1 may have.
const HEADER_LIST_BYTES: u32 = 64 * 1024;
/// How many streams the upstream may make us reset by its errors before the connection ends.
const ERROR_RESETS: usize = 64;

/// Any error of a body.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// The body of a request, whatever it is made of.
pub type RequestBody = UnsyncBoxBody<Bytes, BodyError>;

tokio::task_local! {
    /// What ends the task before its time.
    static END: Arc<End>;
}

/// Where a task that sends the body of a request learns what ends it. The library keeps a piece of
/// the body while the upstream takes nothing, and does not ask the body again.
#[derive(Debug, Default)]
struct End {
    given: Mutex<Option<CancellationToken>>,
    known: Notify,
}

impl End {
    fn give(&self, over: &CancellationToken) {
        *lock(&self.given) = Some(over.clone());
        self.known.notify_one();
    }

    async fn comes(&self) {
        loop {
            let given = lock(&self.given).clone();
            match given {
                Some(over) => return over.cancelled().await,
                None => self.known.notified().await,
            }
        }
    }
}

/// The body of a request on its way: its exchange ends it, and its place is taken until it ended.
struct Sending {
    body: RequestBody,
    over: CancellationToken,
    asked: bool,
    tied: bool,
    _place: Taken,
}

impl Body for Sending {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if !this.tied {
            this.tied = END.try_with(|end| end.give(&this.over)).is_ok();
            // The first time it is the task of the whole connection that asks, which must not be
            // kept: a body that is not ready gets a task of its own.
            if !this.tied && !std::mem::replace(&mut this.asked, true) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        Pin::new(&mut this.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Spawns the tasks of a connection, so that they end with their pool.
#[derive(Clone, Debug)]
struct UntilCut(CancellationToken);

impl UntilCut {
    /// Spawns the task that drives the connection itself.
    fn drive(&self, task: impl Future<Output = ()> + Send + 'static) {
        let cut = self.0.clone();
        drop(tokio::spawn(async move {
            tokio::select! {
                biased;
                () = cut.cancelled() => {}
                () = task => {}
            }
        }));
    }
}

impl<F> Executor<F> for UntilCut
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        let end = Arc::new(End::default());
        let task = END.scope(Arc::clone(&end), task);
        self.drive(async move {
            tokio::select! {
                biased;
                () = end.comes() => {}
                () = task => {}
            }
        });
    }
}

/// How busy a connection is.
#[derive(Debug)]
struct Load {
    streams: AtomicUsize,
    /// The upstream's limit of streams.
    most: AtomicUsize,
    idle_since: Mutex<Instant>,
    /// Nothing new goes over it: the upstream has said so, or it failed.
    retired: AtomicBool,
}

impl Load {
    fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }
}

/// A connection that several exchanges share.
#[derive(Debug)]
pub(super) struct Shared {
    sender: SendRequest<Sending>,
    address: SocketAddr,
    load: Arc<Load>,
}

impl Shared {
    /// Speaks HTTP/2 over a connection on which it was agreed. The connection is driven by a task of
    /// its own until its last exchange ends and the pool lets go of it, or `cut` comes.
    pub(super) async fn open(
        io: Io,
        address: SocketAddr,
        cut: &CancellationToken,
    ) -> Result<Self, Error> {
        let executor = UntilCut(cut.clone());
        let mut builder = Builder::new(executor.clone());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(HEADER_LIST_BYTES)
            .max_send_buf_size(SEND_BUFFER_BYTES)
            .max_local_error_reset_streams(ERROR_RESETS);
        let (sender, connection) = builder
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| Error::Http2(Box::new(error)))?;
        let load = Arc::new(Load {
            streams: AtomicUsize::new(0),
            most: AtomicUsize::new(connection.current_max_send_streams()),
            idle_since: Mutex::new(Instant::now()),
            retired: AtomicBool::new(false),
        });
        let known = Arc::clone(&load);
        let mut connection = Box::pin(connection);
        executor.drive(async move {
            let driven = std::future::poll_fn(|cx| {
                let polled = connection.as_mut().poll(cx);
                if polled.is_pending() {
                    let most = connection.current_max_send_streams();
                    known.most.store(most, Ordering::Relaxed);
                }
                polled
            });
            if let Err(error) = driven.await {
                tracing::debug!(%error, "an HTTP/2 connection upstream failed");
            }
        });
        Ok(Self {
            sender,
            address,
            load,
        })
    }

    /// Tells whether the connection can take exchanges, now or later.
    pub(super) fn is_open(&self) -> bool {
        !self.sender.is_closed() && !self.load.retired.load(Ordering::Relaxed)
    }

    /// Tells whether the connection has carried nothing for a time.
    pub(super) fn is_idle_for(&self, time: Duration) -> bool {
        let since = *lock(&self.load.idle_since);
        self.load.streams.load(Ordering::Acquire) == 0 && since.elapsed() >= time
    }

    /// Returns how many more exchanges the upstream allows at once.
    pub(super) fn room(&self) -> usize {
        let most = self.load.most.load(Ordering::Relaxed);
        most.saturating_sub(self.streams())
    }

    /// Returns how many exchanges it carries, those that wait for their turn included.
    pub(super) fn streams(&self) -> usize {
        self.load.streams.load(Ordering::Acquire)
    }

    /// Joins the connection with one more exchange.
    pub(super) fn join(&self, reused: bool) -> StreamLease {
        self.load.streams.fetch_add(1, Ordering::AcqRel);
        StreamLease {
            sender: self.sender.clone(),
            address: self.address,
            reused,
            place: Taken(Arc::new(Place(Arc::clone(&self.load)))),
        }
    }
}

/// Counts one exchange on a connection for as long as it, or a copy of it, lives.
#[derive(Clone, Debug)]
pub struct Taken(Arc<Place>);

#[derive(Debug)]
struct Place(Arc<Load>);

impl Drop for Place {
    fn drop(&mut self) {
        *lock(&self.0.idle_since) = Instant::now();
        self.0.streams.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Says why there is no answer to a request that was given to a shared connection.
pub enum SendError {
    /// What the upstream said breaks a rule of HTTP/2.
    Malformed,
    /// No byte of the request was sent; here it is again.
    Unsent(Box<Request<RequestBody>>),
    /// The upstream reset the exchange, for this reason, or left it out of its last ones.
    Reset(h2::Reason),
    /// The connection failed, or ended, before an answer.
    Lost(hyper::Error),
}

impl std::fmt::Debug for SendError {
    /// Names the variant only: a request has real values, and an error may quote what it was about.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Malformed => "Malformed",
            Self::Unsent(_) => "Unsent",
            Self::Reset(_) => "Reset",
            Self::Lost(_) => "Lost",
        })
    }
}

/// A place for one exchange on a shared connection.
#[derive(Debug)]
pub struct StreamLease {
    sender: SendRequest<Sending>,
    address: SocketAddr,
    reused: bool,
    place: Taken,
}

impl StreamLease {
    /// Returns the address that was dialled.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Tells whether the connection carried an exchange before.
    pub fn is_reused(&self) -> bool {
        self.reused
    }

    /// Sends a request and waits for the head of its answer; interim answers are absorbed. The place
    /// that comes with the answer is kept until the answer's body has ended. What is not sent of the
    /// request when `over` is cancelled is not sent any more, and its stream is reset.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn send(
        mut self,
        request: Request<RequestBody>,
        over: CancellationToken,
    ) -> Result<(Response<Incoming>, Taken), SendError> {
        let place = self.place.clone();
        let request = request.map(|body| Sending {
            body,
            over,
            asked: false,
            tied: false,
            _place: place,
        });
        let mut failed = match self.sender.try_send_request(request).await {
            Ok(answer) => return Ok((answer, self.place)),
            Err(failed) => failed,
        };
        let error = match failed.take_message() {
            Some(request) => SendError::Unsent(Box::new(request.map(|sending| sending.body))),
            None => lost(failed.into_error(), &self.place.0.0),
        };
        if matches!(error, SendError::Unsent(_)) {
            self.place.0.0.retire();
        }
        Err(error)
    }
}

fn lost(error: hyper::Error, load: &Load) -> SendError {
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        if let Some(cause) = cause.downcast_ref::<h2::Error>() {
            let remote = cause.is_remote();
            return match cause.reason() {
                Some(reason) if remote && cause.is_reset() => SendError::Reset(reason),
                // A GOAWAY in good order ends only the streams that it left out: they were not
                // processed. One that reports an error is not believed.
                Some(h2::Reason::NO_ERROR) if remote && cause.is_go_away() => {
                    load.retire();
                    SendError::Reset(h2::Reason::REFUSED_STREAM)
                }
                Some(_) if cause.is_library() && cause.is_reset() => SendError::Malformed,
                // Ours: the workload gave it up. The connection is as good as before.
                _ if cause.is_reset() => SendError::Lost(error),
                _ => {
                    load.retire();
                    SendError::Lost(error)
                }
            };
        }
        source = cause.source();
    }
    load.retire();
    SendError::Lost(error)
}

/// One dial at a time to a host whose protocol is not known yet: who waits joins what it brings.
#[derive(Debug, Default)]
pub(super) struct Flight {
    pub(super) dialling: tokio::sync::Mutex<()>,
    finished: AtomicU64,
    one_at_a_time: AtomicBool,
}

impl Flight {
    /// Tells whether the host chose HTTP/1.1 when it was asked last.
    pub(super) fn is_http1(&self) -> bool {
        self.one_at_a_time.load(Ordering::Relaxed)
    }

    /// Notes which protocol the host chose.
    pub(super) fn chose_http1(&self, http1: bool) {
        self.one_at_a_time.store(http1, Ordering::Relaxed);
    }

    /// Returns how many dials have ended so far, well or not.
    pub(super) fn finished(&self) -> u64 {
        self.finished.load(Ordering::Relaxed)
    }

    /// Notes that a dial ended.
    pub(super) fn finish(&self) {
        self.finished.fetch_add(1, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Empty};

    use super::*;

    #[test]
    fn an_error_shows_nothing_of_its_request() {
        let body = Empty::new().map_err(|never| match never {});
        let mut request = Request::new(UnsyncBoxBody::new(body));
        *request.uri_mut() = "/?key=real-value".parse().unwrap();
        let error = SendError::Unsent(Box::new(request));
        assert_eq!(format!("{error:?}"), "Unsent");
        let error = SendError::Reset(h2::Reason::CANCEL);
        assert_eq!(format!("{error:?}"), "Reset");
    }
}
