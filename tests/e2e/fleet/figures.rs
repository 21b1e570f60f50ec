//! Figures: what is served and what refused while the store is killed, stopped and restarted under
//! load, and how soon a deletion bites on the other node. Printed, and held against what is promised.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rustls::pki_types::ServerName;
use tokio::time::sleep;

use super::{CreatedSession, Fleet, GOOD, Node, TARGET, get_with, request};
use crate::support::{Conn, Redis, within};

/// How long sessions are served without word here.
const MAX_STALE: Duration = Duration::from_secs(3);
/// How many workloads open tunnels on each node, one after the other.
const WORKLOADS: usize = 4;
/// What is counted, in the order of the columns.
const COLUMNS: [&str; 7] = [
    "CONNECT 200",
    "CONNECT 503",
    "request 200",
    "tunnel cut",
    "POST 201",
    "POST 503",
    "other",
];

/// What happened, by the part of the run and the column.
#[derive(Default)]
struct Counts {
    part: Mutex<String>,
    parts: Mutex<Vec<(String, Instant)>>,
    seen: Mutex<BTreeMap<(String, &'static str), u64>>,
    slowest: Mutex<BTreeMap<String, Duration>>,
}

impl Counts {
    fn begin(&self, part: &str) {
        part.clone_into(&mut self.part.lock().unwrap());
        let begun = (part.to_owned(), Instant::now());
        self.parts.lock().unwrap().push(begun);
    }

    /// Counts something that began in the part that is named.
    fn count(&self, part: String, what: &'static str, took: Duration) {
        let mut slowest = self.slowest.lock().unwrap();
        let slowest = slowest.entry(part.clone()).or_default();
        *slowest = took.max(*slowest);
        *self.seen.lock().unwrap().entry((part, what)).or_default() += 1;
    }

    fn now(&self) -> String {
        self.part.lock().unwrap().clone()
    }

    fn of(&self, part: &str, what: &'static str) -> u64 {
        let counts = self.seen.lock().unwrap();
        let key = (part.to_owned(), what);
        counts.get(&key).copied().unwrap_or_default()
    }

