//! What the program costs as a process: CPU a request, memory a tunnel, system calls an exchange.
//!
//! Wall-clock times mean little on a shared machine, so this starts the release program as a
//! child, drives it with fixed numbers of requests and reads what the kernel says it has used.
//! Programs given as `LABEL=PATH` are measured in turn, so that ratios are of one run; see
//! `docs/performance.md`.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::format_push_string,
    clippy::exit,
    reason = "a bench has no callers, and stops where its own input is wrong"
)]

mod support;

use std::collections::BTreeMap;
use std::fs::read_to_string;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use support::{Client, HOST, Origin, SECRET, SECRET_NAME, Way, connector, runtime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const API_KEY: &str = "ovk_bench_0123456789abcdef0123456789abcdef";
const TUNNELS: usize = 64;
const IDLE_TUNNELS: usize = 1000;
const MIB: usize = 1024 * 1024;
const BIG_BODY_BYTES: usize = 300 * MIB;
/// The core for the programs that are measured; everything else is on the other one.
const CORE: &str = "1";

/// One program to measure.
struct Program {
    label: String,
    path: String,
    /// It is this program, and not another proxy.
    ours: bool,
}

/// A program that runs.
struct Running {
    child: Child,
    way: Way,
    /// What the workload sends as its key.
    token: String,
    /// The first answer was checked: the token became the secret.
    program: String,
}

impl Drop for Running {
    /// Asks it to end, so that tools which report at the end get to do so.
    fn drop(&mut self) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).ok();
        self.child.wait().ok();
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if !args.iter().any(|arg| arg == "--bench") {
        println!("load: run by `cargo bench --bench load`");
        return;
    }
    let value = |name: &str| {
        let at = args.iter().position(|arg| arg == name)?;
        args.get(at + 1).cloned()
    };
    let repetitions: usize = value("--repetitions").map_or(3, |text| text.parse().unwrap());
    let only = value("--only");
    let requests: usize = value("--requests").map_or(600, |text| text.parse().unwrap());
    let mut programs: Vec<Program> = args.iter().filter_map(|arg| program(arg)).collect();
    if !programs.iter().any(|program| program.ours) {
        let path = env!("CARGO_BIN_EXE_oshu-vault").to_owned();
        programs.insert(
            0,
            Program {
                label: "ours".to_owned(),
                path,
                ours: true,
            },
        );
    }
    pin(std::process::id());
    let mut results = Results::default();
    for _ in 0..repetitions {
        for program in &programs {
            runtime().block_on(measure(program, only.as_deref(), requests, &mut results));
        }
    }
    results.print(&programs);
}

/// Reads `LABEL=PATH` (a build of this program) or `rival:LABEL=PATH` (another proxy).
fn program(text: &str) -> Option<Program> {
    let (label, path) = text.split_once('=')?;
    let (ours, label) = match label.strip_prefix("rival:") {
        Some(label) => (false, label),
        None => (true, label),
    };
    Some(Program {
        label: label.to_owned(),
        path: path.to_owned(),
        ours,
    })
}

/// Keeps the load off the core of the programs that are measured.
fn pin(id: u32) {
    let id = id.to_string();
    Command::new("taskset")
        .args(["-cp", "0", &id])
        .stdout(Stdio::null())
        .status()
        .ok();
}

