//! Chunks: every size line is read strictly and written anew, extensions stay behind.
//!
//! A body whose chunks break a rule ends the exchange and both of its connections.

use super::{SMUG, passes, post};
use crate::support::{GOOD, Scene, contains, show};

#[tokio::test]
async fn case_45_malformed_chunks_are_refused() {
    let scene = Scene::new().await;
    let long_extension = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(5000));
    let line_of_64_kib = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(64 * 1024));
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
        "5;x\nhello\r\n0\r\n\r\n",
        "5;x\r\nhello\r\n0;x\n\r\n",
        "5;x\rhello\r\n0\r\n\r\n",
        "5\r\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r0\r\n\r\n",
        "5\r\nhello\r\n0\n\n",
        "5\r\nhello\r\n0\r\nX: a\n\r\n",
        "5\r\nhello\r\n0\r\nX: a\rY: b\r\n\r\n",
        "5\r\nhello\r\n0\r\nX: a\0\r\n\r\n",
        "5\r\nhello\r\n0\r\nContent_Length: 5\r\n\r\n",
        "5\r\nhello\r\n00x\r\n\r\n",
        "5;\u{e9}\r\nhello\r\n0\r\n\r\n",
        "5;a\x7f\r\nhello\r\n0\r\n\r\n",
        "5,\r\nhello\r\n0\r\n\r\n",
        "5h\r\nhello\r\n0\r\n\r\n",
        "5\t;a\r\nhello\r\n0\r\n\r\n",
        &line_of_64_kib,
        &long_extension,
        &many_extensions,
    ] {
        let bytes = post("Transfer-Encoding: chunked\r\n", &format!("{body}{SMUG}"));
        let mut conn = scene.workload.connect("good.example.com:443").await;
        // The vault may close before it has all of a line that is too long.
        let _sent = conn.try_send(&bytes).await;
        let answer = conn.answer().await;
        assert_eq!(answer.status, 400, "{}", show(&bytes));
        conn.expect_end().await;
        // The head and the chunks before may have left: a body without its end, which no reader
        // takes for a request, and nothing else.
        let arrived = scene.good.bytes();
        let start = post("Transfer-Encoding: chunked\r\n", "");
        let rest = arrived.strip_prefix(&start[..]).unwrap_or(&arrived);
        let unfinished = rest.is_empty()
            || [&b"5\r\nhello"[..], b"1\r\na"]
                .iter()
                .any(|data| rest.starts_with(data));
        assert!(
            unfinished && !contains(rest, "\r\n\r\n") && !contains(rest, "smug"),
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
        [
            "Transfer-Encoding: chunked\r\n",
            "5;ext\r\nhello\r\n000;a=\"b;c\"\r\nX-T: 1\r\nUpgrade: h2c\r\nProxy-A: 1\r\n\r\n",
        ],
        [
            "Transfer-Encoding: chunked\r\n",
            "5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n",
        ],
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
async fn case_45_what_is_legal_passes_with_one_framing() {
    let scene = Scene::new().await;
    for (method, [fields, body], [expected_fields, expected_body]) in LEGAL {
        let start = format!("{method} / HTTP/1.1\r\nHost: {GOOD}\r\n");
        let request = format!("{start}{fields}\r\n{body}");
        let expected = format!("{start}{expected_fields}\r\n{expected_body}");
        passes(&scene, &request, &expected).await;
    }
    scene.alive("legal messages").await;
}
