//! The real program among those who mean harm: slow heads, slow bodies, slow reads, idle tunnels by
//! the thousand and clients that come and go, with the limits as they are by default.
//!
//! A good client asks ten times a second all the while, and each answer comes within a second. When
//! the others are gone, memory and descriptors are back. Here time is what is measured.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use oshu_vault_sdk::{Client, CreateSession};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{Home, MINUTE, Server, minutes};
use crate::support::{Conn, TestCa, Workload};

pub(super) const HOST: &str = "soak.example.com";
pub(super) const TARGET: &str = "soak.example.com:443";
/// Clients of each slow kind: 500 of them.
const SLOW: [(&str, usize); 3] = [("heads", 200), ("bodies", 150), ("reads", 150)];
const IDLE: usize = 2_000;
const CHURN: usize = 4;
const AT_ONCE: usize = 8;
/// Fewer than a session may have by default.
const TUNNELS_OF_A_SESSION: usize = 200;
const EXCHANGES_OF_A_SESSION: usize = 50;
/// How fast the slow ones are: one byte in this time.
const BYTE: Duration = Duration::from_secs(1);
/// What a good client has to be served within.
const SERVED: Duration = Duration::from_secs(1);
const EVERY: Duration = Duration::from_millis(100);
/// How much more memory there may be afterwards than after the same crowd before, in KiB.
const LEFT_KIB: u64 = 24 * 1024;

/// Answers `/big` without an end, `/hold` and a POST never, and everything else at once.
async fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let acceptor = TestCa::shared().acceptor();
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // Whatever ends it early is the other side's doing.
                let Ok(mut tls) = acceptor.accept(tcp).await else {
                    return;
                };
                loop {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        match tls.read_u8().await {
                            Ok(byte) => head.push(byte),
                            Err(_gone) => return,
                        }
                    }
                    if head.starts_with(b"POST") || head.starts_with(b"GET /hold") {
                        let mut piece = [0; 1024];
                        while let Ok(1..) = tls.read(&mut piece).await {}
                        return;
                    }
                    if head.starts_with(b"GET /big") {
                        let begin = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n";
                        let piece = vec![b'x'; 16 * 1024];
                        let mut sent = tls.write_all(begin).await;
                        while sent.is_ok() {
                            sent = tls.write_all(&piece).await;
                        }
                        return;
                    }
                    let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                    if tls.write_all(ok).await.is_err() || tls.flush().await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// What the tests of this file share.
pub(super) struct Stage {
    server: Server,
    sdk: Client,
    ca: String,
    stop: AtomicBool,
    /// How often something of a kind was begun.
    begun: [AtomicU64; 5],
    pub(super) open: AtomicUsize,
    /// Few come at once, or it is this machine's handshakes that are measured.
    doorway: Semaphore,
}

impl Stage {
    pub(super) async fn new(home: &Home) -> Arc<Self> {
        let roots = home.write("upstream.pem", TestCa::shared().pem());
        let mut server = home
            .serve_dev(&[
                &format!("--upstream-ca={roots}"),
                &format!("--resolve={HOST}={}", origin().await),
            ])
            .await;
        server.ignore_events();
        let sdk = Client::builder(server.url(), server.api_key());
        let ca = server.ready["ca"].as_str().expect("a path");
        Arc::new(Self {
            sdk: sdk.build().expect("a client"),
            ca: std::fs::read_to_string(ca).expect("a certificate"),
            server,
            stop: AtomicBool::new(false),
            begun: Default::default(),
            open: AtomicUsize::new(0),
            doorway: Semaphore::new(AT_ONCE),
        })
    }

    pub(super) async fn workload(&self) -> Workload {
        let session = self.sdk.create_session(&CreateSession::new()).await;
        let session = session.expect("a session");
        let addresses = (Some(self.server.plain()), None);
        Workload::at(addresses, &self.ca, &session.session_id, &session.token)
    }

