//! What a process does with the rows that are there when it starts.
//!
//! Every record is opened once; its values live in memory from then on. A row that is refused is
//! named in the log, left where it is and not served, and the others are. Keys that open nothing
//! are an error, never an empty table. Called by `app` before anything is served.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use super::Error;
use super::handle::Standing;
use super::life::Life;
use super::live::{Begun, Sessions, row_key, view_with};
use super::record::{self, Opened, Refused};
use super::spec::Spec;
use crate::id::{SessionId, TenantId};
use crate::seal::{self, Context, Keyring};
use crate::store::{Row, RowKey, Rows, Store};

/// The version of a session that was just created.
const FIRST_VERSION: u64 = 1;
/// How many refused rows are named in the log one by one.
const NAMED: usize = 1000;

/// What was found in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// The sessions that live.
    pub live: usize,
    /// Those that expired while nobody looked; their rows are deleted.
    pub expired: usize,
    /// The rows that were refused; they are named in the log and stay in the store.
    pub refused: usize,
}

impl Sessions {
    /// Takes over the sessions of the store, and proves the keys. A store without any row gets a
    /// proof of the keys that every later start is held against.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Keys`] where the keys are not those that sealed the store.
    pub async fn load(self: &Arc<Self>) -> Result<Loaded, Error> {
        let loaded = self.look_through().await?;
        // What expired while nobody looked, and what was cut with its tenant.
        self.cut_expired();
        self.settle().await;
        Ok(loaded)
    }

