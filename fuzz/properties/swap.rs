//! Properties of the swap in heads: tokens, Basic credentials, path and query.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use oshu_vault::sealed_token::{DIGITS, PREFIX_LIMIT_BYTES, Place, Places, Prefix, TokenId};
use oshu_vault::swap::{Lookup, SUBSTITUTION_LIMIT, Swapper};
use oshu_vault::wire::{RequestHead, parse_request};

use super::table::{CANARY, Table, as_it_is, percent};

/// Reads ids, prefixes and places, and swaps a field's value like the plain swap does.
pub fn sealed_token(data: &[u8]) {
    let digits = data.get(..DIGITS);
    let lower = |digits: &[u8]| {
        digits
            .iter()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    assert_eq!(TokenId::read(data).is_some(), digits.is_some_and(lower));
    if let Ok(text) = std::str::from_utf8(data) {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'~' | b'-');
        let ok = !text.is_empty() && text.len() <= PREFIX_LIMIT_BYTES && text.bytes().all(plain);
        assert_eq!(Prefix::parse(text).is_some(), ok);
    }
    places(data);
    let Some(head) = head(&[b"GET / HTTP/1.1\r\nX-Key: ", data, b"\r\n\r\n"]) else {
        return;
    };
    for table in [Table::everywhere(), Table::nowhere()] {
        let wanted = |name: &[u8], value: &[u8]| match name {
            // A field of the input's own may be one that no secret goes to.
            _ if !opens(&table, name) => value.to_vec(),
            _ if name.eq_ignore_ascii_case(b"authorization") => table.authorization(value),
            _ => table.plainly(value, as_it_is),
        };
        check(&head, &table, wanted, <[u8]>::to_vec);
    }
}

/// Swaps a Basic credential, given as the field's text and given decoded.
pub fn basic(data: &[u8]) {
    let encoded = STANDARD.encode(data);
    let values = [
        data.to_vec(),
        [b"Basic ", encoded.as_bytes()].concat(),
        [b"bAsIc   ", encoded.as_bytes()].concat(),
        [b"Basic\t", encoded.as_bytes()].concat(),
        [b"Basic ", encoded.trim_end_matches('=').as_bytes()].concat(),
    ];
    for value in values {
        let Some(head) = head(&[b"GET / HTTP/1.1\r\nAuthorization: ", &value, b"\r\n\r\n"]) else {
            continue;
        };
        let table = Table::everywhere();
        let wanted = |name: &[u8], value: &[u8]| match name {
            _ if !opens(&table, name) => value.to_vec(),
            _ if name.eq_ignore_ascii_case(b"authorization") => table.authorization(value),
            _ => table.plainly(value, as_it_is),
        };
        check(&head, &table, wanted, <[u8]>::to_vec);
        check(
            &head,
            &Table::nowhere(),
            |_, value| value.to_vec(),
            <[u8]>::to_vec,
        );
    }
}

/// Swaps path and query, and nothing before the path.
pub fn target(data: &[u8]) {
    let in_path = || {
        Table::new(Places {
            path: true,
            ..Places::default()
        })
    };
    let in_query = || {
        Table::new(Places {
            query: true,
            ..Places::default()
        })
    };
    for start in [
        "",
        "/",
        "http://SEALED_0123456789abcdef0123456789abcdef.example/",
    ] {
        let line = [b"GET ", start.as_bytes(), data, b" HTTP/1.1\r\n\r\n"];
        let Some(head) = head(&line) else {
            continue;
        };
        for (table, path, query) in [
            (Table::everywhere(), true, true),
            (in_path(), true, false),
            (in_query(), false, true),
            (Table::nowhere(), false, false),
        ] {
            let part = |text: &[u8], open: bool| {
                if open {
                    table.plainly(text, percent)
                } else {
                    text.to_vec()
                }
            };
            let wanted = |target: &[u8]| {
                let (before, rest) = target.split_at(before_path(target));
                let end = rest.iter().position(|b| *b == b'?').unwrap_or(rest.len());
                let (own_path, own_query) = rest.split_at(end);
                [
                    before.to_vec(),
                    part(own_path, path),
                    part(own_query, query),
                ]
                .concat()
            };
            check(&head, &table, |_, value| value.to_vec(), wanted);
        }
    }
}

/// Returns where the path of a target starts; its end for a target that has none.
fn before_path(target: &[u8]) -> usize {
    if target.starts_with(b"/") {
        return 0;
    }
    let scheme = target.windows(3).position(|window| window == b"://");
    let authority = scheme.map_or(target.len(), |at| at + 3);
    let rest = &target[authority..];
    let length = rest.iter().position(|byte| matches!(byte, b'/' | b'?'));
    authority + length.unwrap_or(rest.len())
}

fn head(parts: &[&[u8]]) -> Option<RequestHead> {
    parse_request(Bytes::from(parts.concat())).ok()
}

fn opens(table: &Table, name: &[u8]) -> bool {
    let row = &table.rows[0];
    let id = TokenId::read(&row.token.as_bytes()[7..]).expect("the table has tokens");
    table.open(id, b"", Place::Header(name)).is_some()
}

/// Swaps a head and compares each field, and the target, with what is wanted.
fn check(
    head: &RequestHead,
    table: &Table,
    field: impl Fn(&[u8], &[u8]) -> Vec<u8>,
    target: impl Fn(&[u8]) -> Vec<u8>,
) {
    let mut swapped = head.clone();
    let Ok(done) = Swapper::new().swap_request(&mut swapped, table) else {
        let tokens = memchr::memmem::find_iter(head.fields.block(), "SEALED_").count();
        let basics = head
            .fields
            .all("authorization")
            .map(<[u8]>::len)
            .sum::<usize>()
            / 50;
        assert!(
            tokens + basics > SUBSTITUTION_LIMIT as usize / 2,
            "refused for no reason"
        );
        return;
    };
    assert_eq!(swapped.target(), target(head.target()));
    assert_eq!(swapped.fields.len(), head.fields.len());
    for (before, after) in head.fields.iter().zip(swapped.fields.iter()) {
        assert_eq!(after.name, before.name);
        assert_eq!(after.value, field(before.name, before.value));
        let shown = format!("{after:?}");
        assert!(!shown.contains(CANARY) || format!("{before:?}").contains(CANARY));
    }
    assert_eq!(done.count == 0, done.names.is_empty());
    let mut out = Vec::new();
    swapped.write(&mut out);
    let again = parse_request(Bytes::from(out)).expect("a swapped head is a head");
    assert_eq!(again.fields.len(), head.fields.len());
    assert_eq!(again.target(), swapped.target());
}

/// No spelling of a field's name makes a place of one that frames, routes or carries data.
fn places(name: &[u8]) {
    let any = Places {
        any_header: true,
        ..Places::default()
    };
    let never = [
        "host",
        "cookie",
        "content-length",
        "transfer-encoding",
        "connection",
        "via",
        "te",
        "referer",
        "origin",
        "user-agent",
        "forwarded",
        "range",
        "upgrade",
        "trailer",
    ];
    let lower = name.to_ascii_lowercase();
    let starts = [
        b"x-forwarded-".as_slice(),
        b"if-",
        b"accept",
        b"content-",
        b"sec-",
        b"proxy-",
    ];
    if never.iter().any(|own| own.as_bytes() == lower)
        || starts.iter().any(|s| lower.starts_with(s))
    {
        assert!(!any.allow(Place::Header(name)));
    }
    assert!(
        ![Place::Body, Place::Path, Place::Query]
            .into_iter()
            .any(|place| any.allow(place))
    );
    assert!(!Places::default().allow(Place::Header(name)));
}
