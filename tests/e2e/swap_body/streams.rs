//! Bodies on their way: without a token they are the same bytes, whatever they are; large ones do
//! not wait for their end; and a client that asks first is told to go on.

use oshu_vault_sdk::UpdateSession;

use super::*;
use crate::h2::bodies::payloads;
use crate::support::{REAL, sha256};

#[tokio::test]
async fn peer_29_a_body_without_a_token_is_the_same_bytes() {
    let scene = scene().await;
    for payload in payloads() {
        let mut kind = String::new();
        for (name, value) in &payload.fields {
            kind.extend([*name, ": ", value, "\r\n"]);
        }
        let small = payload.bytes.len() <= 64 * 1024;
        let coded = payload
            .fields
            .iter()
            .any(|(name, _)| *name == "content-encoding");
        assert!(small || !coded, "coded bodies are small here");
        let sent = post(&kind, &payload.bytes);
        let arrived = received(&scene, &sent).await;
        if small {
            // Head and framing too.
            assert_eq!(sha256(&arrived), sha256(&sent), "{}", payload.name);
        } else {
            let (head, body, _) = apart(&arrived);
            assert_eq!(sha256(&body), sha256(&payload.bytes), "{}", payload.name);
            let expected = format!("{kind}{CHUNKED}");
            assert!(
                head.ends_with(&expected) && !head.contains("Length"),
                "{head}"
            );
        }
        if coded {
            continue;
        }
        // Chunks that are not large keep their sizes.
        for size in [1000, 64 * 1024] {
            let chunks: Vec<&[u8]> = payload.bytes.chunks(size).collect();
            let clear = chunks.iter().all(|chunk| chunk.last() != Some(&b'S'));
            let sent = chunked(&kind, &chunks);
            let arrived = received(&scene, &sent).await;
            let case = format!("{} in {size}", payload.name);
            assert_eq!(apart(&arrived).1, payload.bytes, "{case}");
            if clear {
                assert_eq!(sha256(&arrived), sha256(&sent), "{case}");
            }
        }
    }
    scene.alive("bodies without a token").await;
}

#[tokio::test]
async fn a_body_of_exactly_the_limit_keeps_its_length_and_one_more_does_not() {
    let scene = scene().await;
    for (length, keeps) in [
        (64 * 1024 - 1, true),
        (64 * 1024, true),
        (64 * 1024 + 1, false),
    ] {
        let sent = post("", "x".repeat(length));
        let arrived = received(&scene, &sent).await;
        let (head, body, _) = apart(&arrived);
        assert_eq!(head.contains("Content-Length"), keeps, "{length}");
        assert_eq!(body.len(), length);
        let text = format!(
            "{}{}",
            "x".repeat(length - scene.token().len()),
            scene.token()
        );
        let (head, body, _) = apart(&received(&scene, post("", text)).await);
        assert_eq!(head.contains("Content-Length"), keeps, "{length}");
        assert!(body.ends_with(REAL.as_bytes()));
    }
}

#[tokio::test]
async fn peer_30_large_bodies_arrive_whole_over_every_protocol() {
    let play = h2_scene().await;
    let (scene, length) = (&play.scene, 3 << 20);
    let text = |it: &str| format!("{it}{}{it}{}{it}", "-".repeat(length), "=".repeat(77));
    let (sent, expected) = (text(scene.token()), text(REAL));
    let sum = sha256(expected.as_bytes());
    let (head, body, _) = apart(&received(scene, post("", &sent)).await);
    assert!(head.contains(CHUNKED));
    assert_eq!(sha256(&body), sum);
    let stated = sent.len().to_string();
    for fields in [&[("content-length", stated.as_str())][..], &[]] {
        let client = play.h2().await;
        let answer = client.ask(("POST", "/"), fields, sent.as_bytes()).await;
        assert_eq!(answer.status, 200);
        let seen = last_of(&play);
        assert!(seen.whole && seen.all("content-length").is_empty());
        assert_eq!(sha256(&seen.body), sum);
        scene.good.forget();
        let client = play.h2_to_h1().await;
        let answer = client.ask(("POST", "/"), fields, sent.as_bytes()).await;
        assert_eq!(answer.status, 200);
        let (head, body, _) = apart(&scene.good.bytes());
        assert!(head.contains("transfer-encoding: chunked") && !head.contains("content-length"));
        assert_eq!(sha256(&body), sum);
    }
    play.alive("large bodies").await;
}

#[tokio::test]
async fn a_stream_leaves_as_it_comes() {
    // Each side sends only when the other's piece has arrived; only the last has a token.
    let origin = Origin::raw(|conn| async move {
        while let Some(head) = conn.read_head().await {
            if head.contains("/alive") {
                conn.send(OK).await;
                continue;
            }
            conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                .await;
            for _ in 0..20 {
                // "3\r\n", two digits and a line end, "\r\n".
                let piece = conn.read_exactly(8).await.expect("a chunk");
                conn.send(chunk(&piece[3..6])).await;
            }
            let rest = format!("{:x}\r\n{REAL}\r\n0\r\n\r\n", REAL.len());
            let last = conn.read_exactly(rest.len()).await.expect("the last chunk");
            assert_eq!(show(&last), show(rest.as_bytes()));
            conn.send("0\r\n\r\n").await;
        }
    })
    .await;
    let scene = Scene::with_good(origin, |vault| vault, in_bodies).await;
    let mut conn = scene.workload.connect(TARGET).await;
    conn.send(head(CHUNKED)).await;
    for index in 10..30 {
        conn.send(chunk(format!("{index}\n").as_bytes())).await;
        if index == 10 {
            assert_eq!(conn.answer_head().await.status, 200);
        }
        let piece = conn.take(8).await;
        assert_eq!(piece, chunk(format!("{index}\n").as_bytes()));
    }
    conn.send(chunk(scene.token().as_bytes())).await;
    conn.send("0\r\n\r\n").await;
    assert_eq!(conn.take(5).await, b"0\r\n\r\n");
    scene.alive("a stream").await;
}

