//! A live session: the one object that tunnels, requests and the API share.
//!
//! A tunnel holds the handle and the view for its host. A request costs one atomic load of the
//! version; only when it moved is the view made again. The table makes handles, replaces what they
//! stand for and ends them; everybody else looks. Called by the proxy and the management API.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;

use super::life::Life;
use super::quota::{ExchangeGuard, Limited, Open, Turn};
use super::record::millis;
use super::spec::{Form, Spec};
use super::view::{HostView, SessionView};
use crate::host::HostPort;
use crate::id::{SessionId, TenantId};
use crate::policy::{AddressRules, Denial, Grant, Scheme};
use crate::secret::Fingerprint;
use crate::serve::Seats;
use crate::tenant::Place;
use crate::upstream::Pool;

/// Counts what a session did.
#[derive(Debug, Default)]
pub struct Counters {
    /// Exchanges that were let through.
    pub exchanges: AtomicU64,
    /// Exchanges and tunnels that policy refused.
    pub denied: AtomicU64,
    /// Sealed tokens that were swapped.
    pub swapped: AtomicU64,
}

/// How a session stands between two patches.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) form: Form,
    pub(super) spec: Spec,
    pub(super) view: Arc<SessionView>,
}

/// A live session.
#[derive(Debug)]
pub struct SessionHandle {
    pub(super) id: SessionId,
    pub(super) tenant: TenantId,
    /// Among the sessions of the tenant, until this one ends.
    pub(super) place: Place,
    pub(super) credential: Fingerprint,
    pub(super) created: SystemTime,
    pub(super) life: Life,
    pub(super) version: AtomicU64,
    pub(super) standing: RwLock<Arc<Standing>>,
    /// One patch or deletion at a time.
    pub(super) changing: tokio::sync::Mutex<()>,
    pub(super) cut: CancellationToken,
    pub(super) pool: Pool,
    pub(super) rules: Arc<AddressRules>,
    pub(super) open: Open,
    pub(super) counters: Counters,
}

impl SessionHandle {
    /// Returns the session's id.
    pub fn id(&self) -> &SessionId {
        &self.id
    }

    /// Returns the tenant that the session belongs to.
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// Returns the pool of the session's own upstream connections.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Returns the counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Returns the current version: one atomic load, and all that a request pays for patches.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Names the change that made the session what it is.
    pub(super) fn stamp(&self) -> (u64, u64) {
        self.standing().view.stamp()
    }

    /// Decides whether a target may be reached as the session stands now.
    ///
    /// # Errors
    /// The reason why not.
    pub fn decide(&self, target: &HostPort) -> Result<(), Denial> {
        self.standing().view.decide(target, &self.rules).map(drop)
    }

    /// Makes the view of one host as the session stands now.
    ///
    /// # Errors
    /// The reason why the host may not be reached.
    pub fn host_view(&self, target: &HostPort, scheme: Scheme) -> Result<Arc<HostView>, Denial> {
        self.standing()
            .view
            .host_view(target, scheme, &self.rules)
            .map(Arc::new)
    }

    /// Returns the seats of the connections on which the session's credential was shown.
    pub fn seats(&self) -> &Seats {
        &self.open.seats
    }

    /// Enters a tunnel to a target.
    ///
    /// # Errors
    /// [`Limited::Tunnels`].
    pub fn tunnel(self: &Arc<Self>, target: &HostPort) -> Result<TunnelGuard, Limited> {
        let cut = self.cut.child_token();
        let key = self.open.enter_tunnel(target.clone(), cut.clone())?;
        let handle = Arc::clone(self);
        Ok(TunnelGuard { handle, key, cut })
    }

    /// Waits for the turn of one exchange. It renews nothing: the exchange may still be refused.
    ///
    /// # Errors
    /// [`Limited::Exchanges`] and [`Limited::Rate`].
    pub async fn turn(&self) -> Result<Turn, Limited> {
        self.open.turn().await
    }

    /// Enters one plain request to a target.
    pub fn enter(self: &Arc<Self>, target: &HostPort) -> TunnelGuard {
        let cut = self.cut.child_token();
        let key = self.open.enter(target.clone(), cut.clone());
        TunnelGuard {
            handle: Arc::clone(self),
            key,
            cut,
        }
    }

    /// Notes an exchange in flight.
    pub fn exchange(self: &Arc<Self>) -> ExchangeGuard {
        ExchangeGuard::new(self)
    }

    /// Tells whether the session was cut or has outlived one of its two lifetimes. It then stays
    /// over, but for a patch that is at work in this moment.
    pub fn is_over(&self) -> bool {
        self.is_over_with(Duration::ZERO)
    }

    /// The same where another process may tell so much later that it was used.
    pub(super) fn is_over_with(&self, slack: Duration) -> bool {
        self.is_cut() || self.life.left_with(self.open.in_use(), slack).is_zero()
    }

