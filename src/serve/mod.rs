//! The doors of the process: accept, permit, first byte, TLS to the proxy, and then hand on.
//!
//! Every wait before the first head has a deadline here, and every connection a permit that comes
//! back when its task ends. What happens on a connection is the business of the handler that `app`
//! gives. This module never looks at a head.

mod handover;
mod limit;
mod tls;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::LazyConfigAcceptor;

use crate::shutdown::Drain;
use crate::wire::{Connection, Io, tune};

pub use handover::{Gate, Sockets};
pub use limit::{Crowded, Newcomer, Newcomers, Seats, Source, Throttle};
pub use tls::{Error, FileCertificate};

/// The first byte of a TLS handshake record (RFC 8446 §5.1).
const TLS_HANDSHAKE: u8 = 0x16;
/// How long the accept loop rests when the process is out of descriptors, at first and at most.
const REST: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// What a plain-text client is told at the TLS door.
const PLAINTEXT_REFUSED: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
    Content-Type: application/json\r\nContent-Length: 92\r\nConnection: close\r\n\r\n\
    {\"code\":\"plaintext_on_tls_port\",\"message\":\"this port speaks TLS: use https:// to reach it\"}\n";

/// A boxed future.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Serves one connection to its end.
pub type Handler = Arc<dyn Fn(Io, Peer) -> BoxFuture<()> + Send + Sync>;

/// Finds the certificate of the listener for a name asked for, or for none.
pub type Certificates =
    Arc<dyn Fn(Option<String>, SocketAddr) -> BoxFuture<Option<Arc<ServerConfig>>> + Send + Sync>;

/// Who is at the other end, and through which door they came.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The address they come from.
    pub address: SocketAddr,
    /// The address they connected to.
    pub listener: SocketAddr,
    /// They speak TLS to us.
    pub tls: bool,
    /// For whom the connection is counted.
    pub newcomer: Newcomer,
}

/// The limits of a door.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How long a new connection may stay silent.
    pub first_byte_timeout: Duration,
    /// How long the TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How many connections may be open at once through all doors that share the permits.
    pub connections: usize,
    /// How many of them workloads together may have.
    pub workloads: usize,
    /// How many of them one address may have before anybody has shown a right credential on them.
    pub newcomers: usize,
}

/// What doors share: how many connections there may be, of all, of workloads and of one address.
#[derive(Clone, Debug)]
pub struct Room {
    permits: Arc<Semaphore>,
    limit: usize,
    newcomers: Newcomers,
}

impl Room {
    /// Makes room for so many connections as the limits say.
    pub fn new(config: &Config) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(config.connections)),
            limit: config.connections,
            newcomers: Newcomers::new(config.newcomers, config.workloads),
        }
    }

    /// Returns how many connections are open.
    pub fn taken(&self) -> usize {
        self.limit.saturating_sub(self.permits.available_permits())
    }
}

/// A listener that is bound and not yet served.
pub struct Door {
    listener: Arc<TcpListener>,
    gate: Gate,
    address: SocketAddr,
    certificates: Option<Certificates>,
    config: Config,
    room: Room,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door")
            .field("address", &self.address)
            .field("tls", &self.certificates.is_some())
            .finish_non_exhaustive()
    }
}

impl Door {
    /// Binds a listener. Port 0 takes any free port.
    ///
    /// # Errors
    /// The system's, when the address cannot be bound.
    pub async fn bind(
        address: SocketAddr,
        certificates: Option<Certificates>,
        config: Config,
        room: Room,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Self::over(listener, certificates, config, room)
    }

