//! The forms of a value, and the step by step comparison of a text with one of them.
//!
//! A form is an encoding of the value ([`Inner`]) written with the escapes of one syntax
//! ([`Outer`]). Nothing is encoded ahead: the encoded byte at any place is computed when the text
//! is compared, so that a long value costs no memory. Where an encoder is free, every choice is
//! taken: either alphabet of base64, hex digits in either case, a character escaped or not.
//! Called by `index` (to know how forms begin) and `stream`.

/// What stands between the escapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Inner {
    /// The value itself.
    Raw,
    /// Two hex digits for each byte.
    Hex,
    /// Base64 (RFC 4648 §4 and §5) of a text in which 0, 1 or 2 bytes stand before the value in
    /// its group of three. Whole are only the characters that carry nothing but bits of the
    /// value; what hangs over on both sides is [`Inner::lead`] and [`Inner::overhang`].
    Base64(u8),
}

/// The syntax whose escapes may stand in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outer {
    /// No escapes.
    Plain,
    /// `%73`, and `+` for a space (RFC 3986, and forms).
    Percent,
    /// `\"`, `\/`, `\u0073` (RFC 8259), and `\x73` and `\'` of other languages' strings.
    Json,
    /// `&amp;`, `&#39;`, `&#x27;`.
    Html,
}

/// One way in which a value may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Form {
    pub(super) inner: Inner,
    pub(super) outer: Outer,
}

/// How far a comparison has come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// The bytes of the inner encoding that were found.
    symbols: usize,
    /// The bytes of the text that they took.
    length: usize,
}

/// What a comparison found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The text is something else.
    No,
    /// The text ends inside the form, or where it may still go on: then with the length that the
    /// form has without more.
    More(Option<usize>),
    /// The form takes this many bytes.
    Match(usize),
}

/// One character of the text, escaped or not.
enum Step {
    /// These bytes, in this many bytes of text.
    Bytes([u8; 4], usize, usize),
    /// A `+`, which is one or a space.
    Plus,
    /// The text ends inside an escape.
    Cut,
}

impl Form {
    /// Goes on comparing. `text` starts where the form would, and holds at least what it held
    /// before.
    pub(super) fn advance(self, value: &[u8], text: &[u8], progress: &mut Progress) -> Verdict {
        let whole = self.inner.symbols(value);
        let run = self.run(value, text, *progress);
        progress.symbols += run;
        progress.length += run;
        while progress.symbols < whole {
            // A character that stands for itself.
            if let Some(byte) = text.get(progress.length)
                && !self.outer.is_special(*byte)
            {
                if !self.inner.accepts(value, progress.symbols, *byte) {
                    return Verdict::No;
                }
                progress.symbols += 1;
                progress.length += 1;
                continue;
            }
            let Some(step) = self.outer.step(text, progress.length) else {
                return Verdict::More(None);
            };
            let (matched, taken) = match step {
                Step::Cut => return Verdict::More(None),
                Step::Plus => {
                    let expected = self.inner.symbol(value, progress.symbols);
                    if !matches!(expected, Some(b'+' | b' ')) {
                        return Verdict::No;
                    }
                    (1, 1)
                }
                Step::Bytes(bytes, count, taken) => {
                    let same = bytes.iter().take(count).enumerate().all(|(ahead, byte)| {
                        self.inner.accepts(value, progress.symbols + ahead, *byte)
                    });
                    if !same {
                        return Verdict::No;
                    }
                    (count, taken)
                }
            };
            progress.symbols += matched;
            progress.length += taken;
        }
        self.advance_overhang(value, text, progress, whole)
    }

    /// Returns how many bytes of the text are those of the value itself; a short cut, since that
    /// is how most values are written.
    fn run(self, value: &[u8], text: &[u8], progress: Progress) -> usize {
        if self.inner != Inner::Raw {
            return 0;
        }
        let value = value.get(progress.symbols..).unwrap_or_default();
        let text = text.get(progress.length..).unwrap_or_default();
        let pairs = value.iter().zip(text);
        pairs
            .take_while(|(own, byte)| own == byte && !self.outer.is_special(**byte))
            .count()
    }

    /// Takes what may follow the whole characters of base64: the character with the last bits of
    /// the value, and the padding if nothing was encoded behind it.
    fn advance_overhang(
        self,
        value: &[u8],
        text: &[u8],
        progress: &mut Progress,
        whole: usize,
    ) -> Verdict {
        let Some((bits, known)) = self.inner.overhang(value) else {
            return Verdict::Match(progress.length);
        };
        let padding = if known == 2 { 2 } else { 1 };
        while progress.symbols <= whole + padding {
            let byte = match self.outer.step(text, progress.length) {
                None | Some(Step::Cut) => return Verdict::More(Some(progress.length)),
                Some(Step::Plus) => (b'+', 1),
                Some(Step::Bytes([byte, ..], _, taken)) => (byte, taken),
            };
            let (byte, taken) = byte;
            if progress.symbols == whole {
                match sextet(byte) {
                    Some(found) if found >> (6 - known) == bits => {
                        progress.length += taken;
                        if found != bits << (6 - known) {
                            return Verdict::Match(progress.length);
                        }
                    }
                    _ => return Verdict::Match(progress.length),
                }
            } else if byte == b'=' {
                progress.length += taken;
            } else {
                return Verdict::Match(progress.length);
            }
            progress.symbols += 1;
        }
        Verdict::Match(progress.length)
    }
}

