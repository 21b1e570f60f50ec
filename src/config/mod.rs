//! The configuration: what the operator may set, where it may be set, and what follows from it.
//!
//! Defaults come first, then one TOML file, then the environment, then the command line. Every
//! problem of every source is collected and reported at once, by key and place; the value that was
//! given is never shown, because it may be a secret that was put in the wrong line. Called by
//! `app` and `cli`; nothing below may import it.

mod check;
mod gateway;
mod github;
mod raw;
mod settings;
mod show;
mod source;
mod store;
mod value;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::host::{Host, HostPort};
use crate::policy::Cidr;
use crate::secret::Secret;
use crate::telemetry::LogFormat;
use crate::upstream::UpstreamProxy;

pub use check::state_dir;
pub use gateway::{
    Gateway, PageUrl, Payment, PaymentProvider, PaymentStripe, PaymentWorkos, ServiceUrl, Word,
};
pub use github::{Github, Pkce, ReturnTo};
pub use settings::{SETTINGS, Setting, Shape};
pub use source::{Disk, FileContent, Files, Flags, SEAL_KEYS_LIMIT_BYTES, Source};
pub use store::{Prefix, Shared, Store};

/// The commented configuration file with every setting at its default.
pub const DEFAULT_TOML: &str = include_str!("default.toml");

/// The effective configuration of the server.
#[derive(Debug, Clone)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of its own in the file"
)]
pub struct Config {
    /// Developer mode: loopback only, everything that is missing is generated.
    pub dev: bool,
    /// The listener for workloads and the management API.
    pub proxy: Proxy,
    /// The way out.
    pub upstream: Upstream,
    /// The operator's listener.
    pub admin: Admin,
    /// Deadlines and bounds.
    pub limits: Limits,
    /// The tenant's key; absent only with `dev`, where one is generated into the state directory.
    pub api_key: Option<Secret>,
    /// The operator's key; without one nobody is the operator.
    pub admin_key: Option<Secret>,
    /// Where the CA, generated keys and the store lie.
    pub state_dir: PathBuf,
    /// The form of the log on stderr.
    pub log: LogFormat,
    /// Lets a secret without any scope go to every host; true with `dev` unless refused there.
    pub danger_unscoped_secrets: bool,
    /// Accepts credentials for the management API in cleartext on a listener off loopback.
    pub danger_plaintext_management: bool,
    /// Answers in codings that cannot be scrubbed pass unread, from hosts that may have a secret.
    pub danger_unscrubbed_codings: bool,
    /// Where sessions are kept.
    pub store: Store,
    /// What is asked of a store that other nodes use as well.
    pub shared: Shared,
    /// Where the keys are that seal them there.
    pub seal: Seal,
    /// Where audit records go.
    pub audit: Audit,
    /// The Claude Gateway.
    pub gateway: Gateway,
    /// Who knows whether an account is paid.
    pub payment: Payment,
    /// Signing in with GitHub.
    pub github: Github,
}

impl Default for Config {
    /// Loopback listeners, nothing opened, no key and no state directory.
    fn default() -> Self {
        Self {
            dev: false,
            proxy: Proxy::default(),
            upstream: Upstream::default(),
            admin: Admin::default(),
            limits: Limits::default(),
            api_key: None,
            admin_key: None,
            state_dir: PathBuf::new(),
            log: LogFormat::Json,
            danger_unscoped_secrets: false,
            danger_plaintext_management: false,
            danger_unscrubbed_codings: false,
            store: Store::default(),
            shared: Shared::default(),
            seal: Seal::default(),
            audit: Audit::default(),
            gateway: Gateway::default(),
            payment: Payment::default(),
            github: Github::default(),
        }
    }
}

/// Settings of the shared listener (`[proxy]`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// The plain listener; `127.0.0.1:8080` by default.
    pub listen: Option<SocketAddr>,
    /// The TLS listener; none by default, `127.0.0.1:8443` with `dev`.
    pub tls_listen: Option<SocketAddr>,
    /// The TLS listener's certificate chain, a PEM file.
    pub tls_cert: Option<PathBuf>,
    /// The TLS listener's private key, a PEM file.
    pub tls_key: Option<PathBuf>,
    /// What `proxy_url` names in the answers of the management API.
    pub public_url: Option<PublicUrl>,
}

