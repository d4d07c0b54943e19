"""Loads weights into stock Diffusers pipelines, which share all modules.

Code that a checkpoint brings is never run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch

from deployments.hf_diffusers.checks import find_local
from deployments.hf_diffusers.choices import SINGLE_FILES
from deployments.hf_diffusers.config import DiffusersSettings
from deployments.hf_diffusers.pipelines.adapters import Adapters, add_to_weights, load_adapters
from deployments.hf_diffusers.pipelines.derived import derive_pipelines
from deployments.hf_diffusers.pipelines.learned_words import load_words
from deployments.hf_diffusers.pipelines.quantization import (
    denoiser_name,
    gguf_denoiser,
    quantization_config,
    read_index,
)
from truthgpt_serve.device import choose_device, choose_dtype
from truthgpt_serve.errors import bad_setting
from truthgpt_serve.model_files import ModelFileError, read_header

SAFETENSORS_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Loaded:
    """The pipelines of one set of weights.

    Attributes:
        base: The pipeline as the checkpoint names it.
        pipelines: By name, each that the weights can do; they share all modules.
        device: Where the modules compute.
        dtype: Number format of the denoiser.
        adapters: The LoRA adapters.
    """

    base: Any
    pipelines: dict[str, Any]
    device: torch.device
    dtype: torch.dtype
    adapters: Adapters


def load_pipelines(cfg: Mapping[str, Any], settings: DiffusersSettings) -> Loaded:
    """Loads the weights and makes a pipeline of them for each kind of request.

    Args:
        cfg: The whole configuration.
        settings: Its `serving.engine`.

    Raises:
        ConfigError: The weights, the ControlNet or the VAE cannot be loaded, or the number format
            does not suit them.
    """
    device = choose_device(cfg["hardware"], torch)
    source = fetch(str(cfg["model"]["name_or_path"]), cfg["model"]["revision"], settings)
    stored = checkpoint_dtype(source)
    dtype = choose_dtype(str(cfg["model_optim"]["dtype"]), stored, device, torch)
    parts = _load_parts(settings, source, dtype)
    name = cfg["model_optim"]["quantization"]
    if name is not None and name != "gguf":
        parts["quantization_config"] = quantization_config(name, denoiser_name(source), dtype)
    base = _load_base(settings, source, {**parts, "dtype": dtype})
    base.set_progress_bar_config(disable=True)
    check_vae(base, dtype, str(cfg["model_optim"]["dtype"]))
    load_words(base, settings.textual_inversion)
    if settings.offload == "none":
        base.to(device)
    controlnet = _load_controlnet(settings, base, dtype, device)
    add_to_weights(base, cfg["model"].get("adapter") or ())
    adapters = load_adapters(base, cfg["serving"]["adapters"])
    return Loaded(base, derive_pipelines(base, controlnet), device, dtype, adapters)


def fetch(name_or_path: str, revision: str | None, settings: DiffusersSettings) -> str:
    """Returns the local folder or file of the weights, after downloading a hub model.

    Raises:
        ConfigError: There is no such model, or the hub cannot be reached and it is not cached.
    """
    if Path(name_or_path).exists():
        return name_or_path
    try:
        return str(
            diffusers.DiffusionPipeline.download(
                name_or_path,
                revision=revision,
                variant=settings.variant,
                trust_remote_code=False,
            )
        )
    except (OSError, ValueError) as error:
        at = f" at revision {revision!r}" if revision else ""
        message = f"{name_or_path!r}{at} is no local path and cannot be downloaded: {error}"
        raise bad_setting("model.name_or_path", message) from error


def checkpoint_dtype(source: str) -> str:
    """Returns the number format of most of the denoiser's weights.

    A checkpoint that is not in safetensors' format counts as float32.

    Raises:
        ConfigError: Its file is damaged.
    """
    folder = Path(source)
    files = [folder] if folder.is_file() else []
    if folder.is_dir():
        files = [
            file
            for name in ("unet", "transformer")
            for file in sorted((folder / name).glob("*.safetensors"))
        ]
    if not files or files[0].suffix != ".safetensors":
        return "float32"
    try:
        tensors = read_header(files[0]).values()
    except ModelFileError as error:
        raise bad_setting("model.name_or_path", error.message, "fetch it again") from error
    counts = Counter(
        SAFETENSORS_DTYPES[one.dtype] for one in tensors if one.dtype in SAFETENSORS_DTYPES
    )
    return counts.most_common(1)[0][0] if counts else "float32"


def _load_parts(settings: DiffusersSettings, source: str, dtype: torch.dtype) -> dict[str, Any]:
    """Returns the components that are loaded apart from the checkpoint."""
    parts: dict[str, Any] = {}
    if settings.vae is not None:
        try:
            parts["vae"] = diffusers.AutoModel.from_pretrained(
                find_local(settings.vae), dtype=dtype, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            message = f"{settings.vae!r} cannot be loaded: {error}"
            raise bad_setting("serving.engine.vae", message) from error
    if settings.gguf_file is not None:
        parts[denoiser_name(source)] = gguf_denoiser(find_local(settings.gguf_file), source, dtype)
    if not settings.safety_checker and "safety_checker" in read_index(source):
        parts |= {"safety_checker": None, "requires_safety_checker": False}
    return parts


def _load_base(settings: DiffusersSettings, source: str, options: dict[str, Any]) -> Any:
    try:
        if source.endswith(SINGLE_FILES):
            return _pipeline_class(settings).from_single_file(source, **options)
        cls = (
            diffusers.DiffusionPipeline if settings.pipeline is None else _pipeline_class(settings)
        )
        return cls.from_pretrained(
            source, variant=settings.variant, trust_remote_code=False, **options
        )
    except (OSError, ValueError, ImportError, RuntimeError, TypeError) as error:
        message = f"{source!r} cannot be loaded as a Diffusers pipeline: {error}"
        raise bad_setting("model.name_or_path", message) from error


def _pipeline_class(settings: DiffusersSettings) -> Any:
    cls = getattr(diffusers, settings.pipeline or "", None)
    if not isinstance(cls, type) or not issubclass(cls, diffusers.DiffusionPipeline):
        message = f"diffusers {diffusers.__version__} has no pipeline {settings.pipeline!r}"
        raise bad_setting("serving.engine.pipeline", message)
    return cls


def check_vae(pipeline: Any, dtype: torch.dtype, wanted: str) -> None:
    """Refuses float16 with a VAE that overflows in it.

    Such a pipeline changes the VAE to float32 and back for each image: images that share it are
    then decoded wrongly.

    Raises:
        ConfigError: The VAE asks for `force_upcast`.
    """
    vae = getattr(pipeline, "vae", None)
    if dtype is not torch.float16 or vae is None or not vae.config.get("force_upcast"):
        return
    message = (
        f"{wanted}: this VAE overflows in float16 (its `force_upcast`), so images come out wrong"
    )
    fix = "write bfloat16 or float32, or name a VAE that is safe in serving.engine.vae"
    raise bad_setting("model_optim.dtype", message, fix)


def _load_controlnet(
    settings: DiffusersSettings, base: Any, dtype: torch.dtype, device: torch.device
) -> Any:
    if settings.controlnet is None:
        return None
    try:
        controlnet = diffusers.AutoModel.from_pretrained(
            find_local(settings.controlnet), dtype=dtype, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        message = f"{settings.controlnet!r} cannot be loaded: {error}"
        raise bad_setting("serving.engine.controlnet", message) from error
    return controlnet.to(device) if settings.offload == "none" else controlnet
