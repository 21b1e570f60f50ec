//! A workload behind a proxy: it knows the proxy, a root and a credential, and nothing else.
//!
//! It goes out by the one way there is out of this process, with a grant for the proxy's address
//! alone, and believes nobody in the tunnel but the root it was given. Called by `demo` and
//! `doctor`.

use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE64;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use super::client::{CallError, read_answer, read_body, way_to};
use crate::config::PublicUrl;
use crate::host::HostPort;
use crate::policy::Grant;
use crate::upstream::{Pool, Upstream};
use crate::wire::{Body, Connection, answer_framing, parse_answer};

/// How long any step may take.
const WAIT: Duration = Duration::from_secs(10);

/// Says why the workload got no answer at all.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The conversation with the proxy broke off.
    #[error("the proxy gave no answer")]
    Call(#[from] CallError),
    /// The root is none, or the target's name is none for TLS.
    #[error("the root certificate or the target's name cannot be used")]
    Setup,
    /// The leaf does not lead to the root, or the handshake failed.
    #[error("the TLS in the tunnel failed")]
    Tls(#[source] std::io::Error),
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
    /// credential (`USER:PASSWORD`) and the root. `roots` are for a proxy that speaks TLS itself.
    pub(super) fn new(
        proxy: &PublicUrl,
        roots: RootCertStore,
        credential: &str,
        ca_pem: &str,
    ) -> Result<Self, Error> {
        let (upstream, grant) = way_to(proxy, roots)?;
        let mut trusted = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(ca_pem.as_bytes());
        let added = root.map(|root| trusted.add(root));
        if !matches!(added, Ok(Ok(()))) {
            return Err(Error::Setup);
        }
        let authorization = format!("Basic {}", BASE64.encode(credential.as_bytes()));
        let tls = TlsConnector::from(Arc::new(client_config(trusted)));
        Ok(Self {
            upstream,
            grant,
            tls,
            authorization,
        })
    }

    /// Opens a tunnel to a target and sends one request through it, in TLS.
    pub(super) async fn send(&self, target: &HostPort, request: &str) -> Result<Outcome, Error> {
        let pool = Pool::default();
        let leased = self.upstream.lease_fresh(&pool, &self.grant).await;
        let lease = leased.map_err(CallError::from)?;
        let mut connection = lease.connection;
        let authorization = &self.authorization;
        let connect = format!(
            "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\
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
        let name = match target.host.ip() {
            Some(address) => ServerName::from(address),
            None => ServerName::try_from(target.host.to_string()).map_err(|_bad| Error::Setup)?,
        };
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
