//! Bodies on their way: values cut by any border, events that do not wait, bodies without a value.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc};

use super::{TARGET, assert_clean, chunks, encode, get, path};
use crate::support::{
    GOOD, H2Exchange, H2Origin, H2Scene, Origin, REAL, Scene, contains, noise, sha256, show,
};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn case_26_a_value_cut_at_any_byte_is_found_over_http_1() {
    let body = format!("<{REAL}>");
    let origin = Origin::script(move |request, conn| {
        let body = format!("<{REAL}>");
        async move {
            let path = path(request.line());
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            match path[1..].parse::<usize>() {
                Ok(cut) => {
                    let (one, two) = body.split_at(cut);
                    let pieces = [one, two].into_iter().filter(|it| !it.is_empty());
                    conn.send(head).await;
                    for piece in pieces {
                        conn.send(format!("{:x}\r\n{piece}\r\n", piece.len())).await;
                    }
                    conn.send("0\r\n\r\n").await;
                }
                Err(_) if path == "/bytes" => {
                    // Chunks of one byte, each in a segment of its own.
                    conn.send(head).await;
                    for byte in chunks(body.as_bytes(), 1, "") {
                        conn.send([byte]).await;
                    }
                }
                Err(_) => conn.send(OK).await,
            }
        }
    });
    let scene = Scene::around(origin.await).await;
    let mut conn = scene.workload.connect(TARGET).await;
    let cuts = (0..=body.len()).map(|cut| format!("/{cut}"));
    for path in cuts.chain(["/bytes".to_owned()]) {
        conn.send(get(scene.token(), &path)).await;
        let answer = conn.answer().await;
        assert_eq!(answer.text(), format!("<{}>", scene.token()), "{path}");
        assert_clean(&path, &answer.raw);
    }
    scene.alive("cut values").await;
}

#[tokio::test]
async fn case_26_a_value_cut_at_any_byte_is_found_over_http_2() {
    let body = format!("<{REAL}>");
    let two = H2Origin::script(|mut exchange: H2Exchange| async move {
        exchange.read_all().await;
        if exchange.path() == "/alive" {
            return exchange.answer(200, "ok").await;
        }
        let body = format!("<{REAL}>");
        let cut = exchange.path()[1..].parse().expect("a place");
        let (one, two) = body.split_at(cut);
        exchange.answer_head(200, &[], false);
        exchange.send(one.to_owned()).await;
        exchange.end(two.to_owned()).await;
    });
    let scene = H2Scene::around(two.await).await;
    let client = scene.h2().await;
    for cut in 0..=body.len() {
        let path = format!("/{cut}");
        let fields = [("x-key", scene.scene.token())];
        let answer = client.ask(("GET", &path), &fields, b"").await;
        assert_eq!(
            answer.text(),
            format!("<{}>", scene.scene.token()),
            "{path}"
        );
    }
    scene.alive("cut values").await;
}

/// Writes an event: every third has the value.
fn event(number: usize, value: &str) -> String {
    match number % 3 {
        0 => format!("data: {{\"key\":\"{value}\",\"n\":{number}}}\n\n"),
        _ => format!("data: {number}\n\n"),
    }
}

#[tokio::test]
async fn peer_39_every_event_leaves_as_it_arrives_and_without_the_value() {
    for coding in ["", "Content-Encoding: gzip\r\n"] {
        let (release, gate) = mpsc::channel::<()>(1);
        let gate = Arc::new(Mutex::new(gate));
        let origin = Origin::script(move |request, conn| {
            let gate = Arc::clone(&gate);
            async move {
                if path(request.line()) == "/alive" {
                    return conn.send(OK).await;
                }
                conn.send(format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{coding}\
                     Transfer-Encoding: chunked\r\n\r\n"
                ))
                .await;
                let level = flate2::Compression::default();
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), level);
                for number in 0..30 {
                    let text = event(number, REAL);
                    let bytes = if coding.is_empty() {
                        text.into_bytes()
                    } else {
                        use std::io::Write;
                        gzip.write_all(text.as_bytes()).expect("room");
                        gzip.flush().expect("room");
                        std::mem::take(gzip.get_mut())
                    };
                    let size = format!("{:x}\r\n", bytes.len());
                    conn.send([size.as_bytes(), &bytes, b"\r\n"].concat()).await;
                    gate.lock().await.recv().await.expect("the test goes on");
                }
                let end = if coding.is_empty() {
                    Vec::new()
                } else {
                    gzip.finish().expect("the end")
                };
                conn.send(chunks(&end, 100, "")).await;
            }
        });
        let scene = Scene::around(origin.await).await;
        let mut conn = scene.workload.connect(TARGET).await;
        conn.send(get(scene.token(), "/events")).await;
        assert_eq!(conn.answer_head().await.status, 200);
        for number in 0..30 {
            let event = event(number, scene.token());
            let seen = conn.take_until(event.as_bytes()).await;
            assert_clean("an event", &seen);
            release.send(()).await.expect("the origin goes on");
        }
        conn.take_until(b"0\r\n\r\n").await;
        conn.send(get(scene.token(), "/alive")).await;
        assert_eq!(conn.answer().await.text(), "ok", "the connection goes on");
        scene.alive("events").await;
    }
}

