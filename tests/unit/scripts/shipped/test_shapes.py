from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from scripts.shipped import shapes_data
from scripts.shipped.shapes_draw import (
    COLORS,
    EDGE,
    HELD_OUT_SHARE,
    PLACES,
    SHAPES,
    Kind,
    Style,
    all_kinds,
    create_scene,
    draw_scene,
    write_caption,
)
from scripts.shipped.shapes_recognize import measure_ground, recognize

GROUND = (240, 240, 240)


def images(kind: Kind, num: int, style: Style = "plain") -> Iterator[Image.Image]:
    rng = random.Random(0)
    for _ in range(num):
        yield draw_scene(create_scene(kind, rng, style))


@pytest.mark.long("draws many images")
@pytest.mark.parametrize("style", ["plain", "night"])
def test_what_is_drawn_is_recognized(style: Style) -> None:
    rng = random.Random(1)
    kinds = list(all_kinds())
    wrong = [
        kind for kind in kinds if recognize(draw_scene(create_scene(kind, rng, style))) != kind
    ]
    assert len(wrong) < 0.01 * len(kinds), wrong


def test_it_is_recognized_with_a_little_noise_too() -> None:
    rng, noise = random.Random(2), np.random.default_rng(2)
    kinds = random.Random(3).sample(list(all_kinds()), 200)
    right = 0
    for kind in kinds:
        pixels = np.asarray(draw_scene(create_scene(kind, rng)), dtype=np.float64)
        pixels += noise.normal(0, 8, pixels.shape)
        right += recognize(Image.fromarray(pixels.clip(0, 255).astype(np.uint8))) == kind
    assert right >= 190


@pytest.mark.parametrize("shape", SHAPES)
def test_a_moved_or_recolored_image_is_another(shape: str) -> None:
    for image in images(Kind("red", shape, "top left"), 10):
        mirrored = ImageOps.mirror(image)
        assert recognize(mirrored) == Kind("red", shape, "top right")
        red, green, blue = image.split()
        assert recognize(Image.merge("RGB", (green, red, blue))) != Kind("red", shape, "top left")
        blued = Image.merge("RGB", (green, blue, red))
        assert recognize(blued) == Kind("blue", shape, "top left")


@pytest.mark.parametrize(("wanted", "drawn"), [p for p in product(SHAPES, SHAPES) if p[0] != p[1]])
def test_no_shape_passes_for_another(wanted: str, drawn: str) -> None:
    place = "centre"
    kinds = [recognize(image) for image in images(Kind("green", drawn, place), 10)]
    assert Kind("green", wanted, place) not in kinds


def test_what_is_no_single_colored_thing_is_not_recognized() -> None:
    blank = Image.new("RGB", (EDGE, EDGE), GROUND)
    assert recognize(blank) is None
    noise = np.random.default_rng(0).integers(0, 256, (EDGE, EDGE, 3), dtype=np.uint8)
    assert recognize(Image.fromarray(noise)) is None
    one, two = (next(images(Kind("red", "circle", place), 1)) for place in ("left", "right"))
    both = Image.fromarray(np.minimum(np.asarray(one), np.asarray(two)))
    assert recognize(one) is not None
    assert recognize(both) is None
    gray = ImageOps.grayscale(next(images(Kind("blue", "square", "top"), 1)))
    assert recognize(gray.convert("RGB")) is None
    half = blank.copy()
    half.paste((220, 20, 20), (0, 0, EDGE, EDGE // 2))
    assert recognize(half) is None


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_thing_of_two_colors_is_of_none(color: str, shape: str) -> None:
    pixels = np.asarray(next(images(Kind(color, shape, "centre"), 1))).copy()
    half = pixels[:, : EDGE // 2]
    hue, saturation, value = Image.fromarray(half).convert("HSV").split()
    other = hue.point([(level + 96) % 256 for level in range(256)])
    pixels[:, : EDGE // 2] = Image.merge("HSV", (other, saturation, value)).convert("RGB")
    assert recognize(Image.fromarray(pixels)) is None


def test_styles_differ_in_the_ground_only() -> None:
    kind = Kind("yellow", "star", "bottom")
    assert all(measure_ground(image) > 0.8 for image in images(kind, 20))
    assert all(measure_ground(image) < 0.25 for image in images(kind, 20, "night"))


def test_some_combinations_are_held_out_but_no_pair_is() -> None:
    kinds = list(all_kinds())
    seen = [kind for kind in kinds if not kind.is_held_out]
    assert len(kinds) == len(COLORS) * len(SHAPES) * len(PLACES) == 432
    assert len(kinds) - len(seen) == round(HELD_OUT_SHARE * len(kinds))
    assert {(k.color, k.shape) for k in seen} == set(product(COLORS, SHAPES))
    assert {(k.color, k.place) for k in seen} == set(product(COLORS, PLACES))
    assert {(k.shape, k.place) for k in seen} == set(product(SHAPES, PLACES))


def test_training_data_show_nothing_that_is_held_out() -> None:
    scenes = [shapes_data.write_example("train", 1, index)[0] for index in range(1500)]
    assert not any(scene.kind.is_held_out for scene in scenes)
    assert len({scene.kind for scene in scenes}) > 340
    asked = list(shapes_data.write_prompts(100, 0, held_out=True))
    assert all(kind.is_held_out for kind, _ in asked)
    assert not any(
        kind.is_held_out for kind, _ in shapes_data.write_prompts(100, 0, held_out=False)
    )


def test_captions_say_what_is_there_in_many_ways() -> None:
    rng = random.Random(4)
    scene = create_scene(Kind("orange", "cross", "bottom left"), rng)
    captions = {write_caption(scene, rng) for _ in range(500)}
    assert len(captions) > 30
    assert "an orange cross in the bottom left" in captions
    for caption in captions:
        assert "orange" in caption
        assert "cross" in caption or "plus" in caption
        assert "bottom" in caption or "lower" in caption
        assert "left" in caption


def test_the_folder_is_one_of_images_with_captions(tmp_path: Path) -> None:
    for name in ("one", "two"):
        shapes_data.main(["--out", str(tmp_path / name), "--num", "30", "--style", "mixed"])
    folder = tmp_path / "one" / "train"
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 30
    for index, row in enumerate(rows):
        with Image.open(folder / row["file_name"]) as image:
            assert image.size == (EDGE, EDGE)
            assert image.mode == "RGB"
            assert (measure_ground(image) < 0.35) == (index % 2 == 1)
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "two" / "train" / file.name).read_bytes()
    held_out = (tmp_path / "one" / "eval" / "metadata.jsonl").read_text(encoding="utf-8")
    assert len(held_out.splitlines()) == shapes_data.EVAL_NUM
