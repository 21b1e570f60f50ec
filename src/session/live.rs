//! The table of live sessions: creates, patches, finds, authenticates and ends them.
//!
//! A patch is durable first, then the view changes, then the version. A deletion cuts first, then
//! becomes durable. Called by the proxy, the management API and the sweeper.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant, SystemTime};

use dashmap::DashMap;

use super::Error;
use super::capture;
use super::credential::{Credential, decode_basic};
use super::fleet::Nodes;
use super::handle::{Counters, SessionHandle, Standing};
use super::life::{Clock, Life};
use super::link::Peers;
use super::quota::{Open, Quotas};
use super::record::{self, Written, millis, random};
use super::spec::{FieldError, Form, Options, Spec, Warning};
use super::tenants::place;
use super::view::{Retired, Sealed, SessionView};
use crate::audit::{Decision, Kind, Record, Sink};
use crate::id::{SessionId, TenantId};
use crate::policy::AddressRules;
use crate::records::Records;
use crate::seal::Keyring;
use crate::sealed_token::SealedToken;
use crate::secret::Fingerprint;
use crate::store::{Over, Row, RowKey, Store};
use crate::telemetry::Histogram;
use crate::tenant::{Limits, Place, Tenant, Tenants};
use crate::upstream::Pool;

/// How long sessions are served without word from a store that others use as well, where nothing
/// else was said.
const MAX_STALE: Duration = Duration::from_secs(10);

/// The proof that a caller is a session's workload.
#[derive(Clone, Debug)]
pub struct Authenticated {
    handle: Arc<SessionHandle>,
}

impl Authenticated {
    /// Returns the session.
    pub fn handle(&self) -> &Arc<SessionHandle> {
        &self.handle
    }
}

/// A session that was just created. The credential is shown here and never again.
#[derive(Debug)]
pub struct Created {
    /// The session.
    pub handle: Arc<SessionHandle>,
    /// What the workload authenticates with.
    pub credential: Credential,
    /// The sealed tokens by the names of their secrets.
    pub sealed_secrets: BTreeMap<String, String>,
    /// What was accepted but weakens the session.
    pub warnings: Vec<Warning>,
}

/// A session that was just patched.
#[derive(Debug)]
pub struct Patched {
    /// The session.
    pub handle: Arc<SessionHandle>,
    /// The sealed tokens of new names only.
    pub sealed_secrets: BTreeMap<String, String>,
    /// What was accepted but weakens the session.
    pub warnings: Vec<Warning>,
}

/// All live sessions.
#[derive(Debug)]
pub struct Sessions {
    pub(super) table: DashMap<SessionId, Arc<SessionHandle>>,
    pub(super) store: Arc<dyn Store>,
    /// Held while a row that it sealed is on its way to the store: once it is replaced, no row
    /// comes under the key before.
    pub(super) keyring: Arc<tokio::sync::RwLock<Keyring>>,
    /// What else is kept under the same keyring.
    pub(super) records: Arc<Records>,
    pub(super) options: Options,
    pub(super) tenants: Arc<Tenants>,
    quotas: Quotas,
    rules: Arc<AddressRules>,
    pub(super) audit: Sink,
    pub(super) clock: Clock,
    /// Rows that are in the store and were refused.
    pub(super) refused: Mutex<BTreeSet<RowKey>>,
    /// How long changes took until they were durable, or failed.
    pub(super) store_times: Histogram,
    /// One rotation at a time.
    pub(super) rotating: tokio::sync::Mutex<()>,
    /// Other processes that serve the same sessions.
    pub(super) peers: Arc<Peers>,
    /// What is known of other nodes that use the same store.
    pub(super) nodes: Nodes,
    /// One sweep at a time: each end is told once.
    pub(super) sweeping: Mutex<()>,
    /// Compared with where there is no session, so that both cases do the same work.
    decoy: Fingerprint,
}

