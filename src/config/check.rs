//! The order of the sources, and the rules between settings.
//!
//! A rule is only asked where the settings it reads were understood: one mistake is one problem.
//! What `--dev` implies is written out here and nowhere else.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use super::gateway;
use super::github;
use super::raw::Reading;
use super::settings::{Draft, find};
use super::source::{Flags, Source};
use super::value::UnscopedSecrets;
use super::{AuditSink, Config, Origin, Problem, Problems, Store, loopback};
use crate::policy::{AddressRules, Refused, vet};
use crate::secret::Fingerprint;
use crate::upstream::UpstreamProxy;

const LISTEN: &str = "proxy.listen";
const TLS_LISTEN: &str = "proxy.tls_listen";
const ADMIN_LISTEN: &str = "admin.listen";
const API_KEY: &str = "api_key";
const API_KEY_FILE: &str = "api_key_file";
const ADMIN_KEY: &str = "admin_key";
const ADMIN_KEY_FILE: &str = "admin_key_file";
/// The fewest characters of the operator's key, who may do everything.
const ADMIN_KEY_LEAST_CHARACTERS: usize = 32;
const STATE_DIR: &str = "state_dir";
const TLS_CERT: &str = "proxy.tls_cert";
const TLS_KEY: &str = "proxy.tls_key";
const UNSCOPED: &str = "danger_unscoped_secrets";
const PUBLIC_URL: &str = "proxy.public_url";
const STORE_URL: &str = "store.url";
const STORE_URL_FILE: &str = "store.url_file";
const UPSTREAM_PROXY: &str = "upstream.proxy";
const UPSTREAM_PROXY_FILE: &str = "upstream.proxy_file";
/// The largest part of the connections that can be kept from workloads, in percent.
const MOST_RESERVED: usize = 90;
/// The most fields of a head that can be allowed: the maps of the HTTP library end at 24,576, and
/// not with an error.
const MOST_FIELDS: usize = 10_000;
/// The highest rate of requests that can be set. Above a thousand times that none would be counted.
const MOST_A_SECOND: u32 = 1_000_000;
/// How many windows of a stream the window of an HTTP/2 connection has at least, or one stream of
/// small frames can end the others.
const WINDOWS: u64 = 16;
const AUDIT_FILE: &str = "audit.file";
const AUDIT_ROTATE: &str = "audit.rotate_bytes";
const AUDIT_SINK: &str = "audit.sink";
/// The smallest file of audit records: one that holds more than its own first and last line.
const AUDIT_LEAST_BYTES: u64 = 4096;
/// The places that sealing keys may come from.
const SEAL_KEYS: [&str; 3] = ["seal.key", "seal.key_file", "seal.key_command"];
#[cfg(test)]
/// The settings whose default depends on `--dev`: [`apply_dev`] fills them.
pub(super) const DEPENDS_ON_DEV: &[&str] = &[UNSCOPED, TLS_LISTEN];
/// The port of the TLS listener that `--dev` opens.
const DEV_TLS_PORT: u16 = 8443;

/// Reads all sources in their order and checks the rules of a server.
pub(super) fn load(source: &Source) -> Result<Config, Problems> {
    let mut reading = Reading::default();
    reading.read_file(source);
    reading.read_environment(source);
    reading.read_flags(source.flags());
    apply_dev(&mut reading);
    read_api_key(&mut reading, source);
    read_admin_key(&mut reading, source);
    find_state_dir(&mut reading, source);
    check_listeners(&mut reading);
    check_tls(&mut reading);
    read_upstream_proxy(&mut reading, source);
    read_store_url(&mut reading, source);
    gateway::read_secrets(&mut reading, source);
    gateway::check(&mut reading);
    gateway::check_books(&mut reading);
    github::check(&mut reading);
    check_seal(&mut reading);
    check_limits(&mut reading);
    check_audit(&mut reading);
    finish(reading)
}

