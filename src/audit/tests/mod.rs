//! Chains in files: written by a sink, then changed in every way, and verified.

mod away;
mod damage;
mod files;
mod hostile;
mod records;

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use tempfile::TempDir;

use crate::audit::place::head_path;
use crate::audit::{FileOptions, Kind, Record, Report, Sink, verify};
use crate::seal::{KeyId, Keyring};

const OLD: u32 = 1;
const NEW: u32 = 2;

/// Makes the same keys each time.
fn keyring(ids: &[u32]) -> Keyring {
    let key = |id: &u32| (KeyId::new(*id), [u8::try_from(*id).unwrap(); 32]);
    Keyring::from_keys(ids.iter().map(key).collect(), KeyId::new(ids[0])).unwrap()
}

/// A folder with a chain in it.
struct Place {
    folder: TempDir,
    rotate_bytes: u64,
    keep: usize,
}

impl Place {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            rotate_bytes: 1 << 20,
            keep: 100,
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("audit.jsonl")
    }

    fn options(&self) -> FileOptions {
        FileOptions {
            path: self.path(),
            rotate_bytes: self.rotate_bytes,
            keep: self.keep,
        }
    }

    fn open(&self) -> Sink {
        Sink::to_file(self.options(), &keyring(&[OLD])).unwrap()
    }

    /// Writes some records and ends in order.
    fn run(&self, records: usize) {
        let sink = self.open();
        emit(&sink, records);
        sink.close();
        end(sink);
    }

    /// Writes some records and is killed: nothing after them is written, and the lock is free.
    fn crash(&self, records: usize) {
        let (path, copy) = (self.path(), self.folder.path().join("copy"));
        let sink = self.open();
        emit(&sink, records);
        sink.flush();
        let head = fs::read(head_path(&path)).unwrap();
        fs::copy(&path, &copy).unwrap();
        end(sink);
        fs::rename(copy, &path).unwrap();
        fs::write(head_path(&path), head).unwrap();
    }

    fn verify(&self) -> Result<Report, String> {
        self.verify_with(&[OLD])
    }

    fn verify_with(&self, keys: &[u32]) -> Result<Report, String> {
        let found = verify(&self.path(), &keyring(keys));
        let folder = format!("{}/", self.folder.path().display());
        found.map_err(|fault| fault.to_string().replace(&folder, ""))
    }

    fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// Returns the lines of the chain itself, as their event and why they are there.
    fn marks(&self) -> Vec<String> {
        let marks = self.lines().into_iter().filter_map(|line| {
            let line: Value = serde_json::from_str(&line).unwrap();
            let event = line["event"].as_str()?.strip_prefix("audit_")?.to_owned();
            Some(format!("{event} {}", line["why"].as_str()?))
        });
        marks.collect()
    }

    fn write_lines(&self, lines: &[String]) {
        let ends = if lines.is_empty() { "" } else { "\n" };
        fs::write(self.path(), lines.join("\n") + ends).unwrap();
    }
}

fn emit(sink: &Sink, count: usize) {
    for number in 0..count {
        Record::begin(sink, Kind::Exchange).request("GET", &format!("/{number}"));
    }
}

/// Waits until the sink's thread has ended, which frees the lock.
fn end(sink: Sink) {
    let queue = sink.queue();
    drop(sink);
    while queue.strong_count() > 0 {
        std::thread::yield_now();
    }
}
