//! Tokens in field values: the hot path.
//!
//! One search over the block that the head was read from; only a hit asks which field it stands
//! in. A value that is nothing but a token is replaced without a copy. Names are never changed.
//! Called by [`Swapper::swap_request`](super::Swapper::swap_request) alone.

use super::{Error, Form, Lookup, Swapped, Swapper};
use crate::sealed_token::{MARKER, Place};
use crate::wire::Fields;

/// Swaps the tokens in all values; tells whether a marker stands elsewhere in the block: in the
/// start line, in a name, or in a field that was removed or replaced since.
pub(super) fn swap<L: Lookup>(
    swapper: &Swapper,
    fields: &mut Fields,
    lookup: &L,
    swapped: &mut Swapped,
) -> Result<bool, Error> {
    let mut elsewhere = false;
    let mut from = 0;
    while let Some(offset) = fields
        .block()
        .get(from..)
        .and_then(|rest| swapper.finder.find(rest))
    {
        let hit = from + offset;
        let Some(field) = fields.covering(hit).and_then(|index| fields.at(index)) else {
            elsewhere = true;
            from = hit + MARKER.len();
            continue;
        };
        // The hit is the first marker of the value, since the search comes from the left: that
        // gives where the value ends in the block. What follows in it is dealt with here.
        let first = swapper.finder.find(field.value).unwrap_or_default();
        from = hit + (field.value.len() - first).max(MARKER.len());
        let (index, place) = (field.index, Place::Header(field.name));
        let value = swapper.rewrite(field.value, (place, Form::Field), lookup, swapped)?;
        if let Some(value) = value {
            fields.replace(index, value, true);
        }
    }
    Ok(elsewhere)
}
