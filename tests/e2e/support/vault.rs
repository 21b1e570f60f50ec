//! A vault in process: the real `App` on ports of the system's choice.
//!
//! Only what a deployment would configure is set here; tests reach everything else through the
//! listeners and the SDK. Audit records are captured as the lines that stdout would carry.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::SystemTime;

use oshu_vault::app::{App, Listening, Parts, Storage, TENANT};
use oshu_vault::audit::{Kind, Record, Sink};
use oshu_vault::authority::{CertificateAuthority, Root};
use oshu_vault::config::{Config, OnFull, Resolve};
use oshu_vault::host::Host;
use oshu_vault::id::{SessionId, TenantId};
use oshu_vault::policy::Cidr;
use oshu_vault::seal::Keyring;
use oshu_vault::secret::Fingerprint;
use oshu_vault::store::Store;
use oshu_vault_sdk::{Client, CreateSession, CreatedSession};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{TestCa, Workload, within};

/// The API key of every vault of the suite.
pub(crate) const API_KEY: &str = "ovk_0123456789abcdef0123456789abcdef";

/// How a vault is set up.
pub(crate) struct VaultBuilder {
    config: Config,
    trusted: Vec<Arc<TestCa>>,
    storage: Storage,
    authority: Option<Arc<CertificateAuthority>>,
    ca: Option<PathBuf>,
}

impl VaultBuilder {
    /// Turns developer mode off or on: loopback upstreams, any port, unscoped secrets.
    pub(crate) fn dev(mut self, dev: bool) -> Self {
        self.config.dev = dev;
        self.config.danger_unscoped_secrets = dev;
        self
    }

    /// Leaves developer mode, and opens loopback as an operator would: for the origins.
    pub(crate) fn strict(self) -> Self {
        let loopback = Cidr::parse("127.0.0.0/8").expect("a range");
        self.dev(false)
            .config(|config| config.upstream.allow_cidrs.push(loopback))
    }

    /// Gives a name a fixed address; its port replaces the one asked for.
    pub(crate) fn resolve(mut self, host: &str, address: SocketAddr) -> Self {
        let host = Host::parse(host).expect("a host");
        let (ip, port) = (address.ip(), Some(address.port()));
        self.config
            .upstream
            .resolve
            .push(Resolve { host, ip, port });
        self
    }

    /// Trusts one more CA for upstreams, beside the suite's own.
    pub(crate) fn trust(mut self, ca: &Arc<TestCa>) -> Self {
        self.trusted.push(Arc::clone(ca));
        self
    }

    /// Signs with an authority of the test's choice.
    pub(crate) fn authority(mut self, authority: Arc<CertificateAuthority>) -> Self {
        self.authority = Some(authority);
        self
    }

    /// Keeps sessions in a store of the test's choice.
    pub(crate) fn store(mut self, store: Arc<dyn Store>) -> Self {
        self.storage.store = store;
        self
    }

    /// Seals with keys of the test's choice.
    pub(crate) fn keyring(mut self, keyring: Keyring) -> Self {
        self.storage.keyring = keyring;
        self
    }

    /// Has its CA in this folder, which it may share with others.
    pub(crate) fn ca(mut self, folder: &Path) -> Self {
        self.ca = Some(folder.to_owned());
        self
    }

    /// Changes the configuration.
    pub(crate) fn config(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// Starts the vault.
    pub(crate) async fn start(mut self) -> Vault {
        let state = tempfile::tempdir().expect("a directory");
        for (index, ca) in self.trusted.iter().enumerate() {
            let path = state.path().join(format!("origin-{index}.pem"));
            std::fs::write(&path, ca.pem()).expect("a file");
            self.config.upstream.ca_files.push(path);
        }
        self.config.state_dir = state.path().to_owned();
        let ca = self.ca.unwrap_or_else(|| state.path().join("ca"));
        let authority = self.authority.unwrap_or_else(|| {
            let root = Root::load_or_generate(&ca).expect("a root");
            Arc::new(CertificateAuthority::new(root).expect("an authority"))
        });
        let log = AuditLog::default();
        let sink = Sink::to_writer(Box::new(log.clone()));
        let sink = match self.config.audit.on_full {
            OnFull::Gap => sink,
            OnFull::Refuse => sink.refusing_when_full(),
        };
        let parts = Parts {
            authority: Arc::clone(&authority),
            api_key: Fingerprint::of(API_KEY.as_bytes()),
            audit: sink.clone(),
            storage: self.storage,
        };
        let app = App::start(&self.config, parts)
            .await
            .expect("the vault starts");
        let listening = app.listening();
        Vault {
            app: Some(app),
            listening,
            authority,
            audit: log.with(sink),
            _state: state,
        }
    }
}

/// A running vault.
pub(crate) struct Vault {
    app: Option<App>,
    listening: Listening,
    authority: Arc<CertificateAuthority>,
    audit: AuditLog,
    _state: TempDir,
}

impl Vault {
    /// Sets up a vault: developer mode, a plain, a TLS and an admin listener.
    pub(crate) fn builder() -> VaultBuilder {
        let mut config = Config::default();
        let any = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        (
            config.proxy.listen,
            config.proxy.tls_listen,
            config.admin.listen,
        ) = (any, any, any);
        VaultBuilder {
            config,
            trusted: vec![TestCa::shared()],
            storage: Storage::in_memory(),
            authority: None,
            ca: None,
        }
        .dev(true)
    }

    /// Returns the plain listener's address.
    pub(crate) fn plain_addr(&self) -> SocketAddr {
        self.listening.plain.expect("a plain listener")
    }

