//! Two processes on one shared store: what one does holds on the other, and what both say.
//!
//! How soon a deletion bites on the other one is held as it is promised by `make soak`.

use std::time::{Duration, Instant};

use super::{Place, TARGET};
use crate::binary::{Server, get};
use crate::support::{Redis, Relay, Workload, soon, within};

/// What both nodes have to have alike.
const ALIKE: [&str; 4] = ["ca.pem", "ca.key", "seal.key", "api.key"];

pub(super) fn at(mut place: Place, url: &str) -> Place {
    // In a file: where a password would be.
    let file = place.home.write("store-url", url);
    place.line.push(format!("--store-file={file}"));
    place
}

/// Copies what both nodes have to have alike.
fn copy(from: &Place, to: &Place) {
    let folder = to.home.state("");
    std::fs::create_dir_all(&folder).expect("a folder");
    super::super::mode(&folder, 0o700);
    for name in ALIKE {
        let target = to.home.state(name);
        std::fs::copy(from.home.state(name), &target).expect("a copy");
        super::super::mode(&target, 0o600);
    }
}

#[tokio::test]
async fn two_processes_share_sessions_and_name_a_forged_row() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let () = redis
        .ask(&[
            b"CONFIG",
            b"SET",
            b"requirepass",
            b"canary-0123456789abcdef",
        ])
        .await;
    let (relay, relay_two) = (Relay::to(&redis).await, Relay::to(&redis).await);
    let [url, url_two] = [&relay, &relay_two].map(|relay| {
        let url = relay.url();
        url.replace("://", "://:canary-0123456789abcdef@")
    });
    let (one, two) = (Place::new().await, Place::new().await);
    let (one, two) = (at(one, &url), at(two, &url_two));
    let a = one.serve().await;
    copy(&one, &two);
    let b = two.serve().await;
    let made = one.create(&a).await;
    two.works(&b, &made).await;
    let other = two.create(&b).await;
    one.works(&a, &other).await;
    let ca = get(a.plain(), "/v1/ca.pem").await;
    assert_eq!(ca.text(), get(b.plain(), "/v1/ca.pem").await.text());
    // Deleted on one, dead on the other, with what is open; also where that is not announced.
    for is_silent in [false, true] {
        if is_silent {
            relay_two.silence();
        }
        let deleted = deleted_elsewhere((&one, &a), (&two, &b));
        soon("the end of what was open on the other", deleted).await;
    }
    // A row that was changed by hand is named, and what lives goes on.
    let login = [b"canary-0123456789abcdef".as_slice()];
    redis
        .forge(login[0], b"{oshu-vault}:sessions", other.id().as_bytes())
        .await;
    let late = {
        let three = at(Place::new().await, &url);
        copy(&one, &three);
        (three.serve().await, three)
    };
    late.1.is_gone(&late.0, &other).await;
    let named = |log: &str| log.contains("is refused and not served") && log.contains(other.id());
    let log = late.0.log.wait("the row's name", named).await;
    assert!(
        log.contains("flushes every change before it answers"),
        "{log}"
    );
    assert!(!log.contains("canary"), "{log}");
    one.works(&a, &other).await;
    two.works(&b, &other).await;
    for server in [a, b, late.0] {
        let (code, _events, log) = server.end(rustix::process::Signal::TERM).await;
        assert_eq!(code, Some(0), "{log}");
        assert!(!log.contains("canary"), "{log}");
    }
}

/// Deletes a session on one node that has a tunnel open on the other; returns how long it was until
/// that was cut and whoever came again was told that there is nothing.
async fn deleted_elsewhere(one: (&Place, &Server), two: (&Place, &Server)) -> Duration {
    let made = one.0.create(one.1).await;
    let workload = two.0.workload(two.1, &made).await;
    let mut open = workload.tunnel(TARGET).await;
    let client = one.0.client(one.1);
    client.delete_session(made.id()).await.expect("a deletion");
    let begin = Instant::now();
    let _ended = open.rest_and_end().await;
    is_gone_soon(&workload).await;
    begin.elapsed()
}

async fn is_gone_soon(workload: &Workload) {
    within("a 407", async {
        loop {
            let mut conn = workload.plain().await;
            // From some of them on, too many have failed.
            if [407, 429].contains(&workload.ask(&mut conn, TARGET).await.status) {
                return;
            }
        }
    })
    .await;
}

