//! An open tunnel: detect, intercept or pass through, relay, and end it when its session says so.
//!
//! The whole tunnel runs beside the session's cut: when that comes, everything the tunnel holds is
//! dropped at once, its upstream connection included. Called by `connect` after the 200.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::connect::allowed;
use super::context::{Lane, Lanes};
use super::detect::{Protocol, detect};
use super::intercept::{self, Offer};
use super::{Proxy, bridge, passthrough, relay};
use crate::audit::{Decision, Record, Traffic};
use crate::host::HostPort;
use crate::policy::Scheme;
use crate::session::TunnelGuard;
use crate::wire::Connection;

/// How a tunnel ended before it carried anything.
type Ended = (Decision, &'static str);

/// Serves a tunnel to its end.
pub(super) async fn run(
    proxy: &Arc<Proxy>,
    down: Connection,
    guard: &TunnelGuard,
    target: HostPort,
    peer: SocketAddr,
    mut record: Record,
) {
    let traffic = Arc::new(Traffic::default());
    record.meter(&traffic);
    tokio::select! {
        biased;
        () = guard.cut() => record.decision(Decision::Aborted, "session_cut"),
        ended = serve(proxy, down, guard, target, (peer, traffic), &mut record) => match ended {
            Ok(()) => allowed(&mut record),
            Err((decision, reason)) => {
                if decision == Decision::Denied {
                    guard.handle().counters().denied.fetch_add(1, Ordering::Relaxed);
                }
                record.decision(decision, reason);
            }
        },
    }
}

async fn serve(
    proxy: &Arc<Proxy>,
    mut down: Connection,
    guard: &TunnelGuard,
    target: HostPort,
    facts: (SocketAddr, Arc<Traffic>),
    record: &mut Record,
) -> Result<(), Ended> {
    if !down.wait_input(proxy.config.first_byte_timeout).await {
        return Err((Decision::Aborted, "no_first_byte"));
    }
    let first = down.input.first();
    let protocol = first.map_or(Protocol::Unknown, |first| detect(*first));
    if protocol == Protocol::Tls
        && let Some(grant) = guard.splice(&target)
    {
        let tunnel = (guard.handle(), &target, &grant);
        return Box::pin(passthrough::run(proxy, down, tunnel, &facts.1, record)).await;
    }
    let (down, scheme, is_h2) = match protocol {
        Protocol::Tls => {
            let inner = Box::pin(intercept::handshake(proxy, down, &target, Offer::All)).await?;
            (inner.connection, Scheme::Https, inner.is_h2)
        }
        Protocol::Http => (down, Scheme::Http, false),
        Protocol::Unknown => return Err((Decision::Denied, "unknown_protocol")),
    };
    // The session may have been patched since the CONNECT.
    let lane = Lane::open(proxy, guard.handle(), target, scheme, facts)
        .map_err(|denial| (Decision::Denied, denial.code()))?;
    if is_h2 {
        Box::pin(bridge::run(Lanes::new(lane, proxy), down)).await;
    } else {
        relay::run(lane, down).await;
    }
    Ok(())
}
