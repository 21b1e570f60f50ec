//! What a session has open: tunnels that can be cut one by one, and exchanges in flight.
//!
//! Every entry is a guard that takes itself out when dropped, so that a panic or a cut gives back
//! what was taken. Called by the live session.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use super::handle::SessionHandle;
use crate::host::HostPort;

/// The open tunnels and exchanges of one session.
#[derive(Debug, Default)]
pub(super) struct Open {
    next: AtomicU64,
    tunnels: Mutex<HashMap<u64, Tunnel>>,
    exchanges: AtomicU64,
}

/// One open tunnel.
#[derive(Debug)]
struct Tunnel {
    target: HostPort,
    /// Passed through unread, so that no request of it asks the policy again.
    is_spliced: bool,
    cut: CancellationToken,
}

impl Open {
    /// Enters a tunnel to a target. It ends when the session's or its own token is cancelled.
    pub(super) fn enter(&self, target: HostPort, cut: CancellationToken) -> u64 {
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        let tunnel = Tunnel {
            target,
            is_spliced: false,
            cut,
        };
        self.lock().insert(key, tunnel);
        key
    }

    /// Notes whether a tunnel is passed through unread.
    pub(super) fn set_spliced(&self, key: u64, is_spliced: bool) {
        if let Some(tunnel) = self.lock().get_mut(&key) {
            tunnel.is_spliced = is_spliced;
        }
    }

    pub(super) fn leave(&self, key: u64) {
        self.lock().remove(&key);
    }

    /// Cuts the tunnels whose target fails the test, which is told whether they are passed through
    /// unread. Returns how many.
    pub(super) fn cut_unless(&self, allowed: impl Fn(&HostPort, bool) -> bool) -> usize {
        let tunnels = self.lock();
        let all = tunnels.values();
        let lost = all.filter(|tunnel| !allowed(&tunnel.target, tunnel.is_spliced));
        lost.map(|tunnel| tunnel.cut.cancel()).count()
    }

    pub(super) fn tunnels(&self) -> usize {
        self.lock().len()
    }

    /// Tells whether an exchange is in flight.
    pub(super) fn in_use(&self) -> bool {
        self.exchanges.load(Ordering::Acquire) > 0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Tunnel>> {
        self.tunnels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An exchange in flight: keeps its session from expiring for want of use.
#[derive(Debug)]
pub struct ExchangeGuard(Option<Arc<SessionHandle>>);

impl ExchangeGuard {
    pub(super) fn new(handle: &Arc<SessionHandle>) -> Self {
        // A session that is over waits for the sweeper; a late request must not bring it back.
        let counts = !handle.is_over();
        Self(counts.then(|| {
            handle.life.renew();
            handle.open.exchanges.fetch_add(1, Ordering::AcqRel);
            Arc::clone(handle)
        }))
    }
}

impl Drop for ExchangeGuard {
    fn drop(&mut self) {
        if let Some(handle) = &self.0 {
            // In this order: between the two the session must not look as if it had been idle.
            handle.life.renew();
            handle.open.exchanges.fetch_sub(1, Ordering::AcqRel);
        }
    }
}