    /// Returns when the session was last used, in milliseconds since 1970, by the clock that says
    /// what time it is now.
    pub(super) fn last_used(&self, now: SystemTime) -> u64 {
        let idle = u64::try_from(self.life.idle().as_millis()).unwrap_or(u64::MAX);
        millis(now).saturating_sub(idle)
    }

    pub(super) fn is_cut(&self) -> bool {
        self.cut.is_cancelled()
    }

    /// Tells whether all sessions of its tenant are cut.
    pub(super) fn is_cut_with_tenant(&self) -> bool {
        self.place.tenant().cut().is_cancelled()
    }

    /// Waits until the session is cut, for good.
    pub async fn ended(&self) {
        self.cut.cancelled().await;
    }

    /// Returns when the session was created.
    pub fn created(&self) -> SystemTime {
        self.created
    }

    /// Returns when the session expires if it is not used again.
    pub fn expires(&self) -> SystemTime {
        SystemTime::now() + self.life.left(self.open.in_use())
    }

    /// Shows a reader the session as it was asked for, values included, and what that means; both
    /// belong to one version. Nothing is copied.
    pub fn with_form<T>(&self, read: impl FnOnce(&Form, &Spec) -> T) -> T {
        let standing = self.standing();
        read(&standing.form, &standing.spec)
    }

    /// Names the tokens that were captured: what each is, and which endpoint gave it.
    pub fn captured(&self) -> Vec<Arc<str>> {
        let standing = self.standing();
        let captured = standing.view.captured.iter();
        captured.map(|sealed| Arc::clone(&sealed.name)).collect()
    }

    /// Returns how many tunnels are open.
    pub fn tunnels(&self) -> usize {
        self.open.tunnels()
    }

    /// Tells whether no tunnel is open and no exchange in flight.
    pub fn is_idle(&self) -> bool {
        self.open.tunnels() == 0 && !self.open.in_use()
    }

    pub(super) fn standing(&self) -> Arc<Standing> {
        Arc::clone(&self.standing.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts a new standing in place: the view first, then the version that announces it. One that
    /// another process was faster to replace changes nothing.
    pub(super) fn replace(&self, standing: Standing) {
        let version = standing.view.version;
        let view = Arc::clone(&standing.view);
        let lifetimes = (standing.spec.ttl, standing.spec.max_lifetime);
        {
            let standing_now = self.standing.write();
            let mut now = standing_now.unwrap_or_else(PoisonError::into_inner);
            // Of two of one version that one holds which was given last.
            if version < now.view.version || standing.view.stamp() == now.view.stamp() {
                return;
            }
            self.life.change(lifetimes.0, lifetimes.1);
            *now = Arc::new(standing);
            self.version.store(version, Ordering::Release);
        }
        let cut = self.open.cut_unless(|target, is_spliced| {
            let grant = view.decide(target, &self.rules);
            grant.is_ok() && (!is_spliced || view.splice(target, &self.rules).is_some())
        });
        tracing::debug!(session = %self.id, cut, "session patched");
    }

    /// Cuts all that is open; the session itself lives on.
    pub(super) fn cut_open(&self) {
        self.open.cut_unless(|_, _| false);
    }

    /// Cuts all that is open, for good. Tells whether this is the first time.
    pub(super) fn end(&self) -> bool {
        // Who is first is settled before anybody can see that it was cut.
        let is_first = self.place.leave();
        self.cut.cancel();
        self.open.seats.end();
        self.pool.close();
        is_first
    }
}

/// An open tunnel of a session: told when it must end, and taken out of the list when dropped.
#[derive(Debug)]
pub struct TunnelGuard {
    handle: Arc<SessionHandle>,
    key: u64,
    cut: CancellationToken,
}

impl TunnelGuard {
    /// Returns the session.
    pub fn handle(&self) -> &Arc<SessionHandle> {
        &self.handle
    }

    /// Asks whether the tunnel to this target is to be passed through unread, as the session stands
    /// now. After a yes, a patch that takes the host from those cuts it.
    pub fn splice(&self, target: &HostPort) -> Option<Grant> {
        // Noted first: a patch looks for notes after its view is in place, so that one of the two
        // sees the other.
        self.handle.open.set_spliced(self.key, true);
        let view = Arc::clone(&self.handle.standing().view);
        let grant = view.splice(target, &self.handle.rules);
        if grant.is_none() {
            self.handle.open.set_spliced(self.key, false);
        }
        grant
    }

    /// Waits until the tunnel must end: its session ended, or its host left the policy.
    pub async fn cut(&self) {
        self.cut.cancelled().await;
    }
}

impl Drop for TunnelGuard {
    fn drop(&mut self) {
        self.handle.open.leave(self.key);
    }
}
