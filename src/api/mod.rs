//! The management API: the route table, whole, and what its handlers share.
//!
//! Every route stands in [`router`], so that one look tells what is there; what needs no key is
//! told apart in [`public_router`], what is the operator's in [`admin_router`]. Handlers stand beside
//! their types. Nothing here knows the proxy. Called by `app`, which serves the router on the shared
//! or on its own listener.

mod accounts;
mod certificates;
mod events;
mod form;
mod health;
mod idempotency;
mod open;
mod paces;
mod relay;
mod sign_in;
mod tenant_form;
mod tenants;
mod vault;
mod webhook;

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::extract::FromRef;
use axum::routing::{any, get};
use http::HeaderValue;
use http::header::CONTENT_TYPE;

use self::accounts::Paying;
use self::idempotency::Idempotency;
use crate::payment::{Accounts, Ledger};
use crate::session::Sessions;
use crate::shutdown::Drain;
use crate::telemetry::Page;
use crate::web;
use crate::web::{Admin, ApiKeys, Failure, TaggedFailure};

pub use accounts::{AccountMetadata, UsageMetadata};
pub use certificates::Certificates;
pub use open::OpenState;
pub use relay::Relay;
pub use sign_in::{SignIn, SignInConfig};

/// Where workloads find the proxy, as `host:port`. What is not open is absent.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    /// The TLS listener.
    pub tls: Option<String>,
    /// The plain listener.
    pub plain: Option<String>,
}

/// What the handlers need.
#[derive(Clone)]
pub struct ApiState {
    sessions: Arc<Sessions>,
    keys: Arc<ApiKeys>,
    certificates: Arc<Certificates>,
    addresses: Arc<Addresses>,
    idempotency: Arc<Idempotency>,
    paying: Option<Paying>,
    drain: Drain,
    danger_plaintext_management: bool,
}

impl ApiState {
    /// Puts together what the handlers need. Credentials are taken over TLS or on loopback only.
    pub fn new(
        sessions: Arc<Sessions>,
        keys: ApiKeys,
        certificates: Certificates,
        addresses: Addresses,
        drain: Drain,
    ) -> Self {
        Self {
            sessions,
            keys: Arc::new(keys),
            certificates: Arc::new(certificates),
            addresses: Arc::new(addresses),
            idempotency: Arc::default(),
            paying: None,
            drain,
            danger_plaintext_management: false,
        }
    }

    /// Serves the routes of accounts, which are not there without.
    #[must_use]
    pub fn with_accounts(mut self, accounts: &Arc<Accounts>, ledger: &Arc<Ledger>) -> Self {
        self.paying = Some(Paying {
            accounts: Arc::clone(accounts),
            ledger: Arc::clone(ledger),
        });
        self
    }

    fn paying(&self) -> Result<&Paying, Failure> {
        self.paying.as_ref().ok_or(Failure::NotFound)
    }

    /// Takes credentials in the clear from everywhere: right only behind something that ends TLS.
    #[must_use]
    pub fn with_danger_plaintext_management(mut self, allow: bool) -> Self {
        self.danger_plaintext_management = allow;
        self
    }
}

impl fmt::Debug for ApiState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiState")
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

impl FromRef<ApiState> for Arc<ApiKeys> {
    fn from_ref(state: &ApiState) -> Self {
        Self::clone(&state.keys)
    }
}

/// Makes the service of all routes.
pub fn router(state: ApiState) -> Router {
    let management = Router::new()
        .route("/v1/sessions", get(vault::list).post(vault::create))
        .route(
            "/v1/sessions/{id}",
            get(vault::show).patch(vault::patch).delete(vault::delete),
        )
        .route("/v1/sessions/{id}/events", get(events::events));
    finish(public().merge(management).merge(operator()), state)
}

/// The routes of the operator: to everybody else they are not there, whatever the method. `any` keeps
/// the router from adding to a refusal which methods there are.
fn operator() -> Router<ApiState> {
    let other = |allow| any(move |_: Admin| async move { tenants::other_method(allow) });
    Router::new()
        .route(
            "/v1/tenants",
            other("GET,HEAD,POST")
                .get(tenants::list)
                .post(tenants::create),
        )
        .route(
            "/v1/tenants/{id}",
            other("GET,HEAD,PATCH,DELETE")
                .get(tenants::show)
                .patch(tenants::patch)
                .delete(tenants::delete),
        )
        .route(
            "/v1/tenants/{id}/keys",
            other("GET,HEAD,POST")
                .get(tenants::list_keys)
                .post(tenants::create_key),
        )
        .route(
            "/v1/tenants/{id}/keys/{key}",
            other("DELETE").delete(tenants::revoke_key),
        )
        .route("/v1/accounts", other("GET,HEAD").get(accounts::list))
        .route(
            "/v1/accounts/{id}",
            other("GET,HEAD,PUT").get(accounts::show).put(accounts::put),
        )
        .route(
            "/v1/accounts/{id}/usage",
            other("GET,HEAD").get(accounts::usage),
        )
}

/// Makes the service of the routes of `/api` beside the gateway. They have failures of their own form,
/// and so has what is not there.
pub fn open_router(state: OpenState) -> Router {
    let other = |allow| any(async move || TaggedFailure::MethodNotAllowed(allow));
    let none = || any(async || TaggedFailure::NotFound);
    Router::new()
        .route("/api/health", other("GET,HEAD").get(open::health))
        .route("/api/webhooks/stripe", any(webhook::stripe))
        .route("/api/claude/v1/oauth/token", any(relay::token))
        .route("/api/github/device/code", any(sign_in::device_code))
        .route("/api/github/device/token", any(sign_in::device_token))
        .route("/api/github/oauth/token", any(sign_in::exchange))
        .route("/api/auth/callback", any(sign_in::callback))
        .route("/api", none())
        .route("/api/", none())
        .route("/api/{*path}", none())
        .with_state(state)
}

/// Makes the service of the routes that need no key: for the shared listener where management has
/// its own.
pub fn public_router(state: ApiState) -> Router {
    finish(public(), state)
}

/// Writes the page of metrics.
pub type MetricsPage = Arc<dyn Fn() -> String + Send + Sync>;

/// Makes the service of the operator's listener: the routes that need no key, and the metrics.
pub fn admin_router(state: ApiState, page: MetricsPage) -> Router {
    let metrics = get(async move || {
        let kind = HeaderValue::from_static(Page::CONTENT_TYPE);
        ([(CONTENT_TYPE, kind)], page())
    });
    finish(public().route("/metrics", metrics), state)
}

fn public() -> Router<ApiState> {
    Router::new()
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .route("/v1/ca.pem", get(certificates::ca_pem))
        .route("/v1/ca.der", get(certificates::ca_der))
        .route("/v1/bundle.pem", get(certificates::bundle_pem))
}

fn finish(routes: Router<ApiState>, state: ApiState) -> Router {
    let danger = state.danger_plaintext_management;
    let routes = routes
        // As the operator's routes to everybody else, who must not be able to tell them from none:
        // a wrong key is a failed attempt here as there.
        .fallback(async |_: Admin| Failure::NotFound)
        .method_not_allowed_fallback(async || Failure::MethodNotAllowed)
        .with_state(state);
    web::wrap(routes, danger)
}

#[cfg(test)]
mod tests;
