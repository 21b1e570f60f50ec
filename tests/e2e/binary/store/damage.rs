//! What somebody who can write to the store's file may do to it: each is told and refused, and
//! what was not touched serves on.

use std::fs;
use std::path::Path;

use redb::{Database, ReadableDatabase, TableDefinition};
use rustix::process::Signal;
use serde_json::Value;

use super::{Made, Place};
use crate::binary::{Server, dial, mode};

const SESSIONS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("sessions");
const USED: TableDefinition<'_, &[u8], u64> = TableDefinition::new("used");

fn key(tenant: &str, made: &Made) -> Vec<u8> {
    format!("{tenant}/{}", made.id()).into_bytes()
}

/// The rows, taken out of the file and put into it by hand.
struct Hand(Database);

impl Hand {
    fn open(path: &Path) -> Self {
        Self(Database::open(path).unwrap())
    }

    fn read(&self, made: &Made) -> Vec<u8> {
        let read = self.0.begin_read().unwrap();
        let rows = read.open_table(SESSIONS).unwrap();
        let row = rows.get(key("default", made).as_slice()).unwrap().unwrap();
        row.value().to_vec()
    }

    fn write(&self, key: &[u8], row: &[u8]) {
        let change = self.0.begin_write().unwrap();
        change
            .open_table(SESSIONS)
            .unwrap()
            .insert(key, row)
            .unwrap();
        change.commit().unwrap();
    }

    fn remove(&self, key: &[u8]) {
        let change = self.0.begin_write().unwrap();
        change.open_table(SESSIONS).unwrap().remove(key).unwrap();
        change.commit().unwrap();
    }

    fn set_used(&self, made: &Made, at: u64) {
        let change = self.0.begin_write().unwrap();
        let key = key("default", made);
        change
            .open_table(USED)
            .unwrap()
            .insert(key.as_slice(), at)
            .unwrap();
        change.commit().unwrap();
    }
}

#[tokio::test]
async fn rows_that_were_changed_are_named_and_refused_and_the_others_serve() {
    let place = Place::new().await;
    let server = place.serve().await;
    let mut all = Vec::new();
    for _ in 0..8 {
        all.push(place.create(&server).await);
    }
    server.stop().await;
    let [good, flipped, cut, one, other, moved, forged, idle] = all.try_into().ok().unwrap();
    let hand = Hand::open(&place.store());
    let mut row = hand.read(&flipped);
    let middle = row.len() / 2;
    row[middle] ^= 4;
    hand.write(&key("default", &flipped), &row);
    let row = hand.read(&cut);
    hand.write(&key("default", &cut), &row[..row.len() - 9]);
    let (left, right) = (hand.read(&one), hand.read(&other));
    hand.write(&key("default", &one), &right);
    hand.write(&key("default", &other), &left);
    let row = hand.read(&moved);
    hand.write(&key("mallory", &moved), &row);
    hand.remove(&key("default", &moved));
    hand.write(b"default/no session", b"row");
    hand.set_used(&forged, u64::MAX);
    hand.set_used(&idle, 1);
    drop(hand);

    let server = place.serve().await;
    let log = place.found(&server).await;
    for refused in [&flipped, &cut, &one, &other, &moved] {
        let named = |line: &str| line.contains("is refused") && line.contains(refused.id());
        assert!(log.lines().any(named), "{} in {log}", refused.id());
        place.is_gone(&server, refused).await;
    }
    assert!(log.contains("default/no session"), "{log}");
    assert!(!log.contains("real-value"), "{log}");
    place.works(&server, &good).await;
    // A use that is forged counts as one just now, or as one at the session's birth.
    place.works(&server, &forged).await;
    place.works(&server, &idle).await;
    place.becomes(&server, 200).await;
    server.stop().await;
    // Refused rows are left for whoever looks into it.
    let hand = Hand::open(&place.store());
    assert_eq!(hand.read(&one), right);
}

/// Deletes a session, and returns the status of the answer.
async fn delete(place: &Place, server: &Server, made: &Made) -> u16 {
    let key = fs::read_to_string(place.home.state("api.key")).expect("a key");
    let (id, key) = (made.id(), key.trim_end());
    let mut conn = dial(server.plain()).await;
    conn.send(format!(
        "DELETE /v1/sessions/{id} HTTP/1.1\r\nHost: v\r\nx-api-key: {key}\r\n\r\n"
    ))
    .await;
    conn.answer().await.status
}

#[tokio::test]
async fn a_refused_row_is_its_tenant_s_to_delete_for_good() {
    let place = Place::new().await;
    let server = place.serve().await;
    let (own, another_s) = (place.create(&server).await, place.create(&server).await);
    server.stop().await;
    let hand = Hand::open(&place.store());
    let mut row = hand.read(&own);
    row[30] ^= 4;
    hand.write(&key("default", &own), &row);
    let row = hand.read(&another_s);
    hand.write(&key("mallory", &another_s), &row);
    hand.remove(&key("default", &another_s));
    drop(hand);
    let server = place.serve().await;
    assert_eq!(delete(&place, &server, &own).await, 204);
    assert_eq!(delete(&place, &server, &own).await, 404);
    assert_eq!(delete(&place, &server, &another_s).await, 404);
    let (_code, events, log) = server.end(Signal::TERM).await;
    let deleted = |event: &&Value| event["event"] == "session" && event["session"] == own.id();
    let deleted: Vec<_> = events.iter().filter(deleted).collect();
    assert!(
        deleted.len() == 1 && deleted[0]["action"] == "deleted",
        "{deleted:?}"
    );
    assert!(
        log.contains(own.id()) && log.contains(another_s.id()),
        "{log}"
    );
    let server = place.serve().await;
    let log = place.found(&server).await;
    assert!(!log.contains(own.id()), "it is gone: {log}");
    assert!(log.contains(another_s.id()), "and the other is not: {log}");
    server.stop().await;
}

#[tokio::test]
async fn a_file_that_is_damaged_is_named_and_never_begun_anew() {
    let place = Place::new().await;
    let server = place.serve().await;
    let made = place.create(&server).await;
    server.stop().await;
    let path = place.store();
    let whole = fs::read(&path).unwrap();
    for content in [
        &b""[..],
        &whole[..whole.len() / 2],
        &whole[..100],
        &[0; 8192],
    ] {
        fs::write(&path, content).unwrap();
        let name = path.display().to_string();
        place
            .refused()
            .await
            .complains(1, &["error: ", &name, "damaged"]);
        assert_eq!(fs::read(&path).unwrap().len(), content.len());
    }
    fs::write(&path, &whole).unwrap();
    mode(&path, 0o640);
    place.refused().await.complains(1, &["chmod 600"]);
    mode(&path, 0o600);
    let server = place.serve().await;
    place.works(&server, &made).await;
    // One process at a time.
    place
        .refused()
        .await
        .complains(1, &["in use by another process"]);
    place.works(&server, &made).await;
    server.stop().await;
}
