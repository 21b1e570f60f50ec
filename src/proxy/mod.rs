//! The proxy: what one connection to the shared listener asks for, and who serves it.
//!
//! Every head is read here by our own strict reader. CONNECT opens a tunnel, an absolute-form
//! target is a plain exchange, anything else goes to the service that `app` gives. Nothing is
//! forwarded for a caller whose session is not known, and no axum type is named.

mod body;
mod bridge;
mod capture;
mod connect;
mod context;
mod deadline;
mod detect;
mod exchange;
mod intercept;
mod local;
mod own;
mod passthrough;
mod plain;
mod probe;
mod reject;
mod relay;
mod response;
mod scrub;
mod splice;
mod tunnel;
mod upgrade;

use std::sync::Arc;
use std::time::Duration;

use crate::audit::{Kind, Record, Sink};
use crate::authority::CertificateAuthority;
use crate::host::HostPort;
use crate::serve::{Peer, Throttle};
use crate::session::Sessions;
use crate::shutdown::Drain;
use crate::swap::Swapper;
use crate::telemetry::Histogram;
use crate::upstream::Upstream;
use crate::wire::{
    BodyLimits, Connection, Framing, HeadLimits, Io, ReadError, RequestHead, Version, closes,
    parse_request_within, request_framing,
};

pub use local::{Local, LocalBody, LocalError, LocalServer, Upload};
pub use probe::PROBE_HOST;

use reject::Refusal;

/// The limits of the data path.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How long the first head, or the first byte of a tunnel, may be waited for.
    pub first_byte_timeout: Duration,
    /// How long a head may take from its first byte to its last.
    pub head_timeout: Duration,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How long a connection may stay open with no exchange in flight.
    pub idle_timeout: Duration,
    /// How long a peer may refuse to take bytes of a body that are ready for it.
    pub stall_timeout: Duration,
    /// How long a WebSocket may stay open on which no byte goes either way.
    pub websocket_idle_timeout: Duration,
    /// How long a spliced tunnel may stay open on which no byte goes either way.
    pub passthrough_idle_timeout: Duration,
    /// Let bodies in content codings that cannot be scrubbed pass unread, in place of 502.
    pub unknown_codings: bool,
    /// How long a connection is read after its last answer, for that answer to arrive.
    pub linger_timeout: Duration,
    /// How long the head of an answer may take after the last byte of its request; none to wait.
    pub answer_timeout: Option<Duration>,
    /// How long an exchange may stay open in which no byte goes either way; none to wait.
    pub exchange_idle_timeout: Option<Duration>,
    /// The bounds of the head of a request.
    pub head: HeadLimits,
    /// The bounds of the body of a request.
    pub body: BodyLimits,
    /// What HTTP/2 connections of workloads may hold.
    pub h2: H2Limits,
}

impl Config {
    /// How long a connection may be there without a right credential: who has none is asked for it,
    /// asks again with it, and needs no more.
    fn stranger_limit(&self) -> Duration {
        2 * self.first_byte_timeout
    }
}

/// What one HTTP/2 connection of a workload may hold, and how often it may reset.
#[derive(Clone, Copy, Debug)]
pub struct H2Limits {
    /// Streams open at once.
    pub streams: u32,
    /// Bytes of one request under way unread.
    pub stream_window_bytes: u32,
    /// Bytes of all requests under way unread. At least as many times the other window as upstream,
    /// so that one stream of small frames cannot end the others.
    pub connection_window_bytes: u32,
    /// The largest list of fields, in bytes, as HTTP/2 counts them.
    pub header_list_bytes: u32,
    /// Streams that may be reset before we have looked at them.
    pub pending_resets: usize,
    /// Streams that we may be made to reset by the workload's errors.
    pub error_resets: usize,
    /// Streams that may be given up in ten seconds before they have an answer.
    pub given_up: usize,
}

