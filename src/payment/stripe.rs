//! Stripe's webhook: what was signed with the operator's secret, lately, changes the table.
//!
//! The form and the time of the signature are checked before a byte of the body is read, and the
//! signature, which is over the raw body, before a byte of it is read as JSON. A second delivery, and
//! one that was overtaken, changes nothing. What changed is also forgotten by the cache of the
//! payment check. Called by the face that takes the webhook.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use data_encoding::HEXLOWER;

use super::event::{Event, EventError};
use super::local::{Accounts, Applied};
use super::{Cached, Error};
use crate::secret::Secret;

/// How far the time of a signature may be from ours.
pub const TOLERANCE: Duration = Duration::from_mins(5);
/// The longest signature field that is read, in bytes.
const FIELD_LIMIT_BYTES: usize = 4096;
/// The most signatures of one field that are tried.
const SIGNATURE_LIMIT: usize = 16;

/// How long a signature is, in bytes.
const SIGNATURE_BYTES: usize = 32;

/// Says why a delivery is not Stripe's. Whoever sent it is told none of this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// There is no signature field, or it has not the form `t=…,v1=…`.
    #[error("the signature is missing or malformed")]
    Form,
    /// No secret of ours signed the body.
    #[error("the signature is not ours")]
    Wrong,
    /// It was signed too long ago, or in the future.
    #[error("the signature is not of this time")]
    Time,
}

/// Says why a delivery was not taken.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WebhookError {
    /// It is not Stripe's, or not of now.
    #[error("the delivery is not signed")]
    Signature(#[source] SignatureError),
    /// It is Stripe's and cannot be read.
    #[error("the delivery cannot be read")]
    Event(#[source] EventError),
    /// It could not be made durable: Stripe is to send it again.
    #[error("the delivery could not be kept")]
    Accounts(#[source] Error),
}

/// Takes deliveries.
#[derive(Debug)]
pub struct Webhook {
    signatures: Signatures,
    accounts: Arc<Accounts>,
    cached: Option<Arc<Cached>>,
}

impl Webhook {
    /// Takes the secret of the endpoint, and during a rotation the one before it; and the cache that
    /// is to forget what changed.
    ///
    /// # Errors
    /// [`Error::Setting`] for a secret of no bytes, with which anybody could sign.
    pub fn new(
        current: &Secret,
        previous: Option<&Secret>,
        accounts: Arc<Accounts>,
        cached: Option<Arc<Cached>>,
    ) -> Result<Self, Error> {
        Ok(Self {
            signatures: Signatures::new(current, previous)?,
            accounts,
            cached,
        })
    }

    /// Reads the field `Stripe-Signature`: what is not of the form, or not of now, needs no body.
    ///
    /// # Errors
    /// [`SignatureError::Form`] and [`SignatureError::Time`].
    pub fn announced(
        &self,
        field: Option<&[u8]>,
        now: SystemTime,
    ) -> Result<Signed, SignatureError> {
        Signed::parse(field, now)
    }

    /// Takes a delivery: what was announced, and the body as it came. Nothing is done where the
    /// event tells of no payment.
    ///
    /// # Errors
    /// See [`WebhookError`].
    pub async fn receive(&self, signed: &Signed, body: &[u8]) -> Result<Applied, WebhookError> {
        let checked = self.signatures.check(signed, body);
        checked.map_err(WebhookError::Signature)?;
        let Some(event) = Event::parse(body).map_err(WebhookError::Event)? else {
            return Ok(Applied::Ignored);
        };
        let applied = self.accounts.apply(&event).await;
        let applied = applied.map_err(WebhookError::Accounts)?;
        let changed = match &applied {
            Applied::Changed(account) => [Some(account), None],
            Applied::Moved(to, from) => [Some(to), Some(from)],
            _ => [None, None],
        };
        for account in changed.into_iter().flatten() {
            if let Some(cached) = &self.cached {
                cached.forget(account);
            }
        }
        Ok(applied)
    }
}

/// The secrets of an endpoint.
struct Signatures(Vec<hmac::Key>);

impl std::fmt::Debug for Signatures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signatures(redacted)")
    }
}

impl Signatures {
    fn new(current: &Secret, previous: Option<&Secret>) -> Result<Self, Error> {
        let secrets = [Some(current), previous];
        let secrets = secrets.into_iter().flatten();
        let keys = secrets.map(|secret| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose());
            (!secret.is_empty()).then_some(key)
        });
        let keys: Option<Vec<_>> = keys.collect();
        keys.map(Self).ok_or(Error::Setting("webhook_secret"))
    }

    fn check(&self, signed: &Signed, body: &[u8]) -> Result<(), SignatureError> {
        let mut fits = false;
        for key in &self.0 {
            let mut context = hmac::Context::with_key(key);
            context.update(signed.time.as_bytes());
            context.update(b".");
            context.update(body);
            let ours = context.sign();
            for signature in &signed.given {
                // In time that does not depend on where they differ.
                fits |= aws_lc_rs::constant_time::verify_slices_are_equal(ours.as_ref(), signature)
                    .is_ok();
            }
        }
        fits.then_some(()).ok_or(SignatureError::Wrong)
    }
}

