"""Tries on this machine what the image family offers, or what one configuration asks for.

A tiny image model is loaded as any other, and makes an image of one step.
"""

from __future__ import annotations

import asyncio
import importlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from deployments.hf_diffusers.choices import ATTENTION, QUANTIZATION
from deployments.hf_diffusers.deployment import DiffusersModel
from deployments.hf_diffusers.pipelines.attention import (
    RECIPES,
    RefusedError,
    Shape,
    probe,
    refusal,
)
from deployments.hf_diffusers.pipelines.quantization import check_quantization
from deployments.hf_diffusers.tiny_models import create_flux
from truthgpt_serve.config import load_model_config
from truthgpt_serve.contract import Probe
from truthgpt_serve.device import COMPILER_FIX, probe_device

ENGINE_KEYS = ("step_cache", "offload", "channels_last", "vae_tiling", "vae_slicing")
"""Settings that a machine may not be able to do."""
GGUF_VALUES = 32
"""Values in one block of the format Q8_0, the least that it can hold."""


def examine(cfg: Mapping[str, Any] | None) -> Iterator[Probe]:
    """Yields a probe for each thing; see `FamilySpec.doctor_path`."""
    yield from _all() if cfg is None else _needed(cfg)


def _all() -> Iterator[Probe]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpus = 1 if device.type == "cuda" else 0
    yield _image({}, {}, gpus=gpus)
    yield from (_attention(name, "auto", device) for name in ATTENTION if name != "native")
    yield _image({"compile": True}, {}, gpus=gpus, fix=COMPILER_FIX)
    yield from (_quantization(name, gpus) for name in QUANTIZATION)


def _needed(cfg: Mapping[str, Any]) -> Iterator[Probe]:
    chosen: list[torch.device] = []
    yield Probe.attempt("hardware", lambda: probe_device(cfg, chosen, torch))
    if not chosen:
        return
    optim, engine = cfg["model_optim"], cfg["serving"]["engine"]
    gpus = 1 if chosen[0].type == "cuda" else 0
    if optim["attention"] != "auto":
        yield _attention(optim["attention"], optim["dtype"], chosen[0])
    if optim["quantization"] is not None:
        yield _quantization(optim["quantization"], gpus)
    kept = {key: optim[key] for key in ("dtype", "compile")}
    settings = {key: engine[key] for key in ENGINE_KEYS if key in engine}
    yield _image(kept, settings, gpus=gpus, fix=COMPILER_FIX if kept["compile"] else "")


def _image(
    optim: Mapping[str, Any], engine: Mapping[str, Any], *, gpus: int, fix: str = ""
) -> Probe:
    settings = [f"{key} {value}" for key, value in {**optim, **engine}.items() if value]
    name = f"an image ({'cuda' if gpus else 'cpu'}{''.join(f', {each}' for each in settings)})"
    return Probe.attempt(name, lambda: _draw(optim, engine, gpus), fix)


def _draw(optim: Mapping[str, Any], engine: Mapping[str, Any], gpus: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        # One whose denoiser has kernels by name, repeated blocks and step caches.
        create_flux().save_pretrained(folder)
        sections = {
            "task": "image-generation",
            "model": {"name_or_path": folder},
            "model_optim": dict(optim),
            "hardware": {"cpus": 1, "gpus": gpus},
            "serving": {"engine": {**engine, "profile_rows": False}},
        }
        model = DiffusersModel()
        try:
            model.load(load_model_config(sections).to_cfg())
            answer = asyncio.run(model.infer({"prompt": "a trial", "steps": 1, "seed": 0}))
            found = model.acceleration
        finally:
            model.close()
    width, height = answer["image"].size
    return f"a tiny model made {width}x{height} pixels ({found['dtype']}, {found['attention']})"


def _attention(name: str, dtype: str, device: torch.device) -> Probe:
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" else "float32"
    shape = Shape(256, 4, 64, device, getattr(torch, dtype))

    def call() -> str:
        try:
            return f"{probe(name, shape) * 1000:.2g} ms a call, in {dtype}"
        except RefusedError as error:
            raise refusal(name, shape, error) from error

    return Probe.attempt(f"attention {name} ({device.type})", call, RECIPES.get(name, "write auto"))


def _quantization(name: str, gpus: int) -> Probe:
    def call() -> str:
        check_quantization(name)
        if name == "gguf":
            return _read_gguf()
        return _draw({"quantization": name, "dtype": "bfloat16"}, {}, gpus)

    fix = "write another model_optim.quantization, or null"
    return Probe.attempt(f"quantization {name}", call, fix)


def _read_gguf() -> str:
    """Writes a file of one quantized block, and reads it as diffusers reads a model's."""
    gguf = importlib.import_module("gguf")
    loading = importlib.import_module("diffusers.models.model_loading_utils")
    utils = importlib.import_module("diffusers.quantizers.gguf.utils")
    values = torch.linspace(-1, 1, GGUF_VALUES).reshape(1, -1)
    kind = gguf.GGMLQuantizationType.Q8_0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.gguf"
        writer = gguf.GGUFWriter(path, "probe")
        writer.add_tensor("x", gguf.quantize(values.numpy(), kind), raw_dtype=kind)
        for step in ("header", "kv_data", "tensors"):
            getattr(writer, f"write_{step}_to_file")()
        writer.close()
        stored = loading.load_gguf_checkpoint(str(path))["x"]
    if (utils.dequantize_gguf_tensor(stored).float() - values).abs().max().item() > 0.01:
        raise ArithmeticError("a tensor that was written and read has other values")
    return "a file was written and read"
