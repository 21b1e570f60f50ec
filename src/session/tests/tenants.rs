//! Sessions and their tenants: how many there may be, and what ends with a tenant.

use super::*;
use crate::records::Records;
use crate::session::{Error, prove_offline};
use crate::tenant::{Change, State};

/// Sessions whose tenants are those of the store.
async fn world(defaults: Limits) -> World {
    strict(World::new(), defaults).await
}

async fn strict(world: World, defaults: Limits) -> World {
    let World {
        sessions,
        store,
        clock,
        tenant,
    } = world;
    let sessions = Arc::into_inner(sessions).expect("nobody else has it");
    let records: Arc<Records> = Arc::clone(sessions.records());
    let tenants = Arc::new(Tenants::new(records, defaults, 1));
    tenants.load().await.unwrap();
    World {
        sessions: Arc::new(sessions.with_tenants(tenants)),
        store,
        clock,
        tenant,
    }
}

async fn restarted(world: &World, key: [u8; 32]) -> World {
    strict(world.restarted(keyring(key)), Limits::default()).await
}

fn keyring(key: [u8; 32]) -> Keyring {
    let id = crate::seal::KeyId::of(&key);
    Keyring::from_keys(vec![(id, key)], id).unwrap()
}

async fn keyed() -> World {
    audited(Sink::discard()).await
}

async fn audited(audit: Sink) -> World {
    let world = World::with(options(), keyring([7; 32]), audit);
    let world = strict(world, Limits::default()).await;
    world.sessions.load().await.unwrap();
    world
}

impl World {
    async fn tenant(&self, name: &str, sessions: Option<u32>) -> TenantId {
        let limits = Limits {
            sessions,
            ..Limits::default()
        };
        let id = tenant(name);
        let made = self.sessions.tenants().create(&id, limits).await;
        made.unwrap();
        id
    }

    async fn make(&self, tenant: &TenantId) -> Result<Created, Error> {
        self.sessions.create(tenant, one_secret()).await
    }

    async fn set(&self, tenant: &TenantId, state: State) {
        let change = Change {
            state: Some(state),
            ..Change::default()
        };
        let tenants = self.sessions.tenants();
        tenants.patch(tenant, change).await.unwrap();
    }

    async fn own_rows(&self) -> usize {
        let rows = self.store.load().await.unwrap().rows.into_iter();
        rows.filter(|(key, _)| !key.tenant.as_str().is_empty())
            .count()
    }
}

#[tokio::test]
async fn a_tenant_has_as_many_sessions_as_it_may_and_another_is_not_asked() {
    let world = world(Limits::default()).await;
    let (acme, other) = (
        world.tenant("acme", Some(2)).await,
        world.tenant("other", None).await,
    );
    let first = world.make(&acme).await.unwrap();
    let second = world.make(&acme).await.unwrap();
    assert!(matches!(
        world.make(&acme).await,
        Err(Error::TenantSessions)
    ));
    for _ in 0..5 {
        world.make(&other).await.unwrap();
    }
    // A place comes back when a session is deleted,
    let id = first.handle.id().clone();
    world.sessions.delete(&acme, &id).await.unwrap();
    let third = world.make(&acme).await.unwrap();
    assert!(matches!(
        world.make(&acme).await,
        Err(Error::TenantSessions)
    ));
    // when it expires,
    world.clock.advance(Duration::from_hours(31 * 24));
    world.sessions.cut_expired();
    let fourth = world.make(&acme).await.unwrap();
    assert!(second.handle.is_over() && third.handle.is_over());
    // and when one could not be made.
    world.store.fail(true);
    assert!(matches!(world.make(&acme).await, Err(Error::Store(_))));
    world.store.fail(false);
    world.make(&acme).await.unwrap();
    assert!(matches!(
        world.make(&acme).await,
        Err(Error::TenantSessions)
    ));
    // A deletion that the store did not take has ended it all the same.
    world.store.fail(true);
    let id = fourth.handle.id().clone();
    world.sessions.delete(&acme, &id).await.unwrap_err();
    world.store.fail(false);
    world.make(&acme).await.unwrap();
}

#[tokio::test]
async fn sessions_that_are_made_at_once_do_not_pass_the_quota() {
    let world = world(Limits::default()).await;
    let acme = world.tenant("acme", Some(3)).await;
    world.store.hold();
    let makes: Vec<_> = (0..20)
        .map(|_| {
            let (sessions, acme) = (Arc::clone(&world.sessions), acme.clone());
            tokio::spawn(async move { sessions.create(&acme, one_secret()).await.is_ok() })
        })
        .collect();
    // All of them have been asked for before the first is durable.
    for _ in 0..3 {
        world.store.holding().await;
    }
    world.store.release();
    world.store.released.add_permits(20);
    let mut made = 0;
    for make in makes {
        made += usize::from(make.await.unwrap());
    }
    assert_eq!((made, world.own_rows().await), (3, 3));
}

