//! From JSON to what is asked of a tenant: its name, limits and state, and the label of a key.
//!
//! Every bad field is told at once, and unknown ones by name. Called by the operator's handlers.

use std::collections::BTreeMap;

use crate::id::TenantId;
use crate::session::FieldError;
use crate::tenant::{Change, LABEL_LIMIT, Limits, State, is_label};
use crate::web::Json;

/// The largest number that a limit takes.
const MOST: u64 = 1_000_000;

type Errors = Vec<FieldError>;

/// Reads the body of a creation.
///
/// # Errors
/// Every bad field.
pub(super) fn create(body: Json) -> Result<(TenantId, Limits), Errors> {
    let mut errors = Errors::new();
    let (mut id, mut change) = (None, Change::default());
    for (name, value) in fields(body, &mut errors) {
        match (name.as_str(), value) {
            ("tenant_id", Json::Text(text)) => {
                id = TenantId::parse(&text);
                if id.is_none() {
                    let message = "1 to 63 of a-z, 0-9, '.', '_' and '-', the first a letter or \
                                   digit";
                    errors.push(FieldError::new("tenant_id", "bad_tenant_id", message));
                }
            }
            ("tenant_id", _) => errors.push(wrong_type("tenant_id", "a text")),
            ("limits", value) => limits(value, &mut change, &mut errors),
            (name, _) => errors.push(unknown(name)),
        }
    }
    let is_named = errors.iter().any(|error| error.field == "tenant_id");
    if id.is_none() && !is_named {
        errors.push(FieldError::new(
            "tenant_id",
            "required",
            "the tenant's name",
        ));
    }
    let limits = Limits {
        sessions: change.sessions.flatten(),
        requests_per_second: change.requests_per_second.flatten(),
    };
    match id {
        Some(id) if errors.is_empty() => Ok((id, limits)),
        _ => Err(errors),
    }
}

/// Reads a merge patch: null brings a limit back to what the configuration says.
///
/// # Errors
/// Every bad field.
pub(super) fn patch(body: Json) -> Result<Change, Errors> {
    let mut errors = Errors::new();
    let mut change = Change::default();
    for (name, value) in fields(body, &mut errors) {
        match (name.as_str(), value) {
            ("limits", value) => limits(value, &mut change, &mut errors),
            ("state", Json::Text(text)) if text.as_str() == "active" => {
                change.state = Some(State::Active);
            }
            ("state", Json::Text(text)) if text.as_str() == "disabled" => {
                change.state = Some(State::Disabled);
            }
            ("state", _) => {
                let message = "active or disabled";
                errors.push(FieldError::new("state", "bad_state", message));
            }
            (name, _) => errors.push(unknown(name)),
        }
    }
    errors.is_empty().then_some(change).ok_or(errors)
}

/// Reads the body of a key's creation: its label, which may be left out.
///
/// # Errors
/// Every bad field.
pub(super) fn label(body: Json) -> Result<String, Errors> {
    let mut errors = Errors::new();
    let mut label = String::new();
    for (name, value) in fields(body, &mut errors) {
        match (name.as_str(), value) {
            ("label", Json::Text(text)) if is_label(&text) => label.clone_from(&text),
            ("label", Json::Null) => label.clear(),
            ("label", _) => {
                let message = format!("a text of at most {LABEL_LIMIT} characters, on one line");
                errors.push(FieldError::new("label", "bad_label", message));
            }
            (name, _) => errors.push(unknown(name)),
        }
    }
    errors.is_empty().then_some(label).ok_or(errors)
}

fn limits(value: Json, change: &mut Change, errors: &mut Errors) {
    let fields = match value {
        Json::Null => {
            change.sessions = Some(None);
            change.requests_per_second = Some(None);
            return;
        }
        Json::Object(fields) => fields,
        _ => return errors.push(wrong_type("limits", "an object")),
    };
    for (name, value) in fields {
        let (slot, least) = match name.as_str() {
            // None at all is a way to close a tenant for new sessions.
            "sessions" => (&mut change.sessions, 0),
            "requests_per_second" => (&mut change.requests_per_second, 1),
            _ => {
                errors.push(unknown(&format!("limits.{name}")));
                continue;
            }
        };
        *slot = match value {
            Json::Null => Some(None),
            Json::Whole(number) if (least..=MOST).contains(&number) => {
                Some(u32::try_from(number).ok())
            }
            _ => {
                let field = format!("limits.{name}");
                let message = format!("a whole number from {least} to {MOST}, or null");
                errors.push(FieldError::new(field, "out_of_range", message));
                None
            }
        };
    }
}

