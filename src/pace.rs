//! How fast something may be asked for: a bucket of tokens without a timer.
//!
//! Time is passed in, and only requests look at it. It must never be shared by two who are not to
//! slow each other down. Called for the requests of a session, of a tenant, and of an account.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A bucket of tokens that fills with time, by the time at which it would be full again (the generic
/// cell rate algorithm). It asks no timer: only requests look at it.
#[derive(Debug)]
pub struct Pace {
    /// How long one token takes.
    interval: Duration,
    /// How far ahead of its time the bucket may be drawn on.
    ahead: Duration,
    full_at: Mutex<Instant>,
}

impl Pace {
    /// Starts full: so many tokens a second, and so many at once.
    pub fn new(per_second: u32, burst: u32) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self {
            interval,
            ahead: interval.saturating_mul(burst.saturating_sub(1)),
            full_at: Mutex::new(Instant::now()),
        }
    }

    /// Starts full: so many tokens a minute, all of which may be taken at once.
    pub fn per_minute(tokens: u32) -> Self {
        let interval = Duration::from_mins(1) / tokens.max(1);
        Self {
            interval,
            ahead: interval.saturating_mul(tokens.saturating_sub(1)),
            full_at: Mutex::new(Instant::now()),
        }
    }

    /// Takes a token.
    ///
    /// # Errors
    /// How long it is until there is one again.
    pub fn take(&self, now: Instant) -> Result<(), Duration> {
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let owed = full_at.saturating_duration_since(now);
        if owed > self.ahead {
            return Err(owed.saturating_sub(self.ahead));
        }
        *full_at = now + owed + self.interval;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_s_tokens_may_be_taken_at_once() {
        let (pace, start) = (Pace::per_minute(2), Instant::now());
        *pace.full_at.lock().unwrap() = start;
        assert_eq!(pace.take(start), Ok(()));
        assert_eq!(pace.take(start), Ok(()));
        assert_eq!(pace.take(start), Err(Duration::from_secs(30)));
        assert_eq!(pace.take(start + Duration::from_secs(30)), Ok(()));
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let pace = Pace::new(10, 3);
        let at = |millis| start + Duration::from_millis(millis);
        *pace.full_at.lock().unwrap() = start;
        for (millis, expected) in [
            (0, Ok(())),
            (0, Ok(())),
            (0, Ok(())),
            (0, Err(Duration::from_millis(100))),
            (40, Err(Duration::from_millis(60))),
            (100, Ok(())),
            (150, Err(Duration::from_millis(50))),
            // Full again, and no fuller.
            (5_000, Ok(())),
            (5_000, Ok(())),
            (5_000, Ok(())),
            (5_000, Err(Duration::from_millis(100))),
        ] {
            assert_eq!(pace.take(at(millis)), expected, "{millis} ms");
        }
    }
}
