//! The sink: a bounded queue and the one thread that makes lines of it and writes them.
//!
//! Whoever hands something over holds a lock for a push and never waits for the writer; a writer
//! that is slow or stuck costs records, never time or unbounded memory, and the gap it leaves is
//! told with its exact size. Lines go out whole, in order, and are written on where a failed write
//! left off. Called by `Record` and by `app` for its own lines.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::Value;

use crate::audit::Data;
use crate::audit::line::Stamp;

/// The number of records that wait for the writer at most.
const QUEUE_LIMIT: usize = 8192;
/// How long the writer gathers before it writes. Waking a thread costs the one who wakes it more
/// than the record does: under load this makes it at most 500 times a second.
const GATHER: Duration = Duration::from_millis(2);
/// The fill that ends the gathering early.
const GATHER_LIMIT: usize = QUEUE_LIMIT / 2;
/// How long the writer waits after a failed write.
const RETRY: Duration = Duration::from_millis(250);
/// How long [`Sink::flush`] waits at most.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);
/// The size of one write, about; a long batch is several.
const WRITE_BYTES: usize = 64 * 1024;

/// Takes audit records and event lines, and writes them as JSON lines on a thread of its own.
///
/// Clones share one queue. The thread ends when the last clone is gone and all is written; the
/// process ends without waiting for it, so that [`Sink::flush`] has to be called before.
#[derive(Clone)]
pub struct Sink(Option<Arc<Handle>>);

impl Sink {
    /// Makes a sink that writes to a stream.
    ///
    /// # Panics
    /// Panics where the system gives no thread.
    #[expect(
        clippy::expect_used,
        reason = "called at start-up; a process that can make no thread cannot serve either"
    )]
    pub fn to_writer(writer: Box<dyn Write + Send>) -> Self {
        let queue = Arc::new(Queue::default());
        let handle = Handle(Arc::clone(&queue));
        thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || run(&queue, Output::new(writer)))
            .expect("the system gives a thread");
        Self(Some(Arc::new(handle)))
    }

    /// Makes a sink that forgets all it gets.
    pub fn discard() -> Self {
        Self(None)
    }

    /// Writes a line of our own, such as `ready`. It is never lost to a full queue.
    ///
    /// For the few lines of a process's life only: nothing bounds their number.
    pub fn event(&self, line: Value) {
        if let Some(handle) = &self.0 {
            handle.0.push_event(Box::new(line));
        }
    }

    /// Waits until all that was handed over before this call is written, at most two seconds.
    ///
    /// It blocks the thread: not for use inside of a busy runtime.
    pub fn flush(&self) {
        if let Some(handle) = &self.0 {
            handle.0.flush();
        }
    }

    /// Takes a finished record, or counts it as lost where the queue is full.
    pub(super) fn record(&self, data: Box<Data>) {
        if let Some(handle) = &self.0 {
            handle.0.push_record(data);
        }
    }

    pub(super) fn is_discarding(&self) -> bool {
        self.0.is_none()
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink")
            .field("discards", &self.is_discarding())
            .finish_non_exhaustive()
    }
}

/// What all clones of a sink own; its end tells the thread to end.
struct Handle(Arc<Queue>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.wake.notify_one();
    }
}

enum Entry {
    Event(Box<Value>),
    Record(Box<Data>),
}

#[derive(Default)]
struct State {
    entries: Vec<Entry>,
    /// How many of the entries are records: only these are bounded.
    records: usize,
    /// Records that found the queue full since the writer last took it.
    lost: u64,
    /// Entries ever taken in, and how many of them are written.
    accepted: u64,
    written: u64,
    /// The writer waits for an entry, so that somebody has to wake it.
    asleep: bool,
    /// Somebody waits in a flush: no gathering.
    hurry: bool,
    closed: bool,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    wake: Condvar,
    written: Condvar,
}

impl Queue {
    /// No code panics while it holds the lock; were it so, the state would still be whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push_record(&self, data: Box<Data>) {
        let mut state = self.lock();
        if state.records >= QUEUE_LIMIT {
            state.lost += 1;
            return;
        }
        state.records += 1;
        self.push(state, Entry::Record(data));
    }

    fn push_event(&self, line: Box<Value>) {
        let state = self.lock();
        self.push(state, Entry::Event(line));
    }

    fn push(&self, mut state: MutexGuard<'_, State>, entry: Entry) {
        state.accepted += 1;
        state.entries.push(entry);
        let wake = state.asleep || state.records == GATHER_LIMIT;
        state.asleep = false;
        drop(state);
        if wake {
            self.wake.notify_one();
        }
    }

    fn flush(&self) {
        let mut state = self.lock();
        let goal = state.accepted;
        state.hurry = true;
        self.wake.notify_one();
        drop(
            self.written
                .wait_timeout_while(state, FLUSH_LIMIT, |state| state.written < goal),
        );
    }

    /// Waits for entries and takes them all, with the number of records lost since the last time.
    /// Nothing once the sink is gone and the queue is empty.
    fn take(&self, batch: &mut Vec<Entry>) -> Option<u64> {
        let mut state = self.lock();
        while state.entries.is_empty() {
            if state.closed {
                return None;
            }
            state.asleep = true;
            state = self
                .wake
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.asleep = false;
        let (mut state, _) = self
            .wake
            .wait_timeout_while(state, GATHER, |state| {
                !state.hurry && !state.closed && state.records < GATHER_LIMIT
            })
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut state.entries, batch);
        state.records = 0;
        state.hurry = false;
        Some(std::mem::take(&mut state.lost))
    }

    /// Waits after a failed write; false where nobody is left for whom to try again.
    fn pause(&self) -> bool {
        let (state, _) = self
            .wake
            .wait_timeout_while(self.lock(), RETRY, |state| !state.closed)
            .unwrap_or_else(PoisonError::into_inner);
        !state.closed
    }

    fn count_written(&self, entries: u64) {
        self.lock().written += entries;
        self.written.notify_all();
    }
}

