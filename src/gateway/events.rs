//! A stream of events (WHATWG HTML §9.2.6), cut into the data of each in bounded memory.
//!
//! Bytes come in whatever pieces they come; an event that is too long is told by its length alone.
//! What an event means is not known here. Called by the reader of usage.

use std::mem;

use memchr::memchr2;

/// The most bytes of one event's data, or of one value of an answer, that are held: those that tell
/// of usage have some hundred.
pub(super) const HELD_LIMIT_BYTES: usize = 16 * 1024;

/// What is known of one event's data.
#[derive(Clone, Copy)]
pub(super) enum Data<'a> {
    /// All of it.
    Whole(&'a [u8]),
    /// Its length: it is too long to be read.
    Long(u64),
}

/// Cuts a stream into events (WHATWG HTML §9.2.6): lines end with CR, LF or both.
#[derive(Default)]
pub(super) struct Stream {
    /// The current line so far, up to the bound.
    pub(super) line: Vec<u8>,
    line_bytes: u64,
    /// The data of the current event so far, up to the bound.
    pub(super) data: Vec<u8>,
    data_bytes: u64,
    /// The last byte was a CR: a LF after it ends no further line.
    after_cr: bool,
}

impl Stream {
    pub(super) fn read(&mut self, mut piece: &[u8], take: &mut impl FnMut(Data<'_>)) {
        while !piece.is_empty() {
            if mem::take(&mut self.after_cr)
                && let Some(rest) = piece.strip_prefix(b"\n")
            {
                piece = rest;
                continue;
            }
            let end = memchr2(b'\r', b'\n', piece);
            let (part, rest) = piece.split_at(end.unwrap_or(piece.len()));
            hold(&mut self.line, part);
            self.line_bytes += part.len() as u64;
            let Some((end, rest)) = rest.split_first() else {
                return;
            };
            piece = rest;
            self.after_cr = *end == b'\r';
            self.end_line(take);
        }
    }

    /// Ends the stream. An event that no empty line ended counts too: the connection may have been
    /// cut there.
    pub(super) fn end(&mut self, take: &mut impl FnMut(Data<'_>)) {
        self.end_line(take);
        self.end_event(take);
    }

    fn end_line(&mut self, take: &mut impl FnMut(Data<'_>)) {
        let line = mem::take(&mut self.line);
        let bytes = mem::take(&mut self.line_bytes);
        if bytes == 0 {
            self.end_event(take);
        } else if let Some(value) = line.strip_prefix(b"data:") {
            if self.data_bytes > 0 {
                hold(&mut self.data, b"\n");
            }
            hold(&mut self.data, value);
            self.data_bytes += bytes;
        }
        // Its memory serves the next line.
        self.line = line;
        self.line.clear();
    }

    fn end_event(&mut self, take: &mut impl FnMut(Data<'_>)) {
        let bytes = mem::take(&mut self.data_bytes);
        if bytes > 0 {
            // The bound was reached by the line or by the data; either makes the data short.
            let cut = self.data.len() >= HELD_LIMIT_BYTES || bytes > HELD_LIMIT_BYTES as u64;
            take(if cut {
                Data::Long(bytes)
            } else {
                Data::Whole(&self.data)
            });
        }
        self.data.clear();
    }
}

/// Appends to what is held, up to the bound.
fn hold(held: &mut Vec<u8>, more: &[u8]) {
    let room = HELD_LIMIT_BYTES - held.len().min(HELD_LIMIT_BYTES);
    held.extend_from_slice(more.get(..room).unwrap_or(more));
}
