//! Bytes that must be written to a connection before anything else is.
//!
//! An outbox knows how far its bytes came, whether any was handed over at all, and whether the
//! receiver does not take what is ready for it. It is wiped when dropped: heads with real values
//! stand in it. Called by the flow and by whoever writes what did not come from a connection.

use std::io;
use std::task::{Context, Poll, ready};

use zeroize::optimization_barrier;

use super::io::Connection;

/// Bytes on their way to a connection.
pub struct Outbox {
    bytes: Vec<u8>,
    written: usize,
    /// Written, but perhaps not yet flushed.
    dirty: bool,
    /// Whether any byte was handed to the receiver.
    started: bool,
    /// How many bytes the receiver has taken.
    taken: u64,
    /// The receiver did not take what was ready for it.
    blocked: bool,
}

impl std::fmt::Debug for Outbox {
    /// Leaves out the bytes: the head among them has real values.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox")
            .field("bytes", &self.bytes.len())
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.wipe();
    }
}

impl Outbox {
    /// Starts with the bytes that are written first.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            written: 0,
            dirty: false,
            started: false,
            taken: 0,
            blocked: false,
        }
    }

    /// Gives access to what waits, for more to be put behind it.
    pub fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Makes room for more bytes. Growing by itself would leave copies of what stood there.
    pub fn make_room(&mut self, count: usize) {
        make_room(&mut self.bytes, count);
    }

    /// Tells whether nothing waits to be written or flushed.
    pub fn is_clear(&self) -> bool {
        self.written == self.bytes.len() && !self.dirty
    }

    /// Tells whether the receiver does not take what is ready for it.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Returns how many bytes the receiver has taken.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Tells whether no byte was handed to the receiver: it can start again elsewhere as it is.
    pub fn is_unsent(&self) -> bool {
        !self.started
    }

    /// Overwrites the head, which may have real values, and all that stood there before.
    fn wipe(&mut self) {
        wipe(&mut self.bytes);
    }

    /// Starts again with other bytes, towards another receiver.
    pub fn rewind(&mut self, bytes: Vec<u8>) {
        self.wipe();
        self.bytes = bytes;
        self.written = 0;
        self.dirty = false;
        self.started = false;
    }

    /// Writes all that waits. What was written stays in memory until it is overwritten.
    ///
    /// # Errors
    /// The receiver's.
    pub fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut Connection,
    ) -> Poll<io::Result<()>> {
        let bytes = std::mem::take(&mut self.bytes);
        let drained = loop {
            let Some(rest @ [_, ..]) = bytes.get(self.written..) else {
                break Poll::Ready(Ok(()));
            };
            match self.poll_write(cx, to, rest) {
                Poll::Ready(Ok(count)) => self.written += count,
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break Poll::Pending,
            }
        };
        self.bytes = bytes;
        ready!(drained)?;
        self.bytes.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    /// Writes bytes that do not stand in the outbox, which must be drained.
    ///
    /// # Errors
    /// The receiver's.
    pub fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut Connection,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = to.poll_write(cx, bytes);
        self.blocked = written.is_pending();
        // A write that fails may have sent a part: only one that waits has sent nothing.
        self.started |= !self.blocked;
        let count = ready!(written)?;
        self.dirty = true;
        self.taken += count as u64;
        Poll::Ready(Ok(count))
    }

    /// Flushes what was written.
    ///
    /// # Errors
    /// The receiver's.
    pub fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut Connection,
    ) -> Poll<io::Result<()>> {
        if self.dirty {
            let flushed = to.poll_flush(cx);
            self.blocked = flushed.is_pending();
            ready!(flushed)?;
            self.dirty = false;
        }
        Poll::Ready(Ok(()))
    }
}

/// Makes room for more bytes without leaving a copy of those that are there.
pub(super) fn make_room(bytes: &mut Vec<u8>, count: usize) {
    if bytes.capacity() - bytes.len() < count {
        let wanted = (bytes.len() + count).max(2 * bytes.capacity());
        let mut wider = Vec::with_capacity(wanted);
        wider.extend_from_slice(bytes);
        wipe(bytes);
        *bytes = wider;
    }
}

/// Overwrites all that stands in a buffer, or stood there before. Whole at once: byte by byte, as
/// `zeroize` does it, costs as much as all else that is done here.
pub(super) fn wipe(bytes: &mut Vec<u8>) {
    bytes.clear();
    bytes.resize(bytes.capacity(), 0);
    optimization_barrier(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_made_without_losing_what_waits() {
        let mut out = Outbox::new(b"head".to_vec());
        out.make_room(1000);
        assert_eq!(out.bytes(), b"head");
        let (room, place) = (out.bytes().capacity(), out.bytes().as_ptr());
        assert!(room >= 1004, "{room}");
        out.make_room(500);
        out.bytes().extend_from_slice(&[b'x'; 1000]);
        assert_eq!(
            (out.bytes().capacity(), out.bytes().as_ptr()),
            (room, place)
        );
    }
}
