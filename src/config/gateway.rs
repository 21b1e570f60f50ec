//! The settings of the Claude Gateway and of payment, and the secrets that may come from files.
//!
//! The gateway is there where it has the operator's credential and the secret of workload JWTs; one
//! without the other is a mistake, and so is a secret of a payment provider that is not asked. No
//! secret stands in the configuration file. Called by the checks.

use std::fmt;
use std::path::PathBuf;

use super::github::CLIENT_SECRET as GITHUB_SECRET;
use super::raw::Reading;
use super::settings::{Draft, Shape};
use super::source::Source;
use super::value::{Item, Raw, Value, one_text, quote};
use super::{Config, Origin, Store};
use crate::callout;
use crate::gateway::ExtraPath;
use crate::identity::SECRET_LEAST_BYTES;
use crate::secret::Secret;

/// The longest URL of a page that people are sent to, in bytes.
const PAGE_LIMIT_BYTES: usize = 512;
const API_KEY: &str = "gateway.api_key";
const JWT_SECRET: &str = "gateway.jwt_secret";
const JWT_SECRET_PREVIOUS: &str = "gateway.jwt_secret_previous";
const EXTRA_PATHS: &str = "gateway.danger_extra_paths";
const BUDGET: &str = "gateway.monthly_budget";
const PROVIDER: &str = "payment.provider";
const STORE_URL: &str = "store.url";
const FREE_ALLOWANCE: &str = "gateway.free_allowance";
const BOOKS: &str = "gateway.danger_books_per_node";
const WORKOS_KEY: &str = "payment.workos.api_key";
const STRIPE_SECRET: &str = "payment.stripe.webhook_secret";
const STRIPE_SECRET_PREVIOUS: &str = "payment.stripe.webhook_secret_previous";
/// The longest name or value of metadata, in bytes: what `WorkOS` takes.
const WORD_LIMIT_BYTES: usize = 600;

/// Settings of the Claude Gateway (`[gateway]`); off without its two secrets.
#[derive(Debug, Clone)]
pub struct Gateway {
    /// The model provider.
    pub upstream: ServiceUrl,
    /// The operator's credential there.
    pub api_key: Option<Secret>,
    /// The paths that are forwarded beside those of messages and models.
    pub extra_paths: Vec<ExtraPath>,
    /// What signs workload JWTs.
    pub jwt_secret: Option<Secret>,
    /// What signed them before.
    pub jwt_secret_previous: Option<Secret>,
    /// Where an account is paid for.
    pub payment_url: Option<PageUrl>,
    /// Tokens a month of an account that is paid; none for any number.
    pub monthly_budget: Option<u64>,
    /// Tokens a month of one that is not; none for no token.
    pub free_allowance: Option<u64>,
    /// Requests of one account a minute; none for any number.
    pub requests_per_minute: Option<u32>,
    /// Each node of a shared store keeps accounts and books of its own.
    pub danger_books_per_node: bool,
    /// Where the relay of OAuth tokens leads.
    pub oauth_token_url: ServiceUrl,
    /// Requests of one address to that relay a minute.
    pub oauth_requests_per_minute: u32,
}

impl Default for Gateway {
    /// The model provider's own addresses, no secret and no token for nothing.
    fn default() -> Self {
        Self {
            upstream: ServiceUrl::default(),
            api_key: None,
            extra_paths: Vec::new(),
            jwt_secret: None,
            jwt_secret_previous: None,
            payment_url: None,
            monthly_budget: None,
            free_allowance: None,
            requests_per_minute: None,
            danger_books_per_node: false,
            oauth_token_url: ServiceUrl("https://console.anthropic.com/v1/oauth/token".to_owned()),
            oauth_requests_per_minute: 30,
        }
    }
}

impl Gateway {
    /// Tells whether there is a gateway.
    pub fn is_on(&self) -> bool {
        self.api_key.is_some() && self.jwt_secret.is_some()
    }
}

/// Settings of payment (`[payment]`).
#[derive(Debug, Clone)]
pub struct Payment {
    /// Who is asked.
    pub provider: PaymentProvider,
    /// `WorkOS`.
    pub workos: PaymentWorkos,
    /// Stripe.
    pub stripe: PaymentStripe,
}

impl Default for Payment {
    /// The accounts of the store, and nobody else.
    fn default() -> Self {
        Self {
            provider: PaymentProvider::Local,
            workos: PaymentWorkos::default(),
            stripe: PaymentStripe::default(),
        }
    }
}

/// Who knows whether an account is paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PaymentProvider {
    /// The accounts of the store.
    Local,
    /// `WorkOS`.
    Workos,
}

