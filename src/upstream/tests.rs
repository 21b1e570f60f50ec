//! Names to connections, with a DNS server of the tests' own: what an answer may and may not reach.
//!
//! `127.0.0.2` stands for the outside, since the rules of these tests open it; `127.0.0.1` has a
//! listener on the same port that nobody may reach.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::RootCertStore;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UdpSocket;

use super::resolve::Resolver;
use super::{Config, Error, Upstream};
use crate::host::HostPort;
use crate::policy::{AddressRules, Cidr, EgressPolicy, EgressRules, Grant, Refused};

const OPEN: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const SHUT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;

/// What the server says about a name.
#[derive(Clone, Debug)]
enum Says {
    /// These addresses, the families apart.
    Addresses(Vec<IpAddr>),
    /// Another name, and its addresses.
    Alias(&'static str, Vec<IpAddr>),
    /// The open address and the shut one in turn.
    Alternates,
    /// That it failed, so many times; then the open address.
    FailsFirst(u32),
    /// Nothing.
    Silent,
}

/// A DNS server on loopback, over UDP and TCP.
#[derive(Clone, Default)]
struct Dns {
    names: Arc<Mutex<HashMap<String, (Says, u32)>>>,
}

impl Dns {
    /// Starts to serve, and returns where.
    async fn serve(&self) -> SocketAddr {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let address = udp.local_addr().unwrap();
            if let Ok(tcp) = tokio::net::TcpListener::bind(address).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let dns = self.clone();
        tokio::spawn(async move {
            let mut query = [0; 1024];
            while let Ok((count, peer)) = udp.recv_from(&mut query).await {
                let Some(mut answer) = dns.answer(&query[..count], false) else {
                    continue;
                };
                if answer.len() > 512 {
                    // What does not fit says so, and is asked for again over TCP.
                    answer.truncate(question(&query[..count]).1);
                    answer[2] |= 0x02;
                    answer[6..8].fill(0);
                }
                udp.send_to(&answer, peer).await.unwrap();
            }
        });
        let dns = self.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let dns = dns.clone();
                tokio::spawn(async move {
                    while let Ok(length) = stream.read_u16().await {
                        let mut query = vec![0; length.into()];
                        stream.read_exact(&mut query).await.unwrap();
                        if let Some(answer) = dns.answer(&query, true) {
                            let length = u16::try_from(answer.len()).unwrap();
                            stream.write_u16(length).await.unwrap();
                            stream.write_all(&answer).await.unwrap();
                        }
                    }
                });
            }
        });
        address
    }

    fn says(&self, name: &str, says: Says) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.insert(name.to_owned(), (says, 0));
    }

    fn answer(&self, query: &[u8], again: bool) -> Option<Vec<u8>> {
        let (name, end) = question(query);
        let kind = u16::from_be_bytes([query[end - 4], query[end - 3]]);
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        // What an alias stands for is asked for too, and is not there.
        let Some((says, asked)) = names.get_mut(&name) else {
            return Some(reply(query, end, 0));
        };
        let turn = *asked;
        if kind == A && !again {
            *asked += 1;
        }
        let (alias, addresses) = match says.clone() {
            Says::Addresses(addresses) => (None, addresses),
            Says::Alias(alias, addresses) => (Some(alias), addresses),
            Says::Alternates => (None, vec![if turn % 2 == 0 { OPEN } else { SHUT }]),
            Says::FailsFirst(times) if turn < times => return Some(reply(query, end, 2)),
            Says::FailsFirst(_) => (None, vec![OPEN]),
            Says::Silent => return None,
        };
        let mut answer = reply(query, end, 0);
        let mut count = 0_u16;
        // The question stands at 12; what an alias stands for is named behind it.
        let mut owner = vec![0xc0, 12];
        if let Some(alias) = alias {
            let target = wire(alias);
            answer.extend(record(&owner, CNAME, &target));
            owner = target;
            count += 1;
        }
        for address in addresses {
            let (family, bytes) = match address {
                IpAddr::V4(v4) => (A, v4.octets().to_vec()),
                IpAddr::V6(v6) => (AAAA, v6.octets().to_vec()),
            };
            if family == kind {
                answer.extend(record(&owner, family, &bytes));
                count += 1;
            }
        }
        answer[6..8].copy_from_slice(&count.to_be_bytes());
        Some(answer)
    }
}

/// Reads the question of a query: the name, and where the question ends.
fn question(query: &[u8]) -> (String, usize) {
    let (mut at, mut labels) = (12, Vec::new());
    while query[at] != 0 {
        let length = usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..=at + length]).to_lowercase());
        at += length + 1;
    }
    (labels.join("."), at + 5)
}

