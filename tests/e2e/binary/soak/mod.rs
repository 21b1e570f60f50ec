//! What takes minutes: large bodies, slow ones and silent ones through the real program, with the
//! limits as they are by default, all at once and by every pair of protocols; in `hostile`, those who
//! mean harm; in `fair`, what one session's flood costs another.
//!
//! `make soak` runs it; no other target does. `SOAK_MINUTES` says how long the slow ones take.

mod fair;
mod hostile;
mod wire;

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use oshu_vault_sdk::{Client, CreateSession};
use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{Home, Server};
use crate::support::{TestCa, Workload};
use wire::{Receiver, Reply, Sender, ask, listen};

/// What speaks HTTP/1.1 only.
const ONE: &str = "one.example.com";
/// What speaks HTTP/2 where it is asked for.
const TWO: &str = "two.example.com";
/// The ways through the program: their names, where they lead, and whether the workload speaks
/// HTTP/2.
const WAYS: [(&str, &str, bool); 3] = [
    ("h1 to h1", ONE, false),
    ("h2 to h1", ONE, true),
    ("h2 to h2", TWO, true),
];
/// How much the program may grow over all of it, in KiB.
const GROWTH_LIMIT_KIB: u64 = 64 * 1024;
/// A body of 1 GiB.
const LARGE: Body = Body {
    pieces: 16 * 1024,
    piece_bytes: 64 * 1024,
};
const MINUTE: Duration = Duration::from_mins(1);

/// A body that both ends know.
#[derive(Clone, Copy)]
struct Body {
    pieces: u64,
    piece_bytes: usize,
}

static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut noise = vec![0; LARGE.piece_bytes];
    aws_lc_rs::rand::fill(&mut noise).expect("random bytes");
    noise
});

static LARGE_SUM: LazyLock<String> = LazyLock::new(|| LARGE.sum());

impl Body {
    fn length(self) -> u64 {
        self.pieces * self.piece_bytes as u64
    }

    /// Returns a piece; no two are the same.
    fn piece(self, index: u64) -> Bytes {
        let mut piece = NOISE[..self.piece_bytes].to_vec();
        piece[..8].copy_from_slice(&index.to_le_bytes());
        piece.into()
    }

    /// Sends all pieces, with a pause before each.
    async fn send(self, to: &mut Sender, pause: Duration) {
        for index in 0..self.pieces {
            if !pause.is_zero() {
                sleep(pause).await;
            }
            to.send(self.piece(index)).await;
        }
    }

    /// Returns the SHA-256 of all pieces.
    fn sum(self) -> String {
        let mut context = Context::new(&SHA256);
        (0..self.pieces).for_each(|index| context.update(&self.piece(index)));
        HEXLOWER.encode(context.finish().as_ref())
    }
}

/// Reads a body to its end and returns its SHA-256.
async fn sum_of(mut body: Receiver) -> String {
    let mut context = Context::new(&SHA256);
    while let Some(piece) = body.piece().await {
        context.update(&piece);
    }
    HEXLOWER.encode(context.finish().as_ref())
}

/// Answers as its path asks; `/silent/60` is silent for a minute in the middle of its answer.
async fn serve(path: String, body: Receiver, reply: Reply) {
    let (kind, seconds) = path[1..].split_once('/').expect("a kind and seconds");
    let wait = Duration::from_secs(seconds.parse().expect("seconds"));
    let sender = match kind {
        "download" => {
            let mut sender = reply.begin(LARGE.length()).await;
            LARGE.send(&mut sender, Duration::ZERO).await;
            sender
        }
        "silent" => {
            let mut sender = reply.begin(12).await;
            sender.send("begun ".into()).await;
            sleep(wait).await;
            sender.send("ended.".into()).await;
            sender
        }
        "late" => {
            sleep(wait).await;
            let mut sender = reply.begin(2).await;
            sender.send("ok".into()).await;
            sender
        }
        _ => {
            let sum = sum_of(body).await;
            let mut sender = reply.begin(sum.len() as u64).await;
            sender.send(sum.into()).await;
            sender
        }
    };
    if let Some(mut io) = sender.end() {
        let ended = tokio::io::AsyncWriteExt::shutdown(&mut io).await;
        ended.expect("an end in good order");
    }
}

/// One exchange of the soak: what it is, and how long it has to wait at least.
#[derive(Clone, Copy)]
struct Task {
    kind: &'static str,
    wait: Duration,
}

impl Task {
    fn all(minutes: u32) -> [Self; 5] {
        let task = |kind, wait| Self { kind, wait };
        [
            task("upload", Duration::ZERO),
            task("download", Duration::ZERO),
            task("trickle", MINUTE * minutes),
            task("silent", MINUTE * minutes),
            task("late", MINUTE * minutes / 2),
        ]
    }

