#!/usr/bin/env bash
# Installs what a fresh Debian 12 lacks. `setup.sh run`: npm packages only; `setup.sh test`: Debian packages as well; `setup.sh long`: further
# ones, for the tests that take long.
set -euo pipefail
cd "$(dirname "$0")/.."
what="${1:-run}"
if [ ! -d node_modules ] || [ package-lock.json -nt node_modules/.package-lock.json ]; then
  npm ci --ignore-scripts --no-audit --no-fund >&2
fi
[ "$what" = run ] && exit 0
# command:package, one per line; the tests use each of them.
missing=()
while IFS=: read -r command package; do
  [ -n "$command" ] || continue
  command -v "$command" >/dev/null 2>&1 || missing+=("$package")
done <<LIST
gcc:gcc
g++:g++
gdb:gdb
make:make
redis-server:redis-server
redis-benchmark:redis-tools
sqlite3:sqlite3
nginx:nginx-light
python3:python3
chromium:chromium
spin:spin
gdb:gdb
strace:strace
rg:ripgrep
fzf:fzf
busybox:busybox-static
musl-gcc:musl-tools
luajit:luajit
go:golang-go
/usr/bin/time:time
$([ "$what" != long ] || cat <<'LONG'
openssl:openssl
xz:xz-utils
bzip2:bzip2
zstd:zstd
git:git
ruby:ruby
ocamlc.opt:ocaml-nox
rustc:rustc
clang-14:clang-14
cmake:cmake
jq:jq
bc:bc
objdump:binutils
javac:default-jdk-headless
LONG
)
LIST
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing for the tests: ${missing[*]}" >&2
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq >&2
  # No service is to be started by the installation: the tests start their own.
  # Written where only root can: a file of a known name in /tmp may be somebody else's.
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
  fi
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
else
  echo "missing for the tests; install with: apt-get install ${missing[*]}" >&2
  exit 1
fi
