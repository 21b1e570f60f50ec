//! Tokens in the bodies of requests: found across every cut, replaced as the body streams.
//!
//! [`BodySwap`] takes the content of one message, in whatever pieces it comes, and gives it out
//! with values in the place of those tokens that open. It holds back only what may be the beginning
//! of a token, less than one, and it knows no framing: what is between the pieces is not content.
//! Every byte outside of a token leaves as it came. Called by the proxy, between the framing that
//! was read and the one that is written; it needs no connection.

mod kind;
#[cfg(test)]
mod tests;

use std::fmt;

use memchr::memmem::Finder;

use crate::sealed_token::{BARE_LENGTH, DIGITS, MARKER, Place, TokenId};
use crate::swap::{Error, Form, Lookup, Swapped, reserve};
use crate::wire::Progress;

pub use kind::BodyKind;

/// How much is appended to the output, in bytes, before what is left of the input has to wait: one
/// value more is the most that a call of [`BodySwap::push`] gives beyond it and its input.
const PIECE_BYTES: usize = 16 * 1024;
/// How much of the input is put behind what was held back, in bytes: more than any token has.
const WINDOW_BYTES: usize = 256;

/// Swaps the tokens in the body of one message.
pub struct BodySwap<L> {
    lookup: L,
    form: Form,
    finder: Finder<'static>,
    /// The longest token that may be found, in bytes.
    longest: usize,
    /// What may be the beginning of a token.
    held: Vec<u8>,
    /// How much of `held`, and of what follows it, was looked at for markers.
    judged: usize,
    swapped: Swapped,
}

impl<L: Lookup> BodySwap<L> {
    /// Prepares for a body of this kind.
    pub fn new(kind: BodyKind, lookup: L) -> Self {
        let prefixes = lookup.body_prefixes().iter();
        let longest = prefixes.map(|prefix| prefix.len()).max();
        Self {
            form: kind.form(),
            finder: Finder::new(MARKER),
            longest: longest.unwrap_or_default() + BARE_LENGTH,
            lookup,
            held: Vec::new(),
            judged: 0,
            swapped: Swapped::default(),
        }
    }

    /// Sets the most tokens that are swapped in the body, where it is not
    /// [`SUBSTITUTION_LIMIT`](super::SUBSTITUTION_LIMIT).
    #[must_use]
    pub fn within(mut self, limit: u32) -> Self {
        self.swapped.limit = Some(limit);
        self
    }

    /// Takes from the input and appends to the output, a bounded piece at a time.
    /// [`Progress::Hungry`] says that all was taken; [`Progress::Full`] that there is more to come,
    /// to be asked for with what is left.
    ///
    /// # Errors
    /// [`Error::Limit`] for more tokens than are swapped in one body; the
    /// message cannot go on.
    pub fn push(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<Progress, Error> {
        let limit = out.len() + PIECE_BYTES;
        while !input.is_empty() {
            let before = self.held.len();
            let (done, full) = if before == 0 {
                let (done, full) = self.swap(input, out, limit)?;
                if !full {
                    self.held
                        .extend_from_slice(input.get(done..).unwrap_or_default());
                }
                (if full { done } else { input.len() }, full)
            } else {
                self.swap_behind_held(input, out, limit)?
            };
            *input = input.get(done..).unwrap_or_default();
            if full {
                return Ok(Progress::Full);
            }
        }
        Ok(Progress::Hungry)
    }

    /// Appends what was held back, at the end of the body.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        reserve(out, self.held.len());
        out.append(&mut self.held);
        self.judged = 0;
    }

    /// Tells what was swapped so far, and how many tokens were left.
    pub fn swapped(&self) -> &Swapped {
        &self.swapped
    }

