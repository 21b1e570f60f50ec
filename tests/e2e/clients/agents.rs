//! Coding agents: Claude Code in its credential modes, and Codex.

use serde_json::json;

use super::model_apis;
use super::row::row;
use super::stage::{Stage, finish, installed};
use crate::support::clients::claude;
use crate::support::{Anthropic, Origin};

async fn anthropic() -> Origin {
    Anthropic::start().await.into_origin()
}

#[tokio::test]
async fn claude_code_with_a_variable() {
    let Some(claude) = claude() else { return };
    let run = async |stage: &Stage| finish(stage.command(&claude).args(["-p", "say hello"])).await;
    for name in [
        "Claude Code, API key",
        "Claude Code, `ANTHROPIC_AUTH_TOKEN`",
        "Claude Code, subscription token",
    ] {
        row(name).check(anthropic, run).await;
    }
}

#[tokio::test]
async fn claude_code_with_a_file() {
    let Some(claude) = claude() else { return };
    let run = async |stage: &Stage| {
        let login = json!({
            "accessToken": stage.sealed(),
            "refreshToken": "unused",
            "expiresAt": 4_000_000_000_000_u64,
            "scopes": ["user:inference", "user:profile"],
            "subscriptionType": "max",
        });
        let file = json!({ "claudeAiOauth": login }).to_string();
        stage.write(".claude/.credentials.json", &file);
        finish(stage.command(&claude).args(["-p", "say hello"])).await
    };
    row("Claude Code, `.credentials.json`")
        .check(anthropic, run)
        .await;
}

#[tokio::test]
async fn codex() {
    let Some(codex) = installed("node_modules/.bin/codex") else {
        return;
    };
    let run = async |stage: &Stage| {
        let mut command = stage.command(&codex);
        command.args(["exec", "--skip-git-repo-check", "say hello"]);
        command.env("CODEX_API_KEY", stage.sealed());
        finish(&mut command).await
    };
    row("Codex").check(model_apis::openai, run).await;
}
