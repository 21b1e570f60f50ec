//! Tokens inside of `Authorization: Basic`, which is how git and many clients send a credential.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE};

use crate::support::{GOOD, REAL, SIDE, Scene};

fn line(scheme: &str, text: &str) -> String {
    format!("Authorization: {scheme}{}\r\n", STANDARD.encode(text))
}

#[tokio::test]
async fn user_and_password_are_swapped_and_encoded_again() {
    let scene = Scene::new().await;
    for (scheme, sent, expected) in [
        ("Basic ", "x-access-token:{T}", "x-access-token:{S}"),
        ("Basic ", "{T}:", "{S}:"),
        ("Basic ", "{T}:x-oauth-basic", "{S}:x-oauth-basic"),
        ("Basic ", "{T}:{T}", "{S}:{S}"),
        ("basic ", ":{T}", ":{S}"),
        ("BASIC ", "u:a{T}b", "u:a{S}b"),
        ("Basic  ", "u:{T}", "u:{S}"),
    ] {
        let received = scene.received(GOOD, &line(scheme, &scene.fill(sent))).await;
        let expected = line(scheme, &scene.fill(expected));
        assert!(received.contains(&expected), "{scheme}{sent}: {received}");
    }
}

#[tokio::test]
async fn what_holds_no_token_or_may_not_receive_it_stays_as_it_is() {
    let scene = Scene::new().await;
    let with_token = scene.fill("u:{T}");
    let odd = scene.fill("u:{T}xy");
    let unpadded = format!("Authorization: Basic {}\r\n", STANDARD_NO_PAD.encode(&odd));
    let url_safe = format!(
        "Authorization: Basic {}\r\n",
        URL_SAFE.encode("u\u{fffd}??>:")
    );
    assert!(
        STANDARD.encode(&odd).ends_with('='),
        "the padding is what is missing"
    );
    for (host, line) in [
        (SIDE, line("Basic ", &with_token)),
        (GOOD, line("Basic ", "user:password")),
        (GOOD, line("Bearer ", &with_token)),
        (GOOD, line("Basic", &with_token)),
        (
            GOOD,
            line("Basic ", &with_token).replace("Authorization", "X-Authorization"),
        ),
        (GOOD, unpadded),
        (GOOD, url_safe),
        (GOOD, "Authorization: Basic\r\n".to_owned()),
        (GOOD, "Authorization: Basic ????\r\n".to_owned()),
    ] {
        let received = scene.received(host, &line).await;
        assert_eq!(
            received,
            format!("GET / HTTP/1.1\r\nHost: {host}\r\n{line}\r\n")
        );
        assert!(!received.contains(&STANDARD.encode(REAL)), "{line}");
        scene.alive(&line).await;
    }
}
