//! The scrub of a body as it arrives.
//!
//! Every byte leaves at once, but for a tail that may be the beginning of a value; so an event
//! that ends with a line is never held back, since no form of a value has a line end. How the body
//! was cut makes no difference to what comes out. Called by the side of an exchange that handles
//! answers, and by [`Scrubber::scrub_value`].

use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::form::{Progress, Verdict, sextet};
use super::index::Hit;
use super::{Candidate, Scrubbed, Scrubber};

/// How much is appended to a tail that was held back before the whole is looked at again. It
/// bounds the memory of a stream, beside the longest form of a value.
const PIECE_BYTES: usize = 8 * 1024;
/// How far back from a form it is looked whether the byte before it belongs to an escape.
const LOOK_BACK: usize = 5;

/// A body that is scrubbed as it arrives.
///
/// It holds at most the longest form of a value, ten times the value's length (a form that long
/// is one where each character is a number with leading zeros), and 8 KiB more while it works. What
/// it held is overwritten when it is dropped.
pub struct ScrubStream {
    scrubber: Arc<Scrubber>,
    /// What has arrived and not left.
    carry: Zeroizing<Vec<u8>>,
    state: State,
}

/// Where a scrub stands between two pieces.
#[derive(Default)]
pub(super) struct State {
    /// What was found so far.
    pub(super) scrubbed: Scrubbed,
    /// How many of the next bytes belong to a value whose sealed token was written already.
    covered: usize,
    /// The comparisons at the first place that is undecided.
    pending: Option<Pending>,
    /// The bytes before the next ones.
    before: Zeroizing<[u8; LOOK_BACK]>,
}

/// The comparisons with the forms that may begin at one place.
struct Pending {
    start: usize,
    /// The longest that was found.
    best: Option<Found>,
    alive: Vec<(Candidate, Progress)>,
}

#[derive(Clone, Copy)]
struct Found {
    length: usize,
    candidate: Candidate,
}

impl ScrubStream {
    /// Starts a body.
    pub fn new(scrubber: Arc<Scrubber>) -> Self {
        Self {
            scrubber,
            carry: Zeroizing::default(),
            state: State::default(),
        }
    }

    /// Takes what has arrived, and appends to `out` what can leave.
    pub fn push(&mut self, input: &[u8], out: &mut Vec<u8>) {
        let mut input = input;
        while !self.carry.is_empty() && !input.is_empty() {
            let (piece, rest) = input
                .split_at_checked(PIECE_BYTES)
                .unwrap_or((input, Default::default()));
            input = rest;
            crate::swap::reserve(&mut self.carry, piece.len());
            self.carry.extend_from_slice(piece);
            let kept = self.state.run(&self.scrubber, &self.carry, false, out);
            self.carry.drain(..kept);
        }
        if !input.is_empty() {
            let kept = self.state.run(&self.scrubber, input, false, out);
            let tail = input.get(kept..).unwrap_or_default();
            crate::swap::reserve(&mut self.carry, tail.len());
            self.carry.extend_from_slice(tail);
        }
    }

    /// Appends what is held back, although more may follow: a value that goes on behind it is not
    /// found any more. For a sender that waits.
    pub fn release(&mut self, out: &mut Vec<u8>) {
        self.state.run(&self.scrubber, &self.carry, true, out);
        self.carry.clear();
    }

    /// Ends the body: appends what was held back, now that nothing follows it.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.release(out);
        self.state.covered = 0;
    }

    /// Returns which secrets were found so far.
    pub fn scrubbed(&self) -> &Scrubbed {
        &self.state.scrubbed
    }

    /// Returns how many bytes are held back.
    pub fn held(&self) -> usize {
        self.carry.len()
    }
}

impl fmt::Debug for ScrubStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScrubStream")
            .field("scrubber", &self.scrubber)
            .field("held", &self.carry.len())
            .field("scrubbed", &self.state.scrubbed)
            .finish()
    }
}

impl State {
    /// Scrubs `text`; returns from where on it must be given again, with more behind it. With
    /// `last` nothing follows the text, and all of it leaves.
    pub(super) fn run(
        &mut self,
        scrubber: &Scrubber,
        text: &[u8],
        last: bool,
        out: &mut Vec<u8>,
    ) -> usize {
        // Up to here everything has left or was replaced.
        let mut done = self.covered;
        let mut from = 0;
        let mut kept = None;
        while let Some(mut pending) = self.pending.take().or_else(|| {
            let hit = scrubber.index.next(text, from)?;
            Some(Pending::new(scrubber, hit))
        }) {
            let start = pending.start;
            pending.advance(scrubber, text, last);
            if !pending.alive.is_empty() {
                let best = pending.best.map(|best| best.candidate);
                let alive = pending.alive.iter().map(|(candidate, _)| *candidate);
                let forms = alive.chain(best);
                let first = start - usize::from(self.has_lead(scrubber, text, start, forms));
                pending.start -= first;
                self.pending = Some(pending);
                kept = Some(first);
                break;
            }
            if let Some(Found { length, candidate }) = pending.best {
                let end = start + length;
                // What overlaps with the value before it becomes part of that: one token.
                if start >= done {
                    let lead = self.has_lead(scrubber, text, start, [candidate].into_iter());
                    out.extend_from_slice(
                        text.get(done..start - usize::from(lead))
                            .unwrap_or_default(),
                    );
                    out.extend_from_slice(scrubber.token(candidate));
                }
                if end > done {
                    self.scrubbed.note(scrubber.name(candidate), 1);
                    done = end;
                }
            }
            from = start + 1;
        }
        let kept = match kept {
            Some(kept) => kept,
            None if last => text.len(),
            None => self.tail(scrubber, text, from),
        };
        out.extend_from_slice(text.get(done..kept).unwrap_or_default());
        self.covered = done.saturating_sub(kept);
        self.remember(text.get(..kept).unwrap_or_default());
        kept
    }

