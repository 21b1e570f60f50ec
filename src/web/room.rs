//! The memory that bodies of requests may take: all together, and those of one owner.
//!
//! Room is taken for what has come and never for what was announced: who sends nothing holds
//! nothing, and nobody is kept out by it. A body is read whole, and what is done with it needs it
//! once more, so that it counts twice. What an owner is, is not known here. Called by the faces that
//! read bodies of those who may be many.

use std::collections::HashMap;
use std::hash::Hash;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body_util::BodyExt as _;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

/// How often a byte of a body stands in memory until its request is through.
const COPIES: usize = 2;

/// How much room there is.
#[derive(Clone, Copy, Debug)]
pub struct RoomSize {
    /// For all bodies together, in bytes of memory.
    pub all_bytes: usize,
    /// For those of one owner.
    pub part_bytes: usize,
    /// What is taken at once, in bytes of a body.
    pub step_bytes: usize,
    /// How long a body that has come so far waits for more room.
    pub wait: Duration,
}

/// What a body may be.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// Its length, in bytes.
    pub bytes: usize,
    /// How long it may take to arrive.
    pub whole: Duration,
    /// How long nothing of it may come.
    pub silence: Duration,
}

/// Says why a body was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// All room, or its owner's, is taken.
    #[error("there is no room for the body")]
    NoRoom,
    /// It did not come whole and in time.
    #[error("the body did not arrive")]
    Slow,
    /// It is longer than it may be.
    #[error("the body is too long")]
    TooLarge,
}

/// The room there is. Owners of whom there is no body take no memory.
#[derive(Debug)]
pub struct BodyRoom<K> {
    size: RoomSize,
    taken: Mutex<Taken<K>>,
    freed: Notify,
}

#[derive(Debug)]
struct Taken<K> {
    all: usize,
    parts: HashMap<K, usize>,
}

/// What one body takes; given back when it is dropped.
#[derive(Debug)]
pub struct HeldRoom<K: Clone + Eq + Hash> {
    room: Arc<BodyRoom<K>>,
    owner: K,
    bytes: usize,
}

impl<K: Clone + Eq + Hash> BodyRoom<K> {
    /// Makes room.
    pub fn new(size: RoomSize) -> Arc<Self> {
        let taken = Taken {
            all: 0,
            parts: HashMap::new(),
        };
        Arc::new(Self {
            size,
            taken: Mutex::new(taken),
            freed: Notify::new(),
        })
    }

    /// Returns how much is taken, in bytes of memory.
    pub fn taken(&self) -> usize {
        self.lock().all
    }

    /// Reads a body of an owner's whole, and holds room for it. What was announced of its length is
    /// believed for the last piece alone.
    ///
    /// # Errors
    /// See [`BodyError`]; nothing is held then.
    pub async fn read(
        self: &Arc<Self>,
        owner: K,
        headers: &HeaderMap,
        body: Body,
        limits: &BodyLimits,
    ) -> Result<(Bytes, HeldRoom<K>), BodyError> {
        let announced = headers.get(CONTENT_LENGTH);
        let announced = announced.and_then(|value| value.to_str().ok()?.parse().ok());
        let announced: Option<usize> = announced;
        if announced.is_some_and(|bytes| bytes > limits.bytes) {
            return Err(BodyError::TooLarge);
        }
        let held = HeldRoom {
            room: Arc::clone(self),
            owner,
            bytes: 0,
        };
        let read = timeout(limits.whole, held.collect(body, announced, limits));
        read.await.map_err(|_elapsed| BodyError::Slow)?
    }

    fn lock(&self) -> MutexGuard<'_, Taken<K>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash> HeldRoom<K> {
    async fn collect(
        mut self,
        mut body: Body,
        announced: Option<usize>,
        limits: &BodyLimits,
    ) -> Result<(Bytes, Self), BodyError> {
        // In pieces of a length that does not grow: there is no more memory than there is room.
        let mut pieces: Vec<Vec<u8>> = Vec::new();
        let (mut length, mut spare) = (0, 0);
        loop {
            let frame = timeout(limits.silence, body.frame()).await;
            let Some(frame) = frame.map_err(|_elapsed| BodyError::Slow)? else {
                break;
            };
            let frame = frame.map_err(|_ended| BodyError::Slow)?;
            let Ok(mut data) = frame.into_data() else {
                continue;
            };
            if data.len() > limits.bytes - length {
                return Err(BodyError::TooLarge);
            }
            while !data.is_empty() {
                if spare == 0 {
                    let step = self.room.size.step_bytes;
                    let missing = announced.map(|whole| whole.saturating_sub(length));
                    spare = missing.filter(|some| *some > 0).unwrap_or(step).min(step);
                    self.grow(spare.saturating_mul(COPIES)).await?;
                    pieces.push(Vec::with_capacity(spare));
                }
                let now = data.split_to(data.len().min(spare));
                spare -= now.len();
                length += now.len();
                if let Some(piece) = pieces.last_mut() {
                    piece.extend_from_slice(&now);
                }
            }
        }
        // Each piece goes as it is copied.
        let mut pieces = pieces.into_iter();
        let mut whole = pieces.next().unwrap_or_default();
        whole.reserve_exact(length - whole.len());
        for piece in pieces {
            whole.extend_from_slice(&piece);
        }
        whole.shrink_to_fit();
        let needed = length.saturating_mul(COPIES);
        self.give_back(self.bytes.saturating_sub(needed));
        Ok((whole.into(), self))
    }

