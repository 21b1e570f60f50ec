//! `Accept-Encoding`, cut down to what can be decoded.

use std::borrow::Cow;

use super::Coding;

/// Returns a field value that accepts only codings of the given one that can be decoded.
///
/// Elements stay as they were written, with their weights. `*` is taken out, since it invites any
/// coding, unless it refuses the rest (`*;q=0`). If nothing is left it is `identity`, which says the
/// same as an empty value and is understood by more servers. A request without the field invites
/// any coding too (RFC 9110 §12.5.3), but servers do not take it so; it stays as it is.
pub fn reduce_accept_encoding(value: &[u8]) -> Cow<'_, [u8]> {
    let elements = || value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    let empty = elements().all(<[u8]>::is_empty);
    if !empty && elements().all(|element| element.is_empty() || is_kept(element)) {
        return Cow::Borrowed(value);
    }
    let kept: Vec<&[u8]> = elements().filter(|element| is_kept(element)).collect();
    if kept.is_empty() {
        Cow::Borrowed(b"identity")
    } else {
        Cow::Owned(kept.join(b", ".as_slice()))
    }
}

fn is_kept(element: &[u8]) -> bool {
    let mut parts = element.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let name = parts.next().unwrap_or_default();
    let weight = parts.next();
    if name == b"*" {
        return weight.is_some_and(is_zero);
    }
    Coding::parse(name).is_some() || name.eq_ignore_ascii_case(b"identity")
}

/// Tells whether a weight is `q=0`, with or without decimals (RFC 9110 §12.4.2).
fn is_zero(weight: &[u8]) -> bool {
    let number = weight
        .strip_prefix(b"q=")
        .or_else(|| weight.strip_prefix(b"Q="));
    number.is_some_and(|number| {
        number.starts_with(b"0") && number.iter().all(|byte| matches!(byte, b'0' | b'.'))
    })
}
