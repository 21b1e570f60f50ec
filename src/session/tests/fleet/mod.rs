//! Two nodes on one store: what each knows, when it asks, and what neither may end for the other.

mod refused;
mod store;
mod tenants;
mod word;

use std::sync::{Mutex, PoisonError};

use futures_util::FutureExt;

use self::store::TestFleet;
use crate::id::SessionId;
use crate::session::fleet::OnRecord;
use crate::session::tests::*;
use crate::session::{Error as SessionError, NotAdmitted};
use crate::tenant::{Limits, Tenants};

const SECOND: Duration = Duration::from_secs(1);

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A node of the fleet.
struct Node(Arc<Sessions>);

/// Two nodes, their store and the clock of all.
struct Pair {
    store: Arc<TestFleet>,
    clock: Clock,
    a: Node,
    b: Node,
}

impl Pair {
    async fn new() -> Self {
        let clock = Clock::default();
        let store = TestFleet::new(&clock);
        let pair = Self {
            a: Node::new(&store, &clock),
            b: Node::new(&store, &clock),
            store,
            clock,
        };
        pair.a.0.load().await.unwrap();
        pair.b.0.load().await.unwrap();
        pair
    }

    /// Lets time pass, with everything that nodes do in it.
    async fn pass(&self, time: Duration) {
        let mut left = time;
        while !left.is_zero() {
            let step = left.min(SECOND / 2);
            self.clock.advance(step);
            left -= step;
            for node in [&self.a, &self.b] {
                node.turn().await;
            }
        }
    }
}

impl Node {
    fn new(store: &Arc<TestFleet>, clock: &Clock) -> Self {
        let rows: Arc<dyn Store> = Arc::clone(store) as _;
        let key = Keyring::parse([b'7'; 64].as_slice()).unwrap();
        let sessions = Sessions::new(rows, key, options(), Arc::new(closed()), Sink::discard());
        let sessions = with_two(sessions).with_clock(clock.clone());
        Self(Arc::new(sessions.with_max_stale(10 * SECOND)))
    }

    /// Makes a node on which sessions have only the tenants of the store.
    fn with_tenants(store: &Arc<TestFleet>, clock: &Clock) -> Self {
        let rows: Arc<dyn Store> = Arc::clone(store) as _;
        let key = Keyring::parse([b'7'; 64].as_slice()).unwrap();
        let sessions = Sessions::new(rows, key, options(), Arc::new(closed()), Sink::discard());
        let records = Arc::clone(sessions.records());
        let tenants = Tenants::new(records, Limits::default(), 0);
        let sessions = sessions.with_clock(clock.clone());
        Self(Arc::new(sessions.with_tenants(Arc::new(tenants))))
    }

    /// Does what is done again and again.
    async fn turn(&self) {
        let nothing: &OnRecord = &|_| Box::pin(async { Ok(()) });
        let fleet = self.0.store.fleet().unwrap();
        let _failed_or_not = self.0.catch_up(fleet, nothing).await;
        self.0.cut_expired();
        self.0.settle().await;
    }

    async fn create(&self, form: Form) -> Created {
        self.0.create(&tenant("acme"), form).await.unwrap()
    }

    fn own(&self, created: &Created) -> Option<Arc<SessionHandle>> {
        self.0.find(&tenant("acme"), created.handle.id())
    }

    async fn admits(&self, created: &Created) -> Result<(), NotAdmitted> {
        let id = created.handle.id().as_str();
        self.admits_as(id, created.credential.expose()).await
    }

    async fn admits_as(&self, id: &str, token: &str) -> Result<(), NotAdmitted> {
        let admitted = self.0.admit(credentials(id, token).as_bytes()).await;
        admitted.map(drop)
    }

    /// Uses a session as a request does.
    fn uses(&self, created: &Created) {
        drop(self.own(created).expect("it lives").exchange());
    }
}

fn minute() -> Form {
    Form {
        ttl_seconds: Some(60),
        max_lifetime_seconds: Some(600),
        ..one_secret()
    }
}

#[tokio::test]
async fn case_63_what_one_node_renews_another_does_not_end() {
    let pair = Pair::new().await;
    let created = pair.a.create(minute()).await;
    assert_eq!(pair.b.admits(&created).await, Ok(()));
    // Far apart, close together, and in the last moment.
    for pause in [20, 50, 59, 59, 1, 58, 55] {
        pair.pass(pause * SECOND).await;
        pair.a.uses(&created);
        assert_eq!(pair.b.admits(&created).await, Ok(()), "after {pause} s");
    }
    pair.pass(59 * SECOND).await;
    assert_eq!(pair.a.admits(&created).await, Ok(()));
    assert_eq!(pair.b.admits(&created).await, Ok(()));
}

