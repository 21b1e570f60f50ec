//! `POST /api/webhooks/stripe`: what Stripe says of customers, by its signature alone.
//!
//! The body is read as it came, since that is what was signed. Whoever is not Stripe learns nothing.
//! A change that was begun is finished, whether its sender waits or not. Called by the route table.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::{Request, State};
use axum::response::Response;
use http::{HeaderMap, HeaderName, Method, StatusCode};
use serde_json::json;

use super::open::{OpenState, answer, read};
use crate::payment::WebhookError;
use crate::web::TaggedFailure;

/// The longest delivery, in bytes.
const BODY_LIMIT_BYTES: usize = 1024 * 1024;
/// The field with the signature.
const SIGNATURE: HeaderName = HeaderName::from_static("stripe-signature");

/// Takes a delivery.
pub(super) async fn stripe(
    State(state): State<OpenState>,
    request: Request,
) -> Result<Response, TaggedFailure> {
    let webhook = state.webhook.as_ref().ok_or(TaggedFailure::NotFound)?;
    if request.method() != Method::POST {
        return Err(TaggedFailure::MethodNotAllowed("POST"));
    }
    let (parts, body) = request.into_parts();
    let signature = one_signature(&parts.headers);
    let body = read(body, BODY_LIMIT_BYTES).await?;
    let webhook = Arc::clone(webhook);
    let (sender, receiver) = tokio::sync::oneshot::channel();
    state.drain.spawn(async move {
        let now = SystemTime::now();
        let taken = webhook.receive(signature.as_deref(), &body, now).await;
        if sender.send(taken).is_err() {
            tracing::debug!("a sender left before the answer");
        }
    });
    let taken = receiver
        .await
        .map_err(|gone| TaggedFailure::Unstored(gone.into()))?;
    match taken {
        Ok(applied) => {
            tracing::debug!(?applied, "a delivery of Stripe's was taken");
            Ok(answer(StatusCode::OK, &json!({ "received": true })))
        }
        Err(WebhookError::Accounts(error)) => Err(TaggedFailure::Unstored(error.into())),
        Err(refused) => {
            tracing::warn!(why = %refused, "a delivery to Stripe's webhook was refused");
            Err(TaggedFailure::BadRequest(
                "the delivery is not signed, or cannot be read",
            ))
        }
    }
}

/// Returns the one signature field; nothing where there are several: which one counts is anybody's
/// guess.
fn one_signature(headers: &HeaderMap) -> Option<Vec<u8>> {
    let mut fields = headers.get_all(SIGNATURE).iter();
    let first = fields.next()?;
    fields.next().is_none().then(|| first.as_bytes().to_vec())
}
