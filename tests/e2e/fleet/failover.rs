//! Another server, or an older state of the same: what was acknowledged and what a node remembers.

use oshu_vault_sdk::{CreatedSession, UpdateSession};

use super::{Fleet, GOOD, NAME, Node, TARGET, get_with};
use crate::support::{contains, within};

/// A value that takes the place of the first.
const OTHER: &str = "other-value/0123456789+abcdef";

#[tokio::test]
async fn an_older_state_of_the_store_brings_back_no_deleted_session() {
    let Some(mut fleet) = Fleet::new().await else {
        return;
    };
    let (deleted, kept, patched) = (
        fleet.create().await,
        fleet.create().await,
        fleet.create().await,
    );
    for session in [&deleted, &kept, &patched] {
        fleet.works(&fleet.b, session).await;
    }
    let run: String = fleet.redis.ask(&[b"INFO", b"server"]).await;
    // What a replica has that is behind.
    let dump = fleet.redis.path("appendonlydir");
    let older = fleet.redis.path("older");
    copy(&dump, &older);
    fleet
        .a
        .vault
        .sdk()
        .delete_session(&deleted.session_id)
        .await
        .unwrap();
    let rotated = UpdateSession::new()
        .secret(NAME, OTHER)
        .allowed_egress([GOOD]);
    let answer = fleet
        .a
        .vault
        .sdk()
        .update_session(&patched.session_id, &rotated)
        .await;
    answer.unwrap();
    fleet.b.becomes(&deleted, 407).await;
    // Made after it: the older state has never heard of it.
    let young = fleet.create().await;
    let mut open = fleet.a.vault.workload(&young).connect(TARGET).await;
    fleet.redis.kill().await;
    std::fs::remove_dir_all(&dump).unwrap();
    copy(&older, &dump);
    fleet.redis.run().await;
    let another: String = fleet.redis.ask(&[b"INFO", b"server"]).await;
    assert_ne!(run, another);
    // What the store does not have is gone, and what is open with it.
    let _ended = within("the end of the tunnel", open.rest_and_end()).await;
    fleet.a.becomes(&young, 407).await;
    fleet.b.becomes(&young, 407).await;
    // The row is deleted again by whoever knows better; until then it opens nothing.
    within("the row's end", async {
        loop {
            for node in [&fleet.a, &fleet.b] {
                let status = node.status(&deleted).await;
                assert!([407, 503].contains(&status), "{status}");
            }
            let id = deleted.session_id.as_bytes();
            let left: u8 = fleet
                .redis
                .ask(&[b"HEXISTS", b"{oshu-vault}:sessions", id])
                .await;
            if left == 0 {
                return;
            }
        }
    })
    .await;
    for node in [&fleet.a, &fleet.b] {
        node.becomes_ready(200).await;
        node.becomes(&kept, 200).await;
        fleet.works(node, &kept).await;
        assert_eq!(node.status(&deleted).await, 407);
    }
    // A patch that the store has lost is repeated, and reaches whoever had not heard of it.
    is_repeated(&fleet, &patched).await;
    for node in [&fleet.a, &fleet.b] {
        gets_the_patch(&fleet, node, &patched).await;
    }
}

/// Waits until a session has the value of its patch on a node.
async fn gets_the_patch(fleet: &Fleet, node: &Node, patched: &CreatedSession) {
    within("the patch on the node", async {
        loop {
            fleet.good.forget();
            let mut conn = node.vault.workload(patched).connect(TARGET).await;
            conn.send(get_with(patched)).await;
            assert_eq!(conn.answer().await.status, 200);
            if contains(&fleet.good.bytes(), OTHER) {
                return;
            }
        }
    })
    .await;
}

/// Waits until the store has the second version of a session again.
async fn is_repeated(fleet: &Fleet, patched: &CreatedSession) {
    within("the patch in the store", async {
        let id = patched.session_id.as_bytes();
        loop {
            let version: u64 = fleet
                .redis
                .ask(&[b"HGET", b"{oshu-vault}:sessions:versions", id])
                .await;
            if version == 2 {
                return;
            }
        }
    })
    .await;
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

#[tokio::test]
async fn a_list_of_changes_that_is_lost_or_trimmed_is_made_up_for() {
    let Some(fleet) = Fleet::new().await else {
        return;
    };
    fleet.b.relay.silence();
    for loss in ["trimmed", "gone", "another history"] {
        let (session, other) = (fleet.create().await, fleet.create().await);
        fleet.works(&fleet.b, &session).await;
        fleet.b.relay.shut(true);
        fleet.b.becomes_ready(503).await;
        fleet
            .a
            .vault
            .sdk()
            .delete_session(&session.session_id)
            .await
            .unwrap();
        let changes = b"{oshu-vault}:changes".as_slice();
        match loss {
            "trimmed" => {
                let _removed: u64 = fleet
                    .redis
                    .ask(&[b"ZREMRANGEBYRANK", changes, b"0", b"-1"])
                    .await;
                fleet.create().await;
            }
            "gone" => {
                let _deleted: u64 = fleet.redis.ask(&[b"DEL", changes]).await;
            }
            _ => {
                let _: u64 = fleet
                    .redis
                    .ask(&[b"DECRBY", b"{oshu-vault}:epoch", b"3"])
                    .await;
            }
        }
        fleet.b.relay.shut(false);
        fleet.b.becomes(&session, 407).await;
        fleet.works(&fleet.b, &other).await;
    }
}
