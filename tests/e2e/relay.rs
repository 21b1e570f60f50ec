//! The relay: bodies and streams as they are, connections as they may be shared, ends as they come.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc};

use crate::support::{GOOD, Origin, Scene, contains, noise, show, within};

const TARGET: &str = "good.example.com:443";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const SIZES: [usize; 9] = [0, 1, 2, 1000, 4096, 16_384, 16_385, 65_537, 300 * 1024];

/// Writes bytes as chunks of uneven sizes.
fn chunks(bytes: &[u8], trailers: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut rest, mut size) = (bytes, 1);
    while !rest.is_empty() {
        let (chunk, behind) = rest.split_at(size.min(rest.len()));
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
        (rest, size) = (behind, size * 3 + 1);
    }
    out.extend_from_slice(format!("0\r\n{trailers}\r\n").as_bytes());
    out
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {GOOD}\r\n\r\n")
}

#[tokio::test]
async fn request_bodies_arrive_byte_for_byte_with_their_own_framing() {
    let scene = Scene::new().await;
    let mut conn = scene.workload.connect(TARGET).await;
    for size in SIZES {
        let body = noise(size);
        for (fields, body) in [
            (format!("Content-Length: {size}\r\n"), body.clone()),
            (
                "Transfer-Encoding: chunked\r\n".to_owned(),
                chunks(&body, ""),
            ),
            (
                "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n".to_owned(),
                chunks(&body, "X-Sum: 1\r\nx-two:  b \r\n"),
            ),
        ] {
            scene.good.forget();
            let head = format!("POST /{size} HTTP/1.1\r\nHost: {GOOD}\r\n{fields}\r\n");
            let request = [head.as_bytes(), &body].concat();
            conn.send(&request).await;
            assert_eq!(conn.answer().await.status, 200, "{size} {fields}");
            assert!(
                scene.good.bytes() == request,
                "{size} {fields}: the bytes differ"
            );
        }
    }
    assert_eq!(scene.good.connections(), 1);
}

#[tokio::test]
async fn answers_arrive_byte_for_byte_with_their_own_framing() {
    let origin = Origin::script(|request, conn| async move {
        let path = request
            .line()
            .split(' ')
            .nth(1)
            .unwrap_or_default()
            .to_owned();
        let (kind, size) = path[1..].split_once('/').expect("a kind and a size");
        let body = noise(size.parse().expect("a size"));
        let (fields, body) = match kind {
            "length" => (format!("Content-Length: {}\r\n", body.len()), body),
            "chunked" => (
                "Transfer-Encoding: chunked\r\n".to_owned(),
                chunks(&body, ""),
            ),
            "trailers" => (
                "transfer-encoding: chunked\r\n".to_owned(),
                chunks(&body, "X-Sum: 1\r\n"),
            ),
            _ => (String::new(), body),
        };
        let head = format!("HTTP/1.1 200 Fine by me\r\nX-A:  1\r\nx-a: 2\r\n{fields}\r\n");
        conn.send([head.as_bytes(), &body].concat()).await;
        if kind == "close" {
            conn.close().await;
        }
    })
    .await;
    let scene = Scene::unscrubbed(origin).await;
    for size in SIZES {
        let body = noise(size);
        for (kind, expected) in [
            (
                "length",
                (format!("Content-Length: {size}\r\n"), body.clone()),
            ),
            (
                "chunked",
                (
                    "Transfer-Encoding: chunked\r\n".to_owned(),
                    chunks(&body, ""),
                ),
            ),
            (
                "trailers",
                (
                    "transfer-encoding: chunked\r\n".to_owned(),
                    chunks(&body, "X-Sum: 1\r\n"),
                ),
            ),
            ("close", ("Connection: close\r\n".to_owned(), body.clone())),
        ] {
            let mut conn = scene.workload.connect(TARGET).await;
            conn.send(get(&format!("/{kind}/{size}"))).await;
            let answer = conn.answer().await;
            let head = format!(
                "HTTP/1.1 200 Fine by me\r\nX-A:  1\r\nx-a: 2\r\n{}\r\n",
                expected.0
            );
            let expected = [head.as_bytes(), &expected.1].concat();
            assert!(answer.raw == expected, "{kind} {size}: {}", answer.head);
            assert!(answer.body == body, "{kind} {size}");
        }
    }
}

