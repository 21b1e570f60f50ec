//! A customer of Stripe's: what each of their subscriptions last said.
//!
//! Pure: it knows no store and no clock. A subscription that ended never pays again, whatever comes
//! after; with many, one that pays is enough. Everything is bounded. Called by `local`, which keeps
//! customers with their accounts, and those without one apart.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::event::Event;
use super::local::Applied;

/// The most subscriptions of one customer; with more, those that do not pay and were heard of least
/// lately go.
const SUBSCRIPTION_LIMIT: usize = 16;
/// The most events of one second that are remembered.
const EVENT_LIMIT: usize = 64;
/// The most customers without an account; with more, those that were heard of least lately go.
const UNLINKED_LIMIT: usize = 512;
/// How much later than its last event a customer without an account is forgotten, in seconds.
/// Stripe repeats a delivery for three days.
const UNLINKED_SECONDS: u64 = 7 * 24 * 60 * 60;

/// One customer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Customer {
    /// When the event came about that linked the customer to the account, in seconds since 1970.
    pub(super) linked: u64,
    /// By their ids. What was paid for once, by no subscription, has none.
    subscriptions: BTreeMap<String, Subscription>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Subscription {
    paid: bool,
    /// Whether it was deleted, from which none comes back.
    ended: bool,
    /// When the last event came about, in seconds since 1970.
    created: u64,
    /// The events of that second: of earlier ones none is taken again.
    events: Vec<String>,
}

impl Customer {
    /// Tells whether any of the subscriptions pays.
    pub(super) fn is_paid(&self) -> bool {
        self.subscriptions.values().any(|one| one.paid)
    }

    /// Returns when the customer was last heard of, in seconds since 1970.
    pub(super) fn heard(&self) -> u64 {
        let last = self.subscriptions.values().map(|one| one.created).max();
        self.linked.max(last.unwrap_or_default())
    }

    /// Lets nothing count that was paid before a time, in seconds since 1970.
    pub(super) fn forgive_before(&mut self, time: u64) {
        for one in self.subscriptions.values_mut() {
            one.paid &= one.created >= time;
        }
    }

    /// Takes an event, and tells what it was if nothing changes. What came about before `said`, in
    /// seconds since 1970, does not count.
    pub(super) fn take(&mut self, event: &Event, said: u64) -> Result<(), Applied> {
        let Some(paid) = event.paid else {
            return Err(Applied::Repeated);
        };
        let name = event.subscription.as_deref().unwrap_or_default();
        // What somebody owes beside their subscriptions tells nothing of these.
        let has_any = self.subscriptions.keys().any(|name| !name.is_empty());
        if event.is_invoice && name.is_empty() && has_any {
            return Err(Applied::Ignored);
        }
        let known = self.subscriptions.get(name);
        if known.is_some_and(|one| one.ended || one.events.contains(&event.id)) {
            return Err(Applied::Repeated);
        }
        let ends = event.is_end && !name.is_empty();
        let last = known.map_or(0, |one| one.created);
        // An end counts however late it comes: what it overtook was sent before it.
        if !ends && event.created < last.max(said) {
            return Err(Applied::Older);
        }
        self.make_room(name);
        let one = self.subscriptions.entry(name.to_owned()).or_default();
        if event.created > one.created {
            one.events.clear();
        }
        if one.events.len() >= EVENT_LIMIT {
            one.events.remove(0);
        }
        one.events.push(event.id.clone());
        one.created = one.created.max(event.created);
        one.ended = ends;
        one.paid = paid && !ends;
        Ok(())
    }

    fn make_room(&mut self, name: &str) {
        let is_known = self.subscriptions.contains_key(name);
        if !is_known && self.subscriptions.len() >= SUBSCRIPTION_LIMIT {
            let all = self.subscriptions.iter();
            let least = all.min_by_key(|(_, one)| (one.paid, one.created));
            let least = least.map(|(name, _)| name.clone());
            self.subscriptions
                .retain(|name, _| Some(name) != least.as_ref());
        }
    }
}

