#!/usr/bin/env bash
# Makes this machine ready for the tests, then runs the command given, if any:
#
#   tests/prepare.sh cargo test --workspace --locked
#
# As root, missing system packages are installed. Otherwise the line to run is printed and the
# tests that need them are skipped, each one counted (OSHU_VAULT_SKIP_MISSING=1). With CI=true
# nothing is skipped: what is missing is a failure.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
clients=$root/tests/fixtures/clients
missing=()

say() { printf 'prepare: %s\n' "$*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }

# One line a tool: its Debian package, then the command that shows that it is there.
absent_packages() {
  has cc || echo build-essential
  has curl || echo curl
  has git || echo git
  has wget || echo wget
  has gh || echo gh
  has go || echo golang-go
  has openssl || echo openssl
  has unshare || echo util-linux
  has python3 || echo python3
  python3 -m pip --version >/dev/null 2>&1 || echo python3-pip
  has node || echo nodejs
  has npm || echo npm
  has javac || echo default-jdk-headless
  has redis-server || echo redis-server
  [ -s /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
}

# One at a time: a package that this system does not have should not keep the others away.
install_packages() {
  say "installing: $*"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq >&2 || say "apt-get update failed"
  for package in "$@"; do
    apt-get install -y -qq --no-install-recommends "$package" >&2 || say "no $package"
  done
}

mapfile -t packages < <(absent_packages)
if [ "${#packages[@]}" -gt 0 ]; then
  if [ "$(id -u)" -eq 0 ] && has apt-get; then
    install_packages "${packages[@]}"
    mapfile -t packages < <(absent_packages)
  fi
  missing+=("${packages[@]}")
fi
if [ "${#packages[@]}" -gt 0 ]; then
  say "to install what is missing, as root: apt-get install -y --no-install-recommends ${packages[*]}"
fi

# The clients of tests/fixtures/clients, at exactly the versions of their lists; again only when
# a list has changed.
fresh() { cmp -s "$1" "$2/.installed-from"; }

if has npm && ! fresh "$clients/package-lock.json" "$clients/node_modules"; then
  if (cd "$clients" && npm ci --no-audit --no-fund --ignore-scripts=false >&2); then
    cp "$clients/package-lock.json" "$clients/node_modules/.installed-from"
  fi
fi
if python3 -m pip --version >/dev/null 2>&1 &&
  ! fresh "$clients/requirements.txt" "$clients/python"; then
  rm -rf "$clients/python"
  if PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check \
    --target "$clients/python" --requirement "$clients/requirements.txt" >&2; then
    cp "$clients/requirements.txt" "$clients/python/.installed-from"
  fi
fi

node -e 'process.exit(process.versions.node.split(".")[0] >= 20 ? 0 : 1)' 2>/dev/null ||
  missing+=("node 20 or newer")
fresh "$clients/package-lock.json" "$clients/node_modules" || missing+=("npm packages of the clients")
fresh "$clients/requirements.txt" "$clients/python" || missing+=("python packages of the clients")
# These come in a package for each platform, which npm passes over where there is none.
for program in node20/bin/node node24/bin/node .bin/bun .bin/codex @deno/linux-x64-glibc/deno; do
  HOME=$clients/node_modules/.home "$clients/node_modules/$program" --version >/dev/null 2>&1 ||
    missing+=("$program of the npm packages")
done
# It writes into its home: not into the developer's.
HOME=$clients/node_modules/.home "$clients/node_modules/.bin/claude" --version >/dev/null 2>&1 ||
  missing+=("claude")
# The test of the documented image covers parts of the file system in a namespace of its own.
unshare --mount true 2>/dev/null || missing+=("mount namespaces, which need root")

if [ "${#missing[@]}" -gt 0 ]; then
  say "missing: $(printf '%s; ' "${missing[@]}" | sed 's/; $//')"
  if [ "${CI:-}" = true ]; then
    say "CI=true: every test must run"
    exit 1
  fi
  say "the tests that need them will be skipped, and say so"
  export OSHU_VAULT_SKIP_MISSING=1
fi

if [ "$#" -gt 0 ]; then
  cd "$root"
  OSHU_VAULT_SKIPS=$(mktemp)
  export OSHU_VAULT_SKIPS
  status=0
  "$@" || status=$?
  skips=$(wc -l <"$OSHU_VAULT_SKIPS")
  if [ "$skips" -gt 0 ]; then
    say "$skips skipped for want of:"
    sort "$OSHU_VAULT_SKIPS" | uniq -c >&2
  fi
  rm -f "$OSHU_VAULT_SKIPS"
  exit "$status"
fi