impl Sessions {
    /// Starts with no session.
    pub fn new(
        store: Arc<dyn Store>,
        keyring: Keyring,
        options: Options,
        rules: Arc<AddressRules>,
        audit: Sink,
    ) -> Self {
        let decoy = Credential::generate().fingerprint();
        let keyring = Arc::new(tokio::sync::RwLock::new(keyring));
        let peers = Arc::new(Peers::default());
        let records = Records::new(Arc::clone(&store), Arc::clone(&keyring));
        let told = Arc::clone(&peers);
        let records = Arc::new(records.telling(move |news| told.tell_news(news)));
        Self {
            table: DashMap::new(),
            store,
            keyring,
            tenants: Arc::new(Tenants::new(Arc::clone(&records), Limits::default(), 0)),
            records,
            options,
            quotas: Quotas::default(),
            rules,
            audit,
            clock: Clock::default(),
            refused: Mutex::default(),
            store_times: Histogram::default(),
            rotating: tokio::sync::Mutex::default(),
            peers,
            nodes: Nodes::new(MAX_STALE),
            sweeping: Mutex::default(),
            decoy,
        }
    }

    /// Sets how much each session may have open.
    #[must_use]
    pub fn with_quotas(mut self, quotas: Quotas) -> Self {
        self.quotas = quotas;
        self
    }

    /// Sets whose sessions there may be. Without this there is no tenant, and so no session.
    #[must_use]
    pub fn with_tenants(mut self, tenants: Arc<Tenants>) -> Self {
        self.tenants = tenants;
        self
    }

    /// Returns the tenants.
    pub fn tenants(&self) -> &Arc<Tenants> {
        &self.tenants
    }

    /// Returns what keeps other records under the keyring of the sessions: a rotation takes both.
    pub fn records(&self) -> &Arc<Records> {
        &self.records
    }

    /// Takes the time from a clock that a test can move.
    #[cfg(test)]
    pub(super) fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Lists what is wrong with a form, and changes nothing: for a caller that has found other
    /// faults and wants to tell them all at once.
    pub fn check(&self, form: &Form) -> Vec<FieldError> {
        Spec::parse(form, &self.options).err().unwrap_or_default()
    }

    /// Creates a session: checked, durable, then live.
    ///
    /// # Errors
    /// [`Error::Invalid`] with every bad field; [`Error::TenantSessions`]; [`Error::NoTenant`];
    /// [`Error::Store`].
    pub async fn create(&self, tenant: &TenantId, form: Form) -> Result<Created, Error> {
        let tenant = self.tenants.find(tenant).ok_or(Error::NoTenant)?;
        self.create_for(&tenant, form).await
    }

