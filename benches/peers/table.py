"""The table of compare.sh: medians and ratios a phase, after a check that both sides did the same work.

    table.py RESULTS.jsonl
"""

import json
import platform
import statistics
import sys
from pathlib import Path

PHASES = ["generate", "score", "assemble", "update"]


def processor():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return f"{name}, {sum(line.startswith('processor') for line in lines)} cores"


def check(ours, torch):
    """Fails unless sizes, tokens, segments and first losses are equal, losses to 1e-4."""
    for key in ["parameters", "tokens", "segments"]:
        if ours[key] != torch[key]:
            sys.exit(f"{ours['size']} {ours['lengths']}: {key} {ours[key]} against {torch[key]}")
    for name, loss in ours["losses"].items():
        if abs(loss - torch["losses"][name]) > 1e-4:
            sys.exit(f"{ours['size']} {ours['lengths']}: {name} loss {loss} against {torch['losses'][name]}")


def seconds(runs, phase):
    """The median over processes of the median over a process's repetitions."""
    return statistics.median(statistics.median(run["phases"][phase]) for run in runs)


def phases_of(runs):
    """The phases that were timed."""
    return runs[0]["phases"]


def main():
    runs = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    versions = next(run for run in runs if run["side"] == "torch")
    print(f"{processor()}; Python {platform.python_version()}, PyTorch {versions['torch']}, "
          f"transformers {versions['transformers']}; f32; seconds: ours / PyTorch, and the ratio PyTorch / ours.\n")
    print("| size, lengths | threads | " + " | ".join(PHASES) + " | iteration | reward step | LoRA update |")
    print("| --- " * (len(PHASES) + 5) + "|")
    rates = []
    for key in dict.fromkeys((run["size"], run["lengths"]) for run in runs):
        of = {side: [run for run in runs if (run["size"], run["lengths"]) == key and run["side"] == side]
              for side in ["ours", "torch"]}
        for ours, torch in zip(of["ours"], of["torch"]):
            check(ours, torch)
        cells = []
        for phases in [*([phase] for phase in PHASES), PHASES, ["reward_step"], ["lora_update"]]:
            if phases[0] not in phases_of(of["ours"]):
                cells.append("–")
                continue
            ours, torch = (sum(seconds(of[side], phase) for phase in phases) for side in ["ours", "torch"])
            cells.append(f"{ours:.3g} / {torch:.3g}, **{torch / ours:.2f}**")
        threads = f"{of['ours'][0]['threads']} / {of['torch'][0]['threads']}"
        print(f"| {key[0]}, {key[1]} | {threads} | " + " | ".join(cells) + " |")
        operations, peak = of["ours"][0]["update_operations"], max(run["peak"] for run in of["ours"])
        rate = operations / seconds(of["ours"], "update")
        rates.append(f"| {key[0]}, {key[1]} | {operations / 1e9:.1f} | {rate / 1e9:.0f} | {peak / 1e9:.0f} | {rate / peak:.0%} |")
    print("\n| size, lengths | operations of our update, G | G a second | peak of f32 products, G a second | share |")
    print("| --- | ---: | ---: | ---: | ---: |")
    print("\n".join(rates))


main()
