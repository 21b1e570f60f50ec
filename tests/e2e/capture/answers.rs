//! Answers with tokens, in every coding and framing: sealed tokens stand in them, and the rest is
//! as it was sent.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::*;
use crate::scrub::{CODINGS, encode, named};
use crate::support::REAL;

#[tokio::test]
async fn peer_49_a_token_answer_holds_sealed_tokens_that_work() {
    let scene = scene().await;
    let mut conn = scene.workload.connect(TARGET).await;
    let answer = told(&mut conn, PATH, json(&standard())).await;
    assert_clean("the answer", &answer.raw);
    let [access, refresh, id] = sealed(&answer.body);
    // The rest of the answer is as it was, to the byte.
    assert_eq!(answer.text(), with_tokens([&access, &refresh, &id]));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("connection"), None, "{}", answer.head);
    // The very next request of the same tunnel has the value.
    scene.good.forget();
    conn.send(format!(
        "GET /me HTTP/1.1\r\nHost: {GOOD}\r\nAuthorization: Bearer {access}\r\n\r\n"
    ))
    .await;
    assert_eq!(conn.answer().await.status, 200);
    let expected =
        format!("GET /me HTTP/1.1\r\nHost: {GOOD}\r\nAuthorization: Bearer {ACCESS}\r\n\r\n");
    assert_eq!(String::from_utf8_lossy(&scene.good.bytes()), expected);
    // So has one to another host of the issuer, and one with the id token.
    let lines = format!("Authorization: Bearer {id}\r\n");
    let seen = scene.received(SIDE, &lines).await;
    assert!(
        seen.ends_with(&format!("Authorization: Bearer {ID}\r\n\r\n")),
        "{seen}"
    );
    scene.alive("a captured answer").await;
}

#[tokio::test]
async fn every_coding_and_framing_is_captured_from() {
    let scene = scene().await;
    for coding in CODINGS {
        let field = named(coding).map_or_else(String::new, |it| {
            format!("Content-Encoding: {it}\r\nContent-MD5: x\r\n")
        });
        let fields = format!("Content-Type: application/json\r\n{field}X-Other:  kept \r\n");
        let body = encode(coding, standard().as_bytes());
        let pieces: Vec<&[u8]> = body.chunks(7).collect();
        let close = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
        for (framing, told_so) in [
            ("length", message("200 OK", &fields, &body)),
            ("chunks", chunked(&fields, &pieces, "X-Trailer: 1\r\n")),
            ("close", [close.as_bytes(), &body].concat()),
        ] {
            let case = format!("{coding} {framing}");
            let mut conn = scene.workload.connect(TARGET).await;
            let answer = told(&mut conn, PATH, told_so).await;
            assert_eq!(answer.status, 200, "{case}");
            assert_clean(&case, &answer.raw);
            let tokens = sealed(&answer.body);
            let expected = with_tokens([&tokens[0], &tokens[1], &tokens[2]]);
            assert_eq!(answer.text(), expected, "{case}");
            let length = answer.body.len().to_string();
            assert_eq!(
                answer.header("content-length"),
                Some(length.as_str()),
                "{case}"
            );
            for gone in ["transfer-encoding", "content-encoding", "content-md5"] {
                assert_eq!(answer.header(gone), None, "{case}");
            }
            assert!(
                answer.head.contains("\r\nX-Other:  kept "),
                "{case}: {}",
                answer.head
            );
            let seen = bearer(&scene, &tokens[0]).await;
            assert!(seen.contains(ACCESS), "{case}: {seen}");
        }
    }
    scene.alive("captured answers").await;
}

#[tokio::test]
async fn chunks_that_cut_a_token_anywhere_hide_nothing() {
    let scene = scene().await;
    let mut conn = scene.workload.connect(TARGET).await;
    let body = standard();
    for cut in 1..body.len() {
        let (one, two) = body.as_bytes().split_at(cut);
        let answer = told(&mut conn, PATH, chunked("", &[one, two], "")).await;
        assert_clean(&cut.to_string(), &answer.raw);
        let tokens = sealed(&answer.body);
        assert_eq!(
            answer.text(),
            with_tokens([&tokens[0], &tokens[1], &tokens[2]]),
            "{cut}"
        );
    }
    scene.alive("chunks").await;
}

