//! One request to the one host of a service, and its answer: whole, or as it comes.
//!
//! HTTP/1.1 over connections of its own pool. What is read whole is so within a deadline and a bound
//! of bytes. A request is sent a second time only where a connection that was used before gave no
//! byte of an answer, and it has no body. It follows no redirect. Called through [`Callout`].

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::Error;
use super::form::Base;
use super::stream::Opened;
use crate::host::{HostPattern, HostPort};
use crate::policy::{EgressPolicy, EgressRules, Grant, Scheme};
use crate::upstream::{Lease, Pool, Upstream};
use crate::wire::{
    AnswerHead, Body, Fields, Framing, Progress, ReadError, answer_framing, closes, parse_answer,
};

/// The most interim answers before the one that counts.
const INTERIM_LIMIT: usize = 10;
/// How many connections to one service wait for their next request.
const IDLE_CONNECTIONS: usize = 8;
/// How many bytes of a request are written in one go: each has the time that writing may take.
const PIECE_BYTES: usize = 256 * 1024;
/// How long the head of an answer is waited for where nothing is said: whoever asked goes first.
const FAR: Duration = Duration::from_hours(24);

/// The bounds of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long a call may take, from the connection to the last byte of the answer.
    pub deadline: Duration,
    /// The most bytes of the answer's body.
    pub answer_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(5),
            answer_bytes: 256 * 1024,
        }
    }
}

/// One request. Its fields may hold keys, so that it has no `Debug`.
#[expect(
    missing_debug_implementations,
    reason = "its fields hold keys that nothing may print"
)]
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// The method.
    pub method: &'static str,
    /// The path below that of the service's URL, with a query if there is one, encoded; empty for the
    /// URL's own.
    pub path: &'a str,
    /// The fields, beside those that every request has. A `user-agent` takes the place of ours.
    pub fields: &'a [(&'a str, &'a [u8])],
    /// The body, with its content type.
    pub body: Option<(&'a str, &'a [u8])>,
}

/// The answer, whole.
pub struct Answer {
    /// The status, 200 or above.
    pub status: u16,
    /// The fields of the head.
    pub fields: Fields,
    /// The body.
    pub body: Bytes,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("status", &self.status)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// Says how an attempt ended that brought no answer.
enum Failed {
    /// The connection ended before any byte of an answer.
    Unanswered,
    /// Otherwise.
    With(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::With(error)
    }
}

/// Calls one service.
#[derive(Debug)]
pub struct Callout {
    upstream: Arc<Upstream>,
    pool: Pool,
    grant: Grant,
    base: Base,
    limits: Limits,
}

impl Callout {
    /// Takes the URL that the operator configured. Nothing is dialled yet.
    ///
    /// # Errors
    /// [`Error::BadUrl`], and [`Error::Denied`] where the address table shuts a literal.
    pub fn new(upstream: Arc<Upstream>, url: &str, limits: Limits) -> Result<Self, Error> {
        let base = Base::parse(url)?;
        let line = HostPattern::parse_exact(&base.target.to_string());
        let line = line.map_err(|_unread| Error::BadUrl)?;
        let policy = EgressPolicy::new(EgressRules::listed(vec![line]));
        let granted = policy.decide(&base.target, upstream.rules());
        let mut grant = granted.map_err(Error::Denied)?;
        if base.scheme == Scheme::Http {
            grant = grant.cleartext();
        }
        Ok(Self {
            upstream,
            pool: Pool::keeping(IDLE_CONNECTIONS),
            grant,
            base,
            limits,
        })
    }

    /// Keeps so many idle connections to the service, in place of a few: for one that is called all
    /// the time.
    #[must_use]
    pub fn keeping(mut self, connections: usize) -> Self {
        self.pool = Pool::keeping(connections);
        self
    }

    /// Returns the service's host and port.
    pub fn target(&self) -> &HostPort {
        &self.base.target
    }

    /// Sends a request and reads its answer. An answer of any status is an answer.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn call(&self, request: &Request<'_>) -> Result<Answer, Error> {
        // The whole call has a deadline; one that is met while a head is read would be told as
        // another error.
        let far = self.limits.deadline.saturating_mul(2);
        let whole = async {
            let mut begun = self.begin(request, far).await?;
            let body = self.read_body(&mut begun.lease, begun.framing).await?;
            if begun.keeps {
                begun.lease.give_back();
            }
            Ok(Answer {
                status: begun.head.status,
                fields: begun.head.fields,
                body,
            })
        };
        match timeout(self.limits.deadline, whole).await {
            Ok(answer) => answer,
            Err(_elapsed) => Err(Error::Late),
        }
    }

