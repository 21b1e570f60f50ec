//! Listening sockets that come from another process, and that go to one.
//!
//! A socket is shared, never closed and opened anew: connections that wait in its queue are there
//! for whoever accepts next. It must never take a socket that is bound to something else than the
//! configuration says. Called by `app` for the doors, and for a hand-over to a successor.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::watch;

/// The most sockets of one message.
const SOCKETS: usize = 16;
/// The longest line beside them.
const LINE_LIMIT_BYTES: usize = 4096;

/// A listening socket, and the name that came with it.
#[derive(Debug)]
struct Named {
    name: String,
    listener: TcpListener,
    address: SocketAddr,
    /// Nobody has to take it.
    is_spare: bool,
}

/// Listening sockets that were bound by somebody else.
#[derive(Debug, Default)]
pub struct Sockets(Vec<Named>);

impl Sockets {
    /// Adds a socket with a name, which may be any text.
    ///
    /// # Errors
    /// The system's; a socket that does not listen is invalid.
    pub fn add(&mut self, name: impl Into<String>, listener: TcpListener) -> io::Result<()> {
        if !rustix::net::sockopt::socket_acceptconn(&listener)? {
            let text = "the socket does not listen";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let address = listener.local_addr()?;
        let name = name.into();
        self.0.push(Named {
            name,
            listener,
            address,
            is_spare: false,
        });
        Ok(())
    }

    /// Takes the socket of a listener: the one with its name, or the one that is bound to its
    /// address. Nothing is taken that is bound to another address than the listener's; port 0 is
    /// any port.
    pub(super) fn take(&mut self, name: &str, address: SocketAddr) -> Option<TcpListener> {
        let fits = |bound: SocketAddr| {
            bound.ip() == address.ip() && (address.port() == 0 || bound.port() == address.port())
        };
        let by_name = |it: &Named| it.name == name && fits(it.address);
        let by_address = |it: &Named| it.address == address;
        // First those that have to be taken.
        let mut found = None;
        for is_spare in [false, true] {
            let of = |fits: &dyn Fn(&Named) -> bool| {
                let mut all = self.0.iter();
                all.position(|it| it.is_spare == is_spare && fits(it))
            };
            found = found.or_else(|| of(&by_name).or_else(|| of(&by_address)));
        }
        let found = found?;
        Some(self.0.swap_remove(found).listener)
    }

    /// Tells which sockets are left that somebody should have taken: their names and addresses.
    pub fn left(&self) -> impl Iterator<Item = (&str, SocketAddr)> {
        let left = self.0.iter().filter(|it| !it.is_spare);
        left.map(|it| (it.name.as_str(), it.address))
    }

    /// Adds the sockets of another list behind these; nobody has to take them.
    pub fn append(&mut self, other: Self) {
        let spare = other.0.into_iter().map(|it| Named {
            is_spare: true,
            ..it
        });
        self.0.extend(spare);
    }

    /// Returns the names, in the order in which the sockets are sent.
    pub fn names(&self) -> Vec<String> {
        self.0.iter().map(|it| it.name.clone()).collect()
    }

    /// Sends a line and the sockets with it.
    ///
    /// # Errors
    /// The system's.
    pub async fn send(&self, stream: &UnixStream, line: &str) -> io::Result<()> {
        let fds: Vec<BorrowedFd<'_>> = self.0.iter().map(|it| it.listener.as_fd()).collect();
        let mut rest = line.as_bytes();
        let mut fds = fds.as_slice();
        while !rest.is_empty() {
            let sent = stream.async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
                let mut with = SendAncillaryBuffer::new(&mut space);
                if !fds.is_empty() && !with.push(SendAncillaryMessage::ScmRights(fds)) {
                    return Err(io::Error::other("too many sockets"));
                }
                let flags = SendFlags::NOSIGNAL;
                Ok(sendmsg(stream, &[IoSlice::new(rest)], &mut with, flags)?)
            });
            let sent = sent.await?;
            // They go with the first byte.
            fds = &[];
            rest = rest.get(sent..).unwrap_or_default();
        }
        Ok(())
    }

    /// Receives a line, and the descriptors that came with it. No byte behind the line may have
    /// been sent yet.
    ///
    /// # Errors
    /// The system's; an end in the middle, and a line that is too long.
    pub async fn receive(stream: &UnixStream) -> io::Result<(String, Vec<OwnedFd>)> {
        let (mut line, mut fds) = (Vec::new(), Vec::new());
        while line.last() != Some(&b'\n') {
            let mut buffer = [0; LINE_LIMIT_BYTES];
            let received = stream.async_io(Interest::READABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
                let mut with = RecvAncillaryBuffer::new(&mut space);
                let mut into = [IoSliceMut::new(&mut buffer)];
                let got = recvmsg(stream, &mut into, &mut with, RecvFlags::CMSG_CLOEXEC)?;
                for message in with.drain() {
                    if let RecvAncillaryMessage::ScmRights(more) = message {
                        fds.extend(more);
                    }
                }
                Ok(got.bytes)
            });
            match received.await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => line.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            }
            if line.len() > LINE_LIMIT_BYTES {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
        }
        let line = String::from_utf8(line);
        let line = line.map_err(|_binary| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok((line, fds))
    }
}

