//! What a process finds of the one before: everything, or a refusal that names the row.

use std::time::{Instant, SystemTime};

use proptest::prelude::*;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::*;
use crate::id::SessionId;
use crate::seal::{self, Context, KeyId};
use crate::session::capture;
use crate::session::live::{make_view, retire};
use crate::session::record::{self, NAME, Written, decode, encode};
use crate::session::view::Sealed;
use crate::session::{Credential, Error, Limited, Loaded, Quotas, SessionView, Spec};
use crate::swap::TokenAnswer;

pub(super) fn keys() -> Keyring {
    Keyring::from_keys(vec![(KeyId::new(1), [7; 32])], KeyId::new(1)).unwrap()
}

/// A world whose store has a proof of the keys.
pub(super) async fn proven() -> World {
    let world = World::with(options(), keys(), Sink::discard());
    assert_eq!(world.sessions.load().await.unwrap(), Loaded::default());
    world
}

fn loaded(live: usize, expired: usize, refused: usize) -> Loaded {
    Loaded {
        live,
        expired,
        refused,
    }
}

fn key(world: &World, created: &Created) -> RowKey {
    RowKey {
        tenant: world.tenant.clone(),
        session: created.handle.id().clone(),
    }
}

async fn row(world: &World, created: &Created) -> Row {
    let row = world.store.get(&key(world, created)).await.unwrap();
    row.unwrap()
}

async fn put(world: &World, created: &Created, row: Row) {
    let key = key(world, created);
    world.store.put(&key, row).await.unwrap();
}

/// Changes a record as only somebody with the key can.
async fn edit(world: &World, created: &Created, change: impl FnOnce(&mut Value)) {
    let context = Context {
        tenant: world.tenant.as_str(),
        session: created.handle.id().as_str(),
        name: NAME,
    };
    let mut row = row(world, created).await;
    let plain = keys().open(&context, &row.sealed).unwrap();
    let mut record = serde_json::from_slice(&plain).unwrap();
    change(&mut record);
    row.sealed = keys().seal(&context, record.to_string().as_bytes());
    put(world, created, row).await;
}

fn two() -> Form {
    Form {
        ttl_seconds: Some(60),
        max_lifetime_seconds: Some(600),
        metadata: [("sandbox".to_owned(), "sb_1".to_owned())].into(),
        ..form([
            ("OWN", scoped(CANARY, &["api.example.com"])),
            (
                "OLD",
                scoped("old-value-0123456789", &["old.example.com:443"]),
            ),
        ])
    }
}

#[tokio::test]
async fn a_session_is_the_same_after_a_restart() {
    let world = proven().await;
    let created = world.create(two()).await;
    let rotated = world
        .patch(&created.handle, |form| {
            let own = scoped("new-value-0123456789", &["old.example.com:443"]);
            form.secrets.insert("OLD".to_owned(), own);
        })
        .await;
    assert!(rotated.is_empty(), "a rotated value keeps its token");
    let after = world.restarted(keys());
    assert_eq!(after.sessions.load().await.unwrap(), loaded(1, 0, 0));
    let handle = after.live(&created).unwrap();
    assert!(!Arc::ptr_eq(&handle, &created.handle));
    assert_eq!(handle.version(), 2);
    let whole = record::millis(created.handle.created());
    assert_eq!(record::millis(handle.created()), whole);
    for (name, host, value) in [
        ("OWN", "api.example.com:443", CANARY),
        ("OLD", "old.example.com:443", "new-value-0123456789"),
    ] {
        let token = &created.sealed_secrets[name];
        assert_eq!(open_for(&handle, host, token).as_deref(), Some(value));
        assert_eq!(open_for(&handle, "else.example.com:443", token), None);
    }
    let field = credentials(handle.id().as_str(), created.credential.expose());
    assert!(after.sessions.authenticate(field.as_bytes()).is_some());
    let wrong = credentials(handle.id().as_str(), Credential::generate().expose());
    assert!(after.sessions.authenticate(wrong.as_bytes()).is_none());
    let note = handle.with_form(|form, _| form.metadata["sandbox"].clone());
    assert_eq!(note, "sb_1");
    // What was rotated out is still taken out of answers.
    let host = target("old.example.com:443");
    let view = handle.host_view(&host, Scheme::Https).unwrap();
    let scrubbed = view
        .scrubber()
        .unwrap()
        .scrub_value(b"old-value-0123456789");
    assert_eq!(scrubbed.unwrap(), created.sealed_secrets["OLD"].as_bytes());
    // And it is a session like any other.
    let fresh = after
        .patch(&handle, |form| form.ttl_seconds = Some(90))
        .await;
    assert!(fresh.is_empty());
    after
        .sessions
        .delete(&after.tenant, handle.id())
        .await
        .unwrap();
    let last = world.restarted(keys());
    assert_eq!(last.sessions.load().await.unwrap(), loaded(0, 0, 0));
}

