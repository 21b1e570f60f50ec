//! The environment of the command: what it inherits, less every real value.
//!
//! Secrets and the keys to this program are taken out by name, then everything whose value contains
//! one of them, told by the variable's name alone. What is added is sealed tokens and the block of
//! [`crate::client_env`]. Called by `run`.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use super::secrets::{Known, holds};
use crate::cli::spec::SecretFrom;
use crate::client_env::ClientEnv;
use crate::config::{SETTINGS, Setting};
use crate::secret::Secret;

/// The start of the names of our settings, those of other versions among them.
const OUR_SETTINGS: &str = "OSHU_VAULT__";

/// A variable that is not passed on because of its value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Dropped {
    /// The variable's name.
    pub(super) name: OsString,
    /// What its value contains, in words.
    pub(super) what: String,
}

/// The variables of a command.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// Starts with what is inherited, less what must not be passed on. Returns also the names of
    /// the variables that were left out because of their values, each with what is in it.
    pub(super) fn stripped(
        inherited: impl IntoIterator<Item = (OsString, OsString)>,
        secrets: &[Known],
        api_key: Option<&Secret>,
    ) -> (Self, Vec<Dropped>) {
        let is_source = |name: &OsStr, secret: &Known| {
            let variable = match &secret.flag.from {
                SecretFrom::Env(variable) => variable,
                _ => &secret.flag.name,
            };
            name == variable.as_str() || name == secret.flag.name.as_str()
        };
        let settings: Vec<String> = SETTINGS.iter().filter_map(Setting::variable).collect();
        let is_ours = |name: &OsStr| {
            settings.iter().any(|known| name == known.as_str())
                || name.as_bytes().starts_with(OUR_SETTINGS.as_bytes())
        };
        let found = |value: &OsStr| {
            let secret = secrets.iter().find(|secret| holds(value, &secret.value));
            let key = api_key.filter(|key| holds(value, key));
            let named = secret.map(|secret| format!("the value of {}", secret.flag.name));
            named.or_else(|| key.map(|_| "the API key".to_owned()))
        };
        let (mut kept, mut dropped) = (BTreeMap::new(), Vec::new());
        for (name, value) in inherited {
            if secrets.iter().any(|secret| is_source(&name, secret)) || is_ours(&name) {
                continue;
            }
            match found(&value) {
                Some(what) => dropped.push(Dropped { name, what }),
                None => drop(kept.insert(name, value)),
            }
        }
        (Self(kept), dropped)
    }

    /// Returns a variable's value.
    pub(super) fn variable(&self, name: &str) -> Option<OsString> {
        self.0.get(OsStr::new(name)).cloned()
    }

    /// Sets the sealed tokens by the names of their secrets.
    pub(super) fn add_sealed(&mut self, tokens: &BTreeMap<String, String>) {
        let tokens = tokens
            .iter()
            .map(|(name, token)| (name.into(), token.into()));
        self.0.extend(tokens);
    }

    /// Sends clients through the proxy.
    pub(super) fn add_client(&mut self, client: ClientEnv) {
        for name in client.unset {
            self.0.remove(OsStr::new(name));
        }
        let set = client.set.into_iter();
        self.0.extend(set.map(|(name, value)| (name.into(), value)));
    }

    /// Walks over the variables in the order of their names.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&OsString, &OsString)> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::spec::SecretFlag;

    fn known(name: &str, from: SecretFrom, value: &str) -> Known {
        let flag = SecretFlag {
            name: name.to_owned(),
            from,
            hosts: Vec::new(),
        };
        Known {
            flag,
            value: Secret::new(value.into()),
        }
    }

    fn inherited(list: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        list.iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect()
    }

    #[test]
    fn no_real_value_is_passed_on_under_any_name() {
        let secrets = [
            known("KEY", SecretFrom::Env("KEY".into()), "canary-one"),
            known("B", SecretFrom::Env("SOURCE".into()), "canary-two"),
            known("C", SecretFrom::File("/c".into()), "canary-three"),
        ];
        let list = inherited(&[
            ("KEY", "canary-one"),
            ("SOURCE", "canary-two"),
            ("B", "something else"),
            ("C", "older value"),
            ("COPY", "Bearer canary-three!"),
            ("COPY_OF_KEY", "canary-four"),
            ("PATH", "/bin"),
            ("SECRETS_PROXY_API_KEY", "k"),
            ("SECRETS_PROXY_API_KEY_FILE", "/k"),
            ("OSHU_VAULT_SEAL_KEY", "k"),
            ("OSHU_VAULT_ADMIN_KEY", "k"),
            ("OSHU_VAULT__GATEWAY__API_KEY", "k"),
            ("SSL_CERT_DIR", "/certs"),
        ]);
        let api_key = Secret::new(b"canary-four".to_vec());
        let (mut environment, dropped) = Environment::stripped(list, &secrets, Some(&api_key));
        let dropped: Vec<_> = dropped
            .iter()
            .map(|d| (d.name.to_str().unwrap(), d.what.as_str()))
            .collect();
        assert_eq!(
            dropped,
            [("COPY", "the value of C"), ("COPY_OF_KEY", "the API key")]
        );
        let names: Vec<_> = environment.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(names, ["PATH", "SSL_CERT_DIR"]);
        environment.add_sealed(&BTreeMap::from([("KEY".to_owned(), "SEALED_1".to_owned())]));
        environment.add_client(ClientEnv {
            set: vec![("HTTPS_PROXY", "http://p".into())],
            unset: &["SSL_CERT_DIR"],
        });
        let all: Vec<_> = environment
            .iter()
            .map(|(n, v)| (n.to_str().unwrap(), v.to_str().unwrap()))
            .collect();
        assert_eq!(
            all,
            [
                ("HTTPS_PROXY", "http://p"),
                ("KEY", "SEALED_1"),
                ("PATH", "/bin")
            ]
        );
        assert_eq!(environment.variable("PATH"), Some("/bin".into()));
        assert_eq!(environment.variable("COPY"), None);
    }

    #[test]
    fn no_variable_of_a_setting_is_passed_on() {
        let names: Vec<String> = SETTINGS.iter().filter_map(Setting::variable).collect();
        assert!(names.iter().any(|name| name == "OSHU_VAULT_SEAL_KEY"));
        let list = names.iter().map(|name| (name.into(), "k".into()));
        let (environment, dropped) = Environment::stripped(list, &[], None);
        assert_eq!((environment.iter().count(), dropped), (0, Vec::new()));
    }
}
