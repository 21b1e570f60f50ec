//! Bodies in a content coding: decoded, swapped and sent without it, or left, or refused. Never
//! sent half done.

use super::*;
use crate::scrub::{CODINGS, encode, named};
use crate::support::REAL;

fn line(coding: &str) -> String {
    format!(
        "{JSON}Content-Encoding: {}\r\n",
        named(coding).unwrap_or("identity")
    )
}

/// A body that is longer than what is read whole, coded or not.
fn incompressible() -> String {
    let mut state = 7_u64;
    let digits = (0..2 * LARGE).map(|_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        char::from(b'!' + u8::try_from(state >> 33 & 63).expect("six bits"))
    });
    digits.collect()
}

#[tokio::test]
async fn case_13_a_coded_body_is_decoded_where_it_holds_a_token() {
    let scene = scene().await;
    for coding in &CODINGS[1..] {
        let text = |it: &str| format!("{{\"k\":\"{it}\",\"text\":\"{}\"}}", "words ".repeat(50));
        let (sent, expected) = (text(scene.token()), text(REAL));
        let coded = encode(coding, sent.as_bytes());
        let fields = format!("{}Content-MD5: x\r\nX-A: 1\r\n", line(coding));
        let sent = post(&fields, &coded);
        let decoded = post(&format!("{JSON}X-A: 1\r\n"), &expected);
        arrives(&scene, coding, &sent, &decoded).await;
        // Chunks, of whatever size.
        for size in [1, 7, 10_000] {
            let pieces: Vec<&[u8]> = coded.chunks(size).collect();
            let arrived = received(&scene, chunked(&fields, &pieces)).await;
            let (head, body, _) = apart(&arrived);
            assert_eq!(show(&body), show(expected.as_bytes()), "{coding} {size}");
            assert!(
                head.ends_with(&format!("{JSON}X-A: 1\r\n{CHUNKED}")),
                "{head}"
            );
        }
        // Too long to be read whole: the token is at its end.
        let long = incompressible();
        let coded = encode(coding, format!("{long}{}", scene.token()).as_bytes());
        assert!(coded.len() > LARGE, "{coding}: {}", coded.len());
        let arrived = received(&scene, post(&fields, &coded)).await;
        let (head, body, _) = apart(&arrived);
        assert!(body == format!("{long}{REAL}").as_bytes(), "{coding}");
        assert!(
            head.ends_with(&format!("{JSON}X-A: 1\r\n{CHUNKED}")),
            "{head}"
        );
        // Small as it is sent, and large when it is decoded.
        let words = "words ".repeat(LARGE);
        let text = |it: &str| format!("{words}{it}{words}");
        let coded = encode(coding, text(scene.token()).as_bytes());
        assert!(coded.len() < 10_000, "{coding}: {}", coded.len());
        let arrived = received(&scene, post(&line(coding), &coded)).await;
        assert!(arrived == post(JSON, text(REAL)), "{coding}");
    }
    scene.alive("codings").await;
}

#[tokio::test]
async fn peer_31_a_coded_body_without_a_token_leaves_as_it_came() {
    let scene = scene().await;
    for coding in &CODINGS[1..] {
        for text in [
            "{\"k\":\"no token\"}",
            "SEALED_ffffffffffffffffffffffffffffffff",
            "",
        ] {
            let coded = encode(coding, text.as_bytes());
            let fields = format!("{}Digest: x\r\n", line(coding));
            let sent = post(&fields, &coded);
            arrives(&scene, coding, &sent, &sent).await;
        }
    }
    // What is zipped and says nothing of it is a body like any other.
    let zipped = encode(
        "gzip",
        format!("{}{}", "words ".repeat(99), scene.token()).as_bytes(),
    );
    assert!(!contains(&zipped, scene.token()), "more than stored");
    let sent = post("Content-Type: application/gzip\r\n", &zipped);
    arrives(&scene, "a file", &sent, &sent).await;
    let same = post("Content-Encoding: identity\r\n", "no token");
    arrives(&scene, "identity", &same, &same).await;
    // Where no secret may stand in the body, nobody looks.
    let other = Scene::new().await;
    let sent = post("Content-Encoding: exi\r\n", other.token());
    arrives(&other, "no place", &sent, &sent).await;
    scene.alive("codings").await;
}