    /// Takes more, and waits for it as long as may be.
    async fn grow(&mut self, bytes: usize) -> Result<(), BodyError> {
        let deadline = Instant::now() + self.room.size.wait;
        let room = Arc::clone(&self.room);
        loop {
            let mut freed = pin!(room.freed.notified());
            // Before the look, so that nothing is missed after it.
            freed.as_mut().enable();
            if self.try_grow(bytes) {
                return Ok(());
            }
            if room.size.wait.is_zero() {
                return Err(BodyError::NoRoom);
            }
            let waited = timeout_at(deadline, freed).await;
            waited.map_err(|_elapsed| BodyError::NoRoom)?;
        }
    }

    fn try_grow(&mut self, bytes: usize) -> bool {
        let size = self.room.size;
        let mut taken = self.room.lock();
        let part = taken.parts.get(&self.owner).copied().unwrap_or_default();
        if bytes > size.all_bytes.saturating_sub(taken.all)
            || bytes > size.part_bytes.saturating_sub(part)
        {
            return false;
        }
        taken.all += bytes;
        taken.parts.insert(self.owner.clone(), part + bytes);
        self.bytes += bytes;
        true
    }

    fn give_back(&mut self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.bytes -= bytes;
        {
            let mut taken = self.room.lock();
            taken.all -= bytes;
            if let Some(part) = taken.parts.get_mut(&self.owner) {
                *part -= bytes;
                if *part == 0 {
                    taken.parts.remove(&self.owner);
                }
            }
        }
        self.room.freed.notify_waiters();
    }
}

impl<K: Clone + Eq + Hash> Drop for HeldRoom<K> {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use http_body::Frame;
    use tokio::sync::mpsc;

    use super::*;

    const SIZE: RoomSize = RoomSize {
        all_bytes: 4096,
        part_bytes: 1024,
        step_bytes: 64,
        wait: Duration::ZERO,
    };
    const LIMITS: BodyLimits = BodyLimits {
        bytes: 512,
        whole: Duration::from_mins(5),
        silence: Duration::from_secs(10),
    };

    /// A body that comes as a test sends it, and ends when the test lets go.
    struct Sent(mpsc::UnboundedReceiver<Bytes>);