/// Whether doors accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Open,
    /// For now: what comes waits in the queue of its socket.
    Held,
    /// Never again.
    Left,
}

/// Holds the accept loops of all doors of a process, for as long as it is not clear who accepts.
#[derive(Clone, Debug)]
pub struct Gate {
    standing: watch::Sender<Standing>,
    doors: Arc<Mutex<Vec<Shared>>>,
}

/// A door's name, and its socket for as long as it is there.
type Shared = (&'static str, Weak<tokio::net::TcpListener>);

impl Default for Gate {
    fn default() -> Self {
        Self {
            standing: watch::Sender::new(Standing::Open),
            doors: Arc::default(),
        }
    }
}

impl Gate {
    /// Lets connections wait in the queues of their sockets.
    pub fn hold(&self) {
        self.standing.send_replace(Standing::Held);
    }

    /// Accepts again.
    pub fn open(&self) {
        self.standing.send_replace(Standing::Open);
    }

    /// Ends the accept loops: their sockets are another process's now.
    pub fn leave(&self) {
        self.standing.send_replace(Standing::Left);
    }

    /// Returns the sockets of all doors that are there, for another process.
    ///
    /// # Errors
    /// The system's.
    pub fn sockets(&self) -> io::Result<Sockets> {
        let doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sockets = Sockets::default();
        for (name, door) in doors.iter() {
            if let Some(door) = door.upgrade() {
                let shared = door.as_fd().try_clone_to_owned()?;
                sockets.add(*name, TcpListener::from(shared))?;
            }
        }
        Ok(sockets)
    }

    /// Notes a door.
    pub(super) fn enter(&self, name: &'static str, door: &Arc<tokio::net::TcpListener>) {
        let mut doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        doors.push((name, Arc::downgrade(door)));
    }

    /// Waits until doors may accept; tells whether they ever may.
    pub(super) async fn is_open(&self) -> bool {
        let mut standing = self.standing.subscribe();
        let known = standing.wait_for(|it| *it != Standing::Held).await;
        known.is_ok_and(|it| *it == Standing::Open)
    }

    /// Waits until doors may not accept.
    pub(super) async fn closing(&self) {
        let mut standing = self.standing.subscribe();
        // The sender is ours: it is there for as long as we are.
        drop(standing.wait_for(|it| *it != Standing::Open).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[test]
    fn a_socket_is_taken_by_name_or_by_address() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let (first, at) = listener();
        let (second, _) = listener();
        let mut sockets = Sockets::default();
        sockets.add("listen", first).unwrap();
        sockets.add("oshu-vault.socket", second).unwrap();
        let elsewhere: SocketAddr = "127.0.0.2:0".parse().unwrap();
        assert!(
            sockets.take("listen", elsewhere).is_none(),
            "bound to another address"
        );
        assert!(
            sockets.take("tls_listen", any).is_none(),
            "port 0 is no address"
        );
        let taken = sockets.take("listen", any).unwrap();
        assert_eq!(taken.local_addr().unwrap(), at);
        let left: Vec<_> = sockets.left().map(|(_, address)| address).collect();
        assert_eq!(left.len(), 1);
        assert!(sockets.take("admin_listen", left[0]).is_some());
        assert_eq!(sockets.left().count(), 0);
    }

    #[test]
    fn what_the_system_hands_in_comes_before_what_a_predecessor_sends() {
        let (own, at) = listener();
        let sent = own.try_clone().unwrap();
        let (mut given, mut spare) = (Sockets::default(), Sockets::default());
        given.add("", own).unwrap();
        spare.add("listen", sent).unwrap();
        given.append(spare);
        assert!(given.take("listen", at).is_some());
        assert_eq!(given.left().count(), 0, "the system's was taken");
        assert!(given.take("listen", at).is_some(), "the other is there yet");
    }

    #[test]
    fn what_does_not_listen_is_refused() {
        let other = rustix::net::socket(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::STREAM,
            None,
        );
        let refused = Sockets::default().add("listen", TcpListener::from(other.unwrap()));
        assert!(refused.unwrap_err().to_string().contains("does not listen"));
    }

    #[tokio::test]
    async fn sockets_travel_with_a_line() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut sockets = Sockets::default();
        let (first, at) = listener();
        let (second, also) = listener();
        sockets.add("listen", first).unwrap();
        sockets.add("admin_listen", second).unwrap();
        assert_eq!(sockets.names(), ["listen", "admin_listen"]);
        sockets.send(&ours, "a line\n").await.unwrap();
        drop(sockets);
        let (line, fds) = Sockets::receive(&theirs).await.unwrap();
        assert_eq!(line, "a line\n");
        let bound: Vec<_> = fds
            .into_iter()
            .map(|fd| TcpListener::from(fd).local_addr().unwrap())
            .collect();
        assert_eq!(bound, [at, also]);
        drop(ours);
        let ended = Sockets::receive(&theirs).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn a_gate_holds_opens_and_closes_for_good() {
        let gate = Gate::default();
        assert!(gate.is_open().await);
        gate.hold();
        gate.closing().await;
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.is_open().await }
        });
        gate.open();
        assert!(waiting.await.unwrap());
        gate.leave();
        gate.closing().await;
        assert!(!gate.is_open().await);
    }
}
