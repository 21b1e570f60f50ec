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
use crate::session::{ExchangeGuard, SessionHandle};

/// The record of a stream, and its guards.
pub(super) struct Ledger {
    record: Record,
    settled: bool,
    handle: Arc<SessionHandle>,
    meter: Arc<Meter>,
    pace: Arc<Pace>,
    /// Ends what is left of the request when the answer has ended.
    over: DropGuard,
    /// What was wrong with the body of the request.
    fault: Arc<OnceLock<Fault>>,
    in_flight: Option<ExchangeGuard>,
    _active: Active,
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
            pace: Pace::current(),
            over: CancellationToken::new().drop_guard(),
            fault: Arc::default(),
            in_flight: None,
            _active: active,
        }
    }

    pub(super) fn record(&mut self) -> &mut Record {
        &mut self.record
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
        Arc::clone(&self.pace)
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

    /// Notes how the exchange ended; the first one counts.
    pub(super) fn settle(&mut self, decision: Decision, reason: &'static str) {
        if !self.settled {
            self.settled = true;
            self.record.decision(decision, reason);
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        let reason = if self.handle.is_over() {
            "session_cut"
        } else if self.pace.is_stalled() {
            "stalled"
        } else {
            "client_gone"
        };
        self.settle(Decision::Aborted, reason);
    }
}
