//! Tests of the accounts of the store: what operators and Stripe say of them, and what is read again.

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
        subscription: (!customer.is_empty()).then(|| format!("sub_of_{customer}")),
        paid,
        is_invoice: true,
        is_end: false,
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
        (event(7, "z", "", "", Some(true)), Applied::Unknown, false),
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
    accounts.apply(&pay(19, "b", true)).await.unwrap();
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
async fn a_customer_belongs_to_the_account_that_was_named_last() {
    let (records, store) = records();
    let records = Arc::new(records);
    let mut accounts = Accounts::load(Arc::clone(&records)).await.unwrap();
    let moved = |to, from| Applied::Moved(id(to), id(from));
    let steps = [
        (
            event(10, "a", "2", "cus_1", Some(true)),
            Applied::Changed(id("2")),
            "2",
        ),
        // A checkout that is not paid yet is enough.
        (event(20, "b", "1", "cus_1", None), moved("1", "2"), "1"),
        (event(20, "b", "1", "cus_1", None), Applied::Repeated, "1"),
        // An earlier link that comes late links nobody.
        (event(15, "c", "3", "cus_1", None), Applied::Repeated, "1"),
        (
            event(16, "d", "", "cus_1", Some(true)),
            Applied::Changed(id("1")),
            "1",
        ),
        (
            event(30, "e", "3", "cus_1", Some(true)),
            moved("3", "1"),
            "3",
        ),
        (event(31, "f", "2", "cus_1", None), moved("2", "3"), "2"),
        (
            event(40, "g", "", "cus_1", Some(false)),
            Applied::Changed(id("2")),
            "",
        ),
    ];
    for (event, expected, payer) in steps {
        assert_eq!(accounts.apply(&event).await.unwrap(), expected, "{event:?}");
        for again in [false, true] {
            for account in ["1", "2", "3"] {
                let paid = is_paid(&accounts, account).await;
                assert_eq!(paid, account == payer, "{account} {again} {event:?}");
            }
            accounts = Accounts::load(Arc::clone(&records)).await.unwrap();
        }
    }
    // A process that dies between the two records: the later link is the one that counts.
    for (created, to, from) in [(50, "1", "2"), (51, "3", "1"), (52, "2", "3")] {
        let key = RecordKey::new(RecordKind::Account, from);
        let before = store.sealed(&key).await;
        let links = event(created, to, to, "cus_1", Some(true));
        assert_eq!(accounts.apply(&links).await.unwrap(), moved(to, from));
        store.put_sealed(&key, before).await;
        accounts = Accounts::load(Arc::clone(&records)).await.unwrap();
        for account in ["1", "2", "3"] {
            let paid = is_paid(&accounts, account).await;
            assert_eq!(paid, account == to, "{account} after {from} to {to}");
        }
    }
}

#[tokio::test]
async fn links_of_one_second_lead_to_the_same_account_in_either_order() {
    let links = |account| event(10, account, account, "cus_1", Some(true));
    for order in [["1", "2"], ["2", "1"]] {
        let (records, store) = records();
        let records = Arc::new(records);
        let accounts = Accounts::load(Arc::clone(&records)).await.unwrap();
        let first = RecordKey::new(RecordKind::Account, order[0]);
        accounts.apply(&links(order[0])).await.unwrap();
        let before = store.sealed(&first).await;
        accounts.apply(&links(order[1])).await.unwrap();
        for is_left in [false, true] {
            assert!(!is_paid(&accounts, "1").await, "{order:?}");
            assert!(is_paid(&accounts, "2").await, "{order:?}");
            if is_left && order[1] == "2" {
                // The process died between the two records.
                store.put_sealed(&first, before.clone()).await;
            }
            let again = Accounts::load(Arc::clone(&records)).await.unwrap();
            assert!(!is_paid(&again, "1").await, "{order:?}");
            assert!(is_paid(&again, "2").await, "{order:?}");
        }
    }
}

