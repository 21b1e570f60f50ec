//! The store: rows of sealed bytes that outlive the process, one a session.
//!
//! A row is opaque here: what it holds was sealed by `seal`, and a store must never see, make or
//! need a key. A store that fails says so; no caller may take a failure for an absent row. Called
//! by `session`, which keeps the live table; every form of store implements [`Store`].

mod memory;

use std::error::Error as StdError;
use std::fmt::Debug;
use std::pin::Pin;

use crate::id::{SessionId, TenantId};

pub use memory::Memory;

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
    #[error("store holds something that is not a row")]
    Corrupt,
}

/// Names a row: a session of a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowKey {
    /// The tenant that owns the session.
    pub tenant: TenantId,
    /// The session.
    pub session: SessionId,
}

/// A row with its key.
pub type Row = (RowKey, Vec<u8>);

/// Keeps rows. A change is durable, as far as the store can make it so, when its future is done.
///
/// Nothing happens before a future is polled; one that is dropped midway may or may not have
/// changed the row.
pub trait Store: Send + Sync + Debug {
    /// Writes a row, in place of an earlier one of that key.
    fn put(&self, key: &RowKey, row: Vec<u8>) -> BoxFuture<'_, Result<(), Error>>;

    /// Reads a row.
    fn get(&self, key: &RowKey) -> BoxFuture<'_, Result<Option<Vec<u8>>, Error>>;

    /// Deletes a row, and tells whether there was one.
    fn delete(&self, key: &RowKey) -> BoxFuture<'_, Result<bool, Error>>;

    /// Reads every row, in the order of the keys: what a process does once when it starts.
    fn load(&self) -> BoxFuture<'_, Result<Vec<Row>, Error>>;
}
