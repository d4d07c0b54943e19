"""Image routes with OpenAI's own client, against the real application under a real server."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
from PIL import Image, ImageChops

from tests.support.image_classes import Batching, Odd, Plain, Studio
from tests.support.image_files import create_image, encode, mask_png, png
from tests.support.servers import serve_asgi
from truthgpt_serve.contract import FamilySpec
from truthgpt_serve.server import create_app

PROMPT = "a red square"


def image_spec(cls: type, **options: Any) -> FamilySpec:
    path = f"sample:{cls.__name__}"
    return FamilySpec(name="sample", class_path=path, model_class=cls, **options)


@contextmanager
def image_server(
    cls: type, serving: dict[str, Any] | None = None, **options: Any
) -> Iterator[openai.OpenAI]:
    """Serves a class as `painter`; yields OpenAI's client for it."""
    cfg = {"task": "image-generation", "serving": serving or {}}
    app = create_app(image_spec(cls, **options), cfg, name="painter")
    with (
        serve_asgi(app, lifespan="on") as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0, timeout=20) as client,
    ):
        yield client


def opened(data: str | bytes | None) -> Image.Image:
    assert data is not None
    raw = base64.b64decode(data) if isinstance(data, str) else data
    image = Image.open(io.BytesIO(raw))
    image.load()
    return image


@pytest.fixture(scope="module")
def plain() -> Iterator[openai.OpenAI]:
    with image_server(Plain) as client:
        yield client


@pytest.fixture(scope="module")
def studio() -> Iterator[openai.OpenAI]:
    with image_server(Studio) as client:
        yield client


# -- generations


def test_a_class_with_only_infer_makes_images(plain: openai.OpenAI) -> None:
    before = int(time.time())
    answer = plain.images.generate(model="painter", prompt=PROMPT)
    assert Plain.last.inputs[-1] == {"prompt": PROMPT, "steps": 30}
    assert before <= answer.created <= time.time()
    assert answer.size == "48x32"
    assert (answer.output_format, answer.background) == ("png", "opaque")
    assert (answer.quality, answer.usage) == (None, None)
    assert answer.data is not None
    [item] = answer.data
    assert item.url is None
    image = opened(item.b64_json)
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (48, 32))
    assert image.getpixel((0, 0)) == (1, 2, 3)
    assert image.getpixel((5, 5)) == (0, 30, len(PROMPT))


def test_every_field_reaches_the_class(studio: openai.OpenAI) -> None:
    answer = studio.images.generate(
        model="painter",
        prompt=PROMPT,
        size="64x48",
        quality="high",
        background="auto",
        moderation="low",
        style="vivid",
        user="me",
        extra_body={
            "steps": 9,
            "guidance_scale": 3,
            "seed": 2**53 - 1,
            "negative_prompt": "",
            "scheduler": "euler",
            "adapters": {"ink": 0.5, "oil": -1},
        },
    )
    assert Studio.last.inputs[-1] == {
        "prompt": PROMPT,
        "width": 64,
        "height": 48,
        "quality": "high",
        "steps": 9,
        "guidance_scale": 3.0,
        "seed": 2**53 - 1,
        "negative_prompt": "",
        "scheduler": "euler",
        "adapters": {"ink": 0.5, "oil": -1.0},
    }
    assert (answer.size, answer.quality) == ("64x48", "high")


def test_null_and_auto_mean_nothing(studio: openai.OpenAI) -> None:
    body: dict[str, Any] = {
        "model": "painter",
        "prompt": PROMPT,
        "size": "auto",
        "quality": "auto",
        "n": None,
    }
    body |= {"seed": 3, "svg": None, "stream": None, "steps": None, "adapters": ["ink", "oil"]}
    assert httpx.post(f"{studio.base_url}images/generations", json=body).status_code == 200
    assert Studio.last.inputs[-1] == {
        "prompt": PROMPT,
        "seed": 3,
        "adapters": {"ink": 1.0, "oil": 1.0},
    }


