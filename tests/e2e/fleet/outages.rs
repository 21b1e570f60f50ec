//! A store that is gone, stopped, or slow: what is still served, what is refused, and what heals.

use std::sync::Arc;
use std::time::Duration;

use oshu_vault::id::{SessionId, TenantId};
use oshu_vault::store::{Row, RowKey, Store};
use oshu_vault_sdk::{Error, UpdateSession};

use super::{Fleet, TARGET, get_with, request};
use crate::support::{Redis, Relay, VaultBuilder, within};

/// How long sessions are served without word where a test waits for the end of that.
const SHORT: Duration = Duration::from_millis(1500);

fn short(vault: VaultBuilder) -> VaultBuilder {
    vault.config(|config| config.shared.max_stale = SHORT)
}

fn is_unavailable<T: std::fmt::Debug>(answer: &Result<T, Error>) -> bool {
    matches!(answer, Err(Error::Server(problem)) if problem.status == 503)
}

#[tokio::test]
async fn a_store_that_is_gone_costs_changes_at_once_and_what_lives_nothing() {
    let Some(mut fleet) = Fleet::new().await else {
        return;
    };
    let session = fleet.create().await;
    fleet.works(&fleet.b, &session).await;
    fleet.redis.kill().await;
    fleet.a.becomes_ready(503).await;
    // What is known goes on.
    fleet.works(&fleet.a, &session).await;
    fleet.works(&fleet.b, &session).await;
    // Nothing can be changed.
    let sdk = fleet.a.vault.sdk();
    let made = sdk.create_session(&request()).await;
    assert!(is_unavailable(&made), "{made:?}");
    let patched = sdk
        .update_session(&session.session_id, &UpdateSession::new())
        .await;
    assert!(is_unavailable(&patched), "{patched:?}");
    // Who is not known may yet be known to others.
    let (id, token) = (&session.session_id, &session.token);
    let mut stranger = session.clone();
    stranger.session_id = format!("sess_{}", "0123456789abcdef".repeat(2));
    assert_eq!(fleet.a.status(&stranger).await, 503);
    // Whose credential is wrong is told so.
    stranger.session_id.clone_from(id);
    stranger.token = token.chars().rev().collect();
    assert_eq!(fleet.a.status(&stranger).await, 407);
    // It heals by itself.
    fleet.redis.run().await;
    fleet.a.becomes_ready(200).await;
    fleet.b.becomes_ready(200).await;
    fleet.works(&fleet.a, &session).await;
    let made = fleet.create().await;
    fleet.works(&fleet.b, &made).await;
    sdk.delete_session(&session.session_id).await.unwrap();
    fleet.b.becomes(&session, 407).await;
}

#[tokio::test]
async fn a_deletion_that_cannot_be_stored_cuts_here_and_is_made_up_for() {
    let Some(fleet) = Fleet::new().await else {
        return;
    };
    let session = fleet.create().await;
    fleet.works(&fleet.b, &session).await;
    let mut open = fleet.a.vault.workload(&session).connect(TARGET).await;
    fleet.a.relay.shut(true);
    fleet.a.becomes_ready(503).await;
    let deleted = fleet
        .a
        .vault
        .sdk()
        .delete_session(&session.session_id)
        .await;
    assert!(is_unavailable(&deleted), "{deleted:?}");
    let _ended = within("the end of the tunnel", open.rest_and_end()).await;
    assert_eq!(fleet.a.status(&session).await, 407, "it stays cut");
    // The other node reaches the store, in which it still lives.
    fleet.works(&fleet.b, &session).await;
    fleet.a.relay.shut(false);
    fleet.b.becomes(&session, 407).await;
    assert_eq!(fleet.a.status(&session).await, 407);
}

#[tokio::test]
async fn a_node_without_word_for_too_long_serves_nothing_and_cuts_what_is_open() {
    let Some(fleet) = Fleet::with(short).await else {
        return;
    };
    let session = fleet.create().await;
    let workload = fleet.b.vault.workload(&session);
    let mut idle = workload.connect(TARGET).await;
    idle.send(get_with(&session)).await;
    assert_eq!(idle.answer().await.status, 200);
    fleet.b.relay.shut(true);
    let _ended = within("the end of the tunnel", idle.rest_and_end()).await;
    fleet.b.becomes(&session, 503).await;
    fleet.good.forget();
    let answer = workload.refused(TARGET).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (503, "store_unavailable")
    );
    assert!(answer.header("retry-after").is_some());
    let plain = workload.get("http://good.example.com/", &[]).await;
    assert_eq!(plain.status, 503);
    fleet.good.expect_nothing("a node without word");
    // Deleted meanwhile: the node must not serve it for one request when it can hear again.
    fleet
        .a
        .vault
        .sdk()
        .delete_session(&session.session_id)
        .await
        .unwrap();
    let other = fleet.create().await;
    fleet.b.relay.shut(false);
    within("an answer that is no 503", async {
        loop {
            match fleet.b.status(&session).await {
                503 => tokio::time::sleep(Duration::from_millis(5)).await,
                status => return assert_eq!(status, 407),
            }
        }
    })
    .await;
    fleet.works(&fleet.b, &other).await;
}

#[tokio::test]
async fn a_store_that_stops_in_the_middle_is_one_that_is_gone() {
    let Some(fleet) = Fleet::with(short).await else {
        return;
    };
    let session = fleet.create().await;
    fleet.works(&fleet.b, &session).await;
    fleet.redis.pause();
    // It takes connections and says nothing: every wait has an end.
    let made = within("an answer", fleet.a.vault.sdk().create_session(&request())).await;
    assert!(is_unavailable(&made), "{made:?}");
    fleet.a.becomes(&session, 503).await;
    fleet.b.becomes(&session, 503).await;
    assert_eq!(fleet.a.ready().await, 503);
    fleet.redis.resume();
    fleet.a.becomes(&session, 200).await;
    fleet.b.becomes(&session, 200).await;
    fleet.a.becomes_ready(200).await;
    fleet.works(&fleet.a, &session).await;
}

