//! Tenants with the real program: the verbs of their keys, what lasts, and what somebody else wrote.

use std::fs;

use oshu_vault_sdk::{Client, CreateSession};
use redb::{Database, ReadableDatabase, TableDefinition};
use serde_json::Value;

use super::{HOST, Made, Place, create, kill};
use crate::binary::{Server, exchange};

const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");
pub(super) const ADMIN: &str = "the-operator-s-own-key-0123456789";

impl Place {
    /// Runs one of the verbs about keys, which has to do well.
    pub(super) async fn keys_verb(&self, line: &[&str]) -> Value {
        let ended = self.home.run(&[&["keys"], line].concat()).await.expect(0);
        match ended.stdout.as_str() {
            "" => Value::Null,
            _ => ended.json(),
        }
    }

    /// Makes a key of a tenant; returns its id and itself.
    pub(super) async fn key(&self, line: &[&str]) -> (String, String) {
        let made = self.keys_verb(&[&["create"], line].concat()).await;
        let text = |name: &str| made[name].as_str().expect("a text").to_owned();
        (text("key_id"), text("api_key"))
    }

    /// Returns a record of the store as it lies there.
    fn record(&self, key: &str) -> Vec<u8> {
        let file = Database::open(self.store()).unwrap();
        let read = file.begin_read().unwrap();
        let records = read.open_table(RECORDS).unwrap();
        records
            .get(key.as_bytes())
            .unwrap()
            .unwrap()
            .value()
            .to_vec()
    }

    fn put_record(&self, key: &[u8], sealed: &[u8]) {
        let file = Database::open(self.store()).unwrap();
        let change = file.begin_write().unwrap();
        let mut records = change.open_table(RECORDS).unwrap();
        records.insert(key, sealed).unwrap();
        drop(records);
        change.commit().unwrap();
    }
}

pub(super) fn client(server: &Server, key: &str) -> Client {
    Client::builder(server.url(), key)
        .build()
        .expect("a client")
}

/// Returns with which status a key is answered.
pub(super) async fn status(server: &Server, key: &str) -> u16 {
    let head = format!("GET /v1/sessions HTTP/1.1\r\nHost: v\r\nx-api-key: {key}\r\n\r\n");
    exchange(server.plain(), head).await.status
}

#[tokio::test]
async fn keys_are_managed_with_a_running_server_and_without_one() {
    let place = Place::new().await;
    let server = place.serve().await;
    let (first_id, first) = place
        .key(&["--tenant=acme", "--new-tenant", "--label=ci"])
        .await;
    assert!(first.starts_with("ovk_") && first.len() == 68);
    let made = create(&client(&server, &first)).await.unwrap();
    place.works(&server, &made).await;
    // As soon as the verb has ended it holds.
    let (_, second) = place.key(&["--tenant=acme"]).await;
    assert_eq!(status(&server, &second).await, 200);
    place
        .keys_verb(&["revoke", &first_id, "--tenant=acme"])
        .await;
    assert_eq!(status(&server, &first).await, 401);
    let (_, of_default) = place.key(&[]).await;
    // And at once after the answer it outlives the process.
    kill(server).await;
    let (third_id, third) = place.key(&["--tenant=acme"]).await;
    let listed = place.keys_verb(&["list", "--tenant=acme"]).await;
    let keys = listed["tenants"][0]["keys"].as_array().unwrap();
    assert_eq!(
        (keys.len(), &keys[1]["key_id"]),
        (2, &third_id.as_str().into())
    );
    let all = place.keys_verb(&["list"]).await;
    assert_eq!(all["tenants"].as_array().unwrap().len(), 2);
    for hidden in [&second, &third, &of_default] {
        assert!(!all.to_string().contains(&hidden[10..]));
    }
    let server = place.serve().await;
    for (key, expected) in [
        (&first, 401),
        (&second, 200),
        (&third, 200),
        (&of_default, 200),
    ] {
        assert_eq!(status(&server, key).await, expected);
    }
    place.works(&server, &made).await;
    let file = fs::read(place.store()).unwrap();
    for hidden in [&first, &second, &third] {
        assert!(!crate::support::contains(&file, &hidden[4..]));
    }
    for (line, part) in [
        (&["keys", "create", "--tenant=none"][..], "no such tenant"),
        (
            &["keys", "create", "--tenant=acme", "--new-tenant"],
            "a tenant of this name",
        ),
        (
            &["keys", "revoke", &first_id, "--tenant=acme"],
            "no such key",
        ),
        (&["keys", "list", "--tenant=none"], "no such tenant"),
    ] {
        place.home.run(line).await.complains(1, &[part]);
    }
    server.stop().await;
    let ended = place.home.run(&["keys", "list", "--store=memory"]).await;
    ended.complains(64, &["--server"]);
}

#[tokio::test]
async fn a_wrong_sealing_key_changes_no_tenant() {
    let place = Place::new().await;
    let server = place.serve().await;
    let (_, key) = place.key(&["--tenant=acme", "--new-tenant"]).await;
    server.stop().await;
    let path = place.home.state("seal.key");
    let right = fs::read_to_string(&path).unwrap();
    let other = "11".repeat(32);
    let create = &["keys", "create"][..];
    let make = &["keys", "create", "--tenant=late", "--new-tenant"];
    let newer = format!("{other}\n{right}");
    for (keys, line, part) in [
        (
            &other,
            create,
            "the sealing keys are not those of the store",
        ),
        (&other, make, "the sealing keys are not those of the store"),
        (&other, &["keys", "list"], "the sealing keys are not those"),
        // One that the server may not have.
        (&newer, create, "`oshu-vault seal rotate` goes on"),
    ] {
        fs::write(&path, keys).unwrap();
        let ended = place.home.run(line).await;
        ended.complains(1, &[part]);
    }
    fs::write(&path, &right).unwrap();
    let mut edited = place.record("tenant/acme");
    let good = edited.clone();
    edited[40] ^= 8;
    place.put_record(b"tenant/acme", &edited);
    for line in [create, make, &["keys", "list"]] {
        let ended = place.home.run(line).await;
        ended.complains(1, &["records of the store are refused, 1 of them"]);
    }
    place.put_record(b"tenant/acme", &good);
    // Nobody is shut out.
    let server = place.serve().await;
    let own = fs::read_to_string(place.home.state("api.key")).unwrap();
    for key in [own.trim_end(), &key] {
        assert_eq!(status(&server, key).await, 200);
    }
    let all = place.keys_verb(&["list"]).await;
    assert_eq!(all["tenants"].as_array().unwrap().len(), 2);
    server.stop().await;
}

