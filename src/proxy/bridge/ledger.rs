//! What one stream must give back or tell when it ends, however it ends.
//!
//! The ledger goes with the exchange from its first step into the body of its answer. Dropped before
//! it was settled, it says why: the workload reset the stream, nobody took the bytes, or the session
//! was cut. Called by the bridge.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::{CancellationToken, DropGuard};

use super::pace::{Active, Pace};
use super::upload::Fault;
use crate::audit::{Decision, Record};
use crate::proxy::context::{Lane, Meter};
use crate::proxy::reject::Refusal;
use crate::session::{ExchangeGuard, SessionHandle, Turn};

/// The record of a stream, and its guards.
pub(super) struct Ledger {
    record: Record,
    settled: bool,
    handle: Arc<SessionHandle>,
    meter: Arc<Meter>,
    pace: Option<Arc<Pace>>,
    /// The head of an answer went out.
    answered: bool,
    /// Ends what is left of the request when the answer has ended.
    over: DropGuard,
    /// What was wrong with the body of the request.
    fault: Arc<OnceLock<Fault>>,
    in_flight: Option<ExchangeGuard>,
    turn: Option<Turn>,
    active: Active,
}

impl Ledger {
    /// Begins the record of a stream.
    pub(super) fn begin(lane: &Lane<'_>, active: Active) -> Self {
        let mut record = lane.record();
        let meter = Arc::new(lane.meter(&mut record));
        Self {
            record,
            settled: false,
            handle: Arc::clone(lane.handle),
            meter,
            pace: None,
            answered: false,
            over: CancellationToken::new().drop_guard(),
            fault: Arc::default(),
            in_flight: None,
            turn: None,
            active,
        }
    }

    /// Notes that the stream's own task has begun.
    pub(super) fn start(&mut self) {
        self.pace = Some(Pace::current());
    }

    pub(super) fn record(&mut self) -> &mut Record {
        &mut self.record
    }

    /// Waits for the exchange's turn among those of its session.
    pub(super) async fn wait_turn(&mut self, lane: &Lane<'_>) -> Result<(), Refusal> {
        let turn = lane.handle.turn().await;
        self.turn = Some(turn.map_err(Refusal::limited)?);
        Ok(())
    }

    /// Notes that the request leaves: from here on the session is in use. A refused request does not
    /// renew it.
    pub(super) fn leaves(&mut self, lane: &Lane<'_>) {
        self.in_flight = Some(lane.handle.exchange());
    }

    pub(super) fn meter(&self) -> Arc<Meter> {
        Arc::clone(&self.meter)
    }

    pub(super) fn pace(&self) -> Arc<Pace> {
        self.pace.clone().unwrap_or_else(Pace::current)
    }

    /// Notes that there is an answer.
    pub(super) fn answer(&mut self) {
        self.answered = true;
    }

    /// Returns what is cancelled when the exchange has ended.
    pub(super) fn over(&self) -> CancellationToken {
        self.over.token().clone()
    }

    /// Returns what was wrong with the body of the request, once that is known.
    pub(super) fn fault(&self) -> Option<Fault> {
        self.fault.get().copied()
    }

    /// Returns where the body of the request says what is wrong with it.
    pub(super) fn faults(&self) -> Arc<OnceLock<Fault>> {
        Arc::clone(&self.fault)
    }

    /// Notes our own answer.
    pub(super) fn refused(&mut self, refusal: &Refusal) {
        self.record.status(refusal.status);
        self.settle(refusal.decision(), refusal.code);
    }

    /// Notes how the exchange ended; the first one counts. What fails once the session is over failed
    /// because of that.
    pub(super) fn settle(&mut self, decision: Decision, reason: &'static str) {
        if self.settled {
            return;
        }
        self.settled = true;
        let ended = matches!(decision, Decision::Aborted | Decision::Failed);
        if ended && self.handle.is_over() {
            self.record.decision(Decision::Aborted, "session_cut");
        } else {
            self.record.decision(decision, reason);
        }
    }

    /// Says why the stream ended, where nothing else did.
    fn ending(&self) -> &'static str {
        let pace = self.pace.as_ref();
        let cut = pace.is_none_or(|pace| pace.is_cut());
        if pace.is_some_and(|pace| pace.is_stalled()) {
            "stalled"
        } else if cut && !self.active.activity().has_left() {
            "tunnel_cut"
        } else {
            "client_gone"
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let reason = self.ending();
        // What only waited for its turn has cost nothing.
        if reason == "client_gone" && !self.answered && self.turn.is_some() {
            self.active.activity().give_up();
        }
        self.settle(Decision::Aborted, reason);
    }
}
