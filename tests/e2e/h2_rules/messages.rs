//! Messages: lengths that do not match, trailers that are none, frames in the wrong state.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Hostile, answered, base, fields, refused};
use crate::support::{GOOD, H2Origin, H2Scene, REAL, TWO, contains, show};
use crate::swap_body::h2_scene;

/// Returns a POST with fields.
fn post(host: &str, more: &[(&str, &str)]) -> Value {
    fields(host, &[(":method", Some("POST"))], more)
}

#[tokio::test]
async fn case_53_a_length_that_does_not_match_the_body_never_makes_a_request() {
    let play = H2Scene::new().await;
    let Some(mut hostile) = Hostile::start(&play).await else {
        return;
    };
    let smuggled = "helloGET /smug HTTP/1.1\r\nHost: good.example.com\r\n\r\n";
    for (case, lengths, pieces) in [
        ("shorter", &["5"][..], &["hel"][..]),
        ("shorter in pieces", &["50"], &["hello", " ", "you"]),
        ("nothing", &["5"], &[""]),
        ("longer", &["5"], &[smuggled]),
        (
            "longer in pieces",
            &["5"],
            &["hello", "GET /smug HTTP/1.1\r\n\r\n"],
        ),
        ("nothing announced", &["0"], &["GET /smug HTTP/1.1\r\n\r\n"]),
    ] {
        for host in [TWO, GOOD] {
            play.scene.good.forget();
            let before = play.two.requests().len();
            let more: Vec<_> = lengths.iter().map(|it| ("content-length", *it)).collect();
            let mut steps = vec![json!(["headers", 1, post(host, &more), false])];
            for (index, piece) in pieces.iter().enumerate() {
                steps.push(json!(["data", 1, piece, index == pieces.len() - 1]));
            }
            steps.push(json!(["done", 1]));
            let said = hostile.case(host, &steps).await;
            let outcome = said.outcome(1);
            // What follows a body that was whole may come too late to matter; it goes nowhere.
            let expected: &[&str] = if case.starts_with("longer") || case.ends_with("announced") {
                &["200", "400", "reset"]
            } else {
                &["400", "reset"]
            };
            assert!(
                expected.contains(&outcome.as_str()),
                "{case} to {host}: {said:?}"
            );
            assert_eq!(
                said.outcome(super::LAST),
                "200",
                "{case} to {host}: {said:?}"
            );
            if host == TWO {
                let seen = play.two.requests();
                let of_case = seen[before..].iter().filter(|seen| seen.path == "/case");
                assert!(of_case.clone().all(|seen| !seen.whole), "{case}: {seen:?}");
                let seen = play
                    .two
                    .wait("the reset", |all| {
                        let mut of_case = all[before..].iter().filter(|it| it.path == "/case");
                        of_case.all(|seen| seen.reset.is_some())
                    })
                    .await;
                assert!(!contains(format!("{seen:?}").as_bytes(), "/smug"), "{case}");
            } else {
                let bytes = play.scene.good.bytes();
                assert!(!contains(&bytes, "/smug"), "{case}: {}", show(&bytes));
                // The last request does not stand in what the origin takes for a body.
                for one in play.scene.good.received() {
                    let mixed = contains(&one, "/case") && contains(&one, "/last");
                    assert!(!mixed, "{case}: {}", show(&one));
                }
            }
        }
        play.alive(case).await;
    }
}

#[tokio::test]
async fn case_53_lengths_that_are_none_are_refused() {
    let play = H2Scene::new().await;
    let Some(mut hostile) = Hostile::start(&play).await else {
        return;
    };
    for lengths in [
        &["+5"][..],
        &["-5"],
        &["0x5"],
        &["5 5"],
        &["5_0"],
        &[""],
        &["abc"],
        &["5", "6"],
        &["6", "5"],
        &["5, 6"],
        &["18446744073709551621"],
        &["4444444444444444444444444444444444444444"],
    ] {
        let name = format!("lengths {lengths:?}");
        refused(&play, &mut hostile, &name, &["400", "reset"], |host| {
            let more: Vec<_> = lengths.iter().map(|it| ("content-length", *it)).collect();
            vec![
                json!(["headers", 1, post(host, &more), false]),
                json!(["data", 1, "hello"]),
                json!(["done", 1]),
            ]
        })
        .await;
    }
}

