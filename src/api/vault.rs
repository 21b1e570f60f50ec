//! The vault's routes: create, list, show, patch and delete sessions.
//!
//! This is where a session is asked for in full, so this is where an absent list is said to mean
//! something: **an absent `allowed_egress` means any public host** on ports 443 and 80, which
//! parsing turns into `EgressPolicy::any_public`; an empty list means no host. Nothing else that is
//! absent or empty allows anything. No answer but that of the creation holds a token, and none a
//! secret. Called by the route table.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use axum::extract::{FromRequestParts, Path, State};
use axum::response::{IntoResponse, Response};
use http::header::LOCATION;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, Uri};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{ApiState, form, idempotency};
use crate::id::SessionId;
use crate::session::{CaptureForm, Created, FieldError, SecretSpec, SessionHandle, Warning};
use crate::web::{Asked, Caller, Failure, JsonBody, MergePatch, json, query};

/// How many sessions a list has where nothing is said, and at most.
const LIST_DEFAULT: usize = 50;
const LIST_LIMIT: usize = 200;

/// The id in a path. What is no id at all is as little there as another tenant's.
pub(super) struct Id(pub(super) SessionId);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let id = path.ok().and_then(|Path(text)| SessionId::parse(&text));
        id.map(Self).ok_or(Failure::NotFound)
    }
}

/// Writes warnings as the sentences they are.
fn sentences(warnings: Vec<Warning>) -> Vec<String> {
    warnings
        .into_iter()
        .map(|warning| warning.message)
        .collect()
}

/// The answer that creates a session: the only one with the token and all sealed tokens.
#[derive(Serialize)]
struct CreatedSession<'a> {
    session_id: &'a str,
    token: &'a str,
    sealed_secrets: &'a BTreeMap<String, String>,
    proxy_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy_url_plain: Option<String>,
    created_at: String,
    expires_at: String,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct SecretMetadata {
    name: String,
    hosts: Vec<String>,
    inject: Vec<String>,
}

impl SecretMetadata {
    fn of(secret: &SecretSpec) -> Self {
        Self {
            name: secret.name.to_string(),
            hosts: secret.hosts.to_vec(),
            inject: secret.inject.to_vec(),
        }
    }
}

/// A token endpoint that a session names.
#[derive(Serialize)]
struct CaptureMetadata {
    url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hosts: Option<Vec<String>>,
}

impl CaptureMetadata {
    fn of(form: &CaptureForm) -> Self {
        Self {
            url: form.url.clone(),
            hosts: form.hosts.clone(),
        }
    }
}

#[derive(Serialize)]
struct CountersMetadata {
    exchanges: u64,
    denied: u64,
    swapped: u64,
    tunnels: usize,
}

/// What is told of a session after its creation: no secret, no token, no sealed token.
#[derive(Serialize)]
struct SessionMetadata {
    session_id: String,
    created_at: String,
    expires_at: String,
    ttl_seconds: u64,
    max_lifetime_seconds: u64,
    secrets: Vec<SecretMetadata>,
    secret_hosts: Option<Vec<String>>,
    allowed_egress: Option<Vec<String>>,
    inject: Vec<String>,
    passthrough_hosts: Vec<String>,
    allow_plaintext: bool,
    scrub_responses: bool,
    capture: Vec<CaptureMetadata>,
    captured: Vec<String>,
    metadata: BTreeMap<String, String>,
    counters: CountersMetadata,
    version: u64,
}

#[derive(Serialize)]
struct SessionList {
    sessions: Vec<SessionMetadata>,
    next_cursor: Option<String>,
}

/// The answer to a patch: the metadata, and the sealed tokens of new names only.
#[derive(Serialize)]
struct PatchedSession {
    #[serde(flatten)]
    metadata: SessionMetadata,
    sealed_secrets: BTreeMap<String, String>,
    warnings: Vec<String>,
}

