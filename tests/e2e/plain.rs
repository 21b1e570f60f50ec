//! Absolute-form requests: plain HTTP, with credentials and a target of its own on each of them.

use oshu_vault_sdk::CreateSession;

use crate::support::{GOOD, Origin, REAL, Scene, VaultBuilder, basic, contains, show};

async fn scene() -> Scene {
    let origin = Origin::builder().plain().echo_ok().await;
    Scene::with_good(origin, VaultBuilder::strict, |request| request).await
}

/// Sends one request to the proxy port, with credentials unless told otherwise.
async fn ask(scene: &Scene, line: &str, fields: &str) -> crate::support::Answer {
    let mut conn = scene.workload.plain().await;
    let authorization = scene.workload.authorization();
    conn.send(scene.fill(&format!("{line} HTTP/1.1\r\n{authorization}{fields}\r\n")))
        .await;
    conn.answer().await
}

#[tokio::test]
async fn a_request_arrives_in_origin_form_without_proxy_fields() {
    let scene = scene().await;
    for (target, path) in [
        ("http://good.example.com/a?b=c", "/a?b=c"),
        ("http://good.example.com", "/"),
        ("HTTP://GOOD.example.com:80/x", "/x"),
        ("http://good.example.com?q", "/?q"),
    ] {
        scene.good.forget();
        let fields = "Host: good.example.com\r\nProxy-Connection: close\r\nX-Key: {T}\r\n";
        let answer = ask(&scene, &format!("GET {target}"), fields).await;
        assert_eq!((answer.status, answer.text()), (200, "ok"), "{target}");
        let expected = format!("GET {path} HTTP/1.1\r\nHost: {GOOD}\r\nX-Key: {{T}}\r\n\r\n");
        assert_eq!(
            scene.good.bytes(),
            scene.fill(&expected).as_bytes(),
            "{target}"
        );
    }
}

