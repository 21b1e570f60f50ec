//! What a store says and what it does not: a session that is not found was not deleted, one that was
//! deleted stays so wherever it comes up, and what a node knows better it writes when it can.

use std::collections::HashMap;

use super::*;
use crate::session::Error as SessionError;
use crate::store::Store;
use crate::tenant;

/// Takes records in, as `app` does.
fn told(node: &Node) -> Box<OnRecord> {
    let tenants = Arc::clone(node.0.tenants());
    Box::new(move |key| {
        let tenants = Arc::clone(&tenants);
        Box::pin(async move {
            let done = match key {
                Some(key) => tenants.reload(&key, true).await,
                None => tenants.reload_all().await.map(drop),
            };
            match done {
                Err(tenant::Error::Store(error)) => Err(error),
                Ok(()) | Err(_) => Ok(()),
            }
        })
    })
}

fn lives(seconds: u64) -> impl FnOnce(Form) -> Result<Form, Vec<crate::session::FieldError>> {
    move |mut form| {
        form.ttl_seconds = Some(seconds);
        Ok(form)
    }
}

/// Returns how long a session is said to live.
fn ttl(handle: &SessionHandle) -> Option<u64> {
    handle.with_form(|form, _| form.ttl_seconds)
}

fn key_of(created: &Created) -> RowKey {
    RowKey {
        tenant: tenant("acme"),
        session: created.handle.id().clone(),
    }
}

impl Pair {
    /// Returns what is stored of a session.
    async fn row(&self, created: &Created) -> Option<Row> {
        self.store.rows.get(&key_of(created)).await.unwrap()
    }

    /// Returns how long a session lives by what is stored of it.
    async fn stored_ttl(&self, created: &Created) -> Option<u64> {
        let row = self.row(created).await.unwrap();
        let opened = self.a.0.open(&key_of(created), &row).await.unwrap();
        opened.form.ttl_seconds
    }
}

#[tokio::test]
async fn a_server_without_the_proof_of_the_keys_says_nothing() {
    let pair = Pair::new().await;
    let created = pair.a.create(one_secret()).await;
    assert_eq!(pair.b.admits(&created).await, Ok(()));
    let whole = pair.store.all().await;
    pair.store
        .become_another((Vec::new(), HashMap::new()))
        .await;
    // What is known is served for a while, and nobody is told that there is none.
    pair.pass(SECOND).await;
    for node in [&pair.a, &pair.b] {
        assert_eq!(node.admits(&created).await, Ok(()));
    }
    let stranger = SessionId::generate();
    let answer = pair.b.admits_as(stranger.as_str(), "tok_x").await;
    assert_eq!(answer, Err(NotAdmitted::Unavailable));
    let patched = pair.a.0.patch(&tenant("acme"), &stranger, lives(90)).await;
    assert!(
        matches!(patched, Err(SessionError::Store(_))),
        "{patched:?}"
    );
    pair.pass(10 * SECOND).await;
    for node in [&pair.a, &pair.b] {
        assert_eq!(node.admits(&created).await, Err(NotAdmitted::Unavailable));
        // Although the server answers every question.
        assert!(node.0.store_health().is_err());
    }
    pair.store.become_another(whole).await;
    pair.pass(3 * SECOND).await;
    for node in [&pair.a, &pair.b] {
        assert_eq!(node.admits(&created).await, Ok(()));
        assert!(node.0.store_health().is_ok());
    }
    assert!(pair.row(&created).await.is_some());
}

#[tokio::test]
async fn what_a_server_did_not_have_for_a_while_was_not_deleted() {
    let pair = Pair::new().await;
    let behind = pair.store.all().await;
    let (created, deleted) = (
        pair.a.create(one_secret()).await,
        pair.a.create(one_secret()).await,
    );
    for session in [&created, &deleted] {
        assert_eq!(pair.b.admits(session).await, Ok(()));
    }
    pair.pass(SECOND).await;
    let whole = pair.store.all().await;
    pair.store.become_another(behind).await;
    // Deleted here while the server does not know it: that holds.
    let own = deleted.handle.id();
    pair.a.0.delete(&tenant("acme"), own).await.unwrap();
    pair.pass(2 * SECOND).await;
    for node in [&pair.a, &pair.b] {
        assert_eq!(node.admits(&created).await, Err(NotAdmitted::Unknown));
        let patched = node
            .0
            .patch(&tenant("acme"), created.handle.id(), lives(90))
            .await;
        assert!(matches!(patched, Err(SessionError::NotFound)));
    }
    assert!(
        created.handle.is_cut(),
        "what the store does not have is cut"
    );
    pair.store.become_another(whole).await;
    pair.pass(2 * SECOND).await;
    for node in [&pair.a, &pair.b] {
        assert_eq!(node.admits(&created).await, Ok(()));
        assert_eq!(node.admits(&deleted).await, Err(NotAdmitted::Unknown));
    }
    pair.pass(3 * SECOND).await;
    assert!(pair.row(&created).await.is_some());
    assert!(pair.row(&deleted).await.is_none());
}

