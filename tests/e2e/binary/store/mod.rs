//! State that lasts, with the real program and its file: kills, damage, keys, a full disk, and what
//! a session had before a restart.

mod audit;
mod damage;
mod endings;
mod full;
pub(super) mod handover;
mod keys;
mod kills;
mod restarts;
mod shared;
mod tenants;

use std::path::PathBuf;

use oshu_vault_sdk::{Client, CreateSession, CreatedSession};
use rustix::process::Signal;

use super::{Ended, Home, Server, dial, get};
use crate::support::{Origin, TestCa, Workload, contains, within};

/// What every session of these tests may reach.
const HOST: &str = "api.example.com";
const TARGET: &str = "api.example.com:443";

/// A home with an origin, in which servers come and go.
struct Place {
    home: Home,
    origin: Origin,
    line: Vec<String>,
}

/// A session with what its workload knows and sends.
#[derive(Clone)]
struct Made {
    session: CreatedSession,
    value: String,
}

impl Made {
    fn id(&self) -> &str {
        &self.session.session_id
    }
}

impl Place {
    async fn new() -> Self {
        Self::with(Origin::echo_ok().await)
    }

    fn with(origin: Origin) -> Self {
        let home = Home::new();
        let roots = home.write("origin.pem", TestCa::shared().pem());
        let line = [
            "serve".to_owned(),
            "--dev".to_owned(),
            "--listen=127.0.0.1:0".to_owned(),
            "--tls-listen=none".to_owned(),
            "--admin-listen=none".to_owned(),
            format!("--upstream-ca={roots}"),
            format!("--resolve={HOST}={}", origin.addr()),
        ];
        Self {
            home,
            origin,
            line: line.into(),
        }
    }

    fn line(&self) -> Vec<&str> {
        self.line.iter().map(String::as_str).collect()
    }

    /// Starts a server that takes over from the one that runs.
    async fn successor(&self) -> Server {
        self.successor_with(&[]).await
    }

    async fn successor_with(&self, variables: &[(&str, &str)]) -> Server {
        let line = [&self.line()[..], &["--take-over"]].concat();
        self.home.serve(&line, variables).await
    }

    async fn serve(&self) -> Server {
        self.home.serve(&self.line(), &[]).await
    }

    /// Runs a server that must not come up.
    async fn refused(&self) -> Ended {
        self.home.run(&self.line()).await
    }

    fn store(&self) -> PathBuf {
        self.home.state("sessions.redb")
    }

    fn client(&self, server: &Server) -> Client {
        let key = std::fs::read_to_string(self.home.state("api.key")).expect("a key");
        let client = Client::builder(server.url(), key.trim_end()).build();
        client.expect("a client")
    }

    async fn create(&self, server: &Server) -> Made {
        create(&self.client(server)).await.expect("a session")
    }

    async fn workload(&self, server: &Server, made: &Made) -> Workload {
        let ca = get(server.plain(), "/v1/ca.pem").await.text().to_owned();
        let addresses = (Some(server.plain()), None);
        Workload::at(addresses, &ca, made.id(), &made.session.token)
    }

    /// Sends a request with the sealed token, and checks that the origin got the value.
    async fn works(&self, server: &Server, made: &Made) {
        let workload = self.workload(server, made).await;
        let sealed = &made.session.sealed_secrets["EXAMPLE_KEY"];
        let answer = workload
            .get(&format!("https://{HOST}/"), &[("X-Api-Key", sealed)])
            .await;
        assert_eq!(answer.status, 200, "{}", made.id());
        let got = self.origin.bytes();
        assert!(contains(&got, &made.value), "{} was swapped", made.id());
    }

    /// Checks that nobody knows the session.
    async fn is_gone(&self, server: &Server, made: &Made) {
        let workload = self.workload(server, made).await;
        assert_eq!(workload.refused(TARGET).await.status, 407, "{}", made.id());
    }

    /// Waits until the readiness of a server has a status.
    async fn becomes(&self, server: &Server, status: u16) {
        // Over one connection: how many there may be is limited.
        let mut conn = dial(server.plain()).await;
        within("the readiness", async {
            loop {
                let address = server.plain();
                conn.send(format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\n\r\n"))
                    .await;
                if conn.answer().await.status == status {
                    return;
                }
            }
        })
        .await;
    }

    /// Waits until the log has what a server found in its store, which it says before it is ready,
    /// and returns the log. The rows that it refused are named before that.
    async fn found(&self, server: &Server) -> String {
        let whole = |log: &str| {
            let from = log.find("sessions of the store");
            from.is_some_and(|from| log[from..].contains('\n'))
        };
        server.log.wait("what was found in the store", whole).await
    }
}

/// Creates a session whose secret is its own.
async fn create(client: &Client) -> Result<Made, oshu_vault_sdk::Error> {
    create_with(client, |request| request).await
}

async fn create_with(
    client: &Client,
    change: impl FnOnce(CreateSession) -> CreateSession,
) -> Result<Made, oshu_vault_sdk::Error> {
    let mut bytes = [0; 12];
    oshu_vault::id::fill_random(&mut bytes);
    let value = format!("real-value-{}", data_encoding::HEXLOWER.encode(&bytes));
    let request = CreateSession::new()
        .secret("EXAMPLE_KEY", value.as_str())
        .secret_hosts([HOST])
        .allowed_egress([HOST]);
    let session = client.create_session(&change(request)).await?;
    Ok(Made { session, value })
}

/// Kills a server as a failing machine would, and waits until it is gone. Returns its log.
async fn kill(server: Server) -> String {
    let (code, _events, log) = server.end(Signal::KILL).await;
    assert_eq!(code, None, "{log}");
    log
}
