//! Audit: exactly one record per exchange, tunnel and change of a session, emitted when dropped.
//!
//! A [`Record`] begun is a record written, whatever happens to its task: an early return, a panic, a
//! dropped future. It must never hold a secret, a sealed token, a header value, a query string or a
//! body: only names, ids, hosts, sizes and reasons. Nobody waits for the [`Sink`]: what does not fit
//! is lost, counted and told by a gap line. Called by the engines and by `session`.

mod line;
mod sink;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::host::HostPort;
use crate::id::{SessionId, TenantId};

pub use sink::Sink;

/// The longest path that a record keeps, in bytes; what is longer is cut.
pub const PATH_LIMIT_BYTES: usize = 2048;
/// The longest method that a record keeps, in bytes; what is longer is cut.
pub const METHOD_LIMIT_BYTES: usize = 64;
/// The reason of a record that nobody decided on: its task ended on the way.
pub const INCOMPLETE: &str = "incomplete";

/// Says what a record is about; it is the line's `event`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One request with its answer.
    Exchange,
    /// A change of a session: created, patched, deleted, expired.
    Session,
    /// One CONNECT, from its answer to the end of its bytes.
    Tunnel,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Exchange => "exchange",
            Self::Session => "session",
            Self::Tunnel => "tunnel",
        }
    }
}

/// Says how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Cut off before its end: by a side that went away, a deadline, a shutdown.
    Aborted,
    /// Policy said yes, and it went its way.
    Allowed,
    /// We refused it.
    Denied,
    /// Policy said yes, but it failed: the upstream or we ourselves.
    Failed,
}

impl Decision {
    fn as_str(self) -> &'static str {
        match self {
            Self::Aborted => "aborted",
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Failed => "failed",
        }
    }
}

/// One audit record in the making. Dropping it hands it to the sink: once, and always.
///
/// What is never set is absent from the line. A setter called twice keeps the last value, but for
/// [`Record::swapped`], which adds up.
#[derive(Debug)]
#[must_use = "a record that is dropped at once says that nothing was decided"]
pub struct Record {
    sink: Sink,
    /// Nothing where the sink discards all it gets, and after the record was handed over.
    data: Option<Box<Data>>,
}

impl Record {
    /// Begins a record, and its clock. Until a decision is set it says that the thing was aborted.
    pub fn begin(sink: &Sink, kind: Kind) -> Self {
        Self {
            sink: sink.clone(),
            data: (!sink.is_discarding()).then(|| Box::new(Data::new(kind))),
        }
    }

    /// Sets the tenant.
    pub fn tenant(&mut self, tenant: &TenantId) {
        self.set(|data| data.tenant = Some(tenant.clone()));
    }

    /// Sets the session.
    pub fn session(&mut self, session: &SessionId) {
        self.set(|data| data.session = Some(session.clone()));
    }

    /// Sets the host and port asked for.
    pub fn target(&mut self, target: &HostPort) {
        self.set(|data| data.target = Some(target.clone()));
    }

    /// Sets method and path as the workload sent them, both cut at a limit.
    ///
    /// A query is not kept even where the caller left one on: it may hold a secret of the
    /// workload's own.
    pub fn request(&mut self, method: &str, path_without_query: &str) {
        self.set(|data| {
            let path = path_without_query.split(['?', '#']).next();
            data.method = Some(cut(method, METHOD_LIMIT_BYTES));
            data.path = path.map(|path| cut(path, PATH_LIMIT_BYTES));
        });
    }

    /// Sets how it ended, and why: a stable `snake_case` word.
    pub fn decision(&mut self, decision: Decision, reason: &'static str) {
        self.set(|data| {
            data.decision = decision;
            data.reason = reason;
        });
    }

    /// Sets the status that the workload got.
    pub fn status(&mut self, status: u16) {
        self.set(|data| data.status = Some(status));
    }

    /// Adds the names of secrets that were put in, and the number of tokens left as they were: names
    /// are kept once each, numbers add up.
    pub fn swapped(&mut self, names: &[Arc<str>], left: u32) {
        self.set(|data| {
            data.swaps.get_or_insert_default().add(names, left);
        });
    }

    /// Reads what was swapped in the body of the request when the record is handed over; it is known
    /// when all of it went up.
    pub fn body(&mut self, swaps: &Arc<BodySwaps>) {
        self.set(|data| data.body = Some(Arc::clone(swaps)));
    }

    /// Reads the names of scrubbed secrets when the record is handed over; they are found while the
    /// answer streams.
    pub fn scrubbed(&mut self, found: &Arc<Found>) {
        self.set(|data| data.found = Some(Arc::clone(found)));
    }

