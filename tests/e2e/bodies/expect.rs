//! `Expect: 100-continue`: the origin decides, and the proxy neither promises nor reads a body for
//! it. Where no body comes, neither connection carries another exchange, and the next request finds
//! a way of its own.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc};

use super::{OK, get};
use crate::support::{GOOD, Origin, OriginConn, REAL, Scene, contains, sha256};

const TARGET: &str = "good.example.com:443";
const BODY: &[u8] = b"the body that is waited for";

/// Returns the head of an upload that asks first.
fn asking(version: &str, framing: &str) -> String {
    format!("PUT /object HTTP/{version}\r\nHost: {GOOD}\r\nExpect: 100-continue\r\n{framing}\r\n")
}

fn sized() -> String {
    asking("1.1", &format!("Content-Length: {}\r\n", BODY.len()))
}

/// Adds a field with a key to a head.
fn with_key(head: &str, key: &str) -> String {
    head.replace("\r\n\r\n", &format!("\r\nX-Key: {key}\r\n\r\n"))
}

/// Reads one request whose head asks, body included, and answers with the body's sum.
async fn take(conn: &OriginConn, head: &str) {
    let body = if head.contains("chunked") {
        let framed = format!("{:x}\r\n", BODY.len()).len() + BODY.len() + "\r\n0\r\n\r\n".len();
        let chunks = conn.read_exactly(framed).await.expect("chunks");
        chunks[4..4 + BODY.len()].to_owned()
    } else {
        conn.read_exactly(BODY.len()).await.expect("a body")
    };
    let sum = sha256(&body);
    conn.send(format!(
        "HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n{sum}"
    ))
    .await;
}

#[tokio::test]
async fn case_15_a_body_waits_for_the_origin_s_own_100() {
    let (release, gate) = mpsc::channel::<()>(1);
    let gate = Arc::new(Mutex::new(gate));
    let origin = Origin::raw(move |conn| {
        let gate = Arc::clone(&gate);
        async move {
            while let Some(head) = conn.read_head().await {
                if head.contains("/alive") {
                    conn.send(OK).await;
                    continue;
                }
                assert!(head.contains("Expect: 100-continue"), "{head}");
                gate.lock().await.recv().await.expect("the test goes on");
                conn.send("HTTP/1.1 100 Go On\r\nX-Origin: 1\r\n\r\n").await;
                take(&conn, &head).await;
            }
        }
    })
    .await;
    let scene = Scene::around(origin).await;
    let mut conn = scene.workload.connect(TARGET).await;
    let chunk = [
        format!("{:x}\r\n", BODY.len()).as_bytes(),
        BODY,
        b"\r\n0\r\n\r\n",
    ]
    .concat();
    for (head, body) in [
        (sized(), BODY.to_owned()),
        (asking("1.1", "Transfer-Encoding: chunked\r\n"), chunk),
    ] {
        scene.good.forget();
        let (head, swapped) = (with_key(&head, scene.token()), with_key(&head, REAL));
        conn.send(&head).await;
        let asked = |all: &[Vec<u8>]| contains(&all.concat(), "\r\n\r\n");
        scene.good.wait("the head, without its body", asked).await;
        release.send(()).await.expect("the origin goes on");
        // The first thing to come is what the origin said, and no 100 of the proxy's.
        let interim = conn.answer_head().await;
        assert_eq!(interim.raw, b"HTTP/1.1 100 Go On\r\nX-Origin: 1\r\n\r\n");
        assert_eq!(
            scene.good.bytes(),
            swapped.as_bytes(),
            "nothing behind the head yet"
        );
        conn.send(&body).await;
        assert_eq!(conn.answer().await.text(), sha256(BODY));
        assert_eq!(scene.good.bytes(), [swapped.as_bytes(), &body].concat());
    }
    // The connection is none the worse for it, on either side.
    conn.send(get("/alive")).await;
    assert_eq!(conn.answer().await.text(), "ok");
    assert_eq!(scene.good.connections(), 1);
    scene.alive("a body that waited").await;
}

