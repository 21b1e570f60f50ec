//! One coding of a body: a decoder of one format, its bound on growth, and where it stands.

use std::fmt;

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use flate2::{Decompress, FlushDecompress, Status};
use zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

use super::gzip::Gzip;
use super::{Coding, Error, GRACE_BYTES, RATIO_LIMIT};
use crate::wire::Progress;

/// The room that a decoder gets at a time.
const ROOM_BYTES: usize = 16 * 1024;
/// The largest window of zstd, as a power of two: 8 MiB (RFC 9659 §3).
const ZSTD_WINDOW_LOG: u32 = 23;

/// How much one call of a decoder took and gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) read: usize,
    pub(super) written: usize,
}

/// Whether the format said that it ends here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    No,
    Yes,
}

/// One coding.
pub(super) struct Stage {
    coding: Coding,
    format: Format,
    read: u64,
    written: u64,
}

enum Format {
    /// Nothing of a `deflate` body was read, so that it is open which of the two it is.
    Deflate,
    Inflate(Decompress, Ended),
    Gzip(Box<Gzip>),
    Brotli(
        Box<BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>>,
        Ended,
    ),
    Zstd(Zstd),
}

impl Stage {
    pub(super) fn new(coding: Coding) -> Self {
        let format = match coding {
            Coding::Brotli => {
                let alloc = StandardAlloc::default;
                // Not `new`: that one reads windows of up to 1 GiB, which no RFC knows.
                let state = BrotliState::new_strict(alloc(), alloc(), alloc());
                Format::Brotli(Box::new(state), Ended::No)
            }
            Coding::Deflate => Format::Deflate,
            Coding::Gzip => Format::Gzip(Box::new(Gzip::new())),
            Coding::Zstd => Format::Zstd(Zstd::new()),
        };
        Self {
            coding,
            format,
            read: 0,
            written: 0,
        }
    }

    pub(super) fn is_untouched(&self) -> bool {
        self.read == 0
    }

    pub(super) fn is_at_end(&self) -> bool {
        match &self.format {
            Format::Deflate => false,
            Format::Inflate(_, ended) | Format::Brotli(_, ended) => *ended == Ended::Yes,
            Format::Gzip(gzip) => gzip.is_at_end(),
            Format::Zstd(zstd) => zstd.ended == Ended::Yes,
        }
    }

    /// Decodes until the input is taken, `out` has `limit` bytes, or the budget is used up.
    pub(super) fn step(
        &mut self,
        input: &mut &[u8],
        out: &mut Vec<u8>,
        limit: usize,
        budget: &mut usize,
    ) -> Result<Progress, Error> {
        loop {
            let start = out.len();
            let room = ROOM_BYTES.min(limit.saturating_sub(start)).min(*budget);
            if room == 0 {
                return Ok(Progress::Full);
            }
            out.resize(start + room, 0);
            let moved = self.once(input, out.get_mut(start..).unwrap_or_default());
            out.truncate(start + moved.map_or(0, |moved| moved.written));
            let Moved { read, written } = moved?;
            *input = input.get(read..).unwrap_or_default();
            *budget -= written;
            self.read += read as u64;
            self.written += written as u64;
            if self.written > GRACE_BYTES && self.written / RATIO_LIMIT > self.read {
                return Err(Error::Bomb);
            }
            if written < room && input.is_empty() {
                return Ok(Progress::Hungry);
            }
            if read == 0 && written == 0 {
                // It takes nothing although there is input and room: nothing may follow its end.
                return Err(Error::Corrupt);
            }
        }
    }

    fn once(&mut self, input: &[u8], out: &mut [u8]) -> Result<Moved, Error> {
        if let (Format::Deflate, Some(first)) = (&self.format, input.first()) {
            // The low half of zlib's first byte names deflate, the high half a window of at most
            // 32 KiB. A bare stream could begin so only with a stored block whose unused bits
            // are set.
            let zlib = first & 15 == 8 && first >> 4 <= 7;
            self.format = Format::Inflate(Decompress::new(zlib), Ended::No);
        }
        match &mut self.format {
            Format::Deflate | Format::Inflate(_, Ended::Yes) | Format::Brotli(_, Ended::Yes) => {
                Ok(Moved::default())
            }
            Format::Inflate(inflater, ended) => {
                let (moved, now) = inflate(inflater, input, out)?;
                *ended = now;
                Ok(moved)
            }
            Format::Gzip(gzip) => gzip.step(input, out),
            Format::Brotli(state, ended) => {
                let (moved, now) = unbrotli(state, input, out)?;
                *ended = now;
                Ok(moved)
            }
            Format::Zstd(zstd) => zstd.step(input, out),
        }
    }
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage")
            .field("coding", &self.coding)
            .field("read", &self.read)
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

/// Decodes a deflate stream. It ends only once all that was decoded has been written.
pub(super) fn inflate(
    inflater: &mut Decompress,
    input: &[u8],
    out: &mut [u8],
) -> Result<(Moved, Ended), Error> {
    let before = (inflater.total_in(), inflater.total_out());
    let status = inflater
        .decompress(input, out, FlushDecompress::None)
        .map_err(|_detail| Error::Corrupt)?;
    let moved = |now: u64, before: u64| usize::try_from(now - before).unwrap_or(usize::MAX);
    let ended = match status {
        Status::StreamEnd => Ended::Yes,
        Status::Ok | Status::BufError => Ended::No,
    };
    let moved = Moved {
        read: moved(inflater.total_in(), before.0),
        written: moved(inflater.total_out(), before.1),
    };
    Ok((moved, ended))
}

fn unbrotli(
    state: &mut BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>,
    input: &[u8],
    out: &mut [u8],
) -> Result<(Moved, Ended), Error> {
    let (mut left, mut read) = (input.len(), 0);
    let (mut room, mut written, mut total) = (out.len(), 0, 0);
    let result = BrotliDecompressStream(
        &mut left,
        &mut read,
        input,
        &mut room,
        &mut written,
        out,
        &mut total,
        state,
    );
    let ended = match result {
        BrotliResult::ResultSuccess => Ended::Yes,
        BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => Ended::No,
        BrotliResult::ResultFailure => return Err(Error::Corrupt),
    };
    Ok((Moved { read, written }, ended))
}

/// A sequence of zstd frames.
struct Zstd {
    /// Nothing if there was no memory for it.
    context: Option<DCtx<'static>>,
    /// The last call filled its room, so that there may be more without input.
    full: bool,
    /// The last byte that was read ended a frame.
    ended: Ended,
}

impl Zstd {
    fn new() -> Self {
        let context = DCtx::try_create().and_then(|mut context| {
            let window = DParameter::WindowLogMax(ZSTD_WINDOW_LOG);
            context.set_parameter(window).ok()?;
            Some(context)
        });
        Self {
            context,
            full: false,
            ended: Ended::No,
        }
    }

    fn step(&mut self, input: &[u8], out: &mut [u8]) -> Result<Moved, Error> {
        if input.is_empty() && !self.full {
            return Ok(Moved::default());
        }
        let context = self.context.as_mut().ok_or(Error::Corrupt)?;
        let (mut from, mut to) = (InBuffer::around(input), OutBuffer::around(out));
        let wanted = context
            .decompress_stream(&mut to, &mut from)
            .map_err(|_detail| Error::Corrupt)?;
        let moved = Moved {
            read: from.pos(),
            written: to.pos(),
        };
        if moved != Moved::default() {
            self.ended = if wanted == 0 { Ended::Yes } else { Ended::No };
        }
        self.full = to.pos() == to.capacity();
        Ok(moved)
    }
}
