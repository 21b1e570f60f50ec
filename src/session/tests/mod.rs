//! What the tests of sessions share: forms, a store that can be held or broken, a clock to move.
//!
//! The tests stand beside it, by what they are about. No test sleeps: time is moved by hand, and
//! what must happen at once is held at the store until the other side is there.

mod captures;
mod endings;
mod fleet;
mod link;
mod live;
mod patches;
mod properties;
mod record;
mod restarts;
mod rotation;
mod scopes;
mod scrubs;
mod spec;
mod tenants;
mod view;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::sync::Semaphore;

use crate::audit::Sink;
use crate::host::HostPort;
use crate::id::TenantId;
use crate::policy::{AddressRules, Catalogue, Scheme, known_token_endpoints};
use crate::seal::Keyring;
use crate::sealed_token::{MARKER, Place, TokenId};
use crate::secret::Secret;
use crate::session::life::Clock;
use crate::session::{
    CaptureForm, Created, Form, HostView, Options, SecretForm, SessionHandle, Sessions,
};
use crate::store::{
    BoxFuture, Error, Memory, RecordKey, RecordKind, RecordRows, Row, RowKey, Rows, Store,
};
use crate::swap::Lookup;
use crate::tenant::{Limits, Tenants};

/// A value that may stand nowhere but in the session and, by name, in an opening.
const CANARY: &str = "canary-secret-value-0123456789";
const MINUTE: Duration = Duration::from_mins(1);
/// The last moment of a minute, and what is before it.
const TICK: Duration = Duration::from_millis(1);
const NEARLY: Duration = Duration::from_millis(59_999);
/// Parsed once: it is long, and some tests ask for it a thousand times.
static CATALOGUE: LazyLock<Arc<Catalogue>> = LazyLock::new(|| Arc::new(Catalogue::builtin()));
/// A credential field that every secret may stand in.
const KEY: Place<'static> = Place::Header(b"x-key");

fn tenant(name: &str) -> TenantId {
    TenantId::new(name)
}

fn target(text: &str) -> HostPort {
    HostPort::parse(text).unwrap()
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

/// A secret that says nothing of its own.
fn secret(value: impl Into<Vec<u8>>) -> SecretForm {
    SecretForm {
        value: Secret::new(value.into()),
        hosts: None,
        inject: None,
        prefix: None,
    }
}

/// A secret with hosts of its own.
fn scoped(value: &str, hosts: &[&str]) -> SecretForm {
    SecretForm {
        hosts: Some(texts(hosts)),
        ..secret(value)
    }
}

fn form<'a>(secrets: impl IntoIterator<Item = (&'a str, SecretForm)>) -> Form {
    let secrets = secrets.into_iter();
    Form {
        secrets: secrets.map(|(name, it)| (name.to_owned(), it)).collect(),
        ..Form::default()
    }
}

/// A session of one secret, for `api.example.com`, that lives a minute after its last use.
fn one_secret() -> Form {
    Form {
        ttl_seconds: Some(60),
        max_lifetime_seconds: Some(600),
        ..form([("OWN", scoped(CANARY, &["api.example.com"]))])
    }
}

fn options() -> Options {
    Options {
        catalogue: Arc::clone(&CATALOGUE),
        token_endpoints: known_token_endpoints(),
        unscoped_secrets: false,
        any_port: false,
    }
}

fn closed() -> AddressRules {
    AddressRules::new(Vec::new(), false)
}

/// Takes audit lines.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    /// Returns what a sink wrote here.
    fn of(&self, sink: &Sink) -> String {
        sink.flush();
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8(lines.clone()).unwrap()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A store that can fail, and that can hold one change until it is let go.
#[derive(Debug)]
struct TestStore {
    rows: Memory,
    fails: AtomicBool,
    refused: AtomicUsize,
    holds: AtomicBool,
    arrived: Semaphore,
    released: Semaphore,
}

impl TestStore {
    fn new() -> Self {
        Self {
            rows: Memory::new(),
            fails: AtomicBool::new(false),
            refused: AtomicUsize::new(0),
            holds: AtomicBool::new(false),
            arrived: Semaphore::new(0),
            released: Semaphore::new(0),
        }
    }

    fn fail(&self, fails: bool) {
        self.fails.store(fails, Ordering::SeqCst);
    }

    fn hold(&self) {
        self.holds.store(true, Ordering::SeqCst);
    }

    /// Waits until a change is held.
    async fn holding(&self) {
        self.arrived.acquire().await.unwrap().forget();
    }

    /// Lets the change that is held go on, and holds no other.
    fn release(&self) {
        self.holds.store(false, Ordering::SeqCst);
        self.released.add_permits(1);
    }

    /// Fails or waits as the test wants it.
    async fn obey(&self) -> Result<(), Error> {
        if self.holds.load(Ordering::SeqCst) {
            self.arrived.add_permits(1);
            self.released.acquire().await.unwrap().forget();
        }
        if self.fails.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(Error::Unavailable("broken by the test".into()));
        }
        Ok(())
    }
}

