//! The table of accounts: which are paid, kept in the same store as everything else.
//!
//! A change is durable, then live. An account is paid where its operator said so, or where one of
//! its customers at Stripe pays; each customer has a state of its own, so that whoever pays for
//! another's account, and stops, takes nothing from it. A record that does not open is an error for
//! its account and never an absent one. Called by the webhook, the faces that change accounts, and
//! `gateway` through [`PaymentCheck`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::event::Event;
use super::{BoxFuture, Error, PaymentCheck, Standing};
use crate::id::AccountId;
use crate::records::{Records, name_refused};
use crate::store::{RecordKey, RecordKind};

/// The form of the record.
const FORMAT: u32 = 1;
/// The most customers of one account; with more, those that were heard of least lately go.
const CUSTOMER_LIMIT: usize = 16;
/// The most events of one second that are remembered.
const EVENT_LIMIT: usize = 64;

/// What an event did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It changed this account.
    Changed(AccountId),
    /// It tells of no payment.
    Ignored,
    /// Something later was heard before.
    Older,
    /// It was taken before.
    Repeated,
    /// It names no account, and a customer that is linked to none.
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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Granted {
    paid: bool,
    /// When, in seconds since 1970.
    at: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Customer {
    paid: bool,
    /// When the last event came about, in seconds since 1970.
    created: u64,
    /// The events of that second: of earlier ones none is taken again.
    events: Vec<String>,
}

impl Record {
    fn new() -> Self {
        Self {
            format: FORMAT,
            granted: None,
            customers: BTreeMap::new(),
        }
    }

    fn is_paid(&self) -> bool {
        let granted = self.granted.is_some_and(|granted| granted.paid);
        granted || self.customers.values().any(|customer| customer.paid)
    }

    /// Takes the operator's word: a "no" also ends what customers paid for so far.
    fn grant(&mut self, paid: bool, at: u64) {
        self.granted = Some(Granted { paid, at });
        for customer in self.customers.values_mut() {
            customer.paid &= paid;
        }
    }

    /// Takes an event, and tells what it was if nothing changes.
    fn take(&mut self, event: &Event) -> Result<(), Applied> {
        let name = event.customer.as_deref().unwrap_or_default();
        if !self.customers.contains_key(name) && self.customers.len() >= CUSTOMER_LIMIT {
            let least = self.customers.iter();
            let least = least.min_by_key(|(_, customer)| (customer.paid, customer.created));
            let least = least.map(|(name, _)| name.clone());
            self.customers
                .retain(|name, _| Some(name) != least.as_ref());
        }
        let is_linked = self.customers.contains_key(name);
        let customer = self.customers.entry(name.to_owned()).or_default();
        let Some(paid) = event.paid else {
            return if is_linked {
                Err(Applied::Repeated)
            } else {
                Ok(())
            };
        };
        let said = self.granted.map_or(0, |granted| granted.at);
        if event.created < customer.created.max(said) {
            return Err(Applied::Older);
        }
        if event.created > customer.created {
            customer.events.clear();
        }
        if customer.events.contains(&event.id) {
            return Err(Applied::Repeated);
        }
        if customer.events.len() >= EVENT_LIMIT {
            customer.events.remove(0);
        }
        customer.created = event.created;
        customer.events.push(event.id.clone());
        customer.paid = paid;
        Ok(())
    }
}

/// What is live.
#[derive(Debug, Default)]
struct Table {
    accounts: HashMap<AccountId, Arc<Record>>,
    /// The account that each customer was linked to last.
    links: HashMap<String, AccountId>,
    /// Those whose records are refused.
    refused: HashSet<AccountId>,
}

impl Table {
    fn put(&mut self, account: AccountId, record: Record) {
        for customer in record.customers.keys().filter(|name| !name.is_empty()) {
            self.links.insert(customer.clone(), account.clone());
        }
        self.accounts.insert(account, Arc::new(record));
    }
}

/// The accounts.
#[derive(Debug)]
pub struct Accounts {
    records: Arc<Records>,
    table: RwLock<Table>,
    /// One change at a time, from what it is based on to what is live.
    changing: Mutex<()>,
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
            let account = key.and_then(|key| AccountId::parse(&key.name));
            table.refused.extend(account);
        }
        for (key, plain) in found.opened {
            let read = serde_json::from_slice::<Record>(&plain).ok();
            let read = read.filter(|record| record.format == FORMAT);
            match (AccountId::parse(&key.name), read) {
                (Some(account), Some(record)) => table.put(account, record),
                (account, _) => {
                    name_refused(&key.to_string(), &Error::Refused);
                    table.refused.extend(account);
                }
            }
        }
        Ok(Self {
            records,
            table: RwLock::new(table),
            changing: Mutex::default(),
        })
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

    /// Takes the operator's word. Events from before it do not count any more; a "yes" stays until
    /// the operator takes it back, whatever customers do.
    ///
    /// # Errors
    /// [`Error::Refused`] and [`Error::Store`]; nothing is live then.
    pub async fn grant(
        &self,
        account: &AccountId,
        paid: bool,
        now: SystemTime,
    ) -> Result<Account, Error> {
        let _alone = self.changing.lock().await;
        let at = now
            .duration_since(UNIX_EPOCH)
            .map_err(|_early| Error::Time)?;
        let mut record = Record::clone(&*self.record(account)?);
        record.grant(paid, at.as_secs());
        self.put(account, record).await?;
        self.account(account)
    }

    /// Takes what an event says.
    ///
    /// # Errors
    /// [`Error::Refused`] and [`Error::Store`]; nothing is live then.
    pub async fn apply(&self, event: &Event) -> Result<Applied, Error> {
        let _alone = self.changing.lock().await;
        let Some(account) = self.account_of(event) else {
            return Ok(Applied::Unknown);
        };
        let mut record = Record::clone(&*self.record(&account)?);
        if let Err(nothing) = record.take(event) {
            return Ok(nothing);
        }
        self.put(&account, record).await?;
        Ok(Applied::Changed(account))
    }

    fn account_of(&self, event: &Event) -> Option<AccountId> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let linked = || table.links.get(event.customer.as_deref()?).cloned();
        event.account.clone().or_else(linked)
    }

    fn record(&self, account: &AccountId) -> Result<Arc<Record>, Error> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        if table.refused.contains(account) {
            return Err(Error::Refused);
        }
        let known = table.accounts.get(account).cloned();
        Ok(known.unwrap_or_else(|| Arc::new(Record::new())))
    }

    async fn put(&self, account: &AccountId, record: Record) -> Result<(), Error> {
        let key = RecordKey::new(RecordKind::Account, account.as_str());
        let plain = serde_json::to_vec(&record).map_err(|_never| Error::Refused)?;
        self.records.put(&key, &plain).await?;
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.put(account.clone(), record);
        Ok(())
    }
}

