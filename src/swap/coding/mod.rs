//! Content codings: what stands between the bytes of an answer and a value in them.
//!
//! It reads `Content-Encoding`, cuts `Accept-Encoding` down to what can be read, and decodes as
//! bytes arrive: whatever the sender has flushed comes out at once. Work and output of one call
//! are bounded, and a body that grows beyond measure is refused. It never encodes: a decoded
//! answer goes on as it is. Decoded bytes hold real values: they go to the caller's buffer, which
//! the caller overwrites; the decoders' own windows are not overwritten. Called by the side of an
//! exchange that handles answers.

mod accept;
mod gzip;
mod stage;
#[cfg(test)]
mod tests;

use std::fmt;

use zeroize::Zeroizing;

use crate::wire::Progress;
use stage::Stage;

pub use accept::reduce_accept_encoding;

/// The most codings that one answer may have on top of each other; one is what servers use.
pub const CODINGS_LIMIT: usize = 3;
/// The most bytes that one call of [`Decoder::push`] appends.
pub const STEP_LIMIT_BYTES: usize = 64 * 1024;
/// How much a body may be decoded to without being measured against [`RATIO_LIMIT`].
pub const GRACE_BYTES: u64 = 32 * 1024 * 1024;
/// How many times its own size a body may be decoded to, beyond [`GRACE_BYTES`]. Text that is
/// compressed well has 20; gzip can reach 1,000, and the others a hundred times that.
pub const RATIO_LIMIT: u64 = 250;

/// What is kept between two codings on top of each other.
const LINK_BYTES: usize = 16 * 1024;

/// Says why a body cannot be decoded. The upstream is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The body grows beyond [`RATIO_LIMIT`].
    #[error("the body is decoded to far more than its size")]
    Bomb,
    /// The body is not in the coding that its head names, or damaged.
    #[error("the body is not in the coding that the head names")]
    Corrupt,
    /// The body ends before its coding does.
    #[error("the body ends before its coding does")]
    Truncated,
}

/// A content coding that can be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// `br` (RFC 7932).
    Brotli,
    /// `deflate`: the zlib format (RFC 1950), or the bare stream (RFC 1951) that some send.
    Deflate,
    /// `gzip` or `x-gzip` (RFC 1952), of any number of members.
    Gzip,
    /// `zstd` (RFC 8878), with windows of at most 8 MiB (RFC 9659).
    Zstd,
}

impl Coding {
    /// Reads the name of a coding, in any case (RFC 9110 §8.4.1).
    fn parse(name: &[u8]) -> Option<Self> {
        let names: [(&[u8], Self); 5] = [
            (b"br", Self::Brotli),
            (b"deflate", Self::Deflate),
            (b"gzip", Self::Gzip),
            (b"x-gzip", Self::Gzip),
            (b"zstd", Self::Zstd),
        ];
        let found = names
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, coding)| *coding)
    }
}

/// What the head of a message says about the codings of its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContentEncoding {
    /// The body is as it is.
    Identity,
    /// The body has these codings, in the order in which they were applied.
    Coded(Vec<Coding>),
    /// The body has a coding that cannot be decoded, or too many.
    Unknown,
}

impl ContentEncoding {
    /// Reads the values of all `Content-Encoding` fields of a head, in their order.
    pub fn parse<'a>(values: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut codings = Vec::new();
        let names = values
            .flat_map(|value| value.split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            .filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case(b"identity"));
        for name in names {
            match Coding::parse(name) {
                Some(coding) if codings.len() < CODINGS_LIMIT => codings.push(coding),
                _ => return Self::Unknown,
            }
        }
        if codings.is_empty() {
            Self::Identity
        } else {
            Self::Coded(codings)
        }
    }
}

/// Decodes one body as it arrives.
pub struct Decoder {
    /// The last coding that was applied comes first.
    stages: Vec<Stage>,
    /// What each stage but the last has given and the next has not taken yet.
    links: Vec<Link>,
}

/// Bytes on their way from one coding to the next.
#[derive(Default)]
struct Link {
    bytes: Zeroizing<Vec<u8>>,
    taken: usize,
}

impl Decoder {
    /// Prepares for a body with these codings, in the order in which they were applied.
    pub fn new(codings: &[Coding]) -> Self {
        let stages: Vec<Stage> = codings.iter().rev().map(|c| Stage::new(*c)).collect();
        let links = stages.iter().skip(1).map(|_| Link::default()).collect();
        Self { stages, links }
    }

    /// Takes from `input`, and appends to `out` what it is decoded to: at most
    /// [`STEP_LIMIT_BYTES`].
    ///
    /// With [`Progress::Hungry`] all input is taken. With [`Progress::Full`] there is more to come:
    /// call again with what is left, also if nothing is left or nothing was appended.
    ///
    /// # Errors
    /// [`Error::Bomb`] and [`Error::Corrupt`]. What was appended before may have been sent; the
    /// message cannot go on.
    pub fn push(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<Progress, Error> {
        let limit = out.len() + STEP_LIMIT_BYTES;
        let mut budget = 2 * STEP_LIMIT_BYTES;
        pull(
            &mut self.stages,
            &mut self.links,
            (input, out),
            limit,
            &mut budget,
        )
    }

    /// Ends the body, after all of it was taken.
    ///
    /// # Errors
    /// [`Error::Truncated`] if a coding has not ended. A body without a byte has: answers to HEAD
    /// name a coding as well.
    pub fn finish(&self) -> Result<(), Error> {
        let untouched = self.stages.iter().all(Stage::is_untouched);
        if untouched || self.stages.iter().all(Stage::is_at_end) {
            Ok(())
        } else {
            Err(Error::Truncated)
        }
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder")
            .field("stages", &self.stages)
            .finish_non_exhaustive()
    }
}

/// Lets the last stage fill `out` from what the ones before it give. `budget` is how much all
/// stages together may still give, since a stage may take a lot and give nothing.
fn pull(
    stages: &mut [Stage],
    links: &mut [Link],
    (input, out): (&mut &[u8], &mut Vec<u8>),
    limit: usize,
    budget: &mut usize,
) -> Result<Progress, Error> {
    let Some((last, stages)) = stages.split_last_mut() else {
        return Ok(Progress::Hungry);
    };
    let Some((link, links)) = links.split_last_mut() else {
        return last.step(input, out, limit, budget);
    };
    loop {
        let mut given = link.bytes.get(link.taken..).unwrap_or_default();
        let before = given.len();
        let progress = last.step(&mut given, out, limit, budget);
        link.taken += before - given.len();
        if progress? == Progress::Full {
            return Ok(Progress::Full);
        }
        link.bytes.clear();
        link.taken = 0;
        crate::swap::reserve(&mut link.bytes, LINK_BYTES);
        let progress = pull(stages, links, (input, &mut link.bytes), LINK_BYTES, budget)?;
        if link.bytes.is_empty() {
            return Ok(progress);
        }
    }
}
