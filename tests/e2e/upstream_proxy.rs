//! The way out through a proxy of the operator's: what it is asked for, what it gets to see, and
//! what comes of its answers.

use std::net::SocketAddr;
use std::time::Duration;

use oshu_vault::upstream::UpstreamProxy;
use rcgen::SanType;

use crate::support::{
    GOOD, Origin, REAL, SIDE, Scene, TestCa, Vault, VaultBuilder, contains, forward, show, target,
};

const NAME: &str = "proxy.example.com";
const OK: &str = "HTTP/1.1 200 OK\r\n\r\n";

/// Sends everything that leaves the vault through a proxy.
fn via(url: &str) -> impl FnOnce(VaultBuilder) -> VaultBuilder + use<> {
    let proxy = UpstreamProxy::parse(url).expect("a URL");
    move |vault| vault.config(|config| config.upstream.proxy = Some(proxy))
}

fn plain(proxy: &Origin) -> String {
    format!("http://{}", proxy.addr())
}

/// Starts a proxy that answers every CONNECT with the same bytes and closes.
async fn answering(answer: impl Into<Vec<u8>>) -> Origin {
    let answer: Vec<u8> = answer.into();
    let proxy = Origin::builder().plain();
    proxy
        .raw(move |conn| {
            let answer = answer.clone();
            async move {
                conn.read_head().await;
                conn.send(answer).await;
                conn.close().await;
            }
        })
        .await
}

/// What a proxy is asked for by a vault without credentials for it.
fn connect(target: SocketAddr) -> String {
    format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {GOOD}\r\nX-Key: {{T}}\r\n\r\n")
}

#[tokio::test]
async fn a_swap_works_and_the_proxy_sees_an_address_and_no_secret() {
    let proxy = Origin::builder().plain().connect_proxy().await;
    let scene = Scene::vault(via(&plain(&proxy))).await;
    let answer = scene.ask(GOOD, scene.fill(&get("/a"))).await;
    assert_eq!((answer.status, answer.text()), (200, "ok"));
    assert!(contains(&scene.good.bytes(), format!("X-Key: {REAL}\r\n")));

    let seen = proxy.bytes();
    let asked = connect(scene.good.addr());
    assert!(seen.starts_with(asked.as_bytes()), "{}", show(&seen));
    // A TLS record follows: nothing else stands between.
    assert_eq!(seen.get(asked.len()), Some(&0x16));
    for hidden in [REAL, scene.token(), "X-Key", "GET ", "Proxy-Auth"] {
        assert!(!contains(&seen, hidden), "{hidden}: {}", show(&seen));
    }
    let records = scene.vault.audit();
    let exchange = records.iter().find(|record| record["path"] == "/a");
    let address = &exchange.expect("a record")["address"];
    assert_eq!(address, scene.good.addr().to_string().as_str());
}

#[tokio::test]
async fn credentials_go_to_the_proxy_and_to_nobody_else() {
    let proxy = Origin::builder().plain().connect_proxy().await;
    let url = format!("http://us%40er:pa%3Ass%2F@{}", proxy.addr());
    let scene = Scene::vault(via(&url)).await;
    scene.alive("credentials").await;
    let target = scene.good.addr();
    let expected = format!(
        "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\
         Proxy-Authorization: Basic dXNAZXI6cGE6c3Mv\r\n\r\n"
    );
    let seen = proxy.bytes();
    assert!(seen.starts_with(expected.as_bytes()), "{}", show(&seen));
    scene.ask(GOOD, get("/")).await;
    assert!(!contains(&scene.good.bytes(), "dXNAZXI6cGE6c3Mv"));
    assert!(!contains(&scene.vault.audit_log().raw(), "dXNAZXI6"));
}

#[tokio::test]
async fn connections_through_the_proxy_are_kept_and_used_again() {
    let proxy = Origin::builder().plain().connect_proxy().await;
    let scene = Scene::vault(via(&plain(&proxy))).await;
    let mut conn = scene.workload.connect(&format!("{GOOD}:443")).await;
    for path in ["/1", "/2", "/3"] {
        conn.send(get(path)).await;
        assert_eq!(conn.answer().await.status, 200, "{path}");
    }
    assert_eq!(scene.ask(GOOD, get("/4")).await.status, 200);
    assert_eq!((proxy.connections(), scene.good.connections()), (1, 1));
    let head = format!("GET / HTTP/1.1\r\nHost: {SIDE}\r\n\r\n");
    assert_eq!(scene.ask(SIDE, head).await.status, 200);
    assert_eq!((proxy.connections(), scene.side.connections()), (2, 1));
}

