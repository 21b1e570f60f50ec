//! Framing of requests: every message has one reading or is refused.
//!
//! Each hostile request carries a second one, `/smug`, for whoever reads the first one otherwise.
//! The oracle needs no parser: nothing of a refused request may arrive at all.

use crate::support::{GOOD, Scene, contains, show};

const SMUG: &str = "GET /smug HTTP/1.1\r\nHost: good.example.com\r\n\r\n";

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

fn post(fields: &str, body: &str) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nHost: {GOOD}\r\n{fields}\r\n{body}").into_bytes()
}

#[tokio::test]
async fn two_framings_are_refused() {
    let scene = Scene::new().await;
    for (fields, body) in [
        (
            "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
            "0\r\n\r\nG",
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
            "2f\r\n{}\r\n0\r\n\r\n",
        ),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", "hello{}"),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", "hello{}"),
        ("Content-Length: \r\nContent-Length: 43\r\n", "{}"),
        ("Content-Length: 0\r\ncontent-length: 47\r\n", "{}"),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "0\r\n\r\n{}",
        ),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            "0\r\n\r\n{}",
        ),
    ] {
        refused(&scene, &post(fields, &body.replace("{}", SMUG))).await;
    }
}

#[tokio::test]
async fn transfer_codings_other_than_one_chunked_are_refused() {
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
}

#[tokio::test]
async fn lengths_that_are_not_plain_digits_are_refused() {
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
async fn connection_options_cannot_name_what_frames_or_routes() {
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
}

#[tokio::test]
async fn lines_end_in_cr_lf_and_nothing_else_does() {
    let scene = Scene::new().await;
    let host = "Host: good.example.com";
    for head in [
        format!("GET / HTTP/1.1\n{host}\n\n"),
        format!("GET / HTTP/1.1\r\n{host}\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}\r\n\n"),
        format!("GET / HTTP/1.1\r\n{host}\r\nX: a\n\n"),
        format!("GET / HTTP/1.1\r\n{host}\r\nX: a\rSmug: b\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}\r\nX: a\r\rSmug: b\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}\r\nX: a\0b\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}\r\nX: a\x7fb\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}\r\nX: a\x01b\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}\r\n\rX: a\r\n\r\n"),
        format!("GET / HTTP/1.1\r{host}\r\n\r\n"),
        // The head's first byte decides what a tunnel speaks; a later head can start with a line.
    ] {
        refused(&scene, format!("{head}{SMUG}").as_bytes()).await;
    }
}

#[tokio::test]
async fn malformed_fields_are_refused() {
    let scene = Scene::new().await;
    for field in [
        "X",
        "X a",
        ": v",
        "X : v",
        "X\t: v",
        "X y: v",
        "X(: v",
        "X\u{e9}: v",
        "X[]: v",
        "X\0: v",
        " X: v",
        "\tX: v",
        "X: a\r\n b",
        "X: a\r\n\tb",
    ] {
        let head = format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n{field}\r\n\r\n{SMUG}");
        refused(&scene, head.as_bytes()).await;
    }
    let folded = format!("GET / HTTP/1.1\r\nHost: evil.example.net\r\n {GOOD}\r\n\r\n{SMUG}");
    refused(&scene, folded.as_bytes()).await;
    let before = format!("GET / HTTP/1.1\r\n Host: {GOOD}\r\n\r\n{SMUG}");
    refused(&scene, before.as_bytes()).await;
}

#[tokio::test]
async fn request_lines_have_one_form() {
    let scene = Scene::new().await;
    for line in [
        "GET /",
        "GET / HTTP/0.9",
        "GET / HTTP/1.2",
        "GET / HTTP/2.0",
        "GET / HTTP/11.1",
        "GET / http/1.1",
        "GET / HTTP/1.1 ",
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET /\tHTTP/1.1",
        "GET / x HTTP/1.1",
        "GET /\x0b HTTP/1.1",
        "GET /\u{e9} HTTP/1.1",
        "GET  HTTP/1.1",
        "GET HTTP/1.1",
        "G\"ET / HTTP/1.1",
        "GET: / HTTP/1.1",
        "G\0ET / HTTP/1.1",
    ] {
        let head = format!("{line}\r\nHost: {GOOD}\r\n\r\n{SMUG}");
        refused(&scene, head.as_bytes()).await;
    }
    let chunked = format!(
        "POST / HTTP/1.0\r\nHost: {GOOD}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUG}"
    );
    refused(&scene, chunked.as_bytes()).await;
}

#[tokio::test]
async fn malformed_chunks_are_refused_before_anything_leaves() {
    let scene = Scene::new().await;
    let long_extension = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(5000));
    let many_extensions = format!("1;{}\r\na\r\n", "x".repeat(3000)).repeat(6) + "0\r\n\r\n";
    for body in [
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5_0\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhelloXX0\r\n\r\n",
        "5;\nxx\r\nhello\r\n0\r\n\r\n",
        "5;a=\"\r\nX\"\r\nhello\r\n0\r\n\r\n",
        "5;a\0\r\nhello\r\n0\r\n\r\n",
        "5\rX\r\nhello\r\n0\r\n\r\n",
        "FFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "00000000000000005\r\nhello\r\n0\r\n\r\n",
        "g\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nX\r\n\r\n",
        "5\r\nhello\r\n0\r\n\n",
        "5\r\nhello\r\n0\r\nX : a\r\n\r\n",
        "5\r\nhello\r\n0\r\n X: a\r\n\r\n",
        "5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
        "5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "5\r\nhello\r\n0\r\nHost: evil.example.net\r\n\r\n",
        &long_extension,
        &many_extensions,
    ] {
        let bytes = post("Transfer-Encoding: chunked\r\n", &format!("{body}{SMUG}"));
        let mut conn = scene.workload.connect("good.example.com:443").await;
        conn.send(&bytes).await;
        let answer = conn.answer().await;
        assert_eq!(answer.status, 400, "{}", show(&bytes));
        conn.expect_end().await;
        let arrived = scene.good.bytes();
        assert!(
            !contains(&arrived, "smug"),
            "{}: {}",
            show(&bytes),
            show(&arrived)
        );
        scene.alive(body).await;
    }
}

