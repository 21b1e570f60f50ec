//! Tokens inside of `Authorization: Basic`, which is how git and many clients send a credential.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE};

use crate::support::{GOOD, SIDE, Scene};

fn line(scheme: &str, text: &str) -> String {
    format!("Authorization: {scheme}{}\r\n", STANDARD.encode(text))
}

#[tokio::test]
async fn case_09_user_and_password_are_swapped_and_encoded_again() {
    let scene = Scene::new().await;
    for (scheme, sent, expected) in [
        ("Basic ", "x-access-token:{T}", "x-access-token:{S}"),
        ("Basic ", "{T}:", "{S}:"),
        ("Basic ", "{T}:x-oauth-basic", "{S}:x-oauth-basic"),
        ("Basic ", "{T}:{T}", "{S}:{S}"),
        ("basic ", ":{T}", ":{S}"),
        ("BASIC ", "u:a{T}b", "u:a{S}b"),
        ("bAsIc ", "{T}", "{S}"),
        ("Basic  ", "u:{T}", "u:{S}"),
        (
            "Basic ",
            "\u{fc}ser:p\u{e9}{T}\u{1f511}",
            "\u{fc}ser:p\u{e9}{S}\u{1f511}",
        ),
    ] {
        let received = scene.received(GOOD, &line(scheme, &scene.fill(sent))).await;
        let expected = line(scheme, &scene.fill(expected));
        let expected = format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n{expected}\r\n");
        assert_eq!(received, expected, "{scheme}{sent}");
    }
    scene.alive("Basic").await;
}

#[tokio::test]
async fn case_09_what_holds_no_token_or_may_not_receive_it_stays_as_it_is() {
    let scene = Scene::new().await;
    let with_token = scene.fill("u:{T}");
    let odd = scene.fill("u:{T}xy");
    let unpadded = format!("Authorization: Basic {}\r\n", STANDARD_NO_PAD.encode(&odd));
    let encoded = URL_SAFE.encode(scene.fill("?>\u{fffd}~?>:{T}"));
    assert!(
        STANDARD.encode(&odd).ends_with('=') && encoded.contains(['-', '_']),
        "the padding and the alphabet are what is odd"
    );
    let url_safe = format!("Authorization: Basic {encoded}\r\n");
    let twice = line("Basic ", &STANDARD.encode(&with_token));
    // Bits behind the last byte that are not zero: two programs may read it differently.
    let stray = line("Basic ", &odd).replace("Q==\r\n", "R==\r\n");
    assert!(stray.ends_with("R==\r\n"), "{stray}");
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
        (GOOD, twice),
        (GOOD, stray),
        (
            GOOD,
            line("Basic ", &with_token).replace("Basic ", "Basic \t"),
        ),
        (
            GOOD,
            line("Basic ", &with_token).replace("\r\n", ", x=1\r\n"),
        ),
        (GOOD, "Authorization: Basic\r\n".to_owned()),
        (GOOD, "Authorization: Basic ????\r\n".to_owned()),
    ] {
        let received = scene.received(host, &line).await;
        assert_eq!(
            received,
            format!("GET / HTTP/1.1\r\nHost: {host}\r\n{line}\r\n")
        );
        scene.alive(&line).await;
    }
}
