//! Every way to the gateway: each wrong JWT in each place it may stand, the SDKs when nobody paid,
//! and real clients whose proxy is set as well, with a base URL in TLS and one in the clear.

use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use oshu_vault_sdk::CreateSession;
use tokio::process::Command;

use crate::support::clients::{Said, claude, client, project_file, run};
use crate::support::{ANSWER, Anthropic, Origin, contains, program};

use super::admission::{badly_claiming, badly_signed, timeless};
use super::clients::installed;
use super::inner::{self, OWN};
use super::{ACCOUNT, BODY, MODEL_KEY, PAYMENT_URL, Stage, jwt, message, post};

/// The head of a stream of the provider's.
const STREAM: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

/// Writes a message with a credential at each place that is looked at.
fn everywhere(token: &str) -> [(&'static str, String); 7] {
    let basic = |pair: String| format!("Authorization: Basic {}\r\n", STANDARD.encode(pair));
    let query = |name: &str| post(&format!("/v1/messages?{name}={token}"), "", BODY);
    [
        ("x-api-key", message(&format!("x-api-key: {token}\r\n"))),
        (
            "Bearer",
            message(&format!("Authorization: Bearer {token}\r\n")),
        ),
        ("Basic, a password", message(&basic(format!("x:{token}")))),
        ("Basic, a user", message(&basic(format!("{token}:")))),
        ("token", query("token")),
        ("api_key", query("api_key")),
        ("key", query("key")),
    ]
}

#[tokio::test]
async fn case_83_a_wrong_jwt_is_wrong_wherever_it_stands() {
    let provider = Anthropic::start().await.into_origin();
    let stage = Stage::around(provider, |config| config.limits.auth_failures = 1000).await;
    stage.pay(ACCOUNT, true).await;
    let good = jwt(ACCOUNT);
    let nothing = timeless(&stage.ask(message("")).await);
    assert!(nothing.starts_with("HTTP/1.1 401 "), "{nothing}");
    let tokens: Vec<_> = badly_signed(&good)
        .into_iter()
        .chain(badly_claiming())
        .collect();
    assert!(tokens.len() > 20, "{}", tokens.len());
    for (what, token) in tokens {
        for (place, raw) in everywhere(&token) {
            let answer = stage.ask(raw).await;
            assert_eq!(timeless(&answer), nothing, "{what}, {place}");
        }
    }
    stage.provider.expect_nothing("wrong credentials");
    for (place, raw) in everywhere(&good) {
        assert_eq!(stage.ask(raw).await.status, 200, "{place}");
    }
}

/// An SDK, and how it is called at once and streaming.
#[derive(Clone, Copy, Debug)]
enum Sdk {
    Python,
    TypeScript,
}

impl Sdk {
    const ALL: [Self; 2] = [Self::Python, Self::TypeScript];

    fn calls(self) -> [&'static str; 2] {
        match self {
            Self::Python => ["anthropic", "anthropic_stream"],
            Self::TypeScript => ["anthropic", "anthropic-stream"],
        }
    }

    /// Prepares a call; none where the SDK is not installed.
    fn command(self, home: &Path, call: &str) -> Option<Command> {
        let programs = project_file("tests/fixtures/clients/programs");
        let mut command = match self {
            Self::Python => {
                let packages = installed("python/requests")?;
                let mut command = client(program("python3")?, home);
                command
                    .env("PYTHONPATH", packages.parent().expect("a folder"))
                    .env("PYTHONDONTWRITEBYTECODE", "1")
                    .arg(programs.join("call.py"));
                command
            }
            Self::TypeScript => {
                let node = installed("node_modules/node24/bin/node")?;
                let mut command = client(node, home);
                command.arg(programs.join("call.mjs"));
                command
            }
        };
        command.args([call, "-"]);
        Some(command)
    }
}

#[tokio::test]
async fn the_sdks_say_where_to_pay() {
    let stage = Stage::new().await;
    let url = format!("http://{}/api/claude-gateway", stage.address());
    for sdk in Sdk::ALL {
        for call in sdk.calls() {
            let home = tempfile::tempdir().expect("a home");
            let Some(mut command) = sdk.command(home.path(), call) else {
                return;
            };
            command
                .env("ANTHROPIC_BASE_URL", &url)
                .env("ANTHROPIC_AUTH_TOKEN", jwt(ACCOUNT));
            let said = run(call, &mut command).await;
            assert_eq!(said.code, Some(1), "{sdk:?} {call}: {}", said.stdout);
            let told = said.stderr;
            assert!(
                told.contains("402") && told.contains(PAYMENT_URL),
                "{sdk:?} {call}: {told}"
            );
        }
    }
    stage.provider.expect_nothing("unpaid");
    stage.pay(ACCOUNT, true).await;
    assert_eq!(stage.message(&jwt(ACCOUNT)).await.status, 200, "paid");
}

/// A stage whose own name leads elsewhere, and what a client inside of a session is given.
struct Inside {
    stage: Stage,
    other: Origin,
    home: tempfile::TempDir,
    proxy: String,
}

impl Inside {
    async fn new(public_url: &str) -> Self {
        let (stage, other) = inner::stage(public_url).await;
        let session = stage.vault.session(&CreateSession::new()).await;
        let home = tempfile::tempdir().expect("a home");
        std::fs::write(home.path().join("ca.pem"), stage.vault.ca_pem()).expect("a file");
        let proxy = stage.vault.proxy_url(&session);
        Self {
            stage,
            other,
            home,
            proxy,
        }
    }

    /// Tells a client of the proxy, its root and the gateway.
    async fn run(&self, what: &str, command: &mut Command, url: &str) -> Said {
        let ca = self.home.path().join("ca.pem");
        command
            .env("HTTPS_PROXY", &self.proxy)
            .env("NODE_USE_ENV_PROXY", "1")
            .env("NODE_EXTRA_CA_CERTS", &ca)
            .env("SSL_CERT_FILE", &ca)
            .env("ANTHROPIC_BASE_URL", url)
            .env("ANTHROPIC_AUTH_TOKEN", jwt(ACCOUNT));
        run(what, command).await
    }

    /// Fails the test unless the provider got so many messages, and what stands for us nothing.
    fn expect_messages(&self, count: usize) {
        let bytes = self.stage.provider.bytes();
        let text = String::from_utf8_lossy(&bytes);
        let key = format!("\r\nx-api-key: {MODEL_KEY}\r\n");
        assert_eq!(text.matches("POST /v1/messages").count(), count, "{text}");
        assert_eq!(text.matches(&key).count(), count, "{text}");
        assert!(!contains(&bytes, "eyJ"), "a JWT travelled on");
        self.other.expect_nothing("our own name");
    }

    /// Base URLs that the SDKs use through the proxy, and past it, as they do in the clear.
    fn urls(&self) -> [String; 2] {
        [
            format!("https://{OWN}/api/claude-gateway"),
            format!("http://{}/api/claude-gateway", self.stage.address()),
        ]
    }
}

#[tokio::test]
async fn the_sdks_with_a_proxy_set_as_well_work_when_paid_and_say_so_when_not() {
    let inside = Inside::new("https://vault.example.com").await;
    for paid in [true, false] {
        inside.stage.pay(ACCOUNT, paid).await;
        inside.stage.provider.forget();
        let mut count = 0;
        for (sdk, url) in Sdk::ALL
            .into_iter()
            .flat_map(|sdk| inside.urls().map(|url| (sdk, url)))
        {
            for call in sdk.calls() {
                let Some(mut command) = sdk.command(inside.home.path(), call) else {
                    return;
                };
                let said = inside.run(call, &mut command, &url).await;
                let what = format!("{sdk:?} {call} {url} paid {paid}");
                if paid {
                    said.expect_success(&what);
                    assert_eq!(said.stdout.trim(), ANSWER, "{what}");
                    count += 1;
                } else {
                    assert_eq!(said.code, Some(1), "{what}");
                    assert!(said.stderr.contains(PAYMENT_URL), "{what}: {}", said.stderr);
                }
            }
        }
        inside.expect_messages(count);
    }
}

/// Unlike the SDKs it sends what is in the clear to `HTTPS_PROXY`, too.
#[tokio::test]
async fn claude_code_with_a_proxy_set_as_well_works_when_paid_and_says_so_when_not() {
    let Some(claude) = claude() else { return };
    for public_url in ["https://vault.example.com", "http://vault.example.com"] {
        let inside = Inside::new(public_url).await;
        let url = format!("{public_url}/api/claude-gateway");
        let call = async || {
            let mut command = client(&claude, inside.home.path());
            command
                .env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1")
                .args(["-p", "say hello"]);
            inside.run("claude", &mut command, &url).await
        };
        inside.stage.pay(ACCOUNT, false).await;
        let said = call().await;
        assert_ne!(said.code, Some(0), "{url}: {}", said.stdout);
        let told = format!("{}{}", said.stdout, said.stderr);
        assert!(told.contains("402") && told.contains(PAYMENT_URL), "{told}");
        inside.expect_messages(0);
        inside.stage.pay(ACCOUNT, true).await;
        let said = call().await;
        said.expect_success(&url);
        assert_eq!(said.stdout.trim(), ANSWER, "{url}");
        let text = String::from_utf8_lossy(&inside.stage.provider.bytes()).into_owned();
        inside.expect_messages(text.matches("POST /v1/messages").count().max(1));
    }
}

#[tokio::test]
async fn who_does_not_know_chunks_gets_none() {
    let stage = Stage::new().await;
    stage.pay(ACCOUNT, true).await;
    let line = format!("x-api-key: {}\r\n", jwt(ACCOUNT));
    let old = message(&line).replacen("HTTP/1.1", "HTTP/1.0", 1);
    let mut conn = stage.connect().await;
    conn.send(old).await;
    let text = String::from_utf8(conn.rest().await).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(!head.to_ascii_lowercase().contains("transfer-encoding"));
    let told: serde_json::Value = serde_json::from_str(body).expect("JSON, and nothing else");
    assert_eq!(told["content"][0]["text"], ANSWER);
    assert_eq!(stage.message(&jwt(ACCOUNT)).await.status, 200);
}

#[tokio::test]
async fn what_is_cut_does_not_pass_for_the_whole_where_nothing_marks_its_end() {
    let provider = Origin::script(|_request, conn| async move {
        conn.send(format!("{STREAM}6\r\nevent:\r\n")).await;
        conn.abort().await;
    });
    let stage = Stage::around(provider.await, |_| ()).await;
    stage.pay(ACCOUNT, true).await;
    let line = format!("x-api-key: {}\r\n", jwt(ACCOUNT));
    let mut conn = stage.connect().await;
    conn.send(message(&line).replacen("HTTP/1.1", "HTTP/1.0", 1))
        .await;
    let (_came, end) = conn.rest_and_end().await;
    let reset = end.expect_err("an end in good order").kind();
    assert_eq!(reset, std::io::ErrorKind::ConnectionReset);
}

/// How long a caller that leaves may keep the provider busy.
const LEAVES_WITHIN: Duration = Duration::from_secs(1);

/// On a machine with much to do a second may pass without anybody's fault: one of three in time.
#[tokio::test]
async fn case_86_who_leaves_ends_the_call_to_the_provider_within_a_second() {
    let provider = Origin::script(|_request, conn| async move {
        conn.send(STREAM).await;
        conn.wait_end().await;
    });
    let stage = Stage::around(provider.await, |_| ()).await;
    stage.pay(ACCOUNT, true).await;
    let mut took = Vec::new();
    for count in 1..=3 {
        let mut conn = stage.connect().await;
        let line = format!("x-api-key: {}\r\n", jwt(ACCOUNT));
        conn.send(message(&line)).await;
        let _head = conn.take_until(b"\r\n\r\n").await;
        let left = Instant::now();
        drop(conn);
        stage.provider.wait_ended(count).await;
        took.push(left.elapsed());
    }
    assert!(took.iter().any(|took| *took < LEAVES_WITHIN), "{took:?}");
}