    /// Writes all of it as a table.
    fn table(&self) -> String {
        let mut table = format!(
            "| the store | seconds | {} | slowest |\n|---|---|{}---|\n",
            COLUMNS.join(" | "),
            "---|".repeat(COLUMNS.len())
        );
        let parts = self.parts.lock().unwrap();
        for pair in parts.windows(2) {
            let (part, begun) = &pair[0];
            let cells = COLUMNS.map(|what| self.of(part, what).to_string());
            let slowest = self.slowest.lock().unwrap();
            let slowest = slowest.get(part).copied().unwrap_or_default();
            let line = writeln!(
                table,
                "| {part} | {:.1} | {} | {} ms |",
                (pair[1].1 - *begun).as_secs_f32(),
                cells.join(" | "),
                slowest.as_millis()
            );
            line.expect("room");
        }
        table
    }
}

/// Opens tunnels, each for nothing.
async fn connects(node: &Node, session: &CreatedSession, counts: &Counts) {
    loop {
        let (part, begin) = (counts.now(), Instant::now());
        let what = match node.status(session).await {
            200 => "CONNECT 200",
            503 => "CONNECT 503",
            _ => "other",
        };
        counts.count(part, what, begin.elapsed());
        sleep(Duration::from_millis(5)).await;
    }
}

/// Sends requests in one tunnel, and opens the next where it was cut.
async fn requests(node: &Node, session: &CreatedSession, counts: &Counts) {
    let workload = node.vault.workload(session);
    loop {
        let mut conn = workload.plain().await;
        if workload.ask(&mut conn, TARGET).await.status != 200 {
            sleep(Duration::from_millis(20)).await;
            continue;
        }
        let name = ServerName::try_from(GOOD).expect("a name");
        let Ok(stream) = workload.handshake(conn.into_io(), name, &[]).await else {
            continue;
        };
        let mut conn = Conn::new(stream);
        loop {
            let (part, begin) = (counts.now(), Instant::now());
            if conn.try_send(get_with(session)).await.is_err() || !conn.fill().await {
                counts.count(part, "tunnel cut", begin.elapsed());
                break;
            }
            let status = conn.answer().await.status;
            let what = if status == 200 {
                "request 200"
            } else {
                "other"
            };
            counts.count(part, what, begin.elapsed());
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Creates sessions.
async fn creations(node: &Node, counts: &Counts) {
    let sdk = node.vault.sdk();
    loop {
        let (part, begin) = (counts.now(), Instant::now());
        let what = match sdk.create_session(&request()).await {
            Ok(_) => "POST 201",
            Err(oshu_vault_sdk::Error::Server(problem)) if problem.status == 503 => "POST 503",
            Err(_) => "other",
        };
        counts.count(part, what, begin.elapsed());
        sleep(Duration::from_millis(50)).await;
    }
}

/// What is done to the store, and what each part of the run is called.
async fn script(redis: &mut Redis, counts: &Counts) {
    let seconds = |count: u64| sleep(Duration::from_secs(count));
    counts.begin("up");
    seconds(3).await;
    counts.begin("killed, first 2 s");
    redis.kill().await;
    seconds(2).await;
    counts.begin("killed, 2 to 5 s");
    seconds(3).await;
    counts.begin("killed, after 5 s");
    seconds(3).await;
    counts.begin("back, first 4 s");
    redis.run().await;
    seconds(4).await;
    counts.begin("up again");
    seconds(3).await;
    counts.begin("stopped, first 2 s");
    redis.pause();
    seconds(2).await;
    counts.begin("stopped, 2 to 5 s");
    seconds(3).await;
    counts.begin("stopped, after 5 s");
    seconds(3).await;
    counts.begin("going on, first 4 s");
    redis.resume();
    seconds(4).await;
    counts.begin("up, then restarted");
    seconds(1).await;
    redis.kill().await;
    redis.run().await;
    seconds(4).await;
    counts.begin("up at the end");
    seconds(3).await;
    counts.begin("the end");
}

/// Prints what was served and what refused while the store is killed, stopped and restarted under
/// load: `cargo test --test e2e fleet::figures -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures, and takes half a minute"]
async fn soak_outages_under_load() {
    let Some(mut fleet) =
        Fleet::with(|vault| vault.config(|config| config.shared.max_stale = MAX_STALE)).await
    else {
        return;
    };
    let session = fleet.create().await;
    fleet.works(&fleet.b, &session).await;
    let counts = Counts::default();
    let Fleet { redis, a, b, .. } = &mut fleet;
    let nodes = [&*a, &*b];
    let load = async {
        let (mut opening, mut asking, mut making) = (Vec::new(), Vec::new(), Vec::new());
        for node in nodes {
            for _ in 0..WORKLOADS {
                opening.push(connects(node, &session, &counts));
            }
            asking.push(requests(node, &session, &counts));
            making.push(creations(node, &counts));
        }
        tokio::join!(join_all(opening), join_all(asking), join_all(making));
    };
    tokio::select! {
        () = script(redis, &counts) => {}
        () = load => {}
    }
    println!("{}", counts.table());
    for (part, _) in counts.parts.lock().unwrap().iter() {
        assert_eq!(counts.of(part, "other"), 0, "{part}");
        let of = |what| counts.of(part, what);
        if part.contains("after 5 s") {
            assert_eq!((of("CONNECT 200"), of("request 200")), (0, 0), "{part}");
        }
        if ["up", "up again", "up at the end"].contains(&part.as_str()) {
            assert_eq!((of("CONNECT 503"), of("tunnel cut")), (0, 0), "{part}");
        }
        if part.contains("first 2 s") {
            assert_eq!((of("CONNECT 503"), of("tunnel cut")), (0, 0), "{part}");
        }
    }
}

/// Measures how soon a deletion bites on the other node: within two seconds, with and without its
/// announcement.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures"]
async fn soak_deletions_reach_the_other_node_within_two_seconds() {
    let Some(fleet) = Fleet::new().await else {
        return;
    };
    for is_silent in [false, true] {
        if is_silent {
            fleet.b.relay.silence();
        }
        let mut times = Vec::new();
        for _ in 0..50 {
            let session = fleet.create().await;
            let mut conn = fleet.b.vault.workload(&session).connect(TARGET).await;
            fleet
                .a
                .vault
                .sdk()
                .delete_session(&session.session_id)
                .await
                .unwrap();
            let begin = Instant::now();
            let _ended = within("the end of the tunnel", conn.rest_and_end()).await;
            assert_eq!(fleet.b.status(&session).await, 407);
            times.push(begin.elapsed());
        }
        times.sort();
        println!(
            "announced {}: median {:?}, worst {:?}",
            !is_silent, times[25], times[49]
        );
        assert!(times[49] < Duration::from_secs(2));
    }
}
