//! The sink's thread: makes lines of what is in the queue, and writes them.
//!
//! Lines go out whole, in order, and are written on where a failed write left off. Whoever reads
//! along gets a copy here, so that nobody who makes a record pays for it. Called by the sink.

use std::io::{self, Write};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::audit::Data;
use crate::audit::away::{Outlet, Relayed, Released, Spare};
use crate::audit::chain::{Begin, End, GAP, Keys, is_event};
use crate::audit::file::ChainFile;
use crate::audit::head::State as HeadState;
use crate::audit::line::Stamp;
use crate::audit::live::Live;
use crate::audit::queue::{Entry, Queue};
use crate::id::SessionId;

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
                Entry::Relayed(relayed) => output.relayed(queue, relayed),
                Entry::Keys(keys) => output.rekey(queue, *keys),
                Entry::Release(done) => output.release(queue, done),
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

/// What is read of a line of another process, for those who read along.
#[derive(Deserialize)]
struct Heard<'a> {
    session: Option<&'a str>,
    action: Option<&'a str>,
    decision: Option<&'a str>,
}

/// Where lines go.
pub(super) enum Writer {
    /// Another process, which has the file now, and what opens it again if that one goes.
    Away(Outlet, Box<Spare>),
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
    /// Who waits for what is made to be written.
    waiting: Vec<oneshot::Sender<()>>,
}

