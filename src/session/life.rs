//! How long a session lives: after its last use, and after its creation.
//!
//! Whoever asks whether a session is over asks here, without a lock. Time is read from a [`Clock`],
//! which tests can move; nothing here sleeps or has a timer. Called by the handle.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Tells the time.
#[cfg(not(test))]
#[derive(Clone, Debug, Default)]
pub(super) struct Clock(());

#[cfg(not(test))]
impl Clock {
    #[expect(clippy::unused_self, reason = "the clock of the tests has a state")]
    pub(super) fn now(&self) -> Instant {
        Instant::now()
    }
}

/// Stands still until a test moves it, for all who hold a clone.
#[cfg(test)]
#[derive(Clone, Debug)]
pub(super) struct Clock {
    base: Instant,
    ahead: std::sync::Arc<AtomicU64>,
}

#[cfg(test)]
impl Default for Clock {
    fn default() -> Self {
        Self {
            base: Instant::now(),
            ahead: std::sync::Arc::default(),
        }
    }
}

#[cfg(test)]
impl Clock {
    pub(super) fn now(&self) -> Instant {
        self.base + Duration::from_millis(self.ahead.load(Ordering::SeqCst))
    }

    /// Moves the time forward.
    pub(super) fn advance(&self, by: Duration) {
        self.ahead.fetch_add(millis(by), Ordering::SeqCst);
    }
}

/// How much younger than the one the store knows a use is at least when it is noted, in
/// milliseconds.
const LEAST_NEWS: u64 = 1000;

/// The two lifetimes of a session, in milliseconds.
#[derive(Debug)]
pub(super) struct Life {
    clock: Clock,
    /// When this process began to count, and how old the session was then.
    since: Instant,
    before: u64,
    /// An age.
    last_used: AtomicU64,
    /// The last use that the store knows of.
    noted: AtomicU64,
    ttl: AtomicU64,
    max_lifetime: AtomicU64,
}

impl Life {
    /// Begins now.
    pub(super) fn new(clock: Clock, ttl: Duration, max_lifetime: Duration) -> Self {
        Self::resumed(clock, (ttl, max_lifetime), (Duration::ZERO, Duration::ZERO))
    }

    /// Goes on with a session of an age, after a time without use; a use before the birth or after
    /// now counts as one at either of these.
    pub(super) fn resumed(
        clock: Clock,
        (ttl, max_lifetime): (Duration, Duration),
        (age, idle): (Duration, Duration),
    ) -> Self {
        let last_used = millis(age.saturating_sub(idle));
        Self {
            since: clock.now(),
            before: millis(age),
            clock,
            last_used: AtomicU64::new(last_used),
            noted: AtomicU64::new(last_used),
            ttl: AtomicU64::new(millis(ttl)),
            max_lifetime: AtomicU64::new(millis(max_lifetime)),
        }
    }

    /// Returns the time since the last use.
    pub(super) fn idle(&self) -> Duration {
        let last_used = self.last_used.load(Ordering::Acquire);
        Duration::from_millis(self.age().saturating_sub(last_used))
    }

    /// Returns the last use, as an age, where the store ought to be told of it: once it is a
    /// twentieth of the lifetime younger than the one that was noted, and a second at least.
    pub(super) fn to_note(&self) -> Option<u64> {
        let last_used = self.last_used.load(Ordering::Acquire);
        let news = last_used.saturating_sub(self.noted.load(Ordering::Acquire));
        let ttl = self.ttl.load(Ordering::Acquire);
        (news >= (ttl / 20).max(LEAST_NEWS)).then_some(last_used)
    }

    /// Notes that the store knows of a use.
    pub(super) fn set_noted(&self, last_used: u64) {
        self.noted.fetch_max(last_used, Ordering::AcqRel);
    }

    /// Returns the last use, as an age, where the store does not know of it.
    pub(super) fn unnoted(&self) -> Option<u64> {
        let last_used = self.last_used.load(Ordering::Acquire);
        (last_used > self.noted.load(Ordering::Acquire)).then_some(last_used)
    }

    /// Takes over a use that was made elsewhere, so long ago, and that the store knows of.
    pub(super) fn hear(&self, idle: Duration) {
        let last_used = self.age().saturating_sub(millis(idle));
        self.last_used.fetch_max(last_used, Ordering::AcqRel);
        self.noted.fetch_max(last_used, Ordering::AcqRel);
    }

    /// Tells whether the longer lifetime is over.
    pub(super) fn is_at_end(&self) -> bool {
        self.age() >= self.max_lifetime.load(Ordering::Acquire)
    }

    /// Returns for how long the session has been idle beyond what it may be.
    pub(super) fn overdue(&self) -> Duration {
        let ttl = Duration::from_millis(self.ttl.load(Ordering::Acquire));
        self.idle().saturating_sub(ttl)
    }

    /// Returns what is left by the last use that the store knows of: what other nodes go by.
    pub(super) fn left_as_noted(&self) -> Duration {
        let idle = self
            .age()
            .saturating_sub(self.noted.load(Ordering::Acquire));
        Duration::from_millis(self.ttl.load(Ordering::Acquire).saturating_sub(idle))
    }

    /// Starts the lifetime after the last use anew.
    pub(super) fn renew(&self) {
        self.last_used.fetch_max(self.age(), Ordering::Release);
    }

    /// Notes a use that was so long ago.
    pub(super) fn used(&self, idle: Duration) {
        let then = self.age().saturating_sub(millis(idle));
        self.last_used.fetch_max(then, Ordering::Release);
    }

