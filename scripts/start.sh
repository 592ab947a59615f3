#!/usr/bin/env bash
# Sets up and builds what is missing, then runs the main job: with arguments, safepoke with them; without, a demonstration.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh run
if [ ! -e dist/cli/main.js ] || [ -n "$(find src -name '*.ts' -newer dist/cli/main.js -print -quit)" ]; then
  echo "building ..." >&2
  npx --no-install tsc -p tsconfig.json
  touch dist/cli/main.js
fi
safepoke() { node dist/cli/main.js "$@"; }
if [ $# -gt 0 ]; then
  exec node dist/cli/main.js "$@"
fi
# bash is there on every Debian (it is Essential), does something worth seeing, and keeps the names of its functions in the
# program as shipped: it exports them for its loadable builtins.
mkdir -p out
script='sum=0; for word in 1 2 3; do sum=$((sum + word)); done; echo "bash says: the sum is $sum"'
echo "== safepoke run -o out/bash.spk -- /bin/bash -c '$script'"
safepoke run -o out/bash.spk -- /bin/bash -c "$script"
echo
echo "== safepoke graph -D 4 -t 20us out/bash.spk      (calls of at least 20 us, at most 4 levels deep; the first 40 lines)"
safepoke graph -D 4 -t 20us out/bash.spk | head -n 40
echo
echo "== safepoke report out/bash.spk                  (the 20 functions with the largest total time)"
safepoke report out/bash.spk | head -n 21
echo
safepoke export out/bash.spk --format chrome -o out/bash.json
echo "out/bash.json is a Chrome trace: open it at https://ui.perfetto.dev (Open trace file) or in chrome://tracing."
echo "Trace a process of yours:  npm start -- attach -p PID -F 'pattern*'"
