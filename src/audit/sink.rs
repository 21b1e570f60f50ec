//! The sink: a bounded queue and the one thread that makes lines of it and writes them.
//!
//! Whoever hands something over holds a lock for a push and never waits for the writer; a writer
//! that is slow or stuck costs records, never time or unbounded memory, and the gap it leaves is
//! told with its exact size; or nothing new is let in until there is room. Lines go out whole, in
//! order, and are written on where a failed write left off. Called by `Record`, by `app` for its own
//! lines and by the management API for readers.

use std::fmt;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;

use super::Error;
use crate::audit::Data;
use crate::audit::away::{Relayed, Released};
use crate::audit::chain::Keys;
use crate::audit::file::{ChainFile, FileOptions};
use crate::audit::head::State as HeadState;
use crate::audit::live::{Live, Subscription, TooManyReaders};
use crate::audit::queue::{Entry, QUEUE_LIMIT, Queue};
use crate::audit::tally::Tally;
use crate::audit::writer::{Output, Writer, run};
use crate::id::{SessionId, TenantId};
use crate::policy::Catalogue;
use crate::seal::Keyring;

/// How long [`Sink::flush`] waits at most.
const FLUSH_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 10 } else { 2 });
/// How long [`Sink::close_away`] waits for another process at most.
const AWAY_LIMIT: Duration = Duration::from_secs(10);

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
    pub fn to_writer(writer: Box<dyn Write + Send>) -> Self {
        Self::start(Output::new(Writer::Stream(writer)))
    }

    /// Makes a sink that writes a chain of lines to a file, under the keyring's current key.
    ///
    /// The chain goes on where it was left. It has one writer at a time.
    ///
    /// # Errors
    /// See [`Error`].
    ///
    /// # Panics
    /// Panics where the system gives no thread.
    pub fn to_file(options: FileOptions, keyring: &Keyring) -> Result<Self, Error> {
        let path = options.path.clone();
        let (file, begin) = ChainFile::open(options, keyring)?;
        let mut output = Output::new(Writer::Chain(Box::new(file)));
        output.lines = begin;
        output
            .write()
            .map_err(|source| Error::file(&path, source))?;
        output.note_head(HeadState::Open);
        Ok(Self::start(output))
    }

    /// Refuses what is new while the queue is full, in place of a gap. To be said before it is used.
    #[must_use]
    pub fn refusing_when_full(self) -> Self {
        if let Some(handle) = &self.0 {
            handle.0.refuses.store(true, Ordering::Release);
        }
        self
    }

    #[expect(
        clippy::expect_used,
        reason = "called at start-up; a process that can make no thread cannot serve either"
    )]
    fn start(output: Output) -> Self {
        let queue = Arc::new(Queue::default());
        let handle = Handle(Arc::clone(&queue));
        thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || run(&queue, output))
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
            handle.0.flush(FLUSH_LIMIT);
        }
    }

    /// Lets go of the file, once all that was handed over before this call is in it and its segment
    /// is ended: another process may write it then. What comes meanwhile waits. Nothing where lines
    /// go to no file.
    pub async fn release(&self) -> Option<Released> {
        let handle = self.0.as_ref()?;
        let (done, released) = oneshot::channel();
        handle.0.push_order(Entry::Release(done));
        released.await.ok().flatten()
    }

    /// Writes lines of another process, which has sent its file here. Tells whether they are written.
    pub async fn relay(&self, lines: String) -> bool {
        let Some(handle) = &self.0 else { return true };
        let (written, done) = oneshot::channel();
        handle
            .0
            .push_order(Entry::Relayed(Relayed { lines, written }));
        done.await.is_ok()
    }

    /// Does as [`Sink::close`], and waits longer: for another process, which writes the lines.
    pub async fn close_away(&self) {
        let Some(handle) = &self.0 else { return };
        handle.0.push_order(Entry::Close);
        let queue = Arc::clone(&handle.0);
        let closed = tokio::task::spawn_blocking(move || queue.flush(AWAY_LIMIT));
        if !closed.await.unwrap_or_default() {
            let waiting = self.stats().waiting;
            tracing::error!(waiting, "the last audit records could not be written");
        }
    }

    /// Ends the chain of a file in order, and waits for that as [`Sink::flush`] does. Whatever comes
    /// later begins it anew. A stream is flushed. What is not written by then is told to the log.
    pub fn close(&self) {
        if let Some(handle) = &self.0 {
            handle.0.push_order(Entry::Close);
            if !handle.0.flush(FLUSH_LIMIT) {
                tracing::error!("the audit sink takes nothing: the last records are lost");
            }
        }
    }

    /// Goes on under the current key of another keyring, where lines are chained.
    pub fn rekey(&self, keyring: &Keyring) {
        if let (Some(handle), Some(keys)) = (&self.0, Keys::current(keyring)) {
            handle.0.push_order(Entry::Keys(Box::new(keys)));
        }
    }

    /// Tells whether nothing new may be begun: the queue is full, and the operator wants no gap.
    pub fn is_full(&self) -> bool {
        self.0.as_ref().is_some_and(|handle| {
            handle.0.is_full.load(Ordering::Relaxed) && handle.0.refuses.load(Ordering::Relaxed)
        })
    }

    /// Reads along with one session of a tenant from now on.
    ///
    /// # Errors
    /// [`TooManyReaders`].
    pub fn subscribe(
        &self,
        tenant: &TenantId,
        session: &SessionId,
    ) -> Result<Subscription, TooManyReaders> {
        match &self.0 {
            Some(handle) => handle.0.live.subscribe(tenant, session),
            // Nothing is written, so that nothing will come.
            None => Arc::<Live>::default().subscribe(tenant, session),
        }
    }

    /// Ends the streams of a session's records, once all that was handed over before is told.
    pub fn end_readers(&self, session: &SessionId) {
        if let Some(handle) = &self.0 {
            handle.0.push_order(Entry::EndReaders(session.clone()));
        }
    }

    /// Tells which hosts belong to a secret's name, for the counts of swaps.
    pub fn classify_by(&self, catalogue: &Arc<Catalogue>) {
        if let Some(handle) = &self.0 {
            handle.0.classify_by(catalogue);
        }
    }

    /// Returns what the records so far say, in numbers, those that were lost included.
    pub fn tally(&self) -> Tally {
        let tally = self.0.as_ref().map(|handle| handle.0.tally());
        tally.unwrap_or_default()
    }

    /// Returns how the sink does.
    pub fn stats(&self) -> Stats {
        let Some(handle) = &self.0 else {
            return Stats::default();
        };
        let queue = &handle.0;
        Stats {
            waiting: queue.waiting(),
            limit: QUEUE_LIMIT,
            lost: queue.lost.load(Ordering::Relaxed),
            readers: queue.live.len(),
        }
    }

    /// Lets a test see when the thread has ended.
    #[cfg(test)]
    pub(super) fn queue(&self) -> std::sync::Weak<Queue> {
        Arc::downgrade(&self.0.as_ref().unwrap().0)
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

/// How a sink does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// The records that wait for the writer.
    pub waiting: usize,
    /// How many may.
    pub limit: usize,
    /// The records that found no room, ever.
    pub lost: u64,
    /// How many read along with sessions.
    pub readers: usize,
}

