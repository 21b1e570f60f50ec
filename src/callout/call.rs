//! One request to the one host of a service, and its answer whole.
//!
//! HTTP/1.1 over connections of its own pool, within a deadline and a bound of bytes. A request is
//! sent a second time only where a connection that was used before gave no byte of an answer, and it
//! has no body. It follows no redirect. Called through [`Callout`].

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::Error;
use super::form::Base;
use crate::host::HostPattern;
use crate::policy::{EgressPolicy, EgressRules, Grant, Scheme};
use crate::upstream::{Lease, Pool, Upstream};
use crate::wire::{
    Body, Fields, Framing, Progress, ReadError, answer_framing, closes, parse_answer,
};

/// The most interim answers before the one that counts.
const INTERIM_LIMIT: usize = 10;
/// How many connections to one service wait for their next request.
const IDLE_CONNECTIONS: usize = 8;

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
    /// The path below that of the service's URL, with a query if there is one, encoded.
    pub path: &'a str,
    /// The fields, beside those that every request has.
    pub fields: &'a [(&'static str, &'a [u8])],
    /// The body, with its content type.
    pub body: Option<(&'static str, &'a [u8])>,
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

    /// Sends a request and reads its answer. An answer of any status is an answer.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn call(&self, request: &Request<'_>) -> Result<Answer, Error> {
        match timeout(self.limits.deadline, self.attempts(request)).await {
            Ok(answer) => answer,
            Err(_elapsed) => Err(Error::Late),
        }
    }

    async fn attempts(&self, request: &Request<'_>) -> Result<Answer, Error> {
        let written = self.base.write(request)?;
        let unreachable = |error| Error::Unreachable(Arc::new(error));
        let lease = self.upstream.lease(&self.pool, &self.grant).await;
        let lease = lease.map_err(unreachable)?;
        let again = lease.is_reused() && request.body.is_none();
        let failed = match self.attempt(lease, request.method, &written).await {
            Ok(answer) => return Ok(answer),
            Err(failed) => failed,
        };
        match failed {
            Failed::Unanswered if again => {}
            Failed::Unanswered => return Err(Error::Cut),
            Failed::With(error) => return Err(error),
        }
        let lease = self.upstream.lease_fresh(&self.pool, &self.grant).await;
        let lease = lease.map_err(unreachable)?;
        let answer = self.attempt(lease, request.method, &written).await;
        answer.map_err(|failed| match failed {
            Failed::Unanswered => Error::Cut,
            Failed::With(error) => error,
        })
    }

    async fn attempt(
        &self,
        mut lease: Lease,
        method: &str,
        written: &[u8],
    ) -> Result<Answer, Failed> {
        let connection = &mut lease.connection;
        // One that fails to send may have been answered all the same: the reading tells.
        let sent = connection.send(written).await;
        // The whole call has a deadline; one that is met here would be told as another error.
        let deadline = self.limits.deadline.saturating_mul(2);
        let mut interim = 0;
        let head = loop {
            let block = match connection.read_head(deadline, deadline).await {
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
        let body = self.read_body(&mut lease, framing).await?;
        let ends = framing == Framing::UntilClose || closes(&head.fields, head.version);
        if sent.is_ok() && !ends {
            lease.give_back();
        }
        Ok(Answer {
            status: head.status,
            fields: head.fields,
            body,
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
