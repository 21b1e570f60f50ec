//! gRPC: the calls of a real client to a real server, in all four forms and all their endings.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::time::{Duration, Instant};

use oshu_vault_sdk::CreatedSession;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::support::clients::{client, project_file, run};
use crate::support::{REAL, Scene, TWO, TestCa, Vault, missing, program, sha256, within};

/// A server, a vault in front of it, and the environment of a client.
struct Calls {
    vault: Vault,
    session: CreatedSession,
    home: tempfile::TempDir,
    python: std::path::PathBuf,
    events: Lines<BufReader<ChildStdout>>,
    _stdin: ChildStdin,
    _server: Child,
}

impl Calls {
    async fn set_up() -> Option<Self> {
        let python = program("python3")?;
        let packages = project_file("tests/fixtures/clients/python");
        if !packages.join("grpc").exists() {
            missing("grpcio is not installed, tests/prepare.sh does that");
            return None;
        }
        let home = tempfile::tempdir().expect("a folder");
        let (chain, key) = TestCa::shared().files(home.path(), TWO);
        let mut server = client(&python, home.path())
            .env("PYTHONPATH", packages)
            .arg(project_file("tests/e2e/grpc/server.py"))
            .args([chain, key])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the server starts");
        let mut events = BufReader::new(server.stdout.take().expect("its output")).lines();
        let port = event(&mut events).await["port"].as_u64();
        let port = u16::try_from(port.expect("a port")).expect("a port");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let vault = Vault::builder().resolve(TWO, address).start().await;
        let request = Scene::request().secret_hosts([TWO]).allowed_egress([TWO]);
        let session = vault.session(&request).await;
        std::fs::write(home.path().join("ca.pem"), vault.ca_pem()).expect("a file");
        Some(Self {
            vault,
            session,
            home,
            python,
            events,
            _stdin: server.stdin.take().expect("its input"),
            _server: server,
        })
    }

    /// Prepares a client that knows the proxy, the CA and the sealed token from its environment.
    fn client(&self, what: &str) -> Command {
        let mut command = client(&self.python, self.home.path());
        command
            .env("PYTHONPATH", project_file("tests/fixtures/clients/python"))
            .env("https_proxy", self.vault.proxy_url(&self.session))
            .env(
                "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
                self.home.path().join("ca.pem"),
            )
            .env("EXAMPLE_KEY", &self.session.sealed_secrets["EXAMPLE_KEY"])
            .arg(project_file("tests/e2e/grpc/client.py"))
            .args([&format!("{TWO}:443"), what]);
        command
    }

    /// Lets a client do its work and returns what it said at last.
    async fn said(&self, what: &str) -> Value {
        let said = run(what, &mut self.client(what)).await;
        said.expect_success(what);
        let last = said.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(last).expect("JSON")
    }

    /// Returns the records of calls, once there are so many.
    async fn records(&self, count: usize) -> Vec<Value> {
        let exchanges = |lines: &[Value]| -> Vec<Value> {
            let lines = lines.iter().filter(|line| line["event"] == "exchange");
            lines.cloned().collect()
        };
        let log = self.vault.audit_log();
        let lines = log.wait("the records", |lines| exchanges(lines).len() >= count);
        exchanges(&lines.await)
    }
}

async fn event(events: &mut Lines<BufReader<ChildStdout>>) -> Value {
    let line = within("an event of the server", events.next_line()).await;
    let line = line.expect("a line").expect("the server lives");
    serde_json::from_str(&line).expect("JSON")
}

#[tokio::test]
async fn unary_calls_pass_with_metadata_errors_and_the_real_credentials() {
    let Some(calls) = Calls::set_up().await else {
        return;
    };
    let said = calls.said("unary").await;
    for name in ["raw", "sum", "empty", "large", "zipped"] {
        assert_eq!(said[name], true, "{name}: {said}");
    }
    assert_eq!(
        (&said["answer"], &said["first"], &said["last"]),
        (&json!("hello"), &json!("1"), &json!("2"))
    );
    let real = sha256(format!("Bearer {REAL}").as_bytes());
    assert_eq!(said["seen"]["authorization"], real, "{said}");
    assert_eq!(said["seen"]["x-plain"], "kept");
    let fail = json!({
        "code": "NOT_FOUND", "details": "nothing here: 100 % \u{fc}", "why": "because",
    });
    assert_eq!(said["fail"], fail);
    assert_eq!(said["unknown"]["code"], "UNIMPLEMENTED");
    let records = calls.records(8).await;
    let swapped = records
        .iter()
        .filter(|record| record["swapped"] == json!(["EXAMPLE_KEY"]));
    let paths: Vec<_> = swapped.map(|record| record["path"].clone()).collect();
    assert!(paths.contains(&json!("/test.All/Seen")), "{records:#?}");
    for record in &records {
        assert_eq!(
            (&record["decision"], &record["status"]),
            (&json!("allowed"), &json!(200))
        );
    }
}

#[tokio::test]
async fn streams_pass_message_by_message_in_all_directions() {
    let Some(calls) = Calls::set_up().await else {
        return;
    };
    let said = calls.said("streams").await;
    for name in ["counted", "total", "talked"] {
        assert_eq!(said[name], true, "{name}: {said}");
    }
    assert_eq!(said["rest"], 0);
    let late = json!({
        "got": ["0", "1", "2"],
        "end": { "code": "OUT_OF_RANGE", "details": "that was all", "why": null },
    });
    assert_eq!(said["late"], late);
}

#[tokio::test]
async fn deadlines_and_cancellations_reach_the_server() {
    let Some(mut calls) = Calls::set_up().await else {
        return;
    };
    let said = calls.said("cancel").await;
    assert_eq!(said["deadline"], "DEADLINE_EXCEEDED", "{said}");
    assert_eq!(
        (&said["first"], &said["cancelled"]),
        (&json!("begun"), &json!("CANCELLED"))
    );
    assert_eq!(said["after"], "after");
    let mut over = Vec::new();
    while over.len() < 2 {
        let event = event(&mut calls.events).await;
        if event["event"] == "over" {
            assert_eq!(event["active"], false, "the server knows that nobody waits");
            over.push(event["call"].as_str().unwrap_or_default().to_owned());
        }
    }
    over.sort();
    assert_eq!(over, ["cancelled", "deadline"]);
}

#[tokio::test]
async fn fifty_calls_are_under_way_on_one_channel() {
    let Some(calls) = Calls::set_up().await else {
        return;
    };
    assert_eq!(calls.said("parallel").await["answers"], true);
    let records = calls.records(51).await;
    assert_eq!(records.len(), 51, "one each");
}

#[tokio::test]
async fn a_deleted_session_ends_calls_at_once() {
    let Some(mut calls) = Calls::set_up().await else {
        return;
    };
    let mut command = calls.client("hold");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the client starts");
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    assert_eq!(event(&mut lines).await["held"], true);
    let began = Instant::now();
    let sdk = calls.vault.sdk();
    let deleted = sdk.delete_session(&calls.session.session_id).await;
    deleted.expect("deleted");
    let said = event(&mut lines).await;
    assert_eq!(said["end"]["code"], "UNAVAILABLE", "{said}");
    while event(&mut calls.events).await["event"] != "over" {}
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
}
