//! The control socket: how a command of the same user asks a running server for something.
//!
//! It lies beside the store's file, whose lock keeps a second server away from both. Only the
//! owner may connect. One line is read, one line of JSON is answered, both within deadlines; a
//! successor goes on talking. No key and no secret passes here: sealing keys are read from where the
//! server read them, and of an API key comes the hash. Called by `serve`, `seal`, `keys` and
//! `accounts`.

use std::fs::{Permissions, remove_file, rename, set_permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::chain;
use super::sealing::KeySource;
use crate::app::{self, Handover, Hello, Paying, Predecessor};
use crate::id::fill_random;
use crate::seal::KeyId;
use crate::serve::Sockets;
use crate::session::{Rotated, Sessions};

/// Asks the server to read its sealing keys again and to seal everything under the first.
const ROTATE: &str = "seal rotate";
/// Asks the server for something about API keys, which follows in JSON.
pub(super) const KEYS: &str = "keys ";
/// Asks the server for something about accounts, which follows in JSON.
pub(super) const ACCOUNTS: &str = "accounts ";
/// Asks the server to hand over to the process at the other end; what that has follows.
const TAKE_OVER: &str = "take over ";
/// The longest line.
const LINE_LIMIT_BYTES: u64 = 64 * 1024;
/// How many commands may be there together.
const COMMANDS: usize = 8;
/// How long a command has to say what it wants, and to take its answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a command waits for its answer: every session is sealed anew before that.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(15);

/// Says why a server could not be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// There is no server, or none that listens.
    #[error("no server answers at {0}")]
    Nobody(PathBuf),
    /// Somebody else listens where the server would.
    #[error("{0} is another user's: nothing was said to it")]
    Foreign(PathBuf),
    /// The server went away before it answered.
    #[error("the server did not answer")]
    Silent(#[source] io::Error),
    /// The server could not do it.
    #[error("{0}")]
    Refused(String),
    /// The server did not hand over.
    #[error("the running server does not hand over")]
    NotHandedOver(#[source] app::HandoverError),
}

/// Returns where the socket of a store is.
fn socket(store: &Path) -> PathBuf {
    let mut path = store.as_os_str().to_owned();
    path.push(".sock");
    path.into()
}

/// What commands may be about.
#[derive(Clone, Debug)]
pub(super) struct Served {
    /// The live sessions, and their tenants.
    pub(super) sessions: Arc<Sessions>,
    /// The accounts of the gateway, and what they used.
    pub(super) paying: Option<Paying>,
    /// What hands the service over.
    pub(super) handover: Option<Arc<Handover>>,
}

#[cfg(test)]
impl Served {
    /// Serves sessions and nothing else.
    pub(super) fn only(sessions: &Arc<Sessions>) -> Self {
        Self {
            sessions: Arc::clone(sessions),
            paying: None,
            handover: None,
        }
    }
}

/// A socket that is open; its file goes with it, unless another process has put its own there.
#[derive(Debug)]
pub(super) struct Control {
    listener: UnixListener,
    path: PathBuf,
    file: (u64, u64),
    /// The name is the successor's, who may put a socket there at any moment.
    is_handed_over: bool,
}

impl Control {
    /// Opens the socket beside the file of a store that this process has locked.
    pub(super) fn open(store: &Path) -> io::Result<Self> {
        let path = socket(store);
        let mut bytes = [0; 8];
        fill_random(&mut bytes);
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(format!(".{}", HEXLOWER.encode(&bytes)));
        let fresh = PathBuf::from(fresh);
        let listener = UnixListener::bind(&fresh)?;
        // What lies there is of a server that was killed or has handed over: the lock is ours.
        let placed = set_permissions(&fresh, Permissions::from_mode(0o600))
            .and_then(|()| identity(&fresh))
            .and_then(|file| rename(&fresh, &path).map(|()| file));
        match placed {
            Ok(file) => Ok(Self {
                listener,
                path,
                file,
                is_handed_over: false,
            }),
            Err(error) => {
                drop(remove_file(&fresh));
                Err(error)
            }
        }
    }

    /// Answers commands until the server was handed over; one that is slow to ask keeps no other
    /// waiting.
    pub(super) async fn serve(self, served: Served, keys: KeySource) {
        self.serve_with(ASK_TIMEOUT, served, keys).await;
    }

    async fn serve_with(mut self, patience: Duration, served: Served, keys: KeySource) {
        // Read and taken by one at a time, or keys that were read earlier would be taken later.
        let keys = Arc::new(Mutex::new(keys));
        let mut commands = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                Some(done) = commands.join_next() => {
                    match done {
                        Ok(Ok(After::HandedOver)) => {
                            // The others have their answers yet.
                            commands.detach_all();
                            self.is_handed_over = true;
                            return;
                        }
                        Ok(Ok(After::Next)) => {}
                        Ok(Err(error)) => tracing::warn!(%error, "a command was not answered"),
                        Err(error) => tracing::error!(%error, "a command ended before its answer"),
                    }
                    continue;
                }
                accepted = self.listener.accept(), if commands.len() < COMMANDS => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (served, keys) = (served.clone(), Arc::clone(&keys));
                    commands.spawn(async move { answer(stream, patience, &served, &keys).await });
                }
                Err(error) => {
                    tracing::warn!(%error, "the control socket cannot accept");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if self.is_handed_over {
            return;
        }
        let removed = match identity(&self.path) {
            Ok(file) if file != self.file => return,
            Ok(_own) => remove_file(&self.path),
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            tracing::debug!(%error, "the control socket cannot be removed");
        }
    }
}

/// Tells one file from another that has its name.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let about = path.symlink_metadata()?;
    Ok((about.dev(), about.ino()))
}

/// What comes after a command.
enum After {
    Next,
    HandedOver,
}

async fn answer(
    mut stream: UnixStream,
    patience: Duration,
    served: &Served,
    keys: &Mutex<KeySource>,
) -> io::Result<After> {
    let own = rustix::process::geteuid().as_raw();
    if !may_command(stream.peer_cred()?.uid(), own) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let line = timeout(patience, line(&mut stream)).await??;
    let hello = line.trim_end().strip_prefix(TAKE_OVER);
    if let (Some(hello), Some(handover)) = (hello, &served.handover) {
        if let Err(error) = handover.offer(hello, stream).await {
            tracing::error!(
                error = chain(&error),
                "not handed over: this server goes on"
            );
            return Ok(After::Next);
        }
        return Ok(After::HandedOver);
    }
    let answer = match line.trim_end() {
        ROTATE => rotate(&served.sessions, &*keys.lock().await).await,
        line => match (line.strip_prefix(KEYS), line.strip_prefix(ACCOUNTS)) {
            (Some(line), _) => super::keys::answer(served.sessions.tenants(), line).await,
            (None, Some(line)) => super::accounts::answer(served.paying.as_ref(), line).await,
            (None, None) => Err("the server does not know this command".to_owned()),
        },
    };
    let answer = answer.unwrap_or_else(|error| json!({ "error": error }));
    let answer = format!("{answer}\n");
    timeout(patience, stream.write_all(answer.as_bytes())).await??;
    Ok(After::Next)
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
        "changed": done.changed,
    })
}