def test_a_whole_number_may_be_written_with_a_point(studio: openai.OpenAI) -> None:
    answer = studio.images.generate(
        model="painter", prompt=PROMPT, extra_body={"n": 2.0, "seed": 11.0}
    )
    assert answer.data is not None
    assert [item.to_dict()["seed"] for item in answer.data] == [11, 12]


def test_image_i_of_n_has_seed_plus_i(studio: openai.OpenAI) -> None:
    answer = studio.images.generate(model="painter", prompt=PROMPT, n=4, extra_body={"seed": 11})
    assert answer.data is not None
    assert [opened(item.b64_json).getpixel((5, 5)) for item in answer.data] == [
        (11 + index, 4, len(PROMPT)) for index in range(4)
    ]
    assert [item.to_dict()["seed"] for item in answer.data] == [11, 12, 13, 14]
    assert answer.usage is not None
    assert answer.usage.input_tokens == 4 * 3
    assert answer.usage.output_tokens == 4 * 7
    assert answer.usage.total_tokens == 4 * 10
    assert answer.usage.input_tokens_details.text_tokens == 4 * 3


def test_a_seed_is_drawn_for_a_class_that_takes_one(studio: openai.OpenAI) -> None:
    seeds = []
    for _ in range(3):
        answer = studio.images.generate(model="painter", prompt=PROMPT, n=2)
        assert answer.data is not None
        first, second = (item.to_dict()["seed"] for item in answer.data)
        assert isinstance(first, int)
        assert second == first + 1
        assert 0 <= first <= 2**53 - 2
        seeds.append(first)
    assert len(set(seeds)) == 3


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_formats(studio: openai.OpenAI, form: Any) -> None:
    sizes = []
    for compression in (100, 5) if form != "png" else (100,):
        answer = studio.images.edit(  # gives the image back
            model="painter",
            image=png(128, 128),
            prompt=PROMPT,
            output_format=form,
            output_compression=compression,
        )
        assert answer.output_format == form
        assert answer.data is not None
        image = opened(answer.data[0].b64_json)
        assert (image.format, image.mode, image.size) == (form.upper(), "RGB", (128, 128))
        if form == "png":
            assert ImageChops.difference(image, create_image(128, 128)).getbbox() is None
        sizes.append(len(answer.data[0].b64_json or ""))
    assert form == "png" or sizes[0] > 2 * sizes[1]


@pytest.mark.parametrize(
    ("prompt", "options", "mode", "pixel"),
    [
        ("rgba", {}, "RGBA", (255, 0, 0, 0)),
        ("rgba", {"background": "opaque"}, "RGB", (255, 255, 255)),
        ("rgba", {"output_format": "jpeg"}, "RGB", (255, 255, 255)),
        ("rgba", {"output_format": "webp"}, "RGBA", (255, 0, 0, 0)),
        ("gray", {}, "L", 77),
        ("gray", {"output_format": "webp"}, "RGB", (77, 77, 77)),
        ("float", {}, "RGB", (77, 77, 77)),
        ("cmyk", {}, "RGB", (255, 0, 0)),
    ],
)
def test_results_of_other_modes(
    prompt: str, options: dict[str, Any], mode: str, pixel: Any
) -> None:
    with image_server(Odd) as client:
        answer = client.images.generate(model="painter", prompt=prompt, **options)
    assert answer.data is not None
    image = opened(answer.data[0].b64_json)
    assert image.mode == mode
    found = image.getpixel((3, 3))
    if mode == "RGBA":
        assert isinstance(found, tuple)
        assert found[3] == 0
    elif isinstance(pixel, int):
        assert found == pixel
    else:
        assert isinstance(found, tuple)
        assert all(abs(int(a) - b) <= 3 for a, b in zip(found, pixel, strict=True))
    assert answer.background == ("transparent" if mode == "RGBA" else "opaque")


