#!/usr/bin/env bash
# The numeric suite on a machine's GPU, then speed and memory beside PyTorch's: prefill, decode, a step of the reward model
# and a step of PPO, at 0.1, 0.5 and 1.5 billion parameters in Qwen2's shapes, with random weights.
#
#   benches/gpu.sh [--devices "cuda wgpu"] [--sizes "0.1B 0.5B 1.5B"] [--prebuilt DIR] [--out DIR] [--no-suite]
#   benches/gpu.sh --devices flex --sizes tiny --no-suite     # tries the script on the CPU, in half a minute once built
#
# Prints one table a device, and writes DIR/DEVICE.json (default: gpu-results). Nothing is downloaded. --prebuilt names a
# folder with what `cargo test` and `cargo build` would make: the executables gpu (examples/gpu), spec and pipeline
# (the tests of these names); the tests also read the folder tests of this repository.
# PyTorch's side runs where `python3 -c "import torch, transformers"` does (PYTHON names another interpreter).
set -euo pipefail
cd "$(dirname "$0")/.."

devices="cuda wgpu" sizes="0.1B 0.5B 1.5B" prebuilt="" out="gpu-results" suite=yes dtype=bf16
while [ $# -gt 0 ]; do
    case "$1" in
    --devices) devices="$2" ;;
    --sizes) sizes="$2" ;;
    --prebuilt) prebuilt="$2" ;;
    --out) out="$2" ;;
    --dtype) dtype="$2" ;;
    --no-suite)
        suite=no
        shift
        continue
        ;;
    *)
        echo "error: $1: expected --devices, --sizes, --prebuilt, --out, --dtype or --no-suite" >&2
        exit 2
        ;;
    esac
    shift 2
done

python="${PYTHON:-python3}" torch=()
if "$python" -c 'import torch, transformers' 2>/dev/null; then
    torch=(--torch "$python")
else
    echo "$python has no torch and transformers: the table has our side alone" >&2
fi
mkdir -p "$out"

# The features of a build for a device; the CPU is always in.
features() { if [ "$1" != flex ]; then echo "--features $1"; fi; }

failed=""
for device in $devices; do
    backend="${device%%:*}"
    if [ -n "$prebuilt" ]; then
        program="$prebuilt/gpu"
    else
        # shellcheck disable=SC2046
        cargo build --release --quiet --example gpu $(features "$backend")
        program="${CARGO_TARGET_DIR:-target}/release/examples/gpu"
    fi
    if ! "$program" --device "$device" --phase matmul --repeats 1 >/dev/null 2>"$out/$device.log"; then
        echo "$device: left out: $(grep -m 1 -- --device "$out/$device.log" || tail -n 1 "$out/$device.log")" >&2
        failed="$failed $device"
        continue
    fi
    if [ "$suite" = yes ]; then
        for test in spec pipeline; do
            filter=()
            if [ "$test" = pipeline ]; then filter=(parity); fi
            if [ -n "$prebuilt" ]; then
                run=("$prebuilt/$test" "${filter[@]}" --nocapture)
            else
                # shellcheck disable=SC2207
                run=(cargo test --release $(features "$backend") --test "$test" -- "${filter[@]}" --nocapture)
            fi
            echo "$device: suite, $test" >&2
            SEGMENT_RLHF_DEVICE="$device" "${run[@]}" >"$out/$device-$test.log" 2>&1 || failed="$failed $device-$test"
            grep -h "^test result" "$out/$device-$test.log" || true
        done
    fi
    # shellcheck disable=SC2086
    "$python" benches/gpu/table.py --program "$program" --device "$device" --dtype "$dtype" --sizes $sizes \
        "${torch[@]}" --out "$out/$device.json"
done
if [ -n "$failed" ]; then
    echo "failed:$failed; see the logs in $out" >&2
    exit 1
fi
