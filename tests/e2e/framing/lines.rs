//! Heads: their lines, their fields, their first line, and how large they may be.

use super::{SMUG, passes, post, refused, refused_behind, refused_with};
use crate::support::{GOOD, Scene};

#[tokio::test]
async fn case_43_lines_end_in_cr_lf_and_nothing_else_does() {
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
        "GET / HTTP/1.1\n\n".to_owned(),
        format!("GET / HTTP/1.1\r\n{host}\r\n\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}\r\n\r\r\n"),
        format!("GET / HTTP/1.1\r\r\n{host}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}\r\nX: a\r\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}\r\nX: \r\n\n"),
        format!("\r\nGET / HTTP/1.1\r\n{host}\r\n\r\n"),
        format!("\nGET / HTTP/1.1\r\n{host}\r\n\r\n"),
    ] {
        refused(&scene, format!("{head}{SMUG}").as_bytes()).await;
    }
    for start in ["\r\n", "\n", "\r\n\r\n", "\r", "\0"] {
        refused_behind(&scene, format!("{start}{SMUG}").as_bytes()).await;
    }
}

#[tokio::test]
async fn case_44_malformed_fields_are_refused() {
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
        "X: a\r\n ",
        "X: a\r\n \r\n b",
        "X\x0b: v",
        "X\x7f: v",
        "\"X\": v",
        "X;: v",
        "X,Y: v",
        "X=: v",
        "X@y: v",
        "X/y: v",
        "X{}: v",
        "=: v",
        "\u{a0}X: v",
        "X: y\r\n Transfer-Encoding: chunked",
        "Transfer-Encoding: x\r\n chunked",
    ] {
        let head = format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n{field}\r\n\r\n{SMUG}");
        refused(&scene, head.as_bytes()).await;
    }
    let folded = format!("GET / HTTP/1.1\r\nHost: evil.example.net\r\n {GOOD}\r\n\r\n{SMUG}");
    refused(&scene, folded.as_bytes()).await;
    let before = format!("GET / HTTP/1.1\r\n Host: {GOOD}\r\n\r\n{SMUG}");
    refused(&scene, before.as_bytes()).await;
    for start in [" ", "\t"] {
        refused(&scene, format!("{start}{SMUG}").as_bytes()).await;
        refused_behind(&scene, format!("{start}{SMUG}").as_bytes()).await;
    }
}

#[tokio::test]
async fn case_46_request_lines_have_one_form() {
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
        "GET / HTTP/1.10",
        "GET / HTTP/01.1",
        "GET / HTTP/1,1",
        "GET / HTTP 1.1",
        "GET / HTTPS/1.1",
        "GET / HTTP/1.1x",
        "GET / HTTP/1.1\t",
        "GET / HTTP/3",
        "GET\t/\tHTTP/1.1",
        "GET   /   HTTP/1.1",
        "GET / /smug HTTP/1.1",
        "GET /\u{a0}HTTP/1.1",
        "GET,POST / HTTP/1.1",
        "(GET) / HTTP/1.1",
        "G\u{e9}T / HTTP/1.1",
        "/ HTTP/1.1",
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
async fn case_47_an_expectation_never_splits_a_request() {
    let scene = Scene::new().await;
    // In one segment with the body, without one, and with one that is a request of its own.
    let expect = "Expect: 100-continue\r\n";
    for (fields, body) in [
        ("Content-Length: 5\r\n".to_owned(), "hello".to_owned()),
        ("Content-Length: 0\r\n".to_owned(), String::new()),
        (String::new(), String::new()),
        (
            format!("Content-Length: {}\r\n", SMUG.len()),
            SMUG.to_owned(),
        ),
        (
            "Transfer-Encoding: chunked\r\n".to_owned(),
            format!("{:x}\r\n{SMUG}\r\n0\r\n\r\n", SMUG.len()),
        ),
    ] {
        for start in ["POST", "GET"] {
            let head = format!("{start} / HTTP/1.1\r\nHost: {GOOD}\r\n{expect}{fields}\r\n");
            let request = format!("{head}{body}");
            passes(&scene, &request, &request).await;
        }
    }
    for field in [
        " Expect: 100-continue",
        "Expect : 100-continue",
        "Expect:\r\n 100-continue",
        "Expect: 100-continue\x0b",
        "Expect: 100-\0continue",
        "X: y\r\n Expect: 100-continue",
    ] {
        let fields = format!("{field}\r\nContent-Length: 5\r\n");
        refused(&scene, &post(&fields, &format!("hello{SMUG}"))).await;
    }
    for field in [
        "Expect: x",
        "Expect:",
        "Expect: 100-continue, x",
        "Expect: 100-continue;q=1",
        "Expect: \"100-continue\"",
        "Expect: 100-continue\r\nExpect: x",
        "Expect: 200-ok",
    ] {
        let fields = format!("{field}\r\nContent-Length: {}\r\n", SMUG.len());
        refused_with(&scene, &post(&fields, SMUG), 417).await;
    }
}

#[tokio::test]
async fn case_48_an_upgrade_to_h2c_is_not_asked_for() {
    let scene = Scene::new().await;
    for asks in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: h2c\r\n",
        "Upgrade: h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: TLS/1.3, h2c\r\n",
    ] {
        let settings = "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n";
        let start = format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n");
        let request = format!("{start}{asks}{settings}X-A: 1\r\n\r\n");
        passes(&scene, &request, &format!("{start}X-A: 1\r\n\r\n")).await;
    }
    scene.alive("h2c").await;
}

#[tokio::test]
async fn case_55_heads_at_the_limit_pass_and_over_it_are_told_so() {
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
        ("10,000 fields", with(&fields(10_000)), 431),
        ("10,000 short fields", with(&"a:\r\n".repeat(10_000)), 431),
        ("a target of 8 KiB", get(&target(8 * 1024)), 200),
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
