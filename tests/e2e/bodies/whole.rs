//! Whole bodies over HTTP/1.1: the same bytes in the same framing, both ways, up to their trailers,
//! and no body where there is none.

use super::{OK, get};
use crate::h2::bodies::{Payload, payloads};
use crate::support::{Conn, GOOD, Origin, Request, Scene, contains, sha256};

const TARGET: &str = "good.example.com:443";

/// How a body is framed; the same way up and down.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    /// By its length.
    Sized,
    /// In chunks of uneven sizes.
    Chunked,
    /// In chunks, with trailers that the head announces.
    Trailers,
}

/// The trailers of a body, which say what it was.
fn trailers(body: &[u8]) -> String {
    format!("X-Sum: {}\r\nx-kind:  binary\r\n", sha256(body))
}

impl Shape {
    /// Returns the lines of the head that say how the body is framed.
    fn lines(self, body: &[u8]) -> String {
        match self {
            Self::Sized => format!("Content-Length: {}\r\n", body.len()),
            Self::Chunked => "Transfer-Encoding: chunked\r\n".to_owned(),
            Self::Trailers => "Transfer-Encoding: chunked\r\nTrailer: X-Sum, X-Kind\r\n".to_owned(),
        }
    }

    /// Returns the body in its frame.
    fn framed(self, body: &[u8]) -> Vec<u8> {
        if self == Self::Sized {
            return body.to_owned();
        }
        let mut framed = Vec::with_capacity(body.len() * 2);
        let (mut rest, mut size) = (body, 1);
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(size.min(rest.len()));
            framed.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            framed.extend_from_slice(piece);
            framed.extend_from_slice(b"\r\n");
            (rest, size) = (behind, (size * 5 + 3) % 150_000);
        }
        let trailers = match self {
            Self::Trailers => trailers(body),
            _ => String::new(),
        };
        framed.extend_from_slice(format!("0\r\n{trailers}\r\n").as_bytes());
        framed
    }

    fn of(request: &Request) -> Self {
        if request.header("content-length").is_some() {
            Self::Sized
        } else if request.header("trailer").is_some() {
            Self::Trailers
        } else {
            Self::Chunked
        }
    }
}

/// Returns the lines of the head that say what the body is.
fn kind(payload: &Payload) -> String {
    let mut lines = String::new();
    for (name, value) in &payload.fields {
        lines.extend([*name, ": ", value, "\r\n"]);
    }
    lines
}

#[tokio::test]
async fn bodies_of_every_kind_arrive_as_they_were_sent_both_ways() {
    // It sends back what came, framed as it came.
    let origin = Origin::script(|request, conn| async move {
        let shape = Shape::of(&request);
        let lines = shape.lines(&request.body);
        let head = format!(
            "HTTP/1.1 200 OK\r\nX-Sum-Up: {}\r\n{lines}\r\n",
            sha256(&request.body)
        );
        let answer = [head.into_bytes(), shape.framed(&request.body)].concat();
        conn.send(answer).await;
    })
    .await;
    let scene = Scene::unscrubbed(origin).await;
    let mut conn = scene.workload.connect(TARGET).await;
    for payload in payloads() {
        let sum = sha256(&payload.bytes);
        for shape in [Shape::Sized, Shape::Chunked, Shape::Trailers] {
            let case = format!("{} {shape:?}", payload.name);
            scene.good.forget();
            let lines = shape.lines(&payload.bytes);
            let kind = kind(&payload);
            let head = format!("POST /all HTTP/1.1\r\nHost: {GOOD}\r\n{kind}{lines}\r\n");
            let request = [head.into_bytes(), shape.framed(&payload.bytes)].concat();
            conn.send(&request).await;
            let answer = conn.answer().await;
            assert_eq!(answer.status, 200, "{case}");
            assert_eq!(answer.header("x-sum-up"), Some(sum.as_str()), "{case}: up");
            assert_eq!(sha256(&answer.body), sum, "{case}: down");
            // Not only the bodies: every byte around them, chunk by chunk.
            assert_eq!(
                sha256(&scene.good.bytes()),
                sha256(&request),
                "{case}: the request"
            );
            let head = format!("HTTP/1.1 200 OK\r\nX-Sum-Up: {sum}\r\n{lines}\r\n");
            let sent = [head.into_bytes(), shape.framed(&payload.bytes)].concat();
            assert_eq!(sha256(&answer.raw), sha256(&sent), "{case}: the answer");
            if shape == Shape::Trailers {
                assert_eq!(answer.header("trailer"), Some("X-Sum, X-Kind"), "{case}");
                let expected = [("X-Sum", sum.as_str()), ("x-kind", "binary")];
                let seen = answer
                    .trailers
                    .iter()
                    .map(|(name, value)| (&**name, &**value));
                assert!(seen.eq(expected), "{case}: {:?}", answer.trailers);
            }
        }
    }
    assert_eq!(scene.good.connections(), 1);
}

