//! TLS with the workload: one name per tunnel, fixed at CONNECT, and a leaf for that name only.

use oshu_vault_sdk::CreateSession;
use rustls::pki_types::ServerName;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::support::{GOOD, Origin, REAL, Scene, Vault, contains};

fn name(text: &str) -> ServerName<'static> {
    ServerName::try_from(text.to_owned()).expect("a server name")
}

#[tokio::test]
async fn another_server_name_ends_in_the_alert_that_says_so() {
    let scene = Scene::new().await;
    for asked in [
        "evil.example.net",
        "side.example.com",
        "xgood.example.com",
        "example.com",
    ] {
        let tunnel = scene.workload.tunnel("good.example.com:443").await;
        let failed = scene
            .workload
            .handshake(tunnel.into_io(), name(asked), &[])
            .await;
        let error = failed.err().expect("a refused handshake").to_string();
        assert!(error.contains("UnrecognisedName"), "{asked}: {error}");
    }
    scene.nothing_arrived("another SNI").await;
}

#[tokio::test]
async fn no_server_name_and_other_spellings_get_the_leaf_of_the_target() {
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
            let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
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

#[tokio::test]
async fn the_target_s_name_is_what_the_upstream_is_asked_for_and_verified_by() {
    for (case, change) in [
        (
            "another name",
            (|p| {
                p.subject_alt_names =
                    vec![rcgen::SanType::DnsName("other.example".try_into().unwrap())];
            }) as fn(&mut rcgen::CertificateParams),
        ),
        ("no name", |p| p.subject_alt_names.clear()),
        ("the common name alone", |p| {
            p.subject_alt_names.clear();
            p.distinguished_name.push(rcgen::DnType::CommonName, GOOD);
        }),
        ("expired", |p| {
            p.not_after = rcgen::date_time_ymd(2020, 1, 1);
        }),
        ("not valid yet", |p| {
            p.not_before = rcgen::date_time_ymd(2900, 1, 1);
        }),
        ("for clients only", |p| {
            p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        }),
        ("a wildcard for everything", |p| {
            p.subject_alt_names = vec![rcgen::SanType::DnsName("*".try_into().unwrap())];
        }),
        ("a wildcard for the top", |p| {
            p.subject_alt_names = vec![rcgen::SanType::DnsName("*.com".try_into().unwrap())];
        }),
        ("part of a label", |p| {
            p.subject_alt_names = vec![rcgen::SanType::DnsName(
                "g*d.example.com".try_into().unwrap(),
            )];
        }),
    ] {
        let origin = Origin::builder().certificate(change).echo_ok().await;
        let scene = Scene::around(origin).await;
        let head = scene.fill("GET / HTTP/1.1\r\nHost: good.example.com\r\nX-Key: {T}\r\n\r\n");
        let answer = scene.ask(GOOD, head).await;
        assert_eq!(answer.status, 502, "{case}");
        assert_eq!(answer.code(), "tls_certificate_error", "{case}");
        assert!(
            !contains(&answer.raw, REAL) && !contains(&answer.raw, scene.token()),
            "{case}"
        );
        scene.good.expect_nothing(case);
    }
    let wild = Origin::builder()
        .certificate(|p| {
            p.subject_alt_names =
                vec![rcgen::SanType::DnsName("*.example.com".try_into().unwrap())];
        })
        .echo_ok()
        .await;
    Scene::around(wild)
        .await
        .alive("a wildcard of one label")
        .await;
}
