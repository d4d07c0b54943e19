"""The family's class with its real engine: images equal the stock pipeline's, nothing is left."""

from __future__ import annotations

import asyncio
import json
import random
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from deployments.hf_diffusers.deployment import DiffusersModel
from deployments.hf_diffusers.stepping import NotFiniteError
from tests.support.image_models import make_cfg, open_model, save_model
from tests.support.image_stock import assert_same, noise
from tests.support.image_stock import stock_image as stock_image_of
from tests.support.tiny_images import create_pipeline, create_variant, save_lora
from truthgpt_serve.errors import (
    ConfigError,
    OverloadedError,
    RequestError,
    ServerError,
    UnavailableError,
)
from truthgpt_serve.usage.counted import Usage, counting

SETTINGS = {"default_steps": 3, "default_size": "64x64", "quality_steps": {"high": 5}}
SLACK_S = 20

stock_image = partial(stock_image_of, num_inference_steps=SETTINGS["default_steps"])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("sdxl", tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    pipeline = create_pipeline("sdxl")
    folder = tmp_path_factory.mktemp("adapters")
    paths = {name: save_lora(pipeline, folder / name, seed) for seed, name in enumerate("ab")}
    return [{"name": name, "path": str(path)} for name, path in paths.items()]


@pytest.fixture(scope="module")
def stock(weights: Path, adapters: list[dict[str, str]]) -> DiffusionPipeline:
    pipeline = DiffusionPipeline.from_pretrained(weights)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def model(weights: Path, adapters: list[dict[str, str]]) -> Iterator[DiffusersModel]:
    with open_model(make_cfg(weights, SETTINGS, serving={"adapters": adapters})) as model:
        yield model


def engine_of(model: DiffusersModel) -> Any:
    return model._engine


async def test_images_equal_the_stock_pipelines(
    model: DiffusersModel, stock: DiffusionPipeline
) -> None:
    requests: list[dict[str, Any]] = [
        {"prompt": "a boat", "seed": 1},
        {"prompt": "a tower by the sea", "seed": 2, "steps": 6, "guidance_scale": 2.5},
        {"prompt": "fog", "seed": 3, "width": 96, "height": 32, "negative_prompt": "sun"},
        {"prompt": "fog", "seed": 4, "guidance_scale": 1.0, "quality": "high"},
    ]
    answers = await asyncio.gather(*(model.infer(request) for request in requests))
    names = {"steps": "num_inference_steps"}
    for request, answer in zip(requests, answers, strict=True):
        arguments = {"width": 64, "height": 64}
        arguments |= {names.get(key, key): value for key, value in request.items()}
        if arguments.pop("quality", None):
            arguments["num_inference_steps"] = 5
        assert_same(answer["image"], stock_image(stock, **arguments))
        assert answer["seed"] == request["seed"]
        assert (
            answer["usage"]["output_tokens"] == answer["image"].width * answer["image"].height // 4
        )


async def test_edits_and_inpainting_equal_the_stock_pipelines(
    model: DiffusersModel, stock: DiffusionPipeline
) -> None:
    image, mask = noise(), Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 40, 24))
    edited, painted, varied = await asyncio.gather(
        model.infer({"prompt": "a boat", "image": image, "strength": 0.7, "seed": 1}),
        model.infer({"prompt": "a boat", "image": image, "mask": mask, "seed": 1, "steps": 4}),
        model.infer({"operation": "variation", "image": image, "seed": 2, "steps": 5}),
    )
    img2img, inpaint = (create_variant(stock, task) for task in ("image-to-image", "inpainting"))
    assert_same(
        edited["image"], stock_image(img2img, 1, prompt="a boat", image=image, strength=0.7)
    )
    assert_same(
        painted["image"],
        stock_image(
            inpaint,
            1,
            prompt="a boat",
            image=image,
            mask_image=mask,
            num_inference_steps=4,
            width=64,
            height=64,
        ),
    )
    assert_same(
        varied["image"], stock_image(img2img, 2, prompt="", image=image, num_inference_steps=5)
    )
    assert model.operations == ("generation", "edit", "variation")


