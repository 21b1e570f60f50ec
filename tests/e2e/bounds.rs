//! Bounds of messages: what is over one is refused with a reason, and each is the operator's to set.
//!
//! Every bound is set away from its default here, so that what is seen is the setting.

use std::time::Duration;

use oshu_vault::config::Limits;
use rustls::pki_types::ServerName;
use serde_json::json;

use crate::support::{
    Answer, Conn, GOOD, H2Origin, H2Scene, Origin, Scene, TWO, VaultBuilder, contains, show,
};

const TARGET: &str = "good.example.com:443";
const SHORT: Duration = Duration::from_millis(300);

fn limited(change: fn(&mut Limits)) -> impl FnOnce(VaultBuilder) -> VaultBuilder {
    move |vault| vault.config(|config| change(&mut config.limits))
}

fn post(lines: &str, body: &str) -> String {
    format!("POST /up HTTP/1.1\r\nHost: {GOOD}\r\n{lines}\r\n\r\n{body}")
}

fn is(answer: &Answer, status: u16, code: &str, case: &str) {
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (status, code),
        "{case}"
    );
}

#[tokio::test]
async fn bodies_over_the_limit_are_413() {
    let scene = Scene::vault(limited(|limits| limits.request_body_bytes = Some(10))).await;
    for (lines, body) in [
        ("Content-Length: 10", "0123456789"),
        (
            "Transfer-Encoding: chunked",
            "5\r\n01234\r\n5\r\n56789\r\n0\r\n\r\n",
        ),
    ] {
        let answer = scene.ask(GOOD, post(lines, body)).await;
        assert_eq!(answer.status, 200, "{lines}");
        assert!(scene.good.bytes().ends_with(body.as_bytes()), "{lines}");
        scene.good.forget();
    }
    let answer = scene
        .ask(GOOD, post("Content-Length: 11", "0123456789a"))
        .await;
    is(&answer, 413, "body_too_long", "a length");
    let one = post(
        "Transfer-Encoding: chunked",
        "b\r\n0123456789a\r\n0\r\n\r\n",
    );
    is(&scene.ask(GOOD, one).await, 413, "body_too_long", "a chunk");
    scene
        .good
        .expect_nothing("a body that is known to be too long");
    // What is not known before: nothing of the chunk that is too much goes up, and no end.
    let mut conn = scene.workload.connect(TARGET).await;
    conn.send(post("Transfer-Encoding: chunked", "5\r\n01234\r\n"))
        .await;
    scene
        .good
        .wait("the first chunk", |all| contains(&all.concat(), "01234"))
        .await;
    conn.send("6\r\nabcdef\r\n0\r\n\r\n").await;
    is(&conn.answer().await, 413, "body_too_long", "chunks");
    scene.good.wait_ended(1).await;
    let bytes = scene.good.bytes();
    assert!(bytes.ends_with(b"5\r\n01234\r\n"), "{}", show(&bytes));
    scene.alive("long bodies").await;
}

#[tokio::test]
async fn bodies_over_the_limit_are_413_on_streams() {
    let two = H2Origin::script(|mut exchange| async move {
        // One that is too long has no end.
        if exchange.read_all().await {
            exchange.answer(200, "ok").await;
        }
    })
    .await;
    let limit = limited(|limits| limits.request_body_bytes = Some(10));
    let play = H2Scene::with(two, limit).await;
    for (client, to) in [(play.h2().await, "h2"), (play.h2_to_h1().await, "h1")] {
        for (fields, body, status) in [
            (&[][..], "0123456789", 200),
            (&[("content-length", "10")], "0123456789", 200),
            (&[], "0123456789a", 413),
            (&[("content-length", "11")], "0123456789a", 413),
        ] {
            let answer = client.ask(("POST", "/up"), fields, body.as_bytes()).await;
            assert_eq!(answer.status, status, "to {to}: {fields:?} {body}");
            if status == 413 {
                assert_eq!(answer.code(), "body_too_long");
            }
        }
    }
    assert!(!contains(&play.scene.good.bytes(), "0123456789a"));
    play.alive("long bodies").await;
}

