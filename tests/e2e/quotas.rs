//! Quotas: what one session has too much of is its own affair, and no other session's.

use std::time::{Duration, Instant};

use oshu_vault::config::Limits;
use serde_json::json;
use tokio::sync::watch;

use crate::support::{Answer, Conn, GOOD, H2Origin, H2Scene, Origin, Scene, contains};

const TARGET: &str = "good.example.com:443";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {GOOD}\r\n\r\n")
}

/// Checks that an answer is a refusal for a quota, with what an agent needs to go on.
fn is_limited(answer: &Answer, code: &str) {
    assert_eq!((answer.status, answer.code().as_str()), (429, code));
    let wait: u64 = answer
        .header("retry-after")
        .expect("a time to wait")
        .parse()
        .expect("seconds");
    assert!(wait >= 1);
    assert!(answer.json()["ask"].is_string(), "{}", answer.text());
    assert!(answer.header("proxy-authenticate").is_none());
}

/// A good origin that answers `/held…` when the test says so, and everything else at once.
async fn gated(change: fn(&mut Limits)) -> (Scene, watch::Sender<bool>) {
    let (release, gate) = watch::channel(false);
    let origin = Origin::script(move |request, conn| {
        let mut gate = gate.clone();
        async move {
            if request.line().contains("/held") {
                gate.wait_for(|open| *open).await.expect("the test goes on");
            }
            conn.send(OK).await;
        }
    })
    .await;
    let scene = Scene::with_good(
        origin,
        |vault| vault.config(|config| change(&mut config.limits)),
        |request| request,
    )
    .await;
    (scene, release)
}

async fn arrived(scene: &Scene, count: usize) {
    scene
        .good
        .wait("the held requests", |all| {
            let one = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).matches("/held").count();
            all.iter().map(one).sum::<usize>() == count
        })
        .await;
}

async fn hold(scene: &Scene, path: &str) -> Conn {
    let mut conn = scene.workload.connect(TARGET).await;
    conn.send(get(path)).await;
    conn
}

#[tokio::test]
async fn tunnels_over_the_limit_are_429_until_one_ends() {
    let scene =
        Scene::vault(|vault| vault.config(|config| config.limits.session_tunnels = 2)).await;
    let first = scene.workload.tunnel(TARGET).await;
    let second = scene.workload.tunnel(TARGET).await;
    let mut third = scene.workload.plain().await;
    let answer = scene.workload.ask(&mut third, TARGET).await;
    let length = answer.header("content-length").expect("a length");
    let body = third.take(length.parse().expect("a length")).await;
    is_limited(&Answer { body, ..answer }, "session_tunnel_limit");
    // Another session is not asked, and the connection that was refused may try again.
    let other = scene.vault.session(&Scene::request()).await;
    let theirs = scene.vault.workload(&other).tunnel(TARGET).await;
    drop(first);
    loop {
        let answer = scene.workload.ask(&mut third, TARGET).await;
        if answer.status == 200 {
            break;
        }
        let length = answer.header("content-length").expect("a length");
        third.take(length.parse().expect("a length")).await;
    }
    drop((second, third, theirs));
    let lines = scene.vault.audit_log().wait("the record", |lines| {
        lines
            .iter()
            .any(|line| line["reason"] == "session_tunnel_limit" && line["status"] == 429)
    });
    let record = lines.await;
    let record = record
        .iter()
        .find(|line| line["reason"] == "session_tunnel_limit")
        .expect("a record");
    assert_eq!(
        (&record["event"], &record["decision"], &record["session"]),
        (
            &json!("tunnel"),
            &json!("denied"),
            &json!(scene.session.session_id)
        )
    );
}

#[tokio::test]
async fn exchanges_over_the_limit_wait_their_turn_and_are_429_if_it_does_not_come() {
    let (scene, release) = gated(|limits| {
        limits.session_exchanges = 2;
        limits.session_wait = Duration::from_millis(200);
    })
    .await;
    let mut held = [hold(&scene, "/held/1").await, hold(&scene, "/held/2").await];
    arrived(&scene, 2).await;
    let mut third = hold(&scene, "/held/3").await;
    is_limited(&third.answer().await, "session_exchange_limit");
    // The same connection may ask again; a body that was not read ends it.
    third.send(get("/held/4")).await;
    is_limited(&third.answer().await, "session_exchange_limit");
    let bytes = scene.good.bytes();
    assert!(!contains(&bytes, "/held/3") && !contains(&bytes, "/held/4"));
    release.send_replace(true);
    for conn in &mut held {
        assert_eq!(conn.answer().await.text(), "ok");
    }
    third.send(get("/held/5")).await;
    assert_eq!(third.answer().await.text(), "ok");
    scene.alive("a quota").await;
}

#[tokio::test]
async fn an_exchange_whose_turn_comes_in_time_is_not_refused() {
    // The wait has no end that a test would reach.
    let (scene, release) = gated(|limits| {
        limits.session_exchanges = 1;
        limits.session_wait = Duration::from_hours(1);
    })
    .await;
    let mut first = hold(&scene, "/held/1").await;
    arrived(&scene, 1).await;
    let mut second = hold(&scene, "/second").await;
    let mut gone = hold(&scene, "/gone").await;
    gone.finish().await;
    assert!(gone.rest().await.is_empty(), "who leaves is not waited for");
    release.send_replace(true);
    assert_eq!(first.answer().await.text(), "ok");
    assert_eq!(second.answer().await.text(), "ok");
    assert!(!contains(&scene.good.bytes(), "/gone"));
    scene.alive("a turn").await;
}

