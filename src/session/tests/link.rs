//! Two processes with the same sessions, one of which has the store: what one does the other knows,
//! and what does not fit is refused or cut.

use tokio::net::UnixStream;

use super::restarts::{keys, proven};
use super::*;
use crate::seal::KeyId;
use crate::secret::Fingerprint;
use crate::session::{Error, Following, Link};
use crate::store::Gate;
use crate::tenant::{Change, Limits, State, Tenants};

/// The process before, its successor, and the tie between them.
struct Pair {
    before: World,
    after: World,
    made: Created,
    following: Following,
}

async fn pair() -> Pair {
    pair_with(false).await
}

/// With tenants of the store where `is_strict`: `acme`, and another.
async fn pair_with(is_strict: bool) -> Pair {
    pair_of(is_strict, options(), []).await.0
}

/// With options of the process before, and sessions that it has besides.
async fn pair_of<const N: usize>(
    is_strict: bool,
    own: Options,
    also: [Form; N],
) -> (Pair, Vec<Created>) {
    let first = proven().await;
    let gate = Arc::new(Gate::new(Arc::clone(&first.store) as Arc<dyn Store>));
    let clock = Clock::default();
    let rows = Arc::clone(&gate) as Arc<dyn Store>;
    let sessions = Sessions::new(rows, keys(), own, Arc::new(closed()), Sink::discard());
    let sessions = sessions.with_clock(clock.clone());
    let sessions = tenanted(sessions, is_strict).await;
    if is_strict {
        for name in [first.tenant.as_str(), "other"] {
            let (name, tenants) = (tenant(name), sessions.tenants());
            tenants.create(&name, Limits::default()).await.unwrap();
        }
    }
    let before = World {
        sessions: Arc::new(sessions),
        store: Arc::clone(&first.store),
        clock,
        tenant: first.tenant.clone(),
    };
    let made = before.create(one_secret()).await;
    let mut others = Vec::new();
    for form in also {
        others.push(before.create(form).await);
    }
    let mut after = first.restarted(keys());
    let sessions = Arc::into_inner(after.sessions).expect("nobody else has it");
    after.sessions = Arc::new(tenanted(sessions, is_strict).await);
    after.sessions.load().await.unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let handing = gate.hand_over(MINUTE).await.unwrap();
    let (remote, following) = before.sessions.trail(Link::new(ours), true, None);
    handing.replace(remote);
    tokio::spawn(Arc::clone(&after.sessions).lead(Link::new(theirs), drop));
    // It is there when it has answered.
    before.create(one_secret()).await;
    let pair = Pair {
        before,
        after,
        made,
        following,
    };
    (pair, others)
}

fn key_of(world: &World, created: &Created) -> RowKey {
    RowKey {
        tenant: world.tenant.clone(),
        session: created.handle.id().clone(),
    }
}

/// Waits until the process before has heeded all that its successor has told so far.
async fn heeded(before: &World, after: &World) {
    let last = after.create(one_secret()).await;
    until("what comes last", || before.live(&last).is_some()).await;
}

async fn tenanted(sessions: Sessions, is_strict: bool) -> Sessions {
    if !is_strict {
        return with_two(sessions);
    }
    let records = Arc::clone(sessions.records());
    let tenants = Arc::new(Tenants::new(records, Limits::default(), 1));
    tenants.load().await.unwrap();
    sessions.with_tenants(tenants)
}

/// Waits for what another task brings about.
async fn until(what: &str, mut met: impl FnMut() -> bool) {
    let met = async {
        while !met() {
            tokio::task::yield_now().await;
        }
    };
    let reached = tokio::time::timeout(Duration::from_secs(30), met).await;
    assert!(reached.is_ok(), "{what}");
}

fn value(handle: &SessionHandle) -> String {
    handle.with_form(|form, _spec| {
        let secret = &form.secrets["OWN"].value;
        String::from_utf8(secret.expose().to_vec()).unwrap()
    })
}

fn rotate(form: &mut Form, value: &str) {
    form.secrets
        .insert("OWN".to_owned(), scoped(value, &["api.example.com"]));
}

