//! WebSocket: a handshake like any other request, then bytes that nobody reads.

use std::time::{Duration, Instant};

use oshu_vault_sdk::UpdateSession;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::support::clients::{client, project_file, run};
use crate::support::websocket::{echo, frame, masked};
use crate::support::{
    Conn, GOOD, Origin, REAL, SIDE, Scene, Step, Steps, VaultBuilder, contains, missing, orders,
    program, show, within,
};

const TARGET: &str = "good.example.com:443";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const GRANTED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                       Connection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n";
/// The same as the client gets it.
const GRANTED_HERE: &str = "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: x\r\n\
                            Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
/// What must end at once ends within this.
const SOON: Duration = Duration::from_secs(1);

/// A handshake with more fields.
fn handshake(lines: &str) -> String {
    format!(
        "GET /chat HTTP/1.1\r\nHost: {GOOD}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         {lines}\r\n"
    )
}

/// Starts an origin that grants a WebSocket on its first connection and then does as it is told;
/// requests for `/alive` are answered.
async fn obedient(tls: bool) -> (Origin, Steps) {
    let (steps, orders) = orders();
    let builder = Origin::builder();
    let builder = if tls { builder } else { builder.plain() };
    let origin = builder.raw(move |conn| {
        let orders = orders.clone();
        async move {
            let Some(head) = conn.read_head().await else {
                return;
            };
            if head.contains("/alive") {
                return conn.send(OK).await;
            }
            conn.send(GRANTED).await;
            orders.obey(&conn).await;
        }
    });
    (origin.await, steps)
}

/// A scene with a WebSocket open on it.
struct Open {
    scene: Scene,
    conn: Conn,
    steps: Steps,
}

impl Open {
    async fn new() -> Self {
        Self::with(|vault| vault).await
    }

    async fn with(vault: impl FnOnce(VaultBuilder) -> VaultBuilder) -> Self {
        let (origin, steps) = obedient(true).await;
        let scene = Scene::with_good(origin, vault, |session| session).await;
        let conn = scene.workload.connect(TARGET).await;
        Self::on(scene, conn, &handshake(""), steps).await
    }

    async fn on(scene: Scene, mut conn: Conn, handshake: &str, steps: Steps) -> Self {
        conn.send(handshake).await;
        let head = conn.take(GRANTED_HERE.len()).await;
        assert_eq!(show(&head), show(GRANTED_HERE.as_bytes()));
        scene
            .good
            .wait("the handshake", |all| !all.is_empty())
            .await;
        scene.good.forget();
        Self { scene, conn, steps }
    }

    /// Sends bytes each way and checks that they arrive as they are.
    async fn talks(&mut self, case: &str) {
        self.scene.good.forget();
        self.conn.send("up").await;
        let arrived = |all: &[Vec<u8>]| all.concat() == b"up";
        self.scene.good.wait(case, arrived).await;
        self.steps.send("down");
        assert_eq!(self.conn.take(4).await, b"down", "{case}");
    }

    /// Waits for the record of the exchange.
    async fn record(&self) -> Value {
        let is_it = |line: &Value| line["event"] == "exchange" && line["path"] == "/chat";
        let log = self.scene.vault.audit_log();
        let lines = log
            .wait("the record", |lines| lines.iter().any(is_it))
            .await;
        let mut records = lines.into_iter().filter(is_it);
        let record = records.next().expect("a record");
        assert!(records.next().is_none(), "one record");
        record
    }

