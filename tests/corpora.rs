//! Runs every kept input of the fuzz targets through its property again, as ordinary tests.
//!
//! `fuzz/seeds/` holds the smallest inputs that reach what the fuzzer has found to reach, and
//! `fuzz/found/` every input that once broke a property. Nothing of the fuzzer is needed here: the
//! properties are the same source. An input is named when it fails.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::string_slice,
    reason = "a property that does not hold should say so and stop"
)]
#![allow(
    unreachable_pub,
    reason = "the same source is a library of the fuzz targets"
)]

#[path = "../fuzz/properties/mod.rs"]
mod properties;

use std::fs;
use std::path::{Path, PathBuf};

/// Returns the inputs that are kept for a target.
fn inputs(target: &str) -> Vec<PathBuf> {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let mut files: Vec<PathBuf> = ["seeds", "found"]
        .into_iter()
        .filter_map(|kind| fs::read_dir(fuzz.join(kind).join(target)).ok())
        .flatten()
        .map(|entry| entry.expect("a folder can be listed").path())
        .collect();
    files.sort();
    files
}

/// Says which input it was, if the property does not hold.
struct Naming<'a>(&'a Path);

impl Drop for Naming<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the input is {}", self.0.display());
        }
    }
}

fn replay(target: &str) {
    let (_, property) = properties::ALL
        .into_iter()
        .find(|(name, _)| *name == target)
        .expect("the target is listed");
    // What no fuzzer needs to find.
    property(b"");
    property(&[0; 64]);
    property(&[0xff; 64]);
    let inputs = inputs(target);
    assert!(inputs.len() >= 5, "{target} has no corpus");
    for path in &inputs {
        let _naming = Naming(path);
        property(&fs::read(path).expect("an input can be read"));
    }
}

macro_rules! replays {
    ($($target:ident)*) => {
        $(
            #[test]
            fn $target() {
                replay(stringify!($target));
            }
        )*

        /// Every target is replayed, has a program in `fuzz/`, and none has been forgotten.
        #[test]
        fn every_target_is_here() {
            let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
            let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).expect("a manifest");
            let named: Vec<&str> = [$(stringify!($target)),*].into();
            let listed: Vec<&str> = properties::ALL.into_iter().map(|(name, _)| name).collect();
            assert_eq!(named, listed);
            for name in &named {
                assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
                assert!(fuzz.join("targets").join(name).with_extension("rs").is_file(), "{name}");
            }
            let programs = fs::read_dir(fuzz.join("targets")).expect("a folder can be listed");
            assert_eq!(programs.count(), named.len());
        }
    };
}

replays!(basic chunks config detect head host_port scrub sealed_token session_json swap_body target);