#[tokio::test]
async fn single_bytes_make_the_same_messages() {
    let origin = Origin::script(|request, conn| async move {
        let body = chunks(&request.body, "X-T: 1\r\n");
        for byte in [
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            &*body,
        ]
        .concat()
        {
            conn.send([byte]).await;
        }
    })
    .await;
    let scene = Scene::around(origin).await;
    let mut conn = scene.workload.connect(TARGET).await;
    let request = scene.fill(&format!(
        "POST / HTTP/1.1\r\nHost: {GOOD}\r\nX-Key: {{T}}\r\nTransfer-Encoding: chunked\r\n\r\n\
         3\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\nX-T: 1\r\n\r\n"
    ));
    for byte in request.bytes() {
        conn.send([byte]).await;
    }
    let answer = conn.answer().await;
    assert_eq!(answer.text(), "abc0123456789abcdef");
    assert_eq!(answer.trailers, [("X-T".to_owned(), "1".to_owned())]);
    let expected = request.replace(scene.token(), crate::support::REAL);
    assert_eq!(show(&scene.good.bytes()), show(expected.as_bytes()));
}

#[tokio::test]
async fn one_connection_carries_many_exchanges() {
    let scene = Scene::new().await;
    let mut conn = scene.workload.connect(TARGET).await;
    for round in 0..20 {
        conn.send(get(&format!("/{round}"))).await;
        assert_eq!(conn.answer().await.text(), "ok");
    }
    conn.send(
        (0..20)
            .map(|round| get(&format!("/p{round}")))
            .collect::<String>(),
    )
    .await;
    for _ in 0..20 {
        assert_eq!(conn.answer().await.text(), "ok");
    }
    assert_eq!(scene.good.connections(), 1);
    // A close asked for by the client ends its side, and not the upstream's.
    conn.send(format!(
        "GET /last HTTP/1.1\r\nHost: {GOOD}\r\nConnection: close\r\n\r\n"
    ))
    .await;
    let answer = conn.answer().await;
    assert_eq!(answer.header("connection"), Some("close"));
    conn.expect_end().await;
    scene.alive("a close").await;
    assert_eq!(scene.good.connections(), 1);
}

