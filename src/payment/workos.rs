//! `WorkOS` as payment provider: an account is paid where its metadata says so.
//!
//! The user is found by external id, which is our account's. Only an answer about that very user is
//! one; a user whom `WorkOS` does not know is unpaid, and whatever else it says is an error. Called
//! through [`PaymentCheck`].

use std::collections::HashMap;
use std::sync::Arc;

use serde::Deserialize;
use zeroize::Zeroizing;

use super::{BoxFuture, Error, PaymentCheck, Standing};
use crate::callout::{Callout, Limits, Request};
use crate::id::AccountId;
use crate::secret::Secret;
use crate::upstream::Upstream;

/// How `WorkOS` is asked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The URL of the API.
    pub base_url: String,
    /// The operator's key.
    pub api_key: Secret,
    /// The name of the metadata that tells.
    pub metadata_key: String,
    /// The value that means paid, letter for letter.
    pub metadata_value: String,
    /// The bounds of one call.
    pub limits: Limits,
}

impl Config {
    /// Takes a key; everything else as by default: `paid` must be `true`.
    pub fn with_key(api_key: Secret) -> Self {
        Self {
            base_url: "https://api.workos.com".to_owned(),
            api_key,
            metadata_key: "paid".to_owned(),
            metadata_value: "true".to_owned(),
            limits: Limits::default(),
        }
    }
}

/// Asks `WorkOS`.
#[derive(Debug)]
pub struct Workos {
    callout: Callout,
    authorization: Secret,
    metadata_key: String,
    metadata_value: String,
}

impl Workos {
    /// Sets up the way to `WorkOS`. Nothing is asked yet.
    ///
    /// # Errors
    /// [`Error::Provider`] where the URL cannot be used, and [`Error::Setting`].
    pub fn new(upstream: Arc<Upstream>, config: Config) -> Result<Self, Error> {
        let key = config.api_key.expose();
        if key.is_empty() || !key.iter().all(u8::is_ascii_graphic) {
            return Err(Error::Setting("api_key"));
        }
        if config.metadata_key.is_empty() {
            return Err(Error::Setting("metadata_key"));
        }
        // Else an account of whom nothing is said might count as paid.
        if config.metadata_value.is_empty() {
            return Err(Error::Setting("metadata_value"));
        }
        let callout = Callout::new(upstream, &config.base_url, config.limits);
        Ok(Self {
            callout: callout.map_err(Error::Provider)?,
            authorization: Secret::new([b"Bearer ", key].concat()),
            metadata_key: config.metadata_key,
            metadata_value: config.metadata_value,
        })
    }

    async fn ask(&self, account: &AccountId) -> Result<Standing, Error> {
        let path = format!("/user_management/users/external_id/{account}");
        let request = Request {
            method: "GET",
            path: &path,
            fields: &[
                ("authorization", self.authorization.expose()),
                ("accept", b"application/json"),
            ],
            body: None,
        };
        let answer = self.callout.call(&request).await.map_err(Error::Provider)?;
        match answer.status {
            200 => {
                let body = Zeroizing::new(answer.body.to_vec());
                let user: User =
                    serde_json::from_slice(&body).map_err(|_unread| Error::ProviderAnswer)?;
                if user.external_id.as_deref() != Some(account.as_str()) {
                    return Err(Error::ProviderAnswer);
                }
                let metadata = user.metadata.unwrap_or_default();
                let said = metadata.get(&self.metadata_key);
                Ok(Standing::of(account, said == Some(&self.metadata_value)))
            }
            404 => Ok(Standing::of(account, false)),
            status => Err(Error::ProviderStatus(status)),
        }
    }
}

/// The fields of the answer that are read.
#[derive(Deserialize)]
struct User {
    external_id: Option<String>,
    metadata: Option<HashMap<String, String>>,
}

