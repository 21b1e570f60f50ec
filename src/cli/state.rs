//! The state directory: the root, the API key, and nothing readable by others.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::chain;
use crate::authority::{CertificateAuthority, Error as AuthorityError, Root, look};
use crate::config::{Config, Source};
use crate::secret::Secret;
use crate::tenant::generate_key;

/// The file of the root's certificate.
pub(super) const CA_FILE: &str = "ca.pem";
/// The file of the root's key.
pub(super) const CA_KEY_FILE: &str = "ca.key";
/// How often it is looked whether a root is to follow.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The file of the generated API key.
pub(super) const API_KEY_FILE: &str = "api.key";

/// Says why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// A file or the directory cannot be made.
    #[error("state_dir: {path} cannot be written")]
    Write {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The API key file is there and cannot be used.
    #[error("state_dir: {0}")]
    ApiKey(String),
    /// There is no root, and without `--dev` none is made in passing.
    #[error(
        "state_dir: {0} has no certificate authority; `oshu-vault ca generate` makes one, or put \
         yours there as ca.pem and ca.key (mode 0600)"
    )]
    NoAuthority(PathBuf),
    /// The root cannot be used.
    #[error("the certificate authority cannot be used")]
    Authority(#[source] AuthorityError),
}

/// Makes a directory that only its owner can enter, if it is not there.
pub(super) fn make_folder(path: &Path) -> Result<(), Error> {
    let mut builder = std::fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(path);
    made.map_err(|source| Error::Write {
        path: path.to_owned(),
        source,
    })
}

/// Loads the root; with `--dev` one is made at the first start.
pub(super) fn authority(config: &Config) -> Result<Arc<CertificateAuthority>, Error> {
    let folder = &config.state_dir;
    let (certificate, key) = (folder.join(CA_FILE), folder.join(CA_KEY_FILE));
    if config.dev {
        make_folder(folder)?;
    } else if !certificate.exists() && !key.exists() {
        return Err(Error::NoAuthority(folder.clone()));
    }
    // A rotation that was cut short leaves halves that only it can put together.
    let root = match look(folder, SystemTime::now()) {
        Ok(_others) if config.dev => Root::load_or_generate(folder),
        Ok(_others) => Root::load(&certificate, &key),
        // As while it runs: a plan that cannot be read changes nothing of a pair that is whole.
        Err(unread) => Root::load(&certificate, &key).map_err(|_halves| unread),
    };
    let root = root.map_err(Error::Authority)?;
    for warning in root.warnings() {
        tracing::warn!(warning, "the certificate authority");
    }
    let authority = CertificateAuthority::new(root).map_err(Error::Authority)?;
    if let Err(error) = authority.refresh(folder) {
        not_taken_up(&chain(&error));
    }
    Ok(Arc::new(authority))
}

fn not_taken_up(error: &str) {
    tracing::error!(
        error,
        "the next root cannot be taken up; all stays as it is"
    );
}

/// Watches for a root that follows, for as long as the process runs.
pub(super) async fn watch_authority(authority: Arc<CertificateAuthority>, folder: PathBuf) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut told = String::new();
    loop {
        ticks.tick().await;
        let (own, at) = (Arc::clone(&authority), folder.clone());
        let looked = tokio::task::spawn_blocking(move || own.refresh(&at)).await;
        let now = match looked {
            Ok(Ok(())) => String::new(),
            Ok(Err(error)) => chain(&error),
            Err(panic) => panic.to_string(),
        };
        if now != told && !now.is_empty() {
            not_taken_up(&now);
        }
        told = now;
    }
}

/// Finds the tenant's API key: configured, kept, or made just now. Tells whether it is new.
pub(super) fn api_key(config: &Config, source: &Source) -> Result<(Secret, bool), Error> {
    if let Some(key) = &config.api_key {
        return Ok((key.clone(), false));
    }
    // Only `--dev` comes here without a key: the configuration refuses it otherwise.
    let path = config.state_dir.join(API_KEY_FILE);
    if path.exists() {
        return source
            .read_api_key(&path)
            .map(|key| (key, false))
            .map_err(Error::ApiKey);
    }
    make_folder(&config.state_dir)?;
    let key = generate_key();
    write_private(&path, key.expose())?;
    Ok((key, true))
}

/// Writes a file that only its owner can read, and that was not there before.
pub(super) fn write_private(path: &Path, content: &[u8]) -> Result<(), Error> {
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .map_err(|source| Error::Write {
            path: path.to_owned(),
            source,
        })
}
