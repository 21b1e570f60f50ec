//! Creation, finding, authentication and what a session's workload keeps alive.

use std::collections::HashSet;
use std::time::SystemTime;

use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE};
use proptest::prelude::*;
use tokio::task::JoinSet;

use super::*;
use crate::id::SessionId;
use crate::secret::HASHED;
use crate::session::{Error, Spec};

#[tokio::test]
async fn a_creation_is_durable_and_live() {
    let world = World::new();
    let created = world.create(one_secret()).await;
    assert!(world.finds(&created.handle));
    assert_eq!(world.rows().await, 1);
    assert_eq!(world.sessions.len(), 1);
    assert_eq!(created.handle.version(), 1);
    assert_eq!(created.handle.tunnels(), 0);
    assert!(created.warnings.is_empty());
    assert_eq!(created.sealed_secrets.keys().collect::<Vec<_>>(), ["OWN"]);
    let credential = created.credential.expose();
    assert!(credential.starts_with("tok_") && credential.len() == 68);
    let opened = open_for(
        &created.handle,
        "api.example.com:443",
        &created.sealed_secrets["OWN"],
    );
    assert_eq!(opened.as_deref(), Some(CANARY));
    let left = created.handle.expires().duration_since(SystemTime::now());
    assert!(left.unwrap() <= MINUTE);
    created.handle.with_form(|form, spec| {
        assert_eq!(form.secrets["OWN"].value.expose(), CANARY.as_bytes());
        assert_eq!(spec.ttl, MINUTE);
    });
}

#[tokio::test]
async fn a_bad_form_leaves_nothing_behind() {
    let world = World::new();
    let bad = form([("OWN", secret(CANARY))]);
    let told = world.sessions.check(&bad);
    let Err(Error::Invalid(errors)) = world.sessions.create(&world.tenant, bad).await else {
        panic!("a secret without a scope was taken");
    };
    assert_eq!(errors, told);
    assert_eq!(errors[0].code, "secret_unscoped");
    assert!(world.sessions.is_empty());
    assert_eq!(world.rows().await, 0);
    assert!(world.sessions.check(&one_secret()).is_empty());
}

#[tokio::test]
async fn what_the_store_does_not_take_is_not_live() {
    let world = World::new();
    world.store.fail(true);
    let refused = world.sessions.create(&world.tenant, one_secret()).await;
    assert!(matches!(refused, Err(Error::Store(_))), "{refused:?}");
    assert!(world.sessions.is_empty());
    world.store.fail(false);
    world.create(one_secret()).await;
}

#[tokio::test]
async fn another_tenants_session_is_not_there() {
    let world = World::new();
    let created = world.create(one_secret()).await;
    let (id, other) = (created.handle.id(), tenant("other"));
    assert!(world.sessions.find(&other, id).is_none());
    assert!(world.sessions.list(&other, None, 10).is_empty());
    let patched = world.sessions.patch(&other, id, Ok).await;
    assert!(matches!(patched, Err(Error::NotFound)), "{patched:?}");
    let deleted = world.sessions.delete(&other, id).await;
    assert!(matches!(deleted, Err(Error::NotFound)), "{deleted:?}");
    assert!(world.finds(&created.handle));
    assert_eq!(created.handle.version(), 1);
    assert!(world.admits(&created));
    assert_eq!(world.rows().await, 1);
    let unknown = SessionId::generate();
    assert!(world.sessions.find(&world.tenant, &unknown).is_none());
}

#[tokio::test]
async fn a_list_has_a_tenants_own_in_order() {
    let world = World::new();
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(world.create(one_secret()).await.handle.id().clone());
    }
    let theirs = world.sessions.create(&tenant("other"), one_secret()).await;
    ids.sort_unstable();
    let list = |after: Option<&SessionId>, limit| -> Vec<SessionId> {
        let found = world.sessions.list(&world.tenant, after, limit);
        found.iter().map(|handle| handle.id().clone()).collect()
    };
    assert_eq!(list(None, 10), ids);
    assert_eq!(list(None, 2), ids[..2]);
    assert_eq!(list(Some(&ids[1]), 2), ids[2..4]);
    assert_eq!(list(Some(&ids[4]), 2), []);
    assert_eq!(list(None, 0), []);
    // A cursor is a place in the order, whether or not it is somebody's own.
    let place = theirs.unwrap().handle.id().clone();
    let after: Vec<_> = ids.iter().filter(|id| **id > place).cloned().collect();
    assert_eq!(list(Some(&place), 10), after);
    world.sessions.delete(&world.tenant, &ids[0]).await.unwrap();
    assert_eq!(list(None, 10), ids[1..]);
}

