//! Budgets, crashes and a store that fails: what is let through, and what is found afterwards.
//!
//! The store is in memory and can be held, so that nothing here waits for a time.

use std::time::{Duration, UNIX_EPOCH};

use futures_util::FutureExt as _;
use futures_util::future::join_all;

use super::*;
use crate::payment::testing::{TestStore, records};

const NOW: SystemTime = UNIX_EPOCH;

struct World {
    ledger: Arc<Ledger>,
    records: Arc<Records>,
    store: Arc<TestStore>,
}

fn world(monthly: Option<u64>, free_allowance: u64) -> World {
    let (records, store) = records();
    let records = Arc::new(records);
    let budgets = Budgets {
        monthly,
        free_allowance,
    };
    World {
        ledger: Arc::new(Ledger::new(Arc::clone(&records), budgets)),
        records,
        store,
    }
}

impl World {
    async fn reserve(&self, paid: bool, tokens: u64) -> Result<Reservation, Refusal> {
        self.reserve_up_to(paid, tokens..=tokens).await
    }

    async fn reserve_up_to(
        &self,
        paid: bool,
        tokens: RangeInclusive<u64>,
    ) -> Result<Reservation, Refusal> {
        let standing = Standing::of(&account(), paid);
        let sandbox = SandboxName::parse("sb").unwrap();
        let reserved = self.ledger.reserve(&standing, &sandbox, "m", tokens, NOW);
        reserved.await
    }

    /// What a process finds that starts now.
    async fn found(&self) -> Usage {
        let again = Ledger::new(Arc::clone(&self.records), Budgets::default());
        again.usage(&account(), month()).await.unwrap()
    }
}

fn account() -> AccountId {
    AccountId::parse("1").unwrap()
}

fn month() -> Month {
    Month::of(NOW).unwrap()
}

fn output(output: u64) -> Tokens {
    Tokens {
        output,
        ..Tokens::default()
    }
}

#[tokio::test]
async fn what_may_use_more_than_is_left_takes_all_of_it() {
    let world = world(Some(100), 0);
    let first = world.reserve_up_to(true, 10..=60).await.unwrap();
    let second = world.reserve_up_to(true, 10..=60).await.unwrap();
    assert_eq!((first.most(), second.most()), (60, 40));
    let third = world.reserve_up_to(true, 1..=60).await;
    assert!(matches!(third, Err(Refusal::BudgetUsed)), "{third:?}");
    second.settle("m", &output(25));
    // What it takes at the least has to fit.
    let third = world.reserve_up_to(true, 16..=60).await;
    assert!(matches!(third, Err(Refusal::BudgetUsed)), "{third:?}");
    drop(world.reserve_up_to(true, 15..=60).await.unwrap());
    drop(first);
    world.ledger.flush().await.unwrap();
    assert_eq!(world.found().await.counted(), 100);
}

#[tokio::test]
async fn without_a_budget_nothing_is_taken_beyond_what_is_known() {
    let world = world(None, 7);
    let free = world.reserve_up_to(true, 10..=60).await.unwrap();
    assert_eq!((free.most(), free.reserved), (10, 0));
    let unpaid = world.reserve_up_to(false, 3..=60).await.unwrap();
    assert_eq!(unpaid.most(), 7);
}

#[tokio::test]
async fn a_budget_is_reserved_settled_and_used_up() {
    let world = world(Some(100), 0);
    let first = world.reserve(true, 100).await.unwrap();
    assert_eq!(first.most(), 100);
    let second = world.reserve(true, 1).await;
    assert!(matches!(second, Err(Refusal::BudgetUsed)), "{second:?}");
    first.settle("m", &output(40));
    let second = world.reserve(true, 61).await;
    assert!(matches!(second, Err(Refusal::BudgetUsed)), "{second:?}");
    world.reserve(true, 60).await.unwrap().release();
    drop(world.reserve(true, 60).await.unwrap());
    for tokens in [0, 1] {
        let third = world.reserve(true, tokens).await;
        assert!(matches!(third, Err(Refusal::BudgetUsed)), "{third:?}");
    }
    let usage = world.ledger.usage(&account(), month()).await.unwrap();
    assert_eq!(usage.counted(), 100);
    assert_eq!(
        (usage.lines[0].tokens, usage.lines[0].unsettled),
        (output(40), 60)
    );
    let next = NOW + Duration::from_hours(32 * 24);
    let paid = Standing::of(&account(), true);
    let sandbox = SandboxName::parse("sb").unwrap();
    let next = world.ledger.reserve(&paid, &sandbox, "m", 100..=100, next);
    next.await.unwrap().release();
}

