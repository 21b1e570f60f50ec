//! The real executable: its arguments, its environment, its files, its output and its exit codes.
//!
//! Nothing of the machine's environment reaches it: each test has a home directory of its own.
//! Every line of `serve`'s stdout is parsed as JSON, in every test.

#[cfg(target_os = "linux")]
mod allocator;
mod configuration;
mod crowd;
mod doctor;
mod doors;
mod env;
mod floods;
mod gateway;
mod lifecycle;
mod listeners;
mod rotation;
mod soak;
mod store;
mod verbs;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;

use crate::support::{Answer, Conn, contains, within};

/// Stands for every secret of these tests; it must never be printed.
const CANARY: &str = "canary-0123456789abcdef";

/// A home directory, and what is run in it.
pub(crate) struct Home(TempDir);

/// How a program ended, and what it said.
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ended {
    /// Fails the test unless the exit code is this one and no secret was printed.
    #[track_caller]
    fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        for text in [&self.stdout, &self.stderr] {
            assert!(!contains(text.as_bytes(), CANARY), "a secret in: {text}");
        }
        self
    }

    /// Fails the test unless the program failed with this code, printed nothing on stdout, and
    /// said each of these parts on stderr.
    #[track_caller]
    fn complains(self, code: i32, parts: &[&str]) -> Self {
        let ended = self.expect(code);
        assert_eq!(ended.stdout, "");
        for part in parts {
            assert!(ended.stderr.contains(part), "{part} in {}", ended.stderr);
        }
        ended
    }

    /// Returns what was printed on stdout as JSON.
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|_| panic!("JSON: {}", self.stdout))
    }
}

impl Home {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Returns a file of the state directory.
    fn state(&self, name: &str) -> PathBuf {
        self.path(".local/state/oshu-vault").join(name)
    }

    /// Writes a file that only its owner can read, and returns its path.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::write(&path, content).expect("a file");
        mode(&path, 0o600);
        path.display().to_string()
    }

    fn command(&self, line: &[&str], variables: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_oshu-vault"));
        command
            .args(line)
            .env_clear()
            .env("HOME", self.0.path())
            .envs(variables.iter().copied())
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs a command line to its end.
    async fn run(&self, line: &[&str]) -> Ended {
        self.run_with(line, &[], "").await
    }

    /// Runs a command line to its end, with variables and something on stdin.
    async fn run_with(&self, line: &[&str], variables: &[(&str, &str)], input: &str) -> Ended {
        let mut command = self.command(line, variables);
        let mut child = command.stdin(Stdio::piped()).spawn().expect("the program");
        let mut stdin = child.stdin.take().expect("stdin");
        // A program that does not read its input is no failure.
        let _unread = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        Self::ended(&line.join(" "), child).await
    }

    /// Runs a command to its end.
    async fn output(&self, mut command: Command) -> Ended {
        Self::ended("the program", command.spawn().expect("the program")).await
    }

    async fn ended(what: &str, child: Child) -> Ended {
        let output = within(what, child.wait_with_output()).await;
        let output = output.expect("output");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Ended {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// Starts a server with `--dev` on free ports.
    async fn serve_dev(&self, more: &[&str]) -> Server {
        let line = [
            "serve",
            "--dev",
            "--listen=127.0.0.1:0",
            "--tls-listen=127.0.0.1:0",
            "--admin-listen=127.0.0.1:0",
        ];
        self.serve(&[&line, more].concat(), &[]).await
    }

    /// Starts a server and waits until it is ready.
    pub(crate) async fn serve(&self, line: &[&str], variables: &[(&str, &str)]) -> Server {
        Self::start(self.command(line, variables)).await
    }

    /// Starts a server by a command and waits until it is ready.
    async fn start(mut command: Command) -> Server {
        let mut child = command.spawn().expect("the program");
        let stdout = child.stdout.take().expect("stdout");
        let mut stderr = child.stderr.take().expect("stderr");
        let log = Log::default();
        let copy = log.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
                copy.push(&buffer[..count]);
            }
            copy.close();
        });
        let mut lines = BufReader::new(stdout).lines();
        let mut events = Vec::new();
        let ready = loop {
            match next_event(&mut lines).await {
                Some(event) if event["event"] == "ready" => break event,
                Some(event) => events.push(event),
                None => panic!("no server: {}", log.closed().await),
            }
        };
        Server {
            child,
            lines: Some(lines),
            log,
            events,
            ready,
        }
    }
}

/// Reads one line of stdout; it has to be JSON with an event.
async fn next_event(lines: &mut Lines<BufReader<ChildStdout>>) -> Option<Value> {
    let line = within("a line of stdout", lines.next_line())
        .await
        .expect("stdout")?;
    let event: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("JSON: {line}"));
    assert!(event["event"].is_string(), "an event in {event}");
    Some(event)
}

