//! One request on one keep-alive connection, through real sockets: directly, through a proxy that
//! only copies bytes, and through ours with and without a token to swap.
//!
//! The copying proxy is the floor for anything that stands between: what ours takes beyond it is
//! TLS twice and the exchange itself. Origin, proxy and client each have a thread of their own.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::disallowed_methods,
    clippy::format_push_string,
    reason = "a bench has no callers, and stops where its own input is wrong"
)]

mod support;

use std::net::SocketAddr;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use support::vault::vault;
use support::{Client, Origin, Way, connector, on_own_thread, runtime};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;

const MIB: usize = 1024 * 1024;

/// Starts the proxy that copies bytes to the origin, whatever it is asked for.
fn copying(origin: SocketAddr) -> SocketAddr {
    on_own_thread(move |mut down| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(down.read_u8().await.unwrap());
        }
        let mut up = TcpStream::connect(origin).await.unwrap();
        up.set_nodelay(true).unwrap();
        down.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        let _end = copy_bidirectional(&mut down, &mut up).await;
    })
}

fn exchange(criterion: &mut Criterion) {
    let origin = Origin::start();
    let vault = vault(&origin);
    let target = Some(origin.target());
    let tls = connector(&origin.ca_pem);
    let direct = Way {
        address: origin.address,
        target: None,
        authorization: None,
        tls,
    };
    let tunnel = Way {
        address: copying(origin.address),
        target: target.clone(),
        ..direct.clone()
    };
    let authorization = Some(vault.authorization.clone());
    let tls = connector(&vault.ca_pem);
    let intercept = Way {
        address: vault.address,
        target,
        authorization,
        tls,
    };
    let plain = "no-token-at-all-0123456789abcdef";
    let ways = [
        ("direct", &direct, plain),
        ("tunnel", &tunnel, plain),
        ("intercept", &intercept, plain),
        ("intercept_swap", &intercept, vault.token.as_str()),
    ];
    let runtime = runtime();
    let connect = |way| runtime.block_on(Client::connect(way)).unwrap();

    let mut group = criterion.benchmark_group("exchange/small");
    for (name, way, key) in ways {
        let mut client = connect(way);
        let swapped = runtime.block_on(client.get("/200", key)).unwrap();
        assert_eq!(swapped, name == "intercept_swap", "{name}");
        group.bench_function(name, |bench| {
            bench.iter(|| runtime.block_on(client.get("/200", key)).unwrap());
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("exchange/1MiB");
    group
        .throughput(Throughput::Bytes(MIB as u64))
        .sample_size(30);
    for (name, way, key) in ways {
        let mut client = connect(way);
        let path = format!("/{MIB}");
        group.bench_function(format!("down/{name}"), |bench| {
            bench.iter(|| runtime.block_on(client.get(&path, key)).unwrap());
        });
        group.bench_function(format!("up/{name}"), |bench| {
            bench.iter(|| runtime.block_on(client.post(MIB, key)).unwrap());
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("exchange/new_tunnel");
    group.sample_size(30);
    for (name, way, key) in ways {
        group.bench_function(name, |bench| {
            bench.iter(|| {
                runtime.block_on(async {
                    let mut client = Client::connect(way).await.unwrap();
                    client.get("/200", key).await.unwrap()
                })
            });
        });
    }
    group.finish();
}

criterion_group!(benches, exchange);
criterion_main!(benches);
