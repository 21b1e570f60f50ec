#!/bin/sh
# Puts those inputs of fuzz/corpus/TARGET into fuzz/seeds/TARGET that reach what its seeds do not:
# at most INPUTS (32 by default) of them, small ones. Inputs with a name of their own stay.
set -eu
cd "$(dirname "$0")"
target=$1
kept=$(mktemp -d)
trap 'rm -rf "$kept"' EXIT
export RUSTC_BOOTSTRAP=1
cargo fuzz run --fuzz-dir . --sanitizer none "$target" -- \
    -set_cover_merge=1 -max_len=1024 "$kept" "seeds/$target" "corpus/$target"
# The merge names what it keeps after a digest, and a seed as well.
for input in "seeds/$target"/*; do
    rm -f "$kept/$(sha1sum "$input" | cut -c 1-40)"
done
find "$kept" -type f -size -2k | sort | head -n "${INPUTS:-32}" | while read -r input; do
    cp "$input" "seeds/$target/"
done
