//! An event of Stripe's: whom it is about, and whether it says that they are paid.
//!
//! Only the few kinds that tell of payment are read; the others are nothing. What stands in an event
//! is believed because it was signed, which is checked elsewhere and before. Called by the webhook.

use serde::Deserialize;

use crate::id::AccountId;

/// The longest id of Stripe's that is taken, in bytes.
const ID_LIMIT_BYTES: usize = 255;

/// Says why a signed text is no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// It is no JSON with the fields that every event has.
    #[error("it is no event")]
    Form,
    /// An id is empty, too long or odd.
    #[error("an id of the event is malformed")]
    Id,
}

/// What an event says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its id, by which a second delivery is known.
    pub id: String,
    /// When it came about, in seconds since 1970: deliveries come in any order.
    pub created: u64,
    /// The account that it names.
    pub account: Option<AccountId>,
    /// Stripe's customer.
    pub customer: Option<String>,
    /// The subscription that it is about; nothing where something was paid for once.
    pub subscription: Option<String>,
    /// Whether that is paid from then on; nothing where it only links the two.
    pub paid: Option<bool>,
    /// Whether it is about an invoice.
    pub is_invoice: bool,
    /// Whether the subscription ended with it, for ever.
    pub is_end: bool,
}

#[derive(Deserialize)]
struct RawEvent {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    created: u64,
    data: RawData,
}

#[derive(Deserialize)]
struct RawData {
    object: serde_json::Value,
}

#[derive(Deserialize)]
struct RawObject {
    id: Option<String>,
    client_reference_id: Option<String>,
    metadata: Option<RawMetadata>,
    customer: Option<RawRef>,
    subscription: Option<RawRef>,
    parent: Option<RawParent>,
    payment_status: Option<String>,
    status: Option<String>,
}

#[derive(Deserialize)]
struct RawMetadata {
    #[serde(rename = "userId")]
    user_id: Option<String>,
}

/// The id of a thing, or the thing whole where the operator asks Stripe to expand it.
#[derive(Deserialize)]
#[serde(untagged)]
enum RawRef {
    Id(String),
    Whole { id: String },
}

impl RawRef {
    fn id(self) -> String {
        match self {
            Self::Id(id) | Self::Whole { id } => id,
        }
    }
}

/// Where versions of Stripe's API since 2025 say what an invoice is for.
#[derive(Deserialize)]
struct RawParent {
    subscription_details: Option<RawDetails>,
}

#[derive(Deserialize)]
struct RawDetails {
    subscription: Option<RawRef>,
}

impl Event {
    /// Reads an event; nothing where it is of a kind that tells of no payment.
    ///
    /// # Errors
    /// See [`EventError`].
    pub fn parse(body: &[u8]) -> Result<Option<Self>, EventError> {
        let raw: RawEvent = serde_json::from_slice(body).map_err(|_unread| EventError::Form)?;
        let kind = match raw.kind.as_str() {
            "checkout.session.completed" => Kind::Checkout,
            "customer.subscription.updated" => Kind::Updated,
            "customer.subscription.deleted" => Kind::Deleted,
            "invoice.paid" => Kind::Invoice(true),
            "invoice.payment_failed" => Kind::Invoice(false),
            _ => return Ok(None),
        };
        let object: RawObject =
            serde_json::from_value(raw.data.object).map_err(|_unread| EventError::Form)?;
        let status = object.status.as_deref();
        let paid = match kind {
            // One that is not paid yet takes nothing from who has paid otherwise.
            Kind::Checkout => (object.payment_status.as_deref() == Some("paid")).then_some(true),
            Kind::Updated => Some(matches!(status, Some("active" | "trialing"))),
            Kind::Deleted => Some(false),
            Kind::Invoice(paid) => Some(paid),
        };
        let by_metadata = object.metadata.and_then(|metadata| metadata.user_id);
        let named = [
            ("client_reference_id", object.client_reference_id),
            ("metadata.userId", by_metadata),
        ];
        let customer = object.customer.map(RawRef::id);
        let subscription = match kind {
            Kind::Updated | Kind::Deleted => object.id,
            Kind::Checkout | Kind::Invoice(_) => {
                let details = object.parent.and_then(|parent| parent.subscription_details);
                let named = details.and_then(|details| details.subscription);
                object.subscription.or(named).map(RawRef::id)
            }
        };
        let others = customer.iter().chain(&subscription);
        if !is_id(&raw.id) || !others.into_iter().all(|id| is_id(id)) {
            return Err(EventError::Id);
        }
        Ok(Some(Self {
            account: account(&raw.id, named),
            id: raw.id,
            created: raw.created,
            customer,
            subscription,
            paid,
            is_invoice: matches!(kind, Kind::Invoice(_)),
            is_end: matches!(kind, Kind::Deleted),
        }))
    }
}

