//! The scrub of answers that hold no value: what every answer of a host with secrets pays.
//!
//! Bodies of JSON and of random bytes go through a stream in pieces of 16 KiB, as TLS records
//! bring them; a last group sends single events. Copying into the outgoing buffer is part of what
//! is measured. Run with `cargo bench --bench scrub`.
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

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use oshu_vault::secret::Secret;
use oshu_vault::swap::{ScrubStream, Scrubber};

use self::random::Random;

const KIB: usize = 1024;
/// A TLS record.
const PIECE: usize = 16 * KIB;
const SIZES: [(&str, usize); 3] = [
    ("64KiB", 64 * KIB),
    ("1MiB", KIB * KIB),
    ("10MiB", 10 * KIB * KIB),
];

fn scrubber(count: usize) -> Arc<Scrubber> {
    let mut random = Random(7);
    let secrets = (0..count).map(|number| {
        let value = format!("sk-ant-api03-{}", random.text(40));
        let token = format!("SEALED_{:032x}", random.next());
        let name = format!("SECRET_{number}");
        (
            Secret::new(value.into_bytes()),
            Bytes::from(token),
            Arc::from(name),
        )
    });
    Arc::new(Scrubber::new(secrets).unwrap())
}

/// An answer of an API: a list of objects with ids, words, numbers and addresses.
fn json(length: usize) -> Vec<u8> {
    let mut random = Random(11);
    let mut text = String::from("{\"data\":[");
    while text.len() < length {
        let (id, number) = (random.text(24), random.next() % 100_000);
        write!(
            text,
            "{{\"id\":\"msg_{id}\",\"object\":\"list.item\",\"created_at\":\"2026-01-01T00:00:00Z\",\
             \"name\":\"An item with a name of some words\",\"count\":{number},\"ok\":true,\
             \"url\":\"https:\\/\\/api.example.com\\/v1\\/items\\/{number}?page=2&sort=%2Bname\",\
             \"text\":\"The quick brown fox \\u2014 \\\"jumps\\\" over the lazy dog.\\n\"}},"
        )
        .unwrap();
    }
    text.truncate(length);
    text.into_bytes()
}

fn noise(length: usize) -> Vec<u8> {
    let mut random = Random(13);
    (0..length / 8)
        .flat_map(|_| random.next().to_le_bytes())
        .collect()
}

fn bodies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scrub");
    for (kind, make) in [("json", json as fn(usize) -> Vec<u8>), ("random", noise)] {
        for count in [1, 20] {
            let scrubber = scrubber(count);
            for (size, length) in SIZES {
                let body = make(length);
                let mut out = Vec::with_capacity(2 * PIECE);
                group.throughput(Throughput::Bytes(length as u64));
                let id = BenchmarkId::new(format!("{kind}/{count}"), size);
                group.bench_with_input(id, &body, |bencher, body| {
                    bencher.iter(|| {
                        let mut stream = ScrubStream::new(Arc::clone(&scrubber));
                        for piece in body.chunks(PIECE) {
                            out.clear();
                            stream.push(piece, &mut out);
                        }
                        stream.finish(&mut out);
                        assert!(stream.scrubbed().is_empty());
                    });
                });
            }
        }
    }
    group.finish();
}

fn events(criterion: &mut Criterion) {
    let event = b"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\
        \"delta\":{\"type\":\"text_delta\",\"text\":\" and some words\"}}\n\n";
    let mut group = criterion.benchmark_group("scrub_event");
    group.throughput(Throughput::Bytes(event.len() as u64));
    for count in [1, 20] {
        let mut stream = ScrubStream::new(scrubber(count));
        let mut out = Vec::with_capacity(PIECE);
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| {
                out.clear();
                stream.push(event, &mut out);
                assert_eq!(out.len(), event.len(), "an event is never held back");
            });
        });
    }
    group.finish();
}

fn preparation(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scrub_prepare");
    for count in [1, 20] {
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| scrubber(count));
        });
    }
    group.finish();
}

criterion_group!(benches, bodies, events, preparation);
criterion_main!(benches);
