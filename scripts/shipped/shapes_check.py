"""Checks an image model: does it draw the color, the shape and the place that it was asked for?

`python -m scripts.shipped.shapes_check --model FOLDER`
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from scripts.shipped.shapes_data import write_prompts
from scripts.shipped.shapes_draw import Kind, Style
from scripts.shipped.shapes_recognize import DARK, measure_ground, recognize

LEAST_SEEN = 0.90
LEAST_HELD_OUT = 0.75
STEPS = 20
GUIDANCE = 2.0

BATCH = 25


def draw(
    pipeline: Any, captions: Sequence[str], *, steps: int, guidance: float, seed: int
) -> list[Image.Image]:
    """Returns one image for each caption."""
    images: list[Image.Image] = []
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, len(captions), BATCH):
        with torch.inference_mode():
            output = pipeline(
                list(captions[start : start + BATCH]),
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=generator,
            )
        images.extend(output.images)
    return images


def count_right(
    kinds: Sequence[Kind], images: Sequence[Image.Image], style: Style
) -> dict[str, int]:
    """Returns how many images are right in each respect, and in all."""
    right = {"color": 0, "shape": 0, "place": 0, "ground": 0, "all": 0}
    for wanted, image in zip(kinds, images, strict=True):
        found = recognize(image)
        ground = (measure_ground(image) < DARK) == (style == "night")
        right["ground"] += ground
        right["all"] += found == wanted and ground
        if found is not None:
            right["color"] += found.color == wanted.color
            right["shape"] += found.shape == wanted.shape
            right["place"] += found.place == wanted.place
    return right


def load(folder: Path, adapter: Path | None) -> Any:
    """Returns the pipeline in float32."""
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    if adapter is not None:
        pipeline.load_lora_weights(adapter)
        pipeline.fuse_lora()  # else each step computes the adapter's layers beside the model's
    return pipeline


def check(options: argparse.Namespace) -> bool:
    """Prints what was measured; returns whether it is good enough."""
    pipeline = load(options.model, options.adapter)
    is_good = True
    for held_out, least in ((False, LEAST_SEEN), (True, LEAST_HELD_OUT)):
        asked = list(write_prompts(options.num // 2, options.seed, held_out=held_out))
        images = draw(
            pipeline,
            [caption for _, caption in asked],
            steps=options.steps,
            guidance=options.guidance,
            seed=options.seed,
        )
        right = count_right([kind for kind, _ in asked], images, options.style)
        name = "held-out" if held_out else "seen"
        parts = ", ".join(f"{part} {num}" for part, num in right.items() if part != "all")
        print(f"{name} combinations: {right['all']} of {len(asked)} right (wanted: {least:.0%})")
        print(f"  {parts}")
        is_good &= right["all"] >= least * len(asked)
        if options.out is not None:
            _save(options.out / f"{name}.png", images)
    return is_good


def _save(path: Path, images: Sequence[Image.Image], columns: int = 10) -> None:
    """Writes the images as one."""
    width, height = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height))
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * width, index // columns * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; the exit status is 1 if the model misses a target."""
    parser = argparse.ArgumentParser(description="Check an image model.")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, help="a LoRA adapter to put on it")
    parser.add_argument("--style", choices=get_args(Style), default="plain")
    parser.add_argument("--num", type=int, default=200, help="images, half of them held out, 2+")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a folder for the images")
    options = parser.parse_args(arguments)
    if options.num < 2:
        parser.error(f"--num {options.num}: at least 2")
    sys.exit(0 if check(options) else 1)


if __name__ == "__main__":
    main()
