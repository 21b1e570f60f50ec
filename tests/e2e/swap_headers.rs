//! Secrets in header fields: where a token opens, where it stays, and that nothing else changes.

use oshu_vault_sdk::{CreateSession, SecretSpec};

use crate::support::{EVIL, GOOD, Origin, REAL, SIDE, Scene, Vault, basic, contains, show};

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
async fn case_01_a_token_becomes_the_value_and_every_other_byte_stays() {
    let scene = Scene::new().await;
    compare(
        &scene,
        &[
            ("X-Api-Key: {T}\r\n", "X-Api-Key: {S}\r\n"),
            ("x-api-key:\t{T} \r\n", "x-api-key: {S}\r\n"),
            (
                "authorization: Bearer {T}\r\n",
                "authorization: Bearer {S}\r\n",
            ),
            (
                "Authorization: bearer {T}\r\n",
                "Authorization: bearer {S}\r\n",
            ),
            (
                "AUTHORIZATION: Token token=\"{T}\", x=1\r\n",
                "AUTHORIZATION: Token token=\"{S}\", x=1\r\n",
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
    scene.alive("fields").await;
}

#[tokio::test]
async fn case_04_a_token_is_its_exact_bytes_whatever_stands_around_it() {
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
    let literals = [
        format!("SEALED_{short}"),
        format!("SEALED_{short}g"),
        format!("SEALED_{short}G"),
        format!("SEALED_{short} {}", &digits[31..]),
        format!(
            "SEALED_{}",
            digits.to_uppercase().replace(char::is_numeric, "A")
        ),
        format!("sealed_{digits}"),
        format!("Sealed_{digits}"),
        format!("SEALED-{digits}"),
        format!("SEALED__{short}"),
        format!("SEALED%5F{digits}"),
        "SEALED_".to_owned() + &"0".repeat(32),
        "SEALED_".repeat(500),
    ];
    // In upper case it is another text, if it has a letter at all.
    let upper = format!("SEALED_{}", digits.to_uppercase());
    let upper = (upper != scene.token()).then_some(upper);
    // What is no token in a field is none inside of a credential, in a path or in a query.
    let everywhere = Scene::session(|request| request.inject(["header", "path", "query"])).await;
    for literal in literals.into_iter().chain(upper) {
        let line = format!("X-Key: {literal}\r\n");
        let received = scene.received(GOOD, &line).await;
        assert_eq!(
            received,
            format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n{line}\r\n")
        );
        scene.alive(&literal).await;
        everywhere.good.forget();
        let target = literal.replace(' ', "+");
        let head = format!(
            "GET /{target}?{target} HTTP/1.1\r\nHost: {GOOD}\r\nAuthorization: {}\r\n\r\n",
            basic("u", &literal)
        );
        assert_eq!(everywhere.ask(GOOD, &head).await.status, 200, "{literal}");
        assert_eq!(show(&everywhere.good.bytes()), show(head.as_bytes()));
    }
    everywhere.alive("near misses").await;
}

#[tokio::test]
async fn peer_33_fields_that_carry_no_credentials_keep_the_token() {
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
        let line = format!("{name}: a={{T}}\r\n");
        compare(&scene, &[(&line, &line)]).await;
    }
    scene.alive("data fields").await;
}

#[tokio::test]
async fn case_02_a_host_outside_the_scope_gets_the_token_itself() {
    let scene = Scene::new().await;
    for line in [
        "X-Api-Key: {T}\r\n",
        "Authorization: Bearer {T}\r\n",
        "X-A: {T}{T}\r\nX-A: x{T}y\r\n",
        "X-Host: good.example.com\r\nX-Forwarded-Host: good.example.com\r\nX-A: {T}\r\n",
        "Referer: https://good.example.com/\r\nX-A: {T}\r\n",
    ] {
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
async fn case_03_tokens_of_other_and_deleted_sessions_open_nothing() {
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
        let lines = format!(
            "X-Key: {token}\r\nAuthorization: {}\r\nX-B: {token} {token}\r\n",
            basic("x-access-token", token)
        );
        let received = scene.received(GOOD, &lines).await;
        assert_eq!(
            received,
            format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n{lines}\r\n")
        );
        scene.alive("another session's token").await;
    }
    // Beside the session's own token it stays what it is.
    let theirs = &other.sealed_secrets["EXAMPLE_KEY"];
    let both = format!("X-Key: {theirs} {{}} {theirs}\r\n");
    compare(
        &scene,
        &[(&both.replace("{}", "{T}"), &both.replace("{}", "{S}"))],
    )
    .await;
    scene.good.forget();
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
async fn peer_25_a_prefix_belongs_to_the_token() {
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
        let expected = format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\nX-Key: {expected}\r\n\r\n");
        assert_eq!(received, expected, "{sent}");
    }
    scene.alive("a prefix").await;
}

#[tokio::test]
async fn case_24_requests_that_are_echoed_are_not_swapped() {
    let scene = Scene::new().await;
    // Methods are case-sensitive, but not every server knows.
    for (method, lines) in [
        ("TRACE", ""),
        ("TRACE", "Max-Forwards: 0\r\n"),
        ("TRACE", "Max-Forwards: 5\r\n"),
        ("trace", ""),
        ("Trace", "Max-Forwards: 0\r\n"),
    ] {
        let head = format!("{method} / HTTP/1.1\r\nHost: {GOOD}\r\n{lines}X-Key: {{T}}\r\n\r\n");
        let answer = scene.ask(GOOD, scene.fill(&head)).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (405, "method_not_allowed")
        );
        assert!(!contains(&answer.raw, scene.token()), "it echoes nothing");
        scene.nothing_arrived("TRACE").await;
    }
    for method in ["OPTIONS", "options", "Options"] {
        for lines in ["", "Max-Forwards: 0\r\n"] {
            scene.good.forget();
            let head = format!(
                "{method} / HTTP/1.1\r\nHost: {GOOD}\r\n{lines}X-Key: {{T}}\r\n\
                 Authorization: {}\r\n\r\n",
                basic("u", scene.token())
            );
            let head = scene.fill(&head);
            assert_eq!(scene.ask(GOOD, &head).await.status, 200, "{method}");
            assert_eq!(show(&scene.good.bytes()), show(head.as_bytes()));
            scene.alive(method).await;
        }
    }
}

#[tokio::test]
async fn case_08_requests_on_one_connection_are_swapped_one_by_one() {
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
    // What one request ends with is not the beginning of a token in the next.
    scene.good.forget();
    let (begin, end) = scene.token().split_at(20);
    let all = format!(
        "POST /1 HTTP/1.1\r\n{host}X-A: {begin}\r\nX-B: {end}\r\nContent-Length: 20\r\n\r\n{begin}\
         POST /2 HTTP/1.1\r\n{host}X-A: {end}\r\nTransfer-Encoding: chunked\r\n\r\n\
         14\r\n{begin}\r\n0\r\n\r\n\
         GET /3 HTTP/1.1\r\n{host}X-Z: {begin}\r\n{end}: 1\r\n\r\n"
    );
    conn.send(&all).await;
    for _ in 0..3 {
        assert_eq!(conn.answer().await.status, 200);
    }
    assert_eq!(show(&scene.good.bytes()), show(all.as_bytes()));
    scene.alive("requests in one record").await;
}

#[tokio::test]
async fn case_14_a_token_in_a_trailer_stays_and_the_framing_with_it() {
    let scene = Scene::session(|it| it.inject(["header", "header:X-T"])).await;
    let basic = basic("u", scene.token());
    for (announced, trailers) in [
        ("", "X-T: {T}\r\n".to_owned()),
        (
            "Trailer: X-T\r\n",
            "X-T: {T}\r\nx-api-key:{T}\r\n".to_owned(),
        ),
        ("", format!("Authorization: {basic}\r\nX-A: 1\r\n")),
        ("Trailer: {T}\r\n", String::new()),
    ] {
        scene.good.forget();
        let request = format!(
            "POST / HTTP/1.1\r\nHost: {GOOD}\r\nX-T: {{T}}\r\n{announced}\
             Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n{trailers}\r\n"
        );
        let request = scene.fill(&request);
        let answer = scene.ask(GOOD, &request).await;
        assert_eq!(answer.status, 200, "{trailers}: {}", answer.head);
        // The field is swapped, its namesake behind the body is not.
        let expected = request.replacen(scene.token(), REAL, 1);
        let arrived = String::from_utf8(scene.good.bytes()).expect("text");
        // Of a value what matters is the value: the space before it is written anew.
        assert_eq!(
            arrived.replace("key: ", "key:"),
            expected.replace("key: ", "key:")
        );
        scene.alive(&trailers).await;
    }
}

/// Each part is a record of its own in the tunnel's TLS, and a segment of its own in the clear.
#[tokio::test]
async fn peer_24_a_token_cut_by_any_record_of_a_head_is_swapped() {
    let scene = Scene::new().await;
    let mut conn = scene.workload.connect("good.example.com:443").await;
    let head = scene.fill("GET /cut HTTP/1.1\r\nHost: good.example.com\r\nX-Key: {T}\r\n\r\n");
    let expected = head.replace(scene.token(), REAL);
    let start = head.find("SEALED_").expect("a token");
    for cut in start..=start + scene.token().len() {
        scene.good.forget();
        let (one, two) = head.split_at(cut);
        conn.send(one).await;
        conn.send(two).await;
        assert_eq!(conn.answer().await.status, 200, "cut at {cut}");
        assert_eq!(show(&scene.good.bytes()), show(expected.as_bytes()));
    }
    scene.good.forget();
    for byte in head.bytes() {
        conn.send([byte]).await;
    }
    assert_eq!(conn.answer().await.status, 200);
    assert_eq!(show(&scene.good.bytes()), show(expected.as_bytes()));
    scene.alive("heads in parts").await;
}
