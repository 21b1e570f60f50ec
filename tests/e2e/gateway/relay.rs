//! The relay of OAuth tokens: the body as it came, two fields each way, any page, and no trace.

use crate::support::{Answer, Anthropic, Origin, contains, show};

use super::{Stage, jwt};

const HOST: &str = "console.anthropic.com";
const ASKED: &str = "{\"grant_type\":\"authorization_code\",\"code\":\"CANARY-code\",\
    \"redirect_uri\":\"https://app.example.com/\",\"odd\": 1}";
const GIVEN: &str = "{\"access_token\":\"CANARY-access\",\"refresh_token\":\"CANARY-refresh\"}";

/// Sets the stage with an endpoint of tokens that answers like this.
async fn stage(answer: String, per_minute: u32) -> (Stage, Origin) {
    let endpoint = Origin::answer(answer).await;
    let provider = Anthropic::start().await.into_origin();
    let address = endpoint.addr();
    let stage = Stage::built(provider, |vault| {
        vault.resolve(HOST, address).config(|config| {
            config.gateway.oauth_requests_per_minute = per_minute;
        })
    });
    (stage.await, endpoint)
}

fn says(status: u16, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nSet-Cookie: CANARY=1\r\n\
         X-Org: CANARY\r\nRetry-After: 9\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn ask(stage: &Stage, lines: &str, body: &str) -> Answer {
    stage
        .ask(format!(
            "POST /api/claude/v1/oauth/token HTTP/1.1\r\nHost: v\r\n{lines}Content-Length: \
             {}\r\n\r\n{body}",
            body.len()
        ))
        .await
}

#[tokio::test]
async fn peer_92_a_page_gets_its_tokens_and_nobody_else_hears_of_them() {
    let (stage, endpoint) = stage(says(200, GIVEN), 30).await;
    let lines = format!(
        "Content-Type: application/json\r\nAccept: */*\r\nOrigin: https://app.example.com\r\n\
         Cookie: a=CALLER\r\nAuthorization: Bearer CALLER\r\nx-api-key: {}\r\n\
         X-Forwarded-For: CALLER\r\nReferer: https://CALLER/\r\n",
        jwt("1")
    );
    let answer = ask(&stage, &lines, ASKED).await;
    assert_eq!((answer.status, answer.text()), (200, GIVEN));
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    assert_eq!(answer.header("access-control-allow-credentials"), None);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("set-cookie"), None);
    assert_eq!(answer.header("x-org"), None);
    let expected = format!(
        "POST /v1/oauth/token HTTP/1.1\r\nhost: {HOST}\r\nuser-agent: oshu-vault\r\n\
         accept-encoding: identity\r\naccept: */*\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{ASKED}",
        ASKED.len()
    );
    let bytes = endpoint.bytes();
    assert_eq!(show(&bytes), show(expected.as_bytes()));
    let records = format!("{:?}", stage.vault.audit());
    assert!(!contains(records.as_bytes(), "CANARY"), "{records}");
    stage.provider.expect_nothing("a token");
}

#[tokio::test]
async fn a_refusal_comes_back_as_it_is_and_a_redirect_does_not() {
    for (says_status, gets) in [(400, 400), (401, 401), (429, 429), (500, 500), (302, 502)] {
        let (stage, _endpoint) = stage(says(says_status, "{\"error\":\"x\"}"), 30).await;
        let answer = ask(&stage, "", ASKED).await;
        assert_eq!(answer.status, gets, "{says_status}");
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
        if says_status == gets {
            assert_eq!(answer.text(), "{\"error\":\"x\"}");
            assert_eq!(answer.header("retry-after"), Some("9"));
        } else {
            assert_eq!(answer.json()["details"]["_tag"], "BadGateway");
        }
    }
}

#[tokio::test]
async fn browsers_are_told_what_pages_may_send() {
    let (stage, endpoint) = stage(says(200, GIVEN), 30).await;
    let raw = |method: &str| {
        format!(
            "{method} /api/claude/v1/oauth/token HTTP/1.1\r\nHost: v\r\n\
             Origin: https://app.example.com\r\nAccess-Control-Request-Method: POST\r\n\r\n"
        )
    };
    let answer = stage.ask(raw("OPTIONS")).await;
    assert_eq!(answer.status, 204);
    for (name, value) in [
        ("access-control-allow-origin", "*"),
        ("access-control-allow-methods", "POST, OPTIONS"),
        ("access-control-allow-headers", "content-type, accept"),
        ("access-control-max-age", "600"),
    ] {
        assert_eq!(answer.header(name), Some(value), "{name}");
    }
    assert_eq!(answer.header("access-control-allow-credentials"), None);
    let answer = stage.ask(raw("GET")).await;
    assert_eq!(answer.status, 405);
    assert_eq!(answer.header("allow"), Some("POST,OPTIONS"));
    endpoint.expect_nothing("a preflight");
}

#[tokio::test]
async fn the_relay_has_bounds() {
    let (stage, endpoint) = stage(says(200, GIVEN), 2).await;
    let long = "x".repeat(64 * 1024 + 1);
    assert_eq!(ask(&stage, "", &long).await.status, 413);
    endpoint.expect_nothing("too long a body");
    // Thirty seconds a token: of so many at once some must wait.
    let mut held = 0;
    for _ in 0..20 {
        let answer = ask(&stage, "", ASKED).await;
        if answer.status == 429 {
            assert!(answer.header("retry-after").is_some());
            assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
            held += 1;
        }
    }
    assert!(held > 0, "none was held");
}

#[tokio::test]
async fn without_a_gateway_there_is_no_relay() {
    let endpoint = Origin::echo_ok().await;
    let stage = Stage::around(endpoint, |config| {
        config.gateway.api_key = None;
        config.gateway.jwt_secret = None;
    });
    let answer = ask(&stage.await, "", ASKED).await;
    assert_eq!(answer.status, 404);
}
