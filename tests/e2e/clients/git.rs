//! git against git's own server program: clone, push and fetch, with real packs.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::row::row;
use super::stage::{Stage, finish};
use crate::support::clients::{client, run};
use crate::support::{Origin, OriginConn, Request, contains, program};

/// Branches of the repository: asking for them all takes more than git sends uncompressed.
const BRANCHES: usize = 60;

/// What the client does. The file is larger than git sends in one piece.
const SCRIPT: &str = r#"
set -e
git clone -q "$1" work
cd work
head -c 3000000 /dev/urandom >large
git add large
git -c user.name=A -c user.email=a@clients.test commit -q -m "A large file"
git push -q origin HEAD:refs/heads/pushed
git fetch -q
test "$(git rev-parse HEAD)" = "$(git rev-parse origin/pushed)"
git fsck --no-progress
echo ok
"#;

#[tokio::test]
async fn clone_push_and_fetch() {
    let Some(git) = program("git") else { return };
    let origin = async || server(&git).await;
    let client = async |stage: &Stage| {
        let url = format!("https://git:{}@api.clients.test/probe.git", stage.sealed());
        let mut command = stage.command("sh");
        let said = finish(command.args(["-c", SCRIPT, "sh", &url])).await;
        let seen = stage.origin.bytes().to_ascii_lowercase();
        for framing in ["content-encoding: gzip", "transfer-encoding: chunked"] {
            assert!(contains(&seen, framing), "no {framing}: {}", said.stderr);
        }
        said
    };
    row("git").check(origin, client).await;
}

/// Starts an origin with one repository in it.
async fn server(git: &Path) -> Origin {
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    let in_folder = |arguments: &[&str]| {
        let mut command = client(git, folder.path());
        command.args(arguments);
        command
    };
    let made = run(
        "git init",
        &mut in_folder(&["init", "-q", "--bare", "probe.git"]),
    )
    .await;
    made.expect_success("git init");
    let mut import = in_folder(&["-C", "probe.git", "fast-import", "--quiet"]);
    let mut import = import.stdin(Stdio::piped()).spawn().expect("git");
    let mut input = import.stdin.take().expect("its input");
    input.write_all(history().as_bytes()).await.expect("input");
    drop(input);
    assert!(import.wait().await.expect("git").success(), "fast-import");
    let head = ["-C", "probe.git", "symbolic-ref", "HEAD", "refs/heads/b0"];
    let made = run("git", &mut in_folder(&head)).await;
    made.expect_success("git symbolic-ref");
    let git = git.to_owned();
    Origin::script(move |request, conn| {
        let (git, folder) = (git.clone(), Arc::clone(&folder));
        async move { serve(&git, &folder, request, conn).await }
    })
    .await
}

/// Writes a history with a branch for each commit.
fn history() -> String {
    let commit = |branch: usize| {
        let text = format!("{branch}\n").repeat(500);
        format!(
            "commit refs/heads/b{branch}\ncommitter A <a@clients.test> {branch} +0000\n\
             data 2\nx\nM 100644 inline file{branch}\ndata {}\n{text}\n",
            text.len()
        )
    };
    (0..BRANCHES).map(commit).collect()
}

/// Hands a request to `git http-backend` (CGI, RFC 3875) and its answer back.
async fn serve(git: &Path, folder: &TempDir, request: Request, conn: OriginConn) {
    if request.header("authorization").is_none() {
        let refusal = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"probe\"\r\n\
                       Content-Length: 0\r\n\r\n";
        conn.send(refusal).await;
        return;
    }
    let mut words = request.line().split(' ');
    let (method, target) = (words.next().expect("one"), words.next().expect("a target"));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut backend: Command = client(git, folder.path());
    let project: PathBuf = folder.path().to_owned();
    backend
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", project)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REMOTE_USER", "probe")
        .env("REQUEST_METHOD", method)
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("CONTENT_LENGTH", request.body.len().to_string());
    for (variable, field) in [
        ("CONTENT_TYPE", "content-type"),
        ("HTTP_CONTENT_ENCODING", "content-encoding"),
        ("GIT_PROTOCOL", "git-protocol"),
    ] {
        if let Some(value) = request.header(field) {
            backend.env(variable, value);
        }
    }
    backend.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut backend = backend.kill_on_drop(true).spawn().expect("git");
    let mut input = backend.stdin.take().expect("its input");
    let body = request.body;
    // It answers while it still reads.
    let write = tokio::spawn(async move { input.write_all(&body).await });
    let output = backend.wait_with_output().await.expect("its output");
    // It may have had enough before the end.
    let _written = write.await;
    let end = output
        .stdout
        .windows(4)
        .position(|window| window == b"\r\n\r\n");
    let (head, body) = output.stdout.split_at(end.expect("a head") + 4);
    let head = String::from_utf8_lossy(head);
    let status = head.lines().find_map(|line| line.strip_prefix("Status: "));
    let status = status.unwrap_or("200 OK");
    let length = body.len();
    conn.send(format!(
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{head}"
    ))
    .await;
    conn.send(body).await;
}
