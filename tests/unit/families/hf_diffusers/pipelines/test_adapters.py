"""Adapters that cannot be loaded leave the pipeline and the other adapters as they are."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from deployments.hf_diffusers.deployment import DiffusersModel
from tests.support.image_models import make_cfg, open_model, save_model
from tests.support.tiny_images import create_pipeline, save_lora
from truthgpt_serve.errors import UnavailableError

FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with a model, a good adapter, and others."""
    folder = tmp_path_factory.mktemp("adapters")
    save_model("sdxl", folder / "sdxl")
    pipeline = create_pipeline("sdxl")
    for name in ("good", "cut", "shape", "half"):
        save_lora(pipeline, folder / name, 1)
    save_lora(create_pipeline("flux"), folder / "flux", 0)
    cut = folder / "cut" / FILE
    cut.write_bytes(cut.read_bytes()[:-100])
    # The first part of a pipeline is changed when the last one fails.
    for name, at in (("shape", 0), ("half", -1)):
        tensors = load_file(folder / name / FILE)
        key = sorted(tensors)[at]
        tensors[key] = tensors[key].new_zeros([edge + 3 for edge in tensors[key].shape])
        save_file(tensors, folder / name / FILE)
    return folder


NAMES = ("flux", "cut", "shape", "good", "half", "away")


@pytest.mark.long("loads many adapters")
async def test_the_model_serves_without_the_adapters_that_fail(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = folder / "sdxl"
    adapters = [{"name": name, "path": str(folder / name)} for name in NAMES]
    failed = [name for name in NAMES if name != "good"]
    request = {"prompt": "a boat", "seed": 3}
    mixed = {**request, "adapters": {"good": 0.7}}
    only = [{"name": "good", "path": str(folder / "good")}]
    with open_model(make_cfg(weights, serving={"adapters": only})) as model:
        expected = [np.asarray((await model.infer(one))["image"]) for one in (request, mixed)]
    with (
        caplog.at_level(logging.ERROR),
        open_model(make_cfg(weights, serving={"adapters": adapters})) as model,
    ):
        for one, image in zip((request, mixed), expected, strict=True):
            found = np.asarray((await model.infer(one))["image"])
            assert (found == image).all()
        for name in failed:
            with pytest.raises(UnavailableError, match=f"{name}' could not be loaded") as caught:
                await model.infer({**request, "adapters": {name: 1}})
            assert caught.value.status == 503
    assert all(f"the adapter {name!r} is not served" in caplog.text for name in failed)
    assert (expected[0] != expected[1]).any()


async def test_a_model_with_no_adapter_left_serves(folder: Path) -> None:
    adapters = [{"name": "shape", "path": str(folder / "shape")}]
    request = {"prompt": "a boat", "seed": 3}
    images = []
    for serving in ({}, {"adapters": adapters}):
        model: DiffusersModel
        with open_model(make_cfg(folder / "sdxl", serving=serving)) as model:
            images.append(np.asarray((await model.infer(request))["image"]))
    assert (images[0] == images[1]).all()
