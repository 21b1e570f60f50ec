//! What somebody who can write to the store's file may do to it: each is told and refused, and
//! what was not touched serves on. What says who has paid, and how much was used, is refused as a
//! session is: nobody is paid by damage.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use oshu_vault::id::{AccountId, SandboxName};
use oshu_vault::identity::{Workload, WorkloadKeys};
use oshu_vault::secret::Secret;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use rustix::process::Signal;
use serde_json::Value;

use super::{Made, Place};
use crate::binary::{Server, dial, exchange, mode};
use crate::support::{Answer, Origin, contains};

const SESSIONS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("sessions");
const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");
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

    /// Returns the one record whose name begins like this: its name and what stands there.
    fn record(&self, start: &str) -> (String, Vec<u8>) {
        let read = self.0.begin_read().unwrap();
        let records = read.open_table(RECORDS).unwrap();
        let all = records.iter().unwrap().map(Result::unwrap);
        let named = all.map(|(name, row)| {
            let name = String::from_utf8(name.value().to_vec()).unwrap();
            (name, row.value().to_vec())
        });
        let mut found = named.filter(|(name, _)| name.starts_with(start));
        let record = found.next().unwrap_or_else(|| panic!("{start}"));
        assert!(found.next().is_none(), "one record of {start}");
        record
    }

    fn write_record(&self, name: &str, row: &[u8]) {
        let change = self.0.begin_write().unwrap();
        let mut records = change.open_table(RECORDS).unwrap();
        records.insert(name.as_bytes(), row).unwrap();
        drop(records);
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

const ADMIN: (&str, &str) = ("OSHU_VAULT_ADMIN_KEY", "the-operator-s-own-key-0123456789");
const MODEL_KEY: &str = "sk-ant-api03-CANARY-operator-0123456789";
const JWT_SECRET: &str = "jwt-secret-0123456789abcdef0123456789";

/// Starts a server with a gateway and a budget.
async fn gateway(place: &Place, provider: &Origin) -> Server {
    let upstream = format!("http://{}", provider.addr());
    let variables = [
        ADMIN,
        ("OSHU_VAULT__GATEWAY__API_KEY", MODEL_KEY),
        ("OSHU_VAULT__GATEWAY__JWT_SECRET", JWT_SECRET),
        ("OSHU_VAULT__GATEWAY__UPSTREAM", upstream.as_str()),
        ("OSHU_VAULT__GATEWAY__MONTHLY_BUDGET", "1000000"),
    ];
    place.home.serve(&place.line(), &variables).await
}

/// Calls the model in the name of an account.
async fn call(server: &Server, account: &str) -> Answer {
    let keys = WorkloadKeys::new(&Secret::new(JWT_SECRET.as_bytes().to_vec()), None).unwrap();
    let workload = Workload {
        account: AccountId::parse(account).unwrap(),
        sandbox: SandboxName::parse("box-1").unwrap(),
    };
    let day = Duration::from_hours(24);
    let jwt = keys.mint(&workload, SystemTime::now(), day).unwrap();
    let jwt = jwt.as_str();
    let body = r#"{"model":"m","max_tokens":8}"#;
    let head = format!(
        "POST /api/claude-gateway/v1/messages HTTP/1.1\r\nHost: g\r\nx-api-key: {jwt}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    exchange(server.plain(), head).await
}

/// Asks about an account as the operator, or says whether it is paid.
async fn operate(server: &Server, account: &str, paid: Option<bool>) -> Answer {
    let body = paid.map_or(String::new(), |paid| format!("{{\"paid\":{paid}}}"));
    let method = if paid.is_some() { "PUT" } else { "GET" };
    let head = format!(
        "{method} /v1/accounts/{account} HTTP/1.1\r\nHost: v\r\nx-api-key: {}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        ADMIN.1,
        body.len()
    );
    exchange(server.plain(), head).await
}

fn flipped(mut row: Vec<u8>) -> Vec<u8> {
    let middle = row.len() / 2;
    row[middle] ^= 4;
    row
}

#[tokio::test]
async fn accounts_and_usage_that_were_changed_are_named_and_nobody_is_paid_by_it() {
    const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\
        Content-Length: 48\r\n\r\n{\"usage\":{\"input_tokens\":30,\"output_tokens\":40}}";
    let place = Place::new().await;
    let provider = Origin::builder().plain().answer(ANSWER).await;
    let server = gateway(&place, &provider).await;
    let [good, bent, paid, unpaid, spent, lent, lender, nobody] =
        ["1", "2", "3", "4", "5", "6", "7", "8"];
    for account in [good, bent, paid, spent, lent, lender] {
        assert_eq!(operate(&server, account, Some(true)).await.status, 200);
        let answer = call(&server, account).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(operate(&server, unpaid, Some(false)).await.status, 200);
    assert_eq!(call(&server, unpaid).await.status, 402);
    let made = place.create(&server).await;
    server.stop().await;

    let hand = Hand::open(&place.store());
    let of = |account: &str| hand.record(&format!("account/{account}"));
    let usage = |account: &str| hand.record(&format!("usage/{account}/"));
    let mut changed = Vec::new();
    for (name, row) in [of(bent), usage(spent)] {
        changed.push((name, flipped(row)));
    }
    changed.push((of(paid).0, of(unpaid).1));
    changed.push((of(unpaid).0, of(paid).1));
    changed.push((format!("account/{nobody}"), of(good).1));
    changed.push((usage(lent).0, usage(lender).1));
    for (name, row) in &changed {
        hand.write_record(name, row);
    }
    drop(hand);

    let server = gateway(&place, &provider).await;
    provider.forget();
    for account in [bent, paid, unpaid, nobody, spent, lent] {
        let answer = call(&server, account).await;
        assert_eq!(answer.status, 503, "{account}: {}", answer.text());
        let told = answer.json();
        assert_eq!(told["details"]["code"], "payment_unknown", "{account}");
        assert!(answer.header("retry-after").is_some(), "{account}");
    }
    for account in [bent, paid, unpaid, nobody] {
        for word in [None, Some(true)] {
            let answer = operate(&server, account, word).await;
            let told = (answer.status, answer.code());
            assert_eq!(told, (409, "record_refused".to_owned()), "{account}");
        }
    }
    provider.expect_nothing("an account whose records are refused");
    for (name, _row) in &changed {
        let line = |line: &str| line.contains("is refused") && line.contains(name.as_str());
        let named = |log: &str| log.lines().any(line);
        server.log.wait(name, named).await;
    }
    // Who was not touched is served, and so are sessions.
    for account in [good, lender] {
        let answer = call(&server, account).await;
        assert_eq!(answer.status, 200, "{account}: {}", answer.text());
    }
    assert!(contains(&provider.bytes(), MODEL_KEY));
    place.works(&server, &made).await;
    place.becomes(&server, 200).await;
    server.stop().await;
    // Refused records are left for whoever looks into it.
    let hand = Hand::open(&place.store());
    for (name, row) in changed {
        assert_eq!(hand.record(&name).1, row, "{name}");
    }
}
