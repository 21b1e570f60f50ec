//! The threat model names tests: each of them must exist. The security cases have numbers: each has
//! a test, or says why not.
//!
//! Reads `docs/threat-model.md` and `docs/security-cases.md` as text. A test of the end-to-end suite
//! is named by its module and its name, any other by the file it stands in and its name; the tests
//! of a case are found by the beginning of their names, wherever they stand.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that fails should say so and stop"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Returns every text in backticks that names a test.
fn named(text: &str) -> Vec<&str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted
        .filter(|name| name.contains("::") && !name.contains(' '))
        .collect()
}

/// Finds the files that a test of this path may stand in.
fn files(root: &Path, path: &[&str]) -> Vec<PathBuf> {
    if let [file] = path
        && file.contains('/')
    {
        return vec![root.join(file)];
    }
    let module = root.join("tests/e2e").join(path.join("/"));
    vec![module.with_extension("rs"), module.join("mod.rs")]
}

fn exists(root: &Path, name: &str) -> bool {
    let parts: Vec<&str> = name.split("::").collect();
    let Some((test, path)) = parts.split_last() else {
        return false;
    };
    files(root, path).iter().any(|file| {
        let text = fs::read_to_string(file).unwrap_or_default();
        ["fn ", "async fn "].iter().any(|start| {
            let head = format!("{start}{test}(");
            text.lines()
                .any(|line| line.trim_start().starts_with(&head))
        })
    })
}

#[test]
fn every_test_that_the_threat_model_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/threat-model.md")).expect("the threat model");
    let names: Vec<&str> = named(&text)
        .into_iter()
        .filter(|name| !name.starts_with("module::"))
        .collect();
    assert!(
        names.len() > 60,
        "the model names its tests: {}",
        names.len()
    );
    let missing: Vec<&str> = names
        .into_iter()
        .filter(|name| !exists(root, name))
        .collect();
    assert!(missing.is_empty(), "no such tests: {missing:#?}");
}

#[test]
fn a_test_that_is_not_there_is_missed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert!(exists(
        root,
        "smoke::peer_74_an_origin_that_is_not_trusted_gets_nothing"
    ));
    for name in [
        "smoke::no_such_test",
        "nowhere::at_all",
        "tests/threat_model.rs::no_such",
    ] {
        assert!(!exists(root, name), "{name}");
    }
    assert_eq!(named("a `b::c` and `d e::f` and `g`"), ["b::c"]);
}

/// How many cases there are.
const CASES: u32 = 91;

/// Reads the rows of the document: a number, and why it has no test, if it says so.
fn rows(text: &str) -> Vec<(u32, Option<&str>)> {
    let row = |line: &str| -> Option<u32> {
        let (number, rest) = line.strip_prefix("| ")?.split_once(" | ")?;
        assert!(
            number.parse::<u32>().is_err() || rest.matches(" | ").count() == 1,
            "three columns: {line}"
        );
        number.parse().ok()
    };
    text.lines()
        .filter_map(|line| {
            let outcome = line.trim_end_matches(" |").rsplit(" | ").next()?;
            Some((row(line)?, outcome.strip_prefix("no test: ")))
        })
        .collect()
}

/// Collects the names of tests that begin with `case_` from the sources below a folder.
fn case_tests(folder: &Path, found: &mut BTreeMap<u32, BTreeSet<String>>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default();
        if path.is_dir() {
            // Packages of other projects lie under the fixtures.
            if name != "fixtures" {
                case_tests(&path, found);
            }
        } else if path.extension().is_some_and(|it| it == "rs") {
            let text = fs::read_to_string(&path).expect("a source");
            for (number, name) in text.lines().filter_map(case_of) {
                found.entry(number).or_default().insert(name.to_owned());
            }
        }
    }
}

/// Reads the number and the name of a test whose line this is.
fn case_of(line: &str) -> Option<(u32, &str)> {
    let line = line.trim_start();
    let line = line.strip_prefix("async ").unwrap_or(line);
    let (name, _) = line.strip_prefix("fn ")?.split_once('(')?;
    let (number, rest) = name.strip_prefix("case_")?.split_once('_')?;
    assert!(
        number.len() == 2 && !rest.is_empty(),
        "{name}: two digits, and what it shows"
    );
    Some((number.parse().expect("a number"), name))
}

/// Says what does not fit between the rows of the document and the tests.
fn faults(rows: &[(u32, Option<&str>)], tests: &BTreeMap<u32, BTreeSet<String>>) -> Vec<String> {
    let mut faults = Vec::new();
    for number in 1..=CASES {
        let own: Vec<_> = rows.iter().filter(|(row, _)| *row == number).collect();
        match (own.as_slice(), tests.get(&number)) {
            ([], _) => faults.push(format!("case {number} has no row")),
            ([_, _, ..], _) => faults.push(format!("case {number} has several rows")),
            ([(_, None)], None) => {
                faults.push(format!("case {number} has no test case_{number:02}_*"));
            }
            ([(_, Some(""))], _) => faults.push(format!("case {number} gives no reason")),
            ([(_, Some(_))], Some(names)) => {
                faults.push(format!("case {number} says it has no test: {names:?}"));
            }
            _ => {}
        }
    }
    let beyond = rows.iter().map(|(row, _)| row).chain(tests.keys());
    let beyond = beyond.filter(|number| !(1..=CASES).contains(*number));
    faults.extend(beyond.map(|number| format!("there is no case {number}")));
    faults
}

#[test]
fn every_security_case_has_a_test_or_a_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/security-cases.md")).expect("the cases");
    let mut tests = BTreeMap::new();
    for folder in ["src", "tests"] {
        case_tests(&root.join(folder), &mut tests);
    }
    let faults = faults(&rows(&text), &tests);
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn a_case_without_a_test_or_a_row_is_missed() {
    let text = "| # | attack | outcome |\n|---|---|---|\n| 1 | a | b |\n\
                | 2 | a | no test: it is not there |\n| 3 | a | b |\n| 3 | a | b |\n\
                | 80 | a | b |\n| 81 | a | no test: x |\n| 82 | a | no test:  |\n| 92 | a | b |\n";
    assert_eq!(
        case_of("    async fn case_01_a_b() {"),
        Some((1, "case_01_a_b"))
    );
    assert_eq!(case_of("fn case_91_x(a: u8) {"), Some((91, "case_91_x")));
    assert_eq!(case_of("// fn case_91_x() {"), None);
    assert_eq!(case_of("fn other_case_91_x() {"), None);
    let tests = |numbers: &[u32]| -> BTreeMap<u32, BTreeSet<String>> {
        let name = |number: &u32| (*number, BTreeSet::from(["case".to_owned()]));
        numbers.iter().map(name).collect()
    };
    let found = faults(&rows(text), &tests(&[1, 3, 81, 93]));
    for expected in [
        "case 3 has several rows",
        "case 4 has no row",
        "case 80 has no test case_80_*",
        "case 81 says it has no test: {\"case\"}",
        "case 82 gives no reason",
        "there is no case 92",
        "there is no case 93",
    ] {
        assert!(
            found.iter().any(|it| it == expected),
            "{expected}: {found:#?}"
        );
    }
    for sound in ["case 1 ", "case 2 "] {
        assert!(!found.iter().any(|it| it.starts_with(sound)), "{found:#?}");
    }
}
