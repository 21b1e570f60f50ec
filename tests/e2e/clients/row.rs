//! A row of the table: what a client is, what is expected of it, and how that is judged.
//!
//! A client runs once a listener. Where it works, the real value arrived in its field, nothing of
//! the way came with it, and the client has its answer. Where it does not, it says so, and nothing
//! went through the vault or past it.

use std::sync::LazyLock;

use serde_json::Value;
use tokio::sync::Semaphore;

use super::rows::ROWS;
use super::stage::{Listener, REAL, Stage, Upstream, fixture};
use super::table;
use super::tap::Opening;
use crate::support::clients::{Said, project_file, reveals};

/// How many clients run at a time, whatever the machine: some of them are large.
static TURNS: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(3));

/// Where a client's version is found.
#[derive(Clone, Copy, Debug)]
pub(super) enum Version {
    /// In `Cargo.lock`.
    Cargo(&'static str),
    /// This machine's: what the command prints. The table's is that of the machine that wrote it.
    Machine(&'static [&'static str]),
    /// In the fixture's `package.json`.
    Npm(&'static [&'static str]),
    /// In the fixture's `requirements.txt`.
    Python(&'static str),
}

/// What is expected over one listener.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome {
    Works,
    /// It fails, and what it says has this in it.
    Fails(&'static str),
    /// It has its answer, but signs with its key instead of sending it.
    Signs,
}

/// One client and what is expected of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) version: Version,
    /// The variable with the sealed token.
    pub(super) secret: &'static str,
    /// The names of the origin; the first is the one that receives the secret.
    pub(super) hosts: &'static [&'static str],
    /// The field that the real value arrives in; `Basic USER` is such a credential of a user.
    pub(super) field: &'static str,
    /// What the client prints when it has its answer.
    pub(super) answer: &'static str,
    pub(super) plain: Outcome,
    pub(super) tls: Outcome,
    pub(super) note: &'static str,
}

impl Row {
    /// Describes a client that works over both listeners and sends the secret in `X-Api-Key`.
    pub(super) const fn of(name: &'static str, version: Version) -> Self {
        Self {
            name,
            version,
            secret: "CLIENT_KEY",
            hosts: &["api.clients.test"],
            field: "x-api-key: {}",
            answer: "ok",
            plain: Outcome::Works,
            tls: Outcome::Works,
            note: "",
        }
    }

    /// Says what the client says when it cannot use the TLS listener.
    pub(super) const fn no_tls(mut self, says: &'static str) -> Self {
        self.tls = Outcome::Fails(says);
        self
    }

    /// Says what the client says when it can use neither.
    pub(super) const fn never(mut self, says: &'static str) -> Self {
        (self.plain, self.tls) = (Outcome::Fails(says), Outcome::Fails(says));
        self
    }

    /// Says that the key signs and never travels.
    pub(super) const fn signs(mut self) -> Self {
        (self.plain, self.tls) = (Outcome::Signs, Outcome::Signs);
        self
    }

    pub(super) const fn note(mut self, note: &'static str) -> Self {
        self.note = note;
        self
    }

