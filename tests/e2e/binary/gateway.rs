//! The gateway of the program itself: set up by variables, its JWTs and accounts by verbs, and its
//! books over a kill.

use std::sync::Arc;

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::store::handover::{ended, handed_over};
use super::{Home, Server, dial, exchange};
use crate::support::{Answer, Origin, contains, within};

const ADMIN: (&str, &str) = ("OSHU_VAULT_ADMIN_KEY", "the-operator-s-own-key-0123456789");
const MODEL_KEY: (&str, &str) = (
    "OSHU_VAULT__GATEWAY__API_KEY",
    "sk-ant-api03-CANARY-operator-0123456789",
);
const JWT: (&str, &str) = (
    "OSHU_VAULT__GATEWAY__JWT_SECRET",
    "jwt-secret-0123456789abcdef0123456789",
);
const BODY: &str = r#"{"model":"m","max_tokens":8}"#;
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 65\r\n\r\n\
    {\"model\":\"claude-x\",\"usage\":{\"input_tokens\":3,\"output_tokens\":4}}";

/// Starts a server with a gateway in front of a provider in the clear, on loopback.
async fn serve(home: &Home, provider: &Origin, more: &[(&str, &str)]) -> Server {
    serve_with(home, provider, &[], more).await
}

/// Starts one that takes over from the one that runs.
async fn successor(home: &Home, provider: &Origin, more: &[(&str, &str)]) -> Server {
    serve_with(home, provider, &["--take-over"], more).await
}

const LINE: [&str; 5] = [
    "serve",
    "--dev",
    "--listen=127.0.0.1:0",
    "--tls-listen=127.0.0.1:0",
    "--admin-listen=127.0.0.1:0",
];

async fn serve_with(
    home: &Home,
    provider: &Origin,
    flags: &[&str],
    more: &[(&str, &str)],
) -> Server {
    let line = [&LINE, flags].concat();
    let url = format!("http://{}", provider.addr());
    let variables = [
        ADMIN,
        MODEL_KEY,
        JWT,
        ("OSHU_VAULT__GATEWAY__UPSTREAM", url.as_str()),
        ("OSHU_VAULT_LOG", "trace"),
    ];
    home.serve(&line, &[&variables, more].concat()).await
}

/// Mints a JWT by the verb.
async fn mint(home: &Home) -> String {
    let line = ["token", "mint", "--user-id", "583231", "--sandbox", "box-1"];
    let ended = home.run_with(&line, &[JWT], "").await.expect(0);
    let token = ended
        .stdout
        .strip_suffix('\n')
        .expect("one line")
        .to_owned();
    assert_eq!(token.split('.').count(), 3, "{token}");
    token
}

/// Asks about accounts by the verb.
async fn accounts(home: &Home, server: &Server, words: &[&str]) -> Value {
    let url = server.url();
    let line = [&["accounts"], words, &["--server", &url]].concat();
    home.run_with(&line, &[ADMIN], "").await.expect(0).json()
}

fn raw(jwt: &str) -> String {
    format!(
        "POST /api/claude-gateway/v1/messages HTTP/1.1\r\nHost: g\r\nx-api-key: {jwt}\r\n\
         Content-Length: {}\r\n\r\n{BODY}",
        BODY.len()
    )
}

async fn message(server: &Server, jwt: &str) -> Answer {
    exchange(server.plain(), raw(jwt)).await
}

#[tokio::test]
async fn verbs_mint_and_pay_and_a_restart_keeps_it() {
    let (home, provider) = (Home::new(), Origin::builder().plain().answer(OK).await);
    let server = serve(&home, &provider, &[]).await;
    let jwt = mint(&home).await;
    assert_eq!(message(&server, &jwt).await.status, 402);
    let set = accounts(&home, &server, &["set", "583231", "--paid", "true"]).await;
    assert_eq!(
        (&set["account_id"], &set["paid"]),
        (&json!("583231"), &json!(true))
    );
    let answer = message(&server, &jwt).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let (code, _, log) = server.end(Signal::TERM).await;
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains(&jwt) && !log.contains(MODEL_KEY.1), "{log}");

    let server = serve(&home, &provider, &[]).await;
    let list = accounts(&home, &server, &["list"]).await;
    assert_eq!(list["accounts"][0]["account_id"], "583231");
    let usage = accounts(&home, &server, &["usage", "583231"]).await;
    assert_eq!(usage["counted_tokens"], 7, "{usage}");
    let shown = accounts(&home, &server, &["show", "583231"]).await;
    assert_eq!(shown["granted"], true);
    assert_eq!(message(&server, &jwt).await.status, 200);
    assert!(contains(&provider.bytes(), MODEL_KEY.1));
    assert!(!contains(&provider.bytes(), &jwt));
    server.stop().await;
}

