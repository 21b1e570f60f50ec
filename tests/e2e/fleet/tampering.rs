//! Rows that somebody wrote who has the store and not the keys: named, not served, and without effect
//! on what lives.

use super::{Fleet, node};
use crate::support::{VaultBuilder, contains};

const ROWS: &[u8] = b"{oshu-vault}:sessions";
const USES: &[u8] = b"{oshu-vault}:sessions:used";
const VERSIONS: &[u8] = b"{oshu-vault}:sessions:versions";

fn same(vault: VaultBuilder) -> VaultBuilder {
    vault
}

#[tokio::test]
async fn rows_that_were_edited_swapped_or_made_up_open_for_nobody() {
    let Some(fleet) = Fleet::new().await else {
        return;
    };
    let (one, two) = (fleet.create().await, fleet.create().await);
    for session in [&one, &two] {
        fleet.works(&fleet.b, session).await;
    }
    let (first, second) = (one.session_id.as_bytes(), two.session_id.as_bytes());
    let row: Vec<u8> = fleet.redis.ask(&[b"HGET", ROWS, first]).await;
    let other: Vec<u8> = fleet.redis.ask(&[b"HGET", ROWS, second]).await;
    assert!(contains(&row, b"default"));
    let mut flipped = row.clone();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    let tenant = String::from_utf8_lossy(&row).find("default").unwrap();
    let mut moved = row.clone();
    moved[tenant..tenant + 7].copy_from_slice(b"another");
    for (case, forged) in [
        ("a flipped bit", flipped),
        ("another session's row", other),
        ("another tenant", moved),
        ("cut off", row[..row.len() / 2].to_vec()),
        ("nothing", Vec::new()),
        ("a length of more than there is", vec![0xff; 40]),
    ] {
        let _: u64 = fleet.redis.ask(&[b"HSET", ROWS, first, &forged]).await;
        // Announced as a change would be, so that both nodes look.
        announce(&fleet, first).await;
        // What lives goes on as it was.
        for node in [&fleet.a, &fleet.b] {
            fleet.works(node, &one).await;
            fleet.works(node, &two).await;
        }
        // Who comes later does not serve it, and everything else.
        let late = node(
            &fleet.redis,
            (&fleet.good, &fleet.side),
            fleet.ca.path(),
            &same,
        )
        .await;
        assert_eq!(late.status(&one).await, 407, "{case}");
        fleet.works(&late, &two).await;
    }
    let _: u64 = fleet.redis.ask(&[b"HSET", ROWS, first, &row]).await;
    let late = node(
        &fleet.redis,
        (&fleet.good, &fleet.side),
        fleet.ca.path(),
        &same,
    )
    .await;
    fleet.works(&late, &one).await;
}

/// Adds a line to the list of changes, as a node does: in one step, so that nobody sees a gap.
async fn announce(fleet: &Fleet, id: &[u8]) {
    let script = b"local epoch = redis.call('INCR', KEYS[1])
        redis.call('ZADD', KEYS[2], epoch, epoch .. ' 00 session ' .. ARGV[1])
        redis.call('PUBLISH', KEYS[3], epoch)
        return epoch";
    let keys: [&[u8]; 3] = [
        b"{oshu-vault}:epoch",
        b"{oshu-vault}:changes",
        b"{oshu-vault}:changed",
    ];
    let [epoch, changes, changed] = keys;
    let _: u64 = fleet
        .redis
        .ask(&[b"EVAL", script, b"3", epoch, changes, changed, id])
        .await;
}

#[tokio::test]
async fn a_row_that_was_deleted_and_is_put_back_opens_for_nobody_who_remembers() {
    let Some(fleet) = Fleet::new().await else {
        return;
    };
    let session = fleet.create().await;
    fleet.works(&fleet.b, &session).await;
    let id = session.session_id.as_bytes();
    let row: Vec<u8> = fleet.redis.ask(&[b"HGET", ROWS, id]).await;
    fleet
        .a
        .vault
        .sdk()
        .delete_session(&session.session_id)
        .await
        .unwrap();
    fleet.b.becomes(&session, 407).await;
    let _: u64 = fleet.redis.ask(&[b"HSET", ROWS, id, &row]).await;
    let _: u64 = fleet.redis.ask(&[b"HSET", VERSIONS, id, b"1"]).await;
    announce(&fleet, id).await;
    for node in [&fleet.a, &fleet.b] {
        assert_eq!(node.status(&session).await, 407);
    }
    // Before the other node has looked: what the list says was deleted holds.
    let session = fleet.create().await;
    fleet.works(&fleet.b, &session).await;
    let id = session.session_id.as_bytes();
    let row: Vec<u8> = fleet.redis.ask(&[b"HGET", ROWS, id]).await;
    fleet.b.relay.shut(true);
    fleet.b.becomes_ready(503).await;
    let sdk = fleet.a.vault.sdk();
    sdk.delete_session(&session.session_id).await.unwrap();
    let _: u64 = fleet.redis.ask(&[b"HSET", ROWS, id, &row]).await;
    fleet.b.relay.shut(false);
    fleet.b.becomes(&session, 407).await;
}

#[tokio::test]
async fn what_stands_in_clear_gives_nobody_more_than_the_seal_allows() {
    let Some(fleet) = Fleet::new().await else {
        return;
    };
    let session = fleet.create().await;
    fleet.works(&fleet.b, &session).await;
    let id = session.session_id.as_bytes();
    // A use in the far future counts as one of now; one that is no number as one long ago.
    for used in [&b"99999999999999"[..], b"many", b"-1"] {
        let _: u64 = fleet.redis.ask(&[b"HSET", USES, id, used]).await;
        announce(&fleet, id).await;
        fleet.works(&fleet.b, &session).await;
    }
    let shown = fleet
        .b
        .vault
        .sdk()
        .get_session(&session.session_id)
        .await
        .unwrap();
    assert_eq!(shown.ttl_seconds, 86_400);
    // A forged version makes patches fail, and nothing else.
    let _: u64 = fleet.redis.ask(&[b"HSET", VERSIONS, id, b"99"]).await;
    let patch = oshu_vault_sdk::UpdateSession::new().metadata("a", "b");
    let patched = fleet
        .a
        .vault
        .sdk()
        .update_session(&session.session_id, &patch)
        .await;
    assert!(patched.is_err());
    fleet.works(&fleet.a, &session).await;
}

#[tokio::test]
async fn no_secret_and_no_credential_lies_in_the_store() {
    let Some(fleet) = Fleet::new().await else {
        return;
    };
    let session = fleet.create().await;
    let () = fleet.redis.ask(&[b"BGREWRITEAOF"]).await;
    let mut all = Vec::new();
    for key in [ROWS, USES, VERSIONS] {
        let fields: Vec<Vec<u8>> = fleet.redis.ask(&[b"HGETALL", key]).await;
        all.extend(fields.concat());
    }
    let changes: Vec<Vec<u8>> = fleet
        .redis
        .ask(&[b"ZRANGE", b"{oshu-vault}:changes", b"0", b"-1"])
        .await;
    all.extend(changes.concat());
    assert!(contains(&all, &session.session_id));
    let sealed = &session.sealed_secrets[super::NAME];
    for secret in [super::REAL, &session.token, sealed, "good.example.com"] {
        assert!(!contains(&all, secret), "{secret}");
    }
    let keys: Vec<String> = fleet.redis.ask(&[b"KEYS", b"*"]).await;
    assert!(
        keys.iter().all(|key| key.starts_with("{oshu-vault}:")),
        "{keys:?}"
    );
}
