//! What the swap does to whole heads: tables, one for each place, limit and promise.
//!
//! The tokens, values and helpers at the head of this file also serve the properties over made-up
//! heads, which stand beside it.

mod properties;

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE};
use bytes::Bytes;

use crate::sealed_token::{MARKER, Place, Places, TokenId};
use crate::secret::Secret;
use crate::swap::{
    Error, HEAD_VALUES_LIMIT_BYTES, Lookup, Opening, SUBSTITUTION_LIMIT, Swapped, Swapper,
};
use crate::wire::{RequestHead, parse_request};

/// A token that opens everywhere, without a prefix.
const T: &str = "SEALED_0123456789abcdef0123456789abcdef";
/// Its value.
const S: &str = "sk-real/+=& %\u{e9}";
const S_PERCENT: &str = "sk-real%2F%2B%3D%26%20%25%C3%A9";
/// A token that opens only behind `ghp_`.
const G: &str = "SEALED_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const G_VALUE: &str = "ghp_real_value";
/// A token whose value holds the text of the first one.
const N: &str = "SEALED_bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const N_VALUE: &str = "<SEALED_0123456789abcdef0123456789abcdef>";
/// A token that opens nowhere.
const U: &str = "SEALED_ffffffffffffffffffffffffffffffff";

struct Entry {
    prefix: &'static str,
    secret: Secret,
    name: Arc<str>,
}

struct Table {
    entries: HashMap<TokenId, Entry>,
    places: Places,
}

impl Lookup for Table {
    fn open<'a>(&'a self, id: TokenId, before: &[u8], place: Place<'_>) -> Option<Opening<'a>> {
        let entry = self.entries.get(&id)?;
        let here = before.ends_with(entry.prefix.as_bytes()) && self.places.allow(place);
        here.then_some(Opening {
            prefix_length: entry.prefix.len(),
            secret: &entry.secret,
            name: &entry.name,
        })
    }
}

fn id(token: &str) -> TokenId {
    TokenId::read(&token.as_bytes()[MARKER.len()..]).unwrap()
}

fn table(places: Places) -> Table {
    let mut table = Table {
        entries: HashMap::new(),
        places,
    };
    for (token, prefix, value, name) in [
        (T, "", S, "PLAIN"),
        (G, "ghp_", G_VALUE, "PREFIXED"),
        (N, "", N_VALUE, "NESTED"),
    ] {
        table.put(token, prefix, value.as_bytes(), name);
    }
    table
}

impl Table {
    fn put(&mut self, token: &str, prefix: &'static str, value: &[u8], name: &str) {
        let secret = Secret::new(value.to_vec());
        let name = name.into();
        let entry = Entry {
            prefix,
            secret,
            name,
        };
        self.entries.insert(id(token), entry);
    }
}

/// Headers of any name, and nothing else.
fn in_headers() -> Table {
    table(Places {
        any_header: true,
        ..Places::default()
    })
}

fn everywhere() -> Table {
    table(Places {
        any_header: true,
        query: true,
        path: true,
        body: true,
        ..Places::default()
    })
}

fn nowhere() -> Table {
    table(Places::default())
}

fn parse(text: &[u8]) -> RequestHead {
    parse_request(Bytes::copy_from_slice(text)).unwrap()
}

fn written(head: &RequestHead) -> Vec<u8> {
    let mut out = Vec::new();
    head.write(&mut out);
    out
}

fn swap(text: &str, lookup: &Table) -> Result<(String, Swapped), Error> {
    let mut head = parse(text.as_bytes());
    let swapped = Swapper::new().swap_request(&mut head, lookup)?;
    Ok((String::from_utf8(written(&head)).unwrap(), swapped))
}

/// Swaps the value of one field.
fn swap_value(name: &str, value: &str, lookup: &Table) -> (String, Swapped) {
    let (start, end) = (format!("GET / HTTP/1.1\r\n{name}: "), "\r\n\r\n");
    let (out, swapped) = swap(&format!("{start}{value}{end}"), lookup).unwrap();
    let value = out.strip_prefix(&start).unwrap().strip_suffix(end).unwrap();
    (value.to_owned(), swapped)
}

fn names(swapped: &Swapped) -> Vec<&str> {
    swapped.names.iter().map(AsRef::as_ref).collect()
}

