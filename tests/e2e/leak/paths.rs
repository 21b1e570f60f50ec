//! The real program, its log at the most talkative level: every path that a secret can take.
//!
//! One server, one long list of requests, good ones and bad ones, then everything that the process
//! said or wrote is searched.

use std::io::Write;
use std::net::SocketAddr;

use flate2::Compression;
use flate2::write::GzEncoder;
use oshu_vault_sdk::{CaptureEndpoint, Client, CreateSession, CreatedSession, UpdateSession};
use rustix::process::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::{CAPTURED, Needles, ROTATED, VALUE, reflected};
use crate::binary::{Home, Server, exchange, get};
use crate::support::clients::files_under;
use crate::support::{H2Origin, Origin, OriginConn, Request, TestCa, Workload, basic, contains};

const GOOD: &str = "good.example.com";
const TWO: &str = "two.example.com";
const SIDE: &str = "side.example.com";
const PINNED: &str = "pinned.example.com";
const UNTRUSTED: &str = "untrusted.example.com";
const BROKEN: &str = "broken.example.com";
const RESET: &str = "reset.example.com";
const SILENT: &str = "silent.example.com";
const PLAIN: &str = "plain.example.com";
/// Hosts that may have the secret.
const SCOPE: [&str; 7] = [GOOD, TWO, UNTRUSTED, BROKEN, RESET, SILENT, PLAIN];
const NAME: &str = "EXAMPLE_KEY";

/// The origins of the program.
struct World {
    good: Origin,
    two: H2Origin,
    side: Origin,
    pinned: Origin,
    untrusted: Origin,
    broken: Origin,
    reset: Origin,
    silent: Origin,
    plain: Origin,
}

impl World {
    async fn new() -> Self {
        Self {
            good: Origin::script(reflect).await,
            two: H2Origin::script(|mut exchange| async move {
                if exchange.read_all().await {
                    let fields = [("x-echo", VALUE), ("content-type", "application/grpc")];
                    exchange.answer_head(200, &fields, false);
                    exchange.send(reflected(VALUE)).await;
                    exchange.trailers(&[("grpc-status", "0"), ("grpc-message", VALUE)]);
                }
            })
            .await,
            side: Origin::echo_ok().await,
            pinned: Origin::echo_ok().await,
            untrusted: Origin::builder().ca(&TestCa::generate()).echo_ok().await,
            broken: Origin::answer(format!("NONSENSE {VALUE}\r\n\r\n")).await,
            reset: Origin::script(|_request, conn| async move { conn.abort().await }).await,
            silent: Origin::builder()
                .plain()
                .raw(|conn| async move { conn.wait_end().await })
                .await,
            plain: Origin::builder().plain().script(reflect).await,
        }
    }

    fn flags(&self) -> Vec<String> {
        [
            (GOOD, self.good.addr()),
            (TWO, self.two.addr()),
            (SIDE, self.side.addr()),
            (PINNED, self.pinned.addr()),
            (UNTRUSTED, self.untrusted.addr()),
            (BROKEN, self.broken.addr()),
            (RESET, self.reset.addr()),
            (SILENT, self.silent.addr()),
            (PLAIN, self.plain.addr()),
        ]
        .map(|(host, address)| format!("--resolve={host}={address}"))
        .into()
    }
}

/// Writes back what may not come back: in the head, in an interim one, in the body and behind it.
async fn reflect(request: Request, conn: OriginConn) {
    if request.header("upgrade").is_some() {
        let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                    Connection: Upgrade\r\nSec-WebSocket-Accept: x\r\n";
        conn.send(format!("{head}X-Echo: {VALUE}\r\n\r\n")).await;
        return conn.close().await;
    }
    if request.line().contains("/oauth/token ") {
        let tokens = json!({"access_token": CAPTURED, "token_type": "bearer", "expires_in": 60});
        let body = tokens.to_string();
        let kind = "Content-Type: application/json";
        let head = format!(
            "HTTP/1.1 200 OK\r\n{kind}\r\nContent-Length: {}\r\n",
            body.len()
        );
        return conn.send(format!("{head}\r\n{body}")).await;
    }
    // The other value is nobody's before the rotation, and then both are.
    let rotated = request.line().contains("/rotated");
    let other = if rotated { ROTATED } else { VALUE };
    let mut body = [reflected(VALUE), reflected(other)].concat();
    let mut coding = "";
    if request.line().contains("/gzip") {
        let mut writer = GzEncoder::new(Vec::new(), Compression::default());
        writer.write_all(&body).expect("room");
        body = writer.finish().expect("the end");
        coding = "Content-Encoding: gzip\r\n";
    }
    conn.send(format!(
        "HTTP/1.1 103 Early Hints\r\nLink: <{VALUE}>\r\n\r\nHTTP/1.1 200 {VALUE}\r\n\
         Set-Cookie: a={VALUE}\r\nLocation: https://evil.example.net/?{other}\r\n{coding}\
         Transfer-Encoding: chunked\r\n\r\n"
    ))
    .await;
    for chunk in body.chunks(7) {
        let framed = [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat();
        conn.send(framed).await;
    }
    conn.send(format!("0\r\nX-Sum: {VALUE}\r\n\r\n")).await;
}

/// The program, a session of it, and what came back so far.
struct Play<'a> {
    server: &'a Server,
    sdk: Client,
    key: String,
    session: CreatedSession,
    workload: Workload,
    /// The same one, where it sees the origin's own certificate.
    pinned: Workload,
    /// What was asked, and every byte that was answered.
    answers: Vec<(String, Vec<u8>)>,
}