#[tokio::test]
async fn the_free_allowance_is_the_budget_of_the_unpaid() {
    let world = world(None, 10);
    world
        .reserve(false, 10)
        .await
        .unwrap()
        .settle("m", &output(10));
    let refused = world.reserve(false, 1).await;
    assert!(matches!(refused, Err(Refusal::Unpaid)), "{refused:?}");
    world.reserve(true, 1_000_000).await.unwrap().release();
    let none = self::world(Some(10), 0);
    let refused = none.reserve(false, 1).await;
    assert!(matches!(refused, Err(Refusal::Unpaid)), "{refused:?}");
    none.reserve(true, 10).await.unwrap().release();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_a_hundred_at_once_one_request_s_worth_lets_one_through() {
    for paid in [true, false] {
        let world = Arc::new(world(Some(1000), 1000));
        let tries = (0..100).map(|_| {
            let world = Arc::clone(&world);
            tokio::spawn(async move { world.reserve(paid, 1000).await })
        });
        let mut through = Vec::new();
        for tried in join_all(tries).await {
            match (tried.unwrap(), paid) {
                (Ok(reservation), _) => through.push(reservation),
                (Err(Refusal::BudgetUsed), true) | (Err(Refusal::Unpaid), false) => {}
                (Err(other), _) => panic!("{other:?}"),
            }
        }
        assert_eq!(through.len(), 1);
        assert_eq!(world.found().await.counted(), 1000, "and it is durable");
    }
}

#[tokio::test]
async fn a_reservation_is_durable_before_it_is_given_and_many_share_a_write() {
    let world = world(Some(1000), 0);
    // The book is read before the store is held.
    assert_eq!(
        world
            .ledger
            .usage(&account(), month())
            .await
            .unwrap()
            .counted(),
        0
    );
    world.store.hold();
    let mut all = Box::pin(join_all((0..100).map(|_| world.reserve(true, 10))));
    for _ in 0..10 {
        assert!(all.as_mut().now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    assert_eq!(world.found().await.counted(), 0);
    world.store.open();
    let all = all.await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(world.found().await.counted(), 1000);
    assert!(world.store.puts() <= 2, "{}", world.store.puts());
}

/// A process that is killed settles nothing: what it reserved counts, once.
#[tokio::test]
async fn what_a_kill_left_counts_as_used_whole_and_once() {
    let world = world(Some(100), 0);
    world
        .reserve(true, 50)
        .await
        .unwrap()
        .settle("m", &output(5));
    world.ledger.flush().await.unwrap();
    std::mem::forget(world.reserve(true, 70).await.unwrap());
    for _ in 0..2 {
        let found = world.found().await;
        assert_eq!(found.counted(), 75);
        assert_eq!((found.lines[0].unsettled, found.lines[0].reserved), (70, 0));
    }
    let budgets = Budgets {
        monthly: Some(100),
        free_allowance: 0,
    };
    let again = World {
        ledger: Arc::new(Ledger::new(Arc::clone(&world.records), budgets)),
        records: Arc::clone(&world.records),
        store: Arc::clone(&world.store),
    };
    let refused = again.reserve(true, 26).await;
    assert!(matches!(refused, Err(Refusal::BudgetUsed)), "{refused:?}");
    again
        .reserve(true, 25)
        .await
        .unwrap()
        .settle("m", &output(25));
    again.ledger.flush().await.unwrap();
    assert_eq!(world.found().await.counted(), 100);
}

/// What the process is told that has the books.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    fn tell(&self) -> impl Fn(String) + Send + Sync + 'static {
        let told = Arc::clone(&self.0);
        move |note| lock(&told).push(note)
    }

    /// Tells a ledger, and forgets.
    async fn to(&self, ledger: &Ledger) -> usize {
        let told = std::mem::take(&mut *lock(&self.0));
        for note in &told {
            ledger.settle_for(note).await;
        }
        told.len()
    }
}

impl World {
    /// A process that begins with what is in the store.
    fn next(&self) -> Self {
        Self {
            ledger: Arc::new(Ledger::new(Arc::clone(&self.records), self.ledger.budgets)),
            records: Arc::clone(&self.records),
            store: Arc::clone(&self.store),
        }
    }

    async fn usage(&self) -> Usage {
        self.ledger.usage(&account(), month()).await.unwrap()
    }
}

#[tokio::test]
async fn what_ends_when_the_books_have_gone_is_entered_by_who_has_them() {
    for budget in [Some(1000), None] {
        let world = world(budget, 0);
        let [early, late, lost, unsent] = [
            world.reserve(true, 300).await.unwrap(),
            world.reserve(true, 200).await.unwrap(),
            world.reserve(true, 100).await.unwrap(),
            world.reserve(true, 50).await.unwrap(),
        ];
        let (told, books) = (Told::default(), world.ledger.leave());
        let mut waiting = Box::pin(world.reserve(true, 1));
        assert!(waiting.as_mut().now_or_never().is_none());
        world.ledger.flush().await.unwrap();
        early.settle("m-used", &output(30));
        books.go(told.tell());
        late.settle("m", &output(20));
        drop(lost);
        unsent.release();
        let refused = waiting.await;
        assert!(matches!(refused, Err(Refusal::HandedOver)), "{refused:?}");
        let next = world.next();
        let before = if budget.is_some() { 650 } else { 0 };
        assert_eq!(next.usage().await.counted(), before);
        // Without a budget there is nothing to give back.
        let notes = if budget.is_some() { 4 } else { 3 };
        assert_eq!(told.to(&next.ledger).await, notes);
        let lines = next.usage().await.lines;
        let found: Vec<_> = lines
            .iter()
            .map(|line| (line.model.as_str(), line.tokens.output, line.unsettled))
            .collect();
        assert_eq!(found, [("m", 20, 100), ("m-used", 30, 0)]);
        next.ledger.flush().await.unwrap();
        assert_eq!(world.found().await.counted(), 150);
        // What cannot be read changes nothing.
        for odd in ["", "{}", r#"{"account":"a/b"}"#] {
            next.ledger.settle_for(odd).await;
        }
        assert_eq!(next.usage().await.counted(), 150);
    }
}

#[tokio::test]
async fn books_that_nobody_took_have_what_ended_meanwhile() {
    let world = world(Some(100), 0);
    let first = world.reserve(true, 60).await.unwrap();
    let books = world.ledger.leave();
    first.settle("m", &output(10));
    assert_eq!(world.usage().await.counted(), 60, "not yet");
    let mut waiting = Box::pin(world.reserve(true, 90));
    assert!(waiting.as_mut().now_or_never().is_none());
    drop(books);
    waiting.await.unwrap().settle("m", &output(5));
    world.ledger.flush().await.unwrap();
    assert_eq!(world.found().await.counted(), 15);
}

/// Nobody knows whether such a reservation is in the store.
#[tokio::test]
async fn a_reservation_that_nobody_got_gives_nothing_back_elsewhere() {
    for stays in [false, true] {
        let world = world(Some(100), 0);
        world.reserve(true, 30).await.unwrap().release();
        world.ledger.flush().await.unwrap();
        world.store.hold();
        let mut asked = Box::pin(world.reserve(true, 100));
        assert!(asked.as_mut().now_or_never().is_none());
        let (told, books) = (Told::default(), world.ledger.leave());
        drop(asked);
        if stays {
            drop(books);
            world.store.open();
            world.reserve(true, 100).await.unwrap().release();
        } else {
            books.go(told.tell());
            assert_eq!(told.to(&world.ledger).await, 0);
        }
    }
}

#[tokio::test]
async fn what_a_process_before_tells_goes_on_to_who_has_the_books() {
    let world = world(Some(100), 0);
    let [one, two] = [
        world.reserve(true, 40).await.unwrap(),
        world.reserve(true, 20).await.unwrap(),
    ];
    let (told, books) = (Told::default(), world.ledger.leave());
    world.ledger.flush().await.unwrap();
    books.go(told.tell());
    let next = world.next();
    assert_eq!(next.usage().await.counted(), 60);
    one.settle("m", &output(4));
    // It passes them on itself, in vain at first.
    let leaving = next.ledger.leave();
    assert_eq!(told.to(&next.ledger).await, 1);
    assert_eq!(next.usage().await.counted(), 60);
    drop(leaving);
    let entered = async {
        while next.usage().await.counted() != 24 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), entered)
        .await
        .unwrap();
    let (again, leaving) = (Told::default(), next.ledger.leave());
    next.ledger.flush().await.unwrap();
    two.settle("m", &output(2));
    assert_eq!(told.to(&next.ledger).await, 1);
    leaving.go(again.tell());
    let last = next.next();
    assert_eq!(last.usage().await.counted(), 24);
    assert_eq!(again.to(&last.ledger).await, 1);
    assert_eq!(last.usage().await.counted(), 6);
}