@pytest.mark.parametrize("name", ["ddim", "euler-ancestral", "dpm++", "dpm++-single", "heun"])
async def test_schedulers_by_name(model: DiffusersModel, weights: Path, name: str) -> None:
    capabilities = engine_of(model).capabilities
    alone = DiffusionPipeline.from_pretrained(weights)
    alone.set_progress_bar_config(disable=True)
    alone.scheduler = capabilities.schedulers.make(name, 3)
    answer = await model.infer({"prompt": "a boat", "seed": 5, "scheduler": name})
    expected = stock_image(alone, 5, prompt="a boat", width=64, height=64)
    assert_same(answer["image"], expected)


@pytest.mark.long("runs every scheduler")
async def test_every_scheduler_makes_an_image_in_few_steps(model: DiffusersModel) -> None:
    requests = [
        {"prompt": "a boat", "seed": 1, "scheduler": name, "steps": steps}
        for name in engine_of(model).capabilities.schedulers.names
        for steps in (4 if name == "pndm" else 1, 5)
    ]
    answers = await asyncio.gather(*map(model.infer, requests), return_exceptions=True)
    failed = [
        (r["scheduler"], r["steps"], a)
        for r, a in zip(requests, answers, strict=True)
        if isinstance(a, BaseException)
    ]
    assert failed == []


async def test_a_scheduler_that_needs_more_steps_says_so(model: DiffusersModel) -> None:
    with pytest.raises(RequestError, match="'pndm' cannot make an image in 3 steps") as caught:
        await model.infer({"prompt": "a boat", "scheduler": "pndm", "steps": 3})
    assert caught.value.param == "steps"


async def test_adapters_change_one_request_only(
    model: DiffusersModel, weights: Path, adapters: list[dict[str, str]]
) -> None:
    mixes: list[dict[str, float]] = [{}, {"a": 1.0}, {"a": 0.5, "b": -1.0}, {}]
    answers = await asyncio.gather(
        *(model.infer({"prompt": "a boat", "seed": 3, "adapters": mix}) for mix in mixes)
    )
    alone = DiffusionPipeline.from_pretrained(weights)
    alone.set_progress_bar_config(disable=True)
    expected = [stock_image(alone, 3, prompt="a boat", width=64, height=64)]
    for adapter in adapters:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
            alone.load_lora_weights(adapter["path"], adapter_name=f"stock-{adapter['name']}")
    for mix in mixes[1:3]:
        alone.set_adapters([f"stock-{name}" for name in mix], list(mix.values()))
        expected.append(stock_image(alone, 3, prompt="a boat", width=64, height=64))
    for answer, image in zip(answers, [*expected, expected[0]], strict=True):
        assert_same(answer["image"], image)
    assert np.abs(np.asarray(expected[0], int) - np.asarray(expected[1], int)).max() > 3


async def test_a_stream_tells_steps_and_images(model: DiffusersModel) -> None:
    request = {"prompt": "a boat", "seed": 1, "steps": 6, "partial_images": 2}
    items = [item async for item in model.stream(request)]
    steps = [item["step"] for item in items if "step" in item]
    assert steps == sorted(steps)
    assert all(item["num_steps"] == 6 for item in items if "step" in item)
    partial = [item for item in items if "partial_image" in item]
    assert [item["index"] for item in partial] == [0, 1]
    assert all(item["partial_image"].size == (64, 64) for item in partial)
    assert_same(items[-1]["image"], (await model.infer({**request, "partial_images": 0}))["image"])


async def test_wrong_inputs_are_refused_before_the_engine(model: DiffusersModel) -> None:
    before = engine_of(model).statistics().submitted
    with pytest.raises(RequestError, match="at most 150"):
        await model.infer({"prompt": "a boat", "steps": 1000})
    with pytest.raises(RequestError, match="no adapter"):
        await model.infer({"prompt": "a boat", "adapters": {"c": 1}})
    assert engine_of(model).statistics().submitted == before
    assert model.ongoing == 0


