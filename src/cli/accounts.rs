//! `accounts list`, `show`, `set`, `usage`: who is paid, and what they used.
//!
//! It is done by the server that has the store open, over its control socket, or here where none
//! has; or, with `--server`, over the management API with the operator's key. What is said is in the
//! store before it is answered. Called by the command line.

use std::sync::Arc;
use std::time::SystemTime;

use clap::ArgMatches;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::args::{flags, not_available, server_flags, texts};
use super::grammar::is_of_store;
use super::session::ask;
use super::target::{ServerFlags, Target};
use super::{Exit, chain, control, print, stored};
use crate::api::{AccountMetadata, UsageMetadata};
use crate::app::Paying;
use crate::config::{Flags, Source};
use crate::id::AccountId;
use crate::payment::{self, Accounts, Ledger, Month, Usage, usage_offline};
use crate::records::Records;

/// How many accounts are asked for at once.
const PAGE: usize = 200;
/// The most pages that are asked for: a list without an end is no list.
const PAGES_LIMIT: usize = 100_000;

/// How long a page is over the control socket, in bytes, unless its first line is longer.
const PAGE_BYTES: usize = 32 * 1024;

/// What is asked about accounts, and of whom.
#[derive(Debug, Clone)]
pub struct AccountCalls {
    /// The running server to ask over its API; the store's own way where its URL is not given.
    pub server: ServerFlags,
    /// Where the configuration is, which says where the store is.
    pub flags: Flags,
    /// Which call.
    pub action: AccountAction,
}

/// One call about accounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccountAction {
    /// Lists the accounts that somebody spoke of.
    List,
    /// Says whether an account is paid.
    Set {
        /// Which one.
        account: AccountId,
        /// Whether it is.
        paid: bool,
    },
    /// Prints one account.
    Show(AccountId),
    /// Prints what an account used in a month.
    Usage {
        /// Which one.
        account: AccountId,
        /// The month; the present one where none is named.
        month: Option<Month>,
    },
}

/// Reads what is asked of a command line that was parsed.
pub(super) fn parsed(matches: &ArgMatches) -> Result<AccountCalls, Exit> {
    let (name, of) = matches
        .subcommand()
        .ok_or_else(|| not_available("accounts ", None))?;
    let account = || account(of, "id", "ID");
    let action = match name {
        "list" => AccountAction::List,
        "set" => AccountAction::Set {
            account: account()?,
            paid: texts(of, "paid").iter().any(|text| text == "true"),
        },
        "show" => AccountAction::Show(account()?),
        "usage" => {
            let month = texts(of, "month").into_iter().next();
            let bad = || Exit::usage("error: --month expects a month such as 2026-11".to_owned());
            let month = month.map(|text| Month::parse(&text).ok_or_else(bad));
            AccountAction::Usage {
                account: account()?,
                month: month.transpose()?,
            }
        }
        _ => return Err(not_available("accounts ", matches.subcommand())),
    };
    Ok(AccountCalls {
        server: server_flags(of)?,
        flags: flags(of, is_of_store),
        action,
    })
}

/// Reads the id of an account.
pub(super) fn account(matches: &ArgMatches, id: &str, flag: &str) -> Result<AccountId, Exit> {
    let given = texts(matches, id).into_iter().next().unwrap_or_default();
    AccountId::parse(&given).ok_or_else(|| {
        Exit::usage(format!(
            "error: {flag} expects 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-', the first a letter \
             or digit"
        ))
    })
}

/// One call about accounts, as it goes over the control socket.
#[derive(Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
enum Ask {
    List {
        /// The last one of the page before.
        after: Option<String>,
    },
    Set {
        account: String,
        paid: bool,
    },
    Show {
        account: String,
    },
    Usage {
        account: String,
        month: Option<String>,
        /// The last line of the page before: sandbox and model, with a blank between.
        after: Option<String>,
    },
}

/// Does what was asked.
pub(super) async fn accounts(calls: AccountCalls) -> Result<(), Exit> {
    let answer = if calls.server.url.is_some() {
        let target = calls.server.admin(&Source::process(Flags::default()))?;
        remotely(&target, calls.action).await?
    } else {
        by_store(&calls.flags, calls.action).await?
    };
    print(&format!("{answer:#}\n"))
}

