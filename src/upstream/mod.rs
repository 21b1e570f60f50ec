//! The only way out of the process: connections to upstreams, for those who hold a grant.
//!
//! A [`Lease`] is had only against a [`Grant`], is dialled only to addresses that were vetted, and
//! over TLS only after the certificate was verified against the name. Connections belong to one
//! [`Pool`], one per session, so that no two sessions share one; only what is passed through unread
//! is dialled on its own. Called by the relay, by passthrough and by the service's own calls.
//!
//! With an upstream proxy every connection goes through a tunnel of its, to the vetted address.

mod chain;
mod dial;
mod h2;
mod pool;
mod proxy;
mod resolve;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::RootCertStore;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::host::Host;
use crate::policy::{AddressRules, Grant, Refused, Scheme};
use crate::telemetry::{Counter, Histogram};
use crate::wire::Io;

pub use chain::ProxyError;
pub use h2::{BodyError, RequestBody, SendError, StreamLease, Taken};
pub use pool::{Lease, Pool};
pub use proxy::UpstreamProxy;

use chain::Chain;
use dial::{Dialler, Offer};
use resolve::Resolver;

/// One answer that the operator gives in place of DNS. It does not bypass the address table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// The name that is asked for.
    pub host: Host,
    /// The address to connect to.
    pub ip: IpAddr,
    /// The port to connect to, where it is not the one asked for.
    pub port: Option<u16>,
}

/// What the way out needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Answers given in place of DNS.
    pub overrides: Vec<Override>,
    /// The certificates that upstreams are verified against. There is no way to verify nothing.
    pub roots: Arc<RootCertStore>,
    /// Which addresses may be dialled.
    pub rules: Arc<AddressRules>,
    /// The proxy that every connection goes through; none to connect directly.
    pub proxy: Option<UpstreamProxy>,
    /// How long a name may take to resolve.
    pub dns_timeout: Duration,
    /// How long all attempts to connect may take together.
    pub connect_timeout: Duration,
    /// How long the TLS handshake may take.
    pub handshake_timeout: Duration,
}

