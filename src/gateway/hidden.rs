//! What a message costs beyond its bytes and its answer: what the provider fetches, unpacks or does.
//!
//! A message names documents by URL, packs a hundred pages into a few kilobytes, or has the provider
//! search and read again and again. What is listed here as harmless is; every other source and every
//! other tool is not. It reads what was found to be JSON, without judging it: what is odd counts as
//! hidden. Called where tokens are counted against a budget.

use memchr::memchr2;

/// The most tokens that a picture has, however few bytes it came in: those of the largest size that
/// the model provider does not make smaller.
const PICTURE_TOKENS: u64 = 5_000;
/// The most tokens that the provider adds to a message that has tools, and to a tool of its own
/// making whose description is not in the message.
const TOOL_TOKENS: u64 = 1_024;
/// How deep a message may be nested. Those of clients have about ten levels.
const DEPTH_LIMIT: usize = 64;
/// The longest name or word that is looked at, in bytes, with its escapes.
const WORD_LIMIT_BYTES: usize = 256;
/// How the types of tools begin that the client itself carries out.
const TOOLS_OF_CLIENTS: [&str; 4] = ["bash_", "computer_", "memory_", "text_editor_"];

/// What is hidden in one message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Hidden {
    /// The tokens that can be told: of pictures, and of what the provider says of tools.
    pub(super) told: u64,
    /// There is input whose size is seen by the provider alone. It is read once.
    pub(super) input: bool,
    /// The provider works by itself, and reads everything again with each step.
    pub(super) work: bool,
}

impl Hidden {
    /// Looks through the body of a message, which is JSON.
    pub(super) fn of(body: &[u8]) -> Self {
        let mut reader = Reader {
            rest: body,
            depth: 0,
            hidden: Self::default(),
        };
        if reader.message().is_none() {
            reader.hidden.input = true;
            reader.hidden.work = true;
        }
        reader.hidden
    }
}

/// Walks over JSON. Nothing where it ends early or is nested too deeply.
struct Reader<'a> {
    rest: &'a [u8],
    depth: usize,
    hidden: Hidden,
}

impl<'a> Reader<'a> {
    fn message(&mut self) -> Option<()> {
        self.object(&mut |reader, name| match name {
            "messages" | "system" => reader.content(),
            "tools" => reader.tools(),
            "container" | "mcp_servers" => {
                reader.hidden.work |= !reader.is_none();
                reader.skip()
            }
            "context_management" => reader.management(),
            _ => reader.skip(),
        })
    }

    /// Looks for what the provider does to a conversation before it answers: some of it asks the
    /// model, and all but what only clears is taken for that.
    fn management(&mut self) -> Option<()> {
        if self.peek()? != b'{' {
            return self.skip();
        }
        self.object(&mut |reader, name| match name {
            "edits" if reader.peek()? == b'[' => reader.list(&mut Self::edit),
            _ => reader.skip(),
        })
    }

    fn edit(&mut self) -> Option<()> {
        if self.peek()? != b'{' {
            return self.skip();
        }
        let (mut clears, mut does_more) = (false, false);
        self.object(&mut |reader, name| {
            if name != "type" {
                return reader.skip();
            }
            let is_clearing = reader.word()?.starts_with("clear_");
            clears |= is_clearing;
            does_more |= !is_clearing;
            Some(())
        })?;
        self.hidden.work |= does_more || !clears;
        Some(())
    }

    /// Looks for sources in blocks of content, wherever they lie.
    fn content(&mut self) -> Option<()> {
        match self.peek()? {
            b'[' => self.list(&mut Self::content),
            b'{' => self.object(&mut |reader, name| match name {
                "source" => reader.source(),
                "file_id" => {
                    reader.hidden.input = true;
                    reader.skip()
                }
                // What a tool is called with is text to the model.
                "input" => reader.skip(),
                _ => reader.content(),
            }),
            _ => self.skip(),
        }
    }

