//! `keys create`, `list`, `revoke`: the API keys of tenants.
//!
//! It is done by the server that has the store open, over its control socket, or here where none
//! has. Or, with `--server`, over the management API with the operator's key. A key is made here and
//! printed once; over the control socket and into the store goes its hash alone.

use std::sync::Arc;

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zeroize::Zeroizing;

use super::session::ask as call;
use super::target::{ServerFlags, Target};
use super::{Exit, chain, control, print, serve, stored};
use crate::app::TENANT;
use crate::config::{Flags, Source};
use crate::id::{ApiKeyId, TenantId};
use crate::records::Records;
use crate::secret::Fingerprint;
use crate::tenant::{About, KeyRecord, Limits, Loaded, Tenants, generate_key, is_label};

/// How many tenants are asked for at once, over the API.
const PAGE: usize = 100;
/// How long a page of tenants is over the control socket, in bytes, unless its first is longer: all
/// keys of one tenant are some 50 KiB at most, which is within a line there.
const PAGE_BYTES: usize = 32 * 1024;

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
        /// The last one of the page before.
        after: Option<String>,
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
            let mut made = by_store(&keys.flags, &ask).await?;
            if let Some(made) = made.as_object_mut() {
                let text = String::from_utf8_lossy(key.expose()).into_owned();
                made.insert("api_key".to_owned(), Value::String(text));
            }
            tell(&made)
        }
        KeysAction::List { tenant } => {
            let tenant = tenant.map(|tenant| tenant.to_string());
            tell(&list(&keys.flags, tenant).await?)
        }
        KeysAction::Revoke { tenant, key } => {
            let (tenant, key) = (tenant.to_string(), key.to_string());
            let ask = Ask::Revoke { tenant, key };
            by_store(&keys.flags, &ask).await.map(drop)
        }
    }
}

/// Lists tenants, page by page.
async fn list(flags: &Flags, tenant: Option<String>) -> Result<Value, Exit> {
    let page = async |after| {
        let tenant = tenant.clone();
        by_store(flags, &Ask::List { tenant, after }).await
    };
    stored::gather("tenants", page).await
}

/// Asks whoever has the store open, or opens it.
async fn by_store(flags: &Flags, what: &Ask) -> Result<Value, Exit> {
    let line = serde_json::to_string(what).map_err(|error| Exit::startup(&error))?;
    let here = async |records| perform_here(records, &line).await;
    stored::by_store(flags, "keys", (control::KEYS, &line), here).await
}

/// Does one call about keys in a store that nobody else has open.
async fn perform_here(records: Arc<Records>, line: &str) -> Result<Value, String> {
    // Limits are no matter here, and the configured key is that of the server alone.
    let tenants = Tenants::new(records, Limits::default(), 0);
    let tenants = tenants.with(&KeysAction::default_tenant());
    match tenants.load().await {
        Ok(Loaded { refused: 0, .. }) => perform(&tenants, line, usize::MAX).await,
        Ok(Loaded { refused, .. }) => Err(stored::refused(refused)),
        Err(error) => Err(chain(&error)),
    }
}

/// Does one call about keys that came over the control socket of a server.
pub(super) async fn answer(tenants: &Tenants, line: &str) -> Result<Value, String> {
    perform(tenants, line, PAGE_BYTES).await
}

/// Does one call about keys, with so much room for a list, in bytes.
async fn perform(tenants: &Tenants, line: &str, room: usize) -> Result<Value, String> {
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
            if !is_label(&label) {
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
        Ask::List {
            tenant: Some(tenant),
            ..
        } => {
            let about = tenants.about(&named(&tenant)?);
            let about = about.ok_or("there is no such tenant")?;
            Ok(json!({ "tenants": [describe_tenant(&about)] }))
        }
        Ask::List {
            tenant: None,
            after,
        } => {
            let after = after.map(|after| named(&after)).transpose()?;
            Ok(page(tenants, after, room))
        }
        Ask::Revoke { tenant, key } => {
            let key = ApiKeyId::parse(&key).ok_or("there is no such key")?;
            let revoked = tenants.revoke_key(&named(&tenant)?, &key).await;
            revoked.map_err(|error| chain(&error))?;
            Ok(json!({}))
        }
    }
}

