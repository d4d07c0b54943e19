"""Saved tiny image models and configurations for the tests of the family; knows no test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from deployments.hf_diffusers.deployment import DiffusersModel
from tests.support.tiny_images import create_pipeline
from truthgpt_serve.config import load_model_config

SETTINGS = {"default_steps": 3, "default_size": "64x64"}
"""Small images in few steps."""


def save_model(kind: str, folder: Path) -> Path:
    """Writes the tiny pipeline of this kind unless it is there already; returns the folder."""
    if not (folder / "model_index.json").exists():
        create_pipeline(kind).save_pretrained(folder)
    return folder


def make_cfg(weights: Path | str, engine: dict[str, Any] | None = None, **more: Any) -> Any:
    """Returns a whole configuration; `more` holds further sections."""
    serving = {"engine": engine or {}, **more.pop("serving", {})}
    sections = {
        "task": "image-generation",
        "model": {"name_or_path": str(weights)},
        "hardware": {"gpus": 0},
        "serving": serving,
        **more,
    }
    return load_model_config(sections).to_cfg()


@contextmanager
def open_model(cfg: dict[str, Any]) -> Iterator[DiffusersModel]:
    """Loads a model and closes it."""
    model = DiffusersModel()
    model.load(cfg)
    try:
        yield model
    finally:
        model.close()


async def draw(weights: Path, engine: dict[str, Any] | None = None, **sections: Any) -> Any:
    """Returns the pixels of one image as whole numbers."""
    with open_model(make_cfg(weights, {**SETTINGS, **(engine or {})}, **sections)) as model:
        return await pixels(model)


async def pixels(model: DiffusersModel, **more: Any) -> Any:
    """Returns the pixels of one image of a loaded model as whole numbers."""
    answer = await model.infer({"prompt": "a boat", "seed": 1, **more})
    return np.asarray(answer["image"], dtype=int)
