//! The file of the chain: opened where the last run left off, turned over by size, and its head.
//!
//! Whole lines are never touched again; a half line that a kill left behind is cut off and its
//! length is told. Beside the file lie those that were full, named by their first number, the head
//! that says how far the chain had come, and a lock: a chain has one writer. Called by the sink.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Error;
use crate::audit::chain::{self, Begin, End, Keys, LINE_LIMIT_BYTES, Position};
use crate::audit::head::{Head, State, Unread};
use crate::audit::place::{
    Locked, folder, full_files, full_path, head_path, lock_names, open_own, open_to_append,
};
use crate::seal::{KeyId, Keyring};

/// How much of a file is read at a time to find its last line.
const PIECE_BYTES: u64 = 64 * 1024;

/// Where the file is, and how much is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileOptions {
    /// The file that is written to.
    pub path: PathBuf,
    /// The size from which on another file is begun, in bytes.
    pub rotate_bytes: u64,
    /// How many full files are kept beside it.
    pub keep: usize,
}

/// The last line of a file, and what a kill may have left behind it.
#[derive(Debug, Default)]
struct Tail {
    /// Nothing for a file without a whole line.
    last: Option<Position>,
    /// The segment was ended in order.
    is_ended: bool,
    /// The bytes of all whole lines, and those of half a one.
    whole_bytes: u64,
    torn_bytes: u64,
}

/// Reads the last line of a file. What is behind it may be of any length, and is not kept.
fn tail(path: &Path, file: &mut File) -> Result<Tail, Error> {
    let unreadable = |source| Error::file(path, source);
    let size = file.seek(SeekFrom::End(0)).map_err(unreadable)?;
    let Some(end) = last_break(file, size).map_err(unreadable)? else {
        file.rewind().map_err(unreadable)?;
        if !chain::can_begin(file).map_err(unreadable)? {
            return Err(Error::Foreign(path.to_owned()));
        }
        return Ok(Tail {
            torn_bytes: size,
            ..Tail::default()
        });
    };
    let before = last_break(file, end).map_err(unreadable)?;
    let start = before.map_or(0, |at| at + 1);
    if end - start >= LINE_LIMIT_BYTES {
        return Err(Error::Foreign(path.to_owned()));
    }
    file.seek(SeekFrom::Start(start)).map_err(unreadable)?;
    let mut line = Vec::new();
    let mut rest = Read::take(&mut *file, end - start);
    rest.read_to_end(&mut line).map_err(unreadable)?;
    let split = chain::split(&line).ok_or_else(|| Error::Foreign(path.to_owned()))?;
    Ok(Tail {
        last: Some(Position {
            seq: split.seq,
            mac: split.mac,
        }),
        is_ended: chain::is_event(&line, End::EVENT),
        whole_bytes: end + 1,
        torn_bytes: size - end - 1,
    })
}

/// Finds the last line end before a place. Only a piece of the file is in memory at a time.
fn last_break(file: &mut File, mut end: u64) -> io::Result<Option<u64>> {
    let mut piece = Vec::new();
    while end > 0 {
        let from = end.saturating_sub(PIECE_BYTES);
        file.seek(SeekFrom::Start(from))?;
        piece.clear();
        Read::take(&mut *file, end - from).read_to_end(&mut piece)?;
        if let Some(at) = memchr::memrchr(b'\n', &piece) {
            return Ok(Some(from + u64::try_from(at).unwrap_or(u64::MAX)));
        }
        end = from;
    }
    Ok(None)
}

/// A chain that is being written.
#[derive(Debug)]
pub(super) struct ChainFile {
    options: FileOptions,
    keys: Keys,
    position: Position,
    file: Locked,
    size: u64,
    /// The number of the first line of the current file.
    first: u64,
    /// The number of the oldest line that is kept.
    kept: u64,
    /// The number from which on files that are not kept may still be there.
    oldest: u64,
    /// The file was renamed, and the next one is not there yet.
    is_renamed: bool,
    /// The head could not be written the last time.
    is_head_late: bool,
    /// Held, and never looked at.
    _names: Locked,
}

impl ChainFile {
    /// Opens the file where the chain left off. Returns also the text that begins its next segment,
    /// which is not written yet.
    pub(super) fn open(options: FileOptions, keyring: &Keyring) -> Result<(Self, Vec<u8>), Error> {
        let keys = Keys::current(keyring).ok_or(Error::Keys)?;
        Self::open_with(options, keys, |id| Keys::of(keyring, id))
    }

