//! What a tenant asks for, and what it means.
//!
//! Everything is checked here and only here, and every bad field is reported at once by its path.
//! Nothing empty means allow: a secret without a scope is refused unless the operator's danger
//! setting says otherwise. Called by the live table for creation and for patches.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::capture;
use super::capture::CaptureForm;
use crate::policy::{
    BadLine, Catalogue, EgressPolicy, EgressRules, Entry, PassthroughHosts, SecretScope,
    TokenEndpoint,
};
use crate::sealed_token::{Places, Prefix};
use crate::secret::Secret;
use crate::swap::SHORTEST_VALUE_BYTES;

/// The shortest secret value, in bytes.
const SECRET_MIN_BYTES: usize = 8;
/// The longest secret value, in bytes.
const SECRET_LIMIT_BYTES: usize = 8 * 1024;
/// The most secrets of a session.
const SECRETS_LIMIT: usize = 100;
/// The most hosts of all lists of a session together.
const HOSTS_LIMIT: usize = 1000;
/// The most places of one list: every token that is found is compared with each.
const PLACES_LIMIT: usize = 100;
/// The most bad fields that are told of one form: a form can have hundreds of thousands.
pub const BAD_FIELDS_LIMIT: usize = 100;
/// The shortest and the longest lifetime, in seconds.
const LIFETIME_SECONDS: std::ops::RangeInclusive<u64> = 60..=2_592_000;
/// The lifetime after the last use, where none is given, in seconds.
const TTL_SECONDS: u64 = 86_400;
/// The lifetime after creation, where none is given, in seconds.
const MAX_LIFETIME_SECONDS: u64 = 604_800;
/// The most entries of the metadata, and the longest key and value in bytes.
const METADATA_LIMIT: usize = 50;
const METADATA_TEXT_LIMIT_BYTES: usize = 1024;
/// Header fields that no secret may be put in: they route, frame or concern one connection.
const REFUSED_HEADERS: [&str; 10] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "http2-settings",
];
/// The start of fields between a client and its proxy, none of which travels on.
const REFUSED_HEADERS_START: &str = "proxy-";

/// One bad field: its path, a stable code, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// The path of the field, such as `secrets.GITHUB_TOKEN.hosts[1]`.
    pub field: String,
    /// A stable name of what is wrong, in snake case.
    pub code: &'static str,
    /// A sentence for people; it never repeats a value.
    pub message: String,
}

impl FieldError {
    /// Names a bad field.
    pub fn new(field: impl Into<String>, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            code,
            message: message.into(),
        }
    }
}

/// Something that is accepted but weakens the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// A stable name, in snake case.
    pub code: &'static str,
    /// A sentence for people.
    pub message: String,
}

/// One secret as asked for. An absent list means what the session or the catalogue says.
#[derive(Clone, Debug)]
pub struct SecretForm {
    /// The real value.
    pub value: Secret,
    /// The hosts it may go to.
    pub hosts: Option<Vec<String>>,
    /// The places it may go to.
    pub inject: Option<Vec<String>>,
    /// What stands before `SEALED_` in its token.
    pub prefix: Option<String>,
}

/// A session as asked for.
#[derive(Clone, Debug, Default)]
pub struct Form {
    /// The secrets by name.
    pub secrets: BTreeMap<String, SecretForm>,
    /// The hosts of secrets that name none.
    pub secret_hosts: Option<Vec<String>>,
    /// The hosts that may be reached; absent means any public host.
    pub allowed_egress: Option<Vec<String>>,
    /// The places of secrets that name none.
    pub inject: Option<Vec<String>>,
    /// The hosts whose tunnels are passed through unread.
    pub passthrough_hosts: Vec<String>,
    /// The lifetime after the last use, in seconds.
    pub ttl_seconds: Option<u64>,
    /// The lifetime after creation, in seconds.
    pub max_lifetime_seconds: Option<u64>,
    /// Swap also in plain HTTP.
    pub allow_plaintext: Option<bool>,
    /// Take real values out of answers; absent means yes.
    pub scrub_responses: Option<bool>,
    /// Token endpoints beside the known ones, which are always watched.
    pub capture: Option<Vec<CaptureForm>>,
    /// The tenant's own notes.
    pub metadata: BTreeMap<String, String>,
}

