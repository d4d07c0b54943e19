"""What a request's inputs become, on real tiny pipelines; no image is made here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deployments.hf_diffusers.config import DiffusersSettings
from deployments.hf_diffusers.inputs.prompts import PromptCounter
from deployments.hf_diffusers.inputs.requests import Capabilities, ImageCall, plan_call
from deployments.hf_diffusers.pipelines.derived import derive_pipelines
from deployments.hf_diffusers.pipelines.info import read_info
from deployments.hf_diffusers.pipelines.schedulers import Schedulers
from tests.support.tiny_images import create_pipeline
from truthgpt_serve.errors import ConfigError, RequestError

LONG = "word " * 100
PIPELINES: dict[str, Any] = {}


def pipeline_of(kind: str) -> Any:
    if kind not in PIPELINES:
        PIPELINES[kind] = create_pipeline(kind)
    return PIPELINES[kind]


def make_capabilities(kind: str = "sd", **settings: Any) -> Capabilities:
    base = pipeline_of(kind)
    info = {name: read_info(pipe, name) for name, pipe in derive_pipelines(base).items()}
    checked = DiffusersSettings.model_validate(settings)
    counter = PromptCounter(base, checked.max_prompt_tokens, next(iter(info.values())).defaults)
    schedulers = Schedulers(base.scheduler, checked.schedulers)
    return Capabilities(info, checked, counter, schedulers, ("ink", "oil"))


@pytest.fixture(scope="module")
def capabilities() -> Iterator[Capabilities]:
    yield make_capabilities(max_pixels=128 * 128, quality_steps={"low": 3})
    PIPELINES.clear()


def create_image(width: int = 64, height: int = 48, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def plan(capabilities: Capabilities, **inputs: Any) -> ImageCall:
    return plan_call({"prompt": "a boat", **inputs}, capabilities)


def refusal(capabilities: Capabilities, **inputs: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        plan(capabilities, **inputs)
    assert caught.value.status == 400
    return caught.value


def test_arguments_of_the_stock_call(capabilities: Capabilities) -> None:
    call = plan(
        capabilities, steps=7, width=64, height=72, seed=5, guidance_scale=3, negative_prompt="fog"
    )
    generator = call.arguments.pop("generator")()
    assert call.arguments == {
        "prompt": "a boat",
        "negative_prompt": "fog",
        "num_inference_steps": 7,
        "width": 64,
        "height": 72,
        "guidance_scale": 3.0,
        "output_type": "pt",
    }
    assert call.pipeline == "text-to-image"
    assert (call.options.num_steps, call.seed) == (7, 5)
    expected = torch.Generator("cpu").manual_seed(5)
    assert torch.equal(torch.rand(4, generator=generator), torch.rand(4, generator=expected))


def test_defaults(capabilities: Capabilities) -> None:
    call = plan(capabilities, quality=None)
    assert call.arguments["num_inference_steps"] == 50
    assert (call.arguments["width"], call.arguments["height"]) == (32, 32)
    assert "guidance_scale" not in call.arguments
    assert 0 <= call.seed < 2**32
    assert plan(capabilities).seed != call.seed
    settings = make_capabilities(default_steps=9, default_size="64x128", default_guidance_scale=2)
    arguments = plan(settings).arguments
    assert (arguments["num_inference_steps"], arguments["guidance_scale"]) == (9, 2.0)
    assert (arguments["width"], arguments["height"]) == (64, 128)


def test_quality_is_steps_and_steps_win(capabilities: Capabilities) -> None:
    assert plan(capabilities, quality="low").options.num_steps == 3
    assert plan(capabilities, quality="auto").options.num_steps == 50
    assert plan(capabilities, quality="hd").options.num_steps == 75
    assert plan(make_capabilities(default_steps=9), quality="low").options.num_steps == 5
    assert plan(make_capabilities(max_steps=60), quality="max").options.num_steps == 60
    assert plan(capabilities, quality="low", steps=4).options.num_steps == 4
    assert "did you mean 'low'?" in refusal(capabilities, quality="lo").message


@pytest.mark.parametrize(
    ("inputs", "param", "message"),
    [
        ({"width": 60}, "size", "width 60 is not a multiple of 8"),
        ({"width": 60}, "size", "the nearest is 64x32"),
        ({"width": 16, "height": 16}, "size", "the least, 32; the nearest is 32x32"),
        ({"width": 8000}, "size", "width 8000 is more than the largest"),
        ({"width": 256, "height": 256}, "size", "65536 pixels, more than the largest, 16384"),
        ({"width": 256, "height": 256}, "size", "the nearest is 128x128"),
        ({"width": "64"}, "width", "a whole number, not '64'"),
        ({"steps": 151}, "steps", "at most 150"),
        ({"steps": 0}, "steps", "at least 1"),
        ({"steps": True}, "steps", "a whole number, not true"),
        ({"seed": -1}, "seed", "at least 0"),
        ({"seed": 2**53}, "seed", "at most 9007199254740991"),
        ({"guidance_scale": 101}, "guidance_scale", "at most 100"),
        ({"guidance_scale": float("nan")}, "guidance_scale", "a finite number"),
        ({"negative_prompt": "x", "guidance_scale": 1}, "negative_prompt", "raise it above 1"),
        ({"prompt": LONG}, "prompt", "tokens, and the text encoder reads at most 77"),
        ({"negative_prompt": LONG}, "negative_prompt", "`negative_prompt` has"),
        ({"prompt": None}, "prompt", "is required"),
        ({"prompt": ["a"]}, "prompt", "a string, not a list"),
        ({"scheduler": "eulr"}, "scheduler", "did you mean 'euler'?"),
        ({"scheduler": "flow-euler"}, "scheduler", "it has ddim, "),
        ({"adapters": {"inc": 1}}, "adapters", "did you mean 'ink'?"),
        ({"adapters": {"ink": 101}}, "adapters.ink", "must be at most 100, not 101"),
        ({"adapters": {"ink": "1"}}, "adapters.ink", "must be a number"),
        ({"adapters": ["ink"]}, "adapters", "must be an object, not a list"),
        ({"strength": 0.5}, "strength", "no effect for text-to-image"),
        ({"mask": create_image()}, "mask", "needs the `image`"),
        ({"operation": "edit"}, "image", "is required for an edit"),
        ({"operation": "paint"}, "operation", "known: generation, edit"),
        ({"operation": "generation", "image": create_image()}, "image", "belongs to an edit"),
        ({"image": "a.png"}, "image", "an image, not 'a.png'"),
        ({"image": [create_image(), create_image()]}, "image", "holds 2 images"),
        (
            {"image": create_image(), "mask": create_image(32, 32)},
            "mask",
            "is 32x32 and `image` 64x48",
        ),
        ({"image": create_image(), "strength": 0}, "strength", "must be more than 0, not 0"),
        ({"image": create_image(), "strength": 0.1, "steps": 5}, "strength", "at least 10 steps"),
        ({"image": create_image(), "strength": 1e-9}, "strength", "leaves none: use more strength"),
        (
            {"image": create_image(), "strength": 5e-324},
            "strength",
            "leaves none: use more strength",
        ),
        ({"control_image": create_image()}, "control_image", "has no ControlNet"),
        ({"control_scale": 1}, "control_scale", "needs a `control_image`"),
        ({"partial_images": 4}, "partial_images", "at most 3"),
        ({"step": 4}, "step", "did you mean `steps`?"),
    ],
)
def test_a_wrong_input_is_named(
    capabilities: Capabilities, inputs: dict[str, Any], param: str, message: str
) -> None:
    error = refusal(capabilities, **inputs)
    assert message in error.message
    assert error.param == param


def test_a_long_prompt_is_counted_as_the_pipeline_counts(capabilities: Capabilities) -> None:
    tokens = len(pipeline_of("sd").tokenizer(LONG).input_ids)
    expected = f"has {tokens} tokens, and the text encoder reads at most 77: shorten it by"
    assert f"{expected} {tokens - 77}" in refusal(capabilities, prompt=LONG).message
    error = refusal(capabilities, negative_prompt=LONG)
    assert f"`negative_prompt` {expected} {tokens - 77}" in error.message


def test_an_edit_takes_the_size_of_its_image(capabilities: Capabilities) -> None:
    call = plan(capabilities, image=create_image(71, 50), strength=0.5, steps=10)
    assert call.pipeline == "image-to-image"
    assert call.options.num_steps == 5
    assert call.arguments["image"].shape == (1, 3, 48, 64)
    assert call.arguments["strength"] == 0.5
    assert "width" not in call.arguments  # the stock call has no such parameter
    large = plan(capabilities, image=create_image(400, 200), operation="variation", prompt=None)
    assert large.arguments["image"].shape == (1, 3, 88, 176)
    assert large.arguments["prompt"] == ""


def test_a_mask_means_inpainting(capabilities: Capabilities) -> None:
    mask = Image.new("L", (64, 48), 0)
    mask.paste(255, (0, 0, 32, 48))
    call = plan(capabilities, image=create_image(), mask=mask, width=32, height=32)
    assert call.pipeline == "inpainting"
    painted = call.arguments["mask_image"]
    assert painted.shape == (1, 1, 32, 32)
    assert painted[..., :16].min() == 1
    assert painted[..., 16:].max() == 0
    assert (call.arguments["width"], call.arguments["height"]) == (32, 32)


def test_transparent_parts_are_painted(capabilities: Capabilities) -> None:
    holed = create_image(mode="RGBA")
    holed.putalpha(Image.new("L", holed.size, 255))
    assert plan(capabilities, image=holed, operation="edit").pipeline == "image-to-image"
    holed.paste((0, 0, 0, 0), (0, 0, 16, 48))
    call = plan(capabilities, image=holed, operation="edit")
    assert call.pipeline == "inpainting"
    assert call.arguments["mask_image"][..., :16].min() == 1
    assert call.arguments["mask_image"][..., 16:].max() == 0
    assert plan(capabilities, image=holed, operation="variation").pipeline == "image-to-image"


@pytest.mark.parametrize("kind", ["flux", "flux2"])
def test_distilled_guidance_has_no_negative_prompt(kind: str) -> None:
    error = refusal(make_capabilities(kind), negative_prompt="fog")
    assert "`negative_prompt` has no effect with this model" in error.message
    arguments = plan(make_capabilities(kind), guidance_scale=2).arguments
    assert arguments["guidance_scale"] == 2.0


def test_a_model_that_guides_only_with_a_negative_prompt_gets_one() -> None:
    capabilities = make_capabilities("qwen")
    arguments = plan(capabilities, guidance_scale=2).arguments
    assert (arguments["true_cfg_scale"], arguments["negative_prompt"]) == (2.0, " ")
    assert "negative_prompt" not in plan(capabilities).arguments
    given = plan(capabilities, guidance_scale=2, negative_prompt="fog").arguments
    assert given["negative_prompt"] == "fog"


def test_control_images() -> None:
    capabilities = make_capabilities("sd-controlnet")
    assert plan(capabilities).pipeline == "text-to-image"
    alone = plan(capabilities, image=create_image(), operation="edit", control_scale=0.5)
    assert alone.pipeline == "control-text-to-image"
    assert alone.arguments["image"].shape == (1, 3, 48, 64)
    assert alone.arguments["controlnet_conditioning_scale"] == 0.5
    both = plan(capabilities, image=[create_image(32, 32), create_image()], operation="edit")
    assert both.pipeline == "control-image-to-image"
    assert both.arguments["image"].shape == both.arguments["control_image"].shape
    assert both.arguments["image"].shape == (1, 3, 32, 32)
    named = plan(
        capabilities,
        image=create_image(),
        control_image=create_image(),
        mask=create_image(mode="L"),
    )
    assert named.pipeline == "control-inpainting"
    varied = plan(capabilities, image=create_image(), operation="variation")
    assert varied.pipeline == "image-to-image"


def test_several_images_go_to_a_model_that_takes_them() -> None:
    capabilities = make_capabilities("flux2")
    arguments = plan(
        capabilities, image=[create_image(), create_image(32, 32)], operation="edit"
    ).arguments
    assert [image.size for image in arguments["image"]] == [(64, 48), (32, 32)]
    assert "width" not in arguments


def test_schedulers_are_new_for_each_request(capabilities: Capabilities) -> None:
    first, second = (plan(capabilities, scheduler=name) for name in ("dpm++", "dpm++"))
    assert type(first.options.scheduler).__name__ == "DPMSolverMultistepScheduler"
    assert first.options.scheduler is not second.options.scheduler
    by_class = plan(capabilities, scheduler="DPMSolverMultistepScheduler")
    assert type(by_class.options.scheduler) is type(first.options.scheduler)
    own = pipeline_of("sd").scheduler.config
    assert first.options.scheduler.config.beta_schedule == own.beta_schedule


def test_the_settings_narrow_the_schedulers() -> None:
    capabilities = make_capabilities(schedulers=["ddim"])
    assert capabilities.schedulers.names == ["ddim"]
    assert "known: ddim" in refusal(capabilities, scheduler="unipc").message
    with pytest.raises(ConfigError, match=r"'flow-heun' does not fit this pipeline"):
        make_capabilities(schedulers=["flow-heun"])


def test_adapters_of_weight_zero_are_left_out(capabilities: Capabilities) -> None:
    assert plan(capabilities, adapters={"ink": 0.5, "oil": 0}).options.adapters == {"ink": 0.5}


def test_prompt_tokens_are_those_of_the_widest_encoder() -> None:
    capabilities = make_capabilities("sd3")
    between = "word " * 40
    tokens = plan(capabilities, prompt=between).input_tokens
    assert tokens is not None
    assert 77 < tokens <= 256
    limited = make_capabilities("sd3", max_prompt_tokens=64)
    assert "reads at most 77" in refusal(limited, prompt=between).message
    assert plan(limited).arguments["max_sequence_length"] == 64


def test_previews_can_be_off() -> None:
    capabilities = make_capabilities(previews=False)
    assert plan(capabilities, partial_images=0).options.partial_images == 0
    assert "no partial images" in refusal(capabilities, partial_images=1).message
