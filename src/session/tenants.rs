//! What a tenant means to its sessions: a place for each, and an end of all.
//!
//! A session that is being made while its tenant ends is cut by the tenant's own cut, so that it
//! does not matter who sees whom first. Called by the table of sessions and by the API.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream;

use super::Error;
use super::handle::SessionHandle;
use super::live::Sessions;
use crate::audit::Decision;
use crate::id::TenantId;
use crate::tenant::Place;

/// How many deletions wait for the store together.
const TOGETHER: usize = 64;

impl Sessions {
    /// Takes a place for a session that is to be made.
    pub(super) fn place(&self, tenant: &TenantId) -> Result<Place, Error> {
        let tenant = self.tenants.find(tenant);
        let tenant = tenant.filter(|tenant| !tenant.cut().is_cancelled());
        let tenant = tenant.ok_or(Error::NoTenant)?;
        tenant.place().ok_or(Error::TenantSessions)
    }

    /// Deletes a tenant: its keys are refused and its sessions cut, then their rows are deleted, and
    /// its record at last.
    ///
    /// # Errors
    /// [`Error::Tenant`]; [`Error::Store`], in which case all is cut all the same while this process
    /// runs. Calling again goes on.
    pub async fn delete_tenant(&self, tenant: &TenantId) -> Result<(), Error> {
        self.tenants.close(tenant).map_err(Error::Tenant)?;
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
        self.tenants.delete(tenant).await.map_err(Error::Tenant)
    }

    async fn end_with_tenant(&self, handle: Arc<SessionHandle>) -> Result<(), Error> {
        let is_first = handle.end();
        let _after_a_patch = handle.changing.lock().await;
        if self.in_table(&handle.id).is_none() {
            return Ok(());
        }
        self.forget(&handle).await?;
        if is_first {
            let mut audit = self.record(&handle.tenant, &handle.id, "deleted");
            audit.decision(Decision::Allowed, "ok");
        }
        Ok(())
    }
}
