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
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use oshu_vault::app::{App, Parts, TENANT};
use oshu_vault::audit::Sink;
use oshu_vault::authority::{CertificateAuthority, Root};
use oshu_vault::config::{self, Config};
use oshu_vault::host::Host;
use oshu_vault::id::TenantId;
use oshu_vault::secret::{Fingerprint, Secret};
use oshu_vault::session::{Form, SecretForm};
use support::{Client, HOST, Origin, SECRET, SECRET_NAME, Way, connector, on_own_thread, runtime};
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

/// What a client needs to come through our proxy.
struct Vault {
    address: SocketAddr,
    ca_pem: String,
    authorization: String,
    token: String,
}

/// Starts the whole service on a thread of its own, with one session.
fn vault(origin: &Origin) -> Vault {
    let folder = tempfile::tempdir().unwrap();
    let ca_file = folder.path().join("origin.pem");
    std::fs::write(&ca_file, &origin.ca_pem).unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        runtime().block_on(async move {
            let (app, ca_pem) = app(ca_file).await;
            let secret = SecretForm {
                value: Secret::new(SECRET.into()),
                hosts: Some(vec![HOST.to_owned()]),
                inject: None,
                prefix: None,
            };
            let form = Form {
                secrets: [(SECRET_NAME.to_owned(), secret)].into(),
                ..Form::default()
            };
            let tenant = TenantId::new(TENANT);
            let created = app.sessions().create(&tenant, form).await.unwrap();
            let pair = format!("{}:{}", created.handle.id(), created.credential.expose());
            let vault = Vault {
                address: app.listening().plain.unwrap(),
                ca_pem,
                authorization: format!("Basic {}", STANDARD.encode(pair)),
                token: created.sealed_secrets[SECRET_NAME].clone(),
            };
            tell.send(vault).unwrap();
            std::future::pending::<()>().await;
        });
    });
    told.recv().unwrap()
}

async fn app(origin_ca: std::path::PathBuf) -> (App, String) {
    let any_port = Some("127.0.0.1:0".parse().unwrap());
    let mut config = Config {
        dev: true,
        ..Config::default()
    };
    config.proxy.listen = any_port;
    config.admin.listen = any_port;
    config.upstream.ca_files = vec![origin_ca];
    config.upstream.resolve = vec![config::Resolve {
        host: Host::parse(HOST).unwrap(),
        ip: [127, 0, 0, 1].into(),
        port: None,
    }];
    let root = Root::generate("bench").unwrap();
    let ca_pem = root.cert_pem().to_owned();
    let parts = Parts {
        authority: Arc::new(CertificateAuthority::new(root).unwrap()),
        api_key: Fingerprint::of(b"bench"),
        audit: Sink::to_writer(Box::new(std::io::sink())),
    };
    (App::start(&config, parts).await.unwrap(), ca_pem)
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
