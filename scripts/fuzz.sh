#!/usr/bin/env bash
# Fuzzes each target for some seconds: fuzz.sh SECONDS JOBS. New inputs stay in build/fuzz/corpus, what crashes in
# build/fuzz/crashes; a crash worth keeping is copied into tests/fuzz/corpus/NAME and is replayed by every `make test`.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=$1
jobs=$2

fuzz_one() {
    local name=$1 seconds=$2 log=build/fuzz/$1.log
    mkdir -p "build/fuzz/corpus/$name" build/fuzz/crashes "tests/fuzz/corpus/$name"
    local fixed=()
    setarch -R true 2>/dev/null && fixed=(setarch -R) # clang 14's sanitizers and newer kernels' address randomisation
    if "${fixed[@]}" "build/fuzz/fuzz/fuzz_$name" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
        -artifact_prefix="build/fuzz/crashes/$name-" -print_final_stats=1 \
        "build/fuzz/corpus/$name" "tests/fuzz/corpus/$name" >"$log" 2>&1 </dev/null; then
        printf 'ok %s: %s inputs\n' "$name" "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")"
    else
        printf 'FAILED %s: see %s\n' "$name" "$log"
        tail -n 40 "$log"
        return 1
    fi
}
export -f fuzz_one

scripts/build.sh fuzz "$jobs" fuzzers
targets=()
for source in tests/fuzz/fuzz_*.c; do
    [ -e "$source" ] || continue
    name=$(basename "$source" .c)
    targets+=("${name#fuzz_}")
done
if [ ${#targets[@]} -eq 0 ]; then
    echo "no fuzz targets in tests/fuzz"
    exit 0
fi
printf '%s\n' "${targets[@]}" | xargs -P "$jobs" -I{} bash -c "fuzz_one {} $seconds"