    /// The same without a keyring: under these keys, and with those that `find` knows.
    pub(super) fn open_with(
        options: FileOptions,
        keys: Keys,
        find: impl Fn(KeyId) -> Option<Keys>,
    ) -> Result<(Self, Vec<u8>), Error> {
        let path = options.path.clone();
        let unusable = |source| Error::file(&path, source);
        fs::create_dir_all(folder(&path)).map_err(|source| Error::file(folder(&path), source))?;
        let names = lock_names(&path)?;
        let mut file = open_to_append(&path).map_err(|source| Error::locking(&path, source))?;
        let full = full_files(&path).map_err(|source| Error::file(folder(&path), source))?;
        let known = known(&path, find)?;
        let here = tail(&path, &mut file)?;
        // It is ours: only now anything is done to it.
        file.set_permissions(fs::Permissions::from_mode(0o600))
            .map_err(unusable)?;
        file.set_len(here.whole_bytes).map_err(unusable)?;
        let (mut last, mut is_ended) = (here.last, here.is_ended);
        if last.is_none()
            && let Some((first, path)) = full.last()
        {
            let there = full_tail(path, *first)?;
            (last, is_ended) = (there.last, there.is_ended);
        }
        let (position, why) = resume(&path, last, is_ended, known.as_ref());
        // A number that no line of this file can have names no file.
        let begun = here.last.map(|_| first_number(&path, &mut file));
        let begun = begun.transpose()?.flatten();
        let begun = begun.filter(|begun| *begun <= position.seq);
        let first = begun.unwrap_or(position.seq + 1);
        let lowest = full.first().map_or(first, |(lowest, _)| first.min(*lowest));
        let mut chain = Self {
            keys,
            position,
            size: here.whole_bytes,
            first,
            kept: known.as_ref().map_or(lowest, |head| head.first),
            oldest: known.as_ref().map_or(lowest, |head| head.oldest),
            file,
            options,
            is_renamed: false,
            is_head_late: false,
            _names: names,
        };
        if last.is_none() && known.is_none() {
            // A chain without a head is one whose head was taken away: it has one before a line.
            let first = chain.write_head(State::Open);
            first.map_err(|source| Error::file(&head_path(&path), source))?;
        }
        let mut text = Vec::new();
        chain.begin(&mut text, why, here.torn_bytes);
        Ok((chain, text))
    }

    /// Lets go of the file, and returns what opens it again.
    pub(super) fn into_parts(self) -> (FileOptions, Keys) {
        let Self { options, keys, .. } = self;
        (options, keys)
    }

    /// Makes the object that begins at `start` a line of the chain.
    pub(super) fn append(&mut self, lines: &mut Vec<u8>, start: usize) {
        self.position.append(&self.keys, lines, start);
    }

    /// Begins a segment.
    pub(super) fn begin(&mut self, lines: &mut Vec<u8>, why: &'static str, torn_bytes: u64) {
        let begin = Begin::new(&self.keys, &self.position, why, torn_bytes);
        self.object(lines, &begin);
    }

    /// Ends a segment.
    pub(super) fn end(&mut self, lines: &mut Vec<u8>, why: &'static str) {
        self.object(lines, &End::new(why));
    }

    fn object(&mut self, lines: &mut Vec<u8>, object: &impl Serialize) {
        let start = lines.len();
        if serde_json::to_writer(&mut *lines, object).is_ok() {
            self.append(lines, start);
        } else {
            // Neither has a key that is no text, which alone could fail.
            lines.truncate(start);
        }
    }

    /// Tells whether these are the keys of the segment.
    pub(super) fn is_under(&self, keys: &Keys) -> bool {
        self.keys.id == keys.id
    }

    /// Takes other keys, for the next segment.
    pub(super) fn rekey(&mut self, keys: Keys) {
        self.keys = keys;
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.size += u64::try_from(written).unwrap_or(u64::MAX);
        Ok(written)
    }

    /// Tells whether the file is full once so many bytes more are written.
    pub(super) fn is_full_with(&self, more: usize) -> bool {
        let more = u64::try_from(more).unwrap_or(u64::MAX);
        self.size.saturating_add(more) >= self.options.rotate_bytes
    }

    /// Puts the full file aside and begins another. After an error it goes on where it was.
    pub(super) fn turn_over(&mut self) -> io::Result<()> {
        let path = &self.options.path;
        if !self.is_renamed {
            self.file.sync_data()?;
            fs::rename(path, full_path(path, self.first))?;
            self.is_renamed = true;
        }
        let next = open_to_append(path)?;
        self.file = next;
        self.is_renamed = false;
        self.size = 0;
        self.first = self.position.seq + 1;
        Ok(())
    }

