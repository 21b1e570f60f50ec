//! Signing in with GitHub: what GitHub is asked byte for byte, what comes back and what does not, and
//! where people may be sent.

use data_encoding::{BASE64, BASE64URL_NOPAD};
use oshu_vault::config::{Config, Github, ReturnTo, Word};
use serde_json::{Value, json};

use crate::support::{Answer, Anthropic, Origin, contains, show};

use super::{Stage, secret};

const HOST: &str = "github.com";
const CLIENT_ID: &str = "Iv1.client&id";
pub(super) const CLIENT_SECRET: &str = "CANARY-client-secret";
const APP: &str = "https://app.example.com";
const NATIVE: &str = "myapp://signed-in";

fn github(config: &mut Config) {
    let return_to = [APP, NATIVE, "http://localhost:3000"].map(ReturnTo::parse);
    config.github = Github {
        client_id: Word::parse(CLIENT_ID),
        client_secret: Some(secret(CLIENT_SECRET)),
        return_to: return_to.into_iter().flatten().collect(),
        requests_per_minute: 10_000,
        ..Github::default()
    };
}

/// Sets the stage with a GitHub that answers like this.
pub(super) async fn stage(answer: String, change: fn(&mut Config)) -> (Stage, Origin) {
    let github_com = Origin::answer(answer).await;
    let provider = Anthropic::start().await.into_origin();
    let address = github_com.addr();
    let stage = Stage::built(provider, |vault| {
        vault.resolve(HOST, address).config(|config| {
            github(config);
            change(config);
        })
    });
    (stage.await, github_com)
}

pub(super) fn says(status: u16, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json; charset=utf-8\r\n\
         Set-Cookie: CANARY=1\r\nX-OAuth: CANARY\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

pub(super) async fn post(stage: &Stage, path: &str, body: &str) -> Answer {
    let asked = format!(
        "POST /api/github/{path} HTTP/1.1\r\nHost: v\r\nCookie: a=CALLER\r\n\
         Authorization: Bearer CALLER\r\nContent-Type: application/json\r\nContent-Length: \
         {}\r\n\r\n{body}",
        body.len()
    );
    stage.ask(asked).await
}

async fn callback(stage: &Stage, method: &str, query: &str) -> Answer {
    let asked = format!("{method} /api/auth/callback?{query} HTTP/1.1\r\nHost: v\r\n");
    stage.ask(format!("{asked}Content-Length: 0\r\n\r\n")).await
}

/// What GitHub has to receive: nothing of the caller's but what the form says.
pub(super) fn asked(path: &str, form: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: {HOST}\r\nuser-agent: oshu-vault\r\naccept-encoding: \
         identity\r\naccept: application/json\r\ncontent-type: \
         application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{form}",
        form.len()
    )
}

/// Returns a token as GitHub gives it, and as a caller gets it.
pub(super) fn token() -> (Value, Value) {
    let told = json!({ "access_token": "gho_CANARY", "token_type": "bearer", "scope": "repo" });
    let mut given = told.clone();
    given["refresh_token"] = "ghr_CANARY".into();
    (given, told)
}

fn expect_untold(stage: &Stage) {
    let records = format!("{:?}", stage.vault.audit());
    assert!(!contains(records.as_bytes(), "CANARY"), "{records}");
    stage.provider.expect_nothing("a sign-in");
}

