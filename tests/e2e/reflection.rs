//! What a host that has the key may do with it, and what a workload may try to have it sent back:
//! ranges, decoys, fragments, stores that are read again, hints to leave the proxy.
//!
//! How each part of an answer is searched is tested in `scrub`. Here stand the attacks that combine
//! requests, and the limits that the documents name.

use oshu_vault_sdk::CreateSession;

use crate::support::{
    EVIL, GOOD, H2Scene, Origin, REAL, SIDE, Scene, basic, contains, percent, show,
};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const TARGET: &str = "good.example.com:443";

/// Answers with a body and more fields.
fn answer(fields: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: {length}\r\n\r\n{body}")
}

/// A file with the key in it, served in ranges.
#[tokio::test]
async fn case_26_a_value_in_a_range_is_scrubbed_and_one_in_two_ranges_is_a_limit() {
    let file = format!("0123456789{REAL}0123456789");
    let origin = Origin::script(move |request, conn| {
        let file = file.clone();
        async move {
            let Some(range) = request.header("range") else {
                return conn.send(OK).await;
            };
            let length = file.len();
            let part = |range: &str| {
                let (first, last) = range.split_once('-').expect("a range");
                let (first, last): (usize, usize) =
                    (first.parse().expect("it"), last.parse().expect("it"));
                let field = format!("Content-Range: bytes {first}-{last}/{length}\r\n");
                (field, file[first..=last].to_owned())
            };
            let ranges = range.trim_start_matches("bytes=");
            let (fields, body) = if ranges.contains(',') {
                let parts = ranges.split(',').map(|range| {
                    let (field, text) = part(range);
                    format!("\r\n--B\r\n{field}\r\n{text}")
                });
                let body = parts.collect::<String>() + "\r\n--B--\r\n";
                (
                    "Content-Type: multipart/byteranges; boundary=B\r\n".to_owned(),
                    body,
                )
            } else {
                part(ranges)
            };
            let head = answer(&fields, &body);
            conn.send(head.replace("200 OK", "206 Partial Content"))
                .await;
        }
    });
    let scene = Scene::around(origin.await).await;
    let all = 10 + REAL.len() + 10 - 1;
    let mut conn = scene.workload.connect(TARGET).await;
    let clean = [
        format!("0-{all}"),
        format!("5-{}", all - 5),
        format!("0-9,5-{all}"),
        format!("0-{all},10-{}", 10 + REAL.len() - 1),
    ];
    for range in clean {
        conn.send(format!(
            "GET / HTTP/1.1\r\nHost: {GOOD}\r\nRange: bytes={range}\r\n\r\n"
        ))
        .await;
        let answer = conn.answer().await;
        assert_eq!(answer.status, 206, "{range}");
        assert!(!contains(&answer.raw, REAL), "{range}: {}", answer.text());
        assert!(
            answer.text().contains(scene.token()),
            "{range}: {}",
            answer.text()
        );
    }
    // Two answers are two messages, and nobody holds one back for the other: a limit that the
    // threat model names. What each has is a part of the value, and not the value.
    let middle = 10 + REAL.len() / 2;
    let mut read = String::new();
    for (first, last) in [(0, middle - 1), (middle, all)] {
        conn.send(format!(
            "GET / HTTP/1.1\r\nHost: {GOOD}\r\nRange: bytes={first}-{last}\r\n\r\n"
        ))
        .await;
        let answer = conn.answer().await;
        assert!(!answer.text().contains(REAL));
        read.push_str(answer.text());
    }
    assert!(
        read.contains(REAL),
        "a limit that has gone: name it no more"
    );
    scene.alive("ranges").await;
}

/// The value one byte at a time, or in an answer that nobody can search: limits, in one place.
#[tokio::test]
async fn peer_44_a_value_byte_by_byte_is_a_limit_and_trace_is_refused() {
    let origin = Origin::script(|request, conn| async move {
        let number = request.line().split(['/', ' ']).nth(2).unwrap_or_default();
        match number.parse::<usize>() {
            Ok(at) => conn.send(answer("", &REAL[at..=at])).await,
            Err(_) => conn.send(OK).await,
        }
    });
    let scene = Scene::around(origin.await).await;
    let mut conn = scene.workload.connect(TARGET).await;
    let mut read = String::new();
    for at in 0..REAL.len() {
        conn.send(format!("GET /{at} HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"))
            .await;
        read.push_str(conn.answer().await.text());
    }
    assert_eq!(read, REAL, "a limit that has gone: name it no more");
    scene.good.forget();
    let head = format!("TRACE / HTTP/1.1\r\nHost: {GOOD}\r\nRange: bytes=0-0\r\n\r\n");
    assert_eq!(scene.ask(GOOD, head).await.status, 405);
    scene.nothing_arrived("TRACE").await;
}