#[tokio::test]
async fn lifetimes_go_on_and_what_expired_meanwhile_is_gone() {
    let world = proven().await;
    let now = record::millis(SystemTime::now());
    let minute = 60_000;
    // Last use, creation, both in milliseconds ago; what is left of ttl 60 s and 600 s.
    for (idle, age, lives) in [
        (minute / 2, minute, true),
        (minute, minute, false),
        // A use that is forged reaches the end of the longer lifetime, and no further.
        (0, 9 * minute, true),
        (0, 10 * minute, false),
    ] {
        let created = world.create(two()).await;
        edit(&world, &created, |record| {
            record["created"] = json!(now - age);
        })
        .await;
        let mut row = row(&world, &created).await;
        row.last_used = now - idle;
        put(&world, &created, row).await;
        let after = world.restarted(keys());
        let expected = loaded(usize::from(lives), usize::from(!lives), 0);
        let looks = world.restarted(keys());
        assert_eq!(looks.sessions.look_through().await.unwrap(), expected);
        assert_eq!(world.rows().await, 2, "the store may go back");
        assert_eq!(after.sessions.load().await.unwrap(), expected);
        assert_eq!(after.live(&created).is_some(), lives, "{idle} {age}");
        // The proof of the keys stays.
        assert_eq!(after.rows().await, 1 + usize::from(lives));
        if let Some(handle) = after.live(&created) {
            let most = Duration::from_millis((minute - idle).min(10 * minute - age));
            let left = handle.life.left(false);
            assert!(
                left <= most && left + MINUTE / 4 > most,
                "{left:?} {most:?}"
            );
            after
                .sessions
                .delete(&after.tenant, handle.id())
                .await
                .unwrap();
        }
    }
    let created = world.create(two()).await;
    let mut row = row(&world, &created).await;
    row.last_used = u64::MAX;
    put(&world, &created, row).await;
    let after = world.restarted(keys());
    after.sessions.load().await.unwrap();
    let handle = after.live(&created).unwrap();
    assert!(
        handle.life.left(false) <= MINUTE,
        "a use after now is one now"
    );
}

#[tokio::test]
async fn the_last_use_is_noted_in_batches_and_at_the_end() {
    let world = proven().await;
    let created = world.create(two()).await;
    let first = row(&world, &created).await;
    let step = Duration::from_secs(3);
    world.clock.advance(step.checked_sub(TICK).unwrap());
    drop(created.handle.exchange());
    world.sweep().await;
    assert_eq!(row(&world, &created).await, first, "not worth a write yet");
    world.clock.advance(TICK);
    drop(created.handle.exchange());
    world.sweep().await;
    let second = row(&world, &created).await;
    assert!(second.last_used >= first.last_used && second.sealed == first.sealed);
    // What is in use is used now, however long ago it began.
    let open = created.handle.exchange();
    world.clock.advance(MINUTE / 2);
    world.sweep().await;
    assert_eq!(created.handle.life.unnoted(), None);
    world.clock.advance(TICK);
    drop(open);
    assert!(created.handle.life.unnoted().is_some());
    world.store.fail(true);
    world.sessions.note_all().await;
    assert!(created.handle.life.unnoted().is_some(), "the store refused");
    world.store.fail(false);
    world.sessions.note_all().await;
    assert_eq!(created.handle.life.unnoted(), None);
}

