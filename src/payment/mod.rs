//! Payment: whether an account is paid, and how much of the model provider it may still use.
//!
//! [`PaymentCheck`] answers the first question, from our own table or from `WorkOS`; [`Ledger`]
//! answers the second and keeps what was used. [`Paid`] is the proof of a yes, made here alone. An outage is
//! an error and never a yes. Stripe's webhook keeps the table current. Called by `gateway` before a
//! model call, by the faces that change accounts, and by `cli`.

mod book;
mod cache;
mod customer;
mod event;
mod ledger;
mod local;
mod stripe;
#[cfg(test)]
mod testing;
mod workos;

use std::fmt::Debug;
use std::pin::Pin;

use crate::callout;
use crate::id::AccountId;
use crate::store;

pub use book::{Line, Month, Tokens, Usage};
pub use cache::{Cached, Config as CacheConfig};
pub use event::{Event, EventError};
pub use ledger::{Budgets, LeavingBooks, Ledger, Refusal, Reservation, TokenCounts, usage_offline};
pub use local::{Account, Accounts, Applied, HeldAccounts};
pub use stripe::{SignatureError, Signed, TOLERANCE, Webhook, WebhookError};
pub use workos::{Config as WorkosConfig, Workos};

/// Says why nobody knows whether an account is paid, or what it used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The payment provider could not be asked.
    #[error("the payment provider could not be asked")]
    Provider(#[source] callout::Error),
    /// The payment provider answered neither yes nor no: an outage, a limit, or a bad key of ours.
    #[error("the payment provider answered with status {0}")]
    ProviderStatus(u16),
    /// The payment provider's answer is not about the account that was asked for.
    #[error("the answer of the payment provider cannot be read")]
    ProviderAnswer,
    /// A record does not open, or cannot be read by this version.
    #[error("the record of the account is refused")]
    Refused,
    /// A setting of the payment provider cannot be used.
    #[error("the payment provider's {0} cannot be used")]
    Setting(&'static str),
    /// Another process has the accounts by now.
    #[error("another process serves by now")]
    HandedOver,
    /// The store cannot be read, or could not make a change durable.
    #[error("the store is unavailable")]
    Store(#[source] std::sync::Arc<store::Error>),
    /// A book of usage could not be made durable.
    #[error("the usage of the account could not be kept")]
    Unwritten,
    /// The machine's clock is before 1970 or beyond the year 9999.
    #[error("the time is in no month")]
    Time,
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        Self::Store(std::sync::Arc::new(error))
    }
}

/// A boxed future that borrows for `'a`: what lets [`PaymentCheck`] be used behind a pointer.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The proof that an account is paid. Only this module makes it:
///
/// ```compile_fail,E0451
/// # use oshu_vault::{id::AccountId, payment::Paid};
/// let paid = Paid { account: AccountId::parse("1").unwrap() };
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paid {
    account: AccountId,
}

impl Paid {
    /// Returns whose it is.
    pub fn account(&self) -> &AccountId {
        &self.account
    }
}

/// The answer to the question whether an account is paid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is.
    Paid(Paid),
    /// It is not, or nobody knows the account.
    Unpaid(AccountId),
}

impl Standing {
    fn of(account: &AccountId, paid: bool) -> Self {
        let account = account.clone();
        if paid {
            Self::Paid(Paid { account })
        } else {
            Self::Unpaid(account)
        }
    }

    /// Returns whom the answer is about.
    pub fn account(&self) -> &AccountId {
        match self {
            Self::Paid(paid) => paid.account(),
            Self::Unpaid(account) => account,
        }
    }
}

/// Answers whether an account is paid.
pub trait PaymentCheck: Send + Sync + Debug {
    /// Looks an account up.
    ///
    /// # Errors
    /// Where nobody knows: the caller must take it for neither answer.
    fn check<'a>(&'a self, account: &'a AccountId) -> BoxFuture<'a, Result<Standing, Error>>;
}