#[tokio::test]
async fn cleartext_goes_through_a_tunnel_too() {
    let proxy = Origin::builder().plain().connect_proxy().await;
    let origin = Origin::builder().plain().echo_ok().await;
    let scene = Scene::with_good(origin, via(&plain(&proxy)), |session| session).await;
    let answer = scene.workload.get(&format!("http://{GOOD}/a?b"), &[]).await;
    assert_eq!((answer.status, answer.text()), (200, "ok"));
    let request = format!("GET /a?b HTTP/1.1\r\nHost: {GOOD}\r\n\r\n");
    assert_eq!(scene.good.bytes(), request.as_bytes());
    let expected = connect(scene.good.addr()) + &request;
    assert_eq!(show(&proxy.bytes()), show(expected.as_bytes()));
}

#[tokio::test]
async fn a_proxy_in_tls_is_verified_by_its_name_before_it_is_asked() {
    let proxy = Origin::builder().connect_proxy().await;
    let url = format!("https://u:p@{NAME}:{}", proxy.addr().port());
    let vault = |at: SocketAddr| {
        let via = via(&url);
        move |vault: VaultBuilder| via(vault).resolve(NAME, at)
    };
    let scene = Scene::vault(vault(proxy.addr())).await;
    scene.alive("a proxy in TLS").await;
    let target = scene.good.addr();
    let asked = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Auth");
    assert!(proxy.bytes().starts_with(asked.as_bytes()));
    assert!(!contains(&proxy.bytes(), REAL));

    let another_name = Origin::builder().certificate(|params| {
        let name = "other.example.com".try_into().expect("a name");
        params.subject_alt_names = vec![SanType::DnsName(name)];
    });
    let another_ca = Origin::builder().ca(&TestCa::generate());
    for (case, proxy) in [("name", another_name), ("CA", another_ca)] {
        let proxy = proxy.connect_proxy().await;
        let scene = Scene::vault(vault(proxy.addr())).await;
        let answer = scene.ask(GOOD, scene.fill(&get("/"))).await;
        let found = (answer.status, answer.code());
        assert_eq!(found, (502, "upstream_proxy_failed".to_owned()), "{case}");
        proxy.wait_ended(1).await;
        proxy.expect_nothing(case);
        assert_eq!(scene.good.connections(), 0, "{case}");
    }
}

#[tokio::test]
async fn the_target_is_verified_by_its_name_through_the_proxy() {
    let proxy = Origin::builder().plain().connect_proxy().await;
    let impostor = Origin::builder().ca(&TestCa::generate()).echo_ok().await;
    let scene = Scene::with_good(impostor, via(&plain(&proxy)), |session| session).await;
    let answer = scene.ask(GOOD, scene.fill(&get("/"))).await;
    let found = (answer.status, answer.code());
    assert_eq!(found, (502, "tls_certificate_error".to_owned()));
    scene.good.expect_nothing("an impostor behind the proxy");

    // A proxy that leads elsewhere than it was asked to gets the handshake and no more.
    let elsewhere = Origin::builder().ca(&TestCa::generate()).echo_ok().await;
    let there = elsewhere.addr();
    let liar = Origin::builder().plain();
    let liar = liar.raw(move |conn| divert(conn, there)).await;
    let scene = Scene::vault(via(&plain(&liar))).await;
    let answer = scene.ask(GOOD, scene.fill(&get("/"))).await;
    assert_eq!(answer.code(), "tls_certificate_error");
    elsewhere.expect_nothing("where a lying proxy leads");
    assert!(!contains(&liar.bytes(), REAL));
    assert_eq!(scene.good.connections(), 0);
}

/// Opens a tunnel to another place than the one asked for.
async fn divert(conn: crate::support::OriginConn, there: SocketAddr) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    conn.read_head().await;
    let mut tcp = tokio::net::TcpStream::connect(there)
        .await
        .expect("a connection");
    conn.send(OK).await;
    let hello = conn.read_some().await.expect("a hello");
    tcp.write_all(&hello).await.expect("a write");
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = tcp.read(&mut buffer).await {
        conn.send(&buffer[..count]).await;
    }
}