#[tokio::test]
async fn a_stream_over_the_limit_is_429_and_its_connection_goes_on() {
    let (release, gate) = watch::channel(false);
    let origin = H2Origin::script(move |mut exchange| {
        let mut gate = gate.clone();
        async move {
            if exchange.path().starts_with("/held") {
                gate.wait_for(|open| *open).await.expect("the test goes on");
            }
            exchange.answer(200, "ok").await;
        }
    })
    .await;
    let play = H2Scene::with(origin, |vault| {
        vault.config(|config| {
            config.limits.session_exchanges = 2;
            config.limits.session_wait = Duration::from_millis(200);
        })
    })
    .await;
    let (client, other) = (play.h2().await, play.h2().await);
    let held = [client.begin("/held/1").await, client.begin("/held/2").await];
    play.two.wait("the held ones", |all| all.len() == 2).await;
    let refused = other.get("/more").await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (429, "session_exchange_limit")
    );
    assert!(refused.header("retry-after").is_some());
    assert_eq!(play.two.requests().len(), 2);
    release.send_replace(true);
    for stream in held {
        assert_eq!(stream.answer().await.expect("an answer").text(), "ok");
    }
    assert_eq!(other.get("/after").await.text(), "ok");
    play.alive("streams over the quota").await;
}

#[tokio::test]
async fn a_connection_is_not_offered_more_streams_than_its_session_may_have() {
    let scene =
        Scene::vault(|vault| vault.config(|config| config.limits.session_exchanges = 7)).await;
    let client = scene.workload.h2(TARGET).await;
    assert_eq!(client.get("/").await.status, 200);
    assert_eq!(client.max_streams(), 7);
}

#[tokio::test]
async fn requests_faster_than_the_rate_are_429() {
    const BURST: u64 = 5;
    let scene = Scene::vault(|vault| {
        vault.config(|config| {
            config.limits.session_requests_per_second = Some(1);
            config.limits.session_burst = u32::try_from(BURST).expect("small");
        })
    })
    .await;
    let mut conn = scene.workload.connect(TARGET).await;
    let began = Instant::now();
    let mut taken = 0;
    let refused = loop {
        conn.send(get("/")).await;
        let answer = conn.answer().await;
        if answer.status != 200 {
            break answer;
        }
        taken += 1;
        // A slow machine fills the bucket while it asks.
        let most = BURST + 1 + began.elapsed().as_secs();
        assert!(taken <= most, "{taken} in {:?}", began.elapsed());
    };
    assert!(taken >= BURST, "{taken}");
    is_limited(&refused, "session_rate_limit");
    let other = scene.vault.session(&Scene::request()).await;
    let answer = scene
        .vault
        .workload(&other)
        .get(&format!("https://{GOOD}/"), &[])
        .await;
    assert_eq!(answer.status, 200, "another session has a rate of its own");
}

#[tokio::test]
async fn case_78_a_session_that_floods_does_not_keep_another_waiting() {
    let (scene, release) = gated(|limits| {
        limits.session_exchanges = 4;
        limits.session_tunnels = 40;
        limits.session_wait = Duration::from_hours(1);
    })
    .await;
    let other = scene.vault.session(&Scene::request()).await;
    let other = scene.vault.workload(&other);
    // One session has all that it may have in flight, and as much again waiting for that.
    let mut flood = Vec::new();
    for index in 0..40 {
        flood.push(hold(&scene, &format!("/held/{index}")).await);
    }
    arrived(&scene, 4).await;
    assert_eq!(scene.workload.refused(TARGET).await.status, 429);
    // The other is served as if the first were not there, as often as it asks: not one exchange of
    // the flood ends before it.
    for index in 0..20 {
        let answer = other
            .get(&format!("https://{GOOD}/other/{index}"), &[])
            .await;
        assert_eq!(answer.text(), "ok");
        arrived(&scene, 4).await;
    }
    release.send_replace(true);
    for conn in &mut flood {
        assert_eq!(conn.answer().await.text(), "ok");
    }
    drop(flood);
    let answer = other.get(&format!("https://{GOOD}/last"), &[]).await;
    assert_eq!(answer.text(), "ok");
}

#[tokio::test]
async fn a_session_keeps_only_so_many_upstream_connections() {
    let (release, gate) = watch::channel(0_usize);
    let origin = Origin::script(move |request, conn| {
        let mut gate = gate.clone();
        async move {
            let round = usize::from(request.line().contains("/two")) + 1;
            gate.wait_for(|open| *open >= round)
                .await
                .expect("the test goes on");
            conn.send(OK).await;
        }
    })
    .await;
    let scene = Scene::with_good(
        origin,
        |vault| vault.config(|config| config.limits.session_pool = 1),
        |request| request,
    )
    .await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(scene.workload.connect(TARGET).await);
    }
    for (round, path) in [(1, "/one"), (2, "/two")] {
        for conn in &mut clients {
            conn.send(get(path)).await;
        }
        scene
            .good
            .wait("three requests", |all| {
                let text = String::from_utf8_lossy(&all.concat()).into_owned();
                text.matches(path).count() == 3
            })
            .await;
        release.send_replace(round);
        for conn in &mut clients {
            assert_eq!(conn.answer().await.text(), "ok");
        }
        // All but the one that is kept are closed.
        scene.good.wait_ended(2 * round).await;
    }
    // Of the first three one was kept; the second round needed two more.
    assert_eq!(scene.good.connections(), 5);
}
