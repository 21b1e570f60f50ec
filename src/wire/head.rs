//! Heads: the start line and the ordered fields of a request or an answer.
//!
//! A head keeps the bytes it was read from and remembers where in them each name and value
//! stands; a changed value stands beside them. So a head that nobody changes is written as it was
//! read, line for line, without a copy per field. Nothing here checks anything: `h1` does, before
//! a head exists. Swap, policy and proxy read heads; `h1` makes them and writes them.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;

/// The protocol version of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// A stretch of the block a head was read from.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) end: u32,
}

impl Span {
    #[expect(clippy::cast_possible_truncation, reason = "a head has at most 64 KiB")]
    pub(super) fn new(range: Range<usize>) -> Self {
        Self {
            start: range.start as u32,
            end: range.end as u32,
        }
    }

    fn length(self) -> usize {
        self.end.saturating_sub(self.start) as usize
    }

    fn of(self, block: &[u8]) -> &[u8] {
        block
            .get(self.start as usize..self.end as usize)
            .unwrap_or_default()
    }
}

/// A target that is either as it was read or was put in its place since.
#[derive(Clone)]
enum Text {
    Read(Span),
    Put(Bytes),
}

impl Text {
    fn of<'a>(&'a self, block: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Read(span) => span.of(block),
            Self::Put(bytes) => bytes,
        }
    }
}

/// Small, because a head has dozens and most are never changed.
#[derive(Clone)]
struct Field {
    /// The whole line without its line end, as it was read; empty for a field that was added.
    line: Span,
    name: Span,
    value: Span,
    /// What stands there instead of what was read.
    put: Option<Box<Put>>,
}

#[derive(Clone)]
struct Put {
    /// The name, for a field that was added.
    name: Option<&'static str>,
    value: Bytes,
    /// The value came from a secret.
    sensitive: bool,
}

impl Field {
    fn name<'a>(&'a self, block: &'a [u8]) -> &'a [u8] {
        match self.put.as_ref().and_then(|put| put.name) {
            Some(name) => name.as_bytes(),
            None => self.name.of(block),
        }
    }

    fn value<'a>(&'a self, block: &'a [u8]) -> &'a [u8] {
        match &self.put {
            Some(put) => &put.value,
            None => self.value.of(block),
        }
    }

    fn is_sensitive(&self) -> bool {
        self.put.as_ref().is_some_and(|put| put.sensitive)
    }

    fn replace(&mut self, value: Bytes, sensitive: bool) {
        self.put = Some(Box::new(Put {
            name: self.put.as_ref().and_then(|put| put.name),
            sensitive: sensitive || self.put.as_ref().is_some_and(|put| put.sensitive),
            value,
        }));
    }
}

/// One field of a head, as seen by a reader.
#[derive(Clone, Copy)]
pub struct FieldRef<'a> {
    /// The place in the list of fields, for [`Fields::replace`].
    pub index: usize,
    /// The name as sent.
    pub name: &'a [u8],
    /// The value, without the white space around it.
    pub value: &'a [u8],
    /// The value came from a secret.
    pub sensitive: bool,
}

impl fmt::Debug for FieldRef<'_> {
    /// Shows the name and the length of the value: a value may be a credential.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FieldRef")
            .field("name", &self.name.escape_ascii().to_string())
            .field("value_bytes", &self.value.len())
            .finish_non_exhaustive()
    }
}

/// The ordered fields of a head, and the block of bytes they were read from.
#[derive(Clone)]
pub struct Fields {
    block: Bytes,
    list: Vec<Field>,
}

impl Fields {
    /// Starts an empty list over the block that a head is being read from.
    pub(super) fn new(block: Bytes) -> Self {
        Self {
            block,
            list: Vec::with_capacity(24),
        }
    }

    pub(super) fn push_read(&mut self, line: Span, name: Span, value: Span) {
        self.list.push(Field {
            line,
            name,
            value,
            put: None,
        });
    }

    /// Returns the bytes that the whole head was read from, start line included. A text that does
    /// not occur in them occurs in no field that was read.
    pub fn block(&self) -> &[u8] {
        &self.block
    }

