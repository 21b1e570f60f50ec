//! The Claude Gateway through the listener: who is let in, what arrives at the model provider byte
//! for byte, what comes back, and what it costs.

mod admission;
mod answers;
mod bodies;
mod budgets;
mod clients;
mod deliveries;
mod echo;
mod forward;
mod inner;
mod own_address;
mod payment;
mod pkce;
mod records;
mod relay;
mod sign_in;
mod ways;

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use oshu_vault::config::{Config, PageUrl};
use oshu_vault::id::{AccountId, SandboxName};
use oshu_vault::identity::{Workload, WorkloadKeys};
use oshu_vault::secret::Secret;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::support::{Answer, Anthropic, Conn, Origin, Vault, VaultBuilder, within};

const ADMIN: &str = "the-operator-s-own-key-0123456789";
/// The operator's credential at the model provider.
const MODEL_KEY: &str = "sk-ant-api03-CANARY-operator-0123456789";
/// What signs workload JWTs.
const JWT_SECRET: &str = "jwt-secret-0123456789abcdef0123456789";
/// What signs JWTs that are not for us.
const OTHER_SECRET: &str = "another-secret-0123456789abcdef012345";
/// The account that most tests are about.
const ACCOUNT: &str = "583231";
const PAYMENT_URL: &str = "https://pay.example.com/start?from=gateway";
const BODY: &str =
    r#"{"model":"stand-in","max_tokens":8,"messages":[{"role":"user","content":"hi"}]}"#;

fn secret(text: &str) -> Secret {
    Secret::new(text.as_bytes().to_vec())
}

/// Signs a JWT of an account's sandbox, with a secret of the test's choice.
fn jwt_by(secret_text: &str, account: &str) -> String {
    let keys = WorkloadKeys::new(&secret(secret_text), None).expect("a secret");
    let workload = Workload {
        account: AccountId::parse(account).expect("an account"),
        sandbox: SandboxName::parse("box-1").expect("a sandbox"),
    };
    let day = Duration::from_hours(24);
    let token = keys.mint(&workload, SystemTime::now(), day);
    token.expect("a JWT").to_string()
}

fn jwt(account: &str) -> String {
    jwt_by(JWT_SECRET, account)
}

/// A vault with a gateway, and the model provider behind it.
struct Stage {
    provider: Origin,
    vault: Vault,
}

impl Stage {
    /// Sets the stage with a provider that answers like the API.
    async fn new() -> Self {
        Self::around(Anthropic::start().await.into_origin(), |_| ()).await
    }

    /// Sets the stage with another provider and other settings.
    async fn around(provider: Origin, change: impl FnOnce(&mut Config)) -> Self {
        Self::built(provider, |vault| vault.config(change)).await
    }

    /// Sets the stage with another provider and another vault.
    async fn built(provider: Origin, change: impl FnOnce(VaultBuilder) -> VaultBuilder) -> Self {
        let vault = Vault::builder()
            .resolve(Anthropic::HOST, provider.addr())
            .config(|config| {
                config.admin_key = Some(secret(ADMIN));
                config.gateway.api_key = Some(secret(MODEL_KEY));
                config.gateway.jwt_secret = Some(secret(JWT_SECRET));
                config.gateway.payment_url = PageUrl::parse(PAYMENT_URL);
            });
        let vault = change(vault).start().await;
        Self { provider, vault }
    }

    fn address(&self) -> SocketAddr {
        self.vault.plain_addr()
    }

    async fn connect(&self) -> Conn {
        let tcp = within("a connection", TcpStream::connect(self.address())).await;
        Conn::new(tcp.expect("a connection"))
    }

    /// Sends bytes over a connection of their own and reads the answer.
    async fn ask(&self, bytes: impl AsRef<[u8]>) -> Answer {
        let mut conn = self.connect().await;
        conn.send(bytes).await;
        conn.answer().await
    }

    /// Calls as the operator; the answer has to be good.
    async fn operate(&self, method: &str, path: &str, body: &str) -> Value {
        let answer = self
            .ask(format!(
                "{method} {path} HTTP/1.1\r\nHost: v\r\nx-api-key: {ADMIN}\r\nContent-Length: \
                 {}\r\n\r\n{body}",
                body.len()
            ))
            .await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    }

    /// Says whether an account is paid.
    async fn pay(&self, account: &str, paid: bool) {
        let body = json!({ "paid": paid }).to_string();
        let told = self
            .operate("PUT", &format!("/v1/accounts/{account}"), &body)
            .await;
        assert_eq!(told["paid"], json!(paid));
    }

    /// Returns what an account used this month.
    async fn usage(&self, account: &str) -> Value {
        let path = format!("/v1/accounts/{account}/usage");
        self.operate("GET", &path, "").await
    }

    /// Sends a message with a JWT as Bearer.
    async fn message(&self, jwt: &str) -> Answer {
        self.ask(message(&format!("Authorization: Bearer {jwt}\r\n")))
            .await
    }
}

/// Writes a message with field lines.
fn message(lines: &str) -> String {
    post("/v1/messages", lines, BODY)
}

/// Writes a POST to a path of the gateway.
fn post(path: &str, lines: &str, body: &str) -> String {
    format!(
        "POST /api/claude-gateway{path} HTTP/1.1\r\nHost: gateway\r\n{lines}Content-Type: \
         application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}
