//! The small languages inside flags: `--secret NAME=env:VAR`, `--scope NAME=HOST,HOST`.
//!
//! A refusal names the flag and its position, never the text: whoever mistypes `--secret` may have
//! put the value itself behind it. Called by the parser of the command line.

use std::path::PathBuf;

use crate::host::HostPattern;

/// One secret that `run` puts behind a sealed token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretFlag {
    /// Its name in the session, and the variable that the command finds its sealed token in.
    pub name: String,
    /// Where the real value is read from.
    pub from: SecretFrom,
    /// The hosts of its `--scope`; empty where the catalogue decides.
    pub hosts: Vec<HostPattern>,
}

/// Where a real value is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretFrom {
    /// The output of a shell command (`cmd:CMD`).
    Command(String),
    /// An environment variable (`env:VAR`); by default the one with the secret's name.
    Env(String),
    /// A file (`file:PATH`).
    File(PathBuf),
}

const SECRET: &str = "--secret";
const SCOPE: &str = "--scope";
const ALLOW: &str = "--allow";

/// Reads every `--secret` and `--scope`, or lists all that is wrong with them.
pub(super) fn secrets(secrets: &[String], scopes: &[String]) -> Result<Vec<SecretFlag>, String> {
    let mut wrong = Vec::new();
    let mut flags: Vec<SecretFlag> = Vec::with_capacity(secrets.len());
    for (number, text) in (1..).zip(secrets) {
        match secret(text) {
            None => wrong.push(refusal(
                SECRET,
                number,
                "expects NAME, NAME=env:VAR, NAME=file:PATH or NAME=cmd:CMD, with NAME as the name \
                 of an environment variable",
            )),
            Some(flag) if flags.iter().any(|known| known.name == flag.name) => {
                wrong.push(refusal(
                    SECRET,
                    number,
                    "repeats the NAME of an earlier one",
                ));
            }
            Some(flag) => flags.push(flag),
        }
    }
    let some_refused = secrets.len() > flags.len();
    for (number, text) in (1..).zip(scopes) {
        let Some((name, hosts)) = scope(text) else {
            let text = "expects NAME=HOST or NAME=HOST,HOST, with exact hosts and no `*`";
            wrong.push(refusal(SCOPE, number, text));
            continue;
        };
        match flags.iter_mut().find(|flag| flag.name == name) {
            Some(flag) => flag.hosts.extend(hosts),
            // A secret that was refused above would only be reported twice.
            None if some_refused => {}
            None => wrong.push(refusal(SCOPE, number, "names a NAME that no --secret has")),
        }
    }
    if wrong.is_empty() {
        Ok(flags)
    } else {
        Err(wrong.join("\n"))
    }
}

/// Reads every `--allow`.
pub(super) fn allowed(hosts: &[String]) -> Result<Vec<HostPattern>, String> {
    let mut patterns = Vec::with_capacity(hosts.len());
    let mut wrong = Vec::new();
    for (number, text) in (1..).zip(hosts) {
        match HostPattern::parse(text) {
            Ok(pattern) => patterns.push(pattern),
            Err(error) => wrong.push(refusal(
                ALLOW,
                number,
                &format!("expects HOST, HOST:PORT or *.NAME: {error}"),
            )),
        }
    }
    if wrong.is_empty() {
        Ok(patterns)
    } else {
        Err(wrong.join("\n"))
    }
}

fn refusal(flag: &str, number: usize, text: &str) -> String {
    format!("error: {flag} (the {number}. of them) {text}")
}

fn secret(text: &str) -> Option<SecretFlag> {
    let (name, from) = match text.split_once('=') {
        None => (text, SecretFrom::Env(text.to_owned())),
        Some((name, from)) => {
            let (kind, rest) = from.split_once(':').filter(|(_, rest)| !rest.is_empty())?;
            let from = match kind {
                "cmd" => SecretFrom::Command(rest.to_owned()),
                "env" if is_variable(rest) => SecretFrom::Env(rest.to_owned()),
                "file" => SecretFrom::File(rest.into()),
                _ => return None,
            };
            (name, from)
        }
    };
    is_variable(name).then(|| SecretFlag {
        name: name.to_owned(),
        from,
        hosts: Vec::new(),
    })
}

