//! A session's records as they are written, for its tenant: live, bounded, and over with the session.

use std::time::Duration;

use oshu_vault::audit::{Kind, READERS_PER_SESSION, Record};
use oshu_vault::id::SessionId;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::support::{API_KEY, Answer, Conn, GOOD, REAL, Scene, Vault, contains, within};

/// A stream of events.
struct Events {
    conn: Conn,
    head: Answer,
    text: String,
}

/// Asks for the events of a session.
async fn ask(vault: &Vault, id: &str, key: &str) -> (Conn, Answer) {
    let tcp = TcpStream::connect(vault.plain_addr()).await;
    let mut conn = Conn::new(tcp.expect("a connection"));
    conn.send(format!(
        "GET /v1/sessions/{id}/events HTTP/1.1\r\nHost: v\r\nx-api-key: {key}\r\n\r\n"
    ))
    .await;
    let head = conn.answer_head().await;
    (conn, head)
}

impl Events {
    async fn of(vault: &Vault, id: &str) -> Self {
        let (conn, head) = ask(vault, id, API_KEY).await;
        assert_eq!(head.status, 200, "{}", head.head);
        let text = String::new();
        let mut events = Self { conn, head, text };
        // The first comment: from here on nothing is missed.
        assert_eq!(events.block().await.as_deref(), Some(":"));
        events
    }

    /// Reads one chunk; nothing at the end.
    async fn chunk(&mut self) -> Option<String> {
        let line = self.conn.take_until(b"\r\n").await;
        let size = std::str::from_utf8(&line).expect("a size").trim_end();
        let size = usize::from_str_radix(size, 16).expect("a size");
        let chunk = self.conn.take(size + 2).await;
        (size > 0).then(|| String::from_utf8(chunk[..size].to_vec()).expect("UTF-8"))
    }

    /// Reads one block, up to its empty line; nothing at the end.
    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                return Some(block);
            }
            let chunk = self.chunk().await?;
            self.text.push_str(&chunk);
        }
    }

    /// Reads one event; nothing at the end.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            let block = self.block().await?;
            if let Some(rest) = block.strip_prefix("event: ") {
                let (event, data) = rest.split_once("\ndata: ").expect("data");
                assert!(!data.contains('\n'), "{data}");
                return Some((event.to_owned(), serde_json::from_str(data).expect("JSON")));
            }
            assert_eq!(block, ":", "a comment");
        }
    }
}

#[tokio::test]
async fn a_session_is_read_along_from_its_first_to_its_last_record() {
    let scene = Scene::new().await;
    let id = &scene.session.session_id;
    let other = scene.vault.session(&Scene::request()).await;
    let mut events = Events::of(&scene.vault, id).await;
    let kind = events.head.header("content-type");
    assert_eq!(kind, Some("text/event-stream"));
    assert_eq!(events.head.header("cache-control"), Some("no-store"));
    // Another session's are not told.
    let stranger = scene.vault.workload(&other);
    stranger.get(&format!("https://{GOOD}/stranger"), &[]).await;
    scene.alive("reading along").await;
    scene.vault.sdk().delete_session(id).await.expect("deleted");
    let mut told = Vec::new();
    while let Some((event, record)) = within("an event", events.next()).await {
        assert_eq!(event, "record");
        told.push(record);
    }
    let end = json!(["session", "deleted"]);
    let ends = told
        .iter()
        .filter(|record| json!([record["event"], record["action"]]) == end);
    assert_eq!(ends.count(), 1, "{told:#?}");
    let lines = scene.vault.audit();
    for record in &told {
        assert_eq!(record["session"], json!(id));
        assert!(lines.contains(record), "{record} is what the sink has");
    }
    let exchange = told.iter().find(|record| record["event"] == "exchange");
    let exchange = exchange.expect("the exchange");
    assert_eq!(exchange["swapped"], json!(["EXAMPLE_KEY"]));
    let text = format!("{told:?}");
    for hidden in [REAL, scene.token(), &scene.session.token, "stranger"] {
        assert!(!contains(text.as_bytes(), hidden), "{hidden}");
    }
    // The connection is of use for more.
    events
        .conn
        .send("GET /healthz HTTP/1.1\r\nHost: v\r\n\r\n")
        .await;
    assert_eq!(events.conn.answer().await.status, 200);
    let (_, gone) = ask(&scene.vault, id, API_KEY).await;
    assert_eq!(gone.status, 404);
}

