//! Names to addresses: the operator's overrides, then DNS. It decides nothing about the addresses.

use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolverOpts};
#[cfg(test)]
use hickory_resolver::config::{NameServerConfig, ResolverConfig};
#[cfg(test)]
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use tokio::time::timeout;

use super::{Error, Found, Override};
use crate::host::{Host, HostPort};

/// Sets what does not depend on the system.
fn settle(options: &mut ResolverOpts) {
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.timeout = Duration::from_secs(2);
    options.attempts = 2;
}

/// Looks names up.
pub(super) struct Resolver {
    overrides: Vec<Override>,
    dns: TokioResolver,
    within: Duration,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver")
            .field("overrides", &self.overrides)
            .finish_non_exhaustive()
    }
}

impl Resolver {
    /// Reads the system's resolver configuration. DNSSEC validation is off: the build has none.
    pub(super) fn new(overrides: Vec<Override>, within: Duration) -> Result<Self, Error> {
        let set_up = |error: hickory_resolver::net::NetError| Error::Resolver(Box::new(error));
        let mut builder = TokioResolver::builder_tokio().map_err(set_up)?;
        settle(builder.options_mut());
        Ok(Self {
            overrides,
            dns: builder.build().map_err(set_up)?,
            within,
        })
    }

    /// Asks a server of a test's, and reads nothing of the system.
    #[cfg(test)]
    pub(super) fn asking(server: std::net::SocketAddr, within: Duration) -> Self {
        let mut config = NameServerConfig::udp_and_tcp(server.ip());
        for connection in &mut config.connections {
            connection.port = server.port();
        }
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![config]);
        let mut builder =
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        settle(builder.options_mut());
        // A machine under load answers late, and only `within` is what a test is about.
        builder.options_mut().timeout = Duration::from_secs(30);
        Self {
            overrides: Vec::new(),
            dns: builder.build().unwrap(),
            within,
        }
    }

    /// Finds the addresses of a target.
    pub(super) async fn look_up(&self, target: &HostPort) -> Result<Found, Error> {
        if let Some(answer) = self
            .overrides
            .iter()
            .find(|answer| answer.host == target.host)
        {
            let port = answer.port.unwrap_or(target.port);
            return Ok(Found {
                addresses: vec![answer.ip],
                port,
            });
        }
        let addresses = match &target.host {
            Host::V4(address) => vec![(*address).into()],
            Host::V6(address) => vec![(*address).into()],
            Host::Name(name) => self.ask(name).await?,
        };
        Ok(Found {
            addresses,
            port: target.port,
        })
    }

    async fn ask(&self, name: &str) -> Result<Vec<std::net::IpAddr>, Error> {
        // The final dot keeps search domains out: the name is the one that was granted.
        let absolute = format!("{name}.");
        match timeout(self.within, self.dns.lookup_ip(absolute)).await {
            Err(_elapsed) => Err(Error::DnsTimeout),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a name did not resolve");
                Err(Error::Dns)
            }
            Ok(Ok(found)) => Ok(found.iter().collect()),
        }
    }
}
