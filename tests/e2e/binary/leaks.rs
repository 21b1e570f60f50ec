//! What the program prints and writes while secrets pass through it, failures included.
//!
//! The log runs at its most talkative level. Everything that the process says or keeps is searched
//! for the real value, in the forms it could have taken, and for both kinds of credential.

use data_encoding::HEXLOWER;
use oshu_vault_sdk::{Client, CreateSession};
use rustix::process::Signal;

use super::{CANARY, Home, get};
use crate::support::clients::{expect_not_under, reveals};
use crate::support::{Origin, TestCa, Workload};

const GOOD: &str = "good.example.com";
const UNTRUSTED: &str = "untrusted.example.com";
const BROKEN: &str = "broken.example.com";

#[tokio::test]
async fn nothing_that_is_printed_or_kept_has_a_real_value() {
    let good = Origin::echo_ok().await;
    let untrusted = Origin::builder().ca(&TestCa::generate()).echo_ok().await;
    let broken = Origin::answer("NONSENSE\r\n\r\n").await;
    let home = Home::new();
    let roots = home.write("origin.pem", TestCa::shared().pem());
    let resolve = |host: &str, origin: &Origin| format!("--resolve={host}={}", origin.addr());
    let line = [
        "serve".to_owned(),
        "--dev".to_owned(),
        "--listen=127.0.0.1:0".to_owned(),
        "--tls-listen=127.0.0.1:0".to_owned(),
        "--admin-listen=127.0.0.1:0".to_owned(),
        format!("--upstream-ca={roots}"),
        resolve(GOOD, &good),
        resolve(UNTRUSTED, &untrusted),
        resolve(BROKEN, &broken),
    ];
    let line: Vec<&str> = line.iter().map(String::as_str).collect();
    let server = home.serve(&line, &[("OSHU_VAULT_LOG", "trace")]).await;
    let key = server.api_key();
    let sdk = Client::builder(server.url(), key.as_str())
        .build()
        .expect("a client");
    let request = CreateSession::new()
        .secret("EXAMPLE_KEY", CANARY)
        .secret_hosts([GOOD, UNTRUSTED, BROKEN])
        .inject(["header", "query", "path"]);
    let session = sdk.create_session(&request).await.expect("a session");
    let token = &session.sealed_secrets["EXAMPLE_KEY"];
    let ca = get(server.plain(), "/v1/ca.pem").await.text().to_owned();
    let addresses = (Some(server.plain()), None);
    let workload = Workload::at(addresses, &ca, &session.session_id, &session.token);

    let bearer = format!("Bearer {token}");
    for (host, status) in [(GOOD, 200), (UNTRUSTED, 502), (BROKEN, 502)] {
        let url = format!("https://{host}/{token}?key={token}");
        let fields = [
            ("X-Api-Key", token.as_str()),
            ("Authorization", bearer.as_str()),
        ];
        let answer = workload.get(&url, &fields).await;
        assert_eq!(answer.status, status, "{host}");
        // What our own answers say is no place for it either; the good host was not asked to echo.
        assert!(!reveals(&answer.raw, CANARY), "{host}");
    }
    assert!(reveals(&good.bytes(), CANARY), "the value does travel");
    let malformed = format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\nX-Api-Key : {token}\r\n\r\n");
    let mut conn = workload.connect(&format!("{GOOD}:443")).await;
    conn.send(malformed).await;
    assert_eq!(conn.answer().await.status, 400);
    let shown = sdk
        .get_session(&session.session_id)
        .await
        .expect("the session");
    assert!(!reveals(format!("{shown:?}").as_bytes(), CANARY));
    let bad = CreateSession::new().secret("OTHER_KEY", format!("{CANARY}\n"));
    let refused = sdk.create_session(&bad).await.expect_err("a line end");
    assert!(!reveals(
        format!("{refused:?} {refused}").as_bytes(),
        CANARY
    ));

    expect_not_under(&home.path(".local"), CANARY);
    expect_not_under(&home.path(".local"), &session.token);
    let (code, events, log) = server.end(Signal::TERM).await;
    assert_eq!(code, Some(0));
    assert!(
        log.contains("\"TRACE\"") || log.contains("\"DEBUG\""),
        "the log talks"
    );
    let records = events
        .iter()
        .filter(|event| event["event"] == "exchange")
        .count();
    assert_eq!(records, 4, "one record each: {events:?}");
    let said = [log, serde_json::to_string(&events).expect("JSON")].concat();
    let hex = HEXLOWER.encode(CANARY.as_bytes());
    for secret in [CANARY, &session.token, &key, &hex] {
        assert!(!reveals(said.as_bytes(), secret), "a secret was printed");
    }
}
