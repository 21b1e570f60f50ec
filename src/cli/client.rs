//! Calls to a server's management API, as the verbs of this program make them.
//!
//! They leave through the same gates as everything else: a grant for exactly the server named, a
//! vetted address, verified TLS. The operator names the server, so private and loopback addresses
//! are open here; metadata addresses stay shut. Never writes the API key into a message. Called by
//! the verbs that speak to a running server.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::target::Target;
use super::{Exit, chain};
use crate::config::{PublicUrl, Scheme};
use crate::policy::{AddressRules, Cidr, Denial, EgressPolicy, EgressRules, Grant, Refused};
use crate::secret::Secret;
use crate::upstream::{self, Pool, Upstream};
use crate::wire::{self, Body, Connection, Progress, ReadError};

/// How long a call may take, look-up and connecting included.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a look-up, the connecting and the handshake may take each.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// The most bytes of an answer's body.
const ANSWER_LIMIT_BYTES: usize = 4 * 1024 * 1024;
/// The most interim answers (RFC 9110 §15.2) before the one that counts.
const INTERIM_LIMIT: usize = 10;
/// Ranges an operator's own server may lie in, which a workload's target may not.
const OPEN_RANGES: [&str; 7] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "169.254.0.0/16",
    "fc00::/7",
    "fe80::/10",
];

/// Says why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The answer has more bytes than a management call ever has.
    #[error("the answer has more than 4 MiB")]
    AnswerTooLarge,
    /// The answer breaks a rule of HTTP/1.1; it is perhaps no HTTP at all.
    #[error("the answer is not HTTP/1.1")]
    BadAnswer(#[source] wire::Error),
    /// The connection ended before the answer did.
    #[error("the connection closed before the answer was complete")]
    Closed,
    /// The address is one that is never called.
    #[error("the address may not be called")]
    Denied(#[source] Denial),
    /// The name leads to an address that is never called.
    #[error("the address may not be called")]
    Refused(#[source] Refused),
    /// Nobody answers there, the name is unknown, or TLS failed.
    #[error("{text}")]
    Unreachable {
        /// What failed.
        text: &'static str,
        /// Why.
        #[source]
        source: Option<std::io::Error>,
    },
    /// The resolver cannot be set up.
    #[error(transparent)]
    Upstream(upstream::Error),
    /// The whole call took too long.
    #[error("no complete answer within 30 seconds")]
    Slow,
    /// The connection failed.
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
}

impl From<upstream::Error> for CallError {
    fn from(error: upstream::Error) -> Self {
        use upstream::Error as E;
        let (text, source) = match error {
            E::Connect(source) => ("nothing can be reached there", Some(source)),
            E::ConnectTimeout => ("nothing accepts a connection there in time", None),
            E::Dns => ("the name does not resolve", None),
            E::DnsTimeout => ("the name does not resolve in time", None),
            E::Refused(refused) => return Self::Refused(refused),
            E::Tls(source) => ("the TLS handshake failed", Some(source)),
            E::TlsCertificate(source) => (
                "the certificate does not verify; --ca names the root it leads to",
                Some(source),
            ),
            E::TlsTimeout => ("the TLS handshake did not end in time", None),
            // Calls of our own use none of these.
            E::Http2(_) | E::Proxy(_) | E::ProxyTimeout | E::Resolver(_) => {
                return Self::Upstream(error);
            }
        };
        Self::Unreachable { text, source }
    }
}

impl From<ReadError> for CallError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Idle | ReadError::Cut => Self::Closed,
            ReadError::Late => Self::Slow,
            ReadError::Malformed(rule) => Self::BadAnswer(rule),
            ReadError::Io(source) => Self::Io(source),
        }
    }
}

/// Calls the management API with the target's API key; returns the status and the body. A body
/// that is sent is JSON.
///
/// # Errors
/// Exit code 1 naming the server where no answer came, 64 for a bad `--ca` file. An answer of any
/// status is not an error here.
pub(super) async fn call(
    target: &Target,
    method: &str,
    path: &str,
    body: Option<Vec<u8>>,
) -> Result<(u16, Vec<u8>), Exit> {
    let body = body.map(Zeroizing::new);
    let request = request(
        &target.url,
        method,
        path,
        Some(&target.api_key),
        body.as_ref(),
    );
    send(&target.url, target.ca.as_deref(), &request).await
}

