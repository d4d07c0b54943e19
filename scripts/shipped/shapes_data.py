"""Writes the image model's data: folders of images with a `metadata.jsonl` of captions.

`python -m scripts.shipped.shapes_data --out runs/data/shapes`
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

from PIL import Image

from scripts.shipped.shapes_draw import (
    Kind,
    Scene,
    Style,
    all_kinds,
    create_scene,
    draw_scene,
    write_caption,
)

TRAIN_NUM = 20_000
EVAL_NUM = 500
SEED = 1
"""Of the data that the shipped model was trained on."""


def write_example(
    split: str, seed: int, index: int, style: Style = "plain"
) -> tuple[Scene, Image.Image, str]:
    """Returns (scene, image, caption) of one example, the same for the same arguments.

    Combinations that are held out never occur, in no split.
    """
    rng = random.Random(f"shapes {split} {seed} {index}")
    scene = create_scene(rng.choice(_kinds(held_out=False)), rng, style)
    return scene, draw_scene(scene), write_caption(scene, rng)


def write_prompts(num: int, seed: int, *, held_out: bool) -> Iterator[tuple[Kind, str]]:
    """Yields kinds and captions to try a model with: those of training, or those held out."""
    rng = random.Random(f"prompts {seed} {held_out}")
    kinds = _kinds(held_out=held_out)
    for _ in range(num):
        kind = rng.choice(kinds)
        yield kind, write_caption(create_scene(kind, rng), rng)


_ALL = tuple(all_kinds())


def _kinds(*, held_out: bool) -> list[Kind]:
    return [kind for kind in _ALL if kind.is_held_out == held_out]


def write_folder(folder: Path, split: str, *, num: int, seed: int, styles: Sequence[Style]) -> None:
    """Writes images and their captions into the folder, the styles in turn.

    Raises:
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for index in range(num):
            _, image, caption = write_example(split, seed, index, styles[index % len(styles)])
            name = f"{index:06d}.png"
            image.save(folder / name)
            file.write(json.dumps({"file_name": name, "text": caption}) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write the image model's data.")
    parser.add_argument("--out", type=Path, default=Path("runs/data/shapes"))
    parser.add_argument("--num", type=int, default=TRAIN_NUM, help="training images")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument(
        "--style", choices=[*get_args(Style), "mixed"], default="plain", help="mixed: all in turn"
    )
    options = parser.parse_args(arguments)
    styles = get_args(Style) if options.style == "mixed" else (options.style,)
    for split, num in (("train", options.num), ("eval", EVAL_NUM)):
        folder = options.out / split
        write_folder(folder, split, num=num, seed=options.seed, styles=styles)
    print(f"{options.num} training and {EVAL_NUM} evaluation images: {options.out}")


if __name__ == "__main__":
    main()
