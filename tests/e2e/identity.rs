//! One authority per tunnel: `Host` and absolute targets must name it, on every request.

use crate::support::{EVIL, GOOD, Origin, REAL, SIDE, Scene, contains, show};

/// Sends a `Host` line with the secret's token beside it; it must be refused, and reach nobody.
async fn refused(scene: &Scene, host: &str, status: u16, code: &str) {
    let head = scene.fill(&format!("GET / HTTP/1.1\r\n{host}X-Key: {{T}}\r\n\r\n"));
    let answer = scene.ask(GOOD, head).await;
    let found = (answer.status, answer.code());
    assert_eq!(found, (status, code.to_owned()), "{host}: {}", answer.head);
    scene.nothing_arrived(host).await;
}

#[tokio::test]
async fn case_30_another_authority_in_host_is_421() {
    let scene = Scene::new().await;
    for host in [
        "Host: evil.example.net\r\n",
        // It may be reached, and is another one all the same.
        "Host: side.example.com\r\n",
        "Host: good.example.com:80\r\n",
        "Host: good.example.com:8443\r\n",
        "Host: 127.0.0.1\r\n",
        "Host: [::1]\r\n",
        "Host: localhost\r\n",
        "Host: xgood.example.com\r\n",
        "Host: good.example.com.evil.example.net\r\n",
        "hOST:evil.example.net\r\n",
    ] {
        refused(&scene, host, 421, "another_authority").await;
    }
}

#[tokio::test]
async fn case_31_a_malformed_or_repeated_host_is_400() {
    let scene = Scene::new().await;
    for host in [
        "",
        "Host:\r\n",
        "Host: \t\r\n",
        "Host: good.example.com\r\nHost: good.example.com\r\n",
        "Host: good.example.com\r\nhost: evil.example.net\r\n",
        "Host: evil.example.net\r\nHost: good.example.com\r\n",
        "Host: good.example.com\r\nHost:\r\n",
        "Host: good.example.com\r\nX-A: 1\r\nHOST: good.example.com:443\r\n",
        "Host: good.example.com, evil.example.net\r\n",
        "Host: good.example.com,\r\n",
        "Host: good.example.com evil.example.net\r\n",
        "Host: user@good.example.com\r\n",
        "Host: good.example.com@evil.example.net\r\n",
        "Host: good.example.com/x\r\n",
        "Host: good.example.com?x\r\n",
        "Host: good.example.com#x\r\n",
        "Host: good.example.com:\r\n",
        "Host: good.example.com:443:443\r\n",
        "Host: good.example.com:+443\r\n",
        "Host: good.example.com:65979\r\n",
        "Host: [good.example.com]\r\n",
        "Host: good.example.com:abc\r\n",
        "Host: good.example.com\\\r\n",
        "Host: good.example.com..\r\n",
        "Host: .good.example.com\r\n",
        "Host: good%2eexample.com\r\n",
        "Host: https://good.example.com\r\n",
        "Host: \"good.example.com\"\r\n",
        "Host: good.exampl\u{e9}.com\r\n",
    ] {
        refused(&scene, host, 400, "bad_host").await;
    }
}

