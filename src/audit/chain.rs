//! The chain: each line of a file carries a number and a code over itself and the line before.
//!
//! A line stays one JSON object: `seq` and `mac` are its last two members, and the code is over the
//! code before and every byte up to its own member. Nothing here opens or writes a file. Called by the
//! file sink and by `audit verify`.

use std::io::{self, BufRead, BufReader, Read};
use std::time::SystemTime;

use data_encoding::HEXLOWER;
use serde::Serialize;

use crate::audit::line::Stamp;
use crate::seal::{KeyId, Keyring, MAC_BYTES, MacKey};

/// The purposes that keys are derived for.
const LINES: &str = "audit lines";
const HEADS: &str = "audit heads";
/// What stands around the code, at the end of each line.
const MAC_MEMBER: &[u8] = b",\"mac\":\"";
const MAC_END: &[u8] = b"\"}";
const SEQ_MEMBER: &[u8] = b",\"seq\":";
/// The longest line that is read, in bytes with its end: far beyond any that is written.
pub(super) const LINE_LIMIT_BYTES: u64 = 1024 * 1024;
/// What every line begins with, before the event's name.
const START: &[u8] = b"{\"event\":\"";
/// The event of a line that stands where records were lost.
pub(super) const GAP: &str = "audit_gap";
/// The form of the chain.
pub(super) const VERSION: u8 = 1;

/// The code of a line.
pub(super) type Mac = [u8; MAC_BYTES];

/// The code that stands before the first line of all.
pub(super) const NOTHING: Mac = [0; MAC_BYTES];

/// The keys of a segment: all of them are derived from one sealing key.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    pub(super) id: KeyId,
    lines: MacKey,
    heads: MacKey,
}

impl Keys {
    /// Derives the keys of a segment that begins now.
    pub(super) fn current(keyring: &Keyring) -> Option<Self> {
        Self::of(keyring, keyring.current())
    }

    /// Derives the keys of a segment that names its sealing key.
    pub(super) fn of(keyring: &Keyring, id: KeyId) -> Option<Self> {
        Some(Self {
            id,
            lines: keyring.mac_key(id, LINES)?,
            heads: keyring.mac_key(id, HEADS)?,
        })
    }

    /// Makes the code of a line without its last member.
    pub(super) fn line(&self, before: &Mac, body: &[u8]) -> Mac {
        self.lines.sign(&[before, body])
    }

    /// Makes the code of a head without its last member.
    pub(super) fn head(&self, body: &[u8]) -> Mac {
        self.heads.sign(&[body])
    }
}

/// Where a chain stands: what the next line continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// The number of the last line.
    pub(super) seq: u64,
    /// The code of the last line.
    pub(super) mac: Mac,
}

impl Position {
    /// The place before the first line of all.
    pub(super) const START: Self = Self {
        seq: 0,
        mac: NOTHING,
    };

    /// Makes the object that begins at `start`, and ends the text, the next line of the chain.
    pub(super) fn append(&mut self, keys: &Keys, lines: &mut Vec<u8>, start: usize) {
        let closing = lines.pop();
        debug_assert_eq!(closing, Some(b'}'), "an object");
        self.seq += 1;
        lines.extend_from_slice(SEQ_MEMBER);
        lines.extend_from_slice(self.seq.to_string().as_bytes());
        let body = lines.get(start..).unwrap_or_default();
        self.mac = keys.line(&self.mac, body);
        close(lines, &self.mac);
        lines.push(b'\n');
    }
}

/// Writes the last member of an object, and its end.
pub(super) fn close(line: &mut Vec<u8>, mac: &Mac) {
    line.extend_from_slice(MAC_MEMBER);
    line.extend_from_slice(HEXLOWER.encode(mac).as_bytes());
    line.extend_from_slice(MAC_END);
}

/// The parts of a line, nothing of them verified.
#[derive(Clone, Copy, Debug)]
pub(super) struct Split<'a> {
    /// All before the code's member.
    pub(super) body: &'a [u8],
    pub(super) seq: u64,
    pub(super) mac: Mac,
}

/// Takes a line apart, without its line end. Nothing for one that was never made here.
pub(super) fn split(line: &[u8]) -> Option<Split<'_>> {
    let (body, mac) = split_mac(line)?;
    let digits = body.iter().rev().take_while(|b| b.is_ascii_digit()).count();
    let (rest, number) = body.split_at_checked(body.len().checked_sub(digits)?)?;
    let seq = std::str::from_utf8(number).ok()?.parse().ok()?;
    // No line follows the greatest number, so that none of ours has it.
    (rest.ends_with(SEQ_MEMBER) && seq < u64::MAX).then_some(Split { body, seq, mac })
}

/// Takes the code off the end of a line.
pub(super) fn split_mac(line: &[u8]) -> Option<(&[u8], Mac)> {
    let line = line.strip_suffix(MAC_END)?;
    let (body, hex) = line.split_at_checked(line.len().checked_sub(2 * MAC_BYTES)?)?;
    let body = body.strip_suffix(MAC_MEMBER)?;
    Some((body, parse(hex)?))
}

