#!/usr/bin/env bash
# Sets up what is missing, builds, and runs every test. Arguments choose test files (paths under src/ or test/).
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh test
npx --no-install tsc -p tsconfig.json
if [ $# -gt 0 ]; then
  files=()
  for f in "$@"; do f="${f#src/}"; files+=("dist/${f%.ts}.js"); done
else
  mapfile -t files < <(find dist -name '*.test.js' | sort)
fi
# One file at a time: several tests hold threads and measure what happens on a machine with two processors.
exec node --test --test-concurrency=1 --test-reporter=spec "${files[@]}"
