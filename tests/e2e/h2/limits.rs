//! Limits on HTTP/2 connections, scaled down: what waits for nothing ends, what is at work stays.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use h2::Reason;
use oshu_vault::config::Limits;
use serde_json::json;
use tokio::sync::watch;

use super::OK;
use crate::support::{H2Origin, H2Scene, Origin, VaultBuilder, contains};

/// The limit under test.
const SHORT: Duration = Duration::from_millis(400);
/// Far above the limit under test, and far below the defaults.
const SOON: Duration = Duration::from_secs(5);

fn limited(change: fn(&mut Limits)) -> impl FnOnce(VaultBuilder) -> VaultBuilder {
    move |vault| vault.config(|config| change(&mut config.limits))
}

#[tokio::test]
async fn idle_connections_end_and_silent_streams_do_not() {
    let (release, gate) = watch::channel(false);
    let waiting = gate.clone();
    let h2 = H2Origin::script(move |mut exchange| {
        let mut gate = waiting.clone();
        async move {
            exchange.read_all().await;
            if exchange.path() == "/wait" {
                gate.wait_for(|open| *open).await.expect("the test goes on");
            }
            if exchange.path() == "/stream" {
                exchange.answer_head(200, &[], false);
                exchange.send("begun").await;
                gate.wait_for(|open| *open).await.expect("the test goes on");
            } else {
                exchange.answer_head(200, &[], false);
            }
            exchange.end("ok").await;
        }
    })
    .await;
    let h1 = Origin::script(move |request, conn| {
        let mut gate = gate.clone();
        async move {
            if request.line().contains("/wait") {
                gate.wait_for(|open| *open).await.expect("the test goes on");
            }
            conn.send(OK).await;
        }
    })
    .await;
    let limit = limited(|limits| {
        limits.idle_timeout = SHORT;
        limits.first_byte_timeout = SHORT;
    });
    let play = H2Scene::with_good(h1, h2, limit).await;
    let (busy, busy_h1) = (play.h2().await, play.h2_to_h1().await);
    let waiting = busy.begin("/wait").await;
    let mut streaming = busy.begin("/stream").await;
    let waiting_h1 = busy_h1.begin("/wait").await;
    assert_eq!(streaming.head().await.expect("a head").status, 200);
    streaming.expect_piece("begun").await;
    for _ in 0..2 {
        let mut idle = play.h2().await;
        let mut unused = play.h2().await;
        assert_eq!(idle.get("/").await.text(), "ok");
        let began = Instant::now();
        idle.wait_closed().await.expect("a GOAWAY in good order");
        let took = began.elapsed();
        assert!(took >= SHORT * 8 / 10 && took < SOON, "{took:?}");
        let _ended = unused.wait_closed().await;
        assert!(began.elapsed() < SOON, "one that was never used");
    }
    // Two idle lifetimes have passed by now.
    release.send_replace(true);
    assert_eq!(waiting.answer().await.expect("an answer").text(), "ok");
    streaming.expect_piece("ok").await;
    let answer = waiting_h1.answer().await.expect("an answer");
    assert_eq!(answer.text(), "ok");
    play.alive("idleness").await;
}

#[tokio::test]
async fn case_76_clients_that_take_nothing_stop_the_upstream_and_are_not_waited_for() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let origin = H2Origin::script(move |mut exchange| {
        let sent = Arc::clone(&counted);
        async move {
            if exchange.path() == "/alive" {
                return exchange.answer(200, "ok").await;
            }
            exchange.answer_head(200, &[], false);
            while exchange.send(vec![b'x'; 64 * 1024]).await {
                sent.fetch_add(64 * 1024, Ordering::SeqCst);
            }
        }
    })
    .await;
    let play = H2Scene::with(origin, limited(|limits| limits.stall_timeout = SHORT)).await;
    let client = play.h2().await;
    let mut streams = Vec::new();
    for _ in 0..100 {
        let mut stream = client.begin("/endless").await;
        assert_eq!(stream.head().await.expect("a head").status, 200);
        streams.push(stream);
    }
    let log = play.scene.vault.audit_log();
    let stalled = |line: &serde_json::Value| {
        line["event"] == "exchange" && line["reason"] == "stalled" && line["decision"] == "aborted"
    };
    log.wait("the stalls", |lines| {
        lines.iter().filter(|line| stalled(line)).count() == 100
    })
    .await;
    for stream in &mut streams {
        stream.wait_reset().await;
    }
    // Its own windows and buffers lie between, and nothing that grows with the answer.
    let sent = sent.load(Ordering::SeqCst);
    assert!(sent < 32 << 20, "{sent} bytes were taken from the upstream");
    play.alive("clients that take nothing").await;
}

