//! What a command asks of a store: of the server that has it open, over its control socket, or of
//! the file itself where no server has.
//!
//! The sealing keys are proven before anything is read or written here: what is sealed under others
//! would be refused by the next server. Called by the verbs about keys and accounts.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::RwLock;

use super::control::{self, ask};
use super::sealing::{self, KeySource};
use super::{Exit, chain};
use crate::config::{Config, Flags, Source};
use crate::records::Records;
use crate::seal::Keyring;
use crate::session::prove_offline;
use crate::store::Disk;

/// Asks whoever has the store open, with a command of the control socket's and its line of JSON; or
/// opens the store and does it here. `what` is asked about, for people.
///
/// # Errors
/// Exit code 64 for a store that only servers have, 1 for what cannot be done.
pub(super) async fn by_store(
    flags: &Flags,
    what: &str,
    (command, line): (&str, &str),
    here: impl AsyncFnOnce(Arc<Records>) -> Result<Value, String>,
) -> Result<Value, Exit> {
    let config = Config::load_state(&Source::process(flags.clone()))?;
    let Some(store) = config.store.file(&config.state_dir) else {
        return Err(Exit::usage(format!(
            "error: store.url: {what} of this store are managed with --server and the operator's key"
        )));
    };
    if !store.exists() {
        return Err(Exit::failed(&format!(
            "{} is not there: --server asks a running server over its API",
            store.display()
        )));
    }
    match ask(&store, &format!("{command}{line}")).await {
        Ok(answer) => Ok(answer),
        Err(control::Error::Nobody(_)) => in_file(&config, store, here).await,
        Err(error) => Err(Exit::startup(&error)),
    }
}

/// Does it in a store that no server has open.
async fn in_file(
    config: &Config,
    store: PathBuf,
    here: impl AsyncFnOnce(Arc<Records>) -> Result<Value, String>,
) -> Result<Value, Exit> {
    let startup = |error: &dyn std::error::Error| Exit::startup(error);
    let keyring = KeySource::of(config).read().await;
    let keyring = keyring.map_err(|error| startup(&error))?;
    let store = Arc::new(sealing::open(store).await.map_err(|e| startup(&e))?);
    let answer = match records(&store, keyring).await {
        Ok(records) => here(records).await,
        Err(why) => Err(why),
    };
    if let Some(store) = Arc::into_inner(store) {
        let closed = tokio::task::spawn_blocking(move || store.close()).await;
        closed.map_err(|error| startup(&error))?;
    }
    answer.map_err(|text| Exit::failed(&text))
}

/// Returns the records of a store that is open, if its sealing keys are these.
async fn records(store: &Arc<Disk>, keyring: Keyring) -> Result<Arc<Records>, String> {
    let proven = prove_offline(store.as_ref(), &keyring).await;
    proven.map_err(|error| chain(&error))?;
    let keyring = Arc::new(RwLock::new(keyring));
    Ok(Arc::new(Records::new(Arc::clone(store) as _, keyring)))
}

/// Says that so many records of the store were refused, which nobody may take for absent ones.
pub(super) fn refused(records: usize) -> String {
    format!(
        "records of the store are refused, {records} of them: a server that is started with it names \
         them in its log and serves the others"
    )
}

/// Gathers a list that comes in pages: each is asked for with where the one before ended. The rest of
/// the answer is that of the first.
pub(super) async fn gather(
    list: &str,
    page: impl AsyncFn(Option<String>) -> Result<Value, Exit>,
) -> Result<Value, Exit> {
    let mut whole = page(None).await?;
    let mut after = take_next(&mut whole, None);
    while let Some(last) = after {
        let mut more = page(Some(last.clone())).await?;
        after = take_next(&mut more, Some(&last));
        let found = more.get_mut(list).map(Value::take);
        let all = whole.get_mut(list).and_then(Value::as_array_mut);
        if let (Some(all), Some(Value::Array(found))) = (all, found) {
            all.extend(found);
        }
    }
    Ok(whole)
}

/// Takes from a page where it ended; nothing for the last one. Ends only rise, or a list has none.
fn take_next(page: &mut Value, before: Option<&str>) -> Option<String> {
    let next = page.as_object_mut()?.remove("next")?;
    let next = next.as_str()?.to_owned();
    before.is_none_or(|before| *next > *before).then_some(next)
}

/// Takes as many of a list as there is room for, in bytes, and one at least; tells whether there are
/// more.
pub(super) fn part(all: impl Iterator<Item = Value>, room: usize) -> (Vec<Value>, bool) {
    let (mut part, mut taken) = (Vec::new(), 0);
    for one in all {
        taken += one.to_string().len() + 1;
        if taken > room && !part.is_empty() {
            return (part, true);
        }
        part.push(one);
    }
    (part, false)
}
