//! What the Claude Gateway adds to a model call: to the first byte of an answer, to the first event
//! of a stream, and to each event after it.
//!
//! A stand-in of the model provider streams events over TLS. It is asked directly, and through the
//! gateway with a JWT of a paid account: over the loopback listener in the clear, over the one with
//! TLS, and where a budget has to be reserved in a store on the disk before anything is sent.
//! Stand-in, gateway and client have a thread each.
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

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::{Buf, BytesMut};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use oshu_vault::app::Storage;
use oshu_vault::config::{Config, ServiceUrl};
use oshu_vault::gateway::PREFIX;
use oshu_vault::id::{AccountId, SandboxName};
use oshu_vault::identity::{Workload, WorkloadKeys};
use oshu_vault::seal::Keyring;
use oshu_vault::secret::Secret;
use oshu_vault::store::Disk;
use support::vault::app;
use support::{HOST, Origin, Stream, Way, connector, read_body, read_head, runtime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio_rustls::server::TlsStream;

/// The operator's credential at the model provider.
const MODEL_KEY: &str = "sk-ant-api03-bench-0123456789abcdef0123456789abcdef";
const ADMIN_KEY: &str = "the-key-of-the-operator-0123456789abcdef";
const JWT_SECRET: &str = "jwt-secret-0123456789abcdef0123456789abcdef";
const ACCOUNT: &str = "583231";
/// More than any run here uses up.
const BUDGET_TOKENS: u64 = 1 << 60;
const ONE_BY_ONE: u64 = 1000;
const AT_ONCE: u64 = 10_000;

/// An answer that is one document.
const DOCUMENT: &str = r#"{"id":"msg_1","type":"message","role":"assistant","model":"stand-in","content":[{"type":"text","text":"Hello from the stand-in of the model provider."}],"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":9,"output_tokens":12}}"#;
/// The events of a stream: the first, those that are many, and the last.
const FIRST: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_1\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"stand-in\",\"content\":[],\"stop_reason\":null,\"stop_sequence\":null,\"usage\":{\"input_tokens\":9,\"output_tokens\":1}}}\n\n";
const DELTA: &str = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"a few words \"}}\n\n";
const LAST: &str = "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\",\"stop_sequence\":null},\"usage\":{\"output_tokens\":12}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";

fn secret(text: &str) -> Secret {
    Secret::new(text.as_bytes().to_vec())
}

/// How the client paces the stand-in, past every connection.
struct Beat {
    /// One for each event that may be written.
    permits: Semaphore,
    /// When the last one was written, in nanoseconds since `begun`.
    written: AtomicU64,
    begun: Instant,
}

impl Beat {
    fn new() -> Self {
        Self {
            permits: Semaphore::new(0),
            written: AtomicU64::new(0),
            begun: Instant::now(),
        }
    }

    fn now(&self) -> u64 {
        self.begun.elapsed().as_nanos().try_into().unwrap()
    }

    async fn may_write(&self) {
        self.permits.acquire().await.unwrap().forget();
        self.written.store(self.now(), Ordering::Release);
    }

    /// Returns how long the last event that was written has been on its way.
    fn since_written(&self) -> Duration {
        Duration::from_nanos(self.now() - self.written.load(Ordering::Acquire))
    }
}

fn chunk(event: &str) -> Vec<u8> {
    format!("{:x}\r\n{event}\r\n", event.len()).into_bytes()
}

/// Answers messages: `?events=N` with a stream of so many deltas at once, `?paced=N` with one for
/// each permit, anything else with a document.
async fn answer(stream: &mut TlsStream<TcpStream>, beat: &Beat) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    let mut many = chunk(DELTA).repeat(usize::try_from(AT_ONCE).unwrap());
    many.extend_from_slice(&chunk(LAST));
    many.extend_from_slice(b"0\r\n\r\n");
    let one = many.len() - chunk(LAST).len() - 5;
    let one = one / usize::try_from(AT_ONCE).unwrap();
    while let Some((head, extra, length)) = read_head(stream, &mut buffer).await? {
        read_body(stream, &mut buffer, length - extra).await?;
        assert!(head.contains(MODEL_KEY), "the operator's key arrives");
        let number = |name: &str| {
            let (_, rest) = head.split_once(name)?;
            rest.split(' ').next()?.parse::<usize>().ok()
        };
        let (events, paced) = (number("?events="), number("?paced="));
        if events.or(paced).is_none() {
            let length = DOCUMENT.len();
            let text = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\
                 \r\n\r\n{DOCUMENT}"
            );
            write(stream, text.as_bytes()).await?;
            continue;
        }
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\
                    Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";
        write(stream, head.as_bytes()).await?;
        write(stream, &chunk(FIRST)).await?;
        for _ in 0..paced.unwrap_or(0) {
            beat.may_write().await;
            write(stream, &many[..one]).await?;
        }
        let rest = one * (usize::try_from(AT_ONCE).unwrap() - events.unwrap_or(0));
        write(stream, &many[rest..]).await?;
    }
    Ok(())
}