async fn measure(program: &Program, only: Option<&str>, each: usize, results: &mut Results) {
    let origin = Origin::start();
    let wanted = |name: &str| only.is_none_or(|only| only.split(',').any(|one| one == name));
    let label = program.label.as_str();
    if ["keep_alive", "latency", "new_tunnel", "body", "syscalls"]
        .iter()
        .any(|name| wanted(name))
    {
        let running = start(program, &origin).await;
        let mut clients = open(&running, TUNNELS).await;
        if wanted("keep_alive") {
            drive(&running, &mut clients, each / 6).await;
            let (cpu, wall) = cost(&running, drive(&running, &mut clients, each)).await;
            let requests = (TUNNELS * each) as f64;
            results.add("keep-alive: CPU µs a request", label, cpu * 1e6 / requests);
            results.add("keep-alive: requests a second", label, requests / wall);
        }
        if wanted("latency") {
            results.add(
                "one tunnel: median µs",
                label,
                latency(&running, &mut clients[0]).await,
            );
        }
        if wanted("syscalls") {
            syscalls(&running, &mut clients, results).await;
        }
        if wanted("new_tunnel") {
            new_tunnels(&running, 8).await;
            let (cpu, wall) = cost(&running, new_tunnels(&running, 400)).await;
            results.add("new tunnel: CPU µs", label, cpu * 1e6 / 400.0);
            results.add("new tunnel: a second, 8 at a time", label, 400.0 / wall);
        }
        if wanted("body") {
            download(&running, &mut clients[0], 5).await;
            let (cpu, _) = cost(&running, download(&running, &mut clients[0], 200)).await;
            results.add("1 MiB down: CPU ms", label, cpu * 1e3 / 200.0);
            let (cpu, _) = cost(&running, upload(&running, &mut clients[0], 200)).await;
            results.add("1 MiB up: CPU ms", label, cpu * 1e3 / 200.0);
        }
    }
    if wanted("memory") {
        memory(program, &origin, results).await;
    }
}

async fn memory(program: &Program, origin: &Origin, results: &mut Results) {
    let label = program.label.as_str();
    let running = start(program, origin).await;
    let idle = memory_kib(&running, "VmRSS");
    results.add("RSS idle, MiB", label, idle / 1024.0);
    let own = memory_kib(&running, "RssAnon");
    results.add("RSS idle, MiB, without mapped files", label, own / 1024.0);
    let clients = open(&running, IDLE_TUNNELS).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let grown = memory_kib(&running, "VmRSS") - idle;
    results.add("KiB an idle tunnel", label, grown / IDLE_TUNNELS as f64);
    drop(clients);
    drop(running);
    let running = start(program, origin).await;
    let mut client = open(&running, 1).await.remove(0);
    let before = memory_kib(&running, "VmRSS");
    client.post(BIG_BODY_BYTES, &running.token).await.unwrap();
    let grown = memory_kib(&running, "VmHWM") - before;
    results.add("300 MiB up: RSS growth, MiB", label, grown / 1024.0);
    client
        .get(&format!("/{BIG_BODY_BYTES}"), &running.token)
        .await
        .unwrap();
    let grown = memory_kib(&running, "VmHWM") - before;
    results.add(
        "300 MiB up and down: RSS growth, MiB",
        label,
        grown / 1024.0,
    );
}

/// Starts a program and checks that it swaps.
async fn start(program: &Program, origin: &Origin) -> Running {
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("origin.pem");
    std::fs::write(&ca, &origin.ca_pem).unwrap();
    let mut command = Command::new("taskset");
    command.args(["-c", CORE, &program.path]);
    if program.ours {
        command.args([
            "serve",
            "--dev",
            "--listen",
            "127.0.0.1:0",
            "--tls-listen",
            "127.0.0.1:0",
        ]);
        command.args(["--admin-listen", "127.0.0.1:0", "--resolve"]);
        command.arg(format!("{HOST}=127.0.0.1"));
        command
            .arg("--upstream-ca")
            .arg(&ca)
            .arg("--state-dir")
            .arg(folder.path().join("state"));
        command
            .env("SECRETS_PROXY_API_KEY", API_KEY)
            .stderr(Stdio::null());
    } else {
        command.arg(&ca).arg(folder.path().join("ca.pem"));
    }
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .expect("taskset starts the program");
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let ready = loop {
        let mut line = String::new();
        assert!(
            lines.read_line(&mut line).unwrap() > 0,
            "the program ended before it was ready"
        );
        let event: Value = serde_json::from_str(&line).unwrap();
        if event["event"] == "ready" {
            break event;
        }
    };
    // The audit records, which somebody always reads.
    std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
    let address = ready["listen"].as_str().unwrap().parse().unwrap();
    let proxy_ca = read_to_string(Path::new(ready["ca"].as_str().unwrap())).unwrap();
    let (authorization, token) = if program.ours {
        let session = session(address).await;
        let text = |name: &str| session[name].as_str().unwrap().to_owned();
        let pair = format!("{}:{}", text("session_id"), text("token"));
        let token = session["sealed_secrets"][SECRET_NAME]
            .as_str()
            .unwrap()
            .to_owned();
        (Some(format!("Basic {}", STANDARD.encode(pair))), token)
    } else {
        (None, "SEALED_0123456789abcdef0123456789abcdef".to_owned())
    };
    let tls = connector(&proxy_ca);
    let way = Way {
        address,
        target: Some(origin.target()),
        authorization,
        tls,
    };
    let running = Running {
        child,
        way,
        token,
        program: program.label.clone(),
    };
    let mut client = Client::connect(&running.way).await.unwrap();
    assert!(
        client.get("/200", &running.token).await.unwrap(),
        "{}: swaps",
        running.program
    );
    running
}

