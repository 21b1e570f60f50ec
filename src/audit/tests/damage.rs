//! Every way to change a chain from outside is found, and named by its line.

use super::*;
use crate::audit::verify_files;

/// Counts the line ends.
fn breaks(bytes: &[u8]) -> usize {
    bytes.split(|byte| *byte == b'\n').count() - 1
}

#[test]
fn every_changed_bit_is_found() {
    let place = Place::new();
    place.run(3);
    let good = fs::read(place.path()).unwrap();
    assert!(place.verify().unwrap().closed);
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 7);
        fs::write(place.path(), &bad).unwrap();
        let line = 1 + breaks(&good[..at]);
        let found = place.verify().expect_err("a changed bit");
        // A line end that is gone, or a new one, is seen at one of the two lines.
        let named = found.starts_with(&format!("audit.jsonl:{line}: "));
        let cut = at + 1 == good.len() && found.contains("were cut off");
        assert!(named || cut, "byte {at} of line {line}: {found}");
    }
    let head = fs::read(head_path(&place.path())).unwrap();
    fs::write(place.path(), &good).unwrap();
    for at in 0..head.len() {
        let mut bad = head.clone();
        bad[at] ^= 1 << (at % 7);
        fs::write(head_path(&place.path()), &bad).unwrap();
        let found = place.verify().expect_err("a changed head");
        assert!(
            found.contains("the head is missing or was changed"),
            "{found}"
        );
    }
}

#[test]
fn lines_that_were_removed_moved_doubled_or_put_in_are_found() {
    let place = Place::new();
    place.run(4);
    let good = place.lines();
    // begin, four records, end
    assert_eq!(good.len(), 6);
    let edit = |edit: &dyn Fn(&mut Vec<String>)| {
        let mut lines = good.clone();
        edit(&mut lines);
        place.write_lines(&lines);
        place.verify().expect_err("an edited file")
    };
    let forged = good[2].replace("/1", "/9");
    for (what, found, expected) in [
        (
            "removed",
            edit(&|lines| drop(lines.remove(2))),
            "audit.jsonl:3: line 4 follows here where 3 should",
        ),
        (
            "moved",
            edit(&|lines| lines.swap(2, 3)),
            "audit.jsonl:3: line 4 follows here where 3 should",
        ),
        (
            "doubled",
            edit(&|lines| lines.insert(3, good[2].clone())),
            "audit.jsonl:4: line 3 follows here where 4 should",
        ),
        (
            "changed",
            edit(&|lines| lines[2].clone_from(&forged)),
            "audit.jsonl:3: the line was changed",
        ),
        (
            "put in",
            edit(&|lines| lines.insert(2, "{\"event\":\"exchange\"}".to_owned())),
            "audit.jsonl:3: this is no line of an audit file",
        ),
        (
            "first",
            edit(&|lines| drop(lines.remove(0))),
            "audit.jsonl:1: a segment begins here without its first line",
        ),
        (
            "last",
            edit(&|lines| drop(lines.pop())),
            "audit.jsonl: lines 6 to 6 were cut off",
        ),
        (
            "all",
            edit(&|lines| lines.clear()),
            "audit.jsonl: lines 1 to 6 were cut off",
        ),
    ] {
        assert!(found.starts_with(expected), "{what}: {found}");
    }
}

#[test]
fn a_chain_of_another_place_or_time_is_not_taken_for_this_one() {
    let (place, other) = (Place::new(), Place::new());
    place.run(4);
    other.run(4);
    // The same keys, numbers and lengths: the codes before differ.
    let (mine, theirs) = (place.lines(), other.lines());
    let mixed = [&mine[..3], &theirs[3..]].concat();
    place.write_lines(&mixed);
    let found = place.verify().expect_err("mixed");
    assert!(
        found.starts_with("audit.jsonl:4: the line was changed"),
        "{found}"
    );
    place.write_lines(&mine);
    place.run(4);
    other.run(4);
    // A whole run of another place, whose own first line is right.
    let mixed = [&place.lines()[..6], &other.lines()[6..]].concat();
    place.write_lines(&mixed);
    let found = place.verify().expect_err("another run");
    assert!(
        found.starts_with("audit.jsonl:7: the line was changed"),
        "{found}"
    );
    place.write_lines(&other.lines());
    let found = place.verify().expect_err("another chain");
    assert_eq!(
        found,
        "audit.jsonl: the line was changed, or another one was put in its place"
    );
}

#[test]
fn a_cut_at_every_byte_is_found_or_is_an_open_end() {
    let place = Place::new();
    place.crash(3);
    let good = fs::read(place.path()).unwrap();
    let first = good.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for length in 0..=good.len() {
        fs::write(place.path(), &good[..length]).unwrap();
        let found = place.verify();
        if length < first {
            // The head was written after the first line.
            let found = found.expect_err("before the head");
            assert_eq!(found, "audit.jsonl: lines 1 to 1 were cut off");
            continue;
        }
        let report = found.unwrap();
        let whole = breaks(&good[..length]);
        assert_eq!(report.last, u64::try_from(whole).unwrap());
        assert_eq!((report.closed, report.certain), (false, 1), "{length}");
        let torn = good[..length]
            .split(|byte| *byte == b'\n')
            .next_back()
            .unwrap();
        assert_eq!(report.torn_bytes, u64::try_from(torn.len()).unwrap());
    }
}

#[test]
fn without_the_head_nobody_says_that_all_is_there() {
    let place = Place::new();
    place.run(2);
    fs::remove_file(head_path(&place.path())).unwrap();
    let found = place.verify().expect_err("no head");
    assert!(found.contains("the head is missing"), "{found}");
    let files = verify_files(&[place.path()], &keyring(&[OLD])).unwrap();
    assert!(!files.closed);
    assert_eq!((files.first, files.last), (1, 4));
}

#[test]
fn other_keys_verify_nothing() {
    let place = Place::new();
    place.run(2);
    let found = place.verify_with(&[NEW]).expect_err("another key");
    assert!(found.contains("made under the key 00000001"), "{found}");
    // The same id, and another key.
    let other = Keyring::from_keys(vec![(KeyId::new(OLD), [9; 32])], KeyId::new(OLD)).unwrap();
    let found = verify_files(&[place.path()], &other).expect_err("another key");
    assert!(
        found.to_string().contains(":1: the line was changed"),
        "{found}"
    );
}
