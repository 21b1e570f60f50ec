//! A workload that speaks HTTP/2 through a tunnel, by a library that keeps to the rules.
//!
//! What breaks the rules is written by the scripts beside the tests. Streams end only when a test
//! ends them, so that a test can hold one open.

use std::future::poll_fn;

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request, Uri, Version};
use rustls::pki_types::ServerName;
use tokio::task::JoinHandle;

use super::h2_origin::{Lines, header_map, lines, send_data};
use super::{Workload, within};

/// An HTTP/2 connection through a tunnel.
pub(crate) struct H2Client {
    send: SendRequest<Bytes>,
    authority: String,
    connection: JoinHandle<Result<(), h2::Error>>,
}

/// One answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct H2Answer {
    pub(crate) status: u16,
    pub(crate) fields: Lines,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Lines,
}

impl H2Answer {
    /// Returns the value of a field that stands once; nothing if it is not there.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.fields.iter().filter(|(field, _)| field == name);
        let value = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "{name} stands twice: {self:?}");
        value
    }

    /// Returns the body as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a body in UTF-8")
    }

    /// Returns the stable code of one of our own refusals, which must be a complete one.
    pub(crate) fn code(&self) -> String {
        let body: serde_json::Value =
            serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON in {self:?}"));
        assert!(self.header("proxy-status").is_some(), "{self:?}");
        assert!(body["message"].is_string(), "{self:?}");
        body["code"].as_str().unwrap_or_default().to_owned()
    }
}

impl Workload {
    /// Opens a tunnel and speaks HTTP/2 in it.
    pub(crate) async fn h2(&self, target: &str) -> H2Client {
        self.h2_with(target, &Builder::new()).await
    }

    /// Opens a tunnel and speaks HTTP/2 in it, with settings of the test's choice.
    pub(crate) async fn h2_with(&self, target: &str, builder: &Builder) -> H2Client {
        let (host, port) = target.rsplit_once(':').expect("host:port");
        let name = ServerName::try_from(host.to_owned()).expect("a server name");
        let tunnel = self.tunnel(target).await;
        let tls = self
            .handshake(tunnel.into_io(), name, &["h2", "http/1.1"])
            .await
            .expect("TLS in the tunnel");
        assert_eq!(
            tls.get_ref().1.alpn_protocol(),
            Some(&b"h2"[..]),
            "the proxy takes HTTP/2"
        );
        let (send, connection) = within("an h2 handshake", builder.handshake(tls))
            .await
            .expect("HTTP/2 in the tunnel");
        let authority = if port == "443" { host } else { target };
        H2Client {
            send,
            authority: authority.to_owned(),
            connection: tokio::spawn(connection),
        }
    }
}

impl H2Client {
    /// Makes a request for a path of the host that the tunnel leads to.
    pub(crate) fn request(&self, method: &str, path: &str, fields: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::new(());
        *request.version_mut() = Version::HTTP_2;
        *request.method_mut() = Method::from_bytes(method.as_bytes()).expect("a method");
        let uri = Uri::builder()
            .scheme("https")
            .authority(self.authority.as_str())
            .path_and_query(path);
        *request.uri_mut() = uri.build().expect("a target");
        *request.headers_mut() = header_map(fields);
        request
    }

    /// Begins a stream; `end` says that the request has no body.
    pub(crate) async fn open(
        &self,
        request: Request<()>,
        end: bool,
    ) -> Result<H2Stream, h2::Error> {
        let ready = within("room for a stream", self.send.clone().ready()).await;
        let (answer, send) = ready?.send_request(request, end)?;
        Ok(H2Stream {
            answer: Some(answer),
            send,
            body: None,
            head: H2Answer::default(),
        })
    }

