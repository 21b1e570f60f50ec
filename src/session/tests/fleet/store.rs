//! A store in memory that several nodes use, with what a server can do to them.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicI64;
use std::time::{Instant, SystemTime};

use super::lock;
use crate::id::SessionId;
use crate::session::tests::*;
use crate::store::{Change, Fleet, Mark, News, Over};

/// What is stored: the rows of sessions, and their versions.
type State = (Vec<(RowKey, Row)>, HashMap<RowKey, u64>);

/// A store in memory that several nodes use.
#[derive(Debug)]
pub(super) struct TestFleet {
    pub(super) rows: Memory,
    pub(super) versions: Mutex<HashMap<RowKey, u64>>,
    pub(super) changes: Mutex<Vec<Change>>,
    pub(super) run: Mutex<String>,
    is_down: AtomicBool,
    pub(super) finds: AtomicUsize,
    clock: Clock,
    begin: (Instant, SystemTime),
    /// How far the store's clock is ahead of the machine's, in seconds.
    pub(super) ahead: AtomicI64,
    /// Whether changes are refused.
    pub(super) is_read_only: AtomicBool,
    /// How often everything was read, and what another node does in the moment after the second time.
    loads: AtomicUsize,
    meanwhile: Mutex<Vec<(RowKey, Option<Row>)>>,
    /// What was found is told to nobody while this is kept.
    pub(super) found: tokio::sync::Mutex<()>,
    pub(super) are_records_down: AtomicBool,
    /// What was written is told to nobody while this is kept.
    pub(super) held: tokio::sync::Mutex<()>,
}

impl TestFleet {
    pub(super) fn new(clock: &Clock) -> Arc<Self> {
        Arc::new(Self {
            rows: Memory::new(),
            versions: Mutex::default(),
            changes: Mutex::default(),
            run: Mutex::new("one".to_owned()),
            is_down: AtomicBool::new(false),
            finds: AtomicUsize::new(0),
            clock: clock.clone(),
            begin: (clock.now(), SystemTime::now()),
            ahead: AtomicI64::default(),
            is_read_only: AtomicBool::default(),
            loads: AtomicUsize::default(),
            meanwhile: Mutex::default(),
            found: tokio::sync::Mutex::default(),
            are_records_down: AtomicBool::new(false),
            held: tokio::sync::Mutex::default(),
        })
    }

    fn check(&self) -> Result<(), Error> {
        if self.is_down.load(Ordering::SeqCst) {
            return Err(Error::Unavailable("down by the test".into()));
        }
        Ok(())
    }

    /// As [`Self::check`], for what changes something.
    fn check_write(&self) -> Result<(), Error> {
        self.check()?;
        if self.is_read_only.load(Ordering::SeqCst) {
            return Err(Error::Unavailable("read-only by the test".into()));
        }
        Ok(())
    }

    pub(super) fn set_down(&self, is_down: bool) {
        self.is_down.store(is_down, Ordering::SeqCst);
    }

    pub(super) fn note(&self, key: &RowKey) {
        lock(&self.changes).push(Change::Session(key.session.clone()));
    }
}