/// Asks the server that has a store open to rotate; its answer.
pub(super) async fn ask_to_rotate(store: &Path) -> Result<Value, Error> {
    ask(store, ROTATE).await
}

/// Asks the server that has a store open for something; its answer.
pub(super) async fn ask(store: &Path, what: &str) -> Result<Value, Error> {
    let path = socket(store);
    let Ok(mut stream) = UnixStream::connect(&path).await else {
        return Err(Error::Nobody(path));
    };
    let asked = timeout(ANSWER_TIMEOUT, async {
        stream.write_all(format!("{what}\n").as_bytes()).await?;
        line(&mut stream).await
    });
    let asked = asked.await.map_err(|late| Error::Silent(late.into()))?;
    let line = asked.map_err(Error::Silent)?;
    let answer: Value = serde_json::from_str(&line).map_err(|error| Error::Silent(error.into()))?;
    match answer.get("error").and_then(Value::as_str) {
        Some(error) => Err(Error::Refused(error.to_owned())),
        None => Ok(answer),
    }
}

/// Connects to the server that has a store open; nothing where there is none.
///
/// # Errors
/// [`Error::Foreign`] where somebody else listens there, before anything is said.
pub(super) async fn find(store: &Path) -> Result<Option<UnixStream>, Error> {
    let path = socket(store);
    let Ok(stream) = UnixStream::connect(&path).await else {
        return Ok(None);
    };
    let own = rustix::process::geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if is_own(peer.uid(), own) => Ok(Some(stream)),
        Ok(_) | Err(_) => Err(Error::Foreign(path)),
    }
}