    /// Creates a session as [`Self::create`] does, for this tenant and for no other that may have
    /// its name by now.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub async fn create_for(&self, tenant: &Arc<Tenant>, form: Form) -> Result<Created, Error> {
        let spec = Spec::parse(&form, &self.options).map_err(Error::Invalid)?;
        let place = place(tenant)?;
        let tenant = tenant.id();
        let (id, credential) = (SessionId::generate(), Credential::generate());
        let (view, sealed_secrets) = make_view(&spec, 1, None);
        let mut audit = self.record(tenant, &id, "created");
        // Never older than its tenant, also where the clock was set back.
        let created = self.store.now().max(place.tenant().created());
        let fingerprint = credential.fingerprint();
        let written = Written {
            form: &form,
            view: &view,
            credential: &fingerprint,
            created,
            now: self.store.now(),
        };
        // Held until it is in the table: a rotation that saw its row alone would have nobody to ask.
        let keyring = self.keyring.read().await;
        self.persist_under(
            &keyring,
            (tenant, &id),
            &written,
            (millis(created), Over::Nothing),
        )
        .await?;
        let warnings = spec.warnings.clone();
        let handle = Arc::new(self.handle(Begun {
            id: id.clone(),
            tenant: tenant.clone(),
            place,
            credential: fingerprint,
            created,
            life: Life::new(self.clock.clone(), spec.ttl, spec.max_lifetime),
            standing: Standing {
                form,
                spec,
                view: Arc::new(view),
            },
        }));
        self.table.insert(id, Arc::clone(&handle));
        drop(keyring);
        if handle.is_cut() {
            // Its tenant ended meanwhile, and whoever ended it may not have seen this one.
            handle.end();
            self.forget(&handle).await?;
            return Err(Error::NoTenant);
        }
        if self.nodes.is_gone(&handle.id) {
            // Another node found it in the list, and was asked to delete it.
            self.lose(&handle.id);
        }
        audit.decision(Decision::Allowed, "ok");
        Ok(Created {
            handle,
            credential,
            sealed_secrets,
            warnings,
        })
    }

    /// Makes the live object of a session.
    pub(super) fn handle(&self, begun: Begun) -> SessionHandle {
        SessionHandle {
            id: begun.id,
            tenant: begun.tenant,
            cut: begun.place.tenant().cut().child_token(),
            place: begun.place,
            credential: begun.credential,
            created: begun.created,
            life: begun.life,
            version: AtomicU64::new(begun.standing.view.version),
            standing: RwLock::new(Arc::new(begun.standing)),
            changing: tokio::sync::Mutex::new(()),
            pool: Pool::keeping(self.quotas.pool),
            rules: Arc::clone(&self.rules),
            open: Open::new(self.quotas),
            counters: Counters::default(),
        }
    }

    /// Changes a session: checked as a whole, durable, then live for the next request.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Invalid`], [`Error::Conflict`]: nothing changed. [`Error::Store`]:
    /// nothing changed here, and nobody knows whether the store has it.
    pub async fn patch(
        &self,
        tenant: &TenantId,
        id: &SessionId,
        change: impl FnOnce(Form) -> Result<Form, Vec<FieldError>>,
    ) -> Result<Patched, Error> {
        if let Some(fleet) = self.store.fleet() {
            // What is patched is the latest, wherever it was made.
            self.refresh(fleet, id).await?;
        }
        let handle = self.find(tenant, id).ok_or(Error::NotFound)?;
        let one_at_a_time = handle.changing.lock().await;
        if handle.is_over() {
            return Err(Error::NotFound);
        }
        let mut audit = self.record(tenant, id, "patched");
        let before = handle.standing();
        let form = change(before.form.clone()).map_err(Error::Invalid)?;
        let spec = Spec::parse(&form, &self.options).map_err(Error::Invalid)?;
        let unread = capture::unread(&before.view.captured, &before.spec, &spec);
        if !unread.is_empty() {
            return Err(Error::Invalid(unread));
        }
        let version = before.view.version + 1;
        let (view, sealed_secrets) = make_view(&spec, version, Some(&before.view));
        let written = Written {
            form: &form,
            view: &view,
            credential: &handle.credential,
            created: handle.created,
            now: self.store.now(),
        };
        let now = millis(self.store.now());
        self.persist((tenant, id), &written, now, Over::Older)
            .await?;
        if handle.is_cut() {
            // It was deleted meanwhile. Whoever cut it waits for us, and then deletes the row.
            return Err(Error::NotFound);
        }
        let warnings = spec.warnings.clone();
        handle.replace(Standing {
            form,
            spec,
            view: Arc::new(view),
        });
        audit.decision(Decision::Allowed, "ok");
        drop(one_at_a_time);
        Ok(Patched {
            handle,
            sealed_secrets,
            warnings,
        })
    }

    /// Finds a live session of a tenant. Another tenant's is as if it were not there.
    pub fn find(&self, tenant: &TenantId, id: &SessionId) -> Option<Arc<SessionHandle>> {
        let own = self.in_table(id).filter(|own| own.tenant == *tenant);
        own.filter(|own| !own.is_over())
    }

    pub(super) fn in_table(&self, id: &SessionId) -> Option<Arc<SessionHandle>> {
        self.table.get(id).map(|entry| Arc::clone(entry.value()))
    }

    /// Lists a tenant's live sessions in the order of their ids, after the one given.
    pub fn list(
        &self,
        tenant: &TenantId,
        after: Option<&SessionId>,
        limit: usize,
    ) -> Vec<Arc<SessionHandle>> {
        let all = self.table.iter().map(|entry| Arc::clone(entry.value()));
        let mut own: Vec<_> = all
            .filter(|handle| handle.tenant == *tenant && !handle.is_over())
            .filter(|handle| after.is_none_or(|after| handle.id > *after))
            .collect();
        own.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        own.truncate(limit);
        own
    }

    /// Checks a `Proxy-Authorization` value (RFC 7617). Unknown, expired and wrong do the same
    /// work: one hash and one comparison.
    pub fn authenticate(&self, value: &[u8]) -> Option<Authenticated> {
        let decoded = decode_basic(value)?;
        let (id, token) = decoded.split_once(':')?;
        let handle = SessionId::parse(id).and_then(|id| self.in_table(&id));
        let kept = handle
            .as_ref()
            .map_or(&self.decoy, |handle| &handle.credential);
        let matches = kept.matches(token.as_bytes());
        let handle = handle.filter(|handle| matches && !handle.is_over())?;
        Some(Authenticated { handle })
    }

    /// Returns the sink of the sessions' records.
    pub fn audit(&self) -> &Sink {
        &self.audit
    }

    /// Returns the session that a `Proxy-Authorization` value claims to be of.
    pub(super) fn claimed(value: &[u8]) -> Option<SessionId> {
        let decoded = decode_basic(value)?;
        let (id, _) = decoded.split_once(':')?;
        SessionId::parse(id)
    }

    /// Tells whether the store takes changes, and whether those of other nodes are known, as far as
    /// is known.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn store_health(&self) -> Result<(), Error> {
        self.knows()?;
        self.store.health().map_err(Error::Store)
    }

    /// Returns how long changes took until they were durable, or failed.
    pub fn store_times(&self) -> &Histogram {
        &self.store_times
    }

    /// Adds up what all sessions have open. It looks at each of them.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for handle in &self.table {
            totals.tunnels += handle.tunnels();
            totals.idle += handle.pool.idle();
        }
        totals
    }

    /// Returns the number of sessions in the table: the live ones, and those whose row is still to
    /// be deleted.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Tells whether there is no session.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    pub(super) fn record(&self, tenant: &TenantId, id: &SessionId, action: &'static str) -> Record {
        let mut record = Record::begin(&self.audit, Kind::Session);
        record.tenant(tenant);
        record.session(id);
        record.action(action);
        record.decision(Decision::Failed, "not_done");
        record
    }

    /// Seals a record, makes it durable over what stands in its place, and tells whoever else serves
    /// the session.
    pub(super) async fn persist(
        &self,
        owner: (&TenantId, &SessionId),
        written: &Written<'_>,
        last_used: u64,
        over: Over,
    ) -> Result<(), Error> {
        let keyring = self.keyring.read().await;
        self.persist_under(&keyring, owner, written, (last_used, over))
            .await
    }

    /// The same, for one who keeps the keyring from being replaced beyond that.
    async fn persist_under(
        &self,
        keyring: &Keyring,
        owner: (&TenantId, &SessionId),
        written: &Written<'_>,
        (last_used, over): (u64, Over),
    ) -> Result<(), Error> {
        let put = self.put_sealed(keyring, owner, written, (last_used, over));
        if let Some(row) = put.await? {
            self.peers.tell_row(&row_key(owner.0, owner.1), &row, None);
        }
        Ok(())
    }

    /// Seals a record and makes it durable. Returns the row where there is anybody to tell.
    pub(super) async fn put_sealed(
        &self,
        keyring: &Keyring,
        (tenant, id): (&TenantId, &SessionId),
        written: &Written<'_>,
        (last_used, over): (u64, Over),
    ) -> Result<Option<Row>, Error> {
        let row = Row {
            sealed: record::encode(keyring, (tenant, id), written),
            last_used,
        };
        let told = self.peers.any().then(|| row.clone());
        let (key, version) = (row_key(tenant, id), written.view.version);
        let began = Instant::now();
        let written = self.store.write(&key, row, version, over).await;
        self.store_times.observe(began.elapsed());
        if written.map_err(Error::Store)? {
            Ok(told)
        } else {
            Err(Error::Conflict)
        }
    }
}

