//! Many at once, and much at once: one mint under contention, and memory that bodies do not grow.
//!
//! The memory of bodies is measured on the real program, whose resident size the kernel knows.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use oshu_vault_sdk::{Client, CreateSession};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::support::{Origin, TestCa, Vault, basic, within};

const SESSIONS: usize = 8;
const REQUESTS: usize = 1_000;
const BODY_BYTES: usize = 300 * 1024 * 1024;
const PIECE_BYTES: usize = 256 * 1024;
const GROWTH_LIMIT_KIB: u64 = 20 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_72_a_thousand_first_requests_over_eight_sessions_mint_one_leaf() {
    let origin = Origin::echo_ok().await;
    let vault = Vault::builder()
        .resolve("new.example.com", origin.addr())
        // All come from one address, and each session has more at once than it may by default.
        .config(|config| {
            config.limits.unauthenticated_per_address = REQUESTS;
            config.limits.session_exchanges = REQUESTS;
        })
        .start()
        .await;
    let mut requests = JoinSet::new();
    for _ in 0..SESSIONS {
        let session = vault.session(&CreateSession::new()).await;
        let workload = vault.workload(&session);
        for _ in 0..REQUESTS / SESSIONS {
            let workload = workload.clone();
            requests.spawn(async move {
                let answer = workload.get("https://new.example.com/", &[]).await;
                assert_eq!(answer.status, 200);
            });
        }
    }
    let mut answered = 0;
    while let Some(request) = requests.join_next().await {
        request.expect("a request is answered");
        answered += 1;
    }
    assert_eq!(answered, REQUESTS);
    // The listener's own certificate is minted by the same authority, but nobody asked for it.
    assert_eq!(vault.leaves(), (1, 1));
}

/// The real program, and what it said when it started.
struct Program {
    child: Child,
    ready: Value,
    key: String,
}

impl Program {
    fn start(folder: &std::path::Path, upstream: std::net::SocketAddr) -> Self {
        let roots = folder.join("upstream.pem");
        std::fs::write(&roots, TestCa::shared().pem()).expect("a file");
        let any = "127.0.0.1:0";
        let mut child = Command::new(env!("CARGO_BIN_EXE_oshu-vault"))
            .args([
                "serve",
                "--dev",
                "--listen",
                any,
                "--tls-listen",
                any,
                "--admin-listen",
                any,
            ])
            .arg("--state-dir")
            .arg(folder.join("state"))
            .arg("--upstream-ca")
            .arg(&roots)
            .arg("--resolve")
            .arg(format!("big.example.com={upstream}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut next = || -> Value {
            let line = lines.next().expect("a line").expect("text");
            serde_json::from_str(&line).expect("a JSON line")
        };
        let key = next()["api_key"].as_str().expect("a key").to_owned();
        let ready = next();
        // The records are read and dropped, so that the pipe never fills.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, ready, key }
    }

    fn resident_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("the program runs");
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .expect("a size");
        line.split_whitespace()
            .nth(1)
            .expect("a number")
            .parse()
            .expect("a number")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Takes uploads and answers with their size; answers a GET with the big body.
async fn big_origin(listener: TcpListener) {
    let acceptor = TestCa::shared().acceptor();
    while let Ok((tcp, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let mut tls = acceptor.accept(tcp).await.expect("TLS");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(tls.read_u8().await.expect("a head"));
            }
            let mut left = if head.starts_with(b"POST") {
                BODY_BYTES
            } else {
                0
            };
            let upload = left > 0;
            let mut sum = 0_u64;
            let mut piece = vec![0; PIECE_BYTES];
            while left > 0 {
                let count = tls.read(&mut piece).await.expect("a body");
                assert!(count > 0, "the upload was cut");
                sum += piece[..count]
                    .iter()
                    .map(|byte| u64::from(*byte))
                    .sum::<u64>();
                left -= count;
            }
            if upload {
                let text = format!("{sum}");
                let length = text.len();
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{text}");
                tls.write_all(answer.as_bytes()).await.expect("an answer");
            } else {
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY_BYTES}\r\n\r\n");
                tls.write_all(answer.as_bytes()).await.expect("an answer");
                let piece = vec![7; PIECE_BYTES];
                for _ in 0..BODY_BYTES / PIECE_BYTES {
                    tls.write_all(&piece).await.expect("a body");
                }
            }
            tls.flush().await.expect("the end");
        });
    }
}

