//! The store in one file of this machine: `redb`, which one process has open at a time.
//!
//! All work on the file is done by one thread of its own, so that nothing here blocks an async one;
//! this is its face. A call is answered when its change is durable, or within a deadline; the queue
//! is bounded. It must never answer a change that is not on the disk. Called through [`Store`].

mod file;
mod writer;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};

use self::file::Opener;
use self::writer::{Change, Request, Status, Waiting, Writer};
use crate::store::{BoxFuture, Error, RecordKey, RecordKind, RecordRows, Row, RowKey, Rows, Store};

/// How many calls may wait for the thread, and how many bytes of what they write: of all the rows that
/// a rotation of keys has on their way together, and some. Beyond that a call fails at once.
const QUEUE: usize = 1024;
const QUEUE_BYTES: usize = 128 << 20;
const FULL: &str = "too many changes are waiting";
/// How long a call waits for its change to be durable.
const DEADLINE: Duration = Duration::from_secs(5);
/// The same for reading everything, which happens at the start and when keys are rotated.
const LOAD_DEADLINE: Duration = Duration::from_mins(2);

/// Keeps rows in a file.
pub struct Disk {
    path: PathBuf,
    queue: SyncSender<Request>,
    /// As many permits as bytes may wait yet.
    room: Arc<Semaphore>,
    status: Arc<Status>,
    thread: JoinHandle<()>,
}

impl Disk {
    /// Opens the store in a file, and makes it where there is none. Blocks: for the start of a
    /// process.
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::Corrupt`] and [`Error::File`]: also where others than its owner
    /// may use the file. An empty file is refused, so that a store that was cut off does not begin
    /// anew in silence.
    pub fn open(path: &Path) -> Result<Self, Error> {
        file::make(path)?;
        Self::with(path, Box::new(file::open))
    }

    fn with(path: &Path, opener: Opener) -> Result<Self, Error> {
        let file = opener(path)?;
        let (queue, requests) = sync_channel(QUEUE);
        let status = Arc::new(Status::default());
        let writer = Writer::new(path.to_owned(), file, opener, Arc::clone(&status));
        let thread = std::thread::Builder::new().name("store".to_owned());
        let thread = thread.spawn(move || writer.run(&requests));
        Ok(Self {
            path: path.to_owned(),
            queue,
            room: Arc::new(Semaphore::new(QUEUE_BYTES)),
            status,
            thread: thread.map_err(|source| Error::File {
                path: path.to_owned(),
                source,
            })?,
        })
    }

    /// Closes the file. Blocks until what was asked before is done.
    pub fn close(self) {
        let Self { queue, thread, .. } = self;
        drop(queue);
        if thread.join().is_err() {
            tracing::error!("the store's thread ended in a panic");
        }
    }

    async fn ask<T>(
        &self,
        deadline: Duration,
        request: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Request + Send,
    ) -> Result<T, Error> {
        let (sender, receiver) = oneshot::channel();
        self.queue
            .try_send(request(sender))
            .map_err(|error| match error {
                TrySendError::Full(_) => Error::unavailable(FULL),
                TrySendError::Disconnected(_) => Error::unavailable("the store's thread ended"),
            })?;
        match tokio::time::timeout(deadline, receiver).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(gone)) => Err(Error::unavailable(gone)),
            Err(_late) => Err(Error::unavailable(io::Error::from(io::ErrorKind::TimedOut))),
        }
    }

    async fn change(&self, change: Change) -> Result<bool, Error> {
        let bytes = u32::try_from(change.bytes().min(QUEUE_BYTES)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).try_acquire_many_owned(bytes);
        // Not waited for: whoever waits holds what it would write.
        let room = room.map_err(|_full| Error::unavailable(FULL))?;
        self.ask(DEADLINE, |answer| {
            let waiting = Waiting {
                change,
                answer,
                room,
            };
            Request::Change(waiting)
        })
        .await
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Store for Disk {
    fn put(&self, key: &RowKey, row: Row) -> BoxFuture<'_, Result<(), Error>> {
        let change = Change::Put(key.clone(), row);
        Box::pin(async move { self.change(change).await.map(drop) })
    }

    fn get(&self, key: &RowKey) -> BoxFuture<'_, Result<Option<Row>, Error>> {
        let key = key.clone();
        Box::pin(self.ask(DEADLINE, |sender| Request::Get(key, sender)))
    }

    fn delete(&self, key: &RowKey) -> BoxFuture<'_, Result<bool, Error>> {
        let change = Change::Delete(key.clone());
        Box::pin(self.change(change))
    }

    fn touch(&self, used: Vec<(RowKey, u64)>) -> BoxFuture<'_, Result<(), Error>> {
        let change = Change::Touch(used);
        Box::pin(async move { self.change(change).await.map(drop) })
    }

    fn load(&self) -> BoxFuture<'_, Result<Rows, Error>> {
        Box::pin(self.ask(LOAD_DEADLINE, Request::Load))
    }

    fn put_record(&self, key: &RecordKey, sealed: Vec<u8>) -> BoxFuture<'_, Result<(), Error>> {
        let change = Change::PutRecord(key.clone(), sealed);
        Box::pin(async move { self.change(change).await.map(drop) })
    }

    fn record(&self, key: &RecordKey) -> BoxFuture<'_, Result<Option<Vec<u8>>, Error>> {
        let key = key.clone();
        Box::pin(self.ask(DEADLINE, |sender| Request::Record(key, sender)))
    }

    fn delete_record(&self, key: &RecordKey) -> BoxFuture<'_, Result<bool, Error>> {
        let change = Change::DeleteRecord(key.clone());
        Box::pin(self.change(change))
    }

    fn load_records(&self, kind: RecordKind) -> BoxFuture<'_, Result<RecordRows, Error>> {
        Box::pin(self.ask(LOAD_DEADLINE, move |sender| {
            Request::LoadRecords(kind, sender)
        }))
    }

    fn release(&self) -> BoxFuture<'_, Result<bool, Error>> {
        let released = self.ask(DEADLINE, Request::Release);
        Box::pin(async move { released.await.map(|()| true) })
    }

    fn reclaim(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.ask(DEADLINE, Request::Reclaim))
    }

    fn health(&self) -> Result<(), Error> {
        self.status.health(DEADLINE).map_err(Error::unavailable)
    }
}

#[cfg(test)]
mod tests;
