"""Log-probabilities of prompts by `peft`: `prompt_logprobs_reference.py MODEL ADAPTERS PROMPTS`.

ADAPTERS is a JSON object of folders by name, PROMPTS a JSON list. Prints, by name, the
log-probability of each prompt's tokens after the first; the model alone has the empty name.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    folder, adapters, prompts = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def measure(model: Any) -> list[list[float]]:
        found = []
        for prompt in prompts:
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            with torch.inference_mode():
                scores = torch.log_softmax(model(ids).logits[0, :-1].double(), dim=-1)
            found.append(scores.gather(1, ids[0, 1:, None])[:, 0].tolist())
        return found

    results = {"": measure(load())}
    for name, path in adapters.items():
        results[name] = measure(PeftModel.from_pretrained(load(), path))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
