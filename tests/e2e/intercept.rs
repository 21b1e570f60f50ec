//! TLS with the workload: one name per tunnel, fixed at CONNECT, and a leaf for that name only.

use std::sync::Arc;

use oshu_vault_sdk::CreateSession;
use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::support::{GOOD, Origin, REAL, Scene, Vault, contains};

fn name(text: &str) -> ServerName<'static> {
    ServerName::try_from(text.to_owned()).expect("a server name")
}

#[tokio::test]
async fn case_28_another_server_name_ends_in_the_alert_that_says_so() {
    let scene = Scene::new().await;
    for asked in [
        "evil.example.net",
        "side.example.com",
        "xgood.example.com",
        "good.example.com.evil.example.net",
        "example.com",
        "127.0.0.1.example.com",
    ] {
        let tunnel = scene.workload.tunnel("good.example.com:443").await;
        let failed = scene
            .workload
            .handshake(tunnel.into_io(), name(asked), &[])
            .await;
        let error = failed.err().expect("a refused handshake").to_string();
        assert!(error.contains("UnrecognisedName"), "{asked}: {error}");
    }
    // The origin mints for the name it is asked for, and is verified: what answers here was asked
    // for the target's.
    scene.nothing_arrived("another SNI").await;
}

#[tokio::test]
async fn case_29_no_server_name_and_other_spellings_get_the_leaf_of_the_target() {
    let scene = Scene::new().await;
    for target in [
        "good.example.com:443",
        "GOOD.Example.COM:443",
        "good.example.com.:443",
    ] {
        for (asked, sni) in [
            ("good.example.com", true),
            ("GOOD.EXAMPLE.COM", true),
            ("good.example.com", false),
        ] {
            let tunnel = scene.workload.tunnel(target).await;
            let mut config = scene.workload.tls_config();
            config.enable_sni = sni;
            let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
            let stream = connector
                .connect(name(asked), tunnel.into_io())
                .await
                .expect("TLS");
            let (_, tls) = stream.get_ref();
            let chain = tls.peer_certificates().expect("a chain");
            let (_, leaf) = X509Certificate::from_der(&chain[0]).expect("a certificate");
            let names = leaf
                .subject_alternative_name()
                .expect("readable")
                .expect("names");
            assert_eq!(
                names.value.general_names,
                [GeneralName::DNSName(GOOD)],
                "{target} {asked}"
            );
            assert!(!leaf.is_ca());
        }
    }
    scene.nothing_arrived("handshakes alone").await;
}

/// Clients leave the last dot out (RFC 6066 §3), so it is put into the bytes of a hello.
#[tokio::test]
async fn case_29_a_dot_behind_the_server_name_changes_nothing() {
    let scene = Scene::new().await;
    for (asked, put, first) in [
        ("ggood.example.com", "good.example.com.", 0x16),
        ("ggood.example.com", "GOOD.EXAMPLE.COM.", 0x16),
        ("good.example.com", "GOOD.Example.Com", 0x16),
        ("good.example.com", "side.example.com", 0x15),
        ("ggood.example.com", "good.example.com\0", 0x15),
        ("ggood.example.com", "good.example.com:", 0x15),
        ("ggood.example.com", " good.example.com", 0x15),
    ] {
        let config = Arc::new(scene.workload.tls_config());
        let mut tls = ClientConnection::new(config, name(asked)).expect("a client");
        let mut hello = Vec::new();
        tls.write_tls(&mut hello).expect("a hello");
        let at = hello
            .windows(asked.len())
            .position(|window| window == asked.as_bytes());
        let at = at.expect("the name");
        hello[at..at + put.len()].copy_from_slice(put.as_bytes());
        let mut tunnel = scene.workload.tunnel("good.example.com:443").await;
        tunnel.send(&hello).await;
        assert_eq!(tunnel.take(1).await, [first], "{put:?}");
    }
    scene
        .nothing_arrived("other spellings of a server name")
        .await;
}

#[tokio::test]
async fn http_2_is_agreed_on_where_it_is_offered() {
    let scene = Scene::new().await;
    for (offered, agreed) in [
        (&["http/1.1"][..], Some("http/1.1")),
        (&["h2", "http/1.1"], Some("h2")),
        (&["http/1.1", "h2"], Some("h2")),
        (&["h2"], Some("h2")),
        (&[], None),
    ] {
        let tunnel = scene.workload.tunnel("good.example.com:443").await;
        let stream = scene
            .workload
            .handshake(tunnel.into_io(), name(GOOD), offered)
            .await;
        let stream = stream.unwrap_or_else(|error| panic!("{offered:?}: {error}"));
        let chosen = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        assert_eq!(chosen.as_deref(), agreed.map(str::as_bytes), "{offered:?}");
    }
    let tunnel = scene.workload.tunnel("good.example.com:443").await;
    let failed = scene
        .workload
        .handshake(tunnel.into_io(), name(GOOD), &["h3"])
        .await;
    assert!(failed.is_err(), "h3 is not spoken over TCP");
    scene.nothing_arrived("ALPN").await;
}

#[tokio::test]
async fn an_address_as_the_target_is_verified_as_an_address() {
    let origin = Origin::echo_ok().await;
    let vault = Vault::builder().start().await;
    let target = origin.addr().to_string();
    let request = CreateSession::new()
        .secret("EXAMPLE_KEY", REAL)
        .secret_hosts([target.as_str()])
        .allowed_egress([target.as_str()]);
    let session = vault.session(&request).await;
    let workload = vault.workload(&session);
    let mut conn = workload.connect(&target).await;
    let token = &session.sealed_secrets["EXAMPLE_KEY"];
    conn.send(format!(
        "GET / HTTP/1.1\r\nHost: {target}\r\nX-Key: {token}\r\n\r\n"
    ))
    .await;
    assert_eq!(conn.answer().await.status, 200);
    assert!(contains(&origin.bytes(), REAL));
    // Asking an address for a name is another authority.
    let tunnel = workload.tunnel(&target).await;
    assert!(
        workload
            .handshake(tunnel.into_io(), name(GOOD), &[])
            .await
            .is_err()
    );
}