#[tokio::test]
async fn a_restart_counts_the_sessions_that_live() {
    let world = keyed().await;
    let acme = world.tenant("acme", Some(1)).await;
    world.make(&acme).await.unwrap();
    let after = restarted(&world, [7; 32]).await;
    assert_eq!(after.sessions.load().await.unwrap().live, 1);
    assert!(matches!(
        after.make(&acme).await,
        Err(Error::TenantSessions)
    ));
}

#[tokio::test]
async fn nobody_s_sessions_are_not_made() {
    let world = world(Limits::default()).await;
    let nobody = tenant("nobody");
    assert!(matches!(world.make(&nobody).await, Err(Error::NoTenant)));
    let acme = world.tenant("acme", None).await;
    let disabled = Change {
        state: Some(State::Disabled),
        ..Change::default()
    };
    let tenants = world.sessions.tenants();
    tenants.patch(&acme, disabled).await.unwrap();
    assert!(matches!(world.make(&acme).await, Err(Error::NoTenant)));
    assert_eq!(world.own_rows().await, 0);
}

#[tokio::test]
async fn what_a_disabled_tenant_had_is_cut_at_once_and_its_rows_go() {
    let world = keyed().await;
    let acme = world.tenant("acme", Some(1)).await;
    let other = world.tenant("other", None).await;
    let (ours, theirs) = (
        world.make(&acme).await.unwrap(),
        world.make(&other).await.unwrap(),
    );
    let disabled = Change {
        state: Some(State::Disabled),
        ..Change::default()
    };
    let tenants = world.sessions.tenants();
    tenants.patch(&acme, disabled).await.unwrap();
    assert!(!world.admits(&ours) && world.admits(&theirs));
    assert!(world.sessions.find(&acme, ours.handle.id()).is_none());
    // The process ends before anything else is done.
    let after = restarted(&world, [7; 32]).await;
    let loaded = after.sessions.load().await.unwrap();
    assert_eq!((loaded.live, loaded.expired, loaded.refused), (1, 1, 0));
    assert_eq!(after.own_rows().await, 1);
    // Here it is swept.
    world.sessions.cut_expired();
    world.sessions.settle().await;
    assert_eq!(world.sessions.len(), 1);
    let enabled = Change {
        state: Some(State::Active),
        ..Change::default()
    };
    tenants.patch(&acme, enabled).await.unwrap();
    assert!(!world.admits(&ours), "it does not come back");
    world.make(&acme).await.unwrap();
}

#[tokio::test]
async fn a_deleted_tenant_leaves_nothing_and_its_name_inherits_nothing() {
    let world = keyed().await;
    let acme = world.tenant("acme", None).await;
    let other = world.tenant("other", None).await;
    let ours = world.make(&acme).await.unwrap();
    let theirs = world.make(&other).await.unwrap();
    let key = RowKey {
        tenant: acme.clone(),
        session: ours.handle.id().clone(),
    };
    let row = world.store.get(&key).await.unwrap().unwrap();
    world.store.fail(true);
    let failed = world.sessions.delete_tenant(&acme).await;
    assert!(matches!(failed, Err(Error::Store(_))), "{failed:?}");
    assert!(!world.admits(&ours), "cut all the same");
    world.store.fail(false);
    world.sessions.delete_tenant(&acme).await.unwrap();
    assert_eq!(world.own_rows().await, 1);
    assert!(world.admits(&theirs));
    let again = world.sessions.delete_tenant(&acme).await;
    assert!(matches!(again, Err(Error::Tenant(_))));
    // A row that was left behind, or put back, is no session of the next tenant of that name.
    world.store.put(&key, row).await.unwrap();
    let after = restarted(&world, [7; 32]).await;
    assert_eq!(after.sessions.load().await.unwrap().refused, 1, "no tenant");
    // Times are kept in milliseconds.
    while std::time::SystemTime::now() < ours.handle.created() + Duration::from_millis(2) {
        tokio::task::yield_now().await;
    }
    world.tenant("acme", None).await;
    let after = restarted(&world, [7; 32]).await;
    let loaded = after.sessions.load().await.unwrap();
    assert_eq!((loaded.live, loaded.refused), (1, 1), "another tenant");
}

