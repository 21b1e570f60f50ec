//! Records of two processes that serve at once: one file, one chain, and one stream to read along.

use serde_json::{Value, json};

use super::{carries, ended, handed_over, opened};
use crate::binary::store::audit::FILE;
use crate::binary::store::{HOST, Made, Place, kill};
use crate::binary::{Server, dial};
use crate::support::Conn;

/// Counts the exchanges in the audit file.
pub(super) fn exchanges_in(place: &Place) -> u64 {
    let text = place.audit_text();
    let lines = text.lines().map(|line| -> Value {
        serde_json::from_str(line).unwrap_or_else(|_| panic!("JSON: {line}"))
    });
    let exchanges = lines.filter(|line| line["event"] == "exchange" && line["host"] == HOST);
    exchanges.count().try_into().expect("a number")
}

/// Checks that the file is one chain that ended in order, without a loss.
async fn is_whole(place: &Place) {
    let found = place.verify(&["--closed"]).await.expect(0).json();
    let numbers = ["lost", "crashes", "torn_bytes"].map(|name| found[name].clone());
    assert_eq!(numbers, [0, 0, 0].map(|zero| json!(zero)), "{found}");
}

#[tokio::test]
async fn records_of_both_processes_are_one_chain() {
    let place = Place::new().await;
    let mut first = place.serve_audited(&[]).await;
    let made = place.create(&first).await;
    let sealed = made.session.sealed_secrets["EXAMPLE_KEY"].clone();
    let mut early = opened(&place, &first, &made).await;
    let mut late = opened(&place, &first, &made).await;
    let mut second = place.successor_with(&[FILE]).await;
    handed_over(&mut first).await;
    place.whole().await;
    carries(&place, &mut early, &sealed, &made.value).await;
    early.expect_end().await;
    place.works(&second, &made).await;
    // Also over a process in between.
    let third = place.successor_with(&[FILE]).await;
    handed_over(&mut second).await;
    carries(&place, &mut late, &sealed, &made.value).await;
    late.expect_end().await;
    place.works(&third, &made).await;
    ended(first).await;
    ended(second).await;
    assert!(exchanges_in(&place) >= 5, "what has ended is written");
    place.whole().await;
    third.stop().await;
    is_whole(&place).await;
    assert_eq!(exchanges_in(&place), 6);
    let text = place.audit_text();
    let count = |part: &str| text.lines().filter(|line| line.contains(part)).count();
    assert_eq!(count("\"event\":\"tunnel\""), 4);
    assert_eq!(count("\"audit_begin\""), 3, "a segment of each process");
    assert_eq!(count("\"why\":\"handed_over\""), 2);
}

#[tokio::test]
async fn a_file_comes_back_where_the_successor_does_not_start() {
    let place = Place::new().await;
    let server = place.serve_audited(&[]).await;
    let made = place.create(&server).await;
    place.works(&server, &made).await;
    let line = [
        &place.line()[..],
        &["--take-over", "--upstream-ca=/nowhere"],
    ]
    .concat();
    let failed = place.home.run_with(&line, &[FILE], "").await;
    failed.complains(1, &["upstream.ca_files"]);
    place.works(&server, &made).await;
    server.stop().await;
    assert_eq!(exchanges_in(&place), 2);
    let found = place.verify(&["--closed"]).await.expect(0).json();
    assert_eq!(found["lost"], json!(0), "{found}");
}

#[tokio::test]
async fn without_its_successor_a_process_writes_its_last_records_itself() {
    let place = Place::new().await;
    let mut before = place.serve_audited(&[]).await;
    let made = place.create(&before).await;
    let sealed = made.session.sealed_secrets["EXAMPLE_KEY"].clone();
    let mut used = opened(&place, &before, &made).await;
    let mut open = opened(&place, &before, &made).await;
    let after = place.successor_with(&[FILE]).await;
    handed_over(&mut before).await;
    carries(&place, &mut used, &sealed, &made.value).await;
    used.expect_end().await;
    kill(after).await;
    open.expect_end().await;
    ended(before).await;
    let tunnels = |text: String| {
        let lines = text
            .lines()
            .filter(|line| line.contains("\"event\":\"tunnel\""));
        lines.count()
    };
    // What was written just before the kill may be there twice.
    assert!(tunnels(place.audit_text()) >= 2);
    assert!(exchanges_in(&place) >= 3);
    let again = place.serve_audited(&[]).await;
    place.works(&again, &made).await;
    again.stop().await;
    let found = place.verify(&["--closed"]).await.expect(0).json();
    assert_eq!((&found["lost"], &found["crashes"]), (&json!(0), &json!(1)));
}

/// Asks for the events of a session over a connection, and waits for the first part.
async fn read_along(place: &Place, conn: &mut Conn, made: &Made) {
    let key = std::fs::read_to_string(place.home.state("api.key")).expect("a key");
    conn.send(format!(
        "GET /v1/sessions/{}/events HTTP/1.1\r\nHost: v\r\nx-api-key: {}\r\n\r\n",
        made.id(),
        key.trim_end()
    ))
    .await;
    let head = conn.answer_head().await;
    assert_eq!(head.status, 200, "{}", head.head);
    conn.take_until(b":\n\n\r\n").await;
}

async fn reader(place: &Place, server: &Server, made: &Made) -> Conn {
    let mut conn = dial(server.plain()).await;
    read_along(place, &mut conn, made).await;
    conn
}

#[tokio::test]
async fn who_reads_along_comes_again_and_hears_both_processes() {
    let place = Place::new().await;
    let mut before = place.serve_audited(&[]).await;
    let made = place.create(&before).await;
    let sealed = made.session.sealed_secrets["EXAMPLE_KEY"].clone();
    let mut open = opened(&place, &before, &made).await;
    let mut reading = reader(&place, &before, &made).await;
    let after = place.successor_with(&[FILE]).await;
    handed_over(&mut before).await;
    reading.take_until(b"0\r\n\r\n").await;
    // Over the connection that is still there the stream ends at once, and so does the connection.
    read_along(&place, &mut reading, &made).await;
    reading.take_until(b"0\r\n\r\n").await;
    reading.expect_end().await;
    let mut again = reader(&place, &after, &made).await;
    carries(&place, &mut open, &sealed, &made.value).await;
    open.expect_end().await;
    let told = again.take_until(b"\"event\":\"tunnel\"").await;
    let told = String::from_utf8(told).expect("text");
    assert!(told.contains("\"event\":\"exchange\""), "{told}");
    drop(again);
    ended(before).await;
    after.stop().await;
    is_whole(&place).await;
}