/// A running server.
pub(crate) struct Server {
    child: Child,
    /// What stdout still has to say; none where nobody wants to know.
    lines: Option<Lines<BufReader<ChildStdout>>>,
    log: Log,
    /// What stdout had before the server was ready.
    events: Vec<Value>,
    ready: Value,
}

impl Server {
    fn address(&self, name: &str) -> SocketAddr {
        let text = self.ready[name].as_str();
        text.unwrap_or_else(|| panic!("{name} in {}", self.ready))
            .parse()
            .expect("an address")
    }

    pub(crate) fn plain(&self) -> SocketAddr {
        self.address("listen")
    }

    pub(crate) fn admin(&self) -> SocketAddr {
        self.address("admin_listen")
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.plain())
    }

    /// Returns the key that the first start printed.
    pub(crate) fn api_key(&self) -> String {
        let event = self.events.iter().find(|event| event["event"] == "api_key");
        event.expect("an API key")["api_key"]
            .as_str()
            .expect("a text")
            .to_owned()
    }

    /// Returns how much memory the process has, in KiB.
    fn resident_kib(&self) -> u64 {
        let id = self.child.id().expect("a running server");
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("it runs");
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .expect("a size");
        let number = line
            .split_whitespace()
            .nth(1)
            .and_then(|number| number.parse().ok());
        number.expect("a number")
    }

    /// Returns how many descriptors the process has open.
    fn descriptors(&self) -> usize {
        let id = self.child.id().expect("a running server");
        let open = std::fs::read_dir(format!("/proc/{id}/fd")).expect("it runs");
        open.count()
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.id().expect("a running server");
        let id = Pid::from_raw(id.try_into().expect("an id")).expect("an id");
        kill_process(id, signal).expect("a signal");
    }

    /// Reads and drops what stdout says from here on, so that it never waits for a reader.
    fn ignore_events(&mut self) {
        if let Some(mut lines) = self.lines.take() {
            tokio::spawn(async move { while let Ok(Some(_line)) = lines.next_line().await {} });
        }
    }

    /// Sends a signal, waits for the end, and returns what was printed until then.
    pub(crate) async fn end(mut self, signal: Signal) -> (Option<i32>, Vec<Value>, String) {
        self.signal(signal);
        let mut events = Vec::new();
        if let Some(lines) = &mut self.lines {
            while let Some(event) = next_event(lines).await {
                events.push(event);
            }
        }
        let status = within("the end of the server", self.child.wait())
            .await
            .expect("a status");
        (status.code(), events, self.log.closed().await)
    }

    /// Stops the server; it has to end well.
    async fn stop(self) {
        let (code, _events, log) = self.end(Signal::TERM).await;
        assert_eq!(code, Some(0), "{log}");
    }
}

/// What a server writes on stderr.
#[derive(Clone)]
struct Log {
    text: Arc<Mutex<Vec<u8>>>,
    closed: watch::Sender<bool>,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            text: Arc::default(),
            closed: watch::Sender::new(false),
        }
    }
}

impl Log {
    fn push(&self, bytes: &[u8]) {
        self.text
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend_from_slice(bytes);
        self.closed.send_replace(false);
    }

    fn close(&self) {
        self.closed.send_replace(true);
    }

    fn text(&self) -> String {
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Waits until what was written meets a condition.
    async fn wait(&self, what: &str, met: impl Fn(&str) -> bool) -> String {
        let mut changed = self.closed.subscribe();
        within(what, async {
            loop {
                let text = self.text();
                if met(&text) {
                    return text;
                }
                changed.changed().await.expect("the log lives");
            }
        })
        .await
    }

    /// Waits for the end of stderr and returns all of it.
    async fn closed(&self) -> String {
        let mut closed = self.closed.subscribe();
        let ended = within("the end of stderr", closed.wait_for(|closed| *closed)).await;
        ended.expect("the log lives");
        self.text()
    }
}

/// Connects to a listener.
pub(crate) async fn dial(address: SocketAddr) -> Conn {
    let tcp = within("a connection", TcpStream::connect(address)).await;
    Conn::new(tcp.expect("a connection"))
}

/// Sends bytes over a connection of its own and reads one answer.
pub(crate) async fn exchange(address: SocketAddr, bytes: impl AsRef<[u8]>) -> Answer {
    let mut conn = dial(address).await;
    conn.send(bytes).await;
    conn.answer().await
}

/// Asks a listener for a path.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Answer {
    exchange(
        address,
        format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n"),
    )
    .await
}

/// Returns the permission bits of a file.
fn mode_of(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path)
        .expect("a file")
        .permissions()
        .mode()
        & 0o777
}

fn mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(path, mode).expect("permissions");
}
