//! One end of a conversation: a byte stream with what was read from it and not yet used.
//!
//! Reading a head and filling a body buffer are bounded here, in bytes and in time. An end that
//! waits for its next head holds no buffer at all: most tunnels are idle most of the time. Called
//! by the listeners, the relay and the upstream pool.

use std::future::{Future, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};

use super::h1::{Error, HEAD_LIMIT_BYTES, HeadScanner};

/// How much is read at once, in bytes: one TLS record and its neighbour.
const READ_BYTES: usize = 32 * 1024;
/// How much is read at once while waiting for the head of a request, in bytes.
const HEAD_READ_BYTES: usize = 4 * 1024;
/// How much is read at once while waiting for the head of an answer, in bytes: most answers are
/// there whole.
const ANSWER_READ_BYTES: usize = 16 * 1024;
/// How much is read ahead of TLS, in bytes, while there is that much.
const AHEAD_READ_BYTES: usize = 64 * 1024;
/// The read that keeps the reading ahead going, in bytes; less is no long body any more.
const AHEAD_LEAST_BYTES: usize = 16 * 1024;
/// How much an end may send ahead while its exchange is answered, in bytes.
const AHEAD_LIMIT_BYTES: usize = 64 * 1024;
/// How much is read and thrown away before a connection is closed on its sender, in bytes.
const LINGER_BYTES: usize = 16 * 1024 * 1024;

/// How long an answer of our own may take to be taken.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// When an idle TCP connection is probed: first, then how often, and how often in vain.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_mins(1), Duration::from_secs(15), 4);

/// Any byte stream that can be read and written from one task at a time.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {
    /// Decides whether dropping the stream resets it, so that what was sent cannot pass for the
    /// whole.
    fn reset_when_dropped(&mut self, _reset: bool) {}
}

impl Stream for TcpStream {
    fn reset_when_dropped(&mut self, reset: bool) {
        let linger = reset.then_some(Duration::ZERO);
        if let Err(error) = SockRef::from(&*self).set_linger(linger) {
            tracing::debug!(%error, "a connection cannot be reset");
        }
    }
}

impl<T: Stream> Stream for tokio_rustls::server::TlsStream<T> {
    fn reset_when_dropped(&mut self, reset: bool) {
        self.get_mut().0.reset_when_dropped(reset);
    }
}

impl<T: Stream> Stream for tokio_rustls::client::TlsStream<T> {
    fn reset_when_dropped(&mut self, reset: bool) {
        self.get_mut().0.reset_when_dropped(reset);
    }
}

impl Stream for tokio::io::DuplexStream {}

/// Sets what every TCP connection of the proxy has, on either side: small writes leave at once,
/// since the peer's delayed acknowledgement would hold them back for 40 ms, and a peer that
/// vanished without a word is noticed.
///
/// # Errors
/// The system's.
pub fn tune(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let (first, every, times) = KEEPALIVE;
    let probes = TcpKeepalive::new()
        .with_time(first)
        .with_interval(every)
        .with_retries(times);
    SockRef::from(tcp).set_tcp_keepalive(&probes)
}

/// A byte stream of any kind.
pub type Io = Box<dyn Stream>;

