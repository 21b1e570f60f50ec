//! What common encoders escape, and how: with what bytes the forms of a value may begin.
//!
//! Finding needs bytes to look for, so the first bytes of every form are written out here, once
//! for each habit of an encoder. Behind them `form` takes any mix. A habit that differs from all
//! of these within the first 16 bytes is not found. Called by `index` alone.

use super::form::Outer;

/// One encoder's habit.
#[derive(Clone, Copy, Debug)]
pub(super) enum Policy {
    /// Writes everything as it is.
    Plain,
    /// Percent-encodes all but letters, digits and these; a space becomes `+` if `plus`.
    Percent {
        kept: &'static [u8],
        plus: bool,
        lower: bool,
    },
    /// Percent-encodes every byte.
    PercentAll { lower: bool },
    /// Escapes `short` by a backslash and `long` by a number, in strings of JSON and JavaScript.
    Json {
        short: &'static [u8],
        long: &'static [u8],
        /// Characters beyond ASCII as numbers too.
        ascii: bool,
        lower: bool,
    },
    /// Writes every character as `\u0073`.
    JsonAll { lower: bool },
    /// Writes every byte as `\x73`.
    HexEscapes { lower: bool },
    /// Replaces these characters by these texts.
    Html(&'static [(u8, &'static str)]),
    /// Replaces all but letters and digits, by names and numbers in hex or in decimal.
    HtmlStrict { hex: bool },
    /// Replaces every character by its number.
    HtmlAll { hex: bool },
}

/// What percent-encoders keep beside letters and digits, and whether a space becomes `+`.
const KEPT: [(&[u8], bool); 12] = [
    // RFC 3986 §2.3; the second with the form's space (Go, Python)
    (b"-._~", false),
    (b"-._~", true),
    // encodeURIComponent and encodeURI
    (b"-._~!*'()", false),
    (b"-._~!*'();/?:@&=+$,#", false),
    // forms of the URL standard, Java
    (b"*-._", true),
    // PHP
    (b"-._", true),
    // Python's quote, Go's path segments, JavaScript's escape
    (b"-._~/", false),
    (b"-._~$&+=:@", false),
    (b"@*_+-./", false),
    // nothing kept
    (b"", false),
    // query and path of the URL standard
    (b"-._~!$%&()*+,/:;=?@[\\]^`{|}'", false),
    (b"-._~!$%&()*+,/:;=@[\\]|'", false),
];

/// What encoders of strings escape: by a backslash, by a number, and whether all beyond ASCII.
const STRINGS: [(&[u8], &[u8], bool); 11] = [
    (b"\"\\", b"", false),
    (b"\"\\", b"", true),
    (b"\"\\/", b"", false),
    // PHP's default, and with its four switches
    (b"\"\\/", b"", true),
    (b"\\/", b"\"&'<>", true),
    // Go
    (b"\"\\", b"<>&", false),
    // Gson
    (b"\"\\", b"<>&='", false),
    // .NET
    (b"\\", b"\"&'+<>`", true),
    // strings in single quotes, and in templates of web pages
    (b"'\\", b"", false),
    (b"\"'\\/", b"<>&", false),
    // data that is written into a page's script
    (b"\"\\", b"<>/", false),
];

