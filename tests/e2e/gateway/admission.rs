//! Who is let in: every way of sending the JWT, every wrong one with the same answer, and 402 only
//! for who is known.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use oshu_vault::config::PublicUrl;
use oshu_vault_sdk::CreateSession;

use crate::support::{Answer, Anthropic, Origin, within};

use super::{
    ACCOUNT, BODY, JWT_SECRET, OTHER_SECRET, PAYMENT_URL, Stage, jwt, jwt_by, message, post, secret,
};

/// Signs any header and claims.
fn sign(secret_text: &str, header: &str, claims: &str) -> String {
    let signed = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header),
        URL_SAFE_NO_PAD.encode(claims)
    );
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret_text.as_bytes());
    let tag = aws_lc_rs::hmac::sign(&key, signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref()))
}

fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(since.expect("a time").as_secs()).expect("a time")
}

/// Returns claims that are right, to be spoilt.
fn claims(change: impl FnOnce(&mut Value)) -> String {
    let mut claims = json!({
        "iss": "yolocode-api", "iat": now(), "exp": now() + 3600,
        "userId": ACCOUNT, "sandboxName": "box-1",
    });
    change(&mut claims);
    claims.to_string()
}

const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// Takes out of an answer what differs between two calls: the request's id.
pub(super) fn timeless(answer: &Answer) -> String {
    let text = String::from_utf8_lossy(&answer.raw).into_owned();
    let id = answer.header("x-request-id").expect("an id").to_owned();
    text.replace(&id, "ID")
}

#[tokio::test]
async fn a_jwt_is_found_wherever_clients_put_it() {
    let stage = Stage::new().await;
    stage.pay(ACCOUNT, true).await;
    let jwt = jwt(ACCOUNT);
    let basic = |pair: String| STANDARD.encode(pair);
    let fields = [
        format!("x-api-key: {jwt}\r\n"),
        format!("Authorization: Bearer {jwt}\r\n"),
        format!("authorization: bEARER {jwt}\r\n"),
        format!("Authorization: Basic {}\r\n", basic(format!("x:{jwt}"))),
        format!("Authorization: Basic {}\r\n", basic(format!("{jwt}:"))),
        // Once or several times, beside what is no JWT.
        format!("x-api-key: sk-ant-api03-x\r\nAuthorization: Bearer {jwt}\r\n"),
        format!("x-api-key: {jwt}\r\nAuthorization: Bearer {jwt}\r\n"),
    ];
    for lines in fields {
        let answer = stage.ask(message(&lines)).await;
        assert_eq!(answer.status, 200, "{lines}: {}", answer.text());
    }
    for query in ["token", "api_key", "key", "beta=true&%74oken"] {
        let raw = post(&format!("/v1/messages?{query}={jwt}"), "", BODY);
        assert_eq!(stage.ask(raw).await.status, 200, "{query}");
    }
    // Over TLS just the same.
    let mut conn = stage
        .vault
        .workload(&stage.vault.session(&crate::support::Scene::request()).await)
        .secure()
        .await;
    conn.send(message(&format!("x-api-key: {jwt}\r\n"))).await;
    assert_eq!(conn.answer().await.status, 200);
}

