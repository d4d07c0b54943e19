"""Images of the data, decoded to the edge of training."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.training_images import EDGE
from truthgpt_serve.training.images.data import image_files as image_files_module
from truthgpt_serve.training.images.data.image_files import (
    Cut,
    ImageFileError,
    Size,
    load_image,
    read_size,
)

SQUARE = Size(EDGE, EDGE)


def _file(image: Image.Image, form: str = "PNG", **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **more)
    return buffer.getvalue()


def test_an_image_is_resized_and_cut_in_the_center() -> None:
    image = Image.new("RGB", (300, 100), "red")
    image.paste("blue", (100, 0, 200, 100))
    pixels = load_image(_file(image), SQUARE).pixels
    assert pixels.shape == (3, EDGE, EDGE)
    # Rings of the filter at the two edges are left out.
    assert (pixels[:, :, 3:-3] == np.array([0, 0, 255])[:, None, None]).all()
    same = load_image({"bytes": _file(image), "path": "x.png"}, SQUARE).pixels
    assert (same == pixels).all()


def test_transparency_is_laid_over_white_and_images_stand_upright() -> None:
    clear = Image.new("RGBA", (EDGE, EDGE), (255, 0, 0, 0))
    assert (load_image(_file(clear), SQUARE).pixels == 255).all()
    sideways = Image.new("RGB", (EDGE, EDGE), "black")
    sideways.paste("white", (0, 0, EDGE, EDGE // 2))
    turned = Image.Exif()
    turned[0x0112] = 3  # upside down
    pixels = load_image(_file(sideways, exif=turned), SQUARE).pixels
    assert pixels[0, 0, 0] == 0
    assert pixels[0, -1, 0] == 255


def test_a_huge_image_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files_module, "MAX_PIXELS", 99)
    with pytest.raises(ImageFileError, match=r"10x10 pixels; at most 99"):
        load_image(_file(Image.new("L", (10, 10))), SQUARE)
    # As large as PIL refuses by itself: a header is enough.
    header = bytearray(_file(Image.new("1", (8, 8)), "BMP"))
    header[18:26] = (50_000).to_bytes(4, "little") * 2
    with pytest.raises(ImageFileError, match="pixels"):
        load_image(bytes(header), SQUARE)


@pytest.mark.parametrize("image", [b"no image", None, 7, {"bytes": None, "path": None}])
def test_what_is_no_image_is_refused(image: Any) -> None:
    with pytest.raises(ImageFileError):
        load_image(image, SQUARE)


def test_a_cut_keeps_the_asked_side_and_says_where_it_was() -> None:
    image = Image.new("RGB", (96, 32), "red")
    image.paste("blue", (64, 0, 96, 32))
    right = load_image(_file(image), SQUARE, Cut(left=1.0))
    assert (right.pixels == np.array([0, 0, 255])[:, None, None]).all()
    # Height and width of the file, top and left of the cut, its height and width: as SDXL wants.
    assert right.time_ids == (32, 96, 0, 64, 32, 32)
    mirrored = load_image(_file(image), SQUARE, Cut(left=0.0, flip=True))
    assert (mirrored.pixels == right.pixels).all()
    wide = load_image(_file(image.resize((192, 64))), Size(48, 32))
    assert wide.pixels.shape == (3, 32, 48)
    assert wide.time_ids == (64, 192, 0, 24, 32, 48)


def test_a_size_is_read_upright() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # on its side
    assert read_size(_file(Image.new("RGB", (30, 20)), exif=turned)) == Size(20, 30)
    assert read_size(_file(Image.new("RGB", (30, 20)))) == Size(30, 20)