/// Asks about accounts by the verb, of the store.
async fn stored(home: &Home, words: &[&str]) -> Value {
    let line = [&["accounts"], words].concat();
    home.run(&line).await.expect(0).json()
}

#[tokio::test]
async fn accounts_are_set_without_a_server_and_by_the_one_that_runs() {
    let (home, provider) = (Home::new(), Origin::builder().plain().answer(OK).await);
    let pay = ["set", "583231", "--paid", "true"];
    let missing = home.run(&[&["accounts"][..], &pay].concat()).await;
    missing.complains(1, &["sessions.redb is not there", "--server"]);
    serve(&home, &provider, &[]).await.stop().await;

    let set = stored(&home, &pay).await;
    let paid = json!({ "account_id": "583231", "paid": true, "granted": true, "customers": 0 });
    assert_eq!(set, paid);
    assert_eq!(stored(&home, &["show", "583231"]).await, paid);
    assert_eq!(
        stored(&home, &["list"]).await,
        json!({ "accounts": [paid] })
    );
    let server = serve(&home, &provider, &[]).await;
    let jwt = mint(&home).await;
    let answer = message(&server, &jwt).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    // The server that runs does it, at once.
    for (word, status) in [("false", 402), ("true", 200)] {
        let set = stored(&home, &["set", "583231", "--paid", word]).await;
        assert_eq!(set["paid"], json!(status == 200));
        assert_eq!(message(&server, &jwt).await.status, status, "{word}");
    }
    let asked = accounts(&home, &server, &["list"]).await;
    assert_eq!(stored(&home, &["list"]).await, asked);
    stored(&home, &["set", "583231", "--paid", "false"]).await;
    server.end(Signal::KILL).await;

    // What was told was durable, and what was used is found.
    assert_eq!(stored(&home, &["show", "583231"]).await["paid"], false);
    let usage = stored(&home, &["usage", "583231"]).await;
    assert_eq!(usage["account_id"], "583231");
    assert!(usage["usage"].is_array() && usage.get("next").is_none());
    let before = stored(&home, &["usage", "583231", "--month", "2020-01"]).await;
    assert_eq!(
        (&before["counted_tokens"], &before["month"]),
        (&json!(0), &json!("2020-01"))
    );
    for (store, code) in [("memory", 64), ("redis://127.0.0.1:1/0", 64)] {
        let store = format!("--store={store}");
        let ended = home.run(&["accounts", "list", &store]).await;
        ended.complains(code, &["accounts of this store", "--server"]);
    }
}

#[tokio::test]
async fn accounts_are_not_touched_without_the_right_sealing_key() {
    let (home, provider) = (Home::new(), Origin::builder().plain().answer(OK).await);
    serve(&home, &provider, &[]).await.stop().await;
    stored(&home, &["set", "583231", "--paid", "false"]).await;
    let path = home.state("seal.key");
    let right = std::fs::read(&path).expect("the key");
    std::fs::write(&path, "11".repeat(32)).expect("another key");
    for words in [
        &["list"][..],
        &["show", "583231"],
        &["set", "583231", "--paid", "true"],
        &["usage", "583231"],
    ] {
        let ended = home.run(&[&["accounts"], words].concat()).await;
        ended.complains(1, &["the sealing keys are not those of the store"]);
    }
    std::fs::write(&path, right).expect("the key");
    assert_eq!(stored(&home, &["show", "583231"]).await["paid"], false);
}