#[tokio::test]
async fn a_row_that_was_changed_is_refused_and_the_others_serve() {
    let world = proven().await;
    let (good, bad, other) = (
        world.create(two()).await,
        world.create(two()).await,
        world.create(two()).await,
    );
    let sealed = row(&world, &bad).await.sealed;
    let flipped = |at: usize| {
        let mut sealed = sealed.clone();
        sealed[at] ^= 1;
        sealed
    };
    let mut cases = vec![
        row(&world, &other).await.sealed,
        sealed[..sealed.len() - 1].to_vec(),
        sealed[..20].to_vec(),
        Vec::new(),
        [sealed.as_slice(), &[0]].concat(),
    ];
    cases.extend([0, 1, 6, 20, sealed.len() / 2, sealed.len() - 1].map(flipped));
    for case in cases {
        let changed = Row {
            sealed: case,
            last_used: row(&world, &bad).await.last_used,
        };
        put(&world, &bad, changed.clone()).await;
        let after = world.restarted(keys());
        assert_eq!(after.sessions.load().await.unwrap(), loaded(2, 0, 1));
        assert!(after.live(&bad).is_none() && after.live(&good).is_some());
        assert_eq!(row(&world, &bad).await, changed, "it is left where it is");
    }
}

#[tokio::test]
async fn a_row_of_another_tenant_is_refused() {
    let world = proven().await;
    let created = world.create(two()).await;
    let stolen = RowKey {
        tenant: tenant("mallory"),
        session: created.handle.id().clone(),
    };
    let row = row(&world, &created).await;
    world.store.put(&stolen, row).await.unwrap();
    world.store.delete(&key(&world, &created)).await.unwrap();
    let after = world.restarted(keys());
    assert_eq!(after.sessions.load().await.unwrap(), loaded(0, 0, 1));
    assert!(after.sessions.is_empty());
}

const TOKEN: &str = "SEALED_0123456789abcdef0123456789abcdef";

/// Writes a captured token as a record holds it.
fn captured(name: &str, token: &str) -> Value {
    json!({"name": name, "value": "dmFsdWU=", "token": token, "hosts": ["a.example"]})
}

#[tokio::test]
async fn a_record_that_cannot_be_understood_whole_is_refused() {
    let changes: [fn(&mut Value); 17] = [
        |record| record["format"] = json!(2),
        |record| record["one_more_limit"] = json!(true),
        |record| record["secrets"]["OWN"]["one_more_limit"] = json!(true),
        |record| record["secrets"]["OWN"]["token"] = json!("SEALED_"),
        |record| record["secrets"]["OWN"]["value"] = json!("!"),
        |record| record["credential"] = json!("AAAA"),
        |record| record["created"] = json!(-1),
        |record| drop(record.as_object_mut().unwrap().remove("allowed_egress")),
        |record| record["allowed_egress"] = json!(["*"]),
        |record| drop(record.as_object_mut().unwrap().remove("capture")),
        |record| drop(record.as_object_mut().unwrap().remove("captured")),
        |record| record["capture"] = json!([{"url": "https://idp.example.com/token"}]),
        |record| record["captured"] = json!([captured("access_token@a.example/t", "SEALED_")]),
        |record| record["captured"] = json!([captured("access_token", TOKEN)]),
        |record| record["captured"] = json!([captured("token@a.example/t", TOKEN)]),
        |record| record["captured"] = json!([captured("access_token@a.example", TOKEN)]),
        |record| {
            let mut one = captured("access_token@a.example/t", TOKEN);
            one["source"] = json!("https://a.example/t");
            record["captured"] = json!([one]);
        },
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let world = proven().await;
        let (created, good) = (world.create(two()).await, world.create(two()).await);
        edit(&world, &created, change).await;
        let after = world.restarted(keys());
        assert_eq!(
            after.sessions.load().await.unwrap(),
            loaded(1, 0, 1),
            "{index}"
        );
        assert!(after.live(&good).is_some());
    }
}