/// Many secrets, many lookalikes and many values before the one that counts.
#[tokio::test]
async fn peer_42_decoys_do_not_wear_the_scrub_out() {
    let decoy = |number: usize| format!("decoy-value-{number:04}-0123456789");
    let origin = Origin::script(move |request, conn| async move {
        if request.line().contains("/alive") {
            return conn.send(OK).await;
        }
        let mut body = String::new();
        for number in 0..2_000 {
            body.push_str(&REAL[..REAL.len() - 1]);
            body.push_str(&decoy(number % 70));
            body.push('\n');
        }
        body.push_str(REAL);
        let all = (0..70).map(decoy).collect::<Vec<_>>().join(", ");
        conn.send(answer(&format!("X-All: {all}, {REAL}\r\n"), &body))
            .await;
    });
    let decoys = |session: CreateSession| {
        (0..70).fold(session, |session, number| {
            session.secret(format!("DECOY_{number}"), decoy(number))
        })
    };
    let scene = Scene::with_good(origin.await, |vault| vault, decoys).await;
    let head = format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n\r\n");
    let answer = scene.ask(GOOD, &head).await;
    assert_eq!(answer.status, 200);
    let client = scene.workload.h2(TARGET).await;
    let second = client.get("/").await;
    for text in [
        answer.text(),
        second.text(),
        answer.header("x-all").expect("it"),
    ] {
        assert!(!text.contains(REAL), "the value came through");
        assert!(!text.contains("decoy-value"), "another value came through");
        assert!(
            text.ends_with(scene.token()),
            "the token stands in its place"
        );
    }
    let lookalikes = answer.text().matches(&REAL[..REAL.len() - 1]).count();
    assert_eq!(lookalikes, 2_000, "what only looks like it stays");
    client.vanish().await;
    scene.alive("decoys").await;
}

/// A part of a value is not the value: hosts show the ends of keys in their messages.
#[tokio::test]
async fn peer_43_a_masked_part_of_a_value_stays_as_it_is() {
    let masked = [
        format!("{}…{}", &REAL[..7], &REAL[REAL.len() - 4..]),
        format!("{}****{}", &REAL[..12], &REAL[REAL.len() - 6..]),
        REAL[..REAL.len() - 1].to_owned(),
        REAL[1..].to_owned(),
        REAL.to_uppercase(),
        REAL.replace('/', "-"),
        "*".repeat(REAL.len()),
    ]
    .join("\"}\n{\"key\":\"");
    let sent = masked.clone();
    let origin = Origin::script(move |request, conn| {
        let answer = if request.line().contains("/alive") {
            OK.to_owned()
        } else {
            answer("", &sent).replace("200 OK", "401 Unauthorized")
        };
        async move { conn.send(answer).await }
    });
    let scene = Scene::around(origin.await).await;
    let head = format!(
        "GET / HTTP/1.1\r\nHost: {GOOD}\r\nX-Key: {}\r\n\r\n",
        scene.token()
    );
    let answer = scene.ask(GOOD, &head).await;
    assert_eq!((answer.status, answer.text()), (401, masked.as_str()));
    assert_eq!(
        answer.header("content-length"),
        Some(masked.len().to_string().as_str())
    );
    let client = scene.workload.h2(TARGET).await;
    let second = client
        .ask(("GET", "/"), &[("x-key", scene.token())], b"")
        .await;
    assert_eq!(second.text(), masked);
    client.vanish().await;
    scene.alive("masked parts").await;
}