#[tokio::test]
async fn paths_that_are_added_are_told_at_the_start() {
    let (home, provider) = (Home::new(), Origin::builder().plain().answer(OK).await);
    let more = [("OSHU_VAULT__GATEWAY__DANGER_EXTRA_PATHS", "/v1/files")];
    let server = serve(&home, &provider, &more).await;
    let jwt = mint(&home).await;
    accounts(&home, &server, &["set", "583231", "--paid", "true"]).await;
    let raw =
        format!("GET /api/claude-gateway/v1/files HTTP/1.1\r\nHost: g\r\nx-api-key: {jwt}\r\n\r\n");
    assert_eq!(exchange(server.plain(), raw).await.status, 200);
    let (code, _, log) = server.end(Signal::TERM).await;
    assert_eq!(code, Some(0), "{log}");
    let told = log.lines().find(|line| line.contains("danger_extra_paths"));
    let told: Value = serde_json::from_str(told.expect("a line")).expect("JSON");
    assert_eq!(
        (&told["level"], &told["path"]),
        (&json!("WARN"), &json!("/v1/files")),
        "{told}"
    );
}

#[tokio::test]
async fn the_log_tells_once_a_minute_that_our_credential_is_refused() {
    const NO: &str = "HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n";
    let (home, provider) = (Home::new(), Origin::builder().plain().answer(NO).await);
    let server = serve(&home, &provider, &[]).await;
    let jwt = mint(&home).await;
    accounts(&home, &server, &["set", "583231", "--paid", "true"]).await;
    for _ in 0..5 {
        assert_eq!(message(&server, &jwt).await.status, 502);
    }
    let (code, _, log) = server.end(Signal::TERM).await;
    assert_eq!(code, Some(0), "{log}");
    let is_told = |line: &&str| line.contains("ERROR") && line.contains("provider_refused");
    let told = log.lines().filter(is_told);
    // A minute may end between two of them, and not between five.
    assert!((1..=2).contains(&told.count()), "{log}");
}

#[tokio::test]
async fn a_minted_jwt_ends_when_it_is_told_to_and_needs_the_secret() {
    let home = Home::new();
    let line = ["token", "mint", "--user-id", "1", "--sandbox", "b"];
    let ended = home.run(&line).await;
    ended.complains(64, &["gateway.jwt_secret"]);
    let file = home.write("secret", "jwt-secret-0123456789abcdef0123456789\n");
    let config = home.write("c.toml", format!("gateway.jwt_secret_file = '{file}'"));
    let line = [&line[..], &["--ttl", "60", "--config", &config]].concat();
    let token = home.run(&line).await.expect(0).stdout;
    let claims = token.split('.').nth(1).expect("claims");
    let claims = data_encoding::BASE64URL_NOPAD.decode(claims.as_bytes());
    let claims: Value = serde_json::from_slice(&claims.expect("base64url")).expect("JSON");
    let life = claims["exp"].as_u64().zip(claims["iat"].as_u64());
    assert_eq!(life.map(|(ends, begins)| ends - begins), Some(60));
    assert_eq!(claims["iss"], "yolocode-api");
}

#[tokio::test]
async fn case_84_a_kill_between_reserving_and_settling_counts_the_whole() {
    const MOST: u64 = BODY.len() as u64 + 8;
    let (home, go) = (Home::new(), Arc::new(Semaphore::new(0)));
    let held = Arc::clone(&go);
    let provider = Origin::builder().plain().script(move |_request, conn| {
        let go = Arc::clone(&held);
        async move {
            let _leave = go.acquire().await;
            conn.send(OK).await;
        }
    });
    let provider = provider.await;
    let budget = MOST.to_string();
    let more = [("OSHU_VAULT__GATEWAY__MONTHLY_BUDGET", budget.as_str())];
    let server = serve(&home, &provider, &more).await;
    let jwt = mint(&home).await;
    accounts(&home, &server, &["set", "583231", "--paid", "true"]).await;
    let mut conn = dial(server.plain()).await;
    conn.send(raw(&jwt)).await;
    provider
        .wait("the message", |all| contains(&all.concat(), BODY))
        .await;
    server.end(Signal::KILL).await;
    go.add_permits(1000);

    let server = serve(&home, &provider, &more).await;
    let usage = accounts(&home, &server, &["usage", "583231"]).await;
    assert_eq!(usage["counted_tokens"], MOST, "{usage}");
    assert_eq!(usage["usage"][0]["unsettled_tokens"], MOST);
    assert_eq!(usage["usage"][0]["reserved_tokens"], 0);
    let answer = message(&server, &jwt).await;
    assert_eq!(answer.status, 429, "{}", answer.text());
    assert_eq!(answer.header("x-should-retry"), Some("false"));
    server.stop().await;
}

