//! `seal generate`, `seal rotate`: the keys that seal sessions in the store.
//!
//! A rotation is done by the server that has the store open, or here where none has. A new key goes
//! to the top of the file, and none is ever taken out: which ones are needed no more is told.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::control::{self, ask_to_rotate, report};
use super::key_file::KeyFile;
use super::sealing::{self, KeySource, SEAL_KEY_FILE};
use super::{Exit, print};
use crate::config::{Config, Flags, Source, state_dir};
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
    let Some(store) = config.store.beside(&config.state_dir) else {
        return Err(Exit::usage(
            "error: store.url: memory keeps nothing that is sealed for longer than a process"
                .to_owned(),
        ));
    };
    let is_shared = config.store.file(&config.state_dir).is_none();
    if is_shared && new_key {
        return Err(Exit::usage(
            "error: --new-key expects a store of one node: give the new key to every node as its \
             last one, rotate each, then put it first on every node, and rotate each again"
                .to_owned(),
        ));
    }
    if !is_shared && !store.exists() {
        return Err(Exit::failed(&format!("{} is not there", store.display())));
    }
    let keys = KeySource::of(&config);
    if new_key {
        return rotate_to_new(&store, &keys).await;
    }
    tell(&reseal((&store, is_shared), &keys).await?)
}

/// Puts a fresh key on top of the file, and seals everything under it. A key that an earlier
/// attempt left there is taken instead, where nothing was sealed under it so far.
async fn rotate_to_new(store: &Path, keys: &KeySource) -> Result<(), Exit> {
    let KeySource::File { path, .. } = keys else {
        return Err(Exit::usage(
            "error: --new-key expects the keys in a file; put the new key first where yours come \
             from"
                .to_owned(),
        ));
    };
    let failed = |error: &dyn std::error::Error| Exit::startup(error);
    // Kept to the end: another rotation would put its key on top of what was read here.
    let file = KeyFile::lock(path).map_err(|error| failed(&error))?;
    // Nothing is added while the store cannot be sealed anew.
    let before = reseal((store, false), keys).await?;
    if before.get("changed") == Some(&Value::Bool(true)) {
        return tell(&before);
    }
    let text = keys.text().await.map_err(|error| failed(&error))?;
    file.add_key(&text).map_err(|error| failed(&error))?;
    tell(&reseal((store, false), keys).await?)
}

/// Seals everything under the first key, by the server that has the store open or here. What several
/// nodes share is sealed by one of them alone.
async fn reseal((store, is_shared): (&Path, bool), keys: &KeySource) -> Result<Value, Exit> {
    match ask_to_rotate(store).await {
        Ok(answer) => Ok(answer),
        Err(control::Error::Nobody(_)) if !is_shared => rotate_here(store.to_owned(), keys).await,
        Err(error) => Err(Exit::startup(&error)),
    }
}

/// Rotates the keys of a store that no server has open.
async fn rotate_here(store: PathBuf, keys: &KeySource) -> Result<Value, Exit> {
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
    Ok(report(&ids, &done))
}

fn tell(answer: &Value) -> Result<(), Exit> {
    print(&format!("{answer:#}\n"))
}
