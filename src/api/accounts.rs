//! The operator's routes about accounts: whether one is paid, and what it used.
//!
//! An account that nobody spoke of is unpaid and has used nothing. A change is durable before it is
//! told. To everybody but the operator there is nothing here. Called by the route table;
//! the command line tells in the same form.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::{FromRequestParts, Path, State};
use axum::response::Response;
use http::request::Parts;
use http::{StatusCode, Uri};
use serde::Serialize;

use super::ApiState;
use super::vault::{finish, limit};
use crate::id::AccountId;
use crate::payment::{Account, Accounts, Ledger, Line, Month, Usage};
use crate::session::FieldError;
use crate::web::{Admin, Failure, Json, JsonBody, json, query};

/// Who is paid, and what was used.
#[derive(Clone, Debug)]
pub(super) struct Paying {
    pub(super) accounts: Arc<Accounts>,
    pub(super) ledger: Arc<Ledger>,
}

/// The account in a path. What is no id at all is as little there as any other path.
pub(super) struct Id(AccountId);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let id = path.ok().and_then(|Path(text)| AccountId::parse(&text));
        id.map(Self).ok_or(Failure::NotFound)
    }
}

/// What is told of an account.
#[derive(Debug, Serialize)]
pub struct AccountMetadata {
    account_id: String,
    paid: bool,
    /// What the operator said, if anything.
    granted: Option<bool>,
    customers: usize,
}

impl AccountMetadata {
    /// Tells of an account.
    pub fn of(id: &AccountId, account: Account) -> Self {
        Self {
            account_id: id.to_string(),
            paid: account.paid,
            granted: account.granted,
            customers: account.customers,
        }
    }
}

#[derive(Serialize)]
struct AccountList {
    accounts: Vec<AccountMetadata>,
    next_cursor: Option<String>,
}

#[derive(Debug, Serialize)]
struct UsageLine {
    sandbox: String,
    model: String,
    input_tokens: u64,
    output_tokens: u64,
    cache_read_input_tokens: u64,
    cache_creation_input_tokens: u64,
    /// What was reserved for requests whose end nobody saw.
    unsettled_tokens: u64,
    /// What is reserved for requests under way.
    reserved_tokens: u64,
}

impl From<Line> for UsageLine {
    fn from(line: Line) -> Self {
        Self {
            sandbox: line.sandbox,
            model: line.model,
            input_tokens: line.tokens.input,
            output_tokens: line.tokens.output,
            cache_read_input_tokens: line.tokens.cache_read,
            cache_creation_input_tokens: line.tokens.cache_write,
            unsettled_tokens: line.unsettled,
            reserved_tokens: line.reserved,
        }
    }
}

/// What is told of an account's use in one month.
#[derive(Debug, Serialize)]
pub struct UsageMetadata {
    account_id: String,
    month: String,
    /// What counts towards a budget.
    counted_tokens: u64,
    usage: Vec<UsageLine>,
}

impl UsageMetadata {
    /// Tells of an account's use.
    pub fn of(id: &AccountId, month: Month, usage: Usage) -> Self {
        Self {
            account_id: id.to_string(),
            month: month.to_string(),
            counted_tokens: usage.counted(),
            usage: usage.lines.into_iter().map(UsageLine::from).collect(),
        }
    }
}

/// `GET /v1/accounts`.
pub(super) async fn list(
    State(state): State<ApiState>,
    _: Admin,
    uri: Uri,
) -> Result<Response, Failure> {
    let parameters = query(&uri, &["limit", "cursor"])?;
    let mut errors = Vec::new();
    let limit = limit(&parameters).map_err(|error| errors.push(error));
    let cursor = parameters.get("cursor").map(|text| AccountId::parse(text));
    if let Some(None) = cursor {
        let message = "the next_cursor of the page before";
        errors.push(FieldError::new("cursor", "bad_cursor", message));
    }
    let Ok(limit) = limit.and_then(|limit| errors.is_empty().then_some(limit).ok_or(())) else {
        return Err(Failure::BadRequest(errors));
    };
    let (accounts, after) = (&state.paying()?.accounts, cursor.flatten());
    let mut found = accounts.list();
    found.retain(|id| after.as_ref().is_none_or(|after| id > after));
    let more = found.len() > limit;
    found.truncate(limit);
    let last = found.last().filter(|_| more).map(ToString::to_string);
    let described = found.iter().filter_map(|id| {
        // One whose record is refused is named in the log, and told of when it is asked for.
        let account = accounts.account(id).ok()?;
        Some(AccountMetadata::of(id, account))
    });
    let answer = AccountList {
        accounts: described.collect(),
        next_cursor: last,
    };
    json(StatusCode::OK, &answer)
}

/// `GET /v1/accounts/{id}`.
pub(super) async fn show(
    State(state): State<ApiState>,
    _: Admin,
    Id(id): Id,
) -> Result<Response, Failure> {
    let account = state.paying()?.accounts.account(&id)?;
    json(StatusCode::OK, &AccountMetadata::of(&id, account))
}

/// `PUT /v1/accounts/{id}`: the operator says whether an account is paid.
pub(super) async fn put(
    State(state): State<ApiState>,
    _: Admin,
    Id(id): Id,
    JsonBody(body): JsonBody,
) -> Result<Response, Failure> {
    let paid = read(body).map_err(Failure::Invalid)?;
    let accounts = Arc::clone(&state.paying()?.accounts);
    let changed = finish(&state, async move {
        let account = accounts.grant(&id, paid, SystemTime::now()).await?;
        Ok(AccountMetadata::of(&id, account))
    });
    json(StatusCode::OK, &changed.await?)
}

/// `GET /v1/accounts/{id}/usage`: of this month, or of `?month=2026-11`.
pub(super) async fn usage(
    State(state): State<ApiState>,
    _: Admin,
    Id(id): Id,
    uri: Uri,
) -> Result<Response, Failure> {
    let parameters = query(&uri, &["month"])?;
    let month = match parameters.get("month") {
        None => Month::of(SystemTime::now())?,
        Some(text) => Month::parse(text).ok_or_else(|| {
            let message = "a month such as 2026-11";
            Failure::BadRequest(vec![FieldError::new("month", "bad_month", message)])
        })?,
    };
    let usage = state.paying()?.ledger.usage(&id, month).await?;
    json(StatusCode::OK, &UsageMetadata::of(&id, month, usage))
}

/// Reads `{"paid": true}`.
fn read(body: Json) -> Result<bool, Vec<FieldError>> {
    let Json::Object(fields) = body else {
        let error = FieldError::new("body", "wrong_type", "must be an object");
        return Err(vec![error]);
    };
    let (mut paid, mut errors) = (None, Vec::new());
    for (name, value) in fields {
        match (name.as_str(), value) {
            ("paid", Json::Bool(value)) => paid = Some(value),
            ("paid", _) => {
                errors.push(FieldError::new(
                    "paid",
                    "wrong_type",
                    "must be true or false",
                ));
            }
            _ => {
                let message = "is no field here; there is: paid";
                errors.push(FieldError::new(name, "unknown_field", message));
            }
        }
    }
    if paid.is_none() && !errors.iter().any(|error| error.field == "paid") {
        errors.push(FieldError::new("paid", "required", "true or false"));
    }
    paid.filter(|_| errors.is_empty()).ok_or(errors)
}
