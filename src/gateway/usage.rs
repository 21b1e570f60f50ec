//! What an answer used: tokens and model, read from a JSON answer or a stream as it passes.
//!
//! Bytes are looked at in whatever pieces they come, in bounded memory; nothing is changed or held
//! back. A stream tells its usage at its start and, cumulatively, before its end; what an event is
//! says its own `type` and no text in it. An answer that was cut off is counted from what came, and
//! as unknown where that does not show what it cost. Called by the forwarding.

use std::fmt;
use std::mem;

use serde::Deserialize;

use super::events::{Data, HELD_LIMIT_BYTES, Stream};
use crate::payment::Tokens;

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
    /// Whether the usage is known: an answer that is an error tells none, and one that was cut off may
    /// have cost what nothing in it shows.
    pub told: bool,
    /// Whether the answer came to its end. Where it did not, the output is estimated from what came.
    pub whole: bool,
}

/// Reads the usage of one answer.
pub struct UsageReader {
    form: Form,
    counted: Counted,
}

/// What the events of a stream have shown, beside their usage.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each was seen or not")]
struct Shown {
    /// The bytes of the events that carry output, and of those that cannot be read.
    output_bytes: u64,
    /// There was output that is not shown, or work of the provider's that is told at the end alone.
    hidden: bool,
    /// A block of thinking has begun, and none of it was shown.
    thinking: bool,
    /// The last word on the output was read.
    told_at_end: bool,
    /// The last event came.
    stopped: bool,
}

