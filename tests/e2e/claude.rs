//! Claude Code itself behind `run`, and behind a session: it works, and holds no key.
//!
//! The real key stands in the environment of `run` alone, or in the session. What Claude Code is given, what it
//! writes into its home, and what its tools can see are searched for it.

use std::path::Path;

use oshu_vault_sdk::{CreateSession, CreatedSession, SecretSpec};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::clients::{claude, client, expect_not_under, files_under, reveals, run};
use crate::support::{ANSWER, Anthropic, Login, TestCa, Vault, contains, show};

const REAL_KEY: &str = "sk-ant-api03-CANARY-0123456789-abcdefghijklmnop";

/// A home without anything in it, and the CA of the stand-in beside it.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("home")).expect("a home");
        std::fs::write(
            folder.path().join("upstream-ca.pem"),
            TestCa::shared().pem(),
        )
        .expect("a file");
        Self { folder }
    }

    fn home(&self) -> std::path::PathBuf {
        self.folder.path().join("home")
    }

    /// Prepares `run` with a secret of its environment, towards the stand-in.
    fn run(&self, upstream: &Anthropic, secret: &str, program: impl AsRef<Path>) -> Command {
        let mut command = client(env!("CARGO_BIN_EXE_oshu-vault"), &self.home());
        command
            .env(secret, REAL_KEY)
            .args(["run", "--secret", secret, "--allow-cidr", "127.0.0.0/8"])
            .arg(format!("--resolve={}={}", Anthropic::HOST, upstream.addr()))
            .arg("--upstream-ca")
            .arg(self.folder.path().join("upstream-ca.pem"))
            .arg("--")
            .arg(program.as_ref());
        command
    }

    /// Returns the lines of every transcript in the home.
    fn transcript(&self) -> String {
        let files = files_under(&self.home());
        let transcripts = files.iter().filter(|(path, _)| {
            path.extension()
                .is_some_and(|extension| extension == "jsonl")
        });
        transcripts
            .map(|(_, bytes)| String::from_utf8_lossy(bytes))
            .collect()
    }
}

#[tokio::test]
async fn claude_code_works_and_holds_no_key() {
    let Some(claude) = claude() else { return };
    let (place, upstream) = (Place::new(), Anthropic::start().await);
    let mut command = place.run(&upstream, "ANTHROPIC_API_KEY", claude);
    let said = run("claude", command.args(["-p", "say hello"])).await;
    said.expect_success("claude");
    assert_eq!(said.stdout.trim(), ANSWER);
    upstream.expect_messages(1, "x-api-key", REAL_KEY);
    assert!(
        !contains(&upstream.bytes(), "SEALED_"),
        "a sealed token travelled on"
    );
    // The search below is worth something only if the conversation is there.
    let transcript = place.transcript();
    assert!(
        transcript.contains("say hello") && transcript.contains(ANSWER),
        "{transcript}"
    );
    expect_not_under(&place.home(), REAL_KEY);
    assert!(
        !reveals(said.stderr.as_bytes(), REAL_KEY),
        "{}",
        said.stderr
    );
}

#[tokio::test]
async fn a_subscription_token_is_a_secret_too() {
    let Some(claude) = claude() else { return };
    let (place, upstream) = (Place::new(), Anthropic::start().await);
    let mut command = place.run(&upstream, "CLAUDE_CODE_OAUTH_TOKEN", claude);
    let said = run("claude", command.args(["-p", "say hello"])).await;
    said.expect_success("claude");
    assert_eq!(said.stdout.trim(), ANSWER);
    upstream.expect_messages(1, "authorization", &format!("Bearer {REAL_KEY}"));
    expect_not_under(&place.home(), REAL_KEY);
}

#[tokio::test]
async fn the_environment_holds_a_sealed_token() {
    let (place, upstream) = (Place::new(), Anthropic::start().await);
    let mut command = place.run(&upstream, "ANTHROPIC_API_KEY", "env");
    // A copy under another name must not get through either.
    command.env("COPY", format!("key={REAL_KEY}"));
    let said = run("env", &mut command).await;
    said.expect_success("env");
    let variable = |name: &str| {
        said.stdout
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
    };
    let held = variable("ANTHROPIC_API_KEY").expect("the variable");
    assert!(held.starts_with("SEALED_") && held.len() == 39, "{held}");
    assert!(variable("HTTPS_PROXY").is_some_and(|url| url.contains("@127.0.0.1:")));
    assert!(
        !reveals(said.stdout.as_bytes(), REAL_KEY),
        "{}",
        said.stdout
    );
}

#[tokio::test]
async fn a_tool_of_claude_code_sees_no_key() {
    let Some(claude) = claude() else { return };
    let upstream = Anthropic::with_tool("env").await;
    let place = Place::new();
    let mut command = place.run(&upstream, "ANTHROPIC_API_KEY", claude);
    command.args([
        "-p",
        "what is in your environment?",
        "--allowedTools",
        "Bash",
    ]);
    let said = run("claude with a tool", &mut command).await;
    said.expect_success("claude with a tool");
    assert_eq!(said.stdout.trim(), ANSWER);
    let transcript = place.transcript();
    let result = transcript
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find_map(|line| {
            line["toolUseResult"]["stdout"]
                .as_str()
                .map(ToOwned::to_owned)
        })
        .unwrap_or_else(|| panic!("no result of the tool: {transcript}"));
    assert!(result.contains("ANTHROPIC_API_KEY=SEALED_"), "{result}");
    assert!(!reveals(result.as_bytes(), REAL_KEY), "{result}");
    // Towards the API the key stands in its own field and nowhere else.
    upstream.expect_messages(2, "x-api-key", REAL_KEY);
    let (bytes, field) = (upstream.bytes(), format!("x-api-key: {REAL_KEY}"));
    let text = String::from_utf8_lossy(&bytes);
    assert_eq!(text.matches(REAL_KEY).count(), text.matches(&field).count());
    assert!(
        text.contains("ANTHROPIC_API_KEY=SEALED_"),
        "the tool's result did not travel"
    );
    expect_not_under(&place.home(), REAL_KEY);
}

