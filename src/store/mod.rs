//! The store: rows of sealed bytes that outlive the process, one a session, and records beside them.
//!
//! A row is opaque here: what it holds was sealed by `seal`, and a store must never see, make or
//! need a key. A store that fails says so; no caller may take a failure for an absent row. Called
//! by `session`, which keeps the live table, and by `records`; every form of store implements
//! [`Store`].

mod disk;
mod gate;
mod memory;
mod shared;

use std::error::Error as StdError;
use std::fmt;
use std::fmt::Debug;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use crate::id::{SessionId, TenantId};

pub use disk::Disk;
pub use gate::{Gate, Handing};
pub use memory::Memory;
pub use shared::{Address, Shared, SharedConfig};

/// A boxed future that borrows for `'a`: what lets [`Store`] be used behind a pointer.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Says why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store cannot be reached, or could not make the change durable. Nobody knows then
    /// whether a change took place.
    #[error("store is unavailable")]
    Unavailable(#[source] Box<dyn StdError + Send + Sync>),
    /// What the store holds cannot be read as rows: another program or a broken disk wrote it.
    #[error("{path} is damaged, or no store of sessions")]
    Corrupt {
        /// The store's file.
        path: PathBuf,
        /// What was found.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// Another process has the store open.
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    /// The file or its folder cannot be opened, made or trusted.
    #[error("{path} cannot be used")]
    File {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn unavailable(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Unavailable(cause.into())
    }
}

/// Names a row: a session of a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowKey {
    /// The tenant that owns the session.
    pub tenant: TenantId,
    /// The session.
    pub session: SessionId,
}

/// What stands in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The sealed record.
    pub sealed: Vec<u8>,
    /// When the session was last used, in milliseconds since 1970. It stands in clear and may be
    /// forged by whoever writes to the store: what it can reach is bounded under the seal.
    pub last_used: u64,
}

/// Everything that a store holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// The rows, in the order of their keys.
    pub rows: Vec<(RowKey, Row)>,
    /// The keys, in a form for people, under which no row of ours can stand.
    pub strange: Vec<String>,
}

/// What a record that is no session tells of. A new kind needs a name here and nothing else: a
/// store, and whatever seals or rotates, knows kinds by their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RecordKind {
    /// An account: whether it is paid, and what says so.
    Account,
    /// A tenant: its state, limits and API keys.
    Tenant,
    /// What one account used of the model provider in one month.
    Usage,
}

impl RecordKind {
    /// Every kind there is.
    pub const ALL: &[Self] = &[Self::Account, Self::Tenant, Self::Usage];

    /// Returns the name that stands in keys and under the seal; it never changes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::Tenant => "tenant",
            Self::Usage => "usage",
        }
    }

    /// Parses a kind's name.
    pub fn parse(text: &str) -> Option<Self> {
        let kind = Self::ALL.iter().find(|kind| kind.as_str() == text);
        kind.copied()
    }
}

/// Names a record that is no session.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordKey {
    /// What it tells of.
    pub kind: RecordKind,
    /// Of which one: any text.
    pub name: Arc<str>,
}

impl RecordKey {
    /// Names a record.
    pub fn new(kind: RecordKind, name: &str) -> Self {
        Self {
            kind,
            name: name.into(),
        }
    }

    /// Parses what `Display` wrote: `kind/name`.
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, name) = text.split_once('/')?;
        Some(Self::new(RecordKind::parse(kind)?, name))
    }
}

/// Writes `kind/name`: in stores, in logs, and in messages between nodes.
impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.as_str(), self.name)
    }
}

/// The records of one kind.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RecordRows {
    /// The sealed records, in the order of their keys.
    pub records: Vec<(RecordKey, Vec<u8>)>,
    /// The keys, in a form for people, under which no record of any kind can stand.
    pub strange: Vec<String>,
}

/// What has to stand in the place of a row for it to be written. Versions only rise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Over {
    /// Anything, or nothing. What stands there keeps its version.
    Any,
    /// This very row, as it was read. Without a version of its own it keeps that one's.
    Exactly(Row),
    /// No row.
    Nothing,
    /// A row of an earlier version.
    Older,
}

/// Where a node stands in the list of changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The run of the server that was asked.
    run: String,
    /// The number of the last change.
    epoch: u64,
    /// The random text that the last change was given, so that another history is noticed.
    nonce: String,
}

#[cfg(test)]
impl Mark {
    /// Makes a mark, for a store of a test's own.
    pub(crate) fn new(run: &str, epoch: u64, nonce: &str) -> Self {
        Self {
            run: run.to_owned(),
            epoch,
            nonce: nonce.to_owned(),
        }
    }

    /// Returns the number of the last change.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }
}

