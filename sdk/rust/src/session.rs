//! The answers of the API, under their wire names.
//!
//! Fields that this version does not know are passed over, so that a newer server stays readable.
//! What is shown once only (the credential) is never printed. Made by `client` from JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde_json::Value;

use crate::capture::CaptureEndpoint;
use crate::redact::MARK;

/// The answer to a creation: the only time the credential is shown.
#[derive(Clone, Deserialize, PartialEq, Eq)]
#[non_exhaustive]
pub struct CreatedSession {
    /// Names the session, and is the user name of the proxy credential.
    pub session_id: String,
    /// The password of the proxy credential; it cannot be asked for again.
    pub token: String,
    /// What the workload gets in place of each secret, by name.
    pub sealed_secrets: BTreeMap<String, String>,
    /// The proxy's address with the credential in it; TLS where the server has it.
    pub proxy_url: String,
    /// The same without TLS, where the server offers it.
    #[serde(default)]
    pub proxy_url_plain: Option<String>,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// When it ends unless it is used, RFC 3339.
    pub expires_at: String,
    /// What the server accepted but advises against.
    #[serde(default)]
    pub warnings: Vec<String>,
}

impl fmt::Debug for CreatedSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreatedSession")
            .field("session_id", &self.session_id)
            .field("token", &MARK)
            .field("sealed_secrets", &self.sealed_secrets.keys())
            .field("proxy_url", &MARK)
            .field(
                "proxy_url_plain",
                &self.proxy_url_plain.as_ref().map(|_| MARK),
            )
            .field("created_at", &self.created_at)
            .field("expires_at", &self.expires_at)
            .field("warnings", &self.warnings)
            .finish()
    }
}

/// A session as the API shows it: no secret and no credential.
#[derive(Clone, Deserialize, PartialEq)]
#[non_exhaustive]
pub struct Session {
    /// Names the session.
    pub session_id: String,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// When it ends unless it is used, RFC 3339.
    pub expires_at: String,
    /// Lifetime since the last accepted request, in seconds.
    pub ttl_seconds: u64,
    /// Lifetime since creation, in seconds.
    pub max_lifetime_seconds: u64,
    /// The secrets, without their values.
    #[serde(default)]
    pub secrets: Vec<SessionSecret>,
    /// Hosts that may receive every secret which names none of its own; none where not given.
    #[serde(default)]
    pub secret_hosts: Option<Vec<String>>,
    /// Hosts the workload may reach; none means any public host, an empty list no host.
    #[serde(default)]
    pub allowed_egress: Option<Vec<String>>,
    /// Places where secrets are swapped.
    #[serde(default)]
    pub inject: Vec<String>,
    /// Hosts whose TLS is passed on unread.
    #[serde(default)]
    pub passthrough_hosts: Vec<String>,
    /// Whether secrets are swapped in cleartext HTTP too.
    #[serde(default)]
    pub allow_plaintext: bool,
    /// Whether secrets in answers are replaced by their sealed tokens.
    pub scrub_responses: bool,
    /// Token endpoints whose tokens stay at the server, beside those that it knows itself.
    #[serde(default)]
    pub capture: Vec<CaptureEndpoint>,
    /// The tokens that stayed there: what each is, and which endpoint gave it.
    #[serde(default)]
    pub captured: Vec<String>,
    /// Labels of the caller.
    #[serde(default)]
    pub metadata: BTreeMap<String, Value>,
    /// Counts since the session began, by name.
    #[serde(default)]
    pub counters: BTreeMap<String, Value>,
    /// After a change, the sealed tokens of the names that it added; else empty.
    #[serde(default)]
    pub sealed_secrets: BTreeMap<String, String>,
    /// What the server accepted but advises against.
    #[serde(default)]
    pub warnings: Vec<String>,
}