#[tokio::test]
async fn changes_go_both_ways_and_only_the_next_version_is_written() {
    let Pair {
        before,
        after,
        made,
        following: _tie,
    } = pair().await;
    let key = RowKey {
        tenant: after.tenant.clone(),
        session: made.handle.id().clone(),
    };
    let row = async || after.store.get(&key).await.unwrap();
    let first = row().await.unwrap();
    let here = after.live(&made).unwrap();
    before
        .patch(&made.handle, |form| rotate(form, "second-value-0123"))
        .await;
    assert_eq!(
        value(&here),
        "second-value-0123",
        "it was there before the answer"
    );
    let second = row().await.unwrap();
    after
        .patch(&here, |form| rotate(form, "third-value-01234"))
        .await;
    until("the patch", || value(&made.handle) == "third-value-01234").await;
    let third = row().await.unwrap();
    for old in [&first, &second, &third] {
        let refused = after.sessions.write_for(&key, old.clone(), 0).await;
        assert!(refused.unwrap_err().contains("changed meanwhile"));
        let keyring = keys();
        before.sessions.adopt(&keyring, &key, old).unwrap();
        assert_eq!(
            value(&made.handle),
            "third-value-01234",
            "an older row is none"
        );
    }
    assert_eq!(row().await.unwrap().sealed, third.sealed);
    let other = RowKey {
        tenant: tenant("umbrella"),
        ..key.clone()
    };
    assert!(
        after
            .sessions
            .write_for(&other, third.clone(), 0)
            .await
            .is_err()
    );
    assert!(before.sessions.adopt(&keys(), &other, &third).is_err());
    // Who has ended stays so, whatever is on its way.
    after
        .sessions
        .delete(&after.tenant, made.handle.id())
        .await
        .unwrap();
    until("the end", || made.handle.is_cut()).await;
    let refused = after.sessions.write_for(&key, third.clone(), 0).await;
    assert!(refused.unwrap_err().contains("has ended"));
    assert_eq!(row().await, None);
    let own = before.create(one_secret()).await;
    let there = after.live(&own).expect("it is everywhere");
    before
        .sessions
        .delete(&before.tenant, own.handle.id())
        .await
        .unwrap();
    assert!(there.is_cut() && after.live(&own).is_none());
}

#[tokio::test]
async fn only_who_has_the_store_decides_what_has_expired() {
    let Pair {
        before,
        after,
        made,
        following: _tie,
    } = pair().await;
    before.clock.advance(2 * MINUTE);
    before.sweep().await;
    assert!(!made.handle.is_cut(), "it may be in use over there");
    assert!(after.live(&made).is_some());
    after.clock.advance(2 * MINUTE);
    after.sweep().await;
    until("the end", || made.handle.is_cut()).await;
    assert_eq!(before.sessions.len(), 0);
}

#[tokio::test]
async fn what_may_have_been_used_elsewhere_has_a_second_more() {
    let Pair {
        before,
        after,
        made,
        following: _tie,
    } = pair().await;
    before.clock.advance(2 * MINUTE);
    after.clock.advance(MINUTE);
    let there = after.sessions.in_table(made.handle.id()).unwrap();
    after.sweep().await;
    assert!(there.is_over() && !there.is_cut());
    after.clock.advance(Duration::from_secs(1));
    after.sweep().await;
    assert!(there.is_cut());
}

#[tokio::test]
async fn a_session_that_cannot_be_read_is_cut() {
    let Pair {
        before,
        after,
        made,
        following,
    } = pair().await;
    let both = vec![(KeyId::new(1), [7; 32]), (KeyId::new(2), [8; 32])];
    let keyring = Keyring::from_keys(both, KeyId::new(2)).unwrap();
    after.sessions.rotate(keyring).await.unwrap();
    let again = before.create(one_secret()).await;
    assert!(!made.handle.is_cut(), "sealed anew, it says what it said");
    let here = after.live(&made).unwrap();
    after
        .patch(&here, |form| rotate(form, "second-value-0123"))
        .await;
    until("the end", || made.handle.is_cut()).await;
    assert!(after.live(&made).is_some() && after.live(&again).is_some());
    following.finish().await;
}

