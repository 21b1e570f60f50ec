//! Heads and trailers that echo the secret, of every kind of answer.

use super::{TARGET, assert_clean, get, path};
use crate::support::{GOOD, H2Exchange, H2Origin, H2Scene, Origin, REAL, Scene, contains, show};

/// Answers in which the value stands somewhere: `{S}` as it is, `{P}` percent-encoded, `{N}` in hex.
const ANSWERS: [(&str, &str); 10] = [
    (
        "/reason",
        "HTTP/1.1 200 key {S} is fine\r\nContent-Length: 2\r\n\r\nok",
    ),
    (
        "/field",
        "HTTP/1.1 200 OK\r\nX-Echo: a {S} b {S}\r\nContent-Length: 2\r\n\r\nok",
    ),
    (
        "/name",
        "HTTP/1.1 200 OK\r\nX-{N}: 1\r\nContent-Length: 2\r\n\r\nok",
    ),
    (
        "/cookie",
        "HTTP/1.1 200 OK\r\nSet-Cookie: k={S}; Path=/\r\nContent-Length: 2\r\n\r\nok",
    ),
    (
        "/location",
        "HTTP/1.1 302 Found\r\nLocation: https://evil.example.net/?k={P}&l=1\r\n\
         Content-Length: 0\r\n\r\n",
    ),
    (
        "/401",
        "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"{S}\"\r\n\
         Content-Length: {L}\r\n\r\n{\"bad\": \"{S}\"}",
    ),
    (
        "/500",
        "HTTP/1.1 500 Oh\r\nContent-Length: {L}\r\n\r\npanic: {S}",
    ),
    (
        "/trailer",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
         2\r\nok\r\n0\r\nX-Sum: 1\r\nX-Key: {S}\r\n\r\n",
    ),
    (
        "/hints",
        "HTTP/1.1 103 Early Hints\r\nLink: </{P}>; rel=preload\r\n\r\n\
         HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ),
    ("/alive", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
];

/// The value as it may stand in the name of a field.
const AS_NAME: &str = "7265616c2d76616c75652f303132333435363738392b616263646566";

async fn origin() -> Origin {
    Origin::script(|request, conn| async move {
        let key = request.header("x-key").expect("a key");
        assert_eq!(key, REAL);
        let path = path(request.line());
        let found = ANSWERS.iter().find(|(known, _)| *known == path);
        let text = found.expect("an answer").1.replace("{S}", key);
        let text = text.replace("{P}", &key.replace('/', "%2F").replace('+', "%2B"));
        let (_, body) = text.split_once("\r\n\r\n").expect("a head");
        let text = text.replace("{L}", &body.len().to_string());
        conn.send(text.replace("{N}", AS_NAME)).await;
    })
    .await
}

#[tokio::test]
async fn case_25_no_part_of_a_head_brings_the_value_over_http_1() {
    let scene = Scene::around(origin().await).await;
    let token = scene.token();
    let mut conn = scene.workload.connect(TARGET).await;
    for (path, sent) in ANSWERS {
        conn.send(get(token, path)).await;
        let answer = conn.answer().await;
        let mut raw: Vec<u8> = answer
            .interim
            .iter()
            .flat_map(|it| it.raw.clone())
            .collect();
        raw.extend(&answer.raw);
        assert_clean(path, &raw);
        assert!(!contains(&raw, AS_NAME), "{path}: {}", show(&raw));
        assert!(
            answer.header("connection").is_none(),
            "{path}: {}",
            answer.head
        );
        let tokens = String::from_utf8_lossy(&raw).matches(token).count();
        let values = sent.matches("{S}").count() + sent.matches("{P}").count();
        // A reason phrase is left out, since nobody needs one.
        let expected = if path == "/reason" { 0 } else { values };
        assert_eq!(tokens, expected, "{path}: {}", show(&raw));
        if path == "/trailer" {
            assert_eq!(answer.trailers[1], ("X-Key".to_owned(), token.to_owned()));
        }
    }
    scene.alive("scrubbed heads").await;
}

#[tokio::test]
async fn case_25_no_part_of_a_head_brings_the_value_over_http_2() {
    let two = H2Origin::script(|mut exchange: H2Exchange| async move {
        exchange.read_all().await;
        let key = exchange.head.all("x-key").concat();
        assert_eq!(key, REAL);
        let location = format!("https://evil.example.net/?k={key}");
        let fields = [
            ("x-echo", key.as_str()),
            ("set-cookie", key.as_str()),
            ("location", location.as_str()),
            ("grpc-message", "fine"),
            (AS_NAME, "1"),
        ];
        match exchange.path() {
            "/interim" => {
                exchange.interim(103, &[("link", &key)]);
                exchange.answer(200, "ok").await;
            }
            "/trailers" => {
                exchange.answer_head(200, &[("content-type", "application/grpc")], false);
                exchange.send("ok").await;
                let message = key.replace('/', "%2F");
                exchange.trailers(&[("grpc-status", "16"), ("grpc-message", &message)]);
            }
            "/only" => {
                exchange.answer_head(200, &[("grpc-status", "16"), ("grpc-message", &key)], true);
            }
            "/500" => {
                exchange.answer_head(500, &fields, false);
                exchange.end(format!("panic: {key}")).await;
            }
            "/alive" => exchange.answer(200, "ok").await,
            _ => exchange.answer_head(302, &fields, true),
        }
    });
    let scene = H2Scene::with_good(origin().await, two.await, |vault| vault).await;
    let token = scene.scene.token();
    let cases = [
        ("/interim", 0),
        ("/trailers", 1),
        ("/only", 1),
        ("/500", 4),
        ("/302", 3),
    ];
    let client = scene.h2().await;
    for (path, tokens) in cases {
        let answer = client.ask(("GET", path), &[("x-key", token)], b"").await;
        let text = format!(
            "{:?} {:?} {}",
            answer.fields,
            answer.trailers,
            answer.text()
        );
        assert_clean(path, text.as_bytes());
        assert!(!text.contains(AS_NAME), "{path}: {text}");
        assert_eq!(text.matches(token).count(), tokens, "{path}: {text}");
    }
    let client = scene.h2_to_h1().await;
    for (path, _) in ANSWERS {
        let answer = client.ask(("GET", path), &[("x-key", token)], b"").await;
        let text = format!(
            "{:?} {:?} {}",
            answer.fields,
            answer.trailers,
            answer.text()
        );
        assert_clean(path, text.as_bytes());
        assert!(!text.contains(AS_NAME), "{path}: {text}");
    }
    scene.alive("scrubbed heads").await;
}

#[tokio::test]
async fn peer_41_the_head_of_a_101_is_scrubbed_and_its_frames_are_not() {
    let origin = Origin::raw(|conn| async move {
        let head = conn.read_head().await.expect("a head");
        if head.contains("/alive") {
            return conn
                .send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .await;
        }
        assert!(head.contains(REAL), "{head}");
        conn.send(format!(
            "HTTP/1.1 101 Switching {REAL}\r\nX-Echo: {REAL}\r\nSec-WebSocket-Accept: x\r\n\
             Connection: Upgrade\r\nUpgrade: websocket\r\n\r\nframe {REAL} end"
        ))
        .await;
        conn.wait_end().await;
    });
    let scene = Scene::around(origin.await).await;
    let mut conn = scene.workload.connect(TARGET).await;
    conn.send(scene.fill(&format!(
        "GET /chat HTTP/1.1\r\nHost: {GOOD}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         X-Key: {{T}}\r\n\r\n"
    )))
    .await;
    let head = conn.answer_head().await;
    assert_eq!(head.status, 101, "{}", head.head);
    assert_clean("a 101", &head.raw);
    assert_eq!(head.header("x-echo"), Some(scene.token()));
    // What cannot be read is not changed, and the documents say so.
    let frame = conn.take_until(b" end").await;
    assert_eq!(frame, format!("frame {REAL} end").as_bytes());
    scene.alive("a WebSocket").await;
}

#[tokio::test]
async fn case_26_answers_without_a_body_keep_their_head() {
    let origin = Origin::script(|request, conn| async move {
        conn.send(match path(request.line()) {
            "/204" => "HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n",
            "/304" => "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 500\r\n\r\n",
            "/head" => "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1000\r\n\r\n",
            "/chunked" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "/empty" => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        })
        .await;
    });
    let scene = Scene::around(origin.await).await;
    let mut conn = scene.workload.connect(TARGET).await;
    for (method, path) in [
        ("GET", "/204"),
        ("GET", "/304"),
        ("HEAD", "/head"),
        ("HEAD", "/chunked"),
        ("GET", "/empty"),
    ] {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {GOOD}\r\nX-Key: {{T}}\r\n\r\n");
        conn.send(scene.fill(&head)).await;
        let answer = match method {
            "HEAD" => conn.answer_to_head().await,
            _ => conn.answer().await,
        };
        if path == "/head" {
            assert_eq!(answer.header("content-length"), Some("1000"));
            assert_eq!(answer.header("content-encoding"), Some("gzip"));
        }
        if path == "/304" {
            assert_eq!(answer.header("content-length"), Some("500"));
        }
        assert!(
            answer.header("connection").is_none(),
            "{path}: {}",
            answer.head
        );
        conn.send(get(scene.token(), "/next")).await;
        assert_eq!(conn.answer().await.text(), "ok", "behind {method} {path}");
    }
    assert_eq!(scene.good.connections(), 1);
    scene.alive("answers without a body").await;
}