impl Store for TestFleet {
    fn put(&self, key: &RowKey, row: Row) -> BoxFuture<'_, Result<(), Error>> {
        let key = key.clone();
        Box::pin(async move {
            self.check_write()?;
            self.note(&key);
            self.rows.put(&key, row).await
        })
    }

    fn write(
        &self,
        key: &RowKey,
        row: Row,
        version: u64,
        over: Over,
    ) -> BoxFuture<'_, Result<bool, Error>> {
        let key = key.clone();
        Box::pin(async move {
            self.check_write()?;
            let there = lock(&self.versions).get(&key).copied();
            let row_there = self.rows.get(&key).await?;
            let fits = match over {
                Over::Any => true,
                Over::Exactly(before) => row_there.is_some_and(|it| it.sealed == before.sealed),
                Over::Nothing => there.is_none(),
                Over::Older => there.is_some_and(|there| there < version),
            };
            if fits {
                if version > 0 {
                    lock(&self.versions).insert(key.clone(), version);
                }
                self.note(&key);
                self.rows.put(&key, row).await?;
            }
            drop(self.held.lock().await);
            Ok(fits)
        })
    }

    fn get(&self, key: &RowKey) -> BoxFuture<'_, Result<Option<Row>, Error>> {
        let key = key.clone();
        Box::pin(async move {
            self.check()?;
            self.rows.get(&key).await
        })
    }

    fn delete(&self, key: &RowKey) -> BoxFuture<'_, Result<bool, Error>> {
        let key = key.clone();
        Box::pin(async move {
            self.check_write()?;
            // As a server does, which has one row of an id, whoever it says that it is of.
            let mut rows = self.rows.load().await?.rows.into_iter();
            let Some((key, _)) = rows.find(|(it, _)| it.session == key.session) else {
                return Ok(false);
            };
            lock(&self.versions).remove(&key);
            lock(&self.changes).push(Change::Gone(key.session.clone()));
            self.rows.delete(&key).await
        })
    }

    fn touch(&self, used: Vec<(RowKey, u64)>) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            self.check_write()?;
            self.rows.touch(used).await
        })
    }

    fn load(&self) -> BoxFuture<'_, Result<Rows, Error>> {
        Box::pin(async move {
            self.check()?;
            let rows = self.rows.load().await?;
            self.loads.fetch_add(1, Ordering::SeqCst);
            let is_now = self.loads.load(Ordering::SeqCst) == 2;
            let meanwhile = is_now.then(|| std::mem::take(&mut *lock(&self.meanwhile)));
            for (key, row) in meanwhile.unwrap_or_default() {
                match row {
                    Some(row) => self.rows.put(&key, row).await?,
                    None => drop(self.rows.delete(&key).await?),
                }
            }
            Ok(rows)
        })
    }

    fn put_record(&self, key: &RecordKey, sealed: Vec<u8>) -> BoxFuture<'_, Result<(), Error>> {
        let key = key.clone();
        Box::pin(async move {
            self.check()?;
            lock(&self.changes).push(Change::Record(key.clone()));
            self.rows.put_record(&key, sealed).await
        })
    }

    fn replace_record(
        &self,
        key: &RecordKey,
        sealed: Vec<u8>,
        before: Option<Vec<u8>>,
    ) -> BoxFuture<'_, Result<bool, Error>> {
        let key = key.clone();
        Box::pin(async move {
            self.check()?;
            if self.rows.record(&key).await? != before {
                return Ok(false);
            }
            self.put_record(&key, sealed).await.map(|()| true)
        })
    }

    fn record(&self, key: &RecordKey) -> BoxFuture<'_, Result<Option<Vec<u8>>, Error>> {
        let key = key.clone();
        Box::pin(async move {
            self.check()?;
            if self.are_records_down.load(Ordering::SeqCst) {
                return Err(Error::Unavailable("records are down by the test".into()));
            }
            self.rows.record(&key).await
        })
    }

    fn delete_record(&self, key: &RecordKey) -> BoxFuture<'_, Result<bool, Error>> {
        let key = key.clone();
        Box::pin(async move {
            self.check()?;
            lock(&self.changes).push(Change::Record(key.clone()));
            self.rows.delete_record(&key).await
        })
    }

    fn load_records(&self, kind: RecordKind) -> BoxFuture<'_, Result<RecordRows, Error>> {
        self.rows.load_records(kind)
    }

    fn now(&self) -> SystemTime {
        let (instant, wall) = self.begin;
        let (now, ahead) = (
            wall + (self.clock.now() - instant),
            self.ahead.load(Ordering::SeqCst),
        );
        let by = Duration::from_secs(ahead.unsigned_abs());
        if ahead < 0 { now - by } else { now + by }
    }

    fn fleet(&self) -> Option<&dyn Fleet> {
        Some(self)
    }
}

impl Fleet for TestFleet {
    fn changes(&self, since: Option<Mark>) -> BoxFuture<'_, Result<News, Error>> {
        Box::pin(async move {
            self.check()?;
            let all = lock(&self.changes).clone();
            let run = lock(&self.run).clone();
            let epoch = u64::try_from(all.len()).unwrap();
            let mark = Mark::new(&run, epoch, "");
            let from = since.filter(|since| *since == Mark::new(&run, since.epoch(), ""));
            let changes = match from {
                Some(from) => all[usize::try_from(from.epoch()).unwrap()..].to_vec(),
                None => vec![Change::Everything],
            };
            Ok(News {
                changes,
                mark,
                is_partial: false,
            })
        })
    }

    fn announced(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }

    fn find(&self, session: &SessionId) -> BoxFuture<'_, Result<Option<(RowKey, Row)>, Error>> {
        self.finds.fetch_add(1, Ordering::SeqCst);
        let session = session.clone();
        Box::pin(async move {
            self.check()?;
            let rows = self.rows.load().await?.rows;
            let found = rows.into_iter().find(|(key, _)| key.session == session);
            drop(self.found.lock().await);
            Ok(found)
        })
    }

    fn last_used(&self, keys: Vec<RowKey>) -> BoxFuture<'_, Result<Vec<Option<u64>>, Error>> {
        Box::pin(async move {
            self.check()?;
            let mut all = Vec::new();
            for key in keys {
                all.push(self.rows.get(&key).await?.map(|row| row.last_used));
            }
            Ok(all)
        })
    }
}

impl TestFleet {
    /// Returns everything that is stored.
    pub(super) async fn all(&self) -> State {
        let rows = self.rows.load().await.unwrap().rows;
        (rows, lock(&self.versions).clone())
    }

    /// Has another node do something in the moment after everything was read for the second time.
    pub(super) fn at_second_load(&self, meanwhile: Vec<(RowKey, Option<Row>)>) {
        self.loads.store(0, Ordering::SeqCst);
        *lock(&self.meanwhile) = meanwhile;
    }

    /// Puts another state in the place of everything, as another run of the server that has it.
    pub(super) async fn become_another(&self, (rows, versions): State) {
        for (key, _) in self.rows.load().await.unwrap().rows {
            self.rows.delete(&key).await.unwrap();
        }
        for (key, row) in rows {
            self.rows.put(&key, row).await.unwrap();
        }
        *lock(&self.versions) = versions;
        lock(&self.run).push('+');
        lock(&self.changes).clear();
    }
}
