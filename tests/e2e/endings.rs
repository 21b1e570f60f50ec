//! Endings that are not the end of an answer: aborts, cuts, early answers, connections gone stale.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Mutex, mpsc};

use crate::support::{GOOD, Origin, Scene, contains, show, within};

const TARGET: &str = "good.example.com:443";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {GOOD}\r\n\r\n")
}

#[tokio::test]
async fn case_69_a_client_that_leaves_takes_the_upstream_s_connection_with_it() {
    // What the origin has sent by the time the client leaves.
    for sent in [
        "",
        "HTTP/1.1 103 Early Hints\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
    ] {
        for polite in [true, false] {
            let origin = Origin::script(move |request, conn| async move {
                if request.line().contains("/alive") {
                    return conn.send(OK).await;
                }
                conn.send(sent).await;
                conn.wait_end().await;
            })
            .await;
            let scene = Scene::around(origin).await;
            let mut conn = scene.workload.connect(TARGET).await;
            conn.send(get("/")).await;
            scene
                .good
                .wait("the request", |all| contains(&all.concat(), "GET / "))
                .await;
            conn.take(sent.len()).await;
            if polite {
                conn.finish().await;
            } else {
                drop(conn);
            }
            scene.good.wait_ended(1).await;
            scene.alive(sent).await;
        }
    }
}

#[tokio::test]
async fn peer_62_a_client_that_leaves_in_the_middle_of_its_body_sends_no_request() {
    for framing in [
        "Content-Length: 10\r\n\r\nhello",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ] {
        let answered = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&answered);
        let origin = Origin::script(move |_request, conn| {
            count.fetch_add(1, Ordering::SeqCst);
            async move { conn.send(OK).await }
        })
        .await;
        let scene = Scene::around(origin).await;
        let mut conn = scene.workload.connect(TARGET).await;
        conn.send(format!("POST / HTTP/1.1\r\nHost: {GOOD}\r\n{framing}"))
            .await;
        scene
            .good
            .wait("half a body", |all| contains(&all.concat(), "hello"))
            .await;
        drop(conn);
        scene.good.wait_ended(1).await;
        assert_eq!(answered.load(Ordering::SeqCst), 0, "half a request is none");
        scene.alive("half a body").await;
    }
}

#[tokio::test]
async fn a_cut_answer_looks_cut_to_the_client() {
    let origin = Origin::cutting().await;
    let scene = Scene::unscrubbed(origin).await;
    for (path, whole) in [
        ("length", false),
        ("chunked", false),
        ("chunk", false),
        ("trailer", false),
        ("until-close", false),
        ("whole", true),
    ] {
        let mut conn = scene.workload.connect(TARGET).await;
        conn.send(get(&format!("/{path}"))).await;
        let head = conn.answer_head().await;
        assert_eq!(head.status, 200, "{path}");
        let (rest, end) = conn.rest_and_end().await;
        assert!(contains(&rest, "hello"), "{path}: {}", show(&rest));
        assert!(!rest.ends_with(b"0\r\n\r\n"), "{path}: {}", show(&rest));
        assert_eq!(
            end.is_ok(),
            whole,
            "{path}: an end in good order means a whole answer"
        );
        scene.alive(path).await;
    }
}

#[tokio::test]
async fn a_malformed_chunk_in_the_middle_of_an_answer_cuts_it() {
    let (release, gate) = mpsc::channel::<()>(1);
    let gate = Arc::new(Mutex::new(gate));
    let origin = Origin::script(move |request, conn| {
        let gate = Arc::clone(&gate);
        async move {
            if request.line().contains("/alive") {
                return conn.send(OK).await;
            }
            conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
                .await;
            gate.lock().await.recv().await.expect("the test goes on");
            conn.send("0x5\r\nsmugg\r\n0\r\n\r\n").await;
        }
    })
    .await;
    let scene = Scene::around(origin).await;
    let mut conn = scene.workload.connect(TARGET).await;
    conn.send(get("/")).await;
    conn.take_until(b"hello\r\n").await;
    release.send(()).await.expect("the origin goes on");
    let (rest, end) = conn.rest_and_end().await;
    assert!(rest.is_empty(), "{}", show(&rest));
    assert!(end.is_err(), "a cut, not an end");
    scene.good.wait_ended(1).await;
    scene.alive("a bad chunk").await;
}

#[tokio::test]
async fn an_answer_that_comes_before_the_body_is_through_reaches_the_client() {
    let origin = Origin::raw(|conn| async move {
        if conn
            .read_head()
            .await
            .is_some_and(|head| head.contains("/alive"))
        {
            return conn.send(OK).await;
        }
        conn.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
            .await;
        conn.close().await;
    })
    .await;
    let scene = Scene::around(origin).await;
    let mut conn = scene.workload.connect(TARGET).await;
    let head = format!("POST / HTTP/1.1\r\nHost: {GOOD}\r\nContent-Length: 50000000\r\n\r\n");
    conn.send([head.as_bytes(), &[b'x'; 10_000]].concat()).await;
    let answer = conn.answer().await;
    assert_eq!((answer.status, answer.text()), (413, "no"));
    // The rest of the body is of no more use, and must not be read as a request.
    let _taken = conn.try_send(get("/smug")).await;
    conn.expect_end().await;
    assert!(!contains(&scene.good.bytes(), "smug"));
    scene.alive("an early answer").await;
}

