//! Tokens in the answer of a token endpoint: found, and sealed tokens put in their place.
//!
//! An answer is read whole, strictly, and once: what two readers could understand differently, a
//! name that stands twice or a body that is neither JSON nor a form, is refused, so that no token
//! gets past. All other bytes stay as they are. It never shows a token in an error or in `Debug`.
//! The side of an exchange that captures calls it.

use std::fmt;
use std::ops::Range;

use serde::de::IgnoredAny;
use zeroize::Zeroizing;

use crate::policy::TokenKind;
use crate::secret::Secret;

/// The longest token that is captured, in bytes.
pub const TOKEN_LIMIT_BYTES: usize = 16 * 1024;
/// The longest name of a token, with those of the objects around it, in bytes.
const NAME_LIMIT_BYTES: usize = 128;
/// How deep an answer may be nested.
const DEPTH_LIMIT: usize = 32;

/// Says why tokens cannot be taken out of an answer. The upstream is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The body is neither a JSON object nor a form, or not one that reads the same to everybody.
    #[error("the body is no JSON object or form that reads the same to everybody")]
    Body,
    /// The body is a part of an answer, which may begin within a token.
    #[error("the body is a part of an answer")]
    Part,
    /// A member with the name of a token is no text, stands twice, or is too long.
    #[error("a token is no text, stands twice, or is too long")]
    Token,
}

/// A token that an answer has.
#[derive(Debug)]
pub struct Token {
    /// Its name as the standards write it, with those of the objects around it before it:
    /// `access_token`.
    pub name: Box<str>,
    /// What it is for.
    pub kind: TokenKind,
    /// The real value.
    pub value: Secret,
    /// Where it stands in the body, quotation marks not counted.
    place: Range<usize>,
}

/// The body of an answer, read.
pub struct TokenAnswer {
    body: Zeroizing<Vec<u8>>,
    tokens: Vec<Token>,
}

impl fmt::Debug for TokenAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenAnswer")
            .field("tokens", &self.tokens)
            .finish_non_exhaustive()
    }
}

impl TokenAnswer {
    /// Reads a body without coding. An empty one has no tokens.
    ///
    /// # Errors
    /// See [`Error`]; nothing of the body may then be sent on.
    pub fn read(content_type: Option<&[u8]>, body: Zeroizing<Vec<u8>>) -> Result<Self, Error> {
        let text = std::str::from_utf8(&body).map_err(|_why| Error::Body)?;
        let tokens = if text.is_empty() {
            Vec::new()
        } else if is_form(content_type.unwrap_or_default()) {
            read_form(text)?
        } else {
            // Whatever it says it is: clients that expect JSON read it as that.
            read_json(text)?
        };
        Ok(Self { body, tokens })
    }

    /// Returns the tokens in the order in which they stand.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// Returns the body with other texts in the place of the tokens, in their order. The texts must
    /// need no escaping, as sealed tokens do not.
    pub fn with(&self, texts: &[String]) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.body.len());
        let mut copied = 0;
        for (token, text) in self.tokens.iter().zip(texts) {
            let before = self.body.get(copied..token.place.start);
            out.extend_from_slice(before.unwrap_or_default());
            out.extend_from_slice(text.as_bytes());
            copied = token.place.end;
        }
        // Fewer texts than tokens: what is left must not go out.
        if self.tokens.len() == texts.len() {
            out.extend_from_slice(self.body.get(copied..).unwrap_or_default());
        }
        out
    }
}

/// Tells whether the body says that it is a form.
fn is_form(content_type: &[u8]) -> bool {
    let media = content_type.split(|byte| *byte == b';').next();
    let media = media.unwrap_or_default().trim_ascii();
    media.eq_ignore_ascii_case(b"application/x-www-form-urlencoded")
}

