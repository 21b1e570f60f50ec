//! `audit verify`: tells whether a chain of audit lines is whole.
//!
//! Nothing is written, and the server may go on writing meanwhile. Keys are read from where it reads
//! them; none is ever printed. Called by `cli`.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::sealing::KeySource;
use super::{Exit, chain, print};
use crate::audit::{Fault, Report, verify as verify_chain, verify_files};
use crate::config::{Config, Flags, Source};
use crate::seal::Keyring;

/// What is to be verified.
#[derive(Debug, Clone)]
pub struct Verify {
    /// Files on their own; the server's whole chain where there are none.
    pub files: Vec<PathBuf>,
    /// Fail where the chain was not ended in order.
    pub closed: bool,
    /// Where the configuration is.
    pub flags: Flags,
}

/// Verifies, and prints what was found.
pub(super) async fn verify(verify: Verify) -> Result<(), Exit> {
    let config = Config::load_state(&Source::process(verify.flags))?;
    let keyring = KeySource::of(&config).read().await;
    let keyring = keyring.map_err(|error| Exit::startup(&error))?;
    let path = config.audit.path(&config.state_dir);
    let is_whole = verify.files.is_empty();
    let files = verify.files;
    let work = move || check(&files, &path, &keyring);
    let found = tokio::task::spawn_blocking(work).await;
    let report = found
        .map_err(|error| Exit::startup(&error))?
        .map_err(|fault| Exit::failed(&chain(&fault)))?;
    print(&format!("{:#}\n", describe(&report, is_whole)))?;
    if verify.closed && !report.closed {
        return Err(Exit::failed(&format!(
            "the chain has an open end: nobody can say whether lines after {} were cut off",
            report.certain
        )));
    }
    Ok(())
}

fn check(files: &[PathBuf], path: &std::path::Path, keyring: &Keyring) -> Result<Report, Fault> {
    if files.is_empty() {
        verify_chain(path, keyring)
    } else {
        verify_files(files, keyring)
    }
}

/// Says what was found. The end of files on their own is not known.
fn describe(report: &Report, is_whole: bool) -> Value {
    let end = match (is_whole, report.closed) {
        (false, _) => "unknown",
        (true, true) => "closed",
        (true, false) => "open",
    };
    let certain = is_whole.then_some(report.certain);
    json!({
        "files": report.files,
        "lines": report.lines,
        "first": report.first,
        "last": report.last,
        "end": end,
        "certain": certain,
        "torn_bytes": report.torn_bytes,
        "crashes": report.crashes,
        "lost": report.lost,
    })
}
