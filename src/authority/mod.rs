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
mod rotation;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{Ticketer, cipher_suite, default_provider, kx_group};
use rustls::pki_types::CertificateDer;
use rustls::server::ResolvesServerCertUsingSni;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};

use crate::authority::cache::{HOST_LIMIT, LeafCache, Minted};
use crate::authority::leaf::LeafKey;
use crate::host::Host;
use crate::telemetry::Histogram;

pub use crate::authority::root::{Root, certificate_pem, fresh_common_name};
use crate::authority::rotation::look_beyond;
pub use crate::authority::rotation::{KEPT, Next, Old, Others, cancel, look, plan, written};

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
    /// There is no root that another could follow.
    #[error("{} is no root with its key beside it; `oshu-vault ca generate` makes one", path.display())]
    NoRoot {
        /// The certificate's file.
        path: PathBuf,
    },
    /// A root is planned already.
    #[error(
        "{}: a root is planned already and signs from {at}; `oshu-vault ca rotate --cancel` takes \
         it back", path.display()
    )]
    Planned {
        /// The file.
        path: PathBuf,
        /// From when on it signs.
        at: String,
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
    /// A root is planned for a time when the one before has ended already.
    #[error("the root that signs ends at {end}: the next one has to follow before that")]
    Unsigned {
        /// When it ends.
        end: String,
    },
    /// A root is planned for a time that is too far away.
    #[error("a root can be planned for the next 366 days: it is made now, and its time runs")]
    TooFar,
}

/// Tells the time; tests set it.
type Clock = Box<dyn Fn() -> SystemTime + Send + Sync>;

/// Signs leaves and keeps them: one mint per host, renewed before its end, 10,000 hosts at most.
pub struct CertificateAuthority {
    root: Arc<Root>,
    signer: RwLock<Arc<Signer>>,
    others: Mutex<Standby>,
    /// When the next root signs, in seconds since 1970; the largest number for never.
    turns_at: AtomicU64,
    leaf_key: LeafKey,
    leaf_limit: AtomicUsize,
    base: ServerConfig,
    clock: Clock,
    minted: AtomicU64,
    mint_times: Histogram,
}

/// A root that signs, and what it signed: no leaf of one root is shown under another.
struct Signer {
    root: Arc<Root>,
    leaves: LeafCache,
}

impl Signer {
    fn new(root: Arc<Root>, leaf_limit: usize) -> Self {
        let leaves = LeafCache::new();
        leaves.set_limit(leaf_limit);
        Self { root, leaves }
    }
}

/// The roots besides the one that signs.
#[derive(Default)]
struct Standby {
    next: Option<(Arc<Root>, SystemTime)>,
    old: Option<Old>,
    /// What the files looked like when they were read.
    seen: Option<[Option<Seen>; 3]>,
}

/// What tells a file from the one that stood there before.
type Seen = (u64, u64, SystemTime);

/// The files of a rotation, and the certificate, which a rotation replaces.
const WATCHED: [&str; 3] = ["ca.pem", "ca.next", "ca.old.pem"];