#[tokio::test]
async fn keys_are_managed_over_the_api_by_the_operator() {
    let place = Place::new().await;
    let variables = [("OSHU_VAULT_ADMIN_KEY", ADMIN)];
    let server = place.home.serve(&place.line(), &variables).await;
    let url = server.url();
    let run = async |line: &[&str]| {
        let line = [&["keys"], line, &["--server", &url]].concat();
        place.home.run_with(&line, &variables, "").await
    };
    let made = run(&["create", "--tenant=acme", "--new-tenant"]).await;
    let made = made.expect(0).json();
    let (id, key) = (
        made["key_id"].as_str().unwrap(),
        made["api_key"].as_str().unwrap(),
    );
    assert_eq!(
        (&made["tenant_id"], status(&server, key).await),
        (&"acme".into(), 200)
    );
    let listed = run(&["list"]).await.expect(0).json();
    assert_eq!(listed["tenants"][0]["tenant_id"], "acme");
    assert_eq!(listed["tenants"][0]["keys"][0]["key_id"], id);
    assert_eq!(listed["tenants"][1]["tenant_id"], "default");
    run(&["revoke", id, "--tenant=acme"]).await.expect(0);
    assert_eq!(status(&server, key).await, 401);
    run(&["create", "--tenant=none"])
        .await
        .complains(1, &["nothing here by this name"]);
    // Nobody else gets that far.
    let file = place
        .home
        .write("wrong", "a-key-that-is-not-the-operator-s-own\n");
    crate::binary::mode(file.as_ref(), 0o600);
    let line = ["keys", "list", "--server", &url, "--admin-key-file", &file];
    place
        .home
        .run(&line)
        .await
        .complains(1, &["nothing here by this name"]);
    let line = ["keys", "list", "--server", &url];
    place
        .home
        .run(&line)
        .await
        .complains(64, &["OSHU_VAULT_ADMIN_KEY"]);
    let (_, _, log) = server.end(rustix::process::Signal::TERM).await;
    assert!(!log.contains(ADMIN) && !log.contains(key));
}

#[tokio::test]
async fn a_tenant_that_was_inserted_or_edited_is_named_and_refused() {
    let place = Place::new().await;
    let server = place.serve().await;
    let mut made: Vec<(String, Made)> = Vec::new();
    for name in ["good", "edited", "swapped"] {
        let tenant = format!("--tenant={name}");
        let (_, key) = place.key(&[&tenant, "--new-tenant"]).await;
        let session = create(&client(&server, &key)).await.unwrap();
        made.push((key, session));
    }
    server.stop().await;
    let (good, mut edited) = (place.record("tenant/good"), place.record("tenant/edited"));
    let middle = edited.len() / 2;
    edited[middle] ^= 8;
    place.put_record(b"tenant/edited", &edited);
    place.put_record(b"tenant/swapped", &good);
    place.put_record(b"tenant/inserted", &good);
    place.put_record(b"nonsense", &good);
    let server = place.serve().await;
    let log = place.found(&server).await;
    for name in [
        "tenant/edited",
        "tenant/swapped",
        "tenant/inserted",
        "nonsense",
    ] {
        let named = format!("\"record\":\"{name}\"");
        assert!(log.contains(&named), "{name}: {log}");
    }
    for (at, name) in [(1, "edited"), (2, "swapped")] {
        let (key, session) = &made[at];
        let row = format!("\"row\":\"{name}/{}\"", session.id());
        assert!(log.contains(&row), "its session is named: {log}");
        assert_eq!(status(&server, key).await, 401);
        place.is_gone(&server, session).await;
    }
    let (key, session) = &made[0];
    assert_eq!(status(&server, key).await, 200);
    place.works(&server, session).await;
    let request = CreateSession::new()
        .secret("MINE", "value-0123456789abcdef")
        .secret_hosts([HOST]);
    client(&server, key).create_session(&request).await.unwrap();
    let ended = place.home.run(&["keys", "create", "--tenant=edited"]).await;
    ended.complains(1, &["record is refused"]);
    server.stop().await;
    // What is refused stays where it is.
    assert_eq!(place.record("tenant/edited"), edited);
}

#[tokio::test]
async fn a_rotation_of_the_sealing_keys_takes_the_tenants_along() {
    let place = Place::new().await;
    let server = place.serve().await;
    let (_, key) = place.key(&["--tenant=acme", "--new-tenant"]).await;
    let rotate = ["seal", "rotate", "--new-key"];
    let done = place.home.run(&rotate).await.expect(0).json();
    assert_eq!(done["sealed"], 1);
    let path = place.home.state("seal.key");
    let keys = fs::read_to_string(&path).unwrap();
    fs::write(&path, keys.lines().next().unwrap()).unwrap();
    kill(server).await;
    let server = place.serve().await;
    assert_eq!(status(&server, &key).await, 200);
    server.stop().await;
}
