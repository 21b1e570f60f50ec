//! What a store that others use as well has of sessions, and what is known here: each is brought in
//! line with the other.
//!
//! What the store does not have is cut, and may come back; only what was deleted, as far as it was
//! heard of, is deleted wherever it comes up. A server without the proof of our keys is not
//! believed at all. Called by whoever follows the others, looks an id up, or changes a session.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::Error;
use super::fleet::OnRecord;
use super::handle::SessionHandle;
use super::live::Sessions;
use super::load::{proof_context, proof_key};
use super::record::{self, Opened, Written};
use crate::audit::Decision;
use crate::id::{SessionId, TenantId};
use crate::store::{self, Fleet, Over, RecordKey, RecordKind, Row, RowKey};
use crate::tenant;

/// How many sessions are read together.
const TOGETHER: usize = 32;

impl Sessions {
    /// Reads everything, and cuts what is not there.
    pub(super) async fn reload(
        &self,
        fleet: &dyn Fleet,
        on_record: &OnRecord,
    ) -> Result<(), Error> {
        // What was read before this may be older than what is read now.
        self.nodes.reloads.fetch_add(1, Ordering::AcqRel);
        let rows = self.store.load().await.map_err(Error::Store)?.rows;
        self.require_proof().await?;
        // After the rows: who was closed meanwhile was closed for all of them.
        on_record(None).await.map_err(Error::Store)?;
        tracing::info!(rows = rows.len(), "the store was read anew");
        let mut there = HashSet::with_capacity(rows.len());
        for (key, row) in rows {
            if key == proof_key() {
                continue;
            }
            there.insert(key.session.clone());
            self.take_in(&key, row).await?;
            // A long list must not keep a thread from everything else.
            tokio::task::yield_now().await;
        }
        // Read once more: it may have been made while the list was read.
        let all = self.all().into_iter().map(|handle| handle.id.clone());
        let missing = all.filter(|id| !there.contains(id));
        self.refresh_all(fleet, missing).await
    }

    /// Checks that the store is the one that it was, with what it ought to hold: a server that lost
    /// everything, or another one, has no proof of our keys, and what it does not have says nothing.
    async fn require_proof(&self) -> Result<(), Error> {
        let proof = self.store.get(&proof_key()).await.map_err(Error::Store)?;
        let keyring = self.keyring.read().await;
        let opens = |row: &Row| keyring.open(&proof_context(), &row.sealed).is_ok();
        if !proof.as_ref().is_some_and(opens) {
            let cause = "the store has no proof of our keys: it was emptied, or is another one";
            return Err(Error::Store(store::Error::unavailable(cause)));
        }
        Ok(())
    }

    pub(super) async fn refresh_all(
        &self,
        fleet: &dyn Fleet,
        ids: impl Iterator<Item = SessionId>,
    ) -> Result<(), Error> {
        let read = stream::iter(ids).map(|id| async move { self.refresh(fleet, &id).await });
        read.buffer_unordered(TOGETHER).try_collect().await
    }

    /// Brings the table in line with what the store has of a session.
    pub(super) async fn refresh(&self, fleet: &dyn Fleet, id: &SessionId) -> Result<(), Error> {
        loop {
            let reloads = self.nodes.reloads.load(Ordering::Acquire);
            match fleet.find(id).await.map_err(Error::Store)? {
                Some((key, _)) if key == proof_key() => {}
                Some((key, row)) => self.take_in(&key, row).await?,
                None => {
                    self.require_proof().await?;
                    self.lose(id);
                }
            }
            // Whoever read everything meanwhile may have found it missing before it was taken in.
            if self.nodes.reloads.load(Ordering::Acquire) == reloads {
                return Ok(());
            }
        }
    }

    /// Cuts a session that the store does not have. It may come back, unless it was deleted.
    pub(super) fn lose(&self, id: &SessionId) {
        let Some((_, handle)) = self.table.remove(id) else {
            return;
        };
        // Where we are the ones who ended it, that is told already.
        if handle.end() {
            let mut audit = self.record(&handle.tenant, id, "ended_elsewhere");
            audit.decision(Decision::Allowed, "ok");
        }
    }

    /// Takes in a row that another node may have written. It writes nothing: whoever follows the
    /// others must not wait for a store that takes no changes.
    async fn take_in(&self, key: &RowKey, row: Row) -> Result<(), Error> {
        if self.nodes.is_gone(&key.session) {
            tracing::warn!(session = %key.session, "a session that was deleted is in the store again");
            self.nodes.note_amiss(key);
            return Ok(());
        }
        let Some(handle) = self.in_table(&key.session) else {
            let record = self.open(key, &row).await;
            if let Ok(record) = &record {
                self.know_tenant(&key.tenant, record.created).await?;
            }
            match record.and_then(|record| self.revive(key, &row, record)) {
                Ok(_lives) => drop(self.refused().remove(key)),
                Err(error) => self.refuse_row(key, &error),
            }
            return Ok(());
        };
        handle.life.hear(self.idle_since(row.last_used));
        match self.open(key, &row).await {
            Err(error) => self.refuse_row(key, &error),
            Ok(record) if record.stamp() == handle.stamp() => {}
            Ok(_another) if self.agree(key, &handle, false).await? => {}
            Ok(_another) => self.nodes.note_amiss(key),
        }
        Ok(())
    }

