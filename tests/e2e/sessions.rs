//! Sessions through the SDK: made, read, changed and ended, and what that means for open tunnels.

use std::collections::HashSet;

use oshu_vault_sdk::{Client, CreateSession, Error, ListSessions, SecretSpec, UpdateSession};
use tokio::sync::watch;

use crate::support::{GOOD, Origin, REAL, SIDE, Scene, Vault, contains, soon};

const TARGET: &str = "good.example.com:443";
const NEW: &str = "rotated-value-9876543210";

fn get(host: &str, token: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\nX-Key: {token}\r\n\r\n")
}

#[tokio::test]
async fn a_session_is_shown_without_what_is_secret() {
    let scene = Scene::session(|request| {
        request
            .secret(
                "OTHER",
                SecretSpec::new("other-value-0123456789")
                    .hosts([SIDE])
                    .inject(["query"]),
            )
            .ttl_seconds(120)
            .max_lifetime_seconds(240)
            .metadata("sandbox", "sb_1")
    })
    .await;
    let (sdk, created) = (scene.vault.sdk(), &scene.session);
    assert!(created.session_id.starts_with("sess_") && created.token.starts_with("tok_"));
    assert_eq!(created.proxy_url, scene.vault.proxy_url_tls(created));
    assert_eq!(
        created.proxy_url_plain,
        Some(scene.vault.proxy_url(created))
    );
    scene.alive("a session").await;

    let session = sdk
        .get_session(&created.session_id)
        .await
        .expect("a session");
    assert_eq!(session.session_id, created.session_id);
    assert_eq!(session.created_at, created.created_at);
    assert_eq!(
        (session.ttl_seconds, session.max_lifetime_seconds),
        (120, 240)
    );
    assert_eq!(
        session.allowed_egress,
        Some(vec![GOOD.to_owned(), SIDE.to_owned()])
    );
    assert_eq!(session.secret_hosts, Some(vec![GOOD.to_owned()]));
    assert_eq!(session.metadata["sandbox"], "sb_1");
    let names: Vec<_> = session
        .secrets
        .iter()
        .map(|secret| secret.name.as_str())
        .collect();
    assert_eq!(names, ["EXAMPLE_KEY", "OTHER"]);
    assert_eq!(
        session.secrets[1].hosts.as_deref(),
        Some(&[SIDE.to_owned()][..])
    );
    assert_eq!(
        session.secrets[1].inject.as_deref(),
        Some(&["query".to_owned()][..])
    );
    assert_eq!(session.counter("exchanges"), Some(1));
    assert_eq!(session.counter("swapped"), Some(1));

    // The bytes of the answers, not what the SDK makes of them.
    let mut conn = scene.workload.plain().await;
    let key = crate::support::API_KEY;
    for path in [
        format!("/v1/sessions/{}", created.session_id),
        "/v1/sessions".to_owned(),
    ] {
        conn.send(format!(
            "GET {path} HTTP/1.1\r\nHost: v\r\nx-api-key: {key}\r\n\r\n"
        ))
        .await;
        let answer = conn.answer().await;
        assert_eq!(answer.status, 200, "{path}");
        for hidden in [
            REAL,
            "other-value",
            &created.token,
            scene.token(),
            "SEALED_",
        ] {
            assert!(!contains(&answer.raw, hidden), "{path}: {hidden}");
        }
    }
}

#[tokio::test]
async fn a_session_without_lists_reads_as_one() {
    let vault = Vault::builder().start().await;
    let created = vault.session(&CreateSession::new()).await;
    let session = vault
        .sdk()
        .get_session(&created.session_id)
        .await
        .expect("a session");
    assert_eq!(session.allowed_egress, None);
    assert!(session.secret_hosts.is_none() && session.secrets.is_empty());
    let patched = vault
        .sdk()
        .update_session(&created.session_id, &UpdateSession::new())
        .await;
    assert!(patched.expect("a patch").sealed_secrets.is_empty());
    // In developer mode a secret without a scope goes anywhere, and that is said.
    let open = vault
        .session(&CreateSession::new().secret("MINE", REAL))
        .await;
    assert_eq!(open.warnings.len(), 1, "{:?}", open.warnings);
    let listed = vault
        .sdk()
        .list_sessions(ListSessions::default())
        .await
        .expect("a list");
    assert_eq!(listed.sessions.len(), 2);
}

