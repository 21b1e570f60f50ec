//! Which calls of the model provider are forwarded: a short list, what the operator adds to it path
//! by path, and nothing else.
//!
//! A catch-all under the operator's key would open files, batches and the organisation's data to
//! every sandbox. A path is decoded once and must then be plain; what two readers could take
//! differently is refused. Called before anything else is looked at.

use crate::web::ModelFailure;

/// The longest name of a model, in bytes.
const MODEL_LIMIT_BYTES: usize = 128;
/// The longest path that the operator adds, in bytes.
const EXTRA_LIMIT_BYTES: usize = 512;
/// The methods of such a path. A caller deletes nothing of the operator's.
const EXTRA_METHODS: [&str; 2] = ["GET", "POST"];

/// A path that the operator adds to those that are forwarded: exactly this one, under the operator's
/// key, and without a count of what its calls use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtraPath(String);

impl ExtraPath {
    /// Parses a path below `/v1/` of letters, digits and `._:@~-`. It has no empty part, none that
    /// leads elsewhere and no pattern, and is not forwarded without being added.
    pub fn parse(text: &str) -> Option<Self> {
        let segments: Vec<&str> = text.strip_prefix('/')?.split('/').collect();
        let plain =
            |segment: &&str| !matches!(*segment, "" | "." | "..") && segment.bytes().all(is_plain);
        let fits = matches!(segments.as_slice(), ["v1", _, ..])
            && text.len() <= EXTRA_LIMIT_BYTES
            && segments.iter().all(plain)
            && Call::known(&segments).is_none();
        fits.then(|| Self(text.to_owned()))
    }

    /// Returns the path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One call that is forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// Counts the tokens of a message without sending it.
    CountTokens,
    /// Does what the operator added this path for: nobody knows what it costs.
    Extra {
        /// The method.
        method: &'static str,
        /// The path.
        path: String,
    },
    /// Sends a message: the one call whose tokens are counted.
    Messages,
    /// Shows one model.
    Model(String),
    /// Lists the models.
    Models,
}

impl Call {
    /// Reads the path behind that of the gateway, and the method. Those of `extra` are forwarded
    /// too.
    ///
    /// # Errors
    /// [`ModelFailure::BadRequest`], [`ModelFailure::NotFound`] and
    /// [`ModelFailure::MethodNotAllowed`].
    pub(super) fn parse(
        method: &http::Method,
        path: &str,
        extra: &[ExtraPath],
    ) -> Result<Self, ModelFailure> {
        let path = path.strip_prefix('/').ok_or(ModelFailure::NotFound)?;
        let segments: Option<Vec<String>> = path.split('/').map(decode).collect();
        let segments = segments.ok_or(ModelFailure::BadRequest("the path is not a plain one"))?;
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        if let Some(call) = Self::known(&segments) {
            let allowed = call.method();
            let is_allowed = method.as_str() == allowed;
            return if is_allowed {
                Ok(call)
            } else {
                Err(ModelFailure::MethodNotAllowed(allowed))
            };
        }
        let path = format!("/{}", segments.join("/"));
        if !extra.iter().any(|extra| extra.as_str() == path) {
            return Err(ModelFailure::NotFound);
        }
        let mut methods = EXTRA_METHODS.into_iter();
        let method = methods.find(|allowed| method.as_str() == *allowed);
        let method = method.ok_or(ModelFailure::MethodNotAllowed("GET,POST"))?;
        Ok(Self::Extra { method, path })
    }

    /// Finds the call that is forwarded at a path whatever the operator says.
    fn known(segments: &[&str]) -> Option<Self> {
        match segments {
            ["v1", "messages"] => Some(Self::Messages),
            ["v1", "messages", "count_tokens"] => Some(Self::CountTokens),
            ["v1", "models"] => Some(Self::Models),
            ["v1", "models", id] if is_model(id) => Some(Self::Model((*id).to_owned())),
            _ => None,
        }
    }

    /// Returns the method.
    pub(super) fn method(&self) -> &'static str {
        match self {
            Self::CountTokens | Self::Messages => "POST",
            Self::Extra { method, .. } => method,
            Self::Model(_) | Self::Models => "GET",
        }
    }

    /// Returns the path at the model provider.
    pub(super) fn path(&self) -> String {
        match self {
            Self::CountTokens => "/v1/messages/count_tokens".to_owned(),
            Self::Extra { path, .. } => path.clone(),
            Self::Messages => "/v1/messages".to_owned(),
            Self::Model(id) => format!("/v1/models/{id}"),
            Self::Models => "/v1/models".to_owned(),
        }
    }
}

/// Decodes one segment once; nothing where it is empty, leads elsewhere, or would have to be decoded
/// again.
fn decode(segment: &str) -> Option<String> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut bytes = segment.bytes();
    let mut out = String::with_capacity(segment.len());
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'%' {
            let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
            u8::try_from(high * 16 + low).ok()?
        } else {
            byte
        };
        let plain = byte.is_ascii_graphic() && !b"/\\%?#".contains(&byte);
        out.push(plain.then_some(char::from(byte))?);
    }
    (!matches!(out.as_str(), "" | "." | "..")).then_some(out)
}

