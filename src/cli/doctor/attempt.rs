//! Real requests by real clients, with the environment that they would have.
//!
//! Each client asks for one URL and tells the status of the answer; any status will do, because it
//! came through the tunnel. What a client says is quoted in one line at most, without the proxy's
//! credential. Called by `doctor` for clients that are installed and cheap to run.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::table::Attempt;
use super::world::World;
use crate::cli::Exit;
use crate::cli::folder::Folder;

/// How long a client may take: a JVM or npm starts slowly on a machine with much to do.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);
/// What stands before the status in what our own scripts print.
const MARK: &str = "oshu-vault-status ";
/// The longest line that is quoted, in characters.
const LINE_LIMIT_CHARS: usize = 240;

const JAVA: &str = r#"import java.net.*;

class Probe {
  public static void main(String[] arguments) throws Exception {
    Authenticator.setDefault(new Authenticator() {
      protected PasswordAuthentication getPasswordAuthentication() {
        String password = System.getProperty("https.proxyPassword", "");
        return new PasswordAuthentication(
            System.getProperty("https.proxyUser", ""), password.toCharArray());
      }
    });
    HttpURLConnection connection = (HttpURLConnection) new URL(arguments[0]).openConnection();
    System.out.println("oshu-vault-status " + connection.getResponseCode());
  }
}
"#;
const URLLIB: &str = "import sys, urllib.request as u, urllib.error as e
try: s = u.urlopen(sys.argv[1], timeout=20).status
except e.HTTPError as error: s = error.code
print('oshu-vault-status', s)";
const REQUESTS: &str = "import sys, requests
print('oshu-vault-status', requests.get(sys.argv[1], timeout=20).status_code)";
const HTTPX: &str = "import sys, httpx
print('oshu-vault-status', httpx.get(sys.argv[1], timeout=20).status_code)";
const AIOHTTP: &str = "import sys, asyncio, aiohttp
async def ask():
    async with aiohttp.ClientSession(trust_env=True) as session:
        async with session.get(sys.argv[1]) as answer: return answer.status
print('oshu-vault-status', asyncio.run(ask()))";
const NODE: &str = "const url = process.argv[1];
const fail = (what) => (e) => {
  console.error(`${what}: ${(e.cause && (e.cause.message || e.cause.code)) || e.message}`);
  process.exit(1);
};
const over = (answer) => { answer.resume(); console.log('oshu-vault-status', answer.statusCode); };
const ask = () => require('https').get(url, over).on('error', fail('https'));
if (globalThis.fetch) fetch(url).then((r) => r.text()).then(ask).catch(fail('fetch'));
else ask();";

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// An answer came, with this status where the client tells it.
    Answered(Option<u16>),
    /// None came, and this is what the client said.
    Failed(String),
    /// The client cannot be run as it is installed.
    Untried,
}

/// What the clients are run with.
pub(super) struct Attempts<'a> {
    pub(super) world: &'a World,
    /// `https://HOST[:PORT]/`.
    pub(super) url: String,
    pub(super) python: Option<PathBuf>,
    /// Holds scripts, and takes what a client leaves behind.
    pub(super) folder: Folder,
}