#[tokio::test]
async fn only_the_right_credential_is_admitted() {
    let world = World::new();
    let (own, other) = (
        world.create(one_secret()).await,
        world.create(one_secret()).await,
    );
    assert!(world.admits(&own) && world.admits(&other));
    let (id, token) = (own.handle.id().as_str(), own.credential.expose());
    let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
    let right = format!("{id}:{token}");
    for value in [
        basic(&right),
        basic(&right).replace("Basic", "bAsIc"),
        basic(&right).replace("Basic ", "Basic   "),
    ] {
        let found = world.sessions.authenticate(value.as_bytes()).unwrap();
        assert!(Arc::ptr_eq(found.handle(), &own.handle), "{value}");
    }
    let unknown = SessionId::generate();
    let mut short = right.clone();
    short.pop();
    let wrong = [
        String::new(),
        "Basic".to_owned(),
        "Basic ".to_owned(),
        "Basic !".to_owned(),
        right.clone(),
        STANDARD.encode(&right),
        basic(&right).replace("Basic", "Bearer"),
        basic(&right).replace("Basic ", "Basic"),
        format!("Basic {}", STANDARD_NO_PAD.encode(format!("{right}x"))),
        format!("{} x", basic(&right)),
        basic(&right.replace(':', " ")),
        basic(&format!("{id}:")),
        basic(&format!(":{token}")),
        basic(&format!("{token}:{id}")),
        basic(&format!("{id}:{token} ")),
        basic(&format!("{id}: {token}")),
        basic(&format!("{id}:{token}:")),
        basic(&format!("{id}:{}", token.to_uppercase())),
        basic(&short),
        basic(&right.replace("tok_", "")),
        basic(&format!("{}:{token}", id.to_uppercase())),
        basic(&right.replace("sess_", "")),
        basic(&format!("{unknown}:{token}")),
        basic(&format!("{}:{token}", other.handle.id())),
        basic(&format!("{id}:{}", other.credential.expose())),
        format!("Basic {}", URL_SAFE.encode([0xff, b':', 0xff])),
    ];
    for value in wrong {
        let found = world.sessions.authenticate(value.as_bytes());
        assert!(found.is_none(), "{value}");
    }
}

#[tokio::test]
async fn case_63_a_session_that_is_over_admits_nobody() {
    let world = World::new();
    let (expired, deleted) = (
        world.create(one_secret()).await,
        world.create(one_secret()).await,
    );
    let id = deleted.handle.id();
    world.sessions.delete(&world.tenant, id).await.unwrap();
    assert!(!world.admits(&deleted));
    assert!(world.admits(&expired));
    world.clock.advance(MINUTE);
    assert!(!world.admits(&expired), "before any sweep");
    assert!(!world.finds(&expired.handle));
    assert!(world.sessions.list(&world.tenant, None, 10).is_empty());
}

#[tokio::test]
async fn case_59_unknown_expired_and_wrong_cost_one_hash_like_right() {
    let world = World::new();
    let (right, deleted) = (
        world.create(one_secret()).await,
        world.create(one_secret()).await,
    );
    let id = deleted.handle.id();
    world.sessions.delete(&world.tenant, id).await.unwrap();
    let token = right.credential.expose();
    let id = right.handle.id().as_str();
    let hashes = |id: &str, token: &str| {
        let value = credentials(id, token);
        let before = HASHED.get();
        let admitted = world.sessions.authenticate(value.as_bytes()).is_some();
        (HASHED.get() - before, admitted)
    };
    assert_eq!(hashes(id, token), (1, true));
    let unknown = SessionId::generate();
    for (case, id, token) in [
        ("wrong", id, "tok_wrong"),
        ("unknown", unknown.as_str(), token),
        ("no id at all", "sess_1", token),
        (
            "deleted",
            deleted.handle.id().as_str(),
            deleted.credential.expose(),
        ),
    ] {
        assert_eq!(hashes(id, token), (1, false), "{case}");
    }
    world.clock.advance(MINUTE);
    assert_eq!(hashes(id, token), (1, false), "expired");
}

#[tokio::test]
async fn asking_for_admission_is_not_using() {
    let world = World::new();
    let created = world.create(one_secret()).await;
    world.clock.advance(MINUTE / 2);
    assert!(world.admits(&created) && world.finds(&created.handle));
    drop(created.handle.enter(&target("api.example.com:443")));
    drop(
        created
            .handle
            .host_view(&target("api.example.com:443"), Scheme::Https),
    );
    world.clock.advance(MINUTE / 2);
    assert!(!world.admits(&created));
}

