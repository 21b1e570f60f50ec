//! What the benches share: an origin that speaks TLS, and a client that reaches it directly or
//! through a proxy.
//!
//! Both are small on purpose and know only what they send each other: one request at a time on a
//! connection, bodies with a length. Nothing here is a model of how HTTP should be spoken.
#![allow(dead_code, reason = "each bench uses a part of it")]

pub(crate) mod vault;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The name that the origin has in its certificate.
pub(crate) const HOST: &str = "localhost";
/// What the origin expects in `x-api-key`.
pub(crate) const SECRET: &str = "sk-bench-0123456789abcdef0123456789abcdef";
/// The name of that secret in a session.
pub(crate) const SECRET_NAME: &str = "BENCH_KEY";
/// The bytes of a small answer's body.
const ANSWER_BYTES: usize = 200;
const BUFFER_BYTES: usize = 16 * 1024;

/// A server that answers over TLS: `GET /N` with N bytes, anything with a body after reading it.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    /// The certificate that it is verified against.
    pub(crate) ca_pem: String,
}

impl Origin {
    /// Starts on a thread of its own, which ends with the process.
    pub(crate) fn start() -> Self {
        Self::serving(&[], |stream| async move {
            let mut stream = stream;
            let _end = answer(&mut stream).await;
        })
    }

    /// Starts with a protocol of the caller's, on a thread of its own.
    pub(crate) fn serving<F>(
        alpn: &[&[u8]],
        serve: impl Fn(tokio_rustls::server::TlsStream<TcpStream>) -> F + Clone + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send,
    {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut root = rcgen::CertificateParams::default();
        root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        root.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        let root_pem = root.self_signed(&key).unwrap().pem();
        let issuer = rcgen::Issuer::from_ca_cert_pem(&root_pem, key).unwrap();
        let leaf_key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec![HOST.to_owned()]).unwrap();
        let chain = vec![leaf.signed_by(&leaf_key, &issuer).unwrap().der().clone()];
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let address = on_own_thread(move |stream| {
            let (acceptor, serve) = (acceptor.clone(), serve.clone());
            async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    serve(stream).await;
                }
            }
        });
        Self {
            address,
            ca_pem: root_pem,
        }
    }

    /// The target of a CONNECT to it.
    pub(crate) fn target(&self) -> String {
        format!("{HOST}:{}", self.address.port())
    }
}

/// Accepts on a thread and a runtime of its own.
pub(crate) fn on_own_thread<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        runtime().block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell.send(listener.local_addr().unwrap()).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                tokio::spawn(serve(stream));
            }
        });
    });
    told.recv().unwrap()
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

async fn answer(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let zeros = vec![b'0'; 64 * 1024];
    loop {
        let Some((head, extra, length)) = read_head(stream, &mut buffer).await? else {
            return Ok(());
        };
        let path = head.split(' ').nth(1).unwrap_or_default();
        let size = path.strip_prefix('/').and_then(|size| size.parse().ok());
        let swapped = head.contains(SECRET);
        read_body(stream, &mut buffer, length - extra).await?;
        let size = size.unwrap_or(ANSWER_BYTES);
        let mut text = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Swapped: {swapped}\r\n\
             Content-Length: {size}\r\n\r\n"
        )
        .into_bytes();
        let inline = size.min(BUFFER_BYTES);
        text.extend_from_slice(&zeros[..inline]);
        stream.write_all(&text).await?;
        let mut left = size - inline;
        while left > 0 {
            let count = stream.write(&zeros[..left.min(zeros.len())]).await?;
            left -= count;
        }
        stream.flush().await?;
    }
}

/// Reads a head. Returns its text, the bytes of body that came with it, and the body's length.
pub(crate) async fn read_head(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut [u8],
) -> io::Result<Option<(String, usize, usize)>> {
    let mut filled = 0;
    loop {
        let count = stream.read(&mut buffer[filled..]).await?;
        if count == 0 {
            return Ok(None);
        }
        filled += count;
        if let Some(end) = memchr::memmem::find(&buffer[..filled], b"\r\n\r\n") {
            let head = String::from_utf8(buffer[..end].to_vec()).map_err(io::Error::other)?;
            let length = head
                .lines()
                .filter_map(|line| line.split_once(": "))
                .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
                .map_or(0, |(_, value)| value.parse().unwrap());
            return Ok(Some((head, filled - end - 4, length)));
        }
    }
}