/// Returns tokens whose header or signature is not right.
pub(super) fn badly_signed(good: &str) -> Vec<(&'static str, String)> {
    let (start, signature) = good.rsplit_once('.').expect("three parts");
    let with = |header: &str| sign(JWT_SECRET, header, &claims(|_| ()));
    vec![
        ("none", String::new()),
        ("no JWT", "sk-ant-api03-0123456789".to_owned()),
        ("alg none", with(r#"{"alg":"none"}"#)),
        (
            "alg none, unsigned",
            format!("{}.", with(r#"{"alg":"none"}"#).rsplit_once('.').unwrap().0),
        ),
        ("alg HS512", with(r#"{"alg":"HS512"}"#)),
        ("alg RS256", with(r#"{"alg":"RS256"}"#)),
        ("alg twice", with(r#"{"alg":"HS256","alg":"HS256"}"#)),
        (
            "a path as kid",
            with(r#"{"alg":"HS256","kid":"../../dev/null"}"#),
        ),
        (
            "SQL as kid",
            with(r#"{"alg":"HS256","kid":"x' UNION SELECT 'a"}"#),
        ),
        (
            "jku",
            with(r#"{"alg":"HS256","jku":"https://evil.example.net/k"}"#),
        ),
        (
            "x5u",
            with(r#"{"alg":"HS256","x5u":"https://evil.example.net/k"}"#),
        ),
        (
            "jwk",
            with(r#"{"alg":"HS256","jwk":{"kty":"oct","k":"eA"}}"#),
        ),
        ("crit", with(r#"{"alg":"HS256","crit":["x"]}"#)),
        ("another key", jwt_by(OTHER_SECRET, ACCOUNT)),
        ("no signature", format!("{start}.")),
        ("half a signature", good[..good.len() - 8].to_owned()),
        ("padding", format!("{good}=")),
        ("another's claims", {
            let other = jwt_by(JWT_SECRET, "42");
            let middle = other.split('.').nth(1).unwrap();
            format!("{}.{middle}.{signature}", start.split('.').next().unwrap())
        }),
    ]
}

/// Returns tokens that are rightly signed, and say what is not right.
pub(super) fn badly_claiming() -> Vec<(&'static str, String)> {
    let claiming = |change: fn(&mut Value)| sign(JWT_SECRET, HEADER, &claims(change));
    vec![
        (
            "another issuer",
            claiming(|claims| claims["iss"] = json!("yolocode")),
        ),
        (
            "an audience",
            claiming(|claims| claims["aud"] = json!("yolocode-api")),
        ),
        (
            "expired",
            claiming(|claims| {
                claims["iat"] = json!(now() - 3600);
                claims["exp"] = json!(now() - 61);
            }),
        ),
        (
            "not yet",
            claiming(|claims| claims["nbf"] = json!(now() + 300)),
        ),
        (
            "of the future",
            claiming(|claims| {
                claims["iat"] = json!(now() + 300);
                claims["exp"] = json!(now() + 600);
            }),
        ),
        (
            "too long a life",
            claiming(|claims| claims["exp"] = json!(now() + 90_000)),
        ),
        (
            "no exp",
            claiming(|claims| {
                claims.as_object_mut().unwrap().remove("exp");
            }),
        ),
        (
            "no account",
            claiming(|claims| {
                claims.as_object_mut().unwrap().remove("userId");
            }),
        ),
        (
            "an odd account",
            claiming(|claims| claims["userId"] = json!("../1")),
        ),
        (
            "no sandbox",
            claiming(|claims| {
                claims.as_object_mut().unwrap().remove("sandboxName");
            }),
        ),
        (
            "oversize",
            claiming(|claims| claims["x"] = json!("x".repeat(8192))),
        ),
    ]
}

#[tokio::test]
async fn case_83_every_wrong_credential_gets_the_same_answer() {
    let stage = Stage::new().await;
    stage.pay(ACCOUNT, true).await;
    let good = jwt(ACCOUNT);
    let nothing = stage.ask(message("")).await;
    assert_eq!(nothing.status, 401);
    assert_eq!(nothing.header("x-should-retry"), Some("false"));
    assert_eq!(nothing.json()["error"]["type"], "authentication_error");
    let nothing = timeless(&nothing);
    let tokens = badly_signed(&good).into_iter().chain(badly_claiming());
    for (what, token) in tokens {
        let answer = stage.message(&token).await;
        assert_eq!(timeless(&answer), nothing, "{what}");
    }
    // Two that differ, both of them right.
    let other = jwt_by(JWT_SECRET, "42");
    let two = format!("x-api-key: {good}\r\nAuthorization: Bearer {other}\r\n");
    assert_eq!(timeless(&stage.ask(message(&two)).await), nothing);
    stage.provider.expect_nothing("wrong credentials");
    assert_eq!(stage.message(&good).await.status, 200, "a right one");
}

#[tokio::test]
async fn wrong_credentials_are_held_back_and_a_right_one_is_always_taken() {
    let provider = Anthropic::start().await.into_origin();
    let stage = Stage::around(provider, |config| config.limits.auth_failures = 2).await;
    stage.pay(ACCOUNT, true).await;
    let wrong = jwt_by(OTHER_SECRET, ACCOUNT);
    for status in [401, 401, 429, 429] {
        let answer = stage.message(&wrong).await;
        assert_eq!(answer.status, status, "{}", answer.text());
        assert_eq!(answer.header("retry-after").is_some(), status == 429);
    }
    assert_eq!(stage.message("").await.status, 401, "none is no attempt");
    assert_eq!(stage.message(&jwt(ACCOUNT)).await.status, 200);
}

#[tokio::test]
async fn peer_83_who_is_known_and_not_paid_is_told_where_to() {
    let stage = Stage::new().await;
    // Another's payment is another's.
    stage.pay("42", true).await;
    let answer = stage.message(&jwt(ACCOUNT)).await;
    assert_eq!(answer.status, 402);
    assert_eq!(answer.header("x-should-retry"), Some("false"));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let told = answer.json();
    assert_eq!(told["type"], "error");
    assert_eq!(told["error"]["type"], "payment_required");
    let message = told["error"]["message"].as_str().expect("a message");
    assert!(message.ends_with(PAYMENT_URL), "{message}");
    // It is a status also where a stream was asked for, and no body is needed to be told.
    let stream = BODY.replace("{\"model\"", "{\"stream\":true,\"model\"");
    let line = format!("x-api-key: {}\r\n", jwt(ACCOUNT));
    assert_eq!(
        stage.ask(post("/v1/messages", &line, &stream)).await.status,
        402
    );
    let mut conn = stage.connect().await;
    conn.send(format!(
        "POST /api/claude-gateway/v1/messages HTTP/1.1\r\nHost: g\r\n{line}Content-Length: \
         1000000\r\n\r\n{{"
    ))
    .await;
    assert_eq!(conn.answer().await.status, 402, "before a body");
    stage.provider.expect_nothing("unpaid");
    stage.pay(ACCOUNT, true).await;
    assert_eq!(stage.message(&jwt(ACCOUNT)).await.status, 200, "paid");
    stage.pay(ACCOUNT, false).await;
    assert_eq!(stage.message(&jwt(ACCOUNT)).await.status, 402, "no more");
    assert_eq!(stage.message(&jwt("42")).await.status, 200, "another");
}

#[tokio::test]
async fn accounts_are_the_operator_s_alone() {
    let stage = Stage::new().await;
    for (method, path, body) in [
        ("GET", "/v1/accounts", ""),
        ("GET", "/v1/accounts/1", ""),
        ("PUT", "/v1/accounts/1", r#"{"paid":true}"#),
        ("PATCH", "/v1/accounts/1", ""),
        ("GET", "/v1/accounts/1/usage", ""),
    ] {
        for key in [
            crate::support::API_KEY.to_owned(),
            "wrong-0123456789abcdef".to_owned(),
            jwt("1"),
        ] {
            let raw = format!(
                "{method} {path} HTTP/1.1\r\nHost: v\r\nx-api-key: {key}\r\nContent-Length: \
                 {}\r\n\r\n{body}",
                body.len()
            );
            let answer = stage.ask(raw).await;
            assert_eq!(
                (answer.status, answer.code().as_str()),
                (404, "not_found"),
                "{path}"
            );
        }
    }
    assert_eq!(
        stage.operate("GET", "/v1/accounts/1", "").await["paid"],
        false
    );
    stage.pay("1", true).await;
    stage.pay("2", false).await;
    let list = stage.operate("GET", "/v1/accounts?limit=1", "").await;
    assert_eq!(list["accounts"][0]["account_id"], "1");
    assert_eq!(list["next_cursor"], "1");
    let list = stage.operate("GET", "/v1/accounts?cursor=1", "").await;
    assert_eq!(list["accounts"][0]["account_id"], "2");
    assert_eq!(list["accounts"][0]["granted"], false);
    assert_eq!(list["next_cursor"], Value::Null);
    for (path, body, status, field) in [
        ("/v1/accounts/1", r#"{"paid":1}"#, 422, "paid"),
        ("/v1/accounts/1", "{}", 422, "paid"),
        ("/v1/accounts/1", r#"{"paid":true,"x":1}"#, 422, "x"),
        ("/v1/accounts/1", "[]", 422, "body"),
    ] {
        let raw = format!(
            "PUT {path} HTTP/1.1\r\nHost: v\r\nx-api-key: {}\r\nContent-Length: {}\r\n\r\n{body}",
            super::ADMIN,
            body.len()
        );
        let answer = stage.ask(raw).await;
        let told = answer.json()["errors"][0]["field"].clone();
        assert_eq!((answer.status, told), (status, json!(field)), "{body}");
    }
}

#[tokio::test]
async fn the_secret_before_is_still_accepted() {
    const BEFORE: &str = "jwt-secret-before-0123456789abcdef01";
    let provider = Anthropic::start().await.into_origin();
    let stage = Stage::around(provider, |config| {
        config.gateway.jwt_secret_previous = Some(secret(BEFORE));
    });
    let stage = stage.await;
    stage.pay(ACCOUNT, true).await;
    assert_eq!(stage.message(&jwt_by(BEFORE, ACCOUNT)).await.status, 200);
    assert_eq!(stage.message(&jwt(ACCOUNT)).await.status, 200);
}

#[tokio::test]
async fn an_account_s_requests_a_minute_are_bounded() {
    let provider = Anthropic::start().await.into_origin();
    let stage = Stage::around(provider, |config| {
        config.gateway.requests_per_minute = Some(2);
    });
    let stage = stage.await;
    for account in [ACCOUNT, "42"] {
        stage.pay(account, true).await;
        let mut statuses = Vec::new();
        for _ in 0..3 {
            statuses.push(stage.message(&jwt(account)).await.status);
        }
        // A slow machine may earn a token on the way, though never at the first two.
        assert_eq!(statuses[..2], [200, 200], "{account}");
    }
    // Thirty seconds a token: of so many at once some must wait.
    let mut held = 0;
    for _ in 0..20 {
        let answer = stage.message(&jwt(ACCOUNT)).await;
        if answer.status == 429 {
            assert!(answer.header("retry-after").is_some());
            held += 1;
        }
    }
    assert!(held > 0, "none was held");
}

#[tokio::test]
async fn an_account_has_so_many_connections_and_what_a_session_has_is_the_session_s() {
    let provider = Anthropic::start().await.into_origin();
    let stage = Stage::around(provider, |config| {
        config.limits.session_connections = 2;
        config.proxy.public_url = PublicUrl::parse("https://vault.example.com");
    });
    let stage = stage.await;
    stage.pay(ACCOUNT, true).await;
    let request = message(&format!("Authorization: Bearer {}\r\n", jwt(ACCOUNT)));
    let mut kept = Vec::new();
    for _ in 0..2 {
        let mut conn = stage.connect().await;
        // As often as it likes: it is one connection.
        for _ in 0..3 {
            conn.send(&request).await;
            assert_eq!(conn.answer().await.status, 200);
        }
        kept.push(conn);
    }
    let refused = stage.ask(&request).await;
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert_eq!(refused.json()["details"]["code"], "account_connections");
    assert!(refused.header("retry-after").is_some());
    let other = message(&format!("Authorization: Bearer {}\r\n", jwt("2")));
    assert_eq!(stage.ask(other).await.status, 402);
    // A tunnel is its session's, and does not count for the account.
    let session = stage.vault.session(&CreateSession::new()).await;
    let workload = stage.vault.workload(&session);
    let mut tunnel = workload.connect("vault.example.com:443").await;
    let inner = request.replace("Host: gateway", "Host: vault.example.com");
    tunnel.send(&inner).await;
    assert_eq!(tunnel.answer().await.status, 200);
    // It is still counted there: one more, and no third.
    let _second = workload.connect("vault.example.com:443").await;
    let third = workload.refused("vault.example.com:443").await;
    assert_eq!(third.status, 429, "{}", third.text());
    kept.pop();
    let room = async { while stage.ask(&request).await.status != 200 {} };
    within("room for another", room).await;
}

#[tokio::test]
async fn who_may_use_nothing_takes_no_seat() {
    let provider = Origin::answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await;
    let stage = Stage::around(provider, |config| config.limits.session_connections = 1).await;
    let request = format!(
        "GET /api/claude-gateway/v1/models HTTP/1.1\r\nHost: v\r\nAuthorization: Bearer {}\r\n\r\n",
        jwt(ACCOUNT)
    );
    let mut kept = Vec::new();
    for _ in 0..3 {
        let mut conn = stage.connect().await;
        conn.send(&request).await;
        let answer = conn.answer().await;
        assert_eq!(answer.status, 402, "{}", answer.text());
        kept.push(conn);
    }
    // Once it is paid, the first of them that asks has the one that there is.
    stage.pay(ACCOUNT, true).await;
    let mut statuses = Vec::new();
    for conn in &mut kept {
        conn.send(&request).await;
        statuses.push(conn.answer().await.status);
    }
    assert_eq!(statuses, [200, 429, 429]);
}
