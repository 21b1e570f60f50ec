//! Sealing and opening a secret: what a session costs per secret when it is made and loaded.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use oshu_vault::seal::{Context, Keyring};

fn seal_open(criterion: &mut Criterion) {
    let keys = Keyring::generate();
    let context = Context {
        tenant: "acme",
        session: "sess_0123456789abcdef0123456789abcdef",
        name: "ANTHROPIC_API_KEY",
    };
    let mut group = criterion.benchmark_group("seal_open");
    for length in [64_u16, 8192] {
        let value = vec![b'x'; usize::from(length)];
        let sealed = keys.seal(&context, &value);
        group.throughput(Throughput::Bytes(u64::from(length)));
        group.bench_function(format!("seal/{length}"), |bench| {
            bench.iter(|| keys.seal(black_box(&context), black_box(&value)));
        });
        group.bench_function(format!("open/{length}"), |bench| {
            bench.iter(|| keys.open(black_box(&context), black_box(&sealed)));
        });
    }
    group.finish();
}

criterion_group!(benches, seal_open);
criterion_main!(benches);