#[tokio::test]
async fn peer_39_every_event_leaves_as_it_arrives_over_http_2() {
    let (release, gate) = mpsc::channel::<()>(1);
    let gate = Arc::new(Mutex::new(gate));
    let two = H2Origin::script(move |mut exchange: H2Exchange| {
        let gate = Arc::clone(&gate);
        async move {
            exchange.read_all().await;
            if exchange.path() == "/alive" {
                return exchange.answer(200, "ok").await;
            }
            exchange.answer_head(200, &[("content-type", "text/event-stream")], false);
            for number in 0..30 {
                exchange.send(event(number, REAL)).await;
                gate.lock().await.recv().await.expect("the test goes on");
            }
            exchange.end("").await;
        }
    });
    let scene = H2Scene::around(two.await).await;
    let client = scene.h2().await;
    let token = scene.scene.token();
    let request = client.request("GET", "/events", &[("x-key", token)]);
    let mut stream = client.open(request, true).await.expect("a stream");
    assert_eq!(stream.head().await.expect("a head").status, 200);
    for number in 0..30 {
        stream.expect_piece(&event(number, token)).await;
        release.send(()).await.expect("the origin goes on");
    }
    stream.expect_end().await;
    scene.alive("events").await;
}

#[tokio::test]
async fn a_body_without_the_value_arrives_byte_for_byte() {
    let origin = Origin::script(|request, conn| async move {
        let path = path(request.line());
        if path == "/alive" {
            return conn.send(OK).await;
        }
        let (kind, size) = path[1..].split_once('/').expect("a kind and a size");
        let mut body = noise(size.parse().expect("a size"));
        let fields = match kind {
            "length" => format!("Content-Length: {}\r\n", body.len()),
            "gzip" => {
                body = encode("gzip", &body);
                format!(
                    "Content-Encoding: gzip\r\nContent-Length: {}\r\n",
                    body.len()
                )
            }
            _ => "Transfer-Encoding: chunked\r\n".to_owned(),
        };
        if kind == "chunked" {
            body = chunks(&body, 1000, "X-Sum: 1\r\n");
        }
        let head = format!("HTTP/1.1 200 OK\r\nX-A:  1\r\nx-a: 2\r\n{fields}\r\n");
        conn.send([head.as_bytes(), &body].concat()).await;
    });
    let scene = Scene::around(origin.await).await;
    let mut conn = scene.workload.connect(TARGET).await;
    for size in [0, 1, 15, 1000, 16_384, 65_537, 3 * 1024 * 1024] {
        let body = noise(size);
        for kind in ["length", "gzip", "chunked"] {
            conn.send(get(scene.token(), &format!("/{kind}/{size}")))
                .await;
            let answer = conn.answer().await;
            assert_eq!(sha256(&answer.body), sha256(&body), "{kind} {size}");
            let fields = "HTTP/1.1 200 OK\r\nX-A:  1\r\nx-a: 2\r\n";
            assert!(
                answer.head.starts_with(fields.trim_end()),
                "{}",
                answer.head
            );
            if kind == "length" && size <= 1000 {
                let head = format!("{fields}Content-Length: {size}\r\n\r\n");
                let whole = [head.as_bytes(), &body].concat();
                assert_eq!(
                    show(&answer.raw),
                    show(&whole),
                    "a small answer stays as it is"
                );
            }
        }
    }
    let client = scene.workload.h2(TARGET).await;
    for path in ["/length/1000", "/gzip/70000", "/chunked/70000"] {
        let answer = client.ask(("GET", path), &[], b"").await;
        let size = path.rsplit('/').next().expect("a size").parse();
        assert_eq!(
            sha256(&answer.body),
            sha256(&noise(size.expect("a size"))),
            "{path}"
        );
    }
    client.vanish().await;
    scene.alive("bodies without a value").await;
}

