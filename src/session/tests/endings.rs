//! Deletion and expiry: cut first and for good, and no row stays behind.

use futures_util::FutureExt;
use serde_json::Value;

use super::*;
use crate::session::{Error, Patched};

/// Begins a patch and returns when its row is held at the store.
async fn held_patch(
    world: &World,
    created: &Created,
) -> tokio::task::JoinHandle<Result<Patched, Error>> {
    world.store.hold();
    let (sessions, tenant) = (Arc::clone(&world.sessions), world.tenant.clone());
    let id = created.handle.id().clone();
    let patch = tokio::spawn(async move {
        let change = |mut form: Form| {
            form.secrets
                .insert("LATE".to_owned(), scoped(CANARY, &["a.example"]));
            Ok(form)
        };
        sessions.patch(&tenant, &id, change).await
    });
    world.store.holding().await;
    patch
}

#[tokio::test]
async fn a_deletion_cuts_closes_and_forgets() {
    let world = World::new();
    let (created, other) = (
        world.create(one_secret()).await,
        world.create(one_secret()).await,
    );
    let host = target("api.example.com:443");
    let open = created.handle.enter(&host);
    let theirs = other.handle.enter(&host);
    let id = created.handle.id();
    world.sessions.delete(&world.tenant, id).await.unwrap();
    assert!(open.cut().now_or_never().is_some());
    assert!(theirs.cut().now_or_never().is_none());
    assert!(created.handle.pool().is_closed());
    assert!(!other.handle.pool().is_closed());
    assert!(created.handle.is_over());
    assert!(!world.finds(&created.handle) && world.finds(&other.handle));
    assert!(!world.admits(&created) && world.admits(&other));
    assert_eq!((world.sessions.len(), world.rows().await), (1, 1));
    // Whoever comes late, with a handle from before, is cut as well.
    let late = created.handle.enter(&host);
    assert!(late.cut().now_or_never().is_some());
    let again = world.sessions.delete(&world.tenant, id).await;
    assert!(matches!(again, Err(Error::NotFound)), "{again:?}");
}

#[tokio::test]
async fn a_deletion_that_the_store_refuses_cuts_all_the_same_and_can_be_repeated() {
    let world = World::new();
    let created = world.create(one_secret()).await;
    let (id, open) = (
        created.handle.id(),
        created.handle.enter(&target("api.example.com:443")),
    );
    world.store.fail(true);
    let refused = world.sessions.delete(&world.tenant, id).await;
    assert!(matches!(refused, Err(Error::Store(_))), "{refused:?}");
    assert!(open.cut().now_or_never().is_some());
    assert!(!world.finds(&created.handle) && !world.admits(&created));
    assert!(world.sessions.list(&world.tenant, None, 10).is_empty());
    assert_eq!(world.rows().await, 1);
    let stranger = world.sessions.delete(&tenant("other"), id).await;
    assert!(matches!(stranger, Err(Error::NotFound)), "{stranger:?}");
    let patched = world.sessions.patch(&world.tenant, id, Ok).await;
    assert!(matches!(patched, Err(Error::NotFound)), "{patched:?}");
    world.store.fail(false);
    // The row would bring the session back after a restart: the same call must still reach it.
    world.sessions.delete(&world.tenant, id).await.unwrap();
    assert_eq!((world.sessions.len(), world.rows().await), (0, 0));
    let again = world.sessions.delete(&world.tenant, id).await;
    assert!(matches!(again, Err(Error::NotFound)), "{again:?}");
}

#[tokio::test]
async fn a_sweep_deletes_rows_that_a_deletion_could_not() {
    let world = World::new();
    let created = world.create(one_secret()).await;
    let id = created.handle.id();
    world.store.fail(true);
    world.sessions.delete(&world.tenant, id).await.unwrap_err();
    world.sweep().await;
    assert_eq!((world.sessions.len(), world.rows().await), (1, 1));
    world.store.fail(false);
    world.sweep().await;
    assert_eq!((world.sessions.len(), world.rows().await), (0, 0));
}

#[tokio::test]
async fn of_deletions_at_once_one_wins() {
    let world = World::new();
    let created = world.create(one_secret()).await;
    let delete = || world.sessions.delete(&world.tenant, created.handle.id());
    world.store.hold();
    let release = async {
        world.store.holding().await;
        world.store.release();
    };
    let (one, two, ()) = tokio::join!(delete(), delete(), release);
    assert!(one.is_ok(), "{one:?}");
    assert!(matches!(two, Err(Error::NotFound)), "{two:?}");
    assert_eq!(world.rows().await, 0);
}

#[tokio::test]
async fn a_sweep_ends_what_has_expired_and_nothing_else() {
    let world = World::new();
    let (expired, busy, young) = (
        world.create(one_secret()).await,
        world.create(one_secret()).await,
        world
            .create(Form {
                ttl_seconds: Some(61),
                ..one_secret()
            })
            .await,
    );
    let open = expired.handle.enter(&target("api.example.com:443"));
    let _in_flight = busy.handle.exchange();
    world.clock.advance(NEARLY);
    world.sweep().await;
    assert_eq!(world.sessions.len(), 3);
    assert!(open.cut().now_or_never().is_none());
    world.clock.advance(TICK);
    world.sweep().await;
    assert!(open.cut().now_or_never().is_some());
    assert!(expired.handle.pool().is_closed());
    assert!(world.admits(&busy) && world.admits(&young));
    assert_eq!((world.sessions.len(), world.rows().await), (2, 2));
    world.clock.advance(Duration::from_secs(1));
    world.sweep().await;
    assert_eq!((world.sessions.len(), world.rows().await), (1, 1));
    // In use or not, there is an end.
    world.clock.advance(9 * MINUTE);
    world.sweep().await;
    assert!(busy.handle.pool().is_closed());
    assert_eq!((world.sessions.len(), world.rows().await), (0, 0));
}

