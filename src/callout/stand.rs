//! A service of the tests' own: plain HTTP/1.1 on loopback, which answers as it is told.
//!
//! It records what it heard, byte for byte, and serves any number of connections. Used by the tests
//! of this module and of those that call services.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::RootCertStore;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::policy::AddressRules;
use crate::upstream::{Config, Upstream};

/// What the service does with a request.
pub(crate) enum Says {
    /// Sends these bytes and goes on.
    Bytes(String),
    /// Sends these bytes and closes.
    Last(String),
    /// Says nothing.
    Nothing,
}

impl Says {
    /// An answer with a JSON body.
    pub(crate) fn json(status: u16, body: &str) -> Self {
        let length = body.len();
        Self::Bytes(format!(
            "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        ))
    }
}

/// The service.
pub(crate) struct Stand {
    /// Where it is.
    pub(crate) url: String,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Stand {
    /// Starts it. It is given the number of the request, from 0, and the request.
    pub(crate) async fn start(says: impl Fn(usize, &str) -> Says + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let heard = Arc::<Mutex<Vec<String>>>::default();
        let (known, says) = (Arc::clone(&heard), Arc::new(says));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (known, says) = (Arc::clone(&known), Arc::clone(&says));
                tokio::spawn(async move { serve(stream, &known, says.as_ref()).await });
            }
        });
        Self { url, heard }
    }

    /// Returns what was heard so far.
    pub(crate) fn heard(&self) -> Vec<String> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.clone()
    }
}

/// Reads requests, which end with their length or their head, and answers them.
async fn serve(
    mut stream: TcpStream,
    heard: &Mutex<Vec<String>>,
    says: &(impl Fn(usize, &str) -> Says + Sync),
) {
    let mut input = Vec::new();
    loop {
        let Some(end) = length_of(&input) else {
            if !matches!(stream.read_buf(&mut input).await, Ok(1..)) {
                return;
            }
            continue;
        };
        let request: Vec<_> = input.drain(..end).collect();
        let request = String::from_utf8(request).unwrap();
        let number = {
            let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            heard.push(request.clone());
            heard.len() - 1
        };
        match says(number, &request) {
            Says::Bytes(bytes) => drop(stream.write_all(bytes.as_bytes()).await),
            Says::Last(bytes) => {
                drop(stream.write_all(bytes.as_bytes()).await);
                return;
            }
            Says::Nothing => std::future::pending().await,
        }
    }
}

/// Returns the length of the first request, once it is there whole.
fn length_of(input: &[u8]) -> Option<usize> {
    let text = String::from_utf8_lossy(input);
    let head = text.find("\r\n\r\n")? + 4;
    let length = text.get(..head)?.lines().find_map(|line| {
        let value = line.strip_prefix("content-length: ")?;
        value.parse::<usize>().ok()
    });
    let whole = head + length.unwrap_or(0);
    (input.len() >= whole).then_some(whole)
}

/// Makes a way out that may reach loopback.
pub(crate) fn upstream() -> Arc<Upstream> {
    let patience = Duration::from_mins(1);
    let config = Config {
        overrides: Vec::new(),
        roots: Arc::new(RootCertStore::empty()),
        rules: Arc::new(AddressRules::new(Vec::new(), true)),
        proxy: None,
        dns_timeout: patience,
        connect_timeout: patience,
        handshake_timeout: patience,
    };
    Arc::new(Upstream::new(config).unwrap())
}
