//! The connections of one session, by scheme, host and port: idle ones, and shared ones.
//!
//! There is one pool per session and it is dropped with the session, so that a connection on which
//! one session's requests travelled is never seen by another. An idle connection is kept for a
//! short time and looked at before it is used again: one that has closed, or has said something
//! nobody asked for, is thrown away.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::{CancellationToken, DropGuard};

use super::Error;
use super::h2::{Flight, Shared, StreamLease};
use crate::host::HostPort;
use crate::policy::{Grant, Scheme};
use crate::wire::{Connection, Io};

/// How long an idle connection is kept.
const IDLE_LIMIT: Duration = Duration::from_secs(20);
/// How many shared connections one session has to one host before exchanges wait for each other.
const SHARED_PER_HOST: usize = 16;

type Key = (Scheme, HostPort);

fn key_of(grant: &Grant) -> Key {
    (grant.scheme(), grant.target().clone())
}

/// The connections of one session.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// How many connections are kept, idle and shared, to all hosts together.
    limit: usize,
    idle: HashMap<Key, Vec<Idle>>,
    shared: HashMap<Key, Vec<Shared>>,
    flights: HashMap<Key, Arc<Flight>>,
    /// Ends the tasks of shared connections, at the latest with the pool itself.
    tasks: Option<DropGuard>,
    /// How many connections the lists hold.
    count: usize,
    closed: bool,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    address: SocketAddr,
    since: Instant,
}

impl Inner {
    fn cut(&mut self) -> CancellationToken {
        let guard = self
            .tasks
            .get_or_insert_with(|| CancellationToken::new().drop_guard());
        guard.token().clone()
    }

    /// Tells whether one more connection may be kept.
    fn has_room(&self) -> bool {
        let shared: usize = self.shared.values().map(Vec::len).sum();
        !self.closed && self.count + shared < self.limit
    }

    fn pop(&mut self, key: &Key) -> Option<Idle> {
        let idle = self.idle.get_mut(key)?.pop()?;
        self.count -= 1;
        Some(idle)
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self::keeping(128)
    }
}

impl Pool {
    /// Keeps at most so many connections, idle and shared, to all hosts together.
    pub fn keeping(limit: usize) -> Self {
        let inner = Inner {
            limit,
            ..Inner::default()
        };
        Self(Arc::new(Mutex::new(inner)))
    }

    /// Takes the connection that was used last, if one is still good.
    pub(super) fn take(&self, grant: &Grant) -> Option<Lease> {
        let key = key_of(grant);
        loop {
            let mut idle = self.lock().pop(&key)?;
            if idle.since.elapsed() < IDLE_LIMIT && idle.connection.is_quiet() {
                let Idle {
                    connection,
                    address,
                    ..
                } = idle;
                return Some(Lease {
                    connection,
                    address,
                    key,
                    pool: self.clone(),
                    reused: true,
                });
            }
        }
    }

    /// Takes charge of a connection that was just made.
    pub(super) fn hold(&self, grant: &Grant, io: Io, address: SocketAddr) -> Lease {
        let key = key_of(grant);
        let connection = Connection::new(io);
        Lease {
            connection,
            address,
            key,
            pool: self.clone(),
            reused: false,
        }
    }

    /// Joins a shared connection that has room. Where there is none and no more may be opened, joins
    /// the one that is used least: the exchange waits its turn.
    pub(super) fn join(&self, grant: &Grant) -> Option<StreamLease> {
        let mut inner = self.lock();
        let shared = inner.shared.get_mut(&key_of(grant))?;
        shared.retain(|shared| shared.is_open() && !shared.is_idle_for(IDLE_LIMIT));
        let best = shared
            .iter()
            .max_by_key(|shared| (shared.room(), Reverse(shared.streams())))?;
        (best.room() > 0 || shared.len() >= SHARED_PER_HOST).then(|| best.join(true))
    }

    /// Takes charge of a connection that was just made and speaks HTTP/2. One beyond what may be kept
    /// carries the one exchange it was made for.
    pub(super) async fn share(
        &self,
        grant: &Grant,
        io: Io,
        address: SocketAddr,
    ) -> Result<StreamLease, Error> {
        let cut = self.lock().cut();
        let shared = Shared::open(io, address, &cut).await?;
        let lease = shared.join(false);
        let mut inner = self.lock();
        if inner.closed {
            cut.cancel();
        } else if inner.has_room() {
            let list = inner.shared.entry(key_of(grant)).or_default();
            if list.len() < SHARED_PER_HOST {
                list.push(shared);
            }
        }
        Ok(lease)
    }

    /// Returns where those meet who want a connection to a host.
    pub(super) fn flight(&self, grant: &Grant) -> Arc<Flight> {
        let mut inner = self.lock();
        Arc::clone(inner.flights.entry(key_of(grant)).or_default())
    }

    /// Drops connections that were idle for too long. Returns how many are left.
    pub fn sweep(&self) -> usize {
        let mut inner = self.lock();
        inner.shared.retain(|_, list| {
            list.retain(|shared| shared.is_open() && !shared.is_idle_for(IDLE_LIMIT));
            !list.is_empty()
        });
        inner.idle.retain(|_, list| {
            list.retain(|idle| idle.since.elapsed() < IDLE_LIMIT);
            !list.is_empty()
        });
        let Inner { idle, flights, .. } = &mut *inner;
        // A host's choice is known for as long as a connection waits to be used again.
        flights.retain(|key, flight| Arc::strong_count(flight) > 1 || idle.contains_key(key));
        inner.count = inner.idle.values().map(Vec::len).sum();
        inner.count
    }

    /// Returns how many connections wait for another use.
    pub fn idle(&self) -> usize {
        self.lock().count
    }

    /// Drops every connection that is not on loan, cuts the shared ones with all they carry, and
    /// keeps none from now on.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.shared.clear();
        inner.tasks = None;
        inner.count = 0;
        inner.idle.clear();
    }

    /// Tells whether the pool was closed.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection on loan: closed when dropped, unless it is given back.
#[derive(Debug)]
pub struct Lease {
    /// The connection.
    pub connection: Connection,
    address: SocketAddr,
    key: Key,
    pool: Pool,
    reused: bool,
}

impl Lease {
    /// Tells whether the connection carried an exchange before.
    pub fn is_reused(&self) -> bool {
        self.reused
    }

    /// Returns the address that was dialled.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives the connection back for the next exchange. The caller vouches that the last one ended
    /// cleanly on both sides.
    pub fn give_back(mut self) {
        if !self.connection.input.is_empty() {
            return;
        }
        self.connection.input = bytes::BytesMut::new();
        let idle = Idle {
            connection: self.connection,
            address: self.address,
            since: Instant::now(),
        };
        let mut inner = self.pool.lock();
        if inner.has_room() {
            inner.count += 1;
            inner.idle.entry(self.key).or_default().push(idle);
        }
    }
}
