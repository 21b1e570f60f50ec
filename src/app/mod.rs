//! The composition root: a configuration becomes bound listeners and a running service.
//!
//! Everything that points upwards is handed in here: the routes to the proxy, the certificates to
//! the doors, the connection facts to the routes. Listeners are bound before anything is served,
//! so that a bad address is an error and port 0 is known. Called by the command line and by tests.

mod doors;
mod gateway;
mod handover;
mod metrics;
mod settings;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use tokio::task::JoinHandle;
use tower_service::Service;

use self::doors::{Doors, addresses, handler};
use self::gateway::{Shared, beside};
use self::settings::{
    address_rules, proxy_config, quotas, session_options, tenant_limits, throttle, upstream_config,
};
use crate::api::{self, ApiState};
use crate::audit::Sink;
use crate::authority::{self, CertificateAuthority};
use crate::callout;
use crate::config::Config;
use crate::host::HostPort;
use crate::id::TenantId;
use crate::identity;
use crate::payment;
use crate::policy::AddressRules;
use crate::proxy::{Local, LocalServer, Proxy, Upload};
use crate::seal::Keyring;
use crate::secret::Fingerprint;
use crate::serve::{self, Handler, Peer, Throttle};
use crate::session::{self, Loaded, Sessions};
use crate::shutdown::Drain;
use crate::store::{self, Memory, RecordKey, Store};
use crate::swap::Swapper;
use crate::telemetry::Histogram;
use crate::tenant::{self, Tenants};
use crate::upstream::{self, Upstream};
use crate::web::{ApiKeys, Connection, Failure};

pub use self::gateway::Paying;
pub use self::handover::{Error as HandoverError, Handover, Hello, Inherited, Predecessor};
pub use self::settings::roots;

/// The tenant of the configured API key, which always stands.
pub const TENANT: &str = "default";
/// How often expired sessions and idle upstream connections are looked for, and the store is told.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// How long the last uses of sessions have to reach the store at the end.
const LAST_NOTES: Duration = Duration::from_secs(2);

