//! Answers that are kept for a short while: bounded, one question at a time for each key.
//!
//! Who asks while a question is under way waits for its answer; who asked first may leave without
//! ending it. A failure is told to all who wait and is never kept. What is forgotten while it is
//! asked is not kept either, so that no answer outlives the change that made it wrong. Called by
//! `identity` and `payment`.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use quick_cache::sync::Cache;
use tokio::time::Instant;

/// An answer, and how long it is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept<V> {
    /// The answer.
    pub value: V,
    /// How long it is good, from now on.
    pub life: Duration,
}

type Question<V, E> = Shared<BoxFuture<'static, Result<V, E>>>;

/// One question that is under way. It goes on for as long as anybody waits.
struct Flight<V, E> {
    number: u64,
    question: WeakShared<BoxFuture<'static, Result<V, E>>>,
}

struct Flights<K, V, E> {
    next: u64,
    by_key: HashMap<K, Flight<V, E>>,
}

struct Inner<K, V, E> {
    kept: Cache<K, (V, Instant)>,
    /// Also held while an answer is put in or taken out, so that a forgotten one is not put in.
    flights: Mutex<Flights<K, V, E>>,
}

/// Answers by key.
pub struct Answers<K, V, E>(Arc<Inner<K, V, E>>);

impl<K, V, E> Clone for Answers<K, V, E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, V, E> fmt::Debug for Answers<K, V, E> {
    /// Shows nothing of keys and answers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers").finish_non_exhaustive()
    }
}

impl<K, V, E> Answers<K, V, E>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Clone + Send + Sync + 'static,
{
    /// Keeps about so many answers; those that are asked for least go first.
    pub fn keeping(limit: usize) -> Self {
        Self(Arc::new(Inner {
            kept: Cache::new(limit),
            flights: Mutex::new(Flights {
                next: 0,
                by_key: HashMap::new(),
            }),
        }))
    }

    /// Returns the answer that is kept, or that which another is asking for; asks where there is
    /// neither.
    ///
    /// # Errors
    /// That of the question.
    pub async fn get_or_ask<F>(&self, key: &K, ask: impl FnOnce() -> F) -> Result<V, E>
    where
        F: Future<Output = Result<Kept<V>, E>> + Send + 'static,
    {
        if let Some(value) = self.fresh(key) {
            return Ok(value);
        }
        match self.join(key, ask) {
            Ok(value) => Ok(value),
            Err(question) => question.await,
        }
    }

    /// Forgets what is kept under a key, and what is being asked.
    pub fn forget(&self, key: &K) {
        let mut flights = self.0.lock();
        flights.by_key.remove(key);
        self.0.kept.remove(key);
    }

    fn fresh(&self, key: &K) -> Option<V> {
        let (value, until) = self.0.kept.get(key)?;
        (Instant::now() < until).then_some(value)
    }

    /// Joins a question, where no answer came meanwhile.
    fn join<F>(&self, key: &K, ask: impl FnOnce() -> F) -> Result<V, Question<V, E>>
    where
        F: Future<Output = Result<Kept<V>, E>> + Send + 'static,
    {
        let mut flights = self.0.lock();
        if let Some(value) = self.fresh(key) {
            return Ok(value);
        }
        let under_way = flights.by_key.get(key);
        if let Some(question) = under_way.and_then(|flight| flight.question.upgrade()) {
            return Err(question);
        }
        // Those that everybody left while they were under way stay behind.
        let Flights { next, by_key } = &mut *flights;
        if by_key.len().is_power_of_two() {
            by_key.retain(|_, flight| flight.question.upgrade().is_some());
        }
        *next += 1;
        let number = *next;
        let (inner, asked, key_of) = (Arc::clone(&self.0), ask(), key.clone());
        let question = async move {
            let answer = asked.await;
            inner.settle(&key_of, number, &answer);
            answer.map(|kept| kept.value)
        };
        let question = question.boxed().shared();
        if let Some(weak) = question.downgrade() {
            let question = weak;
            by_key.insert(key.clone(), Flight { number, question });
        }
        Err(question)
    }
}

