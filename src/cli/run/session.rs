//! The session that a command runs in: of a private proxy, or of a running server.
//!
//! Both ways take the same request and bring back the same: where the proxy is, the sealed tokens,
//! the root to trust. A refusal is told by the flag it is about. Called by `run`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::secrets::Known;
use crate::app::{App, Parts, Storage, TENANT};
use crate::audit::Sink;
use crate::authority::{CertificateAuthority, Root};
use crate::cli::client::call;
use crate::cli::target::Target;
use crate::cli::{Exit, Run, STARTUP};
use crate::client_env::{ProxyUrl, holds_certificate};
use crate::config::{Admin, Config, Limits, Proxy};
use crate::host::HostPattern;
use crate::id::{SessionId, TenantId};
use crate::secret::Fingerprint;
use crate::session::{Error, Form, SecretForm};
use crate::tenant::generate_key;

/// The common name of a private proxy's root.
const ROOT_NAME: &str = "Oshu Vault run";
/// The lifetime of a private session, in seconds: the most there is. It ends with the command.
const LIFETIME_SECONDS: u64 = 2_592_000;
/// How long exchanges of what the command left behind may go on after it.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
const SESSIONS: &str = "/v1/sessions";

/// A session that was just made.
pub(in crate::cli) struct Opened {
    /// The proxy, with the session's credential.
    pub(in crate::cli) proxy: ProxyUrl,
    /// The sealed tokens by the names of their secrets.
    pub(in crate::cli) sealed: BTreeMap<String, String>,
    /// The root to trust, as PEM.
    pub(in crate::cli) ca_pem: String,
    /// What was accepted but weakens the session, as sentences.
    pub(in crate::cli) warnings: Vec<String>,
    /// What ends it.
    pub(in crate::cli) session: Session,
}

/// What has to be ended with the command.
pub(in crate::cli) enum Session {
    /// A proxy in this process.
    Private {
        /// The proxy.
        app: Box<App>,
        /// The session.
        id: SessionId,
    },
    /// A session of a running server.
    Served {
        /// The server.
        target: Target,
        /// The session.
        id: String,
    },
}

impl Session {
    /// Ends the session and what it ran in. Returns a complaint where a server did not end it.
    pub(in crate::cli) async fn end(self) -> Option<String> {
        match self {
            Self::Private { app, id } => {
                let ended = app.sessions().delete(&TenantId::new(TENANT), &id).await;
                app.drain().await;
                ended.err().map(|error| error.to_string())
            }
            Self::Served { target, id } => {
                let path = format!("{SESSIONS}/{id}");
                match call(&target, "DELETE", &path, None).await {
                    Ok((204 | 404, _)) => None,
                    Ok((status, _)) => Some(format!(
                        "the server did not end the session: status {status}"
                    )),
                    Err(exit) => Some(exit.text),
                }
            }
        }
    }
}

/// Starts a private proxy and makes the session in it.
pub(super) async fn open_private(run: &Run, secrets: &[Known]) -> Result<Opened, Exit> {
    let config = Config {
        proxy: Proxy {
            listen: Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)),
            ..Proxy::default()
        },
        admin: Admin { listen: None },
        upstream: run.upstream.clone(),
        limits: Limits {
            drain_timeout: DRAIN_TIMEOUT,
            ..Limits::default()
        },
        ..Config::default()
    };
    let root = Root::generate(ROOT_NAME).map_err(|error| Exit::startup(&error))?;
    let authority = CertificateAuthority::new(root).map_err(|error| Exit::startup(&error))?;
    let ca_pem = authority.root().cert_pem().to_owned();
    let parts = Parts {
        authority: Arc::new(authority),
        // Nobody has the key: sessions are made in this process only.
        api_key: Fingerprint::of(generate_key().expose()),
        audit: match &run.audit {
            Some(path) => audit_file(path)?,
            None => Sink::discard(),
        },
        storage: Storage::in_memory(),
    };
    let app = App::start(&config, parts)
        .await
        .map_err(|error| Exit::startup(&error))?;
    let created = app
        .sessions()
        .create(&TenantId::new(TENANT), form(run, secrets))
        .await;
    let created = match created {
        Ok(created) => created,
        Err(error) => {
            app.drain().await;
            return Err(match error {
                Error::Invalid(errors) => Exit::usage(complaints(
                    errors
                        .iter()
                        .map(|e| (e.field.as_str(), e.code, e.message.as_str())),
                )),
                error => Exit::startup(&error),
            });
        }
    };
    let id = created.handle.id().clone();
    let token = created.credential.expose();
    let url = app
        .listening()
        .plain
        .map(|address| format!("http://{id}:{token}@{address}"));
    Ok(Opened {
        proxy: url
            .as_deref()
            .and_then(ProxyUrl::parse)
            .ok_or_else(no_proxy)?,
        sealed: created.sealed_secrets,
        ca_pem,
        warnings: created
            .warnings
            .into_iter()
            .map(|warning| warning.message)
            .collect(),
        session: Session::Private {
            app: Box::new(app),
            id,
        },
    })
}

