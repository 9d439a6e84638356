#!/usr/bin/env bash
# One PPO iteration and one reward-model step, ours and PyTorch's, on the same weights and rollouts, in turns.
#
#   benches/compare.sh [--rounds N] [--sizes "S M L"] [--lengths "fixed natural"] [--threads N] [--out FILE]
#   benches/compare.sh --rounds 2 --sizes SmolLM2-135M --lengths fixed
#
# Prints medians and ratios a phase. Without --threads each side first finds its best number of them, of 1 and one a core.
# Needs python3 with benches/peers/requirements.txt (PYTHON names another interpreter).
# Run it on a quiet machine: both sides use all cores.
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=5 sizes="S M L" lengths="fixed natural" threads="" out=""
while [ $# -gt 0 ]; do
    case "$1" in
    --rounds) rounds="$2" ;;
    --sizes) sizes="$2" ;;
    --lengths) lengths="$2" ;;
    --threads) threads="$2" ;;
    --out) out="$2" ;;
    *)
        echo "error: $1: expected --rounds, --sizes, --lengths, --threads or --out" >&2
        exit 2
        ;;
    esac
    shift 2
done
python="${PYTHON:-python3}"
"$python" -c 'import torch, transformers' 2>/dev/null || {
    echo "error: $python has no torch and transformers: $python -m pip install -r benches/peers/requirements.txt" >&2
    exit 1
}

cargo build --release --quiet --example compare
ours="${CARGO_TARGET_DIR:-target}/release/examples/compare"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
results="$folder/results.jsonl"
cores="$(nproc)"

# The number of threads with which a side is quickest, of one and one a core.
best() {
    local threads
    for threads in 1 "$cores"; do
        "$@" --threads "$threads" --repeats 1 |
            "$python" -c 'import json, sys; r = json.load(sys.stdin); print(sum(p[0] for p in r["phases"].values()), r["threads"])'
    done | sort -g | head -n 1 | cut -d ' ' -f 2
}

for size in $sizes; do
    for length in $lengths; do
        work="$folder/$size-$length"
        "$ours" --write "$work" --size "$size" --lengths "$length"
        a=("$ours" --folder "$work")
        b=("$python" benches/peers/torch_ppo.py --folder "$work")
        a_threads="${threads:-$(best "${a[@]}")}" b_threads="${threads:-$(best "${b[@]}")}"
        for round in $(seq "$rounds"); do
            echo "$size $length: round $round of $rounds" >&2
            for side in ours torch; do
                if [ "$side" = ours ]; then run=("${a[@]}" --threads "$a_threads"); else run=("${b[@]}" --threads "$b_threads"); fi
                "${run[@]}" --repeats 1 | "$python" -c '
import json, sys
print(json.dumps({"side": sys.argv[1], "size": sys.argv[2], "lengths": sys.argv[3], **json.load(sys.stdin)}))
' "$side" "$size" "$length" >>"$results"
            done
        done
        rm -rf "$work"
    done
done
"$python" benches/peers/table.py "$results"
if [ -n "$out" ]; then cp "$results" "$out"; fi
