//! Passthrough: tunnels whose TLS is between the workload and the origin, and nobody's in between.

use std::sync::Arc;
use std::time::{Duration, Instant};

use oshu_vault_sdk::{CreateSession, Error, UpdateSession};
use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::support::{
    Conn, GOOD, Origin, REAL, SIDE, Scene, Step, Steps, TestCa, VaultBuilder, Workload, contains,
    orders, show, within,
};

/// What is passed through.
const PINNED: &str = "side.example.com:443";
/// What must end at once ends within this.
const SOON: Duration = Duration::from_secs(1);

fn name(text: &str) -> ServerName<'static> {
    ServerName::try_from(text.to_owned()).expect("a server name")
}

/// A scene whose side origin is passed through.
async fn pinned() -> Scene {
    pinned_with(|vault| vault, |session| session).await
}

async fn pinned_with(
    vault: impl FnOnce(VaultBuilder) -> VaultBuilder,
    session: impl FnOnce(CreateSession) -> CreateSession,
) -> Scene {
    Scene::with(vault, |request| session(request.passthrough_hosts([SIDE]))).await
}

/// A scene in which an origin without TLS of its own is passed through: it records what really
/// came, and does what the test tells it.
struct Raw {
    scene: Scene,
    origin: Origin,
    steps: Steps,
    /// A tunnel with a `ClientHello` sent in it.
    conn: Conn,
    hello: Vec<u8>,
}

impl Raw {
    async fn new() -> Self {
        Self::with(|vault| vault).await
    }

    async fn with(vault: impl FnOnce(VaultBuilder) -> VaultBuilder) -> Self {
        let (steps, orders) = orders();
        let origin = Origin::builder().plain().raw(move |conn| {
            let orders = orders.clone();
            async move { orders.obey(&conn).await }
        });
        let origin = origin.await;
        let address = origin.addr();
        // The answer that the scene gives for this name, led elsewhere.
        let resolve = |builder: VaultBuilder| {
            let pinned = |config: &mut oshu_vault::config::Config| {
                let answers = &mut config.upstream.resolve;
                let answer = answers.iter_mut().find(|it| it.host.to_string() == SIDE);
                answer.expect("an answer").port = Some(address.port());
            };
            vault(builder.config(pinned))
        };
        let scene = pinned_with(resolve, |session| session).await;
        let mut conn = scene.workload.tunnel(PINNED).await;
        let hello = hello(SIDE, true);
        conn.send(&hello).await;
        origin
            .wait("the hello", |all| all.concat().len() >= hello.len())
            .await;
        Self {
            scene,
            origin,
            steps,
            conn,
            hello,
        }
    }

    /// Sends bytes each way and checks that they arrive as they are.
    async fn talks(&mut self, case: &str) {
        self.origin.forget();
        self.conn.send("up").await;
        self.origin.wait(case, |all| all.concat() == b"up").await;
        self.steps.send("down");
        assert_eq!(self.conn.take(4).await, b"down", "{case}");
    }

    /// Waits for a cut of both sides that began in this moment.
    async fn is_cut(&mut self, case: &str) {
        let began = Instant::now();
        let (rest, end) = self.conn.rest_and_end().await;
        assert!(rest.is_empty() && end.is_err(), "{case}: a cut looks cut");
        self.origin.wait_ended(1).await;
        assert!(began.elapsed() < SOON, "{case}: {:?}", began.elapsed());
    }
}

/// Makes a `ClientHello`.
fn hello(host: &str, sni: bool) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.enable_sni = sni;
    let mut client = ClientConnection::new(Arc::new(config), name(host)).expect("a client");
    let mut hello = Vec::new();
    client.write_tls(&mut hello).expect("a hello");
    hello
}

/// A workload of the scene's session that trusts the origins and not the vault.
fn pinning(scene: &Scene) -> Workload {
    let addresses = (Some(scene.vault.plain_addr()), Some(scene.vault.tls_addr()));
    let session = &scene.session;
    Workload::at(
        addresses,
        TestCa::shared().pem(),
        &session.session_id,
        &session.token,
    )
}

