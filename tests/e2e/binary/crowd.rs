//! Many at once, on the real program: what an idle tunnel costs, that it comes back, and what
//! happens when there are more connections than descriptors.

use oshu_vault_sdk::{Client, CreateSession};
use serde_json::Value;
use tokio::process::Command;
use tokio::task::JoinSet;

use super::{Home, dial, get};
use crate::support::{Workload, within};

/// What a tunnel that does nothing may cost, with the workload's TLS in it.
const TUNNEL_KIB: u64 = 64;
const TUNNELS: usize = 200;
/// So many descriptors are too few for the test's connections, and enough to start with.
const DESCRIPTORS: usize = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_68_idle_tunnels_cost_little_and_give_everything_back() {
    let home = Home::new();
    let line = [
        "serve",
        "--dev",
        "--listen=127.0.0.1:0",
        "--tls-listen=none",
    ];
    // None of them is to end by itself while they are counted.
    let variables = [("OSHU_VAULT__LIMITS__FIRST_BYTE_TIMEOUT_MS", "3600000")];
    let line = [&line[..], &["--admin-listen=127.0.0.1:0"]].concat();
    let server = home.serve(&line, &variables).await;
    let sdk = Client::builder(server.url(), server.api_key());
    let sdk = sdk.build().expect("a client");
    let ca = server.ready["ca"].as_str().expect("a path");
    let ca = std::fs::read_to_string(ca).expect("a certificate");
    let session = async || {
        let session = sdk.create_session(&CreateSession::new()).await;
        let session = session.expect("a session");
        let addresses = (Some(server.plain()), None);
        let workload = Workload::at(addresses, &ca, &session.session_id, &session.token);
        (session.session_id, workload)
    };
    let open = async |workload: &Workload, count: usize| {
        let mut tunnels = Vec::new();
        for _ in 0..count {
            tunnels.push(workload.connect("idle.example.com:443").await);
        }
        tunnels
    };
    let (first, warm) = session().await;
    let (second, workload) = session().await;
    let base = server.descriptors();
    let settled = async |count: usize| {
        within("the descriptors to come back", async {
            while server.descriptors() > count {
                tokio::task::yield_now().await;
            }
        })
        .await;
    };
    // What the first tunnels make once is no tunnel's cost.
    drop(open(&warm, 20).await);
    sdk.delete_session(&first).await.expect("deleted");
    settled(base).await;
    let before = server.resident_kib();
    let tunnels = open(&workload, TUNNELS).await;
    assert_eq!(server.descriptors(), base + TUNNELS);
    let grown = server.resident_kib().saturating_sub(before);
    let most = TUNNEL_KIB * u64::try_from(TUNNELS).expect("small");
    assert!(grown <= most, "{grown} KiB for {TUNNELS} tunnels");
    sdk.delete_session(&second).await.expect("deleted");
    let mut ends = JoinSet::new();
    for mut tunnel in tunnels {
        ends.spawn(async move { tunnel.expect_end().await });
    }
    while let Some(end) = ends.join_next().await {
        end.expect("every tunnel ends");
    }
    settled(base).await;
    assert_eq!(get(server.plain(), "/healthz").await.status, 200);
    server.stop().await;
}

/// Returns the milliseconds of the day at which accepting failed.
fn failures(log: &str) -> Vec<u64> {
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    lines
        .filter(|line: &Value| line.to_string().contains("a connection cannot be accepted"))
        .map(|line| {
            let time = line["timestamp"].as_str().expect("a time").to_owned();
            let clock = time.split_once('T').expect("a time of day").1;
            let number = |from: usize, to: usize| clock[from..to].parse::<u64>().expect("digits");
            let seconds = number(0, 2) * 3600 + number(3, 5) * 60 + number(6, 8);
            seconds * 1000 + number(9, 12)
        })
        .collect()
}

#[tokio::test]
async fn case_68_out_of_descriptors_it_rests_and_recovers() {
    let home = Home::new();
    let program = home.command(&[], &[]).as_std().get_program().to_owned();
    let mut command = Command::new("/bin/sh");
    command
        .arg("-c")
        .arg(format!("ulimit -n {DESCRIPTORS}; exec \"$0\" \"$@\""))
        .arg(program)
        .args([
            "serve",
            "--dev",
            "--listen=127.0.0.1:0",
            "--tls-listen=none",
        ])
        .args(["--admin-listen=127.0.0.1:0"])
        .env_clear()
        .env("HOME", home.0.path())
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true);
    let server = Home::start(command).await;
    let mut held = Vec::new();
    // The system takes them all; the program cannot.
    for _ in 0..2 * DESCRIPTORS {
        held.push(dial(server.plain()).await);
    }
    let log = server
        .log
        .wait("accepting to fail again and again", |log| {
            failures(log).len() >= 6
        })
        .await;
    let times = failures(&log);
    // It rests longer each time, 310 ms for five; a day that ends meanwhile proves nothing.
    let took = times[5].checked_sub(times[0]);
    assert!(took.is_none_or(|millis| millis >= 300), "{times:?}");
    drop(held);
    let answer = within("an answer afterwards", get(server.plain(), "/healthz")).await;
    assert_eq!(answer.status, 200);
    server.stop().await;
}
