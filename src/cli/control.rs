//! The control socket: how a command of the same user asks a running server for something.
//!
//! It lies beside the store's file, whose lock keeps a second server away from both. Only the
//! owner may connect. One line is read, one line of JSON is answered; no key and no secret passes
//! here: keys are read from where the server read them. Called by `serve` and by `seal`.

use std::fs::{Permissions, remove_file, set_permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::chain;
use super::sealing::KeySource;
use crate::seal::KeyId;
use crate::session::{Rotated, Sessions};

/// Asks the server to read its sealing keys again and to seal everything under the first.
const ROTATE: &str = "seal rotate";
/// The longest line.
const LINE_LIMIT_BYTES: u64 = 64 * 1024;
/// How long a command has to say what it wants.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// Says why a server could not be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// There is no server, or none that listens.
    #[error("no server answers at {0}")]
    Nobody(PathBuf),
    /// The server went away before it answered.
    #[error("the server did not answer")]
    Silent(#[source] io::Error),
    /// The server could not do it.
    #[error("{0}")]
    Refused(String),
}

/// Returns where the socket of a store is.
fn socket(store: &Path) -> PathBuf {
    let mut path = store.as_os_str().to_owned();
    path.push(".sock");
    path.into()
}

/// A socket that is open; its file goes with it.
#[derive(Debug)]
pub(super) struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Control {
    /// Opens the socket beside the file of a store that this process has locked.
    pub(super) fn open(store: &Path) -> io::Result<Self> {
        let path = socket(store);
        // What lies there is of a server that was killed: the store's lock is ours.
        match remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(Self { listener, path })
    }

    /// Answers one command after the other.
    pub(super) async fn serve(self, sessions: Arc<Sessions>, keys: KeySource) {
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the control socket cannot accept");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            if let Err(error) = answer(stream, &sessions, &keys).await {
                tracing::warn!(%error, "a command was not answered");
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Err(error) = remove_file(&self.path) {
            tracing::debug!(%error, "the control socket cannot be removed");
        }
    }
}

async fn answer(mut stream: UnixStream, sessions: &Sessions, keys: &KeySource) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    if peer != rustix::process::geteuid().as_raw() && peer != 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let line = tokio::time::timeout(ASK_TIMEOUT, line(&mut stream)).await??;
    let answer = match line.trim_end() {
        ROTATE => rotate(sessions, keys).await,
        _ => Err("the server does not know this command".to_owned()),
    };
    let answer = answer.unwrap_or_else(|error| json!({ "error": error }));
    stream.write_all(format!("{answer}\n").as_bytes()).await
}

async fn rotate(sessions: &Sessions, keys: &KeySource) -> Result<Value, String> {
    let keyring = keys.read().await.map_err(|error| chain(&error))?;
    let ids: Vec<KeyId> = keyring.ids().collect();
    let done = sessions.rotate(keyring).await;
    let done = done.map_err(|error| chain(&error))?;
    tracing::info!(
        sealed = done.sealed,
        refused = done.refused,
        "sealing keys rotated"
    );
    Ok(report(&ids, &done))
}

/// Says what a rotation did, and which of the keys are needed no more.
pub(super) fn report(ids: &[KeyId], done: &Rotated) -> Value {
    let unneeded = ids.iter().skip(1).filter(|id| !done.needed.contains(id));
    let unneeded: Vec<String> = unneeded.map(ToString::to_string).collect();
    json!({
        "current": ids.first().map(ToString::to_string),
        "sealed": done.sealed,
        "refused": done.refused,
        "unneeded": unneeded,
    })
}

/// Asks the server that has a store open to rotate; its answer.
pub(super) async fn ask_to_rotate(store: &Path) -> Result<Value, Error> {
    let path = socket(store);
    let Ok(mut stream) = UnixStream::connect(&path).await else {
        return Err(Error::Nobody(path));
    };
    let asked = stream.write_all(format!("{ROTATE}\n").as_bytes()).await;
    asked.map_err(Error::Silent)?;
    let line = line(&mut stream).await.map_err(Error::Silent)?;
    let answer: Value = serde_json::from_str(&line).map_err(|error| Error::Silent(error.into()))?;
    match answer.get("error").and_then(Value::as_str) {
        Some(error) => Err(Error::Refused(error.to_owned())),
        None => Ok(answer),
    }
}

async fn line(stream: &mut UnixStream) -> io::Result<String> {
    let mut line = String::new();
    let mut reader = BufReader::new(stream.take(LINE_LIMIT_BYTES));
    match reader.read_line(&mut line).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(line),
    }
}
