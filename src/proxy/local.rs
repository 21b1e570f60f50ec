//! Origin-form requests: handed to the service that `app` gives, as `http` types.
//!
//! The head was read by the same strict reader as any other; the body is read as the service asks
//! for it; the answer is streamed. Proxy credentials mean nothing here.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use tokio::sync::mpsc;

use super::reject::{self, Refusal};
use super::{After, Config};
use crate::audit::{Decision, Handed};
use crate::serve::{BoxFuture, Peer};
use crate::shutdown::Drain;
use crate::wire::{
    Body, Connection, Framing, Io, Progress, ReadError, RequestHead, Version, closes,
    parse_request_within, request_framing,
};

/// How many pieces of a body wait for the service: it sets the pace.
const PIECES_AHEAD: usize = 1;

/// The error of an answer's body.
pub type LocalError = Box<dyn std::error::Error + Send + Sync>;
/// The body of an answer from our own routes.
pub type LocalBody = UnsyncBoxBody<Bytes, LocalError>;
/// Serves our own routes. The request's extensions hold the [`Peer`].
pub type Local =
    Arc<dyn Fn(http::Request<Upload>) -> BoxFuture<http::Response<LocalBody>> + Send + Sync>;

/// The body of a request to our own routes. It is read from the connection only as the service
/// asks for it, so that a caller who is refused costs no memory.
#[derive(Debug)]
pub struct Upload(mpsc::Receiver<Result<Bytes, LocalError>>);

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = LocalError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, LocalError>>> {
        let piece = self.0.poll_recv(cx);
        piece.map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

/// Serves our own routes, and nothing else.
#[derive(Clone)]
pub struct LocalServer {
    /// The routes.
    pub local: Local,
    /// The limits.
    pub config: Config,
    /// When to stop.
    pub drain: Drain,
}

impl std::fmt::Debug for LocalServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalServer")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl LocalServer {
    /// Serves one connection of a listener that is no proxy.
    pub async fn serve(self, io: Io, peer: Peer) {
        let mut down = Connection::new(io).with_head_limit(self.config.head.bytes);
        let mut wait = self.config.first_byte_timeout;
        loop {
            let block = tokio::select! {
                biased;
                block = down.read_head(wait, self.config.head_timeout) => block,
                () = self.drain.draining() => return,
            };
            let parsed = block.map(|block| parse_request_within(block, &self.config.head));
            let after = match parsed {
                Ok(Ok(head)) if head.target().first() == Some(&b'/') => {
                    self.answer(&mut down, head, &peer).await
                }
                Ok(Ok(_)) => {
                    let message = "this listener serves its own routes only";
                    refuse(&mut down, &Refusal::client(400, "bad_target", message)).await
                }
                Ok(Err(error)) | Err(ReadError::Malformed(error)) => {
                    refuse(&mut down, &Refusal::from(error)).await
                }
                Err(_gone) => return,
            };
            match after {
                After::KeepAlive => {}
                After::Close => return down.linger(self.config.linger_timeout).await,
                After::Gone => return,
            }
            wait = if peer.newcomer.is_known() {
                self.config.idle_timeout
            } else {
                self.config.first_byte_timeout
            };
        }
    }

    /// Serves one origin-form request.
    pub(super) async fn answer(
        &self,
        down: &mut Connection,
        head: RequestHead,
        peer: &Peer,
    ) -> After {
        self.answer_for(down, head, peer, None).await.after
    }

    /// Serves one origin-form request, whose record may have been begun already. Where it ends before
    /// the service had it, the record says how.
    pub(super) async fn answer_for(
        &self,
        down: &mut Connection,
        head: RequestHead,
        peer: &Peer,
        record: Option<&Handed>,
    ) -> Answered {
        let is_head = head.method() == b"HEAD";
        let takes_chunks = head.version == Version::Http11;
        let mut keep_alive = !closes(&head.fields, head.version)
            && head.version == Version::Http11
            && !self.drain.is_leaving();
        let (pieces, upload) = mpsc::channel(PIECES_AHEAD);
        let (mut request, framing) = match local_request(&head, peer, Upload(upload)) {
            Ok(request) => request,
            Err(refusal) => return refuse_for(down, &refusal, record).await,
        };
        if let Some(record) = record {
            request.extensions_mut().insert(record.clone());
        }
        let waits = head
            .fields
            .all("expect")
            .any(|v| v.eq_ignore_ascii_case(b"100-continue"));
        let unsent = framing != Framing::None && down.input.is_empty();
        if waits && unsent && down.send(b"HTTP/1.1 100 Continue\r\n\r\n").await.is_err() {
            return refuse_for(down, &Refusal::gone(), record).await;
        }
        let mut body = Body::new(framing).without_framing();
        let mut response = (self.local)(request);
        let answered = {
            let mut pump = std::pin::pin!(pump(down, &mut body, pieces));
            tokio::select! {
                biased;
                response = &mut response => Some(Ok(response)),
                pumped = &mut pump => pumped.err().map(Err),
            }
        };
        let response = match answered {
            Some(answered) => answered,
            None => match unless_gone(down, &mut response).await {
                Some(response) => Ok(response),
                None => Err(Refusal::gone()),
            },
        };
        let response = match response {
            Ok(response) => response,
            Err(refusal) => return refuse_for(down, &refusal, record).await,
        };
        let status = Some(response.status().as_u16());
        keep_alive &= body.is_done() && !peer.newcomer.overstays(self.config.stranger_limit());
        // Another process may have taken over meanwhile.
        keep_alive &= !self.drain.is_leaving();
        let after = match write(down, response, (is_head, takes_chunks, keep_alive)).await {
            Ok(()) if keep_alive => After::KeepAlive,
            Ok(()) => After::Close,
            Err(_gone) => After::Gone,
        };
        Answered { after, status }
    }
}