#[tokio::test]
async fn an_exchange_renews_at_both_its_ends() {
    let world = World::new();
    let created = world.create(one_secret()).await;
    world.clock.advance(NEARLY);
    let guard = created.handle.exchange();
    world.clock.advance(NEARLY);
    assert!(world.admits(&created));
    drop(guard);
    world.clock.advance(NEARLY);
    assert!(world.admits(&created));
    world.clock.advance(TICK);
    assert!(!world.admits(&created));
}

#[tokio::test]
async fn an_exchange_in_progress_keeps_its_session_up_to_its_greatest_age() {
    let world = World::new();
    let created = world.create(one_secret()).await;
    let (one, two) = (created.handle.exchange(), created.handle.exchange());
    for _ in 0..4 {
        world.clock.advance(2 * MINUTE);
        world.sweep().await;
        assert!(world.admits(&created));
    }
    drop(one);
    world.clock.advance(MINUTE + MINUTE / 2);
    assert!(world.admits(&created), "the other one goes on");
    world.clock.advance(MINUTE / 2);
    assert!(!world.admits(&created), "ten minutes are over");
    drop(two);
    assert!(!world.admits(&created));
}

#[tokio::test]
async fn a_late_exchange_brings_nothing_back() {
    let world = World::new();
    let created = world.create(one_secret()).await;
    world.clock.advance(MINUTE);
    let late = created.handle.exchange();
    assert!(created.handle.is_over());
    drop(late);
    assert!(created.handle.is_over());
    world.sweep().await;
    assert_eq!(world.sessions.len(), 0);
}

#[tokio::test]
async fn tunnels_are_counted_while_they_are_open() {
    let world = World::new();
    let created = world.create(one_secret()).await;
    let host = target("api.example.com:443");
    let (one, two) = (created.handle.enter(&host), created.handle.enter(&host));
    assert_eq!(created.handle.tunnels(), 2);
    drop(one);
    assert_eq!(created.handle.tunnels(), 1);
    drop(two);
    assert_eq!(created.handle.tunnels(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_creations_at_once_are_a_thousand_sessions() {
    let world = World::new();
    let mut tasks = JoinSet::new();
    for number in 0..1000 {
        let (sessions, tenant) = (Arc::clone(&world.sessions), world.tenant.clone());
        tasks.spawn(async move {
            let value = format!("value-number-{number}");
            let form = form([("OWN", scoped(&value, &["api.example.com"]))]);
            (value, sessions.create(&tenant, form).await.unwrap())
        });
    }
    let all = tasks.join_all().await;
    let ids: HashSet<_> = all.iter().map(|(_, it)| it.handle.id()).collect();
    let credentials: HashSet<_> = all.iter().map(|(_, it)| it.credential.expose()).collect();
    let tokens: HashSet<_> = all
        .iter()
        .map(|(_, it)| &it.sealed_secrets["OWN"])
        .collect();
    assert_eq!([ids.len(), credentials.len(), tokens.len()], [1000; 3]);
    assert_eq!(world.sessions.len(), 1000);
    assert_eq!(world.rows().await, 1000);
    for (value, created) in &all {
        assert!(world.admits(created));
        let token = &created.sealed_secrets["OWN"];
        let opened = open_for(&created.handle, "api.example.com:443", token);
        assert_eq!(opened.as_ref(), Some(value));
    }
}

#[test]
fn a_reader_sees_one_version() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = World::new();
    let created = runtime.block_on(world.create(one_secret()));
    let handle = &created.handle;
    let seen = |form: &Form, spec: &Spec| (form.ttl_seconds.unwrap(), spec.ttl.as_secs());
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let pairs = (0..20_000).map(|_| handle.with_form(seen));
            pairs.filter(|(asked, meant)| asked != meant).count()
        });
        for seconds in 60..160 {
            runtime.block_on(world.patch(handle, |form| form.ttl_seconds = Some(seconds)));
        }
        assert_eq!(reader.join().unwrap(), 0);
    });
    assert_eq!(handle.version(), 101);
}

proptest! {
    /// Whatever is presented, only the exact credential is admitted.
    #[test]
    fn no_other_text_is_a_credential(
        bytes in prop::collection::vec(any::<u8>(), 0..80),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let world = World::new();
        let created = runtime.block_on(world.create(one_secret()));
        prop_assert!(world.sessions.authenticate(&bytes).is_none());
        let encoded = format!("Basic {}", STANDARD.encode(&bytes));
        prop_assert!(world.sessions.authenticate(encoded.as_bytes()).is_none());
        let right = format!("{}:{}", created.handle.id(), created.credential.expose());
        let mut near = right.clone().into_bytes();
        let at = at.index(near.len());
        near[at] = byte;
        let encoded = format!("Basic {}", STANDARD.encode(&near));
        let found = world.sessions.authenticate(encoded.as_bytes());
        prop_assert_eq!(found.is_some(), near == right.as_bytes());
    }
}
