//! Origins: upstream servers on loopback that record every byte and answer by script.
//!
//! Certificates are minted at the handshake for the name that is asked for, under a CA of the
//! test's own. Bytes are recorded as they are read, before anything understands them, so that a
//! test can compare what really arrived.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use rcgen::CertificateParams;
use rustls::crypto::aws_lc_rs;
use rustls::server::ResolvesServerCert;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{HandshakeKind, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::ca::{Minting, TestCa};
use super::stream::Stream;
use super::{show, within};

/// What one connection brought.
#[derive(Clone, Default)]
struct Recorded {
    bytes: Vec<u8>,
    ended: bool,
    /// It took up the TLS session of another.
    resumed: bool,
}

/// All that an origin recorded, in the order of its connections.
type Records = Arc<Mutex<Vec<Recorded>>>;

#[derive(Clone)]
struct Recorder {
    records: Records,
    changed: watch::Sender<()>,
}

impl Recorder {
    fn change<T>(&self, change: impl FnOnce(&mut Vec<Recorded>) -> T) -> T {
        let value = change(&mut self.records.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_replace(());
        value
    }
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Script = Arc<dyn Fn(OriginConn) -> BoxFuture<()> + Send + Sync>;

/// One request as an origin read it.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Request line and fields as they came, without the empty line.
    pub(crate) head: String,
    /// The body without its framing.
    pub(crate) body: Vec<u8>,
    /// Every byte, framing and trailers included.
    pub(crate) raw: Vec<u8>,
}

impl Request {
    /// Returns the first value of a field.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut fields = self
            .head
            .split("\r\n")
            .skip(1)
            .filter_map(|line| line.split_once(':'));
        let found = fields.find(|(field, _)| field.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim())
    }

    /// Returns the request line.
    pub(crate) fn line(&self) -> &str {
        self.head.split("\r\n").next().unwrap_or_default()
    }
}

/// One half of a stream, until it is closed.
type Half<T> = Arc<tokio::sync::Mutex<Option<T>>>;

/// The origin's end of one connection. Clones are the same connection.
#[derive(Clone)]
pub(crate) struct OriginConn {
    reader: Half<ReadHalf<Box<dyn Stream>>>,
    writer: Half<WriteHalf<Box<dyn Stream>>>,
    aborted: CancellationToken,
    input: Arc<Mutex<Vec<u8>>>,
    index: usize,
    recorder: Recorder,
}

impl OriginConn {
    /// Returns the connection's number, from 0.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Writes bytes and flushes. What the other side no longer takes is lost.
    pub(crate) async fn send(&self, bytes: impl AsRef<[u8]>) {
        if let Some(writer) = self.writer.lock().await.as_mut() {
            let write = async {
                writer.write_all(bytes.as_ref()).await?;
                writer.flush().await
            };
            let _taken = within("the origin's write", write).await;
        }
    }

    /// Sends no more: what was sent arrives, then the end. What still comes is recorded.
    pub(crate) async fn close(&self) {
        if let Some(mut writer) = self.writer.lock().await.take() {
            let _ended = within("the origin's shutdown", writer.shutdown()).await;
        }
    }

    /// Drops the connection without the end of its TLS.
    pub(crate) async fn abort(&self) {
        self.aborted.cancel();
        drop((
            self.reader.lock().await.take(),
            self.writer.lock().await.take(),
        ));
    }

    /// Reads and records until the other side ends the connection.
    pub(crate) async fn wait_end(&self) {
        while self.fill().await {}
    }

    /// Reads one head, empty line not included; nothing at the end of the connection.
    pub(crate) async fn read_head(&self) -> Option<String> {
        let raw = self.read_until(b"\r\n\r\n").await?;
        Some(String::from_utf8_lossy(&raw[..raw.len() - 4]).into_owned())
    }

    /// Reads one request with its body; nothing at the end of the connection.
    pub(crate) async fn read_request(&self) -> Option<Request> {
        let head = self.read_head().await?;
        let raw = format!("{head}\r\n\r\n").into_bytes();
        let mut request = Request {
            head,
            body: Vec::new(),
            raw,
        };
        self.read_body(&mut request).await?;
        Some(request)
    }

    /// Reads the body that the head of a request announces.
    pub(crate) async fn read_body(&self, request: &mut Request) -> Option<()> {
        if request.header("transfer-encoding").is_some() {
            loop {
                let line = self.read_until(b"\r\n").await?;
                request.raw.extend_from_slice(&line);
                let digits = String::from_utf8_lossy(&line);
                let size = usize::from_str_radix(digits.trim_end(), 16).expect("a chunk size");
                if size == 0 {
                    break;
                }
                let data = self.read_exactly(size + 2).await?;
                request.raw.extend_from_slice(&data);
                request.body.extend_from_slice(&data[..size]);
            }
            loop {
                let line = self.read_until(b"\r\n").await?;
                request.raw.extend_from_slice(&line);
                if line == b"\r\n" {
                    break;
                }
            }
        } else if let Some(length) = request.header("content-length") {
            let length = length.parse().expect("a length");
            request.body = self.read_exactly(length).await?;
            request.raw.extend_from_slice(&request.body);
        }
        Some(())
    }

    /// Reads what there is; nothing at the end of the connection.
    pub(crate) async fn read_some(&self) -> Option<Vec<u8>> {
        loop {
            let taken =
                std::mem::take(&mut *self.input.lock().unwrap_or_else(PoisonError::into_inner));
            if !taken.is_empty() {
                return Some(taken);
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// Reads so many bytes; nothing if the connection ends before.
    pub(crate) async fn read_exactly(&self, count: usize) -> Option<Vec<u8>> {
        loop {
            let taken = {
                let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
                (input.len() >= count).then(|| input.drain(..count).collect())
            };
            if taken.is_some() {
                return taken;
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    async fn read_until(&self, delimiter: &[u8]) -> Option<Vec<u8>> {
        loop {
            let taken = {
                let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
                let at = input
                    .windows(delimiter.len())
                    .position(|window| window == delimiter);
                at.map(|at| input.drain(..at + delimiter.len()).collect())
            };
            if taken.is_some() {
                return taken;
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// Reads something and records it; false at the end of the connection. There is no deadline:
    /// an origin waits as long as its test.
    async fn fill(&self) -> bool {
        let mut reader = self.reader.lock().await;
        let mut buffer = vec![0; 16 * 1024];
        let count = match reader.as_mut() {
            None => 0,
            Some(reader) => tokio::select! {
                () = self.aborted.cancelled() => 0,
                count = reader.read(&mut buffer) => count.unwrap_or(0),
            },
        };
        drop(reader);
        self.recorder.change(|records| match count {
            0 => records[self.index].ended = true,
            count => records[self.index]
                .bytes
                .extend_from_slice(&buffer[..count]),
        });
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        input.extend_from_slice(&buffer[..count]);
        count > 0
    }

    async fn is_open(&self) -> bool {
        self.writer.lock().await.is_some()
    }
}

/// How an origin is set up.
pub(crate) struct OriginBuilder {
    ca: Arc<TestCa>,
    shown: Option<Arc<CertifiedKey>>,
    change: fn(&mut CertificateParams),
    tls: bool,
    alpn: &'static [&'static str],
}

impl OriginBuilder {
    /// Takes certificates from another CA.
    pub(crate) fn ca(mut self, ca: &Arc<TestCa>) -> Self {
        self.ca = Arc::clone(ca);
        self
    }

    /// Changes the certificate that would be right.
    pub(crate) fn certificate(mut self, change: fn(&mut CertificateParams)) -> Self {
        self.change = change;
        self
    }

    /// Shows this one, whatever name is asked for.
    pub(crate) fn shows(mut self, shown: Arc<CertifiedKey>) -> Self {
        self.shown = Some(shown);
        self
    }

    /// Takes protocols by ALPN, in this order. Its scripts have to speak what was agreed.
    pub(crate) fn alpn(mut self, protocols: &'static [&'static str]) -> Self {
        self.alpn = protocols;
        self
    }

    /// Speaks no TLS.
    pub(crate) fn plain(mut self) -> Self {
        self.tls = false;
        self
    }

    /// Answers every request with the same bytes.
    pub(crate) async fn answer(self, bytes: impl Into<Vec<u8>>) -> Origin {
        let bytes: Arc<[u8]> = bytes.into().into();
        self.script(move |_request, conn| {
            let bytes = Arc::clone(&bytes);
            async move { conn.send(&bytes).await }
        })
        .await
    }

    /// Answers every request with 200 and a short body.
    pub(crate) async fn echo_ok(self) -> Origin {
        self.answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .await
    }

    /// Runs a script for each request, its body read.
    pub(crate) async fn script<F, R>(self, script: F) -> Origin
    where
        F: Fn(Request, OriginConn) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let script = Arc::new(script);
        self.raw(move |conn| {
            let script = Arc::clone(&script);
            async move {
                while let Some(request) = conn.read_request().await {
                    script(request, conn.clone()).await;
                    if !conn.is_open().await {
                        return;
                    }
                }
            }
        })
        .await
    }

    /// Runs a script for each connection, with nothing read yet.
    pub(crate) async fn raw<F, R>(self, script: F) -> Origin
    where
        F: Fn(OriginConn) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let script: Script = Arc::new(move |conn| Box::pin(script(conn)));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a port");
        let address = listener.local_addr().expect("an address");
        let recorder = Recorder {
            records: Arc::default(),
            changed: watch::Sender::new(()),
        };
        let resolver: Arc<dyn ResolvesServerCert> = match self.shown {
            Some(shown) => Arc::new(SingleCertAndKey::from(shown)),
            None => Arc::new(Minting {
                ca: self.ca,
                change: self.change,
            }),
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        tls.alpn_protocols = self
            .alpn
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        let acceptor = self.tls.then(|| TlsAcceptor::from(Arc::new(tls)));
        let shared = recorder.clone();
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let index = shared.change(|records| {
                    records.push(Recorded::default());
                    records.len() - 1
                });
                let (script, recorder) = (Arc::clone(&script), shared.clone());
                tokio::spawn(serve(tcp, acceptor.clone(), script, index, recorder));
            }
        });
        Origin {
            address,
            recorder,
            task,
        }
    }
}

async fn serve(
    tcp: TcpStream,
    acceptor: Option<TlsAcceptor>,
    script: Script,
    index: usize,
    recorder: Recorder,
) {
    let _set = tcp.set_nodelay(true);
    let stream: Box<dyn Stream> = match acceptor {
        None => Box::new(tcp),
        Some(acceptor) => match acceptor.accept(tcp).await {
            Ok(stream) => {
                let kind = stream.get_ref().1.handshake_kind();
                recorder.change(|records| {
                    records[index].resumed = kind == Some(HandshakeKind::Resumed);
                });
                Box::new(stream)
            }
            Err(_refused) => {
                return recorder.change(|records| records[index].ended = true);
            }
        },
    };
    let (reader, writer) = tokio::io::split(stream);
    let conn = OriginConn {
        reader: Arc::new(tokio::sync::Mutex::new(Some(reader))),
        writer: Arc::new(tokio::sync::Mutex::new(Some(writer))),
        aborted: CancellationToken::new(),
        input: Arc::default(),
        index,
        recorder: recorder.clone(),
    };
    script(conn.clone()).await;
    // Bytes that come behind the script's end must not go unseen.
    conn.wait_end().await;
}

/// An upstream server that records.
pub(crate) struct Origin {
    address: SocketAddr,
    recorder: Recorder,
    task: tokio::task::JoinHandle<()>,
}

impl Origin {
    /// Sets up an origin: TLS, and certificates that every vault of the suite trusts.
    pub(crate) fn builder() -> OriginBuilder {
        OriginBuilder {
            ca: TestCa::shared(),
            shown: None,
            change: |_| (),
            tls: true,
            alpn: &[],
        }
    }

    /// Starts a TLS origin that answers 200 to every request.
    pub(crate) async fn echo_ok() -> Self {
        Self::builder().echo_ok().await
    }

    /// Starts a TLS origin that answers every request with the same bytes.
    pub(crate) async fn answer(bytes: impl Into<Vec<u8>>) -> Self {
        Self::builder().answer(bytes).await
    }

    /// Starts a TLS origin that runs a script for each request.
    pub(crate) async fn script<F, R>(script: F) -> Self
    where
        F: Fn(Request, OriginConn) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        Self::builder().script(script).await
    }

    /// Starts a TLS origin that runs a script for each connection.
    pub(crate) async fn raw<F, R>(script: F) -> Self
    where
        F: Fn(OriginConn) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        Self::builder().raw(script).await
    }

    /// Starts a TLS origin that answers, streams (`/stream`), or grants a WebSocket (`/socket`), and
    /// leaves the last two open.
    pub(crate) async fn patient() -> Self {
        Self::script(|request, conn| async move {
            let line = request.line();
            if line.contains("/stream") {
                conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")
                    .await;
            } else if line.contains("/socket") {
                conn.send(
                    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                     Connection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n",
                )
                .await;
            } else {
                return conn
                    .send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    .await;
            }
            conn.wait_end().await;
        })
        .await
    }

    /// Returns where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Returns the raw bytes of every connection so far, TLS taken off.
    pub(crate) fn received(&self) -> Vec<Vec<u8>> {
        self.read(|records| records.iter().map(|record| record.bytes.clone()).collect())
    }

    /// Returns the raw bytes of all connections, one behind the other.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.received().concat()
    }

    /// Returns the number of connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.read(<[Recorded]>::len)
    }

    /// Returns how many connections took up the TLS session of another.
    pub(crate) fn resumed(&self) -> usize {
        self.read(|records| records.iter().filter(|record| record.resumed).count())
    }

    /// Forgets what was recorded, so that the next exchange stands alone. Connections stay.
    pub(crate) fn forget(&self) {
        self.recorder
            .change(|records| records.iter_mut().for_each(|record| record.bytes.clear()));
    }

    /// Waits until what was received meets a condition.
    pub(crate) async fn wait(&self, what: &str, met: impl Fn(&[Vec<u8>]) -> bool) {
        self.wait_for(what, |records| {
            let bytes: Vec<_> = records.iter().map(|record| record.bytes.clone()).collect();
            met(&bytes)
        })
        .await;
    }

    /// Waits until the other side has ended so many connections.
    pub(crate) async fn wait_ended(&self, count: usize) {
        let ended = |records: &[Recorded]| records.iter().filter(|one| one.ended).count() >= count;
        self.wait_for("the end of a connection to the origin", ended)
            .await;
    }

    /// Fails the test if any byte of a request arrived.
    pub(crate) fn expect_nothing(&self, case: &str) {
        let bytes = self.bytes();
        assert!(
            bytes.is_empty(),
            "{case}: the origin received {}",
            show(&bytes)
        );
    }

    async fn wait_for(&self, what: &str, met: impl Fn(&[Recorded]) -> bool) {
        let mut changed = self.recorder.changed.subscribe();
        let wait = async {
            while !self.read(&met) {
                changed.changed().await.expect("the origin lives");
            }
        };
        within(what, wait).await;
    }

    fn read<T>(&self, read: impl FnOnce(&[Recorded]) -> T) -> T {
        read(
            &self
                .recorder
                .records
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}
