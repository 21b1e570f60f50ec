//! The page of metrics: what every part has counted, gathered when it is asked for.
//!
//! Labels are words of ours, and names of secrets up to a bound: no id, no host, no value. Called by
//! the admin listener's `/metrics`.

use std::sync::Arc;

use crate::api::MetricsPage;
use crate::audit::Tally;
use crate::payment::Ledger;
use crate::policy::Catalogue;
use crate::proxy::Proxy;
use crate::serve::Room;
use crate::telemetry::Page;

/// Everything that counts.
struct Metrics {
    proxy: Arc<Proxy>,
    room: Room,
    ledger: Arc<Ledger>,
}

/// Makes what writes the page.
pub(super) fn page(proxy: &Arc<Proxy>, room: &Room, ledger: &Arc<Ledger>) -> MetricsPage {
    proxy.audit.classify_by(&Arc::new(Catalogue::builtin()));
    let metrics = Metrics {
        proxy: Arc::clone(proxy),
        room: room.clone(),
        ledger: Arc::clone(ledger),
    };
    Arc::new(move || metrics.page())
}

impl Metrics {
    fn page(&self) -> String {
        let mut page = Page::default();
        records(&mut page, &self.proxy.audit.tally());
        self.sessions(&mut page);
        self.upstream(&mut page);
        self.process(&mut page);
        self.tokens(&mut page);
        page.into_text()
    }

    fn sessions(&self, page: &mut Page) {
        let totals = self.proxy.sessions.totals();
        page.gauge(
            "oshu_vault_sessions",
            "Sessions in memory: the live ones, and those whose row is still to be deleted.",
            self.proxy.sessions.len(),
        );
        page.gauge(
            "oshu_vault_tunnels_open",
            "Tunnels that are open.",
            totals.tunnels,
        );
        page.gauge(
            "oshu_vault_upstream_idle",
            "Upstream connections that wait for another use, of all sessions.",
            totals.idle,
        );
        page.histogram(
            "oshu_vault_store_change_seconds",
            "How long changes of sessions took until they were durable, or failed.",
            self.proxy.sessions.store_times(),
        );
        page.gauge(
            "oshu_vault_store_up",
            "Whether the store takes changes, as far as is known.",
            usize::from(self.proxy.sessions.store_health().is_ok()),
        );
    }

    fn upstream(&self, page: &mut Page) {
        let upstream = self.proxy.upstream.counts();
        let taken = [
            ([("from", "dial")], upstream.dialled.value()),
            ([("from", "pool")], upstream.reused.value()),
        ];
        page.counters(
            "oshu_vault_upstream_connections_total",
            "Upstream connections that were taken, by where they came from.",
            taken,
        );
        page.histogram(
            "oshu_vault_upstream_handshake_seconds",
            "TLS handshakes with upstreams that succeeded.",
            &upstream.handshakes,
        );
        page.histogram(
            "oshu_vault_workload_handshake_seconds",
            "TLS handshakes with workloads inside of tunnels that succeeded.",
            &self.proxy.handshakes,
        );
    }

    fn tokens(&self, page: &mut Page) {
        let counts = self.ledger.counts();
        let kinds = [
            ([("kind", "input")], counts.input.value()),
            ([("kind", "output")], counts.output.value()),
            ([("kind", "cache_read")], counts.cache_read.value()),
            ([("kind", "cache_write")], counts.cache_write.value()),
            ([("kind", "unsettled")], counts.unsettled.value()),
        ];
        page.counters(
            "oshu_vault_model_tokens_total",
            "Tokens of model calls, of all accounts together, by kind.",
            kinds,
        );
    }

    fn process(&self, page: &mut Page) {
        page.counter(
            "oshu_vault_leaves_minted_total",
            "Leaves that were minted.",
            self.proxy.authority.minted(),
        );
        page.histogram(
            "oshu_vault_leaf_mint_seconds",
            "How long minting a leaf took.",
            self.proxy.authority.mint_times(),
        );
        page.gauge(
            "oshu_vault_leaves",
            "Hosts whose leaves are kept.",
            self.proxy.authority.cached(),
        );
        page.gauge(
            "oshu_vault_connections",
            "Connections open on the shared listeners.",
            self.room.taken(),
        );
        let audit = self.proxy.audit.stats();
        page.gauge(
            "oshu_vault_audit_waiting",
            "Audit records that wait for the writer.",
            audit.waiting,
        );
        page.gauge(
            "oshu_vault_audit_room",
            "Audit records that may wait.",
            audit.limit,
        );
        page.counter(
            "oshu_vault_audit_lost_total",
            "Audit records that found no room.",
            audit.lost,
        );
        page.gauge(
            "oshu_vault_audit_readers",
            "Readers of the records of sessions.",
            audit.readers,
        );
        page.gauge(
            "oshu_vault_draining",
            "Whether the process is about to end: it drains, or another has taken over.",
            usize::from(self.proxy.drain.is_leaving()),
        );
        page.gauge(
            "oshu_vault_predecessors",
            "Processes that this one took over from, and that serve what they have open yet.",
            self.proxy.sessions.followers(),
        );
    }
}

/// Writes what the audit records say.
fn records(page: &mut Page, tally: &Tally) {
    let by = |counts: &std::collections::BTreeMap<&'static str, u64>, label: &'static str| {
        let counts = counts
            .iter()
            .map(|(word, count)| ([(label, *word)], *count));
        counts.collect::<Vec<_>>()
    };
    page.counters(
        "oshu_vault_exchanges_total",
        "Requests with their answers, by outcome.",
        by(&tally.exchanges, "outcome"),
    );
    page.counters(
        "oshu_vault_tunnels_total",
        "Tunnels that have ended or were refused, by outcome.",
        by(&tally.tunnels, "outcome"),
    );
    let changes = tally.sessions.iter();
    page.counters(
        "oshu_vault_session_changes_total",
        "Changes of sessions, by action and outcome.",
        changes.map(|((action, outcome), count)| {
            ([("action", *action), ("outcome", *outcome)], *count)
        }),
    );
    page.counters(
        "oshu_vault_refusals_total",
        "Exchanges, tunnels and changes that did not end well, by code.",
        by(&tally.refusals, "code"),
    );
    let mut swaps: Vec<_> = tally.swaps.iter().collect();
    swaps.sort_unstable_by(|a, b| a.0.cmp(b.0));
    page.counters(
        "oshu_vault_swaps_total",
        "Exchanges in which a secret was swapped, by its name and whether the catalogue has the host.",
        swaps.into_iter().flat_map(|(name, swaps)| {
            let label = |class| [("secret", name.as_ref()), ("host_class", class)];
            [
                (label("catalogue"), swaps.catalogue),
                (label("other"), swaps.other),
            ]
        }),
    );
}
