//! Verification: reads a chain back, and says what was changed, removed, moved or cut off.
//!
//! Nothing is written and nothing is mended. What is wrong is told by file and line, never with the
//! line itself. A server may write while this reads. Called by `audit verify`.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::audit::chain::{
    self, Begin, End, GAP, Keys, LINE_LIMIT_BYTES, NOTHING, Position, Split, is_event,
};
use crate::audit::head::{Head, State};
use crate::audit::place::{full_files, open_own, open_to_read};
use crate::seal::{KeyId, Keyring};

/// What was found in a chain that is whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The files that were read.
    pub files: usize,
    /// The lines that were read.
    pub lines: u64,
    /// The number of the first line; it is more than 1 where older files were deleted.
    pub first: u64,
    /// The number of the last line.
    pub last: u64,
    /// The chain was ended in order, and nothing can have been cut off.
    pub closed: bool,
    /// The number up to which nothing can have been cut off: the last head says that it was there.
    pub certain: u64,
    /// Bytes behind the last whole line: a server writes in this moment, or was killed.
    pub torn_bytes: u64,
    /// The starts that found a chain which no server had ended.
    pub crashes: u64,
    /// The records that gap lines say were lost.
    pub lost: u64,
}

/// What is wrong with a chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// The line, or one before it, was changed.
    #[error("the line was changed, or another one was put in its place")]
    Changed,
    /// Lines that a head or a full file says were there are missing at the end.
    #[error("lines {0} to {1} were cut off")]
    CutOff(u64, u64),
    /// A full file has no line at all.
    #[error("a file that was full is empty")]
    Empty,
    /// A file ends in half a line, and others follow it.
    #[error("the file ends in half a line")]
    HalfLine,
    /// The head is missing, or was changed, or made under a key that is not in the keyring.
    #[error("the head is missing or was changed: nobody can say whether lines were cut off")]
    Head,
    /// A start found lines and no head: what stood behind them may have been cut off.
    #[error(
        "the server found no head at this start: nobody can say whether lines before were cut off"
    )]
    Headless,
    /// It is no line of an audit file.
    #[error("this is no line of an audit file")]
    NoLine,
    /// A segment has no first line.
    #[error("a segment begins here without its first line")]
    NoSegment,
    /// A number does not follow the one before.
    #[error("line {found} follows here where {expected} should: lines were removed or moved")]
    Number {
        /// The number that comes next.
        expected: u64,
        /// The number that is there.
        found: u64,
    },
    /// Full files that were kept are missing.
    #[error("lines {0} to {1} are missing: files were removed")]
    Removed(u64, u64),
    /// The segment's key is not in the keyring.
    #[error("the segment was made under the key {0}, which is not in the keyring")]
    UnknownKey(KeyId),
}

/// Says where a chain is wrong, or what could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A file cannot be read.
    #[error("{0} cannot be read")]
    Unreadable(PathBuf, #[source] io::Error),
    /// A line is wrong; lines are counted from one.
    #[error("{path}:{line}: {wrong}", path = path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line in it.
        line: u64,
        /// What is wrong.
        wrong: Wrong,
    },
    /// The chain as a whole is wrong.
    #[error("{path}: {wrong}", path = path.display())]
    Chain {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        wrong: Wrong,
    },
}

/// Verifies the chain of a file: the full files beside it, the file itself and its head.
///
/// # Errors
/// The first [`Fault`].
pub fn verify(path: &Path, keyring: &Keyring) -> Result<Report, Fault> {
    // A server may turn over a file in between: what is wrong then is right the next time.
    verify_once(path, keyring).or_else(|_fault| verify_once(path, keyring))
}