/// Tells whether the process that listens is of this user: nobody else hands over to it, root
/// neither, whose files it could not have.
fn is_own(peer: u32, own: u32) -> bool {
    peer == own
}

/// Tells whether a process may give commands: one of this user's, or root's.
fn may_command(peer: u32, own: u32) -> bool {
    peer == own || peer == 0
}

/// Asks a server to hand over to this process.
pub(super) async fn ask_to_hand_over(
    stream: UnixStream,
    hello: &Hello,
) -> Result<(Predecessor, Sockets), Error> {
    let asked = Predecessor::ask(stream, TAKE_OVER, hello).await;
    asked.map_err(Error::NotHandedOver)
}

async fn line(stream: &mut UnixStream) -> io::Result<String> {
    let mut line = String::new();
    let mut reader = BufReader::new(stream.take(LINE_LIMIT_BYTES));
    let length = reader.read_line(&mut line).await?;
    if length == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if reader.get_ref().limit() == 0 && !line.ends_with('\n') {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the line is too long",
        ));
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::sessions;
    use crate::seal::Keyring;
    use crate::secret::Secret;

    #[tokio::test]
    async fn whoever_says_nothing_keeps_nobody_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("sessions.redb");
        let control = Control::open(&store).unwrap();
        let key = Secret::new(Keyring::fresh_key().as_bytes().to_vec());
        let sessions = sessions(Keyring::parse(key.expose()).unwrap());
        let hour = Duration::from_hours(1);
        let serving =
            tokio::spawn(control.serve_with(hour, Served::only(&sessions), KeySource::Given(key)));
        let mut silent = Vec::new();
        for _ in 1..COMMANDS {
            silent.push(UnixStream::connect(socket(&store)).await.unwrap());
        }
        let asked = timeout(Duration::from_mins(2), ask_to_rotate(&store)).await;
        let answer = asked.expect("an answer at once").unwrap();
        assert_eq!(answer["sealed"], 0, "{answer}");
        for stream in &mut silent {
            stream.write_all(b"make tea\n").await.unwrap();
            let answer = line(stream).await.unwrap();
            assert!(answer.contains("does not know"), "{answer}");
        }
        serving.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_never_answers_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("sessions.redb");
        let _control = Control::open(&store).unwrap();
        let error = ask_to_rotate(&store).await.unwrap_err();
        let Error::Silent(cause) = &error else {
            panic!("{error:?}")
        };
        assert_eq!(cause.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_socket_takes_the_place_of_another_and_goes_without_touching_its_successor() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("sessions.redb");
        let names = || {
            let entries = std::fs::read_dir(folder.path()).unwrap();
            entries
                .map(|entry| entry.unwrap().file_name())
                .collect::<Vec<_>>()
        };
        let before = Control::open(&store).unwrap();
        let mode = socket(&store).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let after = Control::open(&store).unwrap();
        drop(before);
        assert_eq!(names(), ["sessions.redb.sock"]);
        assert!(find(&store).await.unwrap().is_some());
        drop(after);
        assert!(names().is_empty());
        assert!(find(&store).await.unwrap().is_none());
    }

    #[test]
    fn who_may_command_and_who_may_hand_over() {
        for (peer, own, commands, hands_over) in [
            (1000, 1000, true, true),
            (0, 0, true, true),
            (0, 1000, true, false),
            (1000, 0, false, false),
            (1001, 1000, false, false),
        ] {
            assert_eq!(may_command(peer, own), commands, "{peer} {own}");
            assert_eq!(is_own(peer, own), hands_over, "{peer} {own}");
        }
    }

    #[tokio::test]
    async fn who_has_handed_over_leaves_the_name_to_its_successor() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("sessions.redb");
        let mut control = Control::open(&store).unwrap();
        control.is_handed_over = true;
        drop(control);
        assert!(socket(&store).exists(), "it may be the successor's by now");
    }
}
