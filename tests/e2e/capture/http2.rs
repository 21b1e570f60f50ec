//! The same over HTTP/2, towards upstreams of both protocols.

use oshu_vault_sdk::UpdateSession;

use super::*;
use crate::scrub::encode;
use crate::support::{H2Exchange, H2Origin, H2Scene, TWO};

/// Answers with the body of the request, whose first line says the coding.
async fn say_h2(mut exchange: H2Exchange) {
    let mut said = Vec::new();
    while let Some(piece) = exchange.read().await {
        said.extend_from_slice(&piece);
    }
    if said.is_empty() {
        return exchange.answer(200, "ok").await;
    }
    let at = said.iter().position(|byte| *byte == b'\n').expect("a line");
    let coding = String::from_utf8_lossy(&said[..at]).into_owned();
    let mut fields = vec![("content-type", "application/json"), ("x-origin", "1")];
    if !coding.is_empty() {
        fields.push(("content-encoding", coding.as_str()));
    }
    exchange.answer_head(200, &fields, false);
    for piece in said[at + 1..].chunks(5000) {
        if !exchange.send(piece.to_vec()).await {
            return;
        }
    }
    exchange.end("").await;
}

/// Sets the scene; both origins that speak are watched.
async fn scene() -> H2Scene {
    let good = Origin::script(say).await;
    let scene = H2Scene::with_good(good, H2Origin::script(say_h2).await, |vault| vault).await;
    let other = CaptureEndpoint::new(format!("https://{TWO}{PATH}"));
    let update = UpdateSession::new().capture([endpoint(), other]);
    let vault = scene.scene.vault.sdk();
    let id = &scene.scene.session.session_id;
    vault.update_session(id, &update).await.expect("a patch");
    scene
}

#[tokio::test]
async fn answers_over_http_2_are_captured_from_at_once() {
    let scene = scene().await;
    let zip = encode("gzip", standard().as_bytes());
    let plain = [b"\n", standard().as_bytes()].concat();
    let coded = [b"gzip\n".as_slice(), &zip].concat();
    let (h2, h1) = (scene.h2().await, scene.h2_to_h1().await);
    let over_h1 = chunked("Content-Encoding: gzip\r\n", &[&zip], "");
    for (client, said) in [
        (&h2, plain),
        (&h2, coded),
        (&h1, json(&standard())),
        (&h1, over_h1),
    ] {
        let answer = client.ask(("POST", PATH), &[], &said).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_clean("over HTTP/2", &answer.body);
        let tokens = sealed(&answer.body);
        assert_eq!(
            answer.text(),
            with_tokens([&tokens[0], &tokens[1], &tokens[2]])
        );
        let length = answer.body.len().to_string();
        assert_eq!(answer.header("content-length"), Some(length.as_str()));
        assert_eq!(answer.header("content-encoding"), None);
        // The next stream of the same connection has the value.
        let field = format!("Bearer {}", tokens[0]);
        let fields = [("authorization", field.as_str())];
        assert_eq!(client.ask(("GET", "/me"), &fields, b"").await.status, 200);
    }
    let seen = scene.two.requests();
    let value = format!("Bearer {ACCESS}");
    let with_value = seen
        .iter()
        .filter(|it| it.all("authorization") == [value.as_str()]);
    assert_eq!(with_value.count(), 2, "{seen:#?}");
    let field = format!("\r\nauthorization: {value}\r\n");
    let bytes = scene.scene.good.bytes();
    let text = String::from_utf8_lossy(&bytes);
    assert_eq!(
        text.to_ascii_lowercase()
            .matches(&field.to_ascii_lowercase())
            .count(),
        2
    );
    // A refresh: the value goes up, and what comes back of it does not reach the workload.
    let said = [b"\n", standard().as_bytes()].concat();
    let answer = h2.ask(("POST", PATH), &[], &said).await;
    let [_, refresh, _] = sealed(&answer.body);
    let body = |token: &str| format!("\n{{\"refresh_token\":\"{token}\"}}");
    let fields = [("content-type", "application/json")];
    for (path, value) in [(PATH, REFRESH), ("/v1/oauth/Token", refresh.as_str())] {
        let sent = body(&refresh);
        let answer = h2.ask(("POST", path), &fields, sent.as_bytes()).await;
        assert_clean(path, &answer.body);
        let seen = scene.two.requests().pop().expect("a request");
        assert_eq!(String::from_utf8_lossy(&seen.body), body(value), "{path}");
    }
    scene.alive("captures over HTTP/2").await;
}

#[tokio::test]
async fn what_cannot_be_captured_over_http_2_is_refused_whole() {
    let scene = scene().await;
    let long = format!("\n{}{}", " ".repeat(256 * 1024), standard());
    let client = scene.h2().await;
    for (said, code) in [
        ("\n<html>".to_owned(), "token_answer_unreadable"),
        (format!("\n{}", &standard()[1..]), "token_answer_unreadable"),
        (long, "token_answer_too_large"),
        (format!("exi\n{}", standard()), "content_coding_unknown"),
        (format!("gzip\n{}", standard()), "http_response_invalid"),
    ] {
        let answer = client.ask(("POST", PATH), &[], said.as_bytes()).await;
        assert_eq!((answer.status, answer.code().as_str()), (502, code));
        assert_eq!(answer.header("x-origin"), None);
        assert_clean(code, &answer.body);
    }
    // The connection goes on.
    let answer = client.ask(("GET", "/"), &[], b"").await;
    assert_eq!(answer.text(), "ok");
    scene.alive("refusals over HTTP/2").await;
}