#[tokio::test]
async fn an_answer_that_does_not_begin_is_504() {
    let good = Origin::script(|request, conn| async move {
        if request.line().contains("/alive") {
            let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            return conn.send(ok).await;
        }
        conn.wait_end().await;
    })
    .await;
    let two = H2Origin::script(|mut exchange| async move {
        if exchange.path() == "/alive" {
            return exchange.answer(200, "ok").await;
        }
        exchange.wait_reset().await;
    })
    .await;
    let limit = limited(|limits| limits.answer_timeout = Some(SHORT));
    let play = H2Scene::with_good(good, two, limit).await;
    let head = format!("GET /never HTTP/1.1\r\nHost: {GOOD}\r\n\r\n");
    is(
        &play.scene.ask(GOOD, head).await,
        504,
        "answer_timeout",
        "h1",
    );
    for client in [play.h2_to_h1().await, play.h2().await] {
        let answer = client.get("/never").await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (504, "answer_timeout")
        );
    }
    // The upstreams are not left with them.
    play.scene.good.wait_ended(2).await;
    play.two
        .wait("the reset", |all| {
            all.iter().any(|seen| seen.reset.is_some())
        })
        .await;
    play.alive("no answers").await;
}

#[tokio::test]
async fn an_exchange_in_which_nothing_moves_ends_where_the_operator_says_so() {
    let good = Origin::script(|request, conn| async move {
        if request.line().contains("/alive") {
            let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            return conn.send(ok).await;
        }
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbegun")
            .await;
        conn.wait_end().await;
    })
    .await;
    let two = H2Origin::script(|mut exchange| async move {
        if exchange.path() == "/alive" {
            return exchange.answer(200, "ok").await;
        }
        exchange.answer_head(200, &[], false);
        exchange.send("begun").await;
        exchange.wait_reset().await;
    })
    .await;
    let limit = limited(|limits| limits.exchange_idle_timeout = Some(SHORT));
    let play = H2Scene::with_good(good, two, limit).await;
    let mut conn = play.scene.workload.connect(TARGET).await;
    conn.send(format!("GET /stops HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"))
        .await;
    conn.answer_head().await;
    let (_begun, end) = conn.rest_and_end().await;
    assert!(end.is_err(), "a cut answer looks cut");
    for client in [play.h2_to_h1().await, play.h2().await] {
        let stream = client.begin("/stops").await;
        stream.answer().await.expect_err("a reset");
    }
    let log = play.scene.vault.audit_log();
    let idle = |line: &&serde_json::Value| {
        line["reason"] == "exchange_idle" && line["decision"] == json!("aborted")
    };
    log.wait("the records", |lines| {
        lines.iter().filter(idle).count() == 3
    })
    .await;
    play.scene.good.wait_ended(2).await;
    play.alive("silence").await;
}

#[tokio::test]
async fn heads_are_bounded_as_the_operator_says() {
    // Below the defaults, and above them.
    for (change, limit, fields) in [
        (
            (|limits| {
                (limits.head_bytes, limits.head_fields) = (2_000, 10);
                limits.target_bytes = 500;
            }) as fn(&mut Limits),
            (2_000, 500),
            10,
        ),
        (
            |limits| {
                (limits.head_bytes, limits.head_fields) = (200_000, 300);
                limits.target_bytes = 40_000;
                limits.h2_header_list_bytes = 400_000;
            },
            (200_000, 40_000),
            300,
        ),
    ] {
        let scene = Scene::vault(limited(change)).await;
        let path = |length: usize| format!("/{}", "p".repeat(length - 1));
        let get =
            |path: &str, lines: &str| format!("GET {path} HTTP/1.1\r\nHost: {GOOD}\r\n{lines}\r\n");
        let of_bytes = |length: usize| {
            let bare = get("/", "X: \r\n").len();
            get("/", &format!("X: {}\r\n", "v".repeat(length - bare)))
        };
        let of_fields = |count: usize| get("/", &"X: v\r\n".repeat(count - 1));
        let (bytes, target) = limit;
        for (head, expected) in [
            (get(&path(target), ""), None),
            (get(&path(target + 1), ""), Some((414, "target_too_long"))),
            (of_bytes(bytes), None),
            (of_bytes(bytes + 1), Some((431, "head_too_large"))),
            (of_fields(fields), None),
            (of_fields(fields + 1), Some((431, "head_too_large"))),
        ] {
            scene.good.forget();
            let answer = scene.ask(GOOD, &head).await;
            match expected {
                None => assert_eq!(answer.status, 200, "{} bytes: {}", head.len(), answer.head),
                Some((status, code)) => {
                    is(&answer, status, code, &format!("{} bytes", head.len()));
                    scene.good.expect_nothing(code);
                }
            }
        }
        let client = scene.workload.h2(TARGET).await;
        let answer = client.get(&path(target)).await;
        assert_eq!(answer.status, 200);
        let answer = client.get(&path(target + 1)).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (414, "target_too_long")
        );
        scene.alive("long heads").await;
    }
}

