//! The file of the chain: opened where the last run left off, turned over by size, and its head.
//!
//! Whole lines are never touched again; a half line that a kill left behind is cut off and its
//! length is told. Beside the file lie those that were full, named by their first number, the head
//! that says how far the chain had come, and a lock: a chain has one writer. Called by the sink.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::Error;
use crate::audit::chain::{self, Begin, End, Keys, Position};
use crate::audit::line::Stamp;
use crate::seal::{KeyId, Keyring};

/// How many digits the first number of a full file has in its name.
const NAME_DIGITS: usize = 20;
/// How much of a file's end is read at first to find its last line.
const TAIL_BYTES: u64 = 64 * 1024;

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

/// Whether lines may follow the last one that a head names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    /// Nothing more was written: the server had ended in order.
    Closed,
    /// A server writes, or was killed.
    Open,
}

/// Says how far the chain had come when it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) key: KeyId,
    pub(super) state: State,
    /// The number of the oldest line that is kept.
    pub(super) first: u64,
    pub(super) last: Position,
}

#[derive(Serialize)]
struct WrittenHead {
    event: &'static str,
    time: Stamp,
    key: String,
    state: State,
    first: u64,
    last: u64,
    last_mac: String,
}

#[derive(Deserialize)]
struct ReadHead {
    key: String,
    state: State,
    first: u64,
    last: u64,
    last_mac: String,
}

impl Head {
    fn write(&self, keys: &Keys) -> io::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(&WrittenHead {
            event: "audit_head",
            time: Stamp(SystemTime::now()),
            key: self.key.to_string(),
            state: self.state,
            first: self.first,
            last: self.last.seq,
            last_mac: data_encoding::HEXLOWER.encode(&self.last.mac),
        })?;
        line.pop();
        let mac = keys.head(&line);
        chain::close(&mut line, &mac);
        line.push(b'\n');
        Ok(line)
    }

    /// Reads a head. Nothing where it is none, or was made under another key.
    pub(super) fn read(text: &[u8], keyring: &Keyring) -> Option<Self> {
        let line = text.strip_suffix(b"\n")?;
        let (body, mac) = chain::split_mac(line)?;
        let read: ReadHead = serde_json::from_slice(line).ok()?;
        let key = KeyId::parse(&read.key)?;
        let keys = Keys::of(keyring, key)?;
        (keys.head(body) == mac).then_some(Self {
            key,
            state: read.state,
            first: read.first,
            last: Position {
                seq: read.last,
                mac: chain::parse(read.last_mac.as_bytes())?,
            },
        })
    }
}

/// Returns where the head of a file's chain is.
pub(super) fn head_path(path: &Path) -> PathBuf {
    beside(path, ".head")
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push(suffix);
    text.into()
}