fn seen(folder: &Path) -> [Option<Seen>; 3] {
    WATCHED.map(|name| {
        let about = folder.join(name).symlink_metadata().ok()?;
        Some((about.ino(), about.len(), about.modified().ok()?))
    })
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
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
        let root = Arc::new(root);
        let signer = Arc::new(Signer::new(Arc::clone(&root), HOST_LIMIT));
        Ok(Self {
            root,
            signer: RwLock::new(signer),
            others: Mutex::default(),
            turns_at: AtomicU64::new(u64::MAX),
            leaf_key: LeafKey::generate()?,
            leaf_limit: AtomicUsize::new(HOST_LIMIT),
            base: base_config().map_err(|source| Error::Mint { source })?,
            clock: Box::new(clock),
            minted: AtomicU64::new(0),
            mint_times: Histogram::default(),
        })
    }

    /// Returns the root that this process began with.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Returns the root that signs now, for those who publish its certificate.
    pub fn signing_root(&self) -> Arc<Root> {
        Arc::clone(&self.signer((self.clock)()).root)
    }

    /// Returns the certificates that clients should trust now, in DER: of the root that signs, of
    /// the one that follows, and of the one before for [`KEPT`].
    pub fn trusted(&self) -> Vec<Vec<u8>> {
        let now = (self.clock)();
        let mut trusted = vec![self.signer(now).root.cert_der().to_vec()];
        let others = self.others();
        trusted.extend(others.next.iter().map(|(root, _)| root.cert_der().to_vec()));
        let old = others.old.as_ref().filter(|old| now < old.until);
        trusted.extend(old.map(|old| old.cert.to_vec()));
        trusted
    }

    /// Looks at the files of a folder and does what is due there: a root that was planned is taken
    /// up, one whose time has come signs, one that was taken back is forgotten. Called about once a
    /// second; files that are as they were are not read.
    ///
    /// # Errors
    /// What is wrong with the files: all stays as it was.
    pub fn refresh(&self, folder: &Path) -> Result<(), Error> {
        let now = (self.clock)();
        let found = seen(folder);
        let is_known = self.others().seen == Some(found);
        // What is due in the files was due here before, or is at this moment.
        if is_known && found.get(1).is_none_or(Option::is_none) {
            return Ok(());
        }
        if is_known && self.turns_at.load(Ordering::Acquire) > seconds(now) {
            return Ok(());
        }
        let _turned = self.signer(now);
        // Held while the files are read: nothing turns here meanwhile.
        let mut others = self.others();
        let own = self.current();
        let (Others { next, old }, other) = look_beyond(folder, now, own.root.cert_der())?;
        if let Some(root) = other {
            // Another process was faster, or took back what had begun here.
            tracing::info!("the root in the folder signs from now on");
            self.replace(Arc::new(root));
        }
        let at = next.as_ref().map_or(u64::MAX, |next| seconds(next.at));
        others.next = next.map(|next| (Arc::new(next.root), next.at));
        others.old = old.filter(|old| now < old.until);
        // As it was before it was read: what came since is looked at again.
        others.seen = Some(found);
        self.turns_at.store(at, Ordering::Release);
        Ok(())
    }

    /// Returns what signs at a time: from the time of the next root on, that one.
    fn signer(&self, now: SystemTime) -> Arc<Signer> {
        // One load, for every handshake.
        if self.turns_at.load(Ordering::Acquire) <= seconds(now) {
            let mut others = self.others();
            if let Some((root, at)) = others.next.take() {
                others.old = Some(Old {
                    cert: CertificateDer::from(self.current().root.cert_der().to_vec()),
                    until: at.checked_add(KEPT).unwrap_or(at),
                });
                // The files are still to follow.
                others.seen = None;
                tracing::info!("the next root signs from now on");
                self.replace(root);
            }
            self.turns_at.store(u64::MAX, Ordering::Release);
        }
        self.current()
    }

    fn current(&self) -> Arc<Signer> {
        Arc::clone(&self.signer.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn replace(&self, root: Arc<Root>) {
        let limit = self.leaf_limit.load(Ordering::Relaxed);
        let signer = Arc::new(Signer::new(root, limit));
        *self.signer.write().unwrap_or_else(PoisonError::into_inner) = signer;
    }

    fn others(&self) -> MutexGuard<'_, Standby> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the host's chain and key, minting at need; safe to cancel. A mint signs on the
    /// caller's thread: some 30 µs with an ECDSA root, 1 ms with RSA 2048.
    ///
    /// # Errors
    /// [`Error::RootExpired`], or a fault of the machine.
    pub async fn certified_key(&self, host: &Host) -> Result<Arc<CertifiedKey>, Error> {
        let now = (self.clock)();
        let signer = self.signer(now);
        let minted = signer
            .leaves
            .leaf_for(host, now, || self.mint(&signer.root, host, now));
        minted.await
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
        self.leaf_limit.store(limit, Ordering::Relaxed);
        self.current().leaves.set_limit(limit);
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
        self.current().leaves.len()
    }

    fn mint(&self, root: &Root, host: &Host, now: SystemTime) -> Result<Minted, Error> {
        let began = Instant::now();
        let leaf = leaf::mint(root.issuer(), &self.leaf_key, host, now)?;
        self.mint_times.observe(began.elapsed());
        let chain = root.chain(leaf.cert.clone());
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
