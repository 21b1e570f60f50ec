//! Bodies, at every cut and in every form.

use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::secret::Secret;
use crate::swap::{Opening, SUBSTITUTION_LIMIT};

const BARE: &str = "SEALED_0123456789abcdef0123456789abcdef";
/// Its token has a prefix.
const OTHER: &str = "SEALED_00000000000000000000000000000001";
/// May not stand in a body.
const HEADER_ONLY: &str = "SEALED_00000000000000000000000000000002";
/// Is not known.
const UNKNOWN: &str = "SEALED_ffffffffffffffffffffffffffffffff";
const VALUE: &str = "a&b=c\"\\ é\t/+";

struct Entry {
    prefix: &'static [u8],
    secret: Secret,
    name: Arc<str>,
    body: bool,
}

/// What a session knows of its tokens towards a host.
struct Table {
    entries: HashMap<[u8; 32], Entry>,
    prefixes: Vec<Box<[u8]>>,
}

fn table() -> Arc<Table> {
    table_of(VALUE, "sk_S.SE")
}

fn table_of(value: &str, prefix: &'static str) -> Arc<Table> {
    let entry = |token: &str, prefix: &'static str, name: &str, body| {
        let entry = Entry {
            prefix: prefix.as_bytes(),
            secret: Secret::new(value.as_bytes().to_vec()),
            name: name.into(),
            body,
        };
        let digits: [u8; 32] = token.as_bytes()[MARKER.len()..].try_into().unwrap();
        (digits, entry)
    };
    let entries = [
        entry(BARE, "", "BARE", true),
        entry(OTHER, prefix, "OTHER", true),
        entry(HEADER_ONLY, "", "HEADER_ONLY", false),
    ];
    Arc::new(Table {
        entries: entries.into_iter().collect(),
        prefixes: vec![prefix.as_bytes().into()],
    })
}

impl Lookup for Table {
    fn open<'a>(&'a self, id: TokenId, before: &[u8], place: Place<'_>) -> Option<Opening<'a>> {
        assert_eq!(place, Place::Body);
        let found = self.entries.iter();
        let mut found = found.filter(|(digits, _)| TokenId::read(&digits[..]) == Some(id));
        let (_, entry) = found.next()?;
        (entry.body && before.ends_with(entry.prefix)).then_some(Opening {
            prefix_length: entry.prefix.len(),
            secret: &entry.secret,
            name: &entry.name,
        })
    }

    fn body_prefixes(&self) -> &[Box<[u8]>] {
        &self.prefixes
    }
}

/// Swaps a body that comes in pieces; says how many tokens were swapped and left.
fn swap(kind: BodyKind, table: &Arc<Table>, pieces: &[&[u8]]) -> (Vec<u8>, u32, u32) {
    let mut swap = BodySwap::new(kind, Arc::clone(table));
    let mut out = Vec::new();
    for piece in pieces {
        let mut rest = *piece;
        loop {
            let (before, left) = (out.len(), rest.len());
            let progress = swap.push(&mut rest, &mut out).unwrap();
            let most = PIECE_BYTES + 6 * 8192 + left + swap.longest;
            assert!(out.len() - before <= most, "a bounded piece");
            assert!(swap.held.len() < swap.longest, "less than a token");
            if progress != Progress::Full {
                break;
            }
        }
        assert!(rest.is_empty());
    }
    swap.finish(&mut out);
    let swapped = swap.swapped();
    (out, swapped.count, swapped.left)
}

fn text(swapped: (Vec<u8>, u32, u32)) -> String {
    String::from_utf8(swapped.0).unwrap()
}

#[test]
fn values_are_written_as_the_kind_asks() {
    let table = table();
    let body = format!("k={BARE}&l=sk_S.SE{OTHER}");
    for (kind, written) in [
        (BodyKind::Raw, VALUE),
        (BodyKind::Json, "a&b=c\\\"\\\\ é\\u0009/+"),
        (BodyKind::Form, "a%26b%3Dc%22%5C%20%C3%A9%09%2F%2B"),
    ] {
        let swapped = text(swap(kind, &table, &[body.as_bytes()]));
        assert_eq!(swapped, format!("k={written}&l={written}"), "{kind:?}");
    }
    // What was written is the value, to who reads that kind.
    let body = text(swap(
        BodyKind::Json,
        &table,
        &[format!("\"{BARE}\"").as_bytes()],
    ));
    assert_eq!(serde_json::from_str::<String>(&body).unwrap(), VALUE);
}

