#!/usr/bin/env bash
# Builds and runs the benchmarks; arguments choose sections (src/bench/bench.ts). Peers that are missing are installed if we
# are root, and else named in the tables.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh run
# command:packages, one per line.
missing=()
while IFS=: read -r command packages; do
  command -v "$command" >/dev/null 2>&1 || missing+=($packages)
done <<'LIST'
gcc:gcc
uftrace:uftrace
clang-14:clang-14 libclang-rt-14-dev
LIST
if [ ${#missing[@]} -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing for the benchmarks: ${missing[*]}" >&2
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >&2 ||
    echo "installing failed: the tables say what is missing" >&2
fi
npx --no-install tsc -p tsconfig.json
exec node dist/bench/bench.js "$@"
