//! What is sent to the API, under its wire names.
//!
//! Nothing here judges a field: the server does, and names every bad one at once. Secret values are
//! never printed. Callers build these; `client` serialises them.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::capture::CaptureEndpoint;
use crate::redact::MARK;

/// A secret as a request gives it.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum SecretInput {
    /// The value with settings of its own.
    Long(SecretSpec),
    /// The value alone; scope and places are those of the session.
    Plain(String),
}

impl SecretInput {
    fn value(&self) -> &str {
        match self {
            Self::Long(spec) => &spec.value,
            Self::Plain(value) => value,
        }
    }
}

impl fmt::Debug for SecretInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Long(spec) => spec.fmt(f),
            Self::Plain(_) => f.write_str(MARK),
        }
    }
}

impl From<&str> for SecretInput {
    fn from(value: &str) -> Self {
        Self::Plain(value.to_owned())
    }
}

impl From<String> for SecretInput {
    fn from(value: String) -> Self {
        Self::Plain(value)
    }
}

impl From<SecretSpec> for SecretInput {
    fn from(spec: SecretSpec) -> Self {
        Self::Long(spec)
    }
}

/// One secret with its own settings.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SecretSpec {
    /// The real value, 8 bytes to 8 KiB.
    pub value: String,
    /// The only hosts that may receive it; wins over the session's `secret_hosts`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hosts: Option<Vec<String>>,
    /// Places where it is swapped; none for those of the session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inject: Option<Vec<String>>,
    /// Put before the sealed token, for programs that check how a key begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
}

impl SecretSpec {
    /// Makes a secret without settings.
    pub fn new(value: impl Into<String>) -> Self {
        Self {
            value: value.into(),
            hosts: None,
            inject: None,
            prefix: None,
        }
    }

    /// Sets the only hosts that may receive it.
    #[must_use]
    pub fn hosts(mut self, hosts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.hosts = Some(list(hosts));
        self
    }

    /// Sets the places where it is swapped: `header`, `header:NAME`, `query`, `path`, `body`.
    #[must_use]
    pub fn inject(mut self, places: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.inject = Some(list(places));
        self
    }

    /// Sets what stands before the sealed token.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = Some(prefix.into());
        self
    }
}

impl fmt::Debug for SecretSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretSpec")
            .field("value", &MARK)
            .field("hosts", &self.hosts)
            .field("inject", &self.inject)
            .field("prefix", &self.prefix)
            .finish()
    }
}

/// A session to create; a field that is none is left to the server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CreateSession {
    /// Secrets by name.
    pub secrets: BTreeMap<String, SecretInput>,
    /// Hosts that may receive every secret which names none of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_hosts: Option<Vec<String>>,
    /// Hosts the workload may reach; none means any public host, an empty list no host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_egress: Option<Vec<String>>,
    /// Places where secrets are swapped: `header`, `header:NAME`, `query`, `path`, `body`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inject: Option<Vec<String>>,
    /// Lifetime since the last accepted request, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Lifetime since creation, in seconds, whatever the use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_lifetime_seconds: Option<u64>,
    /// Hosts whose TLS is passed on unread; none of them may be in the scope of a secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passthrough_hosts: Option<Vec<String>>,
    /// Swap in cleartext HTTP too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_plaintext: Option<bool>,
    /// Replace secrets in answers by their sealed tokens; the default is true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scrub_responses: Option<bool>,
    /// Token endpoints whose tokens stay at the server, beside those that it knows itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capture: Option<Vec<CaptureEndpoint>>,
    /// Free labels of the caller; never put a secret here, they are shown when listed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

impl CreateSession {
    /// Makes a request without secrets and with every setting left to the server.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a secret: a string, or a [`SecretSpec`] with settings of its own.
    #[must_use]
    pub fn secret(mut self, name: impl Into<String>, secret: impl Into<SecretInput>) -> Self {
        self.secrets.insert(name.into(), secret.into());
        self
    }

    /// Sets the hosts that may receive every secret which names none of its own.
    #[must_use]
    pub fn secret_hosts(mut self, hosts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.secret_hosts = Some(list(hosts));
        self
    }

    /// Sets the hosts the workload may reach; an empty list shuts everything.
    #[must_use]
    pub fn allowed_egress(mut self, hosts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.allowed_egress = Some(list(hosts));
        self
    }

    /// Sets the places where secrets are swapped.
    #[must_use]
    pub fn inject(mut self, places: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.inject = Some(list(places));
        self
    }

    /// Sets the lifetime since the last accepted request, in seconds.
    #[must_use]
    pub fn ttl_seconds(mut self, seconds: u64) -> Self {
        self.ttl_seconds = Some(seconds);
        self
    }