/// Says why no head could be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The sender closed, or the deadline for a first byte passed, before any byte came.
    #[error("the peer sent nothing more")]
    Idle,
    /// The head did not arrive in time.
    #[error("the head did not arrive in time")]
    Late,
    /// The sender closed in the middle of a head.
    #[error("the connection closed in the middle of a head")]
    Cut,
    /// The head breaks a rule.
    #[error("the head is malformed")]
    Malformed(#[source] Error),
    /// The stream failed.
    #[error("the connection failed")]
    Io(#[source] io::Error),
}

/// A byte stream and the bytes read from it that nobody has used yet.
pub struct Connection {
    io: Io,
    /// Read, and not yet used.
    pub input: BytesMut,
    /// Wakes the wait for a head. It may be set to an earlier time than the wait ends at: setting
    /// it anew for each of many heads costs more than being woken once for nothing.
    alarm: Option<Pin<Box<Sleep>>>,
    /// The most bytes of a head that is read whole.
    head_limit: usize,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("input_bytes", &self.input.len())
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Wraps a stream.
    pub fn new(io: Io) -> Self {
        Self {
            io,
            input: BytesMut::new(),
            alarm: None,
            head_limit: HEAD_LIMIT_BYTES,
        }
    }

    /// Sets the most bytes of a head that [`Self::read_head`] reads.
    #[must_use]
    pub fn with_head_limit(mut self, bytes: usize) -> Self {
        self.head_limit = bytes;
        self
    }

    /// Gives the stream back, with what was read from it to be read again.
    pub fn into_replay(self) -> Replay {
        Replay {
            unread: self.input,
            io: self.io,
            ahead: false,
        }
    }

    /// Reads one head. `first_byte` bounds the wait for it to start, `whole` the time from its
    /// first byte to its last.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn read_head(
        &mut self,
        first_byte: Duration,
        whole: Duration,
    ) -> Result<Bytes, ReadError> {
        if self.input.is_empty() {
            self.input = BytesMut::new();
            let deadline = Instant::now() + first_byte;
            match poll_fn(|cx| self.poll_read_until(cx, deadline)).await {
                None | Some(Ok(0)) => return Err(ReadError::Idle),
                Some(Err(error)) => return Err(ReadError::Io(error)),
                Some(Ok(_)) => {}
            }
        }
        let mut scanner = HeadScanner::within(self.head_limit);
        if let Some(head) = self.take_head(&mut scanner)? {
            return Ok(head);
        }
        let deadline = Instant::now() + whole;
        loop {
            match poll_fn(|cx| self.poll_read_until(cx, deadline)).await {
                None => return Err(ReadError::Late),
                Some(Err(error)) => return Err(ReadError::Io(error)),
                Some(Ok(0)) => return Err(ReadError::Cut),
                Some(Ok(_)) => {}
            }
            if let Some(head) = self.take_head(&mut scanner)? {
                return Ok(head);
            }
        }
    }

    /// Takes a head off the input if it is there whole.
    ///
    /// # Errors
    /// [`ReadError::Malformed`] as soon as a line breaks a rule.
    pub fn take_head(&mut self, scanner: &mut HeadScanner) -> Result<Option<Bytes>, ReadError> {
        let length = scanner.scan(&self.input).map_err(ReadError::Malformed)?;
        Ok(length.map(|length| self.input.split_to(length).freeze()))
    }

    /// Waits for at least one byte of input, within the time given; `false` if none came.
    pub async fn wait_input(&mut self, within: Duration) -> bool {
        if !self.input.is_empty() {
            return true;
        }
        matches!(
            timeout_at(Instant::now() + within, self.read_some()).await,
            Ok(Ok(1..))
        )
    }

    /// Writes all bytes and flushes.
    ///
    /// # Errors
    /// The stream's, and `TimedOut` where the peer does not take the bytes in time.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let write = async {
            self.io.write_all(bytes).await?;
            self.io.flush().await
        };
        match timeout_at(Instant::now() + SEND_TIMEOUT, write).await {
            Err(_elapsed) => Err(io::ErrorKind::TimedOut.into()),
            Ok(written) => written,
        }
    }

    /// Decides whether dropping the connection resets it, so that its peer cannot take what it got
    /// for the whole. It is set while a body is under way that the end of the connection ends.
    pub fn reset_when_dropped(&mut self, reset: bool) {
        self.io.reset_when_dropped(reset);
    }

    /// Closes politely: says that nothing more comes, then reads what is on its way for a bounded
    /// time and size, so that the answer before it is not lost to a reset (RFC 9112 §9.6).
    pub async fn linger(&mut self, at_most: Duration) {
        let deadline = Instant::now() + at_most;
        let mut left = LINGER_BYTES;
        if !matches!(timeout_at(deadline, self.io.shutdown()).await, Ok(Ok(()))) {
            return;
        }
        self.input.clear();
        while let Ok(Ok(count @ 1..)) = timeout_at(deadline, self.read_some()).await {
            self.input.clear();
            left = left.saturating_sub(count);
            if left == 0 {
                return;
            }
        }
    }

    /// Reads something into the input; 0 at the end of the stream.
    ///
    /// # Errors
    /// The stream's.
    pub async fn read_some(&mut self) -> io::Result<usize> {
        poll_fn(|cx| self.poll_read_small::<HEAD_READ_BYTES>(cx)).await
    }

    /// Reads something into the input; nothing if it is too late.
    fn poll_read_until(
        &mut self,
        cx: &mut Context<'_>,
        deadline: Instant,
    ) -> Poll<Option<io::Result<usize>>> {
        if let Poll::Ready(read) = self.poll_read_small::<HEAD_READ_BYTES>(cx) {
            return Poll::Ready(Some(read));
        }
        let alarm = self
            .alarm
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if alarm.deadline() > deadline {
            alarm.as_mut().reset(deadline);
        }
        while alarm.as_mut().poll(cx).is_ready() {
            if alarm.deadline() >= deadline {
                return Poll::Ready(None);
            }
            alarm.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    /// Reads the start of an answer into the input; 0 at the end of the stream.
    ///
    /// # Errors
    /// The stream's.
    pub fn poll_read_answer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.poll_read_small::<ANSWER_READ_BYTES>(cx)
    }

    /// Reads through a buffer that lives only for the call, so that waiting costs no memory.
    fn poll_read_small<const BYTES: usize>(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut memory = [MaybeUninit::uninit(); BYTES];
        let mut buffer = ReadBuf::uninit(&mut memory);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
        self.input.extend_from_slice(buffer.filled());
        Poll::Ready(Ok(buffer.filled().len()))
    }

    /// Reads body bytes into the input; 0 at the end of the stream.
    ///
    /// # Errors
    /// The stream's.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.input.capacity() - self.input.len() < READ_BYTES / 2 {
            self.input.reserve(READ_BYTES);
        }
        let io = Pin::new(&mut self.io);
        tokio_util::io::poll_read_buf(io, cx, &mut self.input)
    }

    /// Watches an end that has nothing more to say for its going away. Bytes sent ahead are kept up
    /// to a bound; a sender that exceeds it counts as gone, since its end could not be seen.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.poll_closed(cx));
        Poll::Ready(())
    }

    /// Watches an end that may still be sending for its going away, as far as a bounded look ahead
    /// shows it. Returns whether it closed; false when the bound is reached.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        while self.input.len() < AHEAD_LIMIT_BYTES {
            match ready!(self.poll_read_small::<HEAD_READ_BYTES>(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(true),
                Ok(_) => {}
            }
        }
        Poll::Ready(false)
    }

    /// Tells whether an idle connection is still open and silent.
    pub fn is_quiet(&mut self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        // Outside of the task's budget, which would make a talking connection look silent.
        let read = poll_fn(|cx| self.poll_read_small::<HEAD_READ_BYTES>(cx));
        let silent = std::pin::pin!(unconstrained(read))
            .poll(&mut cx)
            .is_pending();
        silent && self.input.is_empty()
    }

    /// Writes some bytes.
    ///
    /// # Errors
    /// The stream's; writing nothing is an error of its own.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match ready!(Pin::new(&mut self.io).poll_write(cx, bytes)) {
            Ok(0) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            other => Poll::Ready(other),
        }
    }

    /// Flushes what was written.
    ///
    /// # Errors
    /// The stream's.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Says that nothing more will be written, once all that was written is flushed.
    ///
    /// # Errors
    /// The stream's.
    pub fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// Says that nothing more will be written, within a short time.
    pub async fn close(&mut self, within: Duration) {
        if timeout_at(Instant::now() + within, self.io.shutdown())
            .await
            .is_err()
        {
            tracing::debug!("a peer did not take the end of its connection in time");
        }
    }
}