#[tokio::test]
async fn an_upstream_that_takes_nothing_stops_the_client() {
    let (release, gate) = watch::channel(false);
    let origin = H2Origin::script(move |mut exchange| {
        let mut gate = gate.clone();
        async move {
            if exchange.path() == "/slow" {
                gate.wait_for(|open| *open).await.expect("the test goes on");
            }
            exchange.read_all().await;
            exchange.answer(200, "ok").await;
        }
    })
    .await;
    let play = H2Scene::around(origin).await;
    let client = play.h2().await;
    let mut stream = client.upload("/slow", &[]).await;
    let mut pushed = 0;
    // Until the windows are full, which they are soon.
    loop {
        let piece = vec![b'x'; 64 * 1024];
        let push = stream.push(piece);
        if tokio::time::timeout(SHORT, push).await.is_err() {
            break;
        }
        pushed += 64 * 1024;
        assert!(pushed < 32 << 20, "nothing holds the client back");
    }
    // Other streams go on beside it.
    assert_eq!(client.get("/beside").await.text(), "ok");
    release.send_replace(true);
    assert!(stream.end("").await);
    assert_eq!(stream.answer().await.expect("an answer").text(), "ok");
    let seen = play.two.requests().remove(0);
    assert!(
        seen.whole && seen.body.len() >= pushed,
        "{}",
        seen.body.len()
    );
}

#[tokio::test]
async fn an_upstream_that_takes_nothing_is_not_waited_for() {
    let h2 = H2Origin::script(|mut exchange| async move {
        if exchange.path() == "/slow" {
            exchange.wait_reset().await;
            return;
        }
        exchange.read_all().await;
        exchange.answer(200, "ok").await;
    })
    .await;
    let h1 = Origin::raw(|conn| async move {
        while let Some(head) = conn.read_head().await {
            if head.contains("/slow") {
                // It reads no more, and holds the connection open.
                return std::future::pending().await;
            }
            conn.send(OK).await;
        }
    })
    .await;
    let limit = limited(|limits| limits.stall_timeout = SHORT);
    let play = H2Scene::with_good(h1, h2, limit).await;
    for (index, client) in [play.h2().await, play.h2_to_h1().await].iter().enumerate() {
        let mut stream = client.upload("/slow", &[]).await;
        // Far more than all buffers on the way can hold.
        for _ in 0..400 {
            if !stream.push(vec![b'x'; 64 * 1024]).await {
                break;
            }
        }
        let log = play.scene.vault.audit_log();
        let slow = |line: &serde_json::Value| line["path"] == "/slow";
        let lines = log.wait("the stall", |lines| {
            lines.iter().filter(|line| slow(line)).count() == index + 1
        });
        let lines = lines.await;
        for record in lines.iter().filter(|line| slow(line)) {
            // Told in time as a failure, where there was still somebody to tell.
            let aborted = record["decision"] == "aborted" && record["reason"] == "stalled";
            let failed = record["decision"] == "failed" && record["status"] == 502;
            assert!(aborted || failed, "{record}");
        }
    }
    play.alive("upstreams that take nothing").await;
}

#[tokio::test]
async fn a_slow_answer_to_a_whole_request_is_waited_for() {
    let origin = H2Origin::script(|mut exchange| async move {
        exchange.read_all().await;
        if exchange.path() == "/slow" {
            tokio::time::sleep(SHORT * 3).await;
        }
        exchange.answer_head(200, &[], false);
        exchange.send("o").await;
        if exchange.path() == "/slow" {
            tokio::time::sleep(SHORT * 3).await;
        }
        exchange.end("k").await;
    })
    .await;
    let limit = limited(|limits| limits.stall_timeout = SHORT);
    let play = H2Scene::with(origin, limit).await;
    let client = play.h2().await;
    let body = vec![b'x'; 100_000];
    let answer = client.ask(("POST", "/slow"), &[], &body).await;
    assert_eq!((answer.status, answer.text()), (200, "ok"));
    play.alive("a slow answer").await;
}

#[tokio::test]
async fn a_request_goes_up_while_its_answer_is_not_taken() {
    let h1 = Origin::raw(|conn| async move {
        while let Some(head) = conn.read_head().await {
            if head.contains("/both") {
                let answer = "HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n";
                conn.send(answer).await;
                conn.send(vec![b'y'; 200_000]).await;
                return conn.wait_end().await;
            }
            conn.send(OK).await;
        }
    })
    .await;
    let play = H2Scene::around_good(h1).await;
    let client = play.h2_to_h1().await;
    let mut stream = client.upload("/both", &[]).await;
    assert!(stream.push("begun").await);
    assert_eq!(stream.head().await.expect("a head").status, 200);
    for mark in ["first-mark", "second-mark"] {
        // Time for the answer to fill the window of the stream.
        tokio::time::sleep(SHORT).await;
        assert!(stream.push(mark).await);
        let arrived = |all: &[Vec<u8>]| contains(&all.concat(), mark);
        play.scene.good.wait(mark, arrived).await;
    }
    let answer = stream.answer().await.expect("an answer");
    assert_eq!(answer.body.len(), 200_000);
    play.alive("an answer that was taken late").await;
}

