//! The operator's routes: create, list, show, patch and delete tenants, and their API keys.
//!
//! Every handler asks for the operator's key first: to everybody else there is nothing here, which
//! is why the routes have their own answer to a method that is not allowed. A key is in one answer,
//! that of its creation, and never again. Called by the route table.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Path, State};
use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, LOCATION};
use http::request::Parts;
use http::{HeaderValue, StatusCode, Uri};
use serde::Serialize;

use super::vault::{finish, limit, rfc3339};
use super::{ApiState, tenant_form};
use crate::id::{ApiKeyId, TenantId};
use crate::secret::Fingerprint;
use crate::session::FieldError;
use crate::tenant::{About, KeyRecord, Limits, State as TenantState, generate_key};
use crate::web::{Admin, Failure, JsonBody, MergePatch, json, query};

/// The tenant in a path. What is no name at all is as little there as one that nobody has.
pub(super) struct Id(TenantId);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let id = path.ok().and_then(|Path(text)| TenantId::parse(&text));
        id.map(Self).ok_or(Failure::NotFound)
    }
}

/// The tenant and the key in a path.
pub(super) struct KeyPath(TenantId, ApiKeyId);

impl<S: Send + Sync> FromRequestParts<S> for KeyPath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let path = Path::<(String, String)>::from_request_parts(parts, state).await;
        let Path((tenant, key)) = path.map_err(|_odd| Failure::NotFound)?;
        let both = TenantId::parse(&tenant).zip(ApiKeyId::parse(&key));
        both.map(|(tenant, key)| Self(tenant, key))
            .ok_or(Failure::NotFound)
    }
}

#[derive(Serialize)]
struct LimitsMetadata {
    sessions: Option<u32>,
    requests_per_second: Option<u32>,
}

/// What is told of a tenant: no key, and no hash of one.
#[derive(Serialize)]
struct TenantMetadata {
    tenant_id: String,
    state: TenantState,
    created_at: Option<String>,
    limits: LimitsMetadata,
    sessions: usize,
    keys: usize,
}

#[derive(Serialize)]
struct TenantList {
    tenants: Vec<TenantMetadata>,
    next_cursor: Option<String>,
}

#[derive(Serialize)]
struct KeyMetadata {
    key_id: String,
    label: String,
    created_at: String,
}

#[derive(Serialize)]
struct KeyList {
    keys: Vec<KeyMetadata>,
}

/// The answer that creates a key: the only one with the key.
#[derive(Serialize)]
struct CreatedKey<'a> {
    #[serde(flatten)]
    metadata: KeyMetadata,
    api_key: &'a str,
}

/// `POST /v1/tenants`.
pub(super) async fn create(
    State(state): State<ApiState>,
    _: Admin,
    JsonBody(body): JsonBody,
) -> Result<Response, Failure> {
    let (id, limits) = tenant_form::create(body).map_err(Failure::Invalid)?;
    let tenants = state.sessions.tenants().clone();
    let made = finish(
        &state,
        async move { Ok(tenants.create(&id, limits).await?) },
    );
    let made = made.await?;
    let mut response = json(StatusCode::CREATED, &describe(&made)?)?;
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/tenants/{}", made.id)) {
        response.headers_mut().insert(LOCATION, location);
    }
    Ok(response.into_response())
}

/// `GET /v1/tenants`.
pub(super) async fn list(
    State(state): State<ApiState>,
    _: Admin,
    uri: Uri,
) -> Result<Response, Failure> {
    let parameters = query(&uri, &["limit", "cursor"])?;
    let cursor = parameters.get("cursor").map(|text| TenantId::parse(text));
    let mut errors = Vec::new();
    let limit = limit(&parameters).map_err(|error| errors.push(error));
    if let Some(None) = cursor {
        let message = "the next_cursor of the page before";
        errors.push(FieldError::new("cursor", "bad_cursor", message));
    }
    let Ok(limit) = limit.and_then(|limit| errors.is_empty().then_some(limit).ok_or(())) else {
        return Err(Failure::BadRequest(errors));
    };
    let after = cursor.flatten();
    // One more than asked for tells whether there is a next page.
    let mut found = state.sessions.tenants().list(after.as_ref(), limit + 1);
    let more = found.len() > limit;
    found.truncate(limit);
    let last = found.last().filter(|_| more).map(|one| one.id.to_string());
    let tenants = found.iter().map(describe).collect::<Result<_, _>>()?;
    json(
        StatusCode::OK,
        &TenantList {
            tenants,
            next_cursor: last,
        },
    )
}

