//! What a session looks like to requests: the whole, and the part that one host may see.
//!
//! A view never changes; a patch makes a new one. The part for one host holds the grant and only
//! those secrets that may go there, so that a token of another host or session cannot be opened by
//! any mistake further up. Called by the proxy through the live session.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;

use crate::host::HostPort;
use crate::policy::{
    AddressRules, Denial, EgressPolicy, Grant, PassthroughHosts, Scheme, SecretScope,
    TokenEndpoint, leads_upwards,
};
use crate::sealed_token::{Place, Places, SealedToken, TokenId};
use crate::secret::Secret;
use crate::swap::{Lookup, Opening, Scrubber};

/// How many searches a view keeps: as many as there are different sets of secrets among the hosts
/// that are reached, which is few.
const SCRUBBERS_LIMIT: usize = 64;

/// One secret of a session with its token.
#[derive(Clone, Debug)]
pub(super) struct Sealed {
    pub(super) name: Arc<str>,
    pub(super) token: SealedToken,
    pub(super) secret: Secret,
    pub(super) scope: SecretScope,
    pub(super) places: Arc<Places>,
    /// The endpoint that gave it, for a captured token.
    pub(super) source: Option<Arc<TokenEndpoint>>,
}

impl Sealed {
    /// Tells whether a host knows the value, and may say it again.
    fn is_known_to(&self, target: &HostPort) -> bool {
        let gave = |endpoint: &Arc<TokenEndpoint>| endpoint.target() == target;
        self.scope.covers(target) || self.source.as_ref().is_some_and(gave)
    }
}

/// A secret that a patch took away or gave another value: its old value may still come back.
#[derive(Clone, Debug)]
pub(super) struct Retired {
    pub(super) sealed: Sealed,
    pub(super) until: Instant,
}

/// The searches for values in answers: one for each set of secrets that a host may receive, by their
/// places in the view.
#[derive(Debug, Default)]
pub(super) struct Scrubbers(Mutex<Searches>);

type Searches = HashMap<Box<[usize]>, Option<Arc<Scrubber>>>;

impl Scrubbers {
    fn find(
        &self,
        set: Box<[usize]>,
        make: impl FnOnce(&[usize]) -> Option<Scrubber>,
    ) -> Option<Arc<Scrubber>> {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if made.len() >= SCRUBBERS_LIMIT {
            made.clear();
        }
        let entry = made.entry(set);
        let scrubber = entry.or_insert_with_key(|set| make(set).map(Arc::new));
        scrubber.clone()
    }
}

/// A session as it stands: immutable, replaced as a whole by a patch.
#[derive(Clone, Debug)]
pub struct SessionView {
    pub(super) version: u64,
    /// Random, since two nodes may each have made a change of this number.
    pub(super) change: u64,
    pub(super) sealed: Vec<Sealed>,
    /// The tokens that were captured, the oldest first; never two of one name.
    pub(super) captured: Vec<Sealed>,
    /// Where tokens are captured.
    pub(super) endpoints: Arc<[Arc<TokenEndpoint>]>,
    pub(super) egress: EgressPolicy,
    pub(super) passthrough: PassthroughHosts,
    pub(super) allow_plaintext: bool,
    /// Answers are scrubbed.
    pub(super) scrub: bool,
    pub(super) retired: Vec<Retired>,
    pub(super) scrubbers: Arc<Scrubbers>,
}

impl SessionView {
    /// Names the change that made this: how many there were, and which one it is.
    pub(super) fn stamp(&self) -> (u64, u64) {
        (self.version, self.change)
    }

    /// Decides about a target.
    ///
    /// # Errors
    /// The reason why it may not be reached.
    pub fn decide(&self, target: &HostPort, rules: &AddressRules) -> Result<Grant, Denial> {
        self.egress.decide(target, rules)
    }

    /// Grants a tunnel to a target that is passed through unread; nothing where it is not one of
    /// these, or may not be reached.
    pub fn splice(&self, target: &HostPort, rules: &AddressRules) -> Option<Grant> {
        if !self.passthrough.cover(target) {
            return None;
        }
        self.decide(target, rules).ok()
    }

    /// Makes the part of the view that one host may see.
    ///
    /// # Errors
    /// The reason why the host may not be reached.
    pub fn host_view(
        &self,
        target: &HostPort,
        scheme: Scheme,
        rules: &AddressRules,
    ) -> Result<HostView, Denial> {
        let grant = self.decide(target, rules)?;
        let (grant, plaintext) = match scheme {
            Scheme::Https => (grant, false),
            Scheme::Http => (grant.cleartext(), true),
        };
        let withheld = plaintext && !self.allow_plaintext;
        let all = self.sealed.iter().chain(&self.captured);
        let here = all.filter(|sealed| !withheld && sealed.scope.covers(target));
        let endpoints = self.endpoints.iter();
        let endpoints = endpoints.filter(|it| !plaintext && it.target() == target);
        let tokens: HashMap<_, _> = here
            .map(|sealed| (sealed.token.id(), Entry::new(sealed)))
            .collect();
        Ok(HostView {
            version: self.version,
            grant,
            swaps_bodies: tokens.values().any(Entry::is_for_bodies),
            tokens,
            endpoints: endpoints.map(Arc::clone).collect(),
            scrubber: self.scrubber(target, Instant::now()),
        })
    }

