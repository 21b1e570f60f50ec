//! The keys that seal the store: where they come from, wrong ones, and their rotation.

use std::fs;

use data_encoding::BASE64;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde_json::Value;

use super::{Made, Place, kill};
use crate::binary::{Home, mode, mode_of};

const SESSIONS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("sessions");
const WRONG: &str = "the sealing keys are not those of the store";

impl Place {
    fn keys(&self) -> String {
        fs::read_to_string(self.home.state("seal.key")).unwrap()
    }

    fn set_keys(&self, text: &str) {
        let path = self.home.state("seal.key");
        fs::write(&path, text).unwrap();
        mode(&path, 0o600);
    }

    /// Returns the names of all files of the state directory, in order.
    fn names(&self) -> Vec<std::ffi::OsString> {
        let entries = fs::read_dir(self.home.state("")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }

    async fn rotate(&self, more: &[&str]) -> Value {
        let line = [&["seal", "rotate"], more].concat();
        self.home.run(&line).await.expect(0).json()
    }

    /// Returns the ids of the keys that rows are under, in hex.
    fn under(&self) -> Vec<String> {
        let file = Database::open(self.store()).unwrap();
        let read = file.begin_read().unwrap();
        let rows = read.open_table(SESSIONS).unwrap();
        let ids = rows.iter().unwrap().map(|row| {
            let (_, sealed) = row.unwrap();
            data_encoding::HEXLOWER.encode(&sealed.value()[1..5])
        });
        let mut ids: Vec<String> = ids.collect();
        ids.sort();
        ids.dedup();
        ids
    }
}

#[tokio::test]
async fn a_wrong_or_missing_key_is_a_clear_error() {
    let place = Place::new().await;
    let server = place.serve().await;
    let made = place.create(&server).await;
    server.stop().await;
    let path = place.home.state("seal.key");
    assert_eq!(mode_of(&path), 0o600);
    let right = place.keys();
    assert_eq!(right.trim_end().len(), 64);
    let other = "11".repeat(32);
    for (text, parts) in [
        (other.as_str(), [WRONG, "not in the keyring"]),
        (
            "",
            ["seal.key holds no sealing keys", "there is no sealing key"],
        ),
        (
            "canary-0123456789abcdef",
            ["seal.key holds no sealing keys", "line 1"],
        ),
    ] {
        place.set_keys(text);
        place.refused().await.complains(1, &parts);
    }
    fs::remove_file(&path).unwrap();
    // Not even --dev makes a new one beside a store that another one sealed.
    let parts = ["seal.key is not there", "oshu-vault seal generate"];
    place.refused().await.complains(1, &parts);
    fs::write(&path, &right).unwrap();
    mode(&path, 0o644);
    place
        .refused()
        .await
        .complains(1, &["seal.key: ", "chmod 600"]);
    mode(&path, 0o600);
    let server = place.serve().await;
    place.works(&server, &made).await;
    server.stop().await;
}

#[tokio::test]
async fn keys_come_from_a_file_the_environment_or_a_command() {
    let place = Place::new().await;
    let key = BASE64.encode(&[7; 32]);
    let file = place.home.write("keys", format!("# ours\n{key}\n"));
    let by_file = place
        .home
        .write("a.toml", format!("seal.key_file = '{file}'"));
    let command = format!("seal.key_command = 'cat {file}'");
    let by_command = place.home.write("b.toml", command);
    let broken = place
        .home
        .write("c.toml", "seal.key_command = 'echo canary; exit 3'");
    let with = |config: &str| {
        [&place.line()[..], &["--config", config]]
            .concat()
            .join("\n")
    };
    let line = with(&by_file);
    let server = place
        .home
        .serve(&line.lines().collect::<Vec<_>>(), &[])
        .await;
    let made = place.create(&server).await;
    server.stop().await;
    assert!(!place.home.state("seal.key").exists());
    let line = with(&by_command);
    let server = place
        .home
        .serve(&line.lines().collect::<Vec<_>>(), &[])
        .await;
    place.works(&server, &made).await;
    server.stop().await;
    let variables = [("OSHU_VAULT_SEAL_KEY", key.as_str())];
    let server = place.home.serve(&place.line(), &variables).await;
    place.works(&server, &made).await;
    server.stop().await;
    let line = with(&broken);
    let ended = place.home.run(&line.lines().collect::<Vec<_>>()).await;
    ended.complains(1, &["seal.key_command: the command failed: exit status: 3"]);
    let line = with(&by_file);
    let both = place
        .home
        .run_with(&line.lines().collect::<Vec<_>>(), &variables, "")
        .await;
    both.complains(
        64,
        &["seal.key_file: is given beside seal.key (from OSHU_VAULT_SEAL_KEY)"],
    );
}

#[tokio::test]
async fn without_dev_a_key_is_made_on_purpose() {
    let home = Home::new();
    home.run(&["ca", "generate"]).await.expect(0);
    let line = ["serve", "--listen=127.0.0.1:0", "--admin-listen=none"];
    let variables = [("SECRETS_PROXY_API_KEY", crate::binary::CANARY)];
    let ended = home.run_with(&line, &variables, "").await;
    ended.complains(1, &["seal.key is not there", "`oshu-vault seal generate`"]);
    let made = home.run(&["seal", "generate"]).await.expect(0).json();
    assert_eq!(mode_of(&home.state("seal.key")), 0o600);
    let text = fs::read_to_string(home.state("seal.key")).unwrap();
    assert!(!made.to_string().contains(text.trim_end()));
    home.run(&["seal", "generate"])
        .await
        .complains(1, &["seal.key cannot be written"]);
    home.serve(&line, &variables).await.stop().await;
    // Memory needs none.
    let elsewhere = Home::new();
    elsewhere.run(&["ca", "generate"]).await.expect(0);
    let line = [&line[..], &["--store=memory"]].concat();
    elsewhere.serve(&line, &variables).await.stop().await;
    assert!(!elsewhere.state("sessions.redb").exists());
    let ended = elsewhere.run(&["seal", "rotate", "--store=memory"]).await;
    ended.complains(64, &["store.url: memory"]);
    let ended = elsewhere.run(&["seal", "rotate"]).await;
    ended.complains(1, &["sessions.redb is not there"]);
}

#[tokio::test]
async fn keys_are_rotated_while_serving_and_the_old_one_can_go() {
    let place = Place::new().await;
    let server = place.serve().await;
    let mut all: Vec<Made> = Vec::new();
    for _ in 0..5 {
        all.push(place.create(&server).await);
    }
    let (old, names) = (place.keys(), place.names());
    let done = place.rotate(&["--new-key"]).await;
    let keys = place.keys();
    assert!(keys.ends_with(&old) && keys.lines().count() == 2);
    assert_eq!(mode_of(&place.home.state("seal.key")), 0o600);
    assert_eq!((&done["sealed"], &done["refused"]), (&5.into(), &0.into()));
    assert_eq!((&done["changed"], &place.names()), (&true.into(), &names));
    assert_eq!(done["unneeded"].as_array().unwrap().len(), 1);
    all.push(place.create(&server).await);
    for made in &all {
        place.works(&server, made).await;
    }
    let again = place.rotate(&[]).await;
    assert_eq!(
        (&again["sealed"], &again["current"]),
        (&0.into(), &done["current"])
    );
    // A keyring that cannot open what is there is not taken, by the running server neither.
    place.set_keys(&"22".repeat(32));
    let ended = place.home.run(&["seal", "rotate"]).await;
    ended.complains(1, &[WRONG, "not in the keyring"]);
    place.works(&server, &all[0]).await;
    place.set_keys(keys.lines().next().unwrap());
    kill(server).await;
    assert_eq!(place.under(), [done["current"].as_str().unwrap()]);
    let server = place.serve().await;
    for made in &all {
        place.works(&server, made).await;
    }
    server.stop().await;
    // The socket is the owner's, and goes with its server.
    assert!(!place.home.state("sessions.redb.sock").exists());
}

#[tokio::test]
async fn an_interrupted_rotation_goes_on_at_the_next_start() {
    let place = Place::new().await;
    let server = place.serve().await;
    let mut all: Vec<Made> = Vec::new();
    for _ in 0..3 {
        all.push(place.create(&server).await);
    }
    kill(server).await;
    // The new key is in the file, and nothing is sealed under it yet.
    let (old, new) = (place.keys(), "33".repeat(32));
    place.set_keys(&format!("{new}\n{old}"));
    let server = place.serve().await;
    let is_done = |log: &str| log.contains("sealed anew");
    server.log.wait("the rest of the rotation", is_done).await;
    for made in &all {
        place.works(&server, made).await;
    }
    kill(server).await;
    assert_eq!(place.under().len(), 1);
    place.set_keys(&old);
    place.refused().await.complains(1, &[WRONG]);
    place.set_keys(&new);
    let server = place.serve().await;
    place.works(&server, &all[0]).await;
    server.stop().await;
}

#[tokio::test]
async fn a_key_that_nothing_was_sealed_under_is_taken_before_another_is_made() {
    let place = Place::new().await;
    let server = place.serve().await;
    let made = place.create(&server).await;
    // An earlier attempt got as far as the file.
    let keys = format!("{}\n{}", "33".repeat(32), place.keys());
    place.set_keys(&keys);
    let done = place.rotate(&["--new-key"]).await;
    assert_eq!(
        (&done["sealed"], &done["changed"]),
        (&1.into(), &true.into())
    );
    assert_eq!(place.keys(), keys);
    // The next one is a fresh one.
    let before = place.keys();
    place.rotate(&["--new-key"]).await;
    let keys = place.keys();
    assert!(keys.ends_with(&before) && keys.lines().count() == 3);
    kill(server).await;
    let keys = format!("{}\n{keys}", "44".repeat(32));
    place.set_keys(&keys);
    let done = place.rotate(&["--new-key"]).await;
    assert_eq!(
        (&done["sealed"], &done["changed"]),
        (&1.into(), &true.into())
    );
    assert_eq!(place.keys(), keys);
    let server = place.serve().await;
    place.works(&server, &made).await;
    server.stop().await;
}

#[tokio::test]
async fn rotations_at_once_lose_no_key() {
    let place = Place::new().await;
    let server = place.serve().await;
    let made = place.create(&server).await;
    let line = ["seal", "rotate", "--new-key"];
    let all = (0..4).map(|_| place.home.run(&line));
    let mut done = 0;
    for ended in futures_util::future::join_all(all).await {
        if ended.code == Some(0) {
            done += 1;
        } else {
            ended.complains(1, &["another `seal rotate --new-key` is at work"]);
        }
    }
    assert!(done > 0);
    assert_eq!(place.keys().lines().count(), 1 + done, "one for each");
    kill(server).await;
    let server = place.serve().await;
    place.works(&server, &made).await;
    server.stop().await;
}

#[tokio::test]
async fn keys_are_rotated_without_a_server_as_well() {
    let place = Place::new().await;
    let server = place.serve().await;
    let made = place.create(&server).await;
    // A server that was killed leaves its socket behind.
    kill(server).await;
    let done = place.rotate(&["--new-key"]).await;
    assert_eq!((&done["sealed"], &done["refused"]), (&1.into(), &0.into()));
    place.set_keys(place.keys().lines().next().unwrap());
    let server = place.serve().await;
    place.works(&server, &made).await;
    server.stop().await;
}
