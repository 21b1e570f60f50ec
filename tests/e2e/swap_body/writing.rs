//! How a value is written in a body, and how long the body is then.

use serde_json::Value;

use super::*;
use crate::support::{REAL, TWO};

/// A value with what forms, JSON and shells give a meaning to.
const AWKWARD: &str = "a&b=c\"\\+/ %é-0123456789";
/// As JSON has it inside of a string.
const IN_JSON: &str = "a&b=c\\\"\\\\+/ %é-0123456789";
/// As a form has it.
const IN_A_FORM: &str = "a%26b%3Dc%22%5C%2B%2F%20%25%C3%A9-0123456789";

#[tokio::test]
async fn case_05_a_json_body_gets_the_length_that_it_has_afterwards() {
    let long = "long-".repeat(100);
    for value in [REAL, "shorty--", &long] {
        let scene = scene_with(value).await;
        for body in ["{\"k\":\"{T}\"}", "{T}", "[\"{T}\",\"{T}{T}\",1]"] {
            let sent = post(JSON, body.replace("{T}", scene.token()));
            let text = body.replace("{T}", value);
            arrives(&scene, body, &sent, &post(JSON, &text)).await;
            assert!(text == value || serde_json::from_str::<Value>(&text).is_ok());
        }
        // Two on one connection, and a third behind them without a body.
        let mut conn = scene.workload.connect(TARGET).await;
        let sent = post(JSON, format!("\"{}\"", scene.token()));
        let last = format!("GET /last HTTP/1.1\r\nHost: {GOOD}\r\n\r\n");
        scene.good.forget();
        conn.send([&sent[..], &sent, last.as_bytes()].concat())
            .await;
        for _ in 0..3 {
            assert_eq!(conn.answer().await.status, 200);
        }
        let expected = post(JSON, format!("\"{value}\""));
        let all = [&expected[..], &expected, last.as_bytes()].concat();
        assert_eq!(show(&scene.good.bytes()), show(&all));
    }
    let play = h2_scene().await;
    let sent = format!("{{\"k\":\"{}\"}}", play.scene.token());
    let expected = format!("{{\"k\":\"{REAL}\"}}");
    let (stated, length) = (sent.len().to_string(), expected.len().to_string());
    let fields = [
        ("content-type", "application/json"),
        ("content-length", &stated),
    ];
    let answer = play
        .h2()
        .await
        .ask(("POST", "/v1"), &fields, sent.as_bytes())
        .await;
    assert_eq!(answer.status, 200);
    let seen = last_of(&play);
    assert_eq!(String::from_utf8_lossy(&seen.body), expected);
    assert_eq!(seen.all("content-length"), [length.as_str()]);
    assert_eq!(seen.authority.as_deref(), Some(TWO));
    let answer = play
        .h2_to_h1()
        .await
        .ask(("POST", "/v1"), &fields, sent.as_bytes())
        .await;
    assert_eq!(answer.status, 200);
    let expected = format!(
        "POST /v1 HTTP/1.1\r\nHost: {GOOD}\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{expected}"
    );
    assert_eq!(show(&play.scene.good.bytes()), show(expected.as_bytes()));
    play.alive("bodies of JSON").await;
}