fn verify_once(path: &Path, keyring: &Keyring) -> Result<Report, Fault> {
    let unreadable = |source| Fault::Unreadable(path.to_owned(), source);
    // The head first: lines that are written meanwhile come after it.
    let head = Head::find(path, keyring).ok().flatten();
    let current = open_to_read(path).map_err(unreadable)?;
    let inode = current.metadata().map_err(unreadable)?.ino();
    let mut walk = Walk::new(keyring, head.as_ref().map(|head| head.last.seq));
    for (first, full) in full_files(path).map_err(unreadable)? {
        if head.as_ref().is_some_and(|head| first < head.first) {
            // It is being deleted, or would have been but for a kill.
            continue;
        }
        let opened = open_own(&full).map_err(|source| Fault::Unreadable(full.clone(), source))?;
        let meta = opened.metadata();
        if meta.is_ok_and(|meta| meta.ino() == inode) {
            // It was put aside while this looked.
            continue;
        }
        if walk.file(&full, opened)? == 0 {
            let wrong = Wrong::Empty;
            return Err(Fault::Chain { path: full, wrong });
        }
    }
    walk.file(path, current)?;
    let wrong = |wrong| Fault::Chain {
        path: path.to_owned(),
        wrong,
    };
    let head = head.ok_or_else(|| wrong(Wrong::Head))?;
    walk.against(&head).map_err(wrong)?;
    walk.end()
}

/// Verifies files on their own, in the order of their numbers, and that each continues the one
/// before. Nobody can say what was cut off at their end, or stood before them.
///
/// # Errors
/// The first [`Fault`].
pub fn verify_files(paths: &[PathBuf], keyring: &Keyring) -> Result<Report, Fault> {
    let mut files = Vec::with_capacity(paths.len());
    for path in paths {
        let unreadable = |source| Fault::Unreadable(path.clone(), source);
        let mut file = open_to_read(path).map_err(unreadable)?;
        let first = chain::first_number(&mut file).map_err(unreadable)?;
        files.push((first.unwrap_or(0), path));
    }
    files.sort();
    let mut walk = Walk::new(keyring, None);
    for (_, path) in files {
        let opened =
            open_to_read(path).map_err(|source| Fault::Unreadable(path.clone(), source))?;
        walk.file(path, opened)?;
    }
    walk.end()
}

/// What is read of the lines that tell of the chain itself.
#[derive(Deserialize)]
struct Member {
    event: String,
    #[serde(default)]
    key: String,
    #[serde(default)]
    why: String,
    #[serde(default)]
    before: String,
    #[serde(default)]
    lost: u64,
}

/// A walk along a chain.
struct Walk<'a> {
    keyring: &'a Keyring,
    keys: Option<Keys>,
    last: Option<Position>,
    /// The line that the head names, once it was passed.
    named: Option<u64>,
    passed: Option<Position>,
    /// The first line that a start made which found no head.
    headless: Option<Fault>,
    report: Report,
}

impl<'a> Walk<'a> {
    fn new(keyring: &'a Keyring, named: Option<u64>) -> Self {
        Self {
            keyring,
            keys: None,
            last: None,
            named,
            // The first head of all names what is before the first line.
            passed: (named == Some(0)).then_some(Position::START),
            headless: None,
            report: Report::default(),
        }
    }

    /// Walks along one file. Returns how many whole lines it has.
    fn file(&mut self, path: &Path, file: File) -> Result<u64, Fault> {
        let mut reader = BufReader::new(file);
        let mut text = Vec::new();
        let mut whole = 0;
        let fault = |line, wrong| Fault::Line {
            path: path.to_owned(),
            line,
            wrong,
        };
        let unreadable = |source| Fault::Unreadable(path.to_owned(), source);
        if self.report.torn_bytes > 0 {
            return Err(fault(1, Wrong::HalfLine));
        }
        // Every file begins a segment of its own.
        self.keys = None;
        self.report.files += 1;
        loop {
            text.clear();
            let mut limited = io::Read::take(&mut reader, LINE_LIMIT_BYTES);
            limited.read_until(b'\n', &mut text).map_err(unreadable)?;
            let Some(line) = text.strip_suffix(b"\n") else {
                let mut torn = u64::try_from(text.len()).unwrap_or(u64::MAX);
                if torn == LINE_LIMIT_BYTES {
                    // Only what no line end follows is half a line, however long.
                    let (more, has_end) = skip_line(&mut reader).map_err(unreadable)?;
                    if has_end {
                        return Err(fault(whole + 1, Wrong::NoLine));
                    }
                    torn = torn.saturating_add(more);
                }
                self.report.torn_bytes = torn;
                return Ok(whole);
            };
            whole += 1;
            let is_headless = self.line(line).map_err(|wrong| fault(whole, wrong))?;
            if is_headless && self.headless.is_none() {
                self.headless = Some(fault(whole, Wrong::Headless));
            }
        }
    }