    /// Reads where a block has its content from. A text is a name for people.
    fn source(&mut self) -> Option<()> {
        if self.peek()? != b'{' {
            return self.content();
        }
        let (mut is_known, mut is_packed, mut is_other) = (false, false, false);
        let (mut is_picture, mut is_document) = (false, false);
        self.object(&mut |reader, name| match name {
            "type" => {
                match reader.word()?.as_str() {
                    "content" | "text" => is_known = true,
                    "base64" => is_packed = true,
                    _ => is_other = true,
                }
                Some(())
            }
            "media_type" => {
                let picture = reader.word()?.starts_with("image/");
                is_picture |= picture;
                is_document |= !picture;
                Some(())
            }
            "content" => reader.content(),
            "file_id" | "url" => {
                is_other = true;
                reader.skip()
            }
            _ => reader.skip(),
        })?;
        if is_packed && is_picture && !is_document {
            self.hidden.told = self.hidden.told.saturating_add(PICTURE_TOKENS);
        } else if is_packed {
            self.hidden.input = true;
        }
        self.hidden.input |= is_other || !(is_known || is_packed);
        Some(())
    }

    fn tools(&mut self) -> Option<()> {
        if self.is_none() {
            return self.skip();
        }
        self.hidden.told = self.hidden.told.saturating_add(TOOL_TOKENS);
        self.list(&mut |reader| {
            reader.object(&mut |reader, name| {
                if name != "type" {
                    return reader.skip();
                }
                let is_null = reader.is_none();
                match reader.word()?.as_str() {
                    "" if is_null => {}
                    "custom" => {}
                    kind if TOOLS_OF_CLIENTS.iter().any(|own| kind.starts_with(own)) => {
                        reader.hidden.told = reader.hidden.told.saturating_add(TOOL_TOKENS);
                    }
                    _ => reader.hidden.work = true,
                }
                Some(())
            })
        })
    }

    /// Tells whether `null` or an empty list is next.
    fn is_none(&mut self) -> bool {
        match self.peek() {
            Some(b'n') => true,
            Some(b'[') => {
                let inner = self.rest.get(1..).unwrap_or_default().trim_ascii_start();
                inner.first() == Some(&b']')
            }
            _ => false,
        }
    }

    fn object(&mut self, each: &mut dyn FnMut(&mut Self, &str) -> Option<()>) -> Option<()> {
        self.within(b'{', b'}', &mut |reader| {
            let name = reader.word()?;
            reader.expect(b':')?;
            each(reader, &name)
        })
    }

    fn list(&mut self, each: &mut dyn FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.within(b'[', b']', each)
    }

    fn within(
        &mut self,
        open: u8,
        close: u8,
        each: &mut dyn FnMut(&mut Self) -> Option<()>,
    ) -> Option<()> {
        self.expect(open)?;
        self.depth += 1;
        if self.depth > DEPTH_LIMIT {
            return None;
        }
        while self.peek()? != close {
            each(self)?;
            if self.peek()? == b',' {
                self.expect(b',')?;
            }
        }
        self.depth -= 1;
        self.expect(close)
    }

    /// Takes a value, and returns it where it is a short text; else an empty one.
    fn word(&mut self) -> Option<String> {
        if self.peek()? != b'"' {
            self.skip()?;
            return Some(String::new());
        }
        let text = self.text()?;
        let word = (text.len() <= WORD_LIMIT_BYTES).then(|| serde_json::from_slice(text).ok());
        Some(word.flatten().unwrap_or_default())
    }

