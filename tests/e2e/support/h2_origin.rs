//! An origin that speaks HTTP/2: it records every request by its parts and answers by script.
//!
//! A script runs for each stream and has the stream in its hands: pieces, trailers, resets, GOAWAY.
//! What is recorded is what arrived on the wire, field by field, whatever the script makes of it.

use std::collections::HashSet;
use std::future::{Future, poll_fn};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Response};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;

use super::ca::{Minting, TestCa};
use super::within;

/// Field lines in their order, names as they travel.
pub(crate) type Lines = Vec<(String, String)>;

/// One request as an h2 origin read it.
#[derive(Clone, Debug, Default)]
pub(crate) struct H2Seen {
    /// The connection's number, from 0.
    pub(crate) conn: usize,
    pub(crate) method: String,
    pub(crate) scheme: Option<String>,
    pub(crate) authority: Option<String>,
    pub(crate) path: String,
    pub(crate) fields: Lines,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Lines,
    /// The whole request came, trailers included.
    pub(crate) whole: bool,
    /// The code by which the other side gave the stream up.
    pub(crate) reset: Option<u32>,
}

impl H2Seen {
    /// Returns the values of a field, in their order.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let found = self.fields.iter().filter(|(field, _)| field == name);
        found.map(|(_, value)| value.as_str()).collect()
    }

    /// Tells whether a text stands in any field or in the path.
    pub(crate) fn mentions(&self, text: &str) -> bool {
        let lines = self.fields.iter().chain(&self.trailers);
        self.path.contains(text)
            || lines
                .into_iter()
                .any(|(name, value)| name.contains(text) || value.contains(text))
    }
}

/// What an h2 origin recorded.
#[derive(Default)]
struct Records {
    requests: Vec<H2Seen>,
    connections: usize,
    ended: HashSet<usize>,
}

#[derive(Clone)]
struct Recorder {
    records: Arc<Mutex<Records>>,
    changed: watch::Sender<()>,
}

impl Recorder {
    fn change<T>(&self, change: impl FnOnce(&mut Records) -> T) -> T {
        let value = change(&mut self.records.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_replace(());
        value
    }
}

/// What a script asks of the connection that its stream is on.
enum Command {
    /// GOAWAY in good order: streams in flight end.
    Drain,
    /// GOAWAY with a code, and the end.
    Abort(Reason),
    /// The end without a word.
    Drop,
}

/// One stream in the hands of a script.
pub(crate) struct H2Exchange {
    index: usize,
    /// The head, as it arrived.
    pub(crate) head: H2Seen,
    body: RecvStream,
    respond: SendResponse<Bytes>,
    send: Option<SendStream<Bytes>>,
    connection: mpsc::UnboundedSender<Command>,
    recorder: Recorder,
}

impl H2Exchange {
    /// Returns the path that was asked for.
    pub(crate) fn path(&self) -> &str {
        &self.head.path
    }

    /// Reads and records the next piece of the body; nothing at its end, however it came.
    pub(crate) async fn read(&mut self) -> Option<Bytes> {
        match self.body.data().await {
            Some(Ok(piece)) => {
                let _taken = self.body.flow_control().release_capacity(piece.len());
                let bytes = piece.clone();
                self.record(|seen| seen.body.extend_from_slice(&bytes));
                Some(piece)
            }
            Some(Err(error)) => {
                let code = error.reason().map_or(u32::MAX, u32::from);
                self.record(|seen| seen.reset = Some(code));
                None
            }
            None => {
                let trailers = self.body.trailers().await;
                self.record(|seen| match trailers {
                    Ok(trailers) => {
                        seen.trailers = trailers.as_ref().map(lines).unwrap_or_default();
                        seen.whole = true;
                    }
                    Err(error) => {
                        seen.reset = Some(error.reason().map_or(u32::MAX, u32::from));
                    }
                });
                None
            }
        }
    }

    /// Reads and records the body to its end; tells whether that was a whole one.
    pub(crate) async fn read_all(&mut self) -> bool {
        while self.read().await.is_some() {}
        self.head.whole
    }

    /// Sends an interim answer.
    pub(crate) fn interim(&mut self, status: u16, fields: &[(&str, &str)]) {
        let answer = response(status, fields);
        let _sent = self.respond.send_informational(answer);
    }

    /// Sends the head of the answer; `end` says that nothing follows.
    pub(crate) fn answer_head(&mut self, status: u16, fields: &[(&str, &str)], end: bool) {
        let send = self.respond.send_response(response(status, fields), end);
        // A stream that is gone takes no answer.
        self.send = send.ok();
    }

