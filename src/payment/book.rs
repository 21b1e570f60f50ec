//! The book of one account and one month: what each of its sandboxes used of each model.
//!
//! Pure: it knows no store and no clock. What is reserved stands in the record beside what was used,
//! so that a book that is read after a crash counts as used what nobody settled. Called by `ledger`.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Error;

/// The form of the record.
const FORMAT: u32 = 1;
/// The most lines of a book; what comes after them is kept together.
const LINE_LIMIT: usize = 256;
/// The longest name of a model or sandbox, in bytes.
const NAME_LIMIT_BYTES: usize = 128;
/// The name for what has no usable one, and for what has no line of its own.
const OTHER: &str = "other";

/// Tokens of a model provider.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tokens {
    /// Read by the model and in no cache.
    pub input: u64,
    /// Written by the model.
    pub output: u64,
    /// Read from a cache.
    pub cache_read: u64,
    /// Written to a cache.
    pub cache_write: u64,
}

impl Tokens {
    /// Returns their number: budgets count each token once.
    pub fn total(&self) -> u64 {
        let cached = self.cache_read.saturating_add(self.cache_write);
        self.input
            .saturating_add(self.output)
            .saturating_add(cached)
    }

    fn add(&mut self, more: &Self) {
        self.input = self.input.saturating_add(more.input);
        self.output = self.output.saturating_add(more.output);
        self.cache_read = self.cache_read.saturating_add(more.cache_read);
        self.cache_write = self.cache_write.saturating_add(more.cache_write);
    }
}

/// A month in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Month {
    year: u16,
    month: u8,
}

impl Month {
    /// Returns the month that a time is in.
    ///
    /// # Errors
    /// [`Error::Time`].
    pub fn of(time: SystemTime) -> Result<Self, Error> {
        let since = time
            .duration_since(UNIX_EPOCH)
            .map_err(|_early| Error::Time)?;
        let seconds = i64::try_from(since.as_secs()).map_err(|_late| Error::Time)?;
        let time = OffsetDateTime::from_unix_timestamp(seconds).map_err(|_late| Error::Time)?;
        Ok(Self {
            year: u16::try_from(time.year()).map_err(|_late| Error::Time)?,
            month: time.month().into(),
        })
    }

    /// Parses `2026-11`; nothing for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let (year, month) = text.split_once('-')?;
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if year.len() != 4 || month.len() != 2 || !digits(year) || !digits(month) {
            return None;
        }
        let (year, month) = (year.parse().ok()?, month.parse().ok()?);
        (1..=12).contains(&month).then_some(Self { year, month })
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.month)
    }
}

/// What one sandbox used of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The sandbox.
    pub sandbox: String,
    /// The model.
    pub model: String,
    /// What was counted.
    pub tokens: Tokens,
    /// What was reserved for requests whose end nobody saw: at least what they used.
    pub unsettled: u64,
    /// What is reserved for requests under way.
    pub reserved: u64,
}

/// What one account used in one month.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// By sandbox and model, in their order.
    pub lines: Vec<Line>,
}

impl Usage {
    /// Returns what counts towards a budget: used, unsettled and reserved.
    pub fn counted(&self) -> u64 {
        let lines = self.lines.iter();
        lines.fold(0, |sum, line| {
            let open = line.unsettled.saturating_add(line.reserved);
            sum.saturating_add(line.tokens.total()).saturating_add(open)
        })
    }
}

/// Where a line stands: by sandbox and model.
pub(super) type At = (String, String);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    tokens: Tokens,
    unsettled: u64,
    reserved: u64,
}

impl Counts {
    fn counted(&self) -> u64 {
        let open = self.unsettled.saturating_add(self.reserved);
        self.tokens.total().saturating_add(open)
    }
}

/// The book.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Book {
    lines: BTreeMap<At, Counts>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    format: u32,
    lines: Vec<RecordLine>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordLine {
    sandbox: String,
    model: String,
    tokens: Tokens,
    unsettled: u64,
    reserved: u64,
}

impl Book {
    /// Reads a record. What was reserved when it was written was never settled.
    pub(super) fn read(plain: &[u8]) -> Option<Self> {
        let record: Record = serde_json::from_slice(plain).ok()?;
        let lines = record.lines.into_iter().map(|line| {
            let counts = Counts {
                tokens: line.tokens,
                unsettled: line.unsettled.saturating_add(line.reserved),
                reserved: 0,
            };
            ((line.sandbox, line.model), counts)
        });
        let lines = lines.collect();
        (record.format == FORMAT).then_some(Self { lines })
    }

    /// Writes the record.
    pub(super) fn write(&self) -> Vec<u8> {
        let lines = self.usage().lines.into_iter().map(|line| RecordLine {
            sandbox: line.sandbox,
            model: line.model,
            tokens: line.tokens,
            unsettled: line.unsettled,
            reserved: line.reserved,
        });
        let record = Record {
            format: FORMAT,
            lines: lines.collect(),
        };
        serde_json::to_vec(&record).unwrap_or_default()
    }

    /// Returns what counts towards a budget.
    pub(super) fn counted(&self) -> u64 {
        let lines = self.lines.values();
        lines.fold(0, |sum, line| sum.saturating_add(line.counted()))
    }

    /// Reserves, and returns where.
    pub(super) fn reserve(&mut self, sandbox: &str, model: &str, tokens: u64) -> At {
        let at = self.place(sandbox, model);
        let counts = self.lines.entry(at.clone()).or_default();
        counts.reserved = counts.reserved.saturating_add(tokens);
        at
    }