impl PaymentCheck for Workos {
    fn check<'a>(&'a self, account: &'a AccountId) -> BoxFuture<'a, Result<Standing, Error>> {
        Box::pin(self.ask(account))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::callout::{self, Says, Stand, upstream_of_tests};

    /// Spoils a configuration.
    type Change = fn(&mut Config);

    fn account() -> AccountId {
        AccountId::parse("583231").unwrap()
    }

    fn config(url: &str) -> Config {
        let key = Secret::new(b"sk_test_canary".to_vec());
        Config {
            base_url: url.to_owned(),
            limits: Limits {
                deadline: Duration::from_mins(1),
                ..Limits::default()
            },
            ..Config::with_key(key)
        }
    }

    async fn ask(says: impl Fn() -> Says + Send + Sync + 'static) -> Result<Standing, Error> {
        let stand = Stand::start(move |_, _| says()).await;
        let workos = Workos::new(upstream_of_tests(), config(&stand.url)).unwrap();
        let found = workos.check(&account()).await;
        let heard = stand.heard();
        assert!(
            heard[0].starts_with("GET /user_management/users/external_id/583231 HTTP/1.1\r\n"),
            "{}",
            heard[0]
        );
        assert!(heard[0].contains("\r\nauthorization: Bearer sk_test_canary\r\n"));
        assert!(!format!("{workos:?} {found:?}").contains("canary"));
        found
    }

    fn user(metadata: &str) -> String {
        format!(
            r#"{{"object":"user","id":"user_1","external_id":"583231","email":"a@b.c","metadata":{metadata}}}"#
        )
    }

    #[tokio::test]
    async fn only_the_stated_value_means_paid() {
        for (metadata, paid) in [
            (r#"{"paid":"true"}"#, true),
            (r#"{"plan":"pro","paid":"true"}"#, true),
            (r#"{"paid":"True"}"#, false),
            (r#"{"paid":"false"}"#, false),
            (r#"{"paid":""}"#, false),
            (r#"{"Paid":"true"}"#, false),
            ("{}", false),
            ("null", false),
        ] {
            let body = user(metadata);
            let found = ask(move || Says::json(200, &body)).await.unwrap();
            assert_eq!(found, Standing::of(&account(), paid), "{metadata}");
        }
        let unknown = ask(|| Says::json(404, r#"{"message":"User not found"}"#)).await;
        assert_eq!(unknown.unwrap(), Standing::Unpaid(account()));
    }

    #[tokio::test]
    async fn whatever_is_no_answer_is_an_error() {
        for status in [201, 204, 302, 400, 401, 403, 429, 500, 503] {
            let body = user(r#"{"paid":"true"}"#);
            let found = ask(move || match status {
                204 => Says::Bytes("HTTP/1.1 204 x\r\n\r\n".to_owned()),
                status => Says::json(status, &body),
            });
            let found = found.await;
            let expected = matches!(found, Err(Error::ProviderStatus(is)) if is == status);
            assert!(expected, "{status}: {found:?}");
        }
        let other = user(r#"{"paid":"true"}"#).replace("583231", "583232");
        let twice = user(r#"{"paid":"true"},"metadata":{"paid":"false"}"#);
        for body in [
            String::new(),
            "[]".to_owned(),
            "{}".to_owned(),
            r#"{"metadata":{"paid":"true"}}"#.to_owned(),
            user(r#"{"paid":true}"#),
            other,
            twice,
        ] {
            let sent = body.clone();
            let found = ask(move || Says::json(200, &sent)).await;
            assert!(
                matches!(found, Err(Error::ProviderAnswer)),
                "{body}: {found:?}"
            );
        }
        let cut = ask(|| Says::Last("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{".to_owned()));
        let cut = cut.await;
        assert!(
            matches!(cut, Err(Error::Provider(callout::Error::Cut))),
            "{cut:?}"
        );
    }

    #[tokio::test]
    async fn a_slow_provider_is_an_error() {
        let stand = Stand::start(|_, _| Says::Nothing).await;
        let mut config = config(&stand.url);
        config.limits.deadline = Duration::from_millis(100);
        let workos = Workos::new(upstream_of_tests(), config).unwrap();
        let found = workos.check(&account()).await;
        assert!(
            matches!(found, Err(Error::Provider(callout::Error::Late))),
            "{found:?}"
        );
    }

    #[tokio::test]
    async fn settings_that_would_say_yes_to_all_are_refused() {
        let changes: [(&str, Change); 4] = [
            ("api_key", |config| config.api_key = Secret::new(vec![])),
            ("api_key", |config| {
                config.api_key = Secret::new(b"a\nb".to_vec());
            }),
            ("metadata_key", |config| config.metadata_key.clear()),
            ("metadata_value", |config| config.metadata_value.clear()),
        ];
        for (name, change) in changes {
            let mut config = config("https://api.example.com");
            change(&mut config);
            let made = Workos::new(upstream_of_tests(), config);
            assert!(
                matches!(made, Err(Error::Setting(found)) if found == name),
                "{name}"
            );
        }
    }
}