#[tokio::test]
async fn a_form_is_captured_from_as_github_writes_it() {
    let scene = Scene::around(Origin::script(say).await).await;
    let github = Scene::with_good(
        Origin::script(say).await,
        |vault| vault.resolve("github.com", scene.good.addr()),
        |session| session.allowed_egress([GOOD, SIDE, "github.com"]),
    )
    .await;
    let form = |access: &str, refresh: &str| {
        format!(
            "access_token={access}&expires_in=28800&refresh_token={refresh}&scope=repo%2Cgist&\
             token_type=bearer"
        )
    };
    let (access, refresh) = ("gho_access0123456789", "ghr_refresh%30123456789");
    let fields = "Content-Type: application/x-www-form-urlencoded; charset=utf-8\r\n";
    let said = message("200 OK", fields, form(access, refresh).as_bytes());
    let mut conn = github.workload.connect("github.com:443").await;
    conn.send(post("github.com", "/login/oauth/access_token", &said))
        .await;
    let answer = conn.answer().await;
    assert!(
        !contains(&answer.raw, "0123456789"),
        "{}",
        show(&answer.raw)
    );
    let mut tokens = answer.text().split(['&', '=']).skip(1).step_by(2);
    let (own, expires, other) = (tokens.next(), tokens.next(), tokens.next());
    let (own, other) = (own.expect("a token"), other.expect("a token"));
    assert!(
        own.starts_with("gho_SEALED_") && other.starts_with("ghr_SEALED_"),
        "{own} {other}"
    );
    assert_eq!(expires, Some("28800"));
    assert_eq!(answer.text(), form(own, other));
    // git sends it as a password.
    scene.good.forget();
    let basic = crate::support::basic("x-access-token", own);
    conn.send(format!(
        "GET /o/r.git HTTP/1.1\r\nHost: github.com\r\nAuthorization: {basic}\r\n\r\n"
    ))
    .await;
    assert_eq!(conn.answer().await.status, 200);
    let expected = crate::support::basic("x-access-token", access);
    assert!(
        contains(&scene.good.bytes(), expected),
        "{}",
        show(&scene.good.bytes())
    );
    // What is no token yet passes as it is.
    let pending = "error=authorization_pending&error_description=The+user+has+not";
    let said = message("200 OK", fields, pending.as_bytes());
    conn.send(post("github.com", "/login/oauth/access_token", &said))
        .await;
    assert_eq!(conn.answer().await.text(), pending);
    github.alive("a form").await;
}

#[tokio::test]
async fn a_jwt_stays_one_that_says_nothing() {
    let scene = scene().await;
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let header = part("{\"alg\":\"ES256\",\"kid\":\"canary-key\"}");
    let payload = part("{\"sub\":\"canary-user\",\"exp\":1893456000,\"email\":\"canary@x\"}");
    let jwt = format!("{header}.{payload}.{}", part("a signature"));
    let body = format!("{{\"access_token\":\"{jwt}\",\"token_type\":\"bearer\"}}");
    let mut conn = scene.workload.connect(TARGET).await;
    let answer = told(&mut conn, PATH, json(&body)).await;
    let text = answer.json();
    let token = text["access_token"].as_str().expect("a token");
    let parts: Vec<_> = token.split('.').collect();
    assert_eq!(parts.len(), 3, "{token}");
    let read = |part: &str| {
        let bytes = URL_SAFE_NO_PAD.decode(part).expect("base64url");
        serde_json::from_slice::<Value>(&bytes).expect("JSON")
    };
    assert_eq!(
        read(parts[0]),
        serde_json::json!({"alg": "ES256", "typ": "JWT"})
    );
    assert_eq!(read(parts[1]), serde_json::json!({"exp": 1_893_456_000}));
    assert!(URL_SAFE_NO_PAD.decode(parts[2]).is_ok(), "{token}");
    assert!(!contains(&answer.raw, &payload) && !contains(&answer.raw, &header));
    let seen = bearer(&scene, token).await;
    assert!(
        seen.ends_with(&format!("Authorization: Bearer {jwt}\r\n\r\n")),
        "{seen}"
    );
    // Without its beginning it is text.
    let bare = parts[2];
    assert!(bearer(&scene, bare).await.contains(bare));
    scene.alive("a JWT").await;
}

#[tokio::test]
async fn what_is_no_success_passes_as_any_answer() {
    let scene = scene().await;
    let mut conn = scene.workload.connect(TARGET).await;
    let html = "<p>access_token</p>";
    for (said, status) in [
        (
            message(
                "400 Bad Request",
                "X: 1\r\n",
                b"{\"error\":\"invalid_grant\"}",
            ),
            400,
        ),
        (
            message(
                "404 Not Found",
                "Content-Type: text/html\r\n",
                html.as_bytes(),
            ),
            404,
        ),
        (message("302 Found", "Location: /login\r\n", b""), 302),
        (
            message(
                "200 OK",
                "Content-Type: application/json\r\n",
                b"{\"error\":\"slow_down\"}",
            ),
            200,
        ),
        (message("200 OK", "", b""), 200),
    ] {
        let answer = told(&mut conn, PATH, &said).await;
        assert_eq!(answer.status, status);
        let (_, body) = said.split_at(said.len() - answer.body.len());
        assert_eq!(answer.body, body);
        assert!(said.ends_with(&answer.body), "{}", show(&answer.raw));
    }
    for method in ["HEAD", "GET", "OPTIONS"] {
        // The origin answers with a short text, which is refused where it is a body.
        conn.send(format!("{method} {PATH} HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"))
            .await;
        let answer = if method == "HEAD" {
            let head = conn.answer_to_head().await;
            // That origin sends a body all the same: its connection is of no more use.
            conn = scene.workload.connect(TARGET).await;
            head
        } else {
            conn.answer().await
        };
        let expected = if method == "HEAD" { 200 } else { 502 };
        assert_eq!(answer.status, expected, "{method}: {}", answer.head);
    }
    scene.alive("answers without tokens").await;
}

