//! Cuts: one text in pieces, the same for the same seed.

/// Cuts a text into pieces; a seed of 0 gives single bytes.
pub fn pieces(text: &[u8], seed: u64) -> impl Iterator<Item = &[u8]> {
    let mut state = seed;
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        // Knuth's generator: what counts is that small pieces and large ones both come.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(seed);
        let high = (state >> 33) as usize;
        let length = match high % 4 {
            0 => 1,
            1 => 2 + high / 4 % 3,
            2 => 1 + high / 4 % 40,
            _ => 1 + high / 4 % 9_000,
        };
        let (piece, left) = rest.split_at(length.min(rest.len()));
        rest = left;
        Some(piece)
    })
}