/// What all sessions together have open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Tunnels.
    pub tunnels: usize,
    /// Upstream connections that wait for another use.
    pub idle: usize,
}

/// What a live object begins with.
pub(super) struct Begun {
    pub(super) id: SessionId,
    pub(super) tenant: TenantId,
    pub(super) place: Place,
    pub(super) credential: Fingerprint,
    pub(super) created: SystemTime,
    pub(super) life: Life,
    pub(super) standing: Standing,
}

/// How long a value that was rotated out is still scrubbed.
pub(super) const RETIRED_FOR: Duration = Duration::from_hours(1);
/// How many of them, the youngest first.
pub(super) const RETIRED_LIMIT: usize = 100;

/// Makes a view; secrets whose name and prefix stand in the one before keep their tokens. Returns
/// also the tokens that are new.
pub(super) fn make_view(
    spec: &Spec,
    version: u64,
    before: Option<&SessionView>,
) -> (SessionView, BTreeMap<String, String>) {
    let known = before.iter().flat_map(|view| &view.sealed);
    let known = known.map(|sealed| (sealed.name.as_ref(), &sealed.token));
    let captured = before.map_or(&[][..], |before| &before.captured);
    let retired = before.map_or_else(Vec::new, |before| retire(before, spec, Instant::now()));
    view_with(
        spec,
        (version, random()),
        &known.collect(),
        (captured, retired),
    )
}

