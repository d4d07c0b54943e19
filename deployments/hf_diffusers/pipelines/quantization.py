"""Quantizes weights while loading (bitsandbytes, torchao, GGUF); refuses what cannot run here."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import diffusers
import torch

from deployments.hf_diffusers.choices import GPU_QUANTIZATION, QUANTIZATION
from truthgpt_serve import device
from truthgpt_serve.errors import bad_setting


def check_quantization(name: str) -> None:
    """Proves that this machine can run a quantization; see `truthgpt_serve.device`."""
    device.check_quantization(name, QUANTIZATION[name], GPU_QUANTIZATION, torch)


def quantization_config(name: str, component: str, dtype: torch.dtype) -> Any:
    """Returns diffusers' configuration that quantizes the denoiser as it is loaded.

    Text encoders and the VAE keep their format: they run once an image.

    Args:
        name: A key of `names.QUANTIZATION` but `gguf`.
        component: The denoiser's name in the pipeline, `unet` or `transformer`.
        dtype: The number format of the computation.

    Raises:
        ConfigError: See `check_quantization`.
    """
    check_quantization(name)
    make = _bitsandbytes if name.startswith("bitsandbytes") else _torchao
    return diffusers.PipelineQuantizationConfig(quant_mapping={component: make(name, dtype)})


def _bitsandbytes(name: str, dtype: torch.dtype) -> Any:
    if name == "bitsandbytes-8bit":
        return diffusers.BitsAndBytesConfig(load_in_8bit=True)
    return diffusers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


def _torchao(name: str, _dtype: torch.dtype) -> Any:
    quantization = importlib.import_module("torchao.quantization")
    kinds = {
        "torchao-int8": "Int8WeightOnlyConfig",
        "torchao-int4": "Int4WeightOnlyConfig",
        "torchao-float8": "Float8WeightOnlyConfig",
    }
    return diffusers.TorchAoConfig(getattr(quantization, kinds[name])())


def read_index(source: str) -> dict[str, Any]:
    """Returns the components that a checkpoint's folder lists; none for a single file."""
    if not Path(source).is_dir():
        return {}
    index: dict[str, Any] = diffusers.DiffusionPipeline.load_config(source)
    return index


def denoiser_name(source: str) -> str:
    """Returns the denoiser's component name in this checkpoint."""
    return "transformer" if "transformer" in read_index(source) else "unet"


def gguf_denoiser(file: str, source: str, dtype: torch.dtype) -> Any:
    """Loads a denoiser's weights from a GGUF file; its shape comes from the checkpoint `source`.

    Raises:
        ConfigError: The package is missing, or the file does not fit.
    """
    check_quantization("gguf")
    component = denoiser_name(source)
    cls = getattr(diffusers, str(read_index(source)[component][1]))
    try:
        return cls.from_single_file(
            file,
            quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=dtype),
            config=source,
            subfolder=component,
            dtype=dtype,
        )
    except (OSError, ValueError, AttributeError, KeyError) as error:
        message = f"{file!r} cannot be loaded: {error}"
        raise bad_setting("serving.engine.gguf_file", message) from error