#[tokio::test]
async fn a_deletion_holds_whatever_the_store_did_not_have_meanwhile() {
    let pair = Pair::new().await;
    let behind = pair.store.all().await;
    let (one, two) = (
        pair.a.create(one_secret()).await,
        pair.a.create(one_secret()).await,
    );
    pair.pass(SECOND).await;
    let whole = pair.store.all().await;
    let acme = tenant("acme");
    // One that waits for a patch, and one that the store does not take.
    let patching = one.handle.changing.lock().await;
    let mut deleting = Box::pin(pair.a.0.delete(&acme, one.handle.id()));
    assert!((&mut deleting).now_or_never().is_none());
    pair.store.is_read_only.store(true, Ordering::SeqCst);
    let failed = pair.a.0.delete(&acme, two.handle.id()).await;
    assert!(matches!(failed, Err(SessionError::Store(_))), "{failed:?}");
    pair.store.become_another(behind).await;
    pair.a.turn().await;
    assert!(pair.a.0.is_empty());
    pair.store.become_another(whole).await;
    pair.store.is_read_only.store(false, Ordering::SeqCst);
    drop(patching);
    deleting.await.unwrap();
    pair.pass(2 * SECOND).await;
    for session in [&one, &two] {
        for node in [&pair.a, &pair.b] {
            assert_eq!(node.admits(session).await, Err(NotAdmitted::Unknown));
        }
        assert!(pair.row(session).await.is_none());
    }
}

#[tokio::test]
async fn the_sessions_of_a_tenant_that_is_not_found_are_cut_and_kept() {
    let clock = Clock::default();
    let store = TestFleet::new(&clock);
    let (a, acme) = (Node::with_tenants(&store, &clock), tenant("acme"));
    a.0.load().await.unwrap();
    a.0.tenants()
        .create(&acme, Limits::default())
        .await
        .unwrap();
    let created = a.create(one_secret()).await;
    let (on_record, fleet) = (told(&a), a.0.store.fleet().unwrap());
    let turn = async || {
        clock.advance(SECOND);
        a.0.catch_up(fleet, &*on_record).await.unwrap();
        a.0.cut_expired();
        a.0.settle().await;
    };
    turn().await;
    let key = RecordKey::new(RecordKind::Tenant, "acme");
    let record = store.rows.record(&key).await.unwrap().unwrap();
    // Another server that does not have it, and says nothing of it.
    store.rows.delete_record(&key).await.unwrap();
    lock(&store.run).push('+');
    turn().await;
    turn().await;
    assert!(created.handle.is_cut());
    assert_eq!(a.admits(&created).await, Err(NotAdmitted::Unknown));
    store.rows.put_record(&key, record).await.unwrap();
    lock(&store.run).push('+');
    turn().await;
    assert_eq!(a.admits(&created).await, Ok(()));
    // Deleted, as the list of changes says: that is the end of them.
    store.delete_record(&key).await.unwrap();
    turn().await;
    turn().await;
    assert_eq!(a.admits(&created).await, Err(NotAdmitted::Unknown));
    assert_eq!(store.rows.load().await.unwrap().rows.len(), 1, "the proof");
}

#[tokio::test]
async fn case_63_a_use_that_is_not_worth_a_note_is_told_in_time() {
    let pair = Pair::new().await;
    let form = Form {
        ttl_seconds: Some(600),
        max_lifetime_seconds: Some(6000),
        ..one_secret()
    };
    let created = pair.a.create(form).await;
    assert_eq!(pair.b.admits(&created).await, Ok(()));
    // A twentieth of the lifetime is 30 s.
    pair.pass(29 * SECOND).await;
    pair.a.uses(&created);
    pair.pass(573 * SECOND).await;
    for node in [&pair.a, &pair.b] {
        assert_eq!(node.admits(&created).await, Ok(()));
    }
    assert!(!created.handle.is_cut());
}

