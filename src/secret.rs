//! Secrets in memory, and the fingerprints that are kept of credentials.
//!
//! A [`Secret`] is overwritten when its last owner lets go, prints as a fixed text, and has no
//! `Serialize`. The one way to its bytes is `expose`, so that a search for that word finds every
//! place where a real value can leave.

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use zeroize::Zeroizing;

/// A real value: shared without copying, overwritten when the last holder drops it.
#[derive(Clone)]
pub struct Secret(Bytes);

impl Secret {
    /// Takes ownership of a value; the vector's memory is overwritten at the end.
    pub fn new(value: Vec<u8>) -> Self {
        #[cfg(test)]
        TAKEN.with(|bytes| bytes.set(bytes.get() + value.len()));
        Self(Bytes::from_owner(Zeroizing::new(value)))
    }

    /// Shows the real value. Every caller is a place where a secret can leave the process.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Shows the real value as shared bytes, without a copy.
    pub fn expose_shared(&self) -> Bytes {
        self.0.clone()
    }

    /// Returns the length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Tells whether the value is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

/// The SHA-256 of a credential: what is kept of a session's token and of an API key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

#[cfg(test)]
thread_local! {
    /// How many credentials this thread has hashed, so that a test can hold the work of one answer
    /// against that of another.
    pub(crate) static HASHED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
    /// How many bytes this thread has put where they are overwritten, so that a test can tell that
    /// some were.
    pub(crate) static TAKEN: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

impl Fingerprint {
    /// Hashes a credential. Credentials are random and long, so that a plain hash is enough.
    #[expect(clippy::expect_used, reason = "SHA-256 has 32 bytes by definition")]
    pub fn of(credential: &[u8]) -> Self {
        #[cfg(test)]
        HASHED.with(|count| count.set(count.get() + 1));
        Self(
            digest(&SHA256, credential)
                .as_ref()
                .try_into()
                .expect("32 bytes"),
        )
    }

    /// Takes a hash back from a store's row.
    pub fn from_bytes(hash: [u8; 32]) -> Self {
        Self(hash)
    }

    /// Compares with a presented credential, in time that does not depend on where they differ.
    pub fn matches(&self, credential: &[u8]) -> bool {
        let other = Self::of(credential);
        verify_slices_are_equal(&self.0, &other.0).is_ok()
    }

    /// Returns the hash, for a store's row.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprint(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        let secret = Secret::new(b"sk-ant-canary".to_vec());
        assert_eq!(format!("{secret:?}"), "Secret(redacted)");
        assert_eq!(
            format!("{:?}", Fingerprint::of(b"tok")),
            "Fingerprint(redacted)"
        );
    }

    #[test]
    fn clones_share_one_copy() {
        let secret = Secret::new(b"value".to_vec());
        let copy = secret.clone();
        assert_eq!(secret.expose().as_ptr(), copy.expose().as_ptr());
        assert_eq!(copy.expose_shared().as_ptr(), secret.expose().as_ptr());
    }

    #[test]
    fn fingerprints_match_only_their_own_credential() {
        let fingerprint = Fingerprint::of(b"tok_1");
        assert!(fingerprint.matches(b"tok_1"));
        assert!(!fingerprint.matches(b"tok_2"));
        assert!(!fingerprint.matches(b""));
    }
}
