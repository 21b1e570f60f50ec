//! The row of a session: sealed as a whole, whole when opened, and for its owner only.

use data_encoding::BASE64;
use serde_json::{Value, json};

use super::*;
use crate::id::SessionId;
use crate::seal;
use crate::seal::{Context, KeyId};
use crate::session::record::NAME;

const KEY_BYTES: [u8; 32] = [7; 32];

fn keyring(key: [u8; 32]) -> Keyring {
    Keyring::from_keys(vec![(KeyId::new(1), key)], KeyId::new(1)).unwrap()
}

fn world() -> World {
    World::with(options(), keyring(KEY_BYTES), Sink::discard())
}

/// Reads the only row there is.
async fn row(world: &World) -> Vec<u8> {
    let mut rows = world.store.load().await.unwrap().rows;
    assert_eq!(rows.len(), 1);
    rows.remove(0).1.sealed
}

fn context<'a>(tenant: &'a str, session: &'a str) -> Context<'a> {
    Context {
        tenant,
        session,
        name: NAME,
    }
}

/// Opens the only row there is, as its owner.
async fn opened(world: &World, created: &Created) -> Value {
    let context = context("acme", created.handle.id().as_str());
    let plain = keyring(KEY_BYTES).open(&context, &row(world).await);
    serde_json::from_slice(&plain.unwrap()).unwrap()
}

/// A form that says something everywhere.
fn full() -> Form {
    let own = SecretForm {
        inject: Some(texts(&["header:X-Key", "query"])),
        prefix: Some("own_".to_owned()),
        ..scoped(CANARY, &["canary-host.example.com"])
    };
    Form {
        secret_hosts: Some(texts(&["canary-session.example.com"])),
        allowed_egress: Some(texts(&["*.example.com"])),
        inject: Some(texts(&["header"])),
        passthrough_hosts: texts(&["pinned.example.com"]),
        ttl_seconds: Some(120),
        max_lifetime_seconds: Some(3600),
        allow_plaintext: Some(true),
        scrub_responses: Some(false),
        capture: Some(vec![CaptureForm {
            url: "https://idp.example.com/token".to_owned(),
            hosts: None,
        }]),
        metadata: [("canary-key".to_owned(), "canary-note".to_owned())].into(),
        ..form([("OWN", own), ("PLAIN", secret("canary-\u{e9}\"\\\t"))])
    }
}

#[tokio::test]
async fn nothing_stands_in_the_row_in_clear() {
    let world = world();
    let created = world.create(full()).await;
    let row = row(&world).await;
    let fingerprint = created.credential.fingerprint();
    let token = created.credential.expose();
    let mut never: Vec<Vec<u8>> = vec![
        b"canary".to_vec(),
        b"SEALED_".to_vec(),
        b"OWN".to_vec(),
        b"example.com".to_vec(),
        b"ttl_seconds".to_vec(),
        b"tok_".to_vec(),
        BASE64.encode(CANARY.as_bytes()).into(),
        token.into(),
        fingerprint.as_bytes().to_vec(),
        BASE64.encode(fingerprint.as_bytes()).into(),
    ];
    never.extend(
        created
            .sealed_secrets
            .values()
            .map(|it| it.as_bytes()[20..].into()),
    );
    for text in never {
        let found = row.windows(text.len()).any(|part| part == text);
        assert!(!found, "{}", String::from_utf8_lossy(&text));
    }
}

#[tokio::test]
async fn the_row_holds_the_whole_session() {
    let world = world();
    let created = world.create(full()).await;
    let record = opened(&world, &created).await;
    let since = created
        .handle
        .created()
        .duration_since(std::time::UNIX_EPOCH);
    let encoded = |bytes: &[u8]| BASE64.encode(bytes);
    let expected = json!({
        "format": 1,
        "version": 1,
        "change": record["change"].as_u64().unwrap(),
        "created": u64::try_from(since.unwrap().as_millis()).unwrap(),
        "credential": encoded(created.credential.fingerprint().as_bytes()),
        "secrets": {
            "OWN": {
                "value": encoded(CANARY.as_bytes()),
                "token": created.sealed_secrets["OWN"],
                "hosts": ["canary-host.example.com"],
                "inject": ["header:X-Key", "query"],
                "prefix": "own_",
            },
            "PLAIN": {
                "value": encoded("canary-\u{e9}\"\\\t".as_bytes()),
                "token": created.sealed_secrets["PLAIN"],
                "hosts": null,
                "inject": null,
                "prefix": null,
            },
        },
        "secret_hosts": ["canary-session.example.com"],
        "allowed_egress": ["*.example.com"],
        "inject": ["header"],
        "passthrough_hosts": ["pinned.example.com"],
        "ttl_seconds": 120,
        "max_lifetime_seconds": 3600,
        "allow_plaintext": true,
        "scrub_responses": false,
        "metadata": {"canary-key": "canary-note"},
        "capture": [{"url": "https://idp.example.com/token", "hosts": null}],
        "captured": [],
    });
    assert_eq!(record, expected);
    assert!(!record.to_string().contains(created.credential.expose()));
}

