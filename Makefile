# Nothing but make and a Rust toolchain is needed first: tests/prepare.sh looks after the rest.

binary := $(abspath $(or $(CARGO_TARGET_DIR),target)/debug/oshu-vault)

.PHONY: run check fmt formatted lint test suites e2e soak fuzz bench deny doc sdk

run:
	cargo run --locked -- serve --dev

check: formatted lint
	cargo test --locked --test architecture --test lockfile

fmt:
	cargo fmt --all

formatted:
	cargo fmt --all --check

lint:
	cargo clippy --workspace --all-targets --locked -- -D warnings

# Everything: unit, end-to-end and documentation tests, then the TypeScript SDK's own suite.
test:
	tests/prepare.sh $(MAKE) --no-print-directory suites

suites:
	cargo test --workspace --locked
	$(MAKE) --no-print-directory sdk

e2e:
	tests/prepare.sh cargo test --locked --test e2e

# What no other target waits for, about 28 minutes and 220 restarts: the real program with its limits
# as they are; 1 GiB up and down, uploads and silences of ten minutes, on HTTP/1.1 and HTTP/2 at once;
# a good client among 500 slow ones, 2,000 idle tunnels and others that come and go; 200 kills in the
# middle of creations and deletions; rolling restarts at 500 requests a second, with the file and with
# a Redis server; what ends within a second, and on another node within two.
# SOAK_MINUTES=1 for a quick look. As root it mounts file systems of its own, too.
soak:
	ulimit -n 20000 && cargo test --release --locked --test e2e -- binary:: fleet::figures --ignored --nocapture --test-threads=1

# Needs cargo-fuzz. Every target for FUZZ_MINUTES (10), two at once; `make test` only replays inputs.
fuzz:
	fuzz/run.sh

bench:
	cargo bench --locked

# Needs cargo-deny; tests/lockfile.rs holds the bans and floors without it.
deny:
	cargo deny check

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# The TypeScript SDK against the program just built.
sdk:
	cargo build --locked
	OSHU_VAULT_BIN="$(binary)" tests/sdk.sh