#[tokio::test]
async fn what_the_end_of_a_session_cuts_is_read_to_its_last_record() {
    let scene = Scene::new().await;
    let id = &scene.session.session_id;
    let mut events = Events::of(&scene.vault, id).await;
    let mut open = Vec::new();
    for _ in 0..8 {
        open.push(scene.workload.connect(&format!("{GOOD}:443")).await);
    }
    scene.vault.sdk().delete_session(id).await.expect("deleted");
    let mut cut = 0;
    while let Some((_, record)) = within("an event", events.next()).await {
        cut += usize::from(record["reason"] == "session_cut");
    }
    assert_eq!(cut, open.len());
}

#[tokio::test]
async fn only_its_tenant_reads_along() {
    let scene = Scene::new().await;
    let id = &scene.session.session_id;
    let unknown = SessionId::generate().to_string();
    for (id, key, status) in [
        (id.as_str(), "ovk_wrong_0123456789abcdef01234567", 401),
        (id, "", 401),
        (&unknown, API_KEY, 404),
        ("sess_x", API_KEY, 404),
    ] {
        let (_, head) = ask(&scene.vault, id, key).await;
        assert_eq!(head.status, status, "{id}");
    }
    assert_eq!(scene.vault.audit_log().sink().stats().readers, 0);
}

#[tokio::test]
async fn a_session_has_so_many_readers_and_no_more() {
    let scene = Scene::new().await;
    let id = &scene.session.session_id;
    let mut readers = Vec::new();
    for _ in 0..READERS_PER_SESSION {
        readers.push(Events::of(&scene.vault, id).await);
    }
    let (mut conn, head) = ask(&scene.vault, id, API_KEY).await;
    assert_eq!(head.status, 429, "{}", head.head);
    assert_eq!(head.header("retry-after"), Some("5"));
    let body = conn.take_until(b"}").await;
    assert!(contains(&body, "too_many_readers"));
    let other = scene.vault.session(&Scene::request()).await;
    let _other = Events::of(&scene.vault, &other.session_id).await;
    // One that goes away is noticed though nothing is sent to it.
    drop(readers.pop());
    within("room for another", async {
        while ask(&scene.vault, id, API_KEY).await.1.status != 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    scene.alive("many readers").await;
    for reader in &mut readers {
        let (event, _) = within("an event", reader.next()).await.expect("an event");
        assert_eq!(event, "record");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_costs_nobody_time_and_is_told_what_it_lost() {
    let scene = Scene::new().await;
    let id = SessionId::parse(&scene.session.session_id).expect("an id");
    // That it was created is written before anybody reads along.
    scene.vault.audit_log().sink().flush();
    let mut events = Events::of(&scene.vault, id.as_str()).await;
    let sink = scene.vault.audit_log().sink().clone();
    let path = format!("/{}", "x".repeat(2000));
    // Far more than all buffers between here and there hold: nobody reads.
    let batches = 16;
    for _ in 0..batches {
        for _ in 0..1000 {
            let mut record = Record::begin(&sink, Kind::Exchange);
            record.session(&id);
            record.request("GET", &path);
        }
        sink.flush();
    }
    assert_eq!(sink.stats().lost, 0, "the sink itself had room");
    let mut last = Record::begin(&sink, Kind::Exchange);
    last.session(&id);
    last.request("GET", "/last");
    let (mut told, mut lost) = (0, 0);
    // The count comes where the hole is, and a record handed over after it comes after it.
    while told + lost < batches * 1000 {
        let (event, data) = within("an event", events.next()).await.expect("an event");
        match event.as_str() {
            "gap" => lost += data["lost"].as_u64().expect("a number"),
            _ => told += 1,
        }
    }
    assert_eq!(told + lost, batches * 1000);
    assert!(lost > 0, "{told} were told");
    drop(last);
    let (_, data) = within("the last", events.next()).await.expect("an event");
    assert_eq!(data["path"], "/last");
}

#[tokio::test]
async fn a_drain_ends_the_stream_at_once() {
    let drain = |vault: crate::support::VaultBuilder| {
        // Far beyond what the test takes: the stream must not be waited for.
        vault.config(|config| config.limits.drain_timeout = Duration::from_mins(10))
    };
    let mut scene = Scene::vault(drain).await;
    let id = scene.session.session_id.clone();
    let mut events = Events::of(&scene.vault, &id).await;
    let drained = scene.vault.drain();
    // What was written before may still come; the end does, long before the drain's own.
    while within("the end", events.next()).await.is_some() {}
    within("the drain", drained).await.expect("drained");
}
