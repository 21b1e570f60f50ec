//! What the environment means to one client, read off its variables and files alone.
//!
//! A finding says what is wrong and what to type. Nothing is run here, and nothing is believed
//! against a request that went through. Called by `doctor` for each client that is installed.

use std::path::{Path, PathBuf};

use memchr::memmem;

use super::table::{Client, Store, Trust};
use super::world::{Roots, World};
use crate::cli::env::shell_word;
use crate::client_env::{DIRECT, certificates, needs_preload};

/// The first bytes of a trust store in Java's own form, in which certificates stand as they are.
const JKS: &[u8] = b"\xfe\xed\xfe\xed";

/// What kind of thing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The client would go without the proxy.
    Way,
    /// The client would not trust the proxy.
    Trust,
    /// The proxy works, and something else does not.
    Trap,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) kind: Kind,
    pub(super) text: String,
    /// What to type in a POSIX shell, where it can be said.
    pub(super) advice: Option<String>,
}

impl Finding {
    fn new(kind: Kind, text: impl Into<String>, advice: Option<String>) -> Self {
        let text = text.into();
        Self { kind, text, advice }
    }
}

/// Lists what is wrong for one client.
pub(super) fn look(client: &Client, world: &World) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !matches!(client.trust, Trust::Java) {
        findings.extend(proxy(client, world));
        findings.extend(bypass(world));
    }
    match client.trust {
        Trust::Adds(variables, store) => findings.extend(adds(variables, store, world)),
        Trust::Replaces(variables, store) => {
            findings.extend(replaces(client.name, variables, store, world));
        }
        Trust::Wget => findings.extend(wget(world)),
        Trust::Java => findings.extend(java(world)),
    }
    match client.name {
        "node" => findings.extend(node(world)),
        "git" if world.proxy.is_tls() => {
            findings.extend(replaces(
                "git",
                &["GIT_PROXY_SSL_CAINFO"],
                Store::System,
                world,
            ));
        }
        _ => {}
    }
    findings.extend(traps(client.name, world));
    findings
}

fn proxy(client: &Client, world: &World) -> Option<Finding> {
    let set = client
        .proxies
        .iter()
        .find(|name| world.variable(name).is_some());
    let (name, text) = match set {
        Some(name) if world.text(name).is_some_and(|url| world.is_proxy(url)) => return None,
        Some(name) => (
            *name,
            format!("{name} names another proxy or another session"),
        ),
        None => {
            let usual = client.proxies.iter().find(|name| **name == "HTTPS_PROXY");
            let name = usual.or(client.proxies.first())?;
            let text = match client.proxies {
                [only] => format!("it reads {only} alone, which is not set"),
                _ => format!("{name} is not set"),
            };
            (*name, text)
        }
    };
    let advice = world
        .proxy_variable()
        .map(|other| format!("export {name}=\"${other}\""));
    Some(Finding::new(Kind::Way, text, advice))
}

/// Tells whether the exceptions cover the host that is asked for.
fn bypass(world: &World) -> impl Iterator<Item = Finding> {
    let names = ["no_proxy", "NO_PROXY"].into_iter();
    names
        .filter(|name| {
            world
                .text(name)
                .is_some_and(|list| covers(list, &world.host))
        })
        .map(|name| {
            let text = format!("{name} sends {} past the proxy", world.host);
            Finding::new(Kind::Way, text, Some(format!("export {name}={DIRECT}")))
        })
}

pub(super) fn covers(list: &str, host: &str) -> bool {
    exceptions(list).any(|entry| {
        let entry = entry.trim_start_matches("*.").trim_start_matches('.');
        let below = host
            .strip_suffix(entry)
            .is_some_and(|rest| rest.ends_with('.'));
        entry == "*" || entry == host || (!entry.is_empty() && below)
    })
}

/// Lists the entries of a `NO_PROXY`.
pub(super) fn exceptions(list: &str) -> impl Iterator<Item = &str> {
    list.split([',', ' ']).filter(|entry| !entry.is_empty())
}

/// Says what is wrong with a file of roots; nothing where it has the proxy's.
fn fault(name: &str, path: &Path, roots: &Roots) -> Option<String> {
    let path = path.display();
    match roots {
        Roots::Bundle | Roots::RootAlone => None,
        Roots::Others => Some(format!("{name}: {path} does not have the proxy's root")),
        Roots::Nothing => Some(format!("{name}: {path} has no certificate")),
        Roots::Unreadable(kind) => Some(format!("{name}: {path} cannot be read: {kind}")),
    }
}