    /// Returns the TLS listener's address.
    pub(crate) fn tls_addr(&self) -> SocketAddr {
        self.listening.tls.expect("a TLS listener")
    }

    /// Returns the admin listener's address.
    pub(crate) fn admin_addr(&self) -> SocketAddr {
        self.listening.admin.expect("an admin listener")
    }

    /// Returns the vault's CA as PEM.
    pub(crate) fn ca_pem(&self) -> &str {
        self.authority.root().cert_pem()
    }

    /// Returns how many leaves were minted, and how many are kept.
    pub(crate) fn leaves(&self) -> (u64, usize) {
        (self.authority.minted(), self.authority.cached())
    }

    /// Returns a client of the management API.
    pub(crate) fn sdk(&self) -> Client {
        let base = format!("http://{}", self.plain_addr());
        Client::builder(base, API_KEY).build().expect("a client")
    }

    /// Creates a session.
    pub(crate) async fn session(&self, request: &CreateSession) -> CreatedSession {
        self.sdk().create_session(request).await.expect("a session")
    }

    /// Returns when a session expires if it is not used again.
    pub(crate) fn expires(&self, session: &CreatedSession) -> SystemTime {
        let sessions = self.app.as_ref().expect("not drained").sessions();
        let id = SessionId::parse(&session.session_id).expect("an id");
        let found = sessions.find(&TenantId::new(TENANT), &id);
        found.expect("a live session").expires()
    }

    /// Returns the URL with credentials by which a session reaches the plain listener.
    pub(crate) fn proxy_url(&self, session: &CreatedSession) -> String {
        format!(
            "http://{}:{}@{}",
            session.session_id,
            session.token,
            self.plain_addr()
        )
    }

    /// Returns the URL with credentials by which a session reaches the TLS listener.
    pub(crate) fn proxy_url_tls(&self, session: &CreatedSession) -> String {
        format!(
            "https://{}:{}@{}",
            session.session_id,
            session.token,
            self.tls_addr()
        )
    }

    /// Returns a workload with a session's credentials.
    pub(crate) fn workload(&self, session: &CreatedSession) -> Workload {
        Workload::new(self, &session.session_id, &session.token)
    }

    /// Returns the audit log, which outlives the vault.
    pub(crate) fn audit_log(&self) -> &AuditLog {
        &self.audit
    }

    /// Returns the audit records written so far.
    pub(crate) fn audit(&self) -> Vec<Value> {
        self.audit.lines()
    }

    /// Begins the drain. Only the first call does.
    pub(crate) fn drain(&mut self) -> JoinHandle<()> {
        let app = self.app.take().expect("the vault drains once");
        tokio::spawn(app.drain())
    }
}

/// The lines of the audit sink. Clones share them.
#[derive(Clone)]
pub(crate) struct AuditLog {
    text: Arc<Mutex<Vec<u8>>>,
    changed: watch::Sender<()>,
    /// Whether writes are held, and one is.
    held: Arc<(Mutex<(bool, bool)>, Condvar)>,
    sink: Option<Sink>,
}

impl Default for AuditLog {
    fn default() -> Self {
        Self {
            text: Arc::default(),
            changed: watch::Sender::new(()),
            held: Arc::default(),
            sink: None,
        }
    }
}

impl AuditLog {
    fn with(mut self, sink: Sink) -> Self {
        self.sink = Some(sink);
        self
    }

    /// Returns the sink.
    pub(crate) fn sink(&self) -> &Sink {
        self.sink.as_ref().expect("the sink of a vault")
    }

    /// Holds all writes, or lets them go.
    pub(crate) fn hold(&self, held: bool) {
        let mut state = self.held.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = (held, false);
        self.held.1.notify_all();
    }

    /// Holds all writes and hands over records until no more find room.
    pub(crate) fn fill(&self) {
        self.hold(true);
        let lost = self.sink().stats().lost;
        drop(Record::begin(self.sink(), Kind::Session));
        let state = self.held.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (lock, far) = (&self.held.1, std::time::Duration::from_secs(30));
        let waited = lock.wait_timeout_while(state, far, |(_, is_one)| !*is_one);
        let (state, late) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(!late.timed_out(), "the writer comes");
        drop(state);
        while self.sink().stats().lost == lost {
            drop(Record::begin(self.sink(), Kind::Session));
        }
    }

    /// Returns everything as it was written.
    pub(crate) fn raw(&self) -> Vec<u8> {
        if let Some(sink) = &self.sink {
            sink.flush();
        }
        self.text
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Returns the lines so far, parsed.
    pub(crate) fn lines(&self) -> Vec<Value> {
        let text = String::from_utf8(self.raw()).expect("lines in UTF-8");
        text.lines()
            .map(|line| serde_json::from_str(line).expect("a JSON line"))
            .collect()
    }

    /// Waits until the lines meet a condition, and returns them.
    pub(crate) async fn wait(&self, what: &str, met: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let mut changed = self.changed.subscribe();
        within(what, async {
            loop {
                let lines = self.lines();
                if met(&lines) {
                    return lines;
                }
                changed.changed().await.expect("the log lives");
            }
        })
        .await
    }
}

impl Write for AuditLog {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut state = self.held.0.lock().unwrap_or_else(PoisonError::into_inner);
        while state.0 {
            state.1 = true;
            self.held.1.notify_all();
            let woken = self.held.1.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        self.text
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend_from_slice(bytes);
        self.changed.send_replace(());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