async def leave(model: DiffusersModel, number: int, rng: random.Random) -> None:
    """Starts a request and cancels it at some time; one in eight stays to the end."""
    request = {"prompt": "a boat", "seed": number, "steps": rng.randint(2, 12)}
    task: asyncio.Future[Any]
    if rng.random() < 0.5:
        task = asyncio.ensure_future(model.infer(request))
    else:
        task = asyncio.ensure_future(read_all(model, {**request, "partial_images": 1}))
    if rng.random() > 0.125:
        await asyncio.sleep(rng.random() * 0.4)
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled() or task.exception() is None


async def read_all(model: DiffusersModel, request: dict[str, Any]) -> list[Any]:
    return [item async for item in model.stream(request)]


@pytest.mark.long("cancels many requests")
async def test_requests_that_leave_leave_nothing(model: DiffusersModel) -> None:
    rng = random.Random(0)
    before = engine_of(model).statistics()
    for _ in range(4):
        await asyncio.gather(*(leave(model, number, rng) for number in range(20)))
    async with asyncio.timeout(SLACK_S):
        while (now := engine_of(model).statistics()).ongoing or now.queued:
            await asyncio.sleep(0.01)
    assert model.ongoing == 0
    assert now.cancelled > before.cancelled
    assert now.completed > before.completed
    assert now.failed == before.failed
    ended = now.completed + now.cancelled - before.completed - before.cancelled
    assert ended == now.submitted - before.submitted


async def test_an_image_that_is_stopped_counts_with_the_steps_made(model: DiffusersModel) -> None:
    num_steps = 150
    before, usage = sum(engine_of(model).statistics().forwards.values()), Usage()
    with counting(usage):
        task = asyncio.ensure_future(model.infer({"prompt": "a boat", "steps": num_steps}))
    async with asyncio.timeout(SLACK_S):
        while sum(engine_of(model).statistics().forwards.values()) < before + 8:
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    steps = usage.megapixel_steps * 1e6 / (64 * 64)
    assert 3 <= steps < num_steps
    assert steps == pytest.approx(round(steps))
    assert usage.images == 0
    whole = await model.infer({"prompt": "a boat", "quality": "high"})
    assert whole["num_steps"] == 5


@pytest.mark.long("loads every architecture")
@pytest.mark.parametrize("kind", ["sd", "sd3", "flux", "qwen", "zimage", "sana", "pixart"])
async def test_every_architecture_is_served_as_it_is_loaded(kind: str, tmp_path: Path) -> None:
    steps = 1 if kind == "sana" else 3  # Sana's pipeline makes 512 pixels of any smaller image
    with open_model(make_cfg(save_model(kind, tmp_path), SETTINGS)) as model:
        request = {"prompt": "a boat", "seed": 1, "guidance_scale": 2, "steps": steps}
        answer = await model.infer(request)
        fixed = engine_of(model).capabilities.info["text-to-image"].fixed
    alone = DiffusionPipeline.from_pretrained(tmp_path)
    alone.set_progress_bar_config(disable=True)
    more: dict[str, Any] = {"guidance_scale": 2.0}
    if kind == "qwen":
        more = {"true_cfg_scale": 2.0, "negative_prompt": " "}
    more |= {"width": 64, "height": 64, "num_inference_steps": steps, **fixed}
    expected = stock_image(alone, 1, prompt="a boat", **more)
    assert_same(answer["image"], expected)


async def test_profiling_at_start_writes_what_it_measured(weights: Path, tmp_path: Path) -> None:
    file = tmp_path / "caps.json"
    profile = {"profile_rows": True, "row_caps_file": str(file), "max_rows": 4}
    with open_model(make_cfg(weights, {**SETTINGS, **profile})) as model:
        before = engine_of(model).statistics()
        assert before.ongoing == before.queued == 0
        assert (await model.infer({"prompt": "a boat"}))["image"].size == (64, 64)
    assert json.loads(file.read_text())


