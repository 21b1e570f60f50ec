//! Addresses: what may be dialled, whatever name or spelling leads there.

use std::net::{IpAddr, SocketAddr};

use oshu_vault_sdk::CreateSession;

use crate::support::{Origin, Vault, VaultBuilder};

async fn open(builder: VaultBuilder) -> (Vault, crate::support::Workload) {
    let vault = builder.start().await;
    let session = vault.session(&CreateSession::new()).await;
    let workload = vault.workload(&session);
    (vault, workload)
}

/// Addresses that nothing may open.
const NEVER: &[&str] = &[
    "169.254.169.254",
    "[fd00:ec2::254]",
    "0.0.0.0",
    "[::]",
    "255.255.255.255",
    "224.0.0.1",
];

/// Addresses that stay shut unless an operator opens their range.
const SHUT: &[&str] = &[
    "10.0.0.1",
    "172.16.0.1",
    "192.168.0.1",
    "100.64.0.1",
    "169.254.1.1",
    "192.0.0.1",
    "198.18.0.1",
    "240.0.0.1",
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
    "[2002:7f00:1::]",
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

#[tokio::test]
async fn shut_addresses_are_refused_as_targets() {
    let canary = Origin::echo_ok().await;
    let (_vault, workload) = open(Vault::builder().dev(false)).await;
    for host in NEVER.iter().chain(SHUT).chain(LOOPBACK) {
        for port in [443, 80] {
            let answer = workload.refused(&format!("{host}:{port}")).await;
            let found = (answer.status, answer.code());
            assert_eq!(
                found,
                (403, "destination_ip_prohibited".to_owned()),
                "{host}:{port}"
            );
        }
    }
    let answer = workload.refused(&canary.addr().to_string()).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (403, "port_not_allowed")
    );
    canary.expect_nothing("loopback without --dev");
    assert_eq!(canary.connections(), 0);
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
async fn a_name_that_leads_to_a_shut_address_is_refused_inside_of_the_tunnel() {
    let canary = Origin::echo_ok().await;
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
    assert_eq!(canary.connections(), 0);
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
async fn our_own_listeners_are_refused_in_developer_mode_too() {
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
    }
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
