//! A server passes to the next: real processes, one store, and what workloads see of it.
//!
//! The successor listens on the same sockets; the one before ends what it has open. Where a test
//! plays the successor itself, it speaks over the control socket as a process of the same user may.

mod audit;
mod load;
mod sockets;
mod tenants;

use std::path::Path;
use std::time::Duration;

use oshu_vault::seal::Keyring;
use oshu_vault_sdk::UpdateSession;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::{HOST, Made, Place, TARGET, kill, shared};
use crate::binary::{Server, dial, get, mode, next_event};
use crate::support::clients::client;
use crate::support::{Conn, Origin, Redis, Relay, contains, sha256, show, within};

/// Waits until a server says that another has taken over.
pub(in crate::binary) async fn handed_over(server: &mut Server) {
    let lines = server.lines.as_mut().expect("stdout");
    loop {
        let event = next_event(lines).await.expect("it runs");
        if event["event"] == "handed_over" {
            return;
        }
    }
}

/// Waits until a server has ended by itself, and returns its log.
pub(in crate::binary) async fn ended(mut server: Server) -> String {
    server.ignore_events();
    let status = within("the end of the server", server.child.wait()).await;
    let log = server.log.closed().await;
    assert_eq!(status.expect("a status").code(), Some(0), "{log}");
    log
}

fn request(sealed: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX-Api-Key: {sealed}\r\n\r\n")
}

/// Sends a request in an open tunnel, and checks that the origin got the value.
async fn carries(place: &Place, conn: &mut Conn, sealed: &str, value: &str) {
    place.origin.forget();
    conn.send(request(sealed)).await;
    let answer = conn.answer().await;
    assert_eq!(answer.status, 200, "{}", show(&answer.raw));
    assert!(contains(&place.origin.bytes(), value), "swapped");
}

/// Opens a tunnel of a session, and uses it once: from then on it may be idle for long.
async fn opened(place: &Place, server: &Server, made: &Made) -> Conn {
    let mut conn = place.workload(server, made).await.connect(TARGET).await;
    let sealed = &made.session.sealed_secrets["EXAMPLE_KEY"];
    carries(place, &mut conn, sealed, &made.value).await;
    conn
}

#[tokio::test]
async fn open_tunnels_go_on_and_end_with_their_sessions() {
    passes(Place::new().await, "sessions.redb.sock").await;
}

#[tokio::test]
async fn open_tunnels_go_on_where_the_store_is_that_of_several_nodes() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let relay = Relay::to(&redis).await;
    let place = shared::at(Place::new().await, &relay.url());
    passes(place, "sessions.shared.sock").await;
}

/// Passes a server on, and checks that what is open goes on as long as its session does.
async fn passes(place: Place, control: &str) {
    let mut before = place.serve().await;
    let (kept, doomed) = (place.create(&before).await, place.create(&before).await);
    let mut open = opened(&place, &before, &kept).await;
    let mut waiting = opened(&place, &before, &kept).await;
    let mut cut = opened(&place, &before, &doomed).await;
    let sealed = kept.session.sealed_secrets["EXAMPLE_KEY"].clone();
    let after = place.successor().await;
    assert_eq!(after.ready, before.ready, "the same listeners");
    handed_over(&mut before).await;
    place.works(&after, &kept).await;
    place.works(&after, &doomed).await;
    // What is open is served by who opened it, and is asked to come again.
    carries(&place, &mut open, &sealed, &kept.value).await;
    open.expect_end().await;
    // A patch reaches the other process too, in the order in which things were told to it.
    let client = place.client(&after);
    let value = "rotated-value-0123456789";
    let patch = UpdateSession::new().secret("EXAMPLE_KEY", value);
    let patched = client.update_session(kept.id(), &patch).await;
    patched.expect("patched");
    client.delete_session(doomed.id()).await.expect("deleted");
    cut.expect_end().await;
    place.is_gone(&after, &doomed).await;
    carries(&place, &mut waiting, &sealed, value).await;
    waiting.expect_end().await;
    ended(before).await;
    let control = place.home.state(control);
    assert!(control.exists(), "it is the successor's");
    place
        .works(
            &after,
            &Made {
                value: value.to_owned(),
                ..kept
            },
        )
        .await;
    after.stop().await;
}

