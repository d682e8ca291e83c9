#!/usr/bin/env bash
# Shows rfork with two real models: a seed reads each from disk, new instances take it from the seed over each
# transport, and what they have is compared with the original. Prints a table per model; leaves nothing running, and
# nothing behind but the models.
#
#   demo.sh [MODEL_DIR...]     other models than the two that are downloaded
set -euo pipefail
models=()
for model in "$@"; do
    models+=("$(realpath -m -- "$model")")
done
cd "$(dirname "$0")/.."
# Neither the user's settings nor a running seed shall have a part in this.
unset RFORK_HOST RFORK_PORT RFORK_TRANSPORT RFORK_CONNECTIONS RFORK_TIMEOUT RFORK_LOG_LEVEL

rfork=${RFORK:-build/rfork}
ready_seconds=60
mkdir -p build
scratch=$(mktemp -d build/demo.XXXXXX)
pids=()

die() {
    printf 'demo: %s\n' "$*" >&2
    exit 1
}

# Ends the instance that was started last, as its users would: it must do so in order.
stop_instance() {
    local pid=${pids[-1]} code=0
    kill -TERM "$pid" 2>/dev/null || true
    wait "$pid" || code=$?
    unset 'pids[-1]'
    [ "$code" -eq 0 ] || die "an instance ended with exit code $code"
}

# shellcheck disable=SC2317 # called by the trap
cleanup() {
    # A second signal must not leave half of it: from here on they are ignored.
    trap '' INT TERM HUP
    local pid
    for pid in "${pids[@]}"; do
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    rm -rf "$scratch"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# The value of one member of the JSON object on standard input; nothing for null.
member() {
    python3 -c 'import json, sys; v = json.load(sys.stdin)[sys.argv[1]]; print("" if v is None else v)' "$1"
}

# start_instance NAME ARGUMENTS...: runs `rfork serve`; its ready line is then in $scratch/NAME.ready.
start_instance() {
    local name=$1 deadline=$((SECONDS + ready_seconds))
    shift
    : >"$scratch/$name.ready"
    "$rfork" serve "$@" --host 127.0.0.1 --port 0 --json >"$scratch/$name.ready" 2>"$scratch/$name.log" </dev/null &
    pids+=($!)
    # A line is there when its newline is.
    until [ "$(wc -l <"$scratch/$name.ready")" -gt 0 ]; do
        kill -0 "${pids[-1]}" 2>/dev/null || die "rfork serve $* ended: $(tail -n 1 "$scratch/$name.log")"
        [ "$SECONDS" -lt "$deadline" ] || die "rfork serve $*: not ready after $ready_seconds s"
        sleep 0.02
    done
}

# row WHAT BYTES SECONDS moved|mapped WHY: one line of the table. Of what was mapped no byte moved: it has no rate.
row() {
    local rate=-
    [ "$4" != moved ] || rate=$(awk -v b="$2" -v s="$3" 'BEGIN { printf "%.2f", b / (s + 1e-9) / 1e9 }')
    printf '%-34s %8s %9s %7s  %s\n' "$1" "$(awk -v b="$2" 'BEGIN { printf "%.1f", b / 1e6 }')" \
        "$(awk -v s="$3" 'BEGIN { printf "%.4f", s }')" "$rate" "$5"
}

# result_row WHAT FILE: a row from the JSON that fork or serve printed.
result_row() {
    local transport how=moved
    transport=$(member transport <"$2")
    case $transport in map) how=mapped ;; esac
    row "$1" "$(member bytes <"$2")" "$(member seconds <"$2")" "$how" "$transport: $(member reason <"$2")"
}

# The ceiling of every load from disk: the same files, read past the page cache, and nothing done with them.
disk_row() {
    local file bytes=0 begin end how="disk: dd, past the page cache"
    begin=$EPOCHREALTIME
    for file in "$1"/*.safetensors; do
        if ! dd if="$file" of=/dev/null bs=8M iflag=direct status=none 2>/dev/null; then
            how="page cache: this file system cannot be read past it"
            dd if="$file" of=/dev/null bs=8M status=none
        fi
        bytes=$((bytes + $(stat -Lc %s "$file")))
    done
    end=$EPOCHREALTIME
    row "reading the files, alone" "$bytes" "$(awk -v a="$begin" -v b="$end" 'BEGIN { print b - a }')" moved "$how"
}

# same_files A B: all files of A are in B with the same bytes, but for hidden ones.
same_files() {
    local file
    while IFS= read -r -d '' file; do
        cmp -s "$1/$file" "$2/$file" || die "$2/$file differs from $1/$file"
    done < <(find -L "$1" -type f ! -name '.*' -printf '%P\0')
}

demo_model() {
    local model=$1 url url_copy transport
    printf '\n%s\n' "$(basename "$model")"
    printf '%-34s %8s %9s %7s  %s\n' what MB seconds GB/s "path, and why"

    disk_row "$model"
    start_instance seed --model-path "$model"
    url=$(member url <"$scratch/seed.ready")
    row "seed: load from disk, ready" "$(member bytes <"$scratch/seed.ready")" \
        "$(member seconds <"$scratch/seed.ready")" moved "$(member source <"$scratch/seed.ready")"

    for transport in map tcp; do
        "$rfork" fork "$url" --transport "$transport" --json >"$scratch/fork"
        [ "$transport" = map ] || [ "$(member verified <"$scratch/fork")" = True ] || die "$transport: not verified"
        result_row "fork into memory" "$scratch/fork"
    done
    for transport in map tcp; do
        start_instance copy --from "$url" --transport "$transport"
        result_row "second instance, itself a seed" "$scratch/copy.ready"
        url_copy=$(member url <"$scratch/copy.ready")
        "$rfork" diff "$url" "$url_copy" >"$scratch/diff" || die "$transport: $(tail -n 1 "$scratch/diff")"
        # And on from there: a fork of a fork, into files.
        "$rfork" fork "$url_copy" --transport "$transport" -o "$scratch/folder" --json >"$scratch/fork"
        same_files "$model" "$scratch/folder"
        result_row "its fork, into a folder on disk" "$scratch/fork"
        rm -rf "$scratch/folder"
        stop_instance
    done
    stop_instance
}

[ -x "$rfork" ] || die "no $rfork; run 'make build'"
if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    scripts/setup.sh --peers
fi
if [ ${#models[@]} -eq 0 ]; then
    list=$(python3 tools/models/fetch.py --out build/models) || exit 1
    mapfile -t models <<<"$list"
fi
for model in "${models[@]}"; do
    [ -d "$model" ] || die "$model: no such folder"
    demo_model "$model"
done
printf '\nEvery instance was compared with its seed, and every folder with the original, byte by byte.\n'
printf 'A mapping shares the memory of the seed: no byte moves, whatever the size.\n'