impl Inner {
    /// Returns the number of bytes that the value has in this encoding.
    pub(super) fn symbols(self, value: &[u8]) -> usize {
        match self {
            Self::Raw => value.len(),
            Self::Hex => value.len() * 2,
            Self::Base64(before) => {
                let end = (usize::from(before) + value.len()) * 8 / 6;
                end - first_whole(before)
            }
        }
    }

    /// Returns the encoded byte at a place: lower case in hex, standard alphabet in base64.
    pub(super) fn symbol(self, value: &[u8], at: usize) -> Option<u8> {
        match self {
            Self::Raw => value.get(at).copied(),
            Self::Hex => {
                let byte = *value.get(at / 2)?;
                let nibble = if at.is_multiple_of(2) {
                    byte >> 4
                } else {
                    byte & 15
                };
                Some(if nibble < 10 {
                    b'0' + nibble
                } else {
                    b'a' + nibble - 10
                })
            }
            Self::Base64(before) => {
                let bit = (first_whole(before) + at) * 6 - usize::from(before) * 8;
                let high = *value.get(bit / 8)?;
                let low = value.get(bit / 8 + 1).copied().unwrap_or_default();
                let pair = u16::from_be_bytes([high, low]);
                Some(letter(((pair >> (10 - bit % 8)) & 63) as u8))
            }
        }
    }

    /// Tells whether a byte of text is the encoded byte at a place.
    fn accepts(self, value: &[u8], at: usize, byte: u8) -> bool {
        let byte = match self {
            Self::Raw => byte,
            Self::Hex => byte.to_ascii_lowercase(),
            Self::Base64(_) => match byte {
                b'-' => b'+',
                b'_' => b'/',
                byte => byte,
            },
        };
        self.symbol(value, at) == Some(byte)
    }

    /// Tells whether a base64 character may be the one before the whole ones, with the first bits
    /// of the value as its last.
    pub(super) fn lead(self, value: &[u8], sextet: u8) -> bool {
        let Some(first) = value.first() else {
            return false;
        };
        match self {
            Self::Base64(1) => sextet & 15 == first >> 4,
            Self::Base64(2) => sextet & 3 == first >> 6,
            _ => false,
        }
    }

    /// Returns the last bits of the value that fill no whole base64 character, and their number.
    fn overhang(self, value: &[u8]) -> Option<(u8, u32)> {
        let Self::Base64(before) = self else {
            return None;
        };
        let last = *value.last()?;
        match (usize::from(before) + value.len()) % 3 {
            1 => Some((last & 3, 2)),
            2 => Some((last & 15, 4)),
            _ => None,
        }
    }
}

/// Returns which character of base64 is the first that carries bits of the value alone.
fn first_whole(before: u8) -> usize {
    match before {
        0 => 0,
        1 => 2,
        _ => 3,
    }
}

/// Returns the character of the standard alphabet for six bits.
fn letter(sextet: u8) -> u8 {
    match sextet {
        0..=25 => b'A' + sextet,
        26..=51 => b'a' + sextet - 26,
        52..=61 => b'0' + sextet - 52,
        62 => b'+',
        _ => b'/',
    }
}

/// Returns the six bits of a character of either alphabet.
pub(super) fn sextet(byte: u8) -> Option<u8> {
    match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' | b'-' => Some(62),
        b'/' | b'_' => Some(63),
        _ => None,
    }
}

impl Outer {
    /// Tells whether a byte may be anything but itself.
    fn is_special(self, byte: u8) -> bool {
        match self {
            Self::Plain => false,
            Self::Percent => matches!(byte, b'%' | b'+'),
            Self::Json => byte == b'\\',
            Self::Html => byte == b'&',
        }
    }

    /// Reads the character at a place; nothing at the end of the text. What begins like an escape
    /// and is none stands for itself.
    fn step(self, text: &[u8], at: usize) -> Option<Step> {
        let rest = text.get(at..)?;
        let byte = *rest.first()?;
        let escape = match (self, byte) {
            (Self::Percent, b'%') => percent(rest),
            (Self::Percent, b'+') => return Some(Step::Plus),
            (Self::Json, b'\\') => json(rest),
            (Self::Html, b'&') => html(rest),
            _ => None,
        };
        Some(escape.unwrap_or(Step::Bytes([byte, 0, 0, 0], 1, 1)))
    }
}

