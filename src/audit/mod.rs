//! Audit: exactly one record per exchange, tunnel and change of a session, emitted when dropped.
//!
//! A [`Record`] begun is a record written, whatever happens to its task: an early return, a panic, a
//! dropped future. It must never hold a secret, a sealed token, a header value, a query string or a
//! body: only names, ids, hosts, sizes and reasons. Nobody waits for the [`Sink`]: what does not fit
//! is lost, counted and told by a gap line, or refused before it begins. A file is chained, so that
//! [`verify`] finds what was done to it. Called by the engines, `session` and the API.

mod away;
mod chain;
mod file;
mod head;
mod line;
mod live;
mod place;
mod queue;
mod sink;
mod tally;
mod verify;
mod writer;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::host::HostPort;
use crate::id::{AccountId, SandboxName, SessionId, TenantId};

pub use away::{Parcel, Parcels, Released};
pub use file::FileOptions;
pub use live::{
    READERS, READERS_PER_SESSION, READERS_PER_TENANT, Subscription, Told, TooManyReaders,
    WAITING_BYTES, WAITING_RECORDS,
};
pub use sink::{Sink, Stats};
pub use tally::{OTHER_NAMES, SECRET_NAMES, Swaps as SwapTally, Tally};
pub use verify::{Fault, Report, Wrong, verify, verify_files};

/// Says why a file cannot be written to as a chain; each names it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refuses something; the operator's or the machine's fault.
    #[error("{path} cannot be used", path = path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its last line is none of ours: another file, or one that was changed.
    #[error("{path} does not end in a line of an audit file: put it aside", path = .0.display())]
    Foreign(PathBuf),
    /// Its head was changed, or the key that it was made under is gone.
    #[error(
        "{path} was changed, or made under a key that is not in the keyring: put that key back, or \
         put all of these audit files aside and keep them",
        path = .0.display()
    )]
    Head(PathBuf),
    /// Another process writes to it.
    #[error("{path} is locked: another process writes this audit file", path = .0.display())]
    InUse(PathBuf),
    /// The keyring has no key to derive from; no keyring is like this.
    #[error("there is no key to chain audit lines under")]
    Keys,
}

impl Error {
    fn file(path: &Path, source: std::io::Error) -> Self {
        Self::File {
            path: path.to_owned(),
            source,
        }
    }

    fn locking(path: &Path, source: std::io::Error) -> Self {
        match source.kind() {
            std::io::ErrorKind::WouldBlock => Self::InUse(path.to_owned()),
            _ => Self::file(path, source),
        }
    }
}

/// Says that records are waiting for the writer as many as may, so that nothing new is begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the audit queue is full")]
pub struct Full;

/// The longest path that a record keeps, in bytes; what is longer is cut.
pub const PATH_LIMIT_BYTES: usize = 2048;
/// The longest method that a record keeps, in bytes; what is longer is cut.
pub const METHOD_LIMIT_BYTES: usize = 64;
/// The reason of a record that nobody decided on: its task ended on the way.
pub const INCOMPLETE: &str = "incomplete";

/// Says what a record is about; it is the line's `event`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One request with its answer.
    Exchange,
    /// A change of a session: created, patched, deleted, ended, expired.
    Session,
    /// One CONNECT, from its answer to the end of its bytes.
    Tunnel,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Exchange => "exchange",
            Self::Session => "session",
            Self::Tunnel => "tunnel",
        }
    }
}

/// Says how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Cut off before its end: by a side that went away, a deadline, a shutdown.
    Aborted,
    /// Policy said yes, and it went its way.
    Allowed,
    /// We refused it.
    Denied,
    /// Policy said yes, but it failed: the upstream or we ourselves.
    Failed,
}

impl Decision {
    fn as_str(self) -> &'static str {
        match self {
            Self::Aborted => "aborted",
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Failed => "failed",
        }
    }
}

/// One audit record in the making. Dropping it hands it to the sink: once, and always.
///
/// What is never set is absent from the line. A setter called twice keeps the last value, but for
/// [`Record::swapped`], which adds up.
#[derive(Debug)]
#[must_use = "a record that is dropped at once says that nothing was decided"]
pub struct Record {
    sink: Sink,
    /// Nothing where the sink discards all it gets, and after the record was handed over.
    data: Option<Box<Data>>,
}

impl Record {
    /// Begins a record, and its clock. Until a decision is set it says that the thing was aborted.
    pub fn begin(sink: &Sink, kind: Kind) -> Self {
        let mut record = Self {
            sink: sink.clone(),
            data: (!sink.is_discarding()).then(|| Box::new(Data::new(kind))),
        };
        // A change of a session was asked whether there is room before it came here.
        let is_admitted = kind == Kind::Session && !sink.is_full();
        record.set(|data| data.is_admitted = is_admitted);
        record
    }

