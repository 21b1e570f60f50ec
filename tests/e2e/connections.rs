//! Connections: each counts for whoever showed a credential on it, idle or not, and some are kept for
//! those who are no workload.
//!
//! What a refused connection looks like to its client is checked to its end. A seat is free when the
//! vault has seen the end of a connection, which a test waits for by asking again.

use std::time::{Duration, Instant};

use oshu_vault::config::Limits;
use serde_json::json;

use crate::support::{API_KEY, Answer, Conn, EVIL, GOOD, Scene, Workload, within};

const TARGET: &str = "good.example.com:443";
const REFUSED: &str = "evil.example.net:443";

async fn scene(change: fn(&mut Limits)) -> Scene {
    Scene::vault(|vault| vault.config(|config| change(&mut config.limits))).await
}

/// Shows a credential on a connection and leaves it idle: the request itself is refused by policy.
async fn show(workload: &Workload, conn: &mut Conn) -> Answer {
    let answer = workload.ask(conn, REFUSED).await;
    let length = answer.header("content-length").expect("a length");
    let body = conn.take(length.parse().expect("a length")).await;
    Answer { body, ..answer }
}

/// Opens a connection that has shown a credential and is idle.
async fn idle(workload: &Workload) -> Conn {
    let mut conn = workload.plain().await;
    assert_eq!(show(workload, &mut conn).await.code(), "host_not_allowed");
    conn
}

/// Asks in absolute form, for a host that policy refuses.
async fn plainly(workload: &Workload, conn: &mut Conn) -> Answer {
    let authorization = workload.authorization();
    conn.send(format!(
        "GET http://{EVIL}/ HTTP/1.1\r\nHost: {EVIL}\r\n{authorization}\r\n"
    ))
    .await;
    conn.answer().await
}

/// Checks that a connection was refused with a status, and closed.
async fn is_closed_with(answer: &Answer, conn: &mut Conn, status: u16, code: &str) {
    assert_eq!((answer.status, answer.code().as_str()), (status, code));
    let wait = answer.header("retry-after").expect("a time to wait");
    assert!(wait.parse::<u64>().expect("seconds") >= 1);
    assert!(answer.json()["ask"].is_string(), "{}", answer.text());
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(answer.header("proxy-authenticate").is_none());
    // We close, and do not wait for the client to.
    conn.expect_end().await;
    conn.finish().await;
}

/// Waits until a workload may have one more connection, and returns it idle.
async fn room(workload: &Workload, over: &str) -> Conn {
    within("room for a connection", async {
        loop {
            let mut conn = workload.plain().await;
            match show(workload, &mut conn).await.code().as_str() {
                "host_not_allowed" => break conn,
                code => assert_eq!(code, over),
            }
        }
    })
    .await
}

/// Calls the management API over a connection of its own.
async fn manage(scene: &Scene) -> u16 {
    let mut conn = scene.workload.plain().await;
    let head = format!("GET /v1/sessions HTTP/1.1\r\nHost: v\r\nx-api-key: {API_KEY}\r\n\r\n");
    conn.send(head).await;
    conn.answer().await.status
}