impl Attempts<'_> {
    /// Runs one client.
    pub(super) async fn run(&self, attempt: Attempt) -> Result<Outcome, Exit> {
        let Some(mut command) = self.command(attempt)? else {
            return Ok(Outcome::Untried);
        };
        command.env_clear().envs(&self.world.variables);
        command
            .env("LC_ALL", "C")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("NO_COLOR", "1");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let ended = timeout(ATTEMPT_TIMEOUT, command.kill_on_drop(true).output()).await;
        let seconds = ATTEMPT_TIMEOUT.as_secs();
        Ok(match ended {
            Err(_elapsed) => Outcome::Failed(format!("no answer within {seconds} seconds")),
            Ok(Err(error)) => Outcome::Failed(format!("it cannot be run: {}", error.kind())),
            Ok(Ok(output)) => match judge(attempt, &output) {
                Outcome::Failed(text) => Outcome::Failed(self.line(&text)),
                judged => judged,
            },
        })
    }

    fn command(&self, attempt: Attempt) -> Result<Option<Command>, Exit> {
        let url = self.url.as_str();
        let python = |script: &'static str| {
            let mut command = Command::new(self.python.as_ref()?);
            command.args(["-c", script, url]);
            Some(command)
        };
        let program = |name: &str, arguments: &[&str]| {
            let mut command = Command::new(name);
            command.args(arguments);
            Some(command)
        };
        // The script is the same for both: neither has a place for arguments that the other has.
        let quoted = serde_json::Value::from(url).to_string();
        let fetch = format!(
            "const answer = await fetch({quoted}); console.log('oshu-vault-status', answer.status);"
        );
        Ok(match attempt {
            Attempt::Aiohttp => python(AIOHTTP),
            Attempt::Bun => program("bun", &["-e", &fetch]),
            Attempt::Curl => program(
                "curl",
                &[
                    "-sS",
                    "-m",
                    "20",
                    "-o",
                    "/dev/null",
                    "-w",
                    "oshu-vault-status %{http_code}\n",
                    url,
                ],
            ),
            Attempt::Deno => program("deno", &["eval", "--quiet", &fetch]),
            // No helper is asked for a password that an answer might want.
            Attempt::Git => program("git", &["-c", "credential.helper=", "ls-remote", url]),
            Attempt::Httpx => python(HTTPX),
            Attempt::Java => {
                let script = self.folder.write("Probe.java", JAVA.as_bytes())?;
                let mut command = Command::new("java");
                command.arg(script).arg(url);
                Some(command)
            }
            Attempt::Node => program("node", &["-e", NODE, url]),
            Attempt::Npm => program(
                "npm",
                &[
                    "ping",
                    "--registry",
                    url,
                    "--fetch-retries",
                    "0",
                    "--loglevel",
                    "error",
                ],
            ),
            Attempt::Pip => self.python.as_ref().map(|python| {
                let mut command = Command::new(python);
                command.args(["-m", "pip", "download", "--no-input", "--no-deps"]);
                command.args(["--disable-pip-version-check", "--no-cache-dir"]);
                command.args(["--retries", "0", "--timeout", "20", "--dest"]);
                command.arg(self.folder.path("pip"));
                // No package has this name; what comes is no package either.
                command.arg(format!("{url}oshu_vault_probe-1-py3-none-any.whl"));
                command
            }),
            Attempt::Requests => python(REQUESTS),
            Attempt::Urllib => python(URLLIB),
            Attempt::Wget => program(
                "wget",
                &["-q", "-S", "-O", "/dev/null", "-t", "1", "-T", "20", url],
            ),
        })
    }

    /// Takes out of a line what is not for a terminal or not for anyone.
    fn line(&self, text: &str) -> String {
        let plain = text.chars().filter(|one| !one.is_control());
        let plain: String = plain.take(LINE_LIMIT_CHARS).collect();
        self.world.redacted(plain.trim())
    }
}

/// Tells from what a client said whether it got an answer through the tunnel.
fn judge(attempt: Attempt, output: &Output) -> Outcome {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let has = |parts: &[&str]| parts.iter().any(|part| stderr.contains(part));
    let ended_well = output.status.success();
    let answered = match attempt {
        // The answer of a server that has no such repository, or wants a password for it.
        Attempt::Git => {
            let of_server = [
                "not valid: is this a git repository",
                "not found",
                "could not read",
            ];
            ended_well || (has(&of_server) && !has(&["CONNECT", "SSL", "certificate"]))
        }
        Attempt::Npm => ended_well || has(&["code E4", "code E5"]) && !has(&["code E407"]),
        // An answer that is no package, or a status that is no success.
        Attempt::Pip => ended_well || has(&[".whl is invalid", "HTTP error "]),
        // The lines of the answer's head; the tunnel's is not among them.
        Attempt::Wget => stderr.lines().any(|line| line.starts_with("  HTTP/")),
        Attempt::Java if has(&["jdk.compiler", "Could not find or load main class"]) => {
            return Outcome::Untried;
        }
        _ => {
            let mut lines = stdout
                .lines()
                .filter_map(|line| line.trim().strip_prefix(MARK));
            let status = lines.next().and_then(|status| status.parse::<u16>().ok());
            return match status.filter(|status| ended_well && *status >= 200) {
                Some(status) => Outcome::Answered(Some(status)),
                None => Outcome::Failed(telling(attempt, &stderr)),
            };
        }
    };
    if answered {
        Outcome::Answered(None)
    } else {
        Outcome::Failed(telling(attempt, &stderr))
    }
}

