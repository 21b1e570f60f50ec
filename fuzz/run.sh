#!/bin/sh
# Fuzzes every target, or the ones named, for FUZZ_MINUTES each (10 by default), two at once.
#
# New inputs go to fuzz/corpus/TARGET, which is not committed; fuzz/seeds and fuzz/found, which are,
# are read as well. Prints executions and corpus size for each target. Fails on a finding, and says
# where its input lies: it belongs into fuzz/found/TARGET once it is mended.
set -eu
cd "$(dirname "$0")"
seconds=${FUZZ_SECONDS:-$((${FUZZ_MINUTES:-10} * 60))}
logs=${FUZZ_LOGS:-$PWD/logs}
# The toolchain is the project's, a stable one; this lets it take the fuzzer's options. Our code
# has no `unsafe`, so the properties and the checks of overflow find what there is to find, and do
# so twice as often without a sanitizer.
export RUSTC_BOOTSTRAP=1
options="--fuzz-dir . --sanitizer none"

# Fuzzes one target to its end.
one() {
    target=$1
    log=$logs/$target.log
    mkdir -p "corpus/$target" "found/$target"
    # shellcheck disable=SC2086
    if cargo fuzz run $options "$target" "corpus/$target" "seeds/$target" "found/$target" -- \
        -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -max_len=4096 \
        -dict="dictionaries/$target.dict" -print_final_stats=1 >"$log" 2>&1; then
        outcome="no finding"
    else
        outcome="FINDING, see $log"
    fi
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -n 1)
    printf '%-14s %12s executions %7s inputs  %s\n' "$target" "${executions:-?}" \
        "$(find "corpus/$target" "seeds/$target" "found/$target" -type f | wc -l)" "$outcome"
    test "$outcome" = "no finding"
}

if [ "${1-}" = --one ]; then
    one "$2"
    exit
fi

if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "fuzzing needs cargo-fuzz: cargo install cargo-fuzz --locked" >&2
    exit 1
fi
mkdir -p "$logs"
# shellcheck disable=SC2086
cargo fuzz build $options
if [ $# -eq 0 ]; then
    # shellcheck disable=SC2046
    set -- $(cargo fuzz list --fuzz-dir .)
fi
printf '%s\n' "$@" | xargs -n 1 -P 2 sh ./run.sh --one