fn fields(body: Json, errors: &mut Errors) -> impl Iterator<Item = (String, Json)> + use<> {
    let fields = if let Json::Object(fields) = body {
        fields
    } else {
        errors.push(wrong_type("body", "an object"));
        BTreeMap::new()
    };
    fields.into_iter()
}

fn wrong_type(field: &str, expected: &str) -> FieldError {
    FieldError::new(field, "wrong_type", format!("must be {expected}"))
}

fn unknown(field: &str) -> FieldError {
    FieldError::new(field, "unknown_field", "is no field here")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Json {
        Json::parse(text.as_bytes()).unwrap()
    }

    fn codes(errors: Errors) -> Vec<String> {
        let text = |error: FieldError| format!("{} {}", error.field, error.code);
        errors.into_iter().map(text).collect()
    }

    #[test]
    fn a_creation_names_the_tenant_and_its_limits() {
        let limits = |sessions, requests_per_second| Limits {
            sessions,
            requests_per_second,
        };
        for (text, expected) in [
            (r#"{"tenant_id":"acme"}"#, limits(None, None)),
            (r#"{"tenant_id":"acme","limits":null}"#, limits(None, None)),
            (
                r#"{"tenant_id":"acme","limits":{"sessions":0,"requests_per_second":1}}"#,
                limits(Some(0), Some(1)),
            ),
            (
                r#"{"tenant_id":"acme","limits":{"sessions":1000000}}"#,
                limits(Some(1_000_000), None),
            ),
        ] {
            let created = create(read(text)).unwrap();
            assert_eq!(created, (TenantId::new("acme"), expected), "{text}");
        }
        for (text, expected) in [
            ("[]", &["body wrong_type", "tenant_id required"][..]),
            ("{}", &["tenant_id required"]),
            (r#"{"tenant_id":""}"#, &["tenant_id bad_tenant_id"]),
            (r#"{"tenant_id":"A/b"}"#, &["tenant_id bad_tenant_id"]),
            (r#"{"tenant_id":7}"#, &["tenant_id wrong_type"]),
            (
                r#"{"tenant_id":"a","state":"active","limits":[]}"#,
                &["limits wrong_type", "state unknown_field"],
            ),
            (
                r#"{"limits":{"sessions":1.5,"requests_per_second":0,"more":1},"tenant_id":"a"}"#,
                &[
                    "limits.more unknown_field",
                    "limits.requests_per_second out_of_range",
                    "limits.sessions out_of_range",
                ],
            ),
        ] {
            assert_eq!(codes(create(read(text)).unwrap_err()), expected, "{text}");
        }
    }

    #[test]
    fn a_patch_changes_what_it_names() {
        let none = Change::default();
        for (text, expected) in [
            ("{}", none),
            (
                r#"{"state":"disabled"}"#,
                Change {
                    state: Some(State::Disabled),
                    ..none
                },
            ),
            (
                r#"{"limits":{"sessions":null}}"#,
                Change {
                    sessions: Some(None),
                    ..none
                },
            ),
            (
                r#"{"limits":null,"state":"active"}"#,
                Change {
                    state: Some(State::Active),
                    sessions: Some(None),
                    requests_per_second: Some(None),
                },
            ),
        ] {
            assert_eq!(patch(read(text)).unwrap(), expected, "{text}");
        }
        for (text, expected) in [
            (r#"{"state":null}"#, "state bad_state"),
            (r#"{"state":"Active"}"#, "state bad_state"),
            (r#"{"tenant_id":"b"}"#, "tenant_id unknown_field"),
            (r#"{"keys":[]}"#, "keys unknown_field"),
            (
                r#"{"limits":{"sessions":1000001}}"#,
                "limits.sessions out_of_range",
            ),
        ] {
            assert_eq!(codes(patch(read(text)).unwrap_err()), [expected], "{text}");
        }
    }

    #[test]
    fn labels_are_short_lines() {
        let longest = "\u{e9}".repeat(LABEL_LIMIT);
        for (value, expected) in [
            ("{}".to_owned(), Some("")),
            (r#"{"label":null}"#.to_owned(), Some("")),
            (r#"{"label":"ci, main"}"#.to_owned(), Some("ci, main")),
            (format!(r#"{{"label":"{longest}"}}"#), Some(&longest)),
            (format!(r#"{{"label":"{longest}x"}}"#), None),
            (r#"{"label":"a\nb"}"#.to_owned(), None),
            (r#"{"label":1}"#.to_owned(), None),
            (r#"{"api_key":"mine"}"#.to_owned(), None),
        ] {
            let read = label(read(&value)).ok();
            assert_eq!(read.as_deref(), expected, "{value}");
        }
    }
}
