//! The table of tenants: finds them by key and by name, makes, changes and ends them.
//!
//! A change is durable first and then live; what takes a right away, as revoking a key does, holds
//! at once and is then made durable. One change is done after the other, and each begins with what
//! stands in the store, since another process may have written there. Called by the API, the command
//! line and `app`.

use std::collections::BTreeSet;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::BASE64;
use tokio::sync::watch;

use super::Error;
use super::entry::{About, Change, Closed, Entry, Loaded, Table};
use super::live::{Holder, Tenant};
use super::record::{KeyRecord, Limits, Record, State, whole};
use crate::id::{ApiKeyId, TenantId};
use crate::records::{Records, Refused, Seen, name_refused};
use crate::secret::Fingerprint;
use crate::store::{RecordKey, RecordKind};

/// What is told ahead of a tenant that was closed, and of a key that was revoked, before its hash.
pub(super) const CLOSED: &str = "closed";
pub(super) const REVOKED: &str = "revoked ";

/// The most tenants.
pub const TENANTS_LIMIT: usize = 10_000;
/// The most keys of one tenant.
pub const KEYS_LIMIT: usize = 100;

/// All tenants.
#[derive(Debug)]
pub struct Tenants {
    pub(super) records: Arc<Records>,
    defaults: Limits,
    burst: u32,
    /// Tenants of the configuration, which always stand, and their keys.
    configured: Vec<(TenantId, Option<Fingerprint>)>,
    table: RwLock<Table>,
    /// Told of every change of the table.
    changed: watch::Sender<()>,
    /// One change at a time.
    pub(super) changing: tokio::sync::Mutex<()>,
}

impl Tenants {
    /// Starts with no tenant. Limits and `burst`, the requests that may come at once where their
    /// rate is limited, hold for every tenant that has none of its own.
    pub fn new(records: Arc<Records>, defaults: Limits, burst: u32) -> Self {
        Self {
            records,
            defaults,
            burst,
            configured: Vec::new(),
            table: RwLock::default(),
            changed: watch::Sender::default(),
            changing: tokio::sync::Mutex::default(),
        }
    }

    /// Gives a tenant a key that is in no store. The tenant always stands.
    #[must_use]
    pub fn with_key(self, tenant: &TenantId, key: Fingerprint) -> Self {
        self.with_configured(tenant, Some(key))
    }

    /// Takes a tenant for one that always stands.
    #[must_use]
    pub fn with(self, tenant: &TenantId) -> Self {
        self.with_configured(tenant, None)
    }

    fn with_configured(mut self, tenant: &TenantId, key: Option<Fingerprint>) -> Self {
        self.configured.push((tenant.clone(), key));
        self.apply(tenant, Record::new(UNIX_EPOCH));
        self
    }

    /// Finds the tenant whose key this is.
    pub fn by_key(&self, key: &[u8]) -> Option<Holder> {
        if key.is_empty() {
            return None;
        }
        let key = Fingerprint::of(key);
        let tenant = self.read().keys.get(&key).cloned()?;
        Some(Holder { tenant, key })
    }

    /// Tells whether a key that was found is still that tenant's: it was not revoked, and the tenant
    /// neither disabled nor deleted, nor another one of the name made since.
    pub fn stands(&self, holder: &Holder) -> bool {
        let table = self.read();
        let owner = table.keys.get(&holder.key);
        let is_same = owner.is_some_and(|owner| Arc::ptr_eq(owner, &holder.tenant));
        is_same && !holder.tenant.cut().is_cancelled()
    }

    /// Waits until [`Self::stands`] says no, which is for good.
    pub async fn refused(&self, holder: &Holder) {
        // Before it is looked at: what changes in between is told.
        let mut changed = self.changed.subscribe();
        while self.stands(holder) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Finds a tenant by its name, also one that is disabled: its cut is done then.
    pub fn find(&self, id: &TenantId) -> Option<Arc<Tenant>> {
        let table = self.read();
        let entry = table.tenants.get(id);
        entry.map(|entry| Arc::clone(&entry.tenant))
    }

    /// Tells what there is to be told of a tenant.
    pub fn about(&self, id: &TenantId) -> Option<About> {
        let table = self.read();
        table.tenants.get(id).map(|entry| entry.about(id))
    }

    /// Lists tenants in the order of their names, after the one given.
    pub fn list(&self, after: Option<&TenantId>, limit: usize) -> Vec<About> {
        let table = self.read();
        let later = table
            .tenants
            .iter()
            .filter(|(id, _)| after.is_none_or(|after| *id > after));
        later.take(limit).map(|(id, e)| e.about(id)).collect()
    }

    /// Reads all tenants from the store, once, before anything is served.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn load(&self) -> Result<Loaded, Error> {
        let refused = self.reload_all().await?;
        let mut table = self.write();
        for id in table.refused.clone() {
            // One of the configuration, whose own limits nobody knows.
            table.end(&id);
            table.keys.retain(|_, tenant| *tenant.id() != id);
        }
        let tenants = table.tenants.len();
        Ok(Loaded { tenants, refused })
    }