#[tokio::test]
async fn who_leaves_while_it_is_written_has_reserved_nothing() {
    let world = world(Some(100), 0);
    assert_eq!(
        world
            .ledger
            .usage(&account(), month())
            .await
            .unwrap()
            .counted(),
        0
    );
    world.store.hold();
    let mut first = Box::pin(world.reserve(true, 100));
    assert!(first.as_mut().now_or_never().is_none());
    drop(first);
    world.store.open();
    world.reserve(true, 100).await.unwrap().release();
    world.ledger.flush().await.unwrap();
    assert_eq!(world.found().await, Usage::default());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_lets_nothing_through_and_costs_nothing_later() {
    let world = world(Some(100), 0);
    world.store.fail(true);
    for _ in 0..3 {
        let refused = world.reserve(true, 100).await;
        assert!(
            matches!(refused, Err(Refusal::Unknown(Error::Unwritten))),
            "{refused:?}"
        );
    }
    world.store.fail(false);
    let through = world.reserve(true, 100).await.unwrap();
    // What cannot be written at once is written later.
    world.store.fail(true);
    through.settle("m", &output(9));
    assert!(world.ledger.flush().await.is_err());
    world.store.fail(false);
    world.ledger.flush().await.unwrap();
    assert_eq!(world.found().await.counted(), 9);
}

#[tokio::test]
async fn without_a_budget_nothing_waits_and_usage_is_kept() {
    let world = world(None, 0);
    world.store.hold();
    let first = world.reserve(true, 500).now_or_never().unwrap().unwrap();
    let second = world.reserve(true, 500).now_or_never().unwrap().unwrap();
    first.settle("m-answered", &output(7));
    drop(second);
    world.store.open();
    world.ledger.flush().await.unwrap();
    let lines = world.found().await.lines;
    assert_eq!((lines[0].model.as_str(), lines[0].unsettled), ("m", 500));
    assert_eq!(
        (lines[1].model.as_str(), lines[1].tokens),
        ("m-answered", output(7))
    );
}

#[tokio::test]
async fn a_book_that_is_refused_is_no_empty_one() {
    let world = world(Some(100), 100);
    let name = |account: &str| RecordKey::new(RecordKind::Usage, &format!("{account}/{}", month()));
    world.reserve(true, 1).await.unwrap().release();
    world.ledger.flush().await.unwrap();
    let moved = world.store.sealed(&name("1")).await;
    world.store.put_sealed(&name("2"), moved).await;
    world.records.put(&name("3"), b"{}").await.unwrap();
    let sandbox = SandboxName::parse("sb").unwrap();
    for account in ["2", "3"] {
        let standing = Standing::of(&AccountId::parse(account).unwrap(), true);
        let refused = world
            .ledger
            .reserve(&standing, &sandbox, "m", 1..=1, NOW)
            .await;
        assert!(
            matches!(refused, Err(Refusal::Unknown(Error::Refused))),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn books_that_nobody_uses_are_let_go() {
    let world = world(None, 0);
    let sandbox = SandboxName::parse("sb").unwrap();
    let held = world.reserve(true, 1).await.unwrap();
    for number in 0..2 * PAGE_LIMIT {
        let account = AccountId::of_number(1000 + number as u64);
        world.ledger.usage(&account, month()).await.unwrap();
    }
    assert!(lock(&world.ledger.pages).len() <= PAGE_LIMIT);
    let standing = Standing::of(&account(), true);
    let again = world
        .ledger
        .reserve(&standing, &sandbox, "m", 1..=1, NOW)
        .await
        .unwrap();
    assert!(
        Arc::ptr_eq(&held.page, &again.page),
        "one that is in use stays"
    );
}
