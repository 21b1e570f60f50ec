//! The harness itself: every part of it works, so that a failure elsewhere is the vault's.

use oshu_vault_sdk::CreateSession;

use crate::support::{Origin, TestCa, Vault, contains};

#[tokio::test]
async fn a_secret_reaches_the_origin_and_nobody_else() {
    let origin = Origin::echo_ok().await;
    let vault = Vault::builder()
        .resolve("api.example.com", origin.addr())
        .start()
        .await;
    let request = CreateSession::new()
        .secret("EXAMPLE_KEY", "real-value-0123456789")
        .secret_hosts(["api.example.com"])
        .allowed_egress(["api.example.com"]);
    let session = vault.session(&request).await;
    let token = &session.sealed_secrets["EXAMPLE_KEY"];
    let workload = vault.workload(&session);
    let answer = workload
        .get("https://api.example.com/a?b=c", &[("X-Api-Key", token)])
        .await;
    assert_eq!((answer.status, answer.text()), (200, "ok"));
    let expected = "GET /a?b=c HTTP/1.1\r\nHost: api.example.com\r\n\
                    X-Api-Key: real-value-0123456789\r\n\r\n";
    assert_eq!(origin.received(), [expected.as_bytes()]);

    let mut conn = workload.connect_secure("api.example.com:443").await;
    conn.send("GET /tls HTTP/1.1\r\nHost: api.example.com\r\n\r\n")
        .await;
    assert_eq!(conn.answer().await.status, 200);
    assert_eq!(
        origin.connections(),
        1,
        "the session's connection is used again"
    );

    let lines = vault.audit_log().wait("an exchange", |lines| {
        lines
            .iter()
            .filter(|line| line["event"] == "exchange")
            .count()
            == 2
    });
    assert_eq!(lines.await[1]["path"], "/a");
    assert!(!contains(&vault.audit_log().raw(), "real-value"));
}

#[tokio::test]
async fn an_origin_under_a_ca_that_the_operator_adds_is_trusted() {
    let ca = TestCa::generate();
    let origin = Origin::builder().ca(&ca).echo_ok().await;
    let builder = Vault::builder().trust(&ca);
    let vault = builder
        .resolve("api.example.com", origin.addr())
        .start()
        .await;
    let session = vault.session(&CreateSession::new()).await;
    let answer = vault
        .workload(&session)
        .get("https://api.example.com/", &[])
        .await;
    assert_eq!(answer.status, 200);
    assert_eq!(vault.audit()[0]["action"], "created");
}

#[tokio::test]
async fn peer_74_an_origin_that_is_not_trusted_gets_nothing() {
    let origin = Origin::builder().ca(&TestCa::generate()).echo_ok().await;
    let vault = Vault::builder()
        .resolve("api.example.com", origin.addr())
        .start()
        .await;
    let session = vault.session(&CreateSession::new()).await;
    let answer = vault
        .workload(&session)
        .get("https://api.example.com/", &[])
        .await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (502, "tls_certificate_error")
    );
    origin.expect_nothing("an unknown CA");
}