/// Returns the first account that is named. A name that can be no account's, an address of mail for
/// instance, hides none that stands beside it; the operator has to know of it.
fn account(event: &str, named: [(&'static str, Option<String>); 2]) -> Option<AccountId> {
    let mut account = None;
    for (field, name) in named {
        let Some(name) = name else { continue };
        let found = AccountId::parse(&name);
        if found.is_none() {
            tracing::warn!(
                stripe_event = event,
                field,
                "an event of Stripe's names what is no account"
            );
        }
        account = account.or(found);
    }
    account
}

#[derive(Clone, Copy)]
enum Kind {
    Checkout,
    Updated,
    Deleted,
    Invoice(bool),
}

fn is_id(text: &str) -> bool {
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
    plain && !text.is_empty() && text.len() <= ID_LIMIT_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, object: &str) -> Result<Option<Event>, EventError> {
        let text = format!(
            r#"{{"id":"evt_1","object":"event","type":"{kind}","created":7,"livemode":false,"data":{{"object":{object}}}}}"#
        );
        Event::parse(text.as_bytes())
    }

    fn said(kind: &str, object: &str) -> (Option<bool>, Option<String>, Option<String>) {
        let event = event(kind, object).unwrap().unwrap();
        assert_eq!((event.id.as_str(), event.created), ("evt_1", 7));
        let account = event.account.map(|account| account.to_string());
        (event.paid, account, event.customer)
    }

    #[test]
    fn kinds_and_states_say_what_they_say() {
        let (checkout, updated) = (
            "checkout.session.completed",
            "customer.subscription.updated",
        );
        for (kind, object, paid) in [
            (checkout, r#"{"payment_status":"paid"}"#, Some(true)),
            (checkout, r#"{"payment_status":"unpaid"}"#, None),
            (
                checkout,
                r#"{"payment_status":"no_payment_required"}"#,
                None,
            ),
            (checkout, "{}", None),
            (updated, r#"{"status":"active"}"#, Some(true)),
            (updated, r#"{"status":"trialing"}"#, Some(true)),
            (updated, r#"{"status":"past_due"}"#, Some(false)),
            (updated, r#"{"status":"Active"}"#, Some(false)),
            (updated, "{}", Some(false)),
            (
                "customer.subscription.deleted",
                r#"{"status":"active"}"#,
                Some(false),
            ),
            ("invoice.paid", "{}", Some(true)),
            (
                "invoice.payment_failed",
                r#"{"status":"open"}"#,
                Some(false),
            ),
        ] {
            assert_eq!(said(kind, object).0, paid, "{kind} {object}");
        }
        for kind in [
            "customer.created",
            "invoice.created",
            "customer.subscription.updated.x",
            "",
        ] {
            assert_eq!(event(kind, "{}"), Ok(None), "{kind}");
        }
    }

    #[test]
    fn the_account_is_the_first_that_is_named() {
        for (object, account, customer) in [
            (
                r#"{"client_reference_id":"1","metadata":{"userId":"2"},"customer":"cus_1"}"#,
                Some("1"),
                Some("cus_1"),
            ),
            (
                r#"{"client_reference_id":null,"metadata":{"userId":"2"}}"#,
                Some("2"),
                None,
            ),
            (
                r#"{"metadata":{"other":"x"},"customer":{"id":"cus_2","object":"customer"}}"#,
                None,
                Some("cus_2"),
            ),
            (r#"{"metadata":null,"customer":null}"#, None, None),
            (
                r#"{"client_reference_id":"somebody@example.com","metadata":{"userId":"2"}}"#,
                Some("2"),
                None,
            ),
            (
                r#"{"client_reference_id":"1","metadata":{"userId":"somebody@example.com"}}"#,
                Some("1"),
                None,
            ),
            (
                r#"{"client_reference_id":"","metadata":{"userId":"2"},"customer":"cus_1"}"#,
                Some("2"),
                Some("cus_1"),
            ),
            (
                r#"{"client_reference_id":"../1","customer":"cus_1"}"#,
                None,
                Some("cus_1"),
            ),
        ] {
            let (_, found, with) = said("invoice.paid", object);
            assert_eq!(
                (found.as_deref(), with.as_deref()),
                (account, customer),
                "{object}"
            );
        }
    }

    #[test]
    fn the_subscription_is_found_in_every_form() {
        let (updated, deleted) = (
            "customer.subscription.updated",
            "customer.subscription.deleted",
        );
        for (kind, object, expected) in [
            (updated, r#"{"id":"sub_1"}"#, Some("sub_1")),
            (deleted, r#"{"id":"sub_1"}"#, Some("sub_1")),
            (deleted, "{}", None),
            (
                "invoice.paid",
                r#"{"id":"in_1","subscription":"sub_1"}"#,
                Some("sub_1"),
            ),
            (
                "invoice.paid",
                r#"{"id":"in_1","parent":{"type":"x","subscription_details":{"subscription":"sub_1"}}}"#,
                Some("sub_1"),
            ),
            (
                "invoice.payment_failed",
                r#"{"subscription":{"id":"sub_1","object":"subscription"},"parent":null}"#,
                Some("sub_1"),
            ),
            (
                "invoice.paid",
                r#"{"id":"in_1","subscription":null,"parent":{"subscription_details":null}}"#,
                None,
            ),
            (
                "checkout.session.completed",
                r#"{"id":"cs_1","subscription":"sub_1"}"#,
                Some("sub_1"),
            ),
            ("checkout.session.completed", r#"{"id":"cs_1"}"#, None),
        ] {
            let event = event(kind, object).unwrap().unwrap();
            assert_eq!(event.subscription.as_deref(), expected, "{kind} {object}");
            assert_eq!(event.is_invoice, kind.starts_with("invoice."), "{kind}");
            assert_eq!(event.is_end, kind == deleted, "{kind}");
        }
    }

    #[test]
    fn what_is_no_event_is_refused() {
        for text in [
            "",
            "null",
            "[]",
            "{}",
            r#"{"id":"evt_1","type":"invoice.paid","created":-1,"data":{"object":{}}}"#,
        ] {
            assert_eq!(
                Event::parse(text.as_bytes()),
                Err(EventError::Form),
                "{text}"
            );
        }
        for object in [
            "7",
            r#"{"customer":7}"#,
            r#"{"metadata":7}"#,
            r#"{"status":true}"#,
        ] {
            assert_eq!(
                event("invoice.paid", object),
                Err(EventError::Form),
                "{object}"
            );
        }
        for object in [
            r#"{"customer":""}"#,
            r#"{"customer":"a b"}"#,
            r#"{"subscription":"a b"}"#,
        ] {
            assert_eq!(
                event("invoice.paid", object),
                Err(EventError::Id),
                "{object}"
            );
        }
        let nameless = r#"{"id":"","type":"invoice.paid","created":1,"data":{"object":{}}}"#;
        assert_eq!(Event::parse(nameless.as_bytes()), Err(EventError::Id));
    }
}
