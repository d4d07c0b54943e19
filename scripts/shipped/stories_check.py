"""Checks a story model: do its continuations parse, are they new, what is its held-out loss?

`python -m scripts.shipped.stories_check --model FOLDER`
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripts.shipped.stories import (
    ASSISTANT,
    USER,
    Example,
    Style,
    read_story,
    split_sentences,
    write_example,
)
from scripts.shipped.stories_data import SEED, TRAIN_NUM, write_eval, write_train
from scripts.shipped.stories_model import TEMPERATURE

LEAST_PARSED: dict[Style, float] = {"plain": 0.95, "moral": 0.65}
"""By style: a moral that names the wrong animal makes the whole story one that does not fit."""
LEAST_NEW = 0.90
LEAST_HONORED: dict[Style, float] = {"plain": 0.60, "moral": 0.40}
"""Share of the requests that are answered with a story of all that they name."""

MAX_NEW_TOKENS = 320
"""More than the rest of any story of the grammar has."""

BATCH = 50


@dataclass(frozen=True)
class Prompt:
    """What a model is given, and what of it belongs to the story.

    Attributes:
        text: What it is given, without the token of the beginning.
        story: The part of it that is the story's beginning.
        request: What a user asked for, or None.
    """

    text: str
    story: str
    request: str | None = None


def create_prompts(num: int, seed: int) -> list[Prompt]:
    """Returns the first one to four sentences of stories that are in no training data.

    One sentence may well begin another story there; `count_known` looks at what follows.
    """
    prompts = []
    for index in range(num):
        sentences = split_sentences(write_example("prompt", seed, index).story)
        text = " ".join(sentences[: 1 + index % 4])
        prompts.append(Prompt(text, text))
    return prompts


def create_requests(num: int, seed: int) -> list[Prompt]:
    """Returns requests as a chat hands them over."""
    prompts: list[Prompt] = []
    index = 0
    while len(prompts) < num:
        request = write_example("request", seed, index).request
        if request is not None:
            prompts.append(Prompt(f"{USER}{request}{ASSISTANT}", "", request))
        index += 1
    return prompts


def write_continuations(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], *, temperature: float, seed: int
) -> list[str | None]:
    """Returns what the model goes on with, None where it does not come to an end."""
    tokenizer.padding_side = "left"
    torch.manual_seed(seed)
    found: list[str | None] = []
    for start in range(0, len(prompts), BATCH):
        texts = [prompt.text for prompt in prompts[start : start + BATCH]]
        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            output = model.generate(
                **inputs,
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=MAX_NEW_TOKENS,
            )
        for row in output[:, inputs["input_ids"].shape[1] :]:
            is_whole = bool((row == tokenizer.eos_token_id).any())
            text = tokenizer.decode(row, skip_special_tokens=True)
            found.append(text if is_whole else None)
    return found


def count_parsed(
    prompts: Sequence[Prompt], found: Sequence[str | None], style: Style = "plain"
) -> list[bool]:
    """Returns for each continuation whether it makes its prompt a whole story that fits."""
    return [
        text is not None
        and read_story(prompt.story + text, style, prompt.request).bound is not None
        for prompt, text in zip(prompts, found, strict=True)
    ]


def count_known(found: Sequence[str | None], num: int, seed: int, style: Style = "plain") -> int:
    """Returns how many continuations are the end of some training story, word for word.

    That is stricter than comparing whole stories.
    """
    left = {text.strip() for text in found if text}
    known = set()
    for example in write_train(num, seed, style):
        if example.story.endswith(tuple(left)):
            ends = {text for text in left if example.story.endswith(text)}
            known |= ends
            left -= ends
    return sum(text is not None and text.strip() in known for text in found)


def measure_loss(model: Any, tokenizer: Any, examples: Sequence[Example]) -> float:
    """Returns the mean cross entropy of a token of the examples, in nats."""
    tokenizer.padding_side = "right"
    total, count = 0.0, 0
    for start in range(0, len(examples), BATCH):
        texts = [example.text for example in examples[start : start + BATCH]]
        texts = [text + tokenizer.eos_token for text in texts]
        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        labels = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="sum"
        )
        total += float(loss)
        count += int((labels != -100).sum())
    return total / count


def load(folder: Path, adapter: Path | None) -> tuple[Any, Any]:
    """Returns (model in float32, tokenizer)."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model.eval(), tokenizer


def check(options: argparse.Namespace) -> bool:
    """Prints what was measured; returns whether it is good enough."""
    model, tokenizer = load(options.model, options.adapter)
    sampling = {"temperature": options.temperature, "seed": options.seed}
    prompts = create_prompts(options.num, options.seed)
    found = write_continuations(model, tokenizer, prompts, **sampling)
    parsed = count_parsed(prompts, found, options.style)
    known = count_known(found, options.train_num, options.train_seed, options.style)
    new = sum(text is not None for text in found) - known
    for prompt, text, fits in zip(prompts, found, parsed, strict=True):
        if not fits and options.show:
            print(f"does not parse: {prompt.text} |{text}")
    requests = create_requests(options.num_requests, options.seed)
    answers = write_continuations(model, tokenizer, requests, **sampling)
    honored = sum(count_parsed(requests, answers, options.style))
    held_out = list(write_eval(200, options.train_seed, options.style))
    loss = measure_loss(model, tokenizer, held_out)
    least_parsed, least_honored = LEAST_PARSED[options.style], LEAST_HONORED[options.style]
    print(f"continuations at temperature {options.temperature}: {options.num}")
    print(f"  parse, and fit their beginning: {sum(parsed)} (wanted: {least_parsed:.0%})")
    print(f"  absent from the training data: {new} (wanted: {LEAST_NEW:.0%})")
    print(
        f"requests answered with a story of what they name: {honored} of {len(requests)} "
        f"(wanted: {least_honored:.0%})"
    )
    print(f"held-out loss: {loss:.4f} nats a token")
    reached = [
        sum(parsed) >= least_parsed * options.num,
        new >= LEAST_NEW * options.num,
        honored >= least_honored * options.num_requests,
    ]
    return all(reached)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; the exit status is 1 if the model misses a target."""
    parser = argparse.ArgumentParser(description="Check a story model.")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, help="a LoRA adapter to put on it")
    parser.add_argument("--style", choices=get_args(Style), default="plain")
    parser.add_argument("--num", type=int, default=100, help="continuations")
    parser.add_argument("--num-requests", type=int, default=50)
    parser.add_argument("--temperature", type=float, default=TEMPERATURE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-num", type=int, default=TRAIN_NUM)
    parser.add_argument("--train-seed", type=int, default=SEED)
    parser.add_argument("--show", action="store_true", help="print what does not parse")
    options = parser.parse_args(arguments)
    if min(options.num, options.num_requests) < 1:
        parser.error("--num and --num-requests: at least 1")
    sys.exit(0 if check(options) else 1)


if __name__ == "__main__":
    main()
