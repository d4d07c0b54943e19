"""Accelerations as far as a machine without a GPU can prove or refuse them; each by a real call."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from deployments.hf_diffusers.config import DiffusersSettings
from deployments.hf_diffusers.pipelines.optimization import batch_buckets, compile_blocks
from tests.support.image_models import SETTINGS, draw, make_cfg, open_model, pixels
from truthgpt_serve.errors import ConfigError

COMPILE_S = 400


# -- memory and compilation


@pytest.mark.long("draws many images")
async def test_switches_that_do_not_change_the_image(sdxl: Path) -> None:
    exact = await draw(sdxl)
    switched = await draw(sdxl, {"vae_slicing": True, "channels_last": True})
    assert np.abs(exact - switched).max() <= 1
    small = {"default_size": "32x32", "vae_tiling": True}
    whole = await draw(sdxl, small | {"vae_tiling": False})
    assert np.abs(whole - await draw(sdxl, small)).max() <= 1  # one tile holds the image
    assert (exact != await draw(sdxl, {"vae_tiling": True})).any()


@pytest.mark.long("compiles a model")
@pytest.mark.timeout(COMPILE_S)
async def test_compiled_blocks_give_the_same_image(sdxl: Path) -> None:
    cfg = make_cfg(sdxl, {**SETTINGS, "max_rows": 4}, model_optim={"compile": True})
    with open_model(cfg) as model:
        found = await pixels(model)
    assert np.abs(found - await draw(sdxl)).max() <= 1


@pytest.mark.long("starts a compiler")
def test_a_compiler_that_does_not_work_is_named(tmp_path: Path) -> None:
    program = (
        "from deployments.hf_diffusers.pipelines.optimization import compile_blocks\n"
        "from tests.support.tiny_images.denoisers import create_unet\n"
        "compile_blocks(create_unet(0))\n"
    )
    broken = {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | broken,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "model_optim.compile: torch.compile does not work here" in last
    assert "install a C++ compiler, or write false" in last


def test_a_denoiser_without_repeated_blocks_is_named() -> None:
    with pytest.raises(ConfigError, match="Linear cannot be compiled by blocks"):
        compile_blocks(torch.nn.Linear(2, 2))


def test_batch_sizes_of_compiled_code() -> None:
    settings = DiffusersSettings(max_rows=12)
    assert batch_buckets(settings, compiled=True) == (1, 2, 4, 8)
    assert batch_buckets(settings, compiled=False) == ()
    given = DiffusersSettings(batch_buckets=[2, 6])
    assert batch_buckets(given, compiled=False) == (2, 6)


# -- step caches


@pytest.mark.parametrize("kind", ["first_block", "taylorseer"])
async def test_a_step_cache_runs_requests_alone_and_forgets_them(flux: Path, kind: str) -> None:
    cache = {"step_cache": kind, "step_cache_threshold": 0.5}
    exact = await draw(flux, {"default_steps": 8})
    with open_model(make_cfg(flux, {**SETTINGS, **cache, "default_steps": 8})) as model:
        first, other, again = [
            await pixels(model, prompt=prompt) for prompt in ("a boat", "fog", "a boat")
        ]
        runs = model._engine.statistics().exclusive_runs
    assert runs == 3
    assert (first == again).all()
    assert (first != other).any()
    assert np.abs(first - exact).mean() > 0


async def test_a_step_cache_that_does_not_fit_is_refused(sdxl: Path) -> None:
    with pytest.raises(ConfigError, match="UNet2DConditionModel has no step cache"):
        await draw(sdxl, {"step_cache": "first_block"})
