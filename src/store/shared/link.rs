//! The connection to the server: made when it is needed, given up at the first failure, made again
//! after a pause that grows and differs from node to node.
//!
//! This is a way out of the process beside that of the requests: to the one address that the
//! operator named, and never to one that a workload or a tenant has a say in. Every wait has an
//! end, and with it what one answer can hold: a connection that answers too late is given up. The
//! one guard that is kept while it waits is that of the attempt to connect. Called by the store.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::aio::{MultiplexedConnection, PubSub};
use redis::{
    AsyncConnectionConfig, Cmd, FromRedisValue, Pipeline, RedisError, RedisFuture, RedisResult,
    ScriptInvocation, Value, from_redis_value,
};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::Address;
use crate::id::fill_random;
use crate::store::Error;

/// How long a connection may take, with TLS, the login and a first answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long one answer may take. A server that flushes each write may wait for its disk.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// The pauses between attempts to connect, of which a random half is kept.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// After how long a silent connection is asked whether it is alive.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// A stream to the server.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What the server can be asked.
pub(super) trait Question: Sync {
    /// Asks.
    fn ask<'a>(&'a self, link: &'a mut MultiplexedConnection) -> RedisFuture<'a, Value>;
}

impl Question for Cmd {
    fn ask<'a>(&'a self, link: &'a mut MultiplexedConnection) -> RedisFuture<'a, Value> {
        Box::pin(self.query_async(link))
    }
}

impl Question for Pipeline {
    fn ask<'a>(&'a self, link: &'a mut MultiplexedConnection) -> RedisFuture<'a, Value> {
        Box::pin(self.query_async(link))
    }
}

impl Question for ScriptInvocation<'_> {
    fn ask<'a>(&'a self, link: &'a mut MultiplexedConnection) -> RedisFuture<'a, Value> {
        Box::pin(self.invoke_async(link))
    }
}

/// Why the library did not do what it was asked, or did it too late.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("no connection")]
    Connect(#[source] io::Error),
    #[error("the server")]
    Server(#[source] RedisError),
    #[error("the server does not answer in time")]
    Late,
    #[error("no connection since {0}")]
    Resting(String),
}

impl Failure {
    /// Tells whether a connection that there was is gone: another one may do better.
    fn is_gone(&self) -> bool {
        matches!(self, Self::Server(error) if error.is_connection_dropped())
    }

    /// Tells whether the server has answered, if only that it refuses. One that is no primary (any
    /// more) counts as none: the name may lead to another one by now.
    fn is_answer(&self) -> bool {
        let code = match self {
            Self::Server(error) => error.code(),
            _ => None,
        };
        code.is_some_and(|code| code != "READONLY")
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::unavailable(failure)
    }
}

/// What is asked of the server: whether it says something about taking changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
}

/// The link to the server.
pub(super) struct Link {
    address: Address,
    answer_timeout: Duration,
    tls: TlsConnector,
    slot: tokio::sync::Mutex<Slot>,
    status: Mutex<Status>,
}

/// The connection, if there is one.
#[derive(Default)]
struct Slot {
    connection: Option<MultiplexedConnection>,
    /// Counts the connections, so that a late failure of an old one is told from one of a new one.
    number: u64,
    /// When to try again, and how long to wait after that.
    pause: Option<(Instant, Duration)>,
}

#[derive(Default)]
struct Status {
    /// Why the server cannot be reached.
    unreachable: Option<String>,
    /// Why it takes no changes.
    unwritable: Option<String>,
}