    /// Makes sure of a place for the record, before anything is done that it has to tell of.
    ///
    /// # Errors
    /// [`Full`], where the operator wants a refusal in place of a gap.
    pub fn admit(&mut self) -> Result<(), Full> {
        if self.sink.is_full() {
            return Err(Full);
        }
        self.set(|data| data.is_admitted = true);
        Ok(())
    }

    /// Sets the tenant.
    pub fn tenant(&mut self, tenant: &TenantId) {
        self.set(|data| data.tenant = Some(tenant.clone()));
    }

    /// Sets the session.
    pub fn session(&mut self, session: &SessionId) {
        self.set(|data| data.session = Some(session.clone()));
    }

    /// Sets the account that a model call is paid by, and its sandbox.
    pub fn account(&mut self, account: &AccountId, sandbox: &SandboxName) {
        self.set(|data| data.account = Some((account.clone(), sandbox.clone())));
    }

    /// Sets the host and port asked for.
    pub fn target(&mut self, target: &HostPort) {
        self.set(|data| data.target = Some(target.clone()));
    }

    /// Sets method and path as the workload sent them, both cut at a limit.
    ///
    /// A query is not kept even where the caller left one on: it may hold a secret of the
    /// workload's own.
    pub fn request(&mut self, method: &str, path_without_query: &str) {
        self.set(|data| {
            let path = path_without_query.split(['?', '#']).next();
            data.method = Some(cut(method, METHOD_LIMIT_BYTES));
            data.path = path.map(|path| cut(path, PATH_LIMIT_BYTES));
        });
    }

    /// Sets how it ended, and why: a stable `snake_case` word.
    pub fn decision(&mut self, decision: Decision, reason: &'static str) {
        self.set(|data| {
            data.decision = decision;
            data.reason = reason;
        });
    }

    /// Sets the status that the workload got.
    pub fn status(&mut self, status: u16) {
        self.set(|data| data.status = Some(status));
    }

    /// Adds the names of secrets that were put in, and the number of tokens left as they were: names
    /// are kept once each, numbers add up.
    pub fn swapped(&mut self, names: &[Arc<str>], left: u32) {
        self.set(|data| {
            data.swaps.get_or_insert_default().add(names, left);
        });
    }

    /// Reads what was swapped in the body of the request when the record is handed over; it is known
    /// when all of it went up.
    pub fn body(&mut self, swaps: &Arc<BodySwaps>) {
        self.set(|data| data.body = Some(Arc::clone(swaps)));
    }

    /// Reads the names of scrubbed secrets when the record is handed over; they are found while the
    /// answer streams.
    pub fn scrubbed(&mut self, found: &Arc<Found>) {
        self.set(|data| data.found = Some(Arc::clone(found)));
    }

    /// Sets the names of the tokens that were captured from the answer, as it calls them.
    pub fn captured(&mut self, names: &[Arc<str>]) {
        self.set(|data| data.captured = names.into());
    }

    /// Reads the numbers of bytes from a meter when the record is handed over, so that they are
    /// there however the thing ended.
    pub fn meter(&mut self, traffic: &Arc<Traffic>) {
        self.set(|data| data.traffic = Some(Arc::clone(traffic)));
    }

    /// Sets the number of body or tunnel bytes that went to the upstream.
    pub fn bytes_up(&mut self, bytes: u64) {
        self.set(|data| data.bytes_up = Some(bytes));
    }

    /// Sets the number of body or tunnel bytes that went to the workload.
    pub fn bytes_down(&mut self, bytes: u64) {
        self.set(|data| data.bytes_down = Some(bytes));
    }

    /// Sets what was done to a session: `created`, `patched`, `deleted`, `expired`, or `ended` with
    /// its tenant.
    pub fn action(&mut self, action: &'static str) {
        self.set(|data| data.action = Some(action));
    }

    /// Sets the address of the workload.
    pub fn peer(&mut self, peer: SocketAddr) {
        self.set(|data| data.peer = Some(peer));
    }

    /// Sets the address of the upstream that was dialled.
    pub fn address(&mut self, address: SocketAddr) {
        self.set(|data| data.address = Some(address));
    }

    /// Takes the record back: what it was begun for is recorded elsewhere.
    pub fn discard(mut self) {
        self.data = None;
    }

    fn set(&mut self, change: impl FnOnce(&mut Data)) {
        if let Some(data) = &mut self.data {
            change(data);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some(mut data) = self.data.take() {
            data.took = data.began.elapsed();
            if let Some(traffic) = data.traffic.take() {
                data.bytes_up = Some(traffic.up.load(Ordering::Relaxed));
                data.bytes_down = Some(traffic.down.load(Ordering::Relaxed));
            }
            if let Some(body) = data.body.take() {
                let body = body.0.lock().unwrap_or_else(PoisonError::into_inner);
                if *body != Swaps::default() {
                    let swaps = data.swaps.get_or_insert_default();
                    swaps.add(&body.names, body.left);
                    swaps.in_body.clone_from(&body.names);
                }
            }
            self.sink.record(data);
        }
    }
}

/// A record that goes on with what it is about, to whoever takes it over. Whoever handed it on may
/// take it back, if nobody did, and is told when the request is accepted; left alone, it is written
/// like any other.
#[derive(Clone)]
pub struct Handed(Arc<Mutex<Given>>);

struct Given {
    record: Option<Record>,
    accepted: Option<Box<dyn FnOnce() + Send>>,
}

impl fmt::Debug for Handed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handed").finish_non_exhaustive()
    }
}

