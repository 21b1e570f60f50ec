//! Real values, from where `--secret` says they are.
//!
//! Every problem is told at once, by the name of the secret; a value never stands in a message.
//! Called by `run` and `env` before anything is started.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::process::Stdio;

use memchr::memmem;
use tokio::process::Command;
use zeroize::Zeroizing;

use crate::cli::Exit;
use crate::cli::spec::{SecretFlag, SecretFrom};
use crate::secret::Secret;

/// The most bytes that are read of a file or a command; a session takes far less.
const LIMIT_BYTES: usize = 64 * 1024;

/// A secret whose value is known.
#[derive(Debug)]
pub(in crate::cli) struct Known {
    /// What was asked for.
    pub(in crate::cli) flag: SecretFlag,
    /// The real value.
    pub(in crate::cli) value: Secret,
}

/// Tells whether a real value stands in a text.
pub(super) fn holds(text: &OsStr, value: &Secret) -> bool {
    memmem::find(text.as_bytes(), value.expose()).is_some()
}

/// Reads every value, or lists all that cannot be read.
pub(in crate::cli) async fn read(flags: &[SecretFlag]) -> Result<Vec<Known>, Exit> {
    let mut known = Vec::with_capacity(flags.len());
    let mut wrong = Vec::new();
    for flag in flags {
        let value = match &flag.from {
            SecretFrom::Env(name) => variable(&flag.name, name, std::env::var_os(name)),
            SecretFrom::File(path) => file(path),
            SecretFrom::Command(line) => output(line).await,
        };
        let flag = flag.clone();
        match value {
            Ok(value) if value.is_empty() => {
                wrong.push(format!("error: --secret {}: the value is empty", flag.name));
            }
            Ok(value) => known.push(Known { flag, value }),
            Err(why) => wrong.push(format!("error: --secret {}: {why}", flag.name)),
        }
    }
    if wrong.is_empty() {
        Ok(known)
    } else {
        Err(Exit::usage(wrong.join("\n")))
    }
}

fn variable(secret: &str, name: &str, value: Option<OsString>) -> Result<Secret, String> {
    match value {
        Some(value) => Ok(Secret::new(value.into_vec())),
        None if name == secret => Err("the variable is not set".to_owned()),
        None => Err(format!("the variable {name} is not set")),
    }
}

/// Reads a file; one line end after the value is dropped.
fn file(path: &Path) -> Result<Secret, String> {
    let unreadable = |error: std::io::Error| format!("the file cannot be read: {}", error.kind());
    let file = std::fs::File::open(path).map_err(unreadable)?;
    // All of it reserved: a vector that grows leaves copies of a secret behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(LIMIT_BYTES + 2));
    let limit = u64::try_from(LIMIT_BYTES).unwrap_or(u64::MAX);
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() > LIMIT_BYTES {
        return Err("the file has more than 64 KiB".to_owned());
    }
    let value = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let value = value.strip_suffix(b"\r").unwrap_or(value);
    Ok(Secret::new(value.to_vec()))
}

/// Takes what a shell command prints; line ends after it are dropped, as a shell would.
pub(in crate::cli) async fn output(line: &str) -> Result<Secret, String> {
    let mut shell = Command::new("/bin/sh");
    shell
        .arg("-c")
        .arg(line)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let ended = shell.kill_on_drop(true).stdin(Stdio::inherit()).spawn();
    let ended = match ended {
        Ok(child) => child.wait_with_output().await,
        Err(error) => Err(error),
    };
    let output = ended.map_err(|error| format!("the command cannot be run: {}", error.kind()))?;
    let bytes = Zeroizing::new(output.stdout);
    if !output.status.success() {
        return Err(format!("the command failed: {}", output.status));
    }
    if bytes.len() > LIMIT_BYTES {
        return Err("the command printed more than 64 KiB".to_owned());
    }
    let end = bytes.iter().rposition(|byte| !b"\r\n".contains(byte));
    let value = bytes
        .get(..end.map_or(0, |last| last + 1))
        .unwrap_or_default();
    Ok(Secret::new(value.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flag(name: &str, from: SecretFrom) -> SecretFlag {
        SecretFlag {
            name: name.to_owned(),
            from,
            hosts: Vec::new(),
        }
    }

    #[tokio::test]
    async fn values_come_from_files_and_commands() {
        let folder = tempfile::tempdir().unwrap();
        for (content, expected) in [
            ("value", "value"),
            ("value\n", "value"),
            ("value\r\n", "value"),
            ("value\n\n", "value\n"),
            (" value ", " value "),
        ] {
            let path = folder.path().join("file");
            std::fs::write(&path, content).unwrap();
            let known = read(&[flag("A", SecretFrom::File(path))]).await.unwrap();
            assert_eq!(known[0].value.expose(), expected.as_bytes(), "{content:?}");
        }
        let line = SecretFrom::Command("printf 'a\\nb\\n\\n'".to_owned());
        let known = read(&[flag("A", line)]).await.unwrap();
        assert_eq!(known[0].value.expose(), b"a\nb");
        assert!(holds(OsStr::new("xa\nby"), &known[0].value));
        assert!(!holds(OsStr::new("xa\n"), &known[0].value));
    }

    #[tokio::test]
    async fn every_problem_is_told_by_the_name_of_its_secret() {
        let long = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(long.path(), vec![b'x'; LIMIT_BYTES + 1]).unwrap();
        let flags = [
            flag(
                "A_NAME_THAT_NOBODY_SETS",
                SecretFrom::Env("A_NAME_THAT_NOBODY_SETS".into()),
            ),
            flag("B", SecretFrom::Env("ANOTHER_THAT_NOBODY_SETS".into())),
            flag("C", SecretFrom::File("/does/not/exist".into())),
            flag("D", SecretFrom::File(long.path().into())),
            flag("E", SecretFrom::Command("printf canary; exit 3".into())),
            flag("F", SecretFrom::Command("true".into())),
        ];
        let exit = read(&flags).await.unwrap_err();
        let expected = [
            "error: --secret A_NAME_THAT_NOBODY_SETS: the variable is not set",
            "error: --secret B: the variable ANOTHER_THAT_NOBODY_SETS is not set",
            "error: --secret C: the file cannot be read: entity not found",
            "error: --secret D: the file has more than 64 KiB",
            "error: --secret E: the command failed: exit status: 3",
            "error: --secret F: the value is empty",
        ];
        assert_eq!(exit.text.lines().collect::<Vec<_>>(), expected);
        assert_eq!(exit.code, 64);
    }
}