/// Opens the file of audit records; only its owner can read it.
fn audit_file(path: &Path) -> Result<Sink, Exit> {
    let mut options = std::fs::OpenOptions::new();
    let file = options
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .and_then(|file| {
            // One that was there before; a pipe keeps its mode.
            if file.metadata()?.is_file() {
                file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
            }
            Ok(file)
        });
    let file = file.map_err(|error| Exit::usage(format!("error: --audit: {error}")))?;
    Ok(Sink::to_writer(Box::new(file)))
}

fn form(run: &Run, secrets: &[Known]) -> Form {
    let secret = |known: &Known| {
        let form = SecretForm {
            value: known.value.clone(),
            hosts: texts(&known.flag.hosts),
            inject: None,
            prefix: None,
        };
        (known.flag.name.clone(), form)
    };
    Form {
        secrets: secrets.iter().map(secret).collect(),
        allowed_egress: texts(&run.allow),
        ttl_seconds: Some(LIFETIME_SECONDS),
        max_lifetime_seconds: Some(LIFETIME_SECONDS),
        ..Form::default()
    }
}

/// Writes a list as it is asked for; nothing where it is empty, so that the rule for none applies.
fn texts(patterns: &[HostPattern]) -> Option<Vec<String>> {
    let list = || patterns.iter().map(ToString::to_string).collect();
    (!patterns.is_empty()).then(list)
}

#[derive(Serialize)]
struct Request<'a> {
    secrets: BTreeMap<&'a str, RequestedSecret<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allowed_egress: Option<Vec<String>>,
}

#[derive(Serialize)]
struct RequestedSecret<'a> {
    value: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    hosts: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Answer {
    session_id: String,
    sealed_secrets: BTreeMap<String, String>,
    proxy_url: Option<String>,
    proxy_url_plain: Option<String>,
    #[serde(default)]
    warnings: Vec<String>,
}

#[derive(Deserialize)]
struct Problem {
    #[serde(default)]
    detail: String,
    #[serde(default)]
    errors: Vec<ProblemField>,
}

#[derive(Deserialize)]
struct ProblemField {
    field: String,
    code: String,
    message: String,
}

/// Makes a session of a running server.
pub(in crate::cli) async fn open_served(
    allow: &[HostPattern],
    secrets: &[Known],
    target: Target,
) -> Result<Opened, Exit> {
    let url = target.url.to_string();
    let (status, ca) = call(&target, "GET", "/v1/ca.pem", None).await?;
    let ca_pem = String::from_utf8(ca)
        .ok()
        .filter(|text| status == 200 && holds_certificate(text));
    let ca_pem = ca_pem.ok_or_else(|| unexpected(&url, "no root certificate", status))?;
    let request = request(allow, secrets)?;
    let (status, body) = call(&target, "POST", SESSIONS, Some(request)).await?;
    if status != 201 {
        return Err(refused(&url, status, &body));
    }
    let Ok(answer) = serde_json::from_slice::<Answer>(&body) else {
        return Err(unexpected(&url, "no session", status));
    };
    let session = Session::Served {
        target,
        id: answer.session_id,
    };
    let urls = [answer.proxy_url_plain, answer.proxy_url].map(|url| ProxyUrl::parse(&url?));
    let Some(proxy) = choose(urls) else {
        // Without the way in, the session is of no use to anyone.
        let complaint = session.end().await;
        let text = complaint.map_or_else(String::new, |text| format!("; {text}"));
        return Err(Exit {
            text: no_proxy().text + &text,
            ..no_proxy()
        });
    };
    Ok(Opened {
        proxy,
        sealed: answer.sealed_secrets,
        ca_pem,
        warnings: answer.warnings,
        session,
    })
}

fn request(allow: &[HostPattern], secrets: &[Known]) -> Result<Vec<u8>, Exit> {
    let mut map = BTreeMap::new();
    for known in secrets {
        let name = known.flag.name.as_str();
        let value = std::str::from_utf8(known.value.expose()).map_err(|_shows_bytes| {
            Exit::usage(format!("error: --secret {name}: the value is not UTF-8"))
        })?;
        map.insert(
            name,
            RequestedSecret {
                value,
                hosts: texts(&known.flag.hosts),
            },
        );
    }
    let request = Request {
        secrets: map,
        allowed_egress: texts(allow),
    };
    serde_json::to_vec(&request).map_err(|error| Exit::startup(&error))
}