    /// Takes a text, and returns it with its quotes.
    fn text(&mut self) -> Option<&'a [u8]> {
        let mut at = 1;
        loop {
            let found = memchr2(b'"', b'\\', self.rest.get(at..)?)?;
            at += found;
            if self.rest.get(at) == Some(&b'"') {
                let (text, rest) = self.rest.split_at_checked(at + 1)?;
                self.rest = rest;
                return Some(text);
            }
            at += 2;
        }
    }

    /// Takes a value of any depth and forgets it.
    fn skip(&mut self) -> Option<()> {
        let mut open = 0_usize;
        loop {
            match self.peek()? {
                b'"' => {
                    self.text()?;
                }
                b'{' | b'[' => {
                    open += 1;
                    self.advance();
                }
                b'}' | b']' => {
                    open = open.checked_sub(1)?;
                    self.advance();
                }
                b',' | b':' if open > 0 => self.advance(),
                _ => {
                    let ends = |byte: &u8| b",:]}\"[{ \t\r\n".contains(byte);
                    let end = self.rest.iter().position(ends);
                    let end = end.unwrap_or(self.rest.len());
                    if end == 0 {
                        return None;
                    }
                    self.rest = self.rest.get(end..)?;
                }
            }
            if open == 0 {
                return Some(());
            }
        }
    }

    fn peek(&mut self) -> Option<u8> {
        self.rest = self.rest.trim_ascii_start();
        self.rest.first().copied()
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.advance())
    }

    fn advance(&mut self) {
        self.rest = self.rest.get(1..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hidden(text: &str) -> Hidden {
        serde_json::from_str::<serde::de::IgnoredAny>(text).unwrap();
        Hidden::of(text.as_bytes())
    }

    /// A message with one block, and what it hides.
    fn block(block: &str) -> Hidden {
        let in_message = hidden(&format!(
            r#"{{"messages":[{{"role":"user","content":[{block}]}}]}}"#
        ));
        // A result of a tool holds blocks too.
        let in_result = hidden(&format!(
            r#"{{ "messages" : [ {{"content":[{{"type":"tool_result","content":[{{"a":1}},{block}]}}]}}]}}"#
        ));
        assert_eq!(in_message, in_result, "{block}");
        in_message
    }

    fn told(told: u64) -> Hidden {
        Hidden {
            told,
            ..Hidden::default()
        }
    }

    const INPUT: Hidden = Hidden {
        told: 0,
        input: true,
        work: false,
    };

    #[test]
    fn what_clients_send_hides_nothing() {
        for body in [
            "{}",
            r#"{"messages":"hi","system":null,"tools":null,"mcp_servers":[ ],"container":null}"#,
            r#"{"model":"m","max_tokens":8,"messages":[{"role":"user","content":"hi"}]}"#,
            r#"{"system":[{"type":"text","text":"\"source\":{\"type\":\"url\"}","cache_control":{"type":"ephemeral"}}]}"#,
            r#"{"messages":[{"content":[{"type":"tool_use","id":"t","name":"n","input":{"source":{"type":"url"},"file_id":"f"}}]}]}"#,
            r#"{"messages":[{"content":[{"type":"text","text":"\ud83d \\","citations":[{"type":"char_location"}]}]}]}"#,
            r#"{"context_management":{"edits":[{"type":"clear_tool_uses_20250919","keep":1}]}}"#,
            r#"{"context_management":{"edits":[]},"messages":[]}"#,
            r#"{"context_management":null}"#,
            r#"{"metadata":{"user_id":"u"},"thinking":{"type":"enabled","budget_tokens":1024},"stream":true,"temperature":-1.5e3}"#,
        ] {
            assert_eq!(hidden(body), told(0), "{body}");
        }
        for source in [
            r#"{"type":"text","media_type":"text/plain","data":"x"}"#,
            r#"{"type":"content","content":[{"type":"text","text":"x"}]}"#,
            r#""https://a.example/of-a-search-result""#,
        ] {
            let document = format!(r#"{{"type":"document","source":{source}}}"#);
            assert_eq!(block(&document), told(0), "{source}");
        }
    }

    #[test]
    fn what_asks_the_model_before_it_answers_is_work() {
        for edit in [
            r#"{"type":"compact_20260112","trigger":{"type":"input_tokens","value":50000}}"#,
            r#"{"type":"clear_thinking_20251015","type":"compact_20260112"}"#,
            r#"{"trigger":1}"#,
        ] {
            let clears = r#"{"type":"clear_tool_uses_20250919"}"#;
            let body = format!(r#"{{"context_management":{{"edits":[{clears},{edit}]}}}}"#);
            let work = Hidden {
                work: true,
                ..Hidden::default()
            };
            assert_eq!(hidden(&body), work, "{body}");
        }
    }

    #[test]
    fn what_the_provider_alone_sees_is_hidden_input() {
        for source in [
            r#"{"type":"url","url":"https://a.example/x.pdf"}"#,
            r#"{"type":"file","file_id":"file_1"}"#,
            r#"{"type":"of_tomorrow"}"#,
            r#"{"type":1}"#,
            r"{}",
            r#"{"type":"base64","media_type":"application/pdf","data":"x"}"#,
            r#"{"type":"base64","data":"x"}"#,
            r#"{"\u0074ype":"\u0075rl"}"#,
            r#"{"type":"text","type":"url"}"#,
            r#"{"type":"text","url":"https://a.example/"}"#,
            r#"{"type":"content","content":[{"source":{"type":"url"}}]}"#,
        ] {
            let document = format!(r#"{{"type":"document","source":{source}}}"#);
            assert!(block(&document).input, "{source}");
            let twice = format!(r#"{{"source":{source},"source":{{"type":"text"}}}}"#);
            assert!(block(&twice).input, "{source}");
        }
        assert_eq!(block(r#"{"type":"container_upload","file_id":"f"}"#), INPUT);
        assert!(hidden(r#"{"system":[{"source":{"type":"url"}}]}"#).input);
        let twice = r#"{"messages":[{"source":{"type":"url"}}],"messages":[]}"#;
        assert!(hidden(twice).input);
        let deep = format!(r#"{{"messages":{}{}}}"#, "[".repeat(100), "]".repeat(100));
        assert!(hidden(&deep).input);
    }

    #[test]
    fn pictures_have_their_most() {
        let picture =
            r#"{"type":"image","source":{"type":"base64","media_type":"image/png","data":"x"}}"#;
        assert_eq!(block(picture), told(PICTURE_TOKENS));
        assert_eq!(
            block(&format!("{picture},{picture}")),
            told(2 * PICTURE_TOKENS)
        );
        let both = r#"{"source":{"type":"base64","media_type":"image/png","media_type":"application/pdf"}}"#;
        assert!(block(both).input);
    }

    #[test]
    fn tools_of_the_provider_s_work_by_themselves() {
        for (tools, expected) in [
            ("[]", told(0)),
            (
                r#"[{"name":"Bash","input_schema":{"type":"object"}}]"#,
                told(TOOL_TOKENS),
            ),
            (
                r#"[{"type":"custom","name":"n"},{"type":null}]"#,
                told(TOOL_TOKENS),
            ),
            (
                r#"[{"type":"bash_20250124","name":"bash"}]"#,
                told(2 * TOOL_TOKENS),
            ),
        ] {
            assert_eq!(
                hidden(&format!("{{\"tools\":{tools}}}")),
                expected,
                "{tools}"
            );
        }
        for more in [
            r#""tools":[{"type":"web_search_20250305","name":"web_search","max_uses":8}]"#,
            r#""tools":[{"name":"a"},{"type":"code_execution_20250825"}]"#,
            r#""tools":[{"type":"custom","type":"web_fetch_20250910"}]"#,
            r#""tools":[{"typ\u0065":"web_fetch_20250910"}]"#,
            r#""tools":[{"type":7}]"#,
            r#""tools":{"type":"web_search_20250305"}"#,
            r#""mcp_servers":[{"type":"url","url":"https://a.example/"}]"#,
            r#""mcp_servers":{}"#,
            r#""container":"c_1""#,
            r#""container":{"id":"c_1"}"#,
        ] {
            let found = hidden(&format!("{{\"max_tokens\":1,{more},\"stream\":true}}"));
            assert!(found.work, "{more}: {found:?}");
        }
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<f32>().prop_map(Into::into),
            ".{0,6}".prop_map(Into::into),
        ];
        leaf.prop_recursive(5, 40, 5, |inner| {
            let name = prop_oneof![Just("content".to_owned()), ".{0,4}"];
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
                proptest::collection::vec((name, inner), 0..5).prop_map(|members| {
                    serde_json::Value::Object(members.into_iter().collect())
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_json_is_walked_to_its_end(value in json(), pretty: bool) {
            let message = serde_json::json!({
                "a": value, "messages": [value, { "source": { "type": "base64", "media_type": "image/a" } }],
                "z": value, "tools": [{ "name": value }],
            });
            let text = if pretty {
                serde_json::to_string_pretty(&message).unwrap()
            } else {
                message.to_string()
            };
            prop_assert_eq!(hidden(&text), told(PICTURE_TOKENS + TOOL_TOKENS));
        }

        #[test]
        fn no_bytes_stop_it(bytes in proptest::collection::vec(
            proptest::sample::select(&b"{}[]\",:\\ tnu1"[..]), 0..60,
        )) {
            let text = [b"{\"messages\":", &bytes[..]].concat();
            let _any = Hidden::of(&text);
        }
    }
}
