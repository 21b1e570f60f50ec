//! The scene with one more origin, which speaks HTTP/2.
//!
//! `good` and `side` speak HTTP/1.1, and `two` HTTP/2; `good` and `two` may receive the secret. A
//! workload on HTTP/2 reaches all of them.

use oshu_vault_sdk::CreateSession;

use super::vault::VaultBuilder;
use super::{GOOD, H2Client, H2Exchange, H2Origin, Origin, REAL, SIDE, Scene};

/// May be reached, may receive the secret, and speaks HTTP/2 only.
pub(crate) const TWO: &str = "two.example.com";

/// A scene and its h2 origin.
pub(crate) struct H2Scene {
    pub(crate) scene: Scene,
    pub(crate) two: H2Origin,
}

impl H2Scene {
    /// Sets the scene with origins that answer everything.
    pub(crate) async fn new() -> Self {
        Self::around(H2Origin::echo_ok().await).await
    }

    /// Sets the scene around an h2 origin.
    pub(crate) async fn around(two: H2Origin) -> Self {
        Self::with(two, |vault| vault).await
    }

    /// Sets the scene around a script of an h2 origin; `/alive` is answered for it.
    pub(crate) async fn script<F, R>(script: F) -> Self
    where
        F: Fn(H2Exchange) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        Self::around(H2Origin::script(script).await).await
    }

    /// Sets the scene with another vault.
    pub(crate) async fn with(
        two: H2Origin,
        vault: impl FnOnce(VaultBuilder) -> VaultBuilder,
    ) -> Self {
        Self::with_good(Origin::echo_ok().await, two, vault).await
    }

    /// Sets the scene around an origin that speaks HTTP/1.1.
    pub(crate) async fn around_good(good: Origin) -> Self {
        Self::with_good(good, H2Origin::echo_ok().await, |vault| vault).await
    }

    /// Sets the scene with everything given.
    pub(crate) async fn with_good(
        good: Origin,
        two: H2Origin,
        vault: impl FnOnce(VaultBuilder) -> VaultBuilder,
    ) -> Self {
        let address = two.addr();
        let scene = Scene::with_good(
            good,
            |builder| vault(roomy(builder.resolve(TWO, address))),
            Self::open,
        )
        .await;
        Self { scene, two }
    }

    /// Sets the scene around origins whose answers are not looked at, and keep their codings.
    pub(crate) async fn unscrubbed(good: Origin, two: H2Origin) -> Self {
        let address = two.addr();
        let scene = Scene::with_good(
            good,
            |builder| roomy(builder.resolve(TWO, address)),
            |session| Self::open(session).scrub_responses(false),
        )
        .await;
        Self { scene, two }
    }

    /// Opens a session to the h2 origin as well.
    pub(crate) fn open(session: CreateSession) -> CreateSession {
        session
            .secret_hosts([GOOD, TWO])
            .allowed_egress([GOOD, SIDE, TWO])
    }

    /// Opens an h2 connection that leads to the h2 origin.
    pub(crate) async fn h2(&self) -> H2Client {
        self.scene.workload.h2("two.example.com:443").await
    }

    /// Opens an h2 connection that leads to the good origin, which speaks HTTP/1.1.
    pub(crate) async fn h2_to_h1(&self) -> H2Client {
        self.scene.workload.h2("good.example.com:443").await
    }

    /// Sends requests that must succeed with the secret in them, on fresh connections: one to
    /// each kind of upstream.
    pub(crate) async fn alive(&self, case: &str) {
        self.scene.alive(case).await;
        let before = self.two.requests().len();
        let client = self.h2().await;
        let fields = [("x-key", self.scene.token())];
        let answer = client.ask(("GET", "/alive"), &fields, b"").await;
        assert_eq!(answer.status, 200, "after {case}: {answer:?}");
        let requests = self.two.requests();
        let arrived = requests[before..]
            .iter()
            .any(|seen| seen.path == "/alive" && seen.all("x-key") == [REAL]);
        assert!(arrived, "after {case}: {requests:#?}");
        client.vanish().await;
    }
}

/// Lets one connection have all the streams that it may have: its session's own limit is below.
fn roomy(builder: VaultBuilder) -> VaultBuilder {
    builder.config(|config| config.limits.session_exchanges = 256)
}
