//! A name that the proxy answers by itself, for whoever checks a client behind it.
//!
//! A tunnel to [`PROBE_HOST`] is opened for every known session, whatever its policy, ends in TLS
//! under our root like any other, and carries one fixed answer. Nothing is looked up, dialled or
//! swapped, and the session's lifetime is not renewed. Called by `connect`.

use std::net::SocketAddr;
use std::sync::Arc;

use super::Proxy;
use super::connect::allowed;
use super::exchange::path_of;
use super::intercept::{Offer, handshake};
use crate::audit::{Decision, Kind, Record};
use crate::host::HostPort;
use crate::session::TunnelGuard;
use crate::wire::{Connection, RequestHead, parse_request};

/// The name that is answered here. It is in a zone that never resolves (RFC 6761 §6.4), so that a
/// client that goes past the proxy cannot take anything else for the answer.
pub const PROBE_HOST: &str = "doctor.oshu-vault.invalid";

/// The port that belongs to the name.
const PORT: u16 = 443;
/// The answer. Each exchange has a connection of its own.
const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 11\r\n\
                      Cache-Control: no-store\r\nConnection: close\r\n\r\n";
const BODY: &str = "oshu-vault\n";

/// Tells whether a CONNECT target is the name that is answered here.
pub(super) fn is_target(target: &HostPort) -> bool {
    target.port == PORT && target.host.name() == Some(PROBE_HOST)
}

/// Serves a tunnel to its end.
pub(super) async fn run(
    proxy: &Arc<Proxy>,
    down: Connection,
    guard: &TunnelGuard,
    (target, peer): (HostPort, SocketAddr),
    mut record: Record,
) {
    let exchange = || {
        let mut record = Record::begin(&proxy.audit, Kind::Exchange);
        record.tenant(guard.handle().tenant());
        record.session(guard.handle().id());
        record.target(&target);
        record.peer(peer);
        record
    };
    tokio::select! {
        biased;
        () = guard.cut() => record.decision(Decision::Aborted, "session_cut"),
        ended = serve(proxy, down, &target, exchange) => match ended {
            Ok(()) => allowed(&mut record),
            Err((decision, reason)) => record.decision(decision, reason),
        },
    }
}

async fn serve(
    proxy: &Proxy,
    down: Connection,
    target: &HostPort,
    exchange: impl FnOnce() -> Record,
) -> Result<(), (Decision, &'static str)> {
    let limits = proxy.config;
    let mut down = handshake(proxy, down, target, Offer::Http1)
        .await?
        .connection;
    let block = down.read_head(limits.first_byte_timeout, limits.head_timeout);
    let head = block.await.ok().and_then(|block| parse_request(block).ok());
    let head = head.ok_or((Decision::Aborted, "no_request"))?;
    answer(&mut down, &head, exchange()).await;
    down.linger(limits.linger_timeout).await;
    Ok(())
}

async fn answer(down: &mut Connection, head: &RequestHead, mut record: Record) {
    record.request(head.method_text(), path_of(head.target_text()));
    let body = if head.method() == b"HEAD" { "" } else { BODY };
    let sent = down.send(format!("{ANSWER}{body}").as_bytes()).await;
    if sent.is_err() {
        return record.decision(Decision::Aborted, "client_gone");
    }
    record.status(200);
    record.decision(Decision::Allowed, "probe");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_name_with_its_port_is_answered() {
        for (text, expected) in [
            ("doctor.oshu-vault.invalid:443", true),
            ("Doctor.Oshu-Vault.Invalid.:443", true),
            ("doctor.oshu-vault.invalid:80", false),
            ("doctor.oshu-vault.invalid:8443", false),
            ("oshu-vault.invalid:443", false),
            ("x.doctor.oshu-vault.invalid:443", false),
            ("doctor.oshu-vault.invalid.example.com:443", false),
        ] {
            let target = HostPort::parse(text).unwrap();
            assert_eq!(is_target(&target), expected, "{text}");
        }
    }

    #[test]
    fn the_answer_has_the_length_it_states() {
        assert!(ANSWER.contains(&format!("Content-Length: {}\r\n", BODY.len())));
    }
}