/// Waits for the record of the tunnel to a host.
async fn tunnel_record(scene: &Scene, host: &str) -> Value {
    let is_it = |line: &Value| line["event"] == "tunnel" && line["host"] == host;
    let log = scene.vault.audit_log();
    let lines = log
        .wait("the record", |lines| lines.iter().any(is_it))
        .await;
    let mut records = lines.into_iter().filter(is_it);
    let record = records.next().expect("a record");
    assert!(records.next().is_none(), "one record");
    record
}

#[tokio::test]
async fn the_workload_speaks_tls_with_the_origin_itself() {
    let scene = pinned().await;
    let minted = scene.vault.leaves();
    let request = scene.fill("GET / HTTP/1.1\r\nHost: side.example.com\r\nX-Key: {T}\r\n\r\n");
    let mut conn = pinning(&scene).connect(PINNED).await;
    conn.send(&request).await;
    assert_eq!(conn.answer().await.text(), "ok");
    assert_eq!(
        show(&scene.side.bytes()),
        show(request.as_bytes()),
        "the token itself"
    );
    conn.finish().await;
    scene.side.wait_ended(1).await;
    drop(conn);
    let record = tunnel_record(&scene, SIDE).await;
    assert_eq!(record["address"], scene.side.addr().to_string());
    let lines = scene.vault.audit();
    assert!(
        lines.iter().all(|line| line["event"] != "exchange"),
        "{lines:?}"
    );
    assert_eq!(scene.vault.leaves(), minted, "no leaf for it");
    // Our own certificate is nowhere in it.
    let tunnel = scene.workload.tunnel(PINNED).await;
    let ours = scene
        .workload
        .handshake(tunnel.into_io(), name(SIDE), &[])
        .await;
    let error = ours.err().expect("another issuer").to_string();
    assert!(error.contains("UnknownIssuer"), "{error}");
    // What is not in the list is read as ever.
    scene.alive("a host beside it").await;
}

#[tokio::test]
async fn what_is_agreed_on_inside_is_the_origin_s_matter() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let mut config = rustls::ServerConfig::clone(TestCa::shared().acceptor().config());
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let address = listener.local_addr().expect("an address");
    let server = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.expect("a connection");
        let mut stream = acceptor.accept(tcp).await.expect("TLS");
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).await.expect("a preface");
        stream.write_all(&preface).await.expect("an answer");
        stream.shutdown().await.expect("an end");
    });
    let scene = pinned_with(
        |vault| vault.resolve("h2.example.com", address),
        |session| {
            session
                .allowed_egress([GOOD, "*.example.com"])
                .passthrough_hosts(["h2.example.com"])
        },
    )
    .await;
    let workload = pinning(&scene);
    let tunnel = workload.tunnel("h2.example.com:443").await;
    let offered = ["h2", "http/1.1"];
    let stream = workload
        .handshake(tunnel.into_io(), name("h2.example.com"), &offered)
        .await;
    let mut stream = stream.expect("TLS");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    stream.write_all(preface).await.expect("sent");
    let mut back = Vec::new();
    within("the answer", stream.read_to_end(&mut back))
        .await
        .expect("an end in good order");
    assert_eq!(back, preface);
    server.await.expect("served");
}

