//! TLS with the workload: the name it asks for must be the CONNECT target's.
//!
//! The `ClientHello` is read before anything is decided. A name other than the target's is refused
//! with the alert that says so; the leaf is the target's in any case. Called by the
//! tunnel, and by what is served here.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use rustls::ServerConfig;
use rustls::server::Acceptor;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;

use super::Proxy;
use crate::audit::Decision;
use crate::host::{Host, HostPort};
use crate::wire::Connection;

/// A fatal `unrecognized_name` alert in a record of its own (RFC 6066 §3, RFC 8446 §6).
const UNRECOGNIZED_NAME: &[u8] = &[0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x70];

/// What the workload says inside its TLS, and in which protocol.
pub(super) struct Intercepted {
    pub(super) connection: Connection,
    /// HTTP/2 was agreed on.
    pub(super) is_h2: bool,
}

/// What a workload may speak inside its TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offer {
    /// HTTP/2 and HTTP/1.1.
    All,
    /// HTTP/1.1: for what is served here.
    Http1,
}

/// Ends the workload's TLS. The error is the reason for the audit record.
pub(super) async fn handshake(
    proxy: &Proxy,
    down: Connection,
    target: &HostPort,
    offer: Offer,
) -> Result<Intercepted, (Decision, &'static str)> {
    let began = Instant::now();
    let accepted = accept(proxy, down, target, offer);
    match timeout(proxy.config.handshake_timeout, accepted).await {
        Err(_elapsed) => Err((Decision::Aborted, "handshake_timeout")),
        Ok(Err(error)) => {
            // Most often a client that does not trust the CA.
            tracing::debug!(%error, %target, "the workload's TLS handshake failed");
            Err((Decision::Aborted, "handshake_failed"))
        }
        Ok(Ok(None)) => Err((Decision::Denied, "another_server_name")),
        Ok(Ok(Some(intercepted))) => {
            proxy.handshakes.observe(began.elapsed());
            Ok(intercepted)
        }
    }
}

async fn accept(
    proxy: &Proxy,
    down: Connection,
    target: &HostPort,
    offer: Offer,
) -> io::Result<Option<Intercepted>> {
    let start = LazyConfigAcceptor::new(Acceptor::default(), down.into_replay()).await?;
    let named = start.client_hello().server_name().map(Host::parse);
    if !matches!(named, None | Some(Ok(_)))
        || named.is_some_and(|name| name != Ok(target.host.clone()))
    {
        refuse_name(proxy, &mut Connection::new(Box::new(start.io))).await?;
        return Ok(None);
    }
    let config = proxy.authority.server_config(&target.host).await;
    let mut config = config.map_err(io::Error::other)?;
    if offer == Offer::Http1 {
        let mut http1 = ServerConfig::clone(&config);
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        config = Arc::new(http1);
    }
    let stream = start.into_stream(config).await?;
    let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok(Some(Intercepted {
        connection: Connection::new(Box::new(stream)),
        is_h2,
    }))
}

/// Tells a workload that the tunnel does not lead to the name it asks for.
pub(super) async fn refuse_name(proxy: &Proxy, down: &mut Connection) -> io::Result<()> {
    down.send(UNRECOGNIZED_NAME).await?;
    down.close(proxy.config.linger_timeout).await;
    Ok(())
}