#[tokio::test]
async fn case_31_other_spellings_of_the_same_authority_are_equal() {
    let scene = Scene::new().await;
    for host in [
        "good.example.com:443",
        "GOOD.example.com",
        "good.example.com.",
        "Good.Example.Com.:443",
        "good.example.com:00443",
    ] {
        scene.good.forget();
        let answer = scene
            .ask(GOOD, format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"))
            .await;
        assert_eq!(answer.status, 200, "{host}");
        let expected = b"GET / HTTP/1.1\r\nHost: good.example.com\r\n\r\n";
        assert_eq!(
            scene.good.bytes(),
            expected,
            "{host}: the upstream sees one spelling"
        );
    }
}

#[tokio::test]
async fn case_32_an_absolute_target_must_name_the_tunnel_s_scheme_and_authority() {
    let scene = Scene::new().await;
    for (target, status) in [
        ("https://evil.example.net/", 421),
        ("https://side.example.com/", 421),
        ("http://good.example.com/", 421),
        ("https://good.example.com:80/", 421),
        ("https://good.example.com@evil.example.net/", 421),
        ("https://user@good.example.com/", 421),
        ("ftp://good.example.com/", 421),
        ("https://good.example.com.evil.example.net/", 421),
        ("https://evil.example.net#good.example.com/", 421),
        ("https://evil.example.net?good.example.com/", 421),
        ("https://evil.example.net\\@good.example.com/", 421),
        ("https:///good.example.com/", 421),
        ("https:good.example.com/", 400),
        ("good.example.com:443", 400),
        ("evil.example.net", 400),
        ("*", 400),
    ] {
        let head =
            format!("GET {target} HTTP/1.1\r\nHost: good.example.com\r\nX-Key: {{T}}\r\n\r\n");
        let answer = scene.ask(GOOD, scene.fill(&head)).await;
        assert_eq!(answer.status, status, "{target}: {}", answer.head);
        scene.nothing_arrived(target).await;
    }
    for (target, expected) in [
        ("https://good.example.com/a?b", "/a?b"),
        ("HTTPS://GOOD.example.com.:443", "/"),
        ("https://good.example.com?x", "/?x"),
    ] {
        scene.good.forget();
        let head = format!("GET {target} HTTP/1.1\r\nHost: good.example.com\r\n\r\n");
        assert_eq!(scene.ask(GOOD, head).await.status, 200, "{target}");
        let expected = format!("GET {expected} HTTP/1.1\r\nHost: good.example.com\r\n\r\n");
        assert_eq!(scene.good.bytes(), expected.as_bytes(), "{target}");
    }
}

#[tokio::test]
async fn case_36_the_authority_is_checked_on_every_request() {
    let scene = Scene::new().await;
    let mut conn = scene.workload.connect("good.example.com:443").await;
    conn.send("GET /1 HTTP/1.1\r\nHost: good.example.com\r\n\r\n")
        .await;
    assert_eq!(conn.answer().await.status, 200);
    scene.good.forget();
    conn.send(scene.fill("GET /2 HTTP/1.1\r\nHost: evil.example.net\r\nX-Key: {T}\r\n\r\n"))
        .await;
    assert_eq!(conn.answer().await.status, 421);
    scene.good.expect_nothing("the second request");
    conn.send("GET /3 HTTP/1.1\r\nHost: good.example.com\r\n\r\n")
        .await;
    assert_eq!(conn.answer().await.status, 200);
    scene.good.forget();
    scene
        .nothing_arrived("a second request with another Host")
        .await;
}

#[tokio::test]
async fn case_36_fields_that_claim_another_origin_are_data() {
    let scene = Scene::new().await;
    let lines = "X-Forwarded-Host: evil.example.net\r\nForwarded: host=evil.example.net\r\n\
                 X-Original-URL: https://evil.example.net/\r\nX-Host: evil.example.net\r\n";
    let received = scene.received(GOOD, lines).await;
    assert_eq!(
        received,
        format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n{lines}\r\n")
    );
    let claim = scene.fill("X-Forwarded-Host: good.example.com\r\nX-Key: {T}\r\n");
    let received = scene.received(SIDE, &claim).await;
    assert!(received.contains(scene.token()), "a claim gives no scope");
    scene.evil.expect_nothing("claims");
}

#[tokio::test]
async fn case_27_a_redirect_is_passed_on_and_never_followed() {
    let origin = Origin::script(|request, conn| async move {
        let status = request.line().split('/').nth(1).unwrap_or_default();
        let status = status.split(' ').next().unwrap_or_default();
        let answer = match status {
            "alive" => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned(),
            _ => format!(
                "HTTP/1.1 {status} Found\r\nLocation: https://{EVIL}/\r\nRefresh: 0; url=https://{EVIL}/\r\n\
                 Content-Length: 0\r\n\r\n"
            ),
        };
        conn.send(answer).await;
    });
    let scene = Scene::around(origin.await).await;
    for status in [301, 302, 303, 307, 308, 201] {
        scene.good.forget();
        let head = scene.fill(&format!(
            "GET /{status} HTTP/1.1\r\nHost: {GOOD}\r\nX-Key: {{T}}\r\n\r\n"
        ));
        let answer = scene.ask(GOOD, &head).await;
        let expected = format!(
            "HTTP/1.1 {status} Found\r\nLocation: https://{EVIL}/\r\nRefresh: 0; url=https://{EVIL}/\r\n\
             Content-Length: 0\r\n\r\n"
        );
        assert_eq!(show(&answer.raw), show(expected.as_bytes()));
        // Asked once, and nobody else.
        let expected = head.replace(scene.token(), REAL);
        assert_eq!(show(&scene.good.bytes()), show(expected.as_bytes()));
        for origin in [&scene.side, &scene.evil] {
            origin.expect_nothing("a redirect");
            assert_eq!(origin.connections(), 0);
        }
        // The workload that follows it is told what it would have been told without.
        let refused = scene.workload.refused(&format!("{EVIL}:443")).await;
        let code = (refused.status, refused.code());
        assert_eq!(code, (403, "host_not_allowed".to_owned()));
        scene.alive("a redirect").await;
    }
}

#[tokio::test]
async fn peer_54_proxy_fields_and_hop_by_hop_fields_stay_behind() {
    let scene = Scene::new().await;
    let credentials = scene.workload.authorization();
    let received = scene
        .received(
            GOOD,
            &format!(
                "{credentials}Proxy-Connection: keep-alive\r\nX-A: 1\r\nConnection: X-Hop\r\n\
                 X-Hop: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\nUpgrade: h2c\r\n\
                 HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\nProxy-Foo: 1\r\nX-B: 2\r\n"
            ),
        )
        .await;
    assert_eq!(
        received,
        format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\nX-A: 1\r\nX-B: 2\r\n\r\n")
    );
    assert!(!contains(&scene.good.bytes(), "roxy"));
    // The same behind the last chunk.
    scene.good.forget();
    let head = format!("POST / HTTP/1.1\r\nHost: {GOOD}\r\nTransfer-Encoding: chunked\r\n\r\n");
    let trailers = format!("{credentials}Keep-Alive: 5\r\nUpgrade: h2c\r\nX-A: 1\r\n");
    let answer = scene.ask(GOOD, format!("{head}0\r\n{trailers}\r\n")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        scene.good.bytes(),
        format!("{head}0\r\nX-A: 1\r\n\r\n").as_bytes()
    );
}
