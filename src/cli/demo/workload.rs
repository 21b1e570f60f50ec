//! The workload of the story: it knows a proxy, a root and a sealed token, and nothing else.
//!
//! It goes out by the one way there is out of this process, with a grant for the proxy's address
//! alone. Called by `demo`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE64;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use crate::cli::client::{CallError, read_answer, read_body};
use crate::policy::{AddressRules, Denial, EgressPolicy, EgressRules, Grant};
use crate::upstream::{self, Pool, Upstream};
use crate::wire::{Body, Connection, answer_framing, parse_answer};

/// How long any step may take.
const WAIT: Duration = Duration::from_secs(10);

/// Says why the workload got no answer at all.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The conversation broke off.
    #[error("the demo's workload got no answer")]
    Call(#[from] CallError),
    /// The proxy's address is not one to dial.
    #[error("the demo's proxy cannot be dialled")]
    Denied(#[from] Denial),
    /// The proxy's address makes no rule.
    #[error("the demo's proxy is not at an address")]
    Rule,
    /// The proxy's root, or the leaf under it, is not as it should be.
    #[error("the tunnel's TLS failed")]
    Tls(#[source] std::io::Error),
    /// The proxy cannot be reached.
    #[error("the demo's proxy cannot be reached")]
    Upstream(#[from] upstream::Error),
}

/// What the workload gets for a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The upstream's answer.
    Answered(u16, String),
    /// The proxy's refusal of the tunnel.
    Refused(u16, String),
}

/// A client behind the proxy.
pub(super) struct Workload {
    upstream: Upstream,
    grant: Grant,
    tls: TlsConnector,
    authorization: String,
}

impl Workload {
    /// Sets a client up with what a sandbox is given: the proxy's address, the session's
    /// credential and the root.
    pub(super) fn new(proxy: SocketAddr, credential: &str, ca_pem: &str) -> Result<Self, Error> {
        let rules = Arc::new(AddressRules::new(Vec::new(), true));
        let lines = EgressRules::parse(&[proxy.to_string()]).map_err(|_bad| Error::Rule)?;
        let (ip, port): (IpAddr, u16) = (proxy.ip(), proxy.port());
        let target = crate::host::HostPort::new(ip.into(), port);
        let grant = EgressPolicy::new(lines)
            .decide(&target, &rules)?
            .cleartext();
        let mut roots = RootCertStore::empty();
        let trusted = CertificateDer::from_pem_slice(ca_pem.as_bytes());
        let added = trusted.map(|root| roots.add(root));
        if !matches!(added, Ok(Ok(()))) {
            return Err(Error::Tls(std::io::ErrorKind::InvalidData.into()));
        }
        let upstream = Upstream::new(upstream::Config {
            overrides: Vec::new(),
            roots: Arc::new(RootCertStore::empty()),
            rules,
            proxy: None,
            dns_timeout: WAIT,
            connect_timeout: WAIT,
            handshake_timeout: WAIT,
        })?;
        let authorization = format!("Basic {}", BASE64.encode(credential.as_bytes()));
        let tls = TlsConnector::from(Arc::new(client_config(roots)));
        Ok(Self {
            upstream,
            grant,
            tls,
            authorization,
        })
    }

    /// Opens a tunnel to a host and sends one request through it, in TLS.
    pub(super) async fn send(&self, host: &str, request: &str) -> Result<Outcome, Error> {
        let lease = self
            .upstream
            .lease_fresh(&Pool::default(), &self.grant)
            .await?;
        let mut connection = lease.connection;
        let authorization = &self.authorization;
        let connect = format!(
            "CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\
             Proxy-Authorization: {authorization}\r\n\r\n"
        );
        connection
            .send(connect.as_bytes())
            .await
            .map_err(CallError::Io)?;
        let block = connection
            .read_head(WAIT, WAIT)
            .await
            .map_err(CallError::from)?;
        let head = parse_answer(block).map_err(CallError::BadAnswer)?;
        if head.status != 200 {
            let framing = answer_framing(&head, false).map_err(CallError::BadAnswer)?;
            let body = read_body(&mut connection, Body::new(framing).without_framing()).await?;
            return Ok(Outcome::Refused(head.status, text(&body)));
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|_bad| Error::Rule)?;
        let tunnel = self.tls.connect(name, connection.into_replay()).await;
        let mut tunnel = Connection::new(Box::new(tunnel.map_err(Error::Tls)?));
        tunnel
            .send(request.as_bytes())
            .await
            .map_err(CallError::Io)?;
        let (status, body) = read_answer(&mut tunnel).await?;
        Ok(Outcome::Answered(status, text(&body)))
    }
}

#[expect(
    clippy::expect_used,
    reason = "the provider supports both versions by its definition"
)]
fn client_config(roots: RootCertStore) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("TLS 1.2 and 1.3 are built in")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