/// Asks whoever has the store open, or opens it.
async fn by_store(flags: &Flags, action: AccountAction) -> Result<Value, Exit> {
    let ask = async |ask: Ask| {
        let line = serde_json::to_string(&ask).map_err(|error| Exit::startup(&error))?;
        let here = async |records| perform_here(records, &line).await;
        stored::by_store(flags, "accounts", (control::ACCOUNTS, &line), here).await
    };
    match action {
        AccountAction::List => {
            stored::gather("accounts", async |after| ask(Ask::List { after }).await).await
        }
        AccountAction::Set { account, paid } => {
            let account = account.to_string();
            ask(Ask::Set { account, paid }).await
        }
        AccountAction::Show(account) => {
            let account = account.to_string();
            ask(Ask::Show { account }).await
        }
        AccountAction::Usage { account, month } => {
            let page = async |after| {
                let (account, month) = (account.to_string(), month.map(|month| month.to_string()));
                ask(Ask::Usage {
                    account,
                    month,
                    after,
                })
                .await
            };
            stored::gather("usage", page).await
        }
    }
}

/// Does one call about accounts in a store that nobody else has open.
async fn perform_here(records: Arc<Records>, line: &str) -> Result<Value, String> {
    let accounts = Accounts::load(Arc::clone(&records)).await;
    let accounts = accounts.map_err(|error| chain(&error))?;
    match accounts.refused() {
        0 => perform(&accounts, &Books::Closed(&records), line, usize::MAX).await,
        refused => Err(stored::refused(refused)),
    }
}

/// Does one call about accounts that came over the control socket of a server.
pub(super) async fn answer(paying: Option<&Paying>, line: &str) -> Result<Value, String> {
    let paying = paying.ok_or("there are no accounts here")?;
    let books = Books::Open(&paying.ledger);
    perform(&paying.accounts, &books, line, PAGE_BYTES).await
}

/// Where it stands what was used.
enum Books<'a> {
    /// In a store that no server has open.
    Closed(&'a Records),
    /// In the memory of the server.
    Open(&'a Ledger),
}

impl Books<'_> {
    async fn usage(&self, account: &AccountId, month: Month) -> Result<Usage, payment::Error> {
        match self {
            Self::Closed(records) => usage_offline(records, account, month).await,
            Self::Open(ledger) => ledger.usage(account, month).await,
        }
    }
}

/// Does one call about accounts, with so much room for a list, in bytes.
async fn perform(
    accounts: &Accounts,
    books: &Books<'_>,
    line: &str,
    room: usize,
) -> Result<Value, String> {
    let ask: Ask = serde_json::from_str(line).map_err(|_odd| "the call is malformed".to_owned())?;
    let named = |text: &str| AccountId::parse(text).ok_or("the call is malformed".to_owned());
    let failed = |error: payment::Error| chain(&error);
    match ask {
        Ask::List { after } => {
            let after = after.map(|after| named(&after)).transpose()?;
            Ok(list(accounts, after.as_ref(), room))
        }
        Ask::Set { account, paid } => {
            let account = named(&account)?;
            let set = accounts.grant(&account, paid, SystemTime::now()).await;
            let set = set.map_err(failed)?;
            Ok(json!(AccountMetadata::of(&account, set)))
        }
        Ask::Show { account } => {
            let account = named(&account)?;
            let shown = accounts.account(&account).map_err(failed)?;
            Ok(json!(AccountMetadata::of(&account, shown)))
        }
        Ask::Usage {
            account,
            month,
            after,
        } => {
            let account = named(&account)?;
            let month = match month {
                None => Month::of(SystemTime::now()).map_err(failed)?,
                Some(text) => Month::parse(&text).ok_or("the call is malformed")?,
            };
            let usage = books.usage(&account, month).await.map_err(failed)?;
            let whole = json!(UsageMetadata::of(&account, month, usage));
            Ok(page_of_usage(whole, after.as_deref(), room))
        }
    }
}

/// Lists as many accounts as there is room for, in bytes, and one at least. One whose record is
/// refused was named in the log of the server.
fn list(accounts: &Accounts, after: Option<&AccountId>, room: usize) -> Value {
    let all = accounts.list().into_iter();
    let described = all
        .filter(|id| after.is_none_or(|after| id > after))
        .filter_map(|id| {
            let account = accounts.account(&id).ok()?;
            Some(json!(AccountMetadata::of(&id, account)))
        });
    let (part, more) = stored::part(described, room);
    let last = part.last().filter(|_| more);
    let next = last.and_then(|last| last.get("account_id")).cloned();
    json!({ "accounts": part, "next": next })
}

