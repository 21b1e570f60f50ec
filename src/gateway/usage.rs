//! What an answer used: tokens and model, read from a JSON answer or a stream as it passes.
//!
//! Bytes are looked at in whatever pieces they come, in bounded memory; nothing is changed or held
//! back. A stream tells its usage at its start and, cumulatively, before its end; what is not known
//! is passed over. An answer that was cut off is counted from what came. Called by the forwarding.

use std::fmt;
use std::mem;

use memchr::memchr2;
use memchr::memmem;
use serde::Deserialize;

use crate::payment::Tokens;

/// The most bytes of one event's data, or of one value of an answer, that are held: those that tell
/// of usage have some hundred.
const HELD_LIMIT_BYTES: usize = 16 * 1024;
/// How many bytes of an answer that was cut off count as a token. A token has three to four letters,
/// and each event has some hundred bytes around it, so that this counts too much rather than too
/// little.
const BYTES_PER_TOKEN: u64 = 4;

/// What an answer used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// The tokens.
    pub tokens: Tokens,
    /// The model that answered.
    pub model: Option<String>,
    /// Whether any usage was told: an answer that is an error tells none.
    pub told: bool,
    /// Whether the answer came to its end. Where it did not, the output is estimated from what came.
    pub whole: bool,
}

/// Reads the usage of one answer.
pub struct UsageReader {
    form: Form,
    counted: Counted,
    /// The bytes of the events that carry output.
    output_bytes: u64,
}

enum Form {
    Json(Json),
    Stream(Box<Stream>),
}

impl fmt::Debug for UsageReader {
    /// Shows what was counted, and nothing of the answer.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UsageReader")
            .field("tokens", &self.counted.tokens)
            .finish_non_exhaustive()
    }
}

impl UsageReader {
    /// Reads an answer by its content type: a stream of events, or JSON.
    pub fn of_content_type(content_type: Option<&[u8]>) -> Self {
        let kind = content_type.unwrap_or_default();
        let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default();
        let form = if kind.trim_ascii().eq_ignore_ascii_case(b"text/event-stream") {
            Form::Stream(Box::default())
        } else {
            Form::Json(Json::default())
        };
        Self {
            form,
            counted: Counted::default(),
            output_bytes: 0,
        }
    }

    /// Looks at the next piece.
    pub fn read(&mut self, piece: &[u8]) {
        match &mut self.form {
            Form::Json(json) => json.read(piece, &mut self.counted),
            Form::Stream(stream) => {
                let (counted, bytes) = (&mut self.counted, &mut self.output_bytes);
                stream.read(piece, &mut |data| take_event(data, counted, bytes));
            }
        }
    }

    /// Ends the answer, at its end or where it was cut off.
    pub fn finish(self) -> Counted {
        let Self {
            form,
            mut counted,
            mut output_bytes,
        } = self;
        match form {
            Form::Json(json) => counted.whole = json.depth == 0 && json.seen,
            Form::Stream(mut stream) => {
                stream.end(&mut |data| take_event(data, &mut counted, &mut output_bytes));
                if !counted.whole {
                    let estimated = output_bytes.div_ceil(BYTES_PER_TOKEN);
                    counted.tokens.output = counted.tokens.output.max(estimated);
                    counted.told |= output_bytes > 0;
                }
            }
        }
        counted
    }
}

/// The fields of an event that are read.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    message: Option<Message>,
    usage: Option<Used>,
}

#[derive(Deserialize)]
struct Message {
    model: Option<String>,
    usage: Option<Used>,
}

#[derive(Default, Deserialize)]
struct Used {
    #[serde(rename = "input_tokens")]
    input: Option<u64>,
    #[serde(rename = "output_tokens")]
    output: Option<u64>,
    #[serde(rename = "cache_read_input_tokens")]
    cache_read: Option<u64>,
    #[serde(rename = "cache_creation_input_tokens")]
    cache_write: Option<u64>,
}

