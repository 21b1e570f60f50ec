//! Where the server listens, and with which certificate.

use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::{Home, get};
use crate::support::{Conn, within};

#[tokio::test]
async fn listeners_can_be_turned_off() {
    for (off, left) in [
        ("--listen=none", "tls_listen"),
        ("--tls-listen=none", "listen"),
    ] {
        let home = Home::new();
        let other = match left {
            "listen" => "--listen=127.0.0.1:0",
            _ => "--tls-listen=127.0.0.1:0",
        };
        let server = home
            .serve(&["serve", "--dev", off, other, "--admin-listen=none"], &[])
            .await;
        for name in ["listen", "tls_listen", "admin_listen"] {
            assert_eq!(
                server.ready[name].is_string(),
                name == left,
                "{}",
                server.ready
            );
        }
        server.stop().await;
    }
    let home = Home::new();
    let line = ["serve", "--dev", "--listen=none", "--tls-listen=none"];
    home.run(&line).await.complains(64, &["proxy.listen"]);
}

#[tokio::test]
async fn the_admin_listener_has_no_management() {
    let home = Home::new();
    let server = home.serve_dev(&[]).await;
    let admin = server.address("admin_listen");
    assert_eq!(get(admin, "/healthz").await.status, 200);
    assert_eq!(get(admin, "/v1/sessions").await.status, 404);
    server.stop().await;
}

#[tokio::test]
async fn a_taken_address_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let home = Home::new();
    for (flag, key) in [
        ("--listen", "proxy.listen"),
        ("--tls-listen", "proxy.tls_listen"),
        ("--admin-listen", "admin.listen"),
    ] {
        let mut line = vec!["serve".to_owned(), "--dev".to_owned()];
        for other in ["--listen", "--tls-listen", "--admin-listen"] {
            let port = if other == flag { address.port() } else { 0 };
            line.push(format!("{other}=127.0.0.1:{port}"));
        }
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        let ended = home.run(&line).await.expect(1);
        for part in [key, &address.to_string()] {
            assert!(ended.stderr.contains(part), "{part} in {}", ended.stderr);
        }
    }
}

#[tokio::test]
async fn dev_stays_on_loopback() {
    for (flag, key) in [
        ("--listen", "proxy.listen"),
        ("--tls-listen", "proxy.tls_listen"),
        ("--admin-listen", "admin.listen"),
    ] {
        for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
            let line = ["serve", "--dev", flag, address];
            let ended = Home::new().run(&line).await;
            ended.complains(64, &[key, "loopback address with --dev", flag]);
        }
    }
}

#[tokio::test]
async fn new_certificate_files_are_taken_and_broken_ones_are_not() {
    let home = Home::new();
    home.run(&["ca", "generate"]).await.expect(0);
    home.run(&["seal", "generate"]).await.expect(0);
    let authority = Authority::new();
    let pairs = [authority.pair(), authority.pair(), authority.pair()];
    let put = |name: &str, content: &str| home.write(name, content);
    let (cert, key) = (put("tls.crt", &pairs[0].0), put("tls.key", &pairs[0].1));
    let line = [
        "serve",
        "--listen=none",
        "--admin-listen=none",
        "--tls-listen=127.0.0.1:0",
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
    ];
    let server = home
        .serve(&line, &[("SECRETS_PROXY_API_KEY", super::CANARY)])
        .await;
    let address = server.address("tls_listen");
    let (first, answer) = authority.ask(address).await;
    assert_eq!(answer, 200);

    put(
        "tls.key",
        "-----BEGIN PRIVATE KEY-----\ncanary-0123456789abcdef\n",
    );
    within("the complaint", async {
        while !server.log.text().contains("the old stays") {
            assert_eq!(authority.ask(address).await, (first.clone(), 200));
        }
    })
    .await;
    assert_eq!(authority.ask(address).await, (first.clone(), 200));

    put("tls.crt", &pairs[1].0);
    put("tls.key", &pairs[1].1);
    let second = within("the new certificate", async {
        loop {
            let (served, answer) = authority.ask(address).await;
            assert_eq!(answer, 200);
            if served != first {
                return served;
            }
        }
    })
    .await;
    let known = |pem: &str, der: &[u8]| pem.replace(['\n', '\r'], "").contains(&base64(der));
    assert!(known(&pairs[0].0, &first) && known(&pairs[1].0, &second));

    // Links are switched by those who renew certificates in one step.
    std::fs::remove_file(&cert).unwrap();
    std::os::unix::fs::symlink(put("third.crt", &pairs[2].0), &cert).unwrap();
    std::fs::remove_file(&key).unwrap();
    std::os::unix::fs::symlink(put("third.key", &pairs[2].1), &key).unwrap();
    within("the third certificate", async {
        while !known(&pairs[2].0, &authority.ask(address).await.0) {}
    })
    .await;
    assert!(
        !server.log.text().contains("canary"),
        "{}",
        server.log.text()
    );
    server.stop().await;
}

#[tokio::test]
async fn dev_serves_a_certificate_of_its_own_authority_without_a_name_too() {
    let home = Home::new();
    let server = home.serve_dev(&[]).await;
    let ca = get(server.plain(), "/v1/ca.pem").await;
    assert_eq!(
        ca.header("content-type").unwrap().split(';').next(),
        Some("application/x-pem-file")
    );
    let url = format!("https://{}", server.address("tls_listen"));
    let file = home.state("ca.pem").display().to_string();
    home.run(&["healthcheck", "--server", &url, "--ca", &file])
        .await
        .expect(0);
    home.run(&["healthcheck", "--server", &url])
        .await
        .complains(1, &[&url, "does not verify", "--ca"]);
    assert_eq!(
        server.ready["tls_listen"],
        Value::String(url.replace("https://", ""))
    );
    server.stop().await;
}

fn base64(bytes: &[u8]) -> String {
    use ::base64::Engine;
    ::base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Somebody else's authority, which issues the listener's certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    client: TlsConnector,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "listener test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let mut roots = RootCertStore::empty();
        roots
            .add(params.self_signed(&key).unwrap().der().clone())
            .unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // A resumed handshake would show no certificate.
        config.resumption = rustls::client::Resumption::disabled();
        let client = TlsConnector::from(Arc::new(config));
        Self {
            issuer: Issuer::new(params, key),
            client,
        }
    }

    /// Issues a certificate for loopback; returns it and its key as PEM.
    fn pair(&self) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        (cert.pem(), key.serialize_pem())
    }

    /// Asks a listener for its health; returns the certificate it showed and the status.
    async fn ask(&self, address: SocketAddr) -> (Vec<u8>, u16) {
        let tcp = within("a connection", TcpStream::connect(address))
            .await
            .unwrap();
        let name = ServerName::from(address.ip());
        let stream = within("a handshake", self.client.connect(name, tcp))
            .await
            .unwrap();
        let session = stream.get_ref().1;
        assert_eq!(session.alpn_protocol(), Some(&b"http/1.1"[..]));
        let served = session.peer_certificates().unwrap()[0].to_vec();
        let mut conn = Conn::new(stream);
        conn.send(format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\n\r\n"))
            .await;
        (served, conn.answer().await.status)
    }
}
