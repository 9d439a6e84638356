"""PyTorch's side of the comparison with compare.rs: one PPO iteration on segment rewards (Yin et al.,
arXiv 2501.02790), phase by phase, in f32 on the CPU.

    pip install -r benches/peers/requirements.txt
    python3 benches/peers/torch_ppo.py --folder FOLDER --threads N --repeats R

FOLDER is what compare.rs wrote: the models policy, reference, critic and reward as Hugging Face checkpoints,
and work.json with the prompts, responses, preference pairs and settings that both sides read.

These phases are timed, R times each, after one run of them all that is not counted:

- generate: the policy samples a response to each prompt, as long as the given one; the tokens are thrown away;
- score: log-probabilities, entropies, rewards and values of the given responses;
- assemble: segments, their normalized rewards spread over tokens, the KL term, GAE and whitening;
- update: one epoch of clipped PPO steps of policy and critic;
- reward_step: one Bradley-Terry step of the reward model on all pairs;
- lora_update, where work.json has a rank: the policy's steps of update with adapters alone.

Every repetition starts from the weights in FOLDER. The result is one JSON object on standard output: the
seconds of each phase in each repetition, and the losses and counts that show that both sides did the same work.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, StoppingCriteria

TRAINED = "policy", "critic", "reward"
REWARD_CLIP = 10.0  # bound of a token's share of a segment reward
WHITENING_EPSILON = 1e-8


@dataclass
class Sample:
    """A prompt, a response, and one number for each token of the response."""

    prompt: list
    response: list
    log_probs: torch.Tensor
    entropies: torch.Tensor  # of the policy
    ref_log_probs: torch.Tensor
    ref_entropies: torch.Tensor
    rewards: torch.Tensor
    values: torch.Tensor
    segments: list = None
    advantages: torch.Tensor = None
    returns: torch.Tensor = None


class Batch:
    """Rows of prompt and response, padded on the right, with the places of the response tokens in the flat grid.

    Padding follows everything that is read, so causal attention never sees it and needs no mask.
    """

    def __init__(self, prompts, responses):
        rows = [torch.tensor(prompt + response) for prompt, response in zip(prompts, responses)]
        self.ids = pad_sequence(rows, batch_first=True)
        self.lengths = [len(response) for response in responses]
        width = self.ids.shape[1]
        self.firsts = [i * width + len(prompt) for i, prompt in enumerate(prompts)]
        places = [torch.arange(at, at + n) for at, n in zip(self.firsts, self.lengths)]
        self.places = torch.cat(places)
        self.tokens = self.ids.flatten()[self.places]

    def token_weights(self, rows):
        """Weights whose sum over tokens is the mean over a response's tokens, then over `rows` responses."""
        lengths = torch.tensor(self.lengths)
        return (1.0 / (lengths * rows)).repeat_interleave(lengths)


def states(model, batch, places):
    """The decoder's last hidden states at flat `places`, [places, d]."""
    hidden = model.model(batch.ids, use_cache=False).last_hidden_state
    return hidden.flatten(0, 1).index_select(0, places)


def response_logits(model, batch):
    """The logits of the distributions that the response tokens were drawn from, [tokens, vocabulary]."""
    return model.lm_head(states(model, batch, batch.places - 1))


def response_log_probs(model, batch):
    return -F.cross_entropy(response_logits(model, batch), batch.tokens, reduction="none")


def scalars(model, batch, places):
    """The scalar head's output at flat `places`, [places]."""
    return model.score(states(model, batch, places)).squeeze(1)


def state_values(critic, batch):
    """The critic's value of the state before each response token."""
    return scalars(critic, batch, batch.places - 1)


def chunks(items, size):
    return [items[i : i + size] for i in range(0, len(items), size)]


# Generation.


class StopAtLengths(StoppingCriteria):
    """Ends each row once it has its own number of tokens, prompt included."""

    def __init__(self, lengths):
        self.lengths = lengths

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids.shape[1] >= self.lengths