#[tokio::test]
async fn sessions_are_listed_page_by_page_and_all_distinct() {
    let vault = Vault::builder().start().await;
    let (sdk, mut ids, mut tokens) = (vault.sdk(), HashSet::new(), HashSet::new());
    for _ in 0..25 {
        let created = vault
            .session(&CreateSession::new().secret("MINE", REAL))
            .await;
        tokens.insert(created.token.clone());
        tokens.insert(created.sealed_secrets["MINE"].clone());
        ids.insert(created.session_id);
    }
    assert_eq!((ids.len(), tokens.len()), (25, 50));
    let (mut seen, mut cursor, mut pages) = (HashSet::new(), None, 0);
    loop {
        let page = sdk
            .list_sessions(ListSessions {
                limit: Some(10),
                cursor,
            })
            .await
            .expect("a page");
        seen.extend(page.sessions.into_iter().map(|session| session.session_id));
        pages += 1;
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!((seen, pages), (ids, 3));
}

#[tokio::test]
async fn what_cannot_be_enforced_is_refused_with_every_field() {
    let vault = Vault::builder().dev(false).start().await;
    let sdk = vault.sdk();
    let request = CreateSession::new()
        .secret("SHORT", SecretSpec::new("short").hosts([GOOD]))
        .secret(
            "BROKEN",
            SecretSpec::new("broken-value\r\nX: 1").hosts([GOOD]),
        )
        .secret("NOWHERE", REAL)
        .secret("AWS_SECRET_ACCESS_KEY", REAL)
        .secret("WILD", SecretSpec::new(REAL).hosts(["*.example.com"]))
        .allowed_egress(["*", "*.com", "10.0.0.0/8", GOOD])
        .ttl_seconds(59);
    let error = sdk.create_session(&request).await.expect_err("bad fields");
    assert!(matches!(error, Error::Validation(_)), "{error:?}");
    let found: Vec<_> = error
        .field_errors()
        .iter()
        .map(|e| (e.field.as_str(), e.code.as_str()))
        .collect();
    for expected in [
        ("secrets.SHORT.value", "secret_too_short"),
        ("secrets.BROKEN.value", "secret_has_control_character"),
        ("secrets.NOWHERE", "secret_unscoped"),
        ("secrets.AWS_SECRET_ACCESS_KEY", "secret_signs"),
    ] {
        assert!(found.contains(&expected), "{expected:?} in {found:?}");
    }
    for prefix in [
        "secrets.WILD.hosts",
        "allowed_egress[0]",
        "allowed_egress[1]",
        "allowed_egress[2]",
        "ttl_seconds",
    ] {
        assert!(
            found.iter().any(|(field, _)| field.starts_with(prefix)),
            "{prefix} in {found:?}"
        );
    }
    assert!(!format!("{error} {error:?}").contains("broken-value"));
    let listed = sdk
        .list_sessions(ListSessions::default())
        .await
        .expect("a list");
    assert!(listed.sessions.is_empty());
}

#[tokio::test]
async fn only_the_api_key_opens_the_api() {
    let scene = Scene::new().await;
    let base = format!("http://{}", scene.vault.plain_addr());
    for key in [
        "ovk_wrong",
        &scene.session.token,
        &format!("{}x", crate::support::API_KEY),
    ] {
        let sdk = Client::builder(&base, key).build().expect("a client");
        let error = sdk
            .get_session(&scene.session.session_id)
            .await
            .expect_err("refused");
        assert!(matches!(error, Error::Authentication(_)), "{error:?}");
        let error = sdk
            .delete_session(&scene.session.session_id)
            .await
            .expect_err("refused");
        assert_eq!(error.status(), Some(401));
    }
    let sdk = scene.vault.sdk();
    let unknown = format!("sess_{}", "0".repeat(32));
    for id in [unknown.as_str(), "sess_1", "x"] {
        assert!(
            matches!(sdk.get_session(id).await, Err(Error::NotFound(_))),
            "{id}"
        );
    }
    scene.alive("wrong API keys").await;
}

#[tokio::test]
async fn a_creation_with_one_key_happens_once() {
    let vault = Vault::builder().start().await;
    let (sdk, request) = (vault.sdk(), CreateSession::new());
    let first = sdk
        .create_session_once(&request, "key-1")
        .await
        .expect("a session");
    let error = sdk
        .create_session_once(&request, "key-1")
        .await
        .expect_err("a repeat");
    assert_eq!(
        (error.status(), error.code()),
        (Some(409), Some("already_created"))
    );
    let second = sdk
        .create_session_once(&request, "key-2")
        .await
        .expect("a session");
    assert_ne!(first.session_id, second.session_id);
}

#[tokio::test]
async fn a_patch_changes_the_very_next_request_of_an_open_tunnel() {
    let scene = Scene::new().await;
    let (sdk, id) = (scene.vault.sdk(), &scene.session.session_id);
    let token = scene.token().to_owned();
    let mut conn = scene.workload.connect(TARGET).await;
    let mut patch = async |patch: UpdateSession, sent: &str, expected: &str| {
        let session = sdk.update_session(id, &patch).await.expect("a patch");
        scene.good.forget();
        conn.send(get(GOOD, sent)).await;
        assert_eq!(conn.answer().await.status, 200, "{patch:?}");
        let received = String::from_utf8(scene.good.bytes()).expect("text");
        assert_eq!(received, get(GOOD, expected), "{patch:?}");
        session
    };
    let none = patch(UpdateSession::new().metadata("a", "b"), &token, REAL).await;
    assert!(none.sealed_secrets.is_empty());
    let rotated = patch(UpdateSession::new().secret("EXAMPLE_KEY", NEW), &token, NEW).await;
    assert!(
        rotated.sealed_secrets.is_empty(),
        "a rotated secret keeps its sealed token"
    );
    let other = UpdateSession::new().rescope_secret("EXAMPLE_KEY", [SIDE]);
    patch(other, &token, &token).await;
    patch(
        UpdateSession::new().rescope_secret("EXAMPLE_KEY", [GOOD]),
        &token,
        NEW,
    )
    .await;
    patch(UpdateSession::new().inject(["query"]), &token, &token).await;
    patch(UpdateSession::new().reset("inject"), &token, NEW).await;
    patch(
        UpdateSession::new().remove_secret("EXAMPLE_KEY"),
        &token,
        &token,
    )
    .await;
    let again = UpdateSession::new().secret("EXAMPLE_KEY", SecretSpec::new(REAL).hosts([GOOD]));
    let again = patch(again, &token, &token).await;
    let fresh = &again.sealed_secrets["EXAMPLE_KEY"];
    assert_ne!(
        *fresh, token,
        "a removed name does not come back under its old token"
    );
    patch(UpdateSession::new(), fresh, REAL).await;
    let added = UpdateSession::new().secret("ADDED", SecretSpec::new(NEW).hosts([GOOD]));
    let added = patch(added, fresh, REAL).await;
    assert_eq!(added.sealed_secrets.len(), 1);
    patch(UpdateSession::new(), &added.sealed_secrets["ADDED"], NEW).await;
    // A patch with a bad field changes nothing at all.
    let bad = UpdateSession::new()
        .secret("EXAMPLE_KEY", NEW)
        .ttl_seconds(1);
    let error = sdk.update_session(id, &bad).await.expect_err("a bad field");
    assert_eq!(error.status(), Some(422));
    patch(UpdateSession::new(), fresh, REAL).await;
}

/// An origin that begins an answer and never ends it.
async fn endless() -> Origin {
    Origin::script(|request, conn| async move {
        if request.line().contains("/endless") {
            conn.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 0\n\n")
                .await;
            return conn.wait_end().await;
        }
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .await;
    })
    .await
}

#[tokio::test]
async fn narrowing_cuts_what_left_the_policy_and_nothing_else() {
    let scene = Scene::unscrubbed(endless().await).await;
    let (sdk, id) = (scene.vault.sdk(), &scene.session.session_id);
    let mut idle = scene.workload.connect(TARGET).await;
    let mut busy = scene.workload.connect(TARGET).await;
    busy.send(format!("GET /endless HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"))
        .await;
    busy.take_until(b"data: 0\n\n").await;
    let mut kept = scene.workload.connect("side.example.com:443").await;
    kept.send(get(SIDE, "x")).await;
    assert_eq!(kept.answer().await.status, 200);

    let patch = UpdateSession::new().allowed_egress([SIDE]);
    sdk.update_session(id, &patch).await.expect("a patch");
    idle.expect_end().await;
    let (rest, end) = busy.rest_and_end().await;
    assert!(
        rest.is_empty() && end.is_err(),
        "a stream that is cut looks cut"
    );
    scene.good.wait_ended(1).await;
    assert_eq!(
        scene.workload.refused(TARGET).await.code(),
        "host_not_allowed"
    );
    kept.send(get(SIDE, "y")).await;
    assert_eq!(
        kept.answer().await.status,
        200,
        "what is still allowed goes on"
    );

    let patch = UpdateSession::new().allowed_egress([GOOD]);
    sdk.update_session(id, &patch).await.expect("a patch");
    kept.expect_end().await;
    scene.alive("a wider policy").await;
}

#[tokio::test]
async fn case_62_a_deleted_session_ends_at_once_everywhere() {
    let origin = endless().await;
    let scene = Scene::with_good(
        origin,
        |v| v,
        |request| request.allow_plaintext(true).scrub_responses(false),
    )
    .await;
    let (sdk, id) = (scene.vault.sdk(), &scene.session.session_id);
    let mut idle = scene.workload.connect(TARGET).await;
    let mut busy = scene.workload.connect(TARGET).await;
    busy.send(format!("GET /endless HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"))
        .await;
    busy.take_until(b"data: 0\n\n").await;
    let mut silent = scene.workload.tunnel(TARGET).await;
    let mut pooled = scene.workload.connect(TARGET).await;
    pooled.send(get(GOOD, "x")).await;
    assert_eq!(pooled.answer().await.status, 200);

    sdk.delete_session(id).await.expect("deleted");
    let (rest, end) = soon("the end of all that is open", async {
        for conn in [&mut idle, &mut silent, &mut pooled] {
            conn.expect_end().await;
        }
        let ended = busy.rest_and_end().await;
        scene.good.wait_ended(scene.good.connections()).await;
        ended
    })
    .await;
    assert!(
        rest.is_empty() && end.is_err(),
        "a stream that is cut looks cut"
    );
    scene.good.forget();

    assert_eq!(scene.workload.refused(TARGET).await.status, 407);
    let plain = scene.workload.get(&format!("http://{GOOD}/"), &[]).await;
    assert_eq!(plain.status, 407);
    scene.good.expect_nothing("a deleted session");
    assert!(matches!(sdk.get_session(id).await, Err(Error::NotFound(_))));
    assert!(matches!(
        sdk.update_session(id, &UpdateSession::new()).await,
        Err(Error::NotFound(_))
    ));
    sdk.delete_session(id).await.expect("gone already counts");
    let listed = sdk
        .list_sessions(ListSessions::default())
        .await
        .expect("a list");
    assert!(listed.sessions.is_empty());
    // Another session goes on.
    let other = scene.vault.session(&Scene::request()).await;
    let mut conn = scene.vault.workload(&other).connect(TARGET).await;
    conn.send(get(GOOD, "x")).await;
    assert_eq!(conn.answer().await.status, 200);
}

#[tokio::test]
async fn a_plain_connection_ends_with_its_session_and_a_new_one_is_not_served() {
    let origin = Origin::builder().plain().echo_ok().await;
    let scene = Scene::around(origin).await;
    let mut conn = scene.workload.plain().await;
    let line = scene.workload.authorization();
    let request = format!("GET http://{GOOD}/ HTTP/1.1\r\nHost: {GOOD}\r\n{line}\r\n");
    conn.send(&request).await;
    assert_eq!(conn.answer().await.status, 200);
    scene
        .vault
        .sdk()
        .delete_session(&scene.session.session_id)
        .await
        .expect("deleted");
    scene.good.forget();
    conn.expect_end().await;
    let mut conn = scene.workload.plain().await;
    conn.send(&request).await;
    assert_eq!(conn.answer().await.status, 407);
    scene.good.expect_nothing("a deleted session");
}

#[tokio::test]
async fn a_plain_exchange_in_flight_is_cut_as_well() {
    for delete in [true, false] {
        let origin = Origin::builder().plain().raw(|conn| async move {
            conn.read_head().await.expect("a head");
            conn.send("HTTP/1.1 200 OK\r\n\r\ndata: 0\n\n").await;
        });
        let scene = Scene::unscrubbed(origin.await).await;
        let (sdk, id) = (scene.vault.sdk(), &scene.session.session_id);
        let mut conn = scene.workload.plain().await;
        let line = scene.workload.authorization();
        conn.send(format!(
            "GET http://{GOOD}/ HTTP/1.1\r\nHost: {GOOD}\r\n{line}\r\n"
        ))
        .await;
        conn.take_until(b"data: 0\n\n").await;
        if delete {
            sdk.delete_session(id).await.expect("deleted");
        } else {
            let patch = UpdateSession::new().allowed_egress([SIDE]);
            sdk.update_session(id, &patch).await.expect("a patch");
        }
        let (rest, end) = conn.rest_and_end().await;
        assert!(
            rest.is_empty() && end.is_err(),
            "a body that ends with its connection is cut"
        );
        scene.good.wait_ended(1).await;
    }
}

#[tokio::test]
async fn a_session_that_is_deleted_while_an_answer_is_awaited_gets_none() {
    let (release, gate) = watch::channel(false);
    let origin = Origin::script(move |_request, conn| {
        let mut gate = gate.clone();
        async move {
            gate.wait_for(|open| *open).await.expect("the test goes on");
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .await;
        }
    })
    .await;
    let scene = Scene::around(origin).await;
    let mut conn = scene.workload.connect(TARGET).await;
    conn.send(get(GOOD, scene.token())).await;
    scene
        .good
        .wait("the request", |all| contains(&all.concat(), REAL))
        .await;
    scene
        .vault
        .sdk()
        .delete_session(&scene.session.session_id)
        .await
        .expect("deleted");
    release.send_replace(true);
    conn.expect_end().await;
}

#[tokio::test]
async fn lifetimes_are_told_bounded_and_restarted() {
    let scene = Scene::session(|request| request.ttl_seconds(60).max_lifetime_seconds(60)).await;
    let sdk = scene.vault.sdk();
    let id = &scene.session.session_id;
    let longer = UpdateSession::new()
        .ttl_seconds(7200)
        .max_lifetime_seconds(7200);
    let patched = sdk.update_session(id, &longer).await.expect("a patch");
    assert_eq!(patched.ttl_seconds, 7200);
    assert!(
        patched.expires_at > scene.session.expires_at,
        "{}",
        patched.expires_at
    );
    for (ttl, max) in [(59, 3600), (3600, 59), (2_592_001, 2_592_000), (0, 3600)] {
        let request = CreateSession::new()
            .ttl_seconds(ttl)
            .max_lifetime_seconds(max);
        let error = sdk
            .create_session(&request)
            .await
            .expect_err("out of range");
        assert_eq!(error.status(), Some(422), "{ttl} {max}");
    }
}
