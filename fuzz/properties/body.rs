//! Properties of the swap in bodies: no cut changes what comes out, and without a token nothing does.

use std::sync::Arc;

use oshu_vault::swap::{BodyKind, BodySwap, SUBSTITUTION_LIMIT};
use oshu_vault::wire::Progress;

use super::cut;
use super::table::{CANARY, Table, as_it_is, percent};

/// Swaps a body whole and in pieces, in each of its kinds, with a table that opens and with none.
pub fn swap_body(data: &[u8]) {
    let Some(([kind, seed], body)) = data.split_first_chunk() else {
        return;
    };
    let (kind, form): (_, fn(&str) -> Vec<u8>) = match kind % 3 {
        0 => (BodyKind::Raw, as_it_is),
        1 => (BodyKind::Form, percent),
        _ => (BodyKind::Json, json),
    };
    let nothing = run(kind, &Arc::new(Table::nowhere()), std::iter::once(body));
    assert_eq!(
        nothing.expect("nothing opens"),
        body,
        "a body without a token was changed"
    );
    let table = Arc::new(Table::everywhere());
    let whole = run(kind, &table, std::iter::once(body));
    let pieces = run(kind, &table, cut::pieces(body, u64::from(*seed)));
    assert_eq!(pieces, whole, "what comes out depends on the cuts");
    let wanted = table.plainly(body, form);
    if let Some(out) = whole {
        assert_eq!(out, wanted);
    } else {
        let tokens = memchr::memmem::find_iter(&wanted, CANARY).count();
        assert!(
            tokens > SUBSTITUTION_LIMIT as usize,
            "refused for no reason"
        );
    }
}

/// Returns what comes out; nothing if there are too many tokens.
fn run<'a>(
    kind: BodyKind,
    table: &Arc<Table>,
    pieces: impl Iterator<Item = &'a [u8]>,
) -> Option<Vec<u8>> {
    let mut swap = BodySwap::new(kind, Arc::clone(table));
    let mut out = Vec::new();
    for mut piece in pieces {
        loop {
            let (before, left) = (out.len(), piece.len());
            let progress = swap.push(&mut piece, &mut out).ok()?;
            assert!(out.len() - before <= 17 * 1024 + left, "too much at once");
            if progress != Progress::Full {
                break;
            }
        }
        assert!(piece.is_empty());
    }
    swap.finish(&mut out);
    Some(out)
}

/// A value as a string of JSON has it.
fn json(value: &str) -> Vec<u8> {
    let quoted = serde_json::to_string(value).expect("a text has a JSON form");
    quoted.as_bytes()[1..quoted.len() - 1].to_vec()
}
