//! A CONNECT proxy to stand between the vault and its origins: an [`Origin`] that records every
//! byte it is sent, the bytes in its tunnels included, and forwards them.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::origin::OriginBuilder;
use super::{Origin, OriginConn};

/// What the proxy says when a tunnel is open.
const OPEN: &str = "HTTP/1.1 200 Connection established\r\n\r\n";

impl OriginBuilder {
    /// Starts a proxy that opens every tunnel that it is asked for.
    pub(crate) async fn connect_proxy(self) -> Origin {
        self.raw(|conn| forward(conn, OPEN)).await
    }
}

/// Reads a CONNECT, opens the tunnel with an answer of the test's choice and carries its bytes.
pub(crate) async fn forward(conn: OriginConn, answer: &'static str) {
    let Some(head) = conn.read_head().await else {
        return;
    };
    let target = target(&head);
    let Ok(tcp) = TcpStream::connect(target).await else {
        return conn.send("HTTP/1.1 502 Bad Gateway\r\n\r\n").await;
    };
    conn.send(answer).await;
    let (mut reader, mut writer) = tcp.into_split();
    let up = async {
        while let Some(bytes) = conn.read_some().await {
            if writer.write_all(&bytes).await.is_err() {
                break;
            }
        }
        // The other side may have closed already, which is no failure here.
        let _ended = writer.shutdown().await;
    };
    let down = async {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = reader.read(&mut buffer).await {
            conn.send(&buffer[..count]).await;
        }
        conn.close().await;
    };
    tokio::join!(up, down);
}

/// Returns the address that a CONNECT asks for; a name fails the test.
pub(crate) fn target(head: &str) -> SocketAddr {
    let line = head.split("\r\n").next().unwrap_or_default();
    let target = line
        .strip_prefix("CONNECT ")
        .and_then(|rest| rest.strip_suffix(" HTTP/1.1"));
    target
        .and_then(|target| target.parse().ok())
        .unwrap_or_else(|| panic!("no CONNECT to an address: {line}"))
}
