//! What arrives at the model provider: the body as it was, the operator's credential, and nothing
//! of what the caller showed.

use oshu_vault::gateway::ExtraPath;

use crate::support::{ANSWER, Anthropic, Origin, contains, show};

use super::{ACCOUNT, BODY, MODEL_KEY, Stage, jwt, message, post};

#[tokio::test]
async fn a_message_arrives_byte_for_byte_under_the_operator_s_key() {
    let stage = Stage::new().await;
    stage.pay(ACCOUNT, true).await;
    let jwt = jwt(ACCOUNT);
    let lines = format!(
        "Authorization: Bearer {jwt}\r\nanthropic-version: 2023-06-01\r\n\
         anthropic-beta: claude-code-20250219,x\r\nUser-Agent: claude-cli/2.1.197\r\n\
         X-Stainless-Lang: js\r\nAccept: application/json\r\n"
    );
    let body = "{\"model\":\"stand-in\",\"max_tokens\":8, \"messages\":[{\"role\":\"user\",\
                \"content\":\"hi\"},{\"role\":\"system\",\"content\":\"\u{e4}\"}],\"odd\":[1e3]}\n";
    let answer = stage
        .ask(post("/v1/messages?beta=true", &lines, body))
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["content"][0]["text"], ANSWER);
    let expected = format!(
        "POST /v1/messages?beta=true HTTP/1.1\r\nhost: {}\r\naccept-encoding: identity\r\n\
         anthropic-version: 2023-06-01\r\nanthropic-beta: claude-code-20250219,x\r\n\
         user-agent: claude-cli/2.1.197\r\nx-stainless-lang: js\r\naccept: application/json\r\n\
         x-api-key: {MODEL_KEY}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        Anthropic::HOST,
        body.len()
    );
    let bytes = stage.provider.bytes();
    assert_eq!(show(&bytes), show(expected.as_bytes()));
}