#[tokio::test]
async fn what_was_read_before_a_deletion_does_not_bring_it_back() {
    for case in ["found", "found, and all is read anew", "about to be opened"] {
        let pair = Pair::new().await;
        let created = pair.a.create(one_secret()).await;
        pair.b.turn().await;
        pair.b.0.table.clear();
        let (found, keys) = if case == "about to be opened" {
            (None, Some(pair.b.0.keyring.write().await))
        } else {
            (Some(pair.store.found.lock().await), None)
        };
        let mut asking = Box::pin(pair.b.admits(&created));
        assert!((&mut asking).now_or_never().is_none());
        let own = created.handle.id();
        pair.a.0.delete(&tenant("acme"), own).await.unwrap();
        if case == "found, and all is read anew" {
            // What is read as a whole names no deletion.
            lock(&pair.store.run).push('+');
            lock(&pair.store.changes).clear();
        }
        pair.b.turn().await;
        drop((found, keys));
        assert_eq!(asking.await, Err(NotAdmitted::Unknown), "{case}");
        assert!(pair.b.own(&created).is_none());
        assert!(pair.row(&created).await.is_none());
    }
}

#[tokio::test]
async fn a_deletion_that_nobody_told_of_is_noticed_before_the_end() {
    let pair = Pair::new().await;
    let created = pair.a.create(minute()).await;
    assert_eq!(pair.b.admits(&created).await, Ok(()));
    pair.pass(SECOND).await;
    pair.store.rows.delete(&key_of(&created)).await.unwrap();
    pair.pass(50 * SECOND).await;
    assert!(pair.b.own(&created).is_some());
    pair.pass(5 * SECOND).await;
    assert!(pair.b.own(&created).is_none());
}

#[tokio::test]
async fn a_store_that_takes_no_changes_is_followed_all_the_same() {
    let pair = Pair::new().await;
    let all = [
        pair.a.create(one_secret()).await,
        pair.a.create(one_secret()).await,
        pair.a.create(one_secret()).await,
    ];
    let [kept, deleted, patched] = &all;
    for session in &all {
        assert_eq!(pair.b.admits(session).await, Ok(()));
    }
    pair.pass(SECOND).await;
    let older = pair.store.all().await;
    let acme = tenant("acme");
    pair.a.0.delete(&acme, deleted.handle.id()).await.unwrap();
    pair.a
        .0
        .patch(&acme, patched.handle.id(), lives(90))
        .await
        .unwrap();
    pair.pass(SECOND).await;
    // As after a fail-over to a replica that was behind, and has no replica of its own yet.
    pair.store.become_another(older).await;
    pair.store.is_read_only.store(true, Ordering::SeqCst);
    pair.pass(15 * SECOND).await;
    for node in [&pair.a, &pair.b] {
        assert_eq!(node.admits(kept).await, Ok(()));
        assert_eq!(node.admits(deleted).await, Err(NotAdmitted::Unknown));
        assert_eq!(ttl(&node.own(patched).unwrap()), Some(90));
    }
    assert!(pair.row(deleted).await.is_some());
    pair.store.is_read_only.store(false, Ordering::SeqCst);
    pair.pass(SECOND).await;
    assert!(pair.row(deleted).await.is_none());
    assert_eq!(pair.stored_ttl(patched).await, Some(90));
}

#[tokio::test]
async fn a_row_of_an_older_version_is_replaced_whatever_its_label_says() {
    let pair = Pair::new().await;
    let created = pair.a.create(one_secret()).await;
    let older = pair.row(&created).await.unwrap();
    let own = created.handle.id();
    pair.a
        .0
        .patch(&tenant("acme"), own, lives(90))
        .await
        .unwrap();
    pair.pass(SECOND).await;
    // The label, which stands in clear, stays that of the newer one.
    pair.store.rows.put(&key_of(&created), older).await.unwrap();
    pair.store.note(&key_of(&created));
    assert_eq!(pair.stored_ttl(&created).await, Some(60));
    pair.pass(SECOND).await;
    assert_eq!(pair.stored_ttl(&created).await, Some(90));
}

#[tokio::test]
async fn of_two_patches_of_one_version_the_store_s_holds() {
    let pair = Pair::new().await;
    let (created, acme) = (pair.a.create(one_secret()).await, tenant("acme"));
    assert_eq!(pair.b.admits(&created).await, Ok(()));
    pair.pass(SECOND).await;
    let older = pair.store.all().await;
    let own = created.handle.id();
    pair.a.0.patch(&acme, own, lives(90)).await.unwrap();
    let open = created.handle.enter(&target("api.example.com:443"));
    // The store loses it, and the other node makes another one of the same number.
    pair.store.become_another(older).await;
    pair.b.0.patch(&acme, own, lives(80)).await.unwrap();
    pair.pass(2 * SECOND).await;
    for node in [&pair.a, &pair.b] {
        let handle = node.own(&created).unwrap();
        assert_eq!((handle.version(), ttl(&handle)), (2, Some(80)));
    }
    assert_eq!(pair.stored_ttl(&created).await, Some(80));
    assert!(open.cut().now_or_never().is_some(), "it has the other view");
    assert!(!created.handle.is_cut());
}

