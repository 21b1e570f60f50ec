//! The threat model names tests: each of them must exist.
//!
//! Reads `docs/threat-model.md` as text. A test of the end-to-end suite is named by its module and
//! its name, any other by the file it stands in and its name.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that fails should say so and stop"
)]

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
        "smoke::an_origin_that_is_not_trusted_gets_nothing"
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
