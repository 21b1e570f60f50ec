//! Sealed tokens that were captured: who may use them, where, and for how long.

use oshu_vault_sdk::UpdateSession;
use serde_json::json;

use super::*;
use crate::support::EVIL;

#[tokio::test]
async fn another_host_session_or_place_gets_the_sealed_token_itself() {
    let scene = scene().await;
    let [access, refresh, id] = captured(&scene).await;
    let update = UpdateSession::new().allowed_egress([GOOD, SIDE, EVIL]);
    let vault = scene.vault.sdk();
    vault
        .update_session(&scene.session.session_id, &update)
        .await
        .expect("a patch");
    // A host that is none of the issuer's.
    let lines = format!("Authorization: Bearer {access}\r\n");
    let head = format!("GET / HTTP/1.1\r\nHost: {EVIL}\r\n{lines}\r\n");
    assert_eq!(scene.ask(EVIL, &head).await.status, 200);
    assert_eq!(String::from_utf8_lossy(&scene.evil.bytes()), head);
    // Other places of a request, and a refresh token anywhere but in a body.
    let heads = [
        format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\nX-Api-Key: {access}\r\n\r\n"),
        format!("GET /?t={access} HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"),
        format!("GET /{id} HTTP/1.1\r\nHost: {GOOD}\r\nCookie: t={id}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\nAuthorization: Bearer {refresh}\r\n\r\n"),
        format!("GET {PATH}?refresh_token={refresh} HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"),
    ];
    for head in heads {
        scene.good.forget();
        scene.ask(GOOD, &head).await;
        assert_eq!(String::from_utf8_lossy(&scene.good.bytes()), head);
    }
    // Another session of the same tenant, with the same rights.
    let other = scene.vault.session(&watching(Scene::request())).await;
    let workload = scene.vault.workload(&other);
    scene.good.forget();
    let mut conn = workload.connect(TARGET).await;
    let head = format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n{lines}\r\n");
    conn.send(&head).await;
    assert_eq!(conn.answer().await.status, 200);
    assert_eq!(String::from_utf8_lossy(&scene.good.bytes()), head);
    scene.alive("tokens where they do not belong").await;
}

#[tokio::test]
async fn a_new_token_replaces_the_older_of_its_kind() {
    let scene = scene().await;
    let first = captured(&scene).await;
    let mut conn = scene.workload.connect(TARGET).await;
    let body = json!({"access_token": "another-value-0123456789"}).to_string();
    let answer = told(&mut conn, PATH, json(&body)).await;
    let answer = answer.json();
    let second = answer["access_token"].as_str().expect("a token");
    assert_ne!(first[0], second);
    assert!(
        bearer(&scene, second)
            .await
            .contains("another-value-0123456789")
    );
    let old = bearer(&scene, &first[0]).await;
    assert!(old.contains(&first[0]) && !old.contains(ACCESS), "{old}");
    // The id token was not given anew.
    assert!(bearer(&scene, &first[2]).await.contains(ID));
    // The value that was replaced is scrubbed all the same.
    let echo = json(&format!("{{\"echo\":\"{ACCESS}\"}}"));
    assert_clean("a replaced token", &told(&mut conn, "/me", echo).await.raw);
    scene.alive("a new token").await;
}

#[tokio::test]
async fn a_captured_token_ends_with_its_endpoint_and_its_session() {
    let scene = scene().await;
    let [access, ..] = captured(&scene).await;
    let vault = scene.vault.sdk();
    let id = &scene.session.session_id;
    let shown = vault.get_session(id).await.expect("the session");
    let mut names: Vec<&str> = shown.captured.iter().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "access_token@good.example.com/v1/oauth/token",
            "id_token@good.example.com/v1/oauth/token",
            "refresh_token@good.example.com/v1/oauth/token",
        ]
    );
    assert_eq!(shown.capture, [endpoint()]);
    let shown = format!("{shown:?}");
    assert!(
        !shown.contains("SEALED_") && !shown.contains(ACCESS),
        "{shown}"
    );
    // A patch cannot name one, and changes nothing about those that are there.
    let names_one =
        UpdateSession::new().remove_secret("access_token@good.example.com/v1/oauth/token");
    vault.update_session(id, &names_one).await.expect("a patch");
    assert!(bearer(&scene, &access).await.contains(ACCESS));
    // An endpoint that is not watched any more takes its tokens with it, in open tunnels too.
    let mut conn = scene.workload.connect(TARGET).await;
    vault
        .update_session(id, &UpdateSession::new().reset("capture"))
        .await
        .expect("a patch");
    scene.good.forget();
    let head = format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\nAuthorization: Bearer {access}\r\n\r\n");
    conn.send(&head).await;
    assert_eq!(conn.answer().await.status, 200);
    assert_eq!(String::from_utf8_lossy(&scene.good.bytes()), head);
    let shown = vault.get_session(id).await.expect("the session");
    assert!(shown.captured.is_empty() && shown.capture.is_empty());
    scene.alive("an endpoint that is watched no more").await;
}