@torch.inference_mode()
def generate(policy, work):
    prompts = torch.tensor(work["prompts"])
    new_tokens = torch.tensor([len(response) for response in work["responses"]])
    rows = policy.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=True,
        temperature=work["temperature"],
        top_k=0,
        top_p=1.0,
        eos_token_id=None,
        pad_token_id=0,
        max_new_tokens=int(new_tokens.max()),
        stopping_criteria=[StopAtLengths(prompts.shape[1] + new_tokens)],
    )
    assert rows.shape[1] == prompts.shape[1] + new_tokens.max()


# Scoring.


def view(model, batch):
    """Log-probability and entropy at each response token, the entropy over the whole vocabulary."""
    log_p = response_logits(model, batch).log_softmax(-1)
    log_probs = log_p.gather(1, batch.tokens[:, None]).squeeze(1)
    entropies = -log_p.exp().mul_(log_p).sum(-1)
    return log_probs, entropies


@torch.inference_mode()
def score(models, work):
    samples = []
    size = work["rows_at_once"]
    for prompts, responses in zip(chunks(work["prompts"], size), chunks(work["responses"], size)):
        batch = Batch(prompts, responses)
        columns = [
            *view(models["policy"], batch),
            *view(models["reference"], batch),
            scalars(models["reward"], batch, batch.places),
            state_values(models["critic"], batch),
        ]
        columns = [column.split(batch.lengths) for column in columns]
        samples += [Sample(*row) for row in zip(prompts, responses, *columns)]
    return samples


# Credit.


def segments_of(entropies, cutoff):
    """Segments (start, end): one starts at token 0, and at each token of greater entropy than the cutoff."""
    starts = [i for i, entropy in enumerate(entropies) if i == 0 or entropy > cutoff]
    return list(zip(starts, starts[1:] + [len(entropies)]))


def normalize(reward, t, segments, normalizer):
    """The reward of segment t of so many, made comparable along the response."""
    log_location = math.log((t + 1) / segments)
    (w_mean, b_mean), (w_std, b_std) = normalizer["mean"], normalizer["std"]
    return (reward - (w_mean * log_location + b_mean)) / (w_std * log_location + b_std)


def token_rewards(sample, work):
    """Each segment's normalized reward, spread evenly over its tokens, less the KL term."""
    rewards, spread = sample.rewards.tolist(), []
    for t, (start, end) in enumerate(sample.segments):
        reward = normalize(rewards[end - 1], t, len(sample.segments), work["normalizer"])
        share = reward / (end - start)
        spread += [max(-REWARD_CLIP, min(share, REWARD_CLIP))] * (end - start)
    beta = work["kl_coefficient"]
    log_probs = zip(sample.log_probs.tolist(), sample.ref_log_probs.tolist())
    return [reward - beta * (new - reference) for reward, (new, reference) in zip(spread, log_probs)]


def gae(rewards, values, gamma, decay):
    """Advantages, with a value of 0 after the last token."""
    advantages = [0.0] * len(rewards)
    next_value = next_advantage = 0.0
    for i in reversed(range(len(rewards))):
        delta = rewards[i] + gamma * next_value - values[i]
        next_advantage = delta + gamma * decay * next_advantage
        next_value = values[i]
        advantages[i] = next_advantage
    return advantages


def whiten(advantages):
    """Mean 0 and variance 1 over all tokens of all samples."""
    variance, mean = torch.var_mean(advantages, correction=0)
    return (advantages - mean) * torch.rsqrt(variance + WHITENING_EPSILON)


def assemble(samples, work):
    """Fills in segments, advantages and returns."""
    for sample in samples:
        sample.segments = segments_of(sample.ref_entropies.tolist(), work["cutoff"])
        rewards = token_rewards(sample, work)
        advantages = gae(rewards, sample.values.tolist(), work["gamma"], work["lambda"])
        sample.advantages = torch.tensor(advantages)
        sample.returns = sample.advantages + sample.values
    lengths = [len(sample.response) for sample in samples]
    whitened = whiten(torch.cat([sample.advantages for sample in samples]))
    for sample, advantages in zip(samples, whitened.split(lengths)):
        sample.advantages = advantages


