//! Tenants over a store: what holds at once, what lasts, and what was written by somebody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::sync::RwLock;

use super::*;
use crate::id::{ApiKeyId, TenantId};
use crate::records::Records;
use crate::seal::Keyring;
use crate::secret::Fingerprint;
use crate::store::{
    BoxFuture, Error as StoreError, Memory, RecordKey, RecordKind, RecordRows, Row, RowKey, Rows,
    Store,
};

const CONFIGURED: &str = "default";
const FIXED: &[u8] = b"the configured key";

/// A store whose changes of records fail while the test wants it.
#[derive(Debug, Default)]
struct Brittle {
    rows: Memory,
    fails: AtomicBool,
}

impl Brittle {
    fn obey(&self) -> Result<(), StoreError> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("broken by the test".into()));
        }
        Ok(())
    }
}

impl Store for Brittle {
    fn put(&self, key: &RowKey, row: Row) -> BoxFuture<'_, Result<(), StoreError>> {
        self.rows.put(key, row)
    }

    fn get(&self, key: &RowKey) -> BoxFuture<'_, Result<Option<Row>, StoreError>> {
        self.rows.get(key)
    }

    fn delete(&self, key: &RowKey) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.rows.delete(key)
    }

    fn touch(&self, used: Vec<(RowKey, u64)>) -> BoxFuture<'_, Result<(), StoreError>> {
        self.rows.touch(used)
    }

    fn load(&self) -> BoxFuture<'_, Result<Rows, StoreError>> {
        self.rows.load()
    }

    fn put_record(
        &self,
        key: &RecordKey,
        sealed: Vec<u8>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        let key = key.clone();
        Box::pin(async move {
            self.obey()?;
            self.rows.put_record(&key, sealed).await
        })
    }

    fn record(&self, key: &RecordKey) -> BoxFuture<'_, Result<Option<Vec<u8>>, StoreError>> {
        self.rows.record(key)
    }

    fn delete_record(&self, key: &RecordKey) -> BoxFuture<'_, Result<bool, StoreError>> {
        let key = key.clone();
        Box::pin(async move {
            self.obey()?;
            self.rows.delete_record(&key).await
        })
    }

    fn load_records(&self, kind: RecordKind) -> BoxFuture<'_, Result<RecordRows, StoreError>> {
        self.rows.load_records(kind)
    }
}

/// One process among those that share a store.
struct Node {
    tenants: Tenants,
    store: Arc<Brittle>,
    records: Arc<Records>,
}

impl Node {
    async fn new() -> Self {
        let store = Arc::new(Brittle::default());
        let keyring = Arc::new(RwLock::new(Keyring::generate()));
        let records = Arc::new(Records::new(Arc::clone(&store) as _, keyring));
        Self::over(store, records, Limits::default()).await
    }

    async fn over(store: Arc<Brittle>, records: Arc<Records>, defaults: Limits) -> Self {
        let tenants = Tenants::new(Arc::clone(&records), defaults, 2);
        let tenants = tenants.with_key(&id(CONFIGURED), Fingerprint::of(FIXED));
        tenants.load().await.unwrap();
        Self {
            tenants,
            store,
            records,
        }
    }

    /// Another process, or this one after a restart.
    async fn another(&self) -> Self {
        Self::over(
            Arc::clone(&self.store),
            Arc::clone(&self.records),
            Limits::default(),
        )
        .await
    }

    async fn create(&self, name: &str) {
        let created = self.tenants.create(&id(name), Limits::default()).await;
        created.unwrap();
    }

    async fn key(&self, name: &str, key: &[u8]) -> ApiKeyId {
        self.add(name, key).await.unwrap().id
    }

    async fn add(&self, name: &str, key: &[u8]) -> Result<KeyRecord, Error> {
        let hash = Fingerprint::of(key);
        self.tenants.add_key(&id(name), "", hash).await
    }

    async fn set(&self, name: &str, state: State) -> Result<About, Error> {
        let change = Change {
            state: Some(state),
            ..Change::default()
        };
        self.tenants.patch(&id(name), change).await
    }