#[test]
fn one_header_changes_and_every_other_byte_stays() {
    let head = |value: &str| {
        format!(
            "POST /1?a HTTP/1.1\r\nHost:good\r\naCCept:  */*\t\r\nX-Api-Key: {value}\r\n\
             X-Empty:\r\nCookie: {T}\r\n\r\n"
        )
    };
    let (out, swapped) = swap(&head(T), &in_headers()).unwrap();
    assert_eq!(out, head(S));
    assert_eq!(names(&swapped), ["PLAIN"]);
    assert_eq!((swapped.count, swapped.left), (1, 1), "the cookie is left");
}

#[test]
fn what_does_not_open_travels_as_it_is() {
    let basic = STANDARD.encode(format!("git:{T}"));
    let text = format!(
        "GET /{T}?a={T} HTTP/1.1\r\nHost: side\r\nX-A:\t{T}{T}\r\nX-B:x{U} \r\n\
         Authorization:  bAsic   {basic}\r\n\r\n"
    );
    let (out, swapped) = swap(&text, &nowhere()).unwrap();
    assert_eq!(out, text);
    assert_eq!((swapped.count, swapped.left), (0, 6));
    assert!(swapped.names.is_empty());
}

#[test]
fn tokens_are_found_wherever_they_stand_in_a_value() {
    let digits = T.strip_prefix("SEALED_").unwrap();
    let short = T.strip_suffix('f').unwrap();
    for (value, expected, count, left) in [
        (T.to_owned(), S.to_owned(), 1, 0),
        (format!("Bearer {T}"), format!("Bearer {S}"), 1, 0),
        (format!("a {T}, b"), format!("a {S}, b"), 1, 0),
        (format!("{T}{T}"), format!("{S}{S}"), 2, 0),
        (format!("{T} {U} {N}"), format!("{S} {U} {N_VALUE}"), 2, 1),
        (format!("{U}{T}"), format!("{U}{S}"), 1, 1),
        // What stands before or after a token does not matter.
        (format!("{T}0"), format!("{S}0"), 1, 0),
        (format!("{T}a"), format!("{S}a"), 1, 0),
        (format!("x{T}"), format!("x{S}"), 1, 0),
        (format!("SEALED_{T}"), format!("SEALED_{S}"), 1, 0),
        (format!("SEALED_0{T}"), format!("SEALED_0{S}"), 1, 0),
        // A value is never looked into, whatever it holds.
        (N.to_owned(), N_VALUE.to_owned(), 1, 0),
        (format!("{N}{N}"), format!("{N_VALUE}{N_VALUE}"), 2, 0),
        // A prefix belongs to the token, and the bare form is none.
        (format!("ghp_{G}"), G_VALUE.to_owned(), 1, 0),
        (format!("token ghp_{G};"), format!("token {G_VALUE};"), 1, 0),
        (format!("ghp_ghp_{G}"), format!("ghp_{G_VALUE}"), 1, 0),
        (G.to_owned(), G.to_owned(), 0, 1),
        (format!("GHP_{G}"), format!("GHP_{G}"), 0, 1),
        (format!("ghp_{U}{G}"), format!("ghp_{U}{G}"), 0, 2),
        (format!("{T}ghp_{G}"), format!("{S}{G_VALUE}"), 2, 0),
        // Near misses are no tokens.
        (short.to_owned(), String::new(), 0, 0),
        (format!("{short}G"), String::new(), 0, 0),
        (
            format!("SEALED_{}", digits.to_uppercase()),
            String::new(),
            0,
            0,
        ),
        (format!("sealed_{digits}"), String::new(), 0, 0),
        (format!("SEALED-{digits}"), String::new(), 0, 0),
        (format!("SEALED%5F{digits}"), String::new(), 0, 0),
        ("SEALED_".to_owned(), String::new(), 0, 0),
    ] {
        let expected = if expected.is_empty() {
            &value
        } else {
            &expected
        };
        let (out, swapped) = swap_value("X-Key", &value, &in_headers());
        assert_eq!(&out, expected, "{value}");
        assert_eq!((swapped.count, swapped.left), (count, left), "{value}");
    }
}

#[test]
fn a_prefix_never_reaches_into_a_token_that_was_swapped() {
    let mut table = in_headers();
    table.put(U, "cdef", b"never-there", "GREEDY");
    let (out, swapped) = swap_value("X-Key", &format!("{T}{U}"), &table);
    assert_eq!(out, format!("{S}{U}"));
    assert_eq!((swapped.count, swapped.left), (1, 1));
}