#[tokio::test]
async fn a_store_that_fails_delays_no_cut() {
    let world = World::new();
    let mut all = Vec::new();
    for _ in 0..5 {
        all.push(world.create(one_secret()).await);
    }
    world.clock.advance(MINUTE);
    world.store.fail(true);
    world.sweep().await;
    assert!(all.iter().all(|it| it.handle.pool().is_closed()));
    // One failure is enough to know; five would hold up the next sweep's cuts.
    assert_eq!(world.store.refused.load(Ordering::SeqCst), 1);
    assert_eq!((world.sessions.len(), world.rows().await), (5, 5));
    world.store.fail(false);
    world.sweep().await;
    assert_eq!((world.sessions.len(), world.rows().await), (0, 0));
}

#[tokio::test]
async fn a_deletion_in_the_middle_of_a_patch_leaves_no_row() {
    let world = World::new();
    let created = world.create(one_secret()).await;
    let open = created.handle.enter(&target("api.example.com:443"));
    let patch = held_patch(&world, &created).await;
    let (sessions, tenant) = (Arc::clone(&world.sessions), world.tenant.clone());
    let id = created.handle.id().clone();
    let delete = tokio::spawn(async move { sessions.delete(&tenant, &id).await });
    // The cut does not wait for the patch; the row does.
    open.cut().await;
    assert!(!world.admits(&created));
    assert!(!delete.is_finished());
    world.store.release();
    let patched = patch.await.unwrap();
    assert!(matches!(patched, Err(Error::NotFound)), "{patched:?}");
    delete.await.unwrap().unwrap();
    assert_eq!((world.sessions.len(), world.rows().await), (0, 0));
    assert_eq!(created.handle.version(), 1);
}

#[tokio::test]
async fn an_expiry_in_the_middle_of_a_patch_leaves_no_row() {
    let world = World::new();
    let created = world.create(one_secret()).await;
    let patch = held_patch(&world, &created).await;
    world.clock.advance(MINUTE);
    world.sweep().await;
    assert!(created.handle.pool().is_closed());
    assert_eq!(world.sessions.len(), 1, "until its row can be deleted");
    world.store.release();
    let patched = patch.await.unwrap();
    assert!(matches!(patched, Err(Error::NotFound)), "{patched:?}");
    world.sweep().await;
    assert_eq!((world.sessions.len(), world.rows().await), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn patches_and_deletions_at_random_leave_no_row() {
    let world = World::new();
    for _ in 0..200 {
        let created = world.create(one_secret()).await;
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..3 {
            let (sessions, tenant) = (Arc::clone(&world.sessions), world.tenant.clone());
            let id = created.handle.id().clone();
            tasks.spawn(async move {
                match number {
                    0 => sessions.delete(&tenant, &id).await.is_ok(),
                    _ => sessions.patch(&tenant, &id, Ok).await.is_ok(),
                }
            });
        }
        tasks.join_all().await;
        assert!(!world.finds(&created.handle));
    }
    assert_eq!((world.sessions.len(), world.rows().await), (0, 0));
}

#[tokio::test]
async fn every_change_has_its_record() {
    let lines = Lines::default();
    let audit = Sink::to_writer(Box::new(lines.clone()));
    let world = World::with(options(), Keyring::generate(), audit.clone());
    let created = world.create(one_secret()).await;
    let other = world.create(one_secret()).await;
    let id = created.handle.id();
    world.patch(&created.handle, |_| ()).await;
    let unscope = |mut form: Form| {
        form.secrets.get_mut("OWN").unwrap().hosts = None;
        Ok(form)
    };
    let refused = world.sessions.patch(&world.tenant, id, unscope).await;
    refused.unwrap_err();
    world.store.fail(true);
    world.sessions.delete(&world.tenant, id).await.unwrap_err();
    world.store.fail(false);
    world.sessions.delete(&world.tenant, id).await.unwrap();
    world.clock.advance(MINUTE);
    world.sweep().await;
    world.sweep().await;
    let text = lines.of(&audit);
    let (own, other) = (id.as_str(), other.handle.id().as_str());
    let found: Vec<_> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|it| {
            assert_eq!(
                (&it["event"], &it["tenant"]),
                (&"session".into(), &"acme".into())
            );
            ["session", "action", "decision", "reason"].map(|name| it[name].clone())
        })
        .collect();
    let expected = [
        [own, "created", "allowed", "ok"],
        [other, "created", "allowed", "ok"],
        [own, "patched", "allowed", "ok"],
        [own, "patched", "failed", "not_done"],
        [own, "deleted", "failed", "not_done"],
        [own, "deleted", "allowed", "ok"],
        [other, "expired", "allowed", "ok"],
    ];
    assert_eq!(found, expected.map(|line| line.map(Value::from)));
    for secret in [CANARY, "tok_", "SEALED_"] {
        assert!(!text.contains(secret), "{text}");
    }
}
