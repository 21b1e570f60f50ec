//! Who calls the management API: an API key becomes a tenant.
//!
//! A [`Caller`] is made here only, so a handler that takes one cannot be reached without a key.
//! No key configured never means allow; keys are kept as fingerprints and compared in constant
//! time. Called by every handler of the management API.

use std::fmt;
use std::sync::Arc;

use axum::extract::{FromRef, FromRequestParts};
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderMap, HeaderValue};

use super::failure::Failure;
use super::{API_KEY, Connection, carries_credential};
use crate::id::TenantId;
use crate::secret::Fingerprint;
use crate::serve::{Newcomer, Throttle};

/// The API keys of all tenants, and who has failed to show one.
pub struct ApiKeys {
    keys: Vec<(TenantId, Fingerprint)>,
    throttle: Option<Arc<Throttle>>,
}

impl ApiKeys {
    /// Takes the keys as fingerprints. A tenant may have several; with none, every call is refused.
    pub fn new(keys: Vec<(TenantId, Fingerprint)>) -> Self {
        Self {
            keys,
            throttle: None,
        }
    }

    /// Holds back addresses that show wrong keys.
    #[must_use]
    pub fn with_throttle(mut self, throttle: Arc<Throttle>) -> Self {
        self.throttle = Some(throttle);
        self
    }

    /// Says no to a call. One without a key is no attempt.
    fn refuse(&self, parts: &Parts) -> Failure {
        let from = parts.extensions.get::<Connection>();
        let counted = from.filter(|_| carries_credential(&parts.headers));
        let held = match (&self.throttle, counted) {
            (Some(throttle), Some(from)) => throttle.failed(from.peer.ip()),
            _ => Ok(()),
        };
        held.map_or_else(Failure::TooManyAttempts, |()| Failure::Unauthenticated)
    }

    /// Finds whose key this is. Every kept key is looked at, wherever the match stands.
    fn find(&self, key: &[u8]) -> Option<&TenantId> {
        if key.is_empty() {
            return None;
        }
        self.keys.iter().fold(None, |found, (tenant, kept)| {
            let matches = kept.matches(key);
            if matches { Some(tenant) } else { found }
        })
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKeys({})", self.keys.len())
    }
}

/// The proof that a call came with a tenant's API key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    tenant: TenantId,
}

impl Caller {
    /// Returns the tenant.
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    fn check(headers: &HeaderMap, keys: &ApiKeys) -> Result<Self, Failure> {
        let bearer = headers.get_all(AUTHORIZATION).iter().map(bearer);
        let plain = headers
            .get_all(API_KEY)
            .iter()
            .map(|value| Some(value.as_bytes()));
        let mut presented: Option<&[u8]> = None;
        for key in bearer.chain(plain) {
            // Another scheme, or a second key that differs: which one counts is anybody's guess.
            let key = key
                .map(<[u8]>::trim_ascii)
                .ok_or(Failure::Unauthenticated)?;
            if presented.is_some_and(|before| before != key) {
                return Err(Failure::Unauthenticated);
            }
            presented = Some(key);
        }
        let tenant = presented
            .and_then(|key| keys.find(key))
            .ok_or(Failure::Unauthenticated)?;
        Ok(Self {
            tenant: tenant.clone(),
        })
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
        let Ok(caller) = Self::check(&parts.headers, &keys) else {
            return Err(keys.refuse(parts));
        };
        if let Some(newcomer) = parts.extensions.get::<Newcomer>() {
            newcomer.known();
        }
        Ok(caller)
    }
}

/// Returns the key after `Bearer` and a space, in any case (RFC 9110 §11.1, RFC 6750 §2.1).
fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, rest) = value.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> ApiKeys {
        let key = |tenant, key: &[u8]| (TenantId::new(tenant), Fingerprint::of(key));
        ApiKeys::new(vec![
            key("one", b"key-1"),
            key("one", b"key-1b"),
            key("two", b"key-2"),
        ])
    }

    type Fields<'a> = &'a [(&'static str, &'a str)];

    fn tenant(fields: Fields<'_>, keys: &ApiKeys) -> Option<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        match Caller::check(&headers, keys) {
            Ok(caller) => Some(caller.tenant().as_str().to_owned()),
            Err(Failure::Unauthenticated) => None,
            Err(other) => panic!("{other}"),
        }
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
            assert_eq!(tenant(fields, &keys()).as_deref(), expected, "{fields:?}");
        }
    }

    #[test]
    fn no_key_configured_allows_nobody() {
        let none = ApiKeys::new(Vec::new());
        for fields in [&[][..], &[("x-api-key", "")], &[("x-api-key", "key-1")]] {
            assert_eq!(tenant(fields, &none), None, "{fields:?}");
        }
        let empty = ApiKeys::new(vec![(TenantId::new("one"), Fingerprint::of(b""))]);
        assert_eq!(tenant(&[("x-api-key", "")], &empty), None);
    }
}
