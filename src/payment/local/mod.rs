//! The table of accounts: which are paid, kept in the same store as everything else.
//!
//! A change is durable, then live. An account is paid where its operator said so, or where one of
//! its customers at Stripe pays; each customer has a state of its own, so that whoever pays for
//! another's account, and stops, takes nothing from it, and belongs to the account that was named
//! last. Who is linked to none yet is kept apart until then. A record that does not open is an error for
//! its account and never an absent one. Called by the webhook, the faces that change accounts, and
//! `gateway` through [`PaymentCheck`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, MutexGuard};

use crate::id::AccountId;
use crate::payment::customer::{Customer, Unlinked};
use crate::payment::event::Event;
use crate::payment::{BoxFuture, Error, PaymentCheck, Standing};
use crate::records::{Records, name_refused};
use crate::store::{RecordKey, RecordKind};

/// The form of the record.
const FORMAT: u32 = 2;
/// The name of the record of those who are linked to no account: no account's.
const UNLINKED: &str = "~unlinked";
/// The most customers of one account; with more, those that were heard of least lately go.
const CUSTOMER_LIMIT: usize = 16;

/// What an event did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It changed this account.
    Changed(AccountId),
    /// It changed this account, and took its customer from that one.
    Moved(AccountId, AccountId),
    /// It was kept for the account that its customer will be linked to.
    Kept,
    /// It tells of no payment.
    Ignored,
    /// Something later was heard before.
    Older,
    /// It was taken before.
    Repeated,
    /// It names neither an account nor a customer.
    Unknown,
}

/// An account, for those who look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// Whether it is paid.
    pub paid: bool,
    /// What the operator said, if anything.
    pub granted: Option<bool>,
    /// How many customers of Stripe's are linked to it.
    pub customers: usize,
}

/// The record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    format: u32,
    granted: Option<Granted>,
    customers: BTreeMap<String, Customer>,
    /// When a customer was last heard of who was let go of, in seconds since 1970; nothing where
    /// nobody was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    forgotten: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Granted {
    paid: bool,
    /// When, in seconds since 1970.
    at: u64,
}

impl Record {
    fn new() -> Self {
        Self {
            format: FORMAT,
            granted: None,
            customers: BTreeMap::new(),
            forgotten: None,
        }
    }

    fn is_paid(&self) -> bool {
        let granted = self.granted.is_some_and(|granted| granted.paid);
        granted || self.customers.values().any(Customer::is_paid)
    }

    /// Takes the operator's word: a "no" also ends what customers paid for so far.
    fn grant(&mut self, paid: bool, at: u64) {
        self.granted = Some(Granted { paid, at });
        if !paid {
            for customer in self.customers.values_mut() {
                customer.forgive_before(u64::MAX);
            }
        }
    }

    /// Returns since when events count, in seconds since 1970.
    fn said(&self) -> u64 {
        self.granted.map_or(0, |granted| granted.at)
    }

    /// Takes a customer over, with what was heard of them before.
    fn adopt(&mut self, name: &str, mut customer: Customer) {
        customer.forgive_before(self.said());
        // Of when they were linked elsewhere nothing is left: what takes them over links them.
        customer.linked = 0;
        self.make_room(name);
        if let Some(forgotten) = self.forgotten {
            // They may have been here, and have ended: only what comes now counts.
            customer.forgive_before(u64::MAX);
            customer.forget(forgotten);
        }
        self.customers.insert(name.to_owned(), customer);
    }

    /// Takes an event, and tells what it was if nothing changes. Of a customer who is new here events
    /// count from `since` on, in seconds since 1970.
    fn take(&mut self, event: &Event, since: u64) -> Result<(), Applied> {
        let name = event.customer.as_deref().unwrap_or_default();
        self.make_room(name);
        let is_new = !self.customers.contains_key(name);
        let said = self.said().max(if is_new { since } else { 0 });
        let forgotten = self.forgotten;
        let customer = self.customers.entry(name.to_owned());
        let customer = customer.or_insert_with(|| Customer::beginning(forgotten));
        let links = event.account.is_some() && event.created > customer.linked;
        if links {
            customer.linked = event.created;
        }
        match customer.take(event, said) {
            Err(_) if links || is_new => Ok(()),
            taken => taken,
        }
    }

