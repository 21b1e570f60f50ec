//! `accounts list`, `show`, `set`, `usage`: who is paid, and what they used.
//!
//! Asked of a running server over its API, with the operator's key: the accounts live in its memory,
//! and what is said there is in the store before it is answered. Called by the command line.

use clap::ArgMatches;
use serde_json::{Value, json};

use super::args::{not_available, server_flags, texts};
use super::session::ask;
use super::target::{ServerFlags, Target};
use super::{Exit, print};
use crate::config::{Flags, Source};
use crate::id::AccountId;
use crate::payment::Month;

/// How many accounts are asked for at once.
const PAGE: usize = 200;
/// The most pages that are asked for: a list without an end is no list.
const PAGES_LIMIT: usize = 100_000;

/// What is asked about accounts, and of whom.
#[derive(Debug, Clone)]
pub struct AccountCalls {
    /// Which server.
    pub server: ServerFlags,
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

/// Does what was asked.
pub(super) async fn accounts(calls: AccountCalls) -> Result<(), Exit> {
    let target = calls.server.admin(&Source::process(Flags::default()))?;
    let answer = match calls.action {
        AccountAction::List => all(&target).await?,
        AccountAction::Set { account, paid } => {
            let body = json!({ "paid": paid }).to_string().into_bytes();
            ask(
                &target,
                "PUT",
                &format!("/v1/accounts/{account}"),
                Some(body),
            )
            .await?
        }
        AccountAction::Show(account) => {
            ask(&target, "GET", &format!("/v1/accounts/{account}"), None).await?
        }
        AccountAction::Usage { account, month } => {
            let month = month.map(|month| format!("?month={month}"));
            let path = format!("/v1/accounts/{account}/usage{}", month.unwrap_or_default());
            ask(&target, "GET", &path, None).await?
        }
    };
    print(&format!("{answer:#}\n"))
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
