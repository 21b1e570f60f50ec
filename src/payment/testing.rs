//! What the tests of this module share: a store in memory that can fail, be held, and be counted.
//!
//! Records in it are sealed with a key of the test's own, as in every other store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::{RwLock, Semaphore};

use crate::records::Records;
use crate::seal::Keyring;
use crate::store::{
    BoxFuture, Error, Memory, RecordKey, RecordKind, RecordRows, Row, RowKey, Rows, Store,
};

/// The store.
#[derive(Debug)]
pub(super) struct TestStore {
    memory: Memory,
    fails: AtomicBool,
    /// A permit for each record that may be put.
    gate: Semaphore,
    puts: AtomicUsize,
}

/// Makes records in a store of their own.
pub(super) fn records() -> (Records, Arc<TestStore>) {
    let store = Arc::new(TestStore {
        memory: Memory::new(),
        fails: AtomicBool::new(false),
        gate: Semaphore::new(Semaphore::MAX_PERMITS),
        puts: AtomicUsize::new(0),
    });
    let keyring = Arc::new(RwLock::new(Keyring::generate()));
    (Records::new(Arc::clone(&store) as _, keyring), store)
}

impl TestStore {
    /// Lets every change fail, or none.
    pub(super) fn fail(&self, fails: bool) {
        self.fails.store(fails, Ordering::SeqCst);
    }

    /// Lets no record be put until [`Self::open`].
    pub(super) fn hold(&self) {
        self.gate.forget_permits(Semaphore::MAX_PERMITS);
    }

    /// Lets records be put.
    pub(super) fn open(&self) {
        self.gate.add_permits(1_000_000);
    }

    /// Returns how many records were put.
    pub(super) fn puts(&self) -> usize {
        self.puts.load(Ordering::SeqCst)
    }

    /// Returns the sealed bytes of a record that is there.
    pub(super) async fn sealed(&self, key: &RecordKey) -> Vec<u8> {
        self.memory.record(key).await.unwrap().unwrap()
    }

    /// Puts bytes under a key, as somebody does who can write to the store.
    pub(super) async fn put_sealed(&self, key: &RecordKey, sealed: Vec<u8>) {
        self.memory.put_record(key, sealed).await.unwrap();
    }
}

impl Store for TestStore {
    fn put(&self, key: &RowKey, row: Row) -> BoxFuture<'_, Result<(), Error>> {
        self.memory.put(key, row)
    }

    fn get(&self, key: &RowKey) -> BoxFuture<'_, Result<Option<Row>, Error>> {
        self.memory.get(key)
    }

    fn delete(&self, key: &RowKey) -> BoxFuture<'_, Result<bool, Error>> {
        self.memory.delete(key)
    }

    fn touch(&self, used: Vec<(RowKey, u64)>) -> BoxFuture<'_, Result<(), Error>> {
        self.memory.touch(used)
    }

    fn load(&self) -> BoxFuture<'_, Result<Rows, Error>> {
        self.memory.load()
    }

    fn put_record(&self, key: &RecordKey, sealed: Vec<u8>) -> BoxFuture<'_, Result<(), Error>> {
        let key = key.clone();
        Box::pin(async move {
            drop(self.gate.acquire().await);
            self.puts.fetch_add(1, Ordering::SeqCst);
            if self.fails.load(Ordering::SeqCst) {
                return Err(Error::unavailable("told to fail"));
            }
            self.memory.put_record(&key, sealed).await
        })
    }

    fn record(&self, key: &RecordKey) -> BoxFuture<'_, Result<Option<Vec<u8>>, Error>> {
        self.memory.record(key)
    }

    fn delete_record(&self, key: &RecordKey) -> BoxFuture<'_, Result<bool, Error>> {
        self.memory.delete_record(key)
    }

    fn load_records(&self, kind: RecordKind) -> BoxFuture<'_, Result<RecordRows, Error>> {
        self.memory.load_records(kind)
    }
}
