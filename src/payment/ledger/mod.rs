//! Who may still use how much of the model provider, and what was used: durably.
//!
//! A request reserves the most that it may use before it is sent, and settles what it used after its
//! answer. One mechanism serves the monthly budget of a paid account and the free allowance of an
//! unpaid one. A reservation under a budget is on the disk before it is given; one that is dropped,
//! or lost with the process, counts as used whole. Called by `gateway`.
//!
//! A kill loses what was settled since the last write: under a budget the whole reservation counts
//! in its place; without one, that usage is missing. One process keeps the books of a store; where it
//! passes them on, it tells the next one what ends.

mod desk;
mod page;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use tokio::sync::{OnceCell, watch};
use tokio::task::AbortHandle;

use self::desk::{Desk, Settled};
use self::page::{PAGE_LIMIT, Page, Queue, State, lock, write_books};
use crate::id::{AccountId, SandboxName};
use crate::payment::book::{At, Book, Month, Tokens, Usage};
use crate::payment::{Error, Standing};
use crate::records::{Records, name_refused};
use crate::store::{RecordKey, RecordKind};
use crate::telemetry::Counter;

/// How many tokens accounts may use a month.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budgets {
    /// One that is paid; none for any number.
    pub monthly: Option<u64>,
    /// One that is not: by default no token.
    pub free_allowance: u64,
}

/// Says why a request may not be sent.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refusal {
    /// The account is paid, and has too little of its budget left.
    #[error("the account's monthly budget is used up")]
    BudgetUsed,
    /// The account is not paid, and has too little of the free allowance left.
    #[error("the account is not paid")]
    Unpaid,
    /// Another process has the books by now.
    #[error("another process serves by now")]
    HandedOver,
    /// Nobody knows what the account used, or the reservation could not be kept.
    #[error("the account's usage is not known")]
    Unknown(#[source] Error),
}

/// Counts of tokens that were settled, of all accounts together, since the process began.
#[derive(Debug, Default)]
pub struct TokenCounts {
    /// Read by models and in no cache.
    pub input: Counter,
    /// Written by models.
    pub output: Counter,
    /// Read from a cache.
    pub cache_read: Counter,
    /// Written to a cache.
    pub cache_write: Counter,
    /// Reserved for requests whose end nobody saw.
    pub unsettled: Counter,
}

/// The books of all accounts.
#[derive(Debug)]
pub struct Ledger {
    records: Arc<Records>,
    budgets: Budgets,
    pages: Mutex<HashMap<(AccountId, Month), Arc<Page>>>,
    queue: Arc<Queue>,
    desk: Arc<Desk>,
    counts: Arc<TokenCounts>,
    writer: AbortHandle,
}

impl Ledger {
    /// Keeps books in the records, and starts their writer on the current runtime.
    pub fn new(records: Arc<Records>, budgets: Budgets) -> Self {
        let queue = Arc::new(Queue::default());
        let writer = tokio::spawn(write_books(Arc::clone(&records), Arc::clone(&queue)));
        Self {
            records,
            budgets,
            pages: Mutex::default(),
            queue,
            desk: Arc::default(),
            counts: Arc::default(),
            writer: writer.abort_handle(),
        }
    }

    /// Returns what was counted.
    pub fn counts(&self) -> &TokenCounts {
        &self.counts
    }

    /// Tells whether requests are let through here at all: waits while the service passes to another
    /// process.
    ///
    /// # Errors
    /// [`Refusal::HandedOver`].
    pub async fn admits(&self) -> Result<(), Refusal> {
        let is_here = self.desk.is_here().await;
        is_here.then_some(()).ok_or(Refusal::HandedOver)
    }