/// Lists as many tenants as there is room for, in bytes, and one at least.
fn page(tenants: &Tenants, mut after: Option<TenantId>, room: usize) -> Value {
    let (mut page, mut taken) = (Vec::new(), 0);
    loop {
        // A few at a time, so that the table is not held for long.
        let found = tenants.list(after.as_ref(), PAGE);
        if found.is_empty() {
            return json!({ "tenants": page });
        }
        for about in found {
            let told = describe_tenant(&about);
            taken += told.to_string().len() + 1;
            if taken > room && !page.is_empty() {
                return json!({ "tenants": page, "next": after.as_ref().map(TenantId::as_str) });
            }
            page.push(told);
            after = Some(about.id);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::control::{Control, Served, ask};
    use crate::cli::sealing::KeySource;
    use crate::cli::tests::sessions;
    use crate::seal::Keyring;
    use crate::tenant::{KEYS_LIMIT, LABEL_LIMIT};

    /// Makes a tenant with so many keys, of the longest labels there are.
    async fn make(tenants: &Tenants, name: &str, keys: usize) {
        let id = TenantId::new(name);
        tenants.create(&id, Limits::default()).await.unwrap();
        let label = "\u{1f511}".repeat(LABEL_LIMIT);
        for number in 0..keys {
            let hash = Fingerprint::of(format!("{name}-{number}").as_bytes());
            tenants.add_key(&id, &label, hash).await.unwrap();
        }
    }

    fn names(page: &Value) -> Vec<(String, usize)> {
        let tenants = page["tenants"].as_array().unwrap().iter();
        let one = |tenant: &Value| {
            let keys = tenant["keys"].as_array().unwrap().len();
            (tenant["tenant_id"].as_str().unwrap().to_owned(), keys)
        };
        tenants.map(one).collect()
    }

    #[tokio::test]
    async fn a_list_that_is_longer_than_a_line_comes_in_pages() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("sessions.redb");
        let control = Control::open(&store).unwrap();
        let sessions = sessions(Keyring::generate());
        let mut expected = Vec::new();
        for (name, keys) in [("a", 3), ("b", KEYS_LIMIT), ("c", KEYS_LIMIT / 2)] {
            make(sessions.tenants(), name, keys).await;
            expected.push((name.to_owned(), keys));
        }
        for number in 0..2 * PAGE {
            let name = format!("e{number:03}");
            make(sessions.tenants(), &name, 0).await;
            expected.push((name, 0));
        }
        let key = crate::secret::Secret::new(Keyring::fresh_key().as_bytes().to_vec());
        let serving = control.serve(Served::only(&sessions), KeySource::Given(key));
        let serving = tokio::spawn(serving);
        let (mut found, mut after, mut pages) = (Vec::new(), None, 0);
        loop {
            let asked = Ask::List {
                tenant: None,
                after,
            };
            let asked = serde_json::to_string(&asked).unwrap();
            let page = ask(&store, &format!("{}{asked}", control::KEYS)).await;
            let page = page.unwrap();
            found.extend(names(&page));
            pages += 1;
            match page["next"].as_str() {
                Some(next) => after = Some(next.to_owned()),
                None => break,
            }
        }
        assert_eq!(found, expected);
        assert!(pages > 2, "{pages}");
        serving.abort();
        // Whoever has the store open needs no pages.
        let whole = perform(sessions.tenants(), r#"{"do":"list"}"#, usize::MAX).await;
        assert_eq!(names(&whole.unwrap()), expected);
        let one = perform(sessions.tenants(), r#"{"do":"list","tenant":"b"}"#, 0).await;
        assert_eq!(names(&one.unwrap()), expected[1..2]);
    }
}
