//! The way through the upstream proxy: one tunnel for each connection, to a vetted address.
//!
//! The proxy is asked for an address that we resolved and checked, never for a name, so that what
//! it or its DNS believes about names decides nothing; who answers at the end of the tunnel is
//! still verified against the name. What the proxy says is bounded in bytes and time, and none of
//! it reaches a workload. Called by [`Upstream`](super::Upstream) in place of a direct connection.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

use super::dial::{Dialler, Offer};
use super::proxy::UpstreamProxy;
use super::resolve::Resolver;
use super::{Dialled, Error, refuse_ourselves};
use crate::policy::{AddressRules, Refused, Scheme, VettedAddr, vet};
use crate::secret::Secret;
use crate::wire::{self, Connection, HeadScanner, Io, parse_answer};

/// The most bytes of the answer to CONNECT, interim answers included.
const ANSWER_LIMIT_BYTES: usize = 16 * 1024;
/// The most interim answers before the one that counts.
const INTERIM_LIMIT: usize = 4;
/// How much of an answer is read at once, in bytes: most have a line or two.
const READ_BYTES: usize = 1024;
/// The most addresses of one target that the proxy is asked for.
const ATTEMPTS: usize = 4;
/// How often the log may say that the proxy does not work: workloads choose how often it is tried.
const TELL_EVERY: Duration = Duration::from_mins(1);