#[tokio::test]
async fn a_cut_answer_gives_what_was_held_back_to_nobody() {
    let origin = Origin::script(|request, conn| async move {
        match path(request.line()) {
            "/length" => {
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
                    .await;
                conn.send(format!("before {}", &REAL[..REAL.len() - 1]))
                    .await;
                conn.close().await;
            }
            "/chunked" => {
                conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                    .await;
                conn.send(format!("64\r\nbefore {}", &REAL[..REAL.len() - 1]))
                    .await;
                conn.close().await;
            }
            _ => conn.send(OK).await,
        }
    });
    let scene = Scene::around(origin.await).await;
    for path in ["/length", "/chunked"] {
        let mut conn = scene.workload.connect(TARGET).await;
        conn.send(get(scene.token(), path)).await;
        let (seen, end) = conn.rest_and_end().await;
        assert!(contains(&seen, "before "), "{path}: {}", show(&seen));
        assert!(!contains(&seen, &REAL[..16]), "{path}: {}", show(&seen));
        let whole = end.is_ok() && contains(&seen, "\r\n0\r\n\r\n");
        assert!(!whole, "{path}: a cut looks like an end");
    }
    assert!(!scene.good.bytes().is_empty() && contains(&scene.good.bytes(), GOOD));
    scene.alive("cut answers").await;
}

#[tokio::test]
async fn a_session_that_ends_cuts_an_answer_and_it_looks_cut() {
    for (version, framing) in [
        ("1.1", ""),
        ("1.1", "Transfer-Encoding: chunked\r\n"),
        ("1.0", ""),
    ] {
        let origin = Origin::script(move |request, conn| async move {
            if path(request.line()) == "/alive" {
                return conn.send(OK).await;
            }
            let size = if framing.is_empty() { "" } else { "9\r\n" };
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n";
            conn.send(format!("{head}{framing}\r\n{size}data: 0\n\n"))
                .await;
            conn.wait_end().await;
        });
        let scene = Scene::around(origin.await).await;
        let mut conn = scene.workload.connect(TARGET).await;
        let request = get(scene.token(), "/").replace("HTTP/1.1", &format!("HTTP/{version}"));
        conn.send(request).await;
        conn.take_until(b"data: 0\n\n").await;
        let other = scene.vault.session(&Scene::request()).await;
        let id = &scene.session.session_id;
        scene.vault.sdk().delete_session(id).await.expect("deleted");
        let (rest, end) = conn.rest_and_end().await;
        // Chunks without the last one; and where there are none, an end without a farewell.
        let cut = version == "1.1" || end.is_err();
        assert!(
            cut && rest.len() <= 2,
            "{version} {framing}: {}",
            show(&rest)
        );
        let url = format!("https://{GOOD}/alive");
        let alive = scene.vault.workload(&other).get(&url, &[]).await;
        assert_eq!(alive.status, 200, "after a deletion");
    }
}

#[tokio::test]
async fn what_may_begin_a_value_does_not_wait_for_ever() {
    let (release, gate) = mpsc::channel::<()>(1);
    let gate = Arc::new(Mutex::new(gate));
    let origin = Origin::script(move |request, conn| {
        let gate = Arc::clone(&gate);
        async move {
            if path(request.line()) == "/alive" {
                return conn.send(OK).await;
            }
            conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                .await;
            for _ in 0..2 {
                conn.send(format!("8\r\n{}\r\n", &REAL[..8])).await;
                gate.lock().await.recv().await.expect("the test goes on");
            }
            conn.send("0\r\n\r\n").await;
        }
    });
    let scene = Scene::around(origin.await).await;
    let mut conn = scene.workload.connect(TARGET).await;
    conn.send(get(scene.token(), "/")).await;
    assert_eq!(conn.answer_head().await.status, 200);
    for _ in 0..2 {
        // The origin waits for the workload, which waits for these bytes.
        conn.take_until(&REAL.as_bytes()[..8]).await;
        release.send(()).await.expect("the origin goes on");
    }
    conn.take_until(b"0\r\n\r\n").await;
    scene.alive("a wait").await;
}
