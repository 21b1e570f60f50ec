//! The thread that owns the file: takes changes in groups, commits each group once, answers.
//!
//! After an error of the disk the library does nothing more until the file is opened again, so
//! that is done at once and then with growing pauses: a disk that was full heals by itself. A group
//! that failed is tried again change by change, once. It must never answer before the commit.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::oneshot::Sender;

use super::file::{Cause, File, Opener, unread};
use crate::store::{Error, RecordKey, RecordKind, RecordRows, Row, RowKey, Rows};

/// The most changes of one commit, and the most bytes of sealed records after which no other joins.
const GROUP: usize = 256;
const GROUP_BYTES: usize = 4 << 20;
/// The pauses between attempts to heal.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A change of rows.
#[derive(Debug)]
pub(super) enum Change {
    Put(RowKey, Row),
    Delete(RowKey),
    Touch(Vec<(RowKey, u64)>),
    PutRecord(RecordKey, Vec<u8>),
    DeleteRecord(RecordKey),
}

impl Change {
    /// Returns how many sealed bytes it writes, where it writes any.
    fn written(&self) -> Option<usize> {
        match self {
            Self::Put(_, row) => Some(row.sealed.len()),
            Self::PutRecord(_, sealed) => Some(sealed.len()),
            Self::Delete(_) | Self::Touch(_) | Self::DeleteRecord(_) => None,
        }
    }

    /// Returns how many bytes it holds, about, while it waits: of what may be many. What only takes
    /// away is never refused for want of room.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Touch(used) => used.len() * size_of::<[(RowKey, u64); 2]>(),
            Self::Put(..) | Self::PutRecord(..) | Self::Delete(_) | Self::DeleteRecord(_) => {
                self.written().unwrap_or_default()
            }
        }
    }
}

/// What the thread may be asked.
pub(super) enum Request {
    Change(Waiting),
    Get(RowKey, Sender<Result<Option<Row>, Error>>),
    Load(Sender<Result<Rows, Error>>),
    Record(RecordKey, Sender<Result<Option<Vec<u8>>, Error>>),
    LoadRecords(RecordKind, Sender<Result<RecordRows, Error>>),
    /// Closes the file for another process.
    Release(Sender<Result<(), Error>>),
    /// Opens it again.
    Reclaim(Sender<Result<(), Error>>),
}

/// A change that waits to be made.
pub(super) struct Waiting {
    pub(super) change: Change,
    pub(super) answer: Sender<Result<bool, Error>>,
    /// What it takes of the room for all.
    pub(super) room: OwnedSemaphorePermit,
}

impl Waiting {
    /// Answers. The room is given back first, so that whoever was answered finds it there.
    fn answer(self, done: Result<bool, Error>) {
        let Self {
            answer: sender,
            room,
            ..
        } = self;
        drop(room);
        answer(sender, done);
    }
}

/// How the store does, for whoever asks.
#[derive(Debug, Default)]
pub(super) struct Status(Mutex<Standing>);

#[derive(Debug, Default)]
struct Standing {
    /// Why the last change failed.
    failure: Option<Arc<str>>,
    /// Since when the thread is busy with what it was asked last.
    busy: Option<Instant>,
}

impl Status {
    /// Tells why the store takes no change; a thread that is busy for longer than `patience` is
    /// one that hangs.
    pub(super) fn health(&self, patience: Duration) -> Result<(), String> {
        let standing = self.lock();
        if let Some(failure) = &standing.failure {
            return Err(failure.to_string());
        }
        match standing.busy {
            Some(since) if since.elapsed() > patience => Err("the disk does not answer".into()),
            _ => Ok(()),
        }
    }

    fn set_busy(&self, is_busy: bool) {
        self.lock().busy = is_busy.then(Instant::now);
    }

    fn set_failure(&self, failure: Option<Arc<str>>) {
        self.lock().failure = failure;
    }

