//! Sessions: what was asked for, what it means, and the live object that requests look at.
//!
//! A [`Form`] is what a tenant asked for, field by field; [`Spec::parse`] turns it into something
//! that can be enforced, or lists every bad field at once. [`Sessions`] holds what lives. Only the
//! view of a session opens sealed tokens. Called by the proxy (authenticate, open) and by the
//! management API (create, patch, delete).

mod agree;
mod capture;
mod credential;
mod deletion;
mod fleet;
mod handle;
mod life;
mod link;
mod live;
mod load;
mod quota;
mod record;
mod rotate;
mod spec;
mod sweep;
mod tenants;
mod view;

pub use capture::{CAPTURED_LIMIT, CaptureForm};
pub use credential::Credential;
pub use fleet::{NotAdmitted, OnRecord};
pub use handle::{Counters, SessionHandle, TunnelGuard};
pub use link::{Following, Link};
pub use live::{Authenticated, Created, Patched, Sessions, Totals};
pub use load::{Loaded, prove_offline};
pub use quota::{ExchangeGuard, Limited, Quotas, Turn};
pub use rotate::{Rotated, rotate_offline};
pub use spec::{
    BAD_FIELDS_LIMIT, FieldError, Form, Options, SecretForm, SecretSpec, Spec, Warning,
};
pub use view::{BodyView, HostView, SessionView};

/// Says why a call on sessions failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The session has as many captured tokens as it may.
    #[error("the session has too many captured tokens")]
    CaptureLimit,
    /// Another node changed the session in the same moment; nothing changed here.
    #[error("the session was changed elsewhere in the same moment")]
    Conflict,
    /// Fields of the form are bad; every one is listed.
    #[error("fields of the session are invalid")]
    Invalid(Vec<FieldError>),
    /// The tenant is not there, or may do nothing.
    #[error("there is no such tenant")]
    NoTenant,
    /// The tenant has as many live sessions as it may.
    #[error("the tenant has as many sessions as it may")]
    TenantSessions,
    /// The tenant cannot be ended.
    #[error("the tenant cannot be ended")]
    Tenant(#[source] crate::tenant::Error),
    /// The tenant has no such session.
    #[error("there is no such session")]
    NotFound,
    /// The store did not say that it took the change. Nothing changed here; the store may have it all
    /// the same.
    #[error("the store did not take the change")]
    Store(#[source] crate::store::Error),
    /// What is in the store cannot be read with these keys: another keyring sealed it, or a key
    /// was taken out too early.
    #[error("the sealing keys are not those of the store")]
    Keys(#[source] crate::seal::Error),
    /// The store has no proof of its keys: no server has ever come up with it, or it was taken out.
    #[error("the store has no proof of its sealing keys: start the server with it first")]
    Unproven,
    /// The store's proof is under an older key: a rotation did not come to its end.
    #[error("the store is not sealed under the current key yet: `oshu-vault seal rotate` goes on")]
    Unrotated,
}

#[cfg(test)]
mod tests;
