//! Who calls the management API: an API key becomes a tenant, or the operator.
//!
//! A [`Caller`] and an [`Admin`] are made here only, so a handler that takes one cannot be reached
//! without a key. No key configured never means allow; keys are kept as fingerprints. A key counts
//! for as long as it is its tenant's: who waits, for a body or for what is to be told, asks again.
//! Where what is known of keys is too old, nobody is believed. A caller whose tenant asks too fast is
//! told to wait. Called by every handler of the management API.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{FromRef, FromRequest, FromRequestParts, Request};
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderMap, HeaderValue};

use super::failure::Failure;
use super::{API_KEY, Connection, carries_credential};
use crate::secret::Fingerprint;
use crate::serve::{Newcomer, Throttle};
use crate::tenant::{Holder, Tenant, Tenants};

/// The API keys of all tenants, that of the operator, and who has failed to show one.
pub struct ApiKeys {
    tenants: Arc<Tenants>,
    admin: Option<Fingerprint>,
    throttle: Option<Arc<Throttle>>,
    known: Box<Known>,
}

/// Says why what is known of keys cannot be gone by at this moment, if so.
type Known = dyn Fn() -> Result<(), Failure> + Send + Sync;

impl ApiKeys {
    /// Takes the keys that the tenants have at each moment. With none, every call is refused.
    pub fn new(tenants: Arc<Tenants>) -> Self {
        Self {
            tenants,
            admin: None,
            throttle: None,
            known: Box::new(|| Ok(())),
        }
    }

    /// Sets what tells whether the keys of tenants are known well enough: another process may have
    /// revoked one.
    #[must_use]
    pub fn with_known(
        mut self,
        known: impl Fn() -> Result<(), Failure> + Send + Sync + 'static,
    ) -> Self {
        self.known = Box::new(known);
        self
    }

    /// Sets the operator's key. Without one nobody is the operator.
    #[must_use]
    pub fn with_admin(mut self, key: Option<Fingerprint>) -> Self {
        self.admin = key;
        self
    }

    /// Holds back addresses that show wrong keys.
    #[must_use]
    pub fn with_throttle(mut self, throttle: Arc<Throttle>) -> Self {
        self.throttle = Some(throttle);
        self
    }

    /// Says no to a call, in this way unless its address has failed too often. One without a key is
    /// no attempt.
    fn refuse(&self, parts: &Parts, failure: Failure) -> Failure {
        let from = parts.extensions.get::<Connection>();
        let counted = from.filter(|_| carries_credential(&parts.headers));
        let held = match (&self.throttle, counted) {
            (Some(throttle), Some(from)) => throttle.failed(from.peer.ip()),
            _ => Ok(()),
        };
        held.map_or_else(Failure::TooManyAttempts, |()| failure)
    }

    fn is_admin(&self, key: &[u8]) -> bool {
        let kept = self.admin.as_ref().filter(|_| !key.is_empty());
        kept.is_some_and(|kept| kept.matches(key))
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKeys")
            .field("has_admin", &self.admin.is_some())
            .finish_non_exhaustive()
    }
}

/// The proof that a call came with a tenant's API key.
#[derive(Clone, Debug)]
pub struct Caller {
    holder: Holder,
    keys: Arc<ApiKeys>,
}

impl Caller {
    /// Returns the tenant.
    pub fn tenant(&self) -> &Arc<Tenant> {
        self.holder.tenant()
    }

    /// Looks at the key again, after something was waited for.
    ///
    /// # Errors
    /// [`Failure::Unauthenticated`] where it is the tenant's no more, or the tenant not this one.
    pub fn check(&self) -> Result<(), Failure> {
        let stands = self.keys.tenants.stands(&self.holder);
        stands.then_some(()).ok_or(Failure::Unauthenticated)
    }

    /// Waits until [`Self::check`] fails, which is for good.
    pub async fn refused(&self) {
        self.keys.tenants.refused(&self.holder).await;
    }

    fn find(headers: &HeaderMap, keys: &Arc<ApiKeys>) -> Option<Self> {
        let holder = keys.tenants.by_key(presented(headers)?)?;
        let keys = Arc::clone(keys);
        Some(Self { holder, keys })
    }
}

impl<S> FromRequestParts<S> for Caller
where
    S: Send + Sync,
    Arc<ApiKeys>: FromRef<S>,
{
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let keys: Arc<ApiKeys> = Arc::from_ref(state);
        if presented(&parts.headers).is_some() {
            (keys.known)()?;
        }
        let Some(caller) = Self::find(&parts.headers, &keys) else {
            return Err(keys.refuse(parts, Failure::Unauthenticated));
        };
        if let Some(newcomer) = parts.extensions.get::<Newcomer>() {
            newcomer.known();
        }
        let paced = caller.tenant().request(Instant::now());
        paced.map_err(Failure::TenantRate)?;
        Ok(caller)
    }
}

/// A caller with the body of the call. A body may be waited for, and whoever may call when it begins
/// may do so no more when it has come: the key is looked at before and after.
#[derive(Debug)]
pub struct Asked<B>(pub Caller, pub B);

impl<S, B> FromRequest<S> for Asked<B>
where
    S: Send + Sync,
    Arc<ApiKeys>: FromRef<S>,
    B: FromRequest<S, Rejection = Failure>,
{
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let (mut parts, body) = request.into_parts();
        let caller = Caller::from_request_parts(&mut parts, state).await?;
        let body = B::from_request(Request::from_parts(parts, body), state).await;
        caller.check()?;
        Ok(Self(caller, body?))
    }
}