/// What encoders of HTML replace.
const TEXTS: [&[(u8, &str)]; 12] = [
    &[(b'&', "&amp;"), (b'<', "&lt;"), (b'>', "&gt;")],
    &[(b'&', "&amp;"), (b'<', "&lt;"), (b'"', "&quot;")],
    &[
        (b'&', "&amp;"),
        (b'<', "&lt;"),
        (b'>', "&gt;"),
        (b'"', "&quot;"),
    ],
    // Go, Jinja
    &[
        (b'&', "&amp;"),
        (b'<', "&lt;"),
        (b'>', "&gt;"),
        (b'"', "&#34;"),
        (b'\'', "&#39;"),
    ],
    // Rails, React's text, lodash
    &[
        (b'&', "&amp;"),
        (b'<', "&lt;"),
        (b'>', "&gt;"),
        (b'"', "&quot;"),
        (b'\'', "&#39;"),
    ],
    // Python, Django, React
    &[
        (b'&', "&amp;"),
        (b'<', "&lt;"),
        (b'>', "&gt;"),
        (b'"', "&quot;"),
        (b'\'', "&#x27;"),
    ],
    // PHP
    &[
        (b'&', "&amp;"),
        (b'<', "&lt;"),
        (b'>', "&gt;"),
        (b'"', "&quot;"),
        (b'\'', "&#039;"),
    ],
    // XML
    &[
        (b'&', "&amp;"),
        (b'<', "&lt;"),
        (b'>', "&gt;"),
        (b'"', "&quot;"),
        (b'\'', "&apos;"),
    ],
    // Mustache and its kin
    &[
        (b'&', "&amp;"),
        (b'<', "&lt;"),
        (b'>', "&gt;"),
        (b'"', "&quot;"),
        (b'\'', "&#39;"),
        (b'/', "&#x2F;"),
        (b'`', "&#x60;"),
        (b'=', "&#x3D;"),
    ],
    // Go's templates
    &[
        (b'&', "&amp;"),
        (b'<', "&lt;"),
        (b'>', "&gt;"),
        (b'"', "&#34;"),
        (b'\'', "&#39;"),
        (b'+', "&#43;"),
    ],
    // .NET
    &[
        (b'&', "&amp;"),
        (b'<', "&lt;"),
        (b'>', "&gt;"),
        (b'"', "&quot;"),
        (b'\'', "&#x27;"),
        (b'+', "&#x2B;"),
        (b'`', "&#x60;"),
    ],
    // Java's strict ones, which keep `,`, `.`, `-` and `_`
    &[
        (b'&', "&amp;"),
        (b'<', "&lt;"),
        (b'>', "&gt;"),
        (b'"', "&quot;"),
        (b'\'', "&#x27;"),
        (b'+', "&#x2b;"),
        (b'/', "&#x2f;"),
        (b':', "&#x3a;"),
        (b'=', "&#x3d;"),
        (b'@', "&#x40;"),
        (b'~', "&#x7e;"),
        (b'!', "&#x21;"),
        (b'$', "&#x24;"),
        (b'*', "&#x2a;"),
    ],
];

impl Policy {
    /// Returns every habit that escapes some characters and leaves others.
    pub(super) fn partial() -> impl Iterator<Item = Self> {
        let percent = KEPT.into_iter().flat_map(|(kept, plus)| {
            [true, false].map(|lower| Self::Percent { kept, plus, lower })
        });
        let strings = STRINGS.into_iter().flat_map(|(short, long, ascii)| {
            [true, false].map(|lower| Self::Json {
                short,
                long,
                ascii,
                lower,
            })
        });
        let texts = TEXTS.into_iter().map(Self::Html);
        let strict = [true, false].map(|hex| Self::HtmlStrict { hex });
        [Self::Plain]
            .into_iter()
            .chain(percent)
            .chain(strings)
            .chain(texts)
            .chain(strict)
    }

    /// Returns every habit that escapes all characters.
    pub(super) fn full() -> impl Iterator<Item = Self> {
        [true, false]
            .into_iter()
            .flat_map(|lower| {
                [
                    Self::PercentAll { lower },
                    Self::JsonAll { lower },
                    Self::HexEscapes { lower },
                ]
            })
            .chain([true, false].map(|hex| Self::HtmlAll { hex }))
    }

    /// Returns the syntax that reads what this writes.
    pub(super) fn outer(self) -> Outer {
        match self {
            Self::Plain => Outer::Plain,
            Self::Percent { .. } | Self::PercentAll { .. } => Outer::Percent,
            Self::Json { .. } | Self::JsonAll { .. } | Self::HexEscapes { .. } => Outer::Json,
            Self::Html(_) | Self::HtmlStrict { .. } | Self::HtmlAll { .. } => Outer::Html,
        }
    }

