//! Both ends of the soak's exchanges: one request with a body and one answer with a body, over
//! either protocol, piece by piece and without a deadline of their own.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{Request, Response};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{TestCa, Workload};

type Io = tokio_rustls::TlsStream<Box<dyn crate::support::Stream>>;

/// How much is read at once.
const READ_BYTES: usize = 64 * 1024;

/// Where a body goes.
pub(super) enum Sender {
    H1(WriteHalf<Io>),
    H2(SendStream<Bytes>),
}

impl Sender {
    /// Sends a piece as soon as it is taken.
    pub(super) async fn send(&mut self, mut piece: Bytes) {
        match self {
            Self::H1(io) => {
                io.write_all(&piece).await.expect("a piece is taken");
                io.flush().await.expect("a piece is taken");
            }
            Self::H2(stream) => {
                while !piece.is_empty() {
                    stream.reserve_capacity(piece.len());
                    let room = poll_fn(|cx| stream.poll_capacity(cx)).await;
                    let room = room.expect("an open stream").expect("an open stream");
                    let part = piece.split_to(room.min(piece.len()));
                    stream.send_data(part, false).expect("a piece is taken");
                }
            }
        }
    }

    /// Says that this was all.
    pub(super) fn end(self) -> Option<WriteHalf<Io>> {
        match self {
            // Its length says so, and the connection has to stay.
            Self::H1(io) => Some(io),
            Self::H2(mut stream) => {
                stream
                    .send_data(Bytes::new(), true)
                    .expect("an open stream");
                None
            }
        }
    }
}

/// Where a body comes from.
pub(super) enum Receiver {
    H1 {
        io: ReadHalf<Io>,
        input: Bytes,
        left: u64,
    },
    H2(RecvStream),
}

impl Receiver {
    /// Waits for the next piece; nothing at the end of the body.
    pub(super) async fn piece(&mut self) -> Option<Bytes> {
        match self {
            Self::H1 { left: 0, .. } => None,
            Self::H1 { io, input, left } => {
                if input.is_empty() {
                    let mut buffer = vec![0; READ_BYTES];
                    let count = io.read(&mut buffer).await.expect("a piece");
                    assert!(count > 0, "a body was cut, {left} bytes before its end");
                    buffer.truncate(count);
                    *input = buffer.into();
                }
                let piece = std::mem::take(input);
                *left = left
                    .checked_sub(piece.len() as u64)
                    .expect("no more than was stated");
                Some(piece)
            }
            Self::H2(stream) => {
                let piece = stream.data().await?.expect("a piece");
                let taken = stream.flow_control().release_capacity(piece.len());
                taken.expect("an open stream");
                Some(piece)
            }
        }
    }

    /// Reads the body to its end, as text.
    pub(super) async fn text(mut self) -> String {
        let mut text = Vec::new();
        while let Some(piece) = self.piece().await {
            text.extend_from_slice(&piece);
        }
        String::from_utf8(text).expect("text")
    }
}

/// Reads a head of HTTP/1.1; returns its first line and the body behind it.
async fn read_head(mut io: ReadHalf<Io>) -> Option<(String, Receiver)> {
    let mut input = Vec::new();
    let end = loop {
        let mut buffer = vec![0; READ_BYTES];
        let count = io.read(&mut buffer).await.unwrap_or(0);
        if count == 0 {
            return None;
        }
        input.extend_from_slice(&buffer[..count]);
        if let Some(at) = input.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
    };
    let head = String::from_utf8_lossy(&input[..end]).to_ascii_lowercase();
    let length = head.split("content-length: ").nth(1).expect("a length");
    let left = length
        .split("\r\n")
        .next()
        .and_then(|digits| digits.parse().ok());
    let input = Bytes::from(input).slice(end..);
    let left = left.expect("a length");
    let line = head.split("\r\n").next().unwrap_or_default().to_owned();
    Some((line, Receiver::H1 { io, input, left }))
}

/// An answer that is waited for.
pub(super) enum Awaited {
    H1(ReadHalf<Io>),
    H2(ResponseFuture),
}