/// Asks for a path that needs no API key; returns the status and the body.
///
/// # Errors
/// As [`call`].
pub(super) async fn ask(
    url: &PublicUrl,
    ca: Option<&Path>,
    path: &str,
) -> Result<(u16, Vec<u8>), Exit> {
    send(url, ca, &request(url, "GET", path, None, None)).await
}

/// Writes the request, in memory that is overwritten at the end.
fn request(
    url: &PublicUrl,
    method: &str,
    path: &str,
    api_key: Option<&Secret>,
    body: Option<&Zeroizing<Vec<u8>>>,
) -> Zeroizing<Vec<u8>> {
    // All of it reserved: a vector that grows leaves copies of the key behind.
    let length = path.len() + api_key.map_or(0, Secret::len) + body.map_or(0, |body| body.len());
    let mut out = Zeroizing::new(Vec::with_capacity(length + 1024));
    let version = env!("CARGO_PKG_VERSION");
    let host = url.to_string();
    let host = host.split_once("://").map_or("", |(_, host)| host);
    out.extend_from_slice(
        format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: oshu-vault/{version}\r\n\
             Accept: application/json\r\nConnection: close\r\n"
        )
        .as_bytes(),
    );
    if let Some(key) = api_key {
        out.extend_from_slice(b"Authorization: Bearer ");
        out.extend_from_slice(key.expose());
        out.extend_from_slice(b"\r\n");
    }
    if let Some(body) = body {
        let length = body.len();
        out.extend_from_slice(
            format!("Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n")
                .as_bytes(),
        );
        out.extend_from_slice(body);
    } else {
        out.extend_from_slice(b"\r\n");
    }
    out
}

async fn send(url: &PublicUrl, ca: Option<&Path>, request: &[u8]) -> Result<(u16, Vec<u8>), Exit> {
    let roots = roots(ca)?;
    let answered = timeout(CALL_TIMEOUT, exchange(url, roots, request)).await;
    answered
        .unwrap_or(Err(CallError::Slow))
        .map_err(|error| Exit::failed(&format!("{url}: {}", chain(&error))))
}

async fn exchange(
    url: &PublicUrl,
    roots: RootCertStore,
    request: &[u8],
) -> Result<(u16, Vec<u8>), CallError> {
    let (upstream, grant) = way_to(url, roots)?;
    let mut lease = upstream.lease(&Pool::default(), &grant).await?;
    let connection = &mut lease.connection;
    // A server that refuses early answers and closes: its answer tells more than the broken pipe.
    let sent = connection.send(request).await;
    match read_answer(connection).await {
        Err(CallError::Closed | CallError::Io(_)) if sent.is_err() => {
            sent.map(|()| (0, Vec::new())).map_err(CallError::Io)
        }
        read => read,
    }
}

/// Makes the way out to one server, and the grant for it.
pub(super) fn way_to(
    url: &PublicUrl,
    roots: RootCertStore,
) -> Result<(Upstream, Grant), CallError> {
    let rules = Arc::new(address_rules());
    // Text of a parsed host and port is a line by construction; an empty list would deny.
    let lines = EgressRules::parse(&[url.authority.to_string()]);
    let policy = EgressPolicy::new(lines.unwrap_or_else(|_bad| EgressRules::listed(Vec::new())));
    let grant = policy
        .decide(&url.authority, &rules)
        .map_err(CallError::Denied)?;
    let grant = match url.scheme {
        Scheme::Http => grant.cleartext(),
        Scheme::Https => grant,
    };
    let upstream = Upstream::new(upstream::Config {
        overrides: Vec::new(),
        roots: Arc::new(roots),
        rules,
        proxy: None,
        dns_timeout: STEP_TIMEOUT,
        connect_timeout: STEP_TIMEOUT,
        handshake_timeout: STEP_TIMEOUT,
    })?;
    Ok((upstream, grant))
}