async fn write(stream: &mut TlsStream<TcpStream>, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// One way to ask for messages.
struct Ask {
    name: &'static str,
    address: SocketAddr,
    /// The certificate that the other side is verified against; none for no TLS.
    ca_pem: Option<String>,
    path: String,
    /// The field of the credential.
    credential: String,
}

/// One keep-alive connection.
struct Client<'a> {
    ask: &'a Ask,
    stream: Box<dyn Stream>,
    unread: BytesMut,
    /// What is left of the present chunk, and whether one has begun before.
    left: usize,
    in_chunks: bool,
}

impl<'a> Client<'a> {
    async fn connect(ask: &'a Ask) -> Self {
        let stream: Box<dyn Stream> = if let Some(ca_pem) = &ask.ca_pem {
            let way = Way {
                address: ask.address,
                target: None,
                authorization: None,
                tls: connector(ca_pem),
            };
            Box::new(way.open().await.unwrap())
        } else {
            let tcp = TcpStream::connect(ask.address).await.unwrap();
            tcp.set_nodelay(true).unwrap();
            Box::new(tcp)
        };
        Self {
            ask,
            stream,
            unread: BytesMut::with_capacity(64 * 1024),
            left: 0,
            in_chunks: false,
        }
    }

    async fn more(&mut self) {
        self.unread.reserve(16 * 1024);
        let count = self.stream.read_buf(&mut self.unread).await.unwrap();
        assert!(count > 0, "{}: the answer goes on", self.ask.name);
    }

