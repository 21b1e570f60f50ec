//! The store of a fleet: rows on a Redis or Valkey server that several nodes share.
//!
//! A change is one script, which also announces it; every node asks for the changes since its last
//! question, so that an announcement that is lost costs a moment. What is durable is the matter of
//! the server's settings, which are looked at once and told. It must never pass a failure off as an
//! absent row. Called by `session` through the trait.

mod address;
mod clock;
mod link;
mod promise;
mod script;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use futures_util::StreamExt;
use redis::Value;
use rustls::RootCertStore;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use self::clock::ServerClock;
use self::link::{ANSWER_TIMEOUT, Kind, Link, jittered};
use self::script::{Answer, CHANGE, CHANGES, CHANGES_KEPT, TOUCH, together};
use crate::id::{SessionId, TenantId, fill_random};
use crate::store::{
    BoxFuture, Change, Error, Fleet, Mark, News, Over, RecordKey, RecordKind, RecordRows, Row,
    RowKey, Rows, Store,
};

pub use address::Address;

/// How many rows are asked for in one step of reading everything, and how long its answer may take: a
/// row can have more than a MiB.
const PAGE: usize = 32;
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long reading everything may take.
const LOAD_DEADLINE: Duration = Duration::from_mins(2);
/// How many uses are noted in one step.
const USES_TOGETHER: usize = 500;
/// The longest pause before the announcements are listened to again.
const LISTEN_AGAIN: Duration = Duration::from_secs(2);
/// What the names of sessions and of records begin with in the list of changes, and those of sessions
/// that were deleted.
const SESSION: &str = "session ";
const RECORD: &str = "record ";
const GONE: &str = "gone ";

/// Where a shared store is.
#[derive(Clone, Debug)]
pub struct SharedConfig {
    /// The server.
    pub address: Address,
    /// What the names of all keys begin with: stores of several fleets can lie on one server.
    pub prefix: String,
    /// What the server's certificate is verified against, for `rediss`.
    pub roots: Arc<RootCertStore>,
}

/// Keeps rows on a server that several nodes use.
#[derive(Debug)]
pub struct Shared {
    link: Arc<Link>,
    /// For reading everything: long answers keep nothing else waiting.
    bulk: Link,
    keys: Keys,
    clock: ServerClock,
    announced: Arc<Notify>,
    listener: AbortHandle,
}

/// The names of the keys: with the prefix in braces, so that they stay together where a proxy spreads
/// keys over several servers.
#[derive(Debug)]
struct Keys {
    sessions: Table,
    records: Table,
    epoch: String,
    changes: String,
    channel: String,
    probe: String,
}

/// The names of the three keys of one table, and what its rows are called in the list of changes while
/// they are there, and when they were deleted.
#[derive(Debug)]
struct Table {
    rows: String,
    versions: String,
    uses: String,
    called: [&'static str; 2],
}

impl Keys {
    fn new(prefix: &str) -> Self {
        let name = |name: &str| format!("{{{prefix}}}:{name}");
        let table = |rows: &str, called| Table {
            rows: name(rows),
            versions: name(&format!("{rows}:versions")),
            uses: name(&format!("{rows}:used")),
            called,
        };
        Self {
            sessions: table("sessions", [SESSION, GONE]),
            records: table("records", [RECORD, RECORD]),
            epoch: name("epoch"),
            changes: name("changes"),
            channel: name("changed"),
            probe: name("probe"),
        }
    }
}

/// What a change does.
#[derive(Debug)]
enum What {
    Delete,
    Any,
    /// Over this value.
    Exactly(Vec<u8>),
    Nothing,
    Older,
}

impl What {
    fn word(&self) -> &'static str {
        match self {
            Self::Delete => "delete",
            Self::Any => "any",
            Self::Exactly(_) => "exactly",
            Self::Nothing => "nothing",
            Self::Older => "older",
        }
    }
}

