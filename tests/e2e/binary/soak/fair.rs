//! What one session's flood costs another: the second one's time to an answer, alone and beside the
//! first at its quotas.
//!
//! The flood comes in three kinds. One holds all that its session may have and asks for more, and one
//! asks a thousand times a second: what they do to the other is the proxy's doing. One asks as fast
//! as it is answered, and its clients share the machine with the program: its figures are for the
//! reader.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};

use super::hostile::{HOST, Stage, TARGET};
use super::{Home, MINUTE, minutes};
use crate::support::Workload;

/// As many as a session may have by default.
const TUNNELS: usize = 256;
/// As many as a session may have in flight by default, and as many again that wait.
const BUSY: usize = 128;
/// How often the other session asks.
const EVERY: Duration = Duration::from_millis(5);
const SECOND: Duration = Duration::from_secs(1);
/// How much longer the slowest hundredth may take, and what is too short to be compared.
const RATIO: u32 = 3;
const NOISE: Duration = Duration::from_micros(500);
/// The clients of the paced flood; each asks once in as many milliseconds.
const PACED: usize = 10;

/// The middle one of many times, and the one that a hundredth is slower than.
struct Times {
    p50: Duration,
    p99: Duration,
}

/// Asks over one tunnel and returns how long the answers took.
async fn measure(workload: &Workload, time: Duration) -> Times {
    let mut conn = workload.connect(TARGET).await;
    let (began, mut ticks, mut took) = (Instant::now(), interval(EVERY), Vec::new());
    while began.elapsed() < time {
        // From the time when it was due: one that comes late behind a slow answer is slow as well.
        let asked = ticks.tick().await.into_std();
        conn.send(format!("GET /fair HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
            .await;
        assert_eq!(conn.answer().await.text(), "ok");
        took.push(asked.elapsed());
    }
    took.sort_unstable();
    let at = |part: usize| took[took.len() * part / 100];
    Times {
        p50: at(50),
        p99: at(99),
    }
}

/// Holds a place among its session's exchanges with a request that is never answered, or waits for
/// one.
async fn hold(stage: Arc<Stage>, workload: Workload) {
    let mut conn = stage.tunnel(&workload).await;
    stage.open.fetch_add(1, Ordering::Relaxed);
    loop {
        conn.send(format!("GET /hold HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
            .await;
        while timeout(SECOND, conn.fill()).await.is_err() {}
        // No place was free in time.
        assert_eq!(conn.answer().await.status, 429);
    }
}

/// Asks as soon as it is answered, whatever the answer is.
async fn flood(stage: Arc<Stage>, workload: Workload) {
    let mut conn = stage.tunnel(&workload).await;
    stage.open.fetch_add(1, Ordering::Relaxed);
    loop {
        conn.send(format!("GET /flood HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
            .await;
        assert!(matches!(conn.answer().await.status, 200 | 429));
    }
}

/// Asks at a pace; what was answered late is asked all the same.
async fn paced(stage: Arc<Stage>, workload: Workload) {
    let mut conn = stage.tunnel(&workload).await;
    stage.open.fetch_add(1, Ordering::Relaxed);
    let mut ticks = interval(Duration::from_millis(PACED as u64));
    loop {
        ticks.tick().await;
        conn.send(format!("GET /flood HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
            .await;
        assert_eq!(conn.answer().await.status, 200);
    }
}

/// Ends a flood, all of which must have gone on until now.
async fn stop(stage: &Stage, mut tasks: JoinSet<()>) {
    let ended = tasks.try_join_next();
    assert!(ended.is_none(), "a part of the flood ended: {ended:?}");
    tasks.shutdown().await;
    stage.open.store(0, Ordering::Relaxed);
}

/// Waits until so many of the flood are there.
async fn there(stage: &Stage, count: usize) {
    let there = async {
        while stage.open.load(Ordering::Relaxed) < count {
            sleep(EVERY).await;
        }
    };
    timeout(10 * MINUTE, there).await.expect("the flood");
}

fn ratio(beside: Duration, alone: Duration) -> f64 {
    beside.as_secs_f64() / alone.as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes; make soak runs it"]
async fn case_78_a_flood_does_not_slow_another_session_down() {
    let time = MINUTE * minutes() / 10;
    let home = Home::new();
    let stage = Stage::new(&home).await;
    let (one, other) = (stage.workload().await, stage.workload().await);
    // Once before, for what is made only once.
    measure(&other, SECOND).await;
    let alone = measure(&other, time).await;
    let mut shown = vec![("alone", alone.p50, alone.p99)];

    let mut tasks = JoinSet::new();
    for _ in 0..TUNNELS {
        tasks.spawn(hold(Arc::clone(&stage), one.clone()));
    }
    there(&stage, TUNNELS).await;
    let held = measure(&other, time).await;
    shown.push(("beside one that holds its quotas", held.p50, held.p99));
    stop(&stage, tasks).await;

    let (one, mut tasks) = (stage.workload().await, JoinSet::new());
    for _ in 0..PACED {
        tasks.spawn(paced(Arc::clone(&stage), one.clone()));
    }
    there(&stage, PACED).await;
    let asking = measure(&other, time).await;
    shown.push((
        "beside one that asks 1,000 times a second",
        asking.p50,
        asking.p99,
    ));
    stop(&stage, tasks).await;

    let (one, mut tasks) = (stage.workload().await, JoinSet::new());
    for _ in 0..BUSY {
        tasks.spawn(flood(Arc::clone(&stage), one.clone()));
    }
    there(&stage, BUSY).await;
    let busy = measure(&other, time).await;
    shown.push(("beside one that asks without end", busy.p50, busy.p99));
    stop(&stage, tasks).await;

    for (what, p50, p99) in shown {
        eprintln!(
            "{what}: p50 {p50:?}, p99 {p99:?}, ratios {:.2} and {:.2}",
            ratio(p50, alone.p50),
            ratio(p99, alone.p99)
        );
    }
    let most = RATIO * alone.p99.max(NOISE);
    for times in [held, asking] {
        assert!(times.p99 <= most, "{:?} over {most:?}", times.p99);
    }
}
