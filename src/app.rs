//! The composition root: a configuration becomes bound listeners and a running service.
//!
//! Everything that points upwards is handed in here: the routes to the proxy, the certificates to
//! the doors, the connection facts to the routes. Listeners are bound before anything is served,
//! so that a bad address is an error and port 0 is known. Called by the command line and by tests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::task::JoinHandle;
use tower_service::Service;

use crate::api::{self, Addresses, ApiState};
use crate::audit::Sink;
use crate::authority::{self, CertificateAuthority};
use crate::config::{Config, PublicUrl, Scheme, Trust};
use crate::host::Host;
use crate::id::TenantId;
use crate::policy::{AddressRules, Catalogue, known_token_endpoints};
use crate::proxy::{self, H2Limits, Local, LocalServer, Proxy, Upload};
use crate::seal::Keyring;
use crate::secret::Fingerprint;
use crate::serve::{self, Certificates, Door, FileCertificate, Handler, Peer, Room, Throttle};
use crate::session::{self, Loaded, Options, Quotas, Sessions};
use crate::shutdown::Drain;
use crate::store::{Memory, Store};
use crate::swap::Swapper;
use crate::upstream::{self, Override, Upstream};
use crate::web::{ApiKeys, Connection};
use crate::wire::{BodyLimits, HeadLimits};

/// The one tenant of this version.
pub const TENANT: &str = "default";
/// How often expired sessions and idle upstream connections are looked for, and the store is told.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// How long the last uses of sessions have to reach the store at the end.
const LAST_NOTES: Duration = Duration::from_secs(2);
/// The connections of the admin listener, which the operator's alone reach.
const ADMIN_CONNECTIONS: usize = 64;
/// How long a connection is read after its last answer.
const LINGER: Duration = Duration::from_secs(2);

/// Says why the service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
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
    /// The sessions of the store cannot be taken over.
    #[error("the sessions of the store cannot be taken over")]
    Sessions(#[source] session::Error),
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
    /// The tenant's API key, as it is kept.
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
    drain: Drain,
    audit: Sink,
    drain_timeout: Duration,
    sweepers: [JoinHandle<()>; 2],
}

