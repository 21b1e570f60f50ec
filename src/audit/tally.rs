//! Counts of what the records say, made while a record is handed over.
//!
//! A lost record is counted like any other. What tenants can name is bounded: so many names of
//! secrets, then one word for all others. Called by the queue, and by `app` for its metrics.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};

use crate::audit::{Data, Decision, Kind};
use crate::host::Host;
use crate::policy::{Catalogue, Entry};

/// How many names of secrets are told apart.
pub const SECRET_NAMES: usize = 200;
/// What stands for all other names: no secret has it, since it holds a blank.
pub const OTHER_NAMES: &str = "all others";

/// [`OTHER_NAMES`], made once: there is no bound on how often it is counted.
static OTHERS: LazyLock<Arc<str>> = LazyLock::new(|| OTHER_NAMES.into());

/// What the records say, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Exchanges, by how they ended.
    pub exchanges: BTreeMap<&'static str, u64>,
    /// Tunnels that have ended or were refused, by how.
    pub tunnels: BTreeMap<&'static str, u64>,
    /// Changes of sessions, by what was done and how it ended.
    pub sessions: BTreeMap<(&'static str, &'static str), u64>,
    /// What was not let through or failed, by the stable word for it.
    pub refusals: BTreeMap<&'static str, u64>,
    /// Exchanges in which a secret was swapped, by its name and whether the catalogue knows the
    /// host as its.
    pub swaps: HashMap<Arc<str>, Swaps>,
}

/// Exchanges in which one secret was swapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swaps {
    /// Towards hosts that the catalogue gives for its name.
    pub catalogue: u64,
    /// Towards any other.
    pub other: u64,
}

impl Tally {
    pub(super) fn count(&mut self, data: &Data, catalogue: Option<&Catalogue>) {
        let decision = data.decision.as_str();
        match data.kind {
            Kind::Exchange => *self.exchanges.entry(decision).or_default() += 1,
            Kind::Tunnel => *self.tunnels.entry(decision).or_default() += 1,
            Kind::Session => {
                let action = data.action.unwrap_or_default();
                *self.sessions.entry((action, decision)).or_default() += 1;
            }
        }
        if data.decision != Decision::Allowed {
            *self.refusals.entry(data.reason).or_default() += 1;
        }
        let Some(swaps) = &data.swaps else { return };
        let host = data.target.as_ref().map(|target| &target.host);
        for name in &swaps.names {
            let is_known = host.is_some_and(|host| knows(catalogue, name, host));
            let swaps = self.swaps_of(name);
            if is_known {
                swaps.catalogue += 1;
            } else {
                swaps.other += 1;
            }
        }
    }

    fn swaps_of(&mut self, name: &Arc<str>) -> &mut Swaps {
        if self.swaps.contains_key(name) || self.swaps.len() < SECRET_NAMES {
            return self.swaps.entry(Arc::clone(name)).or_default();
        }
        self.swaps.entry(Arc::clone(&OTHERS)).or_default()
    }
}

/// Tells whether the catalogue gives a host for a secret of this name.
fn knows(catalogue: Option<&Catalogue>, name: &str, host: &Host) -> bool {
    match catalogue.and_then(|catalogue| catalogue.lookup(name)) {
        Some(Entry::Travels { hosts, .. }) => hosts.iter().any(|own| own.matches_host(host)),
        Some(Entry::Signs { .. }) | None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Record, capture};
    use crate::host::HostPort;

    fn swapped(names: &[&str], host: &str) -> Tally {
        let (sink, _captured) = capture();
        sink.classify_by(&Arc::new(Catalogue::builtin()));
        for name in names {
            let mut record = Record::begin(&sink, Kind::Exchange);
            record.target(&HostPort::parse(host).unwrap());
            record.swapped(&[Arc::from(*name)], 0);
            record.decision(Decision::Allowed, "ok");
        }
        sink.tally()
    }

    #[test]
    fn swaps_are_told_by_name_and_class_of_host() {
        let name = "ANTHROPIC_API_KEY";
        for (host, catalogue, other) in [
            ("api.anthropic.com:443", 1, 0),
            ("api.example.com:443", 0, 1),
        ] {
            let tally = swapped(&[name], host);
            assert_eq!(tally.swaps[name], Swaps { catalogue, other }, "{host}");
            assert_eq!(tally.exchanges["allowed"], 1);
            assert!(tally.refusals.is_empty());
        }
        let tally = swapped(&["MINE"], "api.anthropic.com:443");
        assert_eq!(tally.swaps["MINE"].other, 1);
    }

    #[test]
    fn so_many_names_are_told_apart_and_no_more() {
        let names: Vec<String> = (0..SECRET_NAMES + 50).map(|n| format!("S{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let tally = swapped(&names, "a.example:443");
        assert_eq!(tally.swaps.len(), SECRET_NAMES + 1);
        assert_eq!(tally.swaps[OTHER_NAMES].other, 50);
        let again = [names.as_slice(), &names[..1]].concat();
        assert_eq!(swapped(&again, "a.example:443").swaps["S0"].other, 2);
    }

    #[test]
    fn what_ends_otherwise_is_counted_by_its_reason() {
        let (sink, _captured) = capture();
        let end = |kind, decision, reason| {
            Record::begin(&sink, kind).decision(decision, reason);
        };
        end(Kind::Tunnel, Decision::Denied, "host_not_allowed");
        end(Kind::Tunnel, Decision::Allowed, "ok");
        end(Kind::Exchange, Decision::Failed, "dns_error");
        end(Kind::Exchange, Decision::Failed, "dns_error");
        let mut record = Record::begin(&sink, Kind::Session);
        record.action("created");
        record.decision(Decision::Allowed, "ok");
        drop(record);
        let tally = sink.tally();
        assert_eq!(
            tally.tunnels,
            BTreeMap::from([("allowed", 1), ("denied", 1)])
        );
        assert_eq!(tally.exchanges, BTreeMap::from([("failed", 2)]));
        assert_eq!(tally.sessions[&("created", "allowed")], 1);
        let refusals = BTreeMap::from([("dns_error", 2), ("host_not_allowed", 1)]);
        assert_eq!(tally.refusals, refusals);
    }
}
