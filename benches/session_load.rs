//! What a start pays for the sessions that are there: 100,000 rows of the file, opened and live.
//!
//! Beside it what one durable creation costs alone, and 64 of them at once, which share a commit.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a bench has no callers, and stops where its own input is wrong"
)]

#[path = "support/sessions.rs"]
mod support;

use std::path::Path;
use std::sync::Arc;

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use futures_util::future::join_all;
use oshu_vault::id::TenantId;
use oshu_vault::seal::Keyring;
use oshu_vault::secret::Secret;
use oshu_vault::session::{Form, SecretForm, Sessions};
use oshu_vault::store::{Disk, Memory, Store};
use tokio::runtime::Runtime;

const SESSIONS: u32 = 100_000;
/// How many creations are at work at once while the store is filled.
const TOGETHER: u32 = 500;
const KEY: [u8; 64] = [b'7'; 64];

fn sessions(store: Arc<dyn Store>) -> Arc<Sessions> {
    let keyring = Keyring::parse(&KEY).unwrap();
    Arc::new(support::sessions(store, keyring))
}

fn form() -> Form {
    let secret = SecretForm {
        value: Secret::new(b"a-real-value-of-some-length".to_vec()),
        hosts: Some(vec!["api.example.com".to_owned()]),
        inject: None,
        prefix: None,
    };
    Form {
        secrets: [("API_KEY".to_owned(), secret)].into(),
        allowed_egress: Some(vec!["api.example.com".to_owned()]),
        ..Form::default()
    }
}

async fn create(sessions: &Sessions, count: u32) {
    let tenant = TenantId::new(support::TENANT);
    let all = (0..count).map(|_| sessions.create(&tenant, form()));
    for created in join_all(all).await {
        created.unwrap();
    }
}

/// Fills a store with live sessions.
fn fill(runtime: &Runtime, path: &Path) -> Arc<dyn Store> {
    let store: Arc<dyn Store> = Arc::new(Disk::open(path).unwrap());
    let sessions = sessions(Arc::clone(&store));
    runtime.block_on(async {
        sessions.load().await.unwrap();
        for _ in 0..SESSIONS / TOGETHER {
            create(&sessions, TOGETHER).await;
        }
    });
    store
}

fn load(criterion: &mut Criterion) {
    let (runtime, folder) = (Runtime::new().unwrap(), tempfile::tempdir().unwrap());
    let store = fill(&runtime, &folder.path().join("store"));
    let mut group = criterion.benchmark_group("session_load");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.throughput(Throughput::Elements(u64::from(SESSIONS)));
    group.bench_function("start/100000", |bench| {
        bench.iter(|| {
            let sessions = sessions(Arc::clone(&store));
            let loaded = runtime.block_on(sessions.load()).unwrap();
            assert_eq!(loaded.live, usize::try_from(SESSIONS).unwrap());
            sessions
        });
    });
    group.finish();
}

fn creation(criterion: &mut Criterion) {
    let (runtime, folder) = (Runtime::new().unwrap(), tempfile::tempdir().unwrap());
    let file: Arc<dyn Store> = Arc::new(Disk::open(&folder.path().join("store")).unwrap());
    let mut group = criterion.benchmark_group("session_load/create");
    for (name, store) in [("memory", Arc::new(Memory::default()) as _), ("redb", file)] {
        let sessions = sessions(store);
        for together in [1, 64] {
            group.throughput(Throughput::Elements(u64::from(together)));
            group.bench_function(format!("{name}/{together}"), |bench| {
                bench.iter(|| runtime.block_on(create(&sessions, together)));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, load, creation);
criterion_main!(benches);
