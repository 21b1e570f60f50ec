//! From JSON to a session's form: creation and merge patch are one walk.
//!
//! A creation is a patch of the empty form (RFC 7396), so both know the same fields and tell the
//! same errors. Every bad field is noted and the walk goes on. A secret moves from the body into a
//! [`Secret`]; it never stands in an error. Called by the handlers of the vault.

use std::collections::BTreeMap;

use crate::secret::Secret;
use crate::session::{BAD_FIELDS_LIMIT, CaptureForm, FieldError, Form, SecretForm};
use crate::web::Json;

/// What stands for a bad entry, so that the rest of the form can still be checked. A form with one
/// of these is never used: it always comes with an error.
const STAND_IN_HOST: &str = "stand-in.example.com";
const STAND_IN_PLACE: &str = "header";
const STAND_IN_SECRET: &str = "stand-in for a secret";
const STAND_IN_LIFETIME: u64 = 2_592_000;

/// What kind of entries a list has.
#[derive(Clone, Copy)]
enum Entries {
    Hosts,
    Places,
}

impl Entries {
    fn stand_in(self) -> String {
        match self {
            Self::Hosts => STAND_IN_HOST,
            Self::Places => STAND_IN_PLACE,
        }
        .to_owned()
    }
}

/// Makes a form from the body of a creation.
///
/// # Errors
/// Every bad field, those included that `check` finds in the rest of the form.
pub(super) fn create(
    body: Json,
    check: impl FnOnce(&Form) -> Vec<FieldError>,
) -> Result<Form, Vec<FieldError>> {
    let has_secrets = match &body {
        Json::Object(fields) => !matches!(fields.get("secrets"), None | Some(Json::Null)),
        _ => true,
    };
    let mut walk = Walk::default();
    let form = walk.session(Form::default(), body);
    if !has_secrets {
        walk.fail(
            "secrets",
            "required",
            "an object of secrets by name, {} for none",
        );
    }
    walk.end(form, check)
}

/// Applies the body of a merge patch to a form: null removes, lists are whole, objects merge.
///
/// # Errors
/// As [`create`].
pub(super) fn patch(
    form: Form,
    body: Json,
    check: impl FnOnce(&Form) -> Vec<FieldError>,
) -> Result<Form, Vec<FieldError>> {
    let mut walk = Walk::default();
    let form = walk.session(form, body);
    walk.end(form, check)
}

#[derive(Default)]
struct Walk {
    errors: Vec<FieldError>,
}

impl Walk {
    fn end(
        self,
        form: Form,
        check: impl FnOnce(&Form) -> Vec<FieldError>,
    ) -> Result<Form, Vec<FieldError>> {
        // A form without a bad type is checked by whoever puts it to use.
        if self.errors.is_empty() {
            return Ok(form);
        }
        let mut errors = self.errors;
        // What stands in for a bad entry contains nothing, and no other field is to blame for that.
        let stood_in = errors
            .iter()
            .any(|error| error.field.starts_with("allowed_egress"));
        let found = check(&form).into_iter();
        errors.extend(found.filter(|error| !stood_in || error.code != "not_in_allowed_egress"));
        Err(errors)
    }

    fn fail(&mut self, field: impl Into<String>, code: &'static str, message: impl Into<String>) {
        if self.errors.len() < BAD_FIELDS_LIMIT {
            self.errors.push(FieldError::new(field, code, message));
        }
    }

    fn wrong_type(&mut self, field: impl Into<String>, expected: &str) {
        self.fail(field, "wrong_type", format!("must be {expected}"));
    }

    fn session(&mut self, mut form: Form, body: Json) -> Form {
        let Json::Object(fields) = body else {
            self.wrong_type("body", "an object");
            return form;
        };
        for (name, value) in fields {
            match name.as_str() {
                "secrets" => self.secrets(&mut form.secrets, value),
                "secret_hosts" => form.secret_hosts = self.list(&name, value, Entries::Hosts),
                "allowed_egress" => form.allowed_egress = self.list(&name, value, Entries::Hosts),
                "inject" => form.inject = self.list(&name, value, Entries::Places),
                "ttl_seconds" => form.ttl_seconds = self.whole(&name, &value, None),
                "max_lifetime_seconds" => {
                    form.max_lifetime_seconds = self.whole(&name, &value, Some(STAND_IN_LIFETIME));
                }
                "allow_plaintext" => form.allow_plaintext = self.flag(&name, &value),
                "metadata" => self.metadata(&mut form.metadata, value),
                "passthrough_hosts" => {
                    let known = self.errors.len();
                    let hosts = self.list(&name, value, Entries::Hosts).unwrap_or_default();
                    // A stand-in might overlap a secret, and be told for it.
                    let is_whole = self.errors.len() == known;
                    form.passthrough_hosts = if is_whole { hosts } else { Vec::new() };
                }
                "scrub_responses" => form.scrub_responses = self.flag(&name, &value),
                "capture" => form.capture = self.capture(value),
                _ => self.unknown(&name, "a session"),
            }
        }
        form
    }

    fn secrets(&mut self, secrets: &mut BTreeMap<String, SecretForm>, value: Json) {
        let fields = match value {
            Json::Null => return secrets.clear(),
            Json::Object(fields) => fields,
            _ => return self.wrong_type("secrets", "an object of secrets by name"),
        };
        for (name, value) in fields {
            let before = secrets.remove(&name);
            let path = format!("secrets.{name}");
            if let Some(secret) = self.secret(&path, before, value) {
                secrets.insert(name, secret);
            }
        }
    }