#[test]
fn a_lookup_that_claims_too_long_a_prefix_is_not_believed() {
    struct Liar(Secret, Arc<str>);
    impl Lookup for Liar {
        fn open<'a>(&'a self, _: TokenId, _: &[u8], _: Place<'_>) -> Option<Opening<'a>> {
            Some(Opening {
                prefix_length: 2,
                secret: &self.0,
                name: &self.1,
            })
        }
    }
    let mut head = parse(format!("GET / HTTP/1.1\r\nA: {T}\r\nB: x{T}\r\n\r\n").as_bytes());
    let liar = Liar(Secret::new(b"value".to_vec()), "N".into());
    let swapped = Swapper::new().swap_request(&mut head, &liar).unwrap();
    assert_eq!((swapped.count, swapped.left), (0, 2));
}

#[test]
fn a_value_that_is_only_a_token_is_shared_and_not_copied() {
    let table = in_headers();
    let mut head = parse(format!("GET / HTTP/1.1\r\nX-Key: {T}\r\n\r\n").as_bytes());
    Swapper::new().swap_request(&mut head, &table).unwrap();
    let secret = table.entries[&id(T)].secret.expose();
    assert_eq!(
        head.fields.first("x-key").unwrap().as_ptr(),
        secret.as_ptr()
    );
}

#[test]
fn only_allowed_names_receive_a_value() {
    let mut table = nowhere();
    table.places.headers = vec!["x-api-key".into()];
    assert_eq!(swap_value("X-API-Key", T, &table).0, S);
    assert_eq!(swap_value("Authorization", T, &table).0, T);
    for name in ["Host", "Content-Length", "Cookie", "User-Agent", "TE"] {
        let (out, swapped) = swap_value(name, T, &everywhere());
        assert_eq!((out.as_str(), swapped.left), (T, 1), "{name}");
    }
}

#[test]
fn names_and_method_are_never_touched() {
    let text = format!("{T} / HTTP/1.1\r\n{T}: a\r\nX-{T}: {T}\r\n\r\n");
    let (out, swapped) = swap(&text, &everywhere()).unwrap();
    assert_eq!(
        out,
        format!("{T} / HTTP/1.1\r\n{T}: a\r\nX-{T}: {S}\r\n\r\n")
    );
    assert_eq!((swapped.count, swapped.left), (1, 0));
}

#[test]
fn trace_and_options_leave_every_token() {
    let basic = STANDARD.encode(format!("u:{T}"));
    for method in ["TRACE", "OPTIONS", "Trace", "options"] {
        let text =
            format!("{method} /?{T} HTTP/1.1\r\nX: {T}{U}\r\nAuthorization: Basic {basic}\r\n\r\n");
        let (out, swapped) = swap(&text, &everywhere()).unwrap();
        assert_eq!(out, text);
        assert_eq!((swapped.count, swapped.left), (0, 4), "{method}");
    }
}

#[test]
fn removed_fields_and_a_new_target_are_respected() {
    let text = format!("GET http://h/?a={T} HTTP/1.1\r\nX-Gone: {T}\r\nX-Key: {T}\r\n\r\n");
    let mut head = parse(text.as_bytes());
    head.fields.retain(|name, _| name != b"X-Gone");
    head.replace_target(Bytes::from(format!("/?a={T}")));
    let swapped = Swapper::new()
        .swap_request(&mut head, &everywhere())
        .unwrap();
    let expected = format!("GET /?a={S_PERCENT} HTTP/1.1\r\nX-Key: {S}\r\n\r\n");
    assert_eq!(written(&head), expected.as_bytes());
    assert_eq!((swapped.count, swapped.left), (2, 0));
}

#[test]
fn basic_credentials_are_decoded_swapped_and_encoded() {
    for (scheme, credential, expected) in [
        (
            "Basic ",
            format!("x-access-token:{T}"),
            format!("x-access-token:{S}"),
        ),
        ("basic ", format!("{T}:"), format!("{S}:")),
        ("BASIC   ", format!("{T}:{N}"), format!("{S}:{N_VALUE}")),
        (
            "bAsIc ",
            format!("ghp_{G}:x-oauth-basic"),
            format!("{G_VALUE}:x-oauth-basic"),
        ),
        ("Basic ", format!("git:ghp_{G}"), format!("git:{G_VALUE}")),
        (
            "Basic ",
            format!("u:pass {T} word:{U}"),
            format!("u:pass {S} word:{U}"),
        ),
        ("Basic ", T.to_owned(), S.to_owned()),
    ] {
        let value = format!("{scheme}{}", STANDARD.encode(&credential));
        for name in ["Authorization", "AUTHORIZATION"] {
            let (out, swapped) = swap_value(name, &value, &in_headers());
            assert_eq!(
                out,
                format!("{scheme}{}", STANDARD.encode(&expected)),
                "{credential}"
            );
            assert!(
                swapped.count > 0 && !swapped.names.is_empty(),
                "{credential}"
            );
        }
    }
}