/// Says why the upstream proxy opened no tunnel. None of it is a workload's fault.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The proxy's own address may not be dialled, whoever wrote it: it is one of our listeners, or
    /// of a class that nothing opens.
    #[error("the address of the upstream proxy is not allowed")]
    Address(#[source] Refused),
    /// The proxy closed the connection before it answered.
    #[error("the upstream proxy closed the connection without an answer")]
    Closed,
    /// The proxy cannot be reached, or its connection failed.
    #[error("the upstream proxy cannot be reached")]
    Connect(#[source] io::Error),
    /// The proxy wants other credentials (407).
    #[error("the upstream proxy does not accept our credentials")]
    Credentials,
    /// The proxy's name does not resolve.
    #[error("the name of the upstream proxy does not resolve")]
    Dns,
    /// The proxy's answer is malformed or too long.
    #[error("the answer of the upstream proxy is malformed")]
    Malformed(#[source] wire::Error),
    /// The proxy answered with another status than 2xx and 407.
    #[error("the upstream proxy answered with status {0}")]
    Refused(u16),
    /// TLS with the proxy failed, or its certificate does not verify for its name.
    #[error("the upstream proxy cannot be verified")]
    Tls(#[source] io::Error),
}

impl ProxyError {
    /// Tells whether another address of the same target may fare better.
    fn concerns_the_address(&self) -> bool {
        match self {
            Self::Closed => true,
            Self::Refused(status) => *status >= 500,
            _ => false,
        }
    }

    /// Tells whether the operator has to act, and not whoever chose the target.
    fn concerns_the_operator(&self) -> bool {
        !matches!(self, Self::Closed | Self::Refused(_))
    }
}

/// Opens tunnels through one upstream proxy.
#[derive(Debug)]
pub(super) struct Chain {
    proxy: UpstreamProxy,
    /// What the proxy's own addresses are held against.
    rules: AddressRules,
    /// For all attempts to open one tunnel together.
    within: Duration,
    /// When the log last said that the proxy does not work.
    told: Mutex<Option<Instant>>,
}

impl Chain {
    /// Takes the rules that workloads' targets are held against; the proxy's own addresses may
    /// also be private, since the operator wrote them.
    pub(super) fn new(proxy: UpstreamProxy, rules: &AddressRules, within: Duration) -> Self {
        Self {
            proxy,
            rules: rules.for_operator(),
            within,
            told: Mutex::new(None),
        }
    }

    /// Opens a tunnel to the first of the addresses that the proxy can reach. Returns the address
    /// that it leads to.
    pub(super) async fn open(
        &self,
        resolver: &Resolver,
        dialler: &Dialler,
        targets: &[VettedAddr],
    ) -> Result<(Io, Dialled), Error> {
        if targets.iter().any(|target| self.is_ours(*target)) {
            return Err(Error::Refused(Refused::OwnListener));
        }
        let opened = self.try_each(resolver, dialler, targets).await;
        if let Err(Error::Proxy(error)) = &opened {
            self.tell(error);
        }
        opened
    }

    async fn try_each(
        &self,
        resolver: &Resolver,
        dialler: &Dialler,
        targets: &[VettedAddr],
    ) -> Result<(Io, Dialled), Error> {
        let found = resolver.look_up(self.proxy.authority()).await;
        let found = found.map_err(of_the_proxy)?;
        let proxy = vet(&found.addresses, found.port, &self.rules)
            .map_err(|refused| Error::Proxy(ProxyError::Address(refused)))?;
        let end = Instant::now() + self.within;
        let mut last = Error::ProxyTimeout;
        // Proxies that cannot reach IPv6 are common, and some do not even say so: IPv4 first.
        let mut waiting: Vec<&VettedAddr> = targets.iter().collect();
        waiting.sort_by_key(|target| target.socket_addr().is_ipv6());
        waiting.truncate(ATTEMPTS);
        let mut waiting = waiting.into_iter();
        while let Some(target) = waiting.next() {
            let left = end.saturating_duration_since(Instant::now());
            // Those that wait must not be starved by the one that is silent.
            let share = if waiting.len() == 0 { left } else { left / 2 };
            let attempt = self.attempt(dialler, &proxy, target.socket_addr());
            match timeout(share, attempt).await {
                Err(_elapsed) => last = Error::ProxyTimeout,
                Ok(Ok(io)) => return Ok((io, target.socket_addr())),
                Ok(Err(Error::Proxy(error))) if error.concerns_the_address() => {
                    last = Error::Proxy(error);
                }
                Ok(Err(error)) => return Err(error),
            }
        }
        Err(last)
    }

    /// Connects to the proxy and asks it for one address.
    async fn attempt(
        &self,
        dialler: &Dialler,
        proxy: &[VettedAddr],
        target: SocketAddr,
    ) -> Result<Io, Error> {
        let (tcp, _address) = dialler.connect(proxy).await.map_err(of_the_proxy)?;
        refuse_ourselves(&self.rules, &tcp).map_err(of_the_proxy)?;
        let io: Io = match self.proxy.scheme() {
            Scheme::Http => Box::new(tcp),
            Scheme::Https => {
                let host = &self.proxy.authority().host;
                let secured = dialler.secure(Box::new(tcp), host, Offer::Http1).await;
                secured.map_err(of_the_proxy)?.0
            }
        };
        ask(io, target, self.proxy.authorization())
            .await
            .map_err(Error::Proxy)
    }

    /// Tells whether the target is a listener of ours on an address that only the machine knows to
    /// be its own: a connection would show it, but the proxy makes that one, so that the address is
    /// tried for its being local.
    fn is_ours(&self, target: VettedAddr) -> bool {
        let target = target.socket_addr();
        self.rules.is_own_connection(target.ip(), target)
            && UdpSocket::bind((target.ip(), 0)).is_ok()
    }

    fn tell(&self, error: &ProxyError) {
        if !error.concerns_the_operator() {
            return;
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|last| last.elapsed() >= TELL_EVERY) {
            *told = Some(Instant::now());
            tracing::error!(
                error = error as &dyn std::error::Error,
                "the upstream proxy does not work, check upstream.proxy"
            );
        }
    }
}

/// Restates what went wrong on the way to the proxy as the proxy's own fault: the same words about
/// the target would mislead.
fn of_the_proxy(error: Error) -> Error {
    Error::Proxy(match error {
        Error::Connect(error) => ProxyError::Connect(error),
        Error::Dns => ProxyError::Dns,
        Error::Refused(refused) => ProxyError::Address(refused),
        Error::Tls(error) | Error::TlsCertificate(error) => ProxyError::Tls(error),
        Error::ConnectTimeout | Error::DnsTimeout | Error::TlsTimeout => {
            return Error::ProxyTimeout;
        }
        other @ (Error::Http2(_) | Error::Proxy(_) | Error::ProxyTimeout | Error::Resolver(_)) => {
            return other;
        }
    })
}

/// Asks for a tunnel and reads the answer. What the other end of the tunnel has already said is
/// kept for whoever reads the stream.
async fn ask(
    mut io: Io,
    target: SocketAddr,
    authorization: Option<&Secret>,
) -> Result<Io, ProxyError> {
    let request = request(target, authorization);
    io.write_all(&request).await.map_err(ProxyError::Connect)?;
    io.flush().await.map_err(ProxyError::Connect)?;
    let mut input = BytesMut::with_capacity(READ_BYTES);
    let (mut scanner, mut used, mut interim) = (HeadScanner::default(), 0, 0);
    loop {
        let length = scanner.scan(&input).map_err(ProxyError::Malformed)?;
        if used + length.unwrap_or(input.len()) > ANSWER_LIMIT_BYTES {
            return Err(ProxyError::Malformed(wire::Error::HeadTooLarge));
        }
        let Some(length) = length else {
            input.reserve(READ_BYTES);
            match io.read_buf(&mut input).await {
                Ok(0) => return Err(ProxyError::Closed),
                Ok(_) => continue,
                Err(error) => return Err(ProxyError::Connect(error)),
            }
        };
        used += length;
        // No framing is asked for: a 2xx to CONNECT has no body, whatever its fields say
        // (RFC 9110 §9.3.6), and after any other answer the connection is closed.
        let head = parse_answer(input.split_to(length).freeze()).map_err(ProxyError::Malformed)?;
        match head.status {
            200..=299 => return Ok(with_unread(io, input)),
            100 | 102..=199 if interim < INTERIM_LIMIT => {
                interim += 1;
                scanner = HeadScanner::default();
            }
            407 => return Err(ProxyError::Credentials),
            status => return Err(ProxyError::Refused(status)),
        }
    }
}

/// Writes the request into a buffer that does not grow, since it has the credentials.
fn request(target: SocketAddr, authorization: Option<&Secret>) -> Zeroizing<Vec<u8>> {
    let target = SocketAddr::new(target.ip().to_canonical(), target.port());
    let start = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    let room = authorization.map_or(0, Secret::len) + 64;
    let mut request = Zeroizing::new(Vec::with_capacity(start.len() + room));
    request.extend_from_slice(start.as_bytes());
    if let Some(value) = authorization {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(value.expose());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    request
}

fn with_unread(io: Io, unread: BytesMut) -> Io {
    if unread.is_empty() {
        return io;
    }
    let mut connection = Connection::new(io);
    connection.input = unread;
    Box::new(connection.into_replay())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::RootCertStore;

    use super::*;

    const TARGET: &str = "203.0.113.7:443";

    /// Answers a request for a tunnel with these bytes, and with the end of the stream behind them
    /// where told so.
    async fn answered(answer: &[u8], ends: bool) -> Result<Io, ProxyError> {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        far.write_all(answer).await.unwrap();
        if ends {
            far.shutdown().await.unwrap();
        }
        let asked = timeout(
            Duration::from_secs(5),
            ask(Box::new(near), TARGET.parse().unwrap(), None),
        );
        let asked = asked.await.expect("an end");
        if asked.is_ok() {
            far.write_all(b"|later").await.unwrap();
            far.shutdown().await.unwrap();
        }
        asked
    }

    async fn behind(answer: &str) -> String {
        let mut io = match answered(answer.as_bytes(), false).await {
            Ok(io) => io,
            Err(error) => panic!("{answer}: {error}"),
        };
        let mut rest = String::new();
        io.read_to_string(&mut rest).await.unwrap();
        rest
    }

    #[test]
    fn the_request_names_the_address_alone() {
        let secret = Secret::new(b"Basic dTpw".to_vec());
        for (target, authorization, expected) in [
            (
                TARGET,
                None,
                "CONNECT 203.0.113.7:443 HTTP/1.1\r\nHost: 203.0.113.7:443\r\n\r\n",
            ),
            (
                "[2001:db8::1]:80",
                Some(&secret),
                "CONNECT [2001:db8::1]:80 HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\
                 Proxy-Authorization: Basic dTpw\r\n\r\n",
            ),
            (
                "[::ffff:203.0.113.7]:443",
                None,
                "CONNECT 203.0.113.7:443 HTTP/1.1\r\nHost: 203.0.113.7:443\r\n\r\n",
            ),
        ] {
            let request = request(target.parse().unwrap(), authorization);
            assert_eq!(String::from_utf8_lossy(&request), expected);
            assert!(request.capacity() >= request.len() + 2, "the buffer grew");
        }
    }

    #[tokio::test]
    async fn a_2xx_opens_whatever_its_fields_say() {
        for (answer, rest) in [
            ("HTTP/1.1 200 Connection established\r\n\r\n", "|later"),
            ("HTTP/1.0 200 OK\r\nProxy-Agent: x\r\n\r\n", "|later"),
            ("HTTP/1.1 200\r\n\r\n", "|later"),
            ("HTTP/1.1 299 Odd\r\n\r\n", "|later"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", "|later"),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                "|later",
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: x\r\n\r\nfirst",
                "first|later",
            ),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\n\r\nfirst",
                "first|later",
            ),
        ] {
            assert_eq!(behind(answer).await, rest, "{answer}");
        }
    }

    #[tokio::test]
    async fn anything_else_opens_nothing() {
        let interim = "HTTP/1.1 100 Continue\r\n\r\n";
        let long = |count: usize| format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "a".repeat(count));
        let over = ANSWER_LIMIT_BYTES - long(0).len() + 1;
        assert_eq!(behind(&long(over - 1)).await, "|later");
        for (answer, expected) in [
            (
                "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n".to_owned(),
                "credentials",
            ),
            (
                "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno".to_owned(),
                "status 403",
            ),
            ("HTTP/1.1 502 Bad Gateway\r\n\r\n".to_owned(), "status 502"),
            (
                "HTTP/1.1 302 Found\r\nLocation: http://login\r\n\r\n".to_owned(),
                "status 302",
            ),
            ("HTTP/1.1 101 Switching\r\n\r\n".to_owned(), "status 101"),
            (
                interim.repeat(INTERIM_LIMIT + 1) + "HTTP/1.1 200 OK\r\n\r\n",
                "status 100",
            ),
            ("SSH-2.0-OpenSSH\r\n\r\n".to_owned(), "malformed"),
            ("HTTP/2 200 OK\r\n\r\n".to_owned(), "malformed"),
            ("HTTP/1.1 200 OK\n\n".to_owned(), "malformed"),
            ("HTTP/1.1 200 OK\r\nA b\r\n\r\n".to_owned(), "malformed"),
            ("\0\u{1}\u{2}\n".to_owned(), "malformed"),
            (long(over), "malformed"),
            ("a".repeat(ANSWER_LIMIT_BYTES + 1), "malformed"),
            (String::new(), "without an answer"),
            (
                "HTTP/1.1 200 OK\r\nA: b\r\n".to_owned(),
                "without an answer",
            ),
        ] {
            let Err(error) = answered(answer.as_bytes(), true).await else {
                panic!("{answer} opened a tunnel");
            };
            assert!(error.to_string().contains(expected), "{answer}: {error}");
        }
    }

    #[test]
    fn faults_on_the_way_to_the_proxy_are_not_the_target_s() {
        let refused = io::ErrorKind::ConnectionRefused;
        for (error, expected) in [
            (
                Error::Connect(refused.into()),
                "the upstream proxy cannot be reached",
            ),
            (
                Error::Dns,
                "the name of the upstream proxy does not resolve",
            ),
            (
                Error::Tls(refused.into()),
                "the upstream proxy cannot be verified",
            ),
            (
                Error::TlsCertificate(refused.into()),
                "the upstream proxy cannot be verified",
            ),
            (
                Error::Refused(Refused::OwnListener),
                "the address of the upstream proxy is not allowed",
            ),
        ] {
            let Error::Proxy(error) = of_the_proxy(error) else {
                panic!("{expected}");
            };
            assert_eq!(error.to_string(), expected);
            assert!(error.concerns_the_operator());
        }
        for error in [Error::ConnectTimeout, Error::DnsTimeout, Error::TlsTimeout] {
            assert!(matches!(of_the_proxy(error), Error::ProxyTimeout));
        }
    }

    /// Starts a proxy that answers a CONNECT to the n-th address, in the order of asking, with the
    /// n-th status; 0 is silence. Returns its URL and what it was asked for.
    async fn proxy(statuses: &'static [u16]) -> (UpstreamProxy, Arc<Mutex<Vec<String>>>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let list = Arc::clone(&asked);
        tokio::spawn(async move {
            let mut open = Vec::new();
            for status in statuses {
                let (tcp, _) = listener.accept().await.unwrap();
                let mut connection = Connection::new(Box::new(tcp));
                let wait = Duration::from_secs(30);
                let head = connection.read_head(wait, wait).await.unwrap();
                let head = wire::parse_request(head).unwrap();
                list.lock().unwrap().push(head.target_text().to_owned());
                if *status > 0 {
                    let answer = format!("HTTP/1.1 {status} x\r\n\r\n");
                    connection.send(answer.as_bytes()).await.unwrap();
                }
                open.push(connection);
            }
            std::future::pending::<()>().await;
        });
        (UpstreamProxy::parse(&url).unwrap(), asked)
    }

    #[tokio::test]
    async fn addresses_are_asked_for_in_turn_until_one_opens() {
        let ips = [
            "2001:4860::1",
            "1.1.1.1",
            "2001:4860::2",
            "1.0.0.1",
            "8.8.8.8",
        ];
        let [a, b, c] = ["1.1.1.1:443", "1.0.0.1:443", "8.8.8.8:443"];
        let d = "[2001:4860::1]:443";
        for (statuses, kept, asked, opened) in [
            (&[200][..], 5, &[a][..], Ok(a)),
            (&[502, 200], 5, &[a, b], Ok(b)),
            (&[0, 200], 5, &[a, b], Ok(b)),
            (&[502, 504, 502, 200], 5, &[a, b, c, d], Ok(d)),
            (
                &[502, 502, 502, 503, 200],
                5,
                &[a, b, c, d],
                Err("status 503"),
            ),
            (&[502, 200], 1, &[d], Err("status 502")),
            (&[403, 200], 5, &[a], Err("status 403")),
            (&[407, 200], 5, &[a], Err("credentials")),
            (&[0, 0, 0, 0], 5, &[a, b, c, d], Err("in time")),
        ] {
            let (proxy, list) = proxy(statuses).await;
            let rules = AddressRules::new(Vec::new(), false);
            let ips: Vec<_> = ips
                .iter()
                .take(kept)
                .map(|ip| ip.parse().unwrap())
                .collect();
            let targets = vet(&ips, 443, &rules).unwrap();
            let within = Duration::from_secs(1);
            let chain = Chain::new(proxy, &rules, within);
            let resolver = Resolver::new(Vec::new(), within).unwrap();
            let dialler = Dialler::new(&Arc::new(RootCertStore::empty()), within, within);
            let result = chain.open(&resolver, &dialler, &targets).await;
            assert_eq!(*list.lock().unwrap(), asked, "{statuses:?}");
            match (result, opened) {
                (Ok((_, address)), Ok(opened)) => assert_eq!(address.to_string(), opened),
                (Err(error), Err(part)) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    let text = format!("{error}: {}", cause.unwrap_or_default());
                    assert!(text.contains(part), "{statuses:?}: {text}");
                }
                (result, _) => panic!("{statuses:?}: {}", result.is_ok()),
            }
        }
    }

    #[test]
    fn a_listener_on_every_address_is_known_by_the_machine_s_own() {
        let own = "0.0.0.0:8080".parse().unwrap();
        let open = AddressRules::new(Vec::new(), true);
        let proxy = UpstreamProxy::parse("http://proxy.example:3128").unwrap();
        let chain = Chain::new(proxy, &open.clone().with_own([own]), Duration::from_secs(1));
        let target = |ip: &str, port| vet(&[ip.parse().unwrap()], port, &open).unwrap()[0];
        assert!(chain.is_ours(target("127.0.0.1", 8080)));
        assert!(!chain.is_ours(target("127.0.0.1", 8081)));
        assert!(!chain.is_ours(target("1.1.1.1", 8080)));
    }
}
