//! Findings as lines for people, and as one JSON object for programs.
//!
//! One line a client, then what to type, each line once. Nothing here is secret. Called by
//! `doctor`.

use std::fmt;

use serde_json::{Value, json};

/// How a client fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It is not installed.
    Absent,
    /// It can not use this proxy, whatever is set.
    Cannot,
    /// Something has to be set.
    Fail,
    /// It works.
    Ok,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Absent => "absent",
            Self::Cannot => "cannot",
            Self::Fail => "FAIL",
            Self::Ok => "ok",
        })
    }
}

/// What is said about one client, or about the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) state: State,
    pub(super) text: String,
    /// What to type, in the order to type it.
    pub(super) advice: Vec<String>,
}

/// All that is said.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) proxy: Line,
    pub(super) clients: Vec<Line>,
    /// What holds for no client alone.
    pub(super) notes: Vec<String>,
}

impl Report {
    /// Tells whether all that can work does.
    pub(super) fn is_well(&self) -> bool {
        let mut lines = self.clients.iter().chain([&self.proxy]);
        !lines.any(|line| line.state == State::Fail)
    }

    /// Writes the lines, and what to type.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for line in [&self.proxy].into_iter().chain(&self.clients) {
            let what = if line.advice.is_empty() {
                line.text.clone()
            } else {
                format!("{}; do: {}", line.text, line.advice.join("; "))
            };
            let row = format!("{:<9}{:<7} {what}", line.name, line.state);
            text.push_str(row.trim_end());
            text.push('\n');
        }
        for note in &self.notes {
            text.extend(["note     ", note, "\n"]);
        }
        let advice = self.advice();
        if !advice.is_empty() {
            text.push_str("\n# all of it, for a POSIX shell:\n");
            for line in advice {
                text.push_str(line);
                text.push('\n');
            }
        }
        text
    }

    /// Lists what to type, each line once.
    fn advice(&self) -> Vec<&str> {
        let mut all: Vec<&str> = Vec::new();
        for line in self.clients.iter().flat_map(|line| &line.advice) {
            if !all.contains(&line.as_str()) {
                all.push(line);
            }
        }
        all
    }

    /// Writes the same for programs.
    pub(super) fn json(&self) -> String {
        let one = |line: &Line| {
            json!({
                "name": line.name,
                "state": line.state.to_string().to_ascii_lowercase(),
                "text": line.text,
                "advice": line.advice,
            })
        };
        let clients: Vec<Value> = self.clients.iter().map(one).collect();
        let report = json!({
            "proxy": one(&self.proxy),
            "clients": clients,
            "notes": self.notes,
            "advice": self.advice(),
        });
        format!("{report:#}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, state: State, text: &str, advice: &[&str]) -> Line {
        Line {
            name: name.to_owned(),
            state,
            text: text.to_owned(),
            advice: advice.iter().map(|line| (*line).to_owned()).collect(),
        }
    }

    #[test]
    fn lines_say_what_to_type_and_the_end_says_it_once() {
        let report = Report {
            proxy: line("proxy", State::Ok, "here", &[]),
            clients: vec![
                line(
                    "curl",
                    State::Fail,
                    "no bundle",
                    &["export A=1", "export B=2"],
                ),
                line("httpx", State::Fail, "no bundle", &["export B=2"]),
                line("go", State::Absent, "", &[]),
            ],
            notes: vec!["mind".to_owned()],
        };
        let expected = "proxy    ok      here\n\
             curl     FAIL    no bundle; do: export A=1; export B=2\n\
             httpx    FAIL    no bundle; do: export B=2\n\
             go       absent\n\
             note     mind\n\
             \n# all of it, for a POSIX shell:\nexport A=1\nexport B=2\n";
        assert_eq!(report.text(), expected);
        assert!(!report.is_well());
        let json: Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(json["clients"][0]["state"], "fail");
        assert_eq!(json["advice"], json!(["export A=1", "export B=2"]));
    }

    #[test]
    fn only_failures_are_failures() {
        let report = Report {
            proxy: line("proxy", State::Ok, "", &[]),
            clients: vec![
                line("a", State::Cannot, "", &[]),
                line("b", State::Absent, "", &[]),
            ],
            notes: Vec::new(),
        };
        assert!(report.is_well());
        assert!(!report.text().contains('#'));
    }
}