/// How `WorkOS` is asked (`[payment.workos]`).
#[derive(Debug, Clone)]
pub struct PaymentWorkos {
    /// The operator's key.
    pub api_key: Option<Secret>,
    /// Where it is.
    pub base_url: ServiceUrl,
    /// The name of the metadata that tells.
    pub metadata_key: Word,
    /// The value that means paid.
    pub metadata_value: Word,
}

impl Default for PaymentWorkos {
    /// `paid` must be `true`.
    fn default() -> Self {
        Self {
            api_key: None,
            base_url: ServiceUrl("https://api.workos.com".to_owned()),
            metadata_key: Word("paid".to_owned()),
            metadata_value: Word("true".to_owned()),
        }
    }
}

/// What Stripe's deliveries are signed with (`[payment.stripe]`).
#[derive(Debug, Clone, Default)]
pub struct PaymentStripe {
    /// The secret of the endpoint; no route without.
    pub webhook_secret: Option<Secret>,
    /// The one before.
    pub webhook_secret_previous: Option<Secret>,
}

/// A text of visible ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word(String);

impl Word {
    /// Parses 1 to 600 visible ASCII characters.
    pub fn parse(text: &str) -> Option<Self> {
        let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
        let fits = plain && (1..=WORD_LIMIT_BYTES).contains(&text.len());
        fits.then(|| Self(text.to_owned()))
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Value for Word {
    const SHAPE: Shape = Shape::One;
    const NAME: &'static str = "TEXT";

    fn read(raw: &Raw) -> Result<Self, Vec<String>> {
        one_text(raw).and_then(Self::parse).ok_or_else(|| {
            let expects = "expects 1 to 600 visible ASCII characters without blanks";
            vec![expects.to_owned()]
        })
    }

    fn to_toml(&self) -> Option<String> {
        Some(quote(self.as_str()))
    }
}

impl Item for Word {
    const EXPECTS: &'static str = "1 to 600 visible ASCII characters without blanks";
    const NAME: &'static str = "TEXT";

    fn parse(text: &str) -> Option<Self> {
        Self::parse(text)
    }

    fn print(&self) -> String {
        self.as_str().to_owned()
    }
}

impl Value for PaymentProvider {
    const SHAPE: Shape = Shape::One;
    const NAME: &'static str = "local|workos";

    fn read(raw: &Raw) -> Result<Self, Vec<String>> {
        match one_text(raw) {
            Some("local") => Ok(Self::Local),
            Some("workos") => Ok(Self::Workos),
            _ => Err(vec!["expects local or workos".to_owned()]),
        }
    }

    fn to_toml(&self) -> Option<String> {
        let word = match self {
            Self::Local => "local",
            Self::Workos => "workos",
        };
        Some(quote(word))
    }
}

/// The URL of a service that is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceUrl(String);

impl ServiceUrl {
    /// Parses `https://HOST[:PORT][/PATH]`, or the same with http for loopback.
    pub fn parse(text: &str) -> Option<Self> {
        callout::is_url(text).then(|| Self(text.to_owned()))
    }

    /// Takes an address of this program's own.
    pub(super) fn literal(text: &'static str) -> Self {
        Self(text.to_owned())
    }

    /// Returns the text form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for ServiceUrl {
    /// The model provider.
    fn default() -> Self {
        Self("https://api.anthropic.com".to_owned())
    }
}

impl fmt::Display for ServiceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The URL of a page that people are sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageUrl(String);

impl PageUrl {
    /// Parses an `http://` or `https://` URL of visible ASCII characters.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let plain = |byte: u8| byte.is_ascii_graphic() && !b"\"'<>\\`".contains(&byte);
        let fits = matches!(scheme, "http" | "https")
            && !rest.is_empty()
            && text.len() <= PAGE_LIMIT_BYTES
            && text.bytes().all(plain);
        fits.then(|| Self(text.to_owned()))
    }

    /// Returns the text form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PageUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Item for PageUrl {
    const EXPECTS: &'static str = "an http:// or https:// URL of at most 512 visible characters";
    const NAME: &'static str = "URL";

    fn parse(text: &str) -> Option<Self> {
        Self::parse(text)
    }

    fn print(&self) -> String {
        self.to_string()
    }
}

impl Item for ExtraPath {
    const EXPECTS: &'static str = "a path such as /v1/files that is not forwarded already: letters, \
        digits and ._:@~- between slashes, without pattern, escape, query, '.' and '..'";
    const NAME: &'static str = "PATH";

    fn parse(text: &str) -> Option<Self> {
        Self::parse(text)
    }

    fn print(&self) -> String {
        self.as_str().to_owned()
    }
}

impl Value for ServiceUrl {
    const SHAPE: Shape = Shape::One;
    const NAME: &'static str = "URL";