#[tokio::test]
async fn the_keys_of_a_store_are_proven_before_anything_is_sealed_there() {
    let world = keyed().await;
    let prove = async |keyring: &Keyring| prove_offline(world.store.as_ref(), keyring).await;
    let of = |key: [u8; 32]| (crate::seal::KeyId::of(&key), key);
    let ring = |keys: &[[u8; 32]]| {
        let keys: Vec<_> = keys.iter().copied().map(of).collect();
        let current = keys[0].0;
        Keyring::from_keys(keys, current).unwrap()
    };
    prove(&ring(&[[7; 32]])).await.unwrap();
    prove(&ring(&[[7; 32], [8; 32]])).await.unwrap();
    let wrong = prove(&ring(&[[8; 32]])).await;
    assert!(matches!(wrong, Err(Error::Keys(_))), "{wrong:?}");
    // Another of the same id.
    let id = crate::seal::KeyId::of(&[7; 32]);
    let wrong = prove(&Keyring::from_keys(vec![(id, [8; 32])], id).unwrap()).await;
    assert!(matches!(wrong, Err(Error::Keys(_))), "{wrong:?}");
    // The server may not know the new one.
    let early = prove(&ring(&[[8; 32], [7; 32]])).await;
    assert!(matches!(early, Err(Error::Unrotated)), "{early:?}");
    let empty = prove_offline(&Memory::new(), &ring(&[[7; 32]])).await;
    assert!(matches!(empty, Err(Error::Unproven)), "{empty:?}");
}

/// Returns what was done to sessions, without their creations.
fn actions(text: &str) -> Vec<(String, String)> {
    let lines = text.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        ["session", "action"].map(|name| line[name].as_str().unwrap().to_owned())
    });
    let later = lines.filter(|[_, action]| action != "created");
    later.map(|[session, action]| (session, action)).collect()
}

#[tokio::test]
async fn what_ends_with_its_tenant_ends_whole_whoever_comes_first() {
    let lines = Lines::default();
    let audit = Sink::to_writer(Box::new(lines.clone()));
    let world = audited(audit.clone()).await;
    let acme = world.tenant("acme", Some(1)).await;
    let made = world.make(&acme).await.unwrap();
    let before = world.sessions.tenants().find(&acme).unwrap();
    world.set(&acme, State::Disabled).await;
    // Between two looks for what has expired.
    world.sessions.settle().await;
    assert!(world.sessions.is_empty());
    assert_eq!(before.sessions(), 0, "its place");
    assert!(made.handle.pool().is_closed());
    let id = made.handle.id().to_string();
    assert_eq!(actions(&lines.of(&audit)), [(id.clone(), "ended".into())]);
    // Nor twice, by whoever comes next.
    world.sessions.cut_expired();
    world.sessions.delete_tenant(&acme).await.unwrap();
    assert_eq!(actions(&lines.of(&audit)), [(id, "ended".into())]);
}

#[tokio::test]
async fn a_sweep_in_the_middle_of_a_tenant_s_deletion_loses_no_record() {
    let lines = Lines::default();
    let audit = Sink::to_writer(Box::new(lines.clone()));
    let world = audited(audit.clone()).await;
    let acme = world.tenant("acme", None).await;
    let made = world.make(&acme).await.unwrap();
    world.sessions.tenants().close(&acme).unwrap();
    world.store.hold();
    let sessions = Arc::clone(&world.sessions);
    let settling = tokio::spawn(async move { sessions.settle().await });
    world.store.holding().await;
    let (sessions, id) = (Arc::clone(&world.sessions), acme.clone());
    let deleting = tokio::spawn(async move { sessions.delete_tenant(&id).await });
    tokio::task::yield_now().await;
    world.store.release();
    world.store.released.add_permits(10);
    settling.await.unwrap();
    deleting.await.unwrap().unwrap();
    let id = made.handle.id().to_string();
    assert_eq!(actions(&lines.of(&audit)), [(id, "ended".into())]);
    assert_eq!((world.sessions.len(), world.own_rows().await), (0, 0));
}

