"""Writes the story model's training and evaluation data as JSON Lines.

`python -m scripts.shipped.stories_data --out runs/data/stories`
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

from scripts.shipped.stories import Example, Style, write_example

TRAIN_NUM = 200_000
EVAL_NUM = 1_000
SEED = 1
"""Of the data that the shipped model was trained on."""


def write_train(num: int, seed: int, style: Style = "plain") -> Iterator[Example]:
    """Yields the training examples that no evaluation example equals."""
    held_out = {example.story for example in write_eval(EVAL_NUM, seed, style)}
    for index in range(num):
        example = write_example("train", seed, index, style)
        if example.story not in held_out:
            yield example


def write_eval(num: int, seed: int, style: Style = "plain") -> Iterator[Example]:
    """Yields the evaluation examples."""
    for index in range(num):
        yield write_example("eval", seed, index, style)


def write_files(out: Path, *, num: int, seed: int, style: Style) -> None:
    """Writes `train.jsonl` and `eval.jsonl`, each row `{"text": ...}`, into the folder.

    Raises:
        OSError: The folder cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    examples = {
        "train": write_train(num, seed, style),
        "eval": write_eval(EVAL_NUM, seed, style),
    }
    for name, rows in examples.items():
        with (out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for example in rows:
                file.write(json.dumps({"text": example.text}) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write the story model's data.")
    parser.add_argument("--out", type=Path, default=Path("runs/data/stories"))
    parser.add_argument("--num", type=int, default=TRAIN_NUM, help="training examples")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--style", choices=get_args(Style), default="plain")
    options = parser.parse_args(arguments)
    write_files(options.out, num=options.num, seed=options.seed, style=options.style)
    print(f"{options.num} training and {EVAL_NUM} evaluation examples: {options.out}")


if __name__ == "__main__":
    main()
