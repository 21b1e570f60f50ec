//! The TLS configuration of a tunnel, tried by real handshakes in memory.

use std::sync::Arc;

use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue,
    Tls13ClientSessionValue,
};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    CipherSuite, ClientConfig, HandshakeKind, NamedGroup, ProtocolVersion, RootCertStore,
    SupportedProtocolVersion,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{authority, host, longest_name};
use crate::authority::CertificateAuthority;

/// What a handshake came to, seen from the client.
#[derive(Debug)]
struct Outcome {
    version: ProtocolVersion,
    suite: CipherSuite,
    group: Option<NamedGroup>,
    alpn: Option<Vec<u8>>,
    kind: HandshakeKind,
    early_data: bool,
    tickets: u32,
}

fn client(
    authority: &CertificateAuthority,
    provider: CryptoProvider,
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    let root = authority.root().cert_der().to_vec();
    roots.add(CertificateDer::from(root)).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.resumption = Resumption::in_memory_sessions(8);
    config.enable_early_data = true;
    config
}

const BOTH: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

async fn shake(
    authority: &CertificateAuthority,
    config: &Arc<ClientConfig>,
    tunnel: &str,
    asked: &str,
) -> Result<Outcome, std::io::Error> {
    let server = authority.server_config(&host(tunnel)).await.unwrap();
    let (near, far) = tokio::io::duplex(16 * 1024);
    let serving = tokio::spawn(async move {
        let mut stream = TlsAcceptor::from(server).accept(far).await?;
        stream.write_all(b"hello").await?;
        stream.shutdown().await
    });
    let name = asked.trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(name).unwrap();
    let mut stream = TlsConnector::from(Arc::clone(config))
        .connect(name, near)
        .await?;
    let mut read = Vec::new();
    stream.read_to_end(&mut read).await?;
    assert_eq!(read, b"hello");
    serving.await.unwrap()?;
    let (_, session) = stream.get_ref();
    Ok(Outcome {
        version: session.protocol_version().unwrap(),
        suite: session.negotiated_cipher_suite().unwrap().suite(),
        group: session
            .negotiated_key_exchange_group()
            .map(rustls::crypto::SupportedKxGroup::name),
        alpn: session.alpn_protocol().map(<[u8]>::to_vec),
        kind: session.handshake_kind().unwrap(),
        early_data: session.is_early_data_accepted(),
        tickets: session.tls13_tickets_received(),
    })
}

#[tokio::test]
async fn names_addresses_and_clients_without_sni_are_served() {
    let authority = authority();
    let longest = longest_name();
    for sni in [true, false] {
        let mut config = client(&authority, default_provider(), BOTH);
        config.enable_sni = sni;
        let config = Arc::new(config);
        for name in ["api.example.com", "127.0.0.1", "[::1]", &longest] {
            shake(&authority, &config, name, name).await.unwrap();
        }
        // The leaf is the tunnel's own, whatever name the client sends.
        shake(&authority, &config, "a.example", "b.example")
            .await
            .unwrap_err();
    }
    assert_eq!(authority.cached(), 5);
}

#[tokio::test]
async fn the_cheap_suite_and_http_1_are_chosen_in_both_versions() {
    let authority = authority();
    for (version, suite) in [
        (
            &rustls::version::TLS13,
            CipherSuite::TLS13_AES_128_GCM_SHA256,
        ),
        (
            &rustls::version::TLS12,
            CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        ),
    ] {
        // rustls' own order puts AES-256 first: the server's order must win.
        let config = Arc::new(client(&authority, default_provider(), &[version]));
        let outcome = shake(&authority, &config, "a.example", "a.example")
            .await
            .unwrap();
        assert_eq!((outcome.version, outcome.suite), (version.version, suite));
        assert_eq!(outcome.alpn.as_deref(), Some(&b"h2"[..]));
    }
}

#[tokio::test]
async fn key_exchange_is_what_the_client_prefers_hybrid_included() {
    let authority = authority();
    for group in [
        kx_group::X25519,
        kx_group::SECP256R1,
        kx_group::SECP384R1,
        kx_group::X25519MLKEM768,
    ] {
        let provider = CryptoProvider {
            kx_groups: vec![group],
            ..default_provider()
        };
        let config = Arc::new(client(&authority, provider, BOTH));
        let outcome = shake(&authority, &config, "a.example", "a.example")
            .await
            .unwrap();
        assert_eq!(outcome.group, Some(group.name()));
    }
}

/// A client's sessions, kept as if all names were one: it offers each to every server.
#[derive(Debug)]
struct OneName(ClientSessionMemoryCache);

impl OneName {
    fn name() -> ServerName<'static> {
        ServerName::try_from("any.example").unwrap()
    }
}

impl ClientSessionStore for OneName {
    fn set_kx_hint(&self, _name: ServerName<'static>, group: NamedGroup) {
        self.0.set_kx_hint(Self::name(), group);
    }

    fn kx_hint(&self, _name: &ServerName<'_>) -> Option<NamedGroup> {
        self.0.kx_hint(&Self::name())
    }

    fn set_tls12_session(&self, _name: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.0.set_tls12_session(Self::name(), value);
    }

    fn tls12_session(&self, _name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.0.tls12_session(&Self::name())
    }

    fn remove_tls12_session(&self, _name: &ServerName<'static>) {
        self.0.remove_tls12_session(&Self::name());
    }

    fn insert_tls13_ticket(&self, _name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(Self::name(), value);
    }

    fn take_tls13_ticket(&self, _name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.take_tls13_ticket(&Self::name())
    }
}

#[tokio::test]
async fn peer_76_a_second_tunnel_to_a_name_resumes_and_another_name_does_not() {
    let authority = authority();
    for version in BOTH {
        let mut config = client(&authority, default_provider(), &[version]);
        config.resumption = Resumption::store(Arc::new(OneName(ClientSessionMemoryCache::new(8))));
        let config = Arc::new(config);
        let first = shake(&authority, &config, "a.example", "a.example")
            .await
            .unwrap();
        let again = shake(&authority, &config, "a.example", "a.example")
            .await
            .unwrap();
        assert_ne!(first.kind, HandshakeKind::Resumed);
        assert_eq!(again.kind, HandshakeKind::Resumed);
        assert!(!first.early_data && !again.early_data);
        if version.version == ProtocolVersion::TLSv1_3 {
            assert_eq!((first.tickets, again.tickets), (1, 1));
        }
        // The session of another name is offered to it, then its own, which the client has by then
        // in the place of the other.
        let shake_other = async || {
            let other = shake(&authority, &config, "b.example", "b.example").await;
            other.unwrap().kind
        };
        assert_ne!(shake_other().await, HandshakeKind::Resumed);
        assert_eq!(shake_other().await, HandshakeKind::Resumed);
    }
}
