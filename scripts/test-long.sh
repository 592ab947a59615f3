#!/usr/bin/env bash
# Sets up what is missing, builds, and runs what takes too long for `npm test`.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh long
npx --no-install tsc -p tsconfig.json
exec node --test --test-concurrency=1 --test-reporter=spec dist/test/real-jobs.long.js