# Training.


def optimizer_of(model, settings):
    return torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad],
        lr=settings["learning_rate"],
        betas=(settings["beta_1"], settings["beta_2"]),
        eps=settings["epsilon"],
        weight_decay=settings["weight_decay"],
        fused=True,
    )


def step(model, optimizer, max_gradient_norm):
    clip_grad_norm_(model.parameters(), max_gradient_norm)
    optimizer.step()
    optimizer.zero_grad()


def policy_loss(log_probs, old_log_probs, advantages, weights, clip):
    ratio = (log_probs - old_log_probs).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return -(torch.min(ratio * advantages, clipped * advantages) * weights).sum()


def value_loss(values, old_values, returns, weights, clip):
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    error = torch.max((values - returns).square(), (clipped - returns).square())
    return 0.5 * (error * weights).sum()


def gather(samples, field):
    return torch.cat([getattr(sample, field) for sample in samples])


def backward(models, samples, rows, work):
    """Adds the gradients of some of a minibatch's `rows` samples. Gives their shares of its two losses."""
    batch = Batch([sample.prompt for sample in samples], [sample.response for sample in samples])
    weights = batch.token_weights(rows)
    log_probs = response_log_probs(models["policy"], batch)
    old, advantages = gather(samples, "log_probs"), gather(samples, "advantages")
    of_policy = policy_loss(log_probs, old, advantages, weights, work["clip"])
    of_policy.backward()
    values = state_values(models["critic"], batch)
    old, returns = gather(samples, "values"), gather(samples, "returns")
    of_critic = value_loss(values, old, returns, weights, work["value_clip"])
    of_critic.backward()
    return of_policy.item(), of_critic.item()


def update(models, optimizers, samples, work):
    """One epoch. Gives the policy's and the critic's loss of each minibatch."""
    losses = []
    for minibatch in chunks(samples, work["minibatch"]):
        parts = [
            backward(models, part, len(minibatch), work)
            for part in chunks(minibatch, work["rows_at_once"])
        ]
        for name in "policy", "critic":
            step(models[name], optimizers[name], work["optimizer"]["max_gradient_norm"])
        losses.append([sum(loss) for loss in zip(*parts)])
    return losses


@dataclass
class Pairs:
    """Preference pairs, all chosen responses first and then all rejected ones, with the segments of each."""

    prompts: list
    responses: list
    segments: list

    @classmethod
    @torch.inference_mode()
    def of(cls, work, reference):
        prompts = [pair["prompt"] for pair in work["pairs"]] * 2
        responses = [pair[side] for side in ("chosen", "rejected") for pair in work["pairs"]]
        batch = Batch(prompts, responses)
        entropies = view(reference, batch)[1].split(batch.lengths)
        segments = [segments_of(row.tolist(), work["cutoff"]) for row in entropies]
        return cls(prompts, responses, segments)

    def tokens(self):
        return count(self.prompts) + count(self.responses)


def sequence_scores(model, pairs):
    """Each response's score: the mean of the rewards of its segments, read at their last tokens."""
    batch = Batch(pairs.prompts, pairs.responses)
    ends = [
        first + end - 1
        for first, segments in zip(batch.firsts, pairs.segments)
        for _, end in segments
    ]
    counts = torch.tensor([len(segments) for segments in pairs.segments])
    rows = torch.arange(len(counts)).repeat_interleave(counts)
    rewards = scalars(model, batch, torch.tensor(ends))
    return torch.zeros(len(counts)).index_add(0, rows, rewards) / counts


def reward_step(model, optimizer, pairs, work):
    """One step on all pairs. Gives the loss before it."""
    chosen, rejected = sequence_scores(model, pairs).chunk(2)
    loss = -F.logsigmoid(chosen - rejected).mean()
    loss.backward()
    step(model, optimizer, work["optimizer"]["max_gradient_norm"])
    return loss.item()


# Adapters.


