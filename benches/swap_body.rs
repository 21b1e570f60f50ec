//! The swap of request bodies: what every body pays that may hold a sealed token.
//!
//! Bodies go through in pieces of 16 KiB, as TLS records bring them: random bytes and JSON without
//! a token, and with one in the middle. Copying into the outgoing buffer is part of what is
//! measured. Run with `cargo bench --bench swap_body`.
#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    missing_docs,
    reason = "a bench may panic and has no callers"
)]

#[path = "support/random.rs"]
mod random;

use std::fmt::Write;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use oshu_vault::sealed_token::{Place, TokenId};
use oshu_vault::secret::Secret;
use oshu_vault::swap::{BodyKind, BodySwap, Lookup, Opening};
use oshu_vault::wire::Progress;

use self::random::Random;

const KIB: usize = 1024;
/// A TLS record.
const PIECE: usize = 16 * KIB;
const SIZES: [(&str, usize); 4] = [
    ("1KiB", KIB),
    ("64KiB", 64 * KIB),
    ("1MiB", KIB * KIB),
    ("10MiB", 10 * KIB * KIB),
];
const TOKEN: &str = "SEALED_0123456789abcdef0123456789abcdef";

/// One secret that may stand in bodies.
struct One {
    id: TokenId,
    secret: Secret,
    name: Arc<str>,
}

impl Lookup for One {
    fn open<'a>(&'a self, id: TokenId, _before: &[u8], _place: Place<'_>) -> Option<Opening<'a>> {
        (id == self.id).then_some(Opening {
            prefix_length: 0,
            secret: &self.secret,
            name: &self.name,
        })
    }
}

fn random(length: usize) -> Vec<u8> {
    let mut random = Random(7);
    (0..length)
        .map(|_| random.next().to_be_bytes()[0])
        .collect()
}

/// A request of an API: messages with words and numbers.
fn json(length: usize) -> Vec<u8> {
    let mut random = Random(11);
    let mut text = String::from("{\"messages\":[");
    while text.len() < length {
        let number = random.next() % 100_000;
        write!(
            text,
            "{{\"role\":\"user\",\"id\":{number},\"content\":[{{\"type\":\"text\",\"text\":\"The \
             quick brown fox \\u2014 \\\"jumps\\\" over SEVERAL lazy dogs.\\n\"}}]}},"
        )
        .unwrap();
    }
    text.truncate(length);
    text.into_bytes()
}

/// Puts a token into the middle of a body.
fn with_token(mut body: Vec<u8>) -> Vec<u8> {
    let middle = body.len() / 2;
    body[middle..middle + TOKEN.len()].copy_from_slice(TOKEN.as_bytes());
    body
}

/// Lets a body through, and returns how many tokens were swapped.
fn run(one: &Arc<One>, kind: BodyKind, body: &[u8], out: &mut Vec<u8>) -> u32 {
    let mut swap = BodySwap::new(kind, Arc::clone(one));
    for mut piece in body.chunks(PIECE) {
        while swap.push(&mut piece, out).unwrap() == Progress::Full {
            out.clear();
        }
        out.clear();
    }
    swap.finish(out);
    swap.swapped().count
}

fn swap_body(criterion: &mut Criterion) {
    let one = Arc::new(One {
        id: TokenId::read(&TOKEN.as_bytes()[7..]).unwrap(),
        secret: Secret::new(format!("sk-{:0>105}", 7).into_bytes()),
        name: "NAME".into(),
    });
    let mut group = criterion.benchmark_group("swap_body");
    let mut out = Vec::with_capacity(2 * PIECE);
    for (size, length) in SIZES {
        group.throughput(Throughput::Bytes(length as u64));
        for (name, kind, body, count) in [
            ("random", BodyKind::Raw, random(length), 0),
            ("json", BodyKind::Json, json(length), 0),
            ("random_one", BodyKind::Raw, with_token(random(length)), 1),
            ("json_one", BodyKind::Json, with_token(json(length)), 1),
        ] {
            group.bench_function(BenchmarkId::new(name, size), |bencher| {
                bencher.iter(|| assert_eq!(run(&one, kind, &body, &mut out), count));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, swap_body);
criterion_main!(benches);