    /// Says where the secret is, whom it is for, and where it arrives.
    pub(super) const fn secret(
        mut self,
        secret: &'static str,
        hosts: &'static [&'static str],
        field: &'static str,
    ) -> Self {
        (self.secret, self.hosts, self.field) = (secret, hosts, field);
        self
    }

    pub(super) const fn field(mut self, field: &'static str) -> Self {
        self.field = field;
        self
    }

    pub(super) const fn answer(mut self, answer: &'static str) -> Self {
        self.answer = answer;
        self
    }

    /// Runs the client over both listeners, judges it, and compares it with its line of the table.
    pub(super) async fn check<O: Into<Upstream>>(
        &self,
        origin: impl AsyncFn() -> O,
        client: impl AsyncFn(&Stage) -> Said,
    ) {
        let _turn = TURNS.acquire().await.expect("a turn");
        let mut cells = Vec::new();
        let mut first = Vec::new();
        for listener in [Listener::Plain, Listener::Tls] {
            let stage = Stage::set(self, listener, origin().await).await;
            let said = client(&stage).await;
            let openings = stage.openings();
            cells.push(self.judge(&stage, &said, &openings));
            if listener == Listener::Plain {
                // Some clients call others for other ends, such as Codex git.
                first = openings;
                first.retain(|one| one.first_line.contains(self.hosts[0]));
            }
        }
        table::settle(self, &cells, &first);
    }

    /// Judges one run and returns its cell.
    fn judge(&self, stage: &Stage, said: &Said, openings: &[Opening]) -> String {
        let what = format!("{} over {:?}", self.name, stage.listener);
        let outcome = match stage.listener {
            Listener::Plain => self.plain,
            Listener::Tls => self.tls,
        };
        stage.expect_secret_kept(&what, said);
        let told = format!("{}\n{}", said.stdout, said.stderr);
        match outcome {
            Outcome::Works => {
                said.expect_success(&what);
                assert!(said.stdout.contains(self.answer), "{what}: {told}");
                stage.expect_arrived(&what, self.field);
                assert!(!openings.is_empty(), "{what}: not through the proxy");
                how(stage.listener, openings)
            }
            Outcome::Fails(says) => {
                assert_ne!(said.code, Some(0), "{what} works: {told}");
                assert!(told.contains(says), "{what}: {told}");
                stage.expect_nothing(&what);
                "fails".to_owned()
            }
            Outcome::Signs => {
                said.expect_success(&what);
                assert!(said.stdout.contains(self.answer), "{what}: {told}");
                let bytes = stage.origin.bytes();
                assert!(
                    !bytes.is_empty() && !reveals(&bytes, REAL),
                    "{what}: {told}"
                );
                stage.expect_kept_apart(&what, &bytes);
                "no secret: `secret_signs`".to_owned()
            }
        }
    }
}

/// Tells how a client that works speaks to the proxy.
fn how(listener: Listener, openings: &[Opening]) -> String {
    let any = |test: fn(&Opening) -> bool| openings.iter().any(test);
    let text = match listener {
        Listener::Tls if any(|one| !one.is_tls) => "works, without TLS to the proxy",
        Listener::Tls if any(|one| !one.has_sni) => "works, without SNI",
        Listener::Plain | Listener::Tls => "works",
    };
    text.to_owned()
}

/// Returns the row of a client.
pub(super) fn row(name: &str) -> &'static Row {
    let mut found = ROWS.iter().filter(|row| row.name == name);
    found.next().unwrap_or_else(|| panic!("no row of {name}"))
}

/// Returns a version of the fixture's `package.json`; an alias has it at its end.
pub(super) fn npm_version(name: &str) -> String {
    let text = std::fs::read_to_string(fixture("package.json")).expect("package.json");
    let json: Value = serde_json::from_str(&text).expect("JSON");
    let version = ["dependencies", "optionalDependencies"]
        .iter()
        .find_map(|kind| json[kind][name].as_str())
        .unwrap_or_else(|| panic!("{name} is not in package.json"));
    version.rsplit('@').next().unwrap_or(version).to_owned()
}

impl Version {
    /// Returns the version that this machine has.
    pub(super) fn read(self) -> String {
        match self {
            Self::Cargo(name) => {
                let text = std::fs::read_to_string(project_file("Cargo.lock")).expect("a lock");
                let head = format!("name = \"{name}\"\nversion = \"");
                let (_, rest) = text.split_once(&head).expect("the package");
                rest.split('"').next().expect("a version").to_owned()
            }
            Self::Machine(command) => {
                let output = std::process::Command::new(command[0])
                    .args(&command[1..])
                    .output()
                    .expect("the client runs");
                let text = [output.stdout, output.stderr].concat();
                first_number(&String::from_utf8_lossy(&text))
            }
            Self::Npm(names) => {
                let first = npm_version(names[0]);
                let more = names[1..].iter().map(|name| {
                    let node = name.trim_end_matches(|c: char| c.is_ascii_digit());
                    format!(", {node} {}", npm_version(name))
                });
                std::iter::once(first).chain(more).collect()
            }
            Self::Python(name) => {
                let path = fixture("requirements.txt");
                let text = std::fs::read_to_string(path).expect("requirements.txt");
                let version = text
                    .lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix("=="));
                version
                    .unwrap_or_else(|| panic!("{name} is not in requirements.txt"))
                    .to_owned()
            }
        }
    }

    /// Tells whether every machine has the same.
    pub(super) fn is_pinned(self) -> bool {
        !matches!(self, Self::Machine(_))
    }
}

/// Returns the first run of digits and dots in what a program says of its version.
fn first_number(text: &str) -> String {
    let start = text
        .find(|c: char| c.is_ascii_digit())
        .unwrap_or(text.len());
    let rest = &text[start..];
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
    rest[..end.unwrap_or(rest.len())].to_owned()
}
