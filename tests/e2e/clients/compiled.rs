//! Programs of Go, Java and Rust, each built here from its source.

use std::path::{Path, PathBuf};

use tokio::process::Command;
use tokio::sync::OnceCell;

use super::row::row;
use super::stage::{Stage, finish, fixture};
use crate::support::clients::{client, project_file, run};
use crate::support::{Origin, program};

/// Builds the program of Go. Its cache stays, so that only the first build takes long.
async fn go_program(go: &Path) -> PathBuf {
    static BUILT: OnceCell<PathBuf> = OnceCell::const_new();
    let build = || async {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let built = folder.join("call-go");
        let mut build = client(go, folder);
        build
            .args(["build", "-o"])
            .arg(&built)
            .arg(fixture("programs/call.go"))
            .env("GOCACHE", folder.join("go-cache"))
            .env("GOPROXY", "off")
            .env("GOTOOLCHAIN", "local");
        run("go build", &mut build).await.expect_success("go build");
        built
    };
    BUILT.get_or_init(build).await.clone()
}

#[tokio::test]
async fn go() {
    let Some(go) = program("go") else { return };
    let built = go_program(&go).await;
    let run = async |stage: &Stage| finish(stage.command(&built).arg(stage.url("/"))).await;
    row("Go `net/http`").check(Origin::echo_ok, run).await;
}

/// Checks one of Java's clients; the single file is compiled as it starts.
async fn check_java(name: &str, client: &str) {
    // The JRE alone cannot compile it.
    if program("java").is_none() || program("javac").is_none() {
        return;
    }
    let run = async |stage: &Stage| {
        let mut java = stage.program("java", "Call.java");
        finish(java.args([client, &stage.url("/")])).await
    };
    row(name).check(Origin::echo_ok, run).await;
}

#[tokio::test]
async fn java_http_client() {
    check_java("Java `HttpClient`", "client").await;
}

#[tokio::test]
async fn java_http_client_without_an_authenticator() {
    check_java("Java `HttpClient`, no `Authenticator`", "client-bare").await;
}

#[tokio::test]
async fn java_http_url_connection() {
    check_java("Java `HttpURLConnection`", "connection").await;
}

/// Builds the example beside the SDK, which is there already where all of the workspace was built.
async fn reqwest_program() -> PathBuf {
    static BUILT: OnceCell<PathBuf> = OnceCell::const_new();
    let build = || async {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent();
        let target = target.expect("the target folder");
        let mut build = Command::new(env!("CARGO"));
        build
            .args(["build", "--quiet", "--locked", "--offline", "--workspace"])
            .args(["--example", "reqwest_call", "--target-dir"])
            .arg(target)
            .current_dir(project_file(""));
        run("cargo build", &mut build)
            .await
            .expect_success("cargo build");
        target.join("debug/examples/reqwest_call")
    };
    BUILT.get_or_init(build).await.clone()
}

#[tokio::test]
async fn reqwest() {
    let built = reqwest_program().await;
    let run = async |stage: &Stage| finish(stage.command(&built).arg(stage.url("/"))).await;
    row("reqwest").check(Origin::echo_ok, run).await;
}