impl Handed {
    /// Hands a record on, with what is to be done once the request is accepted.
    pub fn new(record: Record, accepted: impl FnOnce() + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Given {
            record: Some(record),
            accepted: Some(Box::new(accepted)),
        })))
    }

    /// Takes the record over; nothing where another did.
    pub fn take(&self) -> Option<Record> {
        self.lock().record.take()
    }

    /// Says that the request is accepted: it goes on to where it wants.
    pub fn accept(&self) {
        let accepted = self.lock().accepted.take();
        if let Some(accepted) = accepted {
            accepted();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Given> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts the bytes of an exchange or a tunnel while it runs.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Bytes of bodies that went to the upstream.
    pub up: AtomicU64,
    /// Bytes of bodies that went to the workload.
    pub down: AtomicU64,
}

/// Collects the names of secrets whose values were found in an answer.
#[derive(Debug, Default)]
pub struct Found(Mutex<Vec<(Arc<str>, u64)>>);

impl Found {
    /// Adds names, with how often their values were found.
    pub fn add<'a>(&self, more: impl Iterator<Item = (&'a Arc<str>, u64)>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, count) in more {
            match all.iter_mut().find(|(known, _)| known == name) {
                Some((_, sum)) => *sum = sum.saturating_add(count),
                None => all.push((Arc::clone(name), count)),
            }
        }
    }

    /// Returns the names so far, each once.
    pub fn names(&self) -> Vec<Arc<str>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(name, _)| Arc::clone(name)).collect()
    }
}

/// Collects what is swapped in the body of a request while it goes up.
#[derive(Debug, Default)]
pub struct BodySwaps(Mutex<Swaps>);

impl BodySwaps {
    /// Adds the names of secrets that were put in, and the number of tokens left as they were.
    pub fn add(&self, names: &[Arc<str>], left: u32) {
        let mut swaps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        swaps.add(names, left);
    }
}

/// What a record holds. It is made into text on the sink's thread, not on the caller's.
#[derive(Debug)]
struct Data {
    kind: Kind,
    /// It was let in while there was room: it is kept even if there is none by now.
    is_admitted: bool,
    time: SystemTime,
    began: Instant,
    took: Duration,
    tenant: Option<TenantId>,
    session: Option<SessionId>,
    account: Option<(AccountId, SandboxName)>,
    target: Option<HostPort>,
    action: Option<&'static str>,
    method: Option<String>,
    path: Option<String>,
    decision: Decision,
    reason: &'static str,
    status: Option<u16>,
    swaps: Option<Swaps>,
    body: Option<Arc<BodySwaps>>,
    found: Option<Arc<Found>>,
    captured: Box<[Arc<str>]>,
    bytes_up: Option<u64>,
    bytes_down: Option<u64>,
    traffic: Option<Arc<Traffic>>,
    peer: Option<SocketAddr>,
    address: Option<SocketAddr>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Swaps {
    names: Vec<Arc<str>>,
    /// Those among them that were put into the body.
    in_body: Vec<Arc<str>>,
    left: u32,
}

impl Swaps {
    fn add(&mut self, names: &[Arc<str>], left: u32) {
        for name in names {
            if !self.names.contains(name) {
                self.names.push(Arc::clone(name));
            }
        }
        self.left = self.left.saturating_add(left);
    }
}

impl Data {
    /// Tells whether it is about a session that is not any more what it was.
    fn is_change(&self) -> bool {
        self.kind == Kind::Session && self.decision == Decision::Allowed
    }

    /// Tells whether it says how its session ended.
    fn is_last(&self) -> bool {
        let ends = ["deleted", "ended", "ended_elsewhere", "expired"];
        let ended = self.action.is_some_and(|action| ends.contains(&action));
        ended && self.decision == Decision::Allowed
    }

    fn new(kind: Kind) -> Self {
        Self {
            kind,
            is_admitted: false,
            time: SystemTime::now(),
            began: Instant::now(),
            took: Duration::ZERO,
            tenant: None,
            session: None,
            account: None,
            target: None,
            action: None,
            method: None,
            path: None,
            decision: Decision::Aborted,
            reason: INCOMPLETE,
            status: None,
            swaps: None,
            body: None,
            found: None,
            captured: Box::default(),
            bytes_up: None,
            bytes_down: None,
            traffic: None,
            peer: None,
            address: None,
        }
    }
}

/// Copies a text up to a number of bytes, or less where a character would be cut in two.
fn cut(text: &str, limit_bytes: usize) -> String {
    let end = text.floor_char_boundary(limit_bytes);
    text.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
pub(crate) use sink::capture;

#[cfg(test)]
mod tests;