impl Counted {
    /// Takes numbers that are cumulative: the largest counts.
    fn take(&mut self, used: &Used) {
        let pairs = [
            (&mut self.tokens.input, used.input),
            (&mut self.tokens.output, used.output),
            (&mut self.tokens.cache_read, used.cache_read),
            (&mut self.tokens.cache_write, used.cache_write),
        ];
        for (counted, told) in pairs {
            self.told |= told.is_some();
            *counted = (*counted).max(told.unwrap_or_default());
        }
    }
}

/// What is known of one event's data.
#[derive(Clone, Copy)]
enum Data<'a> {
    /// All of it.
    Whole(&'a [u8]),
    /// Its start and its length: it is too long to tell of usage.
    Start(&'a [u8], u64),
}

fn take_event(data: Data<'_>, counted: &mut Counted, output_bytes: &mut u64) {
    let (start, length) = match data {
        Data::Whole(whole) => (whole, whole.len() as u64),
        Data::Start(start, length) => (start, length),
    };
    let has = |text: &[u8]| memmem::find(start, text).is_some();
    if has(b"\"content_block_delta\"") {
        *output_bytes = output_bytes.saturating_add(length);
        return;
    }
    let Data::Whole(whole) = data else {
        return;
    };
    if !has(b"\"usage\"") && !has(b"\"message_stop\"") {
        return;
    }
    let Ok(event) = serde_json::from_slice::<Event>(whole) else {
        return;
    };
    match event.kind.as_str() {
        "message_start" => {
            let message = event.message;
            let model = message.as_ref().and_then(|message| message.model.clone());
            counted.model = model.or(counted.model.take());
            if let Some(used) = message.and_then(|message| message.usage) {
                counted.take(&used);
            }
        }
        "message_delta" => counted.take(&event.usage.unwrap_or_default()),
        "message_stop" => counted.whole = true,
        _ => {}
    }
}

/// Cuts a stream into events (WHATWG HTML §9.2.6): lines end with CR, LF or both.
#[derive(Default)]
struct Stream {
    /// The current line so far, up to the bound.
    line: Vec<u8>,
    line_bytes: u64,
    /// The data of the current event so far, up to the bound.
    data: Vec<u8>,
    data_bytes: u64,
    /// The last byte was a CR: a LF after it ends no further line.
    after_cr: bool,
}

impl Stream {
    fn read(&mut self, mut piece: &[u8], take: &mut impl FnMut(Data<'_>)) {
        while !piece.is_empty() {
            if mem::take(&mut self.after_cr)
                && let Some(rest) = piece.strip_prefix(b"\n")
            {
                piece = rest;
                continue;
            }
            let end = memchr2(b'\r', b'\n', piece);
            let (part, rest) = piece.split_at(end.unwrap_or(piece.len()));
            hold(&mut self.line, part);
            self.line_bytes += part.len() as u64;
            let Some((end, rest)) = rest.split_first() else {
                return;
            };
            piece = rest;
            self.after_cr = *end == b'\r';
            self.end_line(take);
        }
    }

    /// Ends the stream. An event that no empty line ended counts too: the connection may have been
    /// cut there.
    fn end(&mut self, take: &mut impl FnMut(Data<'_>)) {
        self.end_line(take);
        self.end_event(take);
    }

    fn end_line(&mut self, take: &mut impl FnMut(Data<'_>)) {
        let line = mem::take(&mut self.line);
        let bytes = mem::take(&mut self.line_bytes);
        if bytes == 0 {
            self.end_event(take);
        } else if let Some(value) = line.strip_prefix(b"data:") {
            if self.data_bytes > 0 {
                hold(&mut self.data, b"\n");
            }
            hold(&mut self.data, value);
            self.data_bytes += bytes;
        }
        // Its memory serves the next line.
        self.line = line;
        self.line.clear();
    }

    fn end_event(&mut self, take: &mut impl FnMut(Data<'_>)) {
        let bytes = mem::take(&mut self.data_bytes);
        if bytes > 0 {
            // The bound was reached by the line or by the data; either makes the data short.
            let cut = self.data.len() >= HELD_LIMIT_BYTES || bytes > HELD_LIMIT_BYTES as u64;
            take(if cut {
                Data::Start(&self.data, bytes)
            } else {
                Data::Whole(&self.data)
            });
        }
        self.data.clear();
    }
}

/// Appends to what is held, up to the bound.
fn hold(held: &mut Vec<u8>, more: &[u8]) {
    let room = HELD_LIMIT_BYTES - held.len().min(HELD_LIMIT_BYTES);
    held.extend_from_slice(more.get(..room).unwrap_or(more));
}

/// Reads two members of the outermost object, `usage` and `model`, and passes over everything else.
#[derive(Default)]
struct Json {
    /// How many objects and lists are open.
    depth: usize,
    /// Anything was there.
    seen: bool,
    in_text: bool,
    after_backslash: bool,
    /// What of the outermost object comes next, or is under way.
    member: Member,
    held: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Member {
    #[default]
    Name,
    Usage,
    Model,
    Other,
}

impl Json {
    fn read(&mut self, piece: &[u8], counted: &mut Counted) {
        for byte in piece {
            self.step(*byte, counted);
        }
    }

    fn step(&mut self, byte: u8, counted: &mut Counted) {
        if self.in_text {
            self.keep(byte);
            match byte {
                _ if self.after_backslash => self.after_backslash = false,
                b'\\' => self.after_backslash = true,
                b'"' => self.in_text = false,
                _ => {}
            }
            return;
        }
        match byte {
            b'"' => {
                self.in_text = true;
                self.keep(byte);
            }
            b'{' | b'[' => {
                self.seen = true;
                self.depth += 1;
                if self.depth > 1 {
                    self.keep(byte);
                }
            }
            b'}' | b']' => {
                if self.depth > 1 {
                    self.keep(byte);
                } else {
                    self.end_member(counted);
                }
                self.depth = self.depth.saturating_sub(1);
            }
            b',' if self.depth == 1 => self.end_member(counted),
            b':' if self.depth == 1 && self.member == Member::Name => {
                self.member = match self.held.trim_ascii() {
                    b"\"usage\"" => Member::Usage,
                    b"\"model\"" => Member::Model,
                    _ => Member::Other,
                };
                self.held.clear();
            }
            _ => self.keep(byte),
        }
    }

    fn keep(&mut self, byte: u8) {
        let wanted = self.depth > 0 && self.member != Member::Other;
        if wanted && self.held.len() <= HELD_LIMIT_BYTES {
            self.held.push(byte);
        }
    }

    fn end_member(&mut self, counted: &mut Counted) {
        let fits = self.held.len() <= HELD_LIMIT_BYTES;
        match mem::take(&mut self.member) {
            Member::Usage if fits => {
                if let Ok(used) = serde_json::from_slice::<Used>(&self.held) {
                    counted.take(&used);
                }
            }
            Member::Model if fits => {
                counted.model = serde_json::from_slice(&self.held)
                    .ok()
                    .or(counted.model.take());
            }
            _ => {}
        }
        self.held.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAM: &str = concat!(
        "event: message_start\n",
        r#"data: {"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"claude-x","content":[],"usage":{"input_tokens":25,"cache_creation_input_tokens":100,"cache_read_input_tokens":200,"output_tokens":1,"service_tier":"standard"}}}"#,
        "\n\nevent: content_block_start\n",
        r#"data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
        "\n\nevent: ping\ndata: {\"type\": \"ping\"}\n\n: a comment\n\nevent: content_block_delta\n",
        r#"data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"\"usage\":{\"output_tokens\":99999}"}}"#,
        "\n\nevent: something_new\n",
        r#"data: {"type":"something_new","usage":{"output_tokens":77777}}"#,
        "\n\nevent: message_delta\n",
        r#"data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":15}}"#,
        "\n\nevent: message_stop\n",
        r#"data: {"type":"message_stop"}"#,
        "\n\n",
    );
    const JSON: &str = r#" {"id":"msg_1","model":"claude-x","content":[{"type":"text","text":"} \" \\","usage":{"output_tokens":9}},
        {"model":"inner"}],"stop_sequence":null,"usage" : {"input_tokens":25,"cache_creation_input_tokens":100,
        "cache_read_input_tokens":200,"output_tokens":15,"cache_creation":{"x":[1]},"service_tier":"standard"}}
"#;

    const PIECES: [&[u8]; 13] = [
        b"data:",
        b"\n",
        b"\r",
        b"{\"type\":\"message_delta\",",
        b"\"usage\":{\"output_tokens\":7}}",
        b"\"model\":\"m\"",
        b",",
        b"{",
        b"}",
        b"\"",
        b"\\",
        b":",
        b"\xff",
    ];

    fn expected() -> Counted {
        Counted {
            tokens: Tokens {
                input: 25,
                output: 15,
                cache_read: 200,
                cache_write: 100,
            },
            model: Some("claude-x".to_owned()),
            told: true,
            whole: true,
        }
    }

    fn read(kind: &str, text: &[u8], cuts: &[usize]) -> Counted {
        let mut reader = UsageReader::of_content_type(Some(kind.as_bytes()));
        let mut from = 0;
        for cut in cuts {
            let to = (*cut).clamp(from, text.len());
            reader.read(&text[from..to]);
            from = to;
        }
        reader.read(&text[from..]);
        reader.finish()
    }

    fn stream(text: &str) -> Counted {
        read("text/event-stream; charset=utf-8", text.as_bytes(), &[])
    }

    fn json(text: &str) -> Counted {
        read("application/json", text.as_bytes(), &[])
    }

    #[test]
    fn streams_and_answers_tell_their_usage() {
        assert_eq!(stream(STREAM), expected());
        assert_eq!(stream(&STREAM.replace('\n', "\r\n")), expected());
        assert_eq!(stream(&STREAM.replace('\n', "\r")), expected());
        assert_eq!(
            read("TEXT/Event-Stream", STREAM.as_bytes(), &[]),
            expected()
        );
        assert_eq!(stream(STREAM.strip_suffix("\n\n").unwrap()), expected());
        assert_eq!(json(JSON), expected());
    }

    #[test]
    fn data_in_several_lines_is_one() {
        let parted = STREAM.replace(r#""usage":{"output"#, "\"usage\":\ndata: {\"output");
        assert_ne!(parted, STREAM);
        for end in ["\n", "\r\n", "\r"] {
            assert_eq!(stream(&parted.replace('\n', end)), expected(), "{end:?}");
        }
    }

    #[test]
    fn what_is_cumulative_is_not_added_up() {
        let delta = "data: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":7,\"input_tokens\":30}}\n\n";
        let text = STREAM.replace(
            "event: message_delta\n",
            &format!("{delta}event: message_delta\n"),
        );
        let counted = stream(&text);
        assert_eq!((counted.tokens.output, counted.tokens.input), (15, 30));
    }

    #[test]
    fn answers_without_usage_tell_none() {
        for text in [
            "",
            "{}",
            "null",
            r#"{"input_tokens":7}"#,
            r#"{"type":"error","error":{"type":"overloaded_error","usage":{"output_tokens":1}}}"#,
            r#"{"usage":null}"#,
            r#"{"usage":{"output_tokens":"7"}}"#,
            r#"{"usage":7,"model":7}"#,
            r#"[{"usage":{"output_tokens":1}}]"#,
        ] {
            let counted = json(text);
            assert!(
                !counted.told && counted.model.is_none(),
                "{text}: {counted:?}"
            );
            assert_eq!(counted.tokens, Tokens::default(), "{text}");
        }
        let error = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\n\n";
        assert_eq!(stream(error), Counted::default());
    }

    #[test]
    fn what_was_cut_off_is_counted_from_what_came() {
        let delta = STREAM.find("event: something_new").unwrap();
        let cut = stream(STREAM.get(..delta).unwrap());
        assert!(!cut.whole && cut.told);
        assert_eq!((cut.tokens.input, cut.tokens.cache_write), (25, 100));
        assert!(
            (15..60).contains(&cut.tokens.output),
            "{}",
            cut.tokens.output
        );
        let start = STREAM.find("event: content_block_start").unwrap();
        let cut = stream(STREAM.get(..start).unwrap());
        assert_eq!((cut.tokens.output, cut.whole), (1, false));
        let cut = json(JSON.get(..JSON.len() - 10).unwrap());
        assert!(!cut.whole && !cut.told, "{cut:?}");
    }

    #[test]
    fn long_lines_are_passed_over_in_bounded_memory() {
        let long = "x".repeat(1_000_000);
        let delta = format!(
            "data: {{\"type\":\"content_block_delta\",\"delta\":{{\"text\":\"{long}\"}}}}\n\n"
        );
        let mut reader = UsageReader::of_content_type(Some(b"text/event-stream"));
        for piece in format!("{delta}{STREAM}").as_bytes().chunks(1000) {
            reader.read(piece);
            let Form::Stream(stream) = &reader.form else {
                panic!("a stream");
            };
            assert!(stream.line.len().max(stream.data.len()) <= HELD_LIMIT_BYTES);
        }
        assert_eq!(reader.finish(), expected());
        assert!(stream(&delta).tokens.output >= 250_000);
        // One that is too long to be read as a whole is not read in part.
        let padded = STREAM.replace("\"stop_reason\"", &format!("\"{long}\":1,\"stop_reason\""));
        let counted = stream(&padded);
        assert_eq!((counted.tokens.output, counted.whole), (1, true));
        let answer = JSON.replace("\"stop_sequence\"", &format!("\"{long}\""));
        assert_eq!(json(&answer), expected());
        let answer = JSON.replace("\"service_tier\"", &format!("\"{long}\""));
        assert!(!json(&answer).told);
    }

    proptest! {
        #[test]
        fn any_cut_is_as_good_as_none(
            cuts in proptest::collection::vec(0_usize..STREAM.len() + 40, 0..20),
            end in prop_oneof![Just("\n"), Just("\r\n"), Just("\r")],
        ) {
            let mut cuts = cuts;
            cuts.sort_unstable();
            let text = STREAM.replace('\n', end);
            prop_assert_eq!(read("text/event-stream", text.as_bytes(), &cuts), expected());
            prop_assert_eq!(read("application/json", JSON.as_bytes(), &cuts), expected());
        }

        #[test]
        fn any_bytes_in_any_pieces_are_one_answer(
            bytes in proptest::collection::vec(proptest::sample::select(&PIECES[..]), 0..40),
            cuts in proptest::collection::vec(0_usize..200, 0..10),
        ) {
            let text = bytes.concat();
            let mut cuts = cuts;
            cuts.sort_unstable();
            for kind in ["text/event-stream", "application/json"] {
                prop_assert_eq!(read(kind, &text, &cuts), read(kind, &text, &[]));
            }
        }

        #[test]
        fn what_stops_early_never_counts_more_input(at in 0_usize..STREAM.len()) {
            let cut = read("text/event-stream", &STREAM.as_bytes()[..at], &[]);
            prop_assert!(cut.tokens.input <= 25 && cut.tokens.cache_read <= 200);
            prop_assert!(!cut.whole || at > STREAM.len() - 10);
        }
    }
}
