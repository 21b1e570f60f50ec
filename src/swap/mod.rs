//! The swap: secrets take the place of sealed tokens in one request.
//!
//! Pure functions over a head. Whether a token opens, and at which place, is the [`Lookup`]'s
//! answer; this module finds tokens, puts values in the form that their place needs, and keeps
//! every other byte as it was. It never looks at bytes that it has put in itself, so that a value
//! which holds the text of a token is not swapped again, and it never shows a value in an error or
//! a log. `proxy::exchange` calls [`Swapper::swap_request`] once for each request, after the head
//! was cleaned, and lets its body go through a [`BodySwap`] where a secret may stand there. The
//! other direction is [`Scrubber`], with [`Decoder`] before it.

mod basic;
mod body;
mod capture;
mod coding;
mod headers;
mod scrub;
mod target;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use memchr::memmem::Finder;
use zeroize::{Zeroize, Zeroizing};

use crate::sealed_token::{BARE_LENGTH, MARKER, Place, TokenId};
use crate::secret::Secret;
use crate::wire::RequestHead;

pub use body::{BodyKind, BodySwap, has_marker};
pub use capture::{Error as CaptureError, TOKEN_LIMIT_BYTES, Token, TokenAnswer};
pub use coding::{
    CODINGS_LIMIT, Coding, ContentEncoding, Decoder, Error as CodingError, GRACE_BYTES,
    RATIO_LIMIT, STEP_LIMIT_BYTES, reduce_accept_encoding,
};
pub use scrub::{SHORTEST_VALUE_BYTES, ScrubStream, Scrubbed, Scrubber};

/// The most tokens that are swapped in one message; more is no honest request.
pub const SUBSTITUTION_LIMIT: u32 = 1_000;
/// The most bytes of values, as they are written in their places, that are put into one head: a
/// head of 64 KiB full of tokens could otherwise grow two hundredfold.
pub const HEAD_VALUES_LIMIT_BYTES: usize = 128 * 1024;

/// Says why a request cannot be swapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There are more tokens than [`SUBSTITUTION_LIMIT`], or their values take more than
    /// [`HEAD_VALUES_LIMIT_BYTES`]. The client is to blame.
    #[error("the message has too many sealed tokens, or their values are too long")]
    Limit,
}

/// What a session knows of its tokens; `session` implements it.
pub trait Lookup {
    /// Opens a token that was found at a place, or says no.
    ///
    /// `before` is what stands before the marker in the same text, back to the end of the token
    /// that was swapped last: the token of an entry with a prefix is here only if `before` ends
    /// with that prefix. The answer must be no for a token of another session, for a host outside
    /// the secret's scope and for a place that the secret does not allow.
    fn open<'a>(&'a self, id: TokenId, before: &[u8], place: Place<'_>) -> Option<Opening<'a>>;

    /// Returns the prefixes of those tokens that may stand in a body, each once and none empty: a
    /// body that is cut within one must be held back from there.
    fn body_prefixes(&self) -> &[Box<[u8]>] {
        &[]
    }
}

impl<L: Lookup> Lookup for Arc<L> {
    fn open<'a>(&'a self, id: TokenId, before: &[u8], place: Place<'_>) -> Option<Opening<'a>> {
        L::open(self, id, before, place)
    }

    fn body_prefixes(&self) -> &[Box<[u8]>] {
        L::body_prefixes(self)
    }
}

/// An opened token.
#[derive(Debug)]
pub struct Opening<'a> {
    /// The bytes before the marker that belong to the token.
    pub prefix_length: usize,
    /// The value.
    pub secret: &'a Secret,
    /// The secret's name, for the audit record.
    pub name: &'a Arc<str>,
}

/// What the swap of one request did, for the audit record.
#[derive(Debug, Default)]
pub struct Swapped {
    /// The names of the secrets that were put in, each once.
    pub names: Vec<Arc<str>>,
    /// The number of tokens that were swapped.
    pub count: u32,
    /// The number of tokens that were found and left as they are.
    pub left: u32,
    /// The bytes of values that were put in.
    value_bytes: usize,
    /// The most tokens, where it is not [`SUBSTITUTION_LIMIT`].
    limit: Option<u32>,
}

