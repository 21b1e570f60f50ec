//! The harness: a vault in process, origins that record, and a workload that speaks raw bytes.
//!
//! Every wait goes through [`within`], so that a hang is a failure that says what it waited for.
//! Nothing here knows how the vault works inside; it is reached through its listeners only.

mod anthropic;
mod ca;
mod chain;
pub(crate) mod clients;
mod cuts;
mod h2_client;
mod h2_origin;
mod h2_scene;
mod obedient;
mod origin;
mod redis;
mod scene;
mod stream;
mod vault;
pub(crate) mod websocket;
mod workload;

use std::fmt::Write as _;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tokio::net::TcpSocket;

pub(crate) use self::redis::{Redis, Relay};
pub(crate) use anthropic::{ANSWER, Anthropic, Login};
pub(crate) use ca::TestCa;
pub(crate) use chain::{forward, target};
pub(crate) use h2_client::H2Client;
pub(crate) use h2_origin::{H2Exchange, H2Origin, H2Seen};
pub(crate) use h2_scene::{H2Scene, TWO};
pub(crate) use obedient::{Step, Steps, orders};
pub(crate) use origin::{Origin, OriginConn, Request};
pub(crate) use scene::{EVIL, GOOD, REAL, SIDE, Scene};
pub(crate) use stream::{Answer, Conn, Stream};
pub(crate) use vault::{API_KEY, Vault, VaultBuilder};
pub(crate) use workload::{Workload, basic};

/// How long anything may take; far beyond what a test needs that passes.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long what is promised within two seconds may take on a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// Waits for a future, and fails the test if the deadline passes first.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(DEADLINE, future).await;
    done.unwrap_or_else(|_elapsed| panic!("timed out: {what}"))
}

/// Connects from another address of this machine.
pub(crate) async fn dial_from(from: Ipv4Addr, address: SocketAddr) -> Conn {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((from, 0).into()).expect("an address");
    let tcp = within("a connection", socket.connect(address)).await;
    Conn::new(tcp.expect("a connection"))
}

/// Waits for what the product promises within a second or two. The bound leaves room for a machine
/// under load; `make soak`, which has one to itself, holds the promise as it is.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(SOON, future).await;
    done.unwrap_or_else(|_elapsed| panic!("not within {SOON:?}: {what}"))
}

/// Says that this machine lacks something: a skip, and a loud line, only where the environment says
/// that there may be skips.
pub(crate) fn missing(what: &str) {
    let may_skip = std::env::var_os("OSHU_VAULT_SKIP_MISSING").is_some_and(|on| on == "1");
    assert!(
        may_skip,
        "{what}; OSHU_VAULT_SKIP_MISSING=1 skips its tests"
    );
    eprintln!("SKIPPED: {what}");
    // Output of tests that pass is not shown; the script that runs them counts these lines.
    if let Some(path) = std::env::var_os("OSHU_VAULT_SKIPS") {
        let file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path);
        writeln!(file.expect("the list of skips"), "{what}").expect("a line");
    }
}

/// Finds a program on the path. Nothing, and a loud line, only where the environment says that
/// missing programs may be skipped.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file());
    if found.is_none() {
        missing(&format!("{name} is not installed"));
    }
    found
}

/// Tells whether a needle stands in a haystack of bytes.
pub(crate) fn contains(haystack: &[u8], needle: impl AsRef<[u8]>) -> bool {
    let needle = needle.as_ref();
    haystack
        .windows(needle.len().max(1))
        .any(|window| window == needle)
}

/// Returns the SHA-256 of bytes in hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    data_encoding::HEXLOWER.encode(sum.as_ref())
}

/// Percent-encodes every byte of a text.
pub(crate) fn percent(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        write!(out, "%{byte:02X}").expect("room");
        out
    })
}

/// Shows bytes in a failure message.
pub(crate) fn show(bytes: &[u8]) -> String {
    let text: String = bytes.escape_ascii().to_string();
    text.replace("\\r\\n", "\\r\\n\n")
}

/// Makes bytes that no accident repeats.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ length as u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}
