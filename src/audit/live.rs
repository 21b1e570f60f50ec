//! Who reads along: the records of one session, as they are written, to a bounded number of readers.
//!
//! The sink's thread copies a line only where somebody listens to its session; nobody who makes a
//! record pays for it. A reader that is too slow loses records, never anybody's time, and is told
//! how many. Called by the sink's thread and by the management API.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc::error::{TryRecvError, TrySendError};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::id::{SessionId, TenantId};

/// How many readers one session has at most.
pub const READERS_PER_SESSION: usize = 8;
/// How many readers the sessions of one tenant have at most.
pub const READERS_PER_TENANT: usize = 256;
/// How many readers there are at most.
pub const READERS: usize = 1024;
/// How many records wait for one reader.
pub const WAITING_RECORDS: usize = 256;
/// How many bytes of records wait for one reader; a single record may be longer.
pub const WAITING_BYTES: usize = 128 * 1024;

/// Says that a session, its tenant or the process has as many readers as it may.
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
    readers: Mutex<Readers>,
    /// How many there are, those included that were ended and still hold what waits for them.
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Readers {
    sessions: HashMap<SessionId, Vec<Reader>>,
    /// How many each tenant has, counted like all of them.
    tenants: HashMap<TenantId, usize>,
}

#[derive(Debug)]
struct Reader {
    sender: Sender<Told>,
    shared: Arc<Shared>,
}

/// What both ends of a stream know.
#[derive(Debug, Default)]
struct Shared {
    /// What found no room since the reader was told the last time.
    lost: AtomicU64,
    /// Some of it nobody has counted.
    is_uncounted: AtomicBool,
    /// The bytes of the records that wait.
    waiting: AtomicUsize,
    /// The record that says how the session ended was told, or lost.
    is_over: AtomicBool,
}

impl Shared {
    /// Makes room for a record of this length; false where there is none.
    fn reserve(&self, bytes: usize) -> bool {
        let before = self.waiting.fetch_add(bytes, Ordering::AcqRel);
        let has_room = before == 0 || before.saturating_add(bytes) <= WAITING_BYTES;
        if !has_room {
            self.waiting.fetch_sub(bytes, Ordering::AcqRel);
        }
        has_room
    }

    /// Notes what found no room.
    fn miss(&self, told: &Told) {
        match told {
            Told::Record(_) => _ = self.lost.fetch_add(1, Ordering::AcqRel),
            Told::Gap(Some(lost)) => _ = self.lost.fetch_add(*lost, Ordering::AcqRel),
            Told::Gap(None) => self.is_uncounted.store(true, Ordering::Release),
        }
    }

    /// Returns the gap that the reader is to be told of, if there is one.
    fn missed(&self) -> Option<Told> {
        let is_uncounted = self.is_uncounted.swap(false, Ordering::AcqRel);
        let lost = self.lost.swap(0, Ordering::AcqRel);
        (is_uncounted || lost > 0).then(|| Told::Gap((!is_uncounted).then_some(lost)))
    }
}

impl Told {
    /// Returns how many bytes wait with it.
    fn bytes(&self) -> usize {
        match self {
            Self::Gap(_) => 0,
            Self::Record(line) => line.len(),
        }
    }
}

impl Reader {
    fn tell(&self, told: Told) {
        let (shared, bytes) = (&self.shared, told.bytes());
        if !shared.reserve(bytes) {
            return shared.miss(&told);
        }
        let gap = shared.missed().map(|gap| self.sender.try_send(gap));
        let sent = match gap {
            Some(Err(TrySendError::Full(gap))) => {
                shared.miss(&gap);
                Err(TrySendError::Full(told))
            }
            _ => self.sender.try_send(told),
        };
        if let Err(error) = sent {
            shared.waiting.fetch_sub(bytes, Ordering::AcqRel);
            if let TrySendError::Full(told) = error {
                shared.miss(&told);
            }
        }
    }
}

