//! Secrets in header fields: where a token opens, where it stays, and that nothing else changes.

use oshu_vault_sdk::{CreateSession, SecretSpec};

use crate::support::{EVIL, GOOD, Origin, REAL, SIDE, Scene, Vault, contains};

/// Sends field lines to the good origin and compares what arrived, byte by byte.
async fn compare(scene: &Scene, cases: &[(&str, &str)]) {
    for (sent, expected) in cases {
        let received = scene.received(GOOD, &scene.fill(sent)).await;
        let expected = format!(
            "GET / HTTP/1.1\r\nHost: {GOOD}\r\n{}\r\n",
            scene.fill(expected)
        );
        assert_eq!(received, expected, "{sent}");
    }
}

#[tokio::test]
async fn a_token_becomes_the_value_and_every_other_byte_stays() {
    let scene = Scene::new().await;
    compare(
        &scene,
        &[
            ("X-Api-Key: {T}\r\n", "X-Api-Key: {S}\r\n"),
            (
                "authorization: Bearer {T}\r\n",
                "authorization: Bearer {S}\r\n",
            ),
            (
                "Authorization: token   {T}\r\n",
                "Authorization: token   {S}\r\n",
            ),
            ("PRIVATE-TOKEN:{T}\r\n", "PRIVATE-TOKEN: {S}\r\n"),
            (
                "X-Two: {T},{T}\r\nX-B: {T}\r\n",
                "X-Two: {S},{S}\r\nX-B: {S}\r\n",
            ),
            (
                "x-first:  a \r\nACCEPT: */*\r\nX-Api-Key: {T}\r\nx-first: b\r\nX-Empty:\r\n",
                "x-first:  a \r\nACCEPT: */*\r\nX-Api-Key: {S}\r\nx-first: b\r\nX-Empty:\r\n",
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_token_is_its_exact_bytes_whatever_stands_around_it() {
    let scene = Scene::new().await;
    let digits = scene.token().trim_start_matches("SEALED_").to_owned();
    let short = &digits[..31];
    compare(
        &scene,
        &[
            ("X-Key: x{T}\r\n", "X-Key: x{S}\r\n"),
            ("X-Key: {T}a\r\n", "X-Key: {S}a\r\n"),
            ("X-Key: {T}{T}\r\n", "X-Key: {S}{S}\r\n"),
            ("X-Key: SEALED_{T}\r\n", "X-Key: SEALED_{S}\r\n"),
        ],
    )
    .await;
    for literal in [
        format!("SEALED_{short}"),
        format!("SEALED_{short}g"),
        format!(
            "SEALED_{}",
            digits.to_uppercase().replace(char::is_numeric, "A")
        ),
        format!("sealed_{digits}"),
        format!("SEALED-{digits}"),
        "SEALED_".to_owned() + &"0".repeat(32),
    ] {
        let received = scene.received(GOOD, &format!("X-Key: {literal}\r\n")).await;
        assert!(
            received.contains(&format!("X-Key: {literal}\r\n")),
            "{received}"
        );
        scene.alive(&literal).await;
    }
}

#[tokio::test]
async fn fields_that_carry_no_credentials_keep_the_token() {
    let scene = Scene::new().await;
    for name in [
        "Cookie",
        "Referer",
        "Origin",
        "User-Agent",
        "Via",
        "Forwarded",
        "X-Forwarded-For",
        "Range",
        "If-Match",
        "If-None-Match",
        "Accept",
        "Accept-Language",
        "Content-Type",
        "Content-Disposition",
        "Access-Control-Request-Headers",
        "Sec-Fetch-Site",
        "X-Amz-Meta-Key",
        "x-goog-meta-key",
        "COOKIE",
    ] {
        let line = scene.fill(&format!("{name}: a={{T}}\r\n"));
        let received = scene.received(GOOD, &line).await;
        assert!(
            received.contains(&line) && !received.contains(REAL),
            "{name}: {received}"
        );
    }
    // A name is no place either, and neither is the method.
    let received = scene.received(GOOD, &scene.fill("X-{T}: 1\r\n")).await;
    assert!(
        received.contains(scene.token()) && !received.contains(REAL),
        "{received}"
    );
    scene.alive("data fields").await;
}

#[tokio::test]
async fn a_host_outside_the_scope_gets_the_token_itself() {
    let scene = Scene::new().await;
    for line in ["X-Api-Key: {T}\r\n", "Authorization: Bearer {T}\r\n"] {
        let line = scene.fill(line);
        let received = scene.received(SIDE, &line).await;
        assert_eq!(
            received,
            format!("GET / HTTP/1.1\r\nHost: {SIDE}\r\n{line}\r\n")
        );
        assert!(!received.contains(REAL));
    }
    scene.alive("out of scope").await;
}

#[tokio::test]
async fn tokens_of_other_and_deleted_sessions_open_nothing() {
    let scene = Scene::new().await;
    let other = scene.vault.session(&Scene::request()).await;
    let gone = scene.vault.session(&Scene::request()).await;
    scene
        .vault
        .sdk()
        .delete_session(&gone.session_id)
        .await
        .expect("deleted");
    for session in [&other, &gone] {
        let token = &session.sealed_secrets["EXAMPLE_KEY"];
        let received = scene.received(GOOD, &format!("X-Key: {token}\r\n")).await;
        assert!(
            received.contains(token.as_str()) && !received.contains(REAL),
            "{received}"
        );
        scene.alive("another session's token").await;
    }
    // The token of each opens where it belongs.
    let token = &other.sealed_secrets["EXAMPLE_KEY"];
    let workload = scene.vault.workload(&other);
    let answer = workload
        .get(&format!("https://{GOOD}/other"), &[("X-Key", token)])
        .await;
    assert_eq!(answer.status, 200);
    assert!(contains(&scene.good.bytes(), REAL));
}

#[tokio::test]
async fn a_known_name_goes_to_its_own_hosts_in_its_own_fields() {
    let origin = Origin::echo_ok().await;
    let vault = Vault::builder()
        .resolve("api.anthropic.com", origin.addr())
        .resolve(EVIL, origin.addr())
        .start()
        .await;
    let request = CreateSession::new().secret("ANTHROPIC_API_KEY", REAL);
    let session = vault.session(&request).await;
    let (workload, token) = (
        vault.workload(&session),
        &session.sealed_secrets["ANTHROPIC_API_KEY"],
    );
    for (host, name, swapped) in [
        ("api.anthropic.com", "x-api-key", true),
        ("api.anthropic.com", "X-API-KEY", true),
        ("api.anthropic.com", "Authorization", true),
        ("api.anthropic.com", "x-other", false),
        (EVIL, "x-api-key", false),
    ] {
        origin.forget();
        let answer = workload
            .get(&format!("https://{host}/"), &[(name, token)])
            .await;
        assert_eq!(answer.status, 200, "{host} {name}");
        let value = if swapped { REAL } else { token };
        let line = format!("\r\n{name}: {value}\r\n");
        assert!(
            contains(&origin.bytes(), &line),
            "{host} {name}: {:?}",
            origin.bytes()
        );
        assert_eq!(contains(&origin.bytes(), REAL), swapped, "{host} {name}");
    }
}

#[tokio::test]
async fn a_named_field_is_the_only_one() {
    let scene = Scene::session(|request| request.inject(["header:X-Custom"])).await;
    compare(
        &scene,
        &[
            ("x-custom: {T}\r\n", "x-custom: {S}\r\n"),
            (
                "X-Custom: a {T}\r\nX-Api-Key: {T}\r\n",
                "X-Custom: a {S}\r\nX-Api-Key: {T}\r\n",
            ),
            (
                "Authorization: Bearer {T}\r\n",
                "Authorization: Bearer {T}\r\n",
            ),
        ],
    )
    .await;
    let both = Scene::session(|request| request.inject(["header", "header:cookie"])).await;
    compare(
        &both,
        &[(
            "Cookie: k={T}\r\nX-Api-Key: {T}\r\nReferer: {T}\r\n",
            "Cookie: k={S}\r\nX-Api-Key: {S}\r\nReferer: {T}\r\n",
        )],
    )
    .await;
}

#[tokio::test]
async fn a_prefix_belongs_to_the_token() {
    let secret = SecretSpec::new(REAL).prefix("ghp_");
    let scene = Scene::session(|request| request.secret("EXAMPLE_KEY", secret)).await;
    assert!(
        scene.token().starts_with("ghp_SEALED_"),
        "{}",
        scene.token()
    );
    let bare = scene.token().trim_start_matches("ghp_").to_owned();
    for (sent, expected) in [
        (scene.token().to_owned(), REAL.to_owned()),
        (format!("x{}", scene.token()), format!("x{REAL}")),
        (bare.clone(), bare.clone()),
        (format!("gho_{bare}"), format!("gho_{bare}")),
    ] {
        let received = scene.received(GOOD, &format!("X-Key: {sent}\r\n")).await;
        assert!(
            received.contains(&format!("X-Key: {expected}\r\n")),
            "{sent}: {received}"
        );
    }
}

#[tokio::test]
async fn requests_that_are_echoed_are_not_swapped() {
    let scene = Scene::new().await;
    let head = scene.fill("TRACE / HTTP/1.1\r\nHost: good.example.com\r\nX-Key: {T}\r\n\r\n");
    let answer = scene.ask(GOOD, head).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (405, "method_not_allowed")
    );
    scene.nothing_arrived("TRACE").await;
    for method in ["OPTIONS", "options", "trace"] {
        scene.good.forget();
        let head = format!(
            "{method} / HTTP/1.1\r\nHost: {GOOD}\r\nX-Key: {}\r\n\r\n",
            scene.token()
        );
        scene.ask(GOOD, &head).await;
        assert!(!contains(&scene.good.bytes(), REAL), "{method}");
        scene.alive(method).await;
    }
}

#[tokio::test]
async fn requests_on_one_connection_are_swapped_one_by_one() {
    let scene = Scene::new().await;
    let mut conn = scene.workload.connect("good.example.com:443").await;
    let host = "Host: good.example.com\r\n";
    let all = scene.fill(&format!(
        "GET /1 HTTP/1.1\r\n{host}X-Key: {{T}}\r\n\r\n\
         POST /2 HTTP/1.1\r\n{host}X-Key: {{T}}\r\nTransfer-Encoding: chunked\r\n\r\n\
         3\r\nabc\r\n0\r\n\r\n\
         GET /3 HTTP/1.1\r\n{host}X-Key: {{T}}\r\n\r\n"
    ));
    conn.send(&all).await;
    for _ in 0..3 {
        assert_eq!(conn.answer().await.status, 200);
    }
    let received = String::from_utf8(scene.good.bytes()).expect("text");
    assert_eq!(received, all.replace(scene.token(), REAL));
}
