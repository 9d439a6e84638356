#!/usr/bin/env bash
# Builds the wheel, installs it into a fresh Python environment, and runs the program there without Rust. Where
# CARGO_TARGET_DIR holds a release build, this links once more and compiles nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

if ! python3 -m venv "$work/build" >/dev/null 2>&1 || ! "$work/build/bin/pip" install -q "maturin>=1.9,<2" >"$work/pip" 2>&1; then
    echo "no Python environment with maturin from PyPI: the wheel is not tried"
    exit 0
fi
PATH="$work/build/bin:$PATH" maturin build --release --locked --out "$work/wheels"
python3 -m venv "$work/fresh"
"$work/fresh/bin/pip" install -q --no-index "$work"/wheels/*.whl

run() {
    env -i PATH=/usr/bin:/bin HOME="$work" "$work/fresh/bin/segment-rlhf" "$@"
}
expected="segment-rlhf $(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)"
if [ "$(run --version)" != "$expected" ]; then
    echo "the wheel's program says $(run --version), expected $expected" >&2
    exit 1
fi
run sft --settings tests/cli/tiny.toml --run "$work/run"
test -f "$work/run/sft/model/model.safetensors"
ls "$work/wheels"
