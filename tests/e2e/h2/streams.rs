//! Streams that end before their answer does, by whoever; the others go on.

use std::time::{Duration, Instant};

use h2::Reason;
use oshu_vault_sdk::UpdateSession;
use tokio::sync::watch;

use super::OK;
use crate::support::{
    GOOD, H2Exchange, H2Origin, H2Scene, H2Seen, Origin, SIDE, TWO, contains, within,
};

/// How long a cancellation may take to reach the other side.
const SECOND: Duration = Duration::from_secs(1);
const CANCEL: u32 = 8;

/// What the h2 origins of these tests do, by the path.
async fn serve(mut exchange: H2Exchange, mut gate: watch::Receiver<bool>) {
    match exchange.path() {
        "/silent" => {
            exchange.wait_reset().await;
        }
        "/begun" => {
            exchange.answer_head(200, &[], false);
            exchange.send("part").await;
            exchange.wait_reset().await;
        }
        "/reset" => {
            exchange.answer_head(200, &[], false);
            exchange.send("part").await;
            gate.wait_for(|open| *open).await.expect("the test goes on");
            exchange.reset(Reason::INTERNAL_ERROR);
        }
        "/drop" => {
            exchange.answer_head(200, &[], false);
            exchange.send("part").await;
            gate.wait_for(|open| *open).await.expect("the test goes on");
            exchange.drop_connection();
        }
        "/short" => {
            exchange.answer_head(200, &[("content-length", "10")], false);
            exchange.end("part").await;
        }
        "/long" => {
            exchange.answer_head(200, &[("content-length", "2")], false);
            exchange.end("part").await;
        }
        "/held" => {
            exchange.answer_head(200, &[], false);
            exchange.send("begun ").await;
            gate.wait_for(|open| *open).await.expect("the test goes on");
            exchange.end("ended").await;
        }
        "/drain" => {
            exchange.answer_head(200, &[], false);
            exchange.send("begun ").await;
            exchange.go_away();
            gate.wait_for(|open| *open).await.expect("the test goes on");
            exchange.end("ended").await;
        }
        _ => {
            if exchange.read_all().await {
                exchange.answer(200, "ok").await;
            }
        }
    }
}

async fn origin(gate: &watch::Receiver<bool>) -> H2Origin {
    let gate = gate.clone();
    H2Origin::script(move |exchange| serve(exchange, gate.clone())).await
}