#[tokio::test]
async fn case_53_trailers_carry_neither_pseudo_fields_nor_framing() {
    let play = H2Scene::new().await;
    let Some(mut hostile) = Hostile::start(&play).await else {
        return;
    };
    for trailer in [
        (":path", "/smug"),
        (":authority", "evil.example.net"),
        (":status", "200"),
        ("transfer-encoding", "chunked"),
        ("connection", "close"),
        ("keep-alive", "smug"),
        ("upgrade", "smug"),
        ("content_length", "smug"),
        ("content-length", "5"),
        ("host", "evil.example.net"),
        ("x-a", "1\r\nx-smug: 2"),
        ("X-Smug", "1"),
        ("proxy-authorization", "Basic c211Zw=="),
        ("authorization", "Bearer {T}"),
    ] {
        for host in [TWO, GOOD] {
            play.scene.good.forget();
            let before = play.two.requests().len();
            let value = trailer.1.replace("{T}", play.scene.token());
            let steps = [
                json!(["headers", 1, post(host, &[]), false]),
                json!(["data", 1, "hello", false]),
                json!(["headers", 1, [[trailer.0, value], ["x-good", "1"]]]),
                json!(["done", 1]),
            ];
            let said = hostile.case(host, &steps).await;
            let outcome = said.outcome(1);
            let known = ["200", "400", "reset", "goaway"].contains(&outcome.as_str());
            assert!(known, "{trailer:?}: {said:?}");
            let goes_on = said.outcome(super::LAST) == "200";
            assert!(
                goes_on || outcome == "goaway",
                "{trailer:?} to {host}: {said:?}"
            );
            let arrived = super::arrived(&play, host, before);
            let text = String::from_utf8_lossy(&arrived.all).to_ascii_lowercase();
            for gone in [
                "smug",
                "evil",
                "c211zw==",
                REAL,
                "connection\"",
                "connection:",
            ] {
                assert!(!text.contains(gone), "{trailer:?}: {text}");
            }
            if host == GOOD {
                // Behind the last chunk stands nothing that frames.
                let behind = text.split("\r\n0\r\n").nth(1).unwrap_or_default();
                let trailers = behind.split("\r\n\r\n").next().unwrap_or_default();
                for gone in ["transfer-encoding", "content-length", "host"] {
                    assert!(!trailers.contains(gone), "{trailer:?}: {text}");
                }
            }
        }
        play.alive(&format!("{trailer:?}")).await;
    }
    // A second block that does not end the stream is none.
    refused_after_body(&play, &mut hostile).await;
}

async fn refused_after_body(play: &H2Scene, hostile: &mut Hostile) {
    for host in [TWO, GOOD] {
        let steps = [
            json!(["headers", 1, post(host, &[]), false]),
            json!(["data", 1, "hello", false]),
            json!(["headers", 1, [["x-a", "1"]], false]),
            json!(["data", 1, "GET /smug HTTP/1.1\r\n\r\n"]),
            json!(["done", 1]),
        ];
        let said = hostile.case(host, &steps).await;
        let outcome = said.outcome(1);
        let known = ["400", "reset", "goaway", "closed"].contains(&outcome.as_str());
        assert!(known, "{said:?}");
    }
    play.alive("trailers that do not end the stream").await;
}

