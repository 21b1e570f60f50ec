//! The head of a chain: one line in a file of its own, which says how far the chain had come.
//!
//! It is written anew as a whole, under another name first, and never through what stands there.
//! It is made under the key of its segment, so that nobody else can say what should be there. Called
//! by the file sink and by `audit verify`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::audit::chain::{self, Keys, Position};
use crate::audit::line::Stamp;
use crate::audit::place::{beside, folder, head_path, open_own};
use crate::seal::{KeyId, Keyring};

/// The longest head that is read, in bytes: many times what one has.
const LIMIT_BYTES: u64 = 4096;

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
    /// The number of the oldest line that may still be there; files that begin before `first` are
    /// being deleted.
    pub(super) oldest: u64,
    /// The number of the oldest line that is kept.
    pub(super) first: u64,
    pub(super) last: Position,
}

/// Says why there is no head to go by.
#[derive(Debug)]
pub(super) enum Unread {
    /// It was changed, or made under a key that is not in the keyring.
    Invalid,
    /// The system refuses to give it.
    Io(io::Error),
}

#[derive(Serialize)]
struct WrittenHead {
    event: &'static str,
    time: Stamp,
    key: String,
    state: State,
    oldest: u64,
    first: u64,
    last: u64,
    last_mac: String,
}

#[derive(Deserialize)]
struct ReadHead {
    key: String,
    state: State,
    oldest: u64,
    first: u64,
    last: u64,
    last_mac: String,
}

impl Head {
    fn line(&self, keys: &Keys) -> io::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(&WrittenHead {
            event: "audit_head",
            time: Stamp(SystemTime::now()),
            key: self.key.to_string(),
            state: self.state,
            oldest: self.oldest,
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

    /// Puts the head beside the file of a chain, in place of the one before.
    pub(super) fn put(&self, path: &Path, keys: &Keys) -> io::Result<()> {
        let path = head_path(path);
        let fresh = beside(&path, ".new");
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            // A kill had left it.
            Ok(()) | Err(_) => {}
        }
        let mut options = OpenOptions::new();
        // Made here: nothing that was put there is written to, and no link is followed.
        options.write(true).create_new(true).mode(0o600);
        let mut file = options.open(&fresh)?;
        file.write_all(&self.line(keys)?)?;
        file.sync_data()?;
        fs::rename(fresh, &path)?;
        File::open(folder(&path))?.sync_all()
    }

    /// Reads the head beside the file of a chain; nothing where there is none.
    pub(super) fn find(path: &Path, keyring: &Keyring) -> Result<Option<Self>, Unread> {
        Self::find_with(path, |id| Keys::of(keyring, id))
    }

    /// The same without a keyring: with the keys that `find` knows.
    pub(super) fn find_with(
        path: &Path,
        find: impl Fn(KeyId) -> Option<Keys>,
    ) -> Result<Option<Self>, Unread> {
        let file = match open_own(&head_path(path)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Unread::Io(error)),
        };
        let mut text = Vec::new();
        let mut start = file.take(LIMIT_BYTES);
        start.read_to_end(&mut text).map_err(Unread::Io)?;
        let head = Self::read(&text, find).ok_or(Unread::Invalid)?;
        Ok(Some(head))
    }

    /// Reads a head. Nothing where it is none, or was made under another key.
    fn read(text: &[u8], find: impl Fn(KeyId) -> Option<Keys>) -> Option<Self> {
        let line = text.strip_suffix(b"\n")?;
        let (body, mac) = chain::split_mac(line)?;
        let read: ReadHead = serde_json::from_slice(line).ok()?;
        let key = KeyId::parse(&read.key)?;
        let keys = find(key)?;
        // The first head stands before the first line.
        let is_first = read.last == 0 && read.first == 1;
        let is_sound = read.oldest <= read.first && (read.first <= read.last || is_first);
        (is_sound && keys.head(body) == mac).then_some(Self {
            key,
            state: read.state,
            oldest: read.oldest,
            first: read.first,
            last: Position {
                seq: read.last,
                mac: chain::parse(read.last_mac.as_bytes())?,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(oldest: u64, first: u64, last: u64, key: KeyId) -> Head {
        Head {
            key,
            state: State::Open,
            oldest,
            first,
            last: Position {
                seq: last,
                mac: chain::NOTHING,
            },
        }
    }

    #[test]
    fn a_head_is_read_as_it_was_put_unless_its_numbers_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let keyring = Keyring::generate();
        let keys = Keys::current(&keyring).unwrap();
        assert!(matches!(Head::find(&path, &keyring), Ok(None)));
        for (oldest, first, last, is_sound) in [
            (1, 1, 0, true),
            (1, 1, 1, true),
            (3, 5, 9, true),
            (5, 5, 5, true),
            (1, 2, 1, false),
            (2, 2, 0, false),
            (6, 5, 9, false),
            (1, u64::MAX, 9, false),
        ] {
            let put = head(oldest, first, last, keys.id);
            put.put(&path, &keys).unwrap();
            let found = Head::find(&path, &keyring);
            let is_same = matches!(&found, Ok(Some(found)) if *found == put);
            assert_eq!(is_same, is_sound, "{oldest} {first} {last}: {found:?}");
            assert!(is_sound || matches!(found, Err(Unread::Invalid)));
        }
    }

    #[test]
    fn a_head_of_any_length_is_read_no_further_than_a_head_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let keyring = Keyring::generate();
        let keys = Keys::current(&keyring).unwrap();
        head(1, 1, 1, keys.id).put(&path, &keys).unwrap();
        let mut line = fs::read(head_path(&path)).unwrap();
        // It would be a head, were it read as a whole: blanks before a member mean nothing.
        let limit = usize::try_from(LIMIT_BYTES).unwrap();
        let body = line.len() - "\n".len() - 2 - 64 - ",\"mac\":\"".len();
        line.truncate(body);
        line.splice(1..1, std::iter::repeat_n(b' ', limit));
        let mac = keys.head(&line);
        chain::close(&mut line, &mac);
        line.push(b'\n');
        assert!(
            Head::read(&line, |id| Keys::of(&keyring, id)).is_some(),
            "but for its length"
        );
        fs::write(head_path(&path), &line).unwrap();
        let found = Head::find(&path, &keyring);
        assert!(matches!(found, Err(Unread::Invalid)), "{found:?}");
    }
}
