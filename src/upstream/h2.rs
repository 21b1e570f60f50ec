//! HTTP/2 connections of one session, shared by its exchanges with one host.
//!
//! One connection carries many exchanges at once; another is opened when the upstream's stream
//! limit is used up. The tasks that drive a connection end when the pool is closed, whatever runs
//! on them. Nothing here dials: `mod` does, once for all who wait. Called by the pool.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::sync::CancellationToken;

use super::Error;
use crate::wire::Io;

/// How much of one answer may be under way unread, in bytes: a stream of tokens needs little, a
/// download over 50 ms gets 80 Mbit/s.
const STREAM_WINDOW_BYTES: u32 = 512 * 1024;
/// How much of all answers of one connection may be under way unread, in bytes.
const CONNECTION_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// How much of one request is held for an upstream that does not take it, in bytes.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// The largest list of fields, in bytes, as HTTP/2 counts them: as much as a
/// head of HTTP/1.1 may have.
const HEADER_LIST_BYTES: u32 = 64 * 1024;
/// How many streams the upstream may make us reset by its errors before the connection ends.
const ERROR_RESETS: usize = 64;

/// Any error of a body.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// The body of a request, whatever it is made of.
pub type RequestBody = UnsyncBoxBody<Bytes, BodyError>;

/// Spawns the tasks of a connection, so that they end with their pool.
#[derive(Clone, Debug)]
struct UntilCut(CancellationToken);

impl<F> Executor<F> for UntilCut
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
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

/// How busy a connection is.
#[derive(Debug)]
struct Load {
    streams: AtomicUsize,
    /// The upstream's limit of streams.
    most: AtomicUsize,
    idle_since: Mutex<Instant>,
}

/// A connection that several exchanges share.
#[derive(Debug)]
pub(super) struct Shared {
    sender: SendRequest<RequestBody>,
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
        });
        let known = Arc::clone(&load);
        let mut connection = Box::pin(connection);
        executor.execute(async move {
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
        !self.sender.is_closed()
    }

    /// Tells whether the connection has carried nothing for a time.
    pub(super) fn is_idle_for(&self, time: Duration) -> bool {
        let since = *lock(&self.load.idle_since);
        self.load.streams.load(Ordering::Acquire) == 0 && since.elapsed() >= time
    }

    /// Returns how many more exchanges the upstream allows at once.
    pub(super) fn room(&self) -> usize {
        let most = self.load.most.load(Ordering::Relaxed);
        most.saturating_sub(self.load.streams.load(Ordering::Acquire))
    }

    /// Joins the connection with one more exchange.
    pub(super) fn join(&self, reused: bool) -> StreamLease {
        self.load.streams.fetch_add(1, Ordering::AcqRel);
        StreamLease {
            sender: self.sender.clone(),
            address: self.address,
            reused,
            place: Taken(Arc::clone(&self.load)),
        }
    }
}

/// Counts one exchange on a connection for as long as it lives.
#[derive(Debug)]
pub struct Taken(Arc<Load>);

impl Drop for Taken {
    fn drop(&mut self) {
        *lock(&self.0.idle_since) = Instant::now();
        self.0.streams.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Says why there is no answer to a request that was given to a shared connection.
#[derive(Debug)]
pub enum SendError {
    /// No byte of the request was sent; here it is again.
    Unsent(Box<Request<RequestBody>>),
    /// The upstream reset the exchange, for this reason, or left it out of its last ones.
    Reset(h2::Reason),
    /// The connection failed, or ended, before an answer.
    Lost(hyper::Error),
}

/// A place for one exchange on a shared connection.
#[derive(Debug)]
pub struct StreamLease {
    sender: SendRequest<RequestBody>,
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
    /// that comes with the answer is kept until the answer's body has ended.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn send(
        mut self,
        request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Taken), SendError> {
        match self.sender.try_send_request(request).await {
            Ok(answer) => Ok((answer, self.place)),
            Err(mut failed) => match failed.take_message() {
                Some(request) => Err(SendError::Unsent(Box::new(request))),
                None => Err(lost(failed.into_error())),
            },
        }
    }
}

fn lost(error: hyper::Error) -> SendError {
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        if let Some(cause) = cause.downcast_ref::<h2::Error>() {
            let remote = cause.is_remote();
            return match cause.reason() {
                Some(reason) if remote && cause.is_reset() => SendError::Reset(reason),
                // A GOAWAY ends only the streams that it left out: they were not processed.
                Some(_) if remote && cause.is_go_away() => {
                    SendError::Reset(h2::Reason::REFUSED_STREAM)
                }
                _ => SendError::Lost(error),
            };
        }
        source = cause.source();
    }
    SendError::Lost(error)
}

/// One dial at a time to a host whose protocol is not known yet: who waits joins what it brings.
#[derive(Debug, Default)]
pub(super) struct Flight {
    pub(super) dialling: tokio::sync::Mutex<()>,
    failures: AtomicU64,
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

    /// Returns how many dials failed so far.
    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Notes that a dial failed.
    pub(super) fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