impl Play<'_> {
    fn token(&self) -> &str {
        &self.session.sealed_secrets[NAME]
    }

    fn keep(&mut self, case: impl Into<String>, bytes: Vec<u8>) {
        self.answers.push((case.into(), bytes));
    }

    /// Sends a head through a tunnel to the good host.
    async fn ask(&mut self, case: &str, head: String, status: u16) {
        let mut conn = self.workload.connect(&format!("{GOOD}:443")).await;
        conn.send(head).await;
        let answer = conn.answer().await;
        assert_eq!(answer.status, status, "{case}: {}", answer.head);
        let interim = format!("{:?}{:?}", answer.interim, answer.trailers);
        self.keep(
            case,
            [answer.raw, interim.into_bytes(), answer.body].concat(),
        );
    }

    /// Calls the management API with a body.
    async fn call(&mut self, (method, path): (&str, &str), key: &str, body: &str, status: u16) {
        let address = self.server.plain();
        let kind = if method == "PATCH" {
            "merge-patch+json"
        } else {
            "json"
        };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nX-Api-Key: {key}\r\n\
             Content-Type: application/{kind}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = exchange(address, head).await;
        assert_eq!(answer.status, status, "{method} {body}: {}", answer.text());
        self.keep(format!("{method} {body}"), answer.raw);
    }

    /// All that is swapped, or looks like it.
    async fn swaps(&mut self, world: &World) {
        let token = self.token().to_owned();
        let login = basic("user", &token);
        let fields = format!(
            "Host: {GOOD}\r\nX-Api-Key: {token}\r\nAuthorization: {login}\r\nCookie: a={token}\r\n"
        );
        for path in ["/identity", "/gzip"] {
            let line = format!("GET {path}/{token}?key={token}&key={token} HTTP/1.1\r\n");
            self.ask(path, format!("{line}{fields}\r\n"), 200).await;
        }
        let received = world.good.bytes();
        assert!(contains(&received, VALUE), "the value does travel");
        assert!(
            contains(&received, basic("user", VALUE)),
            "and so within Basic"
        );
        let head = format!(
            "POST /body HTTP/1.1\r\n{fields}Content-Length: {}\r\n\r\n",
            token.len()
        );
        self.ask("a body", format!("{head}{token}"), 200).await;
        assert!(
            world.good.bytes().ends_with(VALUE.as_bytes()),
            "and as a body"
        );
        self.captures(world).await;
        let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\n";
        let mut conn = self.workload.connect(&format!("{GOOD}:443")).await;
        conn.send(format!("GET /ws HTTP/1.1\r\n{fields}{upgrade}\r\n"))
            .await;
        let answer = conn.answer_head().await;
        assert_eq!(answer.status, 101, "{}", answer.head);
        self.keep("a WebSocket", answer.raw);

        for (host, workload) in [(SIDE, &self.workload), (PINNED, &self.pinned)] {
            let url = format!("https://{host}/{token}");
            let answer = workload.get(&url, &[]).await;
            assert_eq!(answer.status, 200, "{host}");
            self.answers.push((host.to_owned(), answer.raw));
        }
        let url = format!("http://{PLAIN}/{token}");
        let answer = self.workload.get(&url, &[("X-Api-Key", &token)]).await;
        assert_eq!(answer.status, 200, "{}", answer.head);
        assert!(contains(&world.plain.bytes(), VALUE), "in the clear too");
        self.keep("in the clear", [answer.raw, answer.body].concat());
        self.streams(world).await;
    }

    /// A token that an endpoint gives, and its use.
    async fn captures(&mut self, world: &World) {
        let mut conn = self.workload.connect(&format!("{GOOD}:443")).await;
        let head =
            format!("POST /oauth/token HTTP/1.1\r\nHost: {GOOD}\r\nContent-Length: 2\r\n\r\n");
        conn.send(format!("{head}{{}}")).await;
        let answer = conn.answer().await;
        assert_eq!(answer.status, 200, "{}", answer.head);
        let sealed = answer.json()["access_token"]
            .as_str()
            .expect("a token")
            .to_owned();
        assert!(sealed.contains("SEALED_"), "{sealed}");
        self.keep("a token endpoint", [answer.raw, answer.body].concat());
        let head = format!("GET /captured HTTP/1.1\r\nHost: {GOOD}\r\n");
        let head = format!("{head}Authorization: Bearer {sealed}\r\n\r\n");
        self.ask("the use of a captured token", head, 200).await;
        assert!(contains(&world.good.bytes(), CAPTURED), "it travels");
    }

    /// The same over HTTP/2, to upstreams of both kinds.
    async fn streams(&mut self, world: &World) {
        let token = self.token().to_owned();
        let bearer = format!("Bearer {token}");
        let path = format!("/{token}?key={token}");
        for host in [TWO, GOOD, BROKEN, UNTRUSTED, RESET] {
            let client = self.workload.h2(&format!("{host}:443")).await;
            let fields = [("x-api-key", token.as_str()), ("authorization", &bearer)];
            for (method, body) in [("GET", "".as_bytes()), ("POST", token.as_bytes())] {
                let answer = client.ask((method, &path), &fields, body).await;
                let wanted = if matches!(host, TWO | GOOD) { 200 } else { 502 };
                assert_eq!(answer.status, wanted, "{method} {host}: {answer:?}");
                let case = format!("{method} {host} over HTTP/2");
                self.keep(case, format!("{answer:?}").into_bytes());
                self.keep(format!("{host}'s body"), answer.body);
            }
            client.vanish().await;
        }
        let seen = world.two.requests();
        assert!(
            seen.iter().any(|seen| seen.all("x-api-key") == [VALUE]),
            "{seen:?}"
        );
    }

    /// Every refusal and every failure of an upstream, the token among what is sent.
    async fn refusals(&mut self) {
        let token = self.token().to_owned();
        let bearer = format!("Bearer {token}");
        let fields = [
            ("X-Api-Key", token.as_str()),
            ("Authorization", bearer.as_str()),
        ];
        for (host, status) in [(UNTRUSTED, 502), (BROKEN, 502), (RESET, 502), (SILENT, 504)] {
            let url = format!("https://{host}/{token}?key={token}");
            let answer = self.workload.get(&url, &fields).await;
            assert_eq!(answer.status, status, "{host}");
            self.keep(host, answer.raw);
        }
        let own = format!("Host: {GOOD}\r\nX-Api-Key: {token}\r\n");
        let many = "X-Many: x\r\n".repeat(120);
        let tokens = format!("X-Key: {token}\r\n").repeat(90);
        let long = "x".repeat(20_000);
        for (head, status) in [
            (
                format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\nX-Api-Key : {token}\r\n\r\n"),
                400,
            ),
            (format!("GET / HTTP/1.1\r\n{own}Host: {SIDE}\r\n\r\n"), 400),
            (
                format!(
                    "POST / HTTP/1.1\r\n{own}Content-Length: 1\r\n\
                     Transfer-Encoding: chunked\r\n\r\n"
                ),
                400,
            ),
            (format!("TRACE / HTTP/1.1\r\n{own}\r\n"), 405),
            (format!("GET /{token}{long} HTTP/1.1\r\n{own}\r\n"), 414),
            (
                format!("GET / HTTP/1.1\r\n{own}Expect: {token}\r\n\r\n"),
                417,
            ),
            (
                format!("GET / HTTP/1.1\r\nHost: {SIDE}\r\nX-Api-Key: {token}\r\n\r\n"),
                421,
            ),
            (format!("GET / HTTP/1.1\r\n{own}{many}\r\n"), 431),
            (format!("OPTIONS / HTTP/1.1\r\n{own}{tokens}\r\n"), 200),
        ] {
            let case = head[..head.len().min(300)].to_owned();
            self.ask(&case, head, status).await;
        }
        let evil = self.workload.refused("evil.example.net:443").await;
        assert_eq!(evil.status, 403);
        self.keep("a host that is denied", [evil.raw, evil.body].concat());
        // Credentials that are wrong, and values in the place of credentials.
        let cut = self.session.token[..20].to_owned();
        for password in [VALUE, &cut, &token] {
            let login = basic(&self.session.session_id, password);
            let head = format!(
                "CONNECT {GOOD}:443 HTTP/1.1\r\nHost: {GOOD}:443\r\nProxy-Authorization: {login}\r\n\r\n"
            );
            let answer = exchange(self.server.plain(), head).await;
            assert_eq!(answer.status, 407, "{}", answer.head);
            self.keep("a wrong credential", answer.raw);
        }
    }

    /// Management calls that hold a value and are refused, and those that change it.
    async fn management(&mut self) {
        let key = self.key.clone();
        let quoted = json!(VALUE).to_string();
        let sessions = "/v1/sessions";
        let own = format!("{sessions}/{}", self.session.session_id);
        let inside = |field: &str| {
            format!(
                "{{\"secrets\":{{\"K\":{{\"value\":{quoted},\"hosts\":[\"a.example\"],{field}}}}}}}"
            )
        };
        for (body, status) in [
            (format!("{{\"secrets\":{{\"K\":{quoted}"), 400),
            (
                format!("{{\"secrets\":{{\"K\":{quoted},\"K\":{quoted}}}}}"),
                400,
            ),
            (format!("{{\"secrets\":{{\"K\":{quoted}}}}} {quoted}"), 400),
            (quoted.clone(), 422),
            (format!("{{\"secrets\":{quoted}}}"), 422),
            (format!("{{\"secrets\":[{quoted}]}}"), 422),
            (format!("{{\"secrets\":{{\"K\":[{quoted}]}}}}"), 422),
            (inside(&format!("\"prefix\":{quoted}")), 422),
            (inside(&format!("\"inject\":[{quoted}]")), 422),
            (inside(&format!("\"inject\":{quoted}")), 422),
            (
                format!("{{\"secrets\":{{}},\"secret_hosts\":[{quoted}]}}"),
                422,
            ),
            (
                format!("{{\"secrets\":{{}},\"allowed_egress\":[{quoted}]}}"),
                422,
            ),
            (
                format!("{{\"secrets\":{{}},\"passthrough_hosts\":[{quoted}]}}"),
                422,
            ),
            (
                format!("{{\"secrets\":{{}},\"ttl_seconds\":{quoted}}}"),
                422,
            ),
            (
                format!("{{\"secrets\":{{}},\"scrub_responses\":{quoted}}}"),
                422,
            ),
            (
                format!(
                    "{{\"secrets\":{{\"K\":\"{}\\n\"}}}}",
                    &quoted[1..quoted.len() - 1]
                ),
                422,
            ),
        ] {
            self.call(("POST", sessions), &key, &body, status).await;
            self.call(("PATCH", &own), &key, &body, status).await;
        }
        self.call(("POST", sessions), VALUE, "{}", 401).await;
        self.call(("POST", sessions), &key[..key.len() - 1], "{}", 401)
            .await;

        let rotate = UpdateSession::new().secret(NAME, ROTATED);
        let id = self.session.session_id.clone();
        let patched = self
            .sdk
            .update_session(&id, &rotate)
            .await
            .expect("a patch");
        let shown = self.sdk.get_session(&id).await.expect("the session");
        self.keep(
            "what is shown of a session",
            format!("{patched:?}{shown:?}").into_bytes(),
        );
        self.call(("GET", sessions), &key, "", 200).await;
        let token = self.token().to_owned();
        let head = format!("GET /rotated HTTP/1.1\r\nHost: {GOOD}\r\nX-Api-Key: {token}\r\n\r\n");
        self.ask("after the rotation", head, 200).await;
        self.sdk.delete_session(&id).await.expect("a deletion");
        let gone = self.workload.refused(&format!("{GOOD}:443")).await;
        assert_eq!(gone.status, 407);
        self.keep("after the deletion", [gone.raw, gone.body].concat());
    }
}

