//! The story as text: four views, side by side where two are alike, and whether each is right.
//!
//! Pure: what happened goes in, a page and a list of complaints come out. Called by `demo`.

use crate::cli::workload::Outcome;

/// The host that the demo's secret belongs to.
pub(super) const API: &str = "api.demo.test";
/// A host that may be reached, and that the secret does not belong to.
pub(super) const PASTE: &str = "paste.demo.test";
/// A host that may not be reached.
pub(super) const EVIL: &str = "evil.demo.test";

/// The width of the left column, in characters.
const LEFT: usize = 52;

/// What happened.
#[derive(Debug)]
pub(super) struct Story {
    /// The made-up key.
    pub(super) key: String,
    /// The sealed token that stands for it.
    pub(super) token: String,
    /// What the workload sent to the API.
    pub(super) sent: String,
    /// What the API got.
    pub(super) seen: String,
    /// What the workload got back.
    pub(super) back: Outcome,
    /// What the workload sent to the other host.
    pub(super) leaked: String,
    /// What the other host got.
    pub(super) leaked_seen: String,
    /// What the workload got back from there.
    pub(super) leaked_back: Outcome,
    /// What it got when it asked for the forbidden host.
    pub(super) denied: Outcome,
}

impl Story {
    /// Lists the views that are not as they should be.
    pub(super) fn complaints(&self) -> Vec<&'static str> {
        let Self { key, token, .. } = self;
        let token_came_back = matches!(
            &self.back,
            Outcome::Answered(200, body) if body.contains(token.as_str()) && !body.contains(key.as_str())
        );
        let is_right = [
            (
                "(a) the workload holds the sealed token and never the key",
                self.sent.contains(token.as_str()) && !self.sent.contains(key.as_str()),
            ),
            (
                "(b) the API gets the key in place of the token, and nothing else changes",
                self.seen == self.sent.replace(token.as_str(), key),
            ),
            (
                "(c) an answer that echoes the key comes back with the token in its place",
                token_came_back,
            ),
            (
                "(d) another host gets the literal token",
                self.leaked.contains(token.as_str())
                    && self.leaked_seen == self.leaked
                    && matches!(self.leaked_back, Outcome::Answered(200, _)),
            ),
            (
                "(d) a host outside of allowed_egress is refused with 403",
                matches!(&self.denied, Outcome::Refused(403, body) if body.contains("host_not_allowed")),
            ),
        ];
        let wrong = is_right.into_iter().filter(|(_, is_right)| !is_right);
        wrong.map(|(what, _)| what).collect()
    }

    /// Writes the page.
    pub(super) fn page(&self) -> String {
        let mut page = Page::default();
        self.introduce(&mut page);
        page.line("");
        page.columns(
            ("(a) what the workload sent", &self.sent),
            ("(b) what the API saw", &self.seen),
        );
        page.line("");
        page.line("    * the only line that changed, on its way out, after the host was checked.");
        self.come_back(&mut page);
        self.steal(&mut page);
        page.rule();
        match self.complaints().as_slice() {
            [] => page.line("Every view is as it should be."),
            wrong => {
                for what in wrong {
                    page.line(&format!("NOT AS IT SHOULD BE: {what}"));
                }
            }
        }
        page.0
    }

    fn introduce(&self, page: &mut Page) {
        let Self { key, token, .. } = self;
        page.line("Oshu Vault: the whole story, in one process and on loopback only.");
        page.rule();
        page.line("The key was made up a moment ago, for this demo:");
        page.line(&format!("    key            {key}"));
        page.line("A session was made for the workload. It got a proxy, a root and this token:");
        page.line(&format!("    sealed token   {token}"));
        page.line("The session says:");
        page.line(&format!("    the key may go to   {API}"));
        page.line(&format!("    allowed_egress      {API}, {PASTE}"));
        page.rule();
        page.line(&format!("The workload calls https://{API} with its token."));
    }

    fn come_back(&self, page: &mut Page) {
        page.rule();
        page.line("(c) what the workload got back, from an API that echoes what it got");
        page.line("");
        page.outcome(&self.back);
        page.line("");
        page.line("The API sent the key back, and the proxy put the sealed token in its place.");
        page.line("That is best effort: an API could still hand the key out in a form of its own.");
    }

    fn steal(&self, page: &mut Page) {
        page.rule();
        page.line("(d) what an exfiltration attempt got");
        page.line("");
        page.line(&format!(
            "First, the same token, sent to https://{PASTE}, which may be reached:"
        ));
        page.line("");
        page.columns(
            ("what the workload sent", &self.leaked),
            ("what the other host saw", &self.leaked_seen),
        );
        page.line("");
        page.line(
            "The token arrived as the text it is. Outside of its session and its hosts it opens",
        );
        page.line("nothing.");
        page.line("");
        page.line(&format!(
            "Then https://{EVIL}, which the session does not allow:"
        ));
        page.line("");
        page.outcome(&self.denied);
    }
}

