//! Tenants that two processes serve at once, one of which has the store: what one does, the other heeds.
//!
//! The one with the store writes; what the other wants to be written has to be made of what stands
//! there yet. Of a tenant whose record cannot be read here nothing goes on. Called by `session`, for
//! the link between the two.

use data_encoding::BASE64;

use super::Error;
use super::table::{CLOSED, REVOKED, Tenants};
use crate::id::TenantId;
use crate::records::{Refused, Replaced};
use crate::secret::Fingerprint;
use crate::store::{RecordKey, RecordKind};

impl Tenants {
    /// Keeps changes from beginning for as long as the guard is held, and waits for the one that is
    /// under way: none reads from one store and writes to another.
    pub async fn hold_changes(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.changing.lock().await
    }

    /// Heeds what the process that has the store told ahead of a change.
    pub fn heed(&self, key: &RecordKey, what: &str) {
        let id = TenantId::new(&key.name);
        if let Some(hash) = what.strip_prefix(REVOKED) {
            let hash = BASE64.decode(hash.as_bytes()).ok();
            if let Some(hash) = hash.and_then(|hash| hash.as_slice().try_into().ok()) {
                self.forbid(&mut self.write(), &Fingerprint::from_bytes(hash));
            }
        } else if what == CLOSED && !self.is_configured(&id) {
            self.write().close(&id);
        }
    }

    /// Takes a record that the process wrote which has the store, or that it is gone.
    ///
    /// # Errors
    /// [`Error::Refused`] where it cannot be read here: nothing changed.
    pub async fn adopt(&self, key: &RecordKey, sealed: Option<&[u8]>) -> Result<(), Error> {
        if key.kind != RecordKind::Tenant {
            return Ok(());
        }
        let _alone = self.changing.lock().await;
        let Some(sealed) = sealed else {
            self.vanish(&TenantId::new(&key.name), true);
            return Ok(());
        };
        let plain = self.records.unseal(key, sealed).await;
        let plain = plain.map_err(Error::Refused)?;
        if self.take(key, &plain) {
            Ok(())
        } else {
            Err(Error::Refused(Refused::Unreadable))
        }
    }

    /// Ends a tenant of which nothing is known any more, until a record of it can be read.
    pub fn lose(&self, id: &TenantId) {
        let mut table = self.write();
        table.end(id);
        // One of the configuration, too: its own limits are not known.
        table.keys.retain(|_, tenant| tenant.id() != id);
    }

    /// Writes and takes the record that another process has made of the one that it had read. Tells
    /// whether that still stood in the store; otherwise nothing changed.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Store`].
    pub async fn write_for(
        &self,
        key: &RecordKey,
        was: Option<&[u8]>,
        sealed: &[u8],
    ) -> Result<bool, Error> {
        let _alone = self.changing.lock().await;
        let replaced = self.records.replace(key, was, sealed).await;
        match replaced.map_err(Error::Store)? {
            Replaced::Changed => Ok(false),
            Replaced::Refused(why) => Err(Error::Refused(why)),
            Replaced::Written(plain) => {
                if key.kind == RecordKind::Tenant && !self.take(key, &plain) {
                    return Err(Error::Refused(Refused::Unreadable));
                }
                Ok(true)
            }
        }
    }
}
