//! Where settings come from: the environment, the files and the flags, as plain data.
//!
//! Loading reads the outer world through [`Source`] alone, so that a test can stand in for all of
//! it. Values of variables and files are never printed, not even by `Debug`.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::secret::Secret;
use crate::store::Address;
use crate::upstream::UpstreamProxy;

use super::value::Item;

/// The most bytes of a configuration file.
pub(super) const FILE_LIMIT_BYTES: u64 = 1 << 20;
/// The most bytes of a key file: the longest key and a line end fit many times.
const KEY_FILE_LIMIT_BYTES: u64 = 4096;
/// The most bytes of a file of sealing keys: each rotation adds one, about a thousand fit.
pub const SEAL_KEYS_LIMIT_BYTES: u64 = 64 * 1024;
/// The permission bits of everybody but the owner.
const MODE_OF_OTHERS: u32 = 0o077;

/// What a file held when it was read.
pub struct FileContent {
    /// The bytes; overwritten at the end, since they may be a key.
    pub bytes: Zeroizing<Vec<u8>>,
    /// The Unix permission bits, of the file that was read and not of its name.
    pub mode: u32,
}

impl fmt::Debug for FileContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileContent")
            .field("length", &self.bytes.len())
            .field("mode", &format_args!("{:o}", self.mode))
            .finish()
    }
}

/// Reads files, or stands in for the disk in a test.
pub trait Files: Send + Sync {
    /// Reads a whole file of at most `limit` bytes.
    ///
    /// # Errors
    /// Those of the operating system, and [`io::ErrorKind::FileTooLarge`].
    fn read(&self, path: &Path, limit: u64) -> io::Result<FileContent>;
}

/// The disk.
#[derive(Debug, Clone, Copy, Default)]
pub struct Disk;

impl Files for Disk {
    fn read(&self, path: &Path, limit: u64) -> io::Result<FileContent> {
        let file = File::open(path)?;
        let mode = file.metadata()?.permissions().mode();
        let mut bytes = Zeroizing::new(Vec::new());
        file.take(limit + 1).read_to_end(&mut bytes)?;
        if u64::try_from(bytes.len()).is_ok_and(|length| length <= limit) {
            Ok(FileContent { bytes, mode })
        } else {
            Err(io::ErrorKind::FileTooLarge.into())
        }
    }
}

/// What the command line says: the file to read, and values by key.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Flags {
    config: Option<PathBuf>,
    values: Vec<(&'static str, Vec<String>)>,
}

impl Flags {
    /// Starts with the configuration file (`--config`) and no value.
    pub fn new(config: Option<PathBuf>) -> Self {
        Self {
            config,
            values: Vec::new(),
        }
    }

