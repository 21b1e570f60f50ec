//! Our own public address, asked for through the proxy: served here, never dialled.
//!
//! A workload that sends everything through the proxy reaches the gateway too. A tunnel there is open
//! to every known session, whatever its policy, ends in TLS under our root or in none, and carries
//! requests to the service that `app` gives for this door alone. Where the session's policy allows this
//! host, tokens are swapped in the fields of a credential and nowhere else: what the service passes
//! on must not have a value in it. Called by both doors.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use super::connect::allowed;
use super::detect::{Protocol, detect};
use super::exchange::{path_of, unless_gone};
use super::intercept::{Offer, handshake};
use super::local::{Answered, LocalServer};
use super::reject::{self, Refusal};
use super::{After, Proxy};
use crate::audit::{Decision, Handed, Kind, Record};
use crate::host::HostPort;
use crate::policy::Scheme;
use crate::sealed_token::{Place, TokenId};
use crate::serve::Peer;
use crate::session::{HostView, SessionHandle, TunnelGuard};
use crate::swap::{Lookup, Opening};
use crate::wire::{Connection, ReadError, RequestHead, parse_request_within};

/// The fields in which a credential for us may be a sealed token.
const CREDENTIAL_FIELDS: [&str; 2] = ["authorization", "x-api-key"];

/// What an exchange here is about.
pub(super) struct Visit<'a> {
    pub(super) server: &'a LocalServer,
    pub(super) handle: &'a Arc<SessionHandle>,
    pub(super) target: &'a HostPort,
    pub(super) scheme: Scheme,
    pub(super) peer: Peer,
}

/// A session's view of our own host: tokens open in the fields where a credential of a caller's is
/// looked for, which no service of ours passes on, and in no other place.
struct Credentials<'a>(&'a HostView);

impl Lookup for Credentials<'_> {
    fn open<'a>(&'a self, id: TokenId, before: &[u8], place: Place<'_>) -> Option<Opening<'a>> {
        let is_credential = matches!(place, Place::Header(name)
            if CREDENTIAL_FIELDS.iter().any(|field| name.eq_ignore_ascii_case(field.as_bytes())));
        is_credential
            .then(|| self.0.open(id, before, place))
            .flatten()
    }
}

impl Proxy {
    /// Returns who serves our own public address to workloads, where that is what is asked for.
    pub(super) fn own_service(&self, target: &HostPort) -> Option<&LocalServer> {
        let is_own = self.own.as_ref() == Some(target);
        self.inner.as_ref().filter(|_| is_own)
    }
}

/// Serves a tunnel to its end.
pub(super) async fn run(
    proxy: &Arc<Proxy>,
    server: &LocalServer,
    down: Connection,
    guard: &TunnelGuard,
    (target, peer): (&HostPort, &Peer),
    mut record: Record,
) {
    tokio::select! {
        biased;
        () = guard.cut() => record.decision(Decision::Aborted, "session_cut"),
        ended = serve(proxy, server, down, guard, (target, peer)) => match ended {
            Ok(()) => allowed(&mut record),
            Err((decision, reason)) => record.decision(decision, reason),
        },
    }
}

async fn serve(
    proxy: &Arc<Proxy>,
    server: &LocalServer,
    mut down: Connection,
    guard: &TunnelGuard,
    (target, peer): (&HostPort, &Peer),
) -> Result<(), (Decision, &'static str)> {
    let limits = proxy.config;
    if !down.wait_input(limits.first_byte_timeout).await {
        return Err((Decision::Aborted, "no_first_byte"));
    }
    let mut peer = peer.clone();
    let first = down.input.first();
    let scheme = match first.map_or(Protocol::Unknown, |first| detect(*first)) {
        Protocol::Http => Scheme::Http,
        Protocol::Unknown => return Err((Decision::Denied, "unknown_protocol")),
        Protocol::Tls => {
            let shaken = handshake(proxy, down, target, Offer::Http1).await?;
            down = shaken.connection;
            peer.tls = true;
            Scheme::Https
        }
    };
    let visit = Visit {
        server,
        handle: guard.handle(),
        target,
        scheme,
        peer,
    };
    let mut down = down.with_head_limit(limits.head.bytes);
    let mut wait = limits.first_byte_timeout;
    loop {
        let block = tokio::select! {
            biased;
            block = down.read_head(wait, limits.head_timeout) => block,
            () = proxy.drain.draining() => break,
        };
        let parsed = block.map(|block| parse_request_within(block, &limits.head));
        let after = match parsed {
            Ok(Ok(head)) => exchange(proxy, &visit, &mut down, head).await,
            Ok(Err(error)) | Err(ReadError::Malformed(error)) => {
                let refusal = Refusal::from(error);
                refuse(&mut down, &refusal, begin(proxy, &visit)).await
            }
            Err(_gone) => break,
        };
        match after {
            After::KeepAlive => wait = limits.idle_timeout,
            After::Close => {
                down.linger(limits.linger_timeout).await;
                break;
            }
            After::Gone => break,
        }
    }
    Ok(())
}