    /// Sends a message. Returns when that began.
    async fn send(&mut self, query: &str) -> Instant {
        let is_stream = !query.is_empty();
        let body = format!(
            r#"{{"model":"stand-in","max_tokens":1024,"stream":{is_stream},"messages":[{{"role":"user","content":"hi"}}]}}"#
        );
        let (path, credential, length) = (&self.ask.path, &self.ask.credential, body.len());
        let text = format!(
            "POST {path}{query} HTTP/1.1\r\nHost: {HOST}\r\nUser-Agent: bench/1\r\n{credential}\r\n\
             anthropic-version: 2023-06-01\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        let begun = Instant::now();
        self.stream.write_all(text.as_bytes()).await.unwrap();
        self.stream.flush().await.unwrap();
        begun
    }

    async fn line_end(&mut self, mark: &[u8]) -> usize {
        loop {
            if let Some(at) = memchr::memmem::find(&self.unread, mark) {
                return at;
            }
            self.more().await;
        }
    }

    async fn head(&mut self) -> String {
        let end = self.line_end(b"\r\n\r\n").await + 4;
        let head = String::from_utf8(self.unread.split_to(end).to_vec()).unwrap();
        let name = self.ask.name;
        assert!(head.starts_with("HTTP/1.1 200"), "{name}: {head}");
        head.to_ascii_lowercase()
    }

    /// Asks for a document. Returns the time to its first byte.
    async fn first_byte(&mut self) -> Duration {
        let begun = self.send("").await;
        self.more().await;
        let time = begun.elapsed();
        let head = self.head().await;
        if head.contains("transfer-encoding: chunked\r\n") {
            // What looks for a key in it cannot say before how long it will be.
            self.take(DOCUMENT.len()).await;
            self.end_chunks().await;
            return time;
        }
        let field = format!("content-length: {}\r\n", DOCUMENT.len());
        assert!(head.contains(&field), "{head}");
        while self.unread.len() < DOCUMENT.len() {
            self.more().await;
        }
        assert_eq!(self.unread.split_to(DOCUMENT.len()), DOCUMENT);
        time
    }

    /// Reads so many bytes of a stream and forgets them.
    async fn take(&mut self, mut count: usize) {
        while count > 0 {
            if self.left == 0 {
                assert_ne!(self.next_chunk().await, 0, "{}: it ended", self.ask.name);
            }
            if self.unread.is_empty() {
                self.more().await;
            }
            let taken = self.left.min(count).min(self.unread.len());
            self.unread.advance(taken);
            self.left -= taken;
            count -= taken;
        }
    }

    /// Reads the line before a chunk. Returns the chunk's size.
    async fn next_chunk(&mut self) -> usize {
        if self.in_chunks {
            assert_eq!(self.line_end(b"\r\n").await, 0);
            self.unread.advance(2);
        }
        let end = self.line_end(b"\r\n").await;
        let size = std::str::from_utf8(&self.unread[..end]).unwrap();
        self.left = usize::from_str_radix(size, 16).unwrap();
        self.unread.advance(end + 2);
        self.in_chunks = true;
        self.left
    }

    /// Reads what comes after the many events, and the end.
    async fn finish(&mut self) {
        self.take(LAST.len()).await;
        self.end_chunks().await;
    }

    /// Reads the last chunk.
    async fn end_chunks(&mut self) {
        assert_eq!(self.next_chunk().await, 0, "{}: the end", self.ask.name);
        assert_eq!(self.line_end(b"\r\n").await, 0);
        self.unread.advance(2);
        self.in_chunks = false;
        assert!(self.unread.is_empty());
    }

    /// Asks for a stream. Returns the time to its first event.
    async fn first_event(&mut self) -> Duration {
        let begun = self.send("?events=0").await;
        self.head().await;
        self.take(FIRST.len()).await;
        let time = begun.elapsed();
        self.finish().await;
        time
    }

    /// Asks for a stream whose events are each written when the one before has arrived. Returns the
    /// time that they were on their way, together.
    async fn one_by_one(&mut self, beat: &Beat) -> Duration {
        self.send(&format!("?paced={ONE_BY_ONE}")).await;
        self.head().await;
        self.take(FIRST.len()).await;
        let mut time = Duration::ZERO;
        for _ in 0..ONE_BY_ONE {
            beat.permits.add_permits(1);
            self.take(DELTA.len()).await;
            time += beat.since_written();
        }
        self.finish().await;
        time
    }

    /// Asks for a stream whose events are all written at once. Returns the time of the whole.
    async fn at_once(&mut self) -> Duration {
        let begun = self.send(&format!("?events={AT_ONCE}")).await;
        self.head().await;
        let deltas = DELTA.len() * usize::try_from(AT_ONCE).unwrap();
        self.take(FIRST.len() + deltas).await;
        self.finish().await;
        begun.elapsed()
    }
}

/// Where a gateway listens, and its root certificate.
struct Running {
    plain: SocketAddr,
    tls: SocketAddr,
    ca_pem: String,
}

/// Starts a gateway on a thread of its own, and pays for the account.
fn gateway(
    provider: &Origin,
    storage: Storage,
    change: impl FnOnce(&mut Config) + Send + 'static,
) -> Running {
    let folder = tempfile::tempdir().unwrap();
    let ca_file = folder.path().join("provider.pem");
    std::fs::write(&ca_file, &provider.ca_pem).unwrap();
    let upstream = ServiceUrl::parse(&format!("https://{}", provider.target())).unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        runtime().block_on(async move {
            let started = app(ca_file, storage, |config| {
                config.proxy.tls_listen = config.proxy.listen;
                config.admin_key = Some(secret(ADMIN_KEY));
                config.gateway.upstream = upstream;
                config.gateway.api_key = Some(secret(MODEL_KEY));
                config.gateway.jwt_secret = Some(secret(JWT_SECRET));
                change(config);
            });
            let (app, ca_pem) = Box::pin(started).await;
            let listening = app.listening();
            let running = Running {
                plain: listening.plain.unwrap(),
                tls: listening.tls.unwrap(),
                ca_pem,
            };
            tell.send(running).unwrap();
            std::future::pending::<()>().await;
        });
    });
    let running = told.recv().unwrap();
    runtime().block_on(pay(running.plain));
    running
}

