//! The gateway beside the management API: its accounts, its books, and the way to its routes.
//!
//! Accounts and books are read from the store whether there is a gateway or not, so that who is paid
//! can be said before it is there. Called by the composition root alone.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::routing::any;

use super::Error;
use crate::api::{self, OpenState, Relay, SignIn, SignInConfig};
use crate::audit::Sink;
use crate::config::{Config, PageUrl, PaymentProvider, Pkce, ReturnTo};
use crate::gateway::{self, Gateway};
use crate::identity::WorkloadKeys;
use crate::payment::{
    Accounts, Budgets, CacheConfig, Cached, Ledger, PaymentCheck, Webhook, Workos, WorkosConfig,
};
use crate::records::Records;
use crate::serve::Throttle;
use crate::shutdown::Drain;
use crate::upstream::Upstream;
use crate::web::TaggedFailure;

/// How long the last usage has to reach the store at the end.
const LAST_USAGE: Duration = Duration::from_secs(2);

/// Who is paid, and what was used.
#[derive(Clone, Debug)]
pub struct Paying {
    /// Who is paid.
    pub accounts: Arc<Accounts>,
    /// What was used.
    pub ledger: Arc<Ledger>,
}

impl Paying {
    pub(super) async fn load(config: &Config, records: &Arc<Records>) -> Result<Self, Error> {
        let budgets = Budgets {
            monthly: config.gateway.monthly_budget,
            free_allowance: config.gateway.free_allowance.unwrap_or(0),
        };
        let accounts = Accounts::load(Arc::clone(records)).await;
        Ok(Self {
            accounts: Arc::new(accounts.map_err(Error::Accounts)?),
            ledger: Arc::new(Ledger::new(Arc::clone(records), budgets)),
        })
    }

    /// Waits until what was used is durable, for a moment, and tells whether it is.
    pub(super) async fn flush(&self) -> bool {
        match tokio::time::timeout(LAST_USAGE, self.ledger.flush()).await {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => tracing::warn!(%error, "the last usage did not reach the store"),
            Err(_elapsed) => tracing::warn!("the last usage did not reach the store"),
        }
        false
    }
}

/// The routes of the shared listener, and those that a workload reaches through the proxy.
pub(super) struct Routes {
    pub(super) all: Router,
    /// The gateway's alone; nothing where there is none.
    pub(super) inner: Option<Router>,
}

/// Puts the gateway and the other routes of `/api` beside the management API.
pub(super) fn beside(
    management: Router,
    config: &Config,
    paying: &Paying,
    shared: &Shared<'_>,
) -> Result<Routes, Error> {
    let open = OpenState::new(shared.drain.clone(), shared.audit.clone())
        .with_danger_plaintext(config.danger_plaintext_management)
        .with_webhook(webhook(config, paying)?)
        .with_relay(relay(config, shared)?)
        .with_sign_in(sign_in(config, shared)?);
    let open = api::open_router(open);
    let gateway = gateway(config, paying, shared)?.map(|gateway| {
        let serve = move |request: Request| {
            let gateway = Arc::clone(&gateway);
            async move { gateway.handle(request).await }
        };
        let path = format!("{}/{{*path}}", gateway::PREFIX);
        Router::new().route(&path, any(serve))
    });
    let all = match &gateway {
        Some(gateway) => open.merge(gateway.clone()),
        None => open,
    };
    let inner = gateway.map(|gateway| gateway.fallback(async || TaggedFailure::OwnAddress));
    Ok(Routes {
        all: all.fallback_service(management),
        inner,
    })
}

/// Sets the gateway up, where it has its secrets.
fn gateway(
    config: &Config,
    paying: &Paying,
    shared: &Shared<'_>,
) -> Result<Option<Arc<Gateway>>, Error> {
    let settings = &config.gateway;
    let (Some(api_key), Some(secret)) = (&settings.api_key, &settings.jwt_secret) else {
        return Ok(None);
    };
    let keys = WorkloadKeys::new(secret, settings.jwt_secret_previous.as_ref());
    let parts = gateway::Parts {
        upstream: Arc::clone(shared.upstream),
        keys: keys.map_err(Error::Gateway)?,
        check: check(config, paying, shared)?,
        ledger: Arc::clone(&paying.ledger),
        throttle: Arc::clone(shared.throttle),
        audit: shared.audit.clone(),
    };
    for path in &settings.extra_paths {
        let path = path.as_str();
        tracing::warn!(
            path,
            "gateway.danger_extra_paths: forwarded under our key, and not counted"
        );
    }
    let payment_url = settings.payment_url.as_ref().map(PageUrl::as_str);
    let config = gateway::Config {
        upstream: settings.upstream.as_str().to_owned(),
        api_key: api_key.clone(),
        extra_paths: settings.extra_paths.clone(),
        payment_url: payment_url.map(Arc::from),
        answer_timeout: config.limits.answer_timeout,
        silence_timeout: config.limits.exchange_idle_timeout,
        requests_per_minute: settings.requests_per_minute,
        connections: config.limits.session_connections,
        danger_plaintext: config.danger_plaintext_management,
    };
    let gateway = Gateway::new(config, parts).map_err(Error::ModelProvider)?;
    Ok(Some(Arc::new(gateway)))
}

