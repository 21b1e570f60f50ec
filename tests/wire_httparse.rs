//! The strict reader of heads beside `httparse`, which half of the Rust servers read with.
//!
//! Whatever we accept, `httparse` must accept and understand in the same way: what the two read
//! differently could be smuggled through. The other way round we refuse more, on purpose.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use bytes::Bytes;
use oshu_vault::wire::{FIELD_LIMIT, Version, parse_request};
use proptest::prelude::*;

/// Tells whether we accept the bytes; fails where we do and `httparse` understands another thing.
fn agrees(bytes: &[u8]) -> Result<bool, TestCaseError> {
    let Ok(ours) = parse_request(Bytes::copy_from_slice(bytes)) else {
        return Ok(false);
    };
    let mut room = [httparse::EMPTY_HEADER; FIELD_LIMIT];
    let mut theirs = httparse::Request::new(&mut room);
    let status = theirs.parse(bytes);
    prop_assert_eq!(status, Ok(httparse::Status::Complete(bytes.len())));
    prop_assert_eq!(Some(ours.method_text()), theirs.method);
    prop_assert_eq!(Some(ours.target_text()), theirs.path);
    let version = match ours.version {
        Version::Http10 => 0,
        Version::Http11 => 1,
    };
    prop_assert_eq!(Some(version), theirs.version);
    let fields: Vec<_> = ours.fields.iter().map(|f| (f.name, f.value)).collect();
    let others: Vec<_> = theirs
        .headers
        .iter()
        .map(|field| (field.name.as_bytes(), field.value))
        .collect();
    prop_assert_eq!(fields, others);
    Ok(true)
}

/// A field line that is right, or nearly.
fn field() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![
        8 => "[!#$%&'*+.^_`|~0-9A-Za-z-]{1,12}",
        1 => "[ -~]{0,6}",
    ];
    let blank = "[ \t]{0,3}";
    let value = prop_oneof![
        8 => "[ -~\t]{0,16}".prop_map(String::into_bytes),
        2 => prop::collection::vec(0x80_u8.., 0..6),
        1 => prop::collection::vec(any::<u8>(), 0..6),
    ];
    let end = prop_oneof![12 => Just("\r\n"), 1 => Just("\n"), 1 => Just("\r"), 1 => Just("\r\n ")];
    (name, blank, value, blank, end).prop_map(|(name, lead, value, trail, end)| {
        let start = format!("{name}:{lead}");
        [start.as_bytes(), &value, trail.as_bytes(), end.as_bytes()].concat()
    })
}

fn start_line() -> impl Strategy<Value = String> {
    let space = prop_oneof![12 => Just(" "), 1 => Just("  "), 1 => Just("\t")];
    let version = prop_oneof![8 => Just("HTTP/1.1"), 2 => Just("HTTP/1.0"), 1 => Just("HTTP/1.2")];
    let end = prop_oneof![12 => Just("\r\n"), 1 => Just("\n"), 1 => Just(" \r\n")];
    let method = prop_oneof![4 => "[A-Z]{1,8}", 1 => "[!-~]{0,4}"];
    (method, space.clone(), "[!-~]{1,24}", space, version, end).prop_map(
        |(method, before, target, after, version, end)| {
            format!("{method}{before}{target}{after}{version}{end}")
        },
    )
}

fn head() -> impl Strategy<Value = Vec<u8>> {
    (start_line(), prop::collection::vec(field(), 0..6))
        .prop_map(|(start, fields)| [start.as_bytes(), &fields.concat(), b"\r\n"].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn what_we_accept_is_read_alike(head in head()) {
        agrees(&head)?;
    }

    #[test]
    fn changed_bytes_are_refused_or_read_alike(
        mut head in head(),
        changes in prop::collection::vec(
            (any::<prop::sample::Index>(), any::<u8>(), 0..3_u8),
            0..4,
        ),
    ) {
        for (index, byte, kind) in changes {
            let index = index.index(head.len());
            match kind {
                0 => head.insert(index, byte),
                1 => head[index] = byte,
                _ => drop(head.remove(index)),
            }
        }
        agrees(&head)?;
    }
}

#[test]
fn ordinary_heads_are_accepted() {
    for head in [
        "GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
        "POST http://example.org/a?b=c#d HTTP/1.0\r\nA:\r\nB: \t c d \t\r\nB:e\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\n\r\n",
        "CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\nX: \u{e9}\r\n\r\n",
        "PATCH /\"<>\\^`{|} HTTP/1.1\r\n!#$%&'*+-.^_`|~: x\r\n\r\n",
    ] {
        assert!(agrees(head.as_bytes()).unwrap(), "{head:?}");
    }
}