#[tokio::test]
async fn what_comes_over_a_kept_connection_is_done_by_the_other_process() {
    let place = Place::new().await;
    let mut before = place.serve().await;
    let made = place.create(&before).await;
    let [mut creating, mut patching, mut deleting, mut health] = [
        dial(before.plain()).await,
        dial(before.plain()).await,
        dial(before.plain()).await,
        dial(before.plain()).await,
    ];
    let at = before.plain();
    for conn in [&mut creating, &mut patching, &mut deleting, &mut health] {
        conn.send(format!("GET /readyz HTTP/1.1\r\nHost: {at}\r\n\r\n"))
            .await;
        assert_eq!(conn.answer().await.status, 200);
    }
    let tunnel = opened(&place, &before, &made).await;
    let after = place.successor().await;
    handed_over(&mut before).await;
    let key = std::fs::read_to_string(place.home.state("api.key")).expect("a key");
    let ask = |method: &str, path: &str, body: Value| {
        let body = body.to_string();
        format!(
            "{method} {path} HTTP/1.1\r\nHost: {at}\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            key.trim_end(),
            body.len()
        )
    };
    let fields = json!({ "secrets": { "EXAMPLE_KEY": "kept-value-0123456789" },
        "secret_hosts": [HOST], "allowed_egress": [HOST] });
    creating.send(ask("POST", "/v1/sessions", fields)).await;
    let answer = creating.answer().await;
    assert_eq!(answer.status, 201, "{}", show(&answer.raw));
    assert_eq!(answer.header("connection"), Some("close"));
    let created = serde_json::from_slice(&answer.body).expect("a session");
    let created = Made {
        session: created,
        value: "kept-value-0123456789".to_owned(),
    };
    place.works(&after, &created).await;
    let path = format!("/v1/sessions/{}", created.id());
    let value = "patched-value-0123456789";
    let change = json!({ "secrets": { "EXAMPLE_KEY": value } });
    patching.send(ask("PATCH", &path, change)).await;
    assert_eq!(patching.answer().await.status, 200);
    let patched = Made {
        value: value.to_owned(),
        ..created
    };
    place.works(&after, &patched).await;
    deleting.send(ask("DELETE", &path, json!({}))).await;
    assert_eq!(deleting.answer().await.status, 204);
    place.is_gone(&after, &patched).await;
    health
        .send(format!("GET /readyz HTTP/1.1\r\nHost: {at}\r\n\r\n"))
        .await;
    assert_eq!(
        health.answer().await.status,
        200,
        "the service as a whole is ready"
    );
    for mut conn in [creating, patching, deleting, health] {
        conn.expect_end().await;
    }
    drop(tunnel);
    ended(before).await;
    // What was promised is in the file.
    kill(after).await;
    let again = place.serve().await;
    place.is_gone(&again, &patched).await;
    place.works(&again, &made).await;
    again.stop().await;
}

#[tokio::test]
async fn counters_come_from_the_process_before_and_its_uses_keep_sessions_alive() {
    let place = Place::new().await;
    let mut before = place.serve().await;
    let made = place.create(&before).await;
    place.works(&before, &made).await;
    place.works(&before, &made).await;
    let mut open = opened(&place, &before, &made).await;
    let after = place.successor().await;
    handed_over(&mut before).await;
    let sealed = made.session.sealed_secrets["EXAMPLE_KEY"].clone();
    carries(&place, &mut open, &sealed, &made.value).await;
    open.expect_end().await;
    ended(before).await;
    let session = place.client(&after).get_session(made.id()).await;
    let counters = session.expect("the session").counters;
    assert_eq!(
        (&counters["exchanges"], &counters["swapped"]),
        (&4.into(), &4.into()),
        "all of both processes"
    );
    after.stop().await;
}

#[tokio::test]
async fn a_successor_that_cannot_start_changes_nothing() {
    let place = Place::new().await;
    let server = place.serve().await;
    let made = place.create(&server).await;
    let mut open = opened(&place, &server, &made).await;
    let line = [
        &place.line()[..],
        &["--take-over", "--upstream-ca=/nowhere"],
    ]
    .concat();
    let failed = place.home.run(&line).await;
    failed.complains(1, &["upstream.ca_files"]);
    server
        .log
        .wait("the failure", |log| log.contains("not handed over"))
        .await;
    let sealed = made.session.sealed_secrets["EXAMPLE_KEY"].clone();
    carries(&place, &mut open, &sealed, &made.value).await;
    carries(&place, &mut open, &sealed, &made.value).await;
    let other = place.create(&server).await;
    place.works(&server, &other).await;
    // And the next one succeeds.
    let mut server = server;
    let after = place.successor().await;
    handed_over(&mut server).await;
    drop(open);
    ended(server).await;
    place.works(&after, &other).await;
    after.stop().await;
}

/// Plays a successor, as far as the sockets that it is sent.
async fn asks(place: &Place, hello: &Value) -> (BufReader<UnixStream>, Value) {
    let socket = place.home.state("sessions.redb.sock");
    let stream = UnixStream::connect(socket)
        .await
        .expect("the control socket");
    let mut stream = BufReader::new(stream);
    let line = format!("take over {hello}\n");
    stream.write_all(line.as_bytes()).await.expect("sent");
    let mut line = String::new();
    within("an answer", stream.read_line(&mut line))
        .await
        .expect("an answer");
    let answer = serde_json::from_str(&line).unwrap_or_else(|_| panic!("JSON: {line}"));
    (stream, answer)
}

