//! Records beside the sessions: sealed, bound to their kind and name, and kept in the store.
//!
//! A record that was put by hand, edited, or moved under another name or kind opens as nothing and
//! is named; it must never be taken for an absent one. One keyring seals them and the sessions, so
//! that one rotation covers both. Called by what keeps such records, as `tenant` does, and by
//! `session` for rotations.

use std::collections::BTreeSet;
use std::fmt;
use std::fmt::Display;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::join_all;
use tokio::sync::{Mutex, RwLock};
use zeroize::Zeroizing;

use crate::seal::{self, Context, KeyId, Keyring};
use crate::store::{Error, RecordKey, RecordKind, Store};

/// Keeps records under the keyring that sessions are sealed with.
#[derive(Debug)]
pub struct Records {
    store: Arc<dyn Store>,
    /// Held while a record that it sealed is on its way to the store.
    keyring: Arc<RwLock<Keyring>>,
    /// One change at a time, so that a rotation puts no older record in place of a newer one.
    changing: Mutex<()>,
    listener: Listener,
}

/// What other processes that serve from the same records have to know.
#[derive(Clone, Copy, Debug)]
pub enum News<'a> {
    /// Something holds from now on that is not durable yet, in words of whoever keeps the record.
    Ahead(&'a RecordKey, &'a str),
    /// A record was deleted.
    Deleted(&'a RecordKey),
    /// A record was written: this is how it stands in the store.
    Written(&'a RecordKey, &'a [u8]),
}

/// Hears of changes, in their order; it must not wait.
type Hear = Box<dyn Fn(News<'_>) + Send + Sync>;

/// Who is told of changes.
#[derive(Default)]
struct Listener(Option<Hear>);

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Listener").field(&self.0.is_some()).finish()
    }
}

/// What became of a record that another process wants to be written.
pub enum Replaced {
    /// It is written. This is what it says.
    Written(Zeroizing<Vec<u8>>),
    /// What stands in the store is not what that process had read: nothing was written.
    Changed,
    /// It was not sealed by one of ours: nothing was written.
    Refused(Refused),
}

/// The records of one kind, as they were found.
#[derive(Default)]
pub struct Found {
    /// Those that opened.
    pub opened: Vec<(RecordKey, Zeroizing<Vec<u8>>)>,
    /// Those that did not: the key in a form for people, and why.
    pub refused: Vec<(String, Refused)>,
}

/// What stood in the store when a record was read: sealed, or nothing. Two of the same content differ
/// where they were sealed twice.
#[derive(Clone, Default)]
pub struct Seen(Option<Vec<u8>>);

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.as_ref().map(Vec::len);
        f.debug_tuple("Seen").field(&bytes).finish()
    }
}

/// Says why what stands in the store is no record of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It was sealed by nobody, for another name or kind, or under a key that is gone.
    #[error("it does not open: {0}")]
    Sealed(#[from] seal::Error),
    /// It opens, and this version cannot read it.
    #[error("it cannot be read by this version")]
    Unreadable,
    /// No record can stand under its key.
    #[error("its key is none of ours")]
    Strange,
}

impl fmt::Debug for Replaced {
    /// Shows what became of it, and nothing of what it says.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Written(_) => f.write_str("Written"),
            Self::Changed => f.write_str("Changed"),
            Self::Refused(why) => f.debug_tuple("Refused").field(why).finish(),
        }
    }
}

/// What sealing records anew did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resealed {
    /// How many were sealed anew.
    pub sealed: usize,
    /// How many do not open and stay as they are.
    pub refused: usize,
    /// The keys that those need.
    pub needed: BTreeSet<KeyId>,
}

impl Records {
    /// Keeps records in a store.
    pub fn new(store: Arc<dyn Store>, keyring: Arc<RwLock<Keyring>>) -> Self {
        Self {
            store,
            keyring,
            changing: Mutex::new(()),
            listener: Listener::default(),
        }
    }

