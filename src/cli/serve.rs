//! `serve`: the server, from its configuration to its drain.
//!
//! Stdout carries JSON lines only: the API key at the first start of `--dev`, the addresses when
//! all listeners are bound, then audit records unless they go to a file. Everything else goes to
//! stderr.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use super::control::Control;
use super::sealing::{self, KeySource};
use super::state;
use super::{Exit, STARTUP, chain};
use crate::app::{App, Parts, Storage};
use crate::audit::{FileOptions, Sink};
use crate::config::{AuditSink, Config, Flags, OnFull, Source};
use crate::secret::Fingerprint;
use crate::telemetry;

/// Runs the server until it is told to stop.
pub(super) async fn serve(flags: Flags) -> Result<(), Exit> {
    let source = Source::process(flags);
    let config = Config::load(&source)?;
    start_log(&config, &source)?;
    protect_process();
    let authority = state::authority(&config).map_err(|error| Exit::startup(&error))?;
    let storage = sealing::storage(&config).await;
    let storage = storage.map_err(|error| Exit::startup(&error))?;
    let (api_key, is_new) = state::api_key(&config, &source).map_err(|e| Exit::startup(&e))?;
    let events = Sink::to_writer(Box::new(std::io::stdout()));
    let audit = audit(&config, &storage, &events)?;
    if is_new {
        let text = String::from_utf8_lossy(api_key.expose());
        events.event(json!({ "event": "api_key", "api_key": text }));
    }
    let api_key = Fingerprint::of(api_key.expose());
    let parts = Parts {
        authority,
        api_key,
        audit,
        storage,
    };
    // Before the listeners, so that no signal is missed once they are announced.
    let stop = Stop::new()?;
    let app = App::start(&config, parts)
        .await
        .map_err(|error| Exit::startup(&error))?;
    let control = control(&config, &app);
    events.event(ready(&app, &config.state_dir.join(state::CA_FILE)));
    if config.dev {
        tracing::warn!("--dev: loopback upstreams and unscoped secrets are allowed");
    }
    stop.wait().await;
    tracing::info!("draining");
    app.drain().await;
    if let Some(control) = control {
        control.abort();
        // Its end removes the socket's file.
        drop(control.await);
    }
    events.flush();
    Ok(())
}

/// Makes the sink of audit records: the stream of all events, or a file.
fn audit(config: &Config, storage: &Storage, events: &Sink) -> Result<Sink, Exit> {
    let audit = &config.audit;
    let sink = match audit.sink {
        AuditSink::Stdout => events.clone(),
        AuditSink::File => {
            let options = FileOptions {
                path: audit.path(&config.state_dir),
                rotate_bytes: audit.rotate_bytes,
                keep: audit.keep,
            };
            let sink = Sink::to_file(options, &storage.keyring);
            sink.map_err(|error| Exit::failed(&format!("audit.file: {}", chain(&error))))?
        }
    };
    Ok(match audit.on_full {
        OnFull::Gap => sink,
        OnFull::Refuse => sink.refusing_when_full(),
    })
}

/// Lets commands of the same user reach the server, where there is a store that they may be about.
fn control(config: &Config, app: &App) -> Option<JoinHandle<()>> {
    let store = config.store.file(&config.state_dir)?;
    let control = Control::open(&store).inspect_err(|error| {
        tracing::warn!(%error, "no control socket: sealing keys can be rotated at a restart only");
    });
    let (sessions, keys) = (Arc::clone(app.sessions()), KeySource::of(config));
    Some(tokio::spawn(control.ok()?.serve(sessions, keys)))
}

fn ready(app: &App, ca: &PathBuf) -> serde_json::Value {
    let listening = app.listening();
    json!({
        "event": "ready",
        "listen": listening.plain,
        "tls_listen": listening.tls,
        "admin_listen": listening.admin,
        "ca": ca,
    })
}

fn start_log(config: &Config, source: &Source) -> Result<(), Exit> {
    let filter = source
        .variable("OSHU_VAULT_LOG")
        .map(|text| text.to_string_lossy());
    let filter = filter.as_deref().unwrap_or("info");
    telemetry::init(config.log, filter)
        .map_err(|error| Exit::usage(format!("OSHU_VAULT_LOG: {}", chain(&error))))
}

/// Keeps secrets out of core files and from other processes of the same user.
pub(super) fn protect_process() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!(%error, "core files cannot be switched off");
    }
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "the process cannot be made undumpable");
    }
}

/// The signals that ask for an orderly end.
pub(super) struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    pub(super) fn new() -> Result<Self, Exit> {
        let listen = |kind| {
            signal(kind).map_err(|error| Exit {
                code: STARTUP,
                text: format!("error: signals cannot be received: {error}"),
                to_stdout: false,
            })
        };
        let terminate = listen(SignalKind::terminate())?;
        Ok(Self {
            terminate,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    pub(super) async fn wait(mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
