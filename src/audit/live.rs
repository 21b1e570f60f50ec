//! Who reads along: the records of one session, as they are written, to a bounded number of readers.
//!
//! The sink's thread copies a line only where somebody listens to its session; nobody who makes a
//! record pays for it. A reader that is too slow loses records, never anybody's time, and is told
//! how many. Called by the sink's thread and by the management API.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc::error::{TryRecvError, TrySendError};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::id::SessionId;

/// How many readers one session has at most.
pub const READERS_PER_SESSION: usize = 8;
/// How many readers there are at most.
pub const READERS: usize = 1024;
/// How many records wait for one reader.
pub const WAITING_RECORDS: usize = 256;

/// Says that a session, or the process, has as many readers as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("as many read along as may")]
pub struct TooManyReaders;

/// What a reader is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Records were lost here: this many for this reader, or an unknown number before they were
    /// written.
    Gap(Option<u64>),
    /// One record, as a line of JSON without its end.
    Record(Arc<[u8]>),
}

/// All readers.
#[derive(Debug, Default)]
pub(super) struct Live {
    readers: Mutex<HashMap<SessionId, Vec<Reader>>>,
    count: AtomicUsize,
}

#[derive(Debug)]
struct Reader {
    sender: Sender<Told>,
    /// What found no room since the reader was told the last time.
    lost: Arc<AtomicU64>,
}