    /// Opens a tunnel with TLS in it, when it is its turn.
    pub(super) async fn tunnel(&self, workload: &Workload) -> Conn {
        let _turn = self.doorway.acquire().await.expect("it is never closed");
        workload.connect(TARGET).await
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn count(&self, kind: usize) {
        self.begun[kind].fetch_add(1, Ordering::Relaxed);
    }

    /// Waits, and tells whether it still goes on.
    async fn wait(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        while self.goes_on() && Instant::now() < end {
            sleep(time.min(Duration::from_millis(500))).await;
        }
        self.goes_on()
    }
}

/// Sends a head byte by byte, again and again, from one of four other addresses.
async fn slow_head(stage: Arc<Stage>, index: usize) {
    while stage.goes_on() {
        let socket = TcpSocket::new_v4().expect("a socket");
        let host = u8::try_from(10 + index % 4).expect("small");
        let from = Ipv4Addr::new(127, 0, 2, host);
        socket.bind((from, 0).into()).expect("an address");
        let Ok(tcp) = socket.connect(stage.server.plain()).await else {
            continue;
        };
        stage.count(0);
        let mut conn = Conn::new(tcp);
        for byte in b"GET / HTTP/1.1\r\nX: "
            .iter()
            .chain(std::iter::repeat(&b'x'))
        {
            if !stage.goes_on() || conn.try_send([*byte]).await.is_err() {
                break;
            }
            // The refusal of the head's deadline, and then the end.
            if timeout(BYTE, conn.fill()).await.is_ok() {
                break;
            }
        }
    }
}

/// Sends a body byte by byte.
async fn slow_body(stage: Arc<Stage>, workload: Workload) {
    while stage.goes_on() {
        let mut conn = stage.tunnel(&workload).await;
        stage.count(1);
        let head = format!("POST /up HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 100000\r\n\r\n");
        let mut sent = conn.try_send(head).await;
        while sent.is_ok() && stage.wait(BYTE).await {
            sent = conn.try_send("b").await;
        }
    }
}

/// Reads an answer without end byte by byte.
async fn slow_read(stage: Arc<Stage>, workload: Workload) {
    while stage.goes_on() {
        let mut conn = stage.tunnel(&workload).await;
        stage.count(2);
        conn.send(format!("GET /big HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
            .await;
        let mut io = conn.into_io();
        let mut byte = [0];
        while stage.wait(BYTE).await && matches!(io.read(&mut byte).await, Ok(1)) {}
    }
}

/// Makes one request and then nothing, until the tunnel is closed; then again.
async fn idle(stage: Arc<Stage>, workload: Workload) {
    while stage.goes_on() {
        let mut conn = stage.tunnel(&workload).await;
        stage.count(3);
        stage.open.fetch_add(1, Ordering::Relaxed);
        conn.send(format!("GET /idle HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
            .await;
        assert_eq!(conn.answer().await.status, 200);
        let mut io = conn.into_io();
        let mut byte = [0];
        loop {
            let ended = timeout(Duration::from_secs(5), io.read(&mut byte)).await;
            if ended.is_ok() || !stage.goes_on() {
                break;
            }
        }
        stage.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Comes, asks, and goes: in good order, in the middle of an answer, or without a word.
async fn churn(stage: Arc<Stage>, workload: Workload) {
    for turn in 0.. {
        if !stage.goes_on() {
            return;
        }
        stage.count(4);
        if turn % 3 == 0 {
            drop(workload.tunnel(TARGET).await);
            continue;
        }
        let mut conn = workload.connect(TARGET).await;
        let path = if turn % 3 == 1 { "/ok" } else { "/big" };
        conn.send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
            .await;
        let _some = conn.fill().await;
    }
}

/// Asks ten times a second, over a tunnel that it keeps and a new one in turn, and returns how long
/// each answer took.
async fn good(stage: Arc<Stage>, workload: Workload, time: Duration) -> Vec<Duration> {
    let mut ticks = tokio::time::interval(EVERY);
    let (began, mut took) = (Instant::now(), Vec::new());
    let mut kept = workload.connect(TARGET).await;
    while began.elapsed() < time && stage.goes_on() {
        ticks.tick().await;
        let asked = Instant::now();
        if took.len() % 2 == 0 {
            kept = workload.connect(TARGET).await;
        }
        kept.send(format!("GET /good HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
            .await;
        assert_eq!(kept.answer().await.text(), "ok");
        took.push(asked.elapsed());
    }
    took
}

/// Brings all who mean harm, each kind over sessions of its own, and waits until they are there.
async fn crowd(stage: &Arc<Stage>, tasks: &mut JoinSet<()>) {
    let mut workload = stage.workload().await;
    for index in 0..SLOW[0].1 {
        tasks.spawn(slow_head(Arc::clone(stage), index));
    }
    for index in 0..SLOW[1].1 {
        if index % EXCHANGES_OF_A_SESSION == 0 {
            workload = stage.workload().await;
        }
        tasks.spawn(slow_body(Arc::clone(stage), workload.clone()));
    }
    for index in 0..SLOW[2].1 {
        if index % EXCHANGES_OF_A_SESSION == 0 {
            workload = stage.workload().await;
        }
        tasks.spawn(slow_read(Arc::clone(stage), workload.clone()));
    }
    for index in 0..IDLE {
        if index % TUNNELS_OF_A_SESSION == 0 {
            workload = stage.workload().await;
        }
        tasks.spawn(idle(Arc::clone(stage), workload.clone()));
    }
    let workload = stage.workload().await;
    for _ in 0..CHURN {
        tasks.spawn(churn(Arc::clone(stage), workload.clone()));
    }
    let there = async {
        while stage.open.load(Ordering::Relaxed) < IDLE {
            sleep(EVERY).await;
        }
    };
    timeout(10 * MINUTE, there).await.expect("a whole crowd");
}

/// Waits until the program has closed what its clients have left, and pooled connections.
async fn settled(stage: &Stage, most: usize) -> usize {
    let begun = Instant::now();
    loop {
        let open = stage.server.descriptors();
        if open <= most || begun.elapsed() > MINUTE {
            return open;
        }
        sleep(EVERY).await;
    }
}

async fn disperse(stage: &Stage, mut tasks: JoinSet<()>) {
    stage.stop.store(true, Ordering::Relaxed);
    while let Some(task) = tasks.join_next().await {
        task.expect("a client that means harm and keeps to its part");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes twelve minutes; make soak runs it"]
async fn a_good_client_is_served_among_those_who_mean_harm() {
    let time = MINUTE * minutes();
    let home = Home::new();
    let stage = Stage::new(&home).await;
    let empty = (stage.server.resident_kib(), stage.server.descriptors());
    // The whole crowd once before: the allocator keeps what it was given back, and what counts is
    // that the same crowd needs no more the next time.
    let mut tasks = JoinSet::new();
    crowd(&stage, &mut tasks).await;
    disperse(&stage, tasks).await;
    let base_open = settled(&stage, empty.1 + 4).await;
    let base = (stage.server.resident_kib(), base_open);
    stage.stop.store(false, Ordering::Relaxed);

    let mut tasks = JoinSet::new();
    let workload = stage.workload().await;
    crowd(&stage, &mut tasks).await;
    let asking = tokio::spawn(good(Arc::clone(&stage), workload, time));
    let (mut most, mut most_open, mut most_idle) = (0, 0, 0);
    while !asking.is_finished() {
        most = most.max(stage.server.resident_kib());
        most_open = most_open.max(stage.server.descriptors());
        most_idle = most_idle.max(stage.open.load(Ordering::Relaxed));
        sleep(Duration::from_millis(500)).await;
    }
    let mut took = asking.await.expect("a good client that is served");
    disperse(&stage, tasks).await;
    let open = settled(&stage, base.1 + 4).await;
    let left = stage.server.resident_kib();
    took.sort_unstable();
    let at = |share: usize| took[(took.len() - 1) * share / 1000];
    let slowest = at(1000);
    eprintln!(
        "soak: hostile: {} good requests: median {:?}, p99 {:?}, slowest {slowest:?}",
        took.len(),
        at(500),
        at(990),
    );
    let begun = stage
        .begun
        .each_ref()
        .map(|count| count.load(Ordering::Relaxed));
    eprintln!(
        "soak: hostile: begun: {} slow heads, {} slow bodies, {} slow reads, {} idle tunnels ({} \
         open at most), {} that come and go",
        begun[0], begun[1], begun[2], begun[3], most_idle, begun[4]
    );
    eprintln!(
        "soak: hostile: resident {} KiB empty, {} before, {most} at most, {left} after; descriptors \
         {} empty, {} before, {most_open} at most, {open} after",
        empty.0, base.0, empty.1, base.1
    );
    assert!(slowest <= SERVED, "a good client waited {slowest:?}");
    assert!(most_idle >= IDLE, "all idle tunnels were open at once");
    assert!(
        open <= base.1 + 4,
        "descriptors: {} before, {open} after",
        base.1
    );
    let grown = left.saturating_sub(base.0);
    assert!(grown <= LEFT_KIB, "{grown} KiB more than before");
    let stage = Arc::into_inner(stage).expect("nobody else is left");
    let (code, _events, log) = stage.server.end(Signal::TERM).await;
    assert_eq!(code, Some(0), "{log}");
}
