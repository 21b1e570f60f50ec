//! The memory that bodies of requests may take: all together, and those of one account.
//!
//! A body is read whole before it is sent, and written out beside its head, so that it counts twice.
//! Whoever finds no room is told so at once and waits nowhere. Called before a body is read.

use std::sync::Arc;

use quick_cache::sync::Cache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::id::AccountId;
use crate::web::ModelFailure;

/// What one permit stands for, in bytes.
const STEP_BYTES: usize = 1024;
/// What all bodies may take together, in bytes.
const ALL_BYTES: usize = 1 << 30;
/// What the bodies of one account may take, in bytes: four of the longest at once.
const ACCOUNT_BYTES: usize = 256 << 20;
/// How many accounts are kept; one that is forgotten starts anew.
const ACCOUNTS: usize = 10_000;

/// The room there is.
#[derive(Debug)]
pub(super) struct Room {
    all: Arc<Semaphore>,
    accounts: Cache<AccountId, Arc<Semaphore>>,
}

/// What one body takes; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    _all: OwnedSemaphorePermit,
    _account: OwnedSemaphorePermit,
}

impl Room {
    pub(super) fn new() -> Self {
        Self {
            all: Arc::new(Semaphore::new(ALL_BYTES / STEP_BYTES)),
            accounts: Cache::new(ACCOUNTS),
        }
    }

    /// Takes room for a body of an account's.
    ///
    /// # Errors
    /// [`ModelFailure::NoRoom`].
    pub(super) fn take(&self, account: &AccountId, bytes: usize) -> Result<Held, ModelFailure> {
        let fresh = || {
            let own = Semaphore::new(ACCOUNT_BYTES / STEP_BYTES);
            Ok::<_, std::convert::Infallible>(Arc::new(own))
        };
        let Ok(account) = self.accounts.get_or_insert_with(account, fresh);
        let steps = bytes.saturating_mul(2).div_ceil(STEP_BYTES);
        let steps = u32::try_from(steps).unwrap_or(u32::MAX);
        let take = |from: Arc<Semaphore>| {
            let taken = from.try_acquire_many_owned(steps);
            taken.map_err(|_full| ModelFailure::NoRoom)
        };
        Ok(Held {
            _account: take(account)?,
            _all: take(Arc::clone(&self.all))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: usize = 32 * 1024 * 1024;

    fn account(number: usize) -> AccountId {
        AccountId::parse(&number.to_string()).unwrap()
    }

    #[test]
    fn one_account_has_its_part_and_all_have_the_whole() {
        let room = Room::new();
        let mut held = Vec::new();
        for number in 1..=4 {
            for _ in 0..4 {
                held.push(room.take(&account(number), LONGEST).unwrap());
            }
            let refused = room.take(&account(number), 1);
            assert!(matches!(refused, Err(ModelFailure::NoRoom)), "{number}");
        }
        assert!(room.take(&account(5), 1).is_err(), "all is taken");
        held.pop();
        held.push(room.take(&account(5), LONGEST - STEP_BYTES).unwrap());
        assert!(room.take(&account(4), STEP_BYTES).is_ok());
        // Who was refused holds nothing.
        held.clear();
        assert_eq!(room.all.available_permits(), ALL_BYTES / STEP_BYTES);
        for number in 1..=5 {
            let own = room.accounts.get(&account(number)).unwrap();
            assert_eq!(own.available_permits(), ACCOUNT_BYTES / STEP_BYTES);
        }
    }
}
