//! The sink's thread: makes lines of what is in the queue, and writes them.
//!
//! Lines go out whole, in order, and are written on where a failed write left off. Whoever reads
//! along gets a copy here, so that nobody who makes a record pays for it. Called by the sink.

use std::io::{self, Write};
use std::time::SystemTime;

use serde::Serialize;

use crate::audit::Data;
use crate::audit::chain::{GAP, Keys};
use crate::audit::file::ChainFile;
use crate::audit::head::State as HeadState;
use crate::audit::line::Stamp;
use crate::audit::live::Live;
use crate::audit::queue::{Entry, Queue};

/// The size of one write, about; a long batch is several.
const WRITE_BYTES: usize = 64 * 1024;

/// Is the sink's thread.
pub(super) fn run(queue: &Queue, mut output: Output) {
    let mut batch = Vec::new();
    while let Some(lost) = queue.take(&mut batch) {
        if lost > 0 {
            output.line(&Gap::of(lost));
            queue.live.gap();
        }
        let mut count = 0;
        for entry in batch.drain(..) {
            let is_done = match entry {
                Entry::Event(line) => {
                    output.line(&line);
                    true
                }
                Entry::Record(data) => {
                    output.record(&data, &queue.live);
                    true
                }
                Entry::Keys(keys) => output.rekey(queue, *keys),
                Entry::Close => output.close(queue),
                Entry::EndReaders(session) => {
                    queue.live.end(&session);
                    true
                }
            };
            count += 1;
            if !is_done || (output.is_due() && !output.settle(queue)) {
                return;
            }
        }
        if !output.settle(queue) {
            return;
        }
        queue.count_written(count);
    }
    output.close(queue);
}

/// Does something until it works, however often it takes; false where that was given up.
fn retry(queue: &Queue, mut work: impl FnMut() -> io::Result<()>) -> bool {
    let mut failed = false;
    while let Err(error) = work() {
        if !failed {
            tracing::error!(%error, "audit sink cannot be written to");
            failed = true;
        }
        if !queue.pause() {
            return false;
        }
    }
    if failed {
        tracing::info!("audit sink can be written to again");
    }
    true
}

/// The line that stands where records were lost.
#[derive(Serialize)]
struct Gap {
    event: &'static str,
    time: Stamp,
    lost: u64,
}

impl Gap {
    fn of(lost: u64) -> Self {
        Self {
            event: GAP,
            time: Stamp(SystemTime::now()),
            lost,
        }
    }
}

/// Where lines go.
pub(super) enum Writer {
    /// A file whose lines are chained.
    Chain(Box<ChainFile>),
    /// Anything else.
    Stream(Box<dyn Write + Send>),
}

/// Lines that are made but not yet written.
pub(super) struct Output {
    writer: Writer,
    pub(super) lines: Vec<u8>,
    /// How much of `lines` is out: a failed write goes on here, so that no line is torn or doubled.
    done: usize,
    /// The chain was ended: what comes next begins it anew.
    is_closed: bool,
}

impl Output {
    pub(super) fn new(writer: Writer) -> Self {
        Self {
            writer,
            lines: Vec::with_capacity(WRITE_BYTES),
            done: 0,
            is_closed: false,
        }
    }

    fn record(&mut self, data: &Data, live: &Live) {
        self.open();
        let start = self.lines.len();
        data.write(&mut self.lines);
        if live.is_any()
            && let Some(session) = &data.session
        {
            let line = self.lines.get(start..).unwrap_or_default();
            live.send(session, line, data.is_last());
        }
        self.finish(start);
    }

    fn line(&mut self, line: &impl Serialize) {
        self.open();
        let start = self.lines.len();
        if let Err(error) = serde_json::to_writer(&mut self.lines, line) {
            // Nothing that is handed over has a key that is no text, which alone could fail.
            tracing::error!(%error, "audit line could not be made");
            self.lines.truncate(start);
            return;
        }
        self.finish(start);
    }

    /// Tells whether what is made should be written before more is: it is much, or fills the file.
    fn is_due(&self) -> bool {
        let is_full = match &self.writer {
            Writer::Chain(file) => file.is_full_with(self.lines.len()),
            Writer::Stream(_) => false,
        };
        is_full || self.lines.len() >= WRITE_BYTES
    }

    /// Ends the line that begins at `start`.
    fn finish(&mut self, start: usize) {
        match &mut self.writer {
            Writer::Chain(file) => file.append(&mut self.lines, start),
            Writer::Stream(_) => self.lines.push(b'\n'),
        }
    }

    /// Begins the chain anew where it was ended.
    fn open(&mut self) {
        if let (true, Writer::Chain(file)) = (self.is_closed, &mut self.writer) {
            file.begin(&mut self.lines, "started", 0);
            self.is_closed = false;
        }
    }

    /// Ends the chain in order.
    fn close(&mut self, queue: &Queue) -> bool {
        if self.is_closed {
            return true;
        }
        if let Writer::Chain(file) = &mut self.writer {
            file.end(&mut self.lines, "stopped");
            self.is_closed = true;
        }
        let is_written = retry(queue, || self.write());
        if let (true, Writer::Chain(file)) = (is_written, &mut self.writer) {
            file.note_head(HeadState::Closed);
            file.tell();
        }
        is_written
    }

    /// Ends the segment, and begins one under other keys; under the same ones it goes on.
    fn rekey(&mut self, queue: &Queue, keys: Keys) -> bool {
        if let Writer::Chain(file) = &self.writer
            && file.is_under(&keys)
        {
            return true;
        }
        self.open();
        if let Writer::Chain(file) = &mut self.writer {
            file.end(&mut self.lines, "key");
            file.rekey(keys);
            file.begin(&mut self.lines, "key", 0);
        }
        let is_written = retry(queue, || self.write());
        if is_written {
            self.note_head(HeadState::Open);
        }
        is_written
    }

    pub(super) fn note_head(&mut self, state: HeadState) {
        if let Writer::Chain(file) = &mut self.writer {
            file.note_head(state);
        }
    }

    /// Writes all that is made, and begins another file where this one is full; false where that was
    /// given up.
    fn settle(&mut self, queue: &Queue) -> bool {
        if !retry(queue, || self.write()) {
            return false;
        }
        match &mut self.writer {
            Writer::Chain(file) if file.is_full_with(0) && !self.is_closed => self.turn_over(queue),
            Writer::Chain(_) | Writer::Stream(_) => true,
        }
    }

    fn turn_over(&mut self, queue: &Queue) -> bool {
        if let Writer::Chain(file) = &mut self.writer {
            file.end(&mut self.lines, "rotated");
        }
        if !retry(queue, || self.write()) {
            return false;
        }
        if let Writer::Chain(file) = &mut self.writer {
            if !retry(queue, || file.turn_over()) {
                return false;
            }
            file.begin(&mut self.lines, "rotated", 0);
        }
        if !retry(queue, || self.write()) {
            return false;
        }
        if let Writer::Chain(file) = &mut self.writer {
            file.retire();
            file.note_head(HeadState::Open);
        }
        true
    }

    pub(super) fn write(&mut self) -> io::Result<()> {
        while let Some(rest) = self.lines.get(self.done..).filter(|rest| !rest.is_empty()) {
            let written = match &mut self.writer {
                Writer::Chain(file) => file.write(rest),
                Writer::Stream(stream) => stream.write(rest),
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => self.done += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if let Writer::Stream(stream) = &mut self.writer {
            stream.flush()?;
        }
        self.lines.clear();
        self.done = 0;
        Ok(())
    }
}