#[test]
fn other_spellings_of_basic_are_left() {
    let credential = format!("u:{T}>>>??");
    let encoded = STANDARD.encode(&credential);
    assert!(
        encoded.ends_with("=="),
        "the cases below need padding: {encoded}"
    );
    assert_ne!(encoded, URL_SAFE.encode(&credential), "and both alphabets");
    let body = encoded.trim_end_matches('=');
    // The last letter has four bits too many, and they must be zero.
    let (start, _) = body.split_at(body.len() - 1);
    let trailing_bits = format!("{start}x==");
    for value in [
        format!("Basic {}", URL_SAFE.encode(&credential)),
        format!("Basic {}", STANDARD_NO_PAD.encode(&credential)),
        format!("Basic {body}="),
        format!("Basic {encoded}="),
        format!("Basic {trailing_bits}"),
        format!("Basic {encoded}{encoded}"),
        format!("Basic {encoded} x"),
        format!("Basic {encoded},"),
        format!("Basic\t{encoded}"),
        format!("Basic{encoded}"),
        format!("Basics {encoded}"),
        format!("Bearer {encoded}"),
        format!("Basic {}", STANDARD.encode(format!("u:{U}"))),
        format!(
            "Basic {}",
            STANDARD.encode("user:password without any token, but long")
        ),
        "Basic".to_owned(),
        "Basic ".trim_end().to_owned(),
        "Bas\u{e9}c".to_owned(),
    ] {
        let (out, swapped) = swap_value("Authorization", &value, &in_headers());
        assert_eq!((out.as_str(), swapped.count), (value.as_str(), 0));
    }
    let elsewhere = format!("Basic {encoded}");
    assert_eq!(
        swap_value("X-Authorization", &elsewhere, &in_headers()).0,
        elsewhere
    );
}

#[test]
fn every_authorization_field_is_looked_at() {
    let basic = |credential: &str| format!("Basic {}", STANDARD.encode(credential));
    let text = |value: &str| {
        let (one, two) = (basic(&format!("a:{value}")), basic(&format!("b:{value}")));
        format!(
            "GET / HTTP/1.1\r\nAuthorization: {one}\r\nX: {value}\r\nauthorization: {two}\r\n\
             Authorization: Bearer {value}\r\n\r\n"
        )
    };
    let (out, swapped) = swap(&text(T), &in_headers()).unwrap();
    assert_eq!(out, text(S));
    assert_eq!((swapped.count, names(&swapped)), (4, vec!["PLAIN"]));
}

#[test]
fn a_secret_that_is_itself_a_basic_credential_is_not_looked_into() {
    let mut table = in_headers();
    let encoded = STANDARD.encode(format!("u:{T}"));
    let value = format!("Basic {encoded}");
    table.put(U, "", value.as_bytes(), "WHOLE");
    assert_eq!(swap_value("Authorization", U, &table).0, value);
    table.put(U, "", encoded.as_bytes(), "PART");
    assert_eq!(
        swap_value("Authorization", &format!("Basic {U}"), &table).0,
        value
    );
}

#[test]
fn targets_receive_values_percent_encoded_where_allowed() {
    let only = |path, query| {
        table(Places {
            query,
            path,
            ..Places::default()
        })
    };
    for (target, path, query, both) in [
        ("/p?key=T", "/p?key=T", "/p?key=S", "/p?key=S"),
        ("/p/T/x", "/p/S/x", "/p/T/x", "/p/S/x"),
        ("/T?T&T=T", "/S?T&T=T", "/T?S&S=S", "/S?S&S=S"),
        ("/a?b?T", "/a?b?T", "/a?b?S", "/a?b?S"),
        ("/botT/send", "/botS/send", "/botT/send", "/botS/send"),
        (
            "http://T@h/T?T",
            "http://T@h/S?T",
            "http://T@h/T?S",
            "http://T@h/S?S",
        ),
        ("http://h?T", "http://h?T", "http://h?S", "http://h?S"),
        ("T:443", "T:443", "T:443", "T:443"),
        ("/%20T", "/%20S", "/%20T", "/%20S"),
        ("/?k=SEALED%5F0123456789abcdef0123456789abcdef", "", "", ""),
        ("/?k=%53EALED_0123456789abcdef0123456789abcdef", "", "", ""),
        ("/?k=SEALED_%30123456789abcdef0123456789abcdef", "", "", ""),
    ] {
        let head = |target: &str, value: &str| {
            let target = target.replace('S', value).replace('T', T);
            format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n")
        };
        let plain = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
        for (lookup, expected) in [
            (only(true, false), path),
            (only(false, true), query),
            (only(true, true), both),
            (in_headers(), target),
        ] {
            let (text, expected) = if path.is_empty() {
                (plain(target), plain(target))
            } else {
                (head(target, ""), head(expected, S_PERCENT))
            };
            assert_eq!(swap(&text, &lookup).unwrap().0, expected, "{target}");
        }
    }
}

