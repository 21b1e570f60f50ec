//! Keys that are rotated: everything comes under the new one, whatever happens meanwhile.

use std::collections::BTreeSet;

use super::*;
use crate::seal::{self, KeyId};
use crate::session::{Error, Rotated, rotate_offline};

const OLD: (u32, [u8; 32]) = (1, [7; 32]);
const NEW: (u32, [u8; 32]) = (2, [8; 32]);

/// Makes a keyring, the current key first.
fn keys(all: &[(u32, [u8; 32])]) -> Keyring {
    let given = all
        .iter()
        .map(|(id, key)| (KeyId::new(*id), *key))
        .collect();
    Keyring::from_keys(given, KeyId::new(all[0].0)).unwrap()
}

async fn world(sessions: usize) -> (World, Vec<Created>) {
    let world = World::with(options(), keys(&[OLD]), Sink::discard());
    world.sessions.load().await.unwrap();
    let mut all = Vec::new();
    for _ in 0..sessions {
        all.push(world.create(one_secret()).await);
    }
    (world, all)
}

/// Returns the ids of the keys that rows are under, with how many.
async fn under(world: &World) -> Vec<(KeyId, usize)> {
    let mut counts = BTreeMap::new();
    for (_, row) in world.store.load().await.unwrap().rows {
        *counts
            .entry(Keyring::key_of(&row.sealed).unwrap())
            .or_default() += 1;
    }
    counts.into_iter().collect()
}

fn sealed(sealed: usize) -> Rotated {
    Rotated {
        sealed,
        ..Rotated::default()
    }
}

/// The same, where another key was that of the store before.
fn changed(rotated: Rotated) -> Rotated {
    Rotated {
        changed: true,
        ..rotated
    }
}

#[tokio::test]
async fn everything_comes_under_the_new_key_while_it_is_used() {
    let (world, all) = world(5).await;
    let rotated = world.sessions.rotate(keys(&[NEW, OLD])).await.unwrap();
    assert_eq!(rotated, changed(sealed(5)));
    assert_eq!(under(&world).await, [(KeyId::new(2), 6)]);
    world.create(one_secret()).await;
    assert_eq!(under(&world).await, [(KeyId::new(2), 7)]);
    assert_eq!(world.sessions.resume_rotation().await.unwrap(), sealed(0));
    assert!(all.iter().all(|created| world.admits(created)));
    let after = world.restarted(keys(&[NEW]));
    assert_eq!(after.sessions.load().await.unwrap().live, 6);
}

#[tokio::test]
async fn the_last_use_is_not_touched() {
    let (world, all) = world(1).await;
    let key = RowKey {
        tenant: world.tenant.clone(),
        session: all[0].handle.id().clone(),
    };
    world.clock.advance(MINUTE / 2);
    world.sessions.rotate(keys(&[NEW, OLD])).await.unwrap();
    let now = std::time::SystemTime::now();
    let idle = crate::session::record::millis(now)
        - world.store.get(&key).await.unwrap().unwrap().last_used;
    assert!(idle >= 30_000, "{idle}");
}

#[tokio::test]
async fn an_interrupted_rotation_goes_on() {
    let (world, _all) = world(4).await;
    // Two of four are done when the process ends.
    let rows = world.store.load().await.unwrap().rows;
    world.sessions.rotate(keys(&[NEW, OLD])).await.unwrap();
    for (key, row) in rows.into_iter().take(3) {
        world.store.put(&key, row).await.unwrap();
    }
    assert_eq!(
        under(&world).await,
        [(KeyId::new(1), 3), (KeyId::new(2), 2)]
    );
    // Too early: the old key is still needed, and the start says so.
    let early = world.restarted(keys(&[NEW]));
    let error = early.sessions.load().await.unwrap_err();
    let missing = seal::Error::UnknownKey(KeyId::new(1));
    assert!(
        matches!(error, Error::Keys(it) if it == missing),
        "{error:?}"
    );
    let after = world.restarted(keys(&[NEW, OLD]));
    assert_eq!(after.sessions.load().await.unwrap().live, 4);
    world.store.fail(true);
    after.sessions.resume_rotation().await.unwrap_err();
    world.store.fail(false);
    assert_eq!(
        after.sessions.resume_rotation().await.unwrap(),
        changed(sealed(2))
    );
    assert_eq!(under(&world).await, [(KeyId::new(2), 5)]);
}

