//! The walk over every source: keys are looked up in the table, values handed to it.
//!
//! A key that the table does not have is a problem, wherever it stands: a misspelt setting that
//! is skipped in silence is how a limit or a listener stays open. What the parser of TOML says is
//! repeated, the line it says it about is not.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::settings::{
    self, Draft, ENVIRONMENT_PREFIX, SETTINGS, Setting, Shape, find, is_later, is_section,
};
use super::source::{FILE_LIMIT_BYTES, Flags, Source};
use super::value::Raw;
use super::{Origin, Problem};

const LATER: &str = "not available in this version";

/// What the walk has gathered.
#[derive(Default)]
pub(super) struct Reading {
    pub(super) draft: Draft,
    pub(super) problems: Vec<Problem>,
    /// Who set a key last.
    origins: BTreeMap<&'static str, Origin>,
    /// Keys with a value that was refused.
    wrong: Vec<&'static str>,
    /// The file was named and could not be understood: anything may have stood in it.
    file_lost: bool,
}

impl Reading {
    /// Returns where the value of a key comes from.
    pub(super) fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }

    /// Tells whether some source gave the key.
    pub(super) fn is_given(&self, key: &str) -> bool {
        self.origins.contains_key(key)
    }

    /// Tells whether all of these keys have the values they were meant to have.
    pub(super) fn trusts(&self, keys: &[&str]) -> bool {
        !self.file_lost && !keys.iter().any(|key| self.wrong.contains(key))
    }

    pub(super) fn report(&mut self, key: &str, expectation: impl Into<String>, origin: Origin) {
        self.problems.push(Problem::new(key, expectation, origin));
    }

    fn give(&mut self, setting: &'static Setting, raw: &Raw, origin: Origin) {
        match (setting.set)(&mut self.draft, raw) {
            Ok(()) => {
                self.origins.insert(setting.key, origin);
            }
            Err(expectations) => {
                self.wrong.push(setting.key);
                for expectation in expectations {
                    self.report(setting.key, expectation, origin.clone());
                }
            }
        }
    }

    fn unknown(&mut self, path: &str, suggestion: Option<String>, origin: Origin) {
        let text = match suggestion {
            Some(suggestion) => format!("unknown setting, did you mean {suggestion}?"),
            None => "unknown setting".to_owned(),
        };
        self.report(path, text, origin);
    }

    /// Reads the file, if one is named.
    pub(super) fn read_file(&mut self, source: &Source) {
        let Some(path) = source.flags().config() else {
            return;
        };
        let known = self.problems.len();
        match source.files().read(path, FILE_LIMIT_BYTES) {
            Err(error) => self.report(
                "config",
                format!("cannot be read: {}", error.kind()),
                Origin::File(path.to_owned(), None),
            ),
            Ok(content) => match std::str::from_utf8(&content.bytes) {
                Err(_not_text) => self.report(
                    "config",
                    "expects a file in UTF-8",
                    Origin::File(path.to_owned(), None),
                ),
                Ok(text) => return self.read_toml(path, text),
            },
        }
        self.file_lost = self.problems.len() > known;
    }

    fn read_toml(&mut self, path: &Path, text: &str) {
        let (table, errors) = DeTable::parse_recoverable(text);
        let file = TomlFile { path, text };
        for error in &errors {
            // The message alone: the error's own text shows the line, which may hold a secret.
            let origin = error
                .span()
                .map_or(Origin::File(path.to_owned(), None), |span| file.at(&span));
            self.report(
                "config",
                format!("is not TOML: {}", error.message()),
                origin,
            );
        }
        self.file_lost = !errors.is_empty();
        if errors.is_empty() {
            self.walk(&file, "", table.get_ref());
        }
    }

    fn walk(&mut self, file: &TomlFile<'_>, parent: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let path = join(parent, key.get_ref());
            let origin = file.at(&key.span());
            if is_later(&path) {
                self.report(&path, LATER, origin);
            } else if let Some(setting) = find(&path) {
                if setting.in_file() {
                    self.give(setting, &raw(value), origin);
                } else {
                    self.report(&path, setting.belongs(), origin);
                }
            } else if let DeValue::Table(inner) = value.get_ref()
                && !inner.is_empty()
            {
                self.walk(file, &path, inner);
            } else if is_section(&path) {
                if value.get_ref().as_table().is_none() {
                    self.report(&path, "expects a table", origin);
                }
            } else {
                let suggestion = settings::nearest(&path)
                    .filter(|setting| setting.in_file())
                    .map(|setting| setting.key.to_owned());
                self.unknown(&path, suggestion, origin);
            }
        }
    }

    /// Reads every variable that belongs to a setting, and refuses those that look as if.
    pub(super) fn read_environment(&mut self, source: &Source) {
        for setting in SETTINGS {
            let Some(name) = setting.variable() else {
                continue;
            };
            let Some(value) = source.variable(&name) else {
                continue;
            };
            let origin = Origin::Environment(name);
            // No setting takes `Other`: text that is not UTF-8 is refused by what it expects.
            let raw = value
                .to_str()
                .map_or(Raw::Other, |text| Raw::Untyped(text.to_owned().into()));
            self.give(setting, &raw, origin);
        }
        for (name, _) in source.variables() {
            self.check_variable(name);
        }
    }

    /// Reports a variable that has our prefix and sets nothing. With one underscore the prefix is
    /// not ours alone: Kubernetes makes such variables for a service called `oshu-vault`.
    fn check_variable(&mut self, name: &OsStr) {
        let name = name.to_string_lossy();
        let origin = Origin::Environment(name.clone().into_owned());
        let Some(rest) = name.strip_prefix(ENVIRONMENT_PREFIX) else {
            return;
        };
        let is_set = |setting: &Setting| setting.variable().as_deref() == Some(&name);
        if SETTINGS.iter().any(is_set) {
            return;
        }
        let path = rest.to_lowercase().replace("__", ".");
        if is_later(&path) {
            self.report(&path, LATER, origin);
        } else if let Some(setting) = find(&path) {
            self.report(&path, setting.belongs(), origin);
        } else {
            let suggestion = settings::nearest(&path).and_then(Setting::variable);
            self.unknown(&path, suggestion, origin);
        }
    }

    /// Reads the flags.
    pub(super) fn read_flags(&mut self, flags: &Flags) {
        for (key, values) in flags.values() {
            let Some(setting) = find(key) else {
                self.unknown(key, None, Origin::Flag((*key).to_owned()));
                continue;
            };
            let flag = format!("--{}", setting.flag.unwrap_or(setting.key));
            let raw = match setting.shape {
                Shape::Switch => Raw::Bool(true),
                Shape::One | Shape::Many => Raw::Words(values.clone()),
            };
            self.give(setting, &raw, Origin::Flag(flag));
        }
    }
}

