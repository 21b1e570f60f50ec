//! Which calls of the model provider are forwarded: a short list, and nothing else.
//!
//! A catch-all under the operator's key would open files, batches and the organisation's data to
//! every sandbox. A path is decoded once and must then be plain; what two readers could take
//! differently is refused. Called before anything else is looked at.

use crate::web::ModelFailure;

/// The longest name of a model, in bytes.
const MODEL_LIMIT_BYTES: usize = 128;

/// One call that is forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// Counts the tokens of a message without sending it.
    CountTokens,
    /// Sends a message: the one call that costs tokens.
    Messages,
    /// Shows one model.
    Model(String),
    /// Lists the models.
    Models,
}

impl Call {
    /// Reads the path behind that of the gateway, and the method.
    ///
    /// # Errors
    /// [`ModelFailure::BadRequest`], [`ModelFailure::NotFound`] and
    /// [`ModelFailure::MethodNotAllowed`].
    pub(super) fn parse(method: &http::Method, path: &str) -> Result<Self, ModelFailure> {
        let path = path.strip_prefix('/').ok_or(ModelFailure::NotFound)?;
        let segments: Option<Vec<String>> = path.split('/').map(decode).collect();
        let segments = segments.ok_or(ModelFailure::BadRequest("the path is not a plain one"))?;
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        let (call, allowed) = match segments.as_slice() {
            ["v1", "messages"] => (Self::Messages, "POST"),
            ["v1", "messages", "count_tokens"] => (Self::CountTokens, "POST"),
            ["v1", "models"] => (Self::Models, "GET"),
            ["v1", "models", id] if is_model(id) => (Self::Model((*id).to_owned()), "GET"),
            _ => return Err(ModelFailure::NotFound),
        };
        if method.as_str() != allowed {
            return Err(ModelFailure::MethodNotAllowed(allowed));
        }
        Ok(call)
    }

    /// Returns the method.
    pub(super) fn method(&self) -> &'static str {
        match self {
            Self::CountTokens | Self::Messages => "POST",
            Self::Model(_) | Self::Models => "GET",
        }
    }

    /// Returns the path at the model provider.
    pub(super) fn path(&self) -> String {
        match self {
            Self::CountTokens => "/v1/messages/count_tokens".to_owned(),
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
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._:@~-".contains(&byte);
    id.len() <= MODEL_LIMIT_BYTES && id.bytes().all(plain)
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
            assert_eq!(Call::parse(&method, path).unwrap(), call, "{path}");
        }
        let decoded = Call::parse(&Method::GET, "/v1/models/a%62").unwrap();
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
                let call = Call::parse(&method, path);
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
                let call = Call::parse(&method, path);
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
            let call = Call::parse(&wrong, path);
            let refused = matches!(call, Err(ModelFailure::MethodNotAllowed(_)));
            assert!(refused, "{wrong} {path}: {call:?}");
        }
    }
}