    /// Gives back what was reserved.
    pub(super) fn release(&mut self, at: &At, reserved: u64) {
        if let Some(counts) = self.lines.get_mut(at) {
            counts.reserved = counts.reserved.saturating_sub(reserved);
            if *counts == Counts::default() {
                self.lines.remove(at);
            }
        }
    }

    /// Gives back what was taken for never settled: a process before this one has told how it ended.
    pub(super) fn release_unsettled(&mut self, at: &At, tokens: u64) {
        if let Some(counts) = self.lines.get_mut(at) {
            counts.unsettled = counts.unsettled.saturating_sub(tokens);
            if *counts == Counts::default() {
                self.lines.remove(at);
            }
        }
    }

    /// Notes what was used, under the model that answered.
    pub(super) fn add(&mut self, sandbox: &str, model: &str, used: &Tokens) {
        let at = self.place(sandbox, model);
        self.lines.entry(at).or_default().tokens.add(used);
    }

    /// Notes what may have been used at most.
    pub(super) fn add_unsettled(&mut self, at: &At, tokens: u64) {
        let counts = self.lines.entry(at.clone()).or_default();
        counts.unsettled = counts.unsettled.saturating_add(tokens);
    }

    /// Shows the book.
    pub(super) fn usage(&self) -> Usage {
        let lines = self.lines.iter().map(|((sandbox, model), counts)| Line {
            sandbox: sandbox.clone(),
            model: model.clone(),
            tokens: counts.tokens,
            unsettled: counts.unsettled,
            reserved: counts.reserved,
        });
        Usage {
            lines: lines.collect(),
        }
    }

    /// Finds the place of a line. The names of models come from callers: there is a bound.
    fn place(&self, sandbox: &str, model: &str) -> At {
        let at = (named(sandbox), named(model));
        if self.lines.contains_key(&at) || self.lines.len() < LINE_LIMIT {
            return at;
        }
        (OTHER.to_owned(), OTHER.to_owned())
    }
}

fn named(text: &str) -> String {
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
    if text.is_empty() || text.len() > NAME_LIMIT_BYTES || !plain {
        return OTHER.to_owned();
    }
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn tokens(input: u64, output: u64, cache_read: u64, cache_write: u64) -> Tokens {
        Tokens {
            input,
            output,
            cache_read,
            cache_write,
        }
    }

    #[test]
    fn months_are_those_of_utc() {
        for (seconds, month) in [
            (0, "1970-01"),
            (1_796_083_199, "2026-11"),
            (1_796_083_200, "2026-12"),
            (1_709_251_199, "2024-02"),
            (253_402_300_799, "9999-12"),
        ] {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(Month::of(time).unwrap().to_string(), month);
            assert_eq!(Month::parse(month), Month::of(time).ok());
        }
        for time in [
            UNIX_EPOCH - Duration::from_secs(1),
            UNIX_EPOCH + Duration::from_secs(253_402_300_799) + Duration::from_secs(1),
        ] {
            assert!(matches!(Month::of(time), Err(Error::Time)), "{time:?}");
        }
        for text in [
            "",
            "2026",
            "2026-13",
            "2026-00",
            "2026-1",
            "+026-11",
            "2026-11-01",
        ] {
            assert_eq!(Month::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_book_comes_back_with_what_was_reserved_as_unsettled() {
        let mut book = Book::default();
        let at = book.reserve("sb", "m-1", 100);
        book.reserve("sb", "m-2", 7);
        book.release(&at, 40);
        book.add("sb", "m-1", &tokens(1, 2, 3, 4));
        book.add_unsettled(&at, 5);
        assert_eq!(book.counted(), 60 + 7 + 10 + 5);
        assert_eq!(book.usage().counted(), book.counted());
        let again = Book::read(&book.write()).unwrap();
        assert_eq!(again.counted(), book.counted());
        let lines = again.usage().lines;
        assert_eq!(
            (lines[0].tokens, lines[0].unsettled),
            (tokens(1, 2, 3, 4), 65)
        );
        assert_eq!((lines[0].reserved, lines[1].unsettled), (0, 7));
        assert_eq!(Book::read(&again.write()), Some(again));
    }

    #[test]
    fn what_was_released_leaves_nothing_behind() {
        let mut book = Book::default();
        let at = book.reserve("sb", "m", 100);
        book.release(&at, 100);
        assert_eq!(book, Book::default());
    }

    #[test]
    fn names_and_lines_are_bounded() {
        let mut book = Book::default();
        for (sandbox, model) in [("sb", ""), ("sb", "a b"), ("sb", "ä"), ("sb", "m\n")] {
            book.add(sandbox, model, &tokens(1, 0, 0, 0));
        }
        book.add("sb", &"m".repeat(129), &tokens(1, 0, 0, 0));
        assert_eq!(book.usage().lines.len(), 1);
        for number in 0..1000 {
            book.add("sb", &format!("m-{number}"), &tokens(1, 0, 0, 0));
        }
        assert_eq!(book.usage().lines.len(), LINE_LIMIT + 1);
        assert_eq!(book.counted(), 1005);
    }

    #[test]
    fn other_forms_are_refused_and_numbers_stop_at_their_end() {
        for text in [
            "",
            "{}",
            r#"{"format":2,"lines":[]}"#,
            r#"{"format":1,"lines":[],"x":1}"#,
            r#"{"format":1,"lines":[{"sandbox":"a"}]}"#,
        ] {
            assert_eq!(Book::read(text.as_bytes()), None, "{text}");
        }
        let mut book = Book::default();
        book.add("sb", "m", &tokens(u64::MAX, 1, 1, 1));
        book.add("sb", "m", &tokens(1, 1, 1, 1));
        book.reserve("sb", "m", u64::MAX);
        assert_eq!(book.counted(), u64::MAX);
    }
}
