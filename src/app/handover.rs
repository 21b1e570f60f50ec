//! A running service passes to a successor: sockets, store and sessions, without a gap.
//!
//! The one that runs stops to accept, closes the store and its audit file, sends its sockets and
//! waits for the other to have everything open; only then is it the other's. Until then it can take everything back,
//! and does, whatever goes wrong. No key and no secret is sent. Called by the command line, over a
//! connection whose other end it has shown to be of the same user.

use std::io;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::gateway::Paying;
use crate::audit::Released;
use crate::authority::CertificateAuthority;
use crate::payment::Ledger;
use crate::seal::KeyId;
use crate::serve::{self, Sockets};
use crate::session::{Following, Link, Sessions};
use crate::shutdown::Drain;
use crate::store;

/// The version of what two processes say to each other. It is raised with every change: a service
/// is handed over to its own kind only.
const PROTOCOL: u32 = 2;
/// How long the successor has to open everything, and to be told that it is its own.
const ACKNOWLEDGE: Duration = Duration::from_secs(10);
/// How long changes in flight have to end before the store is closed.
const SETTLE: Duration = Duration::from_secs(5);
/// How long a successor waits for what it asked for: each step before that has its own limit.
const BEFORE: Duration = Duration::from_secs(40);
/// What the successor says when it has everything open.
const READY: &str = "ready";
/// What it is told then: from here on it is the one that serves.
const YOURS: &str = "yours";

/// Says why a service was not handed over, or not taken over.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection to the other process broke, or something else was said than was due.
    #[error("the other process went away, or did not say what was due")]
    Broken(#[source] io::Error),
    /// The other process took too long.
    #[error("the other process did not answer in time")]
    Late,
    /// The two do not belong together, or it is not the time.
    #[error("{0}")]
    Refused(String),
    /// The store cannot be let go of.
    #[error("the store cannot be handed over")]
    Store(#[source] store::Error),
}

/// What two processes have to agree on before one hands over to the other.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    version: u32,
    ca: String,
    keys: Vec<String>,
}

impl Hello {
    /// Says what this process has: its certificate authority, and its sealing keys in their order.
    pub fn new(authority: &CertificateAuthority, keys: impl IntoIterator<Item = KeyId>) -> Self {
        let ca = digest(&SHA256, authority.signing_root().cert_der());
        Self {
            version: PROTOCOL,
            ca: HEXLOWER.encode(ca.as_ref()),
            keys: keys.into_iter().map(|id| id.to_string()).collect(),
        }
    }

    /// Tells what is different.
    fn differs(&self, other: &Self) -> Option<&'static str> {
        if self.version != other.version {
            Some("it hands over in another way: stop it, then start this one")
        } else if self.ca != other.ca {
            Some("it has another certificate authority")
        } else if self.keys != other.keys {
            Some("it has other sealing keys, or in another order")
        } else {
            None
        }
    }
}

/// What a running service needs to hand itself over.
#[derive(Debug)]
pub struct Handover {
    gate: serve::Gate,
    store: Arc<store::Gate>,
    sessions: Arc<Sessions>,
    paying: Paying,
    authority: Arc<CertificateAuthority>,
    drain: Drain,
    handed: CancellationToken,
    following: Mutex<Option<Follower>>,
}

/// The tie to the process that took over.
#[derive(Debug)]
pub(super) struct Follower {
    pub(super) link: Following,
    /// The other process alone has the store: without it nothing can be known.
    pub(super) is_bound: bool,
}

impl Handover {
    pub(super) fn new(
        (gate, store): (serve::Gate, Arc<store::Gate>),
        (sessions, paying): (&Arc<Sessions>, &Paying),
        authority: &Arc<CertificateAuthority>,
        drain: &Drain,
    ) -> Self {
        Self {
            gate,
            store,
            sessions: Arc::clone(sessions),
            paying: paying.clone(),
            authority: Arc::clone(authority),
            drain: drain.clone(),
            handed: CancellationToken::new(),
            following: Mutex::default(),
        }
    }

    /// Waits until the service was handed over.
    pub(super) async fn done(&self) {
        self.handed.cancelled().await;
    }