#[tokio::test]
async fn case_21_secrets_go_in_the_clear_only_where_the_session_says_so() {
    let origin = Origin::builder().plain().echo_ok().await;
    let open = Scene::with_good(
        origin,
        |vault| vault,
        |request| request.allow_plaintext(true),
    )
    .await;
    let shut = scene().await;
    let fields = "Host: good.example.com\r\nX-Key: {T}\r\n";
    let target = "good.example.com:80";
    for (scene, arrives) in [(&open, REAL), (&shut, shut.token())] {
        // In absolute form, and in a tunnel that is not encrypted.
        let expected = format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\nX-Key: {arrives}\r\n\r\n");
        let answer = ask(scene, "GET http://good.example.com/", fields).await;
        assert_eq!(answer.status, 200);
        assert_eq!(show(&scene.good.bytes()), show(expected.as_bytes()));
        scene.good.forget();
        let mut tunnel = scene.workload.tunnel(target).await;
        tunnel
            .send(scene.fill(&format!("GET / HTTP/1.1\r\n{fields}\r\n")))
            .await;
        assert_eq!(tunnel.answer().await.status, 200);
        assert_eq!(show(&scene.good.bytes()), show(expected.as_bytes()));
    }
    // A token in the clear is text in every part, whatever places the session asks for.
    let origin = Origin::builder().plain().echo_ok().await;
    let all = ["header", "path", "query"];
    let scene = Scene::with_good(origin, VaultBuilder::strict, |it| it.inject(all)).await;
    let line = "GET http://good.example.com/{T}?{T}";
    let lines = format!("{fields}Authorization: {}\r\n", basic("u", scene.token()));
    assert_eq!(ask(&scene, line, &lines).await.status, 200);
    let expected = scene.fill(&format!("GET /{{T}}?{{T}} HTTP/1.1\r\n{lines}\r\n"));
    assert_eq!(show(&scene.good.bytes()), show(expected.as_bytes()));
    assert_eq!(
        ask(&scene, "GET http://good.example.com/", fields)
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn case_33_the_target_and_host_must_name_the_same() {
    let scene = scene().await;
    let target = "GET http://good.example.com/";
    for (line, host, status) in [
        (target, "Host: evil.example.net\r\n", 421),
        (target, "Host: side.example.com\r\n", 421),
        (target, "Host: good.example.com:443\r\n", 421),
        (target, "Host: good.example.com:8080\r\n", 421),
        (
            "GET http://good.example.com:8080/",
            "Host: good.example.com\r\n",
            403,
        ),
        (
            "GET http://side.example.com/",
            "Host: good.example.com\r\n",
            421,
        ),
        (
            "GET http://evil.example.net/",
            "Host: good.example.com\r\n",
            403,
        ),
        (
            "GET http://good.example.com@evil.example.net/",
            "Host: good.example.com\r\n",
            400,
        ),
        (target, "", 400),
        (
            target,
            "Host: good.example.com\r\nHost: evil.example.net\r\n",
            400,
        ),
        (target, "Host: good.example.com, evil.example.net\r\n", 400),
        (target, "Host: user@good.example.com\r\n", 400),
    ] {
        let answer = ask(&scene, line, &format!("{host}X-Key: {{T}}\r\n")).await;
        assert_eq!(answer.status, status, "{line} {host}");
        for origin in [&scene.good, &scene.side, &scene.evil] {
            origin.expect_nothing(line);
        }
    }
    let host = "Host: GOOD.example.com.:80\r\n";
    assert_eq!(ask(&scene, target, host).await.status, 200);
    let expected = "GET / HTTP/1.1\r\nHost: good.example.com\r\n\r\n";
    assert_eq!(scene.good.bytes(), expected.as_bytes());
}

#[tokio::test]
async fn what_may_not_pass_is_refused_with_nothing_forwarded() {
    let scene = scene().await;
    let host = "Host: good.example.com\r\nX-Key: {T}\r\n";
    for (line, fields, status, code) in [
        (
            "GET http://good.example.com/",
            "Host: evil.example.net\r\nX-Key: {T}\r\n",
            421,
            "another_authority",
        ),
        (
            "GET http://good.example.com/",
            "Host: side.example.com\r\nX-Key: {T}\r\n",
            421,
            "another_authority",
        ),
        (
            "GET http://good.example.com/",
            "Host: good.example.com:443\r\n",
            421,
            "another_authority",
        ),
        (
            "GET http://good.example.com/",
            "X-Key: {T}\r\n",
            400,
            "bad_host",
        ),
        (
            "GET http://good.example.com/",
            "Host: good.example.com\r\nHost: good.example.com\r\n",
            400,
            "bad_host",
        ),
        ("GET https://good.example.com/", host, 400, "absolute_https"),
        ("GET HTTPS://good.example.com/", host, 400, "absolute_https"),
        ("GET ftp://good.example.com/", host, 400, "bad_scheme"),
        ("GET good.example.com/", host, 400, "bad_target"),
        ("GET http:///x", host, 400, "bad_target"),
        ("GET http://user@good.example.com/", host, 400, "bad_target"),
        ("GET http://good.example.com:0/", host, 400, "bad_target"),
        ("GET http://good%2eexample.com/", host, 400, "bad_target"),
        (
            "GET http://evil.example.net/",
            "Host: evil.example.net\r\n",
            403,
            "host_not_allowed",
        ),
        (
            "GET http://good.example.com:22/",
            "Host: good.example.com:22\r\n",
            403,
            "port_not_allowed",
        ),
        (
            "TRACE http://good.example.com/",
            host,
            405,
            "method_not_allowed",
        ),
    ] {
        let answer = ask(&scene, line, fields).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (status, code),
            "{line} {fields}"
        );
        assert!(answer.header("proxy-status").is_some(), "{line}");
        for origin in [&scene.good, &scene.side, &scene.evil] {
            origin.expect_nothing(line);
        }
    }
    assert_eq!(
        ask(&scene, "GET http://good.example.com/", host)
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn case_61_every_request_brings_its_own_credentials() {
    let scene = scene().await;
    let other = scene
        .vault
        .session(&Scene::request().allow_plaintext(true))
        .await;
    let mine = scene.workload.authorization();
    let theirs = scene.vault.workload(&other).authorization();
    let request = scene
        .fill("GET http://good.example.com/ HTTP/1.1\r\nHost: good.example.com\r\nX-Key: {T}\r\n");
    let mut conn = scene.workload.plain().await;
    for (credentials, status) in [
        (mine.as_str(), 200),
        ("", 407),
        (&mine, 200),
        (&theirs, 200),
        (&format!("{mine}{theirs}"), 407),
        (&mine, 200),
    ] {
        scene.good.forget();
        conn.send(format!("{request}{credentials}\r\n")).await;
        assert_eq!(conn.answer().await.status, status, "{credentials}");
        assert!(
            !contains(&scene.good.bytes(), REAL),
            "another session's token opens nothing"
        );
        let literal = contains(&scene.good.bytes(), scene.token());
        assert_eq!(literal, status == 200, "it is text: {credentials}");
        assert_eq!(
            scene.good.bytes().is_empty(),
            status == 407,
            "{credentials}"
        );
    }
}

#[tokio::test]
async fn peer_68_credentials_for_the_proxy_and_for_the_origin_go_their_own_ways() {
    let origin = Origin::builder().plain().echo_ok().await;
    let open = |request: CreateSession| request.allow_plaintext(true);
    let scene = Scene::with_good(origin, VaultBuilder::strict, open).await;
    let own = scene.fill("Authorization: Bearer {T}\r\n");
    let other = "Authorization: Basic dXNlcjpvd24=\r\n";
    for (sent, expected) in [
        (own.as_str(), own.replace(scene.token(), REAL)),
        (other, other.to_owned()),
    ] {
        scene.good.forget();
        let fields = format!("Host: {GOOD}\r\n{sent}");
        let answer = ask(&scene, "GET http://good.example.com/", &fields).await;
        assert_eq!(answer.status, 200, "{sent}");
        let expected = format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n{expected}\r\n");
        assert_eq!(show(&scene.good.bytes()), show(expected.as_bytes()));
        // What a client says to the origin is not said to the proxy, and the other way round.
        scene.good.forget();
        let mut conn = scene.workload.plain().await;
        let proxy = scene.workload.authorization();
        conn.send(format!(
            "CONNECT {GOOD}:80 HTTP/1.1\r\nHost: {GOOD}:80\r\n{sent}{proxy}\r\n"
        ))
        .await;
        assert_eq!(conn.answer_head().await.status, 200, "{sent}");
        conn.send(format!(
            "GET / HTTP/1.1\r\nHost: {GOOD}\r\n{proxy}{sent}\r\n"
        ))
        .await;
        assert_eq!(conn.answer().await.status, 200, "{sent}");
        assert_eq!(show(&scene.good.bytes()), show(expected.as_bytes()));
        // The one is not taken for the other.
        let mut conn = scene.workload.plain().await;
        conn.send(format!(
            "CONNECT {GOOD}:80 HTTP/1.1\r\nHost: {GOOD}:80\r\n{}\r\n",
            proxy.trim_start_matches("Proxy-")
        ))
        .await;
        assert_eq!(conn.answer().await.status, 407);
    }
}

#[tokio::test]
async fn case_34_a_path_is_a_request_to_ourselves_whatever_it_claims() {
    let scene = scene().await;
    for (line, status) in [
        ("GET /healthz", 200),
        ("GET /", 404),
        ("GET /nowhere", 404),
        ("POST /", 404),
        ("DELETE /v1/sessions/sess_0", 401),
        ("GET /v1/sessions", 401),
        ("GET //good.example.com/", 404),
    ] {
        let answer = ask(&scene, line, "Host: good.example.com\r\nX-Key: {T}\r\n").await;
        assert_eq!(answer.status, status, "{line}: {}", answer.head);
        if status != 200 {
            let kind = answer.header("content-type").unwrap_or_default();
            assert_eq!(kind, "application/problem+json", "{line}");
        }
    }
    for origin in [&scene.good, &scene.side, &scene.evil] {
        origin.expect_nothing("origin-form");
    }
}

#[tokio::test]
async fn the_tls_listener_serves_the_same() {
    let scene = scene().await;
    let mut conn = scene.workload.secure().await;
    let authorization = scene.workload.authorization();
    conn.send(format!(
        "GET http://{GOOD}/tls HTTP/1.1\r\nHost: {GOOD}\r\n{authorization}\r\n\
         GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    ))
    .await;
    assert_eq!(conn.answer().await.text(), "ok");
    assert_eq!(conn.answer().await.status, 200);
    assert_eq!(
        scene.good.bytes(),
        format!("GET /tls HTTP/1.1\r\nHost: {GOOD}\r\n\r\n").as_bytes()
    );
}