fn adds(variables: &[&str], store: Store, world: &World) -> Option<Finding> {
    let set = || {
        variables
            .iter()
            .filter_map(|name| Some((*name, world.variable(name)?)))
    };
    let mut faults = set().map(|(name, path)| {
        let path = Path::new(path);
        fault(name, path, &world.roots(path))
    });
    if faults.any(|fault| fault.is_none()) || (store == Store::System && world.system) {
        return None;
    }
    let first = set().next();
    // One that is set and wrong has to be mended: it may be looked at before the others.
    let name = first.map_or_else(|| variables.first().copied(), |(name, _)| Some(name))?;
    let named =
        first.and_then(|(name, path)| fault(name, Path::new(path), &world.roots(Path::new(path))));
    let text = named.unwrap_or_else(|| format!("{} is not set", variables.join(" or ")));
    // Some clients replace their roots by the file of this name.
    let file = if name == "SSL_CERT_FILE" {
        world.bundle()
    } else {
        world.root()
    };
    Some(Finding::new(
        Kind::Trust,
        text,
        file.map(|file| World::export(name, &file)),
    ))
}

fn replaces(client: &str, variables: &[&str], store: Store, world: &World) -> Option<Finding> {
    let set = variables
        .iter()
        .find_map(|name| Some((*name, world.variable(name)?)));
    let (kind, name, text) = match set {
        None if store == Store::System && world.system => return None,
        None => {
            let usual = variables
                .iter()
                .find(|name| name.chars().all(|c| !c.is_ascii_lowercase()));
            let name = usual.copied()?;
            (Kind::Trust, name, format!("{name} is not set"))
        }
        Some((name, path)) => {
            let path = Path::new(path);
            match world.roots(path) {
                Roots::Bundle => return None,
                Roots::RootAlone => {
                    let text = format!(
                        "{name}: {} has the proxy's root alone, and {client} takes it in place of \
                         all others",
                        path.display()
                    );
                    (Kind::Trap, name, text)
                }
                other => (Kind::Trust, name, fault(name, path, &other)?),
            }
        }
    };
    let advice = world.bundle().map(|file| World::export(name, &file));
    Some(Finding::new(kind, text, advice))
}

fn wget(world: &World) -> Option<Finding> {
    let advice = || {
        let files = world.files()?;
        Some(World::export("WGETRC", &files.wgetrc))
    };
    let wrong = |kind, text: String| Some(Finding::new(kind, text, advice()));
    let Some(file) = world.variable("WGETRC") else {
        if world.system {
            return None;
        }
        return wrong(
            Kind::Trust,
            "WGETRC is not set, and wget reads no other variable".to_owned(),
        );
    };
    let Ok(text) = std::fs::read_to_string(file) else {
        return wrong(Kind::Trust, "the file of WGETRC cannot be read".to_owned());
    };
    let named = text.lines().filter_map(|line| line.split_once('='));
    let mut named = named.filter(|(key, _)| key.trim().eq_ignore_ascii_case("ca_certificate"));
    let Some(path) = named
        .next_back()
        .map(|(_, value)| PathBuf::from(value.trim()))
    else {
        if world.system {
            return None;
        }
        return wrong(
            Kind::Trust,
            "the file of WGETRC names no ca_certificate".to_owned(),
        );
    };
    match world.roots(&path) {
        Roots::Bundle => None,
        Roots::RootAlone => wrong(
            Kind::Trap,
            format!(
                "ca_certificate of WGETRC: {} has the proxy's root alone",
                path.display()
            ),
        ),
        other => wrong(
            Kind::Trust,
            fault("ca_certificate of WGETRC", &path, &other)?,
        ),
    }
}

/// Looks at how node finds the proxy: by itself since 22.21, by a preload before.
fn node(world: &World) -> Option<Finding> {
    let version = world.node.as_deref().unwrap_or_default();
    let options = world.text("NODE_OPTIONS").unwrap_or_default();
    if !needs_preload(version) {
        let on = world.text("NODE_USE_ENV_PROXY") == Some("1");
        if on || options.contains("--use-env-proxy") {
            return None;
        }
        let text = "NODE_USE_ENV_PROXY is not 1: node reads no proxy variable";
        let advice = "export NODE_USE_ENV_PROXY=1".to_owned();
        return Some(Finding::new(Kind::Way, text, Some(advice)));
    }
    let words: Vec<&str> = options.split([' ', '=']).collect();
    let mut loads = words.windows(2).filter_map(|pair| match pair {
        ["--require" | "-r" | "--import", file] => Some(file.trim_matches('"')),
        _ => None,
    });
    // A path with a space in it is in pieces here; a request shows whether it works.
    if loads.any(|file| file.contains(' ') || options.contains('"') || Path::new(file).is_file()) {
        return None;
    }
    let text = format!("node {version} reads no proxy variable, and NODE_OPTIONS loads no preload");
    let advice = world
        .files()
        .and_then(|files| files.preload.as_deref())
        .map(|preload| {
            let path = preload.to_string_lossy();
            let option = if path.contains([' ', '\'']) {
                format!("--require \"{path}\"")
            } else {
                format!("--require {path}")
            };
            let kept = if loads_nothing(options) { options } else { "" };
            let value = [kept, &option].join(" ");
            format!("export NODE_OPTIONS={}", shell_word(value.trim()))
        });
    Some(Finding::new(Kind::Way, text, advice))
}

