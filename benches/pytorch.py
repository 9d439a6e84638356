"""The work of pipeline.rs in PyTorch and transformers, on the CPU: python3 benches/pytorch.py [threads]."""

import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

ROWS, PROMPT, RESPONSE = 32, 18, 34
torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
config = LlamaConfig(vocab_size=109, hidden_size=64, intermediate_size=192, num_hidden_layers=2,
                     num_attention_heads=4, num_key_value_heads=4, head_dim=16,
                     max_position_embeddings=128, tie_word_embeddings=False)
model = LlamaForCausalLM(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01)
row = torch.tensor([(i * 7) % 100 + 2 for i in range(PROMPT + RESPONSE)])
rows = row.repeat(ROWS, 1)


def log_probs():
    logits = model(rows).logits[:, PROMPT - 1:-1]
    return logits.log_softmax(-1).gather(2, rows[:, PROMPT:, None])[..., 0]


def train():
    loss = -log_probs().mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


@torch.no_grad()
def view():
    logits = model(rows).logits[:, PROMPT - 1:-1].log_softmax(-1)
    return -(logits.exp() * logits).sum(-1)


@torch.no_grad()
def generation():
    model.generate(row[:PROMPT].repeat(128, 1), do_sample=True, max_new_tokens=64, min_new_tokens=64,
                   pad_token_id=0)


def measure(name, work, tokens, repeats):
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    median = sorted(times)[repeats // 2]
    print(f"{name}: {1e3 * median:.1f} ms, {tokens / median:.0f} tokens/s")


measure("training step, 32 rows of 52 tokens", train, rows.numel(), 50)
measure("log-probabilities and entropies, 32 rows of 52 tokens", view, rows.numel(), 50)
measure("generation, 128 rows of 64 new tokens", generation, 128 * 64, 5)