#[tokio::test]
async fn what_the_configuration_allows_no_more_is_refused() {
    let open = Options {
        unscoped_secrets: true,
        ..options()
    };
    let world = World::with(open.clone(), keys(), Sink::discard());
    world.sessions.load().await.unwrap();
    let created = world.create(form([("ANY", secret(CANARY))])).await;
    let after = world.restarted(keys());
    assert_eq!(after.sessions.load().await.unwrap(), loaded(0, 0, 1));
    assert!(after.live(&created).is_none());
    let again = world.restarted_with(open, keys());
    assert_eq!(again.sessions.load().await.unwrap(), loaded(1, 0, 0));
}

#[tokio::test]
async fn what_was_refused_is_its_tenant_s_to_delete_and_never_comes_back() {
    let open = Options {
        unscoped_secrets: true,
        ..options()
    };
    let world = World::with(open.clone(), keys(), Sink::discard());
    world.sessions.load().await.unwrap();
    let (not_allowed, damaged) = (
        world.create(form([("ANY", secret(CANARY))])).await,
        world.create(two()).await,
    );
    let whole = row(&world, &damaged).await;
    let mut changed = whole.clone();
    changed.sealed[20] ^= 1;
    put(&world, &damaged, changed).await;
    let after = world.restarted(keys());
    assert_eq!(after.sessions.load().await.unwrap(), loaded(0, 0, 2));
    for refused in [&not_allowed, &damaged] {
        let (id, other) = (refused.handle.id(), tenant("other"));
        let another_s = after.sessions.delete(&other, id).await;
        assert!(matches!(another_s, Err(Error::NotFound)), "{another_s:?}");
        world.store.fail(true);
        let failed = after.sessions.delete(&world.tenant, id).await;
        assert!(matches!(failed, Err(Error::Store(_))), "{failed:?}");
        world.store.fail(false);
        let key = key(&world, refused);
        assert!(world.store.get(&key).await.unwrap().is_some());
        after.sessions.delete(&world.tenant, id).await.unwrap();
        assert!(world.store.get(&key).await.unwrap().is_none());
        let again = after.sessions.delete(&world.tenant, id).await;
        assert!(matches!(again, Err(Error::NotFound)), "{again:?}");
    }
    let rotated = after.sessions.resume_rotation().await.unwrap();
    assert_eq!(rotated.refused, 0, "nothing is remembered of them");
    let last = world.restarted_with(open, keys());
    assert_eq!(last.sessions.load().await.unwrap(), loaded(0, 0, 0));
}

#[tokio::test]
async fn keys_that_are_others_are_an_error_and_not_an_empty_table() {
    let other = || Keyring::from_keys(vec![(KeyId::new(1), [8; 32])], KeyId::new(1)).unwrap();
    let unknown = || Keyring::from_keys(vec![(KeyId::new(2), [7; 32])], KeyId::new(2)).unwrap();
    for sessions in [0, 3] {
        let world = proven().await;
        for _ in 0..sessions {
            world.create(two()).await;
        }
        for (keyring, expected) in [
            (other(), seal::Error::Refused),
            (unknown(), seal::Error::UnknownKey(KeyId::new(1))),
        ] {
            let after = world.restarted(keyring);
            let error = after.sessions.load().await.unwrap_err();
            assert!(
                matches!(error, Error::Keys(it) if it == expected),
                "{error:?}"
            );
            assert!(after.sessions.is_empty());
        }
        let after = world.restarted(keys());
        assert_eq!(after.sessions.load().await.unwrap(), loaded(sessions, 0, 0));
    }
}

#[tokio::test]
async fn a_damaged_proof_is_written_anew_where_rows_prove_the_keys() {
    let world = proven().await;
    world.create(two()).await;
    let proof = crate::session::load::proof_key();
    for damage in [Some(vec![1, 2, 3]), Some(vec![1; 60]), None] {
        match damage {
            Some(sealed) => {
                let row = Row {
                    sealed,
                    last_used: 0,
                };
                world.store.put(&proof, row).await.unwrap();
            }
            None => assert!(world.store.delete(&proof).await.unwrap()),
        }
        let after = world.restarted(keys());
        assert_eq!(after.sessions.load().await.unwrap(), loaded(1, 0, 0));
        let row = world.store.get(&proof).await.unwrap().unwrap();
        assert_eq!(keys().is_current(&row.sealed), Ok(true));
    }
}