/// Opens a tunnel through the program and speaks TLS in it.
async fn tunnel(program: &Program) -> tokio_rustls::client::TlsStream<TcpStream> {
    let listen = program.ready["listen"].as_str().expect("an address");
    let client = Client::builder(format!("http://{listen}"), program.key.as_str());
    let client = client.build().expect("a client");
    let session = client
        .create_session(&CreateSession::new())
        .await
        .expect("a session");
    let mut tcp = TcpStream::connect(listen).await.expect("a connection");
    let credentials = basic(&session.session_id, &session.token);
    let connect = format!(
        "CONNECT big.example.com:443 HTTP/1.1\r\nHost: big.example.com:443\r\n\
         Proxy-Authorization: {credentials}\r\n\r\n"
    );
    tcp.write_all(connect.as_bytes()).await.expect("CONNECT");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await.expect("an answer"));
    }
    assert!(head.starts_with(b"HTTP/1.1 200"), "{}", head.escape_ascii());
    let mut roots = RootCertStore::empty();
    let ca = program.ready["ca"].as_str().expect("a path");
    roots
        .add(CertificateDer::from_pem_file(ca).expect("a certificate"))
        .expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("big.example.com").expect("a name");
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector
        .connect(name, tcp)
        .await
        .expect("TLS in the tunnel")
}

async fn start() -> (Program, tempfile::TempDir) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(big_origin(listener));
    let folder = tempfile::tempdir().expect("a folder");
    (Program::start(folder.path(), address), folder)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_upload_does_not_grow_the_program() {
    let (program, _folder) = start().await;
    let mut tls = within("a tunnel", tunnel(&program)).await;
    let before = program.resident_kib();
    let head = format!(
        "POST /up HTTP/1.1\r\nHost: big.example.com\r\nContent-Length: {BODY_BYTES}\r\n\r\n"
    );
    tls.write_all(head.as_bytes()).await.expect("a head");
    let piece = vec![3; PIECE_BYTES];
    let mut most = before;
    for index in 0..BODY_BYTES / PIECE_BYTES {
        within("a piece to be taken", tls.write_all(&piece))
            .await
            .expect("a piece");
        if index % 64 == 0 {
            most = most.max(program.resident_kib());
        }
    }
    tls.flush().await.expect("the end");
    let expected = format!("\r\n\r\n{}", 3 * BODY_BYTES);
    let mut answer = Vec::new();
    while !answer.ends_with(expected.as_bytes()) {
        answer.push(
            within("the answer", tls.read_u8())
                .await
                .expect("an answer"),
        );
    }
    let grown = most.max(program.resident_kib()) - before;
    assert!(grown < GROWTH_LIMIT_KIB, "{grown} KiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_download_does_not_grow_the_program() {
    let (program, _folder) = start().await;
    let mut tls = within("a tunnel", tunnel(&program)).await;
    let before = program.resident_kib();
    tls.write_all(b"GET /down HTTP/1.1\r\nHost: big.example.com\r\n\r\n")
        .await
        .expect("a head");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within("a head", tls.read_u8()).await.expect("a head"));
    }
    let (mut left, mut most) = (BODY_BYTES, before);
    let mut piece = vec![0; PIECE_BYTES];
    let mut reads = 0_usize;
    while left > 0 {
        let count = within("a piece", tls.read(&mut piece))
            .await
            .expect("a body");
        assert!(count > 0, "the download was cut");
        assert!(
            piece[..count].iter().all(|byte| *byte == 7),
            "a byte changed"
        );
        left -= count;
        reads += 1;
        if reads.is_multiple_of(1024) {
            most = most.max(program.resident_kib());
        }
    }
    let grown = most.max(program.resident_kib()) - before;
    assert!(grown < GROWTH_LIMIT_KIB, "{grown} KiB");
}