    /// Asks whether somebody of this standing has anything left, as the book stands now: for those of
    /// whom nobody knows yet what they want.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn expect_left(&self, standing: &Standing, now: SystemTime) -> Result<(), Refusal> {
        let (Some(budget), used_up) = self.budget(standing) else {
            return Ok(());
        };
        if budget == 0 {
            return Err(used_up);
        }
        let month = Month::of(now).map_err(Refusal::Unknown)?;
        let page = self.page(standing.account(), month).await;
        let page = page.map_err(Refusal::Unknown)?;
        let counted = page.state().book.counted();
        (counted < budget).then_some(()).ok_or(used_up)
    }

    fn budget(&self, standing: &Standing) -> (Option<u64>, Refusal) {
        match standing {
            Standing::Paid(_) => (self.budgets.monthly, Refusal::BudgetUsed),
            Standing::Unpaid(_) => (Some(self.budgets.free_allowance), Refusal::Unpaid),
        }
    }

    /// Tells whether somebody of this standing may use any number of tokens, so that what cannot be
    /// counted may be sent.
    pub fn is_unbounded(&self, standing: &Standing) -> bool {
        matches!(standing, Standing::Paid(_)) && self.budgets.monthly.is_none()
    }

    /// Reserves what a request may use: the first number at the least, and as much up to the second
    /// as is left of a budget. Under one the reservation is durable when this returns.
    ///
    /// # Errors
    /// See [`Refusal`]; nothing is reserved then.
    pub async fn reserve(
        &self,
        standing: &Standing,
        sandbox: &SandboxName,
        model: &str,
        tokens: RangeInclusive<u64>,
        now: SystemTime,
    ) -> Result<Reservation, Refusal> {
        let (budget, used_up) = self.budget(standing);
        // A request that reserves nothing is still a request.
        let (least, most) = ((*tokens.start()).max(1), *tokens.end());
        if budget.is_some_and(|budget| least > budget) {
            return Err(used_up);
        }
        let month = Month::of(now).map_err(Refusal::Unknown)?;
        let page = self.page(standing.account(), month).await;
        let page = page.map_err(Refusal::Unknown)?;
        let reserve = || {
            let mut state = page.state();
            let left = budget.map(|budget| budget.saturating_sub(state.book.counted()));
            if left.is_some_and(|left| least > left) {
                return None;
            }
            let reserved = left.map_or(0, |left| most.clamp(least, left));
            let at = state.book.reserve(sandbox.as_str(), model, reserved);
            Some((at, reserved, state.changed()))
        };
        let entered = loop {
            self.admits().await?;
            if let Some(entered) = self.desk.if_here(reserve) {
                break entered;
            }
        };
        let (at, reserved, version) = entered.ok_or(used_up)?;
        // From here on whatever is not sent is given back, also where this future is dropped.
        let mut reservation = Reservation {
            page,
            month,
            account: standing.account().clone(),
            at,
            reserved,
            most: reserved.max(least),
            counts: Arc::clone(&self.counts),
            desk: Arc::clone(&self.desk),
            end: End::Released,
        };
        if budget.is_some() {
            let durable = reservation.page.write_until(version).await;
            durable.map_err(Refusal::Unknown)?;
        }
        reservation.end = End::Unsettled;
        Ok(reservation)
    }

    /// Begins to pass the books to another process: nothing is reserved until it is known who has them.
    pub fn leave(self: &Arc<Self>) -> LeavingBooks {
        self.desk.leave();
        LeavingBooks(Some(Arc::clone(self)))
    }

    /// Enters how a reservation ended that a process before this one had made, in that one's words.
    pub async fn settle_for(&self, told: &str) {
        let Ok(settled) = serde_json::from_str(told) else {
            tracing::warn!("what another process used cannot be read");
            return;
        };
        self.enter(settled).await;
    }

    async fn enter(&self, mut settled: Settled) {
        let mut page = None;
        while let Some(again) = self.desk.end_other(page.as_ref(), settled) {
            settled = again;
            let read = match settled.book() {
                Some((account, month)) => self.page(&account, month).await,
                None => Err(Error::Refused),
            };
            match read {
                Ok(read) => page = Some(read),
                Err(error) => {
                    tracing::warn!(%error, "what another process used is not entered");
                    return;
                }
            }
        }
    }

    /// Returns what an account used in a month.
    ///
    /// # Errors
    /// [`Error::Store`] and [`Error::Refused`].
    pub async fn usage(&self, account: &AccountId, month: Month) -> Result<Usage, Error> {
        Ok(self.page(account, month).await?.state().book.usage())
    }

    /// Waits until everything that was settled so far is durable: for the end of a process.
    ///
    /// # Errors
    /// [`Error::Store`] where one could not be written; what was reserved for it counts then.
    pub async fn flush(&self) -> Result<(), Error> {
        let pages: Vec<_> = lock(&self.pages).values().cloned().collect();
        for page in pages.iter().filter(|page| page.state.initialized()) {
            let version = page.state().version;
            if page.written.borrow().durable < version {
                // A version of its own: an attempt may have failed with the last one.
                let version = page.state().changed();
                page.write_until(version).await?;
            }
        }
        Ok(())
    }

    async fn page(&self, account: &AccountId, month: Month) -> Result<Arc<Page>, Error> {
        let page = {
            let mut pages = lock(&self.pages);
            if pages.len() >= PAGE_LIMIT {
                // Whoever reserved holds its page, and so does the queue.
                pages.retain(|_, page| Arc::strong_count(page) > 1);
            }
            let page = pages.entry((account.clone(), month));
            let page = page.or_insert_with(|| {
                Arc::new(Page {
                    key: key(account, month),
                    state: OnceCell::new(),
                    written: watch::Sender::default(),
                    queue: Arc::clone(&self.queue),
                })
            });
            Arc::clone(page)
        };
        let read = async || {
            Ok::<_, Error>(Mutex::new(State {
                book: read(&self.records, &page.key).await?,
                version: 0,
                queued: false,
            }))
        };
        page.state.get_or_try_init(read).await?;
        Ok(page)
    }
}

