//! What the table of tenants holds, and what is asked and told of one.
//!
//! Nothing here waits or writes; whoever holds the table's lock keeps both maps true to each other.
//! Called by the table.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::live::Tenant;
use super::record::{KeyRecord, Limits, Record, State};
use crate::id::TenantId;
use crate::secret::Fingerprint;

/// What is told of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Its name.
    pub id: TenantId,
    /// Whether it may do anything.
    pub state: State,
    /// When it was made; nothing for the tenant of the configuration.
    pub created: Option<SystemTime>,
    /// Its own limits.
    pub limits: Limits,
    /// Its live sessions, of which this process knows.
    pub sessions: usize,
    /// Its keys, without those of the configuration.
    pub keys: Vec<KeyRecord>,
}

/// What is to be changed of a tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Whether it may do anything.
    pub state: Option<State>,
    /// How many live sessions it may have; nothing within means what the configuration says.
    pub sessions: Option<Option<u32>>,
    /// How many requests a second it may make; nothing within means what the configuration says.
    pub requests_per_second: Option<Option<u32>>,
}

/// What was found in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// The tenants that stand, that of the configuration among them.
    pub tenants: usize,
    /// The records that were refused; they are named in the log and stay in the store.
    pub refused: usize,
}

/// What was closed, so that nothing else of its name is deleted.
#[derive(Clone, Debug)]
pub enum Closed {
    /// A tenant that lived.
    Live(Arc<Tenant>),
    /// The refused record of a tenant of the configuration: it alone is to go.
    Record,
    /// A tenant whose record is refused, and which does not live here.
    Refused,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) tenants: BTreeMap<TenantId, Entry>,
    /// Looked up by the hash of what was presented. How long that takes may tell how much of a hash
    /// agrees with one that is kept, and nobody can choose keys by the start of their SHA-256.
    pub(super) keys: HashMap<Fingerprint, Arc<Tenant>>,
    /// Keys that were revoked, until that is durable.
    pub(super) revoked: HashSet<Fingerprint>,
    /// Those whose record was refused: none is made anew over it.
    pub(super) refused: BTreeSet<TenantId>,
}

impl Table {
    /// Ends a tenant, if it is there.
    pub(super) fn end(&mut self, id: &TenantId) {
        if let Some(entry) = self.tenants.remove(id) {
            entry.tenant.cut().cancel();
            self.drop_keys(&entry.record, id);
        }
    }

    /// Refuses a tenant's keys and cuts its sessions, for good.
    pub(super) fn close(&mut self, id: &TenantId) {
        if let Some(entry) = self.tenants.get(id) {
            entry.tenant.cut().cancel();
            let record = entry.record.clone();
            self.drop_keys(&record, id);
        }
    }

    pub(super) fn drop_keys(&mut self, record: &Record, id: &TenantId) {
        for key in &record.keys {
            let owner = self.keys.get(&key.fingerprint);
            if owner.is_some_and(|owner| owner.id() == id) {
                self.keys.remove(&key.fingerprint);
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) tenant: Arc<Tenant>,
    pub(super) record: Record,
}

impl Entry {
    pub(super) fn about(&self, id: &TenantId) -> About {
        let created = self.record.created;
        About {
            id: id.clone(),
            state: self.record.state,
            created: (created != UNIX_EPOCH).then_some(created),
            limits: self.record.limits,
            sessions: self.tenant.sessions(),
            keys: self.record.keys.clone(),
        }
    }
}