#[tokio::test]
async fn without_the_other_process_changes_fail() {
    let Pair {
        before,
        after: _gone,
        made,
        following,
    } = pair().await;
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let (remote, lost) = before.sessions.trail(Link::new(ours), true, None);
    lost.broken().await;
    assert!(remote.health().is_err());
    let key = RowKey {
        tenant: before.tenant.clone(),
        session: made.handle.id().clone(),
    };
    assert!(remote.delete(&key).await.is_err());
    assert!(remote.load().await.is_err() && remote.get(&key).await.is_err());
    following.finish().await;
}

fn disabled() -> Change {
    Change {
        state: Some(State::Disabled),
        ..Change::default()
    }
}

#[tokio::test]
async fn tenants_that_end_over_there_are_cut_here() {
    let Pair {
        before,
        after,
        made,
        following: _tie,
    } = pair_with(true).await;
    let other = tenant("other");
    let theirs = before.sessions.create(&other, one_secret()).await.unwrap();
    let (here, there) = (before.sessions.tenants(), after.sessions.tenants());
    let key = Fingerprint::of(b"a-key-of-a-tenant");
    let added = there.add_key(&other, "", key).await.unwrap();
    let knows = || here.by_key(b"a-key-of-a-tenant").is_some();
    until("the key", knows).await;
    there.revoke_key(&other, &added.id).await.unwrap();
    until("its end", || !knows()).await;
    assert!(!theirs.handle.is_cut(), "it has nothing to do with the key");
    there.patch(&other, disabled()).await.unwrap();
    until("the end of the tenant", || theirs.handle.is_cut()).await;
    assert!(!made.handle.is_cut());
    // Whose rows they are deletes and records them.
    before.sweep().await;
    assert!(before.sessions.in_table(theirs.handle.id()).is_none());
    let key = RowKey {
        tenant: other.clone(),
        session: theirs.handle.id().clone(),
    };
    assert!(after.store.get(&key).await.unwrap().is_some());
    after.sweep().await;
    assert!(after.store.get(&key).await.unwrap().is_none());
    after.sessions.delete_tenant(&after.tenant).await.unwrap();
    until("the end of the other", || made.handle.is_cut()).await;
    until("that it is gone", || here.find(&before.tenant).is_none()).await;
}

#[tokio::test]
async fn what_takes_a_right_away_holds_here_though_the_store_fails() {
    let Pair {
        before,
        after,
        made,
        following: _tie,
    } = pair_with(true).await;
    let (here, there) = (before.sessions.tenants(), after.sessions.tenants());
    let own = after.tenant.clone();
    let key = Fingerprint::of(b"a-key-of-a-tenant");
    let added = there.add_key(&own, "", key).await.unwrap();
    let knows = || here.by_key(b"a-key-of-a-tenant").is_some();
    until("the key", knows).await;
    after.store.fail(true);
    there.revoke_key(&own, &added.id).await.unwrap_err();
    until("its end", || !knows()).await;
    after.sessions.delete_tenant(&own).await.unwrap_err();
    until("the end of the tenant", || made.handle.is_cut()).await;
    after.store.fail(false);
}

#[tokio::test]
async fn changes_of_tenants_are_made_over_there_and_undo_nothing() {
    let Pair {
        before,
        after,
        made,
        following: _tie,
    } = pair_with(true).await;
    let (here, there) = (before.sessions.tenants(), after.sessions.tenants());
    let own = after.tenant.clone();
    let [first, second] = [b"first-key-of-a-tenant-", b"second-key-of-a-tenant"];
    let added = here
        .add_key(&own, "", Fingerprint::of(first))
        .await
        .unwrap();
    assert!(there.by_key(first).is_some(), "it is there by the answer");
    there.revoke_key(&own, &added.id).await.unwrap();
    here.add_key(&own, "", Fingerprint::of(second))
        .await
        .unwrap();
    assert!(there.by_key(first).is_none() && there.by_key(second).is_some());
    until("the end of the key", || here.by_key(first).is_none()).await;
    // Of what was read a while ago nothing is written.
    let key = RecordKey::new(RecordKind::Tenant, own.as_str());
    let old = after.store.record(&key).await.unwrap().unwrap();
    there
        .revoke_key(&own, &there.about(&own).unwrap().keys[0].id)
        .await
        .unwrap();
    assert!(!there.write_for(&key, Some(&old), &old).await.unwrap());
    assert!(!there.write_for(&key, None, &old).await.unwrap());
    assert!(there.by_key(second).is_none());
    here.create(&tenant("fresh"), Limits::default())
        .await
        .unwrap();
    assert!(there.find(&tenant("fresh")).is_some());
    before.sessions.delete_tenant(&own).await.unwrap();
    assert!(made.handle.is_cut() && there.find(&own).is_none());
    assert!(after.sessions.in_table(made.handle.id()).is_none());
}

