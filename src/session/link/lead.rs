//! The end of a link at the process that has the store: it writes for the one before, and no more
//! than that one may write.
//!
//! Each request is a task of its own, so that a slow one delays no other. Called by `app`.

use std::io;
use std::sync::{Arc, Mutex};

use super::message::{Key, Link, Message, Outcome, RowLine, bytes, next, text};
use super::reports::Reports;
use super::{End, Sessions};
use crate::id::TenantId;
use crate::session::Error;
use crate::store::{RecordKey, RecordKind};
use crate::tenant;

impl Sessions {
    /// Serves a process whose store this one has taken over, until it ends. What it changes is
    /// written here; it learns what changes here.
    pub async fn lead(self: Arc<Self>, link: Link) {
        let Link { mut read, write } = link;
        let end = End::start(write);
        let id = self.peers.enter(&end);
        let reports = Arc::<Mutex<Reports>>::default();
        self.keep_reporting(&end, &reports, false);
        let reading = async {
            while let Some(message) = next(&mut read).await? {
                match message {
                    Message::Used(uses) => self.note_uses(&uses),
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
            Message::Records { lines, .. } => match self.audit.relay(lines).await {
                true => Ok(Outcome::Done(true)),
                false => Err("the audit lines could not be written".to_owned()),
            },
            _ => Err("nothing was asked".to_owned()),
        }
    }

    /// Writes a row for another process: the next version of a session, or a new one.
    async fn apply(&self, from: u64, line: &RowLine) -> Result<Outcome, String> {
        let (key, row) = line.read().ok_or("the row cannot be read")?;
        let written = self.write_for(&key, row).await?;
        self.peers.tell_row(&key, &written, Some(from));
        Ok(Outcome::Done(true))
    }

    /// Ends a session for another process.
    async fn apply_end(&self, from: u64, key: &Key) -> Result<Outcome, String> {
        let key = key.read().ok_or("the key cannot be read")?;
        let own = self.in_table(&key.session);
        let Some(handle) = own.filter(|own| own.tenant == key.tenant) else {
            return Ok(Outcome::Done(false));
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
        let unread = || "the record cannot be read".to_owned();
        let was = match was {
            Some(text) => Some(bytes(text).ok_or_else(unread)?),
            None => None,
        };
        let sealed = bytes(sealed).ok_or_else(unread)?;
        let written = self.tenants.write_for(&key, was.as_deref(), &sealed).await;
        match written.map_err(|error| error.to_string())? {
            true => Ok(Outcome::Done(true)),
            false => Err("the record was changed meanwhile".to_owned()),
        }
    }

    /// Deletes a record for another process, and ends what it stands for.
    async fn apply_record_end(&self, key: &str) -> Result<Outcome, String> {
        let key = RecordKey::parse(key).ok_or("the key cannot be read")?;
        let RecordKind::Tenant = key.kind;
        match self.delete_tenant(&TenantId::new(&key.name)).await {
            Ok(()) => Ok(Outcome::Done(true)),
            Err(Error::Tenant(tenant::Error::NotFound)) => Ok(Outcome::Done(false)),
            Err(error) => Err(error.to_string()),
        }
    }
}