#[tokio::test]
async fn a_keyring_without_the_old_key_is_not_taken() {
    let (world, all) = world(1).await;
    let error = world.sessions.rotate(keys(&[NEW])).await.unwrap_err();
    let missing = seal::Error::UnknownKey(KeyId::new(1));
    assert!(
        matches!(error, Error::Keys(it) if it == missing),
        "{error:?}"
    );
    world
        .patch(&all[0].handle, |form| form.ttl_seconds = Some(90))
        .await;
    assert_eq!(under(&world).await, [(KeyId::new(1), 2)]);
}

#[tokio::test]
async fn a_row_that_was_on_its_way_comes_under_the_new_key_too() {
    let (world, _all) = world(1).await;
    world.store.hold();
    let sessions = Arc::clone(&world.sessions);
    let tenant = world.tenant.clone();
    let creation = tokio::spawn(async move { sessions.create(&tenant, one_secret()).await });
    world.store.holding().await;
    let sessions = Arc::clone(&world.sessions);
    let rotation = tokio::spawn(async move { sessions.rotate(keys(&[NEW, OLD])).await });
    tokio::task::yield_now().await;
    world.store.release();
    creation.await.unwrap().unwrap();
    rotation.await.unwrap().unwrap();
    assert_eq!(under(&world).await, [(KeyId::new(2), 3)]);
}

#[tokio::test]
async fn a_row_that_the_store_has_and_had_not_acknowledged_comes_under_the_new_key_too() {
    let (world, all) = world(1).await;
    let key = RowKey {
        tenant: world.tenant.clone(),
        session: all[0].handle.id().clone(),
    };
    let row = world.store.get(&key).await.unwrap().unwrap();
    world
        .sessions
        .delete(&key.tenant, &key.session)
        .await
        .unwrap();
    // As after a creation that came to its deadline: nobody knows of the row.
    world.store.put(&key, row).await.unwrap();
    let rotated = world.sessions.rotate(keys(&[NEW, OLD])).await.unwrap();
    assert_eq!(rotated, changed(sealed(1)));
    assert_eq!(under(&world).await, [(KeyId::new(2), 2)]);
    let after = world.restarted(keys(&[NEW]));
    assert_eq!(after.sessions.load().await.unwrap().live, 1);
}

#[tokio::test]
async fn a_session_that_is_deleted_meanwhile_does_not_come_back() {
    // More than are sealed at once: the last one waits for its turn.
    let (world, all) = world(70).await;
    let last = all.iter().map(|created| created.handle.id()).max();
    let last = last.unwrap().clone();
    world.store.hold();
    let sessions = Arc::clone(&world.sessions);
    let rotation = tokio::spawn(async move { sessions.rotate(keys(&[NEW, OLD])).await });
    for _ in 0..64 {
        world.store.holding().await;
    }
    let (sessions, tenant) = (Arc::clone(&world.sessions), world.tenant.clone());
    let deletion = tokio::spawn(async move { sessions.delete(&tenant, &last).await });
    world.store.holding().await;
    world.store.release();
    world.store.released.add_permits(200);
    deletion.await.unwrap().unwrap();
    rotation.await.unwrap().unwrap();
    assert_eq!(
        under(&world).await,
        [(KeyId::new(2), 70)],
        "the proof, and 69"
    );
}