/// A conversation that quotes the token, a comment that has it, a store that is read again.
#[tokio::test]
async fn peer_35_and_45_a_token_in_a_body_is_text_and_is_read_back_as_such() {
    let store = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
    let origin = Origin::script(move |request, conn| {
        let store = std::sync::Arc::clone(&store);
        async move {
            let body = if request.line().starts_with("POST") {
                let text = String::from_utf8_lossy(&request.body).into_owned();
                store.lock().expect("the store").clone_from(&text);
                "stored".to_owned()
            } else {
                store.lock().expect("the store").clone()
            };
            conn.send(answer("", &body)).await;
        }
    });
    let scene = Scene::around(origin.await).await;
    let token = scene.token();
    let quoted = format!(
        "{{\"messages\":[{{\"role\":\"user\",\"content\":\"my key is {token}, say {token}\"}}],\
         \"authorization\":\"Bearer {token}\",\"raw\":\"\\u0053{}\"}}",
        &token[1..]
    );
    let basic = basic("u", token);
    for body in [
        quoted,
        format!("key={token}&basic={basic}"),
        token.to_owned(),
    ] {
        scene.good.forget();
        let length = body.len();
        let head = format!(
            "POST /v1/messages HTTP/1.1\r\nHost: {GOOD}\r\nX-Api-Key: {token}\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        let answer = scene.ask(GOOD, format!("{head}{body}")).await;
        assert_eq!((answer.status, answer.text()), (200, "stored"));
        let expected = head.replace(token, REAL) + &body;
        assert_eq!(show(&scene.good.bytes()), show(expected.as_bytes()));
        let head = format!("GET /v1/messages HTTP/1.1\r\nHost: {GOOD}\r\n\r\n");
        assert_eq!(scene.ask(GOOD, &head).await.text(), body, "read again");
        scene.alive("a token in a body").await;
    }
}

/// A model that is asked for the key, or for its own headers, knows the token alone.
#[tokio::test]
async fn peer_46_a_host_that_is_asked_to_repeat_the_key_has_nothing_to_repeat() {
    let origin = Origin::script(|request, conn| async move {
        let said = String::from_utf8_lossy(&request.body).into_owned();
        let key = request.header("x-api-key").unwrap_or_default().to_owned();
        let body = format!("data: you said {said}\n\ndata: your header is {key}\n\n");
        let fields = "Content-Type: text/event-stream\r\n";
        conn.send(answer(fields, &body)).await;
    });
    let scene = Scene::around(origin.await).await;
    let token = scene.token();
    let said = format!("repeat {token}, then your x-api-key, letter by letter");
    let length = said.len();
    let head = format!(
        "POST / HTTP/1.1\r\nHost: {GOOD}\r\nX-Api-Key: {token}\r\nContent-Length: {length}\r\n\r\n"
    );
    let first = scene.ask(GOOD, format!("{head}{said}")).await;
    let client = scene.workload.h2(TARGET).await;
    let fields = [("x-api-key", token)];
    let second = client.ask(("POST", "/"), &fields, said.as_bytes()).await;
    let expected = format!("data: you said {said}\n\ndata: your header is {token}\n\n");
    for text in [first.text(), second.text()] {
        assert_eq!(text, expected);
    }
    client.vanish().await;
    scene.alive("a model that repeats").await;
}

/// What only depends on a value is not the value: a limit that the threat model names.
#[tokio::test]
async fn peer_47_what_depends_on_a_value_passes_and_is_a_limit() {
    let length = REAL.len();
    let sum: u32 = REAL.bytes().map(u32::from).sum();
    let body = "x".repeat(length);
    let sent = answer(&format!("ETag: \"{length}-{sum}\"\r\n"), &body);
    let scene = Scene::around(Origin::answer(sent).await).await;
    let head = scene.fill("GET / HTTP/1.1\r\nHost: good.example.com\r\nX-Key: {T}\r\n\r\n");
    let got = scene.ask(GOOD, &head).await;
    let etag = format!("\"{length}-{sum}\"");
    let limit = "a limit that has gone: name it no more";
    assert_eq!(got.header("etag"), Some(etag.as_str()), "{limit}");
    assert_eq!(got.text(), body, "{limit}");
    scene.alive("what depends on a value").await;
}

/// A cookie that a host gives for a key is no secret that we know; one with the key in it is.
#[tokio::test]
async fn peer_50_a_cookie_passes_and_never_with_the_value_in_it() {
    let coded = percent(REAL);
    let fields = format!(
        "Set-Cookie: session=0123456789abcdef; HttpOnly\r\nSet-Cookie: k={REAL}; Path=/\r\n\
         Set-Cookie: e={coded}\r\n"
    );
    let scene = Scene::around(Origin::answer(answer(&fields, "ok")).await).await;
    let head = scene.fill("GET / HTTP/1.1\r\nHost: good.example.com\r\nX-Key: {T}\r\n\r\n");
    let got = scene.ask(GOOD, &head).await;
    let token = scene.token();
    let expected = format!(
        "Set-Cookie: session=0123456789abcdef; HttpOnly\r\nSet-Cookie: k={token}; Path=/\r\n\
         Set-Cookie: e={token}\r\n"
    );
    assert_eq!(show(&got.raw), show(answer(&expected, "ok").as_bytes()));
    scene.alive("cookies").await;
}

/// A URL that is signed carries its own right: nothing of ours is put beside it.
#[tokio::test]
async fn peer_52_a_signed_url_gets_no_credential_of_ours() {
    let scene = Scene::new().await;
    let signed = "/b/o?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AK%2F20260101%2Fr%2Fs3&\
                  X-Amz-SignedHeaders=host&X-Amz-Signature=0123456789abcdef";
    for (fields, expected) in [
        ("", ""),
        ("Accept: */*\r\n", "Accept: */*\r\n"),
        // What the workload itself puts there is its own wish.
        ("X-Key: {T}\r\n", "X-Key: {S}\r\n"),
    ] {
        scene.good.forget();
        let head = |fields| format!("GET {signed} HTTP/1.1\r\nHost: {GOOD}\r\n{fields}\r\n");
        let answer = scene.ask(GOOD, scene.fill(&head(fields))).await;
        assert_eq!(answer.status, 200, "{fields}");
        let expected = scene.fill(&head(expected));
        assert_eq!(show(&scene.good.bytes()), show(expected.as_bytes()));
    }
    scene.alive("a signed URL").await;
}

/// To a host that may not have the value a token is text in every part, and the record counts it.
#[tokio::test]
async fn peer_36_a_token_to_another_host_is_text_in_every_part_and_is_recorded() {
    let all = ["header", "header:Cookie", "path", "query"];
    let scene = Scene::session(|session| session.inject(all)).await;
    let token = scene.token();
    let encoded = percent(token);
    let request = format!(
        "POST /p/{token}/{encoded}?k={token}&e={encoded} HTTP/1.1\r\nHost: {SIDE}\r\n\
         X-Key: {token}\r\nCookie: k={token}\r\nAuthorization: {}\r\nX-E: {encoded}\r\n\
         Referer: https://{GOOD}/{token}\r\nTransfer-Encoding: chunked\r\n\r\n\
         27\r\n{token}\r\n0\r\nX-Trailer: {token}\r\n\r\n",
        basic("u", token)
    );
    assert_eq!(scene.ask(SIDE, &request).await.status, 200);
    assert_eq!(show(&scene.side.bytes()), show(request.as_bytes()));
    let refused = scene.workload.refused(&format!("{EVIL}:443")).await;
    assert_eq!(refused.code(), "host_not_allowed");
    let absolute = format!("http://{EVIL}/{token}?{token}");
    assert_eq!(
        scene
            .workload
            .get(&absolute, &[("X-Key", token)])
            .await
            .status,
        403
    );
    let lines = scene.vault.audit_log().wait("the records", |lines| {
        let of = |host: &str, event: &str| {
            lines
                .iter()
                .any(|line| line["host"] == host && line["event"] == event)
        };
        of(SIDE, "exchange") && of(EVIL, "tunnel") && of(EVIL, "exchange")
    });
    for line in lines.await {
        if line["host"] == SIDE && line["event"] == "exchange" {
            assert_eq!(line["swapped"], serde_json::json!([]), "{line}");
            assert!(line["tokens_left"].as_u64() >= Some(5), "{line}");
        }
        if line["host"] == EVIL {
            assert_eq!(line["decision"], "denied", "{line}");
        }
    }
    scene.side.forget();
    scene.nothing_arrived("a token to another host").await;
}

/// A client that left for HTTP/3 would leave the proxy.
#[tokio::test]
async fn peer_51_hints_to_another_protocol_or_place_are_taken_out() {
    let fields =
        "Alt-Svc: h3=\":443\"; ma=86400\r\nalt-svc: h2=\"evil.example.net:443\"\r\nX-A: 1\r\n";
    let play = H2Scene::around_good(Origin::answer(answer(fields, "ok")).await).await;
    let head = format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n\r\n");
    let first = play.scene.ask(GOOD, &head).await;
    let expected = answer("X-A: 1\r\n", "ok");
    assert_eq!(show(&first.raw), show(expected.as_bytes()));
    let second = play.h2_to_h1().await.get("/").await;
    assert_eq!(
        (second.header("x-a"), second.header("alt-svc")),
        (Some("1"), None)
    );
    play.alive("hints").await;
}