    /// Reads one secret: null removes it, a text is its value, an object merges.
    fn secret(
        &mut self,
        path: &str,
        before: Option<SecretForm>,
        value: Json,
    ) -> Option<SecretForm> {
        let fields = match value {
            Json::Null => return None,
            Json::Text(_) => BTreeMap::from([("value".to_owned(), value)]),
            Json::Object(fields) => fields,
            _ => {
                self.wrong_type(path, "a text, or an object with value");
                return None;
            }
        };
        let known = before.is_some();
        let mut secret = before.unwrap_or_else(|| SecretForm {
            value: Secret::new(STAND_IN_SECRET.into()),
            hosts: None,
            inject: None,
            prefix: None,
        });
        let mut has_value = known;
        for (name, value) in fields {
            let field = format!("{path}.{name}");
            match name.as_str() {
                "value" => match value {
                    Json::Text(mut text) => {
                        secret.value = Secret::new(std::mem::take(&mut *text).into_bytes());
                        has_value = true;
                    }
                    Json::Null => has_value = false,
                    _ => {
                        self.wrong_type(field, "a text");
                        has_value = true;
                    }
                },
                "hosts" => secret.hosts = self.list(&field, value, Entries::Hosts),
                "inject" => secret.inject = self.list(&field, value, Entries::Places),
                "prefix" => secret.prefix = self.text(&field, value),
                _ => self.unknown(&field, "a secret"),
            }
        }
        if !has_value {
            self.fail(
                format!("{path}.value"),
                "required",
                "the secret's value, a text",
            );
        }
        Some(secret)
    }

    /// Reads the token endpoints: each is a URL, or an object with one. Null removes all that are
    /// named; the known ones stay.
    fn capture(&mut self, value: Json) -> Option<Vec<CaptureForm>> {
        let entries = match value {
            Json::Null => return None,
            Json::List(entries) => entries,
            _ => {
                self.wrong_type(
                    "capture",
                    "a list of URLs, or of objects with url and hosts",
                );
                return None;
            }
        };
        let mut list = Vec::with_capacity(entries.len());
        for (index, entry) in entries.into_iter().enumerate() {
            let path = format!("capture[{index}]");
            let fields = match entry {
                Json::Text(_) => BTreeMap::from([("url".to_owned(), entry)]),
                Json::Object(fields) => fields,
                _ => {
                    self.wrong_type(path, "a URL, or an object with url");
                    continue;
                }
            };
            list.extend(self.token_endpoint(&path, fields));
        }
        Some(list)
    }

    fn token_endpoint(
        &mut self,
        path: &str,
        fields: BTreeMap<String, Json>,
    ) -> Option<CaptureForm> {
        let (mut url, mut hosts, mut told) = (None, None, false);
        for (name, value) in fields {
            let field = format!("{path}.{name}");
            match name.as_str() {
                "url" => {
                    told = !matches!(value, Json::Null | Json::Text(_));
                    url = self.text(&field, value);
                }
                "hosts" => hosts = self.list(&field, value, Entries::Hosts),
                _ => self.unknown(&field, "a token endpoint"),
            }
        }
        if url.is_none() && !told {
            let message = "the endpoint's https:// URL, a text";
            self.fail(format!("{path}.url"), "required", message);
        }
        Some(CaptureForm { url: url?, hosts })
    }

    fn metadata(&mut self, metadata: &mut BTreeMap<String, String>, value: Json) {
        let fields = match value {
            Json::Null => return metadata.clear(),
            Json::Object(fields) => fields,
            _ => return self.wrong_type("metadata", "an object of texts"),
        };
        for (name, value) in fields {
            match self.text(&format!("metadata.{name}"), value) {
                Some(text) => drop(metadata.insert(name, text)),
                None => drop(metadata.remove(&name)),
            }
        }
    }

    fn list(&mut self, path: &str, value: Json, entries: Entries) -> Option<Vec<String>> {
        let values = match value {
            Json::Null => return None,
            Json::List(values) => values,
            _ => {
                self.wrong_type(path, "a list of texts");
                return Some(vec![entries.stand_in()]);
            }
        };
        let mut list = Vec::with_capacity(values.len());
        for (index, value) in values.into_iter().enumerate() {
            list.push(if let Json::Text(mut text) = value {
                std::mem::take(&mut *text)
            } else {
                self.wrong_type(format!("{path}[{index}]"), "a text");
                entries.stand_in()
            });
        }
        Some(list)
    }

    fn text(&mut self, path: &str, value: Json) -> Option<String> {
        match value {
            Json::Text(mut text) => return Some(std::mem::take(&mut *text)),
            Json::Null => {}
            _ => self.wrong_type(path, "a text"),
        }
        None
    }

    fn whole(&mut self, path: &str, value: &Json, stand_in: Option<u64>) -> Option<u64> {
        match value {
            Json::Whole(number) => Some(*number),
            Json::Null => None,
            _ => {
                self.wrong_type(path, "a whole number");
                stand_in
            }
        }
    }

    fn flag(&mut self, path: &str, value: &Json) -> Option<bool> {
        match value {
            Json::Bool(flag) => return Some(*flag),
            Json::Null => {}
            _ => self.wrong_type(path, "true or false"),
        }
        None
    }

    fn unknown(&mut self, path: &str, owner: &str) {
        self.fail(path, "unknown_field", format!("is no field of {owner}"));
    }
}
