//! The leak suite: secrets go through every path, and nothing of them stays anywhere.
//!
//! Values, credentials and keys are searched for, in every form that they could have taken,
//! in all that the program says and keeps: answers, audit records, the log at its most talkative
//! level, files, panics, and `Debug`.

mod crash;
mod debug;
mod faces;
mod failures;
mod paths;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use data_encoding::{HEXLOWER, HEXUPPER};
use memchr::memmem;

use crate::support::show;

/// A value that every form writes in another way, and that nothing else holds.
const VALUE: &str = "sk-canary/0123456789+\"&<abcdef>\\z";
/// What it is rotated to.
const ROTATED: &str = "sk-second/9876543210+\"&<fedcba>\\z";

/// What a token endpoint gives.
const CAPTURED: &str = "sk-captured/0123456789+\"&<abcdef>\\z";

/// What is searched for, in all forms.
struct Needles(Vec<(String, Vec<u8>)>);

impl Needles {
    fn new<'a>(secrets: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut needles = Vec::new();
        for (name, secret) in secrets {
            for (form, text) in forms(secret) {
                needles.push((format!("{name} as {form}"), text));
            }
        }
        Self(needles)
    }

    /// Says what stands in the bytes, and where.
    fn found(&self, bytes: &[u8]) -> Option<String> {
        self.0.iter().find_map(|(name, text)| {
            let place = memmem::find(bytes, text)?;
            let around = place.saturating_sub(200)..(place + text.len() + 60).min(bytes.len());
            Some(format!("{name} in …{}…", show(&bytes[around])))
        })
    }

    /// Fails the test if one of them stands in the bytes.
    #[track_caller]
    fn expect_none(&self, place: &str, bytes: impl AsRef<[u8]>) {
        if let Some(found) = self.found(bytes.as_ref()) {
            panic!("{place}: {found}");
        }
    }
}

/// Writes a secret in every form in which it could have been printed.
fn forms(secret: &str) -> Vec<(&'static str, Vec<u8>)> {
    let percent = |upper: bool| -> String {
        let escape = |byte: u8| match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            other if upper => format!("%{other:02X}"),
            other => format!("%{other:02x}"),
        };
        secret.bytes().map(escape).collect()
    };
    let json = serde_json::to_string(secret).expect("JSON");
    let json = json[1..json.len() - 1].to_owned();
    let bytes = format!("{:?}", secret.as_bytes());
    let html = secret
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let mut all = vec![
        ("it is", secret.to_owned()),
        ("hex", HEXLOWER.encode(secret.as_bytes())),
        ("upper-case hex", HEXUPPER.encode(secret.as_bytes())),
        ("percent-encoding", percent(true)),
        ("lower-case percent-encoding", percent(false)),
        ("JSON", json.clone()),
        ("JSON with escaped slashes", json.replace('/', "\\/")),
        (
            "JSON within JSON",
            json.replace('\\', "\\\\").replace('"', "\\\""),
        ),
        ("HTML", html.clone()),
        ("HTML with quotes", html.replace('"', "&quot;")),
        ("numbers", bytes[1..bytes.len() - 1].to_owned()),
    ];
    for offset in 0..3 {
        let padded = [&b"~~~"[..offset], secret.as_bytes()].concat();
        // The first and last characters also depend on what stands beside the secret.
        let inner = |text: String| text[4..text.len() - 2].to_owned();
        all.push(("base64", inner(STANDARD_NO_PAD.encode(&padded))));
        all.push(("base64url", inner(URL_SAFE_NO_PAD.encode(&padded))));
    }
    all.into_iter()
        .map(|(form, text)| (form, text.into_bytes()))
        .collect()
}

/// Writes a value in every form that the scrub knows, as a server might.
fn reflected(value: &str) -> Vec<u8> {
    let mut out = Vec::new();
    // What is escaped twice, and lists of numbers, are forms that the scrub does not know; of
    // base64 these are parts, and the whole comes below.
    let known = |form: &str| {
        !matches!(
            form,
            "numbers" | "JSON within JSON" | "base64" | "base64url"
        )
    };
    for (_, text) in forms(value).into_iter().filter(|(form, _)| known(form)) {
        out.extend_from_slice(b"<p>");
        out.extend_from_slice(&text);
        out.extend_from_slice(b"</p>\n");
    }
    for before in ["", "u:", "us"] {
        for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            let text = engine.encode(format!("{before}{value}:x"));
            out.extend_from_slice(format!("<p>{text}</p>\n").as_bytes());
        }
    }
    out
}
