//! Who waits for whom: streams that do not move, and connections on which nothing happens.
//!
//! A body that was asked for a frame, gave one and is not asked again waits for its receiver. hyper
//! keeps no time for that, so the task of each stream does: when neither side of the exchange has
//! moved for too long, the task ends and both streams are reset. Called by the bridge.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::rt::Executor;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::shutdown::Drain;

/// The time in which the streams are counted that a client gives up before they have an answer. Each
/// made work upstream, which a reset costs its sender nothing to waste.
const GIVEN_UP_PERIOD: Duration = Duration::from_secs(10);

tokio::task_local! {
    static PACE: Arc<Pace>;
}

/// Which body of an exchange.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    Down,
    Up,
}

/// How the two bodies of one exchange move.
#[derive(Debug)]
pub(super) struct Pace {
    start: Instant,
    /// When each body gave a frame that it was not asked beyond yet, in milliseconds from the start
    /// and one; 0 where it is the sender who is waited for.
    given: [AtomicU64; 2],
    stalled: AtomicBool,
    cut: AtomicBool,
}

impl Pace {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            given: [AtomicU64::new(0), AtomicU64::new(0)],
            stalled: AtomicBool::new(false),
            cut: AtomicBool::new(false),
        }
    }

    /// Returns the pace of the stream that this task serves.
    pub(super) fn current() -> Arc<Self> {
        PACE.try_with(Arc::clone)
            .unwrap_or_else(|_outside| Arc::new(Self::new()))
    }

    fn slot(&self, way: Way) -> &AtomicU64 {
        let [down, up] = &self.given;
        match way {
            Way::Down => down,
            Way::Up => up,
        }
    }

    /// Notes that a body was asked for a frame: its receiver has taken all before.
    pub(super) fn asked(&self, way: Way) {
        self.slot(way).store(0, Ordering::Relaxed);
    }

    /// Notes that a body gave a frame.
    pub(super) fn gave(&self, way: Way) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.slot(way)
            .store(now.saturating_add(1), Ordering::Relaxed);
    }

    /// Tells whether the exchange was ended because a receiver took nothing for too long.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed)
    }

    /// Tells whether the stream was ended because its connection was.
    pub(super) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }

    /// Waits for the end of the connection.
    async fn cut(&self, cut: &CancellationToken) {
        cut.cancelled().await;
        self.cut.store(true, Ordering::Relaxed);
    }

    /// Waits until a receiver has taken nothing for as long as the limit says.
    async fn stall(&self, limit: Duration) {
        let mut wait = limit;
        loop {
            sleep(wait).await;
            let given = self.given.iter().map(|slot| slot.load(Ordering::Relaxed));
            let Some(oldest) = given.filter(|at| *at > 0).min() else {
                wait = limit;
                continue;
            };
            let since = Duration::from_millis(oldest - 1);
            let passed = self.start.elapsed().saturating_sub(since);
            if passed >= limit {
                self.stalled.store(true, Ordering::Relaxed);
                return;
            }
            wait = limit.saturating_sub(passed);
        }
    }
}

/// Spawns the tasks of streams: they end with their connection, or when they stall. The drain waits
/// for them, and so for their records.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    cut: CancellationToken,
    stall_timeout: Duration,
    drain: Drain,
}

impl Streams {
    pub(super) fn new(cut: CancellationToken, stall_timeout: Duration, drain: Drain) -> Self {
        Self {
            cut,
            stall_timeout,
            drain,
        }
    }
}

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let (cut, stall_timeout) = (self.cut.clone(), self.stall_timeout);
        self.drain.spawn(async move {
            let pace = Arc::new(Pace::new());
            tokio::select! {
                biased;
                () = pace.cut(&cut) => {}
                () = PACE.scope(Arc::clone(&pace), stream) => {}
                () = pace.stall(stall_timeout) => {}
            }
        });
    }
}

/// How many streams of a connection are open, and since when there is none.
#[derive(Debug)]
pub(super) struct Activity {
    open: AtomicUsize,
    changed: Notify,
    /// When the last stream ended; none before the first.
    last: Mutex<Option<Instant>>,
    began: Instant,
    /// The client ended the connection.
    left: AtomicBool,
    /// How many streams the client has given up since when, before they had an answer.
    given_up: Mutex<(Instant, usize)>,
    given_up_limit: usize,
    wasted: Notify,
}

