"""Greedy generation by `transformers`: `greedy_reference.py MODEL ADAPTER TOKENS PROMPTS_JSON`.

Prints the texts of the model alone and of the model with the adapter's weights added to its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    folder, adapter, tokens, prompts = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def texts() -> list[str]:
        found = []
        for prompt in json.loads(prompts):
            inputs = tokenizer(prompt, return_tensors="pt")
            output = model.generate(**inputs, do_sample=False, max_new_tokens=int(tokens))
            found.append(tokenizer.decode(output[0][inputs.input_ids.shape[1] :]))
        return found

    alone = texts()
    config = json.loads((Path(adapter) / "adapter_config.json").read_text())
    tensors = load_file(Path(adapter) / "adapter_model.safetensors")
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, down in tensors.items():
            if not name.endswith(".lora_A.weight"):
                continue
            up = tensors[name.replace("lora_A", "lora_B")]
            target = name.removeprefix("base_model.model.").replace(".lora_A", "")
            parameters[target] += config["lora_alpha"] / config["r"] * (up @ down)
    print(json.dumps({"alone": alone, "adapted": texts()}))


if __name__ == "__main__":
    main()