/// What the field `Stripe-Signature` says, of now and in the right form; no proof of anything yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// As it was written, since that is what was signed.
    time: String,
    given: Vec<Vec<u8>>,
}

impl Signed {
    /// Reads `t=…,v1=…,v1=…`. Other schemes are passed over: `v0` is for tests of Stripe's own.
    fn parse(field: Option<&[u8]>, now: SystemTime) -> Result<Self, SignatureError> {
        let field = field.filter(|field| field.len() <= FIELD_LIMIT_BYTES);
        let field = field.and_then(|field| std::str::from_utf8(field).ok());
        let (mut time, mut given) = (None, Vec::new());
        for part in field.ok_or(SignatureError::Form)?.split(',') {
            let (name, value) = part.split_once('=').ok_or(SignatureError::Form)?;
            match name.trim_matches(' ') {
                "t" if time.is_some() => return Err(SignatureError::Form),
                "t" => time = Some(value),
                "v1" if given.len() < SIGNATURE_LIMIT => {
                    let read = HEXLOWER.decode(value.as_bytes()).ok();
                    given.extend(read.filter(|read| read.len() == SIGNATURE_BYTES));
                }
                _ => {}
            }
        }
        let digits =
            |time: &&str| !time.is_empty() && time.bytes().all(|byte| byte.is_ascii_digit());
        let time = time.filter(digits).ok_or(SignatureError::Form)?;
        if given.is_empty() {
            return Err(SignatureError::Form);
        }
        let seconds: u64 = time.parse().map_err(|_long| SignatureError::Time)?;
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if now.abs_diff(seconds) > TOLERANCE.as_secs() {
            return Err(SignatureError::Time);
        }
        let time = time.to_owned();
        Ok(Self { time, given })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::AccountId;
    use crate::payment::{CacheConfig, PaymentCheck, Standing};

    const NOW: u64 = 1_800_000_000;
    const SECRET: &[u8] = b"whsec_canary";

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn secret(bytes: &[u8]) -> Secret {
        Secret::new(bytes.to_vec())
    }

    fn v1(secret: &[u8], time: &str, body: &str) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        HEXLOWER.encode(hmac::sign(&key, format!("{time}.{body}").as_bytes()).as_ref())
    }

    fn check(field: &str, body: &str) -> Result<(), SignatureError> {
        let signatures = Signatures::new(&secret(SECRET), Some(&secret(b"whsec_old"))).unwrap();
        let signed = Signed::parse(Some(field.as_bytes()), at(NOW))?;
        signatures.check(&signed, body.as_bytes())
    }

    #[test]
    fn signatures_are_taken_or_refused() {
        let now = NOW.to_string();
        let good = v1(SECRET, &now, "{}");
        let old = v1(b"whsec_old", &now, "{}");
        let other = v1(b"whsec_other", &now, "{}");
        for field in [
            format!("t={now},v1={good}"),
            format!("t={now},v1={good},v0=abc"),
            format!("t={now}, v1={good}"),
            format!("v1={good},t={now}"),
            format!("t={now},v1={other},v1=zz,v1={good}"),
            format!("t={now},v1={old}"),
        ] {
            assert_eq!(check(&field, "{}"), Ok(()), "{field}");
        }
        let upper = good.to_uppercase();
        for (field, expected) in [
            (format!("t={now},v1={other}"), SignatureError::Wrong),
            (format!("t={now},v0={good}"), SignatureError::Form),
            (format!("t={now},v1={upper}"), SignatureError::Form),
            (format!("t={now},v1="), SignatureError::Form),
            (format!("t={now}"), SignatureError::Form),
            (format!("t=0{now},v1={good}"), SignatureError::Wrong),
            (format!("t={},v1={good}", NOW + 1), SignatureError::Wrong),
            (format!("t={now},t={now},v1={good}"), SignatureError::Form),
            (format!("t=-{now},v1={good}"), SignatureError::Form),
            (format!("t=,v1={good}"), SignatureError::Form),
            (format!("v1={good}"), SignatureError::Form),
            (good.clone(), SignatureError::Form),
            (String::new(), SignatureError::Form),
            (
                format!("t={now},v1={good},{}", "a=b,".repeat(2000)),
                SignatureError::Form,
            ),
        ] {
            assert_eq!(check(&field, "{}"), Err(expected), "{field}");
        }
        let field = format!("t={now},v1={good}");
        assert_eq!(check(&field, "{} "), Err(SignatureError::Wrong));
        let signatures = Signatures::new(&secret(SECRET), None).unwrap();
        assert_eq!(Signed::parse(None, at(NOW)), Err(SignatureError::Form));
        assert_eq!(format!("{signatures:?}"), "Signatures(redacted)");
        let empty = Signatures::new(&secret(SECRET), Some(&secret(b"")));
        assert!(matches!(empty, Err(Error::Setting("webhook_secret"))));
    }