impl Swapped {
    /// Notes a swap in a head before it is made.
    fn note(&mut self, name: &Arc<str>, value_bytes: usize) -> Result<(), Error> {
        self.value_bytes = self.value_bytes.saturating_add(value_bytes);
        if self.value_bytes > HEAD_VALUES_LIMIT_BYTES {
            return Err(Error::Limit);
        }
        self.count(name)
    }

    /// Notes a swap before it is made.
    fn count(&mut self, name: &Arc<str>) -> Result<(), Error> {
        self.count += 1;
        if self.count > self.limit.unwrap_or(SUBSTITUTION_LIMIT) {
            return Err(Error::Limit);
        }
        if !self.names.contains(name) {
            self.names.push(Arc::clone(name));
        }
        Ok(())
    }
}

/// How a value is written at its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// As it is, if a field value may have all its bytes.
    Field,
    /// Escaped for the inside of a JSON string (RFC 8259 §7).
    Json,
    /// With everything but unreserved characters percent-encoded (RFC 3986 §2.1, §2.3).
    Percent,
    /// As it is.
    Raw,
}

impl Form {
    /// Returns the length of a value in this form; nothing if the form cannot hold it.
    fn length(self, value: &[u8]) -> Option<usize> {
        match self {
            // A value with a line end would add fields of its own to the head. Sessions refuse
            // such values when they are made; here it is one comparison a byte to be sure.
            Self::Field => value
                .iter()
                .all(|byte| is_text(*byte))
                .then_some(value.len()),
            Self::Json => Some(value.iter().map(|byte| json_length(*byte)).sum()),
            Self::Percent => {
                let escaped = value.iter().filter(|byte| !is_unreserved(**byte)).count();
                Some(value.len() + 2 * escaped)
            }
            Self::Raw => Some(value.len()),
        }
    }

    fn write(self, value: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::Field | Self::Raw => out.extend_from_slice(value),
            Self::Json => {
                for byte in value {
                    match json_length(*byte) {
                        1 => out.push(*byte),
                        2 => out.extend_from_slice(&[b'\\', *byte]),
                        _ => {
                            out.extend_from_slice(b"\\u00");
                            out.extend_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
                        }
                    }
                }
            }
            Self::Percent => {
                for byte in value {
                    if is_unreserved(*byte) {
                        out.push(*byte);
                    } else {
                        out.extend_from_slice(&[b'%', digit(byte >> 4), digit(byte & 15)]);
                    }
                }
            }
        }
    }
}

/// Finds sealed tokens and puts secrets in their place. Made once, used by every request.
#[derive(Debug, Clone)]
pub struct Swapper {
    finder: Finder<'static>,
    limit: u32,
}

impl Default for Swapper {
    fn default() -> Self {
        Self::new()
    }
}

impl Swapper {
    /// Prepares the search for the marker.
    pub fn new() -> Self {
        Self {
            finder: Finder::new(MARKER),
            limit: SUBSTITUTION_LIMIT,
        }
    }

    /// Sets the most tokens that are swapped in one head, or in one body.
    #[must_use]
    pub fn with_limit(mut self, limit: u32) -> Self {
        self.limit = limit;
        self
    }

    /// Returns the most tokens that are swapped in one head, or in one body.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Swaps the tokens in the fields, in `Authorization: Basic` and in path and query of a
    /// request; says what was swapped and what was left.
    ///
    /// Only field values that stand as they were read are looked at, so this is called before any
    /// value is replaced; fields may have been removed and the target replaced. Tokens in the
    /// method, in names and before the path are plain text and not counted, and a percent-encoded
    /// spelling of a token is none. For TRACE and OPTIONS, whose answers echo or describe
    /// requests, every token is left. Without a token and without `Authorization: Basic` this
    /// allocates nothing.
    ///
    /// # Errors
    /// [`Error::Limit`]; the head is then half swapped and must not be sent.
    pub fn swap_request<L: Lookup>(
        &self,
        head: &mut RequestHead,
        lookup: &L,
    ) -> Result<Swapped, Error> {
        let method = head.method();
        // Methods are case-sensitive, but not every server knows.
        let never = [b"TRACE".as_slice(), b"OPTIONS"]
            .iter()
            .any(|name| name.eq_ignore_ascii_case(method));
        if never {
            self.swap_places(head, &Closed)
        } else {
            self.swap_places(head, lookup)
        }
    }

