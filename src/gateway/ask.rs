//! What a caller asks of the model: its body, read whole, and the most tokens that it may use.
//!
//! The body is passed on byte for byte. Of its fields two are read, the model and the most tokens of
//! the answer, and both must stand once: a reader further in might take the other. Everything else
//! is the model provider's matter. Called after it is known who pays.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::Room;
use super::hidden::Hidden;
use crate::id::AccountId;
use crate::web::{BodyError, BodyLimits, HeldRoom, ModelFailure};

/// What a body may be: as long as the model provider takes.
const LIMITS: BodyLimits = BodyLimits {
    bytes: 32 * 1024 * 1024,
    whole: Duration::from_mins(5),
    silence: Duration::from_secs(10),
};
/// What is reserved for input whose size nobody sees: the tokens of the model provider's largest
/// context, or what is left of a budget.
const HIDDEN_TOKENS: u64 = 1_000_000;
/// What a body is where its call says nothing else, and always where it is read.
const JSON: &str = "application/json";

/// What is asked.
pub(super) struct Ask {
    /// The body, as it came.
    pub(super) body: Bytes,
    /// What it is.
    pub(super) content_type: String,
    /// The model that is asked for.
    pub(super) model: String,
    /// The most tokens of its answer, where it says so.
    max_tokens: Option<u32>,
    /// The memory that it takes; given back when it is dropped.
    _held: HeldRoom<AccountId>,
}

/// What a call may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Need {
    /// How many tokens: so many at the least, and so many if they are there.
    pub(super) tokens: RangeInclusive<u64>,
    /// Not even the second number is sure, so that no other such call of the account may run.
    pub(super) is_alone: bool,
}

impl Need {
    /// Returns the need of a call that costs nothing.
    pub(super) fn nothing() -> Self {
        Self {
            tokens: 0..=0,
            is_alone: false,
        }
    }
}

impl fmt::Debug for Ask {
    /// Shows sizes: the body is the caller's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ask")
            .field("body_bytes", &self.body.len())
            .field("max_tokens", &self.max_tokens)
            .finish_non_exhaustive()
    }
}

impl Ask {
    /// Reads the body of an account's call whose tokens are counted.
    ///
    /// # Errors
    /// [`ModelFailure::BadRequest`], [`ModelFailure::NoRoom`], [`ModelFailure::Slow`] and
    /// [`ModelFailure::TooLarge`].
    pub(super) async fn read(
        headers: &HeaderMap,
        body: Body,
        owner: (&Arc<Room>, &AccountId),
    ) -> Result<Self, ModelFailure> {
        let (body, held) = Self::take(headers, body, owner).await?;
        Self::of(body, held)
    }

    /// Takes the body of a call that the operator added, whatever it is.
    ///
    /// # Errors
    /// Those of [`Ask::read`].
    pub(super) async fn unread(
        headers: &HeaderMap,
        shown: &str,
        body: Body,
        owner: (&Arc<Room>, &AccountId),
    ) -> Result<Self, ModelFailure> {
        let content_type = content_type(headers, shown)?.to_owned();
        let (body, held) = Self::take(headers, body, owner).await?;
        Ok(Self {
            body,
            content_type,
            model: String::new(),
            max_tokens: None,
            _held: held,
        })
    }

    async fn take(
        headers: &HeaderMap,
        body: Body,
        (room, account): (&Arc<Room>, &AccountId),
    ) -> Result<(Bytes, HeldRoom<AccountId>), ModelFailure> {
        let mut codings = headers.get_all(CONTENT_ENCODING).iter();
        if codings.any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            let text = "the body must have no content coding";
            return Err(ModelFailure::BadRequest(text));
        }
        let read = room.read(account.clone(), headers, body, &LIMITS).await;
        read.map_err(|why| match why {
            BodyError::NoRoom => ModelFailure::NoRoom,
            BodyError::Slow => ModelFailure::Slow,
            BodyError::TooLarge => ModelFailure::TooLarge,
        })
    }

    fn of(body: Bytes, held: HeldRoom<AccountId>) -> Result<Self, ModelFailure> {
        let read = serde_json::from_slice::<Fields>(&body).map_err(|_odd| {
            ModelFailure::BadRequest(
                "the body must be a JSON object in which model, a text, and max_tokens, a whole \
                 number, stand at most once",
            )
        })?;
        Ok(Self {
            body,
            content_type: JSON.to_owned(),
            model: read.model.unwrap_or_default(),
            max_tokens: read.max_tokens,
            _held: held,
        })
    }

    /// Returns what it may use, as far as it can be seen: the tokens of its answer, and one for each
    /// byte of its own, of which no token has less.
    pub(super) fn seen(&self) -> Need {
        let own = u64::try_from(self.body.len()).unwrap_or(u64::MAX);
        let seen = own.saturating_add(self.max_tokens.unwrap_or_default().into());
        Need {
            tokens: seen..=seen,
            is_alone: false,
        }
    }

    /// Returns what it may use at most, to be held against a budget.
    ///
    /// # Errors
    /// [`ModelFailure::BadRequest`] where nobody could tell.
    pub(super) fn need(&self) -> Result<Need, ModelFailure> {
        if self.max_tokens.is_none() {
            return Err(ModelFailure::BadRequest(
                "max_tokens is needed: the account's tokens are counted against a budget",
            ));
        }
        let hidden = Hidden::of(&self.body);
        let least = self.seen().tokens.start().saturating_add(hidden.told);
        let is_hidden = hidden.input || hidden.work;
        let more = if is_hidden { HIDDEN_TOKENS } else { 0 };
        Ok(Need {
            tokens: least..=least.saturating_add(more),
            is_alone: hidden.work,
        })
    }
}