#[tokio::test]
async fn a_token_that_stands_elsewhere_in_the_answer_is_scrubbed_there() {
    let scene = scene().await;
    let mut conn = scene.workload.connect(TARGET).await;
    let body = format!(
        "{{\"access_token\":\"{ACCESS}\",\"again\":\"x{ACCESS}y\",\"encoded\":\"{}\",\"own\":\"{REAL}\"}}",
        data_encoding::HEXLOWER.encode(ACCESS.as_bytes())
    );
    let fields = format!("Set-Cookie: session={ACCESS}; Secure\r\nX-Own: {REAL}\r\n");
    let answer = told(&mut conn, PATH, message("200 OK", &fields, body.as_bytes())).await;
    assert_eq!(answer.status, 200);
    assert_clean("a copy", &answer.raw);
    assert!(!contains(&answer.raw, REAL), "{}", show(&answer.raw));
    let json = answer.json();
    let token = json["access_token"].as_str().expect("a token");
    assert_eq!(json["again"], format!("x{token}y"));
    assert_eq!(json["own"], scene.token());
    let cookie = format!("session={token}; Secure");
    assert_eq!(answer.header("set-cookie"), Some(cookie.as_str()));
    // Any later answer of the issuer's hosts is scrubbed likewise.
    let later = told(&mut conn, "/me", json_of_access()).await;
    assert_eq!(later.json()["echo"], token);
    scene.alive("copies").await;
}

fn json_of_access() -> Vec<u8> {
    json(&format!("{{\"echo\":\"{ACCESS}\"}}"))
}

#[tokio::test]
async fn other_spellings_of_the_path_are_captured_from_too() {
    let scene = scene().await;
    let mut conn = scene.workload.connect(TARGET).await;
    let mut number = 100;
    for path in [
        "/v1/oauth/token?grant_type=x",
        "/v1/oauth/token/",
        "//v1/oauth/./token",
        "/V1/OAuth/Token",
        "/v1/oauth/%74oken",
        "/v1/oauth/token%23x",
        "/v1/oauth/token%3fx",
        "/v1%2foauth%2ftoken",
        "/v1/oauth/token;x=1",
        "/v1/oauth/token.json",
    ] {
        // Values that nobody has seen yet: nothing else would take them out.
        for method in ["POST", "PUT", "GET"] {
            number += 1;
            let fresh = format!("fresh-{number}");
            let request = post(GOOD, path, &json(&standard().replace("value", &fresh)));
            let head = format!("{method} ");
            conn.send([head.as_bytes(), &request["POST ".len()..]].concat())
                .await;
            let answer = conn.answer().await;
            assert_eq!(answer.status, 200, "{method} {path}");
            assert!(
                !contains(&answer.raw, &fresh),
                "{method} {path}: {}",
                show(&answer.raw)
            );
        }
    }
    // Where these lead depends on who reads them: nobody gets to.
    for path in [
        "/v1/x/../oauth/token",
        "/v1/oauth/x//../../token",
        "/v1/oauth/%252e%252e/../token",
        "/v1/oauth/..;x/../token",
        "/v1/oauth/%2f/../token",
        "/v1/oauth/a\\b/..%2ftoken",
        "/v1/oauth/token#",
        "/v1/oauth/token#/../x",
    ] {
        scene.good.forget();
        let request = post(GOOD, path, &json(&standard()));
        let answer = scene.ask(GOOD, &request).await;
        assert_eq!(answer.status, 400, "{path}");
        assert!(!contains(&answer.raw, ACCESS), "{path}");
        scene.nothing_arrived(path).await;
    }
    // Another path is none of its business: nobody asked for it to be watched.
    let other = standard().replace("value", "other");
    let answer = told(&mut conn, "/v1/oauth/tokens", json(&other)).await;
    assert_eq!(answer.text(), other);
    scene.alive("other spellings").await;
}

#[tokio::test]
async fn an_answer_that_comes_before_its_request_is_through_is_captured_from() {
    let good = Origin::raw(|conn| async move {
        while let Some(head) = conn.read_head().await {
            if head.starts_with("POST ") {
                conn.send(json(&standard())).await;
                // What is left of the request is read, so that nothing is reset.
                conn.wait_end().await;
                return;
            }
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .await;
        }
    });
    let scene = Scene::with_good(good.await, |vault| vault, watching).await;
    let mut conn = scene.workload.connect(TARGET).await;
    conn.send(format!(
        "POST {PATH} HTTP/1.1\r\nHost: {GOOD}\r\nContent-Length: 100000\r\n\r\nabc"
    ))
    .await;
    let answer = conn.answer().await;
    assert_eq!(answer.status, 200);
    assert_clean("an early answer", &answer.raw);
    assert_eq!(answer.header("connection"), Some("close"));
    let tokens = sealed(&answer.body);
    assert!(bearer(&scene, &tokens[0]).await.contains(ACCESS));
    scene.alive("an early answer").await;
}