const LOGIN: Login = Login {
    refresh: "sk-ant-ort01-CANARY-first-refresh-0123456789",
    next_access: "sk-ant-oat01-CANARY-second-access-0123456789",
    next_refresh: "sk-ant-ort01-CANARY-second-refresh-0123456789",
};
const ISSUER: &str = "platform.claude.com";
/// A time that is long past, in milliseconds.
const LONG_AGO: u64 = 1_000_000_000_000;

/// Writes down the login of a session, as the program keeps it.
fn login(session: &CreatedSession, expires: u64) -> Value {
    json!({ "claudeAiOauth": {
        "accessToken": session.sealed_secrets["ACCESS"],
        "refreshToken": session.sealed_secrets["REFRESH"],
        "expiresAt": expires,
        "scopes": ["user:inference", "user:profile"],
        "subscriptionType": "max",
    }})
}

/// Counts how often a token was asked for.
fn refreshes(upstream: &Anthropic) -> usize {
    let bytes = upstream.bytes();
    let text = String::from_utf8_lossy(&bytes);
    text.matches("POST /v1/oauth/token ").count()
}

#[tokio::test]
async fn an_expired_login_is_refreshed_and_no_token_comes_back() {
    let Some(claude) = claude() else { return };
    let (place, upstream) = (Place::new(), Anthropic::with_login(LOGIN).await);
    let vault = Vault::builder()
        .resolve(Anthropic::HOST, upstream.addr())
        .resolve(ISSUER, upstream.addr())
        .start()
        .await;
    let access = SecretSpec::new(REAL_KEY).hosts([Anthropic::HOST]);
    let refresh = SecretSpec::new(LOGIN.refresh).hosts([ISSUER]);
    let request = CreateSession::new()
        .secret("ACCESS", access.prefix("sk-ant-oat01-"))
        .secret("REFRESH", refresh.inject(["body"]).prefix("sk-ant-ort01-"))
        .allowed_egress([Anthropic::HOST, ISSUER]);
    let session = vault.session(&request).await;
    let folder = place.home().join(".claude");
    std::fs::create_dir(&folder).expect("a folder");
    let file = folder.join(".credentials.json");
    let held = |name: &str| {
        let text = std::fs::read(&file).expect("the login");
        let login: Value = serde_json::from_slice(&text).expect("JSON");
        let token = login["claudeAiOauth"][name].as_str().map(ToOwned::to_owned);
        token.unwrap_or_else(|| panic!("no {name} in {login}"))
    };
    std::fs::write(&file, login(&session, LONG_AGO).to_string()).expect("a file");
    let ca = place.folder.path().join("vault-ca.pem");
    std::fs::write(&ca, vault.ca_pem()).expect("a file");
    let say_hello = async || {
        let mut command = client(&claude, &place.home());
        command
            .env("HTTPS_PROXY", vault.proxy_url(&session))
            .env("NODE_EXTRA_CA_CERTS", &ca)
            .args(["-p", "say hello"]);
        let said = run("claude", &mut command).await;
        said.expect_success("claude");
        assert_eq!(said.stdout.trim(), ANSWER);
    };
    say_hello().await;
    // It refreshed, and went on with what it was given.
    upstream.expect_messages(1, "authorization", &format!("Bearer {}", LOGIN.next_access));
    assert_eq!(refreshes(&upstream), 1);
    let (next_access, next_refresh) = (held("accessToken"), held("refreshToken"));
    assert!(
        next_access.starts_with("sk-ant-oat01-SEALED_"),
        "{next_access}"
    );
    assert!(
        next_refresh.starts_with("sk-ant-ort01-SEALED_"),
        "{next_refresh}"
    );
    assert_ne!(next_access, session.sealed_secrets["ACCESS"]);
    // What it wrote down works the next time as well.
    say_hello().await;
    upstream.expect_messages(2, "authorization", &format!("Bearer {}", LOGIN.next_access));
    // A token that is not expired is used as it is.
    assert_eq!(refreshes(&upstream), 1);
    // Nor is it the first refresh token alone that can be exchanged.
    let text = std::fs::read(&file).expect("the login");
    let mut login: Value = serde_json::from_slice(&text).expect("JSON");
    login["claudeAiOauth"]["expiresAt"] = json!(LONG_AGO);
    std::fs::write(&file, login.to_string()).expect("a file");
    say_hello().await;
    assert_eq!(refreshes(&upstream), 2);
    let bytes = upstream.bytes();
    assert!(contains(&bytes, LOGIN.next_refresh), "{}", show(&bytes));
    for real in [
        REAL_KEY,
        LOGIN.refresh,
        LOGIN.next_access,
        LOGIN.next_refresh,
    ] {
        expect_not_under(&place.home(), real);
    }
}
