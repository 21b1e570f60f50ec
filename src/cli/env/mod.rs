//! `env`: the environment that sends real clients through a proxy, printed.
//!
//! For a proxy that is there already, or for a new session of a running server, whose sealed tokens
//! then stand in the output beside it. The files that the variables name are written where they
//! stay; they hold certificates only. What is printed holds the session's credential: it goes to
//! stdout, and everything else to stderr. Called by the command line.

mod format;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::cli::args::{Env, EnvFormat, EnvWay};
use crate::cli::client_files::{folder_name, lay_out, node_needs_preload, root_of};
use crate::cli::folder::KeptFolder;
use crate::cli::run::{Session, open_served, read_secrets, start_log, tell};
use crate::cli::serve::protect_process;
use crate::cli::state::make_folder;
use crate::cli::{Exit, print};
use crate::client_env::{ClientEnv, ProxyUrl, client_env};
use crate::config::{Flags, Source, state_dir};

pub(super) use format::shell_word;

/// The folder of the state directory with a folder for the files of each root.
const CLIENTS: &str = "clients";

/// A session to print the environment of.
struct Found {
    proxy: ProxyUrl,
    sealed: BTreeMap<String, String>,
    ca_pem: String,
    /// What was made just now.
    session: Option<Session>,
}

/// Prints the environment.
pub(super) async fn env(env: Env) -> Result<(), Exit> {
    protect_process();
    let source = Source::process(Flags::default());
    start_log(&source)?;
    let found = find(&env, &source).await?;
    let printed = match output(&env, &source, &found).await {
        Ok(text) => print(&text),
        Err(exit) => Err(exit),
    };
    if printed.is_err()
        && let Some(session) = found.session
        && let Some(complaint) = session.end().await
    {
        tell(complaint);
    }
    printed
}

/// Finds the proxy, or makes a session.
async fn find(env: &Env, source: &Source) -> Result<Found, Exit> {
    let (secrets, allow) = match &env.way {
        EnvWay::Proxy(from) => {
            let proxy = from.find(source)?;
            let ca_pem = root_of(&proxy, env.server.ca.as_deref()).await?;
            return Ok(Found {
                proxy,
                sealed: BTreeMap::new(),
                ca_pem,
                session: None,
            });
        }
        EnvWay::Session { secrets, allow } => (secrets, allow),
    };
    let target = env.server.target(source)?;
    let secrets = read_secrets(secrets).await?;
    let opened = open_served(allow, &secrets, target).await?;
    for warning in &opened.warnings {
        tell(warning);
    }
    if let Session::Served { id, .. } = &opened.session {
        tell(format!(
            "made {id}; `oshu-vault session delete {id}` ends it"
        ));
    }
    Ok(Found {
        proxy: opened.proxy,
        sealed: opened.sealed,
        ca_pem: opened.ca_pem,
        session: Some(opened.session),
    })
}

/// Writes the files, and the variables in the form that was asked for.
async fn output(env: &Env, source: &Source, found: &Found) -> Result<String, Exit> {
    // A container has an environment and a release of node of its own.
    let is_elsewhere = env.format == EnvFormat::Docker;
    let inherited = |name: &str| {
        let value = std::env::var_os(name);
        value.filter(|_| !is_elsewhere)
    };
    let with_preload = is_elsewhere || node_needs_preload(std::env::vars_os()).await;
    let state = env.server.state_dir.as_deref();
    let folder = ca_folder(env.ca_dir.as_deref(), state, source, &found.ca_pem)?;
    let files = lay_out(
        &folder,
        &found.ca_pem,
        |name| std::env::var_os(name),
        with_preload,
    )?;
    let ClientEnv { set, unset } = client_env(&found.proxy, &files, inherited);
    let mut variables = Vec::with_capacity(set.len() + found.sealed.len());
    for (name, value) in set {
        variables.push((name.to_owned(), text(name, value)?));
    }
    let sealed = found.sealed.iter();
    variables.extend(sealed.map(|(name, token)| (name.clone(), token.clone())));
    let mut unset = unset.to_vec();
    if !env.only.is_empty() {
        if let Some(name) = env.only.iter().find(|name| {
            !unset.contains(&name.as_str()) && !variables.iter().any(|(known, _)| known == *name)
        }) {
            return Err(Exit::usage(format!(
                "error: --only: {name} is none of the variables"
            )));
        }
        let is_wanted = |name: &str| env.only.iter().any(|wanted| wanted == name);
        variables.retain(|(name, _)| is_wanted(name));
        unset.retain(|name| is_wanted(name));
    }
    format::write(env.format, &variables, &unset)
}

/// Makes the folder of the files: the one that was named, else one for this root in the state
/// directory.
pub(super) fn ca_folder(
    named: Option<&Path>,
    state: Option<&Path>,
    source: &Source,
    ca_pem: &str,
) -> Result<KeptFolder, Exit> {
    let path: PathBuf = if let Some(path) = named {
        path.to_owned()
    } else {
        let folder = state_dir(state, source)?;
        make_folder(&folder).map_err(|error| Exit::startup(&error))?;
        folder.join(CLIENTS).join(folder_name(ca_pem))
    };
    // A path with one of these cannot be written for node, the JVM and wget alike.
    let is_odd = |one: char| one.is_control() || one == '"' || one == '\\';
    if path.to_str().is_none_or(|text| text.contains(is_odd)) {
        let text = "error: --ca-dir expects a path without quotation marks, backslashes and \
                    control characters";
        return Err(Exit::usage(text.to_owned()));
    }
    KeptFolder::make(&path)
}

fn text(name: &str, value: OsString) -> Result<String, Exit> {
    let text = value.into_string();
    text.map_err(|_bytes| Exit::usage(format!("error: {name}: the value is not UTF-8")))
}
