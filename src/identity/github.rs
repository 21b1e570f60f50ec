//! A GitHub bearer: whose it is, as GitHub says, for a short while.
//!
//! One question at a time for each token; what is kept is kept under the token's hash. GitHub's "no"
//! is 401 and nothing else: an outage, or a limit of GitHub's, is an error and neither answer.
//! For the faces of `/api` that take a GitHub bearer; none is built.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::Error;
use crate::callout::{Answers, Callout, Kept, Limits, Request};
use crate::id::AccountId;
use crate::secret::{Fingerprint, Secret};
use crate::upstream::Upstream;

/// The longest token that is asked about, in bytes.
const TOKEN_LIMIT_BYTES: usize = 255;
/// The longest login that is taken, in bytes. GitHub's have at most 39 characters.
const LOGIN_LIMIT_BYTES: usize = 100;

/// How GitHub is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The URL of the API.
    pub api_url: String,
    /// How long a "yes" is good.
    pub known_for: Duration,
    /// How long a "no" is good.
    pub unknown_for: Duration,
    /// How many answers are kept.
    pub answers: usize,
    /// The bounds of one call.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            api_url: "https://api.github.com".to_owned(),
            known_for: Duration::from_mins(1),
            unknown_for: Duration::from_secs(10),
            answers: 10_000,
            limits: Limits::default(),
        }
    }
}

/// A person as GitHub knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// GitHub's number of the account, which never changes.
    pub account: AccountId,
    /// The name, which may.
    pub login: Arc<str>,
}

/// Asks GitHub whose a token is.
#[derive(Debug)]
pub struct Github {
    asker: Arc<Asker>,
    answers: Answers<Fingerprint, Option<Owner>, Error>,
}

#[derive(Debug)]
struct Asker {
    callout: Callout,
    known_for: Duration,
    unknown_for: Duration,
}

impl Github {
    /// Sets up the way to GitHub. Nothing is asked yet.
    ///
    /// # Errors
    /// [`Error::Github`] where the URL cannot be used.
    pub fn new(upstream: Arc<Upstream>, config: &Config) -> Result<Self, Error> {
        let callout = Callout::new(upstream, &config.api_url, config.limits);
        Ok(Self {
            asker: Arc::new(Asker {
                callout: callout.map_err(Error::Github)?,
                known_for: config.known_for,
                unknown_for: config.unknown_for,
            }),
            answers: Answers::keeping(config.answers),
        })
    }

    /// Returns whose token it is; nothing where it is nobody's.
    ///
    /// # Errors
    /// [`Error::Github`], [`Error::GithubStatus`] and [`Error::GithubAnswer`]: nobody knows then.
    pub async fn owner_of(&self, bearer: &Secret) -> Result<Option<Owner>, Error> {
        // GitHub's tokens have no other characters: keys of other services do not travel to it.
        let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        let plain = bearer.expose().iter().all(is_plain);
        if bearer.is_empty() || bearer.len() > TOKEN_LIMIT_BYTES || !plain {
            return Ok(None);
        }
        let key = Fingerprint::of(bearer.expose());
        let ask = || Arc::clone(&self.asker).ask(bearer.clone());
        self.answers.get_or_ask(&key, ask).await
    }
}

/// The fields of GitHub's answer that are read.
#[derive(Deserialize)]
struct User {
    id: u64,
    login: String,
}

