//! `demo`: the whole story in one process.
//!
//! A vault on loopback, an upstream that echoes what it receives, and a workload that holds a
//! sealed token; real sockets, real TLS, the same code as `serve`. Prints what each of them saw and
//! fails where that is not what this program promises. Called by the command line.

mod origin;
mod story;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::HEXLOWER;
use rustls::RootCertStore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::app::{App, Parts, Storage, TENANT};
use crate::audit::Sink;
use crate::authority::{CertificateAuthority, Root};
use crate::cli::folder::Folder;
use crate::cli::workload::Workload;
use crate::cli::{Exit, STARTUP, print};
use crate::config::{Admin, Config, Limits, Proxy, PublicUrl, Resolve, Upstream};
use crate::host::{Host, HostPort};
use crate::id::{TenantId, fill_random};
use crate::policy::Cidr;
use crate::secret::{Fingerprint, Secret};
use crate::session::{Created, Form, SecretForm};
use crate::tenant::generate_key;

use origin::Origin;
use story::{API, EVIL, PASTE, Story};

/// How long the story may take.
const WAIT: Duration = Duration::from_secs(30);
const KEY_NAME: &str = "DEMO_API_KEY";

/// Tells the story; exit code 1 where a view is not as it should be.
pub(super) async fn demo() -> Result<u8, Exit> {
    let told = timeout(WAIT, Box::pin(tell())).await;
    let story = told.map_err(|_elapsed| failed("the story took more than 30 seconds"))??;
    print(&story.page())?;
    Ok(if story.complaints().is_empty() {
        0
    } else {
        STARTUP
    })
}

async fn tell() -> Result<Story, Exit> {
    let folder = Folder::make()?;
    let authority = authority("Oshu Vault demo upstreams")?;
    let pem = authority.root().cert_pem().as_bytes();
    let trusted = folder.write("upstreams.pem", pem)?;
    let api = origin(&authority, API).await?;
    let paste = origin(&authority, PASTE).await?;
    let app = vault(trusted, [(API, api.address()), (PASTE, paste.address())]).await?;
    let key = make_key();
    let acted = act(&app, &key, &api, &paste).await;
    app.drain().await;
    acted
}

/// Plays the workload's part.
async fn act(app: &App, key: &str, api: &Origin, paste: &Origin) -> Result<Story, Exit> {
    let created = session(app, key).await?;
    let token = created
        .sealed_secrets
        .get(KEY_NAME)
        .cloned()
        .unwrap_or_default();
    let proxy = app
        .listening()
        .plain
        .ok_or_else(|| failed("the vault does not listen"))?;
    let credential = format!("{}:{}", created.handle.id(), created.credential.expose());
    let proxy = PublicUrl::parse(&format!("http://{proxy}"))
        .ok_or_else(|| failed("the vault is at no address"))?;
    let ca_pem = app.authority().root().cert_pem();
    let workload = Workload::new(&proxy, RootCertStore::empty(), &credential, ca_pem);
    let workload = workload.map_err(|error| Exit::startup(&error))?;
    let send = async |host: &str, request: &str| {
        let target = HostPort::new(parse(host)?, 443);
        let outcome = Box::pin(workload.send(&target, request)).await;
        outcome.map_err(|error| Exit::startup(&error))
    };
    let sent = request(API, &token, r#"{"prompt":"write a haiku"}"#);
    let back = send(API, &sent).await?;
    let seen = api.last();
    let leaked = request(PASTE, &token, r#"{"note":"look what I found"}"#);
    let leaked_back = send(PASTE, &leaked).await?;
    let leaked_seen = paste.last();
    let denied = send(EVIL, &request(EVIL, &token, "{}")).await?;
    let key = key.to_owned();
    Ok(Story {
        key,
        token,
        sent,
        seen,
        back,
        leaked,
        leaked_seen,
        leaked_back,
        denied,
    })
}

fn request(host: &str, token: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST /v1/messages HTTP/1.1\r\nHost: {host}\r\nX-Api-Key: {token}\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

fn make_key() -> String {
    let mut bytes = [0; 12];
    fill_random(&mut bytes);
    format!("demo-key-{}", HEXLOWER.encode(&bytes))
}

fn authority(name: &str) -> Result<CertificateAuthority, Exit> {
    let root = Root::generate(name).map_err(|error| Exit::startup(&error))?;
    CertificateAuthority::new(root).map_err(|error| Exit::startup(&error))
}

fn parse(host: &str) -> Result<Host, Exit> {
    Host::parse(host).map_err(|error| Exit::startup(&error))
}

async fn origin(authority: &CertificateAuthority, host: &str) -> Result<Origin, Exit> {
    let config = authority.server_config(&parse(host)?).await;
    let config = config.map_err(|error| Exit::startup(&error))?;
    let started = Origin::start(TlsAcceptor::from(config)).await;
    started.map_err(|error| failed(&format!("the upstream cannot listen: {error}")))
}

/// Starts the vault as an operator would who opened exactly this machine's loopback address.
async fn vault(trusted: PathBuf, hosts: [(&str, SocketAddr); 2]) -> Result<App, Exit> {
    let mut resolve = Vec::with_capacity(hosts.len());
    for (host, address) in hosts {
        let (ip, port) = (address.ip(), Some(address.port()));
        resolve.push(Resolve {
            host: parse(host)?,
            ip,
            port,
        });
    }
    let loopback = Cidr::parse("127.0.0.1/32").map_err(|error| Exit::startup(&error))?;
    let config = Config {
        proxy: Proxy {
            listen: Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)),
            ..Proxy::default()
        },
        admin: Admin { listen: None },
        upstream: Upstream {
            ca_files: vec![trusted],
            resolve,
            allow_cidrs: vec![loopback],
            ..Upstream::default()
        },
        limits: Limits {
            drain_timeout: Duration::from_secs(1),
            ..Limits::default()
        },
        ..Config::default()
    };
    let parts = Parts {
        authority: Arc::new(authority("Oshu Vault demo")?),
        api_key: Fingerprint::of(generate_key().expose()),
        audit: Sink::discard(),
        storage: Storage::in_memory(),
    };
    App::start(&config, parts)
        .await
        .map_err(|error| Exit::startup(&error))
}

async fn session(app: &App, key: &str) -> Result<Created, Exit> {
    let secret = SecretForm {
        value: Secret::new(key.as_bytes().to_vec()),
        hosts: Some(vec![API.to_owned()]),
        inject: None,
        prefix: None,
    };
    let form = Form {
        secrets: BTreeMap::from([(KEY_NAME.to_owned(), secret)]),
        allowed_egress: Some(vec![API.to_owned(), PASTE.to_owned()]),
        ..Form::default()
    };
    let created = app.sessions().create(&TenantId::new(TENANT), form).await;
    created.map_err(|error| Exit::startup(&error))
}

fn failed(what: &str) -> Exit {
    Exit {
        code: STARTUP,
        text: format!("error: {what}"),
        to_stdout: false,
    }
}