#[tokio::test]
async fn peer_19_refused_addresses_are_refused_before_the_proxy_is_asked() {
    let proxy = Origin::builder().plain().connect_proxy().await;
    let canary = Origin::echo_ok().await;
    let private: SocketAddr = "10.0.0.1:443".parse().expect("an address");
    let metadata: SocketAddr = "169.254.169.254:80".parse().expect("an address");
    let via = via(&plain(&proxy));
    let vault = |vault: VaultBuilder| {
        via(vault)
            .dev(false)
            .resolve("loopback.example.com", canary.addr())
            .resolve("private.example.com", private)
            .resolve("metadata.example.com", metadata)
    };
    let vault = vault(Vault::builder()).start().await;
    let session = vault.session(&oshu_vault_sdk::CreateSession::new()).await;
    let workload = vault.workload(&session);
    for name in ["loopback", "private", "metadata"] {
        for scheme in ["https", "http"] {
            let url = format!("{scheme}://{name}.example.com/");
            let answer = workload.get(&url, &[]).await;
            let found = (answer.status, answer.code());
            assert_eq!(
                found,
                (403, "destination_ip_prohibited".to_owned()),
                "{url}"
            );
        }
    }
    // Nor does its being the proxy open an address to workloads.
    for target in ["10.0.0.1:443", "127.0.0.1:443", &proxy.addr().to_string()] {
        assert_eq!(workload.refused(target).await.status, 403, "{target}");
    }
    assert_eq!((proxy.connections(), canary.connections()), (0, 0));
}

#[tokio::test]
async fn what_the_proxy_refuses_is_told_as_ours() {
    let long = format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "a".repeat(16 * 1024));
    let refused = "upstream_proxy_refused";
    let failed = "upstream_proxy_failed";
    for (answer, code) in [
        (
            "HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=\"corporate\"\r\n\r\n".to_owned(),
            refused,
        ),
        (
            "HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\n\r\ncorporate".to_owned(),
            refused,
        ),
        ("HTTP/1.1 502 corporate\r\n\r\n".to_owned(), refused),
        (
            "HTTP/1.1 302 Found\r\nLocation: http://corporate/\r\n\r\n".to_owned(),
            refused,
        ),
        ("corporate\r\n\r\n".to_owned(), failed),
        ("HTTP/1.1 200 corporate\n\n".to_owned(), failed),
        ("HTTP/1.1 200 corporate\r\n".to_owned(), failed),
        (String::new(), failed),
        (long, failed),
        ("x".repeat(100_000), failed),
    ] {
        let case = answer.get(..24).unwrap_or(&answer).to_owned();
        let proxy = answering(answer).await;
        let scene = Scene::vault(via(&plain(&proxy))).await;
        let answer = scene.ask(GOOD, scene.fill(&get("/"))).await;
        let found = (answer.status, answer.code());
        assert_eq!(found, (502, code.to_owned()), "{case}");
        assert_eq!(answer.header("proxy-authenticate"), None, "{case}");
        assert!(!contains(&answer.raw, "corporate"), "{case}");
        assert_eq!(
            show(&proxy.bytes()),
            show(connect(scene.good.addr()).as_bytes())
        );
        assert_eq!(scene.good.connections(), 0, "{case}");
        // The workload's own connection lives, and its next request is another attempt.
        let answer = scene.ask(GOOD, scene.fill(&get("/"))).await;
        assert_eq!(answer.code(), code, "{case}");
        let records = scene.vault.audit();
        let record = records.iter().find(|record| record["event"] == "exchange");
        let record = record.expect("a record");
        assert_eq!(record["decision"], "failed", "{case}");
        assert_eq!(record["reason"], code, "{case}");
    }
}

#[tokio::test]
async fn a_proxy_that_is_silent_or_trickles_is_given_up_in_time() {
    let silent = Origin::builder().plain();
    let silent = silent.raw(|conn| async move { conn.wait_end().await });
    let trickling = Origin::builder().plain().raw(|conn| async move {
        conn.read_head().await;
        // A little less than the limit, so that only the deadline can end it.
        conn.send("HTTP/1.1 200 OK\r\n").await;
        conn.send(format!("A: {}", "a".repeat(15 * 1024))).await;
        conn.wait_end().await;
    });
    let in_tls = Origin::builder().plain();
    let in_tls = in_tls.raw(|conn| async move { conn.wait_end().await });
    for (case, scheme, proxy) in [
        ("silent", "http", silent.await),
        ("trickling", "http", trickling.await),
        ("silent in TLS", "https", in_tls.await),
    ] {
        let url = format!("{scheme}://{}", proxy.addr());
        let proxied = via(&url);
        let scene = Scene::vault(|vault| {
            proxied(vault)
                .config(|config| config.limits.connect_timeout = Duration::from_millis(300))
        })
        .await;
        let answer = scene.ask(GOOD, get("/")).await;
        let found = (answer.status, answer.code());
        assert_eq!(found, (504, "upstream_proxy_timeout".to_owned()), "{case}");
        proxy.wait_ended(1).await;
        assert_eq!(scene.good.connections(), 0, "{case}");
    }
}