impl Awaited {
    /// Waits for its head, which must be that of a success.
    pub(super) async fn head(self) -> Receiver {
        match self {
            Self::H1(io) => {
                let (line, body) = read_head(io).await.expect("an answer");
                assert!(line.starts_with("http/1.1 200"), "{line}");
                body
            }
            Self::H2(answer) => {
                let answer = answer.await.expect("an answer");
                assert_eq!(answer.status(), 200);
                Receiver::H2(answer.into_body())
            }
        }
    }
}

/// Begins a request in a tunnel of its own.
pub(super) async fn ask(
    workload: &Workload,
    (host, is_h2): (&'static str, bool),
    path: &str,
    length: u64,
) -> (Sender, Awaited) {
    let tunnel = workload.tunnel(&format!("{host}:443")).await;
    let name = ServerName::try_from(host).expect("a server name");
    let alpn: &[&str] = if is_h2 { &["h2"] } else { &[] };
    let tls = workload.handshake(tunnel.into_io(), name, alpn).await;
    let io: Io = tls.expect("TLS in the tunnel").into();
    if is_h2 {
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(1 << 20)
            .initial_connection_window_size(1 << 20);
        let (client, connection) = builder.handshake(io).await.expect("HTTP/2 in the tunnel");
        tokio::spawn(connection);
        let request = Request::post(format!("https://{host}{path}"))
            .header("content-length", length)
            .body(())
            .expect("a request");
        let mut client = client.ready().await.expect("room for a stream");
        let (answer, stream) = client.send_request(request, false).expect("a stream");
        return (Sender::H2(stream), Awaited::H2(answer));
    }
    let (reader, mut writer) = split(io);
    let head = format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n");
    writer
        .write_all(head.as_bytes())
        .await
        .expect("a head is taken");
    (Sender::H1(writer), Awaited::H1(reader))
}

/// An answer that an origin owes.
pub(super) enum Reply {
    H1(WriteHalf<Io>),
    H2(SendResponse<Bytes>),
}

impl Reply {
    /// Begins the answer.
    pub(super) async fn begin(self, length: u64) -> Sender {
        match self {
            Self::H1(mut io) => {
                let head = "HTTP/1.1 200 OK\r\nConnection: close\r\n";
                let head = format!("{head}Content-Length: {length}\r\n\r\n");
                io.write_all(head.as_bytes())
                    .await
                    .expect("a head is taken");
                io.flush().await.expect("a head is taken");
                Sender::H1(io)
            }
            Self::H2(mut respond) => {
                let answer = Response::builder().header("content-length", length);
                let answer = answer.body(()).expect("an answer");
                Sender::H2(respond.send_response(answer, false).expect("a stream"))
            }
        }
    }
}

/// Starts an origin that speaks HTTP/1.1, and HTTP/2 to those who ask for it if it may. Each
/// request is served by `serve`, with its path.
pub(super) async fn listen<F, R>(may_h2: bool, serve: F) -> SocketAddr
where
    F: Fn(String, Receiver, Reply) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let alpn: &[&str] = if may_h2 { &["h2", "http/1.1"] } else { &[] };
    let acceptor = TestCa::shared().acceptor_of(alpn);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, serve) = (acceptor.clone(), serve.clone());
            tokio::spawn(async move {
                let tcp: Box<dyn crate::support::Stream> = Box::new(set_up(tcp));
                let tls = acceptor.accept(tcp).await.expect("TLS");
                let is_h2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
                connection(tls.into(), is_h2, serve).await;
            });
        }
    });
    address
}

fn set_up(tcp: TcpStream) -> TcpStream {
    tcp.set_nodelay(true).expect("no delay");
    tcp
}

async fn connection<F, R>(io: Io, is_h2: bool, serve: F)
where
    F: Fn(String, Receiver, Reply) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    if !is_h2 {
        let (reader, writer) = split(io);
        if let Some((line, body)) = read_head(reader).await {
            let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
            serve(path, body, Reply::H1(writer)).await;
        }
        return;
    }
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(1 << 20)
        .initial_connection_window_size(1 << 22);
    let mut connection = builder.handshake(io).await.expect("HTTP/2");
    while let Some(Ok((request, respond))) = connection.accept().await {
        let path = request.uri().path().to_owned();
        let body = Receiver::H2(request.into_body());
        tokio::spawn(serve(path, body, Reply::H2(respond)));
    }
}