#[tokio::test]
async fn an_early_answer_reaches_a_client_that_goes_on_sending() {
    // How the origin behaves behind its answer: it reads on, it ends its side, or it slams the door.
    for manner in ["reads", "ends", "slams"] {
        let origin = Origin::raw(move |conn| async move {
            if conn
                .read_head()
                .await
                .is_some_and(|head| head.contains("/alive"))
            {
                return conn.send(OK).await;
            }
            // It answers once and says so: no later request may come this way.
            let answer = "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\n\
                          Content-Length: 2\r\n\r\nno";
            conn.send(answer).await;
            match manner {
                "reads" => {}
                "ends" => conn.close().await,
                _ => conn.abort().await,
            }
        })
        .await;
        let scene = Scene::around(origin).await;
        let mut conn = scene.workload.connect(TARGET).await;
        let head = format!("POST / HTTP/1.1\r\nHost: {GOOD}\r\nContent-Length: 4000000\r\n\r\n");
        conn.send(head).await;
        for _ in 0..40 {
            if conn.try_send(vec![b'x'; 100_000]).await.is_err() {
                break;
            }
        }
        let answer = conn.answer().await;
        // Where the origin resets the connection, its answer may be lost on the way to us.
        let expected: &[u16] = if manner == "slams" {
            &[413, 502]
        } else {
            &[413]
        };
        assert!(
            expected.contains(&answer.status),
            "{manner}: {}",
            answer.head
        );
        scene.alive(manner).await;
    }
}

/// An origin whose first connection answers once and then closes at the next request.
async fn stale(answers_later: bool) -> Origin {
    Origin::raw(move |conn| async move {
        let mut first = true;
        while conn.read_request().await.is_some() {
            if (first && conn.index() == 0) || (answers_later && conn.index() > 0) {
                conn.send(OK).await;
            } else {
                return conn.abort().await;
            }
            first = false;
        }
    })
    .await
}

#[tokio::test]
async fn peer_64_a_stale_connection_is_tried_again_once_and_only_where_that_is_safe() {
    for (request, status, connections) in [
        (get("/2"), 200, 2),
        (format!("HEAD /2 HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"), 200, 2),
        (
            format!("DELETE /2 HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"),
            200,
            2,
        ),
        (format!("POST /2 HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"), 502, 1),
        (
            format!("POST /2 HTTP/1.1\r\nHost: {GOOD}\r\nContent-Length: 2\r\n\r\nab"),
            502,
            1,
        ),
        (format!("PATCH /2 HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"), 502, 1),
        (
            format!("PUT /2 HTTP/1.1\r\nHost: {GOOD}\r\nContent-Length: 2\r\n\r\nab"),
            502,
            1,
        ),
        (
            format!("GET /2 HTTP/1.1\r\nHost: {GOOD}\r\nContent-Length: 2\r\n\r\nab"),
            502,
            1,
        ),
    ] {
        let scene = Scene::around(stale(true).await).await;
        assert_eq!(scene.ask(GOOD, get("/1")).await.status, 200);
        let mut conn = scene.workload.connect(TARGET).await;
        conn.send(&request).await;
        let answer = if request.starts_with("HEAD") {
            conn.answer_to_head().await
        } else {
            conn.answer().await
        };
        assert_eq!(answer.status, status, "{request}");
        assert_eq!(scene.good.connections(), connections, "{request}");
        if status == 502 {
            assert_eq!(answer.code(), "http_response_incomplete", "{request}");
        } else {
            assert!(
                scene.good.received()[1].starts_with(request.as_bytes()),
                "the same bytes"
            );
        }
    }
    // A fresh connection that says nothing is not tried again.
    let scene = Scene::around(stale(false).await).await;
    assert_eq!(scene.ask(GOOD, get("/1")).await.status, 200);
    let answer = scene.ask(GOOD, get("/2")).await;
    assert_eq!((answer.status, scene.good.connections()), (502, 2));
}

#[tokio::test]
async fn a_connection_that_closed_while_idle_is_not_used() {
    let (closed, mut is_closed) = mpsc::channel::<()>(1);
    let origin = Origin::raw(move |conn| {
        let closed = closed.clone();
        async move {
            while conn.read_request().await.is_some() {
                conn.send(OK).await;
                if conn.index() == 0 {
                    conn.close().await;
                    return closed.send(()).await.expect("the test listens");
                }
            }
        }
    })
    .await;
    let scene = Scene::around(origin).await;
    let post = format!("POST / HTTP/1.1\r\nHost: {GOOD}\r\nContent-Length: 2\r\n\r\nab");
    assert_eq!(scene.ask(GOOD, &post).await.status, 200);
    within("the origin's close", is_closed.recv())
        .await
        .expect("closed");
    // A request that may not be repeated: it would fail on the dead connection.
    assert_eq!(
        scene.ask(GOOD, &post).await.status,
        200,
        "no byte was lost on the dead one"
    );
    scene.good.wait_ended(1).await;
    assert_eq!(scene.good.connections(), 2);
}

#[tokio::test]
async fn a_connection_that_answered_early_is_not_used_again() {
    let origin = Origin::raw(|conn| async move {
        let Some(head) = conn.read_head().await else {
            return;
        };
        if head.contains("/alive") {
            return conn.send(OK).await;
        }
        // The answer begins before the body came and ends after it.
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nno")
            .await;
        conn.read_exactly(4).await;
        conn.send("ok").await;
    })
    .await;
    let scene = Scene::unscrubbed(origin).await;
    let mut conn = scene.workload.connect(TARGET).await;
    conn.send(format!(
        "POST / HTTP/1.1\r\nHost: {GOOD}\r\nContent-Length: 4\r\n\r\n"
    ))
    .await;
    assert_eq!(conn.answer_head().await.status, 200);
    assert_eq!(conn.take(2).await, b"no");
    conn.send("body").await;
    assert_eq!(conn.take(2).await, b"ok");
    conn.expect_end().await;
    // On the connection before, this would wait for an origin that is through.
    scene.alive("an early answer").await;
}