/// How a request to our own routes ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answered {
    pub(super) after: After,
    /// The status of the answer; none where nobody was there for one.
    pub(super) status: Option<u16>,
}

impl Answered {
    const GONE: Self = Self {
        after: After::Gone,
        status: None,
    };
}

/// Waits for the head of an answer, unless its reader goes away first: what is done for an answer
/// that may take minutes must end with whom it is for. What must not be left half done is a task of
/// its own.
async fn unless_gone(
    down: &mut Connection,
    response: &mut BoxFuture<http::Response<LocalBody>>,
) -> Option<http::Response<LocalBody>> {
    let mut is_open = true;
    poll_fn(|cx| {
        if let Poll::Ready(response) = response.as_mut().poll(cx) {
            return Poll::Ready(Some(response));
        }
        if is_open && let Poll::Ready(is_closed) = down.poll_closed(cx) {
            if is_closed {
                return Poll::Ready(None);
            }
            // It sends something else: it is there.
            is_open = false;
        }
        Poll::Pending
    })
    .await
}

/// Waits for the next frame of an answer, unless its reader goes away first: a stream may be silent
/// for long, and must not be held for nobody.
async fn unless_closed(
    down: &mut Connection,
    body: &mut Pin<Box<LocalBody>>,
) -> Result<Option<Result<Frame<Bytes>, LocalError>>, LocalError> {
    let mut is_open = true;
    poll_fn(|cx| {
        if let Poll::Ready(frame) = body.as_mut().poll_frame(cx) {
            return Poll::Ready(Ok(frame));
        }
        if is_open && let Poll::Ready(is_closed) = down.poll_closed(cx) {
            if is_closed {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::BrokenPipe).into()));
            }
            // It sent something else: it is there.
            is_open = false;
        }
        Poll::Pending
    })
    .await
}

/// Returns the next frame of an answer. While there is none, what was written before it leaves: the
/// head of a stream does not wait for its first event.
async fn next_frame(
    down: &mut Connection,
    body: &mut Pin<Box<LocalBody>>,
    written: &mut Vec<u8>,
) -> Result<Option<Result<Frame<Bytes>, LocalError>>, LocalError> {
    let ready = poll_fn(|cx| Poll::Ready(body.as_mut().poll_frame(cx))).await;
    if let Poll::Ready(frame) = ready {
        return Ok(frame);
    }
    if !written.is_empty() {
        down.send(written).await?;
        written.clear();
    }
    unless_closed(down, body).await
}

/// Makes the request that the service sees.
fn local_request(
    head: &RequestHead,
    peer: &Peer,
    upload: Upload,
) -> Result<(http::Request<Upload>, Framing), Refusal> {
    let framing = request_framing(head)?;
    let mut hosts = head.fields.all("host");
    let one_host = hosts.next().is_some() && hosts.next().is_none();
    if head.version == Version::Http11 && !one_host {
        return Err(Refusal::client(
            400,
            "bad_host",
            "Host is missing or repeated",
        ));
    }
    let mut builder = http::Request::builder()
        .method(head.method())
        .uri(head.target());
    for field in head.fields.iter() {
        builder = builder.header(field.name, field.value);
    }
    let mut request = builder.body(upload).map_err(|_malformed| {
        Refusal::client(
            400,
            "bad_target",
            "the request target or a field is malformed",
        )
    })?;
    request.extensions_mut().insert(peer.clone());
    Ok((request, framing))
}

