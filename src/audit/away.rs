//! Lines on their way to another process, which writes the file from now on.
//!
//! A file has one writer. Who hands a service over ends its segment, lets go of the file, and sends
//! what it records yet in parcels, one at a time; a parcel is gone when the other says that it is
//! written. If the other goes away, what is left is written here again. Called by the sink, and by
//! `session` for the link between the two.

use std::sync::mpsc::Receiver as Orders;
use std::sync::mpsc::Sender as Order;
use std::sync::mpsc::channel as orders;

use tokio::sync::{mpsc, oneshot};

use crate::audit::chain::Keys;
use crate::audit::file::FileOptions;

/// The longest text of one parcel, in bytes, but for a line that is longer by itself.
const PARCEL_BYTES: usize = 64 * 1024;

/// Some lines of JSON, and somebody who waits until they are written.
#[derive(Debug)]
pub struct Parcel {
    lines: String,
    arrived: oneshot::Sender<()>,
}

impl Parcel {
    /// Returns the lines, each with its end.
    pub fn lines(&self) -> &str {
        &self.lines
    }

    /// Says that they are written elsewhere.
    pub fn arrived(self) {
        // Whoever waits for it waits for as long as its process runs.
        let _waiting = self.arrived.send(());
    }
}

/// The parcels of a sink, in their order.
#[derive(Debug)]
pub struct Parcels(mpsc::Receiver<Parcel>);

impl Parcels {
    /// Waits for the next parcel; nothing once the sink is gone.
    pub async fn next(&mut self) -> Option<Parcel> {
        self.0.recv().await
    }
}

/// A file that a sink has let go of. Dropping this gives it back.
#[derive(Debug)]
pub struct Released(Order<Next>);

impl Released {
    /// Has the sink send its lines away from now on.
    pub fn send_away(self) -> Parcels {
        let (outlet, parcels) = mpsc::channel(1);
        // A sink whose thread has ended has nothing more to send.
        drop(self.0.send(Next::Away(outlet)));
        Parcels(parcels)
    }
}

/// What becomes of a file that was let go of.
enum Next {
    Away(mpsc::Sender<Parcel>),
}

/// What a sink's thread needs to write its file again.
pub(super) struct Spare {
    pub(super) options: FileOptions,
    pub(super) keys: Keys,
    next: Orders<Next>,
}

impl Spare {
    /// Lets go of a file, and returns what its new owner is to hold.
    pub(super) fn new((options, keys): (FileOptions, Keys)) -> (Self, Released) {
        let (order, next) = orders();
        let spare = Self {
            options,
            keys,
            next,
        };
        (spare, Released(order))
    }

    /// Waits until it is known where lines go; nothing where the file is given back.
    pub(super) fn outlet(&self) -> Option<Outlet> {
        match self.next.recv() {
            Ok(Next::Away(outlet)) => Some(Outlet(outlet)),
            Err(_given_back) => None,
        }
    }
}

/// Where the parcels go.
pub(super) struct Outlet(mpsc::Sender<Parcel>);

impl Outlet {
    /// Sends lines until they are written elsewhere. Returns how many bytes were; fewer than all
    /// where the other process has gone.
    pub(super) fn send(&self, lines: &[u8]) -> usize {
        let mut sent = 0;
        while let Some(rest) = lines.get(sent..).filter(|rest| !rest.is_empty()) {
            let most = rest.get(..PARCEL_BYTES).unwrap_or(rest);
            let end = most.iter().rposition(|byte| *byte == b'\n');
            let end = end.or_else(|| rest.iter().position(|byte| *byte == b'\n'));
            let part = rest.get(..end.map_or(rest.len(), |at| at + 1));
            let part = part.unwrap_or(rest);
            let (arrived, arrival) = oneshot::channel();
            let parcel = Parcel {
                lines: String::from_utf8_lossy(part).into_owned(),
                arrived,
            };
            if self.0.blocking_send(parcel).is_err() || arrival.blocking_recv().is_err() {
                break;
            }
            sent += part.len();
        }
        sent
    }
}

/// Lines that another process has sent here, and somebody who waits until they are written.
#[derive(Debug)]
pub(super) struct Relayed {
    pub(super) lines: String,
    pub(super) written: oneshot::Sender<()>,
}
