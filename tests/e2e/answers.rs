//! Framing of answers: a hostile upstream gets nothing past us, and its connection is closed.
//!
//! What such a connection still says must never become the answer to another request.

use crate::support::{GOOD, Origin, Scene, contains, within};

/// Answers that are malformed, ambiguous or unasked for, and what the client is told.
const HOSTILE: &[(&str, &str, &str)] = &[
    (
        "two framings",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "http_response_invalid",
    ),
    (
        "two lengths",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        "http_response_invalid",
    ),
    (
        "two codings",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "http_response_invalid",
    ),
    (
        "a coding alone",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx",
        "http_response_invalid",
    ),
    (
        "two framings, chunks first",
        "HTTP/1.1 200 OK\r\ntransfer-encoding:chunked\r\ncontent-length:2\r\n\r\n0\r\n\r\n",
        "http_response_invalid",
    ),
    (
        "two other lengths",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 47\r\n\r\nok",
        "http_response_invalid",
    ),
    (
        "chunks twice",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n\
         0\r\n\r\n",
        "http_response_invalid",
    ),
    (
        "a list of chunks",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        "http_response_invalid",
    ),
    (
        "identity",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nok",
        "http_response_invalid",
    ),
    (
        "chunks of HTTP/1.0",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "http_response_invalid",
    ),
    (
        "a folded coding",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        "http_response_invalid",
    ),
    (
        "304 with two framings",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        "http_response_invalid",
    ),
    (
        "a length that is too large",
        "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551618\r\n\r\nok",
        "http_response_invalid",
    ),
    (
        "no length",
        "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nok",
        "http_response_invalid",
    ),
    (
        "a blank line first",
        "\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "http_response_invalid",
    ),
    (
        "an interim answer with a body",
        "HTTP/1.1 103 Early Hints\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\
         Content-Length: 2\r\n\r\nok",
        "http_response_invalid",
    ),
    (
        "a signed length",
        "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
        "http_response_invalid",
    ),
    (
        "a list of lengths",
        "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
        "http_response_invalid",
    ),
    (
        "204 with two framings",
        "HTTP/1.1 204 No Content\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        "http_response_invalid",
    ),
    (
        "a bad chunk",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x2\r\nok\r\n0\r\n\r\n",
        "http_response_invalid",
    ),
    (
        "a chunk that ends in LF",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\nok\r\n0\r\n\r\n",
        "http_response_invalid",
    ),
    (
        "a framing trailer",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 1\r\n\r\n",
        "http_response_invalid",
    ),
    (
        "LF alone",
        "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        "http_response_invalid",
    ),
    (
        "a bare CR",
        "HTTP/1.1 200 OK\r\nX: a\rContent-Length: 0\r\n\r\n",
        "http_response_invalid",
    ),
    (
        "NUL",
        "HTTP/1.1 200 OK\r\nX: a\0\r\nContent-Length: 0\r\n\r\n",
        "http_response_invalid",
    ),
    (
        "no colon",
        "HTTP/1.1 200 OK\r\nX\r\nContent-Length: 0\r\n\r\n",
        "http_response_invalid",
    ),
    (
        "a folded line",
        "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
        "http_response_invalid",
    ),
    (
        "a space before the colon",
        "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
        "http_response_invalid",
    ),
    (
        "no version",
        "200 OK\r\nContent-Length: 2\r\n\r\nok",
        "http_response_invalid",
    ),
    (
        "another version",
        "HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "http_response_invalid",
    ),
    (
        "a status of two digits",
        "HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok",
        "http_response_invalid",
    ),
    (
        "a status of 999",
        "HTTP/1.1 999 OK\r\nContent-Length: 2\r\n\r\nok",
        "http_response_invalid",
    ),
    (
        "a status of 000",
        "HTTP/1.1 000 OK\r\nContent-Length: 2\r\n\r\nok",
        "http_response_invalid",
    ),
    (
        "101 that nobody asked for",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
        "http_response_invalid",
    ),
    (
        "101 to WebSocket that nobody asked for",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        "http_response_invalid",
    ),
    (
        "an interim answer with a malformed length",
        "HTTP/1.1 103 Early Hints\r\nContent-Length: x\r\n\r\n",
        "http_response_invalid",
    ),
    (
        "a connection option that strips",
        "HTTP/1.1 200 OK\r\nConnection: content-length\r\nContent-Length: 2\r\n\r\nok",
        "http_response_invalid",
    ),
    (
        "another protocol",
        "220 smtp.example.com ESMTP\r\n\r\n",
        "http_response_invalid",
    ),
];

