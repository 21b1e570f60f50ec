//! Holds the layout rules that no lint can: which module may name which, one way out of the
//! process, a header on every file, and a bound on its length.
//!
//! The rows below are those of `docs/architecture.md`. A module may name only modules of a lower
//! row. Brace groups after `crate`, `super::super` and `super` out of a module's face are refused,
//! so that looking at `crate::X` is exact. The last two tests run the same scan on made-up text.
#![allow(
    clippy::expect_used,
    reason = "a test helper that fails should say so and stop"
)]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The modules by row, lowest first.
const ROWS: &[&[&str]] = &[
    &[
        "host",
        "id",
        "pace",
        "secret",
        "sealed_token",
        "shutdown",
        "telemetry",
    ],
    &["wire"],
    &["seal", "authority", "policy"],
    &["swap", "client_env"],
    &["serve", "upstream", "audit", "store"],
    &["records", "callout"],
    &["tenant", "identity"],
    &["session"],
    &["proxy", "sandbox", "payment"],
    &["web"],
    &["api", "gateway", "console"],
    &["config"],
    &["app"],
    &["cli"],
];

/// All the binary may name: it parses the command line, sets up, and hands over.
const NAMED_BY_MAIN: &[&str] = &["cli", "telemetry"];

/// Soft limit 300, hard 500 lines of code; the rest is room for the tests below them.
const MOST_LINES: usize = 650;

fn row(module: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&module))
}

fn may_name(from: &str, to: &str) -> bool {
    match from {
        "lib" => true,
        "main" => NAMED_BY_MAIN.contains(&to),
        _ => from == to || row(to) < row(from),
    }
}

/// Returns the end of a string literal whose opening quote stands at `open`.
fn string_end(text: &[char], open: usize, hashes: Option<usize>) -> usize {
    let mut at = open + 1;
    while let Some(c) = text.get(at) {
        let closing = text.iter().skip(at + 1).take_while(|c| **c == '#').count();
        match (c, hashes) {
            ('\\', None) => at += 1,
            ('"', None) => return at + 1,
            ('"', Some(hashes)) if closing >= hashes => return at + 1 + hashes,
            _ => {}
        }
        at += 1;
    }
    text.len()
}