    /// Takes the tie to the process that took over.
    pub(super) fn follower(&self) -> Option<Follower> {
        let mut following = self
            .following
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        following.take()
    }

    /// Hands over to the process at the other end, which has said hello. After an error everything
    /// is as before.
    ///
    /// # Errors
    /// See [`Error`]; where it is known in time, the other process has been told.
    pub async fn offer(&self, hello: &str, mut stream: UnixStream) -> Result<(), Error> {
        let mut refuse = async |why: &str| {
            let line = format!("{}\n", json!({ "error": why }));
            // It learns the same from the end of the connection.
            drop(tokio::io::AsyncWriteExt::write_all(&mut stream, line.as_bytes()).await);
            Err(Error::Refused(why.to_owned()))
        };
        let Ok(hello) = serde_json::from_str::<Hello>(hello) else {
            return refuse("it speaks of something else: stop it, then start this one").await;
        };
        let own = Hello::new(&self.authority, self.sessions.key_ids().await);
        if let Some(why) = own.differs(&hello) {
            return refuse(why).await;
        }
        // Held to the end: no two hand over at once.
        let Some(_no_rotation) = self.sessions.hold_rotations().await else {
            let why = "it is sealing everything anew, or handing over: try again when that is done";
            return refuse(why).await;
        };
        if self.drain.is_leaving() {
            return refuse("it is stopping, or has handed over already").await;
        }
        tracing::info!("handing over");
        self.pass(stream).await
    }

    async fn pass(&self, stream: UnixStream) -> Result<(), Error> {
        let unchanging = timeout(SETTLE, self.sessions.tenants().hold_changes()).await;
        let _unchanging = unchanging.map_err(|_late| Error::Late)?;
        let accounts = timeout(SETTLE, self.paying.accounts.hold_changes()).await;
        let accounts = accounts.map_err(|_late| Error::Late)?;
        // Calls of the gateway wait from here on; what they reserved and used is in the store then.
        let books = self.paying.ledger.leave();
        // What was used is told to the store now: the successor begins with what it reads there.
        drop(timeout(SETTLE, self.sessions.note_all()).await);
        // And what accounts used: the successor's books begin with it. What ends later it is told.
        if !self.paying.flush().await {
            return Err(Error::Late);
        }
        // And what was cut, and could not be deleted when that was asked for.
        drop(timeout(SETTLE, self.sessions.settle()).await);
        let handing = self.store.hand_over(SETTLE).await.map_err(Error::Store)?;
        let asked = async {
            let audit = timeout(SETTLE, self.sessions.audit().release()).await;
            let audit = audit.map_err(|_late| Error::Late)?;
            // Where this fails the file of audit lines comes back with it.
            Ok((self.ask(stream).await?, audit))
        };
        let (link, audit) = match asked.await {
            Ok(asked) => asked,
            Err(error) => {
                self.gate.open();
                handing.take_back().await;
                return Err(error);
            }
        };
        let is_bound = handing.is_exclusive();
        let parcels = audit.map(Released::send_away);
        let (remote, link) = self.sessions.trail(link, is_bound, parcels);
        let tell = link.teller();
        if is_bound {
            handing.replace(remote);
        }
        *self
            .following
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(Follower { link, is_bound });
        self.gate.leave();
        self.drain.leave();
        // Who waited is sent to the successor, by an answer that ends the connection.
        accounts.go();
        books.go(tell);
        self.handed.cancel();
        Ok(())
    }

    /// Sends the sockets and waits until the other process has everything open. The connection is
    /// closed after an error, so that whoever comes too late learns that it has nothing.
    async fn ask(&self, stream: UnixStream) -> Result<Link, Error> {
        let sockets = self.gate.sockets().map_err(Error::Broken)?;
        let line = format!("{}\n", json!({ "sockets": sockets.names() }));
        let asked = async {
            sockets.send(&stream, &line).await?;
            let mut link = Link::new(stream);
            if link.line().await? != READY {
                return Err(io::ErrorKind::InvalidData.into());
            }
            // From here on it is not clear who accepts: what comes waits in the queues.
            self.gate.hold();
            link.say(YOURS).await?;
            Ok(link)
        };
        match timeout(ACKNOWLEDGE, asked).await {
            Ok(asked) => asked.map_err(Error::Broken),
            Err(_late) => Err(Error::Late),
        }
    }
}

