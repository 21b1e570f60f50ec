//! The doors: every listener bound before one is served, and the certificates they show.
//!
//! Nothing here decides who may come in; that is the matter of `serve` and of the proxy. Called by
//! the composition root alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::{Error, Listening};
use crate::api::Addresses;
use crate::authority::CertificateAuthority;
use crate::config::{Config, Limits, PublicUrl, Scheme};
use crate::host::Host;
use crate::proxy::{LocalServer, Proxy};
use crate::serve::{self, Certificates, Door, FileCertificate, Gate, Handler, Room, Sockets};
use crate::shutdown::Drain;

/// The connections of the admin listener, which the operator's alone reach.
const ADMIN_CONNECTIONS: usize = 64;

/// The names of the listeners, for sockets that come from elsewhere.
const PLAIN: &str = "listen";
const TLS: &str = "tls_listen";
const ADMIN: &str = "admin_listen";

/// The listeners, bound and not yet served.
pub(super) struct Doors {
    plain: Option<Door>,
    tls: Option<Door>,
    admin: Option<Door>,
    room: Room,
}

impl Doors {
    /// Takes the sockets that others bound, and binds those that are missing. Every socket that has
    /// to be taken has to be one of the configuration's.
    pub(super) async fn bind(
        config: &Config,
        authority: &Arc<CertificateAuthority>,
        mut sockets: Sockets,
        gate: &Gate,
    ) -> Result<Self, Error> {
        let limits = serve::Config {
            first_byte_timeout: config.limits.first_byte_timeout,
            handshake_timeout: config.limits.handshake_timeout,
            connections: config.limits.connections,
            workloads: workloads(&config.limits),
            newcomers: config.limits.unauthenticated_per_address,
        };
        if config.limits.session_connections > limits.workloads / 2 {
            tracing::warn!(
                session_connections = config.limits.session_connections,
                workloads = limits.workloads,
                "one session may take most of the connections that workloads have together"
            );
        }
        let room = Room::new(&limits);
        let mut bind =
            async |(key, name), address: Option<SocketAddr>, certificates, room: &Room| {
                let Some(address) = address else {
                    return Ok(None);
                };
                let from = (&mut sockets, gate);
                let door =
                    Door::take_or_bind((name, address), from, certificates, limits, room.clone())
                        .await;
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
            workloads: ADMIN_CONNECTIONS,
            newcomers: ADMIN_CONNECTIONS,
            ..limits
        });
        let (plain, tls) = (config.proxy.listen, config.proxy.tls_listen);
        let doors = Self {
            plain: bind(("proxy.listen", PLAIN), plain, None, &room).await?,
            tls: bind(("proxy.tls_listen", TLS), tls, certificates, &room).await?,
            admin: bind(
                ("admin.listen", ADMIN),
                config.admin.listen,
                None,
                &admin_room,
            )
            .await?,
            room,
        };
        if let Some((name, address)) = sockets.left().next() {
            return Err(Error::Socket {
                name: name.to_owned(),
                address,
            });
        }
        Ok(doors)
    }

    pub(super) fn listening(&self) -> Listening {
        let address = |door: &Option<Door>| door.as_ref().map(Door::address);
        Listening {
            plain: address(&self.plain),
            tls: address(&self.tls),
            admin: address(&self.admin),
        }
    }

    /// Returns what the shared listeners have room for.
    pub(super) fn room(&self) -> &Room {
        &self.room
    }

    pub(super) fn run(self, proxy: &Arc<Proxy>, admin: &LocalServer, drain: &Drain) {
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

/// Returns how many connections workloads may have: what is left over is for the management API, and
/// for those who have not shown yet who they are.
fn workloads(limits: &Limits) -> usize {
    let reserved = limits
        .connections
        .saturating_mul(limits.reserved_percent)
        .div_ceil(100);
    limits.connections.saturating_sub(reserved).max(1)
}

pub(super) fn handler(proxy: &Arc<Proxy>) -> Handler {
    let proxy = Arc::clone(proxy);
    Arc::new(move |io, peer| Box::pin(Arc::clone(&proxy).serve(io, peer)))
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

/// Decides which addresses stand in the proxy URLs that are handed out.
pub(super) fn addresses(config: &Config, listening: &Listening) -> Addresses {
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
