//! Ten thousand mutants through the listener, and four servers that read what arrives.
//!
//! Whatever the proxy lets through must read the same to all of them: the strict one without a
//! fault, and the others, who are wrong each in a way of their own, no request more or less.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::mutants::mutant;
use super::readers::{ALL, Read, Reader};
use crate::support::{Conn, GOOD, Origin, OriginConn, REAL, SIDE, Scene, Workload, contains, show};

/// Makes the run the same each time.
const SEED: u64 = 0x0516_5ea1_ed70_4e45;
const MUTANTS: usize = 10_000;
/// How many are on their way at once.
const LANES: usize = 32;
/// One in so many goes through TLS, both to the proxy and from it; the others take a clear tunnel
/// to the same relay, which costs less.
const SECURE: usize = 16;
/// How long a proxy is listened to that says nothing and does not hang up: it waits for more of a
/// body than there is. Nothing depends on it but the time that takes.
const QUIET: Duration = Duration::from_millis(500);

/// Answers each request that the strict reader finds, and hangs up where there is none.
async fn serve(conn: OriginConn) {
    let mut input = Vec::new();
    while let Some(bytes) = conn.read_some().await {
        input.extend_from_slice(&bytes);
        let read = Reader::Strict.read(&input);
        for seen in &read.seen {
            let body = if seen.method == b"HEAD" { "" } else { "ok" };
            conn.send(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{body}"
            ))
            .await;
        }
        if read.fault.is_some() {
            return conn.close().await;
        }
        input.drain(..read.length);
    }
}

/// Sends one mutant and returns what came back.
async fn send(workload: &Workload, number: usize) -> Vec<u8> {
    let secure = number.is_multiple_of(SECURE);
    let host = if secure { GOOD } else { SIDE };
    let bytes = mutant(SEED, number, host);
    let mut conn: Conn = if secure {
        workload.connect(&format!("{host}:443")).await
    } else {
        // Something that is no method is not taken for HTTP where a tunnel begins.
        let mut conn = workload.tunnel(&format!("{host}:80")).await;
        if !bytes[0].is_ascii_alphabetic() {
            let first = format!("GET /first HTTP/1.1\r\nHost: {host}\r\n\r\n");
            conn.send(first).await;
            conn.answer().await;
        }
        conn
    };
    // It may have been refused before it was through.
    let _taken = conn.try_send(&bytes).await;
    while let Ok(true) = tokio::time::timeout(QUIET, conn.fill()).await {}
    std::mem::take(&mut conn.input)
}

fn judge(bytes: &[u8]) -> Result<Read, String> {
    let strict = Reader::Strict.read(bytes);
    let rest = &bytes[strict.length..];
    if let Some(fault) = strict.fault {
        return Err(format!("{fault} in {}", show(rest)));
    }
    for reader in ALL {
        let read = reader.read(bytes);
        if read.seen != strict.seen {
            let differs = (0..=read.seen.len())
                .find(|index| read.seen.get(*index) != strict.seen.get(*index));
            let index = differs.unwrap_or_default();
            let pair = (strict.seen.get(index), read.seen.get(index));
            return Err(format!(
                "{reader:?} reads request {index} otherwise: {pair:?}"
            ));
        }
        if read.lines.iter().any(|line| contains(line, "/smug")) {
            return Err(format!(
                "{reader:?} sees the smuggled request in {}",
                show(rest)
            ));
        }
    }
    Ok(strict)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn case_58_whoever_reads_it_reads_the_same_requests() {
    println!("seed {SEED:#x}");
    let (good, side) = (
        Origin::raw(serve).await,
        Origin::builder().plain().raw(serve).await,
    );
    let vault = crate::support::Vault::builder()
        .resolve(GOOD, good.addr())
        .resolve(SIDE, side.addr())
        .start()
        .await;
    let next = Arc::new(AtomicUsize::new(0));
    let answered = Arc::new(AtomicUsize::new(0));
    let mut lanes = tokio::task::JoinSet::new();
    for _ in 0..LANES {
        // Each with a session of its own: none is slowed by what the others do.
        let workload = vault.workload(&vault.session(&Scene::request()).await);
        let (next, answered) = (Arc::clone(&next), Arc::clone(&answered));
        lanes.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= MUTANTS {
                    return;
                }
                let back = send(&workload, number).await;
                let text = String::from_utf8_lossy(&back);
                let good = text.matches("HTTP/1.1 200 OK\r\n").count();
                answered.fetch_add(good, Ordering::Relaxed);
                let own = text.starts_with("HTTP/1.1 ") || text.is_empty();
                assert!(own, "mutant {number}: {text}");
                assert!(!contains(&back, REAL), "mutant {number}: {text}");
            }
        });
    }
    while let Some(lane) = lanes.join_next().await {
        lane.expect("a lane");
    }
    let mut requests = 0;
    for (origin, kind) in [(&good, "TLS"), (&side, "clear")] {
        for bytes in origin.received() {
            let read = judge(&bytes).unwrap_or_else(|fault| panic!("{kind}: {fault}"));
            requests += read.seen.len();
        }
    }
    // The run is about something: some were let through, and many were not.
    let answered = answered.load(Ordering::Relaxed);
    println!("{requests} requests of {MUTANTS} mutants, {answered} answers");
    assert!(requests > MUTANTS / 3, "{requests} requests arrived");
    assert!(requests < 2 * MUTANTS, "{requests} requests arrived");
    assert!(
        answered <= requests,
        "{answered} answers to {requests} requests"
    );
}