#[tokio::test]
async fn case_50_hostile_answers_are_502_and_their_connection_is_closed() {
    let origin = Origin::script(|request, conn| async move {
        let number = request
            .line()
            .split(' ')
            .nth(1)
            .and_then(|path| path[1..].parse().ok());
        match number.and_then(|number: usize| HOSTILE.get(number)) {
            Some((_, answer, _)) => conn.send(answer).await,
            None => {
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    .await;
            }
        }
    })
    .await;
    let scene = Scene::around(origin).await;
    for (number, (case, _, code)) in HOSTILE.iter().enumerate() {
        let head = format!("GET /{number} HTTP/1.1\r\nHost: {GOOD}\r\nX-Key: {{T}}\r\n\r\n");
        let answer = scene.ask(GOOD, scene.fill(&head)).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (502, *code),
            "{case}"
        );
        assert!(answer.header("proxy-status").is_some(), "{case}");
        scene.good.wait_ended(number + 1).await;
        scene.alive(case).await;
        assert_eq!(
            scene.good.connections(),
            number + 2,
            "{case}: a connection of its own"
        );
    }
}

#[tokio::test]
async fn case_50_endless_heads_and_interim_answers_are_502() {
    let origin = Origin::script(|request, conn| async move {
        let line = request.line().to_owned();
        if line.contains("/head") {
            conn.send(format!(
                "HTTP/1.1 200 OK\r\nX: {}\r\n\r\n",
                "x".repeat(1 << 20)
            ))
            .await;
        } else if line.contains("/fields") {
            conn.send(format!(
                "HTTP/1.1 200 OK\r\n{}\r\n",
                "X: 1\r\n".repeat(5000)
            ))
            .await;
        } else if line.contains("/interim") {
            let one = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
            conn.send(format!(
                "{}HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                one.repeat(20)
            ))
            .await;
        } else if line.contains("/continue") {
            conn.send("HTTP/1.1 100 Continue\r\n\r\n").await;
            conn.close().await;
        } else if line.contains("/silent") {
            conn.close().await;
        } else if line.contains("/half") {
            conn.send("HTTP/1.1 200 OK\r\nContent-Le").await;
            conn.close().await;
        } else {
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .await;
        }
    })
    .await;
    let scene = Scene::around(origin).await;
    for (path, code) in [
        ("head", "http_response_invalid"),
        ("fields", "http_response_invalid"),
        ("interim", "http_response_invalid"),
        ("continue", "http_response_invalid"),
        ("silent", "http_response_incomplete"),
        ("half", "http_response_invalid"),
    ] {
        let connections = scene.good.connections();
        let head = format!("POST /{path} HTTP/1.1\r\nHost: {GOOD}\r\nContent-Length: 0\r\n\r\n");
        let answer = scene.ask(GOOD, head).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (502, code),
            "{path}"
        );
        assert!(
            answer.interim.len() <= 10,
            "{path}: {}",
            answer.interim.len()
        );
        scene.alive(path).await;
        assert!(scene.good.connections() > connections, "{path}");
    }
}

