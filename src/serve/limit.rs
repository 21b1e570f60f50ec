//! For whom a connection is counted, and the failed attempts of those who have not shown who they
//! are.
//!
//! By address only strangers are counted: the connection of a workload moves to a seat of its owner,
//! and failed attempts are asked about only when an answer is to say no. What an owner is, is not
//! known here. Addresses of IPv6 count by /64, which one machine has all of. Called by the doors,
//! and by whoever checks a credential: the proxy and the management API.

use std::collections::{HashMap, VecDeque};
use std::future::pending;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// How many addresses with failed attempts are remembered, some 1 MiB. Beyond it the one whose
/// period began first is forgotten, which costs whoever has that many addresses nothing anyway.
const ADDRESSES: usize = 10_000;

/// What counts as one address: an address of IPv4, or a /64 of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source(IpAddr);

impl From<IpAddr> for Source {
    fn from(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V6(ip) => {
                let network = ip.to_bits() & !u128::from(u64::MAX);
                Self(Ipv6Addr::from_bits(network).into())
            }
            ip @ IpAddr::V4(_) => Self(ip),
        }
    }
}

/// Says who has as many connections as they may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Crowded {
    /// The one who showed a credential.
    #[error("its owner has too many connections")]
    Owner,
    /// All workloads together.
    #[error("workloads have too many connections")]
    Workloads,
}

/// The connections that one owner may have at once. Clones are of the same owner.
#[derive(Clone, Debug)]
pub struct Seats {
    permits: Arc<Semaphore>,
    over: CancellationToken,
}

impl Seats {
    /// Allows so many connections.
    pub fn new(limit: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(limit)),
            over: CancellationToken::new(),
        }
    }

    /// Returns how many more there may be.
    pub fn free(&self) -> usize {
        self.permits.available_permits()
    }

    /// Tells all connections of the owner that there is nobody any more to be there for.
    pub fn end(&self) {
        self.over.cancel();
    }

    fn take(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).try_acquire_owned().ok()
    }
}

/// The connections on which nobody has shown a credential yet, by address.
#[derive(Clone, Debug)]
pub struct Newcomers(Arc<Strangers>);

#[derive(Debug)]
struct Strangers {
    limit: usize,
    taken: Mutex<HashMap<Source, usize>>,
    /// For all connections that are an owner's.
    workloads: Seats,
}

impl Strangers {
    fn lock(&self) -> MutexGuard<'_, HashMap<Source, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self, source: Source) {
        let mut taken = self.lock();
        if let Some(count) = taken.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&source);
            }
        }
    }
}

impl Newcomers {
    /// Allows so many connections of one address at once, and so many of all owners of seats
    /// together.
    pub fn new(limit: usize, workloads: usize) -> Self {
        Self(Arc::new(Strangers {
            limit,
            taken: Mutex::default(),
            workloads: Seats::new(workloads),
        }))
    }

    /// Counts a new connection; nothing if its address has all it may have.
    pub fn admit(&self, ip: IpAddr) -> Option<Newcomer> {
        let source = Source::from(ip);
        let mut taken = self.0.lock();
        let count = taken.entry(source).or_default();
        if *count >= self.0.limit {
            return None;
        }
        *count += 1;
        Some(Newcomer(Arc::new(Place {
            strangers: Arc::clone(&self.0),
            source,
            since: Instant::now(),
            counted: Mutex::new(Counted::Stranger),
        })))
    }
}

/// A connection, and for whom it is counted: for its address until somebody shows a right
/// credential on it. Clones are of the same connection, which is counted until the last of them is
/// dropped.
#[derive(Clone, Debug)]
pub struct Newcomer(Arc<Place>);

#[derive(Debug)]
struct Place {
    strangers: Arc<Strangers>,
    source: Source,
    since: Instant,
    counted: Mutex<Counted>,
}

#[derive(Debug)]
enum Counted {
    Stranger,
    Trusted,
    Owned {
        seat: OwnedSemaphorePermit,
        over: CancellationToken,
        /// The place among those of all workloads: it stays when the owner changes.
        #[expect(dead_code, reason = "held to be dropped")]
        share: OwnedSemaphorePermit,
    },
}

impl Newcomer {
    /// Tells whether a right credential was shown on the connection.
    pub fn is_known(&self) -> bool {
        !matches!(*self.0.lock(), Counted::Stranger)
    }

    /// Tells whether the connection was there for so long and nobody showed a right credential on it.
    /// Such a one should end with the answer under way: what it is asked without one keeps it alive
    /// otherwise, and somebody else out.
    pub fn overstays(&self, limit: Duration) -> bool {
        self.0.since.elapsed() > limit && !self.is_known()
    }

    /// Counts the connection for nobody any more: who showed a credential may have any number.
    pub fn known(&self) {
        self.0.move_to(&mut self.0.lock(), Counted::Trusted);
    }

