//! The file of sealing keys while a key is added: locked, replaced whole, and its owner's still.
//!
//! The file may be a link, and may belong to the user of the service while root rotates: what is
//! replaced is what the link leads to, and owner and mode stay. It must never lose a key, and never
//! become what a server would not read. Called by `seal rotate --new-key`.

use std::fs::{File, Metadata, OpenOptions, canonicalize, metadata, remove_file, rename};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use zeroize::Zeroizing;

use crate::config::SEAL_KEYS_LIMIT_BYTES;
use crate::id::fill_random;
use crate::seal::{self, Keyring};
use crate::secret::Secret;

/// Says why no key was added.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Another process adds a key just now.
    #[error("another `seal rotate --new-key` is at work in {0}: try again when it is done")]
    Busy(PathBuf),
    /// The file or its folder cannot be found, locked or written.
    #[error("{path} cannot be used")]
    File {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There are too many keys.
    #[error(
        "{0} would hold more than {SEAL_KEYS_LIMIT_BYTES} bytes: take out the keys that \
         `seal rotate` calls unneeded"
    )]
    Full(PathBuf),
    /// With one more key the file would not be read again.
    #[error("{path} would hold no sealing keys")]
    NoKeys {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: seal::Error,
    },
}

/// A file of sealing keys that no other process adds a key to.
#[derive(Debug)]
pub(super) struct KeyFile {
    /// Where the keys are, links resolved.
    path: PathBuf,
    /// The folder of the file, which is locked: the file itself is replaced by another.
    folder: File,
}

impl KeyFile {
    /// Locks a file that is there, until the value is dropped or the process ends.
    pub(super) fn lock(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::File {
            path: path.to_owned(),
            source,
        };
        let path = canonicalize(path).map_err(failed)?;
        let place = path.parent().unwrap_or(Path::new("/"));
        let folder = File::open(place).map_err(failed)?;
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path, folder }),
            Err(Errno::WOULDBLOCK) => Err(Error::Busy(place.to_owned())),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Puts a fresh key on top of the text that the file holds.
    pub(super) fn add_key(&self, before: &Secret) -> Result<(), Error> {
        let fresh = Keyring::fresh_key();
        let mut text = Zeroizing::new(Vec::with_capacity(fresh.len() + 1 + before.len()));
        text.extend_from_slice(fresh.as_bytes());
        text.push(b'\n');
        text.extend_from_slice(before.expose());
        if u64::try_from(text.len()).is_ok_and(|length| length > SEAL_KEYS_LIMIT_BYTES) {
            return Err(Error::Full(self.path.clone()));
        }
        Keyring::parse(&text).map_err(|source| Error::NoKeys {
            path: self.path.clone(),
            source,
        })?;
        self.replace(&text).map_err(|source| Error::File {
            path: self.path.clone(),
            source,
        })
    }

    /// Replaces the file: whole or not at all, and for good.
    fn replace(&self, content: &[u8]) -> io::Result<()> {
        let before = metadata(&self.path)?;
        let mut bytes = [0; 8];
        fill_random(&mut bytes);
        let mut fresh = self.path.as_os_str().to_owned();
        fresh.push(format!(".{}.new", HEXLOWER.encode(&bytes)));
        let fresh = PathBuf::from(fresh);
        let written = write_as(&fresh, &before, content);
        if let Err(error) = written.and_then(|()| rename(&fresh, &self.path)) {
            // Not there where it could not be made.
            drop(remove_file(&fresh));
            return Err(error);
        }
        self.folder.sync_all()
    }
}