/// Returns the one content type of a body, which will stand in a head of ours: without what the caller
/// showed.
fn content_type<'a>(headers: &'a HeaderMap, shown: &str) -> Result<&'a str, ModelFailure> {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let first = values.next().map_or(Ok(JSON), |value| value.to_str());
    let is_plain = |value: &str| value.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    match (first, values.next()) {
        (Ok(value), None) if is_plain(value) && !value.contains(shown) => Ok(value),
        _ => Err(ModelFailure::BadRequest(
            "content-type must stand at most once, in visible characters",
        )),
    }
}

/// The fields that are read.
#[derive(Default)]
struct Fields {
    model: Option<String>,
    /// More than this is no number of tokens.
    max_tokens: Option<u32>,
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        use serde::de::Error as _;
        let mut fields = Fields::default();
        let (mut model, mut most) = (false, false);
        while let Some(name) = map.next_key::<String>()? {
            let again = match name.as_str() {
                "model" => std::mem::replace(&mut model, true),
                "max_tokens" => std::mem::replace(&mut most, true),
                _ => false,
            };
            if again {
                return Err(A::Error::custom("a field stands twice"));
            }
            match name.as_str() {
                "model" => fields.model = map.next_value()?,
                "max_tokens" => fields.max_tokens = map.next_value()?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::ROOM;
    use crate::web::BodyRoom;
    use http::header::CONTENT_LENGTH;

    async fn ask(text: &str) -> Result<Ask, ModelFailure> {
        read(&HeaderMap::new(), Body::from(text.to_owned())).await
    }

    async fn read(headers: &HeaderMap, body: Body) -> Result<Ask, ModelFailure> {
        let (room, account) = (BodyRoom::new(ROOM), AccountId::of_number(1));
        Ask::read(headers, body, (&room, &account)).await
    }

    #[tokio::test]
    async fn the_most_is_that_of_both_directions() {
        for (body, model, output) in [
            (r#"{"model":"m","max_tokens":5}"#, "m", 5),
            (r#"{"max_tokens":64000,"model":"m","x":[{}]}"#, "m", 64_000),
            (r#"{"messages":[{"role":"system","model":"n"}]}"#, "", 0),
            (r#"{"model":null,"max_tokens":null}"#, "", 0),
            (r#"{"m\u006fdel":"m"}"#, "m", 0),
            // Half a character is the model provider's matter.
            (r#"{"model":"m","x":"\ud83d"}"#, "m", 0),
        ] {
            let ask = ask(body).await.unwrap();
            assert_eq!(ask.model, model, "{body}");
            let seen = output + body.len() as u64;
            assert_eq!(ask.seen().tokens, seen..=seen, "{body}");
            let is_told = output > 0;
            assert_eq!(
                ask.need().is_ok_and(|need| need == ask.seen()),
                is_told,
                "{body}"
            );
            assert_eq!(ask.body, body.as_bytes());
        }
    }

    #[tokio::test]
    async fn what_cannot_be_seen_is_reserved_for() {
        for (more, told, hidden, is_alone) in [
            (r#""messages":[]"#, 0, 0, false),
            (r#""tools":[{"name":"Bash"}]"#, 1024, 0, false),
            (
                r#""messages":[{"source":{"type":"url"}}]"#,
                0,
                HIDDEN_TOKENS,
                false,
            ),
            (
                r#""tools":[{"type":"web_search_20250305"}]"#,
                1024,
                HIDDEN_TOKENS,
                true,
            ),
            (r#""container":"c""#, 0, HIDDEN_TOKENS, true),
        ] {
            let body = format!("{{\"max_tokens\":5,{more}}}");
            let need = ask(&body).await.unwrap().need().unwrap();
            let least = body.len() as u64 + 5 + told;
            assert_eq!(need.tokens, least..=least + hidden, "{more}");
            assert_eq!(need.is_alone, is_alone, "{more}");
        }
        for body in ["{}", r#"{"max_tokens":null}"#] {
            let refused = ask(body).await.unwrap().need();
            let Err(ModelFailure::BadRequest(text)) = refused else {
                panic!("{body}: {refused:?}");
            };
            assert!(text.starts_with("max_tokens"), "{text}");
        }
    }

    #[tokio::test]
    async fn what_hides_the_most_is_refused() {
        for body in [
            "",
            "[]",
            "1",
            "{",
            r#"{"max_tokens":1,"max_tokens":64000}"#,
            r#"{"max_tokens":1,"max\u005ftokens":64000}"#,
            r#"{"model":"a","model":"b"}"#,
            r#"{"max_tokens":1.5}"#,
            r#"{"max_tokens":-1}"#,
            r#"{"max_tokens":"5"}"#,
            r#"{"max_tokens":4294967296}"#,
            r#"{"model":1}"#,
            r#"{"max_tokens":1}{"max_tokens":2}"#,
        ] {
            let refused = ask(body).await;
            assert!(
                matches!(refused, Err(ModelFailure::BadRequest(_))),
                "{body}: {refused:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_body_is_bounded_and_in_the_clear() {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, "gzip".parse().unwrap());
        let refused = read(&headers, Body::from("{}")).await;
        assert!(matches!(refused, Err(ModelFailure::BadRequest(_))));
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_LENGTH, "33554433".parse().unwrap());
        let refused = read(&headers, Body::from("{}")).await;
        assert!(matches!(refused, Err(ModelFailure::TooLarge)));
        let long = vec![b' '; LIMITS.bytes + 1];
        let refused = read(&HeaderMap::new(), Body::from(long)).await;
        assert!(matches!(refused, Err(ModelFailure::TooLarge)));
    }

    #[tokio::test]
    async fn what_is_asked_holds_what_it_is_until_it_is_dropped() {
        let (room, account) = (BodyRoom::new(ROOM), AccountId::of_number(1));
        let ask = |headers: HeaderMap| {
            let (room, account) = (Arc::clone(&room), account.clone());
            async move { Ask::read(&headers, Body::from("{}"), (&room, &account)).await }
        };
        // With its length, and without one as in chunks.
        let announced = HeaderMap::from_iter([(CONTENT_LENGTH, 2.into())]);
        for headers in [announced, HeaderMap::new()] {
            let asked = ask(headers).await.unwrap();
            assert_eq!(room.taken(), 2 * 2);
            drop(asked);
            assert_eq!(room.taken(), 0);
        }
    }

    #[tokio::test]
    async fn a_body_that_is_not_read_passes_as_what_its_caller_says() {
        let (room, account) = (BodyRoom::new(ROOM), AccountId::of_number(1));
        let owner = (&room, &account);
        let text = "--b\r\n{\"max_tokens\":1,\"max_tokens\":2}";
        for (kinds, expected) in [
            (&[][..], Some("application/json")),
            (
                &["multipart/form-data; boundary=b"],
                Some("multipart/form-data; boundary=b"),
            ),
            (&["a/b", "a/b"], None),
            (&["a/b\tc"], None),
            (&["a/b; x=SHOWN"], None),
        ] {
            let mut headers = HeaderMap::new();
            for kind in kinds {
                headers.append(CONTENT_TYPE, kind.parse().unwrap());
            }
            let ask = Ask::unread(&headers, "SHOWN", Body::from(text), owner).await;
            let got = ask.as_ref().ok().map(|ask| ask.content_type.as_str());
            assert_eq!(got, expected, "{kinds:?}: {ask:?}");
            if let Ok(ask) = ask {
                assert_eq!(ask.body, text.as_bytes());
            }
        }
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, "gzip".parse().unwrap());
        let refused = Ask::unread(&headers, "SHOWN", Body::from(text), owner).await;
        assert!(matches!(refused, Err(ModelFailure::BadRequest(_))));
    }
}
