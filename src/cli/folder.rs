//! Folders for the files of clients: a private one, gone when a run ends, and one that is kept.
//!
//! They never hold a key or a secret: what a killed process leaves behind is public. Called by the
//! verbs that point clients to a proxy.

use std::fs::{DirBuilder, OpenOptions, remove_dir_all, rename};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;

use super::state::write_private;
use super::{Exit, STARTUP};
use crate::id::fill_random;

/// A folder that only its owner can enter; removed with all that is in it when dropped.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// Makes a folder with a name that cannot be guessed, where the system has temporary files.
    pub(super) fn make() -> Result<Self, Exit> {
        let mut bytes = [0; 16];
        fill_random(&mut bytes);
        let parent = std::env::temp_dir();
        let made = std::path::absolute(&parent).and_then(|parent| {
            let path = parent.join(format!("oshu-vault-{}", HEXLOWER.encode(&bytes)));
            // Not recursive: a folder that is there already is somebody else's.
            DirBuilder::new().mode(0o700).create(&path).map(|()| path)
        });
        made.map(Self).map_err(|error| unwritable(&parent, &error))
    }

    /// Writes a file into the folder and returns its path.
    pub(super) fn write(&self, name: &str, content: &[u8]) -> Result<PathBuf, Exit> {
        let path = self.0.join(name);
        write_private(&path, content).map_err(|error| Exit::startup(&error))?;
        Ok(path)
    }

    /// Returns where a file of the folder lies.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = remove_dir_all(&self.0) {
            tracing::warn!(%error, "a temporary folder cannot be removed");
        }
    }
}

/// A folder whose files stay. They may be replaced at any time while programs read them.
#[derive(Debug)]
pub(super) struct KeptFolder(PathBuf);

impl KeptFolder {
    /// Makes a folder, and those above it, where they are not there.
    pub(super) fn make(path: &Path) -> Result<Self, Exit> {
        let made = std::path::absolute(path).and_then(|path| {
            // What lies in it is public, and read from within containers under other users too.
            let made = DirBuilder::new().recursive(true).mode(0o755).create(&path);
            made.map(|()| path)
        });
        made.map(Self).map_err(|error| unwritable(path, &error))
    }

    /// Writes a file, whole or not at all, and returns its path.
    pub(super) fn write(&self, name: &str, content: &[u8]) -> Result<PathBuf, Exit> {
        let mut bytes = [0; 8];
        fill_random(&mut bytes);
        let path = self.path(name);
        let fresh = self.path(&format!(".{name}.{}", HEXLOWER.encode(&bytes)));
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&fresh);
        let written = file.and_then(|mut file| file.write_all(content));
        written
            .and_then(|()| rename(&fresh, &path))
            .map_err(|error| {
                Exit::failed(&format!("{} cannot be written: {error}", path.display()))
            })?;
        Ok(path)
    }

    /// Returns where a file of the folder lies.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

fn unwritable(parent: &Path, error: &io::Error) -> Exit {
    Exit {
        code: STARTUP,
        text: format!(
            "error: no folder can be made in {}: {error}",
            parent.display()
        ),
        to_stdout: false,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{metadata, read};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_folder_is_private_and_goes_with_its_owner() {
        let folder = Folder::make().unwrap();
        let file = folder.write("file", b"content").unwrap();
        assert_eq!(file, folder.path("file"));
        assert!(file.is_absolute());
        assert_eq!(read(&file).unwrap(), b"content");
        let mode = |path: &Path| metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder.0), 0o700);
        assert_eq!(mode(&file), 0o600);
        assert!(folder.write("file", b"again").is_err(), "never overwritten");
        let path = folder.0.clone();
        drop(folder);
        assert!(!path.exists());
    }
}