#[test]
fn only_whole_tokens_that_open_are_swapped() {
    let table = table();
    let short = BARE.get(..BARE.len() - 1).unwrap();
    for (body, expected, counts) in [
        (String::new(), String::new(), (0, 0)),
        (BARE.to_owned(), VALUE.to_owned(), (1, 0)),
        (format!("x{BARE}0"), format!("x{VALUE}0"), (1, 0)),
        (format!("{BARE}{BARE}"), format!("{VALUE}{VALUE}"), (2, 0)),
        (OTHER.to_owned(), OTHER.to_owned(), (0, 1)),
        (format!("k_S.SE{OTHER}"), format!("k_S.SE{OTHER}"), (0, 1)),
        (
            format!("sk_S.sk_S.SE{OTHER}"),
            format!("sk_S.{VALUE}"),
            (1, 0),
        ),
        (HEADER_ONLY.to_owned(), HEADER_ONLY.to_owned(), (0, 1)),
        (UNKNOWN.to_owned(), UNKNOWN.to_owned(), (0, 1)),
        (format!("SEALED_{BARE}"), format!("SEALED_{VALUE}"), (1, 0)),
        (short.to_owned(), short.to_owned(), (0, 0)),
        (BARE.to_uppercase(), BARE.to_uppercase(), (0, 0)),
        (BARE.replace('_', "%5F"), BARE.replace('_', "%5F"), (0, 0)),
        (
            BARE.replace('S', "\\u0053"),
            BARE.replace('S', "\\u0053"),
            (0, 0),
        ),
    ] {
        for cut in 0..=body.len() {
            let pieces = [&body.as_bytes()[..cut], &body.as_bytes()[cut..]];
            let (out, count, left) = swap(BodyKind::Raw, &table, &pieces);
            assert_eq!(String::from_utf8(out).unwrap(), expected, "{body} at {cut}");
            assert_eq!((count, left), counts, "{body} at {cut}");
        }
        let single: Vec<&[u8]> = body.as_bytes().chunks(1).collect();
        let (out, count, left) = swap(BodyKind::Raw, &table, &single);
        assert_eq!(String::from_utf8(out).unwrap(), expected, "{body} by bytes");
        assert_eq!((count, left), counts, "{body} by bytes");
    }
}

#[test]
fn a_value_that_looks_like_a_token_is_not_swapped_again() {
    let table = table_of(BARE, "p-");
    let body = format!("{BARE}p-{OTHER}");
    for cut in 0..=body.len() {
        let pieces = [&body.as_bytes()[..cut], &body.as_bytes()[cut..]];
        let (out, count, _) = swap(BodyKind::Raw, &table, &pieces);
        assert_eq!(out, format!("{BARE}{BARE}").as_bytes(), "{cut}");
        assert_eq!(count, 2);
    }
}

#[test]
fn a_prefix_that_holds_a_token_is_counted_once() {
    let table = table_of(VALUE, "SEALED_ffffffffffffffffffffffffffffffff-");
    let body = format!("{UNKNOWN}-{OTHER} {UNKNOWN}-{UNKNOWN}-");
    let expected = format!("{VALUE} {UNKNOWN}-{UNKNOWN}-");
    for size in 1..=body.len() {
        let pieces: Vec<&[u8]> = body.as_bytes().chunks(size).collect();
        let (out, count, left) = swap(BodyKind::Raw, &table, &pieces);
        assert_eq!(String::from_utf8(out).unwrap(), expected, "{size}");
        assert_eq!((count, left), (1, 3), "{size}");
    }
}

#[test]
fn only_what_may_be_a_token_is_held_back() {
    let table = table();
    for (body, held) in [
        ("", 0),
        ("{\"a\":1}\n", 0),
        ("S", 1),
        ("SEALED", 6),
        ("xSEALEDx", 0),
        ("SEALED_0123", 11),
        ("SEALED_012g", 0),
        (BARE.get(..38).unwrap(), 38),
        (UNKNOWN, 0),
        ("sk_S.SE", 7),
        ("sk_S.SES", 8),
        ("sk_S.SX", 0),
        ("ask_S.SESEALED_00", 16),
    ] {
        let mut swap = BodySwap::new(BodyKind::Raw, Arc::clone(&table));
        let mut out = Vec::new();
        swap.push(&mut body.as_bytes(), &mut out).unwrap();
        assert_eq!(body.len() - out.len(), held, "{body}");
        swap.finish(&mut out);
        assert_eq!(out, body.as_bytes());
    }
}