impl Store for TestStore {
    fn put(&self, key: &RowKey, row: Row) -> BoxFuture<'_, Result<(), Error>> {
        let key = key.clone();
        Box::pin(async move {
            self.obey().await?;
            self.rows.put(&key, row).await
        })
    }

    fn get(&self, key: &RowKey) -> BoxFuture<'_, Result<Option<Row>, Error>> {
        self.rows.get(key)
    }

    fn delete(&self, key: &RowKey) -> BoxFuture<'_, Result<bool, Error>> {
        let key = key.clone();
        Box::pin(async move {
            self.obey().await?;
            self.rows.delete(&key).await
        })
    }

    fn touch(&self, used: Vec<(RowKey, u64)>) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            self.obey().await?;
            self.rows.touch(used).await
        })
    }

    fn load(&self) -> BoxFuture<'_, Result<Rows, Error>> {
        self.rows.load()
    }

    fn put_record(&self, key: &RecordKey, sealed: Vec<u8>) -> BoxFuture<'_, Result<(), Error>> {
        let key = key.clone();
        Box::pin(async move {
            self.obey().await?;
            self.rows.put_record(&key, sealed).await
        })
    }

    fn record(&self, key: &RecordKey) -> BoxFuture<'_, Result<Option<Vec<u8>>, Error>> {
        self.rows.record(key)
    }

    fn delete_record(&self, key: &RecordKey) -> BoxFuture<'_, Result<bool, Error>> {
        let key = key.clone();
        Box::pin(async move {
            self.obey().await?;
            self.rows.delete_record(&key).await
        })
    }

    fn load_records(&self, kind: RecordKind) -> BoxFuture<'_, Result<RecordRows, Error>> {
        self.rows.load_records(kind)
    }
}

/// Sessions with their store and their clock.
struct World {
    sessions: Arc<Sessions>,
    store: Arc<TestStore>,
    clock: Clock,
    tenant: TenantId,
}

/// Makes `acme` and `other` tenants that stand.
fn with_two(sessions: Sessions) -> Sessions {
    let tenants = Tenants::new(Arc::clone(sessions.records()), Limits::default(), 0);
    let tenants = tenants.with(&tenant("acme")).with(&tenant("other"));
    sessions.with_tenants(Arc::new(tenants))
}

impl World {
    fn new() -> Self {
        Self::with(options(), Keyring::generate(), Sink::discard())
    }

    fn with(options: Options, keyring: Keyring, audit: Sink) -> Self {
        let (store, clock) = (Arc::new(TestStore::new()), Clock::default());
        let rows: Arc<dyn Store> = Arc::clone(&store) as _;
        let sessions = Sessions::new(rows, keyring, options, Arc::new(closed()), audit);
        let sessions = with_two(sessions);
        Self {
            sessions: Arc::new(sessions.with_clock(clock.clone())),
            store,
            clock,
            tenant: tenant("acme"),
        }
    }

    async fn create(&self, form: Form) -> Created {
        self.sessions.create(&self.tenant, form).await.unwrap()
    }

    /// Patches, and returns the sealed tokens that are new.
    async fn patch(
        &self,
        handle: &SessionHandle,
        change: impl FnOnce(&mut Form),
    ) -> BTreeMap<String, String> {
        let changed = |mut form: Form| {
            change(&mut form);
            Ok(form)
        };
        let patched = self
            .sessions
            .patch(&self.tenant, handle.id(), changed)
            .await;
        patched.unwrap().sealed_secrets
    }

    /// Starts again over the same rows.
    fn restarted(&self, keyring: Keyring) -> Self {
        self.restarted_with(options(), keyring)
    }

    fn restarted_with(&self, options: Options, keyring: Keyring) -> Self {
        let clock = Clock::default();
        let rows: Arc<dyn Store> = Arc::clone(&self.store) as _;
        let rules = Arc::new(closed());
        let sessions = Sessions::new(rows, keyring, options, rules, Sink::discard());
        let sessions = with_two(sessions);
        Self {
            sessions: Arc::new(sessions.with_clock(clock.clone())),
            store: Arc::clone(&self.store),
            clock,
            tenant: self.tenant.clone(),
        }
    }

    /// Returns the live session of an id.
    fn live(&self, created: &Created) -> Option<Arc<SessionHandle>> {
        self.sessions.find(&self.tenant, created.handle.id())
    }

    /// Does what is done once a second.
    async fn sweep(&self) {
        self.sessions.cut_expired();
        self.sessions.settle().await;
    }

    async fn rows(&self) -> usize {
        self.store.load().await.unwrap().rows.len()
    }

    fn finds(&self, handle: &SessionHandle) -> bool {
        self.sessions.find(&self.tenant, handle.id()).is_some()
    }

    /// Authenticates as the workload of a session.
    fn admits(&self, created: &Created) -> bool {
        let field = credentials(created.handle.id().as_str(), created.credential.expose());
        let found = self.sessions.authenticate(field.as_bytes());
        found.is_some_and(|found| Arc::ptr_eq(found.handle(), &created.handle))
    }
}

/// Writes a `Proxy-Authorization` value.
fn credentials(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// Opens a sealed token as the swap does: what stands before the marker is given beside the id.
fn open(view: &HostView, token: &str, place: Place<'_>) -> Option<String> {
    let (before, digits) = token.split_once(std::str::from_utf8(MARKER).unwrap())?;
    let id = TokenId::read(digits.as_bytes())?;
    let opening = view.open(id, before.as_bytes(), place)?;
    assert!(before.len() >= opening.prefix_length);
    Some(String::from_utf8(opening.secret.expose().to_vec()).unwrap())
}

/// Opens a sealed token for a host as the session stands now, over TLS, in the field `x-key`.
fn open_for(handle: &SessionHandle, host: &str, token: &str) -> Option<String> {
    let view = handle.host_view(&target(host), Scheme::Https).ok()?;
    open(&view, token, KEY)
}