#[tokio::test]
async fn a_client_that_asks_first_is_told_to_go_on_and_one_that_does_not_is_not() {
    let scene = scene().await;
    let expect = "Expect: 100-continue\r\n";
    for (body, written) in [("{T}", REAL), ("no token", "no token")] {
        let sent = post(expect, scene.fill(body));
        let at = sent.len() - scene.fill(body).len();
        let expected = post("", written);
        let mut conn = scene.workload.connect(TARGET).await;
        scene.good.forget();
        conn.send(&sent[..at]).await;
        assert_eq!(
            conn.answer_head().await.raw,
            b"HTTP/1.1 100 Continue\r\n\r\n"
        );
        // The origin is not asked: what it gets is whole.
        scene.good.expect_nothing("a head without its body");
        conn.send(&sent[at..]).await;
        let answer = conn.answer().await;
        assert_eq!((answer.status, answer.interim.len()), (200, 0));
        assert_eq!(show(&scene.good.bytes()), show(&expected));
        // Who does not wait needs no word.
        scene.good.forget();
        conn.send(&sent).await;
        assert_eq!(conn.answer().await.status, 200);
        assert_eq!(show(&scene.good.bytes()), show(&expected));
        // Who speaks HTTP/1.0 cannot wait.
        let old = String::from_utf8(sent)
            .expect("text")
            .replace("HTTP/1.1", "HTTP/1.0");
        scene.good.forget();
        let answer = scene.ask(GOOD, &old).await;
        assert_eq!((answer.status, answer.interim.len()), (200, 0));
        assert_eq!(show(&scene.good.bytes()), show(&expected));
    }
    scene.alive("bodies that are asked for").await;
}

#[tokio::test]
async fn the_origin_is_asked_for_a_body_that_is_not_read_ahead() {
    let origin = Origin::raw(|conn| async move {
        while let Some(head) = conn.read_head().await {
            if head.contains("/alive") {
                conn.send(OK).await;
                continue;
            }
            assert!(head.contains("Expect: 100-continue"), "{head}");
            conn.send("HTTP/1.1 100 Continue\r\nX-Origin: 1\r\n\r\n")
                .await;
            let mut body = Vec::new();
            while !body.ends_with(b"0\r\n\r\n") {
                body.extend(conn.read_some().await.expect("more"));
            }
            conn.send(OK).await;
        }
    })
    .await;
    let scene = Scene::with_good(origin, |vault| vault, in_bodies).await;
    let text = format!("{}{}", "-".repeat(LARGE), scene.token());
    let length = format!("Content-Length: {}\r\n", text.len());
    for (fields, body) in [
        (length.as_str(), text.clone().into_bytes()),
        (
            CHUNKED,
            [&chunk(text.as_bytes())[..], b"0\r\n\r\n"].concat(),
        ),
    ] {
        scene.good.forget();
        let mut conn = scene.workload.connect(TARGET).await;
        conn.send(head(&format!("Expect: 100-continue\r\n{fields}")))
            .await;
        let interim = conn.answer_head().await;
        assert_eq!(interim.raw, b"HTTP/1.1 100 Continue\r\nX-Origin: 1\r\n\r\n");
        conn.send(&body).await;
        assert_eq!(conn.answer().await.status, 200);
        let (_, body, _) = apart(&scene.good.bytes());
        assert!(body == text.replace(scene.token(), REAL).as_bytes());
    }
    scene.alive("bodies that are asked for").await;
}

#[tokio::test]
async fn what_waits_for_its_body_while_the_session_changes_does_not_leave() {
    let scene = scene().await;
    let (sdk, id) = (scene.vault.sdk(), &scene.session.session_id);
    let mut conn = scene.workload.connect(TARGET).await;
    let body = scene.fill("{\"k\":\"{T}\"}");
    let fields = format!(
        "{JSON}Expect: 100-continue\r\nContent-Length: {}\r\n",
        body.len()
    );
    scene.good.forget();
    // It waits for its body once it says so.
    conn.send(head(&fields)).await;
    conn.take_until(b"HTTP/1.1 100 Continue\r\n\r\n").await;
    let patch = UpdateSession::new().secret("EXAMPLE_KEY", "another-value-0123456789");
    sdk.update_session(id, &patch).await.expect("a patch");
    conn.send(&body).await;
    let answer = conn.answer().await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (409, "session_changed")
    );
    scene.good.expect_nothing("a body that came too late");
    alive_with(&scene, "another-value-0123456789").await;
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_a_body_sends_nothing() {
    let scene = scene().await;
    let sent = post("", scene.fill("{T}{T}"));
    let mut conn = scene.workload.connect(TARGET).await;
    conn.send(&sent[..sent.len() - 10]).await;
    drop(conn);
    let left = |lines: &[serde_json::Value]| {
        let gone =
            |line: &serde_json::Value| line["path"] == "/v1" && line["reason"] == "client_gone";
        lines.iter().any(gone)
    };
    scene.vault.audit_log().wait("the record", left).await;
    scene.nothing_arrived("half a body").await;
}