impl Live {
    fn lock(&self) -> MutexGuard<'_, Readers> {
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
        tenant: &TenantId,
        session: &SessionId,
    ) -> Result<Subscription, TooManyReaders> {
        let mut readers = self.lock();
        let own = readers.sessions.get(session).map_or(0, Vec::len);
        let of_tenant = readers.tenants.get(tenant).copied().unwrap_or_default();
        if own >= READERS_PER_SESSION || of_tenant >= READERS_PER_TENANT || self.len() >= READERS {
            return Err(TooManyReaders);
        }
        let (sender, receiver) = channel(WAITING_RECORDS);
        let shared = Arc::<Shared>::default();
        let reader = Reader {
            sender,
            shared: Arc::clone(&shared),
        };
        let own = readers.sessions.entry(session.clone()).or_default();
        own.push(reader);
        *readers.tenants.entry(tenant.clone()).or_default() += 1;
        self.count.fetch_add(1, Ordering::AcqRel);
        Ok(Subscription {
            live: Arc::clone(self),
            tenant: tenant.clone(),
            session: session.clone(),
            receiver,
            shared,
        })
    }

    /// Hands a record to whoever reads its session; `is_over` says that it tells how that ended.
    /// Records of what was cut then may still come after it.
    pub(super) fn send(&self, session: &SessionId, line: &[u8], is_over: bool) {
        let readers = self.lock();
        let Some(own) = readers.sessions.get(session) else {
            return;
        };
        let line: Arc<[u8]> = line.into();
        for reader in own {
            reader.tell(Told::Record(Arc::clone(&line)));
            if is_over {
                reader.shared.is_over.store(true, Ordering::Release);
            }
        }
    }

    /// Ends the streams of a session: what waits is still told, and nothing after it.
    pub(super) fn end(&self, session: &SessionId) {
        self.lock().sessions.remove(session);
    }

    /// Tells everybody that records were lost before it was known whose they are.
    pub(super) fn gap(&self) {
        for reader in self.lock().sessions.values().flatten() {
            reader.tell(Told::Gap(None));
        }
    }

    /// Forgets a reader that has gone.
    fn forget(&self, tenant: &TenantId, session: &SessionId) {
        let mut readers = self.lock();
        if let Some(own) = readers.sessions.get_mut(session) {
            own.retain(|reader| !reader.sender.is_closed());
            if own.is_empty() {
                readers.sessions.remove(session);
            }
        }
        if let Some(count) = readers.tenants.get_mut(tenant) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                readers.tenants.remove(tenant);
            }
        }
        self.count.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The records of one session from now on. Dropping it makes room for another reader.
#[derive(Debug)]
pub struct Subscription {
    live: Arc<Live>,
    tenant: TenantId,
    session: SessionId,
    receiver: Receiver<Told>,
    shared: Arc<Shared>,
}

impl Subscription {
    /// Waits for what comes next; nothing once the streams of the session were ended.
    pub async fn next(&mut self) -> Option<Told> {
        match self.receiver.try_recv() {
            Ok(told) => return Some(self.taken(told)),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => {}
        }
        // All that stood before the gap was told.
        if let Some(gap) = self.shared.missed() {
            return Some(gap);
        }
        match self.receiver.recv().await {
            Some(told) => Some(self.taken(told)),
            None => self.shared.missed(),
        }
    }

    /// Tells whether the record was written that says how the session ended.
    pub fn is_over(&self) -> bool {
        self.shared.is_over.load(Ordering::Acquire)
    }

