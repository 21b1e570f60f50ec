//! A CA for origins: it mints a leaf at each handshake, for the name that is asked for.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::TlsAcceptor;

/// A CA for origins, and the one key that all its leaves have.
pub(crate) struct TestCa {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    leaf_key: KeyPair,
}

static SHARED: LazyLock<Arc<TestCa>> = LazyLock::new(TestCa::generate);

impl TestCa {
    /// Returns the CA that every vault of the suite trusts.
    pub(crate) fn shared() -> Arc<Self> {
        Arc::clone(&SHARED)
    }

    /// Makes a CA that nobody trusts yet.
    pub(crate) fn generate() -> Arc<Self> {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "origin test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let pem = params.self_signed(&key).expect("a certificate").pem();
        let leaf_key = KeyPair::generate().expect("a key");
        Arc::new(Self {
            issuer: Issuer::new(params, key),
            pem,
            leaf_key,
        })
    }

    /// Returns the certificate as PEM.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// Writes a leaf for a name and its key into a folder, for servers that are programs.
    pub(crate) fn files(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::DnsName(name.try_into().expect("a name"))];
        let leaf = params.signed_by(&self.leaf_key, &self.issuer);
        let (chain, key) = (folder.join("origin.pem"), folder.join("origin.key"));
        std::fs::write(&chain, leaf.expect("a leaf").pem()).expect("a file");
        std::fs::write(&key, self.leaf_key.serialize_pem()).expect("a file");
        (chain, key)
    }

    /// Accepts TLS for any name, for servers that a test writes itself.
    pub(crate) fn acceptor(self: &Arc<Self>) -> TlsAcceptor {
        self.acceptor_of(&[])
    }

    /// Accepts TLS with a certificate for one name, whatever is asked for.
    pub(crate) fn acceptor_for(self: &Arc<Self>, name: &str) -> TlsAcceptor {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::DnsName(name.try_into().expect("a name"))];
        let resolver = SingleCertAndKey::from(self.leaf(&params));
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        TlsAcceptor::from(Arc::new(config))
    }

    /// Accepts TLS for any name, and protocols by ALPN in this order.
    pub(crate) fn acceptor_of(self: &Arc<Self>, alpn: &[&str]) -> TlsAcceptor {
        let resolver = Minting {
            ca: Arc::clone(self),
            change: |_params| {},
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }

    fn leaf(&self, params: &CertificateParams) -> Arc<CertifiedKey> {
        let leaf = params
            .signed_by(&self.leaf_key, &self.issuer)
            .expect("a leaf");
        let key = PrivateKeyDer::Pkcs8(self.leaf_key.serialize_der().into());
        let key = aws_lc_rs::sign::any_ecdsa_type(&key).expect("a signing key");
        Arc::new(CertifiedKey::new(vec![leaf.der().clone()], key))
    }
}

/// Mints a leaf for each name that is asked for.
pub(super) struct Minting {
    pub(super) ca: Arc<TestCa>,
    /// Changes the leaf that would be right.
    pub(super) change: fn(&mut CertificateParams),
}

impl std::fmt::Debug for Minting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Minting")
    }
}

impl ResolvesServerCert for Minting {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![match hello.server_name() {
            Some(name) => SanType::DnsName(name.try_into().ok()?),
            None => SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        }];
        (self.change)(&mut params);
        Some(self.ca.leaf(&params))
    }
}