#[tokio::test]
async fn peer_91_nothing_the_caller_showed_travels_on() {
    let stage = Stage::new().await;
    stage.pay(ACCOUNT, true).await;
    let jwt = jwt(ACCOUNT);
    let lines = format!(
        "x-api-key: {jwt}\r\nAuthorization: Bearer {jwt}\r\nx-goog-api-key: CALLER\r\n\
         api-key: CALLER\r\nCookie: a=CALLER\r\nReferer: https://x/?token={jwt}\r\n\
         Forwarded: for=CALLER\r\nX-Forwarded-Host: CALLER\r\nX-Base-Url: https://CALLER\r\n\
         api_base: https://CALLER\r\nbase_url: https://CALLER\r\nProxy-Authorization: CALLER\r\n\
         X-Stainless-Runtime: {jwt}\r\nanthropic-version: 2023-06-01\r\nidempotency-key: CALLER\r\n\
         Connection: x-app, X-Stainless-Os\r\nx-app: CALLER\r\nx-stainless-os: CALLER\r\n"
    );
    let path = format!("/v1/messages?token={jwt}&beta=true&key=CALLER&x={jwt}&API_KEY=CALLER");
    let answer = stage.ask(post(&path, &lines, BODY)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let expected = format!(
        "POST /v1/messages?beta=true HTTP/1.1\r\nhost: {}\r\nuser-agent: oshu-vault\r\n\
         accept-encoding: identity\r\nanthropic-version: 2023-06-01\r\nx-api-key: {MODEL_KEY}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{BODY}",
        Anthropic::HOST,
        BODY.len()
    );
    let bytes = stage.provider.bytes();
    assert_eq!(show(&bytes), show(expected.as_bytes()));
    // Nor into what we say of it.
    let records = stage.vault.audit_log().wait("the record", |lines| {
        lines
            .iter()
            .any(|line| line["path"] == "/api/claude-gateway/v1/messages")
    });
    let records = format!("{:?}", records.await);
    assert!(!contains(records.as_bytes(), "eyJ"), "{records}");
    assert!(!contains(records.as_bytes(), MODEL_KEY), "{records}");
}

#[tokio::test]
async fn case_85_a_caller_does_not_choose_the_upstream() {
    let stage = Stage::new().await;
    stage.pay(ACCOUNT, true).await;
    let evil = Origin::echo_ok().await;
    let (jwt, at) = (jwt(ACCOUNT), evil.addr());
    let body = format!(
        "{{\"model\":\"../../evil\",\"api_base\":\"https://{at}\",\"base_url\":\"https://{at}\",\
         \"max_tokens\":1}}"
    );
    for host in ["Host: gateway", "Host: evil.example.net"] {
        let raw = format!(
            "POST /api/claude-gateway/v1/messages?base_url=https://{at} HTTP/1.1\r\n{host}\r\n\
             x-api-key: {jwt}\r\nX-Forwarded-Host: {at}\r\nX-Forwarded-Proto: http\r\n\
             X-Original-Url: https://{at}/\r\nx-base-url: https://{at}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = stage.ask(raw).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    evil.expect_nothing("another upstream");
    let expected = format!(
        "POST /v1/messages?base_url=https://{at} HTTP/1.1\r\nhost: {}\r\nuser-agent: oshu-vault\r\n\
         accept-encoding: identity\r\nx-api-key: {MODEL_KEY}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        Anthropic::HOST,
        body.len()
    );
    let bytes = stage.provider.bytes();
    assert_eq!(show(&bytes), show(expected.repeat(2).as_bytes()));
}

#[tokio::test]
async fn every_forwarded_path_and_no_other() {
    let provider = Origin::answer(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
    );
    let stage = Stage::around(provider.await, |_| ()).await;
    stage.pay(ACCOUNT, true).await;
    let line = format!("x-api-key: {}\r\n", jwt(ACCOUNT));
    let get =
        |path: &str| format!("GET /api/claude-gateway{path} HTTP/1.1\r\nHost: g\r\n{line}\r\n");
    for (raw, start) in [
        (
            post("/v1/messages/count_tokens?beta=true", &line, BODY),
            "POST /v1/messages/count_tokens?beta=true HTTP/1.1\r\n",
        ),
        (
            get("/v1/models?limit=5"),
            "GET /v1/models?limit=5 HTTP/1.1\r\n",
        ),
        (
            get("/v1/models/claude-x-1"),
            "GET /v1/models/claude-x-1 HTTP/1.1\r\n",
        ),
        (
            post("/v1/%6dessages", &line, BODY),
            "POST /v1/messages HTTP/1.1\r\n",
        ),
    ] {
        stage.provider.forget();
        let answer = stage.ask(raw).await;
        assert_eq!((answer.status, answer.text()), (200, "{}"), "{start}");
        let bytes = stage.provider.bytes();
        assert!(bytes.starts_with(start.as_bytes()), "{}", show(&bytes));
    }
    stage.provider.forget();
    for (raw, status) in [
        (post("/v1/messages/batches", &line, BODY), 404),
        (post("/v1/files", &line, BODY), 404),
        (post("/v1/complete", &line, BODY), 404),
        (get("/v1/organizations/me"), 404),
        (get("/v1/messages"), 405),
        (post("/v1/models", &line, BODY), 405),
        (post("/v1//messages", &line, BODY), 400),
        (post("/v1/../v1/messages", &line, BODY), 400),
        (post("/v1/%2e%2e/v1/messages", &line, BODY), 400),
        (post("/v1%2fmessages", &line, BODY), 400),
        (post("/v1/messages/", &line, BODY), 400),
        (post("/%61/v1/messages", &line, BODY), 404),
    ] {
        let answer = stage.ask(&raw).await;
        assert_eq!(answer.status, status, "{raw}");
        assert_eq!(answer.json()["type"], "error", "{raw}");
    }
    stage.provider.expect_nothing("other paths");
    assert_eq!(stage.ask(message(&line)).await.status, 200);
}

/// Sets the stage with two paths that the operator added.
async fn with_extra_paths(monthly: Option<u64>, free: Option<u64>) -> Stage {
    let provider = Origin::answer(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
    );
    let stage = Stage::around(provider.await, |config| {
        let paths = ["/v1/messages/batches", "/v1/files"].map(ExtraPath::parse);
        config.gateway.extra_paths = paths.into_iter().flatten().collect();
        config.gateway.monthly_budget = monthly;
        config.gateway.free_allowance = free;
    });
    stage.await
}

#[tokio::test]
async fn paths_that_the_operator_adds_are_forwarded_as_the_others_and_no_more() {
    let stage = with_extra_paths(None, None).await;
    stage.pay(ACCOUNT, true).await;
    let token = jwt(ACCOUNT);
    let key = format!("x-api-key: {token}\r\n");
    let ask = |method: &str, path: &str, lines: &str, body: &str| {
        format!(
            "{method} /api/claude-gateway{path} HTTP/1.1\r\nHost: g\r\n{key}Cookie: a=CALLER\r\n\
             Accept: */*\r\n{lines}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let head = |line: &str| {
        format!(
            "{line} HTTP/1.1\r\nhost: {}\r\nuser-agent: oshu-vault\r\naccept-encoding: \
             identity\r\naccept: */*\r\nx-api-key: {MODEL_KEY}\r\n",
            Anthropic::HOST
        )
    };
    let posted = |line: &str, kind: &str, body: &str| {
        let length = body.len();
        let head = head(line);
        format!("{head}content-type: {kind}\r\ncontent-length: {length}\r\n\r\n{body}")
    };
    // What is not counted is not read either.
    let batch = "{\"requests\":[],\"max_tokens\":1,\"max_tokens\":2}";
    let (kind, form) = (
        "multipart/form-data; boundary=b",
        "--b\r\n\r\nx\r\n--b--\r\n",
    );
    for (raw, expected) in [
        (
            ask("POST", "/v1/messages/batches?beta=true", "", batch),
            posted(
                "POST /v1/messages/batches?beta=true",
                "application/json",
                batch,
            ),
        ),
        (
            ask(
                "POST",
                "/v1/files",
                &format!("Content-Type: {kind}\r\n"),
                form,
            ),
            posted("POST /v1/files", kind, form),
        ),
        (
            ask("GET", "/v1/files?limit=1&key=CALLER", "", ""),
            format!("{}\r\n", head("GET /v1/files?limit=1")),
        ),
    ] {
        stage.provider.forget();
        let answer = stage.ask(&raw).await;
        assert_eq!((answer.status, answer.text()), (200, "{}"), "{raw}");
        assert_eq!(show(&stage.provider.bytes()), show(expected.as_bytes()));
    }
    stage.provider.forget();
    for (raw, status) in [
        (ask("DELETE", "/v1/files", "", ""), 405),
        (ask("PUT", "/v1/files", "", ""), 405),
        (ask("GET", "/v1/files/file_1", "", ""), 404),
        (ask("GET", "/v1/messages/batches/b_1/results", "", ""), 404),
        (ask("GET", "/v1//files", "", ""), 400),
        (ask("GET", "/v1/x/../files", "", ""), 400),
        (
            ask("GET", "/v1/files", "", "").replace(&token, "a.b.c"),
            401,
        ),
        (
            ask("GET", "/v1/files", "", "").replace(&token, &jwt("42")),
            402,
        ),
    ] {
        let answer = stage.ask(&raw).await;
        assert_eq!(answer.status, status, "{raw}");
    }
    stage.provider.expect_nothing("what was not added");
    assert_eq!(stage.usage(ACCOUNT).await["counted_tokens"], 0);
    assert_eq!(stage.message(&jwt(ACCOUNT)).await.status, 200);
}

#[tokio::test]
async fn what_cannot_be_counted_is_for_those_who_are_not_counted() {
    for (paid, monthly, free, status) in [
        (true, Some(1_000_000), None, 403),
        (false, None, Some(1_000_000), 403),
        (false, None, None, 402),
        (true, None, Some(1), 200),
    ] {
        let stage = with_extra_paths(monthly, free).await;
        stage.pay(ACCOUNT, paid).await;
        let key = format!("x-api-key: {}\r\n", jwt(ACCOUNT));
        let answer = stage.ask(post("/v1/messages/batches", &key, "{}")).await;
        assert_eq!(answer.status, status, "{paid} {monthly:?} {free:?}");
        if status != 200 {
            assert_eq!(answer.header("x-should-retry"), Some("false"));
            stage.provider.expect_nothing("what cannot be counted");
        }
        if status == 403 {
            assert_eq!(answer.json()["details"]["code"], "uncounted_path");
            assert_eq!(stage.message(&jwt(ACCOUNT)).await.status, 200);
        }
    }
}

#[tokio::test]
async fn an_oauth_token_of_the_operator_goes_as_a_bearer() {
    const TOKEN: &str = "sk-ant-oat01-CANARY-operator-0123456789";
    let provider = Anthropic::start().await.into_origin();
    let stage = Stage::around(provider, |config| {
        config.gateway.api_key = Some(super::secret(TOKEN));
    });
    let stage = stage.await;
    stage.pay(ACCOUNT, true).await;
    let lines = format!("x-api-key: {}\r\nanthropic-beta: a\r\n", jwt(ACCOUNT));
    assert_eq!(stage.ask(message(&lines)).await.status, 200);
    let text = String::from_utf8(stage.provider.bytes()).expect("text");
    let fields = format!(
        "\r\nanthropic-beta: a\r\nanthropic-beta: oauth-2025-04-20\r\nauthorization: Bearer \
         {TOKEN}\r\n"
    );
    assert!(text.contains(&fields), "{text}");
    assert!(!text.contains("x-api-key"), "{text}");
}

#[tokio::test]
async fn without_its_secrets_there_is_no_gateway() {
    let stage = Stage::around(Origin::echo_ok().await, |config| {
        config.gateway.api_key = None;
        config.gateway.jwt_secret = None;
    });
    let stage = stage.await;
    let answer = stage.message(&jwt(ACCOUNT)).await;
    assert_eq!(answer.status, 404);
    assert_eq!(answer.json()["details"]["_tag"], "NotFound");
    stage.provider.expect_nothing("no gateway");
}
