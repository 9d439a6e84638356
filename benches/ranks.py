"""Time against ranks, and of a grid against its cells, on this machine.

    python3 benches/ranks.py PROGRAM FOLDER [--figure FILE.svg]

PROGRAM is built with `--features mpi`. The first measurement is the update of PPO on the embedded task, with a policy of 3.2 million
parameters: one process with one thread, MPI's processes with one thread each, and one process with as many threads; medians of two
runs of two iterations. The second is `ablate` over 1, 2 and 4 seeds of an arm with `--jobs 1` and `--jobs 2`, once. The figure needs
matplotlib.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import time
from pathlib import Path

SIZE = ["model.hidden_size=256", "model.intermediate_size=768", "model.layers=4", "model.heads=4", "model.kv_heads=4",
        "model.head_dim=64", "sft.epochs=1", "task.pairs=64", "task.held_out_pairs=32", "reward.epochs=1", "ppo.iterations=2",
        "ppo.rollouts=128", "ppo.minibatch=64", "ppo.rows_at_once=64", "ppo.evaluate_every=100", "evaluation.prompts=8"]
GRID = ["sft.epochs=1", "task.pairs=128", "reward.epochs=1", "ppo.iterations=3", "ppo.evaluate_every=100", "evaluation.prompts=16"]
TIMES = 2
CELLS = (1, 2, 4)


def arguments(settings):
    return [text for setting in settings for text in ("--set", setting)]


def run(command):
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def launcher(ranks):
    return ["mpirun", "--allow-run-as-root", "--bind-to", "core", "-n", ranks] if ranks > 1 else []


def updates(program, folder, ready, ranks, threads):
    """Median seconds of an iteration's rollouts and of its updates."""
    rollouts, seconds = [], []
    for _ in range(TIMES):
        there = folder / "ranks"
        shutil.rmtree(there, ignore_errors=True)
        shutil.copytree(ready, there)
        run([*launcher(ranks), program, "ppo", "--run", there, "--threads", threads, *arguments(SIZE)])
        lines = [json.loads(line) for line in (there / "segment/ppo/timings.jsonl").read_text().splitlines()]
        rollouts += [line["rollout_seconds"] for line in lines]
        seconds += [line["update_seconds"] for line in lines]
    return statistics.median(rollouts), statistics.median(seconds)


def grid(program, folder, cells, jobs):
    table = folder / "table.toml"
    table.write_text('title = "Cells"\n[arms]\nsegment = { method = "segment" }\n')
    there = folder / "grid"
    shutil.rmtree(there, ignore_errors=True)
    start = time.monotonic()
    run([program, "ablate", table, "--seeds", cells, "--run", there, "--jobs", jobs, *arguments(GRID)])
    return time.monotonic() - start


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    ready = given.folder / "ready"
    shutil.rmtree(ready, ignore_errors=True)
    for stage in ["sft", "preferences", "train-reward", "fit-normalizer"]:
        run([given.program, stage, "--run", ready, *arguments(SIZE)])
    of_ranks = {}
    for name, ranks, threads in [("1 rank", 1, 1), ("2 ranks", 2, 1), ("1 rank, 2 threads", 1, 2)]:
        of_ranks[name] = updates(given.program, given.folder, ready, ranks, threads)
        print("%-18s rollouts %6.2f s, updates %6.2f s" % (name, *of_ranks[name]))
    of_cells = {jobs: [grid(given.program, given.folder, cells, jobs) for cells in CELLS] for jobs in (1, 2)}
    for jobs, seconds in of_cells.items():
        print(f"--jobs {jobs}: " + ", ".join(f"{cells} cells {taken:.1f} s" for cells, taken in zip(CELLS, seconds)))
    if given.figure:
        draw(given.figure, of_ranks, of_cells)


def draw(path, of_ranks, of_cells):
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "ranks"
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    names = list(of_ranks)
    left.bar(names, [of_ranks[name][1] for name in names], label="updates")
    left.bar(names, [of_ranks[name][0] for name in names], bottom=[of_ranks[name][1] for name in names], label="rollouts")
    left.set(title="an iteration of PPO", ylabel="seconds")
    left.legend()
    for jobs, seconds in of_cells.items():
        right.plot(CELLS, seconds, marker="o", label=f"--jobs {jobs}")
    right.set(title="a grid", xlabel="cells", ylabel="seconds", xticks=CELLS, ylim=0)
    right.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
