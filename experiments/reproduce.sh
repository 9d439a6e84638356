#!/usr/bin/env bash
# Every table and figure, with five seeds and so many jobs: experiments/reproduce.sh [JOBS]
# Runs what is not finished of it, then writes experiments/results/ and the results section of experiments/RESULTS.md. Stopped at any time, it goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."

run=runs/all
cargo build --release
program=${CARGO_TARGET_DIR:-target}/release/segment-rlhf
"$program" ablate experiments/all.toml --seeds 5 --jobs "${1:-2}" --run "$run"
"$program" report "$run" --out experiments/results --readme experiments/RESULTS.md