#[tokio::test]
async fn a_customer_who_ended_and_was_let_go_of_does_not_pay_again() {
    let (records, _store) = records();
    let records = Arc::new(records);
    let accounts = Accounts::load(Arc::clone(&records)).await.unwrap();
    let updated = |created, account, paid| Event {
        is_invoice: false,
        ..event(
            created,
            &format!("u{created}"),
            account,
            "cus_ended",
            Some(paid),
        )
    };
    accounts.apply(&updated(1, "1", true)).await.unwrap();
    let end = Event {
        is_end: true,
        ..updated(2, "", false)
    };
    accounts.apply(&end).await.unwrap();
    for number in 0..CUSTOMER_LIMIT as u64 {
        let customer = format!("cus_{number}");
        let other = event(10 + number, "a", "1", &customer, Some(false));
        accounts.apply(&other).await.unwrap();
    }
    for _read_again in [false, true] {
        let accounts = Accounts::load(Arc::clone(&records)).await.unwrap();
        let invoice = |created| event(created, "i", "1", "cus_ended", Some(true));
        for late in [updated(1, "1", true), updated(2, "1", true), invoice(99)] {
            accounts.apply(&late).await.unwrap();
            assert!(!is_paid(&accounts, "1").await, "{late:?}");
        }
    }
    // By the way of those without an account neither.
    let accounts = Accounts::load(records).await.unwrap();
    for number in 0..CUSTOMER_LIMIT as u64 {
        let customer = format!("cus_{number}");
        let other = event(200 + number, "b", "1", &customer, Some(false));
        accounts.apply(&other).await.unwrap();
    }
    let unlinked = event(300, "late", "", "cus_ended", Some(true));
    accounts.apply(&unlinked).await.unwrap();
    let link = event(301, "link", "1", "cus_ended", None);
    accounts.apply(&link).await.unwrap();
    assert!(!is_paid(&accounts, "1").await);
    // Who begins anew pays anew.
    accounts.apply(&updated(302, "1", true)).await.unwrap();
    assert!(is_paid(&accounts, "1").await);
}

#[tokio::test]
async fn events_that_overtake_their_checkout_are_taken_over_by_it() {
    let link = || event(10, "link", "1", "cus_1", None);
    let say = |created, paid| event(created, "say", "", "cus_1", Some(paid));
    let end = |created| Event {
        is_end: true,
        ..say(created, false)
    };
    let pays = || event(10, "pays", "1", "cus_1", Some(true));
    for (early, late, paid) in [
        // A trial: the checkout only links.
        (say(10, true), link(), true),
        (say(11, true), link(), true),
        (say(11, false), pays(), false),
        // The checkout was repeated for days.
        (end(90), pays(), false),
    ] {
        let (records, _store) = records();
        let records = Arc::new(records);
        let accounts = Accounts::load(Arc::clone(&records)).await.unwrap();
        assert_eq!(accounts.apply(&early).await.unwrap(), Applied::Kept);
        let repeated = accounts.apply(&early).await.unwrap();
        assert_eq!(repeated, Applied::Repeated);
        assert_eq!(accounts.list(), []);
        let accounts = Accounts::load(Arc::clone(&records)).await.unwrap();
        let linked = accounts.apply(&late).await.unwrap();
        assert_eq!(linked, Applied::Changed(id("1")));
        assert_eq!(is_paid(&accounts, "1").await, paid, "{early:?} {late:?}");
        let accounts = Accounts::load(records).await.unwrap();
        assert_eq!(is_paid(&accounts, "1").await, paid, "read again");
        assert_eq!(accounts.unlinked().unwrap().customers.len(), 0);
    }
    // The operator's word stands above what was kept from before it.
    let accounts = empty_for_tests();
    accounts.apply(&say(10, true)).await.unwrap();
    accounts.grant(&id("1"), false, at(20)).await.unwrap();
    let later = event(21, "link", "1", "cus_1", None);
    accounts.apply(&later).await.unwrap();
    assert!(!is_paid(&accounts, "1").await);
}

#[tokio::test]
async fn without_the_record_of_the_unlinked_nobody_is_linked() {
    let (records, _store) = records();
    let records = Arc::new(records);
    let key = RecordKey::new(RecordKind::Account, UNLINKED);
    records.put(&key, b"{}").await.unwrap();
    let accounts = Accounts::load(records).await.unwrap();
    for account in ["", "1"] {
        let pays = event(1, "a", account, "cus_1", Some(true));
        let applied = accounts.apply(&pays).await;
        assert!(matches!(applied, Err(Error::Refused)), "{applied:?}");
    }
    assert!(!is_paid(&accounts, "1").await);
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
    let other = br#"{"format":1,"granted":null,"customers":{}}"#;
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

#[tokio::test]
async fn accounts_that_another_process_has_say_nothing_here() {
    let accounts = empty_for_tests();
    accounts.grant(&id("1"), true, at(1)).await.unwrap();
    drop(accounts.hold_changes().await);
    assert!(is_paid(&accounts, "1").await);
    accounts.hold_changes().await.go();
    let checked = accounts.check(&id("1")).await;
    assert!(matches!(checked, Err(Error::HandedOver)), "{checked:?}");
    let granted = accounts.grant(&id("1"), false, at(2)).await;
    assert!(matches!(granted, Err(Error::HandedOver)), "{granted:?}");
    let pays = event(3, "a", "1", "cus_1", Some(true));
    let applied = accounts.apply(&pays).await;
    assert!(matches!(applied, Err(Error::HandedOver)), "{applied:?}");
}
