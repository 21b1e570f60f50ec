//! `run`: a command that holds sealed tokens in place of secrets.
//!
//! A private proxy, or a session of a running server, lives as long as the command. The real
//! values stay in this process, which nobody of the same user can look into; they are never in the
//! command's environment. It is convenience on one machine: what else the user can read, the
//! command can read too. Called by the command line.

mod child;
mod environment;
mod secrets;
mod session;

use std::ffi::OsString;
use std::fmt::Display;
use std::io::Write;

use crate::cli::client_files::{lay_out, node_needs_preload};
use crate::cli::folder::Folder;
use crate::cli::serve::protect_process;
use crate::cli::{Exit, Run, chain};
use crate::client_env::client_env;
use crate::config::{Flags, Source};
use crate::secret::Secret;
use crate::telemetry::{self, LogFormat};

use child::Signals;
use environment::Environment;

pub(super) use secrets::{Known, output, read as read_secrets};
pub(super) use session::{Opened, Session, open_served};

/// Runs the command to its end and returns its exit code.
pub(super) async fn run(mut run: Run) -> Result<u8, Exit> {
    protect_process();
    let source = Source::process(Flags::default());
    start_log(&source)?;
    let target = match &run.server {
        Some(flags) => Some(flags.target(&source)?),
        None => None,
    };
    if let Some(path) = &run.upstream_proxy_file {
        let proxy = source.read_upstream_proxy(path).map_err(|expectation| {
            Exit::usage(format!("error: --upstream-proxy-file {expectation}"))
        })?;
        run.upstream.proxy = Some(proxy);
    }
    let secrets = secrets::read(&run.secrets).await?;
    let api_key = target.as_ref().map(|target| &target.api_key);
    refuse_arguments(&run.command, &secrets, api_key)?;
    let (environment, dropped) = Environment::stripped(std::env::vars_os(), &secrets, api_key);
    for dropped in dropped {
        let (name, what) = (dropped.name.to_string_lossy(), dropped.what);
        tell(format!("{name} is not passed on: it contains {what}"));
    }
    let opened = async {
        match target {
            Some(target) => open_served(&run.allow, &secrets, target).await,
            None => session::open_private(&run, &secrets).await,
        }
    };
    let variables = environment.iter().map(|(n, v)| (n.clone(), v.clone()));
    let variables: Vec<_> = variables.collect();
    let (opened, is_old_node) = tokio::join!(Box::pin(opened), node_needs_preload(variables));
    let opened = opened?;
    for warning in &opened.warnings {
        tell(warning);
    }
    let ended = work(&run.command, &opened, environment, is_old_node).await;
    if let Some(complaint) = opened.session.end().await {
        tell(complaint);
    }
    ended
}

/// Lays out the files, completes the environment and runs the command.
async fn work(
    command: &[OsString],
    opened: &Opened,
    mut environment: Environment,
    is_old_node: bool,
) -> Result<u8, Exit> {
    let folder = Folder::make()?;
    let inherited = |name: &str| environment.variable(name);
    let files = lay_out(&folder, &opened.ca_pem, inherited, is_old_node)?;
    let client = client_env(&opened.proxy, &files, inherited);
    environment.add_client(client);
    environment.add_sealed(&opened.sealed);
    let signals = Signals::listen()?;
    child::run(command, &environment, signals).await
}

/// Refuses a command line that already has a value in it: the shell of the caller put it there.
fn refuse_arguments(
    command: &[OsString],
    secrets: &[Known],
    api_key: Option<&Secret>,
) -> Result<(), Exit> {
    let has = |value: &Secret| command.iter().any(|word| secrets::holds(word, value));
    if let Some(secret) = secrets.iter().find(|secret| has(&secret.value)) {
        let name = &secret.flag.name;
        return Err(Exit::usage(format!(
            "error: the command has the value of {name} in its arguments, put there by your shell; \
             let the command read ${name} itself, as in: sh -c 'echo \"${name}\"'"
        )));
    }
    if api_key.is_some_and(has) {
        let text = "error: the command has the server's API key in its arguments";
        return Err(Exit::usage(text.to_owned()));
    }
    Ok(())
}

pub(super) fn start_log(source: &Source) -> Result<(), Exit> {
    // The command's own output is on the same terminal.
    let filter = source
        .variable("OSHU_VAULT_LOG")
        .map(|text| text.to_string_lossy());
    let filter = filter.as_deref().unwrap_or("error");
    telemetry::init(LogFormat::Text, filter)
        .map_err(|error| Exit::usage(format!("error: OSHU_VAULT_LOG: {}", chain(&error))))
}

/// Says something to the user, on standard error, which is also the command's.
pub(super) fn tell(text: impl Display) {
    // Nobody is left to tell where that fails.
    drop(writeln!(std::io::stderr(), "oshu-vault: {text}"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::spec::{SecretFlag, SecretFrom};

    #[test]
    fn values_in_arguments_are_refused_by_name() {
        let flag = SecretFlag {
            name: "KEY".to_owned(),
            from: SecretFrom::Env("KEY".to_owned()),
            hosts: Vec::new(),
        };
        let secrets = [Known {
            flag,
            value: Secret::new(b"canary-value".to_vec()),
        }];
        let words = |list: &[&str]| list.iter().map(OsString::from).collect::<Vec<_>>();
        assert_eq!(
            refuse_arguments(&words(&["curl", "-H", "x: $KEY"]), &secrets, None),
            Ok(())
        );
        let bad = words(&["curl", "-H", "x: canary-value"]);
        let exit = refuse_arguments(&bad, &secrets, None).unwrap_err();
        assert_eq!(exit.code, 64);
        assert!(
            exit.text.contains("KEY") && !exit.text.contains("canary"),
            "{}",
            exit.text
        );
    }
}