#[tokio::test]
async fn a_server_that_takes_no_writes_is_unready_until_it_does() {
    let Some(fleet) = Fleet::new().await else {
        return;
    };
    let session = fleet.create().await;
    // As on a full disk, or on a replica that was asked by mistake.
    let () = fleet
        .redis
        .ask(&[b"CONFIG", b"SET", b"min-replicas-to-write", b"1"])
        .await;
    let before = fleet.a.relay.connections();
    for _ in 0..5 {
        let made = fleet.a.vault.sdk().create_session(&request()).await;
        assert!(is_unavailable(&made), "{made:?}");
    }
    let after = fleet.a.relay.connections();
    assert_eq!(before, after, "a server that answers keeps its connection");
    assert_eq!(fleet.a.ready().await, 503);
    fleet.works(&fleet.a, &session).await;
    let () = fleet
        .redis
        .ask(&[b"CONFIG", b"SET", b"min-replicas-to-write", b"0"])
        .await;
    // Nobody asks for a change: the node finds out on its own.
    fleet.a.becomes_ready(200).await;
    fleet.create().await;
}

#[tokio::test]
async fn a_server_that_is_a_replica_or_lost_everything_is_no_word() {
    let Some(mut fleet) = Fleet::with(short).await else {
        return;
    };
    let session = fleet.create().await;
    fleet.works(&fleet.b, &session).await;
    // It answers for ever that nothing happens.
    let () = fleet.redis.ask(&[b"REPLICAOF", b"127.0.0.1", b"1"]).await;
    for node in [&fleet.a, &fleet.b] {
        node.becomes(&session, 503).await;
        assert_eq!(node.ready().await, 503);
    }
    let () = fleet.redis.ask(&[b"REPLICAOF", b"NO", b"ONE"]).await;
    for node in [&fleet.a, &fleet.b] {
        node.becomes(&session, 200).await;
    }
    // Another one, with nothing in it.
    let (data, away) = (fleet.redis.path("appendonlydir"), fleet.redis.path("away"));
    fleet.redis.kill().await;
    std::fs::rename(&data, &away).unwrap();
    fleet.redis.run().await;
    for node in [&fleet.a, &fleet.b] {
        node.becomes(&session, 503).await;
        assert_eq!(node.ready().await, 503);
    }
    fleet.redis.kill().await;
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&away, &data).unwrap();
    fleet.redis.run().await;
    for node in [&fleet.a, &fleet.b] {
        node.becomes(&session, 200).await;
        fleet.works(node, &session).await;
    }
    let id = session.session_id.as_bytes();
    let rows = b"{oshu-vault}:sessions";
    let left: u8 = fleet.redis.ask(&[b"HEXISTS", rows, id]).await;
    assert_eq!(left, 1);
}

#[tokio::test]
async fn reading_everything_keeps_nothing_else_waiting() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let relay = Relay::to(&redis).await;
    let store = Arc::new(super::open(&relay.url()).await);
    let keys = [(); 100].map(|()| RowKey {
        tenant: TenantId::new("acme"),
        session: SessionId::generate(),
    });
    let row = || Row {
        sealed: vec![7; 20_000],
        last_used: 1,
    };
    for key in &keys {
        store.put(key, row()).await.unwrap();
    }
    relay.hold_pages(true);
    let reading = Arc::clone(&store);
    let reading = tokio::spawn(async move { reading.load().await });
    within("the first question", async {
        while relay.mentions("HSCAN") == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let found = within("an answer", store.get(&keys[0])).await;
    assert_eq!(found.unwrap(), Some(row()));
    assert!(!reading.is_finished());
    relay.hold_pages(false);
    let all = within("everything", reading).await.unwrap().unwrap();
    assert_eq!(all.rows.len(), keys.len());
    // A few at a time: each may have more than a MiB.
    let pages = relay.mentions("HSCAN");
    assert!(pages >= 3, "{pages}");
}

#[tokio::test]
async fn a_store_that_comes_and_goes_loses_nothing_that_was_answered() {
    let Some(fleet) = Fleet::new().await else {
        return;
    };
    let session = fleet.create().await;
    fleet.works(&fleet.b, &session).await;
    let sdk = fleet.a.vault.sdk();
    let (mut made, mut refused) = (Vec::new(), 0);
    for _ in 0..10 {
        fleet.a.relay.shut(true);
        for _ in 0..3 {
            // What is known goes on; what is new is made, or refused and not half made.
            fleet.works(&fleet.a, &session).await;
            match sdk.create_session(&request()).await {
                Ok(session) => made.push(session),
                answer => {
                    assert!(is_unavailable(&answer), "{answer:?}");
                    refused += 1;
                }
            }
            fleet.a.relay.shut(false);
        }
    }
    fleet.a.becomes_ready(200).await;
    made.push(fleet.create().await);
    println!("made {}, refused {refused}", made.len());
    assert!(refused > 0, "it was away");
    for session in &made {
        fleet.works(&fleet.a, session).await;
        fleet.works(&fleet.b, session).await;
    }
    let deleted = made.pop().expect("a session").session_id;
    sdk.delete_session(&deleted).await.unwrap();
    fleet.works(&fleet.b, &session).await;
}
