"""What `transformers` and `peft` say with a model's weights and an adapter's, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def greedy_texts(
    folder: Path, prompts: Sequence[str], num_tokens: int, *, adapter: Path | None = None
) -> list[str]:
    """Returns what a model generates greedily.

    Args:
        folder: The model's.
        prompts: The beginnings of the texts.
        num_tokens: The most tokens of each answer.
        adapter: The folder of a LoRA adapter, or None for the model alone.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = _load(folder, adapter)
    found = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**inputs, do_sample=False, max_new_tokens=num_tokens)
        new = output[0][inputs.input_ids.shape[1] :]
        found.append(str(tokenizer.decode(new, skip_special_tokens=True)))
    return found


def prompt_logprobs(
    folder: Path, prompts: Sequence[str], *, adapter: Path | None = None
) -> list[list[float]]:
    """Returns the log-probability of each prompt's tokens after the first.

    Args:
        folder: The model's.
        prompts: Texts.
        adapter: The folder of a LoRA adapter, or None for the model alone.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = _load(folder, adapter)
    found = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.inference_mode():
            scores = torch.log_softmax(model(ids).logits[0, :-1].double(), dim=-1)
        found.append(scores.gather(1, ids[0, 1:, None])[:, 0].tolist())
    return found


def _load(folder: Path, adapter: Path | None) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model if adapter is None else PeftModel.from_pretrained(model, adapter)
