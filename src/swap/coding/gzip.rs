//! The frame of gzip (RFC 1952) around a deflate stream: headers, sums, members one after another.

use flate2::{Crc, Decompress};

use super::Error;
use super::stage::{Ended, Moved, inflate};

const EXTRA: u8 = 4;
const NAME: u8 = 8;
const COMMENT: u8 = 16;
const HEADER_SUM: u8 = 2;
const RESERVED: u8 = 0xe0;
/// The bytes of a header before its optional parts.
const FIXED_BYTES: u8 = 10;

/// A sequence of members.
pub(super) struct Gzip {
    state: State,
    flags: u8,
    inflater: Decompress,
    /// Over what the current member was decoded to.
    sum: Crc,
}

#[derive(Clone, Copy)]
enum State {
    /// In the first ten bytes; so many were read.
    Fixed(u8),
    /// In the length of the extra field.
    ExtraLength(Option<u8>),
    Extra(u16),
    Name,
    Comment,
    /// In the header's own sum, which nobody writes and which is not checked.
    HeaderSum(u8),
    Data,
    /// In sum and length; so many of the eight bytes were read.
    Trailer(u8, u64),
    /// Behind a member: another may follow, or zeros.
    Between,
}

impl Gzip {
    pub(super) fn new() -> Self {
        Self {
            state: State::Fixed(0),
            flags: 0,
            inflater: Decompress::new(false),
            sum: Crc::new(),
        }
    }

    pub(super) fn is_at_end(&self) -> bool {
        matches!(self.state, State::Between)
    }

    /// Decodes some of `input` into `out`.
    pub(super) fn step(&mut self, input: &[u8], out: &mut [u8]) -> Result<Moved, Error> {
        let mut read = 0;
        while !matches!(self.state, State::Data) {
            let Some(byte) = input.get(read) else {
                return Ok(Moved { read, written: 0 });
            };
            self.take(*byte)?;
            read += 1;
        }
        let rest = input.get(read..).unwrap_or_default();
        let (moved, ended) = inflate(&mut self.inflater, rest, out)?;
        self.sum
            .update(out.get(..moved.written).unwrap_or_default());
        if ended == Ended::Yes {
            self.state = State::Trailer(0, 0);
        }
        Ok(Moved {
            read: read + moved.read,
            written: moved.written,
        })
    }

    /// Takes one byte outside the data.
    fn take(&mut self, byte: u8) -> Result<(), Error> {
        self.state = match self.state {
            State::Fixed(at) => {
                match at {
                    0 if byte != 0x1f => return Err(Error::Corrupt),
                    1 if byte != 0x8b => return Err(Error::Corrupt),
                    2 if byte != 8 => return Err(Error::Corrupt),
                    3 if byte & RESERVED != 0 => return Err(Error::Corrupt),
                    3 => self.flags = byte,
                    _ => {}
                }
                if at + 1 < FIXED_BYTES {
                    State::Fixed(at + 1)
                } else {
                    self.next_part()
                }
            }
            State::ExtraLength(None) => State::ExtraLength(Some(byte)),
            State::ExtraLength(Some(low)) => match u16::from_le_bytes([low, byte]) {
                0 => self.next_part(),
                length => State::Extra(length),
            },
            State::Extra(1) => self.next_part(),
            State::Extra(left) => State::Extra(left - 1),
            State::Name | State::Comment if byte == 0 => self.next_part(),
            State::HeaderSum(0) => State::HeaderSum(1),
            State::HeaderSum(_) => self.next_part(),
            State::Trailer(at, found) => {
                let found = found | u64::from(byte) << (8 * at);
                if at == 7 {
                    self.end_member(found)?
                } else {
                    State::Trailer(at + 1, found)
                }
            }
            State::Between if byte == 0 => State::Between,
            State::Between => {
                self.inflater.reset(false);
                self.sum.reset();
                self.state = State::Fixed(0);
                return self.take(byte);
            }
            state @ (State::Name | State::Comment | State::Data) => state,
        };
        Ok(())
    }

    /// Returns the optional part of the header that comes next, in the order of the RFC.
    fn next_part(&mut self) -> State {
        for (flag, state) in [
            (EXTRA, State::ExtraLength(None)),
            (NAME, State::Name),
            (COMMENT, State::Comment),
            (HEADER_SUM, State::HeaderSum(0)),
        ] {
            if self.flags & flag != 0 {
                self.flags &= !flag;
                return state;
            }
        }
        State::Data
    }

    /// Compares sum and length with what was decoded.
    fn end_member(&self, found: u64) -> Result<State, Error> {
        let expected = u64::from(self.sum.sum()) | u64::from(self.sum.amount()) << 32;
        if found == expected {
            Ok(State::Between)
        } else {
            Err(Error::Corrupt)
        }
    }
}
