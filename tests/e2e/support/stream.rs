//! One end of a byte stream in the hands of a test, and the answers read from it.
//!
//! The reader of answers is deliberately simple: it finds the framing of one well-formed answer,
//! keeps every byte of it, and fails the test at anything else. Used by the workload.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{show, within};

/// Any byte stream.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A byte stream, and what was read from it and not yet used.
pub(crate) struct Conn {
    io: Box<dyn Stream>,
    /// Read, and not yet used.
    pub(crate) input: Vec<u8>,
}

impl Conn {
    pub(crate) fn new(io: impl Stream + 'static) -> Self {
        Self {
            io: Box::new(io),
            input: Vec::new(),
        }
    }

    /// Gives the stream back, for TLS in it. Nothing may have been read ahead.
    pub(crate) fn into_io(self) -> Box<dyn Stream> {
        assert!(
            self.input.is_empty(),
            "the other side spoke first: {}",
            show(&self.input)
        );
        self.io
    }

    /// Writes bytes and flushes; the stream must take them.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes)
            .await
            .expect("the stream takes the bytes");
    }

    /// Writes bytes and flushes, if the other side still takes them.
    pub(crate) async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        let write = async {
            self.io.write_all(bytes.as_ref()).await?;
            self.io.flush().await
        };
        within("a write", write).await
    }

    /// Says that nothing more will be sent.
    pub(crate) async fn finish(&mut self) {
        // The other side may have closed already, which is no failure here.
        let _ended = within("a shutdown", self.io.shutdown()).await;
    }

    /// Reads something; false at the end of the stream, however it came.
    pub(crate) async fn fill(&mut self) -> bool {
        self.try_fill().await.is_ok_and(|count| count > 0)
    }

    /// Reads something; 0 at an end in good order, which in TLS is one that was announced.
    pub(crate) async fn try_fill(&mut self) -> io::Result<usize> {
        let mut buffer = vec![0; 16 * 1024];
        let read = within("bytes or the end of a stream", self.io.read(&mut buffer)).await;
        if let Ok(count) = read {
            self.input.extend_from_slice(&buffer[..count]);
        }
        read
    }

    /// Takes everything up to the end, and tells whether that came in good order.
    pub(crate) async fn rest_and_end(&mut self) -> (Vec<u8>, io::Result<usize>) {
        loop {
            match self.try_fill().await {
                Ok(1..) => {}
                end => return (std::mem::take(&mut self.input), end),
            }
        }
    }

    /// Takes exactly so many bytes.
    pub(crate) async fn take(&mut self, count: usize) -> Vec<u8> {
        while self.input.len() < count {
            assert!(
                self.fill().await,
                "the stream ended early: {}",
                show(&self.input)
            );
        }
        self.input.drain(..count).collect()
    }

    /// Takes everything up to and with a delimiter.
    pub(crate) async fn take_until(&mut self, delimiter: &[u8]) -> Vec<u8> {
        loop {
            let at = self
                .input
                .windows(delimiter.len())
                .position(|window| window == delimiter);
            if let Some(at) = at {
                return self.input.drain(..at + delimiter.len()).collect();
            }
            assert!(
                self.fill().await,
                "the stream ended early: {}",
                show(&self.input)
            );
        }
    }

    /// Takes everything up to the end of the stream.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        while self.fill().await {}
        std::mem::take(&mut self.input)
    }

    /// Waits for the end of the stream and fails if anything comes before it.
    pub(crate) async fn expect_end(&mut self) {
        let rest = self.rest().await;
        assert!(
            rest.is_empty(),
            "unexpected bytes before the end: {}",
            show(&rest)
        );
    }

    /// Reads one answer to its end. Interim answers are kept apart.
    pub(crate) async fn answer(&mut self) -> Answer {
        self.read_answer(false).await
    }

    /// Reads the answer to a HEAD request, which has no body whatever its head says.
    pub(crate) async fn answer_to_head(&mut self) -> Answer {
        self.read_answer(true).await
    }

    /// Reads the head of one answer, interim ones included, and leaves what is behind it.
    pub(crate) async fn answer_head(&mut self) -> Answer {
        let raw = self.take_until(b"\r\n\r\n").await;
        Answer::parse(raw)
    }

    async fn read_answer(&mut self, to_head: bool) -> Answer {
        let mut interim = Vec::new();
        let mut answer = loop {
            let answer = self.answer_head().await;
            if !(100..200).contains(&answer.status) {
                break answer;
            }
            interim.push(answer);
        };
        answer.interim = interim;
        let bodyless = to_head || matches!(answer.status, 204 | 304);
        if bodyless {
            return answer;
        }
        if answer.header("transfer-encoding").is_some() {
            self.read_chunks(&mut answer).await;
        } else if let Some(length) = answer.header("content-length") {
            let length = length.parse().expect("a length");
            answer.body = self.take(length).await;
            answer.raw.extend_from_slice(&answer.body);
        } else {
            answer.body = self.rest().await;
            answer.raw.extend_from_slice(&answer.body);
        }
        answer
    }

    async fn read_chunks(&mut self, answer: &mut Answer) {
        loop {
            let line = self.take_until(b"\r\n").await;
            answer.raw.extend_from_slice(&line);
            let text = std::str::from_utf8(&line).expect("a size line").trim_end();
            let size = usize::from_str_radix(text, 16).expect("a chunk size");
            if size == 0 {
                break;
            }
            let data = self.take(size + 2).await;
            answer.raw.extend_from_slice(&data);
            assert!(data.ends_with(b"\r\n"), "a chunk ends in CR LF");
            answer.body.extend_from_slice(&data[..size]);
        }
        loop {
            let line = self.take_until(b"\r\n").await;
            answer.raw.extend_from_slice(&line);
            if line == b"\r\n" {
                return;
            }
            answer
                .trailers
                .push(split_field(std::str::from_utf8(&line).expect("a trailer")));
        }
    }
}

/// One answer as it came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Status line and fields as they came, without the empty line.
    pub(crate) head: String,
    /// The fields in their order.
    pub(crate) fields: Vec<(String, String)>,
    /// The body without its framing.
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
    /// The interim answers before it.
    pub(crate) interim: Vec<Self>,
    /// Every byte of the final answer.
    pub(crate) raw: Vec<u8>,
}

impl Answer {
    fn parse(raw: Vec<u8>) -> Self {
        let head = String::from_utf8(raw[..raw.len() - 4].to_vec()).expect("a head in UTF-8");
        let mut lines = head.split("\r\n");
        let status_line = lines.next().unwrap_or_default();
        let status = status_line
            .get(9..12)
            .and_then(|digits| digits.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status line: {head}"));
        let fields = lines.map(split_field).collect();
        Self {
            status,
            head,
            fields,
            raw,
            ..Self::default()
        }
    }

    /// Returns the value of a field that stands once; nothing if it is not there.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut found = self
            .fields
            .iter()
            .filter(|(field, _)| field.eq_ignore_ascii_case(name));
        let value = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "{name} stands twice: {}", self.head);
        value
    }

    /// Returns the body as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a body in UTF-8")
    }

    /// Returns the body as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("no JSON: {}", show(&self.raw)))
    }

    /// Returns the stable code of one of our own refusals.
    pub(crate) fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }
}

fn split_field(line: &str) -> (String, String) {
    let (name, value) = line.trim_end().split_once(':').expect("a colon in a field");
    (name.to_owned(), value.trim().to_owned())
}
