//! The drain: what is in flight ends well, what is idle ends at once, what lasts is cut.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::support::{GOOD, Origin, Scene, contains, within};

const TARGET: &str = "good.example.com:443";

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {GOOD}\r\n\r\n")
}

/// An origin that holds back its answers to `/wait` until it is released, and never ends those to
/// `/endless`.
async fn holding() -> (Origin, watch::Sender<bool>) {
    let (release, gate) = watch::channel(false);
    let origin = Origin::script(move |request, conn| {
        let mut gate = gate.clone();
        async move {
            let line = request.line().to_owned();
            if line.contains("/endless") {
                conn.send("HTTP/1.1 200 OK\r\n\r\ndata: 0\n\n").await;
                return conn.wait_end().await;
            }
            if line.contains("/wait") {
                gate.wait_for(|open| *open).await.expect("the test goes on");
            }
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .await;
        }
    })
    .await;
    (origin, release)
}

#[tokio::test]
async fn exchanges_in_flight_finish_and_idle_connections_end() {
    let (origin, release) = holding().await;
    let mut scene = Scene::around(origin).await;
    let mut busy = scene.workload.connect(TARGET).await;
    busy.send(get("/wait")).await;
    let mut idle = scene.workload.connect(TARGET).await;
    idle.send(get("/")).await;
    assert_eq!(idle.answer().await.text(), "ok");
    let mut fresh = scene.workload.plain().await;
    let mut local = scene.workload.plain().await;
    local.send("GET /healthz HTTP/1.1\r\nHost: v\r\n\r\n").await;
    assert_eq!(local.answer().await.status, 200);
    scene
        .good
        .wait("the request", |all| contains(&all.concat(), "/wait"))
        .await;

    let (plain, tls) = (scene.vault.plain_addr(), scene.vault.tls_addr());
    let drained = scene.vault.drain();
    for conn in [&mut idle, &mut fresh, &mut local] {
        conn.expect_end().await;
    }
    assert!(
        !drained.is_finished(),
        "the exchange in flight is waited for"
    );
    release.send_replace(true);
    let answer = busy.answer().await;
    assert_eq!((answer.status, answer.text()), (200, "ok"));
    assert_eq!(answer.header("connection"), Some("close"));
    busy.expect_end().await;
    within("the drain", drained).await.expect("drained");
    for address in [plain, tls] {
        assert!(
            TcpStream::connect(address).await.is_err(),
            "nothing listens on {address}"
        );
    }
    let lines = scene.vault.audit_log().lines();
    let ended = lines
        .iter()
        .find(|line| line["path"] == "/wait")
        .expect("a record");
    assert_eq!(
        (&ended["decision"], &ended["status"]),
        (&"allowed".into(), &200.into())
    );
    let tunnels = lines
        .iter()
        .filter(|line| line["event"] == "tunnel")
        .count();
    assert_eq!(tunnels, 2, "every record is written before the drain ends");
}

#[tokio::test]
async fn what_outlasts_the_deadline_is_cut() {
    let (origin, _release) = holding().await;
    let mut scene = Scene::with_good(
        origin,
        |vault| vault.config(|config| config.limits.drain_timeout = Duration::from_millis(200)),
        |request| request.scrub_responses(false),
    )
    .await;
    let mut stream = scene.workload.connect(TARGET).await;
    stream.send(get("/endless")).await;
    stream.take_until(b"data: 0\n\n").await;
    let mut waiting = scene.workload.connect(TARGET).await;
    waiting.send(get("/wait")).await;
    scene
        .good
        .wait("both requests", |all| contains(&all.concat(), "/wait"))
        .await;

    within("the drain", scene.vault.drain())
        .await
        .expect("drained");
    let (rest, end) = stream.rest_and_end().await;
    assert!(
        rest.is_empty() && end.is_err(),
        "a cut, not an end in good order"
    );
    waiting.expect_end().await;
    // The other one does not read before it is released.
    scene.good.wait_ended(1).await;
    let lines = scene.vault.audit_log().lines();
    for path in ["/endless", "/wait"] {
        let records: Vec<_> = lines.iter().filter(|line| line["path"] == path).collect();
        assert_eq!(records.len(), 1, "{path}: {lines:#?}");
        assert_eq!(records[0]["decision"], "aborted", "{path}");
    }
}

#[tokio::test]
async fn a_drain_without_work_is_over_at_once() {
    let mut scene = Scene::new().await;
    let idle = scene.workload.connect(TARGET).await;
    within("the drain", scene.vault.drain())
        .await
        .expect("drained");
    drop(idle);
}
