//! Keys that authenticate what lies beside the sealed records.
//!
//! They are derived from sealing keys, so that whoever keeps those keeps these. Nothing is hidden by
//! them, and none can be read back. Called by the audit chain.

use std::fmt;

use aws_lc_rs::hmac::{Context, Key};

/// The length of an authentication code in bytes.
pub const MAC_BYTES: usize = 32;

/// A key for HMAC-SHA256 (RFC 2104), for one purpose. It is never printed.
#[derive(Clone)]
pub struct MacKey(Key);

impl MacKey {
    pub(super) fn new(key: Key) -> Self {
        Self(key)
    }

    /// Makes the code of some bytes, as if they stood in one piece.
    pub fn sign(&self, parts: &[&[u8]]) -> [u8; MAC_BYTES] {
        let mut context = Context::with_key(&self.0);
        for part in parts {
            context.update(part);
        }
        let mut code = [0; MAC_BYTES];
        for (to, from) in code.iter_mut().zip(context.sign().as_ref()) {
            *to = *from;
        }
        code
    }
}

impl fmt::Debug for MacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MacKey(..)")
    }
}