    /// Sends a piece of the answer as the window allows; false once nobody takes it.
    pub(crate) async fn send(&mut self, bytes: impl Into<Bytes>) -> bool {
        match &mut self.send {
            Some(send) => send_data(send, bytes.into(), false).await,
            None => false,
        }
    }

    /// Sends the last piece of the answer.
    pub(crate) async fn end(&mut self, bytes: impl Into<Bytes>) -> bool {
        match &mut self.send {
            Some(send) => send_data(send, bytes.into(), true).await,
            None => false,
        }
    }

    /// Sends trailers, which end the answer.
    pub(crate) fn trailers(&mut self, fields: &[(&str, &str)]) {
        if let Some(send) = &mut self.send {
            let _sent = send.send_trailers(header_map(fields));
        }
    }

    /// Sends a whole answer.
    pub(crate) async fn answer(&mut self, status: u16, body: impl Into<Bytes>) {
        self.answer_head(status, &[], false);
        self.end(body).await;
    }

    /// Gives the stream up.
    pub(crate) fn reset(&mut self, code: Reason) {
        match &mut self.send {
            Some(send) => send.send_reset(code),
            None => self.respond.send_reset(code),
        }
    }

    /// Waits until the other side gives the stream up, records its code and returns it.
    pub(crate) async fn wait_reset(&mut self) -> u32 {
        let reset = poll_fn(|cx| match &mut self.send {
            Some(send) => send.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        });
        let code = reset.await.map_or(u32::MAX, u32::from);
        self.record(|seen| seen.reset = Some(code));
        code
    }

    /// Ends the connection in good order: what is in flight ends, nothing new is taken.
    pub(crate) fn go_away(&self) {
        let _sent = self.connection.send(Command::Drain);
    }

    /// Ends the connection with a code.
    pub(crate) fn go_away_with(&self, code: Reason) {
        let _sent = self.connection.send(Command::Abort(code));
    }

    /// Ends the connection without a word.
    pub(crate) fn drop_connection(&self) {
        let _sent = self.connection.send(Command::Drop);
    }

    fn record(&mut self, change: impl FnOnce(&mut H2Seen)) {
        let index = self.index;
        let seen = self.recorder.change(|records| {
            change(&mut records.requests[index]);
            let seen = &records.requests[index];
            (seen.whole, seen.reset)
        });
        (self.head.whole, self.head.reset) = seen;
    }
}

/// Sends bytes as the window of the stream allows; false if the stream is gone.
pub(super) async fn send_data(send: &mut SendStream<Bytes>, mut bytes: Bytes, end: bool) -> bool {
    while !bytes.is_empty() {
        send.reserve_capacity(bytes.len());
        let Some(Ok(room)) = poll_fn(|cx| send.poll_capacity(cx)).await else {
            return false;
        };
        let piece = bytes.split_to(room.min(bytes.len()));
        let last = end && bytes.is_empty();
        if send.send_data(piece, last).is_err() {
            return false;
        }
        if last {
            return true;
        }
    }
    !end || send.send_data(Bytes::new(), true).is_ok()
}

/// Returns the lines of a map in its order.
pub(super) fn lines(map: &HeaderMap) -> Lines {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let line = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        (name.as_str().to_owned(), text(value.as_bytes()))
    };
    map.iter().map(line).collect()
}

/// Makes a map of lines.
pub(super) fn header_map(fields: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        let name = http::HeaderName::from_bytes(name.as_bytes()).expect("a name");
        map.append(name, value.parse().expect("a value"));
    }
    map
}

fn response(status: u16, fields: &[(&str, &str)]) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status.try_into().expect("a status");
    *response.headers_mut() = header_map(fields);
    response
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Script = Arc<dyn Fn(H2Exchange) -> BoxFuture<()> + Send + Sync>;

/// An upstream server that speaks HTTP/2 only, and records.
pub(crate) struct H2Origin {
    address: SocketAddr,
    recorder: Recorder,
    task: tokio::task::JoinHandle<()>,
}

impl H2Origin {
    /// Starts an origin that reads every request and answers it with 200 and a short body.
    pub(crate) async fn echo_ok() -> Self {
        Self::script(|mut exchange| async move {
            if exchange.read_all().await {
                exchange.answer(200, "ok").await;
            }
        })
        .await
    }

