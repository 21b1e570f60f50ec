//! Addresses: what may be dialled, whatever name or spelling leads there.

use std::net::{IpAddr, SocketAddr};

use oshu_vault_sdk::CreateSession;

use crate::support::{Origin, Vault, VaultBuilder, Workload};

/// The name that the proxy answers itself: what shows that it lives where nothing is open.
const PROBE: &str = "https://doctor.oshu-vault.invalid/";

async fn open(builder: VaultBuilder) -> (Vault, Workload) {
    let vault = builder.start().await;
    let session = vault.session(&CreateSession::new()).await;
    let workload = vault.workload(&session);
    (vault, workload)
}

/// Asks for a host with CONNECT and in absolute form; both must be refused like this.
async fn refused(workload: &Workload, target: &str, (status, code): (u16, &str)) {
    let answer = workload.refused(target).await;
    let found = (answer.status, answer.code());
    assert_eq!(found, (status, code.to_owned()), "CONNECT {target}");
    let answer = workload.get(&format!("http://{target}/"), &[]).await;
    assert_eq!(answer.status, status, "http://{target}/: {}", answer.head);
}

/// A listener that nobody may reach. What connects waits in its queue and is found at the end.
struct Canary(std::net::TcpListener);

impl Canary {
    /// Listens on every address of the machine, of both families.
    fn everywhere() -> Self {
        let listener = std::net::TcpListener::bind("[::]:0")
            .or_else(|_no_ipv6| std::net::TcpListener::bind("0.0.0.0:0"))
            .expect("a port");
        listener.set_nonblocking(true).expect("a listener");
        Self(listener)
    }

    fn addr(&self) -> SocketAddr {
        self.0.local_addr().expect("an address")
    }

    fn expect_silence(&self, case: &str) {
        let taken = self.0.accept().map(|(_, peer)| peer);
        let error = taken.expect_err(case);
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{case}");
    }
}

/// Addresses that nothing may open.
const NEVER: &[&str] = &[
    "169.254.169.254",
    "[fd00:ec2::254]",
    "0.0.0.0",
    "[::]",
    "255.255.255.255",
    "224.0.0.1",
    "239.255.255.255",
    "168.63.129.16",
    "[ff02::1]",
    "[::ffff:0:169.254.169.254]",
    "[2002:a9fe:a9fe::]",
];

/// Addresses that stay shut unless an operator opens their range.
const SHUT: &[&str] = &[
    "0.0.0.1",
    "10.0.0.1",
    "10.255.255.255",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.0.1",
    "192.168.255.255",
    "100.64.0.1",
    "100.127.255.255",
    "169.254.1.1",
    "192.0.0.1",
    "198.18.0.1",
    "198.19.255.255",
    "240.0.0.1",
    "255.255.255.254",
    "[fe80::1]",
    "[fc00::1]",
    "[fd00::1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::ffff:10.0.0.1]",
    "[::ffff:169.254.169.254]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b::a9fe:a9fe]",
    "[::ffff:0:127.0.0.1]",
    "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]",
    "[2001:0:7f00:1:0:0:80ff:fffe]",
    "[2001::1]",
    "[fec0::1]",
    "[febf::1]",
];

const LOOPBACK: &[&str] = &[
    "127.0.0.1",
    "127.0.0.1.",
    "127.1.2.3",
    "[::1]",
    "localhost",
    "LOCALHOST.",
    "a.localhost",
];

/// Spellings that some resolvers take for an address, and that are none here.
const ODD: &[&str] = &[
    "0",
    "127.1",
    "127.0.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0177.0.0.1",
    "017700000001",
    "127.0.0.01",
    "127.0.0.1..",
    "0xa9fea9fe",
    "2852039166",
    "169.254.43518",
    "256.0.0.1",
    "1.2.3.4.5",
    "[127.0.0.1]",
    "[fe80::1%25lo]",
    "[::1%25lo]",
    "[::1%lo]",
    "[::ffff:127.1]",
];

