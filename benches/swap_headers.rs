//! The swap of one request's head: what every request pays, with and without a token.
//!
//! Look-up and check of places are part of what is measured; parsing and copying the head are
//! not. Run with `cargo bench --bench swap_headers`.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a bench may panic and has no callers"
)]

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use oshu_vault::sealed_token::{MARKER, Place, Places, SealedToken, TokenId};
use oshu_vault::secret::Secret;
use oshu_vault::swap::{Lookup, Opening, Swapper};
use oshu_vault::wire::{RequestHead, parse_request};

/// The secrets of a session that uses a few.
const SECRETS: usize = 10;

/// The heads that are copied before a run over them: few enough to stay in the cache, where a head
/// that was just read is. Criterion's own sizes would measure page faults.
const HEADS: u64 = 32;

struct Entry {
    token: SealedToken,
    places: Places,
    secret: Secret,
    name: Arc<str>,
}

/// A session's tokens towards one host.
struct Table(HashMap<TokenId, Entry>);

impl Lookup for Table {
    fn open<'a>(&'a self, id: TokenId, before: &[u8], place: Place<'_>) -> Option<Opening<'a>> {
        let entry = self.0.get(&id)?;
        let prefix = entry.token.prefix();
        let here = before.ends_with(prefix) && entry.places.allow(place);
        here.then_some(Opening {
            prefix_length: prefix.len(),
            secret: &entry.secret,
            name: &entry.name,
        })
    }
}

/// Makes a table, and prints one of its tokens.
fn table() -> (Table, String) {
    let mut entries = HashMap::new();
    let mut text = String::new();
    for number in 0..SECRETS {
        let token = SealedToken::generate(None);
        text = token.to_string();
        let places = Places {
            headers: vec!["x-api-key".into(), "authorization".into()],
            ..Places::default()
        };
        let entry = Entry {
            token,
            places,
            secret: Secret::new(format!("sk-{number:0>105}").into_bytes()),
            name: format!("NAME_{number}").into(),
        };
        entries.insert(entry.token.id(), entry);
    }
    let digits = text.as_bytes().get(MARKER.len()..).unwrap();
    assert!(entries.contains_key(&TokenId::read(digits).unwrap()));
    (Table(entries), text)
}

/// The head of a model call as SDKs send it: twelve fields, and some more where asked for.
fn head(credential: &str, more: usize) -> RequestHead {
    let mut text = format!(
        "POST /v1/messages?beta=true HTTP/1.1\r\nHost: api.anthropic.com\r\n\
         Accept: application/json\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n\
         Connection: keep-alive\r\nContent-Length: 18231\r\nContent-Type: application/json\r\n\
         User-Agent: Anthropic/Python 0.71.0\r\nanthropic-version: 2023-06-01\r\n\
         X-Stainless-Lang: python\r\nX-Stainless-Package-Version: 0.71.0\r\n\
         X-Stainless-Runtime-Version: 3.12.3\r\n{credential}\r\n"
    );
    for number in 0..more {
        write!(
            text,
            "X-Extra-{number}: value number {number} of a field\r\n"
        )
        .unwrap();
    }
    text.push_str("\r\n");
    let head = parse_request(Bytes::from(text)).unwrap();
    assert_eq!(head.fields.len(), 12 + more);
    head
}

fn swap_headers(criterion: &mut Criterion) {
    let (table, token) = table();
    let swapper = Swapper::new();
    let basic = STANDARD.encode(format!("x-access-token:{token}"));
    for (name, head, count) in [
        (
            "none",
            head("x-api-key: not-a-token-but-as-long-as-one-would-be", 0),
            0,
        ),
        ("one", head(&format!("x-api-key: {token}"), 0), 1),
        (
            "bearer",
            head(&format!("Authorization: Bearer {token}"), 0),
            1,
        ),
        (
            "basic",
            head(&format!("Authorization: Basic {basic}"), 0),
            1,
        ),
        ("forty", head(&format!("x-api-key: {token}"), 28), 1),
    ] {
        let mut group = criterion.benchmark_group("swap_headers");
        group.bench_function(name, |bencher| {
            bencher.iter_batched_ref(
                || head.clone(),
                |head| {
                    let swapped = swapper.swap_request(head, &table).unwrap();
                    assert_eq!(swapped.count, count);
                    swapped
                },
                BatchSize::NumIterations(HEADS),
            );
        });
        group.finish();
    }
}

criterion_group!(benches, swap_headers);
criterion_main!(benches);
