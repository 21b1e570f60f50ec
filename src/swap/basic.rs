//! Tokens in `Authorization: Basic` (RFC 7617): decoded, swapped, encoded again.
//!
//! git and many clients can send a credential in no other form. Only the canonical encoding is
//! read, standard alphabet and padding; any other is left as it is, since two programs may read it
//! differently. Every buffer with a decoded credential is overwritten. Called by
//! [`Swapper::swap_request`](super::Swapper::swap_request) alone, before the other fields.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use zeroize::Zeroizing;

use super::{Error, Form, Lookup, Swapped, Swapper, share};
use crate::sealed_token::{BARE_LENGTH, Place};
use crate::wire::{FieldRef, Fields};

const NAME: &[u8] = b"authorization";
const SCHEME: &str = "basic";

/// Swaps the tokens in user and password of every Basic credential.
pub(super) fn swap<L: Lookup>(
    swapper: &Swapper,
    fields: &mut Fields,
    lookup: &L,
    swapped: &mut Swapped,
) -> Result<(), Error> {
    let mut from = 0;
    while let Some(field) = next_authorization(fields, from) {
        let index = field.index;
        from = index + 1;
        if let Some(credential) = Credential::parse(field.value)
            && let Some(value) = credential.swap(swapper, lookup, swapped)?
        {
            fields.replace(index, value, true);
        }
    }
    Ok(())
}

fn next_authorization(fields: &Fields, from: usize) -> Option<FieldRef<'_>> {
    fields
        .iter()
        .skip(from)
        .find(|field| field.name.eq_ignore_ascii_case(NAME))
}

/// A Basic credential as it was sent.
struct Credential<'a> {
    /// The scheme in the client's spelling, and the spaces behind it.
    scheme: &'a str,
    decoded: Zeroizing<Vec<u8>>,
}

impl<'a> Credential<'a> {
    /// Reads a field value; nothing for another scheme, an encoding that is not canonical, and a
    /// credential that is too short for a token.
    fn parse(value: &'a [u8]) -> Option<Self> {
        let scheme = value.get(..SCHEME.len())?;
        if !scheme.eq_ignore_ascii_case(SCHEME.as_bytes()) {
            return None;
        }
        let value = std::str::from_utf8(value).ok()?;
        let rest = value.get(SCHEME.len()..)?;
        let encoded = rest.trim_start_matches(' ');
        let spaces = rest.len() - encoded.len();
        if spaces == 0 || encoded.len() < BARE_LENGTH {
            return None;
        }
        let room = base64::decoded_len_estimate(encoded.len());
        let mut decoded = Zeroizing::new(Vec::with_capacity(room));
        STANDARD.decode_vec(encoded, &mut decoded).ok()?;
        Some(Self {
            scheme: value.get(..SCHEME.len() + spaces)?,
            decoded,
        })
    }

    /// Returns the value of the field with the tokens swapped; nothing if none was. A token has
    /// no colon, so that one search over user and password finds what two would.
    fn swap<L: Lookup>(
        &self,
        swapper: &Swapper,
        lookup: &L,
        swapped: &mut Swapped,
    ) -> Result<Option<Bytes>, Error> {
        let place = (Place::Header(NAME), Form::Field);
        let credential = swapper.rewrite(&self.decoded, place, lookup, swapped)?;
        Ok(credential.map(|credential| self.encode(&credential)))
    }

    #[expect(
        clippy::expect_used,
        reason = "the buffer is made as long as the encoding is; a head is far below overflow"
    )]
    fn encode(&self, credential: &[u8]) -> Bytes {
        let length = base64::encoded_len(credential.len(), true).expect("the length fits");
        let mut value = Zeroizing::new(Vec::with_capacity(self.scheme.len() + length));
        value.extend_from_slice(self.scheme.as_bytes());
        value.resize(self.scheme.len() + length, 0);
        let (_, encoded) = value.split_at_mut(self.scheme.len());
        STANDARD
            .encode_slice(credential, encoded)
            .expect("the encoding fits");
        share(value)
    }
}