/// A stream in front of TLS: its first bytes were read once and are read again, and long bodies
/// are read ahead.
///
/// TLS asks for a record at most, and for 4 KiB at first. Once a read brings all that was asked
/// for, the next one takes much more from the stream; a stream that is idle or carries small messages has no buffer here.
pub struct Replay {
    unread: BytesMut,
    io: Io,
    /// The last read brought all that was asked for.
    ahead: bool,
}

impl Replay {
    /// Wraps a stream of which nothing was read.
    pub fn new(io: Io) -> Self {
        Self {
            unread: BytesMut::new(),
            io,
            ahead: false,
        }
    }

    /// Reads from the stream to the caller, and notes whether there is more.
    fn poll_through(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
        self.ahead = buffer.remaining() == 0 && buffer.filled().len() > before;
        Poll::Ready(Ok(()))
    }
}

impl std::fmt::Debug for Replay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replay")
            .field("unread_bytes", &self.unread.len())
            .finish_non_exhaustive()
    }
}

impl Stream for Replay {
    fn reset_when_dropped(&mut self, reset: bool) {
        self.io.reset_when_dropped(reset);
    }
}

impl AsyncRead for Replay {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.unread.is_empty() {
            if !this.ahead {
                return this.poll_through(cx, buffer);
            }
            this.unread.reserve(AHEAD_READ_BYTES);
            let read = tokio_util::io::poll_read_buf(Pin::new(&mut this.io), cx, &mut this.unread);
            if !matches!(read, Poll::Ready(Ok(1..))) {
                // Whoever waits, waits without a buffer.
                this.unread = BytesMut::new();
                return read.map_ok(|_end| ());
            }
            this.ahead = this.unread.len() >= AHEAD_LEAST_BYTES;
        }
        let count = self.unread.len().min(buffer.remaining());
        buffer.put_slice(self.unread.get(..count).unwrap_or_default());
        self.unread.advance(count);
        if self.unread.is_empty() && !self.ahead {
            self.unread = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Replay {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, duplex};

    use super::*;

    fn poll_once<T>(future: impl Future<Output = T>) -> Poll<T> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        std::pin::pin!(future).poll(&mut cx)
    }