    fn fail(&self, fails: bool) {
        self.store.fails.store(fails, Ordering::SeqCst);
    }

    /// Returns whose key this is.
    fn owner(&self, key: &[u8]) -> Option<String> {
        let found = self.tenants.by_key(key)?;
        Some(found.tenant().id().to_string())
    }
}

fn id(name: &str) -> TenantId {
    TenantId::new(name)
}

fn record(name: &str) -> RecordKey {
    RecordKey::new(RecordKind::Tenant, name)
}

#[tokio::test]
async fn a_key_finds_its_tenant_until_it_is_revoked_and_after_a_restart() {
    let node = Node::new().await;
    node.create("acme").await;
    node.create("umbrella").await;
    let first = node.key("acme", b"first").await;
    node.key("acme", b"second").await;
    node.key("umbrella", b"third").await;
    node.key(CONFIGURED, b"fourth").await;
    for node in [&node, &node.another().await] {
        for (key, owner) in [
            (&b"first"[..], Some("acme")),
            (b"second", Some("acme")),
            (b"third", Some("umbrella")),
            (b"fourth", Some(CONFIGURED)),
            (FIXED, Some(CONFIGURED)),
            (b"fifth", None),
            (b"firs", None),
            (b"", None),
        ] {
            assert_eq!(node.owner(key).as_deref(), owner, "{key:?}");
        }
    }
    let in_use = node.add("acme", FIXED);
    assert!(matches!(in_use.await, Err(Error::KeyInUse)));
    let in_use = node.add("umbrella", b"first");
    assert!(matches!(in_use.await, Err(Error::KeyInUse)));
    let another_s = node.tenants.revoke_key(&id("umbrella"), &first).await;
    assert!(matches!(another_s, Err(Error::NotFound)));
    assert!(node.owner(b"first").is_some());
    node.tenants.revoke_key(&id("acme"), &first).await.unwrap();
    for node in [&node, &node.another().await] {
        assert_eq!(node.owner(b"first"), None);
        assert!(node.owner(b"second").is_some());
    }
    let again = node.tenants.revoke_key(&id("acme"), &first).await;
    assert!(matches!(again, Err(Error::NotFound)));
}

#[tokio::test]
async fn a_change_is_durable_before_it_is_live_and_a_revocation_holds_at_once() {
    let node = Node::new().await;
    node.create("acme").await;
    let key = node.key("acme", b"first").await;
    node.fail(true);
    let created = node.tenants.create(&id("late"), Limits::default()).await;
    assert!(matches!(created, Err(Error::Store(_))), "{created:?}");
    assert!(node.tenants.find(&id("late")).is_none());
    let added = node.add("acme", b"x");
    assert!(matches!(added.await, Err(Error::Store(_))));
    assert_eq!(node.owner(b"x"), None);
    assert!(node.set("acme", State::Disabled).await.is_err());
    assert!(node.owner(b"first").is_some());
    let revoked = node.tenants.revoke_key(&id("acme"), &key).await;
    assert!(matches!(revoked, Err(Error::Store(_))));
    assert_eq!(node.owner(b"first"), None, "refused all the same");
    node.tenants.reload(&record("acme"), true).await.unwrap();
    assert_eq!(node.owner(b"first"), None, "though the store has it still");
    node.fail(false);
    node.tenants.revoke_key(&id("acme"), &key).await.unwrap();
    assert_eq!(node.another().await.owner(b"first"), None);
}

#[tokio::test]
async fn a_tenant_that_is_disabled_is_cut_and_begins_anew_when_it_is_enabled() {
    let node = Node::new().await;
    node.create("acme").await;
    node.key("acme", b"first").await;
    let before = node.tenants.find(&id("acme")).unwrap();
    let session = before.cut().child_token();
    let place = before.place().unwrap();
    let about = node.set("acme", State::Disabled).await.unwrap();
    assert_eq!((about.state, about.keys.len()), (State::Disabled, 1));
    assert!(session.is_cancelled());
    assert_eq!(node.owner(b"first"), None);
    let restarted = node.another().await;
    assert_eq!(restarted.owner(b"first"), None);
    assert!(
        restarted
            .tenants
            .find(&id("acme"))
            .unwrap()
            .cut()
            .is_cancelled()
    );
    node.set("acme", State::Active).await.unwrap();
    assert_eq!(node.owner(b"first").as_deref(), Some("acme"));
    let after = node.tenants.find(&id("acme")).unwrap();
    assert!(!after.cut().is_cancelled() && session.is_cancelled());
    assert_eq!((before.sessions(), after.sessions()), (1, 0));
    drop(place);
    assert_eq!((before.sessions(), after.sessions()), (0, 0));
}