/// Is the sink's thread.
fn run(queue: &Queue, mut output: Output) {
    let mut batch = Vec::new();
    while let Some(lost) = queue.take(&mut batch) {
        if lost > 0 {
            output.line(&Gap::of(lost));
        }
        let mut count = 0;
        for entry in batch.drain(..) {
            match entry {
                Entry::Event(line) => output.line(&line),
                Entry::Record(data) => output.record(&data),
            }
            count += 1;
            if output.lines.len() >= WRITE_BYTES && !write_out(queue, &mut output) {
                return;
            }
        }
        if !write_out(queue, &mut output) {
            return;
        }
        queue.count_written(count);
    }
}

/// Writes all that is made, however often it takes; false where that was given up.
fn write_out(queue: &Queue, output: &mut Output) -> bool {
    let mut failed = false;
    while let Err(error) = output.write() {
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
            event: "audit_gap",
            time: Stamp(SystemTime::now()),
            lost,
        }
    }
}

/// Lines that are made but not yet written.
struct Output {
    writer: Box<dyn Write + Send>,
    lines: Vec<u8>,
    /// How much of `lines` is out: a failed write goes on here, so that no line is torn or doubled.
    done: usize,
}

impl Output {
    fn new(writer: Box<dyn Write + Send>) -> Self {
        Self {
            writer,
            lines: Vec::with_capacity(WRITE_BYTES),
            done: 0,
        }
    }

    fn record(&mut self, data: &Data) {
        data.write(&mut self.lines);
        self.lines.push(b'\n');
    }

    fn line(&mut self, line: &impl Serialize) {
        let start = self.lines.len();
        if let Err(error) = serde_json::to_writer(&mut self.lines, line) {
            // Nothing that is handed over has a key that is no text, which alone could fail.
            tracing::error!(%error, "audit line could not be made");
            self.lines.truncate(start);
            return;
        }
        self.lines.push(b'\n');
    }

    fn write(&mut self) -> io::Result<()> {
        while let Some(rest) = self.lines.get(self.done..).filter(|rest| !rest.is_empty()) {
            match self.writer.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => self.done += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.writer.flush()?;
        self.lines.clear();
        self.done = 0;
        Ok(())
    }
}

/// What a sink of a test has written.
#[cfg(test)]
pub(crate) struct Captured {
    sink: Sink,
    bytes: Arc<Mutex<Vec<u8>>>,
}

#[cfg(test)]
impl Captured {
    /// Returns all that was handed over until now, as text.
    pub(crate) fn text(&self) -> String {
        self.sink.flush();
        String::from_utf8(self.bytes.lock().unwrap().clone()).unwrap()
    }