#[tokio::test]
async fn a_tenant_that_cannot_be_read_is_cut_and_loses_no_row() {
    let Pair {
        before,
        after,
        made,
        following: _tie,
    } = pair_with(true).await;
    let both = vec![(KeyId::new(1), [7; 32]), (KeyId::new(2), [8; 32])];
    let keyring = Keyring::from_keys(both, KeyId::new(2)).unwrap();
    after.sessions.rotate(keyring).await.unwrap();
    assert!(!made.handle.is_cut(), "sealed anew, it says what it said");
    let limits = Change {
        sessions: Some(Some(7)),
        ..Change::default()
    };
    let own = after.tenant.clone();
    after.sessions.tenants().patch(&own, limits).await.unwrap();
    until("the end", || made.handle.is_cut()).await;
    before.sweep().await;
    let key = RowKey {
        tenant: own.clone(),
        session: made.handle.id().clone(),
    };
    assert!(after.store.get(&key).await.unwrap().is_some());
    assert!(after.live(&made).is_some());
    until("the end of the tenant", || {
        before.sessions.tenants().find(&own).is_none()
    })
    .await;
}

#[tokio::test]
async fn what_ends_during_a_patch_does_not_come_back_here() {
    let Pair {
        before,
        after,
        made,
        following: _tie,
    } = pair().await;
    let here = after.live(&made).unwrap();
    after.store.hold();
    let (sessions, tenant, id) = (
        Arc::clone(&after.sessions),
        after.tenant.clone(),
        here.id().clone(),
    );
    let patching = tokio::spawn({
        let (sessions, tenant, id) = (Arc::clone(&sessions), tenant.clone(), id.clone());
        async move { sessions.patch(&tenant, &id, Ok).await.map(drop) }
    });
    after.store.holding().await;
    let deleting = tokio::spawn(async move { sessions.delete(&tenant, &id).await });
    until("the end", || made.handle.is_cut()).await;
    after.store.release();
    patching.await.unwrap().unwrap_err();
    deleting.await.unwrap().unwrap();
    heeded(&before, &after).await;
    assert!(before.sessions.in_table(made.handle.id()).is_none());
}

#[tokio::test]
async fn a_deletion_here_is_answered_when_the_row_is_gone_whoever_told_of_the_end() {
    let Pair {
        before,
        after,
        made,
        following: _tie,
    } = pair().await;
    let (tenant, id) = (&before.tenant, made.handle.id());
    let changing = made.handle.changing.lock().await;
    let deleting = tokio::spawn({
        let (sessions, tenant, id) = (Arc::clone(&before.sessions), tenant.clone(), id.clone());
        async move { sessions.delete(&tenant, &id).await }
    });
    until("the cut", || made.handle.is_cut()).await;
    after.store.fail(true);
    after.sessions.delete(tenant, id).await.unwrap_err();
    until("the end", || before.sessions.in_table(id).is_none()).await;
    let row = async || after.store.get(&key_of(&after, &made)).await.unwrap();
    assert!(row().await.is_some());
    after.store.fail(false);
    drop(changing);
    deleting.await.unwrap().unwrap();
    assert!(row().await.is_none());
}