/// Makes a token of its value, if it is one.
fn token(
    (within, kind): (&[String], TokenKind),
    value: Zeroizing<Vec<u8>>,
    place: Range<usize>,
) -> Result<Option<Token>, Error> {
    let mut name: String = within.iter().flat_map(|it| [it.as_str(), "."]).collect();
    name.push_str(kind.as_str());
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let named = name.len() <= NAME_LIMIT_BYTES && name.bytes().all(plain);
    if !named || value.len() > TOKEN_LIMIT_BYTES {
        return Err(Error::Token);
    }
    Ok((!value.is_empty()).then(|| {
        let mut value = value;
        Token {
            name: name.into(),
            kind,
            value: Secret::new(std::mem::take(&mut *value)),
            place,
        }
    }))
}

/// Finds the tokens of a form (WHATWG URL §5.1).
fn read_form(text: &str) -> Result<Vec<Token>, Error> {
    // What a form writes in escapes; and `;`, which some take for `&`.
    let odd = |byte: u8| !byte.is_ascii_graphic() || b";\"'<>[\\]^`{|}".contains(&byte);
    if text.bytes().any(odd) {
        return Err(Error::Body);
    }
    let (mut tokens, mut seen, mut at) = (Vec::new(), Vec::new(), 0);
    for piece in text.split('&') {
        let start = at;
        at += piece.len() + 1;
        let (name, value) = piece.split_once('=').unwrap_or((piece, ""));
        let name = unescaped(name).ok_or(Error::Body)?;
        let name = std::str::from_utf8(&name).map_err(|_why| Error::Body)?;
        let Some(kind) = TokenKind::of(name) else {
            continue;
        };
        if seen.contains(&kind) {
            return Err(Error::Token);
        }
        seen.push(kind);
        let end = start + piece.len();
        let place = end - value.len()..end;
        let value = unescaped(value).ok_or(Error::Token)?;
        tokens.extend(token((&[], kind), value, place)?);
    }
    Ok(tokens)
}

/// Reads a text of a form; nothing if an escape is malformed.
fn unescaped(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut out = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                u8::try_from(high * 16 + low).ok()?
            }
            other => other,
        });
    }
    Some(out)
}

/// Finds the tokens of a JSON object (RFC 8259), in whatever object within it they stand.
fn read_json(text: &str) -> Result<Vec<Token>, Error> {
    if !text
        .trim_start_matches([' ', '\t', '\r', '\n'])
        .starts_with('{')
    {
        return Err(Error::Body);
    }
    // The grammar first: the walk below relies on it.
    serde_json::from_str::<IgnoredAny>(text).map_err(|_why| Error::Body)?;
    let mut walk = Walk {
        text,
        at: 0,
        path: Vec::new(),
        tokens: Vec::new(),
    };
    walk.value(None)?;
    Ok(walk.tokens)
}

/// A walk over a text that is JSON.
struct Walk<'a> {
    text: &'a str,
    at: usize,
    path: Vec<String>,
    tokens: Vec<Token>,
}

