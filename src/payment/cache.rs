//! The answers of a payment provider, kept for a short while.
//!
//! A yes is kept longer than a no, so that who has just paid does not wait. A webhook clears at
//! once, also what is being asked at that moment. Failures are not kept. Called by `gateway`.

use std::sync::Arc;
use std::time::Duration;

use super::{BoxFuture, Error, PaymentCheck, Standing};
use crate::callout::{Answers, Kept};
use crate::id::AccountId;

/// How long answers are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// A yes.
    pub paid_for: Duration,
    /// A no.
    pub unpaid_for: Duration,
    /// How many answers are kept.
    pub accounts: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            paid_for: Duration::from_mins(1),
            unpaid_for: Duration::from_secs(5),
            accounts: 10_000,
        }
    }
}

/// A payment check that is asked once for many.
#[derive(Debug)]
pub struct Cached {
    inner: Arc<dyn PaymentCheck>,
    config: Config,
    answers: Answers<AccountId, Standing, Error>,
}

impl Cached {
    /// Stands before another check.
    pub fn new(inner: Arc<dyn PaymentCheck>, config: Config) -> Self {
        Self {
            inner,
            config,
            answers: Answers::keeping(config.accounts),
        }
    }

    /// Forgets what is known of an account.
    pub fn forget(&self, account: &AccountId) {
        self.answers.forget(account);
    }
}

impl PaymentCheck for Cached {
    fn check<'a>(&'a self, account: &'a AccountId) -> BoxFuture<'a, Result<Standing, Error>> {
        let ask = || {
            let (inner, asked, config) = (Arc::clone(&self.inner), account.clone(), self.config);
            async move {
                let value = inner.check(&asked).await?;
                let life = match value {
                    Standing::Paid(_) => config.paid_for,
                    Standing::Unpaid(_) => config.unpaid_for,
                };
                Ok(Kept { value, life })
            }
        };
        Box::pin(self.answers.get_or_ask(account, ask))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Says in turn what it was told to.
    #[derive(Debug, Default)]
    struct Told {
        says: Mutex<Vec<Option<bool>>>,
    }

    impl PaymentCheck for Told {
        fn check<'a>(&'a self, account: &'a AccountId) -> BoxFuture<'a, Result<Standing, Error>> {
            let next = self.says.lock().unwrap().remove(0);
            let answer = next.map(|paid| Standing::of(account, paid));
            Box::pin(async move { answer.ok_or(Error::ProviderStatus(500)) })
        }
    }

    fn world(says: &[Option<bool>]) -> (Cached, AccountId) {
        let says = Mutex::new(says.to_vec());
        let cached = Cached::new(Arc::new(Told { says }), Config::default());
        (cached, AccountId::parse("1").unwrap())
    }

    async fn is_paid(cached: &Cached, account: &AccountId) -> Option<bool> {
        let standing = cached.check(account).await.ok()?;
        assert_eq!(standing.account(), account);
        Some(matches!(standing, Standing::Paid(_)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_yes_is_kept_longer_than_a_no() {
        let (cached, account) = world(&[Some(false), Some(true), Some(false)]);
        for (advance, expected) in [
            (0, false),
            (4999, false),
            (1, true),
            (59_999, true),
            (1, false),
        ] {
            tokio::time::advance(Duration::from_millis(advance)).await;
            assert_eq!(
                is_paid(&cached, &account).await,
                Some(expected),
                "{advance}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_no_answer_and_is_not_kept() {
        let (cached, account) = world(&[None, Some(true), None]);
        assert_eq!(is_paid(&cached, &account).await, None);
        assert_eq!(is_paid(&cached, &account).await, Some(true));
        tokio::time::advance(Duration::from_mins(1)).await;
        assert_eq!(
            is_paid(&cached, &account).await,
            None,
            "an old yes is no yes"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_forgotten_is_asked_again() {
        let (cached, account) = world(&[Some(false), Some(true)]);
        assert_eq!(is_paid(&cached, &account).await, Some(false));
        cached.forget(&account);
        assert_eq!(is_paid(&cached, &account).await, Some(true));
    }
}