#[tokio::test]
async fn a_deleted_tenant_is_closed_first_and_its_name_may_be_taken_anew() {
    let node = Node::new().await;
    node.create("acme").await;
    node.key("acme", b"first").await;
    let before = node.tenants.find(&id("acme")).unwrap();
    let closed = node.tenants.close(&id("acme")).unwrap();
    assert!(before.cut().is_cancelled());
    assert_eq!(node.owner(b"first"), None);
    // Whatever comes between: it does not come back, by its record neither.
    node.tenants.reload_all().await.unwrap();
    assert_eq!(node.owner(b"first"), None);
    let changed = node.set("acme", State::Active).await;
    assert!(matches!(changed, Err(Error::NotFound)), "{changed:?}");
    let added = node.add("acme", b"x");
    assert!(matches!(added.await, Err(Error::NotFound)));
    node.fail(true);
    assert!(node.tenants.delete(&id("acme"), &closed).await.is_err());
    assert_eq!(node.owner(b"first"), None);
    node.fail(false);
    node.tenants.delete(&id("acme"), &closed).await.unwrap();
    assert!(node.tenants.find(&id("acme")).is_none());
    assert!(node.another().await.tenants.find(&id("acme")).is_none());
    let gone = node.tenants.close(&id("acme"));
    assert!(matches!(gone, Err(Error::NotFound)));
    node.create("acme").await;
    let after = node.tenants.find(&id("acme")).unwrap();
    assert!(!after.cut().is_cancelled() && after.created() >= before.created());
    assert_eq!(node.owner(b"first"), None);
    let twice = node.tenants.create(&id("acme"), Limits::default()).await;
    assert!(matches!(twice, Err(Error::Exists)));
}

#[tokio::test]
async fn a_deletion_that_is_repeated_leaves_who_was_made_since() {
    let node = Node::new().await;
    node.create("acme").await;
    let first = node.tenants.close(&id("acme")).unwrap();
    let second = node.tenants.close(&id("acme")).unwrap();
    node.tenants.delete(&id("acme"), &first).await.unwrap();
    // The other call comes too late, and there is nobody,
    node.tenants.delete(&id("acme"), &second).await.unwrap();
    // or somebody else: made here, or by another process.
    node.create("acme").await;
    node.key("acme", b"new").await;
    let late = node.tenants.delete(&id("acme"), &second).await;
    assert!(matches!(late, Err(Error::NotFound)), "{late:?}");
    assert_eq!(node.owner(b"new").as_deref(), Some("acme"));
    assert_eq!(node.another().await.owner(b"new").as_deref(), Some("acme"));
    let third = node.tenants.close(&id("acme")).unwrap();
    let other = node.another().await;
    let closed = other.tenants.close(&id("acme")).unwrap();
    other.tenants.delete(&id("acme"), &closed).await.unwrap();
    later(&node.tenants.find(&id("acme")).unwrap()).await;
    other.create("acme").await;
    other.key("acme", b"newer").await;
    let late = node.tenants.delete(&id("acme"), &third).await;
    assert!(matches!(late, Err(Error::NotFound)), "{late:?}");
    assert_eq!(node.owner(b"newer").as_deref(), Some("acme"));
    assert!(node.another().await.owner(b"newer").is_some());
    // Nor is a good record taken for the bad one that was to go.
    let good = node.store.record(&record("acme")).await.unwrap().unwrap();
    let bad = b"in clear".to_vec();
    node.store.put_record(&record("acme"), bad).await.unwrap();
    let node = node.another().await;
    let bad = node.tenants.close(&id("acme")).unwrap();
    node.store.put_record(&record("acme"), good).await.unwrap();
    let late = node.tenants.delete(&id("acme"), &bad).await;
    assert!(matches!(late, Err(Error::NotFound)), "{late:?}");
    assert_eq!(node.owner(b"newer").as_deref(), Some("acme"));
}