/// Legal messages as they are sent and as they arrive: method, fields and body, fields and body.
const LEGAL: &[(&str, [&str; 2], [&str; 2])] = &[
    (
        "POST",
        ["Transfer-Encoding: Chunked\r\n", "0\r\n\r\n"],
        ["Transfer-Encoding: chunked\r\n", "0\r\n\r\n"],
    ),
    (
        "POST",
        ["transfer-encoding:CHUNKED\r\n", "1\r\na\r\n0\r\n\r\n"],
        ["transfer-encoding: chunked\r\n", "1\r\na\r\n0\r\n\r\n"],
    ),
    (
        "POST",
        [
            "Transfer-Encoding: chunked\r\n",
            "1;a=b;c\r\na\r\n0;x\r\nX-T: 1\r\n\r\n",
        ],
        [
            "Transfer-Encoding: chunked\r\n",
            "1\r\na\r\n0\r\nX-T: 1\r\n\r\n",
        ],
    ),
    (
        "POST",
        ["Content-Length: 0\r\n", ""],
        ["Content-Length: 0\r\n", ""],
    ),
    (
        "POST",
        ["Content-Length: 5\r\n", "hello"],
        ["Content-Length: 5\r\n", "hello"],
    ),
    (
        "POST",
        ["X: transfer-encoding: chunked\r\n", ""],
        ["X: transfer-encoding: chunked\r\n", ""],
    ),
    (
        "POST",
        ["Transfer_Encoding: chunked\r\n", ""],
        ["Transfer_Encoding: chunked\r\n", ""],
    ),
    (
        "GET",
        ["Content-Length: 5\r\n", "hello"],
        ["Content-Length: 5\r\n", "hello"],
    ),
    (
        "DELETE",
        ["Content-Length: 5\r\n", "hello"],
        ["Content-Length: 5\r\n", "hello"],
    ),
    (
        "OPTIONS",
        ["Content-Length: 5\r\n", "hello"],
        ["Content-Length: 5\r\n", "hello"],
    ),
    (
        "PATCH",
        ["Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"],
        ["Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"],
    ),
    (
        "POST",
        ["Expect: 100-continue\r\nContent-Length: 5\r\n", "hello"],
        ["Expect: 100-continue\r\nContent-Length: 5\r\n", "hello"],
    ),
    (
        "POST",
        ["Expect: 100-continue\r\nContent-Length: 0\r\n", ""],
        ["Expect: 100-continue\r\nContent-Length: 0\r\n", ""],
    ),
];

