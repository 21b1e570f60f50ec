//! Connections to h2 upstreams: shared within a session, never across, and what is sent again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use h2::Reason;
use tokio::sync::Barrier;

use crate::support::{GOOD, H2Origin, H2Scene, Origin, OriginConn, Scene, TWO, within};

#[tokio::test]
async fn a_hundred_streams_share_one_upstream_connection() {
    let barrier = Arc::new(Barrier::new(100));
    let origin = H2Origin::script(move |mut exchange| {
        let barrier = Arc::clone(&barrier);
        async move {
            exchange.read_all().await;
            if exchange.path() == "/all" {
                // None is answered before all are there.
                barrier.wait().await;
            }
            exchange.answer(200, exchange.path().to_owned()).await;
        }
    })
    .await;
    let play = H2Scene::around(origin).await;
    // One connection first, so that a hundred do not race for it.
    let client = Arc::new(play.h2().await);
    assert_eq!(client.get("/first").await.text(), "/first");
    let mut streams = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let client = Arc::clone(&client);
        streams.spawn(async move { client.get("/all").await });
    }
    let answers = within("a hundred answers", streams.join_all()).await;
    assert!(answers.iter().all(|answer| answer.text() == "/all"));
    assert_eq!(play.two.connections(), 1);
    // Another tunnel of the session comes the same way.
    let again = play.h2().await;
    assert_eq!(again.get("/again").await.text(), "/again");
    assert_eq!(play.two.connections(), 1);
}

#[tokio::test]
async fn sessions_share_no_upstream_connection() {
    let play = H2Scene::new().await;
    assert_eq!(play.h2().await.get("/1").await.text(), "ok");
    let other = H2Scene::open(Scene::request());
    let other = play.scene.vault.session(&other).await;
    let workload = play.scene.vault.workload(&other);
    let second = workload.h2(&format!("{TWO}:443")).await;
    assert_eq!(second.get("/2").await.text(), "ok");
    assert_eq!(play.h2().await.get("/3").await.text(), "ok");
    let seen = play.two.requests();
    let conns: Vec<_> = seen.iter().map(|seen| seen.conn).collect();
    assert_eq!((conns, play.two.connections()), (vec![0, 1, 0], 2));
}

#[tokio::test]
async fn more_streams_than_the_upstream_allows_are_all_answered() {
    let origin = H2Origin::set_up(
        |settings| {
            settings.max_concurrent_streams(3);
        },
        |mut exchange| async move {
            exchange.read_all().await;
            exchange.answer(200, "ok").await;
        },
    )
    .await;
    let play = H2Scene::around(origin).await;
    let client = Arc::new(play.h2().await);
    // Its limit is known once it has spoken.
    assert_eq!(client.get("/first").await.text(), "ok");
    let mut streams = tokio::task::JoinSet::new();
    for index in 0..40 {
        let client = Arc::clone(&client);
        let body = vec![b'x'; 1000 * index];
        streams.spawn(async move { client.ask(("POST", "/"), &[], &body).await });
    }
    let answers = within("all answers", streams.join_all()).await;
    assert!(
        answers.iter().all(|answer| answer.text() == "ok"),
        "{answers:?}"
    );
    assert_eq!(play.two.requests().len(), 41, "each was sent once");
}

#[tokio::test]
async fn a_stream_that_was_refused_is_sent_again_a_bounded_number_of_times() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let origin = H2Origin::script(move |mut exchange| {
        let number = counted.fetch_add(1, Ordering::SeqCst);
        async move {
            let always = exchange.path() == "/never";
            let once = exchange.path() == "/once" && number == 0;
            if always || once {
                return exchange.reset(Reason::REFUSED_STREAM);
            }
            exchange.read_all().await;
            exchange.answer(200, "ok").await;
        }
    })
    .await;
    let play = H2Scene::around(origin).await;
    let client = play.h2().await;
    // It says of itself that it was not processed (RFC 9113 §8.7), so any method may go again.
    for method in ["GET", "POST"] {
        count.store(0, Ordering::SeqCst);
        let answer = client.ask((method, "/once"), &[], b"").await;
        assert_eq!((answer.status, answer.text()), (200, "ok"), "{method}");
        assert_eq!(count.load(Ordering::SeqCst), 2, "{method}");
    }
    // What cannot be sent again is told to the client, which may do so itself.
    for (path, body) in [
        ("/never", &b""[..]),
        ("/never", b"body"),
        ("/once", b"body"),
    ] {
        count.store(0, Ordering::SeqCst);
        let refused = client.try_ask(("POST", path), &[], body).await;
        let reason = refused.expect_err("a reset").reason();
        assert_eq!(reason, Some(Reason::REFUSED_STREAM), "{path}");
        let attempts = count.load(Ordering::SeqCst);
        let most = if body.is_empty() { 3 } else { 1 };
        assert!(
            (1..=most).contains(&attempts),
            "{path}: {attempts} attempts"
        );
    }
    assert_eq!(client.get("/after").await.text(), "ok");
    assert_eq!(play.two.connections(), 1, "a refusal is no reason to dial");
    play.alive("refused streams").await;
}

