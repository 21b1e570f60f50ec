//! The cost of a leaf: minted, found, and asked for by many at once.
//!
//! `cold` is a host never seen (one signature), `warm` the hit that every further tunnel pays,
//! `contended` many first requests for one host, which must cost about as much as one.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a bench stops by panicking, and its macro makes an undocumented main"
)]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use oshu_vault::authority::{CertificateAuthority, Root};
use oshu_vault::host::Host;
use tokio::runtime::{Builder, Runtime};

/// The requests at once of the contended case.
const REQUESTS: usize = 64;

fn authority() -> CertificateAuthority {
    CertificateAuthority::new(Root::generate("Bench root").unwrap()).unwrap()
}

fn single() -> Runtime {
    Builder::new_current_thread().build().unwrap()
}

/// Hosts that were never asked for.
fn fresh_hosts() -> impl FnMut() -> Host {
    let mut number = 0_u64;
    move || {
        number += 1;
        Host::parse(&format!("h{number}.example")).unwrap()
    }
}

fn cold(criterion: &mut Criterion) {
    let (authority, runtime, mut next) = (authority(), single(), fresh_hosts());
    let mut group = criterion.benchmark_group("cold");
    group.bench_function("certified_key", |bencher| {
        bencher.iter_batched(
            &mut next,
            |host| runtime.block_on(authority.certified_key(&host)).unwrap(),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn warm(criterion: &mut Criterion) {
    let (authority, runtime) = (authority(), single());
    let host = Host::parse("api.example.com").unwrap();
    let mut group = criterion.benchmark_group("warm");
    group.bench_function("certified_key", |bencher| {
        bencher.iter(|| {
            let key = authority.certified_key(black_box(&host));
            runtime.block_on(key).unwrap()
        });
    });
    group.bench_function("server_config", |bencher| {
        bencher.iter(|| {
            let config = authority.server_config(black_box(&host));
            runtime.block_on(config).unwrap()
        });
    });
    group.finish();
}

fn contended(criterion: &mut Criterion) {
    let (authority, mut next) = (Arc::new(authority()), fresh_hosts());
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    let mut group = criterion.benchmark_group("contended");
    group.bench_function("first_requests_64", |bencher| {
        bencher.iter_batched(
            &mut next,
            |host| {
                let before = authority.minted();
                runtime.block_on(async {
                    let mut requests = tokio::task::JoinSet::new();
                    for _ in 0..REQUESTS {
                        let (authority, host) = (Arc::clone(&authority), host.clone());
                        requests.spawn(async move { authority.certified_key(&host).await });
                    }
                    black_box(requests.join_all().await);
                });
                assert_eq!(authority.minted(), before + 1);
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, cold, warm, contended);
criterion_main!(benches);
