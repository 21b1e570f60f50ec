//! Framing of requests: every message has one reading or is refused.
//!
//! Each hostile request carries a second one, `/smug`, for whoever reads the first one otherwise.
//! The oracle needs no parser: nothing of a refused request may arrive at all, and what is let
//! through is compared byte for byte. `differential` does need parsers, and brings four.

mod chunks;
mod differential;
mod lines;
mod mutants;
mod readers;

use crate::support::{GOOD, Scene, contains, show};

const SMUG: &str = "GET /smug HTTP/1.1\r\nHost: good.example.com\r\n\r\n";
const NEXT: &str = "GET /next HTTP/1.1\r\nHost: good.example.com\r\n\r\n";

/// Sends bytes through a tunnel; they must be refused with 400, the connection closed, and nothing
/// forwarded.
async fn refused(scene: &Scene, bytes: &[u8]) {
    refused_with(scene, bytes, 400).await;
}

async fn refused_with(scene: &Scene, bytes: &[u8], status: u16) {
    let mut conn = scene.workload.connect("good.example.com:443").await;
    conn.send(bytes).await;
    let answer = conn.answer().await;
    assert_eq!(answer.status, status, "{}", show(bytes));
    assert_eq!(
        answer.header("connection"),
        Some("close"),
        "{}",
        show(bytes)
    );
    conn.expect_end().await;
    assert!(!contains(&answer.raw, "smug"), "{}", show(&answer.raw));
    scene.nothing_arrived(&show(bytes)).await;
}

/// Sends bytes behind a good request; that one must be answered, and they must be refused.
async fn refused_behind(scene: &Scene, bytes: &[u8]) {
    let mut conn = scene.workload.connect("good.example.com:443").await;
    conn.send([NEXT.as_bytes(), bytes].concat()).await;
    assert_eq!(conn.answer().await.status, 200, "{}", show(bytes));
    assert_eq!(conn.answer().await.status, 400, "{}", show(bytes));
    conn.expect_end().await;
    assert_eq!(scene.good.bytes(), NEXT.as_bytes(), "{}", show(bytes));
    scene.alive(&show(bytes)).await;
}

/// Sends a request and another one behind it; both must be answered, and exactly the bytes given
/// must arrive, with the other one behind them.
async fn passes(scene: &Scene, request: &str, expected: &str) {
    scene.good.forget();
    let mut conn = scene.workload.connect("good.example.com:443").await;
    conn.send(format!("{request}{NEXT}")).await;
    let answer = if request.starts_with("HEAD ") {
        conn.answer_to_head().await
    } else {
        conn.answer().await
    };
    assert_eq!(answer.status, 200, "{request}");
    assert_eq!(conn.answer().await.status, 200, "{request}");
    let expected = format!("{expected}{NEXT}");
    let arrived = scene.good.bytes();
    assert_eq!(show(&arrived), show(expected.as_bytes()), "{request}");
    scene.good.forget();
}

fn post(fields: &str, body: &str) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nHost: {GOOD}\r\n{fields}\r\n{body}").into_bytes()
}

#[tokio::test]
async fn case_37_a_length_beside_chunks_is_refused() {
    let scene = Scene::new().await;
    for (fields, body) in [
        (
            "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
            "0\r\n\r\nG",
        ),
        (
            "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
            "0\r\n\r\n{}",
        ),
        (
            "content-length:0\r\ntransfer-encoding:chunked\r\n",
            "0\r\n\r\n{}",
        ),
        (
            "Content-Length: 5\r\nX: y\r\nTransfer-Encoding: Chunked\r\n",
            "0\r\n\r\n{}",
        ),
        (
            "Content-Length: 5\r\nTransfer-Encoding: identity\r\n",
            "hello{}",
        ),
    ] {
        refused(&scene, &post(fields, &body.replace("{}", SMUG))).await;
    }
}

#[tokio::test]
async fn case_38_chunks_beside_a_length_are_refused() {
    let scene = Scene::new().await;
    let chunk = format!("{:x}\r\n{SMUG}\r\n0\r\n\r\n", SMUG.len());
    for fields in [
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 1000\r\n",
        "transfer-encoding:\tchunked\r\ncontent-length:\t4\r\n",
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
    ] {
        refused(&scene, &post(fields, &chunk)).await;
    }
}