#[tokio::test]
async fn a_device_code_is_asked_for_in_the_name_of_the_app() {
    let told = json!({
        "device_code": "d-1", "user_code": "WDJB-MJHT", "interval": 5, "expires_in": 899,
        "verification_uri": "https://github.com/login/device",
    });
    let mut given = told.clone();
    given["client_secret"] = "CANARY".into();
    let (stage, origin) = stage(says(200, &given), |_| ()).await;
    for (body, scope) in [
        ("", "user+repo+read%3Aorg+workflow"),
        ("{}", "user+repo+read%3Aorg+workflow"),
        (
            r#"{"scope":"gist&client_id=other"}"#,
            "gist%26client_id%3Dother",
        ),
        (r#"{"scope":""}"#, ""),
    ] {
        origin.forget();
        let answer = post(&stage, "device/code", body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json(), told);
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(
            (answer.header("set-cookie"), answer.header("x-oauth")),
            (None, None)
        );
        let form = format!("client_id=Iv1.client%26id&scope={scope}");
        let expected = asked("/login/device/code", &form);
        assert_eq!(show(&origin.bytes()), show(expected.as_bytes()));
    }
    expect_untold(&stage);
}

#[tokio::test]
async fn a_device_waits_with_what_is_about_the_person_and_with_nothing_else() {
    let form = "client_id=Iv1.client%26id&device_code=d-1&\
                grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Adevice_code";
    let error = |word: &str| json!({ "error": word });
    let explained = |word: &str| json!({ "error": word, "error_description": "CANARY" });
    let slower = json!({ "error": "slow_down", "interval": 10 });
    let (given, told) = token();
    for (given, status, told) in [
        (given, 200, told),
        (
            explained("authorization_pending"),
            200,
            error("authorization_pending"),
        ),
        (slower.clone(), 200, slower),
        (explained("expired_token"), 200, error("expired_token")),
        (explained("access_denied"), 200, error("access_denied")),
        (
            explained("incorrect_device_code"),
            200,
            error("incorrect_device_code"),
        ),
        (explained("incorrect_client_credentials"), 502, Value::Null),
        (explained("device_flow_disabled"), 502, Value::Null),
        (json!({ "access_token": "gho_CANARY" }), 502, Value::Null),
        (json!([]), 502, Value::Null),
    ] {
        let (stage, origin) = stage(says(200, &given), |_| ()).await;
        let answer = post(&stage, "device/token", r#"{"device_code":"d-1"}"#).await;
        assert_eq!(answer.status, status, "{given}: {}", answer.text());
        if status == 200 {
            assert_eq!(answer.json(), told);
        } else {
            assert!(
                !contains(answer.text().as_bytes(), "CANARY"),
                "{}",
                answer.text()
            );
        }
        let expected = asked("/login/oauth/access_token", form);
        assert_eq!(show(&origin.bytes()), show(expected.as_bytes()));
        expect_untold(&stage);
    }
}

#[tokio::test]
async fn a_code_is_exchanged_with_the_secret_that_only_github_hears() {
    let form = format!("client_id=Iv1.client%26id&client_secret={CLIENT_SECRET}&code=c0de-1");
    let (given, told) = token();
    for (github_says, status) in [
        (says(200, &given), 200),
        (says(200, &json!({ "error": "bad_verification_code" })), 400),
        (
            says(200, &json!({ "error": "incorrect_client_credentials" })),
            502,
        ),
        (says(404, &json!({})), 502),
        (says(429, &json!({})), 502),
        (says(302, &given), 502),
    ] {
        let (stage, origin) = stage(github_says.clone(), |_| ()).await;
        let answer = post(&stage, "oauth/token", r#"{"code":"c0de-1"}"#).await;
        assert_eq!(answer.status, status, "{github_says}");
        if status == 200 {
            assert_eq!(answer.json(), told);
        } else {
            assert!(
                !contains(answer.text().as_bytes(), "CANARY"),
                "{}",
                answer.text()
            );
        }
        let expected = asked("/login/oauth/access_token", &form);
        assert_eq!(show(&origin.bytes()), show(expected.as_bytes()));
        expect_untold(&stage);
    }
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused_and_github_hears_nothing() {
    let (stage, origin) = stage(says(200, &token().0), |_| ()).await;
    let long = format!("{{\"code\":\"{}\"}}", "a".repeat(513));
    let longer = format!("{{\"code\":\"{}\"}}", "a".repeat(5000));
    for (path, body, status, names) in [
        ("device/code", "[]", 400, "the body"),
        ("device/code", r#"{"scope":1}"#, 400, "the body"),
        ("device/code", r#"{"scopes":"repo"}"#, 400, "the body"),
        ("device/code", r#"{"scope":"repo\r\nx"}"#, 400, "scope"),
        ("device/token", "{}", 400, "the body"),
        ("device/token", "", 400, "the body"),
        ("device/token", r#"{"device_code":""}"#, 400, "device_code"),
        (
            "device/token",
            r#"{"device_code":"a b"}"#,
            400,
            "device_code",
        ),
        (
            "device/token",
            r#"{"device_code":"a","device_code":"b"}"#,
            400,
            "the body",
        ),
        ("oauth/token", r#"{"code":"a&client_id=b"}"#, 400, "code"),
        (
            "oauth/token",
            r#"{"code":"a","state":"b"}"#,
            400,
            "the body",
        ),
        ("oauth/token", long.as_str(), 400, "code"),
        ("oauth/token", longer.as_str(), 413, ""),
    ] {
        let answer = post(&stage, path, body).await;
        assert_eq!(answer.status, status, "{path} {body}");
        let told = answer.json();
        let message = told["details"]["message"].as_str().expect("a message");
        assert!(message.starts_with(names), "{path} {body}: {message}");
    }
    let answer = stage
        .ask("GET /api/github/device/code HTTP/1.1\r\nHost: v\r\n\r\n")
        .await;
    assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")));
    origin.expect_nothing("a refused call");
    let answer = post(&stage, "oauth/token", r#"{"code":"good"}"#).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn the_callback_sends_people_to_listed_addresses_alone() {
    let (stage, origin) = stage(says(200, &json!({})), |_| ()).await;
    let in_json = json!({ "nonce": "n?>", "origin": APP }).to_string();
    for (held, starts) in [
        (APP, "https://app.example.com/?"),
        (NATIVE, "myapp://signed-in?"),
        ("http://localhost:3000", "http://localhost:3000/?"),
        (in_json.as_str(), "https://app.example.com/?"),
    ] {
        let state = BASE64URL_NOPAD.encode(held.as_bytes());
        for method in ["GET", "POST"] {
            let answer = callback(&stage, method, &format!("code=c0de&state={state}")).await;
            assert_eq!(answer.status, 302, "{held}");
            let expected = format!("{starts}code=c0de&state={state}");
            assert_eq!(answer.header("location"), Some(expected.as_str()));
            assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
            assert_eq!(answer.header("cache-control"), Some("no-store"));
        }
        let query = format!("error=access_denied&error_description=x&state={state}");
        let answer = callback(&stage, "GET", &query).await;
        let expected = format!("{starts}error=access_denied&state={state}");
        assert_eq!(answer.header("location"), Some(expected.as_str()));
    }
    let good = BASE64.encode(APP.as_bytes());
    let mut bad = vec![
        (format!("state={good}"), "code"),
        ("code=c0de".to_owned(), "state"),
        (format!("code=&state={good}"), "code"),
        (format!("code=a%0d%0ab&state={good}"), "code"),
        (format!("code=a&code=b&state={good}"), "the query"),
        (format!("code=a&state={good}&state={good}"), "the query"),
        (format!("code=a&error=b&state={good}"), "error"),
        (format!("error=%3Cscript&state={good}"), "error"),
        ("code=a&state=%00".to_owned(), "state"),
    ];
    for elsewhere in [
        "https://app.example.com.evil.example",
        "https://app.example.com@evil.example",
        "https://app.example.com/",
        "https://app.example.com/other",
        "https://APP.example.com",
        "https://app.example.com:443",
        "http://app.example.com",
        "//evil.example",
        "myapp://signed-in/../x",
        "myapp://",
        "javascript:alert(1)",
        "https://app.example.com\r\nSet-Cookie: a=b",
        "",
        "{\"origin\":\"https://evil.example\"}",
        "{\"origin\":[\"https://app.example.com\"]}",
    ] {
        let state = BASE64URL_NOPAD.encode(elsewhere.as_bytes());
        bad.push((format!("code=a&state={state}"), "state"));
    }
    for (query, names) in bad {
        let answer = callback(&stage, "GET", &query).await;
        assert_eq!(answer.status, 400, "{query}");
        assert_eq!(answer.header("location"), None, "{query}");
        let told = answer.json();
        let message = told["details"]["message"].as_str().expect("a message");
        assert!(message.starts_with(names), "{query}: {message}");
    }
    origin.expect_nothing("a callback");
    let alive = callback(&stage, "GET", &format!("code=c0de&state={good}")).await;
    assert_eq!(alive.status, 302);
}

#[tokio::test]
async fn what_is_not_set_up_is_not_there() {
    let good = BASE64.encode(APP.as_bytes());
    let query = format!("code=c0de&state={good}");
    let none: fn(&mut Config) = |config| config.github = Github::default();
    let (stage_without, origin) = stage(says(200, &token().0), none).await;
    for path in ["device/code", "device/token", "oauth/token"] {
        assert_eq!(
            post(&stage_without, path, r#"{"code":"a"}"#).await.status,
            404
        );
    }
    assert_eq!(callback(&stage_without, "GET", &query).await.status, 404);
    origin.expect_nothing("a call that is not there");
    // Without the secret there is the device flow, and without addresses nobody is sent anywhere.
    let bare: fn(&mut Config) = |config| {
        config.github.client_secret = None;
        config.github.return_to.clear();
    };
    let (bare, _origin) = stage(says(200, &token().0), bare).await;
    let answer = post(&bare, "oauth/token", r#"{"code":"a"}"#).await;
    assert_eq!(answer.status, 404);
    let answer = post(&bare, "device/token", r#"{"device_code":"a"}"#).await;
    assert_eq!(answer.status, 200);
    assert_eq!(callback(&bare, "GET", &query).await.status, 400);
}

#[tokio::test]
async fn an_address_that_asks_too_fast_is_held() {
    let slow: fn(&mut Config) = |config| config.github.requests_per_minute = 2;
    let (stage, _origin) = stage(says(200, &token().0), slow).await;
    let mut held = 0;
    for _ in 0..20 {
        let answer = post(&stage, "oauth/token", r#"{"code":"a"}"#).await;
        if answer.status == 429 {
            assert!(answer.header("retry-after").is_some());
            held += 1;
        }
    }
    assert!(held > 0, "none was held");
}

#[tokio::test]
async fn each_call_has_a_record_without_what_was_said() {
    let (stage, _origin) = stage(says(200, &token().0), |_| ()).await;
    let state = BASE64.encode(APP.as_bytes());
    assert_eq!(
        post(&stage, "device/token", r#"{"device_code":"CANARY"}"#)
            .await
            .status,
        200
    );
    assert_eq!(post(&stage, "device/code", "[]").await.status, 400);
    assert_eq!(
        post(&stage, "oauth/token", r#"{"code":"CANARY"}"#)
            .await
            .status,
        200
    );
    let query = format!("code=CANARY&state={state}");
    assert_eq!(callback(&stage, "GET", &query).await.status, 302);
    assert_eq!(callback(&stage, "PUT", &query).await.status, 405);
    let expected = [
        "GET /api/auth/callback allowed ok 302",
        "POST /api/github/device/code denied bad_request 400",
        "POST /api/github/device/token allowed ok 200",
        "POST /api/github/oauth/token allowed ok 200",
        "PUT /api/auth/callback denied method_not_allowed 405",
    ];
    let told = |lines: &[Value]| {
        let ours = lines.iter().filter(|line| line["host"] == HOST);
        let told = ours.map(|line| {
            let word = |name: &str| line[name].as_str().unwrap_or("-").to_owned();
            let (method, path) = (word("method"), word("path"));
            let (decision, reason) = (word("decision"), word("reason"));
            format!("{method} {path} {decision} {reason} {}", line["status"])
        });
        let mut told: Vec<_> = told.collect();
        told.sort();
        told
    };
    let log = stage.vault.audit_log();
    let lines = log.wait("a record of each", |lines| {
        told(lines).len() == expected.len()
    });
    assert_eq!(told(&lines.await), expected);
    expect_untold(&stage);
}
