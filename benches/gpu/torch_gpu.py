"""PyTorch's side of the comparison with gpu.rs: the same phases on random weights of the same shapes.

    python3 benches/gpu/torch_gpu.py --device cuda --size 0.5B --phase decode

Eager PyTorch with transformers' Qwen2: generation in the type of --dtype; training of f32 weights under autocast, with
fused AdamW, scaled dot-product attention, and no gradient checkpointing. Prints one JSON object.
"""

import argparse
import json
import math
import time

import torch
import torch.nn.functional as F
import transformers
from torch.nn.utils import clip_grad_norm_
from transformers import Qwen2Config, Qwen2ForCausalLM

SHAPES = {  # width, layers, heads, key-value heads, MLP, vocabulary
    "tiny": [64, 2, 4, 2, 256, 512],
    "0.1B": [640, 12, 10, 2, 2560, 65536],
    "0.5B": [896, 24, 14, 2, 4864, 151936],
    "1.5B": [1536, 28, 12, 2, 8960, 151936],
}


class Bench:
    def __init__(self, arguments):
        self.arguments, self.device = arguments, torch.device(arguments.device)
        self.dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[arguments.dtype]
        width, layers, heads, kv_heads, mlp, vocabulary = SHAPES[arguments.size]
        self.config = Qwen2Config(
            hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=kv_heads, intermediate_size=mlp, vocab_size=vocabulary,
            tie_word_embeddings=True, max_position_embeddings=4096, attn_implementation="sdpa",
            bos_token_id=None, eos_token_id=None, pad_token_id=0,
        )
        generator = torch.Generator().manual_seed(0)
        shape = (arguments.rows, arguments.prompt + arguments.response)
        self.ids = torch.randint(1, vocabulary, shape, generator=generator).to(self.device)

    def model(self, dtype):
        torch.manual_seed(0)
        with self.device:
            return Qwen2ForCausalLM(self.config).to(dtype)

    def scalar_model(self):
        """A decoder and a head of one score."""
        model = self.model(torch.float32)
        with self.device:
            model.lm_head = torch.nn.Linear(self.config.hidden_size, 1, bias=False)
        return model.train()

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=1e-6, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def time(self, run):
        """The seconds of each repetition after a first that is not counted."""
        seconds = []
        for _ in range(self.arguments.repeats + 1):
            start = time.perf_counter()
            run()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        return seconds[1:]

    def matmul(self):
        side, products = (512 if self.arguments.size == "tiny" else 8192), 10
        a = torch.ones(side, side, dtype=self.dtype, device=self.device)

        def run():
            for _ in range(products):
                a @ a

        return {"operations": products * 2 * side**3 / min(self.time(run))}

    def decode(self):
        model, prompts = self.model(self.dtype).eval(), self.ids[:, : self.arguments.prompt]

        @torch.inference_mode()
        def write(tokens):
            rows = model.generate(
                prompts, attention_mask=torch.ones_like(prompts), do_sample=True, temperature=1.0, top_k=0,
                top_p=1.0, eos_token_id=None, pad_token_id=0, max_new_tokens=tokens,
            )
            assert rows.shape[1] == prompts.shape[1] + tokens

        first = self.time(lambda: write(1))
        both = self.time(lambda: write(self.arguments.response))
        n = self.arguments.rows
        return {
            "prefill": {"tokens": n * self.arguments.prompt, "seconds": first},
            "decode": {
                "tokens": n * (self.arguments.response - 1),
                "seconds": [b - f for b, f in zip(both, first)],
            },
            "parameters": model.num_parameters(),
        }

    def states(self, model, ids):
        return model.model(ids, use_cache=False).last_hidden_state

    def step(self, model, optimizer):
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def reward(self):
        model = self.scalar_model()
        optimizer = self.optimizer(model)
        prompt, response = self.arguments.prompt, self.arguments.response
        ends = [prompt + min(start + 8, response) - 1 for start in range(0, response, 8)]
        n = self.arguments.rows // 2
        ids = self.ids[: 2 * n]

        def run():
            with self.autocast():
                hidden = self.states(model, ids)[:, ends]
                scores = model.lm_head(hidden).squeeze(-1).float().mean(1)
            loss = -F.logsigmoid(scores[:n] - scores[n:]).mean()
            loss.backward()
            self.step(model, optimizer)
            loss.item()

        seconds = self.time(run)
        parameters = sum(weight.numel() for weight in model.parameters())
        return {"reward": {"tokens": ids.numel(), "seconds": seconds}, "parameters": parameters}

    def ppo(self):
        policy, critic = self.model(torch.float32).train(), self.scalar_model()
        optimizers = self.optimizer(policy), self.optimizer(critic)
        prompt, n = self.arguments.prompt, self.arguments.response
        tokens = self.ids[:, prompt:]
        old = torch.full(tokens.shape, -math.log(self.config.vocab_size), device=self.device)
        advantages = torch.arange(n, device=self.device).sin().expand(tokens.shape)

        def run():
            with self.autocast():
                hidden = self.states(policy, self.ids)[:, prompt - 1 : -1]
                logits = policy.lm_head(hidden)
            log_probs = -F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none")
            ratio = (log_probs.view(tokens.shape) - old).exp()
            loss = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
            loss.backward()
            with self.autocast():
                values = critic.lm_head(self.states(critic, self.ids)[:, prompt - 1 : -1]).squeeze(-1)
            values = values.float()
            error = torch.max((values - 0.5).square(), (values.clamp(-0.25, 0.25) - 0.5).square())
            value_loss = 0.5 * error.mean()
            value_loss.backward()
            self.step(policy, optimizers[0])
            self.step(critic, optimizers[1])
            loss.item(), value_loss.item()

        seconds = self.time(run)
        parameters = policy.num_parameters()
        return {"ppo": {"tokens": self.ids.numel(), "seconds": seconds}, "parameters": parameters}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", choices=SHAPES, default="tiny")
    parser.add_argument("--phase", choices=["matmul", "decode", "reward", "ppo"], required=True)
    parser.add_argument("--dtype", choices=["bf16", "f32"], default="bf16")
    for name, default in ("rows", 4), ("prompt", 32), ("response", 16), ("repeats", 3):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    result = getattr(Bench(arguments), arguments.phase)()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({**result, "dtype": arguments.dtype, **versions}))


if __name__ == "__main__":
    main()