def test_requests_are_batched_for_a_class_that_batches() -> None:
    serving = {"batching": {"max_batch_size": 4, "batch_wait_timeout_s": 0.05}}
    with image_server(Batching, serving) as client, ThreadPoolExecutor(4) as threads:
        one = client.images.generate(model="painter", prompt=PROMPT, n=4, extra_body={"seed": 1})
        assert [entry["size"] for entry in Batching.last.inputs] == [4]
        Batching.last.inputs.clear()
        many = list(
            threads.map(
                lambda seed: client.images.generate(
                    model="painter", prompt=PROMPT, extra_body={"seed": seed}
                ),
                range(1, 5),
            )
        )
        assert max(entry["size"] for entry in Batching.last.inputs) > 1
    assert one.data is not None
    alone = [answer.data[0].b64_json for answer in many if answer.data]
    assert [item.b64_json for item in one.data] == alone


def test_more_images_than_places_are_no_overload(plain: openai.OpenAI) -> None:
    with ThreadPoolExecutor(2) as threads:
        answers = list(
            threads.map(
                lambda seed: plain.images.generate(
                    model="painter", prompt=PROMPT, n=10, extra_body={"seed": seed}
                ),
                (0, 100),
            )
        )
    for answer, seed in zip(answers, (0, 100), strict=True):
        assert answer.data is not None
        colors = [opened(item.b64_json).getpixel((5, 5)) for item in answer.data]
        assert colors == [(seed + index, 30, len(PROMPT)) for index in range(10)]


# -- edits and variations


def test_an_edit_gets_image_mask_and_fields(studio: openai.OpenAI) -> None:
    answer = studio.images.edit(
        model="painter",
        image=png(),
        mask=mask_png(),
        prompt=PROMPT,
        n=2,
        size="64x64",
        quality="low",
        input_fidelity="low",
        extra_body={
            "seed": 5,
            "steps": 3,
            "strength": 0.75,
            "guidance_scale": 7.5,
            "negative_prompt": "blue",
            "adapters": {"ink": 0.5, "a b": 2},
        },
    )
    first, second = sorted(Studio.last.inputs[-2:], key=lambda inputs: inputs["seed"])
    for inputs, seed in ((first, 5), (second, 6)):
        mask, image = inputs.pop("mask"), inputs.pop("image")
        assert inputs == {
            "operation": "edit",
            "prompt": PROMPT,
            "width": 64,
            "height": 64,
            "quality": "low",
            "seed": seed,
            "steps": 3,
            "strength": 0.75,
            "guidance_scale": 7.5,
            "negative_prompt": "blue",
            "adapters": {"ink": 0.5, "a b": 2.0},
        }
        assert (image.mode, image.size) == ("RGB", (40, 30))
        assert ImageChops.difference(image, create_image()).getbbox() is None
        assert (mask.mode, mask.size) == ("L", (40, 30))
        assert mask.getpixel((5, 5)) == 255, "what is transparent is painted anew"
        assert mask.getpixel((35, 5)) == 0
    assert answer.data is not None
    assert ImageChops.difference(opened(answer.data[1].b64_json), create_image()).getbbox() is None


def test_images_of_one_request_do_not_share_their_uploads(studio: openai.OpenAI) -> None:
    Studio.last.inputs.clear()
    studio.images.edit(model="painter", image=png(), prompt=PROMPT, n=2)
    first, second = Studio.last.inputs
    assert first["image"] is not second["image"]


def test_an_edit_of_several_images(studio: openai.OpenAI) -> None:
    answer = studio.images.edit(
        model="painter",
        image=[png(), ("photo.jpg", encode(create_image(20, 10), "JPEG"), "image/jpeg")],
        mask=mask_png(),
        prompt=PROMPT,
        extra_body={"adapters": ["ink", "oil"]},
    )
    inputs = Studio.last.inputs[-1]
    assert [image.size for image in inputs["image"]] == [(40, 30), (20, 10)]
    assert inputs["mask"].size == (40, 30)
    assert inputs["adapters"] == {"ink": 1.0, "oil": 1.0}
    assert answer.size == "40x30"


def test_a_variation(studio: openai.OpenAI) -> None:
    with pytest.deprecated_call():  # by OpenAI, whose own models have none any more
        answer = studio.images.create_variation(
            model="painter",
            image=io.BytesIO(png()),
            n=1,
            size="256x256",
            extra_body={"strength": 1},
        )
    inputs = dict(Studio.last.inputs[-1])
    assert inputs.pop("image").size == (40, 30)
    assert isinstance(inputs.pop("seed"), int)
    assert inputs == {
        "operation": "variation",
        "prompt": "",
        "width": 256,
        "height": 256,
        "strength": 1.0,
    }
    assert answer.data is not None
    assert opened(answer.data[0].b64_json).size == (40, 30)


