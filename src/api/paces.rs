//! How fast one address may ask for what needs no key of ours.
//!
//! So many addresses are remembered; one that is forgotten starts anew. Called by the routes that
//! pass something on to a service.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use http::Extensions;
use quick_cache::sync::Cache;

use crate::pace::Pace;
use crate::serve::Source;
use crate::web::{Connection, TaggedFailure};

/// How many addresses' paces are kept.
const PACES: usize = 10_000;

/// The paces of addresses.
pub(super) struct Paces {
    per_minute: u32,
    paces: Cache<Source, Arc<Pace>>,
}

impl Paces {
    /// Lets one address ask so many times a minute in the long run, and as often at once.
    pub(super) fn per_minute(per_minute: u32) -> Self {
        Self {
            per_minute,
            paces: Cache::new(PACES),
        }
    }

    /// Takes one request of the address that a request came from.
    ///
    /// # Errors
    /// [`TaggedFailure::TooFast`].
    pub(super) fn take(&self, request: &Extensions) -> Result<(), TaggedFailure> {
        let fresh =
            || Ok::<_, std::convert::Infallible>(Arc::new(Pace::per_minute(self.per_minute)));
        let Ok(pace) = self.paces.get_or_insert_with(&source(request), fresh);
        let held = pace.take(Instant::now());
        held.map_err(|wait| TaggedFailure::TooFast(wait.as_secs() + 1))
    }
}

/// Returns what a request counts for. Whoever came from nowhere is one: nothing that is missing lets
/// anybody through.
pub(super) fn source(request: &Extensions) -> Source {
    let from = request.get::<Connection>().map(|from| from.peer.ip());
    Source::from(from.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_from_nowhere_share_one_pace() {
        let paces = Paces::per_minute(1);
        let nowhere = Extensions::new();
        assert!(paces.take(&nowhere).is_ok());
        assert!(paces.take(&nowhere).is_err());
    }

    #[test]
    fn addresses_of_one_client_are_one() {
        for (one, other, same) in [
            ("10.0.0.1", "::ffff:10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
            ("2001:db8::1", "2001:db8::ffff:1", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
        ] {
            let [a, b] = [one, other].map(|text| Source::from(text.parse::<IpAddr>().unwrap()));
            assert_eq!(a == b, same, "{one} {other}");
        }
    }
}
