//! Captured tokens: what a token endpoint gave, kept in the session in the workload's place.
//!
//! Which endpoints a session watches, and where the tokens of each may go, is decided here: access
//! and id tokens in `authorization` of the issuer's hosts, a refresh token in the body of requests
//! to its own endpoint and nowhere else. A sealed token has the form of the real one, as far as
//! programs look at it, and none of its content but the time at which it expires. Called by the
//! live table and by the check of forms.

use std::sync::{Arc, LazyLock};
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::Error;
use super::handle::{SessionHandle, Standing};
use super::live::{RETIRED_FOR, RETIRED_LIMIT, Sessions};
use super::record::{Written, millis, random};
use super::spec::{BAD_FIELDS_LIMIT, FieldError, Spec};
use super::view::{Retired, Sealed, SessionView};
use crate::host::HostPattern;
use crate::policy::{SecretScope, TokenEndpoint, TokenKind};
use crate::sealed_token::{Places, Prefix, SealedToken};
use crate::secret::Secret;
use crate::store::Over;
use crate::swap::Token;

/// The most captured tokens of a session.
pub const CAPTURED_LIMIT: usize = 20;
/// How often tokens are kept anew where other nodes change the session at the same time.
const CAPTURE_ATTEMPTS: usize = 4;
/// The most endpoints that a session may name.
pub(super) const ENDPOINTS_LIMIT: usize = 20;
/// The last digits that a sealed token may end with where it stands as the signature of a JWT: with
/// any other, base64url without padding has bits left over, which strict readers refuse.
const SIGNATURE_ENDS: [char; 4] = ['0', '4', '8', 'c'];

/// A token endpoint as asked for. Without hosts its tokens may go to its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureForm {
    /// The URL of the endpoint.
    pub url: String,
    /// The hosts that its tokens may go to.
    pub hosts: Option<Vec<String>>,
}

/// Where access and id tokens may stand.
static HEADERS: LazyLock<Arc<Places>> = LazyLock::new(|| {
    Arc::new(Places {
        headers: vec!["authorization".into()],
        ..Places::default()
    })
});

/// Makes the list of the endpoints that a session watches: those it names, and the known ones. A
/// known one that is named gets the hosts that the session gives it; none can be left out.
///
/// # Errors
/// Every bad field.
pub(super) fn endpoints(
    form: Option<&[CaptureForm]>,
    known: &[Arc<TokenEndpoint>],
) -> Result<Arc<[Arc<TokenEndpoint>]>, Vec<FieldError>> {
    let form = form.unwrap_or_default();
    if form.len() > ENDPOINTS_LIMIT {
        let message = format!("at most {ENDPOINTS_LIMIT} token endpoints");
        return Err(vec![FieldError::new("capture", "too_many", message)]);
    }
    let (mut endpoints, mut errors): (Vec<Arc<TokenEndpoint>>, _) = (Vec::new(), Vec::new());
    for (index, form) in form.iter().enumerate() {
        let field = format!("capture[{index}]");
        match endpoint(&field, form, known) {
            Ok(own) if endpoints.iter().any(|other| other.is_same(&own)) => {
                let message = "the same endpoint stands before it";
                errors.push(FieldError::new(field, "duplicate", message));
            }
            Ok(own) => endpoints.push(Arc::new(own)),
            Err(bad) => errors.extend(bad),
        }
    }
    let unnamed = known
        .iter()
        .filter(|it| !endpoints.iter().any(|own| own.is_same(it)))
        .map(Arc::clone);
    let unnamed: Vec<_> = unnamed.collect();
    endpoints.extend(unnamed);
    if errors.is_empty() {
        Ok(endpoints.into())
    } else {
        Err(errors)
    }
}

fn endpoint(
    field: &str,
    form: &CaptureForm,
    known: &[Arc<TokenEndpoint>],
) -> Result<TokenEndpoint, Vec<FieldError>> {
    let own = TokenEndpoint::parse(&form.url).map_err(|why| {
        vec![FieldError::new(
            format!("{field}.url"),
            "bad_url",
            why.to_string(),
        )]
    })?;
    let known = known.iter().find(|it| it.is_same(&own));
    let own = known.map_or(own, |it| TokenEndpoint::clone(it));
    let Some(hosts) = &form.hosts else {
        return Ok(own);
    };
    if hosts.is_empty() {
        let message = "an empty list gives the tokens no host at all";
        let field = format!("{field}.hosts");
        return Err(vec![FieldError::new(field, "secret_unscoped", message)]);
    }
    own.with_hosts(hosts).map_err(|lines| {
        let lines = lines.into_iter();
        let bad = |line: crate::policy::BadLine| {
            let field = format!("{field}.hosts[{}]", line.index);
            FieldError::new(field, "bad_host", line.error.to_string())
        };
        lines.map(bad).collect()
    })
}