    /// Returns where the tail starts that may be the beginning of a value.
    fn tail(&self, scrubber: &Scrubber, text: &[u8], from: usize) -> usize {
        if let Some((start, candidates)) = scrubber.index.tail(text, from) {
            let lead = self.has_lead(scrubber, text, start, candidates.iter().copied());
            return start - usize::from(lead);
        }
        match text.split_last() {
            Some((lead, rest))
                if scrubber.index.is_lead(*lead) && self.is_in_base64(text, rest.len()) =>
            {
                rest.len()
            }
            _ => text.len(),
        }
    }

    /// Tells whether the byte before `start` belongs to one of the forms that begin there: the
    /// base64 character that has bits of the value and of what stands before it.
    fn has_lead(
        &self,
        scrubber: &Scrubber,
        text: &[u8],
        start: usize,
        mut candidates: impl Iterator<Item = Candidate>,
    ) -> bool {
        let Some(place) = start.checked_sub(1) else {
            return false;
        };
        let Some(sextet) = text.get(place).copied().and_then(sextet) else {
            return false;
        };
        candidates.any(|candidate| candidate.form.inner.lead(scrubber.value(candidate), sextet))
            && self.is_in_base64(text, place)
    }

    /// Tells whether the base64 character at `place` follows another one, and is itself no part
    /// of an escape: to cut `%2B` or `\u002b` in two would break what is left of it.
    fn is_in_base64(&self, text: &[u8], place: usize) -> bool {
        let back = |count: usize| match place.checked_sub(count) {
            Some(at) => text.get(at).copied(),
            None => self
                .before
                .get((LOOK_BACK + place).wrapping_sub(count))
                .copied(),
        };
        back(1).and_then(sextet).is_some()
            && back(2) != Some(b'%')
            && (back(5), back(4)) != (Some(b'\\'), Some(b'u'))
            && (back(3), back(2)) != (Some(b'\\'), Some(b'x'))
    }

    /// Keeps the last bytes of what has left.
    fn remember(&mut self, text: &[u8]) {
        let new = text.len().min(LOOK_BACK);
        self.before.rotate_left(new);
        let tail = text.get(text.len() - new..).unwrap_or_default();
        for (place, byte) in self.before.iter_mut().skip(LOOK_BACK - new).zip(tail) {
            *place = *byte;
        }
    }
}

impl Pending {
    fn new(scrubber: &Scrubber, hit: Hit) -> Self {
        let candidates = scrubber.index.candidates(hit).iter();
        Self {
            start: hit.start,
            best: None,
            alive: candidates
                .map(|found| (*found, Progress::default()))
                .collect(),
        }
    }

    /// Goes on comparing, and notes the longest form that was found. Of two equally long ones the
    /// first counts, which is the one of the secret whose name comes first.
    fn advance(&mut self, scrubber: &Scrubber, text: &[u8], last: bool) {
        let text = text.get(self.start..).unwrap_or_default();
        let best = &mut self.best;
        self.alive.retain_mut(|(candidate, progress)| {
            let value = scrubber.value(*candidate);
            let length = match candidate.form.advance(value, text, progress) {
                Verdict::No => return false,
                Verdict::More(_) if !last => return true,
                Verdict::More(length) => length,
                Verdict::Match(length) => Some(length),
            };
            let longest = best.map_or(0, |best| best.length);
            if let Some(length) = length.filter(|length| *length > longest) {
                let candidate = *candidate;
                *best = Some(Found { length, candidate });
            }
            false
        });
    }
}

impl Scrubber {
    fn value(&self, candidate: Candidate) -> &[u8] {
        self.entry(candidate).secret.expose()
    }

    fn token(&self, candidate: Candidate) -> &[u8] {
        &self.entry(candidate).token
    }

    fn name(&self, candidate: Candidate) -> &Arc<str> {
        &self.entry(candidate).name
    }

    #[expect(
        clippy::expect_used,
        reason = "candidates are made by numbering the entries, and never change"
    )]
    fn entry(&self, candidate: Candidate) -> &super::Entry {
        self.entries
            .get(candidate.entry as usize)
            .expect("a candidate belongs to an entry")
    }
}