    /// Sets the names of the tokens that were captured from the answer, as it calls them.
    pub fn captured(&mut self, names: &[Arc<str>]) {
        self.set(|data| data.captured = names.into());
    }

    /// Reads the numbers of bytes from a meter when the record is handed over, so that they are
    /// there however the thing ended.
    pub fn meter(&mut self, traffic: &Arc<Traffic>) {
        self.set(|data| data.traffic = Some(Arc::clone(traffic)));
    }

    /// Sets the number of body or tunnel bytes that went to the upstream.
    pub fn bytes_up(&mut self, bytes: u64) {
        self.set(|data| data.bytes_up = Some(bytes));
    }

    /// Sets the number of body or tunnel bytes that went to the workload.
    pub fn bytes_down(&mut self, bytes: u64) {
        self.set(|data| data.bytes_down = Some(bytes));
    }

    /// Sets what was done to a session: `created`, `patched`, `deleted`, `expired`.
    pub fn action(&mut self, action: &'static str) {
        self.set(|data| data.action = Some(action));
    }

    /// Sets the address of the workload.
    pub fn peer(&mut self, peer: SocketAddr) {
        self.set(|data| data.peer = Some(peer));
    }

    /// Sets the address of the upstream that was dialled.
    pub fn address(&mut self, address: SocketAddr) {
        self.set(|data| data.address = Some(address));
    }

    /// Takes the record back: what it was begun for is recorded elsewhere.
    pub fn discard(mut self) {
        self.data = None;
    }

    fn set(&mut self, change: impl FnOnce(&mut Data)) {
        if let Some(data) = &mut self.data {
            change(data);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some(mut data) = self.data.take() {
            data.took = data.began.elapsed();
            if let Some(traffic) = data.traffic.take() {
                data.bytes_up = Some(traffic.up.load(Ordering::Relaxed));
                data.bytes_down = Some(traffic.down.load(Ordering::Relaxed));
            }
            if let Some(body) = data.body.take() {
                let body = body.0.lock().unwrap_or_else(PoisonError::into_inner);
                if *body != Swaps::default() {
                    let swaps = data.swaps.get_or_insert_default();
                    swaps.add(&body.names, body.left);
                    swaps.in_body.clone_from(&body.names);
                }
            }
            self.sink.record(data);
        }
    }
}

/// Counts the bytes of an exchange or a tunnel while it runs.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Bytes of bodies that went to the upstream.
    pub up: AtomicU64,
    /// Bytes of bodies that went to the workload.
    pub down: AtomicU64,
}

/// Collects the names of secrets whose values were found in an answer.
#[derive(Debug, Default)]
pub struct Found(Mutex<Vec<(Arc<str>, u64)>>);

impl Found {
    /// Adds names, with how often their values were found.
    pub fn add<'a>(&self, more: impl Iterator<Item = (&'a Arc<str>, u64)>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, count) in more {
            match all.iter_mut().find(|(known, _)| known == name) {
                Some((_, sum)) => *sum = sum.saturating_add(count),
                None => all.push((Arc::clone(name), count)),
            }
        }
    }

    /// Returns the names so far, each once.
    pub fn names(&self) -> Vec<Arc<str>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(name, _)| Arc::clone(name)).collect()
    }
}

/// Collects what is swapped in the body of a request while it goes up.
#[derive(Debug, Default)]
pub struct BodySwaps(Mutex<Swaps>);

impl BodySwaps {
    /// Adds the names of secrets that were put in, and the number of tokens left as they were.
    pub fn add(&self, names: &[Arc<str>], left: u32) {
        let mut swaps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        swaps.add(names, left);
    }
}

