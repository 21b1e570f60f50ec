//! The link between two processes that share live sessions: the one that holds the store, and one
//! before it that serves what it has open yet.
//!
//! The former tells of every row and record that it writes and of every end; the latter has its own
//! changes and audit lines written by it, and tells what was used. Rows travel sealed. Whatever does
//! not fit, is late or cannot be read ends the link, never a promise: who has lost it cuts what it
//! serves. Called by `app`, which makes the link and decides what its end means.

mod lead;
mod message;
mod remote;
mod reports;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::message::{Key, Message, Outcome, RowLine, bytes, next, text};
use self::remote::{Asked, Remote};
use self::reports::{REPORT_EVERY, Reports};
use crate::audit::Parcels;
use crate::id::TenantId;
use crate::records::News;
use crate::session::live::Sessions;
use crate::store::{RecordKey, Row, RowKey, Store};

pub use self::message::Link;

/// How many messages wait for a peer that does not read, and for one that cannot heed them yet; and
/// how many bytes of them, unless a single one is longer.
const QUEUE: usize = 4096;
const QUEUE_BYTES: usize = 64 << 20;
/// How long a peer may be silent, which reports every second, and how long it may take a message.
const SILENCE: Duration = Duration::from_secs(10);
/// How many ends are told in one message.
const ENDS: usize = 1000;
/// How long the last report has to arrive.
const LAST_REPORT: Duration = Duration::from_secs(2);
/// How long a record may wait for a change that is under way here: what takes a right away has to
/// hold within two seconds.
const TAKE_UP: Duration = Duration::from_secs(1);

/// How many bytes of messages wait in a queue.
#[derive(Clone, Debug, Default)]
struct Room(Arc<AtomicUsize>);

impl Room {
    /// Takes room for a message; false where there is none, which ends the link.
    fn take(&self, message: &Message) -> bool {
        let bytes = message.bytes();
        let before = self.0.fetch_add(bytes, Ordering::AcqRel);
        before == 0 || before.saturating_add(bytes) <= QUEUE_BYTES
    }

    fn give_back(&self, message: &Message) {
        self.0.fetch_sub(message.bytes(), Ordering::AcqRel);
    }
}

/// One end of a link at work: what is to be written waits in a queue.
#[derive(Clone, Debug)]
struct End {
    queue: mpsc::Sender<Message>,
    room: Room,
    broken: CancellationToken,
}

impl End {
    /// Starts to write what is told.
    fn start(mut write: OwnedWriteHalf) -> Self {
        let (queue, mut messages) = mpsc::channel::<Message>(QUEUE);
        let broken = CancellationToken::new();
        let room = Room::default();
        let (own, waiting) = (broken.clone(), room.clone());
        tokio::spawn(async move {
            let writing = async {
                while let Some(message) = messages.recv().await {
                    let mut line = serde_json::to_vec(&message)?;
                    line.push(b'\n');
                    timeout(SILENCE, write.write_all(&line)).await??;
                    waiting.give_back(&message);
                    if matches!(message, Message::End) {
                        return write.shutdown().await;
                    }
                }
                Ok(())
            };
            let written = tokio::select! {
                () = own.cancelled() => return,
                written = writing => written,
            };
            if let Err(error) = written {
                tracing::warn!(%error, "the link to the other process broke");
                own.cancel();
            }
        });
        Self {
            queue,
            room,
            broken,
        }
    }

    /// Tells the other process what may be lost.
    fn note(&self, message: Message) {
        let lost = if self.room.take(&message) {
            self.queue
                .try_send(message)
                .err()
                .map(TrySendError::into_inner)
        } else {
            Some(message)
        };
        if let Some(message) = lost {
            self.room.give_back(&message);
            tracing::warn!("a note to the other process was lost: too many wait");
        }
    }