impl Link {
    /// Makes a link that has no connection yet, and on which no answer takes longer.
    pub(super) fn new(
        address: Address,
        roots: &Arc<RootCertStore>,
        answer_timeout: Duration,
    ) -> Self {
        Self {
            address,
            answer_timeout,
            tls: TlsConnector::from(Arc::new(client_config(roots))),
            slot: tokio::sync::Mutex::default(),
            status: Mutex::default(),
        }
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// Gives the connection up, if there is one: the next question opens another.
    pub(super) async fn hang_up(&self) {
        self.slot.lock().await.connection = None;
    }

    /// Asks the server for something. A failure ends the connection for all who ask later, unless the
    /// server has answered. What only reads is asked once more where the connection turns out to be
    /// gone.
    pub(super) async fn ask<T: FromRedisValue>(
        &self,
        kind: Kind,
        question: &impl Question,
    ) -> Result<T, Error> {
        let mut answer = self.ask_once(question).await;
        if kind == Kind::Read && matches!(&answer, Err(failure) if failure.is_gone()) {
            answer = self.ask_once(question).await;
        }
        match answer {
            Ok(answer) => {
                self.note_success(kind);
                from_redis_value(answer).map_err(Error::unavailable)
            }
            Err(failure) => Err(self.note(kind, failure)),
        }
    }

    /// Reads something that the server may refuse to tell; nothing where it does.
    pub(super) async fn ask_unless_refused<T: FromRedisValue>(
        &self,
        question: &impl Question,
    ) -> Result<Option<T>, Error> {
        match self.ask_once(question).await {
            Ok(answer) => from_redis_value(answer)
                .map(Some)
                .map_err(Error::unavailable),
            Err(Failure::Server(error)) if error.code() == Some("NOPERM") => Ok(None),
            Err(Failure::Server(error)) if error.code() == Some("ERR") => Ok(None),
            Err(failure) => Err(self.note(Kind::Read, failure)),
        }
    }

    async fn ask_once(&self, question: &impl Question) -> Result<Value, Failure> {
        let (mut connection, number) = self.connection().await?;
        let failure = match timeout(self.answer_timeout, question.ask(&mut connection)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => Failure::Server(error),
            Err(_elapsed) => Failure::Late,
        };
        let mut slot = self.slot.lock().await;
        if slot.number == number && !failure.is_answer() {
            slot.connection = None;
        }
        Err(failure)
    }

    /// Opens a connection of its own on which announcements come in.
    pub(super) async fn listen(&self, channel: &str) -> Result<PubSub, Error> {
        let opened = async {
            let stream = self.dial().await.map_err(Failure::Connect)?;
            let listener = PubSub::new(&self.address.login, stream).await;
            let mut listener = listener.map_err(Failure::Server)?;
            let subscribed = listener.subscribe(channel).await;
            subscribed.map(|()| listener).map_err(Failure::Server)
        };
        let opened = timeout(CONNECT_TIMEOUT, opened).await;
        opened.unwrap_or(Err(Failure::Late)).map_err(Error::from)
    }

    /// Tells why the server cannot be reached, or takes no changes.
    pub(super) fn health(&self) -> Result<(), Error> {
        let status = self.status();
        let failure = status.unreachable.as_ref().or(status.unwritable.as_ref());
        failure.map_or(Ok(()), |failure| Err(Error::unavailable(failure.clone())))
    }

    /// Tells whether the last change failed.
    pub(super) fn is_unwritable(&self) -> bool {
        self.status().unwritable.is_some()
    }

    async fn connection(&self) -> Result<(MultiplexedConnection, u64), Failure> {
        let mut slot = self.slot.lock().await;
        if let Some(connection) = &slot.connection {
            return Ok((connection.clone(), slot.number));
        }
        if let Some((at, _)) = slot.pause
            && Instant::now() < at
        {
            let since = self.status().unreachable.clone();
            return Err(Failure::Resting(since.unwrap_or_default()));
        }
        let opened = timeout(CONNECT_TIMEOUT, self.open()).await;
        match opened.unwrap_or(Err(Failure::Late)) {
            Ok(connection) => {
                slot.pause = None;
                slot.number += 1;
                slot.connection = Some(connection.clone());
                Ok((connection, slot.number))
            }
            Err(failure) => {
                let pause = slot.pause.map_or(FIRST_PAUSE, |(_, pause)| 2 * pause);
                let pause = pause.min(LONGEST_PAUSE);
                slot.pause = Some((Instant::now() + jittered(pause), pause));
                Err(failure)
            }
        }
    }

    async fn open(&self) -> Result<MultiplexedConnection, Failure> {
        let stream = self.dial().await.map_err(Failure::Connect)?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(Some(self.answer_timeout));
        let login = &self.address.login;
        let opened = MultiplexedConnection::new_with_config(login, stream, config).await;
        let (mut connection, driver) = opened.map_err(Failure::Server)?;
        tokio::spawn(driver);
        let answer: RedisResult<()> = redis::cmd("PING").query_async(&mut connection).await;
        answer.map_err(Failure::Server)?;
        Ok(connection)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the one address that the operator named for the store"
    )]
    async fn dial(&self) -> io::Result<Box<dyn Stream>> {
        let Address {
            host, port, is_tls, ..
        } = &self.address;
        let stream = match (host.name(), host.ip()) {
            (Some(name), _) => TcpStream::connect((name, *port)).await?,
            (None, Some(ip)) => TcpStream::connect((ip, *port)).await?,
            (None, None) => return Err(io::ErrorKind::AddrNotAvailable.into()),
        };
        stream.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(KEEPALIVE);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        if !is_tls {
            return Ok(Box::new(stream));
        }
        let name = match (host.name(), host.ip()) {
            (Some(name), _) => ServerName::try_from(name.to_owned()).map_err(io::Error::other)?,
            (None, ip) => ServerName::from(ip.ok_or(io::ErrorKind::AddrNotAvailable)?),
        };
        Ok(Box::new(self.tls.connect(name, stream).await?))
    }

    /// Notes a failure; it is logged where it is the first one.
    fn note(&self, kind: Kind, failure: Failure) -> Error {
        let text = chain(&failure);
        // An answer, if only an error: the server can be reached.
        let answered = matches!(&failure, Failure::Server(error) if error.code().is_some());
        let mut status = self.status();
        let slot = match (kind, answered) {
            (Kind::Write, true) => &mut status.unwritable,
            _ => &mut status.unreachable,
        };
        if !matches!(failure, Failure::Resting(_)) && slot.replace(text.clone()).is_none() {
            let address = &self.address;
            tracing::error!(%address, error = text, "the store cannot be used");
        }
        drop(status);
        failure.into()
    }

    fn note_success(&self, kind: Kind) {
        let mut status = self.status();
        let mut was = status.unreachable.take().is_some();
        if kind == Kind::Write {
            was |= status.unwritable.take().is_some();
        }
        if was && status.unwritable.is_none() {
            tracing::info!(address = %self.address, "the store can be used again");
        }
    }

    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// Returns between half of a time and all of it: nodes that lost a server do not all come back in
/// one moment.
pub(super) fn jittered(pause: Duration) -> Duration {
    let mut byte = [0];
    fill_random(&mut byte);
    let [byte] = byte;
    pause / 2 + pause * u32::from(byte) / 512
}

/// The verifying configuration: TLS 1.3, and 1.2 only with the extended master secret (RFC 7627).
#[expect(
    clippy::expect_used,
    reason = "the provider supports both versions by its definition"
)]
fn client_config(roots: &Arc<RootCertStore>) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("TLS 1.2 and 1.3 are built in")
        .with_root_certificates(Arc::clone(roots))
        .with_no_client_auth();
    config.require_ems = true;
    config
}

/// Writes an error with its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
