//! A lane: the facts that every exchange of one tunnel, or one plain request, has in common.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use super::Proxy;
use super::reject::Refusal;
use crate::audit::{Kind, Record, Traffic};
use crate::host::HostPort;
use crate::policy::{Denial, Scheme};
use crate::session::{HostView, SessionHandle};

/// One session's way to one target.
pub(super) struct Lane<'a> {
    pub(super) proxy: &'a Proxy,
    pub(super) handle: &'a Arc<SessionHandle>,
    pub(super) target: HostPort,
    pub(super) scheme: Scheme,
    /// The target as a `Host` field has it: the port only where it is not the scheme's.
    pub(super) host_field: String,
    /// Where the workload comes from.
    peer: SocketAddr,
    /// The bytes of all exchanges together.
    traffic: Arc<Traffic>,
    view: Arc<HostView>,
}

impl<'a> Lane<'a> {
    /// Opens a lane, if the session's policy allows the target.
    pub(super) fn open(
        proxy: &'a Proxy,
        handle: &'a Arc<SessionHandle>,
        target: HostPort,
        scheme: Scheme,
        (peer, traffic): (SocketAddr, Arc<Traffic>),
    ) -> Result<Self, Denial> {
        let view = handle.host_view(&target, scheme)?;
        let host_field = match (scheme, target.port) {
            (Scheme::Https, 443) | (Scheme::Http, 80) => target.host.to_string(),
            _ => target.to_string(),
        };
        Ok(Self {
            proxy,
            handle,
            target,
            scheme,
            host_field,
            peer,
            traffic,
            view,
        })
    }

    /// Begins the audit record of an exchange.
    pub(super) fn record(&self) -> Record {
        let mut record = Record::begin(&self.proxy.audit, Kind::Exchange);
        record.tenant(self.handle.tenant());
        record.session(self.handle.id());
        record.target(&self.target);
        record.peer(self.peer);
        record
    }

    /// Starts to count the bytes of an exchange, for its record and for the lane's.
    pub(super) fn meter(&self, record: &mut Record) -> Meter {
        let exchange = Arc::new(Traffic::default());
        record.meter(&exchange);
        Meter {
            exchange,
            lane: Arc::clone(&self.traffic),
        }
    }

    /// Returns the view as the session stands now: one atomic load, unless it was patched.
    pub(super) fn view(&mut self) -> Result<Arc<HostView>, Refusal> {
        if self.view.version() != self.handle.version() {
            let view = self.handle.host_view(&self.target, self.scheme);
            self.view = view.map_err(|denial| self.denied(denial))?;
        }
        Ok(Arc::clone(&self.view))
    }

    fn denied(&self, denial: Denial) -> Refusal {
        Refusal::denied(denial, &self.target.host.to_string())
    }

    /// Returns the port that the scheme implies.
    pub(super) fn default_port(&self) -> u16 {
        match self.scheme {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

/// Opens one lane again and again, for exchanges that run beside each other.
pub(super) struct Lanes {
    pub(super) proxy: Arc<Proxy>,
    pub(super) handle: Arc<SessionHandle>,
    target: HostPort,
    scheme: Scheme,
    host_field: String,
    peer: SocketAddr,
    traffic: Arc<Traffic>,
    view: Mutex<Arc<HostView>>,
}

impl Lanes {
    /// Takes over what a lane has.
    pub(super) fn new(lane: Lane<'_>, proxy: &Arc<Proxy>) -> Self {
        Self {
            proxy: Arc::clone(proxy),
            handle: Arc::clone(lane.handle),
            target: lane.target,
            scheme: lane.scheme,
            host_field: lane.host_field,
            peer: lane.peer,
            traffic: lane.traffic,
            view: Mutex::new(lane.view),
        }
    }

    /// Opens the lane, with the view that was used last.
    pub(super) fn lane(&self) -> Lane<'_> {
        let view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        Lane {
            proxy: &self.proxy,
            handle: &self.handle,
            target: self.target.clone(),
            scheme: self.scheme,
            host_field: self.host_field.clone(),
            peer: self.peer,
            traffic: Arc::clone(&self.traffic),
            view: Arc::clone(&view),
        }
    }

    /// Keeps the view that a lane has by now, unless another has kept a newer one.
    pub(super) fn keep(&self, lane: &Lane<'_>) {
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        if lane.view.version() > view.version() {
            *view = Arc::clone(&lane.view);
        }
    }
}

/// Counts the bytes of one exchange, and of its lane with it.
pub(super) struct Meter {
    exchange: Arc<Traffic>,
    lane: Arc<Traffic>,
}

impl AsRef<Self> for Meter {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl Meter {
    /// Notes bytes that went to the upstream.
    pub(super) fn add_up(&self, bytes: usize) {
        for traffic in [&self.exchange, &self.lane] {
            traffic.up.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// Notes bytes that went to the workload.
    pub(super) fn add_down(&self, bytes: usize) {
        for traffic in [&self.exchange, &self.lane] {
            traffic.down.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// Returns the bytes that went either way so far.
    pub(super) fn total(&self) -> u64 {
        let [up, down] = [&self.exchange.up, &self.exchange.down];
        up.load(Ordering::Relaxed)
            .wrapping_add(down.load(Ordering::Relaxed))
    }

    /// Notes how far the bodies have come.
    pub(super) fn set(&self, up: u64, down: u64) {
        let before = self.exchange.up.swap(up, Ordering::Relaxed);
        let more = up.saturating_sub(before);
        self.lane.up.fetch_add(more, Ordering::Relaxed);
        let before = self.exchange.down.swap(down, Ordering::Relaxed);
        let more = down.saturating_sub(before);
        self.lane.down.fetch_add(more, Ordering::Relaxed);
    }
}