    /// Counts the connection for an owner who has shown a credential on it. Whoever showed one
    /// before has one connection less then.
    ///
    /// # Errors
    /// [`Crowded`]: it is counted as before, and should be closed.
    pub fn seat(&self, owner: &Seats) -> Result<(), Crowded> {
        let place = &self.0;
        let mut counted = place.lock();
        if let Counted::Owned { seat, over, .. } = &mut *counted {
            if !Arc::ptr_eq(seat.semaphore(), &owner.permits) {
                *seat = owner.take().ok_or(Crowded::Owner)?;
                *over = owner.over.clone();
            }
            return Ok(());
        }
        let seat = owner.take().ok_or(Crowded::Owner)?;
        let share = place.strangers.workloads.take().ok_or(Crowded::Workloads)?;
        let over = owner.over.clone();
        place.move_to(&mut counted, Counted::Owned { seat, over, share });
        Ok(())
    }

    /// Counts the connection for an owner as [`Self::seat`] does, unless it is counted for one already:
    /// then it stays theirs.
    ///
    /// # Errors
    /// [`Crowded`]: it is counted as before.
    pub fn seat_if_unowned(&self, owner: &Seats) -> Result<(), Crowded> {
        if matches!(*self.0.lock(), Counted::Owned { .. }) {
            return Ok(());
        }
        self.seat(owner)
    }

    /// Tells whether the one it is counted for is over.
    pub fn is_orphaned(&self) -> bool {
        matches!(&*self.0.lock(), Counted::Owned { over, .. } if over.is_cancelled())
    }

    /// Waits until the one it is counted for is over. Never ends where it is counted for no owner.
    pub async fn orphaned(&self) {
        let over = match &*self.0.lock() {
            Counted::Owned { over, .. } => Some(over.clone()),
            Counted::Stranger | Counted::Trusted => None,
        };
        match over {
            Some(over) => over.cancelled().await,
            None => pending().await,
        }
    }
}

impl Place {
    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn move_to(&self, counted: &mut Counted, to: Counted) {
        if let Counted::Stranger = std::mem::replace(counted, to) {
            self.strangers.leave(self.source);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.move_to(&mut self.lock(), Counted::Trusted);
    }
}

/// Failed attempts by address. Answers that say no are held back beyond a number in a period; who has
/// the right credential is never asked about here.
#[derive(Debug)]
pub struct Throttle {
    limit: usize,
    period: Duration,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    failures: HashMap<Source, Failures>,
    /// The periods in the order in which they began.
    order: VecDeque<(Source, Instant)>,
}

#[derive(Clone, Copy, Debug)]
struct Failures {
    since: Instant,
    count: usize,
}

impl Throttle {
    /// Allows so many failures of one address in one period.
    pub fn new(limit: usize, period: Duration) -> Self {
        Self {
            limit,
            period,
            table: Mutex::default(),
        }
    }

    /// Counts a failed attempt.
    ///
    /// # Errors
    /// How long the address has to wait, where it has failed too often.
    pub fn failed(&self, ip: IpAddr) -> Result<(), Duration> {
        self.failed_at(ip, Instant::now())
    }

