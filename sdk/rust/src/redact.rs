//! Takes what must not be repeated out of texts that a server chose.
//!
//! A server that works as documented never repeats a value; this holds for the others. Called by
//! `error` for every text of a refusal.

/// Shorter values are refused by the server, and cutting them out would garble ordinary words.
const SHORTEST: usize = 8;

/// Shown in place of a value, here and in `Debug`.
pub(crate) const MARK: &str = "[redacted]";

/// The values of one call that no error may repeat.
pub(crate) struct Redactor<'a>(Vec<&'a str>);

impl<'a> Redactor<'a> {
    /// Takes the values, in any order.
    pub(crate) fn new(values: impl IntoIterator<Item = &'a str>) -> Self {
        let mut values: Vec<_> = values
            .into_iter()
            .filter(|value| value.len() >= SHORTEST)
            .collect();
        // The longest first: one value may be part of another.
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        Self(values)
    }

    /// Replaces each value by a mark.
    pub(crate) fn apply(&self, text: &str) -> String {
        self.0
            .iter()
            .fold(text.to_owned(), |rest, value| rest.replace(value, MARK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_replaced_wherever_they_stand() {
        let redactor = Redactor::new(["canary-1", "canary-1-longer", "short"]);
        for (text, expected) in [
            ("nothing here", "nothing here"),
            ("<canary-1>", "<[redacted]>"),
            ("canary-1canary-1", "[redacted][redacted]"),
            ("canary-1-longer", "[redacted]"),
            ("short stays", "short stays"),
        ] {
            assert_eq!(redactor.apply(text), expected);
        }
    }
}
