//! Time: what moves or may yet move is not cut, whatever the limits are, and what nobody takes is.
//!
//! Every limit on waiting is scaled down; each case takes several times as long as all of them.

use std::time::{Duration, Instant};

use super::{OK, SHORT, all_limits, get, pause};
use crate::support::{Conn, GOOD, H2Origin, H2Scene, Origin, OriginConn, sha256};

const TARGET: &str = "good.example.com:443";
/// What the pieces of a slow body are made of; there is one every third of a limit.
const LETTERS: &[u8] = b"abcdefghijkl";
/// How long a slow body is.
const SLOW_BYTES: usize = LETTERS.len() * 1000;
/// What a slow exchange takes at least.
const LONG: Duration = Duration::from_millis(1_200);

/// The pieces of a slow body.
fn pieces() -> Vec<Vec<u8>> {
    LETTERS.iter().map(|letter| vec![*letter; 1000]).collect()
}

fn sum() -> String {
    sha256(&pieces().concat())
}

/// Answers as its path asks: late, with silence in the middle, or with the sum of the body.
async fn slow_h1(conn: OriginConn) {
    while let Some(request) = conn.read_request().await {
        let head = "HTTP/1.1 200 OK\r\n";
        match request.line().split(' ').nth(1).unwrap_or_default() {
            "/late" => {
                pause(LONG).await;
                conn.send(OK).await;
            }
            "/silent" => {
                conn.send(format!("{head}Content-Length: 12\r\n\r\nbegun "))
                    .await;
                pause(LONG).await;
                conn.send("ended.").await;
            }
            "/slow" => {
                conn.send(format!("{head}Content-Length: {SLOW_BYTES}\r\n\r\n"))
                    .await;
                for piece in pieces() {
                    pause(SHORT / 3).await;
                    conn.send(piece).await;
                }
            }
            "/upload" => {
                let sum = sha256(&request.body);
                conn.send(format!("{head}Content-Length: 64\r\n\r\n{sum}"))
                    .await;
            }
            _ => conn.send(OK).await,
        }
    }
}

/// The same over HTTP/2.
async fn slow_h2() -> H2Origin {
    H2Origin::script(|mut exchange| async move {
        let mut body = Vec::new();
        while let Some(piece) = exchange.read().await {
            body.extend_from_slice(&piece);
        }
        match exchange.path() {
            "/late" => {
                pause(LONG).await;
                exchange.answer(200, "ok").await;
            }
            "/silent" => {
                exchange.answer_head(200, &[], false);
                exchange.send("begun ").await;
                pause(LONG).await;
                exchange.end("ended.").await;
            }
            "/slow" => {
                exchange.answer_head(200, &[], false);
                for piece in pieces() {
                    pause(SHORT / 3).await;
                    exchange.send(piece).await;
                }
                exchange.end("").await;
            }
            "/upload" => exchange.answer(200, sha256(&body)).await,
            _ => exchange.answer(200, "ok").await,
        }
    })
    .await
}

async fn play() -> H2Scene {
    H2Scene::with_good(Origin::raw(slow_h1).await, slow_h2().await, all_limits).await
}

/// Checks that a case took longer than every limit: else it would show nothing.
fn took_long(case: &str, began: Instant) {
    assert!(began.elapsed() >= LONG, "{case}: {:?}", began.elapsed());
}