/// Hands a body on piece by piece, until it is through or nobody wants it any more.
async fn pump(
    down: &mut Connection,
    body: &mut Body,
    pieces: mpsc::Sender<Result<Bytes, LocalError>>,
) -> Result<(), Refusal> {
    loop {
        let mut piece = Vec::new();
        let progress = body.step(&mut down.input, &mut piece)?;
        if !piece.is_empty() && pieces.send(Ok(piece.into())).await.is_err() {
            return Ok(());
        }
        match progress {
            Progress::Done => return Ok(()),
            Progress::Full => {}
            Progress::Hungry => {
                let read = tokio::select! {
                    read = poll_fn(|cx| down.poll_fill(cx)) => read,
                    () = pieces.closed() => return Ok(()),
                };
                if !matches!(read, Ok(1..)) {
                    return Err(Refusal::gone());
                }
            }
        }
    }
}

/// Refuses what did not reach the service, or ends with whoever left; the record says which, unless the
/// service has it.
async fn refuse_for(down: &mut Connection, refusal: &Refusal, record: Option<&Handed>) -> Answered {
    let is_gone = refusal.decision() == Decision::Aborted;
    if let Some(mut record) = record.and_then(Handed::take) {
        if !is_gone {
            record.status(refusal.status);
        }
        record.decision(refusal.decision(), refusal.code);
    }
    if is_gone {
        return Answered::GONE;
    }
    Answered {
        after: refuse(down, refusal).await,
        status: Some(refusal.status),
    }
}

async fn refuse(down: &mut Connection, refusal: &Refusal) -> After {
    match reject::send(down, refusal, false).await {
        Ok(()) => After::Close,
        Err(_gone) => After::Gone,
    }
}

/// Writes an answer, each piece of its body as it comes. To whom chunks mean nothing (HTTP/1.0) a body
/// of unknown length ends with the connection (RFC 9112 §6.3).
async fn write(
    down: &mut Connection,
    response: http::Response<LocalBody>,
    (is_head, takes_chunks, keep_alive): (bool, bool, bool),
) -> Result<(), LocalError> {
    let (parts, body) = response.into_parts();
    let mut body = Box::pin(body);
    let length = body.size_hint().exact();
    let bodyless = is_head || matches!(parts.status.as_u16(), 204 | 304);
    let mut text = format!(
        "HTTP/1.1 {} {}\r\n",
        parts.status.as_u16(),
        parts.status.canonical_reason().unwrap_or_default()
    )
    .into_bytes();
    for (name, value) in &parts.headers {
        let framing = [
            http::header::CONTENT_LENGTH,
            http::header::TRANSFER_ENCODING,
        ];
        if framing.contains(name) && !is_head {
            continue;
        }
        text.extend_from_slice(name.as_str().as_bytes());
        text.extend_from_slice(b": ");
        text.extend_from_slice(value.as_bytes());
        text.extend_from_slice(b"\r\n");
    }
    match length {
        _ if is_head || parts.status == http::StatusCode::NO_CONTENT => {}
        Some(length) => text.extend_from_slice(format!("content-length: {length}\r\n").as_bytes()),
        None if takes_chunks => text.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        None => {}
    }
    if !keep_alive {
        text.extend_from_slice(b"connection: close\r\n");
    }
    text.extend_from_slice(b"\r\n");
    let chunked = length.is_none() && takes_chunks;
    if bodyless {
        down.send(&text).await?;
        return Ok(());
    }
    let until_close = length.is_none() && !takes_chunks;
    if until_close {
        // What is cut must not pass for the whole.
        down.reset_when_dropped(true);
    }
    while let Some(frame) = next_frame(down, &mut body, &mut text).await? {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        if chunked && !data.is_empty() {
            text.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
        }
        text.extend_from_slice(&data);
        if chunked && !data.is_empty() {
            text.extend_from_slice(b"\r\n");
        }
        if length.is_none() || text.len() > 64 * 1024 {
            down.send(&text).await?;
            text.clear();
        }
    }
    if chunked {
        text.extend_from_slice(b"0\r\n\r\n");
    }
    down.send(&text).await?;
    if until_close {
        down.reset_when_dropped(false);
    }
    Ok(())
}
