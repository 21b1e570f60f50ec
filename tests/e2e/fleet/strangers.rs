//! Who shows an id that no node knows: answered as ever, and without a flood of look-ups. Who stands
//! in the place of the store: not believed.

use std::sync::Arc;

use oshu_vault::store::{Address, Shared, SharedConfig, Store};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::{Fleet, get_with};
use crate::support::{Redis, Relay, TestCa, within};

#[tokio::test]
async fn case_59_unknown_expired_and_wrong_are_answered_alike_in_a_fleet() {
    let Some(fleet) = Fleet::new().await else {
        return;
    };
    let session = fleet.create().await;
    let gone = fleet.create().await;
    fleet.works(&fleet.b, &gone).await;
    fleet
        .a
        .vault
        .sdk()
        .delete_session(&gone.session_id)
        .await
        .unwrap();
    fleet.b.becomes(&gone, 407).await;
    let mut unknown = session.clone();
    unknown.session_id = format!("sess_{}", "0123456789abcdef".repeat(2));
    let mut wrong = session.clone();
    wrong.token = unknown.token.chars().rev().collect();
    let mut bodies = Vec::new();
    for stranger in [&unknown, &wrong, &gone] {
        let workload = fleet.b.vault.workload(stranger);
        let answer = workload.refused(super::TARGET).await;
        assert_eq!(answer.status, 407);
        assert!(answer.header("proxy-authenticate").is_some());
        bodies.push(answer.body);
    }
    assert!(bodies.windows(2).all(|pair| pair[0] == pair[1]));
    fleet.works(&fleet.b, &session).await;
}

#[tokio::test]
async fn an_unknown_id_is_looked_up_once_in_a_while_and_a_known_one_never() {
    let Some(fleet) =
        Fleet::with(|vault| vault.config(|config| config.limits.auth_failures = 100_000)).await
    else {
        return;
    };
    let session = fleet.create().await;
    fleet.works(&fleet.b, &session).await;
    let mut unknown = session.clone();
    unknown.session_id = format!("sess_{}", "0123456789abcdef".repeat(2));
    let begin = std::time::Instant::now();
    let asked = (0..200).map(|_| fleet.b.status(&unknown));
    let answers = within("all answers", futures_util::future::join_all(asked)).await;
    assert!(answers.iter().all(|status| *status == 407));
    let asked = fleet.b.relay.mentions(&unknown.session_id);
    // Twice a look-up: the row and its last use. Once a second at most.
    let most = 2 * (usize::try_from(begin.elapsed().as_secs()).unwrap() + 1);
    assert!((2..=most).contains(&asked), "{asked} of {most}");
    let mut conn = fleet
        .b
        .vault
        .workload(&session)
        .connect(super::TARGET)
        .await;
    for _ in 0..50 {
        conn.send(get_with(&session)).await;
        assert_eq!(conn.answer().await.status, 200);
    }
    // It was looked for once, read again when its creation was heard of, and perhaps with everything:
    // for the session, and not for its fifty requests.
    let asked = fleet.b.relay.mentions(&session.session_id);
    assert!(asked <= 8, "what is known asks nobody: {asked}");
}

#[tokio::test]
async fn a_store_over_tls_is_verified_as_upstreams_are() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let ca = TestCa::shared();
    let relay = Relay::secure(&redis, &ca).await;
    let open = async |roots: RootCertStore, url: &str| {
        let config = SharedConfig {
            address: Address::parse(url).unwrap(),
            prefix: "oshu-vault".to_owned(),
            roots: Arc::new(roots),
        };
        within("an end", Shared::open(config)).await
    };
    let mut roots = RootCertStore::empty();
    let own = CertificateDer::from_pem_slice(ca.pem().as_bytes()).unwrap();
    roots.add(own).unwrap();
    let store = open(roots.clone(), &relay.url()).await.unwrap();
    assert_eq!(store.load().await.unwrap().rows, []);
    // A certificate that is trusted, for another name.
    let elsewhere = Relay::named_otherwise(&redis, &ca).await;
    open(roots.clone(), &elsewhere.url()).await.unwrap_err();
    let mut others = RootCertStore::empty();
    let other = TestCa::generate();
    let other = CertificateDer::from_pem_slice(other.pem().as_bytes()).unwrap();
    others.add(other).unwrap();
    open(others, &relay.url()).await.unwrap_err();
    // In clear to a port that speaks TLS: no answer is taken for one.
    open(roots, &relay.url().replace("rediss", "redis"))
        .await
        .unwrap_err();
}
