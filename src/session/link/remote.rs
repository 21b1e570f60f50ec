//! The store of a process that has handed its own over: changes are made by the one that has it.
//!
//! A question that is not answered in time, and one on a link that broke, is one that failed. Called
//! through [`Store`], and by the link, which brings the answers.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::End;
use super::message::{Key, Message, Outcome, RowLine, bytes, text};
use crate::store::{BoxFuture, Error, RecordKey, RecordKind, RecordRows, Row, RowKey, Rows, Store};

/// How long a change may take at the other end, which has a deadline of its own for its store.
const DEADLINE: Duration = Duration::from_secs(10);

/// The store of another process.
pub(super) struct Remote {
    asked: Arc<Asked>,
    /// The records as they were read: one is written only in place of what was read.
    read: Mutex<HashMap<RecordKey, Vec<u8>>>,
}

type Answer = Result<Outcome, String>;

/// What was asked, and waits for an answer.
pub(super) struct Asked {
    end: End,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
}

impl Asked {
    pub(super) fn new(end: End) -> Self {
        Self {
            end,
            next: AtomicU64::new(0),
            waiting: Mutex::default(),
        }
    }

    /// Asks for something, and waits for as long as the link holds.
    pub(super) async fn ask(&self, message: impl FnOnce(u64) -> Message) -> Answer {
        let (sender, receiver) = oneshot::channel();
        let ask = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(ask, sender);
        let _unasked = Unasked(self, ask);
        self.end.tell(message(ask));
        tokio::select! {
            () = self.end.broken.cancelled() => Err("the other process has gone".to_owned()),
            answer = receiver => {
                answer.unwrap_or_else(|_gone| Err("the other process did not answer".to_owned()))
            }
        }
    }

    /// Takes an answer to whoever waits for it yet.
    pub(super) fn answer(&self, ask: u64, outcome: Answer) {
        let waiting = self.lock().remove(&ask);
        drop(waiting.map(|waiting| waiting.send(outcome)));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Answer>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets a question whose asker waits no more.
struct Unasked<'a>(&'a Asked, u64);

impl Drop for Unasked<'_> {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").finish_non_exhaustive()
    }
}

impl Remote {
    pub(super) fn new(asked: &Arc<Asked>) -> Self {
        Self {
            asked: Arc::clone(asked),
            read: Mutex::default(),
        }
    }

    async fn ask(&self, message: impl FnOnce(u64) -> Message) -> Result<Outcome, Error> {
        let answer = timeout(DEADLINE, self.asked.ask(message)).await;
        let answer =
            answer.unwrap_or_else(|_late| Err("the other process did not answer".to_owned()));
        answer.map_err(Error::unavailable)
    }

    async fn change(&self, message: impl FnOnce(u64) -> Message) -> Result<bool, Error> {
        match self.ask(message).await? {
            Outcome::Done(was_there) => Ok(was_there),
            Outcome::Record(_) => Err(strange()),
        }
    }

    /// Notes how a record stands as far as this process knows.
    fn know(&self, key: &RecordKey, sealed: Option<Vec<u8>>) {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        match sealed {
            Some(sealed) => drop(read.insert(key.clone(), sealed)),
            None => drop(read.remove(key)),
        }
    }
}

fn strange() -> Error {
    Error::unavailable("the other process answered something else")
}

fn elsewhere<T>() -> Result<T, Error> {
    Err(Error::unavailable("another process has the store"))
}

impl Store for Remote {
    fn put(&self, key: &RowKey, row: Row) -> BoxFuture<'_, Result<(), Error>> {
        let row = RowLine::of(key, &row);
        Box::pin(async move {
            let put = self.change(|ask| Message::Put { ask, row });
            put.await.map(drop)
        })
    }

    fn get(&self, _key: &RowKey) -> BoxFuture<'_, Result<Option<Row>, Error>> {
        Box::pin(async { elsewhere() })
    }

    fn delete(&self, key: &RowKey) -> BoxFuture<'_, Result<bool, Error>> {
        let key = Key::of(key);
        Box::pin(self.change(|ask| Message::Delete { ask, key }))
    }

    /// Does nothing: reports tell of every use.
    fn touch(&self, _used: Vec<(RowKey, u64)>) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }

    fn load(&self) -> BoxFuture<'_, Result<Rows, Error>> {
        Box::pin(async { elsewhere() })
    }

    /// Fails where something else stands there by now than was read here last.
    fn put_record(&self, key: &RecordKey, sealed: Vec<u8>) -> BoxFuture<'_, Result<(), Error>> {
        let key = key.clone();
        Box::pin(async move {
            let was = {
                let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
                read.get(&key).map(|sealed| text(sealed))
            };
            let put = self.change(|ask| Message::PutRecord {
                ask,
                key: key.to_string(),
                was,
                sealed: text(&sealed),
            });
            let put = put.await;
            // It is sealed anew over there: what stands there now has to be read again.
            self.know(&key, None);
            put.map(drop)
        })
    }

    fn record(&self, key: &RecordKey) -> BoxFuture<'_, Result<Option<Vec<u8>>, Error>> {
        let key = key.clone();
        Box::pin(async move {
            let name = key.to_string();
            let asked = self.ask(|ask| Message::ReadRecord { ask, key: name });
            let Outcome::Record(sealed) = asked.await? else {
                return Err(strange());
            };
            let sealed = match sealed {
                Some(text) => Some(bytes(&text).ok_or_else(strange)?),
                None => None,
            };
            self.know(&key, sealed.clone());
            Ok(sealed)
        })
    }

    fn delete_record(&self, key: &RecordKey) -> BoxFuture<'_, Result<bool, Error>> {
        let key = key.to_string();
        Box::pin(self.change(|ask| Message::DeleteRecord { ask, key }))
    }

    fn load_records(&self, _kind: RecordKind) -> BoxFuture<'_, Result<RecordRows, Error>> {
        Box::pin(async { elsewhere() })
    }

    fn health(&self) -> Result<(), Error> {
        if self.asked.end.broken.is_cancelled() {
            return Err(Error::unavailable("the other process has gone"));
        }
        Ok(())
    }
}