#[tokio::test]
async fn a_stream_that_may_have_been_processed_is_not_sent_again() {
    let origin = H2Origin::script(|mut exchange| async move {
        match exchange.path() {
            "/reset" => return exchange.reset(Reason::INTERNAL_ERROR),
            // What is left of the stream stays until its connection is gone.
            "/drop" => {
                exchange.drop_connection();
                exchange.wait_reset().await;
                return;
            }
            "/away" => {
                exchange.go_away_with(Reason::INTERNAL_ERROR);
                exchange.wait_reset().await;
                return;
            }
            _ => {}
        }
        exchange.read_all().await;
        exchange.answer(200, "ok").await;
    })
    .await;
    let play = H2Scene::around(origin).await;
    let client = play.h2().await;
    for path in ["/reset", "/drop", "/away"] {
        for body in [&b""[..], b"body"] {
            let before = play.two.requests().len();
            // A reset travels on as it is; anything else is told.
            match client.try_ask(("POST", path), &[], body).await {
                Err(error) => {
                    assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR), "{path}");
                    assert!(path == "/reset" && error.is_reset(), "{path}: {error}");
                }
                Ok(answer) => assert_eq!((answer.status, answer.code().is_empty()), (502, false)),
            }
            let seen = play.two.requests();
            let sent = seen[before..].iter().filter(|seen| seen.path == path);
            assert_eq!(sent.count(), 1, "{path}");
            assert_eq!(client.get("/after").await.text(), "ok", "{path}");
        }
        play.alive(path).await;
    }
}

/// One frame, with its head.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len())
        .expect("a length")
        .to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [head.as_slice(), payload].concat()
}

const END_STREAM_AND_HEADERS: u8 = 5;
/// `:status: 200` in the static table (RFC 7541, appendix A).
const STATUS_200: &[u8] = &[0x88];

/// Speaks just enough HTTP/2 to send each request's stream where it wants: GOAWAY on the first
/// connection that says nothing was processed, 200 on the later ones.
async fn turns_away(conn: OriginConn) -> Option<()> {
    conn.read_exactly(24).await?;
    conn.send(frame(4, 0, 0, &[])).await;
    loop {
        let head = conn.read_exactly(9).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        conn.read_exactly(usize::try_from(length).expect("small"))
            .await?;
        match (head[3], head[4] & 1) {
            (4, 0) => conn.send(frame(4, 1, 0, &[])).await,
            (1, _) if conn.index() == 0 => {
                // Last stream 0, NO_ERROR.
                conn.send(frame(7, 0, 0, &[0; 8])).await;
                conn.close().await;
            }
            (1, _) => {
                let answer = frame(1, END_STREAM_AND_HEADERS, stream, STATUS_200);
                conn.send(answer).await;
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_goaway_that_left_the_stream_out_is_followed_by_another_connection() {
    for method in ["GET", "POST", "DELETE"] {
        let origin = Origin::builder()
            .alpn(&["h2"])
            .raw(|conn| async move {
                turns_away(conn).await;
            })
            .await;
        let scene = Scene::around(origin).await;
        let client = scene.workload.h2("good.example.com:443").await;
        let answer = client.ask((method, "/"), &[], b"").await;
        assert_eq!(answer.status, 200, "{method}: {answer:?}");
        assert_eq!(scene.good.connections(), 2, "{method}");
        let answer = client.ask((method, "/again"), &[], b"").await;
        assert_eq!(
            (answer.status, scene.good.connections()),
            (200, 2),
            "{method}"
        );
    }
    // One with a body is not kept for that; its client is told that it may send it again.
    let origin = Origin::builder()
        .alpn(&["h2"])
        .raw(|conn| async move {
            turns_away(conn).await;
        })
        .await;
    let scene = Scene::around(origin).await;
    let client = scene.workload.h2("good.example.com:443").await;
    let refused = client.try_ask(("POST", "/"), &[], b"body").await;
    let reason = refused.expect_err("a reset").reason();
    assert_eq!(reason, Some(Reason::REFUSED_STREAM));
    assert_eq!(client.get("/after").await.status, 200);
}

#[tokio::test]
async fn an_answer_that_breaks_a_rule_of_http2_is_502_and_not_asked_for_again() {
    // `connection: x` behind the status: a literal that is not indexed.
    const BAD: &[u8] = b"\x88\x00\x0aconnection\x01x";
    for method in ["GET", "POST"] {
        let origin = Origin::builder()
            .alpn(&["h2"])
            .raw(|conn| async move {
                conn.read_exactly(24).await;
                conn.send(frame(4, 0, 0, &[])).await;
                while let Some(head) = conn.read_exactly(9).await {
                    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                    let length = usize::try_from(length).expect("small");
                    conn.read_exactly(length).await;
                    match (head[3], head[4] & 1) {
                        (4, 0) => conn.send(frame(4, 1, 0, &[])).await,
                        (1, _) => conn.send(frame(1, END_STREAM_AND_HEADERS, 1, BAD)).await,
                        _ => {}
                    }
                }
            })
            .await;
        let scene = Scene::around(origin).await;
        let client = scene.workload.h2("good.example.com:443").await;
        let answer = client.ask((method, "/"), &[], b"").await;
        assert_eq!(answer.status, 502, "{method}: {answer:?}");
        assert_eq!(scene.good.connections(), 1, "{method}");
    }
}

#[tokio::test]
async fn an_upstream_that_agrees_on_h2_and_speaks_something_else_is_502() {
    let origin = Origin::builder()
        .alpn(&["h2"])
        .raw(|conn| async move {
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .await;
            conn.close().await;
        })
        .await;
    let scene = Scene::around(origin).await;
    let client = scene.workload.h2(&format!("{GOOD}:443")).await;
    let answer = client.get("/").await;
    assert_eq!(answer.status, 502, "{answer:?}");
    answer.code();
}