#[tokio::test]
async fn case_13_a_coding_that_cannot_be_read_is_refused() {
    let scene = scene().await;
    let gzip = encode("gzip", scene.token().as_bytes());
    let (unknown, stacked) = ("content_coding_unknown", "content_coding_stacked");
    for (fields, code) in [
        ("Content-Encoding: exi\r\n", unknown),
        ("Content-Encoding: aes128gcm\r\n", unknown),
        ("Content-Encoding: gzip, exi\r\n", unknown),
        ("Content-Encoding: gzip, gzip\r\n", stacked),
        (
            "Content-Encoding: gzip\r\nContent-Encoding: br\r\n",
            stacked,
        ),
    ] {
        refused(&scene, fields, &post(fields, &gzip), (415, code)).await;
        refused(&scene, fields, &chunked(fields, &[&gzip]), (415, code)).await;
    }
    let records = scene.vault.audit();
    let of = |code: &str| records.iter().filter(|line| line["reason"] == code).count();
    assert_eq!((of(unknown), of(stacked)), (6, 4));
    // Damaged, cut, followed by something else, or not in that coding at all.
    let mut damaged = gzip.clone();
    let end = damaged.len() - 5;
    damaged[end] ^= 1;
    let cut = &gzip[..gzip.len() - 1];
    let behind = [&gzip[..], b"GET / HTTP/1.1"].concat();
    for body in [
        &damaged[..],
        cut,
        &behind,
        b"no gzip",
        scene.token().as_bytes(),
    ] {
        let sent = post("Content-Encoding: gzip\r\n", body);
        refused(&scene, "damaged", &sent, (400, "bad_content_coding")).await;
    }
    // In chunks the head has left by then: what has not is cut off, and never looks whole.
    for body in [&damaged[..], cut] {
        scene.good.forget();
        let answer = scene
            .ask(GOOD, chunked("Content-Encoding: gzip\r\n", &[body]))
            .await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (400, "bad_content_coding")
        );
        assert!(!contains(&scene.good.bytes(), "0\r\n\r\n"));
    }
    scene.alive("damaged codings").await;
}

#[tokio::test]
async fn case_13_a_bomb_is_refused_before_it_grows() {
    let scene = scene().await;
    // Forty megabytes in ten kilobytes, or in a few.
    for coding in ["gzip", "br", "zstd"] {
        let bomb = encode(coding, &vec![b' '; 40 << 20]);
        assert!(bomb.len() < 60_000, "{coding}: {}", bomb.len());
        let sent = post(&line(coding), &bomb);
        refused(&scene, coding, &sent, (400, "bad_content_coding")).await;
    }
}

#[tokio::test]
async fn a_coded_body_is_swapped_over_http_2_too() {
    let play = h2_scene().await;
    let token = play.scene.token();
    for coding in &CODINGS[1..] {
        let name = named(coding).expect("a name");
        for (text, kept) in [(token, false), ("no token", true)] {
            let coded = encode(coding, text.as_bytes());
            let expected = if kept {
                coded.clone()
            } else {
                REAL.as_bytes().to_vec()
            };
            let length = coded.len().to_string();
            let fields = [("content-encoding", name), ("content-length", &length)];
            let answer = play.h2().await.ask(("POST", "/"), &fields, &coded).await;
            assert_eq!(answer.status, 200);
            let seen = last_of(&play);
            assert_eq!(show(&seen.body), show(&expected), "{coding}");
            assert_eq!(
                seen.all("content-encoding").len(),
                usize::from(kept),
                "{coding}"
            );
            assert_eq!(
                seen.all("content-length"),
                [expected.len().to_string()],
                "{coding}"
            );
        }
    }
    for client in [play.h2().await, play.h2_to_h1().await] {
        let answer = client
            .ask(("POST", "/"), &[("content-encoding", "exi")], b"x")
            .await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (415, "content_coding_unknown")
        );
        let fields = [("content-encoding", "gzip")];
        let answer = client.ask(("POST", "/"), &fields, b"no gzip").await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (400, "bad_content_coding")
        );
    }
    play.alive("codings").await;
}
