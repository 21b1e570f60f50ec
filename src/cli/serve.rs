//! `serve`: the server, from its configuration to its drain, or to the end of what it has open when
//! another process has taken over.
//!
//! Stdout carries JSON lines only: the API key at the first start of `--dev`, the addresses when
//! all listeners are bound, then audit records unless they go to a file, and that another process
//! took over. Everything else goes to stderr.

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use super::control::{self, Control, Served};
use super::sealing::{self, KeySource};
use super::state;
use super::{Exit, STARTUP, chain};
use crate::app::{App, Hello, Inherited, Parts, Storage};
use crate::audit::{Error as AuditError, FileOptions, Sink};
use crate::authority::CertificateAuthority;
use crate::config::{AuditSink, Config, Flags, OnFull, Source};
use crate::seal::Keyring;
use crate::secret::Fingerprint;
use crate::serve::Sockets;
use crate::telemetry;

/// How long the end of another writer of the audit file is waited for.
const AUDIT_PATIENCE: Duration = Duration::from_secs(5);
const AUDIT_PAUSE: Duration = Duration::from_millis(50);
/// The names of the sockets that the system hands in.
const SOCKET_NAMES: &str = "LISTEN_FDNAMES";

/// Takes the listening sockets that the system hands in (`LISTEN_FDS`). Called before any thread is
/// there: it takes variables out of the environment.
pub(super) fn given_sockets() -> Vec<std::io::Result<TcpListener>> {
    let mut given = listenfd::ListenFd::from_env();
    let taken = (0..given.len()).map(|index| given.take_tcp_listener(index).transpose());
    taken.flatten().collect()
}

/// What `serve` is given besides its configuration.
#[derive(Debug)]
pub(super) struct Given {
    /// Takes over from a running server.
    pub(super) takes_over: bool,
    /// The sockets of the system.
    pub(super) sockets: Vec<std::io::Result<TcpListener>>,
}

/// Runs the server until it is told to stop.
pub(super) async fn serve(flags: Flags, given: Given) -> Result<(), Exit> {
    let source = Source::process(flags);
    let config = Config::load(&source)?;
    start_log(&config, &source)?;
    protect_process();
    let authority = state::authority(&config).map_err(|error| Exit::startup(&error))?;
    let (inherited, keys) = inherit(&config, &source, given, &authority).await?;
    let storage = sealing::storage(&config, keys).await;
    let storage = storage.map_err(|error| Exit::startup(&error))?;
    let (api_key, is_new) = state::api_key(&config, &source).map_err(|e| Exit::startup(&e))?;
    let events = Sink::to_writer(Box::new(std::io::stdout()));
    let audit = audit(&config, &storage, &events).await?;
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
    let mut stop = Stop::new()?;
    let app = App::start_with(&config, parts, inherited)
        .await
        .map_err(|error| Exit::startup(&error))?;
    let control = control(&config, &app);
    let roots = Arc::clone(app.authority());
    let roots = tokio::spawn(state::watch_authority(roots, config.state_dir.clone()));
    events.event(ready(&app, &config.state_dir.join(state::CA_FILE)));
    if config.dev {
        tracing::warn!("--dev: loopback upstreams and unscoped secrets are allowed");
    }
    tokio::select! {
        () = stop.wait() => {
            tracing::info!("draining");
            app.drain().await;
        }
        () = app.handed_over() => {
            tracing::info!("handed over: what is open is served to its end");
            events.event(json!({ "event": "handed_over" }));
            app.retire(stop.wait()).await;
        }
    }
    roots.abort();
    if let Some(control) = control {
        control.abort();
        // Its end removes the socket's file.
        drop(control.await);
    }
    events.flush();
    Ok(())
}

/// Makes the sink of audit records: the stream of all events, or a file.
async fn audit(config: &Config, storage: &Storage, events: &Sink) -> Result<Sink, Exit> {
    let audit = &config.audit;
    let sink = match audit.sink {
        AuditSink::Stdout => events.clone(),
        AuditSink::File => {
            let options = FileOptions {
                path: audit.path(&config.state_dir),
                rotate_bytes: audit.rotate_bytes,
                keep: audit.keep,
            };
            let since = Instant::now();
            let sink = loop {
                match Sink::to_file(options.clone(), &storage.keyring) {
                    // A process that had handed over to one that is gone writes its last lines.
                    Err(AuditError::InUse(_)) if since.elapsed() < AUDIT_PATIENCE => {
                        tokio::time::sleep(AUDIT_PAUSE).await;
                    }
                    tried => break tried,
                }
            };
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
    let store = config.store.beside(&config.state_dir)?;
    let control = Control::open(&store).inspect_err(|error| {
        tracing::warn!(%error, "no control socket: sealing keys can be rotated at a restart only");
    });
    let served = Served {
        sessions: Arc::clone(app.sessions()),
        paying: Some(app.paying().clone()),
        handover: Some(Arc::clone(app.handover())),
    };
    let keys = KeySource::of(config);
    Some(tokio::spawn(control.ok()?.serve(served, keys)))
}

/// Takes what others had before: the system's sockets, and a running server's whole service; with
/// that the sealing keys that both have.
async fn inherit(
    config: &Config,
    source: &Source,
    given: Given,
    authority: &CertificateAuthority,
) -> Result<(Inherited, Option<Keyring>), Exit> {
    let names = source.variable(SOCKET_NAMES).unwrap_or_default();
    let names = names.to_string_lossy();
    let mut names = names.split(':');
    let mut sockets = Sockets::default();
    for socket in given.sockets {
        let name = names.next().unwrap_or_default();
        let added = socket.and_then(|socket| sockets.add(name, socket));
        added.map_err(|error| Exit::failed(&format!("LISTEN_FDS: socket {name:?}: {error}")))?;
    }
    let mut inherited = Inherited {
        given: sockets,
        predecessor: None,
    };
    if !given.takes_over {
        return Ok((inherited, None));
    }
    let Some(store) = config.store.beside(&config.state_dir) else {
        return Err(Exit::usage(
            "error: --take-over: what store.url = \"memory\" keeps ends with its process"
                .to_owned(),
        ));
    };
    let found = control::find(&store).await;
    let Some(stream) = found.map_err(|error| Exit::startup(&error))? else {
        tracing::info!("no server to take over from");
        return Ok((inherited, None));
    };
    let keys = KeySource::of(config).read().await;
    let keys = keys.map_err(|error| Exit::startup(&error))?;
    let hello = Hello::new(authority, keys.ids());
    let asked = control::ask_to_hand_over(stream, &hello).await;
    inherited.predecessor = Some(asked.map_err(|error| Exit::startup(&error))?);
    // Those that were compared are used, and reading them takes none of the time that is left.
    Ok((inherited, Some(keys)))
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

    pub(super) async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
