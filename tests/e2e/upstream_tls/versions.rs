//! Which TLS an upstream may speak.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;

use super::Stage;
use super::issue::{Authority, by_openssl};
use crate::support::{GOOD, Origin, OriginConn, contains, program, show, within};

/// An openssl that serves `leaf.pem` and `leaf.key` of a folder.
pub(super) struct Server {
    _child: Child,
    stdin: tokio::sync::Mutex<ChildStdin>,
    address: SocketAddr,
    output: Arc<Mutex<Vec<u8>>>,
    changed: watch::Receiver<()>,
}

impl Server {
    /// Starts it with options of its own.
    pub(super) async fn start(folder: &Path, options: &str) -> Self {
        let mut command = Command::new(program("openssl").expect("openssl"));
        let conf = folder.join("openssl.cnf");
        // The most lenient there is: it must be the proxy that refuses.
        let lenient = "openssl_conf = init\n[init]\nssl_conf = ssl\n[ssl]\nsystem_default = all\n\
                       [all]\nMinProtocol = TLSv1\nCipherString = ALL:@SECLEVEL=0\n";
        let without = "Options = -ExtendedMasterSecret\n";
        let (options, more) = match options.strip_prefix("-no_ems ") {
            Some(options) => (options, without),
            None => (options, ""),
        };
        std::fs::write(&conf, format!("{lenient}{more}")).expect("a file");
        let mut child = command
            .args("s_server -accept 127.0.0.1:0 -cert leaf.pem -key leaf.key".split(' '))
            .args(options.split(' '))
            .current_dir(folder)
            .env("OPENSSL_CONF", conf)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("openssl starts");
        let stdin = child.stdin.take().expect("its input");
        let mut lines = BufReader::new(child.stdout.take().expect("its output"));
        let address = loop {
            let mut line = String::new();
            let read = within("openssl", lines.read_line(&mut line)).await;
            assert!(read.expect("a line") > 0, "openssl ended: {options}");
            if let Some(at) = line.trim_end().strip_prefix("ACCEPT ") {
                break at.parse().expect("an address");
            }
        };
        let output = Arc::new(Mutex::new(Vec::new()));
        let (changes, changed) = watch::channel(());
        let shared = Arc::clone(&output);
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = lines.read(&mut buffer).await {
                let mut output = shared.lock().unwrap_or_else(PoisonError::into_inner);
                output.extend_from_slice(&buffer[..count]);
                drop(output);
                changes.send_replace(());
            }
        });
        Self {
            _child: child,
            stdin: tokio::sync::Mutex::new(stdin),
            address,
            output,
            changed,
        }
    }

    /// Sets the scene around it.
    pub(super) async fn stage(&self, roots: &[String]) -> Stage {
        let address = self.address;
        // The origin of the scene is a wire to it.
        let origin = Origin::builder()
            .plain()
            .raw(move |conn| async move { forward(&conn, address).await })
            .await;
        Stage::set(origin, GOOD, roots).await
    }

    fn text(&self) -> Vec<u8> {
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        output.clone()
    }

    /// Fails the test if a request came out of its TLS.
    pub(super) fn received_nothing(&self, case: &str) {
        let text = self.text();
        let request = contains(&text, "HTTP/1.1") || contains(&text, "x-key");
        assert!(!request, "{case}: {}", show(&text));
    }

    /// Waits for a request and answers it.
    async fn answer(&self) {
        let mut changed = self.changed.clone();
        within("a request", async {
            while !contains(&self.text(), "HTTP/1.1") {
                changed.changed().await.expect("openssl lives");
            }
        })
        .await;
        let mut stdin = self.stdin.lock().await;
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok\n";
        stdin.write_all(answer).await.expect("openssl lives");
        stdin.flush().await.expect("openssl lives");
    }
}

/// Carries bytes both ways.
async fn forward(conn: &OriginConn, address: SocketAddr) {
    let stream = tokio::net::TcpStream::connect(address).await;
    let (mut from, mut to) = stream.expect("openssl listens").into_split();
    let back = conn.clone();
    let down = tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            back.send(&buffer[..count]).await;
        }
        back.close().await;
    });
    while let Some(bytes) = conn.read_some().await {
        if to.write_all(&bytes).await.is_err() {
            break;
        }
    }
    drop(to);
    down.await.expect("the way back");
}