#[tokio::test]
async fn case_87_shut_addresses_are_refused_as_targets() {
    let canary = Canary::everywhere();
    let port = canary.addr().port();
    // A session without a list, and one whose list names each of them with the canary's port.
    let (vault, unlisted) = open(Vault::builder().dev(false)).await;
    let shut = || NEVER.iter().chain(SHUT).chain(LOOPBACK);
    let list = shut().map(|host| format!("{host}:{port}"));
    let list = CreateSession::new().allowed_egress(list.collect::<Vec<_>>());
    let listed = vault.workload(&vault.session(&list).await);
    let prohibited = (403, "destination_ip_prohibited");
    for host in shut() {
        for port in [443, 80] {
            refused(&unlisted, &format!("{host}:{port}"), prohibited).await;
        }
        refused(&listed, &format!("{host}:{port}"), prohibited).await;
    }
    for host in ODD {
        for port in [443, port] {
            refused(
                &unlisted,
                &format!("{host}:{port}"),
                (400, "bad_connect_target"),
            )
            .await;
        }
    }
    let own = format!("127.0.0.1:{port}");
    refused(&unlisted, &own, (403, "port_not_allowed")).await;
    canary.expect_silence("shut addresses");
    assert_eq!(unlisted.get(PROBE, &[]).await.text(), "oshu-vault\n");
}

#[tokio::test]
async fn developer_mode_opens_loopback_and_nothing_else() {
    let origin = Origin::echo_ok().await;
    let (_vault, workload) = open(Vault::builder()).await;
    for host in NEVER.iter().chain(SHUT) {
        let answer = workload.refused(&format!("{host}:443")).await;
        assert_eq!(answer.code(), "destination_ip_prohibited", "{host}");
    }
    let answer = workload
        .get(&format!("https://{}/", origin.addr()), &[])
        .await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn case_88_a_name_that_leads_to_a_shut_address_is_refused_inside_of_the_tunnel() {
    let canary = Canary::everywhere();
    let names: Vec<(String, SocketAddr)> = NEVER
        .iter()
        .chain(SHUT)
        .chain(&["127.0.0.1", "[::1]"])
        .enumerate()
        .map(|(index, address)| {
            let ip: IpAddr = address
                .trim_matches(['[', ']'])
                .parse()
                .expect("an address");
            (
                format!("n{index}.example.com"),
                SocketAddr::new(ip, canary.addr().port()),
            )
        })
        .collect();
    let builder = names
        .iter()
        .fold(Vault::builder().dev(false), |b, (name, a)| {
            b.resolve(name, *a)
        });
    let (vault, workload) = open(builder).await;
    for (name, address) in &names {
        let answer = workload
            .get(&format!("https://{name}/"), &[("X-A", "1")])
            .await;
        let found = (answer.status, answer.code());
        assert_eq!(
            found,
            (403, "destination_ip_prohibited".to_owned()),
            "{name} {address}"
        );
        assert_eq!(
            answer.header("proxy-status"),
            Some(
                "oshu-vault; error=destination_ip_prohibited; \
                 details=\"destination_ip_prohibited\""
            )
        );
        let answer = workload.get(&format!("http://{name}/"), &[]).await;
        assert_eq!(answer.status, 403, "{name} in the clear");
    }
    canary.expect_silence("names of shut addresses");
    assert_eq!(workload.get(PROBE, &[]).await.text(), "oshu-vault\n");
    drop(vault);
}

#[tokio::test]
async fn an_opened_range_opens_itself_and_never_metadata() {
    let origin = Origin::echo_ok().await;
    let cidr = |text| oshu_vault::policy::Cidr::parse(text).expect("a range");
    let everything = vec![cidr("0.0.0.0/0"), cidr("::/0")];
    let (_vault, workload) = open(
        Vault::builder()
            .dev(false)
            .resolve("good.example.com", origin.addr())
            .config(|config| config.upstream.allow_cidrs = everything),
    )
    .await;
    for host in NEVER
        .iter()
        .chain(&["[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]"])
    {
        let answer = workload.refused(&format!("{host}:443")).await;
        assert_eq!(answer.code(), "destination_ip_prohibited", "{host}");
    }
    assert_eq!(
        workload.get("https://good.example.com/", &[]).await.status,
        200
    );
}

#[tokio::test]
async fn case_89_our_own_listeners_are_refused_in_developer_mode_too() {
    let probe = Vault::builder().start().await;
    let session = probe.session(&CreateSession::new()).await;
    let workload = probe.workload(&session);
    for own in [probe.plain_addr(), probe.tls_addr(), probe.admin_addr()] {
        let answer = workload.refused(&own.to_string()).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (403, "destination_ip_prohibited"),
            "{own}"
        );
        let answer = workload
            .get(&format!("http://{own}/v1/sessions"), &[])
            .await;
        assert_eq!(answer.status, 403, "{own}");
        let port = own.port();
        for mapped in [
            format!("[::ffff:127.0.0.1]:{port}"),
            format!("[::ffff:7f00:1]:{port}"),
        ] {
            assert_eq!(workload.refused(&mapped).await.status, 403, "{mapped}");
        }
        // By name: the table is asked again when the name has been looked up.
        let mut conn = workload.connect(&format!("localhost:{port}")).await;
        conn.send(format!("GET / HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n"))
            .await;
        assert_eq!(conn.answer().await.status, 403, "localhost:{port}");
        // Through ourselves and through ourselves again: no tunnel is opened to begin with.
        let mut conn = workload.plain().await;
        let answer = workload.ask(&mut conn, &own.to_string()).await;
        assert_eq!(answer.status, 403);
        conn.take(
            answer
                .header("content-length")
                .expect("a length")
                .parse()
                .expect("it"),
        )
        .await;
        let answer = workload.ask(&mut conn, &own.to_string()).await;
        assert_eq!(answer.status, 403, "once more on the same connection");
    }
    assert_eq!(workload.get(PROBE, &[]).await.text(), "oshu-vault\n");
}

