"""Loading of pipelines: number format, device, another VAE."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deployments.hf_diffusers.deployment import DiffusersModel
from deployments.hf_diffusers.pipelines.loading import check_vae
from tests.support.image_models import SETTINGS, draw, make_cfg, open_model, pixels
from tests.support.tiny_images import create_pipeline
from truthgpt_serve.device import choose_device, choose_dtype
from truthgpt_serve.errors import ConfigError

CPU = torch.device("cpu")


def test_auto_takes_the_checkpoints_format_where_the_device_has_it() -> None:
    assert choose_dtype("auto", "float16", CPU, torch) is torch.float32
    assert choose_dtype("auto", "bfloat16", CPU, torch) is torch.bfloat16
    assert choose_dtype("auto", "float32", CPU, torch) is torch.float32
    assert choose_dtype("float16", "float32", CPU, torch) is torch.float16


async def test_the_format_is_read_from_the_checkpoint(tmp_path: Path) -> None:
    create_pipeline("sdxl").to(torch.bfloat16).save_pretrained(tmp_path)
    with open_model(make_cfg(tmp_path, SETTINGS)) as model:
        pipes = model._engine._loaded.pipelines
        assert {pipe.unet.dtype for pipe in pipes.values()} == {torch.bfloat16}
        assert {pipe.vae.dtype for pipe in pipes.values()} == {torch.bfloat16}
        assert len({id(pipe.unet) for pipe in pipes.values()}) == 1
        assert (await pixels(model)).std() > 0


def test_float16_with_a_vae_that_overflows_is_refused() -> None:
    pipeline = create_pipeline("sdxl")
    pipeline.vae.register_to_config(force_upcast=True)
    check_vae(pipeline, torch.bfloat16, "auto")
    with pytest.raises(ConfigError, match=r"model_optim.dtype: float16: .*serving.engine.vae"):
        check_vae(pipeline, torch.float16, "float16")


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_that_is_not_there_is_named() -> None:
    assert choose_device({"gpus": "auto", "device": "auto"}, torch) == CPU
    assert choose_device({"gpus": 0, "device": "auto"}, torch) == CPU
    for hardware in ({"gpus": 1, "device": "auto"}, {"gpus": "auto", "device": "cuda"}):
        with pytest.raises(ConfigError, match="asks for a GPU, and torch"):
            choose_device(hardware, torch)


async def test_another_vae(sdxl: Path, tmp_path: Path) -> None:
    create_pipeline("sdxl", seed=7).vae.save_pretrained(tmp_path)
    assert (await draw(sdxl) != await draw(sdxl, {"vae": str(tmp_path)})).any()
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"serving.engine.vae: .* cannot be loaded"):
        await draw(sdxl, {"vae": str(tmp_path)})


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("offload", ["model", "group"])
def test_offloading_without_a_gpu_is_refused(sdxl: Path, offload: str) -> None:
    cfg = make_cfg(sdxl, {**SETTINGS, "offload": offload}, hardware={"gpus": "auto"})
    with pytest.raises(ConfigError, match=f"serving.engine.offload: {offload} moves weights"):
        DiffusersModel().load(cfg)
