"""Quantized denoisers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import gguf
import numpy as np
import pytest

from deployments.hf_diffusers.pipelines.quantization import check_quantization
from tests.support.image_models import SETTINGS, draw, make_cfg, open_model, pixels, save_model
from tests.support.tiny_images import create_pipeline
from truthgpt_serve.errors import ConfigError


def test_a_quantization_without_its_package_is_refused() -> None:
    assert importlib.util.find_spec("bitsandbytes") is None
    message = "needs the package bitsandbytes.*pip install bitsandbytes"
    with pytest.raises(ConfigError, match=message):
        check_quantization("bitsandbytes-4bit")


@pytest.mark.parametrize("kind", ["flux", "sdxl"])
async def test_a_denoiser_from_a_gguf_file(kind: str, tmp_path: Path) -> None:
    weights = save_model(kind, tmp_path / kind)
    engine = {**SETTINGS, "gguf_file": str(save_gguf(kind, tmp_path / "weights.gguf"))}
    optim = {"quantization": "gguf", "dtype": "float32"}
    with open_model(make_cfg(weights, engine, model_optim=optim)) as model:
        base = model._engine._loaded.base
        modules = (base.unet if kind == "sdxl" else base.transformer).modules()
        assert any("GGUF" in type(module).__name__ for module in modules)
        assert model.acceleration["batching"] == "batched"
        found = await pixels(model)
    assert 0 < np.abs(found - await draw(weights)).mean() < 1


async def test_a_gguf_file_that_does_not_fit_is_named(sdxl: Path, tmp_path: Path) -> None:
    optim = {"quantization": "gguf"}
    for file in (save_gguf("flux", tmp_path / "flux.gguf"), tmp_path / "torn.gguf"):
        if not file.exists():
            file.write_bytes((tmp_path / "flux.gguf").read_bytes()[:200])
        with pytest.raises(ConfigError, match=r"serving.engine.gguf_file: .* cannot be loaded"):
            await draw(sdxl, {"gguf_file": str(file)}, model_optim=optim)


def save_gguf(kind: str, file: Path) -> Path:
    """Writes the tiny denoiser of this kind, its matrices in blocks of 32 numbers of 8 bits."""
    pipeline = create_pipeline(kind)
    denoiser = getattr(pipeline, "transformer", None) or pipeline.unet
    writer = gguf.GGUFWriter(file, kind)
    small = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in denoiser.state_dict().items():
        values = tensor.float().numpy()
        if values.ndim == 2 and values.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quantize(values, small), raw_dtype=small)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


async def test_torchao_on_a_cpu(flux: Path) -> None:
    exact = await draw(flux)
    optim = {"quantization": "torchao-int8"}
    with open_model(make_cfg(flux, SETTINGS, model_optim=optim)) as model:
        weight = model._engine._loaded.base.transformer.transformer_blocks[0].attn.to_q.weight
        assert "Int8Tensor" in type(weight).__name__
        found = await pixels(model)
    assert 0 < np.abs(found - exact).mean() < 4
    with pytest.raises(ConfigError, match="torchao-float8 needs an NVIDIA GPU"):
        check_quantization("torchao-float8")