#[tokio::test]
async fn absent_and_empty_lists_are_told_apart() {
    let world = world();
    let created = world.create(Form::default()).await;
    assert_eq!(
        opened(&world, &created).await["allowed_egress"],
        Value::Null
    );
    world
        .patch(&created.handle, |form| {
            form.allowed_egress = Some(Vec::new());
        })
        .await;
    assert_eq!(opened(&world, &created).await["allowed_egress"], json!([]));
}

#[tokio::test]
async fn a_patch_writes_the_row_anew() {
    let world = world();
    let created = world.create(full()).await;
    let before = row(&world).await;
    let fresh = world
        .patch(&created.handle, |form| {
            form.secrets.remove("PLAIN");
            form.secrets
                .insert("NEW".to_owned(), scoped("new-value", &["new.example.com"]));
            form.ttl_seconds = Some(60);
        })
        .await;
    assert_ne!(row(&world).await, before);
    let record = opened(&world, &created).await;
    assert_eq!(record["version"], 2);
    assert_eq!(record["ttl_seconds"], 60);
    assert_eq!(record["secrets"]["PLAIN"], Value::Null);
    assert_eq!(record["secrets"]["NEW"]["token"], *fresh["NEW"]);
    let kept = &record["secrets"]["OWN"]["token"];
    assert_eq!(*kept, *created.sealed_secrets["OWN"]);
}

#[tokio::test]
async fn the_row_opens_for_its_owner_only() {
    let world = world();
    let created = world.create(full()).await;
    let row = row(&world).await;
    let id = created.handle.id().as_str();
    let other = SessionId::generate();
    let own = context("acme", id);
    let keys = keyring(KEY_BYTES);
    assert!(keys.open(&own, &row).is_ok());
    let strangers = [
        context("other", id),
        context("acme", other.as_str()),
        context("acm", &format!("e{id}")),
        Context { name: "OWN", ..own },
        Context { name: "", ..own },
    ]
    .map(|context| keys.open(&context, &row).unwrap_err());
    assert_eq!(strangers, [seal::Error::Refused; 5]);
    let other_key = keyring([8; 32]).open(&own, &row).unwrap_err();
    assert_eq!(other_key, seal::Error::Refused);
    // One bit of the body, wherever it is.
    for at in [20, row.len() / 2, row.len() - 1] {
        let mut edited = row.clone();
        edited[at] ^= 1;
        assert!(keys.open(&own, &edited).is_err(), "{at}");
    }
}

#[tokio::test]
async fn debug_shows_no_value_and_no_credential() {
    let world = world();
    let created = world.create(full()).await;
    let field = credentials(created.handle.id().as_str(), created.credential.expose());
    let caller = world.sessions.authenticate(field.as_bytes()).unwrap();
    let host = target("canary-host.example.com:443");
    let view = created.handle.host_view(&host, Scheme::Https).unwrap();
    let patched = world
        .sessions
        .patch(&world.tenant, created.handle.id(), Ok)
        .await
        .unwrap();
    let shown = format!(
        "{created:?} {patched:?} {caller:?} {view:?} {:?} {:?} {:#?}",
        world.sessions,
        created.handle.enter(&host),
        created.handle.exchange(),
    );
    assert!(shown.contains("redacted"));
    let fingerprint = format!("{:?}", created.credential.fingerprint().as_bytes());
    for text in [
        CANARY,
        &BASE64.encode(CANARY.as_bytes()),
        created.credential.expose(),
        &fingerprint,
        &format!("{:?}", CANARY.as_bytes()),
    ] {
        assert!(!shown.contains(text), "{text}");
    }
}