/// `POST /v1/sessions`.
pub(super) async fn create(
    State(state): State<ApiState>,
    headers: HeaderMap,
    Asked(caller, JsonBody(body)): Asked<JsonBody>,
) -> Result<Response, Failure> {
    let key = idempotency::key(&headers)?;
    recordable(&state)?;
    let form = form::create(body, |form| state.sessions.check(form)).map_err(Failure::Invalid)?;
    let tenant = Arc::clone(caller.tenant());
    let reserve = |key| state.idempotency.reserve(&tenant, key, Instant::now());
    let reservation = key.map(reserve).transpose()?;
    let shared = state.clone();
    let created = finish(&state, async move {
        let created = shared.sessions.create_for(&tenant, form).await?;
        if let Some(reservation) = reservation {
            reservation.settle(created.handle.id());
        }
        Ok(created)
    });
    answer_created(&state, created.await?)
}

/// `GET /v1/sessions`.
pub(super) async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    uri: Uri,
) -> Result<Response, Failure> {
    let (limit, after) = page(&query(&uri, &["limit", "cursor"])?)?;
    // One more than asked for tells whether there is a next page.
    let mut handles = state
        .sessions
        .list(caller.tenant().id(), after.as_ref(), limit + 1);
    let more = handles.len() > limit;
    handles.truncate(limit);
    let last = handles
        .last()
        .filter(|_| more)
        .map(|handle| handle.id().to_string());
    let sessions = handles
        .iter()
        .map(|handle| describe(handle))
        .collect::<Result<_, _>>()?;
    json(
        StatusCode::OK,
        &SessionList {
            sessions,
            next_cursor: last,
        },
    )
}

/// `GET /v1/sessions/{id}`.
pub(super) async fn show(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
) -> Result<Response, Failure> {
    let handle = state
        .sessions
        .seek(caller.tenant().id(), &id)
        .await?
        .ok_or(Failure::NotFound)?;
    json(StatusCode::OK, &describe(&handle)?)
}

/// `PATCH /v1/sessions/{id}`.
pub(super) async fn patch(
    State(state): State<ApiState>,
    Id(id): Id,
    Asked(caller, MergePatch(body)): Asked<MergePatch>,
) -> Result<Response, Failure> {
    recordable(&state)?;
    let sessions = Arc::clone(&state.sessions);
    let patched = finish(&state, async move {
        let check = |form: &_| sessions.check(form);
        let change = |form| form::patch(form, body, check);
        let tenant = caller.tenant().id();
        Ok(sessions.patch(tenant, &id, change).await?)
    });
    let patched = patched.await?;
    let answer = PatchedSession {
        metadata: describe(&patched.handle)?,
        sealed_secrets: patched.sealed_secrets,
        warnings: sentences(patched.warnings),
    };
    json(StatusCode::OK, &answer)
}

/// `DELETE /v1/sessions/{id}`.
pub(super) async fn delete(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id,
) -> Result<StatusCode, Failure> {
    let sessions = Arc::clone(&state.sessions);
    let deleted = finish(&state, async move {
        Ok(sessions.delete(caller.tenant().id(), &id).await?)
    });
    deleted.await.map(|()| StatusCode::NO_CONTENT)
}

/// Refuses to grant anything that could not be recorded, where the operator wants no gap. A deletion
/// takes away, and is never refused for it.
pub(super) fn recordable(state: &ApiState) -> Result<(), Failure> {
    if state.sessions.audit().is_full() {
        return Err(Failure::AuditFull);
    }
    Ok(())
}

/// Runs a change to its end, even if the caller goes away in between: half of it would leave the
/// store and the live table, or the idempotency key, telling different stories.
pub(super) async fn finish<T: Send + 'static>(
    state: &ApiState,
    change: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    state.drain.spawn(async move {
        if sender.send(change.await).is_err() {
            tracing::debug!("caller left before the answer");
        }
    });
    receiver
        .await
        .unwrap_or_else(|gone| Err(Failure::Internal(gone.into())))
}