impl PaymentCheck for Accounts {
    fn check<'a>(&'a self, account: &'a AccountId) -> BoxFuture<'a, Result<Standing, Error>> {
        let found = self.record(account);
        Box::pin(async move { Ok(Standing::of(account, found?.is_paid())) })
    }
}

#[cfg(test)]
pub(super) fn empty_for_tests() -> Accounts {
    Accounts {
        records: Arc::new(super::testing::records().0),
        table: RwLock::default(),
        changing: Mutex::default(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::payment::testing::records;

    fn id(text: &str) -> AccountId {
        AccountId::parse(text).unwrap()
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn event(created: u64, name: &str, account: &str, customer: &str, paid: Option<bool>) -> Event {
        Event {
            id: name.to_owned(),
            created,
            account: AccountId::parse(account),
            customer: (!customer.is_empty()).then(|| customer.to_owned()),
            paid,
        }
    }

    async fn is_paid(accounts: &Accounts, account: &str) -> bool {
        let standing = accounts.check(&id(account)).await.unwrap();
        matches!(standing, Standing::Paid(_))
    }

    #[tokio::test]
    async fn what_the_operator_says_is_live_and_outlives_the_process() {
        let (records, _store) = records();
        let records = Arc::new(records);
        let accounts = Accounts::load(Arc::clone(&records)).await.unwrap();
        assert!(!is_paid(&accounts, "1").await);
        let granted = accounts.grant(&id("1"), true, at(5)).await.unwrap();
        let expected = Account {
            paid: true,
            granted: Some(true),
            customers: 0,
        };
        assert_eq!(granted, expected);
        assert!(is_paid(&accounts, "1").await);
        assert!(!is_paid(&accounts, "2").await);
        let again = Accounts::load(records).await.unwrap();
        assert!(is_paid(&again, "1").await);
        assert_eq!(again.list(), [id("1")]);
        again.grant(&id("1"), false, at(6)).await.unwrap();
        assert!(!is_paid(&again, "1").await);
    }

    #[tokio::test]
    async fn events_count_once_in_their_order_and_for_their_customer() {
        let (records, _store) = records();
        let records = Arc::new(records);
        let accounts = Accounts::load(Arc::clone(&records)).await.unwrap();
        let changed = || Applied::Changed(id("1"));
        let steps = [
            (
                event(10, "a", "", "cus_1", Some(true)),
                Applied::Unknown,
                false,
            ),
            (event(10, "a", "1", "cus_1", None), changed(), false),
            (event(10, "a", "1", "cus_1", None), Applied::Repeated, false),
            (event(9, "b", "", "cus_1", Some(true)), changed(), true),
            (
                event(9, "b", "", "cus_1", Some(false)),
                Applied::Repeated,
                true,
            ),
            (
                event(8, "c", "", "cus_1", Some(false)),
                Applied::Older,
                true,
            ),
            (event(9, "d", "", "cus_1", Some(false)), changed(), false),
            (
                event(9, "b", "", "cus_1", Some(true)),
                Applied::Repeated,
                false,
            ),
            (event(11, "e", "", "cus_1", Some(true)), changed(), true),
            // Another pays for the account, and stops.
            (event(12, "f", "1", "cus_2", Some(true)), changed(), true),
            (event(13, "g", "", "cus_2", Some(false)), changed(), true),
            (event(12, "h", "1", "", Some(true)), changed(), true),
            (event(14, "i", "", "cus_1", Some(false)), changed(), true),
            (event(14, "j", "1", "", Some(false)), changed(), false),
        ];
        for (number, (event, expected, paid)) in steps.into_iter().enumerate() {
            assert_eq!(accounts.apply(&event).await.unwrap(), expected, "{number}");
            assert_eq!(is_paid(&accounts, "1").await, paid, "{number}");
            let again = Accounts::load(Arc::clone(&records)).await.unwrap();
            assert_eq!(is_paid(&again, "1").await, paid, "{number}, read again");
            let repeated = again.apply(&event).await.unwrap();
            assert!(
                !matches!(repeated, Applied::Changed(_)),
                "{number}, read again"
            );
        }
    }

    #[tokio::test]
    async fn the_operator_s_word_stands_above_earlier_events() {
        let accounts = empty_for_tests();
        let pay = |created, name, paid| event(created, name, "1", "cus_1", Some(paid));
        accounts.apply(&pay(10, "a", true)).await.unwrap();
        accounts.grant(&id("1"), false, at(20)).await.unwrap();
        assert!(!is_paid(&accounts, "1").await);
        let overtaken = accounts.apply(&pay(19, "b", true)).await.unwrap();
        assert_eq!(overtaken, Applied::Older);
        accounts.apply(&pay(21, "c", true)).await.unwrap();
        assert!(is_paid(&accounts, "1").await);
        accounts.grant(&id("1"), true, at(22)).await.unwrap();
        accounts.apply(&pay(23, "d", false)).await.unwrap();
        assert!(
            is_paid(&accounts, "1").await,
            "what was given is not taken by a customer"
        );
    }

    #[tokio::test]
    async fn an_account_has_a_bounded_number_of_customers() {
        let accounts = empty_for_tests();
        for number in 0..100_u64 {
            let customer = format!("cus_{number}");
            let pays = event(number, "a", "1", &customer, Some(number == 0));
            accounts.apply(&pays).await.unwrap();
        }
        assert_eq!(
            accounts.account(&id("1")).unwrap().customers,
            CUSTOMER_LIMIT
        );
        assert!(
            is_paid(&accounts, "1").await,
            "one that pays does not go first"
        );
    }

    #[tokio::test]
    async fn a_record_that_is_refused_is_no_answer() {
        let (records, store) = records();
        let records = Arc::new(records);
        let accounts = Accounts::load(Arc::clone(&records)).await.unwrap();
        for name in ["1", "2", "3"] {
            accounts.grant(&id(name), true, at(1)).await.unwrap();
        }
        let key = |name: &str| RecordKey::new(RecordKind::Account, name);
        // One is moved under another's name, one is of another form.
        let moved = store.sealed(&key("1")).await;
        store.put_sealed(&key("2"), moved).await;
        let other = br#"{"format":2,"granted":null,"customers":{}}"#;
        records.put(&key("3"), other).await.unwrap();
        let accounts = Accounts::load(records).await.unwrap();
        assert!(is_paid(&accounts, "1").await);
        for name in ["2", "3"] {
            assert!(
                matches!(accounts.check(&id(name)).await, Err(Error::Refused)),
                "{name}"
            );
            let granted = accounts.grant(&id(name), true, at(2)).await;
            assert!(matches!(granted, Err(Error::Refused)), "{name}");
        }
        assert!(!is_paid(&accounts, "4").await);
    }

    #[tokio::test]
    async fn what_is_not_durable_is_not_live() {
        let (records, store) = records();
        let accounts = Accounts::load(Arc::new(records)).await.unwrap();
        store.fail(true);
        let granted = accounts.grant(&id("1"), true, at(1)).await;
        assert!(matches!(granted, Err(Error::Store(_))), "{granted:?}");
        let applied = accounts
            .apply(&event(1, "a", "1", "cus_1", Some(true)))
            .await;
        assert!(matches!(applied, Err(Error::Store(_))), "{applied:?}");
        assert!(!is_paid(&accounts, "1").await);
        store.fail(false);
        let applied = accounts
            .apply(&event(1, "a", "1", "cus_1", Some(true)))
            .await;
        assert_eq!(
            applied.unwrap(),
            Applied::Changed(id("1")),
            "and it can come again"
        );
    }
}
