"""Kernels of attention: proved by a call, or refused."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from deployments.hf_diffusers.deployment import DiffusersModel
from deployments.hf_diffusers.pipelines.attention import (
    XFORMERS_RECIPE,
    RefusedError,
    Shape,
    check_result,
    choose_attention,
    fastest_first,
    probe,
    read_shape,
)
from tests.support.image_models import SETTINGS, draw, make_cfg
from tests.support.tiny_images import create_pipeline
from truthgpt_serve.errors import ConfigError

CPU = torch.device("cpu")


SHAPE = Shape(16, 2, 16, CPU, torch.float32)


def no_op() -> None:
    """A denoiser that works with every kernel."""


def test_torchs_own_attention_is_proved_by_a_call() -> None:
    assert probe("sdpa", SHAPE) > 0
    assert probe("native", SHAPE) > 0


@pytest.mark.parametrize(
    ("name", "package"),
    [("xformers", "xformers"), ("flash", "flash_attn"), ("sage", "sageattention")],
)
def test_a_kernel_that_does_not_work_is_refused_with_a_recipe(name: str, package: str) -> None:
    assert importlib.util.find_spec(package) is None
    denoiser = create_pipeline("flux").transformer
    with pytest.raises(ConfigError) as caught:
        choose_attention(name, denoiser, SHAPE, no_op)
    (fault,) = caught.value.faults
    assert fault.place == "model_optim.attention"
    assert f"{name} does not work with torch {torch.__version__} on cpu" in fault.message
    assert f"{package.replace('_', '-')} is not installed" in fault.message
    assert "or write sdpa" in fault.fix
    if name == "xformers":
        assert "runtime_env: {pip: ['torch==2.10.0', 'xformers==0.0.35']}" in fault.fix


def test_the_recipe_names_the_extras_pair(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    pair = project["optional-dependencies"]["xformers"]
    assert pair == ["torch==2.10.0", "xformers==0.0.35"]
    assert all(f"'{pin}'" in XFORMERS_RECIPE for pin in pair)
    assert all(pin in (root / "docs" / "images.md").read_text() for pin in pair)


def test_a_kernel_without_an_implementation_for_cpu_is_refused() -> None:
    with pytest.raises(RefusedError, match="Error"):
        probe("cudnn", SHAPE)


def test_auto_takes_torchs_own_on_a_cpu() -> None:
    assert fastest_first(SHAPE) == ["sdpa"]
    assert choose_attention("auto", create_pipeline("flux").transformer, SHAPE, no_op) == "sdpa"


def test_auto_passes_over_a_kernel_that_the_denoiser_cannot_use() -> None:
    def fail() -> None:
        raise ValueError("`attn_mask` is not supported")

    transformer = create_pipeline("flux").transformer
    assert choose_attention("auto", transformer, SHAPE, fail) == "sdpa"
    with pytest.raises(ConfigError, match=r"the denoiser fails with it: ValueError: `attn_mask`"):
        choose_attention("native", transformer, SHAPE, fail)


def test_a_unet_has_no_kernels_by_name() -> None:
    unet = create_pipeline("sdxl").unet
    assert choose_attention("sdpa", unet, SHAPE, no_op) == "sdpa"
    assert choose_attention("native", unet, SHAPE, no_op) == "native"
    shape = read_shape(unet, 10**6, CPU, torch.float32)
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    assert shape.tokens == 4096
    assert shape.heads * shape.head_dim in {
        module.to_q.out_features for module in unet.modules() if hasattr(module, "to_q")
    }
    assert attention.heads > 0


@pytest.mark.usefixtures("no_gpu")
async def test_a_start_with_a_kernel_that_does_not_work_fails(sdxl: Path) -> None:
    cfg = make_cfg(sdxl, SETTINGS, hardware={"gpus": "auto"}, model_optim={"attention": "xformers"})
    with pytest.raises(ConfigError, match="xformers is not installed"):
        DiffusersModel().load(cfg)


@pytest.mark.parametrize("name", ["auto", "sdpa", "native"])
async def test_torchs_own_attention_does_not_change_the_image(flux: Path, name: str) -> None:
    found = await draw(flux, model_optim={"attention": name})
    stock = DiffusionPipeline.from_pretrained(flux)
    stock.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(1)
    image = stock(
        prompt="a boat", width=64, height=64, num_inference_steps=3, generator=generator
    ).images[0]
    assert np.abs(found - np.asarray(image, dtype=int)).max() <= 1


@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_a_kernel_with_another_result_is_refused(value: float) -> None:
    expected = torch.zeros(1, 4, 2, 8)
    check_result("flash", expected + 0.01, expected)
    with pytest.raises(RefusedError, match="its result differs from torch's by"):
        check_result("flash", expected + value, expected)
