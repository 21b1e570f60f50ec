//! Sessions that other nodes change, too: following their changes, and finding what is not known.
//!
//! The table stays what requests look at. Changes of others arrive by asking the store every half
//! second, and at once where one is announced; where the list of changes cannot be followed,
//! everything is read anew. A node that was not told anything for too long stops serving. It must
//! never bring back a session of which it knows that it ended. Called by the loop of `app`, and by
//! whoever meets an id that is not in the table.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quick_cache::sync::Cache;
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::Error;
use super::handle::SessionHandle;
use super::life::Life;
use super::live::{Authenticated, Sessions, row_key};
use crate::id::{SessionId, TenantId};
use crate::store::{self, BoxFuture, Change, Fleet, Mark, RecordKey, RowKey};

/// How often the store is asked what changed.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How long announcements are gathered before they are followed: nodes that change much would keep
/// the others from everything else.
const GATHER: Duration = Duration::from_millis(20);
/// For how long an id is known to be unknown, how many of them, and how many are looked up at once:
/// strangers can make up as many as they like.
const UNKNOWN_FOR: Duration = Duration::from_secs(1);
const UNKNOWN_KEPT: usize = 10_000;
const LOOK_UPS: usize = 8;
/// How long a look-up waits for its turn.
const LOOK_UP_WAIT: Duration = Duration::from_secs(1);
/// How many sessions that ended are remembered.
const GONE_KEPT: usize = 100_000;
/// How long before its end a session's last use is read again: another node may know of a later one.
const LOOK_AHEAD: Duration = Duration::from_secs(5);
/// How long other nodes have to tell of a use that was just in time.
const GRACE: Duration = Duration::from_secs(1);

/// Takes in a record that another node changed; without a key, all of them.
pub type OnRecord =
    dyn Fn(Option<RecordKey>) -> BoxFuture<'static, Result<(), store::Error>> + Send + Sync;

/// Says why nobody was admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// The credential is unknown, wrong or of a session that is over.
    #[error("the credential is not that of a live session")]
    Unknown,
    /// Whether it is right cannot be known: the store does not answer.
    #[error("the store does not answer")]
    Unavailable,
}

/// What a node knows of the others.
pub(super) struct Nodes {
    max_stale: Duration,
    standing: Mutex<Standing>,
    gone: Mutex<Gone>,
    /// Rows in the store that are not as they ought to be, which is still to be mended.
    amiss: Mutex<BTreeSet<RowKey>>,
    /// How often everything was read anew.
    pub(super) reloads: AtomicU64,
    unknown: Cache<SessionId, Instant>,
    look_ups: Semaphore,
}

#[derive(Debug, Default)]
struct Standing {
    mark: Option<Mark>,
    /// When the last question was asked whose answer has been taken in.
    fresh: Option<Instant>,
    /// When the last uses that matter were asked for.
    heard: Option<Instant>,
    /// When all sessions were last looked at for the sake of the others.
    swept: Option<Instant>,
}

/// Sessions of which it was heard that they were deleted, or that were deleted here: the latest ones.
/// Their rows may be deleted wherever they come up. What was merely not found is none of them.
#[derive(Default)]
struct Gone {
    ids: HashSet<SessionId>,
    order: VecDeque<SessionId>,
}

impl Nodes {
    pub(super) fn new(max_stale: Duration) -> Self {
        Self {
            max_stale,
            standing: Mutex::default(),
            gone: Mutex::default(),
            amiss: Mutex::default(),
            reloads: AtomicU64::default(),
            unknown: Cache::new(UNKNOWN_KEPT),
            look_ups: Semaphore::new(LOOK_UPS),
        }
    }

    /// Remembers that a session was deleted, or is to be.
    pub(super) fn bury(&self, id: &SessionId) {
        let mut gone = lock(&self.gone);
        if gone.ids.insert(id.clone()) {
            gone.order.push_back(id.clone());
        }
        if gone.order.len() > GONE_KEPT
            && let Some(oldest) = gone.order.pop_front()
        {
            gone.ids.remove(&oldest);
        }
    }

    pub(super) fn is_gone(&self, id: &SessionId) -> bool {
        lock(&self.gone).ids.contains(id)
    }

    /// Notes that a row is to be looked at again, and mended: by whoever may wait for the store.
    pub(super) fn note_amiss(&self, key: &RowKey) {
        lock(&self.amiss).insert(key.clone());
    }

    /// Takes the rows that are to be mended.
    pub(super) fn take_amiss(&self) -> BTreeSet<RowKey> {
        std::mem::take(&mut *lock(&self.amiss))
    }

