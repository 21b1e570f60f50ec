//! Who has not shown who they are: failed attempts are held back, right credentials never.
//!
//! Every client of these tests comes from one address but where it says another.

use std::net::{Ipv4Addr, SocketAddr};

use oshu_vault::config::Limits;

use crate::support::{self, API_KEY, Answer, Conn, GOOD, Scene, basic, within};

const TARGET: &str = "good.example.com:443";
const FEW: usize = 3;

async fn scene(change: fn(&mut Limits)) -> Scene {
    Scene::vault(|vault| vault.config(|config| change(&mut config.limits))).await
}

async fn few_failures() -> Scene {
    scene(|limits| limits.auth_failures = FEW).await
}

/// Connects to a listener from another address of this machine.
async fn dial_from(host: u8, address: SocketAddr) -> Conn {
    support::dial_from(Ipv4Addr::new(127, 0, 0, host), address).await
}

async fn connect(conn: &mut Conn, lines: &str) -> Answer {
    conn.send(format!(
        "CONNECT {TARGET} HTTP/1.1\r\nHost: {TARGET}\r\n{lines}\r\n"
    ))
    .await;
    conn.answer().await
}

/// Calls the management API over a connection of its own.
async fn call(scene: &Scene, lines: &str) -> Answer {
    let mut conn = scene.workload.plain().await;
    let head = format!("GET /v1/sessions HTTP/1.1\r\nHost: vault\r\n{lines}\r\n");
    conn.send(head).await;
    conn.answer().await
}

/// Checks that an answer holds its caller back, and for how long.
fn is_held(answer: &Answer, case: &str) {
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (429, "too_many_auth_failures"),
        "{case}"
    );
    let wait: u64 = answer
        .header("retry-after")
        .expect("a time to wait")
        .parse()
        .expect("seconds");
    assert!((1..=300).contains(&wait), "{case}: {wait}");
}

fn authorization(user: &str, password: &str) -> String {
    format!("Proxy-Authorization: {}\r\n", basic(user, password))
}

#[tokio::test]
async fn peer_66_failing_answers_are_held_back_alike_and_right_credentials_never() {
    let scene = few_failures().await;
    let (id, token) = (&scene.session.session_id, &scene.session.token);
    let unknown = format!("sess_{}", "0".repeat(32));
    let deleted = scene.vault.session(&Scene::request()).await;
    let sdk = scene.vault.sdk();
    sdk.delete_session(&deleted.session_id).await.expect("gone");
    let wrong = [
        authorization(id, "tok_wrong"),
        authorization(&unknown, token),
        authorization(&deleted.session_id, &deleted.token),
    ];
    let mut conn = scene.workload.plain().await;
    for lines in &wrong {
        assert_eq!(connect(&mut conn, lines).await.status, 407, "{lines}");
    }
    let mut first = None;
    for lines in wrong
        .iter()
        .chain([&"Proxy-Authorization: Basic ?\r\n".to_owned()])
    {
        let answer = connect(&mut conn, lines).await;
        is_held(&answer, lines);
        // The same for every kind of wrong.
        let first = first.get_or_insert_with(|| answer.body.clone());
        assert_eq!(*first, answer.body, "{lines}");
    }
    // A request in absolute form is held back by the same count.
    let mut plain = scene.workload.plain().await;
    plain
        .send(format!(
            "GET http://{GOOD}/ HTTP/1.1\r\nHost: {GOOD}\r\n{}\r\n",
            wrong[0]
        ))
        .await;
    is_held(&plain.answer().await, "absolute form");
    // Without a credential it is no attempt: a challenge as ever.
    assert_eq!(connect(&mut conn, "").await.status, 407);
    // And the right one is taken, from the same address and on the same connection.
    let answer = scene.workload.ask(&mut conn, TARGET).await;
    assert_eq!(answer.status, 200);
    let mut other = dial_from(2, scene.vault.plain_addr()).await;
    assert_eq!(
        connect(&mut other, &wrong[0]).await.status,
        407,
        "another address"
    );
    scene.nothing_arrived("failed attempts").await;
}

#[tokio::test]
async fn requests_without_a_credential_and_right_ones_are_no_attempts() {
    let scene = few_failures().await;
    let mut conn = scene.workload.plain().await;
    for _ in 0..4 * FEW {
        // What git and Java do each time.
        assert_eq!(connect(&mut conn, "").await.status, 407);
        scene.alive("a right credential").await;
    }
    for _ in 0..FEW {
        let lines = authorization(&scene.session.session_id, "tok_wrong");
        assert_eq!(connect(&mut conn, &lines).await.status, 407);
    }
}

#[tokio::test]
async fn wrong_api_keys_are_held_back_and_the_right_one_never() {
    let scene = few_failures().await;
    let right = format!("Authorization: Bearer {API_KEY}\r\n");
    let wrong = "Authorization: Bearer ovk_wrong\r\n";
    for _ in 0..2 * FEW {
        assert_eq!(call(&scene, "").await.status, 401, "no attempt");
        assert_eq!(call(&scene, &right).await.status, 200);
    }
    for _ in 0..FEW {
        assert_eq!(call(&scene, wrong).await.status, 401);
    }
    for lines in [wrong, "x-api-key: ovk_wrong\r\n"] {
        is_held(&call(&scene, lines).await, lines);
    }
    assert_eq!(call(&scene, "").await.status, 401);
    assert_eq!(call(&scene, &right).await.status, 200);
    scene.alive("wrong API keys").await;
}

