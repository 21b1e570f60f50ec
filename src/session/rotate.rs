//! Sealing everything anew under the current key, while sessions are used or while nobody serves.
//!
//! Rows that are under the current key already are passed over, so that a rotation which was
//! interrupted goes on where it was. The proof of the keys comes last: until then a start without
//! the old key is refused. Called by `app` at the start, and for `seal rotate`.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::time::timeout;

use super::Error;
use super::handle::SessionHandle;
use super::live::Sessions;
use super::load::{proof_context, proof_key};
use super::record::{self, Written};
use crate::records::{self, Resealed};
use crate::seal::{self, Context, KeyId, Keyring};
use crate::store::{Over, Row, RowKey, Store};

/// How long a hand-over waits for what is under way.
const HOLD: Duration = Duration::from_secs(2);

/// How many rows are on their way to the store together.
const TOGETHER: usize = 64;

/// What a rotation did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rotated {
    /// The rows that were sealed anew, those of sessions and of other records.
    pub sealed: usize,
    /// The rows that do not open and stay as they are.
    pub refused: usize,
    /// The keys that rows still need which could not be sealed anew, besides the current one.
    pub needed: BTreeSet<KeyId>,
    /// Whether the current key became that of the store by this: another one was before.
    pub changed: bool,
}

impl Rotated {
    fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Sealed => self.sealed += 1,
            Outcome::Gone => {}
            Outcome::Refused(key) => {
                self.refused += 1;
                self.needed.extend(key);
            }
        }
    }
}

impl Rotated {
    fn add(&mut self, records: Resealed) {
        self.sealed += records.sealed;
        self.refused += records.refused;
        self.needed.extend(records.needed);
    }
}

impl Sessions {
    /// Takes another keyring, whose current key seals from now on, and seals everything anew.
    ///
    /// # Errors
    /// [`Error::Keys`] where the keyring lacks a key that rows need: the one before stays in use.
    /// [`Error::Store`]: what was done is done, and calling again goes on.
    pub async fn rotate(&self, keyring: Keyring) -> Result<Rotated, Error> {
        let _alone = self.rotating.lock().await;
        let rows = self.store.load().await.map_err(Error::Store)?.rows;
        let before: BTreeSet<KeyId> = self.keyring.read().await.ids().collect();
        for (_, row) in &rows {
            // A row under a key that nobody has was refused before, too.
            let key = Keyring::key_of(&row.sealed).ok();
            let key = key.filter(|key| before.contains(key));
            if let Some(missing) = key.filter(|key| !keyring.ids().any(|id| id == *key)) {
                return Err(Error::Keys(seal::Error::UnknownKey(missing)));
            }
        }
        drop(rows);
        let records = records::keys_in_use(self.store.as_ref()).await;
        let records = records.map_err(Error::Store)?;
        let mut known = records.intersection(&before);
        if let Some(missing) = known.find(|key| !keyring.ids().any(|id| id == **key)) {
            return Err(Error::Keys(seal::Error::UnknownKey(*missing)));
        }
        self.audit.rekey(&keyring);
        *self.keyring.write().await = keyring;
        self.seal_anew().await
    }

    /// Keeps a rotation from beginning for as long as the guard is held; nothing where one is under
    /// way. A deletion of a row that is not served holds this for a moment, too.
    pub async fn hold_rotations(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        timeout(HOLD, self.rotating.lock()).await.ok()
    }

    /// Returns the ids of the sealing keys, the current one first.
    pub async fn key_ids(&self) -> Vec<KeyId> {
        self.keyring.read().await.ids().collect()
    }