    /// Waits for a cut of both sides that began in this moment.
    async fn is_cut(&mut self, case: &str) {
        let began = Instant::now();
        let (rest, end) = self.conn.rest_and_end().await;
        assert!(rest.is_empty() && end.is_err(), "{case}: a cut looks cut");
        self.scene.good.wait_ended(1).await;
        assert!(began.elapsed() < SOON, "{case}: {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn case_16_the_handshake_is_cleaned_and_swapped_like_any_request() {
    let granted = "HTTP/1.1 101 Web Socket Protocol Handshake\r\nKeep-Alive: 5\r\n\
                   connection: X-Hop, upgrade\r\nX-Hop: 1\r\nUPGRADE: WebSocket\r\n\
                   Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
                   sec-websocket-extensions:permessage-deflate\r\nAlt-Svc: h3=\":443\"\r\n\
                   Set-Cookie: a=b\r\n\r\n";
    let origin = Origin::script(move |request, conn| async move {
        let alive = request.line().contains("/alive");
        conn.send(if alive { OK } else { granted }).await;
    });
    let scene = Scene::around(origin.await).await;
    let mut conn = scene.workload.connect(TARGET).await;
    let head = scene.fill(
        "GET /chat?x=1 HTTP/1.1\r\nHost: good.example.com\r\nupgrade: h2c, WebSocket\r\n\
         Connection: keep-alive, UPGRADE, X-Hop\r\nX-Hop: 1\r\nHTTP2-Settings: x\r\n\
         Proxy-Connection: keep-alive\r\nAuthorization: Bearer {T}\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version:13\r\n\
         Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\
         Sec-WebSocket-Protocol: chat, {T}\r\nOrigin: https://x\r\n\r\n",
    );
    conn.send(&head).await;
    let answer = conn.take_until(b"\r\n\r\n").await;
    let expected = "HTTP/1.1 101 Web Socket Protocol Handshake\r\n\
                    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
                    sec-websocket-extensions:permessage-deflate\r\nSet-Cookie: a=b\r\n\
                    Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(show(&answer), show(expected.as_bytes()));
    let expected = scene.fill(
        "GET /chat?x=1 HTTP/1.1\r\nHost: good.example.com\r\nAuthorization: Bearer {S}\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version:13\r\n\
         Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\
         Sec-WebSocket-Protocol: chat, {T}\r\nOrigin: https://x\r\n\
         Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    );
    assert_eq!(show(&scene.good.bytes()), show(expected.as_bytes()));
    scene.alive("a handshake").await;
}

#[tokio::test]
async fn case_16_frames_pass_byte_for_byte_and_are_neither_swapped_nor_scrubbed() {
    let mut open = Open::new().await;
    let token = open.scene.token().to_owned();
    let large: Vec<u8> = (0..1_u32 << 20)
        .map(|n| ((n * 7) >> 3).to_le_bytes()[0])
        .collect();
    let texts = [token.as_bytes(), REAL.as_bytes()].concat();
    let write = |frame: fn(u8, &[u8]) -> Vec<u8>| {
        [
            frame(0x81, &texts),
            // Fragments with control frames between them.
            frame(0x01, token.as_bytes()),
            frame(0x89, b"ping"),
            frame(0x00, REAL.as_bytes()),
            frame(0x8a, b""),
            frame(0x80, &[]),
            // The bit of permessage-deflate, and bits and opcodes that mean nothing.
            frame(0xc2, &large[..300]),
            frame(0xff, &vec![0; 70_000]),
            frame(0x82, &large),
            // Not even frames, and what HTTP would read as its own.
            format!("{OK}GET / HTTP/1.1\r\nX: {token}\r\n\r\n0\r\n\r\n").into_bytes(),
            (0..=255).collect(),
            frame(0x88, &[0x03, 0xe8]),
        ]
        .concat()
    };
    let (up, down) = (write(masked), write(frame));
    open.steps.send(down.clone());
    open.conn.send(&up).await;
    assert!(open.conn.take(down.len()).await == down, "what came down");
    let whole = |all: &[Vec<u8>]| all.concat().len() >= up.len();
    open.scene.good.wait("all frames", whole).await;
    assert!(open.scene.good.bytes() == up, "what went up");
    open.steps.give(Step::Close);
    open.conn.finish().await;
    open.conn.expect_end().await;
    let record = open.record().await;
    let told = ["status", "decision", "reason", "bytes_up", "bytes_down"].map(|it| &record[it]);
    let (bytes_up, bytes_down) = (json!(up.len()), json!(down.len()));
    let expected = [
        &json!(101),
        &json!("allowed"),
        &json!("ok"),
        &bytes_up,
        &bytes_down,
    ];
    assert_eq!(told, expected);
    open.scene.alive("frames").await;
}

#[tokio::test]
async fn bytes_behind_the_handshake_wait_for_the_101_and_then_pass() {
    let (grant, gate) = watch::channel(false);
    let early = masked(0x81, b"too early");
    let first = frame(0x81, b"first");
    let answer = [GRANTED.as_bytes(), &first].concat();
    let origin = Origin::raw(move |conn| {
        let (mut gate, answer) = (gate.clone(), answer.clone());
        async move {
            conn.read_head().await.expect("a head");
            let reading = conn.clone();
            tokio::spawn(async move { reading.wait_end().await });
            gate.wait_for(|open| *open).await.expect("the test goes on");
            conn.send(answer).await;
        }
    })
    .await;
    let scene = Scene::around(origin).await;
    let mut conn = scene.workload.connect(TARGET).await;
    conn.send([handshake("").as_bytes(), &early].concat()).await;
    let head = |all: &[Vec<u8>]| contains(&all.concat(), "\r\n\r\n");
    scene.good.wait("the handshake", head).await;
    // Time enough for what must not happen.
    let get = format!("GET / HTTP/1.1\r\nHost: {SIDE}\r\n\r\n");
    assert_eq!(scene.ask(SIDE, get).await.status, 200);
    assert!(scene.good.bytes().ends_with(b"Upgrade: websocket\r\n\r\n"));
    scene.good.forget();
    grant.send_replace(true);
    let both = [GRANTED_HERE.as_bytes(), &first].concat();
    assert_eq!(show(&conn.take(both.len()).await), show(&both));
    let arrived = |all: &[Vec<u8>]| all.concat() == early;
    scene.good.wait("the early frame", arrived).await;
}

#[tokio::test]
async fn each_direction_ends_alone() {
    // In TLS and in the clear, and whoever ends first.
    for (target, tls) in [(TARGET, true), ("good.example.com:80", false)] {
        for client_first in [true, false] {
            let case = format!("{target}, the client ends first: {client_first}");
            let (origin, steps) = obedient(tls).await;
            let scene = Scene::around(origin).await;
            let conn = if tls {
                scene.workload.connect(target).await
            } else {
                scene.workload.tunnel(target).await
            };
            let mut open = Open::on(scene, conn, &handshake(""), steps).await;
            open.talks(&case).await;
            open.scene.good.forget();
            if client_first {
                open.conn.finish().await;
                open.scene.good.wait_ended(1).await;
                open.steps.send("late");
                assert_eq!(open.conn.take(4).await, b"late", "{case}");
                open.steps.give(Step::Close);
                let (rest, end) = open.conn.rest_and_end().await;
                assert!(rest.is_empty() && end.is_ok(), "{case}: {end:?}");
            } else {
                open.steps.give(Step::Close);
                let (rest, end) = open.conn.rest_and_end().await;
                assert!(rest.is_empty() && end.is_ok(), "{case}: {end:?}");
                open.conn.send("late").await;
                let arrived = |all: &[Vec<u8>]| all.concat() == b"late";
                open.scene.good.wait(&case, arrived).await;
                open.conn.finish().await;
                open.scene.good.wait_ended(1).await;
            }
            assert_eq!(open.record().await["decision"], "allowed", "{case}");
        }
    }
}

#[tokio::test]
async fn a_side_that_breaks_off_is_a_cut_for_the_other() {
    let mut open = Open::new().await;
    open.talks("at first").await;
    open.steps.give(Step::Abort);
    open.is_cut("the origin breaks off").await;
    let record = open.record().await;
    assert_eq!(
        (&record["decision"], &record["reason"]),
        (&json!("failed"), &json!("upstream_cut"))
    );
    let mut open = Open::new().await;
    open.talks("at first").await;
    drop(std::mem::replace(
        &mut open.conn,
        Conn::new(tokio::io::empty()),
    ));
    open.scene.good.wait_ended(1).await;
    let record = open.record().await;
    assert_eq!(
        (&record["decision"], &record["reason"]),
        (&json!("aborted"), &json!("client_gone"))
    );
}

#[tokio::test]
async fn every_door_carries_a_websocket() {
    let (origin, steps) = obedient(true).await;
    let scene = Scene::around(origin).await;
    let conn = scene.workload.connect_secure(TARGET).await;
    Open::on(scene, conn, &handshake(""), steps)
        .await
        .talks("the TLS listener")
        .await;

    let (origin, steps) = obedient(false).await;
    let scene = Scene::with_good(origin, |vault| vault, |it| it.allow_plaintext(true)).await;
    let conn = scene.workload.plain().await;
    let lines = scene.fill("Authorization: Bearer {T}\r\n") + &scene.workload.authorization();
    let head = handshake(&lines).replace("/chat", &format!("http://{GOOD}/chat"));
    let mut open = Open::on(scene, conn, &head, steps).await;
    open.talks("an absolute target").await;
    assert_eq!(open.scene.good.connections(), 1);
    let id = &open.scene.session.session_id;
    open.scene
        .vault
        .sdk()
        .delete_session(id)
        .await
        .expect("deleted");
    open.is_cut("a deletion").await;
}

#[tokio::test]
async fn case_50_an_answer_of_101_that_was_not_asked_for_so_is_502() {
    let websocket = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    for (case, asked, answered) in [
        (
            "another protocol",
            websocket,
            "Connection: Upgrade\r\nUpgrade: h2c\r\n",
        ),
        ("no protocol", websocket, "Connection: Upgrade\r\n"),
        ("not this connection", websocket, "Upgrade: websocket\r\n"),
        (
            "a body",
            websocket,
            "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n",
        ),
        (
            "chunks",
            websocket,
            "Connection: Upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n",
        ),
        (
            "h2c was asked for",
            "Connection: Upgrade\r\nUpgrade: h2c\r\n",
            websocket,
        ),
        ("no connection option", "Upgrade: websocket\r\n", websocket),
        ("nothing was asked for", "", websocket),
    ] {
        let granted = format!("HTTP/1.1 101 Switching Protocols\r\n{answered}\r\nhello");
        let scene = Scene::around(Origin::answer(granted).await).await;
        let mut conn = scene.workload.connect(TARGET).await;
        let head = format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n{asked}\r\n");
        conn.send([head.as_bytes(), b"\x81\x80smuggled\r\n\r\n"].concat())
            .await;
        let answer = conn.answer().await;
        let found = (answer.status, answer.code());
        assert_eq!(found, (502, "http_response_invalid".to_owned()), "{case}");
        scene.good.wait_ended(1).await;
        let bytes = scene.good.bytes();
        assert!(!contains(&bytes, "smuggled"), "{case}: {}", show(&bytes));
        let asks = contains(&bytes, "Upgrade");
        assert_eq!(asks, asked == websocket, "{case}: {}", show(&bytes));
        let rest = conn.rest().await;
        assert!(
            rest.starts_with(b"HTTP/1.1 400 "),
            "{case}: {}",
            show(&rest)
        );
    }
}

#[tokio::test]
async fn case_48_a_refused_handshake_is_an_answer_like_any_other() {
    for status in ["200 OK", "403 Forbidden", "426 Upgrade Required"] {
        refused_handshake(status).await;
    }
}

async fn refused_handshake(status: &'static str) {
    let origin = Origin::script(move |request, conn| async move {
        if !request.line().contains("/chat") {
            return conn.send(OK).await;
        }
        conn.send(format!(
            "HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\n\r\nno"
        ))
        .await;
    })
    .await;
    let scene = Scene::around(origin).await;
    let mut conn = scene.workload.connect(TARGET).await;
    let next = scene.fill("GET /next HTTP/1.1\r\nHost: good.example.com\r\nX-Key: {T}\r\n\r\n");
    let other = format!("GET /smug HTTP/1.1\r\nHost: {SIDE}\r\n\r\n");
    conn.send(handshake("") + &next + &other).await;
    let answer = conn.answer().await;
    let found = (answer.head.lines().next(), answer.text());
    let line = format!("HTTP/1.1 {status}");
    assert_eq!(found, (Some(line.as_str()), "no"));
    assert_eq!(answer.header("upgrade"), None);
    // What came behind it is a request, and held to everything that requests are held to.
    assert_eq!(conn.answer().await.text(), "ok");
    assert_eq!(conn.answer().await.status, 421);
    // The connection that was asked to become a WebSocket is used for nothing else.
    let received = scene.good.received();
    assert_eq!(received.len(), 2);
    assert!(received[0].ends_with(b"Upgrade: websocket\r\n\r\n"));
    assert!(contains(&received[1], REAL) && !contains(&received[1], "smug"));
    scene.side.expect_nothing("a request behind a handshake");
    // And a handshake takes no connection that was used before.
    scene.alive("a refusal").await;
    scene.ask(GOOD, handshake("")).await;
    assert_eq!(scene.good.connections(), 3);
}

#[tokio::test]
async fn a_handshake_with_a_body_or_another_method_is_400() {
    let scene = Scene::new().await;
    let asks = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    for (start, rest) in [
        ("POST / HTTP/1.1", "\r\n"),
        ("OPTIONS / HTTP/1.1", "\r\n"),
        ("GET / HTTP/1.1", "Content-Length: 5\r\n\r\nhello"),
        (
            "GET / HTTP/1.1",
            "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
    ] {
        let answer = scene
            .ask(GOOD, format!("{start}\r\nHost: {GOOD}\r\n{asks}{rest}"))
            .await;
        let found = (answer.status, answer.code());
        assert_eq!(found, (400, "bad_upgrade".to_owned()), "{start} {rest}");
    }
    let late = scene
        .ask(SIDE, handshake("").replace(GOOD, "evil.example.net"))
        .await;
    assert_eq!(late.status, 421);
    scene.nothing_arrived("bad handshakes").await;
}

#[tokio::test]
async fn silence_ends_a_websocket_and_bytes_either_way_keep_it() {
    let limit = Duration::from_millis(800);
    // The limit for connections between exchanges does not concern it.
    let mut open = Open::with(|vault| {
        vault.config(|config| {
            config.limits.websocket_idle_timeout = Duration::from_millis(800);
            config.limits.idle_timeout = Duration::from_millis(50);
        })
    })
    .await;
    let began = Instant::now();
    while began.elapsed() < 2 * limit {
        let pause = tokio::time::timeout(limit / 8, open.conn.fill()).await;
        assert!(pause.is_err(), "nothing comes by itself");
        open.talks("within the limit").await;
    }
    let began = Instant::now();
    let (rest, end) = open.conn.rest_and_end().await;
    let took = began.elapsed();
    assert!(took >= limit * 9 / 10 && took < 5 * limit, "{took:?}");
    assert!(rest.is_empty() && end.is_err());
    let record = open.record().await;
    let told = ["status", "decision", "reason"].map(|it| &record[it]);
    assert_eq!(told, [&json!(101), &json!("aborted"), &json!("idle")]);
}

#[tokio::test]
async fn a_side_that_takes_nothing_is_not_waited_for() {
    let mut open = Open::with(|vault| {
        vault.config(|config| config.limits.stall_timeout = Duration::from_millis(400))
    })
    .await;
    // Far more than all buffers on the way hold, and the client reads none of it.
    open.steps.send(vec![b'x'; 64 << 20]);
    let record = open.record().await;
    assert_eq!(record["reason"], "stalled");
    open.conn.rest().await;
}

#[tokio::test]
async fn a_deletion_a_patch_and_the_end_of_the_drain_cut_a_websocket() {
    let mut open = Open::new().await;
    open.talks("at first").await;
    let (sdk, id) = (
        open.scene.vault.sdk(),
        open.scene.session.session_id.clone(),
    );
    let kept = UpdateSession::new().allowed_egress([GOOD]);
    sdk.update_session(&id, &kept).await.expect("a patch");
    open.talks("a patch that keeps the host").await;
    let lost = UpdateSession::new().allowed_egress([SIDE]);
    sdk.update_session(&id, &lost).await.expect("a patch");
    open.is_cut("a patch").await;
    let record = open.record().await;
    assert_eq!(
        (&record["status"], &record["decision"]),
        (&json!(101), &json!("aborted"))
    );

    let mut open = Open::new().await;
    let (sdk, id) = (
        open.scene.vault.sdk(),
        open.scene.session.session_id.clone(),
    );
    sdk.delete_session(&id).await.expect("deleted");
    open.is_cut("a deletion").await;

    let mut open = Open::with(|vault| {
        vault.config(|config| config.limits.drain_timeout = Duration::from_millis(300))
    })
    .await;
    let drained = open.scene.vault.drain();
    open.talks("while draining").await;
    within("the drain", drained).await.expect("drained");
    open.is_cut("the drain").await;
}

#[tokio::test]
async fn an_open_websocket_keeps_its_session() {
    let open = Open::new().await;
    let (sdk, id) = (open.scene.vault.sdk(), &open.scene.session.session_id);
    let expires = async || sdk.get_session(id).await.expect("a session").expires_at;
    // What is in use does not come nearer to its end; what is idle does, second by second.
    let before = expires().await;
    within("a later end", async { while expires().await <= before {} }).await;
}

#[tokio::test]
async fn a_real_client_talks_through_both_listeners() {
    if program("python3").is_none() {
        return;
    }
    let packages = project_file("tests/fixtures/clients/python");
    if !packages.join("websockets").exists() {
        return missing("websockets is not installed, tests/prepare.sh does that");
    }
    let script = r#"
import asyncio, os, ssl
from websockets.asyncio.client import connect

async def main():
    trust = ssl.create_default_context(cafile=os.environ["CA"])
    proxy = os.environ["PROXY"]
    more = {"proxy_ssl": trust} if proxy.startswith("https") else {}
    if os.environ["DEFLATE"] == "no":
        more["compression"] = None
    headers = {"Authorization": "Bearer " + os.environ["TOKEN"]}
    async with connect("wss://good.example.com/chat", ssl=trust, proxy=proxy, max_size=None,
                       additional_headers=headers, **more) as socket:
        large = os.urandom(1 << 20)
        for message in ["hello", os.environ["TOKEN"], large, "x" * 100_000]:
            await socket.send(message)
            assert await socket.recv() == message
        await socket.send(["in ", "three ", "parts"])
        assert await socket.recv() == "in three parts"
        await (await socket.ping())
    print(socket.close_code, end="")

asyncio.run(main())
"#;
    let origin = Origin::script(|request, conn| async move { echo(&request, &conn).await }).await;
    let scene = Scene::around(origin).await;
    let home = tempfile::tempdir().expect("a directory");
    let ca = home.path().join("ca.pem");
    std::fs::write(&ca, scene.vault.ca_pem()).expect("a file");
    for proxy in [
        scene.vault.proxy_url(&scene.session),
        scene.vault.proxy_url_tls(&scene.session),
    ] {
        for deflate in ["yes", "no"] {
            scene.good.forget();
            let mut python = client("python3", home.path());
            python.args(["-c", script]).env("PYTHONPATH", &packages);
            python
                .env("CA", &ca)
                .env("PROXY", &proxy)
                .env("DEFLATE", deflate);
            python.env("TOKEN", scene.token());
            let said = run("websockets", &mut python).await;
            said.expect_success(&format!("{proxy} {deflate}"));
            assert_eq!(said.stdout, "1000", "{proxy} {deflate}");
            let bytes = scene.good.bytes();
            assert!(contains(&bytes, REAL), "{proxy} {deflate}");
            assert_eq!(contains(&bytes, "permessage-deflate"), deflate == "yes");
        }
    }
}