    /// Returns the number of fields.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Tells whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Goes through the fields in order.
    pub fn iter(&self) -> impl Iterator<Item = FieldRef<'_>> {
        self.list.iter().enumerate().map(|(index, field)| FieldRef {
            index,
            name: field.name(&self.block),
            value: field.value(&self.block),
            sensitive: field.is_sensitive(),
        })
    }

    /// Returns the field at a place.
    pub fn at(&self, index: usize) -> Option<FieldRef<'_>> {
        self.list.get(index).map(|field| FieldRef {
            index,
            name: field.name(&self.block),
            value: field.value(&self.block),
            sensitive: field.is_sensitive(),
        })
    }

    /// Returns the place of the field whose value, as it was read, covers the offset of the block.
    pub fn covering(&self, offset: usize) -> Option<usize> {
        self.list.iter().position(|field| {
            let span = field.value.start as usize..field.value.end as usize;
            field.put.is_none() && span.contains(&offset)
        })
    }

    /// Goes through the values of all fields of a name, in any spelling.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.iter()
            .filter(|f| f.name.eq_ignore_ascii_case(name.as_bytes()))
            .map(|f| f.value)
    }

    /// Returns the value of the first field of a name, in any spelling.
    pub fn first<'a>(&'a self, name: &'a str) -> Option<&'a [u8]> {
        self.all(name).next()
    }

    /// Puts another value in the place of a field's. Values that come from a secret are marked so
    /// that no `Debug` shows them.
    pub fn replace(&mut self, index: usize, value: Bytes, sensitive: bool) {
        if let Some(field) = self.list.get_mut(index) {
            field.replace(value, sensitive);
        }
    }

    /// Writes the fields of a name anew where they have other white space than one space: a field
    /// that frames or routes must read the same to every reader.
    pub fn straighten(&mut self, name: &str) {
        let block = &self.block;
        for field in &mut self.list {
            let own = field.name.of(block);
            if field.put.is_some() || !own.eq_ignore_ascii_case(name.as_bytes()) {
                continue;
            }
            let rest = field.line.of(block).get(own.len()..).unwrap_or_default();
            if !rest.starts_with(b": ") || rest.len() != 2 + field.value.length() {
                field.replace(Bytes::copy_from_slice(field.value.of(block)), false);
            }
        }
    }

    /// Returns how many bytes the values take that were put in, with the names of fields that were
    /// added.
    pub fn put_bytes(&self) -> usize {
        self.list
            .iter()
            .map(|field| {
                field
                    .put
                    .as_ref()
                    .map_or(0, |put| put.value.len() + put.name.map_or(0, str::len))
            })
            .sum()
    }

    /// Appends a field.
    pub fn append(&mut self, name: &'static str, value: impl Into<Bytes>) {
        self.list.push(Field {
            line: Span::default(),
            name: Span::default(),
            value: Span::default(),
            put: Some(Box::new(Put {
                name: Some(name),
                value: value.into(),
                sensitive: false,
            })),
        });
    }

    /// Keeps the fields for which the test holds.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8], &[u8]) -> bool) {
        let block = &self.block;
        self.list
            .retain(|field| keep(field.name(block), field.value(block)));
    }

    /// Writes every field with its line end. A field that nobody changed is written as it was read.
    pub fn write(&self, out: &mut Vec<u8>) {
        for field in &self.list {
            match &field.put {
                None => out.extend_from_slice(field.line.of(&self.block)),
                Some(put) => {
                    out.extend_from_slice(field.name(&self.block));
                    out.extend_from_slice(b": ");
                    out.extend_from_slice(&put.value);
                }
            }
            out.extend_from_slice(b"\r\n");
        }
    }
}

impl fmt::Debug for Fields {
    /// Shows names and the lengths of values: a value may be a credential.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self
            .iter()
            .map(|field| (field.name.escape_ascii().to_string(), field.value.len()));
        f.debug_map().entries(shown).finish()
    }
}

/// The head of a request.
#[derive(Clone)]
pub struct RequestHead {
    pub(super) method: Span,
    target: Text,
    /// The version of the start line.
    pub version: Version,
    /// The fields.
    pub fields: Fields,
}

impl RequestHead {
    pub(super) fn new(method: Span, target: Span, version: Version, fields: Fields) -> Self {
        Self {
            method,
            target: Text::Read(target),
            version,
            fields,
        }
    }

    /// Returns the method, which is a token (RFC 9110 §5.6.2).
    pub fn method(&self) -> &[u8] {
        self.method.of(&self.fields.block)
    }

    /// Returns the method as text.
    pub fn method_text(&self) -> &str {
        std::str::from_utf8(self.method()).unwrap_or_default()
    }

    /// Returns the target: visible ASCII, in any of the four forms of RFC 9112 §3.2.
    pub fn target(&self) -> &[u8] {
        self.target.of(&self.fields.block)
    }

    /// Returns the target as text.
    pub fn target_text(&self) -> &str {
        std::str::from_utf8(self.target()).unwrap_or_default()
    }

    /// Puts another target in its place.
    pub fn replace_target(&mut self, target: Bytes) {
        self.target = Text::Put(target);
    }

    /// Writes the head as an HTTP/1.1 request, with the empty line.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.method());
        out.push(b' ');
        out.extend_from_slice(self.target());
        out.extend_from_slice(b" HTTP/1.1\r\n");
        self.fields.write(out);
        out.extend_from_slice(b"\r\n");
    }
}

impl fmt::Debug for RequestHead {
    /// Shows neither target nor values: both may carry credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestHead")
            .field("method", &self.method_text())
            .field("fields", &self.fields)
            .finish_non_exhaustive()
    }
}

/// The head of an answer.
#[derive(Clone)]
pub struct AnswerHead {
    /// The status code, 100 to 599.
    pub status: u16,
    pub(super) reason: Span,
    /// The version of the start line.
    pub version: Version,
    /// The fields.
    pub fields: Fields,
}

impl AnswerHead {
    /// Returns the reason phrase.
    pub fn reason(&self) -> &[u8] {
        self.reason.of(&self.fields.block)
    }

    /// Leaves the reason phrase out (RFC 9112 §4 allows it).
    pub fn forget_reason(&mut self) {
        self.reason = Span::default();
    }

    /// Writes the head as an HTTP/1.1 answer with its own reason phrase, and the empty line.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"HTTP/1.1 ");
        let digit = |unit: u16| b'0' + u8::try_from(self.status / unit % 10).unwrap_or_default();
        out.extend_from_slice(&[digit(100), digit(10), digit(1)]);
        out.push(b' ');
        out.extend_from_slice(self.reason.of(&self.fields.block));
        out.extend_from_slice(b"\r\n");
        self.fields.write(out);
        out.extend_from_slice(b"\r\n");
    }
}

impl fmt::Debug for AnswerHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnswerHead")
            .field("status", &self.status)
            .field("fields", &self.fields)
            .finish_non_exhaustive()
    }
}