#[tokio::test]
async fn case_23_nothing_that_is_said_or_kept_has_a_secret() {
    let world = World::new().await;
    let home = Home::new();
    let roots = home.write("origin.pem", TestCa::shared().pem());
    let temporary = home.path("tmp");
    std::fs::create_dir(&temporary).expect("a folder");
    let mut line = world.flags();
    line.extend(["listen", "tls-listen", "admin-listen"].map(|it| format!("--{it}=127.0.0.1:0")));
    line.push(format!("--upstream-ca={roots}"));
    let line: Vec<&str> = ["serve", "--dev"]
        .into_iter()
        .chain(line.iter().map(String::as_str))
        .collect();
    let all = "trace,h2=trace,hyper=trace,hyper_util=trace,rustls=trace,tokio_rustls=trace";
    let variables = [
        ("OSHU_VAULT_LOG", all),
        ("OSHU_VAULT__LIMITS__HANDSHAKE_TIMEOUT_MS", "5000"),
        ("TMPDIR", temporary.to_str().expect("a path")),
        ("RUST_BACKTRACE", "full"),
        ("OSHU_VAULT__AUDIT__SINK", "file"),
    ];
    let server = home.serve(&line, &variables).await;
    let key = server.api_key();
    let sdk = Client::builder(server.url(), key.as_str());
    let sdk = sdk.build().expect("a client");
    let request = CreateSession::new()
        .secret(NAME, VALUE)
        .secret_hosts(SCOPE)
        .allowed_egress([&SCOPE[..], &[SIDE, PINNED]].concat())
        .passthrough_hosts([PINNED])
        .allow_plaintext(true)
        .capture([CaptureEndpoint::new(format!("https://{GOOD}/oauth/token"))])
        .inject(["header", "query", "path", "body"]);
    let session = sdk.create_session(&request).await.expect("a session");
    let needles = Needles::new([
        ("the value", VALUE),
        ("the rotated value", ROTATED),
        ("the captured token", CAPTURED),
        ("the credential", session.token.as_str()),
        ("the API key", key.as_str()),
    ]);
    let along = read_along(server.plain(), &session.session_id, &key).await;
    let ca = get(server.plain(), "/v1/ca.pem").await.text().to_owned();
    let addresses = (Some(server.plain()), None);
    let workload =
        |roots: &str| Workload::at(addresses, roots, &session.session_id, &session.token);
    let (workload, pinned) = (workload(&ca), workload(TestCa::shared().pem()));
    let mut play = Play {
        server: &server,
        sdk,
        key: key.clone(),
        session,
        workload,
        pinned,
        answers: Vec::new(),
    };
    play.swaps(&world).await;
    play.refusals().await;
    play.management().await;
    assert!(
        contains(&world.good.bytes(), ROTATED),
        "the new value travels"
    );
    for (case, bytes) in &play.answers {
        needles.expect_none(&format!("the answer to {case}"), bytes);
    }
    assert!(play.answers.len() > 60, "{}", play.answers.len());

    let metrics = get(server.admin(), "/metrics").await;
    assert!(metrics.text().contains(&format!("secret=\"{NAME}\"")));
    needles.expect_none("the metrics", metrics.raw);

    let (code, events, log) = server.end(Signal::TERM).await;
    assert_eq!(code, Some(0), "{log}");
    let along = along.await.expect("the stream of records");
    assert!(
        contains(&along, "\"event\":\"exchange\""),
        "records were read along"
    );
    needles.expect_none("the stream of records", along);
    said_and_kept(&needles, &events, &log, &home);
}