impl Shared {
    /// Connects to the server, and warns where it does not promise to keep what it acknowledges, and
    /// where others may read along.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn open(config: SharedConfig) -> Result<Self, Error> {
        let keys = Keys::new(&config.prefix);
        let (address, roots) = (config.address, &config.roots);
        let bulk = Link::new(address.clone(), roots, PAGE_TIMEOUT);
        let link = Arc::new(Link::new(address, roots, ANSWER_TIMEOUT));
        let announced = Arc::new(Notify::new());
        promise::tell(&link).await?;
        let listening = listen(
            Arc::clone(&link),
            keys.channel.clone(),
            Arc::clone(&announced),
        );
        let shared = Self {
            link,
            bulk,
            keys,
            clock: ServerClock::default(),
            announced,
            listener: tokio::spawn(listening).abort_handle(),
        };
        shared.answer(0).await?;
        Ok(shared)
    }

    async fn change(
        &self,
        table: &Table,
        what: What,
        field: &str,
        (value, version, used): (&[u8], u64, u64),
    ) -> Result<bool, Error> {
        let mut nonce = [0; 8];
        fill_random(&mut nonce);
        let mut call = CHANGE.prepare_invoke();
        let keys = &self.keys;
        for key in [
            &table.rows,
            &table.versions,
            &table.uses,
            &keys.epoch,
            &keys.changes,
            &keys.channel,
        ] {
            call.key(key);
        }
        call.arg(what.word())
            .arg(field)
            .arg(value)
            .arg(version)
            .arg(used);
        let [called, gone] = table.called;
        let is_deleted = matches!(what, What::Delete);
        let called = if is_deleted { gone } else { called };
        call.arg(format!("{called}{field}"));
        call.arg(HEXLOWER.encode(&nonce)).arg(CHANGES_KEPT);
        if let What::Exactly(before) = &what {
            call.arg(&before[..]);
        }
        let done: u64 = self.link.ask(Kind::Write, &call).await?;
        Ok(done == 1)
    }

    async fn put_row(
        &self,
        key: RowKey,
        row: Row,
        version: u64,
        over: Over,
    ) -> Result<bool, Error> {
        let what = match over {
            Over::Any => What::Any,
            Over::Exactly(before) => What::Exactly(encode(&key.tenant, &before.sealed)?),
            Over::Nothing => What::Nothing,
            Over::Older => What::Older,
        };
        let value = encode(&key.tenant, &row.sealed)?;
        let field = key.session.as_str();
        let content = (&value[..], version, row.last_used);
        self.change(&self.keys.sessions, what, field, content).await
    }

    /// Reads what the server says of its changes, and its clock.
    async fn answer(&self, since: u64) -> Result<Answer, Error> {
        let mut call = CHANGES.prepare_invoke();
        call.key(&self.keys.epoch).key(&self.keys.changes);
        call.arg(since).arg(together());
        let answer: Value = self.link.ask(Kind::Read, &call).await?;
        let answer = Answer::read(&answer).map_err(Error::unavailable)?;
        self.clock.set(answer.now);
        Ok(answer)
    }

    async fn row(&self, session: &SessionId) -> Result<Option<(RowKey, Row)>, Error> {
        let keys = &self.keys.sessions;
        let field = session.as_str();
        let mut both = redis::pipe();
        both.atomic();
        both.hget(&keys.rows, field).hget(&keys.uses, field);
        let (value, used): (Option<Vec<u8>>, Option<Vec<u8>>) =
            self.link.ask(Kind::Read, &both).await?;
        let Some(value) = value else {
            return Ok(None);
        };
        // What nobody can read was not written by us: it is there, and opens for nobody.
        let (tenant, sealed) = decode(&value).unwrap_or_default();
        let key = RowKey {
            tenant: TenantId::new(tenant),
            session: session.clone(),
        };
        let row = Row {
            sealed: sealed.to_vec(),
            last_used: number(used.as_deref()),
        };
        Ok(Some((key, row)))
    }

    /// Reads some fields of a table, beginning at a cursor. Returns the next one, 0 after the last.
    async fn page(&self, table: &Table, cursor: u64) -> Result<(u64, Vec<Field>), Error> {
        let mut scan = redis::cmd("HSCAN");
        scan.arg(&table.rows).arg(cursor).arg("COUNT").arg(PAGE);
        self.bulk.ask(Kind::Read, &scan).await
    }

    /// Reads the last uses of sessions, by their fields.
    async fn uses<'a>(
        &self,
        fields: impl ExactSizeIterator<Item = &'a [u8]>,
    ) -> Result<Vec<Option<u64>>, Error> {
        if fields.len() == 0 {
            return Ok(Vec::new());
        }
        let mut read = redis::cmd("HMGET");
        read.arg(&self.keys.sessions.uses);
        for field in fields {
            read.arg(field);
        }
        let uses: Vec<Option<Vec<u8>>> = self.link.ask(Kind::Read, &read).await?;
        let read = |used: &Option<Vec<u8>>| used.as_deref().map(|text| number(Some(text)));
        Ok(uses.iter().map(read).collect())
    }
}

/// A field of a table, and its value.
type Field = (Vec<u8>, Vec<u8>);