    /// Sets who is told of changes.
    #[must_use]
    pub fn telling(mut self, listener: impl Fn(News<'_>) + Send + Sync + 'static) -> Self {
        self.listener = Listener(Some(Box::new(listener)));
        self
    }

    /// Tells what holds already, before it is durable.
    pub fn tell_ahead(&self, key: &RecordKey, what: &str) {
        self.tell(News::Ahead(key, what));
    }

    fn tell(&self, news: News<'_>) {
        if let Listener(Some(listener)) = &self.listener {
            listener(news);
        }
    }

    /// Seals a record and makes it durable.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: nobody knows then whether it is there.
    pub async fn put(&self, key: &RecordKey, plain: &[u8]) -> Result<(), Error> {
        let _alone = self.changing.lock().await;
        let keyring = self.keyring.read().await;
        let sealed = keyring.seal(&context(key), plain);
        self.put_sealed(key, sealed).await
    }

    async fn put_sealed(&self, key: &RecordKey, sealed: Vec<u8>) -> Result<(), Error> {
        let told = self.listener.0.is_some().then(|| sealed.clone());
        self.store.put_record(key, sealed).await?;
        if let Some(sealed) = told {
            self.tell(News::Written(key, &sealed));
        }
        Ok(())
    }

    /// Writes what another process has sealed, where that stands in the store yet which it had read;
    /// it is sealed anew under the current key.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: nobody knows then whether it is there.
    pub async fn replace(
        &self,
        key: &RecordKey,
        was: Option<&[u8]>,
        sealed: &[u8],
    ) -> Result<Replaced, Error> {
        let _alone = self.changing.lock().await;
        if self.store.record(key).await?.as_deref() != was {
            return Ok(Replaced::Changed);
        }
        let keyring = self.keyring.read().await;
        let plain = match keyring.open(&context(key), sealed) {
            Ok(plain) => plain,
            Err(why) => return Ok(Replaced::Refused(why.into())),
        };
        let sealed = keyring.seal(&context(key), &plain);
        self.put_sealed(key, sealed).await?;
        Ok(Replaced::Written(plain))
    }

    /// Reads a record as it stands in the store, after all changes that were told of.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn sealed(&self, key: &RecordKey) -> Result<Option<Vec<u8>>, Error> {
        let _alone = self.changing.lock().await;
        self.store.record(key).await
    }

    /// Opens a record that another process has written.
    ///
    /// # Errors
    /// [`Refused::Sealed`].
    pub async fn unseal(
        &self,
        key: &RecordKey,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Refused> {
        let opened = self.keyring.read().await.open(&context(key), sealed);
        opened.map_err(Refused::Sealed)
    }

    /// Seals many records and makes them durable, side by side, so that a store that groups what
    /// comes at once needs few commits. No key may occur twice. The answers are in the order given;
    /// of one that failed nobody knows whether it is there.
    pub async fn put_all(&self, records: &[(RecordKey, Vec<u8>)]) -> Vec<Result<(), Error>> {
        let _alone = self.changing.lock().await;
        let keyring = self.keyring.read().await;
        let puts = records.iter().map(|(key, plain)| {
            let sealed = keyring.seal(&context(key), plain);
            self.put_sealed(key, sealed)
        });
        join_all(puts).await
    }

    /// Seals a record and makes it durable over what was seen there, and tells whether it did: another
    /// process that uses the store may have been faster.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: nobody knows then whether it is there.
    pub async fn put_over(&self, key: &RecordKey, plain: &[u8], seen: Seen) -> Result<bool, Error> {
        let _alone = self.changing.lock().await;
        let keyring = self.keyring.read().await;
        let sealed = keyring.seal(&context(key), plain);
        let told = self.listener.0.is_some().then(|| sealed.clone());
        let is_written = self.store.replace_record(key, sealed, seen.0).await?;
        if let Some(sealed) = told.filter(|_| is_written) {
            self.tell(News::Written(key, &sealed));
        }
        Ok(is_written)
    }

    /// Tells the time by which records are dated.
    pub fn now(&self) -> SystemTime {
        self.store.now()
    }

    /// Deletes a record, and tells whether there was one.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: nobody knows then whether it is there.
    pub async fn delete(&self, key: &RecordKey) -> Result<bool, Error> {
        let _alone = self.changing.lock().await;
        let deleted = self.store.delete_record(key).await?;
        self.tell(News::Deleted(key));
        Ok(deleted)
    }

    /// Reads one record: nothing where there is none, and why where it does not open.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn open(
        &self,
        key: &RecordKey,
    ) -> Result<Option<Result<Zeroizing<Vec<u8>>, Refused>>, Error> {
        self.read(key).await.map(|(opened, _)| opened)
    }

    /// Reads one record as [`Self::open`] does, for [`Self::put_over`].
    ///
    /// # Errors
    /// Those of the store.
    pub async fn read(
        &self,
        key: &RecordKey,
    ) -> Result<(Option<Result<Zeroizing<Vec<u8>>, Refused>>, Seen), Error> {
        let Some(sealed) = self.store.record(key).await? else {
            return Ok((None, Seen(None)));
        };
        let opened = self.keyring.read().await.open(&context(key), &sealed);
        Ok((Some(opened.map_err(Refused::Sealed)), Seen(Some(sealed))))
    }

