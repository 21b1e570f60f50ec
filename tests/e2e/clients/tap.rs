//! A tap on the wire between a client and the vault: what the client says is passed on and kept.
//!
//! It shows what no answer shows: whether the proxy was spoken to in TLS, whether the credential
//! came unasked, which protocols were offered in the tunnel. It changes nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The first byte of a TLS record with a handshake in it (RFC 8446 §5.1).
const HANDSHAKE: u8 = 0x16;
/// How much of a connection is kept: heads and the first handshake are far below.
const KEPT_BYTES: usize = 32 << 10;

type Kept = Arc<Mutex<Vec<Vec<u8>>>>;

/// A forwarder that keeps what clients send.
pub(super) struct Tap {
    address: SocketAddr,
    kept: Kept,
    task: tokio::task::JoinHandle<()>,
}

impl Tap {
    /// Starts a forwarder to a listener of the vault.
    pub(super) async fn before(listener: SocketAddr) -> Self {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let socket = socket.expect("a port");
        let address = socket.local_addr().expect("an address");
        let kept = Kept::default();
        let shared = Arc::clone(&kept);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = socket.accept().await {
                let index = change(&shared, |all| {
                    all.push(Vec::new());
                    all.len() - 1
                });
                tokio::spawn(forward(client, listener, Arc::clone(&shared), index));
            }
        });
        Self {
            address,
            kept,
            task,
        }
    }

    /// Returns where clients connect to.
    pub(super) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Returns the first bytes of every connection.
    pub(super) fn kept(&self) -> Vec<Vec<u8>> {
        change(&self.kept, |all| all.clone())
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn change<T>(kept: &Kept, change: impl FnOnce(&mut Vec<Vec<u8>>) -> T) -> T {
    change(&mut kept.lock().unwrap_or_else(PoisonError::into_inner))
}

async fn forward(client: TcpStream, listener: SocketAddr, kept: Kept, index: usize) {
    let vault = TcpStream::connect(listener).await.expect("the vault");
    for side in [&client, &vault] {
        // A client that is gone already has nothing to be quick for.
        let _set = side.set_nodelay(true);
    }
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_vault, mut to_vault) = vault.into_split();
    let up = async {
        let keep = |bytes: &[u8]| {
            change(&kept, |all| {
                let room = KEPT_BYTES.saturating_sub(all[index].len());
                all[index].extend_from_slice(&bytes[..bytes.len().min(room)]);
            });
        };
        copy(&mut from_client, &mut to_vault, keep).await;
    };
    let down = copy(&mut from_vault, &mut to_client, |_| ());
    tokio::join!(up, down);
}

/// Copies to the end of one direction and passes the end on.
async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut tokio::net::tcp::OwnedWriteHalf,
    keep: impl Fn(&[u8]),
) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        keep(&buffer[..count]);
        if to.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
    // The other side may have closed already.
    let _ended = to.shutdown().await;
}

/// How a client opens a connection to the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Opening {
    /// The first line of its first request; empty where that is not to be seen.
    pub(super) first_line: String,
    /// Whether it speaks TLS to the proxy.
    pub(super) is_tls: bool,
    /// Whether that TLS names the server (RFC 6066 §3).
    pub(super) has_sni: bool,
    /// Whether its first request has the credential; none where that is not to be seen.
    pub(super) is_unasked: Option<bool>,
    /// The protocols offered inside the tunnel, in order; none where there is no TLS to be seen.
    pub(super) offered: Option<Vec<String>>,
}

impl Opening {
    /// Reads what a client sent first.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        if *bytes.first()? == HANDSHAKE {
            let (sni, _offered) = hello(bytes)?;
            return Some(Self {
                first_line: String::new(),
                is_tls: true,
                has_sni: sni,
                is_unasked: None,
                offered: None,
            });
        }
        let mut rest = bytes;
        let mut is_unasked = None;
        while let Some(end) = rest.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&rest[..end]).to_ascii_lowercase();
            is_unasked = is_unasked.or(Some(head.contains("\r\nproxy-authorization:")));
            rest = &rest[end + 4..];
            if rest.first() == Some(&HANDSHAKE) {
                break;
            }
        }
        let first_line = bytes.split(|byte| *byte == b'\r').next();
        let first_line = String::from_utf8_lossy(first_line.unwrap_or_default());
        Some(Self {
            first_line: first_line.into_owned(),
            is_tls: false,
            has_sni: false,
            is_unasked,
            offered: hello(rest).map(|(_sni, offered)| offered),
        })
    }
}

/// Reads a `ClientHello`: whether it has a server name, and what it offers.
fn hello(bytes: &[u8]) -> Option<(bool, Vec<String>)> {
    let mut acceptor = Acceptor::default();
    let mut reader = bytes;
    while !reader.is_empty() {
        acceptor.read_tls(&mut reader).ok()?;
        if let Some(accepted) = acceptor.accept().ok()? {
            let hello = accepted.client_hello();
            let offered = hello.alpn().into_iter().flatten();
            let offered = offered.map(|name| String::from_utf8_lossy(name).into_owned());
            return Some((hello.server_name().is_some(), offered.collect()));
        }
    }
    None
}
