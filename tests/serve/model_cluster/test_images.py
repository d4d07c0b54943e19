"""Images as clients see them: OpenAI's client, Ray, HAProxy, the router, a stock pipeline inside.

Each image that comes back is compared with what the stock pipeline makes alone in this process.
"""

from __future__ import annotations

import asyncio
import base64
import io
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from PIL import Image

from benchmarks.local_cluster import LocalCluster, model_application
from tests.serve.bare_cluster import install
from tests.support.image_stock import assert_same, noise, stock_image
from tests.support.tiny_images import create_pipeline, create_variant, save_lora

START_TIMEOUT_S = 300
REQUEST_TIMEOUT_S = 60
NUM_LEAVING = 200
NUM_AT_ONCE = 20


@dataclass(frozen=True)
class Service:
    """The running service.

    Attributes:
        cluster: Its cluster.
        openai: OpenAI's own client.
        http: Plain HTTP.
        stock: The same weights in this process, without the adapter.
        config: The model's configuration.
    """

    cluster: LocalCluster
    openai: openai.OpenAI
    http: httpx.Client
    stock: Any
    config: dict[str, Any]
    adapter: Path


@pytest.fixture(scope="module")
def images(bare: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("images")
    stock = create_pipeline("sdxl")
    stock.save_pretrained(folder / "weights")
    adapter = save_lora(stock, folder / "adapter", seed=1)
    config: dict[str, Any] = {
        "task": "image-generation",
        "model": {"name_or_path": str(folder / "weights")},
        "hardware": {"cpus": 1, "gpus": 0},
        "serving": {
            "max_ongoing_requests": NUM_AT_ONCE,
            "adapters": [{"name": "ink", "path": str(adapter)}],
            "engine": {
                "default_steps": 4,
                "default_size": "64x64",
                "max_pixels": 128 * 128,
                "quality_steps": {"high": 6},
            },
        },
    }
    install(bare, [model_application("painter", config)], timeout_s=START_TIMEOUT_S)
    url = f"{bare.url}/v1"
    with (
        openai.OpenAI(
            base_url=url, api_key="k", max_retries=0, timeout=REQUEST_TIMEOUT_S
        ) as client,
        httpx.Client(base_url=bare.url, timeout=REQUEST_TIMEOUT_S) as http,
    ):
        yield Service(bare, client, http, stock, config, adapter)


def opened(data: str | None) -> Image.Image:
    assert data is not None
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    image.load()
    return image


def png(image: Image.Image) -> tuple[str, bytes, str]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return ("image.png", buffer.getvalue(), "image/png")


def engine_counts(service: Service) -> dict[str, float]:
    """Returns the numbers of the model's own metrics by name and label."""
    own = {"replica": "own"}
    answer = service.http.get("/models/painter/metrics", params=own).raise_for_status()
    assert answer.headers["content-type"].startswith("text/plain")
    found = re.findall(r"^truthgpt_images_(\S+) (\S+)$", answer.text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def test_generate_with_n_and_seeds(images: Service) -> None:
    answer = images.openai.images.generate(
        model="painter", prompt="a boat", n=3, size="64x72", extra_body={"seed": 7, "steps": 5}
    )
    assert answer.data is not None
    assert len(answer.data) == 3
    for index, item in enumerate(answer.data):
        expected = stock_image(
            images.stock, 7 + index, prompt="a boat", width=64, height=72, num_inference_steps=5
        )
        assert_same(opened(item.b64_json), expected)
    assert answer.usage is not None
    assert answer.usage.output_tokens == 3 * 32 * 36
    assert answer.usage.input_tokens == 3 * len(images.stock.tokenizer("a boat").input_ids)
    assert answer.size == "64x72"


def test_defaults_quality_and_guidance(images: Service) -> None:
    answer = images.openai.images.generate(
        model="painter",
        prompt="fog",
        quality="high",
        extra_body={"seed": 1, "guidance_scale": 2, "negative_prompt": "sun"},
    )
    assert answer.data is not None
    expected = stock_image(
        images.stock,
        1,
        prompt="fog",
        negative_prompt="sun",
        guidance_scale=2.0,
        width=64,
        height=64,
        num_inference_steps=6,
    )
    assert_same(opened(answer.data[0].b64_json), expected)


def test_mixed_requests_at_once(images: Service) -> None:
    rng = random.Random(3)
    requests: list[dict[str, Any]] = [
        {
            "prompt": rng.choice(["a boat", "a tower by the sea", "fog"]),
            "steps": rng.randint(1, 9),
            "seed": rng.randrange(2**32),
            "guidance_scale": rng.choice([1.0, 2.5, 7.5]),
            "size": rng.choice([(64, 64), (64, 96), (32, 32)]),
        }
        for _ in range(12)
    ]

    async def ask() -> list[Image.Image]:
        url = f"{images.cluster.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=0) as client:
            answers = await asyncio.gather(*(generate(client, request) for request in requests))
        return [opened(answer.data[0].b64_json) for answer in answers]

    before = engine_counts(images)
    found = asyncio.run(ask())
    after = engine_counts(images)
    for request, image in zip(requests, found, strict=True):
        width, height = request["size"]
        expected = stock_image(
            images.stock,
            request["seed"],
            prompt=request["prompt"],
            width=width,
            height=height,
            guidance_scale=request["guidance_scale"],
            num_inference_steps=request["steps"],
        )
        assert_same(image, expected)
    unet = 'total{module="text-to-image.unet"}'
    calls = after[f"calls_{unet}"] - before[f"calls_{unet}"]
    forwards = after[f"forwards_{unet}"] - before[f"forwards_{unet}"]
    assert calls == sum(request["steps"] for request in requests)
    assert forwards < calls  # some steps of some requests shared a forward


async def generate(client: openai.AsyncOpenAI, request: dict[str, Any]) -> Any:
    body = {key: value for key, value in request.items() if key not in ("prompt", "size")}
    return await client.images.generate(
        model="painter",
        prompt=request["prompt"],
        size="{}x{}".format(*request["size"]),  # type: ignore[call-overload,unused-ignore]
        extra_body=body,
    )


def test_edit_inpainting_and_variation(images: Service) -> None:
    image = noise()
    edited = images.openai.images.edit(
        model="painter",
        image=png(image),
        prompt="a boat",
        extra_body={"seed": 1, "strength": 0.75},
    )
    variant = create_variant(images.stock, "image-to-image")
    expected = stock_image(variant, 1, prompt="a boat", image=image, strength=0.75)
    assert edited.data is not None
    assert_same(opened(edited.data[0].b64_json), expected)

    holes = Image.new("L", (64, 64), 0)
    holes.paste(255, (0, 0, 32, 64))
    mask = Image.new("RGBA", (64, 64), "white")
    mask.putalpha(Image.eval(holes, lambda value: 255 - value))
    painted = images.openai.images.edit(
        model="painter",
        image=png(image),
        mask=png(mask),
        prompt="a boat",
        extra_body={"seed": 2, "steps": 5},
    )
    inpaint = create_variant(images.stock, "inpainting")
    expected = stock_image(
        inpaint,
        2,
        prompt="a boat",
        image=image,
        mask_image=holes,
        width=64,
        height=64,
        num_inference_steps=5,
    )
    assert painted.data is not None
    assert_same(opened(painted.data[0].b64_json), expected)

    varied = images.http.post(  # that client calls its method for variations deprecated
        "/v1/images/variations",
        data={"model": "painter", "seed": "3", "steps": "8"},
        files={"image": png(image)},
    )
    expected = stock_image(variant, 3, prompt="", image=image, num_inference_steps=8)
    assert_same(opened(varied.json()["data"][0]["b64_json"]), expected)


def test_stream_with_partial_images(images: Service) -> None:
    events = list(
        images.openai.images.generate(
            model="painter",
            prompt="a boat",
            stream=True,
            partial_images=2,
            extra_body={"seed": 4, "steps": 6},
        )
    )
    kinds = [event.type.rpartition(".")[2] for event in events]
    assert kinds == ["partial_image", "partial_image", "completed"]
    assert all(opened(event.b64_json).size == (64, 64) for event in events)
    expected = stock_image(
        images.stock, 4, prompt="a boat", width=64, height=64, num_inference_steps=6
    )
    assert_same(opened(events[-1].b64_json), expected)


def test_an_adapter_by_weight_and_as_a_model(images: Service) -> None:
    def ask(model: str, **body: Any) -> Image.Image:
        answer = images.openai.images.generate(
            model=model, prompt="a boat", extra_body={"seed": 5, **body}
        )
        assert answer.data is not None
        return opened(answer.data[0].b64_json)

    pipeline = create_pipeline("sdxl")
    plain = stock_image(pipeline, 5, prompt="a boat", width=64, height=64)
    pipeline.load_lora_weights(str(images.adapter), adapter_name="stock-ink")
    full = stock_image(pipeline, 5, prompt="a boat", width=64, height=64)
    pipeline.set_adapters(["stock-ink"], [0.5])
    half = stock_image(pipeline, 5, prompt="a boat", width=64, height=64)
    assert_same(ask("painter"), plain)
    assert_same(ask("painter", adapters={"ink": 0.5}), half)
    assert_same(ask("ink"), full)
    assert_same(ask("painter"), plain)


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"size": "60x64"}, "size", "width 60 is not a multiple of 8"),
        ({"size": "256x256"}, "size", "more than the largest, 16384; the nearest is 128x128"),
        ({"steps": 500}, "steps", "at most 150"),
        ({"prompt": "word " * 200}, "prompt", "the text encoder reads at most 77"),
        ({"scheduler": "eulr"}, "scheduler", "did you mean 'euler'?"),
        ({"adapters": {"inc": 1}}, "adapters", "ink"),
        ({"guidance_scale": 101}, "guidance_scale", "at most 100"),
        ({"negative_prompt": "x", "guidance_scale": 1}, "negative_prompt", "no effect"),
    ],
)
def test_a_bad_request_is_named(
    images: Service, body: dict[str, Any], param: str, message: str
) -> None:
    request = {"model": "painter", "prompt": "a boat", **body}
    answer = images.http.post("/v1/images/generations", json=request)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"].startswith(param)
    assert message in error["message"]