    /// The same, and deletes nothing yet: for a store that may go back to another process, which
    /// knows of later uses.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn look_through(self: &Arc<Self>) -> Result<Loaded, Error> {
        let asked = self.clock.now();
        let mark = match self.store.fleet() {
            // Before the rows: what changes while they are read is read again.
            Some(fleet) => Some(fleet.changes(None).await.map_err(Error::Store)?.mark),
            None => None,
        };
        let rows = self.store.load().await.map_err(Error::Store)?;
        if mark.is_some() {
            // After the rows: another node may have made or closed a tenant since they were read.
            self.tenants.reload_all().await.map_err(Error::Tenant)?;
        }
        let here = Arc::clone(self);
        let taken = tokio::task::spawn_blocking(move || here.take(&rows));
        let taken = taken
            .await
            .map_err(|panic| Error::Store(crate::store::Error::unavailable(panic)))??;
        if taken.is_proof_missing {
            self.prove().await?;
        }
        if let Some(mark) = mark {
            self.nodes.set_known(mark, asked);
        }
        Ok(taken.loaded)
    }

    /// Writes the proof of the current key.
    pub(super) async fn prove(&self) -> Result<(), Error> {
        let keyring = self.keyring.read().await;
        let row = Row {
            sealed: keyring.seal(&proof_context(), &[]),
            last_used: 0,
        };
        self.store
            .put(&proof_key(), row)
            .await
            .map_err(Error::Store)
    }

    /// Opens every row; what lives enters the table.
    fn take(&self, rows: &Rows) -> Result<Taken, Error> {
        let keyring = self.keyring.blocking_read();
        let mut loaded = Loaded::default();
        for key in &rows.strange {
            refuse(&mut loaded, key, &"its key is none of ours");
        }
        let (mut proof, mut opened) = (None, 0);
        let mut failures = Vec::new();
        for (key, row) in &rows.rows {
            if *key == proof_key() {
                proof = Some(keyring.open(&proof_context(), &row.sealed).map(drop));
                if let Some(Err(error)) = proof {
                    failures.push((row, error));
                }
                continue;
            }
            let owner = (&key.tenant, &key.session);
            let record = record::decode(&keyring, owner, &row.sealed, self.store.now());
            if let Err(Refused::Sealed(error)) = record {
                failures.push((row, error));
            } else {
                opened += 1;
            }
            match record.and_then(|record| self.revive(key, row, record)) {
                Ok(true) => loaded.live += 1,
                Ok(false) => loaded.expired += 1,
                Err(error) => {
                    refuse(
                        &mut loaded,
                        &format!("{}/{}", key.tenant, key.session),
                        &error,
                    );
                    self.refused().insert(key.clone());
                }
            }
        }
        let is_proof_missing = !matches!(proof, Some(Ok(())));
        if let Some(error) = foreign(proof, opened, &failures) {
            self.table.clear();
            return Err(Error::Keys(error));
        }
        Ok(Taken {
            loaded,
            is_proof_missing,
        })
    }

    /// Makes a session live again. Tells whether it lives; one that does not enters
    /// the table all the same, so that it ends as any other.
    pub(super) fn revive(&self, key: &RowKey, row: &Row, record: Opened) -> Result<bool, Refused> {
        let tenant = self.tenants.find(&key.tenant);
        let tenant = tenant.filter(|tenant| tenant.created() <= record.created);
        let place = tenant.ok_or(Refused::NoTenant)?.place_for_known();
        let (credential, created) = (record.credential, record.created);
        let standing = self.standing_of(record)?;
        // A clock that was set back makes nobody younger than just born, nor used after now.
        let age = self.store.now().duration_since(created);
        let lifetimes = (standing.spec.ttl, standing.spec.max_lifetime);
        let idle = self.idle_since(row.last_used);
        let life = Life::resumed(
            self.clock.clone(),
            lifetimes,
            (age.unwrap_or_default(), idle),
        );
        let handle = Arc::new(self.handle(Begun {
            id: key.session.clone(),
            tenant: key.tenant.clone(),
            place,
            credential,
            created,
            life,
            standing,
        }));
        let lives = !handle.is_over();
        // Whoever was faster holds what is open.
        self.table.entry(key.session.clone()).or_insert(handle);
        if self.nodes.is_gone(&key.session) {
            // Its deletion was heard of since the row was read.
            self.lose(&key.session);
            return Ok(false);
        }
        Ok(lives)
    }

    /// Returns for how long a session has been idle that was last used at a time of the store's.
    pub(super) fn idle_since(&self, last_used: u64) -> Duration {
        Duration::from_millis(record::millis(self.store.now()).saturating_sub(last_used))
    }

    /// Makes of a record what it stands for.
    pub(super) fn standing_of(&self, record: Opened) -> Result<Standing, Refused> {
        let spec = Spec::parse(&record.form, &self.options).map_err(|_fields| Refused::Invalid)?;
        let tokens = record
            .tokens
            .iter()
            .map(|(name, token)| (name.as_str(), token));
        let tokens = tokens.collect();
        let (stamp, held) = (record.stamp(), (&record.captured[..], record.retired));
        let (view, fresh) = view_with(&spec, stamp, &tokens, held);
        if !fresh.is_empty() {
            return Err(Refused::Unreadable);
        }
        Ok(Standing {
            form: record.form,
            spec,
            view: Arc::new(view),
        })
    }

    /// Takes over a row that another process has made durable: a new session, or a newer version
    /// of one. An older one, and one of a session that was cut here, changes nothing.
    pub(super) fn adopt(&self, keyring: &Keyring, key: &RowKey, row: &Row) -> Result<(), Refused> {
        let owner = (&key.tenant, &key.session);
        let record = record::decode(keyring, owner, &row.sealed, self.store.now())?;
        match self.in_table(&key.session) {
            // A version that is not the first has ended here: its end was told before it.
            None if record.version != FIRST_VERSION => Ok(()),
            None => self.revive(key, row, record).map(drop),
            Some(own) if own.tenant != key.tenant || own.is_cut() => Ok(()),
            Some(own) if record.version <= own.version() => Ok(()),
            Some(own) => {
                own.replace(self.standing_of(record)?);
                Ok(())
            }
        }
    }

    /// Makes durable and live what another process sealed: a session that it created, or the next
    /// version of one. Every other process is told, each before it is told of an end; so is the one
    /// that asks, which may have given up waiting.
    pub(super) async fn write_for(&self, key: &RowKey, row: Row, from: u64) -> Result<(), String> {
        let own = self.in_table(&key.session);
        let _alone = match &own {
            Some(own) => Some(own.changing.lock().await),
            None => None,
        };
        // After the session's own turn, as everywhere, and until the table knows what is written: a
        // rotation in between would not see the row.
        let keyring = self.keyring.read().await;
        let owner = (&key.tenant, &key.session);
        let record = record::decode(&keyring, owner, &row.sealed, self.store.now());
        let record = record.map_err(|why| why.to_string())?;
        // Under the current key: the other process may not know it yet.
        let plain = keyring.open(&record::context(owner), &row.sealed);
        let plain = plain.map_err(|why| why.to_string())?;
        let anew = Row {
            sealed: keyring.seal(&record::context(owner), &plain),
            last_used: row.last_used,
        };
        let put = async || {
            let put = self.store.put(key, anew.clone()).await;
            put.map_err(|error| error.to_string())?;
            self.peers.tell_row(key, &anew, Some(from));
            Ok::<(), String>(())
        };
        let ended = || "the session has ended".to_owned();
        let Some(own) = &own else {
            if record.version != FIRST_VERSION {
                return Err(ended());
            }
            put().await?;
            // It can have no place here by now: its tenant ended.
            let lives = self.revive(key, &anew, record).map_err(|why| {
                self.refused().insert(key.clone());
                self.peers.tell_gone(std::slice::from_ref(key), None);
                why.to_string()
            })?;
            return lives.then_some(()).ok_or_else(ended);
        };
        if own.tenant != key.tenant || own.is_cut() {
            return Err(ended());
        }
        if record.version != own.version() + 1 {
            return Err("the session was changed meanwhile".to_owned());
        }
        let standing = self.standing_of(record).map_err(|why| why.to_string())?;
        put().await?;
        // As it was sealed there: the current key may not be known to it.
        self.peers.tell_row_to(from, key, &row);
        if own.is_cut() {
            // Whoever cut it waits for us, and then deletes the row.
            return Err(ended());
        }
        own.replace(standing);
        Ok(())
    }
}

