//! A private folder for the files of one run, gone when it ends.
//!
//! It never holds a key or a secret: what a killed process leaves behind is public. Called by the
//! verbs that start a proxy of their own.

use std::fs::{DirBuilder, remove_dir_all};
use std::io;
use std::os::unix::fs::DirBuilderExt;
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