#[test]
fn prefixes_and_nested_values_hold_in_targets() {
    let text = |path: &str, query: &str| format!("GET /{path}?q={query} HTTP/1.1\r\nA: b\r\n\r\n");
    let (out, swapped) = swap(
        &text(&format!("ghp_{G}"), &format!("{G}{N}")),
        &everywhere(),
    )
    .unwrap();
    let nested = N_VALUE.replace('<', "%3C").replace('>', "%3E");
    assert_eq!(out, text(G_VALUE, &format!("{G}{nested}")));
    assert_eq!(
        (names(&swapped), swapped.left),
        (vec!["PREFIXED", "NESTED"], 1)
    );
}

#[test]
fn a_value_that_no_field_may_have_stays_out() {
    for byte in (0..=255_u8).filter(|byte| *byte != b'\t') {
        let mut table = everywhere();
        let value = [b"start".as_slice(), &[byte], b"end"].concat();
        table.put(T, "", &value, "ODD");
        let allowed = byte >= b' ' && byte != 0x7f;
        let basic = format!("Basic {}", STANDARD.encode(format!("u:{T}")));
        let text =
            format!("GET /?{T} HTTP/1.1\r\nX: {T}\r\nY: a{T}\r\nAuthorization: {basic}\r\n\r\n");
        let mut head = parse(text.as_bytes());
        let swapped = Swapper::new().swap_request(&mut head, &table).unwrap();
        let expected = if allowed { (4, 0) } else { (1, 3) };
        assert_eq!((swapped.count, swapped.left), expected, "byte {byte}");
        assert!(
            parse_request(Bytes::from(written(&head))).is_ok(),
            "byte {byte}"
        );
    }
}

#[test]
fn substitutions_are_limited_in_number() {
    let mut table = in_headers();
    table.put(T, "", b"v", "SHORT");
    let limit = usize::try_from(SUBSTITUTION_LIMIT).unwrap();
    let text = |count: usize| format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", T.repeat(count));
    let (out, swapped) = swap(&text(limit), &table).unwrap();
    assert_eq!(out.matches('v').count(), limit);
    assert_eq!(
        (swapped.count, names(&swapped)),
        (SUBSTITUTION_LIMIT, vec!["SHORT"])
    );
    assert_eq!(
        swap(&text(limit + 1), &table).map(|_| ()),
        Err(Error::Limit)
    );
}

#[test]
fn swapped_values_are_limited_in_size() {
    let mut table = everywhere();
    let length = 8 * 1024;
    let most = HEAD_VALUES_LIMIT_BYTES / length;
    table.put(T, "", &vec![b'v'; length], "LONG");
    let field = format!("X: {T}\r\n");
    let text = |count: usize| format!("GET / HTTP/1.1\r\n{}\r\n", field.repeat(count));
    let (out, _) = swap(&text(most), &table).unwrap();
    assert_eq!(out.matches('v').count(), HEAD_VALUES_LIMIT_BYTES);
    assert_eq!(swap(&text(most + 1), &table).map(|_| ()), Err(Error::Limit));
    // In the target a byte counts with its escape.
    table.put(T, "", &vec![b'/'; length], "LONG");
    let text = |count: usize| format!("GET /{} HTTP/1.1\r\n\r\n", T.repeat(count));
    assert!(swap(&text(most / 3), &table).is_ok());
    assert_eq!(
        swap(&text(most / 3 + 1), &table).map(|_| ()),
        Err(Error::Limit)
    );
}

#[test]
fn nothing_shows_a_value() {
    let table = everywhere();
    let text = format!("GET /?{T} HTTP/1.1\r\nX: {T}\r\nY: a{T}\r\n\r\n");
    let mut head = parse(text.as_bytes());
    let swapped = Swapper::new().swap_request(&mut head, &table).unwrap();
    let opening = table.open(id(T), b"", Place::Path);
    let shown = format!("{head:?} {swapped:?} {opening:?} {}", Error::Limit);
    assert!(!shown.contains("sk-real"), "{shown}");
}