    /// Returns all that was handed over until now, parsed.
    pub(crate) fn lines(&self) -> Vec<Value> {
        let text = self.text();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

/// Makes a sink whose lines a test can read.
#[cfg(test)]
pub(crate) fn capture() -> (Sink, Captured) {
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let sink = Sink::to_writer(Box::new(tests::Shared(Arc::clone(&bytes))));
    let captured = Captured {
        sink: sink.clone(),
        bytes,
    };
    (sink, captured)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use serde_json::json;

    use super::*;
    use crate::audit::{Kind, Record};

    /// Far beyond what any test here needs; reached only by a failing one.
    const FAR: Duration = Duration::from_mins(1);

    pub(super) struct Shared(pub(super) Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Tells that a write has come, and holds it until the gate is dropped.
    struct Gated {
        entered: Sender<()>,
        gate: Receiver<()>,
        inner: Shared,
    }

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _entered = self.entered.send(());
            let _open = self.gate.recv();
            self.inner.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gated() -> (Captured, Receiver<()>, Sender<()>) {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let (entered, inside) = channel();
        let (opener, gate) = channel();
        let sink = Sink::to_writer(Box::new(Gated {
            entered,
            gate,
            inner: Shared(Arc::clone(&bytes)),
        }));
        (Captured { sink, bytes }, inside, opener)
    }

    fn emit(sink: &Sink, count: usize) {
        for number in 0..count {
            Record::begin(sink, Kind::Exchange).request("GET", &format!("/{number}"));
        }
    }

    #[test]
    fn a_stuck_writer_costs_records_with_an_exact_count_and_no_time() {
        let (captured, inside, opener) = gated();
        emit(&captured.sink, 1);
        inside.recv_timeout(FAR).unwrap();
        let (done, finished) = channel();
        let sink = captured.sink.clone();
        thread::spawn(move || {
            emit(&sink, QUEUE_LIMIT + 5);
            sink.event(json!({"event": "ready"}));
            done.send(()).unwrap();
        });
        finished
            .recv_timeout(FAR)
            .expect("nobody waits for the writer");
        drop(opener);
        let lines = captured.lines();
        assert_eq!(lines.len(), 1 + 1 + QUEUE_LIMIT + 1);
        assert_eq!(lines[0]["event"], "exchange");
        assert_eq!(lines[1]["event"], "audit_gap");
        assert_eq!(lines[1]["lost"], 5);
        assert_eq!(lines[1]["time"].as_str().unwrap().len(), 24);
        assert_eq!(lines[2]["path"], "/0");
        assert_eq!(
            lines[1 + QUEUE_LIMIT]["path"],
            format!("/{}", QUEUE_LIMIT - 1)
        );
        assert_eq!(
            lines[2 + QUEUE_LIMIT]["event"],
            "ready",
            "events are never lost"
        );
        emit(&captured.sink, 1);
        let after = captured.lines();
        assert_eq!(after.len(), lines.len() + 1, "a gap is told once");
    }

    #[test]
    fn flush_gives_up_on_a_stuck_writer() {
        let (captured, inside, opener) = gated();
        emit(&captured.sink, 1);
        inside.recv_timeout(FAR).unwrap();
        let (done, finished) = channel();
        thread::spawn(move || {
            captured.sink.flush();
            done.send(()).unwrap();
        });
        finished.recv_timeout(FAR).expect("flush has a limit");
        drop(opener);
    }

    #[test]
    fn records_of_many_threads_are_all_written_whole() {
        let (sink, captured) = capture();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| emit(&sink, 500));
            }
        });
        let lines = captured.lines();
        assert_eq!(lines.len(), 4000);
        assert!(lines.iter().all(|line| line["event"] == "exchange"));
    }

    #[test]
    fn events_and_records_keep_their_order() {
        let (sink, captured) = capture();
        sink.event(json!({"event": "api_key"}));
        sink.event(json!({"event": "ready"}));
        emit(&sink, 1);
        sink.event(json!({"event": "last"}));
        let lines = captured.lines();
        let events: Vec<_> = lines.iter().map(|line| line["event"].as_str()).collect();
        let expected = ["api_key", "ready", "exchange", "last"].map(Some);
        assert_eq!(events, expected);
    }

    #[test]
    fn what_was_handed_over_is_written_after_the_sink_is_gone() {
        let (captured, inside, opener) = gated();
        let Captured { sink, bytes } = captured;
        let queue = Arc::downgrade(&sink.0.as_ref().unwrap().0);
        emit(&sink, 1);
        inside.recv_timeout(FAR).unwrap();
        emit(&sink, 2);
        drop((sink, opener));
        // The thread owns the queue last; it is gone when the thread has ended.
        while queue.strong_count() > 0 {
            thread::yield_now();
        }
        let text = String::from_utf8(bytes.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 3);
    }

    /// Answers each write with the next step of a script; then all is taken.
    struct Scripted {
        steps: VecDeque<io::Result<usize>>,
        inner: Shared,
    }

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = self.steps.pop_front().unwrap_or(Ok(bytes.len()))?;
            self.inner.write(&bytes[..taken.min(bytes.len())])
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn failed_and_partial_writes_tear_no_line() {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = Sink::to_writer(Box::new(Scripted {
            steps: VecDeque::from([
                Ok(3),
                Err(io::ErrorKind::Interrupted.into()),
                Ok(10),
                Err(io::ErrorKind::StorageFull.into()),
                Ok(0),
                Ok(1),
            ]),
            inner: Shared(Arc::clone(&bytes)),
        }));
        emit(&sink, 3);
        let captured = Captured { sink, bytes };
        let paths: Vec<_> = captured
            .lines()
            .iter()
            .map(|line| line["path"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(paths, ["/0", "/1", "/2"]);
    }

    #[test]
    fn a_sink_that_always_fails_lets_its_thread_end() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let sink = Sink::to_writer(Box::new(Broken));
        let queue = Arc::downgrade(&sink.0.as_ref().unwrap().0);
        emit(&sink, 1);
        drop(sink);
        while queue.strong_count() > 0 {
            thread::yield_now();
        }
    }
}