fn scope(text: &str) -> Option<(&str, Vec<HostPattern>)> {
    let (name, hosts) = text.split_once('=')?;
    let hosts: Result<Vec<_>, _> = hosts.split(',').map(HostPattern::parse_exact).collect();
    is_variable(name).then_some((name, hosts.ok()?))
}

/// Tells whether a shell would take the text as a variable's name (POSIX.1-2024 §3.216).
fn is_variable(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.bytes().all(is_word) && text.bytes().next().is_some_and(|b| !b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn secrets_name_their_source() {
        for (text, name, from) in [
            ("KEY", "KEY", SecretFrom::Env("KEY".to_owned())),
            ("KEY=env:OTHER", "KEY", SecretFrom::Env("OTHER".to_owned())),
            ("_k1=file:/a=b:c", "_k1", SecretFrom::File("/a=b:c".into())),
            (
                "KEY=cmd:pass show a=b:c",
                "KEY",
                SecretFrom::Command("pass show a=b:c".to_owned()),
            ),
        ] {
            let flags = secrets(&texts(&[text]), &[]).unwrap();
            assert_eq!(flags[0].name, name);
            assert_eq!(flags[0].from, from);
        }
    }

    #[test]
    fn refusals_name_the_flag_and_never_its_text() {
        for text in [
            "KEY=canary-value",
            "KEY=canary:value",
            "KEY=env:canary value",
            "KEY=file:",
            "KEY=",
            "1canary",
            "canary name",
            "=env:canary",
            "",
        ] {
            let error = secrets(&texts(&["GOOD", text]), &[]).unwrap_err();
            assert!(
                error.starts_with("error: --secret (the 2. of them) expects"),
                "{error}"
            );
            assert!(!error.contains("canary"), "{error}");
        }
        let error = secrets(&texts(&["A", "A=env:B"]), &[]).unwrap_err();
        assert!(
            error.contains("--secret (the 2. of them) repeats"),
            "{error}"
        );
    }

    #[test]
    fn scopes_belong_to_secrets_and_add_up() {
        let flags = secrets(
            &texts(&["A", "B"]),
            &texts(&["A=a.example,b.example:8443", "A=c.example"]),
        )
        .unwrap();
        assert_eq!(
            format!("{:?}", flags[0].hosts),
            "[a.example, b.example:8443, c.example]"
        );
        assert!(flags[1].hosts.is_empty());
        for (scope, part) in [
            ("C=a.example", "names a NAME that no --secret has"),
            ("A", "expects NAME=HOST"),
            ("A=", "expects NAME=HOST"),
            ("A=a.example,", "expects NAME=HOST"),
            ("A=*.a.example", "expects NAME=HOST"),
        ] {
            let error = secrets(&texts(&["A"]), &texts(&[scope])).unwrap_err();
            assert!(
                error.starts_with("error: --scope (the 1. of them)"),
                "{error}"
            );
            assert!(error.contains(part), "{scope}: {error}");
        }
    }

    #[test]
    fn all_problems_are_listed() {
        let error = secrets(&texts(&["A=x", "B=y"]), &texts(&["A"])).unwrap_err();
        assert_eq!(error.lines().count(), 3, "{error}");
        let error = allowed(&texts(&["*", "a.example", "10.0.0.0/8"])).unwrap_err();
        assert_eq!(error.lines().count(), 2, "{error}");
        assert_eq!(
            allowed(&texts(&["*.a.example", "b.example:8443"]))
                .unwrap()
                .len(),
            2
        );
    }
}