/// What the operator has decided for all sessions.
#[derive(Clone, Debug)]
pub struct Options {
    /// The well-known secret names.
    pub catalogue: Arc<Catalogue>,
    /// The well-known token endpoints.
    pub token_endpoints: Arc<[Arc<TokenEndpoint>]>,
    /// A secret without a scope may go to every host (the operator's danger setting).
    pub unscoped_secrets: bool,
    /// An absent `allowed_egress` means any port, not 443 and 80 only (`--dev`).
    pub any_port: bool,
}

/// One secret that can be enforced.
#[derive(Clone, Debug)]
pub struct SecretSpec {
    /// Its name.
    pub name: Arc<str>,
    /// The real value.
    pub value: Secret,
    /// Where it may go.
    pub scope: SecretScope,
    /// Where in a request it may stand.
    pub places: Arc<Places>,
    /// What stands before `SEALED_` in its token.
    pub prefix: Option<Prefix>,
    /// The scope as text, for answers.
    pub hosts: Arc<[String]>,
    /// The places as text, for answers.
    pub inject: Arc<[String]>,
}

/// A session that can be enforced.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The secrets, by name in order.
    pub secrets: Vec<SecretSpec>,
    /// Which hosts may be reached.
    pub egress: EgressPolicy,
    /// Which of them are passed through unread: none to which a secret may go.
    pub passthrough: PassthroughHosts,
    /// The lifetime after the last use.
    pub ttl: Duration,
    /// The lifetime after creation.
    pub max_lifetime: Duration,
    /// Swap also in plain HTTP.
    pub allow_plaintext: bool,
    /// Take real values out of answers.
    pub scrub_responses: bool,
    /// Where tokens are captured.
    pub token_endpoints: Arc<[Arc<TokenEndpoint>]>,
    /// What is accepted but weakens the session.
    pub warnings: Vec<Warning>,
}

impl Spec {
    /// Checks a form and gives it its meaning.
    ///
    /// # Errors
    /// Every bad field, up to [`BAD_FIELDS_LIMIT`].
    pub fn parse(form: &Form, options: &Options) -> Result<Self, Vec<FieldError>> {
        let mut check = Check {
            form,
            options,
            errors: Vec::new(),
            warnings: Vec::new(),
        };
        check.counts();
        let secrets = check.secrets();
        let egress = check.egress();
        let token_endpoints = check.token_endpoints();
        let passthrough = check.passthrough(&secrets, &egress);
        check.watched(&token_endpoints, &passthrough);
        let (ttl, max_lifetime) = check.lifetimes();
        check.metadata();
        if !check.errors.is_empty() {
            return Err(check.errors);
        }
        Ok(Self {
            secrets,
            egress,
            passthrough,
            ttl: Duration::from_secs(ttl),
            max_lifetime: Duration::from_secs(max_lifetime),
            allow_plaintext: form.allow_plaintext.unwrap_or(false),
            scrub_responses: check.scrub(),
            token_endpoints,
            warnings: check.warnings,
        })
    }
}

/// Where a secret may go, and the same as text.
type Scoped = (SecretScope, Arc<[String]>);
/// Where in a request a secret may stand, and the same as text.
type Placed = (Arc<Places>, Arc<[String]>);

struct Check<'a> {
    form: &'a Form,
    options: &'a Options,
    errors: Vec<FieldError>,
    warnings: Vec<Warning>,
}