impl Walk<'_> {
    /// Returns the next byte that is no white space.
    fn peek(&mut self) -> Option<u8> {
        let rest = self.text.as_bytes().get(self.at..)?;
        let blank = |byte: &&u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        self.at += rest.iter().take_while(blank).count();
        self.text.as_bytes().get(self.at).copied()
    }

    /// Takes a byte that must be there.
    fn expect(&mut self, byte: u8) -> Result<(), Error> {
        match self.peek() {
            Some(found) if found == byte => self.at += 1,
            _ => return Err(Error::Body),
        }
        Ok(())
    }

    /// Takes a text; returns where it stands between its quotation marks.
    fn string(&mut self) -> Result<Range<usize>, Error> {
        self.expect(b'"')?;
        let start = self.at;
        let mut bytes = self.text.as_bytes().iter().enumerate().skip(start);
        while let Some((index, byte)) = bytes.next() {
            match byte {
                b'\\' => drop(bytes.next()),
                b'"' => {
                    self.at = index + 1;
                    return Ok(start..index);
                }
                _ => {}
            }
        }
        Err(Error::Body)
    }

    /// Reads a text with its escapes.
    fn decoded(&self, place: &Range<usize>) -> Result<String, Error> {
        let quoted = self.text.get(place.start - 1..place.end + 1);
        serde_json::from_str(quoted.unwrap_or_default()).map_err(|_why| Error::Body)
    }

    /// Takes a value, which is a token if it is of a kind.
    fn value(&mut self, kind: Option<TokenKind>) -> Result<(), Error> {
        match self.peek().ok_or(Error::Body)? {
            b'{' | b'[' if kind.is_some() => Err(Error::Token),
            b'{' => self.object(),
            b'[' => self.list(),
            b'"' => {
                let place = self.string()?;
                let Some(kind) = kind else { return Ok(()) };
                let value = Zeroizing::new(self.decoded(&place)?.into_bytes());
                let within = self.path.split_last().map_or(&[][..], |(_, within)| within);
                let found = token((within, kind), value, place)?;
                self.tokens.extend(found);
                Ok(())
            }
            _ => {
                let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
                let plain = |byte: &&u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
                let length = rest.iter().take_while(plain).count();
                let word = rest.get(..length).unwrap_or_default();
                if kind.is_some() && word != b"null" {
                    return Err(Error::Token);
                }
                self.at += length;
                Ok(())
            }
        }
    }

    fn object(&mut self) -> Result<(), Error> {
        self.expect(b'{')?;
        self.deeper()?;
        let mut seen = Vec::new();
        while self.peek() != Some(b'}') {
            let name = self.string()?;
            let name = self.decoded(&name)?;
            let kind = TokenKind::of(&name);
            if let Some(kind) = kind {
                if seen.contains(&kind) {
                    return Err(Error::Token);
                }
                seen.push(kind);
            }
            self.expect(b':')?;
            self.path.push(name);
            self.value(kind)?;
            self.path.pop();
            self.comma(b'}')?;
        }
        self.expect(b'}')
    }

    fn list(&mut self) -> Result<(), Error> {
        self.expect(b'[')?;
        self.deeper()?;
        let mut index = 0_usize;
        while self.peek() != Some(b']') {
            self.path.push(index.to_string());
            self.value(None)?;
            self.path.pop();
            self.comma(b']')?;
            index += 1;
        }
        self.expect(b']')
    }

    fn deeper(&self) -> Result<(), Error> {
        if self.path.len() >= DEPTH_LIMIT {
            return Err(Error::Body);
        }
        Ok(())
    }

    /// Takes a comma, unless the end follows.
    fn comma(&mut self, end: u8) -> Result<(), Error> {
        if self.peek() == Some(end) {
            return Ok(());
        }
        self.expect(b',')
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const JSON: Option<&[u8]> = Some(b"application/json; charset=utf-8");
    const FORM: Option<&[u8]> = Some(b"Application/X-WWW-Form-Urlencoded ; charset=utf-8");

    fn read(kind: Option<&[u8]>, text: impl AsRef<[u8]>) -> Result<TokenAnswer, Error> {
        TokenAnswer::read(kind, Zeroizing::new(text.as_ref().to_vec()))
    }

    /// Names the tokens and their values, and puts `T0`, `T1`... in their place.
    fn changed(kind: Option<&[u8]>, text: &str) -> Result<(Vec<String>, String), Error> {
        let answer = read(kind, text)?;
        let shown = answer.tokens().iter().map(|token| {
            let value = String::from_utf8_lossy(token.value.expose());
            format!("{}={value}", token.name)
        });
        let shown: Vec<String> = shown.collect();
        let texts: Vec<String> = (0..shown.len()).map(|index| format!("T{index}")).collect();
        let out = String::from_utf8(answer.with(&texts)).unwrap();
        Ok((shown, out))
    }

    #[test]
    fn tokens_change_and_every_other_byte_stays() {
        let cases: [(&str, &[&str], &str); 11] = [
            (
                r#"{"access_token":"a1","token_type":"bearer","refresh_token":"r1","id_token":"i"}"#,
                &["access_token=a1", "refresh_token=r1", "id_token=i"],
                r#"{"access_token":"T0","token_type":"bearer","refresh_token":"T1","id_token":"T2"}"#,
            ),
            (
                " {\r\n\t\"expires_in\" : 3.60e3 , \"access_token\" :\n \"a1\" } \n",
                &["access_token=a1"],
                " {\r\n\t\"expires_in\" : 3.60e3 , \"access_token\" :\n \"T0\" } \n",
            ),
            (
                r#"{"acc\u0065ss\u005ftoken":"a\/\u0062\"c","x":"\\"}"#,
                &["access_token=a/b\"c"],
                r#"{"acc\u0065ss\u005ftoken":"T0","x":"\\"}"#,
            ),
            (
                r#"{"accessToken":"a1","idToken":"i1"}"#,
                &["access_token=a1", "id_token=i1"],
                r#"{"accessToken":"T0","idToken":"T1"}"#,
            ),
            (
                r#"{"ok":true,"authed_user":{"access_token":"u"},"access_token":"b"}"#,
                &["authed_user.access_token=u", "access_token=b"],
                r#"{"ok":true,"authed_user":{"access_token":"T0"},"access_token":"T1"}"#,
            ),
            (
                r#"{"all":[{"access_token":"u"},[],{"access_token":"v"}]}"#,
                &["all.0.access_token=u", "all.2.access_token=v"],
                r#"{"all":[{"access_token":"T0"},[],{"access_token":"T1"}]}"#,
            ),
            (
                r#"{"access_token":null,"refresh_token":""}"#,
                &[],
                r#"{"access_token":null,"refresh_token":""}"#,
            ),
            ("{}", &[], "{}"),
            (
                r#"{"error":"authorization_pending","a":[1,-2.5,true,false,null,"access_token"]}"#,
                &[],
                r#"{"error":"authorization_pending","a":[1,-2.5,true,false,null,"access_token"]}"#,
            ),
            (
                "{\"name\":\"\u{e9}\u{1f600}\",\"access_token\":\"t\u{f6}k\"}",
                &["access_token=t\u{f6}k"],
                "{\"name\":\"\u{e9}\u{1f600}\",\"access_token\":\"T0\"}",
            ),
            ("", &[], ""),
        ];
        for (text, names, out) in cases {
            for kind in [JSON, Some(b"text/plain".as_slice()), None] {
                let (found, written) = changed(kind, text).unwrap();
                assert_eq!((found, written.as_str()), (names.map_to(), out));
            }
        }
    }

    /// Turns texts into owned ones, for comparisons.
    trait MapTo {
        fn map_to(&self) -> Vec<String>;
    }

    impl MapTo for &[&str] {
        fn map_to(&self) -> Vec<String> {
            self.iter().map(ToString::to_string).collect()
        }
    }

    #[test]
    fn forms_change_likewise() {
        let cases: [(&str, &[&str], &str); 5] = [
            (
                "access_token=gho_a1&scope=repo%2Cgist&token_type=bearer",
                &["access_token=gho_a1"],
                "access_token=T0&scope=repo%2Cgist&token_type=bearer",
            ),
            (
                "a=b&access%5Ftoken=a%2Fb+c%25&refresh_token=r=1",
                &["access_token=a/b c%", "refresh_token=r=1"],
                "a=b&access%5Ftoken=T0&refresh_token=T1",
            ),
            (
                "error=bad_verification_code&error_description=The+code",
                &[],
                "error=bad_verification_code&error_description=The+code",
            ),
            (
                "access_token=&refresh_token",
                &[],
                "access_token=&refresh_token",
            ),
            ("", &[], ""),
        ];
        for (text, names, out) in cases {
            let (found, written) = changed(FORM, text).unwrap();
            assert_eq!((found, written.as_str()), (names.map_to(), out));
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        let deep = format!("{}1{}", "{\"a\":".repeat(40), "}".repeat(40));
        let long = format!(
            "{{\"access_token\":\"{}\"}}",
            "a".repeat(TOKEN_LIMIT_BYTES + 1)
        );
        let named = format!("{{\"{}\":{{\"access_token\":\"a\"}}}}", "n".repeat(200));
        for (text, expected) in [
            (r#"{"access_token":"a","access_token":"b"}"#, Error::Token),
            (
                r#"{"access_token":"a","acc\u0065ss_token":"b"}"#,
                Error::Token,
            ),
            (r#"{"access_token":null,"access_token":"b"}"#, Error::Token),
            (r#"{"access_token":"a","accessToken":"b"}"#, Error::Token),
            (r#"{"access_token":1}"#, Error::Token),
            (r#"{"access_token":true}"#, Error::Token),
            (r#"{"access_token":["a"]}"#, Error::Token),
            (r#"{"access_token":{"token":"a"}}"#, Error::Token),
            (r#"{"a b":{"access_token":"a"}}"#, Error::Token),
            (&named, Error::Token),
            (&long, Error::Token),
            (&deep, Error::Body),
            (r#"{"access_token":"a""#, Error::Body),
            (r#"{"access_token":"a"} {}"#, Error::Body),
            (r#"{"access_token":"a",}"#, Error::Body),
            (r"{'access_token':'a'}", Error::Body),
            (r#"{/**/"access_token":"a"}"#, Error::Body),
            (r#"{access_token:"a"}"#, Error::Body),
            (r#"["access_token"]"#, Error::Body),
            (r#""access_token""#, Error::Body),
            ("\u{feff}{\"access_token\":\"a\"}", Error::Body),
            ("access_token=a", Error::Body),
            ("<OAuth><access_token>a</access_token></OAuth>", Error::Body),
            ("null", Error::Body),
            (" ", Error::Body),
            (r#"{"\ud800":1,"access_token":"a"}"#, Error::Body),
        ] {
            assert_eq!(read(JSON, text).map(|_| ()), Err(expected), "{text}");
            assert_eq!(read(None, text).map(|_| ()), Err(expected), "{text}");
        }
        let utf16: Vec<u8> = r#"{"access_token":"a"}"#.bytes().flat_map(|it| [it, 0]).collect();
        assert_eq!(read(JSON, utf16).map(|_| ()), Err(Error::Body));
        assert_eq!(
            read(JSON, b"{\"a\":\"\xff\"}").map(|_| ()),
            Err(Error::Body)
        );
        for (text, expected) in [
            ("access_token=a&access_token=b", Error::Token),
            ("access_token=a&access%5ftoken=b", Error::Token),
            ("access_token=a;b", Error::Body),
            ("x=1;access_token=a", Error::Body),
            (r#"{"access_token":"a"}"#, Error::Body),
            ("access_token=a b", Error::Body),
            ("access_token=a\n", Error::Body),
            ("access_token=%zz", Error::Token),
            ("%=1&access_token=a", Error::Body),
            ("%ff=1&access_token=a", Error::Body),
        ] {
            assert_eq!(read(FORM, text).map(|_| ()), Err(expected), "{text}");
        }
    }

    #[test]
    fn nothing_shows_a_token() {
        let answer = read(JSON, r#"{"access_token":"canary-1"}"#).unwrap();
        let shown = format!("{answer:?}");
        assert!(
            shown.contains("access_token") && !shown.contains("canary"),
            "{shown}"
        );
        assert_eq!(answer.with(&[]), b"", "never with a token left in");
    }

    proptest! {
        /// Whatever the object, serde's reading of what leaves differs in the tokens alone.
        #[test]
        fn any_object_changes_in_its_tokens_alone(
            names in prop::collection::vec("[a-z_\"\\\\\u{e9}]{0,6}|access_token|refresh_token", 0..6),
            value in "[ -~\u{80}-\u{ff}]{1,20}",
        ) {
            use serde_json::{Map, Value, json};
            let mut object = Map::new();
            for name in &names {
                object.insert(name.clone(), Value::String(value.clone()));
                object.insert(format!("in {name}"), json!([{"x": {name.clone(): 1.5e3}}, null]));
            }
            object.retain(|name, _| TokenKind::of(name).is_none()
                || matches!(name.as_str(), "access_token" | "refresh_token"));
            object.retain(|name, _| TokenKind::of(name.trim_start_matches("in ")).is_none()
                || !name.starts_with("in "));
            let text = Value::Object(object.clone()).to_string();
            let answer = read(JSON, &text).unwrap();
            let texts = vec!["SEALED".to_owned(); answer.tokens().len()];
            let back: Value = serde_json::from_slice(&answer.with(&texts)).unwrap();
            for (name, member) in &mut object {
                if TokenKind::of(name).is_some() {
                    *member = json!("SEALED");
                }
            }
            prop_assert_eq!(back, Value::Object(object));
        }
    }
}
