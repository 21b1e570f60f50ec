//! The root's two files: read with their permissions checked, written whole or not at all.
//!
//! A key file is never readable by others, not even for a moment, and never overwritten. What a
//! crash leaves behind is either completed or begun anew at the next start. Called by `root` only.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::authority::Error;

/// The most bytes read of a PEM file; a real one has a few thousand.
const FILE_LIMIT_BYTES: u64 = 64 * 1024;
/// The mode bits that let others than the owner at a file.
const OTHERS: u32 = 0o077;

const KEY_MODE: u32 = 0o600;
const CERT_MODE: u32 = 0o644;
const FOLDER_MODE: u32 = 0o700;

/// Says who may read a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Only its owner.
    Private,
    /// Anyone.
    Public,
}

/// Reads a PEM file, into memory that is overwritten afterwards. The mode is asked of the open
/// file, so that no other file can take its place in between.
pub(super) fn read(path: &Path, access: Access) -> Result<Zeroizing<Vec<u8>>, Error> {
    let failed = |source| Error::File {
        action: "read",
        path: path.to_path_buf(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode();
    if access == Access::Private && mode & OTHERS != 0 {
        return Err(Error::KeyFileMode {
            path: path.to_path_buf(),
            mode: mode & 0o777,
        });
    }
    // All of it reserved: a vector that grows leaves copies of a key behind.
    let limit = usize::try_from(FILE_LIMIT_BYTES).unwrap_or(usize::MAX);
    let mut content = Zeroizing::new(Vec::with_capacity(limit.saturating_add(1)));
    file.take(FILE_LIMIT_BYTES + 1)
        .read_to_end(&mut content)
        .map_err(failed)?;
    if content.len() > limit {
        return Err(failed(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "over 64 KiB, which no PEM file of one certificate or key is",
        )));
    }
    Ok(content)
}

/// What a folder holds of a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Neither file.
    Absent,
    /// The certificate, and no key.
    CertificateOnly,
    /// The key, and a certificate that a crash kept from its place.
    Interrupted,
    /// The key, and no certificate.
    KeyOnly,
    /// Both files.
    Whole,
}

/// The two files of one folder, held under a lock until dropped.
pub(super) struct Pair {
    /// The certificate's path.
    pub(super) cert: PathBuf,
    /// The key's path.
    pub(super) key: PathBuf,
    new_cert: PathBuf,
    new_key: PathBuf,
    folder: PathBuf,
    handle: File,
}

impl Pair {
    /// Makes the folder where it is missing (0700), and waits for other processes to be done.
    pub(super) fn lock(folder: &Path) -> Result<Self, Error> {
        DirBuilder::new()
            .recursive(true)
            .mode(FOLDER_MODE)
            .create(folder)
            .map_err(|source| file_error("create", folder, source))?;
        let handle = File::open(folder).map_err(|source| file_error("open", folder, source))?;
        handle
            .lock()
            .map_err(|source| file_error("lock", folder, source))?;
        Ok(Self {
            cert: folder.join("ca.pem"),
            key: folder.join("ca.key"),
            new_cert: folder.join(".ca.pem.new"),
            new_key: folder.join(".ca.key.new"),
            folder: folder.to_path_buf(),
            handle,
        })
    }

    /// Looks at what is there; a dangling link counts as a file.
    pub(super) fn state(&self) -> State {
        let there = |path: &Path| path.symlink_metadata().is_ok();
        match (there(&self.cert), there(&self.key)) {
            (true, true) => State::Whole,
            (true, false) => State::CertificateOnly,
            (false, true) if there(&self.new_cert) => State::Interrupted,
            (false, true) => State::KeyOnly,
            (false, false) => State::Absent,
        }
    }

    /// Writes both files. The new certificate is on disk before the key takes its place: a key
    /// alone can then always be completed, and a certificate alone means a lost key.
    pub(super) fn write(&self, cert_pem: &[u8], key_pem: &[u8]) -> Result<(), Error> {
        write_new(&self.new_cert, CERT_MODE, cert_pem)?;
        write_new(&self.new_key, KEY_MODE, key_pem)?;
        self.sync()?;
        rename(&self.new_key, &self.key)?;
        self.sync()?;
        self.complete()
    }

    /// Puts the new certificate in its place.
    pub(super) fn complete(&self) -> Result<(), Error> {
        rename(&self.new_cert, &self.cert)?;
        self.sync()
    }

    /// Writes a file of the folder in the place of an earlier one: whole or not at all.
    pub(super) fn replace(&self, path: &Path, access: Access, content: &[u8]) -> Result<(), Error> {
        let mode = match access {
            Access::Private => KEY_MODE,
            Access::Public => CERT_MODE,
        };
        let fresh = self.replacement();
        write_new(&fresh, mode, content)?;
        self.sync()?;
        rename(&fresh, path)?;
        self.sync()
    }

    /// Removes what a crash left of a file that was being replaced: it may hold a key. We hold the
    /// lock, so that nobody is writing it.
    pub(super) fn clear(&self) {
        let left = self.replacement();
        if left.symlink_metadata().is_err() {
            // Asked first: where nothing can be written, removing what is not there fails otherwise.
            return;
        }
        match std::fs::remove_file(&left) {
            Ok(()) => tracing::info!(path = %left.display(), "what a crash had left was removed"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Whoever may only read the folder can go on.
            Err(error) => {
                tracing::warn!(path = %left.display(), %error, "what a crash had left cannot be removed");
            }
        }
    }

    fn replacement(&self) -> PathBuf {
        self.folder.join(".ca.rotation.new")
    }

    /// Removes a file of the folder for good.
    pub(super) fn remove(&self, path: &Path) -> Result<(), Error> {
        std::fs::remove_file(path).map_err(|source| file_error("remove", path, source))?;
        self.sync()
    }

    fn sync(&self) -> Result<(), Error> {
        self.handle
            .sync_all()
            .map_err(|source| file_error("sync", &self.folder, source))
    }
}

/// The line with which the key of a text begins that holds a certificate before it.
const KEY_BEGINS: &[u8] = b"-----BEGIN PRIVATE KEY-----";

/// Returns what stands before the key in a text.
pub(super) fn public_part(text: &[u8]) -> &[u8] {
    text.get(..key_start(text)).unwrap_or_default()
}

/// Returns the key of a text, without a copy.
pub(super) fn private_part(text: &[u8]) -> &[u8] {
    text.get(key_start(text)..).unwrap_or_default()
}

fn key_start(text: &[u8]) -> usize {
    memchr::memmem::find(text, KEY_BEGINS).unwrap_or(text.len())
}

/// Writes a file that no one else has, with its final mode from the first moment on.
fn write_new(path: &Path, mode: u32, content: &[u8]) -> Result<(), Error> {
    let failed = |source| file_error("write", path, source);
    match std::fs::remove_file(path) {
        // What an interrupted generation left; we hold the lock.
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(failed)?;
    // The umask may have taken bits away from the certificate; it can add none to the key.
    file.set_permissions(Permissions::from_mode(mode))
        .map_err(failed)?;
    file.write_all(content).map_err(failed)?;
    file.sync_all().map_err(failed)
}

fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    std::fs::rename(from, to).map_err(|source| file_error("write", to, source))
}

fn file_error(action: &'static str, path: &Path, source: io::Error) -> Error {
    Error::File {
        action,
        path: path.to_path_buf(),
        source,
    }
}