async def test_a_model_that_is_full_says_so(weights: Path) -> None:
    cfg = make_cfg(weights, SETTINGS, serving={"max_ongoing_requests": 1})
    with open_model(cfg) as model:
        requests = [model.infer({"prompt": "a boat", "seed": n}) for n in range(20)]
        answers = await asyncio.gather(*requests, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, OverloadedError)]
        made = [answer for answer in answers if isinstance(answer, dict)]
        assert len(refused) + len(made) == 20
        assert len(made) >= 10
        assert refused
        assert all(error.retry_after_s == 1 for error in refused)
        assert model.ongoing == 0


async def test_nan_is_an_error_not_a_black_image(weights: Path) -> None:
    with open_model(make_cfg(weights, SETTINGS)) as model:
        engine = engine_of(model)
        unet = engine._loaded.base.unet
        with torch.no_grad():
            unet.conv_out.bias.fill_(float("nan"))
        with pytest.raises(ServerError, match="the model gave no image") as caught:
            await model.infer({"prompt": "a boat"})
    assert isinstance(caught.value.__cause__, NotFiniteError)
    assert caught.value.code == "not_finite"


async def test_a_closed_model_serves_nothing(weights: Path) -> None:
    with open_model(make_cfg(weights, SETTINGS)) as model:
        model.check_health()
        running = asyncio.ensure_future(model.infer({"prompt": "a boat", "steps": 150}))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(model.close)
        model.close()
        with pytest.raises((UnavailableError, asyncio.CancelledError)):
            await running
        with pytest.raises(UnavailableError):
            await model.infer({"prompt": "a boat"})


async def test_a_controlnet_by_configuration(tmp_path: Path) -> None:
    whole = create_pipeline("sd-controlnet")
    whole.controlnet.save_pretrained(tmp_path / "controlnet")
    cfg = make_cfg(
        save_model("sd", tmp_path / "sd"), {**SETTINGS, "controlnet": str(tmp_path / "controlnet")}
    )
    base = DiffusionPipeline.from_pretrained(tmp_path / "sd")
    base.set_progress_bar_config(disable=True)
    control = type(whole)(
        **{**base.components, "controlnet": whole.controlnet, "requires_safety_checker": False}
    )
    control.set_progress_bar_config(disable=True)
    with open_model(cfg) as model:
        guided, plain = await asyncio.gather(
            model.infer({"prompt": "a boat", "seed": 1, "image": noise(), "control_scale": 0.8}),
            model.infer({"prompt": "a boat", "seed": 1}),
        )
    expected = stock_image(
        control,
        1,
        prompt="a boat",
        image=noise(),
        width=64,
        height=64,
        controlnet_conditioning_scale=0.8,
    )
    assert_same(guided["image"], expected)
    assert_same(plain["image"], stock_image(base, 1, prompt="a boat", width=64, height=64))


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.name_or_path: 'org/none'.* cannot be downloaded"):
        DiffusersModel().load(make_cfg("org/none"))
    with pytest.raises(ConfigError, match="cannot be loaded as a Diffusers pipeline"):
        DiffusersModel().load(make_cfg(tmp_path))


def test_what_an_image_takes_is_known_before_it_is_made(weights: Path) -> None:
    with open_model(make_cfg(weights, SETTINGS)) as model:
        assert model.expected_work({"prompt": "a"}) == (3, 64 * 64)
        assert model.expected_work({"prompt": "a", "quality": "high"}) == (5, 64 * 64)
        asked = {"prompt": "a", "steps": 7, "width": 128, "height": 64}
        assert model.expected_work(asked) == (7, 128 * 64)
        upload = Image.new("RGB", (96, 64))
        assert model.expected_work({"prompt": "a", "image": upload}) == (3, 96 * 64)
        with pytest.raises(RequestError, match="quality"):
            model.expected_work({"prompt": "a", "quality": "none"})