    /// Sends a whole request and reads its whole answer.
    pub(crate) async fn try_ask(
        &self,
        (method, path): (&str, &str),
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> Result<H2Answer, h2::Error> {
        let request = self.request(method, path, fields);
        let mut stream = self.open(request, body.is_empty()).await?;
        if !body.is_empty() {
            // An answer may come before the body is through; then the rest is not wanted.
            let bytes = Bytes::copy_from_slice(body);
            let mut send = stream.send;
            let upload = tokio::spawn(async move { send_data(&mut send, bytes, true).await });
            let answer = stream.answer.take().expect("once").await;
            let read = read_answer(answer?).await;
            let _sent = upload.await;
            return read;
        }
        stream.answer().await
    }

    /// Sends a whole request and reads its whole answer, which must come.
    pub(crate) async fn ask(
        &self,
        (method, path): (&str, &str),
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> H2Answer {
        let case = format!("{method} {path}");
        within(&case, self.try_ask((method, path), fields, body))
            .await
            .unwrap_or_else(|error| panic!("{case}: {error}"))
    }

    /// Sends a GET and reads its whole answer, which must come.
    pub(crate) async fn get(&self, path: &str) -> H2Answer {
        self.ask(("GET", path), &[], b"").await
    }

    /// Begins a GET and leaves it open.
    pub(crate) async fn begin(&self, path: &str) -> H2Stream {
        let request = self.request("GET", path, &[]);
        self.open(request, true).await.expect("a stream")
    }

    /// Begins a request with a body and leaves it open.
    pub(crate) async fn upload(&self, path: &str, fields: &[(&str, &str)]) -> H2Stream {
        let request = self.request("POST", path, fields);
        self.open(request, false).await.expect("a stream")
    }

    /// Returns how many streams the other side allows at once.
    pub(crate) fn max_streams(&self) -> usize {
        self.send.current_max_send_streams()
    }

    /// Tells whether the other side offers web sockets on streams (RFC 8441).
    pub(crate) fn has_extended_connect(&self) -> bool {
        self.send.is_extended_connect_protocol_enabled()
    }

    /// Waits until the other side ends the connection, which is kept in use until then.
    pub(crate) async fn wait_closed(&mut self) -> Result<(), h2::Error> {
        within("the end of the connection", &mut self.connection)
            .await
            .expect("the connection's task")
    }

    /// Drops the connection without a word.
    pub(crate) async fn vanish(self) {
        self.connection.abort();
        let _ended = self.connection.await;
    }
}

/// One stream of a client, open until a test ends it.
pub(crate) struct H2Stream {
    answer: Option<ResponseFuture>,
    pub(crate) send: SendStream<Bytes>,
    body: Option<RecvStream>,
    head: H2Answer,
}

impl H2Stream {
    /// Sends a piece of the request; false once nobody takes it.
    pub(crate) async fn push(&mut self, bytes: impl Into<Bytes>) -> bool {
        within("a piece", send_data(&mut self.send, bytes.into(), false)).await
    }

    /// Sends the last piece of the request.
    pub(crate) async fn end(&mut self, bytes: impl Into<Bytes>) -> bool {
        within(
            "the last piece",
            send_data(&mut self.send, bytes.into(), true),
        )
        .await
    }

    /// Ends the request with trailers.
    pub(crate) fn trailers(&mut self, fields: &[(&str, &str)]) {
        self.send
            .send_trailers(header_map(fields))
            .expect("trailers");
    }

    /// Waits for the head of the answer.
    pub(crate) async fn head(&mut self) -> Result<H2Answer, h2::Error> {
        if let Some(answer) = self.answer.take() {
            let (parts, body) = within("the head of an answer", answer).await?.into_parts();
            self.head = H2Answer {
                status: parts.status.as_u16(),
                fields: lines(&parts.headers),
                ..H2Answer::default()
            };
            self.body = Some(body);
        }
        Ok(self.head.clone())
    }

    /// Waits for the next piece of the answer; nothing at its end.
    pub(crate) async fn piece(&mut self) -> Option<Result<Bytes, h2::Error>> {
        let body = self.body.as_mut().expect("the head was read");
        let piece = within("a piece of an answer", body.data()).await;
        if let Some(Ok(piece)) = &piece {
            let _released = body.flow_control().release_capacity(piece.len());
        }
        piece
    }

    /// Waits for the next piece, which must come, and must be this one.
    pub(crate) async fn expect_piece(&mut self, expected: &str) {
        let mut read = Vec::new();
        while read.len() < expected.len() {
            let piece = self.piece().await.expect("a piece").expect("a piece");
            read.extend_from_slice(&piece);
        }
        assert_eq!(String::from_utf8_lossy(&read), expected);
    }

    /// Waits for the end of the answer, before which nothing may come.
    pub(crate) async fn expect_end(&mut self) {
        while let Some(piece) = self.piece().await {
            let piece = piece.expect("an end in good order");
            assert!(piece.is_empty(), "{}", String::from_utf8_lossy(&piece));
        }
    }

    /// Waits for the rest of the answer, and returns all of it.
    pub(crate) async fn answer(mut self) -> Result<H2Answer, h2::Error> {
        let mut answer = self.head().await?;
        while let Some(piece) = self.piece().await {
            answer.body.extend_from_slice(&piece?);
        }
        let trailers = self.body.as_mut().expect("a body").trailers();
        let trailers = within("trailers", trailers).await?;
        answer.trailers = trailers.as_ref().map(lines).unwrap_or_default();
        Ok(answer)
    }

    /// Gives the stream up.
    pub(crate) fn reset(&mut self, code: Reason) {
        self.send.send_reset(code);
    }

    /// Waits until the other side gives the stream up and returns its code.
    pub(crate) async fn wait_reset(&mut self) -> u32 {
        let reset = poll_fn(|cx| self.send.poll_reset(cx));
        let code = within("a reset", reset).await;
        code.map_or(u32::MAX, u32::from)
    }
}

async fn read_answer(answer: http::Response<RecvStream>) -> Result<H2Answer, h2::Error> {
    let (parts, mut body) = answer.into_parts();
    let mut answer = H2Answer {
        status: parts.status.as_u16(),
        fields: lines(&parts.headers),
        ..H2Answer::default()
    };
    while let Some(piece) = body.data().await {
        let piece = piece?;
        let _released = body.flow_control().release_capacity(piece.len());
        answer.body.extend_from_slice(&piece);
    }
    let trailers = body.trailers().await?;
    answer.trailers = trailers.as_ref().map(lines).unwrap_or_default();
    Ok(answer)
}