/// Creates a session by the management API.
async fn session(address: std::net::SocketAddr) -> Value {
    let body = json!({ "secrets": { SECRET_NAME: { "value": SECRET, "hosts": [HOST] } } });
    let body = body.to_string();
    let text = format!(
        "POST /v1/sessions HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {API_KEY}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap_or_else(|_| panic_with(&answer))
}

fn panic_with(answer: &str) -> Value {
    println!("unexpected answer: {answer}");
    std::process::exit(1)
}

async fn open(running: &Running, count: usize) -> Vec<Client> {
    let mut clients = Vec::with_capacity(count);
    for _ in 0..count {
        let mut client = Client::connect(&running.way).await.unwrap();
        client.get("/200", &running.token).await.unwrap();
        clients.push(client);
    }
    clients
}

/// Sends a number of requests on each connection, all connections at once.
async fn drive(running: &Running, clients: &mut Vec<Client>, each: usize) {
    let mut tasks = Vec::with_capacity(clients.len());
    for mut client in clients.drain(..) {
        let token = running.token.clone();
        tasks.push(tokio::spawn(async move {
            for _ in 0..each {
                assert!(client.get("/200", &token).await.unwrap());
            }
            client
        }));
    }
    for task in tasks {
        clients.push(task.await.unwrap());
    }
}

/// Opens tunnels, eight at a time, with one request on each.
async fn new_tunnels(running: &Running, count: u64) {
    let left = Arc::new(AtomicU64::new(count));
    let tasks = (0..8).map(|_| {
        let (left, way, token) = (
            Arc::clone(&left),
            running.way.clone(),
            running.token.clone(),
        );
        tokio::spawn(async move {
            let take = |left: u64| left.checked_sub(1);
            while left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                .is_ok()
            {
                let mut client = Client::connect(&way).await.unwrap();
                client.get("/200", &token).await.unwrap();
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
}

/// Returns the median time of a request on one tunnel, in microseconds.
async fn latency(running: &Running, client: &mut Client) -> f64 {
    let mut times = Vec::with_capacity(3000);
    for _ in 0..3000 {
        let start = Instant::now();
        client.get("/200", &running.token).await.unwrap();
        times.push(start.elapsed());
    }
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}

/// Counts system calls by `strace`, where it is installed.
async fn syscalls(running: &Running, clients: &mut Vec<Client>, results: &mut Results) {
    let each = 50;
    let requests = (TUNNELS * each) as f64;
    // Connects upstream as often as it takes, which is no part of a request.
    drive(running, clients, 5).await;
    let calls = traced(running, drive(running, clients, each)).await;
    results.add_calls("a request", running, requests, calls);
    let calls = traced(running, download(running, &mut clients[0], 20)).await;
    results.add_calls("a MiB down", running, 20.0, calls);
    let calls = traced(running, upload(running, &mut clients[0], 20)).await;
    results.add_calls("a MiB up", running, 20.0, calls);
}

/// Does some work under `strace`. Returns the number of calls by name.
async fn traced(running: &Running, work: impl Future<Output = ()>) -> Vec<(String, f64)> {
    let report = tempfile::NamedTempFile::new().unwrap();
    let mut strace = Command::new("strace");
    strace.args([
        "-c",
        "-f",
        "-U",
        "calls,name",
        "-p",
        &running.child.id().to_string(),
    ]);
    let Ok(mut strace) = strace
        .arg("-o")
        .arg(report.path())
        .stderr(Stdio::piped())
        .spawn()
    else {
        return Vec::new();
    };
    // It says so when it is attached.
    strace
        .stderr
        .take()
        .unwrap()
        .read_exact(&mut [0; 16])
        .unwrap();
    work.await;
    let id = rustix::process::Pid::from_child(&strace);
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    strace.wait().unwrap();
    let report = read_to_string(report.path()).unwrap();
    let lines = report
        .lines()
        .filter_map(|line| line.trim().split_once(' '));
    lines
        .filter_map(|(count, name)| Some((name.trim().to_owned(), count.parse().ok()?)))
        .collect()
}

async fn download(running: &Running, client: &mut Client, times: usize) {
    for _ in 0..times {
        client
            .get(&format!("/{MIB}"), &running.token)
            .await
            .unwrap();
    }
}

async fn upload(running: &Running, client: &mut Client, times: usize) {
    for _ in 0..times {
        client.post(MIB, &running.token).await.unwrap();
    }
}

/// Awaits some work. Returns the CPU seconds of the program and the seconds it took.
async fn cost(running: &Running, work: impl Future<Output = ()>) -> (f64, f64) {
    let (cpu, start) = (cpu_seconds(running), Instant::now());
    work.await;
    let wall = start.elapsed().as_secs_f64();
    tokio::time::sleep(Duration::from_millis(20)).await;
    (cpu_seconds(running) - cpu, wall)
}

/// Returns the CPU time of all threads, in seconds.
fn cpu_seconds(running: &Running) -> f64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", running.child.id())).unwrap();
    let nanoseconds = tasks.filter_map(|task| {
        let text = read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    nanoseconds.sum::<u64>() as f64 / 1e9
}

/// Returns a size of the program's memory, in KiB.
fn memory_kib(running: &Running, name: &str) -> f64 {
    let text = read_to_string(format!("/proc/{}/status", running.child.id())).unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What was measured: by figure, then by program.
#[derive(Default)]
struct Results {
    order: Vec<String>,
    figures: BTreeMap<(String, String), Vec<f64>>,
}

impl Results {
    fn add(&mut self, figure: &str, label: &str, value: f64) {
        if !self.order.iter().any(|known| known == figure) {
            self.order.push(figure.to_owned());
        }
        self.figures
            .entry((figure.to_owned(), label.to_owned()))
            .or_default()
            .push(value);
    }

    fn add_calls(&mut self, per: &str, of: &Running, count: f64, calls: Vec<(String, f64)>) {
        for (name, calls) in calls {
            if calls / count >= 0.02 {
                self.add(
                    &format!("system calls {per}: {name}"),
                    &of.program,
                    calls / count,
                );
            }
        }
    }

    /// Prints medians with the least and the greatest, and the ratio to the last program.
    fn print(&self, programs: &[Program]) {
        let mut header = "| figure |".to_owned();
        let mut rule = "|---|".to_owned();
        for program in programs {
            header.push_str(&format!(" {} |", program.label));
            rule.push_str("---|");
        }
        println!("{header}\n{rule}");
        for figure in &self.order {
            let mut line = format!("| {figure} |");
            let of = |program: &Program| {
                let mut values = self
                    .figures
                    .get(&(figure.clone(), program.label.clone()))?
                    .clone();
                values.sort_unstable_by(f64::total_cmp);
                Some((
                    values[values.len() / 2],
                    values[0],
                    values[values.len() - 1],
                ))
            };
            let base = programs.last().and_then(of);
            for program in programs {
                let Some((median, least, greatest)) = of(program) else {
                    line.push_str(" - |");
                    continue;
                };
                line.push_str(&format!(" {median:.2} ({least:.2}–{greatest:.2})"));
                if let Some((base, ..)) = base
                    && programs.len() > 1
                {
                    line.push_str(&format!(" ×{:.2}", median / base));
                }
                line.push_str(" |");
            }
            println!("{line}");
        }
    }
}