impl Default for Proxy {
    /// A plain listener on loopback and nothing else.
    fn default() -> Self {
        Self {
            listen: Some(loopback(8080)),
            tls_listen: None,
            tls_cert: None,
            tls_key: None,
            public_url: None,
        }
    }
}

/// Settings of the connections to upstreams (`[upstream]`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Upstream {
    /// More roots to trust, PEM files.
    pub ca_files: Vec<PathBuf>,
    /// Names with fixed addresses; the addresses still have to pass the address table.
    pub resolve: Vec<Resolve>,
    /// Which roots are trusted besides `ca_files`.
    pub trust: Trust,
    /// Address ranges that are opened although the address table refuses them.
    pub allow_cidrs: Vec<Cidr>,
    /// The proxy that every connection to an upstream goes through; none to connect directly.
    pub proxy: Option<UpstreamProxy>,
}

/// A fixed address for one name: `HOST=IP[:PORT]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolve {
    /// The name; never an address.
    pub host: Host,
    /// Where it leads.
    pub ip: IpAddr,
    /// The port to dial in place of the one asked for.
    pub port: Option<u16>,
}

/// The roots that upstream certificates are verified against.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Trust {
    /// The public roots that are compiled in.
    #[default]
    Public,
    /// The store of the operating system.
    System,
}

/// Settings of the operator's listener (`[admin]`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Where it listens; `127.0.0.1:9090` by default.
    pub listen: Option<SocketAddr>,
}

impl Default for Admin {
    /// A listener on loopback.
    fn default() -> Self {
        Self {
            listen: Some(loopback(9090)),
        }
    }
}

/// Deadlines and bounds (`[limits]`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// For the first byte of a connection, and of a tunnel after the answer to CONNECT.
    pub first_byte_timeout: Duration,
    /// For reading one head, from its first byte.
    pub head_timeout: Duration,
    /// For a TLS handshake, on either side.
    pub handshake_timeout: Duration,
    /// For a connection with no exchange in flight.
    pub idle_timeout: Duration,
    /// How long a peer may refuse to take bytes that are ready for it.
    pub stall_timeout: Duration,
    /// For a WebSocket on which no byte goes either way.
    pub websocket_idle_timeout: Duration,
    /// For a tunnel that is passed through on which no byte goes either way.
    pub passthrough_idle_timeout: Duration,
    /// For all attempts to connect to one upstream together.
    pub connect_timeout: Duration,
    /// For one look-up.
    pub dns_timeout: Duration,
    /// For exchanges in flight after the signal to stop.
    pub drain_timeout: Duration,
    /// How long what is open is served after another process has taken over.
    pub handover_timeout: Duration,
    /// For the head of an answer, from the last byte of its request on; none to wait for it.
    pub answer_timeout: Option<Duration>,
    /// For an exchange in which no byte goes either way; none to wait.
    pub exchange_idle_timeout: Option<Duration>,
    /// Connections open at once through all listeners together.
    pub connections: usize,
    /// The part of them that workloads may not have, in percent.
    pub reserved_percent: usize,
    /// Connections of one address on which nobody has shown a right credential yet.
    pub unauthenticated_per_address: usize,
    /// Failed attempts of one address in one window; what fails beyond it is told to wait.
    pub auth_failures: usize,
    /// How long failed attempts are counted together.
    pub auth_failure_window: Duration,
    /// Connections open at once on which the credential of one session was shown.
    pub session_connections: usize,
    /// Tunnels of one session open at once.
    pub session_tunnels: usize,
    /// Exchanges of one session in flight at once.
    pub session_exchanges: usize,
    /// How long an exchange waits for one of those to end.
    pub session_wait: Duration,
    /// Requests of one session a second, in the long run; none for any number.
    pub session_requests_per_second: Option<u32>,
    /// Requests of one session at once, where their rate is limited.
    pub session_burst: u32,
    /// Upstream connections that one session keeps for its next exchanges.
    pub session_pool: usize,
    /// Live sessions of one tenant that has no limit of its own; none for any number.
    pub tenant_sessions: Option<u32>,
    /// Requests of such a tenant to the management API a second; none for any number.
    pub tenant_requests_per_second: Option<u32>,
    /// Requests of one tenant at once, where their rate is limited.
    pub tenant_burst: u32,
    /// Tokens swapped in one request.
    pub swaps: u32,
    /// The bytes of the body of a request; none for any number.
    pub request_body_bytes: Option<u64>,
    /// The bytes of the head of a request.
    pub head_bytes: u32,
    /// The fields of the head of a request.
    pub head_fields: usize,
    /// The bytes of the target of a request.
    pub target_bytes: u32,
    /// The bytes of all chunk extensions of the body of a request.
    pub chunk_extension_bytes: u32,
    /// Streams open at once on an HTTP/2 connection of a workload.
    pub h2_streams: u32,
    /// Bytes of one request under way unread on an HTTP/2 connection of a workload.
    pub h2_stream_window_bytes: u32,
    /// Bytes of all requests under way unread on an HTTP/2 connection of a workload.
    pub h2_connection_window_bytes: u32,
    /// The list of fields of an HTTP/2 request, in bytes as HTTP/2 counts them.
    pub h2_header_list_bytes: u32,
    /// Streams that a workload may reset before they were looked at.
    pub h2_pending_resets: usize,
    /// Streams that a workload may have reset for its errors.
    pub h2_error_resets: usize,
    /// Streams that a workload may give up in ten seconds before they have an answer.
    pub h2_given_up: usize,
    /// Hosts whose leaves are kept.
    pub leaves: usize,
}

