//! The store as a running process sees it, while it may pass to another process.
//!
//! Calls go through to the store that is behind it. While that passes on, they wait, so that none
//! is answered from a store that is closed; then they go to the one that took its place, or to the
//! one before. It must never hold a call for longer than the hand-over takes. Called through
//! [`Store`], and by `app`, which hands over.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{OwnedRwLockWriteGuard, RwLock};
use tokio::time::{Instant, sleep, timeout};

use crate::store::{
    BoxFuture, Error, Fleet, Over, RecordKey, RecordKind, RecordRows, Row, RowKey, Rows, Store,
};

/// How long the end of a process that has taken the store in vain is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

/// A store whose place another can take.
#[derive(Debug)]
pub struct Gate {
    at: Arc<RwLock<Arc<dyn Store>>>,
    /// A store that several processes use is never replaced, and its lists are open to all.
    shared: Option<Arc<dyn Store>>,
}

/// A store that is being handed over: every call on it waits until this is dropped.
#[derive(Debug)]
pub struct Handing {
    at: OwnedRwLockWriteGuard<Arc<dyn Store>>,
    is_exclusive: bool,
}

impl Gate {
    /// Stands before a store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            shared: store.fleet().is_some().then(|| Arc::clone(&store)),
            at: Arc::new(RwLock::new(store)),
        }
    }

    /// Waits for the calls in flight, not beyond a limit, holds those that come, and lets go of what
    /// one process alone may have open. Once it has begun it has to be waited for.
    ///
    /// # Errors
    /// The store's, and [`Error::Unavailable`] where calls in flight took too long: then nothing has
    /// changed.
    pub async fn hand_over(&self, limit: Duration) -> Result<Handing, Error> {
        let settled = timeout(limit, Arc::clone(&self.at).write_owned()).await;
        let at = settled.map_err(Error::unavailable)?;
        match at.release().await {
            Ok(is_exclusive) => Ok(Handing { at, is_exclusive }),
            Err(error) => {
                // What was late may have been done all the same.
                if let Err(error) = at.reclaim().await {
                    tracing::warn!(%error, "the store was not let go of, and does not answer");
                }
                Err(error)
            }
        }
    }
}

impl Handing {
    /// Tells whether the store is one that only one process at a time has open.
    pub fn is_exclusive(&self) -> bool {
        self.is_exclusive
    }

    /// Takes the store back, since nobody took it: at once, or when whoever has it open has gone.
    /// After [`PATIENCE`] calls fail again, and the store tries by itself.
    pub async fn take_back(self) {
        let since = Instant::now();
        while let Err(error) = self.at.reclaim().await {
            if since.elapsed() > PATIENCE {
                tracing::error!(%error, "the store cannot be opened again yet");
                return;
            }
            sleep(PAUSE).await;
        }
    }

    /// Puts another store in its place, for the calls that waited too.
    pub fn replace(mut self, store: Arc<dyn Store>) {
        *self.at = store;
    }
}

