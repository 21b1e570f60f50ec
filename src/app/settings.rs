//! What each module is told: the configuration, in the form that the module defined for itself.
//!
//! Values are copied and converted here, and nothing is checked or defaulted: that happened when
//! the configuration was read. Called by the composition root alone.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::Error;
use crate::config::{Config, Trust};
use crate::policy::{AddressRules, Catalogue, known_token_endpoints};
use crate::proxy::{self, H2Limits};
use crate::serve::Throttle;
use crate::session::{Options, Quotas};
use crate::tenant;
use crate::upstream::{self, Override};
use crate::wire::{BodyLimits, HeadLimits};

/// How long a connection is read after its last answer.
const LINGER: Duration = Duration::from_secs(2);

pub(super) fn address_rules(config: &Config) -> AddressRules {
    AddressRules::new(config.upstream.allow_cidrs.clone(), config.dev)
}

pub(super) fn upstream_config(
    config: &Config,
    rules: Arc<AddressRules>,
) -> Result<upstream::Config, Error> {
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

/// Gathers the certificates that upstreams, and a shared store, are verified against.
///
/// # Errors
/// [`Error::SystemTrust`], [`Error::CaFile`].
pub fn roots(config: &Config) -> Result<RootCertStore, Error> {
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

pub(super) fn session_options(config: &Config) -> Options {
    Options {
        catalogue: Arc::new(Catalogue::builtin()),
        token_endpoints: known_token_endpoints(),
        unscoped_secrets: config.danger_unscoped_secrets,
        any_port: config.dev,
    }
}

pub(super) fn throttle(config: &Config) -> Throttle {
    Throttle::new(
        config.limits.auth_failures,
        config.limits.auth_failure_window,
    )
}

pub(super) fn quotas(config: &Config) -> Quotas {
    Quotas {
        connections: config.limits.session_connections,
        tunnels: config.limits.session_tunnels,
        exchanges: config.limits.session_exchanges,
        wait: config.limits.session_wait,
        requests_per_second: config.limits.session_requests_per_second,
        burst: config.limits.session_burst,
        pool: config.limits.session_pool,
    }
}

/// What holds for tenants that have no limits of their own, and their burst.
pub(super) fn tenant_limits(config: &Config) -> (tenant::Limits, u32) {
    let limits = tenant::Limits {
        sessions: config.limits.tenant_sessions,
        requests_per_second: config.limits.tenant_requests_per_second,
    };
    (limits, config.limits.tenant_burst)
}

pub(super) fn proxy_config(config: &Config) -> proxy::Config {
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