impl Session {
    /// Answers one counter; none if the server does not keep it.
    pub fn counter(&self, name: &str) -> Option<u64> {
        self.counters.get(name).and_then(Value::as_u64)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("session_id", &self.session_id)
            .field("created_at", &self.created_at)
            .field("expires_at", &self.expires_at)
            .field("ttl_seconds", &self.ttl_seconds)
            .field("max_lifetime_seconds", &self.max_lifetime_seconds)
            .field("secrets", &self.secrets)
            .field("secret_hosts", &self.secret_hosts)
            .field("allowed_egress", &self.allowed_egress)
            .field("inject", &self.inject)
            .field("passthrough_hosts", &self.passthrough_hosts)
            .field("allow_plaintext", &self.allow_plaintext)
            .field("scrub_responses", &self.scrub_responses)
            .field("capture", &self.capture)
            .field("captured", &self.captured)
            .field("metadata", &self.metadata)
            .field("counters", &self.counters)
            .field("sealed_secrets", &self.sealed_secrets.keys())
            .field("warnings", &self.warnings)
            .finish()
    }
}

/// A secret as the API shows it again: never its value.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionSecret {
    /// Its name.
    pub name: String,
    /// The hosts that may receive it; none where no host is named.
    #[serde(default)]
    pub hosts: Option<Vec<String>>,
    /// The places where it is swapped; none for those of the session.
    #[serde(default)]
    pub inject: Option<Vec<String>>,
}

/// One page of the tenant's sessions.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[non_exhaustive]
pub struct SessionPage {
    /// The sessions of this page.
    pub sessions: Vec<Session>,
    /// Asks for the next page; none on the last one.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_hides_what_is_shown_once() {
        let created: CreatedSession = serde_json::from_str(
            r#"{"session_id":"sess_1","token":"tok_CANARY","sealed_secrets":{"A":"SEALED_CANARY"},
                "proxy_url":"https://sess_1:tok_CANARY@h","proxy_url_plain":"http://tok_CANARY@h",
                "created_at":"c","expires_at":"e","invented_later":1}"#,
        )
        .unwrap();
        let shown = format!("{created:?} {created:#?}");
        assert!(
            shown.contains("sess_1") && shown.contains("\"A\""),
            "{shown}"
        );
        assert!(!shown.contains("CANARY"), "{shown}");
        assert_eq!(created.token, "tok_CANARY");
        assert!(created.warnings.is_empty());
    }

    #[test]
    fn a_session_reads_with_all_fields_and_with_few() {
        let whole: Session = serde_json::from_str(
            r#"{"session_id":"sess_1","created_at":"c","expires_at":"e","ttl_seconds":60,
                "max_lifetime_seconds":120,"secrets":[{"name":"A","hosts":["a.example"],
                "inject":["header"]},{"name":"B","hosts":null}],"secret_hosts":["s.example"],
                "allowed_egress":[],"inject":["header","query"],"passthrough_hosts":["p.example"],
                "allow_plaintext":true,"scrub_responses":true,"capture":[{"url":"https://i.example/t"}],
                "captured":["access_token@i.example/t"],"metadata":{"sandbox":"sb_1"},
                "counters":{"requests":3,"later":{"x":1}},"sealed_secrets":{"A":"SEALED_CANARY"},
                "warnings":["w"],"invented_later":[{}]}"#,
        )
        .unwrap();
        assert_eq!(
            whole.secrets[0].hosts.as_deref(),
            Some(&["a.example".to_owned()][..])
        );
        assert_eq!(whole.secrets[1].hosts, None);
        assert_eq!(whole.allowed_egress, Some(vec![]));
        assert_eq!(whole.capture, [CaptureEndpoint::new("https://i.example/t")]);
        assert_eq!(whole.captured, ["access_token@i.example/t"]);
        assert_eq!(whole.metadata["sandbox"], "sb_1");
        assert_eq!(whole.counter("requests"), Some(3));
        assert_eq!(whole.counter("later"), None);
        assert_eq!(whole.sealed_secrets["A"], "SEALED_CANARY");
        assert!(!format!("{whole:?}").contains("CANARY"));

        let few: Session = serde_json::from_str(
            r#"{"session_id":"sess_1","created_at":"c","expires_at":"e","ttl_seconds":60,
                "max_lifetime_seconds":120,"scrub_responses":false,"allowed_egress":null}"#,
        )
        .unwrap();
        assert_eq!(few.allowed_egress, None);
        assert!(few.secrets.is_empty() && few.sealed_secrets.is_empty());
    }
}
