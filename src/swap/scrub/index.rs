//! Finds where a form of a value may begin, at several bytes a clock tick.
//!
//! Every form is at least 16 bytes long, so it covers, wherever it stands, one whole group of 8
//! bytes at a distance that is a multiple of 8. Only these groups are looked at: a multiplication
//! and one look into a small table, which says at which distances from a form's beginning such a
//! group may stand. A hit is checked against the sorted first 16 bytes of all forms. An answer
//! without a value costs about the same for one secret and for twenty. The table is right for any
//! bytes, only its speed is not: whoever knows the beginning of a value can fill an answer with it
//! and make every group a hit. Called by `stream`.

use zeroize::{Zeroize, Zeroizing};

use super::Candidate;
use super::form::{Form, Inner, Outer, sextet};
use super::policy::Policy;
use crate::secret::Secret;

/// The bytes with which a form begins that are looked for.
pub(super) const HEAD_BYTES: usize = 16;
/// The bytes of a group.
const GROUP_BYTES: usize = 8;
const TABLE_BITS: u32 = 15;
const TABLE_BYTES: usize = 1 << TABLE_BITS;
/// Half of the golden ratio's fraction, the usual multiplier for hashing to the upper bits.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// How the forms of all values begin.
pub(super) struct Index {
    /// For each hash of a group: bit n if a form has such a group n bytes behind its beginning.
    /// Its fixed size saves the check of a bound for each group.
    table: Box<[u8; TABLE_BYTES]>,
    /// The first bytes of all forms, each once, sorted, the first byte in the highest bits.
    heads: Zeroizing<Vec<u128>>,
    /// For each head, where its candidates start; one more entry ends the last.
    starts: Vec<u32>,
    candidates: Vec<Candidate>,
    /// Bit n if six bits with the value n may be the base64 character before a form.
    leads: u64,
    /// Bit n if a form may begin with the byte n.
    first: [u64; 4],
}

impl Drop for Index {
    fn drop(&mut self) {
        self.table.zeroize();
    }
}

#[expect(clippy::expect_used, reason = "the vector has the length of the array")]
fn empty_table() -> Box<[u8; TABLE_BYTES]> {
    // By way of a vector, since an array would be made on the stack.
    vec![0; TABLE_BYTES].try_into().expect("the same length")
}

/// The beginning of a form in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hit {
    /// Where it stands.
    pub(super) start: usize,
    /// Which of the heads it is.
    head: usize,
}

impl Index {
    /// Writes out how the forms of the secrets begin.
    pub(super) fn new<'a>(secrets: impl Iterator<Item = &'a Secret>) -> Self {
        let mut found: Zeroizing<Vec<(u128, u32)>> = Zeroizing::new(Vec::new());
        let mut forms: Vec<Candidate> = Vec::new();
        let mut leads = 0;
        for (entry, secret) in (0..).zip(secrets) {
            let value = secret.expose();
            for (head, form) in heads(value) {
                crate::swap::reserve(&mut found, 1);
                found.push((head, u32::try_from(forms.len()).unwrap_or(u32::MAX)));
                forms.push(Candidate { entry, form });
            }
            leads |= (0..64).fold(0, |set, sextet| {
                let lead = |before| Inner::Base64(before).lead(value, sextet);
                set | u64::from(lead(1) || lead(2)) << sextet
            });
        }
        found.sort_unstable_by_key(|(head, number)| (*head, forms.get(*number as usize).copied()));
        let mut index = Self {
            table: empty_table(),
            heads: Zeroizing::new(Vec::with_capacity(found.len())),
            starts: Vec::new(),
            candidates: Vec::new(),
            leads,
            first: [0; 4],
        };
        for (head, number) in found.iter() {
            let Some(candidate) = forms.get(*number as usize) else {
                continue;
            };
            if index.heads.last() != Some(head) {
                index.add_head(*head);
            } else if index.candidates.last() == Some(candidate) {
                continue;
            }
            index.candidates.push(*candidate);
        }
        index.starts.push(index.candidates_count());
        index
    }

    fn candidates_count(&self) -> u32 {
        u32::try_from(self.candidates.len()).unwrap_or(u32::MAX)
    }

    fn add_head(&mut self, head: u128) {
        self.heads.push(head);
        self.starts.push(self.candidates_count());
        let bytes = head.to_be_bytes();
        for (distance, group) in bytes
            .windows(GROUP_BYTES)
            .filter_map(<[u8]>::first_chunk)
            .take(GROUP_BYTES)
            .enumerate()
        {
            if let Some(mask) = self.table.get_mut(place(*group)) {
                *mask |= 1 << distance;
            }
        }
        let [first, ..] = bytes;
        if let Some(word) = self.first.get_mut(usize::from(first / 64)) {
            *word |= 1 << (first % 64);
        }
    }

    /// Returns the first beginning of a form at or behind `from` whose first 16 bytes are there.
    pub(super) fn next(&self, text: &[u8], from: usize) -> Option<Hit> {
        let (groups, _) = text.get(from..)?.as_chunks::<GROUP_BYTES>();
        groups.iter().enumerate().find_map(|(number, group)| {
            let mask = self.table.get(place(*group)).copied().unwrap_or_default();
            if mask == 0 {
                return None;
            }
            self.check(text, from, from + number * GROUP_BYTES, mask)
        })
    }

    /// Looks for a head around a group that the table knows, which stands at `at`.
    #[cold]
    fn check(&self, text: &[u8], from: usize, at: usize, mask: u8) -> Option<Hit> {
        let mut left = mask;
        while left != 0 {
            // The greatest distance is the first beginning.
            let distance = left.ilog2();
            left &= !(1 << distance);
            let start = at.checked_sub(distance as usize);
            if let Some(start) = start.filter(|start| *start >= from)
                && let Some(head) = text.get(start..).and_then(<[u8]>::first_chunk)
                && let Ok(head) = self.heads.binary_search(&u128::from_be_bytes(*head))
            {
                return Some(Hit { start, head });
            }
        }
        None
    }

    /// Returns the forms that begin like this.
    pub(super) fn candidates(&self, hit: Hit) -> &[Candidate] {
        self.between(hit.head, hit.head + 1)
    }

    fn between(&self, first: usize, end: usize) -> &[Candidate] {
        let bound = |at: usize| self.starts.get(at).map(|start| *start as usize);
        match (bound(first), bound(end)) {
            (Some(first), Some(end)) => self.candidates.get(first..end).unwrap_or_default(),
            _ => &[],
        }
    }

    /// Returns the first place at or behind `from` where the text ends inside the first 16 bytes
    /// of forms, and these forms.
    pub(super) fn tail(&self, text: &[u8], from: usize) -> Option<(usize, &[Candidate])> {
        let earliest = (text.len() + 1).saturating_sub(HEAD_BYTES).max(from);
        (earliest..text.len()).find_map(|start| {
            let rest = text.get(start..)?;
            let first = *rest.first()?;
            if self.first.get(usize::from(first / 64))? >> (first % 64) & 1 == 0 {
                return None;
            }
            let mut bytes = [0; HEAD_BYTES];
            bytes.get_mut(..rest.len())?.copy_from_slice(rest);
            let low = u128::from_be_bytes(bytes);
            let high = low | u128::MAX >> (8 * rest.len());
            let first = self.heads.partition_point(|head| *head < low);
            let end = self.heads.partition_point(|head| *head <= high);
            (first < end).then(|| (start, self.between(first, end)))
        })
    }

    /// Tells whether a byte may be the base64 character before some form.
    pub(super) fn is_lead(&self, byte: u8) -> bool {
        sextet(byte).is_some_and(|sextet| self.leads >> sextet & 1 == 1)
    }
}

