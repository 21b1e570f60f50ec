//! Sessions and their tenants: how many there may be, and what ends with a tenant.

use super::*;
use crate::records::Records;
use crate::session::Error;
use crate::tenant::{Change, Limits, State, Tenants};

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
    let world = World::with(options(), keyring([7; 32]), Sink::discard());
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
