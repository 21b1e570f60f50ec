//! Bodies on their way to the gateway: what has come of them holds memory, with a bound; what has not
//! come holds nothing and keeps nobody out.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::{Answer, Conn, Origin, contains, within};

use super::{ACCOUNT, BODY, Stage, jwt};

const LONGEST: usize = 32 * 1024 * 1024;
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 74\r\n\r\n\
    {\"model\":\"claude-x\",\"usage\":{\"input_tokens\":3,\"output_tokens\":4,\"x\":1234}}";

fn head(account: &str, lines: &str) -> String {
    format!(
        "POST /api/claude-gateway/v1/messages HTTP/1.1\r\nHost: v\r\nAuthorization: Bearer \
         {}\r\n{lines}\r\n",
        jwt(account)
    )
}

/// Announces the longest body of an account's; it is waited for when this returns.
async fn announce(stage: &Stage, account: &str) -> Conn {
    let mut conn = stage.connect().await;
    let lines = format!("Content-Length: {LONGEST}\r\nExpect: 100-continue\r\n");
    conn.send(head(account, &lines)).await;
    assert_eq!(conn.answer_head().await.status, 100);
    conn
}

#[tokio::test]
async fn who_sends_nothing_keeps_nobody_out() {
    let stage = Stage::new().await;
    let mut silent = Vec::new();
    for account in ["1", "2", "3", "4"] {
        stage.pay(account, true).await;
        for first in ["", "", "", "", "{", "{"] {
            let mut conn = announce(&stage, account).await;
            conn.send(first).await;
            silent.push(conn);
        }
    }
    stage.pay(ACCOUNT, true).await;
    for account in [ACCOUNT, "1", "4"] {
        let answer = stage.message(&jwt(account)).await;
        assert_eq!(answer.status, 200, "{account}: {}", answer.text());
    }
    // What does not move ends.
    for mut conn in silent {
        let answer = conn.answer().await;
        assert_eq!(answer.status, 408, "{}", answer.text());
        assert_eq!(answer.json()["details"]["code"], "body_timeout");
    }
}

/// Sends almost all of the longest body, and then single bytes, so that it does not stand still,
/// until something is answered.
async fn push(mut conn: Conn) -> Answer {
    let (piece, moment) = (vec![b' '; 1024 * 1024], Duration::from_millis(1));
    for _ in 1..LONGEST / piece.len() {
        let sent = conn.try_send(&piece).await;
        if sent.is_err() || timeout(moment, conn.fill()).await.is_ok() {
            return conn.answer().await;
        }
    }
    // Its last piece is there but for what this loop has.
    let sent = conn.try_send(&piece[..piece.len() - 1000]).await;
    while sent.is_ok() && timeout(Duration::from_secs(1), conn.fill()).await.is_err() {
        conn.send(" ").await;
    }
    conn.answer().await
}

#[tokio::test]
async fn what_has_come_has_a_bound_for_each_account() {
    let stage = Stage::new().await;
    stage.pay(ACCOUNT, true).await;
    stage.pay("2", true).await;
    let mut waiting = JoinSet::new();
    for _ in 0..5 {
        waiting.spawn(push(announce(&stage, ACCOUNT).await));
    }
    // Four of the longest have room.
    let refused = within("a refusal", waiting.join_next()).await;
    let refused = refused.expect("five").expect("an answer");
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert_eq!(refused.json()["details"]["code"], "too_much_at_once");
    assert_eq!(stage.message(&jwt("2")).await.status, 200);
    waiting.shutdown().await;
    let room = async { while stage.message(&jwt(ACCOUNT)).await.status != 200 {} };
    within("room again", room).await;
}

#[tokio::test]
async fn calls_in_chunks_hold_what_they_are() {
    let go = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&go);
    let provider = Origin::script(move |_request, conn| {
        let go = Arc::clone(&held);
        async move {
            let _leave = go.acquire().await;
            conn.send(OK).await;
        }
    });
    let stage = Stage::around(provider.await, |_| ()).await;
    stage.pay(ACCOUNT, true).await;
    let (start, end) = BODY.split_at(20);
    let mut calls = Vec::new();
    for _ in 0..30 {
        let mut conn = stage.connect().await;
        let chunks = format!("14\r\n{start}\r\n{:x}\r\n{end}\r\n0\r\n\r\n", end.len());
        conn.send(head(ACCOUNT, "Transfer-Encoding: chunked\r\n") + &chunks)
            .await;
        calls.push(conn);
    }
    // All of them wait for their answers at once.
    let came = |all: &[Vec<u8>]| {
        let here = all.iter().filter(|one| contains(one, BODY));
        here.count() == 30
    };
    stage.provider.wait("thirty calls", came).await;
    go.add_permits(1000);
    for mut conn in calls {
        let answer = conn.answer().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

#[tokio::test]
async fn what_is_used_up_is_told_before_a_body() {
    const BUDGET: u64 = 100_000;
    let usage = r#"{"model":"claude-x","usage":{"input_tokens":200000,"output_tokens":4}}"#;
    let told = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{usage}",
        usage.len()
    );
    for (paid, status) in [(true, 429), (false, 402)] {
        let provider = Origin::answer(told.as_str()).await;
        let stage = Stage::around(provider, |config| {
            config.gateway.monthly_budget = Some(BUDGET);
            config.gateway.free_allowance = Some(BUDGET);
        });
        let stage = stage.await;
        stage.pay(ACCOUNT, paid).await;
        assert_eq!(stage.message(&jwt(ACCOUNT)).await.status, 200);
        let counted =
            async { while stage.usage(ACCOUNT).await["counted_tokens"].as_u64() < Some(BUDGET) {} };
        within("the account of it", counted).await;
        let mut conn = stage.connect().await;
        let lines = format!("Content-Length: {LONGEST}\r\n");
        conn.send(head(ACCOUNT, &lines)).await;
        assert_eq!(conn.answer().await.status, status);
    }
}