/// Returns how many messages a provider has heard of.
fn messages(provider: &Origin) -> usize {
    let text = String::from_utf8(provider.bytes()).expect("text");
    text.matches("POST /v1/messages").count()
}

const BUDGET: &str = "OSHU_VAULT__GATEWAY__MONTHLY_BUDGET";

#[tokio::test]
async fn a_call_that_goes_on_over_a_hand_over_is_settled_in_the_next_books() {
    const MOST: u64 = BODY.len() as u64 + 8;
    for budget in ["1000", "none"] {
        let (home, go) = (Home::new(), Arc::new(Semaphore::new(0)));
        let held = Arc::clone(&go);
        let provider = Origin::builder().plain().script(move |_request, conn| {
            let go = Arc::clone(&held);
            async move {
                let _leave = go.acquire().await;
                conn.send(OK).await;
            }
        });
        let provider = provider.await;
        let more = [(BUDGET, budget)];
        let mut before = serve(&home, &provider, &more).await;
        let jwt = mint(&home).await;
        stored(&home, &["set", "583231", "--paid", "true"]).await;
        let mut conn = dial(before.plain()).await;
        conn.send(raw(&jwt)).await;
        provider
            .wait("the message", |all| contains(&all.concat(), BODY))
            .await;
        let after = successor(&home, &provider, &more).await;
        handed_over(&mut before).await;
        let reserved = if budget == "none" { 0 } else { MOST };
        let usage = stored(&home, &["usage", "583231"]).await;
        assert_eq!(usage["counted_tokens"], reserved, "{usage}");
        go.add_permits(1000);
        let answer = conn.answer().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        conn.expect_end().await;
        ended(before).await;
        within("what was used", async {
            let used = json!([{
                "sandbox": "box-1", "model": "claude-x", "input_tokens": 3, "output_tokens": 4,
                "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0,
                "unsettled_tokens": 0, "reserved_tokens": 0,
            }]);
            while stored(&home, &["usage", "583231"]).await["usage"] != used {}
        })
        .await;
        after.end(Signal::KILL).await;
    }
}

#[tokio::test]
async fn a_call_over_a_connection_kept_from_before_a_hand_over_is_sent_to_the_next() {
    for budget in ["1000000", "none"] {
        let (home, provider) = (Home::new(), Origin::builder().plain().answer(OK).await);
        let more = [(BUDGET, budget)];
        let mut before = serve(&home, &provider, &more).await;
        let jwt = mint(&home).await;
        stored(&home, &["set", "583231", "--paid", "true"]).await;
        let mut kept = [
            dial(before.plain()).await,
            dial(before.plain()).await,
            dial(before.plain()).await,
        ];
        for conn in &mut kept {
            conn.send(raw(&jwt)).await;
            assert_eq!(conn.answer().await.status, 200);
        }
        // Who fails to take over changes nothing.
        let line = [&LINE[..], &["--take-over", "--upstream-ca=/nowhere"]].concat();
        let failed = home.run_with(&line, &[ADMIN, MODEL_KEY, JWT], "").await;
        failed.complains(1, &["upstream.ca_files"]);
        kept[0].send(raw(&jwt)).await;
        assert_eq!(kept[0].answer().await.status, 200);
        let after = successor(&home, &provider, &more).await;
        handed_over(&mut before).await;
        let set = stored(&home, &["set", "583231", "--paid", "false"]).await;
        assert_eq!(set["paid"], false);
        // The process before did not hear of it, and does not let it spend.
        let heard = messages(&provider);
        for conn in &mut kept[..2] {
            conn.send(raw(&jwt)).await;
            let answer = conn.answer().await;
            assert_eq!(answer.status, 503, "{}", answer.text());
            assert_eq!(answer.json()["details"]["code"], "handed_over");
            for (name, value) in [
                ("x-should-retry", "true"),
                ("retry-after", "1"),
                ("connection", "close"),
            ] {
                assert_eq!(answer.header(name), Some(value), "{name}");
            }
            conn.expect_end().await;
        }
        // Nor does it change what the next one has.
        let body = r#"{"paid":true}"#;
        let put = format!(
            "PUT /v1/accounts/583231 HTTP/1.1\r\nHost: v\r\nx-api-key: {}\r\nContent-Length: \
             {}\r\n\r\n{body}",
            ADMIN.1,
            body.len()
        );
        kept[2].send(put).await;
        assert_eq!(kept[2].answer().await.status, 503);
        let refused = message(&after, &jwt).await;
        assert_eq!(refused.status, 402, "{}", refused.text());
        assert_eq!(messages(&provider), heard);
        drop(kept);
        ended(before).await;
        stored(&home, &["set", "583231", "--paid", "true"]).await;
        assert_eq!(message(&after, &jwt).await.status, 200);
        within("what five calls used", async {
            while stored(&home, &["usage", "583231"]).await["counted_tokens"] != 5 * 7 {}
        })
        .await;
        after.stop().await;
    }
}