#[tokio::test]
async fn case_11_a_value_is_escaped_as_the_type_of_the_body_asks() {
    let scene = scene_with(AWKWARD).await;
    let form = "application/x-www-form-urlencoded";
    for (kind, body, written) in [
        ("application/json", "{\"k\":\"{T}\"}", IN_JSON),
        (
            "APPLICATION/Problem+JSON; charset=utf-8",
            "[\"{T}\"]",
            IN_JSON,
        ),
        (
            "application/x-ndjson",
            "{\"k\":\"{T}\"}\n{\"k\":\"{T}\"}\n",
            IN_JSON,
        ),
        (form, "a=1&k={T}&l={T}", IN_A_FORM),
        (
            "Application/X-WWW-Form-Urlencoded;charset=UTF-8",
            "{T}",
            IN_A_FORM,
        ),
        ("text/plain", "k: {T}\n", AWKWARD),
        ("application/octet-stream", "\0{T}\u{1}", AWKWARD),
        ("application/xml", "<k>{T}</k>", AWKWARD),
        ("", "{T}", AWKWARD),
    ] {
        let line = match kind {
            "" => String::new(),
            kind => format!("Content-Type: {kind}\r\n"),
        };
        let sent = body.replace("{T}", scene.token());
        let expected = body.replace("{T}", written);
        arrives(&scene, kind, &post(&line, &sent), &post(&line, &expected)).await;
        let (sent, expected) = (
            chunked(&line, &[sent.as_bytes()]),
            chunked(&line, &[expected.as_bytes()]),
        );
        arrives(&scene, kind, &sent, &expected).await;
        // What its reader reads is the value.
        if kind == "application/json" {
            let (_, text, _) = apart(&expected);
            let read: Value = serde_json::from_slice(&text).expect("JSON");
            assert_eq!(read["k"], AWKWARD);
        }
    }
    // Only the exact bytes are a token, always: no other spelling of them ever is.
    for (kind, spelled) in [
        (form, scene.token().replace('_', "%5F")),
        (form, scene.token().replacen('S', "%53", 1)),
        (
            "application/json",
            scene.token().replacen('S', "\\u0053", 1),
        ),
        ("text/plain", scene.token().to_lowercase()),
        ("text/plain", scene.token().to_uppercase()),
    ] {
        let sent = post(
            &format!("Content-Type: {kind}\r\n"),
            format!("k={spelled}&l=\"m\""),
        );
        arrives(&scene, &spelled, &sent, &sent).await;
    }
    alive_with(&scene, AWKWARD).await;
    // A line end never gets there: no value has one.
    let request = in_bodies(Scene::request()).secret("EXAMPLE_KEY", "a value\r\nwith: lines");
    let refused = scene.vault.sdk().create_session(&request).await;
    assert!(refused.is_err());
}

#[tokio::test]
async fn case_12_a_multipart_body_keeps_its_boundaries_and_gets_its_length() {
    let scene = scene_with(AWKWARD).await;
    let kind = "Content-Type: multipart/form-data; boundary=\"=cut\"\r\n";
    let body = |secret: &str| {
        let mut body = format!(
            "--=cut\r\nContent-Disposition: form-data; name=\"key\"\r\n\r\n{secret}\r\n--=cut\r\n\
             Content-Disposition: form-data; name=\"file\"; filename=\"a.bin\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        )
        .into_bytes();
        body.extend((0..=255).cycle().take(5000));
        body.extend_from_slice(format!("{secret}\0{secret}").as_bytes());
        body.extend((0..=255).cycle().take(5000));
        body.extend_from_slice(b"\r\n--=cut--\r\n");
        body
    };
    let (sent, expected) = (body(scene.token()), body(AWKWARD));
    arrives(&scene, "sized", &post(kind, &sent), &post(kind, &expected)).await;
    let pieces: Vec<&[u8]> = sent.chunks(999).collect();
    let arrived = received(&scene, chunked(kind, &pieces)).await;
    let (head, arrived, trailers) = apart(&arrived);
    assert!(head.ends_with(&format!("{kind}{CHUNKED}")), "{head}");
    assert!(arrived == expected && trailers == "\r\n");
    alive_with(&scene, AWKWARD).await;
}

#[tokio::test]
async fn peer_28_any_growth_has_its_framing() {
    for value in ["shorty--", &"long".repeat(2048)] {
        let scene = scene_with(value).await;
        for count in [1, 2, 500] {
            let text = |it: &str| format!("{{\"k\":\"{}\"}}", it.repeat(count));
            let (sent, expected) = (text(scene.token()), text(value));
            // Small before, and whatever it is afterwards.
            arrives(&scene, "sized", &post(JSON, &sent), &post(JSON, &expected)).await;
            let arrived = received(&scene, chunked(JSON, &[sent.as_bytes()])).await;
            let (head, body, trailers) = apart(&arrived);
            assert!(
                head.contains(CHUNKED) && !head.contains("Content-Length"),
                "{head}"
            );
            assert!(body == expected.as_bytes() && trailers == "\r\n");
        }
        alive_with(&scene, value).await;
    }
}
