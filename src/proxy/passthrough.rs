//! Passthrough: a tunnel whose bytes go to the upstream as they are (pinned clients).
//!
//! The workload's TLS is with the upstream itself, so nothing can be swapped, scrubbed or checked
//! in it; the session made sure that no secret may go to such a host. All that is read is the
//! `ClientHello`, without using it up: its server name must be the target's. Called by the tunnel.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustls::server::Acceptor;
use tokio::time::timeout;

use super::Proxy;
use super::intercept;
use super::reject::Refusal;
use super::splice::{self, Cut, Limits};
use crate::audit::{Decision, Record, Traffic};
use crate::host::{Host, HostPort};
use crate::policy::Grant;
use crate::session::SessionHandle;
use crate::wire::{Connection, Io};

/// The most bytes that a `ClientHello` may take, its records included.
const HELLO_LIMIT_BYTES: usize = 32 * 1024;

/// What a `ClientHello` asks for.
enum Name {
    None,
    Stated(Host),
    /// No host in any form that we know.
    Odd,
}

/// Checks the `ClientHello`, dials, and carries bytes both ways until both sides have ended.
///
/// # Errors
/// The reason for the audit record.
pub(super) async fn run(
    proxy: &Proxy,
    mut down: Connection,
    (handle, target, grant): (&Arc<SessionHandle>, &HostPort, &Grant),
    traffic: &Traffic,
    record: &mut Record,
) -> Result<(), Cut> {
    let reading = timeout(proxy.config.handshake_timeout, read_name(&mut down));
    let name = reading
        .await
        .unwrap_or(Err((Decision::Aborted, "handshake_timeout")))?;
    let refused = match name {
        Name::Stated(name) if name == target.host => None,
        Name::Stated(_) | Name::Odd => Some("another_server_name"),
        Name::None if target.host.ip().is_some() => None,
        Name::None => Some("no_server_name"),
    };
    if let Some(reason) = refused {
        let told = intercept::refuse_name(proxy, &mut down).await;
        told.map_err(|_gone| (Decision::Aborted, "handshake_failed"))?;
        return Err((Decision::Denied, reason));
    }
    if handle.is_over() {
        return Err((Decision::Denied, "session_over"));
    }
    // A stream in progress from here on.
    let _in_flight = handle.exchange();
    let (io, address) = dial(proxy, &mut down, grant).await?;
    record.address(address);
    let limits = Limits {
        idle: proxy.config.passthrough_idle_timeout,
        stall: proxy.config.stall_timeout,
    };
    let moved = |up, down| {
        traffic.up.store(up, Ordering::Relaxed);
        traffic.down.store(down, Ordering::Relaxed);
    };
    splice::run(&mut down, &mut Connection::new(io), limits, moved).await
}

/// Reads the `ClientHello` and leaves it in the input.
async fn read_name(down: &mut Connection) -> Result<Name, Cut> {
    const FAILED: Cut = (Decision::Aborted, "handshake_failed");
    let mut hello = Acceptor::default();
    let mut seen = 0;
    loop {
        while let Some(mut rest @ [_, ..]) = down.input.get(seen..) {
            seen += hello.read_tls(&mut rest).map_err(|_full| FAILED)?;
            match hello.accept() {
                Ok(Some(accepted)) => {
                    return Ok(
                        match accepted.client_hello().server_name().map(Host::parse) {
                            None => Name::None,
                            Some(Ok(host)) => Name::Stated(host),
                            Some(Err(_odd)) => Name::Odd,
                        },
                    );
                }
                Ok(None) => {}
                Err((error, _alert)) => {
                    tracing::debug!(%error, "a ClientHello cannot be read");
                    return Err(FAILED);
                }
            }
        }
        if seen >= HELLO_LIMIT_BYTES {
            return Err((Decision::Denied, "client_hello_too_large"));
        }
        match down.read_some().await {
            Ok(1..) => {}
            Ok(_) | Err(_) => return Err(FAILED),
        }
    }
}

/// Dials, unless the client goes away first.
async fn dial(
    proxy: &Proxy,
    down: &mut Connection,
    grant: &Grant,
) -> Result<(Io, SocketAddr), Cut> {
    let mut dial = std::pin::pin!(proxy.upstream.dial(grant));
    let dialled = tokio::select! {
        biased;
        dialled = &mut dial => dialled,
        closed = std::future::poll_fn(|cx| down.poll_closed(cx)) => {
            if closed {
                return Err((Decision::Aborted, "client_gone"));
            }
            dial.await
        }
    };
    dialled.map_err(|error| {
        let cause: &dyn std::error::Error = &error;
        tracing::debug!(error = cause, "no connection to pass through to");
        let refusal = Refusal::from(&error);
        (refusal.decision(), refusal.code)
    })
}