/// Finds who knows whether an account is paid.
fn check(
    config: &Config,
    paying: &Paying,
    shared: &Shared<'_>,
) -> Result<Arc<dyn PaymentCheck>, Error> {
    let workos = &config.payment.workos;
    match (config.payment.provider, &workos.api_key) {
        (PaymentProvider::Workos, Some(api_key)) => {
            let config = WorkosConfig {
                base_url: workos.base_url.as_str().to_owned(),
                metadata_key: workos.metadata_key.as_str().to_owned(),
                metadata_value: workos.metadata_value.as_str().to_owned(),
                ..WorkosConfig::with_key(api_key.clone())
            };
            let workos = Workos::new(Arc::clone(shared.upstream), config);
            let workos = Arc::new(workos.map_err(Error::Payment)?);
            Ok(Arc::new(Cached::new(workos, CacheConfig::default())))
        }
        (PaymentProvider::Workos, None) => Err(Error::NoWorkosKey),
        (PaymentProvider::Local, _) => Ok(Arc::clone(&paying.accounts) as _),
    }
}

/// Sets the relay of OAuth tokens up, where there is a gateway.
fn relay(config: &Config, shared: &Shared<'_>) -> Result<Option<Arc<Relay>>, Error> {
    let settings = &config.gateway;
    if !settings.is_on() {
        return Ok(None);
    }
    let relay = Relay::new(
        Arc::clone(shared.upstream),
        settings.oauth_token_url.as_str(),
        settings.oauth_requests_per_minute,
    );
    Ok(Some(Arc::new(relay.map_err(Error::OauthTokens)?)))
}

/// Sets signing in with GitHub up, where there is an OAuth app.
fn sign_in(config: &Config, shared: &Shared<'_>) -> Result<Option<Arc<SignIn>>, Error> {
    let github = &config.github;
    let Some(client_id) = &github.client_id else {
        return Ok(None);
    };
    let needs_verifier = github.pkce == Pkce::Required;
    let goes_astray = !github.return_to.iter().all(ReturnTo::is_one_s_own);
    if goes_astray && !needs_verifier && github.client_secret.is_some() {
        tracing::warn!(
            "github.return_to has addresses at which others may listen: whoever catches a code there \
             can exchange it; have the application send a code_verifier and set github.pkce to required"
        );
    }
    let return_to = github.return_to.iter();
    let config = SignInConfig {
        url: github.url.as_str().to_owned(),
        client_id: client_id.as_str().to_owned(),
        client_secret: github.client_secret.clone(),
        return_to: return_to.map(|url| url.as_str().to_owned()).collect(),
        needs_verifier,
        requests_per_minute: github.requests_per_minute,
    };
    let sign_in = SignIn::new(Arc::clone(shared.upstream), config);
    Ok(Some(Arc::new(sign_in.map_err(Error::Github)?)))
}

/// Sets Stripe's webhook up, where it has a secret.
fn webhook(config: &Config, paying: &Paying) -> Result<Option<Arc<Webhook>>, Error> {
    let stripe = &config.payment.stripe;
    let Some(secret) = &stripe.webhook_secret else {
        return Ok(None);
    };
    let before = stripe.webhook_secret_previous.as_ref();
    let webhook = Webhook::new(secret, before, Arc::clone(&paying.accounts), None);
    Ok(Some(Arc::new(webhook.map_err(Error::Payment)?)))
}

/// What the gateway shares with the proxy.
pub(super) struct Shared<'a> {
    pub(super) upstream: &'a Arc<Upstream>,
    pub(super) throttle: &'a Arc<Throttle>,
    pub(super) audit: &'a Sink,
    pub(super) drain: &'a Drain,
}