/// Begins a reply: the query's number and question, and a response code (RFC 1035 §4.1.1).
fn reply(query: &[u8], end: usize, code: u8) -> Vec<u8> {
    let mut reply = query[..end].to_vec();
    reply[2..4].copy_from_slice(&[0x85, 0x80 | code]);
    reply[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    reply
}

/// Writes a name (RFC 1035 §3.1).
fn wire(name: &str) -> Vec<u8> {
    let labels = name.split('.').flat_map(|label| {
        let length = u8::try_from(label.len()).unwrap();
        [vec![length], label.as_bytes().to_vec()].concat()
    });
    labels.chain([0]).collect()
}

/// Writes a record with a time to live of zero.
fn record(owner: &[u8], kind: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap();
    [
        owner,
        &kind.to_be_bytes(),
        &[0, 1, 0, 0, 0, 0],
        &length.to_be_bytes(),
        data,
    ]
    .concat()
}

/// The way out, the server it asks, and two listeners on one port.
struct World {
    upstream: Upstream,
    dns: Dns,
    rules: Arc<AddressRules>,
    /// On the open address.
    open: TcpListener,
    /// On the shut one: what connects waits in its queue.
    canary: TcpListener,
}

impl World {
    async fn new(dns_timeout: Duration) -> Self {
        let (open, canary) = loop {
            let canary = TcpListener::bind((SHUT, 0)).unwrap();
            let port = canary.local_addr().unwrap().port();
            match TcpListener::bind((OPEN, port)) {
                Ok(open) => break (open, canary),
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse),
            }
        };
        canary.set_nonblocking(true).unwrap();
        let cidr = |text| Cidr::parse(text).unwrap();
        let allow = vec![cidr("127.0.0.2/32"), cidr("127.1.0.0/16")];
        let rules = Arc::new(AddressRules::new(allow, false));
        let dns = Dns::default();
        let server = dns.serve().await;
        let mut upstream = Upstream::new(Config {
            overrides: Vec::new(),
            roots: Arc::new(RootCertStore::empty()),
            rules: Arc::clone(&rules),
            proxy: None,
            dns_timeout,
            connect_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
        })
        .unwrap();
        upstream.resolver = Resolver::asking(server, dns_timeout);
        Self {
            upstream,
            dns,
            rules,
            open,
            canary,
        }
    }

    fn grant(&self, name: &str) -> Grant {
        let port = self.open.local_addr().unwrap().port();
        let target = HostPort::parse(&format!("{name}:{port}")).unwrap();
        EgressPolicy::new(EgressRules::any_public(true))
            .decide(&target, &self.rules)
            .unwrap()
    }

    /// Connects to a name, as a first request would.
    async fn dial(&self, name: &str) -> Result<IpAddr, Error> {
        let (_stream, address) = self.upstream.dial(&self.grant(name)).await?;
        Ok(address.ip())
    }

    fn expect_silence(&self, case: &str) {
        let taken = self.canary.accept().map(|(_, peer)| peer);
        assert_eq!(
            taken.expect_err(case).kind(),
            std::io::ErrorKind::WouldBlock,
            "{case}"
        );
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[tokio::test]
async fn case_88_one_shut_address_refuses_the_whole_answer() {
    let world = World::new(Duration::from_secs(20)).await;
    let many = |last: IpAddr| {
        let open = (0..250).map(|n| IpAddr::from([127, 1, 0, n]));
        open.chain([last]).collect::<Vec<_>>()
    };
    let cases = [
        ("private", Says::Addresses(vec![ip("10.0.0.1")])),
        ("shut", Says::Addresses(vec![SHUT])),
        ("open, then shut", Says::Addresses(vec![OPEN, SHUT])),
        ("shut, then open", Says::Addresses(vec![SHUT, OPEN])),
        ("open and ::1", Says::Addresses(vec![OPEN, ip("::1")])),
        (
            "open and a mapped address",
            Says::Addresses(vec![OPEN, ip("::ffff:10.0.0.1")]),
        ),
        (
            "open and a mapped form of what is shut",
            Says::Addresses(vec![OPEN, ip("::ffff:127.0.0.1")]),
        ),
        (
            "open and a translated form of what is shut",
            Says::Addresses(vec![OPEN, ip("64:ff9b::7f00:1")]),
        ),
        (
            "metadata",
            Says::Addresses(vec![OPEN, ip("169.254.169.254")]),
        ),
        ("an alias", Says::Alias("inner.example.org", vec![SHUT])),
        (
            "an alias of both",
            Says::Alias("inner.example.org", vec![OPEN, SHUT]),
        ),
        (
            "localhost by an alias",
            Says::Alias("localhost", vec![SHUT]),
        ),
        (
            "four kilobytes, the last is shut",
            Says::Addresses(many(SHUT)),
        ),
    ];
    // A name of its own for each: what was asked for once may be remembered.
    for (index, (case, says)) in cases.into_iter().enumerate() {
        let name = format!("n{index}.example.com");
        world.dns.says(&name, says);
        let found = world.dial(&name).await;
        let refused = matches!(found, Err(Error::Refused(Refused::Prohibited(_))));
        assert!(refused, "{case}: {found:?}");
        world.expect_silence(case);
    }
    // An alias that names this machine and gives no address leads nowhere either.
    let alias = Says::Alias("localhost", Vec::new());
    world.dns.says("alias.example.com", alias);
    let found = world.dial("alias.example.com").await;
    let nowhere = matches!(found, Err(Error::Dns | Error::Refused(_)));
    assert!(nowhere, "{found:?}");
    world.expect_silence("an alias without an address");
    // A long answer is read whole.
    let long = Says::Addresses(many(OPEN));
    world.dns.says("long.example.com", long);
    let target = HostPort::parse("long.example.com:443").unwrap();
    let found = world.upstream.resolver.look_up(&target).await.unwrap();
    assert_eq!(found.addresses.len(), 251);
    let open = Says::Addresses(vec![OPEN]);
    world.dns.says("open.example.com", open);
    assert_eq!(world.dial("open.example.com").await.unwrap(), OPEN);
    world.expect_silence("at the end");
}

/// The address that was checked is the one that is dialled, however often the answer changes.
#[tokio::test]
async fn case_88_an_answer_that_changes_reaches_nothing_that_is_shut() {
    let world = World::new(Duration::from_secs(20)).await;
    world.dns.says("rebind.example.com", Says::Alternates);
    let (mut reached, mut refused) = (0, 0);
    for round in 0..50 {
        match world.dial("rebind.example.com").await {
            Ok(address) => {
                assert_eq!(address, OPEN, "round {round}");
                reached += 1;
            }
            Err(Error::Refused(_)) => refused += 1,
            Err(error) => panic!("round {round}: {error:?}"),
        }
        world.expect_silence("an answer that changes");
    }
    assert!(
        reached > 0 && refused > 0,
        "the answer did change: {reached} {refused}"
    );
}

#[tokio::test]
async fn case_88_answers_without_an_address_are_told_apart_and_forgotten() {
    let world = World::new(Duration::from_secs(20)).await;
    world
        .dns
        .says("none.example.com", Says::Addresses(Vec::new()));
    let found = world.dial("none.example.com").await;
    assert!(matches!(found, Err(Error::Dns)), "{found:?}");
    // A server that fails is asked a second time; then the request fails, and the next is new.
    world.dns.says("fails.example.com", Says::FailsFirst(8));
    let mut failed = 0;
    let reached = loop {
        match world.dial("fails.example.com").await {
            Err(Error::Dns) => failed += 1,
            other => break other,
        }
        assert!(failed < 100, "it never comes back");
    };
    assert_eq!(reached.unwrap(), OPEN);
    assert!(failed > 0, "the failure was told");
    world.expect_silence("answers without an address");
}

#[tokio::test]
async fn case_88_a_server_that_is_silent_is_given_up_in_time() {
    let world = World::new(Duration::from_millis(200)).await;
    world.dns.says("silent.example.com", Says::Silent);
    let found = world.dial("silent.example.com").await;
    assert!(matches!(found, Err(Error::DnsTimeout)), "{found:?}");
    world.expect_silence("a silent server");
}

/// Of several addresses that passed, one that answers is found; none that did not pass is tried.
#[tokio::test]
async fn peer_20_an_address_that_does_not_answer_is_followed_by_the_next() {
    let world = World::new(Duration::from_secs(20)).await;
    // Nobody listens on these.
    let dead = [127, 1, 2].map(|n| IpAddr::from([127, 1, 9, n]));
    let all = dead.into_iter().chain([OPEN]).collect();
    world.dns.says("partly.example.com", Says::Addresses(all));
    assert_eq!(world.dial("partly.example.com").await.unwrap(), OPEN);
    world
        .dns
        .says("dead.example.com", Says::Addresses(dead.to_vec()));
    let found = world.dial("dead.example.com").await;
    assert!(matches!(found, Err(Error::Connect(_))), "{found:?}");
    world.expect_silence("addresses that do not answer");
}