#[tokio::test]
async fn a_store_that_cannot_be_read_or_proven_is_an_error() {
    let world = World::with(options(), keys(), Sink::discard());
    world.store.fail(true);
    let error = world.sessions.load().await.unwrap_err();
    assert!(matches!(error, Error::Store(_)), "{error:?}");
}

#[tokio::test]
async fn quotas_hold_for_the_sessions_of_a_store() {
    let world = proven().await;
    let created = world.create(two()).await;
    let rows: Arc<dyn Store> = Arc::clone(&world.store) as _;
    let after = Sessions::new(rows, keys(), options(), Arc::new(closed()), Sink::discard());
    let after = with_two(after);
    let after = Arc::new(after.with_quotas(Quotas {
        tunnels: 1,
        exchanges: 1,
        wait: Duration::ZERO,
        ..Quotas::default()
    }));
    assert_eq!(after.load().await.unwrap(), loaded(1, 0, 0));
    let handle = after.find(&world.tenant, created.handle.id()).unwrap();
    let host = target("api.example.com:443");
    let one = handle.tunnel(&host).unwrap();
    assert_eq!(handle.tunnel(&host).unwrap_err(), Limited::Tunnels);
    drop(one);
    drop(handle.tunnel(&host).unwrap());
    let turn = handle.turn().await.unwrap();
    assert_eq!(handle.turn().await.unwrap_err(), Limited::Exchanges);
    drop(turn);
    handle.turn().await.unwrap();
}

fn lines() -> impl Strategy<Value = Option<Vec<String>>> {
    let host = "[a-z]{1,8}\\.example(:[1-9][0-9]{0,3})?";
    prop::option::of(prop::collection::vec(host, 1..4))
}

fn endpoints() -> impl Strategy<Value = Option<Vec<CaptureForm>>> {
    let url = "https://[a-z]{1,8}\\.example(:[1-9][0-9]{0,3})?/[a-z@%]{1,6}";
    let endpoint = (url, lines()).prop_map(|(url, hosts)| CaptureForm { url, hosts });
    prop::option::of(prop::collection::vec(endpoint, 0..3))
}

fn forms() -> impl Strategy<Value = Form> {
    let value = prop::collection::vec(prop_oneof![0x20_u8..0x7f, 0x80_u8..=0xff], 8..60);
    let secret = (value, lines(), prop::option::of("[a-z_]{1,9}"));
    let secret = secret.prop_map(|(value, hosts, prefix)| SecretForm {
        value: Secret::new(value),
        hosts,
        inject: None,
        prefix,
    });
    (
        prop::collection::btree_map("[A-Z_]{1,12}", secret, 0..5),
        prop::collection::vec("[a-z]{1,8}\\.example", 1..4),
        lines(),
        prop::option::of(60_u64..600),
        prop::option::of(any::<bool>()),
        endpoints(),
        prop::collection::btree_map(".{0,9}", ".{0,9}", 0..4),
    )
        .prop_map(
            |(secrets, hosts, egress, ttl, flag, capture, metadata)| Form {
                secrets,
                secret_hosts: Some(hosts),
                allowed_egress: egress,
                ttl_seconds: ttl,
                allow_plaintext: flag,
                scrub_responses: flag,
                capture,
                metadata,
                ..Form::default()
            },
        )
}

/// Captures a token of each kind from the endpoints that the values last for.
fn capture_from(view: &mut SessionView, values: &[String]) -> Vec<Sealed> {
    let mut gone = Vec::new();
    let endpoints = Arc::clone(&view.endpoints);
    for (endpoint, value) in endpoints.iter().zip(values) {
        let body = json!({
            "access_token": format!("a{value}"),
            "x": {"refresh_token": format!("r{value}")},
            "id_token": format!("i{value}"),
        });
        let body = Zeroizing::new(body.to_string().into_bytes());
        let answer = TokenAnswer::read(None, body).unwrap();
        let taken = capture::take(view, endpoint, answer.tokens()).unwrap();
        view.captured = taken.captured;
        gone.extend(taken.gone);
    }
    gone
}

