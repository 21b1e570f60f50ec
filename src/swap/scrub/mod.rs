//! Scrubbing: sealed tokens take the place of real values in one answer.
//!
//! A [`Scrubber`] knows the secrets that one host may receive, and finds each in all the forms
//! that servers commonly write: as it is, in base64, hex, percent-, JSON- and HTML-escaped. It is
//! pure: bytes in, bytes out, no sockets and no clock. It never shows a value in an error or in
//! `Debug`, and leaves out values that are too short, since a scrub would confirm a guess. It is a
//! second fence and no promise: a form that is not listed in `form` and `policy` passes. Made once
//! for a host's view of a session; the side of an exchange that handles answers calls it.

mod form;
mod index;
mod policy;
mod stream;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::secret::Secret;
use form::Form;
use index::Index;
use stream::State;

pub use stream::ScrubStream;

/// The shortest value that is scrubbed, in bytes. A shorter one can be guessed, and an answer in
/// which the guess was replaced would say that it was right.
pub const SHORTEST_VALUE_BYTES: usize = 16;

/// One secret that is looked for.
struct Entry {
    secret: Secret,
    /// The sealed token's text, which takes the value's place.
    token: Bytes,
    name: Arc<str>,
}

/// One way in which one secret may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    /// The place of the secret in the scrubber's list.
    entry: u32,
    form: Form,
}

/// The secrets that are looked for in the answers of one host.
///
/// Of a value it copies the first 16 bytes of each form, and a table of hashes over them; both are
/// overwritten when it is dropped. Not overwritten is what is not its own: the answer's bytes in
/// the caller's buffers, and what the compiler leaves on the stack and in registers.
pub struct Scrubber {
    /// Sorted by name, so that the same secrets give the same output.
    entries: Vec<Entry>,
    index: Index,
}

impl Scrubber {
    /// Prepares the search for secrets, each with the text of its sealed token and its name;
    /// nothing if no value is long enough to be scrubbed.
    ///
    /// The same name may come twice, with a value that was rotated out. Takes time and memory in
    /// proportion to the number of secrets, some tens of microseconds and some KiB each.
    pub fn new(secrets: impl Iterator<Item = (Secret, Bytes, Arc<str>)>) -> Option<Self> {
        let mut entries: Vec<Entry> = secrets
            .filter(|(secret, ..)| secret.len() >= SHORTEST_VALUE_BYTES)
            .map(|(secret, token, name)| Entry {
                secret,
                token,
                name,
            })
            .collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        if entries.is_empty() {
            return None;
        }
        let index = Index::new(entries.iter().map(|entry| &entry.secret));
        Some(Self { entries, index })
    }

    /// Returns the value of a field with the secrets in it scrubbed; nothing if there are none.
    pub fn scrub_value(&self, value: &[u8]) -> Option<Vec<u8>> {
        self.scrub_counted(value, &mut Scrubbed::default())
    }

    /// Does the same as [`Self::scrub_value`], and notes which secrets were found.
    pub fn scrub_counted(&self, value: &[u8], scrubbed: &mut Scrubbed) -> Option<Vec<u8>> {
        self.index.next(value, 0)?;
        let mut state = State::default();
        let mut out = Vec::with_capacity(value.len());
        state.run(self, value, true, &mut out);
        if state.scrubbed.is_empty() {
            return None;
        }
        scrubbed.add(&state.scrubbed);
        Some(out)
    }
}

impl fmt::Debug for Scrubber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.entries.iter().map(|entry| &entry.name);
        f.write_str("Scrubber")?;
        f.debug_list().entries(names).finish()
    }
}

/// Which secrets were found in an answer, and how often, for the audit record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed(Vec<(Arc<str>, u64)>);

impl Scrubbed {
    /// Tells whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns each name that was found, with the number of times.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, u64)> {
        self.0.iter().map(|(name, count)| (name, *count))
    }

    /// Adds what another part of the same answer gave.
    pub fn add(&mut self, other: &Self) {
        for (name, count) in other.iter() {
            self.note(name, count);
        }
    }

    fn note(&mut self, name: &Arc<str>, more: u64) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, count)) => *count = count.saturating_add(more),
            None => self.0.push((Arc::clone(name), more)),
        }
    }
}
