//! What a tenant means to its sessions: a place for each, and an end of all.
//!
//! A session that is being made while its tenant ends is cut by the tenant's own cut, so that it
//! does not matter who sees whom first. Called by the table of sessions and by the API.

use std::collections::BTreeSet;
use std::sync::{Arc, MutexGuard, PoisonError};

use futures_util::StreamExt;
use futures_util::stream;

use super::Error;
use super::handle::SessionHandle;
use super::live::Sessions;
use crate::id::TenantId;
use crate::store::RowKey;
use crate::tenant::{Closed, Place, Tenant};

/// How many deletions wait for the store together.
const TOGETHER: usize = 64;

/// Takes a place for a session that is to be made.
pub(super) fn place(tenant: &Arc<Tenant>) -> Result<Place, Error> {
    if tenant.cut().is_cancelled() {
        return Err(Error::NoTenant);
    }
    tenant.place().ok_or(Error::TenantSessions)
}

impl Sessions {
    /// Deletes a tenant: its keys are refused and its sessions cut, then their rows are deleted, those
    /// included that could not be read, and its record at last.
    ///
    /// # Errors
    /// [`Error::Tenant`]; [`Error::Store`], in which case all is cut all the same while this process
    /// runs. Calling again goes on.
    pub async fn delete_tenant(&self, tenant: &TenantId) -> Result<(), Error> {
        let closed = self.tenants.close(tenant).map_err(Error::Tenant)?;
        let own = self.all();
        let own = own.into_iter().filter(|handle| {
            // Those of the configuration's tenant go on, of which a bad record alone is deleted.
            handle.tenant == *tenant && handle.is_cut()
        });
        let mut done = stream::iter(own)
            .map(|handle| self.end_with_tenant(handle))
            .buffer_unordered(TOGETHER);
        while let Some(done) = done.next().await {
            done?;
        }
        if !matches!(closed, Closed::Record) {
            self.forget_refused(tenant).await?;
        }
        let deleted = self.tenants.delete(tenant, &closed).await;
        deleted.map_err(Error::Tenant)
    }

    async fn end_with_tenant(&self, handle: Arc<SessionHandle>) -> Result<(), Error> {
        self.end(&handle);
        let _after_a_patch = handle.changing.lock().await;
        if self.in_table(&handle.id).is_none() {
            return Ok(());
        }
        self.forget(&handle).await
    }

    /// Deletes the rows of a tenant that were refused.
    async fn forget_refused(&self, tenant: &TenantId) -> Result<(), Error> {
        if !self.refused().iter().any(|key| key.tenant == *tenant) {
            return Ok(());
        }
        // A rotation at work would seal one anew, and so put it back.
        let _alone = self.rotating.lock().await;
        let own: Vec<RowKey> = {
            let refused = self.refused();
            let own = refused.iter().filter(|key| key.tenant == *tenant);
            own.cloned().collect()
        };
        let deleted = stream::iter(own).map(|key| async move {
            self.store.delete(&key).await.map_err(Error::Store)?;
            self.refused().remove(&key);
            Ok(())
        });
        let mut deleted = deleted.buffer_unordered(TOGETHER);
        while let Some(done) = deleted.next().await {
            done?;
        }
        Ok(())
    }

    /// Returns the keys of the rows that are in the store and were refused.
    pub(super) fn refused(&self) -> MutexGuard<'_, BTreeSet<RowKey>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