#[test]
fn a_message_has_so_many_tokens_and_no_more() {
    let table = table();
    let many = |count: u32| BARE.repeat(count as usize);
    let (out, count, _) = swap(
        BodyKind::Raw,
        &table,
        &[many(SUBSTITUTION_LIMIT).as_bytes()],
    );
    assert_eq!(count, SUBSTITUTION_LIMIT);
    assert_eq!(out, VALUE.repeat(SUBSTITUTION_LIMIT as usize).as_bytes());
    let mut over = BodySwap::new(BodyKind::Raw, table);
    let body = many(SUBSTITUTION_LIMIT + 1);
    let (mut rest, mut out) = (body.as_bytes(), Vec::new());
    let ended = loop {
        match over.push(&mut rest, &mut out) {
            Ok(Progress::Full) => {}
            ended => break ended,
        }
    };
    assert_eq!(ended, Err(Error::Limit));
}

#[test]
fn growth_comes_in_bounded_pieces() {
    let table = table_of(&"\u{1}".repeat(8192), "p-");
    let body = BARE.repeat(300);
    let (out, count, _) = swap(BodyKind::Json, &table, &[body.as_bytes()]);
    assert_eq!((out.len(), count), (300 * 6 * 8192, 300));
}

/// Text in which tokens, and what is almost one, are frequent.
fn bodies() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        Just(BARE.as_bytes().to_vec()),
        Just(OTHER.as_bytes().to_vec()),
        Just([b"sk_S.SE", OTHER.as_bytes()].concat()),
        Just(HEADER_ONLY.as_bytes().to_vec()),
        (0..39_usize).prop_map(|end| BARE.as_bytes()[..end].to_vec()),
        (0..7_usize).prop_map(|end| b"sk_S.SE"[..end].to_vec()),
        prop::collection::vec(any::<u8>(), 0..20),
        "[S_EALD0-9a-f]{0,50}".prop_map(String::into_bytes),
    ];
    prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

/// What the swap is, in as few words as possible: the next marker that is a token, and so on.
fn plainly(table: &Table, body: &[u8]) -> Vec<u8> {
    let (mut out, mut copied, mut at) = (Vec::new(), 0, 0);
    while at < body.len() {
        let id = body[at..].strip_prefix(MARKER).and_then(TokenId::read);
        let opened = id.and_then(|id| table.open(id, &body[copied..at], Place::Body));
        if let Some(opening) = opened {
            out.extend_from_slice(&body[copied..at - opening.prefix_length]);
            out.extend_from_slice(opening.secret.expose());
            at += BARE_LENGTH;
            copied = at;
        } else {
            at += 1;
        }
    }
    out.extend_from_slice(&body[copied..]);
    out
}

proptest! {
    /// P1: however a body is cut, the same comes out.
    #[test]
    fn any_cut_gives_the_same(
        body in bodies(),
        cuts in prop::collection::vec(1usize..60, 1..40),
    ) {
        let table = table();
        let (mut pieces, mut rest) = (Vec::new(), body.as_slice());
        for cut in cuts.iter().cycle() {
            if rest.is_empty() { break }
            let (piece, left) = rest.split_at((*cut).min(rest.len()));
            pieces.push(piece);
            rest = left;
        }
        let whole = swap(BodyKind::Raw, &table, &[&body]);
        prop_assert_eq!(&whole.0, &plainly(&table, &body));
        prop_assert_eq!(swap(BodyKind::Raw, &table, &pieces), whole);
    }

    /// P2: no byte outside of a token changes.
    #[test]
    fn what_is_no_token_stays(body in bodies(), random in prop::collection::vec(any::<u8>(), 0..3000)) {
        let table = table();
        prop_assume!(memchr::memmem::find(&random, MARKER).is_none());
        prop_assert_eq!(swap(BodyKind::Form, &table, &[&random]).0, random);
        // Putting the tokens back gives what was sent: every other byte is where it was.
        let marked = table_of("\u{1}\u{2}\u{3}", "sk_S.SE");
        let (out, count, _) = swap(BodyKind::Raw, &marked, &[&body]);
        if count == 0 {
            prop_assert_eq!(out, body);
        } else {
            let mut expected = body.as_slice();
            for kept in split(&out, b"\x01\x02\x03") {
                let at = memchr::memmem::find(expected, &kept);
                prop_assert!(at.is_some());
                expected = &expected[at.unwrap() + kept.len()..];
            }
        }
    }
}

fn split(text: &[u8], between: &[u8]) -> Vec<Vec<u8>> {
    let (mut parts, mut rest) = (Vec::new(), text);
    while let Some(at) = memchr::memmem::find(rest, between) {
        parts.push(rest[..at].to_vec());
        rest = &rest[at + between.len()..];
    }
    parts.push(rest.to_vec());
    parts
}
