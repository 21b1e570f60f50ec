//! The real program's other faces, its log at the most talkative level: model calls, the relay of
//! OAuth tokens, signing in, and deliveries of Stripe's.
//!
//! What the operator's secrets are is told to nobody, whatever goes wrong; what callers send and get
//! is told to them alone. Everything that the process said or wrote is searched.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::HEXLOWER;
use oshu_vault::id::{AccountId, SandboxName};
use oshu_vault::identity::{Workload as Named, WorkloadKeys};
use oshu_vault::secret::Secret;
use oshu_vault_sdk::{Client, CreateSession, CreatedSession, SecretSpec};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::Needles;
use crate::binary::{Home, Server, dial, exchange, get};
use crate::support::clients::files_under;
use crate::support::{Answer, Origin, OriginConn, Request, TestCa, Workload, basic, contains};

const PROVIDER: &str = "api.anthropic.com";
const CONSOLE: &str = "console.anthropic.com";
const GITHUB: &str = "github.com";
const OWN: &str = "vault.example.com";
const PAID: &str = "583231";
const CUSTOMER: &str = "cus_1";
const APP: &str = "https://app.example.com";
const GATEWAY: &str = "/api/claude-gateway/v1/messages";
const RELAY: &str = "/api/claude/v1/oauth/token";
const STRIPE: &str = "/api/webhooks/stripe";

// What the operator has, and tells nobody.
const MODEL_KEY: &str = "sk-ant-api03-canary-model-0123456789";
const JWT_SECRET: &str = "jwt-canary-0123456789abcdef0123456789";
const JWT_PREVIOUS: &str = "jwt-second-canary-9876543210fedcba98";
const ADMIN: &str = "the-operator-s-own-canary-0123456789";
const WHSEC: &str = "whsec_canary_0123456789abcdef";
const CLIENT_SECRET: &str = "github-client-canary-0123456789";
const WORKOS_KEY: &str = "sk_workos_canary_0123456789";
// What callers send and get, and nobody else hears of.
const PROMPT: &str = "the canary of a prompt, 0123456789";
const REPLY: &str = "the canary of an answer, 9876543210";
const OAUTH_CODE: &str = "oauth-code-canary-0123456789";
const OAUTH_TOKEN: &str = "oauth-token-canary-0123456789";
const GITHUB_CODE: &str = "github-code-canary-0123456789";
const DEVICE_CODE: &str = "device-code-canary-0123456789";
const GITHUB_TOKEN: &str = "gho_canary0123456789abcdef";
const CARD: &str = "card-holder-canary-0123456789";

/// Signs a JWT of an account's sandbox, so long ago.
fn jwt(by: &str, account: &str, ago: Duration) -> String {
    let keys = WorkloadKeys::new(&Secret::new(by.as_bytes().to_vec()), None).expect("a secret");
    let named = Named {
        account: AccountId::parse(account).expect("an account"),
        sandbox: SandboxName::parse("box-1").expect("a sandbox"),
    };
    let token = keys.mint(&named, SystemTime::now() - ago, Duration::from_hours(24));
    token.expect("a JWT").to_string()
}