#[tokio::test]
async fn case_74_frames_in_the_wrong_state_end_a_stream_or_the_connection() {
    // No wait ends anything here: it is the frame that does.
    let never = Duration::from_hours(1);
    let play = H2Scene::with(H2Origin::echo_ok().await, |vault| {
        vault.config(|config| {
            config.limits.head_timeout = never;
            config.limits.idle_timeout = never;
            config.limits.first_byte_timeout = never;
        })
    })
    .await;
    let Some(mut hostile) = Hostile::start(&play).await else {
        return;
    };
    let ended = &["400", "reset", "goaway", "closed"];
    // Each begins with a request that cannot be complete.
    for (name, steps) in [
        ("DATA without a stream", vec![json!(["data", 1, "smug"])]),
        ("DATA on stream 0", vec![json!(["raw", 0, 1, 0, "00"])]),
        ("an even stream", vec![json!(["block", 2, "82"])]),
        ("HEADERS on stream 0", vec![json!(["raw", 1, 5, 0, "82"])]),
        ("PUSH_PROMISE", vec![json!(["raw", 5, 4, 1, "0000000282"])]),
        ("a lone CONTINUATION", vec![json!(["raw", 9, 4, 1, "82"])]),
        (
            "SETTINGS of 5 bytes",
            vec![json!(["raw", 4, 0, 0, "0000000000"])],
        ),
        (
            "PING of 7 bytes",
            vec![json!(["raw", 6, 0, 0, "00000000000000"])],
        ),
        ("WINDOW_UPDATE 0", vec![json!(["window", 0, 0])]),
        (
            "a window over its end",
            vec![json!(["window", 0, 0x7fff_ffff]), json!(["window", 0, 1])],
        ),
        ("RST_STREAM of an idle stream", vec![json!(["reset", 1])]),
        (
            "a frame too large",
            vec![json!(["raw", 0, 0, 1, "00".repeat(16_385)])],
        ),
        (
            "an index that is not there",
            vec![json!(["block", 1, "ff80808001"])],
        ),
        ("a block that is cut", vec![json!(["block", 1, "4003"])]),
        ("Huffman's end", vec![json!(["block", 1, "0084ffffffff00"])]),
        (
            "a table too large",
            vec![json!(["block", 1, "3fe1ffffff07"])],
        ),
        (
            "HTTP/1.1",
            vec![json!([
                "bytes",
                "GET /smug HTTP/1.1\r\nHost: good.example.com\r\n\r\n"
            ])],
        ),
    ] {
        let mut all = steps;
        // What the step breaks, it breaks for the whole connection.
        all.push(json!(["end"]));
        refused(&play, &mut hostile, name, ended, |_host| all.clone()).await;
    }
    hostile.finish();
}

#[tokio::test]
async fn a_preface_that_is_none_is_closed() {
    let play = H2Scene::new().await;
    let Some(mut hostile) = Hostile::start(&play).await else {
        return;
    };
    for text in [
        "GET /smug HTTP/1.1\r\nHost: two.example.com\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\rx",
        "PRI * HTTP/1.1\r\n\r\n",
        "\0\0\0\u{4}\0\0\0\0\0",
    ] {
        let case = json!({
            "target": "two.example.com:443", "preface": false,
            "steps": [["bytes", text], ["end"]],
        });
        let said = hostile.connect(&case).await;
        assert!(said.closed && !said.late, "{text:?}: {said:?}");
        assert_eq!(said.alpn.as_deref(), Some("h2"));
        play.alive(text).await;
    }
    let smuggled = play.two.requests();
    assert!(
        smuggled.iter().all(|seen| seen.path == "/alive"),
        "{smuggled:#?}"
    );
}