#[tokio::test]
async fn case_63_what_nobody_uses_ends_everywhere_within_two_seconds() {
    let pair = Pair::new().await;
    let created = pair.a.create(minute()).await;
    assert_eq!(pair.b.admits(&created).await, Ok(()));
    let theirs = pair.b.own(&created).unwrap();
    let host = target("api.example.com:443");
    let open = [created.handle.enter(&host), theirs.enter(&host)];
    // A refused request renews nothing.
    pair.pass(59 * SECOND).await;
    assert!(
        pair.b
            .admits_as(created.handle.id().as_str(), "tok_wrong")
            .await
            .is_err()
    );
    assert!(open[0].cut().now_or_never().is_none());
    pair.pass(SECOND).await;
    for node in [&pair.a, &pair.b] {
        assert_eq!(node.admits(&created).await, Err(NotAdmitted::Unknown));
    }
    pair.pass(2 * SECOND).await;
    for guard in &open {
        assert!(guard.cut().now_or_never().is_some());
    }
    assert_eq!(
        pair.store.rows.load().await.unwrap().rows.len(),
        1,
        "the proof"
    );
}

#[tokio::test]
async fn the_longer_lifetime_ends_on_each_node_by_itself() {
    let pair = Pair::new().await;
    let form = Form {
        ttl_seconds: Some(60),
        max_lifetime_seconds: Some(60),
        ..one_secret()
    };
    let created = pair.a.create(form).await;
    assert_eq!(pair.b.admits(&created).await, Ok(()));
    let theirs = pair.b.own(&created).unwrap();
    let open = theirs.enter(&target("api.example.com:443"));
    let _in_use = theirs.exchange();
    pair.pass(30 * SECOND).await;
    pair.store.set_down(true);
    pair.pass(30 * SECOND).await;
    assert!(open.cut().now_or_never().is_some());
    assert!(theirs.is_cut());
}

#[tokio::test]
async fn a_node_that_cannot_ask_ends_nothing_for_the_others() {
    let pair = Pair::new().await;
    let created = pair.a.create(minute()).await;
    assert_eq!(pair.b.admits(&created).await, Ok(()));
    pair.pass(30 * SECOND).await;
    pair.store.set_down(true);
    pair.pass(25 * SECOND).await;
    pair.a.uses(&created);
    pair.pass(20 * SECOND).await;
    assert!(!pair.b.own(&created).is_some_and(|own| own.is_cut()));
    assert_eq!(pair.b.admits(&created).await, Err(NotAdmitted::Unavailable));
    pair.store.set_down(false);
    pair.a.turn().await;
    pair.pass(SECOND).await;
    assert_eq!(pair.a.admits(&created).await, Ok(()));
    assert_eq!(
        pair.b.admits(&created).await,
        Ok(()),
        "it was told of the use"
    );
}

#[tokio::test]
async fn a_node_without_word_serves_for_so_long_and_cuts_what_is_open() {
    let pair = Pair::new().await;
    let created = pair.a.create(one_secret()).await;
    pair.pass(SECOND).await;
    let handle = pair.b.own(&created).unwrap();
    let open = handle.enter(&target("api.example.com:443"));
    pair.store.set_down(true);
    pair.pass(10 * SECOND).await;
    assert_eq!(pair.b.admits(&created).await, Ok(()));
    assert!(open.cut().now_or_never().is_none());
    pair.pass(SECOND / 2).await;
    assert_eq!(pair.b.admits(&created).await, Err(NotAdmitted::Unavailable));
    assert!(open.cut().now_or_never().is_some());
    // Even what is opened in that moment does not last.
    let late = handle.enter(&target("api.example.com:443"));
    pair.pass(SECOND / 2).await;
    assert!(late.cut().now_or_never().is_some());
    pair.store.set_down(false);
    pair.pass(SECOND / 2).await;
    assert_eq!(
        pair.b.admits(&created).await,
        Ok(()),
        "the session itself was not ended"
    );
}

#[tokio::test]
async fn an_unknown_id_is_asked_for_once_a_second() {
    let pair = Pair::new().await;
    let unknown = SessionId::generate();
    let ask = || pair.b.admits_as(unknown.as_str(), "tok_x");
    for _ in 0..5 {
        assert_eq!(ask().await, Err(NotAdmitted::Unknown));
    }
    assert_eq!(pair.store.finds.load(Ordering::SeqCst), 1);
    pair.clock.advance(SECOND);
    assert_eq!(ask().await, Err(NotAdmitted::Unknown));
    assert_eq!(pair.store.finds.load(Ordering::SeqCst), 2);
    // What is malformed is asked for by nobody.
    assert_eq!(
        pair.b.admits_as("sess_x", "tok").await,
        Err(NotAdmitted::Unknown)
    );
    assert_eq!(pair.store.finds.load(Ordering::SeqCst), 2);
    pair.store.set_down(true);
    let other = SessionId::generate();
    let answer = pair.b.admits_as(other.as_str(), "tok").await;
    assert_eq!(answer, Err(NotAdmitted::Unavailable));
}