/// A page of text under way.
#[derive(Default)]
struct Page(String);

impl Page {
    fn line(&mut self, text: &str) {
        self.0.push_str(text);
        self.0.push('\n');
    }

    fn rule(&mut self) {
        self.line(&format!("\n{}\n", "-".repeat(2 * LEFT - 4)));
    }

    /// Sets two texts side by side and marks the lines in which they differ.
    fn columns(&mut self, left: (&str, &str), right: (&str, &str)) {
        let (mut lefts, mut rights) = (left.1.lines(), right.1.lines());
        let mut row = |left: &str, mark: &str, right: &str| {
            let line = format!("  {left:LEFT$} {mark} {right}");
            self.line(line.trim_end());
        };
        row(left.0, "|", right.0);
        row(&"-".repeat(LEFT), "+", &"-".repeat(LEFT - 8));
        loop {
            match (lefts.next(), rights.next()) {
                (None, None) => break,
                (left, right) => {
                    let mark = if left == right { "|" } else { "*" };
                    row(left.unwrap_or_default(), mark, right.unwrap_or_default());
                }
            }
        }
    }

    fn outcome(&mut self, outcome: &Outcome) {
        let (who, status, body) = match outcome {
            Outcome::Answered(status, body) => ("the API answered", status, body),
            Outcome::Refused(status, body) => ("the proxy refused the tunnel", status, body),
        };
        self.line(&format!("    {who}: {status}"));
        for line in body.lines() {
            self.line(format!("    | {line}").trim_end());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn right() -> Story {
        let (key, token) = ("demo-key-1", "SEALED_1");
        let sent = format!("GET / HTTP/1.1\r\nX-Api-Key: {token}\r\n\r\n");
        let seen = sent.replace(token, key);
        let denied = r#"{"code":"host_not_allowed"}"#.to_owned();
        Story {
            key: key.to_owned(),
            token: token.to_owned(),
            back: Outcome::Answered(200, format!("You sent me this:\r\n{sent}")),
            leaked: sent.clone(),
            leaked_seen: sent.clone(),
            leaked_back: Outcome::Answered(200, "thanks".to_owned()),
            denied: Outcome::Refused(403, denied),
            sent,
            seen,
        }
    }

    #[test]
    fn a_story_that_is_right_has_no_complaint() {
        let story = right();
        assert_eq!(story.complaints(), Vec::<&str>::new());
        let page = story.page();
        for view in ["(a) ", "(b) ", "(c) ", "(d) "] {
            assert!(page.contains(view), "{view} in {page}");
        }
        let changed: Vec<_> = page.lines().filter(|line| line.contains(" * ")).collect();
        assert!(changed[0].contains("X-Api-Key: SEALED_1"), "{changed:?}");
        assert!(
            changed[0].ends_with("* X-Api-Key: demo-key-1"),
            "{changed:?}"
        );
        assert!(page.ends_with("Every view is as it should be.\n"));
    }

    #[test]
    fn every_view_is_checked() {
        let mut wrong: Vec<(&str, Story)> = Vec::new();
        let mut add = |view, change: fn(&mut Story)| {
            let mut story = right();
            change(&mut story);
            wrong.push((view, story));
        };
        add("(a)", |story| story.sent.push_str("demo-key-1"));
        add("(b)", |story| story.seen = story.sent.clone());
        add("(b)", |story| story.seen.push('x'));
        add("(c)", |story| {
            story.back = Outcome::Answered(200, String::new());
        });
        add("(c)", |story| {
            let both = format!("{}{}", story.token, story.key);
            story.back = Outcome::Answered(200, both);
        });
        add("(c)", |story| {
            story.back = Outcome::Refused(403, story.key.clone());
        });
        add("(d)", |story| story.leaked_seen = story.seen.clone());
        add("(d)", |story| {
            story.leaked_back = Outcome::Refused(502, String::new());
        });
        add("(d)", |story| {
            story.denied = Outcome::Answered(200, String::new());
        });
        add("(d)", |story| {
            story.denied = Outcome::Refused(403, String::new());
        });
        for (view, story) in wrong {
            let complaints = story.complaints();
            assert!(
                complaints.iter().any(|text| text.starts_with(view)),
                "{view} {complaints:?}"
            );
            assert!(story.page().contains("NOT AS IT SHOULD BE: "), "{view}");
        }
    }
}
