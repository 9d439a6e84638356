"""What transformers computes with folders that were exported: `logits.py DIR ... -- ID ...`

Prints as JSON, for each folder, the logits at every token, or the score of the last token where it is a reward
model, and the text that its tokenizer gives back for the ids of a text.
"""

import json
import sys

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

split = sys.argv.index("--")
folders, ids = sys.argv[1:split], torch.tensor([[int(i) for i in sys.argv[split + 1 :]]])
results = []
for folder in folders:
    score = AutoConfig.from_pretrained(folder).architectures[0].endswith("Classification")
    auto = AutoModelForSequenceClassification if score else AutoModelForCausalLM
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "How do I boil an egg?"
    # Transformers splits for Qwen2 as its own tokenizer does, whatever the files say.
    if model.config.model_type != "qwen2":
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    if not score:
        assert GenerationConfig.from_pretrained(folder).eos_token_id == tokenizer.eos_token_id
    with torch.no_grad():
        values = model.float().eval()(ids).logits.flatten().tolist()
    results.append(dict(dtype=str(model.config.dtype), values=values))
print(json.dumps(results))