    #[test]
    fn a_signature_is_good_for_five_minutes_either_way() {
        for (time, expected) in [
            (NOW - 300, Ok(())),
            (NOW + 300, Ok(())),
            (NOW - 301, Err(SignatureError::Time)),
            (NOW + 301, Err(SignatureError::Time)),
            (0, Err(SignatureError::Time)),
        ] {
            let time = time.to_string();
            let field = format!("t={time},v1={}", v1(SECRET, &time, "{}"));
            assert_eq!(check(&field, "{}"), expected, "{time}");
        }
        let long = "9".repeat(30);
        let field = format!("t={long},v1={}", v1(SECRET, &long, "{}"));
        assert_eq!(check(&field, "{}"), Err(SignatureError::Time));
    }

    proptest! {
        #[test]
        fn nothing_else_is_a_signature(field in "(t=[0-9]{1,11}|v1=[0-9a-f]{0,64}|\\PC{0,9})(,(t=[0-9]{1,11}|v1=[0-9a-f]{64}|\\PC{0,9})){0,4}") {
            let found = check(&field, "{}");
            prop_assert!(found.is_err());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_delivery_changes_the_next_answer() {
        let accounts = Arc::new(crate::payment::local::empty_for_tests());
        let check = Arc::clone(&accounts) as Arc<dyn PaymentCheck>;
        let cached = Arc::new(Cached::new(check, CacheConfig::default()));
        let webhook = Webhook::new(&secret(SECRET), None, accounts, Some(Arc::clone(&cached)));
        let webhook = webhook.unwrap();
        let account = AccountId::parse("1").unwrap();
        assert_eq!(
            cached.check(&account).await.unwrap(),
            Standing::of(&account, false)
        );
        let deliver = async |body: String| {
            let time = NOW.to_string();
            let field = format!("t={time},v1={}", v1(SECRET, &time, &body));
            let signed = webhook.announced(Some(field.as_bytes()), at(NOW)).unwrap();
            webhook.receive(&signed, body.as_bytes()).await
        };
        let event = |kind: &str, created: u64| {
            format!(
                r#"{{"id":"evt_{created}","type":"{kind}","created":{created},"data":{{"object":{{"client_reference_id":"1","customer":"cus_1"}}}}}}"#
            )
        };
        let applied = deliver(event("invoice.paid", 5)).await.unwrap();
        assert_eq!(applied, Applied::Changed(account.clone()));
        assert_eq!(
            cached.check(&account).await.unwrap(),
            Standing::of(&account, true)
        );
        let applied = deliver(event("invoice.payment_failed", 4)).await.unwrap();
        assert_eq!(applied, Applied::Older);
        assert_eq!(
            deliver(event("invoice.paid", 5)).await.unwrap(),
            Applied::Repeated
        );
        assert_eq!(
            deliver(event("customer.created", 6)).await.unwrap(),
            Applied::Ignored
        );
        assert_eq!(
            cached.check(&account).await.unwrap(),
            Standing::of(&account, true)
        );
        deliver(event("invoice.payment_failed", 6)).await.unwrap();
        assert_eq!(
            cached.check(&account).await.unwrap(),
            Standing::of(&account, false)
        );
        let error = deliver("{".to_owned()).await.unwrap_err();
        assert!(matches!(error, WebhookError::Event(EventError::Form)));
        // A customer who goes to another account: both are asked for anew.
        deliver(event("invoice.paid", 7)).await.unwrap();
        let other = AccountId::parse("2").unwrap();
        for (account, paid) in [(&account, true), (&other, false)] {
            let found = cached.check(account).await.unwrap();
            assert_eq!(found, Standing::of(account, paid));
        }
        let link = event("checkout.session.completed", 8).replace(":\"1\"", ":\"2\"");
        let applied = deliver(link).await.unwrap();
        assert_eq!(applied, Applied::Moved(other.clone(), account.clone()));
        for (account, paid) in [(&account, false), (&other, true)] {
            let found = cached.check(account).await.unwrap();
            assert_eq!(found, Standing::of(account, paid));
        }
    }
}