#[tokio::test]
async fn case_51_bytes_behind_an_answer_never_become_the_next_one() {
    const POISON: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
    let origin = Origin::script(|request, conn| async move {
        let line = request.line().to_owned();
        let answer = match line.split(' ').nth(1).unwrap_or_default() {
            "/second" => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            "/chunked" => {
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
            }
            "/204" => "HTTP/1.1 204 No Content\r\n\r\n",
            "/304" => "HTTP/1.1 304 Not Modified\r\nContent-Length: 52\r\n\r\n",
            "/head" => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
            "/close" => "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
            _ => {
                return conn
                    .send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    .await;
            }
        };
        conn.send(format!("{answer}{POISON}")).await;
    })
    .await;
    let scene = Scene::around(origin).await;
    for (method, path) in [
        ("GET", "second"),
        ("GET", "chunked"),
        ("GET", "204"),
        ("GET", "304"),
        ("HEAD", "head"),
        ("GET", "close"),
    ] {
        let mut conn = scene.workload.connect("good.example.com:443").await;
        conn.send(format!("{method} /{path} HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"))
            .await;
        let answer = match method {
            "HEAD" => conn.answer_to_head().await,
            _ => conn.answer().await,
        };
        assert!(!contains(&answer.raw, "poison"), "{path}");
        let connections = scene.good.connections();
        conn.send(format!("GET /next HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"))
            .await;
        assert_eq!(conn.answer().await.text(), "ok", "{path}");
        assert_eq!(
            scene.good.connections(),
            connections + 1,
            "{path}: discarded"
        );
        scene.good.forget();
    }
}

/// An answer to nothing, on a connection that is idle.
#[tokio::test]
async fn case_51_an_answer_that_nobody_asked_for_discards_its_connection() {
    const POISON: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
    let (release, gate) = tokio::sync::watch::channel(false);
    let (sent, mut is_sent) = tokio::sync::mpsc::channel::<()>(1);
    let origin = Origin::raw(move |conn| {
        let (mut gate, sent) = (gate.clone(), sent.clone());
        async move {
            while conn.read_request().await.is_some() {
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    .await;
                if conn.index() == 0 {
                    gate.wait_for(|open| *open).await.expect("the test goes on");
                    conn.send(POISON).await;
                    sent.send(()).await.expect("the test listens");
                }
            }
        }
    })
    .await;
    let scene = Scene::around(origin).await;
    let mut conn = scene.workload.connect("good.example.com:443").await;
    let next = format!("GET /next HTTP/1.1\r\nHost: {GOOD}\r\n\r\n");
    conn.send(&next).await;
    assert_eq!(conn.answer().await.text(), "ok");
    release.send_replace(true);
    within("the second answer", is_sent.recv())
        .await
        .expect("sent");
    conn.send(&next).await;
    assert_eq!(conn.answer().await.text(), "ok");
    assert_eq!(scene.good.connections(), 2);
    scene.good.wait_ended(1).await;
    assert_eq!(scene.good.received()[0], next.as_bytes());
    scene.alive("an answer to nothing").await;
}

/// The head says what the body of another answer would be; what is sent of it all the same is not
/// the client's, and not the next answer.
#[tokio::test]
async fn case_50_answers_that_have_no_body_get_none() {
    let origin = Origin::script(|request, conn| async move {
        let framing = match request.line().split('?').nth(1).unwrap_or_default() {
            text if text.starts_with("length") => "Content-Length: 6\r\n",
            text if text.starts_with("chunks") => "Transfer-Encoding: chunked\r\n",
            _ => "",
        };
        let status = match request.line().split('/').nth(1).unwrap_or_default() {
            text if text.starts_with("204") => "204 No Content",
            text if text.starts_with("304") => "304 Not Modified",
            _ => "200 OK",
        };
        if request.line().contains("/alive") || request.line().contains("/next") {
            return conn
                .send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .await;
        }
        let body = if framing.starts_with('T') {
            "6\r\npoison\r\n0\r\n\r\n"
        } else {
            "poison"
        };
        conn.send(format!(
            "HTTP/1.1 {status}\r\n{framing}X-A: 1\r\n\r\n{body}"
        ))
        .await;
    })
    .await;
    let scene = Scene::around(origin).await;
    for (method, path, head) in [
        ("GET", "204?none", "HTTP/1.1 204 No Content\r\nX-A: 1"),
        ("GET", "204?length", "HTTP/1.1 204 No Content\r\nX-A: 1"),
        ("GET", "204?chunks", "HTTP/1.1 204 No Content\r\nX-A: 1"),
        ("HEAD", "204?length", "HTTP/1.1 204 No Content\r\nX-A: 1"),
        ("GET", "304?none", "HTTP/1.1 304 Not Modified\r\nX-A: 1"),
        (
            "GET",
            "304?length",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\nX-A: 1",
        ),
        ("HEAD", "200?none", "HTTP/1.1 200 OK\r\nX-A: 1"),
        (
            "HEAD",
            "200?length",
            "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nX-A: 1",
        ),
    ] {
        let mut conn = scene.workload.connect("good.example.com:443").await;
        conn.send(format!("{method} /{path} HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"))
            .await;
        let answer = conn.answer_head().await;
        assert_eq!(answer.head, head, "{method} {path}");
        conn.send(format!("GET /next HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"))
            .await;
        let next = conn.answer().await;
        assert_eq!(next.text(), "ok", "behind {method} {path}: {}", next.head);
        scene.alive(path).await;
    }
}

