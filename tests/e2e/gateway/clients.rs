//! Real clients at the gateway: Claude Code and the SDKs, by their own variables.

use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::support::clients::{Said, claude, client, project_file, run};
use crate::support::{ANSWER, Anthropic, contains, missing, program};

use super::{ACCOUNT, MODEL_KEY, PAYMENT_URL, Stage, jwt};

pub(super) fn installed(path: &str) -> Option<PathBuf> {
    let found = project_file("tests/fixtures/clients").join(path);
    if !found.exists() {
        missing(&format!(
            "{path} is not installed, tests/prepare.sh does that"
        ));
        return None;
    }
    Some(found)
}

/// Tells a client of the gateway as its own variables do.
fn point<'a>(command: &'a mut Command, stage: &Stage, jwt: &str) -> &'a mut Command {
    let url = format!("http://{}/api/claude-gateway", stage.address());
    command
        .env("ANTHROPIC_BASE_URL", url)
        .env("ANTHROPIC_AUTH_TOKEN", jwt)
}

async fn say_hello(stage: &Stage, claude: &Path, jwt: &str) -> Said {
    let home = tempfile::tempdir().expect("a home");
    let mut command = client(claude, home.path());
    point(&mut command, stage, jwt)
        .env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1")
        .args(["-p", "say hello"]);
    run("claude", &mut command).await
}

/// Fails the test unless the provider saw so many messages, under the operator's key alone.
fn expect_messages(stage: &Stage, at_least: usize) {
    let bytes = stage.provider.bytes();
    let text = String::from_utf8_lossy(&bytes);
    let count = text.matches("POST /v1/messages").count();
    assert!(count >= at_least, "{count} messages");
    let key = format!("\r\nx-api-key: {MODEL_KEY}\r\n");
    assert_eq!(text.matches(&key).count(), count);
    assert!(!contains(&bytes, "eyJ"), "a JWT travelled on");
    assert!(!text.to_ascii_lowercase().contains("\r\nauthorization:"));
}

#[tokio::test]
async fn claude_code_answers_when_paid_and_says_where_to_pay_when_not() {
    let Some(claude) = claude() else { return };
    let stage = Stage::new().await;
    let jwt = jwt(ACCOUNT);
    let said = say_hello(&stage, &claude, &jwt).await;
    assert_ne!(said.code, Some(0), "{}", said.stdout);
    let told = format!("{}{}", said.stdout, said.stderr);
    assert!(told.contains("402") && told.contains(PAYMENT_URL), "{told}");
    stage.provider.expect_nothing("unpaid");
    stage.pay(ACCOUNT, true).await;
    let said = say_hello(&stage, &claude, &jwt).await;
    said.expect_success("claude");
    assert_eq!(said.stdout.trim(), ANSWER);
    expect_messages(&stage, 1);
    let text = String::from_utf8_lossy(&stage.provider.bytes()).into_owned();
    assert!(text.contains("POST /v1/messages?beta=true HTTP/1.1\r\n"));
    assert!(text.contains("\r\nanthropic-beta: "), "betas travel");
    assert!(text.contains("\r\nuser-agent: claude-cli/"), "who it is");
    let usage = stage.usage(ACCOUNT).await;
    assert_eq!(usage["usage"][0]["model"], "stand-in", "{usage}");
}

#[tokio::test]
async fn claude_code_works_under_a_budget() {
    let Some(claude) = claude() else { return };
    let stage = Stage::around(Anthropic::start().await.into_origin(), |config| {
        config.gateway.monthly_budget = Some(10_000_000);
    });
    let stage = stage.await;
    stage.pay(ACCOUNT, true).await;
    let said = say_hello(&stage, &claude, &jwt(ACCOUNT)).await;
    said.expect_success("claude");
    assert_eq!(said.stdout.trim(), ANSWER);
    expect_messages(&stage, 1);
    // The provider has no tools of its own in what it sends by default.
    let text = String::from_utf8_lossy(&stage.provider.bytes()).into_owned();
    assert!(
        text.contains(r#""tools":[{"name":"#) || text.contains(r#""tools":[]"#),
        "tools"
    );
    assert!(!text.contains("web_search_2"), "a tool of the provider's");
}

#[tokio::test]
async fn claude_code_says_that_a_wrong_jwt_is_refused() {
    let Some(claude) = claude() else { return };
    let stage = Stage::new().await;
    let wrong = super::jwt_by(super::OTHER_SECRET, ACCOUNT);
    let said = say_hello(&stage, &claude, &wrong).await;
    assert_ne!(said.code, Some(0), "{}", said.stdout);
    let told = format!("{}{}", said.stdout, said.stderr);
    assert!(told.contains("401"), "{told}");
    stage.provider.expect_nothing("a wrong JWT");
}

#[tokio::test]
async fn the_python_sdk_works_at_once_and_streaming() {
    if program("python3").is_none() || installed("python/requests").is_none() {
        return;
    }
    let stage = Stage::new().await;
    stage.pay(ACCOUNT, true).await;
    for call in ["anthropic", "anthropic_stream"] {
        let home = tempfile::tempdir().expect("a home");
        let mut command = client("python3", home.path());
        point(&mut command, &stage, &jwt(ACCOUNT))
            .env("PYTHONPATH", project_file("tests/fixtures/clients/python"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .arg(project_file("tests/fixtures/clients/programs/call.py"))
            .args([call, "-"]);
        let said = run(call, &mut command).await;
        said.expect_success(call);
        assert_eq!(said.stdout.trim(), ANSWER, "{call}");
    }
    expect_messages(&stage, 2);
}

#[tokio::test]
async fn the_typescript_sdk_works_at_once_and_streaming() {
    let Some(node) = installed("node_modules/node24/bin/node") else {
        return;
    };
    let stage = Stage::new().await;
    stage.pay(ACCOUNT, true).await;
    for call in ["anthropic", "anthropic-stream"] {
        let home = tempfile::tempdir().expect("a home");
        let mut command = client(&node, home.path());
        point(&mut command, &stage, &jwt(ACCOUNT))
            .arg(project_file("tests/fixtures/clients/programs/call.mjs"))
            .args([call, "-"]);
        let said = run(call, &mut command).await;
        said.expect_success(call);
        assert_eq!(said.stdout.trim(), ANSWER, "{call}");
    }
    expect_messages(&stage, 2);
}
