#!/usr/bin/env bash
# Builds the TypeScript SDK and runs its suite against the program that OSHU_VAULT_BIN names.
set -euo pipefail
cd "$(dirname "$0")/../sdk/typescript"
if [ "${OSHU_VAULT_SKIP_MISSING:-}" = 1 ] && ! command -v npm >/dev/null 2>&1; then
  echo "SKIPPED: the suite of the TypeScript SDK: npm is not installed"
  [ -z "${OSHU_VAULT_SKIPS:-}" ] || echo "the suite of the TypeScript SDK" >>"$OSHU_VAULT_SKIPS"
  exit 0
fi
npm ci --no-audit --no-fund
npm run build
npm test
