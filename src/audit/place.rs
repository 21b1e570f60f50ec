//! Where the files of a chain lie, and how each is opened and locked.
//!
//! Whoever can write to the folder could put links, pipes and names of their own there: nothing is
//! opened through a link, nothing but a file is read, and a name alone proves nothing. Called by
//! the file sink and by `audit verify`.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::Error;

/// How many digits the first number of a full file has in its name.
const NAME_DIGITS: usize = 20;

/// A file that other writers are kept away from until this is dropped.
///
/// It is unlocked then, and not only closed: a program that is being started has copies of all files
/// for a moment.
#[derive(Debug)]
pub(super) struct Locked(File);

impl Deref for Locked {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl DerefMut for Locked {
    fn deref_mut(&mut self) -> &mut File {
        &mut self.0
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::debug!(%error, "an audit file could not be unlocked");
        }
    }
}

/// Returns where the head of a file's chain is.
pub(super) fn head_path(path: &Path) -> PathBuf {
    beside(path, ".head")
}

/// Returns where a file is put aside that begins with a number.
pub(super) fn full_path(path: &Path, first: u64) -> PathBuf {
    beside(path, &format!(".{first:0NAME_DIGITS$}"))
}

/// Returns a path whose name goes on with a suffix.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push(suffix);
    text.into()
}

/// Returns the folder of a file.
pub(super) fn folder(path: &Path) -> &Path {
    let parent = path.parent().filter(|it| !it.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// Finds what is named like a full file of a chain, the lowest number first.
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

/// Opens a file to be read, the way a reader's tools would; a pipe is waited for by nobody.
pub(super) fn open_to_read(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    regular(
        options.read(true).custom_flags(flags(OFlags::NONBLOCK)),
        path,
    )
}

/// Opens a file of ours to be read: never through a link.
pub(super) fn open_own(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let unlinked = OFlags::NONBLOCK | OFlags::NOFOLLOW;
    regular(options.read(true).custom_flags(flags(unlinked)), path)
}

/// Opens the file that is written to, and keeps other writers away from it, whatever its name.
/// Fails with [`io::ErrorKind::WouldBlock`] where another one has it.
pub(super) fn open_to_append(path: &Path) -> io::Result<Locked> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true);
    lock(options, path)
}

/// Keeps other writers away from the names of a chain for as long as the file is open.
pub(super) fn lock_names(path: &Path) -> Result<Locked, Error> {
    let path = beside(path, ".lock");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    lock(options, &path).map_err(|source| Error::locking(&path, source))
}

/// Opens and locks a file. The name has to stand for it still: whoever waits for another writer's
/// end could find a file that was put aside meanwhile.
fn lock(mut options: OpenOptions, path: &Path) -> io::Result<Locked> {
    let unlinked = OFlags::NONBLOCK | OFlags::NOFOLLOW;
    options.mode(0o600).custom_flags(flags(unlinked));
    let file = regular(&options, path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::WouldBlock.into()),
        Err(TryLockError::Error(source)) => return Err(source),
    }
    let file = Locked(file);
    let (ours, named) = (file.metadata()?, fs::symlink_metadata(path)?);
    if (ours.dev(), ours.ino()) != (named.dev(), named.ino()) {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    Ok(file)
}

fn regular(options: &OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is no regular file",
        ));
    }
    Ok(file)
}

/// Returns flags as the system's own number for them.
fn flags(flags: OFlags) -> i32 {
    flags.bits().cast_signed()
}