    /// Finds what is searched for in answers of a host that may have a secret, in the clear or not:
    /// what it got over TLS it can say without.
    pub(super) fn scrubber(&self, target: &HostPort, now: Instant) -> Option<Arc<Scrubber>> {
        if !self.scrub {
            return None;
        }
        let all = || {
            let now_sealed = self.sealed.iter().chain(&self.captured);
            let now_sealed = now_sealed.map(|sealed| (sealed, None));
            let retired = self.retired.iter();
            now_sealed.chain(retired.map(|it| (&it.sealed, Some(it.until))))
        };
        let here = all().enumerate().filter(|(_, (sealed, until))| {
            sealed.is_known_to(target) && until.is_none_or(|until| until > now)
        });
        let set: Box<[usize]> = here.map(|(index, _)| index).collect();
        if set.is_empty() {
            return None;
        }
        self.scrubbers.find(set, |set| {
            let all = all().enumerate();
            let wanted = all.filter(|(index, _)| set.contains(index));
            Scrubber::new(wanted.map(|(_, (sealed, _))| {
                let token = Bytes::from(sealed.token.to_string());
                (sealed.secret.clone(), token, Arc::clone(&sealed.name))
            }))
        })
    }
}

/// A secret that may go to the host of a view.
#[derive(Debug)]
struct Entry {
    prefix: Box<[u8]>,
    name: Arc<str>,
    secret: Secret,
    places: Arc<Places>,
}

impl Entry {
    fn new(sealed: &Sealed) -> Self {
        Self {
            prefix: sealed.token.prefix().into(),
            name: Arc::clone(&sealed.name),
            secret: sealed.secret.clone(),
            places: Arc::clone(&sealed.places),
        }
    }

    /// Tells whether the secret may stand in some body.
    fn is_for_bodies(&self) -> bool {
        self.places.body || self.places.body_of.is_some()
    }
}

/// What one host may see of a session: the grant, and the secrets that may go there.
#[derive(Debug)]
pub struct HostView {
    version: u64,
    grant: Grant,
    tokens: HashMap<TokenId, Entry>,
    swaps_bodies: bool,
    endpoints: Box<[Arc<TokenEndpoint>]>,
    scrubber: Option<Arc<Scrubber>>,
}

impl HostView {
    /// Returns the version of the session that this was made from.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Returns the search for the values that must not come back from the host; nothing where there
    /// are none, or the session does not want it.
    pub fn scrubber(&self) -> Option<&Arc<Scrubber>> {
        self.scrubber.as_ref()
    }

    /// Returns what may be opened in the bodies of requests for a path; nothing if no secret may
    /// stand in one.
    pub fn body_of(self: &Arc<Self>, path: &[u8]) -> Option<BodyView> {
        if !self.swaps_bodies {
            return None;
        }
        let entries = self.tokens.values();
        let mut prefixes: Vec<Box<[u8]>> = entries
            .filter(|entry| entry.places.allow_body_of(path))
            .map(|entry| entry.prefix.clone())
            .collect();
        if prefixes.is_empty() {
            return None;
        }
        prefixes.retain(|prefix| !prefix.is_empty());
        prefixes.sort_unstable();
        prefixes.dedup();
        Some(BodyView {
            host: Arc::clone(self),
            path: path.into(),
            prefixes,
        })
    }

    /// Finds the token endpoint that may answer a request for this path.
    pub fn endpoint(&self, path: &[u8]) -> Option<&Arc<TokenEndpoint>> {
        let exact = self.endpoints.iter().find(|it| it.is_at(path));
        exact.or_else(|| self.endpoints.iter().find(|it| it.answers_at(path)))
    }

    /// Tells whether a path may lead to an endpoint of the host for some readers only.
    pub fn is_ambiguous(&self, path: &[u8]) -> bool {
        // A fragment is none of a target (RFC 9112 §3.2), and ends the path for some.
        !self.endpoints.is_empty() && (leads_upwards(path) || path.contains(&b'#'))
    }

    /// Returns the grant to reach the host.
    pub fn grant(&self) -> &Grant {
        &self.grant
    }
}

impl HostView {
    fn opening<'a>(
        &'a self,
        (id, before): (TokenId, &[u8]),
        allowed: impl FnOnce(&Places) -> bool,
    ) -> Option<Opening<'a>> {
        let entry = self.tokens.get(&id)?;
        (before.ends_with(&entry.prefix) && allowed(&entry.places)).then_some(Opening {
            prefix_length: entry.prefix.len(),
            secret: &entry.secret,
            name: &entry.name,
        })
    }
}

impl Lookup for HostView {
    fn open<'a>(&'a self, id: TokenId, before: &[u8], place: Place<'_>) -> Option<Opening<'a>> {
        self.opening((id, before), |places| places.allow(place))
    }
}

/// What the body of one request may see of a session: also the secrets that may stand in the bodies
/// of requests for its path alone.
#[derive(Debug)]
pub struct BodyView {
    host: Arc<HostView>,
    path: Box<[u8]>,
    /// Those of the tokens that may stand there, each once.
    prefixes: Vec<Box<[u8]>>,
}

impl Lookup for BodyView {
    fn open<'a>(&'a self, id: TokenId, before: &[u8], place: Place<'_>) -> Option<Opening<'a>> {
        self.host.opening((id, before), |places| match place {
            Place::Body => places.allow_body_of(&self.path),
            other => places.allow(other),
        })
    }

    fn body_prefixes(&self) -> &[Box<[u8]>] {
        &self.prefixes
    }
}
