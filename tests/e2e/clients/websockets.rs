//! Clients of `WebSocket`s (RFC 6455): the handshake carries the secret, then frames pass.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::javascript;
use super::python;
use super::row::row;
use super::stage::{Stage, node};
use crate::support::{Origin, OriginConn};

/// What a server adds to the client's key (RFC 6455 §1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Starts an origin that sends each frame back and answers the end.
async fn echo() -> Origin {
    Origin::raw(|conn| async move {
        let Some(request) = conn.read_request().await else {
            return;
        };
        let key = request.header("sec-websocket-key").expect("a key");
        let accept = digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{GUID}").as_bytes());
        let accept = STANDARD.encode(accept);
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        conn.send(head).await;
        while echo_frame(&conn).await.is_some() {}
        conn.close().await;
    })
    .await
}

/// Sends one frame back, unmasked; nothing after the one that ends the connection.
async fn echo_frame(conn: &OriginConn) -> Option<()> {
    const CLOSE: u8 = 0x88;
    let head = conn.read_exactly(2).await?;
    let length = usize::from(head[1] & 0x7f);
    assert!(length < 126, "no frame of these clients is longer");
    let mask = conn.read_exactly(4).await?;
    let masked = conn.read_exactly(length).await?;
    let plain = masked.iter().zip(mask.iter().cycle());
    let plain: Vec<u8> = plain.map(|(byte, key)| byte ^ key).collect();
    conn.send([&[head[0], head[1] & 0x7f][..], &plain].concat())
        .await;
    (head[0] != CLOSE).then_some(())
}

#[tokio::test]
async fn python_websockets() {
    if python::is_missing() {
        return;
    }
    for (name, client) in [
        ("websockets for Python", "websockets"),
        ("websockets for Python, `sync`", "websockets_sync"),
    ] {
        let run = async |stage: &Stage| python::call(stage, client).await;
        row(name).check(echo, run).await;
    }
}

#[tokio::test]
async fn node_websockets() {
    let Some(node) = node("node24") else { return };
    for (name, client) in [
        ("`WebSocket` on node 24", "websocket"),
        ("ws on node 24", "ws"),
    ] {
        let run = async |stage: &Stage| javascript::call(stage, &node, client).await;
        row(name).check(echo, run).await;
    }
}
