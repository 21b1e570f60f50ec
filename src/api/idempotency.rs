//! Idempotency keys: a repeated creation is told from a new one.
//!
//! A key is reserved before the session is made, so that of two calls at once only one makes it; a
//! creation that fails gives the key back. The table is bounded and time is passed in. Called by
//! the handler that creates sessions.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName};

use crate::id::{SessionId, TenantId};
use crate::session::FieldError;
use crate::web::Failure;

/// The field that carries the key.
const FIELD: HeaderName = HeaderName::from_static("idempotency-key");
/// The longest key, in bytes.
const KEY_LIMIT_BYTES: usize = 255;
/// How long a key is remembered.
const LIFETIME: Duration = Duration::from_mins(10);
/// The most keys of one tenant: no other tenant's creations are refused for them.
const KEYS_LIMIT: usize = 10_000;

type Key = (TenantId, Box<str>);
type Uses = HashMap<Box<str>, Use>;

#[derive(Debug)]
struct Use {
    began: Instant,
    /// Nothing while the session is being made.
    session: Option<SessionId>,
}

/// The keys of the last ten minutes.
#[derive(Debug, Default)]
pub(super) struct Idempotency(Mutex<HashMap<TenantId, Uses>>);

impl Idempotency {
    /// Reserves a key until the reservation is dropped or settled.
    ///
    /// # Errors
    /// [`Failure::AlreadyCreated`]; [`Failure::Full`] where all keys are still remembered.
    pub(super) fn reserve(
        self: &Arc<Self>,
        tenant: &TenantId,
        key: &str,
        now: Instant,
    ) -> Result<Reservation, Failure> {
        let key: Box<str> = key.into();
        let over = |one: &Use| {
            one.session.is_some() && now.saturating_duration_since(one.began) >= LIFETIME
        };
        let mut tenants = self.lock();
        let uses = tenants.entry(tenant.clone()).or_default();
        if uses.len() >= KEYS_LIMIT && !uses.contains_key(&key) {
            uses.retain(|_, one| !over(one));
            if uses.len() >= KEYS_LIMIT {
                return Err(Failure::Full);
            }
        }
        let fresh = Use {
            began: now,
            session: None,
        };
        match uses.entry(key.clone()) {
            Entry::Occupied(entry) if !over(entry.get()) => {
                return Err(Failure::AlreadyCreated(entry.get().session.clone()));
            }
            Entry::Occupied(mut entry) => drop(entry.insert(fresh)),
            Entry::Vacant(entry) => drop(entry.insert(fresh)),
        }
        Ok(Reservation {
            table: Arc::clone(self),
            key: Some((tenant.clone(), key)),
        })
    }

    /// Forgets the keys of a tenant that is gone: another may have its name.
    pub(super) fn forget(&self, tenant: &TenantId) {
        self.lock().remove(tenant);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TenantId, Uses>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reserved key: given back when dropped, kept when settled.
#[derive(Debug)]
pub(super) struct Reservation {
    table: Arc<Idempotency>,
    key: Option<Key>,
}

impl Reservation {
    /// Notes what was created under the key.
    pub(super) fn settle(mut self, session: &SessionId) {
        if let Some((tenant, key)) = self.key.take()
            && let Some(uses) = self.table.lock().get_mut(&tenant)
            && let Some(one) = uses.get_mut(&key)
        {
            one.session = Some(session.clone());
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some((tenant, key)) = self.key.take()
            && let Some(uses) = self.table.lock().get_mut(&tenant)
        {
            uses.remove(&key);
        }
    }
}

/// Returns the key of a request, if it has one.
///
/// # Errors
/// [`Failure::BadRequest`] for two keys, and for one that is not 1 to 255 visible ASCII characters.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<&str>, Failure> {
    let mut values = headers.get_all(FIELD).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let text = value.to_str().ok().filter(|text| {
        let length = 1..=KEY_LIMIT_BYTES;
        length.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
    });
    if text.is_some() && values.next().is_none() {
        return Ok(text);
    }
    let message = "one key of 1 to 255 visible ASCII characters";
    let error = FieldError::new("Idempotency-Key", "bad_idempotency_key", message);
    Err(Failure::BadRequest(vec![error]))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_key_is_remembered_for_its_time_and_its_tenant() {
        let (table, now) = (Arc::new(Idempotency::default()), Instant::now());
        let (one, two) = (TenantId::new("one"), TenantId::new("two"));
        let id = SessionId::generate();
        let reserved = table.reserve(&one, "k", now).unwrap();
        let busy = table.reserve(&one, "k", now + LIFETIME).unwrap_err();
        assert!(matches!(busy, Failure::AlreadyCreated(None)), "{busy}");
        assert!(table.reserve(&two, "k", now).is_ok());
        reserved.settle(&id);
        let almost = now + LIFETIME.saturating_sub(Duration::from_millis(1));
        match table.reserve(&one, "k", almost) {
            Err(Failure::AlreadyCreated(Some(found))) => assert_eq!(found, id),
            other => panic!("{other:?}"),
        }
        assert!(table.reserve(&one, "k", now + LIFETIME).is_ok());
    }

    #[test]
    fn a_failed_creation_gives_its_key_back() {
        let (table, now) = (Arc::new(Idempotency::default()), Instant::now());
        let one = TenantId::new("one");
        drop(table.reserve(&one, "k", now).unwrap());
        assert!(table.reserve(&one, "k", now).is_ok());
        assert!(table.lock().values().all(HashMap::is_empty));
    }

    #[test]
    fn the_table_is_bounded_and_drops_what_is_over() {
        let (table, now) = (Arc::new(Idempotency::default()), Instant::now());
        let (one, id) = (TenantId::new("one"), SessionId::generate());
        for n in 0..KEYS_LIMIT {
            table
                .reserve(&one, &n.to_string(), now)
                .unwrap()
                .settle(&id);
        }
        let full = table.reserve(&one, "more", now).unwrap_err();
        assert!(matches!(full, Failure::Full), "{full}");
        // Another tenant has its own.
        let two = TenantId::new("two");
        drop(table.reserve(&two, "more", now).unwrap());
        let known = table.reserve(&one, "7", now).unwrap_err();
        assert!(matches!(known, Failure::AlreadyCreated(Some(_))), "{known}");
        table
            .reserve(&one, "more", now + LIFETIME)
            .unwrap()
            .settle(&id);
        assert_eq!(table.lock()[&one].len(), 1);
        table.forget(&one);
        assert!(table.reserve(&one, "more", now).is_ok());
    }

    #[test]
    fn keys_are_visible_ascii() {
        let longest = "x".repeat(255);
        let longer = "x".repeat(256);
        let cases: [(&[&str], bool); 7] = [
            (&["k"], true),
            (&[&longest], true),
            (&[&longer], false),
            (&[""], false),
            (&["a b"], false),
            (&["\u{e9}"], false),
            (&["k", "k"], false),
        ];
        for (values, good) in cases {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(FIELD, HeaderValue::from_bytes(value.as_bytes()).unwrap());
            }
            assert_eq!(key(&headers).is_ok(), good, "{values:?}");
        }
        assert_eq!(key(&HeaderMap::new()).unwrap(), None);
    }
}