/// The proof that a call came with the operator's key. To everybody else, tenants included, there is
/// nothing where it is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Admin(());

impl<S> FromRequestParts<S> for Admin
where
    S: Send + Sync,
    Arc<ApiKeys>: FromRef<S>,
{
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let keys: Arc<ApiKeys> = Arc::from_ref(state);
        let key = presented(&parts.headers);
        let is_admin = key.is_some_and(|key| keys.is_admin(key));
        if !is_admin {
            if Caller::find(&parts.headers, &keys).is_some() {
                // A right key, in the wrong place, is no attempt.
                return Err(Failure::NotFound);
            }
            return Err(keys.refuse(parts, Failure::NotFound));
        }
        if let Some(newcomer) = parts.extensions.get::<Newcomer>() {
            newcomer.known();
        }
        Ok(Self(()))
    }
}

/// Returns the one key of a call; nothing where there is none, or where which one counts is
/// anybody's guess: another scheme, or a second key that differs.
fn presented(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get_all(AUTHORIZATION).iter().map(bearer);
    let plain = headers
        .get_all(API_KEY)
        .iter()
        .map(|value| Some(value.as_bytes()));
    let mut presented: Option<&[u8]> = None;
    for key in bearer.chain(plain) {
        let key = key.map(<[u8]>::trim_ascii)?;
        if presented.is_some_and(|before| before != key) {
            return None;
        }
        presented = Some(key);
    }
    presented
}

/// Returns the key after `Bearer` and a space, in any case (RFC 9110 §11.1, RFC 6750 §2.1).
fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, rest) = value.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(rest)
}

#[cfg(test)]
mod tests {
    use tokio::sync::RwLock;

    use super::*;
    use crate::id::TenantId;
    use crate::records::Records;
    use crate::seal::Keyring;
    use crate::store::Memory;
    use crate::tenant::Limits;

    fn of(keys: &[(&str, &str)]) -> Arc<ApiKeys> {
        of_all(keys, None)
    }

    fn of_all(keys: &[(&str, &str)], admin: Option<&[u8]>) -> Arc<ApiKeys> {
        let keyring = Arc::new(RwLock::new(Keyring::generate()));
        let records = Arc::new(Records::new(Arc::new(Memory::new()), keyring));
        let none = Tenants::new(records, Limits::default(), 0);
        let tenants = keys.iter().fold(none, |tenants, (tenant, key)| {
            tenants.with_key(&TenantId::new(tenant), Fingerprint::of(key.as_bytes()))
        });
        let keys = ApiKeys::new(Arc::new(tenants));
        Arc::new(keys.with_admin(admin.map(Fingerprint::of)))
    }

    const KEYS: &[(&str, &str)] = &[("one", "key-1"), ("one", "key-1b"), ("two", "key-2")];

    type Fields<'a> = &'a [(&'static str, &'a str)];

    fn tenant(fields: Fields<'_>, keys: &Arc<ApiKeys>) -> Option<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        let caller = Caller::find(&headers, keys);
        caller.map(|caller| caller.tenant().id().to_string())
    }

    #[test]
    fn a_key_makes_a_caller_and_everything_else_does_not() {
        const AUTH: &str = "authorization";
        const KEY: &str = "x-api-key";
        let cases: [(Fields<'_>, Option<&str>); 17] = [
            (&[(AUTH, "Bearer key-1")], Some("one")),
            (&[(AUTH, "bEARER   key-1b ")], Some("one")),
            (&[(AUTH, "Bearer key-2")], Some("two")),
            (&[(KEY, "key-2")], Some("two")),
            (&[(KEY, "key-2"), (AUTH, "Bearer key-2")], Some("two")),
            (&[], None),
            (&[(AUTH, "Bearer key-3")], None),
            (&[(AUTH, "Bearer ")], None),
            (&[(AUTH, "Bearer")], None),
            (&[(AUTH, "key-1")], None),
            (&[(AUTH, "Basic a2V5LTE=")], None),
            (&[(KEY, "")], None),
            (&[(KEY, "key-1"), (AUTH, "Bearer key-2")], None),
            (&[(KEY, "key-1"), (AUTH, "Bearer key-1b")], None),
            (&[(KEY, "key-1"), (AUTH, "Basic eDp5")], None),
            (&[(KEY, "key-1"), (KEY, "key-2")], None),
            (&[(KEY, "key-1, key-1")], None),
        ];
        for (fields, expected) in cases {
            assert_eq!(tenant(fields, &of(KEYS)).as_deref(), expected, "{fields:?}");
        }
    }

    #[test]
    fn no_key_configured_allows_nobody() {
        let none = of(&[]);
        for fields in [&[][..], &[("x-api-key", "")], &[("x-api-key", "key-1")]] {
            assert_eq!(tenant(fields, &none), None, "{fields:?}");
        }
        let empty = of(&[("one", "")]);
        assert_eq!(tenant(&[("x-api-key", "")], &empty), None);
    }

    #[test]
    fn only_the_admin_key_is_the_operator_s() {
        let keys = of_all(KEYS, Some(b"admin-key"));
        for (key, expected) in [
            (&b"admin-key"[..], true),
            (b"admin-ke", false),
            (b"key-1", false),
            (b"", false),
        ] {
            assert_eq!(keys.is_admin(key), expected, "{key:?}");
        }
        assert!(!of(&[]).is_admin(b""));
        let empty = of_all(&[], Some(b""));
        assert!(!empty.is_admin(b""));
        assert_eq!(tenant(&[("x-api-key", "admin-key")], &keys), None);
    }
}
