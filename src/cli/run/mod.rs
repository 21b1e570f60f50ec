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
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::cli::folder::Folder;
use crate::cli::serve::protect_process;
use crate::cli::{Exit, Run, chain};
use crate::client_env::{
    Files, PRELOAD, bundle, client_env, holds_certificate, needs_preload, trust_store, wgetrc,
};
use crate::config::{Flags, Source};
use crate::secret::Secret;
use crate::telemetry::{self, LogFormat};

use child::Signals;
use environment::Environment;
use secrets::Known;
use session::Opened;

/// Where systems keep their roots in one file, the most common first.
const SYSTEM_BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];
/// The most bytes of a system's bundle; a usual one has some 250 KiB.
const BUNDLE_LIMIT_BYTES: u64 = 16 * 1024 * 1024;
/// How long node may take to tell its version.
const NODE_TIMEOUT: Duration = Duration::from_secs(5);

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
            Some(target) => session::open_served(&run, &secrets, target).await,
            None => session::open_private(&run, &secrets).await,
        }
    };
    let (opened, is_old_node) = tokio::join!(Box::pin(opened), node_needs_preload(&environment));
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
    let files = write_files(&folder, &opened.ca_pem, &environment, is_old_node)?;
    let client = client_env(&opened.proxy, &files, |name| environment.variable(name));
    environment.add_client(client);
    environment.add_sealed(&opened.sealed);
    let signals = Signals::listen()?;
    child::run(command, &environment, signals).await
}

fn write_files(
    folder: &Folder,
    ca_pem: &str,
    environment: &Environment,
    is_old_node: bool,
) -> Result<Files, Exit> {
    let inherited = environment.variable("SSL_CERT_FILE");
    let bundle = bundle(system_bundle(inherited).as_deref(), ca_pem);
    let path = folder.path("bundle.pem");
    let preload = if is_old_node {
        Some(folder.write("preload.cjs", PRELOAD.as_bytes())?)
    } else {
        None
    };
    Ok(Files {
        ca: folder.write("ca.pem", ca_pem.as_bytes())?,
        wgetrc: folder.write("wgetrc", wgetrc(&path).as_encoded_bytes())?,
        trust_store: Some(folder.write("cacerts", &trust_store(&bundle))?),
        bundle: folder.write("bundle.pem", bundle.as_bytes())?,
        preload,
    })
}

/// Reads the roots that the user's clients trust today: the file that was named, else the
/// system's. What cannot be read, or has no certificate, is passed over.
fn system_bundle(inherited: Option<OsString>) -> Option<String> {
    let known = SYSTEM_BUNDLES.iter().map(OsString::from);
    inherited.into_iter().chain(known).find_map(|path| {
        let mut text = String::new();
        let file = std::fs::File::open(Path::new(&path)).ok()?;
        file.take(BUNDLE_LIMIT_BYTES)
            .read_to_string(&mut text)
            .ok()?;
        holds_certificate(&text).then_some(text)
    })
}

/// Asks node, where there is one, for its version.
async fn node_needs_preload(environment: &Environment) -> bool {
    let mut node = Command::new("node");
    node.arg("--version")
        .env_clear()
        .envs(environment.iter())
        .kill_on_drop(true);
    let told = timeout(
        NODE_TIMEOUT,
        node.stdin(std::process::Stdio::null()).output(),
    )
    .await;
    let told = told.ok().and_then(Result::ok);
    told.is_some_and(|told| needs_preload(&String::from_utf8_lossy(&told.stdout)))
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

fn start_log(source: &Source) -> Result<(), Exit> {
    // The command's own output is on the same terminal.
    let filter = source
        .variable("OSHU_VAULT_LOG")
        .map(|text| text.to_string_lossy());
    let filter = filter.as_deref().unwrap_or("error");
    telemetry::init(LogFormat::Text, filter)
        .map_err(|error| Exit::usage(format!("error: OSHU_VAULT_LOG: {}", chain(&error))))
}

/// Says something to the user, on standard error, which is also the command's.
fn tell(text: impl Display) {
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

    #[test]
    fn the_roots_of_the_user_come_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("roots.pem");
        let own = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        std::fs::write(&path, own).unwrap();
        assert_eq!(
            system_bundle(Some(path.clone().into())).as_deref(),
            Some(own)
        );
        std::fs::write(&path, "nothing").unwrap();
        assert_ne!(system_bundle(Some(path.into())).as_deref(), Some("nothing"));
    }
}
