//! TCP and TLS to vetted addresses: the one place that connects.
//!
//! Families alternate, each attempt gets a head start before the next (RFC 8305 §5), and the first
//! connection wins. TLS is verified against the name, never the address it resolved to.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsConnector;

use super::{Dialled, Error};
use crate::host::Host;
use crate::policy::VettedAddr;
use crate::wire::{Io, Replay, tune};

/// How long an attempt runs alone before the next one starts (RFC 8305 §8).
const HEAD_START: Duration = Duration::from_millis(250);

/// The name of HTTP/2 in ALPN (RFC 9113 §3.1).
const H2: &[u8] = b"h2";

/// Which protocols are offered to an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offer {
    /// HTTP/2 or HTTP/1.1, as the upstream likes.
    Any,
    /// HTTP/1.1 only.
    Http1,
}

/// Connects and verifies.
pub(super) struct Dialler {
    /// Offers `http/1.1` only.
    http1: TlsConnector,
    /// Offers `h2` and `http/1.1`.
    any: TlsConnector,
    connect_timeout: Duration,
    handshake_timeout: Duration,
}

impl std::fmt::Debug for Dialler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialler")
            .field("connect_timeout", &self.connect_timeout)
            .finish_non_exhaustive()
    }
}

impl Dialler {
    pub(super) fn new(
        roots: &Arc<RootCertStore>,
        connect_timeout: Duration,
        handshake_timeout: Duration,
    ) -> Self {
        let mut config = client_config(roots);
        let http1 = TlsConnector::from(Arc::new(config.clone()));
        config.alpn_protocols = vec![H2.to_vec(), b"http/1.1".to_vec()];
        Self {
            http1,
            any: TlsConnector::from(Arc::new(config)),
            connect_timeout,
            handshake_timeout,
        }
    }

    /// Connects to the first of the addresses that answers.
    pub(super) async fn connect(
        &self,
        addresses: &[VettedAddr],
    ) -> Result<(TcpStream, Dialled), Error> {
        match timeout(self.connect_timeout, race(addresses)).await {
            Err(_elapsed) => Err(Error::ConnectTimeout),
            Ok(Err(error)) => Err(Error::Connect(error)),
            Ok(Ok(connected)) => Ok(connected),
        }
    }

    /// Speaks TLS over a connection and verifies who answers. Tells whether HTTP/2 was agreed on.
    pub(super) async fn secure(
        &self,
        io: Io,
        host: &Host,
        offer: Offer,
    ) -> Result<(Io, bool), Error> {
        let tls = match offer {
            Offer::Http1 => &self.http1,
            Offer::Any => &self.any,
        };
        let name = match host {
            Host::Name(name) => ServerName::try_from(name.to_string()).map_err(|_invalid| {
                Error::TlsCertificate(io::Error::other("the name cannot be in a certificate"))
            })?,
            Host::V4(address) => ServerName::IpAddress((*address).into()),
            Host::V6(address) => ServerName::IpAddress((*address).into()),
        };
        let io = Replay::new(io);
        match timeout(self.handshake_timeout, tls.connect(name, io)).await {
            Err(_elapsed) => Err(Error::TlsTimeout),
            Ok(Ok(stream)) => {
                let is_h2 = stream.get_ref().1.alpn_protocol() == Some(H2);
                Ok((Box::new(stream), is_h2))
            }
            Ok(Err(error)) => Err(classify(error)),
        }
    }
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
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.require_ems = true;
    // A ticket from one session would tell the upstream that another is of the same house, and
    // a resumed connection is not verified again. The pools make up for it.
    config.resumption = Resumption::disabled();
    config
}

fn classify(error: io::Error) -> Error {
    let cause = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            Error::TlsCertificate(error)
        }
        _ => Error::Tls(error),
    }
}

/// Tries the addresses in turn, families alternating, until one connects.
async fn race(addresses: &[VettedAddr]) -> io::Result<(TcpStream, Dialled)> {
    let mut waiting = interleave(addresses);
    let mut running = FuturesUnordered::new();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        if let Some(address) = waiting.pop_front() {
            running.push(connect(address));
        }
        if running.is_empty() {
            return Err(last);
        }
        let head_start = sleep_until(Instant::now() + HEAD_START);
        tokio::select! {
            Some(result) = running.next() => match result {
                Ok(connected) => return Ok(connected),
                Err(error) => last = error,
            },
            () = head_start, if !waiting.is_empty() => {}
        }
    }
}

fn interleave(addresses: &[VettedAddr]) -> VecDeque<&VettedAddr> {
    let is_v6 = |address: &&VettedAddr| address.socket_addr().is_ipv6();
    let (mut v6, mut v4): (VecDeque<&VettedAddr>, VecDeque<&VettedAddr>) = addresses
        .iter()
        .partition::<VecDeque<&VettedAddr>, _>(is_v6);
    let mut mixed = VecDeque::with_capacity(addresses.len());
    while !v6.is_empty() || !v4.is_empty() {
        mixed.extend(v6.pop_front());
        mixed.extend(v4.pop_front());
    }
    mixed
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one connect of the process, to vetted addresses"
)]
async fn connect(address: &VettedAddr) -> io::Result<(TcpStream, Dialled)> {
    let address = address.socket_addr();
    let tcp = TcpStream::connect(address).await?;
    tune(&tcp)?;
    Ok((tcp, address))
}