#[tokio::test]
async fn what_is_legal_passes_with_one_framing() {
    let scene = Scene::new().await;
    for (method, [fields, body], [expected_fields, expected_body]) in LEGAL {
        scene.good.forget();
        // A second request behind it must be read as one, exactly once.
        let next = format!("GET /next HTTP/1.1\r\nHost: {GOOD}\r\n\r\n");
        let mut conn = scene.workload.connect("good.example.com:443").await;
        conn.send(format!(
            "{method} / HTTP/1.1\r\nHost: {GOOD}\r\n{fields}\r\n{body}{next}"
        ))
        .await;
        assert_eq!(conn.answer().await.status, 200, "{fields}");
        assert_eq!(conn.answer().await.status, 200, "{fields}");
        let expected = format!(
            "{method} / HTTP/1.1\r\nHost: {GOOD}\r\n{expected_fields}\r\n{expected_body}{next}"
        );
        let arrived = scene.good.bytes();
        assert_eq!(
            show(&arrived),
            show(expected.as_bytes()),
            "{method} {fields}"
        );
    }
    scene.good.forget();
    assert_eq!(
        scene
            .ask(GOOD, format!("OPTIONS * HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"))
            .await
            .status,
        200
    );
    assert!(scene.good.bytes().starts_with(b"OPTIONS * HTTP/1.1\r\n"));
}

#[tokio::test]
async fn a_head_body_is_carried_whole_or_not_at_all() {
    let scene = Scene::new().await;
    let mut conn = scene.workload.connect("good.example.com:443").await;
    let request = format!("HEAD / HTTP/1.1\r\nHost: {GOOD}\r\nContent-Length: 5\r\n\r\nhello");
    conn.send(&request).await;
    assert_eq!(conn.answer_to_head().await.status, 200);
    assert_eq!(scene.good.bytes(), request.as_bytes());
}

#[tokio::test]
async fn expectations_that_are_not_known_are_refused() {
    let scene = Scene::new().await;
    refused_with(
        &scene,
        &post("Expect: x\r\nContent-Length: 5\r\n", "hello"),
        417,
    )
    .await;
    refused_with(
        &scene,
        &post(
            "Expect: 100-continue\r\nExpect: x\r\nContent-Length: 5\r\n",
            "hello",
        ),
        417,
    )
    .await;
    scene.nothing_arrived("an expectation").await;
}

#[tokio::test]
async fn heads_at_the_limit_pass_and_over_it_are_told_so() {
    let scene = Scene::new().await;
    let fields = |count: usize| "X-F: 1\r\n".repeat(count);
    let big = |length: usize| {
        let start = format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\nX-Big: ");
        let fill = length - start.len() - 4;
        format!("{start}{}\r\n\r\n", "x".repeat(fill))
    };
    let target = |length: usize| format!("/{}", "x".repeat(length - 1));
    let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: {GOOD}\r\n\r\n");
    let with = |fields: &str| format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n{fields}\r\n");
    for (case, bytes, status) in [
        ("100 fields", with(&fields(99)), 200),
        ("101 fields", with(&fields(100)), 431),
        ("7,000 fields", with(&fields(7000)), 431),
        ("64 KiB", big(64 * 1024), 200),
        ("64 KiB + 1", big(64 * 1024 + 1), 431),
        ("128 KiB", big(128 * 1024), 431),
        ("a target of 16 KiB", get(&target(16 * 1024)), 200),
        ("a target of 16 KiB + 1", get(&target(16 * 1024 + 1)), 414),
        ("a target of 64 KiB", get(&target(64 * 1024)), 414),
        ("a target of 200 KiB", get(&target(200 * 1024)), 414),
    ] {
        scene.good.forget();
        let mut conn = scene.workload.connect("good.example.com:443").await;
        // The vault may close before it has all of an oversized head.
        let _sent = conn.try_send(&bytes).await;
        assert_eq!(conn.answer().await.status, status, "{case}");
        assert_eq!(scene.good.bytes().is_empty(), status != 200, "{case}");
        if status == 200 {
            assert_eq!(scene.good.bytes().len(), bytes.len(), "{case}");
        } else {
            scene.nothing_arrived(case).await;
        }
    }
}
