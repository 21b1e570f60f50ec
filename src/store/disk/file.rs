//! The file: how it is made, opened, read and changed. Everything here blocks.
//!
//! Two tables hold the rows: the sealed sessions, and beside them when each was last used, so that
//! noting a use writes a few bytes. A third holds the records of other kinds. Pages of a damaged
//! file can make the library panic: every call is caught. It must never begin anew where a file is
//! there. Called by the thread that owns the file.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fs::{File as StdFile, OpenOptions, hard_link, remove_file};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use redb::backends::FileBackend;
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, ReadableTableMetadata,
    StorageBackend, StorageError, TableDefinition, TableError, TransactionError, WriteTransaction,
};

use super::writer::Change;
use crate::id::{SessionId, TenantId, fill_random};
use crate::store::{Error, RecordKey, RecordKind, RecordRows, Row, RowKey, Rows};

/// The sealed sessions. Keys are bytes: a text that was damaged must not be taken for one.
const SESSIONS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("sessions");
/// When sessions were last used.
const USED: TableDefinition<'_, &[u8], u64> = TableDefinition::new("used");
/// The sealed records of other kinds.
const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");
/// What is kept of the file itself.
const META: TableDefinition<'_, &[u8], u64> = TableDefinition::new("meta");
/// The form of the tables, in `META`.
const FORMAT_KEY: &[u8] = b"format";
const FORMAT: u64 = 2;
/// What a probe writes.
const PROBE_KEY: &[u8] = b"probe";
/// What the library may keep of the file in memory: rows are read once.
const CACHE_BYTES: usize = 16 << 20;
/// The permission bits of everybody but the owner.
const MODE_OF_OTHERS: u32 = 0o077;
/// Stands between a tenant and a session, whose id has a fixed length.
const BETWEEN: u8 = b'/';

/// Why the library did not do what it was asked.
pub(super) type Cause = Box<dyn StdError + Send + Sync>;
/// Opens the file that is there.
pub(super) type Opener = Box<dyn Fn(&Path) -> Result<File, Error> + Send>;

/// The open file; there is a database in it until it is dropped.
pub(super) struct File(Option<Database>);

/// Makes the file where there is none: whole or not at all, and readable by its owner alone.
pub(super) fn make(path: &Path) -> Result<(), Error> {
    if path.symlink_metadata().is_ok() {
        return Ok(());
    }
    let failed = |source| Error::File {
        path: path.to_owned(),
        source,
    };
    let mut bytes = [0; 8];
    fill_random(&mut bytes);
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}.new", HEXLOWER.encode(&bytes)));
    let fresh = PathBuf::from(fresh);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    let made = options.open(&fresh).map_err(failed).and_then(|file| {
        begin(file).map_err(|source| Error::File {
            path: path.to_owned(),
            source: io::Error::other(source),
        })
    });
    // Not renamed: another process may have been faster, and its file is the one that counts.
    let linked = made.and_then(|()| match hard_link(&fresh, path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(error)),
        _ => Ok(()),
    });
    if let Err(error) = remove_file(&fresh) {
        tracing::debug!(%error, "the store's first file has nothing to remove");
    }
    linked?;
    let folder = path.parent().filter(|it| !it.as_os_str().is_empty());
    let folder = StdFile::open(folder.unwrap_or(Path::new(".")));
    folder
        .and_then(|folder| folder.sync_all())
        .map_err(failed)?;
    tracing::info!(path = %path.display(), "a new store was made");
    Ok(())
}

/// Writes the empty tables.
fn begin(file: StdFile) -> Result<(), Cause> {
    caught(|| {
        let database = Builder::new().create_with_backend(FileBackend::new(file)?)?;
        let change = durable(&database)?;
        change.open_table(SESSIONS)?;
        change.open_table(USED)?;
        change.open_table(RECORDS)?;
        change.open_table(META)?.insert(FORMAT_KEY, FORMAT)?;
        change.commit()?;
        Ok(database.close()?)
    })
}

/// Opens the file that is there.
pub(super) fn open(path: &Path) -> Result<File, Error> {
    let backend = |file| FileBackend::new(file).map_err(Into::into);
    open_with(path, backend)
}