    /// Changes both lifetimes and starts the first one anew: before it changes, so that nobody
    /// measures the old idleness by the new lifetime.
    pub(super) fn change(&self, ttl: Duration, max_lifetime: Duration) {
        self.renew();
        self.max_lifetime
            .store(millis(max_lifetime), Ordering::Release);
        self.ttl.store(millis(ttl), Ordering::Release);
    }

    /// Returns what is left if nothing happens. What is in use is not idle.
    pub(super) fn left(&self, in_use: bool) -> Duration {
        self.left_with(in_use, Duration::ZERO)
    }

    /// The same where a use may become known so much later.
    pub(super) fn left_with(&self, in_use: bool, slack: Duration) -> Duration {
        let ttl = self.ttl.load(Ordering::Acquire);
        let ttl = ttl.saturating_add(millis(slack));
        let last_used = self.last_used.load(Ordering::Acquire);
        let age = self.age();
        let idle = if in_use {
            0
        } else {
            age.saturating_sub(last_used)
        };
        let until_the_end = self
            .max_lifetime
            .load(Ordering::Acquire)
            .saturating_sub(age);
        Duration::from_millis(ttl.saturating_sub(idle).min(until_the_end))
    }

    fn age(&self) -> u64 {
        let here = self.clock.now().saturating_duration_since(self.since);
        self.before.saturating_add(millis(here))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);
    const TICK: Duration = Duration::from_millis(1);
    const NEARLY: Duration = Duration::from_millis(59_999);

    #[test]
    fn use_renews_one_lifetime_and_not_the_other() {
        let clock = Clock::default();
        let life = Life::new(clock.clone(), MINUTE, 3 * MINUTE);
        assert_eq!(life.left(false), MINUTE);
        clock.advance(NEARLY);
        assert_eq!(life.left(false), TICK);
        assert_eq!(life.left(true), MINUTE, "what is in use is not idle");
        life.renew();
        assert_eq!(life.left(false), MINUTE);
        clock.advance(MINUTE);
        assert_eq!(life.left(false), Duration::ZERO);
        life.renew();
        assert_eq!(life.left(false), MINUTE);
        clock.advance(MINUTE / 2);
        life.renew();
        assert_eq!(life.left(false), MINUTE / 2 + TICK, "as old as it may get");
        assert_eq!(life.left(true), MINUTE / 2 + TICK);
        clock.advance(MINUTE / 2 + TICK);
        life.renew();
        assert_eq!(life.left(true), Duration::ZERO);
    }

    #[test]
    fn a_change_starts_the_lifetime_anew_and_keeps_the_age() {
        let clock = Clock::default();
        let life = Life::new(clock.clone(), 10 * MINUTE, 20 * MINUTE);
        clock.advance(5 * MINUTE);
        // Idle for longer than the new lifetime: that was allowed until now.
        life.change(MINUTE, 20 * MINUTE);
        assert_eq!(life.left(false), MINUTE);
        life.change(MINUTE, 5 * MINUTE);
        assert_eq!(life.left(false), Duration::ZERO);
        life.change(2 * MINUTE, 6 * MINUTE);
        assert_eq!(life.left(false), MINUTE);
    }

    #[test]
    fn a_life_goes_on_where_it_was_left() {
        let clock = Clock::default();
        let lifetimes = (2 * MINUTE, 10 * MINUTE);
        let resumed = |age, idle| Life::resumed(clock.clone(), lifetimes, (age, idle));
        for (age, idle, left) in [
            (MINUTE, Duration::ZERO, 2 * MINUTE),
            (5 * MINUTE, MINUTE, MINUTE),
            (9 * MINUTE, Duration::ZERO, MINUTE),
            (5 * MINUTE, 2 * MINUTE, Duration::ZERO),
            (10 * MINUTE, Duration::ZERO, Duration::ZERO),
            // Longer without use than it is old: since its birth.
            (MINUTE, 5 * MINUTE, MINUTE),
        ] {
            assert_eq!(resumed(age, idle).left(false), left, "{age:?} {idle:?}");
        }
        let life = resumed(5 * MINUTE, MINUTE);
        clock.advance(MINUTE / 2);
        assert_eq!(
            (life.idle(), life.left(false)),
            (3 * MINUTE / 2, MINUTE / 2)
        );
        life.renew();
        assert_eq!(
            (life.idle(), life.left(false)),
            (Duration::ZERO, 2 * MINUTE)
        );
    }

    #[test]
    fn a_use_is_worth_a_note_when_it_is_a_twentieth_younger() {
        let clock = Clock::default();
        for (ttl, step) in [
            (MINUTE, Duration::from_secs(3)),
            (20 * MINUTE, MINUTE),
            (TICK, Duration::from_secs(1)),
        ] {
            let life = Life::new(clock.clone(), ttl, 100 * MINUTE);
            let before = step.checked_sub(TICK).unwrap();
            assert_eq!((life.to_note(), life.unnoted()), (None, None));
            clock.advance(before);
            life.renew();
            assert_eq!(life.to_note(), None);
            assert_eq!(life.unnoted(), Some(millis(before)));
            clock.advance(TICK);
            assert_eq!(life.to_note(), None, "nothing was used since");
            life.renew();
            assert_eq!(life.to_note(), Some(millis(step)));
            life.set_noted(millis(step));
            assert_eq!((life.to_note(), life.unnoted()), (None, None));
        }
    }

    #[test]
    fn what_has_ended_is_never_less_than_nothing() {
        let clock = Clock::default();
        let life = Life::new(clock.clone(), MINUTE, MINUTE);
        clock.advance(100 * MINUTE);
        assert_eq!(life.left(false), Duration::ZERO);
        assert_eq!(life.left(true), Duration::ZERO);
    }
}