/// Reads one answer whole.
pub(super) async fn read_answer(connection: &mut Connection) -> Result<(u16, Vec<u8>), CallError> {
    for _ in 0..=INTERIM_LIMIT {
        let block = connection.read_head(CALL_TIMEOUT, CALL_TIMEOUT).await?;
        let head = wire::parse_answer(block).map_err(CallError::BadAnswer)?;
        if head.status >= 200 {
            let framing = wire::answer_framing(&head, false).map_err(CallError::BadAnswer)?;
            let body = Body::new(framing).without_framing();
            return Ok((head.status, read_body(connection, body).await?));
        }
    }
    Err(CallError::BadAnswer(wire::Error::StartLine))
}

/// Reads one body whole, within the bound of a management call.
pub(super) async fn read_body(
    connection: &mut Connection,
    mut body: Body,
) -> Result<Vec<u8>, CallError> {
    let (mut whole, mut piece) = (Vec::new(), Vec::new());
    loop {
        let progress = body
            .step(&mut connection.input, &mut piece)
            .map_err(CallError::BadAnswer)?;
        whole.append(&mut piece);
        if whole.len() > ANSWER_LIMIT_BYTES {
            return Err(CallError::AnswerTooLarge);
        }
        match progress {
            Progress::Done => return Ok(whole),
            Progress::Full => {}
            Progress::Hungry => {
                if connection.read_some().await? == 0 {
                    body.close().map_err(|_rule| CallError::Closed)?;
                }
            }
        }
    }
}

fn address_rules() -> AddressRules {
    let ranges = OPEN_RANGES.iter().filter_map(|text| Cidr::parse(text).ok());
    AddressRules::new(ranges.collect(), true)
}

/// Gathers the public roots and those of the file.
pub(super) fn roots(ca: Option<&Path>) -> Result<RootCertStore, Exit> {
    let mut roots = RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    let Some(path) = ca else { return Ok(roots) };
    add_file(&mut roots, path).map_err(|why| {
        let path = path.display();
        Exit::usage(format!("error: --ca: {path} {why}"))
    })?;
    Ok(roots)
}