impl App {
    /// Binds every listener, takes over the sessions of the store, then serves.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn start(config: &Config, parts: Parts) -> Result<Self, Error> {
        let Parts {
            authority,
            api_key,
            audit,
            storage,
        } = parts;
        let drain = Drain::new();
        let doors = Doors::bind(config, &authority).await?;
        let listening = doors.listening();
        let own = [listening.plain, listening.tls, listening.admin]
            .into_iter()
            .flatten();
        let rules = Arc::new(address_rules(config).with_own(own));
        let upstream = Upstream::new(upstream_config(config, Arc::clone(&rules))?);
        let upstream = Arc::new(upstream.map_err(Error::Upstream)?);
        let sessions = Sessions::new(
            storage.store,
            storage.keyring,
            session_options(config),
            rules,
            audit.clone(),
        );
        let sessions = Arc::new(sessions.with_quotas(quotas(config)));
        authority.keep_leaves(config.limits.leaves);
        let throttle = Arc::new(Throttle::new(
            config.limits.auth_failures,
            config.limits.auth_failure_window,
        ));
        take_over(&sessions).await?;
        let limits = proxy_config(config);
        let state = ApiState::new(
            Arc::clone(&sessions),
            ApiKeys::new(vec![(TenantId::new(TENANT), api_key)])
                .with_throttle(Arc::clone(&throttle)),
            api::Certificates::new(authority.root().cert_der()),
            addresses(config, &listening),
            drain.clone(),
        )
        .with_danger_plaintext_management(config.danger_plaintext_management);
        let local = |router: axum::Router| LocalServer {
            local: local_service(router),
            config: limits,
            drain: drain.clone(),
        };
        let admin = local(api::public_router(state.clone()));
        let proxy = Arc::new(Proxy {
            sessions: Arc::clone(&sessions),
            authority: Arc::clone(&authority),
            upstream,
            audit: audit.clone(),
            local: local(api::router(state)),
            config: limits,
            own: config
                .proxy
                .public_url
                .as_ref()
                .map(|url| url.authority.clone()),
            drain: drain.clone(),
            swapper: Swapper::new().with_limit(config.limits.swaps),
            throttle,
        });
        doors.run(&proxy, &admin, &drain);
        let sweepers = sweepers(&sessions);
        let drain_timeout = config.limits.drain_timeout;
        Ok(Self {
            listening,
            sessions,
            authority,
            proxy,
            drain,
            audit,
            drain_timeout,
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

    /// Returns the certificate authority.
    pub fn authority(&self) -> &Arc<CertificateAuthority> {
        &self.authority
    }

    /// Returns what serves the shared listeners, for a connection that comes in another way.
    pub fn handler(&self) -> Handler {
        handler(&self.proxy)
    }

    /// Stops accepting, lets exchanges finish, cuts what is left at the deadline.
    pub async fn drain(self) {
        let clean = self.drain.finish(self.drain_timeout).await;
        for sweeper in self.sweepers {
            sweeper.abort();
        }
        let noted = tokio::time::timeout(LAST_NOTES, self.sessions.note_all()).await;
        if noted.is_err() {
            tracing::warn!("the last uses of sessions did not reach the store");
        }
        tracing::info!(clean, "drained");
        self.audit.flush();
    }
}

/// The listeners, bound and not yet served.
struct Doors {
    plain: Option<Door>,
    tls: Option<Door>,
    admin: Option<Door>,
}

impl Doors {
    async fn bind(config: &Config, authority: &Arc<CertificateAuthority>) -> Result<Self, Error> {
        let limits = serve::Config {
            first_byte_timeout: config.limits.first_byte_timeout,
            handshake_timeout: config.limits.handshake_timeout,
            connections: config.limits.connections,
            newcomers: config.limits.unauthenticated_per_address,
        };
        let room = Room::new(&limits);
        let bind = async |key, address: Option<SocketAddr>, certificates, room: &Room| {
            let Some(address) = address else {
                return Ok(None);
            };
            let door = Door::bind(address, certificates, limits, room.clone()).await;
            door.map(Some).map_err(|source| Error::Bind {
                key,
                address,
                source,
            })
        };
        let certificates = match config.proxy.tls_listen {
            Some(_) => Some(certificates(config, authority)?),
            None => None,
        };
        // The admin listener answers even when the shared permits are all taken.
        let admin_room = Room::new(&serve::Config {
            connections: ADMIN_CONNECTIONS,
            newcomers: ADMIN_CONNECTIONS,
            ..limits
        });
        Ok(Self {
            plain: bind("proxy.listen", config.proxy.listen, None, &room).await?,
            tls: bind(
                "proxy.tls_listen",
                config.proxy.tls_listen,
                certificates,
                &room,
            )
            .await?,
            admin: bind("admin.listen", config.admin.listen, None, &admin_room).await?,
        })
    }

    fn listening(&self) -> Listening {
        let address = |door: &Option<Door>| door.as_ref().map(Door::address);
        Listening {
            plain: address(&self.plain),
            tls: address(&self.tls),
            admin: address(&self.admin),
        }
    }

    fn run(self, proxy: &Arc<Proxy>, admin: &LocalServer, drain: &Drain) {
        for door in [self.plain, self.tls].into_iter().flatten() {
            drain.spawn(door.run(handler(proxy), drain.clone()));
        }
        if let Some(door) = self.admin {
            let admin = admin.clone();
            let handler: Handler =
                Arc::new(move |io, peer| Box::pin(admin.clone().serve(io, peer)));
            drain.spawn(door.run(handler, drain.clone()));
        }
    }
}

fn handler(proxy: &Arc<Proxy>) -> Handler {
    let proxy = Arc::clone(proxy);
    Arc::new(move |io, peer| Box::pin(Arc::clone(&proxy).serve(io, peer)))
}

/// Takes over the sessions of the store, and goes on with a rotation of keys in the background.
async fn take_over(sessions: &Arc<Sessions>) -> Result<(), Error> {
    let Loaded {
        live,
        expired,
        refused,
    } = sessions.load().await.map_err(Error::Sessions)?;
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

/// Starts what is done once a second: cuts in one task, so that a slow store delays none.
fn sweepers(sessions: &Arc<Sessions>) -> [JoinHandle<()>; 2] {
    let (cutting, settling) = (Arc::clone(sessions), Arc::clone(sessions));
    let cutting = async move {
        let mut ticks = tokio::time::interval(SWEEP_EVERY);
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
    [tokio::spawn(cutting), tokio::spawn(settling)]
}

/// Finds the listener's certificate: from files, or minted by our own CA.
fn certificates(
    config: &Config,
    authority: &Arc<CertificateAuthority>,
) -> Result<Certificates, Error> {
    if let (Some(certificate), Some(key)) = (&config.proxy.tls_cert, &config.proxy.tls_key) {
        let files = FileCertificate::load(certificate.clone(), key.clone());
        let files = Arc::new(files.map_err(Error::Certificate)?);
        return Ok(Arc::new(move |_name, _listener| {
            let current = files.current();
            Box::pin(async move { Some(current) })
        }));
    }
    let authority = Arc::clone(authority);
    let public = config
        .proxy
        .public_url
        .as_ref()
        .map(|url| url.authority.host.clone());
    Ok(Arc::new(move |name, listener| {
        let (authority, public) = (Arc::clone(&authority), public.clone());
        Box::pin(async move {
            let host = listener_host(name.as_deref(), listener, public.as_ref());
            let config = authority.server_config(&host).await;
            config
                .inspect_err(|error| tracing::error!(%error, "no certificate to serve"))
                .ok()
        })
    }))
}

/// Decides for which host the listener's certificate is: the name asked for, if it is ours, else
/// the address that was connected to.
fn listener_host(name: Option<&str>, listener: SocketAddr, public: Option<&Host>) -> Host {
    let asked = name.and_then(|name| Host::parse(name).ok());
    match asked {
        Some(host) if host.name() == Some("localhost") || Some(&host) == public => host,
        _ => Host::from(listener.ip().to_canonical()),
    }
}

fn address_rules(config: &Config) -> AddressRules {
    AddressRules::new(config.upstream.allow_cidrs.clone(), config.dev)
}

fn upstream_config(config: &Config, rules: Arc<AddressRules>) -> Result<upstream::Config, Error> {
    let answers = config.upstream.resolve.iter();
    let overrides = answers
        .map(|answer| Override {
            host: answer.host.clone(),
            ip: answer.ip,
            port: answer.port,
        })
        .collect();
    Ok(upstream::Config {
        overrides,
        roots: Arc::new(roots(config)?),
        rules,
        proxy: config.upstream.proxy.clone(),
        dns_timeout: config.limits.dns_timeout,
        connect_timeout: config.limits.connect_timeout,
        handshake_timeout: config.limits.handshake_timeout,
    })
}

/// Gathers the certificates that upstreams are verified against.
fn roots(config: &Config) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    if config.upstream.trust == Trust::System {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "a root of the system cannot be read");
        }
        let (added, _ignored) = roots.add_parsable_certificates(found.certs);
        if added == 0 {
            return Err(Error::SystemTrust);
        }
    }
    for path in &config.upstream.ca_files {
        add_file(&mut roots, path).ok_or_else(|| Error::CaFile { path: path.clone() })?;
    }
    Ok(roots)
}

/// Adds the certificates of a file; nothing if one is bad or there is none.
fn add_file(roots: &mut RootCertStore, path: &Path) -> Option<()> {
    let mut any = None;
    for certificate in CertificateDer::pem_file_iter(path).ok()? {
        roots.add(certificate.ok()?).ok()?;
        any = Some(());
    }
    any
}

fn session_options(config: &Config) -> Options {
    Options {
        catalogue: Arc::new(Catalogue::builtin()),
        token_endpoints: known_token_endpoints(),
        unscoped_secrets: config.danger_unscoped_secrets,
        any_port: config.dev,
    }
}

fn quotas(config: &Config) -> Quotas {
    Quotas {
        tunnels: config.limits.session_tunnels,
        exchanges: config.limits.session_exchanges,
        wait: config.limits.session_wait,
        requests_per_second: config.limits.session_requests_per_second,
        burst: config.limits.session_burst,
        pool: config.limits.session_pool,
    }
}

fn proxy_config(config: &Config) -> proxy::Config {
    let limits = &config.limits;
    let exchanges = u32::try_from(limits.session_exchanges).unwrap_or(u32::MAX);
    let bytes = |limit: u32| usize::try_from(limit).unwrap_or(usize::MAX);
    proxy::Config {
        first_byte_timeout: config.limits.first_byte_timeout,
        head_timeout: config.limits.head_timeout,
        handshake_timeout: config.limits.handshake_timeout,
        idle_timeout: config.limits.idle_timeout,
        stall_timeout: config.limits.stall_timeout,
        websocket_idle_timeout: config.limits.websocket_idle_timeout,
        passthrough_idle_timeout: config.limits.passthrough_idle_timeout,
        unknown_codings: config.danger_unscrubbed_codings,
        linger_timeout: LINGER,
        answer_timeout: limits.answer_timeout,
        exchange_idle_timeout: limits.exchange_idle_timeout,
        head: HeadLimits {
            bytes: bytes(limits.head_bytes),
            fields: limits.head_fields,
            target_bytes: bytes(limits.target_bytes),
        },
        body: BodyLimits {
            bytes: limits.request_body_bytes,
            extension_bytes: bytes(limits.chunk_extension_bytes),
        },
        h2: H2Limits {
            // A client that keeps to it is never refused for the streams of this connection alone.
            streams: limits.h2_streams.min(exchanges),
            stream_window_bytes: limits.h2_stream_window_bytes,
            connection_window_bytes: limits.h2_connection_window_bytes,
            header_list_bytes: limits.h2_header_list_bytes,
            pending_resets: limits.h2_pending_resets,
            error_resets: limits.h2_error_resets,
            given_up: limits.h2_given_up,
        },
    }
}

/// Decides which addresses stand in the proxy URLs that are handed out.
fn addresses(config: &Config, listening: &Listening) -> Addresses {
    let public = config.proxy.public_url.as_ref();
    let named = |scheme| public.filter(|url: &&PublicUrl| url.scheme == scheme);
    let bound = |address: Option<SocketAddr>| {
        address.map(|address| match public {
            Some(url) if address.ip().is_unspecified() => {
                format!("{}:{}", url.authority.host, address.port())
            }
            _ => reachable(address).to_string(),
        })
    };
    let text = |url: &PublicUrl| url.authority.to_string();
    Addresses {
        tls: named(Scheme::Https)
            .map(text)
            .or_else(|| bound(listening.tls)),
        plain: named(Scheme::Http)
            .map(text)
            .or_else(|| bound(listening.plain)),
    }
}

/// Returns an address that a client on this machine can connect to.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
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