#[tokio::test]
async fn every_byte_passes_as_it_is_and_is_counted() {
    let mut raw = Raw::new().await;
    assert!(raw.origin.bytes() == raw.hello, "the hello as it was sent");
    let noise: Vec<u8> = (0..1_u32 << 20)
        .map(|n| ((n * 7) >> 3).to_le_bytes()[0])
        .collect();
    let token = raw.scene.token().to_owned();
    let up = [token.as_bytes(), b"GET / HTTP/1.1\r\n\r\n", &noise].concat();
    let down = [REAL.as_bytes(), &noise, token.as_bytes()].concat();
    raw.steps.send(down.clone());
    raw.conn.send(&up).await;
    assert!(raw.conn.take(down.len()).await == down, "what came down");
    let sent = [raw.hello.as_slice(), &up].concat();
    raw.origin
        .wait("all bytes", |all| all.concat().len() >= sent.len())
        .await;
    assert!(raw.origin.bytes() == sent, "what went up");
    // Each direction ends alone.
    raw.conn.finish().await;
    raw.origin.wait_ended(1).await;
    raw.steps.send("late");
    assert_eq!(raw.conn.take(4).await, b"late");
    raw.steps.give(Step::Close);
    let (rest, end) = raw.conn.rest_and_end().await;
    assert!(rest.is_empty() && end.is_ok(), "{end:?}");
    let record = tunnel_record(&raw.scene, SIDE).await;
    let told = ["status", "decision", "reason", "bytes_up", "bytes_down"].map(|it| &record[it]);
    let (bytes_up, bytes_down) = (json!(sent.len()), json!(down.len() + 4));
    let expected = [
        &json!(200),
        &json!("allowed"),
        &json!("ok"),
        &bytes_up,
        &bytes_down,
    ];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn a_hello_is_understood_however_it_arrives() {
    let raw = Raw::new().await;
    raw.origin.forget();
    // Byte by byte, and in records of a few bytes each.
    let payload = &raw.hello[5..];
    let records: Vec<u8> = payload
        .chunks(50)
        .flat_map(|piece| {
            let length = u16::try_from(piece.len()).expect("short").to_be_bytes();
            [&[0x16, 3, 1], &length[..], piece].concat()
        })
        .collect();
    for (hello, step) in [(&raw.hello, 1), (&records, 7), (&records, records.len())] {
        raw.origin.forget();
        let mut conn = raw.scene.workload.tunnel(PINNED).await;
        for piece in hello.chunks(step) {
            conn.send(piece).await;
        }
        raw.origin
            .wait("the hello", |all| all.concat() == *hello)
            .await;
    }
}

#[tokio::test]
async fn another_server_name_or_none_reaches_nobody() {
    let scene = pinned().await;
    for (asked, sni, reason) in [
        ("good.example.com", true, "another_server_name"),
        ("xside.example.com", true, "another_server_name"),
        ("example.com", true, "another_server_name"),
        (SIDE, false, "no_server_name"),
    ] {
        let mut config = scene.workload.tls_config();
        config.enable_sni = sni;
        let connector = TlsConnector::from(Arc::new(config));
        let tunnel = scene.workload.tunnel(PINNED).await;
        let refused = within("an alert", connector.connect(name(asked), tunnel.into_io())).await;
        let error = refused.err().expect("a refused handshake").to_string();
        assert!(error.contains("UnrecognisedName"), "{asked} {sni}: {error}");
        let is_it = |line: &Value| line["event"] == "tunnel" && line["reason"] == reason;
        let log = scene.vault.audit_log();
        let lines = log.wait(reason, |lines| lines.iter().any(is_it)).await;
        assert!(
            lines
                .iter()
                .filter(|line| is_it(line))
                .all(|line| line["decision"] == "denied")
        );
    }
    assert_eq!(scene.side.connections(), 0, "nothing was dialled");
    scene.nothing_arrived("another SNI").await;
    for spelling in ["SIDE.Example.COM:443", "side.example.com.:443"] {
        let tunnel = scene.workload.tunnel(spelling).await;
        let workload = pinning(&scene);
        let stream = workload.handshake(tunnel.into_io(), name("SIDE.example.com"), &[]);
        stream
            .await
            .unwrap_or_else(|error| panic!("{spelling}: {error}"));
    }
}

#[tokio::test]
async fn an_address_needs_no_server_name_and_has_no_other() {
    let origin = Origin::echo_ok().await;
    let target = origin.addr().to_string();
    let scene = pinned_with(
        |vault| vault,
        |session| {
            session
                .allowed_egress([GOOD, target.as_str()])
                .passthrough_hosts([target.as_str()])
        },
    )
    .await;
    let workload = pinning(&scene);
    let mut conn = workload.connect(&target).await;
    conn.send(format!("GET / HTTP/1.1\r\nHost: {target}\r\n\r\n"))
        .await;
    assert_eq!(conn.answer().await.text(), "ok");
    let tunnel = workload.tunnel(&target).await;
    let refused = workload.handshake(tunnel.into_io(), name(GOOD), &[]).await;
    assert!(
        refused
            .err()
            .expect("refused")
            .to_string()
            .contains("UnrecognisedName")
    );
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn a_hello_that_is_none_too_long_or_too_late_reaches_nobody() {
    let limit = Duration::from_millis(400);
    let scene = pinned_with(
        |vault| vault.config(|config| config.limits.handshake_timeout = Duration::from_millis(400)),
        |session| session,
    )
    .await;
    // A record that says it holds a message of 60,000 bytes, and more records that go on with it.
    let mut endless = vec![0x16, 3, 1, 0x40, 0, 1, 0, 0xea, 0x60];
    endless.resize(5 + 0x4000, 0);
    for _ in 0..2 {
        endless.extend([0x16, 3, 1, 0x40, 0]);
        endless.resize(endless.len() + 0x4000, 0);
    }
    for (case, bytes, reason) in [
        ("not TLS", b"\x16abcdefghij".to_vec(), "handshake_failed"),
        (
            "no hello",
            b"\x16\x03\x01\x00\x04\x0e\x00\x00\x00".to_vec(),
            "handshake_failed",
        ),
        (
            "half of it",
            hello(SIDE, true)[..100].to_vec(),
            "handshake_timeout",
        ),
        ("endless", endless, "client_hello_too_large"),
    ] {
        let began = Instant::now();
        let mut conn = scene.workload.tunnel(PINNED).await;
        conn.try_send(bytes).await.ok();
        let rest = conn.rest().await;
        assert!(rest.is_empty(), "{case}: {}", show(&rest));
        let took = began.elapsed();
        let waits = reason == "handshake_timeout";
        assert!(
            took < 10 * limit && (!waits || took >= limit * 9 / 10),
            "{case}: {took:?}"
        );
        let log = scene.vault.audit_log();
        let told = |lines: &[Value]| lines.iter().any(|line| line["reason"] == reason);
        log.wait(case, told).await;
    }
    assert_eq!(scene.side.connections(), 0, "nothing was dialled");
}

#[tokio::test]
async fn clear_text_to_such_a_host_is_read_as_ever() {
    let origin = Origin::builder().plain().echo_ok().await;
    let address = origin.addr();
    let scene = pinned_with(
        |vault| vault.resolve("plain.example.com", address),
        |session| {
            session
                .allowed_egress([GOOD, "plain.example.com"])
                .passthrough_hosts(["plain.example.com"])
        },
    )
    .await;
    let mut conn = scene.workload.tunnel("plain.example.com:80").await;
    let request = scene.fill("GET / HTTP/1.1\r\nHost: plain.example.com\r\nX-Key: {T}\r\n\r\n");
    conn.send(request.replace("X-Key", "Proxy-Connection: x\r\nX-Key"))
        .await;
    assert_eq!(conn.answer().await.text(), "ok");
    assert_eq!(show(&origin.bytes()), show(request.as_bytes()));
    let head = "GET / HTTP/1.1\r\nHost: evil.example.net\r\n\r\n";
    conn.send(head).await;
    assert_eq!(conn.answer().await.status, 421);
}

#[tokio::test]
async fn addresses_that_are_shut_stay_shut() {
    let scene = Scene::with(
        |vault| vault.dev(false),
        |session| session.passthrough_hosts([SIDE]),
    )
    .await;
    let mut conn = scene.workload.tunnel(PINNED).await;
    conn.send(hello(SIDE, true)).await;
    conn.rest().await;
    let record = tunnel_record(&scene, SIDE).await;
    let told = ["decision", "reason"].map(|it| &record[it]);
    assert_eq!(
        told,
        [&json!("denied"), &json!("destination_ip_prohibited")]
    );
    assert_eq!(scene.side.connections(), 0);
}

#[tokio::test]
async fn a_host_that_cannot_be_reached_ends_the_tunnel() {
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = closed.local_addr().expect("an address");
    drop(closed);
    let scene = pinned_with(
        |vault| vault.resolve("gone.example.com", address),
        |session| {
            session
                .allowed_egress([GOOD, "gone.example.com"])
                .passthrough_hosts(["gone.example.com"])
        },
    )
    .await;
    let mut conn = scene.workload.tunnel("gone.example.com:443").await;
    conn.send(hello("gone.example.com", true)).await;
    conn.rest().await;
    let record = tunnel_record(&scene, "gone.example.com").await;
    let told = ["decision", "reason"].map(|it| &record[it]);
    assert_eq!(told, [&json!("failed"), &json!("connection_refused")]);
}

#[tokio::test]
async fn silence_ends_a_splice_and_bytes_either_way_keep_it() {
    let limit = Duration::from_millis(800);
    let mut raw = Raw::with(|vault| {
        vault.config(|config| {
            config.limits.passthrough_idle_timeout = Duration::from_millis(800);
            config.limits.idle_timeout = Duration::from_millis(50);
        })
    })
    .await;
    let began = Instant::now();
    while began.elapsed() < 2 * limit {
        let pause = tokio::time::timeout(limit / 8, raw.conn.fill()).await;
        assert!(pause.is_err(), "nothing comes by itself");
        raw.talks("within the limit").await;
    }
    let began = Instant::now();
    let (rest, end) = raw.conn.rest_and_end().await;
    let took = began.elapsed();
    assert!(took >= limit * 9 / 10 && took < 5 * limit, "{took:?}");
    assert!(rest.is_empty() && end.is_err());
    let record = tunnel_record(&raw.scene, SIDE).await;
    let told = ["decision", "reason"].map(|it| &record[it]);
    assert_eq!(told, [&json!("aborted"), &json!("idle")]);
}

#[tokio::test]
async fn a_deletion_a_patch_and_the_end_of_the_drain_cut_a_splice() {
    for (case, kept, lost) in [
        (
            "the list loses the host",
            UpdateSession::new()
                .passthrough_hosts([SIDE, "more.example.org"])
                .reset("allowed_egress"),
            Some(UpdateSession::new().passthrough_hosts(["more.example.org"])),
        ),
        (
            "the policy loses the host",
            UpdateSession::new().ttl_seconds(600),
            Some(
                UpdateSession::new()
                    .passthrough_hosts([GOOD; 0])
                    .allowed_egress([GOOD]),
            ),
        ),
        (
            "the session ends",
            UpdateSession::new().ttl_seconds(600),
            None,
        ),
    ] {
        let mut raw = Raw::new().await;
        let (sdk, id) = (raw.scene.vault.sdk(), raw.scene.session.session_id.clone());
        let update = sdk.update_session(&id, &kept).await;
        update.unwrap_or_else(|error| panic!("{case}: {error}"));
        raw.talks(case).await;
        match &lost {
            Some(lost) => drop(sdk.update_session(&id, lost).await.expect("a patch")),
            None => sdk.delete_session(&id).await.expect("deleted"),
        }
        raw.is_cut(case).await;
        let record = tunnel_record(&raw.scene, SIDE).await;
        assert_eq!(record["reason"], "session_cut", "{case}");
    }
    let mut raw = Raw::with(|vault| {
        vault.config(|config| config.limits.drain_timeout = Duration::from_millis(300))
    })
    .await;
    let drained = raw.scene.vault.drain();
    raw.talks("while draining").await;
    within("the drain", drained).await.expect("drained");
    raw.is_cut("the drain").await;
}

#[tokio::test]
async fn a_patch_decides_how_the_next_tunnel_is_served() {
    let scene = Scene::new().await;
    let (sdk, id) = (scene.vault.sdk(), &scene.session.session_id);
    let tunnel = scene.workload.tunnel(PINNED).await;
    // The tunnel is open already, and nothing was sent in it.
    let update = UpdateSession::new().passthrough_hosts(["*.example.com"]);
    let error = sdk
        .update_session(id, &update)
        .await
        .expect_err("it meets the secret's host");
    assert_eq!(error.status(), Some(422));
    let update = UpdateSession::new().passthrough_hosts(["side.example.com:443"]);
    let patched = sdk.update_session(id, &update).await.expect("a patch");
    assert_eq!(patched.passthrough_hosts, ["side.example.com:443"]);
    pinning(&scene).encrypt(tunnel, PINNED).await;
    let update = UpdateSession::new().passthrough_hosts([SIDE; 0]);
    sdk.update_session(id, &update).await.expect("a patch");
    scene.workload.connect(PINNED).await;
}

#[tokio::test]
async fn peer_77_a_host_that_may_receive_a_secret_is_never_passed_through() {
    let scene = pinned().await;
    let sdk = scene.vault.sdk();
    let shown = sdk
        .get_session(&scene.session.session_id)
        .await
        .expect("a session");
    assert_eq!(shown.passthrough_hosts, [SIDE]);
    let fields = |error: &Error| {
        assert_eq!(error.status(), Some(422));
        let errors = error.field_errors().iter();
        errors
            .map(|it| format!("{} {}", it.field, it.code))
            .collect::<Vec<_>>()
    };
    for (request, expected) in [
        (
            Scene::request().passthrough_hosts([GOOD]),
            "passthrough_hosts[0] overlaps_secret",
        ),
        (
            Scene::request().passthrough_hosts([SIDE, "evil.example.net"]),
            "passthrough_hosts[1] not_in_allowed_egress",
        ),
        (
            CreateSession::new()
                .secret("ANTHROPIC_API_KEY", REAL)
                .passthrough_hosts(["*.anthropic.com"]),
            "passthrough_hosts[0] overlaps_secret",
        ),
        // Without a scope it may go everywhere, in developer mode.
        (
            CreateSession::new()
                .secret("ANY", REAL)
                .passthrough_hosts([SIDE]),
            "passthrough_hosts[0] overlaps_secret",
        ),
    ] {
        let error = sdk.create_session(&request).await.expect_err("a bad list");
        assert_eq!(fields(&error), [expected]);
    }
    let spec = |hosts: &str| oshu_vault_sdk::SecretSpec::new(REAL).hosts([hosts]);
    for (patch, expected) in [
        (
            UpdateSession::new().passthrough_hosts([SIDE, GOOD]),
            "passthrough_hosts[1] overlaps_secret",
        ),
        (
            UpdateSession::new().secret_hosts([GOOD, SIDE]),
            "passthrough_hosts[0] overlaps_secret",
        ),
        (
            UpdateSession::new().secret("NEW", spec(SIDE)),
            "passthrough_hosts[0] overlaps_secret",
        ),
        (
            UpdateSession::new().allowed_egress([GOOD]),
            "passthrough_hosts[0] not_in_allowed_egress",
        ),
    ] {
        let update = sdk.update_session(&scene.session.session_id, &patch).await;
        assert_eq!(fields(&update.expect_err("a bad patch")), [expected]);
    }
    scene.alive("patches that were refused").await;
}

#[tokio::test]
async fn an_open_splice_keeps_its_session() {
    let raw = Raw::new().await;
    let (sdk, id) = (raw.scene.vault.sdk(), &raw.scene.session.session_id);
    let expires = async || sdk.get_session(id).await.expect("a session").expires_at;
    let before = expires().await;
    within("a later end", async { while expires().await <= before {} }).await;
    assert!(!contains(&raw.origin.bytes(), REAL));
}