    /// Reads all tenants again: another process may have changed any of them. Those that are gone
    /// end. Returns how many records were refused; who lives goes on as it was then.
    ///
    /// # Errors
    /// [`Error::Store`]: nothing changed.
    pub async fn reload_all(&self) -> Result<usize, Error> {
        let _alone = self.changing.lock().await;
        let found = self.records.load(RecordKind::Tenant).await;
        let found = found.map_err(Error::Store)?;
        let mut refused = found.refused.len();
        let mut seen = BTreeSet::new();
        for (key, plain) in found.opened {
            seen.insert(TenantId::new(&key.name));
            if !self.take(&key, &plain) {
                refused += 1;
            }
        }
        for (record, _) in found.refused {
            if let Some(key) = RecordKey::parse(&record) {
                seen.insert(TenantId::new(&key.name));
                self.refuse(&key);
            }
        }
        let gone: Vec<TenantId> = {
            let table = self.read();
            let known = table.tenants.keys().chain(&table.refused);
            known.filter(|id| !seen.contains(id)).cloned().collect()
        };
        for id in &gone {
            self.vanish(id, false);
        }
        Ok(refused)
    }

    /// Reads one record again: another process has changed it, or may have. Keys of other kinds are
    /// passed over. Where it was told that the record changed, one that is not there was deleted;
    /// else it is lost, and the rows of its sessions are nobody's to delete.
    ///
    /// # Errors
    /// [`Error::Store`], and [`Error::Refused`]: nothing changed.
    pub async fn reload(&self, key: &RecordKey, is_told: bool) -> Result<(), Error> {
        if key.kind != RecordKind::Tenant {
            return Ok(());
        }
        let _alone = self.changing.lock().await;
        self.reread(key, is_told).await.map(drop)
    }

    /// Makes a tenant: durable, then live.
    ///
    /// # Errors
    /// [`Error::Exists`], also where its record is refused; [`Error::TenantLimit`];
    /// [`Error::Conflict`]; [`Error::Store`].
    pub async fn create(&self, id: &TenantId, limits: Limits) -> Result<About, Error> {
        let _alone = self.changing.lock().await;
        let seen = match self.reread(&key_of(id), false).await {
            Ok(_) if self.read().tenants.contains_key(id) => return Err(Error::Exists),
            Err(Error::Refused(_)) => return Err(Error::Exists),
            other => other?,
        };
        if self.read().tenants.len() >= TENANTS_LIMIT {
            return Err(Error::TenantLimit);
        }
        // By the clock of the store, as its sessions: they are never older.
        let mut record = Record::new(self.records.now());
        record.limits = limits;
        self.keep(id, record, seen).await?;
        tracing::info!(tenant = %id, "tenant created");
        self.about(id).ok_or(Error::NotFound)
    }

    /// Changes a tenant: durable, then live. Disabling it cuts its sessions for good.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Configured`]; [`Error::Refused`]; [`Error::Conflict`];
    /// [`Error::Store`].
    pub async fn patch(&self, id: &TenantId, change: Change) -> Result<About, Error> {
        if change.state == Some(State::Disabled) && self.is_configured(id) {
            return Err(Error::Configured);
        }
        self.change(id, |record| {
            record.state = change.state.unwrap_or(record.state);
            let limits = &mut record.limits;
            limits.sessions = change.sessions.unwrap_or(limits.sessions);
            let rate = change.requests_per_second;
            limits.requests_per_second = rate.unwrap_or(limits.requests_per_second);
            Ok(())
        })
        .await?;
        tracing::info!(tenant = %id, "tenant changed");
        self.about(id).ok_or(Error::NotFound)
    }

    /// Gives a tenant a key, of which only the hash is handed in: durable, then live.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::KeyInUse`]; [`Error::KeyLimit`]; [`Error::Refused`];
    /// [`Error::Conflict`]; [`Error::Store`].
    pub async fn add_key(
        &self,
        id: &TenantId,
        label: &str,
        fingerprint: Fingerprint,
    ) -> Result<KeyRecord, Error> {
        let key = KeyRecord {
            id: ApiKeyId::generate(),
            fingerprint,
            label: label.to_owned(),
            created: whole(SystemTime::now()),
        };
        let added = key.clone();
        self.change(id, |record| {
            let known = record.keys.iter().any(|one| one.fingerprint == fingerprint);
            if known || self.read().keys.contains_key(&fingerprint) {
                return Err(Error::KeyInUse);
            }
            if record.keys.len() >= KEYS_LIMIT {
                return Err(Error::KeyLimit);
            }
            record.keys.push(added);
            Ok(())
        })
        .await?;
        tracing::info!(tenant = %id, key = %key.id, "api key created");
        Ok(key)
    }