impl Activity {
    /// Starts without a stream. A client may give up so many in ten seconds.
    pub(super) fn new(given_up_limit: usize) -> Self {
        Self {
            open: AtomicUsize::new(0),
            changed: Notify::new(),
            last: Mutex::new(None),
            began: Instant::now(),
            left: AtomicBool::new(false),
            given_up: Mutex::new((Instant::now(), 0)),
            given_up_limit,
            wasted: Notify::new(),
        }
    }

    /// Notes a stream for as long as the guard lives.
    pub(super) fn enter(self: &Arc<Self>) -> Active {
        self.open.fetch_add(1, Ordering::AcqRel);
        Active(Arc::clone(self))
    }

    /// Waits until no stream was open for a time: the first one is waited for as long as `first`
    /// says, the next ones as long as `limit` says.
    pub(super) async fn idle(&self, first: Duration, limit: Duration) {
        loop {
            if self.open.load(Ordering::Acquire) > 0 {
                self.changed.notified().await;
                continue;
            }
            let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
            let deadline = last.map_or(self.began + first, |last| last + limit);
            if deadline <= Instant::now() {
                return;
            }
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep_until(deadline) => {}
            }
        }
    }

    /// Tells whether a stream is open.
    pub(super) fn is_busy(&self) -> bool {
        self.open.load(Ordering::Acquire) > 0
    }

    /// Notes that it was the client who ended the connection.
    pub(super) fn leave(&self) {
        self.left.store(true, Ordering::Relaxed);
    }

    /// Tells whether it was the client who ended the connection.
    pub(super) fn has_left(&self) -> bool {
        self.left.load(Ordering::Relaxed)
    }

    /// Notes that the client gave a stream up before there was an answer to it.
    pub(super) fn give_up(&self) {
        let now = Instant::now();
        let mut given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(given_up.0) >= GIVEN_UP_PERIOD {
            *given_up = (now, 0);
        }
        given_up.1 += 1;
        if given_up.1 > self.given_up_limit {
            self.wasted.notify_one();
        }
    }

    /// Waits until the client has given up more streams than any of good will does.
    pub(super) async fn wasted(&self) {
        self.wasted.notified().await;
    }

    /// Waits until no stream is open.
    pub(super) async fn all_ended(&self) {
        while self.open.load(Ordering::Acquire) > 0 {
            self.changed.notified().await;
        }
    }
}

/// An open stream.
#[derive(Debug)]
pub(super) struct Active(Arc<Activity>);

impl Active {
    /// Returns what all streams of the connection have in common.
    pub(super) fn activity(&self) -> &Activity {
        &self.0
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        *self.0.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.0.open.fetch_sub(1, Ordering::AcqRel);
        self.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_mins(1);
    const GIVEN_UP_LIMIT: usize = 100;

    #[tokio::test(start_paused = true)]
    async fn only_a_receiver_that_takes_nothing_stalls() {
        let pace = Arc::new(Pace::new());
        let stalls = |pace: Arc<Pace>| async move {
            tokio::time::timeout(LIMIT * 3, pace.stall(LIMIT))
                .await
                .is_ok()
        };
        assert!(!stalls(Arc::clone(&pace)).await, "the senders are silent");
        pace.gave(Way::Down);
        pace.asked(Way::Down);
        assert!(!stalls(Arc::clone(&pace)).await, "all was taken");
        pace.gave(Way::Up);
        assert!(stalls(Arc::clone(&pace)).await);
        assert!(pace.is_stalled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_may_give_up_many_streams_and_not_all() {
        let activity = Activity::new(GIVEN_UP_LIMIT);
        let wasted = || tokio::time::timeout(Duration::from_millis(1), activity.wasted());
        for _ in 0..5 {
            for _ in 0..GIVEN_UP_LIMIT {
                activity.give_up();
            }
            assert!(wasted().await.is_err(), "slow enough");
            tokio::time::advance(GIVEN_UP_PERIOD).await;
        }
        for _ in 0..=GIVEN_UP_LIMIT {
            activity.give_up();
        }
        assert!(wasted().await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_only_without_streams() {
        let activity = Arc::new(Activity::new(GIVEN_UP_LIMIT));
        let idle = |activity: Arc<Activity>| async move {
            let idle = activity.idle(Duration::from_secs(5), LIMIT);
            let begun = Instant::now();
            tokio::time::timeout(LIMIT * 10, idle)
                .await
                .is_ok()
                .then(|| begun.elapsed())
        };
        assert_eq!(
            idle(Arc::clone(&activity)).await,
            Some(Duration::from_secs(5))
        );
        let open = activity.enter();
        assert_eq!(idle(Arc::clone(&activity)).await, None);
        drop(open);
        assert_eq!(idle(Arc::clone(&activity)).await, Some(LIMIT));
    }
}