    /// Makes the exchange, compares what arrived, and tells about it.
    async fn run(self, workload: Workload, way: (&'static str, bool)) -> String {
        let path = format!("/{}/{}", self.kind, self.wait.as_secs());
        let (body, pause) = match self.kind {
            "upload" => (LARGE, Duration::ZERO),
            "trickle" => {
                let pieces = self.wait.as_secs();
                let piece_bytes = 1000;
                let slow = Body {
                    pieces,
                    piece_bytes,
                };
                (slow, Duration::from_secs(1))
            }
            _ => {
                let none = Body {
                    pieces: 0,
                    piece_bytes: 0,
                };
                (none, Duration::ZERO)
            }
        };
        let began = Instant::now();
        let (mut sender, answer) = ask(&workload, way, &path, body.length()).await;
        body.send(&mut sender, pause).await;
        let _open = sender.end();
        let answer = answer.head().await;
        let (expected, seen) = match self.kind {
            "download" => (LARGE_SUM.clone(), sum_of(answer).await),
            "silent" => ("begun ended.".to_owned(), answer.text().await),
            "late" => ("ok".to_owned(), answer.text().await),
            "upload" => (LARGE_SUM.clone(), answer.text().await),
            _ => (body.sum(), answer.text().await),
        };
        let took = began.elapsed();
        assert_eq!(seen, expected, "{path}");
        assert!(took >= self.wait, "{path}: {took:?}");
        let bytes = match self.kind {
            "download" => LARGE.length(),
            _ => body.length(),
        };
        let sum = if bytes > 0 { ", SHA-256 equal" } else { "" };
        let took = took.as_secs_f64();
        format!("{:>8}: {bytes:>10} bytes, {took:>6.1} s{sum}", self.kind)
    }
}

/// Starts the program with its two upstreams, and a workload of a session.
async fn start(home: &Home) -> (Server, Workload) {
    let roots = home.write("upstream.pem", TestCa::shared().pem());
    let one = listen(false, serve).await;
    let two = listen(true, serve).await;
    let server = home
        .serve_dev(&[
            &format!("--upstream-ca={roots}"),
            &format!("--resolve={ONE}={one}"),
            &format!("--resolve={TWO}={two}"),
        ])
        .await;
    let sdk = Client::builder(server.url(), server.api_key())
        .build()
        .expect("a client");
    let session = sdk
        .create_session(&CreateSession::new())
        .await
        .expect("a session");
    let ca = server.ready["ca"].as_str().expect("a path");
    let ca = std::fs::read_to_string(ca).expect("a certificate");
    let addresses = (Some(server.plain()), None);
    let workload = Workload::at(addresses, &ca, &session.session_id, &session.token);
    (server, workload)
}

/// Says how long the slow ones take.
fn minutes() -> u32 {
    std::env::var("SOAK_MINUTES").map_or(10, |text| text.parse().expect("minutes"))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes eleven minutes; make soak runs it"]
async fn large_slow_and_silent_exchanges_end_whole_and_take_no_memory() {
    let minutes = minutes();
    let home = Home::new();
    let (server, workload) = start(&home).await;
    LazyLock::force(&LARGE_SUM);
    let (before, most) = (server.resident_kib(), AtomicU64::new(0));
    let mut exchanges = JoinSet::new();
    for (name, host, is_h2) in WAYS {
        for task in Task::all(minutes) {
            let workload = workload.clone();
            exchanges.spawn(async move {
                let told = task.run(workload, (host, is_h2)).await;
                eprintln!("soak: {name} {told}");
            });
        }
    }
    let count = exchanges.len();
    let watch = async {
        loop {
            most.fetch_max(server.resident_kib(), Ordering::Relaxed);
            sleep(Duration::from_millis(200)).await;
        }
    };
    let all = async {
        while let Some(ended) = exchanges.join_next().await {
            ended.expect("an exchange that ends whole");
        }
    };
    tokio::select! {
        ended = timeout(MINUTE * (minutes + 10), all) => ended.expect("all end in time"),
        () = watch => {}
    }
    let (after, most) = (server.resident_kib(), most.into_inner());
    let grown = most.max(after).saturating_sub(before);
    eprintln!("soak: resident {before} KiB before, {most} at most, {after} after");
    assert!(grown < GROWTH_LIMIT_KIB, "the program grew by {grown} KiB");
    let (code, events, log) = server.end(Signal::TERM).await;
    assert_eq!(code, Some(0), "{log}");
    let of = |event: &'static str| events.iter().filter(move |line| line["event"] == event);
    assert_eq!(of("exchange").count(), count, "one record each");
    for record in of("exchange").chain(of("tunnel")) {
        assert_eq!(record["decision"], "allowed", "{record}");
    }
}