/// An HTTP/1.1 origin that begins an answer and waits for the end of the connection.
async fn slow_h1() -> Origin {
    Origin::raw(|conn| async move {
        while let Some(head) = conn.read_head().await {
            if head.starts_with("POST") {
                return conn.wait_end().await;
            }
            if head.contains("/begun") {
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\npart")
                    .await;
                return conn.wait_end().await;
            }
            if head.contains("/silent") {
                return conn.wait_end().await;
            }
            conn.send(OK).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_reset_by_the_client_cancels_the_upstream() {
    let (_release, gate) = watch::channel(false);
    let play = H2Scene::with_good(slow_h1().await, origin(&gate).await, |vault| vault).await;
    let client = play.h2().await;
    for (index, path) in ["/silent", "/begun"].into_iter().enumerate() {
        let mut stream = client.begin(path).await;
        play.two.wait("the request", |all| all.len() > index).await;
        if path == "/begun" {
            assert_eq!(stream.head().await.expect("a head").status, 200);
            stream.expect_piece("part").await;
        }
        let began = Instant::now();
        stream.reset(Reason::CANCEL);
        let all = play
            .two
            .wait("the reset", |all| all[index].reset.is_some())
            .await;
        assert!(began.elapsed() < SECOND, "{path}: {:?}", began.elapsed());
        assert_eq!(all[index].reset, Some(CANCEL), "{path}");
    }
    // In the middle of a body: no half request passes for a whole one.
    let mut stream = client.upload("/body", &[]).await;
    assert!(stream.push("hello").await);
    play.two
        .wait("half a body", |all| {
            all.iter().any(|seen| seen.body == b"hello")
        })
        .await;
    let began = Instant::now();
    stream.reset(Reason::CANCEL);
    let all = play
        .two
        .wait("the reset", |all| all[2].reset.is_some())
        .await;
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
    assert!(!all[2].whole);
    // The connection goes on, on both sides.
    assert_eq!(client.get("/after").await.text(), "ok");
    assert_eq!(play.two.connections(), 1);
    play.alive("resets").await;
}

#[tokio::test]
async fn a_reset_by_the_client_closes_an_h1_upstream() {
    let play = H2Scene::around_good(slow_h1().await).await;
    let client = play.h2_to_h1().await;
    for (index, path) in ["/silent", "/begun", "/body"].into_iter().enumerate() {
        let mut stream = if path == "/body" {
            let mut stream = client.upload(path, &[]).await;
            assert!(stream.push("hello").await);
            stream
        } else {
            client.begin(path).await
        };
        let mark = if path == "/body" { "hello" } else { path };
        play.scene
            .good
            .wait("the request", |all| contains(&all.concat(), mark))
            .await;
        if path == "/begun" {
            assert_eq!(stream.head().await.expect("a head").status, 200);
        }
        let began = Instant::now();
        stream.reset(Reason::CANCEL);
        play.scene.good.wait_ended(index + 1).await;
        assert!(began.elapsed() < SECOND, "{path}: {:?}", began.elapsed());
        assert!(!contains(&play.scene.good.bytes(), "0\r\n\r\n"), "{path}");
        assert_eq!(client.get("/after").await.text(), "ok");
        // Its connection would be the next one that is used.
        play.scene.good.forget();
    }
    play.alive("resets").await;
}

#[tokio::test]
async fn peer_62_a_client_that_vanishes_takes_all_its_streams_with_it() {
    let (_release, gate) = watch::channel(false);
    let play = H2Scene::with_good(slow_h1().await, origin(&gate).await, |vault| vault).await;
    let client = play.h2().await;
    let mut first = client.begin("/begun").await;
    let _second = client.begin("/silent").await;
    let mut third = client.upload("/body", &[]).await;
    assert!(third.push("hello").await);
    assert_eq!(first.head().await.expect("a head").status, 200);
    play.two
        .wait("the requests", |all| {
            all.len() == 3 && all.iter().any(|seen| seen.body == b"hello")
        })
        .await;
    let other = play.h2_to_h1().await;
    let _stream = other.begin("/silent").await;
    play.scene
        .good
        .wait("the request", |all| contains(&all.concat(), "/silent"))
        .await;
    let began = Instant::now();
    client.vanish().await;
    other.vanish().await;
    // The script of /body reads, the others wait: each sees its own reset.
    let all = play
        .two
        .wait("the resets", |all| {
            all.iter().all(|seen| seen.reset.is_some())
        })
        .await;
    play.scene.good.wait_ended(1).await;
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
    assert!(!all.iter().any(|seen| seen.path == "/body" && seen.whole));
    play.alive("a client that vanished").await;
}

#[tokio::test]
async fn an_answer_that_the_upstream_cuts_looks_cut_and_the_others_go_on() {
    for path in ["/reset", "/short", "/long"] {
        let (release, gate) = watch::channel(false);
        let play = H2Scene::around(origin(&gate).await).await;
        let client = play.h2().await;
        let mut held = client.begin("/held").await;
        assert_eq!(held.head().await.expect("a head").status, 200);
        held.expect_piece("begun ").await;
        let mut cut = client.begin(path).await;
        // A wrong length may also be seen before anything was passed on.
        if path == "/reset" {
            assert_eq!(cut.head().await.expect("a head").status, 200, "{path}");
        }
        release.send_replace(true);
        let end = cut.answer().await;
        let failed = end.as_ref().map_or(true, |answer| answer.status == 502);
        assert!(failed, "{path}: a cut, not an end: {end:?}");
        if let Err(error) = &end {
            assert!(error.is_reset() && error.is_remote(), "{path}: {error}");
        }
        held.expect_piece("ended").await;
        held.expect_end().await;
        assert_eq!(client.get("/after").await.text(), "ok");
        play.alive(path).await;
    }
}

#[tokio::test]
async fn a_reset_that_calls_itself_no_error_is_a_cut_all_the_same() {
    let (release, gate) = watch::channel(false);
    let h2 = H2Origin::script(move |mut exchange| {
        let mut gate = gate.clone();
        async move {
            match exchange.path() {
                "/cut" => {
                    exchange.answer_head(200, &[], false);
                    exchange.send("part").await;
                    gate.wait_for(|open| *open).await.expect("the test goes on");
                    exchange.reset(Reason::NO_ERROR);
                }
                // The library resets what is left of the request with just this code.
                "/early" => exchange.answer(200, "whole").await,
                "/trailers" => {
                    exchange.answer_head(200, &[], false);
                    exchange.send("whole").await;
                    exchange.trailers(&[("x-end", "1")]);
                }
                _ => {
                    if exchange.read_all().await {
                        exchange.answer(200, "ok").await;
                    }
                }
            }
        }
    })
    .await;
    let play = H2Scene::with_good(slow_h1().await, h2, |vault| vault).await;
    let client = play.h2().await;
    let mut cut = client.begin("/cut").await;
    assert_eq!(cut.head().await.expect("a head").status, 200);
    cut.expect_piece("part").await;
    release.send_replace(true);
    let error = cut.answer().await.expect_err("a cut, not an end");
    assert!(error.is_reset() && error.is_remote(), "{error}");
    let log = play.scene.vault.audit_log();
    let lines = log
        .wait("the record", |lines| {
            lines.iter().any(|line| line["path"] == "/cut")
        })
        .await;
    let record = lines.iter().find(|line| line["path"] == "/cut");
    assert_eq!(record.expect("a record")["reason"], "upstream_cut");
    for path in ["/trailers", "/early"] {
        let mut early = client.upload(path, &[]).await;
        assert!(early.push("half").await);
        let whole = early.answer().await.expect(path);
        assert_eq!(whole.text(), "whole", "{path}");
    }
    // The other way: half a request does not pass for a whole one.
    let mut stream = client.upload("/half", &[]).await;
    assert!(stream.push("hello").await);
    let half = |all: &[H2Seen]| all.iter().position(|seen| seen.path == "/half");
    play.two
        .wait("half a body", |all| {
            half(all).is_some_and(|index| all[index].body == b"hello")
        })
        .await;
    stream.reset(Reason::NO_ERROR);
    let all = play
        .two
        .wait("the reset", |all| {
            half(all).is_some_and(|index| all[index].reset.is_some())
        })
        .await;
    assert!(!all[half(&all).expect("seen")].whole);
    let h1 = play.h2_to_h1().await;
    let mut stream = h1.upload("/half", &[]).await;
    assert!(stream.push("hello").await);
    play.scene
        .good
        .wait("half a body", |all| contains(&all.concat(), "hello"))
        .await;
    stream.reset(Reason::NO_ERROR);
    play.scene.good.wait_ended(1).await;
    assert!(!contains(&play.scene.good.bytes(), "0\r\n\r\n"));
}

#[tokio::test]
async fn an_upstream_connection_that_breaks_cuts_its_streams_only() {
    let (release, gate) = watch::channel(false);
    let play = H2Scene::around(origin(&gate).await).await;
    let (client, side) = (play.h2().await, play.h2_to_h1().await);
    let mut cut = client.begin("/drop").await;
    let mut held = client.begin("/silent").await;
    assert_eq!(cut.head().await.expect("a head").status, 200);
    play.two.wait("both", |all| all.len() == 2).await;
    release.send_replace(true);
    let error = cut.answer().await.expect_err("a cut");
    assert!(error.is_reset() && error.is_remote(), "{error}");
    // Of this one nothing had been answered: it may be sent again, or be told so.
    let told = tokio::time::timeout(SECOND, held.head()).await;
    if let Ok(Ok(answer)) = told {
        assert_eq!(answer.status, 502);
    }
    assert_eq!(client.get("/after").await.text(), "ok");
    assert_eq!(side.get("/").await.text(), "ok");
    assert_eq!(play.two.connections(), 2);
    play.alive("a broken connection").await;
}

#[tokio::test]
async fn an_h1_answer_that_is_cut_is_a_reset_on_h2() {
    let origin = Origin::cutting().await;
    let play = H2Scene::around_good(origin).await;
    let client = play.h2_to_h1().await;
    for path in ["/length", "/chunked", "/trailer", "/bad", "/until-close"] {
        let answer = client.begin(path).await.answer().await;
        let cut = match &answer {
            // Seen before anything was passed on.
            Ok(answer) => answer.status == 502,
            Err(error) => error.is_reset() && error.is_remote(),
        };
        assert!(cut, "{path}: {answer:?}");
        assert_eq!(client.get("/after").await.text(), "ok", "{path}");
    }
    let answer = client.begin("/whole").await.answer().await;
    assert_eq!(answer.expect("an answer").text(), "hello");
    play.alive("cut answers").await;
}

#[tokio::test]
async fn an_upstream_that_drains_ends_its_streams_and_gets_no_new_ones() {
    let (release, gate) = watch::channel(false);
    let play = H2Scene::around(origin(&gate).await).await;
    let client = play.h2().await;
    let mut stream = client.begin("/drain").await;
    assert_eq!(stream.head().await.expect("a head").status, 200);
    stream.expect_piece("begun ").await;
    // The GOAWAY overtakes nothing: a request that comes later goes elsewhere, or again.
    for path in ["/1", "/2", "/3"] {
        assert_eq!(client.get(path).await.text(), "ok");
    }
    release.send_replace(true);
    stream.expect_piece("ended").await;
    stream.expect_end().await;
    play.two.wait_ended(1).await;
    assert!(play.two.connections() >= 2);
    assert_eq!(client.get("/after").await.text(), "ok");
}

#[tokio::test]
async fn a_deleted_session_ends_all_streams_at_once() {
    let (_release, gate) = watch::channel(false);
    let play = H2Scene::with_good(slow_h1().await, origin(&gate).await, |vault| vault).await;
    let mut client = play.h2().await;
    let mut other = play.h2_to_h1().await;
    let mut idle = play.scene.workload.h2("side.example.com:443").await;
    assert_eq!(idle.get("/").await.status, 200);
    let mut begun = client.begin("/begun").await;
    assert_eq!(begun.head().await.expect("a head").status, 200);
    let mut silent = other.begin("/silent").await;
    play.scene
        .good
        .wait("the request", |all| contains(&all.concat(), "/silent"))
        .await;
    let id = &play.scene.session.session_id;
    let began = Instant::now();
    let deleted = play.scene.vault.sdk().delete_session(id).await;
    deleted.expect("deleted");
    for client in [&mut client, &mut other, &mut idle] {
        let _ended = client.wait_closed().await;
    }
    assert!(silent.head().await.is_err(), "no answer after the end");
    assert!(begun.answer().await.is_err(), "a cut, not an end");
    play.two.wait_ended(1).await;
    play.scene.good.wait_ended(1).await;
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
    let refused = play.scene.workload.refused("two.example.com:443").await;
    assert_eq!(refused.status, 407);
}

#[tokio::test]
async fn a_patch_changes_the_very_next_stream() {
    let play = H2Scene::new().await;
    let mut client = play.h2().await;
    let token = play.scene.token().to_owned();
    let fields = [("x-key", token.as_str())];
    let (sdk, id) = (play.scene.vault.sdk(), &play.scene.session.session_id);
    client.ask(("GET", "/1"), &fields, b"").await;
    let rotate = UpdateSession::new().secret("EXAMPLE_KEY", "rotated-value-0123456789");
    sdk.update_session(id, &rotate).await.expect("a patch");
    client.ask(("GET", "/2"), &fields, b"").await;
    let unscoped = UpdateSession::new().secret_hosts([GOOD]);
    sdk.update_session(id, &unscoped).await.expect("a patch");
    client.ask(("GET", "/3"), &fields, b"").await;
    let seen = play.two.requests();
    assert_eq!(seen[0].all("x-key"), [crate::support::REAL]);
    assert_eq!(seen[1].all("x-key"), ["rotated-value-0123456789"]);
    assert_eq!(seen[2].all("x-key"), [token.as_str()]);
    // A host that leaves the policy takes its tunnels with it.
    let _open = client.upload("/open", &[]).await;
    play.two.wait("the request", |all| all.len() == 4).await;
    let narrow = UpdateSession::new().allowed_egress([GOOD, SIDE]);
    sdk.update_session(id, &narrow).await.expect("a patch");
    let _ended = client.wait_closed().await;
    let log = play.scene.vault.audit_log();
    let cut = |line: &serde_json::Value| {
        line["path"] == "/open" && line["decision"] == "aborted" && line["reason"] == "tunnel_cut"
    };
    log.wait("its record", |lines| lines.iter().any(cut)).await;
    let refused = play.scene.workload.refused(&format!("{TWO}:443")).await;
    assert_eq!(refused.status, 403);
}

#[tokio::test]
async fn a_drain_lets_streams_in_flight_finish() {
    let (release, gate) = watch::channel(false);
    let mut play = H2Scene::around(origin(&gate).await).await;
    let mut client = play.h2().await;
    let mut idle = play.h2_to_h1().await;
    assert_eq!(idle.get("/").await.text(), "ok");
    let mut held = client.begin("/held").await;
    assert_eq!(held.head().await.expect("a head").status, 200);
    held.expect_piece("begun ").await;
    let drained = play.scene.vault.drain();
    // An idle connection ends in good order and at once, without waiting for the busy one.
    idle.wait_closed().await.expect("a GOAWAY in good order");
    release.send_replace(true);
    held.expect_piece("ended").await;
    held.expect_end().await;
    client.wait_closed().await.expect("a GOAWAY in good order");
    within("the drain", drained).await.expect("drained");
}
