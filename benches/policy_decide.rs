//! Times the decisions of `policy`: one per tunnel and, for addresses, one per look-up.
//!
//! The longest list that a session may bring (1,000 hosts) is the case to watch: it is walked line
//! by line.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a bench has no callers, and stops where its own input is wrong"
)]

use std::hint::black_box;
use std::net::IpAddr;

use criterion::{Criterion, criterion_group, criterion_main};
use oshu_vault::host::HostPort;
use oshu_vault::policy::{
    AddressRules, Cidr, EgressPolicy, EgressRules, SecretScope, classify, vet,
};

fn decide(c: &mut Criterion) {
    let addresses = AddressRules::new(vec![Cidr::parse("10.0.0.0/8").unwrap()], false)
        .with_own(["127.0.0.1:8080".parse().unwrap()]);
    let lines: Vec<String> = (0..500)
        .flat_map(|n| {
            [
                format!("host{n}.example.com"),
                format!("*.zone{n}.example.com"),
            ]
        })
        .collect();
    let any = EgressPolicy::new(EgressRules::any_public(false));
    let short = EgressPolicy::new(EgressRules::parse(lines.split_at(10).0).unwrap());
    let long = EgressPolicy::new(EgressRules::parse(&lines).unwrap());
    let mut group = c.benchmark_group("policy_decide");
    for (name, policy, target) in [
        ("any_public", &any, "api.example.com:443"),
        ("literal", &any, "[2606:4700:4700::1111]:443"),
        ("ten_lines_last", &short, "a.zone4.example.com:443"),
        ("thousand_lines_last", &long, "a.zone499.example.com:443"),
        ("thousand_lines_none", &long, "api.example.org:443"),
    ] {
        let target = HostPort::parse(target).unwrap();
        group.bench_function(name, |b| {
            b.iter(|| {
                black_box(policy)
                    .decide(black_box(&target), &addresses)
                    .is_ok()
            });
        });
    }
    group.finish();
}

fn addresses(c: &mut Criterion) {
    let rules = AddressRules::new(Vec::new(), false);
    let [v4, v6]: [IpAddr; 2] = ["1.1.1.1", "2606:4700::1111"].map(|text| text.parse().unwrap());
    let answer = [v4, v6, v4, v6];
    let scope =
        SecretScope::parse(&["github.com", "api.github.com", "uploads.github.com"]).unwrap();
    let target = HostPort::parse("uploads.github.com:443").unwrap();
    let mut group = c.benchmark_group("policy_address");
    group.bench_function("classify_v4", |b| b.iter(|| classify(black_box(v4))));
    group.bench_function("classify_v6", |b| b.iter(|| classify(black_box(v6))));
    group.bench_function("vet_four", |b| {
        b.iter(|| vet(black_box(&answer), 443, &rules));
    });
    group.bench_function("scope_covers", |b| {
        b.iter(|| scope.covers(black_box(&target)));
    });
    group.finish();
}

criterion_group!(benches, decide, addresses);
criterion_main!(benches);