    /// Writes a text until `out` is full or the text ends; returns how much of `out` is written.
    /// Bytes that are no UTF-8 are escaped one by one.
    pub(super) fn write(self, text: &[u8], out: &mut [u8]) -> usize {
        let mut sink = Sink { out, length: 0 };
        for chunk in text.utf8_chunks() {
            for character in chunk.valid().chars() {
                if sink.is_full() {
                    return sink.length;
                }
                self.character(character, &mut sink);
            }
            for byte in chunk.invalid() {
                self.byte(*byte, &mut sink);
            }
        }
        sink.length
    }

    fn character(self, character: char, sink: &mut Sink<'_>) {
        let literal = |sink: &mut Sink<'_>| {
            let mut bytes = [0; 4];
            sink.put(character.encode_utf8(&mut bytes).as_bytes());
        };
        let code = u32::from(character);
        let ascii = u8::try_from(character).ok().filter(u8::is_ascii);
        let plain = ascii.is_some_and(|byte| byte.is_ascii_alphanumeric());
        match self {
            Self::Plain => literal(sink),
            Self::Percent { .. } | Self::PercentAll { .. } | Self::HexEscapes { .. } => {
                let mut bytes = [0; 4];
                for byte in character.encode_utf8(&mut bytes).bytes() {
                    self.byte(byte, sink);
                }
            }
            Self::Json {
                short,
                long,
                ascii: only,
                lower,
            } => match ascii {
                Some(byte) if short.contains(&byte) => sink.put(&[b'\\', byte]),
                Some(b'\t') => sink.put(b"\\t"),
                Some(byte) if long.contains(&byte) || byte < b' ' => sink.unicode(character, lower),
                None if only => sink.unicode(character, lower),
                _ => literal(sink),
            },
            Self::JsonAll { lower } => sink.unicode(character, lower),
            Self::Html(texts) => match texts.iter().find(|(byte, _)| ascii == Some(*byte)) {
                Some((_, text)) => sink.put(text.as_bytes()),
                None => literal(sink),
            },
            Self::HtmlStrict { .. } if plain => literal(sink),
            Self::HtmlStrict { hex } | Self::HtmlAll { hex } => {
                let named = b"&<>\""
                    .iter()
                    .zip(["&amp;", "&lt;", "&gt;", "&quot;"])
                    .find(|(byte, _)| hex && ascii == Some(**byte));
                match named {
                    Some((_, name)) => sink.put(name.as_bytes()),
                    None if hex => sink.put(format!("&#x{code:x};").as_bytes()),
                    None => sink.put(format!("&#{code};").as_bytes()),
                }
            }
        }
    }

    fn byte(self, byte: u8, sink: &mut Sink<'_>) {
        match self {
            Self::Percent { kept, .. } if byte.is_ascii_alphanumeric() || kept.contains(&byte) => {
                sink.put(&[byte]);
            }
            Self::Percent { plus: true, .. } if byte == b' ' => sink.put(b"+"),
            Self::Percent { lower, .. } | Self::PercentAll { lower } => {
                sink.put(b"%");
                sink.hex(u32::from(byte), 2, lower);
            }
            Self::HexEscapes { lower } => {
                sink.put(b"\\x");
                sink.hex(u32::from(byte), 2, lower);
            }
            _ => sink.put(&[byte]),
        }
    }
}

/// A place of fixed size; what does not fit is dropped.
struct Sink<'a> {
    out: &'a mut [u8],
    length: usize,
}

impl Sink<'_> {
    fn is_full(&self) -> bool {
        self.length == self.out.len()
    }

    fn put(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if let Some(place) = self.out.get_mut(self.length) {
                *place = *byte;
                self.length += 1;
            }
        }
    }

    fn hex(&mut self, code: u32, digits: u32, lower: bool) {
        for place in (0..digits).rev() {
            let digit = char::from_digit((code >> (4 * place)) & 15, 16).unwrap_or('0');
            let digit = if lower {
                digit
            } else {
                digit.to_ascii_uppercase()
            };
            self.put(&[digit as u8]);
        }
    }

    fn unicode(&mut self, character: char, lower: bool) {
        let mut units = [0; 2];
        for unit in character.encode_utf16(&mut units) {
            self.put(b"\\u");
            self.hex(u32::from(*unit), 4, lower);
        }
    }
}