/// Returns what a value is: everything of it that can make a difference.
fn whole(sealed: &Sealed) -> (String, Vec<u8>) {
    (format!("{sealed:?}"), sealed.secret.expose().to_vec())
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        form in forms(),
        next in forms(),
        values in prop::collection::vec(".{0,20}", 0..6),
    ) {
        let (Ok(spec), Ok(then)) = (Spec::parse(&form, &options()), Spec::parse(&next, &options()))
        else {
            // A name that the catalogue refuses.
            return Ok(());
        };
        let (mut view, _) = make_view(&spec, 3, None);
        capture_from(&mut view, &values);
        let again: Vec<String> = values.iter().map(|it| format!("{it}2")).collect();
        let gone = capture_from(&mut view, &again);
        view.retired = retire(&make_view(&then, 1, None).0, &spec, Instant::now());
        view.retired.extend(capture::retired(gone, Instant::now()));
        let credential = Credential::generate().fingerprint();
        let (own, id) = (tenant("acme"), SessionId::generate());
        let written = Written {
            form: &form,
            view: &view,
            credential: &credential,
            created: SystemTime::now(),
            now: SystemTime::now(),
        };
        let sealed = encode(&keys(), (&own, &id), &written);
        let opened = decode(&keys(), (&own, &id), &sealed, written.now).unwrap();
        prop_assert_eq!(format!("{:?}", &opened.form), format!("{:?}", &form));
        prop_assert_eq!(opened.version, 3);
        prop_assert_eq!(opened.credential, credential);
        prop_assert_eq!(record::millis(opened.created), record::millis(written.created));
        for sealed in &view.sealed {
            let name = sealed.name.as_ref();
            prop_assert_eq!(&opened.tokens[name], &sealed.token);
            let value = opened.form.secrets[name].value.expose();
            prop_assert_eq!(value, sealed.secret.expose());
        }
        prop_assert_eq!(opened.retired.len(), view.retired.len());
        for (read, kept) in opened.retired.iter().zip(&view.retired) {
            prop_assert_eq!(&read.sealed.name, &kept.sealed.name);
            prop_assert_eq!(&read.sealed.token, &kept.sealed.token);
            prop_assert_eq!(&read.sealed.scope, &kept.sealed.scope);
            prop_assert_eq!(read.sealed.secret.expose(), kept.sealed.secret.expose());
            let source = |it: &Sealed| it.source.as_ref().map(ToString::to_string);
            prop_assert_eq!(source(&read.sealed), source(&kept.sealed));
        }
        let (kept, left) = capture::keep(&opened.captured, &spec.token_endpoints);
        prop_assert!(left.is_empty(), "{left:?}");
        let both = [kept, view.captured.clone()].map(|all| all.iter().map(whole).collect::<Vec<_>>());
        prop_assert_eq!(&both[0], &both[1]);
        let stranger = (&own, &SessionId::generate());
        prop_assert!(decode(&keys(), stranger, &sealed, written.now).is_err());
    }

    #[test]
    fn no_text_makes_reading_panic(text in ".{0,80}", cut in 0_usize..400) {
        let (own, id) = (tenant("acme"), SessionId::generate());
        let context = record::context((&own, &id));
        let spec = Spec::parse(&one_secret(), &options()).unwrap();
        let written = Written {
            form: &one_secret(),
            view: &make_view(&spec, 1, None).0,
            credential: &Credential::generate().fingerprint(),
            created: SystemTime::now(),
            now: SystemTime::now(),
        };
        let whole = encode(&keys(), (&own, &id), &written);
        let whole = keys().open(&context, &whole).unwrap();
        let part = &whole[..cut.min(whole.len() - 1)];
        for plain in [text.as_bytes(), part] {
            let sealed = keys().seal(&context, plain);
            prop_assert!(decode(&keys(), (&own, &id), &sealed, written.now).is_err());
        }
    }
}
