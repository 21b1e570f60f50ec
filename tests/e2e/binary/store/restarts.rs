//! What a session has besides its secrets: tokens that were captured for it are there after a kill,
//! and its quotas hold for it as for a new one.

use serde_json::{Value, json};

use super::{HOST, Place, TARGET, create_with, kill};
use crate::support::{Conn, Origin, contains, show};

const FIRST: &str = "access-first-0123456789-abcdef";
const SECOND: &str = "access-second-0123456789-abcdef";
const REFRESH: &str = "refresh-value-0123456789-abcdef";

/// A token endpoint that gives what it is sent.
async fn issuer() -> Origin {
    Origin::script(|request, conn| async move {
        let body = if request.body.is_empty() {
            b"{}"
        } else {
            request.body.as_slice()
        };
        let length = body.len();
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        conn.send([head.as_bytes(), body].concat()).await;
    })
    .await
}

/// Has the endpoint give an answer, and returns what the workload gets.
async fn given(conn: &mut Conn, body: &Value) -> Value {
    let body = body.to_string();
    let length = body.len();
    let head = format!("POST /token HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n");
    conn.send([head, body].concat()).await;
    let answer = conn.answer().await;
    assert_eq!(answer.status, 200, "{}", show(&answer.raw));
    for value in [FIRST, SECOND, REFRESH] {
        assert!(!contains(&answer.raw, value), "{}", show(&answer.raw));
    }
    answer.json()
}

fn token(answer: &Value, name: &str) -> String {
    answer[name].as_str().expect("a token").to_owned()
}

#[tokio::test]
async fn captured_tokens_work_after_a_kill_and_replaced_ones_do_not() {
    let place = Place::with(issuer().await);
    let server = place.serve().await;
    let url = format!("https://{HOST}/token");
    let made = create_with(&place.client(&server), |request| request.capture([url])).await;
    let made = made.expect("a session");
    let workload = place.workload(&server, &made).await;
    let mut conn = workload.connect(TARGET).await;
    let body = json!({"access_token": FIRST, "refresh_token": REFRESH});
    let first = given(&mut conn, &body).await;
    let [replaced, refresh] = ["access_token", "refresh_token"].map(|name| token(&first, name));
    // The workload refreshes: its sealed token goes up as the real one, and comes back as it was.
    let body = json!({"access_token": SECOND, "refresh_token": refresh});
    let second = given(&mut conn, &body).await;
    assert_eq!(token(&second, "refresh_token"), refresh);
    let access = token(&second, "access_token");
    // The answer that the workload has is a promise like a 201.
    kill(server).await;
    let kept = std::fs::read(place.store()).expect("the store's file");
    for value in [FIRST, SECOND, REFRESH] {
        assert!(!contains(&kept, value), "{value} in the file");
    }
    let server = place.serve().await;
    let workload = place.workload(&server, &made).await;
    let authorization = |token: &str| format!("Bearer {token}");
    for (sealed, real, opens) in [(&access, SECOND, true), (&replaced, FIRST, false)] {
        place.origin.forget();
        let fields = [("Authorization", authorization(sealed))];
        let fields = fields
            .each_ref()
            .map(|(name, value)| (*name, value.as_str()));
        let answer = workload.get(&format!("https://{HOST}/"), &fields).await;
        assert_eq!(answer.status, 200);
        let got = place.origin.bytes();
        assert_eq!(contains(&got, real), opens, "{}", show(&got));
        assert_eq!(contains(&got, sealed), !opens, "{}", show(&got));
    }
    place.origin.forget();
    let mut conn = workload.connect(TARGET).await;
    let third = given(&mut conn, &json!({"refresh_token": refresh})).await;
    assert!(contains(&place.origin.bytes(), REFRESH));
    assert_eq!(token(&third, "refresh_token"), refresh);
    let session = place.client(&server).get_session(made.id()).await;
    assert_eq!(session.expect("the session").captured.len(), 2);
    place.works(&server, &made).await;
    server.stop().await;
}

#[tokio::test]
async fn quotas_hold_for_the_sessions_of_the_server_before() {
    let place = Place::new().await;
    let server = place.serve().await;
    let made = place.create(&server).await;
    kill(server).await;
    let quota = [("OSHU_VAULT__LIMITS__SESSION_TUNNELS", "1")];
    let server = place.home.serve(&place.line(), &quota).await;
    let workload = place.workload(&server, &made).await;
    let one = workload.tunnel(TARGET).await;
    let refused = workload.refused(TARGET).await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (429, "session_tunnel_limit")
    );
    drop(one);
    server.stop().await;
}