/// Reads a code from its hex digits.
pub(super) fn parse(hex: &[u8]) -> Option<Mac> {
    HEXLOWER.decode(hex).ok()?.try_into().ok()
}

/// Tells whether a line is of an event, which is the first member of every line.
pub(super) fn is_event(line: &[u8], event: &str) -> bool {
    let rest = line.strip_prefix(START);
    let rest = rest.and_then(|rest| rest.strip_prefix(event.as_bytes()));
    rest.is_some_and(|rest| rest.starts_with(b"\""))
}

/// Tells whether a file that has no whole line can have begun as a file of a chain does.
pub(super) fn can_begin(file: &mut impl Read) -> io::Result<bool> {
    let begun = [START, Begin::EVENT.as_bytes(), b"\""].concat();
    let mut found = Vec::with_capacity(begun.len());
    file.take(begun.len().try_into().unwrap_or(u64::MAX))
        .read_to_end(&mut found)?;
    Ok(begun.starts_with(&found))
}

/// Reads the number of the first line; nothing where there is no line of a chain.
pub(super) fn first_number(file: &mut impl Read) -> io::Result<Option<u64>> {
    let mut line = Vec::new();
    BufReader::new(file.take(LINE_LIMIT_BYTES)).read_until(b'\n', &mut line)?;
    let line = line.strip_suffix(b"\n").and_then(split);
    Ok(line.map(|split| split.seq))
}

/// The line that begins a segment: every file, every start of the server and every key has one.
#[derive(Serialize)]
pub(super) struct Begin {
    event: &'static str,
    time: Stamp,
    version: u8,
    /// The sealing key that the segment's keys are derived from.
    key: String,
    why: &'static str,
    /// The code of the line before, in whatever file it is.
    before: String,
    #[serde(skip_serializing_if = "is_zero")]
    torn_bytes: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Begin {
    pub(super) const EVENT: &str = "audit_begin";
    /// Why a segment begins that continues lines which no server had ended.
    pub(super) const CRASHED: &str = "crashed";
    /// Why a segment begins that continues lines which no head vouches for.
    pub(super) const HEADLESS: &str = "headless";

    pub(super) fn new(keys: &Keys, before: &Position, why: &'static str, torn_bytes: u64) -> Self {
        Self {
            event: Self::EVENT,
            time: Stamp(SystemTime::now()),
            version: VERSION,
            key: keys.id.to_string(),
            why,
            before: HEXLOWER.encode(&before.mac),
            torn_bytes,
        }
    }
}

/// The line that ends a segment in order.
#[derive(Serialize)]
pub(super) struct End {
    event: &'static str,
    time: Stamp,
    why: &'static str,
}

impl End {
    pub(super) const EVENT: &str = "audit_end";

    pub(super) fn new(why: &'static str) -> Self {
        Self {
            event: Self::EVENT,
            time: Stamp(SystemTime::now()),
            why,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart_as_it_was_made() {
        let keys = Keys::current(&Keyring::generate()).unwrap();
        let mut position = Position::START;
        let mut lines = Vec::new();
        let mut before = NOTHING;
        for number in 1..=12 {
            let start = lines.len();
            lines.extend_from_slice(b"{\"event\":\"exchange\"}");
            position.append(&keys, &mut lines, start);
            let line = lines[start..].strip_suffix(b"\n").unwrap();
            serde_json::from_slice::<serde_json::Value>(line).expect("still an object");
            let split = split(line).unwrap();
            assert_eq!(split.seq, number);
            assert_eq!(split.mac, position.mac);
            assert_eq!(split.mac, keys.line(&before, split.body));
            before = split.mac;
        }
    }

    #[test]
    fn what_is_no_line_is_not_taken_apart() {
        let code = "0".repeat(64);
        for line in [
            String::new(),
            "{}".to_owned(),
            format!("{{\"a\":1,\"mac\":\"{code}\"}}"),
            format!("{{\"a\":1,\"seq\":,\"mac\":\"{code}\"}}"),
            format!("{{\"a\":1,\"seq\":-1,\"mac\":\"{code}\"}}"),
            format!("{{\"a\":1,\"seq\":99999999999999999999,\"mac\":\"{code}\"}}"),
            format!("{{\"a\":1,\"seq\":{},\"mac\":\"{code}\"}}", u64::MAX),
            format!("{{\"a\":1,\"seq\":1,\"mac\":\"{}\"}}", "G".repeat(64)),
            format!("{{\"a\":1,\"seq\":1,\"mac\":\"{code}\"}} "),
            format!("\"mac\":\"{code}\"}}"),
        ] {
            assert!(split(line.as_bytes()).is_none(), "{line}");
        }
        let right = format!("{{\"a\":1,\"seq\":7,\"mac\":\"{code}\"}}");
        assert_eq!(split(right.as_bytes()).unwrap().seq, 7);
    }
}