    /// Tells the other process. One that does not read is one that has gone.
    fn tell(&self, message: Message) {
        if !self.room.take(&message) || self.queue.try_send(message).is_err() {
            self.broken.cancel();
        }
    }
}

/// The processes that serve sessions of this one's store.
#[derive(Debug, Default)]
pub(in crate::session) struct Peers {
    ends: Mutex<Vec<(u64, End)>>,
    next: AtomicU64,
    /// Another process holds the store and decides what has expired.
    follows: AtomicBool,
}

impl Peers {
    /// Tells whether there is anybody to tell.
    pub(in crate::session) fn any(&self) -> bool {
        !self.lock().is_empty()
    }

    /// Returns how much later than its use it may become known that a session was used elsewhere.
    pub(in crate::session) fn slack(&self) -> Duration {
        if self.any() {
            REPORT_EVERY
        } else {
            Duration::ZERO
        }
    }

    pub(in crate::session) fn follows(&self) -> bool {
        self.follows.load(Ordering::Acquire)
    }

    /// Tells all but one of a row that was written.
    pub(in crate::session) fn tell_row(&self, key: &RowKey, row: &Row, but: Option<u64>) {
        self.tell(but, || Message::Row(RowLine::of(key, row)));
    }

    /// Tells all but one that sessions have ended.
    pub(in crate::session) fn tell_gone(&self, keys: &[RowKey], but: Option<u64>) {
        for some in keys.chunks(ENDS) {
            self.tell(but, || Message::Gone(some.iter().map(Key::of).collect()));
        }
    }

    /// Tells all of a record.
    pub(in crate::session) fn tell_news(&self, news: News<'_>) {
        self.tell(None, || match news {
            News::Ahead(key, what) => Message::Ahead {
                key: key.to_string(),
                what: what.to_owned(),
            },
            News::Deleted(key) => Message::Record {
                key: key.to_string(),
                sealed: None,
            },
            News::Written(key, sealed) => Message::Record {
                key: key.to_string(),
                sealed: Some(text(sealed)),
            },
        });
    }

    /// Returns how many processes there are to tell.
    pub(in crate::session) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Tells one of a row that was written, as it can read it.
    pub(in crate::session) fn tell_row_to(&self, one: u64, key: &RowKey, row: &Row) {
        let ends = self.lock();
        if let Some((_, end)) = ends.iter().find(|(id, _)| *id == one) {
            end.tell(Message::Row(RowLine::of(key, row)));
        }
    }

    fn tell(&self, but: Option<u64>, message: impl Fn() -> Message) {
        for (id, end) in self.lock().iter() {
            if Some(*id) != but {
                end.tell(message());
            }
        }
    }