def test_over_infer_an_image_travels_as_base64(images: Service) -> None:
    inputs = {"prompt": "a boat", "seed": 6, "width": 32, "height": 32}
    answer = images.http.post("/v1/infer", json={"model": "painter", "inputs": inputs}).json()
    outputs = answer["outputs"]
    assert outputs["seed"] == 6
    expected = stock_image(images.stock, 6, prompt="a boat", width=32, height=32)
    assert_same(opened(outputs["image"]["b64_json"]), expected)


async def leave(client: httpx.AsyncClient, number: int, rng: random.Random) -> None:
    body = {
        "model": "painter",
        "prompt": "a boat",
        "steps": rng.randint(2, 30),
        "seed": number,
        "n": rng.choice([1, 1, 2]),
        "stream": rng.random() < 0.5,
    }
    limit_s = rng.random()
    try:
        async with (
            asyncio.timeout(limit_s),
            client.stream("POST", "/v1/images/generations", json=body) as answer,
        ):
            async for _ in answer.aiter_raw():
                if rng.random() < 0.2:
                    return
    except (TimeoutError, httpx.TransportError):
        return


def test_clients_that_leave_leave_nothing(images: Service) -> None:
    rng = random.Random(0)
    before = engine_counts(images)

    async def storm() -> None:
        limits = httpx.Limits(max_connections=NUM_AT_ONCE, max_keepalive_connections=0)
        async with httpx.AsyncClient(
            base_url=images.cluster.url, timeout=REQUEST_TIMEOUT_S, limits=limits
        ) as client:
            for start in range(0, NUM_LEAVING, NUM_AT_ONCE):
                numbers = range(start, start + NUM_AT_ONCE)
                await asyncio.gather(*(leave(client, number, rng) for number in numbers))

    asyncio.run(storm())
    deadline = time.monotonic() + 30
    while True:
        now = engine_counts(images)
        if not now['jobs{state="ongoing"}'] and not now['jobs{state="queued"}']:
            break
        assert time.monotonic() < deadline, now
        time.sleep(0.1)
    cancelled = 'jobs_total{outcome="cancelled"}'
    assert now[cancelled] - before.get(cancelled, 0) > NUM_LEAVING / 20
    assert now['jobs_total{outcome="failed"}'] == before['jobs_total{outcome="failed"}']
    assert images.http.get("/models/painter/health").status_code == 200
    test_generate_with_n_and_seeds(images)


def test_the_command_line_makes_the_same_image(images: Service, tmp_path: Path) -> None:
    config = tmp_path / "painter.yaml"
    config.write_text(yaml.safe_dump(images.config))
    out = tmp_path / "boat.png"
    inputs = tmp_path / "inputs.json"
    inputs.write_text('{"prompt": "a boat", "seed": 8}')
    command = [str(Path(sys.executable).parent / "truthgpt"), "infer", str(config)]
    done = subprocess.run(
        [*command, "--inputs", str(inputs), "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = stock_image(images.stock, 8, prompt="a boat", width=64, height=64)
    assert_same(Image.open(out), expected)