    /// Reads all records of a kind. What is refused is also named in the log.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn load(&self, kind: RecordKind) -> Result<Found, Error> {
        let rows = self.store.load_records(kind).await?;
        let keyring = self.keyring.read().await;
        let mut found = Found::default();
        for key in rows.strange {
            found.refuse(key, Refused::Strange);
        }
        for (key, sealed) in rows.records {
            match keyring.open(&context(&key), &sealed) {
                Ok(plain) => found.opened.push((key, plain)),
                Err(error) => found.refuse(key.to_string(), Refused::Sealed(error)),
            }
        }
        Ok(found)
    }

    /// Seals anew what is under an older key.
    ///
    /// # Errors
    /// Those of the store: what was done is done, and calling again goes on.
    pub async fn seal_anew(&self) -> Result<Resealed, Error> {
        let mut done = Resealed::default();
        let stale = stale(self.store.as_ref(), &*self.keyring.read().await).await?;
        for key in stale {
            let _alone = self.changing.lock().await;
            let keyring = self.keyring.read().await;
            done.reseal(self.store.as_ref(), &keyring, &key).await?;
        }
        Ok(done)
    }
}

impl fmt::Debug for Found {
    /// Shows which records there are, and nothing of what they hold.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let opened: Vec<_> = self.opened.iter().map(|(key, _)| key).collect();
        f.debug_struct("Found")
            .field("opened", &opened)
            .field("refused", &self.refused)
            .finish()
    }
}

impl Found {
    fn refuse(&mut self, record: String, why: Refused) {
        name_refused(&record, &why);
        self.refused.push((record, why));
    }
}

impl Resealed {
    async fn reseal(
        &mut self,
        store: &dyn Store,
        keyring: &Keyring,
        key: &RecordKey,
    ) -> Result<(), Error> {
        // Read again: it may have been changed or deleted since all were listed.
        let Some(sealed) = store.record(key).await? else {
            return Ok(());
        };
        if keyring.is_current(&sealed) == Ok(true) {
            return Ok(());
        }
        let Ok(plain) = keyring.open(&context(key), &sealed) else {
            self.refused += 1;
            self.needed.extend(Keyring::key_of(&sealed));
            return Ok(());
        };
        let fresh = keyring.seal(&context(key), &plain);
        // What another process wrote meanwhile is newer, and sealed anew by it.
        if store.replace_record(key, fresh, Some(sealed)).await? {
            self.sealed += 1;
        }
        Ok(())
    }
}

/// Names a record that is refused in the log.
pub fn name_refused(record: &str, why: &dyn Display) {
    tracing::error!(record, %why, "a record in the store is refused");
}

/// Seals the records of a store that nobody serves anew.
///
/// # Errors
/// Those of the store.
pub async fn seal_anew_offline(store: &dyn Store, keyring: &Keyring) -> Result<Resealed, Error> {
    let mut done = Resealed::default();
    for key in stale(store, keyring).await? {
        done.reseal(store, keyring, &key).await?;
    }
    Ok(done)
}

/// Returns the ids of the keys that the records of a store say they are under; nothing is opened.
///
/// # Errors
/// Those of the store.
pub async fn keys_in_use(store: &dyn Store) -> Result<BTreeSet<KeyId>, Error> {
    let mut ids = BTreeSet::new();
    for kind in RecordKind::ALL {
        let rows = store.load_records(*kind).await?;
        let sealed = rows.records.iter().map(|(_, sealed)| sealed);
        ids.extend(sealed.filter_map(|sealed| Keyring::key_of(sealed).ok()));
    }
    Ok(ids)
}

/// Lists the records that do not say they are under the current key, so that a start where nothing
/// is to be done reads none of them a second time.
async fn stale(store: &dyn Store, keyring: &Keyring) -> Result<Vec<RecordKey>, Error> {
    let mut keys = Vec::new();
    for kind in RecordKind::ALL {
        let rows = store.load_records(*kind).await?.records.into_iter();
        let stale = rows.filter(|(_, sealed)| keyring.is_current(sealed) != Ok(true));
        keys.extend(stale.map(|(key, _)| key));
    }
    Ok(keys)
}