#[tokio::test]
async fn accounts_and_budgets_of_each_node_are_refused_by_name() {
    let home = Home::new();
    home.run(&["ca", "generate"]).await.expect(0);
    home.run(&["seal", "generate"]).await.expect(0);
    let line = [&LINE[..], &["--store=redis://127.0.0.1:1/0"]].concat();
    let budget = (BUDGET, "1000");
    let refused = home.run_with(&line, &[MODEL_KEY, JWT, budget], "").await;
    refused.complains(
        64,
        &[
            "payment.provider: expects workos where store.url is of several nodes",
            "gateway.monthly_budget: expects none where store.url is of several nodes",
            "gateway.danger_books_per_node = true",
        ],
    );
    // Who says so may: then it is the store that does not answer.
    let allowed = ("OSHU_VAULT__GATEWAY__DANGER_BOOKS_PER_NODE", "true");
    let variables = [MODEL_KEY, JWT, budget, allowed];
    let tried = home.run_with(&line, &variables, "").await;
    tried.complains(1, &["store.url: the store cannot be used"]);
}

#[tokio::test]
async fn tokens_that_are_relayed_are_in_no_log() {
    const ASKED: &str = r#"{"grant_type":"refresh_token","refresh_token":"CANARY-asked"}"#;
    const GIVEN: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\
        Content-Length: 31\r\n\r\n{\"access_token\":\"CANARY-given\"}";
    let (home, provider) = (Home::new(), Origin::echo_ok().await);
    let endpoint = Origin::builder().plain().answer(GIVEN).await;
    let url = format!("http://{}/v1/oauth/token", endpoint.addr());
    let more = [("OSHU_VAULT__GATEWAY__OAUTH_TOKEN_URL", url.as_str())];
    let server = serve(&home, &provider, &more).await;
    let raw = format!(
        "POST /api/claude/v1/oauth/token HTTP/1.1\r\nHost: g\r\nContent-Length: {}\r\n\r\n{ASKED}",
        ASKED.len()
    );
    let answer = exchange(server.plain(), raw).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(contains(&answer.body, "CANARY-given"));
    assert!(contains(&endpoint.bytes(), "CANARY-asked"));
    // The log is as talkative as can be.
    let refused = exchange(
        server.plain(),
        "GET /api/claude/v1/oauth/token HTTP/1.1\r\nHost: g\r\n\r\n",
    );
    assert_eq!(refused.await.status, 405);
    let (code, events, log) = server.end(Signal::TERM).await;
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("api call refused"), "{log}");
    let printed = format!("{events:?}{log}");
    assert!(!contains(printed.as_bytes(), "CANARY"), "{printed}");
}

#[tokio::test]
async fn a_provider_that_refuses_the_operator_s_key_is_told_of_in_the_log() {
    let refusal = "HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n";
    let (home, provider) = (Home::new(), Origin::builder().plain().answer(refusal).await);
    let server = serve(&home, &provider, &[]).await;
    let jwt = mint(&home).await;
    accounts(&home, &server, &["set", "583231", "--paid", "true"]).await;
    assert_eq!(message(&server, &jwt).await.status, 502);
    let (code, _, log) = server.end(Signal::TERM).await;
    assert_eq!(code, Some(0), "{log}");
    let lines = log.lines().map(serde_json::from_str::<Value>);
    let lines: Vec<_> = lines.map(|line| line.expect("JSON")).collect();
    let told = lines.iter().find(|line| line["code"] == "provider_refused");
    let told = told.unwrap_or_else(|| panic!("{log}"));
    assert_eq!(
        (&told["level"], &told["provider_status"]),
        (&json!("ERROR"), &json!(401))
    );
}