#[tokio::test]
async fn a_session_that_is_being_changed_keeps_nobody_from_the_others() {
    let pair = Pair::new().await;
    let (busy, other) = (
        pair.a.create(one_secret()).await,
        pair.a.create(one_secret()).await,
    );
    for session in [&busy, &other] {
        assert_eq!(pair.b.admits(session).await, Ok(()));
    }
    pair.pass(SECOND).await;
    let theirs = pair.b.own(&busy).unwrap();
    let changing = theirs.changing.lock().await;
    let acme = tenant("acme");
    pair.a
        .0
        .patch(&acme, busy.handle.id(), lives(90))
        .await
        .unwrap();
    pair.a.0.delete(&acme, other.handle.id()).await.unwrap();
    assert!(
        pair.b.turn().now_or_never().is_some(),
        "it waits for nothing"
    );
    assert_eq!(pair.b.admits(&other).await, Err(NotAdmitted::Unknown));
    assert_eq!(ttl(&theirs), Some(60));
    drop(changing);
    pair.b.turn().await;
    assert_eq!(ttl(&theirs), Some(90));
}

#[tokio::test]
async fn a_rotation_puts_nothing_over_what_others_did_meanwhile() {
    let pair = Pair::new().await;
    let (patched, deleted) = (
        pair.a.create(one_secret()).await,
        pair.a.create(one_secret()).await,
    );
    // Rows that one node refuses and another serves.
    let late = Node::with_tenants(&pair.store, &pair.clock);
    late.0.load().await.unwrap();
    let before = pair.row(&patched).await.unwrap();
    let own = patched.handle.id();
    pair.a
        .0
        .patch(&tenant("acme"), own, lives(90))
        .await
        .unwrap();
    let after = pair.row(&patched).await.unwrap();
    let gone = pair.row(&deleted).await.unwrap();
    for node in [&late, &pair.b] {
        let (first, second) = (key_of(&patched), key_of(&deleted));
        pair.store.rows.put(&first, before.clone()).await.unwrap();
        pair.store.rows.put(&second, gone.clone()).await.unwrap();
        // In the moment after it was read for the second time, which is what is sealed anew.
        let meanwhile = vec![(first, Some(after.clone())), (second, None)];
        let keys = [[b'8'; 64], [b'\n'; 64], [b'7'; 64]].concat();
        let keys = Keyring::parse(keys.as_slice()).unwrap();
        pair.store.at_second_load(meanwhile);
        node.0.rotate(keys).await.unwrap();
        assert_eq!(pair.row(&patched).await.unwrap().sealed, after.sealed);
        assert!(pair.row(&deleted).await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_deletion_is_heard_of_within_two_seconds_without_being_announced() {
    let pair = Pair::new().await;
    let created = pair.a.create(one_secret()).await;
    assert_eq!(pair.b.admits(&created).await, Ok(()));
    let theirs = pair.b.own(&created).unwrap();
    let following = Arc::clone(&pair.b.0);
    let following = tokio::spawn(async move {
        let nothing: &OnRecord = &|_| Box::pin(async { Ok(()) });
        following.follow(nothing).await;
    });
    // It has asked for the first time.
    tokio::time::sleep(SECOND).await;
    assert!(!theirs.is_cut());
    let own = created.handle.id();
    pair.a.0.delete(&tenant("acme"), own).await.unwrap();
    tokio::time::sleep(2 * SECOND).await;
    assert!(theirs.is_cut());
    following.abort();
}

#[tokio::test]
async fn how_long_an_old_value_is_scrubbed_goes_by_the_clock_of_the_store() {
    let pair = Pair::new().await;
    // An hour and more from that of the machine.
    pair.store.ahead.store(-5000, Ordering::SeqCst);
    let created = pair.a.create(one_secret()).await;
    let rotate = |mut form: Form| {
        form.secrets.insert(
            "OWN".to_owned(),
            scoped("another-value-0123", &["api.example.com"]),
        );
        Ok(form)
    };
    let own = created.handle.id();
    pair.a.0.patch(&tenant("acme"), own, rotate).await.unwrap();
    // Half an hour later by the store.
    pair.store.ahead.fetch_add(1800, Ordering::SeqCst);
    let row = pair.row(&created).await.unwrap();
    let opened = pair.b.0.open(&key_of(&created), &row).await.unwrap();
    let left = opened.retired[0].until - std::time::Instant::now();
    assert!(left > MINUTE * 29 && left <= MINUTE * 30, "{left:?}");
}
