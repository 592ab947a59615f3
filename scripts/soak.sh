#!/usr/bin/env bash
# Builds, and goes through everything that must not break a target for so many minutes (10): npm run soak -- 30
# Words behind the number choose hazards by name. With an x behind it the number is of rounds of each: npm run soak -- 10000x hostile
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh test
npx --no-install tsc -p tsconfig.json
exec node dist/test/soak.js "$@"