/// What a record holds. It is made into text on the sink's thread, not on the caller's.
#[derive(Debug)]
struct Data {
    kind: Kind,
    time: SystemTime,
    began: Instant,
    took: Duration,
    tenant: Option<TenantId>,
    session: Option<SessionId>,
    target: Option<HostPort>,
    action: Option<&'static str>,
    method: Option<String>,
    path: Option<String>,
    decision: Decision,
    reason: &'static str,
    status: Option<u16>,
    swaps: Option<Swaps>,
    body: Option<Arc<BodySwaps>>,
    found: Option<Arc<Found>>,
    captured: Box<[Arc<str>]>,
    bytes_up: Option<u64>,
    bytes_down: Option<u64>,
    traffic: Option<Arc<Traffic>>,
    peer: Option<SocketAddr>,
    address: Option<SocketAddr>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Swaps {
    names: Vec<Arc<str>>,
    /// Those among them that were put into the body.
    in_body: Vec<Arc<str>>,
    left: u32,
}

impl Swaps {
    fn add(&mut self, names: &[Arc<str>], left: u32) {
        for name in names {
            if !self.names.contains(name) {
                self.names.push(Arc::clone(name));
            }
        }
        self.left = self.left.saturating_add(left);
    }
}

impl Data {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            time: SystemTime::now(),
            began: Instant::now(),
            took: Duration::ZERO,
            tenant: None,
            session: None,
            target: None,
            action: None,
            method: None,
            path: None,
            decision: Decision::Aborted,
            reason: INCOMPLETE,
            status: None,
            swaps: None,
            body: None,
            found: None,
            captured: Box::default(),
            bytes_up: None,
            bytes_down: None,
            traffic: None,
            peer: None,
            address: None,
        }
    }
}

