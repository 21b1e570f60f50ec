//! What stands beside a chain and is not its own: heads, names, links and locks of somebody else,
//! and what a kill or a full disk leaves in between.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use super::*;
use crate::audit::chain::Keys;
use crate::audit::file::ChainFile;
use crate::audit::head::Head;
use crate::audit::place::{beside, full_files, full_path};
use crate::audit::{Error, verify_files};

fn refused(place: &Place) -> Error {
    Sink::to_file(place.options(), &keyring(&[OLD])).expect_err("a refusal")
}

fn append(path: &Path, bytes: &[u8]) {
    let mut file = OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(bytes).unwrap();
}

fn rotating(keep: usize) -> Place {
    let mut place = Place::new();
    (place.rotate_bytes, place.keep) = (4096, keep);
    place
}

#[test]
fn a_start_without_a_head_is_never_told_as_whole() {
    let place = Place::new();
    place.run(4);
    // Lines are cut off, and what would tell of it goes with them.
    let lines = place.lines();
    place.write_lines(&lines[..3]);
    fs::remove_file(head_path(&place.path())).unwrap();
    place.run(1);
    place.run(1);
    assert_eq!(place.marks()[1], "begin headless");
    let expected = "audit.jsonl:4: the server found no head at this start";
    let found = place.verify().expect_err("no head");
    assert!(found.starts_with(expected), "{found}");
    let found = verify_files(&[place.path()], &keyring(&[OLD])).expect_err("no head");
    assert!(found.to_string().contains(expected), "{found}");
    // What is worse is told first.
    let mut lines = place.lines();
    lines[4] = lines[4].replace("/0", "/9");
    place.write_lines(&lines);
    let found = place.verify().expect_err("a changed line");
    assert!(
        found.starts_with("audit.jsonl:5: the line was changed"),
        "{found}"
    );
}

#[test]
fn a_head_that_was_removed_with_all_but_full_files_is_missed() {
    let place = rotating(3);
    place.run(40);
    fs::remove_file(head_path(&place.path())).unwrap();
    fs::write(place.path(), "").unwrap();
    place.run(1);
    let found = place.verify().expect_err("no head");
    assert!(found.contains("found no head at this start"), "{found}");
}

#[test]
fn a_head_that_was_changed_is_a_clear_error_at_the_start() {
    let place = Place::new();
    place.run(2);
    let head = head_path(&place.path());
    let good = fs::read(&head).unwrap();
    let lines = place.lines();
    let mut flipped = good.clone();
    flipped[100] ^= 1;
    let long = [&good[..], &[b' '; 10_000]].concat();
    for bad in [&flipped, &Vec::new(), &good[1..].to_vec(), &long] {
        fs::write(&head, bad).unwrap();
        let error = refused(&place);
        assert!(
            matches!(&error, Error::Head(path) if *path == head),
            "{error}"
        );
        assert!(error.to_string().contains("put that key back"), "{error}");
        assert_eq!(place.lines(), lines, "nothing was written");
    }
    fs::write(&head, &good).unwrap();
    let other = Sink::to_file(place.options(), &keyring(&[NEW]));
    assert!(matches!(other, Err(Error::Head(_))), "{other:?}");
    place.run(1);
    assert!(place.verify().unwrap().closed);
}

#[test]
fn a_chain_has_a_head_before_it_has_a_line() {
    let place = Place::new();
    let (mut file, text) = ChainFile::open(place.options(), &keyring(&[OLD])).unwrap();
    let report = place.verify().unwrap();
    assert_eq!((report.lines, report.closed), (0, false));
    // Killed before the line was written; after half of it; and after it.
    let written = file.write(&text[..9]).unwrap();
    assert_eq!(written, 9);
    assert_eq!(place.verify().unwrap().torn_bytes, 9);
    let written = file.write(&text[9..]).unwrap();
    assert_eq!(written, text.len() - 9);
    drop(file);
    let report = place.verify().unwrap();
    assert_eq!((report.lines, report.certain, report.closed), (1, 0, false));
    place.run(1);
    assert_eq!(place.marks(), ["begin new", "begin crashed", "end stopped"]);
    assert!(place.verify().unwrap().closed);
}