    /// Starts an origin that runs a script for each stream.
    pub(crate) async fn script<F, R>(script: F) -> Self
    where
        F: Fn(H2Exchange) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        Self::set_up(|_settings| {}, script).await
    }

    /// Starts an origin with settings of its own.
    pub(crate) async fn set_up<F, R>(settings: fn(&mut Builder), script: F) -> Self
    where
        F: Fn(H2Exchange) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let script: Script = Arc::new(move |exchange| Box::pin(script(exchange)));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a port");
        let address = listener.local_addr().expect("an address");
        let recorder = Recorder {
            records: Arc::default(),
            changed: watch::Sender::new(()),
        };
        let acceptor = acceptor();
        let shared = recorder.clone();
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let index = shared.change(|records| {
                    records.connections += 1;
                    records.connections - 1
                });
                let (acceptor, script, shared) =
                    (acceptor.clone(), Arc::clone(&script), shared.clone());
                tokio::spawn(async move {
                    let mut builder = Builder::new();
                    builder.initial_window_size(1 << 20);
                    builder.initial_connection_window_size(1 << 22);
                    settings(&mut builder);
                    serve(tcp, &acceptor, &builder, &script, (index, &shared)).await;
                    shared.change(|records| records.ended.insert(index));
                });
            }
        });
        Self {
            address,
            recorder,
            task,
        }
    }

    /// Returns where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Returns the requests so far, in the order of their heads.
    pub(crate) fn requests(&self) -> Vec<H2Seen> {
        self.read(|records| records.requests.clone())
    }

    /// Returns the one request so far.
    pub(crate) fn request(&self) -> H2Seen {
        let mut requests = self.requests();
        assert_eq!(requests.len(), 1, "one request: {requests:#?}");
        requests.remove(0)
    }

    /// Returns the number of connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.read(|records| records.connections)
    }

    /// Waits until the requests meet a condition, and returns them.
    pub(crate) async fn wait(&self, what: &str, met: impl Fn(&[H2Seen]) -> bool) -> Vec<H2Seen> {
        self.wait_for(what, |records| met(&records.requests)).await;
        self.requests()
    }

    /// Waits until so many connections have ended.
    pub(crate) async fn wait_ended(&self, count: usize) {
        let what = "the end of a connection to the h2 origin";
        self.wait_for(what, |records| records.ended.len() >= count)
            .await;
    }

    /// Fails the test if any request arrived since `before`.
    pub(crate) fn expect_no_more_than(&self, before: usize, case: &str) {
        let requests = self.requests();
        assert_eq!(requests.len(), before, "{case}: {:#?}", requests.last());
    }

    async fn wait_for(&self, what: &str, met: impl Fn(&Records) -> bool) {
        let mut changed = self.recorder.changed.subscribe();
        let wait = async {
            while !self.read(&met) {
                changed.changed().await.expect("the origin lives");
            }
        };
        within(what, wait).await;
    }

    fn read<T>(&self, read: impl FnOnce(&Records) -> T) -> T {
        let records = &self.recorder.records;
        read(&records.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for H2Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn acceptor() -> TlsAcceptor {
    let resolver = Minting {
        ca: TestCa::shared(),
        change: |_params| {},
    };
    let mut tls = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    tls.alpn_protocols = vec![b"h2".to_vec()];
    TlsAcceptor::from(Arc::new(tls))
}

async fn serve(
    tcp: TcpStream,
    acceptor: &TlsAcceptor,
    builder: &Builder,
    script: &Script,
    (conn, recorder): (usize, &Recorder),
) {
    let _set = tcp.set_nodelay(true);
    let Ok(tls) = acceptor.accept(tcp).await else {
        return;
    };
    let Ok(mut connection) = builder.handshake::<_, Bytes>(tls).await else {
        return;
    };
    let (commands, mut asked) = mpsc::unbounded_channel();
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            Some(command) = asked.recv() => {
                match command {
                    Command::Drain => connection.graceful_shutdown(),
                    Command::Abort(code) => connection.abrupt_shutdown(code),
                    Command::Drop => return,
                }
                continue;
            }
        };
        let Some(Ok((request, respond))) = accepted else {
            return;
        };
        let (parts, body) = request.into_parts();
        let head = H2Seen {
            conn,
            method: parts.method.to_string(),
            scheme: parts.uri.scheme_str().map(str::to_owned),
            authority: parts.uri.authority().map(ToString::to_string),
            path: parts
                .uri
                .path_and_query()
                .map_or_else(String::new, ToString::to_string),
            fields: lines(&parts.headers),
            ..H2Seen::default()
        };
        let index = recorder.change(|records| {
            records.requests.push(head.clone());
            records.requests.len() - 1
        });
        let exchange = H2Exchange {
            index,
            head,
            body,
            respond,
            send: None,
            connection: commands.clone(),
            recorder: recorder.clone(),
        };
        tokio::spawn(script(exchange));
    }
}