#[tokio::test]
async fn an_upload_goes_on_under_an_answer_that_has_begun() {
    let body = payloads().swap_remove(0).bytes;
    let size = body.len();
    let origin = Origin::raw(move |conn| async move {
        let head = conn.read_head().await.expect("a head");
        if head.contains("/alive") {
            return conn.send(OK).await;
        }
        conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{\"s\r\n")
            .await;
        let body = conn.read_exactly(size).await.expect("the whole body");
        conn.send(format!("40\r\n{}\r\n0\r\n\r\n", sha256(&body)))
            .await;
    })
    .await;
    // A scrub holds back a last digit that may begin a value, and sends it as a chunk of its own.
    let scene = Scene::unscrubbed(origin).await;
    let mut conn = scene.workload.connect(TARGET).await;
    let head = format!("POST / HTTP/1.1\r\nHost: {GOOD}\r\nContent-Length: {size}\r\n\r\n");
    conn.send(head).await;
    conn.take_until(b"3\r\n{\"s\r\n").await;
    conn.send(&body).await;
    let rest = conn.take_until(b"0\r\n\r\n").await;
    assert!(contains(&rest, sha256(&body)), "{}", rest.escape_ascii());
    scene.alive("an answer before its request").await;
}

#[tokio::test]
async fn answers_without_a_body_do_not_hang_and_keep_their_fields() {
    // How each status may say that it has no body, and whether another exchange may follow.
    let cases = [
        ("HEAD", "200 OK", "Content-Length: 1000\r\n", true),
        ("HEAD", "200 OK", "Transfer-Encoding: chunked\r\n", true),
        ("HEAD", "404 Not Found", "Content-Length: 9\r\n", true),
        ("HEAD", "200 OK", "", true),
        ("GET", "204 No Content", "", true),
        ("DELETE", "204 No Content", "", true),
        (
            "GET",
            "304 Not Modified",
            "Content-Length: 500\r\nETag: \"x\"\r\n",
            true,
        ),
        ("GET", "304 Not Modified", "ETag: \"x\"\r\n", true),
        ("POST", "205 Reset Content", "Content-Length: 0\r\n", true),
        (
            "POST",
            "205 Reset Content",
            "Transfer-Encoding: chunked\r\n",
            true,
        ),
        ("GET", "200 OK", "Content-Length: 0\r\n", true),
        ("POST", "205 Reset Content", "Connection: close\r\n", false),
    ];
    let origin = Origin::script(move |request, conn| async move {
        let path = request.line().split(' ').nth(1).unwrap_or_default();
        let Ok(index) = path[1..].parse::<usize>() else {
            return conn.send(OK).await;
        };
        let (method, status, lines, _) = cases[index];
        let end = if method != "HEAD" && lines.starts_with("Transfer") {
            "0\r\n\r\n"
        } else {
            ""
        };
        conn.send(format!("HTTP/1.1 {status}\r\nX-A: 1\r\n{lines}\r\n{end}"))
            .await;
        if lines.starts_with("Connection: close") {
            conn.close().await;
        }
    })
    .await;
    let scene = Scene::around(origin).await;
    for (index, (method, status, lines, goes_on)) in cases.into_iter().enumerate() {
        let case = format!("{method} {status} {lines:?}");
        let mut conn = scene.workload.connect(TARGET).await;
        let length = match method {
            "POST" => "Content-Length: 0\r\n",
            _ => "",
        };
        scene.good.forget();
        let head = format!("{method} /{index} HTTP/1.1\r\nHost: {GOOD}\r\n{length}\r\n");
        conn.send(&head).await;
        assert_eq!(answer_to(method, &mut conn).await, status, "{case}");
        assert_eq!(scene.good.bytes(), head.as_bytes(), "{case}: the request");
        if goes_on {
            conn.send(get("/next")).await;
            assert_eq!(conn.answer().await.text(), "ok", "behind {case}");
        } else {
            conn.expect_end().await;
        }
    }
}

/// Reads an answer that has no body and returns its status line's status and reason.
async fn answer_to(method: &str, conn: &mut Conn) -> String {
    let answer = match method {
        "HEAD" => conn.answer_to_head().await,
        _ => conn.answer().await,
    };
    assert_eq!(answer.header("x-a"), Some("1"));
    assert!(answer.body.is_empty());
    let line = answer.head.split("\r\n").next().unwrap_or_default();
    line["HTTP/1.1 ".len()..].to_owned()
}
