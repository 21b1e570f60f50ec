//! Where the sealing keys come from, and the store that they seal.
//!
//! Keys are read from one place: a file of the owner's alone, the environment, or a command. They
//! are read again when they are to be rotated. Without `--dev` no key is made in passing: whoever
//! loses it loses the sessions. Called by `serve` and by `seal`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::run::output;
use super::state::{self, make_folder, write_private};
use crate::app::{self, Storage};
use crate::config::{self, AuditSink, Config, Flags, Source};
use crate::seal::{self, Keyring};
use crate::secret::Secret;
use crate::store::{self, Disk, Memory, Shared, SharedConfig, Store};

/// The file of the sealing keys in the state directory.
pub(super) const SEAL_KEY_FILE: &str = "seal.key";
/// How long a command may take to print the keys.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// Says why there is no keyring, or no store.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// There is no key, and without `--dev` none is made in passing.
    #[error(
        "state_dir: {0} is not there: `oshu-vault seal generate` makes a sealing key, or put yours \
         there (mode 0600), or set seal.key_file, seal.key_command or OSHU_VAULT_SEAL_KEY"
    )]
    NoKey(PathBuf),
    /// The place cannot be read.
    #[error("{key}: {why}")]
    Unreadable {
        /// The setting.
        key: String,
        /// What would have been right.
        why: String,
    },
    /// What was read holds no keys.
    #[error("{key} holds no sealing keys")]
    NoKeys {
        /// The setting.
        key: String,
        /// Why.
        #[source]
        source: seal::Error,
    },
    /// The state directory cannot be written.
    #[error("the sealing key cannot be made")]
    State(#[source] state::Error),
    /// What the server of the store is verified against cannot be read.
    #[error("store.url: the roots cannot be read")]
    Roots(#[source] app::Error),
    /// The store cannot be used.
    #[error("store.url: the store cannot be used")]
    Store(#[source] store::Error),
}

/// Where the sealing keys are.
#[derive(Debug, Clone)]
pub(super) enum KeySource {
    /// A shell command prints them.
    Command(String),
    /// A file holds them: the one that was named, or that of the state directory.
    File { path: PathBuf, is_default: bool },
    /// The environment did.
    Given(Secret),
}

impl KeySource {
    pub(super) fn of(config: &Config) -> Self {
        let seal = &config.seal;
        if let Some(key) = &seal.key {
            return Self::Given(key.clone());
        }
        if let Some(command) = &seal.key_command {
            return Self::Command(command.clone());
        }
        let file = |path, is_default| Self::File { path, is_default };
        match &seal.key_file {
            Some(path) => file(path.clone(), false),
            None => file(config.state_dir.join(SEAL_KEY_FILE), true),
        }
    }

    /// Reads the keys.
    pub(super) async fn read(&self) -> Result<Keyring, Error> {
        let key = self.key();
        let text = self.text().await?;
        let keyring = Keyring::parse(text.expose());
        keyring.map_err(|source| Error::NoKeys { key, source })
    }

    /// Reads the text that holds the keys.
    pub(super) async fn text(&self) -> Result<Secret, Error> {
        let read = match self {
            Self::Given(keys) => Ok(keys.clone()),
            Self::Command(line) => {
                match tokio::time::timeout(COMMAND_TIMEOUT, output(line)).await {
                    Ok(printed) => printed,
                    Err(_late) => Err("the command took longer than 30 seconds".to_owned()),
                }
            }
            Self::File { path, .. } => Source::process(Flags::default()).read_seal_keys(path),
        };
        read.map_err(|why| Error::Unreadable {
            key: self.key(),
            why,
        })
    }

    /// Names the place, for people.
    fn key(&self) -> String {
        match self {
            Self::Command(_) => "seal.key_command".to_owned(),
            Self::File {
                is_default: false, ..
            } => "seal.key_file".to_owned(),
            Self::File { path, .. } => path.display().to_string(),
            Self::Given(_) => "OSHU_VAULT_SEAL_KEY".to_owned(),
        }
    }
}

/// Opens the store, and reads the keys that go with it unless they were read before; `--dev` makes
/// them at its first start.
pub(super) async fn storage(config: &Config, known: Option<Keyring>) -> Result<Storage, Error> {
    let file = config.store.file(&config.state_dir);
    // A chain of audit lines is worth nothing under a key that ends with the process.
    if config.store == config::Store::Memory && config.audit.sink != AuditSink::File {
        return Ok(Storage::in_memory());
    }
    let keyring = match known {
        Some(known) => known,
        None => keyring(config, file.as_deref()).await?,
    };
    make_folder(&config.state_dir).map_err(Error::State)?;
    let store: Arc<dyn Store> = match (&config.store, file) {
        (config::Store::Shared(address), _) => {
            let shared = SharedConfig {
                address: address.clone(),
                prefix: config.shared.prefix.as_str().to_owned(),
                roots: Arc::new(app::roots(config).map_err(Error::Roots)?),
            };
            Arc::new(Shared::open(shared).await.map_err(Error::Store)?)
        }
        (_, Some(file)) => Arc::new(open(file).await?),
        (_, None) => Arc::new(Memory::default()),
    };
    Ok(Storage { store, keyring })
}

/// Reads the keys of a store.
async fn keyring(config: &Config, store: Option<&Path>) -> Result<Keyring, Error> {
    let keys = KeySource::of(config);
    if let KeySource::File {
        path,
        is_default: true,
    } = &keys
        && !path.exists()
    {
        // A store that is there was sealed by some other key.
        if !config.dev || store.is_some_and(Path::exists) {
            return Err(Error::NoKey(path.clone()));
        }
        generate(path)?;
    }
    keys.read().await
}

/// Writes a fresh key into a file that was not there before.
pub(super) fn generate(path: &Path) -> Result<Keyring, Error> {
    if let Some(folder) = path.parent() {
        make_folder(folder).map_err(Error::State)?;
    }
    let key = Keyring::fresh_key();
    let made = Keyring::parse(key.as_bytes()).map_err(|source| Error::NoKeys {
        key: path.display().to_string(),
        source,
    })?;
    let line = zeroize::Zeroizing::new(format!("{}\n", key.as_str()));
    write_private(path, line.as_bytes()).map_err(Error::State)?;
    Ok(made)
}

/// Opens the file of a store on a thread that may wait for the disk.
pub(super) async fn open(file: PathBuf) -> Result<Disk, Error> {
    let opened = tokio::task::spawn_blocking(move || Disk::open(&file)).await;
    match opened {
        Ok(opened) => opened.map_err(Error::Store),
        Err(panic) => Err(Error::Store(store::Error::unavailable(panic))),
    }
}