/// Tells whether options load no file: one that is not there keeps node from starting.
fn loads_nothing(options: &str) -> bool {
    !options.contains("--require") && !options.contains("-r ") && !options.contains("--import")
}

fn java(world: &World) -> Option<Finding> {
    let options = world.text("JAVA_TOOL_OPTIONS").unwrap_or_default();
    let property = |name: &str| {
        let words = options.split_whitespace();
        let start = format!("-D{name}=");
        let value = words
            .filter_map(|word| word.strip_prefix(start.as_str()))
            .next_back();
        value.map(|value| value.trim_matches(['"', '\'']))
    };
    let (user, password) = world.proxy.credential();
    let authority = world.proxy.authority();
    let (host, port) = (authority.host.to_string(), authority.port.to_string());
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let wanted = [
        ("https.proxyHost", host),
        ("https.proxyPort", port.as_str()),
        ("https.proxyUser", user),
        ("https.proxyPassword", password),
        ("jdk.http.auth.tunneling.disabledSchemes", ""),
    ];
    let missing = wanted
        .iter()
        .find(|(name, value)| property(name) != Some(value));
    let (kind, text) = match missing {
        Some((name, _)) if options.is_empty() => (
            Kind::Way,
            format!("JAVA_TOOL_OPTIONS is not set: no {name}"),
        ),
        Some((name, _)) => (
            Kind::Way,
            format!("JAVA_TOOL_OPTIONS has not the right {name}"),
        ),
        None => (
            Kind::Trust,
            trust_store_fault(property("javax.net.ssl.trustStore"), world)?,
        ),
    };
    Some(Finding::new(kind, text, java_advice(world)))
}

/// Says what is wrong with a trust store, as far as its form lets one see.
fn trust_store_fault(path: Option<&str>, world: &World) -> Option<String> {
    let Some(path) = path else {
        let text = "JAVA_TOOL_OPTIONS has no javax.net.ssl.trustStore";
        return (!world.system).then(|| text.to_owned());
    };
    let Ok(store) = std::fs::read(path) else {
        // A path with a space is cut here.
        let is_whole = !path.contains('"') && Path::new(path).is_absolute();
        return is_whole.then(|| format!("the trust store {path} cannot be read"));
    };
    let root = certificates(&world.ca_pem).next()?;
    let has = memmem::find(&store, &root).is_some() || !store.starts_with(JKS);
    (!has).then(|| format!("the trust store {path} does not have the proxy's root"))
}

/// The options hold the credential: the shell is told where to have them from.
fn java_advice(world: &World) -> Option<String> {
    let variable = world.proxy_variable()?;
    let folder = world
        .ca_dir
        .as_deref()
        .map(|path| shell_word(&path.to_string_lossy()));
    let folder = folder.map_or_else(String::new, |path| format!(" --ca-dir {path}"));
    Some(format!(
        "eval \"$(oshu-vault env --only JAVA_TOOL_OPTIONS --proxy-url env:{variable}{folder})\""
    ))
}

/// Lists what is harmful whatever the proxy is.
fn traps(name: &str, world: &World) -> Vec<Finding> {
    let trap = |variable: &str, text: &str| {
        let text = format!("{variable} is set: {text}");
        Finding::new(Kind::Trap, text, Some(format!("unset {variable}")))
    };
    let is_off = |variable: &str, value: &str| world.text(variable) == Some(value);
    let mut found = Vec::new();
    match name {
        "uv" | "codex" if world.variable("SSL_CERT_DIR").is_some() => {
            found.push(trap(
                "SSL_CERT_DIR",
                "it can take the place of SSL_CERT_FILE",
            ));
        }
        "node" | "npm" | "claude" if is_off("NODE_TLS_REJECT_UNAUTHORIZED", "0") => {
            found.push(trap(
                "NODE_TLS_REJECT_UNAUTHORIZED",
                "nothing is verified at all",
            ));
        }
        "git" if world.variable("GIT_SSL_NO_VERIFY").is_some() => {
            found.push(trap("GIT_SSL_NO_VERIFY", "nothing is verified at all"));
        }
        _ => {}
    }
    found
}
