//! A WebSocket server for real clients (RFC 6455): it echoes every frame, compressed ones as they
//! are.
//!
//! Compression is agreed on without a context from frame to frame (RFC 7692 §7.1.1), so that a
//! client can read its own frames again and nobody here has to.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{OriginConn, Request};

/// What a server appends to the client's key (RFC 6455 §1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Answers the handshake and echoes frames until the client closes.
pub(crate) async fn echo(request: &Request, conn: &OriginConn) {
    let key = request.header("sec-websocket-key").expect("a key");
    let accept = digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{GUID}").as_bytes());
    let accept = STANDARD.encode(accept);
    let deflate = if request.head.contains("permessage-deflate") {
        "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; \
         client_no_context_takeover\r\n"
    } else {
        ""
    };
    conn.send(format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n{deflate}\r\n"
    ))
    .await;
    while let Some((first, payload)) = read_frame(conn).await {
        let opcode = match first & 0x0f {
            0x9 => first + 1,
            _ => first,
        };
        conn.send(frame(opcode, &payload)).await;
        if first & 0x0f == 0x8 {
            return conn.close().await;
        }
    }
}

/// Reads one frame of a client; its first byte and its payload.
async fn read_frame(conn: &OriginConn) -> Option<(u8, Vec<u8>)> {
    let head = conn.read_exactly(2).await?;
    assert_ne!(head[1] & 0x80, 0, "a client masks its frames");
    let length = match head[1] & 0x7f {
        126 => {
            let bytes = conn.read_exactly(2).await?;
            u64::from(u16::from_be_bytes(bytes.try_into().expect("two")))
        }
        127 => u64::from_be_bytes(conn.read_exactly(8).await?.try_into().expect("eight")),
        short => u64::from(short),
    };
    let mask = conn.read_exactly(4).await?;
    let length = usize::try_from(length).expect("a length");
    let mut payload = conn.read_exactly(length).await?;
    for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    Some((head[0], payload))
}

/// Writes one frame as a server does: unmasked. `first` has the final bit, the extension's bits
/// and the opcode.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        short @ ..=125 => frame.push(u8::try_from(short).expect("short")),
        middle @ 126..=0xffff => {
            frame.push(126);
            frame.extend(u16::try_from(middle).expect("two bytes").to_be_bytes());
        }
        long => {
            frame.push(127);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    frame
}

/// Writes one frame as a client does: masked.
pub(crate) fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let mut all = frame(first, payload);
    let head = all.len() - payload.len();
    all[1] |= 0x80;
    for (byte, mask) in all[head..].iter_mut().zip(MASK.iter().cycle()) {
        *byte ^= mask;
    }
    all.splice(head..head, MASK);
    all
}