#[tokio::test]
async fn what_the_successor_refuses_ends_here_and_can_be_deleted() {
    let loose = Options {
        unscoped_secrets: true,
        ..options()
    };
    let unscoped = form([("OWN", secret(CANARY))]);
    let (pair, also) = pair_of(false, loose, [unscoped.clone(), unscoped]).await;
    let Pair {
        before,
        after,
        made,
        following: _tie,
    } = pair;
    let key = key_of(&after, &also[0]);
    assert!(after.sessions.refused().contains(&key));
    until("the end", || also[0].handle.is_cut()).await;
    assert!(!made.handle.is_cut());
    assert!(after.store.get(&key).await.unwrap().is_some());
    // As one who was asked to before it was told.
    assert!(before.sessions.store.delete(&key).await.unwrap());
    assert!(after.store.get(&key).await.unwrap().is_none());
    assert!(!after.sessions.refused().contains(&key));
    assert!(!before.sessions.store.delete(&key).await.unwrap());
    // And by its tenant, who has a connection to this one yet.
    until("the end", || also[1].handle.is_cut()).await;
    let (sessions, id) = (&before.sessions, also[1].handle.id());
    until("its end here", || sessions.in_table(id).is_none()).await;
    let (own, other) = (&before.tenant, tenant("other"));
    let another_s = sessions.delete(&other, id).await;
    assert!(matches!(another_s, Err(Error::NotFound)), "{another_s:?}");
    sessions.delete(own, id).await.unwrap();
    let gone = after.store.get(&key_of(&after, &also[1])).await.unwrap();
    assert!(gone.is_none());
    let again = sessions.delete(own, id).await;
    assert!(matches!(again, Err(Error::NotFound)), "{again:?}");
}

#[tokio::test]
async fn what_is_written_for_the_process_before_comes_under_a_key_that_is_new_meanwhile() {
    let Pair {
        before,
        after,
        made: _,
        following: _tie,
    } = pair().await;
    after.store.hold();
    let (sessions, tenant) = (Arc::clone(&before.sessions), before.tenant.clone());
    let creating = tokio::spawn(async move { sessions.create(&tenant, one_secret()).await });
    after.store.holding().await;
    let given = [(2, [8; 32]), (1, [7; 32])].map(|(id, key)| (KeyId::new(id), key));
    let both = Keyring::from_keys(given.into(), KeyId::new(2)).unwrap();
    let sessions = Arc::clone(&after.sessions);
    let rotation = tokio::spawn(async move { sessions.rotate(both).await });
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    after.store.release();
    after.store.released.add_permits(100);
    creating.await.unwrap().unwrap();
    assert_eq!(rotation.await.unwrap().unwrap().refused, 0);
    for (key, row) in after.store.load().await.unwrap().rows {
        let under = Keyring::key_of(&row.sealed);
        assert_eq!(under, Ok(KeyId::new(2)), "{key:?}");
    }
}

#[tokio::test]
async fn a_change_that_nobody_waits_for_any_more_is_known_where_it_was_asked_for() {
    let Pair {
        before,
        after,
        made,
        following: _tie,
    } = pair().await;
    after.store.hold();
    let (sessions, tenant) = (Arc::clone(&before.sessions), before.tenant.clone());
    let id = made.handle.id().clone();
    let patching = tokio::spawn(async move {
        let change = |mut form: Form| {
            rotate(&mut form, "second-value-0123");
            Ok(form)
        };
        sessions.patch(&tenant, &id, change).await.map(drop)
    });
    after.store.holding().await;
    patching.abort();
    assert!(patching.await.unwrap_err().is_cancelled());
    after.store.release();
    until("the patch", || value(&made.handle) == "second-value-0123").await;
    before
        .patch(&made.handle, |form| rotate(form, "third-value-01234"))
        .await;
    assert_eq!(value(&after.live(&made).unwrap()), "third-value-01234");
}

#[tokio::test]
async fn one_who_says_nothing_has_gone() {
    let world = proven().await;
    let (ours, silent) = UnixStream::pair().unwrap();
    let (other, _also_silent) = UnixStream::pair().unwrap();
    tokio::time::pause();
    let leading = Arc::clone(&world.sessions).lead(Link::new(ours), drop);
    tokio::time::timeout(MINUTE, leading).await.unwrap();
    assert_eq!(world.sessions.followers(), 0);
    let (_remote, following) = world.sessions.trail(Link::new(other), true, None);
    tokio::time::timeout(MINUTE, following.broken())
        .await
        .unwrap();
    drop(silent);
}

#[tokio::test]
async fn what_is_used_here_lives_over_there() {
    let Pair {
        before: _uses,
        after,
        made,
        following: _tie,
    } = pair().await;
    let there = after.live(&made).unwrap();
    after.clock.advance(NEARLY);
    // Here the time stands still: it was used just now.
    until("a report", || there.life.idle().is_zero()).await;
    after.clock.advance(NEARLY);
    assert!(!there.is_over());
}
