//! `keys create`, `list`, `revoke`: the API keys of tenants.
//!
//! It is done by the server that has the store open, over its control socket, or here where none
//! has; or, with `--server`, over the management API with the operator's key. A key is made here and
//! printed once; over the control socket and into the store goes its hash alone.

use std::path::PathBuf;
use std::sync::Arc;

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::RwLock;
use zeroize::Zeroizing;

use super::control::{self, ask};
use super::sealing::{self, KeySource};
use super::session::ask as call;
use super::target::{ServerFlags, Target};
use super::{Exit, chain, print, serve};
use crate::app::TENANT;
use crate::config::{Config, Flags, Source};
use crate::id::{ApiKeyId, TenantId};
use crate::records::Records;
use crate::secret::Fingerprint;
use crate::tenant::{About, KeyRecord, LABEL_LIMIT, Limits, Tenants, generate_key};

/// How many tenants are asked for at once.
const PAGE: usize = 100;

/// What is asked about API keys, and of whom.
#[derive(Debug, Clone)]
pub struct Keys {
    /// The running server to ask over its API; the store's own way where its URL is not given.
    pub server: ServerFlags,
    /// Where the configuration is, which says where the store is.
    pub flags: Flags,
    /// What is to be done.
    pub action: KeysAction,
}

/// What is to be done with API keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeysAction {
    /// Makes a key and prints it, once.
    Create {
        /// Whose it is.
        tenant: TenantId,
        /// What it is called; perhaps nothing.
        label: String,
        /// Makes the tenant before, which must not be there.
        new_tenant: bool,
    },
    /// Lists tenants with their keys.
    List {
        /// This one alone.
        tenant: Option<TenantId>,
    },
    /// Takes a key from its tenant.
    Revoke {
        /// Whose it is.
        tenant: TenantId,
        /// Which one.
        key: ApiKeyId,
    },
}

impl KeysAction {
    /// The tenant that is meant where none is named: that of the configured key.
    pub(super) fn default_tenant() -> TenantId {
        TenantId::new(TENANT)
    }

    /// Tells whether a text can be a label.
    pub(super) fn is_label(text: &str) -> bool {
        text.chars().count() <= LABEL_LIMIT && !text.chars().any(char::is_control)
    }
}

/// One call about keys, as it goes over the control socket: names and hashes.
#[derive(Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
enum Ask {
    Create {
        tenant: String,
        label: String,
        hash: String,
        new_tenant: bool,
    },
    List {
        tenant: Option<String>,
    },
    Revoke {
        tenant: String,
        key: String,
    },
}

/// Does what was asked.
pub(super) async fn keys(keys: Keys) -> Result<(), Exit> {
    // A key passes through this process.
    serve::protect_process();
    if keys.server.url.is_some() {
        let target = keys.server.admin(&Source::process(Flags::default()))?;
        return remotely(&target, keys.action).await;
    }
    match keys.action {
        KeysAction::Create {
            tenant,
            label,
            new_tenant,
        } => {
            let key = generate_key();
            let ask = Ask::Create {
                tenant: tenant.to_string(),
                label,
                hash: BASE64.encode(Fingerprint::of(key.expose()).as_bytes()),
                new_tenant,
            };
            let mut made = by_store(keys.flags, &ask).await?;
            if let Some(made) = made.as_object_mut() {
                let text = String::from_utf8_lossy(key.expose()).into_owned();
                made.insert("api_key".to_owned(), Value::String(text));
            }
            tell(&made)
        }
        KeysAction::List { tenant } => {
            let tenant = tenant.map(|tenant| tenant.to_string());
            tell(&by_store(keys.flags, &Ask::List { tenant }).await?)
        }
        KeysAction::Revoke { tenant, key } => {
            let (tenant, key) = (tenant.to_string(), key.to_string());
            let ask = Ask::Revoke { tenant, key };
            by_store(keys.flags, &ask).await.map(drop)
        }
    }
}

/// Asks whoever has the store open, or opens it.
async fn by_store(flags: Flags, what: &Ask) -> Result<Value, Exit> {
    let config = Config::load_state(&Source::process(flags))?;
    let Some(store) = config.store.file(&config.state_dir) else {
        return Err(Exit::usage(
            "error: store.url: keys of this store are managed with --server and the operator's key"
                .to_owned(),
        ));
    };
    if !store.exists() {
        return Err(Exit::failed(&format!("{} is not there", store.display())));
    }
    let line = serde_json::to_string(what).map_err(|error| Exit::startup(&error))?;
    match ask(&store, &format!("{}{line}", control::KEYS)).await {
        Ok(answer) => Ok(answer),
        Err(control::Error::Nobody(_)) => here(&config, store, &line).await,
        Err(error) => Err(Exit::startup(&error)),
    }
}

/// Does it in a store that no server has open.
async fn here(config: &Config, store: PathBuf, line: &str) -> Result<Value, Exit> {
    let startup = |error: &dyn std::error::Error| Exit::startup(error);
    let keyring = KeySource::of(config).read().await;
    let keyring = keyring.map_err(|error| startup(&error))?;
    let store = Arc::new(sealing::open(store).await.map_err(|e| startup(&e))?);
    let answer = {
        let keyring = Arc::new(RwLock::new(keyring));
        let records = Arc::new(Records::new(Arc::clone(&store) as _, keyring));
        // Limits are no matter here, and the configured key is that of the server alone.
        let tenants = Tenants::new(records, Limits::default(), 0);
        let tenants = tenants.with(&KeysAction::default_tenant());
        match tenants.load().await {
            Ok(_) => perform(&tenants, line).await,
            Err(error) => Err(chain(&error)),
        }
    };
    if let Some(store) = Arc::into_inner(store) {
        let closed = tokio::task::spawn_blocking(move || store.close()).await;
        closed.map_err(|error| startup(&error))?;
    }
    answer.map_err(|text| Exit::failed(&text))
}

