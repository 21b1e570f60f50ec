//! What the properties of the swap look tokens up in, and a second, plain swap to compare with.
//!
//! The second swap tries every token at every place of a text and knows nothing of markers, fields
//! or searches, so that it can only agree with the first one where both are right.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use oshu_vault::sealed_token::{Place, Places, TokenId};
use oshu_vault::secret::Secret;
use oshu_vault::swap::{Lookup, Opening};

/// A token that opens, its prefix, and its value.
pub struct Row {
    pub prefix: &'static str,
    pub token: &'static str,
    pub value: &'static str,
    secret: Secret,
    name: Arc<str>,
}

/// Tokens that open at some places.
pub struct Table {
    pub rows: Vec<Row>,
    places: Places,
    prefixes: [Box<[u8]>; 1],
}

/// Every value holds this and no request does, so that one search tells whether a value is there.
pub const CANARY: &str = "cAnArY";

impl Table {
    /// Two tokens, one of them with a prefix, that open at the places.
    pub fn new(places: Places) -> Self {
        let row = |prefix, token, value: &'static str| Row {
            prefix,
            token,
            value,
            secret: Secret::new(value.as_bytes().to_vec()),
            name: Arc::from(token),
        };
        Self {
            rows: vec![
                row(
                    "",
                    "SEALED_0123456789abcdef0123456789abcdef",
                    "sk-cAnArY/+=& %\u{e9}\"\\",
                ),
                row(
                    "ghp_",
                    "SEALED_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
                    "ghp_cAnArY",
                ),
            ],
            places,
            prefixes: [b"ghp_".as_slice().into()],
        }
    }

    /// Opens everywhere.
    pub fn everywhere() -> Self {
        Self::new(Places {
            any_header: true,
            query: true,
            path: true,
            body: true,
            ..Places::default()
        })
    }

    /// Opens nowhere.
    pub fn nowhere() -> Self {
        Self::new(Places::default())
    }

    /// Swaps a text, one place after the other, with the values written as `form` says.
    pub fn plainly(&self, text: &[u8], form: fn(&str) -> Vec<u8>) -> Vec<u8> {
        let mut out = Vec::new();
        let mut rest = text;
        while let Some((first, behind)) = rest.split_first() {
            let starts = |row: &&Row| {
                rest.starts_with(row.prefix.as_bytes())
                    && rest[row.prefix.len()..].starts_with(row.token.as_bytes())
            };
            if let Some(row) = self.rows.iter().find(starts) {
                out.extend(form(row.value));
                rest = &rest[row.prefix.len() + row.token.len()..];
            } else {
                out.push(*first);
                rest = behind;
            }
        }
        out
    }

    /// Tells what becomes of the value of an `Authorization` field.
    pub fn authorization(&self, value: &[u8]) -> Vec<u8> {
        let (scheme, rest) = value.split_at(value.len().min(5));
        let spaces = rest.iter().take_while(|byte| **byte == b' ').count();
        if scheme.eq_ignore_ascii_case(b"basic")
            && spaces > 0
            && let Ok(decoded) = STANDARD.decode(&rest[spaces..])
        {
            let swapped = self.plainly(&decoded, as_it_is);
            return [&value[..5 + spaces], STANDARD.encode(swapped).as_bytes()].concat();
        }
        self.plainly(value, as_it_is)
    }
}

impl Lookup for Table {
    fn open<'a>(&'a self, id: TokenId, before: &[u8], place: Place<'_>) -> Option<Opening<'a>> {
        let row = self
            .rows
            .iter()
            .find(|row| TokenId::read(&row.token.as_bytes()[7..]) == Some(id))?;
        let here = before.ends_with(row.prefix.as_bytes()) && self.places.allow(place);
        here.then_some(Opening {
            prefix_length: row.prefix.len(),
            secret: &row.secret,
            name: &row.name,
        })
    }

    fn body_prefixes(&self) -> &[Box<[u8]>] {
        &self.prefixes
    }
}

/// A value as a field has it.
pub fn as_it_is(value: &str) -> Vec<u8> {
    value.as_bytes().to_vec()
}

/// A value as a target has it.
pub fn percent(value: &str) -> Vec<u8> {
    let escape = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    value.bytes().map(escape).collect::<String>().into_bytes()
}