fn is_model(id: &str) -> bool {
    id.len() <= MODEL_LIMIT_BYTES && id.bytes().all(is_plain)
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._:@~-".contains(&byte)
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    #[test]
    fn a_short_list_is_forwarded() {
        for (method, path, call) in [
            (Method::POST, "/v1/messages", Call::Messages),
            (Method::POST, "/v1/%6d%65ssages", Call::Messages),
            (Method::POST, "/v1/messages/count_tokens", Call::CountTokens),
            (Method::GET, "/v1/models", Call::Models),
            (
                Method::GET,
                "/v1/models/claude-sonnet-4-6",
                Call::Model("claude-sonnet-4-6".to_owned()),
            ),
        ] {
            assert_eq!(Call::parse(&method, path, &[]).unwrap(), call, "{path}");
        }
        let decoded = Call::parse(&Method::GET, "/v1/models/a%62", &[]).unwrap();
        assert_eq!(decoded.path(), "/v1/models/ab");
    }

    #[test]
    fn nothing_else_is_there() {
        for path in [
            "",
            "/v1",
            "/v2/messages",
            "/v1/Messages",
            "/v1/messages/batches",
            "/v1/messages/count_tokens/x",
            "/v1/files",
            "/v1/complete",
            "/v1/organizations/users",
            "/v1/models/a/b",
            "/v1/models/a,b",
            "/api/eval/sdk-1",
        ] {
            for method in [Method::GET, Method::POST] {
                let call = Call::parse(&method, path, &[]);
                assert!(
                    matches!(call, Err(ModelFailure::NotFound)),
                    "{path}: {call:?}"
                );
            }
        }
    }

    #[test]
    fn what_two_readers_could_take_differently_is_refused() {
        for path in [
            "/",
            "//v1/messages",
            "/v1//messages",
            "/v1/messages/",
            "/v1/./messages",
            "/v1/../v1/messages",
            "/v1/%2e%2e/files",
            "/v1/%2E/messages",
            "/v1%2fmessages",
            "/v1/messages%2Fbatches",
            "/v1/messages%5cbatches",
            "/v1/%256d",
            "/v1/messages%00",
            "/v1/messages%20",
            "/v1/messages%",
            "/v1/messages%6",
            "/v1/messages%zz",
            "/v1/models/..",
            "/v1/models/a%3fb",
            "/v1/models/%c3%a4",
        ] {
            for method in [Method::GET, Method::POST] {
                let call = Call::parse(&method, path, &[]);
                let refused = matches!(call, Err(ModelFailure::BadRequest(_)));
                assert!(refused, "{path}: {call:?}");
            }
        }
    }

    #[test]
    fn each_call_has_one_method() {
        for (path, wrong) in [
            ("/v1/messages", Method::GET),
            ("/v1/messages", Method::HEAD),
            ("/v1/messages", Method::OPTIONS),
            ("/v1/messages/count_tokens", Method::PUT),
            ("/v1/models", Method::POST),
            ("/v1/models/a", Method::DELETE),
        ] {
            let call = Call::parse(&wrong, path, &[]);
            let refused = matches!(call, Err(ModelFailure::MethodNotAllowed(_)));
            assert!(refused, "{wrong} {path}: {call:?}");
        }
    }

    #[test]
    fn what_the_operator_adds_is_forwarded_and_nothing_beside_it() {
        let extra =
            ["/v1/files", "/v1/messages/batches"].map(|path| ExtraPath::parse(path).unwrap());
        for (method, path, expected) in [
            (Method::GET, "/v1/files", "GET /v1/files"),
            (
                Method::POST,
                "/v1/messages/b%61tches",
                "POST /v1/messages/batches",
            ),
            (Method::POST, "/v1/messages", "POST /v1/messages"),
        ] {
            let call = Call::parse(&method, path, &extra).unwrap();
            assert_eq!(format!("{} {}", call.method(), call.path()), expected);
        }
        for path in [
            "/v1",
            "/v1/files/x",
            "/v1/Files",
            "/v1/file",
            "/v1/messages/batches/x",
            "/v2/files",
        ] {
            let call = Call::parse(&Method::GET, path, &extra);
            assert!(
                matches!(call, Err(ModelFailure::NotFound)),
                "{path}: {call:?}"
            );
        }
        for path in [
            "/v1//files",
            "/v1/files/",
            "/v1/./files",
            "/v1/x/../files",
            "/v1%2ffiles",
        ] {
            let call = Call::parse(&Method::GET, path, &extra);
            let refused = matches!(call, Err(ModelFailure::BadRequest(_)));
            assert!(refused, "{path}: {call:?}");
        }
        for method in [Method::DELETE, Method::PUT, Method::PATCH, Method::HEAD] {
            let call = Call::parse(&method, "/v1/files", &extra);
            let refused = matches!(call, Err(ModelFailure::MethodNotAllowed("GET,POST")));
            assert!(refused, "{method}: {call:?}");
        }
    }

    #[test]
    fn paths_that_can_be_added_are_plain_and_new() {
        let longest = format!("/v1/{}", "x".repeat(EXTRA_LIMIT_BYTES - 4));
        for path in [
            "/v1/files",
            "/v1/messages/batches",
            "/v1/a.b/c_d:@~-9",
            &longest,
        ] {
            assert_eq!(ExtraPath::parse(path).unwrap().as_str(), path);
        }
        let longer = format!("{longest}x");
        for path in [
            "",
            "/",
            "v1/files",
            "/v1",
            "/v1/",
            "/v2/files",
            "//v1/files",
            "/v1//files",
            "/v1/files/",
            "/v1/./files",
            "/v1/../files",
            "/v1/%66iles",
            "/v1/files?x",
            "/v1/files#x",
            "/v1/*",
            "/v1/files/{id}",
            "/v1/a b",
            "/v1/a,b",
            "/v1/a\\b",
            "/v1/\u{e4}",
            "https://evil/v1/files",
            "/v1/messages",
            "/v1/messages/count_tokens",
            "/v1/models",
            "/v1/models/x",
            &longer,
        ] {
            assert_eq!(ExtraPath::parse(path), None, "{path}");
        }
    }
}
