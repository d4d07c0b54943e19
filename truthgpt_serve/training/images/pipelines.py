"""Finds pipeline folders, loads their parts in the formats of training, and saves them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from truthgpt_serve.model_files import folder_bytes
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images.words import FILES
from truthgpt_serve.training.job import Monitor
from truthgpt_serve.training.run_folder import MODEL, replace_folder

INDEX = "model_index.json"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_STORED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
HINT_CHANNELS = (16, 32, 96, 256)
"""Channels of the convolutions that a ControlNet sees its image through, as Diffusers has them."""


def find_pipeline(cfg: Mapping[str, Any]) -> Path:
    """Returns the folder of `model.name_or_path`, after downloading a hub model.

    Raises:
        TrainingError: There is no such pipeline.
    """
    name, revision = cfg["model"]["name_or_path"], cfg["model"]["revision"]
    if name is None:
        raise TrainingError("model.name_or_path is missing (name a pipeline to start from)")
    folder = Path(name)
    if not folder.exists():
        try:
            folder = Path(
                diffusers.DiffusionPipeline.download(
                    name, revision=revision, trust_remote_code=False
                )
            )
        except (OSError, ValueError) as error:
            message = f"{name!r} is no local path and cannot be downloaded: {error}"
            raise TrainingError(f"model.name_or_path: {message}") from error
    if not (folder / INDEX).is_file():
        message = f"model.name_or_path: {name!r} is no folder of a Diffusers pipeline"
        raise TrainingError(f"{message} (it has no {INDEX})")
    return folder


def load_pipeline(
    folder: Path, frozen: Any, exact: tuple[str, ...], quantized: Mapping[str, Any] | None = None
) -> Any:
    """Returns the pipeline on the CPU.

    Args:
        folder: Of the pipeline.
        frozen: Number format of the parts that are not trained.
        exact: Names of the parts that are loaded in float32.
        quantized: How parts are quantized, by name.

    Raises:
        TrainingError: It cannot be loaded.
    """
    dtypes = {"default": frozen, **dict.fromkeys(exact, torch.float32)}
    more = {}
    if quantized:
        mapping = diffusers.PipelineQuantizationConfig(quant_mapping=dict(quantized))
        more = {"quantization_config": mapping}
    try:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            folder, dtype=dtypes, trust_remote_code=False, **more
        )
    except (OSError, ValueError, ImportError, RuntimeError, TypeError) as error:
        message = f"{str(folder)!r} cannot be loaded as a Diffusers pipeline: {error}"
        raise TrainingError(f"model.name_or_path: {message}") from error
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
            part.eval()
    return pipeline


def choose_dtype(wanted: str, folder: Path, part: str) -> Any:
    """Returns the format of the result: `model_optim.dtype`, or for `auto` the part's own."""
    if wanted != "auto":
        return DTYPES[wanted]
    for file in sorted((folder / part).glob("*.safetensors")):
        with safe_open(file, "pt") as stream:
            names = list(stream.keys())
            if names:
                return DTYPES[_STORED.get(stream.get_slice(names[0]).get_dtype(), "float32")]
    return torch.float32


def save_pipeline(
    source: Path, trained: Mapping[str, Any], run: Path, monitor: Monitor, wanted: str
) -> None:
    """Writes the run's result: a pipeline with some parts trained, the others as they were.

    Args:
        source: Folder of the pipeline that the run began with.
        trained: The trained modules by the names of their parts.
        run: The run's folder.
        monitor: Checks the disk.
        wanted: `model_optim.dtype`.

    Raises:
        TrainingError: The disk is full.
    """
    index = json.loads((source / INDEX).read_text(encoding="utf-8"))
    parts = [name for name in index if not name.startswith("_") and (source / name).is_dir()]
    dtypes = {name: choose_dtype(wanted, source, name) for name in trained}
    monitor.check_space(sum(folder_bytes(source / name) for name in parts))
    unfinished = begin_result(run)
    shutil.copyfile(source / INDEX, unfinished / INDEX)
    for name in parts:
        if name in trained:
            part = trained[name]
            if part.dtype != dtypes[name]:
                part.to(dtypes[name])
            part.save_pretrained(unfinished / name)
        else:
            shutil.copytree(source / name, unfinished / name)
    replace_folder(unfinished, run / MODEL)


def save_adapter(
    pipeline: Any,
    weights: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
    run: Path,
    monitor: Monitor,
) -> None:
    """Writes the run's result: an adapter, as Diffusers saves and loads them.

    Args:
        pipeline: Of the class that the adapter is for.
        weights: Of each part, as peft names them, in the number format of the result.
        settings: LoraConfig of each part, which is saved beside the weights.
        run: The run's folder.
        monitor: Checks the disk.

    Raises:
        TrainingError: The disk is full.
    """
    tensors = [one for part in weights.values() for one in part.values()]
    monitor.check_space(sum(one.numel() * one.element_size() for one in tensors))
    unfinished = begin_result(run)
    layers = {f"{part}_lora_layers": dict(found) for part, found in weights.items()}
    metadata = {f"{part}_lora_adapter_metadata": one.to_dict() for part, one in settings.items()}
    type(pipeline).save_lora_weights(unfinished, **layers, **metadata)
    replace_folder(unfinished, run / MODEL)


def create_controlnet(unet: Any, vae: Mapping[str, Any], *, load_weights: bool = True) -> Any:
    """Returns a ControlNet that begins as the UNet's first half, with no effect yet.

    Args:
        unet: Of the pipeline.
        vae: Configuration of the autoencoder.
        load_weights: Whether it gets the UNet's weights.

    Raises:
        TrainingError: The latents are smaller than those that ControlNets are known for.
    """
    # Each but the first halves the image that is followed, down to the latents' size.
    strides = len(vae["block_out_channels"]) - 1
    if strides >= len(HINT_CHANNELS):
        message = "training.component: controlnet is for latents of at most an eighth"
        raise TrainingError(
            f"{message}; this autoencoder's are 1/{2**strides} (train the denoiser)"
        )
    return diffusers.ControlNetModel.from_unet(
        unet,
        conditioning_embedding_out_channels=HINT_CHANNELS[: strides + 1],
        load_weights_from_unet=load_weights,
    )


def save_controlnet(controlnet: Any, run: Path, monitor: Monitor) -> None:
    """Writes the run's result: a ControlNet, as Diffusers saves and loads it.

    Raises:
        TrainingError: The disk is full.
    """
    monitor.check_space(sum(one.numel() * one.element_size() for one in controlnet.parameters()))
    unfinished = begin_result(run)
    controlnet.save_pretrained(unfinished)
    replace_folder(unfinished, run / MODEL)


def save_words(word: str, rows: Mapping[str, Any], run: Path, monitor: Monitor) -> None:
    """Writes the run's result: a learned word, as the examples of Diffusers write it.

    Args:
        word: The placeholder.
        rows: Of each text encoder, shape (vectors, width).
        run: The run's folder.
        monitor: Checks the disk.

    Raises:
        TrainingError: The disk is full.
    """
    monitor.check_space(sum(one.numel() * one.element_size() for one in rows.values()))
    unfinished = begin_result(run)
    for encoder, tensor in rows.items():
        file = unfinished / FILES[encoder]
        save_file({word: tensor.detach().cpu().contiguous()}, file, metadata={"format": "pt"})
    replace_folder(unfinished, run / MODEL)


def begin_result(run: Path) -> Path:
    """Returns the empty folder that the result is written into."""
    unfinished = run / f".{MODEL}.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    return unfinished