/// Opens the file that is there through what stands between the library and it.
pub(super) fn open_with<B: StorageBackend>(
    path: &Path,
    backend: impl FnOnce(StdFile) -> Result<B, Cause>,
) -> Result<File, Error> {
    let failed = |source| Error::File {
        path: path.to_owned(),
        source,
    };
    let corrupt = |source: Cause| Error::Corrupt {
        path: path.to_owned(),
        source,
    };
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).open(path).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    if about.permissions().mode() & MODE_OF_OTHERS != 0 {
        let text = "others than its owner may use it: chmod 600";
        return Err(failed(io::Error::new(
            io::ErrorKind::PermissionDenied,
            text,
        )));
    }
    if about.len() == 0 {
        return Err(corrupt("it is empty".into()));
    }
    let opened = caught(|| {
        let backend = backend(file)?;
        let mut builder = Builder::new();
        let opened = builder
            .set_cache_size(CACHE_BYTES)
            .create_with_backend(backend);
        Ok(opened)
    });
    let database = opened
        .map_err(corrupt)?
        .map_err(|error| refusal(path, error))?;
    let opened = File(Some(database));
    let format = caught(|| {
        let meta = opened.database()?.begin_read()?.open_table(META)?;
        Ok(meta.get(FORMAT_KEY)?.map(|format| format.value()))
    });
    match format.map_err(corrupt)? {
        Some(FORMAT) => Ok(opened),
        _ => Err(corrupt("its format is not known".into())),
    }
}

/// Tells a file that is in use or cannot be read from one that is damaged.
fn refusal(path: &Path, error: DatabaseError) -> Error {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => Error::InUse(path),
        DatabaseError::Storage(StorageError::Io(source)) if !is_damage(&source) => {
            Error::File { path, source }
        }
        error => Error::Corrupt {
            path,
            source: error.into(),
        },
    }
}

/// Tells an error of reading that comes from what is read, not from what it is read by.
fn is_damage(error: &io::Error) -> bool {
    [io::ErrorKind::InvalidData, io::ErrorKind::UnexpectedEof].contains(&error.kind())
}

/// Tells whether the disk did not answer, so that nothing is known of what lies there.
fn is_of_disk(cause: &Cause) -> bool {
    let storage = cause.downcast_ref::<StorageError>();
    let storage = storage.or_else(|| match cause.downcast_ref()? {
        TransactionError::Storage(error) => Some(error),
        _ => None,
    });
    let storage = storage.or_else(|| match cause.downcast_ref()? {
        TableError::Storage(error) => Some(error),
        _ => None,
    });
    match storage {
        Some(StorageError::Io(error)) => !is_damage(error),
        Some(StorageError::PreviousIo | StorageError::DatabaseClosed) => true,
        _ => false,
    }
}

/// Says why a file that is open could not be read.
pub(super) fn unread(path: &Path, source: Cause) -> Error {
    if is_of_disk(&source) {
        return Error::Unavailable(source);
    }
    Error::Corrupt {
        path: path.to_owned(),
        source,
    }
}

impl Drop for File {
    /// Closes the file: the library writes then, and a damaged page can make it panic.
    fn drop(&mut self) {
        let database = self.0.take();
        let dropped = caught(|| {
            drop(database);
            Ok(())
        });
        if let Err(error) = dropped {
            tracing::warn!(%error, "the store's file was not closed in order");
        }
    }
}

impl File {
    fn database(&self) -> Result<&Database, Cause> {
        self.0.as_ref().ok_or_else(|| "it is closed".into())
    }