/// Proves that the current key of a keyring is that of a store that nobody serves: what is sealed
/// under it opens at the next start. Nothing is written.
///
/// # Errors
/// [`Error::Store`]; [`Error::Keys`] for other keys; [`Error::Unproven`]; [`Error::Unrotated`].
pub async fn prove_offline(store: &dyn Store, keyring: &Keyring) -> Result<(), Error> {
    let proof = store.get(&proof_key()).await.map_err(Error::Store)?;
    let proof = proof.ok_or(Error::Unproven)?.sealed;
    keyring
        .open(&proof_context(), &proof)
        .map_err(Error::Keys)?;
    let is_current = keyring.is_current(&proof).map_err(Error::Keys)?;
    is_current.then_some(()).ok_or(Error::Unrotated)
}

struct Taken {
    loaded: Loaded,
    is_proof_missing: bool,
}

/// Counts a row that is refused, and names it in the log.
fn refuse(loaded: &mut Loaded, row: &str, why: &dyn Display) {
    loaded.refused += 1;
    if loaded.refused <= NAMED {
        tracing::error!(row, %why, "a session in the store is refused and not served");
    }
}

/// Tells whether the keys are others than those that sealed the store: where nothing opens at all,
/// or where the key that the proof names is missing and other rows need it too.
fn foreign(
    proof: Option<Result<(), seal::Error>>,
    opened: usize,
    failures: &[(&Row, seal::Error)],
) -> Option<seal::Error> {
    let first = || failures.first().map(|(_, error)| *error);
    match proof {
        None | Some(Err(_)) if opened == 0 => first(),
        Some(Err(seal::Error::UnknownKey(missing))) => {
            let needs = |row: &Row| Keyring::key_of(&row.sealed) == Ok(missing);
            let rows = failures.iter().filter(|(row, _)| needs(row)).count();
            // The proof itself is one of them.
            (rows > 1).then_some(seal::Error::UnknownKey(missing))
        }
        None | Some(_) => None,
    }
}

/// The row that proves the keys: of no tenant, and of the session of zeros.
#[expect(
    clippy::expect_used,
    reason = "32 zeros are lower-case hex digits, which is what an id is made of"
)]
pub(super) fn proof_key() -> RowKey {
    let zeros = format!("{}{}", SessionId::PREFIX, "0".repeat(32));
    let session = SessionId::parse(&zeros).expect("an id");
    row_key(&TenantId::new(""), &session)
}

pub(super) fn proof_context() -> Context<'static> {
    Context {
        tenant: "",
        session: "",
        name: "keys",
    }
}
