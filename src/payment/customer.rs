//! A customer of Stripe's: what each of their subscriptions last said.
//!
//! Pure: it knows no store and no clock. A subscription that ended never pays again, whatever comes
//! after; with many, one that pays is enough. Everything is bounded, and what was let go of for that
//! comes back by nothing that is older. Called by `local`, which keeps customers with their accounts,
//! and those without one apart.

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
    /// When the latest event of a subscription came about that was let go of, in seconds since 1970;
    /// nothing where none was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    forgotten: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Subscription {
    paid: bool,
    /// Whether it was deleted, from which none comes back.
    ended: bool,
    /// Whether nothing but invoices spoke of it.
    #[serde(default, skip_serializing_if = "is_false")]
    is_invoiced: bool,
    /// When the last event came about, in seconds since 1970.
    created: u64,
    /// The events of that second: of earlier ones none is taken again.
    events: Vec<String>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the derived serializer calls it with a reference"
)]
fn is_false(value: &bool) -> bool {
    !value
}

impl Customer {
    /// Begins with one of whom everything may have been forgotten up to a time, in seconds since
    /// 1970.
    pub(super) fn beginning(forgotten: Option<u64>) -> Self {
        Self {
            forgotten,
            ..Self::default()
        }
    }

    /// Takes for possible that everything was forgotten up to a time, in seconds since 1970.
    pub(super) fn forget(&mut self, until: u64) {
        self.forgotten = self.forgotten.max(Some(until));
    }

    /// Tells whether a subscription ended of which that has to be known.
    fn has_ended(&self) -> bool {
        self.forgotten.is_some() || self.subscriptions.values().any(|one| one.ended)
    }

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
        let (last, is_new) = (known.map_or(0, |one| one.created), known.is_none());
        if let Some(forgotten) = self.forgotten.filter(|_| is_new && !ends) {
            // It may be one that has ended: what was said before that is older, and what comes after
            // it are invoices.
            if event.created <= forgotten {
                return Err(Applied::Older);
            }
            if event.is_invoice {
                return Err(Applied::Ignored);
            }
        }
        // An end counts however late it comes: what it overtook was sent before it.
        if !ends && event.created < last.max(said) {
            return Err(Applied::Older);
        }
        if !name.is_empty() {
            self.subscriptions
                .retain(|name, one| !(name.is_empty() && one.is_invoiced));
        }
        let one = self.subscriptions.entry(name.to_owned()).or_default();
        one.is_invoiced = event.is_invoice && (is_new || one.is_invoiced);
        // Events of one second come in any order: all of them have to say that it is paid.
        let agrees = is_new || event.created != one.created || one.paid;
        if event.created > one.created {
            one.events.clear();
        }
        if one.events.len() >= EVENT_LIMIT {
            one.events.remove(0);
        }
        one.events.push(event.id.clone());
        one.created = one.created.max(event.created);
        one.ended = ends;
        one.paid = paid && !ends && agrees;
        self.keep_to_limit();
        Ok(())
    }

    /// Lets go of the subscription that was heard of least lately, of those that do not pay if there
    /// are any, and remembers up to when.
    fn keep_to_limit(&mut self) {
        if self.subscriptions.len() <= SUBSCRIPTION_LIMIT {
            return;
        }
        let all = self.subscriptions.iter();
        let least = all.min_by_key(|(_, one)| (one.paid, one.created));
        if let Some((name, created)) = least.map(|(name, one)| (name.clone(), one.created)) {
            self.subscriptions.remove(&name);
            self.forget(created);
        }
    }
}

/// The customers whom no event has linked to an account yet: events come in any order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Unlinked {
    pub(super) format: u32,
    pub(super) customers: BTreeMap<String, Customer>,
    /// When a customer was last heard of who had ended a subscription and was let go of, in seconds
    /// since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    forgotten: Option<u64>,
}