    /// Takes a key from a tenant: it is refused at once, then that is made durable.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Refused`]; [`Error::Conflict`] and [`Error::Store`], in which
    /// case the key is refused all the same while this process runs, and calling again tries again.
    pub async fn revoke_key(&self, id: &TenantId, key: &ApiKeyId) -> Result<(), Error> {
        {
            let mut table = self.write();
            let entry = table.tenants.get(id).map(|entry| entry.record.clone());
            let keys = entry.into_iter().flat_map(|record| record.keys);
            for hash in keys.filter(|one| one.id == *key).map(|one| one.fingerprint) {
                self.forbid(&mut table, &hash);
                let hash = BASE64.encode(hash.as_bytes());
                self.tell_ahead(id, &format!("{REVOKED}{hash}"));
            }
        }
        let mut gone = None;
        self.change(id, |record| {
            let at = record.keys.iter().position(|one| one.id == *key);
            gone = Some(record.keys.remove(at.ok_or(Error::NotFound)?).fingerprint);
            Ok(())
        })
        .await?;
        if let Some(gone) = gone {
            self.write().revoked.remove(&gone);
        }
        tracing::info!(tenant = %id, key = %key, "api key revoked");
        Ok(())
    }

    /// Closes a tenant that is to be deleted: its keys are refused and its sessions cut, at once and
    /// for good. [`Tenants::delete`] is to follow when their rows are gone.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Configured`].
    pub fn close(&self, id: &TenantId) -> Result<Closed, Error> {
        let mut table = self.write();
        let is_refused = table.refused.contains(id);
        if self.is_configured(id) {
            return is_refused
                .then_some(Closed::Record)
                .ok_or(Error::Configured);
        }
        let Some(entry) = table.tenants.get(id) else {
            return is_refused.then_some(Closed::Refused).ok_or(Error::NotFound);
        };
        let tenant = Arc::clone(&entry.tenant);
        table.close(id);
        self.tell_ahead(id, CLOSED);
        Ok(Closed::Live(tenant))
    }

    pub(super) fn forbid(&self, table: &mut Table, key: &Fingerprint) {
        table.revoked.insert(*key);
        if !self.has_configured(key) {
            table.keys.remove(key);
        }
    }

    fn tell_ahead(&self, id: &TenantId, what: &str) {
        self.records.tell_ahead(&key_of(id), what);
    }

    /// Deletes the record of what was closed, and of nothing that was made under its name since.
    ///
    /// # Errors
    /// [`Error::NotFound`] where another stands under the name; [`Error::Store`]: it stays closed
    /// while this process runs.
    pub async fn delete(&self, id: &TenantId, closed: &Closed) -> Result<(), Error> {
        let _alone = self.changing.lock().await;
        match self.reread(&key_of(id), false).await {
            Ok(_) | Err(Error::Refused(_)) => {}
            Err(error) => return Err(error),
        }
        {
            let table = self.read();
            let entry = table.tenants.get(id);
            let is_refused = table.refused.contains(id);
            match (closed, entry) {
                // Another call was faster.
                (Closed::Live(_), None) if !is_refused => return Ok(()),
                (Closed::Live(closed), Some(entry)) if Arc::ptr_eq(closed, &entry.tenant) => {}
                (Closed::Record, _) | (Closed::Refused, None) if is_refused => {}
                _ => return Err(Error::NotFound),
            }
        }
        let deleted = self.records.delete(&key_of(id)).await;
        deleted.map_err(Error::Store)?;
        self.vanish(id, true);
        tracing::info!(tenant = %id, "tenant deleted");
        Ok(())
    }

    /// Changes a record: durable, then live.
    async fn change(
        &self,
        id: &TenantId,
        change: impl FnOnce(&mut Record) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let _alone = self.changing.lock().await;
        let seen = self.reread(&key_of(id), false).await?;
        let record = {
            let table = self.read();
            let entry = table.tenants.get(id).ok_or(Error::NotFound)?;
            // One that was closed is about to be deleted, and must not come back.
            let is_closing =
                entry.record.state == State::Active && entry.tenant.cut().is_cancelled();
            (!is_closing).then(|| entry.record.clone())
        };
        let mut record = record.ok_or(Error::NotFound)?;
        change(&mut record)?;
        self.keep(id, record, seen).await
    }

