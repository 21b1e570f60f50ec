//! Tokens in the target of a request: path and query.
//!
//! Values are percent-encoded, so that none can end a segment or begin a parameter of its own.
//! The two parts are told apart at the first `?`; what comes before the path in absolute-form is
//! routing and never changed, and neither is a target of another form. Called by
//! [`Swapper::swap_request`](super::Swapper::swap_request) alone.

use memchr::{memchr, memmem};

use super::{Error, Form, Lookup, Swapped, Swapper, share};
use crate::sealed_token::Place;
use crate::wire::RequestHead;

/// Swaps the tokens in path and query.
pub(super) fn swap<L: Lookup>(
    swapper: &Swapper,
    head: &mut RequestHead,
    lookup: &L,
    swapped: &mut Swapped,
) -> Result<(), Error> {
    let Some((start, path, query)) = split(head.target()) else {
        return Ok(());
    };
    let new_path = swapper.rewrite(path, (Place::Path, Form::Percent), lookup, swapped)?;
    let new_query = swapper.rewrite(query, (Place::Query, Form::Percent), lookup, swapped)?;
    if new_path.is_some() || new_query.is_some() {
        let path = new_path.as_deref().unwrap_or(path);
        let query = new_query.as_deref().unwrap_or(query);
        let target = share([start, path, query].concat().into());
        head.replace_target(target);
    }
    Ok(())
}

/// Splits a target into what stands before the path, the path, and the query with its `?`; nothing
/// for a target that is neither in origin-form nor in absolute-form (RFC 9112 §3.2).
fn split(target: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let start = if target.first() == Some(&b'/') {
        0
    } else {
        let authority = memmem::find(target, b"://")? + 3;
        let rest = target.get(authority..)?;
        let length = rest.iter().position(|byte| matches!(byte, b'/' | b'?'));
        authority + length?
    };
    let (start, rest) = target.split_at_checked(start)?;
    let (path, query) = rest.split_at_checked(memchr(b'?', rest).unwrap_or(rest.len()))?;
    Some((start, path, query))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_split_at_the_first_question_mark() {
        for (target, expected) in [
            ("/", Some(("", "/", ""))),
            ("/a/b?c=/?d", Some(("", "/a/b", "?c=/?d"))),
            ("/?", Some(("", "/", "?"))),
            ("/x://y/z", Some(("", "/x://y/z", ""))),
            ("http://h:80/a?b", Some(("http://h:80", "/a", "?b"))),
            ("http://h?b/c", Some(("http://h", "", "?b/c"))),
            ("http://h", None),
            ("h:443", None),
            ("*", None),
        ] {
            let text = |part| std::str::from_utf8(part).unwrap();
            let parts = split(target.as_bytes()).map(|(a, b, c)| (text(a), text(b), text(c)));
            assert_eq!(parts, expected, "{target}");
        }
    }
}
