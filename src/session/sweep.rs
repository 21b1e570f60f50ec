//! What is done once a second: cutting what has expired, and telling the store.
//!
//! Cutting waits for nobody. What the store is told comes after, in a task of its own, so that a
//! slow store delays no cut. Called by the two loops of `app`.

use std::sync::{Arc, PoisonError};

use futures_util::StreamExt;
use futures_util::stream;

use super::Error;
use super::handle::SessionHandle;
use super::life::Life;
use super::live::{Sessions, row_key};
use crate::audit::Decision;

/// How many deletions wait for the store together: it makes them durable in one go.
const TOGETHER: usize = 64;

impl Sessions {
    /// Cuts what has expired and closes idle upstream connections. Called about once a second.
    pub fn cut_expired(&self) {
        let _alone = self.sweeping.lock().unwrap_or_else(PoisonError::into_inner);
        let is_stale = self.is_stale();
        let follows = self.peers.follows();
        let slack = self.peers.slack();
        let mut gone = Vec::new();
        for handle in self.all() {
            if is_stale {
                // Whether it still lives is not known; when it is known again it goes on.
                handle.cut_open();
            }
            let may_end = || !follows && (handle.is_cut() || self.may_end(&handle));
            if !handle.is_over_with(slack) {
                handle.pool.sweep();
            } else if may_end() && self.end_untold(&handle) {
                gone.push(row_key(&handle.tenant, &handle.id));
            }
            // Where this one follows, the process that has the store decides, and records it.
        }
        self.peers.tell_gone(&gone, None);
    }

    /// Ends a session that is over without a call of its own: all that it has is cut and given back,
    /// and the first to do so tells why. Nothing is forgotten that has not come through here, or
    /// through the deletion that was asked for.
    pub(super) fn end(&self, handle: &SessionHandle) {
        if self.end_untold(handle) {
            let key = row_key(&handle.tenant, &handle.id);
            self.peers.tell_gone(&[key], None);
        }
    }

    /// The same for many: whoever calls this tells other processes of those that ended.
    fn end_untold(&self, handle: &SessionHandle) -> bool {
        // What was cut with its tenant, and has not ended yet.
        let action = if handle.is_cut() { "ended" } else { "expired" };
        let is_first = handle.end();
        if is_first {
            let mut audit = self.record(&handle.tenant, &handle.id, action);
            audit.decision(Decision::Allowed, "ok");
        }
        is_first
    }

    /// Deletes the rows of what was cut, and notes in the store when sessions were last used, each
    /// at most once in a twentieth of its lifetime. Called about once a second.
    pub async fn settle(&self) {
        self.mend().await;
        let (over, live): (Vec<_>, Vec<_>) =
            self.all().into_iter().partition(|handle| handle.is_cut());
        let (over, ended_elsewhere): (Vec<_>, Vec<_>) = over
            .into_iter()
            .partition(|handle| !self.peers.follows() || !handle.is_cut_with_tenant());
        for handle in ended_elsewhere {
            // The process that has the store deletes the rows of a tenant that has ended.
            handle.end();
            self.table.remove(&handle.id);
        }
        let is_shared = self.store.fleet().is_some();
        let (lost, over): (Vec<_>, Vec<_>) = over
            .into_iter()
            .partition(|handle| is_shared && handle.place.tenant().is_lost());
        for handle in lost {
            // Nobody said that it was deleted: it may come back with its tenant.
            self.lose(&handle.id);
        }
        // Their tenant cut them since the others were looked at, perhaps.
        for handle in &over {
            self.end(handle);
        }
        let deleted = stream::iter(over).map(|handle| self.forget_ended(handle));
        let mut deleted = deleted.buffer_unordered(TOGETHER);
        while let Some(done) = deleted.next().await {
            if let Err(error) = done {
                // The others would fail as slowly.
                tracing::error!(%error, "rows of ended sessions stay in the store for now");
                return;
            }
        }
        self.note(&live, Life::to_note).await;
    }

    /// Notes every use that the store does not know of: at the end of a process.
    pub async fn note_all(&self) {
        self.note(&self.all(), Life::unnoted).await;
    }

    pub(super) async fn note(
        &self,
        handles: &[Arc<SessionHandle>],
        news: fn(&Life) -> Option<u64>,
    ) {
        let mut noted = Vec::new();
        let mut used = Vec::new();
        for handle in handles {
            if handle.open.in_use() {
                handle.life.renew();
            }
            let Some(last_used) = news(&handle.life) else {
                continue;
            };
            used.push((
                row_key(&handle.tenant, &handle.id),
                handle.last_used(self.store.now()),
            ));
            noted.push((handle, last_used));
        }
        if used.is_empty() {
            return;
        }
        match self.store.touch(used).await {
            Ok(()) => noted
                .into_iter()
                .for_each(|(handle, last_used)| handle.life.set_noted(last_used)),
            Err(error) => tracing::warn!(%error, "the last uses of sessions are not stored yet"),
        }
    }

    async fn forget_ended(&self, handle: Arc<SessionHandle>) -> Result<(), Error> {
        match handle.changing.try_lock() {
            // What was found missing has left the table, and is not ours to delete.
            Ok(_alone) if self.in_table(&handle.id).is_none() => Ok(()),
            Ok(_alone) => self.forget(&handle).await,
            // A patch or a deletion is at work: the next time looks again.
            Err(_busy) => Ok(()),
        }
    }

    pub(super) fn all(&self) -> Vec<Arc<SessionHandle>> {
        let all = self.table.iter();
        all.map(|entry| Arc::clone(entry.value())).collect()
    }
}
