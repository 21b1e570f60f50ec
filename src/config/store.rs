//! Where sessions are kept, and how a store is used that other nodes use as well (`[store]`).
//!
//! The forms that the settings take stand here, too. Nothing is opened or connected. Read by the
//! table of settings, used by the command line.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::settings::Shape;
use super::value::{Item, Raw, Value, one_text, quote};
use crate::store::Address;

/// Where sessions are kept (`[store]`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Store {
    /// In this process only: they end with it.
    Memory,
    /// In a file of the state directory.
    #[default]
    Redb,
    /// In the file of this path.
    RedbAt(PathBuf),
    /// On a Redis or Valkey server, which other nodes use as well.
    Shared(Address),
}

/// How a store is used that other nodes use as well (`[store]`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    /// What the names of its keys begin with.
    pub prefix: Prefix,
    /// How long sessions are served without word from it.
    pub max_stale: Duration,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            prefix: Prefix("oshu-vault".to_owned()),
            max_stale: Duration::from_secs(10),
        }
    }
}

/// The start of the names of all keys: 1 to 64 letters, digits, and `-_.:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix(String);

impl Prefix {
    /// Takes a text; nothing where it cannot be one.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
        let is_one = (1..=64).contains(&text.len()) && text.bytes().all(fits);
        is_one.then(|| Self(text.to_owned()))
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Store {
    /// The file's name in the state directory.
    pub const FILE: &str = "sessions.redb";

    /// Returns the file, for a store that is one.
    pub fn file(&self, state_dir: &Path) -> Option<PathBuf> {
        match self {
            Self::Memory | Self::Shared(_) => None,
            Self::Redb => Some(state_dir.join(Self::FILE)),
            Self::RedbAt(path) => Some(path.clone()),
        }
    }

    /// Returns the path beside which the server can be asked for something by its user, and taken
    /// over from; nothing where there is nothing to ask for. A shared store has it in the state directory, which each
    /// node has for itself.
    pub fn beside(&self, state_dir: &Path) -> Option<PathBuf> {
        match self {
            Self::Shared(_) => Some(state_dir.join("sessions.shared")),
            other => other.file(state_dir),
        }
    }
}

impl Value for Store {
    const SHAPE: Shape = Shape::One;
    const NAME: &'static str = "URL";

    fn read(raw: &Raw) -> Result<Self, Vec<String>> {
        let path = |text: &str| text.strip_prefix("redb:").and_then(PathBuf::parse);
        match one_text(raw) {
            Some("memory") => Ok(Self::Memory),
            Some("redb") => Ok(Self::Redb),
            other => {
                let at = other.and_then(path).map(Self::RedbAt);
                let shared = || other.and_then(Address::parse).map(Self::Shared);
                at.or_else(shared).ok_or_else(|| {
                    let expects = "expects redb, redb:PATH, memory, or a URL such as \
                         redis://[USER:PASSWORD@]HOST:PORT/DB or rediss://…";
                    vec![expects.to_owned()]
                })
            }
        }
    }

    fn to_toml(&self) -> Option<String> {
        Some(match self {
            Self::Memory => quote("memory"),
            Self::Redb => quote("redb"),
            Self::RedbAt(path) => quote(&format!("redb:{}", path.display())),
            Self::Shared(address) => quote(&address.to_string()),
        })
    }
}

impl Item for Address {
    const EXPECTS: &'static str = "redis://[USER:PASSWORD@]HOST:PORT/DB or rediss://…";
    const NAME: &'static str = "URL";

    fn parse(text: &str) -> Option<Self> {
        Self::parse(text)
    }

    fn print(&self) -> String {
        self.to_string()
    }
}

impl Value for Prefix {
    const SHAPE: Shape = Shape::One;
    const NAME: &'static str = "NAME";

    fn read(raw: &Raw) -> Result<Self, Vec<String>> {
        let expects = || vec!["expects 1 to 64 letters, digits, and -_.:".to_owned()];
        one_text(raw).and_then(Self::parse).ok_or_else(expects)
    }

    fn to_toml(&self) -> Option<String> {
        Some(quote(self.as_str()))
    }
}
