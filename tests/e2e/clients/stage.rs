//! One run of a client: a vault, an origin, a session, and the variables that `run` would set.
//!
//! The client gets a search path, a home of its own, the sealed token and the block of
//! `client_env`, and nothing else of this machine's environment.

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::PathBuf;

use oshu_vault::client_env::{
    Files, PRELOAD, ProxyUrl, bundle, client_env, needs_preload, trust_store, wgetrc,
};
use oshu_vault_sdk::{CreateSession, CreatedSession};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use super::row::Row;
use super::tap::{Opening, Tap};
use crate::support::clients::{Said, client, project_file, reveals, run};
use crate::support::{H2Origin, Origin, Vault, basic, contains, missing, show};

/// The real value: text that no encoding changes, so that a search for it misses nothing.
pub(super) const REAL: &str = "sk-real-CANARY-0123456789-abcdefghijklmnopqrstuvwxyz";
/// Node as the rows name it, by its folder among the packages of the fixture.
pub(super) const NODE: &str = "node20";
/// Where Debian and its children keep the roots in one file.
const SYSTEM_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Which of the two listeners the client's variables name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listener {
    Plain,
    Tls,
}

/// An origin of either protocol.
pub(super) enum Upstream {
    One(Origin),
    Two(H2Origin),
}

impl From<Origin> for Upstream {
    fn from(origin: Origin) -> Self {
        Self::One(origin)
    }
}

impl From<H2Origin> for Upstream {
    fn from(origin: H2Origin) -> Self {
        Self::Two(origin)
    }
}

impl Upstream {
    fn addr(&self) -> SocketAddr {
        match self {
            Self::One(origin) => origin.addr(),
            Self::Two(origin) => origin.addr(),
        }
    }

    /// Returns what came, raw; of HTTP/2 the fields, each on a line, and the bodies.
    pub(super) fn bytes(&self) -> Vec<u8> {
        match self {
            Self::One(origin) => origin.bytes(),
            Self::Two(origin) => {
                let mut bytes = Vec::new();
                for request in origin.requests() {
                    bytes.extend(format!("{} {}\r\n", request.method, request.path).bytes());
                    for (name, value) in request.fields.iter().chain(&request.trailers) {
                        bytes.extend(format!("{name}: {value}\r\n").bytes());
                    }
                    bytes.extend(request.body);
                }
                bytes
            }
        }
    }

    /// Forgets what was recorded.
    pub(super) fn forget(&self) {
        match self {
            Self::One(origin) => origin.forget(),
            Self::Two(_) => panic!("every run over HTTP/2 has an origin of its own"),
        }
    }
}

/// Everything around one run.
pub(super) struct Stage {
    pub(super) origin: Upstream,
    pub(super) vault: Vault,
    session: CreatedSession,
    pub(super) listener: Listener,
    tap: Tap,
    secret: &'static str,
    host: &'static str,
    folder: TempDir,
    block: Vec<(&'static str, OsString)>,
}

impl Stage {
    /// Sets the stage for a row. The session may reach the row's hosts and no other.
    pub(super) async fn set(row: &Row, listener: Listener, origin: impl Into<Upstream>) -> Self {
        let known = |request: CreateSession| match row.secret {
            // The catalogue has no host for this one.
            "CLIENT_KEY" => request.secret_hosts([row.hosts[0]]),
            _ => request,
        };
        let request = CreateSession::new().secret(row.secret, REAL);
        let request = known(request).allowed_egress(row.hosts.iter().copied());
        Self::with(row, listener, origin, &request).await
    }

    /// Sets the stage with a session of the test's own.
    pub(super) async fn with(
        row: &Row,
        listener: Listener,
        origin: impl Into<Upstream>,
        request: &CreateSession,
    ) -> Self {
        let origin = origin.into();
        let mut builder = Vault::builder();
        for host in row.hosts {
            builder = builder.resolve(host, origin.addr());
        }
        let vault = builder.start().await;
        let session = vault.session(request).await;
        let tap = Tap::before(match listener {
            Listener::Plain => vault.plain_addr(),
            Listener::Tls => vault.tls_addr(),
        })
        .await;
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["home", "tmp", "vault"] {
            std::fs::create_dir(folder.path().join(name)).expect("a folder");
        }
        let mut stage = Self {
            origin,
            vault,
            session,
            listener,
            tap,
            secret: row.secret,
            host: row.hosts[0],
            folder,
            block: Vec::new(),
        };
        stage.block = stage.variables(&stage.proxy_url());
        stage
    }

    /// Returns the URL that the client's variables name.
    pub(super) fn proxy_url(&self) -> String {
        let (id, token, port) = (
            &self.session.session_id,
            &self.session.token,
            self.tap.port(),
        );
        match self.listener {
            Listener::Plain => format!("http://{id}:{token}@127.0.0.1:{port}"),
            Listener::Tls => format!("https://{id}:{token}@localhost:{port}"),
        }
    }

    /// Lays out the files that `run` writes and returns the variables that it sets.
    fn variables(&self, url: &str) -> Vec<(&'static str, OsString)> {
        let write = |name: &str, bytes: &[u8]| {
            let path = self.folder.path().join("vault").join(name);
            std::fs::write(&path, bytes).expect("a file");
            path
        };
        let system = std::fs::read_to_string(SYSTEM_BUNDLE).ok();
        let roots = bundle(system.as_deref(), self.vault.ca_pem());
        let path = write("bundle.pem", roots.as_bytes());
        let old_node = needs_preload(&super::row::npm_version(NODE));
        let files = Files {
            ca: write("ca.pem", self.vault.ca_pem().as_bytes()),
            wgetrc: write("wgetrc", wgetrc(&path).as_encoded_bytes()),
            trust_store: Some(write("cacerts", &trust_store(&roots))),
            preload: old_node.then(|| write("preload.cjs", PRELOAD.as_bytes())),
            bundle: path,
        };
        let proxy = ProxyUrl::parse(url).expect("a proxy's URL");
        client_env(&proxy, &files, |_name| None).set
    }