/// Makes a view with the tokens that are known, those that were captured, as far as their endpoints
/// are still watched, and the values that are out of use.
pub(super) fn view_with(
    spec: &Spec,
    (version, change): (u64, u64),
    known: &HashMap<&str, &SealedToken>,
    (captured, earlier): (&[Sealed], Vec<Retired>),
) -> (SessionView, BTreeMap<String, String>) {
    let mut fresh = BTreeMap::new();
    let mut sealed = Vec::with_capacity(spec.secrets.len());
    for secret in &spec.secrets {
        let prefix = secret.prefix.as_ref().map_or("", |prefix| prefix.as_str());
        let kept = known
            .get(secret.name.as_ref())
            .filter(|t| t.prefix() == prefix.as_bytes());
        let token = kept.map_or_else(
            || {
                let token = SealedToken::generate(secret.prefix.clone());
                fresh.insert(secret.name.to_string(), token.to_string());
                token
            },
            |token| (*token).clone(),
        );
        sealed.push(Sealed {
            name: Arc::clone(&secret.name),
            token,
            secret: secret.value.clone(),
            scope: secret.scope.clone(),
            places: Arc::clone(&secret.places),
            source: None,
        });
    }
    let (captured, gone) = capture::keep(captured, &spec.token_endpoints);
    let mut retired = earlier;
    retired.extend(capture::retired(gone, Instant::now()));
    retired.truncate(RETIRED_LIMIT);
    let view = SessionView {
        version,
        change,
        sealed,
        captured,
        endpoints: Arc::clone(&spec.token_endpoints),
        egress: spec.egress.clone(),
        passthrough: spec.passthrough.clone(),
        allow_plaintext: spec.allow_plaintext,
        scrub: spec.scrub_responses,
        retired,
        scrubbers: Arc::default(),
    };
    (view, fresh)
}

/// Returns the values that a patch takes out of use, and those of earlier ones that are not an hour
/// old: they may still come back in answers.
pub(super) fn retire(before: &SessionView, spec: &Spec, now: Instant) -> Vec<Retired> {
    let stays = |old: &Sealed| {
        let mut now = spec.secrets.iter();
        now.any(|new| {
            // A host that left the scope may have kept what it was sent.
            new.name == old.name
                && new.scope == old.scope
                && new.value.expose() == old.secret.expose()
        })
    };
    let gone = before.sealed.iter().filter(|old| !stays(old));
    let mut retired: Vec<Retired> = gone
        .map(|old| Retired {
            sealed: old.clone(),
            until: now + RETIRED_FOR,
        })
        .collect();
    let earlier = before.retired.iter().filter(|old| old.until > now);
    retired.extend(earlier.cloned());
    retired.truncate(RETIRED_LIMIT);
    retired
}

pub(super) fn row_key(tenant: &TenantId, id: &SessionId) -> RowKey {
    RowKey {
        tenant: tenant.clone(),
        session: id.clone(),
    }
}