    /// Takes the listener of an address from sockets that were bound elsewhere, by its name or by
    /// the address; binds one where there is none.
    ///
    /// # Errors
    /// As [`Door::bind`].
    pub async fn take_or_bind(
        (name, address): (&'static str, SocketAddr),
        (sockets, gate): (&mut Sockets, &Gate),
        certificates: Option<Certificates>,
        config: Config,
        room: Room,
    ) -> io::Result<Self> {
        let mut door = match sockets.take(name, address) {
            None => Self::bind(address, certificates, config, room).await?,
            Some(listener) => {
                listener.set_nonblocking(true)?;
                let listener = TcpListener::from_std(listener)?;
                Self::over(listener, certificates, config, room)?
            }
        };
        gate.enter(name, &door.listener);
        door.gate = gate.clone();
        Ok(door)
    }

    fn over(
        listener: TcpListener,
        certificates: Option<Certificates>,
        config: Config,
        room: Room,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        Ok(Self {
            listener: Arc::new(listener),
            gate: Gate::default(),
            address,
            certificates,
            config,
            room,
        })
    }

    /// Returns the address that was bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts until the drain starts or the gate closes for good. Each connection is a task of the
    /// drain.
    pub async fn run(self, handler: Handler, drain: Drain) {
        let door = Arc::new(Inner {
            certificates: self.certificates,
            config: self.config,
            handler,
            drain: drain.clone(),
        });
        let mut rest = REST.0;
        loop {
            let accepted = tokio::select! {
                biased;
                () = drain.draining() => return,
                () = self.gate.closing() => {
                    let is_open = tokio::select! {
                        () = drain.draining() => false,
                        is_open = self.gate.is_open() => is_open,
                    };
                    if is_open {
                        continue;
                    }
                    return;
                }
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((tcp, address)) => {
                    rest = REST.0;
                    let Some(newcomer) = self.room.newcomers.admit(address.ip()) else {
                        // No answer: it would be work for whoever sends the flood to have done.
                        tracing::debug!(%address, "too many connections without a credential");
                        continue;
                    };
                    // Taken after the accept: a permit that waited for a connection would be
                    // missing at the other doors.
                    let permit = tokio::select! {
                        () = drain.draining() => return,
                        permit = Arc::clone(&self.room.permits).acquire_owned() => permit,
                    };
                    let Ok(permit) = permit else { return };
                    let door = Arc::clone(&door);
                    drain.spawn(async move {
                        door.serve(tcp, address, newcomer).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    // Out of descriptors: others must close first, so spinning would not help.
                    tracing::warn!(%error, "a connection cannot be accepted");
                    sleep(rest).await;
                    rest = (rest * 2).min(REST.1);
                }
            }
        }
    }
}

struct Inner {
    certificates: Option<Certificates>,
    config: Config,
    handler: Handler,
    drain: Drain,
}

impl Inner {
    async fn serve(&self, tcp: TcpStream, address: SocketAddr, newcomer: Newcomer) {
        let (Ok(()), Ok(listener)) = (tune(&tcp), tcp.local_addr()) else {
            return;
        };
        let peer = Peer {
            address,
            listener,
            tls: false,
            newcomer,
        };
        tokio::select! {
            biased;
            () = self.drain.cut() => {}
            () = self.enter(tcp, peer) => {}
        }
    }

    async fn enter(&self, tcp: TcpStream, peer: Peer) {
        let Some(certificates) = &self.certificates else {
            return (self.handler)(Box::new(tcp), peer).await;
        };
        let mut first = [0];
        let peeked = timeout(self.config.first_byte_timeout, tcp.peek(&mut first)).await;
        if !matches!(peeked, Ok(Ok(1))) {
            return;
        }
        if first == [TLS_HANDSHAKE] {
            // Boxed, so that a connection does not hold its room for the rest of its life.
            let handshake = Box::pin(self.handshake(tcp, certificates, peer.listener));
            if let Some(io) = handshake.await {
                (self.handler)(io, Peer { tls: true, ..peer }).await;
            }
        } else if peer.listener.ip().is_loopback() {
            // Some clients speak plain HTTP to a proxy whose URL says https.
            (self.handler)(Box::new(tcp), peer).await;
        } else {
            let mut connection = Connection::new(Box::new(tcp));
            if connection.send(PLAINTEXT_REFUSED).await.is_ok() {
                connection.linger(self.config.first_byte_timeout).await;
            }
        }
    }

    async fn handshake(
        &self,
        tcp: TcpStream,
        certificates: &Certificates,
        listener: SocketAddr,
    ) -> Option<Io> {
        let handshake = async {
            let acceptor = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), tcp);
            let start = acceptor.await.ok()?;
            let name = start.client_hello().server_name().map(str::to_owned);
            let config = certificates(name, listener).await?;
            start.into_stream(config).await.ok()
        };
        let stream = timeout(self.config.handshake_timeout, handshake)
            .await
            .ok()??;
        Some(Box::new(stream))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_states_its_own_length() {
        let text = std::str::from_utf8(PLAINTEXT_REFUSED).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("Content-Length: {}", body.len())),
            "{}",
            body.len()
        );
    }
}
