//! Ends that are asked for: of a session that lives here, and of a row that nobody here serves.
//!
//! A session is cut first, then its row is deleted, then that is answered: what was answered holds
//! at every later start. A row that was refused is its tenant's to delete, as its key says; it must
//! never be deleted for anybody else. Called by the management API, the sweeper and other processes.

use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::Error;
use super::handle::SessionHandle;
use super::live::{Sessions, row_key};
use crate::audit::Decision;
use crate::id::{SessionId, TenantId};
use crate::store::{self, RowKey};

/// How long the deletion of a row that is not served waits for a rotation of keys.
const ALONE: Duration = Duration::from_secs(5);

impl Sessions {
    /// Ends a session: cut first, then durable. One whose row was refused is deleted as well.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Store`], in which case it is cut all the same. Calling again
    /// tries again to delete the row, and so does the sweep where the session lived here.
    pub async fn delete(&self, tenant: &TenantId, id: &SessionId) -> Result<(), Error> {
        self.make_known(id).await?;
        let own = self.in_table(id).filter(|own| own.tenant == *tenant);
        let Some(handle) = own else {
            return self.delete_unserved(row_key(tenant, id)).await;
        };
        if handle.is_over() && !handle.is_cut() {
            return Err(Error::NotFound);
        }
        let mut audit = self.record(tenant, id, "deleted");
        let is_first = handle.end();
        self.peers.tell_gone(&[row_key(tenant, id)], None);
        let _after_a_patch = handle.changing.lock().await;
        if !is_first && self.in_table(id).is_none() {
            // Another call was faster.
            return Err(Error::NotFound);
        }
        // Also where it has left the table: the sweep may have found it cut, or the store not have it
        // at the moment.
        self.forget(&handle).await?;
        audit.decision(Decision::Allowed, "ok");
        Ok(())
    }

    /// Deletes a session that is in the store and does not live here: its row was refused, or, where
    /// another process has the store, may have been refused there.
    async fn delete_unserved(&self, key: RowKey) -> Result<(), Error> {
        let is_refused = self.refused().contains(&key);
        let is_shared = self.store.fleet().is_some();
        // There an id has one row: where it lives for another tenant, this one's was put by hand.
        let is_another_s = is_shared && self.in_table(&key.session).is_some();
        if is_another_s || !(is_refused || self.peers.follows()) {
            return Err(Error::NotFound);
        }
        if is_shared {
            // First, as every deletion: another node may be able to read it, and serve it.
            self.nodes.bury(&key.session);
        }
        self.peers.tell_gone(std::slice::from_ref(&key), None);
        let forgotten = self.forget_row(&key).await;
        if matches!(forgotten, Ok(false)) {
            return Err(Error::NotFound);
        }
        if is_shared && forgotten.is_err() {
            // As what lived here: the sweep tries again.
            self.nodes.note_amiss(&key);
        }
        let mut audit = self.record(&key.tenant, &key.session, "deleted");
        forgotten?;
        audit.decision(Decision::Allowed, "ok");
        Ok(())
    }

    /// Deletes the row of a session that was cut, and then its place in the table. Where the store
    /// fails, it stays in the table, so that its row is not forgotten.
    pub(super) async fn forget(&self, handle: &SessionHandle) -> Result<(), Error> {
        let key = row_key(&handle.tenant, &handle.id);
        if self.store.fleet().is_some() {
            // First: it is deleted, whatever the store says, and wherever it comes up.
            self.nodes.bury(&handle.id);
        }
        // Once more: a change that was under way may have been told since.
        self.peers.tell_gone(std::slice::from_ref(&key), None);
        let began = Instant::now();
        let deleted = self.store.delete(&key).await;
        self.store_times.observe(began.elapsed());
        deleted.map_err(Error::Store)?;
        self.refused().remove(&key);
        self.table.remove(&handle.id);
        Ok(())
    }

    /// Deletes the row of a session that does not live here, so that it never does. Tells whether
    /// there was one.
    pub(super) async fn forget_row(&self, key: &RowKey) -> Result<bool, Error> {
        // A rotation at work would seal it anew, and so put it back.
        let alone = timeout(ALONE, self.rotating.lock()).await;
        let _alone = alone.map_err(|late| Error::Store(store::Error::unavailable(late)))?;
        let was_there = self.store.delete(key).await.map_err(Error::Store)?;
        self.refused().remove(key);
        Ok(was_there)
    }
}
