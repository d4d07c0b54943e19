"""Greedy generation by `peft`: `peft_reference.py MODEL ADAPTER TOKENS PROMPTS_JSON`.

Prints the texts of the model alone and of the model with the adapter.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    folder, adapter, tokens, prompts = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def texts(runner: Any) -> list[str]:
        found = []
        for prompt in json.loads(prompts):
            inputs = tokenizer(prompt, return_tensors="pt")
            output = runner.generate(**inputs, do_sample=False, max_new_tokens=int(tokens))
            new = output[0][inputs.input_ids.shape[1] :]
            found.append(tokenizer.decode(new, skip_special_tokens=True))
        return found

    alone = texts(model)
    print(json.dumps({"alone": alone, "adapted": texts(PeftModel.from_pretrained(model, adapter))}))


if __name__ == "__main__":
    main()