    fn swap_places<L: Lookup>(&self, head: &mut RequestHead, lookup: &L) -> Result<Swapped, Error> {
        let mut swapped = Swapped {
            limit: Some(self.limit),
            ..Swapped::default()
        };
        // Basic first: it reads only values as the client sent them. After the headers it could
        // meet the value of a secret that is a Basic credential itself, and look into that.
        basic::swap(self, &mut head.fields, lookup, &mut swapped)?;
        let elsewhere = headers::swap(self, &mut head.fields, lookup, &mut swapped)?;
        if elsewhere {
            target::swap(self, head, lookup, &mut swapped)?;
        }
        Ok(swapped)
    }

    /// Returns a text with its tokens swapped; nothing if none was. A text that is a token and
    /// nothing else becomes the value itself, shared and not copied.
    fn rewrite<L: Lookup>(
        &self,
        text: &[u8],
        (place, form): (Place<'_>, Form),
        lookup: &L,
        swapped: &mut Swapped,
    ) -> Result<Option<Bytes>, Error> {
        let mut out: Option<Zeroizing<Vec<u8>>> = None;
        let mut copied = 0;
        for marker in self.finder.find_iter(text) {
            let digits = text.get(marker + MARKER.len()..).unwrap_or_default();
            let Some(id) = TokenId::read(digits) else {
                continue;
            };
            let before = text.get(copied..marker).unwrap_or_default();
            let opened = lookup.open(id, before, place).and_then(|opening| {
                let start = before.len().checked_sub(opening.prefix_length)?;
                let length = form.length(opening.secret.expose())?;
                Some((opening, before.get(..start)?, length))
            });
            let Some((opening, before, length)) = opened else {
                swapped.left += 1;
                continue;
            };
            swapped.note(opening.name, length)?;
            let end = marker + BARE_LENGTH;
            let is_whole = copied == 0 && before.is_empty() && end == text.len();
            if is_whole && form == Form::Field {
                return Ok(Some(opening.secret.expose_shared()));
            }
            let rest = text.get(end..).unwrap_or_default();
            let out = out.get_or_insert_default();
            reserve(out, before.len() + length + rest.len());
            out.extend_from_slice(before);
            form.write(opening.secret.expose(), out);
            copied = end;
        }
        Ok(out.map(|mut out| {
            out.extend_from_slice(text.get(copied..).unwrap_or_default());
            share(out)
        }))
    }
}

/// Opens nothing.
struct Closed;

impl Lookup for Closed {
    fn open<'a>(&'a self, _: TokenId, _: &[u8], _: Place<'_>) -> Option<Opening<'a>> {
        None
    }
}

/// Makes room for more. A vector that grows by itself leaves its old memory as it is, with
/// the values that stand in it.
fn reserve<T: Clone + Zeroize>(out: &mut Vec<T>, more: usize) {
    if out.capacity() - out.len() < more {
        let wanted = (out.len() + more).max(2 * out.capacity());
        let mut larger = Vec::with_capacity(wanted);
        larger.extend_from_slice(out);
        out.zeroize();
        *out = larger;
    }
}

/// Turns a buffer into shared bytes that are overwritten when the last holder drops them.
fn share(mut buffer: Zeroizing<Vec<u8>>) -> Bytes {
    Secret::new(std::mem::take(&mut *buffer)).expose_shared()
}

/// Tells whether a byte may stand in a field value: visible, blank or above ASCII (RFC 9110 §5.5).
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// Returns how long a byte is inside of a JSON string: what must be escaped there has two or six.
fn json_length(byte: u8) -> usize {
    match byte {
        b'"' | b'\\' => 2,
        0..b' ' => 6,
        _ => 1,
    }
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// Returns the upper-case hex digit of four bits.
fn digit(bits: u8) -> u8 {
    if bits < 10 {
        b'0' + bits
    } else {
        b'A' + bits - 10
    }
}
