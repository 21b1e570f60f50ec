//! Tenants and their keys in a fleet: what one node makes or takes away holds on the other, and two
//! that change the same tenant undo nothing of each other.

use std::time::Duration;

use oshu_vault_sdk::{CreatedSession, Error, UpdateSession};
use serde_json::{Value, json};

use super::{Fleet, Node, TARGET, request};
use crate::binary::get;
use crate::support::{API_KEY, SIDE, VaultBuilder, within};
use crate::tenants::{ADMIN, call, key, operate, sdk, session, tenant, with_admin};

const ACME: &str = "/v1/tenants/acme";
const KEYS: &str = "/v1/tenants/acme/keys";
const RECORDS: &[u8] = b"{oshu-vault}:records";

impl Node {
    /// Returns what a call with a key is answered with.
    async fn answers(&self, key: &str) -> u16 {
        call(&self.vault, key, "GET", "/v1/sessions", "")
            .await
            .status
    }

    /// Waits until a call with a key has this answer.
    async fn key_becomes(&self, key: &str, status: u16) {
        within(&format!("a {status} for a key"), async {
            while self.answers(key).await != status {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    /// Waits until the node knows of so many sessions of the tenant.
    async fn counts(&self, sessions: u64) {
        within(&format!("{sessions} sessions"), async {
            while operate(&self.vault, "GET", ACME, &Value::Null).await["sessions"] != sessions {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
}

async fn rows(fleet: &Fleet) -> u64 {
    fleet.redis.ask(&[b"HLEN", b"{oshu-vault}:sessions"]).await
}

#[tokio::test]
async fn a_tenant_and_its_keys_hold_on_every_node() {
    let Some(fleet) = Fleet::with(with_admin).await else {
        return;
    };
    let (a, b) = (&fleet.a, &fleet.b);
    for is_silent in [false, true] {
        if is_silent {
            b.relay.silence();
        }
        // A session works at once where nobody has heard of its tenant yet.
        let first = tenant(&a.vault, "acme", Value::Null).await;
        let ours = session(&a.vault, &first).await;
        fleet.works(b, &ours).await;
        b.key_becomes(&first, 200).await;
        let second = key(&b.vault, "acme").await;
        a.key_becomes(&second, 200).await;
        // Revoked on one, refused on the other; what was made with it lives on.
        let listed = operate(&b.vault, "GET", KEYS, &Value::Null).await;
        let id = listed["keys"][0]["key_id"].as_str().expect("an id");
        operate(&b.vault, "DELETE", &format!("{KEYS}/{id}"), &Value::Null).await;
        assert_eq!(b.answers(&first).await, 401);
        a.key_becomes(&first, 401).await;
        assert_eq!(a.answers(&second).await, 200);
        for node in [a, b] {
            fleet.works(node, &ours).await;
        }
        // Disabled on one: no key, no session, and nothing stays open on the other.
        let mut open = b.vault.workload(&ours).connect(TARGET).await;
        let disabled = json!({"state": "disabled"});
        operate(&a.vault, "PATCH", ACME, &disabled).await;
        let _ended = within("the end of the tunnel", open.rest_and_end()).await;
        b.becomes(&ours, 407).await;
        b.key_becomes(&second, 401).await;
        // Enabled again: what is new works at once, what was cut never.
        let active = json!({"state": "active"});
        operate(&a.vault, "PATCH", ACME, &active).await;
        let fresh = session(&a.vault, &second).await;
        fleet.works(b, &fresh).await;
        b.key_becomes(&second, 200).await;
        assert_eq!(b.status(&ours).await, 407);
        // Deleted on one: over on the other, and no row is left of it.
        let mut open = b.vault.workload(&fresh).connect(TARGET).await;
        operate(&a.vault, "DELETE", ACME, &Value::Null).await;
        let _ended = within("the end of the tunnel", open.rest_and_end()).await;
        b.becomes(&fresh, 407).await;
        b.key_becomes(&second, 401).await;
        within("the end of the rows", async {
            // The proof of the keys alone.
            while rows(&fleet).await != 1 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        let about = call(&b.vault, ADMIN, "GET", ACME, "").await;
        assert_eq!(about.status, 404);
    }
    // The tenant of the configuration is nobody's business.
    for node in [a, b] {
        assert_eq!(node.answers(API_KEY).await, 200);
    }
}

/// Makes keys on a node, again where the other was faster; returns them.
async fn many(node: &Node, count: usize) -> Vec<String> {
    let mut made = Vec::new();
    while made.len() < count {
        let answer = call(&node.vault, ADMIN, "POST", KEYS, "{}").await;
        match answer.status {
            201 => made.push(answer.json()["api_key"].as_str().expect("a key").to_owned()),
            409 => assert_eq!(answer.code(), "conflict"),
            _ => panic!("{}", answer.text()),
        }
    }
    made
}

#[tokio::test]
async fn two_nodes_that_change_one_tenant_undo_nothing_of_each_other() {
    let Some(fleet) = Fleet::with(with_admin).await else {
        return;
    };
    let (a, b) = (&fleet.a, &fleet.b);
    let first = tenant(&a.vault, "acme", Value::Null).await;
    b.key_becomes(&first, 200).await;
    let listed = operate(&a.vault, "GET", KEYS, &Value::Null).await;
    let id = listed["keys"][0]["key_id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let revoke = async {
        let path = format!("{KEYS}/{id}");
        loop {
            match call(&a.vault, ADMIN, "DELETE", &path, "").await.status {
                204 => return,
                409 => {}
                status => panic!("{status}"),
            }
        }
    };
    let (ours, theirs, ()) = within("all keys", async {
        tokio::join!(many(a, 20), many(b, 20), revoke)
    })
    .await;
    for node in [a, b] {
        // Not given back by whoever wrote after it.
        node.key_becomes(&first, 401).await;
        for key in ours.iter().chain(&theirs) {
            node.key_becomes(key, 200).await;
        }
        assert_eq!(node.answers(&first).await, 401);
        let listed = operate(&node.vault, "GET", KEYS, &Value::Null).await;
        assert_eq!(listed["keys"].as_array().expect("keys").len(), 40);
    }
}

#[tokio::test]
async fn sessions_of_a_tenant_count_wherever_they_were_made() {
    let Some(fleet) = Fleet::with(with_admin).await else {
        return;
    };
    let (a, b) = (&fleet.a, &fleet.b);
    let acme = tenant(&a.vault, "acme", json!({"sessions": 2})).await;
    b.key_becomes(&acme, 200).await;
    let first = session(&a.vault, &acme).await;
    b.counts(1).await;
    session(&b.vault, &acme).await;
    a.counts(2).await;
    for node in [a, b] {
        let refused = sdk(&node.vault, &acme).create_session(&request()).await;
        let Err(Error::RateLimited(problem)) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(problem.code, "tenant_session_limit");
    }
    // Deleted where it was not made: there is room everywhere.
    let deleted = sdk(&b.vault, &acme).delete_session(&first.session_id).await;
    deleted.expect("its end");
    a.counts(1).await;
    b.counts(1).await;
    let third = session(&a.vault, &acme).await;
    fleet.works(b, &third).await;
    // One that came in by being used counts once.
    b.counts(2).await;
}

#[tokio::test]
async fn a_forged_tenant_is_named_and_keeps_nobody_from_following() {
    let Some(fleet) = Fleet::with(with_admin).await else {
        return;
    };
    let (a, b) = (&fleet.a, &fleet.b);
    let acme = tenant(&a.vault, "acme", Value::Null).await;
    let ours = session(&a.vault, &acme).await;
    fleet.works(b, &ours).await;
    b.key_becomes(&acme, 200).await;
    let row: Vec<u8> = fleet.redis.ask(&[b"HGET", RECORDS, b"tenant/acme"]).await;
    let mut flipped = row.clone();
    *flipped.last_mut().expect("a byte") ^= 1;
    for forged in [&flipped[..], b"", b"in clear"] {
        for name in [&b"tenant/acme"[..], b"tenant/evil"] {
            let _: u64 = fleet.redis.ask(&[b"HSET", RECORDS, name, forged]).await;
            announce(&fleet, name).await;
        }
        // What comes after it is heard.
        let other = fleet.create().await;
        fleet.works(b, &other).await;
        let narrowed = UpdateSession::new().allowed_egress([SIDE]);
        let sdk = a.vault.sdk();
        let patched = sdk.update_session(&other.session_id, &narrowed).await;
        patched.expect("a patch");
        b.becomes(&other, 403).await;
        let deleted = a.vault.sdk().delete_session(&other.session_id).await;
        deleted.expect("its end");
        b.becomes(&other, 407).await;
        for node in [a, b] {
            // Who lives goes on, and nobody changes what cannot be read.
            fleet.works(node, &ours).await;
            assert_eq!(node.answers(&acme).await, 200);
            let changed = call(&node.vault, ADMIN, "POST", KEYS, "{}").await;
            assert_eq!((changed.status, changed.code()), refused());
            let evil = call(&node.vault, ADMIN, "GET", "/v1/tenants/evil", "").await;
            assert_eq!(evil.status, 404);
        }
    }
    // One that is put back is that of before.
    let _: u64 = fleet
        .redis
        .ask(&[b"HSET", RECORDS, b"tenant/acme", &row])
        .await;
    let another = key(&a.vault, "acme").await;
    b.key_becomes(&another, 200).await;
}

fn refused() -> (u16, String) {
    (409, "record_refused".to_owned())
}

/// Adds a line about a record to the list of changes, as a node does.
async fn announce(fleet: &Fleet, name: &[u8]) {
    let name = std::str::from_utf8(name).expect("a name");
    let epoch: u64 = fleet.redis.ask(&[b"INCR", b"{oshu-vault}:epoch"]).await;
    let line = format!("{epoch} 00 record {name}");
    let (changes, epoch) = (b"{oshu-vault}:changes", epoch.to_string());
    let _: u64 = fleet
        .redis
        .ask(&[b"ZADD", changes, epoch.as_bytes(), line.as_bytes()])
        .await;
}

#[tokio::test]
async fn a_node_without_word_believes_no_key() {
    let Some(fleet) = Fleet::with(|vault| short(with_admin(vault))).await else {
        return;
    };
    let (a, b) = (&fleet.a, &fleet.b);
    let (kept, revoked) = (
        tenant(&a.vault, "acme", Value::Null).await,
        key(&a.vault, "acme").await,
    );
    for own in [&kept, &revoked] {
        b.key_becomes(own, 200).await;
    }
    let ours: CreatedSession = session(&a.vault, &kept).await;
    fleet.works(b, &ours).await;
    b.relay.shut(true);
    let listed = operate(&a.vault, "GET", KEYS, &Value::Null).await;
    let id = listed["keys"][1]["key_id"].as_str().expect("an id");
    operate(&a.vault, "DELETE", &format!("{KEYS}/{id}"), &Value::Null).await;
    b.key_becomes(&revoked, 503).await;
    let of_ours = format!("/v1/sessions/{}", ours.session_id);
    for own in [
        kept.as_str(),
        &revoked,
        API_KEY,
        "ovk_wrong_0123456789abcdef01234567",
    ] {
        for path in ["/v1/sessions", &of_ours, &format!("{of_ours}/events")] {
            let answer = call(&b.vault, own, "GET", path, "").await;
            assert_eq!(
                (answer.status, answer.code().as_str()),
                (503, "store_unavailable"),
                "{path}"
            );
        }
    }
    assert_eq!(b.answers("").await, 401, "who shows none is told so");
    assert_eq!(get(b.vault.plain_addr(), "/healthz").await.status, 200);
    assert_eq!(b.ready().await, 503);
    b.relay.shut(false);
    // The first word is about the key that was taken away.
    within("an answer that is no 503", async {
        loop {
            match b.answers(&revoked).await {
                503 => tokio::time::sleep(Duration::from_millis(5)).await,
                status => return assert_eq!(status, 401),
            }
        }
    })
    .await;
    assert_eq!(b.answers(&kept).await, 200);
    b.becomes_ready(200).await;
}

fn short(vault: VaultBuilder) -> VaultBuilder {
    vault.config(|config| config.shared.max_stale = Duration::from_millis(1500))
}