/// Adds the certificates of a file. The reader's own errors quote the file, which may be a key
/// that was named by mistake, so that they do not leave this function.
fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), String> {
    let content = std::fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    let bad = || "is not a PEM file of certificates".to_owned();
    let mut any = false;
    for certificate in CertificateDer::pem_slice_iter(&content) {
        let certificate = certificate.map_err(|_quotes| bad())?;
        roots.add(certificate).map_err(|_unusable| bad())?;
        any = true;
    }
    any.then_some(()).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const KEY: &str = "canary-0123456789";

    /// Answers one call with the given bytes and returns what was asked.
    async fn answer(bytes: &'static [u8]) -> (Target, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") && !asked.ends_with(b"{}") {
                assert_ne!(stream.read_buf(&mut asked).await.unwrap(), 0);
            }
            stream.write_all(bytes).await.unwrap();
            String::from_utf8(asked).unwrap()
        });
        (target(&url), server)
    }

    fn target(url: &str) -> Target {
        let api_key = Secret::new(KEY.as_bytes().to_vec());
        Target {
            url: PublicUrl::parse(url).unwrap(),
            api_key,
            ca: None,
        }
    }

    #[tokio::test]
    async fn every_framing_is_read() {
        for (bytes, status, body) in [
            (&b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"[..], 200, "ok"),
            (
                b"HTTP/1.1 201 C\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
                201,
                "ok",
            ),
            (b"HTTP/1.1 404 Not Found\r\n\r\nok", 404, "ok"),
            (b"HTTP/1.1 204 No Content\r\n\r\n", 204, ""),
            (
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                200,
                "",
            ),
        ] {
            let (target, _server) = answer(bytes).await;
            let answered = call(&target, "GET", "/v1/x", None).await.unwrap();
            assert_eq!(answered, (status, body.as_bytes().to_vec()));
        }
    }

    #[tokio::test]
    async fn the_key_travels_only_where_it_is_wanted() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let (target, server) = answer(bytes).await;
        call(&target, "POST", "/v1/sessions", Some(b"{}".to_vec()))
            .await
            .unwrap();
        let asked = server.await.unwrap();
        let host = target.url.authority.to_string();
        assert!(
            asked.starts_with("POST /v1/sessions HTTP/1.1\r\n"),
            "{asked}"
        );
        for line in [
            &format!("Host: {host}"),
            &format!("Authorization: Bearer {KEY}"),
            "Content-Length: 2",
            "Content-Type: application/json",
        ] {
            assert!(
                asked.contains(&format!("\r\n{line}\r\n")),
                "{line} in {asked}"
            );
        }
        let (target, server) = answer(bytes).await;
        ask(&target.url, None, "/healthz").await.unwrap();
        let asked = server.await.unwrap();
        assert!(
            !asked.contains(KEY) && !asked.contains("Authorization"),
            "{asked}"
        );
    }

    #[tokio::test]
    async fn bad_answers_are_told_apart_and_name_the_server() {
        for (bytes, part) in [
            (&b""[..], "closed before"),
            (b"HTTP/1.1 200 OK\r\n", "closed before"),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok",
                "closed before",
            ),
            (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", "not HTTP/1.1"),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
                "not HTTP/1.1",
            ),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
                "not HTTP/1.1",
            ),
        ] {
            let (target, _server) = answer(bytes).await;
            let exit = call(&target, "GET", "/v1/x", None).await.unwrap_err();
            let start = format!("error: {}: ", target.url);
            assert_eq!((exit.code, exit.to_stdout), (1, false), "{}", exit.text);
            assert!(
                exit.text.starts_with(&start) && exit.text.contains(part),
                "{}",
                exit.text
            );
            assert!(!exit.text.contains("canary"), "{}", exit.text);
        }
    }

    #[tokio::test]
    async fn an_answer_has_a_limit() {
        let head = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        let whole = [head, vec![b'x'; ANSWER_LIMIT_BYTES + 1]].concat();
        let (target, server) = answer(whole.leak()).await;
        let exit = call(&target, "GET", "/v1/x", None).await.unwrap_err();
        assert!(exit.text.contains("4 MiB"), "{}", exit.text);
        server.abort();
    }

    #[tokio::test]
    async fn what_cannot_be_called_is_told() {
        let free = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        for (url, part) in [
            (format!("http://{free}"), "nothing can be reached there"),
            ("http://169.254.169.254".to_owned(), "may not be called"),
            ("http://0.0.0.0:1".to_owned(), "may not be called"),
        ] {
            let exit = call(&target(&url), "GET", "/", None).await.unwrap_err();
            assert!(
                exit.text.starts_with(&format!("error: {url}: ")),
                "{}",
                exit.text
            );
            assert!(exit.text.contains(part), "{}", exit.text);
        }
    }

    #[test]
    fn a_bad_root_file_is_named_and_not_quoted() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        assert!(roots(None).unwrap().len() > 10);
        let missing = Path::new("/nothing/here.pem");
        let exit = roots(Some(missing)).unwrap_err();
        assert!(
            exit.text.contains("--ca: /nothing/here.pem cannot be read"),
            "{}",
            exit.text
        );
        for content in [
            "",
            "canary",
            "-----BEGIN canary",
            "-----BEGIN CERTIFICATE-----\nAAAA\n",
        ] {
            file.as_file_mut().set_len(0).unwrap();
            file.write_all(content.as_bytes()).unwrap();
            let exit = roots(Some(file.path())).unwrap_err();
            assert_eq!(exit.code, 64);
            assert!(exit.text.contains("is not a PEM file"), "{}", exit.text);
            assert!(
                exit.text.contains(&file.path().display().to_string()),
                "{}",
                exit.text
            );
            assert!(!exit.text.contains("canary"), "{}", exit.text);
        }
    }
}