    fn taken(&self, told: Told) -> Told {
        self.shared
            .waiting
            .fetch_sub(told.bytes(), Ordering::AcqRel);
        told
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.receiver.close();
        self.live.forget(&self.tenant, &self.session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: usize) -> Told {
        Told::Record(number.to_string().as_bytes().into())
    }

    fn tenant() -> TenantId {
        TenantId::new("acme")
    }

    #[tokio::test]
    async fn a_reader_gets_its_own_session_in_order() {
        let live = Arc::new(Live::default());
        let (own, other) = (SessionId::generate(), SessionId::generate());
        let mut reader = live.subscribe(&tenant(), &own).unwrap();
        for number in 0..3 {
            live.send(&own, number.to_string().as_bytes(), false);
            live.send(&other, b"other", true);
        }
        for number in 0..3 {
            assert_eq!(reader.next().await, Some(record(number)));
        }
        live.send(&own, b"3", false);
        assert!(!reader.is_over());
        live.send(&own, b"4", true);
        assert!(reader.is_over(), "before it was read");
        // What was cut tells of itself after that.
        live.send(&own, b"5", false);
        live.end(&own);
        live.send(&own, b"6", false);
        for number in 3..6 {
            assert_eq!(reader.next().await, Some(record(number)));
        }
        assert_eq!(reader.next().await, None);
        drop(reader);
        assert!(!live.is_any());
    }

    #[tokio::test]
    async fn a_gap_that_nobody_counted_and_found_no_room_stays_uncounted() {
        let live = Arc::new(Live::default());
        let own = SessionId::generate();
        let mut reader = live.subscribe(&tenant(), &own).unwrap();
        for number in 0..=WAITING_RECORDS {
            live.send(&own, number.to_string().as_bytes(), false);
        }
        live.gap();
        for number in 0..WAITING_RECORDS {
            assert_eq!(reader.next().await, Some(record(number)));
        }
        assert_eq!(reader.next().await, Some(Told::Gap(None)));
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_where_and_how_much_it_lost() {
        let live = Arc::new(Live::default());
        let own = SessionId::generate();
        let mut reader = live.subscribe(&tenant(), &own).unwrap();
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
    async fn so_many_bytes_wait_for_a_reader_and_no_more() {
        let live = Arc::new(Live::default());
        let own = SessionId::generate();
        let mut reader = live.subscribe(&tenant(), &own).unwrap();
        let line = vec![b'x'; WAITING_BYTES / 8];
        let long = Told::Record(line.as_slice().into());
        for _ in 0..2 {
            for _ in 0..11 {
                live.send(&own, &line, false);
            }
            for _ in 0..8 {
                assert_eq!(reader.next().await.as_ref(), Some(&long));
            }
            assert_eq!(reader.next().await, Some(Told::Gap(Some(3))));
        }
        // One that is longer than all may be is told on its own.
        let longer = vec![b'x'; WAITING_BYTES + 1];
        live.send(&own, &longer, false);
        live.send(&own, b"x", false);
        let told = reader.next().await;
        assert_eq!(told, Some(Told::Record(longer.into())));
        assert_eq!(reader.next().await, Some(Told::Gap(Some(1))));
    }

    #[tokio::test]
    async fn readers_are_counted_and_come_back() {
        let live = Arc::new(Live::default());
        let own = SessionId::generate();
        let mut all: Vec<_> = (0..READERS_PER_SESSION)
            .map(|_| live.subscribe(&tenant(), &own).unwrap())
            .collect();
        assert!(live.subscribe(&tenant(), &own).is_err());
        assert!(live.subscribe(&tenant(), &SessionId::generate()).is_ok());
        all.pop();
        assert_eq!(live.len(), READERS_PER_SESSION - 1);
        let again = live.subscribe(&tenant(), &own).unwrap();
        drop((all, again));
        assert!(!live.is_any());
        let tenants = (0..READERS).map(|n| TenantId::new(&format!("t{}", n / READERS_PER_TENANT)));
        let all: Vec<_> = tenants
            .map(|tenant| live.subscribe(&tenant, &SessionId::generate()).unwrap())
            .collect();
        assert!(live.subscribe(&tenant(), &own).is_err());
        drop(all);
        assert!(live.subscribe(&tenant(), &own).is_ok());
    }

    #[tokio::test]
    async fn one_tenant_takes_no_other_s_places() {
        let live = Arc::new(Live::default());
        let mut all: Vec<_> = (0..READERS_PER_TENANT)
            .map(|_| live.subscribe(&tenant(), &SessionId::generate()).unwrap())
            .collect();
        let own = SessionId::generate();
        assert!(live.subscribe(&tenant(), &own).is_err());
        let other = TenantId::new("other");
        assert!(live.subscribe(&other, &SessionId::generate()).is_ok());
        all.pop();
        assert!(live.subscribe(&tenant(), &own).is_ok());
    }

    #[tokio::test]
    async fn readers_that_were_ended_are_counted_until_they_go() {
        let live = Arc::new(Live::default());
        let own = SessionId::generate();
        let reader = live.subscribe(&tenant(), &own).unwrap();
        live.send(&own, b"last", true);
        live.end(&own);
        assert_eq!(live.len(), 1, "what waits for it takes room");
        drop(reader);
        assert_eq!(live.len(), 0);
        assert!(live.lock().tenants.is_empty() && live.lock().sessions.is_empty());
    }
}