#[test]
fn another_end_than_the_head_s_is_not_gone_on_with() {
    let place = Place::new();
    place.run(2);
    let (file, head) = (
        fs::read(place.path()).unwrap(),
        fs::read(head_path(&place.path())).unwrap(),
    );
    // The same length, the same keys, and another story.
    let sink = place.open();
    sink.event(serde_json::json!({ "event": "fork" }));
    sink.close();
    end(sink);
    let fork = fs::read(place.path()).unwrap();
    fs::write(place.path(), &file).unwrap();
    fs::write(head_path(&place.path()), &head).unwrap();
    place.run(1);
    fs::write(place.path(), &fork).unwrap();
    assert!(place.verify().is_err());
    place.run(1);
    let found = place.verify().expect_err("another story");
    assert!(
        found.starts_with("audit.jsonl:8: the line was changed"),
        "{found}"
    );
}

#[test]
fn planted_names_drive_out_no_file_and_are_not_deleted() {
    let place = rotating(3);
    place.run(40);
    let kept = full_files(&place.path()).unwrap();
    let inner: Vec<u64> = kept.iter().map(|(first, _)| first + 1).collect();
    let planted: Vec<_> = (0..10)
        .map(|n| u64::MAX - n)
        // And such as this chain could have, between what it has and will have.
        .chain([0])
        .chain(inner)
        .map(|number| full_path(&place.path(), number))
        .collect();
    for path in &planted {
        fs::write(path, "planted\n").unwrap();
    }
    // Looked at again and again: later ones would drive the planted ones out themselves.
    for _ in 0..16 {
        place.run(10);
        let all = full_files(&place.path()).unwrap();
        let own = all.iter().filter(|(_, path)| !planted.contains(path));
        assert_eq!(own.count(), 3, "{all:?}");
    }
    let all = full_files(&place.path()).unwrap();
    for path in &planted {
        assert_eq!(fs::read_to_string(path).unwrap(), "planted\n", "{path:?}");
    }
    assert_eq!(all.len(), planted.len() + 3, "{all:?}");
    let found = place.verify().expect_err("planted files");
    assert!(
        found.contains("this is no line of an audit file"),
        "{found}"
    );
    for path in &planted {
        fs::remove_file(path).unwrap();
    }
    let report = place.verify().unwrap();
    assert!(report.closed && report.first > 1, "{report:?}");
    assert_eq!(report.files, 4);
}

#[test]
fn a_full_file_that_is_empty_or_another_s_is_a_fault() {
    let place = rotating(3);
    place.run(40);
    let full = full_files(&place.path()).unwrap();
    let (number, newest) = full.last().unwrap().clone();
    let empty = full_path(&place.path(), number + 1);
    fs::write(&empty, "").unwrap();
    let found = place.verify().expect_err("an empty file");
    assert!(
        found.ends_with(": a file that was full is empty"),
        "{found}"
    );
    // A start goes by the newest one where the file itself has no line yet.
    fs::write(place.path(), "").unwrap();
    let error = refused(&place);
    assert!(
        matches!(&error, Error::Foreign(path) if *path == empty),
        "{error}"
    );
    fs::rename(&newest, &empty).unwrap();
    let error = refused(&place);
    assert!(
        matches!(&error, Error::Foreign(path) if *path == empty),
        "{error}"
    );
}

#[test]
fn a_head_that_cannot_be_written_deletes_nothing() {
    let mut place = rotating(1);
    place.run(10);
    // As on a full disk: lines find room, the head does not.
    let stuck = beside(&head_path(&place.path()), ".new");
    fs::create_dir(&stuck).unwrap();
    fs::write(stuck.join("file"), "").unwrap();
    place.run(60);
    assert!(full_files(&place.path()).unwrap().len() > 1);
    let report = place.verify().unwrap();
    assert_eq!((report.first, report.closed), (1, false));
    fs::remove_dir_all(&stuck).unwrap();
    place.keep = 2;
    place.run(60);
    assert_eq!(full_files(&place.path()).unwrap().len(), 2);
    assert!(place.verify().unwrap().closed);
}