    /// Goes on where something is held back, with as much of the input as may belong to it. Returns
    /// how much of the input was taken, and whether the output is full.
    fn swap_behind_held(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        limit: usize,
    ) -> Result<(usize, bool), Error> {
        let mut window = std::mem::take(&mut self.held);
        let before = window.len();
        let more = input
            .get(..WINDOW_BYTES.min(input.len()))
            .unwrap_or_default();
        window.extend_from_slice(more);
        let (done, full) = self.swap(&window, out, limit)?;
        if let Some(taken) = done.checked_sub(before) {
            // The rest stands in the input, and need not be copied.
            return Ok((taken, full));
        }
        window.drain(..done);
        self.held = window;
        Ok((more.len(), full))
    }

    /// Swaps the tokens of a text. Returns up to where the text is dealt with, and whether that is
    /// because the output is full; what is behind it may be the beginning of a token otherwise.
    fn swap(
        &mut self,
        text: &[u8],
        out: &mut Vec<u8>,
        limit: usize,
    ) -> Result<(usize, bool), Error> {
        let mut from = std::mem::take(&mut self.judged);
        let mut copied = 0;
        while let Some(offset) = text.get(from..).and_then(|rest| self.finder.find(rest)) {
            let marker = from + offset;
            let digits = text.get(marker + MARKER.len()..).unwrap_or_default();
            if is_cut(digits) {
                break;
            }
            from = marker + MARKER.len();
            let Some(id) = TokenId::read(digits) else {
                continue;
            };
            let before = text.get(copied..marker).unwrap_or_default();
            let opened = self.lookup.open(id, before, Place::Body);
            let opened = opened.and_then(|opening| {
                let start = before.len().checked_sub(opening.prefix_length)?;
                let length = self.form.length(opening.secret.expose())?;
                Some((opening, before.get(..start)?, length))
            });
            let Some((opening, before, length)) = opened else {
                self.swapped.left = self.swapped.left.saturating_add(1);
                continue;
            };
            self.swapped.count(opening.name)?;
            reserve(out, before.len() + length);
            out.extend_from_slice(before);
            self.form.write(opening.secret.expose(), out);
            copied = marker + BARE_LENGTH;
            from = copied;
            if out.len() >= limit {
                return Ok((copied, true));
            }
        }
        let end = self.held_from(text, copied);
        let plain = text.get(copied..end).unwrap_or_default();
        reserve(out, plain.len());
        out.extend_from_slice(plain);
        self.judged = from.saturating_sub(end);
        Ok((end, false))
    }

    /// Returns where the end of a text begins that may be the beginning of a token.
    fn held_from(&self, text: &[u8], from: usize) -> usize {
        let earliest = (text.len() + 1).saturating_sub(self.longest).max(from);
        let mut starts = earliest..text.len();
        let held = starts.find(|start| {
            let end = text.get(*start..).unwrap_or_default();
            begins(end, b"")
                || self
                    .lookup
                    .body_prefixes()
                    .iter()
                    .any(|prefix| begins(end, prefix))
        });
        held.unwrap_or(text.len())
    }
}

impl<L> fmt::Debug for BodySwap<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodySwap")
            .field("form", &self.form)
            .field("held_bytes", &self.held.len())
            .field("swapped", &self.swapped)
            .finish_non_exhaustive()
    }
}

/// Tells whether there may be a token in a text: a body without is not gone through.
pub fn has_marker(text: &[u8]) -> bool {
    memchr::memmem::find(text, MARKER).is_some()
}

/// Tells whether a text is the beginning of a token with this prefix, and not the whole of one.
fn begins(text: &[u8], prefix: &[u8]) -> bool {
    if text.len() <= prefix.len() {
        return prefix.starts_with(text);
    }
    let Some(rest) = text.strip_prefix(prefix) else {
        return false;
    };
    match rest.strip_prefix(MARKER) {
        Some(digits) => is_cut(digits),
        None => MARKER.starts_with(rest),
    }
}

/// Tells whether a text is the beginning of the digits of a token, and not all of them.
fn is_cut(digits: &[u8]) -> bool {
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    digits.len() < DIGITS && digits.iter().all(is_digit)
}
