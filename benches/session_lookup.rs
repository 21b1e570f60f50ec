//! What a tunnel and a request pay to know their session.
//!
//! A tunnel authenticates once and makes a view of its host; a request compares the view's version
//! with the session's, and makes a new view only after a patch.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a bench has no callers, and stops where its own input is wrong"
)]

#[path = "support/sessions.rs"]
mod support;

use std::hint::black_box;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use criterion::{Criterion, criterion_group, criterion_main};
use oshu_vault::host::HostPort;
use oshu_vault::id::TenantId;
use oshu_vault::policy::Scheme;
use oshu_vault::seal::Keyring;
use oshu_vault::secret::Secret;
use oshu_vault::session::{Created, Form, SecretForm, Sessions};
use oshu_vault::store::Memory;
use tokio::runtime::Runtime;

/// A prime: a walk in such steps comes to every one of a thousand or of 100,000.
const STEP: usize = 61_813;

fn sessions() -> Sessions {
    support::sessions(Arc::new(Memory::default()), Keyring::generate())
}

/// A session with secrets for as many hosts, the first of which is `api0.example.com`.
fn form(secrets: usize) -> Form {
    let one = |n: usize| {
        let secret = SecretForm {
            value: Secret::new(format!("a-real-value-of-some-length-{n}").into_bytes()),
            hosts: Some(vec![format!("api{n}.example.com")]),
            inject: None,
            prefix: None,
        };
        (format!("KEY_{n}"), secret)
    };
    Form {
        secrets: (0..secrets).map(one).collect(),
        ..Form::default()
    }
}

fn create(runtime: &Runtime, sessions: &Sessions, secrets: usize) -> Created {
    let tenant = TenantId::new(support::TENANT);
    let created = sessions.create(&tenant, form(secrets));
    runtime.block_on(created).unwrap()
}

fn pair(created: &Created) -> String {
    format!("{}:{}", created.handle.id(), created.credential.expose())
}

fn encoded(pair: &str) -> String {
    format!("Basic {}", STANDARD.encode(pair))
}

fn value(created: &Created) -> String {
    encoded(&pair(created))
}

fn authenticate(criterion: &mut Criterion) {
    let runtime = runtime();
    let mut group = criterion.benchmark_group("session_lookup/authenticate");
    for count in [1, 1000, 100_000] {
        let sessions = sessions();
        let created: Vec<Created> = (0..count).map(|_| create(&runtime, &sessions, 1)).collect();
        let values: Vec<String> = created.iter().map(value).collect();
        let last = created.last().unwrap();
        let wrong = encoded(&pair(last).replace("tok_", "tok-"));
        for (name, value) in [("right", &value(last)), ("wrong", &wrong)] {
            group.bench_function(format!("{name}/{count}"), |bench| {
                bench.iter(|| sessions.authenticate(black_box(value.as_bytes())).is_some());
            });
        }
        // One after the other in an order that no cache foresees.
        let mut at = 0;
        group.bench_function(format!("any/{count}"), |bench| {
            bench.iter(|| {
                at = (at + STEP) % count;
                let value = values.get(at).unwrap();
                sessions.authenticate(value.as_bytes()).is_some()
            });
        });
    }
    group.finish();
}

fn view(criterion: &mut Criterion) {
    let runtime = runtime();
    let target = HostPort::parse("api0.example.com:443").unwrap();
    let mut group = criterion.benchmark_group("session_lookup/host_view");
    for secrets in [1, 100] {
        let sessions = sessions();
        let handle = create(&runtime, &sessions, secrets).handle;
        let view = handle.host_view(&target, Scheme::Https).unwrap();
        if secrets == 1 {
            group.bench_function("still_current", |bench| {
                bench.iter(|| view.version() == black_box(&handle).version());
            });
        }
        group.bench_function(format!("make/{secrets}"), |bench| {
            bench.iter(|| handle.host_view(black_box(&target), Scheme::Https).is_ok());
        });
        group.bench_function(format!("patch_and_make/{secrets}"), |bench| {
            bench.iter(|| {
                let patched = sessions.patch(handle.tenant(), handle.id(), Ok);
                runtime.block_on(patched).unwrap();
                handle.host_view(&target, Scheme::Https).unwrap().version()
            });
        });
    }
    group.finish();
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
}

criterion_group!(benches, authenticate, view);
criterion_main!(benches);
