//! Tokens in path and query: left unless the session asks for it, percent-encoded where it does.

use crate::support::{GOOD, REAL, Scene, contains};

/// The value with everything but unreserved characters percent-encoded.
const ENCODED: &str = "real-value%2F0123456789%2Babcdef";

async fn arrives(scene: &Scene, sent: &str, expected: &str) {
    scene.good.forget();
    let target = scene.fill(sent);
    let answer = scene
        .ask(
            GOOD,
            format!("GET {target} HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"),
        )
        .await;
    assert_eq!(answer.status, 200, "{sent}");
    let expected = scene.fill(&expected.replace("{E}", ENCODED));
    let received = String::from_utf8(scene.good.bytes()).expect("text");
    assert_eq!(
        received,
        format!("GET {expected} HTTP/1.1\r\nHost: {GOOD}\r\n\r\n"),
        "{sent}"
    );
}

#[tokio::test]
async fn path_and_query_are_no_places_unless_asked_for() {
    let scene = Scene::new().await;
    for target in [
        "/p?key={T}",
        "/p/{T}/x",
        "/{T}?{T}",
        "/p?key=SEALED%5F00",
        "/%53EALED_",
    ] {
        arrives(&scene, target, target).await;
        assert!(!contains(&scene.good.bytes(), REAL), "{target}");
        scene.alive(target).await;
    }
}

#[tokio::test]
async fn the_query_and_nothing_else_is_swapped_where_asked_for() {
    let scene = Scene::session(|request| request.inject(["query"])).await;
    for (sent, expected) in [
        ("/p?key={T}", "/p?key={E}"),
        ("/p?{T}={T}&a", "/p?{E}={E}&a"),
        ("/p?a?/{T}/?", "/p?a?/{E}/?"),
        ("/{T}?k={T}", "/{T}?k={E}"),
        ("/p?key=%53{T}", "/p?key=%53{E}"),
    ] {
        arrives(&scene, sent, expected).await;
    }
    // The percent-encoded spelling of a token is never one: swapped always or never.
    let spelled = scene.token().replace('_', "%5F");
    arrives(
        &scene,
        &format!("/p?k={spelled}"),
        &format!("/p?k={spelled}"),
    )
    .await;
    let received = scene
        .received(GOOD, &scene.fill("X-Api-Key: {T}\r\n"))
        .await;
    assert!(
        !received.contains(REAL),
        "no header was asked for: {received}"
    );
}

#[tokio::test]
async fn the_path_and_nothing_else_is_swapped_where_asked_for() {
    let scene = Scene::session(|request| request.inject(["path", "header"])).await;
    for (sent, expected) in [
        ("/bot{T}/send?k={T}", "/bot{E}/send?k={T}"),
        ("/{T}", "/{E}"),
        ("/a/../{T}/%2e", "/a/../{E}/%2e"),
    ] {
        arrives(&scene, sent, expected).await;
    }
    scene.alive("path").await;
}

#[tokio::test]
async fn an_absolute_target_in_a_tunnel_is_brought_to_a_path_and_swapped() {
    let scene = Scene::session(|request| request.inject(["path", "query"])).await;
    let absolute = format!("https://{GOOD}/a{{T}}?b={{T}}");
    arrives(&scene, &absolute, "/a{E}?b={E}").await;
}