    #[tokio::test]
    async fn a_long_body_is_read_ahead_and_nothing_is_lost() {
        let (mut sender, receiver) = duplex(512 * 1024);
        let sent: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        sender.write_all(&sent).await.unwrap();
        let mut replay = Connection::new(Box::new(receiver)).into_replay();
        let (mut received, mut most) = (Vec::new(), 0);
        while received.len() < sent.len() {
            let mut piece = [0; 4096];
            let count = replay.read(&mut piece).await.unwrap();
            received.extend_from_slice(&piece[..count]);
            most = most.max(replay.unread.len());
        }
        assert!(received == sent);
        assert!(most > AHEAD_LEAST_BYTES, "{most}");
        assert!(most <= AHEAD_READ_BYTES, "{most}");
        assert!(poll_once(replay.read(&mut [0; 64])).is_pending());
        assert_eq!(replay.unread.capacity(), 0);
        sender.write_all(b"small").await.unwrap();
        drop(sender);
        let mut rest = Vec::new();
        replay.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"small");
    }

    #[tokio::test]
    async fn small_messages_pass_without_a_buffer() {
        let (mut sender, receiver) = duplex(4096);
        let mut replay = Replay::new(Box::new(receiver));
        for length in [1, 100, 4095] {
            sender.write_all(&vec![b'x'; length]).await.unwrap();
            assert_eq!(replay.read(&mut [0; 4096]).await.unwrap(), length);
            assert_eq!(replay.unread.capacity(), 0);
        }
    }

    #[tokio::test]
    async fn what_was_read_before_comes_first() {
        let (mut sender, receiver) = duplex(64);
        sender.write_all(b"first").await.unwrap();
        let mut connection = Connection::new(Box::new(receiver));
        connection.read_some().await.unwrap();
        sender.write_all(b"second").await.unwrap();
        drop(sender);
        let mut all = String::new();
        let mut replay = connection.into_replay();
        replay.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "firstsecond");
    }

    #[tokio::test]
    async fn each_wait_for_a_head_has_its_own_deadline() {
        let (mut sender, receiver) = duplex(4096);
        let mut connection = Connection::new(Box::new(receiver));
        let far = Duration::from_mins(10);
        // Sets the alarm; the waits after it are shorter, and each longer than the one before.
        assert!(poll_once(connection.read_head(far, far)).is_pending());
        for millis in [1, 20, 40] {
            let (wait, began) = (Duration::from_millis(millis), Instant::now());
            let late = connection.read_head(wait, far).await;
            assert!(matches!(late, Err(ReadError::Idle)), "{late:?}");
            assert!(began.elapsed() >= wait, "{millis}");
        }
        sender.write_all(b"GET").await.unwrap();
        let late = connection.read_head(far, Duration::from_millis(1)).await;
        assert!(matches!(late, Err(ReadError::Late)), "{late:?}");
        sender.write_all(b" / HTTP/1.1\r\n\r\nnext").await.unwrap();
        let head = connection.read_head(far, far).await.unwrap();
        assert_eq!(head, b"GET / HTTP/1.1\r\n\r\n".as_slice());
        assert_eq!(connection.input, b"next".as_slice());
    }
}
