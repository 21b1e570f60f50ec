//! Bodies on HTTP/2 streams that end in other ways than by their end, and records that say so.
//!
//! A reset is a cut whatever reason it gives. A body that is through holds nobody up, and an
//! exchange that had begun when its connection was to end is not cut.

use std::time::Duration;

use h2::Reason;
use serde_json::{Value, json};

use super::{OK, SHORT, all_limits, pause};
use crate::support::{Conn, GOOD, H2Origin, H2Scene, Origin, Scene, contains};

/// Waits for the record of an exchange by its path.
async fn record(play: &H2Scene, path: &str) -> Value {
    let of_path = |line: &Value| line["event"] == "exchange" && line["path"] == path;
    let log = play.scene.vault.audit_log();
    let lines = log.wait(path, |lines| lines.iter().any(of_path)).await;
    lines.into_iter().find(of_path).expect("a record")
}

#[tokio::test]
async fn a_request_that_is_through_does_not_stall_its_answer() {
    let origin = H2Origin::script(|mut exchange| async move {
        exchange.read_all().await;
        if exchange.path() == "/late" {
            pause(SHORT * 3).await;
        }
        exchange.answer_head(200, &[], false);
        for _ in 0..3 {
            if exchange.path() == "/silent" {
                pause(SHORT * 2).await;
            }
            exchange.send("piece ").await;
        }
        exchange.end("end").await;
    })
    .await;
    let play = H2Scene::with(origin, all_limits).await;
    let client = play.h2().await;
    for path in ["/late", "/silent"] {
        let mut stream = client.upload(path, &[]).await;
        assert!(stream.end("the whole body").await);
        let answer = stream.answer().await.expect("an answer");
        assert_eq!(answer.text(), "piece piece piece end", "{path}");
        let record = record(&play, path).await;
        assert_eq!(record["decision"], "allowed", "{path}: {record}");
    }
}

#[tokio::test]
async fn half_a_body_is_never_a_whole_one_however_its_stream_ends() {
    let h1 = Origin::raw(|conn| async move {
        while let Some(head) = conn.read_head().await {
            if head.starts_with("POST") {
                return conn.wait_end().await;
            }
            conn.send(OK).await;
        }
    })
    .await;
    let play = H2Scene::around_good(h1).await;
    let mut h1_ended = 0;
    for reason in [Reason::CANCEL, Reason::NO_ERROR, Reason::INTERNAL_ERROR] {
        for (kind, client) in [("h2", play.h2().await), ("h1", play.h2_to_h1().await)] {
            let path = format!("/{kind}/{}", u32::from(reason));
            let mut stream = client.upload(&path, &[]).await;
            assert!(stream.push("half a body").await);
            if kind == "h2" {
                play.two
                    .wait("half a body", |all| {
                        all.iter()
                            .any(|seen| seen.path == path && !seen.body.is_empty())
                    })
                    .await;
                stream.reset(reason);
                let all = play
                    .two
                    .wait("the end", |all| {
                        all.iter()
                            .any(|seen| seen.path == path && (seen.whole || seen.reset.is_some()))
                    })
                    .await;
                let seen = all.iter().find(|seen| seen.path == path).expect("seen");
                assert_eq!(
                    (seen.whole, seen.reset),
                    (false, Some(Reason::CANCEL.into())),
                    "{path}"
                );
            } else {
                play.scene
                    .good
                    .wait("half a body", |all| contains(&all.concat(), "half a body"))
                    .await;
                stream.reset(reason);
                h1_ended += 1;
                play.scene.good.wait_ended(h1_ended).await;
                assert!(
                    !contains(&play.scene.good.bytes(), "\r\n0\r\n\r\n"),
                    "{path}"
                );
                play.scene.good.forget();
            }
            let record = record(&play, &path).await;
            assert_eq!(
                (&record["decision"], &record["reason"]),
                (&json!("aborted"), &json!("client_gone")),
                "{path}: {record}"
            );
        }
    }
    play.alive("half a body").await;
}

#[tokio::test]
async fn an_answer_that_is_reset_without_an_error_looks_cut() {
    let origin = H2Origin::script(|mut exchange| async move {
        match exchange.path() {
            "/cut" => {
                exchange.answer_head(200, &[], false);
                exchange.send("half an answer").await;
                // It has to be read before the reset overtakes it.
                exchange.read().await;
                exchange.reset(Reason::NO_ERROR);
            }
            // The answer is whole and the rest of the request is not wanted: the library sends
            // such a reset behind the answer (RFC 9113 §8.1).
            "/early" => {
                exchange.answer_head(200, &[], false);
                exchange.end("a whole answer").await;
            }
            _ => {
                exchange.read_all().await;
                exchange.answer(200, "ok").await;
            }
        }
    })
    .await;
    let play = H2Scene::around(origin).await;
    let client = play.h2().await;
    let mut stream = client.upload("/cut", &[]).await;
    assert_eq!(stream.head().await.expect("a head").status, 200);
    stream.expect_piece("half an answer").await;
    assert!(stream.push("go on").await);
    stream.answer().await.expect_err("a cut, not an end");
    let cut = record(&play, "/cut").await;
    assert_eq!(
        (&cut["decision"], &cut["reason"]),
        (&json!("failed"), &json!("upstream_cut"))
    );
    let stream = client.upload("/early", &[]).await;
    let answer = stream.answer().await.expect("an answer");
    assert_eq!(answer.text(), "a whole answer");
    assert_eq!(record(&play, "/early").await["decision"], "allowed");
    play.alive("resets without an error").await;
}

/// Makes a frame of HTTP/2 (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("a short frame");
    [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
}

/// Reads frames up to the first one of a kind, and returns its payload.
async fn read_until(conn: &mut Conn, kind: u8) -> Vec<u8> {
    loop {
        let head = conn.take(9).await;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let payload = conn.take(length as usize).await;
        if head[3] == kind {
            return payload;
        }
    }
}

#[tokio::test]
async fn a_request_that_crosses_a_goaway_is_answered_however_late() {
    let [data, headers, settings, goaway] = [0, 1, 4, 7];
    // Longer than a connection without streams is waited for.
    let late = Duration::from_millis(2_600);
    let origin = Origin::script(move |_request, conn| async move {
        pause(late).await;
        conn.send(OK).await;
    })
    .await;
    let scene = Scene::with_good(origin, all_limits, |session| session).await;
    let tunnel = scene.workload.tunnel("good.example.com:443").await;
    let name = GOOD.try_into().expect("a name");
    let tls = scene.workload.handshake(tunnel.into_io(), name, &["h2"]);
    let mut conn = Conn::new(tls.await.expect("TLS in the tunnel"));
    conn.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    conn.send(frame(settings, 0, 0, &[])).await;
    read_until(&mut conn, goaway).await;
    // GET, https, / and a new :authority; the client has not seen the GOAWAY yet.
    let authority = u8::try_from(GOOD.len()).expect("a short name");
    let fields = [&[0x82, 0x87, 0x84, 0x41, authority], GOOD.as_bytes()].concat();
    conn.send(frame(headers, 5, 1, &fields)).await;
    let head = read_until(&mut conn, headers).await;
    assert_eq!(head.first(), Some(&0x88), "200");
    assert_eq!(read_until(&mut conn, data).await, b"ok");
}
