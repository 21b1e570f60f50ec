//! Audit records in a file: chained over starts, kills, files and keys, and verified by a command.

use std::fs;
use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::full::{limit, serve_with};
use super::{Made, Place, TARGET, kill};
use crate::binary::{Ended, Server};
use crate::support::{contains, within};

pub(super) const FILE: (&str, &str) = ("OSHU_VAULT__AUDIT__SINK", "file");

impl Place {
    pub(super) async fn serve_audited(&self, more: &[(&str, &str)]) -> Server {
        let variables = [&[FILE], more].concat();
        self.home.serve(&self.line(), &variables).await
    }

    fn audit(&self) -> PathBuf {
        self.home.state("audit.jsonl")
    }

    pub(super) fn audit_text(&self) -> String {
        fs::read_to_string(self.audit()).expect("the audit file")
    }

    pub(super) async fn verify(&self, more: &[&str]) -> Ended {
        self.home.run(&[&["audit", "verify"], more].concat()).await
    }

    /// Runs a verification that finds all whole, and returns what it prints.
    pub(super) async fn whole(&self) -> Value {
        self.verify(&[]).await.expect(0).json()
    }

    /// Waits until the file has a text.
    pub(super) async fn written(&self, text: &str) {
        within("a line of the audit file", async {
            while !self.audit_text().contains(text) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Makes a session, uses it, and returns it.
    async fn play(&self, server: &Server) -> Made {
        let made = self.create(server).await;
        self.works(server, &made).await;
        made
    }
}

#[tokio::test]
async fn records_go_to_a_file_that_verifies_and_no_value_is_in_it() {
    let place = Place::new().await;
    let server = place.serve_audited(&[]).await;
    let made = place.play(&server).await;
    place.written("\"event\":\"exchange\"").await;
    let open = place.whole().await;
    assert_eq!(
        (&open["end"], &open["certain"]),
        (&json!("open"), &json!(1))
    );
    let (code, events, log) = server.end(Signal::TERM).await;
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(events, [] as [Value; 0], "stdout has no records");
    assert!(log.contains("audit file closed"), "{log}");
    let text = place.audit_text();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).expect("a JSON line");
        assert!(line["seq"].is_u64() && line["mac"].is_string(), "{line}");
    }
    for event in ["session", "exchange", "tunnel"] {
        assert!(
            text.contains(&format!("{{\"event\":\"{event}\"")),
            "{event}"
        );
    }
    for hidden in [&made.value, &made.session.token, "SEALED_"] {
        assert!(!contains(text.as_bytes(), hidden), "{hidden}");
    }
    let closed = place.verify(&["--closed"]).await.expect(0).json();
    let lines = text.lines().count();
    assert_eq!(closed["end"], "closed");
    assert_eq!(
        (&closed["last"], &closed["certain"]),
        (&json!(lines), &json!(lines))
    );
    assert_eq!(closed["crashes"], 0);
    // A changed line, a removed one, a cut-off end, and a file on its own.
    let changed = text.replacen("\"status\":200", "\"status\":201", 1);
    fs::write(place.audit(), changed).unwrap();
    let found = place
        .verify(&[])
        .await
        .complains(1, &["the line was changed"]);
    assert!(found.stderr.contains("audit.jsonl:"), "{}", found.stderr);
    let file = place.audit().display().to_string();
    place
        .verify(&[&file])
        .await
        .complains(1, &["the line was changed"]);
    let removed: Vec<&str> = text.lines().skip(1).collect();
    fs::write(place.audit(), removed.join("\n")).unwrap();
    place.verify(&[]).await.complains(1, &["audit.jsonl:1: "]);
    let cut: String = text.split_inclusive('\n').take(2).collect();
    fs::write(place.audit(), cut).unwrap();
    place.verify(&[]).await.complains(1, &["were cut off"]);
    assert_eq!(
        place.verify(&[&file]).await.expect(0).json()["end"],
        "unknown"
    );
    fs::remove_file(place.audit()).unwrap();
    place
        .verify(&[])
        .await
        .complains(1, &["audit.jsonl cannot be read"]);
}

#[tokio::test]
async fn a_kill_is_told_and_the_chain_goes_on() {
    let place = Place::new().await;
    for round in 1..=3 {
        let server = place.serve_audited(&[]).await;
        place.play(&server).await;
        place.written("\"event\":\"exchange\"").await;
        kill(server).await;
        // As if the last line had been under way.
        let mut text = place.audit_text();
        text.push_str("{\"event\":\"tunn");
        fs::write(place.audit(), text).unwrap();
        let found = place.whole().await;
        assert_eq!(found["end"], "open");
        assert_eq!(
            (&found["torn_bytes"], &found["crashes"]),
            (&json!(14), &json!(round - 1))
        );
        place.verify(&["--closed"]).await.expect(1);
    }
    let server = place.serve_audited(&[]).await;
    server.stop().await;
    let found = place.verify(&["--closed"]).await.expect(0).json();
    assert_eq!(
        (&found["crashes"], &found["torn_bytes"]),
        (&json!(3), &json!(0))
    );
}

#[tokio::test]
async fn full_files_are_put_aside_and_only_so_many_kept() {
    let place = Place::new().await;
    let size = ("OSHU_VAULT__AUDIT__ROTATE_BYTES", "4096");
    let server = place
        .serve_audited(&[size, ("OSHU_VAULT__AUDIT__KEEP", "2")])
        .await;
    let made = place.create(&server).await;
    let workload = place.workload(&server, &made).await;
    // Refused ones have a record too.
    for _ in 0..80 {
        assert_eq!(workload.refused("evil.example.net:443").await.status, 403);
    }
    place.works(&server, &made).await;
    server.stop().await;
    let found = place.verify(&["--closed"]).await.expect(0).json();
    assert_eq!(found["files"], 3, "{found}");
    assert!(found["first"].as_u64() > Some(1), "{found}");
    let folder = fs::read_dir(place.home.state(".")).unwrap();
    let names = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut full: Vec<_> = names
        .filter(|name| name.starts_with("audit.jsonl.0"))
        .collect();
    full.sort();
    assert_eq!(full.len(), 2);
    fs::remove_file(place.home.state(&full[0])).unwrap();
    place
        .verify(&[])
        .await
        .complains(1, &["are missing: files were removed"]);
}

#[tokio::test]
async fn a_rotation_of_keys_begins_a_segment() {
    let place = Place::new().await;
    let server = place.serve_audited(&[]).await;
    place.play(&server).await;
    place
        .home
        .run(&["seal", "rotate", "--new-key"])
        .await
        .expect(0);
    place.play(&server).await;
    server.stop().await;
    let text = place.audit_text();
    let begins = text.lines().filter(|line| line.contains("\"audit_begin\""));
    assert_eq!(begins.count(), 2);
    let found = place.verify(&["--closed"]).await.expect(0).json();
    assert_eq!(found["end"], "closed");
    // Without the old key its segment cannot be verified.
    let keys = fs::read_to_string(place.home.state("seal.key")).unwrap();
    let newest = keys.lines().next().unwrap().to_owned();
    fs::write(place.home.state("seal.key"), newest).unwrap();
    place
        .verify(&[])
        .await
        .complains(1, &["audit.jsonl:1: ", "not in the keyring"]);
}

#[tokio::test]
async fn a_full_disk_delays_lines_and_loses_none() {
    let place = Place::new().await;
    // The store must not be what fails.
    let server = serve_with(&place, &[FILE, ("OSHU_VAULT__STORE__URL", "memory")]).await;
    let made = place.play(&server).await;
    place.written("\"event\":\"exchange\"").await;
    limit(&server, Some(0));
    let workload = place.workload(&server, &made).await;
    for _ in 0..5 {
        assert_eq!(workload.refused("evil.example.net:443").await.status, 403);
    }
    server
        .log
        .wait("the complaint", |log| {
            log.contains("audit sink cannot be written to")
        })
        .await;
    place.works(&server, &made).await;
    limit(&server, None);
    server
        .log
        .wait("the end of it", |log| {
            log.contains("can be written to again")
        })
        .await;
    server.stop().await;
    let denied = place.audit_text();
    let denied = denied
        .lines()
        .filter(|line| line.contains("\"host_not_allowed\""));
    assert_eq!(denied.count(), 5);
    let found = place.verify(&["--closed"]).await.expect(0).json();
    assert_eq!((&found["lost"], &found["crashes"]), (&json!(0), &json!(0)));
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_a_clear_error() {
    let place = Place::new().await;
    let server = place.serve_audited(&[]).await;
    let own = [FILE, ("OSHU_VAULT__STORE__URL", "memory")];
    let refused = |variables: Vec<(&'static str, &'static str)>| {
        let place = &place;
        async move { place.home.run_with(&place.line(), &variables, "").await }
    };
    let second = refused(own.to_vec()).await;
    second.complains(
        1,
        &["audit.file: ", "another process writes this audit file"],
    );
    let workload = place.workload(&server, &place.create(&server).await).await;
    assert_eq!(
        workload
            .refused(TARGET.replace("api", "x").as_str())
            .await
            .status,
        403
    );
    server.stop().await;
    // Its head was changed, and after that taken away.
    let head = place.home.state("audit.jsonl.head");
    let good = fs::read_to_string(&head).unwrap();
    fs::write(&head, good.replace("closed", "open")).unwrap();
    let changed = refused(own.to_vec()).await;
    changed.complains(
        1,
        &["audit.file: ", "audit.jsonl.head was changed", "aside"],
    );
    fs::remove_file(&head).unwrap();
    place.serve_audited(&[]).await.stop().await;
    for more in [&[][..], &["--closed"]] {
        let found = place.verify(more).await;
        found.complains(1, &["audit.jsonl:", "found no head at this start"]);
    }
    fs::write(&head, good).unwrap();
    fs::write(place.audit(), "somebody else's\n").unwrap();
    let foreign = refused(own.to_vec()).await;
    foreign.complains(
        1,
        &["audit.file: ", "does not end in a line of an audit file"],
    );
    let folder = place.home.text("folder");
    fs::create_dir(&folder).unwrap();
    let variables = [FILE, own[1], ("OSHU_VAULT__AUDIT__FILE", folder.as_str())];
    let refused = place.home.run_with(&place.line(), &variables, "").await;
    refused.complains(1, &["audit.file: ", "cannot be used"]);
}
