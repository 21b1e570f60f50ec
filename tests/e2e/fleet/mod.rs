//! Several nodes on one store: what one does holds on the others, and what a store that is slow, gone
//! or forged can do.
//!
//! Each test has a server of its own, and each node a relay to it that can be shut or silenced. How
//! fast a change reaches another node is measured where figures are printed; elsewhere it has to
//! arrive.

mod failover;
mod figures;
mod outages;
mod sharing;
mod strangers;
mod tampering;
mod tenants;
mod told;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use oshu_vault::seal::Keyring;
use oshu_vault::store::{Address, Shared, SharedConfig};
use oshu_vault_sdk::{CreateSession, CreatedSession};
use rustls::RootCertStore;
use tempfile::TempDir;

use crate::support::{
    Answer, GOOD, Origin, REAL, Redis, Relay, SIDE, Scene, Vault, VaultBuilder, contains, within,
};

const TARGET: &str = "good.example.com:443";
const NAME: &str = "EXAMPLE_KEY";
const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
/// Longer than any test takes: nothing is stale but where a test is about that.
const NEVER: Duration = Duration::from_hours(1);

/// One node, and its way to the store.
struct Node {
    vault: Vault,
    relay: Relay,
}

/// Two nodes on one store, and what they share.
struct Fleet {
    redis: Redis,
    good: Origin,
    side: Origin,
    a: Node,
    b: Node,
    ca: TempDir,
}

impl Fleet {
    /// Sets up two nodes; nothing where no server is installed and that may be.
    async fn new() -> Option<Self> {
        Self::with(|vault| vault).await
    }

    async fn with(change: impl Fn(VaultBuilder) -> VaultBuilder) -> Option<Self> {
        Self::around(Origin::echo_ok().await, change).await
    }

    async fn around(good: Origin, change: impl Fn(VaultBuilder) -> VaultBuilder) -> Option<Self> {
        let redis = Redis::start().await?;
        let (side, ca) = (
            Origin::echo_ok().await,
            tempfile::tempdir().expect("a folder"),
        );
        let a = node(&redis, (&good, &side), ca.path(), &change).await;
        let b = node(&redis, (&good, &side), ca.path(), &change).await;
        Some(Self {
            redis,
            good,
            side,
            a,
            b,
            ca,
        })
    }

    /// Creates a session on the first node.
    async fn create(&self) -> CreatedSession {
        self.a.vault.session(&Scene::request()).await
    }

    /// Sends a request with the sealed token through a node.
    async fn get(&self, node: &Node, session: &CreatedSession) -> Answer {
        let workload = node.vault.workload(session);
        let mut conn = workload.connect(TARGET).await;
        conn.send(get_with(session)).await;
        conn.answer().await
    }

    /// Checks that a session works on a node, the secret included.
    async fn works(&self, node: &Node, session: &CreatedSession) {
        self.good.forget();
        let answer = self.get(node, session).await;
        assert_eq!(answer.status, 200, "{}", answer.head);
        assert!(contains(&self.good.bytes(), REAL));
    }
}

/// Asks for a session's secret to be put into a request.
fn get_with(session: &CreatedSession) -> String {
    let token = &session.sealed_secrets[NAME];
    format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\nX-Key: {token}\r\n\r\n")
}

impl Node {
    /// Returns what a CONNECT of the session is answered with.
    async fn status(&self, session: &CreatedSession) -> u16 {
        let workload = self.vault.workload(session);
        let mut conn = workload.plain().await;
        workload.ask(&mut conn, TARGET).await.status
    }

    /// Waits until a CONNECT of the session has this answer.
    async fn becomes(&self, session: &CreatedSession, status: u16) {
        within(&format!("a {status}"), async {
            while self.status(session).await != status {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    /// Returns the status of the readiness.
    async fn ready(&self) -> u16 {
        crate::binary::get(self.vault.plain_addr(), "/readyz")
            .await
            .status
    }

    /// Waits until the readiness has this status.
    async fn becomes_ready(&self, status: u16) {
        within(&format!("readiness {status}"), async {
            while self.ready().await != status {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
}

/// Connects to the store as a node does.
async fn open(url: &str) -> Shared {
    let config = SharedConfig {
        address: Address::parse(url).expect("a URL"),
        prefix: "oshu-vault".to_owned(),
        roots: Arc::new(RootCertStore::empty()),
    };
    Shared::open(config).await.expect("the store")
}

/// Starts a node.
async fn node(
    redis: &Redis,
    (good, side): (&Origin, &Origin),
    ca: &Path,
    change: &impl Fn(VaultBuilder) -> VaultBuilder,
) -> Node {
    let relay = Relay::to(redis).await;
    let store = open(&relay.url()).await;
    let builder = Vault::builder()
        .config(|config| {
            config.shared.max_stale = NEVER;
            // Tests ask again and again until what they wait for is there.
            config.limits.auth_failures = 100_000;
        })
        .resolve(GOOD, good.addr())
        .resolve(SIDE, side.addr())
        .store(Arc::new(store))
        .keyring(Keyring::parse(KEY.as_bytes()).expect("a key"))
        .ca(ca);
    let vault = change(builder).start().await;
    Node { vault, relay }
}

/// Returns the session that these tests ask for.
fn request() -> CreateSession {
    Scene::request()
}