/// Returns what an account used in a month as it lies in a store that no server has open.
///
/// # Errors
/// [`Error::Store`] and [`Error::Refused`].
pub async fn usage_offline(
    records: &Records,
    account: &AccountId,
    month: Month,
) -> Result<Usage, Error> {
    Ok(read(records, &key(account, month)).await?.usage())
}

/// Names the record of a book.
fn key(account: &AccountId, month: Month) -> RecordKey {
    RecordKey::new(RecordKind::Usage, &format!("{account}/{month}"))
}

/// Reads a book; one that is not there is empty.
async fn read(records: &Records, key: &RecordKey) -> Result<Book, Error> {
    let refuse = |why: &dyn std::fmt::Display| {
        name_refused(&key.to_string(), why);
        Error::Refused
    };
    match records.open(key).await? {
        None => Ok(Book::default()),
        Some(Err(refused)) => Err(refuse(&refused)),
        Some(Ok(plain)) => Book::read(&plain).ok_or_else(|| refuse(&Error::Refused)),
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.writer.abort();
        // They hold the queue that holds them.
        lock(&self.queue.pages).clear();
    }
}

/// The books while they pass to another process: nothing is entered in them. Dropped, they stay.
#[derive(Debug)]
#[must_use]
pub struct LeavingBooks(Option<Arc<Ledger>>);

impl LeavingBooks {
    /// Leaves them to the other process, which is told what ends here from now on.
    pub fn go(mut self, tell: impl Fn(String) + Send + Sync + 'static) {
        if let Some(ledger) = self.0.take() {
            ledger.desk.go(Box::new(tell));
        }
    }
}

impl Drop for LeavingBooks {
    fn drop(&mut self) {
        let Some(ledger) = self.0.take() else { return };
        let others = ledger.desk.stay();
        if !others.is_empty() {
            tokio::spawn(async move {
                for settled in others {
                    ledger.enter(settled).await;
                }
            });
        }
    }
}

/// How a reservation ends that nobody ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Nothing was sent.
    Released,
    /// Something may have been sent: the whole counts as used.
    Unsettled,
    /// It has ended.
    Done,
}

/// The leave to send one request, and what it may use at most. Dropped, it counts as used whole.
///
/// Only [`Ledger::reserve`] makes it:
///
/// ```compile_fail,E0451
/// # use oshu_vault::payment::Reservation;
/// let free = Reservation { most: 1 };
/// ```
#[derive(Debug)]
#[must_use]
pub struct Reservation {
    page: Arc<Page>,
    account: AccountId,
    month: Month,
    at: At,
    /// What stands in the book; nothing where there is no budget.
    reserved: u64,
    most: u64,
    counts: Arc<TokenCounts>,
    desk: Arc<Desk>,
    end: End,
}

impl Reservation {
    /// Returns the most that the request may use.
    pub fn most(&self) -> u64 {
        self.most
    }

    /// Puts what was used, of the model that answered, in the place of what was reserved. Written
    /// soon, without waiting.
    pub fn settle(mut self, model: &str, used: &Tokens) {
        self.counts.input.add(used.input);
        self.counts.output.add(used.output);
        self.counts.cache_read.add(used.cache_read);
        self.counts.cache_write.add(used.cache_write);
        self.end_with(Some((model.to_owned(), *used)), 0);
    }

    /// Gives everything back: the request was not sent.
    pub fn release(mut self) {
        self.end_with(None, 0);
    }

    fn end_with(&mut self, used: Option<(String, Tokens)>, unsettled: u64) {
        self.end = End::Done;
        let settled = self.settled(used, unsettled);
        self.desk.end(&self.page, settled);
    }

    fn settled(&self, used: Option<(String, Tokens)>, unsettled: u64) -> Settled {
        let (sandbox, model) = self.at.clone();
        Settled {
            account: self.account.to_string(),
            month: self.month.to_string(),
            sandbox,
            model,
            reserved: self.reserved,
            used,
            unsettled,
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        match self.end {
            End::Done => {}
            End::Released => self.desk.give_back(&self.page, self.settled(None, 0)),
            End::Unsettled => {
                let most = self.most;
                self.counts.unsettled.add(most);
                self.end_with(None, most);
            }
        }
    }
}
