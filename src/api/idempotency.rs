//! Idempotency keys: a repeated creation is told from a new one.
//!
//! A key is reserved before the session is made, so that of two calls at once only one makes it; a
//! creation that fails gives the key back. The table is bounded, for each tenant and for all, and
//! time is passed in. What a tenant of a name had is nothing to the next. Called by the handler that
//! creates sessions.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName};

use crate::id::{SessionId, TenantId};
use crate::session::FieldError;
use crate::tenant::Tenant;
use crate::web::Failure;

/// The field that carries the key.
const FIELD: HeaderName = HeaderName::from_static("idempotency-key");
/// The longest key, in bytes.
const KEY_LIMIT_BYTES: usize = 255;
/// How long a key is remembered.
const LIFETIME: Duration = Duration::from_mins(10);
/// The most keys of one tenant.
const KEYS_LIMIT: usize = 10_000;
/// The most keys of all tenants, some 40 MiB where all are as long as they may. Where there is no
/// room the tenant with the most loses its oldest, so that nobody is refused for another's.
const TABLE_LIMIT: usize = 100_000;
/// How often what is over is looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Use {
    began: Instant,
    /// Tells the reservations of one key apart.
    number: u64,
    /// Nothing while the session is being made.
    session: Option<SessionId>,
}

impl Use {
    fn is_over(&self, now: Instant) -> bool {
        self.session.is_some() && now.saturating_duration_since(self.began) >= LIFETIME
    }
}

/// The keys of one tenant, who may have gone since.
#[derive(Debug)]
struct Uses {
    tenant: Arc<Tenant>,
    keys: HashMap<Box<str>, Use>,
}

#[derive(Debug, Default)]
struct Table {
    tenants: HashMap<TenantId, Uses>,
    count: usize,
    reserved: u64,
    swept: Option<Instant>,
}

impl Table {
    /// Forgets what is over, and tenants that have ended.
    fn sweep(&mut self, now: Instant) {
        let is_fresh = |swept| now.saturating_duration_since(swept) < SWEEP_EVERY;
        if self.swept.is_some_and(is_fresh) {
            return;
        }
        self.swept = Some(now);
        self.tenants.retain(|_, uses| {
            uses.keys.retain(|_, one| !one.is_over(now));
            !uses.keys.is_empty() && !uses.tenant.cut().is_cancelled()
        });
        self.count = self.tenants.values().map(|uses| uses.keys.len()).sum();
    }

    /// Returns the keys of a tenant, and of none before it of its name.
    fn own(&mut self, tenant: &Arc<Tenant>) -> &mut HashMap<Box<str>, Use> {
        let empty = || Uses {
            tenant: Arc::clone(tenant),
            keys: HashMap::new(),
        };
        let own = self.tenants.entry(tenant.id().clone());
        let own = own.or_insert_with(empty);
        if !Arc::ptr_eq(&own.tenant, tenant) {
            self.count -= own.keys.len();
            *own = empty();
        }
        &mut own.keys
    }

    /// Makes room for one more key of a tenant that has so many; tells whether there is some.
    fn make_room(&mut self, own: usize) -> bool {
        if own >= KEYS_LIMIT {
            return false;
        }
        if self.count < TABLE_LIMIT {
            return true;
        }
        let most = self.tenants.values_mut().max_by_key(|uses| uses.keys.len());
        let Some(most) = most.filter(|most| most.keys.len() > own) else {
            return false;
        };
        let settled = most.keys.iter().filter(|(_, one)| one.session.is_some());
        let oldest = settled.min_by_key(|(_, one)| one.began);
        let Some(oldest) = oldest.map(|(key, _)| key.clone()) else {
            return false;
        };
        most.keys.remove(&oldest);
        self.count -= 1;
        true
    }
}

/// The keys of the last ten minutes.
#[derive(Debug, Default)]
pub(super) struct Idempotency(Mutex<Table>);