    /// Sets the lifetime since creation, in seconds.
    #[must_use]
    pub fn max_lifetime_seconds(mut self, seconds: u64) -> Self {
        self.max_lifetime_seconds = Some(seconds);
        self
    }

    /// Sets the hosts whose TLS is passed on unread.
    #[must_use]
    pub fn passthrough_hosts(mut self, hosts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.passthrough_hosts = Some(list(hosts));
        self
    }

    /// Sets whether secrets are swapped in cleartext HTTP too.
    #[must_use]
    pub fn allow_plaintext(mut self, allow: bool) -> Self {
        self.allow_plaintext = Some(allow);
        self
    }

    /// Sets whether secrets in answers are replaced by their sealed tokens.
    #[must_use]
    pub fn scrub_responses(mut self, scrub: bool) -> Self {
        self.scrub_responses = Some(scrub);
        self
    }

    /// Sets the token endpoints whose tokens stay at the server, beside those that it knows itself:
    /// URLs, or [`CaptureEndpoint`]s.
    #[must_use]
    pub fn capture(
        mut self,
        endpoints: impl IntoIterator<Item = impl Into<CaptureEndpoint>>,
    ) -> Self {
        self.capture = Some(endpoints.into_iter().map(Into::into).collect());
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn metadata(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(name.into(), value.into());
        self
    }

    /// Answers the values that no error may repeat.
    pub(crate) fn confidential(&self) -> impl Iterator<Item = &str> {
        self.secrets.values().map(SecretInput::value)
    }
}

/// A change to a session, as a JSON merge patch (RFC 7396): what is not named stays, what is reset
/// goes back to its default, lists are replaced whole.
#[derive(Clone, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct UpdateSession(Map<String, Value>);

impl UpdateSession {
    /// Makes a patch that changes nothing but restarts the lifetime.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a secret, or replaces the value and the named settings of one that is there.
    #[must_use]
    pub fn secret(self, name: impl Into<String>, secret: impl Into<SecretInput>) -> Self {
        let value = match secret.into() {
            SecretInput::Plain(value) => Value::String(value),
            SecretInput::Long(SecretSpec {
                value,
                hosts,
                inject,
                prefix,
            }) => {
                let mut members = Map::from_iter([("value".to_owned(), Value::String(value))]);
                members.extend(hosts.map(|hosts| ("hosts".to_owned(), json!(hosts))));
                members.extend(inject.map(|places| ("inject".to_owned(), json!(places))));
                members.extend(prefix.map(|prefix| ("prefix".to_owned(), json!(prefix))));
                Value::Object(members)
            }
        };
        self.member("secrets", name.into(), value)
    }

    /// Removes a secret.
    #[must_use]
    pub fn remove_secret(self, name: impl Into<String>) -> Self {
        self.member("secrets", name.into(), Value::Null)
    }

    /// Sets the only hosts that may receive one secret, and leaves its value.
    #[must_use]
    pub fn rescope_secret(
        self,
        name: impl Into<String>,
        hosts: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        self.member("secrets", name.into(), json!({ "hosts": list(hosts) }))
    }

    /// Sets the hosts that may receive every secret which names none of its own.
    #[must_use]
    pub fn secret_hosts(self, hosts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.set("secret_hosts", list(hosts))
    }

    /// Sets the hosts the workload may reach; an empty list shuts everything.
    #[must_use]
    pub fn allowed_egress(self, hosts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.set("allowed_egress", list(hosts))
    }

    /// Sets the places where secrets are swapped.
    #[must_use]
    pub fn inject(self, places: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.set("inject", list(places))
    }

    /// Sets the lifetime since the last accepted request, in seconds; it starts again now.
    #[must_use]
    pub fn ttl_seconds(self, seconds: u64) -> Self {
        self.set("ttl_seconds", seconds)
    }

    /// Sets the lifetime since creation, in seconds.
    #[must_use]
    pub fn max_lifetime_seconds(self, seconds: u64) -> Self {
        self.set("max_lifetime_seconds", seconds)
    }

    /// Sets the hosts whose TLS is passed on unread.
    #[must_use]
    pub fn passthrough_hosts(self, hosts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.set("passthrough_hosts", list(hosts))
    }

    /// Sets whether secrets are swapped in cleartext HTTP too.
    #[must_use]
    pub fn allow_plaintext(self, allow: bool) -> Self {
        self.set("allow_plaintext", allow)
    }

    /// Sets whether secrets in answers are replaced by their sealed tokens.
    #[must_use]
    pub fn scrub_responses(self, scrub: bool) -> Self {
        self.set("scrub_responses", scrub)
    }

