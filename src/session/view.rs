//! What a session looks like to requests: the whole, and the part that one host may see.
//!
//! A view never changes; a patch makes a new one. The part for one host holds the grant and only
//! those secrets that may go there, so that a token of another host or session cannot be opened by
//! any mistake further up. Called by the proxy through the live session.

use std::collections::HashMap;
use std::sync::Arc;

use crate::host::HostPort;
use crate::policy::{
    AddressRules, Denial, EgressPolicy, Grant, PassthroughHosts, Scheme, SecretScope,
};
use crate::sealed_token::{Place, Places, SealedToken, TokenId};
use crate::secret::Secret;
use crate::swap::{Lookup, Opening};

/// One secret of a session with its token.
#[derive(Clone, Debug)]
pub(super) struct Sealed {
    pub(super) name: Arc<str>,
    pub(super) token: SealedToken,
    pub(super) secret: Secret,
    pub(super) scope: SecretScope,
    pub(super) places: Arc<Places>,
}

/// A session as it stands: immutable, replaced as a whole by a patch.
#[derive(Clone, Debug)]
pub struct SessionView {
    pub(super) version: u64,
    pub(super) sealed: Vec<Sealed>,
    pub(super) egress: EgressPolicy,
    pub(super) passthrough: PassthroughHosts,
    pub(super) allow_plaintext: bool,
}

impl SessionView {
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
        let here = self
            .sealed
            .iter()
            .filter(|sealed| !withheld && sealed.scope.covers(target));
        let tokens = here
            .map(|sealed| (sealed.token.id(), Entry::new(sealed)))
            .collect();
        Ok(HostView {
            version: self.version,
            grant,
            tokens,
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
}

/// What one host may see of a session: the grant, and the secrets that may go there.
#[derive(Debug)]
pub struct HostView {
    version: u64,
    grant: Grant,
    tokens: HashMap<TokenId, Entry>,
}

impl HostView {
    /// Returns the version of the session that this was made from.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Returns the grant to reach the host.
    pub fn grant(&self) -> &Grant {
        &self.grant
    }
}

impl Lookup for HostView {
    fn open<'a>(&'a self, id: TokenId, before: &[u8], place: Place<'_>) -> Option<Opening<'a>> {
        let entry = self.tokens.get(&id)?;
        (before.ends_with(&entry.prefix) && entry.places.allow(place)).then_some(Opening {
            prefix_length: entry.prefix.len(),
            secret: &entry.secret,
            name: &entry.name,
        })
    }
}