impl Idempotency {
    /// Reserves a key until the reservation is dropped or settled.
    ///
    /// # Errors
    /// [`Failure::AlreadyCreated`]; [`Failure::Full`] where all keys of the tenant are still
    /// remembered; [`Failure::Unauthenticated`] where the tenant has ended.
    pub(super) fn reserve(
        self: &Arc<Self>,
        tenant: &Arc<Tenant>,
        key: &str,
        now: Instant,
    ) -> Result<Reservation, Failure> {
        if tenant.cut().is_cancelled() {
            // A late call must not take the place of the next tenant of that name.
            return Err(Failure::Unauthenticated);
        }
        let key: Box<str> = key.into();
        let mut table = self.lock();
        table.sweep(now);
        let own = table.own(tenant);
        let known = own.get(&key).filter(|one| !one.is_over(now));
        if let Some(known) = known {
            return Err(Failure::AlreadyCreated(known.session.clone()));
        }
        let before = own.len();
        own.remove(&key);
        if own.len() >= KEYS_LIMIT {
            own.retain(|_, one| !one.is_over(now));
        }
        let own = own.len();
        table.count -= before - own;
        if !table.make_room(own) {
            return Err(Failure::Full);
        }
        table.reserved += 1;
        let number = table.reserved;
        let fresh = Use {
            began: now,
            number,
            session: None,
        };
        table.own(tenant).insert(key.clone(), fresh);
        table.count += 1;
        Ok(Reservation {
            table: Arc::clone(self),
            tenant: tenant.id().clone(),
            key,
            number,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reserved key: given back when dropped, kept when settled.
#[derive(Debug)]
pub(super) struct Reservation {
    table: Arc<Idempotency>,
    tenant: TenantId,
    key: Box<str>,
    number: u64,
}

impl Reservation {
    /// Notes what was created under the key.
    pub(super) fn settle(self, session: &SessionId) {
        let mut table = self.table.lock();
        let uses = table.tenants.get_mut(&self.tenant);
        let one = uses.and_then(|uses| uses.keys.get_mut(&self.key));
        if let Some(one) = one.filter(|one| one.number == self.number) {
            one.session = Some(session.clone());
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut table = self.table.lock();
        let Some(uses) = table.tenants.get_mut(&self.tenant) else {
            return;
        };
        // What was settled stays, and so does what another call has reserved since.
        let is_ours = |one: &Use| one.number == self.number && one.session.is_none();
        if uses.keys.get(&self.key).is_some_and(is_ours) {
            uses.keys.remove(&self.key);
            table.count -= 1;
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
    use tokio::sync::RwLock;

    use super::*;
    use crate::records::Records;
    use crate::seal::Keyring;
    use crate::store::Memory;
    use crate::tenant::{Limits, Tenants};

    fn tenants() -> Tenants {
        let keyring = Arc::new(RwLock::new(Keyring::generate()));
        let records = Arc::new(Records::new(Arc::new(Memory::new()), keyring));
        Tenants::new(records, Limits::default(), 0)
    }

    /// Makes so many tenants.
    async fn some(count: usize) -> Vec<Arc<Tenant>> {
        let tenants = tenants();
        let mut made = Vec::new();
        for number in 0..count {
            made.push(make(&tenants, &format!("t{number}")).await);
        }
        made
    }

    async fn make(tenants: &Tenants, name: &str) -> Arc<Tenant> {
        let id = TenantId::new(name);
        tenants.create(&id, Limits::default()).await.unwrap();
        tenants.find(&id).unwrap()
    }

    impl Idempotency {
        /// Uses keys of these numbers, each for a session.
        fn fill(
            self: &Arc<Self>,
            tenant: &Arc<Tenant>,
            keys: std::ops::Range<usize>,
            now: Instant,
        ) {
            let id = SessionId::generate();
            for n in keys {
                let reserved = self.reserve(tenant, &n.to_string(), now);
                reserved.unwrap().settle(&id);
            }
        }

        /// Returns how many keys there are, counted one by one, as they should be.
        fn len(&self) -> usize {
            let table = self.lock();
            let all = table.tenants.values().map(|uses| uses.keys.len()).sum();
            assert_eq!(table.count, all);
            all
        }
    }

    #[tokio::test]
    async fn a_key_is_remembered_for_its_time_and_its_tenant() {
        let (table, now) = (Arc::new(Idempotency::default()), Instant::now());
        let all = some(2).await;
        let (one, two) = (&all[0], &all[1]);
        let id = SessionId::generate();
        let reserved = table.reserve(one, "k", now).unwrap();
        let busy = table.reserve(one, "k", now + LIFETIME).unwrap_err();
        assert!(matches!(busy, Failure::AlreadyCreated(None)), "{busy}");
        assert!(table.reserve(two, "k", now).is_ok());
        reserved.settle(&id);
        let almost = now + LIFETIME.saturating_sub(Duration::from_millis(1));
        match table.reserve(one, "k", almost) {
            Err(Failure::AlreadyCreated(Some(found))) => assert_eq!(found, id),
            other => panic!("{other:?}"),
        }
        assert!(table.reserve(one, "k", now + LIFETIME).is_ok());
    }

    #[tokio::test]
    async fn a_failed_creation_gives_its_key_back() {
        let (table, now) = (Arc::new(Idempotency::default()), Instant::now());
        let all = some(1).await;
        drop(table.reserve(&all[0], "k", now).unwrap());
        assert!(table.reserve(&all[0], "k", now).is_ok());
        assert_eq!(table.len(), 0);
    }

    #[tokio::test]
    async fn a_tenant_has_so_many_keys_and_what_is_over_makes_room() {
        let (table, now) = (Arc::new(Idempotency::default()), Instant::now());
        let all = some(2).await;
        let (one, two) = (&all[0], &all[1]);
        table.fill(one, 0..KEYS_LIMIT, now);
        let full = table.reserve(one, "more", now).unwrap_err();
        assert!(matches!(full, Failure::Full), "{full}");
        // A moment before they are over all was swept, and is not again for a while.
        let (early, after) = (
            now + LIFETIME.saturating_sub(Duration::from_secs(1)),
            now + LIFETIME + Duration::from_secs(1),
        );
        let soon = Arc::new(Idempotency::default());
        soon.fill(one, 0..KEYS_LIMIT, now);
        soon.reserve(one, "more", early).unwrap_err();
        drop(soon.reserve(one, "more", after).unwrap());
        assert_eq!(soon.len(), 0);
        // Another tenant has its own.
        drop(table.reserve(two, "more", now).unwrap());
        let known = table.reserve(one, "7", now).unwrap_err();
        assert!(matches!(known, Failure::AlreadyCreated(Some(_))), "{known}");
        // Whoever comes later sweeps for all.
        drop(table.reserve(two, "more", now + LIFETIME).unwrap());
        assert_eq!(table.len(), 0);
        drop(table.reserve(one, "more", now + LIFETIME).unwrap());
    }

    #[tokio::test]
    async fn all_tenants_together_have_so_many_keys_and_who_has_most_makes_room() {
        let (table, now) = (Arc::new(Idempotency::default()), Instant::now());
        let soon = now + Duration::from_secs(1);
        let all = some(TABLE_LIMIT / KEYS_LIMIT + 1).await;
        let (large, small) = (&all[0], &all[1]);
        table.fill(large, 0..5, now);
        table.fill(large, 5..KEYS_LIMIT, soon);
        for other in &all[2..] {
            table.fill(other, 0..KEYS_LIMIT - 10, soon);
        }
        let room = TABLE_LIMIT - table.len();
        table.fill(small, 0..room, soon);
        table.fill(small, room..room + 5, soon);
        assert_eq!(table.len(), TABLE_LIMIT);
        let keys = |tenant: &Arc<Tenant>| table.lock().tenants[tenant.id()].keys.len();
        assert_eq!((keys(large), keys(small)), (KEYS_LIMIT - 5, room + 5));
        assert!(all[2..].iter().all(|other| keys(other) == KEYS_LIMIT - 10));
        // The oldest went.
        let large_has = |key: &str| table.lock().tenants[large.id()].keys.contains_key(key);
        assert!((0..5).all(|n: usize| !large_has(&n.to_string())) && large_has("5"));
        let full = table.reserve(large, "more", soon).unwrap_err();
        assert!(matches!(full, Failure::Full), "{full}");
    }

    #[tokio::test]
    async fn the_next_tenant_of_a_name_has_no_key_of_the_one_before() {
        let (table, now) = (Arc::new(Idempotency::default()), Instant::now());
        let (tenants, id) = (tenants(), SessionId::generate());
        let before = make(&tenants, "acme").await;
        table.reserve(&before, "done", now).unwrap().settle(&id);
        let late = table.reserve(&before, "late", now).unwrap();
        let later = table.reserve(&before, "later", now).unwrap();
        let closed = tenants.close(before.id()).unwrap();
        tenants.delete(before.id(), &closed).await.unwrap();
        let after = make(&tenants, "acme").await;
        let done = table.reserve(&after, "done", now);
        let refused = table.reserve(&before, "last", now).unwrap_err();
        assert!(matches!(refused, Failure::Unauthenticated), "{refused}");
        let own = table.reserve(&after, "late", now).unwrap();
        let also = table.reserve(&after, "later", now).unwrap();
        // What the one before had under way is nothing to the next.
        drop(late);
        later.settle(&id);
        for key in ["late", "later"] {
            let busy = table.reserve(&after, key, now).unwrap_err();
            assert!(
                matches!(busy, Failure::AlreadyCreated(None)),
                "{key}: {busy}"
            );
        }
        drop((done.unwrap(), own, also));
        assert_eq!(table.len(), 0);
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
