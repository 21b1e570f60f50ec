//! Tenants: the customers of the vault, their API keys, and how much each may have.
//!
//! A tenant is a sealed record in the store and a live object that its sessions hold. Keys are kept
//! as fingerprints. What is refused, disabled or gone has no key that works and no session that
//! goes on; nothing here is ever a default for a tenant that was not found. Called by `session`,
//! which takes places for sessions, by `web` for API keys, and by the API and the command line.

mod entry;
mod kin;
mod live;
mod record;
mod table;

use data_encoding::HEXLOWER;
use zeroize::Zeroizing;

use crate::id::fill_random;
use crate::secret::Secret;

pub use entry::{About, Change, Closed, Loaded};
pub use live::{Holder, Place, Tenant};
pub use record::{KeyRecord, LABEL_LIMIT, Limits, State, is_label};
pub use table::{KEYS_LIMIT, TENANTS_LIMIT, Tenants};

/// The start of every API key that is generated: secret scanners know it by this.
pub const API_KEY_PREFIX: &str = "ovk_";
/// The random bytes of an API key.
const API_KEY_BYTES: usize = 32;

/// Says why a call on tenants failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tenant whose keys the configuration gives can be neither disabled nor deleted.
    #[error("the tenant of the configured API key always stands")]
    Configured,
    /// Another process that uses the store changed the tenant in the same moment.
    #[error("another change came in the same moment")]
    Conflict,
    /// There is a tenant of this name.
    #[error("there is a tenant of this name")]
    Exists,
    /// The key is some tenant's already.
    #[error("the API key is in use")]
    KeyInUse,
    /// The tenant has as many keys as it may.
    #[error("the tenant has too many API keys")]
    KeyLimit,
    /// There is no such tenant, or it has no such key.
    #[error("there is no such tenant, or no such key of it")]
    NotFound,
    /// What stands in the store under the tenant's name was not sealed by us.
    #[error("the tenant's record is refused")]
    Refused(#[source] crate::records::Refused),
    /// The store did not take the change, or could not be read.
    #[error("the store did not take the change")]
    Store(#[source] crate::store::Error),
    /// There are as many tenants as there may be.
    #[error("there are too many tenants")]
    TenantLimit,
}

/// Makes an API key: `ovk_` and 64 hex digits, 256 random bits.
pub fn generate_key() -> Secret {
    let mut bytes = Zeroizing::new([0; API_KEY_BYTES]);
    fill_random(bytes.as_mut_slice());
    let digits = Zeroizing::new(HEXLOWER.encode(bytes.as_slice()));
    Secret::new(format!("{API_KEY_PREFIX}{}", digits.as_str()).into_bytes())
}

#[cfg(test)]
mod tests;
