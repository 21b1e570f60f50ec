//! Real programs as clients: where they are, how they are run to their end, and where a secret
//! that they must not have is looked for.
//!
//! A program runs with the variables that the test gives and no other, so that what is set on this
//! machine changes nothing.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use tokio::process::Command;

use super::{contains, missing};

/// How long a client may take: some of them start slowly on a machine with much to do.
const CLIENT_DEADLINE: Duration = Duration::from_mins(2);

/// Returns a file of the project by its path from the top.
pub(crate) fn project_file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Finds Claude Code where tests/prepare.sh installs it.
pub(crate) fn claude() -> Option<PathBuf> {
    let path = project_file("tests/fixtures/clients/node_modules/.bin/claude");
    if !path.exists() {
        missing("Claude Code is not installed, tests/prepare.sh does that");
        return None;
    }
    Some(path)
}

/// What a program said.
pub(crate) struct Said {
    /// Its exit code; none where a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    /// Fails the test unless the program ended well.
    pub(crate) fn expect_success(&self, what: &str) {
        let Self {
            code,
            stdout,
            stderr,
        } = self;
        assert_eq!(*code, Some(0), "{what}:\n{stdout}\n{stderr}");
    }
}

/// Prepares a program that has a search path, a home, and no other variable; it works in its home.
pub(crate) fn client(program: impl AsRef<OsStr>, home: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("HOME", home).current_dir(home);
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command
}

/// Runs a program to its end, with nothing to read on its stdin.
pub(crate) async fn run(what: &str, command: &mut Command) -> Said {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    let output = tokio::time::timeout(CLIENT_DEADLINE, child.wait_with_output()).await;
    let output = output
        .unwrap_or_else(|_elapsed| panic!("timed out: {what}"))
        .expect("output");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    Said {
        code: output.status.code(),
        stdout,
        stderr,
    }
}

/// Tells whether a secret stands in bytes: as it is, or in Base64 at any offset.
pub(crate) fn reveals(bytes: &[u8], secret: &str) -> bool {
    let encoded = (0..3).flat_map(|offset| {
        let padded = [&b"~~~"[..offset], secret.as_bytes()].concat();
        // The first and last characters also depend on what stands beside the secret.
        let inner = |text: String| text[4..text.len() - 2].to_owned();
        [
            inner(STANDARD_NO_PAD.encode(&padded)),
            inner(URL_SAFE_NO_PAD.encode(&padded)),
        ]
    });
    contains(bytes, secret) || encoded.into_iter().any(|text| contains(bytes, text))
}

/// Returns every file under a folder with what it holds.
pub(crate) fn files_under(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let kind = std::fs::symlink_metadata(&path)
                .expect("an entry")
                .file_type();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                let bytes = std::fs::read(&path).expect("a file");
                files.push((path, bytes));
            }
        }
    }
    files
}

/// Fails the test if a file under a folder holds the secret.
pub(crate) fn expect_not_under(folder: &Path, secret: &str) {
    for (path, bytes) in files_under(folder) {
        assert!(
            !reveals(&bytes, secret),
            "{} holds the secret",
            path.display()
        );
    }
}