impl Drop for Shared {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

/// The rows found so far: a server that is being written to may show one twice.
#[derive(Default)]
struct Found {
    rows: BTreeMap<RowKey, Row>,
    strange: Vec<String>,
}

impl Found {
    fn add(&mut self, field: &[u8], value: &[u8], last_used: u64) {
        let text = std::str::from_utf8(field).ok();
        let session = text.and_then(SessionId::parse);
        let Some((session, (tenant, sealed))) = session.zip(decode(value)) else {
            self.strange.push(field.escape_ascii().to_string());
            return;
        };
        let key = RowKey {
            tenant: TenantId::new(tenant),
            session,
        };
        let sealed = sealed.to_vec();
        self.rows.insert(key, Row { sealed, last_used });
    }
}

impl Store for Shared {
    fn put(&self, key: &RowKey, row: Row) -> BoxFuture<'_, Result<(), Error>> {
        let key = key.clone();
        Box::pin(async move { self.put_row(key, row, 0, Over::Any).await.map(drop) })
    }

    fn write(
        &self,
        key: &RowKey,
        row: Row,
        version: u64,
        over: Over,
    ) -> BoxFuture<'_, Result<bool, Error>> {
        let key = key.clone();
        Box::pin(self.put_row(key, row, version, over))
    }

    fn get(&self, key: &RowKey) -> BoxFuture<'_, Result<Option<Row>, Error>> {
        let key = key.clone();
        Box::pin(async move {
            let found = self.row(&key.session).await?;
            Ok(found.filter(|(found, _)| *found == key).map(|(_, row)| row))
        })
    }

    fn delete(&self, key: &RowKey) -> BoxFuture<'_, Result<bool, Error>> {
        let field = key.session.clone();
        Box::pin(async move {
            let sessions = &self.keys.sessions;
            self.change(sessions, What::Delete, field.as_str(), (b"", 0, 0))
                .await
        })
    }

    fn touch(&self, used: Vec<(RowKey, u64)>) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            for part in used.chunks(USES_TOGETHER) {
                let mut call = TOUCH.prepare_invoke();
                call.key(&self.keys.sessions.rows)
                    .key(&self.keys.sessions.uses);
                for (key, used) in part {
                    call.arg(key.session.as_str()).arg(*used);
                }
                let _one: u64 = self.link.ask(Kind::Write, &call).await?;
            }
            Ok(())
        })
    }

    fn load(&self) -> BoxFuture<'_, Result<Rows, Error>> {
        Box::pin(self.in_time(async move {
            let mut found = Found::default();
            let mut cursor = 0;
            loop {
                let (next, fields) = self.page(&self.keys.sessions, cursor).await?;
                let uses = self
                    .uses(fields.iter().map(|(field, _)| field.as_slice()))
                    .await?;
                for ((field, value), used) in fields.iter().zip(uses) {
                    found.add(field, value, used.unwrap_or_default());
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
            found.strange.sort_unstable();
            found.strange.dedup();
            Ok(Rows {
                rows: found.rows.into_iter().collect(),
                strange: found.strange,
            })
        }))
    }

    fn put_record(&self, key: &RecordKey, sealed: Vec<u8>) -> BoxFuture<'_, Result<(), Error>> {
        let field = key.to_string();
        Box::pin(async move {
            let records = &self.keys.records;
            let put = self.change(records, What::Any, &field, (&sealed, 0, 0));
            put.await.map(drop)
        })
    }

    fn replace_record(
        &self,
        key: &RecordKey,
        sealed: Vec<u8>,
        before: Option<Vec<u8>>,
    ) -> BoxFuture<'_, Result<bool, Error>> {
        let field = key.to_string();
        let what = before.map_or(What::Nothing, What::Exactly);
        Box::pin(async move {
            let records = &self.keys.records;
            self.change(records, what, &field, (&sealed, 0, 0)).await
        })
    }

    fn record(&self, key: &RecordKey) -> BoxFuture<'_, Result<Option<Vec<u8>>, Error>> {
        let field = key.to_string();
        Box::pin(async move {
            let mut get = redis::cmd("HGET");
            get.arg(&self.keys.records.rows).arg(&field);
            self.link.ask(Kind::Read, &get).await
        })
    }

    fn delete_record(&self, key: &RecordKey) -> BoxFuture<'_, Result<bool, Error>> {
        let field = key.to_string();
        Box::pin(async move {
            let records = &self.keys.records;
            self.change(records, What::Delete, &field, (b"", 0, 0))
                .await
        })
    }

    fn load_records(&self, kind: RecordKind) -> BoxFuture<'_, Result<RecordRows, Error>> {
        Box::pin(self.in_time(async move {
            let (mut records, mut strange) = (BTreeMap::new(), Vec::new());
            let mut cursor = 0;
            loop {
                let (next, fields) = self.page(&self.keys.records, cursor).await?;
                for (field, sealed) in fields {
                    let text = std::str::from_utf8(&field).ok();
                    match text.and_then(RecordKey::parse) {
                        Some(key) if key.kind == kind => drop(records.insert(key, sealed)),
                        Some(_another_kind) => {}
                        None => strange.push(field.escape_ascii().to_string()),
                    }
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
            strange.sort_unstable();
            strange.dedup();
            Ok(RecordRows {
                records: records.into_iter().collect(),
                strange,
            })
        }))
    }

    fn health(&self) -> Result<(), Error> {
        self.link.health()
    }

    fn now(&self) -> SystemTime {
        self.clock.now()
    }

    fn fleet(&self) -> Option<&dyn Fleet> {
        Some(self)
    }
}

