//! `ca rotate` with the real program: beside a running server, and without one.

use std::time::{Duration, SystemTime};

use oshu_vault::authority::written;

use super::{Home, Server, get};
use crate::support::within;

/// Waits until the server publishes something.
async fn publishes(server: &Server, path: &str, met: impl Fn(&str) -> bool) -> String {
    within("what is published", async {
        loop {
            let answer = get(server.plain(), path).await;
            if met(answer.text()) {
                return answer.text().to_owned();
            }
        }
    })
    .await
}

/// Writes the time that is so many days away.
fn days(count: u64) -> String {
    let ahead = Duration::from_hours(count * 24);
    written(SystemTime::now() + ahead).expect("a time")
}

/// Returns a certificate of a PEM text, by its place from the end.
fn last(pem: &str, place: usize) -> &str {
    let starts: Vec<usize> = pem
        .match_indices("-----BEGIN CERTIFICATE-----")
        .map(|(at, _)| at)
        .collect();
    let from = starts[starts.len() - 1 - place];
    let to = starts.get(starts.len() - place).copied();
    &pem[from..to.unwrap_or(pem.len())]
}

#[tokio::test]
async fn a_running_server_takes_up_the_root_that_follows() {
    let home = Home::new();
    let server = home.serve_dev(&[]).await;
    let first = get(server.plain(), "/v1/ca.pem").await.text().to_owned();
    let at = days(30);
    let at = at.as_str();
    let planned = home
        .run(&["ca", "rotate", "--at", at])
        .await
        .expect(0)
        .stdout;
    assert!(planned.contains(&format!("signs from: {at}")), "{planned}");
    assert_eq!(planned.matches("sha-256:").count(), 2, "{planned}");
    assert_eq!(home.run(&["ca", "show"]).await.expect(0).stdout, planned);
    let known = |bundle: &str| last(bundle, 1) == first;
    let bundle = publishes(&server, "/v1/bundle.pem", known).await;
    let taken_back = last(&bundle, 0).to_owned();
    assert_ne!(taken_back, first);
    assert_eq!(get(server.plain(), "/v1/ca.pem").await.text(), first);
    assert_eq!(home.run(&["ca", "export"]).await.expect(0).stdout, first);
    home.run(&["ca", "rotate", "--at", &days(60)])
        .await
        .complains(1, &["planned already", at, "--cancel"]);
    home.run(&["ca", "rotate", "--at", "2020-01-02T03:04:05Z"])
        .await
        .complains(64, &["in the past", "--at now"]);
    home.run(&["ca", "rotate", "--at", &days(400)])
        .await
        .complains(1, &["planned already"]);
    let cancelled = home.run(&["ca", "rotate", "--cancel"]).await.expect(0);
    assert!(
        cancelled.stdout.contains("taken back"),
        "{}",
        cancelled.stdout
    );
    publishes(&server, "/v1/bundle.pem", |bundle| last(bundle, 0) == first).await;
    home.run(&["ca", "rotate", "--at", &days(400)])
        .await
        .complains(1, &["366 days"]);

    let turned = home
        .run(&["ca", "rotate", "--at", "now"])
        .await
        .expect(0)
        .stdout;
    assert!(turned.contains("The root before"), "{turned}");
    let second = publishes(&server, "/v1/ca.pem", |pem| pem != first).await;
    assert_ne!(second, taken_back);
    assert_eq!(home.run(&["ca", "export"]).await.expect(0).stdout, second);
    let bundle = get(server.plain(), "/v1/bundle.pem")
        .await
        .text()
        .to_owned();
    assert_eq!(
        [last(&bundle, 1), last(&bundle, 0)],
        [second.as_str(), first.as_str()]
    );
    server.stop().await;
    let server = home.serve_dev(&[]).await;
    assert_eq!(get(server.plain(), "/v1/ca.pem").await.text(), second);
    let bundle = get(server.plain(), "/v1/bundle.pem")
        .await
        .text()
        .to_owned();
    assert_eq!(
        [last(&bundle, 1), last(&bundle, 0)],
        [second.as_str(), first.as_str()]
    );
    server.stop().await;
}

#[tokio::test]
async fn a_root_is_rotated_without_a_server_too() {
    let home = Home::new();
    home.run(&["ca", "rotate", "--at", "now"])
        .await
        .complains(1, &["no certificate authority", "ca generate"]);
    home.run(&["ca", "generate"]).await.expect(0);
    let first = home.run(&["ca", "export"]).await.expect(0).stdout;
    home.run(&["ca", "rotate", "--at", &days(30)])
        .await
        .expect(0);
    assert_eq!(super::mode_of(&home.state("ca.next")), 0o600);
    let server = home.serve_dev(&[]).await;
    let bundle = get(server.plain(), "/v1/bundle.pem")
        .await
        .text()
        .to_owned();
    assert_eq!(last(&bundle, 1), first);
    assert_eq!(get(server.plain(), "/v1/ca.pem").await.text(), first);
    server.stop().await;
}

#[tokio::test]
async fn a_plan_that_cannot_be_read_keeps_no_server_from_starting() {
    let home = Home::new();
    home.run(&["ca", "generate"]).await.expect(0);
    let first = home.run(&["ca", "export"]).await.expect(0).stdout;
    let planned = home.run(&["ca", "rotate", "--at", &days(30)]).await;
    planned.expect(0);
    super::mode(&home.state("ca.next"), 0o644);
    let server = home.serve_dev(&[]).await;
    assert_eq!(get(server.plain(), "/v1/ca.pem").await.text(), first);
    let told = |log: &str| log.contains("cannot be taken up");
    server.log.wait("the plan", told).await;
    super::mode(&home.state("ca.next"), 0o600);
    let known = |bundle: &str| last(bundle, 1) == first;
    publishes(&server, "/v1/bundle.pem", known).await;
    server.stop().await;
}
