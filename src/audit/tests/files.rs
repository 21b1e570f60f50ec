//! Chains that go on: over files, starts, kills and keys.

use std::fs::OpenOptions;
use std::io::Write;

use super::*;
use crate::audit::place::full_files;
use crate::audit::{Error, verify_files};

#[test]
fn a_chain_goes_on_over_starts() {
    let place = Place::new();
    for _ in 0..3 {
        place.run(2);
    }
    let expected = ["new", "started", "started"];
    let expected = expected.map(|why| [format!("begin {why}"), "end stopped".to_owned()]);
    assert_eq!(place.marks(), expected.concat());
    let report = place.verify().unwrap();
    assert_eq!((report.first, report.last, report.lines), (1, 12, 12));
    assert!(report.closed);
    assert_eq!((report.certain, report.crashes, report.lost), (12, 0, 0));
}

#[test]
fn a_kill_leaves_an_open_end_that_the_next_start_tells() {
    let place = Place::new();
    place.crash(2);
    let report = place.verify().unwrap();
    assert_eq!((report.closed, report.last, report.certain), (false, 3, 1));
    // Half a line: cut off, told, and not counted.
    let mut file = OpenOptions::new().append(true).open(place.path()).unwrap();
    file.write_all(b"{\"event\":\"exch").unwrap();
    drop(file);
    assert_eq!(place.verify().unwrap().torn_bytes, 14);
    place.run(1);
    assert_eq!(place.marks(), ["begin new", "begin crashed", "end stopped"]);
    assert!(place.lines()[3].contains("\"torn_bytes\":14,"));
    let report = place.verify().unwrap();
    assert_eq!((report.closed, report.last, report.crashes), (true, 6, 1));
}

#[test]
fn a_file_of_half_a_line_alone_goes_on_too() {
    let place = Place::new();
    fs::write(place.path(), b"{\"event").unwrap();
    place.run(1);
    assert_eq!(place.marks(), ["begin new", "end stopped"]);
    assert!(place.verify().unwrap().closed);
}

#[test]
fn what_was_cut_off_between_two_runs_stays_to_be_seen() {
    let place = Place::new();
    place.run(4);
    let lines = place.lines();
    place.write_lines(&lines[..3]);
    place.run(1);
    assert_eq!(place.marks(), ["begin new", "begin cut_off", "end stopped"]);
    let found = place.verify().expect_err("a hole");
    let expected = "audit.jsonl:4: line 7 follows here where 4 should";
    assert!(found.starts_with(expected), "{found}");
}

#[test]
fn full_files_are_put_aside_and_the_oldest_deleted() {
    let mut place = Place::new();
    (place.rotate_bytes, place.keep) = (4096, 3);
    // However they are gathered: a file is full by a line at most.
    place.run(160);
    let full = full_files(&place.path()).unwrap();
    assert_eq!(full.len(), 3);
    let report = place.verify().unwrap();
    assert_eq!((report.files, report.first), (4, full[0].0));
    assert!(report.closed && report.first > 1);
    let size = |path: &PathBuf| fs::metadata(path).unwrap().len();
    for (_, path) in &full {
        assert!((4096..5 * 1024).contains(&size(path)), "{path:?}");
    }
    // On their own, in any order; each continues the one before.
    let mut paths: Vec<_> = full.iter().map(|(_, path)| path.clone()).collect();
    paths.reverse();
    let alone = verify_files(&paths, &keyring(&[OLD])).unwrap();
    assert_eq!((alone.first, alone.closed), (report.first, false));
    let holed = [paths[0].clone(), paths[2].clone()];
    let found = verify_files(&holed, &keyring(&[OLD])).expect_err("a hole");
    assert!(found.to_string().contains("where"), "{found}");
    // A file in the middle, and the oldest one.
    let aside = place.folder.path().join("aside");
    for (path, expected) in [
        (&full[1].1, "were removed or moved"),
        (&full[0].1, "are missing"),
    ] {
        fs::rename(path, &aside).unwrap();
        let found = place.verify().expect_err("a removed file");
        assert!(found.contains(expected), "{found}");
        fs::rename(&aside, path).unwrap();
    }
    // What is deleted in order is not missed.
    place.run(120);
    assert!(place.verify().unwrap().first > report.first);
}

#[test]
fn a_kill_between_two_files_loses_nothing() {
    let mut place = Place::new();
    place.run(30);
    place.rotate_bytes = 4096;
    // As it is after the name was changed, before the next file was made.
    let aside = place.folder.path().join(format!("audit.jsonl.{:020}", 1));
    fs::rename(place.path(), aside).unwrap();
    place.run(1);
    let report = place.verify().unwrap();
    assert_eq!((report.files, report.last, report.crashes), (2, 35, 0));
}

#[test]
fn another_key_begins_another_segment() {
    let place = Place::new();
    let sink = place.open();
    emit(&sink, 2);
    sink.rekey(&keyring(&[NEW, OLD]));
    emit(&sink, 2);
    sink.close();
    end(sink);
    let marks = ["begin new", "end key", "begin key", "end stopped"];
    assert_eq!(place.marks(), marks);
    let report = place.verify_with(&[NEW, OLD]).unwrap();
    assert_eq!((report.last, report.closed), (8, true));
    assert!(place.verify_with(&[NEW]).is_err());
    // A start under a new key that nobody announced.
    let sink = Sink::to_file(place.options(), &keyring(&[OLD, NEW])).unwrap();
    emit(&sink, 1);
    sink.close();
    end(sink);
    assert!(place.verify_with(&[NEW, OLD]).unwrap().closed);
}

#[test]
fn a_chain_has_one_writer_and_no_foreign_file() {
    let place = Place::new();
    let sink = place.open();
    let second = Sink::to_file(place.options(), &keyring(&[OLD]));
    assert!(matches!(second, Err(Error::InUse(_))), "{second:?}");
    end(sink);
    // Also one that could be taken for half a line of ours: it would be cut off.
    for text in ["a line of somebody else\n", "a key", "{\"event\":\"other"] {
        fs::write(place.path(), text).unwrap();
        let foreign = Sink::to_file(place.options(), &keyring(&[OLD]));
        assert!(matches!(foreign, Err(Error::Foreign(_))), "{foreign:?}");
        assert_eq!(fs::read_to_string(place.path()).unwrap(), text);
    }
}

#[test]
fn a_closed_chain_that_gets_more_begins_anew() {
    let place = Place::new();
    let sink = place.open();
    sink.close();
    sink.close();
    emit(&sink, 1);
    end(sink);
    let marks = ["begin new", "end stopped", "begin started", "end stopped"];
    assert_eq!(place.marks(), marks);
    assert!(place.verify().unwrap().closed);
}

#[test]
fn files_are_of_the_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let mut place = Place::new();
    place.rotate_bytes = 4096;
    place.run(25);
    let mut seen = 0;
    for entry in fs::read_dir(place.folder.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.path());
        seen += 1;
    }
    assert_eq!(seen, 4, "the file, a full one, the head and the lock");
}

#[test]
fn gaps_are_lines_of_the_chain() {
    let place = Place::new();
    let sink = place.open();
    sink.event(serde_json::json!({ "event": "audit_gap", "lost": 5 }));
    sink.close();
    end(sink);
    assert_eq!(place.verify().unwrap().lost, 5);
}
