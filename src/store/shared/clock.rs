//! The clock of the server, which all nodes go by.
//!
//! It is what the server said last and what has passed here since: a step of the clock of this
//! machine must change nothing. Called by the store.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Tells the server's time.
#[derive(Debug, Default)]
pub(super) struct ServerClock(Mutex<Option<(Instant, SystemTime)>>);

impl ServerClock {
    /// Takes what the server says, in milliseconds since 1970.
    pub(super) fn set(&self, said: u64) {
        self.set_at(Instant::now(), said);
    }

    fn set_at(&self, heard: Instant, said: u64) {
        let said = UNIX_EPOCH.checked_add(Duration::from_millis(said));
        let mut clock = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *clock = said.map(|said| (heard, said));
    }

    /// Returns the time, that of this machine where the server has told none.
    pub(super) fn now(&self) -> SystemTime {
        self.at(Instant::now())
    }

    fn at(&self, now: Instant) -> SystemTime {
        let clock = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let theirs = clock.and_then(|(heard, said)| {
            let since = now.saturating_duration_since(heard);
            said.checked_add(since)
        });
        theirs.unwrap_or_else(SystemTime::now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_from_what_the_server_said() {
        let clock = ServerClock::default();
        let heard = Instant::now();
        let second = Duration::from_secs(1);
        // Long ago and far ahead: nothing of this machine's clock is in it.
        for said in [1_000_000, 99_000_000_000_000] {
            clock.set_at(heard, said);
            let theirs = UNIX_EPOCH + Duration::from_millis(said);
            assert_eq!(clock.at(heard), theirs);
            assert_eq!(clock.at(heard + second), theirs + second);
        }
        clock.set(5_000);
        let now = clock.now();
        assert!(now >= UNIX_EPOCH + 5 * second);
        assert!(now < UNIX_EPOCH + Duration::from_hours(1), "{now:?}");
    }
}