/// Chooses between the plain and the TLS listener. Every client can speak to a plain one; over a
/// network it would show the session's credential.
fn choose([plain, tls]: [Option<ProxyUrl>; 2]) -> Option<ProxyUrl> {
    let is_near = |url: &ProxyUrl| {
        let host = &url.authority().host;
        host.name() == Some("localhost") || host.ip().is_some_and(|ip| ip.is_loopback())
    };
    match (plain, tls) {
        (Some(plain), _) if is_near(&plain) => Some(plain),
        (plain, tls) => tls.or(plain),
    }
}

fn no_proxy() -> Exit {
    Exit {
        code: STARTUP,
        text: "error: the session has no proxy that can be reached".to_owned(),
        to_stdout: false,
    }
}

fn unexpected(url: &str, what: &str, status: u16) -> Exit {
    let text = format!("error: {url} gave {what} (status {status})");
    Exit {
        code: STARTUP,
        text,
        to_stdout: false,
    }
}

fn refused(url: &str, status: u16, body: &[u8]) -> Exit {
    match serde_json::from_slice::<Problem>(body) {
        Ok(problem) if !problem.errors.is_empty() => Exit::usage(complaints(
            problem
                .errors
                .iter()
                .map(|e| (e.field.as_str(), e.code.as_str(), e.message.as_str())),
        )),
        Ok(problem) if !problem.detail.is_empty() => Exit {
            code: STARTUP,
            text: format!("error: {url}: {} (status {status})", problem.detail),
            to_stdout: false,
        },
        _ => unexpected(url, "no session", status),
    }
}

/// Writes bad fields of a session as complaints about flags, one a line.
fn complaints<'a>(fields: impl Iterator<Item = (&'a str, &'a str, &'a str)>) -> String {
    let lines = fields.map(|(field, code, message)| {
        let name = field
            .strip_prefix("secrets.")
            .and_then(|rest| rest.split('.').next());
        match (name, code) {
            (Some(name), "secret_unscoped") => format!(
                "error: --secret {name}: the name is not in the catalogue: say with \
                 --scope {name}=HOST which hosts may receive it"
            ),
            (Some(name), "bad_host") => format!("error: --scope {name}: {message}"),
            (Some(name), _) => format!("error: --secret {name}: {message}"),
            (None, _) if field.starts_with("allowed_egress") => {
                format!("error: --allow: {message}")
            }
            (None, _) => format!("error: {field}: {message}"),
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_the_flag() {
        let fields = [
            ("secrets.MY_KEY", "secret_unscoped", "…"),
            (
                "secrets.MY_KEY.value",
                "secret_too_short",
                "a secret has at least 8 bytes",
            ),
            ("secrets.AWS", "secret_signs", "signs"),
            ("secrets.MY_KEY.hosts[0]", "bad_host", "no host"),
            ("allowed_egress[1]", "bad_host", "no host"),
            ("secrets", "too_many", "at most 100 secrets"),
        ];
        let expected = [
            "error: --secret MY_KEY: the name is not in the catalogue: say with --scope \
             MY_KEY=HOST which hosts may receive it",
            "error: --secret MY_KEY: a secret has at least 8 bytes",
            "error: --secret AWS: signs",
            "error: --scope MY_KEY: no host",
            "error: --allow: no host",
            "error: secrets: at most 100 secrets",
        ];
        assert_eq!(
            complaints(fields.into_iter()).lines().collect::<Vec<_>>(),
            expected
        );
    }

    #[test]
    fn answers_of_a_server_are_told_with_their_status() {
        let body = br#"{"detail":"an API key is needed","errors":[]}"#;
        let exit = refused("http://v", 401, body);
        assert_eq!(exit.code, 1);
        assert_eq!(
            exit.text,
            "error: http://v: an API key is needed (status 401)"
        );
        let body = br#"{"errors":[{"field":"secrets.A","code":"secret_signs","message":"m"}]}"#;
        let exit = refused("http://v", 422, body);
        assert_eq!(
            (exit.code, exit.text.as_str()),
            (64, "error: --secret A: m")
        );
        assert_eq!(
            refused("http://v", 502, b"<html>").text,
            "error: http://v gave no session (status 502)"
        );
    }

    #[test]
    fn a_credential_goes_in_the_clear_only_where_nobody_listens() {
        let url = |text: &str| ProxyUrl::parse(text);
        for (plain, tls, expected) in [
            (
                "http://a:b@127.0.0.1:1",
                "https://a:b@127.0.0.1:2",
                "http://a:b@127.0.0.1:1",
            ),
            (
                "http://a:b@10.0.0.1:1",
                "https://a:b@10.0.0.1:2",
                "https://a:b@10.0.0.1:2",
            ),
            ("http://a:b@10.0.0.1:1", "", "http://a:b@10.0.0.1:1"),
            ("", "https://a:b@v:2", "https://a:b@v:2"),
        ] {
            let chosen = choose([url(plain), url(tls)]).unwrap();
            assert_eq!(chosen.expose(), expected);
        }
        assert_eq!(choose([None, None]), None);
    }
}
