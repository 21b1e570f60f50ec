//! `POST /api/webhooks/stripe`: what Stripe says of customers, by its signature alone.
//!
//! The body is read as it came, since that is what was signed, and only where the signature may be
//! Stripe's. That anybody can write: what is bounded is the memory that bodies hold, and of it one
//! address has a part, so that nobody keeps Stripe out by sending nothing. Whoever is not Stripe
//! learns nothing. A change that was begun is finished, whether its sender waits or not. Called by the
//! route table.

use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::{Request, State};
use axum::response::Response;
use http::{HeaderMap, HeaderName, Method, StatusCode};
use serde_json::json;

use super::open::{OpenState, answer};
use super::paces::source;
use crate::payment::WebhookError;
use crate::web::{BodyError, BodyLimits, RoomSize, TaggedFailure};

/// What a delivery may be: events are some kilobytes, and Stripe sends them in one go.
const LIMITS: BodyLimits = BodyLimits {
    bytes: 256 * 1024,
    whole: Duration::from_secs(10),
    silence: Duration::from_secs(3),
};
/// The memory for deliveries: of one address four of the longest at once, and of 32 such addresses.
/// A step is so small that one address needs all connections that it may have to fill its part with
/// single bytes.
pub(super) const DELIVERIES: RoomSize = RoomSize {
    all_bytes: 64 * 1024 * 1024,
    part_bytes: 2 * 1024 * 1024,
    step_bytes: 4096,
    wait: Duration::from_secs(5),
};
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
    let from = source(&parts.extensions);
    let read = state.deliveries.read(from, &parts.headers, body, &LIMITS);
    let read = read.await;
    let (body, held) = read.map_err(|why| match why {
        BodyError::NoRoom => TaggedFailure::TooFast(AGAIN_SECONDS),
        BodyError::Slow => TaggedFailure::Slow,
        BodyError::TooLarge => TaggedFailure::TooLarge,
    })?;
    let webhook = Arc::clone(webhook);
    let (sender, receiver) = tokio::sync::oneshot::channel();
    state.drain.spawn(async move {
        let taken = webhook.receive(&signed, &body).await;
        drop((body, held));
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
    use futures_util::StreamExt as _;
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
    use crate::web::Connection;

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

    /// Lets others run until this is so, for a while in which the clock stands still.
    async fn until(is_so: impl Fn() -> bool) -> bool {
        for _ in 0..10_000 {
            if is_so() {
                return true;
            }
            tokio::task::yield_now().await;
        }
        false
    }

    /// A delivery from an address, with this body.
    fn request_with(field: &str, peer: &str, body: Body) -> Request {
        let request = Request::post("/api/webhooks/stripe").header(SIGNATURE, field);
        let from = Connection {
            peer: peer.parse().unwrap(),
            tls: true,
            listener: "127.0.0.1:1".parse().unwrap(),
        };
        request.extension(from).body(body).unwrap()
    }

    /// Starts a body of so many bytes that never ends.
    fn held(bytes: usize) -> Body {
        let first = futures_util::stream::iter([Ok::<_, std::io::Error>(vec![b'x'; bytes])]);
        Body::from_stream(first.chain(futures_util::stream::pending()))
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_sends_nothing_keeps_nobody_out() {
        let (state, polled) = (state().await, Arc::default());
        let start = |request| tokio::spawn(stripe(State(state.clone()), request));
        let silent: Vec<_> = (0..500)
            .map(|_| start(request(&field(0), &polled)))
            .collect();
        let here = until(|| polled.load(Ordering::SeqCst) >= 500).await;
        assert!(here, "all are waited for at once");
        // It is unsigned, and was read whole: nobody else stood in its way.
        let one_more = request_with(&field(0), "10.0.0.1:1", Body::from("{}"));
        let answer = stripe(State(state.clone()), one_more).await;
        assert!(matches!(answer, Err(TaggedFailure::BadRequest(_))));
        assert_eq!(state.deliveries.taken(), 0);
        // They end by themselves.
        for one in silent {
            assert!(matches!(one.await.unwrap(), Err(TaggedFailure::Slow)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_address_holds_is_bounded_and_its_own() {
        let state = state().await;
        let start = |request| tokio::spawn(stripe(State(state.clone()), request));
        let long = || held(LIMITS.bytes - 1);
        let first: Vec<_> = (0..4)
            .map(|_| start(request_with(&field(0), "10.0.0.1:1", long())))
            .collect();
        let part = DELIVERIES.part_bytes;
        assert!(until(|| state.deliveries.taken() >= part).await);
        let fifth = request_with(&field(0), "10.0.0.1:2", Body::from("{}"));
        // It waits for the others, which end before its own time is up.
        let fifth = start(fifth);
        let other = request_with(&field(0), "10.0.0.2:1", Body::from("{}"));
        let answer = stripe(State(state.clone()), other).await;
        assert!(matches!(answer, Err(TaggedFailure::BadRequest(_))));
        assert!(!fifth.is_finished());
        assert_eq!(state.deliveries.taken(), part);
        let ended = fifth.await.unwrap();
        assert!(
            matches!(ended, Err(TaggedFailure::BadRequest(_))),
            "{ended:?}"
        );
        for one in first {
            assert!(matches!(one.await.unwrap(), Err(TaggedFailure::Slow)));
        }
        assert_eq!(state.deliveries.taken(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn where_everybody_comes_from_one_address_none_has_a_part() {
        let state = state().await.with_danger_plaintext(true);
        let start = |request| tokio::spawn(stripe(State(state.clone()), request));
        let long = || held(LIMITS.bytes - 1);
        let first: Vec<_> = (0..8)
            .map(|_| start(request_with(&field(0), "10.0.0.1:1", long())))
            .collect();
        let parts = 2 * DELIVERIES.part_bytes;
        assert!(until(|| state.deliveries.taken() >= parts).await);
        let one_more = request_with(&field(0), "10.0.0.1:2", Body::from("{}"));
        let answer = stripe(State(state.clone()), one_more).await;
        assert!(matches!(answer, Err(TaggedFailure::BadRequest(_))));
        assert_eq!(state.deliveries.taken(), parts, "it waited for nobody");
        for one in first {
            assert!(matches!(one.await.unwrap(), Err(TaggedFailure::Slow)));
        }
    }
}