#[tokio::test]
async fn frames_that_are_not_known_are_ignored_and_padding_is_no_body() {
    let play = H2Scene::new().await;
    let Some(mut hostile) = Hostile::start(&play).await else {
        return;
    };
    let before = play.two.requests().len();
    let steps = [
        json!(["raw", 0x77, 0xff, 0, "0102"]),
        json!(["headers", 1, post(TWO, &[("content-length", "8")]), false]),
        json!(["raw", 0x77, 0xff, 1, "0102"]),
        json!(["data", 1, "SEA", false, 200]),
        json!(["data", 1, "", false, 0]),
        json!(["data", 1, "LED_x", true, 3]),
        json!(["done", 1]),
        json!(["ping"]),
    ];
    let said = hostile.case(TWO, &steps).await;
    assert_eq!(
        (said.outcome(1), said.outcome(super::LAST)),
        ("200".into(), "200".into())
    );
    let seen = play.two.requests().remove(before);
    assert_eq!((seen.body.as_slice(), seen.whole), (&b"SEALED_x"[..], true));
}

#[tokio::test]
async fn a_goaway_of_the_client_lets_streams_in_flight_end() {
    let (release, gate) = tokio::sync::watch::channel(false);
    let origin = H2Origin::script(move |mut exchange| {
        let mut gate = gate.clone();
        async move {
            exchange.read_all().await;
            if exchange.path() == "/case" {
                gate.wait_for(|open| *open).await.expect("the test goes on");
            }
            exchange.answer(200, "ok").await;
        }
    })
    .await;
    let play = H2Scene::around(origin).await;
    let Some(mut hostile) = Hostile::start(&play).await else {
        return;
    };
    let case = json!({
        "target": "two.example.com:443",
        "steps": [
            ["headers", 1, base(TWO, "GET", "/case")],
            ["pause", "before"],
            ["goaway", 0, 0],
            ["ping"],
            ["pause", "after"],
            ["done", 1],
        ],
    });
    hostile.write(&case).await;
    hostile.paused().await;
    play.two.wait("the request", |all| all.len() == 1).await;
    hostile.go_on().await;
    // Its GOAWAY was read before the ping that followed it was answered.
    hostile.paused().await;
    release.send_replace(true);
    hostile.go_on().await;
    let said: super::Said = serde_json::from_str(&hostile.read().await).expect("JSON");
    assert_eq!(
        (said.outcome(1), said.stream(1).body),
        ("200".into(), "ok".into())
    );
    play.alive("a GOAWAY of the client").await;
}

#[tokio::test]
async fn case_19_padding_and_split_header_blocks_cut_no_token() {
    let play = h2_scene().await;
    let Some(mut hostile) = Hostile::start(&play).await else {
        return;
    };
    let token = play.scene.token();
    for host in [TWO, GOOD] {
        for cut in 1..token.len() {
            let (one, two) = token.split_at(cut);
            let steps = [
                // The block is cut into pieces of so many bytes; of too many it would be a flood.
                json!([
                    "headers",
                    1,
                    post(host, &[("x-key", token), ("content-type", "text/plain")]),
                    false,
                    30 + cut
                ]),
                json!(["data", 1, format!("a={one}"), false, 200]),
                // Each is read by itself: what comes at once is put together.
                json!(["ping"]),
                json!(["data", 1, "", false, 7]),
                json!(["ping"]),
                json!(["data", 1, format!("{two}&"), true, cut]),
                json!(["done", 1]),
            ];
            let case = format!("cut at {cut}");
            let (_, arrived) = answered(&play, &mut hostile, (&case, host), steps.to_vec()).await;
            assert!(!contains(&arrived.all, token), "{}", show(&arrived.all));
            assert!(!contains(&arrived.all, "SEALED"), "{}", show(&arrived.all));
            if host == TWO {
                let seen = play.two.requests().into_iter().rev();
                let seen = seen.filter(|seen| seen.path == "/case").take(1);
                let seen: Vec<_> = seen.map(|seen| (seen.body.clone(), seen)).collect();
                assert_eq!(seen[0].0, format!("a={REAL}&").as_bytes(), "{case}");
                assert_eq!(seen[0].1.all("x-key"), [REAL], "{case}");
            } else {
                let chunks = show(&arrived.all).matches(REAL).count();
                assert_eq!(chunks, 2, "{case}: {}", show(&arrived.all));
            }
        }
    }
    play.alive("padding").await;
}
