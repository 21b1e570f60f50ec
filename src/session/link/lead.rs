//! The end of a link at the process that has the store: it writes for the one before, and no more
//! than that one may write.
//!
//! Each request is a task of its own, so that a slow one delays no other. Called by `app`.

use std::io;
use std::sync::{Arc, Mutex};

use tokio::io::BufReader;
use tokio::net::unix::OwnedReadHalf;

use super::message::{Key, Link, Message, Outcome, RowLine, bytes, text};
use super::reports::Reports;
use super::{End, Sessions, heard};
use crate::id::TenantId;
use crate::session::Error;
use crate::store::{RecordKey, RecordKind, RowKey};
use crate::tenant;

/// Why a record is not written for another process: what keeps it in memory here would not learn of it.
const ELSEWHERE: &str = "such a record is changed by the process that has the store alone";

impl Sessions {
    /// Serves a process whose store this one has taken over, until it ends. What it changes is
    /// written here; it learns what changes here. Its notes, which are of no concern to sessions, are
    /// handed to `noted`, which must not wait.
    ///
    /// It is told from this call on, and served while what is returned runs.
    pub fn lead(
        self: Arc<Self>,
        link: Link,
        noted: impl Fn(String) + Send + Sync,
    ) -> impl Future<Output = ()> + Send {
        let Link { read, write } = link;
        let end = End::start(write);
        let id = self.peers.enter(&end);
        // What cannot be served here must not go on there: nobody could end it.
        let refused: Vec<RowKey> = self.refused().iter().cloned().collect();
        self.peers.tell_gone(&refused, None);
        let reports = Arc::<Mutex<Reports>>::default();
        self.keep_reporting(&end, &reports, false);
        self.serve_peer(read, end, id, noted)
    }

    async fn serve_peer(
        self: Arc<Self>,
        mut read: BufReader<OwnedReadHalf>,
        end: End,
        id: u64,
        noted: impl Fn(String) + Send + Sync,
    ) {
        let reading = async {
            while let Some(message) = heard(&mut read).await? {
                match message {
                    Message::Used(uses) => self.note_uses(&uses),
                    Message::Note(note) => noted(note),
                    Message::End => return Ok(()),
                    asked => {
                        let (sessions, end) = (Arc::clone(&self), end.clone());
                        let doing = sessions
                            .asked(id, asked, end)
                            .ok_or(io::ErrorKind::InvalidData)?;
                        tokio::spawn(doing);
                    }
                }
            }
            Err(io::Error::from(io::ErrorKind::UnexpectedEof))
        };
        let ended = tokio::select! {
            () = end.broken.cancelled() => Err(io::ErrorKind::BrokenPipe.into()),
            ended = reading => ended,
        };
        self.peers.leave(id);
        end.broken.cancel();
        match ended {
            Ok(()) => tracing::info!("the process before has ended"),
            Err(error) => tracing::warn!(%error, "the process before has gone"),
        }
    }

    /// Makes the work of a request; nothing where it is none.
    fn asked(
        self: Arc<Self>,
        from: u64,
        message: Message,
        end: End,
    ) -> Option<impl Future<Output = ()> + Send> {
        let ask = match &message {
            Message::Put { ask, .. }
            | Message::Delete { ask, .. }
            | Message::ReadRecord { ask, .. }
            | Message::PutRecord { ask, .. }
            | Message::DeleteRecord { ask, .. }
            | Message::Records { ask, .. } => *ask,
            Message::Ahead { .. }
            | Message::Answer { .. }
            | Message::End
            | Message::Gone(_)
            | Message::Note(_)
            | Message::Record { .. }
            | Message::Row(_)
            | Message::Used(_) => return None,
        };
        Some(async move {
            let outcome = self.perform(from, message).await;
            end.tell(Message::Answer { ask, outcome });
        })
    }

    async fn perform(&self, from: u64, message: Message) -> Result<Outcome, String> {
        match message {
            Message::Put { row, .. } => self.apply(from, &row).await,
            Message::Delete { key, .. } => self.apply_end(from, &key).await,
            Message::ReadRecord { key, .. } => {
                let key = RecordKey::parse(&key).ok_or("the key cannot be read")?;
                let sealed = self.records.sealed(&key).await;
                let sealed = sealed.map_err(|error| error.to_string())?;
                Ok(Outcome::Record(sealed.as_deref().map(text)))
            }
            Message::PutRecord {
                key, was, sealed, ..
            } => self.apply_record(&key, was.as_deref(), &sealed).await,
            Message::DeleteRecord { key, .. } => self.apply_record_end(&key).await,
            Message::Records { lines, .. } => {
                let written = self.audit.relay(lines).await;
                let lost = || "the audit lines could not be written".to_owned();
                written.then_some(Outcome::Done(true)).ok_or_else(lost)
            }
            _ => Err("nothing was asked".to_owned()),
        }
    }

    /// Writes a row for another process: the next version of a session, or a new one.
    async fn apply(&self, from: u64, line: &RowLine) -> Result<Outcome, String> {
        let (key, row) = line.read().ok_or("the row cannot be read")?;
        self.write_for(&key, row, from).await?;
        Ok(Outcome::Done(true))
    }

    /// Ends a session for another process.
    async fn apply_end(&self, from: u64, key: &Key) -> Result<Outcome, String> {
        let key = key.read().ok_or("the key cannot be read")?;
        let own = self.in_table(&key.session);
        let Some(handle) = own.filter(|own| own.tenant == key.tenant) else {
            self.peers.tell_gone(std::slice::from_ref(&key), Some(from));
            let forgotten = self.forget_row(&key).await;
            let was_there = forgotten.map_err(|error| error.to_string())?;
            return Ok(Outcome::Done(was_there));
        };
        handle.end();
        self.peers.tell_gone(std::slice::from_ref(&key), Some(from));
        let _after_a_patch = handle.changing.lock().await;
        let forgotten = self.forget(&handle).await;
        forgotten.map_err(|error| error.to_string())?;
        Ok(Outcome::Done(true))
    }

    /// Writes a record for another process.
    async fn apply_record(
        &self,
        key: &str,
        was: Option<&str>,
        sealed: &str,
    ) -> Result<Outcome, String> {
        let key = RecordKey::parse(key).ok_or("the key cannot be read")?;
        if key.kind != RecordKind::Tenant {
            return Err(ELSEWHERE.to_owned());
        }
        let unread = || "the record cannot be read".to_owned();
        let was = match was {
            Some(text) => Some(bytes(text).ok_or_else(unread)?),
            None => None,
        };
        let sealed = bytes(sealed).ok_or_else(unread)?;
        let written = self.tenants.write_for(&key, was.as_deref(), &sealed).await;
        let written = written.map_err(|error| error.to_string())?;
        let changed = || "the record was changed meanwhile".to_owned();
        written.then_some(Outcome::Done(true)).ok_or_else(changed)
    }

    /// Deletes a record for another process, and ends what it stands for.
    async fn apply_record_end(&self, key: &str) -> Result<Outcome, String> {
        let key = RecordKey::parse(key).ok_or("the key cannot be read")?;
        if key.kind != RecordKind::Tenant {
            return Err(ELSEWHERE.to_owned());
        }
        match self.delete_tenant(&TenantId::new(&key.name)).await {
            Ok(()) => Ok(Outcome::Done(true)),
            Err(Error::Tenant(tenant::Error::NotFound)) => Ok(Outcome::Done(false)),
            Err(error) => Err(error.to_string()),
        }
    }
}
