//! An upstream on loopback: speaks TLS, records what arrives, and echoes it.
//!
//! It stands for the API in the story, so it reads requests as an API would: with the reader that
//! refuses what it does not understand. Called by `demo`.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::cli::client::read_body;
use crate::wire::{Body, Connection, parse_request, request_framing};

/// How long a request may take to arrive.
const WAIT: Duration = Duration::from_secs(10);

type Received = Arc<Mutex<Vec<String>>>;

/// A listening upstream; it ends when dropped.
#[derive(Debug)]
pub(super) struct Origin {
    address: SocketAddr,
    received: Received,
    task: JoinHandle<()>,
}

impl Origin {
    /// Listens on a port of the system's choice.
    pub(super) async fn start(acceptor: TlsAcceptor) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let received = Received::default();
        let records = Arc::clone(&received);
        let task = tokio::spawn(async move {
            while let Ok((tcp, _peer)) = listener.accept().await {
                tokio::spawn(serve(tcp, acceptor.clone(), Arc::clone(&records)));
            }
        });
        Ok(Self {
            address,
            received,
            task,
        })
    }

    /// Returns where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the request that it got last, as it arrived; empty if it got none.
    pub(super) fn last(&self) -> String {
        let received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        received.last().cloned().unwrap_or_default()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(tcp: TcpStream, acceptor: TlsAcceptor, received: Received) {
    let Ok(tls) = acceptor.accept(tcp).await else {
        return;
    };
    let mut connection = Connection::new(Box::new(tls));
    while let Some(request) = read(&mut connection).await {
        let body = format!("You sent me this:\r\n{request}");
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        received
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(request);
        if connection.send(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn read(connection: &mut Connection) -> Option<String> {
    let mut whole = connection.read_head(WAIT, WAIT).await.ok()?.to_vec();
    let head = parse_request(whole.clone().into()).ok()?;
    let body = Body::new(request_framing(&head).ok()?).without_framing();
    whole.extend(read_body(connection, body).await.ok()?);
    String::from_utf8(whole).ok()
}