impl Default for Limits {
    /// The figures of the operations guide.
    fn default() -> Self {
        Self {
            first_byte_timeout: Duration::from_secs(15),
            head_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_mins(5),
            stall_timeout: Duration::from_mins(10),
            websocket_idle_timeout: Duration::from_mins(10),
            passthrough_idle_timeout: Duration::from_mins(10),
            connect_timeout: Duration::from_secs(10),
            dns_timeout: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(30),
            handover_timeout: Duration::from_hours(1),
            answer_timeout: None,
            exchange_idle_timeout: None,
            connections: 10_000,
            reserved_percent: 10,
            unauthenticated_per_address: 256,
            auth_failures: 50,
            auth_failure_window: Duration::from_mins(5),
            session_connections: 512,
            session_tunnels: 256,
            session_exchanges: 64,
            session_wait: Duration::from_secs(5),
            session_requests_per_second: None,
            session_burst: 200,
            session_pool: 128,
            tenant_sessions: None,
            tenant_requests_per_second: None,
            tenant_burst: 200,
            swaps: 1_000,
            request_body_bytes: None,
            head_bytes: 64 * 1024,
            head_fields: 100,
            target_bytes: 16 * 1024,
            chunk_extension_bytes: 16 * 1024,
            h2_streams: 100,
            h2_stream_window_bytes: 128 * 1024,
            h2_connection_window_bytes: 2 * 1024 * 1024,
            h2_header_list_bytes: 64 * 1024,
            h2_pending_resets: 20,
            h2_error_resets: 64,
            h2_given_up: 100,
            leaves: 10_000,
        }
    }
}

/// Where the sealing keys are (`[seal]`): one of these, or `seal.key` in the state directory.
#[derive(Debug, Clone, Default)]
pub struct Seal {
    /// The keys themselves, from the environment.
    pub key: Option<Secret>,
    /// A file of the owner's alone.
    pub key_file: Option<PathBuf>,
    /// A shell command that prints them.
    pub key_command: Option<String>,
}

/// Where audit records go, and what is done when they cannot (`[audit]`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    /// The kind of sink.
    pub sink: AuditSink,
    /// The file; that of the state directory where none is named.
    pub file: Option<PathBuf>,
    /// The size from which on another file is begun.
    pub rotate_bytes: u64,
    /// How many full files are kept.
    pub keep: usize,
    /// What is done with a record that finds no room.
    pub on_full: OnFull,
}

impl Audit {
    /// The file's name in the state directory.
    pub const FILE: &str = "audit.jsonl";

    /// Returns the file that is written to, or would be.
    pub fn path(&self, state_dir: &Path) -> PathBuf {
        let default = || state_dir.join(Self::FILE);
        self.file.clone().unwrap_or_else(default)
    }
}