#[tokio::test]
async fn refused_rows_are_counted_kept_and_name_their_keys() {
    let (world, all) = world(3).await;
    let key = |at: usize| RowKey {
        tenant: world.tenant.clone(),
        session: all[at].handle.id().clone(),
    };
    let mut row = world.store.get(&key(0)).await.unwrap().unwrap();
    let last = row.sealed.len() - 1;
    row.sealed[last] ^= 1;
    world.store.put(&key(0), row).await.unwrap();
    // Sealed well, and another session's: only its owner may seal it anew.
    let swapped = world.store.get(&key(1)).await.unwrap().unwrap();
    world.store.put(&key(2), swapped.clone()).await.unwrap();
    let expected = Rotated {
        sealed: 1,
        refused: 2,
        needed: BTreeSet::from([KeyId::new(1)]),
        changed: true,
    };
    let after = world.restarted(keys(&[NEW, OLD]));
    assert_eq!(after.sessions.load().await.unwrap().refused, 2);
    assert_eq!(after.sessions.resume_rotation().await.unwrap(), expected);
    assert_eq!(world.store.get(&key(2)).await.unwrap().unwrap(), swapped);
}

#[tokio::test]
async fn records_beside_the_sessions_come_under_the_new_key_too() {
    let (world, _all) = world(1).await;
    let key = RecordKey::new(RecordKind::Tenant, "acme");
    let records = world.sessions.records();
    records.put(&key, b"record").await.unwrap();
    let rotated = world.sessions.rotate(keys(&[NEW, OLD])).await.unwrap();
    assert_eq!(rotated, changed(sealed(2)));
    let row = world.store.record(&key).await.unwrap().unwrap();
    assert_eq!(Keyring::key_of(&row), Ok(KeyId::new(2)));
    let opened = records.open(&key).await.unwrap().unwrap().unwrap();
    assert_eq!(*opened, b"record");
    let both = keys(&[OLD, NEW]);
    let back = rotate_offline(world.store.as_ref(), &both).await.unwrap();
    assert_eq!(back, changed(sealed(2)));
    let row = world.store.record(&key).await.unwrap().unwrap();
    assert_eq!(Keyring::key_of(&row), Ok(KeyId::new(1)));
}

#[tokio::test]
async fn a_key_that_only_a_record_needs_is_not_given_up() {
    let world = World::with(options(), keys(&[OLD]), Sink::discard());
    let key = RecordKey::new(RecordKind::Tenant, "acme");
    world.sessions.records().put(&key, b"record").await.unwrap();
    let error = world.sessions.rotate(keys(&[NEW])).await.unwrap_err();
    let missing = seal::Error::UnknownKey(KeyId::new(1));
    assert!(
        matches!(error, Error::Keys(it) if it == missing),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_store_that_nobody_serves_is_rotated_as_well() {
    let (world, _all) = world(3).await;
    let error = rotate_offline(world.store.as_ref(), &keys(&[NEW])).await;
    assert!(matches!(error, Err(Error::Keys(_))), "{error:?}");
    let both = keys(&[NEW, OLD]);
    let rotated = rotate_offline(world.store.as_ref(), &both).await;
    assert_eq!(rotated.unwrap(), changed(sealed(3)));
    assert_eq!(under(&world).await, [(KeyId::new(2), 4)]);
    let again = rotate_offline(world.store.as_ref(), &both).await;
    assert_eq!(again.unwrap(), sealed(0));
    let after = world.restarted(keys(&[NEW]));
    assert_eq!(after.sessions.load().await.unwrap().live, 3);
}

#[tokio::test]
async fn rows_go_to_a_store_that_nobody_serves_together() {
    let (world, _all) = world(5).await;
    world.store.hold();
    let store = Arc::clone(&world.store);
    let rotation =
        tokio::spawn(async move { rotate_offline(store.as_ref(), &keys(&[NEW, OLD])).await });
    let arrived = async {
        for _ in 0..5 {
            world.store.holding().await;
        }
    };
    let arrived = tokio::time::timeout(MINUTE, arrived).await;
    arrived.expect("no row waits for another");
    assert_eq!(under(&world).await, [(KeyId::new(1), 6)]);
    world.store.release();
    world.store.released.add_permits(4);
    assert_eq!(rotation.await.unwrap().unwrap(), changed(sealed(5)));
    assert_eq!(under(&world).await, [(KeyId::new(2), 6)]);
}