async fn hello(place: &Place, server: &Server) -> Value {
    let ca = get(server.plain(), "/v1/ca.der").await.body;
    let keys = std::fs::read(place.home.state("seal.key")).expect("the keys");
    let keys = Keyring::parse(&keys).expect("keys");
    let ids: Vec<String> = keys.ids().map(|id| id.to_string()).collect();
    json!({ "version": 2, "ca": sha256(&ca), "keys": ids })
}

#[tokio::test]
async fn a_successor_that_stays_silent_has_ten_seconds() {
    let place = Place::new().await;
    let server = place.serve().await;
    let hello = hello(&place, &server).await;
    let started = std::time::Instant::now();
    let (mut stream, answer) = asks(&place, &hello).await;
    assert_eq!(answer, json!({ "sockets": ["listen"] }));
    // Whoever creates meanwhile waits, and is served.
    let made = place.create(&server).await;
    assert!(started.elapsed() >= Duration::from_secs(10), "it waited");
    place.works(&server, &made).await;
    server
        .log
        .wait("the failure", |log| log.contains("not handed over"))
        .await;
    // Who comes too late learns that it has nothing.
    let _sent = stream.write_all(b"ready\n").await;
    let mut line = String::new();
    let end = within("the end", stream.read_line(&mut line)).await;
    assert!(end.is_err() || end.is_ok_and(|count| count == 0), "{line}");
    server.stop().await;
}

#[tokio::test]
async fn a_successor_that_dies_before_it_says_ready_changes_nothing() {
    let place = Place::new().await;
    let server = place.serve().await;
    let hello = hello(&place, &server).await;
    for _ in 0..3 {
        let (stream, answer) = asks(&place, &hello).await;
        assert!(answer["sockets"].is_array(), "{answer}");
        drop(stream);
        let made = place.create(&server).await;
        place.works(&server, &made).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn only_its_own_kind_takes_over() {
    let place = Place::new().await;
    let server = place.serve().await;
    let own = hello(&place, &server).await;
    for (field, value, why) in [
        ("version", json!(1), "in another way"),
        ("ca", json!("00"), "another certificate authority"),
        ("keys", json!(["00000000"]), "other sealing keys"),
        ("more", json!(1), "something else"),
    ] {
        let mut hello = own.clone();
        hello[field] = value;
        let (_stream, answer) = asks(&place, &hello).await;
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(error.contains(why), "{field}: {answer}");
    }
    let made = place.create(&server).await;
    place.works(&server, &made).await;
    // One that does not ask to take over is refused as ever.
    place.refused().await.complains(1, &["in use"]);
    place.works(&server, &made).await;
    server.stop().await;
}

/// Says something to a socket, and prints what is answered.
const SAYS: &str = "import socket, sys
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
try:
    peer.sendall(b'seal rotate\\n')
    print(peer.recv(1000).decode(), end='')
except (BrokenPipeError, ConnectionResetError):
    pass
";

#[tokio::test]
async fn another_user_is_not_heard() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("only root can be somebody else");
        return;
    }
    let place = Place::new().await;
    let server = place.serve().await;
    let socket = place.home.state("sessions.redb.sock");
    // Whatever a folder's owner has opened: the socket asks for itself.
    for folder in socket.ancestors().skip(1).take(4) {
        mode(folder, 0o755);
    }
    mode(&socket, 0o666);
    let says = async |user: u32| {
        let mut command = client("python3", Path::new("/"));
        command.args(["-c", SAYS]).arg(&socket).uid(user);
        let said = command.output();
        let said = within("what is said", said).await.expect("python3");
        assert!(said.status.success(), "{}", show(&said.stderr));
        String::from_utf8(said.stdout).expect("a text")
    };
    assert_eq!(says(65_534).await, "");
    assert!(says(0).await.contains("sealed"));
    server.stop().await;
}

#[tokio::test]
async fn without_a_server_to_take_over_from_it_starts() {
    let place = Place::new().await;
    let server = place.successor().await;
    let made = place.create(&server).await;
    kill(server).await;
    assert!(
        place.home.state("sessions.redb.sock").exists(),
        "it was killed"
    );
    let server = place.successor().await;
    place.works(&server, &made).await;
    server.stop().await;
    assert!(!place.home.state("sessions.redb.sock").exists());
}