class Adapted(torch.nn.Module):
    """A frozen linear map with an adapter beside it: W x + a b x, with a = 0 at the start."""

    def __init__(self, linear, rank):
        super().__init__()
        self.linear = linear
        self.b = torch.nn.Parameter(torch.randn(rank, linear.in_features) / linear.in_features**0.5)
        self.a = torch.nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        return self.linear(x) + F.linear(F.linear(x, self.b), self.a)


def adapt(model, rank):
    """Gives each projection of each layer an adapter; all else is frozen."""
    model.requires_grad_(False)
    for layer in model.model.layers:
        for block in layer.self_attn, layer.mlp:
            for name, linear in list(block.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    setattr(block, name, Adapted(linear, rank))
    return model


def lora_update(policy, optimizer, samples, work):
    """One epoch of the policy alone. Gives the first minibatch's loss."""
    losses = []
    for minibatch in chunks(samples, work["minibatch"]):
        loss = 0.0
        for part in chunks(minibatch, work["rows_at_once"]):
            batch = Batch([sample.prompt for sample in part], [sample.response for sample in part])
            weights = batch.token_weights(len(minibatch))
            log_probs = response_log_probs(policy, batch)
            old, advantages = gather(part, "log_probs"), gather(part, "advantages")
            share = policy_loss(log_probs, old, advantages, weights, work["clip"])
            share.backward()
            loss += share.item()
        step(policy, optimizer, work["optimizer"]["max_gradient_norm"])
        losses.append(loss)
    return losses[0]


# The comparison.


def load_model(kind, folder, **options):
    return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa", **options)


def load(folder):
    scalar = {"kind": LlamaForSequenceClassification, "num_labels": 1}
    return {
        "policy": load_model(LlamaForCausalLM, folder / "policy"),
        "reference": load_model(LlamaForCausalLM, folder / "reference"),
        "critic": load_model(folder=folder / "critic", **scalar),
        "reward": load_model(folder=folder / "reward", **scalar),
    }


def weights_of(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def iterate(models, pairs, work, folder):
    """One PPO iteration and a step of the reward model. Gives the seconds, the losses and the samples."""
    seconds = {}

    def timed(phase, *arguments):
        start = time.perf_counter()
        result = phase(*arguments)
        seconds[phase.__name__] = time.perf_counter() - start
        return result

    optimizers = {name: optimizer_of(models[name], work["optimizer"]) for name in TRAINED}
    timed(generate, models["policy"], work)
    samples = timed(score, models, work)
    timed(assemble, samples, work)
    of_policy, of_critic = timed(update, models, optimizers, samples, work)[0]
    of_reward = timed(reward_step, models["reward"], optimizers["reward"], pairs, work)
    losses = {"policy": of_policy, "value": of_critic, "reward": of_reward}
    if work["lora_rank"]:
        policy = adapt(load_model(LlamaForCausalLM, folder / "policy"), work["lora_rank"])
        optimizer = optimizer_of(policy, work["optimizer"])
        losses["lora"] = timed(lora_update, policy, optimizer, samples, work)
    return seconds, losses, samples


def count(rows):
    return sum(map(len, rows))


def compare(folder, threads, repeats):
    work = json.loads((folder / "work.json").read_text())
    models = load(folder)
    weights = {name: weights_of(models[name]) for name in TRAINED}
    pairs = Pairs.of(work, models["reference"])
    names = iterate(models, pairs, work, folder)[0]  # warms up
    phases = {name: [] for name in names}
    for _ in range(repeats):
        for name in TRAINED:
            models[name].load_state_dict(weights[name])
        seconds, losses, samples = iterate(models, pairs, work, folder)
        for name in names:
            phases[name].append(seconds[name])
    return {
        "threads": threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "phases": phases,
        "losses": losses,
        "tokens": {
            "prompt": count(work["prompts"]),
            "response": count(work["responses"]),
            "pairs": pairs.tokens(),
        },
        "parameters": models["policy"].num_parameters(),
        "segments": sum(len(sample.segments) for sample in samples),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--repeats", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    result = compare(arguments.folder, arguments.threads, arguments.repeats)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
