"""Writes the checkpoints that README.md lists as made here, with what transformers computes from each.

    python tests/data/hf/make.py [NAME ...]

Needs torch and transformers. Every number is drawn anew from a fixed seed: the files are the same again with
the same versions, else as good."""

import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

HERE = Path(__file__).parent
SIZES = dict(
    vocab_size=48, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)
GROUPED = dict(SIZES, num_key_value_heads=2)
ROPE = dict(rope_parameters=dict(rope_type="default", rope_theta=10000.0))
LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
LONG = dict(
    type="longrope", short_factor=[1.0, 1.5, 2.0, 3.0], long_factor=[2.0, 4.0, 6.0, 8.0],
)
YARN = dict(rope_type="yarn", rope_theta=500.0, factor=4.0, original_max_position_embeddings=32)

# Family, configuration, and what is special: `task`, `dtype` or `shard` of the files, `older` keys of
# config.json in place of those that transformers writes today.
CASES = {
    "llama_biased": ("Llama", dict(
        GROUPED, attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="linear", rope_theta=500.0, factor=2.5),
    ), {}),
    "llama_scaled": ("Llama", dict(GROUPED, **ROPE), dict(
        older=dict(rope_theta=500.0, rope_scaling=LLAMA3),
    )),
    # A dynamic base is as it is up to the longest sequence.
    "llama_dynamic": ("Llama", dict(
        GROUPED, rope_parameters=dict(rope_type="dynamic", rope_theta=500.0, factor=2.0),
    ), {}),
    "qwen3_yarn": ("Qwen3", dict(
        dict(GROUPED, max_position_embeddings=32), head_dim=16, rope_parameters=YARN,
    ), {}),
    "llama_yarn": ("Llama", dict(GROUPED, **ROPE), dict(older=dict(
        rope_theta=500.0, rope_scaling=dict(
            type="yarn", factor=3.0, original_max_position_embeddings=40, mscale=0.8,
            mscale_all_dim=0.5, beta_fast=8, beta_slow=2, truncate=False,
        ),
    ))),
    "llama_bf16": ("Llama", dict(GROUPED, **ROPE), dict(dtype=torch.bfloat16)),
    "llama_f16": ("Llama", dict(GROUPED, **ROPE), dict(dtype=torch.float16)),
    "llama_sharded": ("Llama", dict(GROUPED, **ROPE), dict(shard="30KB")),
    "mistral": ("Mistral", dict(GROUPED, sliding_window=6, **ROPE), {}),
    "qwen2_window": ("Qwen2", dict(
        GROUPED, use_sliding_window=True, sliding_window=6, max_window_layers=1, **ROPE,
    ), {}),
    "qwen2_reward": ("Qwen2", dict(GROUPED, num_labels=1, **ROPE), dict(task="score")),
    "qwen3": ("Qwen3", dict(GROUPED, head_dim=12, tie_word_embeddings=True, **ROPE), {}),
    "phi3_long": ("Phi3", dict(GROUPED, original_max_position_embeddings=128, **ROPE), dict(
        older=dict(
            rope_theta=500.0, rope_scaling=LONG, original_max_position_embeddings=64,
            sliding_window=9,
        ),
    )),
    "gpt_neox_sequential": ("GPTNeoX", dict(SIZES, use_parallel_residual=False), dict(
        older=dict(rotary_pct=0.5, rotary_emb_base=500),
    )),
    "gpt_neox_reward": ("GPTNeoX", dict(SIZES, num_labels=1), dict(task="score")),
}


def make(folder, family, config, task="lm", dtype=torch.float32, shard="1GB", older=None):
    torch.manual_seed(sum(folder.name.encode()))
    config = getattr(transformers, family + "Config")(**config)
    kind = "ForCausalLM" if task == "lm" else "ForSequenceClassification"
    model = getattr(transformers, family + kind)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif "norm" in name:
                parameter.normal_(1, 0.3)
            else:
                parameter.normal_(0, 0.3)
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    if older:
        path = folder / "config.json"
        keys = json.loads(path.read_text())
        del keys["rope_parameters"]
        path.write_text(json.dumps(keys | older, indent=2, sort_keys=True) + "\n")


def expected(folder, score):
    auto = AutoModelForSequenceClassification if score else AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32).eval()
    draw = torch.Generator().manual_seed(7)
    cases = []
    for length in (5, 17, 33):
        ids = torch.randint(3, model.config.vocab_size, (1, length), generator=draw)
        if score:
            hidden = model.base_model(ids).last_hidden_state
            scores = model.score(hidden)[0, :, 0]
            assert torch.allclose(scores[-1], model(ids).logits[0, 0], atol=1e-5)
            cases.append(dict(ids=ids[0].tolist(), token_scores=rounded(scores)))
            continue
        logits = model(ids).logits[0]
        log_probs = logits.log_softmax(-1)
        greedy = ids
        for _ in range(12):
            newest = model(greedy).logits[:, -1:].argmax(-1)
            greedy = torch.cat([greedy, newest], dim=1)
        cases.append(dict(
            ids=ids[0].tolist(),
            logits=[rounded(row) for row in logits],
            entropy_nats=rounded(-(log_probs.exp() * log_probs).sum(-1)),
            next_token_log_prob=rounded(log_probs[:-1].gather(1, ids[0, 1:, None])[:, 0]),
            greedy_12=greedy[0, length:].tolist(),
        ))
    versions = dict(transformers=transformers.__version__, torch=torch.__version__)
    (folder / "expected.json").write_text(json.dumps(dict(versions, cases=cases)))


def rounded(values):
    return [round(value, 6) for value in values.tolist()]


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    for name in sys.argv[1:] or CASES:
        family, config, special = CASES[name]
        make(HERE / name, family, config, **special)
        expected(HERE / name, special.get("task") == "score")
