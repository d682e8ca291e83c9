#!/usr/bin/env bash
# Configures and builds one preset: build.sh PRESET JOBS [TARGET...]. Quiet unless something is to be seen.
set -euo pipefail
cd "$(dirname "$0")/.."

preset=$1
jobs=$2
shift 2

mkdir -p "build/$preset"
log=build/$preset/configure.log
if ! cmake --preset "$preset" >"$log" 2>&1 </dev/null; then
    cat "$log" >&2
    exit 1
fi
sed -n '/Warning/,/^$/p' "$log" >&2
cmake --build "build/$preset" -j "$jobs" ${1:+--target "$@"} </dev/null
