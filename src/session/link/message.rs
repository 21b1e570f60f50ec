//! What two processes tell each other, in lines of JSON over a connection of one user's.
//!
//! Rows travel as they are stored: sealed. A line that is too long or cannot be read is an error,
//! and its content is never quoted. Called by the link.

use std::io;

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::id::{SessionId, TenantId};
use crate::store::{Row, RowKey};

/// The longest line: a sealed session of 1 MiB in base64, and room.
const LINE_LIMIT_BYTES: u64 = 16 << 20;

/// What one process tells the other.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Message {
    /// Write this row.
    Put { ask: u64, row: RowLine },
    /// Delete this row, and end its session.
    Delete { ask: u64, key: Key },
    /// Read this record.
    ReadRecord { ask: u64, key: String },
    /// Write this record, if that stands there yet which was read before.
    PutRecord {
        ask: u64,
        key: String,
        was: Option<String>,
        sealed: String,
    },
    /// Delete this record, and end what it stands for.
    DeleteRecord { ask: u64, key: String },
    /// Write these audit lines.
    Records { ask: u64, lines: String },
    /// How it went, or why nothing was done.
    Answer {
        ask: u64,
        outcome: Result<Outcome, String>,
    },
    /// This row was written.
    Row(RowLine),
    /// These sessions have ended.
    Gone(Vec<Key>),
    /// This record was written, or deleted.
    Record { key: String, sealed: Option<String> },
    /// This holds of what a record stands for, before it is durable.
    Ahead { key: String, what: String },
    /// What is of no concern to sessions, in words of whoever keeps it.
    Note(String),
    /// What was used since the last report.
    Used(Vec<Use>),
    /// There is nothing more to tell.
    End,
}

impl Message {
    /// Returns how many bytes it holds, about: of what may be long.
    pub(super) fn bytes(&self) -> usize {
        let held = match self {
            Self::Put { row, .. } | Self::Row(row) => row.sealed.len(),
            Self::PutRecord { was, sealed, .. } => {
                was.as_ref().map_or(0, String::len) + sealed.len()
            }
            Self::Note(text) | Self::Records { lines: text, .. } => text.len(),
            Self::Record { sealed, .. } => sealed.as_ref().map_or(0, String::len),
            Self::Answer { outcome, .. } => match outcome {
                Ok(Outcome::Record(Some(sealed))) => sealed.len(),
                Ok(Outcome::Record(None) | Outcome::Done(_)) => 0,
                Err(why) => why.len(),
            },
            Self::Gone(keys) => keys.len() * size_of::<[Key; 2]>(),
            Self::Used(uses) => uses.len() * size_of::<[Use; 2]>(),
            Self::Ahead { .. }
            | Self::Delete { .. }
            | Self::DeleteRecord { .. }
            | Self::End
            | Self::ReadRecord { .. } => 0,
        };
        held + size_of::<Self>()
    }
}

/// How something went that one process asked of the other.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    /// It is done; tells whether there was anything to do it to.
    Done(bool),
    /// This stands there.
    Record(Option<String>),
}

/// Writes sealed bytes.
pub(super) fn text(sealed: &[u8]) -> String {
    BASE64.encode(sealed)
}

/// Reads sealed bytes.
pub(super) fn bytes(text: &str) -> Option<Vec<u8>> {
    BASE64.decode(text.as_bytes()).ok()
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Key {
    tenant: String,
    session: String,
}

impl Key {
    pub(super) fn of(key: &RowKey) -> Self {
        Self {
            tenant: key.tenant.as_str().to_owned(),
            session: key.session.as_str().to_owned(),
        }
    }

    pub(super) fn read(&self) -> Option<RowKey> {
        Some(RowKey {
            tenant: TenantId::new(&self.tenant),
            session: SessionId::parse(&self.session)?,
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RowLine {
    key: Key,
    sealed: String,
    last_used: u64,
}

impl RowLine {
    pub(super) fn of(key: &RowKey, row: &Row) -> Self {
        Self {
            key: Key::of(key),
            sealed: text(&row.sealed),
            last_used: row.last_used,
        }
    }

    pub(super) fn read(&self) -> Option<(RowKey, Row)> {
        let row = Row {
            sealed: bytes(&self.sealed)?,
            last_used: self.last_used,
        };
        Some((self.key.read()?, row))
    }
}

/// What a session did in the other process.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Use {
    pub(super) session: String,
    pub(super) idle_ms: u64,
    pub(super) exchanges: u64,
    pub(super) denied: u64,
    pub(super) swapped: u64,
}

/// A connection between two processes of the same user, in lines.
#[derive(Debug)]
pub struct Link {
    pub(super) read: BufReader<OwnedReadHalf>,
    pub(super) write: OwnedWriteHalf,
}

impl Link {
    /// Makes a link of a connection.
    pub fn new(stream: UnixStream) -> Self {
        let (read, write) = stream.into_split();
        let read = BufReader::new(read);
        Self { read, write }
    }

    /// Reads one line, without its end.
    ///
    /// # Errors
    /// The system's; the end of the connection, a line that is too long or no text.
    pub async fn line(&mut self) -> io::Result<String> {
        let line = line(&mut self.read).await?;
        line.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Writes one line.
    ///
    /// # Errors
    /// The system's.
    pub async fn say(&mut self, line: &str) -> io::Result<()> {
        self.write.write_all(format!("{line}\n").as_bytes()).await
    }
}

async fn line(read: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    let count = read
        .take(LINE_LIMIT_BYTES)
        .read_until(b'\n', &mut line)
        .await?;
    if count == 0 {
        return Ok(None);
    }
    if line.pop() != Some(b'\n') {
        return Err(io::ErrorKind::InvalidData.into());
    }
    String::from_utf8(line)
        .map(Some)
        .map_err(|_binary| io::ErrorKind::InvalidData.into())
}

/// Reads the next message; nothing at the end.
pub(super) async fn next(read: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<Message>> {
    let Some(line) = line(read).await? else {
        return Ok(None);
    };
    // What the parser says would quote the line.
    let message = serde_json::from_str(&line);
    message
        .map(Some)
        .map_err(|_unread| io::ErrorKind::InvalidData.into())
}