/// A client of HTTP/1.1 that took chunks for the body of such an answer would take the next answer
/// for them. What HTTP/2 workloads get is in `h2::answers`.
#[tokio::test]
async fn case_52_answers_without_a_body_are_not_framed_in_chunks() {
    let chunked = "Transfer-Encoding: chunked\r\n";
    let interim = format!("HTTP/1.1 103 Early Hints\r\n{chunked}Content-Length-X: 1\r\n\r\n");
    let origin = Origin::script(move |request, conn| {
        let interim = interim.clone();
        async move {
            let status = match request.line().split(' ').nth(1).unwrap_or_default() {
                "/204" => "204 No Content",
                "/304" => "304 Not Modified",
                "/hints" => {
                    conn.send(interim).await;
                    "204 No Content"
                }
                "/alive" => {
                    return conn
                        .send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                        .await;
                }
                _ => "200 OK",
            };
            conn.send(format!("HTTP/1.1 {status}\r\n{chunked}X-A: 1\r\n\r\n"))
                .await;
        }
    })
    .await;
    let scene = Scene::around(origin).await;
    let mut conn = scene.workload.connect("good.example.com:443").await;
    for (method, path, framed) in [
        ("GET", "/204", false),
        ("HEAD", "/204", false),
        ("GET", "/hints", false),
        // These two say how another answer would be framed (RFC 9112 §6.1).
        ("GET", "/304", true),
        ("HEAD", "/200", true),
    ] {
        conn.send(format!("{method} {path} HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"))
            .await;
        let mut answer = conn.answer_head().await;
        if answer.status == 103 {
            assert_eq!(
                answer.head,
                "HTTP/1.1 103 Early Hints\r\nContent-Length-X: 1"
            );
            answer = conn.answer_head().await;
        }
        let found = answer.header("transfer-encoding").is_some();
        assert_eq!(found, framed, "{method} {path}: {}", answer.head);
        assert_eq!(answer.header("x-a"), Some("1"), "{method} {path}");
        // Not even the last chunk comes behind it.
        conn.send(format!("HEAD /200 HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"))
            .await;
        let next = conn.answer_head().await;
        assert!(
            next.head.starts_with("HTTP/1.1 200 OK\r\n"),
            "{}",
            next.head
        );
    }
    scene.alive("answers without a body").await;
}

#[tokio::test]
async fn fields_between_an_upstream_and_its_proxy_stay_behind() {
    let scene = Scene::around(
        Origin::answer(
            "HTTP/1.1 200 OK\r\nAlt-Svc: h3=\":443\"\r\nX-A: 1\r\nConnection: keep-alive, X-Hop\r\n\
             X-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\n\
             Proxy-Status: theirs\r\nUpgrade: h2c\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\n\
             Content-Length: 2\r\n\r\nok",
        )
        .await,
    )
    .await;
    let answer = scene
        .ask(GOOD, format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"))
        .await;
    assert_eq!(
        answer.head,
        "HTTP/1.1 200 OK\r\nX-A: 1\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\nContent-Length: 2"
    );
}

#[tokio::test]
async fn refusals_to_head_have_no_body_and_keep_the_connection() {
    let scene = Scene::new().await;
    let mut conn = scene.workload.connect("good.example.com:443").await;
    for _ in 0..2 {
        conn.send("HEAD / HTTP/1.1\r\nHost: evil.example.net\r\n\r\n")
            .await;
        let answer = conn.answer_to_head().await;
        assert_eq!(answer.status, 421);
        conn.send(format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"))
            .await;
        assert_eq!(conn.answer().await.text(), "ok");
    }
}
