//! Programs of the command line: curl, wget, gh.

use super::row::row;
use super::stage::{Stage, finish};
use crate::support::clients::Said;
use crate::support::{Origin, program};

async fn curl(stage: &Stage, more: &[&str]) -> Said {
    let key = format!("X-Api-Key: {}", stage.sealed());
    let mut command = stage.command("curl");
    command.args(["-sS", "--fail", "-H", &key, "-w", " HTTP/%{http_version}"]);
    finish(command.args(more).arg(stage.url("/"))).await
}

async fn check_curl(name: &str, own_roots: bool, more: &[&str]) {
    if program("curl").is_none() {
        return;
    }
    row(name)
        .check(Origin::echo_ok, async |stage| {
            let roots = stage.variable("CURL_CA_BUNDLE").to_str().expect("a path");
            let roots = ["--proxy-cacert", roots];
            let roots = if own_roots { &roots[..] } else { &[] };
            curl(stage, &[roots, more].concat()).await
        })
        .await;
}

#[tokio::test]
async fn curl_as_it_is() {
    check_curl("curl", false, &[]).await;
}

#[tokio::test]
async fn curl_with_the_roots_for_the_proxy() {
    check_curl("curl, `--proxy-cacert`", true, &[]).await;
}

#[tokio::test]
async fn curl_without_h2() {
    check_curl("curl, `--http1.1`", true, &["--http1.1"]).await;
}

#[tokio::test]
async fn wget() {
    if program("wget").is_none() {
        return;
    }
    row("wget")
        .check(Origin::echo_ok, async |stage| {
            let key = format!("--header=X-Api-Key: {}", stage.sealed());
            let mut command = stage.command("wget");
            command.args(["-q", "-O", "-", "--tries=1", &key]);
            finish(command.arg(stage.url("/"))).await
        })
        .await;
}

#[tokio::test]
async fn gh() {
    if program("gh").is_none() {
        return;
    }
    let body = r#"{"login":"octocat"}"#;
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    row("gh")
        .check(
            async || Origin::answer(answer.as_str()).await,
            async |stage| finish(stage.command("gh").args(["api", "user", "--jq", ".login"])).await,
        )
        .await;
}