/// Says that the account is paid, by the management API.
async fn pay(address: SocketAddr) {
    let text = format!(
        "PUT /v1/accounts/{ACCOUNT} HTTP/1.1\r\nHost: {HOST}\r\nx-api-key: {ADMIN_KEY}\r\n\
         Content-Length: 13\r\nConnection: close\r\n\r\n{{\"paid\":true}}"
    );
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// Returns the field with a JWT of the account's sandbox.
fn credential() -> String {
    let keys = WorkloadKeys::new(&secret(JWT_SECRET), None).unwrap();
    let workload = Workload {
        account: AccountId::parse(ACCOUNT).unwrap(),
        sandbox: SandboxName::parse("bench").unwrap(),
    };
    let token = keys.mint(&workload, SystemTime::now(), Duration::from_hours(24));
    format!("Authorization: Bearer {}", token.unwrap().as_str())
}

/// Sets all ways up; the folder holds the store that is on the disk.
fn ways(provider: &Origin, folder: &tempfile::TempDir) -> [Ask; 4] {
    let memory = gateway(provider, Storage::in_memory(), |_| ());
    let storage = Storage {
        store: Arc::new(Disk::open(&folder.path().join("store")).unwrap()),
        keyring: Keyring::generate(),
    };
    let budget = gateway(provider, storage, |config| {
        config.gateway.monthly_budget = Some(BUDGET_TOKENS);
    });
    let through = |name, address, ca_pem| Ask {
        name,
        address,
        ca_pem,
        path: format!("{PREFIX}/v1/messages"),
        credential: credential(),
    };
    let direct = Ask {
        name: "direct",
        address: provider.address,
        ca_pem: Some(provider.ca_pem.clone()),
        path: "/v1/messages".to_owned(),
        credential: format!("x-api-key: {MODEL_KEY}"),
    };
    [
        direct,
        through("gateway", memory.plain, None),
        through("gateway_tls", memory.tls, Some(memory.ca_pem)),
        through("gateway_budget_on_disk", budget.plain, None),
    ]
}

/// Measures one figure of every way, by the time that each run says it took.
fn each<'a>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    runtime: &Runtime,
    ways: &'a [Ask],
    mut run: impl AsyncFnMut(&mut Client<'a>) -> Duration,
) {
    for ask in ways {
        let mut client = runtime.block_on(Client::connect(ask));
        group.bench_function(ask.name, |bench| {
            bench.iter_custom(|count| {
                runtime.block_on(async {
                    let mut time = Duration::ZERO;
                    for _ in 0..count {
                        time += run(&mut client).await;
                    }
                    time
                })
            });
        });
    }
}

fn gateway_against_direct(criterion: &mut Criterion) {
    let beat = Arc::new(Beat::new());
    let paced = Arc::clone(&beat);
    let provider = Origin::serving(&[], move |mut stream| {
        let beat = Arc::clone(&paced);
        async move {
            let _end = answer(&mut stream, &beat).await;
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let ways = ways(&provider, &folder);
    let runtime = runtime();

    let mut group = criterion.benchmark_group("gateway/first_byte");
    each(&mut group, &runtime, &ways, Client::first_byte);
    group.finish();

    let mut group = criterion.benchmark_group("gateway/first_event");
    each(&mut group, &runtime, &ways, Client::first_event);
    group.finish();

    let mut group = criterion.benchmark_group("gateway/1000_events_one_by_one");
    group
        .throughput(Throughput::Elements(ONE_BY_ONE))
        .sample_size(30);
    each(&mut group, &runtime, &ways, async |client| {
        client.one_by_one(&beat).await
    });
    group.finish();

    let mut group = criterion.benchmark_group("gateway/10000_events_at_once");
    group
        .throughput(Throughput::Elements(AT_ONCE))
        .sample_size(30);
    each(&mut group, &runtime, &ways, Client::at_once);
    group.finish();
}

criterion_group!(benches, gateway_against_direct);
criterion_main!(benches);