    /// Sets the token endpoints whose tokens stay at the server. Those of an endpoint that is not
    /// named any more open nothing from then on.
    #[must_use]
    pub fn capture(self, endpoints: impl IntoIterator<Item = impl Into<CaptureEndpoint>>) -> Self {
        let endpoints = endpoints.into_iter().map(|it| json!(it.into()));
        self.set("capture", endpoints.collect::<Value>())
    }

    /// Sets a label.
    #[must_use]
    pub fn metadata(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.member("metadata", name.into(), Value::String(value.into()))
    }

    /// Removes a label.
    #[must_use]
    pub fn remove_metadata(self, name: impl Into<String>) -> Self {
        self.member("metadata", name.into(), Value::Null)
    }

    /// Puts a field back to its default, by its wire name.
    #[must_use]
    pub fn reset(self, field: impl Into<String>) -> Self {
        self.set(field, Value::Null)
    }

    /// Sets a field by its wire name, for what has no method here.
    #[must_use]
    pub fn set(mut self, field: impl Into<String>, value: impl Into<Value>) -> Self {
        self.0.insert(field.into(), value.into());
        self
    }

    fn member(mut self, field: &str, name: String, value: Value) -> Self {
        let mut members = match self.0.remove(field) {
            Some(Value::Object(members)) => members,
            _ => Map::new(),
        };
        // Two changes to one secret add up, in whichever form and order they come.
        let value = match (members.remove(&name), value) {
            (Some(Value::Object(mut earlier)), Value::Object(later)) => {
                earlier.extend(later);
                Value::Object(earlier)
            }
            (Some(Value::Object(mut earlier)), Value::String(later)) => {
                earlier.insert("value".to_owned(), Value::String(later));
                Value::Object(earlier)
            }
            (Some(Value::String(earlier)), Value::Object(mut later)) => {
                later.entry("value").or_insert(Value::String(earlier));
                Value::Object(later)
            }
            (_, later) => later,
        };
        members.insert(name, value);
        self.0.insert(field.to_owned(), Value::Object(members));
        self
    }

    /// Answers the values that no error may repeat.
    pub(crate) fn confidential(&self) -> impl Iterator<Item = &str> {
        let secrets = self.0.get("secrets").and_then(Value::as_object);
        secrets
            .into_iter()
            .flat_map(Map::values)
            .filter_map(|secret| secret.get("value").unwrap_or(secret).as_str())
    }
}

impl fmt::Debug for UpdateSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_map();
        for (field, value) in &self.0 {
            match value {
                Value::Object(secrets) if field == "secrets" => {
                    shown.entry(field, &secrets.keys().collect::<Vec<_>>());
                }
                // Whatever else was set under this name may hold a value in some form.
                _ if field == "secrets" => {
                    shown.entry(field, &MARK);
                }
                _ => {
                    shown.entry(field, value);
                }
            }
        }
        shown.finish()
    }
}

/// Which part of the list to answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListSessions {
    /// At most so many sessions; the server's default is 50, its limit 200.
    pub limit: Option<u32>,
    /// The `next_cursor` of the page before.
    pub cursor: Option<String>,
}

