//! `POST /api/webhooks/stripe`: what Stripe says of customers, by its signature alone.
//!
//! The body is read as it came, since that is what was signed, and only where the signature may be
//! Stripe's; few are read at once. Whoever is not Stripe learns nothing.
//! A change that was begun is finished, whether its sender waits or not. Called by the route table.

use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::{Request, State};
use axum::response::Response;
use http::{HeaderMap, HeaderName, Method, StatusCode};
use serde_json::json;

use super::open::{OpenState, answer, read};
use crate::payment::WebhookError;
use crate::web::TaggedFailure;

/// The longest delivery, in bytes. Events are some kilobytes.
const BODY_LIMIT_BYTES: usize = 256 * 1024;
/// How long one may take to arrive: less than elsewhere, since others wait for its place.
const BODY_DEADLINE: Duration = Duration::from_secs(10);
/// After how many seconds a delivery that found no place may come again. Stripe takes its time.
const AGAIN_SECONDS: u64 = 10;
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
    let signed = webhook.announced(signature, SystemTime::now());
    let signed = signed.map_err(|why| refuse(&why))?;
    let body = {
        let _permit = webhook
            .body_permit()
            .ok_or(TaggedFailure::TooFast(AGAIN_SECONDS))?;
        let read = tokio::time::timeout(BODY_DEADLINE, read(body, BODY_LIMIT_BYTES)).await;
        read.map_err(|_elapsed| TaggedFailure::Slow)??
    };
    let webhook = Arc::clone(webhook);
    let (sender, receiver) = tokio::sync::oneshot::channel();
    state.drain.spawn(async move {
        let taken = webhook.receive(&signed, &body).await;
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
        Err(unread @ WebhookError::Event(_)) => {
            // It is Stripe's: the operator has to know.
            tracing::warn!(why = %unread, "a delivery of Stripe's was refused");
            Err(refuse(&unread))
        }
        Err(refused) => Err(refuse(&refused)),
    }
}

/// Refuses a delivery. Anybody can send what is not signed: the log is not theirs to fill.
fn refuse(why: &dyn Display) -> TaggedFailure {
    tracing::debug!(%why, "a delivery to Stripe's webhook was refused");
    TaggedFailure::BadRequest("the delivery is not signed, or cannot be read")
}

/// Returns the one signature field; nothing where there are several: which one counts is anybody's
/// guess.
fn one_signature(headers: &HeaderMap) -> Option<&[u8]> {
    let mut fields = headers.get_all(SIGNATURE).iter();
    let first = fields.next()?;
    fields.next().is_none().then(|| first.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll};
    use std::time::UNIX_EPOCH;

    use axum::body::Body;
    use bytes::Bytes;
    use http_body::Frame;
    use tokio::sync::RwLock;

    use super::*;
    use crate::audit::Sink;
    use crate::payment::{Accounts, Webhook};
    use crate::records::Records;
    use crate::seal::Keyring;
    use crate::secret::Secret;
    use crate::shutdown::Drain;
    use crate::store::Memory;

    /// A body that never comes, and counts whether anybody waits for it.
    struct Never(Arc<AtomicUsize>);

    impl http_body::Body for Never {
        type Data = Bytes;
        type Error = std::io::Error;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Poll::Pending
        }
    }

    async fn state() -> OpenState {
        let keyring = Arc::new(RwLock::new(Keyring::generate()));
        let records = Records::new(Arc::new(Memory::new()), keyring);
        let accounts = Accounts::load(Arc::new(records)).await.unwrap();
        let secret = Secret::new(b"whsec_canary".to_vec());
        let webhook = Webhook::new(&secret, None, Arc::new(accounts), None).unwrap();
        OpenState::new(Drain::default(), Sink::discard()).with_webhook(Some(Arc::new(webhook)))
    }

    fn request(field: &str, polled: &Arc<AtomicUsize>) -> Request {
        let body = Body::new(Never(Arc::clone(polled)));
        let request = Request::post("/api/webhooks/stripe").header(SIGNATURE, field);
        request.body(body).unwrap()
    }

    /// A field as Stripe writes it, of this many seconds ago.
    fn field(ago: u64) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        format!("t={},v1={}", now.as_secs() - ago, "0".repeat(64))
    }

    #[tokio::test]
    async fn no_byte_is_read_of_what_cannot_be_stripe_s() {
        let (state, polled) = (state().await, Arc::default());
        for field in ["", "t=1", "v1=00", "nonsense", &field(302)] {
            let answer = stripe(State(state.clone()), request(field, &polled)).await;
            assert!(
                matches!(answer, Err(TaggedFailure::BadRequest(_))),
                "{field}"
            );
        }
        assert_eq!(polled.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn few_bodies_are_under_way_at_once() {
        let (state, polled) = (state().await, Arc::default());
        let waiting: Vec<_> = (0..32)
            .map(|_| tokio::spawn(stripe(State(state.clone()), request(&field(0), &polled))))
            .collect();
        while polled.load(Ordering::SeqCst) < 32 {
            tokio::task::yield_now().await;
        }
        let one_more = stripe(State(state.clone()), request(&field(0), &polled)).await;
        assert!(matches!(one_more, Err(TaggedFailure::TooFast(_))));
        assert_eq!(polled.load(Ordering::SeqCst), 32);
        for one in &waiting {
            one.abort();
        }
        for one in waiting {
            assert!(one.await.is_err_and(|gone| gone.is_cancelled()));
        }
        let webhook = state.webhook.as_ref().unwrap();
        assert!(webhook.body_permit().is_some());
    }
}