    fn enter(&self, end: &End) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().push((id, end.clone()));
        id
    }

    fn leave(&self, id: u64) {
        self.lock().retain(|(other, _)| *other != id);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(u64, End)>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process's part in the link to the one that took its store over.
#[derive(Debug)]
pub struct Following {
    end: End,
    sessions: Arc<Sessions>,
    reports: Arc<Mutex<Reports>>,
    reader: JoinHandle<()>,
}

impl Following {
    /// Waits until the other process has gone.
    pub async fn broken(&self) {
        self.end.broken.cancelled().await;
    }

    /// Returns what tells the other process a note, in words of the caller's. It is not answered, and
    /// arrives before the end of the link. One for which there is no room is lost, with a warning:
    /// no session has to end for it.
    pub fn teller(&self) -> impl Fn(String) + Send + Sync + use<> {
        let end = self.end.clone();
        move |note| end.note(Message::Note(note))
    }

    /// Tells the last that there is to tell, and waits for it to arrive.
    pub async fn finish(mut self) {
        if self.end.broken.is_cancelled() {
            return;
        }
        self.sessions.report_to(&self.end, &self.reports, true);
        self.end.tell(Message::End);
        if timeout(LAST_REPORT, &mut self.reader).await.is_err() {
            tracing::warn!("the last report did not reach the other process");
        }
    }
}

impl Sessions {
    /// Returns how many processes serve sessions of this one's store.
    pub fn followers(&self) -> usize {
        self.peers.len()
    }

    /// Goes on beside a process that has taken over: sessions and tenants change as it says, and it
    /// writes the audit lines. Where this one is bound to it, since the store is the other's alone,
    /// nothing expires here by itself, and the store to use from now on is the one that is returned.
    pub fn trail(
        self: &Arc<Self>,
        link: Link,
        is_bound: bool,
        parcels: Option<Parcels>,
    ) -> (Arc<dyn Store>, Following) {
        self.peers.follows.store(is_bound, Ordering::Release);
        let Link { read, write } = link;
        let end = End::start(write);
        let asked = Arc::new(Asked::new(end.clone()));
        let reports = Arc::<Mutex<Reports>>::default();
        self.keep_reporting(&end, &reports, true);
        if let Some(parcels) = parcels {
            tokio::spawn(send_away(parcels, Arc::clone(&asked)));
        }
        // Answers wait for nothing; what is to be heeded may have to wait for one of them.
        let (later, told) = mpsc::channel(QUEUE);
        let room = Room::default();
        tokio::spawn(Arc::clone(self).heed_all(told, room.clone(), end.clone()));
        let remote = Arc::new(Remote::new(&asked));
        let reader = tokio::spawn(read_all(read, asked, (later, room), end.clone()));
        let following = Following {
            end,
            sessions: Arc::clone(self),
            reports,
            reader,
        };
        (remote, following)
    }

    async fn heed_all(self: Arc<Self>, mut told: mpsc::Receiver<Message>, room: Room, end: End) {
        while let Some(message) = told.recv().await {
            room.give_back(&message);
            if self.heed(message).await.is_none() {
                tracing::warn!("the other process said what was not due");
                end.broken.cancel();
                return;
            }
        }
    }

    /// Does what the process says that has the store; nothing where that is none of what it may say.
    async fn heed(&self, message: Message) -> Option<()> {
        match message {
            Message::Row(line) => {
                let (key, row) = line.read()?;
                let keyring = self.keyring.read().await;
                if let Err(why) = self.adopt(&keyring, &key, &row) {
                    // What it allows now is not known here.
                    tracing::error!(session = %key.session, %why, "a session is cut here");
                    self.drop_live(&key);
                }
                self.peers.tell_row(&key, &row, None);
            }
            Message::Gone(keys) => {
                let keys: Option<Vec<RowKey>> = keys.iter().map(Key::read).collect();
                let keys = keys?;
                for key in &keys {
                    self.drop_live(key);
                }
                self.peers.tell_gone(&keys, None);
            }
            Message::Record { key, sealed } => {
                let key = RecordKey::parse(&key)?;
                let sealed = match sealed {
                    Some(text) => Some(bytes(&text)?),
                    None => None,
                };
                self.heed_record(&key, sealed.as_deref()).await;
            }
            Message::Ahead { key, what } => {
                let key = RecordKey::parse(&key)?;
                self.tenants.heed(&key, &what);
                self.peers.tell_news(News::Ahead(&key, &what));
            }
            Message::Used(uses) => self.note_uses(&uses),
            Message::Answer { .. }
            | Message::Delete { .. }
            | Message::DeleteRecord { .. }
            | Message::End
            | Message::Note(_)
            | Message::Put { .. }
            | Message::PutRecord { .. }
            | Message::ReadRecord { .. }
            | Message::Records { .. } => return None,
        }
        Some(())
    }

    /// Takes up what became of a record.
    async fn heed_record(&self, key: &RecordKey, sealed: Option<&[u8]>) {
        let taken = if self.peers.follows() {
            timeout(TAKE_UP, self.tenants.adopt(key, sealed)).await
        } else {
            // The store is this process's too, and may know better than what was told.
            timeout(TAKE_UP, self.tenants.reload(key, true)).await
        };
        let lost = match taken {
            Ok(Ok(())) => None,
            Ok(Err(why)) => Some(why.to_string()),
            Err(late) => Some(late.to_string()),
        };
        if let Some(why) = lost {
            tracing::error!(record = %key, why, "a tenant is cut here");
            let tenant = TenantId::new(&key.name);
            // Their rows stay as they are: only here nothing is known of them.
            for handle in self.all() {
                if handle.tenant == tenant {
                    handle.end();
                    self.table.remove(&handle.id);
                }
            }
            self.tenants.lose(&tenant);
        }
        self.peers.tell_news(match sealed {
            Some(sealed) => News::Written(key, sealed),
            None => News::Deleted(key),
        });
    }

    /// Cuts a session and forgets it: its row is another process's business.
    fn drop_live(&self, key: &RowKey) {
        let own = self.in_table(&key.session);
        if let Some(handle) = own.filter(|own| own.tenant == key.tenant) {
            handle.end();
            self.table.remove(&key.session);
        }
    }
}

/// Reads the next message of a peer. One that says nothing for [`SILENCE`] is one that has gone.
async fn heard(read: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<Message>> {
    timeout(SILENCE, next(read)).await?
}

/// Reads what the other process says until the link ends.
async fn read_all(
    mut read: BufReader<OwnedReadHalf>,
    asked: Arc<Asked>,
    (later, room): (mpsc::Sender<Message>, Room),
    end: End,
) {
    let reading = async {
        while let Some(message) = heard(&mut read).await? {
            match message {
                Message::Answer { ask, outcome } => asked.answer(ask, outcome),
                told if room.take(&told) => later.try_send(told).map_err(io::Error::other)?,
                _too_much => return Err(io::ErrorKind::OutOfMemory.into()),
            }
        }
        Ok::<(), io::Error>(())
    };
    let read = tokio::select! {
        () = end.broken.cancelled() => return,
        read = reading => read,
    };
    if let Err(error) = read {
        tracing::warn!(%error, "the link to the other process broke");
    }
    end.broken.cancel();
}

/// Has audit lines written by the other process, one parcel after the other. What does not arrive
/// goes back to where it came from.
async fn send_away(mut parcels: Parcels, asked: Arc<Asked>) {
    while let Some(parcel) = parcels.next().await {
        let lines = parcel.lines().to_owned();
        let sent = asked.ask(|ask| Message::Records { ask, lines }).await;
        match sent {
            Ok(Outcome::Done(true)) => parcel.arrived(),
            Ok(_) | Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;
    use crate::id::SessionId;

    /// What is told here is not written before the test waits.
    fn end() -> (End, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (End::start(ours.into_split().1), theirs)
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_may_have_so_many_bytes_and_no_more() {
        let lines = |bytes| Message::Records {
            ask: 0,
            lines: "x".repeat(bytes),
        };
        let (one, _peer) = end();
        one.tell(lines(QUEUE_BYTES + 1));
        assert!(!one.broken.is_cancelled(), "a single one may be longer");
        one.tell(lines(1));
        assert!(one.broken.is_cancelled());
        let (many, _peer) = end();
        for _ in 0..3 {
            many.tell(lines(QUEUE_BYTES / 4));
        }
        assert!(!many.broken.is_cancelled());
        many.tell(lines(QUEUE_BYTES / 4));
        assert!(many.broken.is_cancelled());
    }

    #[tokio::test]
    async fn many_ends_at_once_are_few_messages() {
        let (peers, (end, _peer)) = (Peers::default(), end());
        peers.enter(&end);
        let gone = || RowKey {
            tenant: TenantId::new("acme"),
            session: SessionId::generate(),
        };
        let gone: Vec<RowKey> = (0..100_000).map(|_| gone()).collect();
        peers.tell_gone(&gone, None);
        assert!(!end.broken.is_cancelled());
    }
}
