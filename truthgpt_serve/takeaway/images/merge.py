"""Merges an adapter into its Diffusers pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from truthgpt_serve.errors import TruthGPTError
from truthgpt_serve.model_files import folder_bytes
from truthgpt_serve.takeaway.errors import TakeawayError
from truthgpt_serve.takeaway.output import check_room, writing
from truthgpt_serve.takeaway.result import IMAGE_ADAPTER, PIPELINE, Result
from truthgpt_serve.training.images.pipelines import (
    DTYPES,
    choose_dtype,
    find_pipeline,
    load_pipeline,
)


def write_whole(result: Result, out: Path, *, dtype: str | None, max_shard: str) -> list[str]:
    """Writes a result as the folder of a whole pipeline.

    Args:
        result: An adapter, which is merged, or a whole pipeline.
        out: The folder, see `check_output`.
        dtype: Number format of the merged parts; None: as the base's. Of a whole pipeline, of all.
        max_shard: Largest file of weights, such as `5GB`.

    Returns:
        Lines on what was done.

    Raises:
        TakeawayError: It cannot be loaded, merged or written.
    """
    source = _source(result)
    parts = [name for name in _index(source) if (source / name).is_dir()]
    check_room(out, 2 * sum(folder_bytes(source / name) for name in parts))
    names = _parts_of(result, source, parts) if result.is_adapter or dtype else []
    trained = _load(result, source, names) if names else {}
    with writing(out) as folder:
        for path in source.iterdir():
            if path.is_file() and (path.name == PIPELINE or path.suffix in (".txt", ".md")):
                shutil.copyfile(path, folder / path.name)
        for name in parts:
            if name in trained:
                trained[name].to(_format(dtype, source, name))
                trained[name].save_pretrained(str(folder / name), max_shard_size=max_shard)
            else:
                shutil.copytree(source / name, folder / name)
    return [f"merged: {', '.join(names)}"] if result.is_adapter else []


def _source(result: Result) -> Path:
    if not result.is_adapter:
        return result.folder
    try:
        return find_pipeline({"model": {"name_or_path": result.base, "revision": result.revision}})
    except TruthGPTError as error:
        raise TakeawayError(f"{error.message} (name the pipeline with --base)") from error


def _index(source: Path) -> list[str]:
    index = json.loads((source / PIPELINE).read_text(encoding="utf-8"))
    return [name for name in index if not name.startswith("_")]


def _parts_of(result: Result, source: Path, parts: list[str]) -> list[str]:
    """Returns the parts of the pipeline that change."""
    from safetensors import safe_open

    weighty = [name for name in parts if any((source / name).glob("*.safetensors"))]
    if not result.is_adapter:
        return weighty
    with safe_open(str(result.folder / IMAGE_ADAPTER), "pt") as weights:
        prefixes = {str(name).partition(".")[0] for name in weights.keys()}  # noqa: SIM118
    found = [name for name in weighty if name in prefixes]
    if not found:
        message = f"is for {', '.join(sorted(prefixes))}, which {source} does not have"
        raise TakeawayError(f"{result.folder}: {message} (name another pipeline with --base)")
    return found


def _load(result: Result, source: Path, names: list[str]) -> dict[str, Any]:
    """Returns the parts that change, in float32 and with the adapter in their weights."""
    try:
        pipeline = load_pipeline(source, torch.float32, tuple(names))
        if result.is_adapter:
            pipeline.load_lora_weights(str(result.folder), weight_name=IMAGE_ADAPTER)
            pipeline.fuse_lora(components=names, safe_fusing=True)
            pipeline.unload_lora_weights()
    except TruthGPTError as error:
        raise TakeawayError(error.message) from error
    except (ValueError, RuntimeError, AttributeError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        fix = "name the right pipeline with --base"
        raise TakeawayError(f"{result.folder}: cannot be merged: {reason} ({fix})") from error
    return {name: getattr(pipeline, name) for name in names}


def _format(dtype: str | None, source: Path, name: str) -> Any:
    return DTYPES[dtype] if dtype is not None else choose_dtype("auto", source, name)