/// Serves one request. Its record is handed on to the service, so that there is one.
pub(super) async fn exchange(
    proxy: &Proxy,
    visit: &Visit<'_>,
    down: &mut Connection,
    mut head: RequestHead,
) -> After {
    let mut record = begin(proxy, visit);
    record.request(head.method_text(), path_of(head.target_text()));
    // As every exchange: what waits for its turn is checked against the session as it then is.
    let turn = match unless_gone(down, visit.handle.turn()).await {
        Ok(turn) => turn.map_err(Refusal::limited),
        Err(gone) => Err(gone),
    };
    let admitted = turn.and_then(|turn| {
        admit(proxy, visit, &mut head, &mut record)?;
        Ok(turn)
    });
    let _turn = match admitted {
        Ok(turn) => turn,
        Err(refusal) => {
            if refusal.decision() == Decision::Denied {
                visit
                    .handle
                    .counters()
                    .denied
                    .fetch_add(1, Ordering::Relaxed);
            }
            return refuse(down, &refusal, record).await;
        }
    };
    // Only what the service accepts renews the session and counts as let through: anybody may ask.
    let in_flight = Arc::new(OnceLock::new());
    let handed = Handed::new(record, {
        let (in_flight, handle) = (Arc::clone(&in_flight), Arc::clone(visit.handle));
        move || {
            in_flight.get_or_init(|| handle.exchange());
            handle.counters().exchanges.fetch_add(1, Ordering::Relaxed);
        }
    });
    let Answered { after, status } = visit
        .server
        .answer_for(down, head, &visit.peer, Some(&handed))
        .await;
    if let Some(mut record) = handed.take() {
        match status {
            Some(status) => {
                record.status(status);
                record.decision(Decision::Denied, "own_address");
            }
            None => record.decision(Decision::Aborted, "client_gone"),
        }
    }
    let is_refused = status.is_some_and(|status| (400..500).contains(&status));
    if is_refused && in_flight.get().is_none() {
        let denied = &visit.handle.counters().denied;
        denied.fetch_add(1, Ordering::Relaxed);
    }
    after
}

fn admit(
    proxy: &Proxy,
    visit: &Visit<'_>,
    head: &mut RequestHead,
    record: &mut Record,
) -> Result<(), Refusal> {
    if visit.handle.is_over() {
        return Err(Refusal::session_over());
    }
    record.admit()?;
    let mut hosts = head.fields.all("host");
    let default = match visit.scheme {
        Scheme::Http => 80,
        Scheme::Https => 443,
    };
    let one = hosts.next().filter(|_| hosts.next().is_none());
    let one = one.and_then(|host| std::str::from_utf8(host).ok());
    let named = one.map(|host| HostPort::parse_or(host, default));
    match named {
        Some(Ok(host)) if host == *visit.target => {}
        Some(Ok(_)) => {
            let message = "the request names another authority than the tunnel";
            return Err(Refusal::client(421, "another_authority", message));
        }
        _ => {
            let message = "Host is missing, malformed or repeated";
            return Err(Refusal::client(400, "bad_host", message));
        }
    }
    if head.target().first() != Some(&b'/') {
        let message = "the request target is not a path";
        return Err(Refusal::client(400, "bad_target", message));
    }
    drop(hosts);
    // A policy that does not allow us gives no secret to us.
    if let Ok(view) = visit.handle.host_view(visit.target, visit.scheme) {
        let swapped = proxy.swapper.swap_request(head, &Credentials(&view));
        let swapped = swapped.map_err(|_limit| {
            let message = "the head has too many sealed tokens";
            Refusal::client(431, "too_many_tokens", message)
        })?;
        if swapped.count > 0 || swapped.left > 0 {
            record.swapped(&swapped.names, swapped.left);
            let counters = visit.handle.counters();
            let count = u64::from(swapped.count);
            counters.swapped.fetch_add(count, Ordering::Relaxed);
        }
    }
    Ok(())
}

fn begin(proxy: &Proxy, visit: &Visit<'_>) -> Record {
    let mut record = Record::begin(&proxy.audit, Kind::Exchange);
    record.tenant(visit.handle.tenant());
    record.session(visit.handle.id());
    record.target(visit.target);
    record.peer(visit.peer.address);
    record
}

async fn refuse(down: &mut Connection, refusal: &Refusal, mut record: Record) -> After {
    record.status(refusal.status);
    record.decision(refusal.decision(), refusal.code);
    drop(record);
    if refusal.decision() == Decision::Aborted {
        // Nobody is there to answer.
        return After::Gone;
    }
    match reject::send(down, refusal, false).await {
        Ok(()) => After::Close,
        Err(_gone) => After::Gone,
    }
}