/// Returns the place of a group in the table.
fn place(group: [u8; GROUP_BYTES]) -> usize {
    let hash = u64::from_le_bytes(group).wrapping_mul(MULTIPLIER) >> (u64::BITS - TABLE_BITS);
    hash as usize
}

/// The encodings that are looked for.
const INNERS: [Inner; 5] = [
    Inner::Raw,
    Inner::Hex,
    Inner::Base64(0),
    Inner::Base64(1),
    Inner::Base64(2),
];

const OUTERS: [Outer; 4] = [Outer::Plain, Outer::Percent, Outer::Json, Outer::Html];

/// Returns the first 16 bytes of every form of a value, some of them several times.
fn heads(value: &[u8]) -> impl Iterator<Item = (u128, Form)> {
    INNERS.into_iter().flat_map(move |inner| {
        let spellings = match inner {
            Inner::Raw => 1,
            Inner::Hex | Inner::Base64(_) => 2,
        };
        (0..spellings).flat_map(move |spelling| {
            let (text, length) = beginning(inner, value, spelling);
            let head = move |policy: Policy| {
                let mut head = [0; HEAD_BYTES];
                policy.write(text.get(..length).unwrap_or_default(), &mut head);
                u128::from_be_bytes(head)
            };
            let plain = head(Policy::Plain);
            // What has no escape so far may have one later, of any syntax.
            let bare = OUTERS.map(|outer| (plain, Form { inner, outer }));
            // Letters and digits alone are escaped by none but those that escape everything, and
            // nobody does that to what is encoded already.
            let letters = text.iter().take(length).all(u8::is_ascii_alphanumeric);
            let escaped = Policy::partial()
                .filter(move |_| !letters)
                .chain(Policy::full().filter(move |_| inner == Inner::Raw))
                .map(move |policy| {
                    let outer = policy.outer();
                    (head(policy), Form { inner, outer })
                })
                .filter(move |(head, _)| *head != plain);
            bare.into_iter().chain(escaped)
        })
    })
}

/// Returns enough of an encoding's bytes for a head, and their number; upper case in hex and the
/// second alphabet in base64 for the second spelling.
fn beginning(inner: Inner, value: &[u8], spelling: u8) -> ([u8; 4 * HEAD_BYTES], usize) {
    // Raw text is taken by characters, of which one may have four bytes.
    let mut text = [0; 4 * HEAD_BYTES];
    let length = text.len().min(inner.symbols(value));
    for (at, place) in text.iter_mut().enumerate().take(length) {
        let symbol = inner.symbol(value, at).unwrap_or_default();
        *place = match (inner, spelling, symbol) {
            (Inner::Hex, 1, symbol) => symbol.to_ascii_uppercase(),
            (Inner::Base64(_), 1, b'+') => b'-',
            (Inner::Base64(_), 1, b'/') => b'_',
            (_, _, symbol) => symbol,
        };
    }
    (text, length)
}
