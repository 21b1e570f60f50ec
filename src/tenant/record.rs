//! A tenant as a record of the store: what is written, and what is read back.
//!
//! The record is sealed as a whole by `records`. A field that is not known makes it unreadable: it
//! may be a restriction of a later version. Keys stand in it as hashes. Called by the table.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

use crate::id::ApiKeyId;
use crate::secret::Fingerprint;

/// The form of the record; raised when a field changes its meaning or one is taken away.
const FORMAT: u32 = 1;
/// The longest label of a key, in characters.
pub const LABEL_LIMIT: usize = 100;

/// Tells whether a text can be the label of a key: one line of at most [`LABEL_LIMIT`] characters.
pub fn is_label(text: &str) -> bool {
    text.chars().count() <= LABEL_LIMIT && !text.chars().any(char::is_control)
}

/// Whether a tenant may do anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Its keys work.
    Active,
    /// Its keys are refused, and its sessions ended.
    Disabled,
}

/// How much a tenant may have. Nothing in a field means what the configuration says for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Live sessions.
    pub sessions: Option<u32>,
    /// Requests to the management API a second, in the long run.
    pub requests_per_second: Option<u32>,
}

/// What is kept of an API key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRecord {
    /// Its name.
    pub id: ApiKeyId,
    /// Its hash.
    pub fingerprint: Fingerprint,
    /// What the operator calls it; perhaps nothing.
    pub label: String,
    /// When it was made.
    pub created: SystemTime,
}

/// Everything that is kept of a tenant, but for its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) state: State,
    pub(super) created: SystemTime,
    pub(super) limits: Limits,
    pub(super) keys: Vec<KeyRecord>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    format: u32,
    state: State,
    created: u64,
    limits: Limits,
    keys: Vec<WrittenKey>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenKey {
    id: String,
    hash: String,
    label: String,
    created: u64,
}

impl Record {
    pub(super) fn new(created: SystemTime) -> Self {
        Self {
            state: State::Active,
            created: whole(created),
            limits: Limits::default(),
            keys: Vec::new(),
        }
    }

    #[expect(
        clippy::expect_used,
        reason = "texts, numbers and lists of them always have a JSON form"
    )]
    pub(super) fn encode(&self) -> Vec<u8> {
        let keys = self.keys.iter().map(|key| WrittenKey {
            id: key.id.to_string(),
            hash: BASE64.encode(key.fingerprint.as_bytes()),
            label: key.label.clone(),
            created: millis(key.created),
        });
        let written = Written {
            format: FORMAT,
            state: self.state,
            created: millis(self.created),
            limits: self.limits,
            keys: keys.collect(),
        };
        serde_json::to_vec(&written).expect("a record has a JSON form")
    }

    /// Reads what was opened; nothing where this version cannot.
    pub(super) fn decode(plain: &[u8]) -> Option<Self> {
        let written: Written = serde_json::from_slice(plain).ok()?;
        if written.format != FORMAT {
            return None;
        }
        let keys = written.keys.into_iter().map(|key| {
            let hash = BASE64.decode(key.hash.as_bytes()).ok()?;
            Some(KeyRecord {
                id: ApiKeyId::parse(&key.id)?,
                fingerprint: Fingerprint::from_bytes(hash.as_slice().try_into().ok()?),
                label: key.label,
                created: at(key.created)?,
            })
        });
        Some(Self {
            state: written.state,
            created: at(written.created)?,
            limits: written.limits,
            keys: keys.collect::<Option<_>>()?,
        })
    }
}

/// Drops what the record does not keep of a time.
pub(super) fn whole(time: SystemTime) -> SystemTime {
    at(millis(time)).unwrap_or(UNIX_EPOCH)
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn at(millis: u64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(label: &str, hash: [u8; 32], created: u64) -> KeyRecord {
        KeyRecord {
            id: ApiKeyId::generate(),
            fingerprint: Fingerprint::from_bytes(hash),
            label: label.to_owned(),
            created: at(created).unwrap(),
        }
    }

    proptest! {
        #[test]
        fn p_records_come_back_as_they_were(
            is_active: bool,
            created in 0..u64::from(u32::MAX) * 1000,
            sessions: Option<u32>,
            rate: Option<u32>,
            keys in prop::collection::vec((".{0,20}", any::<[u8; 32]>(), 0..1u64 << 40), 0..4),
        ) {
            let record = Record {
                state: if is_active { State::Active } else { State::Disabled },
                created: at(created).unwrap(),
                limits: Limits { sessions, requests_per_second: rate },
                keys: keys.iter().map(|(label, hash, at)| key(label, *hash, *at)).collect(),
            };
            prop_assert_eq!(Record::decode(&record.encode()), Some(record));
        }

        #[test]
        fn p_whatever_is_read_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _read = Record::decode(&bytes);
        }
    }

    #[test]
    fn what_is_not_known_is_unreadable() {
        let good = String::from_utf8(Record::new(UNIX_EPOCH).encode()).unwrap();
        assert!(Record::decode(good.as_bytes()).is_some());
        for (from, to) in [
            ("\"format\":1", "\"format\":2"),
            ("\"active\"", "\"paused\""),
            ("\"keys\":[]", "\"keys\":[],\"more\":1"),
            ("\"sessions\":null", "\"sessions\":-1"),
            ("\"sessions\":null", "\"sessions\":null,\"tunnels\":1"),
            (
                "\"keys\":[]",
                "\"keys\":[{\"id\":\"key_1\",\"hash\":\"\",\"label\":\"\",\"created\":0}]",
            ),
            (",\"keys\":[]", ""),
        ] {
            assert!(good.contains(from), "{good}");
            let changed = good.replace(from, to);
            assert!(Record::decode(changed.as_bytes()).is_none(), "{changed}");
        }
    }
}