/// Says why the service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The accounts of the store cannot be read.
    #[error("the accounts of the store cannot be read")]
    Accounts(#[source] payment::Error),
    /// The certificate authority cannot be used.
    #[error("the certificate authority cannot be used")]
    Authority(#[source] authority::Error),
    /// An address cannot be bound.
    #[error("{key}: the address {address} cannot be bound")]
    Bind {
        /// The setting.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file of extra roots holds no certificate that can be used.
    #[error("upstream.ca_files: {path} is not a PEM file of certificates")]
    CaFile {
        /// The file.
        path: PathBuf,
    },
    /// The listener's certificate cannot be served.
    #[error("proxy.tls_cert, proxy.tls_key: the listener's certificate cannot be used")]
    Certificate(#[source] serve::Error),
    /// What signs workload JWTs cannot be used.
    #[error("gateway.jwt_secret, gateway.jwt_secret_previous: a secret cannot be used")]
    Gateway(#[source] identity::Error),
    /// The model provider cannot be reached by this URL.
    #[error("gateway.upstream: the model provider cannot be called")]
    ModelProvider(#[source] callout::Error),
    /// The endpoint of OAuth tokens cannot be reached by this URL.
    #[error("gateway.oauth_token_url: the endpoint cannot be called")]
    OauthTokens(#[source] callout::Error),
    /// GitHub cannot be reached by this URL.
    #[error("github.url: GitHub cannot be called")]
    Github(#[source] callout::Error),
    /// `WorkOS` is to be asked, and there is no key for it.
    #[error("payment.workos.api_key: expects the operator's key at WorkOS")]
    NoWorkosKey,
    /// The payment provider cannot be set up.
    #[error("payment: the payment provider cannot be set up")]
    Payment(#[source] payment::Error),
    /// The sessions of the store cannot be taken over.
    #[error("the sessions of the store cannot be taken over")]
    Sessions(#[source] session::Error),
    /// A socket that was handed in is none of the configuration's.
    #[error(
        "the socket {name:?} on {address} is none of proxy.listen, proxy.tls_listen and \
         admin.listen: name it listen, tls_listen or admin_listen, and give that setting its \
         address"
    )]
    Socket {
        /// The name that came with it.
        name: String,
        /// What it is bound to.
        address: SocketAddr,
    },
    /// The process before did not let go of the service.
    #[error("the running service cannot be taken over")]
    TakeOver(#[source] handover::Error),
    /// The tenants of the store cannot be read.
    #[error("the tenants of the store cannot be read")]
    Tenants(#[source] tenant::Error),
    /// The system's store of roots cannot be read.
    #[error("upstream.trust: the system's roots cannot be read")]
    SystemTrust,
    /// The way out cannot be set up.
    #[error("the way out cannot be set up")]
    Upstream(#[source] upstream::Error),
}

/// What the caller decides besides the configuration.
#[derive(Debug)]
pub struct Parts {
    /// The certificate authority.
    pub authority: Arc<CertificateAuthority>,
    /// The API key of the tenant [`TENANT`], as it is kept.
    pub api_key: Fingerprint,
    /// Where audit records go.
    pub audit: Sink,
    /// Where sessions are kept.
    pub storage: Storage,
}

/// Where sessions are kept, and the keys that seal them there.
#[derive(Debug)]
pub struct Storage {
    /// The store.
    pub store: Arc<dyn Store>,
    /// The sealing keys.
    pub keyring: Keyring,
}

impl Storage {
    /// Keeps sessions in memory, under a key that ends with them.
    pub fn in_memory() -> Self {
        Self {
            store: Arc::new(Memory::default()),
            keyring: Keyring::generate(),
        }
    }
}

/// Where the service listens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Listening {
    /// The plain listener.
    pub plain: Option<SocketAddr>,
    /// The TLS listener.
    pub tls: Option<SocketAddr>,
    /// The admin listener.
    pub admin: Option<SocketAddr>,
}

/// A running service.
#[derive(Debug)]
pub struct App {
    listening: Listening,
    sessions: Arc<Sessions>,
    authority: Arc<CertificateAuthority>,
    proxy: Arc<Proxy>,
    paying: Paying,
    drain: Drain,
    audit: Sink,
    drain_timeout: Duration,
    handover_timeout: Duration,
    handover: Arc<Handover>,
    sweepers: [JoinHandle<()>; 3],
}

impl App {
    /// Binds every listener, takes over the sessions of the store, then serves.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn start(config: &Config, parts: Parts) -> Result<Self, Error> {
        Self::start_with(config, parts, Inherited::default()).await
    }

    /// The same with what others had before: sockets, and a process that hands over. That one has
    /// everything back unless this succeeds.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn start_with(
        config: &Config,
        parts: Parts,
        inherited: Inherited,
    ) -> Result<Self, Error> {
        let Parts {
            authority,
            api_key,
            audit,
            storage,
        } = parts;
        let drain = Drain::new();
        let (gate, (sockets, predecessor)) = (serve::Gate::default(), inherited.split());
        let doors = Doors::bind(config, &authority, sockets, &gate).await?;
        let listening = doors.listening();
        let (upstream, rules) = way_out(config, listening)?;
        let (store, sessions) = live(config, (storage, api_key), rules, &audit);
        authority.keep_leaves(config.limits.leaves);
        let throttle = Arc::new(throttle(config));
        take_over(&sessions, predecessor.is_some()).await?;
        let paying = Paying::load(config, sessions.records()).await?;
        let limits = proxy_config(config);
        let state = ApiState::new(
            Arc::clone(&sessions),
            api_keys(config, &sessions, &throttle),
            api::Certificates::of(&authority),
            addresses(config, &listening),
            drain.clone(),
        )
        .with_accounts(&paying.accounts, &paying.ledger)
        .with_danger_plaintext_management(config.danger_plaintext_management);
        let shared = Shared {
            upstream: &upstream,
            throttle: &throttle,
            audit: &audit,
            drain: &drain,
        };
        let routes = beside(api::router(state.clone()), config, &paying, &shared)?;
        let local = |router: axum::Router| LocalServer {
            local: local_service(router),
            config: limits,
            drain: drain.clone(),
        };
        let proxy = Arc::new(Proxy {
            sessions: Arc::clone(&sessions),
            authority: Arc::clone(&authority),
            upstream,
            audit: audit.clone(),
            local: local(routes.all),
            inner: routes.inner.map(&local),
            config: limits,
            own: own_address(config),
            drain: drain.clone(),
            swapper: Swapper::new().with_limit(config.limits.swaps),
            throttle,
            handshakes: Histogram::default(),
        });
        let admin = local(api::admin_router(
            state,
            metrics::page(&proxy, doors.room(), &paying.ledger),
        ));
        if let Some(predecessor) = predecessor {
            let taken = predecessor.lead(&sessions, &paying.ledger, &drain).await;
            taken.map_err(Error::TakeOver)?;
        }
        doors.run(&proxy, &admin, &drain);
        let sweepers = sweepers(&sessions);
        let handover = Handover::new((gate, store), (&sessions, &paying), &authority, &drain);
        Ok(Self {
            handover: Arc::new(handover),
            handover_timeout: config.limits.handover_timeout,
            drain_timeout: config.limits.drain_timeout,
            listening,
            sessions,
            authority,
            proxy,
            paying,
            drain,
            audit,
            sweepers,
        })
    }

    /// Returns the bound addresses.
    pub fn listening(&self) -> Listening {
        self.listening
    }

    /// Returns the live sessions.
    pub fn sessions(&self) -> &Arc<Sessions> {
        &self.sessions
    }

    /// Returns who is paid, and what was used.
    pub fn paying(&self) -> &Paying {
        &self.paying
    }

    /// Returns the certificate authority.
    pub fn authority(&self) -> &Arc<CertificateAuthority> {
        &self.authority
    }

    /// Returns what serves the shared listeners, for a connection that comes in another way.
    pub fn handler(&self) -> Handler {
        handler(&self.proxy)
    }

    /// Returns what hands the service over to another process.
    pub fn handover(&self) -> &Arc<Handover> {
        &self.handover
    }

    /// Waits until the service was handed over to another process.
    pub async fn handed_over(&self) {
        self.handover.done().await;
    }

    /// Serves what is open yet after the service was handed over, until that has ended, its time is
    /// up or `stop` is: then what is left is drained. Without the other process, which alone knows
    /// what still holds, everything is cut at once.
    pub async fn retire(self, stop: impl Future<Output = ()>) {
        let following = self.handover.follower();
        let lost = async {
            match &following {
                Some(it) if it.is_bound => it.link.broken().await,
                _ => std::future::pending().await,
            }
        };
        let ending = async {
            tokio::select! {
                () = self.drain.ended() => return,
                () = stop => {}
                () = tokio::time::sleep(self.handover_timeout) => {
                    tracing::info!("the time for what was open is up");
                }
            }
            self.drain.finish(self.drain_timeout).await;
        };
        // While it drains, too.
        let is_lost = tokio::select! {
            () = lost => true,
            () = ending => false,
        };
        if is_lost {
            tracing::error!("the process that took over has gone: everything is cut");
            self.drain.finish(Duration::ZERO).await;
        }
        for sweeper in &self.sweepers {
            sweeper.abort();
        }
        // What was cut and could not be deleted is tried for the last time, over there.
        drop(tokio::time::timeout(LAST_NOTES, self.sessions.settle()).await);
        self.audit.close_away().await;
        if let Some(following) = following {
            following.link.finish().await;
        }
        tracing::info!("ended after the hand-over");
    }

    /// Stops accepting, lets exchanges finish, cuts what is left at the deadline. Where the service
    /// is handed over by then, that is done with an eye on the other process.
    pub async fn drain(self) {
        let clean = tokio::select! {
            biased;
            () = self.handed_over() => return self.retire(std::future::ready(())).await,
            clean = self.drain.finish(self.drain_timeout) => clean,
        };
        for sweeper in self.sweepers {
            sweeper.abort();
        }
        let noted = tokio::time::timeout(LAST_NOTES, self.sessions.note_all()).await;
        if noted.is_err() {
            tracing::warn!("the last uses of sessions did not reach the store");
        }
        // Where it is not, it has said so.
        let _durable = self.paying.flush().await;
        tracing::info!(clean, "drained");
        self.audit.close();
    }
}

/// Sets up the way out, which never leads to our own listeners.
fn way_out(
    config: &Config,
    listening: Listening,
) -> Result<(Arc<Upstream>, Arc<AddressRules>), Error> {
    let own = [listening.plain, listening.tls, listening.admin]
        .into_iter()
        .flatten();
    let rules = Arc::new(address_rules(config).with_own(own));
    let upstream = Upstream::new(upstream_config(config, Arc::clone(&rules))?);
    Ok((Arc::new(upstream.map_err(Error::Upstream)?), rules))
}

/// Returns the host and port by which workloads ask for this service itself.
fn own_address(config: &Config) -> Option<HostPort> {
    let url = config.proxy.public_url.as_ref();
    url.map(|url| url.authority.clone())
}

/// Gathers who may call the API.
fn api_keys(config: &Config, sessions: &Arc<Sessions>, throttle: &Arc<Throttle>) -> ApiKeys {
    let admin = config.admin_key.as_ref();
    let known = Arc::clone(sessions);
    ApiKeys::new(Arc::clone(sessions.tenants()))
        .with_known(move || known.knows().map_err(Failure::StoreDown))
        .with_admin(admin.map(|key| Fingerprint::of(key.expose())))
        .with_throttle(Arc::clone(throttle))
}

/// Makes the table of sessions with that of tenants, and what stands before their store.
fn live(
    config: &Config,
    (storage, api_key): (Storage, Fingerprint),
    rules: Arc<AddressRules>,
    audit: &Sink,
) -> (Arc<store::Gate>, Arc<Sessions>) {
    let store = Arc::new(store::Gate::new(storage.store));
    let sessions = Sessions::new(
        Arc::clone(&store) as Arc<dyn Store>,
        storage.keyring,
        session_options(config),
        rules,
        audit.clone(),
    );
    let tenants = tenants(config, &sessions, api_key);
    let sessions = sessions.with_max_stale(config.shared.max_stale);
    let sessions = sessions.with_quotas(quotas(config));
    (store, Arc::new(sessions.with_tenants(tenants)))
}

/// Makes the table of tenants, with the one of the configuration.
fn tenants(config: &Config, sessions: &Sessions, api_key: Fingerprint) -> Arc<Tenants> {
    let (limits, burst) = tenant_limits(config);
    let tenants = Tenants::new(Arc::clone(sessions.records()), limits, burst);
    Arc::new(tenants.with_key(&TenantId::new(TENANT), api_key))
}

/// Takes over the tenants and the sessions of the store, and goes on with a rotation of keys in the background.
async fn take_over(sessions: &Arc<Sessions>, may_go_back: bool) -> Result<(), Error> {
    let tenant::Loaded { tenants, refused } =
        sessions.tenants().load().await.map_err(Error::Tenants)?;
    tracing::info!(tenants, refused, "tenants of the store");
    let Loaded {
        live,
        expired,
        refused,
    } = if may_go_back {
        sessions.look_through().await
    } else {
        sessions.load().await
    }
    .map_err(Error::Sessions)?;
    tracing::info!(live, expired, refused, "sessions of the store");
    let sessions = Arc::clone(sessions);
    tokio::spawn(async move {
        match sessions.resume_rotation().await {
            Ok(done) if done.sealed > 0 => {
                tracing::info!(sessions = done.sealed, "sealed anew under the current key");
            }
            Ok(_nothing) => {}
            Err(error) => tracing::error!(%error, "sessions stay under an older key for now"),
        }
    });
    Ok(())
}

/// Starts what is done once a second: cuts in one task, so that a slow store delays none. A third task
/// follows what other nodes do.
fn sweepers(sessions: &Arc<Sessions>) -> [JoinHandle<()>; 3] {
    let follower = Arc::clone(sessions);
    let following = async move {
        let tenants = Arc::clone(follower.tenants());
        follower
            .follow(&move |record| Box::pin(take_in(Arc::clone(&tenants), record)))
            .await;
    };
    let (cutting, settling) = (Arc::clone(sessions), Arc::clone(sessions));
    // Not at once: a process that handed over tells first what it has used.
    let first = tokio::time::Instant::now() + SWEEP_EVERY;
    let cutting = async move {
        let mut ticks = tokio::time::interval_at(first, SWEEP_EVERY);
        loop {
            ticks.tick().await;
            cutting.cut_expired();
        }
    };
    let settling = async move {
        let mut ticks = tokio::time::interval(SWEEP_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            settling.settle().await;
        }
    };
    [
        tokio::spawn(cutting),
        tokio::spawn(settling),
        tokio::spawn(following),
    ]
}

/// Takes in a record that another node changed; without a key, all of them.
async fn take_in(tenants: Arc<Tenants>, record: Option<RecordKey>) -> Result<(), store::Error> {
    let done = match record {
        Some(key) => tenants.reload(&key, true).await,
        None => tenants.reload_all().await.map(drop),
    };
    match done {
        Err(tenant::Error::Store(error)) => Err(error),
        // What is refused was named, and who lives goes on: a forged record stops nobody.
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Makes a router the service that the proxy hands origin-form requests to.
fn local_service(router: axum::Router) -> Local {
    Arc::new(move |mut request: http::Request<Upload>| {
        let mut router = router.clone();
        if let Some(peer) = request.extensions_mut().remove::<Peer>() {
            let Peer {
                address,
                listener,
                tls,
                newcomer,
            } = peer;
            request.extensions_mut().insert(newcomer);
            request.extensions_mut().insert(Connection {
                peer: address,
                tls,
                listener,
            });
        }
        Box::pin(async move {
            let Ok(response) = router.call(request.map(axum::body::Body::new)).await;
            response.map(|body| body.map_err(Into::into).boxed_unsync())
        })
    })
}