/// Finds an address of this machine that is not loopback. Nothing is sent.
fn outer_address() -> Option<IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
}

/// A listener on every address is ours on those too that only the machine knows.
#[tokio::test]
async fn case_89_a_listener_on_every_address_is_ours_on_each_of_them() {
    let cidr = |text| oshu_vault::policy::Cidr::parse(text).expect("a range");
    let everything = vec![cidr("0.0.0.0/0"), cidr("::/0")];
    let (vault, workload) = open(Vault::builder().config(|config| {
        config.proxy.listen = Some("0.0.0.0:0".parse().expect("an address"));
        config.upstream.allow_cidrs = everything;
    }))
    .await;
    let port = vault.plain_addr().port();
    for own in ["127.0.0.1", "127.9.9.9", "[::ffff:127.0.0.1]", "0.0.0.0"] {
        refused(
            &workload,
            &format!("{own}:{port}"),
            (403, "destination_ip_prohibited"),
        )
        .await;
    }
    if let Some(outer) = outer_address() {
        let own = SocketAddr::new(outer, port);
        let answer = workload
            .get(&format!("http://{own}/v1/sessions"), &[])
            .await;
        let found = (answer.status, answer.code());
        assert_eq!(
            found,
            (403, "destination_ip_prohibited".to_owned()),
            "{own}"
        );
        let mut conn = workload.tunnel(&own.to_string()).await;
        conn.send(format!("GET /healthz HTTP/1.1\r\nHost: {own}\r\n\r\n"))
            .await;
        assert_eq!(conn.answer().await.status, 403, "{own} in a tunnel");
    }
    assert_eq!(workload.get(PROBE, &[]).await.text(), "oshu-vault\n");
}

#[tokio::test]
async fn names_that_do_not_resolve_and_ports_that_do_not_answer_are_told_apart() {
    let gone = Origin::echo_ok().await.addr();
    let (_vault, workload) = open(Vault::builder().resolve("gone.example.com", gone)).await;
    let answer = workload.get("https://gone.example.com/", &[]).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (502, "connection_refused")
    );
}
