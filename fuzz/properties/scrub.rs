//! Properties of the scrub: no form of a value comes out, and no cut changes what does.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use data_encoding::{HEXLOWER, HEXUPPER};
use memchr::memmem;
use oshu_vault::secret::Secret;
use oshu_vault::swap::{SHORTEST_VALUE_BYTES, ScrubStream, Scrubber};

use super::cut;
use super::table::percent;

/// What takes a value's place: bytes that no value here has, so that what it stands beside cannot
/// make a value again.
const TOKEN: &[u8] = b"\x01\x02\x03";
const FIRST: &str = "sk-ant-api03-Ab9_xYz-0123";
const SECOND: &str = "p@ss/w+rd=\"q'<r>&\\s t~u!\u{e9}";
/// The beginning of the first and its own end: what the search may confuse.
const THIRD: &str = "sk-ant-api03-Ab9_xYz-0123-sk-ant";

thread_local! {
    static KNOWN: Arc<Scrubber> =
        scrubber(&[FIRST.as_bytes(), SECOND.as_bytes(), THIRD.as_bytes()]);
}

/// Scrubs the input as it is, with a known value in one of its forms in it, and with a value of
/// its own.
pub fn scrub(data: &[u8]) {
    let Some(([seed, place, length, form], text)) = data.split_first_chunk() else {
        return;
    };
    let known = KNOWN.with(Arc::clone);
    let out = every_cut(&known, text, *seed);
    let value = [FIRST, SECOND, THIRD][usize::from(seed % 3)];
    let forms = forms(value);
    for form in &forms {
        assert_eq!(
            memmem::find(&out, form),
            None,
            "a form of the value comes out"
        );
    }
    let (before, after) = text.split_at(usize::from(*place).min(text.len()));
    if let Some(form) = forms.get(usize::from(form % 16)) {
        let text = [before, form.as_slice(), after].concat();
        let out = every_cut(&known, &text, *seed);
        assert_eq!(
            memmem::find(&out, form),
            None,
            "a form of the value comes out"
        );
    } else {
        encoded(&known, [before, value.as_bytes(), after], *seed);
    }
    own_value(text, usize::from(*length), *seed);
}

/// Encodes a text that a value stands in: it may begin at each of three places in a group.
fn encoded(known: &Arc<Scrubber>, parts: [&[u8]; 3], seed: u8) {
    let [before, value, _] = parts;
    let text = parts.concat();
    let encoded = match seed % 2 {
        0 => STANDARD.encode(text),
        _ => URL_SAFE_NO_PAD.encode(text),
    };
    let whole = (before.len() * 8).div_ceil(6)..(before.len() + value.len()) * 8 / 6;
    let own = &encoded.as_bytes()[whole];
    let out = every_cut(known, encoded.as_bytes(), seed);
    assert_eq!(
        memmem::find(&out, own),
        None,
        "base64 of the value comes out"
    );
}

/// Takes the beginning of the input as the value, which may repeat itself in any way.
fn own_value(text: &[u8], length: usize, seed: u8) {
    let (value, rest) = text.split_at(length.min(text.len()));
    if value.len() < SHORTEST_VALUE_BYTES || value.iter().any(|b| TOKEN.contains(b) || *b < b' ') {
        return;
    }
    let own = scrubber(&[value]);
    let (before, after) = rest.split_at(rest.len() / 2);
    let hex = HEXLOWER.encode(value).into_bytes();
    for form in [value, &hex] {
        let text = [before, form, after].concat();
        let out = every_cut(&own, &text, seed);
        assert_eq!(memmem::find(&out, form), None, "the value comes out");
    }
}

/// The forms in which a value is written where nothing else is encoded with it.
fn forms(value: &str) -> Vec<Vec<u8>> {
    let escaped = serde_json::to_string(value).expect("a text has a JSON form");
    let html = value
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let numbers = written(value.chars(), |c| format!("&#{};", u32::from(c)));
    let units = written(value.encode_utf16(), |unit| format!("\\u{unit:04x}"));
    let all = written(value.bytes(), |byte| format!("%{byte:02x}"));
    [
        value.to_owned(),
        HEXLOWER.encode(value.as_bytes()),
        HEXUPPER.encode(value.as_bytes()),
        escaped[1..escaped.len() - 1].to_owned(),
        html.clone(),
        html.replace('"', "&quot;").replace('\'', "&#39;"),
        numbers,
        units,
        all,
    ]
    .map(String::into_bytes)
    .into_iter()
    .chain([percent(value)])
    .collect()
}

fn written<T>(parts: impl Iterator<Item = T>, form: fn(T) -> String) -> String {
    parts.map(form).collect()
}

fn scrubber(values: &[&[u8]]) -> Arc<Scrubber> {
    let secrets = values.iter().enumerate().map(|(place, value)| {
        let name = Arc::from(format!("SECRET_{place}"));
        (Secret::new(value.to_vec()), Bytes::from_static(TOKEN), name)
    });
    Arc::new(Scrubber::new(secrets).expect("the values are long enough"))
}

/// Scrubs a text whole and in pieces; returns what comes out, which must be the same.
fn every_cut(scrubber: &Arc<Scrubber>, text: &[u8], seed: u8) -> Vec<u8> {
    let (whole, found) = stream(scrubber, [text].into_iter());
    let (cut, cut_found) = stream(scrubber, cut::pieces(text, u64::from(seed)));
    assert_eq!(cut, whole, "what comes out depends on the cuts");
    assert_eq!(cut_found, found);
    assert!(
        found > 0 || whole == text,
        "a text without a value was changed"
    );
    assert_eq!(
        scrubber.scrub_value(text).unwrap_or_else(|| text.to_vec()),
        whole
    );
    released(scrubber, text, seed);
    whole
}

fn stream<'a>(scrubber: &Arc<Scrubber>, pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<u8>, u64) {
    let mut stream = ScrubStream::new(Arc::clone(scrubber));
    let mut out = Vec::new();
    for piece in pieces {
        stream.push(piece, &mut out);
        // No known form is longer than ten times its value.
        assert!(stream.held() <= 10 * 256 + 16, "too much is held back");
    }
    stream.finish(&mut out);
    assert_eq!(stream.held(), 0);
    let found = stream.scrubbed().iter().map(|(_, count)| count).sum();
    (out, found)
}

/// Releases what is held back after each piece: then values that are cut may pass, but no other
/// byte is lost or changed.
fn released(scrubber: &Arc<Scrubber>, text: &[u8], seed: u8) {
    let mut stream = ScrubStream::new(Arc::clone(scrubber));
    let mut out = Vec::new();
    for piece in cut::pieces(text, u64::from(seed)) {
        stream.push(piece, &mut out);
        stream.release(&mut out);
        assert_eq!(stream.held(), 0);
    }
    stream.finish(&mut out);
    assert!(!stream.scrubbed().is_empty() || out == text);
}
