//! What is done to tenants holds in the process before, too: its tunnels, its keys, its own changes.

use serde_json::{Value, json};

use super::{carries, ended, handed_over, opened};
use crate::binary::store::tenants::{ADMIN, client, status};
use crate::binary::store::{Made, Place, create, kill};
use crate::binary::{Server, dial};
use crate::support::{Answer, Conn};

const VARIABLES: [(&str, &str); 1] = [("OSHU_VAULT_ADMIN_KEY", ADMIN)];

/// A tenant with a key and a session that has a tunnel open.
struct Tenant {
    name: &'static str,
    key_id: String,
    key: String,
    made: Made,
    open: Conn,
}

async fn tenant(place: &Place, server: &Server, name: &'static str) -> Tenant {
    let (key_id, key) = place
        .key(&[&format!("--tenant={name}"), "--new-tenant"])
        .await;
    let made = create(&client(server, &key)).await.expect("a session");
    let open = opened(place, server, &made).await;
    Tenant {
        name,
        key_id,
        key,
        made,
        open,
    }
}

/// Calls the operator's part of the API over a connection.
async fn call(conn: &mut Conn, method: &str, path: &str, body: &Value) -> Answer {
    let body = body.to_string();
    conn.send(format!(
        "{method} /v1/tenants/{path} HTTP/1.1\r\nHost: v\r\nx-api-key: {ADMIN}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ))
    .await;
    conn.answer().await
}

/// Opens a connection, and asks over it whether a server is there.
async fn kept(server: &Server) -> Conn {
    let mut conn = dial(server.plain()).await;
    conn.send("GET /readyz HTTP/1.1\r\nHost: v\r\n\r\n").await;
    assert_eq!(conn.answer().await.status, 200);
    conn
}

/// Lists sessions with a key over a connection that was there before.
async fn status_over(conn: &mut Conn, key: &str) -> u16 {
    conn.send(format!(
        "GET /v1/sessions HTTP/1.1\r\nHost: v\r\nx-api-key: {key}\r\n\r\n"
    ))
    .await;
    conn.answer().await.status
}

#[tokio::test]
async fn tenants_that_end_are_cut_in_the_process_before() {
    let place = Place::new().await;
    let mut before = place.home.serve(&place.line(), &VARIABLES).await;
    let mut disabled = tenant(&place, &before, "disabled").await;
    let mut deleted = tenant(&place, &before, "deleted").await;
    let mut revoked = tenant(&place, &before, "revoked").await;
    let mut conns = Vec::new();
    for _ in 0..4 {
        conns.push(kept(&before).await);
    }
    let after = place.successor_with(&VARIABLES).await;
    handed_over(&mut before).await;
    let mut operator = dial(after.plain()).await;
    let path = format!("{}/keys/{}", revoked.name, revoked.key_id);
    let answer = call(&mut operator, "DELETE", &path, &json!({})).await;
    assert_eq!(answer.status, 204, "{}", answer.text());
    let (_, fresh) = place.key(&["--tenant=fresh", "--new-tenant"]).await;
    let change = json!({ "state": "disabled" });
    let answer = call(&mut operator, "PATCH", disabled.name, &change).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    // What came before is known, too, when this is.
    disabled.open.expect_end().await;
    let answer = call(&mut operator, "DELETE", deleted.name, &json!({})).await;
    assert_eq!(answer.status, 204, "{}", answer.text());
    deleted.open.expect_end().await;
    let statuses = [&disabled.key, &deleted.key, &revoked.key, &fresh];
    let mut got = Vec::new();
    for (conn, key) in conns.iter_mut().zip(statuses) {
        got.push(status_over(conn, key).await);
    }
    assert_eq!(got, [401, 401, 401, 200]);
    // Who lost a key goes on.
    let sealed = revoked.made.session.sealed_secrets["EXAMPLE_KEY"].clone();
    carries(&place, &mut revoked.open, &sealed, &revoked.made.value).await;
    revoked.open.expect_end().await;
    drop(conns);
    ended(before).await;
    kill(after).await;
    let again = place.home.serve(&place.line(), &VARIABLES).await;
    for tenant in [&disabled, &deleted] {
        place.is_gone(&again, &tenant.made).await;
    }
    place.works(&again, &revoked.made).await;
    again.stop().await;
}

#[tokio::test]
async fn what_the_operator_does_over_a_kept_connection_is_done_by_the_other_process() {
    let place = Place::new().await;
    let mut before = place.home.serve(&place.line(), &VARIABLES).await;
    let mut acme = tenant(&place, &before, "acme").await;
    let mut doomed = tenant(&place, &before, "doomed").await;
    let mut conns = Vec::new();
    for _ in 0..5 {
        conns.push(kept(&before).await);
    }
    let after = place.successor_with(&VARIABLES).await;
    handed_over(&mut before).await;
    let mut there = opened(&place, &after, &doomed.made).await;
    let mut conns = conns.into_iter();
    let mut call_before = async |method: &str, path: &str, body: Value| {
        let mut conn = conns.next().expect("a connection");
        let answer = call(&mut conn, method, path, &body).await;
        conn.expect_end().await;
        answer
    };
    let made = call_before("POST", "acme/keys", json!({ "label": "kept" })).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let key = made.json()["api_key"].as_str().expect("a key").to_owned();
    assert_eq!(status(&after, &key).await, 200);
    let path = format!("acme/keys/{}", acme.key_id);
    let gone = call_before("DELETE", &path, json!({})).await;
    assert_eq!(gone.status, 204, "{}", gone.text());
    assert_eq!(status(&after, &acme.key).await, 401);
    // What the other has changed meanwhile stays.
    let mut operator = dial(after.plain()).await;
    let limits = json!({ "limits": { "sessions": 7 } });
    let answer = call(&mut operator, "PATCH", "acme", &limits).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let limits = json!({ "limits": { "requests_per_second": 1000 } });
    let answer = call_before("PATCH", "acme", limits).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = call(&mut operator, "GET", "acme", &json!({})).await;
    let limits = &answer.json()["limits"];
    assert_eq!(
        (&limits["sessions"], &limits["requests_per_second"]),
        (&json!(7), &json!(1000))
    );
    let answer = call_before("DELETE", "doomed", json!({})).await;
    assert_eq!(answer.status, 204, "{}", answer.text());
    there.expect_end().await;
    doomed.open.expect_end().await;
    place.is_gone(&after, &doomed.made).await;
    let sealed = acme.made.session.sealed_secrets["EXAMPLE_KEY"].clone();
    carries(&place, &mut acme.open, &sealed, &acme.made.value).await;
    drop((acme.open, conns));
    ended(before).await;
    kill(after).await;
    let again = place.home.serve(&place.line(), &VARIABLES).await;
    assert_eq!(status(&again, &key).await, 200);
    assert_eq!(status(&again, &acme.key).await, 401);
    place.is_gone(&again, &doomed.made).await;
    again.stop().await;
}