/// Writes a file that was not there before, with the owner and the mode of another.
fn write_as(path: &Path, like: &Metadata, content: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create_new(true).mode(0o600);
    let mut file = options.open(path)?;
    let own = file.metadata()?;
    if (own.uid(), own.gid()) != (like.uid(), like.gid()) {
        fchown(&file, Some(like.uid()), Some(like.gid()))?;
    }
    file.set_permissions(like.permissions())?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::config::{Flags, Source};

    const KEY: &str = "1111111111111111111111111111111111111111111111111111111111111111\n";

    /// Makes `real/keys` with a text and, beside its folder, a link to it.
    fn place(text: &str) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().join("real");
        fs::create_dir(&real).unwrap();
        let (file, link) = (real.join("keys"), folder.path().join("link"));
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        symlink("real/keys", &link).unwrap();
        (folder, file, link)
    }

    fn read(path: &Path) -> Result<Secret, String> {
        Source::process(Flags::default()).read_seal_keys(path)
    }

    fn names(file: &Path) -> Vec<OsString> {
        let entries = fs::read_dir(file.parent().unwrap()).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn one_at_a_time_may_add_a_key() {
        let (_folder, file, link) = place(KEY);
        let first = KeyFile::lock(&file).unwrap();
        for path in [&file, &link] {
            let second = KeyFile::lock(path);
            assert!(matches!(second, Err(Error::Busy(_))), "{second:?}");
        }
        first.add_key(&read(&file).unwrap()).unwrap();
        // What was locked is not the file that was replaced.
        let second = KeyFile::lock(&file);
        assert!(matches!(second, Err(Error::Busy(_))), "{second:?}");
        drop(first);
        KeyFile::lock(&link).unwrap();
        let missing = KeyFile::lock(&file.with_extension("none"));
        assert!(matches!(missing, Err(Error::File { .. })), "{missing:?}");
    }

    #[test]
    fn the_file_keeps_its_link_its_owner_and_its_mode() {
        let (_folder, file, link) = place(KEY);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o400)).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&file, Some(1234), Some(1235)).unwrap();
        }
        let about = |path: &Path| {
            let about = metadata(path).unwrap();
            (about.uid(), about.gid(), about.mode() & 0o777)
        };
        let before = about(&file);
        let locked = KeyFile::lock(&link).unwrap();
        locked.add_key(&read(&link).unwrap()).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(about(&file), before);
        let after = fs::read_to_string(&file).unwrap();
        assert!(after.ends_with(KEY) && after.lines().count() == 2);
        assert_eq!(names(&file), ["keys"]);
    }

    #[test]
    fn what_would_not_be_read_again_is_refused_and_leaves_nothing() {
        let limit = usize::try_from(SEAL_KEYS_LIMIT_BYTES).unwrap();
        let longest = format!("{KEY}#{}", "x".repeat(limit - 2 * KEY.len() - 1));
        let (_folder, file, _link) = place(&longest);
        let locked = KeyFile::lock(&file).unwrap();
        locked.add_key(&read(&file).unwrap()).unwrap();
        let full = read(&file).unwrap();
        assert_eq!(full.len(), limit);
        let refused = locked.add_key(&full);
        assert!(matches!(refused, Err(Error::Full(_))), "{refused:?}");
        let twice = Secret::new(format!("{KEY}{KEY}").into_bytes());
        let refused = locked.add_key(&twice);
        assert!(matches!(refused, Err(Error::NoKeys { .. })), "{refused:?}");
        assert_eq!(read(&file).unwrap().expose(), full.expose());
        // A folder cannot be replaced by a file: this fails when the new one is there already.
        remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        let refused = locked.add_key(&Secret::new(KEY.into()));
        assert!(matches!(refused, Err(Error::File { .. })), "{refused:?}");
        assert_eq!(names(&file), ["keys"]);
    }

    #[test]
    fn many_rotations_fit() {
        let (_folder, file, _link) = place(KEY);
        let locked = KeyFile::lock(&file).unwrap();
        for _ in 0..200 {
            locked.add_key(&read(&file).unwrap()).unwrap();
        }
        let text = read(&file).unwrap();
        assert_eq!(Keyring::parse(text.expose()).unwrap().ids().count(), 201);
    }
}