#[tokio::test]
async fn the_record_names_what_was_captured_and_no_value() {
    let scene = scene().await;
    let [access, ..] = captured(&scene).await;
    bearer(&scene, &access).await;
    let log = scene.vault.audit_log();
    let swapped = "access_token@good.example.com/v1/oauth/token";
    let lines = log
        .wait("two records", |lines| {
            lines.iter().any(|line| line["swapped"] == json!([swapped]))
        })
        .await;
    let own = lines
        .iter()
        .find(|line| line["path"] == PATH)
        .expect("a record");
    assert_eq!(
        own["captured"],
        json!(["access_token", "refresh_token", "id_token"])
    );
    assert_eq!(own["status"], 200);
    let raw = log.raw();
    assert_clean("the records", &raw);
    assert!(!contains(&raw, "SEALED_"), "{}", show(&raw));
}

#[tokio::test]
async fn a_known_endpoint_is_watched_without_a_word() {
    let claude = Origin::script(say).await;
    let address = claude.addr();
    let api = "api.anthropic.com";
    let scene = Scene::with(
        |vault| {
            let vault = vault.resolve("platform.claude.com", address);
            vault.resolve(api, address)
        },
        |session| {
            // What a session does not scrub is captured all the same.
            let session = session.scrub_responses(false);
            session.allowed_egress([GOOD, "platform.claude.com", api])
        },
    )
    .await;
    let mut conn = scene.workload.connect("platform.claude.com:443").await;
    let body = standard().replace("access-value", "sk-ant-oat01-access-value");
    conn.send(post("platform.claude.com", PATH, &json(&body)))
        .await;
    let answer = conn.answer().await;
    assert_clean("a known endpoint", &answer.raw);
    let [access, ..] = sealed(&answer.body);
    assert!(access.starts_with("sk-ant-oat01-SEALED_"), "{access}");
    claude.forget();
    let head = |token: &str| {
        format!("GET /v1/models HTTP/1.1\r\nHost: {api}\r\nAuthorization: Bearer {token}\r\n\r\n")
    };
    assert_eq!(scene.ask(api, head(&access)).await.status, 200);
    let expected = head(&format!("sk-ant-oat01-{ACCESS}"));
    assert_eq!(String::from_utf8_lossy(&claude.bytes()), expected);
    scene.alive("a known endpoint").await;
}