    /// Takes one line. Tells whether a start made it that found lines and no head.
    fn line(&mut self, line: &[u8]) -> Result<bool, Wrong> {
        let split = chain::split(line).ok_or(Wrong::NoLine)?;
        // Only lines of the chain itself are looked into.
        let begins = is_event(line, Begin::EVENT);
        let own = begins || is_event(line, End::EVENT) || is_event(line, GAP);
        let member: Option<Member> = own
            .then(|| serde_json::from_slice(line).map_err(|_json| Wrong::NoLine))
            .transpose()?;
        if let Some(last) = self.last
            && split.seq != last.seq.saturating_add(1)
        {
            return Err(Wrong::Number {
                expected: last.seq.saturating_add(1),
                found: split.seq,
            });
        }
        let before = match (&member, begins) {
            (Some(member), true) => self.begin(member, &split)?,
            _ => self.last.map_or(NOTHING, |last| last.mac),
        };
        let keys = self.keys.as_ref().ok_or(Wrong::NoSegment)?;
        if keys.line(&before, split.body) != split.mac {
            return Err(Wrong::Changed);
        }
        let is_headless = member.as_ref().is_some_and(|member| self.count(member));
        let position = Position {
            seq: split.seq,
            mac: split.mac,
        };
        if self.last.is_none() {
            self.report.first = split.seq;
        }
        if self.named == Some(split.seq) {
            self.passed = Some(position);
        }
        self.last = Some(position);
        self.report.last = split.seq;
        self.report.lines += 1;
        Ok(is_headless)
    }

    /// Takes the keys of a segment that begins, and returns the code that it continues.
    fn begin(&mut self, member: &Member, split: &Split<'_>) -> Result<chain::Mac, Wrong> {
        let id = KeyId::parse(&member.key).ok_or(Wrong::NoLine)?;
        let keys = Keys::of(self.keyring, id).ok_or(Wrong::UnknownKey(id))?;
        let before = chain::parse(member.before.as_bytes()).ok_or(Wrong::NoLine)?;
        let is_continued = self.last.is_none_or(|last| last.mac == before);
        if !is_continued || (split.seq == 1 && before != NOTHING) {
            return Err(Wrong::Changed);
        }
        self.keys = Some(keys);
        Ok(before)
    }

    /// Takes note of what a line says that was verified. Tells whether it is of a start that found
    /// lines and no head.
    fn count(&mut self, member: &Member) -> bool {
        match member.event.as_str() {
            Begin::EVENT => {
                self.report.crashes += u64::from(member.why == Begin::CRASHED);
                return member.why == Begin::HEADLESS;
            }
            // The next line begins a segment, or nothing follows.
            End::EVENT => self.keys = None,
            _ => self.report.lost = self.report.lost.saturating_add(member.lost),
        }
        false
    }

    /// Compares what was walked with what the head says.
    fn against(&mut self, head: &Head) -> Result<(), Wrong> {
        let last = self.report.last;
        if head.last.seq > last {
            return Err(Wrong::CutOff(last + 1, head.last.seq));
        }
        if self.report.first > head.first {
            return Err(Wrong::Removed(head.first, self.report.first - 1));
        }
        if self.passed != Some(head.last) {
            return Err(Wrong::Changed);
        }
        self.report.certain = head.last.seq;
        self.report.closed =
            head.state == State::Closed && head.last.seq == last && self.report.torn_bytes == 0;
        Ok(())
    }

    /// Ends the walk along a chain in which nothing else is wrong: the heads since then say nothing
    /// of what stood before a start that had none to go by.
    fn end(self) -> Result<Report, Fault> {
        self.headless.map_or(Ok(self.report), Err)
    }
}

/// Reads up to a line end, and over it. Returns how many bytes stood before it, and whether there
/// was one; nothing is kept.
fn skip_line(reader: &mut impl BufRead) -> io::Result<(u64, bool)> {
    let mut passed = 0_u64;
    loop {
        let piece = reader.fill_buf()?;
        let end = memchr::memchr(b'\n', piece);
        let length = end.unwrap_or(piece.len());
        passed = passed.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        if piece.is_empty() || end.is_some() {
            return Ok((passed, end.is_some()));
        }
        reader.consume(length);
    }
}
