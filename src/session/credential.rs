//! The credential of a session: shown once, kept as a fingerprint.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use data_encoding::HEXLOWER;
use zeroize::Zeroizing;

use crate::secret::Fingerprint;

/// The fixed start of every credential.
const PREFIX: &str = "tok_";

/// A fresh credential: `tok_` and 64 lower-case hex digits, 256 random bits.
pub struct Credential(Zeroizing<String>);

impl Credential {
    /// Makes a fresh one.
    pub fn generate() -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        crate::id::fill_random(bytes.as_mut_slice());
        Self(Zeroizing::new(format!(
            "{PREFIX}{}",
            HEXLOWER.encode(bytes.as_slice())
        )))
    }

    /// Shows the text. It is shown once, in the answer that creates the session.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns what is kept of it.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self.0.as_bytes())
    }
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credential(redacted)")
    }
}

/// Reads a `Basic` credential (RFC 7617): `user:password`.
pub(super) fn decode_basic(value: &[u8]) -> Option<Zeroizing<String>> {
    let (scheme, rest) = value.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let decoded = STANDARD.decode(rest.trim_ascii_start()).ok()?;
    String::from_utf8(decoded).ok().map(Zeroizing::new)
}