#[tokio::test]
async fn a_body_that_is_refused_is_not_sent_and_the_next_request_finds_its_way() {
    for status in [
        "417 Expectation Failed",
        "413 Content Too Large",
        "401 Unauthorized",
        "307 Temporary Redirect",
    ] {
        for closes in ["", "Connection: close\r\n"] {
            let origin = Origin::raw(move |conn| async move {
                let head = conn.read_head().await.unwrap_or_default();
                if head.contains("/alive") {
                    return conn.send(OK).await;
                }
                conn.send(format!(
                    "HTTP/1.1 {status}\r\n{closes}Content-Length: 2\r\n\r\nno"
                ))
                .await;
            })
            .await;
            let scene = Scene::around(origin).await;
            let mut conn = scene.workload.connect(TARGET).await;
            conn.send(sized()).await;
            let answer = conn.answer().await;
            let line = answer.head.split("\r\n").next().unwrap_or_default();
            assert_eq!(line, format!("HTTP/1.1 {status}"));
            assert!(answer.interim.is_empty(), "no 100 before {status}");
            assert_eq!(answer.text(), "no");
            // Whether a body would still come cannot be known: neither connection is used again
            // (RFC 9112 §9.3), and the client was told so.
            assert_eq!(answer.header("connection"), Some("close"), "{status}");
            conn.expect_end().await;
            assert_eq!(scene.good.bytes(), sized().as_bytes(), "{status}: no body");
            scene.alive(status).await;
            assert_eq!(scene.good.connections(), 2, "{status}");
        }
    }
}

#[tokio::test]
async fn case_15_a_client_that_does_not_wait_for_the_100_is_served() {
    // RFC 9110 §10.1.1: the client need not wait, and the origin need not say it.
    for interim in ["", "HTTP/1.1 100 Continue\r\n\r\n"] {
        let origin = Origin::raw(move |conn| async move {
            while let Some(head) = conn.read_head().await {
                if head.contains("/alive") {
                    conn.send(OK).await;
                    continue;
                }
                conn.send(interim).await;
                take(&conn, &head).await;
            }
        })
        .await;
        let scene = Scene::around(origin).await;
        let mut conn = scene.workload.connect(TARGET).await;
        let (sent, arrives) = (with_key(&sized(), scene.token()), with_key(&sized(), REAL));
        conn.send([sent.as_bytes(), BODY].concat()).await;
        assert_eq!(conn.answer().await.text(), sha256(BODY));
        let whole = [arrives.as_bytes(), BODY].concat();
        assert_eq!(scene.good.received(), [whole], "one request, once");
        conn.send(get("/alive")).await;
        assert_eq!(conn.answer().await.text(), "ok");
        // One that speaks HTTP/1.0 cannot wait, and is not told to go on.
        let length = format!("Content-Length: {}\r\n", BODY.len());
        let mut old = scene.workload.connect(TARGET).await;
        old.send([asking("1.0", &length).as_bytes(), BODY].concat())
            .await;
        let answer = old.answer().await;
        assert!(answer.interim.is_empty(), "no 100 to HTTP/1.0");
        assert_eq!(answer.text(), sha256(BODY));
        scene.alive("a client that does not wait").await;
    }
}

#[tokio::test]
async fn case_15_our_own_refusals_come_at_once_and_nothing_is_dialled() {
    let scene = Scene::new().await;
    for (line, status) in [
        (
            format!("PUT / HTTP/1.1\r\nHost: {GOOD}\r\nExpect: 200-ok\r\n"),
            417,
        ),
        (
            format!("PUT / HTTP/1.1\r\nHost: {GOOD}\r\nExpect: x\r\n"),
            417,
        ),
        (
            format!("PUT / HTTP/1.1\r\nHost: {GOOD}\r\nExpect: 100-continue, x\r\n"),
            417,
        ),
        (
            "PUT / HTTP/1.1\r\nHost: other.example.com\r\nExpect: 100-continue\r\n".to_owned(),
            421,
        ),
        (
            format!("TRACE / HTTP/1.1\r\nHost: {GOOD}\r\nExpect: 100-continue\r\n"),
            405,
        ),
    ] {
        let mut conn = scene.workload.connect(TARGET).await;
        conn.send(format!("{line}Content-Length: 5\r\n\r\n")).await;
        let answer = conn.answer().await;
        assert_eq!((answer.status, answer.interim.len()), (status, 0), "{line}");
        conn.expect_end().await;
        scene.nothing_arrived(&line).await;
    }
}
