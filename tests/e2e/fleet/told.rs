//! What the nodes of a fleet tell: the records of a session that was made elsewhere, its events, the
//! metrics of the store and the readiness.

use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::{Fleet, Node, TARGET, get_with};
use crate::metrics;
use crate::support::{API_KEY, Conn, REAL, contains, within};

/// Waits until a node has a record of a session.
async fn told(node: &Node, id: &str, what: &str, met: impl Fn(&Value) -> bool) -> Value {
    let met = |line: &&Value| line["session"] == *id && met(line);
    let all = node.vault.audit_log();
    let lines = all.wait(what, |lines| lines.iter().any(|line| met(&line)));
    let lines = lines.await;
    lines.iter().find(met).expect("it is there").clone()
}

/// Lists what a node told about the sessions themselves.
fn actions(node: &Node, id: &str) -> Vec<String> {
    let lines = node.vault.audit();
    let own = lines
        .iter()
        .filter(|line| line["event"] == "session" && line["session"] == *id);
    let action = |line: &Value| line["action"].as_str().expect("an action").to_owned();
    own.map(action).collect()
}

#[tokio::test]
async fn each_node_tells_what_it_did_with_a_session_and_none_what_another_did() {
    let Some(fleet) = Fleet::new().await else {
        return;
    };
    let session = fleet.create().await;
    let id = session.session_id.as_str();
    // Used where it was not made, and where nobody had heard of it.
    let workload = fleet.b.vault.workload(&session);
    let mut conn = workload.connect(TARGET).await;
    conn.send(get_with(&session)).await;
    assert_eq!(conn.answer().await.status, 200);
    let exchange = told(&fleet.b, id, "the exchange", |line| {
        line["event"] == "exchange"
    })
    .await;
    for (name, expected) in [
        ("tenant", json!("default")),
        ("host", json!("good.example.com")),
        ("decision", json!("allowed")),
        ("status", json!(200)),
        ("swapped", json!(["EXAMPLE_KEY"])),
    ] {
        assert_eq!(exchange[name], expected, "{name}: {exchange}");
    }
    // A refusal of policy names its session as well.
    let refused = workload.refused("elsewhere.example.net:443").await;
    assert_eq!(refused.status, 403);
    told(&fleet.b, id, "the refusal", |line| {
        line["event"] == "tunnel" && line["decision"] == "denied"
    })
    .await;
    // Deleted on the one, over on the other: each says so once, and what was open is told.
    let deleted = fleet.a.vault.sdk().delete_session(id).await;
    deleted.expect("its end");
    let _ended = within("the end of the tunnel", conn.rest_and_end()).await;
    let end = told(&fleet.b, id, "the end", |line| {
        line["action"] == "ended_elsewhere"
    })
    .await;
    assert_eq!(
        (&end["tenant"], &end["decision"], &end["reason"]),
        (&json!("default"), &json!("allowed"), &json!("ok"))
    );
    let tunnel = told(&fleet.b, id, "the tunnel", |line| {
        line["event"] == "tunnel" && line["host"] == "good.example.com"
    })
    .await;
    assert_eq!(tunnel["tenant"], json!("default"));
    // Who comes with the credential of what is over has no session to be told of.
    fleet.b.becomes(&session, 407).await;
    assert_eq!(actions(&fleet.a, id), ["created", "deleted"]);
    assert_eq!(actions(&fleet.b, id), ["ended_elsewhere"]);
    let here = fleet.a.vault.audit();
    let elsewhere = here.iter().any(|line| line["event"] == "exchange");
    assert!(!elsewhere, "{here:?}");
    for node in [&fleet.a, &fleet.b] {
        let text = node.vault.audit_log().raw();
        for hidden in [REAL, &session.token, &session.sealed_secrets[super::NAME]] {
            assert!(!contains(&text, hidden));
        }
    }
}

#[tokio::test]
async fn a_session_is_read_along_on_a_node_that_had_not_heard_of_it() {
    let Some(fleet) = Fleet::new().await else {
        return;
    };
    let session = fleet.create().await;
    let id = session.session_id.as_str();
    let tcp = TcpStream::connect(fleet.b.vault.plain_addr()).await;
    let mut events = Conn::new(tcp.expect("a connection"));
    events
        .send(format!(
            "GET /v1/sessions/{id}/events HTTP/1.1\r\nHost: v\r\nx-api-key: {API_KEY}\r\n\r\n"
        ))
        .await;
    assert_eq!(events.answer_head().await.status, 200);
    events.take_until(b":\n\n").await;
    fleet.works(&fleet.b, &session).await;
    events.take_until(b"\"event\":\"exchange\"").await;
    let deleted = fleet.a.vault.sdk().delete_session(id).await;
    deleted.expect("its end");
    // The stream ends with the session.
    events.take_until(b"\"ended_elsewhere\"").await;
    events.take_until(b"\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn metrics_and_readiness_are_honest_about_a_shared_store() {
    let Some(mut fleet) = Fleet::new().await else {
        return;
    };
    let (up, changes) = (
        "oshu_vault_store_up",
        "oshu_vault_store_change_seconds_count",
    );
    let session = fleet.create().await;
    let page = metrics::wait(&fleet.a.vault, "a change", |page| page.value(changes) > 0.5).await;
    assert!(page.value(up) > 0.5);
    assert_eq!(fleet.a.ready().await, 200);
    // The other has changed nothing, and has the session all the same.
    fleet.works(&fleet.b, &session).await;
    let page = metrics::wait(&fleet.b.vault, "the session", |page| {
        page.value("oshu_vault_sessions") > 0.5
    })
    .await;
    assert!(page.value(changes) < 0.5);
    fleet.redis.kill().await;
    for node in [&fleet.a, &fleet.b] {
        node.becomes_ready(503).await;
        metrics::wait(&node.vault, "a store that is down", |page| {
            page.value(up) < 0.5
        })
        .await;
    }
    fleet.redis.run().await;
    for node in [&fleet.a, &fleet.b] {
        node.becomes_ready(200).await;
        metrics::wait(&node.vault, "a store that is up", |page| {
            page.value(up) > 0.5
        })
        .await;
    }
}