/// What the proxy works with. One for the whole process.
pub struct Proxy {
    /// Who may pass.
    pub sessions: Arc<Sessions>,
    /// Who mints the leaves.
    pub authority: Arc<CertificateAuthority>,
    /// The way out.
    pub upstream: Arc<Upstream>,
    /// Where audit records go.
    pub audit: Sink,
    /// Who serves origin-form requests.
    pub local: LocalServer,
    /// Who serves our own public address to workloads that ask for it through the proxy; nobody to
    /// refuse it.
    pub inner: Option<LocalServer>,
    /// The limits.
    pub config: Config,
    /// Our own public address, which is never dialled.
    pub own: Option<HostPort>,
    /// When to stop.
    pub drain: Drain,
    /// The scanner for tokens.
    pub swapper: Swapper,
    /// Who has failed to show a right credential, and how often.
    pub throttle: Arc<Throttle>,
    /// How long the handshakes with workloads took that succeeded.
    pub handshakes: Histogram,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// What becomes of a connection after an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// The answer went out, and the connection is of no more use. What the client still sends is
    /// read for a moment so that the answer is not lost.
    Close,
    /// The next head may come.
    KeepAlive,
    /// The connection is dead.
    Gone,
}

impl Proxy {
    /// Serves one connection to the shared listener to its end.
    pub async fn serve(self: Arc<Self>, io: Io, peer: Peer) {
        let mut connection = Connection::new(io).with_head_limit(self.config.head.bytes);
        let mut wait = self.config.first_byte_timeout;
        loop {
            let block = tokio::select! {
                biased;
                block = connection.read_head(wait, self.config.head_timeout) => block,
                () = self.drain.draining() => return,
                () = peer.newcomer.orphaned() => {
                    // Its place is somebody else's now, but who has begun to ask is answered: it may
                    // be another session's workload.
                    if connection.input.is_empty() {
                        return;
                    }
                    connection.read_head(wait, self.config.head_timeout).await
                }
            };
            let parsed = block.map(|block| parse_request_within(block, &self.config.head));
            let head = match parsed {
                Ok(Ok(head)) => head,
                Ok(Err(error)) | Err(ReadError::Malformed(error)) => {
                    return self.refuse_head(connection, &error.into(), &peer).await;
                }
                Err(ReadError::Late) => {
                    return self.refuse_head(connection, &Refusal::late(), &peer).await;
                }
                Err(_gone) => return,
            };
            if head.method() == b"CONNECT" {
                match self.connect(connection, &head, &peer).await {
                    Some(again) => connection = again,
                    None => return,
                }
            } else {
                match self.answer(&mut connection, head, &peer).await {
                    After::KeepAlive => {}
                    After::Close => return connection.linger(self.config.linger_timeout).await,
                    After::Gone => return,
                }
            }
            if peer.newcomer.is_orphaned() {
                return connection.linger(self.config.linger_timeout).await;
            }
            // Who has shown nothing is not waited for as long.
            wait = if peer.newcomer.is_known() {
                self.config.idle_timeout
            } else {
                self.config.first_byte_timeout
            };
        }
    }

    async fn answer(&self, down: &mut Connection, head: RequestHead, peer: &Peer) -> After {
        if head.target().first() == Some(&b'/') || head.target() == b"*" {
            self.local.answer(down, head, peer).await
        } else {
            self.serve_plain(down, head, peer).await
        }
    }

    /// Tells whether a connection on which nobody has shown who they are has been there long enough.
    fn is_stale(&self, peer: &Peer) -> bool {
        peer.newcomer.overstays(self.config.stranger_limit())
    }

    /// Tells whether a connection can carry another head after the refusal of this one.
    fn reusable(&self, head: &RequestHead) -> bool {
        request_framing(head) == Ok(Framing::None)
            && head.version == Version::Http11
            && !closes(&head.fields, head.version)
            && !self.drain.is_leaving()
    }

    /// Answers a head that could not be read. There is no telling where the next one starts.
    async fn refuse_head(&self, mut down: Connection, refusal: &Refusal, peer: &Peer) {
        let mut record = Record::begin(&self.audit, Kind::Exchange);
        record.peer(peer.address);
        record.status(refusal.status);
        record.decision(refusal.decision(), refusal.code);
        drop(record);
        if reject::send(&mut down, refusal, false).await.is_ok() {
            down.linger(self.config.linger_timeout).await;
        }
    }
}
