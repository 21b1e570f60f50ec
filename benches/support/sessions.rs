//! Sessions of one tenant over a store, as the benches of sessions need them.

use std::sync::Arc;

use oshu_vault::audit::Sink;
use oshu_vault::id::TenantId;
use oshu_vault::policy::{AddressRules, Catalogue, known_token_endpoints};
use oshu_vault::seal::Keyring;
use oshu_vault::session::{Options, Sessions};
use oshu_vault::store::Store;
use oshu_vault::tenant::{Limits, Tenants};

/// The tenant whose sessions they are.
pub(crate) const TENANT: &str = "bench";

pub(crate) fn sessions(store: Arc<dyn Store>, keyring: Keyring) -> Sessions {
    let options = Options {
        catalogue: Arc::new(Catalogue::builtin()),
        token_endpoints: known_token_endpoints(),
        unscoped_secrets: false,
        any_port: false,
    };
    let rules = Arc::new(AddressRules::new(Vec::new(), false));
    let sessions = Sessions::new(store, keyring, options, rules, Sink::discard());
    let tenants = Tenants::new(Arc::clone(sessions.records()), Limits::default(), 0);
    sessions.with_tenants(Arc::new(tenants.with(&TenantId::new(TENANT))))
}