#[tokio::test]
async fn what_is_left_of_a_request_goes_with_its_exchange() {
    let (release, gate) = watch::channel(false);
    let origin = H2Origin::script(move |mut exchange| {
        let mut gate = gate.clone();
        async move {
            if exchange.path() == "/alive" {
                return exchange.answer(200, "ok").await;
            }
            gate.wait_for(|open| *open).await.expect("the test goes on");
            if exchange.path() == "/answered" {
                // Nothing of the request is taken, so that it fills all windows on its way.
                exchange.answer(200, "ok").await;
            }
            exchange.wait_reset().await;
        }
    })
    .await;
    let play = H2Scene::around(origin).await;
    let client = play.h2().await;
    let mut streams = Vec::new();
    for path in ["/answered", "/left"] {
        let mut stream = client.upload(path, &[]).await;
        while tokio::time::timeout(SHORT, stream.push(vec![b'x'; 64 * 1024]))
            .await
            .is_ok_and(|taken| taken)
        {}
        streams.push(stream);
    }
    release.send_replace(true);
    let left = streams.pop();
    let answered = streams.pop().expect("two streams");
    assert_eq!(answered.answer().await.expect("an answer").text(), "ok");
    left.expect("two streams").reset(Reason::CANCEL);
    let all = play
        .two
        .wait("both resets", |all| {
            all.iter().all(|seen| seen.reset.is_some())
        })
        .await;
    let codes: Vec<_> = all.iter().map(|seen| seen.reset).collect();
    assert_eq!(codes, [Some(8), Some(8)], "CANCEL");
    play.alive("uploads that nobody takes").await;
}

#[tokio::test]
async fn case_73_a_client_that_gives_up_stream_after_stream_is_cut_off() {
    let origin = H2Origin::script(|mut exchange| async move {
        if exchange.path() == "/alive" {
            return exchange.answer(200, "ok").await;
        }
        exchange.wait_reset().await;
    })
    .await;
    let play = H2Scene::around(origin).await;
    let mut client = play.h2().await;
    for index in 0..101 {
        let mut stream = client.begin("/wasted").await;
        play.two.wait("the request", |all| all.len() > index).await;
        stream.reset(Reason::CANCEL);
    }
    let _ended = client.wait_closed().await;
    play.alive("a hundred streams given up").await;
}

#[tokio::test]
async fn case_55_heads_over_the_limit_are_refused() {
    let play = H2Scene::new().await;
    let client = play.h2().await;
    let value = "v".repeat(1000);
    let names: Vec<String> = (0..80).map(|index| format!("x-{index}")).collect();
    let lines = |count: usize| -> Vec<(&str, &str)> {
        let names = names[..count].iter();
        names.map(|name| (name.as_str(), value.as_str())).collect()
    };
    let answer = client.ask(("GET", "/fits"), &lines(50), b"").await;
    assert_eq!(answer.status, 200);
    assert_eq!(play.two.request().fields.len(), 50);
    match client.try_ask(("GET", "/over"), &lines(80), b"").await {
        Ok(answer) => assert_eq!(answer.status, 431, "{answer:?}"),
        Err(error) => assert!(error.is_reset(), "{error}"),
    }
    play.two.expect_no_more_than(1, "a head over the limit");
    assert_eq!(client.get("/after").await.status, 200);
    play.alive("a large head").await;
}

#[tokio::test]
async fn an_h2_upstream_with_an_endless_head_is_502() {
    let origin = H2Origin::script(|mut exchange| async move {
        exchange.read_all().await;
        if exchange.path() != "/large" {
            return exchange.answer(200, "ok").await;
        }
        let value = "v".repeat(4000);
        let names: Vec<String> = (0..40).map(|index| format!("x-{index}")).collect();
        let fields = names.iter().map(|name| (name.as_str(), value.as_str()));
        exchange.answer_head(200, &fields.collect::<Vec<_>>(), true);
    })
    .await;
    let play = H2Scene::around(origin).await;
    let client = play.h2().await;
    let answer = client.get("/large").await;
    assert_eq!(answer.status, 502, "{}", answer.fields.len());
    assert!(contains(&answer.body, answer.code()));
    assert_eq!(client.get("/after").await.text(), "ok");
    play.alive("a large answer").await;
}

#[tokio::test]
async fn records_say_why_an_idle_connection_ended() {
    let play = H2Scene::with(
        H2Origin::echo_ok().await,
        limited(|limits| limits.idle_timeout = SHORT),
    )
    .await;
    let mut client = play.h2().await;
    assert_eq!(client.get("/").await.text(), "ok");
    client.wait_closed().await.expect("a GOAWAY in good order");
    let lines = play.scene.vault.audit_log();
    let lines = lines
        .wait("the tunnel's record", |lines| {
            lines.iter().any(|line| line["event"] == "tunnel")
        })
        .await;
    let tunnel = lines.iter().find(|line| line["event"] == "tunnel");
    assert_eq!(tunnel.expect("a record")["decision"], json!("allowed"));
}