    fn failed_at(&self, ip: IpAddr, now: Instant) -> Result<(), Duration> {
        let source = Source::from(ip);
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.forget(now, self.period);
        let Table { failures, order } = &mut *table;
        let entry = failures.entry(source).or_insert_with(|| {
            order.push_back((source, now));
            Failures {
                since: now,
                count: 0,
            }
        });
        entry.count = entry.count.saturating_add(1);
        if entry.count <= self.limit {
            return Ok(());
        }
        Err(self.period.saturating_sub(now.duration_since(entry.since)))
    }
}

impl Table {
    /// Forgets periods that are over, and one more where there is no room for another.
    fn forget(&mut self, now: Instant, period: Duration) {
        while let Some((source, since)) = self.order.front().copied() {
            let is_over = now.duration_since(since) >= period;
            if !is_over && self.order.len() < ADDRESSES {
                return;
            }
            self.order.pop_front();
            self.failures.remove(&source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_mins(5);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_one_of_ipv4_or_a_64_of_ipv6() {
        for (one, other, same) in [
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("192.0.2.1", "::ffff:192.0.2.1", true),
            ("2001:db8::1", "2001:db8::ffff:0:0:1", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
        ] {
            assert_eq!(
                Source::from(ip(one)) == Source::from(ip(other)),
                same,
                "{one} {other}"
            );
        }
    }

    #[test]
    fn seats_come_back_when_somebody_is_known_or_gone_and_once_only() {
        let newcomers = Newcomers::new(2, 9);
        let admit = |address| newcomers.admit(ip(address));
        let (one, two) = (admit("192.0.2.1").unwrap(), admit("192.0.2.1").unwrap());
        assert!(admit("192.0.2.1").is_none());
        let other = admit("192.0.2.2").unwrap();
        one.known();
        one.known();
        let three = admit("192.0.2.1").unwrap();
        assert!(admit("192.0.2.1").is_none(), "known twice is one seat");
        let copy = two.clone();
        drop(two);
        assert!(admit("192.0.2.1").is_none(), "a copy holds the seat");
        drop((one, copy));
        assert!(admit("192.0.2.1").is_some());
        drop((three, other));
        assert!(newcomers.0.lock().is_empty());
    }

    #[test]
    fn a_connection_counts_for_the_owner_who_showed_a_credential_last() {
        let newcomers = Newcomers::new(9, 9);
        let admit = || newcomers.admit(ip("192.0.2.1")).unwrap();
        let (one, two) = (Seats::new(1), Seats::new(1));
        let (first, second) = (admit(), admit());
        assert_eq!(first.seat(&one), Ok(()));
        assert_eq!(first.seat(&one), Ok(()), "it has its seat");
        assert_eq!(second.seat(&one), Err(Crowded::Owner));
        assert!(first.is_known() && !second.is_known());
        assert_eq!(second.seat(&two), Ok(()));
        assert_eq!(
            first.seat(&two),
            Err(Crowded::Owner),
            "it keeps what it has"
        );
        assert_eq!((one.free(), two.free()), (0, 0));
        drop(second);
        assert_eq!(first.seat(&two), Ok(()));
        assert_eq!((one.free(), two.free()), (1, 0));
        first.known();
        assert_eq!((one.free(), two.free()), (1, 1));
        assert_eq!(first.seat(&one), Ok(()));
        let copy = first.clone();
        drop(first);
        assert_eq!(one.free(), 0, "a copy holds the seat");
        drop(copy);
        assert_eq!(one.free(), 1);
        assert!(newcomers.0.lock().is_empty());
        assert_eq!(newcomers.0.workloads.free(), 9);
    }

    #[test]
    fn all_owners_together_have_a_share_and_strangers_are_not_asked() {
        let newcomers = Newcomers::new(2, 2);
        let admit = || newcomers.admit(ip("192.0.2.1"));
        let owners = [3, 3, 3].map(Seats::new);
        let seated = [0, 1].map(|index| {
            let newcomer = admit().unwrap();
            assert_eq!(newcomer.seat(&owners[index]), Ok(()));
            newcomer
        });
        let third = admit().unwrap();
        assert_eq!(third.seat(&owners[2]), Err(Crowded::Workloads));
        assert!(!third.is_known());
        assert_eq!(owners[2].free(), 3, "the owner's seat came back");
        // Who changes needs no other place, and who is no workload none.
        assert_eq!(seated[0].seat(&owners[2]), Ok(()));
        let fourth = admit().unwrap();
        assert!(admit().is_none(), "two strangers");
        fourth.known();
        assert!(admit().is_some());
        drop(seated);
        assert_eq!(third.seat(&owners[2]), Ok(()));
    }

    #[test]
    fn failures_are_counted_by_address_and_forgotten_after_their_period() {
        let throttle = Throttle::new(2, PERIOD);
        let start = Instant::now();
        let fail = |address, after| throttle.failed_at(ip(address), start + after);
        let minute = Duration::from_mins(1);
        assert_eq!(fail("192.0.2.1", Duration::ZERO), Ok(()));
        assert_eq!(fail("192.0.2.1", minute), Ok(()));
        assert_eq!(fail("192.0.2.1", minute), Err(4 * minute));
        assert_eq!(fail("192.0.2.1", 4 * minute), Err(minute));
        assert_eq!(fail("192.0.2.2", 4 * minute), Ok(()), "another address");
        assert_eq!(fail("192.0.2.1", 5 * minute), Ok(()), "another period");
        assert_eq!(fail("192.0.2.2", 5 * minute), Ok(()));
        assert_eq!(fail("192.0.2.2", 5 * minute), Err(4 * minute));
    }

    #[test]
    fn the_table_of_addresses_is_bounded_and_forgets_the_oldest() {
        let throttle = Throttle::new(1, PERIOD);
        let now = Instant::now();
        for index in 0..3 * ADDRESSES {
            let address = IpAddr::from(u32::try_from(index).unwrap().to_be_bytes());
            assert_eq!(throttle.failed_at(address, now), Ok(()), "{index}");
        }
        let table = throttle.table.lock().unwrap();
        assert_eq!(table.failures.len(), ADDRESSES);
        assert_eq!(table.order.len(), ADDRESSES);
        drop(table);
        let last = IpAddr::from(u32::try_from(3 * ADDRESSES - 1).unwrap().to_be_bytes());
        assert_eq!(throttle.failed_at(last, now), Err(PERIOD), "the youngest");
        let first = IpAddr::from([0, 0, 0, 0]);
        assert_eq!(throttle.failed_at(first, now), Ok(()), "the oldest");
    }
}