/// Finds the full files of a chain, the oldest first, with their first numbers.
pub(super) fn full_files(path: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut prefix = path.file_name().unwrap_or_default().to_owned();
    prefix.push(".");
    let mut found = Vec::new();
    for entry in fs::read_dir(folder(path))? {
        let entry = entry?;
        if let Some(first) = first_of(&entry.file_name(), &prefix) {
            found.push((first, entry.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn first_of(name: &OsStr, prefix: &OsString) -> Option<u64> {
    let digits = name.to_str()?.strip_prefix(prefix.to_str()?)?;
    let is_number = digits.len() == NAME_DIGITS && digits.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| digits.parse().ok())?
}

fn folder(path: &Path) -> &Path {
    let parent = path.parent().filter(|it| !it.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
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

/// Reads the last line of a file.
fn tail(path: &Path, file: &mut File) -> Result<Tail, Error> {
    let unreadable = |source| Error::file(path, source);
    let size = file.seek(SeekFrom::End(0)).map_err(unreadable)?;
    let mut take = TAIL_BYTES;
    loop {
        let from = size.saturating_sub(take);
        file.seek(SeekFrom::Start(from)).map_err(unreadable)?;
        let mut end = Vec::new();
        let mut rest = Read::take(&mut *file, size - from);
        rest.read_to_end(&mut end).map_err(unreadable)?;
        let whole = end.iter().rposition(|byte| *byte == b'\n');
        let lines = whole.and_then(|at| end.get(..at)).unwrap_or_default();
        let before = lines.iter().rposition(|byte| *byte == b'\n');
        if from > 0 && before.is_none() {
            take = take.saturating_mul(2);
            continue;
        }
        let Some(whole) = whole else {
            return Ok(Tail {
                torn_bytes: size,
                ..Tail::default()
            });
        };
        let line = lines.get(before.map_or(0, |at| at + 1)..);
        let line = line.unwrap_or_default();
        let split = chain::split(line).ok_or_else(|| Error::Foreign(path.to_owned()))?;
        let whole_bytes = from + u64::try_from(whole).unwrap_or(u64::MAX) + 1;
        return Ok(Tail {
            last: Some(Position {
                seq: split.seq,
                mac: split.mac,
            }),
            is_ended: line.starts_with(format!("{{\"event\":\"{}\"", End::EVENT).as_bytes()),
            whole_bytes,
            torn_bytes: size - whole_bytes,
        });
    }
}

/// A chain that is being written.
#[derive(Debug)]
pub(super) struct ChainFile {
    options: FileOptions,
    keys: Keys,
    position: Position,
    file: File,
    size: u64,
    /// The number of the first line of the current file, and of the oldest one that is kept.
    first: u64,
    kept: u64,
    /// The file was renamed, and the next one is not there yet.
    is_renamed: bool,
    /// The head could not be written the last time.
    is_head_late: bool,
    _lock: File,
}

impl ChainFile {
    /// Opens the file where the chain left off. Returns also the text that begins its next segment,
    /// which is not written yet.
    pub(super) fn open(options: FileOptions, keyring: &Keyring) -> Result<(Self, Vec<u8>), Error> {
        let path = options.path.clone();
        let keys = Keys::current(keyring).ok_or(Error::Keys)?;
        fs::create_dir_all(folder(&path)).map_err(|source| Error::file(folder(&path), source))?;
        let lock = lock(&path)?;
        let mut file = open(&path).map_err(|source| Error::file(&path, source))?;
        let meta = file
            .metadata()
            .map_err(|source| Error::file(&path, source))?;
        if !meta.is_file() {
            return Err(Error::Foreign(path));
        }
        file.set_permissions(fs::Permissions::from_mode(0o600))
            .map_err(|source| Error::file(&path, source))?;
        let full = full_files(&path).map_err(|source| Error::file(folder(&path), source))?;
        let here = tail(&path, &mut file)?;
        file.set_len(here.whole_bytes)
            .map_err(|source| Error::file(&path, source))?;
        let mut last = here.last;
        let mut is_ended = here.is_ended;
        if last.is_none()
            && let Some((_, path)) = full.last()
        {
            let mut file = File::open(path).map_err(|source| Error::file(path, source))?;
            let there = tail(path, &mut file)?;
            (last, is_ended) = (there.last, there.is_ended);
        }
        let known = head(&path, keyring)?;
        let (position, why) = resume(&path, last, is_ended, known.as_ref());
        let first = position.seq + 1;
        let oldest = full.first().map(|(first, _)| *first);
        let begun = here
            .last
            .map(|_| first_number(&path, &mut file))
            .transpose()?;
        let first = begun.flatten().unwrap_or(first);
        let mut chain = Self {
            keys,
            position,
            size: here.whole_bytes,
            first,
            kept: known.map_or_else(|| oldest.unwrap_or(first), |head| head.first),
            file,
            options,
            is_renamed: false,
            is_head_late: false,
            _lock: lock,
        };
        let mut text = Vec::new();
        chain.begin(&mut text, why, here.torn_bytes);
        Ok((chain, text))
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
            let aside = beside(path, &format!(".{:0NAME_DIGITS$}", self.first));
            fs::rename(path, aside)?;
            self.is_renamed = true;
        }
        self.file = open(path)?;
        self.is_renamed = false;
        self.size = 0;
        self.first = self.position.seq + 1;
        Ok(())
    }

    /// Deletes the oldest files beyond those that are kept.
    pub(super) fn prune(&mut self) {
        let pruned = full_files(&self.options.path).and_then(|full| {
            let extra = full.len().saturating_sub(self.options.keep);
            for (_, path) in full.iter().take(extra) {
                fs::remove_file(path)?;
            }
            if extra > 0 {
                self.kept = full.get(extra).map_or(self.first, |(first, _)| *first);
            }
            Ok(())
        });
        if let Err(error) = pruned {
            tracing::error!(%error, "old audit files cannot be deleted");
        }
    }

    /// Says beside the file how far the chain has come. All lines until here are written.
    pub(super) fn note_head(&mut self, state: State) {
        let noted = self.write_head(state);
        if let Err(error) = &noted
            && !self.is_head_late
        {
            tracing::error!(%error, "the head of the audit file cannot be written");
        }
        self.is_head_late = noted.is_err();
    }

    fn write_head(&self, state: State) -> io::Result<()> {
        self.file.sync_data()?;
        let head = Head {
            key: self.keys.id,
            state,
            first: self.kept,
            last: self.position,
        };
        let path = head_path(&self.options.path);
        let fresh = beside(&path, ".new");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&fresh)?;
        file.write_all(&head.write(&self.keys)?)?;
        file.sync_data()?;
        fs::rename(fresh, path)?;
        File::open(folder(&self.options.path))?.sync_all()
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
        None if last.is_some() => {
            tracing::error!(file = %path.display(), "the head of the audit file is missing");
            (found, "headless")
        }
        None => (found, "new"),
        Some(_) if is_ended => (found, "started"),
        Some(_) => (found, "crashed"),
    }
}

/// Reads the head of a chain; nothing where there is none that these keys have made.
fn head(path: &Path, keyring: &Keyring) -> Result<Option<Head>, Error> {
    let head = head_path(path);
    match fs::read(&head) {
        Ok(text) => Ok(Head::read(&text, keyring)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::file(&head, source)),
    }
}

/// Reads the number of the first line of a file.
fn first_number(path: &Path, file: &mut File) -> Result<Option<u64>, Error> {
    let unreadable = |source| Error::file(path, source);
    file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    let mut start = Vec::new();
    let mut rest = Read::take(&mut *file, TAIL_BYTES);
    rest.read_to_end(&mut start).map_err(unreadable)?;
    let line = start.split(|byte| *byte == b'\n').next();
    Ok(line.and_then(chain::split).map(|split| split.seq))
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600);
    options.open(path)
}

/// Keeps other writers away for as long as the file is open.
fn lock(path: &Path) -> Result<File, Error> {
    let path = beside(path, ".lock");
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(false).mode(0o600);
    let file = options
        .open(&path)
        .map_err(|source| Error::file(&path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::InUse(path)),
        Err(TryLockError::Error(source)) => Err(Error::file(&path, source)),
    }
}