/// Measures how soon a deletion bites on the other process: within two seconds, with and without its
/// announcement.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures: make soak"]
async fn soak_deletions_reach_the_other_process_within_two_seconds() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let (relay, relay_two) = (Relay::to(&redis).await, Relay::to(&redis).await);
    let (one, two) = (Place::new().await, Place::new().await);
    let (one, two) = (at(one, &relay.url()), at(two, &relay_two.url()));
    let a = one.serve().await;
    copy(&one, &two);
    let b = two.serve().await;
    for is_silent in [false, true] {
        if is_silent {
            relay_two.silence();
        }
        let mut times = Vec::new();
        for _ in 0..50 {
            let took = deleted_elsewhere((&one, &a), (&two, &b)).await;
            assert!(
                took < Duration::from_secs(2),
                "announced {}: {took:?}",
                !is_silent
            );
            times.push(took);
        }
        times.sort();
        println!(
            "two processes, announced {}: median {:?}, worst {:?}",
            !is_silent, times[25], times[49]
        );
    }
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn a_start_says_what_an_answer_is_worth_and_fails_without_the_store() {
    for (settings, expected) in [
        (&["--appendonly", "no"][..], "not append-only"),
        (
            &["--appendonly", "yes", "--appendfsync", "no"],
            "flushes when its system pleases",
        ),
        (
            &["--appendonly", "yes", "--appendfsync", "everysec"],
            "flushes once a second",
        ),
        (
            &["--appendonly", "yes", "--rename-command", "CONFIG", ""],
            "cannot be known",
        ),
        (
            &["--appendonly", "yes", "--maxmemory-policy", "allkeys-lru"],
            "throws rows out",
        ),
    ] {
        let Some(redis) = Redis::start_with(settings).await else {
            return;
        };
        let relay = Relay::to(&redis).await;
        let place = at(Place::new().await, &relay.url());
        let server = place.serve().await;
        let log = server.log.wait(expected, |log| log.contains(expected));
        let log = log.await;
        let throws_out = settings.contains(&"--maxmemory-policy");
        assert_eq!(log.contains("throws rows out"), throws_out, "{log}");
        assert!(!log.contains("in clear over a network"), "{log}");
        relay.shut(true);
        place.becomes(&server, 503).await;
        let ended = place.refused().await;
        ended.complains(1, &["the store cannot be used"]);
        relay.shut(false);
        place.becomes(&server, 200).await;
        server.stop().await;
    }
}

#[tokio::test]
async fn a_wrong_password_is_an_error_at_the_start_and_an_outage_later() {
    const WORDS: [&str; 2] = ["canary-0123456789abcdef", "canary-fedcba9876543210"];
    let Some(redis) = Redis::start().await else {
        return;
    };
    let [first, second] = WORDS.map(str::as_bytes);
    let () = redis.ask(&[b"CONFIG", b"SET", b"requirepass", first]).await;
    let relay = Relay::to(&redis).await;
    let with = |word: &str| relay.url().replace("://", &format!("://:{word}@"));
    for url in [relay.url(), with(WORDS[1])] {
        let place = at(Place::new().await, &url);
        let ended = place.refused().await;
        ended.complains(1, &["the store cannot be used"]);
    }
    let place = at(Place::new().await, &with(WORDS[0]));
    let server = place.serve().await;
    let made = place.create(&server).await;
    // Who is connected stays so; whoever has to connect again is refused.
    let change: [&[u8]; 4] = [b"CONFIG", b"SET", b"requirepass", second];
    let () = redis.ask_as(first, &change).await;
    relay.shut(true);
    place.becomes(&server, 503).await;
    let before = relay.connections();
    relay.shut(false);
    within("attempts to come back", async {
        while relay.connections() < before + 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    place.becomes(&server, 503).await;
    let refused = super::create(&place.client(&server)).await;
    let refused = refused.err().expect("a refusal");
    assert_eq!(refused.status(), Some(503), "{refused}");
    let () = redis
        .ask_as(second, &[b"CONFIG", b"SET", b"requirepass", first])
        .await;
    place.becomes(&server, 200).await;
    place.works(&server, &made).await;
    let made = place.create(&server).await;
    place.works(&server, &made).await;
    let (code, _events, log) = server.end(rustix::process::Signal::TERM).await;
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("canary"), "{log}");
}
