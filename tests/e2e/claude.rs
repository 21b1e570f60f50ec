//! Claude Code itself behind `run`: it works, and holds no key.
//!
//! The real key stands in the environment of `run` alone. What Claude Code is given, what it
//! writes into its home, and what its tools can see are searched for it.

use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::clients::{claude, client, expect_not_under, files_under, reveals, run};
use crate::support::{ANSWER, Anthropic, TestCa, contains};

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
