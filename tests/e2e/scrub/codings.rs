//! Codings: which are asked for, what becomes of those that cannot be read, damaged and hostile
//! ones, and hosts that none of it is about.

use super::{CODINGS, TARGET, assert_clean, chunks, encode, get, named, path};
use crate::support::{GOOD, H2Scene, Origin, REAL, SIDE, Scene, Steps, contains, orders, show};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A scene in which the good origin may have no secret.
async fn unscoped(origin: Origin) -> Scene {
    Scene::with_good(
        origin,
        |vault| vault,
        |session| session.secret_hosts([SIDE]),
    )
    .await
}

#[tokio::test]
async fn peer_40_only_codings_that_can_be_read_are_asked_for() {
    let scene = Scene::new().await;
    for (sent, expected) in [
        ("gzip, deflate, br, zstd", "gzip, deflate, br, zstd"),
        ("gzip;q=1.0, exi, br;q=0.5, *;q=0.1", "gzip;q=1.0, br;q=0.5"),
        ("compress", "identity"),
        ("*", "identity"),
        ("identity;q=1, *;q=0", "identity;q=1, *;q=0"),
        ("gzip,\tdcb,dcz", "gzip"),
    ] {
        let lines = format!("accept-encoding: {sent}\r\n");
        let received = scene.received(GOOD, &lines).await;
        let field = format!("\r\naccept-encoding: {expected}\r\n");
        assert!(received.contains(&field), "{sent}: {received}");
        let received = scene.received(SIDE, &lines).await;
        assert!(received.contains(&lines), "{sent}: {received}");
    }
    // What was not asked for is not asked for by us either.
    let received = scene.received(GOOD, "").await;
    assert!(!received.to_lowercase().contains("encoding"), "{received}");
    scene.alive("codings").await;
}

#[tokio::test]
async fn answers_of_hosts_without_a_secret_are_untouched() {
    let origin = Origin::script(|request, conn| async move {
        let coding = &path(request.line())[1..];
        let body = encode(coding, format!("<{REAL}>").as_bytes());
        let name = named(coding).unwrap_or("x-own");
        conn.send(
            [
                format!(
                    "HTTP/1.1 200 key {REAL}\r\nX-Echo: {REAL}\r\nContent-Encoding: {name}\r\n\
                     Transfer-Encoding: chunked\r\n\r\n"
                )
                .as_bytes(),
                &chunks(&body, 5, &format!("X-T: {REAL}\r\n")),
            ]
            .concat(),
        )
        .await;
    });
    let scene = unscoped(origin.await).await;
    let mut conn = scene.workload.connect(TARGET).await;
    for coding in CODINGS {
        conn.send(get(scene.token(), &format!("/{coding}"))).await;
        let answer = conn.answer().await;
        let name = named(coding).unwrap_or("x-own");
        let head = format!(
            "HTTP/1.1 200 key {REAL}\r\nX-Echo: {REAL}\r\nContent-Encoding: {name}\r\n\
             Transfer-Encoding: chunked\r\n\r\n"
        );
        let body = encode(coding, format!("<{REAL}>").as_bytes());
        let whole = [
            head.as_bytes(),
            &chunks(&body, 5, &format!("X-T: {REAL}\r\n")),
        ]
        .concat();
        assert_eq!(show(&answer.raw), show(&whole), "{coding}");
    }
    let lines = scene.vault.audit_log().wait("records", |lines| {
        lines
            .iter()
            .filter(|line| line["event"] == "exchange")
            .count()
            == CODINGS.len()
    });
    for line in lines.await {
        assert!(line.get("scrubbed").is_none(), "{line}");
    }
    let answer = scene.ask(
        SIDE,
        scene.fill("GET / HTTP/1.1\r\nHost: side.example.com\r\n\r\n"),
    );
    assert_eq!(answer.await.status, 200);
}

/// An origin that names a coding which nobody knows.
async fn exotic() -> Origin {
    Origin::script(|request, conn| async move {
        if path(request.line()) == "/alive" {
            return conn.send(OK).await;
        }
        let head = "HTTP/1.1 200 OK\r\nContent-Encoding: exi\r\nContent-Length: 30\r\n";
        conn.send(format!("{head}X-Echo: {REAL}\r\n\r\n<{REAL}>"))
            .await;
    })
    .await
}

