//! Draining: the signal that stops new work, the one that cuts what is left, and the tasks between.
//!
//! `app` makes one [`Drain`] and hands clones down: connections ask for no further request at
//! [`Drain::leaving`], accept loops stop at [`Drain::draining`], tunnels and streams let go at
//! [`Drain::cut`]. It must never end a task by force: a task ends itself, so
//! that its audit record tells what happened. Called by every layer that spawns.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long the tasks get to end themselves after the cut.
const CUT_GRACE: Duration = Duration::from_secs(1);

/// Carries the signals of a shutdown and counts the tasks it waits for. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    leaving: CancellationToken,
    draining: CancellationToken,
    cut: CancellationToken,
    tasks: TaskTracker,
}

impl Drain {
    /// Makes a drain that has not begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tells whether connections are to end after the answer that they carry, since another process
    /// serves those that come, or since draining has begun.
    pub fn is_leaving(&self) -> bool {
        self.leaving.is_cancelled()
    }

    /// Waits until connections are to end after the answer that they carry.
    pub async fn leaving(&self) {
        self.leaving.cancelled().await;
    }

    /// Lets every connection end after its next answer. An idle one is left open for it: who closed
    /// it could close it upon a request that is under way.
    pub fn leave(&self) {
        self.leaving.cancel();
        self.tasks.close();
    }

    /// Waits until no task is left, which can be before those are spawned that are to come unless
    /// leaving or draining has begun.
    pub async fn ended(&self) {
        self.tasks.wait().await;
    }

    /// Tells whether draining has begun: nothing new may be accepted then.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Waits until draining begins.
    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }

    /// Waits for the cut: what still runs then has to let go at once.
    pub async fn cut(&self) {
        self.cut.cancelled().await;
    }

    /// Spawns a task that [`Drain::finish`] waits for; a panic in it counts as its end.
    ///
    /// # Panics
    /// Panics outside of a tokio runtime.
    pub fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        drop(self.tasks.spawn(task));
    }

    /// Begins draining. Calling it again changes nothing.
    pub fn start(&self) {
        self.leaving.cancel();
        self.draining.cancel();
        // Without this, waiting would go on for ever even when no task is left.
        self.tasks.close();
    }

    /// Drains to the end: begins, waits for the tasks until the deadline, then cuts the rest and
    /// gives it one more second.
    ///
    /// Returns true where all tasks ended by themselves before the deadline, so that nothing was
    /// cut.
    pub async fn finish(&self, deadline: Duration) -> bool {
        self.start();
        let ended = tokio::time::timeout(deadline, self.tasks.wait()).await;
        if ended.is_ok() {
            return true;
        }
        self.cut.cancel();
        if tokio::time::timeout(CUT_GRACE, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(tasks = self.tasks.len(), "tasks outlived the cut");
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// Far beyond what any test here needs; reached only by a failing one.
    const FAR: Duration = Duration::from_mins(1);
    const SOON: Duration = Duration::from_millis(5);

    #[tokio::test]
    async fn leaving_waits_for_tasks_and_cuts_none() {
        let drain = Drain::new();
        let own = drain.clone();
        drain.spawn(async move { own.leaving().await });
        assert!(!drain.is_leaving());
        drain.leave();
        drain.ended().await;
        assert!(drain.is_leaving() && !drain.is_draining() && !drain.cut.is_cancelled());
        drain.start();
        assert!(drain.is_draining());
        let other = Drain::new();
        other.start();
        assert!(other.is_leaving(), "who drains leaves, too");
    }

    #[tokio::test]
    async fn finish_without_tasks_is_clean() {
        let drain = Drain::new();
        assert!(!drain.is_draining());
        assert!(drain.finish(FAR).await);
        assert!(drain.is_draining());
        assert!(drain.finish(FAR).await, "a second time changes nothing");
    }

    #[tokio::test]
    async fn tasks_that_heed_the_signal_end_uncut() {
        let drain = Drain::new();
        for _ in 0..3 {
            let own = drain.clone();
            drain.spawn(async move { own.draining().await });
        }
        assert!(drain.finish(FAR).await);
        assert!(!drain.cut.is_cancelled());
    }

    #[tokio::test]
    async fn what_outlives_the_deadline_is_cut() {
        let drain = Drain::new();
        let cut = Arc::new(AtomicBool::new(false));
        let (own, seen) = (drain.clone(), Arc::clone(&cut));
        drain.spawn(async move {
            own.cut().await;
            seen.store(true, Ordering::SeqCst);
        });
        assert!(!drain.finish(SOON).await);
        assert!(cut.load(Ordering::SeqCst), "finish waited for the cut task");
    }

    #[tokio::test]
    async fn a_deaf_task_does_not_hold_the_end_up() {
        let drain = Drain::new();
        drain.spawn(std::future::pending());
        let ended = tokio::time::timeout(FAR, drain.finish(SOON)).await;
        assert_eq!(ended, Ok(false));
    }

    #[tokio::test]
    async fn a_task_spawned_while_draining_is_waited_for() {
        let drain = Drain::new();
        drain.start();
        let (release, gate) = tokio::sync::oneshot::channel::<()>();
        let done = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&done);
        drain.spawn(async move {
            let _released = gate.await;
            seen.store(true, Ordering::SeqCst);
        });
        let finish = tokio::spawn({
            let drain = drain.clone();
            async move { drain.finish(FAR).await }
        });
        release.send(()).expect("the task waits");
        assert!(finish.await.expect("no panic"));
        assert!(done.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn a_panicking_task_counts_as_ended() {
        let drain = Drain::new();
        drain.spawn(async { panic!("made by the test") });
        assert!(drain.finish(FAR).await);
    }
}