    /// Prepares a program with the whole block and the sealed token in the secret's variable.
    pub(super) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = client(program, &self.home());
        command
            .env("TMPDIR", self.folder.path().join("tmp"))
            .envs(self.block.iter().map(|(name, value)| (name, value)))
            .env(self.secret, self.sealed());
        command
    }

    /// Prepares a program of the fixture: its interpreter, then its file.
    pub(super) fn program(&self, interpreter: impl AsRef<OsStr>, file: &str) -> Command {
        let mut command = self.command(interpreter);
        command
            .arg(fixture("programs").join(file))
            .env("PYTHONPATH", fixture("python"))
            .env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }

    /// Puts another spelling of the proxy's URL into the variables.
    pub(super) fn spell(&mut self, before: &str, url: &str) {
        let same = self.block.iter_mut().filter(|(_, value)| value == before);
        same.for_each(|(_, value)| *value = url.into());
    }

    pub(super) fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// Writes a file into the client's home.
    pub(super) fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.home().join(path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(&path, text).expect("a file");
        path
    }

    /// Returns the address of a path at the origin, by the name that only the vault resolves.
    pub(super) fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.host)
    }

    pub(super) fn sealed(&self) -> &str {
        &self.session.sealed_secrets[self.secret]
    }

    /// Returns a file of the block, by its variable.
    pub(super) fn variable(&self, name: &str) -> &OsStr {
        let mut found = self.block.iter().filter(|(known, _)| *known == name);
        &found.next().expect("a variable of the block").1
    }

    /// Returns how the client opened its connections to the proxy, in their order.
    pub(super) fn openings(&self) -> Vec<Opening> {
        let kept = self.tap.kept();
        kept.iter().filter_map(|bytes| Opening::of(bytes)).collect()
    }

    /// Tells whether a connection to the proxy began with this text.
    pub(super) fn said_first(&self, text: &str) -> bool {
        let kept = self.tap.kept();
        kept.iter().any(|bytes| bytes.starts_with(text.as_bytes()))
    }

    /// Fails unless the real value came in this field, `{}` standing for it, and nothing came
    /// that the proxy should have kept.
    pub(super) fn expect_arrived(&self, what: &str, field: &str) {
        let bytes = self.origin.bytes();
        let seen = String::from_utf8_lossy(&bytes);
        let (name, value) = field.split_once(": ").expect("a field");
        let value = match value.split_once("Basic ") {
            Some(("", user)) => basic(user, REAL),
            _ => value.replace("{}", REAL),
        };
        let arrived = seen.split("\r\n").any(|line| {
            line.split_once(':').is_some_and(|(other, found)| {
                other.eq_ignore_ascii_case(name) && found.trim() == value
            })
        });
        assert!(arrived, "{what}: no {field} in {}", start(&bytes));
        self.expect_kept_apart(what, &bytes);
    }

    /// Fails if the origin saw anything of the way to it.
    pub(super) fn expect_kept_apart(&self, what: &str, bytes: &[u8]) {
        let lower = bytes.to_ascii_lowercase();
        assert!(
            !contains(&lower, "proxy-authorization") && !contains(&lower, "proxy-connection"),
            "{what}: {}",
            start(bytes)
        );
        for mine in [self.sealed(), &self.session.session_id, &self.session.token] {
            assert!(!reveals(bytes, mine), "{what}: {mine} in {}", start(bytes));
        }
    }

    /// Fails if the run left the real value with the client.
    pub(super) fn expect_secret_kept(&self, what: &str, said: &Said) {
        for text in [&said.stdout, &said.stderr] {
            assert!(!reveals(text.as_bytes(), REAL), "{what}: {text}");
        }
        crate::support::clients::expect_not_under(&self.home(), REAL);
    }

    /// Fails if anything went through the vault or past it.
    pub(super) fn expect_nothing(&self, what: &str) {
        let bytes = self.origin.bytes();
        assert!(bytes.is_empty(), "{what}: {}", start(&bytes));
        let passed: Vec<Value> = self.vault.audit();
        let passed = passed.iter().filter(|line| line["event"] == "exchange");
        assert_eq!(passed.count(), 0, "{what}: an exchange");
    }
}

/// Runs a program on a stage.
pub(super) async fn finish(command: &mut Command) -> Said {
    run("the client", command).await
}

/// Returns a file beside the lists of the fixture.
pub(super) fn fixture(path: &str) -> PathBuf {
    project_file("tests/fixtures/clients").join(path)
}

/// Finds what tests/prepare.sh installs into the fixture.
pub(super) fn installed(path: &str) -> Option<PathBuf> {
    let found = fixture(path);
    if !found.exists() {
        missing(&format!(
            "{path} is not installed, tests/prepare.sh does that"
        ));
        return None;
    }
    Some(found)
}

/// Finds a node of the fixture by its folder.
pub(super) fn node(folder: &str) -> Option<PathBuf> {
    installed(&format!("node_modules/{folder}/bin/node"))
}

/// Shows what came first; some of the clients send very much.
fn start(bytes: &[u8]) -> String {
    show(&bytes[..bytes.len().min(4096)])
}
