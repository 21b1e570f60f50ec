//! A live tenant: what its sessions hold, and what counts them.
//!
//! Every session holds a [`Place`], which comes back when it ends, and a child of the tenant's cut:
//! one call cuts all of them, those included that are being made. No count is shared with another
//! tenant. Called by the table, by `session` and by `web`.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio_util::sync::CancellationToken;

use super::record::Limits;
use crate::id::TenantId;
use crate::pace::Pace;
use crate::secret::Fingerprint;

/// A tenant as it stands.
#[derive(Debug)]
pub struct Tenant {
    id: TenantId,
    created: SystemTime,
    cut: CancellationToken,
    is_lost: AtomicBool,
    sessions: AtomicUsize,
    bounds: Mutex<Bounds>,
}

#[derive(Debug)]
struct Bounds {
    limits: Limits,
    pace: Option<Pace>,
}

impl Tenant {
    pub(super) fn new(id: TenantId, created: SystemTime, limits: Limits, burst: u32) -> Self {
        Self {
            id,
            created,
            cut: CancellationToken::new(),
            is_lost: AtomicBool::new(false),
            sessions: AtomicUsize::new(0),
            bounds: Mutex::new(Bounds {
                limits,
                pace: pace(limits, burst),
            }),
        }
    }

    /// Returns the tenant's id.
    pub fn id(&self) -> &TenantId {
        &self.id
    }

    /// Returns when the tenant was made. A session that is older was that of another of this name.
    pub fn created(&self) -> SystemTime {
        self.created
    }

    /// Returns how many sessions live.
    pub fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Acquire)
    }

    /// Returns what the sessions of the tenant are cut by.
    pub fn cut(&self) -> &CancellationToken {
        &self.cut
    }

    /// Tells whether it was cut because the store did not have it, which nobody had said of it.
    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Acquire)
    }

    pub(super) fn lose(&self) {
        self.is_lost.store(true, Ordering::Release);
    }

    /// Takes a place for one more session; nothing where there are as many as may be. Of any number
    /// of calls at once no more succeed than there are places.
    pub fn place(self: &Arc<Self>) -> Option<Place> {
        let limit = self.lock().limits.sessions;
        let limit = limit.map_or(usize::MAX, |limit| {
            usize::try_from(limit).unwrap_or(usize::MAX)
        });
        let more = |taken: usize| (taken < limit).then(|| taken + 1);
        let counted = self
            .sessions
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        counted.is_ok().then(|| self.taken())
    }

    /// Takes a place for a session that is there already, however many there are.
    pub fn place_for_known(self: &Arc<Self>) -> Place {
        self.sessions.fetch_add(1, Ordering::AcqRel);
        self.taken()
    }

    /// Counts one request to the management API.
    ///
    /// # Errors
    /// How long the tenant is to wait: its requests come too fast.
    pub fn request(&self, now: Instant) -> Result<(), Duration> {
        self.lock()
            .pace
            .as_ref()
            .map_or(Ok(()), |pace| pace.take(now))
    }

    pub(super) fn limit(&self, limits: Limits, burst: u32) {
        let mut bounds = self.lock();
        if bounds.limits.requests_per_second != limits.requests_per_second {
            bounds.pace = pace(limits, burst);
        }
        bounds.limits = limits;
    }

    fn taken(self: &Arc<Self>) -> Place {
        Place {
            tenant: Arc::clone(self),
            is_held: AtomicBool::new(true),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Bounds> {
        self.bounds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pace(limits: Limits, burst: u32) -> Option<Pace> {
    let rate = limits.requests_per_second?;
    Some(Pace::new(rate, burst))
}

/// Who showed an API key, and the key: what it was worth when it was looked for.
#[derive(Clone, Debug)]
pub struct Holder {
    pub(super) tenant: Arc<Tenant>,
    pub(super) key: Fingerprint,
}

impl Holder {
    /// Returns the tenant.
    pub fn tenant(&self) -> &Arc<Tenant> {
        &self.tenant
    }
}

/// The place of one session among those of its tenant: given back when it ends, at the latest when
/// this is dropped.
#[derive(Debug)]
pub struct Place {
    tenant: Arc<Tenant>,
    is_held: AtomicBool,
}

impl Place {
    /// Returns the tenant.
    pub fn tenant(&self) -> &Arc<Tenant> {
        &self.tenant
    }

    /// Gives the place back. Only the first call does, and says so.
    pub fn leave(&self) -> bool {
        let is_first = self.is_held.swap(false, Ordering::AcqRel);
        if is_first {
            self.tenant.sessions.fetch_sub(1, Ordering::AcqRel);
        }
        is_first
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}
