//! Two connections joined: bytes go both ways as they come, until both sides have ended.
//!
//! Nothing is understood here: it carries a WebSocket after its 101, and a tunnel that is passed
//! through. Each direction has one buffer, and none while nothing comes; it is read only when all
//! of it was written, so that the slower side sets the pace. The end of one direction is passed on
//! alone; any other end resets both connections, so that a cut never passes for an end. Called by
//! `upgrade` and `passthrough`.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::audit::Decision;
use crate::wire::Connection;

/// Why a splice ended before both of its sides had, for the audit record.
pub(super) type Cut = (Decision, &'static str);

const CLIENT_GONE: Cut = (Decision::Aborted, "client_gone");
const IDLE: Cut = (Decision::Aborted, "idle");
const STALLED: Cut = (Decision::Aborted, "stalled");
const UPSTREAM_CUT: Cut = (Decision::Failed, "upstream_cut");

/// How long a splice may stand still.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// With no byte in either direction.
    pub(super) idle: Duration,
    /// With bytes ready for a side that takes none of them, whatever the other direction does.
    pub(super) stall: Duration,
}

/// Joins two connections until both sides have ended. What was read from either before goes first.
/// `moved` is told how many bytes went up and down so far.
///
/// # Errors
/// The [`Cut`], where a side failed or a limit passed.
pub(super) async fn run(
    down: &mut Connection,
    up: &mut Connection,
    limits: Limits,
    mut moved: impl FnMut(u64, u64),
) -> Result<(), Cut> {
    // Also for a cut from outside, which drops this future and both connections with it.
    down.reset_when_dropped(true);
    up.reset_when_dropped(true);
    let (mut upward, mut downward) = (Way::new(), Way::new());
    let mut watch = Watch::new(limits);
    let mut lost = None;
    let mut upward_first = false;
    poll_fn(|cx| {
        // In turns: one direction alone could use up the task's budget every time.
        upward_first = !upward_first;
        for is_upward in [upward_first, !upward_first] {
            let (polled, sender, receiver) = if is_upward {
                let polled = upward.poll(cx, down, up, lost.is_some());
                (polled, CLIENT_GONE, UPSTREAM_CUT)
            } else {
                let polled = downward.poll(cx, up, down, lost.is_some());
                (polled, UPSTREAM_CUT, CLIENT_GONE)
            };
            match polled {
                Poll::Ready(Err(Failed::Sender)) => {
                    return Poll::Ready(Err(lost.unwrap_or(sender)));
                }
                // What the receiver has still to say is passed on.
                Poll::Ready(Err(Failed::Receiver)) => lost = lost.or(Some(receiver)),
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        moved(upward.taken, downward.taken);
        if upward.is_over() && downward.is_over() {
            return Poll::Ready(lost.map_or(Ok(()), Err));
        }
        watch.poll(cx, [&upward, &downward]).map(Err)
    })
    .await?;
    down.reset_when_dropped(false);
    up.reset_when_dropped(false);
    Ok(())
}

/// Which side of a direction failed.
enum Failed {
    Sender,
    Receiver,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The sender has ended; the receiver is being told.
    Ending,
    Ended,
    /// The receiver takes nothing any more.
    Lost,
}

/// One direction.
struct Way {
    state: State,
    /// How many bytes the receiver has taken.
    taken: u64,
    /// Written, but perhaps not yet flushed.
    dirty: bool,
    /// The receiver does not take what is ready for it.
    blocked: bool,
    /// When the last byte was taken, or when the receiver began to take none.
    since: Instant,
}

impl Way {
    fn new() -> Self {
        Self {
            state: State::Open,
            taken: 0,
            dirty: false,
            blocked: false,
            since: Instant::now(),
        }
    }

    fn is_over(&self) -> bool {
        matches!(self.state, State::Ended | State::Lost)
    }

    /// Moves bytes until one side is not ready. Ready when the direction is over. Where the other
    /// one was `lost`, the end of this sender is that of a side that failed, and is not passed on.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Connection,
        to: &mut Connection,
        lost: bool,
    ) -> Poll<Result<(), Failed>> {
        while self.state == State::Open {
            if !from.input.is_empty() {
                let written = to.poll_write(cx, &from.input);
                let count = ready!(self.taken_by(written))?;
                from.input.advance(count);
                (self.taken, self.dirty) = (self.taken + count as u64, true);
                self.since = Instant::now();
                continue;
            }
            match from.poll_fill(cx) {
                Poll::Ready(Ok(0)) if !lost => self.state = State::Ending,
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(Ok(_) | Err(_)) => return Poll::Ready(Err(Failed::Sender)),
                Poll::Pending => {
                    // Whoever waits, waits without a buffer.
                    from.input = BytesMut::new();
                    if self.dirty {
                        let flushed = to.poll_flush(cx);
                        ready!(self.taken_by(flushed))?;
                        self.dirty = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        if self.state == State::Ending {
            let closed = to.poll_close(cx);
            self.note(closed.is_pending());
            // A receiver that fails has no use for the news.
            let _told = ready!(closed);
            self.state = State::Ended;
        }
        Poll::Ready(Ok(()))
    }

    /// Notes whether the receiver took what was ready for it, and that it is lost if it failed.
    fn taken_by<T>(&mut self, polled: Poll<std::io::Result<T>>) -> Poll<Result<T, Failed>> {
        self.note(polled.is_pending());
        polled.map_err(|_gone| {
            self.state = State::Lost;
            Failed::Receiver
        })
    }

    fn note(&mut self, blocked: bool) {
        if blocked && !self.blocked {
            self.since = Instant::now();
        }
        self.blocked = blocked;
    }
}

/// Watches for the time at which a splice has stood still for too long.
struct Watch {
    limits: Limits,
    /// May be set to an earlier time than that: setting it anew for every byte would cost more than
    /// to be woken once for nothing.
    alarm: Pin<Box<Sleep>>,
}

impl Watch {
    fn new(limits: Limits) -> Self {
        let alarm = Box::pin(sleep_until(Instant::now() + limits.idle.min(limits.stall)));
        Self { limits, alarm }
    }

    fn poll(&mut self, cx: &mut Context<'_>, ways: [&Way; 2]) -> Poll<Cut> {
        let (deadline, cut) = self.deadline(ways);
        if self.alarm.deadline() > deadline {
            self.alarm.as_mut().reset(deadline);
        }
        loop {
            ready!(self.alarm.as_mut().poll(cx));
            if Instant::now() >= deadline {
                return Poll::Ready(cut);
            }
            self.alarm.as_mut().reset(deadline);
        }
    }

    /// Returns when the first limit passes if nothing happens, and what it then is.
    fn deadline(&self, ways: [&Way; 2]) -> (Instant, Cut) {
        let [upward, downward] = ways;
        let idle = upward.since.max(downward.since) + self.limits.idle;
        let blocked = ways.into_iter().filter(|way| way.blocked);
        match blocked.map(|way| way.since + self.limits.stall).min() {
            Some(stall) => (stall.min(idle), STALLED),
            None => (idle, IDLE),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::task::JoinHandle;

    use super::*;

    const SMALL: usize = 64;
    const LIMITS: Limits = Limits {
        idle: Duration::from_mins(10),
        stall: Duration::from_mins(5),
    };

    /// The two far ends of a splice, and what becomes of it: the bytes up and down, and the end.
    struct Spliced {
        client: DuplexStream,
        origin: DuplexStream,
        done: JoinHandle<((u64, u64), Result<(), Cut>)>,
    }

    /// Splices two pairs; `early` was read from each before.
    fn splice(early: (&'static [u8], &'static [u8])) -> Spliced {
        let ((client, down), (origin, up)) = (duplex(SMALL), duplex(SMALL));
        let done = tokio::spawn(async move {
            let mut down = Connection::new(Box::new(down));
            let mut up = Connection::new(Box::new(up));
            down.input.extend_from_slice(early.0);
            up.input.extend_from_slice(early.1);
            let mut counted = (0, 0);
            let moved = |up, down| counted = (up, down);
            let ended = run(&mut down, &mut up, LIMITS, moved).await;
            assert!(down.input.capacity() <= 64 * 1024 && up.input.capacity() <= 64 * 1024);
            (counted, ended)
        });
        Spliced {
            client,
            origin,
            done,
        }
    }

    #[tokio::test]
    async fn both_ways_carry_all_bytes_and_each_ends_alone() {
        let Spliced {
            mut client,
            mut origin,
            done,
        } = splice((b"early up ", b"early down "));
        let long: Vec<u8> = (0..100_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let upload = async {
            client.write_all(&long).await.unwrap();
            client.shutdown().await.unwrap();
            let mut all = Vec::new();
            client.read_to_end(&mut all).await.unwrap();
            all
        };
        let answer = async {
            let mut all = Vec::new();
            origin.read_to_end(&mut all).await.unwrap();
            // The client has ended, and still hears what comes.
            origin.write_all(b"late").await.unwrap();
            origin.shutdown().await.unwrap();
            all
        };
        let (came_down, came_up) = tokio::join!(upload, answer);
        assert_eq!(came_down, b"early down late");
        assert!(came_up == [b"early up ".as_slice(), &long].concat());
        let counted = (came_up.len() as u64, came_down.len() as u64);
        assert_eq!(done.await.unwrap(), (counted, Ok(())));
    }

    #[tokio::test]
    async fn silence_and_a_side_that_takes_nothing_have_each_their_limit() {
        let (minute, begin) = (Duration::from_mins(1), Instant::now());
        let way = |minutes, blocked| Way {
            since: begin + minute * minutes,
            blocked,
            ..Way::new()
        };
        let watch = Watch::new(LIMITS);
        for (upward, downward, minutes, cut) in [
            (way(0, false), way(0, false), 10, IDLE),
            (way(3, false), way(1, false), 13, IDLE),
            (way(1, false), way(3, false), 13, IDLE),
            // The other direction moves, and does not count for the one that stands.
            (way(1, true), way(5, false), 6, STALLED),
            (way(5, false), way(1, true), 6, STALLED),
            (way(5, true), way(1, true), 6, STALLED),
        ] {
            let (deadline, ended) = watch.deadline([&upward, &downward]);
            let after = (deadline - begin).as_secs() / 60;
            assert_eq!((after, ended), (minutes, cut));
        }
        let limits = Limits {
            idle: minute,
            ..LIMITS
        };
        let (deadline, _) = Watch::new(limits).deadline([&way(0, true), &way(0, false)]);
        assert_eq!(deadline, begin + minute, "the shorter of both limits");
    }

    #[tokio::test]
    async fn the_end_of_a_side_that_failed_is_not_passed_on_as_one() {
        for lost in [false, true] {
            let ((ended, from), (mut hears, to)) = (duplex(SMALL), duplex(SMALL));
            drop(ended);
            let mut from = Connection::new(Box::new(from));
            let mut to = Connection::new(Box::new(to));
            let mut way = Way::new();
            let polled = poll_fn(|cx| way.poll(cx, &mut from, &mut to, lost)).await;
            assert_eq!(matches!(polled, Err(Failed::Sender)), lost);
            let heard = tokio::time::timeout(Duration::ZERO, hears.read(&mut [0])).await;
            assert_eq!(heard.is_err(), lost, "an end in good order");
        }
    }

    #[tokio::test]
    async fn a_receiver_that_left_is_heard_to_its_end_and_is_no_good_end() {
        for client_left in [true, false] {
            let Spliced {
                mut client,
                mut origin,
                done,
            } = splice((b"", b""));
            // The one that leaves had something to say before.
            let (mut stays, mut leaves) = if client_left {
                client.write_all(b"last").await.unwrap();
                (origin, client)
            } else {
                origin.write_all(b"last").await.unwrap();
                (client, origin)
            };
            leaves.flush().await.unwrap();
            drop(leaves);
            let mut heard = [0; 4];
            stays.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"last");
            stays.write_all(b"into the void").await.unwrap();
            drop(stays);
            let expected = if client_left {
                CLIENT_GONE
            } else {
                UPSTREAM_CUT
            };
            assert_eq!(done.await.unwrap().1, Err(expected));
        }
    }
}
