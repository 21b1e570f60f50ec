//! What a patch keeps, what it changes, and whom it cuts.

use futures_util::FutureExt;

use super::*;
use crate::session::{Error, FieldError, TunnelGuard};

fn is_cut(guard: &TunnelGuard) -> bool {
    guard.cut().now_or_never().is_some()
}

/// Two secrets, one of them with a prefix.
fn two_secrets() -> Form {
    let mut prefixed = scoped("value-of-b", &["b.example.com"]);
    prefixed.prefix = Some("ghp_".to_owned());
    form([
        ("A", scoped("value-of-a", &["a.example.com"])),
        ("B", prefixed),
    ])
}

#[tokio::test]
async fn a_rotated_secret_keeps_its_token() {
    let world = World::new();
    let created = world.create(two_secrets()).await;
    let fresh = world
        .patch(&created.handle, |form| {
            for it in form.secrets.values_mut() {
                it.value = Secret::new(b"rotated-value".to_vec());
            }
        })
        .await;
    assert!(fresh.is_empty());
    assert_eq!(created.handle.version(), 2);
    for (host, name) in [("a.example.com:443", "A"), ("b.example.com:443", "B")] {
        let opened = open_for(&created.handle, host, &created.sealed_secrets[name]);
        assert_eq!(opened.as_deref(), Some("rotated-value"), "{name}");
    }
}

#[tokio::test]
async fn a_new_prefix_and_a_new_name_have_new_tokens() {
    let world = World::new();
    let created = world.create(two_secrets()).await;
    let fresh = world
        .patch(&created.handle, |form| {
            form.secrets.get_mut("B").unwrap().prefix = Some("gho_".to_owned());
            form.secrets
                .insert("C".to_owned(), scoped("value-of-c", &["c.example.com"]));
        })
        .await;
    assert_eq!(fresh.keys().collect::<Vec<_>>(), ["B", "C"]);
    assert!(fresh["B"].starts_with("gho_SEALED_"));
    assert!(fresh["C"].starts_with("SEALED_"));
    let old = &created.sealed_secrets;
    let digits = |token: &str| token.split_once("SEALED_").unwrap().1.to_owned();
    assert_ne!(digits(&fresh["B"]), digits(&old["B"]));
    let cases = [
        ("a.example.com:443", &old["A"], Some("value-of-a")),
        ("b.example.com:443", &old["B"], None),
        ("b.example.com:443", &fresh["B"], Some("value-of-b")),
        ("c.example.com:443", &fresh["C"], Some("value-of-c")),
    ];
    for (host, token, value) in cases {
        let opened = open_for(&created.handle, host, token);
        assert_eq!(opened.as_deref(), value, "{host}");
    }
    // Without a prefix it is another token once more, and the first prefix does not bring it back.
    for prefix in [None, Some("ghp_".to_owned())] {
        let fresh = world
            .patch(&created.handle, |form| {
                form.secrets.get_mut("B").unwrap().prefix = prefix;
            })
            .await;
        assert_eq!(fresh.len(), 1);
        assert_ne!(digits(&fresh["B"]), digits(&old["B"]));
    }
}

#[tokio::test]
async fn a_removed_secret_stops_opening_for_good() {
    let world = World::new();
    let created = world.create(two_secrets()).await;
    let token = &created.sealed_secrets["A"];
    let kept = created
        .handle
        .with_form(|form, _| form.secrets["A"].clone());
    world
        .patch(&created.handle, |form| drop(form.secrets.remove("A")))
        .await;
    assert_eq!(open_for(&created.handle, "a.example.com:443", token), None);
    let fresh = world
        .patch(&created.handle, |form| {
            form.secrets.insert("A".to_owned(), kept);
        })
        .await;
    assert_ne!(&fresh["A"], token);
    assert_eq!(open_for(&created.handle, "a.example.com:443", token), None);
    assert!(open_for(&created.handle, "a.example.com:443", &fresh["A"]).is_some());
}