    /// Returns the configuration file that was named.
    pub fn config(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// Adds the values of one setting, by its dotted path; a switch has none.
    #[must_use]
    pub fn with(mut self, key: &'static str, values: Vec<String>) -> Self {
        self.values.push((key, values));
        self
    }

    pub(super) fn values(&self) -> &[(&'static str, Vec<String>)] {
        &self.values
    }
}

impl fmt::Debug for Flags {
    /// Shows which flags were given; a value may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.values.iter().map(|(key, _)| key);
        f.debug_struct("Flags")
            .field("config", &self.config)
            .field("keys", &keys.collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// Everything that a configuration is read from.
pub struct Source {
    variables: Vec<(OsString, OsString)>,
    files: Box<dyn Files>,
    flags: Flags,
}

impl Source {
    /// Takes the environment and the disk of this process.
    pub fn process(flags: Flags) -> Self {
        Self::new(std::env::vars_os().collect(), Box::new(Disk), flags)
    }

    /// Puts a source together from its parts.
    pub fn new(variables: Vec<(OsString, OsString)>, files: Box<dyn Files>, flags: Flags) -> Self {
        Self {
            variables,
            files,
            flags,
        }
    }

    /// Returns the value of an environment variable.
    pub fn variable(&self, name: &str) -> Option<&OsStr> {
        self.variables
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_os_str())
    }

    /// Reads an API key from a file of the owner's alone. One line end after it is dropped.
    ///
    /// # Errors
    /// What would have been right; never what the file holds.
    pub fn read_api_key(&self, path: &Path) -> Result<Secret, String> {
        self.read_private(path)
    }

    /// Reads the URL of the upstream proxy from a file of the owner's alone. One line end after it
    /// is dropped.
    ///
    /// # Errors
    /// What would have been right; never what the file holds.
    pub fn read_upstream_proxy(&self, path: &Path) -> Result<UpstreamProxy, String> {
        self.read_private(path)
    }

    /// Reads the URL of a shared store from a file of the owner's alone. One line end after it is
    /// dropped.
    ///
    /// # Errors
    /// What would have been right; never what the file holds.
    pub fn read_store_url(&self, path: &Path) -> Result<Address, String> {
        self.read_private(path)
    }

    /// Reads a file of sealing keys, of the owner's alone, as it is.
    ///
    /// # Errors
    /// What would have been right; never what the file holds.
    pub fn read_seal_keys(&self, path: &Path) -> Result<Secret, String> {
        let mut bytes = self.read_of_owner(path, SEAL_KEYS_LIMIT_BYTES)?.bytes;
        Ok(Secret::new(std::mem::take(&mut *bytes)))
    }

    fn read_of_owner(&self, path: &Path, limit: u64) -> Result<FileContent, String> {
        let content = self
            .files
            .read(path, limit)
            .map_err(|error| format!("names a file that cannot be read: {}", error.kind()))?;
        if content.mode & MODE_OF_OTHERS != 0 {
            return Err("names a file that others than its owner may use: chmod 600".to_owned());
        }
        Ok(content)
    }

    fn read_private<T: Item>(&self, path: &Path) -> Result<T, String> {
        let content = self.read_of_owner(path, KEY_FILE_LIMIT_BYTES)?;
        let bytes = content.bytes.as_slice();
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        std::str::from_utf8(bytes)
            .ok()
            .and_then(T::parse)
            .ok_or_else(|| format!("names a file that should hold {}", T::EXPECTS))
    }

    /// Takes a text as an API key; nothing where it cannot be one.
    pub fn parse_api_key(text: &str) -> Option<Secret> {
        <Secret as Item>::parse(text)
    }

    pub(super) fn variables(&self) -> &[(OsString, OsString)] {
        &self.variables
    }

    pub(super) fn files(&self) -> &dyn Files {
        &*self.files
    }

    pub(super) fn flags(&self) -> &Flags {
        &self.flags
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.variables.iter().map(|(name, _)| name);
        f.debug_struct("Source")
            .field("variables", &names.collect::<Vec<_>>())
            .field("flags", &self.flags)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn source() -> Source {
        Source::new(
            vec![("SECRETS_PROXY_API_KEY".into(), "canary-0123456789".into())],
            Box::new(Disk),
            Flags::default(),
        )
    }

    #[test]
    fn debug_shows_no_values() {
        let content = FileContent {
            bytes: b"canary".to_vec().into(),
            mode: 0o100_600,
        };
        let shown = format!("{:?} {content:?}", source());
        assert!(!shown.contains("canary"), "{shown}");
        assert!(shown.contains("SECRETS_PROXY_API_KEY"), "{shown}");
    }

    #[test]
    fn key_files_belong_to_their_owner_and_hold_one_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        for (text, mode, expected) in [
            ("0123456789abcdef\n", 0o600, Ok(16)),
            ("0123456789abcdef\r\n", 0o400, Ok(16)),
            ("0123456789abcdef", 0o640, Err("others than its owner")),
            ("0123456789abcdef", 0o604, Err("others than its owner")),
            ("short\n", 0o600, Err("should hold 16 to 512")),
            ("0123456789abcdef\n\n", 0o600, Err("should hold 16 to 512")),
        ] {
            let _ignored = fs::remove_file(&path);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let read = source().read_api_key(&path).map(|key| key.len());
            match (read, expected) {
                (Ok(length), Ok(expected)) => assert_eq!(length, expected),
                (Err(text), Err(part)) => assert!(text.contains(part), "{text}"),
                (read, _) => panic!("{text:?} {mode:o}: {read:?}"),
            }
        }
        let missing = source().read_api_key(&folder.path().join("none"));
        assert!(missing.unwrap_err().contains("cannot be read"));
    }

    #[test]
    fn files_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "12345").unwrap();
        assert_eq!(*Disk.read(&path, 5).unwrap().bytes, b"12345");
        let error = Disk.read(&path, 4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}
