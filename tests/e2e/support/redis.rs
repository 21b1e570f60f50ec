//! A Redis server of the test's own, and a relay before it that loses what a test wants lost.
//!
//! The server listens on a socket file in a folder of its own, so that no port can be taken; the
//! relay has a port of the system's choice that stays the same while servers come and go. What is
//! written to the server by hand goes past the relay.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, FromRedisValue, RedisConnectionInfo};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::{Stream, TestCa, contains, program, within};

/// A running server, or one that was killed and can come back.
pub(crate) struct Redis {
    folder: Arc<TempDir>,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Redis {
    /// Starts a server that flushes every change; nothing where none is installed and that may be.
    pub(crate) async fn start() -> Option<Self> {
        Self::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await
    }

    /// Starts a server with settings of the test's choice.
    pub(crate) async fn start_with(settings: &[&str]) -> Option<Self> {
        program("redis-server")?;
        let mut server = Self {
            folder: Arc::new(tempfile::tempdir().expect("a folder")),
            arguments: settings.iter().map(ToString::to_string).collect(),
            child: None,
        };
        server.run().await;
        Some(server)
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// Returns a file of the server's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts the process on what lies in the folder.
    pub(crate) async fn run(&mut self) {
        let _gone = std::fs::remove_file(self.socket());
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--daemonize", "no"]);
        command.arg("--unixsocket").arg(self.socket());
        command.arg("--dir").arg(self.folder.path());
        command.args(&self.arguments).stdin(Stdio::null());
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        self.child = Some(command.spawn().expect("a server"));
        within("the server", async {
            loop {
                if let Ok(mut link) = self.try_link().await
                    && redis::cmd("PING")
                        .query_async::<()>(&mut link)
                        .await
                        .is_ok()
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }

    /// Kills the process, as a crash would.
    pub(crate) async fn kill(&mut self) {
        let mut child = self.child.take().expect("a server that runs");
        child.kill().await.expect("it is killed");
    }

    /// Stops the process in the middle of whatever it does.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().and_then(Child::id).expect("it runs");
        let id = Pid::from_raw(id.try_into().expect("an id")).expect("an id");
        kill_process(id, signal).expect("a signal");
    }

    async fn try_link(&self) -> redis::RedisResult<MultiplexedConnection> {
        let stream = UnixStream::connect(self.socket()).await?;
        let login = RedisConnectionInfo::default().set_skip_set_lib_name();
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let (link, driver) = MultiplexedConnection::new_with_config(&login, stream, config).await?;
        tokio::spawn(driver);
        Ok(link)
    }

    /// Asks the server for something, past every relay.
    pub(crate) async fn ask<T: FromRedisValue>(&self, words: &[&[u8]]) -> T {
        let link = self.try_link().await.expect("a connection");
        Self::ask_over(link, words).await
    }

    /// The same on a server with a password.
    pub(crate) async fn ask_as<T: FromRedisValue>(&self, password: &[u8], words: &[&[u8]]) -> T {
        Self::ask_over(self.login(password).await, words).await
    }

    async fn login(&self, password: &[u8]) -> MultiplexedConnection {
        let mut link = self.try_link().await.expect("a connection");
        let mut login = redis::cmd("AUTH");
        login.arg(password);
        login.query_async::<()>(&mut link).await.expect("a login");
        link
    }

    async fn ask_over<T: FromRedisValue>(mut link: MultiplexedConnection, words: &[&[u8]]) -> T {
        let (first, rest) = words.split_first().expect("a command");
        let mut command = redis::cmd(std::str::from_utf8(first).expect("a name"));
        for word in rest {
            command.arg(*word);
        }
        let asked = within("an answer", command.query_async(&mut link)).await;
        asked.unwrap_or_else(|error| panic!("{error}"))
    }
}

impl Redis {
    /// Flips a bit of a row on a server with a password.
    pub(crate) async fn forge(&self, password: &[u8], key: &[u8], field: &[u8]) {
        let mut row: Vec<u8> = self.ask_as(password, &[b"HGET", key, field]).await;
        *row.last_mut().expect("a byte") ^= 1;
        let () = self.ask_as(password, &[b"HSET", key, field, &row]).await;
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if self.child.is_some() {
            // A process that was stopped takes its end all the same, and leaves nothing running.
            self.signal(Signal::KILL);
        }
    }
}

/// What a relay passes on.
#[derive(Default)]
struct Way {
    /// Whether announcements are lost: who listens to them hears nothing at all.
    is_silent: AtomicBool,
    /// Whether connections are refused.
    is_shut: AtomicBool,
    /// Everything that the node sent.
    sent: Mutex<Vec<u8>>,
    /// How many connections there were.
    connections: AtomicUsize,
    /// Whether connections on which everything is read get no answer for now.
    is_held: watch::Sender<bool>,
}

/// Stands between one node and a server.
pub(crate) struct Relay {
    address: std::net::SocketAddr,
    way: Arc<Way>,
    cut: watch::Sender<()>,
    task: JoinHandle<()>,
    is_tls: bool,
}

impl Relay {
    pub(crate) async fn to(server: &Redis) -> Self {
        Self::between(server, None).await
    }

    /// Ends TLS before the server, with a certificate for whatever name is asked for.
    pub(crate) async fn secure(server: &Redis, ca: &Arc<TestCa>) -> Self {
        Self::between(server, Some(ca.acceptor())).await
    }

    /// The same, with a certificate for another name.
    pub(crate) async fn named_otherwise(server: &Redis, ca: &Arc<TestCa>) -> Self {
        Self::between(server, Some(ca.acceptor_for("other.example.com"))).await
    }

    async fn between(server: &Redis, tls: Option<TlsAcceptor>) -> Self {
        let is_tls = tls.is_some();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (way, cut) = (Arc::new(Way::default()), watch::Sender::new(()));
        let (socket, mine, cuts) = (server.socket(), Arc::clone(&way), cut.clone());
        let folder = Arc::clone(&server.folder);
        let task = tokio::spawn(async move {
            let _kept = folder;
            while let Ok((stream, _)) = listener.accept().await {
                if mine.is_shut.load(Ordering::SeqCst) {
                    continue;
                }
                mine.connections.fetch_add(1, Ordering::SeqCst);
                let (socket, way, mut cut) = (socket.clone(), Arc::clone(&mine), cuts.subscribe());
                let tls = tls.clone();
                tokio::spawn(async move {
                    let stream: Box<dyn Stream> = match tls {
                        None => Box::new(stream),
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => Box::new(stream),
                            Err(_refused) => return,
                        },
                    };
                    let listens = AtomicBool::new(false);
                    let ends = async {
                        while cut.changed().await.is_ok() {
                            let is_silent = way.is_silent.load(Ordering::SeqCst);
                            let is_silenced = is_silent && listens.load(Ordering::SeqCst);
                            if is_silenced || way.is_shut.load(Ordering::SeqCst) {
                                return;
                            }
                        }
                    };
                    tokio::select! {
                        () = pass(stream, socket, &way, &listens) => {}
                        () = ends => {}
                    }
                });
            }
        });
        Self {
            address,
            way,
            cut,
            task,
            is_tls,
        }
    }

    /// Returns the URL of the server behind the relay.
    pub(crate) fn url(&self) -> String {
        if self.is_tls {
            return format!("rediss://localhost:{}", self.address.port());
        }
        format!("redis://{}", self.address)
    }

    /// Loses every announcement from here on.
    pub(crate) fn silence(&self) {
        self.way.is_silent.store(true, Ordering::SeqCst);
        self.cut.send_replace(());
    }

    /// Counts how often a text stood in what the node sent.
    pub(crate) fn mentions(&self, text: &str) -> usize {
        let sent = self.way.sent.lock().unwrap();
        let text = text.as_bytes();
        sent.windows(text.len())
            .filter(|part| *part == text)
            .count()
    }

    /// Returns how many connections the node has made.
    pub(crate) fn connections(&self) -> usize {
        self.way.connections.load(Ordering::SeqCst)
    }

    /// Holds back what is answered where everything is read, or lets it go.
    pub(crate) fn hold_pages(&self, is_held: bool) {
        self.way.is_held.send_replace(is_held);
    }

    /// Cuts what is open and takes nothing new, or takes it again.
    pub(crate) fn shut(&self, is_shut: bool) {
        self.way.is_shut.store(is_shut, Ordering::SeqCst);
        self.cut.send_replace(());
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
        self.cut.send_replace(());
    }
}

async fn pass(stream: Box<dyn Stream>, socket: PathBuf, way: &Way, listens: &AtomicBool) {
    let Ok(server) = UnixStream::connect(socket).await else {
        return;
    };
    let (mut from_node, mut to_node) = tokio::io::split(stream);
    let (mut from_server, mut to_server) = server.into_split();
    let reads_all = AtomicBool::new(false);
    let up = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from_node.read(&mut buffer).await {
            way.sent.lock().unwrap().extend_from_slice(&buffer[..count]);
            if contains(&buffer[..count], "SUBSCRIBE") {
                listens.store(true, Ordering::SeqCst);
            }
            if contains(&buffer[..count], "HSCAN") {
                reads_all.store(true, Ordering::SeqCst);
            }
            if to_server.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    };
    let down = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
            if listens.load(Ordering::SeqCst) && way.is_silent.load(Ordering::SeqCst) {
                continue;
            }
            if reads_all.load(Ordering::SeqCst) {
                let mut held = way.is_held.subscribe();
                let _gone = held.wait_for(|held| !held).await.is_err();
            }
            if to_node.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}
