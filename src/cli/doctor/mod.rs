//! `doctor`: whether this machine's clients use the proxy and trust it, and what to set.
//!
//! First the proxy itself is asked, then each client that is installed: its variables and files are
//! looked at, and those that are cheap to run make a real request, for a name that the proxy
//! answers itself. A request that went through counts for more than what the variables seem to
//! mean. The credential is never printed; advice refers to the variable that has it. Called by the
//! command line.

mod attempt;
mod look;
mod report;
mod table;
mod world;

use std::cell::OnceCell;
use std::path::PathBuf;

use futures_util::StreamExt;
use futures_util::stream;

use crate::cli::args::Doctor;
use crate::cli::client;
use crate::cli::client_files::{address_of, lay_out, node_version, root_of};
use crate::cli::env::ca_folder;
use crate::cli::folder::Folder;
use crate::cli::proxy_from::ProxyFrom;
use crate::cli::run::start_log;
use crate::cli::serve::protect_process;
use crate::cli::workload::{Outcome as Answer, Workload};
use crate::cli::{Exit, chain, print};
use crate::client_env::{DIRECT, ProxyUrl, needs_preload};
use crate::config::{Flags, PublicUrl, Source};
use crate::host::{Host, HostPort};
use crate::proxy::PROBE_HOST;

use attempt::{Attempts, Outcome, find_program, python_modules};
use look::{Finding, Kind, exceptions, look};
use report::{Line, Report, State};
use table::{CLIENTS, Client, Found, TlsProxy};
use world::{LayOut, World, system_has};

/// How many clients are run at once.
const AT_ONCE: usize = 4;
const HTTPS_PORT: u16 = 443;

/// Looks at the proxy and the clients; exit code 1 where one of them fails.
pub(super) async fn doctor(doctor: Doctor) -> Result<u8, Exit> {
    protect_process();
    let source = Source::process(Flags::default());
    start_log(&source)?;
    let clients = wanted(&doctor.only)?;
    let proxy = doctor.proxy.find(&source)?;
    let target = match &doctor.url {
        Some(url) => url.authority.clone(),
        None => HostPort::new(
            Host::parse(PROBE_HOST).map_err(|error| Exit::startup(&error))?,
            HTTPS_PORT,
        ),
    };
    let report = match ask(&doctor, &proxy, &target).await {
        Err(line) => Report {
            proxy: line,
            clients: Vec::new(),
            notes: Vec::new(),
        },
        Ok((line, ca_pem)) => {
            let world = world(&doctor, source, proxy, ca_pem, &target).await;
            let clients = examine(&doctor, &world, &clients, &target).await?;
            let notes = notes(&world);
            Report {
                proxy: line,
                clients,
                notes,
            }
        }
    };
    print(&if doctor.json {
        report.json()
    } else {
        report.text()
    })?;
    Ok(u8::from(!report.is_well()))
}

/// Finds the clients that were named.
fn wanted(names: &[String]) -> Result<Vec<&'static Client>, Exit> {
    let known = |name: &String| CLIENTS.iter().any(|client| client.name == name);
    if !names.iter().all(known) {
        let names: Vec<_> = CLIENTS.iter().map(|client| client.name).collect();
        let names = names.join(", ");
        let text = format!("error: --only names a client that is not known; known are {names}");
        return Err(Exit::usage(text));
    }
    let is_wanted =
        |client: &&Client| names.is_empty() || names.iter().any(|name| name == client.name);
    Ok(CLIENTS.iter().filter(is_wanted).collect())
}