/// Reads all sources with the secrets of the gateway, without the rules of a server.
pub(super) fn load_gateway(source: &Source) -> Result<Config, Problems> {
    let mut reading = Reading::default();
    reading.read_file(source);
    reading.read_environment(source);
    reading.read_flags(source.flags());
    gateway::read_secrets(&mut reading, source);
    finish(reading)
}

/// Reads all sources, without the rules of a server.
pub(super) fn load_state(source: &Source) -> Result<Config, Problems> {
    let mut reading = Reading::default();
    reading.read_file(source);
    reading.read_environment(source);
    reading.read_flags(source.flags());
    find_state_dir(&mut reading, source);
    read_store_url(&mut reading, source);
    check_seal(&mut reading);
    finish(reading)
}

/// Reads flags alone, without the rules of a server.
pub(super) fn from_flags(flags: &Flags) -> Result<Config, Problems> {
    let mut reading = Reading::default();
    reading.read_flags(flags);
    finish(reading)
}

/// Finds the state directory: the one named, else `OSHU_VAULT__STATE_DIR`, else the user's. For
/// commands that need it and no other setting.
///
/// # Errors
/// A problem where neither `XDG_STATE_HOME` nor `HOME` is an absolute path.
pub fn state_dir(named: Option<&Path>, source: &Source) -> Result<PathBuf, Problems> {
    let variable = find(STATE_DIR).and_then(super::Setting::variable);
    let given = variable
        .and_then(|name| source.variable(&name))
        .map(Path::new)
        .filter(|path| !path.as_os_str().is_empty());
    named
        .or(given)
        .map(Path::to_owned)
        .or_else(|| default_state_dir(source))
        .ok_or_else(|| Problems(vec![state_dir_missing()]))
}

fn finish(reading: Reading) -> Result<Config, Problems> {
    let Reading {
        draft, problems, ..
    } = reading;
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    let Draft {
        mut config,
        state_dir,
        unscoped_secrets,
        api_key_file: _,
        admin_key_file: _,
        upstream_proxy_file: _,
        secret_files: _,
        store_url_file: _,
    } = draft;
    config.state_dir = state_dir.unwrap_or_default();
    config.danger_unscoped_secrets = matches!(unscoped_secrets, UnscopedSecrets::AnyHost);
    Ok(config)
}

/// Opens what `--dev` opens, where nothing else was said.
fn apply_dev(reading: &mut Reading) {
    if !reading.draft.config.dev {
        return;
    }
    if !reading.is_given(UNSCOPED) {
        reading.draft.unscoped_secrets = UnscopedSecrets::AnyHost;
    }
    if !reading.is_given(TLS_LISTEN) {
        reading.draft.config.proxy.tls_listen = Some(loopback(DEV_TLS_PORT));
    }
}

fn read_api_key(reading: &mut Reading, source: &Source) {
    if !reading.trusts(&[API_KEY, API_KEY_FILE]) {
        return;
    }
    let file = reading.draft.api_key_file.take();
    match (&reading.draft.config.api_key, file) {
        (Some(_), Some(_)) => {
            let origin = reading.origin(API_KEY_FILE);
            let expectation = format!(
                "is given beside the key itself ({})",
                reading.origin(API_KEY)
            );
            reading.report(API_KEY_FILE, expectation, origin);
        }
        (None, Some(path)) => match source.read_api_key(&path) {
            Ok(key) => reading.draft.config.api_key = Some(key),
            Err(expectation) => {
                let origin = reading.origin(API_KEY_FILE);
                reading.report(API_KEY_FILE, expectation, origin);
            }
        },
        (None, None) if !reading.draft.config.dev => reading.report(
            API_KEY,
            "expects SECRETS_PROXY_API_KEY with at least 16 characters, or api_key_file, or --dev",
            Origin::Missing,
        ),
        (_, None) => {}
    }
}

