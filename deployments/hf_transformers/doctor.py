"""Tries on this machine what the transformers family offers, or what one configuration asks for.

Each probe is a real call: of a kernel, of the compiler, or of a tiny model that is loaded as any
other.
"""

from __future__ import annotations

import importlib
import io
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy
import torch
import transformers

from deployments.hf_transformers.attention import RECIPES, choose_attention, differ
from deployments.hf_transformers.config import ATTENTION, QUANTIZATION, TransformersSettings
from deployments.hf_transformers.loading import Source, check_quantization, load_model
from truthgpt_serve.contract import Probe
from truthgpt_serve.device import COMPILER_FIX, DTYPES, probe_device

COMPILE_MODES = ("default", "max-autotune")
EDGE = 256
"""Rows and columns of the matrices that are multiplied."""
AUDIO_FIX = "install the extra `audio`; recordings at the model's rate do without soxr"
TRIAL_IDS = [[3, 9, 27, 17, 51, 25, 11, 33]]


def examine(cfg: Mapping[str, Any] | None) -> Iterator[Probe]:
    """Yields a probe for each thing; see `FamilySpec.doctor_path`."""
    yield from _all() if cfg is None else _needed(cfg)


def _all() -> Iterator[Probe]:
    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in map(torch.device, kinds):
        yield from (_multiply(name, device) for name in DTYPES)
    device = torch.device(kinds[-1])
    yield from (_attention(name, "auto", device) for name in ATTENTION)
    yield from (_compile(mode, device) for mode in COMPILE_MODES)
    yield from (_quantize(name, device) for name in QUANTIZATION)
    yield _recordings()


def _needed(cfg: Mapping[str, Any]) -> Iterator[Probe]:
    chosen: list[torch.device] = []
    yield Probe.attempt("hardware", lambda: probe_device(cfg, chosen, torch))
    if not chosen:
        return
    device, optim = chosen[0], cfg["model_optim"]
    settings = TransformersSettings.model_validate(cfg["serving"]["engine"])
    dtype = optim["dtype"]
    yield _multiply("float32" if dtype == "auto" else dtype, device)
    if optim["attention"] != "auto":
        yield _attention(optim["attention"], dtype, device)
    if optim["quantization"] is not None:
        yield _quantize(optim["quantization"], device)
    if optim["compile"]:
        yield _compile(settings.compile_mode, device)
    if settings.pipeline_task == "automatic-speech-recognition":
        yield _recordings()


def _multiply(name: str, device: torch.device) -> Probe:
    dtype = getattr(torch, name)

    def call() -> str:
        generator = torch.Generator().manual_seed(0)
        left, right = (torch.randn(EDGE, EDGE, generator=generator) for _ in range(2))
        found = left.to(device, dtype) @ right.to(device, dtype)
        expected = left.to(dtype).float() @ right.to(dtype).float()
        if differ(found, expected, dtype):
            raise ArithmeticError("the product of two matrices is wrong")
        return f"{torch.get_num_threads()} threads" if device.type == "cpu" else _gpu(device)

    return Probe.attempt(f"{name} matmul ({device.type})", call, "write another model_optim.dtype")


def _gpu(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"


def _tiny_config() -> Any:
    return transformers.LlamaConfig(
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=64,
    )


def _tiny_model() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(_tiny_config()).eval()


def _logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(torch.tensor(TRIAL_IDS, device=model.device)).logits
    return found


def _attention(name: str, dtype: str, device: torch.device) -> Probe:
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" else "float32"

    def call() -> str:
        model = _tiny_model().to(device, getattr(torch, dtype))
        choose_attention(name, model, lambda: _logits(model))
        return f"gives what eager attention gives, in {dtype}"

    return Probe.attempt(f"attention {name} ({device.type})", call, RECIPES.get(name, "write sdpa"))


def _compile(mode: str, device: torch.device) -> Probe:
    def call() -> str:
        torch.compiler.reset()
        value = torch.linspace(-1, 1, EDGE * EDGE, device=device).reshape(EDGE, EDGE)
        found = torch.compile(_function, mode=mode)(value)
        if differ(found, _function(value), torch.float32):
            raise ArithmeticError("the compiled function gives another result")
        return "a compiled function gives what the plain one gives"

    return Probe.attempt(f"torch.compile {mode} ({device.type})", call, COMPILER_FIX)


def _function(value: torch.Tensor) -> torch.Tensor:
    return torch.relu(value @ value) * 2 + value


def _quantize(name: str, device: torch.device) -> Probe:
    def call() -> str:
        check_quantization(name)
        with tempfile.TemporaryDirectory() as folder:
            _tiny_model().save_pretrained(folder)
            source = Source(folder, None, device, "bfloat16", name)
            model = load_model(transformers.AutoModelForCausalLM, source, _tiny_config())
            with torch.inference_mode():
                logits = _logits(model)
        if not torch.isfinite(logits).all():
            raise ArithmeticError("a quantized model gives values that are not finite")
        return "a tiny model is loaded with it and computes"

    fix = "write another model_optim.quantization, or null"
    return Probe.attempt(f"quantization {name} ({device.type})", call, fix)


def _recordings() -> Probe:
    def call() -> str:
        soundfile, soxr = map(importlib.import_module, ("soundfile", "soxr"))
        samples = numpy.sin(numpy.arange(8000) / 10).astype("float32")
        file = io.BytesIO()
        soundfile.write(file, samples, 8000, format="FLAC")
        file.seek(0)
        read, rate = soundfile.read(file)
        if len(soxr.resample(read, rate, 16000)) != 2 * len(samples):
            raise ArithmeticError("a resampled recording has another length")
        return "FLAC is read, and a recording gets another rate"

    return Probe.attempt("recordings at any rate", call, AUDIO_FIX)