fn answer_created(state: &ApiState, created: Created) -> Result<Response, Failure> {
    let (id, token) = (created.handle.id().as_str(), created.credential.expose());
    let addresses = &state.addresses;
    let url = |scheme: &str, address: &String| format!("{scheme}://{id}:{token}@{address}");
    let tls = addresses.tls.as_ref().map(|address| url("https", address));
    let plain = addresses.plain.as_ref().map(|address| url("http", address));
    let answer = CreatedSession {
        session_id: id,
        token,
        sealed_secrets: &created.sealed_secrets,
        proxy_url: tls.or_else(|| plain.clone()),
        proxy_url_plain: plain,
        created_at: rfc3339(created.handle.created())?,
        expires_at: rfc3339(created.handle.expires())?,
        warnings: sentences(created.warnings),
    };
    let mut response = json(StatusCode::CREATED, &answer)?;
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/sessions/{id}")) {
        response.headers_mut().insert(LOCATION, location);
    }
    Ok(response.into_response())
}

fn describe(handle: &SessionHandle) -> Result<SessionMetadata, Failure> {
    let (created_at, expires_at) = (rfc3339(handle.created())?, rfc3339(handle.expires())?);
    let counters = handle.counters();
    let count = |one: &AtomicU64| one.load(Ordering::Relaxed);
    let counters = CountersMetadata {
        exchanges: count(&counters.exchanges),
        denied: count(&counters.denied),
        swapped: count(&counters.swapped),
        tunnels: handle.tunnels(),
    };
    let captured = handle.captured().iter().map(ToString::to_string).collect();
    let header_alone = || vec!["header".to_owned()];
    Ok(handle.with_form(|form, spec| SessionMetadata {
        session_id: handle.id().to_string(),
        created_at,
        expires_at,
        ttl_seconds: spec.ttl.as_secs(),
        max_lifetime_seconds: spec.max_lifetime.as_secs(),
        secrets: spec.secrets.iter().map(SecretMetadata::of).collect(),
        secret_hosts: form.secret_hosts.clone(),
        allowed_egress: form.allowed_egress.clone(),
        inject: form.inject.clone().unwrap_or_else(header_alone),
        passthrough_hosts: form.passthrough_hosts.clone(),
        allow_plaintext: spec.allow_plaintext,
        scrub_responses: spec.scrub_responses,
        capture: form
            .capture
            .iter()
            .flatten()
            .map(CaptureMetadata::of)
            .collect(),
        captured,
        metadata: form.metadata.clone(),
        counters,
        version: handle.version(),
    }))
}

/// Reads how many entries of a list are asked for.
pub(super) fn limit(parameters: &BTreeMap<String, String>) -> Result<usize, FieldError> {
    let limit = parameters.get("limit").map_or(Some(LIST_DEFAULT), |text| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text
            .parse()
            .ok()
            .filter(|number| (1..=LIST_LIMIT).contains(number));
        number.filter(|_| digits)
    });
    let message = || format!("a number from 1 to {LIST_LIMIT}");
    limit.ok_or_else(|| FieldError::new("limit", "out_of_range", message()))
}

/// Reads the two parameters of a list.
fn page(parameters: &BTreeMap<String, String>) -> Result<(usize, Option<SessionId>), Failure> {
    let mut errors = Vec::new();
    let limit = limit(parameters).map_err(|error| errors.push(error));
    let cursor = parameters.get("cursor").map(|text| SessionId::parse(text));
    if let Some(None) = cursor {
        let message = "the next_cursor of the page before";
        errors.push(FieldError::new("cursor", "bad_cursor", message));
    }
    match limit {
        Ok(limit) if errors.is_empty() => Ok((limit, cursor.flatten())),
        _ => Err(Failure::BadRequest(errors)),
    }
}

/// Writes a time in UTC, in whole seconds.
pub(super) fn rfc3339(time: SystemTime) -> Result<String, Failure> {
    let time = OffsetDateTime::from(time);
    let text = time
        .replace_nanosecond(0)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok());
    text.ok_or_else(|| Failure::Internal("a time has no text form".into()))
}
