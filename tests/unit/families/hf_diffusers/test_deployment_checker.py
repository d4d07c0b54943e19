"""A checkpoint's own safety checker judges every image, whatever batch it was made in."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor

from tests.support.image_models import make_cfg, open_model
from tests.support.image_stock import assert_same, stock_image
from tests.support.tiny_images import create_pipeline
from truthgpt_serve.errors import RequestError, UnsupportedError

SETTINGS = {"default_steps": 3, "default_size": "64x64"}
EDGE = 32
ALWAYS, NEVER = -2.0, 2.0
"""Thresholds that a cosine is always above, and never."""


def save_checked(folder: Path, threshold: float) -> Path:
    """Writes a tiny pipeline whose checker flags an image whose likeness is above the threshold."""
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": EDGE, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=16))
        torch.nn.init.normal_(checker.concept_embeds)
    checker.special_care_embeds_weights.data.fill_(NEVER)
    checker.concept_embeds_weights.data.fill_(threshold)
    extractor = CLIPImageProcessor(
        size={"shortest_edge": EDGE}, crop_size={"height": EDGE, "width": EDGE}
    )
    parts = create_pipeline("sd").components
    parts |= {"safety_checker": checker, "feature_extractor": extractor}
    StableDiffusionPipeline(**parts).save_pretrained(folder)
    return folder


async def test_an_image_that_the_checker_flags_is_refused(tmp_path: Path) -> None:
    requests: list[dict[str, Any]] = [
        {"prompt": "a boat", "seed": 1},
        {"prompt": "a tower", "seed": 2, "steps": 5},
    ]
    with open_model(make_cfg(save_checked(tmp_path, ALWAYS), SETTINGS)) as model:
        answers = await asyncio.gather(
            *(model.infer(request) for request in requests), return_exceptions=True
        )
    for answer in answers:
        assert isinstance(answer, RequestError), answer
        assert answer.code == "content_policy_violation"
        assert "safety checker refuses the image" in answer.message


async def test_other_images_are_the_stock_pipelines(tmp_path: Path) -> None:
    stock = DiffusionPipeline.from_pretrained(save_checked(tmp_path, NEVER))
    stock.set_progress_bar_config(disable=True)
    with open_model(make_cfg(tmp_path, SETTINGS)) as model:
        answer = await model.infer({"prompt": "a boat", "seed": 1})
        with pytest.raises(UnsupportedError, match="its safety checker judges finished ones"):
            await model.infer({"prompt": "a boat", "partial_images": 1})
    expected = stock_image(stock, 1, prompt="a boat", width=64, height=64, num_inference_steps=3)
    assert_same(answer["image"], expected)


async def test_the_checker_can_be_left_out(tmp_path: Path) -> None:
    cfg = make_cfg(save_checked(tmp_path, ALWAYS), {**SETTINGS, "safety_checker": False})
    with open_model(cfg) as model:
        answer = await model.infer({"prompt": "a boat", "seed": 1, "partial_images": 1})
    assert answer["image"].size == (64, 64)