#[tokio::test]
async fn chunk_extensions_are_bounded_as_the_operator_says() {
    let limit = limited(|limits| limits.chunk_extension_bytes = 20);
    let scene = Scene::vault(limit).await;
    let body = |extension: usize| {
        let half = ";".to_owned() + &"x".repeat(extension / 2 - 1);
        format!("1{half}\r\na\r\n1{half}\r\nb\r\n0\r\n\r\n")
    };
    let lines = "Transfer-Encoding: chunked";
    let answer = scene.ask(GOOD, post(lines, &body(20))).await;
    assert_eq!(answer.status, 200);
    assert!(
        scene
            .good
            .bytes()
            .ends_with(b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n")
    );
    let answer = scene.ask(GOOD, post(lines, &body(22))).await;
    is(&answer, 400, "bad_body", "22 bytes");
    scene.alive("chunk extensions").await;
}

#[tokio::test]
async fn swaps_are_bounded_as_the_operator_says() {
    let scene = Scene::vault(limited(|limits| limits.swaps = 3)).await;
    let head = |count: usize| {
        let lines = "X-Key: {T}\r\n".repeat(count);
        scene.fill(&format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n{lines}\r\n"))
    };
    assert_eq!(scene.ask(GOOD, head(3)).await.status, 200);
    scene.good.forget();
    is(
        &scene.ask(GOOD, head(4)).await,
        431,
        "too_many_tokens",
        "four",
    );
    scene.nothing_arrived("four tokens").await;
}

/// What a proxy says of itself first: its settings by their number, and how much it opens the window
/// of the connection.
struct Said {
    settings: Vec<(u16, u32)>,
    window_bytes: u32,
    conn: Conn,
}

/// Speaks HTTP/2 by hand: the preface, and empty settings.
async fn by_hand(scene: &Scene, target: &str) -> Said {
    let (host, _port) = target.rsplit_once(':').expect("host:port");
    let name = ServerName::try_from(host.to_owned()).expect("a name");
    let tunnel = scene.workload.tunnel(target).await;
    let tls = scene.workload.handshake(tunnel.into_io(), name, &["h2"]);
    let mut conn = Conn::new(tls.await.expect("TLS in the tunnel"));
    conn.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await;
    let mut said = Said {
        settings: Vec::new(),
        window_bytes: 65_535,
        conn,
    };
    while said.settings.is_empty() || said.window_bytes == 65_535 {
        let (kind, stream, payload) = said.frame().await;
        match (kind, stream) {
            (4, 0) if !payload.is_empty() => {
                said.settings = payload
                    .chunks(6)
                    .map(|entry| {
                        let number = u16::from_be_bytes([entry[0], entry[1]]);
                        (number, number_of(&entry[2..]))
                    })
                    .collect();
            }
            (8, 0) => said.window_bytes += number_of(&payload),
            _ => {}
        }
    }
    said
}

fn number_of(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().expect("four bytes"))
}

impl Said {
    /// Reads one frame: its type, its stream and its payload.
    async fn frame(&mut self) -> (u8, u32, Vec<u8>) {
        let head = self.conn.take(9).await;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        (head[3], number_of(&head[5..]), self.conn.take(length).await)
    }

    fn setting(&self, number: u16) -> Option<u32> {
        let found = self.settings.iter().find(|(at, _)| *at == number);
        found.map(|(_, value)| *value)
    }

    /// Waits for the end of the connection and returns the code of its GOAWAY.
    async fn goaway(&mut self) -> u32 {
        loop {
            let (kind, _stream, payload) = self.frame().await;
            if kind == 7 {
                return number_of(&payload[4..]);
            }
        }
    }
}

/// Writes a frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short payload");
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Writes a GET that ends its stream: `:method GET`, `:scheme https`, `:path /`, and the authority as
/// a literal (RFC 7541 §6).
fn get_frame(stream: u32, authority: &str) -> Vec<u8> {
    let mut fields = vec![0x82, 0x87, 0x84, 0x01];
    fields.push(u8::try_from(authority.len()).expect("short"));
    fields.extend(authority.as_bytes());
    frame(1, 0x5, stream, &fields)
}

#[tokio::test]
async fn streams_and_windows_of_http2_are_as_the_operator_says() {
    let scene = Scene::vault(limited(|limits| {
        limits.h2_streams = 9;
        limits.h2_stream_window_bytes = 70_000;
        limits.h2_connection_window_bytes = 1_200_000;
        limits.h2_header_list_bytes = 30_000;
    }))
    .await;
    let said = by_hand(&scene, TARGET).await;
    // RFC 9113 §6.5.2.
    assert_eq!(said.setting(3), Some(9), "MAX_CONCURRENT_STREAMS");
    assert_eq!(said.setting(4), Some(70_000), "INITIAL_WINDOW_SIZE");
    assert_eq!(said.setting(6), Some(30_000), "MAX_HEADER_LIST_SIZE");
    assert_eq!(said.window_bytes, 1_200_000);
    // And held: a list of fields over the bound is refused.
    let client = scene.workload.h2(TARGET).await;
    let value = "v".repeat(10_000);
    let fields = [("x-1", value.as_str()), ("x-2", &value), ("x-3", &value)];
    let answer = client.ask(("GET", "/"), &fields[..2], b"").await;
    assert_eq!(answer.status, 200);
    let refused = client.try_ask(("GET", "/"), &fields, b"").await;
    assert!(refused.is_err() || refused.is_ok_and(|answer| answer.status == 431));
    scene.alive("HTTP/2 bounds").await;
}

#[tokio::test]
async fn resets_and_errors_of_http2_are_counted_as_the_operator_says() {
    let two = H2Origin::script(|mut exchange| async move {
        if exchange.path() == "/alive" {
            return exchange.answer(200, "ok").await;
        }
        exchange.wait_reset().await;
    })
    .await;
    let play = H2Scene::with(
        two,
        limited(|limits| {
            limits.h2_pending_resets = 3;
            limits.h2_error_resets = 2;
        }),
    )
    .await;
    let target = format!("{TWO}:443");
    let cancel = |stream| frame(3, 0, stream, &8_u32.to_be_bytes());
    // All in one record, so that the streams are reset before anybody has looked at them.
    let mut said = by_hand(&play.scene, &target).await;
    let flood: Vec<u8> = (0..5)
        .flat_map(|index| [get_frame(2 * index + 1, TWO), cancel(2 * index + 1)].concat())
        .collect();
    said.conn.send(flood).await;
    assert_eq!(said.goaway().await, 11, "ENHANCE_YOUR_CALM");
    // A window that overflows is an error of its stream (RFC 9113 §6.9.1).
    let mut said = by_hand(&play.scene, &target).await;
    for index in 0..3 {
        said.conn.send(get_frame(2 * index + 1, TWO)).await;
    }
    for index in 0..3 {
        let most = frame(8, 0, 2 * index + 1, &0x7fff_ffff_u32.to_be_bytes());
        // The last one may find the connection gone.
        let _taken = said.conn.try_send(most).await;
    }
    assert_eq!(said.goaway().await, 11, "ENHANCE_YOUR_CALM");
    play.alive("resets").await;
}

#[tokio::test]
async fn streams_given_up_are_counted_as_the_operator_says() {
    let two = H2Origin::script(|mut exchange| async move {
        if exchange.path() == "/alive" {
            return exchange.answer(200, "ok").await;
        }
        exchange.wait_reset().await;
    })
    .await;
    let play = H2Scene::with(two, limited(|limits| limits.h2_given_up = 2)).await;
    let mut client = play.h2().await;
    for index in 0..3 {
        let mut stream = client.begin("/wasted").await;
        play.two.wait("the request", |all| all.len() > index).await;
        stream.reset(h2::Reason::CANCEL);
    }
    let _ended = client.wait_closed().await;
    play.alive("streams given up").await;
}
