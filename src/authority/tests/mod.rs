//! What the tests of this module share: roots of every kind, a settable clock, verifiers.

mod issuance;
mod refusals;
mod roots;
mod rotation;
mod tunnels;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyUsagePurpose};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

use crate::authority::{CertificateAuthority, Root};
use crate::host::Host;

/// A clock that stands still until it is moved.
#[derive(Clone)]
struct TestClock(Arc<AtomicU64>);

impl TestClock {
    fn now() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Self(Arc::new(AtomicU64::new(now.as_secs())))
    }

    fn read(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.0.load(Ordering::SeqCst))
    }

    fn seconds(&self) -> i64 {
        i64::try_from(self.0.load(Ordering::SeqCst)).unwrap()
    }

    fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_secs(), Ordering::SeqCst);
    }

    fn set_back(&self, by: Duration) {
        self.0.fetch_sub(by.as_secs(), Ordering::SeqCst);
    }
}

fn authority_at(clock: &TestClock) -> CertificateAuthority {
    let clock = clock.clone();
    let root = Root::generate("Test root").unwrap();
    CertificateAuthority::with_clock(root, move || clock.read()).unwrap()
}

fn authority() -> CertificateAuthority {
    CertificateAuthority::new(Root::generate("Test root").unwrap()).unwrap()
}

fn host(text: &str) -> Host {
    Host::parse(text).unwrap()
}

/// The longest name there is: 253 characters in labels of one.
fn longest_name() -> String {
    let name = format!("{}a", "a.".repeat(126));
    assert_eq!(name.len(), 253);
    name
}

async fn chain(authority: &CertificateAuthority, name: &str) -> Vec<CertificateDer<'static>> {
    let certified = authority.certified_key(&host(name)).await.unwrap();
    certified.cert.clone()
}

/// Verifies a chain as a rustls client that trusts one certificate alone.
fn verify(
    trusted: &[u8],
    chain: &[CertificateDer<'_>],
    name: &str,
    at: SystemTime,
) -> Result<(), rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(trusted.to_vec())).unwrap();
    let provider = Arc::new(default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .unwrap();
    let name = ServerName::try_from(name.trim_matches(['[', ']']).to_owned()).unwrap();
    let at = UnixTime::since_unix_epoch(at.duration_since(UNIX_EPOCH).unwrap());
    verifier
        .verify_server_cert(&chain[0], &chain[1..], &name, &[], at)
        .map(|_verified| ())
}

/// The parameters of a sound root, to be spoilt by a test.
fn root_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = SystemTime::now();
    params.not_before = (now - Duration::from_hours(1)).into();
    params.not_after = (now + Duration::from_hours(365 * 24)).into();
    params
        .distinguished_name
        .push(DnType::CommonName, "Brought root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// Signs parameters with a fresh key: certificate and key as PEM.
fn self_signed(params: &CertificateParams) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = params.self_signed(&key).unwrap();
    (cert.pem(), key.serialize_pem())
}

/// Tells whether a program is there. In CI a missing one is a failure, else the test is skipped
/// aloud.
fn installed(program: &str) -> bool {
    if Command::new(program).arg("version").output().is_ok() {
        return true;
    }
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{program} must be installed in CI"
    );
    eprintln!("skipped: {program} is not installed");
    false
}

/// Runs openssl in a folder, with arguments parted by blanks, and returns what it printed.
fn openssl(folder: &Path, arguments: &str) -> String {
    openssl_with(folder, &arguments.split(' ').collect::<Vec<_>>())
}

fn openssl_with(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("openssl")
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    let printed = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        output.status.success(),
        "openssl {arguments:?} failed: {printed}"
    );
    printed
}
