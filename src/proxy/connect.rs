//! CONNECT: who asks, for what, and whether they may (RFC 9110 §9.3.6).
//!
//! Credentials come first and a refusal by policy is never 407. Nothing is looked up or dialled
//! here. Called by the proxy for each CONNECT head.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::reject::{self, Refusal};
use super::{Proxy, own, probe, tunnel};
use crate::audit::{Decision, Kind, Record};
use crate::host::HostPort;
use crate::serve::Peer;
use crate::session::{Authenticated, NotAdmitted, TunnelGuard};
use crate::wire::{Connection, Framing, RequestHead, request_framing};

/// What the client is told when the tunnel is open. It has neither body nor framing fields.
const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection Established\r\n\r\n";

impl Proxy {
    /// Serves a CONNECT. Gives the connection back if it was refused and can carry another head.
    pub(super) async fn connect(
        self: &Arc<Self>,
        mut down: Connection,
        head: &RequestHead,
        peer: &Peer,
    ) -> Option<Connection> {
        let mut record = Record::begin(&self.audit, Kind::Tunnel);
        record.peer(peer.address);
        match self.admit(head, peer, &mut record).await {
            Ok((guard, target)) => {
                if down.send(ESTABLISHED).await.is_err() {
                    return None;
                }
                if probe::is_target(&target) {
                    probe::run(self, down, &guard, (target, peer.address), record).await;
                } else if let Some(server) = self.own_service(&target) {
                    Box::pin(own::run(
                        self,
                        server,
                        down,
                        &guard,
                        (&target, peer),
                        record,
                    ))
                    .await;
                } else {
                    tunnel::run(self, down, &guard, target, peer.address, record).await;
                }
                None
            }
            Err(refusal) => {
                record.status(refusal.status);
                record.decision(refusal.decision(), refusal.code);
                drop(record);
                let keep_alive = self.reusable(head) && !refusal.closes && !self.is_stale(peer);
                if reject::send(&mut down, &refusal, keep_alive).await.is_err() {
                    return None;
                }
                if !keep_alive {
                    down.linger(self.config.linger_timeout).await;
                    return None;
                }
                Some(down)
            }
        }
    }

    async fn admit(
        &self,
        head: &RequestHead,
        peer: &Peer,
        record: &mut Record,
    ) -> Result<(TunnelGuard, HostPort), Refusal> {
        let caller = self.authenticate(head, peer, record).await?;
        let handle = caller.handle();
        record.admit()?;
        if request_framing(head)? != Framing::None {
            return Err(Refusal::client(
                400,
                "connect_with_body",
                "CONNECT has no body",
            ));
        }
        let target = HostPort::parse(head.target_text()).map_err(|_why| {
            Refusal::client(
                400,
                "bad_connect_target",
                "the CONNECT target is not host:port",
            )
        })?;
        record.target(&target);
        check_host(head, &target, |host| self.is_proxy(host, peer))?;
        self.refuse_own(&target)?;
        let is_ours = probe::is_target(&target) || self.own_service(&target).is_some();
        if !is_ours && let Err(denial) = handle.decide(&target) {
            handle.counters().denied.fetch_add(1, Ordering::Relaxed);
            return Err(Refusal::denied(denial, &target.host.to_string()));
        }
        let guard = handle.tunnel(&target).map_err(Refusal::limited)?;
        Ok((guard, target))
    }

    /// Finds the session of a caller. Two credentials are as bad as a wrong one; none is no attempt:
    /// git, Java and others ask without one first, each time, to be told how. From here on the
    /// connection counts for the session.
    pub(super) async fn authenticate(
        &self,
        head: &RequestHead,
        peer: &Peer,
        record: &mut Record,
    ) -> Result<Authenticated, Refusal> {
        let mut values = head.fields.all("proxy-authorization");
        let caller = match (values.next(), values.next()) {
            (None, _) => return Err(Refusal::credentials()),
            (Some(value), None) => self.sessions.admit(value).await,
            (Some(_), Some(_)) => Err(NotAdmitted::Unknown),
        };
        let caller = match caller {
            Ok(caller) => caller,
            // Counted only after the work was done, which is the same for every kind of no.
            Err(NotAdmitted::Unknown) => {
                let held = self.throttle.failed(peer.address.ip());
                return Err(held.map_or_else(Refusal::throttled, |()| Refusal::credentials()));
            }
            Err(NotAdmitted::Unavailable) => return Err(Refusal::no_store()),
        };
        let handle = caller.handle();
        record.tenant(handle.tenant());
        record.session(handle.id());
        let seated = peer.newcomer.seat(handle.seats());
        seated.map_err(Refusal::crowded)?;
        Ok(caller)
    }

    /// Tells whether a host is the listener that a peer came through, under any of its names.
    fn is_proxy(&self, host: &HostPort, peer: &Peer) -> bool {
        let here = peer.listener;
        let address = host
            .host
            .ip()
            .is_some_and(|ip| ip.to_canonical() == here.ip().to_canonical());
        let local = here.ip().is_loopback() && host.host.name() == Some("localhost");
        self.own.as_ref() == Some(host) || (host.port == here.port() && (address || local))
    }

    /// Refuses our own public address, where nobody serves it in process: it is never dialled.
    pub(super) fn refuse_own(&self, target: &HostPort) -> Result<(), Refusal> {
        if self.own.as_ref() == Some(target) && self.inner.is_none() {
            return Err(Refusal::policy(
                "own_address",
                "this is the proxy itself",
                None,
            ));
        }
        Ok(())
    }
}

/// Checks the `Host` field of a CONNECT. Some clients leave it out, and some name the proxy there:
/// neither changes where the tunnel goes.
fn check_host(
    head: &RequestHead,
    target: &HostPort,
    proxy: impl Fn(&HostPort) -> bool,
) -> Result<(), Refusal> {
    let mut values = head.fields.all("host");
    let malformed = || Refusal::client(400, "bad_host", "Host is malformed or repeated");
    let text = match (values.next(), values.next()) {
        (None, _) => return Ok(()),
        (Some(value), None) => std::str::from_utf8(value).map_err(|_bytes| malformed())?,
        (Some(_), Some(_)) => return Err(malformed()),
    };
    match HostPort::parse_or(text, target.port) {
        Ok(host) if host == *target || proxy(&host) => Ok(()),
        Ok(_) => Err(Refusal::client(
            421,
            "another_authority",
            "Host names another authority than the CONNECT target",
        )),
        Err(_malformed) => Err(malformed()),
    }
}

/// Marks a tunnel's record as let through.
pub(super) fn allowed(record: &mut Record) {
    record.status(200);
    record.decision(Decision::Allowed, "ok");
}