impl Fleet for Shared {
    fn changes(&self, since: Option<Mark>) -> BoxFuture<'_, Result<News, Error>> {
        Box::pin(async move {
            if self.link.is_unwritable() {
                self.probe().await?;
            }
            let answer = self
                .answer(since.as_ref().map_or(0, |mark| mark.epoch))
                .await?;
            let verdict = answer.since(since.as_ref());
            let named = |name: &String| {
                if let Some(record) = name.strip_prefix(RECORD) {
                    return RecordKey::parse(record).map(Change::Record);
                }
                if let Some(session) = name.strip_prefix(GONE) {
                    return SessionId::parse(session).map(Change::Gone);
                }
                let session = name.strip_prefix(SESSION)?;
                SessionId::parse(session).map(Change::Session)
            };
            let names = verdict.names.as_ref();
            let changes = names.map(|names| names.iter().map(named).collect::<Option<Vec<_>>>());
            Ok(News {
                // A name that is none of ours may stand for anything.
                changes: changes
                    .flatten()
                    .unwrap_or_else(|| vec![Change::Everything]),
                mark: verdict.mark,
                is_partial: verdict.is_partial,
            })
        })
    }

    fn announced(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.announced.notified())
    }

    fn find(&self, session: &SessionId) -> BoxFuture<'_, Result<Option<(RowKey, Row)>, Error>> {
        let session = session.clone();
        Box::pin(async move { self.row(&session).await })
    }

    fn last_used(&self, keys: Vec<RowKey>) -> BoxFuture<'_, Result<Vec<Option<u64>>, Error>> {
        Box::pin(async move {
            let mut all = Vec::with_capacity(keys.len());
            for part in keys.chunks(USES_TOGETHER) {
                let fields = part.iter().map(|key| key.session.as_str().as_bytes());
                all.extend(self.uses(fields).await?);
            }
            Ok(all)
        })
    }
}

impl Shared {
    /// Finds out whether changes are taken again.
    async fn probe(&self) -> Result<(), Error> {
        let mut set = redis::cmd("SET");
        set.arg(&self.keys.probe).arg(1);
        let written: Result<(), Error> = self.link.ask(Kind::Write, &set).await;
        if let Err(error) = &written {
            tracing::debug!(%error, "the store takes no changes yet");
        }
        Ok(())
    }

    /// Gives up on reading everything at its deadline: a server may never come to the last page. Its
    /// connection is not kept.
    async fn in_time<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let done = tokio::time::timeout(LOAD_DEADLINE, work).await;
        self.bulk.hang_up().await;
        done.unwrap_or_else(|_late| Err(Error::unavailable("reading everything takes too long")))
    }
}

/// Hears announcements for as long as the store lives.
async fn listen(link: Arc<Link>, channel: String, announced: Arc<Notify>) {
    loop {
        match link.listen(&channel).await {
            Ok(mut listener) => {
                let mut messages = listener.on_message();
                // What was announced before may have been missed.
                announced.notify_one();
                while messages.next().await.is_some() {
                    announced.notify_one();
                }
                tracing::debug!("announcements of changes are not heard any more");
            }
            Err(error) => tracing::debug!(%error, "announcements of changes cannot be heard"),
        }
        tokio::time::sleep(jittered(LISTEN_AGAIN)).await;
    }
}

/// Puts a tenant before the sealed record: with its length, so that the border cannot be moved.
fn encode(tenant: &TenantId, sealed: &[u8]) -> Result<Vec<u8>, Error> {
    let tenant = tenant.as_str().as_bytes();
    let length = u16::try_from(tenant.len()).map_err(Error::unavailable)?;
    Ok([&length.to_be_bytes()[..], tenant, sealed].concat())
}

fn decode(value: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = value.split_first_chunk::<2>()?;
    let (tenant, sealed) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
    Some((std::str::from_utf8(tenant).ok()?, sealed))
}

/// Reads a time. What is none counts as one that is long past.
fn number(text: Option<&[u8]>) -> u64 {
    let text = text.and_then(|text| std::str::from_utf8(text).ok());
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}