#[tokio::test]
async fn case_72_an_openssl_that_speaks_old_tls_gets_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = Authority::root("the root");
    let roots = [root.pem.clone()];
    let key = "-algorithm RSA -pkeyopt rsa_keygen_bits:2048";
    if by_openssl(&root, folder.path(), key, "sha256").is_none() {
        return;
    }
    for options in [
        "-tls1",
        "-tls1_1",
        "-no_tls1_2 -no_tls1_3",
        "-no_ems -tls1_2",
        "-tls1_2 -cipher AES128-SHA",
        "-tls1_2 -cipher AES128-GCM-SHA256",
        "-tls1_2 -cipher ECDHE-RSA-AES128-SHA",
        "-tls1_2 -cipher DHE-RSA-AES128-GCM-SHA256",
        "-tls1_2 -cipher AECDH-AES128-SHA",
    ] {
        let server = Server::start(folder.path(), options).await;
        let stage = server.stage(&roots).await;
        stage.is_refused(options, "tls_protocol_error").await;
        server.received_nothing(options);
    }
    // The same one is answered where it speaks as it should.
    for options in ["-tls1_2", "-tls1_3", "-tls1_2 -comp"] {
        let server = Server::start(folder.path(), options).await;
        let stage = server.stage(&roots).await;
        let mut conn = stage.scene.workload.connect("good.example.com:443").await;
        conn.send(stage.request()).await;
        server.answer().await;
        assert_eq!(conn.answer_head().await.status, 200, "{options}");
    }
}

/// Returns a `ServerHello` (RFC 5246 §7.4.1.3) in a record.
fn server_hello(version: u16, cipher: u16, compression: u8, extensions: &[u8]) -> Vec<u8> {
    let mut body = version.to_be_bytes().to_vec();
    body.extend([7; 32]);
    body.push(0);
    body.extend(cipher.to_be_bytes());
    body.push(compression);
    body.extend(
        u16::try_from(extensions.len())
            .expect("short")
            .to_be_bytes(),
    );
    body.extend(extensions);
    handshake(version, 2, &body)
}

fn handshake(version: u16, kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).expect("short");
    let mut record = vec![0x16];
    record.extend(version.to_be_bytes());
    record.extend((length + 4).to_be_bytes());
    record.extend([kind, 0]);
    record.extend(length.to_be_bytes());
    record.extend(body);
    record
}

/// Returns the types of the records of one connection.
fn records(mut bytes: &[u8]) -> Vec<u8> {
    let mut types = Vec::new();
    while let [kind, _, _, high, low, rest @ ..] = bytes {
        types.push(*kind);
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        bytes = rest.get(length..).unwrap_or_default();
    }
    types
}

/// What openssl speaks no more, and a server of old might.
#[tokio::test]
async fn case_72_a_hello_of_old_gets_an_alert() {
    // Secure renegotiation, and the extended master secret.
    let renegotiation: &[u8] = &[0xff, 0x01, 0, 1, 0];
    let secret: &[u8] = &[0, 0x17, 0, 0];
    let all = [renegotiation, secret].concat();
    let good = 0xc02b;
    // Handshake failure, illegal parameter, protocol version (RFC 8446 §6).
    let no: &[u8] = &[40, 47, 70];
    // Behind a hello that is as it should be, a message out of turn: it is what is refused then.
    let finished = handshake(0x0303, 20, &[0; 12]);
    let listened = [server_hello(0x0303, good, 0, &all), finished].concat();
    for (case, hello, alerts) in [
        ("SSL 3.0", server_hello(0x0300, 0xc009, 0, &all), no),
        ("TLS 1.0", server_hello(0x0301, 0xc009, 0, &all), no),
        ("TLS 1.1", server_hello(0x0302, 0xc009, 0, &all), no),
        (
            "no extended master secret",
            server_hello(0x0303, good, 0, renegotiation),
            no,
        ),
        ("compression", server_hello(0x0303, good, 1, &all), no),
        ("RC4", server_hello(0x0303, 0x0005, 0, &all), no),
        ("ECDHE and RC4", server_hello(0x0303, 0xc007, 0, &all), no),
        ("3DES", server_hello(0x0303, 0x000a, 0, &all), no),
        ("ECDHE and 3DES", server_hello(0x0303, 0xc008, 0, &all), no),
        ("RC4 for export", server_hello(0x0303, 0x0003, 0, &all), no),
        ("DES for export", server_hello(0x0303, 0x0008, 0, &all), no),
        ("no cipher", server_hello(0x0303, 0x0002, 0, &all), no),
        ("anonymous", server_hello(0x0303, 0xc018, 0, &all), no),
        ("CBC", server_hello(0x0303, 0xc023, 0, &all), no),
        ("as it should be", listened, &[10]),
    ] {
        let origin = Origin::builder()
            .plain()
            .raw(move |conn| {
                let hello = hello.clone();
                async move {
                    conn.read_some().await;
                    conn.send(&hello).await;
                    conn.wait_end().await;
                }
            })
            .await;
        let stage = Stage::set(origin, GOOD, &[]).await;
        stage.is_refused(case, "tls_protocol_error").await;
        stage.scene.good.wait_ended(2).await;
        for bytes in stage.scene.good.received() {
            // The client's hello, and an alert.
            assert_eq!(records(&bytes), [0x16, 0x15], "{case}: {}", show(&bytes));
            let alert = bytes.last().copied().unwrap_or_default();
            assert!(alerts.contains(&alert), "{case}: {alert}");
        }
    }
}
