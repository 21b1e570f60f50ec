//! The table of `docs/clients.md`: written by the runs themselves, and held to what they show.
//!
//! With `OSHU_VAULT_WRITE_CLIENTS=1` each row that runs takes its place in the file; otherwise it
//! has to be there as it would be written. Of clients that come with the machine only name,
//! outcome and note are compared: the rest changes with their version.

use std::sync::{Mutex, PoisonError};

use super::row::Row;
use super::rows::ROWS;
use super::tap::Opening;
use crate::support::clients::project_file;

const FILE: &str = "docs/clients.md";
const BEGIN: &str = "<!-- the table begins -->\n";
const END: &str = "<!-- the table ends -->";
const HEAD: &str = "| client | version | `http://` proxy | `https://` proxy | credential | \
                    offers the origin | notes |\n|---|---|---|---|---|---|---|\n";
/// The cells that are a matter of the client's version.
const BY_VERSION: [usize; 3] = [1, 4, 5];

static FILE_LOCK: Mutex<()> = Mutex::new(());

fn is_written() -> bool {
    std::env::var_os("OSHU_VAULT_WRITE_CLIENTS").is_some_and(|on| on == "1")
}

fn read() -> String {
    std::fs::read_to_string(project_file(FILE)).expect("the table's file")
}

/// Splits the file into what stands before the rows, the rows, and what stands behind them.
fn parts(text: &str) -> (&str, Vec<&str>, &str) {
    let (before, rest) = text.split_once(BEGIN).expect("the table's begin");
    let (lines, after) = rest.split_once(END).expect("the table's end");
    (before, lines.lines().skip(2).collect(), after)
}

fn name_of(line: &str) -> &str {
    line.trim_start_matches("| ")
        .split(" |")
        .next()
        .unwrap_or_default()
}

/// Writes a row's line, or compares it with the one that stands there.
pub(super) fn settle(row: &Row, cells: &[String], openings: &[Opening]) {
    // Some clients have several ways out: what any of them does counts.
    let asked = |opening: &Opening| opening.is_unasked == Some(false);
    let credential = match openings.iter().any(|opening| opening.is_unasked.is_some()) {
        true if openings.iter().any(asked) => "when asked",
        true => "at once",
        false => "",
    };
    let offers = openings
        .iter()
        .filter_map(|opening| opening.offered.as_ref());
    let offered = match offers.max_by_key(|names| names.len()) {
        Some(names) if names.is_empty() => "nothing".to_owned(),
        Some(names) => names.join(", "),
        None => String::new(),
    };
    let line = |version: &str| {
        let [plain, tls] = cells else {
            panic!("two runs");
        };
        let Row { name, note, .. } = row;
        format!("| {name} | {version} | {plain} | {tls} | {credential} | {offered} | {note} |")
    };
    let _alone = FILE_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let text = read();
    let (before, lines, after) = parts(&text);
    let there = lines.iter().find(|line| name_of(line) == row.name);
    if is_written() {
        let new = line(&row.version.read());
        let rows = ROWS.iter().filter_map(|other| {
            if other.name == row.name {
                return Some(new.as_str());
            }
            lines
                .iter()
                .copied()
                .find(|line| name_of(line) == other.name)
        });
        let rows: String = rows.flat_map(|line| [line, "\n"]).collect();
        let text = format!("{before}{BEGIN}{HEAD}{rows}{END}{after}");
        std::fs::write(project_file(FILE), text).expect("the table's file");
        return;
    }
    let there = there.unwrap_or_else(|| panic!("{FILE} has no row of {}", row.name));
    let (version, without) = if row.version.is_pinned() {
        (row.version.read(), &[][..])
    } else {
        (String::new(), &BY_VERSION[..])
    };
    let now = line(&version);
    let (there, now) = (comparable(there, without), comparable(&now, without));
    assert_eq!(
        there, now,
        "{FILE} is not what ran; OSHU_VAULT_WRITE_CLIENTS=1 writes it anew"
    );
}

fn comparable<'a>(line: &'a str, without: &[usize]) -> Vec<&'a str> {
    let cells = line.trim_matches('|').split('|').map(str::trim).enumerate();
    let kept = cells.filter(|(index, _)| !without.contains(index));
    kept.map(|(_, cell)| cell).collect()
}

#[test]
fn the_table_has_these_rows_in_their_order() {
    if is_written() {
        return;
    }
    let text = read();
    let (_, lines, _) = parts(&text);
    let there: Vec<_> = lines.iter().map(|line| name_of(line)).collect();
    let expected: Vec<_> = ROWS.iter().map(|row| row.name).collect();
    assert_eq!(there, expected);
}
