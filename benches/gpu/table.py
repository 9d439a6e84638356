"""Runs both sides of gpu.sh, each phase in a process of its own, and prints one table; the standard library is enough.

    table.py --program gpu --device cuda --sizes 0.1B 0.5B [--torch PYTHON] --out results.json
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

PHASES = {"decode": ["prefill", "decode"], "reward": ["reward"], "ppo": ["ppo"]}
# Rows, tokens of a prompt, and of a response.
WORK = {"tiny": [4, 32, 16], "0.1B": [16, 512, 128], "0.5B": [16, 512, 128], "1.5B": [8, 512, 128]}


def used_by_gpu(index):
    """Bytes in use on the GPU, if nvidia-smi says so."""
    query = ["nvidia-smi", f"--id={index}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout) << 20
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None


def run(command, device):
    """The JSON that a process printed, with its peak of memory: of the GPU above what was in use, else of the process."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    on_gpu = device.split(":")[0] in ("cuda", "wgpu")
    before = used_by_gpu(visible) if on_gpu else None
    peak, done = [before or 0], threading.Event()

    def watch():
        while before is not None and not done.wait(0.1):
            peak[0] = max(peak[0], used_by_gpu(visible) or 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = []
    reader = threading.Thread(target=lambda: said.append(child.stderr.read()))
    reader.start()
    output = child.stdout.read()
    reader.join()
    _, status, usage = os.wait4(child.pid, 0)
    done.set()
    watcher.join()
    if status != 0:
        lines = [line for line in said[0].splitlines() if line.strip()]
        told = next((line for line in lines if "error" in line.lower() or "panicked" in line), lines[-1] if lines else "")
        return {"failed": told.strip() or f"status {status}"}
    result = json.loads(output.splitlines()[-1])
    result["peak_bytes"] = peak[0] - before if before is not None else usage.ru_maxrss << 10
    result["peak_of"] = "gpu" if before is not None else "process"
    return result


def rate(figure):
    """Tokens a second, by the median."""
    return figure["tokens"] / statistics.median(figure["seconds"])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--sizes", nargs="+", choices=WORK, required=True)
    parser.add_argument("--torch", help="a Python with torch and transformers")
    parser.add_argument("--repeats", default="5")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    backend = arguments.device.split(":")[0]
    theirs = {"flex": "cpu"}.get(backend, arguments.device if backend == "cuda" else "cuda")
    peer = str(Path(__file__).with_name("torch_gpu.py"))
    sides = {"ours": [arguments.program, "--device", arguments.device]}
    if arguments.torch:
        sides["PyTorch"] = [arguments.torch, peer, "--device", theirs]
    results, rows = [], []
    for size in arguments.sizes:
        work = dict(zip(["--rows", "--prompt", "--response"], map(str, WORK[size])))
        of, dtype = {}, arguments.dtype
        for phase in ["matmul", *PHASES]:
            for side, command in sides.items():
                words = [word for pair in work.items() for word in pair]
                words += ["--size", size, "--phase", phase, "--dtype", dtype, "--repeats", arguments.repeats]
                print(f"{arguments.device} {size}: {phase}, {side}", file=sys.stderr)
                result = run(command + words, arguments.device)
                dtype = result.get("dtype", dtype)  # ours is first, and says what the device has
                of[side, phase] = result
                shape = dict(zip(["rows", "prompt", "response"], WORK[size]))
                results.append({"device": arguments.device, "size": size, "side": side, "phase": phase, **shape, **result})
        peak = max((of[side, "matmul"].get("operations", 0) for side in sides), default=0)
        for phase, figures in PHASES.items():
            ours, torch = of["ours", phase], of.get(("PyTorch", phase), {"failed": "not installed"})
            if "parameters" in ours and "parameters" in torch and ours["parameters"] != torch["parameters"]:
                sys.exit(f"{size} {phase}: {ours['parameters']} parameters against {torch['parameters']}")
            for name in figures:
                cells = [f"{size}, {dtype}", name]
                for result in ours, torch:
                    if name not in result:
                        cells += [result["failed"][:60], "–", "–"]
                        continue
                    operations = ours[name]["operations"] / statistics.median(result[name]["seconds"]) if name in ours else 0
                    share = f"{operations / peak:.0%}" if peak and operations else "–"
                    cells += [f"{rate(result[name]):,.0f}", share, f"{result['peak_bytes'] / 1e9:.2f}"]
                both = name in ours and name in torch
                cells.append(f"**{rate(ours[name]) / rate(torch[name]):.2f}**" if both else "–")
                rows.append(cells)
    gpus = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout if backend != "flex" and used_by_gpu(0) else ""
    versions = next((r for r in results if "torch" in r), {})
    print(f"\n{arguments.device}{': ' + gpus.strip() if gpus else ''}; PyTorch {versions.get('torch', 'none')}, "
          f"transformers {versions.get('transformers', 'none')}. Tokens a second, the share of the measured peak of matrix "
          "products (the higher of both sides), and the peak of memory in GB.\n")
    head = ["size", "phase", "ours", "share", "GB", "PyTorch", "share", "GB", "ours / PyTorch"]
    print("| " + " | ".join(head) + " |\n| --- | --- " + "| ---: " * 7 + "|")
    for cells in rows:
        print("| " + " | ".join(cells) + " |")
    arguments.out.write_text(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "results": results}, indent=1) + "\n")


main()
