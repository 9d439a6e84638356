"""What PEFT computes with two folders of adapters: `peft_logits.py POLICY REWARD ID...`

Prints the policy's logits at every token and the reward model's score of the last, as JSON.
"""

import json
import sys

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

policy, reward, *ids = sys.argv[1:]
ids = torch.tensor([[int(i) for i in ids]])


def load(folder, kind, **options):
    base = PeftConfig.from_pretrained(folder).base_model_name_or_path
    base = kind.from_pretrained(base, dtype=torch.float32, **options)
    return PeftModel.from_pretrained(base, folder).eval()


with torch.no_grad():
    logits = load(policy, AutoModelForCausalLM)(ids).logits
    score = load(reward, AutoModelForSequenceClassification, num_labels=1)(ids).logits
print(json.dumps({"logits": logits.flatten().tolist(), "score": score.flatten().tolist()}))