fn context(key: &RecordKey) -> Context<'_> {
    Context::of_record(key.kind.as_str(), &key.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Memory;

    const KEYS: [(u32, [u8; 32]); 2] = [(1, [7; 32]), (2, [8; 32])];

    fn keyring(all: &[(u32, [u8; 32])]) -> Keyring {
        let given = all
            .iter()
            .map(|(id, key)| (KeyId::new(*id), *key))
            .collect();
        Keyring::from_keys(given, KeyId::new(all[0].0)).unwrap()
    }

    fn world() -> (Records, Arc<Memory>) {
        let store = Arc::new(Memory::new());
        let keyring = Arc::new(RwLock::new(keyring(&KEYS[..1])));
        (Records::new(Arc::clone(&store) as _, keyring), store)
    }

    fn key(name: &str) -> RecordKey {
        RecordKey::new(RecordKind::Tenant, name)
    }

    fn names(found: &Found) -> Vec<&str> {
        let opened = found.opened.iter();
        opened.map(|(key, _)| key.name.as_ref()).collect()
    }

    #[tokio::test]
    async fn a_record_comes_back_as_it_was_and_is_sealed_in_the_store() {
        let (records, store) = world();
        records.put(&key("acme"), b"canary").await.unwrap();
        let sealed = store.record(&key("acme")).await.unwrap().unwrap();
        assert!(!sealed.windows(6).any(|part| part == b"canary"));
        let opened = records.open(&key("acme")).await.unwrap().unwrap().unwrap();
        assert_eq!(*opened, b"canary");
        assert!(records.open(&key("other")).await.unwrap().is_none());
        assert!(records.delete(&key("acme")).await.unwrap());
        assert!(!records.delete(&key("acme")).await.unwrap());
        assert!(
            records
                .load(RecordKind::Tenant)
                .await
                .unwrap()
                .opened
                .is_empty()
        );
    }

    #[tokio::test]
    async fn many_are_put_at_once_each_under_its_own_name() {
        let (records, _) = world();
        let many: Vec<_> = ["a", "b", "c"]
            .map(|name| (key(name), name.as_bytes().to_vec()))
            .into();
        let answers = records.put_all(&many).await;
        assert!(answers.len() == 3 && answers.iter().all(Result::is_ok));
        let found = records.load(RecordKind::Tenant).await.unwrap();
        assert_eq!(names(&found), ["a", "b", "c"]);
        assert_eq!(*found.opened[2].1, b"c");
    }

    #[tokio::test]
    async fn what_was_put_by_hand_is_refused_and_named() {
        let (records, store) = world();
        records.put(&key("acme"), b"one").await.unwrap();
        let good = store.record(&key("acme")).await.unwrap().unwrap();
        let mut flipped = good.clone();
        flipped[20] ^= 1;
        let elsewhere = keyring(&[(1, [9; 32])]);
        let by_hand = [
            ("another's", good.clone()),
            ("edited", flipped),
            ("cut off", good[..good.len() - 1].to_vec()),
            ("empty", Vec::new()),
            ("in clear", br#"{"format":1}"#.to_vec()),
            (
                "under another key of that id",
                elsewhere.seal(&context(&key("under another key of that id")), b"one"),
            ),
            // Sealed by us, and as something else: a session and its name, or the proof of keys.
            (
                "a session",
                keyring(&KEYS[..1]).seal(
                    &Context {
                        tenant: "a session",
                        session: "sess_1",
                        name: "tenant",
                    },
                    b"one",
                ),
            ),
            (
                "keys",
                keyring(&KEYS[..1]).seal(&Context::of_record("keys", "keys"), b"one"),
            ),
        ];
        for (name, sealed) in by_hand.clone() {
            store.put_record(&key(name), sealed).await.unwrap();
        }
        let found = records.load(RecordKind::Tenant).await.unwrap();
        assert_eq!(names(&found), ["acme"]);
        for (name, _) in by_hand {
            let refused = records.open(&key(name)).await.unwrap().unwrap();
            assert!(matches!(refused, Err(Refused::Sealed(_))), "{name}");
            let named = format!("tenant/{name}");
            assert!(found.refused.iter().any(|(record, _)| *record == named));
        }
    }

    #[tokio::test]
    async fn a_rotation_seals_what_opens_and_names_what_the_rest_needs() {
        let (records, store) = world();
        for name in ["a", "b"] {
            records.put(&key(name), name.as_bytes()).await.unwrap();
        }
        let moved = store.record(&key("a")).await.unwrap().unwrap();
        store.put_record(&key("c"), moved.clone()).await.unwrap();
        *records.keyring.write().await = keyring(&[KEYS[1], KEYS[0]]);
        let expected = Resealed {
            sealed: 2,
            refused: 1,
            needed: BTreeSet::from([KeyId::new(1)]),
        };
        assert_eq!(records.seal_anew().await.unwrap(), expected);
        assert_eq!(store.record(&key("c")).await.unwrap(), Some(moved));
        *records.keyring.write().await = keyring(&KEYS[1..]);
        let found = records.load(RecordKind::Tenant).await.unwrap();
        assert_eq!(names(&found), ["a", "b"]);
    }
}
