//! Who has not shown who they are, by address: their connections, and their failed attempts.
//!
//! Neither count ever holds against a caller with the right credential: the connection of one leaves
//! the first count, and the second is asked only when an answer is to say no. Addresses of IPv6
//! count by /64, which one machine has all of. Called by the doors, which take seats, and by whoever
//! checks a credential: the proxy and the management API.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How many addresses with failed attempts are remembered, some 1 MiB. Beyond it the one whose
/// period began first is forgotten, which costs whoever has that many addresses nothing anyway.
const ADDRESSES: usize = 10_000;

/// What counts as one address: an address of IPv4, or a /64 of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Source(IpAddr);

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

/// The connections on which nobody has shown a credential yet, by address.
#[derive(Clone, Debug)]
pub struct Newcomers(Arc<Seats>);

#[derive(Debug)]
struct Seats {
    limit: usize,
    taken: Mutex<HashMap<Source, usize>>,
}

impl Seats {
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
    /// Allows so many connections of one address at once.
    pub fn new(limit: usize) -> Self {
        let taken = Mutex::default();
        Self(Arc::new(Seats { limit, taken }))
    }

    /// Takes a seat for a new connection; nothing if its address has all it may have.
    pub fn admit(&self, ip: IpAddr) -> Option<Newcomer> {
        let source = Source::from(ip);
        let mut taken = self.0.lock();
        let count = taken.entry(source).or_default();
        if *count >= self.0.limit {
            return None;
        }
        *count += 1;
        Some(Newcomer(Arc::new(Seat {
            seats: Arc::clone(&self.0),
            source,
            is_known: AtomicBool::new(false),
        })))
    }
}

/// A connection on which nobody has shown a credential yet. Clones are of the same connection; it is
/// counted until somebody has, or the last of them is dropped.
#[derive(Clone, Debug)]
pub struct Newcomer(Arc<Seat>);

#[derive(Debug)]
struct Seat {
    seats: Arc<Seats>,
    source: Source,
    is_known: AtomicBool,
}

impl Newcomer {
    /// Tells whether a right credential was shown on the connection.
    pub fn is_known(&self) -> bool {
        self.0.is_known.load(Ordering::Acquire)
    }

    /// Notes that a right credential was shown on the connection.
    pub fn known(&self) {
        self.0.leave();
    }
}

impl Seat {
    fn leave(&self) {
        if !self.is_known.swap(true, Ordering::AcqRel) {
            self.seats.leave(self.source);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
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
        let newcomers = Newcomers::new(2);
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
