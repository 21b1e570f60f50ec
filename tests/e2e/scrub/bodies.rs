//! Bodies that echo the secret: every form, every coding, every framing, over both protocols.

use super::{CODINGS, FORMS, TARGET, assert_clean, chunks, encode, form, get, named, path};
use crate::support::{
    GOOD, H2Exchange, H2Origin, H2Scene, Origin, OriginConn, REAL, Request, Scene,
};

const FRAMINGS: [&str; 3] = ["length", "chunked", "close"];

/// The three parts of a path: form, coding and framing.
fn parts(path: &str) -> (&str, &str, &str) {
    let mut parts = path[1..].split('/');
    let mut next = || parts.next().expect("three parts");
    (next(), next(), next())
}

/// What comes before and behind the value.
fn around(text: &str) -> String {
    format!("{{\"before\":\"{}\",\"key\":\"{text}\"}}", "-".repeat(100))
}

/// Returns the coded body that a path asks for, and its coding's field.
fn echoed(path: &str, key: &str) -> (Vec<u8>, Option<String>) {
    let (name, coding, _) = parts(path);
    let body = encode(coding, around(&form(name, key)).as_bytes());
    (body, named(coding).map(str::to_owned))
}

/// Answers with the key that it got, as the path says.
async fn echo_h1(request: Request, conn: OriginConn) {
    let path = path(request.line());
    let key = request.header("x-key").expect("a key");
    if path == "/alive" {
        return conn
            .send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .await;
    }
    assert_eq!(key, REAL, "the origin has the value");
    let (body, coding) = echoed(path, key);
    let coding = coding.map_or_else(String::new, |it| format!("Content-Encoding: {it}\r\n"));
    let (framing, body) = match parts(path).2 {
        "length" => (format!("Content-Length: {}\r\n", body.len()), body),
        "chunked" => (
            "Transfer-Encoding: chunked\r\n".to_owned(),
            chunks(&body, 7, ""),
        ),
        _ => (String::new(), body),
    };
    let head = format!("HTTP/1.1 200 OK\r\n{coding}{framing}\r\n");
    conn.send([head.as_bytes(), &body].concat()).await;
    if framing.is_empty() {
        conn.close().await;
    }
}

async fn echo_h2(mut exchange: H2Exchange) {
    exchange.read_all().await;
    let path = exchange.path().to_owned();
    if path == "/alive" {
        return exchange.answer(200, "ok").await;
    }
    let key = exchange.head.all("x-key")[0].to_owned();
    assert_eq!(key, REAL, "the origin has the value");
    let (body, coding) = echoed(&path, &key);
    let length = body.len().to_string();
    let mut fields: Vec<(&str, &str)> = Vec::new();
    fields.extend(coding.as_deref().map(|it| ("content-encoding", it)));
    if parts(&path).2 == "length" {
        fields.push(("content-length", &length));
    }
    exchange.answer_head(200, &fields, false);
    for piece in body.chunks(7) {
        exchange.send(piece.to_vec()).await;
    }
    exchange.end("").await;
}

/// Goes through all forms without a coding, and through all codings with some forms.
fn cases() -> Vec<String> {
    let mut cases = Vec::new();
    for framing in FRAMINGS {
        let names = FORMS.iter().map(|(name, _)| *name);
        cases.extend(names.map(|name| format!("/{name}/identity/{framing}")));
        for coding in &CODINGS[1..] {
            cases.extend(["raw", "base64-2"].map(|name| format!("/{name}/{coding}/{framing}")));
        }
    }
    cases
}

/// Fails unless the token stands where the value was, and the rest is as it was sent.
fn check(case: &str, token: &str, body: &[u8]) {
    let body = std::str::from_utf8(body).unwrap_or_else(|_| panic!("{case}: no text"));
    if case.starts_with("/base64-") || case.starts_with("/base64url-") {
        let (start, end) = around("|").split_once('|').map_or_else(
            || unreachable!("a mark"),
            |(start, end)| (start.to_owned(), end.to_owned()),
        );
        let whole = body.starts_with(&start) && body.ends_with(&end) && body.contains(token);
        assert!(whole, "{case}: {body}");
    } else {
        assert_eq!(body, around(token), "{case}");
    }
}

#[tokio::test]
async fn peer_38_no_form_coding_or_framing_brings_the_value_over_http_1() {
    let scene = Scene::around(Origin::script(echo_h1).await).await;
    let mut conn = scene.workload.connect(TARGET).await;
    for case in cases() {
        conn.send(get(scene.token(), &case)).await;
        let answer = conn.answer().await;
        assert_eq!(answer.status, 200, "{case}");
        assert_clean(&case, &answer.raw);
        assert_clean(&case, &answer.body);
        check(&case, scene.token(), &answer.body);
        assert!(
            answer.header("content-encoding").is_none(),
            "{}",
            answer.head
        );
        if case.ends_with("/close") {
            assert_eq!(answer.header("connection"), Some("close"), "{case}");
            conn.expect_end().await;
            conn = scene.workload.connect(TARGET).await;
        } else {
            assert!(answer.header("connection").is_none(), "{}", answer.head);
        }
    }
    scene.alive("scrubbed bodies").await;
}

#[tokio::test]
async fn peer_38_no_form_coding_or_framing_brings_the_value_over_http_2() {
    let two = H2Origin::script(echo_h2).await;
    let scene = H2Scene::with_good(Origin::script(echo_h1).await, two, |vault| vault).await;
    let token = scene.scene.token();
    for client in [scene.h2().await, scene.h2_to_h1().await] {
        for case in cases() {
            let answer = client.ask(("GET", &case), &[("x-key", token)], b"").await;
            assert_eq!(answer.status, 200, "{case}");
            assert_clean(&case, &answer.body);
            assert_clean(&case, format!("{answer:?}").as_bytes());
            check(&case, token, &answer.body);
            assert!(answer.header("content-encoding").is_none(), "{answer:?}");
            let length = answer.header("content-length");
            assert!(length.is_none_or(|it| it == answer.body.len().to_string()));
        }
    }
    scene.alive("scrubbed bodies").await;
}

#[tokio::test]
async fn peer_37_a_body_that_echoes_the_request_s_body_is_scrubbed_over_http_1_0_too() {
    let origin = Origin::script(|request, conn| async move {
        if path(request.line()) == "/alive" {
            return echo_h1(request, conn).await;
        }
        // Asked for with the key; says it again, and all that it was sent, in two chunks.
        let key = request.header("x-key").expect("a key").to_owned();
        let body = format!(
            "{} {key} {}",
            request.head,
            String::from_utf8_lossy(&request.body)
        );
        let (one, two) = body.split_at(body.len() / 2);
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let body = [one, two].map(|it| format!("{:x}\r\n{it}\r\n", it.len()));
        conn.send(format!("{head}{}{}0\r\n\r\n", body[0], body[1]))
            .await;
    });
    let scene = Scene::around(origin.await).await;
    for version in ["1.0", "1.1"] {
        let head = format!(
            "POST / HTTP/{version}\r\nHost: {GOOD}\r\nX-Key: {{T}}\r\nContent-Length: 28\r\n\r\n{{S}}"
        );
        let answer = scene.ask(GOOD, scene.fill(&head)).await;
        assert_clean(version, &answer.raw);
        assert_clean(version, &answer.body);
        let tokens = answer.text().matches(scene.token()).count();
        assert_eq!(tokens, 3, "{version}: {}", answer.text());
        let chunked = answer.header("transfer-encoding").is_some();
        assert_eq!(chunked, version == "1.1");
    }
    scene.alive("an echo of everything").await;
}
