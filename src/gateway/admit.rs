//! Who calls, and whether it is paid: in this order, and before a byte of the body is read.
//!
//! A credential that is missing, wrong, doubled or too old gets one answer, before anybody is asked
//! about payment. Whoever cannot be looked up is neither paid nor unpaid, and who may use nothing has
//! no seat: that connection counts for its address. Called for every call of the gateway.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use http::request::Parts;
use quick_cache::sync::Cache;

use crate::id::AccountId;
use crate::identity::{Presented, Workload, WorkloadKeys, presented};
use crate::pace::Pace;
use crate::payment::{PaymentCheck, Standing};
use crate::serve::{Newcomer, Seats, Throttle};
use crate::web::{Connection, ModelFailure};

/// How many accounts' paces are kept; one that is forgotten starts anew.
const PACES: usize = 10_000;
/// Of how many accounts the seats are kept where none is taken.
const EMPTY_SEATS: usize = 1000;

/// Admits callers.
pub(super) struct Admission {
    keys: WorkloadKeys,
    check: Arc<dyn PaymentCheck>,
    throttle: Arc<Throttle>,
    per_minute: Option<u32>,
    paces: Cache<AccountId, Arc<Pace>>,
    /// How many connections one account may have at once, and those that it has.
    connections: usize,
    seats: Mutex<SeatTable>,
    danger_plaintext: bool,
}

/// A caller who is known, with the JWT that was shown.
pub(super) struct Admitted {
    pub(super) workload: Workload,
    pub(super) shown: zeroize::Zeroizing<String>,
}

impl Admission {
    pub(super) fn new(
        keys: WorkloadKeys,
        check: Arc<dyn PaymentCheck>,
        throttle: Arc<Throttle>,
        (per_minute, connections): (Option<u32>, usize),
        danger_plaintext: bool,
    ) -> Self {
        Self {
            keys,
            check,
            throttle,
            per_minute,
            paces: Cache::new(PACES),
            connections,
            seats: Mutex::default(),
            danger_plaintext,
        }
    }

    /// Tells who calls.
    ///
    /// # Errors
    /// [`ModelFailure::TlsRequired`], [`ModelFailure::Unauthenticated`],
    /// [`ModelFailure::TooManyAttempts`] and [`ModelFailure::TooFast`].
    pub(super) fn caller(&self, parts: &Parts) -> Result<Admitted, ModelFailure> {
        let fields = parts.headers.iter();
        let fields: Vec<_> = fields
            .map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
            .collect();
        let presented = presented(&fields.iter().copied(), parts.uri.query());
        let connection = parts.extensions.get::<Connection>();
        let is_private = connection.is_some_and(Connection::is_private);
        if presented != Presented::None && !is_private && !self.danger_plaintext {
            return Err(ModelFailure::TlsRequired);
        }
        let shown = match presented {
            Presented::One(shown) => shown,
            Presented::Conflict => return Err(self.refuse(connection)),
            Presented::None => return Err(ModelFailure::Unauthenticated),
        };
        let workload = match self.keys.verify(&shown, SystemTime::now()) {
            Ok(workload) => workload,
            Err(refused) => {
                tracing::debug!(%refused, "a workload JWT is refused");
                return Err(self.refuse(connection));
            }
        };
        self.pace(&workload.account)?;
        Ok(Admitted { workload, shown })
    }

    /// Tells whether the caller's account is paid.
    ///
    /// # Errors
    /// [`ModelFailure::PaymentUnknown`].
    pub(super) async fn standing(&self, workload: &Workload) -> Result<Standing, ModelFailure> {
        let standing = self.check.check(&workload.account).await;
        standing.map_err(ModelFailure::PaymentUnknown)
    }

    /// Counts a connection for an account, and no more for its address: its code is not the operator's.
    /// One that a session has stays with the session.
    ///
    /// # Errors
    /// [`ModelFailure::TooManyConnections`].
    pub(super) fn seat(&self, parts: &Parts, account: &AccountId) -> Result<(), ModelFailure> {
        let Some(newcomer) = parts.extensions.get::<Newcomer>() else {
            return Ok(());
        };
        let mut table = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken before anybody else can find that nobody has it.
        let seated = newcomer.seat_if_unowned(&table.of(account, self.connections));
        seated.map_err(|_crowded| ModelFailure::TooManyConnections)
    }

    /// Says no to a wrong credential, in this way unless its address has failed too often.
    fn refuse(&self, connection: Option<&Connection>) -> ModelFailure {
        let held = connection.map_or(Ok(()), |from| self.throttle.failed(from.peer.ip()));
        held.map_or_else(ModelFailure::TooManyAttempts, |()| {
            ModelFailure::Unauthenticated
        })
    }