    /// Makes a record durable over what was seen there, or nothing: a change of another process must
    /// not be undone, such as the revocation of a key.
    async fn keep(&self, id: &TenantId, record: Record, seen: Seen) -> Result<(), Error> {
        let (key, plain) = (key_of(id), record.encode());
        let put = self.records.put_over(&key, &plain, seen).await;
        if !put.map_err(Error::Store)? {
            return Err(Error::Conflict);
        }
        self.apply(id, record);
        Ok(())
    }

    /// Takes what stands in the store for one name, and says what that was.
    async fn reread(&self, key: &RecordKey, is_told: bool) -> Result<Seen, Error> {
        let (found, seen) = self.records.read(key).await.map_err(Error::Store)?;
        match found {
            None => self.vanish(&TenantId::new(&key.name), is_told),
            Some(Ok(plain)) => {
                if !self.take(key, &plain) {
                    return Err(Error::Refused(Refused::Unreadable));
                }
            }
            Some(Err(why)) => {
                name_refused(&key.to_string(), &why);
                self.refuse(key);
                return Err(Error::Refused(why));
            }
        }
        Ok(seen)
    }

    /// Takes a record that opened; tells whether this version can read it.
    pub(super) fn take(&self, key: &RecordKey, plain: &[u8]) -> bool {
        let id = TenantId::parse(&key.name);
        let Some((id, record)) = id.zip(Record::decode(plain)) else {
            name_refused(&key.to_string(), &Refused::Unreadable);
            self.refuse(key);
            return false;
        };
        self.apply(&id, record);
        true
    }

    /// Notes that a record is refused. Who lives goes on; who does not is not begun.
    fn refuse(&self, key: &RecordKey) {
        self.write().refused.insert(TenantId::new(&key.name));
    }

    /// Ends a tenant whose record is gone: deleted, as far as that is known, else lost. One of the
    /// configuration stands without.
    pub(super) fn vanish(&self, id: &TenantId, is_deleted: bool) {
        self.write().refused.remove(id);
        if self.is_configured(id) {
            return self.apply(id, Record::new(UNIX_EPOCH));
        }
        let mut table = self.write();
        if let Some(entry) = table.tenants.get(id).filter(|_| !is_deleted) {
            entry.tenant.lose();
        }
        table.end(id);
    }

    /// Puts a record in force.
    fn apply(&self, id: &TenantId, record: Record) {
        let limits = Limits {
            sessions: record.limits.sessions.or(self.defaults.sessions),
            requests_per_second: record
                .limits
                .requests_per_second
                .or(self.defaults.requests_per_second),
        };
        let mut table = self.write();
        table.refused.remove(id);
        let is_active = record.state == State::Active;
        let before = table.tenants.get(id).filter(|before| {
            let same = before.record.created == record.created || self.is_configured(id);
            same && (before.record.state == State::Active || !is_active)
        });
        let tenant = if let Some(before) = before {
            Arc::clone(&before.tenant)
        } else {
            table.end(id);
            let tenant = Tenant::new(id.clone(), record.created, limits, self.burst);
            Arc::new(tenant)
        };
        tenant.limit(limits, self.burst);
        if !is_active {
            tenant.cut().cancel();
        }
        // One that was closed gets no key back.
        let keys = if tenant.cut().is_cancelled() {
            &[]
        } else {
            record.keys.as_slice()
        };
        if let Some(before) = table.tenants.remove(id) {
            table.drop_keys(&before.record, id);
        }
        for key in keys {
            if !table.revoked.contains(&key.fingerprint) {
                table.keys.insert(key.fingerprint, Arc::clone(&tenant));
            }
        }
        let configured = self.configured.iter().filter(|(owner, _)| owner == id);
        for key in configured.filter_map(|(_, key)| *key) {
            table.keys.insert(key, Arc::clone(&tenant));
        }
        table.tenants.insert(id.clone(), Entry { tenant, record });
    }

    pub(super) fn is_configured(&self, id: &TenantId) -> bool {
        self.configured.iter().any(|(owner, _)| owner == id)
    }

    fn has_configured(&self, key: &Fingerprint) -> bool {
        self.configured.iter().any(|(_, one)| *one == Some(*key))
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> Writing<'_> {
        Writing {
            table: self.table.write().unwrap_or_else(PoisonError::into_inner),
            changed: &self.changed,
        }
    }
}

/// The table while it is changed. Whoever waits for changes is told at the end of each.
pub(super) struct Writing<'a> {
    table: RwLockWriteGuard<'a, Table>,
    changed: &'a watch::Sender<()>,
}

impl Deref for Writing<'_> {
    type Target = Table;

    fn deref(&self) -> &Table {
        &self.table
    }
}

impl DerefMut for Writing<'_> {
    fn deref_mut(&mut self) -> &mut Table {
        &mut self.table
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.changed.send_replace(());
    }
}

fn key_of(id: &TenantId) -> RecordKey {
    RecordKey::new(RecordKind::Tenant, id.as_str())
}