impl Sessions {
    /// Keeps the tokens that an endpoint gave to a session's workload: durable, then live for the
    /// next request, in open tunnels too. Returns the sealed tokens, in the order of the tokens;
    /// those that the endpoint gave before under the same names open nothing any more.
    ///
    /// # Errors
    /// [`Error::NotFound`] where the session is over, or does not watch the endpoint any more;
    /// [`Error::CaptureLimit`], [`Error::Conflict`]: nothing changed. [`Error::Store`]: nothing changed
    /// here, and nobody knows whether the store has it.
    pub async fn capture(
        &self,
        handle: &SessionHandle,
        endpoint: &Arc<TokenEndpoint>,
        given: &[Token],
    ) -> Result<Vec<String>, Error> {
        for _attempt in 1..CAPTURE_ATTEMPTS {
            match self.capture_once(handle, endpoint, given).await {
                Err(Error::Conflict) => {}
                done => return done,
            }
            if let Some(fleet) = self.store.fleet() {
                self.refresh(fleet, &handle.id).await?;
            }
        }
        self.capture_once(handle, endpoint, given).await
    }

    async fn capture_once(
        &self,
        handle: &SessionHandle,
        endpoint: &Arc<TokenEndpoint>,
        given: &[Token],
    ) -> Result<Vec<String>, Error> {
        let _one_at_a_time = handle.changing.lock().await;
        if handle.is_over() {
            return Err(Error::NotFound);
        }
        let before = handle.standing();
        let endpoints = &before.view.endpoints;
        let endpoint = endpoints.iter().find(|it| it.is_same(endpoint));
        let taken = take(&before.view, endpoint.ok_or(Error::NotFound)?, given)?;
        let now = Instant::now();
        let earlier = before.view.retired.iter().filter(|old| old.until > now);
        let mut out_of_use: Vec<Retired> = earlier.cloned().collect();
        // Last, so that no number of captures drives out what an operator rotated.
        out_of_use.extend(retired(taken.gone, now));
        out_of_use.truncate(RETIRED_LIMIT);
        let view = SessionView {
            version: before.view.version + 1,
            change: random(),
            captured: taken.captured,
            retired: out_of_use,
            scrubbers: Arc::default(),
            ..SessionView::clone(&before.view)
        };
        let written = Written {
            form: &before.form,
            view: &view,
            credential: &handle.credential,
            created: handle.created,
            now: self.store.now(),
        };
        let owner = (&handle.tenant, &handle.id);
        let now = millis(self.store.now());
        self.persist(owner, &written, now, Over::Older).await?;
        if handle.is_cut() {
            return Err(Error::NotFound);
        }
        handle.replace(Standing {
            form: before.form.clone(),
            spec: before.spec.clone(),
            view: Arc::new(view),
        });
        Ok(taken.tokens)
    }
}

impl Sealed {
    /// Seals a token. A name says what it is and where it comes from; no name of a secret has a `@`.
    fn captured(endpoint: &Arc<TokenEndpoint>, given: &Token, token: SealedToken) -> Self {
        let own = Self {
            name: name(endpoint, &given.name),
            token,
            secret: given.value.clone(),
            scope: endpoint.scope().clone(),
            places: places(endpoint, given.kind),
            source: None,
        };
        own.scoped(endpoint)
    }

    /// Makes one again of what its name says and of what stood in a row beside it; nothing where
    /// the name is none of a captured token.
    pub(super) fn recaptured(
        own: &str,
        token: SealedToken,
        secret: Secret,
        scope: SecretScope,
    ) -> Option<Self> {
        let (given, url) = own.split_once('@')?;
        let kind = TokenKind::of(given.rsplit('.').next()?)?;
        let endpoint = Arc::new(TokenEndpoint::parse(&format!("https://{url}")).ok()?);
        Some(Self {
            name: name(&endpoint, given),
            token,
            secret,
            scope,
            places: places(&endpoint, kind),
            source: Some(endpoint),
        })
    }

    /// Gives a captured token the scope that its endpoint has now.
    fn scoped(mut self, endpoint: &Arc<TokenEndpoint>) -> Self {
        self.scope = match self.places.body_of {
            Some(_) => endpoint.own_scope().clone(),
            None => endpoint.scope().clone(),
        };
        self.source = Some(Arc::clone(endpoint));
        self
    }
}

fn places(endpoint: &TokenEndpoint, kind: TokenKind) -> Arc<Places> {
    match kind {
        TokenKind::Access | TokenKind::Id => Arc::clone(&HEADERS),
        TokenKind::Refresh => Arc::new(Places {
            body_of: Some(endpoint.path().into()),
            ..Places::default()
        }),
    }
}

