//! The queue between those who make records and the one thread that writes them.
//!
//! Whoever hands something over holds a lock for a push and never waits for the writer. What does
//! not fit is counted, or was refused before it began. Called by the sink and by its thread.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;

use crate::audit::Data;
use crate::audit::away::{Relayed, Released};
use crate::audit::chain::Keys;
use crate::audit::live::Live;
use crate::audit::tally::Tally;
use crate::id::SessionId;
use crate::policy::Catalogue;

/// The number of records that wait for the writer at most.
pub(super) const QUEUE_LIMIT: usize = 8192;
/// How long the writer gathers before it writes. Waking a thread costs the one who wakes it more
/// than the record does: under load this makes it at most 500 times a second.
const GATHER: Duration = Duration::from_millis(2);
/// The fill that ends the gathering early.
const GATHER_LIMIT: usize = QUEUE_LIMIT / 2;
/// How long the writer waits after a failed write.
const RETRY: Duration = Duration::from_millis(250);

/// What is handed over.
pub(super) enum Entry {
    /// Ends the chain in order.
    Close,
    /// Ends the streams of a session's records, after those that were handed over before.
    EndReaders(SessionId),
    /// Goes on under other keys.
    Keys(Box<Keys>),
    /// Lets go of the file.
    Release(oneshot::Sender<Option<Released>>),
    Event(Box<Value>),
    Record(Box<Data>),
    Relayed(Relayed),
}

#[derive(Default)]
struct State {
    entries: Vec<Entry>,
    /// How many of the entries are records: only these are bounded.
    records: usize,
    tally: Tally,
    /// Tells which hosts belong to a secret's name.
    catalogue: Option<Arc<Catalogue>>,
    /// Records that found the queue full since the writer last took it.
    lost: u64,
    /// Entries ever taken in, and how many of them are written.
    accepted: u64,
    written: u64,
    /// The writer waits for an entry, so that somebody has to wake it.
    asleep: bool,
    /// Somebody waits in a flush: no gathering.
    hurry: bool,
    closed: bool,
}

/// The queue.
#[derive(Default)]
pub(super) struct Queue {
    /// Who reads along.
    pub(super) live: Arc<Live>,
    /// What is new is refused while the queue is full.
    pub(super) refuses: AtomicBool,
    pub(super) is_full: AtomicBool,
    /// Records that were lost, ever.
    pub(super) lost: AtomicU64,
    state: Mutex<State>,
    wake: Condvar,
    written: Condvar,
}

impl Queue {
    /// Ends the thread once all is written.
    pub(super) fn end(&self) {
        self.lock().closed = true;
        self.wake.notify_one();
    }

    /// Returns what was counted.
    pub(super) fn tally(&self) -> Tally {
        self.lock().tally.clone()
    }

    /// Tells which hosts belong to a secret's name.
    pub(super) fn classify_by(&self, catalogue: &Arc<Catalogue>) {
        self.lock().catalogue = Some(Arc::clone(catalogue));
    }

    /// Returns how many records wait.
    pub(super) fn waiting(&self) -> usize {
        self.lock().records
    }

    /// No code panics while it holds the lock; were it so, the state would still be whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push_record(&self, data: Box<Data>) {
        let mut guard = self.lock();
        let state = &mut *guard;
        state.tally.count(&data, state.catalogue.as_deref());
        if state.records >= QUEUE_LIMIT {
            // What was let in while there was room is bounded by what was in flight then, and what
            // a session became by the number of sessions.
            let is_kept = data.is_admitted || data.is_change();
            if !(is_kept && self.refuses.load(Ordering::Relaxed)) {
                state.lost += 1;
                self.lost.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
        state.records += 1;
        if state.records == QUEUE_LIMIT {
            self.is_full.store(true, Ordering::Relaxed);
        }
        self.push(guard, Entry::Record(data));
    }

    pub(super) fn push_event(&self, line: Box<Value>) {
        self.push_order(Entry::Event(line));
    }

    /// Takes in what is no record: nothing bounds it, and nothing loses it.
    pub(super) fn push_order(&self, entry: Entry) {
        let state = self.lock();
        self.push(state, entry);
    }

    fn push(&self, mut state: MutexGuard<'_, State>, entry: Entry) {
        state.accepted += 1;
        state.entries.push(entry);
        let wake = state.asleep || state.records == GATHER_LIMIT;
        state.asleep = false;
        drop(state);
        if wake {
            self.wake.notify_one();
        }
    }

    /// Waits until all is written that was handed over before. Tells whether it is.
    pub(super) fn flush(&self, limit: Duration) -> bool {
        let mut state = self.lock();
        let goal = state.accepted;
        state.hurry = true;
        self.wake.notify_one();
        let waited = self
            .written
            .wait_timeout_while(state, limit, |state| state.written < goal);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.written >= goal
    }

    /// Waits for entries and takes them all, with the number of records lost since the last time.
    /// Nothing once the sink is gone and the queue is empty.
    pub(super) fn take(&self, batch: &mut Vec<Entry>) -> Option<u64> {
        let mut state = self.lock();
        while state.entries.is_empty() {
            if state.closed {
                return None;
            }
            state.asleep = true;
            state = self
                .wake
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.asleep = false;
        let (mut state, _) = self
            .wake
            .wait_timeout_while(state, GATHER, |state| {
                !state.hurry && !state.closed && state.records < GATHER_LIMIT
            })
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut state.entries, batch);
        state.records = 0;
        self.is_full.store(false, Ordering::Relaxed);
        state.hurry = false;
        Some(std::mem::take(&mut state.lost))
    }

    /// Waits after a failed write; false where nobody is left for whom to try again.
    pub(super) fn pause(&self) -> bool {
        let (state, _) = self
            .wake
            .wait_timeout_while(self.lock(), RETRY, |state| !state.closed)
            .unwrap_or_else(PoisonError::into_inner);
        !state.closed
    }

    pub(super) fn count_written(&self, entries: u64) {
        self.lock().written += entries;
        self.written.notify_all();
    }
}
