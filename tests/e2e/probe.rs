//! The name that the proxy answers itself: for every session, for nobody else, and nothing leaves.

use crate::support::{Scene, contains, show};

const HOST: &str = "doctor.oshu-vault.invalid";
const TARGET: &str = "doctor.oshu-vault.invalid:443";

#[tokio::test]
async fn a_session_that_may_reach_nothing_is_answered() {
    let scene = Scene::session(|session| session.allowed_egress(Vec::<String>::new())).await;
    for mut conn in [
        scene.workload.connect(TARGET).await,
        scene.workload.connect_secure(TARGET).await,
    ] {
        // A token in a header has no meaning here: nothing is swapped.
        let token = scene.token();
        conn.send(format!(
            "GET /a?b HTTP/1.1\r\nHost: {HOST}\r\nX-Api-Key: {token}\r\n\r\n"
        ))
        .await;
        let answer = conn.answer().await;
        assert_eq!(
            (answer.status, answer.body.as_slice()),
            (200, &b"oshu-vault\n"[..])
        );
        assert_eq!(answer.header("connection"), Some("close"));
    }
    let lines = scene.vault.audit_log();
    let lines = lines
        .wait("both tunnels and exchanges", |lines| {
            let ours = |line: &&serde_json::Value| line["host"] == HOST;
            lines.iter().filter(ours).count() == 4
        })
        .await;
    let exchange = lines
        .iter()
        .find(|line| line["event"] == "exchange")
        .expect("an exchange");
    assert_eq!(exchange["reason"], "probe");
    assert_eq!(exchange["decision"], "allowed");
    assert_eq!(exchange["path"], "/a");
    assert_eq!(exchange["session"], scene.session.session_id.as_str());
    for origin in [&scene.good, &scene.side, &scene.evil] {
        origin.expect_nothing("a probe");
    }
}

#[tokio::test]
async fn a_head_has_no_body_and_a_tunnel_one_exchange() {
    let scene = Scene::new().await;
    let mut conn = scene.workload.connect(TARGET).await;
    let request = format!("HEAD / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    conn.send(format!("{request}{request}")).await;
    let all = conn.rest().await;
    assert!(all.ends_with(b"\r\n\r\n"), "{}", show(&all));
    assert_eq!(
        all.windows(9).filter(|part| part == b"HTTP/1.1 ").count(),
        1,
        "{}",
        show(&all)
    );
    assert!(contains(&all, "Content-Length: 11\r\n"));
}

#[tokio::test]
async fn nobody_else_and_nothing_near_it_is_answered() {
    let scene = Scene::session(|session| session.allowed_egress(Vec::<String>::new())).await;
    for target in [
        "doctor.oshu-vault.invalid:80",
        "oshu-vault.invalid:443",
        "x.doctor.oshu-vault.invalid:443",
    ] {
        assert_eq!(scene.workload.refused(target).await.status, 403, "{target}");
    }
    let mut conn = scene.workload.plain().await;
    conn.send(format!(
        "CONNECT {TARGET} HTTP/1.1\r\nHost: {TARGET}\r\n\r\n"
    ))
    .await;
    assert_eq!(conn.answer().await.status, 407);
}

#[tokio::test]
async fn the_tunnel_ends_with_its_session() {
    let scene = Scene::new().await;
    let mut conn = scene.workload.connect(TARGET).await;
    let id = &scene.session.session_id;
    scene.vault.sdk().delete_session(id).await.expect("the end");
    conn.expect_end().await;
}