    fn pace(&self, account: &AccountId) -> Result<(), ModelFailure> {
        let Some(limit) = self.per_minute else {
            return Ok(());
        };
        let fresh = || Ok::<_, std::convert::Infallible>(Arc::new(Pace::per_minute(limit)));
        let Ok(pace) = self.paces.get_or_insert_with(account, fresh);
        pace.take(Instant::now()).map_err(ModelFailure::TooFast)
    }
}

/// The seats of accounts. Those of which one is taken are never forgotten, or an account would have
/// all of them once more.
#[derive(Debug, Default)]
struct SeatTable {
    seats: HashMap<AccountId, Seats>,
    /// How many may be there before it is looked which of them nobody has.
    look_at: usize,
}

impl SeatTable {
    fn of(&mut self, account: &AccountId, limit: usize) -> Seats {
        if let Some(seats) = self.seats.get(account) {
            return seats.clone();
        }
        if self.seats.len() >= self.look_at {
            self.seats.retain(|_, seats| seats.free() < limit);
            // As many more as there are, so that looking costs little for each that comes.
            self.look_at = EMPTY_SEATS + 2 * self.seats.len();
        }
        let seats = Seats::new(limit);
        self.seats.insert(account.clone(), seats.clone());
        seats
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use super::*;
    use crate::id::SandboxName;
    use crate::payment::{BoxFuture, Error};
    use crate::secret::Secret;
    use crate::serve::Newcomers;

    /// A check that nobody may ask.
    #[derive(Debug)]
    struct Unasked;

    impl PaymentCheck for Unasked {
        fn check<'a>(&'a self, _: &'a AccountId) -> BoxFuture<'a, Result<Standing, Error>> {
            panic!("nobody is asked about payment before a caller is known")
        }
    }

    fn keys() -> WorkloadKeys {
        WorkloadKeys::new(&Secret::new(vec![7; 32]), None).unwrap()
    }

    fn jwt() -> String {
        let workload = Workload {
            account: AccountId::of_number(1),
            sandbox: SandboxName::parse("b").unwrap(),
        };
        let minted = keys().mint(&workload, SystemTime::now(), Duration::from_mins(5));
        minted.unwrap().to_string()
    }

    fn caller(
        listener: &str,
        tls: bool,
        danger: bool,
        uri: &str,
        field: &str,
    ) -> Result<(), ModelFailure> {
        let throttle = Arc::new(Throttle::new(50, Duration::from_mins(5)));
        let paces = (None, 1);
        let admission = Admission::new(keys(), Arc::new(Unasked), throttle, paces, danger);
        let connection = Connection {
            peer: SocketAddr::from(([10, 0, 0, 2], 1)),
            tls,
            listener: listener.parse().unwrap(),
        };
        let mut request = http::Request::builder().uri(uri).extension(connection);
        if !field.is_empty() {
            request = request.header("x-api-key", field);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        admission.caller(&parts).map(drop)
    }

    #[test]
    fn a_jwt_in_the_clear_is_taken_on_loopback_and_over_tls_alone() {
        let (jwt, plain) = (jwt(), "/v1/messages");
        let in_query = format!("{plain}?token={jwt}");
        for (listener, tls, danger, refused) in [
            ("127.0.0.1:1", false, false, false),
            ("[::1]:1", false, false, false),
            ("10.0.0.1:1", true, false, false),
            ("10.0.0.1:1", false, true, false),
            ("10.0.0.1:1", false, false, true),
            ("0.0.0.0:1", false, false, true),
        ] {
            for (uri, field) in [(plain, jwt.as_str()), (in_query.as_str(), "")] {
                let got = caller(listener, tls, danger, uri, field);
                let is_refused = matches!(got, Err(ModelFailure::TlsRequired));
                assert_eq!(
                    is_refused, refused,
                    "{listener} {tls} {danger} {uri}: {got:?}"
                );
                assert_eq!(got.is_ok(), !refused);
            }
            // Without a credential there is nothing to protect.
            let got = caller(listener, tls, danger, plain, "");
            assert!(matches!(got, Err(ModelFailure::Unauthenticated)), "{got:?}");
        }
    }

    #[test]
    fn an_account_with_a_seat_is_not_forgotten() {
        let newcomers = Newcomers::new(10, 10);
        let newcomer = newcomers.admit([10, 0, 0, 1].into()).unwrap();
        let (mut table, first) = (SeatTable::default(), AccountId::of_number(1));
        newcomer.seat(&table.of(&first, 1)).unwrap();
        for number in 2..5 * EMPTY_SEATS as u64 {
            assert_eq!(table.of(&AccountId::of_number(number), 1).free(), 1);
            assert!(table.seats.len() <= EMPTY_SEATS + 3, "{number}");
        }
        assert_eq!(table.of(&first, 1).free(), 0);
        drop(newcomer);
        assert_eq!(table.of(&first, 1).free(), 1);
    }
}