impl Output {
    pub(super) fn new(writer: Writer) -> Self {
        Self {
            writer,
            lines: Vec::with_capacity(WRITE_BYTES),
            done: 0,
            is_closed: false,
            waiting: Vec::new(),
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

    /// Takes the lines of another process as they are, and notes that it waits for them.
    fn relayed(&mut self, queue: &Queue, relayed: Relayed) -> bool {
        for line in relayed.lines.lines() {
            let own = [Begin::EVENT, End::EVENT].map(|event| is_event(line.as_bytes(), event));
            let is_record = line.starts_with("{\"event\":\"") && line.ends_with('}');
            if !is_record || own.contains(&true) {
                tracing::error!("another process sent what is no audit record");
                continue;
            }
            self.open();
            let start = self.lines.len();
            self.lines.extend_from_slice(line.as_bytes());
            if queue.live.is_any() {
                hear(line, &queue.live);
            }
            self.finish(start);
            if self.is_due() && !self.settle(queue) {
                return false;
            }
        }
        self.waiting.push(relayed.written);
        true
    }

    /// Ends the chain, lets go of its file, and waits until it is known where lines go from now on.
    fn release(&mut self, queue: &Queue, done: oneshot::Sender<Option<Released>>) -> bool {
        if !matches!(self.writer, Writer::Chain(_)) {
            drop(done.send(None));
            return true;
        }
        if !self.end(queue, "handed_over") {
            return false;
        }
        let nowhere = Writer::Stream(Box::new(io::sink()));
        let Writer::Chain(file) = std::mem::replace(&mut self.writer, nowhere) else {
            return false;
        };
        let (spare, released) = Spare::new(file.into_parts());
        // Where nobody waits for it any more it comes back at once.
        drop(done.send(Some(released)));
        let Some(outlet) = spare.outlet() else {
            return self.reopen(queue, spare);
        };
        self.is_closed = false;
        self.writer = Writer::Away(outlet, Box::new(spare));
        true
    }

    /// Writes the file again, and first what was made and is written nowhere.
    fn reopen(&mut self, queue: &Queue, spare: Spare) -> bool {
        let Spare { options, keys, .. } = spare;
        let mut opened = None;
        let found = |id| (id == keys.id).then(|| keys.clone());
        let is_open = retry(queue, || {
            let again = ChainFile::open_with(options.clone(), keys.clone(), found);
            opened = Some(again.map_err(io::Error::other)?);
            Ok(())
        });
        let Some((mut file, begin)) = opened.filter(|_| is_open) else {
            return false;
        };
        let pending = std::mem::replace(&mut self.lines, begin);
        let pending = pending.get(self.done..).unwrap_or_default();
        self.done = 0;
        for line in pending.split(|byte| *byte == b'\n') {
            if !line.is_empty() {
                let start = self.lines.len();
                self.lines.extend_from_slice(line);
                file.append(&mut self.lines, start);
            }
        }
        self.writer = Writer::Chain(Box::new(file));
        self.is_closed = false;
        let is_written = self.put(queue);
        if is_written {
            self.note_head(HeadState::Open);
        }
        is_written
    }

    /// Tells whether what is made should be written before more is: it is much, or fills the file.
    fn is_due(&self) -> bool {
        let is_full = match &self.writer {
            Writer::Chain(file) => file.is_full_with(self.lines.len()),
            Writer::Away(..) | Writer::Stream(_) => false,
        };
        is_full || self.lines.len() >= WRITE_BYTES
    }

    /// Ends the line that begins at `start`.
    fn finish(&mut self, start: usize) {
        match &mut self.writer {
            Writer::Chain(file) => file.append(&mut self.lines, start),
            Writer::Away(..) | Writer::Stream(_) => self.lines.push(b'\n'),
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
        // First what is made: where another process should have written it, the chain may be here
        // again now.
        self.put(queue) && self.end(queue, "stopped")
    }

    fn end(&mut self, queue: &Queue, why: &'static str) -> bool {
        if self.is_closed {
            return true;
        }
        if let Writer::Chain(file) = &mut self.writer {
            file.end(&mut self.lines, why);
            self.is_closed = true;
        }
        let is_written = self.put(queue);
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
        match &mut self.writer {
            Writer::Away(_, spare) => spare.keys = keys,
            Writer::Chain(file) => {
                file.end(&mut self.lines, "key");
                file.rekey(keys);
                file.begin(&mut self.lines, "key", 0);
            }
            Writer::Stream(_) => {}
        }
        let is_written = self.put(queue);
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
        if !self.put(queue) {
            return false;
        }
        for waiting in self.waiting.drain(..) {
            // Who sent it may have gone.
            let _waiting = waiting.send(());
        }
        match &mut self.writer {
            Writer::Chain(file) if file.is_full_with(0) && !self.is_closed => self.turn_over(queue),
            Writer::Away(..) | Writer::Chain(_) | Writer::Stream(_) => true,
        }
    }

    fn turn_over(&mut self, queue: &Queue) -> bool {
        if let Writer::Chain(file) = &mut self.writer {
            file.end(&mut self.lines, "rotated");
        }
        if !self.put(queue) {
            return false;
        }
        if let Writer::Chain(file) = &mut self.writer {
            if !retry(queue, || file.turn_over()) {
                return false;
            }
            file.begin(&mut self.lines, "rotated", 0);
        }
        if !self.put(queue) {
            return false;
        }
        if let Writer::Chain(file) = &mut self.writer {
            file.retire();
            file.note_head(HeadState::Open);
        }
        true
    }

    /// Writes all that is made, here or elsewhere; false where that was given up.
    fn put(&mut self, queue: &Queue) -> bool {
        if let Writer::Away(outlet, _) = &self.writer {
            self.done += outlet.send(self.lines.get(self.done..).unwrap_or_default());
            if self.done < self.lines.len() {
                return self.come_back(queue);
            }
            self.lines.clear();
            self.done = 0;
            return true;
        }
        retry(queue, || self.write())
    }

    /// Writes the file again after the other process has gone.
    fn come_back(&mut self, queue: &Queue) -> bool {
        let nowhere = Writer::Stream(Box::new(io::sink()));
        match std::mem::replace(&mut self.writer, nowhere) {
            Writer::Away(_, spare) => {
                tracing::warn!("the audit file is written here again: the other process has gone");
                self.reopen(queue, *spare)
            }
            own => {
                self.writer = own;
                true
            }
        }
    }

    pub(super) fn write(&mut self) -> io::Result<()> {
        while let Some(rest) = self.lines.get(self.done..).filter(|rest| !rest.is_empty()) {
            let written = match &mut self.writer {
                Writer::Chain(file) => file.write(rest),
                Writer::Stream(stream) => stream.write(rest),
                // It is sent, and not written.
                Writer::Away(..) => Err(io::ErrorKind::Unsupported.into()),
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

/// Hands a line of another process to whoever reads its session.
fn hear(line: &str, live: &Live) {
    let Ok(heard) = serde_json::from_str::<Heard<'_>>(line) else {
        return;
    };
    if let Some(session) = heard.session.and_then(SessionId::parse) {
        let is_end = matches!(heard.action, Some("deleted" | "ended" | "expired"));
        let is_last = is_end && heard.decision == Some("allowed");
        live.send(&session, line.as_bytes(), is_last);
    }
}