#[tokio::test]
async fn failures_are_forgotten_after_their_window() {
    let scene = scene(|limits| {
        limits.auth_failures = 1;
        limits.auth_failure_window = std::time::Duration::from_millis(300);
    })
    .await;
    let lines = authorization(&scene.session.session_id, "tok_wrong");
    let mut conn = scene.workload.plain().await;
    // In a window that has just begun the second is held back; on a busy machine that may take
    // several windows to be seen, and being forgotten takes one.
    let mut seen = [false; 2];
    within("both answers, and the first again", async {
        while seen != [true; 2] {
            match connect(&mut conn, &lines).await.status {
                407 if !seen[0] => {}
                407 => seen[1] = true,
                429 => seen[0] = true,
                other => panic!("{other}"),
            }
        }
    })
    .await;
    scene.alive("a window").await;
}

#[tokio::test]
async fn connections_without_a_credential_are_few_for_each_address_and_others_not_counted() {
    let scene = scene(|limits| limits.unauthenticated_per_address = FEW).await;
    let address = scene.vault.plain_addr();
    let health = "GET /healthz HTTP/1.1\r\nHost: v\r\n\r\n";
    // The SDK's own connection has shown its key, so it does not count.
    let mut held = Vec::new();
    for _ in 0..FEW {
        let mut conn = dial_from(3, address).await;
        conn.send(health).await;
        assert_eq!(conn.answer().await.status, 200);
        held.push(conn);
    }
    let mut over = dial_from(3, address).await;
    let _closed = over.try_send(health).await;
    over.expect_end().await;
    // Another address is served, and one that has shown a credential makes room.
    let mut other = dial_from(4, address).await;
    other.send(health).await;
    assert_eq!(other.answer().await.status, 200);
    let mut tunnels = Vec::new();
    for _ in 0..3 * FEW {
        let mut conn = held.pop().expect("a connection");
        let answer = scene.workload.ask(&mut conn, TARGET).await;
        assert_eq!(answer.status, 200);
        tunnels.push(conn);
        // Its seat is free: the next one is let in.
        let mut next = dial_from(3, address).await;
        next.send(health).await;
        assert_eq!(next.answer().await.status, 200);
        held.push(next);
    }
    // So does an API key, and a connection that ends.
    let mut keyed = held.pop().expect("a connection");
    keyed
        .send(format!(
            "GET /v1/sessions HTTP/1.1\r\nHost: v\r\nx-api-key: {API_KEY}\r\n\r\n"
        ))
        .await;
    assert_eq!(keyed.answer().await.status, 200);
    let mut next = dial_from(3, address).await;
    next.send(health).await;
    assert_eq!(next.answer().await.status, 200);
    drop(held);
    // When the vault has seen the ends is its own affair: until then new ones are closed.
    within("room after an end", async {
        loop {
            let mut conn = dial_from(3, address).await;
            if conn.try_send(health).await.is_ok() && conn.fill().await {
                break;
            }
        }
    })
    .await;
    scene.alive("connections without a credential").await;
}

#[tokio::test]
async fn addresses_add_up_for_strangers_and_never_for_a_session() {
    let scene = scene(|limits| {
        limits.unauthenticated_per_address = FEW;
        limits.session_connections = FEW;
    })
    .await;
    let address = scene.vault.plain_addr();
    let health = "GET /healthz HTTP/1.1\r\nHost: v\r\n\r\n";
    // Strangers: each address has its own, whatever the others hold, and no more than its own.
    let mut held = Vec::new();
    for host in 3..7 {
        for _ in 0..FEW {
            let mut conn = dial_from(host, address).await;
            conn.send(health).await;
            assert_eq!(conn.answer().await.status, 200, "127.0.0.{host}");
            held.push(conn);
        }
    }
    for host in 3..7 {
        let mut over = dial_from(host, address).await;
        let _closed = over.try_send(health).await;
        over.expect_end().await;
    }
    // Whoever shows the credential of one session is that session, wherever it comes from.
    let mut tunnels = Vec::new();
    for host in 10..10 + u8::try_from(FEW).expect("few") {
        let mut conn = dial_from(host, address).await;
        assert_eq!(scene.workload.ask(&mut conn, TARGET).await.status, 200);
        tunnels.push(conn);
    }
    for host in [3, 10, 20, 21, 22] {
        // What waits at an address without a seat moves to none either.
        let mut conn = match host {
            3 => held.remove(0),
            _ => dial_from(host, address).await,
        };
        let answer = connect(&mut conn, &scene.workload.authorization()).await;
        let found = (answer.status, answer.code());
        let over = (429, "session_connection_limit".to_owned());
        assert_eq!(found, over, "127.0.0.{host}");
        conn.expect_end().await;
    }
    // Another session is not asked, from an address that holds all it may have.
    let other = scene.vault.session(&Scene::request()).await;
    let other = scene.vault.workload(&other);
    let mut conn = held.pop().expect("a connection");
    assert_eq!(other.ask(&mut conn, TARGET).await.status, 200);
    drop((tunnels, held));
}
