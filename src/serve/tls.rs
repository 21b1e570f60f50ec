//! The listener's own certificate, from files that may be replaced while the process runs.
//!
//! A new pair of files is taken over when it loads and fits together; a broken one is logged and
//! the old certificate stays. Called by `app`, which hands the current configuration to the door.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

/// How often the files are looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Says why a certificate cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is no PEM of the kind expected. What the reader says quotes the file, which may be a
    /// key, so that it is left out.
    #[error("{path} is not a PEM file of {expected}")]
    NotPem {
        /// The file.
        path: PathBuf,
        /// What should be in it.
        expected: &'static str,
    },
    /// Certificate and key do not fit together, or are of a kind that is not supported.
    #[error("the certificate and the key do not fit together")]
    Pair(#[source] rustls::Error),
    /// A file cannot be read.
    #[error("{path} cannot be read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A certificate and a key in two files.
#[derive(Debug)]
pub struct FileCertificate {
    certificate: PathBuf,
    key: PathBuf,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    config: Arc<ServerConfig>,
    changed: [Option<SystemTime>; 2],
    looked: Instant,
}

impl FileCertificate {
    /// Loads both files.
    ///
    /// # Errors
    /// See [`Error`]; at start-up a broken file is fatal.
    pub fn load(certificate: PathBuf, key: PathBuf) -> Result<Self, Error> {
        let current = Current {
            config: Arc::new(read(&certificate, &key)?),
            changed: changed(&certificate, &key),
            looked: Instant::now(),
        };
        Ok(Self {
            certificate,
            key,
            current: Mutex::new(current),
        })
    }

    /// Returns the configuration of the newest pair of files that loaded.
    pub fn current(&self) -> Arc<ServerConfig> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.looked.elapsed() >= LOOK_EVERY {
            current.looked = Instant::now();
            self.refresh(&mut current);
        }
        Arc::clone(&current.config)
    }

    fn refresh(&self, current: &mut Current) {
        let now = changed(&self.certificate, &self.key);
        if now == current.changed {
            return;
        }
        current.changed = now;
        match read(&self.certificate, &self.key) {
            Ok(config) => {
                current.config = Arc::new(config);
                tracing::info!("the listener's certificate was read again");
            }
            Err(error) => {
                tracing::error!(%error, "the listener's new certificate is broken; the old stays");
            }
        }
    }
}

fn changed(certificate: &Path, key: &Path) -> [Option<SystemTime>; 2] {
    [certificate, key].map(|path| {
        std::fs::metadata(path)
            .and_then(|data| data.modified())
            .ok()
    })
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let content = content(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(not_pem(path, "a certificate chain")),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let key = PrivateKeyDer::from_pem_slice(&content(path)?);
    key.map_err(|_quotes| not_pem(path, "a private key"))
}

fn not_pem(path: &Path, expected: &'static str) -> Error {
    let path = path.to_owned();
    Error::NotPem { path, expected }
}

fn content(path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    let content = std::fs::read(path).map(Zeroizing::new);
    content.map_err(|source| Error::Unreadable {
        path: path.to_owned(),
        source,
    })
}

#[expect(
    clippy::expect_used,
    reason = "the provider supports both versions by its definition"
)]
fn read(certificate: &Path, key: &Path) -> Result<ServerConfig, Error> {
    let (chain, key) = (chain(certificate)?, private_key(key)?);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("TLS 1.2 and 1.3 are built in")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(Error::Pair)?;
    // Go sends h2 first to a proxy and cannot speak it there.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
