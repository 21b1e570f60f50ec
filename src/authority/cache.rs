//! The minted leaves: bounded, fresh, and one mint per host at a time.
//!
//! A workload may ask for any number of names, so the bound is strict and the least used leaf goes.
//! It never hands out a leaf near its end, and never mints itself: the module's face passes in how.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quick_cache::sync::{Cache, DefaultLifecycle, EntryAction, EntryResult};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, UnitWeighter};
use rustls::sign::CertifiedKey;

use crate::authority::Error;
use crate::authority::leaf::Leaf;
use crate::host::Host;

/// The most hosts whose leaves are kept: about 1 KiB each, so some 10 MiB.
pub(super) const HOST_LIMIT: usize = 10_000;

/// The shards of the map. It divides the limit: the map rounds a shard's part up, and would hold
/// more than the limit otherwise.
const SHARDS: usize = 16;
const _: () = assert!(HOST_LIMIT.is_multiple_of(SHARDS) && SHARDS.is_power_of_two());

/// How long a leaf must have been valid to be handed out, so that a clock set back does not leave
/// us with leaves of the future.
const SETTLED: Duration = Duration::from_mins(5);

/// A leaf with its key, ready for a handshake, and the time in which it may be handed out.
#[derive(Clone)]
pub(super) struct Minted {
    certified: Arc<CertifiedKey>,
    usable_from: SystemTime,
    renew_at: SystemTime,
}

impl Minted {
    /// Takes up a leaf that was minted now; it is renewed when a quarter of its life is left.
    pub(super) fn new(certified: Arc<CertifiedKey>, leaf: &Leaf, now: SystemTime) -> Self {
        let left = leaf.not_after.duration_since(now).unwrap_or_default();
        Self {
            certified,
            usable_from: leaf.not_before + SETTLED,
            renew_at: leaf.not_after - left / 4,
        }
    }

    fn is_fresh(&self, now: SystemTime) -> bool {
        self.usable_from <= now && now < self.renew_at
    }
}

/// The leaves by host.
pub(super) struct LeafCache {
    leaves: Cache<Host, Minted>,
}

impl LeafCache {
    /// Makes an empty cache.
    #[expect(
        clippy::expect_used,
        reason = "the builder fails only without the two capacities, and both are set"
    )]
    pub(super) fn new() -> Self {
        let options = OptionsBuilder::new()
            .estimated_items_capacity(HOST_LIMIT)
            .weight_capacity(HOST_LIMIT as u64)
            .shards(SHARDS)
            .build()
            .expect("both capacities are set");
        Self {
            leaves: Cache::with_options(
                options,
                UnitWeighter,
                DefaultHashBuilder::default(),
                DefaultLifecycle::default(),
            ),
        }
    }

    /// Returns the host's leaf, minting it where there is none that is fresh. Of many callers at
    /// once one mints and the others wait; where that one fails, the next of them tries.
    pub(super) async fn leaf_for(
        &self,
        host: &Host,
        now: SystemTime,
        mint: impl FnOnce() -> Result<Minted, Error>,
    ) -> Result<Arc<CertifiedKey>, Error> {
        // The shared lock first: `entry_async` takes the shard's exclusive one even for a hit.
        if let Some(minted) = self.leaves.get(host)
            && minted.is_fresh(now)
        {
            return Ok(minted.certified);
        }
        let entry = self
            .leaves
            .entry_async(host, |_host, minted| {
                if minted.is_fresh(now) {
                    EntryAction::Retain(Arc::clone(&minted.certified))
                } else {
                    EntryAction::ReplaceWithGuard
                }
            })
            .await;
        match entry {
            EntryResult::Retained(certified) => Ok(certified),
            EntryResult::Vacant(place) | EntryResult::Replaced(place, _) => {
                let minted = mint()?;
                let certified = Arc::clone(&minted.certified);
                // The place may be gone by now, evicted; the leaf then serves this caller alone.
                drop(place.insert(minted));
                Ok(certified)
            }
            // The callback removes nothing and no time limit was given; a leaf that is not kept
            // is the harmless answer.
            EntryResult::Removed(..) | EntryResult::Timeout => Ok(mint()?.certified),
        }
    }

    /// Sets the most hosts whose leaves are kept: a multiple of the shards, or the map would keep more.
    pub(super) fn set_limit(&self, limit: usize) {
        let limit = (limit / SHARDS).max(1) * SHARDS;
        self.leaves.set_capacity(limit as u64);
    }

    /// Returns the number of leaves kept.
    pub(super) fn len(&self) -> usize {
        self.leaves.len()
    }
}