impl Asker {
    async fn ask(self: Arc<Self>, bearer: Secret) -> Result<Kept<Option<Owner>>, Error> {
        let authorization = zeroize::Zeroizing::new([b"Bearer ", bearer.expose()].concat());
        let request = Request {
            method: "GET",
            path: "/user",
            fields: &[
                ("authorization", &authorization),
                ("accept", b"application/vnd.github+json"),
                ("x-github-api-version", b"2022-11-28"),
            ],
            body: None,
        };
        let answer = self.callout.call(&request).await.map_err(Error::Github)?;
        match answer.status {
            200 => {
                let user: User =
                    serde_json::from_slice(&answer.body).map_err(|_unread| Error::GithubAnswer)?;
                if user.id == 0 || user.login.is_empty() || user.login.len() > LOGIN_LIMIT_BYTES {
                    return Err(Error::GithubAnswer);
                }
                Ok(Kept {
                    value: Some(Owner {
                        account: AccountId::of_number(user.id),
                        login: user.login.into(),
                    }),
                    life: self.known_for,
                })
            }
            401 => Ok(Kept {
                value: None,
                life: self.unknown_for,
            }),
            status => Err(Error::GithubStatus(status)),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;
    use crate::callout::{Says, Stand, upstream_of_tests};

    const USER: &str = r#"{"login":"octocat","id":583231,"type":"User","plan":{"name":"pro"}}"#;

    async fn world(says: impl Fn(usize, &str) -> Says + Send + Sync + 'static) -> (Stand, Github) {
        let stand = Stand::start(says).await;
        let config = Config {
            api_url: stand.url.clone(),
            limits: Limits {
                deadline: Duration::from_mins(1),
                ..Limits::default()
            },
            ..Config::default()
        };
        let github = Github::new(upstream_of_tests(), &config).unwrap();
        (stand, github)
    }

    fn token(text: &str) -> Secret {
        Secret::new(text.as_bytes().to_vec())
    }

    fn octocat() -> Owner {
        Owner {
            account: AccountId::parse("583231").unwrap(),
            login: "octocat".into(),
        }
    }

    #[tokio::test]
    async fn a_yes_is_asked_once_and_goes_to_the_one_who_was_asked() {
        let (stand, github) = world(|_, _| Says::json(200, USER)).await;
        let canary = token("ghp_canary");
        let all = join_all((0..50).map(|_| github.owner_of(&canary))).await;
        for owner in all {
            assert_eq!(owner.unwrap(), Some(octocat()));
        }
        assert_eq!(github.owner_of(&canary).await.unwrap(), Some(octocat()));
        let heard = stand.heard();
        assert_eq!(heard.len(), 1);
        assert!(
            heard[0].starts_with("GET /user HTTP/1.1\r\n"),
            "{}",
            heard[0]
        );
        assert!(heard[0].contains("\r\nauthorization: Bearer ghp_canary\r\n"));
        assert_eq!(
            github.owner_of(&token("ghp_other")).await.unwrap(),
            Some(octocat())
        );
        assert_eq!(stand.heard().len(), 2, "another token is another question");
        assert!(!format!("{github:?}").contains("canary"));
    }

    #[tokio::test]
    async fn a_no_is_kept_and_an_outage_is_neither() {
        let (stand, github) = world(|_, _| Says::json(401, "{}")).await;
        for _ in 0..3 {
            assert_eq!(github.owner_of(&token("ghp_x")).await.unwrap(), None);
        }
        assert_eq!(stand.heard().len(), 1);
        for status in [403, 404, 429, 500, 503, 302] {
            let (stand, github) = world(move |_, _| Says::json(status, USER)).await;
            for _ in 0..2 {
                let error = github.owner_of(&token("ghp_x")).await.unwrap_err();
                assert!(matches!(error, Error::GithubStatus(found) if found == status));
            }
            assert_eq!(stand.heard().len(), 2, "a failure is not kept");
        }
        let (stand, github) = world(|number, _| match number {
            0 => Says::Last(String::new()),
            _ => Says::json(200, USER),
        })
        .await;
        let error = github.owner_of(&token("ghp_x")).await.unwrap_err();
        assert!(matches!(error, Error::Github(_)), "{error:?}");
        assert_eq!(
            github.owner_of(&token("ghp_x")).await.unwrap(),
            Some(octocat())
        );
        assert_eq!(stand.heard().len(), 2);
    }

    #[tokio::test]
    async fn a_yes_that_names_nobody_is_an_error() {
        for body in [
            "",
            "{}",
            "[]",
            r#"{"login":"octocat"}"#,
            r#"{"id":"583231","login":"octocat"}"#,
            r#"{"id":-1,"login":"octocat"}"#,
            r#"{"id":0,"login":"octocat"}"#,
            r#"{"id":1,"login":""}"#,
            r#"{"id":1,"id":2,"login":"octocat"}"#,
        ] {
            let (_stand, github) = world(move |_, _| Says::json(200, body)).await;
            let found = github.owner_of(&token("ghp_x")).await;
            assert!(
                matches!(found, Err(Error::GithubAnswer)),
                "{body}: {found:?}"
            );
        }
    }

    #[tokio::test]
    async fn what_cannot_be_a_token_of_github_is_not_sent_there() {
        let (stand, github) = world(|_, _| Says::json(200, USER)).await;
        let long = "a".repeat(256);
        for text in [
            "",
            "sk-ant-api03-x",
            "sk-ant-oat01-x",
            "eyJ9.x.y",
            "a b",
            "a\r\nb",
            &long,
        ] {
            assert_eq!(github.owner_of(&token(text)).await.unwrap(), None, "{text}");
        }
        assert!(stand.heard().is_empty());
    }
}