#[tokio::test]
async fn without_its_successor_a_process_cuts_what_it_has_open() {
    let place = Place::new().await;
    let mut before = place.serve().await;
    let made = place.create(&before).await;
    let mut open = opened(&place, &before, &made).await;
    let after = place.successor().await;
    handed_over(&mut before).await;
    kill(after).await;
    open.expect_end().await;
    let log = ended(before).await;
    assert!(log.contains("everything is cut"), "{log}");
    let again = place.serve().await;
    place.works(&again, &made).await;
    again.stop().await;
}

#[tokio::test]
async fn without_its_successor_a_process_that_drains_cuts_too() {
    let place =
        Place::with(Origin::script(|_request, conn| async move { conn.wait_end().await }).await);
    let limits = [("OSHU_VAULT__LIMITS__DRAIN_TIMEOUT_MS", "3600000")];
    let mut before = place.home.serve(&place.line(), &limits).await;
    let made = place.create(&before).await;
    let mut open = place.workload(&before, &made).await.connect(TARGET).await;
    open.send(request(&made.session.sealed_secrets["EXAMPLE_KEY"]))
        .await;
    let asked = |all: &[Vec<u8>]| contains(&all.concat(), &made.value);
    place.origin.wait("the request", asked).await;
    let mut idle = dial(before.plain()).await;
    let at = before.plain();
    idle.send(format!("GET /readyz HTTP/1.1\r\nHost: {at}\r\n\r\n"))
        .await;
    assert_eq!(idle.answer().await.status, 200);
    let after = place.successor().await;
    handed_over(&mut before).await;
    before.signal(Signal::TERM);
    // It drains by now.
    idle.expect_end().await;
    kill(after).await;
    open.expect_end().await;
    let log = ended(before).await;
    assert!(log.contains("everything is cut"), "{log}");
}

#[tokio::test]
async fn the_end_of_the_process_before_leaves_its_successor_well() {
    let place = Place::new().await;
    let mut before = place.serve().await;
    let made = place.create(&before).await;
    let open = opened(&place, &before, &made).await;
    let after = place.successor().await;
    handed_over(&mut before).await;
    assert!(place.home.state("sessions.redb.sock").exists());
    kill(before).await;
    drop(open);
    after
        .log
        .wait("the loss", |log| {
            log.contains("the process before has gone")
        })
        .await;
    let other = place.create(&after).await;
    place.works(&after, &other).await;
    place.works(&after, &made).await;
    // Its control socket is its own, whatever became of the other's.
    let rotated = place
        .home
        .run(&["seal", "rotate", "--new-key"])
        .await
        .expect(0);
    assert_eq!(rotated.json()["refused"], 0);
    after.stop().await;
}

#[tokio::test]
async fn a_chain_of_hand_overs_reaches_the_first_process() {
    let place = Place::new().await;
    let mut first = place.serve().await;
    let (made, doomed) = (place.create(&first).await, place.create(&first).await);
    let mut open = opened(&place, &first, &made).await;
    let mut cut = opened(&place, &first, &doomed).await;
    let mut second = place.successor().await;
    handed_over(&mut first).await;
    let third = place.successor().await;
    handed_over(&mut second).await;
    let client = place.client(&third);
    client.delete_session(doomed.id()).await.expect("deleted");
    cut.expect_end().await;
    let sealed = made.session.sealed_secrets["EXAMPLE_KEY"].clone();
    carries(&place, &mut open, &sealed, &made.value).await;
    open.expect_end().await;
    ended(first).await;
    ended(second).await;
    let session = place.client(&third).get_session(made.id()).await;
    assert_eq!(session.expect("the session").counters["exchanges"], 2);
    third.stop().await;
}

#[tokio::test]
async fn what_is_open_after_a_hand_over_has_its_time() {
    let place = Place::new().await;
    let limits = [
        ("OSHU_VAULT__LIMITS__HANDOVER_TIMEOUT_MS", "300"),
        ("OSHU_VAULT__LIMITS__DRAIN_TIMEOUT_MS", "100"),
    ];
    let mut before = place.home.serve(&place.line(), &limits).await;
    let made = place.create(&before).await;
    let mut open = opened(&place, &before, &made).await;
    let after = place.successor().await;
    handed_over(&mut before).await;
    open.expect_end().await;
    ended(before).await;
    place.works(&after, &made).await;
    after.stop().await;
}

#[tokio::test]
async fn a_signal_ends_what_was_handed_over() {
    let place = Place::new().await;
    let mut before = place.serve().await;
    let made = place.create(&before).await;
    let mut open = opened(&place, &before, &made).await;
    let after = place.successor().await;
    handed_over(&mut before).await;
    before.signal(Signal::TERM);
    open.expect_end().await;
    ended(before).await;
    place.works(&after, &made).await;
    after.stop().await;
}
