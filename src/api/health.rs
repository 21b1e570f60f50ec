//! Health: is the process up, and does it take new work.
//!
//! Both answers are for probes: no key is needed and nothing about sessions is told. A process
//! that drains is still alive, so that only readiness changes. Called by the route table.

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use serde::Serialize;

use super::ApiState;
use super::vault::recordable;
use crate::web::{Failure, json};

#[derive(Serialize)]
struct Health {
    status: &'static str,
}

/// `GET /healthz`: the process is up.
pub(super) async fn alive() -> Result<Response, Failure> {
    json(StatusCode::OK, &Health { status: "ok" })
}

/// `GET /readyz`: the process takes new work, or drains, could not store a new session, or refuses
/// what it could not record.
pub(super) async fn ready(State(state): State<ApiState>) -> Result<Response, Failure> {
    if state.drain.is_draining() {
        return Err(Failure::Draining);
    }
    state.sessions.store_health().map_err(Failure::StoreDown)?;
    recordable(&state)?;
    json(StatusCode::OK, &Health { status: "ready" })
}