    /// Goes on with a rotation that was interrupted, and does nothing where there is none.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn resume_rotation(&self) -> Result<Rotated, Error> {
        let _alone = self.rotating.lock().await;
        self.seal_anew().await
    }

    async fn seal_anew(&self) -> Result<Rotated, Error> {
        let rows = self.store.load().await.map_err(Error::Store)?.rows;
        let old: Vec<(RowKey, Row)> = {
            let keyring = self.keyring.read().await;
            let is_old = |row: &Row| keyring.is_current(&row.sealed) != Ok(true);
            rows.into_iter().filter(|(_, row)| is_old(row)).collect()
        };
        let is_proof_old = old.iter().any(|(key, _)| *key == proof_key());
        let old = old.into_iter().filter(|(key, _)| *key != proof_key());
        let mut done = Rotated::default();
        {
            let work = stream::iter(old).map(|(key, row)| self.seal_row(key, row));
            let mut work = work.buffer_unordered(TOGETHER);
            while let Some(outcome) = work.next().await {
                done.count(outcome?);
            }
        }
        done.add(self.records.seal_anew().await.map_err(Error::Store)?);
        if is_proof_old {
            self.prove().await?;
            done.changed = true;
        }
        Ok(done)
    }

    async fn seal_row(&self, key: RowKey, row: Row) -> Result<Outcome, Error> {
        // Where others write, too, the very row that was read is sealed anew: what it holds is theirs.
        if self.store.fleet().is_none() {
            if let Some(handle) = self.in_table(&key.session) {
                return self.seal_live(&handle).await;
            }
            if !self.refused().contains(&key) {
                // It was deleted meanwhile, and must not come back. Or the store has what it had not
                // said that it took: nobody knows of that row, and nobody else changes it.
                let is_there = self.store.get(&key).await.map_err(Error::Store)?.is_some();
                if !is_there {
                    return Ok(Outcome::Gone);
                }
            }
        }
        let keyring = self.keyring.read().await;
        seal_stored(self.store.as_ref(), &keyring, key, row).await
    }

    async fn seal_live(&self, handle: &SessionHandle) -> Result<Outcome, Error> {
        let _alone = handle.changing.lock().await;
        if handle.is_cut() || self.in_table(&handle.id).is_none() {
            return Ok(Outcome::Gone);
        }
        let standing = handle.standing();
        let written = Written {
            form: &standing.form,
            view: &standing.view,
            credential: &handle.credential,
            created: handle.created,
            now: self.store.now(),
        };
        let last_used = handle.last_used(self.store.now());
        let owner = (&handle.tenant, &handle.id);
        let keyring = self.keyring.read().await;
        let put = self.put_sealed(&keyring, owner, &written, (last_used, Over::Any));
        // It says what it said: nobody has to be told.
        drop(put.await?);
        Ok(Outcome::Sealed)
    }
}

#[derive(Clone, Copy)]
enum Outcome {
    Sealed,
    Gone,
    Refused(Option<KeyId>),
}

/// Seals the rows of a store that nobody serves anew, under the keyring's current key.
///
/// # Errors
/// [`Error::Store`]; [`Error::Keys`] where the proof of the keys does not open: nothing was done.
pub async fn rotate_offline(store: &dyn Store, keyring: &Keyring) -> Result<Rotated, Error> {
    let rows = store.load().await.map_err(Error::Store)?.rows;
    let is_old = |row: &Row| keyring.is_current(&row.sealed) != Ok(true);
    let old = rows.into_iter().filter(|(_, row)| is_old(row));
    let (proof, old): (Vec<_>, Vec<_>) = old.partition(|(key, _)| *key == proof_key());
    for (key, row) in &proof {
        keyring
            .open(&context(key), &row.sealed)
            .map_err(Error::Keys)?;
    }
    let mut done = Rotated::default();
    {
        // Together, so that the store commits them in groups.
        let work = stream::iter(old).map(|(key, row)| seal_stored(store, keyring, key, row));
        let mut work = work.buffer_unordered(TOGETHER);
        while let Some(outcome) = work.next().await {
            done.count(outcome?);
        }
    }
    let records = records::seal_anew_offline(store, keyring).await;
    done.add(records.map_err(Error::Store)?);
    for (key, row) in proof {
        seal_stored(store, keyring, key, row).await?;
        done.changed = true;
    }
    Ok(done)
}

/// Opens a row as it is stored, and seals it anew.
async fn seal_stored(
    store: &dyn Store,
    keyring: &Keyring,
    key: RowKey,
    row: Row,
) -> Result<Outcome, Error> {
    let Ok(plain) = keyring.open(&context(&key), &row.sealed) else {
        return Ok(Outcome::Refused(Keyring::key_of(&row.sealed).ok()));
    };
    let anew = Row {
        sealed: keyring.seal(&context(&key), &plain),
        last_used: row.last_used,
    };
    let written = store.write(&key, anew, 0, Over::Exactly(row)).await;
    // Another node has written or deleted it: under the new key if it has it, else it seals it anew.
    let outcome = |is_written| {
        if is_written {
            Outcome::Sealed
        } else {
            Outcome::Gone
        }
    };
    written.map(outcome).map_err(Error::Store)
}

fn context(key: &RowKey) -> Context<'_> {
    if *key == proof_key() {
        return proof_context();
    }
    record::context((&key.tenant, &key.session))
}
