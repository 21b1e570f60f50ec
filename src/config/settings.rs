//! The table of settings: every key, where it may be given, what it takes, and what it says.
//!
//! The file, the environment, the command line, the help text and the commented default file are
//! all read off this one table, so that none of them can know a setting that another does not.

use std::path::PathBuf;

use super::Config;
use super::gateway::SecretFiles;
use super::value::{Raw, UnscopedSecrets, Value};

/// The start of every environment variable that sets a key: two underscores stand for a dot.
pub(super) const ENVIRONMENT_PREFIX: &str = "OSHU_VAULT__";

/// Keys, and sections with all their keys, that later versions have.
const LATER: &[&str] = &["api", "github.api_url", "sandbox"];

/// How many values a setting takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One value.
    One,
    /// Any number: an array in the file, commas in the environment, a flag that may be repeated.
    Many,
    /// True or false; its flag takes no value.
    Switch,
}

/// Where a setting may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The file, the environment and, where it has a flag, the command line.
    Anywhere,
    /// The same, under a name of its own in the environment.
    AnywhereAs(&'static str),
    /// The environment alone: a secret that must not lie in a file beside other settings.
    Environment(&'static str),
    /// The command line alone: it should be seen by whoever starts the process.
    CommandLine,
}

/// One line of the table.
#[derive(Debug)]
pub struct Setting {
    /// The dotted path in the file.
    pub key: &'static str,
    /// The flag of `serve`, without its dashes.
    pub flag: Option<&'static str>,
    /// The placeholder in the help text.
    pub value_name: &'static str,
    /// How many values it takes.
    pub shape: Shape,
    /// What it does, in one or two sentences.
    pub doc: &'static str,
    /// A TOML value to show where there is no default.
    pub example: &'static str,
    pub(super) place: Place,
    pub(super) set: fn(&mut Draft, &Raw) -> Result<(), Vec<String>>,
    pub(super) show: fn(&Draft) -> Option<String>,
}

/// A configuration while it is being read.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) config: Config,
    pub(super) api_key_file: Option<PathBuf>,
    pub(super) admin_key_file: Option<PathBuf>,
    pub(super) upstream_proxy_file: Option<PathBuf>,
    pub(super) secret_files: SecretFiles,
    pub(super) store_url_file: Option<PathBuf>,
    pub(super) state_dir: Option<PathBuf>,
    pub(super) unscoped_secrets: UnscopedSecrets,
}

impl Draft {
    /// Goes back from an effective configuration, to print it.
    pub(super) fn of(config: &Config) -> Self {
        Self {
            api_key_file: None,
            admin_key_file: None,
            upstream_proxy_file: None,
            secret_files: SecretFiles::default(),
            store_url_file: None,
            state_dir: Some(config.state_dir.clone()).filter(|dir| !dir.as_os_str().is_empty()),
            unscoped_secrets: if config.danger_unscoped_secrets {
                UnscopedSecrets::AnyHost
            } else {
                UnscopedSecrets::Refuse
            },
            config: config.clone(),
        }
    }
}

impl Setting {
    /// Returns the name of the environment variable; nothing where there is none.
    pub fn variable(&self) -> Option<String> {
        match self.place {
            Place::Anywhere => {
                let path = self.key.replace('.', "__").to_ascii_uppercase();
                Some(format!("{ENVIRONMENT_PREFIX}{path}"))
            }
            Place::AnywhereAs(name) | Place::Environment(name) => Some(name.to_owned()),
            Place::CommandLine => None,
        }
    }

    /// Tells whether the setting may stand in the file.
    pub(super) fn in_file(&self) -> bool {
        matches!(self.place, Place::Anywhere | Place::AnywhereAs(_))
    }

    /// Says where the setting may be given, for a place where it may not.
    pub(super) fn belongs(&self) -> String {
        match (self.place, self.variable(), self.flag) {
            (Place::Environment(_), Some(name), _) => {
                format!("must not be given here: set {name} or {}_file", self.key)
            }
            (_, Some(name), _) => format!("is not given under this name: set {name}"),
            (_, None, flag) => format!(
                "can only be given on the command line, as --{}",
                flag.unwrap_or(self.key)
            ),
        }
    }
}

/// Finds a setting by its dotted path.
pub(super) fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