#[tokio::test]
async fn case_78_a_session_holds_its_own_connections_only() {
    let scene = scene(|limits| limits.session_connections = 3).await;
    let first = idle(&scene.workload).await;
    let second = idle(&scene.workload).await;
    let third = scene.workload.connect(TARGET).await;
    // Idle ones count like tunnels, and the way in does not matter.
    let mut over = scene.workload.plain().await;
    let answer = show(&scene.workload, &mut over).await;
    is_closed_with(&answer, &mut over, 429, "session_connection_limit").await;
    let mut over = scene.workload.secure().await;
    let answer = plainly(&scene.workload, &mut over).await;
    is_closed_with(&answer, &mut over, 429, "session_connection_limit").await;
    // What is open goes on, another session and the management API are not asked.
    let mut third = third;
    third
        .send(format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"))
        .await;
    assert_eq!(third.answer().await.text(), "ok");
    let other = scene.vault.session(&Scene::request()).await;
    let other = scene.vault.workload(&other);
    let answer = other.get(&format!("https://{GOOD}/"), &[]).await;
    assert_eq!(answer.text(), "ok");
    assert_eq!(manage(&scene).await, 200);
    // One that ends makes room, whichever it was.
    drop(first);
    let fourth = room(&scene.workload, "session_connection_limit").await;
    drop(third);
    let fifth = room(&scene.workload, "session_connection_limit").await;
    drop((second, fourth, fifth));
    drop(room(&scene.workload, "session_connection_limit").await);
    let records = scene.vault.audit();
    let record = records
        .iter()
        .find(|line| line["reason"] == "session_connection_limit")
        .expect("a record");
    assert_eq!(
        (&record["status"], &record["decision"], &record["session"]),
        (
            &json!(429),
            &json!("denied"),
            &json!(scene.session.session_id)
        )
    );
}

#[tokio::test]
async fn a_connection_counts_for_the_session_that_showed_a_credential_last() {
    let scene = scene(|limits| limits.session_connections = 1).await;
    let one = &scene.workload;
    let two = scene.vault.session(&Scene::request()).await;
    let two = &scene.vault.workload(&two);
    let mut first = idle(one).await;
    // The same session again is the same connection.
    for _ in 0..3 {
        assert_eq!(show(one, &mut first).await.status, 403);
        assert_eq!(plainly(one, &mut first).await.status, 403);
    }
    let mut over = one.plain().await;
    let answer = show(one, &mut over).await;
    is_closed_with(&answer, &mut over, 429, "session_connection_limit").await;
    // It becomes the other's: the first session has room, and the other none.
    assert_eq!(plainly(two, &mut first).await.status, 403);
    let mut second = idle(one).await;
    let mut over = two.plain().await;
    let answer = show(two, &mut over).await;
    is_closed_with(&answer, &mut over, 429, "session_connection_limit").await;
    // So one with a seat cannot become the other's either.
    let answer = plainly(two, &mut second).await;
    is_closed_with(&answer, &mut second, 429, "session_connection_limit").await;
    drop(room(one, "session_connection_limit").await);
    drop(first);
    drop(room(two, "session_connection_limit").await);
}

#[tokio::test]
async fn case_78_workloads_leave_connections_for_the_management_api() {
    let scene = scene(|limits| {
        limits.connections = 20;
        limits.reserved_percent = 60;
        limits.session_connections = 4;
    })
    .await;
    let mut held = Vec::new();
    let mut workloads = Vec::new();
    for _ in 0..2 {
        let session = scene.vault.session(&Scene::request()).await;
        let workload = scene.vault.workload(&session);
        for _ in 0..4 {
            held.push(idle(&workload).await);
        }
        workloads.push(workload);
    }
    // Together they have all that workloads may have. A third, with none at all, is one of them.
    for _ in 0..4 {
        let mut over = scene.workload.plain().await;
        let answer = show(&scene.workload, &mut over).await;
        is_closed_with(&answer, &mut over, 503, "proxy_full").await;
    }
    // The operator is none, and can do what helps.
    assert_eq!(manage(&scene).await, 200);
    let created = scene.vault.session(&Scene::request()).await;
    let sdk = scene.vault.sdk();
    sdk.delete_session(&created.session_id).await.expect("gone");
    // A connection of theirs that changes sessions needs no other place.
    let mut kept = held.pop().expect("a connection");
    assert_eq!(show(&scene.workload, &mut kept).await.status, 403);
    drop(held.pop());
    drop(room(&scene.workload, "proxy_full").await);
    drop(held);
}

#[tokio::test]
async fn idle_connections_of_a_deleted_session_are_closed_and_no_others() {
    let scene = Scene::new().await;
    let deleted = scene.vault.session(&Scene::request()).await;
    let workload = scene.vault.workload(&deleted);
    let mut gone = [idle(&workload).await, idle(&workload).await];
    let mut mine = idle(&scene.workload).await;
    // Whose it was once does not matter.
    let mut moved = idle(&workload).await;
    assert_eq!(show(&scene.workload, &mut moved).await.status, 403);
    let sdk = scene.vault.sdk();
    sdk.delete_session(&deleted.session_id).await.expect("gone");
    for conn in &mut gone {
        conn.expect_end().await;
    }
    for conn in [&mut mine, &mut moved] {
        assert_eq!(show(&scene.workload, conn).await.status, 403);
    }
    scene.alive("a deletion").await;
}

#[tokio::test]
async fn a_stranger_who_keeps_asking_for_what_needs_no_credential_does_not_stay() {
    // Generous: each question must come within it.
    const WAIT: Duration = Duration::from_secs(4);
    let scene = scene(|limits| limits.first_byte_timeout = WAIT).await;
    let connect = format!("CONNECT {TARGET} HTTP/1.1\r\nHost: {TARGET}\r\n\r\n");
    let health = "GET /healthz HTTP/1.1\r\nHost: v\r\n\r\n".to_owned();
    let mut known = idle(&scene.workload).await;
    for (request, status) in [(connect, 407), (health.clone(), 200)] {
        let began = Instant::now();
        let mut conn = scene.workload.plain().await;
        within("the last answer", async {
            loop {
                conn.send(request.as_str()).await;
                let answer = conn.answer().await;
                assert_eq!(answer.status, status);
                if answer.header("connection") == Some("close") {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        let lasted = began.elapsed();
        assert!(lasted >= 2 * WAIT, "not before its time");
        assert!(lasted < 3 * WAIT, "and soon after it: {lasted:?}");
        conn.expect_end().await;
    }
    // Who has shown a credential is no stranger, however long ago.
    known.send(health.as_str()).await;
    assert_eq!(known.answer().await.header("connection"), None);
    scene.alive("strangers that stay").await;
}
