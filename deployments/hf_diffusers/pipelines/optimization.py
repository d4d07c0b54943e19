"""Switches on what `model_optim` and `serving.engine` ask for, or says why this machine cannot."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

import diffusers
import torch

from deployments.hf_diffusers.config import DiffusersSettings
from deployments.hf_diffusers.pipelines.attention import choose_attention, read_shape
from deployments.hf_diffusers.pipelines.info import PipelineInfo, denoiser_of
from deployments.hf_diffusers.pipelines.loading import Loaded
from truthgpt_serve.device import describe_backend, refused_compiler
from truthgpt_serve.errors import bad_setting

logger = logging.getLogger(__name__)

Mode = Literal["auto", "exclusive"]
SHOWN = ("step_cache", "offload", "channels_last", "vae_tiling", "vae_slicing")
"""Settings that the model's card repeats."""
PROBE_EDGES = 8
"""The trial image's edge, in the least steps that its size may have."""


def optimize(
    loaded: Loaded,
    info: Mapping[str, PipelineInfo],
    cfg: Mapping[str, Any],
    settings: DiffusersSettings,
) -> tuple[Mode, dict[str, Any]]:
    """Applies every optimization to the loaded modules, proving those that may not work.

    Returns:
        How the engine must run the pipelines, `exclusive` for what changes shared modules while an
        image is made; and the backend, for the model's card.

    Raises:
        ConfigError: The machine or the model cannot do what is asked for.
    """
    name, first = next(iter(info.items()))
    pipeline, denoiser = loaded.pipelines[name], denoiser_of(loaded.base)
    _arrange(loaded, denoiser, settings)
    exclusive = settings.step_cache is not None or settings.offload != "none"
    chosen = None
    if denoiser is not None and settings.offload == "none":
        tokens = (first.width // first.patch) * (first.height // first.patch)
        chosen = choose_attention(
            str(cfg["model_optim"]["attention"]),
            denoiser,
            read_shape(denoiser, tokens, loaded.device, loaded.dtype),
            lambda: try_out(pipeline, first),
        )
        logger.info("attention: %s", chosen)
    if settings.step_cache is not None:
        _enable_cache(denoiser, settings)
    if cfg["model_optim"]["compile"]:
        compile_blocks(denoiser)
    _offload(loaded, settings)
    return "exclusive" if exclusive else "auto", {
        **describe_backend(loaded.device, loaded.dtype, chosen, cfg["model_optim"]),
        **{key: getattr(settings, key) for key in SHOWN},
    }


def _arrange(loaded: Loaded, denoiser: Any, settings: DiffusersSettings) -> None:
    vae = getattr(loaded.base, "vae", None)
    if settings.channels_last:
        for module in (denoiser, vae):
            if module is not None:
                module.to(memory_format=torch.channels_last)
    for key, method in (("vae_tiling", "enable_tiling"), ("vae_slicing", "enable_slicing")):
        if not getattr(settings, key):
            continue
        switch = getattr(vae, method, None)
        if switch is None:
            kind = type(vae).__name__
            raise bad_setting(f"serving.engine.{key}", f"{kind} cannot do it", "write false")
        try:
            switch()
        except NotImplementedError as error:
            message = f"{type(vae).__name__} cannot do it: {error}"
            raise bad_setting(f"serving.engine.{key}", message, "write false") from error


def try_out(pipeline: Any, info: PipelineInfo) -> None:
    """Runs one denoising step of a small image, text encoders included.

    Raises:
        Exception: Whatever fails; for a result with NaN, a `FloatingPointError`.
    """
    if info.takes("image"):  # pipelines that need one share the denoiser with those that do not
        return
    edge = info.size_multiple * PROBE_EDGES
    inputs: dict[str, Any] = {"num_inference_steps": 1, "output_type": "latent", **info.fixed}
    inputs |= {key: edge for key in ("width", "height") if info.takes(key)}
    if info.takes("prompt"):
        inputs["prompt"] = "a trial"
    with torch.no_grad():
        latents = pipeline(**inputs).images
    if not torch.isfinite(torch.as_tensor(latents)).all():
        raise FloatingPointError("one denoising step gives values that are not finite")


def compile_blocks(denoiser: Any) -> None:
    """Has the denoiser's repeated blocks compiled when they first run; tries the compiler.

    Raises:
        ConfigError: The compiler does not work here, or diffusers knows no repeated blocks.
    """
    try:
        denoiser.compile_repeated_blocks()
    except (ValueError, AttributeError) as error:
        message = f"{type(denoiser).__name__} cannot be compiled by blocks: {error}"
        raise bad_setting("model_optim.compile", message, "write false") from error
    try:
        trial = torch.compile(lambda value: torch.relu(value) * 2)
        trial(torch.ones(4, device=next(denoiser.parameters()).device))
    except Exception as error:
        raise refused_compiler(error) from error


def _enable_cache(denoiser: Any, settings: DiffusersSettings) -> None:
    place = "serving.engine.step_cache"
    if not hasattr(denoiser, "enable_cache"):
        message = (
            f"{type(denoiser).__name__} has no step cache: diffusers has them for transformers"
        )
        raise bad_setting(place, message, "write null")
    config = (
        diffusers.FirstBlockCacheConfig(threshold=settings.step_cache_threshold)
        if settings.step_cache == "first_block"
        else diffusers.TaylorSeerCacheConfig()
    )
    try:
        denoiser.enable_cache(config)
    except (ValueError, RuntimeError, KeyError) as error:
        message = f"{settings.step_cache} does not fit {type(denoiser).__name__}: {error}"
        raise bad_setting(place, message, "write null") from error


def _offload(loaded: Loaded, settings: DiffusersSettings) -> None:
    if settings.offload == "none":
        return
    place = "serving.engine.offload"
    if loaded.device.type != "cuda":
        message = f"{settings.offload} moves weights to a GPU, and torch sees none"
        raise bad_setting(place, message, "write none")
    for pipeline in set(loaded.pipelines.values()):
        if settings.offload == "model":
            pipeline.enable_model_cpu_offload()
        else:
            pipeline.enable_group_offload(
                onload_device=loaded.device, offload_type="leaf_level", use_stream=True
            )


def batch_buckets(settings: DiffusersSettings, *, compiled: bool) -> tuple[int, ...]:
    """Returns the batch sizes that forwards are padded to; none means no padding."""
    if settings.batch_buckets or not compiled:
        return tuple(settings.batch_buckets)
    sizes = [1]
    while sizes[-1] * 2 <= settings.max_rows:
        sizes.append(sizes[-1] * 2)
    return tuple(sizes)