fn name(endpoint: &TokenEndpoint, name: &str) -> Arc<str> {
    format!("{name}@{endpoint}").into()
}

/// What a view has captured once an endpoint has given more: the tokens, the sealed ones of those
/// that were given in their order, and what was taken out of use.
pub(super) struct Taken {
    pub(super) captured: Vec<Sealed>,
    pub(super) tokens: Vec<String>,
    pub(super) gone: Vec<Sealed>,
}

/// Puts what an endpoint gave in the place of what it gave before under the same names. A value
/// that is the same keeps its sealed token.
///
/// # Errors
/// [`Error::CaptureLimit`].
pub(super) fn take(
    view: &SessionView,
    endpoint: &Arc<TokenEndpoint>,
    given: &[Token],
) -> Result<Taken, Error> {
    let mut taken = Taken {
        captured: view.captured.clone(),
        tokens: Vec::with_capacity(given.len()),
        gone: Vec::new(),
    };
    for given in given {
        let own = name(endpoint, &given.name);
        let before = taken.captured.iter().position(|it| it.name == own);
        let before = before.map(|index| taken.captured.remove(index));
        let same = before
            .as_ref()
            .filter(|it| it.secret.expose() == given.value.expose());
        let token = match same {
            Some(before) => before.token.clone(),
            None => seal(given.value.expose(), endpoint.prefixes()),
        };
        taken.gone.extend(before.filter(|it| it.token != token));
        taken.tokens.push(token.to_string());
        let sealed = Sealed::captured(endpoint, given, token);
        taken.captured.push(sealed);
    }
    if taken.captured.len() > CAPTURED_LIMIT {
        return Err(Error::CaptureLimit);
    }
    Ok(taken)
}

/// Keeps the captured tokens whose endpoint is still watched, with the scope that it has now.
/// Returns also those that are gone, or were narrowed.
pub(super) fn keep(
    before: &[Sealed],
    endpoints: &[Arc<TokenEndpoint>],
) -> (Vec<Sealed>, Vec<Sealed>) {
    let (mut kept, mut gone) = (Vec::new(), Vec::new());
    for old in before {
        let is_source = |it: &&Arc<TokenEndpoint>| {
            let source = old.source.as_ref();
            source.is_some_and(|source| source.is_same(it))
        };
        let now = endpoints.iter().find(is_source);
        let now = now.map(|endpoint| old.clone().scoped(endpoint));
        if now.as_ref().is_none_or(|now| now.scope != old.scope) {
            gone.push(old.clone());
        }
        kept.extend(now);
    }
    (kept, gone)
}

/// Finds the hosts that a patch begins to pass through and that a captured token may go to. Hosts that
/// were passed through when the token came stand: there it is text, as before.
pub(super) fn unread(captured: &[Sealed], before: &Spec, spec: &Spec) -> Vec<FieldError> {
    let (kept, _gone) = keep(captured, &spec.token_endpoints);
    let begins = |pattern: &HostPattern| !before.passthrough.iter().any(|it| it == pattern);
    let patterns = spec.passthrough.iter().enumerate();
    let errors = patterns
        .filter(|(_, it)| begins(it))
        .filter_map(|(index, it)| {
            let token = kept.iter().find(|token| token.scope.overlaps(it))?;
            let message = format!(
                "the captured {} may go to this host, and nothing is swapped where nothing is read",
                token.name
            );
            let field = format!("passthrough_hosts[{index}]");
            Some(FieldError::new(field, "overlaps_secret", message))
        });
    errors.take(BAD_FIELDS_LIMIT).collect()
}

/// Notes values that are out of use: they may still come back in answers.
pub(super) fn retired(gone: Vec<Sealed>, now: Instant) -> impl Iterator<Item = Retired> {
    gone.into_iter().map(move |sealed| Retired {
        sealed,
        until: now + RETIRED_FOR,
    })
}

/// Makes a sealed token that looks like the real one to programs that check how it begins, or that
/// decode it.
fn seal(value: &[u8], prefixes: &[Prefix]) -> SealedToken {
    if let Some(prefix) = jwt_prefix(value) {
        loop {
            let token = SealedToken::generate(Some(prefix.clone()));
            // One in four.
            if token.to_string().ends_with(SIGNATURE_ENDS) {
                return token;
            }
        }
    }
    let own = prefixes
        .iter()
        .find(|it| value.starts_with(it.as_str().as_bytes()));
    SealedToken::generate(own.cloned())
}

