//! A workload: a client with a proxy, credentials and a CA, that writes raw bytes.
//!
//! It neither repairs nor hides anything: what a test writes is what travels, and what comes back
//! is parsed only as far as its framing.

use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::stream::Stream;
use super::{Answer, Conn, Vault, within};

/// Where a workload wants to go: `host:port` as CONNECT has it.
pub(crate) type Target<'a> = &'a str;

/// A client behind the proxy.
#[derive(Clone)]
pub(crate) struct Workload {
    plain: Option<SocketAddr>,
    tls: Option<SocketAddr>,
    roots: Arc<RootCertStore>,
    authorization: String,
}

impl Workload {
    /// Makes a workload with the credentials given.
    pub(crate) fn new(vault: &Vault, id: &str, token: &str) -> Self {
        let addresses = (Some(vault.plain_addr()), Some(vault.tls_addr()));
        Self::at(addresses, vault.ca_pem(), id, token)
    }

    /// Makes a workload of a vault that runs elsewhere, by its plain and its TLS address.
    pub(crate) fn at(
        (plain, tls): (Option<SocketAddr>, Option<SocketAddr>),
        ca_pem: &str,
        id: &str,
        token: &str,
    ) -> Self {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes()).expect("a certificate");
        roots.add(ca).expect("a root");
        Self {
            plain,
            tls,
            roots: Arc::new(roots),
            authorization: basic(id, token),
        }
    }

    /// Trusts other roots.
    pub(crate) fn trusting(&self, roots: RootCertStore) -> Self {
        let roots = Arc::new(roots);
        Self {
            roots,
            ..self.clone()
        }
    }

    /// Returns the `Proxy-Authorization` line, CR LF included.
    pub(crate) fn authorization(&self) -> String {
        format!("Proxy-Authorization: {}\r\n", self.authorization)
    }

    /// Connects to the plain listener and sends nothing.
    pub(crate) async fn plain(&self) -> Conn {
        Conn::new(dial(self.plain.expect("a plain listener")).await)
    }

    /// Connects to the TLS listener, verifies its certificate for its address and sends nothing.
    pub(crate) async fn secure(&self) -> Conn {
        let address = self.tls.expect("a TLS listener");
        let name = ServerName::from(address.ip());
        let tcp = dial(address).await;
        Conn::new(
            self.handshake(tcp, name, &[])
                .await
                .expect("TLS with the listener"),
        )
    }

    /// Opens a tunnel through the plain listener; its bytes are not TLS yet.
    pub(crate) async fn tunnel(&self, target: Target<'_>) -> Conn {
        let mut conn = self.plain().await;
        let answer = self.ask(&mut conn, target).await;
        assert_eq!(answer.status, 200, "CONNECT {target}: {}", answer.head);
        conn
    }

    /// Asks for a tunnel and returns the refusal.
    pub(crate) async fn refused(&self, target: Target<'_>) -> Answer {
        let mut conn = self.plain().await;
        let answer = self.ask(&mut conn, target).await;
        assert_ne!(answer.status, 200, "CONNECT {target}");
        let length = answer
            .header("content-length")
            .map_or(0, |n| n.parse().expect("a length"));
        let body = conn.take(length).await;
        Answer { body, ..answer }
    }

    /// Sends a CONNECT with credentials and reads the head of its answer.
    pub(crate) async fn ask(&self, conn: &mut Conn, target: Target<'_>) -> Answer {
        let authorization = self.authorization();
        let head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{authorization}\r\n");
        conn.send(head).await;
        conn.answer_head().await
    }

    /// Opens a tunnel through the plain listener and speaks TLS in it.
    pub(crate) async fn connect(&self, target: Target<'_>) -> Conn {
        let tunnel = self.tunnel(target).await;
        self.encrypt(tunnel, target).await
    }

    /// Opens one of everything that stays open towards [`Origin::patient`](super::Origin::patient): a
    /// tunnel that was used, a stream, a WebSocket, and a tunnel without a byte in it.
    pub(crate) async fn open_all(&self, target: Target<'_>) -> Vec<Conn> {
        let (host, _port) = target.rsplit_once(':').expect("host:port");
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n");
        let mut idle = self.connect(target).await;
        idle.send(format!("{}\r\n", get("/"))).await;
        assert_eq!(idle.answer().await.status, 200);
        let mut stream = self.connect(target).await;
        stream.send(format!("{}\r\n", get("/stream"))).await;
        stream.take_until(b"ok\r\n").await;
        let mut socket = self.connect(target).await;
        let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\n";
        socket
            .send(format!("{}{upgrade}\r\n", get("/socket")))
            .await;
        socket.take_until(b"\r\n\r\n").await;
        vec![idle, stream, socket, self.tunnel(target).await]
    }

    /// Opens a tunnel through the TLS listener and speaks TLS in it.
    pub(crate) async fn connect_secure(&self, target: Target<'_>) -> Conn {
        let mut conn = self.secure().await;
        let answer = self.ask(&mut conn, target).await;
        assert_eq!(answer.status, 200, "CONNECT {target}: {}", answer.head);
        self.encrypt(conn, target).await
    }

    /// Speaks TLS in a tunnel, asking for the target's own name.
    pub(crate) async fn encrypt(&self, tunnel: Conn, target: Target<'_>) -> Conn {
        let (host, _port) = target.rsplit_once(':').expect("host:port");
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let name = ServerName::try_from(host).expect("a server name");
        let stream = self.handshake(tunnel.into_io(), name, &[]).await;
        Conn::new(stream.unwrap_or_else(|error| panic!("TLS in the tunnel to {target}: {error}")))
    }

    /// Shakes hands with a name and protocols of the test's choice.
    pub(crate) async fn handshake<S: Stream>(
        &self,
        io: S,
        name: ServerName<'static>,
        alpn: &[&str],
    ) -> std::io::Result<tokio_rustls::client::TlsStream<S>> {
        let mut config = self.tls_config();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let connector = TlsConnector::from(Arc::new(config));
        within("a TLS handshake", connector.connect(name, io)).await
    }

    /// Returns a TLS configuration that trusts the vault's CA and nothing else.
    pub(crate) fn tls_config(&self) -> ClientConfig {
        ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(Arc::clone(&self.roots))
            .with_no_client_auth()
    }

    /// Sends a GET through a tunnel of its own, or in absolute form for `http:`, and reads the
    /// answer.
    pub(crate) async fn get(&self, url: &str, fields: &[(&str, &str)]) -> Answer {
        let mut lines = String::new();
        for (name, value) in fields {
            lines.extend([name, ": ", value, "\r\n"]);
        }
        let (scheme, rest) = url.split_once("://").expect("a scheme");
        let end = rest.find('/').unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let path = if path.is_empty() { "/" } else { path };
        let host = format!("Host: {authority}\r\n");
        let mut conn;
        if scheme == "https" {
            let port = authority
                .rsplit_once(':')
                .is_none_or(|(_, port)| port.ends_with(']'));
            let target = if port {
                format!("{authority}:443")
            } else {
                authority.to_owned()
            };
            conn = self.connect(&target).await;
            conn.send(format!("GET {path} HTTP/1.1\r\n{host}{lines}\r\n"))
                .await;
        } else {
            conn = self.plain().await;
            let authorization = self.authorization();
            conn.send(format!(
                "GET {url} HTTP/1.1\r\n{host}{authorization}{lines}\r\n"
            ))
            .await;
        }
        conn.answer().await
    }
}

/// Returns the value of a Basic credential.
pub(crate) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

async fn dial(address: SocketAddr) -> TcpStream {
    let tcp = within("a connection", TcpStream::connect(address))
        .await
        .expect("a connection");
    tcp.set_nodelay(true).expect("no delay");
    tcp
}
