//! How much may be put into a body, and how a body ends that has more.

use super::*;
use crate::support::{REAL, TWO};

/// The most tokens that are swapped in one body.
const TOKENS: usize = 1000;

#[tokio::test]
async fn case_18_a_body_of_nothing_but_tokens_is_cut_and_never_looks_whole() {
    let value = "v".repeat(8192);
    for in_chunks in [false, true] {
        let scene = scene_with(&value).await;
        let body = scene.token().repeat((1 << 20) / scene.token().len());
        let sent = if in_chunks {
            chunked("", &[body.as_bytes()])
        } else {
            post("", &body)
        };
        let answer = scene.ask(GOOD, sent).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (413, "too_many_tokens")
        );
        assert_eq!(answer.header("connection"), Some("close"));
        scene.good.wait_ended(1).await;
        let arrived = scene.good.bytes();
        assert!(
            arrived.len() < (TOKENS + 2) * value.len(),
            "{}",
            arrived.len()
        );
        assert!(!contains(
            &arrived[arrived.len().saturating_sub(64)..],
            "\r\n0\r\n\r\n"
        ));
        alive_with(&scene, &value).await;
    }
    let scene = scene_with(&value).await;
    // Small enough to be read whole: refused before anything leaves.
    let small = scene.token().repeat(TOKENS + 1);
    scene.good.forget();
    let answer = scene.ask(GOOD, post("", small)).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (413, "too_many_tokens")
    );
    scene.good.expect_nothing("a small body of too many tokens");
    // As many as there may be go through, at their length or in chunks.
    let most = scene.token().repeat(TOKENS);
    let expected = value.repeat(TOKENS);
    let arrived = received(&scene, post("", &most)).await;
    assert!(arrived == post("", &expected));
    let padded = format!("{most}{}", "-".repeat(LARGE));
    let (_, arrived, _) = apart(&received(&scene, post("", &padded)).await);
    assert!(arrived == format!("{expected}{}", "-".repeat(LARGE)).as_bytes());
    alive_with(&scene, &value).await;
}

#[tokio::test]
async fn case_18_over_http_2_the_stream_alone_ends() {
    let play = h2_scene().await;
    let body = play.scene.token().repeat(30_000);
    let length = body.len().to_string();
    let small = play.scene.token().repeat(TOKENS + 1);
    for client in [play.h2().await, play.h2_to_h1().await] {
        for fields in [&[("content-length", length.as_str())][..], &[]] {
            let answer = client.ask(("POST", "/over"), fields, body.as_bytes()).await;
            assert_eq!(
                (answer.status, answer.code().as_str()),
                (413, "too_many_tokens")
            );
        }
        let length = small.len().to_string();
        let fields = [("content-length", length.as_str())];
        let answer = client
            .ask(("POST", "/small"), &fields, small.as_bytes())
            .await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (413, "too_many_tokens")
        );
        assert_eq!(client.get("/next").await.status, 200);
    }
    for seen in play.two.requests() {
        assert!(
            seen.path != "/small" && !(seen.path == "/over" && seen.whole),
            "{}",
            seen.path
        );
        assert_eq!(seen.authority.as_deref(), Some(TWO));
    }
    let whole = |one: Vec<u8>| contains(&one, "/over") && one.ends_with(b"\r\n0\r\n\r\n");
    assert!(!play.scene.good.received().into_iter().any(whole));
    assert!(!contains(&play.scene.good.bytes(), "/small"));
    play.alive("too many tokens").await;
}

#[tokio::test]
async fn peer_34_one_request_has_the_secret_in_its_head_and_in_its_body() {
    let scene = scene().await;
    let fields = |it: &str| format!("Authorization: Bearer {it}\r\nX-Key: {it}\r\n");
    let (sent, expected) = (
        post(&fields(scene.token()), scene.fill("k={T}")),
        post(&fields(REAL), scene.fill("k={S}")),
    );
    arrives(&scene, "both", &sent, &expected).await;
    scene.alive("head and body").await;
}