impl Check<'_> {
    fn fail(&mut self, field: impl Into<String>, code: &'static str, message: impl Into<String>) {
        if self.errors.len() < BAD_FIELDS_LIMIT {
            self.errors.push(FieldError::new(field, code, message));
        }
    }

    fn secrets(&mut self) -> Vec<SecretSpec> {
        let form = self.form;
        // Both lists are checked even where every secret has its own, and shared where none has.
        let session_hosts = form.secret_hosts.as_ref();
        let session_scope = session_hosts.and_then(|list| self.hosts("secret_hosts", list));
        let session_places = self.places("inject", form.inject.as_deref());
        let mut secrets = Vec::with_capacity(form.secrets.len().min(SECRETS_LIMIT));
        for (name, secret) in &form.secrets {
            let path = format!("secrets.{name}");
            self.secret_name(&path, name);
            self.secret_value(&path, &secret.value);
            let prefix = self.prefix(&path, secret.prefix.as_deref());
            let own = secret.hosts.as_ref();
            let own_scope = own.and_then(|list| self.hosts(&format!("{path}.hosts"), list));
            let (places, inject) = match &secret.inject {
                Some(list) => self.places(&format!("{path}.inject"), Some(list)),
                None => session_places.clone(),
            };
            let stated = match (&secret.hosts, &form.secret_hosts) {
                (Some(list), _) => Some((format!("{path}.hosts"), list, own_scope)),
                (None, Some(list)) => {
                    Some(("secret_hosts".to_owned(), list, session_scope.clone()))
                }
                (None, None) => None,
            };
            let Some(((scope, hosts), headers)) = self.scope(&path, name, stated) else {
                continue;
            };
            secrets.push(SecretSpec {
                name: Arc::from(name.as_str()),
                value: secret.value.clone(),
                scope,
                places: narrow(places, headers),
                prefix,
                hosts,
                inject,
            });
        }
        secrets
    }

    fn secret_name(&mut self, path: &str, name: &str) {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if name.is_empty() || name.len() > 128 || !name.bytes().all(plain) {
            let message = "a secret's name has 1 to 128 characters of [A-Za-z0-9_.-]";
            self.fail(path, "bad_name", message);
        }
    }

    fn secret_value(&mut self, path: &str, value: &Secret) {
        let field = format!("{path}.value");
        if value.len() < SECRET_MIN_BYTES {
            let message = format!("a secret has at least {SECRET_MIN_BYTES} bytes");
            self.fail(&field, "secret_too_short", message);
        } else if value.len() > SECRET_LIMIT_BYTES {
            let message = format!("a secret has at most {SECRET_LIMIT_BYTES} bytes");
            self.fail(&field, "secret_too_long", message);
        }
        if value
            .expose()
            .iter()
            .any(|byte| (*byte < 0x20 && *byte != b'\t') || *byte == 0x7f)
        {
            let message = "a secret has no CR, LF, NUL or other control character";
            self.fail(&field, "secret_has_control_character", message);
        }
    }

    fn prefix(&mut self, path: &str, prefix: Option<&str>) -> Option<Prefix> {
        let text = prefix?;
        let parsed = Prefix::parse(text);
        if parsed.is_none() {
            let message = "a prefix has 1 to 64 characters of [A-Za-z0-9._~-]";
            self.fail(format!("{path}.prefix"), "bad_prefix", message);
        }
        parsed
    }

    /// Finds where a secret may go: where its own list says, the session's, the catalogue, or
    /// nowhere. `stated` is the first of the two lists that is there, with its path and what it was
    /// parsed to. Returns also the header names that the catalogue gives for it.
    fn scope(
        &mut self,
        path: &str,
        name: &str,
        stated: Option<(String, &Vec<String>, Option<Scoped>)>,
    ) -> Option<(Scoped, &[Box<str>])> {
        let (known, headers) = match self.options.catalogue.lookup(name) {
            Some(Entry::Signs { reason }) => {
                self.fail(path, "secret_signs", reason.to_string());
                return None;
            }
            Some(Entry::Travels { hosts, headers }) => (Some(hosts), headers.as_slice()),
            None => (None, [].as_slice()),
        };
        let scoped = match (stated, known) {
            // An empty list is a scope of no hosts: written by mistake, never meant as "all".
            (Some((field, list, _)), _) if list.is_empty() => {
                let message = format!("an empty list gives {name} no host at all");
                self.fail(field, "secret_unscoped", message);
                return None;
            }
            // What is bad in the list was told where it was parsed.
            (Some((_, _, scoped)), _) => scoped?,
            (None, Some(hosts)) => {
                let text: Vec<String> = hosts.iter().map(ToString::to_string).collect();
                (SecretScope::hosts(hosts.clone()).ok()?, text.into())
            }
            (None, None) if self.options.unscoped_secrets => {
                let message = format!(
                    "{name} may go to every host: whoever can reach a server of their own can \
                     read it back"
                );
                self.warnings.push(Warning {
                    code: "secret_unscoped",
                    message,
                });
                (SecretScope::any_host(), ["*".to_owned()].into())
            }
            (None, None) => {
                let message = format!(
                    "{name} has no hosts and is no well-known name: add \
                     \"hosts\": [\"api.example.com\"] to it, or \"secret_hosts\" to the session"
                );
                self.fail(path, "secret_unscoped", message);
                return None;
            }
        };
        Some((scoped, headers))
    }

    /// Parses a list of exact hosts; nothing if one of them is bad.
    fn hosts(&mut self, field: &str, list: &[String]) -> Option<Scoped> {
        match SecretScope::parse(list) {
            Ok(scope) => Some((scope, list.into())),
            Err(lines) => {
                self.bad_hosts(field, lines);
                None
            }
        }
    }

    fn bad_hosts(&mut self, field: &str, lines: Vec<BadLine>) {
        for line in lines {
            let field = format!("{field}[{}]", line.index);
            self.fail(field, "bad_host", line.error.to_string());
        }
    }

    fn places(&mut self, field: &str, list: Option<&[String]>) -> Placed {
        let Some(list) = list else {
            let places = Places {
                any_header: true,
                ..Places::default()
            };
            return (places.into(), ["header".to_owned()].into());
        };
        if list.is_empty() {
            self.fail(
                field,
                "empty_list",
                "an empty list gives the secret no place at all",
            );
        }
        if list.len() > PLACES_LIMIT {
            let message = format!("at most {PLACES_LIMIT} places");
            self.fail(field, "too_many", message);
        }
        let mut places = Places::default();
        for (index, text) in list.iter().take(PLACES_LIMIT).enumerate() {
            let path = format!("{field}[{index}]");
            match text.as_str() {
                "header" => places.any_header = true,
                "query" => places.query = true,
                "path" => places.path = true,
                "body" => places.body = true,
                other => match other.strip_prefix("header:").map(header_name) {
                    Some(Some(name)) if is_refused(&name) => self.fail(
                        path,
                        "header_not_allowed",
                        format!("no secret can be put in the field {name}"),
                    ),
                    Some(Some(name)) => places.headers.push(name),
                    Some(None) => self.fail(path, "bad_header", "the field name is malformed"),
                    None => self.fail(
                        path,
                        "bad_place",
                        "a place is header, header:NAME, query, path or body",
                    ),
                },
            }
        }
        (places.into(), list.into())
    }

    fn egress(&mut self) -> EgressPolicy {
        let Some(list) = &self.form.allowed_egress else {
            return EgressPolicy::new(EgressRules::any_public(self.options.any_port));
        };
        let rules = EgressRules::parse(list).unwrap_or_else(|lines| {
            self.bad_hosts("allowed_egress", lines);
            EgressRules::listed(Vec::new())
        });
        EgressPolicy::new(if self.options.any_port {
            rules.with_any_port()
        } else {
            rules
        })
    }

    /// Says which values are too short to be scrubbed: to take out a guess would tell that it was
    /// right.
    fn scrub(&mut self) -> bool {
        let scrub = self.form.scrub_responses.unwrap_or(true);
        let short = self.form.secrets.iter();
        let short = short.filter(|(_, secret)| secret.value.len() < SHORTEST_VALUE_BYTES);
        if scrub {
            self.warnings.extend(short.map(|(name, _)| Warning {
                code: "secret_not_scrubbed",
                message: format!(
                    "{name} is shorter than {SHORTEST_VALUE_BYTES} bytes: it is not taken out of \
                     answers, since that would tell who guesses it"
                ),
            }));
        }
        scrub
    }

    /// Checks that what is passed through unread may be reached, and that no secret may go there:
    /// it could not be swapped, and a session that looks as if it were would mislead.
    fn passthrough(&mut self, secrets: &[SecretSpec], egress: &EgressPolicy) -> PassthroughHosts {
        const FIELD: &str = "passthrough_hosts";
        let hosts = PassthroughHosts::parse(&self.form.passthrough_hosts).unwrap_or_else(|lines| {
            self.bad_hosts(FIELD, lines);
            PassthroughHosts::listed(Vec::new())
        });
        let has = |bad: fn(&FieldError) -> bool| self.errors.iter().any(bad);
        if has(|error| error.code == "too_many") {
            // The work grows with the product of the lists.
            return hosts;
        }
        // What is bad itself is not compared with.
        let egress_is_bad = has(|error| error.field.starts_with("allowed_egress"));
        let mut scopes: Vec<&SecretSpec> = Vec::new();
        for secret in secrets {
            let shared = |other: &&SecretSpec| Arc::ptr_eq(&other.hosts, &secret.hosts);
            if !scopes.iter().any(shared) {
                scopes.push(secret);
            }
        }
        for (index, pattern) in hosts.iter().enumerate() {
            let field = format!("{FIELD}[{index}]");
            if !egress_is_bad && !egress.rules().contain(pattern) {
                self.fail(
                    &field,
                    "not_in_allowed_egress",
                    "is not within allowed_egress",
                );
            }
            if let Some(secret) = scopes.iter().find(|it| it.scope.overlaps(pattern)) {
                let message = format!(
                    "{} may go to this host, and nothing is swapped where nothing is read",
                    secret.name
                );
                self.fail(&field, "overlaps_secret", message);
            }
        }
        hosts
    }

    fn token_endpoints(&mut self) -> Arc<[Arc<TokenEndpoint>]> {
        let known = &self.options.token_endpoints;
        let endpoints = capture::endpoints(self.form.capture.as_deref(), known);
        endpoints.unwrap_or_else(|bad| {
            let room = BAD_FIELDS_LIMIT.saturating_sub(self.errors.len());
            self.errors.extend(bad.into_iter().take(room));
            Arc::from([])
        })
    }

    /// Checks that nothing is passed through unread of what the session wants to be watched.
    fn watched(&mut self, endpoints: &[Arc<TokenEndpoint>], passthrough: &PassthroughHosts) {
        // The named ones come first.
        let named = self.form.capture.as_ref().map_or(0, Vec::len);
        for (index, endpoint) in endpoints.iter().take(named).enumerate() {
            let unread = |it: &SecretScope| passthrough.iter().any(|pattern| it.overlaps(pattern));
            if unread(endpoint.own_scope()) || unread(endpoint.scope()) {
                let message = "a host of it is in passthrough_hosts, where nothing is read";
                self.fail(format!("capture[{index}]"), "overlaps_passthrough", message);
            }
        }
    }

    fn lifetimes(&mut self) -> (u64, u64) {
        let form = self.form;
        let lifetime = form.max_lifetime_seconds.unwrap_or(MAX_LIFETIME_SECONDS);
        let ttl = form.ttl_seconds.unwrap_or(TTL_SECONDS.min(lifetime));
        let (least, most) = (LIFETIME_SECONDS.start(), LIFETIME_SECONDS.end());
        let range = format!("a number from {least} to {most}");
        let is_bad = |seconds: &u64| !LIFETIME_SECONDS.contains(seconds);
        // What was not given is not told to be bad, nor compared with what is bad itself.
        if form.ttl_seconds.as_ref().is_some_and(is_bad) {
            self.fail("ttl_seconds", "out_of_range", range.as_str());
        } else if ttl > lifetime && !is_bad(&lifetime) {
            let message = format!("at most max_lifetime_seconds, which is {lifetime}");
            self.fail("ttl_seconds", "out_of_range", message);
        }
        if is_bad(&lifetime) {
            self.fail("max_lifetime_seconds", "out_of_range", range);
        }
        (ttl, lifetime)
    }

    /// Checks how many of each there are, before the many are looked at one by one.
    fn counts(&mut self) {
        let form = self.form;
        if form.secrets.len() > SECRETS_LIMIT {
            let message = format!("at most {SECRETS_LIMIT} secrets");
            self.fail("secrets", "too_many", message);
        }
        let own = form
            .secrets
            .values()
            .filter_map(|secret| secret.hosts.as_ref());
        let lists = own
            .chain(&form.secret_hosts)
            .chain(&form.allowed_egress)
            .chain([&form.passthrough_hosts])
            .chain(
                form.capture
                    .iter()
                    .flatten()
                    .filter_map(|it| it.hosts.as_ref()),
            );
        if lists.map(Vec::len).sum::<usize>() > HOSTS_LIMIT {
            let message = format!("at most {HOSTS_LIMIT} hosts in all lists together");
            self.fail("allowed_egress", "too_many", message);
        }
    }

    fn metadata(&mut self) {
        let metadata = &self.form.metadata;
        let long = |text: &String| text.len() > METADATA_TEXT_LIMIT_BYTES;
        if metadata.len() > METADATA_LIMIT || metadata.iter().any(|(k, v)| long(k) || long(v)) {
            let message = format!(
                "at most {METADATA_LIMIT} entries, keys and values of at most \
                 {METADATA_TEXT_LIMIT_BYTES} bytes"
            );
            self.fail("metadata", "too_large", message);
        }
    }
}

/// Puts the header names of the catalogue in the place of "any header".
fn narrow(places: Arc<Places>, headers: &[Box<str>]) -> Arc<Places> {
    if !places.any_header || headers.is_empty() {
        return places;
    }
    let mut places = Arc::unwrap_or_clone(places);
    places.any_header = false;
    places.headers.extend(headers.iter().cloned());
    Arc::new(places)
}

fn is_refused(header: &str) -> bool {
    REFUSED_HEADERS.contains(&header) || header.starts_with(REFUSED_HEADERS_START)
}

/// Returns a field name in lower case, and nothing if it is not a token (RFC 9110 §5.1).
fn header_name(text: &str) -> Option<Box<str>> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let ok = !text.is_empty() && text.len() <= 128 && text.bytes().all(token);
    ok.then(|| text.to_ascii_lowercase().into())
}
