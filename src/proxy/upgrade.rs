//! WebSocket: the handshake as an exchange like any other, then bytes (RFC 6455, RFC 9110 §7.8).
//!
//! Only what was asked for may switch: nothing is sent on before the 101, and a 101 that names
//! another protocol is no answer. From then on the frames are neither read, swapped nor scrubbed.
//! The upstream's connection belongs to this exchange alone and is never given back. Called by the
//! exchange.

use super::After;
use super::context::{Lane, Meter};
use super::exchange::allowed;
use super::reject::{self, Refusal};
use super::splice::{self, Limits};
use crate::audit::Record;
use crate::upstream::Lease;
use crate::wire::{
    AnswerHead, Connection, Fields, Framing, RequestHead, Version, clean_answer, token_list_has,
};

/// The protocol, and the one that is switched to.
const WEBSOCKET: &str = "websocket";
/// The status that grants a switch of protocols.
pub(super) const SWITCHING_PROTOCOLS: u16 = 101;

/// What a request asks its connection to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upgrade {
    /// What it is.
    None,
    /// A WebSocket.
    WebSocket,
}

/// Tells whether a request asks for WebSocket. Other protocols are as if they were not named, and
/// so is WebSocket where the request does not ask this connection for it.
///
/// # Errors
/// A handshake that is no GET, or has a body.
pub(super) fn asked(head: &RequestHead, framing: Framing) -> Result<Upgrade, Refusal> {
    if head.version != Version::Http11 || !names_websocket(&head.fields) {
        return Ok(Upgrade::None);
    }
    let empty = matches!(framing, Framing::None | Framing::Length(0));
    if head.method() != b"GET" || !empty {
        let message = "a WebSocket handshake is a GET without a body";
        return Err(Refusal::client(400, "bad_upgrade", message));
    }
    Ok(Upgrade::WebSocket)
}

/// Tells whether an answer of 101 grants what was asked for, and says nothing else.
pub(super) fn granted(answer: &AnswerHead) -> bool {
    let framed = ["content-length", "transfer-encoding"]
        .iter()
        .any(|name| answer.fields.first(name).is_some());
    answer.version == Version::Http11 && !framed && names_websocket(&answer.fields)
}

fn names_websocket(fields: &Fields) -> bool {
    token_list_has(fields, "connection", "upgrade") && token_list_has(fields, "upgrade", WEBSOCKET)
}

/// Writes the two fields that ask for the switch, or grant it: what concerns one connection was
/// removed, and this is said anew on the next one.
pub(super) fn put_fields(fields: &mut Fields) {
    fields.append("Connection", &b"Upgrade"[..]);
    fields.append("Upgrade", WEBSOCKET.as_bytes());
}

/// Grants the switch to the client, and carries bytes both ways until both sides have ended.
pub(super) async fn run(
    lane: &Lane<'_>,
    down: &mut Connection,
    mut lease: Lease,
    mut answer: AnswerHead,
    (record, meter): (&mut Record, &Meter),
) -> Result<After, Refusal> {
    clean_answer(&mut answer).map_err(|_rule| reject::bad_answer())?;
    put_fields(&mut answer.fields);
    let mut text = Vec::with_capacity(answer.fields.block().len() + 64);
    answer.write(&mut text);
    record.status(answer.status);
    down.send(&text).await.map_err(|_gone| Refusal::gone())?;
    let config = &lane.proxy.config;
    let limits = Limits {
        idle: config.websocket_idle_timeout,
        stall: config.stall_timeout,
    };
    let moved = |up, down| meter.set(up, down);
    match splice::run(down, &mut lease.connection, limits, moved).await {
        Ok(()) => allowed(record, SWITCHING_PROTOCOLS),
        Err((decision, reason)) => record.decision(decision, reason),
    }
    Ok(After::Gone)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::wire::{parse_answer, parse_request, request_framing};

    const ASKED: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\n";

    fn asks(start: &str, fields: &str) -> Result<bool, &'static str> {
        let text = format!("{start}\r\nHost: x\r\n{fields}\r\n");
        let head = parse_request(Bytes::from(text)).unwrap();
        let framing = request_framing(&head).unwrap();
        asked(&head, framing)
            .map(|upgrade| upgrade == Upgrade::WebSocket)
            .map_err(|refusal| refusal.code)
    }

    #[test]
    fn a_handshake_asks_this_connection_for_websocket() {
        for (fields, expected) in [
            (ASKED, true),
            (
                "connection: keep-alive, UPGRADE\r\nupgrade: WebSocket\r\n",
                true,
            ),
            ("Connection: Upgrade\r\nUpgrade: h2c, websocket\r\n", true),
            ("Connection: Upgrade\r\nUpgrade: h2c\r\n", false),
            ("Connection: Upgrade\r\nUpgrade: websocket/13\r\n", false),
            ("Upgrade: websocket\r\n", false),
            ("Connection: Upgrade\r\n", false),
            ("Connection: keep-alive\r\nUpgrade: websocket\r\n", false),
        ] {
            assert_eq!(asks("GET / HTTP/1.1", fields), Ok(expected), "{fields}");
        }
        assert_eq!(asks("GET / HTTP/1.0", ASKED), Ok(false));
    }

    #[test]
    fn a_handshake_is_a_get_without_a_body() {
        let with = |field: &str| format!("{ASKED}{field}\r\n");
        for (start, fields, expected) in [
            ("POST / HTTP/1.1", ASKED.to_owned(), Err("bad_upgrade")),
            ("HEAD / HTTP/1.1", ASKED.to_owned(), Err("bad_upgrade")),
            ("get / HTTP/1.1", ASKED.to_owned(), Err("bad_upgrade")),
            ("GET / HTTP/1.1", with("Content-Length: 0"), Ok(true)),
            (
                "GET / HTTP/1.1",
                with("Content-Length: 1"),
                Err("bad_upgrade"),
            ),
            (
                "GET / HTTP/1.1",
                with("Transfer-Encoding: chunked"),
                Err("bad_upgrade"),
            ),
        ] {
            assert_eq!(asks(start, &fields), expected, "{start} {fields}");
        }
    }

    #[test]
    fn a_grant_names_websocket_and_has_no_body() {
        for (start, fields, expected) in [
            ("HTTP/1.1 101 Switching Protocols", ASKED, true),
            (
                "HTTP/1.1 101 Switching Protocols",
                "connection: upgrade\r\nUPGRADE: WebSocket\r\n",
                true,
            ),
            ("HTTP/1.0 101 Switching Protocols", ASKED, false),
            (
                "HTTP/1.1 101 Switching Protocols",
                "Connection: Upgrade\r\nUpgrade: h2c\r\n",
                false,
            ),
            (
                "HTTP/1.1 101 Switching Protocols",
                "Upgrade: websocket\r\n",
                false,
            ),
            (
                "HTTP/1.1 101 Switching Protocols",
                "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n",
                false,
            ),
            (
                "HTTP/1.1 101 Switching Protocols",
                "Connection: Upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n",
                false,
            ),
        ] {
            let answer = parse_answer(Bytes::from(format!("{start}\r\n{fields}\r\n"))).unwrap();
            assert_eq!(granted(&answer), expected, "{start} {fields}");
        }
    }
}