fn list(items: impl IntoIterator<Item = impl Into<String>>) -> Vec<String> {
    items.into_iter().map(Into::into).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_HOSTS: [&str; 0] = [];

    #[test]
    fn an_absent_field_is_not_sent() {
        let request = CreateSession::new().secret("A", "CANARY-plain");
        assert_eq!(
            serde_json::to_value(&request).unwrap(),
            json!({ "secrets": { "A": "CANARY-plain" } })
        );
        assert_eq!(
            serde_json::to_value(CreateSession::new()).unwrap(),
            json!({ "secrets": {} })
        );
    }

    #[test]
    fn every_field_is_sent_under_its_wire_name() {
        let github = SecretSpec::new("CANARY-long")
            .hosts(["github.com"])
            .inject(["header"])
            .prefix("ghp_");
        let request = CreateSession::new()
            .secret("A", "CANARY-plain")
            .secret("GITHUB_TOKEN", github)
            .secret_hosts(["api.anthropic.com"])
            .allowed_egress(NO_HOSTS)
            .inject(["header", "header:x-custom"])
            .ttl_seconds(60)
            .max_lifetime_seconds(120)
            .passthrough_hosts(["p.example"])
            .allow_plaintext(false)
            .scrub_responses(true)
            .capture([
                CaptureEndpoint::new("https://idp.example/t").hosts(["a.example"]),
                "https://idp.example/u".into(),
            ])
            .metadata("sandbox", "sb_1");
        assert_eq!(
            serde_json::to_value(&request).unwrap(),
            json!({
                "secrets": {
                    "A": "CANARY-plain",
                    "GITHUB_TOKEN": {
                        "value": "CANARY-long",
                        "hosts": ["github.com"],
                        "inject": ["header"],
                        "prefix": "ghp_",
                    },
                },
                "secret_hosts": ["api.anthropic.com"],
                "allowed_egress": [],
                "inject": ["header", "header:x-custom"],
                "ttl_seconds": 60,
                "max_lifetime_seconds": 120,
                "passthrough_hosts": ["p.example"],
                "allow_plaintext": false,
                "scrub_responses": true,
                "capture": [
                    {"url": "https://idp.example/t", "hosts": ["a.example"]},
                    {"url": "https://idp.example/u"},
                ],
                "metadata": { "sandbox": "sb_1" },
            })
        );
        let shown = format!("{request:?} {request:#?}");
        assert!(
            shown.contains("GITHUB_TOKEN") && shown.contains("github.com"),
            "{shown}"
        );
        assert!(!shown.contains("CANARY"), "{shown}");
        assert_eq!(
            request.confidential().collect::<Vec<_>>(),
            ["CANARY-plain", "CANARY-long"]
        );
    }

    #[test]
    fn a_patch_tells_absent_from_null_from_value() {
        for (patch, expected) in [
            (UpdateSession::new(), json!({})),
            (
                UpdateSession::new().reset("allowed_egress"),
                json!({ "allowed_egress": null }),
            ),
            (
                UpdateSession::new().allowed_egress(NO_HOSTS),
                json!({ "allowed_egress": [] }),
            ),
            (
                UpdateSession::new()
                    .secret(
                        "NEW",
                        SecretSpec::new("v")
                            .hosts(["h"])
                            .inject(["body"])
                            .prefix("p"),
                    )
                    .secret("ROTATED", "w")
                    .remove_secret("GONE")
                    .rescope_secret("NARROWED", ["h"])
                    .secret("LONG", SecretSpec::new("x"))
                    .rescope_secret("LONG", ["h"])
                    .secret("PLAIN", "y")
                    .rescope_secret("PLAIN", ["h"])
                    .rescope_secret("LATER", ["h"])
                    .secret("LATER", "z")
                    .secret("AGAIN", "1")
                    .remove_secret("AGAIN")
                    .secret("AGAIN", "2"),
                json!({ "secrets": {
                    "NEW": { "value": "v", "hosts": ["h"], "inject": ["body"], "prefix": "p" },
                    "ROTATED": "w",
                    "GONE": null,
                    "NARROWED": { "hosts": ["h"] },
                    "LONG": { "value": "x", "hosts": ["h"] },
                    "PLAIN": { "value": "y", "hosts": ["h"] },
                    "LATER": { "value": "z", "hosts": ["h"] },
                    "AGAIN": "2",
                } }),
            ),
            (
                UpdateSession::new()
                    .secret_hosts(["s"])
                    .inject(["query"])
                    .ttl_seconds(60)
                    .max_lifetime_seconds(120)
                    .passthrough_hosts(["p"])
                    .allow_plaintext(true)
                    .scrub_responses(false)
                    .capture(["https://idp.example/t"])
                    .metadata("a", "1")
                    .remove_metadata("b")
                    .set("invented_later", 7),
                json!({
                    "secret_hosts": ["s"],
                    "inject": ["query"],
                    "ttl_seconds": 60,
                    "max_lifetime_seconds": 120,
                    "passthrough_hosts": ["p"],
                    "allow_plaintext": true,
                    "scrub_responses": false,
                    "capture": [{"url": "https://idp.example/t"}],
                    "metadata": { "a": "1", "b": null },
                    "invented_later": 7,
                }),
            ),
        ] {
            assert_eq!(serde_json::to_value(&patch).unwrap(), expected);
        }
    }

    #[test]
    fn debug_of_a_patch_hides_values() {
        let patch = UpdateSession::new()
            .secret("A", "CANARY-plain")
            .secret("B", SecretSpec::new("CANARY-long"))
            .ttl_seconds(60);
        let shown = format!("{patch:?} {patch:#?}");
        assert!(
            shown.contains("\"A\"") && shown.contains("ttl_seconds"),
            "{shown}"
        );
        assert!(!shown.contains("CANARY"), "{shown}");
        assert_eq!(
            patch.confidential().collect::<Vec<_>>(),
            ["CANARY-plain", "CANARY-long"]
        );

        let odd = UpdateSession::new().set("secrets", json!(["CANARY"]));
        assert!(!format!("{odd:?}").contains("CANARY"));
    }
}