#[tokio::test]
async fn a_patch_that_another_node_made_first_is_taken_over_or_refused() {
    let pair = Pair::new().await;
    let created = pair.a.create(one_secret()).await;
    let (id, tenant) = (created.handle.id(), tenant("acme"));
    let set = |seconds| {
        move |mut form: Form| {
            form.ttl_seconds = Some(seconds);
            Ok(form)
        }
    };
    pair.b.0.patch(&tenant, id, set(100)).await.unwrap();
    // Not told of it, and on top of it all the same.
    let patched = pair.a.0.patch(&tenant, id, set(200)).await.unwrap();
    assert_eq!(patched.handle.version(), 3);
    // Faster in the very moment: forged here, since nothing comes between the two otherwise.
    lock(&pair.store.versions)
        .values_mut()
        .for_each(|version| *version = 4);
    let refused = pair.a.0.patch(&tenant, id, set(300)).await;
    assert!(
        matches!(refused, Err(SessionError::Conflict)),
        "{refused:?}"
    );
    assert_eq!(created.handle.version(), 3);
}

#[tokio::test]
async fn another_run_of_the_store_is_read_whole_and_brings_nothing_back() {
    let pair = Pair::new().await;
    let (kept, deleted) = (
        pair.a.create(one_secret()).await,
        pair.a.create(one_secret()).await,
    );
    pair.pass(SECOND).await;
    let older = pair.store.rows.load().await.unwrap().rows;
    let young = pair.a.create(one_secret()).await;
    pair.a
        .0
        .delete(&tenant("acme"), deleted.handle.id())
        .await
        .unwrap();
    pair.pass(SECOND).await;
    // The older state takes its place.
    for (key, _) in pair.store.rows.load().await.unwrap().rows {
        pair.store.rows.delete(&key).await.unwrap();
    }
    for (key, row) in older {
        pair.store.rows.put(&key, row).await.unwrap();
    }
    *lock(&pair.store.run) = "another".to_owned();
    lock(&pair.store.changes).clear();
    pair.pass(SECOND).await;
    for node in [&pair.a, &pair.b] {
        assert_eq!(node.admits(&kept).await, Ok(()));
        assert_eq!(node.admits(&deleted).await, Err(NotAdmitted::Unknown));
        assert_eq!(node.admits(&young).await, Err(NotAdmitted::Unknown));
    }
    assert!(
        young.handle.is_cut(),
        "what the store does not have is gone"
    );
    let left = pair.store.rows.load().await.unwrap().rows;
    assert!(
        left.iter()
            .all(|(key, _)| key.session != *deleted.handle.id())
    );
}

#[tokio::test]
async fn nodes_whose_clocks_differ_agree_on_the_store_s() {
    let pair = Pair::new().await;
    let year = 365 * 24 * 60 * 60;
    for ahead in [600, year, -600, -year] {
        pair.store.ahead.store(ahead, Ordering::SeqCst);
        let created = pair.a.create(minute()).await;
        assert_eq!(pair.b.admits(&created).await, Ok(()), "{ahead}");
        let theirs = pair.b.own(&created).unwrap();
        assert_eq!(theirs.life.left(false), MINUTE, "{ahead}");
        pair.clock.advance(SECOND);
        pair.a.turn().await;
        pair.b.turn().await;
        assert_eq!(theirs.life.left(false), 59 * SECOND, "{ahead}");
    }
}

#[tokio::test]
async fn records_that_changed_are_handed_on() {
    let pair = Pair::new().await;
    let (seen, fleet) = (
        Arc::new(Mutex::new(Vec::new())),
        pair.b.0.store.fleet().unwrap(),
    );
    let notes = Arc::clone(&seen);
    let note: Box<OnRecord> = Box::new(move |key| {
        lock(&notes).push(key);
        Box::pin(async { Ok(()) })
    });
    let key = RecordKey::new(RecordKind::Tenant, "acme");
    pair.store.put_record(&key, vec![1]).await.unwrap();
    pair.b.0.catch_up(fleet, &*note).await.unwrap();
    assert_eq!(std::mem::take(&mut *lock(&seen)), [Some(key)]);
    *lock(&pair.store.run) = "another".to_owned();
    pair.b.0.catch_up(fleet, &*note).await.unwrap();
    assert_eq!(std::mem::take(&mut *lock(&seen)), [None]);
    // What could not be taken in is asked for again, and nothing counts as known.
    let failing: &OnRecord = &|_| Box::pin(async { Err(Error::Unavailable("no".into())) });
    pair.store
        .put_record(&RecordKey::new(RecordKind::Tenant, "b"), vec![1])
        .await
        .unwrap();
    pair.b.0.catch_up(fleet, failing).await.unwrap_err();
    pair.b.0.catch_up(fleet, &*note).await.unwrap();
    assert_eq!(lock(&seen).len(), 1);
}
