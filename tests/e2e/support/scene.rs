//! The scene that most tests play on: one vault, one session, and three origins.
//!
//! `good` may be reached and may receive the secret, `side` may be reached only, `evil` neither. All
//! three record, so that a test can say what arrived where, and that nothing did.

use oshu_vault_sdk::{CreateSession, CreatedSession};

use super::vault::VaultBuilder;
use super::{Answer, Origin, Vault, Workload, contains, show};

/// May be reached, and may receive the secret.
pub(crate) const GOOD: &str = "good.example.com";
/// May be reached.
pub(crate) const SIDE: &str = "side.example.com";
/// May not be reached.
pub(crate) const EVIL: &str = "evil.example.net";
/// The value of the secret.
pub(crate) const REAL: &str = "real-value/0123456789+abcdef";
/// The name of the secret.
const NAME: &str = "EXAMPLE_KEY";

/// A vault, a session, its workload, and three origins.
pub(crate) struct Scene {
    pub(crate) good: Origin,
    pub(crate) side: Origin,
    pub(crate) evil: Origin,
    pub(crate) vault: Vault,
    pub(crate) session: CreatedSession,
    pub(crate) workload: Workload,
}

impl Scene {
    /// Sets the scene.
    pub(crate) async fn new() -> Self {
        Self::with(|vault| vault, |session| session).await
    }

    /// Sets the scene with another session.
    pub(crate) async fn session(change: impl FnOnce(CreateSession) -> CreateSession) -> Self {
        Self::with(|vault| vault, change).await
    }

    /// Sets the scene with another vault.
    pub(crate) async fn vault(change: impl FnOnce(VaultBuilder) -> VaultBuilder) -> Self {
        Self::with(change, |session| session).await
    }

    /// Sets the scene with another vault and another session.
    pub(crate) async fn with(
        vault: impl FnOnce(VaultBuilder) -> VaultBuilder,
        session: impl FnOnce(CreateSession) -> CreateSession,
    ) -> Self {
        Self::with_good(Origin::echo_ok().await, vault, session).await
    }

    /// Sets the scene around an origin that is the good one.
    pub(crate) async fn around(good: Origin) -> Self {
        Self::with_good(good, |vault| vault, |session| session).await
    }

    /// Sets the scene around an origin whose answers are not looked at: what they are framed in
    /// stays as it is, as it does for every host without a secret.
    pub(crate) async fn unscrubbed(good: Origin) -> Self {
        Self::with_good(
            good,
            |vault| vault,
            |session| session.scrub_responses(false),
        )
        .await
    }

    /// Sets the scene with everything given.
    pub(crate) async fn with_good(
        good: Origin,
        vault: impl FnOnce(VaultBuilder) -> VaultBuilder,
        session: impl FnOnce(CreateSession) -> CreateSession,
    ) -> Self {
        let (side, evil) = (Origin::echo_ok().await, Origin::echo_ok().await);
        let builder = Vault::builder()
            .resolve(GOOD, good.addr())
            .resolve(SIDE, side.addr())
            .resolve(EVIL, evil.addr());
        let vault = vault(builder).start().await;
        let request = session(Self::request());
        let session = vault.session(&request).await;
        let workload = vault.workload(&session);
        Self {
            good,
            side,
            evil,
            vault,
            session,
            workload,
        }
    }

    /// Returns the session that the scene asks for.
    pub(crate) fn request() -> CreateSession {
        CreateSession::new()
            .secret(NAME, REAL)
            .secret_hosts([GOOD])
            .allowed_egress([GOOD, SIDE])
    }

    /// Returns the sealed token.
    pub(crate) fn token(&self) -> &str {
        &self.session.sealed_secrets[NAME]
    }

    /// Puts the sealed token in the place of `{T}` and the real value in the place of `{S}`.
    pub(crate) fn fill(&self, text: &str) -> String {
        text.replace("{T}", self.token()).replace("{S}", REAL)
    }

    /// Sends bytes through a fresh tunnel to an origin and reads one answer.
    pub(crate) async fn ask(&self, host: &str, bytes: impl AsRef<[u8]>) -> Answer {
        let mut conn = self.workload.connect(&format!("{host}:443")).await;
        conn.send(bytes).await;
        conn.answer().await
    }

    /// Sends a GET with field lines through a fresh tunnel and returns what the origin received.
    pub(crate) async fn received(&self, host: &str, lines: &str) -> String {
        let origin = if host == GOOD { &self.good } else { &self.side };
        origin.forget();
        let head = format!("GET / HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n");
        let answer = self.ask(host, head).await;
        assert_eq!(answer.status, 200, "{lines}: {}", answer.head);
        String::from_utf8(origin.bytes()).expect("a head in UTF-8")
    }

    /// Ends a negative case: none of the origins may have received a request or the secret, and the
    /// next request must go through as if nothing had been.
    pub(crate) async fn nothing_arrived(&self, case: &str) {
        for origin in [&self.good, &self.side, &self.evil] {
            origin.expect_nothing(case);
        }
        self.alive(case).await;
    }

    /// Sends a request that must succeed, with the secret in it, and forgets what arrived.
    pub(crate) async fn alive(&self, case: &str) {
        self.good.forget();
        let head = self.fill("GET /alive HTTP/1.1\r\nHost: good.example.com\r\nX-Key: {T}\r\n\r\n");
        let answer = self.ask(GOOD, head).await;
        assert_eq!(answer.status, 200, "after {case}: {}", answer.head);
        let bytes = self.good.bytes();
        let arrived = contains(&bytes, "GET /alive HTTP/1.1\r\n") && contains(&bytes, REAL);
        assert!(arrived, "after {case}: {}", show(&bytes));
        self.good.forget();
    }
}