#[tokio::test]
async fn case_39_transfer_codings_other_than_one_chunked_are_refused() {
    let scene = Scene::new().await;
    for field in [
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: ,chunked",
        "Transfer-Encoding: chunked,",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding:",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: chunked\x0b",
        "Transfer-Encoding: \x0bchunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding\t: chunked",
        " Transfer-Encoding: chunked",
        "X: y\r\n Transfer-Encoding: chunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding: chunked\r\n , identity",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: chunked\r\nTransfer-encoding: x",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding:",
        "Transfer_Encoding: chunked",
        "transfer_encoding: chunked\r\nContent-Length: 5",
        "Transfer_Encoding: identity\r\nTransfer-Encoding: chunked",
    ] {
        refused(
            &scene,
            &post(&format!("{field}\r\n"), &format!("0\r\n\r\n{SMUG}")),
        )
        .await;
    }
    let hard_space = [b"Transfer-Encoding: chunked".as_slice(), b"\xa0\r\n"].concat();
    let head = format!("POST / HTTP/1.1\r\nHost: {GOOD}\r\n").into_bytes();
    let rest = format!("\r\n0\r\n\r\n{SMUG}").into_bytes();
    refused(&scene, &[head, hard_space, rest].concat()).await;
    // In any case of letters it is one `chunked`, and leaves in one spelling.
    for spelling in ["Chunked", "CHUNKED", "\tchunked ", "chunked\t"] {
        let request = format!("Transfer-Encoding: {spelling}\r\n\r\n1\r\na\r\n0\r\n\r\n");
        let expected = "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n";
        let start = format!("POST / HTTP/1.1\r\nHost: {GOOD}\r\n");
        passes(&scene, &(start.clone() + &request), &(start + expected)).await;
    }
}

#[tokio::test]
async fn case_40_lengths_other_than_one_of_plain_digits_are_refused() {
    let scene = Scene::new().await;
    let many = "9".repeat(40);
    for value in [
        "5, 5",
        "5,5",
        "+5",
        "-1",
        "-0",
        "0x5",
        "5 5",
        "5_0",
        "",
        "5;",
        "5.0",
        "1e1",
        "010",
        "00",
        "18446744073709551616",
        "18446744073709551621",
        "\u{665}",
        "five",
        &many,
    ] {
        refused(&scene, &post(&format!("Content-Length: {value}\r\n"), SMUG)).await;
    }
    for field in [
        "Content-Length : 5",
        "Content_Length: 5\r\nContent-Length",
        "Content_Length: 5",
        "content_length: 0\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5\r\ncontent-length: 0",
        "Content-Length: \r\nContent-Length: 43",
        "Content-Length:\r\nContent-Length: 5",
        "Content-Length: 0\r\ncontent-length: 47",
        "Content-Length:\r\n 5",
    ] {
        refused(
            &scene,
            &post(&format!("{field}\r\n"), &format!("hello{SMUG}")),
        )
        .await;
    }
}

#[tokio::test]
async fn case_41_connection_options_cannot_name_what_frames_or_routes() {
    let scene = Scene::new().await;
    for option in [
        "content-length",
        "Transfer-Encoding",
        "host",
        "close, Host",
        "authorization",
        "keep-alive,\tCookie",
    ] {
        let fields = format!("Connection: {option}\r\nContent-Length: 5\r\n");
        refused(&scene, &post(&fields, &format!("hello{SMUG}"))).await;
    }
    // Another field goes as it was asked for, and the framing stays.
    scene.good.forget();
    let mut conn = scene.workload.connect("good.example.com:443").await;
    let fields = "Connection: close, x-api-key\r\nX-Api-Key: 1\r\nContent-Length: 5\r\n";
    conn.send(post(fields, &format!("hello{SMUG}"))).await;
    assert_eq!(conn.answer().await.status, 200);
    conn.expect_end().await;
    let expected = post("Content-Length: 5\r\n", "hello");
    assert_eq!(show(&scene.good.bytes()), show(&expected));
    scene.alive("a connection option").await;
}

#[tokio::test]
async fn case_42_a_body_is_carried_whole_whatever_the_method() {
    let scene = Scene::new().await;
    let (length, chunk) = (SMUG.len(), format!("{:x}\r\n{SMUG}\r\n", SMUG.len()));
    for method in ["GET", "HEAD", "DELETE", "OPTIONS", "PATCH", "x-own"] {
        for (field, body) in [
            (format!("Content-Length: {length}"), SMUG.to_owned()),
            ("Content-Length: 0".to_owned(), String::new()),
            (
                "Transfer-Encoding: chunked".to_owned(),
                format!("{chunk}0\r\n\r\n"),
            ),
            (
                "Transfer-Encoding: chunked".to_owned(),
                "0\r\n\r\n".to_owned(),
            ),
        ] {
            let request = format!("{method} /b HTTP/1.1\r\nHost: {GOOD}\r\n{field}\r\n\r\n{body}");
            passes(&scene, &request, &request).await;
        }
    }
    scene.alive("bodies of every method").await;
}