/// What all clones of a sink own; its end tells the thread to end.
struct Handle(Arc<Queue>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// What a sink of a test has written.
#[cfg(test)]
pub(crate) struct Captured {
    sink: Sink,
    bytes: Arc<std::sync::Mutex<Vec<u8>>>,
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
    let bytes = Arc::new(std::sync::Mutex::new(Vec::new()));
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
    use std::io;
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use serde_json::json;

    use super::*;
    use crate::audit::{Decision, Kind, Record};

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
    fn a_full_queue_refuses_what_is_new_and_keeps_what_was_let_in() {
        let (captured, inside, opener) = gated();
        let sink = captured.sink.clone().refusing_when_full();
        emit(&sink, 1);
        inside.recv_timeout(FAR).unwrap();
        let mut early: Vec<_> = (0..3).map(|_| Record::begin(&sink, Kind::Tunnel)).collect();
        assert!(early.iter_mut().all(|record| record.admit().is_ok()));
        emit(&sink, QUEUE_LIMIT - 1);
        assert!(!sink.is_full());
        emit(&sink, 1);
        assert!(sink.is_full());
        let mut late = Record::begin(&sink, Kind::Exchange);
        assert!(late.admit().is_err());
        drop(late);
        drop(early);
        assert_eq!(sink.stats().lost, 1, "only that of the refusal");
        assert_eq!(sink.stats().waiting, QUEUE_LIMIT + 3);
        drop(opener);
        let lines = captured.lines();
        let gaps: Vec<_> = lines
            .iter()
            .filter(|line| line["event"] == "audit_gap")
            .collect();
        assert_eq!(gaps.len(), 1);
        assert_eq!(gaps[0]["lost"], 1);
        let tunnels = lines.iter().filter(|line| line["event"] == "tunnel");
        assert_eq!(tunnels.count(), 3);
        assert!(!sink.is_full(), "there is room again");
        assert!(Record::begin(&sink, Kind::Exchange).admit().is_ok());
    }

    #[test]
    fn what_a_session_became_is_never_lost_where_nothing_may_be() {
        let (captured, inside, opener) = gated();
        let sink = captured.sink.clone().refusing_when_full();
        let change = |action| {
            let mut record = Record::begin(&sink, Kind::Session);
            record.action(action);
            record
        };
        let done = |mut record: Record| record.decision(Decision::Allowed, "ok");
        emit(&sink, 1);
        inside.recv_timeout(FAR).unwrap();
        // Begun while there was room: kept, however it ends.
        let early = change("created");
        emit(&sink, QUEUE_LIMIT);
        assert!(sink.is_full());
        drop(early);
        for action in ["deleted", "expired", "ended"] {
            done(change(action));
        }
        assert_eq!(sink.stats().lost, 0);
        // What was asked for and not done has no bound.
        drop(change("deleted"));
        assert_eq!(sink.stats().lost, 1);
        drop(opener);
        let lines = captured.lines();
        let actions = lines.iter().filter_map(|line| line["action"].as_str());
        let expected = ["created", "deleted", "expired", "ended"];
        assert_eq!(actions.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_sink_with_gaps_refuses_nothing() {
        let (captured, inside, opener) = gated();
        emit(&captured.sink, 1);
        inside.recv_timeout(FAR).unwrap();
        emit(&captured.sink, QUEUE_LIMIT);
        let mut record = Record::begin(&captured.sink, Kind::Exchange);
        assert!(record.admit().is_ok() && !captured.sink.is_full());
        drop(record);
        assert_eq!(captured.sink.stats().lost, 1);
        drop(opener);
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