    /// Does all of the changes or none, durably. Returns for each whether there was a row.
    pub(super) fn apply<'a>(
        &self,
        changes: impl Iterator<Item = &'a Change>,
    ) -> Result<Vec<bool>, Cause> {
        caught(|| {
            let change = durable(self.database()?)?;
            let mut found = Vec::new();
            {
                let mut sessions = change.open_table(SESSIONS)?;
                let mut used = change.open_table(USED)?;
                let mut records = change.open_table(RECORDS)?;
                for change in changes {
                    found.push(match change {
                        Change::Put(key, row) => {
                            let key = encode(key);
                            used.insert(key.as_slice(), row.last_used)?;
                            let before = sessions.insert(key.as_slice(), row.sealed.as_slice())?;
                            before.is_some()
                        }
                        Change::Delete(key) => {
                            let key = encode(key);
                            used.remove(key.as_slice())?;
                            sessions.remove(key.as_slice())?.is_some()
                        }
                        Change::Touch(all) => {
                            for (key, last_used) in all {
                                let key = encode(key);
                                if sessions.get(key.as_slice())?.is_some() {
                                    used.insert(key.as_slice(), last_used)?;
                                }
                            }
                            true
                        }
                        Change::PutRecord(key, sealed) => {
                            let key = key.to_string();
                            let before = records.insert(key.as_bytes(), sealed.as_slice())?;
                            before.is_some()
                        }
                        Change::DeleteRecord(key) => {
                            records.remove(key.to_string().as_bytes())?.is_some()
                        }
                    });
                }
            }
            change.commit()?;
            Ok(found)
        })
    }

    /// Writes something that nobody reads, to see whether changes can be made.
    pub(super) fn probe(&self) -> Result<(), Cause> {
        caught(|| {
            let change = durable(self.database()?)?;
            {
                let mut meta = change.open_table(META)?;
                let before = meta.get(PROBE_KEY)?.map_or(0, |value| value.value());
                meta.insert(PROBE_KEY, before.wrapping_add(1))?;
            }
            Ok(change.commit()?)
        })
    }

    /// Reads one row.
    pub(super) fn get(&self, key: &RowKey) -> Result<Option<Row>, Cause> {
        caught(|| {
            let (key, read) = (encode(key), self.database()?.begin_read()?);
            let Some(sealed) = read.open_table(SESSIONS)?.get(key.as_slice())? else {
                return Ok(None);
            };
            let last_used = read.open_table(USED)?.get(key.as_slice())?;
            Ok(Some(Row {
                sealed: sealed.value().to_vec(),
                last_used: last_used.map_or(0, |used| used.value()),
            }))
        })
    }

    /// Reads all rows.
    pub(super) fn load(&self) -> Result<Rows, Cause> {
        caught(|| {
            let read = self.database()?.begin_read()?;
            let (sessions, used) = (read.open_table(SESSIONS)?, read.open_table(USED)?);
            // Not looked up one by one: a key that was damaged would hide others from a search.
            let mut last_uses = HashMap::new();
            for entry in used.iter()? {
                let (bytes, last_used) = entry?;
                last_uses.insert(bytes.value().to_vec(), last_used.value());
            }
            let mut all = Rows::default();
            let mut count = 0;
            for entry in sessions.iter()? {
                let (bytes, sealed) = entry?;
                count += 1;
                let Some(key) = decode(bytes.value()) else {
                    all.strange.push(bytes.value().escape_ascii().to_string());
                    continue;
                };
                let last_used = last_uses.get(bytes.value());
                let row = Row {
                    sealed: sealed.value().to_vec(),
                    last_used: last_used.copied().unwrap_or_default(),
                };
                all.rows.push((key, row));
            }
            // A page that was damaged can hide rows without an error.
            if count == sessions.len()? {
                Ok(all)
            } else {
                Err("it has another number of rows than it says".into())
            }
        })
    }

    /// Reads one record.
    pub(super) fn record(&self, key: &RecordKey) -> Result<Option<Vec<u8>>, Cause> {
        caught(|| {
            let records = self.database()?.begin_read()?.open_table(RECORDS)?;
            let sealed = records.get(key.to_string().as_bytes())?;
            Ok(sealed.map(|sealed| sealed.value().to_vec()))
        })
    }

    /// Reads the records of a kind.
    pub(super) fn load_records(&self, kind: RecordKind) -> Result<RecordRows, Cause> {
        caught(|| {
            let records = self.database()?.begin_read()?.open_table(RECORDS)?;
            let mut all = RecordRows::default();
            let mut count = 0;
            for entry in records.iter()? {
                let (bytes, sealed) = entry?;
                count += 1;
                let text = std::str::from_utf8(bytes.value()).ok();
                match text.and_then(RecordKey::parse) {
                    Some(key) if key.kind == kind => {
                        all.records.push((key, sealed.value().to_vec()));
                    }
                    Some(_another_kind) => {}
                    None => all.strange.push(bytes.value().escape_ascii().to_string()),
                }
            }
            if count == records.len()? {
                Ok(all)
            } else {
                Err("it has another number of records than it says".into())
            }
        })
    }
}

/// Begins a change that is on the disk when it is committed, after which the next process need not
/// walk through the whole file.
fn durable(database: &Database) -> Result<WriteTransaction, Cause> {
    let mut change = database.begin_write()?;
    change.set_quick_repair(true);
    Ok(change)
}

/// Runs the library; a panic within it is an error.
fn caught<T>(run: impl FnOnce() -> Result<T, Cause>) -> Result<T, Cause> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_panic| Err("the library gave up".into()))
}

fn encode(key: &RowKey) -> Vec<u8> {
    let (tenant, session) = (key.tenant.as_str(), key.session.as_str());
    [tenant.as_bytes(), &[BETWEEN], session.as_bytes()].concat()
}

fn decode(bytes: &[u8]) -> Option<RowKey> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (tenant, session) = text.rsplit_once(char::from(BETWEEN))?;
    Some(RowKey {
        tenant: TenantId::new(tenant),
        session: SessionId::parse(session)?,
    })
}