impl Default for Audit {
    /// Standard output, and ten files of 100 MiB where there is a file.
    fn default() -> Self {
        Self {
            sink: AuditSink::Stdout,
            file: None,
            rotate_bytes: 100 * 1024 * 1024,
            keep: 10,
            on_full: OnFull::Gap,
        }
    }
}

/// A kind of sink for audit records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditSink {
    /// A file whose lines are chained.
    File,
    /// The standard output.
    Stdout,
}

/// What is done with a record that finds no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFull {
    /// It is lost, and counted.
    Gap,
    /// What it would tell of is refused before it begins.
    Refuse,
}

/// An origin: scheme, host and port, without path, user or query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicUrl {
    /// `http` or `https`.
    pub scheme: Scheme,
    /// Host and port; the scheme's own port where none was written.
    pub authority: HostPort,
}

/// The scheme of a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Cleartext; port 80 where none is written.
    Http,
    /// TLS; port 443 where none is written.
    Https,
}

impl Scheme {
    /// Returns the name as it stands before `://`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// Returns the port that goes without saying (RFC 9110 §4.2).
    pub fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl PublicUrl {
    /// Parses `http://HOST[:PORT]` or `https://HOST[:PORT]`; nothing for any other text. One
    /// slash at the end is allowed.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return None,
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let authority = HostPort::parse_or(rest, scheme.default_port()).ok()?;
        Some(Self { scheme, authority })
    }
}

impl fmt::Display for PublicUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.authority.host)?;
        if self.authority.port == self.scheme.default_port() {
            return Ok(());
        }
        write!(f, ":{}", self.authority.port)
    }
}

impl fmt::Display for Resolve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}={}", self.host, SocketAddr::new(self.ip, port)),
            None => write!(f, "{}={}", self.host, self.ip),
        }
    }
}

impl Config {
    /// Reads every source and checks what must hold between settings.
    ///
    /// # Errors
    /// All [`Problems`] at once, each with key, expectation and place.
    pub fn load(source: &Source) -> Result<Self, Problems> {
        check::load(source)
    }

    /// Reads every source, and asks for nothing that only a server needs: for commands about the
    /// state directory.
    ///
    /// # Errors
    /// All [`Problems`] of what was given.
    pub fn load_state(source: &Source) -> Result<Self, Problems> {
        check::load_state(source)
    }

    /// Reads every source for what signs workload JWTs, and asks for nothing that a server needs.
    ///
    /// # Errors
    /// All [`Problems`] of what was given.
    pub fn load_gateway(source: &Source) -> Result<Self, Problems> {
        check::load_gateway(source)
    }

    /// Fills the defaults with flags alone: no file, no environment, and none of the rules that
    /// hold for a server. For the private proxy of `run`.
    ///
    /// # Errors
    /// All [`Problems`] of the flags.
    pub fn from_flags(flags: &Flags) -> Result<Self, Problems> {
        check::from_flags(flags)
    }

    /// Prints the effective configuration as a TOML file, without any secret.
    pub fn redacted(&self) -> String {
        show::redacted(self)
    }
}

/// Where a setting was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody gave the setting; its default stands.
    Default,
    /// An environment variable, by name.
    Environment(String),
    /// The configuration file, with the line where it is known.
    File(PathBuf, Option<usize>),
    /// A flag of the command line, with its dashes.
    Flag(String),
    /// The setting has no value and no default.
    Missing,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("by default"),
            Self::Environment(name) => write!(f, "from {name}"),
            Self::File(path, Some(line)) => write!(f, "from {}:{line}", path.display()),
            Self::File(path, None) => write!(f, "from {}", path.display()),
            Self::Flag(flag) => write!(f, "from {flag}"),
            Self::Missing => f.write_str("not set"),
        }
    }
}

/// One thing that is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The setting by its full dotted path.
    pub key: String,
    /// What would be right. Never the value that was given.
    pub expectation: String,
    /// Where the wrong value stands.
    pub origin: Origin,
}

impl Problem {
    fn new(key: impl Into<String>, expectation: impl Into<String>, origin: Origin) -> Self {
        Self {
            key: key.into(),
            expectation: expectation.into(),
            origin,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.key, self.expectation, self.origin)
    }
}

/// Everything that is wrong with the configuration, one problem a line; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Walks over the problems in the order of the sources.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

#[cfg(test)]
mod tests;