    fn read(raw: &Raw) -> Result<Self, Vec<String>> {
        one_text(raw).and_then(Self::parse).ok_or_else(|| {
            let expects = "expects https://HOST[:PORT][/PATH], or the same with http for a \
                 loopback address, without user, query or escapes";
            vec![expects.to_owned()]
        })
    }

    fn to_toml(&self) -> Option<String> {
        Some(quote(self.as_str()))
    }
}

/// The files that secrets may come from, while the configuration is read.
#[derive(Default)]
pub(super) struct SecretFiles {
    pub(super) api_key: Option<PathBuf>,
    pub(super) jwt_secret: Option<PathBuf>,
    pub(super) jwt_secret_previous: Option<PathBuf>,
    pub(super) workos: Option<PathBuf>,
    pub(super) stripe: Option<PathBuf>,
    pub(super) stripe_previous: Option<PathBuf>,
    pub(super) github: Option<PathBuf>,
}

/// A secret that comes from the environment or from a file.
struct Secrets {
    key: &'static str,
    file_key: &'static str,
    file: fn(&mut SecretFiles) -> &mut Option<PathBuf>,
    slot: fn(&mut Draft) -> &mut Option<Secret>,
    least_bytes: usize,
}

const SECRETS: [Secrets; 7] = [
    Secrets {
        key: API_KEY,
        file_key: "gateway.api_key_file",
        file: |files| &mut files.api_key,
        slot: |draft| &mut draft.config.gateway.api_key,
        least_bytes: 0,
    },
    Secrets {
        key: JWT_SECRET,
        file_key: "gateway.jwt_secret_file",
        file: |files| &mut files.jwt_secret,
        slot: |draft| &mut draft.config.gateway.jwt_secret,
        least_bytes: SECRET_LEAST_BYTES,
    },
    Secrets {
        key: JWT_SECRET_PREVIOUS,
        file_key: "gateway.jwt_secret_previous_file",
        file: |files| &mut files.jwt_secret_previous,
        slot: |draft| &mut draft.config.gateway.jwt_secret_previous,
        least_bytes: SECRET_LEAST_BYTES,
    },
    Secrets {
        key: WORKOS_KEY,
        file_key: "payment.workos.api_key_file",
        file: |files| &mut files.workos,
        slot: |draft| &mut draft.config.payment.workos.api_key,
        least_bytes: 0,
    },
    Secrets {
        key: STRIPE_SECRET,
        file_key: "payment.stripe.webhook_secret_file",
        file: |files| &mut files.stripe,
        slot: |draft| &mut draft.config.payment.stripe.webhook_secret,
        least_bytes: 0,
    },
    Secrets {
        key: STRIPE_SECRET_PREVIOUS,
        file_key: "payment.stripe.webhook_secret_previous_file",
        file: |files| &mut files.stripe_previous,
        slot: |draft| &mut draft.config.payment.stripe.webhook_secret_previous,
        least_bytes: 0,
    },
    Secrets {
        key: GITHUB_SECRET,
        file_key: "github.client_secret_file",
        file: |files| &mut files.github,
        slot: |draft| &mut draft.config.github.client_secret,
        least_bytes: 0,
    },
];

/// Returns every secret by its name, for print.
pub(super) fn secrets(config: &Config) -> [(&'static str, &Option<Secret>); 7] {
    let (gateway, payment) = (&config.gateway, &config.payment);
    [
        (API_KEY, &gateway.api_key),
        (JWT_SECRET, &gateway.jwt_secret),
        (JWT_SECRET_PREVIOUS, &gateway.jwt_secret_previous),
        (WORKOS_KEY, &payment.workos.api_key),
        (STRIPE_SECRET, &payment.stripe.webhook_secret),
        (
            STRIPE_SECRET_PREVIOUS,
            &payment.stripe.webhook_secret_previous,
        ),
        (GITHUB_SECRET, &config.github.client_secret),
    ]
}

/// Reads the files, and looks at the lengths of what they and the environment gave.
pub(super) fn read_secrets(reading: &mut Reading, source: &Source) {
    for secret in &SECRETS {
        read_secret(reading, source, secret);
    }
}

fn read_secret(reading: &mut Reading, source: &Source, secret: &Secrets) {
    if !reading.trusts(&[secret.key, secret.file_key]) {
        return;
    }
    let mut place = secret.key;
    if let Some(path) = (secret.file)(&mut reading.draft.secret_files).take() {
        place = secret.file_key;
        let origin = reading.origin(place);
        if (secret.slot)(&mut reading.draft).is_some() {
            let other = reading.origin(secret.key);
            let expectation = format!("is given beside {} ({other})", secret.key);
            return reading.report(place, expectation, origin);
        }
        match source.read_api_key(&path) {
            Ok(read) => *(secret.slot)(&mut reading.draft) = Some(read),
            Err(expectation) => return reading.report(place, expectation, origin),
        }
    }
    let given = (secret.slot)(&mut reading.draft).as_ref();
    if given.is_some_and(|given| given.len() < secret.least_bytes) {
        let expectation = format!("expects at least {} characters", secret.least_bytes);
        let origin = reading.origin(place);
        reading.report(place, expectation, origin);
    }
}

/// Refuses half a gateway, secrets of who is not asked, and paths that nobody may reach.
pub(super) fn check(reading: &mut Reading) {
    check_extra_paths(reading);
    let keys = SECRETS
        .iter()
        .flat_map(|secret| [secret.key, secret.file_key]);
    let keys: Vec<&str> = keys.chain([PROVIDER]).collect();
    if !reading.trusts(&keys) {
        return;
    }
    let (gateway, payment) = (&reading.draft.config.gateway, &reading.draft.config.payment);
    let has_key = gateway.api_key.is_some();
    let has_secret = gateway.jwt_secret.is_some();
    let has_previous = gateway.jwt_secret_previous.is_some();
    let (workos, stripe) = (payment.workos.api_key.is_some(), &payment.stripe);
    let (now, before) = (&stripe.webhook_secret, &stripe.webhook_secret_previous);
    let (now, before) = (now.is_some(), before.is_some());
    let asks_workos = payment.provider == PaymentProvider::Workos;
    let missing = [
        (API_KEY, !has_key && has_secret, JWT_SECRET),
        (JWT_SECRET, has_key && !has_secret, API_KEY),
        (
            JWT_SECRET,
            has_previous && !has_secret && !has_key,
            JWT_SECRET_PREVIOUS,
        ),
        (
            WORKOS_KEY,
            asks_workos && !workos,
            "payment.provider = \"workos\"",
        ),
        (STRIPE_SECRET, before && !now, STRIPE_SECRET_PREVIOUS),
    ];
    let unused = [
        (WORKOS_KEY, workos && !asks_workos, "workos"),
        (STRIPE_SECRET, now && asks_workos, "local"),
    ];
    for (key, is_missing, other) in missing {
        // A file that could not be read was reported by itself.
        if is_missing && given(reading, key).is_none() {
            let expectation = format!("is needed beside {other}");
            reading.report(key, expectation, Origin::Missing);
        }
    }
    for (key, is_unused, provider) in unused {
        if let Some(place) = given(reading, key).filter(|_| is_unused) {
            let expectation = format!("has no use without {PROVIDER} = \"{provider}\"");
            let origin = reading.origin(&place);
            reading.report(&place, expectation, origin);
        }
    }
}

/// Refuses what would hold on each node by itself where several have one store: there a budget would
/// be spent once on every node, and who has stopped to pay would be served by those that did not hear
/// of it.
pub(super) fn check_books(reading: &mut Reading) {
    let config = &reading.draft.config;
    let is_alone = !matches!(config.store, Store::Shared(_));
    let gateway = &config.gateway;
    let keys = [STORE_URL, PROVIDER, BUDGET, FREE_ALLOWANCE, BOOKS];
    if is_alone || !gateway.is_on() || gateway.danger_books_per_node || !reading.trusts(&keys) {
        return;
    }
    let per_node = [
        (PROVIDER, config.payment.provider == PaymentProvider::Local),
        (BUDGET, gateway.monthly_budget.is_some()),
        (FREE_ALLOWANCE, gateway.free_allowance.is_some()),
    ];
    for (key, _) in per_node.into_iter().filter(|(_, is_per_node)| *is_per_node) {
        let expectation = match key {
            PROVIDER => {
                "expects workos where store.url is of several nodes: each would know payments \
                         of its own"
            }
            _ => "expects none where store.url is of several nodes: each would count for itself",
        };
        let expectation = format!(
            "{expectation}; {BOOKS} = true allows it where one node alone gets the gateway's calls and \
             webhooks"
        );
        let origin = if reading.is_given(key) {
            reading.origin(key)
        } else {
            Origin::Missing
        };
        reading.report(key, expectation, origin);
    }
}

/// Refuses paths whose calls cannot be counted where every account has a budget.
fn check_extra_paths(reading: &mut Reading) {
    if !reading.trusts(&[EXTRA_PATHS, BUDGET]) {
        return;
    }
    let gateway = &reading.draft.config.gateway;
    if gateway.monthly_budget.is_some() && !gateway.extra_paths.is_empty() {
        let expectation = format!("has no use beside {BUDGET}: what they use cannot be counted");
        let origin = reading.origin(EXTRA_PATHS);
        reading.report(EXTRA_PATHS, expectation, origin);
    }
}

/// Returns under which of its two keys a secret was given.
fn given(reading: &Reading, key: &str) -> Option<String> {
    let keys = [key.to_owned(), format!("{key}_file")];
    keys.into_iter().find(|key| reading.is_given(key))
}