#[tokio::test]
async fn peer_58_an_h1_exchange_takes_as_long_as_it_takes() {
    let play = play().await;
    let upload = async {
        for framing in ["length", "chunked"] {
            let began = Instant::now();
            let mut conn = play.scene.workload.connect(TARGET).await;
            let line = match framing {
                "length" => format!("Content-Length: {SLOW_BYTES}\r\n"),
                _ => "Transfer-Encoding: chunked\r\n".to_owned(),
            };
            conn.send(format!(
                "POST /upload HTTP/1.1\r\nHost: {GOOD}\r\n{line}\r\n"
            ))
            .await;
            for piece in pieces() {
                pause(SHORT / 3).await;
                match framing {
                    "length" => conn.send(piece).await,
                    _ => conn.send([b"3e8\r\n", &*piece, b"\r\n"].concat()).await,
                }
            }
            if framing == "chunked" {
                conn.send("0\r\n\r\n").await;
            }
            assert_eq!(conn.answer().await.text(), sum(), "{framing}");
            took_long(framing, began);
        }
    };
    let download = |path: &'static str, expected: String| {
        let workload = play.scene.workload.clone();
        async move {
            let began = Instant::now();
            let mut conn = workload.connect(TARGET).await;
            conn.send(get(path)).await;
            assert_eq!(conn.answer().await.text(), expected, "{path}");
            took_long(path, began);
        }
    };
    let slow = String::from_utf8(pieces().concat()).expect("text");
    tokio::join!(
        upload,
        download("/late", "ok".to_owned()),
        download("/silent", "begun ended.".to_owned()),
        download("/slow", slow),
    );
    play.scene.alive("slow exchanges").await;
}

#[tokio::test]
async fn peer_58_an_h2_exchange_takes_as_long_as_it_takes() {
    let play = play().await;
    for pair in ["h2 to h2", "h2 to h1"] {
        let client = match pair {
            "h2 to h2" => play.h2().await,
            _ => play.h2_to_h1().await,
        };
        let upload = async {
            let began = Instant::now();
            let mut stream = client.upload("/upload", &[]).await;
            for piece in pieces() {
                pause(SHORT / 3).await;
                assert!(stream.push(piece).await, "{pair}");
            }
            assert!(stream.end("").await, "{pair}");
            assert_eq!(
                stream.answer().await.expect("an answer").text(),
                sum(),
                "{pair}"
            );
            took_long(pair, began);
        };
        let download = |path: &'static str, body: &'static str, expected: String| {
            let client = &client;
            async move {
                let began = Instant::now();
                let mut stream = client.upload(path, &[]).await;
                assert!(stream.end(body).await, "{pair} {path}");
                let answer = stream.answer().await;
                let answer = answer.unwrap_or_else(|error| panic!("{pair} {path}: {error}"));
                assert_eq!(answer.text(), expected, "{pair} {path}");
                took_long(path, began);
            }
        };
        let slow = String::from_utf8(pieces().concat()).expect("text");
        tokio::join!(
            upload,
            download("/late", "a question", "ok".to_owned()),
            download("/silent", "a question", "begun ended.".to_owned()),
            download("/slow", "a question", slow),
            download("/late", "", "ok".to_owned()),
        );
    }
    play.alive("slow exchanges").await;
}

#[tokio::test]
async fn an_upload_that_its_origin_does_not_take_ends_at_the_stall_limit() {
    let origin = Origin::raw(|conn| async move {
        let head = conn.read_head().await.unwrap_or_default();
        if head.contains("/alive") {
            return conn.send(OK).await;
        }
        // It reads no more, and holds the connection open.
        std::future::pending::<()>().await;
    })
    .await;
    let scene = H2Scene::with_good(origin, H2Origin::echo_ok().await, all_limits)
        .await
        .scene;
    let mut conn: Conn = scene.workload.connect(TARGET).await;
    let length = 400 << 20;
    conn.send(format!(
        "POST /stall HTTP/1.1\r\nHost: {GOOD}\r\nContent-Length: {length}\r\n\r\n"
    ))
    .await;
    let began = Instant::now();
    let piece = vec![b'x'; 256 * 1024];
    let mut sent = 0;
    // Far more than all buffers on the way can hold.
    while sent < length && conn.try_send(&piece).await.is_ok() {
        sent += piece.len();
    }
    assert!(sent < 64 << 20, "{sent} bytes were taken");
    let took = began.elapsed();
    assert!(took >= SHORT * 9 / 10 && took < SHORT * 20, "{took:?}");
    let log = scene.vault.audit_log();
    let lines = log
        .wait("the stall", |lines| {
            lines.iter().any(|line| line["path"] == "/stall")
        })
        .await;
    let record = lines
        .iter()
        .find(|line| line["path"] == "/stall")
        .expect("a record");
    assert_ne!(record["decision"], "allowed", "{record}");
    scene.alive("an upload that nobody took").await;
}