/// The customers whom no event has linked to an account yet: events come in any order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Unlinked {
    pub(super) format: u32,
    pub(super) customers: BTreeMap<String, Customer>,
}

impl Unlinked {
    /// Keeps what an event says of a customer, and tells what it was if nothing changes.
    pub(super) fn take(&mut self, name: &str, event: &Event) -> Result<(), Applied> {
        let mut customer = self.customers.get(name).cloned().unwrap_or_default();
        customer.take(event, 0)?;
        let oldest = event.created.saturating_sub(UNLINKED_SECONDS);
        self.customers.retain(|_, other| other.heard() >= oldest);
        if !self.customers.contains_key(name) && self.customers.len() >= UNLINKED_LIMIT {
            let least = self.customers.iter().min_by_key(|(_, other)| other.heard());
            let least = least.map(|(name, _)| name.clone());
            self.customers
                .retain(|name, _| Some(name) != least.as_ref());
        }
        self.customers.insert(name.to_owned(), customer);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(created: u64, subscription: &str, paid: bool) -> Event {
        Event {
            id: format!("evt_{created}"),
            created,
            account: None,
            customer: Some("cus_1".to_owned()),
            subscription: (!subscription.is_empty()).then(|| subscription.to_owned()),
            paid: Some(paid),
            is_invoice: true,
            is_end: false,
        }
    }

    fn end(created: u64, subscription: &str) -> Event {
        Event {
            is_invoice: false,
            is_end: true,
            ..event(created, subscription, false)
        }
    }

    #[test]
    fn a_subscription_that_ended_is_never_revived() {
        // In the order of the events, and where the end is overtaken by the invoice after it.
        let orders = [
            vec![
                event(1, "sub_1", true),
                end(2, "sub_1"),
                event(3, "sub_1", true),
            ],
            vec![
                event(1, "sub_1", true),
                event(3, "sub_1", true),
                end(2, "sub_1"),
            ],
            vec![
                end(2, "sub_1"),
                event(1, "sub_1", true),
                event(3, "sub_1", true),
            ],
            // The last invoice does not always say what it is for.
            vec![event(1, "sub_1", true), end(2, "sub_1"), event(3, "", true)],
        ];
        for events in orders {
            let mut customer = Customer::default();
            for event in &events {
                drop(customer.take(event, 0));
            }
            assert!(!customer.is_paid(), "{events:?}");
        }
    }

    #[test]
    fn one_subscription_that_pays_is_enough() {
        let mut customer = Customer::default();
        for (event, paid) in [
            (event(1, "sub_1", true), true),
            (event(2, "sub_2", true), true),
            (end(3, "sub_1"), true),
            (event(4, "sub_2", false), false),
            (event(5, "sub_2", true), true),
            (end(6, "sub_2"), false),
            (event(7, "sub_3", true), true),
        ] {
            customer.take(&event, 0).unwrap();
            assert_eq!(customer.is_paid(), paid, "{event:?}");
        }
    }

    #[test]
    fn subscriptions_are_bounded_and_one_that_pays_does_not_go_first() {
        let mut customer = Customer::default();
        for number in 0..100 {
            let event = event(number, &format!("sub_{number}"), number == 0);
            customer.take(&event, 0).unwrap();
        }
        assert_eq!(customer.subscriptions.len(), SUBSCRIPTION_LIMIT);
        assert!(customer.is_paid());
    }

    #[test]
    fn customers_without_an_account_are_bounded_and_age() {
        let mut unlinked = Unlinked::default();
        for number in 0..1000 {
            let name = format!("cus_{number}");
            unlinked.take(&name, &event(number, "sub_1", true)).unwrap();
        }
        assert_eq!(unlinked.customers.len(), UNLINKED_LIMIT);
        assert!(unlinked.customers.contains_key("cus_999"));
        assert!(!unlinked.customers.contains_key("cus_0"));
        let much_later = event(999 + UNLINKED_SECONDS, "sub_1", true);
        unlinked.take("cus_new", &much_later).unwrap();
        let left: Vec<_> = unlinked.customers.keys().collect();
        assert_eq!(left, ["cus_999", "cus_new"]);
    }
}
