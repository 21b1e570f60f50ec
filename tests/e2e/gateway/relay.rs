//! The relay of OAuth tokens: the body as it came, two fields each way, any page, and no trace.

use std::sync::Arc;

use oshu_vault::config::OnFull;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::support::{Answer, Anthropic, Origin, contains, show, within};

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
    assert_eq!(ask(&stage, "", ASKED).await.status, 200);
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
async fn what_cannot_stand_in_a_head_is_the_caller_s_mistake() {
    let (stage, endpoint) = stage(says(200, GIVEN), 100).await;
    for lines in [
        "Content-Type: a/b\tc\r\n",
        "Content-Type: a/b; x=\u{e4}\r\n",
        "Content-Type: a/b\r\nContent-Type: a/b\r\n",
        "Accept: a/b\tc\r\n",
        "Accept: a/b\r\nAccept: a/b\r\n",
    ] {
        let answer = ask(&stage, lines, ASKED).await;
        assert_eq!(answer.status, 400, "{lines}");
        assert_eq!(answer.json()["details"]["_tag"], "BadRequest");
    }
    endpoint.expect_nothing("what cannot be sent");
    assert_eq!(ask(&stage, "", ASKED).await.status, 200);
}

#[tokio::test]
async fn so_many_calls_are_under_way_at_once() {
    let (go, held) = (Arc::new(Semaphore::new(0)), 64);
    let gate = Arc::clone(&go);
    let endpoint = Origin::script(move |_request, conn| {
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await.expect("it is open").forget();
            conn.send(says(200, GIVEN)).await;
        }
    });
    let endpoint = endpoint.await;
    let (provider, address) = (Anthropic::start().await.into_origin(), endpoint.addr());
    let stage = Stage::built(provider, |vault| {
        vault.resolve(HOST, address).config(|config| {
            config.gateway.oauth_requests_per_minute = 10_000;
        })
    });
    let stage = stage.await;
    let raw = format!(
        "POST /api/claude/v1/oauth/token HTTP/1.1\r\nHost: v\r\nContent-Length: {}\r\n\r\n{ASKED}",
        ASKED.len()
    );
    let mut callers = Vec::new();
    for _ in 0..held {
        let mut conn = stage.connect().await;
        conn.send(&raw).await;
        callers.push(conn);
    }
    let came = |all: &[Vec<u8>]| {
        let came = all.iter().filter(|bytes| contains(bytes, ASKED));
        came.count() == held
    };
    endpoint.wait("all of them", came).await;
    let answer = stage.ask(&raw).await;
    assert_eq!(answer.status, 429, "{}", answer.text());
    assert_eq!(answer.header("retry-after"), Some("2"));
    go.add_permits(1000);
    for mut conn in callers {
        assert_eq!(conn.answer().await.status, 200);
    }
    assert_eq!(stage.ask(&raw).await.status, 200);
}

#[tokio::test]
async fn each_call_has_a_record_without_what_was_said() {
    let (stage, _endpoint) = stage(says(400, "{\"error\":\"CANARY\"}"), 3).await;
    assert_eq!(ask(&stage, "", ASKED).await.status, 400);
    assert_eq!(ask(&stage, "Accept: a\tb\r\n", ASKED).await.status, 400);
    assert_eq!(
        ask(&stage, "", &"x".repeat(64 * 1024 + 1)).await.status,
        413
    );
    assert_eq!(ask(&stage, "", ASKED).await.status, 429);
    let raw = |method: &str| {
        format!("{method} /api/claude/v1/oauth/token?x=CANARY HTTP/1.1\r\nHost: v\r\n\r\n")
    };
    assert_eq!(stage.ask(raw("OPTIONS")).await.status, 204);
    assert_eq!(stage.ask(raw("GET")).await.status, 405);
    let expected = [
        "GET denied method_not_allowed 405",
        "OPTIONS allowed ok 204",
        "POST allowed ok 400",
        "POST denied bad_request 400",
        "POST denied body_too_large 413",
        "POST denied rate_limit 429",
    ];
    let log = stage.vault.audit_log();
    let lines = log.wait("a record of each", |lines| {
        recorded(lines).len() == expected.len()
    });
    assert_eq!(recorded(&lines.await), expected);
    assert!(!contains(&log.raw(), "CANARY"));
}

/// Returns what the records say of the relay: method, decision, reason and status.
fn recorded(lines: &[Value]) -> Vec<String> {
    let ours = lines
        .iter()
        .filter(|line| line["path"] == "/api/claude/v1/oauth/token");
    let told = ours.map(|line| {
        assert_eq!(
            (&line["event"], &line["host"]),
            (&json!("exchange"), &json!(HOST)),
            "{line}"
        );
        let word = |name: &str| line[name].as_str().unwrap_or("-").to_owned();
        let (method, decision, reason) = (word("method"), word("decision"), word("reason"));
        format!("{method} {decision} {reason} {}", line["status"])
    });
    let mut told: Vec<_> = told.collect();
    told.sort();
    told
}

#[tokio::test]
async fn nothing_is_passed_on_while_nothing_can_be_recorded() {
    let endpoint = Origin::answer(says(200, GIVEN)).await;
    let (provider, address) = (Anthropic::start().await.into_origin(), endpoint.addr());
    let stage = Stage::built(provider, |vault| {
        vault
            .resolve(HOST, address)
            .config(|config| config.audit.on_full = OnFull::Refuse)
    });
    let stage = stage.await;
    let log = stage.vault.audit_log();
    log.fill();
    let answer = ask(&stage, "", ASKED).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    endpoint.expect_nothing("no room for a record");
    log.hold(false);
    let taken = async {
        while ask(&stage, "", ASKED).await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    within("room again", taken).await;
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
