//! Well-known secret names: the hosts each belongs to and the headers it travels in.
//!
//! The data stands in `catalogue.toml` beside this file and is compiled in. A name that is missing
//! has no scope, and no entry is ever guessed from a similar name. It knows no values. Called by
//! `session` when a secret comes without hosts of its own.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Error;
use crate::host::HostPattern;

/// What is known about one secret name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// The secret signs requests and never travels, so that swapping cannot help.
    Signs {
        /// Why, as a sentence for the one who asked.
        reason: Box<str>,
    },
    /// The secret travels in a header.
    Travels {
        /// The exact hosts it belongs to, at least one.
        hosts: Vec<HostPattern>,
        /// The header names it stands in, in lower case, at least one.
        headers: Vec<Box<str>>,
    },
}

/// The well-known secret names.
#[derive(Debug, Clone)]
pub struct Catalogue {
    entries: BTreeMap<Box<str>, Entry>,
}

/// An entry as it stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    #[serde(default)]
    hosts: Vec<String>,
    #[serde(default)]
    headers: Vec<String>,
    signs: Option<Box<str>>,
}

impl Catalogue {
    /// Reads the catalogue that is compiled in. It is parsed here, so make it once and share it.
    #[expect(
        clippy::expect_used,
        reason = "the text is a constant of the program, and a test parses it"
    )]
    pub fn builtin() -> Self {
        Self::parse(include_str!("catalogue.toml")).expect("the compiled-in catalogue parses")
    }

    /// Parses a catalogue: one TOML table per name, with `hosts` and `headers`, or with `signs`.
    ///
    /// # Errors
    /// The `Catalogue…` variants of [`Error`]; a name that stands twice is one of them.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let raw: BTreeMap<Box<str>, RawEntry> =
            toml::from_str(text).map_err(|error| Error::Catalogue(Box::new(error)))?;
        let entries = raw
            .into_iter()
            .map(|(name, entry)| read_entry(&name, entry).map(|entry| (name, entry)))
            .collect::<Result<_, Error>>()?;
        Ok(Self { entries })
    }

    /// Returns what is known about a secret of this name; names are compared as they are written.
    pub fn lookup(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// Lists names and entries in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries
            .iter()
            .map(|(name, entry)| (name.as_ref(), entry))
    }
}

fn read_entry(name: &str, raw: RawEntry) -> Result<Entry, Error> {
    let name = || name.to_owned();
    let travels = !raw.hosts.is_empty() && !raw.headers.is_empty();
    let silent = raw.hosts.is_empty() && raw.headers.is_empty();
    let hosts = match raw.signs {
        Some(reason) if silent && !reason.is_empty() => return Ok(Entry::Signs { reason }),
        None if travels => raw.hosts,
        _ => return Err(Error::CatalogueEntry { name: name() }),
    };
    if !raw.headers.iter().all(|header| is_lower_token(header)) {
        return Err(Error::CatalogueHeader { name: name() });
    }
    let hosts = hosts.iter().map(|host| HostPattern::parse_exact(host));
    Ok(Entry::Travels {
        hosts: hosts
            .collect::<Result<_, _>>()
            .map_err(|source| Error::CatalogueHost {
                name: name(),
                source,
            })?,
        headers: raw
            .headers
            .into_iter()
            .map(String::into_boxed_str)
            .collect(),
    })
}

/// Tells a header name in the one spelling that is compared against. Of the token characters of
/// RFC 9110 §5.6.2 only those that header names have in practice.
fn is_lower_token(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    fn quoted<T: ToString>(items: &[T]) -> String {
        let items: Vec<String> = items
            .iter()
            .map(|item| format!("`{}`", item.to_string()))
            .collect();
        items.join(", ")
    }

    #[test]
    fn the_builtin_catalogue_is_whole_and_in_order() {
        let catalogue = Catalogue::builtin();
        assert!(catalogue.iter().count() >= 60);
        let names: Vec<&str> = include_str!("catalogue.toml")
            .lines()
            .filter_map(|line| line.strip_prefix('[')?.strip_suffix(']'))
            .filter(|name| !name.is_empty())
            .collect();
        assert!(names.is_sorted(), "tables stand in the order of the names");
        assert!(
            names
                .iter()
                .copied()
                .eq(catalogue.iter().map(|(name, _)| name))
        );
        for (name, entry) in catalogue.iter() {
            let plain = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
            assert!(name.bytes().all(plain), "{name}");
            match entry {
                Entry::Travels { hosts, headers } => {
                    assert!(headers.is_sorted_by(|a, b| a < b), "{name}");
                    let texts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
                    assert!(texts.is_sorted_by(|a, b| a < b), "{name}");
                    for host in hosts {
                        assert!(host.port().is_none(), "{name}");
                        let exact = host.exact().and_then(|host| host.name());
                        assert!(exact.is_some_and(|host| host.contains('.')), "{name}");
                    }
                }
                Entry::Signs { reason } => assert!(!reason.ends_with('.'), "{name}"),
            }
        }
    }

    #[test]
    fn the_documented_table_is_the_data() {
        let mut expected = String::new();
        for (name, entry) in Catalogue::builtin().iter() {
            let (hosts, last) = match entry {
                Entry::Travels { hosts, headers } => (quoted(hosts), quoted(headers)),
                Entry::Signs { reason } => ("none".to_owned(), reason.to_string()),
            };
            writeln!(expected, "| `{name}` | {hosts} | {last} |").unwrap();
        }
        let page = include_str!("../../docs/catalogue.md");
        let table = page.split_once("|---|---|---|\n").map(|(_, rows)| rows);
        assert_eq!(table, Some(expected.as_str()));
    }

    #[test]
    fn names_are_looked_up_as_written() {
        let catalogue = Catalogue::builtin();
        let Some(Entry::Travels { hosts, headers }) = catalogue.lookup("ANTHROPIC_API_KEY") else {
            panic!("ANTHROPIC_API_KEY travels");
        };
        assert_eq!(quoted(hosts), "`api.anthropic.com`");
        assert_eq!(quoted(headers), "`authorization`, `x-api-key`");
        let signs = catalogue.lookup("AWS_SECRET_ACCESS_KEY");
        assert!(matches!(signs, Some(Entry::Signs { .. })));
        for name in [
            "",
            "anthropic_api_key",
            "ANTHROPIC_API_KEY ",
            "MY_OPENAI_API_KEY",
        ] {
            assert_eq!(catalogue.lookup(name), None, "{name:?}");
        }
    }

    #[test]
    fn faulty_catalogues_are_refused() {
        let good = "[A]\nhosts = [\"a.example\"]\nheaders = [\"x-a\"]\n";
        assert!(Catalogue::parse(good).is_ok());
        for (text, expected) in [
            (format!("{good}{good}"), "catalogue of secret names"),
            (format!("{good}port = 1"), "catalogue of secret names"),
            (format!("{good}signs = \"x\""), "must have either"),
            ("[A]".to_owned(), "must have either"),
            ("[A]\nsigns = \"\"".to_owned(), "must have either"),
            (
                "[A]\nhosts = [\"a.example\"]".to_owned(),
                "must have either",
            ),
            ("[A]\nheaders = [\"x-a\"]".to_owned(), "must have either"),
            (good.replace("x-a", "X-A"), "header name"),
            (good.replace("x-a", "x a"), "header name"),
            (good.replace("x-a", ""), "header name"),
            (good.replace("a.example", "*.a.example"), "has a host"),
            (good.replace("a.example", "10.0.0.0/8"), "has a host"),
            (good.replace("a.example", ""), "has a host"),
        ] {
            let error = Catalogue::parse(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