    /// Notes that everything is known that had happened when it was asked for.
    pub(super) fn set_known(&self, mark: Mark, asked: Instant) {
        let mut standing = lock(&self.standing);
        standing.mark = Some(mark);
        standing.fresh = Some(asked);
    }
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut nodes = f.debug_struct("Nodes");
        nodes.field("standing", &lock(&self.standing));
        nodes.finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sessions {
    /// Sets how long sessions are served without word from a store that others use as well.
    #[must_use]
    pub fn with_max_stale(mut self, max_stale: Duration) -> Self {
        self.nodes = Nodes::new(max_stale);
        self
    }

    /// Checks a `Proxy-Authorization` value as [`Self::authenticate`] does; a session that is not in
    /// the table is looked for in a store that others use as well. Whoever is known waits for
    /// nothing.
    ///
    /// # Errors
    /// See [`NotAdmitted`].
    pub async fn admit(&self, value: &[u8]) -> Result<Authenticated, NotAdmitted> {
        let Some(fleet) = self.store.fleet() else {
            return self.authenticate(value).ok_or(NotAdmitted::Unknown);
        };
        let is_stale = self.is_stale();
        let mut is_known = true;
        if let Some(id) = Self::claimed(value).filter(|id| self.in_table(id).is_none()) {
            is_known = !is_stale && self.look_up(fleet, &id).await.is_ok();
        }
        // After the look-up, and the same work whatever came of it.
        let found = self.authenticate(value);
        match found {
            Some(found) if !is_stale => Ok(found),
            // Of one that looks expired, others may know of a use.
            None if is_known && !is_stale => Err(NotAdmitted::Unknown),
            _ => Err(NotAdmitted::Unavailable),
        }
    }

    /// Finds a live session of a tenant, in a store that others use as well where it is not known.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn seek(
        &self,
        tenant: &TenantId,
        id: &SessionId,
    ) -> Result<Option<Arc<SessionHandle>>, Error> {
        self.make_known(id).await?;
        Ok(self.find(tenant, id))
    }

    /// Looks a session up where it is not in the table.
    pub(super) async fn make_known(&self, id: &SessionId) -> Result<(), Error> {
        match self.store.fleet() {
            Some(fleet) if self.in_table(id).is_none() => self.look_up(fleet, id).await,
            _ => Ok(()),
        }
    }

    /// Looks a session up: one question for all who ask, and few at a time.
    async fn look_up(&self, fleet: &dyn Fleet, id: &SessionId) -> Result<(), Error> {
        let unknown = &self.nodes.unknown;
        let now = self.clock.now();
        let is_recent = |at: Instant| now.saturating_duration_since(at) < UNKNOWN_FOR;
        match unknown.get(id) {
            Some(at) if is_recent(at) => return Ok(()),
            Some(_) => drop(unknown.remove(id)),
            None => {}
        }
        let question = async {
            if self.in_table(id).is_some() {
                return Err(None);
            }
            let busy = || Error::Store(store::Error::unavailable("too many look-ups at once"));
            let turn = timeout(LOOK_UP_WAIT, self.nodes.look_ups.acquire()).await;
            let Ok(Ok(_turn)) = turn else {
                return Err(Some(busy()));
            };
            self.refresh(fleet, id).await.map_err(Some)?;
            if self.in_table(id).is_some() {
                return Err(None);
            }
            Ok(self.clock.now())
        };
        match unknown.get_or_insert_async(id, question).await {
            Ok(_) | Err(None) => Ok(()),
            Err(Some(error)) => Err(error),
        }
    }