#[tokio::test]
async fn a_proxy_that_is_not_there_is_told_apart_from_a_target_that_is_not() {
    let gone = Origin::echo_ok().await.addr();
    let scene = Scene::vault(via(&format!("http://{gone}"))).await;
    let answer = scene.ask(GOOD, get("/")).await;
    let found = (answer.status, answer.code());
    assert_eq!(found, (502, "upstream_proxy_failed".to_owned()));

    let proxy = Origin::builder().plain().connect_proxy().await;
    let proxied = via(&plain(&proxy));
    let vault = proxied(Vault::builder()).resolve("gone.example.com", gone);
    let vault = vault.start().await;
    let session = vault.session(&oshu_vault_sdk::CreateSession::new()).await;
    let answer = vault
        .workload(&session)
        .get("https://gone.example.com/", &[])
        .await;
    assert_eq!(answer.code(), "upstream_proxy_refused");
}

#[tokio::test]
async fn odd_answers_that_open_a_tunnel_open_it() {
    for answer in [
        "HTTP/1.0 200 OK\r\nProxy-Agent: x\r\n\r\n",
        "HTTP/1.1 200\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    ] {
        let proxy = Origin::builder().plain();
        let proxy = proxy.raw(move |conn| forward(conn, answer)).await;
        let scene = Scene::vault(via(&plain(&proxy))).await;
        scene.alive(answer).await;
    }
}

#[tokio::test]
async fn what_comes_right_behind_the_answer_is_kept() {
    // The answer of a cleartext origin and that of the proxy in one write.
    let proxy = Origin::builder().plain();
    let proxy = proxy.raw(|conn| async move {
        let head = conn.read_head().await.expect("a head");
        target(&head);
        conn.send(format!("{OK}HTTP/1.1 103 Hints\r\n\r\n")).await;
        conn.read_head().await;
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .await;
    });
    let proxy = proxy.await;
    let scene = Scene::vault(via(&plain(&proxy))).await;
    let answer = scene.workload.get(&format!("http://{GOOD}/"), &[]).await;
    assert_eq!((answer.status, answer.interim.len()), (200, 1));
}

#[tokio::test]
async fn our_own_listeners_are_neither_proxy_nor_target() {
    let proxy = Origin::builder().plain().connect_proxy().await;
    let scene = Scene::vault(via(&plain(&proxy))).await;
    for own in [
        scene.vault.plain_addr(),
        scene.vault.tls_addr(),
        scene.vault.admin_addr(),
    ] {
        let answer = scene.workload.refused(&own.to_string()).await;
        assert_eq!(answer.status, 403, "{own}");
    }
    assert_eq!(proxy.connections(), 0);

    // An address of this test's own: nobody else takes the port between the two bindings.
    let taken = std::net::TcpListener::bind("127.83.17.5:0").expect("a port");
    let free = taken.local_addr().expect("an address");
    drop(taken);
    let proxied = via(&format!("http://localhost.example.com:{}", free.port()));
    let scene = Scene::vault(|vault| {
        proxied(vault)
            .resolve("localhost.example.com", free)
            .config(|config| config.proxy.listen = Some(free))
    })
    .await;
    let answer = scene.ask(GOOD, get("/")).await;
    let found = (answer.status, answer.code());
    assert_eq!(found, (502, "upstream_proxy_failed".to_owned()));
    // One tunnel of the workload's, and none of our own.
    let tunnels = |records: &[serde_json::Value]| {
        records
            .iter()
            .filter(|record| record["event"] == "tunnel")
            .count()
    };
    let log = scene.vault.audit_log();
    let records = log
        .wait("the tunnel's record", |lines| tunnels(lines) > 0)
        .await;
    assert_eq!(tunnels(&records), 1);
}