fn read_admin_key(reading: &mut Reading, source: &Source) {
    if !reading.trusts(&[ADMIN_KEY, ADMIN_KEY_FILE]) {
        return;
    }
    let mut place = ADMIN_KEY;
    if let Some(path) = reading.draft.admin_key_file.take() {
        place = ADMIN_KEY_FILE;
        let origin = reading.origin(place);
        if reading.draft.config.admin_key.is_some() {
            let other = reading.origin(ADMIN_KEY);
            let expectation = format!("is given beside the key itself ({other})");
            return reading.report(place, expectation, origin);
        }
        match source.read_api_key(&path) {
            Ok(key) => reading.draft.config.admin_key = Some(key),
            Err(expectation) => return reading.report(place, expectation, origin),
        }
    }
    let Some(key) = &reading.draft.config.admin_key else {
        return;
    };
    let tenant = reading.draft.config.api_key.as_ref();
    let expectation = if key.len() < ADMIN_KEY_LEAST_CHARACTERS {
        format!("expects at least {ADMIN_KEY_LEAST_CHARACTERS} characters")
    } else if tenant.is_some_and(|tenant| Fingerprint::of(tenant.expose()).matches(key.expose())) {
        "expects another key than api_key".to_owned()
    } else {
        return;
    };
    let origin = reading.origin(place);
    reading.report(place, expectation, origin);
}

/// Refuses sealing keys from two places: nobody could say which of them seal.
fn check_seal(reading: &mut Reading) {
    let given: Vec<&str> = SEAL_KEYS
        .into_iter()
        .filter(|key| reading.is_given(key))
        .collect();
    if let [first, others @ ..] = given.as_slice() {
        for key in others {
            let expectation = format!("is given beside {first} ({})", reading.origin(first));
            let origin = reading.origin(key);
            reading.report(key, expectation, origin);
        }
    }
}

/// Refuses a file that nothing would be written to, and files of a line or two.
fn check_audit(reading: &mut Reading) {
    let audit = &reading.draft.config.audit;
    let is_small = audit.rotate_bytes < AUDIT_LEAST_BYTES;
    let is_unused = audit.file.is_some() && audit.sink == AuditSink::Stdout;
    if is_small && reading.trusts(&[AUDIT_ROTATE]) {
        let origin = reading.origin(AUDIT_ROTATE);
        let expectation = format!("expects at least {AUDIT_LEAST_BYTES} bytes");
        reading.report(AUDIT_ROTATE, expectation, origin);
    }
    if is_unused && reading.trusts(&[AUDIT_SINK, AUDIT_FILE]) {
        let origin = reading.origin(AUDIT_FILE);
        reading.report(
            AUDIT_FILE,
            "has no use without audit.sink = \"file\"",
            origin,
        );
    }
}

/// Reads the file that the URL of the upstream proxy may stand in, and refuses one of our own
/// listeners: every request would come back to where it left.
fn read_upstream_proxy(reading: &mut Reading, source: &Source) {
    if !reading.trusts(&[UPSTREAM_PROXY, UPSTREAM_PROXY_FILE]) {
        return;
    }
    let mut key = UPSTREAM_PROXY;
    if let Some(path) = reading.draft.upstream_proxy_file.take() {
        key = UPSTREAM_PROXY_FILE;
        let origin = reading.origin(key);
        if reading.draft.config.upstream.proxy.is_some() {
            let other = reading.origin(UPSTREAM_PROXY);
            let expectation = format!("is given beside {UPSTREAM_PROXY} ({other})");
            return reading.report(key, expectation, origin);
        }
        match source.read_upstream_proxy(&path) {
            Ok(proxy) => reading.draft.config.upstream.proxy = Some(proxy),
            Err(expectation) => return reading.report(key, expectation, origin),
        }
    }
    let config = &reading.draft.config;
    let ours = config.upstream.proxy.as_ref();
    if ours.is_some_and(|proxy| names_us(config, proxy)) {
        let origin = reading.origin(key);
        reading.report(key, "expects another proxy than this one", origin);
    }
}