def test_form_fields_may_be_json(studio: openai.OpenAI) -> None:
    answer = httpx.post(
        f"{studio.base_url}images/edits",
        data={
            "prompt": "Grüße",
            "adapters": '{"ink": 0.25}',
            "model": "painter",
            "stream": "0",
            "n": "1",
        },
        files={"image": ("x", png())},
    )
    assert answer.status_code == 200, answer.text
    assert Studio.last.inputs[-1]["adapters"] == {"ink": 0.25}
    assert Studio.last.inputs[-1]["prompt"] == "Grüße"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_uploads_of_other_modes_become_rgb(studio: openai.OpenAI, mode: str) -> None:
    if mode == "I;16":
        image = Image.new("I;16", (4, 4), 128 * 256)
        expected: tuple[int, ...] = (128, 128, 128)
    else:
        image = Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode)
        expected = (255, 255, 255)
    form = "JPEG" if mode == "CMYK" else "PNG"
    studio.images.edit(model="painter", image=encode(image, form), prompt=PROMPT)
    got = Studio.last.inputs[-1]["image"]
    assert got.mode == "RGB"
    assert got.getpixel((1, 1)) == expected


def test_transparency_of_an_image_is_laid_over_white(studio: openai.OpenAI) -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    studio.images.edit(model="painter", image=encode(image), prompt=PROMPT)
    assert Studio.last.inputs[-1]["image"].getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_upright(studio: openai.OpenAI, orientation: int) -> None:
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,  # the camera's 6 says: turn 270 degrees to see it upright
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = (
        create_image().transpose(turns[orientation]) if orientation in turns else create_image()
    )
    exif = Image.Exif()
    exif[0x0112] = orientation
    studio.images.edit(model="painter", image=encode(stored, exif=exif), prompt=PROMPT)
    assert ImageChops.difference(Studio.last.inputs[-1]["image"], create_image()).getbbox() is None


def test_a_photograph_with_a_preview_is_its_first_image(studio: openai.OpenAI) -> None:
    photo = encode(
        create_image(), "MPO", save_all=True, append_images=[create_image(20, 15)], quality=95
    )
    studio.images.edit(model="painter", image=photo, prompt=PROMPT)
    assert Studio.last.inputs[-1]["image"].size == (40, 30)


def test_soft_masks_stay_soft(studio: openai.OpenAI) -> None:
    mask = Image.new("LA", (40, 30), (0, 200))
    studio.images.edit(
        model="painter", image=png(), mask=encode(mask, "WEBP", lossless=True), prompt=PROMPT
    )
    assert Studio.last.inputs[-1]["mask"].getpixel((3, 3)) == 55


# -- adapters


def test_the_adapters_of_a_family_are_model_names_and_weights() -> None:
    serving = {"adapters": [{"name": "ink", "path": "x"}, {"name": "oil", "path": "y"}]}
    with image_server(Studio, serving, takes_adapters=True) as client:
        client.images.generate(model="ink", prompt=PROMPT)
        assert Studio.last.inputs[-1]["adapters"] == {"ink": 1.0}
        client.images.generate(model="ink", prompt=PROMPT, extra_body={"adapters": {"oil": 0.5}})
        assert Studio.last.inputs[-1]["adapters"] == {"ink": 1.0, "oil": 0.5}
        client.images.generate(model="ink", prompt=PROMPT, extra_body={"adapters": {"ink": 0.5}})
        assert Studio.last.inputs[-1]["adapters"] == {"ink": 0.5}
        with pytest.raises(openai.BadRequestError) as caught:
            client.images.generate(model="painter", prompt="x", extra_body={"adapters": ["wax"]})
    assert caught.value.body == {
        "message": "there is no adapter 'wax'; those of this model: ink, oil",
        "type": "invalid_request_error",
        "param": "adapters",
        "code": None,
    }
