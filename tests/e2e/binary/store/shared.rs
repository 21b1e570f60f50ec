//! Two processes on one shared store: what one does holds on the other, and what both say.

use super::{Made, Place, TARGET};
use crate::binary::get;
use crate::support::{Redis, Relay, within};

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
    let relay = Relay::to(&redis).await;
    let url = relay.url().replace("://", "://:canary-0123456789abcdef@");
    let (one, two) = (Place::new().await, Place::new().await);
    let (one, two) = (at(one, &url), at(two, &url));
    let a = one.serve().await;
    copy(&one, &two);
    let b = two.serve().await;
    let made = one.create(&a).await;
    two.works(&b, &made).await;
    let other = two.create(&b).await;
    one.works(&a, &other).await;
    let ca = get(a.plain(), "/v1/ca.pem").await;
    assert_eq!(ca.text(), get(b.plain(), "/v1/ca.pem").await.text());
    // Deleted on one, dead on the other, with what is open.
    let workload = two.workload(&b, &made).await;
    let mut open = workload.tunnel(TARGET).await;
    one.client(&a)
        .delete_session(made.id())
        .await
        .expect("a deletion");
    let _ended = within("the end of the tunnel", open.rest_and_end()).await;
    is_gone_soon(&two, &b, &made).await;
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

async fn is_gone_soon(place: &Place, server: &super::Server, made: &Made) {
    let workload = place.workload(server, made).await;
    within("a 407", async {
        loop {
            let mut conn = workload.plain().await;
            if workload.ask(&mut conn, TARGET).await.status == 407 {
                return;
            }
        }
    })
    .await;
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
