//! One request of an account at a time, of those of whose cost nobody knows the most.
//!
//! What such a request uses is known at its end alone, so that many at once could use many times what
//! is left; one can use too much once. Whoever comes meanwhile is told so at once and waits nowhere.
//! Called where tokens are counted against a budget.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::id::AccountId;
use crate::web::ModelFailure;

/// The accounts that have such a request under way.
#[derive(Debug, Default)]
pub(super) struct OneAtATime(Arc<Mutex<HashSet<AccountId>>>);

/// The place of one request; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Alone {
    taken: Arc<Mutex<HashSet<AccountId>>>,
    account: AccountId,
}

impl OneAtATime {
    /// Takes an account's place.
    ///
    /// # Errors
    /// [`ModelFailure::OneAtATime`].
    pub(super) fn take(&self, account: &AccountId) -> Result<Alone, ModelFailure> {
        if !lock(&self.0).insert(account.clone()) {
            return Err(ModelFailure::OneAtATime);
        }
        Ok(Alone {
            taken: Arc::clone(&self.0),
            account: account.clone(),
        })
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        lock(&self.taken).remove(&self.account);
    }
}

fn lock(taken: &Mutex<HashSet<AccountId>>) -> MutexGuard<'_, HashSet<AccountId>> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_account_has_one_place() {
        let (places, one) = (OneAtATime::default(), AccountId::of_number(1));
        let first = places.take(&one).unwrap();
        assert!(matches!(places.take(&one), Err(ModelFailure::OneAtATime)));
        let other = places.take(&AccountId::of_number(2)).unwrap();
        drop(first);
        let first = places.take(&one).unwrap();
        drop((first, other));
        assert!(lock(&places.0).is_empty());
    }
}