    /// Decides which full files are kept no longer. The next head says so, and then they go.
    ///
    /// Only what follows on each other from the oldest that is kept is counted: whatever else has
    /// such a name was put there by somebody, and must not drive out what is kept. Where one is
    /// missing, all stay.
    pub(super) fn retire(&mut self) {
        let (mut own, mut next) = (Vec::new(), self.kept);
        while next < self.first {
            let there = full_tail(&full_path(&self.options.path, next), next);
            match there.map(|there| there.last) {
                Ok(Some(last)) if last.seq >= next => {
                    own.push(next);
                    next = last.seq + 1;
                }
                Ok(_) => return tracing::error!(first = next, "a full audit file is damaged"),
                Err(error) => return tracing::error!(%error, "full audit files cannot be counted"),
            }
        }
        let extra = own.len().saturating_sub(self.options.keep);
        if extra > 0 {
            self.kept = own.get(extra).copied().unwrap_or(self.first);
        }
    }

    /// Deletes the files that the head says are not kept. What stays is tried again the next time,
    /// by the next start as well.
    fn prune(&mut self) {
        let full = match full_files(&self.options.path) {
            Ok(full) => full,
            Err(error) => return tracing::error!(%error, "old audit files cannot be looked for"),
        };
        let gone = self.oldest..self.kept;
        let mut oldest = self.kept;
        for (first, path) in full.iter().filter(|(first, _)| gone.contains(first)) {
            if matches!(full_tail(path, *first), Err(Error::Foreign(_))) {
                // Named like one of ours by somebody.
                continue;
            }
            if let Err(error) = fs::remove_file(path) {
                tracing::error!(path = %path.display(), %error, "an old audit file stays");
                oldest = oldest.min(*first);
            }
        }
        self.oldest = oldest;
    }

    /// Says beside the file how far the chain has come, and deletes what is kept no longer. All lines
    /// until here are written.
    pub(super) fn note_head(&mut self, state: State) {
        let noted = self.write_head(state);
        if let Err(error) = &noted
            && !self.is_head_late
        {
            tracing::error!(%error, "the head of the audit file cannot be written");
        }
        self.is_head_late = noted.is_err();
        // In this order: a kill in between must not look as if files had been taken away.
        if noted.is_ok() && self.oldest < self.kept {
            self.prune();
        }
    }

    fn write_head(&self, state: State) -> io::Result<()> {
        self.file.sync_data()?;
        let head = Head {
            key: self.keys.id,
            state,
            oldest: self.oldest,
            first: self.kept,
            last: self.position,
        };
        head.put(&self.options.path, &self.keys)
    }

    /// Tells the log where the chain ends: the one witness that does not lie beside it.
    pub(super) fn tell(&self) {
        let mac = data_encoding::HEXLOWER.encode(&self.position.mac);
        tracing::info!(seq = self.position.seq, mac, "audit file closed");
    }
}

/// Decides what the next line continues, and says why a segment begins.
fn resume(
    path: &Path,
    last: Option<Position>,
    is_ended: bool,
    head: Option<&Head>,
) -> (Position, &'static str) {
    let found = last.unwrap_or(Position::START);
    match head {
        // The chain goes on behind what is missing, so that the hole stays to be seen.
        Some(head) if head.last.seq > found.seq => {
            tracing::error!(
                file = %path.display(),
                last = found.seq,
                expected = head.last.seq,
                "lines at the end of the audit file are missing"
            );
            (head.last, "cut_off")
        }
        // And behind what stood there before, so that it fits nothing else.
        Some(head) if head.last.seq == found.seq && head.last != found => {
            tracing::error!(
                file = %path.display(),
                last = found.seq,
                "the audit file does not end in the line that its head names"
            );
            (head.last, "cut_off")
        }
        None if last.is_some() => {
            tracing::error!(file = %path.display(), "the head of the audit file is missing");
            (found, Begin::HEADLESS)
        }
        _ if last.is_none() => (found, "new"),
        _ if is_ended => (found, "started"),
        _ => (found, Begin::CRASHED),
    }
}

/// Reads the head of a chain; nothing where there is none.
fn known(path: &Path, find: impl Fn(KeyId) -> Option<Keys>) -> Result<Option<Head>, Error> {
    Head::find_with(path, find).map_err(|unread| match unread {
        Unread::Invalid => Error::Head(head_path(path)),
        Unread::Io(source) => Error::file(&head_path(path), source),
    })
}

/// Reads the last line of a full file: it has one, and its name is that of its first.
fn full_tail(path: &Path, first: u64) -> Result<Tail, Error> {
    let mut file = open_own(path).map_err(|source| Error::file(path, source))?;
    let there = tail(path, &mut file)?;
    let begun = first_number(path, &mut file)?;
    if there.last.is_none() || begun != Some(first) {
        return Err(Error::Foreign(path.to_owned()));
    }
    Ok(there)
}

/// Reads the number of the first line of a file.
fn first_number(path: &Path, file: &mut File) -> Result<Option<u64>, Error> {
    let unreadable = |source| Error::file(path, source);
    file.rewind().map_err(unreadable)?;
    chain::first_number(file).map_err(unreadable)
}
