//! The calls that the process makes for itself, to services that its operator configured.
//!
//! A [`Callout`] reaches exactly one host, by the same gates as everything else: a grant of a policy
//! that lists this host alone, and vetted addresses. [`Answers`] keeps what was answered for a short
//! while. Neither may ever turn a failure into an answer. Called by `identity`, `payment` and
//! `gateway`.

mod answers;
mod call;
mod form;
#[cfg(test)]
mod stand;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::policy::Denial;
use crate::upstream;
use crate::wire;

pub use answers::{Answers, Kept};
pub use call::{Answer, Callout, Limits, Request};
#[cfg(test)]
pub(crate) use stand::{Says, Stand, upstream as upstream_of_tests};
pub use stream::{Opened, Reading};

/// Says why there is no answer, or why a service cannot be called at all. No text of the service's
/// or of a caller's is in it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The configured URL is no plain `https://` one.
    #[error(
        "the URL must be https://host[:port][/path], or http:// with a loopback address, without \
         user information, query or fragment"
    )]
    BadUrl,
    /// The address table refuses the configured host.
    #[error("the configured host may not be reached")]
    Denied(#[source] Denial),
    /// A path or value cannot stand in a head.
    #[error("a value cannot be sent in a head")]
    BadValue,
    /// There is no connection to the service.
    #[error("the service cannot be reached")]
    Unreachable(#[source] Arc<upstream::Error>),
    /// The answer did not come whole in time.
    #[error("the service did not answer in time")]
    Late,
    /// The connection ended or failed before the answer was whole.
    #[error("the connection ended before the answer was whole")]
    Cut,
    /// The answer breaks a rule of HTTP/1.1.
    #[error("the answer of the service is malformed")]
    Malformed(#[source] wire::Error),
    /// The answer has more bytes than were asked for.
    #[error("the answer of the service is too long")]
    TooLong,
}

impl Error {
    /// Tells whether not a byte of the request can have reached the service.
    pub fn was_unsent(&self) -> bool {
        matches!(
            self,
            Self::BadUrl | Self::BadValue | Self::Denied(_) | Self::Unreachable(_)
        )
    }
}

/// Tells whether a text is the URL of a service that can be called, as far as it says itself.
pub fn is_url(text: &str) -> bool {
    form::Base::parse(text).is_ok()
}