impl Unlinked {
    /// Returns since when events count of a customer who is not there, in seconds since 1970: what was
    /// said before may be of one who has ended.
    pub(super) fn known_since(&self) -> u64 {
        self.forgotten
            .map_or(0, |forgotten| forgotten.saturating_add(1))
    }

    /// Keeps what an event says of a customer, and tells what it was if nothing changes.
    pub(super) fn take(&mut self, name: &str, event: &Event) -> Result<(), Applied> {
        let known = self.customers.get(name).cloned();
        let since = known.as_ref().map_or_else(|| self.known_since(), |_| 0);
        let mut customer = known.unwrap_or_default();
        customer.take(event, since)?;
        let oldest = event.created.saturating_sub(UNLINKED_SECONDS);
        self.let_go(|_, other| other.heard() < oldest);
        if !self.customers.contains_key(name) && self.customers.len() >= UNLINKED_LIMIT {
            let least = self.customers.iter().min_by_key(|(_, other)| other.heard());
            let least = least.map(|(name, _)| name.clone());
            self.let_go(|name, _| Some(name) == least.as_ref());
        }
        self.customers.insert(name.to_owned(), customer);
        Ok(())
    }

    /// Lets customers go, and remembers up to when one of them had ended.
    fn let_go(&mut self, which: impl Fn(&String, &Customer) -> bool) {
        let forgotten = &mut self.forgotten;
        self.customers.retain(|name, customer| {
            let goes = which(name, customer);
            if goes && customer.has_ended() {
                *forgotten = (*forgotten).max(Some(customer.heard()));
            }
            !goes
        });
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
            let event = updated(number, &format!("sub_{number}"), number == 0);
            customer.take(&event, 0).unwrap();
        }
        assert_eq!(customer.subscriptions.len(), SUBSCRIPTION_LIMIT);
        assert!(customer.is_paid());
    }

    /// Takes events one after the other.
    fn after(events: &[Event]) -> Customer {
        let mut customer = Customer::default();
        for event in events {
            drop(customer.take(event, 0));
        }
        customer
    }

    /// Of a subscription, what says its state and is no invoice.
    fn updated(created: u64, subscription: &str, paid: bool) -> Event {
        Event {
            is_invoice: false,
            ..event(created, subscription, paid)
        }
    }

    #[test]
    fn one_that_ended_and_was_let_go_of_is_not_revived() {
        for others_pay in [true, false] {
            let mut customer = after(&[updated(1, "sub_ended", true), end(2, "sub_ended")]);
            for number in 0..SUBSCRIPTION_LIMIT as u64 {
                let other = updated(10 + number, &format!("sub_{number}"), others_pay);
                customer.take(&other, 0).unwrap();
            }
            assert!(!customer.subscriptions.contains_key("sub_ended"));
            let late = [
                (updated(1, "sub_ended", true), Applied::Older),
                (updated(2, "sub_ended", true), Applied::Older),
                (event(2, "sub_ended", true), Applied::Older),
                // Its last invoice is paid after its end.
                (event(99, "sub_ended", true), Applied::Ignored),
            ];
            for (late, expected) in late {
                assert_eq!(customer.take(&late, 0), Err(expected), "{late:?}");
            }
            assert_eq!(customer.is_paid(), others_pay);
            // What is new still counts, as soon as more than an invoice speaks of it.
            assert_eq!(
                customer.take(&event(99, "sub_new", true), 0),
                Err(Applied::Ignored)
            );
            customer.take(&updated(99, "sub_new", true), 0).unwrap();
            customer.take(&event(100, "sub_new", true), 0).unwrap();
            assert!(customer.is_paid());
            assert_eq!(customer.subscriptions.len(), SUBSCRIPTION_LIMIT);
        }
    }

    #[test]
    fn an_end_that_comes_to_a_full_list_of_those_that_pay_takes_no_place() {
        let mut customer = Customer::default();
        for number in 0..SUBSCRIPTION_LIMIT as u64 {
            let pays = updated(number, &format!("sub_{number}"), true);
            customer.take(&pays, 0).unwrap();
        }
        customer.take(&end(50, "sub_ended"), 0).unwrap();
        let paying = customer.subscriptions.values().filter(|one| one.paid);
        assert_eq!(paying.count(), SUBSCRIPTION_LIMIT);
        let late = customer.take(&updated(50, "sub_ended", true), 0);
        assert_eq!(late, Err(Applied::Older));
    }

    /// Tells whether a customer is paid after events of one second, in each of their orders.
    fn in_all_orders(before: &[Event], events: &[Event]) -> Vec<bool> {
        let [first, second, third] = events else {
            panic!("three events")
        };
        let orders = [
            [first, second, third],
            [first, third, second],
            [second, first, third],
            [second, third, first],
            [third, first, second],
            [third, second, first],
        ];
        let paid = orders.map(|order| {
            let order = order.into_iter().cloned();
            let all: Vec<Event> = before.iter().cloned().chain(order).collect();
            after(&all).is_paid()
        });
        paid.to_vec()
    }

    #[test]
    fn events_of_one_second_say_the_same_in_every_order() {
        let named = |id: &str, event: Event| Event {
            id: id.to_owned(),
            ..event
        };
        let (yes, again) = (
            || named("yes", updated(9, "sub_1", true)),
            || named("again", event(9, "sub_1", true)),
        );
        let no = || named("no", event(9, "sub_1", false));
        let other = |paid| named("other", updated(9, "sub_2", paid));
        let nameless = || named("nameless", event(9, "", true));
        for (events, paid) in [
            ([yes(), again(), no()], false),
            ([yes(), no(), no()], false),
            ([yes(), again(), other(false)], true),
            ([no(), other(true), yes()], true),
            ([yes(), again(), end(9, "sub_1")], false),
            // What an invoice says that names no subscription counts beside none.
            ([nameless(), no(), no()], false),
            ([nameless(), end(9, "sub_1"), other(false)], false),
            ([nameless(), yes(), no()], false),
        ] {
            for before in [&[][..], &[updated(5, "sub_1", true)]] {
                let found = in_all_orders(before, &events);
                assert_eq!(found, vec![paid; 6], "{before:?} {events:?}");
            }
        }
        // The next second says what it says.
        let customer = after(&[yes(), no(), updated(10, "sub_1", true)]);
        assert!(customer.is_paid());
    }

    #[test]
    fn one_without_an_account_who_ended_and_was_let_go_of_does_not_come_back() {
        for by_age in [false, true] {
            let mut unlinked = Unlinked::default();
            unlinked.take("cus_ended", &end(1000, "sub_1")).unwrap();
            if by_age {
                let later = event(1001 + UNLINKED_SECONDS, "sub_1", true);
                unlinked.take("cus_other", &later).unwrap();
            }
            for number in 0..UNLINKED_LIMIT as u64 {
                let other = event(2000 + number, "sub_1", true);
                unlinked.take(&format!("cus_{number}"), &other).unwrap();
            }
            assert!(!unlinked.customers.contains_key("cus_ended"));
            assert_eq!(unlinked.known_since(), 1001);
            for created in [1, 1000] {
                let late = unlinked.take("cus_ended", &updated(created, "sub_1", true));
                assert_eq!(late, Err(Applied::Older), "{created}");
            }
            let new = unlinked.take("cus_new", &updated(1001, "sub_1", true));
            assert_eq!(new, Ok(()));
        }
    }

    #[test]
    fn a_record_of_before_is_read() {
        let text = r#"{"linked":1,"subscriptions":{"sub_1":{"paid":true,"ended":false,
            "created":2,"events":["evt_1"]}}}"#;
        let customer: Customer = serde_json::from_str(text).unwrap();
        assert!(customer.is_paid());
        let written = serde_json::to_value(&customer).unwrap();
        let before: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(written, before);
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