/// Returns header and payload for the sealed token of a JWT (RFC 7519 §3), if the value is one: the
/// name of its algorithm and the time at which it expires, and nothing else of it.
fn jwt_prefix(value: &[u8]) -> Option<Prefix> {
    let mut parts = value.split(|byte| *byte == b'.');
    let (header, payload) = (object(parts.next()?)?, object(parts.next()?)?);
    let signature = parts.next()?;
    if parts.next().is_some() || URL_SAFE_NO_PAD.decode(signature).is_err() {
        return None;
    }
    let plain = |it: &&str| it.len() <= 5 && it.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let algorithm = header.get("alg").and_then(Value::as_str).filter(plain);
    let algorithm = algorithm.unwrap_or("RS256");
    let expires = payload.get("exp").and_then(Value::as_u64);
    let expires = expires.filter(|it| *it < 10_000_000_000);
    let payload = expires.map_or_else(|| json!({}), |expires| json!({ "exp": expires }));
    // Written by hand, for the order that programs expect. 62 characters at most.
    let header = format!("{{\"alg\":\"{algorithm}\",\"typ\":\"JWT\"}}");
    let [header, payload] = [header, payload.to_string()].map(|it| URL_SAFE_NO_PAD.encode(it));
    Prefix::parse(&format!("{header}.{payload}."))
}

/// Reads a part of a JWT that must be an object.
fn object(part: &[u8]) -> Option<serde_json::Map<String, Value>> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sealed_token::{BARE_LENGTH, PREFIX_LIMIT_BYTES};

    fn jwt(header: &str, payload: &str) -> String {
        let [header, payload] = [header, payload].map(|it| URL_SAFE_NO_PAD.encode(it));
        format!("{header}.{payload}.c2lnbmF0dXJl")
    }

    #[test]
    fn a_jwt_is_sealed_as_one_and_says_nothing() {
        let long = "x".repeat(5000);
        for (header, payload, expected) in [
            (
                r#"{"alg":"ES256","kid":"canary"}"#,
                r#"{"sub":"canary","exp":1893456000,"email":"a@b.example"}"#,
                [
                    json!({"alg": "ES256", "typ": "JWT"}),
                    json!({"exp": 1_893_456_000}),
                ],
            ),
            (
                r#"{"alg":"canary","typ":"at+jwt"}"#,
                r#"{"exp":1e300}"#,
                [json!({"alg": "RS256", "typ": "JWT"}), json!({})],
            ),
            (
                "{}",
                &format!("{{\"canary\":\"{long}\",\"exp\":9999999999}}"),
                [
                    json!({"alg": "RS256", "typ": "JWT"}),
                    json!({"exp": 9_999_999_999_u64}),
                ],
            ),
            (
                r#"{"alg":"EdDSA"}"#,
                r#"{"exp":10000000000}"#,
                [json!({"alg": "EdDSA", "typ": "JWT"}), json!({})],
            ),
        ] {
            for _ in 0..50 {
                let token = seal(jwt(header, payload).as_bytes(), &[]).to_string();
                let parts: Vec<&str> = token.split('.').collect();
                assert_eq!(parts.len(), 3, "{token}");
                assert!(token.len() <= PREFIX_LIMIT_BYTES + BARE_LENGTH, "{token}");
                let read = |part: &str| -> Value {
                    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
                };
                assert_eq!([read(parts[0]), read(parts[1])], expected);
                // Strict readers take the signature as well.
                assert_eq!(URL_SAFE_NO_PAD.decode(parts[2]).unwrap().len(), 29);
                assert!(parts[2].starts_with("SEALED_"));
            }
        }
    }

    #[test]
    fn what_is_no_jwt_keeps_a_known_beginning_or_none() {
        let prefixes = ["sk-ant-oat01-", "gho_"].map(|it| Prefix::parse(it).unwrap());
        let header = r#"{"alg":"ES256"}"#;
        for (value, expected) in [
            ("sk-ant-oat01-abc".to_owned(), "sk-ant-oat01-"),
            ("gho_abc".to_owned(), "gho_"),
            ("ghp_abc".to_owned(), ""),
            (String::new(), ""),
            ("a.b.c".to_owned(), ""),
            ("eyJ.eyJ.x".to_owned(), ""),
            (jwt(header, "[]"), ""),
            (jwt("1", "{}"), ""),
            (format!("{}.x", jwt(header, "{}")), ""),
            (format!("{}=", jwt(header, "{}")), ""),
            (jwt(header, "{}").replace('.', "~"), ""),
        ] {
            let token = seal(value.as_bytes(), &prefixes).to_string();
            let prefix = token.split_once("SEALED_").map(|(before, _)| before);
            assert_eq!(prefix, Some(expected), "{value}");
        }
    }
}
