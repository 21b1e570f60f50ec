//! Certificates of every kind, made when a test runs.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, LazyLock};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_RSA_SHA256, RsaKeySize, SanType,
};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::support::{GOOD, Origin, program};

/// The one key of all leaves whose key does not matter.
static LEAF_KEY: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate().expect("a key"));
/// Made once: it takes its time.
static RSA_2048: LazyLock<String> = LazyLock::new(|| rsa(RsaKeySize::_2048));

fn rsa(size: RsaKeySize) -> String {
    let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, size);
    key.expect("a key").serialize_pem()
}

/// Makes an RSA key of 2048 or 3072 bits.
pub(super) fn rsa_key(bits: u32) -> KeyPair {
    let pem = match bits {
        2048 => RSA_2048.clone(),
        _ => rsa(RsaKeySize::_3072),
    };
    KeyPair::from_pem(&pem).expect("a key")
}

/// What an origin shows: a chain, leaf first, and the leaf's key.
#[derive(Clone)]
pub(super) struct Shown {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: Vec<u8>,
}

impl Shown {
    /// Puts certificates behind the leaf.
    pub(super) fn with(mut self, issuers: &[&Authority]) -> Self {
        self.chain.extend(issuers.iter().map(|one| one.der.clone()));
        self
    }

    /// Starts an origin that shows it.
    pub(super) async fn origin(self) -> Origin {
        let key = PrivateKeyDer::Pkcs8(self.key.into());
        let key = any_supported_type(&key).expect("a signing key");
        let shown = Arc::new(CertifiedKey::new(self.chain, key));
        Origin::builder().shows(shown).echo_ok().await
    }
}

/// Somebody who issues certificates, whether they may or not.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(super) der: CertificateDer<'static>,
    pub(super) pem: String,
    key_pem: String,
}

/// Returns what a CA says of itself.
fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

impl Authority {
    /// Makes a root.
    pub(super) fn root(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        Self::root_with(name, key, |_params| {})
    }

    pub(super) fn root_with(
        name: &str,
        key: KeyPair,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let mut params = params(name);
        change(&mut params);
        let certificate = params.self_signed(&key).expect("a root");
        Self::of(params, key, &certificate)
    }

    /// Makes one that this one vouches for.
    pub(super) fn under(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        self.under_with(name, KeyPair::generate().expect("a key"), change)
    }

    pub(super) fn under_with(
        &self,
        name: &str,
        key: KeyPair,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let mut params = params(name);
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Self::of(params, key, &certificate)
    }

    fn of(params: CertificateParams, key: KeyPair, certificate: &rcgen::Certificate) -> Self {
        Self {
            der: certificate.der().clone(),
            pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            issuer: Issuer::new(params, key),
        }
    }

    /// Returns the key once more.
    pub(super) fn key(&self) -> KeyPair {
        KeyPair::from_pem(&self.key_pem).expect("a key")
    }

    /// Makes the leaf that would be right, changed.
    pub(super) fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> Shown {
        self.leaf_with(&LEAF_KEY, change)
    }

    pub(super) fn leaf_with(
        &self,
        key: &KeyPair,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Shown {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![dns(GOOD)];
        change(&mut params);
        let leaf = params.signed_by(key, &self.issuer).expect("a leaf");
        Shown {
            chain: vec![leaf.der().clone()],
            key: key.serialize_der(),
        }
    }

    /// Writes certificate and key where openssl finds them.
    fn write(&self, folder: &Path) {
        std::fs::write(folder.join("ca.pem"), &self.pem).expect("a file");
        std::fs::write(folder.join("ca.key"), &self.key_pem).expect("a file");
    }
}

/// Makes a leaf that nobody vouches for but itself.
pub(super) fn self_signed(change: impl FnOnce(&mut CertificateParams)) -> Shown {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![dns(GOOD)];
    change(&mut params);
    let leaf = params.self_signed(&*LEAF_KEY).expect("a leaf");
    Shown {
        chain: vec![leaf.der().clone()],
        key: LEAF_KEY.serialize_der(),
    }
}

/// A DNS name as a certificate says it; any ASCII.
pub(super) fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().expect("ASCII"))
}

/// Runs openssl in a folder.
pub(super) fn openssl(folder: &Path, line: &str) {
    let output = Command::new("openssl")
        .args(line.split(' '))
        .current_dir(folder)
        .output()
        .expect("openssl runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {line}: {told}");
}

/// Makes a leaf by openssl: with a key of its own (`leaf.key`, PEM), signed with a digest that
/// the library knows no more. None where there is no openssl.
pub(super) fn by_openssl(
    issuer: &Authority,
    folder: &Path,
    key: &str,
    digest: &str,
) -> Option<Shown> {
    program("openssl")?;
    issuer.write(folder);
    std::fs::write(
        folder.join("leaf.ext"),
        format!("subjectAltName=DNS:{GOOD}\n"),
    )
    .expect("a file");
    openssl(folder, &format!("genpkey {key} -out leaf.key"));
    openssl(
        folder,
        "req -new -key leaf.key -subj /CN=leaf -out leaf.csr",
    );
    openssl(
        folder,
        &format!(
            "x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -{digest} -days 30 -set_serial 7 \
             -extfile leaf.ext -out leaf.pem"
        ),
    );
    let read = |name: &str| std::fs::read(folder.join(name)).expect("a file");
    let leaf = CertificateDer::from_pem_slice(&read("leaf.pem")).expect("a leaf");
    let key = PrivateKeyDer::from_pem_slice(&read("leaf.key")).expect("a key");
    Some(Shown {
        chain: vec![leaf],
        key: key.secret_der().to_vec(),
    })
}