/// The process that hands over to this one.
#[derive(Debug)]
pub struct Predecessor(UnixStream);

impl Predecessor {
    /// Asks a process for all that it serves: its store is closed, and its sockets are here, when
    /// this returns. It has them back if the process does not come so far as to serve.
    ///
    /// # Errors
    /// [`Error::Refused`] with the process's own words; [`Error::Broken`], [`Error::Late`].
    pub async fn ask(
        mut stream: UnixStream,
        verb: &str,
        hello: &Hello,
    ) -> Result<(Self, Sockets), Error> {
        let asked = async {
            let hello = serde_json::to_string(hello)?;
            let line = format!("{verb}{hello}\n");
            tokio::io::AsyncWriteExt::write_all(&mut stream, line.as_bytes()).await?;
            Sockets::receive(&stream).await
        };
        let asked = timeout(BEFORE, asked).await;
        let (line, fds) = asked.map_err(|_late| Error::Late)?.map_err(Error::Broken)?;
        let unread = || Error::Broken(io::ErrorKind::InvalidData.into());
        let answer: Value = serde_json::from_str(&line).map_err(|_unread| unread())?;
        if let Some(why) = answer.get("error").and_then(Value::as_str) {
            return Err(Error::Refused(why.to_owned()));
        }
        let names = answer.get("sockets").and_then(Value::as_array);
        let names = names.ok_or_else(unread)?;
        if names.len() != fds.len() {
            return Err(unread());
        }
        let mut sockets = Sockets::default();
        for (name, fd) in names.iter().zip(fds) {
            let name = name.as_str().ok_or_else(unread)?;
            let added = sockets.add(name, TcpListener::from(fd));
            added.map_err(Error::Broken)?;
        }
        Ok((Self(stream), sockets))
    }

    /// Takes the service: says that everything is open, and waits to be told that it is this
    /// process's. From then on the sessions are shared with the process before, until it ends.
    pub(super) async fn lead(
        self,
        sessions: &Arc<Sessions>,
        ledger: &Arc<Ledger>,
        drain: &Drain,
    ) -> Result<(), Error> {
        let link = self.confirm().await?;
        let own = drain.clone();
        let ledger = Arc::clone(ledger);
        let noted = move |note: String| {
            let ledger = Arc::clone(&ledger);
            tokio::spawn(async move { ledger.settle_for(&note).await });
        };
        // It is told of all that changes from this call on.
        let leading = Arc::clone(sessions).lead(link, noted);
        drain.spawn(async move {
            tokio::select! {
                () = own.cut() => {}
                () = leading => {}
            }
        });
        Ok(())
    }

    async fn confirm(self) -> Result<Link, Error> {
        let mut link = Link::new(self.0);
        let confirmed = async {
            link.say(READY).await?;
            if link.line().await? == YOURS {
                Ok(())
            } else {
                Err(io::ErrorKind::InvalidData.into())
            }
        };
        let confirmed = timeout(ACKNOWLEDGE, confirmed).await;
        confirmed
            .map_err(|_late| Error::Late)?
            .map_err(Error::Broken)?;
        Ok(link)
    }
}

/// What a service begins with that others had before it.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Listening sockets that the system handed in. Each has to be one of the configuration's.
    pub given: Sockets,
    /// The process that hands over, and the sockets that came from it.
    pub predecessor: Option<(Predecessor, Sockets)>,
}

impl Inherited {
    /// Returns all sockets, those of the system first, and how many are the system's.
    pub(super) fn split(self) -> (Sockets, Option<Predecessor>) {
        let Self {
            mut given,
            predecessor,
        } = self;
        let predecessor = predecessor.map(|(predecessor, sockets)| {
            given.append(sockets);
            predecessor
        });
        (given, predecessor)
    }
}
