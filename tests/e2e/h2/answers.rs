//! Answers on HTTP/2: what is absorbed, what stays behind, and answers without a body or too early.

use super::OK;
use crate::support::{H2Origin, H2Scene, Origin, TestCa};

#[tokio::test]
async fn interim_answers_are_absorbed() {
    let h1 = Origin::script(|request, conn| async move {
        if !request.line().contains("/alive") {
            conn.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
                .await;
            conn.send("HTTP/1.1 102 Processing\r\n\r\n").await;
        }
        conn.send(OK).await;
    })
    .await;
    let h2 = H2Origin::script(|mut exchange| async move {
        exchange.read_all().await;
        if exchange.path() != "/alive" {
            exchange.interim(103, &[("link", "</a>")]);
            exchange.interim(103, &[("link", "</b>")]);
        }
        exchange.answer(200, "ok").await;
    })
    .await;
    let play = H2Scene::with_good(h1, h2, |vault| vault).await;
    for client in [play.h2().await, play.h2_to_h1().await] {
        let answer = client.get("/").await;
        assert_eq!((answer.status, answer.text()), (200, "ok"));
        assert!(answer.header("link").is_none(), "{answer:?}");
    }
    play.alive("interim answers").await;
}

#[tokio::test]
async fn fields_of_the_connection_stay_behind_in_answers() {
    let h1 = Origin::answer(
        "HTTP/1.1 200 OK\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
         Alt-Svc: h3=\":443\"\r\nProxy-Authenticate: Basic\r\nUpgrade: h2c\r\nX-Kept: 1\r\n\
         Content-Length: 2\r\n\r\nok",
    )
    .await;
    let h2 = H2Origin::script(|mut exchange| async move {
        exchange.read_all().await;
        let fields = [
            ("alt-svc", "h3=\":443\""),
            ("x-kept", "1"),
            ("proxy-authenticate", "Basic"),
        ];
        exchange.answer_head(200, &fields, false);
        exchange.end("ok").await;
    })
    .await;
    let play = H2Scene::with_good(h1, h2, |vault| vault).await;
    for client in [play.h2().await, play.h2_to_h1().await] {
        let answer = client.get("/").await;
        assert_eq!((answer.status, answer.text()), (200, "ok"));
        let names: Vec<_> = answer
            .fields
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        assert!(names.contains(&"x-kept"), "{names:?}");
        for (name, _) in &answer.fields {
            let known = matches!(name.as_str(), "x-kept" | "content-length" | "date");
            assert!(known, "{name} came through: {answer:?}");
        }
    }
}

#[tokio::test]
async fn case_52_answers_without_a_body_are_whole() {
    let h1 = Origin::script(|request, conn| async move {
        let answer = match request.line().split(' ').nth(1).unwrap_or_default() {
            "/head" => "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nX-A: 1\r\n\r\n",
            "/204" => "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\n\r\n",
            "/length" => "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\nX-A: 1\r\n\r\n",
            "/chunks" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\n\r\n",
            "/304" => "HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\nX-A: 1\r\n\r\n",
            "/empty" => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-A: 1\r\n\r\n",
            _ => OK,
        };
        conn.send(answer).await;
    })
    .await;
    let h2 = H2Origin::script(|mut exchange| async move {
        exchange.read_all().await;
        let fields = [("x-a", "1"), ("content-length", "1000")];
        match exchange.path() {
            "/head" => exchange.answer_head(200, &fields, true),
            "/204" | "/length" => exchange.answer_head(204, &fields[..1], true),
            "/304" => exchange.answer_head(304, &fields, true),
            "/empty" | "/chunks" => exchange.answer_head(200, &fields[..1], true),
            _ => exchange.answer(200, "ok").await,
        }
    })
    .await;
    let play = H2Scene::with_good(h1, h2, |vault| vault).await;
    for client in [play.h2().await, play.h2_to_h1().await] {
        for (method, path, status, length) in [
            ("HEAD", "/head", 200, Some("1000")),
            ("GET", "/204", 204, None),
            ("GET", "/length", 204, None),
            ("HEAD", "/chunks", 200, None),
            ("GET", "/304", 304, Some("1000")),
            ("GET", "/empty", 200, None),
            ("GET", "/after", 200, None),
        ] {
            let answer = client.ask((method, path), &[], b"").await;
            assert_eq!(answer.status, status, "{path}");
            if path != "/after" {
                assert!(answer.body.is_empty(), "{path}");
                assert_eq!(answer.header("x-a"), Some("1"), "{path}");
            }
            if length.is_some() || status == 204 {
                assert_eq!(answer.header("content-length"), length, "{path}");
            }
            assert_eq!(answer.header("transfer-encoding"), None, "{path}");
        }
    }
    // They leave connections in good order.
    assert_eq!(
        (play.two.connections(), play.scene.good.connections()),
        (1, 1)
    );
}

#[tokio::test]
async fn an_answer_that_comes_while_uploading_reaches_the_client() {
    let h1 = Origin::raw(|conn| async move {
        let Some(head) = conn.read_head().await else {
            return;
        };
        if head.contains("/alive") {
            return conn.send(OK).await;
        }
        conn.send(
            "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno",
        )
        .await;
        conn.close().await;
    })
    .await;
    let h2 = H2Origin::script(|mut exchange| async move {
        if exchange.path() == "/alive" {
            return exchange.answer(200, "ok").await;
        }
        // The library behind it says that the rest is not wanted.
        exchange.answer(413, "no").await;
    })
    .await;
    let play = H2Scene::with_good(h1, h2, |vault| vault).await;
    for client in [play.h2().await, play.h2_to_h1().await] {
        let mut stream = client.upload("/", &[]).await;
        stream.push(vec![b'x'; 20_000]).await;
        let answer = stream.answer().await.expect("the early answer");
        assert_eq!((answer.status, answer.text()), (413, "no"));
    }
    play.alive("an early answer").await;
}

#[tokio::test]
async fn an_upstream_that_cannot_be_reached_is_told_in_json() {
    let other = TestCa::generate();
    let bad = Origin::builder().ca(&other).alpn(&["h2"]).answer(OK).await;
    let play = H2Scene::around_good(bad).await;
    let answer = play.h2_to_h1().await.get("/").await;
    assert_eq!(answer.status, 502, "{answer:?}");
    assert_eq!(answer.code(), "tls_certificate_error");
    play.scene
        .good
        .expect_nothing("an origin that is not trusted");
}
