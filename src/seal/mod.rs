//! Sealing: secrets and records at rest, AES-256-GCM, bound to whom they belong to.
//!
//! What one session sealed under one name opens only for that tenant, session and name, so that
//! bytes moved between rows of a store open as nothing. It must never put a key or an opened value
//! into an error or a `Debug`, and there is no "encryption off". Called by `session` before a row
//! goes to the store and after it was loaded.

mod keyring;
mod mac;

pub use keyring::{KEY_BYTES, KeyId, Keyring};
pub use mac::{MAC_BYTES, MacKey};

/// Says why sealed bytes did not open, or why keys make no keyring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes are shorter than any envelope: the store lost a part.
    #[error("sealed bytes are too short to be an envelope")]
    Truncated,
    /// The first byte names a form of envelope that this program does not know.
    #[error("sealed bytes have an unknown version")]
    UnknownVersion,
    /// The envelope names a key that the keyring does not hold: the operator removed it too early.
    #[error("sealed bytes name a key that is not in the keyring: {0}")]
    UnknownKey(KeyId),
    /// The bytes were changed, or belong to another tenant, session or name, or to another key of
    /// the same id. Which of these is not to be known.
    #[error("sealed bytes do not open under this key for this owner")]
    Refused,
    /// Two keys of a keyring have the same id.
    #[error("two sealing keys have the same id: {0}")]
    DuplicateKey(KeyId),
    /// The key to seal with is not among the keys.
    #[error("current sealing key is not in the keyring: {0}")]
    NoCurrentKey(KeyId),
    /// A line of a list of keys holds no key; lines are counted from one.
    #[error("line {0} is no sealing key: 64 hex digits, or 32 bytes in base64")]
    BadKey(usize),
    /// A list of keys holds none.
    #[error("there is no sealing key")]
    NoKey,
}

/// Says whom a sealed value belongs to. All three parts are authenticated, none is kept inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context<'a> {
    /// The tenant's id.
    pub tenant: &'a str,
    /// The session's id.
    pub session: &'a str,
    /// The name of the secret, or of the record that is sealed.
    pub name: &'a str,
}

impl<'a> Context<'a> {
    /// Says what a record that belongs to no session is: of which kind, and of what. No session's
    /// has an empty session, and the kinds are no texts of a caller.
    pub fn of_record(kind: &'a str, name: &'a str) -> Self {
        Self {
            tenant: name,
            session: "",
            name: kind,
        }
    }
}

impl Context<'_> {
    /// Appends the parts to the associated data, each after its length, so that no two contexts
    /// give the same bytes.
    fn append_to(&self, data: &mut Vec<u8>) {
        for part in [self.tenant, self.session, self.name] {
            // usize is at most 64 bits wide on every target there is.
            data.extend_from_slice(&(part.len() as u64).to_be_bytes());
            data.extend_from_slice(part.as_bytes());
        }
    }

    fn len(&self) -> usize {
        let lengths = 3 * size_of::<u64>();
        lengths + self.tenant.len() + self.session.len() + self.name.len()
    }
}
