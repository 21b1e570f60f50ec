//! `seal generate`, `seal rotate`: the keys that seal sessions in the store.
//!
//! A rotation is done by the server that has the store open, or here where none has. A new key goes
//! to the top of the file, and none is ever taken out: which ones are needed no more is told.

use std::fs::{File, OpenOptions, rename};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::control::{self, ask_to_rotate, report};
use super::sealing::{self, KeySource, SEAL_KEY_FILE};
use super::{Exit, print};
use crate::config::{Config, Flags, Source, state_dir};
use crate::id::fill_random;
use crate::seal::Keyring;
use crate::session::rotate_offline;

/// What is asked about the sealing keys.
#[derive(Debug, Clone)]
pub enum Seal {
    /// Makes a file with one key.
    Generate {
        /// The file; that of the state directory where none is named.
        out: Option<PathBuf>,
        /// The state directory, where it was named.
        state_dir: Option<PathBuf>,
    },
    /// Seals everything under the first key.
    Rotate {
        /// Where the configuration is.
        flags: Flags,
        /// Puts a fresh key on top of the file before.
        new_key: bool,
    },
}

/// Does what was asked.
pub(super) async fn seal(seal: Seal) -> Result<(), Exit> {
    match seal {
        Seal::Generate { out, state_dir } => generate(out, state_dir.as_deref()),
        Seal::Rotate { flags, new_key } => rotate(flags, new_key).await,
    }
}

fn generate(out: Option<PathBuf>, folder: Option<&Path>) -> Result<(), Exit> {
    let path = match out {
        Some(path) => path,
        None => state_dir(folder, &Source::process(Flags::default()))?.join(SEAL_KEY_FILE),
    };
    let made = sealing::generate(&path).map_err(|error| Exit::startup(&error))?;
    tell(&json!({ "file": path, "current": made.current().to_string() }))
}

async fn rotate(flags: Flags, new_key: bool) -> Result<(), Exit> {
    let config = Config::load_state(&Source::process(flags))?;
    let Some(store) = config.store.file(&config.state_dir) else {
        return Err(Exit::usage(
            "error: store.url: memory keeps nothing that is sealed for longer than a process"
                .to_owned(),
        ));
    };
    if !store.exists() {
        return Err(Exit::failed(&format!("{} is not there", store.display())));
    }
    let keys = KeySource::of(&config);
    if new_key {
        add_key(&keys).await?;
    }
    match ask_to_rotate(&store).await {
        Ok(answer) => tell(&answer),
        Err(control::Error::Nobody(_)) => rotate_here(store, &keys).await,
        Err(error) => Err(Exit::startup(&error)),
    }
}

/// Rotates the keys of a store that no server has open.
async fn rotate_here(store: PathBuf, keys: &KeySource) -> Result<(), Exit> {
    let startup = |error: &dyn std::error::Error| Exit::startup(error);
    let keyring = keys.read().await.map_err(|error| startup(&error))?;
    let store = sealing::open(store)
        .await
        .map_err(|error| startup(&error))?;
    let done = rotate_offline(&store, &keyring).await;
    let closed = tokio::task::spawn_blocking(move || store.close()).await;
    let done = done.map_err(|error| startup(&error))?;
    closed.map_err(|error| startup(&error))?;
    let ids: Vec<_> = keyring.ids().collect();
    tell(&report(&ids, &done))
}

/// Puts a fresh key on top of the file, which is replaced whole.
async fn add_key(keys: &KeySource) -> Result<(), Exit> {
    let KeySource::File { path, .. } = keys else {
        return Err(Exit::usage(
            "error: --new-key expects the keys in a file; put the new key first where yours come \
             from"
                .to_owned(),
        ));
    };
    let before = keys.text().await.map_err(|error| Exit::startup(&error))?;
    let fresh = Keyring::fresh_key();
    let mut text = Zeroizing::new(Vec::with_capacity(fresh.len() + 1 + before.len()));
    text.extend_from_slice(fresh.as_bytes());
    text.push(b'\n');
    text.extend_from_slice(before.expose());
    replace(path, &text)
        .map_err(|error| Exit::failed(&format!("{} cannot be written: {error}", path.display())))
}

/// Replaces a file of the owner's alone: whole or not at all, and for good.
fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut bytes = [0; 8];
    fill_random(&mut bytes);
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}.new", HEXLOWER.encode(&bytes)));
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh);
    let mut file = file?;
    file.write_all(content)?;
    file.sync_all()?;
    rename(&fresh, path)?;
    let folder = path.parent().filter(|it| !it.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn tell(answer: &Value) -> Result<(), Exit> {
    print(&format!("{answer:#}\n"))
}