/// The file, for finding the line of a place in it.
struct TomlFile<'a> {
    path: &'a Path,
    text: &'a str,
}

impl TomlFile<'_> {
    fn at(&self, span: &Range<usize>) -> Origin {
        let before = self.text.bytes().take(span.start);
        let line = 1 + before.filter(|byte| *byte == b'\n').count();
        Origin::File(self.path.to_owned(), Some(line))
    }
}

/// Appends a key to a path. A key that is not bare is quoted, so that a dot in it cannot pass for
/// the dot between two keys, and a control character cannot reach a terminal.
fn join(parent: &str, key: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    let key = if !key.is_empty() && key.bytes().all(is_bare) {
        key.to_owned()
    } else {
        format!("{key:?}")
    };
    if parent.is_empty() {
        key
    } else {
        format!("{parent}.{key}")
    }
}

fn raw(value: &Spanned<DeValue<'_>>) -> Raw {
    match value.get_ref() {
        DeValue::String(text) => Raw::Text(text.clone().into_owned()),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).map_or(Raw::Other, Raw::Integer)
        }
        DeValue::Boolean(value) => Raw::Bool(*value),
        DeValue::Array(list) => Raw::List(list.iter().map(raw).collect()),
        DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Table(_) => Raw::Other,
    }
}
