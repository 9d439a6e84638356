"""Writes dpo.json: the loss of TRL's DPO trainer and its gradients, with checkpoints of this folder as policy and reference.

    python tests/data/hf/dpo.py

Needs torch, transformers and trl (1.16.0). The trainer's own `_compute_loss` runs on an object that holds what it reads;
its patched models are replaced by a function that gives the log-probabilities of their logits."""

import collections
import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import torch
import trl
from transformers import AutoModelForCausalLM
from trl.trainer import dpo_trainer
from trl.trainer.dpo_trainer import DPOTrainer

HERE = Path(__file__).parent
# Policy, reference, β, and pairs of a prompt, its chosen and its rejected response.
CASES = [
    ("qwen3", "mistral", 0.1, [([5, 7, 9], [11, 13, 2], [17, 4, 8, 2]), ([6], [3, 30, 31, 40, 2], [2])]),
    ("mistral", "llama_scaled", 0.5, [([40, 41], [12, 12, 2], [13, 2])]),
    ("llama_biased", "qwen3", 1.0, [([8, 9, 10, 11], [20, 2], [21, 22, 2]), ([3, 4], [5, 2], [6, 7, 8, 9, 2])]),
]


class Fused:
    """What TRL's fused head gives, from the logits."""

    def __init__(self, model):
        self.model, self.training = model, True

    def __call__(self, input_ids, attention_mask, labels, **_):
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1]
        target = labels[:, 1:]
        log_probs = logits.log_softmax(-1)
        of = log_probs.gather(-1, target.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        zeros = torch.zeros_like(of)
        return SimpleNamespace(
            log_probs=torch.where(target == -100, zeros, of), entropy=zeros, mean_logits=zeros,
            is_top1=torch.zeros_like(target, dtype=torch.bool),
        )


def batch(pairs):
    rows = [(prompt, chosen) for prompt, chosen, _ in pairs]
    rows += [(prompt, rejected) for prompt, _, rejected in pairs]
    width = max(len(prompt) + len(response) for prompt, response in rows)
    pad = lambda row: row + [0] * (width - len(row))
    return dict(
        input_ids=torch.tensor([pad(p + r) for p, r in rows]),
        attention_mask=torch.tensor([pad([1] * len(p + r)) for p, r in rows]),
        completion_mask=torch.tensor([pad([0] * len(p) + [1] * len(r)) for p, r in rows]),
    )


def case(policy_name, reference_name, beta, pairs):
    load = lambda name: AutoModelForCausalLM.from_pretrained(HERE / name, dtype=torch.float32)
    policy, reference = load(policy_name), load(reference_name)
    same = lambda x: x
    trainer = object.__new__(DPOTrainer)
    trainer.__dict__.update(
        model=Fused(policy), ref_model=Fused(reference), beta=beta, aux_loss_enabled=False, ld_alpha=None,
        precompute_ref_logps=False, f_divergence_type="reverse_kl", loss_types=["sigmoid"], loss_weights=[1.0],
        use_weighting=False, _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
        _total_train_tokens=0, _tp_size=1, args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        accelerator=SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same),
    )
    loss = trainer._compute_loss(trainer.model, batch(pairs), False)
    loss.backward()
    metrics = trainer._metrics["train"]
    gradients = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    return dict(
        policy=policy_name, reference=reference_name, beta=beta,
        pairs=[dict(prompt=p, chosen=c, rejected=r) for p, c, r in pairs],
        loss=loss.item(), chosen_reward=metrics["rewards/chosen"][0], rejected_reward=metrics["rewards/rejected"][0],
        gradient_norms={name: g.norm().item() for name, g in gradients.items()},
        norm_gradient=gradients["model.norm.weight"].tolist(),
    )


if __name__ == "__main__":
    dpo_trainer.disable_gradient_checkpointing = lambda *_: contextlib.nullcontext()
    found = dict(source=f"trl {trl.__version__}: trainer/dpo_trainer.py _compute_loss", cases=[case(*c) for c in CASES])
    (HERE / "dpo.json").write_text(json.dumps(found, indent=1) + "\n")