/// Asks the proxy for its root, and for the target through a tunnel of our own. Returns what there
/// is to say, and the root; where one of them fails there is nothing to try clients with.
async fn ask(doctor: &Doctor, proxy: &ProxyUrl, target: &HostPort) -> Result<(Line, String), Line> {
    let line = |state, text: String| Line {
        name: "proxy".to_owned(),
        state,
        text: format!("{}: {text}", proxy.redacted()),
        advice: Vec::new(),
    };
    let failed = |text: String| line(State::Fail, text);
    let told = |exit: Exit| failed(exit.text.trim_start_matches("error: ").to_owned());
    let ca = listener_root(doctor);
    let ca_pem = root_of(proxy, ca.as_deref()).await.map_err(told)?;
    let (user, password) = proxy.credential();
    let roots = client::roots(ca.as_deref()).map_err(told)?;
    let address: PublicUrl = address_of(proxy).map_err(told)?;
    let workload = Workload::new(&address, roots, &format!("{user}:{password}"), &ca_pem);
    let workload = workload.map_err(|error| failed(chain(&error)))?;
    let host = host_field(target);
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {host}\r\nUser-Agent: oshu-vault-doctor\r\nAccept: */*\r\n\
         Connection: close\r\n\r\n"
    );
    match Box::pin(workload.send(target, &request)).await {
        Ok(Answer::Answered(status, _body)) => {
            let text = format!("answers, with status {status} for https://{host}/");
            Ok((line(State::Ok, text), ca_pem))
        }
        Ok(Answer::Refused(407, _body)) => {
            let text = "the credential is not accepted (407): the session has expired or was \
                        ended, or it is another vault's";
            Err(failed(text.to_owned()))
        }
        Ok(Answer::Refused(status, body)) => Err(failed(refusal(status, &body, &host))),
        Err(error) => Err(failed(chain(&error))),
    }
}

/// Returns a target as a URL and a `Host` field have it.
fn host_field(target: &HostPort) -> String {
    match target.port {
        HTTPS_PORT => target.host.to_string(),
        _ => target.to_string(),
    }
}

/// Says why a tunnel was refused, in the proxy's words.
fn refusal(status: u16, body: &str, host: &str) -> String {
    let body: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    let message = body.get("message").and_then(serde_json::Value::as_str);
    let message: String = message
        .unwrap_or("the proxy does not say why")
        .chars()
        .filter(|one| !one.is_control())
        .collect();
    format!("no tunnel to {host} (status {status}): {message}; --url names another host to ask for")
}

/// Finds the root for a TLS listener's own certificate: the one of `--ca`, else the one that is
/// there for node, if it can be used.
fn listener_root(doctor: &Doctor) -> Option<PathBuf> {
    let given = std::env::var_os("NODE_EXTRA_CA_CERTS").map(PathBuf::from);
    let usable = given.filter(|path| client::roots(Some(path)).is_ok());
    doctor.ca.clone().or(usable)
}

async fn world(
    doctor: &Doctor,
    source: Source,
    proxy: ProxyUrl,
    ca_pem: String,
    target: &HostPort,
) -> World {
    let node = node_version(std::env::vars_os()).await;
    let with_preload = node.as_deref().is_some_and(needs_preload);
    let (named, state) = (doctor.ca_dir.clone(), doctor.state_dir.clone());
    let root = ca_pem.clone();
    let write: LayOut = Box::new(move || {
        let folder = ca_folder(named.as_deref(), state.as_deref(), &source, &root).ok()?;
        lay_out(&folder, &root, |name| std::env::var_os(name), with_preload).ok()
    });
    World {
        variables: std::env::vars_os().collect(),
        proxy,
        proxy_variable: match &doctor.proxy {
            ProxyFrom::Variable(name) => Some(name.clone()),
            ProxyFrom::Environment | ProxyFrom::Url(_) => None,
        },
        system: system_has(&ca_pem),
        ca_pem,
        host: target.host.to_string(),
        node,
        ca_dir: doctor.ca_dir.clone(),
        lay_out: write,
        files: OnceCell::new(),
    }
}

/// Looks at every client, a few at a time.
async fn examine(
    doctor: &Doctor,
    world: &World,
    clients: &[&'static Client],
    target: &HostPort,
) -> Result<Vec<Line>, Exit> {
    let python = ["python3", "python"]
        .iter()
        .find_map(|name| find_program(world, name));
    let wanted: Vec<&str> = clients
        .iter()
        .filter_map(|client| match client.found {
            Found::Python(module) => Some(module),
            Found::Program => None,
        })
        .collect();
    let modules = match &python {
        Some(python) if !wanted.is_empty() => python_modules(world, python, &wanted).await,
        _ => Vec::new(),
    };
    let attempts = Attempts {
        world,
        url: format!("https://{}/", host_field(target)),
        python,
        folder: Folder::make()?,
    };
    let is_probe = doctor.url.is_none();
    let lines = stream::iter(clients.iter().copied()).map(|client| {
        let is_there = match client.found {
            Found::Program => find_program(world, client.name).is_some(),
            Found::Python(module) => modules.iter().any(|known| known == module),
        };
        let attempts = &attempts;
        async move {
            if is_there {
                Box::pin(one(client, world, attempts, is_probe)).await
            } else {
                Ok(line(client, State::Absent, "", Vec::new()))
            }
        }
    });
    let lines: Vec<Result<Line, Exit>> = lines.buffered(AT_ONCE).collect().await;
    lines.into_iter().collect()
}

/// Looks at one client that is installed.
async fn one(
    client: &Client,
    world: &World,
    attempts: &Attempts<'_>,
    is_probe: bool,
) -> Result<Line, Exit> {
    if world.proxy.is_tls() && client.tls_proxy == TlsProxy::No {
        let text = "it does not speak TLS to a proxy; it needs the plain http:// URL";
        return Ok(line(client, State::Cannot, text, Vec::new()));
    }
    let findings = look(client, world);
    let outcome = match client.attempt {
        Some(attempt) => attempts.run(attempt).await?,
        None => Outcome::Untried,
    };
    Ok(verdict(
        client,
        findings,
        &outcome,
        is_probe,
        world.proxy.is_tls(),
    ))
}

/// Weighs what the variables mean against what the request came to.
fn verdict(
    client: &Client,
    mut findings: Vec<Finding>,
    outcome: &Outcome,
    is_probe: bool,
    is_tls: bool,
) -> Line {
    if matches!(outcome, Outcome::Answered(_)) {
        // Only the proxy can answer for the name that is asked for; another one may be reached
        // past it.
        findings.retain(|found| found.kind == Kind::Trap || (found.kind == Kind::Way && !is_probe));
    }
    let advice: Vec<String> = findings
        .iter()
        .filter_map(|found| found.advice.clone())
        .collect();
    let mut texts: Vec<&str> = findings.iter().map(|found| found.text.as_str()).collect();
    if let Outcome::Failed(said) = outcome
        && !texts.is_empty()
        && findings.iter().all(|found| found.kind == Kind::Trap)
    {
        texts.push(said);
    }
    match (outcome, texts.is_empty()) {
        (Outcome::Failed(said), true) => {
            if is_tls && client.tls_proxy == TlsProxy::SystemStore {
                let text = format!(
                    "it verifies an https:// proxy against the system's roots alone; use the \
                     plain http:// URL ({said})"
                );
                return line(client, State::Cannot, &text, advice);
            }
            line(client, State::Fail, said, advice)
        }
        (_, false) => line(client, State::Fail, &texts.join("; "), advice),
        (outcome, true) => {
            let text = match outcome {
                Outcome::Answered(Some(status)) => format!("got status {status}"),
                Outcome::Answered(None) => "got an answer".to_owned(),
                Outcome::Failed(_) | Outcome::Untried => {
                    "by its variables; it was not run".to_owned()
                }
            };
            let note = client
                .note
                .map_or_else(String::new, |note| format!(", {note}"));
            line(client, State::Ok, &format!("{text}{note}"), advice)
        }
    }
}

fn line(client: &Client, state: State, text: &str, advice: Vec<String>) -> Line {
    Line {
        name: client.name.to_owned(),
        state,
        text: text.to_owned(),
        advice,
    }
}

/// Says what is odd about the environment and harms no client that was looked at.
fn notes(world: &World) -> Vec<String> {
    let mut notes = Vec::new();
    let usual: Vec<&str> = exceptions(DIRECT).collect();
    let lists = ["NO_PROXY", "no_proxy"].into_iter();
    for (name, list) in lists.filter_map(|name| Some((name, world.text(name)?))) {
        let others: Vec<&str> = exceptions(list)
            .filter(|entry| !usual.contains(entry))
            .collect();
        if !others.is_empty() {
            let others = others.join(", ");
            notes.push(format!("{name} sends these past the proxy too: {others}"));
        }
    }
    if world.variable("SSL_CERT_DIR").is_some() {
        let text = "SSL_CERT_DIR is set: some clients take it in place of SSL_CERT_FILE; \
                    `unset SSL_CERT_DIR` is safe";
        notes.push(text.to_owned());
    }
    notes
}

#[cfg(test)]
mod tests;