/// Does one call about keys; called by the server for what came over its control socket, too.
pub(super) async fn perform(tenants: &Tenants, line: &str) -> Result<Value, String> {
    let ask: Ask = serde_json::from_str(line).map_err(|_odd| "the call is malformed".to_owned())?;
    let named = |text: &str| TenantId::parse(text).ok_or("there is no such tenant".to_owned());
    match ask {
        Ask::Create {
            tenant,
            label,
            hash,
            new_tenant,
        } => {
            let tenant = named(&tenant)?;
            let hash = BASE64.decode(hash.as_bytes()).ok();
            let hash = hash.and_then(|hash| hash.as_slice().try_into().ok());
            let hash = Fingerprint::from_bytes(hash.ok_or("the call is malformed")?);
            if !KeysAction::is_label(&label) {
                return Err("the call is malformed".to_owned());
            }
            if new_tenant {
                let made = tenants.create(&tenant, Limits::default()).await;
                made.map_err(|error| chain(&error))?;
            }
            let made = tenants.add_key(&tenant, &label, hash).await;
            let made = made.map_err(|error| chain(&error))?;
            let mut told = describe(&made);
            if let Some(told) = told.as_object_mut() {
                told.insert("tenant_id".to_owned(), tenant.to_string().into());
            }
            Ok(told)
        }
        Ask::List { tenant } => {
            let found = match tenant {
                Some(tenant) => {
                    let about = tenants.about(&named(&tenant)?);
                    vec![about.ok_or("there is no such tenant")?]
                }
                None => tenants.list(None, usize::MAX),
            };
            let found: Vec<Value> = found.iter().map(describe_tenant).collect();
            Ok(json!({ "tenants": found }))
        }
        Ask::Revoke { tenant, key } => {
            let key = ApiKeyId::parse(&key).ok_or("there is no such key")?;
            let revoked = tenants.revoke_key(&named(&tenant)?, &key).await;
            revoked.map_err(|error| chain(&error))?;
            Ok(json!({}))
        }
    }
}

fn describe_tenant(about: &About) -> Value {
    json!({
        "tenant_id": about.id.as_str(),
        "state": about.state,
        "keys": about.keys.iter().map(describe).collect::<Vec<_>>(),
    })
}

fn describe(key: &KeyRecord) -> Value {
    let created = OffsetDateTime::from(key.created).replace_nanosecond(0);
    let created = created.ok().and_then(|time| time.format(&Rfc3339).ok());
    json!({
        "key_id": key.id.as_str(),
        "label": key.label,
        "created_at": created,
    })
}

/// Does it over the management API, as the operator.
async fn remotely(target: &Target, action: KeysAction) -> Result<(), Exit> {
    match action {
        KeysAction::Create {
            tenant,
            label,
            new_tenant,
        } => {
            if new_tenant {
                let body = json!({ "tenant_id": tenant.as_str() });
                let body = body.to_string().into_bytes();
                call(target, "POST", "/v1/tenants", Some(body)).await?;
            }
            let path = format!("/v1/tenants/{tenant}/keys");
            let body = json!({ "label": label }).to_string().into_bytes();
            let mut made = call(target, "POST", &path, Some(body)).await?;
            if let Some(made) = made.as_object_mut() {
                made.insert("tenant_id".to_owned(), tenant.to_string().into());
            }
            tell(&made)
        }
        KeysAction::List { tenant } => {
            let found = match tenant {
                Some(tenant) => {
                    let path = format!("/v1/tenants/{tenant}");
                    vec![call(target, "GET", &path, None).await?]
                }
                None => all_tenants(target).await?,
            };
            let mut tenants = Vec::new();
            for one in found {
                let id = one.get("tenant_id").and_then(Value::as_str);
                let id = id.and_then(TenantId::parse);
                let id = id.ok_or_else(|| odd(target))?;
                let path = format!("/v1/tenants/{id}/keys");
                let keys = call(target, "GET", &path, None).await?;
                tenants.push(json!({
                    "tenant_id": id.as_str(),
                    "state": one.get("state"),
                    "keys": keys.get("keys"),
                }));
            }
            tell(&json!({ "tenants": tenants }))
        }
        KeysAction::Revoke { tenant, key } => {
            let path = format!("/v1/tenants/{tenant}/keys/{key}");
            call(target, "DELETE", &path, None).await.map(drop)
        }
    }
}

async fn all_tenants(target: &Target) -> Result<Vec<Value>, Exit> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/v1/tenants?limit={PAGE}{cursor}");
        let mut page = call(target, "GET", &path, None).await?;
        let Some(Value::Array(found)) = page.get_mut("tenants").map(Value::take) else {
            return Err(odd(target));
        };
        let none = found.is_empty();
        all.extend(found);
        let next = page.get("next_cursor").and_then(Value::as_str);
        let next = next.and_then(TenantId::parse).filter(|_| !none);
        match next.filter(|_| all.len() <= crate::tenant::TENANTS_LIMIT) {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(all),
        }
    }
}

fn odd(target: &Target) -> Exit {
    Exit::failed(&format!("{}: the answer is no list of tenants", target.url))
}

fn tell(answer: &Value) -> Result<(), Exit> {
    let text = Zeroizing::new(format!("{answer:#}\n"));
    print(&text)
}
