//! An audit record: what it costs the request that ends it, and the thread that writes its line,
//! chained in a file or not.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a bench that cannot be set up should stop"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use oshu_vault::audit::{Decision, FileOptions, Kind, Record, Sink};
use oshu_vault::host::HostPort;
use oshu_vault::id::{SessionId, TenantId};
use oshu_vault::policy::Catalogue;
use oshu_vault::seal::Keyring;

/// So many records fit the queue with room to spare.
const RECORDS: u64 = 4000;

/// What every record here is about.
struct About {
    tenant: TenantId,
    session: SessionId,
    target: HostPort,
    names: [Arc<str>; 1],
}

impl About {
    fn new() -> Self {
        Self {
            tenant: TenantId::new("acme"),
            session: SessionId::generate(),
            target: HostPort::parse("api.anthropic.com:443").unwrap(),
            names: [Arc::from("ANTHROPIC_API_KEY")],
        }
    }

    fn emit(&self, sink: &Sink) {
        let mut record = Record::begin(sink, Kind::Exchange);
        record.tenant(&self.tenant);
        record.session(&self.session);
        record.target(&self.target);
        record.request("POST", "/v1/messages");
        record.admit().expect("room");
        record.swapped(&self.names, 0);
        record.decision(Decision::Allowed, "ok");
        record.status(200);
        record.bytes_up(512);
        record.bytes_down(4096);
    }
}

fn audit(criterion: &mut Criterion) {
    let about = About::new();
    let folder = tempfile::tempdir().expect("a directory");
    let options = FileOptions {
        path: folder.path().join("audit.jsonl"),
        rotate_bytes: 64 * 1024 * 1024,
        keep: 1,
    };
    let chained = Sink::to_file(options, &Keyring::generate()).expect("a file");
    let plain = std::fs::File::create(folder.path().join("plain.jsonl")).expect("a file");
    let plain = Sink::to_writer(Box::new(plain));
    let mut group = criterion.benchmark_group("audit");
    group.throughput(Throughput::Elements(RECORDS));
    for (name, sink) in [("plain", &plain), ("chained", &chained)] {
        sink.classify_by(&Arc::new(Catalogue::builtin()));
        // The time of those who make records; the writer is not waited for.
        group.bench_function(format!("hand_over/{name}"), |bench| {
            bench.iter_custom(|rounds| {
                let mut spent = Duration::ZERO;
                for _ in 0..rounds {
                    let began = Instant::now();
                    (0..RECORDS).for_each(|_| about.emit(sink));
                    spent += began.elapsed();
                    sink.flush();
                }
                spent
            });
        });
        // Until all lines are in the file.
        group.bench_function(format!("write/{name}"), |bench| {
            bench.iter(|| {
                (0..RECORDS).for_each(|_| about.emit(sink));
                sink.flush();
            });
        });
    }
    group.finish();
    assert_eq!(chained.stats().lost + plain.stats().lost, 0);
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(3));
    targets = audit
}
criterion_main!(benches);
