//! HTTP/2 through real sockets: directly, and through ours towards HTTP/2 and HTTP/1.1 upstreams.
//!
//! One request at a time, thirty-two at once, and large bodies. Origin, proxy and client each have a
//! thread of their own; client and origin are the `h2` crate's.
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

use std::future::poll_fn;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{Request, Response};
use support::vault::vault;
use support::{HOST, Origin, SECRET, Way, connector_for, runtime};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

const MIB: usize = 1024 * 1024;
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;
const AT_ONCE: usize = 32;

async fn drain(mut body: RecvStream) -> usize {
    let mut total = 0;
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        total += data.len();
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    total
}

async fn send(mut stream: SendStream<Bytes>, mut body: Bytes) {
    while !body.is_empty() {
        stream.reserve_capacity(body.len());
        let Some(Ok(room)) = poll_fn(|cx| stream.poll_capacity(cx)).await else {
            return;
        };
        let piece = body.split_to(room.min(body.len()));
        if stream.send_data(piece, body.is_empty()).is_err() {
            return;
        }
    }
}

/// Answers `GET /N` with N bytes, and anything with a body after reading it.
async fn answer(io: TlsStream<TcpStream>) {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    let mut connection = builder.handshake::<_, Bytes>(io).await.unwrap();
    let zeros = Bytes::from(vec![b'0'; MIB]);
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let zeros = zeros.clone();
        tokio::spawn(async move {
            let (head, body) = request.into_parts();
            drain(body).await;
            let swapped = head
                .headers
                .get("x-api-key")
                .is_some_and(|key| key == SECRET);
            let size: usize = head.uri.path()[1..].parse().unwrap_or(200);
            let answer = Response::builder()
                .header("x-swapped", swapped.to_string())
                .header("content-length", size)
                .body(())
                .unwrap();
            let stream = respond.send_response(answer, false).unwrap();
            send(stream, zeros.slice(..size)).await;
        });
    }
}

#[derive(Clone)]
struct Client(SendRequest<Bytes>, String);

impl Client {
    async fn connect(way: &Way) -> Self {
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES);
        let io = way.open().await.unwrap();
        let (sender, connection) = builder.handshake(io).await.unwrap();
        tokio::spawn(connection);
        let authority = way.target.clone().unwrap_or_else(|| HOST.to_owned());
        Self(sender, authority)
    }

    /// Sends a request and reads the answer. Tells whether the origin saw the secret.
    async fn ask(&self, path: &str, key: &str, body: Option<Bytes>) -> bool {
        // Stated, as real clients do: over HTTP/1.1 the origin reads no chunks.
        let length = body.as_ref().map(|body| ("content-length", body.len()));
        let request = Request::builder()
            .method(if body.is_some() { "POST" } else { "GET" })
            .uri(format!("https://{}{path}", self.1))
            .header("user-agent", "bench/1")
            .header("x-api-key", key);
        let request = length.into_iter().fold(request, |request, (name, length)| {
            request.header(name, length)
        });
        let request = request.body(()).unwrap();
        let mut sender = self.0.clone().ready().await.unwrap();
        let (answer, stream) = sender.send_request(request, body.is_none()).unwrap();
        if let Some(body) = body {
            send(stream, body).await;
        }
        let (head, body) = answer.await.unwrap().into_parts();
        assert_eq!(head.status, 200);
        drain(body).await;
        head.headers.get("x-swapped").is_some_and(|it| it == "true")
    }
}

fn http2(criterion: &mut Criterion) {
    let origin = Origin::serving(&[b"h2"], answer);
    let old_origin = Origin::start();
    let (ours, old) = (vault(&origin), vault(&old_origin));
    let direct = Way {
        address: origin.address,
        target: None,
        authorization: None,
        tls: connector_for(&origin.ca_pem, b"h2"),
    };
    let through = |vault: &support::vault::Vault, origin: &Origin| Way {
        address: vault.address,
        target: Some(origin.target()),
        authorization: Some(vault.authorization.clone()),
        tls: connector_for(&vault.ca_pem, b"h2"),
    };
    let (to_new, to_old) = (through(&ours, &origin), through(&old, &old_origin));
    let plain = "no-token-at-all-0123456789abcdef";
    let ways = [
        ("direct", &direct, plain),
        ("h2_to_h2", &to_new, plain),
        ("h2_to_h2_swap", &to_new, ours.token.as_str()),
        ("h2_to_h1_swap", &to_old, old.token.as_str()),
    ];
    let runtime = runtime();
    let upload = Bytes::from(vec![b'0'; MIB]);

    let mut group = criterion.benchmark_group("http2");
    group.sample_size(40);
    for (name, way, key) in ways {
        let client = runtime.block_on(Client::connect(way));
        let swapped = runtime.block_on(client.ask("/200", key, None));
        assert_eq!(swapped, name.ends_with("swap"), "{name}");
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("small/{name}"), |bench| {
            bench.iter(|| runtime.block_on(client.ask("/200", key, None)));
        });
        group.throughput(Throughput::Elements(AT_ONCE as u64));
        group.bench_function(format!("{AT_ONCE}_at_once/{name}"), |bench| {
            bench.iter(|| {
                let asks = (0..AT_ONCE).map(|_| client.ask("/200", key, None));
                runtime.block_on(futures_util::future::join_all(asks))
            });
        });
        group.throughput(Throughput::Bytes(MIB as u64));
        let path = format!("/{MIB}");
        group.bench_function(format!("1MiB_down/{name}"), |bench| {
            bench.iter(|| runtime.block_on(client.ask(&path, key, None)));
        });
        group.bench_function(format!("1MiB_up/{name}"), |bench| {
            bench.iter(|| runtime.block_on(client.ask("/upload", key, Some(upload.clone()))));
        });
    }
    group.finish();
}

criterion_group!(benches, http2);
criterion_main!(benches);
