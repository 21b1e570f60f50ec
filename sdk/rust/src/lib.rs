//! Client of the Oshu Vault management API: creates, reads, changes and ends sessions.
//!
//! Trusted code calls it and hands a workload only sealed tokens and the proxy credential. It never
//! prints an API key, a credential or a secret: not in `Debug`, not in an error. It takes no proxy
//! from the environment, follows no redirect and sends each call once.
//!
//! ```no_run
//! use oshu_vault_sdk::{Client, CreateSession, Error};
//!
//! # async fn example(api_key: String, anthropic_key: String) -> Result<(), Error> {
//! let vault = Client::builder("https://vault.example.com", api_key).build()?;
//! let request = CreateSession::new().secret("ANTHROPIC_API_KEY", anthropic_key);
//! let session = vault.create_session(&request).await?;
//! // For the workload's environment: session.sealed_secrets and session.proxy_url.
//! vault.delete_session(&session.session_id).await?;
//! # Ok(())
//! # }
//! ```

mod capture;
mod client;
mod error;
mod redact;
mod request;
mod session;

pub use capture::CaptureEndpoint;
pub use client::{Client, ClientBuilder};
pub use error::{Error, FieldError, Problem};
pub use request::{CreateSession, ListSessions, SecretInput, SecretSpec, UpdateSession};
pub use session::{CreatedSession, Session, SessionPage, SessionSecret};