    /// Sends a request and reads the head of its answer, for which it waits as long as is said; the
    /// body is then read as it comes. Dropping the future, or what it gave, ends the connection.
    ///
    /// # Errors
    /// See [`Error`]. Nothing was sent where it is [`Error::was_unsent`].
    pub async fn open(
        &self,
        request: &Request<'_>,
        patience: Option<Duration>,
    ) -> Result<Opened, Error> {
        let patience = patience.unwrap_or(FAR);
        let begun = self.begin(request, patience.saturating_mul(2));
        match timeout(patience, begun).await {
            Ok(begun) => Ok(Opened::new(begun?)),
            Err(_elapsed) => Err(Error::Late),
        }
    }

    async fn begin(&self, request: &Request<'_>, far: Duration) -> Result<Begun, Error> {
        let written = self.base.write(request)?;
        let unreachable = |error| Error::Unreachable(Arc::new(error));
        let lease = self.upstream.lease(&self.pool, &self.grant).await;
        let lease = lease.map_err(unreachable)?;
        let again = lease.is_reused() && request.body.is_none();
        let failed = match attempt(lease, request.method, &written, far).await {
            Ok(begun) => return Ok(begun),
            Err(failed) => failed,
        };
        match failed {
            Failed::Unanswered if again => {}
            Failed::Unanswered => return Err(Error::Cut),
            Failed::With(error) => return Err(error),
        }
        let lease = self.upstream.lease_fresh(&self.pool, &self.grant).await;
        let lease = lease.map_err(unreachable)?;
        let begun = attempt(lease, request.method, &written, far).await;
        begun.map_err(|failed| match failed {
            Failed::Unanswered => Error::Cut,
            Failed::With(error) => error,
        })
    }

    async fn read_body(&self, lease: &mut Lease, framing: Framing) -> Result<Bytes, Error> {
        let limit = self.limits.answer_bytes;
        if let Framing::Length(length) = framing
            && usize::try_from(length).map_or(true, |length| length > limit)
        {
            return Err(Error::TooLong);
        }
        let connection = &mut lease.connection;
        let mut body = Body::new(framing).without_framing();
        let (mut whole, mut out) = (Vec::new(), Vec::new());
        loop {
            let progress = body.step(&mut connection.input, &mut out);
            whole.append(&mut out);
            if whole.len() > limit {
                return Err(Error::TooLong);
            }
            match progress.map_err(Error::Malformed)? {
                Progress::Done => return Ok(whole.into()),
                Progress::Full => continue,
                Progress::Hungry => {}
            }
            match poll_fn(|cx| connection.poll_read_answer(cx)).await {
                Ok(0) => body.close().map_err(|_unfinished| Error::Cut)?,
                Ok(_) => {}
                // Also TLS that ends without saying so, which may have been cut by anybody.
                Err(_failed) => return Err(Error::Cut),
            }
        }
    }
}

/// An answer whose head has come.
pub(super) struct Begun {
    pub(super) lease: Lease,
    pub(super) head: AnswerHead,
    pub(super) framing: Framing,
    /// The connection is good for another request after the body.
    pub(super) keeps: bool,
}

/// Writes a request and reads the head of its answer.
async fn attempt(
    mut lease: Lease,
    method: &str,
    written: &[u8],
    far: Duration,
) -> Result<Begun, Failed> {
    let connection = &mut lease.connection;
    let mut sent = Ok(());
    for piece in written.chunks(PIECE_BYTES) {
        sent = connection.send(piece).await;
        match &sent {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
                return Err(Error::Late.into());
            }
            // It may have been answered all the same: the reading tells.
            Err(_gone) => break,
        }
    }
    let mut interim = 0;
    let head = loop {
        let block = match connection.read_head(far, far).await {
            Ok(block) => block,
            Err(ReadError::Malformed(error)) => return Err(Error::Malformed(error).into()),
            Err(ReadError::Late) => return Err(Error::Late.into()),
            Err(ReadError::Idle | ReadError::Io(_)) if interim == 0 => {
                return Err(Failed::Unanswered);
            }
            Err(ReadError::Cut | ReadError::Idle | ReadError::Io(_)) => {
                return Err(Error::Cut.into());
            }
        };
        let head = parse_answer(block).map_err(Error::Malformed)?;
        interim += 1;
        match head.status {
            // Nobody asked for another protocol.
            101 => return Err(Error::Malformed(crate::wire::Error::StartLine).into()),
            100..200 if interim <= INTERIM_LIMIT => {}
            100..200 => return Err(Error::TooLong.into()),
            _ => break head,
        }
    };
    let framing = answer_framing(&head, method == "HEAD").map_err(Error::Malformed)?;
    let ends = framing == Framing::UntilClose || closes(&head.fields, head.version);
    Ok(Begun {
        lease,
        head,
        framing,
        keeps: sent.is_ok() && !ends,
    })
}