#[tokio::test]
async fn peer_13_connections_are_shared_within_a_session_and_never_across() {
    let scene = Scene::new().await;
    for _ in 0..3 {
        scene.alive("another tunnel").await;
    }
    assert_eq!(scene.good.connections(), 1);
    let other = scene.vault.session(&Scene::request()).await;
    let workload = scene.vault.workload(&other);
    for _ in 0..2 {
        assert_eq!(
            workload.get(&format!("https://{GOOD}/"), &[]).await.status,
            200
        );
    }
    assert_eq!(scene.good.connections(), 2, "one for each session");
    // A connection that the upstream says is over is not used again.
    let closing =
        Origin::answer("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
    let scene = Scene::around(closing.await).await;
    let mut conn = scene.workload.connect(TARGET).await;
    for count in 1..4 {
        conn.send(get("/")).await;
        let answer = conn.answer().await;
        assert!(answer.header("connection").is_none(), "{}", answer.head);
        assert_eq!(scene.good.connections(), count);
    }
}

#[tokio::test]
async fn peer_76_no_connection_takes_up_the_tls_session_of_another() {
    let closing =
        Origin::answer("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
    let scene = Scene::around(closing.await).await;
    let other = scene.vault.session(&Scene::request()).await;
    let other = scene.vault.workload(&other);
    for workload in [&scene.workload, &scene.workload, &other, &other] {
        let answer = workload.get(&format!("https://{GOOD}/"), &[]).await;
        assert_eq!(answer.status, 200);
    }
    assert_eq!((scene.good.connections(), scene.good.resumed()), (4, 0));
}

#[tokio::test]
async fn peer_56_answers_without_a_body_end_with_their_head() {
    let origin = Origin::script(|request, conn| async move {
        conn.send(match request.line().split(' ').nth(1).unwrap_or_default() {
            "/204" => "HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n",
            "/205" => "HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n",
            "/304" => "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 500\r\n\r\n",
            "/head" => "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
            "/chunked" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "/none" => "HTTP/1.1 200 OK\r\nX: 1\r\n\r\n",
            _ => OK,
        })
        .await;
    })
    .await;
    let scene = Scene::around(origin).await;
    let mut conn = scene.workload.connect(TARGET).await;
    for (method, path) in [
        ("GET", "/204"),
        ("GET", "/205"),
        ("GET", "/304"),
        ("HEAD", "/head"),
        ("HEAD", "/chunked"),
        ("HEAD", "/none"),
        ("HEAD", "/204"),
    ] {
        conn.send(format!("{method} {path} HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"))
            .await;
        let answer = match method {
            "HEAD" => conn.answer_to_head().await,
            _ => conn.answer().await,
        };
        assert!(matches!(answer.status, 200 | 204 | 205 | 304), "{path}");
        assert!(
            answer.header("connection").is_none(),
            "{path}: {}",
            answer.head
        );
        conn.send(get("/next")).await;
        assert_eq!(conn.answer().await.text(), "ok", "behind {method} {path}");
    }
    assert_eq!(scene.good.connections(), 1);
}

#[tokio::test]
async fn interim_answers_pass_to_those_who_know_them() {
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n";
    let origin = Origin::answer(format!("{hints}HTTP/1.1 102 Processing\r\n\r\n{OK}")).await;
    let scene = Scene::around(origin).await;
    let answer = scene.ask(GOOD, get("/")).await;
    let statuses: Vec<u16> = answer
        .interim
        .iter()
        .map(|interim| interim.status)
        .collect();
    assert_eq!(
        (statuses.as_slice(), answer.text()),
        (&[103, 102][..], "ok")
    );
    assert_eq!(answer.interim[0].raw, hints.as_bytes());
    let answer = scene
        .ask(GOOD, format!("GET / HTTP/1.0\r\nHost: {GOOD}\r\n\r\n"))
        .await;
    assert_eq!((answer.interim.len(), answer.status), (0, 200));
}

#[tokio::test]
async fn peer_55_a_body_is_held_back_until_the_origin_asks_for_it() {
    let origin = Origin::raw(|conn| async move {
        let head = conn.read_head().await.expect("a head");
        assert!(head.contains("Expect: 100-continue"), "{head}");
        conn.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        assert_eq!(conn.read_exactly(5).await.expect("a body"), b"hello");
        conn.send(OK).await;
        // The next one is turned down without its body.
        conn.read_head().await.expect("a head");
        conn.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
            .await;
    })
    .await;
    let scene = Scene::around(origin).await;
    let mut conn = scene.workload.connect(TARGET).await;
    let head = format!(
        "PUT / HTTP/1.1\r\nHost: {GOOD}\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    );
    conn.send(&head).await;
    let interim = conn.answer_head().await;
    assert_eq!(interim.status, 100);
    assert_eq!(
        scene.good.bytes(),
        head.as_bytes(),
        "nothing behind the head yet"
    );
    conn.send("hello").await;
    assert_eq!(conn.answer().await.text(), "ok");
    conn.send(&head).await;
    let answer = conn.answer().await;
    assert_eq!((answer.status, answer.text()), (413, "no"));
    // Whether the body still comes cannot be known: the connection is of no more use.
    conn.expect_end().await;
}

#[tokio::test]
async fn peer_57_every_event_leaves_as_it_arrives() {
    for framing in ["Transfer-Encoding: chunked\r\n", ""] {
        let (release, gate) = mpsc::channel::<()>(1);
        let gate = Arc::new(Mutex::new(gate));
        let origin = Origin::script(move |_request, conn| {
            let gate = Arc::clone(&gate);
            async move {
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n";
                conn.send(format!("{head}{framing}\r\n")).await;
                for number in 0..50 {
                    let event = format!("data: {number}\n\n");
                    if framing.is_empty() {
                        conn.send(event).await;
                    } else {
                        conn.send(format!("{:x}\r\n{event}\r\n", event.len())).await;
                    }
                    gate.lock().await.recv().await.expect("the test goes on");
                }
                if framing.is_empty() {
                    conn.close().await;
                } else {
                    conn.send("0\r\n\r\n").await;
                }
            }
        })
        .await;
        let scene = Scene::unscrubbed(origin).await;
        let mut conn = scene.workload.connect(TARGET).await;
        conn.send(get("/events")).await;
        assert_eq!(conn.answer_head().await.status, 200);
        for number in 0..50 {
            let event = format!("data: {number}\n\n");
            let seen = conn.take_until(event.as_bytes()).await;
            assert!(
                !contains(&seen, format!("data: {}\n", number + 1)),
                "{}",
                show(&seen)
            );
            release.send(()).await.expect("the origin goes on");
        }
        if framing.is_empty() {
            let (rest, end) = conn.rest_and_end().await;
            assert!(rest.is_empty(), "{}", show(&rest));
            assert_eq!(end.expect("an end in good order"), 0);
        } else {
            conn.take_until(b"0\r\n\r\n").await;
            conn.send(get("/events")).await;
            assert_eq!(
                conn.answer_head().await.status,
                200,
                "the connection goes on"
            );
        }
    }
}

#[tokio::test]
async fn an_http_1_0_client_gets_an_answer_it_can_read() {
    let origin = Origin::script(|request, conn| async move {
        conn.send(if request.line().contains("/chunked") {
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\nX-A: 1\r\n\r\n\
             3\r\nabc\r\n2\r\nde\r\n0\r\nX-T: 1\r\n\r\n"
        } else {
            OK
        })
        .await;
    })
    .await;
    let scene = Scene::around(origin).await;
    for (path, body) in [("/chunked", "abcde"), ("/", "ok")] {
        for keep in ["", "Connection: keep-alive\r\n"] {
            let mut conn = scene.workload.connect(TARGET).await;
            conn.send(format!("GET {path} HTTP/1.0\r\nHost: {GOOD}\r\n{keep}\r\n"))
                .await;
            let head = conn.answer_head().await;
            assert!(head.header("transfer-encoding").is_none(), "{}", head.head);
            assert!(head.header("trailer").is_none(), "{}", head.head);
            assert_eq!(head.header("connection"), Some("close"));
            let (rest, end) = conn.rest_and_end().await;
            assert_eq!(
                (rest.as_slice(), end.expect("a clean end")),
                (body.as_bytes(), 0),
                "{path}"
            );
        }
    }
    assert_eq!(
        scene.good.connections(),
        1,
        "the upstream's connection is kept all the same"
    );
}

#[tokio::test]
async fn large_bodies_pass_in_both_directions_at_once() {
    let size = 3 * 1024 * 1024;
    let origin = Origin::raw(move |conn| async move {
        conn.read_head().await.expect("a head");
        conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n"))
            .await;
        let mut left = size;
        while left > 0 {
            let count = left.min(50_000);
            let bytes = conn.read_exactly(count).await.expect("the body goes on");
            conn.send(bytes).await;
            left -= count;
        }
    })
    .await;
    let scene = Scene::unscrubbed(origin).await;
    let mut conn = scene.workload.connect(TARGET).await;
    let body = noise(size);
    let head = format!("POST / HTTP/1.1\r\nHost: {GOOD}\r\nContent-Length: {size}\r\n\r\n");
    conn.send(head).await;
    let (mut reader, mut writer) = tokio::io::split(conn.into_io());
    let upload = async {
        use tokio::io::AsyncWriteExt;
        writer.write_all(&body).await.expect("the body is taken");
        writer.flush().await.expect("the body is taken");
    };
    let download = async {
        use tokio::io::AsyncReadExt;
        let (mut seen, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
        let head = b"\r\n\r\n";
        loop {
            let count = reader.read(&mut buffer).await.expect("the answer goes on");
            seen.extend_from_slice(&buffer[..count]);
            let start = seen
                .windows(4)
                .position(|window| window == head)
                .map(|at| at + 4);
            if let Some(start) = start.filter(|start| seen.len() >= start + size) {
                return seen.split_off(start);
            }
        }
    };
    let ((), echoed) = within("both bodies", async { tokio::join!(upload, download) }).await;
    assert!(echoed == body, "the bytes differ");
}