    /// Follows what other nodes do, for ever; returns at once where there are none. What is no session
    /// is handed on.
    pub async fn follow(&self, on_record: &OnRecord) {
        let Some(fleet) = self.store.fleet() else {
            return;
        };
        let mut ticks = interval(ASK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _time = ticks.tick() => {}
                () = fleet.announced() => sleep(GATHER).await,
            }
            loop {
                match self.catch_up(fleet, on_record).await {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        tracing::debug!(%error, "what other nodes changed is not known");
                        break;
                    }
                }
            }
            if self.is_due() {
                self.cut_expired();
            }
        }
    }

    /// Tells whether what is done twice a second is to be done, which looks at every session.
    fn is_due(&self) -> bool {
        let now = self.clock.now();
        let mut standing = lock(&self.nodes.standing);
        let is_due = |at| now.saturating_duration_since(at) >= ASK_EVERY;
        let is_due = standing.swept.is_none_or(is_due);
        if is_due {
            standing.swept = Some(now);
        }
        is_due
    }

    /// Takes in what changed since the last time. Tells whether there is more.
    ///
    /// # Errors
    /// [`Error::Store`]: the next time asks for the same.
    pub(super) async fn catch_up(
        &self,
        fleet: &dyn Fleet,
        on_record: &OnRecord,
    ) -> Result<bool, Error> {
        let asked = self.clock.now();
        let mark = lock(&self.nodes.standing).mark.clone();
        let news = fleet.changes(mark).await.map_err(Error::Store)?;
        if news.changes.contains(&Change::Everything) {
            self.reload(fleet, on_record).await?;
        } else {
            // What changed often is read once.
            let (mut ids, mut records) = (HashSet::new(), HashSet::new());
            for change in news.changes {
                match change {
                    Change::Session(id) => drop(ids.insert(id)),
                    Change::Record(key) => drop(records.insert(key)),
                    Change::Gone(id) => {
                        // First, and also where it is not in the table: it may be about to enter it.
                        self.nodes.bury(&id);
                        self.lose(&id);
                    }
                    Change::Everything => {}
                }
            }
            // First: a session may be of a tenant that was made or enabled just before it.
            for key in records {
                on_record(Some(key)).await.map_err(Error::Store)?;
            }
            let ids = ids.into_iter().filter(|id| !self.nodes.is_gone(id));
            self.refresh_all(fleet, ids).await?;
        }
        if news.is_partial {
            lock(&self.nodes.standing).mark = Some(news.mark);
        } else {
            self.nodes.set_known(news.mark, asked);
            self.hear(fleet, asked).await?;
        }
        Ok(news.is_partial)
    }

    /// Tells whether what is known here may be gone by: what other nodes change is heard.
    ///
    /// # Errors
    /// [`Error::Store`] where there was no word for longer than `store.max_stale_ms`.
    pub fn knows(&self) -> Result<(), Error> {
        if self.is_stale() {
            let cause = store::Error::unavailable("no word from the store for too long");
            return Err(Error::Store(cause));
        }
        Ok(())
    }

    /// Tells whether the store has been silent for longer than sessions may be served.
    pub fn is_stale(&self) -> bool {
        if self.store.fleet().is_none() {
            return false;
        }
        let fresh = lock(&self.nodes.standing).fresh;
        let age = |fresh| self.clock.now().saturating_duration_since(fresh);
        fresh.is_none_or(|fresh| age(fresh) > self.nodes.max_stale)
    }

    /// Tells whether a session that has been idle for too long may be ended for all nodes: none of
    /// them told of a later use, although each had the time.
    pub(super) fn may_end(&self, handle: &SessionHandle) -> bool {
        if self.store.fleet().is_none() || handle.life.is_at_end() {
            return true;
        }
        let heard = lock(&self.nodes.standing).heard;
        let since = heard.map(|heard| self.clock.now().saturating_duration_since(heard));
        since.is_some_and(|since| handle.life.overdue() >= since + GRACE)
    }

    /// Tells the store of uses that others must know soon, and asks for those that they made.
    async fn hear(&self, fleet: &dyn Fleet, asked: Instant) -> Result<(), Error> {
        let heard = lock(&self.nodes.standing).heard;
        if heard.is_some_and(|heard| asked.saturating_duration_since(heard) < ASK_EVERY) {
            return Ok(());
        }
        let asked = self.clock.now();
        let all = self.all().into_iter().filter(|handle| !handle.is_cut());
        let late: Vec<_> = all
            .filter(|handle| handle.life.left_as_noted() <= 2 * LOOK_AHEAD)
            .collect();
        if !late.is_empty() {
            self.note(&late, Life::unnoted).await;
            let asks = |handle: &&Arc<SessionHandle>| {
                handle.life.left(false) <= LOOK_AHEAD && !handle.life.is_at_end()
            };
            let late: Vec<_> = late.iter().filter(asks).collect();
            let keys = late.iter().map(|own| row_key(&own.tenant, &own.id));
            let uses = fleet
                .last_used(keys.collect())
                .await
                .map_err(Error::Store)?;
            for (handle, last_used) in late.into_iter().zip(uses) {
                match last_used {
                    Some(last_used) => handle.life.hear(self.idle_since(last_used)),
                    None => self.refresh(fleet, &handle.id).await?,
                }
            }
        }
        lock(&self.nodes.standing).heard = Some(asked);
        Ok(())
    }
}
