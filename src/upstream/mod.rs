//! The only way out of the process: connections to upstreams, for those who hold a grant.
//!
//! A [`Lease`] is had only against a [`Grant`], is dialled only to addresses that were vetted, and
//! over TLS only after the certificate was verified against the name. Connections belong to one
//! [`Pool`], one per session, so that no two sessions share one. Called by the relay and by the
//! service's own calls.

mod dial;
mod pool;
mod resolve;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;

use crate::host::Host;
use crate::policy::{AddressRules, Grant, Refused, Scheme};

pub use pool::{Lease, Pool};

use dial::Dialler;
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

/// The way out. One for the whole process.
#[derive(Debug)]
pub struct Upstream {
    resolver: Resolver,
    dialler: Dialler,
    rules: Arc<AddressRules>,
}

impl Upstream {
    /// Sets up the resolver and the verifier.
    ///
    /// # Errors
    /// [`Error::Resolver`].
    pub fn new(config: Config) -> Result<Self, Error> {
        Ok(Self {
            resolver: Resolver::new(config.overrides, config.dns_timeout)?,
            dialler: Dialler::new(
                &config.roots,
                config.connect_timeout,
                config.handshake_timeout,
            ),
            rules: config.rules,
        })
    }

    /// Leases a connection from the pool, or dials a new one.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn lease(&self, pool: &Pool, grant: &Grant) -> Result<Lease, Error> {
        match pool.take(grant) {
            Some(lease) => Ok(lease),
            None => self.lease_fresh(pool, grant).await,
        }
    }

    /// Dials a new connection, whatever the pool holds.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn lease_fresh(&self, pool: &Pool, grant: &Grant) -> Result<Lease, Error> {
        let target = grant.target();
        let found = self.resolver.look_up(target).await?;
        let vetted = crate::policy::vet(&found.addresses, found.port, &self.rules)
            .map_err(Error::Refused)?;
        let (tcp, address) = self.dialler.connect(&vetted).await?;
        self.refuse_ourselves(&tcp)?;
        let io = match grant.scheme() {
            Scheme::Http => Box::new(tcp) as crate::wire::Io,
            Scheme::Https => self.dialler.secure(tcp, &target.host).await?,
        };
        Ok(pool.hold(grant, io, address))
    }

    /// Refuses a connection that ended at a listener of ours on an address of this machine that no
    /// table could know. No byte was sent on it.
    fn refuse_ourselves(&self, tcp: &tokio::net::TcpStream) -> Result<(), Error> {
        let (Ok(here), Ok(there)) = (tcp.local_addr(), tcp.peer_addr()) else {
            return Err(Error::Connect(io::ErrorKind::NotConnected.into()));
        };
        if self.rules.is_own_connection(here.ip(), there) {
            return Err(Error::Refused(Refused::OwnListener));
        }
        Ok(())
    }
}

/// What a look-up found: the addresses, and the port to use with them.
#[derive(Debug)]
struct Found {
    addresses: Vec<IpAddr>,
    port: u16,
}

/// An address that a connection was made to, for the audit record.
type Dialled = SocketAddr;