/// Returns the end of a block comment, which may hold others, opening at `open`.
fn comment_end(text: &[char], open: usize) -> usize {
    let (mut at, mut depth) = (open, 0_usize);
    while at < text.len() {
        match (text.get(at), text.get(at + 1)) {
            (Some('/'), Some('*')) => (depth, at) = (depth + 1, at + 2),
            (Some('*'), Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Splits Rust source into (line, word), without comments and without the content of literals.
fn words(source: &str) -> Vec<(usize, String)> {
    let text: Vec<char> = source.chars().collect();
    let is_word = |c: &char| c.is_alphanumeric() || *c == '_';
    let find = |from: usize, end: char| {
        text.iter()
            .skip(from)
            .position(|c| *c == end)
            .map_or(text.len(), |n| from + n)
    };
    let (mut found, mut line, mut at) = (Vec::new(), 1, 0);
    while let Some(&c) = text.get(at) {
        let next = text.get(at + 1).copied();
        let end = match c {
            '/' if next == Some('/') => find(at, '\n'),
            '/' if next == Some('*') => comment_end(&text, at),
            '"' => string_end(&text, at, None),
            '\'' if next == Some('\\') => find(at + 3, '\'') + 1,
            '\'' if text.get(at + 2) == Some(&'\'') => at + 3,
            _ if is_word(&c) => {
                let end = at + text.iter().skip(at).take_while(|c| is_word(c)).count();
                let word: String = text.iter().skip(at).take(end - at).collect();
                let hashes = text.iter().skip(end).take_while(|c| **c == '#').count();
                let raw = ["r", "br", "cr"].contains(&word.as_str());
                if raw && text.get(end + hashes) == Some(&'"') {
                    string_end(&text, end + hashes, Some(hashes))
                } else {
                    found.push((line, word));
                    end
                }
            }
            ':' if next == Some(':') => {
                found.push((line, "::".to_owned()));
                at + 2
            }
            _ => {
                if !c.is_whitespace() {
                    found.push((line, c.to_string()));
                }
                at + 1
            }
        };
        line += text
            .iter()
            .skip(at)
            .take(end - at)
            .filter(|c| **c == '\n')
            .count();
        at = end;
    }
    found
}

/// Returns the top-level module that a file under `src/` belongs to.
fn module_of(path: &str) -> &str {
    let inside = path.strip_prefix("src/").unwrap_or(path);
    inside
        .split('/')
        .next()
        .unwrap_or(inside)
        .trim_end_matches(".rs")
}

/// Connects to the one address that the operator named for a shared store.
const STORE_LINK: &str = "src/store/shared/link.rs";

/// Lists what is wrong with one source file; `path` is relative to the project.
fn faults(path: &str, source: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if !source.starts_with("//!") {
        faults.push(format!("{path}: does not open with `//!`"));
    }
    let lines = source.lines().count();
    if lines > MOST_LINES {
        faults.push(format!(
            "{path}: {lines} lines, over {MOST_LINES}: split by responsibility"
        ));
    }
    if !path.starts_with("src/") {
        return faults;
    }
    let from = module_of(path);
    let root = from == "lib" || from == "main";
    if !root && row(from).is_none() {
        faults.push(format!("{path}: module `{from}` is in no row"));
    }
    // A module's face is a child of the crate root: its `super` would be `crate` by another name.
    let face = path.matches('/').count() == 1 || path.ends_with("/mod.rs");
    let (mut inline_module, mut tests) = (false, path.ends_with("/tests.rs"));
    let words = words(source);
    for (at, (line, word)) in words.iter().enumerate() {
        let word_at = |at: usize| words.get(at).map_or("", |(_, word)| word.as_str());
        let before = at.checked_sub(1).map_or("", word_at);
        let (after, then) = (word_at(at + 1), word_at(at + 2));
        let dials = after == "::" && then.starts_with("connect");
        let mut fault = |what: String| faults.push(format!("{path}:{line}: {what}"));
        match word.as_str() {
            "mod" if then == "{" => {
                inline_module = true;
                tests |= after == "tests";
            }
            "mod" if then == ";" && from == "lib" && row(after).is_none() => {
                fault(format!("module `{after}` is in no row"));
            }
            "mod" if then == ";" && from == "main" => {
                fault(format!("`mod {after}` belongs to the library"));
            }
            "crate" | "oshu_vault" if after == "::" => match row(then) {
                None => fault(format!("`{word}::{then}`: a module of a row must follow")),
                Some(_) if may_name(from, then) => {}
                Some(_) => fault(format!("`{from}` may not name `{then}`")),
            },
            "crate" if before != "(" && before != "in" => {
                fault("`crate` without a module after it".to_owned());
            }
            "super" if after == "::" && then == "super" => fault("`super::super`".to_owned()),
            "super" if after == "::" && face && !inline_module => {
                fault("`super` out of a module's face: write `crate::X`".to_owned());
            }
            "TcpStream" if dials && from != "upstream" && path != STORE_LINK && !tests => {
                fault("`TcpStream::connect`: only `upstream` dials".to_owned());
            }
            _ => {}
        }
    }
    faults
}

/// Lists the Rust files under a folder of the project, as relative paths with forward slashes.
fn rust_files(folder: &str) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut found, mut folders) = (Vec::new(), vec![PathBuf::from(folder)]);
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(root.join(&folder)) else {
            continue;
        };
        for entry in entries {
            let entry = entry.expect("a readable folder");
            let path = folder.join(entry.file_name());
            let name = entry.file_name();
            if entry.file_type().expect("a file type").is_dir() {
                if name != "node_modules" && name != "target" {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path.to_string_lossy().replace('\\', "/"));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn every_file_keeps_the_rules() {
    let mut found = Vec::new();
    for folder in ["src", "tests", "benches", "sdk/rust/src"] {
        for path in rust_files(folder) {
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(&path);
            found.extend(faults(
                &path,
                &fs::read_to_string(file).expect("a source file in UTF-8"),
            ));
        }
    }
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn the_scan_sees_the_sources_and_the_rows_are_distinct() {
    let files = rust_files("src");
    for expected in ["src/lib.rs", "src/main.rs"] {
        assert!(
            files.iter().any(|file| file == expected),
            "{expected} not among {files:?}"
        );
    }
    let mut names: Vec<_> = ROWS.concat();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "a module stands in two rows");
}

/// The page for readers and the list above must not tell two stories.
#[test]
fn the_documented_rows_are_the_rows() {
    let page = include_str!("../docs/architecture.md");
    let block = page
        .split("```")
        .find(|block| block.contains("\ncli "))
        .expect("the rows");
    let documented: Vec<Vec<&str>> = block
        .trim()
        .lines()
        .rev()
        .map(|line| line.split_whitespace().skip(1).collect())
        .collect();
    assert_eq!(documented, ROWS);
}

#[test]
fn what_breaks_a_rule_is_found_and_named() {
    let cases = [
        (
            "policy/rule.rs",
            "use crate::proxy::Proxy;",
            "2: `policy` may not name `proxy`",
        ),
        (
            "wire/h1.rs",
            "\nfn f() -> crate::swap::Swap {}",
            "3: `wire` may not name `swap`",
        ),
        (
            "api/vault.rs",
            "use crate::gateway::A;",
            "`api` may not name `gateway`",
        ),
        (
            "host.rs",
            "pub(in crate::app) fn f() {}",
            "`host` may not name `app`",
        ),
        (
            "store/disk.rs",
            "use oshu_vault::cli::run;",
            "`store` may not name `cli`",
        ),
        (
            "main.rs",
            "use oshu_vault::app::App;",
            "`main` may not name `app`",
        ),
        (
            "main.rs",
            "mod extra;",
            "`mod extra` belongs to the library",
        ),
        ("lib.rs", "pub mod util;", "`util` is in no row"),
        ("util.rs", "", "`util` is in no row"),
        ("app.rs", "use crate::error::Error;", "`crate::error`"),
        ("app.rs", "use crate::{host, id};", "`crate::{`"),
        ("app.rs", "use crate::*;", "`crate::*`"),
        ("app.rs", "use crate as all;", "`crate` without a module"),
        (
            "swap/basic.rs",
            "use super::super::proxy;",
            "`super::super`",
        ),
        (
            "swap/mod.rs",
            "use super::proxy::Proxy;",
            "`super` out of a module's face",
        ),
        (
            "host.rs",
            "use super::proxy::Proxy;",
            "`super` out of a module's face",
        ),
        (
            "serve/mod.rs",
            "let s = TcpStream::connect(a);",
            "only `upstream` dials",
        ),
        (
            "store/shared/mod.rs",
            "let s = TcpStream::connect(a);",
            "only `upstream` dials",
        ),
    ];
    assert_one_fault_each(&cases);
}

#[test]
fn literals_and_comments_hide_nothing_behind_them() {
    let cases = [
        (
            "id.rs",
            "const Q: char = '\"'; use crate::app::A;",
            "name `app`",
        ),
        (
            "id.rs",
            "fn f<'a>(x: &'a str) { crate::app::f(x) }",
            "name `app`",
        ),
        ("id.rs", "let a = r#\"\"\"#; crate::app::f()", "name `app`"),
        ("id.rs", "let a = '\\''; crate::app::f()", "name `app`"),
        ("id.rs", "/* /* */ */ crate :: app :: f()", "name `app`"),
        ("id.rs", "let a = \"\\\"\"; crate::app::f()", "name `app`"),
        ("id.rs", "let a = r\"\\\"; crate::app::f()", "name `app`"),
    ];
    assert_one_fault_each(&cases);
}

fn assert_one_fault_each(cases: &[(&str, &str, &str)]) {
    for (file, source, expected) in cases {
        let path = format!("src/{file}");
        let found = faults(&path, &format!("//! x\n{source}"));
        assert_eq!(found.len(), 1, "{path} {source:?}: {found:?}");
        assert!(
            found.concat().contains(expected),
            "{path} {source:?}: {found:?}"
        );
        assert!(found.concat().starts_with(&path), "{found:?}");
    }
}

#[test]
fn what_keeps_the_rules_passes() {
    let cases = [
        ("proxy/exchange.rs", "use crate::session::SessionHandle;"),
        (
            "proxy/exchange.rs",
            "use crate::proxy::reject::{A, B};\nuse super::relay;",
        ),
        (
            "host.rs",
            "pub(crate) struct A;\nmod tests {\n use super::*;\n}",
        ),
        (
            "host.rs",
            "/// crate::app\n// crate::app\n/* crate::app */\nlet a = \"crate::app\";",
        ),
        (
            "host.rs",
            "let a = br##\"crate::app\"#\"##;\nlet b = c\"crate::app\";",
        ),
        (
            "host.rs",
            "mod tests {\n fn f() { TcpStream::connect(a); }\n}",
        ),
        ("upstream/dial.rs", "let s = TcpStream::connect(a);"),
        (
            "main.rs",
            "use oshu_vault::cli;\nuse oshu_vault::telemetry::start;",
        ),
        ("lib.rs", "pub mod host;\npub use crate::app::App;"),
    ];
    for (file, source) in cases {
        let found = faults(&format!("src/{file}"), &format!("//! x\n{source}"));
        assert_eq!(found, Vec::<String>::new(), "{file} {source:?}");
    }
}

#[test]
fn every_folder_has_headers_and_a_bound() {
    let lines = |count| "//! x\n".repeat(count);
    for path in ["src/app/mod.rs", "tests/e2e/main.rs", "benches/exchange.rs"] {
        assert_eq!(faults(path, &lines(MOST_LINES)).len(), 0, "{path}");
        assert_eq!(faults(path, &lines(MOST_LINES + 1)).len(), 1, "{path}");
        assert_eq!(faults(path, "// x\n//! y").len(), 1, "{path}");
    }
}