impl Reader {
    fn tell(&self, told: Told) {
        let lost = self.lost.swap(0, Ordering::AcqRel);
        if lost > 0 && self.sender.try_send(Told::Gap(Some(lost))).is_err() {
            self.lost.fetch_add(lost + 1, Ordering::AcqRel);
            return;
        }
        if let Err(TrySendError::Full(_)) = self.sender.try_send(told) {
            self.lost.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl Live {
    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Vec<Reader>>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells whether anybody reads along at all.
    pub(super) fn is_any(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// Returns how many read along.
    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    pub(super) fn subscribe(
        self: &Arc<Self>,
        session: &SessionId,
    ) -> Result<Subscription, TooManyReaders> {
        let mut readers = self.lock();
        let own = readers.get(session).map_or(0, Vec::len);
        if own >= READERS_PER_SESSION || self.len() >= READERS {
            return Err(TooManyReaders);
        }
        let (sender, receiver) = channel(WAITING_RECORDS);
        let lost = Arc::<AtomicU64>::default();
        readers.entry(session.clone()).or_default().push(Reader {
            sender,
            lost: Arc::clone(&lost),
        });
        self.count.fetch_add(1, Ordering::AcqRel);
        Ok(Subscription {
            live: Arc::clone(self),
            session: session.clone(),
            receiver,
            lost,
        })
    }

    /// Hands a record to whoever reads its session; after the `last` one nothing more comes.
    pub(super) fn send(&self, session: &SessionId, line: &[u8], last: bool) {
        let mut readers = self.lock();
        let Some(own) = readers.get(session) else {
            return;
        };
        let line: Arc<[u8]> = line.into();
        for reader in own {
            reader.tell(Told::Record(Arc::clone(&line)));
        }
        if last {
            let ended = readers.remove(session).map_or(0, |own| own.len());
            self.count.fetch_sub(ended, Ordering::AcqRel);
        }
    }

    /// Tells everybody that records were lost before it was known whose they are.
    pub(super) fn gap(&self) {
        for reader in self.lock().values().flatten() {
            reader.tell(Told::Gap(None));
        }
    }

    /// Forgets the readers of a session that have gone.
    fn forget_gone(&self, session: &SessionId) {
        let mut readers = self.lock();
        let Some(own) = readers.get_mut(session) else {
            return;
        };
        let before = own.len();
        own.retain(|reader| !reader.sender.is_closed());
        self.count.fetch_sub(before - own.len(), Ordering::AcqRel);
        if own.is_empty() {
            readers.remove(session);
        }
    }
}

/// The records of one session from now on. Dropping it makes room for another reader.
#[derive(Debug)]
pub struct Subscription {
    live: Arc<Live>,
    session: SessionId,
    receiver: Receiver<Told>,
    lost: Arc<AtomicU64>,
}

impl Subscription {
    /// Waits for what comes next; nothing after the session's last record.
    pub async fn next(&mut self) -> Option<Told> {
        match self.receiver.try_recv() {
            Ok(told) => return Some(told),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => {}
        }
        // All that stood before the gap was told.
        let lost = self.lost.swap(0, Ordering::AcqRel);
        if lost > 0 {
            return Some(Told::Gap(Some(lost)));
        }
        let told = self.receiver.recv().await;
        told.or_else(|| match self.lost.swap(0, Ordering::AcqRel) {
            0 => None,
            lost => Some(Told::Gap(Some(lost))),
        })
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.receiver.close();
        self.live.forget_gone(&self.session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: usize) -> Told {
        Told::Record(number.to_string().as_bytes().into())
    }

    #[tokio::test]
    async fn a_reader_gets_its_own_session_in_order() {
        let live = Arc::new(Live::default());
        let (own, other) = (SessionId::generate(), SessionId::generate());
        let mut reader = live.subscribe(&own).unwrap();
        for number in 0..3 {
            live.send(&own, number.to_string().as_bytes(), false);
            live.send(&other, b"other", false);
        }
        for number in 0..3 {
            assert_eq!(reader.next().await, Some(record(number)));
        }
        live.send(&own, b"3", true);
        assert_eq!(reader.next().await, Some(record(3)));
        assert_eq!(reader.next().await, None, "the last record ends it");
        assert!(!live.is_any());
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_where_and_how_much_it_lost() {
        let live = Arc::new(Live::default());
        let own = SessionId::generate();
        let mut reader = live.subscribe(&own).unwrap();
        for number in 0..WAITING_RECORDS + 5 {
            live.send(&own, number.to_string().as_bytes(), false);
        }
        assert_eq!(reader.next().await, Some(record(0)));
        assert_eq!(reader.next().await, Some(record(1)));
        // There is room for two: one for the gap, one for what comes after it.
        live.send(&own, b"1000", false);
        live.send(&own, b"1001", false);
        for number in 2..WAITING_RECORDS {
            assert_eq!(reader.next().await, Some(record(number)));
        }
        assert_eq!(reader.next().await, Some(Told::Gap(Some(5))));
        assert_eq!(reader.next().await, Some(record(1000)));
        assert_eq!(reader.next().await, Some(Told::Gap(Some(1))));
        live.gap();
        assert_eq!(reader.next().await, Some(Told::Gap(None)));
    }

    #[tokio::test]
    async fn readers_are_counted_and_come_back() {
        let live = Arc::new(Live::default());
        let own = SessionId::generate();
        let mut all: Vec<_> = (0..READERS_PER_SESSION)
            .map(|_| live.subscribe(&own).unwrap())
            .collect();
        assert!(live.subscribe(&own).is_err());
        assert!(live.subscribe(&SessionId::generate()).is_ok());
        all.pop();
        assert_eq!(live.len(), READERS_PER_SESSION - 1);
        let again = live.subscribe(&own).unwrap();
        drop((all, again));
        assert!(!live.is_any());
        let all: Vec<_> = (0..READERS)
            .map(|_| live.subscribe(&SessionId::generate()).unwrap())
            .collect();
        assert!(live.subscribe(&own).is_err());
        drop(all);
        assert!(live.subscribe(&own).is_ok());
    }

    #[tokio::test]
    async fn readers_that_were_ended_are_not_counted_twice() {
        let live = Arc::new(Live::default());
        let own = SessionId::generate();
        let reader = live.subscribe(&own).unwrap();
        live.send(&own, b"last", true);
        assert_eq!(live.len(), 0);
        drop(reader);
        assert_eq!(live.len(), 0);
    }
}