/// Reads the file that the URL of the store may stand in.
fn read_store_url(reading: &mut Reading, source: &Source) {
    if !reading.trusts(&[STORE_URL, STORE_URL_FILE]) {
        return;
    }
    let Some(path) = reading.draft.store_url_file.take() else {
        return;
    };
    let origin = reading.origin(STORE_URL_FILE);
    // The default that stands in the commented file says nothing.
    if reading.draft.config.store != Store::Redb {
        let other = reading.origin(STORE_URL);
        let expectation = format!("is given beside {STORE_URL} ({other})");
        return reading.report(STORE_URL_FILE, expectation, origin);
    }
    match source.read_store_url(&path) {
        Ok(address) => reading.draft.config.store = Store::Shared(address),
        Err(expectation) => reading.report(STORE_URL_FILE, expectation, origin),
    }
}

/// Tells whether the proxy is one of our listeners, as far as it can be told without a look-up; the
/// rest is told when it is dialled.
fn names_us(config: &Config, proxy: &UpstreamProxy) -> bool {
    let target = proxy.authority();
    let public = config.proxy.public_url.as_ref();
    if public.is_some_and(|url| url.authority == *target) {
        return true;
    }
    let own = [
        config.proxy.listen,
        config.proxy.tls_listen,
        config.admin.listen,
    ];
    let rules = AddressRules::new(Vec::new(), true).with_own(own.into_iter().flatten());
    let ip = match target.host.name() {
        Some("localhost") => Some(loopback(target.port).ip()),
        _ => target.host.ip(),
    };
    ip.is_some_and(|ip| vet(&[ip], target.port, &rules) == Err(Refused::OwnListener))
}

fn find_state_dir(reading: &mut Reading, source: &Source) {
    if reading.draft.state_dir.is_some() || !reading.trusts(&[STATE_DIR]) {
        return;
    }
    reading.draft.state_dir = default_state_dir(source);
    if reading.draft.state_dir.is_none() {
        reading.problems.push(state_dir_missing());
    }
}

/// Relative paths are passed over, as the XDG base directory specification asks.
fn default_state_dir(source: &Source) -> Option<PathBuf> {
    let absolute = |name: &str| {
        let path = Path::new(source.variable(name)?);
        path.is_absolute().then(|| path.to_owned())
    };
    let state = absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))?;
    Some(state.join("oshu-vault"))
}

fn state_dir_missing() -> Problem {
    Problem::new(
        STATE_DIR,
        "expects a path, since neither XDG_STATE_HOME nor HOME is an absolute one",
        Origin::Missing,
    )
}

fn check_listeners(reading: &mut Reading) {
    let proxy = &reading.draft.config.proxy;
    let dev = reading.draft.config.dev;
    let admin = reading.draft.config.admin.listen;
    let listeners = [(LISTEN, proxy.listen), (TLS_LISTEN, proxy.tls_listen)];
    let has_public_url = proxy.public_url.is_some();
    if listeners.iter().all(|(_, address)| address.is_none())
        && reading.trusts(&[LISTEN, TLS_LISTEN])
    {
        let origin = reading.origin(LISTEN);
        reading.report(
            LISTEN,
            "expects an address where tls_listen has none",
            origin,
        );
    }
    let open: Vec<&str> = listeners
        .into_iter()
        .filter(|(key, address)| is_open(*address) && reading.trusts(&[key]))
        .map(|(key, _)| key)
        .collect();
    if dev {
        for key in &open {
            let origin = reading.origin(key);
            reading.report(key, "expects a loopback address with --dev", origin);
        }
    } else if let Some(key) = open.first()
        && !has_public_url
        && reading.trusts(&[PUBLIC_URL])
    {
        reading.report(
            PUBLIC_URL,
            format!("expects the URL that workloads use, since {key} is not on loopback"),
            Origin::Missing,
        );
    }
    if is_open(admin) && reading.trusts(&[ADMIN_LISTEN]) {
        let origin = reading.origin(ADMIN_LISTEN);
        let expectation = if dev {
            "expects a loopback address with --dev"
        } else {
            "expects a loopback address; others are not available in this version: they need the \
             admin key"
        };
        reading.report(ADMIN_LISTEN, expectation, origin);
    }
}