impl Store for Gate {
    fn put(&self, key: &RowKey, row: Row) -> BoxFuture<'_, Result<(), Error>> {
        let key = key.clone();
        Box::pin(async move { self.at.read().await.put(&key, row).await })
    }

    fn write(
        &self,
        key: &RowKey,
        row: Row,
        version: u64,
        over: Over,
    ) -> BoxFuture<'_, Result<bool, Error>> {
        let key = key.clone();
        Box::pin(async move { self.at.read().await.write(&key, row, version, over).await })
    }

    fn get(&self, key: &RowKey) -> BoxFuture<'_, Result<Option<Row>, Error>> {
        let key = key.clone();
        Box::pin(async move { self.at.read().await.get(&key).await })
    }

    fn delete(&self, key: &RowKey) -> BoxFuture<'_, Result<bool, Error>> {
        let key = key.clone();
        Box::pin(async move { self.at.read().await.delete(&key).await })
    }

    fn touch(&self, used: Vec<(RowKey, u64)>) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move { self.at.read().await.touch(used).await })
    }

    fn load(&self) -> BoxFuture<'_, Result<Rows, Error>> {
        Box::pin(async move { self.at.read().await.load().await })
    }

    fn put_record(&self, key: &RecordKey, sealed: Vec<u8>) -> BoxFuture<'_, Result<(), Error>> {
        let key = key.clone();
        Box::pin(async move { self.at.read().await.put_record(&key, sealed).await })
    }

    fn replace_record(
        &self,
        key: &RecordKey,
        sealed: Vec<u8>,
        before: Option<Vec<u8>>,
    ) -> BoxFuture<'_, Result<bool, Error>> {
        let key = key.clone();
        Box::pin(async move {
            let at = self.at.read().await;
            at.replace_record(&key, sealed, before).await
        })
    }

    fn record(&self, key: &RecordKey) -> BoxFuture<'_, Result<Option<Vec<u8>>, Error>> {
        let key = key.clone();
        Box::pin(async move { self.at.read().await.record(&key).await })
    }

    fn delete_record(&self, key: &RecordKey) -> BoxFuture<'_, Result<bool, Error>> {
        let key = key.clone();
        Box::pin(async move { self.at.read().await.delete_record(&key).await })
    }

    fn load_records(&self, kind: RecordKind) -> BoxFuture<'_, Result<RecordRows, Error>> {
        Box::pin(async move { self.at.read().await.load_records(kind).await })
    }

    fn health(&self) -> Result<(), Error> {
        // While it passes on it is neither well nor ill, and calls that come are answered yet.
        self.at.try_read().map_or(Ok(()), |at| at.health())
    }

    fn now(&self) -> SystemTime {
        let shared = self.shared.as_ref();
        shared.map_or_else(SystemTime::now, |shared| shared.now())
    }

    fn fleet(&self) -> Option<&dyn Fleet> {
        self.shared.as_ref()?.fleet()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{SessionId, TenantId};
    use crate::store::{Disk, Memory};

    fn key() -> RowKey {
        RowKey {
            tenant: TenantId::new("acme"),
            session: SessionId::generate(),
        }
    }

    fn row() -> Row {
        Row {
            sealed: b"row".to_vec(),
            last_used: 7,
        }
    }

    #[tokio::test]
    async fn calls_wait_for_the_store_that_comes() {
        let (before, after) = (Arc::new(Memory::new()), Arc::new(Memory::new()));
        let gate = Arc::new(Gate::new(Arc::clone(&before) as Arc<dyn Store>));
        let own = key();
        gate.put(&own, row()).await.unwrap();
        let handing = gate.hand_over(PATIENCE).await.unwrap();
        assert!(!handing.is_exclusive(), "memory is nobody's alone");
        let other = key();
        let mut waiting = put(&gate, &other);
        assert!(!waiting.is_finished());
        assert!(gate.health().is_ok());
        handing.replace(Arc::clone(&after) as Arc<dyn Store>);
        (&mut waiting).await.unwrap().unwrap();
        assert_eq!(after.get(&other).await.unwrap(), Some(row()));
        assert_eq!(before.get(&other).await.unwrap(), None);
    }

    fn put(gate: &Arc<Gate>, key: &RowKey) -> tokio::task::JoinHandle<Result<(), Error>> {
        let (gate, key) = (Arc::clone(gate), key.clone());
        tokio::spawn(async move { gate.put(&key, row()).await })
    }

    #[tokio::test]
    async fn a_file_is_free_while_it_is_handed_over_and_can_be_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sessions.redb");
        let gate = Gate::new(Arc::new(Disk::open(&path).unwrap()));
        let own = key();
        gate.put(&own, row()).await.unwrap();
        assert!(matches!(Disk::open(&path), Err(Error::InUse(_))));
        let handing = gate.hand_over(PATIENCE).await.unwrap();
        assert!(handing.is_exclusive());
        let successor = Disk::open(&path).unwrap();
        assert_eq!(successor.get(&own).await.unwrap(), Some(row()));
        successor.delete(&own).await.unwrap();
        successor.close();
        handing.take_back().await;
        assert_eq!(gate.get(&own).await.unwrap(), None);
        gate.put(&own, row()).await.unwrap();
        assert!(matches!(Disk::open(&path), Err(Error::InUse(_))));
    }

    #[tokio::test]
    async fn a_file_that_another_keeps_is_tried_for_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sessions.redb");
        let gate = Gate::new(Arc::new(Disk::open(&path).unwrap()));
        let handing = gate.hand_over(PATIENCE).await.unwrap();
        let other = Disk::open(&path).unwrap();
        handing.take_back().await;
        assert!(gate.health().is_err());
        assert!(gate.put(&key(), row()).await.is_err());
        other.close();
        let healed = async {
            while gate.health().is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(30), healed).await.unwrap();
        gate.put(&key(), row()).await.unwrap();
    }
}
