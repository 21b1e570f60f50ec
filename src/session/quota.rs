//! What a session has open, and how much of it there may be: connections, tunnels that can be cut
//! one by one, exchanges in flight, and requests in a time.
//!
//! Every entry is a guard that takes itself out when dropped, so that a panic or a cut gives back
//! what was taken. What is over a quota is the business of that session alone: no count here is
//! shared with another. Called by the live session.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::handle::SessionHandle;
use crate::host::HostPort;
use crate::pace::Pace;
use crate::serve::Seats;

/// How much one session may have open.
#[derive(Clone, Copy, Debug)]
pub struct Quotas {
    /// Connections on which its credential was the last that was shown.
    pub connections: usize,
    /// Tunnels.
    pub tunnels: usize,
    /// Exchanges in flight.
    pub exchanges: usize,
    /// How long an exchange waits for another to end.
    pub wait: Duration,
    /// Requests a second in the long run; none for any number.
    pub requests_per_second: Option<u32>,
    /// Requests at once, where their rate is limited.
    pub burst: u32,
    /// Upstream connections that are kept.
    pub pool: usize,
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            connections: 512,
            tunnels: 256,
            exchanges: 64,
            wait: Duration::from_secs(5),
            requests_per_second: None,
            burst: 200,
            pool: 128,
        }
    }
}

/// Says which of a session's quotas is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Limited {
    /// As many exchanges are in flight as may be, and none ended in time.
    #[error("the session has too many exchanges in flight")]
    Exchanges,
    /// Requests come too fast; the next is taken after this time.
    #[error("the session sends requests too fast")]
    Rate(Duration),
    /// As many tunnels are open as may be.
    #[error("the session has too many open tunnels")]
    Tunnels,
}

/// A place among the exchanges of a session that are in flight; free again when dropped.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "held to be dropped")] OwnedSemaphorePermit);

/// The open tunnels and exchanges of one session.
#[derive(Debug)]
pub(super) struct Open {
    next: AtomicU64,
    tunnels: Mutex<HashMap<u64, Tunnel>>,
    exchanges: AtomicU64,
    pub(super) seats: Seats,
    quotas: Quotas,
    turns: Arc<Semaphore>,
    pace: Option<Pace>,
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
    pub(super) fn new(quotas: Quotas) -> Self {
        Self {
            next: AtomicU64::new(0),
            tunnels: Mutex::default(),
            exchanges: AtomicU64::new(0),
            seats: Seats::new(quotas.connections),
            turns: Arc::new(Semaphore::new(quotas.exchanges)),
            pace: quotas
                .requests_per_second
                .map(|rate| Pace::new(rate, quotas.burst)),
            quotas,
        }
    }

    /// Enters a tunnel as [`Self::enter`] does, unless as many are open as may be.
    pub(super) fn enter_tunnel(
        &self,
        target: HostPort,
        cut: CancellationToken,
    ) -> Result<u64, Limited> {
        let mut tunnels = self.lock();
        // Plain requests stand in the same list, and are few where exchanges are.
        if tunnels.len() >= self.quotas.tunnels {
            return Err(Limited::Tunnels);
        }
        Ok(self.insert(&mut tunnels, target, cut))
    }

    /// Waits for the turn of one exchange. Those that wait are served in their order.
    pub(super) async fn turn(&self) -> Result<Turn, Limited> {
        if let Some(pace) = &self.pace {
            pace.take(Instant::now()).map_err(Limited::Rate)?;
        }
        let turns = Arc::clone(&self.turns);
        if let Ok(turn) = Arc::clone(&turns).try_acquire_owned() {
            return Ok(Turn(turn));
        }
        match timeout(self.quotas.wait, turns.acquire_owned()).await {
            Ok(Ok(turn)) => Ok(Turn(turn)),
            Ok(Err(_)) | Err(_) => Err(Limited::Exchanges),
        }
    }

    /// Enters a tunnel to a target. It ends when the session's or its own token is cancelled.
    pub(super) fn enter(&self, target: HostPort, cut: CancellationToken) -> u64 {
        self.insert(&mut self.lock(), target, cut)
    }

    fn insert(
        &self,
        tunnels: &mut HashMap<u64, Tunnel>,
        target: HostPort,
        cut: CancellationToken,
    ) -> u64 {
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        let tunnel = Tunnel {
            target,
            is_spliced: false,
            cut,
        };
        tunnels.insert(key, tunnel);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> HostPort {
        HostPort::parse("api.example.com:443").unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn exchanges_over_the_quota_wait_in_their_order_and_not_for_ever() {
        let quotas = Quotas {
            exchanges: 1,
            ..Quotas::default()
        };
        let open = Open::new(quotas);
        let first = open.turn().await.unwrap();
        let (mut second, mut third) = (Box::pin(open.turn()), Box::pin(open.turn()));
        assert!(futures_ready(second.as_mut()).await.is_none());
        assert!(futures_ready(third.as_mut()).await.is_none());
        drop(first);
        assert!(
            futures_ready(third.as_mut()).await.is_none(),
            "not its turn"
        );
        let turn = second.await.unwrap();
        // The clock stands still but for this wait.
        assert_eq!(third.await.unwrap_err(), Limited::Exchanges);
        drop(turn);
        open.turn().await.unwrap();
    }

    async fn futures_ready<T>(
        mut future: std::pin::Pin<&mut impl Future<Output = T>>,
    ) -> Option<T> {
        std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
            std::task::Poll::Ready(value) => std::task::Poll::Ready(Some(value)),
            std::task::Poll::Pending => std::task::Poll::Ready(None),
        })
        .await
    }

    #[test]
    fn tunnels_over_the_quota_are_refused_until_one_ends() {
        let quotas = Quotas {
            tunnels: 2,
            ..Quotas::default()
        };
        let open = Open::new(quotas);
        let enter = || open.enter_tunnel(target(), CancellationToken::new());
        let first = enter().unwrap();
        enter().unwrap();
        assert_eq!(enter(), Err(Limited::Tunnels));
        open.leave(first);
        enter().unwrap();
        assert_eq!(enter(), Err(Limited::Tunnels));
    }
}