/// Reads along with the records of a session to their end.
async fn read_along(address: SocketAddr, id: &str, key: &str) -> JoinHandle<Vec<u8>> {
    let mut tcp = TcpStream::connect(address).await.expect("a connection");
    let head = format!("GET /v1/sessions/{id}/events HTTP/1.1\r\nHost: v\r\nX-Api-Key: {key}\r\n");
    let head = format!("{head}Connection: close\r\n\r\n");
    tcp.write_all(head.as_bytes()).await.expect("a request");
    tokio::spawn(async move {
        let mut all = Vec::new();
        // However it ends: what came is what is searched.
        drop(tcp.read_to_end(&mut all).await);
        all
    })
}

/// Searches the log, the audit records and the files.
fn said_and_kept(needles: &Needles, events: &[serde_json::Value], log: &str, home: &Home) {
    assert!(log.contains("\"DEBUG\""), "the log talks");
    for library in ["h2", "hyper", "hyper_util"] {
        let line = format!("\"target\":\"{library}");
        assert!(!log.contains(&format!("{line}\"")) && !log.contains(&format!("{line}::")));
    }
    needles.expect_none("the log", log);
    assert!(events.is_empty(), "records go to the file alone");
    let records = home.path(".local/state/oshu-vault/audit.jsonl");
    let records = std::fs::read_to_string(records).expect("audit records");
    needles.expect_none("an audit record", &records);
    let exchanges = records.matches("{\"event\":\"exchange\"");
    assert!(exchanges.count() >= 25, "{records}");
    // The first start says the key once, in the file that is made for it.
    for (path, bytes) in files_under(&home.path("")) {
        let is_key = path.ends_with("api.key");
        let found = needles.found(&bytes).filter(|_| !is_key);
        assert_eq!(found, None, "{}", path.display());
    }
}