#[tokio::test]
async fn a_secrets_new_hosts_and_places_count_at_once() {
    let world = World::new();
    let created = world.create(two_secrets()).await;
    let token = &created.sealed_secrets["A"];
    let old = created
        .handle
        .host_view(&target("a.example.com:443"), Scheme::Https)
        .unwrap();
    world
        .patch(&created.handle, |form| {
            let it = form.secrets.get_mut("A").unwrap();
            it.hosts = Some(texts(&["z.example.com"]));
            it.inject = Some(texts(&["query"]));
        })
        .await;
    assert_eq!(old.version(), 1);
    assert_eq!(
        created.handle.version(),
        2,
        "so that holders of the old one see it"
    );
    assert_eq!(open_for(&created.handle, "a.example.com:443", token), None);
    let view = created
        .handle
        .host_view(&target("z.example.com:443"), Scheme::Https)
        .unwrap();
    assert_eq!(view.version(), 2);
    assert_eq!(open(&view, token, KEY), None);
    assert!(open(&view, token, Place::Query).is_some());
}

#[tokio::test]
async fn only_tunnels_whose_host_left_are_cut() {
    let world = World::new();
    let created = world
        .create(Form {
            allowed_egress: Some(texts(&["*.example.com", "other.example.org:8443"])),
            ..Form::default()
        })
        .await;
    let enter = |host: &str| created.handle.enter(&target(host));
    let stay = [enter("a.example.com:443"), enter("a.example.com:80")];
    let leave = [
        enter("b.example.com:443"),
        enter("b.example.com:443"),
        enter("other.example.org:8443"),
        enter("a.example.com:8443"),
    ];
    world
        .patch(&created.handle, |form| form.ttl_seconds = Some(60))
        .await;
    // The last of them was never allowed, and is cut as soon as somebody looks.
    assert_eq!(leave.each_ref().map(is_cut), [false, false, false, true]);
    let list = texts(&["a.example.com", "other.example.org"]);
    world
        .patch(&created.handle, |form| form.allowed_egress = Some(list))
        .await;
    assert_eq!(stay.each_ref().map(is_cut), [false; 2]);
    assert_eq!(leave.each_ref().map(is_cut), [true; 4]);
    let late = enter("a.example.com:443");
    assert!(!is_cut(&late));
    assert!(!created.handle.is_over());
    assert!(!created.handle.pool().is_closed());
}

#[tokio::test]
async fn a_tunnel_that_is_passed_through_is_cut_when_its_host_is_not_any_more() {
    let world = World::new();
    let hosts = &["*.pinned.example", "kept.example:443"];
    let created = world
        .create(Form {
            passthrough_hosts: texts(hosts),
            ..Form::default()
        })
        .await;
    let enter = |host: &str| (created.handle.enter(&target(host)), target(host));
    let [left, kept, read, other] = [
        "a.pinned.example:443",
        "kept.example:443",
        "a.pinned.example:443",
        "other.example:443",
    ]
    .map(enter);
    let splices = |(guard, target): &(TunnelGuard, _)| guard.splice(target).is_some();
    assert!(splices(&left) && splices(&kept) && !splices(&other));
    assert_eq!(
        left.0.splice(&left.1).unwrap().target(),
        &target("a.pinned.example:443")
    );
    world
        .patch(&created.handle, |form| {
            form.passthrough_hosts = texts(&["kept.example"]);
        })
        .await;
    let cut = [&left, &kept, &read, &other].map(|(guard, _)| is_cut(guard));
    // The third one goes to the same host, and is read.
    assert_eq!(cut, [true, false, false, false]);
    assert!(!splices(&read) && splices(&kept));
    world
        .patch(&created.handle, |form| {
            form.allowed_egress = Some(texts(&["kept.example:80"]));
        })
        .await;
    assert!(is_cut(&kept.0) && is_cut(&other.0));
    assert!(
        !splices(&kept),
        "what may not be reached is not passed through"
    );
}