fn check_tls(reading: &mut Reading) {
    let proxy = &reading.draft.config.proxy;
    let (listen, cert, key) = (
        proxy.tls_listen.is_some(),
        proxy.tls_cert.is_some(),
        proxy.tls_key.is_some(),
    );
    let dev = reading.draft.config.dev;
    if !reading.trusts(&[TLS_LISTEN, TLS_CERT, TLS_KEY]) {
        return;
    }
    for (name, given, other, other_given) in [
        (TLS_CERT, cert, TLS_KEY, key),
        (TLS_KEY, key, TLS_CERT, cert),
    ] {
        if given && !listen {
            let origin = reading.origin(name);
            reading.report(name, "has no use without proxy.tls_listen", origin);
        } else if !given && other_given {
            reading.report(
                name,
                format!("expects a file beside {other}"),
                Origin::Missing,
            );
        } else if !given && listen && !dev {
            reading.report(
                name,
                "expects a file, since proxy.tls_listen is set without --dev",
                Origin::Missing,
            );
        }
    }
}

/// Refuses limits that one cannot have, by themselves or beside each other.
fn check_limits(reading: &mut Reading) {
    let limits = reading.draft.config.limits.clone();
    let fields = limits.head_fields;
    let rate = limits.session_requests_per_second.unwrap_or(1);
    for (key, is_over, expects) in [
        (
            "limits.reserved_percent",
            limits.reserved_percent > MOST_RESERVED,
            format!("expects a whole number from 1 to {MOST_RESERVED}"),
        ),
        (
            "limits.head_fields",
            fields > MOST_FIELDS,
            format!("expects a whole number from 1 to {MOST_FIELDS}"),
        ),
        (
            "limits.session_requests_per_second",
            rate > MOST_A_SECOND,
            format!("expects a whole number from 1 to {MOST_A_SECOND}, or none"),
        ),
    ] {
        if is_over {
            let origin = reading.origin(key);
            reading.report(key, expects, origin);
        }
    }
    if limits.session_connections < limits.session_tunnels {
        let keys = ("limits.session_connections", "limits.session_tunnels");
        report_pair(reading, keys, ("at least", "at most"));
    }
    let needed = u64::from(limits.h2_stream_window_bytes) * WINDOWS;
    if u64::from(limits.h2_connection_window_bytes) < needed {
        let keys = (
            "limits.h2_connection_window_bytes",
            "limits.h2_stream_window_bytes",
        );
        let (least, most) = (
            format!("at least {WINDOWS} times"),
            format!("at most 1/{WINDOWS} of"),
        );
        report_pair(reading, keys, (&least, &most));
    }
}

/// Reports that the first of two settings is too small for the second: of the two, the one that was
/// given is the one to change.
fn report_pair(
    reading: &mut Reading,
    (large, small): (&'static str, &'static str),
    (least, most): (&str, &str),
) {
    if !reading.trusts(&[large, small]) {
        return;
    }
    let (key, wanted, other) = if reading.is_given(large) {
        (large, least, small)
    } else {
        (small, most, large)
    };
    let expectation = format!("expects {wanted} {other} ({})", reading.origin(other));
    let origin = reading.origin(key);
    reading.report(key, expectation, origin);
}

/// Tells whether somebody on another machine can reach the address.
fn is_open(address: Option<SocketAddr>) -> bool {
    let canonical: Option<IpAddr> = address.map(|address| address.ip().to_canonical());
    canonical.is_some_and(|ip| !ip.is_loopback())
}