#[tokio::test]
async fn peer_40_a_coding_that_cannot_be_read_is_refused() {
    let scene = H2Scene::around_good(exotic().await).await;
    let token = scene.scene.token();
    let mut conn = scene.scene.workload.connect(TARGET).await;
    conn.send(get(token, "/")).await;
    let answer = conn.answer().await;
    let code = (answer.status, answer.code());
    assert_eq!(code, (502, "content_coding_unknown".to_owned()));
    assert_clean("a refusal", &answer.raw);
    let status = answer.header("proxy-status").expect("a Proxy-Status");
    assert!(status.contains("http_response_content_coding"), "{status}");
    let answer = scene
        .h2_to_h1()
        .await
        .ask(("GET", "/"), &[("x-key", token)], b"")
        .await;
    let code = (answer.status, answer.code());
    assert_eq!(code, (502, "content_coding_unknown".to_owned()));
    // Its head has no body that could not be read.
    let head = format!("HEAD / HTTP/1.1\r\nHost: {GOOD}\r\n\r\n");
    let mut conn = scene.scene.workload.connect(TARGET).await;
    conn.send(head).await;
    assert_eq!(conn.answer_to_head().await.status, 200);
    scene.alive("an unknown coding").await;
}

#[tokio::test]
async fn a_coding_that_cannot_be_read_passes_where_the_operator_says_so() {
    let scene = Scene::with_good(
        exotic().await,
        |vault| vault.config(|config| config.danger_unscrubbed_codings = true),
        |session| session,
    )
    .await;
    let answer = scene.ask(GOOD, get(scene.token(), "/")).await;
    assert_eq!(answer.text(), format!("<{REAL}>"));
    assert_eq!(answer.header("content-encoding"), Some("exi"));
    // Its head can be read.
    assert_eq!(answer.header("x-echo"), Some(scene.token()));
    scene.alive("a coding let through").await;
}

/// An origin that sends what it is told on its first connection.
async fn told() -> (Scene, Steps) {
    let (steps, orders) = orders();
    let origin = Origin::raw(move |conn| {
        let orders = orders.clone();
        async move {
            let Some(head) = conn.read_head().await else {
                return;
            };
            if head.contains("/alive") {
                return conn.send(OK).await;
            }
            orders.obey(&conn).await;
        }
    });
    (Scene::around(origin.await).await, steps)
}

#[tokio::test]
async fn peer_40_a_damaged_or_cut_coding_never_looks_whole() {
    let plain = format!("{}{REAL}", "some text ".repeat(5000));
    for coding in &CODINGS[1..] {
        let coded = encode(coding, plain.as_bytes());
        let name = named(coding).expect("a name");
        let mut damaged = coded.clone();
        for byte in damaged.iter_mut().skip(coded.len() / 2).take(40) {
            *byte ^= 0x5a;
        }
        let cut = coded[..coded.len() - 1].to_vec();
        for (what, body) in [("damaged", damaged), ("cut", cut)] {
            let case = format!("{coding} {what}");
            let (scene, steps) = told().await;
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Encoding: {name}\r\nTransfer-Encoding: chunked\r\n\r\n"
            );
            let mut conn = scene.workload.connect(TARGET).await;
            conn.send(get(scene.token(), "/")).await;
            steps.send(head);
            // Behind the head, so that it cannot be taken back for a 502.
            let head = conn.answer_head().await;
            assert_eq!(head.status, 200, "{case}");
            steps.send(chunks(&body, 1000, ""));
            let (seen, _) = conn.rest_and_end().await;
            assert!(!seen.ends_with(b"0\r\n\r\n"), "{case}: {}", show(&seen));
            assert_clean(&case, &seen);
            let lines = scene.vault.audit_log().wait("a record", |lines| {
                lines.iter().any(|line| line["reason"] == "bad_answer_body")
            });
            lines.await;
            scene.alive(&case).await;
        }
    }
}

#[tokio::test]
async fn a_body_that_grows_without_measure_is_cut() {
    let zeros = vec![0; 64 * 1024 * 1024];
    let coded = encode("gzip", &zeros);
    assert!(coded.len() < zeros.len() / 500);
    let (scene, steps) = told().await;
    let mut conn = scene.workload.connect(TARGET).await;
    conn.send(get(scene.token(), "/")).await;
    steps.send(format!(
        "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
        coded.len()
    ));
    steps.send(coded);
    assert_eq!(conn.answer_head().await.status, 200);
    let mut seen = 0;
    while conn.fill().await {
        seen += conn.input.len();
        assert!(!contains(&conn.input, b"\r\n0\r\n\r\n"), "it looks whole");
        conn.input.clear();
    }
    assert!(seen < 48 * 1024 * 1024, "{seen} bytes came out of it");
    scene.alive("a bomb").await;
}
