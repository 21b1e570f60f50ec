//! The certificate authority: a leaf for any host, signed by a root that the workload trusts.
//!
//! It owns the root's key, the one key behind all leaves, and the one TLS configuration that every
//! tunnel gets a copy of. It never shows a key, never signs anything but leaves, and knows nothing
//! of policy: who may ask for which host is decided before. Called by `proxy` for each tunnel, by
//! `serve` for the listener's own certificate with `--dev`, and by the command line.

mod cache;
mod der;
mod files;
mod leaf;
mod root;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{Ticketer, cipher_suite, default_provider, kx_group};
use rustls::server::ResolvesServerCertUsingSni;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};

use crate::authority::cache::{LeafCache, Minted};
use crate::authority::leaf::LeafKey;
use crate::host::Host;
use crate::telemetry::Histogram;

pub use crate::authority::root::{Root, certificate_pem, fresh_common_name};

/// Says why a root was refused or a leaf could not be minted. Always the operator's or the
/// machine's fault, never the workload's; no message quotes a key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A certificate breaks a rule: the operator brings another one.
    #[error("{origin}: the certificate {rule}")]
    Certificate {
        /// The file, or what stands for it.
        origin: String,
        /// The rule, and what to do.
        rule: &'static str,
    },
    /// The clock shows a time that no certificate can carry: the machine is set wrong.
    #[error("this machine's clock is out of the range of certificates; set it")]
    Clock,
    /// A root is already there and is not overwritten.
    #[error("{} already holds ca.pem or ca.key; remove them or choose another folder", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// A file could not be read or written: its path or rights are wrong, or the disk is.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A new key or root could not be made: a fault of the cryptographic library.
    #[error("cannot generate a key or a root")]
    Generate {
        /// The library's answer.
        source: rcgen::Error,
    },
    /// One half of a root is lost: the operator restores it.
    #[error(
        "{} is missing beside {}; restore it, or remove the other to start with a new root",
        missing.display(), present.display()
    )]
    HalfRoot {
        /// The file that is not there.
        missing: PathBuf,
        /// The file that is.
        present: PathBuf,
    },
    /// A key breaks a rule: the operator brings another one.
    #[error("{origin}: the key {rule}")]
    Key {
        /// The file, or what stands for it.
        origin: String,
        /// The rule, and what to do.
        rule: &'static str,
    },
    /// A key file can be read by others than its owner: the operator closes it.
    #[error("{} has mode {mode:04o}, open to others than its owner; set it to 0600", path.display())]
    KeyFileMode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A leaf could not be signed or the TLS configuration not be built: a fault of the library.
    #[error("cannot mint a leaf certificate")]
    Mint {
        /// The library's answer.
        source: rustls::Error,
    },
    /// Clients would not trust what this root signs (a name constraint, for one): the operator
    /// brings another root.
    #[error("{origin}: a leaf signed by this root does not verify; bring another root")]
    Probe {
        /// The file, or what stands for it.
        origin: String,
        /// The verifier's answer.
        source: rustls::Error,
    },
    /// The root expired while in use: the operator replaces it.
    #[error("the root has expired; bring a new root or generate one")]
    RootExpired,
}

/// Tells the time; tests set it.
type Clock = Box<dyn Fn() -> SystemTime + Send + Sync>;

/// Signs leaves and keeps them: one mint per host, renewed before its end, 10,000 hosts at most.
pub struct CertificateAuthority {
    root: Root,
    leaf_key: LeafKey,
    leaves: LeafCache,
    base: ServerConfig,
    clock: Clock,
    minted: AtomicU64,
    mint_times: Histogram,
}

impl CertificateAuthority {
    /// Sets up an authority over a root, with the system's clock.
    ///
    /// # Errors
    /// Only a fault of the cryptographic library.
    pub fn new(root: Root) -> Result<Self, Error> {
        Self::with_clock(root, SystemTime::now)
    }