    impl http_body::Body for Sent {
        type Data = Bytes;
        type Error = std::io::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
            let data = self.0.poll_recv(cx);
            data.map(|data| data.map(|data| Ok(Frame::data(data))))
        }
    }

    type Reading = tokio::task::JoinHandle<Result<(Bytes, HeldRoom<u8>), BodyError>>;

    fn headers(announced: Option<usize>) -> HeaderMap {
        let length = announced.map(|bytes| (CONTENT_LENGTH, bytes.into()));
        length.into_iter().collect()
    }

    /// Begins to read a body; `sent` bytes of it have come when this returns.
    async fn begin(
        room: &Arc<BodyRoom<u8>>,
        owner: u8,
        announced: Option<usize>,
        sent: usize,
    ) -> (mpsc::UnboundedSender<Bytes>, Reading) {
        let (sender, receiver) = mpsc::unbounded_channel();
        if sent > 0 {
            sender.send(vec![owner; sent].into()).unwrap();
        }
        let room = Arc::clone(room);
        let body = Body::new(Sent(receiver));
        let headers = headers(announced);
        let reading = tokio::spawn(async move { room.read(owner, &headers, body, &LIMITS).await });
        // One thread: it runs until it waits.
        tokio::task::yield_now().await;
        (sender, reading)
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_not_come_holds_nothing() {
        let room = BodyRoom::new(SIZE);
        let mut silent = Vec::new();
        for number in 0..200 {
            silent.push(begin(&room, number % 4, Some(512), 0).await);
        }
        assert_eq!(room.taken(), 0);
        assert!(room.lock().parts.is_empty());
        // One byte holds a step, whatever was announced, and less where less is to come.
        let (_more, _first) = begin(&room, 9, Some(512), 1).await;
        assert_eq!(room.taken(), 2 * 64);
        let (_more, _second) = begin(&room, 9, Some(7), 1).await;
        assert_eq!(room.taken(), 2 * 64 + 2 * 7);
        let (sender, third) = begin(&room, 8, None, 65).await;
        assert_eq!(room.taken(), 2 * 64 + 2 * 7 + 4 * 64);
        // What is whole holds what it is.
        drop(sender);
        let (body, held) = third.await.unwrap().unwrap();
        assert_eq!((body.len(), held.bytes), (65, 2 * 65));
        drop(held);
        assert_eq!(room.taken(), 2 * 64 + 2 * 7);
    }

    #[tokio::test(start_paused = true)]
    async fn one_owner_has_a_part_and_all_have_the_whole() {
        let room = BodyRoom::new(SIZE);
        let mut held = Vec::new();
        for owner in 0..4 {
            held.push(begin(&room, owner, Some(512), 512).await);
            let (_, refused) = begin(&room, owner, Some(1), 1).await;
            let refused = refused.await.unwrap();
            assert_eq!(refused.unwrap_err(), BodyError::NoRoom, "{owner}");
        }
        assert_eq!(room.taken(), SIZE.all_bytes);
        let (_, refused) = begin(&room, 9, None, 1).await;
        assert_eq!(refused.await.unwrap().unwrap_err(), BodyError::NoRoom);
        let (sender, reading) = held.pop().unwrap();
        reading.abort();
        assert!(reading.await.is_err());
        drop(sender);
        let (sender, reading) = begin(&room, 9, None, 512).await;
        drop(sender);
        let (body, kept) = reading.await.unwrap().unwrap();
        assert_eq!(body, vec![9; 512]);
        for (_, reading) in &held {
            reading.abort();
        }
        for (_, reading) in held {
            assert!(reading.await.is_err());
        }
        assert_eq!(room.lock().parts.len(), 1);
        drop(kept);
        assert_eq!(room.taken(), 0);
        assert!(room.lock().parts.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_goes_on_when_there_is_room_and_not_for_ever() {
        let room = BodyRoom::new(RoomSize {
            wait: Duration::from_secs(5),
            ..SIZE
        });
        let (_, first) = begin(&room, 1, Some(512), 512).await;
        let (sender, waiting) = begin(&room, 1, Some(1), 1).await;
        drop(sender);
        let (_, first_held) = first.await.unwrap().unwrap();
        assert!(!waiting.is_finished());
        drop(first_held);
        let (body, held) = waiting.await.unwrap().unwrap();
        assert_eq!(body.len(), 1);
        drop(held);
        let (_, _first) = begin(&room, 1, Some(512), 512).await;
        let began = Instant::now();
        let (_, waiting) = begin(&room, 1, Some(1), 1).await;
        // The clock stands still but for waits: this one, and that of the body that is whole.
        let refused = waiting.await.unwrap();
        assert_eq!(refused.unwrap_err(), BodyError::NoRoom);
        assert_eq!(began.elapsed(), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_move_ends_and_so_does_one_that_creeps() {
        let room = BodyRoom::new(SIZE);
        let began = Instant::now();
        let (_more, reading) = begin(&room, 1, Some(512), 1).await;
        assert_eq!(reading.await.unwrap().unwrap_err(), BodyError::Slow);
        assert_eq!(began.elapsed(), LIMITS.silence);
        assert_eq!(room.taken(), 0);
        let began = Instant::now();
        let (sender, reading) = begin(&room, 1, Some(512), 1).await;
        let creep = tokio::spawn(async move {
            while sender.send(Bytes::from_static(b"x")).is_ok() {
                tokio::time::sleep(Duration::from_secs(9)).await;
            }
        });
        assert_eq!(reading.await.unwrap().unwrap_err(), BodyError::Slow);
        assert_eq!(began.elapsed(), LIMITS.whole);
        creep.await.unwrap();
        assert_eq!(room.taken(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_has_an_end() {
        let room = BodyRoom::new(SIZE);
        let limits = BodyLimits {
            bytes: 100,
            ..LIMITS
        };
        for (announced, length, expected) in [
            (Some(101), 1, Err(BodyError::TooLarge)),
            (None, 101, Err(BodyError::TooLarge)),
            (Some(5), 101, Err(BodyError::TooLarge)),
            (None, 100, Ok(100)),
            // What is announced wrongly is read all the same: the framing is another's matter.
            (Some(5), 70, Ok(70)),
            (Some(100), 0, Ok(0)),
        ] {
            let body = Body::from(vec![b'x'; length]);
            let read = room.read(1, &headers(announced), body, &limits).await;
            let read = read.map(|(body, held)| (body.len(), held.bytes));
            let expected = expected.map(|length| (length, 2 * length));
            assert_eq!(read, expected, "{announced:?} {length}");
            assert_eq!(room.taken(), 0);
        }
    }
}