/// Leaves of what was used as many lines as there is room for, in bytes, and one at least.
fn page_of_usage(mut whole: Value, after: Option<&str>, room: usize) -> Value {
    let lines = whole.get_mut("usage").map(Value::take);
    let Some(Value::Array(lines)) = lines else {
        return whole;
    };
    let lines = lines.into_iter();
    let left = lines.filter(|line| after.is_none_or(|after| *place(line) > *after));
    let (part, more) = stored::part(left, room);
    let next = part.last().filter(|_| more).map(place);
    if let Some(whole) = whole.as_object_mut() {
        whole.insert("usage".to_owned(), part.into());
        whole.insert("next".to_owned(), next.into());
    }
    whole
}

/// Tells where a line of usage stands. Neither name has a blank, which comes before all that they have,
/// so that this text is in the order of the lines.
fn place(line: &Value) -> String {
    let text = |name: &str| line.get(name).and_then(Value::as_str).unwrap_or_default();
    format!("{} {}", text("sandbox"), text("model"))
}

/// Does it over the management API, as the operator.
async fn remotely(target: &Target, action: AccountAction) -> Result<Value, Exit> {
    match action {
        AccountAction::List => all(target).await,
        AccountAction::Set { account, paid } => {
            let body = json!({ "paid": paid }).to_string().into_bytes();
            let path = format!("/v1/accounts/{account}");
            ask(target, "PUT", &path, Some(body)).await
        }
        AccountAction::Show(account) => {
            ask(target, "GET", &format!("/v1/accounts/{account}"), None).await
        }
        AccountAction::Usage { account, month } => {
            let month = month.map(|month| format!("?month={month}"));
            let path = format!("/v1/accounts/{account}/usage{}", month.unwrap_or_default());
            ask(target, "GET", &path, None).await
        }
    }
}

/// Gathers all accounts in one list, whatever the pages of the server are.
async fn all(target: &Target) -> Result<Value, Exit> {
    let (mut accounts, mut cursor) = (Vec::new(), String::new());
    for _ in 0..PAGES_LIMIT {
        let path = format!("/v1/accounts?limit={PAGE}{cursor}");
        let mut page = ask(target, "GET", &path, None).await?;
        let Some(Value::Array(found)) = page.get_mut("accounts").map(Value::take) else {
            break;
        };
        accounts.extend(found);
        let next = page.get("next_cursor").and_then(Value::as_str);
        match next.and_then(AccountId::parse) {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(json!({ "accounts": accounts })),
        }
    }
    let url = &target.url;
    Err(Exit::failed(&format!(
        "{url}: the answer is not a list of accounts"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(sandbox: &str, model: &str) -> Value {
        json!({ "sandbox": sandbox, "model": model, "input_tokens": 1 })
    }

    #[tokio::test]
    async fn usage_that_is_longer_than_a_line_comes_in_pages() {
        let lines: Vec<Value> = [
            ("a", "m"),
            ("a", "m-2"),
            ("a-b", "a"),
            ("a.b", "z"),
            ("b", "!"),
        ]
        .map(|(sandbox, model)| line(sandbox, model))
        .into();
        let whole = json!({ "account_id": "1", "counted_tokens": 5, "usage": lines });
        let all = whole.to_string().len();
        for (room, expected) in [
            (0, 5),
            (1, 5),
            (line("a", "m").to_string().len() * 2 + 10, 3),
            (all, 1),
        ] {
            let pages = std::cell::Cell::new(0);
            let page = async |after: Option<String>| {
                pages.set(pages.get() + 1);
                Ok(page_of_usage(whole.clone(), after.as_deref(), room))
            };
            let gathered = stored::gather("usage", page).await.unwrap();
            assert_eq!(gathered, whole, "{room}");
            assert_eq!(pages.get(), expected, "{room}");
        }
    }

    #[tokio::test]
    async fn a_list_that_never_ends_is_read_no_further() {
        let page = async |_after| Ok(json!({ "accounts": [1], "next": "same" }));
        let gathered = stored::gather("accounts", page).await.unwrap();
        assert_eq!(gathered, json!({ "accounts": [1, 1] }));
    }
}