/// Waits until whoever is made now is younger than a tenant: times are kept in milliseconds.
async fn later(than: &Tenant) {
    while std::time::SystemTime::now() < than.created() + Duration::from_millis(1) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn who_showed_a_key_is_told_when_it_counts_no_more() {
    type Ending = (&'static str, fn(&Node, ApiKeyId) -> BoxFuture<'_, ()>);
    let endings: [Ending; 5] = [
        ("revoked", |node, key| {
            Box::pin(async move { node.tenants.revoke_key(&id("acme"), &key).await.unwrap() })
        }),
        ("revoked, and the store fails", |node, key| {
            Box::pin(async move {
                node.fail(true);
                node.tenants
                    .revoke_key(&id("acme"), &key)
                    .await
                    .unwrap_err();
            })
        }),
        ("disabled", |node, _| {
            Box::pin(async move { drop(node.set("acme", State::Disabled).await.unwrap()) })
        }),
        ("closed", |node, _| {
            Box::pin(async move { drop(node.tenants.close(&id("acme")).unwrap()) })
        }),
        ("deleted elsewhere", |node, _| {
            Box::pin(async move {
                node.records.delete(&record("acme")).await.unwrap();
                node.tenants.reload_all().await.unwrap();
            })
        }),
    ];
    for (what, end) in endings {
        let node = Node::new().await;
        node.create("acme").await;
        let key = node.key("acme", b"first").await;
        node.key("acme", b"second").await;
        let first = node.tenants.by_key(b"first").unwrap();
        let second = node.tenants.by_key(b"second").unwrap();
        let mut waiting = Box::pin(node.tenants.refused(&first));
        assert!(waiting.as_mut().now_or_never().is_none(), "{what}");
        // Another change is none for this key.
        node.key("acme", b"third").await;
        assert!(waiting.as_mut().now_or_never().is_none(), "{what}");
        end(&node, key).await;
        assert!(waiting.as_mut().now_or_never().is_some(), "{what}");
        assert!(!node.tenants.stands(&first), "{what}");
        let is_key_alone = what.starts_with("revoked");
        assert_eq!(node.tenants.stands(&second), is_key_alone, "{what}");
    }
}

#[tokio::test]
async fn a_key_of_a_tenant_is_none_of_the_next_of_that_name() {
    let node = Node::new().await;
    node.create("acme").await;
    node.key("acme", b"first").await;
    let before = node.tenants.by_key(b"first").unwrap();
    let closed = node.tenants.close(&id("acme")).unwrap();
    node.tenants.delete(&id("acme"), &closed).await.unwrap();
    node.create("acme").await;
    // Even the same key: it was shown to another tenant.
    node.key("acme", b"first").await;
    let after = node.tenants.by_key(b"first").unwrap();
    assert!(!node.tenants.stands(&before) && node.tenants.stands(&after));
}

#[tokio::test]
async fn the_tenant_of_the_configuration_always_stands() {
    let node = Node::new().await;
    let disabled = node.set(CONFIGURED, State::Disabled).await;
    assert!(matches!(disabled, Err(Error::Configured)), "{disabled:?}");
    let closed = node.tenants.close(&id(CONFIGURED));
    assert!(matches!(closed, Err(Error::Configured)));
    let created = node
        .tenants
        .create(&id(CONFIGURED), Limits::default())
        .await;
    assert!(matches!(created, Err(Error::Exists)));
    let change = Change {
        sessions: Some(Some(1)),
        ..Change::default()
    };
    node.tenants.patch(&id(CONFIGURED), change).await.unwrap();
    let after = node.another().await;
    let tenant = after.tenants.find(&id(CONFIGURED)).unwrap();
    let _place = tenant.place().unwrap();
    assert!(tenant.place().is_none());
    assert_eq!(after.owner(FIXED).as_deref(), Some(CONFIGURED));
    // Its record gone, it has no limits of its own.
    node.records.delete(&record(CONFIGURED)).await.unwrap();
    after
        .tenants
        .reload(&record(CONFIGURED), true)
        .await
        .unwrap();
    assert!(tenant.place().is_some());
}

#[tokio::test]
async fn an_inserted_an_edited_and_a_moved_tenant_are_refused() {
    let node = Node::new().await;
    for name in ["acme", "umbrella"] {
        node.create(name).await;
        node.key(name, name.as_bytes()).await;
    }
    let good = node.store.record(&record("acme")).await.unwrap().unwrap();
    let mut edited = good.clone();
    edited[40] ^= 1;
    let foreign = Keyring::generate();
    let context = crate::seal::Context::of_record("tenant", "inserted");
    let inserted = foreign.seal(&context, br#"{"format":1}"#);
    for (name, sealed) in [
        ("umbrella", edited),
        ("moved", good),
        ("inserted", inserted),
        (CONFIGURED, b"in clear".to_vec()),
    ] {
        node.store.put_record(&record(name), sealed).await.unwrap();
    }
    // Sealed well, and nothing that this version reads.
    for (name, plain) in [("later", &br#"{"format":2}"#[..]), ("Not a name", b"{}")] {
        node.records.put(&record(name), plain).await.unwrap();
    }
    let after = node.another().await;
    let loaded = after.tenants.load().await.unwrap();
    assert_eq!((loaded.tenants, loaded.refused), (1, 6));
    assert_eq!(after.owner(b"acme").as_deref(), Some("acme"));
    assert_eq!(after.owner(b"umbrella"), None);
    // Whose own limits nobody knows is not served either.
    assert_eq!(after.owner(FIXED), None);
    for name in ["umbrella", "moved", "inserted", "later", CONFIGURED] {
        assert!(after.tenants.find(&id(name)).is_none(), "{name}");
        let created = after.tenants.create(&id(name), Limits::default()).await;
        assert!(matches!(created, Err(Error::Exists)), "{name}: {created:?}");
        let added = after.add(name, b"x");
        let added = added.await;
        assert!(matches!(added, Err(Error::Refused(_))), "{name}: {added:?}");
    }
    // Whoever runs goes on as it was.
    let running = node.tenants.find(&id("umbrella")).unwrap();
    let refused = node.tenants.reload(&record("umbrella"), true).await;
    assert!(matches!(refused, Err(Error::Refused(_))));
    assert_eq!(node.tenants.reload_all().await.unwrap(), 6);
    assert!(!running.cut().is_cancelled());
    assert_eq!(node.owner(b"umbrella").as_deref(), Some("umbrella"));
    assert_eq!(node.owner(FIXED).as_deref(), Some(CONFIGURED));
    // And the operator may throw the bad record away.
    for name in ["umbrella", CONFIGURED] {
        let closed = after.tenants.close(&id(name)).unwrap();
        after.tenants.delete(&id(name), &closed).await.unwrap();
    }
    assert_eq!(after.owner(FIXED).as_deref(), Some(CONFIGURED));
    after.create("umbrella").await;
}

#[tokio::test]
async fn what_another_process_changed_holds_when_it_is_read_again() {
    let (one, key) = {
        let node = Node::new().await;
        node.create("acme").await;
        let key = node.key("acme", b"first").await;
        (node, key)
    };
    let two = one.another().await;
    one.key("acme", b"second").await;
    one.tenants.revoke_key(&id("acme"), &key).await.unwrap();
    assert!(two.owner(b"first").is_some() && two.owner(b"second").is_none());
    two.tenants.reload(&record("acme"), true).await.unwrap();
    assert!(two.owner(b"first").is_none() && two.owner(b"second").is_some());
    let live = two.tenants.find(&id("acme")).unwrap();
    // A change begins with what the other has written.
    one.key("acme", b"third").await;
    two.key("acme", b"fourth").await;
    one.tenants.reload_all().await.unwrap();
    for node in [&one, &two] {
        assert!(node.owner(b"third").is_some() && node.owner(b"fourth").is_some());
    }
    assert!(!live.cut().is_cancelled());
    one.set("acme", State::Disabled).await.unwrap();
    two.tenants.reload(&record("acme"), true).await.unwrap();
    assert!(live.cut().is_cancelled() && two.owner(b"third").is_none());
    one.set("acme", State::Active).await.unwrap();
    two.tenants.reload(&record("acme"), true).await.unwrap();
    let live = two.tenants.find(&id("acme")).unwrap();
    assert!(!live.cut().is_cancelled() && two.owner(b"third").is_some());
    let closed = one.tenants.close(&id("acme")).unwrap();
    one.tenants.delete(&id("acme"), &closed).await.unwrap();
    one.create("late").await;
    two.tenants.reload_all().await.unwrap();
    assert!(live.cut().is_cancelled() && two.tenants.find(&id("acme")).is_none());
    assert!(two.tenants.find(&id("late")).is_some());
}

#[tokio::test]
async fn limits_are_the_tenant_s_own_or_those_of_all() {
    let node = Node::new().await;
    let defaults = Limits {
        sessions: Some(1),
        requests_per_second: Some(1),
    };
    let node = Node::over(node.store, node.records, defaults).await;
    node.create("acme").await;
    let tenant = node.tenants.find(&id("acme")).unwrap();
    let now = Instant::now();
    assert!(tenant.request(now).is_ok() && tenant.request(now).is_ok());
    let wait = tenant.request(now).unwrap_err();
    assert!(wait <= Duration::from_secs(1), "{wait:?}");
    let _first = tenant.place().unwrap();
    assert!(tenant.place().is_none());
    let own = Change {
        sessions: Some(Some(2)),
        requests_per_second: Some(Some(1_000_000)),
        ..Change::default()
    };
    node.tenants.patch(&id("acme"), own).await.unwrap();
    let _second = tenant.place().unwrap();
    assert!(tenant.place().is_none() && tenant.request(Instant::now()).is_ok());
    let back = Change {
        sessions: Some(None),
        ..Change::default()
    };
    node.tenants.patch(&id("acme"), back).await.unwrap();
    assert!(tenant.place().is_none(), "and those that live go on");
    assert_eq!(tenant.sessions(), 2);
    let known = tenant.place_for_known();
    assert_eq!(tenant.sessions(), 3);
    assert!(known.leave() && !known.leave());
    drop(known);
    assert_eq!(tenant.sessions(), 2, "given back once");
}

#[test]
fn of_many_at_once_no_more_get_a_place_than_there_are() {
    let limits = Limits {
        sessions: Some(10),
        ..Limits::default()
    };
    let tenant = Tenant::new(id("acme"), std::time::UNIX_EPOCH, limits, 1);
    let tenant = Arc::new(tenant);
    let taken: Vec<Place> = std::thread::scope(|scope| {
        let take = || {
            let places = (0..100).map(|_| tenant.place());
            places.flatten().collect::<Vec<_>>()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(take)).collect();
        let taken = threads.into_iter().map(|thread| thread.join().unwrap());
        taken.flatten().collect()
    });
    assert_eq!((taken.len(), tenant.sessions()), (10, 10));
    drop(taken);
    assert_eq!(tenant.sessions(), 0);
}

#[tokio::test]
async fn keys_of_a_tenant_are_bounded() {
    let node = Node::new().await;
    node.create("acme").await;
    for number in 0..KEYS_LIMIT {
        node.key("acme", number.to_string().as_bytes()).await;
    }
    let more = node.add("acme", b"x");
    assert!(matches!(more.await, Err(Error::KeyLimit)));
}

#[test]
fn keys_are_long_and_known_by_their_start() {
    let (one, two) = (generate_key(), generate_key());
    assert_ne!(one.expose(), two.expose());
    let text = std::str::from_utf8(one.expose()).unwrap();
    let digits = text.strip_prefix(API_KEY_PREFIX).unwrap();
    assert_eq!(digits.len(), 64);
    assert!(digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
}