    fn failure(&self) -> Option<Arc<str>> {
        self.lock().failure.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Standing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread's own state.
pub(super) struct Writer {
    path: PathBuf,
    opener: Opener,
    /// Nothing while the file could not be opened again.
    file: Option<File>,
    status: Arc<Status>,
    /// When to try again, and how long to wait after that; nothing while all is well.
    pause: Option<(Instant, Duration)>,
    /// The file is another process's for now.
    is_released: bool,
}

impl Writer {
    pub(super) fn new(path: PathBuf, file: File, opener: Opener, status: Arc<Status>) -> Self {
        Self {
            path,
            opener,
            file: Some(file),
            status,
            pause: None,
            is_released: false,
        }
    }

    /// Does what is asked until nobody can ask any more.
    pub(super) fn run(mut self, requests: &Receiver<Request>) {
        loop {
            let next = match self.pause {
                None => requests.recv().map_err(RecvTimeoutError::from),
                Some((at, _)) => {
                    requests.recv_timeout(at.saturating_duration_since(Instant::now()))
                }
            };
            self.status.set_busy(true);
            match next {
                Ok(request) => self.serve(request, requests),
                Err(RecvTimeoutError::Timeout) => self.heal(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.status.set_busy(false);
        }
        tracing::debug!("the store is closed");
    }

    /// Gathers the changes that wait already behind the first one, and does them; what is no
    /// change ends the group.
    fn serve(&mut self, first: Request, requests: &Receiver<Request>) {
        let mut group: Vec<Waiting> = Vec::new();
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(request) = next.take() {
            match request {
                Request::Change(waiting) => {
                    let written = waiting.change.written();
                    bytes += written.unwrap_or_default();
                    // Whoever asked for this row has been told that it failed.
                    if !(written.is_some() && waiting.answer.is_closed()) {
                        group.push(waiting);
                    }
                    if group.len() < GROUP && bytes < GROUP_BYTES {
                        next = requests.try_recv().ok();
                    }
                }
                Request::Get(key, sender) => {
                    self.commit(std::mem::take(&mut group));
                    answer(sender, self.read(|file| file.get(&key)));
                }
                Request::Load(sender) => {
                    self.commit(std::mem::take(&mut group));
                    answer(sender, self.read(File::load));
                }
                Request::Record(key, sender) => {
                    self.commit(std::mem::take(&mut group));
                    answer(sender, self.read(|file| file.record(&key)));
                }
                Request::LoadRecords(kind, sender) => {
                    self.commit(std::mem::take(&mut group));
                    answer(sender, self.read(|file| file.load_records(kind)));
                }
                Request::Release(sender) => {
                    self.commit(std::mem::take(&mut group));
                    self.release(sender);
                }
                Request::Reclaim(sender) => {
                    // Now or, from here on, by itself.
                    self.is_released = false;
                    let opened = self.opened().map(drop);
                    self.settle(opened.as_ref().err().map(|error| Arc::from(chain(error))));
                    answer(sender, opened);
                }
            }
        }
        self.commit(group);
    }

    /// Closes the file for another process. Whoever asked for it has to be there: a file that nobody
    /// knows of as released would stay closed.
    fn release(&mut self, sender: Sender<Result<(), Error>>) {
        if sender.is_closed() {
            return;
        }
        let pause = self.pause.take();
        (self.file, self.is_released) = (None, true);
        if sender.send(Ok(())).is_err() {
            (self.is_released, self.pause) = (false, pause);
        }
    }

    fn read<T>(&mut self, read: impl Fn(&File) -> Result<T, Cause>) -> Result<T, Error> {
        let done = read(self.opened()?);
        // The library reads nothing more after an error of the disk, whatever it was.
        done.map_err(|cause| {
            self.file = None;
            unread(&self.path, cause)
        })
    }

    /// Makes a group of changes durable, all at once or, after a failure, one by one.
    fn commit(&mut self, group: Vec<Waiting>) {
        if group.is_empty() {
            return;
        }
        if let Some(failure) = self.resting() {
            for waiting in group {
                waiting.answer(Err(Error::unavailable(failure.to_string())));
            }
            return;
        }
        match self.apply(group.iter().map(|waiting| &waiting.change)) {
            Ok(found) => {
                self.settle(None);
                for (waiting, found) in group.into_iter().zip(found) {
                    waiting.answer(Ok(found));
                }
            }
            Err(error) => {
                tracing::warn!(changes = group.len(), error = %error, "a commit failed");
                self.commit_singly(group);
            }
        }
    }

    fn commit_singly(&mut self, group: Vec<Waiting>) {
        let mut last = None;
        let mut answers = Vec::with_capacity(group.len());
        for waiting in group {
            let done = self.apply(std::iter::once(&waiting.change));
            last = done.as_ref().err().map(|error| Arc::from(chain(error)));
            let done = done.map(|found| found.first().copied().unwrap_or_default());
            answers.push((waiting.answer, done));
        }
        // First, so that whoever is told of a failure finds the store unwell.
        self.settle(last);
        for (sender, done) in answers {
            answer(sender, done);
        }
    }

    /// Commits changes; after a failure the file is closed, and opened for the next attempt.
    fn apply<'a>(&mut self, changes: impl Iterator<Item = &'a Change>) -> Result<Vec<bool>, Error> {
        let done = self.opened()?.apply(changes).map_err(Error::Unavailable);
        if done.is_err() {
            self.file = None;
        }
        done
    }

    /// Returns the open file; opens it where it was closed.
    fn opened(&mut self) -> Result<&File, Error> {
        let file = match self.file.take() {
            Some(file) => file,
            None if self.is_released => {
                return Err(Error::unavailable("the file is another process's"));
            }
            // Whatever the reason: to whoever asks it means that the change was not made.
            None => (self.opener)(&self.path).map_err(Error::unavailable)?,
        };
        Ok(self.file.insert(file))
    }

    /// Returns the last failure while it is too early to try again.
    fn resting(&self) -> Option<Arc<str>> {
        let (at, _) = self.pause?;
        (Instant::now() < at).then(|| self.status.failure())?
    }

    /// Tries whether changes can be made again, without anybody asking for one.
    fn heal(&mut self) {
        let tried = self.opened().and_then(|file| {
            let probed = file.probe();
            probed.map_err(Error::Unavailable)
        });
        if tried.is_err() {
            self.file = None;
        }
        self.settle(tried.err().map(|error| Arc::from(chain(&error))));
    }

    /// Notes how the last attempt ended.
    fn settle(&mut self, failure: Option<Arc<str>>) {
        match (&failure, self.pause) {
            (None, None) => {}
            (None, Some(_)) => {
                tracing::info!("the store takes changes again");
                self.pause = None;
            }
            (Some(error), before) => {
                if before.is_none() {
                    tracing::error!(
                        %error, path = %self.path.display(), "the store takes no changes"
                    );
                }
                let pause = before.map_or(FIRST_PAUSE, |(_, pause)| (2 * pause).min(LONGEST_PAUSE));
                self.pause = Some((Instant::now() + pause, pause));
            }
        }
        self.status.set_failure(failure);
    }
}

fn answer<T>(sender: Sender<Result<T, Error>>, answer: Result<T, Error>) {
    if sender.send(answer).is_err() {
        tracing::debug!("whoever asked the store has left");
    }
}

/// Writes an error with its causes on one line.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
