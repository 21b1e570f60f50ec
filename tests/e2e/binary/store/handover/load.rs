//! Restarts one after the other while requests come: none of them fails.
//!
//! Clients do what good ones do: they take a new connection where the old one said that it closes.
//! `make soak` runs the long form, at 500 requests a second, with the file and with a server.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::audit::exchanges_in;
use super::{ended, handed_over, request};
use crate::binary::Server;
use crate::binary::store::audit::FILE;
use crate::binary::store::{Made, Place, TARGET, create};
use crate::support::{Conn, Redis, Relay, Workload, contains};

/// How many were sent, and what failed.
struct Tally {
    sent: watch::Sender<u64>,
    exchanges: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Default for Tally {
    fn default() -> Self {
        let failures = Mutex::default();
        Self {
            sent: watch::Sender::new(0),
            exchanges: AtomicU64::new(0),
            failures,
        }
    }
}

impl Tally {
    fn note(&self, what: &str, done: Result<(), String>) {
        if let Err(why) = done {
            self.failures.lock().unwrap().push(format!("{what}: {why}"));
        }
        self.sent.send_modify(|sent| *sent += 1);
    }

    fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap().clone()
    }

    /// Waits for so many more, or for a failure.
    async fn more(&self, count: u64) {
        let mut sent = self.sent.subscribe();
        let due = *sent.borrow() + count;
        let reached = sent.wait_for(|sent| *sent >= due || !self.failures().is_empty());
        reached.await.expect("it counts");
    }
}

/// One client with its connection, if it has one.
struct Client {
    workload: Workload,
    sealed: String,
    kept: Option<Conn>,
}

impl Client {
    async fn request(&mut self) -> Result<(), String> {
        let mut conn = match self.kept.take() {
            Some(conn) => conn,
            None => self.workload.connect(TARGET).await,
        };
        let sent = conn.try_send(request(&self.sealed)).await;
        sent.map_err(|error| error.to_string())?;
        let answer = conn.answer().await;
        if answer.status != 200 {
            return Err(format!("{} {}", answer.status, answer.head));
        }
        if answer.header("connection") != Some("close") {
            self.kept = Some(conn);
        }
        Ok(())
    }
}

/// Sends requests of every kind until it is told to stop: in kept tunnels, in fresh ones, and
/// creations with deletions over kept connections. Each of `workers` sends one every `pause`.
async fn send(
    place: &Place,
    server: &Server,
    made: &Made,
    (workers, pause): (usize, Duration),
) -> (Arc<Tally>, Arc<AtomicBool>, JoinSet<()>) {
    let (tally, stop) = (Arc::<Tally>::default(), Arc::<AtomicBool>::default());
    let mut tasks = JoinSet::new();
    let workload = place.workload(server, made).await;
    let sealed = made.session.sealed_secrets["EXAMPLE_KEY"].clone();
    for worker in 0..workers {
        let (tally, stop) = (Arc::clone(&tally), Arc::clone(&stop));
        let api = place.client(server);
        let mut client = Client {
            workload: workload.clone(),
            sealed: sealed.clone(),
            kept: None,
        };
        tasks.spawn(async move {
            let mut ticks = interval(pause);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            while !stop.load(Ordering::SeqCst) {
                ticks.tick().await;
                if worker % 4 == 3 {
                    let made = create(&api).await;
                    let deleted = match &made {
                        Ok(made) => Some(api.delete_session(made.id()).await),
                        Err(_) => None,
                    };
                    tally.note("create", made.map(drop).map_err(|error| error.to_string()));
                    if let Some(deleted) = deleted {
                        tally.note("delete", deleted.map_err(|error| error.to_string()));
                    }
                    continue;
                }
                if worker % 4 == 2 {
                    client.kept = None;
                }
                tally.note("exchange", client.request().await);
                tally.exchanges.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    (tally, stop, tasks)
}

/// Replaces the server again and again while requests come, and returns how many were sent and what
/// failed. Of each exchange there is a record in the file of all servers.
async fn restarts(
    count: usize,
    load: (usize, Duration),
    between: u64,
    variables: &[(&str, &str)],
) -> (u64, Vec<String>) {
    let place = Place::new().await;
    let mut server = place.serve_audited(variables).await;
    let variables = [&[FILE], variables].concat();
    let made = place.create(&server).await;
    let (tally, stop, tasks) = send(&place, &server, &made, load).await;
    let started = Instant::now();
    let mut before = Vec::new();
    for _ in 0..count {
        tally.more(between).await;
        let after = place.successor_with(&variables).await;
        handed_over(&mut server).await;
        server.ignore_events();
        before.push(std::mem::replace(&mut server, after));
    }
    tally.more(between).await;
    stop.store(true, Ordering::SeqCst);
    tasks.join_all().await;
    let (sent, took) = (*tally.sent.borrow(), started.elapsed());
    for one in before {
        ended(one).await;
    }
    place.works(&server, &made).await;
    assert!(contains(&place.origin.bytes(), &made.value));
    server.ignore_events();
    server.stop().await;
    let failures = tally.failures();
    let found = place.verify(&["--closed"]).await.expect(0).json();
    assert_eq!((&found["lost"], &found["crashes"]), (&json!(0), &json!(0)));
    // The last one asked whether all is well.
    let exchanges = tally.exchanges.load(Ordering::SeqCst) + 1;
    if failures.is_empty() {
        assert_eq!(exchanges_in(&place), exchanges, "one record each");
    }
    eprintln!(
        "rolling restarts: {count}, requests sent: {sent} in {took:?} ({:.0} a second), failed: {}",
        f64::from(u32::try_from(sent).unwrap()) / took.as_secs_f64(),
        failures.len()
    );
    (sent, failures)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_servers_take_over_from_each_other() {
    let (sent, failures) = restarts(3, (8, Duration::from_millis(20)), 60, &[]).await;
    assert_eq!(failures, [""; 0], "of {sent}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_where_the_store_is_that_of_several_nodes() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let relay = Relay::to(&redis).await;
    let url = relay.url();
    let store = [("OSHU_VAULT__STORE__URL", url.as_str())];
    let (sent, failures) = restarts(3, (8, Duration::from_millis(20)), 60, &store).await;
    assert_eq!(failures, [""; 0], "of {sent}");
}

/// Replaces the server under 500 requests a second; `SOAK_RESTARTS` says how many times.
async fn soak(variables: &[(&str, &str)]) {
    let count = std::env::var("SOAK_RESTARTS");
    let count = count.map_or(10, |text| text.parse().expect("a number"));
    let load = (50, Duration::from_millis(100));
    let (sent, failures) = restarts(count, load, 2500, variables).await;
    assert_eq!(failures, [""; 0], "of {sent}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes, and a machine of its own: make soak"]
async fn rolling_restart_under_500_requests_a_second() {
    soak(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes, and a machine of its own: make soak"]
async fn rolling_restart_under_500_requests_a_second_where_the_store_is_shared() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let relay = Relay::to(&redis).await;
    soak(&[("OSHU_VAULT__STORE__URL", &relay.url())]).await;
}
