"""Tries on this machine what vLLM offers, or what one configuration asks of it, with a tiny model.

The engine is the same as in a replica.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vllm.platforms import current_platform

from deployments.vllm.deployment import VllmModel
from deployments.vllm.tiny_model import make_tiny_llama
from truthgpt_serve.config import load_model_config
from truthgpt_serve.contract import Probe

TINY_ENGINE = {"max_model_len": 64, "max_num_seqs": 2, "kv_cache_memory_bytes": "64M"}
GPU_SHARE = 0.1
"""Part of the GPU's memory that must be free: the tiny model needs less."""
ENGINE_FIX = "reinstall the extra `cpu` or `gpu`; its own message is in the log above"


def examine(cfg: Mapping[str, Any] | None) -> Iterator[Probe]:
    """Yields a probe for each thing; see `FamilySpec.doctor_path`."""
    on_cpu = current_platform.is_cpu()
    yield Probe("vLLM's platform", True, f"built for {current_platform.device_type}")
    if cfg is None:
        yield _generate({}, {}, gpus=0 if on_cpu else 1)
        return
    wants_gpu = cfg["hardware"]["gpus"] not in ("auto", 0)
    if wants_gpu == on_cpu and cfg["hardware"]["gpus"] != "auto":
        kinds = ("a GPU", "the CPU") if on_cpu else ("the CPU", "a GPU")
        message = f"the model asks for {kinds[0]}, this vLLM computes on {kinds[1]}"
        fix = f"set hardware.gpus, or install the extra `{'gpu' if on_cpu else 'cpu'}`"
        yield Probe("hardware", False, message, fix)
        return
    yield from _needed(cfg, gpus=0 if on_cpu else 1)


def _needed(cfg: Mapping[str, Any], gpus: int) -> Iterator[Probe]:
    optim, engine = cfg["model_optim"], cfg["serving"]["engine"]
    kept = {key: optim[key] for key in ("dtype", "attention")}
    eager = {"enforce_eager": engine["enforce_eager"]} if "enforce_eager" in engine else {}
    yield _generate(kept, eager, gpus=gpus)
    if optim["quantization"] is not None:
        yield _quantization(str(optim["quantization"]))


def _generate(optim: Mapping[str, Any], engine: Mapping[str, Any], *, gpus: int) -> Probe:
    engine = {**TINY_ENGINE, "enforce_eager": True, **engine}
    if gpus:
        engine["gpu_memory_utilization"] = GPU_SHARE

    def call() -> str:
        with tempfile.TemporaryDirectory() as folder:
            sections = {
                "run_name": "doctor",
                "model": {"name_or_path": str(make_tiny_llama(Path(folder) / "llama"))},
                "model_optim": dict(optim),
                "hardware": {"cpus": 1, "gpus": gpus},
                "serving": {"engine": engine},
            }
            text, found = asyncio.run(_write_text(load_model_config(sections).to_cfg()))
        if not text:
            raise RuntimeError("a tiny model gave no text")
        shown = ", ".join(f"{key} {found[key]}" for key in ("dtype", "attention", "compile"))
        return f"a tiny model wrote a text ({shown})"

    settings = [f"{key} {value}" for key, value in optim.items() if value != "auto"]
    settings += [f"{key} {value}" for key, value in engine.items() if key == "enforce_eager"]
    return Probe.attempt(f"the engine with {', '.join(settings)}", call, ENGINE_FIX)


async def _write_text(cfg: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns a text that the model wrote, and what computed it."""
    model = VllmModel()
    await model.load(cfg)
    try:
        outputs = await model.infer({"text": "Hello", "max_new_tokens": 4})
        return outputs["text"], model.acceleration
    finally:
        await model.close()


def _quantization(name: str) -> Probe:
    """Asks vLLM: only a checkpoint that was quantized so could prove it."""

    def call() -> str:
        current_platform.verify_quantization(name)
        return "vLLM has it for this device, as it says; the weights decide when they load"

    return Probe.attempt(f"quantization {name}", call, "write null, or one that this device has")
