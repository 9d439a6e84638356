"""Half a billion parameters on a CPU: loads, scores and trains a random Qwen2 of 0.5 B for three PPO steps in
bf16 with LoRA, and prints the wall time and the peak memory of each stage.

    cargo build --release
    python3 benches/half_billion.py [--set KEY=VALUE ...] [--family qwen2|llama] FOLDER

The standard library is enough. FOLDER gets the model (1 GB, in bf16), a file of preference pairs, and the run.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
HIDDEN, LAYERS, HEADS, KV_HEADS, MLP, VOCABULARY = 896, 24, 14, 2, 4864, 151936

SETTINGS = """
precision.compute="bf16"
lora.rank=8
reward.epochs=1
reward.batch=4
reward.rows_at_once=2
normalizer.pairs=8
normalizer.kind="global"
sampling.max_new_tokens=8
sampling.rows_at_once=4
ppo.iterations=3
ppo.rollouts=4
ppo.minibatch=4
ppo.rows_at_once=2
ppo.evaluate_every=3
evaluation.prompts=2
evaluation.samples=1
""".split()


def shapes(family):
    """Every tensor of the model, by its name in transformers."""
    head = HIDDEN // HEADS
    yield "model.embed_tokens.weight", [VOCABULARY, HIDDEN]
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        for name, outputs in ("q", HIDDEN), ("k", KV_HEADS * head), ("v", KV_HEADS * head):
            yield f"{layer}.self_attn.{name}_proj.weight", [outputs, HIDDEN]
            if family == "qwen2":
                yield f"{layer}.self_attn.{name}_proj.bias", [outputs]
        yield f"{layer}.self_attn.o_proj.weight", [HIDDEN, HIDDEN]
        yield f"{layer}.mlp.gate_proj.weight", [MLP, HIDDEN]
        yield f"{layer}.mlp.up_proj.weight", [MLP, HIDDEN]
        yield f"{layer}.mlp.down_proj.weight", [HIDDEN, MLP]
        yield f"{layer}.input_layernorm.weight", [HIDDEN]
        yield f"{layer}.post_attention_layernorm.weight", [HIDDEN]
    yield "model.norm.weight", [HIDDEN]


def bf16(values):
    """The upper halves of f32, little-endian."""
    return b"".join(struct.pack("<f", value)[2:] for value in values)


def write_model(folder, family):
    """A model of N(0, 0.02²): pieces of one long list of draws, each from a place of its own."""
    folder.mkdir(parents=True)
    rng = random.Random(0)
    draws = bf16(rng.gauss(0.0, 0.02) for _ in range(1_000_003))
    header, offset = {}, 0
    for name, shape in shapes(family):
        size = 2 * shape[0] * (shape[1] if len(shape) == 2 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, entry in header.items():
            size = entry["data_offsets"][1] - entry["data_offsets"][0]
            if name.endswith("norm.weight"):
                file.write(bf16([1.0]) * (size // 2))
                continue
            while size > 0:
                start = 2 * rng.randrange(len(draws) // 2)
                piece = draws[start : start + size]
                file.write(piece)
                size -= len(piece)
    names = {"qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}
    config = {
        "architectures": [names[family]], "model_type": family, "hidden_size": HIDDEN,
        "intermediate_size": MLP, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HIDDEN // HEADS, "vocab_size": VOCABULARY,
        "tie_word_embeddings": True, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "max_position_embeddings": 32768, "use_sliding_window": False, "dtype": "bfloat16",
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))
    eos = {"eos_token": "</s>", "pad_token": "<pad>", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(eos))


def tokenizer():
    """One token a character, and names for the other ids."""
    special = ["<pad>", "<s>", "</s>"]
    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    known = special + characters
    vocabulary = {token: i for i, token in enumerate(known)}
    vocabulary |= {f"<unused {i}>": i for i in range(len(known), VOCABULARY)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": i, "content": name, "special": True, **flags} for i, name in enumerate(special)]
    return {
        "version": "1.0", "added_tokens": added, "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--family", choices=["qwen2", "llama"], default="qwen2")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--program", default=ROOT / "target/release/segment-rlhf")
    arguments = parser.parse_args()
    folder = arguments.folder
    model, pairs, run = folder / arguments.family, folder / "pairs.jsonl", folder / "run"
    if not model.exists():
        start = time.time()
        write_model(model, arguments.family)
        print(f"model written in {time.time() - start:.0f} s", flush=True)
    with open(pairs, "w") as file:
        for i in range(10):
            pair = {"prompt": f"Add {i}.", "chosen": f"It is {i + 1}.", "rejected": "No."}
            print(json.dumps(pair), file=file)
    shutil.rmtree(run, ignore_errors=True)
    settings = [word for pair in SETTINGS + arguments.set for word in ("--set", pair)]
    for stage in ["train-reward", "fit-normalizer", "ppo"]:
        command = [arguments.program, stage, "--run", run, "--model", model, "--data", pairs]
        start = time.time()
        child = subprocess.Popen(command + settings, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        if status != 0:
            raise SystemExit(f"{stage} ended with {os.waitstatus_to_exitcode(status)}")
        peak = usage.ru_maxrss / 2**20
        print(f"{stage}: {time.time() - start:.0f} s, peak {peak:.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