    /// Mends rows that are not as they ought to be, as far as the store takes changes: what is left is
    /// tried again the next time.
    pub(super) async fn mend(&self) {
        let mut amiss = self.nodes.take_amiss().into_iter();
        while let Some(key) = amiss.next() {
            let mended = match self.in_table(&key.session) {
                _ if self.nodes.is_gone(&key.session) => {
                    let deleted = self.store.delete(&key).await;
                    deleted.map(|_was_there| true).map_err(Error::Store)
                }
                Some(handle) => self.agree(&key, &handle, true).await,
                None => Ok(true),
            };
            if !matches!(mended, Ok(true)) {
                self.nodes.note_amiss(&key);
            }
            if let Err(error) = mended {
                // The others would fail as slowly.
                amiss.for_each(|key| self.nodes.note_amiss(&key));
                tracing::warn!(%error, "the store has rows of an older state, and takes no changes");
                return;
            }
        }
    }

    /// Reads the tenant of a session again where it cannot be that of the session as it is known: it
    /// may have been made or enabled on another node a moment ago. The session was read before, so
    /// that who is closed then was closed for this one, too.
    async fn know_tenant(&self, tenant: &TenantId, created: SystemTime) -> Result<(), Error> {
        let known = self.tenants.find(tenant);
        let fits = |it: &tenant::Tenant| !it.cut().is_cancelled() && it.created() <= created;
        if known.is_some_and(|it| fits(&it)) {
            return Ok(());
        }
        let key = RecordKey::new(RecordKind::Tenant, tenant.as_str());
        match self.tenants.reload(&key, false).await {
            Err(tenant::Error::Store(error)) => Err(Error::Store(error)),
            // What is refused was named; the session finds no tenant then.
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Takes over the patch of another node, or repeats ours where the store has lost it and that may
    /// be written. Of two that each took the other's place in another history, the store's holds.
    /// Tells whether both agree now.
    async fn agree(
        &self,
        key: &RowKey,
        handle: &SessionHandle,
        may_write: bool,
    ) -> Result<bool, Error> {
        // Whoever follows the others must not wait for the patches of one session.
        let Ok(_alone) = handle.changing.try_lock() else {
            return Ok(false);
        };
        // Read again: one of ours may have been on its way.
        let Some(row) = self.store.get(key).await.map_err(Error::Store)? else {
            return Ok(true);
        };
        let record = match self.open(key, &row).await {
            Ok(record) => record,
            Err(error) => {
                self.refuse_row(key, &error);
                return Ok(true);
            }
        };
        if handle.is_cut() || record.stamp() == handle.stamp() {
            return Ok(true);
        }
        if record.version >= handle.version() {
            match self.standing_of(record) {
                Ok(standing) if standing.view.version == handle.version() => {
                    handle.replace(standing);
                    // Tunnels look for another version, and would not see this one.
                    handle.cut_open();
                }
                Ok(standing) => handle.replace(standing),
                Err(error) => self.refuse_row(key, &error),
            }
            return Ok(true);
        }
        if !may_write {
            return Ok(false);
        }
        tracing::warn!(session = %key.session, "the store has an older session: it is repeated");
        let standing = handle.standing();
        let written = Written {
            form: &standing.form,
            view: &standing.view,
            credential: &handle.credential,
            created: handle.created,
            now: self.store.now(),
        };
        let owner = (&handle.tenant, &handle.id);
        let last_used = handle.last_used(self.store.now());
        let over = Over::Exactly(row);
        match self.persist(owner, &written, last_used, over).await {
            Ok(()) => Ok(true),
            Err(Error::Conflict) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn open(&self, key: &RowKey, row: &Row) -> Result<Opened, record::Refused> {
        let keyring = self.keyring.read().await;
        let owner = (&key.tenant, &key.session);
        record::decode(&keyring, owner, &row.sealed, self.store.now())
    }

    /// Names a row that cannot be used. A session that lives goes on as it was.
    fn refuse_row(&self, key: &RowKey, why: &record::Refused) {
        let row = format!("{}/{}", key.tenant, key.session);
        tracing::error!(row, %why, "a session in the store is refused and not served");
        self.refused().insert(key.clone());
    }
}
