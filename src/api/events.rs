//! A session's audit records as they are written, as server-sent events (WHATWG HTML §9.2).
//!
//! A tenant reads along with its own sessions only; another's is not there. The stream ends with the
//! key that opened it. What was written before is not told again, and a reader that is too slow is
//! told what it lost. Called by the route table.

use std::convert::Infallible;
use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until};

use super::ApiState;
use super::vault::Id;
use crate::audit::{Sink, Subscription, Told};
use crate::session::SessionHandle;
use crate::shutdown::Drain;
use crate::web::{Caller, Failure};

/// How long the stream is silent before a comment says that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long the last records of a session that was cut are waited for at most.
const LAST_RECORDS: Duration = Duration::from_secs(10);
/// How often a session that was cut is looked at, for what of it has not ended yet.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// A line that readers pass over.
const COMMENT: &[u8] = b":\n\n";

/// `GET /v1/sessions/{id}/events`.
pub(super) async fn events(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
) -> Result<Response, Failure> {
    if state.drain.is_draining() {
        return Err(Failure::Draining);
    }
    let tenant = caller.tenant().id().clone();
    let found = state.sessions.seek(&tenant, &id).await?;
    found.ok_or(Failure::NotFound)?;
    let records = state.sessions.audit().subscribe(&tenant, &id);
    let records = records.map_err(|_many| Failure::TooManyReaders)?;
    // Looked for again: its last record may have come before this read along.
    let handle = state.sessions.find(&tenant, &id);
    let handle = handle.ok_or(Failure::NotFound)?;
    let reader = Reader {
        records,
        caller,
        sink: state.sessions.audit().clone(),
        handle,
        drain: state.drain.clone(),
        first: true,
        until: None,
        is_ending: false,
    };
    let parts = stream::unfold(reader, async |mut reader| {
        let part = reader.next().await?;
        Some((Ok::<_, Infallible>(part), reader))
    });
    let kind = HeaderValue::from_static("text/event-stream");
    Ok(([(CONTENT_TYPE, kind)], Body::from_stream(parts)).into_response())
}

/// One who reads along.
struct Reader {
    records: Subscription,
    caller: Caller,
    sink: Sink,
    handle: Arc<SessionHandle>,
    drain: Drain,
    /// Nothing was sent: the head of the answer goes out with the first part.
    first: bool,
    /// The end, once the session was cut.
    until: Option<Instant>,
    /// All that the session had is over: what was handed over by then is all that comes.
    is_ending: bool,
}

impl Reader {
    /// Waits for the next part of the stream; nothing at its end.
    async fn next(&mut self) -> Option<Bytes> {
        if std::mem::take(&mut self.first) {
            return Some(Bytes::from_static(COMMENT));
        }
        let silent = Instant::now() + KEEP_ALIVE;
        let drain = self.drain.clone();
        // What another process does that has taken over is told there: the reader is to come again.
        let mut leaving = pin!(drain.leaving());
        let caller = self.caller.clone();
        let mut refused = pin!(caller.refused());
        loop {
            let until = self.until;
            let over = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                // First: a session in use would keep the others from being looked at.
                () = leaving.as_mut() => return None,
                () = refused.as_mut() => return None,
                told = self.records.next() => return told.map(|told| part(&told)),
                () = over => return None,
                () = self.handle.ended(), if until.is_none() => {
                    self.until = Some(Instant::now() + LAST_RECORDS);
                }
                () = sleep(LOOK_AGAIN), if until.is_some() && !self.is_ending => self.look(),
                () = sleep_until(silent) => return Some(Bytes::from_static(COMMENT)),
            }
        }
    }
}

impl Reader {
    /// Ends the stream once nothing of a session that was cut is open: each tunnel and exchange hands
    /// its record over before it counts as ended.
    fn look(&mut self) {
        if self.records.is_over() && self.handle.is_idle() {
            self.is_ending = true;
            self.sink.end_readers(self.handle.id());
        }
    }
}

/// Writes an event. A record is one line, and has no line end in it.
fn part(told: &Told) -> Bytes {
    let gap;
    let (event, data): (&str, &[u8]) = match told {
        Told::Record(line) => ("record", line),
        Told::Gap(lost) => {
            gap = json!({ "event": "audit_gap", "lost": lost }).to_string();
            ("gap", gap.as_bytes())
        }
    };
    let text = [b"event: ", event.as_bytes(), b"\ndata: ", data, b"\n\n"];
    Bytes::from(text.concat())
}