/// Says why there is no connection to the upstream.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Every attempt to connect failed.
    #[error("the upstream cannot be reached")]
    Connect(#[source] io::Error),
    /// No attempt to connect succeeded in time.
    #[error("the upstream did not accept a connection in time")]
    ConnectTimeout,
    /// The name does not resolve.
    #[error("the name does not resolve")]
    Dns,
    /// The name did not resolve in time.
    #[error("the name did not resolve in time")]
    DnsTimeout,
    /// HTTP/2 was agreed on and not spoken.
    #[error("the upstream does not speak the protocol it agreed to")]
    Http2(#[source] BodyError),
    /// The upstream proxy opened no tunnel.
    #[error("the upstream proxy opened no tunnel")]
    Proxy(#[source] ProxyError),
    /// The upstream proxy opened no tunnel in time.
    #[error("the upstream proxy opened no tunnel in time")]
    ProxyTimeout,
    /// The address table refuses the addresses.
    #[error("the address is not allowed")]
    Refused(#[source] Refused),
    /// The TLS handshake failed other than by the certificate.
    #[error("the TLS handshake with the upstream failed")]
    Tls(#[source] io::Error),
    /// The upstream's certificate does not verify for the name.
    #[error("the certificate of the upstream does not verify")]
    TlsCertificate(#[source] io::Error),
    /// The TLS handshake did not end in time.
    #[error("the TLS handshake with the upstream did not end in time")]
    TlsTimeout,
    /// The system's resolver configuration cannot be read.
    #[error("the resolver cannot be set up")]
    Resolver(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A way to send one request: a connection of its own, or a place on a shared one.
#[derive(Debug)]
pub enum Route {
    /// HTTP/1.1.
    Http1(Box<Lease>),
    /// HTTP/2.
    Http2(StreamLease),
}

/// The way out. One for the whole process.
#[derive(Debug)]
pub struct Upstream {
    resolver: Resolver,
    dialler: Dialler,
    rules: Arc<AddressRules>,
    chain: Option<Chain>,
    /// How long the dial of another is waited for.
    dial_wait: Duration,
    counts: Arc<Counts>,
}

/// Counts of the connections to upstreams.
#[derive(Debug, Default)]
pub struct Counts {
    /// Those that were dialled, whoever they were for.
    pub dialled: Counter,
    /// Those that a pool had, places on shared ones included.
    pub reused: Counter,
    /// How long the TLS handshakes took that succeeded.
    pub handshakes: Histogram,
}

impl Upstream {
    /// Sets up the resolver and the verifier.
    ///
    /// # Errors
    /// [`Error::Resolver`].
    pub fn new(config: Config) -> Result<Self, Error> {
        let chain = config
            .proxy
            .map(|proxy| Chain::new(proxy, &config.rules, config.connect_timeout));
        Ok(Self {
            chain,
            resolver: Resolver::new(config.overrides, config.dns_timeout)?,
            dialler: Dialler::new(
                &config.roots,
                config.connect_timeout,
                config.handshake_timeout,
            ),
            rules: config.rules,
            dial_wait: config.connect_timeout,
            counts: Arc::default(),
        })
    }

    /// Returns what was counted.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Returns the address table, for those who ask a policy of their own for a grant.
    pub fn rules(&self) -> &AddressRules {
        &self.rules
    }

    /// Leases a connection from the pool, or dials a new one.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn lease(&self, pool: &Pool, grant: &Grant) -> Result<Lease, Error> {
        match pool.take(grant) {
            Some(lease) => {
                self.counts.reused.increment();
                Ok(lease)
            }
            None => self.lease_fresh(pool, grant).await,
        }
    }

    /// Dials a new connection, whatever the pool holds.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn lease_fresh(&self, pool: &Pool, grant: &Grant) -> Result<Lease, Error> {
        let (io, address) = self.connect(grant).await?;
        let io = match grant.scheme() {
            Scheme::Http => io,
            Scheme::Https => {
                let host = &grant.target().host;
                self.secure(io, host, Offer::Http1).await?.0
            }
        };
        Ok(pool.hold(grant, io, address))
    }

    /// Dials a connection that belongs to no pool and speaks nothing yet: TLS in it is between the
    /// workload and the upstream. Returns also the address that was dialled.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn dial(&self, grant: &Grant) -> Result<(Io, SocketAddr), Error> {
        self.connect(grant).await
    }

    /// Finds a way for one request of a client that speaks HTTP/2: a place on a connection that the
    /// session shares already, or what the upstream chooses when it is asked. While one dial is
    /// under way to a host whose choice is not known, others wait for what it brings: no longer than
    /// a connection may take, and for one dial only.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn route(&self, pool: &Pool, grant: &Grant) -> Result<Route, Error> {
        if grant.scheme() == Scheme::Http {
            return Ok(Route::Http1(Box::new(self.lease(pool, grant).await?)));
        }
        if let Some(place) = pool.join(grant) {
            self.counts.reused.increment();
            return Ok(Route::Http2(place));
        }
        let flight = pool.flight(grant);
        let finished = flight.finished();
        let mut alone = None;
        if !flight.is_http1() {
            alone = timeout(self.dial_wait, flight.dialling.lock()).await.ok();
            if let Some(place) = pool.join(grant) {
                self.counts.reused.increment();
                return Ok(Route::Http2(place));
            }
            if flight.is_http1() || flight.finished() != finished {
                // Nothing to share, or nobody to wait for: each for itself from here on.
                alone = None;
            }
        }
        if let Some(lease) = flight.is_http1().then(|| pool.take(grant)).flatten() {
            self.counts.reused.increment();
            return Ok(Route::Http1(Box::new(lease)));
        }
        let dialled = self.route_fresh(pool, grant).await;
        if let Ok(route) = &dialled {
            flight.chose_http1(matches!(route, Route::Http1(_)));
        }
        flight.finish();
        drop(alone);
        dialled
    }

    /// Dials a new connection, whatever the pool holds, and lets the upstream choose the protocol.
    async fn route_fresh(&self, pool: &Pool, grant: &Grant) -> Result<Route, Error> {
        let (io, address) = self.connect(grant).await?;
        let host = &grant.target().host;
        let (io, is_h2) = self.secure(io, host, Offer::Any).await?;
        if is_h2 {
            return Ok(Route::Http2(pool.share(grant, io, address).await?));
        }
        Ok(Route::Http1(Box::new(pool.hold(grant, io, address))))
    }

    /// Speaks TLS over a connection, and takes the time.
    async fn secure(&self, io: Io, host: &Host, offer: Offer) -> Result<(Io, bool), Error> {
        let began = Instant::now();
        let secured = self.dialler.secure(io, host, offer).await?;
        self.counts.handshakes.observe(began.elapsed());
        Ok(secured)
    }

    /// Gets a byte stream to a vetted address of a grant's target, and counts it.
    async fn connect(&self, grant: &Grant) -> Result<(Io, Dialled), Error> {
        let connected = self.reach(grant).await?;
        self.counts.dialled.increment();
        Ok(connected)
    }

    /// Gets a byte stream directly, or through the upstream proxy.
    async fn reach(&self, grant: &Grant) -> Result<(Io, Dialled), Error> {
        let found = self.resolver.look_up(grant.target()).await?;
        let vetted = crate::policy::vet(&found.addresses, found.port, &self.rules)
            .map_err(Error::Refused)?;
        if let Some(chain) = &self.chain {
            return chain.open(&self.resolver, &self.dialler, &vetted).await;
        }
        let (tcp, address) = self.dialler.connect(&vetted).await?;
        refuse_ourselves(&self.rules, &tcp)?;
        Ok((Box::new(tcp), address))
    }
}

/// Refuses a connection that ended at a listener of ours on an address of this machine that no
/// table could know. No byte was sent on it.
fn refuse_ourselves(rules: &AddressRules, tcp: &TcpStream) -> Result<(), Error> {
    let (Ok(here), Ok(there)) = (tcp.local_addr(), tcp.peer_addr()) else {
        return Err(Error::Connect(io::ErrorKind::NotConnected.into()));
    };
    if rules.is_own_connection(here.ip(), there) {
        return Err(Error::Refused(Refused::OwnListener));
    }
    Ok(())
}

/// What a look-up found: the addresses, and the port to use with them.
#[derive(Debug)]
struct Found {
    addresses: Vec<IpAddr>,
    port: u16,
}

/// An address that a connection was made to, for the audit record.
type Dialled = SocketAddr;