/// Copies a text up to a number of bytes, or less where a character would be cut in two.
fn cut(text: &str, limit_bytes: usize) -> String {
    let end = text.floor_char_boundary(limit_bytes);
    text.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
pub(crate) use sink::capture;

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "ANTHROPIC_API_KEY";

    fn names(names: &[&str]) -> Vec<Arc<str>> {
        names.iter().copied().map(Arc::from).collect()
    }

    #[test]
    fn a_full_record_has_every_field_in_order() {
        let (sink, captured) = capture();
        let session = SessionId::generate();
        let mut record = Record::begin(&sink, Kind::Exchange);
        record.tenant(&TenantId::new("acme"));
        record.session(&session);
        record.target(&HostPort::parse("api.anthropic.com:443").unwrap());
        record.request("POST", "/v1/messages");
        record.decision(Decision::Allowed, "allowed");
        record.status(200);
        record.swapped(&names(&[NAME]), 0);
        record.bytes_up(12);
        record.bytes_down(3456);
        record.peer("127.0.0.1:5000".parse().unwrap());
        record.address("[2001:db8::1]:443".parse().unwrap());
        drop(record);
        let text = captured.text();
        let (start, rest) = text.split_at(text.find(",\"tenant\"").unwrap());
        let (middle, end) = rest.split_at(rest.find(",\"duration_ms\"").unwrap());
        assert!(
            start.starts_with(r#"{"event":"exchange","time":"2"#),
            "{start}"
        );
        let expected = format!(
            r#","tenant":"acme","session":"{session}","host":"api.anthropic.com","port":443,"#,
        ) + r#""method":"POST","path":"/v1/messages","decision":"allowed","#
            + r#""reason":"allowed","status":200,"swapped":["ANTHROPIC_API_KEY"],"#
            + r#""tokens_left":0,"bytes_up":12,"bytes_down":3456,"#
            + r#""peer":"127.0.0.1:5000","address":"[2001:db8::1]:443""#;
        assert_eq!(middle, expected);
        assert!(end.ends_with("}\n"), "{end}");
    }

    #[test]
    fn what_was_never_set_is_absent() {
        let (sink, captured) = capture();
        drop(Record::begin(&sink, Kind::Tunnel));
        let mut record = Record::begin(&sink, Kind::Session);
        record.action("expired");
        drop(record);
        let lines = captured.lines();
        let keys = |at: usize| {
            let object = lines[at].as_object().unwrap();
            object.keys().map(String::as_str).collect::<Vec<_>>()
        };
        assert_eq!(lines.len(), 2);
        let always = ["decision", "duration_ms", "event", "reason", "time"];
        assert_eq!(keys(0), always);
        assert_eq!(keys(1), [&["action"], &always[..]].concat());
        assert_eq!(lines[0]["event"], "tunnel");
        assert_eq!(lines[0]["decision"], "aborted");
        assert_eq!(lines[0]["reason"], INCOMPLETE);
        assert_eq!(lines[1]["event"], "session");
    }

    #[test]
    fn decisions_are_written_as_words() {
        for (decision, word) in [
            (Decision::Aborted, "aborted"),
            (Decision::Allowed, "allowed"),
            (Decision::Denied, "denied"),
            (Decision::Failed, "failed"),
        ] {
            let (sink, captured) = capture();
            let mut record = Record::begin(&sink, Kind::Exchange);
            record.decision(Decision::Allowed, "first");
            record.decision(decision, "last");
            drop(record);
            assert_eq!(captured.lines()[0]["decision"], word);
            assert_eq!(captured.lines()[0]["reason"], "last");
        }
    }

    #[test]
    fn swaps_of_head_and_body_add_up() {
        let (sink, captured) = capture();
        let mut record = Record::begin(&sink, Kind::Exchange);
        record.swapped(&names(&["A", "B"]), 1);
        record.swapped(&names(&["B", "C"]), 2);
        drop(record);
        let line = &captured.lines()[0];
        assert_eq!(line["swapped"], serde_json::json!(["A", "B", "C"]));
        assert_eq!(line["tokens_left"], 3);
    }

    #[test]
    fn what_a_body_had_is_known_at_the_end() {
        let (sink, captured) = capture();
        let body = Arc::new(BodySwaps::default());
        let mut record = Record::begin(&sink, Kind::Exchange);
        record.body(&body);
        record.swapped(&names(&["A"]), 1);
        body.add(&names(&["A", "B"]), 2);
        body.add(&names(&["B"]), 0);
        drop(record);
        let mut record = Record::begin(&sink, Kind::Exchange);
        record.body(&Arc::default());
        drop(record);
        let lines = captured.lines();
        assert_eq!(lines[0]["swapped"], serde_json::json!(["A", "B"]));
        assert_eq!(lines[0]["swapped_in_body"], serde_json::json!(["A", "B"]));
        assert_eq!(lines[0]["tokens_left"], 3);
        assert!(lines[1].get("swapped").is_none());
    }

    #[test]
    fn a_query_is_never_kept() {
        for path in ["/a?key=canary", "/a#canary", "/a?x#canary", "/a?"] {
            let (sink, captured) = capture();
            Record::begin(&sink, Kind::Exchange).request("GET", path);
            assert!(!captured.text().contains("canary"), "{path}");
            assert_eq!(captured.lines()[0]["path"], "/a", "{path}");
        }
    }

    #[test]
    fn long_and_odd_texts_are_cut_and_escaped() {
        // The limit falls into the middle of a character.
        let long = format!("/{}", "é".repeat(PATH_LIMIT_BYTES));
        let (sink, captured) = capture();
        Record::begin(&sink, Kind::Exchange).request(&"M".repeat(100), &long);
        Record::begin(&sink, Kind::Exchange).request("GET\r\n", "/\"\n{\"event\":\u{0}\u{1b}[2J");
        assert_eq!(captured.text().lines().count(), 2);
        assert!(!captured.text().contains('\u{1b}'));
        let lines = captured.lines();
        let path = lines[0]["path"].as_str().unwrap();
        assert_eq!(path.len(), PATH_LIMIT_BYTES - 1);
        assert!(long.starts_with(path));
        assert_eq!(
            lines[0]["method"].as_str().unwrap().len(),
            METHOD_LIMIT_BYTES
        );
        assert_eq!(lines[1]["path"], "/\"\n{\"event\":\u{0}\u{1b}[2J");
    }

    #[test]
    fn the_clock_runs_until_the_drop() {
        let (sink, captured) = capture();
        let record = Record::begin(&sink, Kind::Exchange);
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(2) {
            std::hint::spin_loop();
        }
        drop(record);
        let took = captured.lines()[0]["duration_ms"].as_f64().unwrap();
        assert!((2.0..60_000.0).contains(&took), "{took}");
    }

    #[test]
    fn a_panic_emits_the_record_once() {
        let (sink, captured) = capture();
        let work = std::thread::spawn(move || {
            let mut record = Record::begin(&sink, Kind::Exchange);
            record.request("GET", "/boom");
            panic!("made by the test");
        });
        assert!(work.join().is_err());
        let lines = captured.lines();
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0]["path"], "/boom");
        assert_eq!(lines[0]["decision"], "aborted");
    }

    #[tokio::test]
    async fn an_aborted_task_emits_the_record_once() {
        let (sink, captured) = capture();
        let (begun, waiting) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            let mut record = Record::begin(&sink, Kind::Exchange);
            record.request("GET", "/slow");
            begun.send(()).unwrap();
            std::future::pending::<()>().await;
            record.decision(Decision::Allowed, "allowed");
        });
        waiting.await.unwrap();
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        let lines = captured.lines();
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0]["path"], "/slow");
        assert_eq!(lines[0]["reason"], INCOMPLETE);
    }

    #[test]
    fn a_discarding_sink_costs_nothing_and_writes_nothing() {
        let sink = Sink::discard();
        let mut record = Record::begin(&sink, Kind::Exchange);
        record.request("GET", "/");
        record.swapped(&names(&[NAME]), 0);
        assert!(record.data.is_none());
        drop(record);
        sink.event(serde_json::json!({"event": "ready"}));
        sink.flush();
    }
}
