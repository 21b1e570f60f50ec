//! Clients of node, bun and deno, by `programs/call.mjs` of the fixture.

use std::path::Path;

use super::model_apis;
use super::row::row;
use super::stage::{Stage, finish, installed, node};
use crate::support::clients::Said;
use crate::support::{Anthropic, Origin};

pub(super) async fn call(stage: &Stage, program: &Path, client: &str) -> Said {
    let mut command = stage.program(program, "call.mjs");
    finish(command.args([client, &stage.url("/")])).await
}

/// Checks one client on one release of node; `kind` says which origin it speaks to.
async fn on_node(release: &str, name: &str, client: &str) {
    let Some(node) = node(&release.replace(' ', "")) else {
        return;
    };
    let name = format!("{name} on {release}");
    let run = async |stage: &Stage| call(stage, &node, client).await;
    match client {
        "anthropic" => row(&name).check(anthropic, run).await,
        "openai" => row(&name).check(model_apis::openai, run).await,
        _ => row(&name).check(Origin::echo_ok, run).await,
    }
}

async fn anthropic() -> Origin {
    Anthropic::start().await.into_origin()
}

/// The clients that stand on node's own ways out.
const CLIENTS: [(&str, &str); 7] = [
    ("fetch", "fetch"),
    ("`node:https`", "https"),
    ("axios", "axios"),
    ("got", "got"),
    ("undici", "undici"),
    ("@anthropic-ai/sdk", "anthropic"),
    ("openai", "openai"),
];

#[tokio::test]
async fn node_that_needs_the_preload() {
    for (name, client) in CLIENTS {
        on_node("node 20", name, client).await;
    }
}

#[tokio::test]
async fn node_that_knows_proxies() {
    for (name, client) in CLIENTS {
        on_node("node 24", name, client).await;
    }
}

#[tokio::test]
async fn agents_that_programs_make() {
    on_node("node 20", "undici `EnvHttpProxyAgent`", "undici-agent").await;
    on_node("node 20", "https-proxy-agent", "agent").await;
}

#[tokio::test]
async fn bun() {
    let Some(bun) = installed("node_modules/.bin/bun") else {
        return;
    };
    let run = async |stage: &Stage| call(stage, &bun, "fetch").await;
    row("fetch on bun").check(Origin::echo_ok, run).await;
    let run = async |stage: &Stage| call(stage, &bun, "anthropic").await;
    row("@anthropic-ai/sdk on bun").check(anthropic, run).await;
}

#[tokio::test]
async fn deno() {
    let Some(deno) = installed("node_modules/@deno/linux-x64-glibc/deno") else {
        return;
    };
    let run = async |stage: &Stage| {
        let mut command = stage.command(&deno);
        command.args([
            "run",
            "--quiet",
            "--no-config",
            "--allow-net",
            "--allow-env",
        ]);
        let call = super::stage::fixture("programs/call.mjs");
        finish(command.arg(call).args(["fetch", &stage.url("/")])).await
    };
    row("fetch on deno").check(Origin::echo_ok, run).await;
}
