//! What a session says about scrubbing: off, too short, rotated, removed; and what is recorded.

use oshu_vault_sdk::UpdateSession;
use serde_json::{Value, json};

use super::{TARGET, assert_clean, get};
use crate::support::{GOOD, Origin, REAL, SIDE, Scene, contains};

const NEW: &str = "rotated-value-9876543210";

/// An origin that writes back the field with the key, and another text of the request.
async fn echo() -> Origin {
    Origin::script(|request, conn| async move {
        let key = request.header("x-key").unwrap_or_default();
        let more = request.header("x-more").unwrap_or_default();
        let length = key.len() + more.len() + 1;
        let head = format!("HTTP/1.1 200 OK\r\nX-Echo: {key}\r\nContent-Length: {length}\r\n\r\n");
        conn.send(format!("{head}{key} {more}")).await;
    })
    .await
}

#[tokio::test]
async fn a_session_may_do_without() {
    let scene = Scene::with_good(
        echo().await,
        |vault| vault,
        |session| session.scrub_responses(false),
    )
    .await;
    let received = scene.received(GOOD, "Accept-Encoding: exi\r\n").await;
    assert!(received.contains("Accept-Encoding: exi\r\n"), "{received}");
    let answer = scene.ask(GOOD, get(scene.token(), "/")).await;
    assert_eq!(answer.text(), format!("{REAL} "));
    assert_eq!(answer.header("x-echo"), Some(REAL));
    // A patch turns it on for the next request of an open tunnel.
    let mut conn = scene.workload.connect(TARGET).await;
    let sdk = scene.vault.sdk();
    let id = &scene.session.session_id;
    for (scrub, expected) in [(false, REAL), (true, scene.token()), (false, REAL)] {
        let patch = UpdateSession::new().scrub_responses(scrub);
        let session = sdk.update_session(id, &patch).await.expect("a patch");
        assert_eq!(session.scrub_responses, scrub);
        conn.send(get(scene.token(), "/")).await;
        assert_eq!(
            conn.answer().await.text(),
            format!("{expected} "),
            "{scrub}"
        );
    }
    scene.alive("a session without").await;
}

#[tokio::test]
async fn a_short_secret_is_not_scrubbed_and_that_is_said() {
    let short = "fifteen-bytes-x";
    let scene = Scene::with_good(
        echo().await,
        |vault| vault,
        |session| session.secret("SHORT_KEY", short),
    )
    .await;
    let warnings = &scene.session.warnings;
    assert!(
        warnings.iter().any(|it| it.contains("SHORT_KEY")),
        "{warnings:?}"
    );
    assert!(
        !warnings.iter().any(|it| it.contains("EXAMPLE_KEY")),
        "{warnings:?}"
    );
    let token = &scene.session.sealed_secrets["SHORT_KEY"];
    let answer = scene.ask(GOOD, get(token, "/")).await;
    assert_eq!(answer.text(), format!("{short} "));
    // A guess of it learns nothing: right and wrong look the same.
    for guess in [short, "fifteen-bytes-y"] {
        let head = format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\nX-More: {guess}\r\n\r\n");
        assert_eq!(scene.ask(GOOD, head).await.text(), format!(" {guess}"));
    }
    scene.alive("a short secret").await;
}

#[tokio::test]
async fn a_value_that_was_rotated_out_is_still_scrubbed() {
    let scene = Scene::around(echo().await).await;
    let sdk = scene.vault.sdk();
    let id = scene.session.session_id.clone();
    let mut conn = scene.workload.connect(TARGET).await;
    let both = |more: &str| {
        let token = scene.token();
        format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\nX-Key: {token}\r\nX-More: {more}\r\n\r\n")
    };
    let token = scene.token();
    for patch in [
        UpdateSession::new().secret("EXAMPLE_KEY", NEW),
        UpdateSession::new().rescope_secret("EXAMPLE_KEY", [SIDE]),
        UpdateSession::new().remove_secret("EXAMPLE_KEY"),
    ] {
        let _patched = sdk.update_session(&id, &patch).await.expect("a patch");
        for value in [REAL, NEW] {
            conn.send(both(value)).await;
            let answer = conn.answer().await;
            assert_clean(value, &answer.raw);
            assert!(!contains(&answer.raw, NEW), "{patch:?}: {}", answer.text());
            // A value that was never this secret's is somebody else's text.
            assert_eq!(
                answer.text(),
                format!("{token} {token}"),
                "{patch:?} {value}"
            );
        }
    }
    assert_eq!(scene.good.connections(), 1);
    let alive = sdk
        .update_session(&id, &UpdateSession::new().secret("OTHER", REAL))
        .await;
    assert!(alive.is_ok());
    conn.send(both("")).await;
    assert_eq!(conn.answer().await.status, 200);
}

#[tokio::test]
async fn what_was_scrubbed_is_recorded_by_name() {
    let scene = Scene::with_good(
        echo().await,
        |vault| vault,
        |session| session.secret("SECOND_KEY", NEW),
    )
    .await;
    let second = scene.session.sealed_secrets["SECOND_KEY"].clone();
    let mut conn = scene.workload.connect(TARGET).await;
    for (path, key) in [("/one", scene.token()), ("/two", &second), ("/none", "x")] {
        conn.send(get(key, path)).await;
        assert_eq!(conn.answer().await.status, 200);
    }
    let client = scene.workload.h2(TARGET).await;
    client.ask(("GET", "/h2"), &[("x-key", &second)], b"").await;
    client.vanish().await;
    let lines = scene.vault.audit_log().wait("four records", |lines| {
        lines
            .iter()
            .filter(|line| line["event"] == "exchange")
            .count()
            == 4
    });
    let lines = lines.await;
    for (path, expected) in [
        ("/one", json!(["EXAMPLE_KEY"])),
        ("/two", json!(["SECOND_KEY"])),
        ("/none", Value::Null),
        ("/h2", json!(["SECOND_KEY"])),
    ] {
        let line = lines.iter().find(|line| line["path"] == path);
        assert_eq!(line.expect("a record")["scrubbed"], expected, "{path}");
    }
    let text = scene.vault.audit_log().raw();
    assert!(!contains(&text, REAL) && !contains(&text, NEW));
    scene.alive("records").await;
}