/// `GET /v1/tenants/{id}`.
pub(super) async fn show(
    State(state): State<ApiState>,
    _: Admin,
    Id(id): Id,
) -> Result<Response, Failure> {
    let about = state.sessions.tenants().about(&id);
    json(StatusCode::OK, &describe(&about.ok_or(Failure::NotFound)?)?)
}

/// `PATCH /v1/tenants/{id}`.
pub(super) async fn patch(
    State(state): State<ApiState>,
    _: Admin,
    Id(id): Id,
    MergePatch(body): MergePatch,
) -> Result<Response, Failure> {
    let change = tenant_form::patch(body).map_err(Failure::Invalid)?;
    let tenants = state.sessions.tenants().clone();
    let changed = finish(&state, async move { Ok(tenants.patch(&id, change).await?) });
    json(StatusCode::OK, &describe(&changed.await?)?)
}

/// `DELETE /v1/tenants/{id}`.
pub(super) async fn delete(
    State(state): State<ApiState>,
    _: Admin,
    Id(id): Id,
) -> Result<StatusCode, Failure> {
    let sessions = Arc::clone(&state.sessions);
    let deleted = finish(
        &state,
        async move { Ok(sessions.delete_tenant(&id).await?) },
    );
    deleted.await.map(|()| StatusCode::NO_CONTENT)
}

/// `POST /v1/tenants/{id}/keys`.
pub(super) async fn create_key(
    State(state): State<ApiState>,
    _: Admin,
    Id(id): Id,
    JsonBody(body): JsonBody,
) -> Result<Response, Failure> {
    let label = tenant_form::label(body).map_err(Failure::Invalid)?;
    let (key, tenants) = (generate_key(), state.sessions.tenants().clone());
    let hash = Fingerprint::of(key.expose());
    let made = finish(&state, async move {
        Ok(tenants.add_key(&id, &label, hash).await?)
    });
    let made = made.await?;
    let text = std::str::from_utf8(key.expose());
    let answer = CreatedKey {
        metadata: describe_key(&made)?,
        api_key: text.map_err(|error| Failure::Internal(error.into()))?,
    };
    json(StatusCode::CREATED, &answer)
}

/// `GET /v1/tenants/{id}/keys`.
pub(super) async fn list_keys(
    State(state): State<ApiState>,
    _: Admin,
    Id(id): Id,
) -> Result<Response, Failure> {
    let about = state.sessions.tenants().about(&id);
    let about = about.ok_or(Failure::NotFound)?;
    let keys = about.keys.iter().map(describe_key);
    let keys = keys.collect::<Result<_, _>>()?;
    json(StatusCode::OK, &KeyList { keys })
}

/// `DELETE /v1/tenants/{id}/keys/{key}`.
pub(super) async fn revoke_key(
    State(state): State<ApiState>,
    _: Admin,
    KeyPath(id, key): KeyPath,
) -> Result<StatusCode, Failure> {
    let tenants = state.sessions.tenants().clone();
    let revoked = finish(
        &state,
        async move { Ok(tenants.revoke_key(&id, &key).await?) },
    );
    revoked.await.map(|()| StatusCode::NO_CONTENT)
}

/// Any other method: told to the operator alone, with those there are (RFC 9110 §15.5.6).
pub(super) fn other_method(allow: &'static str) -> Response {
    let mut response = Failure::MethodNotAllowed.into_response();
    let allow = HeaderValue::from_static(allow);
    response.headers_mut().insert(ALLOW, allow);
    response
}

fn describe(about: &About) -> Result<TenantMetadata, Failure> {
    let Limits {
        sessions,
        requests_per_second,
    } = about.limits;
    Ok(TenantMetadata {
        tenant_id: about.id.to_string(),
        state: about.state,
        created_at: about.created.map(rfc3339).transpose()?,
        limits: LimitsMetadata {
            sessions,
            requests_per_second,
        },
        sessions: about.sessions,
        keys: about.keys.len(),
    })
}

fn describe_key(key: &KeyRecord) -> Result<KeyMetadata, Failure> {
    Ok(KeyMetadata {
        key_id: key.id.to_string(),
        label: key.label.clone(),
        created_at: rfc3339(key.created)?,
    })
}
