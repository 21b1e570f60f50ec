//! What two processes that share live sessions tell each other once a second: which were used, so
//! that neither lets expire what the other serves, and what they did.
//!
//! A use is told by how long ago it was, since clocks are each process's own. Called by the link.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::End;
use super::message::{Message, Use};
use crate::id::SessionId;
use crate::session::live::Sessions;

/// How often it is told what was used.
pub(super) const REPORT_EVERY: Duration = Duration::from_secs(1);
/// How much further back than the last report a use may lie to be in the next.
const SLACK: Duration = Duration::from_secs(1);
/// How far back the first report goes: longer than a hand-over takes.
const FIRST: Duration = Duration::from_mins(2);
/// The most sessions of one report's line.
const USES: usize = 1000;

/// What was reported so far.
#[derive(Debug, Default)]
pub(super) struct Reports {
    last: Option<Instant>,
    counts: HashMap<SessionId, [u64; 3]>,
}

impl Sessions {
    /// Takes what sessions did elsewhere as done here.
    pub(super) fn note_uses(&self, uses: &[Use]) {
        for used in uses {
            let handle = SessionId::parse(&used.session).and_then(|id| self.in_table(&id));
            let Some(handle) = handle else { continue };
            handle.life.used(Duration::from_millis(used.idle_ms));
            let counters = &handle.counters;
            for (count, more) in [
                (&counters.exchanges, used.exchanges),
                (&counters.denied, used.denied),
                (&counters.swapped, used.swapped),
            ] {
                count.fetch_add(more, Ordering::Relaxed);
            }
        }
    }

    /// Reports once a second for as long as the link holds.
    pub(super) fn keep_reporting(
        self: &Arc<Self>,
        end: &End,
        reports: &Arc<Mutex<Reports>>,
        counts: bool,
    ) {
        let (sessions, end, reports) = (Arc::downgrade(self), end.clone(), Arc::clone(reports));
        tokio::spawn(async move {
            let mut ticks = interval(REPORT_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    () = end.broken.cancelled() => return,
                    _ = ticks.tick() => {}
                }
                let Some(sessions) = sessions.upgrade() else {
                    return;
                };
                sessions.report_to(&end, &reports, counts);
            }
        });
    }

    pub(super) fn report_to(&self, end: &End, reports: &Mutex<Reports>, counts: bool) {
        let mut reports = reports.lock().unwrap_or_else(PoisonError::into_inner);
        self.report(end, &mut reports, counts);
    }

    /// Tells what was used since the last report, and what it did where that is wanted.
    fn report(&self, end: &End, reports: &mut Reports, counts: bool) {
        let now = Instant::now();
        let since = reports.last.replace(now);
        // The first report has all that was used while the service was handed over.
        let window = since.map_or(FIRST, |since| now - since + SLACK);
        let mut uses = Vec::new();
        for handle in self.all() {
            if handle.open.in_use() {
                handle.life.renew();
            }
            let idle = handle.life.idle();
            let mut used = Use::default();
            if counts {
                let counters = &handle.counters;
                let all = [&counters.exchanges, &counters.denied, &counters.swapped];
                let all = all.map(|count| count.load(Ordering::Relaxed));
                if all != [0; 3] {
                    let told = reports.counts.insert(handle.id.clone(), all);
                    let [exchanges, denied, swapped] = told.unwrap_or_default();
                    let [e, d, s] = all;
                    used.exchanges = e.saturating_sub(exchanges);
                    used.denied = d.saturating_sub(denied);
                    used.swapped = s.saturating_sub(swapped);
                }
            }
            if idle <= window || used != Use::default() {
                handle.id.as_str().clone_into(&mut used.session);
                used.idle_ms = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX);
                uses.push(used);
            }
        }
        // One at least: it says that this process is there.
        loop {
            let rest = uses.split_off(uses.len().min(USES));
            end.tell(Message::Used(std::mem::replace(&mut uses, rest)));
            if uses.is_empty() {
                return;
            }
        }
    }
}