/// Reads up to `most` digits; says how many there are and what number they make. `None` in the
/// number means that the text ended first.
fn digits(text: &[u8], radix: u32, most: usize) -> (usize, u32) {
    text.iter()
        .take(most)
        .map_while(|byte| char::from(*byte).to_digit(radix))
        .fold((0, 0), |(count, sum), digit| {
            (count + 1, sum * radix + digit)
        })
}

fn percent(rest: &[u8]) -> Option<Step> {
    let hex = rest.get(1..)?;
    let (count, code) = digits(hex, 16, 2);
    fixed(hex.len(), count, 2).map_or_else(|| Some(Step::Cut), |whole| whole.then(|| one(code, 3)))
}

/// Tells whether a fixed number of digits was found; nothing if the text ended before.
fn fixed(there: usize, found: usize, wanted: usize) -> Option<bool> {
    if found == wanted {
        Some(true)
    } else if found == there {
        None
    } else {
        Some(false)
    }
}

/// A single byte, from a number below 256.
fn one(code: u32, taken: usize) -> Step {
    Step::Bytes([code.to_le_bytes()[0], 0, 0, 0], 1, taken)
}

fn character(code: u32, taken: usize) -> Option<Step> {
    let mut bytes = [0; 4];
    let count = char::from_u32(code)?.encode_utf8(&mut bytes).len();
    Some(Step::Bytes(bytes, count, taken))
}

fn json(rest: &[u8]) -> Option<Step> {
    let Some(kind) = rest.get(1) else {
        return Some(Step::Cut);
    };
    let short = match kind {
        b'"' | b'\\' | b'/' | b'\'' => *kind,
        b'b' => 8,
        b't' => b'\t',
        b'n' => b'\n',
        b'f' => 12,
        b'r' => b'\r',
        b'x' => {
            let hex = rest.get(2..).unwrap_or_default();
            let (count, code) = digits(hex, 16, 2);
            return match fixed(hex.len(), count, 2) {
                None => Some(Step::Cut),
                Some(whole) => whole.then(|| one(code, 4)),
            };
        }
        b'u' => return unicode(rest),
        _ => return None,
    };
    Some(one(u32::from(short), 2))
}

/// Reads `\u0073`, and the two that make one character beyond the first 65,536.
fn unicode(rest: &[u8]) -> Option<Step> {
    let hex = rest.get(2..).unwrap_or_default();
    let (count, code) = digits(hex, 16, 4);
    match fixed(hex.len(), count, 4) {
        None => return Some(Step::Cut),
        Some(false) => return None,
        Some(true) => {}
    }
    if !(0xd800..0xdc00).contains(&code) {
        return character(code, 6);
    }
    let second = rest.get(6..).unwrap_or_default();
    let mark = second
        .iter()
        .zip(b"\\u")
        .take_while(|(a, b)| a == b)
        .count();
    match fixed(second.len(), mark, 2) {
        None => return Some(Step::Cut),
        Some(false) => return None,
        Some(true) => {}
    }
    let hex = second.get(2..).unwrap_or_default();
    let (count, low) = digits(hex, 16, 4);
    match fixed(hex.len(), count, 4) {
        None => Some(Step::Cut),
        Some(true) if (0xdc00..0xe000).contains(&low) => {
            character(0x1_0000 + ((code - 0xd800) << 10) + (low - 0xdc00), 12)
        }
        Some(_) => None,
    }
}

/// The characters that have a name in XML, which all encoders of HTML use.
const ENTITIES: [(&[u8], u8); 5] = [
    (b"&amp;", b'&'),
    (b"&apos;", b'\''),
    (b"&gt;", b'>'),
    (b"&lt;", b'<'),
    (b"&quot;", b'"'),
];

/// The most digits of a numeric entity that are read, leading zeros with them.
const ENTITY_DIGITS: usize = 7;

fn html(rest: &[u8]) -> Option<Step> {
    for (name, byte) in ENTITIES {
        if rest.starts_with(name) {
            return Some(one(u32::from(byte), name.len()));
        }
        if name.starts_with(rest) {
            return Some(Step::Cut);
        }
    }
    let (radix, start) = match (rest.get(1), rest.get(2)) {
        (Some(b'#'), Some(b'x' | b'X')) => (16, 3),
        (Some(b'#'), Some(_)) => (10, 2),
        (Some(b'#'), None) => return Some(Step::Cut),
        _ => return None,
    };
    let (count, code) = digits(rest.get(start..)?, radix, ENTITY_DIGITS);
    match rest.get(start + count) {
        None if count < ENTITY_DIGITS || rest.len() == start + count => Some(Step::Cut),
        Some(b';') if count > 0 => character(code, start + count + 1),
        _ => None,
    }
}