    fn make_room(&mut self, name: &str) {
        if !self.customers.contains_key(name) && self.customers.len() >= CUSTOMER_LIMIT {
            let least = self.customers.iter();
            let least = least.min_by_key(|(_, customer)| (customer.is_paid(), customer.heard()));
            let least = least.map(|(name, customer)| (name.clone(), customer.heard()));
            if let Some((name, heard)) = least {
                self.customers.remove(&name);
                self.forgotten = self.forgotten.max(Some(heard));
            }
        }
    }
}

/// What is live.
#[derive(Debug, Default)]
struct Table {
    accounts: HashMap<AccountId, Arc<Record>>,
    /// The account that each customer is linked to: the one that has them.
    links: HashMap<String, AccountId>,
    /// Those whose records are refused.
    refused: HashSet<AccountId>,
    unlinked: Unlinked,
    /// Whether the record of those is refused.
    is_unlinked_refused: bool,
}

impl Table {
    fn put(&mut self, account: AccountId, record: Record) {
        let before = self.accounts.get(&account).map(Arc::clone);
        for name in before.iter().flat_map(|before| before.customers.keys()) {
            if self.links.get(name) == Some(&account) {
                self.links.remove(name);
            }
        }
        for customer in record.customers.keys().filter(|name| !name.is_empty()) {
            self.links.insert(customer.clone(), account.clone());
        }
        self.accounts.insert(account, Arc::new(record));
    }

    /// Puts a record that was read. A process that died while it moved a customer left them in two:
    /// they belong to the one that they were linked to last.
    fn put_read(&mut self, account: AccountId, mut record: Record) {
        let mut left = Vec::new();
        record.customers.retain(|name, customer| {
            let other = self.links.get(name).cloned();
            let Some(other) = other.filter(|_| !name.is_empty()) else {
                return true;
            };
            let theirs = self.accounts.get(&other);
            let theirs = theirs.and_then(|record| record.customers.get(name));
            let mine = (customer.linked, &account);
            if theirs.is_some_and(|theirs| (theirs.linked, &other) > mine) {
                return false;
            }
            left.push((other, name.clone()));
            true
        });
        for (other, name) in left {
            if let Some(record) = self.accounts.get_mut(&other) {
                Arc::make_mut(record).customers.remove(&name);
            }
        }
        self.put(account, record);
    }
}

/// Where an event belongs.
enum Place {
    /// To this account, and its customer is taken from that one.
    Account(AccountId, Option<AccountId>),
    /// To a customer without an account.
    Unlinked(String),
    /// To nobody.
    Nowhere,
}

/// The accounts.
#[derive(Debug)]
pub struct Accounts {
    records: Arc<Records>,
    table: RwLock<Table>,
    /// One change at a time, from what it is based on to what is live.
    changing: Mutex<()>,
    /// Another process has them by now.
    has_gone: AtomicBool,
}

/// The accounts while they may pass to another process: nobody changes them.
#[derive(Debug)]
#[must_use]
pub struct HeldAccounts<'a> {
    accounts: &'a Accounts,
    _alone: MutexGuard<'a, ()>,
}

impl HeldAccounts<'_> {
    /// Leaves them to the other process: here nothing is said of them any more.
    pub fn go(self) {
        self.accounts.has_gone.store(true, Ordering::Release);
    }
}