enum Form {
    Json(Json),
    Stream(Box<(Stream, Shown)>),
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
        }
    }

    /// Looks at the next piece.
    pub fn read(&mut self, piece: &[u8]) {
        match &mut self.form {
            Form::Json(json) => json.read(piece, &mut self.counted),
            Form::Stream(form) => {
                let (stream, shown) = &mut **form;
                stream.read(piece, &mut |data| shown.take(data, &mut self.counted));
            }
        }
    }

    /// Ends the answer, at its end or where it was cut off.
    pub fn finish(self) -> Counted {
        let Self { form, mut counted } = self;
        match form {
            Form::Json(json) => counted.whole = json.depth == 0 && json.seen,
            Form::Stream(form) => {
                let (mut stream, mut shown) = *form;
                stream.end(&mut |data| shown.take(data, &mut counted));
                shown.finish(&mut counted);
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
    content_block: Option<Part>,
    delta: Option<Part>,
}

/// A block of an answer, or what is added to one.
#[derive(Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: Option<String>,
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
    /// What each time used that the model was asked for one answer, where it was several times. The
    /// numbers of the whole leave some of them out.
    #[serde(default)]
    iterations: Option<Vec<Self>>,
}

impl Used {
    /// Returns one number: that of the whole, or of all the times together where they are more.
    fn most(&self, field: fn(&Self) -> Option<u64>) -> Option<u64> {
        let times = self.iterations.iter().flatten().filter_map(field);
        field(self).max(times.reduce(u64::saturating_add))
    }
}

impl Counted {
    /// Takes numbers that are cumulative: the largest counts.
    fn take(&mut self, used: &Used) {
        let pairs = [
            (&mut self.tokens.input, used.most(|used| used.input)),
            (&mut self.tokens.output, used.most(|used| used.output)),
            (
                &mut self.tokens.cache_read,
                used.most(|used| used.cache_read),
            ),
            (
                &mut self.tokens.cache_write,
                used.most(|used| used.cache_write),
            ),
        ];
        for (counted, told) in pairs {
            self.told |= told.is_some();
            *counted = (*counted).max(told.unwrap_or_default());
        }
    }
}

impl Shown {
    /// Takes an event. One that cannot be read counts as output: who writes into it, by what they
    /// ask for, must not be able to make it count less.
    fn take(&mut self, data: Data<'_>, counted: &mut Counted) {
        let (event, length) = match data {
            Data::Whole(whole) => (serde_json::from_slice::<Event>(whole).ok(), whole.len()),
            Data::Long(length) => (None, usize::try_from(length).unwrap_or(usize::MAX)),
        };
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        let kind = event.as_ref().map_or("", |event| event.kind.as_str());
        if !matches!(
            kind,
            "message_start" | "message_delta" | "message_stop" | "ping" | "error"
        ) {
            self.output_bytes = self.output_bytes.saturating_add(length);
        }
        let Some(event) = event else {
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
            "content_block_start" => {
                let block = event.content_block.and_then(|block| block.kind);
                match block.as_deref() {
                    Some("text" | "tool_use") => {}
                    Some("thinking") => self.thinking = true,
                    _ => self.hidden = true,
                }
            }
            "content_block_delta" => {
                let delta = event.delta.and_then(|delta| delta.kind);
                self.thinking &= delta.as_deref() != Some("thinking_delta");
            }
            "content_block_stop" => self.hidden |= mem::take(&mut self.thinking),
            "message_delta" => {
                let used = event.usage.unwrap_or_default();
                self.told_at_end |= used.output.is_some();
                counted.take(&used);
            }
            "message_stop" => self.stopped = true,
            _ => {}
        }
    }

    fn finish(self, counted: &mut Counted) {
        counted.whole = self.stopped && self.told_at_end;
        if counted.whole {
            return;
        }
        let estimated = self.output_bytes.div_ceil(BYTES_PER_TOKEN);
        counted.tokens.output = counted.tokens.output.max(estimated);
        // What cannot be seen cannot be estimated, and an end without a last word is none.
        let is_unknown = self.hidden || self.thinking || self.stopped;
        counted.told &= !is_unknown;
    }
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
    fn what_the_whole_leaves_out_counts() {
        for (iterations, input, output) in [
            ("null", 23, 2),
            ("[]", 23, 2),
            (r#"[{"type":"message","input_tokens":23}]"#, 23, 2),
            (
                r#"[{"type":"compaction","input_tokens":180,"output_tokens":3},
                    {"type":"message","input_tokens":23,"output_tokens":2}]"#,
                203,
                5,
            ),
        ] {
            let text =
                format!(r#"{{"input_tokens":23,"output_tokens":2,"iterations":{iterations}}}"#);
            let mut counted = Counted::default();
            counted.take(&serde_json::from_str(&text).unwrap());
            let tokens = &counted.tokens;
            assert_eq!((tokens.input, tokens.output), (input, output), "{text}");
        }
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
    fn no_text_of_a_caller_s_makes_an_event_another() {
        // A stop sequence comes back in the event that tells the usage.
        for text in [
            "content_block_delta",
            r#"\"type\":\"content_block_delta\""#,
            "message_stop",
            "ping",
        ] {
            let sequence = format!("\"stop_sequence\":\"{text}\",\"stop_reason\"");
            let echoed = STREAM.replace("\"stop_reason\"", &sequence);
            assert_ne!(echoed, STREAM);
            assert_eq!(stream(&echoed), expected(), "{text}");
        }
        // Without it the end is none.
        let from = STREAM.find("event: message_delta").unwrap();
        let to = STREAM.find("event: message_stop").unwrap();
        let counted = stream(&format!(
            "{}{}",
            STREAM.get(..from).unwrap(),
            STREAM.get(to..).unwrap()
        ));
        assert!(!counted.whole && !counted.told, "{counted:?}");
    }

    #[test]
    fn what_is_cut_where_something_is_hidden_is_not_known() {
        let to = STREAM.find("event: message_delta").unwrap();
        let block = |kind: &str, delta: &str| {
            let begun = STREAM.replace(
                r#"{"type":"text","text":""}"#,
                &format!("{{\"type\":\"{kind}\"}}"),
            );
            begun.replace("text_delta", delta)
        };
        for (kind, delta, told) in [
            ("text", "text_delta", true),
            ("tool_use", "input_json_delta", true),
            ("thinking", "thinking_delta", true),
            ("thinking", "signature_delta", false),
            ("redacted_thinking", "text_delta", false),
            ("server_tool_use", "input_json_delta", false),
            ("of_tomorrow", "text_delta", false),
        ] {
            let text = block(kind, delta);
            let at = text.len() - (STREAM.len() - to);
            assert_eq!(stream(text.get(..at).unwrap()).told, told, "{kind} {delta}");
            assert_eq!(stream(&text), expected(), "{kind} {delta}");
        }
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
            let Form::Stream(form) = &reader.form else {
                panic!("a stream");
            };
            let (stream, _) = &**form;
            assert!(stream.line.len().max(stream.data.len()) <= HELD_LIMIT_BYTES);
        }
        assert_eq!(reader.finish(), expected());
        assert!(stream(&delta).tokens.output >= 250_000);
        // One that is too long to be read as a whole is not read in part.
        let padded = STREAM.replace("\"stop_reason\"", &format!("\"{long}\":1,\"stop_reason\""));
        let counted = stream(&padded);
        assert!(!counted.whole && !counted.told, "{counted:?}");
        assert!(counted.tokens.output >= 250_000);
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