impl<K: Clone + Eq + Hash, V: Clone, E> Inner<K, V, E> {
    fn settle(&self, key: &K, number: u64, answer: &Result<Kept<V>, E>) {
        let mut flights = self.lock();
        let current = flights.by_key.get(key).map(|flight| flight.number);
        if current != Some(number) {
            return;
        }
        flights.by_key.remove(key);
        if let Ok(Kept { value, life }) = answer {
            let until = Instant::now() + *life;
            self.kept.insert(key.clone(), (value.clone(), until));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Flights<K, V, E>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;

    const LIFE: Duration = Duration::from_mins(1);

    /// Answers with how often it was asked, when it is let.
    #[derive(Clone)]
    struct Source {
        asked: Arc<AtomicUsize>,
        gate: Arc<Semaphore>,
        fails: bool,
    }

    impl Source {
        fn new(fails: bool) -> Self {
            Self {
                asked: Arc::default(),
                gate: Arc::new(Semaphore::new(0)),
                fails,
            }
        }

        fn open(self) -> Self {
            self.gate.add_permits(1000);
            self
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::SeqCst)
        }

        fn ask(&self) -> impl Future<Output = Result<Kept<usize>, &'static str>> + Send + 'static {
            let this = self.clone();
            async move {
                let value = 1 + this.asked.fetch_add(1, Ordering::SeqCst);
                this.gate.acquire().await.unwrap().forget();
                if this.fails {
                    return Err("out");
                }
                Ok(Kept { value, life: LIFE })
            }
        }
    }

    type Tested = Answers<&'static str, usize, &'static str>;

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_kept_for_its_life_and_no_longer() {
        let (answers, source) = (Tested::keeping(8), Source::new(false).open());
        let get = || answers.get_or_ask(&"a", || source.ask());
        assert_eq!(get().await, Ok(1));
        tokio::time::advance(LIFE.checked_sub(Duration::from_millis(1)).unwrap()).await;
        assert_eq!(get().await, Ok(1));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(get().await, Ok(2));
        assert_eq!(answers.get_or_ask(&"b", || source.ask()).await, Ok(3));
        answers.forget(&"a");
        assert_eq!(get().await, Ok(4));
    }

    #[tokio::test(start_paused = true)]
    async fn many_who_ask_at_once_ask_once() {
        let (answers, source) = (Tested::keeping(8), Source::new(false));
        let askers = (0..50).map(|_| answers.get_or_ask(&"a", || source.ask()));
        let (found, ()) = tokio::join!(join_all(askers), async {
            tokio::task::yield_now().await;
            source.gate.add_permits(1000);
        });
        assert_eq!(found, vec![Ok(1); 50]);
        assert_eq!(source.asked(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_told_to_all_who_wait_and_not_kept() {
        let (answers, source) = (Tested::keeping(8), Source::new(true));
        let askers = (0..50).map(|_| answers.get_or_ask(&"a", || source.ask()));
        let (found, ()) = tokio::join!(join_all(askers), async {
            tokio::task::yield_now().await;
            source.gate.add_permits(1000);
        });
        assert_eq!(found, vec![Err("out"); 50]);
        assert_eq!(source.asked(), 1);
        let healed = Source::new(false).open();
        assert_eq!(answers.get_or_ask(&"a", || healed.ask()).await, Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn who_asked_first_may_leave() {
        let (answers, source) = (Tested::keeping(8), Source::new(false));
        let mut first = Box::pin(answers.get_or_ask(&"a", || source.ask()));
        let mut second = Box::pin(answers.get_or_ask(&"a", || source.ask()));
        assert!(first.as_mut().now_or_never().is_none());
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        source.gate.add_permits(1000);
        assert_eq!(second.await, Ok(1));
        assert_eq!(answers.get_or_ask(&"a", || source.ask()).await, Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_all_left_is_asked_anew_and_does_not_pile_up() {
        let (answers, source) = (Answers::<usize, _, _>::keeping(8), Source::new(false));
        for key in 0..1000 {
            let mut asker = Box::pin(answers.get_or_ask(&key, || source.ask()));
            assert!(asker.as_mut().now_or_never().is_none());
        }
        assert!(answers.0.lock().by_key.len() <= 4);
        source.gate.add_permits(1000);
        assert_eq!(answers.get_or_ask(&0, || source.ask()).await, Ok(1001));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_forgotten_while_it_is_asked_is_not_kept() {
        let (answers, source) = (Tested::keeping(8), Source::new(false));
        let mut before = Box::pin(answers.get_or_ask(&"a", || source.ask()));
        assert!(before.as_mut().now_or_never().is_none());
        answers.forget(&"a");
        let mut after = Box::pin(answers.get_or_ask(&"a", || source.ask()));
        assert!(after.as_mut().now_or_never().is_none());
        source.gate.add_permits(1);
        assert_eq!(before.await, Ok(1));
        let mut later = Box::pin(answers.get_or_ask(&"a", || source.ask()));
        assert!(
            later.as_mut().now_or_never().is_none(),
            "the old answer is gone"
        );
        source.gate.add_permits(1000);
        assert_eq!((after.await, later.await), (Ok(2), Ok(2)));
        assert_eq!(answers.get_or_ask(&"a", || source.ask()).await, Ok(2));
        assert_eq!(source.asked(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_the_limit_is_kept() {
        let (answers, source) = (
            Answers::<usize, _, _>::keeping(64),
            Source::new(false).open(),
        );
        for key in 0..1000 {
            answers.get_or_ask(&key, || source.ask()).await.unwrap();
        }
        // The map rounds up for each of its shards.
        assert!(answers.0.kept.len() <= 128, "{}", answers.0.kept.len());
    }
}