impl Accounts {
    /// Reads every account from the store. Records that are refused are named in the log.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn load(records: Arc<Records>) -> Result<Self, Error> {
        let found = records.load(RecordKind::Account).await?;
        let mut table = Table::default();
        for (name, _why) in found.refused {
            let key = RecordKey::parse(&name);
            let is_unlinked = key.as_ref().is_some_and(|key| &*key.name == UNLINKED);
            table.is_unlinked_refused |= is_unlinked;
            let account = key.and_then(|key| AccountId::parse(&key.name));
            table.refused.extend(account);
        }
        for (key, plain) in found.opened {
            if &*key.name == UNLINKED {
                match serde_json::from_slice::<Unlinked>(&plain) {
                    Ok(unlinked) if unlinked.format == FORMAT => table.unlinked = unlinked,
                    _ => {
                        name_refused(&key.to_string(), &Error::Refused);
                        table.is_unlinked_refused = true;
                    }
                }
                continue;
            }
            let read = serde_json::from_slice::<Record>(&plain).ok();
            let read = read.filter(|record| record.format == FORMAT);
            match (AccountId::parse(&key.name), read) {
                (Some(account), Some(record)) => table.put_read(account, record),
                (account, _) => {
                    name_refused(&key.to_string(), &Error::Refused);
                    table.refused.extend(account);
                }
            }
        }
        let Table {
            unlinked, links, ..
        } = &mut table;
        unlinked
            .customers
            .retain(|name, _| !links.contains_key(name));
        Ok(Self {
            records,
            table: RwLock::new(table),
            changing: Mutex::default(),
            has_gone: AtomicBool::default(),
        })
    }

    /// Waits for the change that is under way, and lets none begin.
    pub async fn hold_changes(&self) -> HeldAccounts<'_> {
        HeldAccounts {
            _alone: self.changing.lock().await,
            accounts: self,
        }
    }

    /// Fails where another process changes the accounts, and knows what holds.
    fn is_here(&self) -> Result<(), Error> {
        let has_gone = self.has_gone.load(Ordering::Acquire);
        (!has_gone).then_some(()).ok_or(Error::HandedOver)
    }

    /// Returns an account; one that nobody spoke of is unpaid.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn account(&self, account: &AccountId) -> Result<Account, Error> {
        let record = self.record(account)?;
        Ok(Account {
            paid: record.is_paid(),
            granted: record.granted.map(|granted| granted.paid),
            customers: record.customers.len(),
        })
    }

    /// Lists the accounts that somebody spoke of, in their order.
    pub fn list(&self) -> Vec<AccountId> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = table.accounts.keys().cloned().collect();
        all.sort_unstable();
        all
    }

    /// Returns how many records are refused: those of accounts, and that of customers without one.
    pub fn refused(&self) -> usize {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.refused.len() + usize::from(table.is_unlinked_refused)
    }

    /// Takes the operator's word. Events from before it do not count any more; a "yes" stays until
    /// the operator takes it back, whatever customers do.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Store`] and [`Error::HandedOver`]; nothing is live then.
    pub async fn grant(
        &self,
        account: &AccountId,
        paid: bool,
        now: SystemTime,
    ) -> Result<Account, Error> {
        let _alone = self.changing.lock().await;
        self.is_here()?;
        let at = now
            .duration_since(UNIX_EPOCH)
            .map_err(|_early| Error::Time)?;
        let mut record = Record::clone(&*self.record(account)?);
        record.grant(paid, at.as_secs());
        self.keep(account, &record).await?;
        self.live().put(account.clone(), record);
        self.account(account)
    }

    /// Takes what an event says.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Store`] and [`Error::HandedOver`]; nothing is live then.
    pub async fn apply(&self, event: &Event) -> Result<Applied, Error> {
        let _alone = self.changing.lock().await;
        self.is_here()?;
        match self.place_of(event) {
            Place::Account(account, from) => self.apply_to(event, account, from).await,
            Place::Unlinked(customer) => self.keep_for_later(event, &customer).await,
            Place::Nowhere => Ok(Applied::Unknown),
        }
    }

    async fn apply_to(
        &self,
        event: &Event,
        account: AccountId,
        from: Option<AccountId>,
    ) -> Result<Applied, Error> {
        let name = event.customer.as_deref().unwrap_or_default();
        let mut record = Record::clone(&*self.record(&account)?);
        let left = match &from {
            Some(from) => {
                let mut left = Record::clone(&*self.record(from)?);
                if let Some(customer) = left.customers.remove(name) {
                    record.adopt(name, customer);
                }
                Some(left)
            }
            None => None,
        };
        let (mut unlinked, mut since) = (None, 0);
        if !name.is_empty() && !record.customers.contains_key(name) {
            let mut all = self.unlinked()?;
            if let Some(customer) = all.customers.remove(name) {
                record.adopt(name, customer);
                unlinked = Some(all);
            } else {
                since = all.known_since();
            }
        }
        if let Err(nothing) = record.take(event, since) {
            return Ok(nothing);
        }
        // The new link goes first: with both on the disk, a start takes the later one.
        self.keep(&account, &record).await?;
        if let (Some(from), Some(left)) = (&from, &left) {
            self.keep(from, left).await?;
        }
        if let Some(unlinked) = &unlinked {
            self.keep_unlinked(unlinked).await?;
        }
        let mut table = self.live();
        if let Some(unlinked) = unlinked {
            table.unlinked = unlinked;
        }
        if let (Some(from), Some(left)) = (from.clone(), left) {
            table.put(from, left);
        }
        table.put(account.clone(), record);
        Ok(match from {
            Some(from) => Applied::Moved(account, from),
            None => Applied::Changed(account),
        })
    }

    /// Keeps what is said of a customer that is linked to no account.
    async fn keep_for_later(&self, event: &Event, customer: &str) -> Result<Applied, Error> {
        let mut unlinked = self.unlinked()?;
        if let Err(nothing) = unlinked.take(customer, event) {
            return Ok(nothing);
        }
        self.keep_unlinked(&unlinked).await?;
        self.live().unlinked = unlinked;
        Ok(Applied::Kept)
    }

    fn place_of(&self, event: &Event) -> Place {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let held = event.customer.as_ref().and_then(|customer| {
            let account = table.links.get(customer)?;
            let linked = table.accounts.get(account)?.customers.get(customer)?.linked;
            Some((account.clone(), linked))
        });
        match (event.account.clone(), held, &event.customer) {
            (Some(named), Some((held, linked)), _) if named != held => {
                // A link that was overtaken by a later one links nobody. Of one second there is an
                // order too, so that it does not matter which comes first.
                if (event.created, &named) > (linked, &held) {
                    Place::Account(named, Some(held))
                } else {
                    Place::Account(held, None)
                }
            }
            (Some(account), _, _) | (None, Some((account, _)), _) => Place::Account(account, None),
            (None, None, Some(customer)) => Place::Unlinked(customer.clone()),
            (None, None, None) => Place::Nowhere,
        }
    }

    fn unlinked(&self) -> Result<Unlinked, Error> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        if table.is_unlinked_refused {
            return Err(Error::Refused);
        }
        let mut unlinked = table.unlinked.clone();
        unlinked.format = FORMAT;
        Ok(unlinked)
    }

    fn record(&self, account: &AccountId) -> Result<Arc<Record>, Error> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        if table.refused.contains(account) {
            return Err(Error::Refused);
        }
        let known = table.accounts.get(account).cloned();
        Ok(known.unwrap_or_else(|| Arc::new(Record::new())))
    }

    async fn keep(&self, account: &AccountId, record: &Record) -> Result<(), Error> {
        let key = RecordKey::new(RecordKind::Account, account.as_str());
        let plain = serde_json::to_vec(record).map_err(|_never| Error::Refused)?;
        Ok(self.records.put(&key, &plain).await?)
    }

    async fn keep_unlinked(&self, unlinked: &Unlinked) -> Result<(), Error> {
        let key = RecordKey::new(RecordKind::Account, UNLINKED);
        let plain = serde_json::to_vec(unlinked).map_err(|_never| Error::Refused)?;
        Ok(self.records.put(&key, &plain).await?)
    }

    fn live(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PaymentCheck for Accounts {
    fn check<'a>(&'a self, account: &'a AccountId) -> BoxFuture<'a, Result<Standing, Error>> {
        let found = self.is_here().and_then(|()| self.record(account));
        Box::pin(async move { Ok(Standing::of(account, found?.is_paid())) })
    }
}

#[cfg(test)]
pub(in crate::payment) fn empty_for_tests() -> Accounts {
    Accounts {
        records: Arc::new(crate::payment::testing::records().0),
        table: RwLock::default(),
        changing: Mutex::default(),
        has_gone: AtomicBool::default(),
    }
}

#[cfg(test)]
mod tests;