/// What another process may have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Anything: what happened since is not known any more.
    Everything,
    /// A session that was deleted, whatever is found in its place.
    Gone(SessionId),
    /// A record that is no session.
    Record(RecordKey),
    /// A session that was written.
    Session(SessionId),
}

/// What changed since a mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// What changed, the oldest first.
    pub changes: Vec<Change>,
    /// Where to go on.
    pub mark: Mark,
    /// Whether there is more already.
    pub is_partial: bool,
}

/// What a store has besides where several processes use it.
pub trait Fleet: Send + Sync {
    /// Tells what changed since a mark; without one, everything.
    fn changes(&self, since: Option<Mark>) -> BoxFuture<'_, Result<News, Error>>;

    /// Waits until something was announced. Announcements get lost: ask without them, too.
    fn announced(&self) -> BoxFuture<'_, ()>;

    /// Finds the row of a session whose tenant is not known.
    fn find(&self, session: &SessionId) -> BoxFuture<'_, Result<Option<(RowKey, Row)>, Error>>;

    /// Reads when sessions were last used, in their order; nothing for those that are gone.
    fn last_used(&self, keys: Vec<RowKey>) -> BoxFuture<'_, Result<Vec<Option<u64>>, Error>>;
}

/// Keeps rows. A change is durable, as far as the store can make it so, when its future is done.
///
/// Nothing happens before a future is polled; one that is dropped midway may or may not have
/// changed the row.
pub trait Store: Send + Sync + Debug {
    /// Writes a row, in place of an earlier one of that key.
    fn put(&self, key: &RowKey, row: Row) -> BoxFuture<'_, Result<(), Error>>;

    /// Writes a row where nobody else was faster, and tells whether it was written; version 0 is
    /// none. A store that one process alone uses writes it in any case: its callers keep their order
    /// by themselves.
    fn write(
        &self,
        key: &RowKey,
        row: Row,
        version: u64,
        over: Over,
    ) -> BoxFuture<'_, Result<bool, Error>> {
        let _ = (version, over);
        let put = self.put(key, row);
        Box::pin(async move { put.await.map(|()| true) })
    }

    /// Reads a row.
    fn get(&self, key: &RowKey) -> BoxFuture<'_, Result<Option<Row>, Error>>;

    /// Deletes a row, and tells whether there was one.
    fn delete(&self, key: &RowKey) -> BoxFuture<'_, Result<bool, Error>>;

    /// Notes when sessions were last used; those whose row is gone are passed over.
    fn touch(&self, used: Vec<(RowKey, u64)>) -> BoxFuture<'_, Result<(), Error>>;

    /// Reads every row: what a process does once when it starts, and when keys are rotated.
    fn load(&self) -> BoxFuture<'_, Result<Rows, Error>>;

    /// Writes a record, in place of an earlier one of that key.
    fn put_record(&self, key: &RecordKey, sealed: Vec<u8>) -> BoxFuture<'_, Result<(), Error>>;

    /// Writes a record where what stands in its place is what was read before, and tells whether it was
    /// written; `before` is nothing where there was none. A store that one process alone uses writes
    /// it in any case: its callers keep their order by themselves.
    fn replace_record(
        &self,
        key: &RecordKey,
        sealed: Vec<u8>,
        before: Option<Vec<u8>>,
    ) -> BoxFuture<'_, Result<bool, Error>> {
        drop(before);
        let put = self.put_record(key, sealed);
        Box::pin(async move { put.await.map(|()| true) })
    }

    /// Reads a record.
    fn record(&self, key: &RecordKey) -> BoxFuture<'_, Result<Option<Vec<u8>>, Error>>;

    /// Deletes a record, and tells whether there was one.
    fn delete_record(&self, key: &RecordKey) -> BoxFuture<'_, Result<bool, Error>>;

    /// Reads every record of a kind, and the strange keys among all records.
    fn load_records(&self, kind: RecordKind) -> BoxFuture<'_, Result<RecordRows, Error>>;

    /// Tells whether the store took the last change that it was asked for.
    ///
    /// # Errors
    /// Why it takes none, as far as is known at this moment. Nothing is tried here.
    fn health(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Lets go of what one process alone may have open, so that another can take it; changes that
    /// were asked for before are done first. Tells whether there was such a thing: a store that
    /// several processes use at once has none, and goes on.
    fn release(&self) -> BoxFuture<'_, Result<bool, Error>> {
        Box::pin(async { Ok(false) })
    }

    /// Takes back what was let go of. Where that fails it is tried again, as after any failure.
    fn reclaim(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }

    /// Tells the time by which rows are dated: that of the machine, or, for a store that several
    /// use, one on which they agree.
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    /// Returns what the store has besides where several processes use it; nothing where one does.
    fn fleet(&self) -> Option<&dyn Fleet> {
        None
    }
}