#[test]
fn a_kill_before_the_deletion_is_gone_on_with() {
    let place = rotating(1);
    place.run(40);
    let (number, oldest) = full_files(&place.path()).unwrap().swap_remove(0);
    let kept = fs::read(&oldest).unwrap();
    place.run(60);
    assert!(!oldest.exists());
    // As if the kill had come behind the head, which names what is to go, and before the deletion.
    fs::write(&oldest, kept).unwrap();
    let keys = keyring(&[OLD]);
    let mut head = Head::find(&place.path(), &keys).unwrap().unwrap();
    head.oldest = number;
    let keys = Keys::current(&keys).unwrap();
    head.put(&place.path(), &keys).unwrap();
    let report = place.verify().unwrap();
    assert!(report.closed && report.first > number, "{report:?}");
    place.run(1);
    let full = full_files(&place.path()).unwrap();
    assert_eq!((full.len(), oldest.exists()), (1, false));
    assert!(place.verify().unwrap().closed);
}

#[test]
fn half_a_line_of_any_length_is_half_a_line() {
    let place = Place::new();
    place.crash(2);
    let long = vec![b'x'; (1 << 20) + 10];
    append(&place.path(), &long);
    let torn = place.verify().unwrap().torn_bytes;
    assert_eq!(torn, u64::try_from(long.len()).unwrap());
    // With an end it is a line, and none of ours; what follows it is not passed over.
    let good = fs::read(place.path()).unwrap();
    append(&place.path(), b"\nmore\n");
    let found = place.verify().expect_err("a long line");
    let expected = "audit.jsonl:4: this is no line of an audit file";
    assert_eq!(found, expected);
    fs::write(place.path(), good).unwrap();
    place.run(1);
    assert!(place.lines()[3].contains("\"torn_bytes\":1048586,"));
    assert!(place.verify().unwrap().closed);
    // However much it looks like one.
    let end = format!(",\"seq\":9,\"mac\":\"{}\"}}\n", "0".repeat(64));
    append(&place.path(), &[&long[..], end.as_bytes()].concat());
    assert!(matches!(refused(&place), Error::Foreign(_)));
}

#[test]
fn nothing_is_written_or_read_through_a_link() {
    let place = Place::new();
    let victim = place.folder.path().join("victim");
    fs::write(&victim, "").unwrap();
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o644)).unwrap();
    let head = head_path(&place.path());
    for link in [beside(&place.path(), ".lock"), place.path(), head.clone()] {
        symlink(&victim, &link).unwrap();
        let error = refused(&place);
        assert!(
            matches!(&error, Error::File { path, .. } if *path == link),
            "{error}"
        );
        fs::remove_file(&link).unwrap();
    }
    symlink(&victim, beside(&head, ".new")).unwrap();
    place.run(1);
    assert!(fs::symlink_metadata(&head).unwrap().is_file());
    assert!(place.verify().unwrap().closed);
    let meta = fs::metadata(&victim).unwrap();
    assert_eq!((meta.len(), meta.mode() & 0o777), (0, 0o644));
    // Nor from what is no file.
    fs::rename(&head, place.folder.path().join("head")).unwrap();
    fs::create_dir(&head).unwrap();
    assert!(matches!(refused(&place), Error::File { path, .. } if path == head));
    assert!(place.verify().is_err());
}

#[test]
fn a_chain_has_one_writer_whatever_happens_to_names() {
    let place = rotating(3);
    let sink = place.open();
    for records in [1, 40] {
        emit(&sink, records);
        sink.flush();
        fs::remove_file(beside(&place.path(), ".lock")).unwrap();
        let error = refused(&place);
        assert!(matches!(error, Error::InUse(_)), "{error}");
    }
    // Another name of the same file.
    let mut options = place.options();
    options.path = place.folder.path().join("other.jsonl");
    fs::hard_link(place.path(), &options.path).unwrap();
    let second = Sink::to_file(options, &keyring(&[OLD]));
    assert!(matches!(second, Err(Error::InUse(_))), "{second:?}");
    sink.close();
    end(sink);
    assert!(place.verify().unwrap().closed);
}

#[test]
fn the_same_key_once_more_begins_nothing() {
    let place = Place::new();
    let sink = place.open();
    sink.rekey(&keyring(&[OLD]));
    emit(&sink, 1);
    sink.rekey(&keyring(&[OLD, NEW]));
    sink.close();
    end(sink);
    assert_eq!(place.marks(), ["begin new", "end stopped"]);
}