#[tokio::test]
async fn what_ended_while_nobody_served_is_recorded_at_the_next_start() {
    let world = keyed().await;
    let acme = world.tenant("acme", None).await;
    let made = world.make(&acme).await.unwrap();
    world.set(&acme, State::Disabled).await;
    // Killed here. What comes next has the same rows, and an audit file.
    let lines = Lines::default();
    let audit = Sink::to_writer(Box::new(lines.clone()));
    let rows: Arc<dyn Store> = Arc::clone(&world.store) as _;
    let rules = Arc::new(closed());
    let sessions = Sessions::new(rows, keyring([7; 32]), options(), rules, audit.clone());
    let after = World {
        sessions: Arc::new(sessions),
        store: Arc::clone(&world.store),
        clock: Clock::default(),
        tenant: acme,
    };
    let after = strict(after, Limits::default()).await;
    assert_eq!(after.sessions.load().await.unwrap().expired, 1);
    let id = made.handle.id().to_string();
    assert_eq!(actions(&lines.of(&audit)), [(id, "ended".into())]);
    assert_eq!(after.own_rows().await, 0);
}

#[tokio::test]
async fn a_deleted_tenant_leaves_no_row_that_could_not_be_read() {
    let world = keyed().await;
    for name in ["acme", "edited", "other"] {
        let id = world.tenant(name, None).await;
        for _ in 0..2 {
            world.make(&id).await.unwrap();
        }
    }
    // One row of the first, the record of the second.
    let mut rows = world.store.load().await.unwrap().rows.into_iter();
    let own = |(key, _): &(RowKey, Row)| key.tenant.as_str() == "acme";
    let (key, mut row) = rows.find(own).unwrap();
    row.sealed[40] ^= 1;
    world.store.put(&key, row).await.unwrap();
    let record = RecordKey::new(RecordKind::Tenant, "edited");
    let mut sealed = world.store.record(&record).await.unwrap().unwrap();
    sealed[40] ^= 1;
    world.store.put_record(&record, sealed).await.unwrap();
    let after = restarted(&world, [7; 32]).await;
    let loaded = after.sessions.load().await.unwrap();
    assert_eq!((loaded.live, loaded.refused), (3, 3));
    // What the store does not take is tried again by the next call.
    after.store.fail(true);
    let failed = after.sessions.delete_tenant(&tenant("edited")).await;
    assert!(matches!(failed, Err(Error::Store(_))), "{failed:?}");
    after.store.fail(false);
    for (name, left) in [("edited", 4), ("acme", 2)] {
        after.sessions.delete_tenant(&tenant(name)).await.unwrap();
        assert_eq!(after.own_rows().await, left, "{name}");
    }
    let last = restarted(&after, [7; 32]).await;
    let loaded = last.sessions.load().await.unwrap();
    assert_eq!((loaded.live, loaded.refused), (2, 0));
}

#[tokio::test]
async fn a_session_is_made_for_the_tenant_that_was_meant_and_for_no_other() {
    let world = world(Limits::default()).await;
    let acme = world.tenant("acme", None).await;
    let meant = world.sessions.tenants().find(&acme).unwrap();
    world.sessions.delete_tenant(&acme).await.unwrap();
    world.tenant("acme", None).await;
    let made = world.sessions.create_for(&meant, one_secret()).await;
    assert!(matches!(made, Err(Error::NoTenant)), "{made:?}");
    assert_eq!(world.own_rows().await, 0);
    world.make(&acme).await.unwrap();
}

#[tokio::test]
async fn a_session_that_is_being_made_while_its_tenant_ends_ends_with_it() {
    let world = keyed().await;
    let acme = world.tenant("acme", None).await;
    world.store.hold();
    let (sessions, id) = (Arc::clone(&world.sessions), acme.clone());
    let making = tokio::spawn(async move { sessions.create(&id, one_secret()).await });
    world.store.holding().await;
    world.sessions.tenants().close(&acme).unwrap();
    world.store.release();
    world.store.released.add_permits(10);
    let made = making.await.unwrap();
    assert!(matches!(made, Err(Error::NoTenant)), "{made:?}");
    assert_eq!(world.own_rows().await, 0);
    assert!(world.sessions.is_empty());
}

#[tokio::test]
async fn sessions_of_a_tenant_whose_record_was_edited_are_refused() {
    let world = keyed().await;
    for name in ["acme", "other"] {
        let id = world.tenant(name, None).await;
        world.make(&id).await.unwrap();
    }
    let key = RecordKey::new(RecordKind::Tenant, "acme");
    let mut sealed = world.store.record(&key).await.unwrap().unwrap();
    sealed[40] ^= 1;
    world.store.put_record(&key, sealed).await.unwrap();
    let after = restarted(&world, [7; 32]).await;
    let loaded = after.sessions.load().await.unwrap();
    assert_eq!((loaded.live, loaded.refused), (1, 1));
    assert_eq!(world.own_rows().await, 2, "and left where it is");
}