/// Tells whether a dotted path is a section of the file.
pub(super) fn is_section(path: &str) -> bool {
    let within = |key: &str| {
        key.strip_prefix(path)
            .is_some_and(|rest| rest.starts_with('.'))
    };
    SETTINGS.iter().any(|setting| within(setting.key))
}

/// Tells whether a dotted path belongs to a later version.
pub(super) fn is_later(path: &str) -> bool {
    LATER.iter().any(|later| {
        path.strip_prefix(later)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

/// Finds the setting that a misspelt path most likely means: at most two edits away.
pub(super) fn nearest(path: &str) -> Option<&'static Setting> {
    // No key is this long, and the work grows with the product of both lengths.
    if path.len() > 80 {
        return None;
    }
    SETTINGS
        .iter()
        .map(|setting| (edits(path, setting.key), setting))
        .filter(|(distance, _)| *distance <= 2)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, setting)| setting)
}

/// Counts the insertions, deletions and replacements between two texts.
fn edits(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.chars().count()).collect();
    for (index, a) in left.chars().enumerate() {
        let mut next = vec![index + 1];
        let mut here = index + 1;
        for ((b, diagonal), above) in right.chars().zip(&row).zip(row.iter().skip(1)) {
            here = (here + 1)
                .min(above + 1)
                .min(diagonal + usize::from(a != b));
            next.push(here);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

const fn shape_of<T: Value>(_: fn(&Draft) -> &T) -> Shape {
    T::SHAPE
}

const fn name_of<T: Value>(_: fn(&Draft) -> &T) -> &'static str {
    T::NAME
}

fn fill<T: Value>(slot: &mut T, raw: &Raw) -> Result<(), Vec<String>> {
    *slot = T::read(raw)?;
    Ok(())
}

/// Writes one line of the table: key, field of [`Draft`], place, flag, example, text.
macro_rules! setting {
    (
        $key:literal, $($field:ident).+, $place:ident $(($variable:literal))?, $flag:expr,
        $example:literal, $doc:literal
    ) => {
        Setting {
            key: $key,
            flag: $flag,
            value_name: name_of(|draft| &draft.$($field).+),
            shape: shape_of(|draft| &draft.$($field).+),
            doc: $doc,
            example: $example,
            place: Place::$place $(($variable))?,
            set: |draft, raw| fill(&mut draft.$($field).+, raw),
            show: |draft| draft.$($field).+.to_toml(),
        }
    };
}

/// Every setting, in the order of the commented default file.
#[rustfmt::skip]
pub const SETTINGS: &[Setting] = &[
    setting!("dev", config.dev, CommandLine, Some("dev"), "true",
        "Developer mode: loopback listeners only; CA and API key are generated into the state \
         directory; loopback upstreams, any port and unscoped secrets are allowed."),
    setting!("api_key", config.api_key, Environment("SECRETS_PROXY_API_KEY"), None, "\"\"",
        "The tenant's API key: 16 to 512 visible characters."),
    setting!("api_key_file", api_key_file, AnywhereAs("SECRETS_PROXY_API_KEY_FILE"), None,
        "\"/run/secrets/oshu-vault-api-key\"",
        "A file that holds the tenant's API key, readable by its owner alone (mode 0600 or 0400). \
         The other way is the environment variable SECRETS_PROXY_API_KEY; one of them is needed \
         without --dev, both together are refused. The key itself never stands in this file."),
    setting!("admin_key", config.admin_key, Environment("OSHU_VAULT_ADMIN_KEY"), None, "\"\"",
        "The operator's key, for /v1/tenants and /v1/accounts: 32 to 512 visible characters."),
    setting!("admin_key_file", admin_key_file, AnywhereAs("OSHU_VAULT_ADMIN_KEY_FILE"), None,
        "\"/run/secrets/oshu-vault-admin-key\"",
        "A file that holds the operator's key, readable by its owner alone: 32 to 512 visible \
         characters. The other way is the environment variable OSHU_VAULT_ADMIN_KEY. Without \
         either /v1/tenants and /v1/accounts answer 404 to everybody."),
    setting!("state_dir", state_dir, Anywhere, Some("state-dir"), "\"/var/lib/oshu-vault\"",
        "Where the CA, generated keys and the store lie. Without it: $XDG_STATE_HOME/oshu-vault, \
         else $HOME/.local/state/oshu-vault."),
    setting!("log", config.log, Anywhere, Some("log"), "\"json\"",
        "The form of the log on stderr: json or text."),
    setting!("danger_unscoped_secrets", unscoped_secrets, Anywhere, None, "\"refuse\"",
        "What happens to a secret for which neither the session nor the catalogue gives a scope: \
         refuse, or any_host, which lets a workload read the secret back by sending it to a host \
         of its own. --dev means any_host unless this says refuse."),
    setting!("danger_plaintext_management", config.danger_plaintext_management, Anywhere, None,
        "false",
        "Accept credentials of the management API in cleartext on a listener off loopback: only \
         where TLS ends in front of this process."),
    setting!("danger_unscrubbed_codings", config.danger_unscrubbed_codings, Anywhere, None, "false",
        "Let answers pass unread that are in a content coding which cannot be scrubbed, from hosts \
         that may have a secret; without it they are refused with 502."),

    setting!("proxy.listen", config.proxy.listen, Anywhere, Some("listen"), "\"127.0.0.1:8080\"",
        "The plain listener for workloads and the management API; none turns it off. Port 0 \
         takes a free port, here and below."),
    setting!("proxy.tls_listen", config.proxy.tls_listen, Anywhere, Some("tls-listen"),
        "\"127.0.0.1:8443\"",
        "The same service in TLS; none turns it off. With --dev and nothing said: 127.0.0.1:8443."),
    setting!("proxy.tls_cert", config.proxy.tls_cert, Anywhere, Some("tls-cert"),
        "\"/etc/oshu-vault/tls.crt\"",
        "The TLS listener's certificate chain (PEM). Needed with tls_listen, but for --dev, where \
         the vault's own CA mints one."),
    setting!("proxy.tls_key", config.proxy.tls_key, Anywhere, Some("tls-key"),
        "\"/etc/oshu-vault/tls.key\"",
        "The private key that belongs to tls_cert (PEM)."),
    setting!("proxy.public_url", config.proxy.public_url, Anywhere, Some("public-url"),
        "\"https://vault.example.com:8443\"",
        "How workloads reach the proxy: what proxy_url names in answers. Needed when a listener \
         is not on loopback."),

    setting!("upstream.ca_files", config.upstream.ca_files, Anywhere, Some("upstream-ca"), "[]",
        "More roots that upstream certificates may lead to (PEM files)."),
    setting!("upstream.resolve", config.upstream.resolve, Anywhere, Some("resolve"), "[]",
        "Fixed addresses of names: \"HOST=IP\" or \"HOST=IP:PORT\" (IPv6 in brackets before a \
         port). The address still has to pass the address table."),
    setting!("upstream.trust", config.upstream.trust, Anywhere, None, "\"public\"",
        "The roots to trust besides ca_files: public (compiled in) or system."),
    setting!("upstream.allow_cidrs", config.upstream.allow_cidrs, Anywhere, Some("allow-cidr"),
        "[]",
        "Private address ranges that workloads may reach. Metadata addresses stay shut."),
    setting!("upstream.proxy", config.upstream.proxy, Anywhere, Some("upstream-proxy"),
        "\"http://proxy.example.com:3128\"",
        "A proxy that every connection to an upstream goes through, by CONNECT to the address that \
         passed the address table: http://[USER:PASSWORD@]HOST:PORT or https://…; none connects \
         directly. HTTPS_PROXY and its kin are not read."),
    setting!("upstream.proxy_file", upstream_proxy_file, Anywhere, Some("upstream-proxy-file"),
        "\"/run/secrets/oshu-vault-upstream-proxy\"",
        "A file that holds the URL of upstream.proxy, for one with a password, readable by its \
         owner alone. Both together are refused."),

    setting!("admin.listen", config.admin.listen, Anywhere, Some("admin-listen"),
        "\"127.0.0.1:9090\"",
        "The operator's listener: health routes and /metrics; none turns it off. On loopback only."),

    setting!("store.url", config.store, Anywhere, Some("store"), "\"redb\"",
        "Where sessions are kept: redb, a file in the state directory; redb:PATH, a file elsewhere; \
         memory, which ends with the process; redis://[USER:PASSWORD@]HOST:PORT/DB or rediss://…, a \
         Redis or Valkey server that several nodes share. With rediss its certificate is verified \
         as those of upstreams are."),
    setting!("store.url_file", store_url_file, Anywhere, Some("store-file"),
        "\"/run/secrets/oshu-vault-store-url\"",
        "A file that holds the URL of store.url, for one with a password, readable by its owner \
         alone. Both together are refused."),
    setting!("store.prefix", config.shared.prefix, Anywhere, None, "\"oshu-vault\"",
        "What the names of all keys on a shared store begin with, in braces: stores of several \
         fleets can lie on one server."),
    setting!("store.max_stale_ms", config.shared.max_stale, Anywhere, None, "10000",
        "Milliseconds that sessions are served without word from a shared store. After that \
         requests are answered 503 and what is open is cut, until the store answers again."),

    setting!("seal.key", config.seal.key, Environment("OSHU_VAULT_SEAL_KEY"), None, "\"\"",
        "The sealing keys, with commas between them: the first one seals."),
    setting!("seal.key_file", config.seal.key_file, Anywhere, None,
        "\"/run/secrets/oshu-vault-seal-key\"",
        "A file with the keys that seal sessions in the store, readable by its owner alone: one a \
         line, 64 hex digits or 32 bytes in base64. The first one seals, the others open what was \
         sealed before. Without this, key_command and the environment variable \
         OSHU_VAULT_SEAL_KEY it is seal.key in the state directory; two of them are refused."),
    setting!("seal.key_command", config.seal.key_command, Anywhere, None,
        "\"secret-tool lookup service oshu-vault\"",
        "A shell command that prints what key_file would hold; it has 30 seconds."),

    setting!("audit.sink", config.audit.sink, Anywhere, None, "\"stdout\"",
        "Where audit records go: stdout, or file, whose lines are chained so that `oshu-vault audit \
         verify` finds what was changed, removed or cut off."),
    setting!("audit.file", config.audit.file, Anywhere, None, "\"/var/log/oshu-vault/audit.jsonl\"",
        "The file where audit.sink says so; without it audit.jsonl in the state directory. Its head, \
         its lock and the files that were full lie beside it."),
    setting!("audit.rotate_bytes", config.audit.rotate_bytes, Anywhere, None, "104857600",
        "Bytes from which on another file is begun: at least 4096."),
    setting!("audit.keep", config.audit.keep, Anywhere, None, "10",
        "How many full files are kept. Older ones are deleted."),
    setting!("audit.on_full", config.audit.on_full, Anywhere, None, "\"gap\"",
        "What happens while the sink takes nothing and 8192 records wait: gap loses records and \
         counts them; refuse answers new requests with 503 until there is room."),

    setting!("gateway.upstream", config.gateway.upstream, Anywhere, None,
        "\"https://api.anthropic.com\"",
        "The model provider behind /api/claude-gateway. The gateway is there where api_key and \
         jwt_secret are given, each by its variable or its file."),
    setting!("gateway.api_key", config.gateway.api_key, Environment("OSHU_VAULT__GATEWAY__API_KEY"),
        None, "\"\"",
        "The operator's credential at the model provider: an API key, or an OAuth access token."),
    setting!("gateway.api_key_file", secret_files.api_key, Anywhere, None,
        "\"/run/secrets/oshu-vault-model-key\"",
        "A file that holds the operator's credential at the model provider, readable by its owner \
         alone: an API key, or an OAuth access token (sk-ant-oat…). The other way is the environment \
         variable OSHU_VAULT__GATEWAY__API_KEY."),
    setting!("gateway.jwt_secret", config.gateway.jwt_secret,
        Environment("OSHU_VAULT__GATEWAY__JWT_SECRET"), None, "\"\"",
        "What signs workload JWTs: 32 to 512 visible characters."),
    setting!("gateway.jwt_secret_file", secret_files.jwt_secret, Anywhere, None,
        "\"/run/secrets/oshu-vault-jwt-secret\"",
        "A file that holds what signs workload JWTs, readable by its owner alone: 32 to 512 visible \
         characters. The other way is the environment variable OSHU_VAULT__GATEWAY__JWT_SECRET."),
    setting!("gateway.jwt_secret_previous", config.gateway.jwt_secret_previous,
        Environment("OSHU_VAULT__GATEWAY__JWT_SECRET_PREVIOUS"), None, "\"\"",
        "What signed workload JWTs before, and is still accepted."),
    setting!("gateway.jwt_secret_previous_file", secret_files.jwt_secret_previous, Anywhere, None,
        "\"/run/secrets/oshu-vault-jwt-secret-before\"",
        "A file that holds what signed workload JWTs before and is still accepted, for the day that \
         they live. The other way is the environment variable \
         OSHU_VAULT__GATEWAY__JWT_SECRET_PREVIOUS."),
    setting!("gateway.danger_extra_paths", config.gateway.extra_paths, Anywhere, None, "[]",
        "Paths of the model provider that are forwarded beside those of messages and models, such as \
         /v1/files: exactly these, by GET and POST, and by DELETE never. Their calls run under the \
         operator's key, so that every paid account reaches what all others have there, and what they \
         use is not counted: nobody reaches them beside monthly_budget or on free_allowance."),
    setting!("gateway.payment_url", config.gateway.payment_url, Anywhere, None,
        "\"https://example.com/billing\"",
        "Where an account is paid for: what the answer 402 tells."),
    setting!("gateway.monthly_budget", config.gateway.monthly_budget, Anywhere, None,
        "100000000", "Tokens that a paid account may use in a month of UTC, or none. A request \
         reserves its max_tokens and one token for each byte of its body before it is sent, and more for \
         what the provider fetches, unpacks or does; what does not fit is answered 429."),
    setting!("gateway.free_allowance", config.gateway.free_allowance, Anywhere, None,
        "100000", "Tokens that an account which is not paid may use in a month of UTC, counted like \
         those of monthly_budget; none means no token. What does not fit is answered 402."),
    setting!("gateway.requests_per_minute", config.gateway.requests_per_minute, Anywhere, None,
        "60", "Requests of one account to the gateway a minute in the long run, or none; as many may \
         come at once. More are answered 429."),
    setting!("gateway.danger_books_per_node", config.gateway.danger_books_per_node, Anywhere, None,
        "false", "With a store.url of several nodes each keeps accounts and books for itself. Without \
         this, payment.provider local, monthly_budget and free_allowance are refused there; with it, \
         send all calls of the gateway and all webhooks to one node."),
    setting!("gateway.oauth_token_url", config.gateway.oauth_token_url, Anywhere, None,
        "\"https://console.anthropic.com/v1/oauth/token\"",
        "Where POST /api/claude/v1/oauth/token leads, for browsers that may not ask there themselves. \
         It is there with the gateway."),
    setting!("gateway.oauth_requests_per_minute", config.gateway.oauth_requests_per_minute, Anywhere,
        None, "30", "Requests of one address (of IPv6: of one /64) to that relay a minute in the long \
         run; as many may come at once. More are answered 429."),
    setting!("payment.provider", config.payment.provider, Anywhere, None, "\"local\"",
        "Who knows whether an account is paid: local, the accounts of the store, which \
         `oshu-vault accounts`, PUT /v1/accounts/ID and Stripe's webhook change; or workos."),
    setting!("payment.workos.api_key", config.payment.workos.api_key,
        Environment("OSHU_VAULT__PAYMENT__WORKOS__API_KEY"), None, "\"\"",
        "The operator's key at WorkOS."),
    setting!("payment.workos.api_key_file", secret_files.workos, Anywhere, None,
        "\"/run/secrets/oshu-vault-workos-key\"",
        "A file that holds the operator's key at WorkOS, readable by its owner alone. The other way \
         is the environment variable OSHU_VAULT__PAYMENT__WORKOS__API_KEY."),
    setting!("payment.workos.base_url", config.payment.workos.base_url, Anywhere, None,
        "\"https://api.workos.com\"",
        "Where WorkOS is. A user is found by external id, which is the account's id; a yes is \
         believed for 60 seconds, a no for 5."),
    setting!("payment.workos.metadata_key", config.payment.workos.metadata_key, Anywhere, None,
        "\"paid\"", "The name of the user's metadata that tells whether the account is paid."),
    setting!("payment.workos.metadata_value", config.payment.workos.metadata_value, Anywhere, None,
        "\"true\"", "The value of that metadata that means paid, letter for letter."),
    setting!("payment.stripe.webhook_secret", config.payment.stripe.webhook_secret,
        Environment("OSHU_VAULT__PAYMENT__STRIPE__WEBHOOK_SECRET"), None, "\"\"",
        "What Stripe signs deliveries to POST /api/webhooks/stripe with."),
    setting!("payment.stripe.webhook_secret_file", secret_files.stripe, Anywhere, None,
        "\"/run/secrets/oshu-vault-stripe\"",
        "A file that holds what Stripe signs deliveries to POST /api/webhooks/stripe with (whsec_…), \
         readable by its owner alone. The other way is the environment variable \
         OSHU_VAULT__PAYMENT__STRIPE__WEBHOOK_SECRET. Without either there is no such route."),
    setting!("payment.stripe.webhook_secret_previous", config.payment.stripe.webhook_secret_previous,
        Environment("OSHU_VAULT__PAYMENT__STRIPE__WEBHOOK_SECRET_PREVIOUS"), None, "\"\"",
        "What Stripe signed deliveries with before, and is still accepted."),
    setting!("payment.stripe.webhook_secret_previous_file", secret_files.stripe_previous, Anywhere,
        None, "\"/run/secrets/oshu-vault-stripe-before\"",
        "A file that holds what Stripe signed deliveries with before and is still accepted. The other \
         way is the environment variable OSHU_VAULT__PAYMENT__STRIPE__WEBHOOK_SECRET_PREVIOUS."),

    setting!("github.url", config.github.url, Anywhere, None, "\"https://github.com\"",
        "Where people sign in: GitHub, or an enterprise's own."),
    setting!("github.client_id", config.github.client_id, Anywhere, None,
        "\"Iv1.0123456789abcdef\"",
        "The id of the OAuth app. Without it there is no route of /api/github and no callback."),
    setting!("github.client_secret", config.github.client_secret,
        Environment("OSHU_VAULT__GITHUB__CLIENT_SECRET"), None, "\"\"",
        "The secret of the OAuth app."),
    setting!("github.client_secret_file", secret_files.github, Anywhere, None,
        "\"/run/secrets/oshu-vault-github\"",
        "A file that holds the secret of the OAuth app, readable by its owner alone. The other way \
         is the environment variable OSHU_VAULT__GITHUB__CLIENT_SECRET. Without either codes are not \
         exchanged; the device flow needs none."),
    setting!("github.return_to", config.github.return_to, Anywhere, None,
        "[\"https://app.example.com\", \"myapp://\"]",
        "Where GET /api/auth/callback may send people with their code, letter for letter: origins, or \
         URLs of applications. Nowhere by default."),
    setting!("github.pkce", config.github.pkce, Anywhere, None, "\"optional\"",
        "Whether POST /api/github/oauth/token needs a code_verifier (RFC 7636): optional or required. \
         Whoever catches a code on its way to an application or to this machine can exchange it \
         without; a code that was asked for with a code_challenge needs one at GitHub in any case."),
    setting!("github.requests_per_minute", config.github.requests_per_minute, Anywhere, None, "30",
        "Requests of one address (of IPv6: of one /64) to sign in a minute in the long run; as many \
         may come at once. More are answered 429."),

    setting!("limits.first_byte_timeout_ms", config.limits.first_byte_timeout, Anywhere, None,
        "15000", "Milliseconds for the first byte of a connection, and of a tunnel after the answer to \
         CONNECT."),
    setting!("limits.head_timeout_ms", config.limits.head_timeout, Anywhere, None,
        "10000", "Milliseconds for reading one head, from its first byte."),
    setting!("limits.handshake_timeout_ms", config.limits.handshake_timeout, Anywhere, None,
        "10000", "Milliseconds for a TLS handshake, on either side."),
    setting!("limits.idle_timeout_ms", config.limits.idle_timeout, Anywhere, None,
        "300000", "Milliseconds that a connection is kept with no exchange in flight."),
    setting!("limits.stall_timeout_ms", config.limits.stall_timeout, Anywhere, None,
        "600000", "Milliseconds that a peer may refuse to take bytes of a body that are ready for it."),
    setting!("limits.websocket_idle_timeout_ms", config.limits.websocket_idle_timeout, Anywhere,
        None, "600000", "Milliseconds that a WebSocket is kept on which no byte goes either way."),
    setting!("limits.passthrough_idle_timeout_ms", config.limits.passthrough_idle_timeout, Anywhere,
        None, "600000", "Milliseconds that a tunnel to one of a session's passthrough_hosts is \
         kept on which no byte goes either way."),
    setting!("limits.connect_timeout_ms", config.limits.connect_timeout, Anywhere, None,
        "10000", "Milliseconds for all attempts to connect to one upstream together."),
    setting!("limits.dns_timeout_ms", config.limits.dns_timeout, Anywhere, None,
        "5000", "Milliseconds for one look-up of a name."),
    setting!("limits.drain_timeout_ms", config.limits.drain_timeout, Anywhere, None,
        "30000", "Milliseconds for exchanges in flight after the signal to stop."),
    setting!("limits.handover_timeout_ms", config.limits.handover_timeout, Anywhere, None,
        "3600000", "Milliseconds that what is open is served after another process has taken over; \
         what is left then is drained."),
    setting!("limits.answer_timeout_ms", config.limits.answer_timeout, Anywhere, None,
        "300000", "Milliseconds for the head of an answer after the last byte of its request went up, \
         or none: a model may think for minutes before its first word."),
    setting!("limits.exchange_idle_timeout_ms", config.limits.exchange_idle_timeout, Anywhere, None,
        "300000", "Milliseconds that an exchange is kept in which no byte goes either way, or none: \
         an event stream may be silent."),
    setting!("limits.connections", config.limits.connections, Anywhere, None,
        "10000", "Connections open at once through all listeners together."),
    setting!("limits.reserved_percent", config.limits.reserved_percent, Anywhere, None,
        "10", "Percent of them, from 1 to 90, that workloads may not take: they are for the management \
         API, and for those who have yet to show who they are. Workloads beyond the rest are answered \
         503."),
    setting!("limits.unauthenticated_per_address", config.limits.unauthenticated_per_address,
        Anywhere, None, "256", "Connections open at once from one address (of IPv6: from one /64) on \
         which no right credential was shown yet. More are closed unanswered."),
    setting!("limits.auth_failures", config.limits.auth_failures, Anywhere, None,
        "50", "Failed attempts of one address (of IPv6: of one /64) in one window, at the proxy and \
         the management API together. What fails beyond it is answered 429; a right credential is \
         always taken, and a request without one is no attempt."),
    setting!("limits.auth_failure_window_ms", config.limits.auth_failure_window, Anywhere, None,
        "300000", "Milliseconds in which failed attempts are counted together."),
    setting!("limits.session_connections", config.limits.session_connections, Anywhere, None,
        "512", "Connections open at once on which the credential of one session was shown, tunnels and \
         idle ones among them. More are answered 429 and closed. At least limits.session_tunnels."),
    setting!("limits.session_tunnels", config.limits.session_tunnels, Anywhere, None,
        "256", "Tunnels of one session open at once. CONNECT is answered 429 beyond it."),
    setting!("limits.session_exchanges", config.limits.session_exchanges, Anywhere, None,
        "64", "Exchanges of one session in flight at once, WebSockets among them. More wait for their \
         turn, and are answered 429 if it does not come."),
    setting!("limits.session_wait_ms", config.limits.session_wait, Anywhere, None,
        "5000", "Milliseconds that an exchange waits for its turn."),
    setting!("limits.session_requests_per_second", config.limits.session_requests_per_second,
        Anywhere, None, "20", "Requests of one session a second in the long run, or none. More are \
         answered 429."),
    setting!("limits.session_burst", config.limits.session_burst, Anywhere, None,
        "200", "Requests of one session that may come at once where their rate is limited."),
    setting!("limits.session_pool", config.limits.session_pool, Anywhere, None,
        "128", "Upstream connections that one session keeps for its next exchanges, for 20 seconds."),
    setting!("limits.tenant_sessions", config.limits.tenant_sessions, Anywhere, None, "1000",
        "Live sessions of one tenant, or none, unless its record says otherwise. One more is \
         answered 429."),
    setting!("limits.tenant_requests_per_second", config.limits.tenant_requests_per_second,
        Anywhere, None, "50", "Requests of one tenant to the management API a second in the long \
         run, or none, unless its record says otherwise. More are answered 429."),
    setting!("limits.tenant_burst", config.limits.tenant_burst, Anywhere, None,
        "200", "Requests of one tenant that may come at once where their rate is limited."),
    setting!("limits.swaps", config.limits.swaps, Anywhere, None,
        "1000", "Sealed tokens swapped in one head, or one body. More are answered 431 and 413."),
    setting!("limits.request_body_bytes", config.limits.request_body_bytes, Anywhere, None,
        "1073741824", "Bytes of the body of a request, or none. More are answered 413."),
    setting!("limits.head_bytes", config.limits.head_bytes, Anywhere, None,
        "65536", "Bytes of the head of a request. More are answered 431."),
    setting!("limits.head_fields", config.limits.head_fields, Anywhere, None,
        "100", "Fields of the head of a request, at most 10,000. More are answered 431."),
    setting!("limits.target_bytes", config.limits.target_bytes, Anywhere, None,
        "16384", "Bytes of the target of a request. More are answered 414."),
    setting!("limits.chunk_extension_bytes", config.limits.chunk_extension_bytes, Anywhere, None,
        "16384", "Bytes of all chunk extensions in the body of a request, which go no further. More \
         are answered 400."),
    setting!("limits.h2_streams", config.limits.h2_streams, Anywhere, None,
        "100", "Streams open at once on an HTTP/2 connection of a workload; never more are offered \
         than limits.session_exchanges."),
    setting!("limits.h2_stream_window_bytes", config.limits.h2_stream_window_bytes, Anywhere, None,
        "131072", "Bytes of one request that may be under way unread on HTTP/2."),
    setting!("limits.h2_connection_window_bytes", config.limits.h2_connection_window_bytes, Anywhere,
        None, "2097152", "Bytes of all requests of one HTTP/2 connection that may be under way unread. \
         At least 16 times the window of a stream, or one stream of small frames can end the others."),
    setting!("limits.h2_header_list_bytes", config.limits.h2_header_list_bytes, Anywhere, None,
        "65536", "Bytes of the fields of an HTTP/2 request, as HTTP/2 counts them."),
    setting!("limits.h2_pending_resets", config.limits.h2_pending_resets, Anywhere, None,
        "20", "Streams that an HTTP/2 workload may reset before they were looked at. More end its \
         connection."),
    setting!("limits.h2_error_resets", config.limits.h2_error_resets, Anywhere, None,
        "64", "Streams of one HTTP/2 connection that may be reset for errors of the workload's. More \
         end it."),
    setting!("limits.h2_given_up", config.limits.h2_given_up, Anywhere, None,
        "100", "Streams that an HTTP/2 workload may give up in ten seconds before they have an answer. \
         More end its connection."),
    setting!("limits.leaves", config.limits.leaves, Anywhere, None,
        "10000", "Hosts whose certificates are kept, about 1 KiB each, in steps of 16."),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_counted() {
        for (left, right, distance) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("abc", "abc", 0),
            ("abc", "axc", 1),
            ("abc", "bc", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(edits(left, right), distance, "{left} {right}");
        }
    }

    #[test]
    fn misspelt_keys_find_their_setting() {
        for (path, expected) in [
            ("proxy.listn", Some("proxy.listen")),
            ("prox.listen", Some("proxy.listen")),
            ("proxy.tls_lisetn", Some("proxy.tls_listen")),
            ("limits.dns_timeout", None),
            ("nonsense", None),
        ] {
            assert_eq!(nearest(path).map(|setting| setting.key), expected, "{path}");
        }
    }

    #[test]
    fn names_are_unique_in_every_source() {
        let mut keys: Vec<_> = SETTINGS.iter().map(|setting| setting.key).collect();
        let mut flags: Vec<_> = SETTINGS.iter().filter_map(|setting| setting.flag).collect();
        let mut variables: Vec<_> = SETTINGS.iter().filter_map(Setting::variable).collect();
        let counts = (keys.len(), flags.len(), variables.len());
        keys.sort_unstable();
        keys.dedup();
        flags.sort_unstable();
        flags.dedup();
        variables.sort();
        variables.dedup();
        assert_eq!(counts, (keys.len(), flags.len(), variables.len()));
        for key in keys {
            assert!(!is_later(key), "{key} cannot be a setting and a later one");
        }
    }

    #[test]
    fn later_sections_hold_all_their_keys() {
        for (path, later) in [
            ("admin_key", false),
            ("api.listen", true),
            ("apis", false),
            ("audit", false),
            ("store.max_stale", false),
            ("store.url", false),
            ("gateway.api_key", false),
            ("gateway.danger_extra_paths", false),
            ("payment.workos", false),
            ("github.client_id", false),
            ("github.api_url", true),
        ] {
            assert_eq!(is_later(path), later, "{path}");
        }
    }
}
