#!/usr/bin/env bash
# Configures and builds one preset: build.sh PRESET JOBS [TARGET...]. JOBS 0 configures only. Two at once take turns.
# What one error does not touch is built all the same.
set -euo pipefail
cd "$(dirname "$0")/.."

preset=$1
jobs=$2
shift 2

mkdir -p "build/$preset"
exec 9>"build/$preset/.lock"
flock 9

log=build/$preset/configure.log
if ! cmake --preset "$preset" >"$log" 2>&1 </dev/null 9>&-; then
    cat "$log" >&2
    exit 1
fi
sed -n '/Warning/,/^$/p' "$log" >&2
[ "$jobs" = 0 ] || cmake --build "build/$preset" -j "$jobs" ${1:+--target "$@"} -- -k 0 </dev/null 9>&-