/// Reads so many bytes of a body and forgets them.
pub(crate) async fn read_body(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut [u8],
    mut left: usize,
) -> io::Result<()> {
    while left > 0 {
        match stream.read(buffer).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => left -= count,
        }
    }
    Ok(())
}

/// The client's side of TLS: TLS 1.3, X25519, no resumption.
pub(crate) fn connector(ca_pem: &str) -> TlsConnector {
    connector_for(ca_pem, b"http/1.1")
}

/// The same, for a protocol of the caller's choice.
pub(crate) fn connector_for(ca_pem: &str, protocol: &[u8]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap())
        .unwrap();
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    config.alpn_protocols = vec![protocol.to_vec()];
    TlsConnector::from(Arc::new(config))
}

/// A connection, with TLS or without.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// One keep-alive connection to the origin.
pub(crate) struct Client {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    host: String,
}

/// Where a client goes, and how.
#[derive(Clone)]
pub(crate) struct Way {
    /// The proxy's address, or the origin's own.
    pub(crate) address: SocketAddr,
    /// The CONNECT target; without one there is no proxy.
    pub(crate) target: Option<String>,
    /// The `Proxy-Authorization` of the CONNECT.
    pub(crate) authorization: Option<String>,
    pub(crate) tls: TlsConnector,
}

impl Way {
    /// Connects as far as the origin's TLS, or the proxy's in its place.
    pub(crate) async fn open(&self) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let way = self;
        let mut tcp = TcpStream::connect(way.address).await?;
        tcp.set_nodelay(true)?;
        let mut buffer = vec![0; BUFFER_BYTES];
        if let Some(target) = &way.target {
            let mut text = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
            if let Some(value) = &way.authorization {
                text.push_str(&format!("Proxy-Authorization: {value}\r\n"));
            }
            text.push_str("\r\n");
            tcp.write_all(text.as_bytes()).await?;
            match read_head(&mut tcp, &mut buffer).await? {
                Some((head, ..)) if head.starts_with("HTTP/1.1 200") => {}
                other => return Err(io::Error::other(format!("no tunnel: {other:?}"))),
            }
        }
        let name = ServerName::try_from(HOST).unwrap();
        way.tls.connect(name, tcp).await
    }
}

impl Client {
    pub(crate) async fn connect(way: &Way) -> io::Result<Self> {
        let stream = way.open().await?;
        let buffer = vec![0; BUFFER_BYTES];
        let host = way.target.clone().unwrap_or_else(|| HOST.to_owned());
        Ok(Self {
            stream: Box::new(stream),
            buffer,
            host,
        })
    }

    /// Sends a GET and reads the answer. Tells whether the origin saw the secret.
    pub(crate) async fn get(&mut self, path: &str, key: &str) -> io::Result<bool> {
        let text = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: bench/1\r\nAccept: application/json\r\n\
             Accept-Encoding: identity\r\nx-api-key: {key}\r\n\r\n",
            self.host
        );
        self.stream.write_all(text.as_bytes()).await?;
        self.stream.flush().await?;
        self.answered().await
    }

    /// Sends a POST with a body of zeros and reads the answer.
    pub(crate) async fn post(&mut self, size: usize, key: &str) -> io::Result<bool> {
        let text = format!(
            "POST /upload HTTP/1.1\r\nHost: {}\r\nx-api-key: {key}\r\nContent-Length: {size}\r\n\r\n",
            self.host
        );
        let piece = vec![b'0'; BUFFER_BYTES];
        self.stream.write_all(text.as_bytes()).await?;
        let mut left = size;
        while left > 0 {
            left -= self.stream.write(&piece[..left.min(BUFFER_BYTES)]).await?;
        }
        self.stream.flush().await?;
        self.answered().await
    }

    async fn answered(&mut self) -> io::Result<bool> {
        match read_head(&mut self.stream, &mut self.buffer).await? {
            Some((head, extra, length)) if head.starts_with("HTTP/1.1 200") => {
                read_body(&mut self.stream, &mut self.buffer, length - extra).await?;
                Ok(head.to_ascii_lowercase().contains("x-swapped: true"))
            }
            Some((head, ..)) => Err(io::Error::other(head)),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}