/// Picks the line that says most.
fn telling(attempt: Attempt, stderr: &str) -> String {
    let lines = || {
        stderr
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
    };
    let starts: &[&str] = match attempt {
        Attempt::Curl => &["curl: "],
        Attempt::Git => &["fatal: "],
        Attempt::Pip => &["pip._vendor.requests", "ERROR: "],
        Attempt::Wget => &["ERROR: ", "Proxy ", "Failed ", "failed"],
        Attempt::Java => &["Exception in thread", "Caused by"],
        Attempt::Npm => &["npm error errno", "npm error request", "npm error "],
        Attempt::Bun | Attempt::Deno => &["error: "],
        _ => &[],
    };
    let found = starts
        .iter()
        .find_map(|start| lines().find(|line| line.starts_with(start)));
    found
        .or_else(|| lines().next_back())
        .unwrap_or("it said nothing")
        .to_owned()
}

/// Finds a program on the search path of the environment.
pub(super) fn find_program(world: &World, name: &str) -> Option<PathBuf> {
    let path: OsString = world.variable("PATH")?.clone();
    let is_program = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|path| is_program(path))
}

/// Tells which of the modules a Python can import.
pub(super) async fn python_modules(world: &World, python: &Path, names: &[&str]) -> Vec<String> {
    let script = "import importlib.util as u, sys
for name in sys.argv[1:]:
    if u.find_spec(name): print(name)";
    let mut command = Command::new(python);
    command
        .arg("-c")
        .arg(script)
        .args(names)
        .env_clear()
        .envs(&world.variables);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let told = timeout(ATTEMPT_TIMEOUT, command.output()).await;
    let told = told
        .ok()
        .and_then(Result::ok)
        .map(|told| told.stdout)
        .unwrap_or_default();
    String::from_utf8_lossy(&told)
        .lines()
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    fn said(code: i32, stdout: &str, stderr: &str) -> Output {
        Output {
            status: ExitStatus::from_raw(code << 8),
            stdout: stdout.into(),
            stderr: stderr.into(),
        }
    }

    /// A client, its exit code, what it says on both streams, and what is made of that: the status,
    /// or the line that is quoted; an empty one is of a client that cannot be run.
    type Case = (
        Attempt,
        i32,
        &'static str,
        &'static str,
        Result<Option<u16>, &'static str>,
    );
    const CASES: &[Case] = &[
        (
            Attempt::Curl,
            0,
            "oshu-vault-status 200\n",
            "",
            Ok(Some(200)),
        ),
        (
            Attempt::Curl,
            60,
            "oshu-vault-status 000\n",
            "curl: (60) no root\nMore details here: x\n",
            Err("curl: (60) no root"),
        ),
        (
            Attempt::Requests,
            1,
            "",
            "Traceback\n  x\nrequests.exceptions.SSLError: y\n",
            Err("requests.exceptions.SSLError: y"),
        ),
        (
            Attempt::Urllib,
            1,
            "oshu-vault-status 200",
            "",
            Err("it said nothing"),
        ),
        (
            Attempt::Git,
            128,
            "",
            "fatal: https://x/info/refs not valid: is this a git repository?\n",
            Ok(None),
        ),
        (
            Attempt::Git,
            128,
            "",
            "fatal: unable to access 'x': CONNECT tunnel failed, response 407",
            Err("fatal: unable to access 'x': CONNECT tunnel failed, response 407"),
        ),
        (Attempt::Wget, 0, "", "  HTTP/1.1 200 OK\n", Ok(None)),
        (
            Attempt::Wget,
            5,
            "",
            "ERROR: cannot verify x\nTo connect insecurely",
            Err("ERROR: cannot verify x"),
        ),
        (
            Attempt::Pip,
            1,
            "",
            "ERROR: Wheel 'x' located at /tmp/x.whl is invalid.",
            Ok(None),
        ),
        (
            Attempt::Pip,
            2,
            "",
            "ERROR: Exception:\n  x\npip._vendor.requests.exceptions.SSLError: y",
            Err("pip._vendor.requests.exceptions.SSLError: y"),
        ),
        (
            Attempt::Java,
            1,
            "",
            "module jdk.compiler not found",
            Err(""),
        ),
    ];

    #[test]
    fn clients_are_taken_at_their_word() {
        for (attempt, code, stdout, stderr, expected) in CASES {
            let expected = match expected {
                Ok(status) => Outcome::Answered(*status),
                Err("") => Outcome::Untried,
                Err(line) => Outcome::Failed((*line).to_owned()),
            };
            let judged = judge(*attempt, &said(*code, stdout, stderr));
            assert_eq!(judged, expected, "{stderr}");
        }
    }
}
