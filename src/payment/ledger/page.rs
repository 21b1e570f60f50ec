//! The book of one account and month in memory, and the one task that writes books.
//!
//! A page knows up to which version it is durable. Pages that changed wait in a queue, once each, and
//! are written together. Called by the ledger's face.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OnceCell, watch};

use crate::payment::Error;
use crate::payment::book::Book;
use crate::records::Records;
use crate::store::RecordKey;

/// The most books that are written together.
const GROUP: usize = 256;
/// How long the writer rests after a failure.
const REST: Duration = Duration::from_millis(100);
/// How many books are kept in memory before those that nobody uses are let go.
pub(super) const PAGE_LIMIT: usize = 4096;

/// The book of one account and month, and how much of it is durable.
pub(super) struct Page {
    pub(super) key: RecordKey,
    /// Read from the store when it is first asked for.
    pub(super) state: OnceCell<Mutex<State>>,
    pub(super) written: watch::Sender<Written>,
    pub(super) queue: Arc<Queue>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) book: Book,
    /// Counts the changes.
    pub(super) version: u64,
    /// Whether the page waits for the writer.
    pub(super) queued: bool,
}

/// Up to which version the page was written, and up to which that failed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Written {
    pub(super) durable: u64,
    pub(super) failed: u64,
}

/// The pages that wait to be written.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) pages: Mutex<Vec<Arc<Page>>>,
    pub(super) some: Notify,
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Page")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

impl State {
    pub(super) fn changed(&mut self) -> u64 {
        self.version += 1;
        self.version
    }
}

impl Page {
    #[expect(
        clippy::expect_used,
        reason = "`Ledger::page` hands out no page before it was read"
    )]
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(self.state.get().expect("the page was read"))
    }

    /// Asks the writer to write the page as it is by then.
    pub(super) fn enqueue(self: &Arc<Self>) {
        if !std::mem::replace(&mut self.state().queued, true) {
            lock(&self.queue.pages).push(Arc::clone(self));
            self.queue.some.notify_one();
        }
    }

    /// Waits until a version, or a later one, is durable.
    pub(super) async fn write_until(self: &Arc<Self>, version: u64) -> Result<(), Error> {
        let mut written = self.written.subscribe();
        self.enqueue();
        let done = written.wait_for(|written| written.durable.max(written.failed) >= version);
        match done.await {
            Ok(written) if written.durable >= version => Ok(()),
            _ => Err(Error::Unwritten),
        }
    }
}

/// Writes the pages that wait, all at once, for as long as the ledger lives.
pub(super) async fn write_books(records: Arc<Records>, queue: Arc<Queue>) {
    let mut failing = false;
    loop {
        let group = {
            let mut pages = lock(&queue.pages);
            let most = pages.len().min(GROUP);
            let rest = pages.split_off(most);
            std::mem::replace(&mut *pages, rest)
        };
        if group.is_empty() {
            queue.some.notified().await;
            continue;
        }
        let (versions, books): (Vec<_>, Vec<_>) = group.iter().map(take_version).unzip();
        let answers = records.put_all(&books).await;
        let mut failure = None;
        for ((page, version), answer) in group.iter().zip(versions).zip(answers) {
            if let Err(error) = answer {
                failure = Some(error);
                page.written.send_modify(|written| written.failed = version);
                page.enqueue();
            } else {
                page.written
                    .send_modify(|written| written.durable = version);
            }
        }
        if let (Some(error), false) = (&failure, failing) {
            tracing::error!(%error, "usage cannot be written");
        }
        failing = failure.is_some();
        if failing {
            tokio::time::sleep(REST).await;
        }
    }
}

/// Takes a page off the queue as it is now.
fn take_version(page: &Arc<Page>) -> (u64, (RecordKey, Vec<u8>)) {
    let mut state = page.state();
    state.queued = false;
    (state.version, (page.key.clone(), state.book.write()))
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