fn document(status: &str, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Echo: {MODEL_KEY}\r\n\
         Set-Cookie: a={OAUTH_TOKEN}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Every service behind the faces. What it is to do stands in the body.
async fn serve(request: Request, conn: OriginConn) {
    let line = request.line().to_owned();
    let asks = |word: &str| contains(&request.body, word);
    let nonsense =
        format!("NONSENSE {MODEL_KEY}{CLIENT_SECRET}{OAUTH_TOKEN}{GITHUB_TOKEN}\r\n\r\n");
    let answer = if asks("do-nonsense") {
        nonsense
    } else if asks("do-reset") {
        return conn.abort().await;
    } else if asks("do-401") {
        document("401 No", &json!({ "error": MODEL_KEY, "of": REPLY }))
    } else if asks("do-redirect") {
        format!(
            "HTTP/1.1 302 {MODEL_KEY}\r\nLocation: https://evil.example.net/?{MODEL_KEY}\r\n\
             Content-Length: 0\r\n\r\n"
        )
    } else if asks("do-stream") {
        conn.send(format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n\
             event: message_delta\ndata: {{\"text\":\"{REPLY}\",\"usage\":{{\"output_tokens\":3}}}}\n\n"
        ))
        .await;
        return conn.close().await;
    } else if asks("do-cut") {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n";
        conn.send(format!("{head}\r\n{{\"text\":\"{REPLY}\"")).await;
        return conn.close().await;
    } else if line.contains("/device/code") {
        let told = json!({
            "device_code": DEVICE_CODE, "user_code": "WDJB-MJHT", "interval": 5,
            "expires_in": 899, "verification_uri": "https://github.com/login/device",
        });
        document("200 OK", &told)
    } else if line.contains("/access_token") {
        let told = json!({ "access_token": GITHUB_TOKEN, "token_type": "bearer", "scope": "repo" });
        document("200 OK", &told)
    } else if line.contains("/oauth/token") {
        document("200 OK", &json!({ "access_token": OAUTH_TOKEN }))
    } else {
        document(
            "200 OK",
            &json!({ "text": REPLY, "usage": { "output_tokens": 3 } }),
        )
    };
    conn.send(answer).await;
}

/// The program, and what was answered so far.
struct Play<'a> {
    address: SocketAddr,
    /// What no answer may hold.
    own: &'a Needles,
    /// What stands in no answer that is a refusal either.
    all: &'a Needles,
    answers: usize,
}

impl Play<'_> {
    fn keep(&mut self, case: &str, answer: &Answer) {
        let bytes = [&answer.raw[..], &answer.body].concat();
        let needles = if answer.status < 400 {
            self.own
        } else {
            self.all
        };
        needles.expect_none(&format!("the answer to {case}"), bytes);
        self.answers += 1;
    }

    /// Sends a body with field lines.
    async fn post(&mut self, path: &str, lines: &str, body: &str, status: u16) -> Answer {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {OWN}\r\n{lines}Content-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let case = format!("POST {path} {lines}{body}");
        let answer = exchange(self.address, head).await;
        assert_eq!(answer.status, status, "{case}: {}", answer.text());
        self.keep(&case, &answer);
        answer
    }

    /// Calls the model with a JWT wherever clients put one, and with bodies of every kind.
    async fn calls(&mut self, right: &str, wrong: &[String]) {
        let bearer = format!("Authorization: Bearer {right}\r\n");
        let body = prompt("do-answer");
        let pairs = [basic("x", right), basic(right, "")];
        let lines = [
            format!("x-api-key: {right}\r\n"),
            format!("Authorization: {}\r\n", pairs[0]),
            format!("Authorization: {}\r\n", pairs[1]),
            format!(
                "{bearer}User-Agent: a {right}\r\nX-Stainless-Arch: {right}\r\n\
                 Referer: https://a.example/?token={right}\r\nCookie: a={right}\r\n"
            ),
        ];
        for lines in &lines {
            self.post(GATEWAY, lines, &body, 200).await;
        }
        for name in ["token", "api_key", "key"] {
            let path = format!("{GATEWAY}?beta=true&{name}={right}");
            self.post(&path, "", &body, 200).await;
        }
        for wrong in wrong {
            self.post(GATEWAY, &format!("x-api-key: {wrong}\r\n"), &body, 401)
                .await;
            self.post(&format!("{GATEWAY}?key={wrong}"), "", &body, 401)
                .await;
        }
        let two = format!("{bearer}x-api-key: {}\r\n", wrong[0]);
        self.post(GATEWAY, &two, &body, 401).await;
        let unpaid = jwt(JWT_PREVIOUS, "42", Duration::ZERO);
        let lines = format!("x-api-key: {unpaid}\r\n");
        self.post(GATEWAY, &lines, &body, 402).await;
        for (word, status) in [
            ("do-stream", 200),
            ("do-401", 502),
            ("do-nonsense", 502),
            ("do-reset", 502),
            ("do-redirect", 502),
        ] {
            self.post(GATEWAY, &bearer, &prompt(word), status).await;
        }
        for body in [
            format!("{{\"model\":\"m\",\"messages\":\"{PROMPT}"),
            json!([PROMPT]).to_string(),
            json!({ "model": [PROMPT], "max_tokens": PROMPT }).to_string(),
        ] {
            self.post(GATEWAY, &bearer, &body, 400).await;
        }
        let elsewhere = "/api/claude-gateway/v1/files";
        self.post(elsewhere, &bearer, &body, 404).await;
        let cut = prompt("do-cut");
        let mut conn = dial(self.address).await;
        let length = cut.len();
        conn.send(format!(
            "POST {GATEWAY} HTTP/1.1\r\nHost: g\r\n{bearer}Content-Length: {length}\r\n\r\n{cut}"
        ))
        .await;
        let (seen, _end) = conn.rest_and_end().await;
        self.own.expect_none("an answer that was cut", seen);
    }

    /// Asks for tokens of the model provider's, and signs in with GitHub.
    async fn tokens(&mut self) {
        for (word, status) in [
            ("do-answer", 200),
            ("do-nonsense", 502),
            ("do-reset", 502),
            ("do-redirect", 502),
        ] {
            let body = json!({ "grant_type": word, "code": OAUTH_CODE }).to_string();
            self.post(RELAY, "Origin: https://a.example\r\n", &body, status)
                .await;
        }
        let long = format!("{OAUTH_CODE}{}", "x".repeat(65 * 1024));
        self.post(RELAY, "", &long, 413).await;
        let device = json!({ "device_code": DEVICE_CODE }).to_string();
        let code = json!({ "code": GITHUB_CODE }).to_string();
        for (path, body, status) in [
            ("device/code", "{}", 200),
            ("device/token", device.as_str(), 200),
            ("oauth/token", code.as_str(), 200),
            ("device/token", r#"{"device_code":"do-nonsense"}"#, 502),
            ("oauth/token", r#"{"code":"do-nonsense"}"#, 502),
            ("oauth/token", r#"{"code":"do-reset"}"#, 502),
            ("oauth/token", r#"{"code":"do-401"}"#, 502),
            ("oauth/token", &code.replace("code\"", "kode\""), 400),
            ("device/token", &format!("{device}x"), 400),
        ] {
            self.post(&format!("/api/github/{path}"), "", body, status)
                .await;
        }
        let state = data_encoding::BASE64URL_NOPAD.encode(APP.as_bytes());
        for (state, status) in [(state.as_str(), 302), ("bm93aGVyZQ", 400)] {
            let path = format!("/api/auth/callback?code={GITHUB_CODE}&state={state}");
            let answer = get(self.address, &path).await;
            assert_eq!(answer.status, status, "{}", answer.head);
            self.keep(&path, &answer);
        }
    }

    /// Delivers what Stripe says: signed, signed by somebody else, and unreadable.
    async fn deliveries(&mut self) -> String {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = since.expect("a time").as_secs();
        let object = json!({
            "id": "cs_1", "client_reference_id": PAID, "customer": CUSTOMER,
            "subscription": "sub_1", "payment_status": "paid",
            "customer_details": { "name": CARD },
        });
        let event = json!({
            "id": "evt_1", "type": "checkout.session.completed", "created": now,
            "data": { "object": object },
        });
        let event = event.to_string();
        let signature = sign(WHSEC, now, &event);
        let good = format!("Stripe-Signature: t={now},v1={signature}\r\n");
        self.post(STRIPE, &good, &event, 200).await;
        self.post(STRIPE, &good, &event, 200).await;
        let bad = format!("{event} ");
        self.post(STRIPE, &good, &bad, 400).await;
        let other = sign(MODEL_KEY, now, &event);
        let line = format!("Stripe-Signature: t={now},v1={other}\r\n");
        self.post(STRIPE, &line, &event, 400).await;
        self.post(STRIPE, "", &event, 400).await;
        let strange = json!({ "id": [CARD], "type": CARD }).to_string();
        let line = format!(
            "Stripe-Signature: t={now},v1={}\r\n",
            sign(WHSEC, now, &strange)
        );
        self.post(STRIPE, &line, &strange, 400).await;
        signature
    }

    /// Calls the model through the proxy, at our own address, with a JWT that is a sealed token.
    async fn inside(&mut self, workload: &Workload, session: &CreatedSession) {
        let sealed = &session.sealed_secrets["GATEWAY_JWT"];
        for (word, status) in [("do-answer", 200), ("do-nonsense", 502)] {
            let body = prompt(word);
            let mut conn = workload.connect(&format!("{OWN}:443")).await;
            conn.send(format!(
                "POST {GATEWAY} HTTP/1.1\r\nHost: {OWN}\r\nAuthorization: Bearer {sealed}\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            ))
            .await;
            let answer = conn.answer().await;
            assert_eq!(answer.status, status, "{}", answer.text());
            self.keep(word, &answer);
        }
    }

    /// Says who has paid, as the operator and as somebody who is not.
    async fn operate(&mut self) {
        let body = json!({ "paid": true }).to_string();
        for (key, status) in [(ADMIN, 200), (&ADMIN[..30], 404), (WHSEC, 404)] {
            let head = format!(
                "PUT /v1/accounts/{PAID} HTTP/1.1\r\nHost: v\r\nx-api-key: {key}\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let answer = exchange(self.address, head).await;
            assert_eq!(answer.status, status, "{}", answer.text());
            self.keep("the operator", &answer);
        }
    }
}

fn prompt(word: &str) -> String {
    let messages = json!([{ "role": "user", "content": PROMPT }]);
    json!({ "model": word, "max_tokens": 8, "messages": messages }).to_string()
}

fn sign(by: &str, time: u64, body: &str) -> String {
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, by.as_bytes());
    let tag = aws_lc_rs::hmac::sign(&key, format!("{time}.{body}").as_bytes());
    HEXLOWER.encode(tag.as_ref())
}

const OPERATOR: [(&str, &str); 7] = [
    ("the key of the model provider", MODEL_KEY),
    ("the secret of JWTs", JWT_SECRET),
    ("the secret before", JWT_PREVIOUS),
    ("the operator's key", ADMIN),
    ("Stripe's secret", WHSEC),
    ("GitHub's secret", CLIENT_SECRET),
    ("the key at WorkOS", WORKOS_KEY),
];
const CALLERS: [(&str, &str); 8] = [
    ("a prompt", PROMPT),
    ("an answer", REPLY),
    ("a code", OAUTH_CODE),
    ("a token", OAUTH_TOKEN),
    ("GitHub's code", GITHUB_CODE),
    ("a device's code", DEVICE_CODE),
    ("GitHub's token", GITHUB_TOKEN),
    ("a name", CARD),
];

/// Starts a server whose log says everything, with what all of these have in common.
async fn talkative(home: &Home, flags: &[String], more: &[(&str, &str)]) -> Server {
    let mut line = vec!["serve".to_owned(), "--dev".to_owned()];
    line.extend(["listen", "tls-listen", "admin-listen"].map(|it| format!("--{it}=127.0.0.1:0")));
    line.extend_from_slice(flags);
    let line: Vec<&str> = line.iter().map(String::as_str).collect();
    let variables = [
        (
            "OSHU_VAULT_LOG",
            "trace,h2=trace,hyper=trace,hyper_util=trace,rustls=trace,tokio_rustls=trace",
        ),
        ("RUST_BACKTRACE", "full"),
        ("OSHU_VAULT__AUDIT__SINK", "file"),
        ("OSHU_VAULT_ADMIN_KEY", ADMIN),
        ("OSHU_VAULT__GATEWAY__API_KEY", MODEL_KEY),
        ("OSHU_VAULT__GATEWAY__JWT_SECRET", JWT_SECRET),
        ("OSHU_VAULT__GATEWAY__JWT_SECRET_PREVIOUS", JWT_PREVIOUS),
        ("OSHU_VAULT__GATEWAY__MONTHLY_BUDGET", "1000000"),
    ];
    home.serve(&line, &[&variables, more].concat()).await
}

/// Ends a server, and searches all that it said and wrote.
async fn search(server: Server, home: &Home, needles: &Needles, exchanges: usize) {
    let metrics = get(server.admin(), "/metrics").await;
    assert_eq!(metrics.status, 200);
    needles.expect_none("the metrics", [metrics.raw, metrics.body].concat());
    let (code, events, log) = server.end(Signal::TERM).await;
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("\"DEBUG\""), "the log talks");
    needles.expect_none("the log", &log);
    assert!(events.is_empty(), "records go to the file alone");
    let records = std::fs::read_to_string(home.path(".local/state/oshu-vault/audit.jsonl"));
    let records = records.expect("audit records");
    let found = records.matches("{\"event\":\"exchange\"").count();
    assert!(found >= exchanges, "{found}: {records}");
    for (path, bytes) in files_under(&home.path("")) {
        needles.expect_none(&path.display().to_string(), bytes);
    }
}

#[tokio::test]
async fn case_23_the_other_faces_tell_nobody_what_is_secret() {
    let (home, services) = (Home::new(), Origin::script(serve).await);
    let roots = home.write("origin.pem", TestCa::shared().pem());
    let address = services.addr();
    let mut flags = [PROVIDER, CONSOLE, GITHUB]
        .map(|host| format!("--resolve={host}={address}"))
        .to_vec();
    flags.push(format!("--upstream-ca={roots}"));
    flags.push(format!("--public-url=https://{OWN}"));
    let variables = [
        ("OSHU_VAULT__GATEWAY__OAUTH_REQUESTS_PER_MINUTE", "10000"),
        ("OSHU_VAULT__PAYMENT__STRIPE__WEBHOOK_SECRET", WHSEC),
        ("OSHU_VAULT__GITHUB__CLIENT_ID", "Iv1.client"),
        ("OSHU_VAULT__GITHUB__CLIENT_SECRET", CLIENT_SECRET),
        ("OSHU_VAULT__GITHUB__RETURN_TO", APP),
        ("OSHU_VAULT__GITHUB__REQUESTS_PER_MINUTE", "10000"),
    ];
    let server = talkative(&home, &flags, &variables).await;
    let right = jwt(JWT_SECRET, PAID, Duration::ZERO);
    let unsigned = format!("{right}x");
    let wrong = [
        jwt(&JWT_SECRET.to_uppercase(), PAID, Duration::ZERO),
        jwt(JWT_SECRET, PAID, Duration::from_hours(48)),
        unsigned,
    ];
    let client = Client::builder(server.url(), server.api_key()).build();
    let client = client.expect("a client");
    let spec = SecretSpec::new(right.as_str()).hosts([OWN]);
    let session = CreateSession::new().secret("GATEWAY_JWT", spec);
    let session = client.create_session(&session).await.expect("a session");
    let ca = get(server.plain(), "/v1/ca.pem").await.text().to_owned();
    let (id, token) = (&session.session_id, &session.token);
    let workload = Workload::at((Some(server.plain()), None), &ca, id, token);

    let signature = right.rsplit('.').next().expect("a signature");
    let mut sent = vec![("a JWT's signature", signature)];
    sent.extend(wrong.iter().map(|wrong| ("a wrong JWT", wrong.as_str())));
    let own = Needles::new(OPERATOR);
    let all = Needles::new(OPERATOR.into_iter().chain(CALLERS).chain(sent.clone()));
    let mut play = Play {
        address: server.plain(),
        own: &own,
        all: &all,
        answers: 0,
    };
    play.operate().await;
    play.calls(&right, &wrong).await;
    play.tokens().await;
    let signed = play.deliveries().await;
    play.inside(&workload, &session).await;
    assert!(play.answers > 50, "{}", play.answers);
    // All of it did travel.
    let received = services.bytes();
    for (what, canary) in [
        ("the key", MODEL_KEY),
        ("the prompt", PROMPT),
        ("the client's secret", CLIENT_SECRET),
        ("the code", OAUTH_CODE),
        ("GitHub's code", GITHUB_CODE),
        ("the device's code", DEVICE_CODE),
    ] {
        assert!(contains(&received, canary), "{what} travels");
    }
    let sent = sent
        .into_iter()
        .chain([("a delivery's signature", signed.as_str())]);
    let all = Needles::new(OPERATOR.into_iter().chain(CALLERS).chain(sent));
    search(server, &home, &all, 25).await;
}

#[tokio::test]
async fn case_23_who_is_asked_whether_somebody_pays_is_told_nowhere() {
    let (home, services) = (Home::new(), Origin::script(serve).await);
    let workos = Origin::builder()
        .plain()
        .script(|request, conn| async move {
            let paid = json!({ "external_id": PAID, "metadata": { "paid": "true", "name": CARD } });
            match request.line() {
                line if line.contains("/583231") => conn.send(document("200 OK", &paid)).await,
                line if line.contains("/42") => {
                    conn.send(document("401 No", &json!(WORKOS_KEY))).await;
                }
                line if line.contains("/43") => {
                    conn.send(format!("NONSENSE {WORKOS_KEY}\r\n\r\n")).await;
                }
                _ => conn.abort().await,
            }
        });
    let workos = workos.await;
    let roots = home.write("origin.pem", TestCa::shared().pem());
    let flags = [
        format!("--resolve={PROVIDER}={}", services.addr()),
        format!("--upstream-ca={roots}"),
    ];
    let url = format!("http://{}", workos.addr());
    let variables = [
        ("OSHU_VAULT__PAYMENT__PROVIDER", "workos"),
        ("OSHU_VAULT__PAYMENT__WORKOS__API_KEY", WORKOS_KEY),
        ("OSHU_VAULT__PAYMENT__WORKOS__BASE_URL", url.as_str()),
    ];
    let server = talkative(&home, &flags, &variables).await;
    let accounts = [(PAID, 200), ("42", 503), ("43", 503), ("44", 503)];
    let tokens = accounts.map(|(account, _)| jwt(JWT_SECRET, account, Duration::ZERO));
    let sent = tokens.iter().map(|jwt| {
        let signature = jwt.rsplit('.').next().expect("a signature");
        ("a JWT's signature", signature)
    });
    let own = Needles::new(OPERATOR);
    let all = Needles::new(OPERATOR.into_iter().chain(CALLERS).chain(sent));
    let mut play = Play {
        address: server.plain(),
        own: &own,
        all: &all,
        answers: 0,
    };
    for (jwt, (_account, status)) in tokens.iter().zip(accounts) {
        let line = format!("x-api-key: {jwt}\r\n");
        play.post(GATEWAY, &line, &prompt("do-answer"), status)
            .await;
    }
    assert!(contains(&workos.bytes(), WORKOS_KEY), "the key travels");
    search(server, &home, &all, accounts.len()).await;
}