#[tokio::test]
async fn a_bad_patch_changes_nothing() {
    let world = World::new();
    let created = world.create(one_secret()).await;
    let (id, token) = (created.handle.id(), &created.sealed_secrets["OWN"]);
    let row = world.store.load().await.unwrap();
    world.clock.advance(MINUTE / 2);
    let refuse = |_| Err(vec![FieldError::new("x", "unknown_field", "")]);
    let refused = world.sessions.patch(&world.tenant, id, refuse).await;
    assert!(matches!(&refused, Err(Error::Invalid(e)) if e[0].field == "x"));
    let unscope = |mut form: Form| {
        form.secrets.get_mut("OWN").unwrap().hosts = None;
        form.allowed_egress = Some(Vec::new());
        Ok(form)
    };
    let refused = world.sessions.patch(&world.tenant, id, unscope).await;
    assert!(matches!(&refused, Err(Error::Invalid(e)) if e[0].code == "secret_unscoped"));
    world.store.fail(true);
    let narrow = |mut form: Form| {
        form.allowed_egress = Some(Vec::new());
        Ok(form)
    };
    let refused = world.sessions.patch(&world.tenant, id, narrow).await;
    assert!(matches!(&refused, Err(Error::Store(_))), "{refused:?}");
    assert_eq!(created.handle.version(), 1);
    assert_eq!(world.store.load().await.unwrap(), row);
    assert!(open_for(&created.handle, "api.example.com:443", token).is_some());
    world.clock.advance(MINUTE / 2);
    assert!(created.handle.is_over(), "not renewed either");
}

#[tokio::test]
async fn a_patch_starts_the_lifetime_anew() {
    let world = World::new();
    let created = world.create(one_secret()).await;
    world.clock.advance(MINUTE / 2);
    world.patch(&created.handle, |_| ()).await;
    world.clock.advance(NEARLY);
    assert!(world.admits(&created));
    world
        .patch(&created.handle, |form| form.ttl_seconds = Some(300))
        .await;
    world.clock.advance(4 * MINUTE);
    assert!(world.admits(&created));
    // Idle for longer than the new lifetime: it counts from now.
    world
        .patch(&created.handle, |form| form.ttl_seconds = Some(60))
        .await;
    assert!(world.admits(&created));
    world.clock.advance(MINUTE);
    assert!(!world.admits(&created));
}

#[tokio::test]
async fn the_greatest_age_counts_from_creation() {
    let world = World::new();
    let created = world.create(one_secret()).await;
    let in_use = created.handle.exchange();
    world.clock.advance(5 * MINUTE);
    world
        .patch(&created.handle, |form| {
            form.max_lifetime_seconds = Some(360);
        })
        .await;
    assert!(world.admits(&created));
    world.clock.advance(MINUTE);
    assert!(!world.admits(&created));
    drop(in_use);
}

#[tokio::test]
async fn there_is_no_patch_of_what_is_over() {
    let world = World::new();
    let (expired, deleted) = (
        world.create(one_secret()).await,
        world.create(one_secret()).await,
    );
    let id = deleted.handle.id();
    world.sessions.delete(&world.tenant, id).await.unwrap();
    world.clock.advance(MINUTE);
    for created in [expired, deleted] {
        let id = created.handle.id();
        let patched = world.sessions.patch(&world.tenant, id, Ok).await;
        assert!(matches!(patched, Err(Error::NotFound)), "{patched:?}");
        assert!(created.handle.is_over());
    }
}

#[tokio::test]
async fn patches_at_once_are_made_one_after_the_other() {
    let world = World::new();
    let created = world.create(one_secret()).await;
    let names: Vec<String> = (0..20).map(|n| format!("S{n}")).collect();
    let add = |name: &String| {
        let name = name.clone();
        let change = move |mut form: Form| {
            form.secrets.insert(name, scoped(CANARY, &["a.example"]));
            Ok(form)
        };
        world
            .sessions
            .patch(&world.tenant, created.handle.id(), change)
    };
    let patched = futures_util::future::join_all(names.iter().map(add)).await;
    for (name, patched) in names.iter().zip(patched) {
        let fresh = patched.unwrap().sealed_secrets;
        assert_eq!(fresh.keys().collect::<Vec<_>>(), [name]);
        assert!(open_for(&created.handle, "a.example:443", &fresh[name]).is_some());
    }
    assert_eq!(created.handle.version(), 21);
    assert_eq!(world.rows().await, 1);
}