/// Writes a request to refresh, in JSON and as a form.
fn refreshes(token: &str) -> [(&'static str, String); 2] {
    let json = json!({"grant_type": "refresh_token", "refresh_token": token, "client_id": "c"});
    let form = format!("grant_type=refresh_token&refresh_token={token}&client_id=c");
    [
        ("application/json", json.to_string()),
        ("application/x-www-form-urlencoded", form),
    ]
}

fn refresh(path: &str, kind: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: {GOOD}\r\nContent-Type: {kind}\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
}

#[tokio::test]
async fn peer_49_a_refresh_token_goes_into_the_body_of_its_own_endpoint_and_nowhere_else() {
    // The endpoint gives two generations; each request's own bytes are on record.
    let good = Origin::script(|request, conn| async move {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let second = body.contains("grant_type") && body.contains(REFRESH);
        let said = if request.line().starts_with("GET ") || !request.line().contains(PATH) {
            message("200 OK", "", b"ok")
        } else if second {
            json(&standard().replace("value", "second"))
        } else {
            json(&standard())
        };
        conn.send(said).await;
    });
    let scene = Scene::with_good(good.await, |vault| vault, watching).await;
    for number in 0..2 {
        let first = captured(&scene).await;
        let (kind, body) = &refreshes(&first[1])[number];
        let mut conn = scene.workload.connect(TARGET).await;
        scene.good.forget();
        conn.send(refresh(PATH, kind, body)).await;
        let answer = conn.answer().await;
        let expected = refresh(PATH, kind, &refreshes(REFRESH)[number].1);
        assert_eq!(String::from_utf8_lossy(&scene.good.bytes()), expected);
        let second = sealed(&answer.body);
        assert!(!contains(&answer.raw, "-second-"), "{}", show(&answer.raw));
        let seen = bearer(&scene, &second[0]).await;
        assert!(seen.contains("access-second-0123456789-abcdef"), "{seen}");
        // The older one is a text by now, at its own endpoint too.
        scene.good.forget();
        let head = refresh(PATH, kind, body);
        conn.send(&head).await;
        conn.answer().await;
        assert_eq!(String::from_utf8_lossy(&scene.good.bytes()), head);
    }
    let [_, token, _] = captured(&scene).await;
    // Other paths, also those whose answers are captured from, and another host's same path.
    for path in [
        "/",
        "/v1/messages",
        "/anything://x/v1/oauth/token",
        "/v1/oauth/token/",
        "/v1/oauth/Token",
        "/v1/oauth/%74oken",
    ] {
        for (kind, body) in refreshes(&token) {
            scene.good.forget();
            let head = refresh(path, kind, &body);
            scene.ask(GOOD, &head).await;
            assert_eq!(String::from_utf8_lossy(&scene.good.bytes()), head);
        }
    }
    for (kind, body) in refreshes(&token) {
        scene.side.forget();
        let head = refresh(PATH, kind, &body).replace(GOOD, SIDE);
        assert_eq!(scene.ask(SIDE, &head).await.status, 200);
        assert_eq!(String::from_utf8_lossy(&scene.side.bytes()), head);
    }
    // Nor do the other tokens stand in that body, and no other session has it.
    let [access, refresh_token, id] = captured(&scene).await;
    for own in [&access, &id] {
        let (kind, body) = &refreshes(own)[0];
        scene.good.forget();
        let head = refresh(PATH, kind, body);
        scene.ask(GOOD, &head).await;
        assert_eq!(String::from_utf8_lossy(&scene.good.bytes()), head);
    }
    let other = scene.vault.session(&watching(Scene::request())).await;
    let mut conn = scene.vault.workload(&other).connect(TARGET).await;
    let (kind, body) = &refreshes(&refresh_token)[0];
    scene.good.forget();
    let head = refresh(PATH, kind, body);
    conn.send(&head).await;
    conn.answer().await;
    assert_eq!(String::from_utf8_lossy(&scene.good.bytes()), head);
    scene.alive("a refresh").await;
}

#[tokio::test]
async fn a_refresh_token_of_the_tenant_s_is_swapped_and_what_comes_back_is_captured() {
    let good = Origin::script(|request, conn| async move {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let said = if body.contains("tenant-refresh-0123456789") {
            json(&standard())
        } else {
            message("200 OK", "", b"")
        };
        conn.send(said).await;
    });
    let scene = Scene::with_good(
        good.await,
        |vault| vault,
        |session| {
            let own = oshu_vault_sdk::SecretSpec::new("tenant-refresh-0123456789");
            watching(session).secret("CLAUDE_REFRESH", own.hosts([GOOD]).inject(["body"]))
        },
    )
    .await;
    let token = &scene.session.sealed_secrets["CLAUDE_REFRESH"];
    for path in [PATH, "/v1/oauth/%74oken"] {
        let (kind, body) = &refreshes(token)[0];
        let answer = scene.ask(GOOD, refresh(path, kind, body)).await;
        assert_clean(path, &answer.raw);
        let [access, ..] = sealed(&answer.body);
        assert!(bearer(&scene, &access).await.contains(ACCESS));
    }
    scene.alive("a tenant's own").await;
}