    /// Sets up an authority over a root, with a clock of the caller's.
    ///
    /// # Errors
    /// Only a fault of the cryptographic library.
    pub fn with_clock(
        root: Root,
        clock: impl Fn() -> SystemTime + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        Ok(Self {
            root,
            leaf_key: LeafKey::generate()?,
            leaves: LeafCache::new(),
            base: base_config().map_err(|source| Error::Mint { source })?,
            clock: Box::new(clock),
            minted: AtomicU64::new(0),
            mint_times: Histogram::default(),
        })
    }

    /// Returns the root, for those who publish its certificate.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Returns the host's chain and key, minting at need; safe to cancel. A mint signs on the
    /// caller's thread: some 30 µs with an ECDSA root, 1 ms with RSA 2048.
    ///
    /// # Errors
    /// [`Error::RootExpired`], or a fault of the machine.
    pub async fn certified_key(&self, host: &Host) -> Result<Arc<CertifiedKey>, Error> {
        let now = (self.clock)();
        self.leaves
            .leaf_for(host, now, || self.mint(host, now))
            .await
    }

    /// Returns the TLS configuration for a tunnel to one host: a copy of the one base, which
    /// shows this host's leaf whatever name the client sends, or none (addresses, RFC 6066 §3).
    ///
    /// # Errors
    /// As [`CertificateAuthority::certified_key`].
    pub async fn server_config(&self, host: &Host) -> Result<Arc<ServerConfig>, Error> {
        let certified = self.certified_key(host).await?;
        let mut config = self.base.clone();
        config.cert_resolver = Arc::new(SingleCertAndKey::from(certified));
        Ok(Arc::new(config))
    }

    /// Sets for how many hosts leaves are kept, in steps of 16; those that are too many go.
    pub fn keep_leaves(&self, limit: usize) {
        self.leaves.set_limit(limit);
    }

    /// Returns how many leaves were minted so far.
    pub fn minted(&self) -> u64 {
        self.minted.load(Ordering::Relaxed)
    }

    /// Returns how long mints took.
    pub fn mint_times(&self) -> &Histogram {
        &self.mint_times
    }

    /// Returns how many leaves are kept at the moment.
    pub fn cached(&self) -> usize {
        self.leaves.len()
    }

    fn mint(&self, host: &Host, now: SystemTime) -> Result<Minted, Error> {
        let began = Instant::now();
        let leaf = leaf::mint(self.root.issuer(), &self.leaf_key, host, now)?;
        self.mint_times.observe(began.elapsed());
        let chain = self.root.chain(leaf.cert.clone());
        let certified = CertifiedKey::new(chain, Arc::clone(&self.leaf_key.signing));
        self.minted.fetch_add(1, Ordering::Relaxed);
        Ok(Minted::new(Arc::new(certified), &leaf, now))
    }
}

impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateAuthority")
            .field("root", &self.root)
            .field("minted", &self.minted())
            .field("cached", &self.cached())
            .finish_non_exhaustive()
    }
}

/// Builds the configuration that all tunnels share: ticket keys and session store included, so
/// that a workload resumes towards the same name on its next tunnel. Towards another name rustls
/// does not resume but shakes hands in full (RFC 6066 §3).
fn base_config() -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_no_client_auth()
        // Replaced in every copy; the base alone answers no one.
        .with_cert_resolver(Arc::new(ResolvesServerCertUsingSni::new()));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ignore_client_order = true;
    config.ticketer = Ticketer::new()?;
    config.send_tls13_tickets = 1;
    // No early data: it can be replayed, and requests carry secrets (RFC 8446 §8).
    config.max_early_data_size = 0;
    Ok(config)
}

/// Lists the cryptography of the workload's side. The hop is short and often local, so the cheap
/// AES-128 goes first; the leaf is ECDSA, so suites of RSA are left out.
fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        ],
        // A set: rustls takes the client's first choice of these, so a client that puts the hybrid
        // group first pays for it.
        kx_groups: vec![
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
            kx_group::X25519MLKEM768,
        ],
        ..default_provider()
    }
}
